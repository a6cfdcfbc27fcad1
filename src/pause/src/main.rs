//! The pause: makes the namespaces of a pod, then holds them and does nothing else.
//!
//! A user namespace comes first and owns the others. Its maps are the daemon's to write; then the
//! pause is root in it, and of the host's only what it had opened before.
//!
//! It holds them in an empty root directory, as nobody, without capabilities and not dumpable: a
//! container that shares its PID namespace can see it but neither trace it nor look through its
//! `/proc` entry at the host. Every signal but SIGKILL is blocked; as PID 1 it reaps what is left to
//! it.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use crisp_pause::{MAPPED, MAX_FRAME, Reply, Request};
use crisp_sys::clone::{CloneArgs, InChild, SingleThreaded, clone3};
use crisp_sys::event::SignalFd;
use crisp_sys::{Error, cred, fd, link, mount, ns, pidfd, process, socket};

const NOBODY: u32 = 65534;
const SIGCHLD: i32 = 17;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_NEWPID: u64 = 0x2000_0000;
const CLONE_NEWNS: i32 = 0x2_0000;
const CLONE_NEWUSER: i32 = 0x1000_0000;
const CLONE_NEWUTS: i32 = 0x400_0000;
const CLONE_NEWIPC: i32 = 0x800_0000;
const CLONE_NEWNET: i32 = 0x4000_0000;

/// A step that failed.
struct Failure {
    stage: &'static str,
    error: Error,
}

type Step<T> = Result<T, Failure>;

fn main() -> ExitCode {
    let Ok(control) = fd::take_stdio(0) else {
        return ExitCode::from(64);
    };
    match serve(control.as_fd()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let reply = Reply::Failed {
                stage: failure.stage.to_owned(),
                message: failure.error.to_string(),
                errno: failure.error.raw_os_error(),
            };
            socket::send_with_fds(control.as_fd(), &reply.encode(), &[]).ok();
            ExitCode::FAILURE
        }
    }
}

fn serve(control: BorrowedFd<'_>) -> Step<()> {
    let at = |stage| move |error| Failure { stage, error };
    let token = SingleThreaded::check().map_err(at("start"))?;
    let request = receive(control)?;
    join_cgroup(&request.cgroup_files)?;
    settle_oom_score(request.oom_score_adj);
    // The last thing that only the host's root may do.
    let root = empty_root()?;
    if request.user {
        make_user_namespace(control)?;
    }
    let network = make_namespaces(&request)?;
    let signals = SignalFd::new(&every_signal()).map_err(at("signals"))?;
    process::set_name(c"pause").map_err(at("name"))?;
    enter(root).map_err(at("empty root"))?;
    if request.pid {
        return hold_in_child(&token, control, &signals, network.as_ref());
    }
    drop_identity().map_err(at("give up privileges"))?;
    let own = i32::try_from(std::process::id()).expect("pids fit an int");
    answer(control, own, network.as_ref())?;
    // What holds the namespaces is the process; what it was started with and what it opened goes.
    token.last_act(|inside| match inside.close_all_but(&[signals.as_fd()]) {
        Ok(()) => hold(&signals),
        Err(_) => 1,
    })
}

/// Makes PID 1 of a new PID namespace, a sibling of this process, and answers for it once it is as
/// harmless as it has to be.
fn hold_in_child(
    token: &SingleThreaded,
    control: BorrowedFd<'_>,
    signals: &SignalFd,
    network: Option<&OwnedFd>,
) -> Step<()> {
    let at = |stage| move |error| Failure { stage, error };
    let args = CloneArgs {
        flags: CLONE_PARENT | CLONE_NEWPID,
        cgroup: None,
    };
    let (settled, tell) = fd::pipe().map_err(at("pipe"))?;
    let child = clone3(token, &args, move |inside| {
        become_init(inside, signals, tell)
    });
    let child = child.map_err(at("clone into the PID namespace"))?;
    let answered = match fd::read(settled.as_fd(), &mut [0]) {
        Ok(1) => answer_for(control, child.pid, child.pidfd.as_fd(), network),
        Ok(_) => Err(at("give up privileges")(Error::new(
            "read",
            "PID 1 ended",
            crisp_sys::Errno::EPIPE,
        ))),
        Err(error) => Err(at("give up privileges")(error)),
    };
    if answered.is_err() {
        pidfd::send_signal(child.pidfd.as_fd(), 9).ok();
    }
    answered
}

fn receive(control: BorrowedFd<'_>) -> Step<Request> {
    // Large enough for the allocator to map it by itself and give it back whole: pages that are
    // touched here would otherwise stay dirty for the life of the pod.
    let mut buffer = vec![0; 4 * MAX_FRAME];
    let received = socket::recv_with_fds(control, &mut buffer[..MAX_FRAME], 0);
    let (length, _) = received.map_err(|error| Failure {
        stage: "receive",
        error,
    })?;
    Request::decode(&buffer[..length]).map_err(|_| Failure {
        stage: "receive",
        error: Error::new("decode", "request", crisp_sys::Errno::EBADMSG),
    })
}

fn join_cgroup(files: &[String]) -> Step<()> {
    for file in files {
        let written = File::options()
            .write(true)
            .open(file)
            .map_err(|error| Failure {
                stage: "join the cgroup",
                error: Error::new(
                    "open",
                    file.clone(),
                    crisp_sys::Errno(error.raw_os_error().unwrap_or(5)),
                ),
            })?;
        fd::write_all(written.as_fd(), b"0").map_err(|error| Failure {
            stage: "join the cgroup",
            error,
        })?;
    }
    Ok(())
}

/// Asks for the score; without CAP_SYS_RESOURCE the kernel refuses to go below what is inherited,
/// and the pause then is as likely a victim as the daemon.
fn settle_oom_score(score: i32) {
    std::fs::write("/proc/self/oom_score_adj", score.to_string()).ok();
}

/// Makes a user namespace, waits for its maps, and becomes root in it.
fn make_user_namespace(control: BorrowedFd<'_>) -> Step<()> {
    let at = |stage| move |error| Failure { stage, error };
    let made = match ns::unshare(CLONE_NEWUSER) {
        // None can be made from within a chroot; joining the mount namespace we are in leaves it.
        Err(error) if error.errno == crisp_sys::Errno::EPERM => {
            let own = i32::try_from(std::process::id()).expect("pids fit an int");
            pidfd::open(own)
                .and_then(|own| ns::setns(own.as_fd(), CLONE_NEWNS))
                .and_then(|()| ns::unshare(CLONE_NEWUSER))
        }
        made => made,
    };
    made.map_err(at("make the user namespace"))?;
    let mut answer = [0; 16];
    let mapped = socket::send_with_fds(control, &Reply::Unmapped.encode(), &[])
        .and_then(|_| fd::read(control, &mut answer))
        .map_err(at("wait for the maps"))?;
    if &answer[..mapped] != MAPPED {
        let error = Error::new("read", "no maps", crisp_sys::Errno::EPIPE);
        return Err(at("wait for the maps")(error));
    }
    let become_root = || {
        cred::setgroups(&[])?;
        cred::setresgid(0)?;
        cred::setresuid(0)
    };
    become_root().map_err(at("become root of the user namespace"))
}

/// Makes the namespaces and what belongs into them, and gives the network namespace back.
fn make_namespaces(request: &Request) -> Step<Option<OwnedFd>> {
    let at = |stage| move |error| Failure { stage, error };
    let mut kinds = 0;
    for (wanted, kind) in [
        (request.network, CLONE_NEWNET),
        (request.ipc, CLONE_NEWIPC),
        (request.uts, CLONE_NEWUTS),
    ] {
        if wanted {
            kinds |= kind;
        }
    }
    if kinds != 0 {
        ns::unshare(kinds).map_err(at("make the namespaces"))?;
    }
    if request.network {
        link::loopback_up().map_err(at("set the loopback interface up"))?;
    }
    if let (true, Some(name)) = (request.uts, &request.hostname) {
        ns::sethostname(name.as_bytes()).map_err(at("set the host name"))?;
    }
    for (key, value) in &request.sysctls {
        let path = format!("/proc/sys/{key}");
        if !request.may_set(key) {
            let error = Error::new("write", path, crisp_sys::Errno::EPERM);
            return Err(Failure {
                stage: "set a sysctl",
                error,
            });
        }
        std::fs::write(&path, value).map_err(|error| Failure {
            stage: "set a sysctl",
            error: Error::new(
                "write",
                path.clone(),
                crisp_sys::Errno(error.raw_os_error().unwrap_or(5)),
            ),
        })?;
    }
    if !request.network {
        return Ok(None);
    }
    let network = File::open("/proc/self/ns/net").map_err(|error| Failure {
        stage: "open the network namespace",
        error: Error::new(
            "open",
            "/proc/self/ns/net",
            crisp_sys::Errno(error.raw_os_error().unwrap_or(5)),
        ),
    })?;
    Ok(Some(network.into()))
}

fn every_signal() -> Vec<i32> {
    (1..=64)
        .filter(|signo| ![9, 19, 32, 33].contains(signo))
        .collect()
}

/// An empty directory that nothing can be put into, attached nowhere.
fn empty_root() -> Step<OwnedFd> {
    let make = || {
        let fs = mount::fsopen("tmpfs")?;
        mount::fsconfig_create(fs.as_fd())?;
        mount::fsmount(fs.as_fd(), mount::MOUNT_ATTR_RDONLY)
    };
    make().map_err(|error| Failure {
        stage: "empty root",
        error,
    })
}

/// Moves into a root. Descriptors stay.
fn enter(root: OwnedFd) -> crisp_sys::Result<()> {
    process::fchdir(root.as_fd())?;
    process::chroot(".")?;
    process::chdir("/")
}

fn drop_identity() -> crisp_sys::Result<()> {
    cred::set_no_new_privs()?;
    cred::limit_bounding(0)?;
    cred::setgroups(&[])?;
    become_nobody()?;
    cred::capset(&cred::Capabilities::default())?;
    cred::set_dumpable(false)
}

/// Nobody, or where a user namespace is too small to have one, who we are: root of that namespace,
/// soon without capabilities.
fn become_nobody() -> crisp_sys::Result<()> {
    let become_nobody = || {
        cred::setresgid(NOBODY)?;
        cred::setresuid(NOBODY)
    };
    match become_nobody() {
        Err(error) if error.errno == crisp_sys::Errno::EINVAL => Ok(()),
        done => done,
    }
}

fn answer(control: BorrowedFd<'_>, pid: i32, network: Option<&OwnedFd>) -> Step<()> {
    let at = |stage| move |error| Failure { stage, error };
    let own = pidfd::open(pid).map_err(at("open the pidfd"))?;
    answer_for(control, pid, own.as_fd(), network)
}

fn answer_for(
    control: BorrowedFd<'_>,
    pid: i32,
    holder: BorrowedFd<'_>,
    network: Option<&OwnedFd>,
) -> Step<()> {
    let mut descriptors = vec![holder];
    descriptors.extend(network.map(AsFd::as_fd));
    socket::send_with_fds(control, &Reply::Held { pid }.encode(), &descriptors)
        .map(|_| ())
        .map_err(|error| Failure {
            stage: "answer",
            error,
        })
}

fn become_init(inside: &InChild, signals: &SignalFd, tell: OwnedFd) -> i32 {
    // Without giving up its privileges PID 1 could be traced by what shares its namespace: better
    // no pod.
    let harmless = inside
        .close_all_but(&[signals.as_fd(), tell.as_fd()])
        .and_then(|()| drop_identity())
        .and_then(|()| fd::write_all(tell.as_fd(), b"1"));
    drop(tell);
    match harmless {
        Ok(()) => hold(signals),
        Err(_) => 1,
    }
}

/// Holds on until SIGKILL, reaping what is left to it.
fn hold(signals: &SignalFd) -> ! {
    loop {
        if crisp_sys::event::poll(signals.as_fd(), 1, None).is_err() {
            continue;
        }
        while let Ok(Some((signo, _))) = signals.read() {
            if signo == SIGCHLD {
                while let Ok(Some(_)) = pidfd::try_wait_any() {}
            }
        }
    }
}
