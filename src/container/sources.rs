//! Looks up the host side of a container's mounts.

use std::{fs, io, path::PathBuf};

use super::spec::MountSpec;
use crate::{
    bundle::MountSource,
    error::{Classify, ErrorKind},
};

/// A mount whose source cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("config.mounts[{index}].host_path: {} must be an existing path of the host", path.display())]
pub struct SourceError {
    /// Which of the mounts.
    pub index: usize,
    /// The path asked for.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl Classify for SourceError {
    fn kind(&self) -> ErrorKind {
        match self.source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::InvalidArgument,
            _ if self.source.raw_os_error() == Some(libc::ELOOP) => ErrorKind::InvalidArgument,
            _ => ErrorKind::Internal,
        }
    }
}

/// The real path of every mount's source. Symbolic links of the host are followed here: the mount is
/// of what they lead to (CRI, `Mount.host_path`), and a missing source is an error.
///
/// # Errors
/// The first source that cannot be looked up.
pub fn resolve(mounts: &[MountSpec]) -> Result<Vec<MountSource>, SourceError> {
    let real = |(index, mount): (usize, &MountSpec)| {
        let path = PathBuf::from(&mount.host_path);
        match fs::canonicalize(&path) {
            Ok(path) => Ok(MountSource { path }),
            Err(source) => Err(SourceError {
                index,
                path,
                source,
            }),
        }
    };
    mounts.iter().enumerate().map(real).collect()
}
