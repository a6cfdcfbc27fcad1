//! Record format, splitting, bad disks, reopening.

use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::os::unix::fs::PermissionsExt;

/// A file that does what it is told: writes at most so many bytes, or fails.
#[derive(Debug, Default)]
struct Script {
    bytes: Vec<u8>,
    plan: VecDeque<Result<usize, i32>>,
    writes: usize,
}

impl Write for Script {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.writes += 1;
        let take = match self.plan.pop_front() {
            Some(Ok(most)) => most.min(data.len()),
            Some(Err(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            None => data.len(),
        };
        self.bytes.extend_from_slice(&data[..take]);
        Ok(take)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn log(max_line: u32) -> Log<Script> {
    Log::to_writer(PathBuf::from("/log"), Script::default(), max_line)
}

/// The records of a file: stream, tag, content. Panics at anything a strict parser would refuse.
fn records(bytes: &[u8]) -> Vec<(String, char, Vec<u8>)> {
    let mut found = Vec::new();
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let line = line
            .strip_suffix(b"\n")
            .expect("a record without its newline");
        let mut fields = line.splitn(4, |b| *b == b' ');
        let time = std::str::from_utf8(fields.next().unwrap()).unwrap();
        assert_eq!(time.len(), STAMP_LEN, "{time}");
        let shape: String = time
            .chars()
            .map(|c| if c.is_ascii_digit() { '0' } else { c })
            .collect();
        assert_eq!(shape, "0000-00-00T00:00:00.000000000Z");
        let stream = String::from_utf8(fields.next().unwrap().to_vec()).unwrap();
        let tag = fields.next().unwrap();
        assert!(tag == b"P" || tag == b"F");
        let content = fields.next().expect("the third space").to_vec();
        found.push((stream, char::from(tag[0]), content));
    }
    found
}

/// What kubelet makes of the records of one stream: an `F` ends a line.
fn joined(records: &[(String, char, Vec<u8>)], stream: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (_, tag, content) in records.iter().filter(|r| r.0 == stream) {
        bytes.extend_from_slice(content);
        if *tag == 'F' {
            bytes.push(b'\n');
        }
    }
    bytes
}

#[test]
fn lines_become_full_records_in_one_write() {
    let mut log = log(0);
    log.feed(Stream::Stdout, b"one\n\ntwo \r\n\0\xff\n");
    log.feed(Stream::Stderr, b"three\n");
    let expected: Vec<(String, char, Vec<u8>)> = [
        ("stdout", &b"one"[..]),
        ("stdout", b""),
        ("stdout", b"two \r"),
        ("stdout", b"\0\xff"),
        ("stderr", b"three"),
    ]
    .map(|(stream, content)| (stream.to_string(), 'F', content.to_vec()))
    .to_vec();
    assert_eq!(records(&log.file.bytes), expected);
    assert_eq!(log.file.writes, 2);
    assert_eq!(log.counters().written_bytes, log.file.bytes.len() as u64);
    assert_eq!(log.deadline(), None);
}

#[test]
fn a_line_over_several_reads_is_one_record() {
    let mut log = log(0);
    log.feed(Stream::Stdout, b"{\"a\":");
    log.feed(Stream::Stderr, b"between\n");
    assert!(log.deadline().is_some());
    log.feed(Stream::Stdout, b"1}\nnext");
    let found = records(&log.file.bytes);
    assert_eq!(found[1], ("stdout".into(), 'F', b"{\"a\":1}".to_vec()));
    assert_eq!(found.len(), 2);
}

#[test]
fn cut_is_exact_and_a_line_of_the_limit_is_whole() {
    for (length, expected) in [
        (16383, vec![('F', 16383)]),
        (16384, vec![('F', 16384)]),
        (16385, vec![('P', 16384), ('F', 1)]),
        (32768, vec![('P', 16384), ('F', 16384)]),
        (40000, vec![('P', 16384), ('P', 16384), ('F', 7232)]),
    ] {
        for step in [1, 7, 8192, 65536] {
            let mut log = log(0);
            let mut data = vec![b'x'; length];
            data.push(b'\n');
            for piece in data.chunks(step) {
                log.feed(Stream::Stdout, piece);
            }
            let found: Vec<_> = records(&log.file.bytes)
                .iter()
                .map(|r| (r.1, r.2.len()))
                .collect();
            assert_eq!(found, expected, "length {length} in steps of {step}");
        }
    }
}

#[test]
fn the_tail_at_the_end_stays_partial_and_nothing_closes_it() {
    let mut log = log(0);
    log.feed(Stream::Stdout, b"whole\ntail");
    log.flush_partial(Stream::Stdout);
    log.flush_partial(Stream::Stdout);
    log.flush_partial(Stream::Stderr);
    let found = records(&log.file.bytes);
    assert_eq!(found.len(), 2);
    assert_eq!(found[1], ("stdout".into(), 'P', b"tail".to_vec()));
}

#[test]
fn a_piece_is_written_when_it_waited_and_its_newline_ends_the_line() {
    let mut log = log(0);
    log.feed(Stream::Stdout, b"prompt> ");
    let due = log.deadline().unwrap();
    log.flush_idle(due - Duration::from_millis(1));
    assert_eq!(log.file.bytes.len(), 0);
    log.flush_idle(due);
    assert_eq!(
        log.deadline(),
        None,
        "nothing waits, so no timer may be armed"
    );
    log.feed(Stream::Stdout, b"\nnext\n");
    let found = records(&log.file.bytes);
    let tags: String = found.iter().map(|r| r.1).collect();
    assert_eq!(tags, "PFF");
    assert_eq!(joined(&found, "stdout"), b"prompt> \nnext\n");
}

#[test]
fn the_limit_can_be_set_and_is_bounded() {
    let mut small = log(10);
    small.feed(Stream::Stdout, b"0123456789abc\n");
    assert_eq!(records(&small.file.bytes).len(), 2);
    let mut large = log(u32::MAX);
    large.feed(Stream::Stdout, &vec![b'x'; 100_000]);
    large.feed(Stream::Stdout, b"\n");
    let lengths: Vec<_> = records(&large.file.bytes)
        .iter()
        .map(|r| r.2.len())
        .collect();
    assert_eq!(lengths, [65536, 34464]);
}

#[test]
fn short_writes_are_finished() {
    let mut log = log(0);
    log.file.plan = [Ok(1), Ok(5), Err(libc::EINTR), Ok(40)].into();
    log.feed(Stream::Stdout, b"one\ntwo\nthree\n");
    assert_eq!(
        joined(&records(&log.file.bytes), "stdout"),
        b"one\ntwo\nthree\n"
    );
    assert_eq!(log.counters().write_errors, 0);
}

#[test]
fn a_full_disk_drops_counts_and_recovers_on_a_fresh_line() {
    let mut log = log(0);
    let now = Instant::now();
    assert_eq!(log.trouble(now), None);
    log.file.plan = [Ok(50), Err(libc::ENOSPC), Err(libc::ENOSPC)].into();
    log.feed(Stream::Stdout, b"first line\n");
    let lost = (HEAD_LEN + 11 - 50) as u64;
    assert_eq!(
        log.trouble(now),
        Some(Trouble {
            lost_bytes: lost,
            errno: libc::ENOSPC
        })
    );
    log.feed(Stream::Stdout, b"dropped\n");
    let lost = lost + (HEAD_LEN + 8) as u64;
    assert_eq!(log.trouble(now), None, "not again within the interval");
    assert_eq!(
        log.trouble(now + TROUBLE_INTERVAL),
        Some(Trouble {
            lost_bytes: lost,
            errno: libc::ENOSPC
        })
    );
    log.feed(Stream::Stdout, b"works again\n");
    assert_eq!(
        log.trouble(now),
        Some(Trouble {
            lost_bytes: lost,
            errno: 0
        })
    );
    assert_eq!(log.trouble(now + TROUBLE_INTERVAL), None);
    let found = records(&log.file.bytes);
    assert_eq!(found.len(), 2, "the torn record was ended: {found:?}");
    assert_eq!(found[0].2, b"first line"[..50 - HEAD_LEN]);
    assert_eq!(found[1].2, b"works again");
    assert_eq!(log.counters().write_errors, 2);
}

#[test]
fn a_disk_full_while_ending_a_torn_record_still_ends_it_later() {
    let mut log = log(0);
    log.file.plan = [
        Ok(10),
        Err(libc::EIO),
        Err(libc::EIO),
        Ok(1),
        Err(libc::EDQUOT),
    ]
    .into();
    for line in [b"a\n", b"b\n", b"c\n", b"d\n"] {
        log.feed(Stream::Stdout, line);
    }
    // a was torn at 10 bytes, b failed, for c only the newline went through.
    let text = &log.file.bytes;
    assert_eq!(text.iter().filter(|b| **b == b'\n').count(), 2);
    assert_eq!(text[10], b'\n');
    assert_eq!(
        records(&text[11..]),
        [("stdout".to_string(), 'F', b"d".to_vec())]
    );
    let record = (HEAD_LEN + 2) as u64;
    assert_eq!(log.counters().lost_bytes, record - 10 + 2 * record);
}

#[test]
fn a_file_that_takes_nothing_does_not_spin() {
    let mut log = log(0);
    log.file.plan = [Ok(0)].into();
    log.feed(Stream::Stdout, b"a\n");
    assert_eq!(log.counters().errno, libc::EIO);
}

#[test]
fn buffers_do_not_grow_under_a_flood() {
    let mut log = log(0);
    for _ in 0..200 {
        log.feed(Stream::Stdout, &vec![b'x'; 65536]);
        log.feed(Stream::Stderr, &vec![b'\n'; 65536]);
        log.file.bytes.clear();
    }
    assert!(log.out.capacity() <= OUT_LEN, "{}", log.out.capacity());
    for pending in &log.pending {
        assert!(
            pending.bytes.capacity() <= 16384,
            "{}",
            pending.bytes.capacity()
        );
    }
}

proptest! {
    #[test]
    fn nothing_is_lost_whatever_the_reads(
        pieces in proptest::collection::vec(
            (any::<bool>(), proptest::collection::vec(
                prop_oneof![4 => Just(b'x'), 1 => Just(b'\n'), 1 => any::<u8>()], 0..60), any::<bool>()), 0..30),
        max_line in 1u32..40,
    ) {
        let mut log = log(max_line);
        let mut printed = [Vec::new(), Vec::new()];
        for (error, bytes, idle) in &pieces {
            let stream = if *error { Stream::Stderr } else { Stream::Stdout };
            log.feed(stream, bytes);
            printed[stream as usize].extend_from_slice(bytes);
            if *idle {
                log.flush_partial(stream);
            }
        }
        log.flush_partial(Stream::Stdout);
        log.flush_partial(Stream::Stderr);
        let found = records(&log.file.bytes);
        prop_assert_eq!(&joined(&found, "stdout"), &printed[0]);
        prop_assert_eq!(&joined(&found, "stderr"), &printed[1]);
        prop_assert!(found.iter().all(|r| r.2.len() <= max_line as usize));
        prop_assert!(found.iter().all(|r| r.1 == 'F' || !r.2.is_empty()));
    }
}

#[test]
fn opening_appends_with_mode_0640_and_refuses_what_is_not_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    std::fs::write(&path, "before\n").unwrap();
    let mut log = Log::open(&path, 0).unwrap();
    log.feed(Stream::Stdout, b"after\n");
    let text = std::fs::read(&path).unwrap();
    assert!(text.starts_with(b"before\n"));
    assert_eq!(records(&text[7..]).len(), 1);

    let fresh = dir.path().join("fresh.log");
    Log::open(&fresh, 0).unwrap();
    let mode = std::fs::metadata(&fresh).unwrap().permissions().mode();
    assert_eq!(mode & 0o777 & !0o640, 0, "{mode:o}");

    let link = dir.path().join("link.log");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_eq!(
        Log::open(&link, 0).unwrap_err().raw_os_error(),
        Some(libc::ELOOP)
    );
    let dangling = dir.path().join("dangling.log");
    std::os::unix::fs::symlink(dir.path().join("nowhere"), &dangling).unwrap();
    assert!(Log::open(&dangling, 0).is_err());
    assert!(!dir.path().join("nowhere").exists());
    let fifo = dir.path().join("fifo.log");
    let status = std::process::Command::new("mkfifo")
        .arg(&fifo)
        .status()
        .unwrap();
    assert!(status.success());
    assert!(Log::open(&fifo, 0).is_err());
    assert!(Log::open(dir.path(), 0).is_err());
    assert!(Log::open(Path::new("relative.log"), 0).is_err());
    assert!(Log::open(Path::new("/dev/null"), 0).is_err());
}

#[test]
fn reopen_moves_to_the_new_file_and_keeps_the_old_one_on_failure() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let rotated = dir.path().join("0.log.1");
    let mut log = Log::open(&path, 0).unwrap();
    log.feed(Stream::Stdout, b"old\nhalf ");
    std::fs::rename(&path, &rotated).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(log.reopen().is_err());
    log.feed(Stream::Stdout, b"a line\n");
    std::fs::remove_dir(&path).unwrap();
    log.feed(Stream::Stdout, b"whole ");
    log.reopen().unwrap();
    assert!(path.exists(), "the new file is there before the answer");
    log.feed(Stream::Stdout, b"line\n");
    let old = records(&std::fs::read(&rotated).unwrap());
    let new = records(&std::fs::read(&path).unwrap());
    assert_eq!(joined(&old, "stdout"), b"old\nhalf a line\n");
    assert_eq!(joined(&new, "stdout"), b"whole line\n");
}

#[test]
fn a_real_full_device_behaves_like_the_script() {
    // /dev/full is no regular file, so it is opened here and not by path.
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut log = Log::to_writer(PathBuf::from("/dev/full"), full, 0);
    log.feed(Stream::Stdout, b"lost\n");
    assert_eq!(log.counters().errno, libc::ENOSPC);
    assert_eq!(log.counters().lost_bytes, (HEAD_LEN + 5) as u64);
}
