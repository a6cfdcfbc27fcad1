use super::*;
use crate::{
    error::{Classify, ErrorKind},
    store::{MAX_VALUE, StoreError},
};

#[test]
fn what_was_put_is_read_scanned_removed_and_found_again() {
    let place = filled(40);
    let (store, report) = open(&place.store);
    assert!(!report.must_rebuild(), "{report:?}");
    let table = store.table::<Note>().unwrap();
    assert_eq!(*table.get("000007").unwrap(), note(7));
    assert_eq!(table.scan("00001").len(), 10);
    table.remove("000007").wait().unwrap();
    table.remove_durable("nothing").wait().unwrap();
    table.put_durable("000008", note(88)).wait().unwrap();
    assert_eq!(table.get("000007"), None);
    drop((store, table));
    let (store, report) = open(&place.store);
    assert!(!report.must_rebuild(), "{report:?}");
    let table = store.table::<Note>().unwrap();
    assert_eq!((table.len(), table.get("000007")), (39, None));
    assert_eq!(*table.get("000008").unwrap(), note(88));
}

#[test]
fn a_batch_over_tables_is_whole() {
    #[derive(Clone, Serialize, Deserialize)]
    struct Other(u64);
    impl Record for Other {
        const TABLE: &'static str = "others";
        const SCHEMA: u16 = 1;
    }
    let place = place();
    let (store, _) = open(&place.store);
    let (notes, others) = (
        store.table::<Note>().unwrap(),
        store.table::<Other>().unwrap(),
    );
    store
        .batch()
        .put(&notes, "a", note(1))
        .put(&others, "a", Other(2))
        .commit()
        .wait()
        .unwrap();
    // One bad key refuses all of it.
    let refused = store
        .batch()
        .put(&notes, "b", note(1))
        .put(&others, "", Other(2))
        .commit()
        .wait();
    assert!(matches!(
        refused,
        Err(StoreError::Key {
            table: "others",
            ..
        })
    ));
    assert_eq!((notes.len(), others.len(), notes.get("b")), (1, 1, None));
    store
        .batch()
        .remove(&notes, "a")
        .put(&others, "c", Other(3))
        .commit()
        .wait()
        .unwrap();
    drop((store, notes, others));
    let (store, _) = open(&place.store);
    assert!(store.table::<Note>().unwrap().is_empty());
    assert_eq!(store.table::<Other>().unwrap().len(), 2);
}

#[test]
fn a_commit_happens_even_if_nobody_waits() {
    let place = place();
    let (store, _) = open(&place.store);
    let table = store.table::<Note>().unwrap();
    drop(table.put("forgotten", note(1)));
    table.put("waited", note(2)).wait().unwrap();
    assert!(table.get("forgotten").is_some());
}

#[test]
fn awaiting_works_and_many_writers_share_commits() {
    let place = place();
    let (store, _) = open(&place.store);
    let table = store.table::<Note>().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap();
    runtime.block_on(async {
        let puts = (0..200).map(|i| {
            let table = table.clone();
            tokio::spawn(async move { table.put_durable(&format!("{i}"), note(i)).await })
        });
        for put in puts.collect::<Vec<_>>() {
            put.await.unwrap().unwrap();
        }
    });
    assert_eq!(table.len(), 200);
}

#[test]
fn bad_keys_and_large_values_are_refused() {
    let place = place();
    let (store, _) = open(&place.store);
    let table = store.table::<Note>().unwrap();
    for key in ["", "a\0b", &"k".repeat(513)] {
        let refused = table.put(key, note(1)).wait();
        assert!(matches!(refused, Err(StoreError::Key { .. })), "{key:?}");
        assert!(
            matches!(table.remove(key).wait(), Err(StoreError::Key { .. })),
            "{key:?}"
        );
    }
    let large = Note {
        number: 1,
        text: "x".repeat(MAX_VALUE),
    };
    let refused = table.put("large", large).wait();
    assert!(
        matches!(refused, Err(StoreError::TooLarge { .. })),
        "{refused:?}"
    );
    assert!(table.is_empty());
    let fits = Note {
        number: 1,
        text: "x".repeat(MAX_VALUE - 100),
    };
    table.put("fits", fits.clone()).wait().unwrap();
    drop((store, table));
    assert_eq!(
        *open(&place.store)
            .0
            .table::<Note>()
            .unwrap()
            .get("fits")
            .unwrap(),
        fits
    );
}

#[test]
fn many_of_the_largest_records_come_back() {
    let place = place();
    let (store, _) = open(&place.store);
    let table = store.table::<Note>().unwrap();
    let large = |i: u64| Note {
        number: i,
        text: "y".repeat(MAX_VALUE - 100),
    };
    for round in 0..3 {
        let mut batch = store.batch();
        for i in 0..50 {
            batch = batch.put(&table, &format!("{i}"), large(round));
        }
        batch.commit_durable().wait().unwrap();
    }
    drop((store, table));
    let (store, report) = open(&place.store);
    assert!(!report.rebuilt, "{report:?}");
    let table = store.table::<Note>().unwrap();
    assert_eq!(table.len(), 50);
    assert!(table.scan("").iter().all(|(_, found)| **found == large(2)));
}

#[test]
fn a_second_opener_is_refused_with_the_pid_of_the_first() {
    let place = place();
    let (store, _) = open(&place.store);
    let error = Store::open(&place.store).unwrap_err();
    assert!(
        matches!(&error, StoreError::Locked { pid: Some(pid), .. } if *pid == std::process::id()),
        "{error}"
    );
    drop(store);
    open(&place.store);
}

#[test]
fn a_rebuild_stays_due_until_it_is_finished() {
    let place = place();
    assert!(open(&place.store).1.created);
    assert!(
        open(&place.store).1.created,
        "a crash in the middle does not end it"
    );
    open(&place.store).0.rebuild_finished().unwrap();
    assert!(!open(&place.store).1.must_rebuild());
}

#[test]
fn two_types_cannot_share_a_table() {
    #[derive(Clone, Serialize, Deserialize)]
    struct Thief;
    impl Record for Thief {
        const TABLE: &'static str = "notes";
        const SCHEMA: u16 = 1;
    }
    let place = place();
    let (store, _) = open(&place.store);
    store.table::<Note>().unwrap();
    assert!(matches!(
        store.table::<Thief>(),
        Err(StoreError::TableTaken { table: "notes" })
    ));
}

#[test]
fn a_full_disk_fails_writes_and_nothing_else() {
    let disk = SmallDisk::mount(16);
    let dir = disk.path.join("store");
    let (store, _) = open(&dir);
    let table = store.table::<Note>().unwrap();
    store.rebuild_finished().unwrap();
    for i in 0..50 {
        table
            .put_durable(&format!("kept-{i:02}"), note(i))
            .wait()
            .unwrap();
    }
    let ballast = disk.fill();
    for _ in 0..3 {
        let error = table.put("refused", note(1)).wait().unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::Exhausted,
            "{}",
            crate::error::Chain(&error)
        );
    }
    assert_eq!(table.get("refused"), None);
    // What makes room works, out of the reserve, and goes on working.
    for i in 0..40 {
        table
            .remove_durable(&format!("kept-{i:02}"))
            .wait()
            .unwrap();
    }
    std::fs::remove_file(&ballast).unwrap();
    table.put_durable("after", note(2)).wait().unwrap();
    assert_eq!(table.len(), 11);
    drop((store, table));
    let (store, report) = open(&dir);
    assert!(!report.must_rebuild(), "{report:?}");
    assert_eq!(store.table::<Note>().unwrap().len(), 11);
}

#[test]
fn an_engine_that_fails_at_run_time_is_replaced_and_the_write_succeeds() {
    for how in ["error", "error after", "panic", "hang"] {
        let place = filled(50);
        let settings = OpenSettings {
            commit_limit: std::time::Duration::from_secs(2),
            ..OpenSettings::default()
        };
        let (store, _) = Store::open_with(&place.store, &settings).unwrap();
        let table = store.table::<Note>().unwrap();
        std::fs::write(place.store.join("fail-next"), how).unwrap();
        table
            .put("after", note(1))
            .wait()
            .unwrap_or_else(|e| panic!("{how}: {e}"));
        table.remove("000001").wait().unwrap();
        table.put_durable("again", note(2)).wait().unwrap();
        assert_eq!(table.len(), 51, "{how}");
        assert_eq!(store.is_stuck(), how == "hang", "{how}");
        drop((store, table));
        let (store, report) = open(&place.store);
        assert!(!report.must_rebuild(), "{how}: {report:?}");
        let table = store.table::<Note>().unwrap();
        assert_eq!(table.len(), 51, "{how}");
        assert_eq!(*table.get("after").unwrap(), note(1), "{how}");
    }
}

/// A tmpfs of a few MiB. The mount is detached at once, so nothing is left however the test ends.
struct SmallDisk {
    path: PathBuf,
    _held: std::fs::File,
    _dir: TempDir,
}

impl SmallDisk {
    fn mount(mebibytes: u32) -> Self {
        use nix::mount::{MntFlags, MsFlags, mount, umount2};
        let dir = tempfile::Builder::new()
            .prefix("crisp-small-")
            .tempdir()
            .unwrap();
        let options = format!("size={mebibytes}m");
        mount(
            Some("tmpfs"),
            dir.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap();
        let held = std::fs::File::open(dir.path()).unwrap();
        umount2(dir.path(), MntFlags::MNT_DETACH).unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held)).into();
        Self {
            path,
            _held: held,
            _dir: dir,
        }
    }

    /// Fills it to the last byte; the file to remove.
    fn fill(&self) -> PathBuf {
        let ballast = self.path.join("ballast");
        let mut file = std::fs::File::create(&ballast).unwrap();
        while std::io::Write::write(&mut file, &[7; 4096]).is_ok_and(|n| n > 0) {}
        ballast
    }
}
