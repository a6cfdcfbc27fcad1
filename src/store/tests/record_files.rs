use std::fs;

use super::*;
use crate::store::record_file::{MAX_FILE, RecordFileError, read, write};

fn file() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("record");
    (dir, path)
}

#[test]
fn what_was_written_is_read_and_nothing_else_is_left() {
    let (dir, path) = file();
    assert!(matches!(
        read::<Note>(&path),
        Err(RecordFileError::Missing { .. })
    ));
    for i in 0..3 {
        write(&path, &note(i)).unwrap();
        assert_eq!(read::<Note>(&path).unwrap(), note(i));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn every_cut_is_torn_and_every_flip_is_noticed() {
    let (_dir, path) = file();
    write(&path, &note(1)).unwrap();
    let bytes = fs::read(&path).unwrap();
    for length in 0..bytes.len() {
        fs::write(&path, &bytes[..length]).unwrap();
        let result = read::<Note>(&path);
        assert!(
            matches!(result, Err(RecordFileError::Torn { .. })),
            "{length}: {result:?}"
        );
    }
    for i in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[i] ^= 0x20;
        fs::write(&path, &bad).unwrap();
        assert!(read::<Note>(&path).is_err(), "byte {i}");
    }
    let mut long = bytes.clone();
    long.push(0);
    fs::write(&path, long).unwrap();
    assert!(matches!(
        read::<Note>(&path),
        Err(RecordFileError::Damaged { .. })
    ));
    fs::write(&path, vec![0; 4096]).unwrap();
    assert!(matches!(
        read::<Note>(&path),
        Err(RecordFileError::Damaged { .. })
    ));
}

#[test]
fn hostile_files_are_refused_without_hanging() {
    let (_dir, path) = file();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(
        read::<Note>(&path),
        Err(RecordFileError::NotRegular { .. })
    ));
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    assert!(matches!(
        read::<Note>(&path),
        Err(RecordFileError::Io { call: "open", .. })
    ));
    fs::remove_file(&path).unwrap();
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(
        read::<Note>(&path),
        Err(RecordFileError::TooLarge { .. })
    ));
    // A length that promises more than the file has.
    fs::remove_file(&path).unwrap();
    let mut lie = b"crisprec".to_vec();
    lie.extend_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&path, lie).unwrap();
    assert!(matches!(
        read::<Note>(&path),
        Err(RecordFileError::Damaged { .. })
    ));
}

#[test]
fn a_record_that_is_too_large_leaves_the_old_one() {
    let (dir, path) = file();
    write(&path, &note(1)).unwrap();
    let large = Note {
        number: 2,
        text: "x".repeat(MAX_FILE),
    };
    assert!(matches!(
        write(&path, &large),
        Err(RecordFileError::TooLarge { .. })
    ));
    assert_eq!(read::<Note>(&path).unwrap(), note(1));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_missing_directory_is_an_error_that_names_the_file() {
    let (dir, _) = file();
    let path = dir.path().join("gone/record");
    let error = write(&path, &note(1)).unwrap_err();
    assert!(error.to_string().contains("gone/record"), "{error}");
}
