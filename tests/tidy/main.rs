//! Rules of the project that the compiler does not know. A rule that nothing checks is a wish.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    reason = "a test panics when something is missing"
)]

mod dependencies;
mod edges;
mod size;
mod source;
mod text;
