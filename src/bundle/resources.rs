//! Cgroup limits, device nodes and device rules.

use oci_spec::runtime::{
    LinuxCpu, LinuxCpuBuilder, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup,
    LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxHugepageLimit, LinuxHugepageLimitBuilder,
    LinuxIntelRdt, LinuxIntelRdtBuilder, LinuxMemory, LinuxMemoryBuilder, LinuxResources,
    LinuxResourcesBuilder,
};

use super::{BundleError, BundleInput, DeviceKind, HostDevice, HostFacts, Result};
use crate::sandbox::spec::Resources;

/// Devices every container may use: null, full, zero, random, urandom, tty, console, ptmx and the
/// slaves of its own devpts. Nodes of any kind may be made, since using them is another matter.
const DEFAULT_DEVICES: [(Option<i64>, Option<i64>, DeviceKind, &str); 11] = [
    (None, None, DeviceKind::Char, "m"),
    (None, None, DeviceKind::Block, "m"),
    (Some(1), Some(3), DeviceKind::Char, "rwm"),
    (Some(1), Some(5), DeviceKind::Char, "rwm"),
    (Some(1), Some(7), DeviceKind::Char, "rwm"),
    (Some(1), Some(8), DeviceKind::Char, "rwm"),
    (Some(1), Some(9), DeviceKind::Char, "rwm"),
    (Some(5), Some(0), DeviceKind::Char, "rwm"),
    (Some(5), Some(1), DeviceKind::Char, "rwm"),
    (Some(5), Some(2), DeviceKind::Char, "rwm"),
    (Some(136), None, DeviceKind::Char, "rwm"),
];

/// Limits and device rules of a new container.
pub(super) fn resources(input: &BundleInput<'_>) -> Result<LinuxResources> {
    let mut resources = linux_resources(&input.container.resources, input.host)?;
    resources.set_devices(Some(device_rules(input)?));
    resources.set_block_io(input.classes.block_io.clone());
    Ok(resources)
}

/// The group of cache and memory bandwidth: that of the class asked for, else a CDI device's.
pub(super) fn resctrl(input: &BundleInput<'_>) -> Result<Option<LinuxIntelRdt>> {
    let asked = input.classes.resctrl.as_ref();
    let Some(group) = asked.or(input.edits.resctrl.as_ref()) else {
        return Ok(None);
    };
    let group = LinuxIntelRdtBuilder::default().clos_id(group.clone());
    Ok(Some(group.build()?))
}

/// Limits alone, for an update: device rules stay as they are.
///
/// # Errors
/// The host has no such hugepages or no unified hierarchy.
pub fn linux_resources(asked: &Resources, host: &HostFacts) -> Result<LinuxResources> {
    let mut resources = LinuxResourcesBuilder::default().build()?;
    resources.set_devices(None);
    resources.set_cpu(cpu(asked)?);
    resources.set_memory(memory(asked, host)?);
    let hugepages = hugepages(asked, host)?;
    resources.set_hugepage_limits((!hugepages.is_empty()).then_some(hugepages));
    if let Some(key) = asked.unified.keys().next() {
        if !host.cgroup_v2 {
            return Err(BundleError::Unified { key: key.clone() });
        }
        let files = asked
            .unified
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()));
        resources.set_unified(Some(files.collect()));
    }
    Ok(resources)
}

fn cpu(asked: &Resources) -> Result<Option<LinuxCpu>> {
    let mut cpu = LinuxCpuBuilder::default().build()?;
    let nothing = cpu.clone();
    cpu.set_shares(asked.cpu_shares);
    cpu.set_quota(asked.cpu_quota);
    cpu.set_period(asked.cpu_period);
    cpu.set_cpus(asked.cpuset_cpus.clone());
    cpu.set_mems(asked.cpuset_mems.clone());
    Ok((cpu != nothing).then_some(cpu))
}

/// A memory limit without a word about swap forbids swap, as Kubernetes expects.
fn memory(asked: &Resources, host: &HostFacts) -> Result<Option<LinuxMemory>> {
    let mut memory = LinuxMemoryBuilder::default().build()?;
    let nothing = memory;
    let limit = asked
        .memory_limit
        .map(|limit| i64::try_from(limit).unwrap_or(i64::MAX));
    memory.set_limit(limit);
    if host.swap_accounting {
        memory.set_swap(asked.memory_swap_limit.or(limit));
    }
    Ok((memory != nothing).then_some(memory))
}

/// Hugepage limits; none on a host without the controller, where nobody can exceed them either.
fn hugepages(asked: &Resources, host: &HostFacts) -> Result<Vec<LinuxHugepageLimit>> {
    if host.hugepage_sizes.is_empty() {
        return Ok(Vec::new());
    }
    let limit = |limit: &crate::sandbox::spec::HugepageLimit| {
        if !host.hugepage_sizes.contains(&limit.page_size) {
            let (size, known) = (limit.page_size.clone(), host.hugepage_sizes.clone());
            return Err(BundleError::HugepageSize { size, known });
        }
        Ok(LinuxHugepageLimitBuilder::default()
            .page_size(limit.page_size.clone())
            .limit(i64::try_from(limit.limit).unwrap_or(i64::MAX))
            .build()?)
    };
    asked.hugepage_limits.iter().map(limit).collect()
}

/// Nodes to make: those asked for, and for privileged containers every other one of the host.
pub(super) fn device_nodes(input: &BundleInput<'_>) -> Result<Vec<LinuxDevice>> {
    chosen_devices(input).map(node).collect()
}

fn chosen_devices<'a>(input: &'a BundleInput<'_>) -> impl Iterator<Item = &'a HostDevice> {
    let asked = input.devices;
    let host: &[HostDevice] = if input.container.security.privileged {
        &input.host.devices
    } else {
        &[]
    };
    let others = host
        .iter()
        .filter(|h| !asked.iter().any(|device| device.path == h.path));
    others.chain(asked)
}

fn node(device: &HostDevice) -> Result<LinuxDevice> {
    Ok(LinuxDeviceBuilder::default()
        .path(device.path.clone())
        .typ(kind(device.kind))
        .major(i64::from(device.major))
        .minor(i64::from(device.minor))
        .file_mode(device.mode & 0o7777)
        .uid(device.uid)
        .gid(device.gid)
        .build()?)
}

fn kind(kind: DeviceKind) -> LinuxDeviceType {
    match kind {
        DeviceKind::Block => LinuxDeviceType::B,
        DeviceKind::Char => LinuxDeviceType::C,
    }
}

/// Everything denied, then the standard set and what was asked for; or everything, if privileged.
fn device_rules(input: &BundleInput<'_>) -> Result<Vec<LinuxDeviceCgroup>> {
    if input.container.security.privileged {
        return Ok(vec![rule(true, None, (None, None), "rwm")?]);
    }
    let mut rules = vec![rule(false, None, (None, None), "rwm")?];
    for (major, minor, of, access) in DEFAULT_DEVICES {
        rules.push(rule(true, Some(kind(of)), (major, minor), access)?);
    }
    for device in input.devices.iter().filter(|d| !d.permissions.is_empty()) {
        let numbers = (Some(device.major.into()), Some(device.minor.into()));
        rules.push(rule(
            true,
            Some(kind(device.kind)),
            numbers,
            &device.permissions,
        )?);
    }
    Ok(rules)
}

fn rule(
    allow: bool,
    kind: Option<LinuxDeviceType>,
    (major, minor): (Option<i64>, Option<i64>),
    access: &str,
) -> Result<LinuxDeviceCgroup> {
    let mut rule = LinuxDeviceCgroupBuilder::default()
        .allow(allow)
        .access(access)
        .build()?;
    rule.set_typ(kind);
    rule.set_major(major);
    rule.set_minor(minor);
    Ok(rule)
}
