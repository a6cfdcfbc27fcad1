//! The container as the monitor knows it.

use crate::exec::Execs;
use crate::exit::Ending;
use crate::oom::Oom;
use crate::stdio::Streams;
use conmon_rs::log::Log;
use conmon_rs::protocol::{PROTOCOL_VERSION, Phase, Snapshot};
use crisp_oci::apply::{Hooks, JoinedNamespaces, StartGate};
use crisp_oci::cgroup::{Cgroup, Hierarchy};
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A container from its creation on.
pub struct Container {
    /// Its id.
    pub id: String,
    /// Where socket and exit record lie.
    pub state_dir: OwnedFd,
    /// Where it stands.
    pub phase: Phase,
    /// Process id of init.
    pub pid: i32,
    /// Init; the descriptor stays good after init was reaped.
    pub pidfd: OwnedFd,
    /// When init was made, in clock ticks since boot.
    pub start_time: u64,
    /// When the program was executed, in nanoseconds since the epoch; 0 before.
    pub started_at_ns: u64,
    /// What lets init execute its program. Taken by the start.
    pub gate: Option<StartGate>,
    /// The exit code and reason of a program that could not be executed.
    pub start_failure: Option<(i32, String)>,
    /// Its group.
    pub cgroup: Cgroup,
    /// What others want to run yet; most containers have none.
    pub hooks: Option<Box<Hooks>>,
    /// The trees the group is in.
    pub hierarchy: Hierarchy,
    /// What an exec has to join.
    pub joined: JoinedNamespaces,
    /// OOM score of processes that ask for none.
    pub oom_score_adj: Option<i32>,
    /// Our ends of its streams.
    pub streams: Streams,
    /// Its log, if it has one.
    pub log: Option<Log>,
    /// Further processes.
    pub execs: Execs,
    /// Kills for lack of memory.
    pub oom: Oom,
    /// What happens since init has ended.
    pub ending: Option<Ending>,
    /// How long to wait for a daemon afterwards.
    pub linger: Duration,
}

impl Container {
    /// Whether init can still be signalled and joined.
    pub fn is_alive(&self) -> bool {
        self.ending.is_none()
    }

    /// Everything there is to know.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            version: PROTOCOL_VERSION,
            id: self.id.clone(),
            phase: self.phase,
            pid: self.pid,
            start_time: self.start_time,
            started_at_ns: self.started_at_ns,
            exit: self
                .ending
                .as_ref()
                .and_then(|ending| ending.record().cloned()),
            execs: self.execs.ids(),
            log: self.log.as_ref().map(Log::counters).unwrap_or_default(),
            oom_count: self.oom.count(),
            monitor_pid: own_pid(),
            dropped_clients: self.streams.dropped_clients(),
        }
    }
}

/// The answer to a daemon that asks before it told what to do.
pub fn empty_snapshot() -> Snapshot {
    Snapshot {
        version: PROTOCOL_VERSION,
        id: String::new(),
        phase: Phase::Creating,
        pid: 0,
        start_time: 0,
        started_at_ns: 0,
        exit: None,
        execs: Vec::new(),
        log: Default::default(),
        oom_count: 0,
        monitor_pid: own_pid(),
        dropped_clients: 0,
    }
}

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

/// The time, in nanoseconds since the epoch.
pub fn now_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
