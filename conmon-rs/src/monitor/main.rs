//! The monitor of one container: parent of its init, owner of its log, its exec server, and the
//! one who knows how it ended. One thread, no async runtime, asleep unless something happens.
//!
//! ```text
//! conmon-rs --version
//! conmon-rs <container id>     descriptor 0: control socket (SOCK_SEQPACKET), 2: the daemon's log
//! ```
//! It lives until the container has ended and the daemon has seen it. SIGTERM and the like do
//! nothing: whoever stops a container asks the daemon.
#![forbid(unsafe_code)]

mod attach;
mod container;
mod create;
mod event_loop;
mod exec;
mod exit;
mod oom;
mod reap;
mod report;
mod requests;
mod serve;
mod setup;
mod start;
mod stdio;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == "--version")
    {
        report::say_version();
        return ExitCode::SUCCESS;
    }
    let start = match setup::prepare() {
        Ok(start) => start,
        Err(error) => {
            report::say(&format!("conmon-rs: {error}"));
            return ExitCode::from(2);
        }
    };
    match event_loop::Monitor::new(start).and_then(|mut monitor| monitor.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::say(&format!("conmon-rs: {error}"));
            ExitCode::FAILURE
        }
    }
}
