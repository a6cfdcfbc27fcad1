//! Groups of cache and memory bandwidth (`linux.intelRdt`).

use oci_spec::runtime::LinuxIntelRdt;

use super::{PlanError, Result, invalid, refuse, refuse_items};

/// Where the kernel's interface is mounted, by its documentation.
const RESCTRL: &str = "/sys/fs/resctrl";

/// The file that takes a process into its group. Groups are made by whoever divides the machine;
/// what would change one is refused.
pub(super) fn tasks(rdt: Option<&LinuxIntelRdt>) -> Result<Option<String>> {
    let Some(rdt) = rdt else { return Ok(None) };
    refuse_items("linux.intelRdt.schemata", rdt.schemata().as_ref())?;
    refuse(
        "linux.intelRdt.l3CacheSchema",
        rdt.l3_cache_schema().as_ref(),
    )?;
    refuse("linux.intelRdt.memBwSchema", rdt.mem_bw_schema().as_ref())?;
    let monitoring = [rdt.enable_cmt(), rdt.enable_mbm(), rdt.enable_monitoring()];
    let wanted = monitoring.into_iter().flatten().find(|on| **on);
    refuse("linux.intelRdt.enableMonitoring", wanted)?;
    let group = rdt.clos_id().as_deref();
    let group = group.ok_or(PlanError::Absent("linux.intelRdt.closID"))?;
    match group {
        "/" => Ok(Some(format!("{RESCTRL}/tasks"))),
        "" | "." | ".." => Err(unnamed(group)),
        name if name.contains(['/', '\n', '\0']) || name.len() > 255 => Err(unnamed(group)),
        name => Ok(Some(format!("{RESCTRL}/{name}/tasks"))),
    }
}

fn unnamed(group: &str) -> PlanError {
    invalid(
        "linux.intelRdt.closID",
        format!("{group:?} is no name of a group"),
    )
}
