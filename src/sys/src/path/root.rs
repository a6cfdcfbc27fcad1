//! [`Root`]: lookups that cannot leave a tree.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{
    RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, fstat, mkdirat, openat, openat2, openat2_errno,
    readlinkat,
};
use crate::arg::{Arg, MAX};
use crate::error::{Errno, Error, Result};

/// How many dangling symbolic links [`Root::mkdir_all_in_root`] follows, as the kernel does.
const LINKS: u32 = 40;

/// The root of a tree that somebody else may change at any time: a container's filesystem, a
/// volume. Every lookup takes the root for `/`, whatever links and `..` say, and never passes
/// through procfs's magic links.
#[derive(Debug)]
pub struct Root {
    dir: OwnedFd,
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Root {
    /// Opens the directory at `path`, which is trusted and may hold links.
    ///
    /// # Errors
    /// Those of openat(2); `ENOTDIR`.
    pub fn open<P: Arg + ?Sized>(path: &P) -> Result<Self> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        openat(crate::fd::CWD, path, flags, 0).map(|dir| Self { dir })
    }

    /// Takes an open directory (or detached mount) for the root.
    #[must_use]
    pub const fn from_fd(dir: OwnedFd) -> Self {
        Self { dir }
    }

    /// The descriptor.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.dir
    }

    /// Opens an existing file.
    ///
    /// # Errors
    /// Those of openat2(2).
    pub fn open_in_root<P: Arg + ?Sized>(&self, path: &P, flags: i32) -> Result<OwnedFd> {
        let resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
        openat2(self.as_fd(), path, flags, 0, resolve)
    }

    /// Opens an existing file; `None` where there is none.
    ///
    /// # Errors
    /// Those of openat2(2), except `ENOENT` and `ENOTDIR`.
    pub fn find_in_root<P: Arg + ?Sized>(&self, path: &P, flags: i32) -> Result<Option<OwnedFd>> {
        let resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
        path.with_c_str("openat2", |c_path| {
            match openat2_errno(self.as_fd(), c_path, flags, 0, resolve) {
                Ok(fd) => Ok(Some(fd)),
                Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
                Err(errno) => {
                    let args = format!("{}, {}, in root", self.as_fd().as_raw_fd(), path.show());
                    Err(Error::new("openat2", args, errno))
                }
            }
        })
    }

    /// Like [`Root::find_in_root`], but a file that is no directory is `ENOTDIR`.
    fn find_dir<P: Arg + ?Sized>(&self, path: &P) -> Result<Option<OwnedFd>> {
        let resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        path.with_c_str("openat2", |c_path| {
            match openat2_errno(self.as_fd(), c_path, flags, 0, resolve) {
                Ok(fd) => Ok(Some(fd)),
                Err(Errno::ENOENT) => Ok(None),
                Err(errno) => {
                    let args = format!("{}, {}, in root", self.as_fd().as_raw_fd(), path.show());
                    Err(Error::new("openat2", args, errno))
                }
            }
        })
    }

    /// Makes the directory `path` and all missing ones above it with `mode`, and opens it
    /// (`O_PATH`). Dangling symbolic links are followed and their targets made, inside the root.
    ///
    /// # Errors
    /// Those of openat2(2) and mkdirat(2); `ENOTDIR`, `ELOOP`, `ENAMETOOLONG`.
    pub fn mkdir_all_in_root(&self, path: &Path, mode: u32) -> Result<OwnedFd> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        if let Some(found) = self.find_dir(path)? {
            return Ok(found);
        }
        let mut walk = Walk::new(path)?;
        let mut links = 0;
        'again: loop {
            let mut parent: Option<OwnedFd> = None;
            let mut end = 0;
            while let Some(component) = walk.next_component(end) {
                let at = parent.as_ref().map_or(self.as_fd(), AsFd::as_fd);
                let prefix = walk.prefix(component.1);
                match self.find_dir(prefix)? {
                    Some(fd) => parent = Some(fd),
                    None => {
                        let name = walk.slice(component);
                        match mkdirat(at, name, mode) {
                            Err(error) if error.errno == Errno::EEXIST => {
                                links += 1;
                                if links > LINKS {
                                    let shown = format!("{:?}", path.display());
                                    return Err(Error::new("mkdir_all", shown, Errno::ELOOP));
                                }
                                walk.splice_link(at, component)?;
                                continue 'again;
                            }
                            made => made?,
                        }
                        parent = Some(openat(at, name, flags | libc::O_NOFOLLOW, 0)?);
                    }
                }
                end = component.1;
            }
            return match parent {
                Some(dir) => Ok(dir),
                None => self.open_in_root(c".", flags),
            };
        }
    }

    /// Makes the file `path` with `mode`, empty, and what is missing above it with mode 0755; an
    /// existing file of any type but a directory is left as it is. Returns it opened `O_PATH`.
    ///
    /// # Errors
    /// `EISDIR` where a directory is; those of openat2(2).
    pub fn create_file_in_root(&self, path: &Path, mode: u32) -> Result<OwnedFd> {
        let mut made = false;
        loop {
            let found = if made {
                Some(self.open_in_root(path, libc::O_PATH)?)
            } else {
                self.find_in_root(path, libc::O_PATH)?
            };
            if let Some(fd) = found {
                if fstat(fd.as_fd())?.is_dir() {
                    let shown = format!("{:?}", path.display());
                    return Err(Error::new("create_file", shown, Errno::EISDIR));
                }
                return Ok(fd);
            }
            made = true;
            let (parent, name) = self.parent_in_root(path, 0o755)?;
            match openat(
                parent.as_fd(),
                name,
                libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW,
                mode,
            ) {
                // Something is there that opening did not find: a dangling link, or a race.
                Err(error) if error.errno == Errno::EEXIST => {
                    let resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
                    openat2(self.as_fd(), path, libc::O_CREAT, mode, resolve)?;
                }
                other => drop(other?),
            }
        }
    }

    /// The directory that holds the last component of `path`, made with `mode` where missing, and
    /// that component's name.
    ///
    /// # Errors
    /// `EINVAL` if the path has no last component (`/`, `..`); those of
    /// [`Root::mkdir_all_in_root`].
    pub fn parent_in_root<'p>(
        &self,
        path: &'p Path,
        mode: u32,
    ) -> Result<(OwnedFd, &'p std::ffi::OsStr)> {
        let Some(name) = path.file_name() else {
            return Err(Error::new(
                "parent",
                format!("{:?}", path.display()),
                Errno::EINVAL,
            ));
        };
        let parent = path.parent().unwrap_or(Path::new("/"));
        let parent = if parent.as_os_str().is_empty() {
            Path::new("/")
        } else {
            parent
        };
        Ok((self.mkdir_all_in_root(parent, mode)?, name))
    }
}

/// A path being walked component by component, in a buffer of its own because links are spliced
/// into it. Positions are byte ranges, so nothing is allocated.
struct Walk {
    bytes: [u8; MAX],
    length: usize,
}

impl Walk {
    fn new(path: &Path) -> Result<Self> {
        let mut walk = Self {
            bytes: [0; MAX],
            length: 0,
        };
        walk.push(path.as_os_str().as_bytes())?;
        Ok(walk)
    }

    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        let end = self.length + bytes.len();
        if end >= MAX {
            return Err(Error::new("mkdir_all", String::new(), Errno::ENAMETOOLONG));
        }
        self.bytes[self.length..end].copy_from_slice(bytes);
        self.length = end;
        Ok(())
    }

    fn next_component(&self, from: usize) -> Option<(usize, usize)> {
        let rest = &self.bytes[from..self.length];
        let start = from + rest.iter().position(|byte| *byte != b'/')?;
        let rest = &self.bytes[start..self.length];
        let end = rest
            .iter()
            .position(|byte| *byte == b'/')
            .map_or(self.length, |at| start + at);
        Some((start, end))
    }

    fn slice(&self, (start, end): (usize, usize)) -> &[u8] {
        &self.bytes[start..end]
    }

    fn prefix(&self, end: usize) -> &[u8] {
        &self.bytes[..end]
    }

    /// Replaces the component, a symbolic link in the directory `at`, by what it says.
    fn splice_link(&mut self, at: BorrowedFd<'_>, (start, end): (usize, usize)) -> Result<()> {
        let mut target = [0; MAX];
        let target = readlinkat(at, &self.bytes[start..end], &mut target)?;
        let old = Self {
            bytes: self.bytes,
            length: self.length,
        };
        self.length = if target.first() == Some(&b'/') {
            0
        } else {
            start
        };
        self.push(target)?;
        self.push(&old.bytes[end..old.length])
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;
    use crate::path::{filesystem_magic, is_mount_root, mount_id};

    struct Tree {
        _top: tempfile::TempDir,
        top: std::path::PathBuf,
        root: Root,
    }

    /// A tree `top/root` with a neighbour `top/outside` that must never change.
    fn tree() -> Tree {
        let dir = tempfile::tempdir().expect("tempdir");
        let top = dir.path().to_path_buf();
        fs::create_dir(top.join("root")).expect("mkdir");
        fs::create_dir(top.join("outside")).expect("mkdir");
        let root = Root::open(&top.join("root")).expect("open");
        Tree {
            _top: dir,
            top,
            root,
        }
    }

    fn assert_untouched(tree: &Tree) {
        assert_eq!(
            fs::read_dir(tree.top.join("outside"))
                .expect("readdir")
                .count(),
            0
        );
    }

    #[test]
    fn links_and_dots_cannot_leave_the_root() {
        let tree = tree();
        let outside = tree.top.join("outside");
        symlink(&outside, tree.top.join("root/abs")).expect("symlink");
        symlink("../../outside", tree.top.join("root/rel")).expect("symlink");
        for path in ["/abs/x/y", "/rel/x/y", "/../../outside/x", "../outside/z"] {
            tree.root
                .mkdir_all_in_root(Path::new(path), 0o755)
                .expect("made inside");
            assert_untouched(&tree);
        }
        assert!(tree.top.join("root/outside/x").is_dir());
        let inside = tree
            .top
            .join("root")
            .join(outside.strip_prefix("/").expect("absolute"));
        assert!(inside.join("x/y").is_dir());
    }

    #[test]
    fn dangling_link_is_followed_inside() {
        let tree = tree();
        symlink("/run", tree.top.join("root/varrun")).expect("symlink");
        tree.root
            .mkdir_all_in_root(Path::new("varrun/secrets"), 0o755)
            .expect("mkdir");
        assert!(tree.top.join("root/run/secrets").is_dir());
        symlink("new/file", tree.top.join("root/flink")).expect("symlink");
        fs::create_dir(tree.top.join("root/new")).expect("mkdir");
        tree.root
            .create_file_in_root(Path::new("/flink"), 0o644)
            .expect("create");
        assert!(tree.top.join("root/new/file").is_file());
    }

    #[test]
    fn link_loops_and_files_in_the_way_are_errors() {
        let tree = tree();
        symlink("b", tree.top.join("root/a")).expect("symlink");
        symlink("a", tree.top.join("root/b")).expect("symlink");
        let looped = tree
            .root
            .mkdir_all_in_root(Path::new("a/x"), 0o755)
            .unwrap_err();
        assert_eq!(looped.errno(), Errno::ELOOP);
        fs::write(tree.top.join("root/file"), b"").expect("write");
        let error = tree
            .root
            .mkdir_all_in_root(Path::new("file/x"), 0o755)
            .unwrap_err();
        assert_eq!(error.errno(), Errno::ENOTDIR);
        let error = tree
            .root
            .create_file_in_root(Path::new("/"), 0o644)
            .unwrap_err();
        assert_eq!(error.errno(), Errno::EISDIR);
    }

    #[test]
    fn magic_links_are_refused() {
        let root = Root::open("/").expect("open");
        let error = root
            .open_in_root("/proc/self/root/etc", libc::O_PATH)
            .unwrap_err();
        assert_eq!(error.errno(), Errno::ELOOP);
    }

    #[test]
    fn files_are_made_once_and_kept() {
        let tree = tree();
        tree.root
            .create_file_in_root(Path::new("/etc/deep/hosts"), 0o644)
            .expect("create");
        fs::write(tree.top.join("root/etc/deep/hosts"), b"kept").expect("write");
        let fd = tree
            .root
            .create_file_in_root(Path::new("etc/deep/hosts"), 0o600)
            .expect("open");
        let stat = fstat(fd.as_fd()).expect("stat");
        assert!(stat.is_file() && stat.size == 4);
        let meta = fs::metadata(tree.top.join("root/etc/deep/hosts")).expect("stat");
        assert_eq!((meta.ino(), meta.dev()), (stat.ino, stat.dev));
    }

    #[test]
    fn null_is_known_by_its_numbers() {
        let null = openat(crate::fd::CWD, "/dev/null", libc::O_PATH, 0).expect("open");
        assert!(fstat(null.as_fd()).expect("stat").is_char_device(1, 3));
        let proc = openat(crate::fd::CWD, "/proc", libc::O_PATH, 0).expect("open");
        assert_eq!(filesystem_magic(proc.as_fd()).expect("statfs"), 0x9fa0);
        assert_ne!(
            mount_id(proc.as_fd()).expect("statx"),
            mount_id(null.as_fd()).expect("statx")
        );
    }

    #[test]
    fn the_root_of_a_mount_is_told_from_a_directory() {
        for (path, expected) in [("/proc", true), ("/proc/self", false)] {
            let fd = openat(crate::fd::CWD, path, libc::O_PATH, 0).expect("open");
            assert_eq!(is_mount_root(fd.as_fd()), Ok(expected), "{path}");
        }
    }
}
