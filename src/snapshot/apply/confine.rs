//! What the child gives up before it reads the first byte of the archive.

use std::{io, os::fd::BorrowedFd};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{Failure, Limits};

/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, MKNOD, SETFCAP. Not SYS_ADMIN: the one attribute that
/// would need it (`trusted.overlay.opaque`) is set by the daemon from the report.
const CAPABILITIES: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 27 | 1 << 31;
/// Address space: the largest zstd window taken (128 MiB), stacks, and room for the lists.
const MEMORY: u64 = 3 << 30;
const DESCRIPTORS: u64 = 64;

/// Confines the calling process, which has one thread. Returns whether Landlock took part.
pub fn confine(root: BorrowedFd<'_>, limits: &Limits) -> Result<bool, Failure> {
    let failed = |what: &str, error: io::Error| Failure::system(what, &error);
    for (resource, limit) in [
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_AS, MEMORY),
        (Resource::RLIMIT_NOFILE, DESCRIPTORS),
        (Resource::RLIMIT_FSIZE, limits.max_bytes),
        (Resource::RLIMIT_CPU, limits.max_seconds.saturating_add(1)),
    ] {
        let lowered = getrlimit(resource)
            .and_then(|(_, hard)| setrlimit(resource, limit.min(hard), limit.min(hard)));
        lowered.map_err(|errno| failed("resource limits", errno.into()))?;
    }
    crisp_sys::landlock::no_new_privileges().map_err(|error| failed("no-new-privileges", error))?;
    let landlock =
        crisp_sys::landlock::restrict_to(root).map_err(|error| failed("landlock", error))?;
    crisp_sys::landlock::keep_capabilities(CAPABILITIES)
        .map_err(|error| failed("capabilities", error))?;
    Ok(landlock)
}
