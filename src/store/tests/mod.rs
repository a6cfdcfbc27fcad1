//! The conformance list of the store. Another engine could be judged by the same list.

mod basics;
mod crash;
mod damage;
mod record_files;
mod schema;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::{OpenReport, OpenSettings, Record, Store};

/// A record for tests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    pub number: u64,
    pub text: String,
}

impl Record for Note {
    const TABLE: &'static str = "notes";
    const SCHEMA: u16 = 1;
}

pub(super) fn note(number: u64) -> Note {
    // About the size of a sandbox record, and different everywhere so that a mixed-up one shows.
    let text = (0..40)
        .map(|i| format!("{:x}", number.wrapping_mul(2_654_435_761) + i))
        .collect();
    Note { number, text }
}

/// A directory with a store in it that is removed at the end.
pub(super) struct Place {
    _dir: TempDir,
    pub store: PathBuf,
}

pub(super) fn place() -> Place {
    let dir = tempfile::Builder::new()
        .prefix("crisp-store-")
        .tempdir()
        .unwrap();
    let store = dir.path().join("store");
    Place { _dir: dir, store }
}

pub(super) fn open(dir: &Path) -> (Store, OpenReport) {
    Store::open_with(dir, &OpenSettings::default()).unwrap()
}

/// A store that was filled with `count` notes, whose rebuild is over, and that is closed again.
pub(super) fn filled(count: u64) -> Place {
    let place = place();
    let (store, report) = open(&place.store);
    assert!(report.created);
    let table = store.table::<Note>().unwrap();
    for chunk in (0..count).collect::<Vec<_>>().chunks(16) {
        let mut batch = store.batch();
        for i in chunk {
            batch = batch.put(&table, &format!("{i:06}"), note(*i));
        }
        batch.commit().wait().unwrap();
    }
    store.rebuild_finished().unwrap();
    place
}

/// What a damaged store may do: come up with everything, or say that it lost something. Returns
/// whether it had to be replaced.
pub(super) fn whole_or_honest(dir: &Path, count: u64, what: &str) -> bool {
    let (store, report) = open(dir);
    let table = store.table::<Note>().unwrap();
    let replaced = report.must_rebuild();
    if replaced {
        assert!(table.is_empty(), "{what}: a replaced store starts empty");
        assert!(
            report.created || report.reason.is_some(),
            "{what}: it says why"
        );
    } else {
        assert_eq!(
            table.len() as u64,
            count,
            "{what}: nothing is missing in silence"
        );
        for (key, found) in table.scan("") {
            assert_eq!(
                *found,
                note(key.parse().unwrap()),
                "{what}: no record is altered"
            );
        }
    }
    // Whatever happened, it works.
    table.put("999999", note(999_999)).wait().unwrap();
    assert_eq!(*table.get("999999").unwrap(), note(999_999));
    replaced
}

/// Copies a closed store, to damage many copies of one original.
pub(super) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
