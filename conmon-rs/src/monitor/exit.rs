//! From the death of init to the end of the monitor.
//!
//! The order matters to others: whoever learns of the exit finds all output in the log, nothing of
//! the container running, the OOM counter taken into account and the record on disk.
//!
//! ```text
//! init reaped -> leftovers killed -> streams drained -> log flushed -> OOM counter read
//!   -> record renamed into place -> Exited event -> cgroup removed -> poststop hooks
//!   -> acknowledged, or alone too long
//! ```

use crate::container::{Container, now_ns};
use crate::create::unlink_socket;
use crate::event_loop::Monitor;
use crate::report;
use crate::requests::Refusal;
use conmon_rs::exit::{EXIT_VERSION, ExitRecord};
use conmon_rs::log::Stream;
use conmon_rs::protocol::{EXIT_NAME, Event, Phase, Reply, STAGE_PHASE};
use crisp_sys::clone::SingleThreaded;
use crisp_sys::pidfd::WaitStatus;
use crisp_sys::{Errno, fd, path};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long killed processes may take to be gone and their output to end.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);
/// Pauses between looks at processes that are about to be gone: doubled from one to the other.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// Bytes taken from each stream at one go, so that a survivor that keeps printing cannot hold us up.
const DRAIN_STEP: usize = 4 << 20;
/// Attempts to write the record or to remove the group that failed are repeated after this.
const RETRY: Duration = Duration::from_secs(1);
/// How often the group's removal is tried. The daemon removes what is left.
const REMOVALS: u32 = 10;
/// Name under which the record is written before it is renamed.
const TEMPORARY: &str = "exit.new";

/// What is going on since init was reaped.
pub struct Ending {
    status: WaitStatus,
    finished_at_ns: u64,
    since: Instant,
    stage: Stage,
    /// When to look again.
    next: Option<Instant>,
    /// Whom to tell when everything is gone.
    quit: Option<(u64, u64)>,
    acknowledged: bool,
    unwritten: bool,
    record: Option<ExitRecord>,
}

enum Stage {
    /// Waiting for killed processes and the end of the output.
    Draining { until: Instant, pause: Duration },
    /// Removing the group.
    Removing { attempts: u32 },
    /// Waiting for the acknowledgement.
    Over,
}

impl Ending {
    /// The record, once everything that belongs into it is known.
    pub fn record(&self) -> Option<&ExitRecord> {
        self.record.as_ref()
    }
}

impl Monitor {
    /// Init was reaped.
    pub fn init_ended(&mut self, status: WaitStatus) {
        let now = Instant::now();
        let quit = self.quitting.take();
        let Some(container) = &mut self.container else {
            return;
        };
        // It is readable for ever from now on.
        let _ = self.epoll.delete(container.pidfd.as_fd());
        container.gate = None;
        container.streams.init_ended();
        container.ending = Some(Ending {
            status,
            finished_at_ns: now_ns(),
            since: now,
            stage: Stage::Draining {
                until: now + DRAIN_LIMIT,
                pause: PAUSES.0,
            },
            next: None,
            quit,
            acknowledged: false,
            unwritten: false,
            record: None,
        });
        container.kill_leftovers();
        self.go_on(now);
    }

    /// Takes the next steps of the ending, as far as they can be taken now.
    pub fn go_on(&mut self, now: Instant) {
        if let Some(container) = &mut self.container
            && container
                .ending
                .as_ref()
                .is_some_and(|e| matches!(e.stage, Stage::Draining { .. }))
            && container.is_drained(&mut self.buffer, now)
        {
            container.conclude();
            if let Some(record) = container.ending.as_ref().and_then(Ending::record) {
                let event = Event::Exited(record.clone());
                self.connections.broadcast(&self.epoll, &event);
            }
        }
        let Some(container) = &mut self.container else {
            return;
        };
        container.clear_up(now);
        container.run_last_hooks(&self.token);
        let (id, linger) = (&container.id, container.linger);
        let Some(ending) = &mut container.ending else {
            return;
        };
        if !matches!(ending.stage, Stage::Over) || !container.execs.is_empty() {
            return;
        }
        if let Some((connection, seq)) = ending.quit.take() {
            self.connections
                .reply(&self.epoll, connection, seq, Reply::Ok, Vec::new());
            self.finished = true;
        }
        let lonely_since = self
            .connections
            .empty_since()
            .map(|since| since.max(ending.since));
        let alone = lonely_since.is_some_and(|since| now >= since + linger);
        if alone && !self.finished && !ending.acknowledged {
            report::say(&format!("conmon-rs[{id}]: nobody asked how it ended"));
        }
        self.finished |= alone || ending.acknowledged;
    }

    /// When to go on without being woken by anything else.
    pub fn ending_deadline(&self) -> Option<Instant> {
        let container = self.container.as_ref()?;
        let ending = container.ending.as_ref()?;
        let lonely = match ending.stage {
            Stage::Over => {
                let since = self.connections.empty_since();
                since.map(|since| since.max(ending.since) + container.linger)
            }
            _ => None,
        };
        [ending.next, lonely].into_iter().flatten().min()
    }

    /// The daemon has seen the exit.
    pub fn acknowledge_exit(&mut self) -> Result<(Reply, Vec<OwnedFd>), Refusal> {
        let ending = self.container.as_mut().and_then(|c| c.ending.as_mut());
        match ending {
            Some(ending) if ending.record.is_some() => {
                ending.acknowledged = true;
                Ok((Reply::Ok, Vec::new()))
            }
            _ => Err(Refusal::new(
                STAGE_PHASE,
                Errno::EBUSY,
                "the container has not ended",
            )),
        }
    }

    /// Undoes everything. The answer comes when it is done.
    pub fn quit(&mut self, connection: u64, seq: u64) {
        let Some(container) = &mut self.container else {
            self.connections
                .reply(&self.epoll, connection, seq, Reply::Ok, Vec::new());
            self.finished = true;
            return;
        };
        if let Err(refusal) = container.kill_all() {
            report::say(&format!("conmon-rs[{}]: {refusal:?}", container.id));
        }
        match &mut container.ending {
            Some(ending) => ending.quit = Some((connection, seq)),
            // Init is about to be reaped.
            None => self.quitting = Some((connection, seq)),
        }
        self.go_on(Instant::now());
    }

    /// Leaves nothing behind that says this monitor still lives.
    pub fn leave(&self) {
        if let Some(container) = &self.container {
            unlink_socket(container.state_dir.as_fd());
        }
    }
}

impl Container {
    /// Kills what init has left. In a PID namespace of its own the kernel has done so.
    fn kill_leftovers(&mut self) {
        self.execs.kill();
        if self.cgroup.populated().unwrap_or(true)
            && let Err(error) = self.cgroup.kill()
        {
            report::say(&format!(
                "conmon-rs[{}]: {}",
                self.id,
                report::chain(&error)
            ));
        }
    }

    /// Reads what is left and says whether nothing more can come or it has taken too long.
    fn is_drained(&mut self, buffer: &mut [u8], now: Instant) -> bool {
        self.streams.drain(buffer, self.log.as_mut(), DRAIN_STEP);
        let quiet = self.streams.are_closed()
            && self.execs.is_empty()
            && !self.cgroup.populated().unwrap_or(false);
        let Some(ending) = &mut self.ending else {
            return false;
        };
        let Stage::Draining { until, pause } = &mut ending.stage else {
            return false;
        };
        if quiet {
            return true;
        }
        if now >= *until {
            report::say(&format!(
                "conmon-rs[{}]: something outlived the container",
                self.id
            ));
            return true;
        }
        ending.next = Some(now + *pause);
        *pause = (*pause * 2).min(PAUSES.1);
        false
    }

    /// Ends log and watch, writes the record.
    fn conclude(&mut self) {
        self.streams.close();
        if let Some(log) = &mut self.log {
            log.flush_partial(Stream::Stdout);
            log.flush_partial(Stream::Stderr);
        }
        self.oom.look(&self.cgroup);
        self.oom.stop();
        let Some(ending) = &self.ending else { return };
        let record = self.exit_record(ending.status, ending.finished_at_ns);
        let written = write_record(self.state_dir.as_fd(), &record);
        if let Err(error) = &written {
            report::say(&format!("conmon-rs[{}]: exit record: {error}", self.id));
        }
        self.phase = Phase::Exited;
        if let Some(ending) = &mut self.ending {
            ending.unwritten = written.is_err();
            ending.record = Some(record);
            ending.stage = Stage::Removing { attempts: 0 };
            ending.next = None;
        }
    }

    fn exit_record(&self, status: WaitStatus, finished_at_ns: u64) -> ExitRecord {
        let count = self.oom.count();
        let (code, signal, reason) = match &self.start_failure {
            Some((code, why)) => (*code, 0, format!("StartError: {why}")),
            None => {
                let reason = match status.code() {
                    _ if count > 0 => "OOMKilled",
                    0 => "Completed",
                    _ => "Error",
                };
                (
                    status.code(),
                    status.signal().unwrap_or(0),
                    reason.to_string(),
                )
            }
        };
        ExitRecord {
            version: EXIT_VERSION,
            pid: self.pid,
            start_time: self.start_time,
            code: code.clamp(0, 255),
            signal,
            oom_killed: count > 0,
            oom_kill_count: count,
            started_at_ns: self.started_at_ns,
            finished_at_ns,
            lost_bytes: self.log.as_ref().map_or(0, |log| log.counters().lost_bytes),
            reason,
        }
    }

    /// Runs the hooks for the end, once: when nothing of the container is left.
    fn run_last_hooks(&mut self, token: &SingleThreaded) {
        let over = |ending: &Ending| matches!(ending.stage, Stage::Over);
        if !self.ending.as_ref().is_some_and(over) {
            return;
        }
        for failed in self.hooks.take().iter().flat_map(|h| h.after_stop(token)) {
            report::say(&format!(
                "conmon-rs[{}]: {}",
                self.id,
                report::chain(&failed)
            ));
        }
    }

    /// Removes the group and repeats what failed.
    fn clear_up(&mut self, now: Instant) {
        let Some(ending) = &mut self.ending else {
            return;
        };
        if ending.record.is_none() || ending.next.is_some_and(|next| now < next) {
            return;
        }
        ending.next = None;
        if let Stage::Removing { attempts } = &mut ending.stage {
            *attempts += 1;
            match self.cgroup.remove() {
                Ok(()) => ending.stage = Stage::Over,
                Err(error) if *attempts >= REMOVALS => {
                    report::say(&format!(
                        "conmon-rs[{}]: {}",
                        self.id,
                        report::chain(&error)
                    ));
                    ending.stage = Stage::Over;
                }
                Err(_) => {
                    let _ = self.cgroup.kill();
                    ending.next = Some(now + RETRY);
                }
            }
        }
        if ending.unwritten
            && let Some(record) = &ending.record
        {
            ending.unwritten = write_record(self.state_dir.as_fd(), record).is_err();
            if ending.unwritten {
                ending.next = Some(now + RETRY);
            }
        }
    }
}

/// Writes the record under another name and renames it: a reader finds all of it or nothing.
fn write_record(state_dir: BorrowedFd<'_>, record: &ExitRecord) -> crisp_sys::Result<()> {
    let _ = path::unlinkat(state_dir, TEMPORARY, 0);
    let file = path::create_exclusive(state_dir, TEMPORARY, 0o600)?;
    fd::write_all(file.as_fd(), record.to_file().as_bytes())?;
    path::renameat2(state_dir, TEMPORARY, state_dir, EXIT_NAME, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_replaces_what_lay_there_and_leaves_no_other_file() {
        let dir = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(std::fs::File::open(dir.path()).unwrap());
        let target = dir.path().join("elsewhere");
        std::os::unix::fs::symlink(&target, dir.path().join(EXIT_NAME)).unwrap();
        std::fs::write(dir.path().join(TEMPORARY), "of an earlier attempt").unwrap();
        let record = ExitRecord {
            pid: 5,
            code: 3,
            ..Default::default()
        };
        write_record(fd.as_fd(), &record).unwrap();
        let bytes = std::fs::read(dir.path().join(EXIT_NAME)).unwrap();
        assert_eq!(ExitRecord::from_file(&bytes), Ok(record));
        assert!(!target.exists(), "a link is replaced, not followed");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
