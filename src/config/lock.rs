//! One daemon per directory: a lock file with the pid of its holder.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::error::{Classify, ErrorKind};

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
/// The pid in a lock file means nothing unless the lock is held, so a stale one is harmless.
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
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(&path)
        .map_err(failed("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            let mut text = String::new();
            let _ = (&file).take(16).read_to_string(&mut text);
            return Err(LockError::Held {
                dir: dir.to_owned(),
                pid: text.trim().parse().ok(),
            });
        }
        Err(fs::TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
    }
    // On a full disk the pid is missing; the lock holds all the same.
    let _ = file.set_len(0).and_then(|()| file.rewind());
    let _ = writeln!(file, "{}", std::process::id());
    Ok(DirLock { _file: file })
}
