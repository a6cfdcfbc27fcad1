//! The small `record` file next to an object: what the store forgets, this file still knows.
//!
//! Written by rename and not synced: it must survive the daemon, not a power cut, which ends every
//! pod anyway. A file that such a cut tore is a typed error, never a wrong record.
//!
//! Format: `crisprec`, length of the body as u64 LE, then the envelope of the store (schema, CRC32,
//! JSON body). The length is there so that a cut is told apart from an altered byte.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::{Record, StoreError, envelope, table};
use crate::error::{Classify, ErrorKind};

const MAGIC: &[u8; 8] = b"crisprec";
const PREFIX: usize = 16;
/// Largest record file in bytes.
pub const MAX_FILE: usize = 4 * 1024 * 1024;

/// Why a record file cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordFileError {
    /// There is none.
    #[error("there is no record {}", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("cannot {call} the record {}", path.display())]
    Io {
        /// Which operation.
        call: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It is larger than [`MAX_FILE`].
    #[error("the record {} has {size} bytes, at most {MAX_FILE} are allowed", path.display())]
    TooLarge {
        /// Which one.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// It is not a regular file.
    #[error("the record {} is not a regular file", path.display())]
    NotRegular {
        /// Which one.
        path: PathBuf,
    },
    /// It ends too early: a power cut.
    #[error("the record {} is torn: {found} of {expected} bytes", path.display())]
    Torn {
        /// Which one.
        path: PathBuf,
        /// Bytes there.
        found: usize,
        /// Bytes that should be there.
        expected: usize,
    },
    /// It is whole but not what was written.
    #[error("the record {} is damaged: {reason}", path.display())]
    Damaged {
        /// Which one.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// Its body is of a schema or shape this build does not understand, or it does not encode.
    #[error("cannot make sense of the record {}", path.display())]
    Body {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<StoreError>,
    },
}

impl RecordFileError {
    /// Whether there was no room for it.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        let Self::Io { source, .. } = self else {
            return false;
        };
        matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
    }

    /// Whether there will be no room for it however often it is tried.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::TooLarge { .. })
    }
}

impl Classify for RecordFileError {
    fn kind(&self) -> ErrorKind {
        match self {
            _ if self.is_no_space() => ErrorKind::Exhausted,
            // Of what a client asked for.
            Self::TooLarge { .. } => ErrorKind::InvalidArgument,
            _ => ErrorKind::Internal,
        }
    }
}

/// Writes a record, replacing the one before it as a whole. Readers see the old or the new one.
///
/// # Errors
/// The record is too large or does not encode, or a file operation failed; the old record stays.
pub fn write<T: Record>(path: &Path, record: &T) -> Result<(), RecordFileError> {
    let body = serde_json::to_vec(record).map_err(|source| RecordFileError::Body {
        path: path.to_owned(),
        source: Box::new(StoreError::Encode {
            table: T::TABLE,
            key: path.to_string_lossy().into_owned(),
            source,
        }),
    })?;
    let sealed = envelope::seal(T::SCHEMA, &body);
    let mut bytes = Vec::with_capacity(PREFIX + sealed.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&(sealed.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&sealed);
    if bytes.len() > MAX_FILE {
        return Err(RecordFileError::TooLarge {
            path: path.to_owned(),
            size: bytes.len() as u64,
        });
    }
    let tmp = super::open::beside(path, ".tmp");
    let outcome = replace(path, &tmp, &bytes);
    if outcome.is_err() {
        // Best effort: the next write truncates it anyway.
        let _ = fs::remove_file(&tmp);
    }
    outcome
}

fn replace(path: &Path, tmp: &Path, bytes: &[u8]) -> Result<(), RecordFileError> {
    let io = |call, path: &Path| {
        let path = path.to_owned();
        move |source| RecordFileError::Io { call, path, source }
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(tmp)
        .map_err(io("create", tmp))?;
    file.write_all(bytes).map_err(io("write", tmp))?;
    drop(file);
    // A rename onto a file makes ext4 start writing the new one out at once, which nobody needs here;
    // two names that change places do not.
    let exchange = RenameFlags::RENAME_EXCHANGE;
    match renameat2(AT_FDCWD, tmp, AT_FDCWD, path, exchange) {
        Ok(()) => fs::remove_file(tmp).map_err(io("remove", tmp)),
        // The first record, or a file system that cannot.
        Err(_) => fs::rename(tmp, path).map_err(io("rename", path)),
    }
}

/// Reads a record, of any schema up to today's.
///
/// # Errors
/// See [`RecordFileError`]; never a wrong record, never unbounded memory.
pub fn read<T: Record>(path: &Path) -> Result<T, RecordFileError> {
    let bytes = read_bytes(path)?;
    let torn = |expected: usize| RecordFileError::Torn {
        path: path.to_owned(),
        found: bytes.len(),
        expected,
    };
    let damaged = |reason| RecordFileError::Damaged {
        path: path.to_owned(),
        reason,
    };
    let (prefix, sealed) = bytes.split_at_checked(PREFIX).ok_or_else(|| torn(PREFIX))?;
    if &prefix[..8] != MAGIC {
        return Err(damaged("not a record"));
    }
    let length = u64::from_le_bytes(prefix[8..].try_into().expect("8 of 16 bytes are left"));
    let length = usize::try_from(length)
        .ok()
        .filter(|l| *l <= MAX_FILE)
        .ok_or_else(|| damaged("impossible length"))?;
    if sealed.len() < length {
        return Err(torn(PREFIX + length));
    }
    if sealed.len() > length {
        return Err(damaged("longer than it says"));
    }
    let (schema, body) = envelope::open(sealed).map_err(damaged)?;
    table::decode(&path.to_string_lossy(), schema, body).map_err(|e| RecordFileError::Body {
        path: path.to_owned(),
        source: Box::new(e),
    })
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, RecordFileError> {
    let io = |call| {
        let path = path.to_owned();
        move |source| RecordFileError::Io { call, path, source }
    };
    // O_NONBLOCK: a FIFO in its place must not hang the daemon.
    let file: File = match OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
    {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(RecordFileError::Missing {
                path: path.to_owned(),
            });
        }
        other => other.map_err(io("open"))?,
    };
    let meta = file.metadata().map_err(io("stat"))?;
    if !meta.is_file() {
        return Err(RecordFileError::NotRegular {
            path: path.to_owned(),
        });
    }
    if meta.len() > MAX_FILE as u64 {
        return Err(RecordFileError::TooLarge {
            path: path.to_owned(),
            size: meta.len(),
        });
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(io("read"))?;
    Ok(bytes)
}
