//! Everything that metrics are made of, gathered for one container or pod.

use std::{collections::HashMap, fs, sync::Arc};

use crisp_oci::cgroup::{Details, DeviceIo};
use nix::sys::{
    stat::{major, minor, stat},
    statvfs::statvfs,
};

use super::{
    GroupUsage,
    container::ContainerUsage,
    layer::LayerUsage,
    pod::{self, Census, NetworkUsage, PodUsage},
    processes::{self, Held},
};
use crate::{container::state::State, node::Node, sandbox::pause};

/// The file system that writable layers lie on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Disk {
    /// Its device.
    pub device: Device,
    /// Its size in bytes.
    pub bytes: u64,
    /// Inodes it can have.
    pub inodes: u64,
    /// Inodes that are free.
    pub inodes_free: u64,
}

/// A block device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Device {
    pub major: u32,
    pub minor: u32,
    /// `/dev/vda`, or the numbers where it has no name.
    pub name: String,
}

impl Disk {
    pub(super) fn of(node: &Node) -> Self {
        let path = node.paths.containers();
        let Ok(facts) = statvfs(&path) else {
            return Self::default();
        };
        let number = stat(&path).map_or(0, |stat| stat.st_dev);
        let part = |number| u32::try_from(number).unwrap_or(0);
        Self {
            device: Device::named(part(major(number)), part(minor(number))),
            bytes: facts.blocks() * facts.fragment_size(),
            inodes: facts.files(),
            inodes_free: facts.files_free(),
        }
    }
}

impl Device {
    fn named(major: u32, minor: u32) -> Self {
        let text = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"));
        let name = text.ok().and_then(|text| {
            let name = text
                .lines()
                .find_map(|line| line.strip_prefix("DEVNAME="))?;
            Some(format!("/dev/{name}"))
        });
        Self {
            major,
            minor,
            name: name.unwrap_or_else(|| format!("{major}:{minor}")),
        }
    }
}

/// What one list looks up once.
pub(super) struct Context<'a> {
    pub node: &'a Node,
    pub census: &'a Census,
    pub disk: Disk,
    devices: HashMap<(u32, u32), Device>,
}

impl<'a> Context<'a> {
    pub(super) fn new(node: &'a Node, census: &'a Census) -> Self {
        Self {
            node,
            census,
            disk: Disk::of(node),
            devices: HashMap::new(),
        }
    }

    fn device(&mut self, io: &DeviceIo) -> Device {
        let known = self.devices.entry((io.major, io.minor));
        known
            .or_insert_with(|| Device::named(io.major, io.minor))
            .clone()
    }

    /// Block devices with their names; the disk with nothing done to it where the host tells none,
    /// so that there always is one.
    fn io(&mut self, details: &Details) -> Vec<(Device, DeviceIo)> {
        if details.io.is_empty() {
            return vec![(self.disk.device.clone(), DeviceIo::default())];
        }
        let named = details.io.iter().map(|io| (self.device(io), *io));
        named.collect()
    }
}

/// One container or pod.
#[derive(Debug, Clone, Default)]
pub(super) struct Subject {
    /// Values of the labels that every metric has, in their order.
    pub labels: Vec<String>,
    /// When it was read, nanoseconds since the epoch.
    pub at: i64,
    /// Since when it runs.
    pub started_at: i64,
    pub group: GroupUsage,
    pub details: Details,
    pub io: Vec<(Device, DeviceIo)>,
    pub held: Held,
    pub open_files: u64,
    pub layer: LayerUsage,
    pub disk: Disk,
    pub network: Option<NetworkUsage>,
}

impl Subject {
    /// A container of `pod`. What cannot be read because it ends just now is empty.
    pub(super) fn container(
        context: &mut Context<'_>,
        pod: &PodUsage,
        usage: &ContainerUsage,
    ) -> Self {
        let container = &usage.container;
        let image = &container.spec.image;
        let image = match image.user_specified_image.as_str() {
            "" => &image.image,
            asked => asked,
        };
        let (details, pids) = read(context.node, &container.fixed.cgroup);
        let started_at = match &*container.state() {
            State::Running { started_at } => *started_at,
            State::Created | State::Exited(_) => container.fixed.created_at,
        };
        Self {
            labels: labels(
                pod,
                &container.fixed.cgroup,
                container.id.as_str(),
                image,
                &container.spec.metadata.name,
            ),
            at: usage.at,
            started_at,
            group: usage.group,
            io: context.io(&details),
            details,
            held: processes::held(&pids),
            open_files: processes::open_files_limit(container.fixed.pid),
            layer: usage.layer.unwrap_or_default(),
            disk: context.disk.clone(),
            network: None,
        }
    }

    /// A pod as a whole, whose containers are known already.
    pub(super) fn pod(context: &mut Context<'_>, pod: &PodUsage, containers: &[Self]) -> Self {
        let sandbox = &pod.sandbox;
        let leaf = pause::cgroup_of(&sandbox.cgroup_parent, &sandbox.id);
        let own = context.census.has_own_group(sandbox);
        let group = match own {
            true => sandbox.cgroup_parent.clone(),
            false => leaf.clone(),
        };
        let (details, _) = read(context.node, &group);
        let (_, pids) = read(context.node, &leaf);
        let held = containers
            .iter()
            .fold(processes::held(&pids), |sum, one| sum.and(one.held));
        let layer = containers
            .iter()
            .fold(LayerUsage::default(), |sum, one| LayerUsage {
                at: pod.at,
                bytes: sum.bytes + one.layer.bytes,
                inodes: sum.inodes + one.layer.inodes,
            });
        let pause = sandbox.published().pause;
        Self {
            labels: labels(pod, &group, sandbox.id.as_str(), "", ""),
            at: pod.at,
            started_at: sandbox.created_at,
            group: pod.group,
            io: context.io(&details),
            details,
            held,
            open_files: pause.map_or(0, |pause| processes::open_files_limit(pause.pid)),
            layer,
            disk: context.disk.clone(),
            network: pod.network.clone(),
        }
    }
}

/// What the group tells beyond its usage, and its processes.
fn read(node: &Node, path: &str) -> (Details, Vec<i32>) {
    let Ok(group) = pod::observe(node, path) else {
        return Default::default();
    };
    let details = group.details(&node.host.hugepage_sizes);
    (
        details.unwrap_or_default(),
        group.pids().unwrap_or_default(),
    )
}

/// In the order of [`super::metrics::LABELS`].
fn labels(pod: &PodUsage, group: &str, name: &str, image: &str, container: &str) -> Vec<String> {
    let metadata = &Arc::clone(&pod.sandbox.spec).metadata;
    [
        group,
        name,
        image,
        &metadata.namespace,
        &metadata.name,
        container,
    ]
    .map(str::to_owned)
    .to_vec()
}
