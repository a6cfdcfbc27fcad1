//! The built-in low-level OCI runtime of crisp, in two halves: a *plan* is made from a runtime
//! specification without touching anything, and *apply* carries it out in the kernel.
#![forbid(unsafe_code)]

/// The kernel half: makes a container from a plan, and further processes in it.
pub mod apply;
/// Capabilities by name.
pub mod capability;
/// Control groups: v1, v2 and hybrid behind one interface.
pub mod cgroup;
/// What the host can do, probed once.
pub mod host;
/// A plan: everything that makes one container, as plain data.
pub mod plan;
/// Seccomp: profiles, and the compiler that turns one into a BPF program.
pub mod seccomp;
/// Reads a runtime specification into a plan; pure.
#[cfg(feature = "plan")]
pub mod spec;
/// Tag-length-value records, the wire format of plan and monitor protocol.
pub mod tlv;
/// Plans as bytes.
pub mod wire;
