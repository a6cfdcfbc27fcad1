//! What a group uses.
//!
//! [`Cgroup::stats`] is what is asked for every second and reads some ten small files;
//! [`Cgroup::details`] is the rest, for those who collect metrics. Nothing is kept open: a few
//! hundred groups in ten trees would be thousands of descriptors.

mod parse;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::setting::shares_of_weight;
use super::{Cgroup, CgroupError, is_gone};

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
    /// The limit of swap alone, in bytes; `None` also where there is none.
    pub swap_limit: Option<u64>,
    /// Tasks.
    pub pids: Option<u64>,
    /// The limit of tasks; `None` also where there is none.
    pub pids_limit: Option<u64>,
    /// Time lost for want of CPU.
    pub cpu_pressure: Option<Pressure>,
    /// Time lost for want of memory.
    pub memory_pressure: Option<Pressure>,
    /// Time lost waiting for devices.
    pub io_pressure: Option<Pressure>,
}

/// How much time was lost waiting for something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// While at least one task waited.
    pub some: Share,
    /// While all tasks did.
    pub full: Share,
}

/// One line of pressure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Microseconds since the group was made.
    pub total_us: u64,
    /// Of the last ten seconds, in hundredths of a percent.
    pub avg10: u32,
    /// Of the last minute.
    pub avg60: u32,
    /// Of the last five minutes.
    pub avg300: u32,
}

/// What metrics tell beyond [`Stats`]; `None` where the host does not account for it, or nothing is
/// limited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// CPU time outside of the kernel, in nanoseconds.
    pub cpu_user_ns: Option<u64>,
    /// CPU time inside of it.
    pub cpu_system_ns: Option<u64>,
    /// Periods of the quota that had tasks to run.
    pub cfs_periods: Option<u64>,
    /// Those in which the quota was used up.
    pub cfs_throttled_periods: Option<u64>,
    /// How long tasks were held back in them, in nanoseconds.
    pub cfs_throttled_ns: Option<u64>,
    /// Microseconds of a period of the quota.
    pub cpu_period: Option<u64>,
    /// Microseconds in it.
    pub cpu_quota: Option<u64>,
    /// Weight, on the scale of v1.
    pub cpu_shares: Option<u64>,
    /// Page cache in bytes.
    pub memory_cache: Option<u64>,
    /// Mapped files in bytes.
    pub memory_mapped_file: Option<u64>,
    /// Memory of the kernel's own, in bytes.
    pub memory_kernel: Option<u64>,
    /// The most that was ever used, in bytes.
    pub memory_peak: Option<u64>,
    /// How often the limit was hit.
    pub memory_limit_hits: Option<u64>,
    /// Memory kept under pressure, in bytes.
    pub memory_reservation: Option<u64>,
    /// Page faults of the group without those below it, where the host tells them apart.
    pub own_page_faults: Option<u64>,
    /// The same of those that waited for a device.
    pub own_major_page_faults: Option<u64>,
    /// Processes that the kernel killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Block devices.
    pub io: Vec<DeviceIo>,
    /// Hugepages by the size as the kernel spells it, for the sizes asked about.
    pub hugepages: Vec<HugepageUse>,
}

/// What a group did with a block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Operations.
    pub reads: u64,
    /// Operations.
    pub writes: u64,
}

/// Hugepages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugepageUse {
    /// `2MB` and the like.
    pub size: String,
    /// Bytes in use.
    pub usage: u64,
    /// The most that were; the same as `usage` where the host does not remember.
    pub peak: u64,
}

impl Cgroup {
    /// Reads the usage: some ten small files.
    ///
    /// # Errors
    /// [`CgroupError::Read`] when the group is gone (its source is `NotFound`) or unreadable.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        let mut stats = if self.v2 {
            self.stats_v2()?
        } else {
            self.stats_v1()?
        };
        if let Some(dir) = self.controller("pids") {
            stats.pids = number(dir, "pids.current")?;
            stats.pids_limit = number(dir, "pids.max")?;
        }
        // The unified tree knows pressure whether or not it has controllers.
        if let Some(dir) = self.unified() {
            stats.cpu_pressure = pressure(dir, "cpu.pressure")?;
            stats.memory_pressure = pressure(dir, "memory.pressure")?;
            stats.io_pressure = pressure(dir, "io.pressure")?;
        }
        Ok(stats)
    }

    /// Reads what metrics tell beyond [`Cgroup::stats`]. Hugepages of `sizes` are told, if the host
    /// accounts for them.
    ///
    /// # Errors
    /// As for [`Cgroup::stats`].
    pub fn details(&self, sizes: &[String]) -> Result<Details, CgroupError> {
        let mut details = if self.v2 {
            self.details_v2()?
        } else {
            self.details_v1()?
        };
        if let Some(dir) = self.controller("hugetlb") {
            for size in sizes {
                details.hugepages.extend(hugepages(dir, size, self.v2)?);
            }
        }
        Ok(details)
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
            stats.memory_limit = number(dir, "memory.limit_in_bytes")?;
            with(dir, "memory.stat", |text| {
                stats.memory(text, "total_inactive_file", "total_rss", "total_");
                stats.swap_usage = parse::field(text, "total_swap");
            })?;
            // The limit is of the sum. Without accounting of swap there is no such file.
            let sum = number(dir, "memory.memsw.limit_in_bytes")?;
            stats.swap_limit = sum
                .zip(stats.memory_limit)
                .map(|(sum, memory)| sum.saturating_sub(memory));
        }
        Ok(stats)
    }

    fn stats_v2(&self) -> Result<Stats, CgroupError> {
        let mut stats = Stats::default();
        let Some(dir) = self.unified() else {
            return Ok(stats);
        };
        with(dir, "cpu.stat", |text| {
            stats.cpu_usage_ns = nanoseconds(text, "usage_usec");
        })?;
        stats.memory_usage = number(dir, "memory.current")?;
        stats.memory_limit = number(dir, "memory.max")?;
        with(dir, "memory.stat", |text| {
            stats.memory(text, "inactive_file", "anon", "")
        })?;
        stats.swap_usage = number(dir, "memory.swap.current")?;
        stats.swap_limit = number(dir, "memory.swap.max")?;
        Ok(stats)
    }

    fn details_v1(&self) -> Result<Details, CgroupError> {
        let mut details = Details::default();
        if let Some(dir) = self.controller("cpuacct") {
            details.cpu_user_ns = number(dir, "cpuacct.usage_user")?;
            details.cpu_system_ns = number(dir, "cpuacct.usage_sys")?;
        }
        if let Some(dir) = self.controller("cpu") {
            with(dir, "cpu.stat", |text| {
                details.throttling(text);
                details.cfs_throttled_ns = parse::field(text, "throttled_time");
            })?;
            details.cpu_period = number(dir, "cpu.cfs_period_us")?;
            with(dir, "cpu.cfs_quota_us", |text| {
                details.cpu_quota = parse::quota(text);
            })?;
            details.cpu_shares = number(dir, "cpu.shares")?;
        }
        if let Some(dir) = self.controller("memory") {
            with(dir, "memory.stat", |text| {
                details.memory_cache = parse::field(text, "total_cache");
                details.memory_mapped_file = parse::field(text, "total_mapped_file");
                details.own_page_faults = parse::field(text, "pgfault");
                details.own_major_page_faults = parse::field(text, "pgmajfault");
            })?;
            details.memory_kernel = number(dir, "memory.kmem.usage_in_bytes")?;
            details.memory_peak = number(dir, "memory.max_usage_in_bytes")?;
            details.memory_limit_hits = number(dir, "memory.failcnt")?;
            details.memory_reservation = number(dir, "memory.soft_limit_in_bytes")?;
            with(dir, "memory.oom_control", |text| {
                details.oom_kills = parse::field(text, "oom_kill");
            })?;
        }
        if let Some(dir) = self.controller("blkio") {
            let io = &mut details.io;
            with(dir, "blkio.throttle.io_service_bytes_recursive", |text| {
                parse::blkio(text, parse::Half::Bytes, io)
            })?;
            with(dir, "blkio.throttle.io_serviced_recursive", |text| {
                parse::blkio(text, parse::Half::Operations, io);
            })?;
        }
        Ok(details)
    }

    fn details_v2(&self) -> Result<Details, CgroupError> {
        let mut details = Details::default();
        let Some(dir) = self.unified() else {
            return Ok(details);
        };
        with(dir, "cpu.stat", |text| {
            details.cpu_user_ns = nanoseconds(text, "user_usec");
            details.cpu_system_ns = nanoseconds(text, "system_usec");
            details.throttling(text);
            details.cfs_throttled_ns = nanoseconds(text, "throttled_usec");
        })?;
        with(dir, "cpu.max", |text| {
            details.cpu_quota = parse::quota(text);
            details.cpu_period = parse::period(text);
        })?;
        details.cpu_shares = number(dir, "cpu.weight")?.map(shares_of_weight);
        with(dir, "memory.stat", |text| {
            details.memory_cache = parse::field(text, "file");
            details.memory_mapped_file = parse::field(text, "file_mapped");
            details.memory_kernel = parse::field(text, "kernel");
        })?;
        details.memory_peak = number(dir, "memory.peak")?;
        details.memory_reservation = number(dir, "memory.low")?;
        with(dir, "memory.events", |text| {
            details.memory_limit_hits = parse::field(text, "max");
            details.oom_kills = parse::field(text, "oom_kill");
        })?;
        with(dir, "io.stat", |text| {
            parse::io_stat(text, &mut details.io);
        })?;
        Ok(details)
    }
}

impl Stats {
    fn memory(&mut self, text: &str, inactive: &str, anonymous: &str, prefix: &str) {
        let inactive = parse::field(text, inactive).unwrap_or(0);
        self.memory_working_set = self
            .memory_usage
            .map(|usage| usage.saturating_sub(inactive));
        self.memory_rss = parse::field(text, anonymous);
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

impl Details {
    fn throttling(&mut self, text: &str) {
        self.cfs_periods = parse::field(text, "nr_periods");
        self.cfs_throttled_periods = parse::field(text, "nr_throttled");
    }
}

fn nanoseconds(text: &str, name: &str) -> Option<u64> {
    parse::field(text, name).map(|usec| usec.saturating_mul(1000))
}

fn hugepages(dir: &Path, size: &str, v2: bool) -> Result<Option<HugepageUse>, CgroupError> {
    let (usage, peak) = match v2 {
        true => (number(dir, &format!("hugetlb.{size}.current"))?, None),
        false => (
            number(dir, &format!("hugetlb.{size}.usage_in_bytes"))?,
            number(dir, &format!("hugetlb.{size}.max_usage_in_bytes"))?,
        ),
    };
    Ok(usage.map(|usage| HugepageUse {
        size: size.to_owned(),
        usage,
        peak: peak.unwrap_or(usage),
    }))
}

/// The number a file holds; `None` for "no limit", and for a file that is not there though the group
/// is.
fn number(dir: &Path, file: &str) -> Result<Option<u64>, CgroupError> {
    let mut value = None;
    with(dir, file, |text| value = parse::number(text))?;
    Ok(value)
}

fn pressure(dir: &Path, file: &str) -> Result<Option<Pressure>, CgroupError> {
    let mut value = None;
    with(dir, file, |text| value = parse::pressure(text))?;
    Ok(value)
}

/// Hands a file's text to `take`. What does not fit is no file of figures and is cut.
fn with(dir: &Path, file: &str, take: impl FnOnce(&str)) -> Result<(), CgroupError> {
    let path = dir.join(file);
    let mut buffer = [0; 16384];
    match read(&path, &mut buffer) {
        Ok(length) => take(std::str::from_utf8(&buffer[..length]).unwrap_or_default()),
        // An older kernel, or one without swap or PSI.
        Err(error) if is_absent(&error) && dir.exists() => {}
        Err(source) => return Err(CgroupError::Read { path, source }),
    }
    Ok(())
}

/// One call reads a control file whole: the kernel makes all of its text at the first, and hands out
/// as much of it as fits. Asking again only to hear that this was the end would cost as much as opening.
fn read(path: &Path, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match File::open(path)?.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn is_absent(error: &io::Error) -> bool {
    const EOPNOTSUPP: i32 = 95;
    is_gone(error) || error.raw_os_error() == Some(EOPNOTSUPP)
}
