//! Pins network namespaces below `/run/netns`, where `ip netns` and CNI plugins find them.
//!
//! The one host mount a pod has. It keeps the namespace alive after the pause is gone, so that DEL
//! still finds its interfaces.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{FsType, statfs},
};

use super::error::NetworkError;

/// Where namespaces are pinned on every Linux host.
pub const DIR: &str = "/run/netns";
/// The magic number of the file system of namespaces.
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// Stacked mounts on one pin that are taken off at most.
const MAX_STACKED: usize = 16;

/// Binds the namespace at `DIR/name` and returns the path. A pin of that name that is left from
/// before is replaced. Blocking; for `spawn_blocking`.
///
/// # Errors
/// If the name is not a plain file name or the mount fails; nothing is left then.
pub fn pin(namespace: BorrowedFd<'_>, name: &str) -> Result<PathBuf, NetworkError> {
    pin_in(Path::new(DIR), namespace, name)
}

/// [`pin`] in another directory.
///
/// # Errors
/// As [`pin`].
pub fn pin_in(dir: &Path, namespace: BorrowedFd<'_>, name: &str) -> Result<PathBuf, NetworkError> {
    let path = checked(dir, name)?;
    prepare_dir(dir)?;
    unpin_in(dir, name)?;
    let failed = |action| move |source| error(&path_of(dir, name), action, source);
    // Read by nobody: it is a mount point only.
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(&path)
        .map_err(failed("making the mount point"))?;
    let source = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    let none: Option<&str> = None;
    if let Err(errno) = mount(Some(source.as_str()), &path, none, MsFlags::MS_BIND, none) {
        let _ = fs::remove_file(&path);
        return Err(failed("binding the namespace")(errno.into()));
    }
    Ok(path)
}

/// Takes a pin away; none is fine. Blocking.
///
/// # Errors
/// If the kernel refuses.
pub fn unpin(name: &str) -> Result<(), NetworkError> {
    unpin_in(Path::new(DIR), name)
}

/// [`unpin`] in another directory.
///
/// # Errors
/// As [`unpin`].
pub fn unpin_in(dir: &Path, name: &str) -> Result<(), NetworkError> {
    let path = checked(dir, name)?;
    for _ in 0..MAX_STACKED {
        match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // Not a mount point any more, or no such file.
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(errno) => return Err(error(&path, "unmounting", errno.into())),
        }
    }
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(error(&path, "removing the mount point", source))
        }
        _ => Ok(()),
    }
}

/// Names of pins that begin with `prefix`: recovery compares them with the sandboxes it knows.
///
/// # Errors
/// If the directory exists and cannot be read.
pub fn pins(prefix: &str) -> Result<Vec<String>, NetworkError> {
    pins_in(Path::new(DIR), prefix)
}

/// [`pins`] in another directory.
///
/// # Errors
/// As [`pins`].
pub fn pins_in(dir: &Path, prefix: &str) -> Result<Vec<String>, NetworkError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(error(dir, "listing the directory", source)),
    };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    Ok(names)
}

/// Whether the path is a namespace: a bind of one, or a process's link to one.
#[must_use]
pub fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == FsType(NSFS_MAGIC))
}

/// The pin's name of a sandbox, as `ip netns` lists it.
#[must_use]
pub fn name_of(sandbox: &crate::id::SandboxId) -> String {
    format!("crisp-{}", sandbox.short())
}

/// Where the namespace of a sandbox is pinned.
#[must_use]
pub fn pin_path(sandbox: &crate::id::SandboxId) -> PathBuf {
    Path::new(DIR).join(name_of(sandbox))
}

fn path_of(dir: &Path, name: &str) -> PathBuf {
    dir.join(name)
}

fn checked(dir: &Path, name: &str) -> Result<PathBuf, NetworkError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=255).contains(&name.len()) && !name.starts_with('.') && name.chars().all(legal) {
        Ok(dir.join(name))
    } else {
        Err(NetworkError::Request {
            field: "namespace name",
            problem: format!("{:?} is not one", name.chars().take(80).collect::<String>()),
        })
    }
}

/// Makes the directory a shared mount of its own, as `ip netns add` does: pins then appear and
/// disappear in the mount namespaces of those who hold the directory (CNI daemons in pods), and
/// never stay busy in a copy. Done once per boot; a shared directory is left as it is.
fn prepare_dir(dir: &Path) -> Result<(), NetworkError> {
    let failed = |action| move |source: io::Error| error(dir, action, source);
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .map_err(failed("making the directory"))?;
    // The same lock as ip takes: two who bind the directory onto itself at once would stack it.
    let handle = File::open(dir).map_err(failed("opening the directory"))?;
    let _lock = Flock::lock(handle, FlockArg::LockExclusive)
        .map_err(|(_, errno)| failed("locking the directory")(errno.into()))?;
    let none: Option<&str> = None;
    let share = || mount(none, dir, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
    match share() {
        Ok(()) => Ok(()),
        // Not a mount point yet.
        Err(Errno::EINVAL) => mount(
            Some(dir),
            dir,
            none,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            none,
        )
        .and_then(|()| share())
        .map_err(|errno| failed("making the directory a shared mount")(errno.into())),
        Err(errno) => Err(failed("making the directory a shared mount")(errno.into())),
    }
}

fn error(path: &Path, action: &'static str, source: io::Error) -> NetworkError {
    NetworkError::Namespace {
        path: path.to_path_buf(),
        action,
        source,
    }
}
