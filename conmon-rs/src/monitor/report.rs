//! Messages for a reader, on the daemon's log.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::Duration;

/// Pipes take this much at once without blocking if they say that they are writable (`PIPE_BUF`).
const MOST: usize = 4096;

/// Writes one line to descriptor 2, if that does not block: nobody may be reading any more, and a
/// container must not wait for that.
pub fn say(message: &str) {
    let stderr = std::io::stderr();
    let writable = crisp_sys::event::poll(stderr.as_fd(), libc::POLLOUT, Some(Duration::ZERO));
    if !matches!(writable, Ok(true)) {
        return;
    }
    let mut line: Vec<u8> = message.bytes().take(MOST - 1).collect();
    line.push(b'\n');
    // Where there is no log there is nobody to tell.
    let _ = stderr.lock().write_all(&line);
}

/// Says on standard output which monitor this is.
pub fn say_version() {
    let version = env!("CARGO_PKG_VERSION");
    let protocol = conmon_rs::protocol::PROTOCOL_VERSION;
    // A reader that is gone wanted nothing.
    let _ = writeln!(
        std::io::stdout(),
        "conmon-rs {version} (protocol {protocol})"
    );
}

/// An error with all its sources, `a: b: c`.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
