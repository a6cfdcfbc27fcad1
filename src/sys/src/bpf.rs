//! Device programs of cgroup v2, by raw [`bpf(2)`](https://man7.org/linux/man-pages/man2/bpf.2.html).

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use libc::c_long;

use crate::error::{Errno, Error, Result, check};
use crate::fd::owned;

/// Bytes of one `struct bpf_insn`.
pub const INSTRUCTION: usize = 8;
/// Several programs may be attached, all must allow.
pub const BPF_F_ALLOW_MULTI: u32 = 2;
/// Replace one attached program by the new one.
pub const BPF_F_REPLACE: u32 = 4;

const BPF_PROG_LOAD: c_long = 5;
const BPF_PROG_ATTACH: c_long = 8;
const BPF_PROG_DETACH: c_long = 9;
const BPF_PROG_GET_FD_BY_ID: c_long = 13;
const BPF_PROG_QUERY: c_long = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;

/// The part of `union bpf_attr` this module uses, zero where nothing is set.
#[repr(C, align(8))]
struct Attr([u8; 128]);

impl Attr {
    const fn new() -> Self {
        Self([0; 128])
    }

    fn u32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn pointer<T>(mut self, at: usize, value: *const T) -> Self {
        self.0[at..at + 8].copy_from_slice(&(value as u64).to_ne_bytes());
        self
    }

    fn fd(self, at: usize, fd: BorrowedFd<'_>) -> Self {
        self.u32(at, fd.as_raw_fd().cast_unsigned())
    }

    fn get(&self, at: usize) -> u32 {
        let bytes = self.0[at..at + 4].try_into().expect("four bytes");
        u32::from_ne_bytes(bytes)
    }
}

/// # Safety
/// Every pointer in `attr` must be valid for what `command` does with it.
unsafe fn bpf(
    command: c_long,
    name: &'static str,
    attr: &mut Attr,
    args: impl FnOnce() -> String,
) -> Result<c_long> {
    // SAFETY: `attr` has 128 bytes, all initialised; the kernel demands zeroes behind the fields
    // of the command, which is what is there. Pointers inside by the caller's promise.
    let value = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, 128_usize) };
    check("bpf", value, || format!("{name}, {}", args()))
}

/// Loads a `BPF_PROG_TYPE_CGROUP_DEVICE` program; `program` is an array of `struct bpf_insn` in
/// the machine's byte order.
///
/// # Errors
/// `EINVAL` for an empty or cut program or one the verifier refuses; those of the call.
pub fn prog_load_cgroup_device(program: &[u8]) -> Result<OwnedFd> {
    let count = program.len() / INSTRUCTION;
    let bytes = || format!("CGROUP_DEVICE, {} bytes", program.len());
    let Ok(count) = u32::try_from(count) else {
        return Err(Error::new("bpf", bytes(), Errno::E2BIG));
    };
    if count == 0 || !program.len().is_multiple_of(INSTRUCTION) {
        return Err(Error::new("bpf", bytes(), Errno::EINVAL));
    }
    let mut attr = Attr::new()
        .u32(0, BPF_PROG_TYPE_CGROUP_DEVICE)
        .u32(4, count)
        .pointer(8, program.as_ptr())
        .pointer(16, c"Apache-2.0".as_ptr());
    // SAFETY: PROG_LOAD reads `count` instructions and the licence string; no log is asked for.
    unsafe { bpf(BPF_PROG_LOAD, "PROG_LOAD", &mut attr, bytes) }.map(owned)
}

/// Attaches a device program to a cgroup v2 directory. With `replace` (needs
/// [`BPF_F_ALLOW_MULTI`]) it takes that program's place at once.
///
/// # Errors
/// Those of the call.
pub fn prog_attach(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replace: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let flags = BPF_F_ALLOW_MULTI | if replace.is_some() { BPF_F_REPLACE } else { 0 };
    let mut attr = Attr::new()
        .fd(0, cgroup)
        .fd(4, program)
        .u32(8, BPF_CGROUP_DEVICE)
        .u32(12, flags);
    if let Some(old) = replace {
        attr = attr.fd(16, old);
    }
    let args = || format!("{}, {}", cgroup.as_raw_fd(), program.as_raw_fd());
    // SAFETY: PROG_ATTACH takes no pointers.
    unsafe { bpf(BPF_PROG_ATTACH, "PROG_ATTACH", &mut attr, args) }.map(drop)
}

/// Detaches a device program from a cgroup v2 directory.
///
/// # Errors
/// Those of the call; `ENOENT` if it was not attached.
pub fn prog_detach(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    let mut attr = Attr::new()
        .fd(0, cgroup)
        .fd(4, program)
        .u32(8, BPF_CGROUP_DEVICE);
    let args = || format!("{}, {}", cgroup.as_raw_fd(), program.as_raw_fd());
    // SAFETY: PROG_DETACH takes no pointers.
    unsafe { bpf(BPF_PROG_DETACH, "PROG_DETACH", &mut attr, args) }.map(drop)
}

/// The ids of the device programs attached to a cgroup v2 directory itself (64 at most).
///
/// # Errors
/// Those of the call.
pub fn prog_query(cgroup: BorrowedFd<'_>) -> Result<Vec<u32>> {
    let mut ids = vec![0_u32; 64];
    let mut attr = Attr::new()
        .fd(0, cgroup)
        .u32(4, BPF_CGROUP_DEVICE)
        .pointer(16, ids.as_mut_ptr().cast_const())
        .u32(24, 64);
    let args = || cgroup.as_raw_fd().to_string();
    // SAFETY: PROG_QUERY writes at most the 64 ids announced, into `ids`, whose pointer came from
    // a mutable borrow.
    unsafe { bpf(BPF_PROG_QUERY, "PROG_QUERY", &mut attr, args) }?;
    ids.truncate(attr.get(24) as usize);
    Ok(ids)
}

/// A descriptor of a loaded program by its id.
///
/// # Errors
/// Those of the call; `ENOENT` if it is gone.
pub fn prog_by_id(id: u32) -> Result<OwnedFd> {
    let mut attr = Attr::new().u32(0, id);
    // SAFETY: PROG_GET_FD_BY_ID takes no pointers.
    unsafe {
        bpf(
            BPF_PROG_GET_FD_BY_ID,
            "PROG_GET_FD_BY_ID",
            &mut attr,
            || id.to_string(),
        )
    }
    .map(owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_programs_are_refused() {
        for program in [&[][..], &[0; 7]] {
            assert_eq!(
                prog_load_cgroup_device(program).unwrap_err().errno(),
                Errno::EINVAL
            );
        }
        assert_eq!(prog_by_id(u32::MAX).unwrap_err().errno(), Errno::ENOENT);
    }
}
