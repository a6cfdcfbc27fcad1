//! Further processes in the container. Their streams never pass through the monitor.

use crate::container::{Container, now_ns};
use crate::create::read_payload;
use crate::report;
use crate::requests::Refusal;
use conmon_rs::protocol::{Event, ExecRequest, Phase, Reply, STAGE_PHASE};
use crisp_oci::apply::{self, Exec, ExecError, IoPlan, Stage, Stdio};
use crisp_oci::cgroup::Cgroup;
use crisp_oci::plan::ProcessPlan;
use crisp_oci::wire;
use crisp_sys::clone::SingleThreaded;
use crisp_sys::pidfd::{self, WaitStatus};
use crisp_sys::{Errno, fd, group};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

/// Execs at one time.
const MAX_EXECS: usize = 1024;
/// Rounds of looking for processes that an exec has made, should they go on making more.
const SEARCH_ROUNDS: usize = 16;
/// Most of them that are hunted one by one.
const MAX_OFFSPRING: usize = 512;

struct Running {
    id: u64,
    pid: i32,
    pidfd: OwnedFd,
}

/// The execs that run.
pub struct Execs {
    next: u64,
    list: Vec<Running>,
}

impl Execs {
    /// None yet.
    pub fn new() -> Execs {
        Execs {
            next: 1,
            list: Vec::new(),
        }
    }

    /// Their numbers.
    pub fn ids(&self) -> Vec<u64> {
        self.list.iter().map(|exec| exec.id).collect()
    }

    /// Whether none runs.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// A child of the monitor was reaped: the event to tell, if it was an exec.
    pub fn ended(&mut self, pid: i32, status: WaitStatus) -> Option<Event> {
        let at = self.list.iter().position(|exec| exec.pid == pid)?;
        let exec = self.list.swap_remove(at);
        Some(Event::ExecExited {
            exec: exec.id,
            code: status.code(),
            signal: status.signal().unwrap_or(0),
            at_ns: now_ns(),
        })
    }

    /// Kills all of them, with what is in their process groups.
    pub fn kill(&self) {
        for exec in &self.list {
            // It has not been reaped, so the numbers are still its own.
            let _ = group::kill(exec.pid, libc::SIGKILL);
            let _ = pidfd::send_signal(exec.pidfd.as_fd(), libc::SIGKILL);
        }
    }
}

impl Container {
    /// Runs a process in the container. The container is untouched if that fails.
    pub fn exec(
        &mut self,
        token: &SingleThreaded,
        request: ExecRequest,
        fds: Vec<OwnedFd>,
    ) -> Result<(Reply, Vec<OwnedFd>), Refusal> {
        if self.phase != Phase::Running || !self.is_alive() {
            return Err(Refusal::new(
                STAGE_PHASE,
                Errno::ESRCH,
                "the container is not running",
            ));
        }
        if self.execs.list.len() >= MAX_EXECS {
            return Err(Refusal::new(
                "exec",
                Errno::EAGAIN,
                "too many execs run in the container",
            ));
        }
        let (mut process, stdio) = parts(request, fds)?;
        process.oom_score_adj = process.oom_score_adj.or(self.oom_score_adj);
        let Exec {
            pid,
            pidfd,
            console,
        } = self.launch(token, &process, stdio)?;
        let id = self.execs.next;
        self.execs.next += 1;
        self.execs.list.push(Running { id, pid, pidfd });
        Ok((
            Reply::ExecStarted { exec: id, pid },
            console.into_iter().collect(),
        ))
    }

    fn launch(
        &self,
        token: &SingleThreaded,
        process: &ProcessPlan,
        stdio: Option<Stdio>,
    ) -> Result<Exec, Refusal> {
        let copy = stdio.as_ref().map(duplicate).transpose();
        let copy = copy.map_err(|error| Refusal::sys("exec", &error))?;
        match self.attempt(token, process, &self.cgroup, stdio) {
            Ok(exec) => Ok(exec),
            Err(error) => match self.moved_cgroup(&error) {
                // A container that manages groups itself (systemd) has moved its processes down:
                // no process can enter the group it began in.
                Some(cgroup) => self.attempt(token, process, &cgroup, copy).map_err(refusal),
                None => Err(refusal(error)),
            },
        }
    }

    fn attempt(
        &self,
        token: &SingleThreaded,
        process: &ProcessPlan,
        cgroup: &Cgroup,
        stdio: Option<Stdio>,
    ) -> Result<Exec, ExecError> {
        let io = stdio.map_or(IoPlan::Terminal, IoPlan::Stdio);
        let request = apply::ExecRequest { process, io };
        apply::exec(token, self.pidfd.as_fd(), &self.joined, cgroup, request)
    }

    /// The group init is in now, if that is another one than it began in and the error may come
    /// from there.
    fn moved_cgroup(&self, error: &ExecError) -> Option<Cgroup> {
        if !matches!(error.stage(), Stage::Clone | Stage::Cgroup) {
            return None;
        }
        let text = std::fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).ok()?;
        let path = unified_path(&text)?;
        if path == self.cgroup.path() {
            return None;
        }
        Cgroup::open(&self.hierarchy, path).ok()
    }

    /// Sends a signal to an exec; `group`: to its process group, and SIGKILL to whatever else it
    /// has started.
    pub fn signal_exec(&self, id: u64, signo: i32, group: bool) -> Result<(), Refusal> {
        let Some(exec) = self.execs.list.iter().find(|exec| exec.id == id) else {
            return Err(Refusal::new("signal", Errno::ESRCH, "no such exec runs"));
        };
        let sent = match group {
            true if signo == libc::SIGKILL => {
                let offspring = self.stop_offspring(exec.pid);
                let sent = group::kill(exec.pid, signo);
                for pidfd in offspring {
                    // It may have gone by itself.
                    let _ = pidfd::send_signal(pidfd.as_fd(), signo);
                }
                sent
            }
            // It has not been reaped, so no other group can have its number.
            true => group::kill(exec.pid, signo),
            false => pidfd::send_signal(exec.pidfd.as_fd(), signo),
        };
        sent.map_err(|error| Refusal::sys("signal", &error))
    }

    /// Finds what has left the process group of an exec but is in its session or descends from it.
    /// All of it is stopped, the group first, so that nothing is made or orphaned meanwhile. What
    /// was orphaned and had left the session before belongs to nobody and is not found.
    fn stop_offspring(&self, leader: i32) -> Vec<OwnedFd> {
        let _ = group::kill(leader, libc::SIGSTOP);
        let mut found: BTreeMap<i32, OwnedFd> = BTreeMap::new();
        for _ in 0..SEARCH_ROUNDS {
            let pids = self.cgroup.pids().unwrap_or_default();
            let family: BTreeMap<i32, Relation> = pids.into_iter().filter_map(relation).collect();
            let before = found.len();
            for (pid, seen) in &family {
                let wanted = *pid != leader && seen.group != leader && !seen.is_dead;
                let room = found.len() < MAX_OFFSPRING && !found.contains_key(pid);
                if wanted && room && belongs(&family, *pid, leader) {
                    found.extend(stop_if_same(*pid, seen).map(|pidfd| (*pid, pidfd)));
                }
            }
            if found.len() == before {
                break;
            }
        }
        found.into_values().collect()
    }
}

/// The process description and the streams of a request.
fn parts(
    request: ExecRequest,
    mut fds: Vec<OwnedFd>,
) -> Result<(ProcessPlan, Option<Stdio>), Refusal> {
    let invalid = |message: &str| Refusal::new("exec", Errno::EINVAL, message);
    let bytes = match request.process {
        Some(bytes) => bytes,
        None if fds.is_empty() => return Err(invalid("the process description is missing")),
        None => read_payload(fds.remove(0))?,
    };
    let process = wire::decode_process(&bytes)
        .map_err(|error| Refusal::new("exec", Errno::EINVAL, report::chain(&error)))?;
    if process.terminal != request.terminal {
        return Err(invalid("process and request disagree on a terminal"));
    }
    let mut fds = fds.into_iter();
    let stdio = match (
        request.terminal,
        fds.next(),
        fds.next(),
        fds.next(),
        fds.next(),
    ) {
        (true, None, ..) => None,
        (false, Some(stdin), Some(stdout), Some(stderr), None) => Some(Stdio {
            stdin,
            stdout,
            stderr,
        }),
        _ => {
            return Err(invalid(
                "an exec takes three streams, or none with a terminal",
            ));
        }
    };
    Ok((process, stdio))
}

fn duplicate(stdio: &Stdio) -> crisp_sys::Result<Stdio> {
    Ok(Stdio {
        stdin: fd::dup(stdio.stdin.as_fd())?,
        stdout: fd::dup(stdio.stdout.as_fd())?,
        stderr: fd::dup(stdio.stderr.as_fd())?,
    })
}

fn refusal(error: ExecError) -> Refusal {
    Refusal::new(error.stage().name(), error.errno(), report::chain(&error))
}

/// The path in the unified tree from the text of `/proc/<pid>/cgroup`.
fn unified_path(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// What `/proc/<pid>/stat` says of a process' family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Relation {
    parent: i32,
    group: i32,
    session: i32,
    is_dead: bool,
    start_time: u64,
}

fn relation(pid: i32) -> Option<(i32, Relation)> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&text).map(|relation| (pid, relation))
}

/// Reads the line of a stat file. The name in it may hold anything, a closing bracket too.
fn parse_stat(text: &[u8]) -> Option<Relation> {
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().take(20).collect();
    Some(Relation {
        is_dead: matches!(*fields.first()?, "Z" | "X" | "x"),
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        start_time: fields.get(19)?.parse().ok()?,
    })
}

/// Whether a process is in the leader's session or below the leader.
fn belongs(processes: &BTreeMap<i32, Relation>, pid: i32, leader: i32) -> bool {
    let mut at = pid;
    // Parents are older than children, so this ends; the bound is for tables read while they change.
    for _ in 0..=processes.len() {
        let Some(seen) = processes.get(&at) else {
            return false;
        };
        if seen.session == leader || seen.parent == leader {
            return true;
        }
        at = seen.parent;
    }
    false
}

/// Stops a process if its number still means the one that was looked at.
fn stop_if_same(pid: i32, seen: &Relation) -> Option<OwnedFd> {
    let pidfd = pidfd::open(pid).ok()?;
    let (_, now) = relation(pid)?;
    if now.start_time != seen.start_time {
        return None;
    }
    pidfd::send_signal(pidfd.as_fd(), libc::SIGSTOP).ok()?;
    Some(pidfd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_from_behind_the_name() {
        let line =
            b"42 (a) R 1 (x) S 7 42 40 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 1 2 3";
        let expected = Relation {
            parent: 7,
            group: 42,
            session: 40,
            is_dead: false,
            start_time: 98765,
        };
        assert_eq!(parse_stat(line), Some(expected));
        assert!(
            parse_stat(b"42 (a) Z 7 42 40 0 -1 1 1 2 3 4 5 6 7 8 20 0 1 0 1")
                .unwrap()
                .is_dead
        );
        assert_eq!(parse_stat(b"42 (a) S 7 42"), None);
        assert_eq!(parse_stat(b"nothing"), None);
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    fn sessions_and_descendants_belong() {
        let person = |parent, session| Relation {
            parent,
            group: 0,
            session,
            is_dead: false,
            start_time: 0,
        };
        let all: BTreeMap<i32, Relation> = [
            (10, person(1, 10)),
            (11, person(10, 11)),
            (12, person(11, 11)),
            (13, person(1, 10)),
            (14, person(1, 14)),
            // A loop, as a table read while it changes might show.
            (15, person(16, 0)),
            (16, person(15, 0)),
        ]
        .into();
        let found: Vec<i32> = all
            .keys()
            .copied()
            .filter(|pid| belongs(&all, *pid, 10))
            .collect();
        assert_eq!(found, [10, 11, 12, 13]);
    }

    #[test]
    fn the_path_in_the_unified_tree() {
        assert_eq!(
            unified_path("4:memory:/x\n0::/kubepods/y\n"),
            Some("/kubepods/y")
        );
        assert_eq!(unified_path("4:memory:/x\n"), None);
    }
}
