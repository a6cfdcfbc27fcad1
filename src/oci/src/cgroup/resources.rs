//! What a container may use: plain data, as it travels in a plan.

/// Limits of one cgroup. `None` (or an empty list) leaves the kernel's or the earlier value alone.
///
/// Numbers are in the units of the OCI runtime specification (bytes, microseconds); `-1` means
/// "unlimited" wherever the type is signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// CPU weight in cgroup v1 shares (2 to 262144); 0 is taken as unset.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time per period; zero or negative: unlimited.
    pub cpu_quota: Option<i64>,
    /// Length of a period in microseconds.
    pub cpu_period: Option<u64>,
    /// Microseconds that may be saved up for a burst.
    pub cpu_burst: Option<u64>,
    /// 1 puts the group into the idle class, 0 takes it out.
    pub cpu_idle: Option<i64>,
    /// CPUs as a list, for example `0-3,7`; empty is taken as unset.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes as a list; empty is taken as unset.
    pub cpuset_mems: Option<String>,
    /// Memory in bytes; 0 is taken as unset.
    pub memory_limit: Option<i64>,
    /// Memory plus swap in bytes (the OCI and v1 meaning, also on v2); 0 is taken as unset.
    pub memory_swap: Option<i64>,
    /// Memory kept under pressure, in bytes; 0 is taken as unset.
    pub memory_reservation: Option<i64>,
    /// Refuse a memory limit below what is in use instead of reclaiming or killing for it.
    pub memory_check_before_update: bool,
    /// 0 to 100, cgroup v1 only (v2 has no such knob and ignores it).
    pub memory_swappiness: Option<u64>,
    /// Tasks; negative: unlimited; 0 acts as 1 (a group nothing can be cloned into is of no use).
    pub pids_limit: Option<i64>,
    /// Page size as the kernel spells it (`2MB`, `1GB`) and bytes.
    pub hugepages: Vec<(String, u64)>,
    /// cgroup v2 files by name, written as they are after all others.
    pub unified: Vec<(String, String)>,
    /// Weight of block I/O, 10 to 1000; 0 is taken as unset.
    pub blkio_weight: Option<u16>,
    /// Weights of single devices.
    pub blkio_weight_devices: Vec<BlkioWeight>,
    /// Rate limits of single devices.
    pub blkio_throttle: Vec<BlkioThrottle>,
}

/// Block I/O weight of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlkioWeight {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// 10 to 1000.
    pub weight: u16,
}

/// Block I/O rate limits of one device; 0 lifts a limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlkioThrottle {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Bytes read per second.
    pub read_bps: Option<u64>,
    /// Bytes written per second.
    pub write_bps: Option<u64>,
    /// Read operations per second.
    pub read_iops: Option<u64>,
    /// Write operations per second.
    pub write_iops: Option<u64>,
}

/// One rule of the device policy. Rules apply in order, later ones win; what no rule names is
/// denied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceRule {
    /// Whether the rule grants or takes away.
    pub allow: bool,
    /// Which kind of device node.
    pub kind: DeviceKind,
    /// Major number; `None` stands for all.
    pub major: Option<u32>,
    /// Minor number; `None` stands for all.
    pub minor: Option<u32>,
    /// Bits of [`DeviceRule::READ`], [`DeviceRule::WRITE`] and [`DeviceRule::MKNOD`].
    pub access: u8,
}

impl DeviceRule {
    /// Opening for reading.
    pub const READ: u8 = 1;
    /// Opening for writing.
    pub const WRITE: u8 = 2;
    /// Making a node.
    pub const MKNOD: u8 = 4;
    /// All three.
    pub const ALL: u8 = 7;
}

/// Kind of device node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceKind {
    /// Block and character devices.
    #[default]
    All,
    /// Block devices.
    Block,
    /// Character devices.
    Char,
}
