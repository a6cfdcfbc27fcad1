//! Standard streams and terminals of a process being made.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crisp_sys::Errno;
use crisp_sys::fd;
use crisp_sys::path::{self, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV};
use crisp_sys::tty;

use super::Stdio;

const O_RDWR: i32 = 0o2;
const O_NOCTTY: i32 = 0o400;
const O_NONBLOCK: i32 = 0o4_000;
const O_PATH: i32 = 0o10_000_000;
const AT_EMPTY_PATH: i32 = 0x1000;
const S_IFMT: u32 = 0o170_000;
const S_IFIFO: u32 = 0o010_000;
const S_IFSOCK: u32 = 0o140_000;
const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;

/// A terminal of the container's own devpts.
#[derive(Debug)]
pub(super) struct Terminal {
    pub(super) master: OwnedFd,
    pub(super) peer: OwnedFd,
}

impl Terminal {
    /// Opens a new one below `root`. The image or a program in the container may have put
    /// anything there, so the filesystem and the device are checked before they are used.
    pub(super) fn open(root: BorrowedFd<'_>) -> crisp_sys::Result<Self> {
        let not_devpts = |what: &str| crisp_sys::Error::new("open_terminal", what, Errno::ENODEV);
        let pts = path::openat2(root, c"dev/pts", O_PATH, 0, RESOLVE_NO_SYMLINKS)?;
        if path::filesystem_magic(pts.as_fd())? != DEVPTS_SUPER_MAGIC {
            return Err(not_devpts("/dev/pts is no devpts"));
        }
        let resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV;
        let flags = O_RDWR | O_NOCTTY | O_NONBLOCK;
        let master = path::openat2(pts.as_fd(), c"ptmx", flags, 0, resolve)?;
        if !path::fstat(master.as_fd())?.is_char_device(5, 2) {
            return Err(not_devpts("/dev/pts/ptmx is not the multiplexer"));
        }
        fd::set_nonblocking(master.as_fd(), false)?;
        tty::unlock(master.as_fd())?;
        let peer = tty::peer(master.as_fd())?;
        Ok(Self { master, peer })
    }

    /// Gives it to the user and makes it the session's and the standard streams.
    pub(super) fn install(&self, uid: u32, size: Option<(u16, u16)>) -> crisp_sys::Result<()> {
        self.install_for_another(uid, size)?;
        tty::set_controlling(self.peer.as_fd())
    }

    /// All of that but the session, which is somebody else's to lead.
    pub(super) fn install_for_another(
        &self,
        uid: u32,
        size: Option<(u16, u16)>,
    ) -> crisp_sys::Result<()> {
        if let Some((width, height)) = size {
            tty::set_size(self.master.as_fd(), width, height)?;
        }
        path::fchownat(self.peer.as_fd(), c"", uid, u32::MAX, AT_EMPTY_PATH)?;
        for stream in 0..=2 {
            fd::dup_to_stdio(self.peer.as_fd(), stream)?;
        }
        Ok(())
    }
}

impl Stdio {
    /// Gives them to a user, where that can be.
    pub(super) fn give(&self, uid: u32) -> crisp_sys::Result<()> {
        for stream in [&self.stdin, &self.stdout, &self.stderr] {
            give(stream.as_fd(), uid)?;
        }
        Ok(())
    }

    /// Makes them descriptors 0, 1, 2. Pipes and sockets are given to the user, so that programs
    /// can open them again as /dev/stdout.
    pub(super) fn install(&self, uid: u32) -> crisp_sys::Result<()> {
        let streams = [self.stdin.as_fd(), self.stdout.as_fd(), self.stderr.as_fd()];
        let mut moved = [const { None::<OwnedFd> }; 3];
        for (slot, stream) in moved.iter_mut().zip(streams) {
            // Out of the way of the numbers that are written below.
            if stream.as_raw_fd() <= 2 {
                *slot = Some(fd::dup_above(stream, 3)?);
            }
        }
        for (number, (slot, stream)) in (0..).zip(moved.iter().zip(streams)) {
            let stream = slot.as_ref().map_or(stream, AsFd::as_fd);
            give(stream, uid)?;
            fd::dup_to_stdio(stream, number)?;
        }
        Ok(())
    }
}

fn give(stream: BorrowedFd<'_>, uid: u32) -> crisp_sys::Result<()> {
    let stat = path::fstat(stream)?;
    if stat.uid == uid || !matches!(stat.mode & S_IFMT, S_IFIFO | S_IFSOCK) {
        return Ok(());
    }
    match path::fchownat(stream, c"", uid, u32::MAX, AT_EMPTY_PATH) {
        // Somebody else's filesystem or user namespace: the program has the descriptor anyway.
        Err(error) if matches!(error.errno, Errno::EPERM | Errno::EROFS | Errno::EINVAL) => Ok(()),
        other => other,
    }
}
