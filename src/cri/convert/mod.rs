//! Protobuf requests to validated specs, and domain state to protobuf answers.
//!
//! Everything a client sends is judged here, once; errors name the field by its protobuf path and say
//! what would be right. What is asked for is either in the spec or refused: nothing is dropped in
//! silence. The conversions are pure.

mod container;
pub mod exec;
mod field;
pub mod filter;
mod mounts;
pub mod render;
mod resources;
mod sandbox;
mod security;
pub mod stats;
pub mod stream;

#[cfg(test)]
mod tests;

pub use container::{container, fits_sandbox};
pub use field::{ConvertError, Field};
pub use resources::{resources, update, update_pod};
pub use sandbox::sandbox;

/// What this host has, as far as requests depend on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostSupport {
    /// Whether AppArmor is enabled in the kernel.
    pub apparmor: bool,
}
