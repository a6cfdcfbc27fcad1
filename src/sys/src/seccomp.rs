//! Loading seccomp filters.

use libc::{c_long, c_ulong};

use crate::error::{Errno, Error, Result, check};

/// Bytes of one `struct sock_filter`.
pub const INSTRUCTION: usize = 8;
/// Most instructions the kernel takes (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// [`seccomp(2)`](https://man7.org/linux/man-pages/man2/seccomp.2.html) `SECCOMP_SET_MODE_FILTER`.
/// `program` is an array of `struct sock_filter` in the machine's byte order, `flags` are
/// `SECCOMP_FILTER_FLAG_*`. Needs `no_new_privs` or `CAP_SYS_ADMIN`. Flags that return a
/// descriptor (`NEW_LISTENER`) are refused.
///
/// # Errors
/// `EINVAL` for a program that is empty, too long or cut within an instruction; those of the call.
pub fn load(program: &[u8], flags: u64) -> Result<()> {
    const NEW_LISTENER: u64 = 1 << 3;
    #[repr(C)]
    struct SockFprog {
        length: u16,
        filter: *const u8,
    }
    let args = || {
        format!(
            "SECCOMP_SET_MODE_FILTER, {flags:#x}, {} bytes",
            program.len()
        )
    };
    let count = program.len() / INSTRUCTION;
    let whole = program.len().is_multiple_of(INSTRUCTION);
    let listener = flags & NEW_LISTENER != 0;
    if !whole || count == 0 || count > MAX_INSTRUCTIONS || listener {
        return Err(Error::new("seccomp", args(), Errno::EINVAL));
    }
    let length = u16::try_from(count).expect("at most 4096");
    let descriptor = SockFprog {
        length,
        filter: program.as_ptr(),
    };
    // SAFETY: `descriptor` has the layout of struct sock_fprog and points at `length` whole
    // instructions of 8 bytes; the kernel copies them (without alignment demands) and keeps no
    // pointer.
    let value = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            c_ulong::from(libc::SECCOMP_SET_MODE_FILTER),
            flags,
            &raw const descriptor,
        )
    };
    if value > 0 {
        // TSYNC: the id of a thread that could not be synchronised.
        return Err(Error::new("seccomp", args(), Errno::EAGAIN));
    }
    check("seccomp", value, args).map(drop)
}

/// Whether the kernel knows a filter return action (`SECCOMP_RET_*`).
#[must_use]
pub fn action_available(action: u32) -> bool {
    const SECCOMP_GET_ACTION_AVAIL: c_long = 2;
    // SAFETY: the kernel reads one u32.
    let value = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SECCOMP_GET_ACTION_AVAIL,
            0 as c_long,
            &raw const action,
        )
    };
    value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_programs_are_refused_before_the_kernel() {
        for program in [&[][..], &[0; 7], &[0; 8 * 4097]] {
            assert_eq!(load(program, 0).unwrap_err().errno(), Errno::EINVAL);
        }
        assert!(action_available(libc::SECCOMP_RET_ALLOW));
        assert!(!action_available(0x1234_0000));
    }
}
