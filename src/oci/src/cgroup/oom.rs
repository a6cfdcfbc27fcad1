//! Kills for lack of memory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;

use crisp_sys::event::EventFd;

use super::processes::below;
use super::{Cgroup, CgroupError, is_gone, read, write};

/// Tells when to look at [`Cgroup::oom_kill_count`] again. It may tell without a kill: for a
/// shortage that was overcome, and when the group goes away.
#[derive(Debug)]
pub struct OomWatch(Watch);

#[derive(Debug)]
enum Watch {
    /// v1: an event descriptor registered with `memory.oom_control`.
    Counter(EventFd),
    /// v2: `memory.events`.
    Events(File),
}

/// What to poll for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// POLLIN.
    Readable,
    /// POLLPRI.
    Priority,
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Watch::Counter(counter) => counter.as_fd(),
            Watch::Events(file) => file.as_fd(),
        }
    }
}

impl OomWatch {
    /// Which event of the descriptor counts.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        match &self.0 {
            Watch::Counter(_) => Readiness::Readable,
            Watch::Events(_) => Readiness::Priority,
        }
    }

    /// Takes the event, so that the descriptor is ready again only after the next. Errors mean
    /// that the group is gone, and are of no interest to anyone.
    pub fn acknowledge(&mut self) {
        match &mut self.0 {
            Watch::Counter(counter) => drop(counter.take()),
            // The kernel takes a read through the same descriptor as having seen the event.
            Watch::Events(file) => {
                let mut text = [0; 512];
                let _ = file
                    .seek(SeekFrom::Start(0))
                    .and_then(|_| file.read(&mut text));
            }
        }
    }
}

impl Cgroup {
    /// Begins to watch.
    ///
    /// # Errors
    /// [`CgroupError::NoOomEvents`], [`CgroupError::Open`], [`CgroupError::Event`],
    /// [`CgroupError::Set`].
    pub fn oom_watch(&self) -> Result<OomWatch, CgroupError> {
        let dir = self.controller("memory").ok_or(CgroupError::NoOomEvents)?;
        let open =
            |path: PathBuf| File::open(&path).map_err(|source| CgroupError::Open { path, source });
        if self.v2 {
            let mut watch = OomWatch(Watch::Events(open(dir.join("memory.events"))?));
            watch.acknowledge();
            return Ok(watch);
        }
        let control = open(dir.join("memory.oom_control"))?;
        let counter = EventFd::new().map_err(CgroupError::Event)?;
        let value = format!("{} {}", counter.as_fd().as_raw_fd(), control.as_raw_fd());
        let path = dir.join("cgroup.event_control");
        write(&path, &value).map_err(|source| CgroupError::Set {
            path,
            value,
            source,
        })?;
        Ok(OomWatch(Watch::Counter(counter)))
    }

    /// How many processes of the group and those below were killed for lack of memory, be it the
    /// group's own or that of one above. (On v1 what died in a group below that is gone is not
    /// counted.)
    ///
    /// # Errors
    /// [`CgroupError::NoOomEvents`]; [`CgroupError::Read`], also when the group is gone.
    pub fn oom_kill_count(&self) -> Result<u64, CgroupError> {
        let dir = self.controller("memory").ok_or(CgroupError::NoOomEvents)?;
        // v2 counts up the tree by itself.
        let (file, dirs) = match self.v2 {
            true => ("memory.events", vec![dir.to_path_buf()]),
            false => ("memory.oom_control", below(dir)),
        };
        let mut count = 0;
        for (at, dir) in dirs.iter().enumerate() {
            let path = dir.join(file);
            match read(&path) {
                Ok(text) => count += kills(&text),
                Err(error) if at > 0 && is_gone(&error) => {}
                Err(source) => return Err(CgroupError::Read { path, source }),
            }
        }
        Ok(count)
    }
}

/// Only `oom_kill` counts: `oom` is a limit that was hit, `under_oom` a state.
fn kills(text: &str) -> u64 {
    let mut lines = text.lines();
    let number = lines.find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
    number.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::kills;

    #[test]
    fn only_kills_count() {
        assert_eq!(
            kills("low 0\nhigh 3\nmax 9\noom 7\noom_kill 2\noom_group_kill 1\n"),
            2
        );
        assert_eq!(kills("oom_kill_disable 1\nunder_oom 1\noom_kill 4\n"), 4);
        assert_eq!(kills("oom_kill_disable 1\nunder_oom 1\n"), 0);
    }
}
