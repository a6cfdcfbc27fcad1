//! What the monitor does to itself before it does anything for a container.

use crisp_sys::clone::SingleThreaded;
use crisp_sys::event::SignalFd;
use crisp_sys::heap::{self, Tuning};
use crisp_sys::{Errno, fd, inherited, process};
use std::os::fd::OwnedFd;

/// Signals that would end or stop the monitor. They are blocked; only SIGCHLD means something.
const SIGNALS: [i32; 15] = [
    libc::SIGCHLD,
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGPIPE,
    libc::SIGALRM,
    libc::SIGXFSZ,
    libc::SIGXCPU,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGIO,
];

/// The kernel should rather kill anything else: with the monitor the container would go too.
const OOM_SCORE_ADJ: i32 = -999;
const OOM_FILE: &str = "/proc/self/oom_score_adj";
/// Buffers and plans take no memory while they are not in use.
const HEAP: Tuning = Tuning {
    mapped_from: 16 << 10,
    grow_by: 8 << 10,
    trim_from: 16 << 10,
    arenas: 1,
};

/// What the monitor starts with.
pub struct Start {
    /// Proof that cloning is safe.
    pub token: SingleThreaded,
    /// The daemon that started us.
    pub control: OwnedFd,
    /// Readable when a child ended.
    pub signals: SignalFd,
    /// The score of the daemon, which a container that asks for none should have.
    pub oom_score_adj: Option<i32>,
}

/// Closes what was inherited, leaves the parent's session and directory, becomes a subreaper,
/// blocks signals, lowers the OOM score if that is allowed.
pub fn prepare() -> crisp_sys::Result<Start> {
    let token = SingleThreaded::check()?;
    inherited::close_descriptors(&token)?;
    let control = fd::take_stdio(0)?;
    heap::tune(HEAP);
    match process::setsid() {
        // Already a leader: a shell with job control started us.
        Err(error) if error.errno() == Errno::EPERM => {}
        result => result?,
    }
    process::chdir("/")?;
    process::umask(0);
    process::set_subreaper(true)?;
    let signals = SignalFd::new(&SIGNALS)?;
    Ok(Start {
        token,
        control,
        signals,
        oom_score_adj: lower_oom_score(),
    })
}

/// Returns the score there was before.
fn lower_oom_score() -> Option<i32> {
    let before = std::fs::read_to_string(OOM_FILE)
        .ok()?
        .trim()
        .parse()
        .ok()?;
    // Below the floor it needs CAP_SYS_RESOURCE. Without, the monitor lives with what it has.
    let _ = std::fs::write(OOM_FILE, OOM_SCORE_ADJ.to_string());
    Some(before)
}
