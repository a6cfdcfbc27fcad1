//! Every way a database was seen to break: it comes up whole or says that it did not.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    time::Duration,
};

use rand::Rng;

use super::*;

const COUNT: u64 = 300;

/// Damages a fresh copy of one original each time; returns how often the store was replaced.
fn damaged(times: usize, mut damage: impl FnMut(&Path, usize) -> String) -> usize {
    let original = filled(COUNT);
    (0..times)
        .filter(|i| {
            let place = place();
            copy(&original.store, &place.store);
            let what = damage(&place.store, *i);
            whole_or_honest(&place.store, COUNT, &what)
        })
        .count()
}

fn snapshots(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries
        .filter(|p| {
            p.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("snap.")
        })
        .collect()
}

#[test]
fn an_undamaged_copy_comes_up_whole() {
    assert_eq!(damaged(1, |_, _| "no damage".to_owned()), 0);
}

#[test]
fn flipped_bytes_anywhere() {
    let replaced = damaged(40, |dir, i| {
        let mut files = vec![dir.join("db"), dir.join("conf"), dir.join("witness")];
        files.extend(snapshots(dir));
        let path = &files[if i % 2 == 0 { 0 } else { i / 2 % files.len() }];
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let offset = rand::rng().random_range(0..file.metadata().unwrap().len());
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 0x41], offset).unwrap();
        format!("{} flipped at {offset}", path.display())
    });
    assert!(replaced > 0, "some flips must have hit something");
}

#[test]
fn garbage_in_the_middle_is_noticed() {
    let replaced = damaged(8, |dir, i| {
        let file = OpenOptions::new().write(true).open(dir.join("db")).unwrap();
        let offset = i as u64 * 1024;
        file.write_all_at(&[0xa5; 1024], offset).unwrap();
        format!("1 KiB of garbage at {offset}")
    });
    assert!(replaced > 0);
}

#[test]
fn cut_at_many_offsets() {
    let original = filled(COUNT);
    let length = fs::metadata(original.store.join("db")).unwrap().len();
    drop(original);
    let replaced = damaged(24, |dir, i| {
        let to = length * i as u64 / 24;
        let file = OpenOptions::new().write(true).open(dir.join("db")).unwrap();
        file.set_len(to).unwrap();
        // Half of the time also without the snapshot, which would give the cut away.
        if i % 2 == 1 {
            snapshots(dir)
                .iter()
                .for_each(|s| fs::remove_file(s).unwrap());
        }
        format!("db cut to {to} of {length} bytes")
    });
    assert!(replaced > 0);
}

#[test]
fn an_empty_or_missing_database_is_not_taken_for_a_new_one() {
    for missing in [false, true] {
        let place = filled(COUNT);
        if missing {
            fs::remove_file(place.store.join("db")).unwrap();
        } else {
            fs::File::create(place.store.join("db")).unwrap();
        }
        snapshots(&place.store)
            .iter()
            .for_each(|s| fs::remove_file(s).unwrap());
        let (store, report) = open(&place.store);
        assert!(report.rebuilt && report.quarantined.is_some(), "{report:?}");
        drop(store);
        let (_store, again) = open(&place.store);
        assert!(again.rebuilt, "the rebuild is still due: {again:?}");
        assert!(
            again.quarantined.is_none(),
            "and was not needed a second time: {again:?}"
        );
    }
}

#[test]
fn a_deleted_store_is_a_new_one_that_must_be_filled() {
    let place = filled(COUNT);
    fs::remove_dir_all(&place.store).unwrap();
    let (_store, report) = open(&place.store);
    assert!(
        report.created && report.must_rebuild() && !report.rebuilt,
        "{report:?}"
    );
}

#[test]
fn an_older_copy_of_the_database_is_not_taken_for_todays() {
    let place = filled(COUNT);
    let old = place.store.with_extension("old");
    copy(&place.store, &old);
    let (store, _) = open(&place.store);
    store
        .table::<Note>()
        .unwrap()
        .put("new", note(1))
        .wait()
        .unwrap();
    drop(store);
    for entry in fs::read_dir(&place.store).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && path.file_name().unwrap() != "witness" {
            fs::remove_file(path).unwrap();
        }
    }
    fs::remove_file(old.join("witness")).unwrap();
    copy(&old, &place.store);
    let (_store, report) = open(&place.store);
    assert!(report.rebuilt, "{report:?}");
    assert!(
        report.reason.as_deref().unwrap().contains("acknowledged"),
        "{report:?}"
    );
}

#[test]
fn a_broken_snapshot_costs_nothing() {
    for (i, content) in [&b""[..], b"garbage", &[0xff; 4096]]
        .into_iter()
        .enumerate()
    {
        let place = filled(COUNT);
        let mut files = snapshots(&place.store);
        if files.is_empty() {
            files.push(place.store.join("snap.0000000000000001"));
        }
        for file in files {
            fs::write(file, content).unwrap();
        }
        assert!(!whole_or_honest(
            &place.store,
            COUNT,
            &format!("snapshot {i}")
        ));
    }
}

#[test]
fn a_left_over_generating_file_costs_nothing() {
    for content in [&b""[..], b"garbage", &[0xff; 4096]] {
        let place = filled(COUNT);
        let left = place.store.join("snap.00000000000FFFFF.generating");
        fs::write(&left, content).unwrap();
        assert!(!whole_or_honest(&place.store, COUNT, "generating"));
        assert!(!left.exists());
    }
}

#[test]
fn a_torn_witness_alone_costs_nothing() {
    let place = filled(COUNT);
    fs::write(place.store.join("witness"), b"crisp").unwrap();
    assert!(!whole_or_honest(&place.store, COUNT, "witness"));
}

#[test]
fn an_engine_that_does_not_answer_in_time_is_replaced() {
    let place = filled(COUNT);
    let settings = OpenSettings {
        time_limit: Duration::ZERO,
        ..OpenSettings::default()
    };
    // With no time at all even the fresh one is too slow: a clear error, no hang, nothing wiped.
    let error = Store::open_with(&place.store, &settings).unwrap_err();
    assert!(
        crate::error::Chain(&error)
            .to_string()
            .contains("did not answer"),
        "{error:?}"
    );
    let aside = place.store.with_extension("quarantined-1");
    assert!(aside.join("db").exists(), "the old database is kept");
    let (store, report) = open(&place.store);
    assert!(report.rebuilt, "{report:?}");
    store
        .table::<Note>()
        .unwrap()
        .put("a", note(1))
        .wait()
        .unwrap();
}

#[test]
fn quarantined_stores_do_not_pile_up() {
    let place = filled(10);
    for _ in 0..6 {
        fs::File::create(place.store.join("db")).unwrap();
        snapshots(&place.store)
            .iter()
            .for_each(|s| fs::remove_file(s).unwrap());
        let (store, report) = open(&place.store);
        assert!(report.quarantined.is_some());
        store.rebuild_finished().unwrap();
    }
    let names: Vec<String> = fs::read_dir(place.store.parent().unwrap())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.contains("quarantined"))
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(
        names.contains(&"store.quarantined-6".to_owned()),
        "the newest stay: {names:?}"
    );
}
