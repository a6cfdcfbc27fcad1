//! Control groups: v1, v2 and hybrid behind one interface.
//!
//! A [`Hierarchy`] says which trees the host has; a [`Cgroup`] is the same path in all of them.
//!
//! Life of one: [`Cgroup::create`] makes the directories (and remembers which it made), sets the
//! limits and the device policy; the container's first process joins by being cloned into
//! [`Cgroup::unified_fd`] and by [`Cgroup::join_self_v1`]; [`Cgroup::kill`] ends all inside;
//! [`Cgroup::remove`] takes away what `create` made. If `create` fails nothing is left.
//!
//! On a hybrid host limits live in the v1 trees, while killing, freezing and knowing whether
//! anything runs go through the unified tree, which does them race-free. Pure v1 hosts do the same
//! with the freezer and pidfds.

mod create;
mod delegate;
mod device;
mod error;
mod hierarchy;
mod oom;
mod processes;
mod remove;
mod resources;
mod setting;
mod stats;
#[cfg(test)]
mod tests;
mod update;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

pub use error::{CgroupError, JoinError};
pub use hierarchy::Hierarchy;
use hierarchy::TreeKind;
pub use oom::{OomWatch, Readiness};
pub use resources::{BlkioThrottle, BlkioWeight, DeviceKind, DeviceRule, Resources};
pub use setting::ResourceError;
pub use stats::{Details, DeviceIo, HugepageUse, Pressure, Share, Stats};
pub use update::Updated;

/// One path in all trees of the host.
#[derive(Debug)]
pub struct Cgroup {
    path: String,
    dirs: Vec<Dir>,
    /// Whether limits live in the unified tree.
    v2: bool,
}

/// The group in one tree.
#[derive(Debug)]
struct Dir {
    path: PathBuf,
    kind: TreeKind,
    /// Directories `create` made on the way, topmost first; the last is `path` if that is one.
    made: Vec<PathBuf>,
    /// Opened when the group can be joined.
    join: Option<Join>,
}

#[derive(Debug)]
struct Join {
    /// `tasks` on v1 (moves one thread without the lock that stops all forks of the host),
    /// `cgroup.procs` on v2.
    file: File,
    /// The directory, in the unified tree.
    dir: Option<File>,
}

impl Cgroup {
    /// Opens an existing group, to join it and all else.
    ///
    /// # Errors
    /// [`CgroupError::Path`]; [`CgroupError::Open`] where a tree lacks the group.
    pub fn open(hierarchy: &Hierarchy, path: &str) -> Result<Self, CgroupError> {
        let mut group = Self::observe(hierarchy, path)?;
        group.prepare_join()?;
        Ok(group)
    }

    /// Opens the groups a process is in now, to join them: for an exec into a container whose init
    /// moved on to a group below the one it was started in (which then takes no processes on v2).
    /// [`Cgroup::remove`] removes nothing here.
    ///
    /// # Errors
    /// [`CgroupError::Read`] when the process is gone, [`CgroupError::Parse`],
    /// [`CgroupError::Open`].
    pub fn open_of(hierarchy: &Hierarchy, pid: i32) -> Result<Self, CgroupError> {
        let file = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let text = match read(&file) {
            Ok(text) => text,
            Err(source) => return Err(CgroupError::Read { path: file, source }),
        };
        let mut dirs = Vec::new();
        for tree in hierarchy.trees() {
            let below = hierarchy::membership(&text, &tree.kind);
            let Some(below) = below else {
                return Err(CgroupError::Parse { path: file });
            };
            let path = match below {
                "/" => tree.mount,
                below => tree.mount.join(hierarchy::check_path(below)?),
            };
            dirs.push(Dir {
                path,
                kind: tree.kind,
                made: Vec::new(),
                join: None,
            });
        }
        let v2 = matches!(hierarchy, Hierarchy::V2 { .. });
        let main = match v2 {
            true => Some(TreeKind::Unified),
            false => dirs.first().map(|dir| dir.kind.clone()),
        };
        let path = main
            .and_then(|kind| hierarchy::membership(&text, &kind))
            .unwrap_or("/");
        let mut group = Self {
            path: path.to_owned(),
            dirs,
            v2,
        };
        group.prepare_join()?;
        Ok(group)
    }

    /// Names a group without touching the kernel: for statistics, killing and removing. It cannot
    /// be joined, and need not exist. [`Cgroup::remove`] takes it for wholly ours (but not the
    /// groups above it).
    ///
    /// # Errors
    /// [`CgroupError::Path`].
    pub fn observe(hierarchy: &Hierarchy, path: &str) -> Result<Self, CgroupError> {
        let relative = hierarchy::check_path(path)?;
        let dir = |tree: hierarchy::Tree| {
            let path = tree.mount.join(relative);
            Dir {
                made: vec![path.clone()],
                path,
                kind: tree.kind,
                join: None,
            }
        };
        Ok(Self {
            path: path.to_owned(),
            dirs: hierarchy.trees().into_iter().map(dir).collect(),
            v2: matches!(hierarchy, Hierarchy::V2 { .. }),
        })
    }

    /// The path below the mounts, as given.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The directory for CLONE_INTO_CGROUP that does all joining by itself: on v2 only.
    #[must_use]
    pub fn clone_fd(&self) -> Option<BorrowedFd<'_>> {
        self.unified_fd().filter(|_| self.v2)
    }

    /// The directory in the unified tree (v2 and hybrid) for CLONE_INTO_CGROUP. The child then
    /// calls [`Cgroup::join_self_v1`] for the trees this does not cover. That is the quick way on
    /// hybrid hosts: moving into the unified tree by write waits for all forks of the host.
    #[must_use]
    pub fn unified_fd(&self) -> Option<BorrowedFd<'_>> {
        let dir = self.dirs.iter().find(|dir| dir.kind == TreeKind::Unified)?;
        dir.join.as_ref()?.dir.as_ref().map(AsFd::as_fd)
    }

    /// Moves the calling thread (which is to be its process' only one) into every tree. Allocates
    /// nothing: made to be called between clone and exec.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn join_self(&self) -> Result<(), JoinError> {
        self.join_trees(|_| true)
    }

    /// The same for the v1 trees only; nothing to do on v2.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn join_self_v1(&self) -> Result<(), JoinError> {
        self.join_trees(|dir| dir.kind != TreeKind::Unified)
    }

    fn join_trees(&self, which: impl Fn(&Dir) -> bool) -> Result<(), JoinError> {
        for (tree, dir) in self.dirs.iter().enumerate().filter(|(_, dir)| which(dir)) {
            let Some(join) = &dir.join else {
                return Err(JoinError::NotPrepared);
            };
            // An error of the system carries its number and no allocation.
            (&join.file)
                .write_all(b"0")
                .map_err(|error| JoinError::Refused {
                    tree,
                    errno: error.raw_os_error().unwrap_or(0),
                })?;
        }
        Ok(())
    }

    fn prepare_join(&mut self) -> Result<(), CgroupError> {
        for dir in &mut self.dirs {
            let unified = dir.kind == TreeKind::Unified;
            let path = dir
                .path
                .join(if unified { "cgroup.procs" } else { "tasks" });
            let opened = File::options().write(true).open(&path);
            let file = opened.map_err(|source| CgroupError::Open { path, source })?;
            let opened = unified.then(|| File::open(&dir.path)).transpose();
            let path = || dir.path.clone();
            let handle = opened.map_err(|source| CgroupError::Open {
                path: path(),
                source,
            })?;
            dir.join = Some(Join { file, dir: handle });
        }
        Ok(())
    }

    /// The directory that carries a controller's files.
    fn controller(&self, name: &str) -> Option<&Path> {
        let carries = |dir: &&Dir| match &dir.kind {
            TreeKind::Unified => self.v2,
            TreeKind::V1(names) => names.iter().any(|have| have == name),
        };
        self.dirs.iter().find(carries).map(|dir| dir.path.as_path())
    }

    fn unified(&self) -> Option<&Path> {
        let dir = self.dirs.iter().find(|dir| dir.kind == TreeKind::Unified)?;
        Some(&dir.path)
    }
}

/// A control file's text. Control files are small; what is larger is no control file.
fn read(path: &Path) -> io::Result<String> {
    fs::read_to_string(path)
}

/// One value, one write: the kernel takes each write(2) as one setting.
fn write(path: &Path, value: &str) -> io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    file.write_all(value.as_bytes())
}

/// Whether the error says that the file or directory is gone (ENODEV: it was open when its group
/// went).
fn is_gone(error: &io::Error) -> bool {
    const ENODEV: i32 = 19;
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ENODEV)
}
