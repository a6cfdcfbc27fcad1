//! A procfs of our own, attached nowhere: nothing an image or a volume put over /proc can stand
//! between a write and the kernel.

use std::os::fd::{AsFd, OwnedFd};

use crisp_sys::fd::CWD;
use crisp_sys::mount;
use crisp_sys::path::{
    self, RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV,
};

const O_RDONLY: i32 = 0;
const O_WRONLY: i32 = 1;
const O_PATH: i32 = 0o10_000_000;
const O_DIRECTORY: i32 = 0o200_000;
const PROC_SUPER_MAGIC: u64 = 0x9fa0;

/// Its root.
#[derive(Debug)]
pub(super) struct Procfs(OwnedFd);

impl Procfs {
    /// A mount of our own, showing the PID namespace we are in.
    pub(super) fn open() -> crisp_sys::Result<Self> {
        let fs = mount::fsopen("proc")?;
        mount::fsconfig_create(fs.as_fd())?;
        mount::fsmount(fs.as_fd(), 0).map(Self)
    }

    /// The host's, for who has not yet left it: a mount of one's own costs a tenth of an exec.
    /// `self` in it is the caller, also in a PID namespace of a container.
    pub(super) fn of_host() -> crisp_sys::Result<Self> {
        let flags = O_PATH | O_DIRECTORY;
        let root = path::openat2(CWD, c"/proc", flags, 0, RESOLVE_NO_SYMLINKS)?;
        if path::filesystem_magic(root.as_fd())? != PROC_SUPER_MAGIC {
            let what = "/proc is no procfs";
            return Err(crisp_sys::Error::new(
                "open",
                what,
                crisp_sys::Errno::ENODEV,
            ));
        }
        Ok(Self(root))
    }

    fn file(&self, file: &[u8], flags: i32) -> crisp_sys::Result<OwnedFd> {
        let resolve = RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS;
        path::openat2(self.0.as_fd(), file, flags, 0, resolve)
    }

    /// Writes a file in one go, as procfs wants it.
    pub(super) fn write(&self, file: &[u8], bytes: &[u8]) -> crisp_sys::Result<()> {
        let fd = self.file(file, O_WRONLY)?;
        crisp_sys::fd::write_all(fd.as_fd(), bytes)
    }

    /// Writes two pieces as one, which must fit 1 KiB.
    pub(super) fn write_pair(&self, file: &[u8], a: &[u8], b: &[u8]) -> crisp_sys::Result<()> {
        let mut buffer = [0; 1024];
        let length = a.len() + b.len();
        if length > buffer.len() {
            return Err(crisp_sys::Error::new(
                "write",
                "too long",
                crisp_sys::Errno::E2BIG,
            ));
        }
        buffer[..a.len()].copy_from_slice(a);
        buffer[a.len()..length].copy_from_slice(b);
        self.write(file, &buffer[..length])
    }

    /// Reads a small file.
    pub(super) fn read<'b>(
        &self,
        file: &[u8],
        buffer: &'b mut [u8],
    ) -> crisp_sys::Result<&'b [u8]> {
        let fd = self.file(file, O_RDONLY)?;
        let count = crisp_sys::fd::read_full(fd.as_fd(), buffer)?;
        Ok(&buffer[..count])
    }
}
