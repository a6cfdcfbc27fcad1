//! What the kernel says of a process's control groups: the truth that answers are compared with.

use std::{fs, io, path::PathBuf};

/// A control file by its names in both versions.
#[derive(Debug, Clone, Copy)]
pub struct File {
    /// Controller of v1.
    pub controller: &'static str,
    /// File of v1.
    pub v1: &'static str,
    /// File of v2.
    pub v2: &'static str,
}

/// CPU time.
pub const CPU: File = File {
    controller: "cpuacct",
    v1: "cpuacct.usage",
    v2: "cpu.stat",
};
/// The weight of the CPU share.
pub const SHARES: File = File {
    controller: "cpu",
    v1: "cpu.shares",
    v2: "cpu.weight",
};
/// The quota; v2 has the period behind it.
pub const QUOTA: File = File {
    controller: "cpu",
    v1: "cpu.cfs_quota_us",
    v2: "cpu.max",
};
/// Memory in use.
pub const MEMORY: File = File {
    controller: "memory",
    v1: "memory.usage_in_bytes",
    v2: "memory.current",
};
/// The memory limit.
pub const MEMORY_LIMIT: File = File {
    controller: "memory",
    v1: "memory.limit_in_bytes",
    v2: "memory.max",
};

/// The directory of a process's group that has `file`.
///
/// # Errors
/// When the process is gone, or no group of it has the controller.
pub fn directory(pid: u32, file: File) -> io::Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        if controllers.split(',').any(|name| name == file.controller) {
            let joined = PathBuf::from(format!("/sys/fs/cgroup/{controllers}{path}"));
            if joined.exists() {
                return Ok(joined);
            }
            return Ok(PathBuf::from(format!(
                "/sys/fs/cgroup/{}{path}",
                file.controller
            )));
        }
    }
    let unified = text.lines().find_map(|line| line.strip_prefix("0::"));
    unified
        .map(|path| PathBuf::from(format!("/sys/fs/cgroup{path}")))
        .ok_or_else(|| io::Error::other(format!("{} is in no group: {text}", file.controller)))
}

/// What the file of a process's group says.
///
/// # Errors
/// When there is no such file.
pub fn read(pid: u32, file: File) -> io::Result<String> {
    let directory = directory(pid, file)?;
    let v1 = directory.join(file.v1);
    let path = if v1.exists() {
        v1
    } else {
        directory.join(file.v2)
    };
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

/// The number it says, or says after `usage_usec`, that in nanoseconds.
///
/// # Errors
/// When there is none.
pub fn number(pid: u32, file: File) -> io::Result<u64> {
    let text = read(pid, file)?;
    let usec = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "));
    let parsed = match usec {
        Some(usec) => usec.parse::<u64>().map(|usec| usec * 1000),
        None => text.parse(),
    };
    parsed.map_err(|error| io::Error::other(format!("{text:?}: {error}")))
}
