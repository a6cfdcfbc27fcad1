//! Paths below a descriptor, and [`Root`]: paths that cannot leave a tree somebody else controls.

use std::ffi::CStr;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

mod root;

pub use root::Root;

use libc::{c_long, c_uint};

use crate::arg::Arg;
use crate::error::{Errno, Error, Result, check, check_retry};
use crate::fd::{owned, raw};

/// Do not cross into another mount.
pub const RESOLVE_NO_XDEV: u64 = 0x01;
/// Do not follow links that procfs makes up.
pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
/// Do not follow symbolic links at all.
pub const RESOLVE_NO_SYMLINKS: u64 = 0x04;
/// Stay below the directory: absolute paths and `..` above it are errors.
pub const RESOLVE_BENEATH: u64 = 0x08;
/// The directory is the root: absolute links and `..` stop there.
pub const RESOLVE_IN_ROOT: u64 = 0x10;

/// How often a lookup is repeated when the tree changes under it (`EAGAIN`).
const RACES: u32 = 128;

/// [`openat2(2)`](https://man7.org/linux/man-pages/man2/openat2.2.html), close-on-exec, repeated
/// while the tree moves under it. `mode` must be 0 unless `flags` create something.
///
/// # Errors
/// Those of the call.
pub fn openat2<P: Arg + ?Sized>(
    dir: BorrowedFd<'_>,
    path: &P,
    flags: i32,
    mode: u32,
    resolve: u64,
) -> Result<OwnedFd> {
    path.with_c_str("openat2", |c_path| {
        openat2_errno(dir, c_path, flags, mode, resolve).map_err(|errno| {
            let dir = dir.as_raw_fd();
            let args = format!("{dir}, {}, {flags:#x}, resolve={resolve:#x}", path.show());
            Error::new("openat2", args, errno)
        })
    })
}

/// [`openat2`] for where failing is nothing special: the error is not described, so nothing is
/// allocated.
fn openat2_errno(
    dir: BorrowedFd<'_>,
    path: &CStr,
    flags: i32,
    mode: u32,
    resolve: u64,
) -> std::result::Result<OwnedFd, Errno> {
    let how: [u64; 3] = [
        u64::from((flags | libc::O_CLOEXEC).cast_unsigned()),
        u64::from(mode),
        resolve,
    ];
    let mut races = 0;
    loop {
        // SAFETY: the path is NUL-terminated; struct open_how is three u64 (flags, mode,
        // resolve), and the size says so.
        let value = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                raw(dir),
                path.as_ptr(),
                how.as_ptr(),
                size_of_val(&how),
            )
        };
        if value != -1 {
            return Ok(owned(value));
        }
        match Errno::last() {
            Errno::EINTR => {}
            Errno::EAGAIN if races < RACES => races += 1,
            errno => return Err(errno),
        }
    }
}

/// Whether `path` is a regular file that this process may execute; follows links. The error is
/// not described, so nothing is allocated: made for trying one place after the other.
///
/// # Errors
/// `EACCES` for what is not a regular file; those of stat(2) and faccessat(2).
pub fn executable(dir: BorrowedFd<'_>, path: &CStr) -> std::result::Result<(), Errno> {
    // SAFETY: all-zero is a valid struct stat.
    let mut stat: libc::stat = unsafe { mem::zeroed() };
    // SAFETY: the path is NUL-terminated; `stat` is a struct stat that outlives the call.
    if unsafe { libc::fstatat(dir.as_raw_fd(), path.as_ptr(), &raw mut stat, 0) } == -1 {
        return Err(Errno::last());
    }
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(Errno::EACCES);
    }
    // SAFETY: the path is NUL-terminated and outlives the call.
    let value = unsafe {
        libc::syscall(
            libc::SYS_faccessat2,
            raw(dir),
            path.as_ptr(),
            c_long::from(libc::X_OK),
            c_long::from(libc::AT_EACCESS),
        )
    };
    if value == -1 {
        Err(Errno::last())
    } else {
        Ok(())
    }
}

/// [`openat(2)`](https://man7.org/linux/man-pages/man2/openat.2.html), close-on-exec.
///
/// # Errors
/// Those of the call.
pub fn openat<P: Arg + ?Sized>(
    dir: BorrowedFd<'_>,
    path: &P,
    flags: i32,
    mode: u32,
) -> Result<OwnedFd> {
    path.with_c_str("openat", |c_path| {
        check_retry(
            "openat",
            // SAFETY: the path is NUL-terminated and outlives the call.
            || unsafe {
                libc::syscall(
                    libc::SYS_openat,
                    raw(dir),
                    c_path.as_ptr(),
                    c_long::from(flags | libc::O_CLOEXEC),
                    c_long::from(mode),
                )
            },
            || format!("{}, {}, {flags:#x}", dir.as_raw_fd(), path.show()),
        )
        .map(owned)
    })
}

macro_rules! path_calls {
    ($($(#[$doc:meta])* $name:ident($($param:ident: $type:ty),*) => $call:ident($($arg:expr),*);)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// Those of the call.
        pub fn $name<P: Arg + ?Sized>(dir: BorrowedFd<'_>, path: &P, $($param: $type),*) -> Result<()> {
            path.with_c_str(stringify!($name), |c_path| {
                // SAFETY: the path is NUL-terminated and outlives the call; the rest is integers.
                let value = unsafe { libc::syscall(libc::$call, raw(dir), c_path.as_ptr(), $($arg),*) };
                check(stringify!($name), value, || {
                    let mut args = format!("{}, {}", dir.as_raw_fd(), path.show());
                    $(args.push_str(&format!(", {}={:?}", stringify!($param), $param));)*
                    args
                })
                .map(drop)
            })
        }
    )*};
}

path_calls! {
    /// [`mkdirat(2)`](https://man7.org/linux/man-pages/man2/mkdir.2.html), subject to the umask.
    mkdirat(mode: u32) => SYS_mkdirat(c_long::from(mode));
    /// [`mknodat(2)`](https://man7.org/linux/man-pages/man2/mknod.2.html); `mode` includes the
    /// file type, `device` is from [`makedev`].
    mknodat(mode: u32, device: u64) => SYS_mknodat(c_long::from(mode), device);
    /// [`unlinkat(2)`](https://man7.org/linux/man-pages/man2/unlink.2.html); flag `AT_REMOVEDIR`.
    unlinkat(flags: i32) => SYS_unlinkat(c_long::from(flags));
    /// [`fchownat(2)`](https://man7.org/linux/man-pages/man2/chown.2.html); flags
    /// `AT_SYMLINK_NOFOLLOW`, `AT_EMPTY_PATH`. An id of `u32::MAX` is left alone.
    fchownat(uid: u32, gid: u32, flags: i32) => SYS_fchownat(c_long::from(uid), c_long::from(gid), c_long::from(flags));
    /// [`fchmodat(2)`](https://man7.org/linux/man-pages/man2/chmod.2.html); follows a last
    /// symbolic link.
    fchmodat(mode: u32) => SYS_fchmodat(c_long::from(mode));
    /// [`faccessat(2)`](https://man7.org/linux/man-pages/man2/access.2.html) with effective ids;
    /// flags `AT_EMPTY_PATH`, `AT_SYMLINK_NOFOLLOW`.
    faccessat(mode: i32, flags: i32) => SYS_faccessat2(c_long::from(mode), c_long::from(flags | libc::AT_EACCESS));
}

/// A device number.
#[must_use]
pub fn makedev(major: u32, minor: u32) -> u64 {
    libc::makedev(major, minor)
}

/// [`symlinkat(2)`](https://man7.org/linux/man-pages/man2/symlink.2.html): makes `path` a link
/// that says `target`.
///
/// # Errors
/// Those of the call.
pub fn symlinkat<T: Arg + ?Sized, P: Arg + ?Sized>(
    target: &T,
    dir: BorrowedFd<'_>,
    path: &P,
) -> Result<()> {
    target.with_c_str("symlinkat", |c_target| {
        path.with_c_str("symlinkat", |c_path| {
            // SAFETY: both strings are NUL-terminated and outlive the call.
            let value = unsafe {
                libc::syscall(
                    libc::SYS_symlinkat,
                    c_target.as_ptr(),
                    raw(dir),
                    c_path.as_ptr(),
                )
            };
            check("symlinkat", value, || {
                format!("{}, {}, {}", target.show(), dir.as_raw_fd(), path.show())
            })
            .map(drop)
        })
    })
}

/// [`linkat(2)`](https://man7.org/linux/man-pages/man2/link.2.html); flags `AT_SYMLINK_FOLLOW`,
/// `AT_EMPTY_PATH`.
///
/// # Errors
/// Those of the call.
pub fn linkat<P: Arg + ?Sized, Q: Arg + ?Sized>(
    old_dir: BorrowedFd<'_>,
    old: &P,
    new_dir: BorrowedFd<'_>,
    new: &Q,
    flags: i32,
) -> Result<()> {
    two_paths(
        "linkat",
        libc::SYS_linkat,
        (old_dir, old),
        (new_dir, new),
        flags,
    )
}

/// [`renameat2(2)`](https://man7.org/linux/man-pages/man2/rename.2.html); flags
/// `RENAME_NOREPLACE`, `RENAME_EXCHANGE`, `RENAME_WHITEOUT`.
///
/// # Errors
/// Those of the call.
pub fn renameat2<P: Arg + ?Sized, Q: Arg + ?Sized>(
    old_dir: BorrowedFd<'_>,
    old: &P,
    new_dir: BorrowedFd<'_>,
    new: &Q,
    flags: c_uint,
) -> Result<()> {
    let flags = flags.cast_signed();
    two_paths(
        "renameat2",
        libc::SYS_renameat2,
        (old_dir, old),
        (new_dir, new),
        flags,
    )
}

fn two_paths<P: Arg + ?Sized, Q: Arg + ?Sized>(
    name: &'static str,
    number: c_long,
    (old_dir, old): (BorrowedFd<'_>, &P),
    (new_dir, new): (BorrowedFd<'_>, &Q),
    flags: i32,
) -> Result<()> {
    old.with_c_str(name, |c_old| {
        new.with_c_str(name, |c_new| {
            // SAFETY: both calls take (dirfd, path, dirfd, path, flags); the paths are
            // NUL-terminated and outlive the call.
            let value = unsafe {
                libc::syscall(
                    number,
                    raw(old_dir),
                    c_old.as_ptr(),
                    raw(new_dir),
                    c_new.as_ptr(),
                    c_long::from(flags),
                )
            };
            check(name, value, || {
                let (from, to) = (old_dir.as_raw_fd(), new_dir.as_raw_fd());
                format!("{from}, {}, {to}, {}, {flags:#x}", old.show(), new.show())
            })
            .map(drop)
        })
    })
}

/// [`readlinkat(2)`](https://man7.org/linux/man-pages/man2/readlink.2.html) into `buffer`; an
/// empty path means the link `dir` itself (opened with `O_PATH | O_NOFOLLOW`).
///
/// # Errors
/// Those of the call; `ENAMETOOLONG` if the buffer is too small.
pub fn readlinkat<'b, P: Arg + ?Sized>(
    dir: BorrowedFd<'_>,
    path: &P,
    buffer: &'b mut [u8],
) -> Result<&'b [u8]> {
    let args = || format!("{}, {}", dir.as_raw_fd(), path.show());
    let count = path.with_c_str("readlinkat", |c_path| {
        // SAFETY: the path is NUL-terminated; pointer and length describe `buffer`.
        let value = unsafe {
            libc::readlinkat(
                dir.as_raw_fd(),
                c_path.as_ptr(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
            )
        };
        check("readlinkat", value as c_long, args)
    })?;
    let count = usize::try_from(count).expect("readlinkat returns a non-negative count");
    if count == buffer.len() {
        return Err(Error::new("readlinkat", args(), Errno::ENAMETOOLONG));
    }
    Ok(&buffer[..count])
}

/// What [`fstat`] tells of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Device of the filesystem.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// File type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, for device nodes.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Number of names.
    pub nlink: u64,
}

impl Stat {
    /// Whether it is a directory.
    #[must_use]
    pub const fn is_dir(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }

    /// Whether it is a regular file.
    #[must_use]
    pub const fn is_file(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFREG
    }

    /// Whether it is a symbolic link.
    #[must_use]
    pub const fn is_symlink(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFLNK
    }

    /// Whether it is the character device `major`:`minor`.
    #[must_use]
    pub fn is_char_device(&self, major: u32, minor: u32) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFCHR && self.rdev == makedev(major, minor)
    }
}

/// [`fstat(2)`](https://man7.org/linux/man-pages/man2/stat.2.html); works on `O_PATH` too.
///
/// # Errors
/// Those of the call.
pub fn fstat(fd: BorrowedFd<'_>) -> Result<Stat> {
    statat(fd, c"", libc::AT_EMPTY_PATH)
}

/// [`fstatat(2)`](https://man7.org/linux/man-pages/man2/stat.2.html) with `AT_*` flags.
///
/// # Errors
/// Those of the call.
pub fn statat<P: Arg + ?Sized>(dir: BorrowedFd<'_>, path: &P, flags: i32) -> Result<Stat> {
    // SAFETY: all-zero is a valid struct stat.
    let mut stat: libc::stat = unsafe { mem::zeroed() };
    path.with_c_str("fstatat", |c_path| {
        // SAFETY: the path is NUL-terminated; `stat` is a struct stat that outlives the call.
        let value =
            unsafe { libc::fstatat(dir.as_raw_fd(), c_path.as_ptr(), &raw mut stat, flags) };
        check("fstatat", c_long::from(value), || {
            format!("{}, {}", dir.as_raw_fd(), path.show())
        })
    })?;
    Ok(Stat {
        dev: stat.st_dev,
        ino: stat.st_ino,
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev,
        size: stat.st_size.unsigned_abs(),
        nlink: stat.st_nlink,
    })
}

/// The id of the mount a descriptor lies on (statx `STATX_MNT_ID`).
///
/// # Errors
/// Those of statx(2).
pub fn mount_id(fd: BorrowedFd<'_>) -> Result<u64> {
    const STATX_MNT_ID: c_uint = 0x1000;
    statx(fd, STATX_MNT_ID).map(|stat| stat.stx_mnt_id)
}

/// Whether a descriptor is the root of the mount it lies on (statx `STATX_ATTR_MOUNT_ROOT`).
///
/// # Errors
/// Those of statx(2).
pub fn is_mount_root(fd: BorrowedFd<'_>) -> Result<bool> {
    const STATX_ATTR_MOUNT_ROOT: u64 = 0x2000;
    statx(fd, 0).map(|stat| stat.stx_attributes & STATX_ATTR_MOUNT_ROOT != 0)
}

fn statx(fd: BorrowedFd<'_>, mask: c_uint) -> Result<libc::statx> {
    // SAFETY: all-zero is a valid struct statx.
    let mut stat: libc::statx = unsafe { mem::zeroed() };
    // SAFETY: the path is a static NUL-terminated string; `stat` outlives the call.
    let value = unsafe {
        libc::syscall(
            libc::SYS_statx,
            raw(fd),
            c"".as_ptr(),
            c_long::from(libc::AT_EMPTY_PATH),
            c_long::from(mask),
            &raw mut stat,
        )
    };
    check("statx", value, || format!("{}, {mask:#x}", fd.as_raw_fd()))?;
    Ok(stat)
}

/// The filesystem's magic number (`PROC_SUPER_MAGIC` and so on), by fstatfs(2).
///
/// # Errors
/// Those of the call.
pub fn filesystem_magic(fd: BorrowedFd<'_>) -> Result<u64> {
    // SAFETY: all-zero is a valid struct statfs.
    let mut stat: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: `stat` is a struct statfs that outlives the call.
    let value = unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut stat) };
    check("fstatfs", c_long::from(value), || {
        fd.as_raw_fd().to_string()
    })?;
    Ok((stat.f_type as c_long).cast_unsigned())
}

/// [`utimensat(2)`](https://man7.org/linux/man-pages/man2/utimensat.2.html): access and
/// modification time as (seconds, nanoseconds); flag `AT_SYMLINK_NOFOLLOW`.
///
/// # Errors
/// Those of the call.
pub fn utimensat<P: Arg + ?Sized>(
    dir: BorrowedFd<'_>,
    path: &P,
    access: (i64, i64),
    modification: (i64, i64),
    flags: i32,
) -> Result<()> {
    let times = [access.0, access.1, modification.0, modification.1];
    path.with_c_str("utimensat", |c_path| {
        // SAFETY: the path is NUL-terminated; two struct timespec are four 64-bit integers on
        // 64-bit kernels, the only ones supported.
        let value = unsafe {
            libc::syscall(
                libc::SYS_utimensat,
                raw(dir),
                c_path.as_ptr(),
                times.as_ptr(),
                c_long::from(flags),
            )
        };
        check("utimensat", value, || {
            format!("{}, {}", dir.as_raw_fd(), path.show())
        })
        .map(drop)
    })
}

/// [`fsetxattr(2)`](https://man7.org/linux/man-pages/man2/setxattr.2.html).
///
/// # Errors
/// Those of the call.
pub fn fsetxattr<N: Arg + ?Sized>(fd: BorrowedFd<'_>, name: &N, value: &[u8]) -> Result<()> {
    name.with_c_str("fsetxattr", |c_name| {
        // SAFETY: the name is NUL-terminated; pointer and length describe `value`.
        let returned = unsafe {
            libc::fsetxattr(
                fd.as_raw_fd(),
                c_name.as_ptr(),
                value.as_ptr().cast(),
                value.len(),
                0,
            )
        };
        check("fsetxattr", c_long::from(returned), || {
            format!("{}, {}", fd.as_raw_fd(), name.show())
        })
        .map(drop)
    })
}

/// [`lsetxattr(2)`](https://man7.org/linux/man-pages/man2/setxattr.2.html): of a symbolic link
/// itself. The path is resolved from the working directory.
///
/// # Errors
/// Those of the call.
pub fn lsetxattr<P: Arg + ?Sized, N: Arg + ?Sized>(path: &P, name: &N, value: &[u8]) -> Result<()> {
    path.with_c_str("lsetxattr", |c_path| {
        name.with_c_str("lsetxattr", |c_name| {
            // SAFETY: both strings are NUL-terminated; pointer and length describe `value`.
            let returned = unsafe {
                libc::lsetxattr(
                    c_path.as_ptr(),
                    c_name.as_ptr(),
                    value.as_ptr().cast(),
                    value.len(),
                    0,
                )
            };
            check("lsetxattr", c_long::from(returned), || {
                format!("{}, {}", path.show(), name.show())
            })
            .map(drop)
        })
    })
}

/// Creates a new unnamed-to-others file: `O_CREAT | O_EXCL | O_NOFOLLOW` below `dir`.
///
/// # Errors
/// Those of openat(2).
pub fn create_exclusive<P: Arg + ?Sized>(
    dir: BorrowedFd<'_>,
    name: &P,
    mode: u32,
) -> Result<OwnedFd> {
    openat(
        dir,
        name,
        libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW,
        mode,
    )
}
