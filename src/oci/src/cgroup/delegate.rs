//! Handing a group to the root of a user namespace.

use std::os::unix::fs::chown;

use super::{Cgroup, CgroupError, is_gone, read};

/// What a group's owner may write, unless the kernel lists more (runtime specification, "cgroup
/// ownership"). Limits stay ours.
const FILES: [&str; 3] = ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"];
const LISTED: &str = "/sys/kernel/cgroup/delegate";

impl Cgroup {
    /// Lets a user of the host's make groups below this one, in the unified tree alone: v1 trees do
    /// not confine who may write to them. Nothing to do without a unified tree.
    ///
    /// # Errors
    /// [`CgroupError::Set`].
    pub fn delegate(&self, uid: u32, gid: u32) -> Result<(), CgroupError> {
        let Some(group) = self.unified() else {
            return Ok(());
        };
        let listed = read(LISTED.as_ref()).unwrap_or_default();
        let mut names: Vec<&str> = listed.split_whitespace().collect();
        if names.is_empty() {
            names.extend(FILES);
        }
        let files = names.into_iter().map(|name| group.join(name));
        for path in std::iter::once(group.to_path_buf()).chain(files) {
            match chown(&path, Some(uid), Some(gid)) {
                // A kernel lists what it could have; this group need not have all of it.
                Err(error) if is_gone(&error) && path != group => {}
                Err(source) => {
                    let value = format!("owner {uid}:{gid}");
                    return Err(CgroupError::Set {
                        path,
                        value,
                        source,
                    });
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }
}
