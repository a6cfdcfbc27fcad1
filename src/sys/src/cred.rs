//! Users, groups, capabilities and what prctl(2) knows of them, for this thread alone: raw system
//! calls, because the C library's wrappers would synchronise all threads.

use libc::{c_int, c_long, c_ulong};

use crate::error::{Errno, Error, Result, check};

/// [`setresuid(2)`](https://man7.org/linux/man-pages/man2/setresuid.2.html), all three ids.
///
/// # Errors
/// Those of the call.
pub fn setresuid(uid: u32) -> Result<()> {
    let id = c_long::from(uid);
    // SAFETY: plain integers.
    let value = unsafe { libc::syscall(libc::SYS_setresuid, id, id, id) };
    check("setresuid", value, || uid.to_string()).map(drop)
}

/// [`setresgid(2)`](https://man7.org/linux/man-pages/man2/setresgid.2.html), all three ids.
///
/// # Errors
/// Those of the call.
pub fn setresgid(gid: u32) -> Result<()> {
    let id = c_long::from(gid);
    // SAFETY: plain integers.
    let value = unsafe { libc::syscall(libc::SYS_setresgid, id, id, id) };
    check("setresgid", value, || gid.to_string()).map(drop)
}

/// [`setgroups(2)`](https://man7.org/linux/man-pages/man2/setgroups.2.html).
///
/// # Errors
/// Those of the call; `EINVAL` above 65536 groups.
pub fn setgroups(groups: &[u32]) -> Result<()> {
    // SAFETY: pointer and count describe `groups`.
    let value = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    check("setgroups", value, || format!("{groups:?}")).map(drop)
}

/// The three capability sets of a thread, one bit per capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// What is in force.
    pub effective: u64,
    /// What may be put into force.
    pub permitted: u64,
    /// What survives an exec of a file that also inherits it.
    pub inheritable: u64,
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: c_int,
}

/// `_LINUX_CAPABILITY_VERSION_3`.
const CAP_VERSION: u32 = 0x2008_0522;

const fn low(set: u64) -> u32 {
    (set & 0xffff_ffff) as u32
}

const fn high(set: u64) -> u32 {
    (set >> 32) as u32
}

/// [`capget(2)`](https://man7.org/linux/man-pages/man2/capget.2.html) of this thread.
///
/// # Errors
/// Those of the call.
pub fn capget() -> Result<Capabilities> {
    let header = CapHeader {
        version: CAP_VERSION,
        pid: 0,
    };
    let mut data = [0_u32; 6];
    // SAFETY: version 3 reads the header and writes two structures of three u32.
    let value = unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) };
    check("capget", value, String::new)?;
    let join = |at: usize| u64::from(data[at]) | u64::from(data[at + 3]) << 32;
    Ok(Capabilities {
        effective: join(0),
        permitted: join(1),
        inheritable: join(2),
    })
}

/// [`capset(2)`](https://man7.org/linux/man-pages/man2/capget.2.html) of this thread.
///
/// # Errors
/// Those of the call; `EPERM` for more than there is to give.
pub fn capset(sets: &Capabilities) -> Result<()> {
    let header = CapHeader {
        version: CAP_VERSION,
        pid: 0,
    };
    let Capabilities {
        effective,
        permitted,
        inheritable,
    } = *sets;
    let data: [u32; 6] = [
        low(effective),
        low(permitted),
        low(inheritable),
        high(effective),
        high(permitted),
        high(inheritable),
    ];
    // SAFETY: version 3 reads the header and two structures of three u32.
    let value = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    check("capset", value, || format!("{sets:x?}")).map(drop)
}

fn prctl(name: &'static str, option: c_int, args: [c_ulong; 4]) -> Result<c_long> {
    // SAFETY: all options used in this crate take integers only (callers below).
    let value = unsafe { libc::prctl(option, args[0], args[1], args[2], args[3]) };
    check("prctl", c_long::from(value), || format!("{name}, {args:?}"))
}

/// The highest capability number the kernel knows.
///
/// # Errors
/// `EIO` if it knows none, which cannot be.
pub fn last_capability() -> Result<u32> {
    (0..64_u32)
        .take_while(|cap| {
            prctl(
                "PR_CAPBSET_READ",
                libc::PR_CAPBSET_READ,
                [c_ulong::from(*cap), 0, 0, 0],
            )
            .is_ok()
        })
        .last()
        .ok_or_else(|| Error::new("prctl", "PR_CAPBSET_READ", Errno::EIO))
}

/// The bounding set.
///
/// # Errors
/// Those of prctl(2).
pub fn bounding() -> Result<u64> {
    let mut set = 0;
    for cap in 0..=last_capability()? {
        let arg = [c_ulong::from(cap), 0, 0, 0];
        if prctl("PR_CAPBSET_READ", libc::PR_CAPBSET_READ, arg)? == 1 {
            set |= 1 << cap;
        }
    }
    Ok(set)
}

/// Drops from the bounding set everything that is not in `keep`; needs `CAP_SETPCAP` if anything
/// is to be dropped.
///
/// # Errors
/// Those of prctl(2).
pub fn limit_bounding(keep: u64) -> Result<()> {
    for cap in 0..64_u32 {
        let arg = [c_ulong::from(cap), 0, 0, 0];
        let zero: c_ulong = 0;
        // SAFETY: PR_CAPBSET_READ takes one integer.
        let held = unsafe { libc::prctl(libc::PR_CAPBSET_READ, arg[0], zero, zero, zero) };
        match held {
            1 if keep & (1 << cap) == 0 => {
                prctl("PR_CAPBSET_DROP", libc::PR_CAPBSET_DROP, arg)?;
            }
            0 | 1 => {}
            // The kernel knows no more.
            _ => break,
        }
    }
    Ok(())
}

/// Makes the ambient set exactly `set`; each must be permitted and inheritable.
///
/// # Errors
/// Those of prctl(2).
pub fn set_ambient(set: u64) -> Result<()> {
    const CLEAR: c_ulong = libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong;
    const RAISE: c_ulong = libc::PR_CAP_AMBIENT_RAISE as c_ulong;
    prctl("PR_CAP_AMBIENT", libc::PR_CAP_AMBIENT, [CLEAR, 0, 0, 0])?;
    for cap in (0..64).filter(|cap| set & (1 << cap) != 0) {
        prctl("PR_CAP_AMBIENT", libc::PR_CAP_AMBIENT, [RAISE, cap, 0, 0])?;
    }
    Ok(())
}

/// Keeps the permitted set across a change of uid away from 0.
///
/// # Errors
/// Those of prctl(2).
pub fn set_keepcaps(on: bool) -> Result<()> {
    prctl(
        "PR_SET_KEEPCAPS",
        libc::PR_SET_KEEPCAPS,
        [c_ulong::from(on), 0, 0, 0],
    )
    .map(drop)
}

/// No exec gains privileges any more, for ever.
///
/// # Errors
/// Those of prctl(2).
pub fn set_no_new_privs() -> Result<()> {
    prctl(
        "PR_SET_NO_NEW_PRIVS",
        libc::PR_SET_NO_NEW_PRIVS,
        [1, 0, 0, 0],
    )
    .map(drop)
}

/// Whether others may trace this process and open its /proc files.
///
/// # Errors
/// Those of prctl(2).
pub fn set_dumpable(on: bool) -> Result<()> {
    prctl(
        "PR_SET_DUMPABLE",
        libc::PR_SET_DUMPABLE,
        [c_ulong::from(on), 0, 0, 0],
    )
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_sets_agree_with_proc() {
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("status");
        let field = |name: &str| {
            let line = status
                .lines()
                .find(|line| line.starts_with(name))
                .expect("field");
            u64::from_str_radix(line.split_whitespace().nth(1).expect("value"), 16).expect("hex")
        };
        let sets = capget().expect("capget");
        assert_eq!(sets.effective, field("CapEff:"));
        assert_eq!(sets.permitted, field("CapPrm:"));
        assert_eq!(sets.inheritable, field("CapInh:"));
        assert_eq!(bounding().expect("bounding"), field("CapBnd:"));
    }

    #[test]
    fn a_thread_can_give_up_capabilities_for_itself() {
        std::thread::spawn(|| {
            limit_bounding(1 << 10).expect("drop");
            let held = bounding().expect("bounding");
            assert_eq!(held & !(1 << 10), 0);
            capset(&Capabilities::default()).expect("capset");
            assert_eq!(capget().expect("capget"), Capabilities::default());
            let refused = setresuid(12345).unwrap_err();
            assert_eq!(refused.errno(), Errno::EPERM);
        })
        .join()
        .expect("thread");
        assert_ne!(capget().expect("capget").effective, 0);
    }
}
