//! Manifests and configurations as files named by their digest.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rand::RngCore;

use super::{manifest::MAX_MANIFEST, reference::Digest};

/// The directory.
pub struct ContentDir {
    dir: PathBuf,
}

/// Writes a file so that after a power cut there is all of it or nothing; the directory's own sync
/// is the caller's.
pub fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!(".{:016x}", rand::rng().next_u64()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_data()))
        .and_then(|()| fs::rename(&temporary, dir.join(name)));
    if written.is_err() {
        let _ = fs::remove_file(&temporary); // the first error is the one to report
    }
    written
}

impl ContentDir {
    /// Opens it, removing what interrupted writes left.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)?;
        let content = Self {
            dir: dir.to_owned(),
        };
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(content)
    }

    /// Reads content, if its bytes are still what the digest says.
    pub fn read(&self, digest: &Digest) -> io::Result<Vec<u8>> {
        let path = self.dir.join(digest.file_name());
        if fs::symlink_metadata(&path)?.len() > MAX_MANIFEST {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "content is too large",
            ));
        }
        let bytes = fs::read(path)?;
        let found = if digest.is_sha512() {
            use sha2::Digest as _;
            Digest::from_sha512(&sha2::Sha512::digest(&bytes))
        } else {
            Digest::of(&bytes)
        };
        if found != *digest {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("content {digest} is damaged"),
            ));
        }
        Ok(bytes)
    }

    /// Stores verified documents durably.
    pub fn store<'a>(
        &self,
        documents: impl IntoIterator<Item = (&'a Digest, &'a [u8])>,
    ) -> io::Result<()> {
        for (digest, bytes) in documents {
            if self.read(digest).is_err() {
                write_durably(&self.dir, &digest.file_name(), bytes)?;
            }
        }
        File::open(&self.dir)?.sync_all()
    }

    /// Deletes every document that is not in `known`.
    pub fn retain(&self, known: &HashSet<String>) {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let document = name.to_str().is_some_and(|name| {
                name.starts_with("sha") && !name.starts_with('.') && !known.contains(name)
            });
            if document && let Err(error) = fs::remove_file(entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "cannot delete");
            }
        }
    }

    /// Bytes and number of files.
    pub fn usage(&self) -> (u64, u64) {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.metadata().ok())
            .fold((0, 0), |(bytes, files), meta| {
                (bytes + meta.len().div_ceil(4096) * 4096, files + 1)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_content_is_not_read() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::write(dir.path().join(".left-over"), "x").expect("write");
        let content = ContentDir::open(dir.path()).expect("open");
        assert!(!dir.path().join(".left-over").exists());
        let digest = Digest::of(b"one");
        content.store([(&digest, &b"one"[..])]).expect("store");
        assert_eq!(content.read(&digest).expect("read"), b"one");
        fs::write(dir.path().join(digest.file_name()), "two").expect("write");
        content.read(&digest).expect_err("damaged");
        content
            .store([(&digest, &b"one"[..])])
            .expect("store again");
        assert_eq!(content.read(&digest).expect("read"), b"one");
        content.retain(&HashSet::new());
        content.read(&digest).expect_err("gone");
    }
}
