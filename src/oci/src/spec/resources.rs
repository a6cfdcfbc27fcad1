//! Limits and the device policy.

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceType, LinuxMemory, LinuxResources, LinuxThrottleDevice,
};

use super::{Result, invalid, refuse};
use crate::cgroup::{BlkioThrottle, BlkioWeight, DeviceKind, DeviceRule, Resources};

/// Reads `linux.resources`: also what an update is asked for.
///
/// # Errors
/// [`super::PlanError`] names the field.
pub fn resources(source: Option<&LinuxResources>) -> Result<Resources> {
    let mut resources = Resources::default();
    let Some(source) = source else {
        return Ok(resources);
    };
    if let Some(network) = source.network() {
        refuse(
            "linux.resources.network.classID",
            network.class_id().filter(|id| *id != 0),
        )?;
        let priorities = network
            .priorities()
            .as_ref()
            .filter(|list| !list.is_empty());
        refuse("linux.resources.network.priorities", priorities)?;
    }
    refuse(
        "linux.resources.rdma",
        source.rdma().as_ref().filter(|map| !map.is_empty()),
    )?;
    if let Some(cpu) = source.cpu() {
        set_cpu(&mut resources, cpu)?;
    }
    if let Some(memory) = source.memory() {
        set_memory(&mut resources, memory)?;
    }
    if let Some(io) = source.block_io() {
        set_block_io(&mut resources, io)?;
    }
    resources.pids_limit = source.pids().as_ref().map(|pids| pids.limit());
    for limit in source.hugepage_limits().iter().flatten() {
        let size = limit.page_size();
        let plain = size.chars().all(|c| c.is_ascii_alphanumeric()) && !size.is_empty();
        let bytes = u64::try_from(limit.limit()).ok().filter(|_| plain);
        let reason = format!("{size:?}: {} is no limit", limit.limit());
        let bytes = bytes.ok_or_else(|| invalid("linux.resources.hugepageLimits", reason))?;
        resources.hugepages.push((size.clone(), bytes));
    }
    for (file, value) in source.unified().iter().flatten() {
        if file.contains('/') || !file.contains('.') || value.contains('\0') {
            let reason = format!("{file:?} is no control file");
            return Err(invalid("linux.resources.unified", reason));
        }
        resources.unified.push((file.clone(), value.clone()));
    }
    // The map has no order of its own.
    resources.unified.sort();
    Ok(resources)
}

fn set_cpu(resources: &mut Resources, cpu: &LinuxCpu) -> Result<()> {
    let runtime = cpu.realtime_runtime().filter(|value| *value != 0);
    refuse("linux.resources.cpu.realtimeRuntime", runtime)?;
    let period = cpu.realtime_period().filter(|value| *value != 0);
    refuse("linux.resources.cpu.realtimePeriod", period)?;
    resources.cpu_shares = cpu.shares();
    resources.cpu_quota = cpu.quota();
    resources.cpu_period = cpu.period();
    resources.cpu_burst = cpu.burst();
    resources.cpu_idle = cpu.idle();
    resources.cpuset_cpus = cpu_list("linux.resources.cpu.cpus", cpu.cpus())?;
    resources.cpuset_mems = cpu_list("linux.resources.cpu.mems", cpu.mems())?;
    Ok(())
}

fn cpu_list(field: &str, list: &Option<String>) -> Result<Option<String>> {
    let plain = |c: char| c.is_ascii_digit() || ",-:/ ".contains(c);
    match list {
        Some(list) if !list.chars().all(plain) => {
            Err(invalid(field, format!("{list:?} is no list of numbers")))
        }
        list => Ok(list.clone().filter(|list| !list.trim().is_empty())),
    }
}

fn set_memory(resources: &mut Resources, memory: &LinuxMemory) -> Result<()> {
    let kernel = memory.kernel().filter(|value| *value > 0);
    refuse("linux.resources.memory.kernel", kernel)?;
    let kernel_tcp = memory.kernel_tcp().filter(|value| *value > 0);
    refuse("linux.resources.memory.kernelTCP", kernel_tcp)?;
    let disabled = memory.disable_oom_killer().filter(|disabled| *disabled);
    refuse("linux.resources.memory.disableOOMKiller", disabled)?;
    let flat = memory.use_hierarchy().filter(|hierarchy| !hierarchy);
    refuse("linux.resources.memory.useHierarchy", flat)?;
    resources.memory_limit = memory.limit();
    resources.memory_swap = memory.swap();
    resources.memory_reservation = memory.reservation();
    resources.memory_swappiness = memory.swappiness();
    resources.memory_check_before_update = memory.check_before_update().unwrap_or(false);
    Ok(())
}

fn number(field: &str, value: i64) -> Result<u32> {
    u32::try_from(value).map_err(|_| invalid(field, format!("{value} is no device number")))
}

fn set_block_io(resources: &mut Resources, io: &LinuxBlockIo) -> Result<()> {
    const FIELD: &str = "linux.resources.blockIO";
    refuse(
        "linux.resources.blockIO.leafWeight",
        io.leaf_weight().filter(|weight| *weight != 0),
    )?;
    resources.blkio_weight = io.weight();
    for device in io.weight_device().iter().flatten() {
        refuse(
            "linux.resources.blockIO.weightDevice.leafWeight",
            device.leaf_weight(),
        )?;
        if let Some(weight) = device.weight() {
            let (major, minor) = (
                number(FIELD, device.major())?,
                number(FIELD, device.minor())?,
            );
            resources.blkio_weight_devices.push(BlkioWeight {
                major,
                minor,
                weight,
            });
        }
    }
    type Place = fn(&mut BlkioThrottle) -> &mut Option<u64>;
    let lists: [(&Option<Vec<LinuxThrottleDevice>>, Place); 4] = [
        (io.throttle_read_bps_device(), |throttle| {
            &mut throttle.read_bps
        }),
        (io.throttle_write_bps_device(), |throttle| {
            &mut throttle.write_bps
        }),
        (io.throttle_read_iops_device(), |throttle| {
            &mut throttle.read_iops
        }),
        (io.throttle_write_iops_device(), |throttle| {
            &mut throttle.write_iops
        }),
    ];
    for (list, place) in lists {
        for device in list.iter().flatten() {
            let (major, minor) = (
                number(FIELD, device.major())?,
                number(FIELD, device.minor())?,
            );
            let known = &mut resources.blkio_throttle;
            let at = known
                .iter()
                .position(|item| (item.major, item.minor) == (major, minor));
            let at = at.unwrap_or_else(|| {
                known.push(BlkioThrottle {
                    major,
                    minor,
                    ..BlkioThrottle::default()
                });
                known.len() - 1
            });
            *place(&mut known[at]) = Some(device.rate());
        }
    }
    Ok(())
}

/// What every container may use: making nodes (using them is another matter), the default nodes,
/// and its terminals.
fn default_rules() -> impl Iterator<Item = DeviceRule> {
    const NODES: [(u32, Option<u32>); 9] = [
        (1, Some(3)),
        (1, Some(5)),
        (1, Some(7)),
        (1, Some(8)),
        (1, Some(9)),
        (5, Some(0)),
        (5, Some(1)),
        (5, Some(2)),
        (136, None),
    ];
    let make = [DeviceKind::Char, DeviceKind::Block]
        .into_iter()
        .map(|kind| DeviceRule {
            allow: true,
            kind,
            access: DeviceRule::MKNOD,
            ..DeviceRule::default()
        });
    let node = |(major, minor)| DeviceRule {
        allow: true,
        kind: DeviceKind::Char,
        major: Some(major),
        minor,
        access: DeviceRule::ALL,
    };
    make.chain(NODES.into_iter().map(node))
}

/// The device policy: the specification's rules, then the default ones, which are always allowed.
///
/// # Errors
/// [`super::PlanError`] names the field.
pub fn device_rules(source: Option<&LinuxResources>) -> Result<Vec<DeviceRule>> {
    const FIELD: &str = "linux.resources.devices";
    let mut rules = Vec::new();
    for device in source
        .and_then(|source| source.devices().as_ref())
        .into_iter()
        .flatten()
    {
        let kind = match device.typ() {
            None | Some(LinuxDeviceType::A) => DeviceKind::All,
            Some(LinuxDeviceType::B) => DeviceKind::Block,
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => DeviceKind::Char,
            Some(LinuxDeviceType::P) => return Err(invalid(FIELD, "p is no type of device")),
        };
        let wildcard = |value: Option<i64>| match value {
            None | Some(-1) => Ok(None),
            Some(value) => number(FIELD, value).map(Some),
        };
        let mut access = 0;
        for letter in device.access().as_deref().unwrap_or("rwm").chars() {
            access |= match letter {
                'r' => DeviceRule::READ,
                'w' => DeviceRule::WRITE,
                'm' => DeviceRule::MKNOD,
                other => return Err(invalid(FIELD, format!("{other:?} is no access"))),
            };
        }
        rules.push(DeviceRule {
            allow: device.allow(),
            kind,
            major: wildcard(device.major())?,
            minor: wildcard(device.minor())?,
            access: if access == 0 { DeviceRule::ALL } else { access },
        });
    }
    let missing: Vec<_> = default_rules()
        .filter(|rule| !granted_last(&rules, rule))
        .collect();
    rules.extend(missing);
    Ok(rules)
}

/// Whether the rules grant exactly this already, with nothing taken away afterwards.
fn granted_last(rules: &[DeviceRule], wanted: &DeviceRule) -> bool {
    let last_denial = rules
        .iter()
        .rposition(|rule| !rule.allow)
        .map_or(0, |at| at + 1);
    let all = |rule: &DeviceRule| {
        rule.kind == DeviceKind::All
            && rule.major.is_none()
            && rule.minor.is_none()
            && rule.access == DeviceRule::ALL
    };
    rules[last_denial..]
        .iter()
        .any(|rule| rule == wanted || all(rule))
}
