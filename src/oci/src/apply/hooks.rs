//! Hooks: programs of others that run at points of a container's life and are told its state.
//!
//! | point | run by | where | state says |
//! |---|---|---|---|
//! | prestart, createRuntime | the parent, while init waits | our namespaces | creating |
//! | createContainer | init, before it moves into its root | the container's namespaces, our root | creating |
//! | startContainer | the parent, as an exec, before the gate opens | the container | created |
//! | poststart | the parent, after the exec | our namespaces | running |
//! | poststop | the parent, when nothing is left | our namespaces | stopped |
//!
//! A hook that fails fails what it is part of; only of poststop all run. A hook gets no descriptor
//! but its own three, ends at its timeout with its process group, and of what it prints the
//! beginning is kept: a failure tells it, and a success puts it on our standard error.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crisp_sys::clone::{self, Child, CloneArgs, InChild, SingleThreaded};
use crisp_sys::event::{EPOLLIN, Epoll, Event};
use crisp_sys::pidfd::{self, WaitStatus};
use crisp_sys::process::{self, StringArray};
use crisp_sys::{Errno, arg, cred, fd, group};

use super::{ExecError, ExecRequest, IoPlan, JoinedNamespaces, Stdio};
use crate::cgroup::Cgroup;
use crate::plan::{HookPlan, HooksPlan, Plan, ProcessPlan};

/// Longest a hook without a timeout may take: its container, and whoever waits for it, would hang.
const LIMIT: Duration = Duration::from_secs(60);
/// Bytes kept of what a hook prints.
const KEPT: usize = 2048;
/// Bytes read at once.
const CHUNK: usize = 4096;

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
#[error("hook {point}[{index}] {path}")]
pub struct HookError {
    /// Which list it is in.
    pub point: &'static str,
    /// Where in the list.
    pub index: usize,
    /// Its program.
    pub path: String,
    /// Why.
    #[source]
    pub source: HookFailure,
}

/// How a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookFailure {
    /// It could not be started or watched.
    #[error("cannot be run")]
    Run(#[from] crisp_sys::Error),
    /// It could not be started in the container.
    #[error("cannot be run in the container")]
    Exec(#[from] ExecError),
    /// It ended with something else than 0.
    #[error("ended with {status:?}, having said {said:?}")]
    Ended {
        /// How.
        status: WaitStatus,
        /// The beginning of what it printed.
        said: String,
    },
    /// It took too long.
    #[error("was killed after {seconds} s, having said {said:?}")]
    Late {
        /// Its limit.
        seconds: u64,
        /// The beginning of what it printed.
        said: String,
    },
}

/// The hooks that a created container still has before it.
#[derive(Debug)]
pub struct Hooks {
    told: Told,
    plan: HooksPlan,
    /// Who runs `startContainer`, if anything does.
    process: Option<ProcessPlan>,
}

/// What never changes of the state that hooks are told.
#[derive(Debug)]
struct Told {
    id: String,
    bundle: String,
}

/// A running container, as far as a hook in it needs it.
#[derive(Clone, Copy, Debug)]
pub struct Within<'a> {
    /// Its init.
    pub init: BorrowedFd<'a>,
    /// Init's number in our PID namespace.
    pub pid: i32,
    /// What an exec has to join.
    pub joined: &'a JoinedNamespaces,
    /// Its group.
    pub cgroup: &'a Cgroup,
}

impl HooksPlan {
    /// Whether anything runs before the container's init moves into its root.
    pub(super) const fn come_first(&self) -> bool {
        !(self.prestart.is_empty()
            && self.create_runtime.is_empty()
            && self.create_container.is_empty())
    }
}

impl Hooks {
    /// Those of a plan, if it has any.
    pub(super) fn of(plan: &Plan) -> Option<Box<Self>> {
        let hooks = plan.hooks.clone()?;
        let process = (!hooks.start_container.is_empty()).then(|| plan.process.clone());
        let told = Told {
            id: plan.id.clone(),
            bundle: plan.bundle.clone(),
        };
        Some(Box::new(Self {
            told,
            plan: hooks,
            process,
        }))
    }

    /// Runs what comes when the root filesystem is ready, in our namespaces.
    pub(super) fn on_create(&self, token: &SingleThreaded, pid: i32) -> Result<(), HookError> {
        let state = self.state("creating", Some(pid));
        let here = |hook: &HookPlan| run(token, hook, &state, None);
        each("prestart", &self.plan.prestart, here)?;
        each("createRuntime", &self.plan.create_runtime, here)
    }

    /// Runs `startContainer` in the container, whose init waits at the gate.
    ///
    /// # Errors
    /// The first hook that failed; then the container must not be started.
    pub fn before_start(
        &self,
        token: &SingleThreaded,
        within: Within<'_>,
    ) -> Result<(), HookError> {
        let Some(process) = &self.process else {
            return Ok(());
        };
        let pid = inner_pid(within.pid).unwrap_or(within.pid);
        let state = self.state("created", Some(pid));
        each("startContainer", &self.plan.start_container, |hook| {
            exec(token, hook, process, &state, within)
        })
    }

    /// Runs `poststart`.
    ///
    /// # Errors
    /// The first hook that failed; then the container is to be stopped.
    pub fn after_start(&self, token: &SingleThreaded, pid: i32) -> Result<(), HookError> {
        let state = self.state("running", Some(pid));
        each("poststart", &self.plan.poststart, |hook| {
            run(token, hook, &state, None)
        })
    }

    /// Runs all of `poststop`, whether they fail or not.
    #[must_use]
    pub fn after_stop(&self, token: &SingleThreaded) -> Vec<HookError> {
        let state = self.state("stopped", None);
        let numbered = self.plan.poststop.iter().enumerate();
        let failed = numbered.filter_map(|(index, hook)| {
            let source = run(token, hook, &state, None).err()?;
            Some(HookError {
                point: "poststop",
                index,
                path: hook.path.clone(),
                source,
            })
        });
        failed.collect()
    }

    fn state(&self, status: &str, pid: Option<i32>) -> Vec<u8> {
        state(&self.told.id, &self.told.bundle, &self.plan, status, pid)
    }
}

/// Runs `createContainer`; called by init in its namespaces. `root` is the directory that was the
/// root when they were made: joining a mount namespace may have moved us away from it.
pub(super) fn in_namespaces(
    token: &SingleThreaded,
    plan: &Plan,
    root: BorrowedFd<'_>,
) -> Result<(), HookError> {
    let Some(hooks) = &plan.hooks else {
        return Ok(());
    };
    let own = std::process::id().cast_signed();
    let state = state(&plan.id, &plan.bundle, hooks, "creating", Some(own));
    each("createContainer", &hooks.create_container, |hook| {
        run(token, hook, &state, Some(root))
    })
}

fn each(
    point: &'static str,
    hooks: &[HookPlan],
    run: impl Fn(&HookPlan) -> Result<(), HookFailure>,
) -> Result<(), HookError> {
    for (index, hook) in hooks.iter().enumerate() {
        run(hook).map_err(|source| HookError {
            point,
            index,
            path: hook.path.clone(),
            source,
        })?;
    }
    Ok(())
}

fn strings(hook: &HookPlan) -> crisp_sys::Result<(StringArray, StringArray)> {
    let own = [hook.path.clone()];
    let args = if hook.args.is_empty() {
        &own[..]
    } else {
        &hook.args
    };
    Ok((StringArray::new(args)?, StringArray::new(&hook.env)?))
}

/// Runs a hook with our identity, in our namespaces.
fn run(
    token: &SingleThreaded,
    hook: &HookPlan,
    state: &[u8],
    root: Option<BorrowedFd<'_>>,
) -> Result<(), HookFailure> {
    let (args, env) = strings(hook)?;
    let stdin = fd::sealed_memfd("state", state)?;
    let (reader, writer) = fd::pipe()?;
    let start = Start {
        path: &hook.path,
        args: &args,
        env: &env,
        root,
        stdin: &stdin,
        output: &writer,
    };
    let child = clone::clone3(token, &CloneArgs::default(), |child| start.run(child))?;
    drop((writer, stdin));
    finish(hook, &child, &reader)
}

/// What the process of a hook starts from.
struct Start<'a> {
    path: &'a str,
    args: &'a StringArray,
    env: &'a StringArray,
    root: Option<BorrowedFd<'a>>,
    stdin: &'a OwnedFd,
    output: &'a OwnedFd,
}

impl Start<'_> {
    fn run(&self, in_child: &InChild) -> i32 {
        let error = match self.prepare(in_child) {
            Err(error) => error,
            Ok(()) => {
                let exec = arg::Arg::with_c_str(self.path, "execve", |path| {
                    Err::<(), _>(process::execve(path, self.args, self.env))
                });
                exec.err().unwrap_or_else(|| unreachable_exec(self.path))
            }
        };
        // On its own standard error, which is read as what it said.
        let _ = write!(std::io::stderr(), "{error}");
        if error.errno() == Errno::ENOENT {
            127
        } else {
            126
        }
    }

    fn prepare(&self, in_child: &InChild) -> crisp_sys::Result<()> {
        // Nobody in the container's namespaces may look into a copy of ours.
        cred::set_dumpable(false)?;
        process::reset_signals()?;
        process::setsid()?;
        if let Some(root) = self.root {
            process::fchdir(root)?;
            process::chroot(c".")?;
        }
        process::chdir(c"/")?;
        process::umask(0o022);
        fd::dup_to_stdio(self.stdin.as_fd(), 0)?;
        fd::dup_to_stdio(self.output.as_fd(), 1)?;
        fd::dup_to_stdio(self.output.as_fd(), 2)?;
        in_child.close_all_but(&[])
    }
}

fn unreachable_exec(path: &str) -> crisp_sys::Error {
    crisp_sys::Error::new("execve", path, Errno::EINVAL)
}

/// Runs a hook in the container, as its user and confined like it.
fn exec(
    token: &SingleThreaded,
    hook: &HookPlan,
    process: &ProcessPlan,
    state: &[u8],
    within: Within<'_>,
) -> Result<(), HookFailure> {
    let bytes = |list: &[String]| list.iter().map(|word| word.clone().into_bytes()).collect();
    let own = [hook.path.clone()];
    let args: &[String] = if hook.args.is_empty() {
        &own
    } else {
        &hook.args
    };
    let process = ProcessPlan {
        args: bytes(args),
        env: bytes(&hook.env),
        cwd: "/".into(),
        terminal: false,
        console_size: None,
        ..process.clone()
    };
    let (reader, writer) = fd::pipe()?;
    let stderr = fd::dup(writer.as_fd())?;
    let io = IoPlan::Stdio(Stdio {
        stdin: fd::sealed_memfd("state", state)?,
        stdout: writer,
        stderr,
    });
    let request = ExecRequest {
        process: &process,
        io,
    };
    let exec = super::exec(token, within.init, within.joined, within.cgroup, request)?;
    let child = Child {
        pid: exec.pid,
        pidfd: exec.pidfd,
    };
    finish(hook, &child, &reader)
}

/// Waits for the end of a hook and judges it.
fn finish(hook: &HookPlan, child: &Child, reader: &OwnedFd) -> Result<(), HookFailure> {
    let limit = hook
        .timeout
        .map_or(LIMIT, |seconds| Duration::from_secs(u64::from(seconds)));
    let mut said = Vec::new();
    let watched = watch(child, reader, Instant::now() + limit, &mut said);
    if !matches!(watched, Ok(true)) {
        // It is its own group's leader and not reaped yet, so the number means it.
        let _ = group::kill(child.pid, 9);
        let _ = pidfd::send_signal(child.pidfd.as_fd(), 9);
    }
    let status = pidfd::wait(child.pidfd.as_fd())?;
    let said = String::from_utf8_lossy(&said).into_owned();
    if !watched? {
        let seconds = limit.as_secs();
        return Err(HookFailure::Late { seconds, said });
    }
    if status.code() != 0 {
        return Err(HookFailure::Ended { status, said });
    }
    if !said.is_empty() {
        // A reader that is gone wanted nothing.
        let _ = writeln!(std::io::stderr(), "hook {}: {}", hook.path, said.trim_end());
    }
    Ok(())
}

/// Reads what a hook prints until it ends; false if the deadline came first. What it left running
/// may hold its output open: that is not waited for.
fn watch(
    child: &Child,
    reader: &OwnedFd,
    deadline: Instant,
    said: &mut Vec<u8>,
) -> crisp_sys::Result<bool> {
    const END: u64 = 0;
    const OUTPUT: u64 = 1;
    fd::set_nonblocking(reader.as_fd(), true)?;
    let epoll = Epoll::new()?;
    epoll.add(child.pidfd.as_fd(), EPOLLIN, END)?;
    epoll.add(reader.as_fd(), EPOLLIN, OUTPUT)?;
    let mut events = [Event {
        token: 0,
        events: 0,
    }; 2];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let count = epoll.wait(&mut events, Some(left))?;
        let seen = &events[..count];
        if seen.iter().any(|event| event.token == OUTPUT) && take(reader, said)? {
            epoll.delete(reader.as_fd())?;
        }
        if seen.iter().any(|event| event.token == END) {
            while !take(reader, said)? {}
            return Ok(true);
        }
        if left.is_zero() {
            return Ok(false);
        }
    }
}

/// Takes a piece of the output; true if there is no more now or ever.
fn take(reader: &OwnedFd, said: &mut Vec<u8>) -> crisp_sys::Result<bool> {
    let mut chunk = [0; CHUNK];
    let count = match fd::read(reader.as_fd(), &mut chunk) {
        Err(error) if error.errno() == Errno::EAGAIN => return Ok(true),
        other => other?,
    };
    let room = KEPT.saturating_sub(said.len());
    said.extend_from_slice(&chunk[..count.min(room)]);
    Ok(count == 0)
}

/// The number of a process in the innermost PID namespace it is in.
fn inner_pid(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().next_back()?.parse().ok()
}

/// The state of the runtime specification, as JSON.
fn state(id: &str, bundle: &str, hooks: &HooksPlan, status: &str, pid: Option<i32>) -> Vec<u8> {
    let mut json = String::from("{");
    field(&mut json, "ociVersion", &hooks.oci_version);
    json.push(',');
    field(&mut json, "id", id);
    json.push(',');
    field(&mut json, "status", status);
    if let Some(pid) = pid {
        json.push_str(&format!(",\"pid\":{pid}"));
    }
    json.push(',');
    field(&mut json, "bundle", bundle);
    json.push_str(",\"annotations\":{");
    for (index, (key, value)) in hooks.annotations.iter().enumerate() {
        if index > 0 {
            json.push(',');
        }
        field(&mut json, key, value);
    }
    json.push_str("}}");
    json.into_bytes()
}

fn field(json: &mut String, key: &str, value: &str) {
    quoted(json, key);
    json.push(':');
    quoted(json, value);
}

fn quoted(json: &mut String, text: &str) {
    json.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                json.push('\\');
                json.push(character);
            }
            control if control < ' ' => {
                json.push_str(&format!("\\u{:04x}", u32::from(control)));
            }
            other => json.push(other),
        }
    }
    json.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_json_whatever_the_texts_hold() {
        let hooks = HooksPlan {
            oci_version: "1.2.0".into(),
            annotations: vec![
                ("a\"b\\c".into(), "line\nbell\u{7}ü".into()),
                ("empty".into(), String::new()),
            ],
            ..HooksPlan::default()
        };
        let bytes = state("id", "/run/\u{1}", &hooks, "creating", Some(7));
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            "{\"ociVersion\":\"1.2.0\",\"id\":\"id\",\"status\":\"creating\",\"pid\":7,\
             \"bundle\":\"/run/\\u0001\",\"annotations\":{\"a\\\"b\\\\c\":\
             \"line\\u000abell\\u0007ü\",\"empty\":\"\"}}"
        );
        let stopped = state("id", "/b", &HooksPlan::default(), "stopped", None);
        assert_eq!(
            String::from_utf8(stopped).unwrap(),
            "{\"ociVersion\":\"\",\"id\":\"id\",\"status\":\"stopped\",\"bundle\":\"/b\",\
             \"annotations\":{}}"
        );
    }

    #[test]
    fn a_process_knows_its_innermost_number() {
        let own = std::process::id().cast_signed();
        assert_eq!(inner_pid(own), Some(own));
        assert_eq!(inner_pid(-1), None);
    }
}
