//! Opening a database that may be broken in ways that panic or hang: never trusted, never wiped.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::lockfile::{self, LockFailure};

use super::{
    OpenReport, OpenSettings,
    engine::{self, Records},
    error::{Fault, StoreError},
    host::{self, Hosted},
};

/// An open store, before its writer starts.
pub(super) struct Opened {
    pub engine: Hosted,
    pub records: Records,
    pub generation: u64,
    pub report: OpenReport,
}

/// Takes the lock of the store for this process.
///
/// The engine has a lock of its own on its file, but that one moves away with a quarantined database
/// and does not say who holds it.
pub(super) fn lock(dir: &Path) -> Result<File, StoreError> {
    make_dir(dir)?;
    let path = beside(dir, ".lock");
    let prepare = |source| StoreError::Prepare {
        path: path.clone(),
        source,
    };
    lockfile::take(&path).map_err(|failure| match failure {
        LockFailure::Held(pid) => StoreError::Locked {
            path: dir.to_owned(),
            pid,
        },
        LockFailure::Io(_, source) => prepare(source),
    })
}

/// Opens the database in `dir`: as it is, else without its snapshots, else a fresh one in its place.
pub(super) fn open(dir: &Path, settings: &OpenSettings) -> Result<Opened, StoreError> {
    let due = fs::read_to_string(beside(dir, ".rebuild")).ok();
    let (fault, stuck_thread) = match attempt_twice(dir, settings.time_limit) {
        Ok(checked) => return opened(dir, checked, due),
        Err(fault) => {
            let stuck = matches!(fault, Fault::Hung(_));
            (fault, stuck)
        }
    };
    let reason = crate::error::Chain(&fault).to_string();
    mark_rebuild(dir, &reason)?;
    let quarantined = quarantine(dir, settings.keep_quarantined)?;
    make_dir(dir)?;
    let checked = host::open(dir, settings.time_limit).map_err(|source| StoreError::Open {
        path: dir.to_owned(),
        source,
    })?;
    let report = OpenReport {
        created: false,
        rebuilt: true,
        quarantined: Some(quarantined),
        reason: Some(reason),
        stuck_thread,
    };
    Ok(with_report(checked, report))
}

/// Opens what is there, without any replacement: for the writer, which has all records in memory.
pub(super) fn attempt_twice(dir: &Path, limit: Duration) -> Result<host::Opened, Fault> {
    remove_matching(dir, |name| name.ends_with(".generating"))?;
    match host::open(dir, limit) {
        Ok(checked) => Ok(checked),
        // Its thread still holds the files: there is nothing to try again.
        Err(fault @ Fault::Hung(_)) => Err(fault),
        Err(first) => {
            // A snapshot only speeds recovery up. Without it the engine reads its whole log, which
            // cures every fault that lies in the snapshot.
            if remove_matching(dir, |name| name.starts_with("snap."))? == 0 {
                return Err(first);
            }
            host::open(dir, limit).map_err(|second| match second {
                Fault::Hung(_) => second,
                _ => first,
            })
        }
    }
}

fn opened(dir: &Path, checked: host::Opened, due: Option<String>) -> Result<Opened, StoreError> {
    let created = checked.created;
    if created && due.is_none() {
        // Nothing to rebuild on a first start, but if somebody deleted the database there is, and
        // a crash in the middle of it must not end it.
        mark_rebuild(dir, CREATED)?;
    }
    let report = match due {
        None => OpenReport {
            created,
            ..OpenReport::default()
        },
        Some(text) if text == CREATED => OpenReport {
            created: true,
            ..OpenReport::default()
        },
        Some(text) => OpenReport {
            rebuilt: true,
            reason: Some(text),
            ..OpenReport::default()
        },
    };
    Ok(with_report(checked, report))
}

fn with_report(checked: host::Opened, report: OpenReport) -> Opened {
    let host::Opened {
        engine,
        records,
        generation,
        ..
    } = checked;
    Opened {
        engine,
        records,
        generation,
        report,
    }
}

/// Text of the mark beside a database that was made where there was none.
const CREATED: &str = "created";

/// Marks that the database lacks records until [`forget_rebuild`].
pub(super) fn mark_rebuild(dir: &Path, reason: &str) -> Result<(), StoreError> {
    let path = beside(dir, ".rebuild");
    let write = || {
        let mut file = File::create(&path)?;
        file.write_all(reason.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| {
        // On a full disk an empty file stays otherwise, which would count as a mark.
        let _ = fs::remove_file(&path);
        StoreError::Prepare {
            path: path.clone(),
            source,
        }
    })
}

/// Whether the mark is there.
pub(super) fn rebuild_is_due(dir: &Path) -> bool {
    beside(dir, ".rebuild").exists()
}

/// Removes the mark.
pub(super) fn forget_rebuild(dir: &Path) -> Result<(), StoreError> {
    let path = beside(dir, ".rebuild");
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::Prepare { path, source })
        }
        _ => Ok(()),
    }
}

/// Moves the database aside and lets only the newest `keep` of its kind lie around.
pub(super) fn quarantine(dir: &Path, keep: usize) -> Result<PathBuf, StoreError> {
    let prepare = |source| StoreError::Prepare {
        path: dir.to_owned(),
        source,
    };
    let mut old = quarantined(dir).map_err(prepare)?;
    let next = old.last().map_or(1, |(n, _)| n + 1);
    let to = beside(dir, &format!(".quarantined-{next}"));
    fs::rename(dir, &to).map_err(prepare)?;
    old.push((next, to.clone()));
    let surplus = old.len().saturating_sub(keep.max(1));
    for (_, path) in old.drain(..surplus) {
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "an old quarantined store stays");
        }
    }
    Ok(to)
}

/// The quarantined databases beside `dir`, oldest first.
fn quarantined(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{}.quarantined-", name.to_string_lossy());
    let mut found = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|n| n.strip_prefix(&prefix)?.parse().ok());
        if let Some(number) = number {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Makes the directory of a database.
pub(super) fn make_dir(dir: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| StoreError::Prepare {
            path: dir.to_owned(),
            source,
        })
}

fn remove_matching(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<usize, Fault> {
    let fault = |call, source| Fault::File {
        call,
        path: dir.to_owned(),
        source,
    };
    let mut removed = 0;
    for entry in fs::read_dir(dir).map_err(|e| fault("list", e))? {
        let entry = entry.map_err(|e| fault("list", e))?;
        if entry.file_name().to_str().is_some_and(&wanted) {
            fs::remove_file(entry.path()).map_err(|e| fault("clean", e))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// The path of a sibling of `dir`: its name with something added.
pub(super) fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Sorts raw records by table.
pub(super) fn by_table(records: Records) -> BTreeMap<String, BTreeMap<String, Vec<u8>>> {
    let mut tables: BTreeMap<String, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
    for (raw, value) in records {
        let (table, key) = engine::split_key(&raw).expect("every key was checked when it was read");
        tables
            .entry(table.to_owned())
            .or_default()
            .insert(key.to_owned(), value);
    }
    tables
}
