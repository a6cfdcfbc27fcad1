//! Requests, replies and events, and their frames.
//!
//! One frame is one packet of a `SOCK_SEQPACKET` socket, at most [`MAX_FRAME`] bytes, with at most
//! [`MAX_FDS`] descriptors beside it. What is larger travels in a sealed memfd as the first
//! descriptor.
//!
//! ```text
//! daemon                          monitor
//!   Create + [plan, state dir, plan's descriptors ...]  ->
//!                         <-  Created { pid, start_time } + [pidfd of init]
//!   Start                 ->
//!                         <-  Ok
//!   Exec + [stdin, stdout, stderr]  ->
//!                         <-  ExecStarted { exec, pid } (+ [console])
//!   Attach + [a pipe for each stream asked for]  ->
//!                         <-  Ok
//!                         <-  event ExecExited
//!                         <-  event Exited
//!   AckExit               ->
//! ```
//! The first connection is descriptor 0 of the monitor, which gets every event. Later ones come
//! through the socket [`SOCKET_NAME`] in the state directory; they get events once they said
//! [`Request::Hello`], whose answer holds everything that happened before.

use crate::exit::ExitRecord;

mod codec;
pub use codec::DecodeError;

/// Version of the protocol as a whole. It grows when something is added; nothing is ever taken away.
pub const PROTOCOL_VERSION: u32 = 2;
/// Largest frame, in bytes.
pub const MAX_FRAME: usize = 64 * 1024;
/// Most descriptors with one frame. The kernel's own limit (`SCM_MAX_FD`) is 253.
pub const MAX_FDS: usize = 250;
/// Largest payload in a memfd, in bytes: that of the codec itself.
pub const MAX_PAYLOAD: usize = crisp_oci::tlv::MAX_TOTAL;
/// Largest process description that an [`ExecRequest`] carries inside the frame, in bytes. Larger
/// ones go into a memfd.
pub const MAX_INLINE_PROCESS: usize = 48 * 1024;
/// Name of the control socket in the state directory.
pub const SOCKET_NAME: &str = "monitor.sock";
/// Name of the exit record in the state directory.
pub const EXIT_NAME: &str = "exit";
/// Content bytes of a log record after which a line is cut, unless the request says otherwise.
pub const DEFAULT_MAX_LOG_LINE: u32 = 16384;
/// How long a monitor whose container has ended waits without any connection before it ends, in
/// milliseconds, unless the request says otherwise.
pub const DEFAULT_LINGER_MS: u64 = 60_000;
/// The `stage` of [`Reply::Error`] for a request that this monitor does not know.
pub const STAGE_UNKNOWN: &str = "unknown request";
/// The `stage` of [`Reply::Error`] for a request in the wrong phase.
pub const STAGE_PHASE: &str = "phase";

/// One packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// From the daemon.
    Request {
        /// Chosen by the sender; the answer repeats it.
        seq: u64,
        /// What is asked.
        request: Request,
    },
    /// From the monitor: the answer to one request.
    Reply {
        /// The number of the request.
        seq: u64,
        /// The answer.
        reply: Reply,
    },
    /// From the monitor, unasked.
    Event(Event),
}

/// What the daemon asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Make the container. The first request of a monitor's life, on descriptor 0 only. Descriptors:
    /// the plan (memfd, `crisp_oci::wire`), the state directory, then those that the plan names.
    /// Answer: [`Reply::Created`], with init's pidfd.
    Create(CreateRequest),
    /// Who are you, and what happened so far? Answer: [`Reply::Snapshot`], with init's pidfd while
    /// init has not been reaped. The connection gets events from here on.
    Hello {
        /// The daemon's [`PROTOCOL_VERSION`].
        version: u32,
    },
    /// Let init execute its program. Answer: [`Reply::Ok`] once the program runs, or the error of
    /// the execution, after which an [`Event::Exited`] follows.
    Start,
    /// Send a signal to init.
    Signal {
        /// Number of the signal.
        signo: i32,
    },
    /// Kill every process of the container: init, its descendants and execs.
    KillAll,
    /// Open the log path anew. When [`Reply::Ok`] arrives nothing more is written to the old file
    /// and the new one exists. On an error the old file stays in use.
    ReopenLog,
    /// Run a further process in the container. Descriptors: the process description if it is not
    /// inline, then stdin, stdout and stderr unless a terminal is asked for. Answer:
    /// [`Reply::ExecStarted`], with the terminal's master if one was asked for.
    Exec(ExecRequest),
    /// Send a signal to an exec.
    ExecSignal {
        /// Number of the exec, from [`Reply::ExecStarted`].
        exec: u64,
        /// Number of the signal.
        signo: i32,
        /// To its whole process group, and with SIGKILL to its session and descendants too.
        group: bool,
    },
    /// Set the size of the container's terminal. The terminal of an exec is in the hands of who asked
    /// for it, so that it hangs up when that one lets go; its size is set there, and refused here.
    Resize {
        /// Number of the exec, 0 for init.
        exec: u64,
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Close the container's stdin, which the monitor holds open.
    CloseStdin,
    /// The daemon has seen the exit: the monitor may end.
    AckExit,
    /// Undo everything: kill all processes, remove the cgroup, end. [`Reply::Ok`] comes last.
    Quit,
    /// Connect a client to the container's streams. Descriptors: an end of a pipe for each stream
    /// asked for, in the order of [`AttachRequest`]: the read end for stdin, write ends for output.
    ///
    /// The client gets what is printed from now on, until the container has ended; then its pipes
    /// are closed. The container does not wait for it: one that does not keep up is dropped, which
    /// closes its pipes and is told by [`Event::AttachDropped`]. Since version 2.
    Attach(AttachRequest),
}

/// The fields of [`Request::Attach`]: the streams the client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttachRequest {
    /// Its input goes to the container. The end of it closes the container's stdin only if that was
    /// made with `stdin_once` and is no terminal.
    pub stdin: bool,
    /// Standard output, or everything a terminal shows.
    pub stdout: bool,
    /// Standard error; a terminal has none.
    pub stderr: bool,
}

/// The fields of [`Request::Create`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateRequest {
    /// The container's id.
    pub id: String,
    /// Absolute path of the log; none: output is discarded.
    pub log_path: Option<String>,
    /// Content bytes after which a line is cut; 0 means [`DEFAULT_MAX_LOG_LINE`].
    pub max_log_line: u32,
    /// The container gets a terminal.
    pub terminal: bool,
    /// The container gets a stdin that is held open; otherwise it reads nothing.
    pub stdin: bool,
    /// The end of the first attached client's input closes stdin.
    pub stdin_once: bool,
    /// How long to wait without a connection after the container ended, in milliseconds.
    pub linger_ms: u64,
}

impl Default for CreateRequest {
    fn default() -> CreateRequest {
        CreateRequest {
            id: String::new(),
            log_path: None,
            max_log_line: DEFAULT_MAX_LOG_LINE,
            terminal: false,
            stdin: false,
            stdin_once: false,
            linger_ms: DEFAULT_LINGER_MS,
        }
    }
}

/// The fields of [`Request::Exec`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// The process as `crisp_oci::wire` encodes it (its `terminal` says whether one is wanted), or
    /// none if it travels in a memfd as the first descriptor. See [`ExecRequest::inline_or_memfd`].
    pub process: Option<Vec<u8>>,
    /// The process gets a terminal of the container; no stdio descriptors come along.
    pub terminal: bool,
}

impl ExecRequest {
    /// A request for `process`, and the bytes that must travel in a memfd, if they are too many for
    /// the frame.
    pub fn inline_or_memfd(process: Vec<u8>, terminal: bool) -> (ExecRequest, Option<Vec<u8>>) {
        if process.len() <= MAX_INLINE_PROCESS {
            (
                ExecRequest {
                    process: Some(process),
                    terminal,
                },
                None,
            )
        } else {
            (
                ExecRequest {
                    process: None,
                    terminal,
                },
                Some(process),
            )
        }
    }
}

/// What the monitor answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Done.
    Ok,
    /// The container is made and waits for [`Request::Start`].
    Created {
        /// Process id of init, as the monitor sees it.
        pid: i32,
        /// Start time of init: field 22 of `/proc/<pid>/stat`, in clock ticks since boot.
        start_time: u64,
    },
    /// Everything there is to know.
    Snapshot(Snapshot),
    /// The process runs its program.
    ExecStarted {
        /// Number of the exec: never 0, never used twice by one monitor.
        exec: u64,
        /// Its process id, as the monitor sees it.
        pid: i32,
    },
    /// Not done.
    Error {
        /// The step that failed.
        stage: String,
        /// The system's error number, 0 if there is none.
        errno: i32,
        /// What went wrong, for a reader.
        message: String,
    },
}

/// What the monitor says unasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The container has ended: its output is in the log, its exit record on disk.
    Exited(ExitRecord),
    /// The kernel killed processes of the container because memory ran out.
    Oom {
        /// How many so far.
        count: u64,
    },
    /// An exec has ended.
    ExecExited {
        /// Number of the exec.
        exec: u64,
        /// 0 to 255; 128 + n for signal n.
        code: i32,
        /// The signal that ended it, or 0.
        signal: i32,
        /// When, in nanoseconds since the epoch.
        at_ns: u64,
    },
    /// The log cannot be written, or can again.
    LogTrouble {
        /// Bytes of log records dropped so far.
        lost_bytes: u64,
        /// The error of the last write; 0 once writing works again.
        errno: i32,
    },
    /// Attached clients that did not read what the container printed were dropped.
    AttachDropped {
        /// How many so far.
        count: u64,
    },
}

/// Where a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It is being made.
    Creating,
    /// It waits for the start.
    Created,
    /// Its program was executed.
    Running,
    /// Init was reaped, output is in the log, the record is on disk.
    Exited,
}

/// What has become of the container's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogCounters {
    /// Bytes of log records written.
    pub written_bytes: u64,
    /// Bytes of log records that could not be written and were dropped.
    pub lost_bytes: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// The error of the last write, 0 if it worked.
    pub errno: i32,
}

/// The answer to [`Request::Hello`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The monitor's [`PROTOCOL_VERSION`].
    pub version: u32,
    /// The container's id.
    pub id: String,
    /// Where the container stands.
    pub phase: Phase,
    /// Process id of init, 0 before there is one.
    pub pid: i32,
    /// Start time of init, in clock ticks since boot.
    pub start_time: u64,
    /// When the program was executed, in nanoseconds since the epoch; 0 before.
    pub started_at_ns: u64,
    /// How it ended, once phase is [`Phase::Exited`].
    pub exit: Option<ExitRecord>,
    /// The execs that run.
    pub execs: Vec<u64>,
    /// What has become of the output.
    pub log: LogCounters,
    /// Processes of the container that the kernel killed for lack of memory.
    pub oom_count: u64,
    /// Process id of the monitor itself.
    pub monitor_pid: i32,
    /// Attached clients that were dropped because they did not read.
    pub dropped_clients: u64,
}
