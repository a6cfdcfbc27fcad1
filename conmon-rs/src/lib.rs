//! What the daemon and a container's monitor say to each other, and what a monitor leaves on disk:
//! protocol, exit record and log.
//!
//! A monitor lives as long as its container and so outlives upgrades of the daemon. The protocol is
//! therefore additive: new fields come under new tags, unknown ones are skipped, an unknown request
//! gets a refusal that says so, and the frames of every release are decoded in the tests.
#![forbid(unsafe_code)]

pub mod exit;
pub mod log;
pub mod protocol;
