//! Filters of system calls.

use oci_spec::runtime::LinuxSeccomp;

use super::{Result, invalid, refuse};
use crate::plan::SeccompPlan;
use crate::seccomp::{self, Profile};

const FIELD: &str = "linux.seccomp";

/// Compiles `linux.seccomp`.
pub(super) fn compile(source: &LinuxSeccomp) -> Result<SeccompPlan> {
    let listener = source
        .listener_path()
        .as_ref()
        .filter(|path| !path.as_os_str().is_empty());
    refuse("linux.seccomp.listenerPath", listener)?;
    let profile = Profile::from_oci(source).map_err(|error| invalid(FIELD, error))?;
    let program = seccomp::compile(&profile).map_err(|error| invalid(FIELD, error))?;
    Ok(SeccompPlan {
        program: program.bytes.to_vec(),
        flags: program.flags,
    })
}
