//! What a client asked of a container: owned, validated, free of protobuf.
//!
//! Built by `cri::convert` and trusted ever after; stored in the container's record file (see
//! `sandbox::spec` for the rules of storing).

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::capability::CapabilitySet;
use crate::sandbox::spec::{
    IdMapping, NamespaceOptions, Resources, SecurityProfile, SelinuxOptions,
    SupplementalGroupsPolicy,
};

/// A validated `ContainerConfig`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Who the container is, in kubelet's words.
    pub metadata: ContainerMetadata,
    /// The image asked for.
    pub image: ImageRequest,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Replaces the image's cmd when not empty.
    pub args: Vec<String>,
    /// Absolute working directory; `None`: the image's.
    pub working_dir: Option<String>,
    /// Environment in the order given; names are unique, the last value won.
    pub envs: Vec<EnvVar>,
    /// Mounts as asked, in the order given.
    pub mounts: Vec<MountSpec>,
    /// Host devices.
    pub devices: Vec<DeviceSpec>,
    /// Qualified CDI device names.
    pub cdi_devices: Vec<String>,
    /// Labels, reported and selected on, never interpreted.
    pub labels: BTreeMap<String, String>,
    /// Annotations, reported, never interpreted.
    pub annotations: BTreeMap<String, String>,
    /// Log path relative to the sandbox's log directory, without `..`.
    pub log_path: Option<String>,
    /// Whether standard input is kept open.
    pub stdin: bool,
    /// Whether standard input closes after the first attach session.
    pub stdin_once: bool,
    /// Whether the process gets a terminal.
    pub tty: bool,
    /// Limits.
    pub resources: Resources,
    /// Identity and confinement.
    pub security: ContainerSecurity,
    /// Signal that stops it; `None`: the image's, else SIGTERM.
    pub stop_signal: Option<Signal>,
}

/// Name and attempt of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerMetadata {
    /// Name within the pod.
    pub name: String,
    /// How often kubelet tried before.
    pub attempt: u32,
}

/// An `ImageSpec` as asked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageRequest {
    /// Id, tag or digest reference.
    pub image: String,
    /// What the user wrote in the pod.
    pub user_specified_image: String,
    /// Annotations of the image spec.
    pub annotations: BTreeMap<String, String>,
    /// Handler that the image was pulled for.
    pub runtime_handler: String,
}

/// An environment variable. Values are bytes: the protocol says so since 1.36, and the kernel agrees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Name: not empty, no `=`, no NUL.
    pub name: String,
    /// Value: no NUL.
    #[serde(with = "text_or_bytes")]
    pub value: Vec<u8>,
}

/// How mounts made on one side appear on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    /// Neither way (`rprivate`).
    #[default]
    Private,
    /// Host to container (`rslave`).
    HostToContainer,
    /// Both ways (`rshared`); privileged containers only.
    Bidirectional,
}

/// An option of a mount that takes something away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountOption {
    /// No program on it is executed.
    NoExec,
    /// Set-user-ID bits on it mean nothing.
    NoSuid,
    /// Device nodes on it mean nothing.
    NoDev,
}

impl MountOption {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::NoExec, Self::NoSuid, Self::NoDev];

    /// The word for it, in requests and in runtime specs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoExec => "noexec",
            Self::NoSuid => "nosuid",
            Self::NoDev => "nodev",
        }
    }
}

/// An image that is mounted read-only in the place of a host path.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageVolume {
    /// Which.
    pub image: ImageRequest,
    /// A directory in it that is meant instead of its root; empty for none.
    pub sub_path: String,
}

/// A mount as asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// Absolute path in the container, as written.
    pub container_path: String,
    /// Absolute path on the host, as written; may be a symbolic link. Empty with an image.
    pub host_path: String,
    /// What is mounted instead of a host path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageVolume>,
    /// Options beside those that have fields of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<MountOption>,
    /// Read-only.
    pub readonly: bool,
    /// Read-only with everything mounted below.
    pub recursive_read_only: bool,
    /// Whether the volume's SELinux label is to be changed.
    pub selinux_relabel: bool,
    /// Propagation.
    pub propagation: Propagation,
    /// User map for an idmapped mount.
    pub uid_mappings: Vec<IdMapping>,
    /// Group map for an idmapped mount.
    pub gid_mappings: Vec<IdMapping>,
}

/// A host device (or a directory of them) as asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// Absolute path in the container.
    pub container_path: String,
    /// Absolute path on the host.
    pub host_path: String,
    /// Some of `rwm`; never empty.
    pub permissions: String,
}

/// The user asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunAs {
    /// Whoever the image names, else root.
    #[default]
    Image,
    /// A user id.
    Uid(u32),
    /// A name of the image's /etc/passwd (or a number written as text).
    Name(String),
}

/// Capabilities to add and drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CapabilityChange {
    /// `ALL` was among those to add.
    pub add_all: bool,
    /// Those to add.
    pub add: CapabilitySet,
    /// `ALL` was among those to drop.
    pub drop_all: bool,
    /// Those to drop.
    pub drop: CapabilitySet,
    /// Those to make ambient (and inheritable, or the kernel refuses).
    pub ambient: CapabilitySet,
}

/// Identity and confinement of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerSecurity {
    /// Capabilities.
    pub capabilities: CapabilityChange,
    /// All capabilities, all devices, no masks, no seccomp.
    pub privileged: bool,
    /// Namespaces; network, IPC and user follow the sandbox, the PID mode is the container's own.
    pub namespaces: NamespaceOptions,
    /// SELinux context.
    pub selinux: Option<SelinuxOptions>,
    /// User.
    pub run_as: RunAs,
    /// Group id; never without a user.
    pub run_as_group: Option<u32>,
    /// Read-only root file system.
    pub readonly_rootfs: bool,
    /// Further groups.
    pub supplemental_groups: Vec<u32>,
    /// How further groups are made.
    pub supplemental_groups_policy: SupplementalGroupsPolicy,
    /// `no_new_privs`.
    pub no_new_privs: bool,
    /// Paths to hide; exactly these.
    pub masked_paths: Vec<String>,
    /// Paths to make read-only; exactly these.
    pub readonly_paths: Vec<String>,
    /// Seccomp profile; `None` was not asked for and is unconfined.
    pub seccomp: Option<SecurityProfile>,
    /// AppArmor profile; `None` was not asked for.
    pub apparmor: Option<SecurityProfile>,
}

/// A signal by its Linux number, 1 to 64. Real-time ones count from 34, as every libc does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Signal(u8);

/// First real-time signal that programs may use (the libc keeps 32 and 33).
const SIGRTMIN: u8 = 34;
/// Last signal.
const SIGRTMAX: u8 = 64;

/// Names by number on x86_64 and aarch64; the first of a number is the one shown.
const SIGNALS: [(&str, u8); 35] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("UNUSED", 31),
];

impl Signal {
    /// SIGTERM, what stops a container that says nothing else.
    pub const TERM: Self = Self(15);
    /// SIGKILL.
    pub const KILL: Self = Self(9);

    /// By number, 1 to 64.
    #[must_use]
    pub fn new(number: i32) -> Option<Self> {
        u8::try_from(number)
            .ok()
            .filter(|n| (1..=SIGRTMAX).contains(n))
            .map(Self)
    }

    /// By name as images write it: `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, `RTMAX-1`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if !text.is_empty() && text.len() <= 2 && text.bytes().all(|b| b.is_ascii_digit()) {
            return Self::new(text.parse().ok()?);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some(rest) = name.strip_prefix("RTMIN") {
            return Self::real_time(offset(rest, '+')?, SIGRTMIN, true);
        }
        if let Some(rest) = name.strip_prefix("RTMAX") {
            return Self::real_time(offset(rest, '-')?, SIGRTMAX, false);
        }
        SIGNALS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, number)| Self(*number))
    }

    fn real_time(offset: u8, base: u8, up: bool) -> Option<Self> {
        let number = if up {
            base.checked_add(offset)?
        } else {
            base.checked_sub(offset)?
        };
        (SIGRTMIN..=SIGRTMAX)
            .contains(&number)
            .then_some(Self(number))
    }

    /// The Linux number.
    #[must_use]
    pub fn number(self) -> i32 {
        i32::from(self.0)
    }
}

/// The `3` of `+3`; nothing is 0.
fn offset(rest: &str, sign: char) -> Option<u8> {
    if rest.is_empty() {
        return Some(0);
    }
    let digits = rest.strip_prefix(sign)?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((name, _)) = SIGNALS.iter().find(|(_, number)| *number == self.0) {
            return write!(f, "SIG{name}");
        }
        match self.0 {
            SIGRTMIN => f.write_str("SIGRTMIN"),
            SIGRTMAX => f.write_str("SIGRTMAX"),
            n if n > SIGRTMIN => write!(f, "SIGRTMIN+{}", n - SIGRTMIN),
            n => write!(f, "{n}"),
        }
    }
}

/// Serialises bytes as text where they are text, so that records stay readable.
mod text_or_bytes {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Form<T, B> {
        Text(T),
        Bytes(B),
    }

    pub(super) fn serialize<S: Serializer>(value: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(value) {
            Ok(text) => Form::<_, &[u8]>::Text(text),
            Err(_) => Form::Bytes(value),
        }
        .serialize(serializer)
    }

    pub(super) fn deserialize<'de, D>(deserializer: D) -> Result<Vec<u8>, D::Error>
    where
        D: Deserializer<'de>,
    {
        Ok(match Form::<String, Vec<u8>>::deserialize(deserializer)? {
            Form::Text(text) => text.into_bytes(),
            Form::Bytes(bytes) => bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_parse_as_images_write_them() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMIN", 34),
            ("SIGRTMAX-14", 50),
            ("sigrtmax", 64),
            ("SIGCLD", 17),
        ] {
            assert_eq!(
                Signal::parse(text).map(Signal::number),
                Some(number),
                "{text}"
            );
        }
        for text in [
            "",
            "SIG",
            "0",
            "65",
            "-1",
            "+9",
            "SIGRTMIN+31",
            "SIGRTMAX-31",
            "RTMIN-1",
            "SIGFOO",
            "RTMIN+",
            "15 ",
        ] {
            assert_eq!(Signal::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn every_signal_prints_as_something_that_parses_back() {
        for number in (1..=64).filter(|n| *n != 32 && *n != 33) {
            let signal = Signal::new(number).unwrap();
            assert_eq!(Signal::parse(&signal.to_string()), Some(signal), "{signal}");
        }
    }

    #[test]
    fn environment_values_survive_storage_as_text_and_as_bytes() {
        for value in [&b"plain"[..], b"", b"\xff\xfe", "grün".as_bytes()] {
            let var = EnvVar {
                name: "A".into(),
                value: value.to_vec(),
            };
            let json = serde_json::to_string(&var).unwrap();
            assert_eq!(
                serde_json::from_str::<EnvVar>(&json).unwrap(),
                var,
                "{json}"
            );
        }
    }
}
