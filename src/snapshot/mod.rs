//! Root file systems: layer directories and the detached overlay mounts made of them.
//!
//! - `apply`: a layer's archive becomes a directory, inside a confined child process
//! - `applier`: the daemon's side of that child
//! - `layers`: the store of finished layers
//! - `inherit`: metadata of directories that a layer implied but did not list
//! - `removal`: deleting hostile trees
//! - `overlay`: mounts

pub mod applier;
pub mod apply;
pub mod digest;
pub mod inherit;
pub mod layers;
pub mod overlay;
pub mod removal;
