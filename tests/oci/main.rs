//! The runtime core against the real kernel: each case makes containers from a static busybox and
//! checks one promise. Needs root and /bin/busybox.
//!
//! Every case runs in a process of its own with a single thread, because that is what making a
//! container takes, and so that a hanging or crashing case harms no other. The runner takes the
//! arguments `cargo test` users know: a filter, `--exact`, `--list`, `--nocapture`.
#![forbid(unsafe_code)]
#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used
)]
#![allow(clippy::exit, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod cases;
mod fixture;
mod ordinary;

use std::process::{Command, Stdio, exit};
use std::time::{Duration, Instant};

/// Lets a case prove that a container's init does not allocate before it is the program.
#[global_allocator]
static ALLOCATOR: crisp_sys::watched::Watched = crisp_sys::watched::Watched;

/// Longest a case may take before it is judged to hang.
const LIMIT: Duration = Duration::from_secs(60);

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, name] = args.as_slice()
        && flag == "--case"
    {
        let case = cases::ALL
            .iter()
            .find(|case| case.0 == name)
            .expect("a known case");
        (case.1)();
        return;
    }
    let flag = |name: &str| args.iter().any(|arg| arg == name);
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |name: &str| {
        filters.is_empty()
            || filters.iter().any(|filter| {
                if flag("--exact") {
                    name == *filter
                } else {
                    name.contains(filter.as_str())
                }
            })
    };
    let chosen: Vec<_> = cases::ALL.iter().filter(|case| wanted(case.0)).collect();
    if flag("--list") {
        if !flag("--ignored") {
            chosen.iter().for_each(|case| println!("{}: test", case.0));
        }
        return;
    }
    fixture::sweep();
    let failed: Vec<_> = chosen
        .iter()
        .filter(|case| !run(case.0, flag("--nocapture")))
        .map(|case| case.0)
        .collect();
    fixture::sweep();
    let passed = chosen.len() - failed.len();
    println!(
        "\ntest result: {passed} passed; {} failed {failed:?}",
        failed.len()
    );
    exit(i32::from(!failed.is_empty()));
}

fn run(name: &str, show: bool) -> bool {
    let started = Instant::now();
    let output = || {
        if show {
            Stdio::inherit()
        } else {
            Stdio::piped()
        }
    };
    let mut child = Command::new(std::env::current_exe().expect("own path"))
        .args(["--case", name])
        .stdin(Stdio::null())
        .stdout(output())
        .stderr(output())
        .spawn()
        .expect("spawn");
    let watch = crisp_sys::pidfd::open(child.id().cast_signed()).expect("pidfd");
    let in_time =
        crisp_sys::event::poll(std::os::fd::AsFd::as_fd(&watch), 1, Some(LIMIT)).expect("poll");
    if !in_time {
        child.kill().expect("kill");
    }
    let done = child.wait_with_output().expect("wait");
    let ok = in_time && done.status.success();
    let word = if ok { "ok" } else { "FAILED" };
    println!(
        "test {name} ... {word} ({} ms)",
        started.elapsed().as_millis()
    );
    if !ok {
        let text = [done.stdout, done.stderr].concat();
        println!(
            "---- {name} ({}) ----\n{}",
            done.status,
            String::from_utf8_lossy(&text)
        );
    }
    ok
}
