//! The mount API that works on descriptors, and what is left of the older one.
//!
//! Flag constants of the kernel's mount.h that libc lacks for some targets are defined here.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use libc::{c_long, c_uint};

use crate::arg::Arg;
use crate::error::{Result, check};
use crate::fd::{owned, raw};

/// Read-only.
pub const MOUNT_ATTR_RDONLY: u64 = 0x1;
/// Ignore set-user-id bits and file capabilities.
pub const MOUNT_ATTR_NOSUID: u64 = 0x2;
/// No access to device nodes.
pub const MOUNT_ATTR_NODEV: u64 = 0x4;
/// No program execution.
pub const MOUNT_ATTR_NOEXEC: u64 = 0x8;
/// The bits that hold the access time mode; clear them to set one.
pub const MOUNT_ATTR__ATIME: u64 = 0x70;
/// Access times relative to modification (the kernel's default).
pub const MOUNT_ATTR_RELATIME: u64 = 0x0;
/// No access times.
pub const MOUNT_ATTR_NOATIME: u64 = 0x10;
/// Access times always.
pub const MOUNT_ATTR_STRICTATIME: u64 = 0x20;
/// No access times of directories.
pub const MOUNT_ATTR_NODIRATIME: u64 = 0x80;
/// Translate owners by a user namespace.
pub const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;
/// Do not follow symbolic links.
pub const MOUNT_ATTR_NOSYMFOLLOW: u64 = 0x20_0000;

/// Clone the mount instead of only opening it.
pub const OPEN_TREE_CLONE: u32 = 1;
/// With [`OPEN_TREE_CLONE`]: the mounts below it too.
pub const AT_RECURSIVE: u32 = 0x8000;
/// The descriptor itself is meant, the path is empty.
pub const AT_EMPTY_PATH: u32 = 0x1000;
/// Do not follow a last symbolic link.
pub const AT_SYMLINK_NOFOLLOW: u32 = 0x100;

/// `from` itself is the mount.
pub const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
/// `to` itself is the mount point.
pub const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;

/// A propagation type: private.
pub const MS_PRIVATE: u64 = 1 << 18;
/// A propagation type: receives from its master, sends nothing.
pub const MS_SLAVE: u64 = 1 << 19;
/// A propagation type: both ways.
pub const MS_SHARED: u64 = 1 << 20;
/// A propagation type: private and not clonable.
pub const MS_UNBINDABLE: u64 = 1 << 17;
/// The mounts below it too.
pub const MS_REC: u64 = 1 << 14;

/// Detach now, free when unused (umount2).
pub const MNT_DETACH: i32 = 2;
/// Do not follow a last symbolic link (umount2).
pub const UMOUNT_NOFOLLOW: i32 = 8;

const FSCONFIG_SET_FLAG: c_uint = 0;
const FSCONFIG_SET_STRING: c_uint = 1;
const FSCONFIG_SET_FD: c_uint = 5;
const FSCONFIG_CMD_CREATE: c_uint = 6;
const FSCONFIG_CMD_RECONFIGURE: c_uint = 7;

/// [`fsopen(2)`](https://man7.org/linux/man-pages/man2/fsopen.2.html): begins a filesystem.
///
/// # Errors
/// Those of the call; `ENODEV` for a type the kernel does not have.
pub fn fsopen<P: Arg + ?Sized>(fstype: &P) -> Result<OwnedFd> {
    const FSOPEN_CLOEXEC: c_long = 1;
    fstype.with_c_str("fsopen", |name| {
        // SAFETY: `name` is NUL-terminated and outlives the call.
        let value = unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) };
        check("fsopen", value, || fstype.show()).map(owned)
    })
}

/// fsconfig(2) `FSCONFIG_SET_STRING`. The kernel takes at most 256 bytes of value.
///
/// # Errors
/// Those of the call; [`fs_log`] often knows more.
pub fn fsconfig_set_string<K: Arg + ?Sized, V: Arg + ?Sized>(
    fs: BorrowedFd<'_>,
    key: &K,
    value: &V,
) -> Result<()> {
    key.with_c_str("fsconfig", |c_key| {
        value.with_c_str("fsconfig", |c_value| {
            // SAFETY: both strings are NUL-terminated and outlive the call.
            let returned = unsafe {
                libc::syscall(
                    libc::SYS_fsconfig,
                    raw(fs),
                    c_long::from(FSCONFIG_SET_STRING),
                    c_key.as_ptr(),
                    c_value.as_ptr(),
                    0 as c_long,
                )
            };
            check("fsconfig", returned, || {
                format!(
                    "{}, SET_STRING, {}, {}",
                    fs.as_raw_fd(),
                    key.show(),
                    value.show()
                )
            })
            .map(drop)
        })
    })
}

/// fsconfig(2) `FSCONFIG_SET_FLAG`.
///
/// # Errors
/// Those of the call.
pub fn fsconfig_set_flag<K: Arg + ?Sized>(fs: BorrowedFd<'_>, key: &K) -> Result<()> {
    key.with_c_str("fsconfig", |c_key| {
        // SAFETY: the key is NUL-terminated; the value must be null for a flag.
        let returned = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                raw(fs),
                c_long::from(FSCONFIG_SET_FLAG),
                c_key.as_ptr(),
                std::ptr::null::<libc::c_char>(),
                0 as c_long,
            )
        };
        check("fsconfig", returned, || {
            format!("{}, SET_FLAG, {}", fs.as_raw_fd(), key.show())
        })
        .map(drop)
    })
}

/// fsconfig(2) `FSCONFIG_SET_FD`.
///
/// # Errors
/// Those of the call.
pub fn fsconfig_set_fd<K: Arg + ?Sized>(
    fs: BorrowedFd<'_>,
    key: &K,
    value: BorrowedFd<'_>,
) -> Result<()> {
    key.with_c_str("fsconfig", |c_key| {
        // SAFETY: the key is NUL-terminated; the value pointer must be null, the descriptor
        // travels in `aux`.
        let returned = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                raw(fs),
                c_long::from(FSCONFIG_SET_FD),
                c_key.as_ptr(),
                std::ptr::null::<libc::c_char>(),
                raw(value),
            )
        };
        check("fsconfig", returned, || {
            format!(
                "{}, SET_FD, {}, {}",
                fs.as_raw_fd(),
                key.show(),
                value.as_raw_fd()
            )
        })
        .map(drop)
    })
}

fn fsconfig_command(fs: BorrowedFd<'_>, command: c_uint, name: &str) -> Result<()> {
    // SAFETY: commands take neither key nor value.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            raw(fs),
            c_long::from(command),
            std::ptr::null::<libc::c_char>(),
            std::ptr::null::<libc::c_char>(),
            0 as c_long,
        )
    };
    check("fsconfig", returned, || {
        format!("{}, {name}", fs.as_raw_fd())
    })
    .map(drop)
}

/// fsconfig(2) `FSCONFIG_CMD_CREATE`.
///
/// # Errors
/// Those of the call; [`fs_log`] often knows more.
pub fn fsconfig_create(fs: BorrowedFd<'_>) -> Result<()> {
    fsconfig_command(fs, FSCONFIG_CMD_CREATE, "CMD_CREATE")
}

/// fsconfig(2) `FSCONFIG_CMD_RECONFIGURE`.
///
/// # Errors
/// Those of the call.
pub fn fsconfig_reconfigure(fs: BorrowedFd<'_>) -> Result<()> {
    fsconfig_command(fs, FSCONFIG_CMD_RECONFIGURE, "CMD_RECONFIGURE")
}

/// What the filesystem said about its configuration so far, newest last: the text behind a bare
/// `EINVAL` of [`fsconfig_create`]. Empty if it said nothing.
#[must_use]
pub fn fs_log(fs: BorrowedFd<'_>) -> String {
    let mut text = String::new();
    let mut line = [0; 1024];
    for _ in 0..16 {
        let Ok(count) = crate::fd::read(fs, &mut line) else {
            break;
        };
        if count == 0 {
            break;
        }
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(String::from_utf8_lossy(&line[..count]).trim_end());
    }
    text
}

/// [`fsmount(2)`](https://man7.org/linux/man-pages/man2/fsmount.2.html): a detached mount with
/// attributes `MOUNT_ATTR_*`.
///
/// # Errors
/// Those of the call.
pub fn fsmount(fs: BorrowedFd<'_>, attributes: u64) -> Result<OwnedFd> {
    const FSMOUNT_CLOEXEC: c_long = 1;
    // SAFETY: plain integers.
    let value = unsafe { libc::syscall(libc::SYS_fsmount, raw(fs), FSMOUNT_CLOEXEC, attributes) };
    check("fsmount", value, || {
        format!("{}, {attributes:#x}", fs.as_raw_fd())
    })
    .map(owned)
}

/// [`open_tree(2)`](https://man7.org/linux/man-pages/man2/open_tree.2.html). An empty path with
/// [`AT_EMPTY_PATH`] means `dir` itself.
///
/// # Errors
/// Those of the call.
pub fn open_tree<P: Arg + ?Sized>(dir: BorrowedFd<'_>, path: &P, flags: u32) -> Result<OwnedFd> {
    let all = flags | libc::O_CLOEXEC.cast_unsigned();
    path.with_c_str("open_tree", |c_path| {
        // SAFETY: the path is NUL-terminated and outlives the call.
        let value = unsafe {
            libc::syscall(
                libc::SYS_open_tree,
                raw(dir),
                c_path.as_ptr(),
                c_long::from(all),
            )
        };
        check("open_tree", value, || {
            format!("{}, {}, {flags:#x}", dir.as_raw_fd(), path.show())
        })
        .map(owned)
    })
}

/// [`move_mount(2)`](https://man7.org/linux/man-pages/man2/move_mount.2.html), both ends given by
/// descriptor: attaches (or moves) the mount `mount` onto `target`.
///
/// # Errors
/// Those of the call.
pub fn move_mount(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both paths are static NUL-terminated strings.
    let value = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            raw(mount),
            c"".as_ptr(),
            raw(target),
            c"".as_ptr(),
            c_long::from(flags),
        )
    };
    check("move_mount", value, || {
        format!("{}, {}", mount.as_raw_fd(), target.as_raw_fd())
    })
    .map(drop)
}

/// What [`mount_setattr`] changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountAttr<'a> {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// One of `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`, or 0 to leave it.
    pub propagation: u64,
    /// The user namespace of `MOUNT_ATTR_IDMAP`.
    pub userns: Option<BorrowedFd<'a>>,
}

/// [`mount_setattr(2)`](https://man7.org/linux/man-pages/man2/mount_setattr.2.html) on the mount
/// a descriptor stands for; `recursive` takes the mounts below it along.
///
/// # Errors
/// Those of the call.
pub fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attr: &MountAttr<'_>) -> Result<()> {
    let flags = AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    let userns = attr
        .userns
        .map_or(0, |fd| fd.as_raw_fd().unsigned_abs().into());
    let fields: [u64; 4] = [attr.set, attr.clear, attr.propagation, userns];
    // SAFETY: struct mount_attr is four u64 in this order, and the size says so.
    let value = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            raw(mount),
            c"".as_ptr(),
            c_long::from(flags),
            fields.as_ptr(),
            size_of_val(&fields),
        )
    };
    check("mount_setattr", value, || {
        format!(
            "{}, {flags:#x}, set={:#x} clear={:#x} propagation={:#x}",
            mount.as_raw_fd(),
            attr.set,
            attr.clear,
            attr.propagation
        )
    })
    .map(drop)
}

/// [`mount(2)`](https://man7.org/linux/man-pages/man2/mount.2.html) that only changes the
/// propagation type of a mount point: one of the `MS_*` above, perhaps with `MS_REC`.
///
/// # Errors
/// Those of the call.
pub fn set_propagation<P: Arg + ?Sized>(path: &P, flags: u64) -> Result<()> {
    path.with_c_str("mount", |c_path| {
        // SAFETY: the path is NUL-terminated; the other pointers are ignored for a change of
        // propagation and may be null.
        let value = unsafe {
            libc::mount(
                std::ptr::null(),
                c_path.as_ptr(),
                std::ptr::null(),
                flags,
                std::ptr::null(),
            )
        };
        check("mount", c_long::from(value), || {
            format!("{}, {flags:#x}", path.show())
        })
        .map(drop)
    })
}

/// [`umount2(2)`](https://man7.org/linux/man-pages/man2/umount.2.html).
///
/// # Errors
/// Those of the call.
pub fn umount2<P: Arg + ?Sized>(path: &P, flags: i32) -> Result<()> {
    path.with_c_str("umount2", |c_path| {
        // SAFETY: the path is NUL-terminated and outlives the call.
        let value = unsafe { libc::umount2(c_path.as_ptr(), flags) };
        check("umount2", c_long::from(value), || {
            format!("{}, {flags:#x}", path.show())
        })
        .map(drop)
    })
}

/// [`pivot_root(2)`](https://man7.org/linux/man-pages/man2/pivot_root.2.html).
///
/// # Errors
/// Those of the call.
pub fn pivot_root<P: Arg + ?Sized, Q: Arg + ?Sized>(new_root: &P, put_old: &Q) -> Result<()> {
    new_root.with_c_str("pivot_root", |c_new| {
        put_old.with_c_str("pivot_root", |c_old| {
            // SAFETY: both paths are NUL-terminated and outlive the call.
            let value =
                unsafe { libc::syscall(libc::SYS_pivot_root, c_new.as_ptr(), c_old.as_ptr()) };
            check("pivot_root", value, || {
                format!("{}, {}", new_root.show(), put_old.show())
            })
            .map(drop)
        })
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::error::Errno;

    #[test]
    fn detached_tmpfs_takes_files_and_unknown_types_fail() {
        let fs = fsopen("tmpfs").expect("fsopen");
        fsconfig_set_string(fs.as_fd(), "size", "64k").expect("size");
        fsconfig_create(fs.as_fd()).expect("create");
        let mount = fsmount(fs.as_fd(), MOUNT_ATTR_NODEV).expect("fsmount");
        crate::path::mkdirat(mount.as_fd(), "d", 0o700).expect("mkdir");
        mount_setattr(
            mount.as_fd(),
            false,
            &MountAttr {
                set: MOUNT_ATTR_RDONLY,
                ..MountAttr::default()
            },
        )
        .expect("setattr");
        let error = crate::path::mkdirat(mount.as_fd(), "e", 0o700).unwrap_err();
        assert_eq!(error.errno(), Errno::EROFS);
        assert_eq!(fsopen("nosuchfs").unwrap_err().errno(), Errno::ENODEV);
    }

    #[test]
    fn the_filesystem_explains_a_bad_option() {
        let fs = fsopen("tmpfs").expect("fsopen");
        fsconfig_set_string(fs.as_fd(), "size", "lots").unwrap_err();
        assert!(fs_log(fs.as_fd()).contains("size"));
    }
}
