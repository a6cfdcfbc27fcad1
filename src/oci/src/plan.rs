//! A plan: everything that makes one container, decided, with nothing left to look up.
//!
//! The daemon makes it (`spec`), it travels as bytes (`wire`), the monitor carries it out
//! (`apply`). Descriptors are named by their index in a table that travels with the plan.

use crate::cgroup::{DeviceRule, Hierarchy, Resources};

pub use crisp_sys::process::{Rlimit, SchedAttr};

/// Index into the table of descriptors that travels with the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FdIndex(pub u16);

/// Everything that makes one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The container's id, for messages.
    pub id: String,
    /// The directory with config.json, for hooks and humans.
    pub bundle: String,
    /// Where the root filesystem comes from.
    pub rootfs: RootfsSource,
    /// Whether the root mount itself becomes read-only after all steps.
    pub rootfs_readonly: bool,
    /// Propagation the root mount gets at the end: `MS_*` of [`crisp_sys::mount`], 0 leaves it
    /// private.
    pub rootfs_propagation: u64,
    /// Namespaces; kinds that are absent stay the host's.
    pub namespaces: Vec<NamespacePlan>,
    /// Host name to set in the UTS namespace.
    pub hostname: Option<String>,
    /// NIS domain name to set in the UTS namespace.
    pub domainname: Option<String>,
    /// Kernel parameters as (path below /proc/sys with slashes, value).
    pub sysctls: Vec<(String, String)>,
    /// What is done to the root filesystem, in order.
    pub steps: Vec<Step>,
    /// The program.
    pub process: ProcessPlan,
    /// Limits.
    pub cgroup: CgroupPlan,
    /// SELinux label for filesystems made here (`context=`).
    pub mount_label: Option<String>,
    /// Programs of others that run at points of the container's life.
    pub hooks: Option<HooksPlan>,
}

/// Where the root filesystem comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootfsSource {
    /// A mount that is attached nowhere.
    DetachedMount(FdIndex),
    /// A directory of the host, bound with the mounts below it.
    Path(String),
}

impl Default for RootfsSource {
    fn default() -> Self {
        Self::Path(String::new())
    }
}

/// One namespace of the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespacePlan {
    /// Which kind.
    pub kind: NamespaceKind,
    /// Made or joined.
    pub how: NamespaceHow,
}

/// Kinds of namespaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NamespaceKind {
    /// Process ids.
    #[default]
    Pid,
    /// Network.
    Net,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host name.
    Uts,
    /// Mounts.
    Mount,
    /// Users and capabilities.
    User,
    /// View of the cgroup tree.
    Cgroup,
    /// Boot and monotonic clocks.
    Time,
}

impl NamespaceKind {
    /// All kinds, in the order of their wire numbers.
    pub const ALL: [Self; 8] = [
        Self::Pid,
        Self::Net,
        Self::Ipc,
        Self::Uts,
        Self::Mount,
        Self::User,
        Self::Cgroup,
        Self::Time,
    ];

    /// The kind's `CLONE_NEW*` flag.
    #[must_use]
    pub const fn flag(self) -> i32 {
        match self {
            Self::Pid => 0x2000_0000,
            Self::Net => 0x4000_0000,
            Self::Ipc => 0x0800_0000,
            Self::Uts => 0x0400_0000,
            Self::Mount => 0x0002_0000,
            Self::User => 0x1000_0000,
            Self::Cgroup => 0x0200_0000,
            Self::Time => crisp_sys::ns::CLONE_NEWTIME,
        }
    }

    /// The kind's file in /proc/pid/ns.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pid => "pid",
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Mount => "mnt",
            Self::User => "user",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        }
    }
}

/// Where a namespace comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NamespaceHow {
    /// Made for this container.
    #[default]
    New,
    /// That of the process behind a pidfd.
    JoinPidfd(FdIndex),
    /// The one a file stands for.
    JoinPath(String),
}

/// One thing done to the root filesystem. Targets are absolute paths as the container sees them;
/// they are resolved inside the root, whatever links the image holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Mounts a filesystem made for this container.
    Filesystem(FilesystemStep),
    /// Mounts a file or directory of the host.
    Bind(BindStep),
    /// Makes a device node.
    Device(DeviceStep),
    /// Makes a symbolic link, unless something is there.
    Symlink {
        /// Where.
        path: String,
        /// What it says.
        target: String,
    },
    /// Makes a directory and what is missing above it.
    Mkdir {
        /// Where.
        path: String,
        /// Permission bits of what is made.
        mode: u32,
    },
    /// Hides a file behind /dev/null or a directory behind an empty one; nothing if absent.
    Mask {
        /// What.
        path: String,
    },
    /// Makes a file or directory, with the mounts below it, read-only; nothing if absent.
    ReadOnly {
        /// What.
        path: String,
    },
    /// Changes attributes of the mount at a path.
    Attributes {
        /// Where; a mount point.
        path: String,
        /// `MOUNT_ATTR_*` to set.
        set: u64,
    },
    /// Makes the container's terminal, if it has one, its /dev/console.
    Console,
}

/// A filesystem made for the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilesystemStep {
    /// Type, as in /proc/filesystems.
    pub fstype: String,
    /// What /proc/mounts shows as its source.
    pub source: String,
    /// Mount point.
    pub target: String,
    /// `MOUNT_ATTR_*`.
    pub flags: u64,
    /// Options of the filesystem, with and without value.
    pub options: Vec<(String, Option<String>)>,
    /// Propagation it gets, `MS_*`; 0 leaves it private.
    pub propagation: u64,
    /// Permission bits for a mount point that has to be made; 0755 if none.
    pub target_mode: Option<u32>,
}

/// A file or directory of the host in the container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BindStep {
    /// Path on the host. Opened right before the container's init is made.
    pub source: String,
    /// A path below `source` that is meant instead, resolved without ever leaving `source`.
    pub in_root: Option<String>,
    /// Mount point; made if absent, as a directory or an empty file like the source.
    pub target: String,
    /// Whether the mounts below the source come along.
    pub recursive: bool,
    /// `MOUNT_ATTR_*` to set on the mount.
    pub attr_set: u64,
    /// `MOUNT_ATTR_*` to clear on the mount.
    pub attr_clear: u64,
    /// `MOUNT_ATTR_*` to set on the mount and those below it (`rro` and its like).
    pub attr_set_recursive: u64,
    /// `MOUNT_ATTR_*` to clear on the mount and those below it.
    pub attr_clear_recursive: u64,
    /// Propagation, `MS_*`, perhaps with `MS_REC`; 0 stands for `MS_SLAVE | MS_REC`.
    pub propagation: u64,
    /// User namespace that translates owners.
    pub idmap: Option<FdIndex>,
    /// Whether also those of the mounts below the source.
    pub idmap_recursive: bool,
    /// A mount that is attached nowhere is attached instead of `source`, which is then a name for
    /// messages. It can be named once. `in_root` is a directory in it.
    pub detached: Option<FdIndex>,
}

/// A device node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceStep {
    /// Where.
    pub path: String,
    /// Type bits (`S_IFCHR`, `S_IFBLK`, `S_IFIFO`) and permission bits.
    pub mode: u32,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The program and what it may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessPlan {
    /// Arguments; the first one names the program.
    pub args: Vec<Vec<u8>>,
    /// Environment, `NAME=value` each.
    pub env: Vec<Vec<u8>>,
    /// Working directory.
    pub cwd: String,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub additional_gids: Vec<u32>,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// The terminal's (width, height) at first.
    pub console_size: Option<(u16, u16)>,
    /// Capability sets.
    pub capabilities: CapabilitySets,
    /// Whether no exec may gain privileges.
    pub no_new_privileges: bool,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// Badness for the OOM killer; clamped to what we may set.
    pub oom_score_adj: Option<i32>,
    /// AppArmor profile to enter at exec.
    pub apparmor: Option<String>,
    /// SELinux label to enter at exec.
    pub selinux_label: Option<String>,
    /// Filter of system calls.
    pub seccomp: Option<SeccompPlan>,
    /// Execution domain, for personality(2).
    pub personality: Option<u32>,
    /// CPU scheduling.
    pub scheduler: Option<SchedAttr>,
    /// I/O scheduling: (class, level).
    pub io_priority: Option<(u32, u32)>,
    /// The `tasks` file of its group in resctrl: what it may have of caches and memory bandwidth.
    pub resctrl: Option<String>,
    /// Whether somebody who sees the PID namespace may trace others: then a further process appears
    /// there only as what it is to be.
    pub guarded: bool,
}

/// Capability sets, one bit per capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapabilitySets {
    /// What may ever be had.
    pub bounding: u64,
    /// What is in force.
    pub effective: u64,
    /// What may be put into force.
    pub permitted: u64,
    /// What files may add to.
    pub inheritable: u64,
    /// What survives the exec of an ordinary program.
    pub ambient: u64,
}

/// A compiled filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeccompPlan {
    /// Array of `struct sock_filter`.
    pub program: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u64,
}

/// Hooks by the point at which they run, and what they are told (the state of the runtime
/// specification, as JSON on standard input).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HooksPlan {
    /// Version of the runtime specification that the container was described in.
    pub oci_version: String,
    /// Where in the mount namespace the root filesystem is while `create_container` hooks run: the
    /// directory that config.json calls `root.path`.
    pub root_path: String,
    /// Annotations of the container.
    pub annotations: Vec<(String, String)>,
    /// In our namespaces, when the root filesystem is ready: the old name of `create_runtime`.
    pub prestart: Vec<HookPlan>,
    /// In our namespaces, when the root filesystem is ready.
    pub create_runtime: Vec<HookPlan>,
    /// In the container's namespaces, before it moves into its root.
    pub create_container: Vec<HookPlan>,
    /// In the container, as its user, right before its program is executed.
    pub start_container: Vec<HookPlan>,
    /// In our namespaces, once the program was executed.
    pub poststart: Vec<HookPlan>,
    /// In our namespaces, once nothing is left of the container.
    pub poststop: Vec<HookPlan>,
}

/// A program that runs at one point.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookPlan {
    /// Absolute path.
    pub path: String,
    /// Arguments, the program's name first; the path alone if there are none.
    pub args: Vec<String>,
    /// Environment, `NAME=value` each.
    pub env: Vec<String>,
    /// Seconds after which it is killed and has failed.
    pub timeout: Option<u32>,
}

/// The container's group and limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPlan {
    /// Which trees the host has.
    pub hierarchy: Hierarchy,
    /// The group's path below each tree's mount.
    pub path: String,
    /// Limits.
    pub resources: Resources,
    /// Device policy; what no rule names is denied.
    pub device_rules: Vec<DeviceRule>,
    /// User and group of the host's that may make groups below it in the unified tree: the root of
    /// the container's user namespace.
    pub owner: Option<(u32, u32)>,
}

impl Default for CgroupPlan {
    fn default() -> Self {
        Self {
            hierarchy: Hierarchy::V1 {
                controllers: Vec::new(),
                unified: None,
            },
            path: String::new(),
            resources: Resources::default(),
            device_rules: Vec::new(),
            owner: None,
        }
    }
}
