//! Output in any pieces, through a file that takes any part of a write or fails: what is in the log
//! put together again is what was printed, or is counted as lost.
#![no_main]

use std::cell::RefCell;
use std::io::{self, Write};
use std::path::PathBuf;
use std::rc::Rc;

use conmon_rs::log::{Log, Stream};
use libfuzzer_sys::fuzz_target;

/// Takes a part of each write, and fails at some.
struct Disk {
    content: Rc<RefCell<Vec<u8>>>,
    moods: Vec<u8>,
    at: usize,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mood = self.moods.get(self.at).copied().unwrap_or(255);
        self.at += 1;
        let count = match mood {
            0 => return Err(io::Error::from_raw_os_error(28)),
            255 => bytes.len(),
            part => bytes.len().min(usize::from(part) * 7),
        };
        self.content.borrow_mut().extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let [limit, moods, rest @ ..] = bytes else {
        return;
    };
    let moods = rest[..rest.len().min(usize::from(*moods % 16))].to_vec();
    let rest = &rest[moods.len()..];
    let whole = !moods.contains(&0);
    let content = Rc::new(RefCell::new(Vec::new()));
    let disk = Disk {
        content: Rc::clone(&content),
        moods,
        at: 0,
    };
    let mut log = Log::to_writer(PathBuf::new(), disk, u32::from(*limit) + 1);
    let mut printed = [Vec::new(), Vec::new()];
    let mut rest = rest;
    // Each piece: a byte of stream and length, then so many bytes.
    while let [head, more @ ..] = rest {
        let (stream, length) = (head & 1, usize::from(head >> 1).min(more.len()));
        let piece = &more[..length];
        let kind = [Stream::Stdout, Stream::Stderr][usize::from(stream)];
        log.feed(kind, piece);
        printed[usize::from(stream)].extend_from_slice(piece);
        rest = &more[length..];
    }
    log.flush_partial(Stream::Stdout);
    log.flush_partial(Stream::Stderr);
    let content = content.borrow();
    assert_eq!(log.counters().written_bytes, content.len() as u64);
    if whole {
        assert_eq!(log.counters().lost_bytes, 0);
        assert_eq!(put_together(&content), printed);
    } else if log.counters().errno == 0 && !content.is_empty() {
        assert_eq!(content.last(), Some(&b'\n'), "a torn record is ended");
    }
});

/// What the records say was printed.
fn put_together(log: &[u8]) -> [Vec<u8>; 2] {
    let mut printed = [Vec::new(), Vec::new()];
    for record in log.split_inclusive(|byte| *byte == b'\n') {
        let record = record.strip_suffix(b"\n").expect("a record ends");
        assert!(record.len() >= 40 && record[29] == b'Z', "a time");
        let stream = match &record[30..38] {
            b" stdout " => 0,
            b" stderr " => 1,
            other => panic!("stream {other:?}"),
        };
        printed[stream].extend_from_slice(&record[40..]);
        match record[38] {
            b'F' => printed[stream].push(b'\n'),
            b'P' => {}
            other => panic!("tag {other}"),
        }
    }
    printed
}
