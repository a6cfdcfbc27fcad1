//! Plans as bytes.
//!
//! Every field has a tag that is never given another meaning; a reader of an older release skips
//! what it does not know, one of a newer release takes the default for what is not there. So a
//! field whose absence would weaken a container must be refused by `apply` when it is empty, not
//! defaulted here.

use std::path::PathBuf;

use crate::cgroup::{BlkioThrottle, BlkioWeight, DeviceKind, DeviceRule, Hierarchy, Resources};
use crate::plan::{
    BindStep, CapabilitySets, CgroupPlan, DeviceStep, FdIndex, FilesystemStep, HookPlan, HooksPlan,
    NamespaceHow, NamespaceKind, NamespacePlan, Plan, ProcessPlan, Rlimit, RootfsSource, SchedAttr,
    SeccompPlan, Step,
};
use crate::tlv::{MAX_ITEMS, Reader, Record, TlvError, Writer};

/// Why bytes are no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The records themselves are broken.
    #[error("broken record")]
    Tlv(#[from] TlvError),
    /// A variant of a choice is of a release newer than this one.
    #[error("unknown {what} {number}")]
    Unknown {
        /// Which choice.
        what: &'static str,
        /// Its number.
        number: u64,
    },
    /// Something that has no default is absent.
    #[error("{0} is absent")]
    Absent(&'static str),
}

/// Writes a plan.
#[must_use]
pub fn encode(plan: &Plan) -> Vec<u8> {
    let mut writer = Writer::new();
    plan.put_fields(&mut writer);
    writer.into_bytes()
}

/// Reads a plan. Never panics, whatever the bytes are.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode(bytes: &[u8]) -> Result<Plan, DecodeError> {
    let plan = Plan::take_fields(Reader::new(bytes)?)?;
    if plan.id.is_empty() {
        return Err(DecodeError::Absent("id"));
    }
    Ok(plan)
}

/// Writes what a process is to be, for the exec protocol.
#[must_use]
pub fn encode_process(process: &ProcessPlan) -> Vec<u8> {
    let mut writer = Writer::new();
    process.put_fields(&mut writer);
    writer.into_bytes()
}

/// Reads what a process is to be.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode_process(bytes: &[u8]) -> Result<ProcessPlan, DecodeError> {
    ProcessPlan::take_fields(Reader::new(bytes)?)
}

/// A value under a tag.
trait Field: Sized {
    fn put(&self, writer: &mut Writer, tag: u16);
    /// Takes one record of the field's tag; lists get one call per item.
    fn read_item(&mut self, record: &Record<'_>) -> Result<(), DecodeError>;
}

/// A structure: a group of fields.
trait Group: Default {
    fn put_fields(&self, writer: &mut Writer);
    fn take_fields(reader: Reader<'_>) -> Result<Self, DecodeError>;
}

macro_rules! numbers {
    ($($type:ty: $wide:ty, $put:ident, $take:ident;)*) => {$(
        impl Field for $type {
            fn put(&self, writer: &mut Writer, tag: u16) {
                writer.$put(tag, <$wide>::from(*self));
            }
            fn read_item(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
                *self = record.$take()?;
                Ok(())
            }
        }
    )*};
}

numbers! {
    u64: u64, put_u64, unsigned;
    u32: u64, put_u64, unsigned;
    u16: u64, put_u64, unsigned;
    i64: i64, put_i64, signed;
    i32: i64, put_i64, signed;
    bool: bool, put_bool, bool;
}

impl Field for String {
    fn put(&self, writer: &mut Writer, tag: u16) {
        writer.put_str(tag, self);
    }
    fn read_item(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        *self = record.str()?.to_owned();
        Ok(())
    }
}

impl Field for Vec<u8> {
    fn put(&self, writer: &mut Writer, tag: u16) {
        writer.put_bytes(tag, self);
    }
    fn read_item(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        *self = record.value.to_vec();
        Ok(())
    }
}

impl Field for PathBuf {
    fn put(&self, writer: &mut Writer, tag: u16) {
        use std::os::unix::ffi::OsStrExt;
        writer.put_bytes(tag, self.as_os_str().as_bytes());
    }
    fn read_item(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        use std::os::unix::ffi::OsStrExt;
        *self = PathBuf::from(std::ffi::OsStr::from_bytes(record.value));
        Ok(())
    }
}

impl Field for FdIndex {
    fn put(&self, writer: &mut Writer, tag: u16) {
        self.0.put(writer, tag);
    }
    fn read_item(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        self.0.read_item(record)
    }
}

impl<T: Field + Default> Field for Option<T> {
    fn put(&self, writer: &mut Writer, tag: u16) {
        if let Some(value) = self {
            value.put(writer, tag);
        }
    }
    fn read_item(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        self.insert(T::default()).read_item(record)
    }
}

impl<T: Field + Default> Field for Vec<T> {
    fn put(&self, writer: &mut Writer, tag: u16) {
        for item in self {
            item.put(writer, tag);
        }
    }
    fn read_item(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        if self.len() >= MAX_ITEMS {
            return Err(TlvError::TooMany(record.tag).into());
        }
        let mut item = T::default();
        item.read_item(record)?;
        self.push(item);
        Ok(())
    }
}

impl<A: Field + Default, B: Field + Default> Field for (A, B) {
    fn put(&self, writer: &mut Writer, tag: u16) {
        writer.put_group(tag, |group| {
            self.0.put(group, 1);
            self.1.put(group, 2);
        });
    }
    fn read_item(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        *self = Self::default();
        for inner in record.group()? {
            let inner = inner?;
            match inner.tag {
                1 => self.0.read_item(&inner)?,
                2 => self.1.read_item(&inner)?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Declares structures by their tags. A tag, once released, is never reused.
macro_rules! groups {
    ($($type:ident { $($tag:literal $field:ident)* })*) => {$(
        impl Group for $type {
            fn put_fields(&self, writer: &mut Writer) {
                $(self.$field.put(writer, $tag);)*
            }
            fn take_fields(reader: Reader<'_>) -> Result<Self, DecodeError> {
                let mut value = Self::default();
                for record in reader {
                    let record = record?;
                    match record.tag {
                        $($tag => value.$field.read_item(&record)?,)*
                        _ => {}
                    }
                }
                Ok(value)
            }
        }
        impl Field for $type {
            fn put(&self, writer: &mut Writer, tag: u16) {
                writer.put_group(tag, |group| self.put_fields(group));
            }
            fn read_item(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
                *self = Self::take_fields(record.group()?)?;
                Ok(())
            }
        }
    )*};
}

groups! {
    Plan {
        1 id 2 bundle 3 rootfs 4 rootfs_readonly 5 rootfs_propagation 6 namespaces 7 hostname
        8 domainname 9 sysctls 10 steps 11 process 12 cgroup 13 mount_label 14 hooks
    }
    NamespacePlan { 1 kind 2 how }
    FilesystemStep {
        1 fstype 2 source 3 target 4 flags 5 options 6 propagation 7 target_mode
    }
    BindStep {
        1 source 2 in_root 3 target 4 recursive 5 attr_set 6 attr_clear 7 attr_set_recursive
        8 attr_clear_recursive 9 propagation 10 idmap 11 idmap_recursive 12 detached
    }
    DeviceStep { 1 path 2 mode 3 major 4 minor 5 uid 6 gid }
    ProcessPlan {
        1 args 2 env 3 cwd 4 uid 5 gid 6 additional_gids 7 umask 8 terminal 9 console_size
        10 capabilities 11 no_new_privileges 12 rlimits 13 oom_score_adj 14 apparmor
        15 selinux_label 16 seccomp 17 personality 18 scheduler 19 io_priority 20 resctrl
        21 guarded
    }
    HooksPlan {
        1 oci_version 2 root_path 3 annotations 4 prestart 5 create_runtime 6 create_container
        7 start_container 8 poststart 9 poststop
    }
    HookPlan { 1 path 2 args 3 env 4 timeout }
    CapabilitySets { 1 bounding 2 effective 3 permitted 4 inheritable 5 ambient }
    RlimitFields { 1 resource 2 soft 3 hard }
    SchedAttr { 1 policy 2 flags 3 nice 4 priority 5 runtime 6 deadline 7 period }
    SeccompPlan { 1 program 2 flags }
    CgroupPlan { 1 hierarchy 2 path 3 resources 4 device_rules 5 owner }
    Resources {
        1 cpu_shares 2 cpu_quota 3 cpu_period 4 cpu_burst 5 cpu_idle 6 cpuset_cpus 7 cpuset_mems
        8 memory_limit 9 memory_swap 10 memory_reservation 11 memory_check_before_update
        12 memory_swappiness 13 pids_limit 14 hugepages 15 unified 16 blkio_weight
        17 blkio_weight_devices 18 blkio_throttle
    }
    BlkioWeight { 1 major 2 minor 3 weight }
    BlkioThrottle { 1 major 2 minor 3 read_bps 4 write_bps 5 read_iops 6 write_iops }
    DeviceRuleFields { 1 allow 2 kind 3 major 4 minor 5 access }
    V1Fields { 1 controllers 2 unified }
    LinkFields { 1 path 2 target }
    MkdirFields { 1 path 2 mode }
    AttributesFields { 1 path 2 set }
}

/// [`Rlimit`] has no default of its own.
#[derive(Default)]
struct RlimitFields {
    resource: u32,
    soft: u64,
    hard: u64,
}

/// [`DeviceRule`] with its access bits as wide as the wire's.
#[derive(Default)]
struct DeviceRuleFields {
    allow: bool,
    kind: DeviceKind,
    major: Option<u32>,
    minor: Option<u32>,
    access: u16,
}

#[derive(Default)]
struct V1Fields {
    controllers: Vec<(String, PathBuf)>,
    unified: Option<PathBuf>,
}

#[derive(Default)]
struct LinkFields {
    path: String,
    target: String,
}

#[derive(Default)]
struct MkdirFields {
    path: String,
    mode: u32,
}

#[derive(Default)]
struct AttributesFields {
    path: String,
    set: u64,
}

impl Field for Vec<Rlimit> {
    fn put(&self, writer: &mut Writer, tag: u16) {
        for Rlimit {
            resource,
            soft,
            hard,
        } in self
        {
            RlimitFields {
                resource: *resource,
                soft: *soft,
                hard: *hard,
            }
            .put(writer, tag);
        }
    }
    fn read_item(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        if self.len() >= MAX_ITEMS {
            return Err(TlvError::TooMany(record.tag).into());
        }
        let RlimitFields {
            resource,
            soft,
            hard,
        } = Group::take_fields(record.group()?)?;
        self.push(Rlimit {
            resource,
            soft,
            hard,
        });
        Ok(())
    }
}

impl Field for DeviceRule {
    fn put(&self, writer: &mut Writer, tag: u16) {
        let Self {
            allow,
            kind,
            major,
            minor,
            access,
        } = self.clone();
        DeviceRuleFields {
            allow,
            kind,
            major,
            minor,
            access: access.into(),
        }
        .put(writer, tag);
    }
    fn read_item(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        let DeviceRuleFields {
            allow,
            kind,
            major,
            minor,
            access,
        } = Group::take_fields(record.group()?)?;
        let access = u8::try_from(access).map_err(|_| DecodeError::Unknown {
            what: "device access",
            number: access.into(),
        })?;
        *self = Self {
            allow,
            kind,
            major,
            minor,
            access,
        };
        Ok(())
    }
}

impl Field for DeviceKind {
    fn put(&self, writer: &mut Writer, tag: u16) {
        let number = match self {
            Self::All => 0,
            Self::Block => 1,
            Self::Char => 2,
        };
        writer.put_u64(tag, number);
    }
    fn read_item(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        *self = match record.u64()? {
            0 => Self::All,
            1 => Self::Block,
            2 => Self::Char,
            number => {
                return Err(DecodeError::Unknown {
                    what: "device kind",
                    number,
                });
            }
        };
        Ok(())
    }
}

impl Field for NamespaceKind {
    fn put(&self, writer: &mut Writer, tag: u16) {
        let number = Self::ALL
            .iter()
            .position(|kind| kind == self)
            .expect("ALL has every kind");
        writer.put_u64(tag, number as u64);
    }
    fn read_item(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        let number = record.u64()?;
        let known = usize::try_from(number)
            .ok()
            .and_then(|at| Self::ALL.get(at));
        *self = *known.ok_or(DecodeError::Unknown {
            what: "namespace kind",
            number,
        })?;
        Ok(())
    }
}

/// A choice: a group with one record, whose tag is the variant.
fn choice<'a>(record: &Record<'a>, what: &'static str) -> Result<Record<'a>, DecodeError> {
    let mut inner = record.group()?;
    inner
        .next()
        .ok_or(DecodeError::Absent(what))?
        .map_err(DecodeError::from)
}

fn taken<T: Field + Default>(record: &Record<'_>) -> Result<T, DecodeError> {
    let mut value = T::default();
    value.read_item(record)?;
    Ok(value)
}

impl Field for RootfsSource {
    fn put(&self, writer: &mut Writer, tag: u16) {
        writer.put_group(tag, |group| match self {
            Self::DetachedMount(index) => index.put(group, 1),
            Self::Path(path) => path.put(group, 2),
        });
    }
    fn read_item(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        let inner = choice(record, "rootfs")?;
        *self = match inner.tag {
            1 => Self::DetachedMount(taken(&inner)?),
            2 => Self::Path(taken(&inner)?),
            tag => {
                return Err(DecodeError::Unknown {
                    what: "rootfs",
                    number: tag.into(),
                });
            }
        };
        Ok(())
    }
}

impl Field for NamespaceHow {
    fn put(&self, writer: &mut Writer, tag: u16) {
        writer.put_group(tag, |group| match self {
            Self::New => true.put(group, 1),
            Self::JoinPidfd(index) => index.put(group, 2),
            Self::JoinPath(path) => path.put(group, 3),
        });
    }
    fn read_item(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        let inner = choice(record, "namespace")?;
        *self = match inner.tag {
            1 => Self::New,
            2 => Self::JoinPidfd(taken(&inner)?),
            3 => Self::JoinPath(taken(&inner)?),
            tag => {
                return Err(DecodeError::Unknown {
                    what: "namespace",
                    number: tag.into(),
                });
            }
        };
        Ok(())
    }
}

impl Field for Hierarchy {
    fn put(&self, writer: &mut Writer, tag: u16) {
        writer.put_group(tag, |group| match self {
            Self::V2 { mount } => mount.put(group, 1),
            Self::V1 {
                controllers,
                unified,
            } => {
                V1Fields {
                    controllers: controllers.clone(),
                    unified: unified.clone(),
                }
                .put(group, 2);
            }
        });
    }
    fn read_item(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        let inner = choice(record, "cgroup hierarchy")?;
        *self = match inner.tag {
            1 => Self::V2 {
                mount: taken(&inner)?,
            },
            2 => {
                let V1Fields {
                    controllers,
                    unified,
                } = taken(&inner)?;
                Self::V1 {
                    controllers,
                    unified,
                }
            }
            tag => {
                return Err(DecodeError::Unknown {
                    what: "cgroup hierarchy",
                    number: tag.into(),
                });
            }
        };
        Ok(())
    }
}

impl Field for Vec<Step> {
    fn put(&self, writer: &mut Writer, tag: u16) {
        for step in self {
            writer.put_group(tag, |group| match step {
                Step::Filesystem(inner) => inner.put(group, 1),
                Step::Bind(inner) => inner.put(group, 2),
                Step::Device(inner) => inner.put(group, 3),
                Step::Symlink { path, target } => {
                    LinkFields {
                        path: path.clone(),
                        target: target.clone(),
                    }
                    .put(group, 4);
                }
                Step::Mkdir { path, mode } => {
                    MkdirFields {
                        path: path.clone(),
                        mode: *mode,
                    }
                    .put(group, 5);
                }
                Step::Mask { path } => path.put(group, 6),
                Step::ReadOnly { path } => path.put(group, 7),
                Step::Console => true.put(group, 8),
                Step::Attributes { path, set } => {
                    AttributesFields {
                        path: path.clone(),
                        set: *set,
                    }
                    .put(group, 9);
                }
            });
        }
    }
    fn read_item(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        if self.len() >= MAX_ITEMS {
            return Err(TlvError::TooMany(record.tag).into());
        }
        let inner = choice(record, "step")?;
        self.push(match inner.tag {
            1 => Step::Filesystem(taken(&inner)?),
            2 => Step::Bind(taken(&inner)?),
            3 => Step::Device(taken(&inner)?),
            4 => {
                let LinkFields { path, target } = taken(&inner)?;
                Step::Symlink { path, target }
            }
            5 => {
                let MkdirFields { path, mode } = taken(&inner)?;
                Step::Mkdir { path, mode }
            }
            6 => Step::Mask {
                path: taken(&inner)?,
            },
            7 => Step::ReadOnly {
                path: taken(&inner)?,
            },
            8 => Step::Console,
            9 => {
                let AttributesFields { path, set } = taken(&inner)?;
                Step::Attributes { path, set }
            }
            // A step that is skipped could be the one that hides something.
            tag => {
                return Err(DecodeError::Unknown {
                    what: "step",
                    number: tag.into(),
                });
            }
        });
        Ok(())
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
