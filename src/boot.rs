//! Whether the machine went down under the last daemon.
//!
//! A file in the root directory names the boot in which a daemon serves; a daemon that ends by itself
//! takes it away. One that names an earlier boot says that power was cut or the kernel died: what
//! had been written by then is worth a second look.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

const NAME: &str = "serving";

/// This run of the daemon, on record.
pub struct Boot {
    path: PathBuf,
    now: String,
    /// Nobody has looked yet at what a machine that went down may have damaged.
    suspect: AtomicBool,
}

impl Boot {
    /// Looks at what the last daemon left and notes that this one serves.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn begin(root: &Path) -> io::Result<Self> {
        let path = root.join(NAME);
        let now = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let left = fs::read_to_string(&path).ok();
        let boot = Self {
            suspect: AtomicBool::new(left.as_ref().is_some_and(|boot| *boot != now)),
            path,
            now,
        };
        if left.is_none() {
            boot.write()?;
        }
        Ok(boot)
    }

    /// Whether the machine went down while a daemon served this root, and nobody has verified since
    /// what lies there.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Acquire)
    }

    /// What lies here was verified.
    ///
    /// # Errors
    /// When the file cannot be written; then it is verified once more after the next start.
    pub fn verified(&self) -> io::Result<()> {
        self.write()?;
        self.suspect.store(false, Ordering::Release);
        Ok(())
    }

    /// The daemon ends by itself. Images are durable before anybody sees them, so nothing is to be
    /// waited for; but what was not verified yet still is to be.
    pub fn end(&self) {
        if self.is_suspect() {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove, layers will be verified after a reboot");
        }
    }

    /// Durably: it is there for the power cut.
    fn write(&self) -> io::Result<()> {
        let mut file = File::create(&self.path)?;
        file.write_all(self.now.as_bytes())?;
        file.sync_all()?;
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        File::open(directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_earlier_boot_without_an_end_is_suspect() {
        let dir = tempfile::tempdir().expect("directory");
        let begin = || Boot::begin(dir.path()).expect("begin");
        assert!(!begin().is_suspect(), "nothing was there");
        let killed = begin();
        assert!(!killed.is_suspect(), "killed in this boot: nothing is lost");
        killed.end();
        assert!(!begin().is_suspect());
        fs::write(dir.path().join(NAME), "another boot").expect("write");
        let hasty = begin();
        assert!(hasty.is_suspect());
        hasty.end();
        let patient = begin();
        assert!(patient.is_suspect(), "until it was verified");
        patient.verified().expect("verified");
        assert!(!begin().is_suspect());
    }
}
