//! Everything the generator is told. It looks at nothing else: no file, no process, no clock.

use std::{collections::BTreeMap, path::PathBuf};

use oci_spec::runtime::{LinuxBlockIo, LinuxSeccomp};

use crate::{
    cdi::Edits,
    container::{
        capability::CapabilitySet,
        spec::{ContainerSpec, Signal},
    },
    id::{ContainerId, SandboxId},
    sandbox::spec::SandboxSpec,
};

/// The whole input of [`super::generate`].
#[derive(Debug, Clone)]
pub struct BundleInput<'a> {
    /// Id of the container.
    pub id: &'a ContainerId,
    /// Id of its sandbox.
    pub sandbox_id: &'a SandboxId,
    /// What the client asked of the container.
    pub container: &'a ContainerSpec,
    /// What the client asked of its sandbox.
    pub sandbox: &'a SandboxSpec,
    /// Id of the image (`sha256:...`), for an annotation.
    pub image_id: &'a str,
    /// What the image says about its processes.
    pub image: &'a ImageDefaults,
    /// Who the process will be, see [`super::user::resolve`].
    pub user: &'a ResolvedUser,
    /// The pod's host name in effect: the one asked for, else the node's.
    pub hostname: &'a str,
    /// Sources of the container's mounts, one for each of `container.mounts`, in their order.
    pub mount_sources: &'a [MountSource],
    /// Devices that `container.devices` stand for, directories expanded, and those of CDI.
    pub devices: &'a [HostDevice],
    /// What the container's CDI devices change beside nodes and groups.
    pub edits: &'a Edits,
    /// Classes the container is in.
    pub classes: &'a Classes,
    /// The seccomp profile that [`super::seccomp_wanted`] names, as the caller loaded it.
    pub seccomp: Option<LinuxSeccomp>,
    /// Facts about the host.
    pub host: &'a HostFacts,
    /// Where the pieces of this container lie.
    pub paths: &'a BundlePaths,
}

/// Classes that divide the machine, as they were resolved for this container.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Classes {
    /// Group of cache and memory bandwidth, by its name in resctrl.
    pub resctrl: Option<String>,
    /// Limits of the class of block I/O.
    pub block_io: Option<LinuxBlockIo>,
}

/// What an image's config says about processes made of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    /// `USER`: `user`, `uid`, `user:group`, `uid:gid` or empty.
    pub user: String,
    /// `ENV` lines, `NAME=value`.
    pub env: Vec<String>,
    /// `ENTRYPOINT`.
    pub entrypoint: Vec<String>,
    /// `CMD`.
    pub cmd: Vec<String>,
    /// `WORKDIR`.
    pub working_dir: String,
    /// `VOLUME` paths. They stay part of the root file system: what was written there lives and
    /// dies with the container, as kubelet's users expect of anything that is no volume of the pod.
    pub volumes: Vec<String>,
    /// `STOPSIGNAL`.
    pub stop_signal: Option<String>,
}

impl ImageDefaults {
    /// The signal that stops a container: the request's, else the image's, else SIGTERM. A signal
    /// that the image spells wrong does not keep the container from being stopped.
    #[must_use]
    pub fn stop_signal(&self, requested: Option<Signal>) -> Signal {
        let image = || self.stop_signal.as_deref().and_then(Signal::parse);
        requested.or_else(image).unwrap_or(Signal::TERM)
    }
}

/// Numeric identity of the container's process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Groups the process is in beside the primary one or including it: sorted, each once.
    pub additional_gids: Vec<u32>,
    /// Home directory in the image's /etc/passwd, if it has an entry there.
    pub home: Option<String>,
}

/// Source of one mount, after the caller resolved symbolic links on the host and made what was
/// missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSource {
    /// Absolute host path without symbolic links.
    pub path: PathBuf,
}

/// Kind of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceKind {
    /// Block device.
    Block,
    /// Character device.
    Char,
}

/// A device node to make in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    /// Path in the container.
    pub path: String,
    /// Kind.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits of the node.
    pub mode: u32,
    /// Owner of the node.
    pub uid: u32,
    /// Group of the node.
    pub gid: u32,
    /// What the device cgroup allows: some of `rwm`; nothing beyond what is allowed anyway if empty.
    pub permissions: String,
}

/// What the generator must know of the host; probed once by the daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Whether the host has the unified cgroup hierarchy with controllers.
    pub cgroup_v2: bool,
    /// Whether AppArmor is enabled.
    pub apparmor: bool,
    /// Name of the default AppArmor profile, if it is loaded.
    pub apparmor_default: Option<String>,
    /// Whether SELinux is enabled.
    pub selinux: bool,
    /// The daemon's own `oom_score_adj` when it may not lower it (no CAP_SYS_RESOURCE): what a
    /// container asks below it is raised to it.
    pub oom_score_adj_floor: Option<i32>,
    /// The daemon's own bounding set: what a container gets lies within it.
    pub bounding: CapabilitySet,
    /// Devices of the host, for privileged containers.
    pub devices: Vec<HostDevice>,
    /// Whether the kernel accounts swap (memory.memsw on v1, memory.swap on v2).
    pub swap_accounting: bool,
    /// Hugepage sizes the hugetlb controller knows, as the kernel names them; empty without it.
    pub hugepage_sizes: Vec<String>,
    /// Why pods can have no user namespaces of their own here; `None` if they can.
    pub no_user_namespaces: Option<String>,
    /// Environment every container gets before the image's own, for example a proxy.
    pub default_env: BTreeMap<String, String>,
}

/// Where the pieces of one container lie on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundlePaths {
    /// `root.path`: absolute, or relative to the bundle (`rootfs`).
    pub rootfs: PathBuf,
    /// The sandbox's hosts file; `None` leaves the image's own.
    pub hosts: Option<PathBuf>,
    /// The sandbox's resolv.conf.
    pub resolv_conf: Option<PathBuf>,
    /// The sandbox's hostname file.
    pub hostname: Option<PathBuf>,
    /// The pod's shared memory: a directory or a `/proc/<pid>/...` path; `None` gives the container
    /// a /dev/shm of its own.
    pub shm: Option<PathBuf>,
    /// Path of the pod's network namespace; `None` with host network.
    pub netns: Option<PathBuf>,
    /// Pause, the holder of the pod's namespaces.
    pub pause_pid: i32,
    /// Init of the container named by PID mode TARGET.
    pub target_pid: Option<i32>,
    /// `linux.cgroupsPath`: a path, or `slice:prefix:name` for the systemd driver.
    pub cgroups_path: String,
}
