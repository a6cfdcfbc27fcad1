//! The daemon from outside, as far as that needs no root.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    reason = "a test panics when something is missing"
)]

mod proto;
