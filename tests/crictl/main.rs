//! One test per crictl command that operators use, and per PID mode of a pod, against a real socket.
//!
//! `CRISP_TEST_RUNTIME` runs the same against a rival: what it fails there tells what crictl users
//! are used to, and that the test can fail.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot read its answer has failed"
)]

mod bundle;
mod commands;
mod images;
mod pid_modes;
mod streams;
mod usage;
