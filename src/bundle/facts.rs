//! Probing the host: what [`HostFacts`] says, read once from /proc and /sys.

use std::{fs, path::Path};

use super::{HostFacts, devices};
use crate::{
    apparmor,
    container::capability::{Capability, CapabilitySet},
};

impl HostFacts {
    /// Reads the facts of this host as this process sees them. What cannot be read is taken for
    /// absent, which is what a kernel without the feature looks like.
    #[must_use]
    pub fn probe() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let status = read("/proc/self/status");
        let resource = Capability::parse("SYS_RESOURCE");
        let may_lower_oom = resource.is_some_and(|c| status_mask(&status, "CapEff").contains(c));
        let own_oom = read("/proc/self/oom_score_adj").trim().parse().unwrap_or(0);
        let cgroup_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        Self {
            cgroup_v2,
            apparmor: apparmor::enabled(),
            // Loading it takes a program, which whoever composes the daemon runs.
            apparmor_default: None,
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
            oom_score_adj_floor: (!may_lower_oom).then_some(own_oom),
            bounding: status_mask(&status, "CapBnd"),
            devices: devices::all().unwrap_or_default(),
            swap_accounting: swap_accounting(cgroup_v2),
            hugepage_sizes: hugepage_sizes(cgroup_v2),
            // Finding out takes a program and a directory: whoever composes the daemon has both.
            no_user_namespaces: None,
            default_env: std::collections::BTreeMap::new(),
        }
    }
}

/// A capability mask of /proc/<pid>/status.
fn status_mask(status: &str, name: &str) -> CapabilitySet {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let mask = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    CapabilitySet::from_mask(mask.unwrap_or(0))
}

fn swap_accounting(cgroup_v2: bool) -> bool {
    if cgroup_v2 {
        // Only cgroups below the root have the file; any of them tells.
        return fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| entry.path().join("memory.swap.max").exists());
    }
    Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
}

/// Sizes the hugetlb controller limits, as it spells them: `2MB`, `1GB`.
fn hugepage_sizes(cgroup_v2: bool) -> Vec<String> {
    let controlled = if cgroup_v2 {
        fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
            .is_ok_and(|list| list.split_whitespace().any(|name| name == "hugetlb"))
    } else {
        Path::new("/sys/fs/cgroup/hugetlb/cgroup.procs").exists()
    };
    if !controlled {
        return Vec::new();
    }
    let entries = fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten()
        .flatten();
    let mut sizes: Vec<String> = entries
        .filter_map(|entry| page_size(entry.file_name().to_str()?))
        .collect();
    sizes.sort();
    sizes
}

/// `hugepages-2048kB` to `2MB`.
fn page_size(directory: &str) -> Option<String> {
    let kib: u64 = directory
        .strip_prefix("hugepages-")?
        .strip_suffix("kB")?
        .parse()
        .ok()?;
    Some(match kib {
        kib if kib >= 1 << 20 => format!("{}GB", kib >> 20),
        kib if kib >= 1 << 10 => format!("{}MB", kib >> 10),
        kib => format!("{kib}KB"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes_are_spelled_as_the_controller_does() {
        for (directory, size) in [
            ("hugepages-64kB", Some("64KB")),
            ("hugepages-2048kB", Some("2MB")),
            ("hugepages-1048576kB", Some("1GB")),
            ("hugepages-xkB", None),
            ("other", None),
        ] {
            assert_eq!(page_size(directory).as_deref(), size);
        }
    }

    #[test]
    fn this_host_is_seen_as_the_kernel_tells() {
        let facts = HostFacts::probe();
        assert!(
            facts
                .devices
                .iter()
                .any(|device| device.path == "/dev/null")
        );
        let status = fs::read_to_string("/proc/self/status").unwrap();
        assert_eq!(facts.bounding, status_mask(&status, "CapBnd"));
        assert!(facts.bounding.contains(Capability::parse("CHOWN").unwrap()));
        let may =
            status_mask(&status, "CapEff").contains(Capability::parse("SYS_RESOURCE").unwrap());
        assert_eq!(facts.oom_score_adj_floor.is_none(), may);
    }
}
