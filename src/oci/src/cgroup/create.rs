//! Making a group.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use super::hierarchy::{self, Hierarchy, TreeKind};
use super::{Cgroup, CgroupError, DeviceRule, Dir, Resources, device, is_gone, read, write};

/// Controllers a container's limits and statistics need on v2.
const V2_CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];
/// A group on its way out keeps controllers busy for a moment.
const ENABLE_ATTEMPTS: u32 = 20;

/// How often the groups above may vanish while the group is made.
const PARENT_ATTEMPTS: u32 = 20;

/// Whether the error says that a directory is not there, or went while a file of it was open.
fn has_vanished(error: &CgroupError) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref());
    source.is_some_and(is_gone)
}

impl Cgroup {
    /// Makes the group, with the groups above it that are missing, its limits and its device
    /// policy. What exists is used as it is and will not be removed; it must be empty.
    ///
    /// # Errors
    /// Any of [`CgroupError`]; what was made is then removed again.
    pub fn create(
        hierarchy: &Hierarchy,
        path: &str,
        resources: &Resources,
        rules: &[DeviceRule],
    ) -> Result<Self, CgroupError> {
        let mut attempt = 1;
        loop {
            match Self::create_once(hierarchy, path, resources, rules) {
                // Whoever made the groups above may take them away as the last one in them leaves.
                Err(error) if attempt < PARENT_ATTEMPTS && has_vanished(&error) => {
                    attempt += 1;
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                done => return done,
            }
        }
    }

    fn create_once(
        hierarchy: &Hierarchy,
        path: &str,
        resources: &Resources,
        rules: &[DeviceRule],
    ) -> Result<Self, CgroupError> {
        let mut group = Self::observe(hierarchy, path)?;
        for dir in &mut group.dirs {
            dir.made.clear();
        }
        match group.establish(hierarchy, resources, rules) {
            Ok(()) => Ok(group),
            Err(error) => {
                // The first error is the one to tell; a directory that cannot be removed here is
                // empty and found by its name later.
                let _ = group.remove();
                Err(error)
            }
        }
    }

    fn establish(
        &mut self,
        hierarchy: &Hierarchy,
        resources: &Resources,
        rules: &[DeviceRule],
    ) -> Result<(), CgroupError> {
        let relative = hierarchy::check_path(&self.path)?.to_owned();
        for (dir, tree) in self.dirs.iter_mut().zip(hierarchy.trees()) {
            make(dir, &tree.mount, &relative, self.v2)?;
        }
        if let Some(dir) = self.dirs.iter().find(|dir| !dir.made.contains(&dir.path))
            && occupied(&dir.path)
        {
            return Err(CgroupError::Occupied {
                path: dir.path.clone(),
            });
        }
        // A group that is not made in the end is removed as a whole.
        let _ = self.update(resources)?;
        device::apply(self, rules, true)?;
        self.prepare_join()
    }
}

fn make(dir: &mut Dir, mount: &Path, relative: &str, v2: bool) -> Result<(), CgroupError> {
    let cpuset = matches!(&dir.kind, TreeKind::V1(names) if names.iter().any(|n| n == "cpuset"));
    let mut parent = mount.to_path_buf();
    for path in hierarchy::chain(mount, relative) {
        if v2 {
            enable_controllers(&parent);
        }
        match fs::create_dir(&path) {
            Ok(()) => dir.made.push(path.clone()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(source) => return Err(CgroupError::Make { path, source }),
        }
        if cpuset {
            inherit_cpuset(&parent, &path)?;
        }
        parent = path;
    }
    Ok(())
}

/// A v1 cpuset starts empty, and nothing can join an empty one (ENOSPC).
fn inherit_cpuset(parent: &Path, path: &Path) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = path.join(file);
        let fail = |path: &Path| {
            let path = path.to_path_buf();
            move |source| CgroupError::Read { path, source }
        };
        if !read(&own).map_err(fail(&own))?.trim().is_empty() {
            continue;
        }
        let above = parent.join(file);
        let value = read(&above).map_err(fail(&above))?.trim().to_owned();
        write(&own, &value).map_err(|source| CgroupError::Set {
            path: own,
            value,
            source,
        })?;
    }
    Ok(())
}

/// Hands the controllers that are there down to the children of `dir`. What cannot be handed down
/// is missed by whoever sets a limit of it, with a better message than could be given here.
fn enable_controllers(dir: &Path) {
    let words = |file: &str| read(&dir.join(file)).unwrap_or_default();
    let (available, enabled) = (words("cgroup.controllers"), words("cgroup.subtree_control"));
    let missing = missing_controllers(&available, &enabled);
    if missing.is_empty() {
        return;
    }
    let control = dir.join("cgroup.subtree_control");
    let all: Vec<_> = missing.iter().map(|name| format!("+{name}")).collect();
    if enable(&control, &all.join(" ")).is_err() {
        for one in all {
            let _ = enable(&control, &one);
        }
    }
}

pub(super) fn missing_controllers(available: &str, enabled: &str) -> Vec<&'static str> {
    let has = |text: &str, name: &str| text.split_whitespace().any(|word| word == name);
    let wanted = V2_CONTROLLERS.into_iter();
    wanted
        .filter(|name| has(available, name) && !has(enabled, name))
        .collect()
}

fn enable(control: &Path, value: &str) -> io::Result<()> {
    let mut attempt = 1;
    loop {
        match write(control, value) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy && attempt < ENABLE_ATTEMPTS => {
                attempt += 1;
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            other => return other,
        }
    }
}

fn occupied(path: &Path) -> bool {
    read(&path.join("cgroup.procs")).is_ok_and(|text| !text.trim().is_empty())
}
