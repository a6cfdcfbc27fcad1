//! Places where a test can stop the daemon: in the middle of one step, each time at the same place.
//!
//! Only builds with debug assertions have them; in a release build [`reach`] is empty and the
//! variable means nothing. `CRISP_TEST_FAILPOINT=NAME=kill` ends the daemon by SIGKILL where it reaches
//! `NAME` first; `NAME=hang` holds the thread that does, for ever.

use std::fmt;

/// The daemon is at the place `name`.
#[cfg(debug_assertions)]
pub fn reach(name: fmt::Arguments<'_>) {
    use std::sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    };

    static WANTED: OnceLock<Option<(String, String)>> = OnceLock::new();
    static REACHED: AtomicBool = AtomicBool::new(false);
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("CRISP_TEST_FAILPOINT").ok()?;
        let (name, action) = text.rsplit_once('=')?;
        Some((name.to_owned(), action.to_owned()))
    });
    let Some((wanted, action)) = wanted else {
        return;
    };
    if *wanted != name.to_string() || REACHED.swap(true, Ordering::SeqCst) {
        return;
    }
    tracing::warn!(name = wanted, action, "failpoint");
    if action == "kill" {
        nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::SIGKILL).ok();
    }
    loop {
        std::thread::park();
    }
}

/// Nothing in a build without debug assertions.
#[cfg(not(debug_assertions))]
pub fn reach(_: fmt::Arguments<'_>) {}
