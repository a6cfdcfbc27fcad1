//! The container's log: records in the CRI format, written so that no output is lost and the
//! container is never held up by a full disk.
//!
//! A record is `<time> <stream> <tag> <content>\n`: nine fractional digits and `Z`, `stdout` or
//! `stderr`, `F` for a whole line and `P` for a piece of one. Rules:
//! - Lines are put together over any number of reads and cut only at the limit, so that a JSON line
//!   stays whole. A line of exactly the limit is one `F` record.
//! - Bytes are kept as they are, `\r` and NUL too.
//! - What is left when the output ends stays `P`: no empty `F` closes it.
//! - A piece that waits for its newline is written after [`PARTIAL_IDLE`], so that a prompt shows.
//! - The file is only ever appended to. If a write fails the records are dropped and counted, and
//!   the next batch tries again; a record that was torn is ended first.

use crate::protocol::{DEFAULT_MAX_LOG_LINE, LogCounters};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

mod stamp;
use stamp::{STAMP_LEN, Stamp};

/// How long a piece of a line waits for its newline.
pub const PARTIAL_IDLE: Duration = Duration::from_secs(1);
/// While writes fail, how often at most that is reported.
pub const TROUBLE_INTERVAL: Duration = Duration::from_secs(1);
/// Largest content of one record that can be asked for, in bytes.
pub const MAX_LINE_LIMIT: u32 = 64 * 1024;
/// Time, space, stream, space, tag, space.
const HEAD_LEN: usize = STAMP_LEN + 10;
/// Where the tag of a head is.
const TAG_AT: usize = HEAD_LEN - 2;
/// Records are gathered in this many bytes before they are written. A full pipe of short lines takes
/// three writes; a larger buffer is hardly faster and would be the largest part of a monitor's memory.
const OUT_LEN: usize = 32 * 1024;

/// Which output a byte came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or everything a terminal shows.
    Stdout = 0,
    /// Standard error.
    Stderr = 1,
}

/// A piece of a line that waits for the rest.
#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    since: Option<Instant>,
}

/// What changed about writing, for [`crate::protocol::Event::LogTrouble`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trouble {
    /// Bytes of records dropped so far.
    pub lost_bytes: u64,
    /// The error of the last write, 0 once it works again.
    pub errno: i32,
}

/// A log file and the lines on their way into it.
#[derive(Debug)]
pub struct Log<W = File> {
    path: PathBuf,
    file: W,
    /// Byte 0 is a newline that ends a torn record; records follow from byte 1.
    out: Vec<u8>,
    /// The file ends inside a record.
    torn: bool,
    max_line: usize,
    pending: [Pending; 2],
    stamp: Stamp,
    /// What the records of one batch begin with.
    head: [u8; HEAD_LEN],
    counters: LogCounters,
    reported_errno: i32,
    reported_lost: u64,
    reported_at: Option<Instant>,
}

impl Log<File> {
    /// Opens the log at `path`, an absolute path whose last component must be absent or a regular
    /// file: never a link, a FIFO or a device. `max_line` is the content after which a line is cut,
    /// 0 for the default.
    ///
    /// # Errors
    /// If the file cannot be opened or is not regular.
    pub fn open(path: &Path, max_line: u32) -> io::Result<Log> {
        Ok(Log::to_writer(
            path.to_path_buf(),
            open_log(path)?,
            max_line,
        ))
    }

    /// Opens the path anew, as after a rotation, and only then lets go of the old file. What waits
    /// for its newline goes into the new one.
    ///
    /// # Errors
    /// If the file cannot be opened: the old one stays in use.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = open_log(&self.path)?;
        self.torn = false;
        Ok(())
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    if !path.is_absolute() {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            "log path is not absolute",
        ));
    }
    // O_NONBLOCK: opening a FIFO fails instead of waiting for a reader. It means nothing for files.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(flags)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    let what = if kind.is_fifo() {
        "log path is a FIFO"
    } else {
        "log path is not a regular file"
    };
    Err(io::Error::new(ErrorKind::InvalidInput, what))
}

impl<W: Write> Log<W> {
    /// A log over something already open.
    pub fn to_writer(path: PathBuf, file: W, max_line: u32) -> Log<W> {
        let max_line = match max_line {
            0 => DEFAULT_MAX_LOG_LINE,
            given => given.min(MAX_LINE_LIMIT),
        };
        Log {
            path,
            file,
            out: Vec::new(),
            torn: false,
            max_line: max_line as usize,
            pending: Default::default(),
            stamp: Stamp::default(),
            head: [0; HEAD_LEN],
            counters: LogCounters::default(),
            reported_errno: 0,
            reported_lost: 0,
            reported_at: None,
        }
    }

    /// Takes what a stream printed and writes every record it completes, with one time for all.
    pub fn feed(&mut self, stream: Stream, data: &[u8]) {
        self.begin(stream);
        let mut pending = std::mem::take(&mut self.pending[stream as usize]);
        let mut rest = data;
        while let Some(end) = newline(rest) {
            self.line(&mut pending, &rest[..end]);
            rest = &rest[end + 1..];
        }
        if !rest.is_empty() {
            let rest = self.cut(&mut pending, rest);
            // Room for a whole piece at once: growing step by step would leave holes in the heap.
            pending
                .bytes
                .reserve_exact(self.max_line - pending.bytes.len());
            pending.bytes.extend_from_slice(rest);
            pending.since = Some(Instant::now());
        }
        self.pending[stream as usize] = pending;
        self.write_out();
    }

    /// Adds the record of a line that ends here, after the pieces it is too long for.
    fn line(&mut self, pending: &mut Pending, end: &[u8]) {
        let rest = self.cut(pending, end);
        self.record(b'F', &pending.bytes, rest);
        pending.bytes.clear();
        pending.since = None;
    }

    /// Adds `P` records until pending and the rest together are no longer than the limit. Returns
    /// the rest.
    fn cut<'a>(&mut self, pending: &mut Pending, mut rest: &'a [u8]) -> &'a [u8] {
        while pending.bytes.len() + rest.len() > self.max_line {
            let (piece, after) = rest.split_at(self.max_line - pending.bytes.len());
            self.record(b'P', &pending.bytes, piece);
            pending.bytes.clear();
            rest = after;
        }
        rest
    }

    /// Writes the waiting piece of a stream as a `P` record: when the output has ended, or paused.
    pub fn flush_partial(&mut self, stream: Stream) {
        let mut pending = std::mem::take(&mut self.pending[stream as usize]);
        if !pending.bytes.is_empty() {
            self.begin(stream);
            self.record(b'P', &pending.bytes, &[]);
            pending.bytes.clear();
            self.write_out();
        }
        pending.since = None;
        self.pending[stream as usize] = pending;
    }

    /// When the next piece has waited long enough, or a loss has gone untold for long enough. None
    /// while there is neither.
    pub fn deadline(&self) -> Option<Instant> {
        let untold = self.counters.errno != 0 && self.counters.lost_bytes != self.reported_lost;
        let report = self.reported_at.filter(|_| untold);
        let pieces = self.pending.iter().filter_map(|piece| piece.since);
        pieces
            .map(|since| since + PARTIAL_IDLE)
            .chain(report.map(|at| at + TROUBLE_INTERVAL))
            .min()
    }

    /// Writes the pieces that have waited long enough.
    pub fn flush_idle(&mut self, now: Instant) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let since = self.pending[stream as usize].since;
            if since.is_some_and(|since| now >= since + PARTIAL_IDLE) {
                self.flush_partial(stream);
            }
        }
    }

    /// What has become of the output so far.
    pub fn counters(&self) -> LogCounters {
        self.counters
    }

    /// What should be reported now: that writes began to fail or work again, and in between, at
    /// most every [`TROUBLE_INTERVAL`], how much was lost.
    pub fn trouble(&mut self, now: Instant) -> Option<Trouble> {
        let LogCounters {
            errno, lost_bytes, ..
        } = self.counters;
        let due = self
            .reported_at
            .is_none_or(|at| now >= at + TROUBLE_INTERVAL);
        let news = errno != 0 && due && lost_bytes != self.reported_lost;
        if errno == self.reported_errno && !news {
            return None;
        }
        self.reported_errno = errno;
        self.reported_lost = lost_bytes;
        self.reported_at = Some(now);
        Some(Trouble { lost_bytes, errno })
    }

    /// The records that follow are of this stream and of now.
    fn begin(&mut self, stream: Stream) {
        self.stamp.set(SystemTime::now());
        let (time, rest) = self.head.split_at_mut(STAMP_LEN);
        time.copy_from_slice(self.stamp.text());
        rest.copy_from_slice(match stream {
            Stream::Stdout => b" stdout F ",
            Stream::Stderr => b" stderr F ",
        });
    }

    /// Adds one record; makes room for it first.
    fn record(&mut self, tag: u8, first: &[u8], second: &[u8]) {
        let len = HEAD_LEN + first.len() + second.len() + 1;
        if self.out.len() + len > OUT_LEN {
            self.write_out();
        }
        if self.out.is_empty() {
            // A record longer than the buffer exists only if the line limit was raised.
            self.out.reserve_exact(OUT_LEN.max(len + 1));
            self.out.push(b'\n');
        }
        let at = self.out.len();
        self.out.extend_from_slice(&self.head);
        self.out[at + TAG_AT] = tag;
        if !first.is_empty() {
            self.out.extend_from_slice(first);
        }
        self.out.extend_from_slice(second);
        self.out.push(b'\n');
    }

    /// Writes what was gathered, or drops and counts it.
    fn write_out(&mut self) {
        if self.out.is_empty() {
            return;
        }
        let mut at = usize::from(!self.torn);
        while at < self.out.len() {
            let errno = match self.file.write(&self.out[at..]) {
                Ok(written) if written > 0 => {
                    at += written;
                    self.counters.written_bytes += written as u64;
                    self.torn = self.out[at - 1] != b'\n';
                    continue;
                }
                Ok(_) => libc::EIO,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            };
            self.counters.lost_bytes += (self.out.len() - at.max(1)) as u64;
            self.counters.write_errors += 1;
            self.counters.errno = errno;
            self.out.clear();
            return;
        }
        self.counters.errno = 0;
        self.out.clear();
    }
}

/// Where the first newline is. `skip_until` searches with the system's memchr.
fn newline(data: &[u8]) -> Option<usize> {
    let mut rest = data;
    match rest.skip_until(b'\n') {
        Ok(read) if read > 0 && data[read - 1] == b'\n' => Some(read - 1),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
