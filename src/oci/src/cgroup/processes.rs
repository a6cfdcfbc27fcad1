//! The processes inside: listing, killing, freezing.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crisp_sys::{Errno, pidfd};

use super::{Cgroup, CgroupError, is_gone, read, write};

const SIGKILL: i32 = 9;
/// How long a group may take to freeze. A task in uninterruptible sleep holds v1's freezer up.
const FREEZE_LIMIT: Duration = Duration::from_secs(5);
/// Groups below ours that are looked at. A container may make as many as it likes.
const MAX_GROUPS: usize = 10_000;
/// Rounds of killing one by one before giving up on a tree that keeps forking.
const KILL_ROUNDS: u32 = 50;

impl Cgroup {
    /// Kills every process in the group and the groups below, also frozen ones. It does not wait
    /// for them to be gone. Nothing to kill is success, and so is a group that is not there.
    ///
    /// # Errors
    /// [`CgroupError::Kill`].
    pub fn kill(&self) -> Result<(), CgroupError> {
        let killed = self.kill_unified()?;
        if killed && self.v2 {
            return Ok(());
        }
        // A container may have moved itself out of our reach in one tree, not in all; and whoever
        // is frozen by the v1 freezer dies only when thawed.
        if let Some(dir) = self.any_v1().or(self.unified()) {
            self.kill_listed(dir, !killed)?;
        }
        if let Some(dir) = self.freezer() {
            thaw_v1(dir);
        }
        Ok(())
    }

    /// `cgroup.kill`: at once, and nothing forks away. False where there is no such file: no
    /// unified tree, or a kernel before 5.14.
    fn kill_unified(&self) -> Result<bool, CgroupError> {
        let Some(dir) = self.unified() else {
            return Ok(false);
        };
        let file = dir.join("cgroup.kill");
        match write(&file, "1") {
            Ok(()) => Ok(true),
            Err(error) if is_gone(&error) => Ok(!dir.exists()),
            Err(source) => Err(CgroupError::Kill { path: file, source }),
        }
    }

    /// Signals who is listed until nobody new is; dying processes stay listed for a while.
    fn kill_listed(&self, dir: &Path, freeze: bool) -> Result<(), CgroupError> {
        let mut signalled = HashSet::new();
        for _ in 0..KILL_ROUNDS {
            if freeze {
                // So that nothing forks away meanwhile. Should freezing fail (a task in
                // uninterruptible sleep), the next round sees who did.
                let _ = match (self.freezer(), self.unified()) {
                    (Some(dir), _) => freeze_v1(dir, Duration::from_millis(100)),
                    (None, Some(dir)) => set(dir.join("cgroup.freeze"), "1"),
                    (None, None) => Ok(()),
                };
            }
            let killed = pids_below(dir).and_then(|pids| kill_all(dir, &pids));
            if freeze {
                let _ = self.thaw();
                let _ = self.freezer().map(thaw_v1);
            }
            let before = signalled.len();
            signalled.extend(killed?);
            if signalled.len() == before {
                return Ok(());
            }
        }
        let source = io::Error::from(io::ErrorKind::TimedOut);
        Err(CgroupError::Kill {
            path: dir.to_path_buf(),
            source,
        })
    }

    /// Whether a process lives in the group or below. A group that is not there has none.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn populated(&self) -> Result<bool, CgroupError> {
        let Some(dir) = self.unified() else {
            return Ok(!self.pids()?.is_empty());
        };
        let path = dir.join("cgroup.events");
        match read(&path) {
            Ok(text) => Ok(text.lines().any(|line| line == "populated 1")),
            Err(error) if is_gone(&error) => Ok(false),
            Err(source) => Err(CgroupError::Read { path, source }),
        }
    }

    /// The processes of the group and the groups below.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        match self.any_v1().or(self.unified()) {
            Some(dir) => pids_below(dir),
            None => Ok(Vec::new()),
        }
    }

    /// Stops all processes until [`Cgroup::thaw`].
    ///
    /// # Errors
    /// [`CgroupError::FreezeTimeout`] (the group is thawed again), [`CgroupError::NoFreezer`],
    /// [`CgroupError::Set`].
    pub fn freeze(&self) -> Result<(), CgroupError> {
        match (self.unified(), self.freezer()) {
            (Some(dir), _) => freeze_v2(dir),
            (None, Some(dir)) => freeze_v1(dir, FREEZE_LIMIT),
            (None, None) => Err(CgroupError::NoFreezer),
        }
    }

    /// Lets them run again.
    ///
    /// # Errors
    /// [`CgroupError::NoFreezer`], [`CgroupError::Set`].
    pub fn thaw(&self) -> Result<(), CgroupError> {
        match (self.unified(), self.freezer()) {
            (Some(dir), _) => set(dir.join("cgroup.freeze"), "0"),
            (None, Some(dir)) => set(dir.join("freezer.state"), "THAWED"),
            (None, None) => Err(CgroupError::NoFreezer),
        }
    }

    fn freezer(&self) -> Option<&Path> {
        self.controller("freezer").filter(|_| !self.v2)
    }

    /// A v1 tree to find processes in: the one least likely to be delegated into a container.
    fn any_v1(&self) -> Option<&Path> {
        let order = ["freezer", "pids", "memory", "devices", "cpu", "blkio"];
        order
            .into_iter()
            .filter(|_| !self.v2)
            .find_map(|name| self.controller(name))
    }
}

fn set(path: PathBuf, value: &str) -> Result<(), CgroupError> {
    let value = value.to_owned();
    write(&path, &value).map_err(|source| CgroupError::Set {
        path,
        value,
        source,
    })
}

fn freeze_v2(dir: &Path) -> Result<(), CgroupError> {
    set(dir.join("cgroup.freeze"), "1")?;
    let frozen = || {
        read(&dir.join("cgroup.events"))
            .is_ok_and(|text| text.lines().any(|line| line == "frozen 1"))
    };
    wait_for(FREEZE_LIMIT, frozen).map_err(|()| {
        let _ = write(&dir.join("cgroup.freeze"), "0");
        timeout(dir, FREEZE_LIMIT)
    })
}

fn freeze_v1(dir: &Path, limit: Duration) -> Result<(), CgroupError> {
    let state = dir.join("freezer.state");
    set(state.clone(), "FROZEN")?;
    let frozen = || match read(&state) {
        Ok(text) if text.trim() == "FROZEN" => true,
        _ => {
            // A task that was being born is not reached by the first attempt.
            let _ = write(&state, "FROZEN");
            false
        }
    };
    wait_for(limit, frozen).map_err(|()| {
        let _ = write(&state, "THAWED");
        timeout(dir, limit)
    })
}

fn timeout(dir: &Path, limit: Duration) -> CgroupError {
    CgroupError::FreezeTimeout {
        path: dir.to_path_buf(),
        seconds: limit.as_secs(),
    }
}

fn wait_for(limit: Duration, mut holds: impl FnMut() -> bool) -> Result<(), ()> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_micros(50);
    while !holds() {
        if Instant::now() > end {
            return Err(());
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
    Ok(())
}

/// Thaws the group and those below, which a container may have frozen itself.
fn thaw_v1(dir: &Path) {
    for dir in below(dir) {
        let state = dir.join("freezer.state");
        if read(&state).is_ok_and(|text| text.trim() != "THAWED") {
            let _ = write(&state, "THAWED");
        }
    }
}

/// Who was signalled.
fn kill_all(dir: &Path, pids: &[i32]) -> Result<Vec<i32>, CgroupError> {
    let mut handles = Vec::new();
    for pid in pids {
        match pidfd::open(*pid) {
            Ok(handle) => handles.push((*pid, handle)),
            Err(error) if error.errno == Errno::ESRCH => {}
            Err(error) => return Err(failed(dir, &error)),
        }
    }
    // A number may have passed to a stranger before its descriptor was opened; who is still listed
    // afterwards is not one.
    let listed: HashSet<i32> = pids_below(dir)?.into_iter().collect();
    handles.retain(|(pid, _)| listed.contains(pid));
    let mut signalled = Vec::new();
    for (pid, handle) in handles {
        match pidfd::send_signal(handle.as_fd(), SIGKILL) {
            Ok(()) => signalled.push(pid),
            Err(error) if error.errno == Errno::ESRCH => {}
            Err(error) => return Err(failed(dir, &error)),
        }
    }
    Ok(signalled)
}

fn failed(dir: &Path, error: &crisp_sys::Error) -> CgroupError {
    let source = io::Error::from_raw_os_error(error.errno.0);
    CgroupError::Kill {
        path: dir.to_path_buf(),
        source,
    }
}

fn pids_below(dir: &Path) -> Result<Vec<i32>, CgroupError> {
    let mut pids = Vec::new();
    for dir in below(dir) {
        let path = dir.join("cgroup.procs");
        match read(&path) {
            // 0 stands for a process of another pid namespace; there is no signalling that.
            Ok(text) => {
                let numbers = text.lines().filter_map(|line| line.parse().ok());
                pids.extend(numbers.filter(|pid: &i32| *pid > 0));
            }
            Err(error) if is_gone(&error) => {}
            // A threaded group's processes are listed at its root.
            Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP.0) => {}
            Err(source) => return Err(CgroupError::Read { path, source }),
        }
    }
    Ok(pids)
}

/// The group and all below it, parents first.
pub(super) fn below(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_path_buf()];
    let mut next = 0;
    while next < found.len() && found.len() < MAX_GROUPS {
        if let Ok(entries) = std::fs::read_dir(&found[next]) {
            let is_dir =
                |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
            found.extend(entries.flatten().filter(is_dir).map(|entry| entry.path()));
        }
        next += 1;
    }
    found
}
