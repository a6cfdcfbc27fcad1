//! The exit record: how a container ended, on disk for a daemon that was not there to see it.
//!
//! The file is text, a `key=value` per line, so that an operator can read it:
//!
//! ```text
//! crisp-exit 1
//! pid=4711
//! start_time=8812345
//! code=137
//! signal=9
//! oom_killed=true
//! oom_kill_count=1
//! started_at_ns=1764000000000000000
//! finished_at_ns=1764000009000000000
//! lost_bytes=0
//! reason=OOMKilled
//! end
//! ```
//! Unknown keys are skipped. The last line shows that nothing was cut off. It is written under
//! another name and renamed, without fsync: a power cut ends the container anyway.

use std::fmt::Write as _;
use thiserror::Error;

/// Version of the record.
pub const EXIT_VERSION: u32 = 1;
/// Largest exit record that is read, in bytes.
pub const MAX_EXIT_FILE: usize = 16 * 1024;
const FIRST_LINE: &str = "crisp-exit ";
const LAST_LINE: &str = "end";
const MAX_REASON: usize = 4096;

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitRecord {
    /// Version of the record, [`EXIT_VERSION`] or what a newer monitor wrote.
    pub version: u32,
    /// Process id that init had.
    pub pid: i32,
    /// Start time of init, in clock ticks since boot.
    pub start_time: u64,
    /// 0 to 255; 128 + n for signal n.
    pub code: i32,
    /// The signal that ended init, or 0.
    pub signal: i32,
    /// The kernel killed a process of the container because memory ran out.
    pub oom_killed: bool,
    /// How many such kills.
    pub oom_kill_count: u64,
    /// When the program was executed, in nanoseconds since the epoch; 0 if it never was.
    pub started_at_ns: u64,
    /// When init was reaped, in nanoseconds since the epoch.
    pub finished_at_ns: u64,
    /// Bytes of log records that could not be written.
    pub lost_bytes: u64,
    /// One word for machines, `Completed`, `Error`, `OOMKilled` or `StartError`, where the last is
    /// followed by `: ` and an explanation.
    pub reason: String,
}

impl Default for ExitRecord {
    fn default() -> ExitRecord {
        ExitRecord {
            version: EXIT_VERSION,
            pid: 0,
            start_time: 0,
            code: 0,
            signal: 0,
            oom_killed: false,
            oom_kill_count: 0,
            started_at_ns: 0,
            finished_at_ns: 0,
            lost_bytes: 0,
            reason: String::new(),
        }
    }
}

/// Why a file is not an exit record.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ExitFileError {
    /// Larger than [`MAX_EXIT_FILE`].
    #[error("exit record of {size} bytes")]
    TooLarge {
        /// Its size, in bytes.
        size: usize,
    },
    /// Not UTF-8, or it does not begin as one.
    #[error("no exit record")]
    NotARecord,
    /// The last line is missing.
    #[error("exit record was cut off")]
    Cut,
    /// A value cannot be read.
    #[error("exit record: value of {key}")]
    Value {
        /// The key of the line.
        key: String,
    },
    /// A line that must be there is not.
    #[error("exit record: no {key}")]
    Missing {
        /// The key that is missing.
        key: &'static str,
    },
}

impl ExitRecord {
    /// The text of the file.
    pub fn to_file(&self) -> String {
        let mut out = String::with_capacity(320 + self.reason.len());
        let flat: String = self
            .reason
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let reason = cut_at_char(&flat, MAX_REASON);
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "{FIRST_LINE}{}\npid={}\nstart_time={}\ncode={}\nsignal={}\noom_killed={}\n\
             oom_kill_count={}\nstarted_at_ns={}\nfinished_at_ns={}\nlost_bytes={}\nreason={reason}\n{LAST_LINE}\n",
            self.version,
            self.pid,
            self.start_time,
            self.code,
            self.signal,
            self.oom_killed,
            self.oom_kill_count,
            self.started_at_ns,
            self.finished_at_ns,
            self.lost_bytes,
        );
        out
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// If it is not a whole record whose pid and code can be read.
    pub fn from_file(bytes: &[u8]) -> Result<ExitRecord, ExitFileError> {
        if bytes.len() > MAX_EXIT_FILE {
            return Err(ExitFileError::TooLarge { size: bytes.len() });
        }
        let text = std::str::from_utf8(bytes).map_err(|_| ExitFileError::NotARecord)?;
        let rest = text
            .strip_prefix(FIRST_LINE)
            .ok_or(ExitFileError::NotARecord)?;
        let (version, rest) = rest.split_once('\n').ok_or(ExitFileError::Cut)?;
        let body = match rest
            .strip_suffix('\n')
            .and_then(|r| r.strip_suffix(LAST_LINE))
        {
            Some(body) if body.is_empty() || body.ends_with('\n') => body,
            _ => return Err(ExitFileError::Cut),
        };
        let mut record = ExitRecord {
            version: number("version", version)?,
            ..Default::default()
        };
        let (mut seen_pid, mut seen_code) = (false, false);
        for line in body.lines() {
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            match key {
                "pid" => (record.pid, seen_pid) = (number(key, value)?, true),
                "code" => (record.code, seen_code) = (number(key, value)?, true),
                "start_time" => record.start_time = number(key, value)?,
                "signal" => record.signal = number(key, value)?,
                "oom_killed" => record.oom_killed = number(key, value)?,
                "oom_kill_count" => record.oom_kill_count = number(key, value)?,
                "started_at_ns" => record.started_at_ns = number(key, value)?,
                "finished_at_ns" => record.finished_at_ns = number(key, value)?,
                "lost_bytes" => record.lost_bytes = number(key, value)?,
                "reason" => record.reason = value.to_string(),
                _ => {}
            }
        }
        match (seen_pid, seen_code) {
            (true, true) if (0..=255).contains(&record.code) => Ok(record),
            (true, true) => Err(ExitFileError::Value {
                key: "code".to_string(),
            }),
            (false, _) => Err(ExitFileError::Missing { key: "pid" }),
            (_, false) => Err(ExitFileError::Missing { key: "code" }),
        }
    }
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, ExitFileError> {
    value.parse().map_err(|_| ExitFileError::Value {
        key: key.to_string(),
    })
}

/// The longest beginning of `text` that has at most `limit` bytes.
fn cut_at_char(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let mut end = limit;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> ExitRecord {
        ExitRecord {
            pid: 4711,
            start_time: 8_812_345,
            code: 137,
            signal: 9,
            oom_killed: true,
            oom_kill_count: 2,
            started_at_ns: 1_764_000_000_000_000_000,
            finished_at_ns: 1_764_000_009_000_000_000,
            lost_bytes: 3,
            reason: "OOMKilled".to_string(),
            ..Default::default()
        }
    }

    /// The file of the first release. It must be readable for ever: never change this text.
    const GOLDEN: &str = "crisp-exit 1\npid=4711\nstart_time=8812345\ncode=137\nsignal=9\noom_killed=true\n\
        oom_kill_count=2\nstarted_at_ns=1764000000000000000\nfinished_at_ns=1764000009000000000\n\
        lost_bytes=3\nreason=OOMKilled\nend\n";

    #[test]
    fn golden_file() {
        assert_eq!(sample().to_file(), GOLDEN);
        assert_eq!(ExitRecord::from_file(GOLDEN.as_bytes()), Ok(sample()));
    }

    #[test]
    fn every_cut_is_noticed() {
        for cut in 0..GOLDEN.len() {
            assert!(
                ExitRecord::from_file(&GOLDEN.as_bytes()[..cut]).is_err(),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn newer_keys_are_skipped_and_bad_values_are_not() {
        let newer = GOLDEN
            .replace("crisp-exit 1", "crisp-exit 2")
            .replace("code=", "colour=blue\ncode=");
        let read = ExitRecord::from_file(newer.as_bytes()).unwrap();
        assert_eq!((read.version, read.code), (2, 137));
        for bad in ["code=256", "code=-1", "code=", "code=x", "pid=99999999999"] {
            let key = bad.split('=').next().unwrap();
            let line = GOLDEN
                .lines()
                .find(|l| l.starts_with(&format!("{key}=")))
                .unwrap();
            let text = GOLDEN.replace(line, bad);
            assert_eq!(
                ExitRecord::from_file(text.as_bytes()),
                Err(ExitFileError::Value {
                    key: key.to_string()
                }),
                "{bad}"
            );
        }
        let without = GOLDEN.replace("code=137\n", "");
        assert_eq!(
            ExitRecord::from_file(without.as_bytes()),
            Err(ExitFileError::Missing { key: "code" })
        );
    }

    #[test]
    fn a_reason_cannot_add_lines() {
        let record = ExitRecord {
            reason: "a\ncode=0\nend\n".repeat(1000),
            ..sample()
        };
        let read = ExitRecord::from_file(record.to_file().as_bytes()).unwrap();
        assert_eq!(read.code, 137);
        assert!(read.reason.len() <= MAX_REASON);
    }

    proptest! {
        #[test]
        fn round_trip(pid in 1i32.., start_time: u64, code in 0i32..=255, signal in 0i32..65, oom: bool,
                      count: u64, started: u64, finished: u64, lost: u64, reason in "[^\\p{C}]{0,80}") {
            let record = ExitRecord { version: 1, pid, start_time, code, signal, oom_killed: oom, oom_kill_count: count,
                started_at_ns: started, finished_at_ns: finished, lost_bytes: lost, reason };
            prop_assert_eq!(ExitRecord::from_file(record.to_file().as_bytes()), Ok(record));
        }

        #[test]
        fn anything_is_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = ExitRecord::from_file(&bytes);
            let mut whole = GOLDEN.as_bytes().to_vec();
            whole.extend_from_slice(&bytes);
            let _ = ExitRecord::from_file(&whole);
        }
    }
}
