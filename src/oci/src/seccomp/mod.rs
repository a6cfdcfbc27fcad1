//! Seccomp profiles and their compiler.
//!
//! A [`Profile`] says what happens to each system call; [`compile`] turns it into a [`Program`] the
//! kernel takes. Both are pure. Profiles come from the built-in table ([`default_profile`]) or,
//! with feature `plan`, from JSON ([`Profile::from_json`]) and from a runtime specification.

mod assemble;
mod compile;
mod default;
#[cfg(feature = "plan")]
mod json;
#[cfg(feature = "plan")]
mod oci;
mod profile;
mod syscalls;

#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use compile::{CompileError, compile};
pub use default::default_profile;
#[cfg(feature = "plan")]
pub use json::{Circumstances, ProfileError};
pub use profile::{Action, Arch, Arg, Flag, Op, Profile, Rule};

/// A loadable filter. Cloning shares the instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// An array of `struct sock_filter`, 8 bytes each, native byte order.
    pub bytes: Arc<[u8]>,
    /// Flags for `seccomp(SECCOMP_SET_MODE_FILTER)`.
    pub flags: u64,
}

impl Program {
    /// A key that stays the same across processes and releases (FNV-1a, 64 bits): to name cached
    /// programs by, not to tell apart what an attacker may choose.
    #[must_use]
    pub fn key(&self) -> u64 {
        let flags = self.flags.to_le_bytes();
        self.bytes
            .iter()
            .chain(&flags)
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            })
    }

    /// Number of instructions.
    #[must_use]
    pub fn instructions(&self) -> usize {
        self.bytes.len() / 8
    }
}
