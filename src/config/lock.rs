//! One daemon per directory: a lock file with the pid of its holder.

use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use crate::{
    error::{Classify, ErrorKind},
    lockfile::{self, LockFailure},
};

/// Why a directory cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon works in it.
    #[error("{} is in use by another daemon{}", dir.display(), pid.map_or_else(String::new, |p| format!(", process {p}")))]
    Held {
        /// The directory.
        dir: PathBuf,
        /// The holder, as far as it could write its pid down.
        pid: Option<u32>,
    },
    /// The directory or its lock file cannot be made.
    #[error("cannot {call} {}", path.display())]
    Prepare {
        /// What was tried.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl Classify for LockError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Held { .. } => ErrorKind::WrongState,
            Self::Prepare { .. } => ErrorKind::Internal,
        }
    }
}

/// A locked directory. The kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

/// Makes `dir` (0711: mapped users of containers pass through the root directory) and locks it.
///
/// # Errors
/// Another process holds it, with its pid; or a file operation failed.
pub fn acquire(dir: &Path) -> Result<DirLock, LockError> {
    let failed = |call, path: &Path| {
        let path = path.to_owned();
        move |source| LockError::Prepare { call, path, source }
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(dir)
        .map_err(failed("make", dir))?;
    let path = dir.join("lock");
    let file = lockfile::take(&path).map_err(|failure| match failure {
        LockFailure::Held(pid) => LockError::Held {
            dir: dir.to_owned(),
            pid,
        },
        LockFailure::Io(call, source) => failed(call, &path)(source),
    })?;
    Ok(DirLock { _file: file })
}
