//! Deleting trees that an attacker made: any depth, any number, with a handful of descriptors.
//!
//! The walk goes down at most [`MAX_DEPTH`] levels. A directory below that is moved up into the
//! top directory under a new name and deleted from there, so neither descriptors nor stack grow
//! with the tree. Links are unlinked, never followed.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, renameat},
    sys::stat::{Mode, SFlag, fstatat},
    unistd::{UnlinkatFlags, unlinkat},
};

const MAX_DEPTH: usize = 16;
const DIR_FLAGS: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// Deletes the directory `name` in `parent` with all that is in it. What is gone already is fine.
///
/// # Errors
/// Those of the calls.
pub fn remove_below(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let top = match openat(parent, name, DIR_FLAGS, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    let mut moved = 0;
    loop {
        let before = moved;
        empty(top.as_fd(), top.as_fd(), 0, &mut moved)?;
        if moved == before {
            break;
        }
    }
    match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// [`remove_below`] by path; the path's own last component is not followed.
///
/// # Errors
/// Those of the calls.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a path with a name is needed",
        ));
    };
    let parent = std::fs::File::open(parent)?;
    remove_below(parent.as_fd(), name.as_bytes())
}

fn empty(
    dir: BorrowedFd<'_>,
    top: BorrowedFd<'_>,
    depth: usize,
    moved: &mut u64,
) -> io::Result<()> {
    // A second open file description: reading must not disturb the one others use.
    let list = openat(dir, ".", DIR_FLAGS, Mode::empty())?;
    let mut list = Dir::from_fd(list)?;
    for entry in list.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let is_dir = match entry.file_type() {
            Some(kind) => kind == Type::Directory,
            None => match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) => stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits(),
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(errno.into()),
            },
        };
        if is_dir && depth == MAX_DEPTH {
            let aside = CString::new(format!(".crisp-removed-{moved}"))
                .expect("decimal digits hold no NUL");
            *moved += 1;
            match renameat(dir, name, top, aside.as_c_str()) {
                Ok(()) => continue,
                Err(Errno::EEXIST | Errno::ENOTEMPTY) => continue, // the next round takes it
                Err(errno) => return Err(errno.into()),
            }
        }
        if is_dir {
            let below: OwnedFd = openat(dir, name, DIR_FLAGS, Mode::empty())?;
            empty(below.as_fd(), top, depth + 1, moved)?;
            drop(below);
        }
        let flag = if is_dir {
            UnlinkatFlags::RemoveDir
        } else {
            UnlinkatFlags::NoRemoveDir
        };
        match unlinkat(dir, name, flag) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(Errno::ENOTEMPTY) if is_dir => *moved += 1, // listed while it changed: once more
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn deep_wide_and_linked_trees_go_and_nothing_else() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let precious = dir.path().join("precious");
        fs::write(&precious, "x").expect("file");
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).expect("directory");
        symlink(dir.path(), tree.join("link")).expect("link");
        for index in 0..300 {
            fs::write(tree.join(format!("f{index}")), "").expect("file");
        }
        // 3000 levels: far beyond what a path can name.
        let mut at: OwnedFd = fs::File::open(&tree).expect("open").into();
        for _ in 0..3000 {
            nix::sys::stat::mkdirat(&at, "d", Mode::from_bits_truncate(0o700)).expect("mkdir");
            nix::sys::stat::mkdirat(&at, "e", Mode::from_bits_truncate(0o000)).expect("mkdir");
            at = openat(&at, "d", DIR_FLAGS, Mode::empty()).expect("open");
        }
        drop(at);
        remove_tree(&tree).expect("removed");
        assert!(!tree.exists());
        assert!(precious.exists());
        remove_tree(&tree).expect("twice is fine");
    }
}
