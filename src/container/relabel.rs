//! SELinux labels of volumes: a volume that a client asks to relabel gets the container's label,
//! with everything in it. On a host without SELinux labels mean nothing and are ignored, as every
//! runtime has it.
//!
//! What is to be done is decided by looking at the volume's root alone: one that has the label keeps
//! it, since a walk of a large volume takes minutes and its files were made under that label. What
//! the host itself lives from is never relabelled, whoever asks: a label of containers on /usr or
//! /etc takes the machine down.

use std::{
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

use crisp_sys::path::{self, RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS};

use super::spec::MountSpec;
use crate::{
    bundle::MountSource,
    error::{Classify, ErrorKind},
};

const ATTRIBUTE: &str = "security.selinux";
/// Deeper than any volume that was made on purpose.
const MAX_DEPTH: usize = 256;

/// Directories that are the host's, while what lies in them may be a pod's.
const HOST_ITSELF: [&str; 19] = [
    "/",
    "/etc",
    "/home",
    "/media",
    "/mnt",
    "/opt",
    "/root",
    "/run",
    "/srv",
    "/tmp",
    "/var",
    "/var/cache",
    "/var/lib",
    "/var/log",
    "/var/run",
    "/var/spool",
    "/var/tmp",
    "/etc/passwd",
    "/etc/shadow",
];
/// Directories that are the host's with all that is in them.
const HOST_TREES: [&str; 11] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc/pki",
    "/etc/selinux",
    "/lib",
    "/lib64",
    "/proc",
    "/sbin",
    "/sys",
    "/usr",
];

/// Why a volume was not relabelled.
#[derive(Debug, thiserror::Error)]
pub enum RelabelError {
    /// The host lives from it.
    #[error(
        "config.mounts[{index}].selinux_relabel: {} belongs to the host and is never relabelled",
        path.display()
    )]
    Host {
        /// Which of the mounts.
        index: usize,
        /// What.
        path: PathBuf,
    },
    /// The label could not be read or written.
    #[error("config.mounts[{index}].selinux_relabel: cannot relabel {}", path.display())]
    Io {
        /// Which of the mounts.
        index: usize,
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Classify for RelabelError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Host { .. } => ErrorKind::InvalidArgument,
            Self::Io { .. } => ErrorKind::Internal,
        }
    }
}

/// What becomes of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    /// Nothing.
    Keep,
    /// It and all in it get the label.
    Relabel,
    /// It must not be touched.
    Refuse,
}

/// What a volume's root has for a label.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Label {
    /// This one.
    Is(Vec<u8>),
    /// None yet.
    None,
    /// Its file system has none.
    Unsupported,
}

fn decide(path: &Path, label: &Label, wanted: &str) -> Decision {
    let is_host = HOST_ITSELF.iter().any(|known| path == Path::new(known))
        || HOST_TREES.iter().any(|tree| path.starts_with(tree));
    match label {
        _ if is_host => Decision::Refuse,
        Label::Unsupported => Decision::Keep,
        // The kernel may tell the terminating NUL along with it.
        Label::Is(label) if label.strip_suffix(b"\0").unwrap_or(label) == wanted.as_bytes() => {
            Decision::Keep
        }
        Label::Is(_) | Label::None => Decision::Relabel,
    }
}

/// Relabels the volumes that ask for it. Without a label there is nothing to do: the host has no
/// SELinux, or the container no context.
///
/// # Errors
/// The first volume that cannot be.
pub fn volumes(
    mounts: &[MountSpec],
    sources: &[MountSource],
    label: Option<&str>,
) -> Result<(), RelabelError> {
    let Some(label) = label else {
        return Ok(());
    };
    for (index, (mount, source)) in mounts.iter().zip(sources).enumerate() {
        // An image is read-only and of all who use it.
        if !mount.selinux_relabel || mount.image.is_some() {
            continue;
        }
        let path = source.path.clone();
        let failed = |source| RelabelError::Io {
            index,
            path: path.clone(),
            source,
        };
        let has = label_of(&source.path).map_err(failed)?;
        match decide(&source.path, &has, label) {
            Decision::Keep => {}
            Decision::Refuse => return Err(RelabelError::Host { index, path }),
            Decision::Relabel => relabel(&source.path, label.as_bytes()).map_err(failed)?,
        }
    }
    Ok(())
}

fn label_of(path: &Path) -> io::Result<Label> {
    match xattr::get(path, ATTRIBUTE) {
        Ok(Some(label)) => Ok(Label::Is(label)),
        Ok(None) => Ok(Label::None),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Label::Unsupported),
        Err(error) => Err(error),
    }
}

/// The content first, the root last: a walk that was cut short is done again.
fn relabel(root: &Path, label: &[u8]) -> io::Result<()> {
    if fs::symlink_metadata(root)?.is_dir() {
        let directory: OwnedFd = fs::File::open(root)?.into();
        let device = path::fstat(directory.as_fd())?.dev;
        tree(&directory, device, label, 0)?;
    }
    xattr::set(root, ATTRIBUTE, label)
}

/// Whoever may write to the volume may change it meanwhile; so a name is only ever looked up in a
/// directory that is open, and no link is followed. Other file systems mounted in it stay as they are.
fn tree(directory: &OwnedFd, device: u64, label: &[u8], depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("the volume is too deep"));
    }
    let here = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    for entry in fs::read_dir(&here)? {
        let name = entry?.file_name();
        let place = here.join(&name);
        let about = match fs::symlink_metadata(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            about => about?,
        };
        if about.dev() != device {
            continue;
        }
        if about.is_dir()
            && let Some(below) = enter(directory, &name)?
        {
            tree(&below, device, label, depth + 1)?;
        }
        match xattr::set(&place, ATTRIBUTE, label) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            set => set?,
        }
    }
    Ok(())
}

/// A directory below another one, unless it is gone or something else by now.
fn enter(directory: &OwnedFd, name: &OsStr) -> io::Result<Option<OwnedFd>> {
    let resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS;
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    match path::openat2(directory.as_fd(), name.as_bytes(), flags, 0, resolve) {
        Ok(below) => Ok(Some(below)),
        Err(error)
            if matches!(
                error.raw_os_error(),
                libc::ENOENT | libc::ENOTDIR | libc::ELOOP
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::spec::Propagation;

    const WANTED: &str = "system_u:object_r:container_file_t:s0:c1,c2";

    #[test]
    fn the_root_decides_and_the_host_is_never_touched() {
        let is = |label: &str| Label::Is(label.as_bytes().to_vec());
        let pods = "/var/lib/kubelet/pods/1/volumes/v";
        for (path, label, expected) in [
            (pods, is(WANTED), Decision::Keep),
            (pods, is(&format!("{WANTED}\0")), Decision::Keep),
            (
                pods,
                is("system_u:object_r:var_lib_t:s0"),
                Decision::Relabel,
            ),
            (
                pods,
                is("system_u:object_r:container_file_t:s0:c1,c3"),
                Decision::Relabel,
            ),
            (pods, Label::None, Decision::Relabel),
            (pods, Label::Unsupported, Decision::Keep),
            ("/", is(WANTED), Decision::Refuse),
            ("/", Label::None, Decision::Refuse),
            ("/etc", Label::None, Decision::Refuse),
            ("/etc/app", Label::None, Decision::Relabel),
            ("/etc/pki/tls", Label::None, Decision::Refuse),
            ("/usr", Label::None, Decision::Refuse),
            ("/usr/share/data", Label::None, Decision::Refuse),
            ("/usrdata", Label::None, Decision::Relabel),
            ("/proc/sys", Label::Unsupported, Decision::Refuse),
            ("/var", Label::None, Decision::Refuse),
            ("/var/lib", Label::None, Decision::Refuse),
            ("/var/lib/app", Label::None, Decision::Relabel),
            ("/home", Label::None, Decision::Refuse),
            ("/home/app", Label::None, Decision::Relabel),
            ("/srv/data", Label::None, Decision::Relabel),
        ] {
            let path = Path::new(path);
            assert_eq!(decide(path, &label, WANTED), expected, "{path:?} {label:?}");
        }
    }

    fn asked(relabel: bool) -> MountSpec {
        MountSpec {
            container_path: "/v".into(),
            host_path: "/v".into(),
            image: None,
            options: Vec::new(),
            readonly: false,
            recursive_read_only: false,
            selinux_relabel: relabel,
            propagation: Propagation::Private,
            uid_mappings: Vec::new(),
            gid_mappings: Vec::new(),
        }
    }

    #[test]
    fn a_volume_is_relabelled_whole_and_links_lead_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("outside");
        let volume = directory.path().join("volume");
        fs::create_dir_all(volume.join("a/b")).unwrap();
        fs::write(&outside, "").unwrap();
        fs::write(volume.join("a/b/file"), "").unwrap();
        std::os::unix::fs::symlink(&outside, volume.join("a/link")).unwrap();
        std::os::unix::fs::symlink("/", volume.join("a/root")).unwrap();
        let source = MountSource {
            path: volume.clone(),
        };
        let sources = [source];
        let of = |path: &Path| xattr::get(path, ATTRIBUTE).unwrap();
        // Nobody asked, or nothing to give.
        volumes(&[asked(false)], &sources, Some(WANTED)).unwrap();
        volumes(&[asked(true)], &sources, None).unwrap();
        assert_eq!(of(&volume), None);
        volumes(&[asked(true)], &sources, Some(WANTED)).unwrap();
        for path in ["", "a", "a/b", "a/b/file"] {
            let label = of(&volume.join(path)).expect(path);
            assert_eq!(label, WANTED.as_bytes(), "{path}");
        }
        assert_eq!(of(&outside), None, "a link leads out of the volume");
        // Its root has the label: what is in it is left alone.
        xattr::set(volume.join("a"), ATTRIBUTE, b"other").unwrap();
        volumes(&[asked(true)], &sources, Some(WANTED)).unwrap();
        assert_eq!(of(&volume.join("a")).unwrap(), b"other");
        let host = MountSource {
            path: "/usr/lib".into(),
        };
        let error = volumes(&[asked(true)], &[host], Some(WANTED)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("config.mounts[0]"), "{error}");
    }
}
