//! crisp: a Kubernetes container runtime daemon. This file is the table of contents.
//!
//! Sliced by noun (a directory each), inside a noun by verb (a file each). ARCHITECTURE.md tells the
//! life of a pod through these modules; the step names there are the span names here.
#![forbid(unsafe_code)]

pub mod clock;
pub mod config;
pub mod error;
pub mod id;
pub mod image;
pub mod names;
pub mod network;
pub mod observe;
pub mod process;
pub mod registry;
pub mod snapshot;
pub mod store;
