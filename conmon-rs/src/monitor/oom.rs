//! Kills for lack of memory.

use crate::event_loop::token;
use crate::report;
use crisp_oci::cgroup::{Cgroup, OomWatch, Readiness};
use crisp_sys::event::{EPOLLIN, EPOLLPRI, Epoll};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// cgroup v1 reports before it kills: the counter is looked at again after these pauses.
const RECHECKS: [Duration; 4] = [
    Duration::from_millis(2),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(250),
];

/// The watch over a group's kills.
pub struct Oom {
    watch: Option<OomWatch>,
    count: u64,
    recheck: Option<(Instant, usize)>,
}

impl Oom {
    /// Begins to watch a group. Without a memory controller nothing is ever seen.
    pub fn watch(epoll: &Epoll, cgroup: &Cgroup) -> Oom {
        let watch = match cgroup.oom_watch() {
            Ok(watch) => Some(watch),
            Err(error) => {
                report::say(&format!(
                    "conmon-rs: no OOM events: {}",
                    report::chain(&error)
                ));
                None
            }
        };
        let watch = watch.filter(|watch| {
            let events = match watch.readiness() {
                Readiness::Readable => EPOLLIN,
                Readiness::Priority => EPOLLPRI,
            };
            epoll.add(watch.as_fd(), events, token::OOM).is_ok()
        });
        Oom {
            watch,
            count: 0,
            recheck: None,
        }
    }

    /// Kills seen so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// When to look again.
    pub fn deadline(&self) -> Option<Instant> {
        self.recheck.map(|(at, _)| at)
    }

    /// The kernel says that memory ran out. Returns the count if it grew.
    pub fn reported(&mut self, cgroup: &Cgroup, now: Instant) -> Option<u64> {
        if let Some(watch) = &mut self.watch {
            watch.acknowledge();
        }
        self.recheck = Some((now + RECHECKS[0], 0));
        self.look(cgroup)
    }

    /// Looks again if it is time. Returns the count if it grew.
    pub fn recheck(&mut self, cgroup: &Cgroup, now: Instant) -> Option<u64> {
        let (at, round) = self.recheck?;
        if now < at {
            return None;
        }
        self.recheck = RECHECKS
            .get(round + 1)
            .map(|pause| (now + *pause, round + 1));
        self.look(cgroup)
    }

    /// Reads the counter. Returns it if it grew.
    pub fn look(&mut self, cgroup: &Cgroup) -> Option<u64> {
        let count = cgroup.oom_kill_count().ok()?;
        if count <= self.count {
            return None;
        }
        self.count = count;
        self.recheck = None;
        Some(count)
    }

    /// The group is about to be removed, which would be reported too.
    pub fn stop(&mut self) {
        self.watch = None;
        self.recheck = None;
    }
}
