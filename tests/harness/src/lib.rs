//! What the test rings share. Table of contents:
#![forbid(unsafe_code)]

pub mod audit;
pub mod cgroup;
pub mod cri;
pub mod crictl;
pub mod critest;
pub mod daemon;
pub mod image;
pub mod kubelet;
pub mod peer;
pub mod pods;
pub mod process;
pub mod programs;
pub mod registry;
pub mod site;
pub mod suite;
pub mod tools;
