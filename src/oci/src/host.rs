//! What the host can do, probed once.

use crisp_sys::cred;

use crate::cgroup::{CgroupError, Hierarchy};

/// Facts about the host that planning depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// Which cgroup trees there are.
    pub cgroup: Hierarchy,
    /// Capabilities this process may hand on, one bit each.
    pub capabilities: u64,
    /// Number of the highest capability the kernel knows.
    pub last_capability: u32,
    /// Whether limits may be raised above their ceilings and OOM scores lowered.
    pub has_cap_sys_resource: bool,
    /// Whether AppArmor is there to enter a profile.
    pub apparmor: bool,
    /// Whether SELinux is there to enter a label.
    pub selinux: bool,
}

/// Why the host cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The cgroup trees cannot be found.
    #[error("cannot find the cgroup trees")]
    Cgroup(#[source] CgroupError),
    /// Our own privileges cannot be read.
    #[error("cannot read our capabilities")]
    Capabilities(#[source] crisp_sys::Error),
}

impl HostFacts {
    /// Asks the kernel.
    ///
    /// # Errors
    /// See [`HostError`].
    pub fn probe() -> Result<Self, HostError> {
        const CAP_SYS_RESOURCE: u64 = 1 << 24;
        let held = cred::capget().map_err(HostError::Capabilities)?;
        let bounding = cred::bounding().map_err(HostError::Capabilities)?;
        Ok(Self {
            cgroup: Hierarchy::probe().map_err(HostError::Cgroup)?,
            capabilities: held.permitted & bounding,
            last_capability: cred::last_capability().map_err(HostError::Capabilities)?,
            has_cap_sys_resource: held.effective & CAP_SYS_RESOURCE != 0,
            apparmor: std::fs::read("/sys/module/apparmor/parameters/enabled")
                .is_ok_and(|text| text.starts_with(b"Y")),
            selinux: std::path::Path::new("/sys/fs/selinux/enforce").exists(),
        })
    }
}
