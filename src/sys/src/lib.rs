//! Every raw system call and all `unsafe` of crisp.
//!
//! One module per kernel topic, functions named after the call. Descriptors go in as `BorrowedFd`
//! and come out as `OwnedFd`, always close-on-exec. Nothing here allocates when the call succeeds,
//! so all of it may be used in a child between clone and exec; a failed call describes itself in
//! [`Error`] like a line of strace.

pub mod arg;
pub mod bpf;
pub mod clone;
pub mod cred;
pub mod error;
pub mod event;
pub mod exe;
pub mod fd;
pub mod group;
pub mod heap;
pub mod inherited;
pub mod landlock;
pub mod link;
pub mod mount;
pub mod ns;
pub mod path;
pub mod pidfd;
pub mod process;
pub mod seccomp;
pub mod socket;
pub mod sync;
pub mod tty;
#[cfg(feature = "watched")]
pub mod watched;

pub use arg::Arg;
pub use error::{Errno, Error, Result};
