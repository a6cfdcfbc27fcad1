//! Directories that a layer implied but did not list.
//!
//! A layer that ships `tmp/x` without an entry for `tmp` means the `tmp` of the layers below, with
//! its mode and owner. Unpacked alone it got a plain one. Before such a layer is committed, the
//! metadata of the visible directory below is copied up. If what is visible below is a symbolic
//! link, the layer meant to write through it: the content is moved to where the link leads.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat, renameat},
    sys::{
        stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, futimens, mkdirat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat},
};

use super::removal;

const DIR_FLAGS: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);
const MAX_LINKS: usize = 40;
const OPAQUE: &str = "trusted.overlay.opaque";

/// What the layers below show at a path.
enum Below {
    Nothing,
    Directory(OwnedFd),
    Link(Vec<u8>),
}

fn split(path: &[u8]) -> Vec<&[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .collect()
}

/// Opens a directory below `root` without following anything.
fn open_dir(root: BorrowedFd<'_>, parts: &[&[u8]]) -> Result<OwnedFd, Errno> {
    let mut at = openat(root, ".", DIR_FLAGS, Mode::empty())?;
    for part in parts {
        at = openat(&at, *part, DIR_FLAGS, Mode::empty())?;
    }
    Ok(at)
}

fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn is_opaque(dir: &OwnedFd) -> bool {
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    matches!(xattr::get_deref(path, OPAQUE), Ok(Some(value)) if value == b"y")
}

/// Marks directories opaque; `paths` come from the applier's report and are walked without
/// following anything.
///
/// # Errors
/// Those of the calls.
pub fn mark_opaque(layer: BorrowedFd<'_>, paths: &[Vec<u8>]) -> io::Result<()> {
    for path in paths {
        let dir = File::from(open_dir(layer, &split(path))?);
        xattr::FileExt::set_xattr(&dir, OPAQUE, b"y")?;
    }
    Ok(())
}

/// What `path` is in one layer: `Ok(None)` means ask the next one.
fn look(layer: BorrowedFd<'_>, parts: &[&[u8]]) -> io::Result<Option<Below>> {
    let Some((last, parents)) = parts.split_last() else {
        return Ok(Some(Below::Nothing));
    };
    let mut at = openat(layer, ".", DIR_FLAGS, Mode::empty())?;
    let mut hides = false;
    let end = |hides: bool| Ok(hides.then_some(Below::Nothing));
    for part in parents {
        at = match openat(&at, *part, DIR_FLAGS, Mode::empty()) {
            Ok(dir) => dir,
            Err(Errno::ENOENT) => return end(hides),
            // A whiteout or a file: below it nothing is visible.
            Err(Errno::ENOTDIR | Errno::ELOOP) => return Ok(Some(Below::Nothing)),
            Err(errno) => return Err(errno.into()),
        };
        hides |= is_opaque(&at);
    }
    let stat = match fstatat(&at, *last, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::ENOENT) => return end(hides),
        Err(errno) => return Err(errno.into()),
    };
    Ok(Some(match file_type(&stat) {
        SFlag::S_IFDIR => Below::Directory(openat(&at, *last, DIR_FLAGS, Mode::empty())?),
        SFlag::S_IFLNK => Below::Link(readlinkat(&at, *last)?.as_bytes().to_vec()),
        _ => Below::Nothing,
    }))
}

/// A layer below, as the walk needs it.
pub struct Lower<'a> {
    /// Its directory.
    pub dir: BorrowedFd<'a>,
    /// Whether it hides everything further below.
    pub opaque_root: bool,
}

fn visible(lowers: &[Lower<'_>], parts: &[&[u8]]) -> io::Result<Below> {
    for lower in lowers {
        if let Some(found) = look(lower.dir, parts)? {
            return Ok(found);
        }
        if lower.opaque_root {
            break;
        }
    }
    Ok(Below::Nothing)
}

/// Gives the implied directories of `layer` what the layers below (`lowers`, top first) have
/// there. `implied` is sorted, parents first.
///
/// # Errors
/// Those of the calls; [`io::ErrorKind::InvalidData`] if links below lead in circles.
pub fn complete(
    layer: BorrowedFd<'_>,
    implied: &[Vec<u8>],
    lowers: &[Lower<'_>],
) -> io::Result<()> {
    for path in implied {
        let parts = split(path);
        // An earlier link may have moved this one away already.
        let dir = match open_dir(layer, &parts) {
            Ok(dir) => dir,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => continue,
            Err(errno) => return Err(errno.into()),
        };
        match visible(lowers, &parts)? {
            Below::Nothing => {}
            Below::Directory(below) => copy_metadata(&below, &dir)?,
            Below::Link(target) => {
                let real = resolve(lowers, &parts, &target)?;
                if real != parts.concat_path() {
                    relocate(layer, &parts, &real, lowers)?;
                }
            }
        }
    }
    Ok(())
}

trait ConcatPath {
    fn concat_path(&self) -> Vec<u8>;
}

impl ConcatPath for Vec<&[u8]> {
    fn concat_path(&self) -> Vec<u8> {
        self.join(&b'/')
    }
}

/// Follows links of the layers below, inside the root, to a path without links.
fn resolve(lowers: &[Lower<'_>], link: &[&[u8]], target: &[u8]) -> io::Result<Vec<u8>> {
    let mut done: Vec<Vec<u8>> = link[..link.len() - 1].iter().map(|p| p.to_vec()).collect();
    let mut pending: VecDeque<Vec<u8>> = VecDeque::new();
    let push = |target: &[u8], done: &mut Vec<Vec<u8>>, pending: &mut VecDeque<Vec<u8>>| {
        if target.starts_with(b"/") {
            done.clear();
        }
        for part in split(target).into_iter().rev() {
            pending.push_front(part.to_vec());
        }
    };
    push(target, &mut done, &mut pending);
    let mut links = 0;
    while let Some(part) = pending.pop_front() {
        if part == b".." {
            done.pop();
            continue;
        }
        done.push(part);
        let parts: Vec<&[u8]> = done.iter().map(Vec::as_slice).collect();
        if let Below::Link(target) = visible(lowers, &parts)? {
            links += 1;
            if links > MAX_LINKS {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the layers below hold a circle of symbolic links",
                ));
            }
            done.pop();
            push(&target, &mut done, &mut pending);
        }
    }
    Ok(done.join(&b'/'))
}

/// Moves what the layer has at `from` to `to`, making the directories on the way.
fn relocate(
    layer: BorrowedFd<'_>,
    from: &[&[u8]],
    to: &[u8],
    lowers: &[Lower<'_>],
) -> io::Result<()> {
    let source = open_dir(layer, from)?;
    let mut target = openat(layer, ".", DIR_FLAGS, Mode::empty())?;
    let parts = split(to);
    for (index, part) in parts.iter().enumerate() {
        match mkdirat(&target, *part, Mode::from_bits_truncate(0o755)) {
            Ok(()) => {
                target = openat(&target, *part, DIR_FLAGS, Mode::empty())?;
                if let Below::Directory(below) = visible(lowers, &parts[..=index])? {
                    copy_metadata(&below, &target)?;
                }
            }
            Err(Errno::EEXIST) => target = openat(&target, *part, DIR_FLAGS, Mode::empty())?,
            Err(errno) => return Err(errno.into()),
        }
    }
    merge(&source, &target, 0)?;
    let (name, parents) = from.split_last().expect("a link has a name");
    let parent = open_dir(layer, parents)?;
    unlinkat(&parent, *name, UnlinkatFlags::RemoveDir)?;
    Ok(())
}

/// Moves all of `from` into `to`; directories that both have are merged, else the newcomer wins.
fn merge(from: &OwnedFd, to: &OwnedFd, depth: usize) -> io::Result<()> {
    if depth > 256 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a tree too deep to be merged",
        ));
    }
    let mut list = nix::dir::Dir::from_fd(openat(from, ".", DIR_FLAGS, Mode::empty())?)?;
    let names: Vec<_> = list
        .iter()
        .map(|entry| entry.map(|entry| entry.file_name().to_owned()))
        .collect::<Result<_, _>>()?;
    for name in names
        .iter()
        .filter(|name| !matches!(name.to_bytes(), b"." | b".."))
    {
        let both = (
            openat(from, name.as_c_str(), DIR_FLAGS, Mode::empty()),
            openat(to, name.as_c_str(), DIR_FLAGS, Mode::empty()),
        );
        if let (Ok(from_dir), Ok(to_dir)) = both {
            merge(&from_dir, &to_dir, depth + 1)?;
            unlinkat(from, name.as_c_str(), UnlinkatFlags::RemoveDir)?;
            continue;
        }
        match renameat(from, name.as_c_str(), to, name.as_c_str()) {
            Ok(()) => {}
            Err(Errno::ENOTDIR | Errno::EISDIR | Errno::ENOTEMPTY | Errno::EEXIST) => {
                let there = fstatat(to, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
                if file_type(&there) == SFlag::S_IFDIR {
                    removal::remove_below(to.as_fd(), name.to_bytes())?;
                } else {
                    unlinkat(to, name.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
                }
                renameat(from, name.as_c_str(), to, name.as_c_str())?;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn copy_metadata(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let stat = fstat(from)?;
    fchown(
        to,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )?;
    fchmod(to, Mode::from_bits_truncate(stat.st_mode & 0o7777))?;
    let (source, target) = (
        format!("/proc/self/fd/{}", from.as_raw_fd()),
        format!("/proc/self/fd/{}", to.as_raw_fd()),
    );
    for name in xattr::list_deref(&source)? {
        let plain = name.as_bytes().starts_with(b"user.")
            || name.as_bytes().starts_with(b"system.posix_acl_");
        if plain && let Some(value) = xattr::get_deref(&source, &name)? {
            xattr::set_deref(Path::new(&target), OsStr::new(&name), &value)?;
        }
    }
    let time = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    futimens(to, &time, &time)?;
    Ok(())
}
