//! The monitor binary against the real kernel: containers of busybox, as root.

mod attach;
mod attacks;
mod control;
mod exec;
mod fixture;
mod hostile;
mod joining;
mod lifecycle;
mod logs;
mod memory;
#[path = "../oci/ordinary.rs"]
mod ordinary;
