//! Overlay mounts that are never attached on the host.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::{MetadataExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
};

use crisp_sys::mount;

use super::apply::RootAttributes;

/// Most layers the kernel stacks.
pub const MAX_LOWERS: usize = 500;
/// fsconfig(2) takes strings of up to 255 bytes.
const MAX_STRING: usize = 255;

/// An overlay could not be made.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// More layers than the kernel stacks.
    #[error("{0} layers, the kernel stacks at most {MAX_LOWERS}")]
    TooManyLayers(usize),
    /// A directory cannot be used.
    #[error("{action} {path}", path = path.display())]
    Directory {
        /// What was tried.
        action: &'static str,
        /// Which one.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A layer cannot be shown with other owners.
    #[error(
        "layer {} cannot be idmapped, its file system or the kernel does not allow it",
        path.display()
    )]
    Idmap {
        /// Which one.
        path: PathBuf,
        /// The call.
        #[source]
        source: crisp_sys::Error,
    },
    /// The kernel refused.
    #[error("overlay mount ({log})")]
    Mount {
        /// What the filesystem said.
        log: String,
        /// The call.
        #[source]
        source: crisp_sys::Error,
    },
}

/// The writable half of an overlay.
#[derive(Debug, Clone, Copy)]
pub struct Upper<'a> {
    /// Where changes go.
    pub upper: &'a Path,
    /// Overlayfs' own directory, on the same file system.
    pub work: &'a Path,
    /// Skip syncing: the content does not survive a power cut, a pod neither.
    pub volatile: bool,
}

/// Makes the directories of a writable half; the upper one gets the attributes of the image's root.
///
/// # Errors
/// [`OverlayError::Directory`].
pub fn make_upper(
    upper: &Path,
    work: &Path,
    root: Option<RootAttributes>,
) -> Result<(), OverlayError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| OverlayError::Directory {
            action,
            path,
            source,
        }
    };
    for path in [upper, work] {
        fs::create_dir_all(path).map_err(failed("make", path))?;
    }
    let root = root.unwrap_or(RootAttributes {
        mode: 0o755,
        uid: 0,
        gid: 0,
    });
    chown(upper, Some(root.uid), Some(root.gid)).map_err(failed("chown", upper))?;
    let mode = fs::Permissions::from_mode(root.mode & 0o7777);
    fs::set_permissions(upper, mode).map_err(failed("chmod", upper))
}

/// Takes away the mark that keeps a `volatile` upper directory from being mounted again: after a
/// restart the content is as good as it was.
///
/// # Errors
/// [`OverlayError::Directory`].
pub fn clear_volatile(work: &Path) -> Result<(), OverlayError> {
    let mark = work.join("work/incompat/volatile");
    match fs::remove_dir_all(&mark) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(OverlayError::Directory {
            action: "remove",
            path: mark,
            source,
        }),
    }
}

/// Makes a detached overlay of `lowers` (top first, at least one) with a writable half, or without
/// one if there are at least two layers. One layer read-only is a detached bind of its directory.
///
/// # Errors
/// [`OverlayError`].
pub fn mount_detached(
    lowers: &[PathBuf],
    upper: Option<Upper<'_>>,
) -> Result<OwnedFd, OverlayError> {
    mount_translated(lowers, upper, None)
}

/// The same with the owners of all layers translated by a user namespace. The overlay itself cannot
/// be (EINVAL), and an upper directory that is makes it read-only without a word: so the layers alone
/// are, each as a detached mount of its own, and the upper directory must belong to the root of the
/// user namespace.
///
/// # Errors
/// [`OverlayError`].
pub fn mount_translated(
    lowers: &[PathBuf],
    upper: Option<Upper<'_>>,
    users: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, OverlayError> {
    if lowers.len() > MAX_LOWERS {
        return Err(OverlayError::TooManyLayers(lowers.len()));
    }
    if let ([only], None) = (lowers, upper) {
        return bind_read_only(only, users);
    }
    let fs = mount::fsopen("overlay").map_err(plain)?;
    let explain = |source| OverlayError::Mount {
        log: mount::fs_log(fs.as_fd()),
        source,
    };
    let mut held = Vec::new(); // descriptors that stand for long paths, open until the mount is made
    let mut by_one = true;
    for lower in lowers {
        let text = match users {
            Some(users) => translated(lower, users, &mut held)?,
            None => short(lower, &mut held)?,
        };
        match mount::fsconfig_set_string(fs.as_fd(), "lowerdir+", text.as_str()) {
            Ok(()) => {}
            // Before Linux 6.8 there is one option for all of them.
            Err(error) if error.errno().0 == libc::EINVAL && held_first(lowers, lower) => {
                by_one = false;
                break;
            }
            Err(error) => return Err(explain(error)),
        }
    }
    if !by_one {
        return legacy(lowers, upper, users);
    }
    finish(&fs, upper, &mut held)
}

fn held_first(lowers: &[PathBuf], lower: &PathBuf) -> bool {
    lowers
        .first()
        .is_some_and(|first| std::ptr::eq(first, lower))
}

/// The old option with all layers joined by colons, which must fit into one string; descriptors
/// make the names short.
fn legacy(
    lowers: &[PathBuf],
    upper: Option<Upper<'_>>,
    users: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, OverlayError> {
    let fs = mount::fsopen("overlay").map_err(plain)?;
    let mut held = Vec::new();
    let names: Vec<String> = lowers
        .iter()
        .map(|lower| match users {
            Some(users) => translated(lower, users, &mut held),
            None => through_descriptor(lower, &mut held),
        })
        .collect::<Result<_, _>>()?;
    let joined = names.join(":");
    if joined.len() > MAX_STRING {
        return Err(OverlayError::TooManyLayers(lowers.len()));
    }
    mount::fsconfig_set_string(fs.as_fd(), "lowerdir", joined.as_str()).map_err(|source| {
        OverlayError::Mount {
            log: mount::fs_log(fs.as_fd()),
            source,
        }
    })?;
    finish(&fs, upper, &mut held)
}

fn finish(
    fs: &OwnedFd,
    upper: Option<Upper<'_>>,
    held: &mut Vec<File>,
) -> Result<OwnedFd, OverlayError> {
    let explain = |source| OverlayError::Mount {
        log: mount::fs_log(fs.as_fd()),
        source,
    };
    mount::fsconfig_set_string(fs.as_fd(), "source", "overlay").map_err(explain)?;
    let mut attributes = mount::MOUNT_ATTR_RDONLY;
    if let Some(Upper {
        upper,
        work,
        volatile,
    }) = upper
    {
        attributes = 0;
        for (key, path) in [("upperdir", upper), ("workdir", work)] {
            let text = short(path, held)?;
            mount::fsconfig_set_string(fs.as_fd(), key, text.as_str()).map_err(explain)?;
        }
        if volatile {
            mount::fsconfig_set_flag(fs.as_fd(), "volatile").map_err(explain)?;
        }
    }
    mount::fsconfig_create(fs.as_fd()).map_err(explain)?;
    mount::fsmount(fs.as_fd(), attributes).map_err(explain)
}

fn plain(source: crisp_sys::Error) -> OverlayError {
    OverlayError::Mount {
        log: "nothing said".into(),
        source,
    }
}

fn bind_read_only(dir: &Path, users: Option<BorrowedFd<'_>>) -> Result<OwnedFd, OverlayError> {
    let tree = match users {
        Some(users) => idmapped(dir, users)?,
        None => clone_of(dir)?,
    };
    let attr = mount::MountAttr {
        set: mount::MOUNT_ATTR_RDONLY,
        ..Default::default()
    };
    mount::mount_setattr(tree.as_fd(), false, &attr).map_err(plain)?;
    Ok(tree)
}

/// A directory as a mount that is attached nowhere.
fn clone_of(dir: &Path) -> Result<OwnedFd, OverlayError> {
    let at = open(dir)?;
    let flags = mount::OPEN_TREE_CLONE | mount::AT_EMPTY_PATH;
    mount::open_tree(at.as_fd(), "", flags).map_err(plain)
}

fn idmapped(dir: &Path, users: BorrowedFd<'_>) -> Result<OwnedFd, OverlayError> {
    let tree = clone_of(dir)?;
    let attr = mount::MountAttr {
        set: mount::MOUNT_ATTR_IDMAP,
        userns: Some(users),
        ..Default::default()
    };
    match mount::mount_setattr(tree.as_fd(), false, &attr) {
        Ok(()) => Ok(tree),
        Err(source) => Err(OverlayError::Idmap {
            path: dir.to_owned(),
            source,
        }),
    }
}

fn translated(
    dir: &Path,
    users: BorrowedFd<'_>,
    held: &mut Vec<File>,
) -> Result<String, OverlayError> {
    let file = File::from(idmapped(dir, users)?);
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    held.push(file);
    Ok(name)
}

fn open(path: &Path) -> Result<File, OverlayError> {
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |source| OverlayError::Directory {
        action: "open",
        path: path.to_owned(),
        source,
    };
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(failed)
}

fn through_descriptor(path: &Path, held: &mut Vec<File>) -> Result<String, OverlayError> {
    let file = open(path)?;
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    held.push(file);
    Ok(name)
}

/// The path itself if it fits, else its descriptor's name. Colons and the like need no escape:
/// `lowerdir+` takes a path as it is.
fn short(path: &Path, held: &mut Vec<File>) -> Result<String, OverlayError> {
    match path.to_str() {
        Some(text) if text.len() <= MAX_STRING && !text.contains(['\\', ',']) => {
            Ok(text.to_owned())
        }
        _ => through_descriptor(path, held),
    }
}

/// The attributes of a directory, for [`make_upper`].
///
/// # Errors
/// The system's.
pub fn attributes_of(path: &Path) -> io::Result<RootAttributes> {
    let meta = fs::symlink_metadata(path)?;
    Ok(RootAttributes {
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
    })
}
