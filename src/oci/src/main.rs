//! Thin OCI command line over the library: to see what a bundle becomes, and to run one without
//! a daemon. The daemon and the monitor use the library and never this program.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crisp_oci::apply::{
    self, CreateError, Created, HookError, Hooks, IoPlan, JoinedNamespaces, StartError, StartGate,
    Stdio, Within,
};
use crisp_oci::cgroup::CgroupError;
use crisp_oci::host::{HostError, HostFacts};
use crisp_oci::plan::Plan;
use crisp_oci::spec::{self, PlanError, SpecInput};
use crisp_sys::clone::SingleThreaded;
use crisp_sys::event::{EPOLLIN, Epoll, Event, SignalFd};
use crisp_sys::{fd, pidfd};
use oci_spec::OciSpecError;
use oci_spec::runtime::Spec;

const USAGE: &str = "usage: crisp-oci features
       crisp-oci plan [--bundle DIR]
       crisp-oci run [--bundle DIR] ID";

/// Signals that are passed on to the container: HUP INT QUIT USR1 USR2 TERM WINCH.
const FORWARDED: [i32; 7] = [1, 2, 3, 10, 12, 15, 28];

/// What can go wrong here.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{USAGE}")]
    Usage,
    #[error("cannot find the bundle {path}")]
    Bundle {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot read {path}")]
    Config {
        path: PathBuf,
        #[source]
        source: OciSpecError,
    },
    #[error("cannot judge the host")]
    Host(#[from] HostError),
    #[error("config.json cannot be served")]
    Plan(#[from] PlanError),
    #[error("cannot create the container")]
    Create(#[from] CreateError),
    #[error("cannot start the container")]
    Start(#[from] StartError),
    #[error("cannot start the container")]
    Hook(#[from] HookError),
    #[error("cannot remove the container's cgroup")]
    Remove(#[from] CgroupError),
    #[error("terminals are not supported by run")]
    Terminal,
    #[error("the machine does not cooperate")]
    Sys(#[from] crisp_sys::Error),
}

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1).collect()) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let mut text = format!("crisp-oci: {failure}");
            let mut source = std::error::Error::source(&failure);
            while let Some(error) = source {
                // Writing to a string cannot fail.
                let _ = write!(text, ": {error}");
                source = error.source();
            }
            let _ = writeln!(std::io::stderr(), "{text}");
            match failure {
                Failure::Start(error) => {
                    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1))
                }
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(args: Vec<OsString>) -> Result<u8, Failure> {
    let mut args = args.into_iter();
    let verb = args.next().ok_or(Failure::Usage)?;
    let mut bundle = PathBuf::from(".");
    let mut rest = Vec::new();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--bundle" | "-b") => bundle = args.next().ok_or(Failure::Usage)?.into(),
            Some(flag) if flag.starts_with('-') => return Err(Failure::Usage),
            _ => rest.push(arg.into_string().map_err(|_| Failure::Usage)?),
        }
    }
    match (verb.to_str(), rest.as_slice()) {
        (Some("features"), []) => {
            print(FEATURES);
            Ok(0)
        }
        (Some("plan"), []) => {
            let plan = plan(&bundle, "plan")?;
            print(&explain(&plan));
            Ok(0)
        }
        (Some("run"), [id]) => run_container(&plan(&bundle, id)?),
        _ => Err(Failure::Usage),
    }
}

fn print(text: &str) {
    // A reader that has seen enough is no error.
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn plan(bundle: &Path, id: &str) -> Result<Plan, Failure> {
    let bundle = bundle.canonicalize().map_err(|source| Failure::Bundle {
        path: bundle.to_path_buf(),
        source,
    })?;
    let path = bundle.join("config.json");
    let spec = Spec::load(&path).map_err(|source| Failure::Config { path, source })?;
    let host = HostFacts::probe()?;
    let input = SpecInput {
        spec: &spec,
        id,
        bundle: &bundle.to_string_lossy(),
        host: &host,
        rootfs: None,
        joins: &[],
        idmaps: &[],
        seccomp: None,
        detached: &[],
    };
    Ok(spec::plan(&input)?)
}

/// The plan for humans: one line per thing done.
fn explain(plan: &Plan) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let mut line = |name: &str, value: &dyn std::fmt::Debug| {
        let _ = writeln!(text, "{name} {value:?}");
    };
    line("cgroup", &plan.cgroup);
    plan.namespaces
        .iter()
        .for_each(|entry| line("namespace", entry));
    line("rootfs", &plan.rootfs);
    line("hostname", &plan.hostname);
    plan.sysctls.iter().for_each(|entry| line("sysctl", entry));
    plan.steps.iter().for_each(|step| line("step", step));
    line("readonly", &plan.rootfs_readonly);
    line("hooks", &plan.hooks);
    let mut process = plan.process.clone();
    let instructions = process
        .seccomp
        .as_mut()
        .map(|filter| std::mem::take(&mut filter.program).len() / crisp_sys::seccomp::INSTRUCTION);
    for arg in &process.args {
        line("arg", &String::from_utf8_lossy(arg));
    }
    (process.args, process.env) = (Vec::new(), Vec::new());
    line("process", &process);
    line("seccomp instructions", &instructions);
    text.truncate(text.trim_end().len());
    text
}

fn run_container(plan: &Plan) -> Result<u8, Failure> {
    if plan.process.terminal {
        return Err(Failure::Terminal);
    }
    let token = SingleThreaded::check()?;
    let signals = SignalFd::new(&FORWARDED)?;
    let stream = |number: i32| -> Result<OwnedFd, Failure> { Ok(fd::take_stdio(number)?) };
    // Ours stay for messages of our own.
    let stderr = fd::dup(std::io::stderr().as_fd())?;
    let io = IoPlan::Stdio(Stdio {
        stdin: stream(0)?,
        stdout: stream(1)?,
        stderr,
    });
    let Created {
        pid,
        pidfd,
        gate,
        cgroup,
        hooks,
        ..
    } = apply::create(&token, plan, &[], io)?;
    let joined = JoinedNamespaces::of(plan);
    let within = Within {
        init: pidfd.as_fd(),
        pid,
        joined: &joined,
        cgroup: &cgroup,
    };
    let started = start(&token, gate, hooks.as_deref(), within);
    if started.is_err() {
        // On its way out already, unless a hook forbade the start.
        let _ = pidfd::send_signal(pidfd.as_fd(), 9);
    }
    let status = wait(&pidfd, &signals)?;
    cgroup.kill()?;
    cgroup.remove()?;
    for failed in hooks.iter().flat_map(|hooks| hooks.after_stop(&token)) {
        let _ = writeln!(std::io::stderr(), "crisp-oci: {failed}");
    }
    started?;
    Ok(u8::try_from(status.code()).unwrap_or(u8::MAX))
}

/// Opens the gate, with the hooks before and after it.
fn start(
    token: &SingleThreaded,
    gate: StartGate,
    hooks: Option<&Hooks>,
    within: Within<'_>,
) -> Result<(), Failure> {
    let Some(hooks) = hooks else {
        return Ok(gate.open()?);
    };
    hooks.before_start(token, within)?;
    gate.open()?;
    Ok(hooks.after_start(token, within.pid)?)
}

/// Passes signals on until the container has ended.
fn wait(init: &OwnedFd, signals: &SignalFd) -> Result<pidfd::WaitStatus, Failure> {
    const INIT: u64 = 0;
    const SIGNALS: u64 = 1;
    let epoll = Epoll::new()?;
    epoll.add(init.as_fd(), EPOLLIN, INIT)?;
    epoll.add(signals.as_fd(), EPOLLIN, SIGNALS)?;
    let mut events = [Event {
        token: 0,
        events: 0,
    }; 2];
    loop {
        let count = epoll.wait(&mut events, None)?;
        for event in &events[..count] {
            if event.token == INIT {
                return Ok(pidfd::wait(init.as_fd())?);
            }
            while let Some((signo, _)) = signals.read()? {
                // It may have ended in between, which the loop will see.
                let _ = pidfd::send_signal(init.as_fd(), signo);
            }
        }
    }
}

/// As the runtime specification's features.md has it.
const FEATURES: &str = r#"{
  "ociVersionMin": "1.0.0",
  "ociVersionMax": "1.3.0",
  "hooks": [
    "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"
  ],
  "mountOptions": [
    "async", "atime", "bind", "defaults", "dev", "diratime", "exec", "loud", "noatime", "nodev",
    "nodiratime", "noexec", "nomand", "norelatime", "nostrictatime", "nosuid", "nosymfollow",
    "private", "ratime", "rbind", "rdev", "rdiratime", "relatime", "rexec", "rnoatime", "rnodev",
    "rnodiratime", "rnoexec", "rnosuid", "rnosymfollow", "ro", "rprivate", "rrelatime", "rro",
    "rrw", "rshared", "rslave", "rstrictatime", "rsuid", "rsymfollow", "runbindable", "rw",
    "shared", "slave", "strictatime", "suid", "symfollow", "unbindable"
  ],
  "linux": {
    "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
    "cgroup": {"v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": false},
    "seccomp": {
      "enabled": true,
      "actions": [
        "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"
      ],
      "operators": [
        "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
        "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"
      ],
      "archs": ["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"]
    },
    "apparmor": {"enabled": true},
    "selinux": {"enabled": true},
    "intelRdt": {"enabled": true},
    "mountExtensions": {"idmap": {"enabled": false}}
  }
}"#;
