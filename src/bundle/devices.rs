//! Device nodes of the host: those a request names, and all of them for privileged containers.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::sys::stat::{major, minor};

use super::{DeviceKind, HostDevice};
use crate::{
    container::spec::DeviceSpec,
    error::{Classify, ErrorKind},
};

/// Most devices of one container; a directory of more is not a directory of devices.
const MAX_DEVICES: usize = 8192;
/// How deep a directory of devices is searched.
const MAX_DEPTH: usize = 8;

/// Why a device cannot be given to a container.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The host path cannot be looked up.
    #[error("config.devices: look up {}", path.display())]
    LookUp {
        /// The host path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host path is no device and no directory.
    #[error("config.devices: {} is neither a device nor a directory of devices", path.display())]
    NotADevice {
        /// The host path.
        path: PathBuf,
    },
    /// The directory has too many.
    #[error("config.devices: more than {MAX_DEVICES} devices")]
    TooMany,
}

impl Classify for DeviceError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::LookUp { source, .. } => match source.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP) => ErrorKind::InvalidArgument,
                _ => ErrorKind::Internal,
            },
            Self::NotADevice { .. } | Self::TooMany => ErrorKind::InvalidArgument,
        }
    }
}

/// Looks up the devices a request names. A symbolic link stands for its target; a directory stands
/// for the devices below it.
///
/// # Errors
/// A path is missing, or is no device.
pub fn resolve(asked: &[DeviceSpec]) -> Result<Vec<HostDevice>, DeviceError> {
    let mut devices = Vec::new();
    for spec in asked {
        let path = Path::new(&spec.host_path);
        let look_up = |source| DeviceError::LookUp {
            path: path.to_owned(),
            source,
        };
        let metadata = fs::metadata(path).map_err(look_up)?;
        if metadata.is_dir() {
            walk(
                path,
                &spec.container_path,
                &spec.permissions,
                0,
                &[],
                &mut devices,
            )?;
        } else {
            let device =
                device(&metadata, &spec.container_path, &spec.permissions).ok_or_else(|| {
                    DeviceError::NotADevice {
                        path: path.to_owned(),
                    }
                })?;
            devices.push(device);
        }
        if devices.len() > MAX_DEVICES {
            return Err(DeviceError::TooMany);
        }
    }
    Ok(devices)
}

/// All device nodes below /dev, for privileged containers: without terminals, which belong to
/// sessions of the host, and without the console, which every container gets as its own.
///
/// # Errors
/// /dev cannot be read, or has too many devices.
pub fn all() -> Result<Vec<HostDevice>, DeviceError> {
    const SKIPPED: [&str; 7] = ["console", "fd", "mqueue", "pts", "shm", ".lxc", ".udev"];
    let mut devices = Vec::new();
    walk(Path::new("/dev"), "/dev", "rwm", 0, &SKIPPED, &mut devices)?;
    Ok(devices)
}

/// Entries that vanish or cannot be looked at meanwhile are left out: devices come and go.
fn walk(
    directory: &Path,
    target: &str,
    permissions: &str,
    depth: usize,
    skipped: &[&str],
    out: &mut Vec<HostDevice>,
) -> Result<(), DeviceError> {
    let look_up = |source| DeviceError::LookUp {
        path: directory.to_owned(),
        source,
    };
    let mut names: Vec<_> = fs::read_dir(directory)
        .map_err(look_up)?
        .flatten()
        .map(|e| e.file_name())
        .collect();
    names.sort();
    for name in names {
        let Some(name) = name.to_str().filter(|name| !skipped.contains(name)) else {
            continue;
        };
        let path = directory.join(name);
        let target = format!("{}/{name}", target.trim_end_matches('/'));
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        if metadata.is_dir() {
            if depth + 1 < MAX_DEPTH {
                walk(&path, &target, permissions, depth + 1, &[], out)?;
            }
        } else if let Some(device) = device(&metadata, &target, permissions) {
            out.push(device);
            if out.len() > MAX_DEVICES {
                return Err(DeviceError::TooMany);
            }
        }
    }
    Ok(())
}

fn device(metadata: &Metadata, path: &str, permissions: &str) -> Option<HostDevice> {
    let kind = if metadata.file_type().is_block_device() {
        DeviceKind::Block
    } else if metadata.file_type().is_char_device() {
        DeviceKind::Char
    } else {
        return None;
    };
    let number = metadata.rdev();
    Some(HostDevice {
        path: path.to_owned(),
        kind,
        major: u32::try_from(major(number)).ok()?,
        minor: u32::try_from(minor(number)).ok()?,
        mode: metadata.permissions().mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        permissions: permissions.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(host_path: &str) -> Vec<DeviceSpec> {
        vec![DeviceSpec {
            container_path: "/dev/mine".into(),
            host_path: host_path.into(),
            permissions: "rw".into(),
        }]
    }

    #[test]
    fn a_device_is_found_by_its_path() {
        let devices = resolve(&asked("/dev/null")).unwrap();
        let expected = (DeviceKind::Char, 1, 3, "/dev/mine", "rw");
        let device = &devices[0];
        let seen = (
            device.kind,
            device.major,
            device.minor,
            &*device.path,
            &*device.permissions,
        );
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_file_is_no_device_and_a_missing_path_is_the_clients_mistake() {
        for path in [
            "/etc/passwd",
            "/etc/passwd/below-a-file",
            "/dev/there-is-no-such-device",
        ] {
            let error = resolve(&asked(path)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        }
    }

    #[test]
    fn a_directory_stands_for_its_devices() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("/dev/null", directory.path().join("link")).unwrap();
        let devices = resolve(&asked(directory.path().to_str().unwrap())).unwrap();
        assert_eq!(devices, [], "neither a file nor a link in it is a device");
    }

    #[test]
    fn all_devices_have_null_and_no_terminals_of_sessions() {
        let devices = all().unwrap();
        assert!(devices.iter().any(|device| device.path == "/dev/null"));
        assert!(
            !devices
                .iter()
                .any(|device| device.path.starts_with("/dev/pts/"))
        );
    }
}
