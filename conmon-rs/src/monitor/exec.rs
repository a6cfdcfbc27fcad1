//! Further processes in the container. Their streams never pass through the monitor.

use crate::container::{Container, now_ns};
use crate::create::read_payload;
use crate::event_loop::Monitor;
use crate::report;
use crate::requests::Refusal;
use conmon_rs::protocol::{Event, ExecRequest, Phase, Reply, STAGE_PHASE};
use crisp_oci::apply::{self, Begun, Exec, ExecError, IoPlan, Stage, Stdio};
use crisp_oci::cgroup::Cgroup;
use crisp_oci::plan::ProcessPlan;
use crisp_oci::wire;
use crisp_sys::clone::SingleThreaded;
use crisp_sys::event::Epoll;
use crisp_sys::pidfd::{self, WaitStatus};
use crisp_sys::{Errno, fd, group};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long the start of a program is waited for before other things have their turn. Nearly all
/// take less than a millisecond.
const AT_ONCE: Duration = Duration::from_millis(20);
/// The epoll tokens of execs whose program is not executed yet: below those of attached clients.
const TOKENS: std::ops::Range<u64> = 1 << 30..1 << 31;
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

/// Who waits for an answer: connection and request.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// Number of the connection.
    pub connection: u64,
    /// Number of the request.
    pub seq: u64,
}

/// A process on its way to its program.
struct Attempt {
    begun: Begun,
    /// What is needed to begin again in another group.
    retry: Option<Retry>,
}

struct Retry {
    process: ProcessPlan,
    stdio: Option<Stdio>,
}

/// One that takes its time.
struct Starting {
    token: u64,
    attempt: Attempt,
    asked: Asked,
    deadline: Instant,
    /// It was reaped before its channel was looked at.
    ended: Option<WaitStatus>,
}

/// The execs that run, and those about to.
pub struct Execs {
    next: u64,
    next_token: u64,
    list: Vec<Running>,
    starting: Vec<Starting>,
}

impl Execs {
    /// None yet.
    pub fn new() -> Execs {
        Execs {
            next: 1,
            next_token: TOKENS.start,
            list: Vec::new(),
            starting: Vec::new(),
        }
    }

    /// Their numbers.
    pub fn ids(&self) -> Vec<u64> {
        self.list.iter().map(|exec| exec.id).collect()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty() && self.starting.is_empty()
    }

    /// Whether an epoll token is that of one.
    pub fn is_token(token: u64) -> bool {
        TOKENS.contains(&token)
    }

    /// When the patience with one ends that does not come to its program.
    pub fn deadline(&self) -> Option<Instant> {
        self.starting.iter().map(|exec| exec.deadline).min()
    }

    /// A child of the monitor was reaped: the event to tell, if it was an exec.
    pub fn ended(&mut self, pid: i32, status: WaitStatus) -> Option<Event> {
        for starting in &mut self.starting {
            starting.attempt.begun.meet();
        }
        let of_pid = |exec: &&mut Starting| exec.attempt.begun.pid() == pid;
        if let Some(starting) = self.starting.iter_mut().find(of_pid) {
            starting.ended = Some(status);
            return None;
        }
        let at = self.list.iter().position(|exec| exec.pid == pid)?;
        let exec = self.list.swap_remove(at);
        Some(exited(exec.id, status))
    }

    /// Kills all of them, with what is in their process groups.
    pub fn kill(&mut self) {
        for exec in &self.list {
            // It has not been reaped, so the numbers are still its own.
            let _ = group::kill(exec.pid, libc::SIGKILL);
            let _ = pidfd::send_signal(exec.pidfd.as_fd(), libc::SIGKILL);
        }
        for exec in &mut self.starting {
            exec.attempt.begun.kill();
        }
    }

    fn wait_for(&mut self, epoll: &Epoll, asked: Asked, attempt: Attempt) -> Result<(), Refusal> {
        let token = self.next_token;
        self.next_token = TOKENS.start + (token + 1 - TOKENS.start) % (TOKENS.end - TOKENS.start);
        // Nothing is asked for: a hang-up comes unasked.
        epoll
            .add(attempt.begun.as_fd(), 0, token)
            .map_err(|error| Refusal::sys("exec", &error))?;
        self.starting.push(Starting {
            token,
            attempt,
            asked,
            deadline: Instant::now() + Begun::LIMIT,
            ended: None,
        });
        Ok(())
    }

    fn take(&mut self, epoll: &Epoll, wanted: impl Fn(&Starting) -> bool) -> Option<Starting> {
        let at = self.starting.iter().position(wanted)?;
        let starting = self.starting.swap_remove(at);
        // Others on their way may hold copies of it for a moment: closing alone would not do.
        let _ = epoll.delete(starting.attempt.begun.as_fd());
        Some(starting)
    }
}

fn exited(exec: u64, status: WaitStatus) -> Event {
    Event::ExecExited {
        exec,
        code: status.code(),
        signal: status.signal().unwrap_or(0),
        at_ns: now_ns(),
    }
}

impl Monitor {
    /// Runs a process in the container. The answer comes once its program was executed or could not
    /// be, now or later.
    pub fn exec(&mut self, asked: Asked, request: ExecRequest, fds: Vec<OwnedFd>) {
        let begun = match &self.container {
            Some(container) => container.begin_exec(&self.token, request, fds),
            None => Err(Refusal::new(
                STAGE_PHASE,
                Errno::ESRCH,
                "there is no container yet",
            )),
        };
        match begun {
            Ok(attempt) => self.settle_exec(asked, attempt),
            Err(refusal) => self.answer_exec(asked, refusal.into(), None),
        }
    }

    fn settle_exec(&mut self, asked: Asked, attempt: Attempt) {
        if matches!(attempt.begun.wait(AT_ONCE), Ok(true)) {
            return self.finish_exec(asked, attempt, None);
        }
        let Some(container) = &mut self.container else {
            return;
        };
        if let Err(refusal) = container.execs.wait_for(&self.epoll, asked, attempt) {
            self.answer_exec(asked, refusal.into(), None);
        }
    }

    /// An exec that took its time has come to its program, or died.
    pub fn exec_ready(&mut self, token: u64) {
        let Some(container) = &mut self.container else {
            return;
        };
        let found = container
            .execs
            .take(&self.epoll, |exec| exec.token == token);
        if let Some(starting) = found {
            self.finish_exec(starting.asked, starting.attempt, starting.ended);
        }
    }

    /// Gives up those whose time is over.
    pub fn give_up_execs(&mut self, now: Instant) {
        loop {
            let Some(container) = &mut self.container else {
                return;
            };
            let found = container
                .execs
                .take(&self.epoll, |exec| exec.deadline <= now);
            let Some(starting) = found else { return };
            let late = refusal(starting.attempt.begun.late());
            self.answer_exec(starting.asked, late.into(), None);
        }
    }

    fn finish_exec(&mut self, asked: Asked, attempt: Attempt, ended: Option<WaitStatus>) {
        let Some(container) = &mut self.container else {
            return;
        };
        match (attempt.begun.finish(ended), attempt.retry) {
            (Ok(exec), _) => {
                let id = container.execs.next;
                container.execs.next += 1;
                let Exec {
                    pid,
                    pidfd,
                    console,
                } = exec;
                if ended.is_none() {
                    container.execs.list.push(Running { id, pid, pidfd });
                }
                self.answer_exec(asked, Reply::ExecStarted { exec: id, pid }, console);
                if let Some(status) = ended {
                    let event = exited(id, status);
                    self.connections.broadcast(&self.epoll, &event);
                }
            }
            (Err(error), Some(retry)) => match container.begin_again(&self.token, error, retry) {
                Ok(attempt) => self.settle_exec(asked, attempt),
                Err(refusal) => self.answer_exec(asked, refusal.into(), None),
            },
            (Err(error), None) => self.answer_exec(asked, refusal(error).into(), None),
        }
    }

    fn answer_exec(&mut self, asked: Asked, reply: Reply, console: Option<OwnedFd>) {
        let Asked { connection, seq } = asked;
        let fds = console.into_iter().collect();
        self.connections
            .reply(&self.epoll, connection, seq, reply, fds);
    }
}

impl Container {
    /// Begins a process in the container, which is untouched if that fails.
    fn begin_exec(
        &self,
        token: &SingleThreaded,
        request: ExecRequest,
        fds: Vec<OwnedFd>,
    ) -> Result<Attempt, Refusal> {
        if self.phase != Phase::Running || !self.is_alive() {
            return Err(Refusal::new(
                STAGE_PHASE,
                Errno::ESRCH,
                "the container is not running",
            ));
        }
        if self.execs.list.len() + self.execs.starting.len() >= MAX_EXECS {
            return Err(Refusal::new(
                "exec",
                Errno::EAGAIN,
                "too many execs run in the container",
            ));
        }
        let (mut process, stdio) = parts(request, fds)?;
        process.oom_score_adj = process.oom_score_adj.or(self.oom_score_adj);
        let copy = stdio.as_ref().map(duplicate).transpose();
        let copy = copy.map_err(|error| Refusal::sys("exec", &error))?;
        let begun = self.begin(token, &process, &self.cgroup, stdio);
        let retry = Retry {
            process,
            stdio: copy,
        };
        match begun {
            Ok(begun) => Ok(Attempt {
                begun,
                retry: Some(retry),
            }),
            Err(error) => self.begin_again(token, error, retry),
        }
    }

    /// Begins again what failed because the container is in another group by now: one that manages
    /// groups itself (systemd) has moved its processes down, and no process can enter the group it
    /// began in.
    fn begin_again(
        &self,
        token: &SingleThreaded,
        error: ExecError,
        retry: Retry,
    ) -> Result<Attempt, Refusal> {
        let Some(cgroup) = self.moved_cgroup(&error) else {
            return Err(refusal(error));
        };
        let begun = self.begin(token, &retry.process, &cgroup, retry.stdio);
        Ok(Attempt {
            begun: begun.map_err(refusal)?,
            retry: None,
        })
    }

    fn begin(
        &self,
        token: &SingleThreaded,
        process: &ProcessPlan,
        cgroup: &Cgroup,
        stdio: Option<Stdio>,
    ) -> Result<Begun, ExecError> {
        let io = stdio.map_or(IoPlan::Terminal, IoPlan::Stdio);
        let request = apply::ExecRequest { process, io };
        apply::begin(token, self.pidfd.as_fd(), &self.joined, cgroup, request)
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
