//! Landlock and capability dropping: how a helper process gives up what it does not need.
//!
//! Both act on the calling thread and on threads it makes later, so they are called first thing in
//! a process, before it has others.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

const FS_EXECUTE: u64 = 1;
/// WRITE_FILE up to MAKE_SYM: everything of the first version but execution.
const FS_V1: u64 = 0x1ffe;
const FS_REFER: u64 = 1 << 13;
const FS_TRUNCATE: u64 = 1 << 14;
const FS_IOCTL_DEV: u64 = 1 << 15;
const NET_BIND_CONNECT: u64 = 3;
const SCOPE_ABSTRACT_UNIX_AND_SIGNAL: u64 = 3;

#[repr(C)]
struct RulesetAttr {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

#[repr(C, packed)]
struct PathBeneathAttr {
    allowed_access: u64,
    parent_fd: i32,
}

/// The version of Landlock this kernel has, 0 if none.
#[must_use]
pub fn version() -> u32 {
    const CREATE_RULESET_VERSION: libc::c_ulong = 1;
    // SAFETY: with the version flag the attribute pointer must be null and the size zero.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<RulesetAttr>(),
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).unwrap_or(0)
}

/// Restricts the calling thread to the tree below `dir`: nothing else can be opened, made, linked
/// or removed, nothing can be executed, and (where the kernel knows it) no TCP port be used, no
/// signal sent outwards. Returns false, changing nothing, if the kernel cannot do it without
/// breaking links between directories (before version 2).
///
/// # Errors
/// Those of the calls. The thread must have no-new-privileges set.
pub fn restrict_to(dir: BorrowedFd<'_>) -> io::Result<bool> {
    let version = version();
    if version < 2 {
        return Ok(false);
    }
    let mut allowed = FS_V1 | FS_REFER;
    if version >= 3 {
        allowed |= FS_TRUNCATE;
    }
    let mut handled = allowed | FS_EXECUTE;
    if version >= 5 {
        handled |= FS_IOCTL_DEV;
    }
    let attr = RulesetAttr {
        handled_access_fs: handled,
        handled_access_net: if version >= 4 { NET_BIND_CONNECT } else { 0 },
        scoped: if version >= 6 {
            SCOPE_ABSTRACT_UNIX_AND_SIGNAL
        } else {
            0
        },
    };
    let size: usize = match version {
        0..=3 => 8,
        4..=5 => 16,
        _ => 24,
    };
    // SAFETY: `attr` lives through the call and `size` is at most its size; the kernel reads only.
    let ruleset = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const attr,
            size,
            0 as libc::c_ulong,
        )
    };
    let ruleset = match i32::try_from(ruleset) {
        // SAFETY: the kernel just returned this descriptor to us; nobody else owns it.
        Ok(fd) if fd >= 0 => unsafe { OwnedFd::from_raw_fd(fd) },
        _ => return Err(io::Error::last_os_error()),
    };
    let rule = PathBeneathAttr {
        allowed_access: allowed,
        parent_fd: dir.as_raw_fd(),
    };
    const RULE_PATH_BENEATH: libc::c_ulong = 1;
    // SAFETY: `rule` has the packed layout of struct landlock_path_beneath_attr and lives through
    // the call; both descriptors are open.
    let added = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            RULE_PATH_BENEATH,
            &raw const rule,
            0 as libc::c_ulong,
        )
    };
    if added != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: plain integers.
    let restricted = unsafe {
        libc::syscall(
            libc::SYS_landlock_restrict_self,
            ruleset.as_raw_fd(),
            0 as libc::c_ulong,
        )
    };
    if restricted != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(true)
}

/// Sets no-new-privileges for the calling thread.
///
/// # Errors
/// Those of prctl(2).
pub fn no_new_privileges() -> io::Result<()> {
    // SAFETY: plain integers; unused arguments must be zero.
    let done = unsafe {
        libc::prctl(
            libc::PR_SET_NO_NEW_PRIVS,
            1 as libc::c_ulong,
            0 as libc::c_ulong,
            0 as libc::c_ulong,
            0 as libc::c_ulong,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Limits the calling thread to the capabilities of `mask` (bit = number of the capability) that
/// it already has; bounding, inheritable and ambient sets are emptied.
///
/// # Errors
/// Those of the calls.
pub fn keep_capabilities(mask: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Default, Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    for capability in 0_u32..64 {
        // SAFETY: plain integers. EINVAL tells the end of the kernel's list, EPERM that the
        // bounding set is not ours to change; the permitted set below is what counts.
        unsafe {
            libc::prctl(
                libc::PR_CAPBSET_DROP,
                libc::c_ulong::from(capability),
                0 as libc::c_ulong,
                0 as libc::c_ulong,
                0 as libc::c_ulong,
            );
        }
    }
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 reads one header and writes two data records, which both live here.
    if unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let words = [(mask & 0xffff_ffff) as u32, (mask >> 32) as u32];
    for (record, word) in data.iter_mut().zip(words) {
        record.permitted &= word;
        record.effective = record.permitted;
        record.inheritable = 0;
    }
    // SAFETY: as above; the kernel only reads.
    if unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsFd, thread};

    use super::*;

    #[test]
    fn a_restricted_thread_writes_only_below() {
        if version() < 2 {
            return; // nothing to restrict with: restrict_to says so by returning false
        }
        let inside = tempfile::tempdir().expect("temporary directory");
        let outside = tempfile::tempdir().expect("temporary directory");
        let (below, beside) = (inside.path().join("a"), outside.path().join("b"));
        thread::spawn(move || {
            let dir = fs::File::open(below.parent().expect("parent")).expect("open");
            no_new_privileges().expect("no new privileges");
            assert!(restrict_to(dir.as_fd()).expect("restrict"));
            fs::write(&below, "x").expect("below is allowed");
            let refused = fs::write(&beside, "x").expect_err("beside is not");
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
            assert!(fs::read("/etc/passwd").is_err());
        })
        .join()
        .expect("thread");
    }

    #[test]
    fn dropped_capabilities_are_gone() {
        thread::spawn(|| {
            keep_capabilities(1 << 0).expect("keep CHOWN only");
            let status = fs::read_to_string("/proc/thread-self/status").expect("status");
            let effective = status
                .lines()
                .find_map(|line| line.strip_prefix("CapEff:"))
                .and_then(|text| u64::from_str_radix(text.trim(), 16).ok())
                .expect("CapEff");
            assert_eq!(effective & !1, 0);
        })
        .join()
        .expect("thread");
    }
}
