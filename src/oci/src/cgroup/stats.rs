//! What a group uses.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::{Cgroup, CgroupError};

/// Usage at one moment; `None` where the host does not account for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time since the group was made, in nanoseconds.
    pub cpu_usage_ns: Option<u64>,
    /// All memory charged to the group, page cache included, in bytes.
    pub memory_usage: Option<u64>,
    /// Usage without the page cache that would be given up first: what kubelet judges by.
    pub memory_working_set: Option<u64>,
    /// Anonymous memory in bytes.
    pub memory_rss: Option<u64>,
    /// The limit of memory in bytes; `None` also where there is none.
    pub memory_limit: Option<u64>,
    /// Page faults.
    pub page_faults: Option<u64>,
    /// Page faults that waited for a device.
    pub major_page_faults: Option<u64>,
    /// Swap in use, in bytes.
    pub swap_usage: Option<u64>,
    /// Tasks.
    pub pids: Option<u64>,
    /// The limit of tasks; `None` also where there is none.
    pub pids_limit: Option<u64>,
}

/// v1 says "unlimited" by the largest multiple of a page.
const V1_UNLIMITED: u64 = 1 << 62;

impl Cgroup {
    /// Reads the usage: some six small files.
    ///
    /// # Errors
    /// [`CgroupError::Read`] when the group is gone (its source is `NotFound`) or unreadable.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        if self.v2 {
            self.stats_v2()
        } else {
            self.stats_v1()
        }
    }

    /// Memory in use, for the check before a limit shrinks.
    pub(super) fn memory_usage(&self) -> Result<Option<u64>, CgroupError> {
        let file = if self.v2 {
            "memory.current"
        } else {
            "memory.usage_in_bytes"
        };
        self.controller("memory")
            .map_or(Ok(None), |dir| number(dir, file))
    }

    fn stats_v1(&self) -> Result<Stats, CgroupError> {
        let mut stats = Stats::default();
        if let Some(dir) = self.controller("cpuacct") {
            stats.cpu_usage_ns = number(dir, "cpuacct.usage")?;
        }
        if let Some(dir) = self.controller("memory") {
            stats.memory_usage = number(dir, "memory.usage_in_bytes")?;
            stats.memory_limit =
                number(dir, "memory.limit_in_bytes")?.filter(|limit| *limit < V1_UNLIMITED);
            with(dir, "memory.stat", |text| {
                stats.memory(text, "total_inactive_file", "total_rss", "total_");
                stats.swap_usage = field(text, "total_swap");
            })?;
        }
        self.pids_into(&mut stats)?;
        Ok(stats)
    }

    fn stats_v2(&self) -> Result<Stats, CgroupError> {
        let mut stats = Stats::default();
        let Some(dir) = self.unified() else {
            return Ok(stats);
        };
        with(dir, "cpu.stat", |text| {
            stats.cpu_usage_ns = field(text, "usage_usec").map(|usec| usec.saturating_mul(1000));
        })?;
        stats.memory_usage = number(dir, "memory.current")?;
        stats.memory_limit = number(dir, "memory.max")?;
        with(dir, "memory.stat", |text| {
            stats.memory(text, "inactive_file", "anon", "")
        })?;
        stats.swap_usage = number(dir, "memory.swap.current")?;
        self.pids_into(&mut stats)?;
        Ok(stats)
    }

    fn pids_into(&self, stats: &mut Stats) -> Result<(), CgroupError> {
        if let Some(dir) = self.controller("pids") {
            stats.pids = number(dir, "pids.current")?;
            stats.pids_limit = number(dir, "pids.max")?;
        }
        Ok(())
    }
}

impl Stats {
    fn memory(&mut self, text: &str, inactive: &str, anonymous: &str, prefix: &str) {
        let inactive = field(text, inactive).unwrap_or(0);
        self.memory_working_set = self
            .memory_usage
            .map(|usage| usage.saturating_sub(inactive));
        self.memory_rss = field(text, anonymous);
        let faults = |name: &str| {
            let value = |line: &str| {
                line.strip_prefix(prefix)?
                    .strip_prefix(name)?
                    .strip_prefix(' ')?
                    .parse()
                    .ok()
            };
            text.lines().find_map(value)
        };
        self.page_faults = faults("pgfault");
        self.major_page_faults = faults("pgmajfault");
    }
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// The number a file holds; `None` for `max`, and for a file that is not there though the group is.
fn number(dir: &Path, file: &str) -> Result<Option<u64>, CgroupError> {
    let mut value = None;
    with(dir, file, |text| value = text.trim().parse().ok())?;
    Ok(value)
}

/// Hands a file's text to `take`, read in one go: these files fit and change while they are read.
fn with(dir: &Path, file: &str, take: impl FnOnce(&str)) -> Result<(), CgroupError> {
    let path = dir.join(file);
    let mut buffer = [0; 8192];
    match File::open(&path).and_then(|mut file| file.read(&mut buffer)) {
        Ok(length) => take(std::str::from_utf8(&buffer[..length]).unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound && dir.exists() => {}
        Err(source) => return Err(CgroupError::Read { path, source }),
    }
    Ok(())
}
