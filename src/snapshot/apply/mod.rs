//! The applier: turns a layer's archive into a directory, in a process of its own.
//!
//! The daemon executes itself with the hidden subcommand `apply-layer` ([`child_main`]), the empty
//! target directory as working directory, the compressed archive on standard input (after one line
//! of options) and a one-line report expected on standard output. The child has no more than it
//! needs: no new privileges, the file capabilities alone, Landlock on the target, resource limits.
//! The archive is hostile: whatever it says, nothing outside the target changes and the daemon's
//! memory does not grow.

pub mod archive;
pub mod codec;
mod confine;
pub mod tree;

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    os::fd::{AsFd, OwnedFd},
    process::ExitCode,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use codec::Inflated;
use tree::Tree;

/// What begins the line of the report on standard output.
pub const REPORT_MARK: &str = "crisp-apply-report ";
const MAX_OPTIONS: u64 = 4096;

/// Limits a layer is held to, and what else the child must know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Most entries.
    pub max_entries: u64,
    /// Most bytes of uncompressed archive, and of any one file.
    pub max_bytes: u64,
    /// Most uncompressed bytes per compressed byte, looked at beyond 1 GiB.
    pub max_ratio: u64,
    /// Bytes that must stay free on the file system.
    pub reserve_bytes: u64,
    /// Seconds until the child gives up.
    pub max_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_entries: 10_000_000,
            max_bytes: 256 << 30,
            max_ratio: 1000,
            reserve_bytes: 64 << 20,
            max_seconds: 3600,
        }
    }
}

/// Owner and mode of a layer's root directory, if the archive had an entry for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootAttributes {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What the child made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// SHA-256 of the uncompressed archive, in hex.
    pub sha256: String,
    /// Entries made (files, directories, links, devices, whiteouts).
    pub entries: u64,
    /// Bytes of content written.
    pub bytes: u64,
    /// Bytes used on disk, by whole blocks.
    pub disk_bytes: u64,
    /// Directories that had no entry of their own when the archive ended, parents first.
    #[serde(with = "paths")]
    pub implied: Vec<Vec<u8>>,
    /// Directories that hide those of the layers below.
    #[serde(with = "paths")]
    pub opaque: Vec<Vec<u8>>,
    /// The root hides everything below.
    pub opaque_root: bool,
    /// The root directory's own entry.
    pub root: Option<RootAttributes>,
    /// Extended attributes left out (those of overlayfs, other `trusted.*` and `security.*`,
    /// those the file system does not take).
    pub stripped_xattrs: u64,
    /// Leftovers of aufs left out.
    pub skipped_aufs: u64,
    /// Whether Landlock confined the child.
    pub landlock: bool,
}

/// Raw paths travel as base64.
mod paths {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(paths: &[Vec<u8>], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(paths.iter().map(|path| STANDARD.encode(path)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Vec<u8>>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts
            .iter()
            .map(|text| STANDARD.decode(text).map_err(D::Error::custom))
            .collect()
    }
}

/// Why a layer was not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The archive wants something that is never done.
    Refused,
    /// A limit was reached.
    Limit,
    /// The compressed stream or the archive is damaged.
    Corrupt,
    /// The file system is full.
    NoSpace,
    /// The file system or the system failed.
    System,
}

/// A failure with what it was about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Which sort.
    pub kind: FailureKind,
    /// For people: names the entry and the rule.
    pub message: String,
}

impl Failure {
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Refused,
            message: message.into(),
        }
    }

    pub(crate) fn limit(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Limit,
            message: message.into(),
        }
    }

    pub(crate) fn corrupt(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Corrupt,
            message: message.into(),
        }
    }

    pub(crate) fn system(action: &str, error: &io::Error) -> Self {
        let full = matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        );
        let kind = if full {
            FailureKind::NoSpace
        } else {
            FailureKind::System
        };
        Self {
            kind,
            message: format!("{action}: {error}"),
        }
    }
}

/// The line on standard output.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The layer is in the directory.
    Applied(Box<Applied>),
    /// It is not; what is there is to be thrown away.
    Failed(Failure),
}

/// Applies an archive to the directory `root`, in this process, without confinement.
///
/// # Errors
/// [`Failure`].
pub fn apply(
    compressed: impl Read + Send + 'static,
    root: OwnedFd,
    limits: &Limits,
) -> Result<Applied, Failure> {
    let deadline = Instant::now() + Duration::from_secs(limits.max_seconds);
    let mut source = Inflated::start(compressed, limits)?;
    let mut tree = Tree::new(root, limits.clone(), deadline)?;
    let mut archive = archive::Archive::new(&mut source);
    let walked = loop {
        match archive.next_entry() {
            Ok(Some(entry)) => {
                if let Err(failure) = tree.apply(&entry, &mut archive) {
                    break Err(failure);
                }
            }
            Ok(None) => break Ok(()),
            Err(failure) => break Err(failure),
        }
    };
    // A stream that broke explains more than the archive that ended too early because of it.
    if let Some(failure) = source.take_failure() {
        return Err(failure);
    }
    walked?;
    let sha256 = source.finish()?;
    let mut applied = tree.finish()?;
    applied.sha256 = sha256;
    Ok(applied)
}

/// The child: see the module's text. `crisp apply-layer` calls this and nothing else.
#[must_use]
pub fn child_main() -> ExitCode {
    let report = match run() {
        Ok(applied) => Report::Applied(Box::new(applied)),
        Err(failure) => Report::Failed(failure),
    };
    let Ok(line) = serde_json::to_string(&report) else {
        return ExitCode::from(3);
    };
    let mut out = io::stdout().lock();
    let written = writeln!(out, "\n{REPORT_MARK}{line}").and_then(|()| out.flush());
    match (written, report) {
        (Ok(()), Report::Applied(_)) => ExitCode::SUCCESS,
        (Ok(()), Report::Failed(_)) => ExitCode::from(1),
        (Err(_), _) => ExitCode::from(3),
    }
}

fn run() -> Result<Applied, Failure> {
    let stdin = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| Failure::system("standard input", &error))?;
    let mut input = BufReader::with_capacity(256 << 10, File::from(stdin));
    let mut line = Vec::new();
    input
        .by_ref()
        .take(MAX_OPTIONS)
        .read_until(b'\n', &mut line)
        .map_err(|error| Failure::system("options", &error))?;
    let limits: Limits = serde_json::from_slice(&line)
        .map_err(|error| Failure::system("options", &io::Error::other(error)))?;
    let root = File::open(".").map_err(|error| Failure::system("target directory", &error))?;
    let landlock = confine::confine(root.as_fd(), &limits)?;
    let mut applied = apply(input, root.into(), &limits)?;
    applied.landlock = landlock;
    Ok(applied)
}
