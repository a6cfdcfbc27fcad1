//! crisp: a Kubernetes container runtime daemon. This file is the table of contents.
//!
//! Sliced by noun (a directory each), inside a noun by verb (a file each). ARCHITECTURE.md tells the
//! life of a pod through these modules; the step names there are the span names here.
#![forbid(unsafe_code)]

pub mod apparmor;
pub mod blockio;
pub mod boot;
pub mod bundle;
pub mod cdi;
pub mod cli;
pub mod clock;
pub mod config;
pub mod container;
pub mod cri;
pub mod daemon;
pub mod error;
pub mod events;
pub mod failpoint;
pub mod handler;
pub mod id;
pub mod image;
pub mod lockfile;
pub mod monitor;
pub mod names;
pub mod network;
pub mod node;
pub mod observe;
pub mod process;
pub mod registry;
pub mod sandbox;
pub mod seccomp;
pub mod snapshot;
pub mod stats;
pub mod store;
pub mod stream;
pub mod undo;
pub mod userns;
pub mod watch;
pub mod yaml;
