//! From [`Resources`] to the files that carry them: pure.

use std::borrow::Cow;

use super::resources::Resources;

/// One write to one control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// v1 controller; on v2 only told in errors.
    pub(super) controller: &'static str,
    pub(super) file: Cow<'static, str>,
    pub(super) value: String,
    /// A kernel without the file is as good as one where the write succeeded.
    pub(super) optional: bool,
}

/// Why resources cannot be expressed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResourceError {
    /// v2 has a limit of swap alone, which is the difference.
    #[error("memory_swap {swap} is less than memory_limit {limit}")]
    SwapBelowMemory {
        /// Memory plus swap.
        swap: i64,
        /// Memory.
        limit: i64,
    },
    /// v2 needs the memory limit to know the swap limit.
    #[error("memory_swap {swap} needs a memory_limit")]
    SwapWithoutMemory {
        /// Memory plus swap.
        swap: i64,
    },
    /// Not a page size as the kernel spells it.
    #[error("hugepage size {size:?} is not of the form 2MB")]
    HugepageSize {
        /// As given.
        size: String,
    },
    /// Not a file a container's settings may write.
    #[error("unified key {key:?} is not a controller's file")]
    UnifiedKey {
        /// As given.
        key: String,
    },
    /// There is no unified tree with controllers.
    #[error("unified key {key:?} needs cgroup v2")]
    UnifiedOnV1 {
        /// As given.
        key: String,
    },
    /// The value would not reach the kernel as one write of one setting.
    #[error("{key} has a value with a control character")]
    Value {
        /// Which setting.
        key: String,
    },
}

/// Reads what a file says now; `None` where there is no such file.
pub(super) type Current<'a> = &'a dyn Fn(&'static str, &str) -> Option<String>;

/// The CPU period the kernel starts with.
const DEFAULT_PERIOD: u64 = 100_000;

/// Settings for v1, in the order the kernel takes them.
pub(super) fn v1(res: &Resources, current: Current<'_>) -> Result<Vec<Setting>, ResourceError> {
    check(res)?;
    if let Some((key, _)) = res.unified.first() {
        return Err(ResourceError::UnifiedOnV1 { key: key.clone() });
    }
    let mut out = Vec::new();
    let mut put = |controller, file: &'static str, value: Option<String>| {
        out.extend(value.map(|value| setting(controller, file, value)));
    };
    put("cpuset", "cpuset.cpus", non_empty(res.cpuset_cpus.as_ref()));
    put("cpuset", "cpuset.mems", non_empty(res.cpuset_mems.as_ref()));
    put("cpu", "cpu.idle", res.cpu_idle.map(text));
    put("cpu", "cpu.shares", non_zero(res.cpu_shares).map(text));
    // A burst above the quota is refused, so it shrinks before and grows after the quota.
    put("cpu", "cpu.cfs_burst_us", res.cpu_burst.map(|_| text(0)));
    put(
        "cpu",
        "cpu.cfs_period_us",
        non_zero(res.cpu_period).map(text),
    );
    let quota = res
        .cpu_quota
        .map(|quota| text(if quota <= 0 { -1 } else { quota }));
    put("cpu", "cpu.cfs_quota_us", quota);
    put("cpu", "cpu.cfs_burst_us", res.cpu_burst.map(text));
    put(
        "memory",
        "memory.soft_limit_in_bytes",
        signed(res.memory_reservation),
    );
    put(
        "memory",
        "memory.swappiness",
        res.memory_swappiness.map(text),
    );
    put("pids", "pids.max", res.pids_limit.map(pids));
    put(
        "blkio",
        "blkio.weight",
        res.blkio_weight.filter(|weight| *weight != 0).map(text),
    );
    out.iter_mut()
        .filter(|s| matches!(&*s.file, "cpu.idle" | "cpu.cfs_burst_us" | "blkio.weight"))
        .for_each(|s| s.optional = true);
    out.extend(memory_v1(res, current));
    for (size, bytes) in &res.hugepages {
        let limit = |middle: &str| Setting {
            controller: "hugetlb",
            file: format!("hugetlb.{size}.{middle}limit_in_bytes").into(),
            value: text(bytes),
            // No accounting for pages nobody may have, or none for reservations (before 5.7).
            optional: *bytes == 0 || !middle.is_empty(),
        };
        out.extend([limit(""), limit("rsvd.")]);
    }
    for device in &res.blkio_weight_devices {
        let value = format!("{}:{} {}", device.major, device.minor, device.weight);
        out.push(Setting {
            optional: true,
            ..setting("blkio", "blkio.weight_device", value)
        });
    }
    for device in &res.blkio_throttle {
        let limits = [
            ("blkio.throttle.read_bps_device", device.read_bps),
            ("blkio.throttle.write_bps_device", device.write_bps),
            ("blkio.throttle.read_iops_device", device.read_iops),
            ("blkio.throttle.write_iops_device", device.write_iops),
        ];
        for (file, limit) in limits {
            let value = limit.map(|limit| format!("{}:{} {limit}", device.major, device.minor));
            out.extend(value.map(|value| setting("blkio", file, value)));
        }
    }
    Ok(out)
}

/// v1 keeps `memory <= memory plus swap` at every moment: growing begins with the sum, shrinking
/// with memory. Without swap accounting there is no file for the sum and nothing to limit.
fn memory_v1(res: &Resources, current: Current<'_>) -> Vec<Setting> {
    const LIMIT: &str = "memory.limit_in_bytes";
    const SUM: &str = "memory.memsw.limit_in_bytes";
    let limit = signed(res.memory_limit).map(|value| setting("memory", LIMIT, value));
    let sum = signed(res.memory_swap).map(|value| Setting {
        optional: true,
        ..setting("memory", SUM, value)
    });
    // Kubelet raises a limit without naming the sum, which then must not be below it.
    let now: i64 = current("memory", SUM)
        .and_then(|now| now.parse().ok())
        .unwrap_or(i64::MAX);
    let grows = match res.memory_limit {
        Some(-1) => true,
        Some(limit) => limit > now,
        None => false,
    };
    if grows && let Some(limit) = limit {
        let fitting = Setting {
            optional: true,
            ..setting("memory", SUM, limit.value.clone())
        };
        return vec![sum.unwrap_or(fitting), limit];
    }
    limit.into_iter().chain(sum).collect()
}

/// Settings for v2.
pub(super) fn v2(res: &Resources, current: Current<'_>) -> Result<Vec<Setting>, ResourceError> {
    check(res)?;
    let mut out = Vec::new();
    let mut put = |controller, file: &'static str, value: Option<String>| {
        out.extend(value.map(|value| setting(controller, file, value)));
    };
    put("cpuset", "cpuset.cpus", non_empty(res.cpuset_cpus.as_ref()));
    put("cpuset", "cpuset.mems", non_empty(res.cpuset_mems.as_ref()));
    put("cpu", "cpu.idle", res.cpu_idle.map(text));
    // An idle group has no weight; the kernel refuses to set one.
    let shares = non_zero(res.cpu_shares).filter(|_| res.cpu_idle.unwrap_or(0) == 0);
    put(
        "cpu",
        "cpu.weight",
        shares.map(|shares| text(weight(shares))),
    );
    put("cpu", "cpu.max.burst", res.cpu_burst.map(|_| text(0)));
    put("cpu", "cpu.max", cpu_max(res, current));
    put("cpu", "cpu.max.burst", res.cpu_burst.map(text));
    put(
        "memory",
        "memory.low",
        res.memory_reservation.filter(|low| *low != 0).map(max_or),
    );
    let swap = swap_max(res)?;
    // Swap shrinks before memory does and is lifted before memory grows.
    put("memory", "memory.swap.max", swap.clone());
    put(
        "memory",
        "memory.max",
        res.memory_limit.filter(|limit| *limit != 0).map(max_or),
    );
    put("pids", "pids.max", res.pids_limit.map(pids));
    out.iter_mut().for_each(|s| {
        s.optional = match &*s.file {
            // A kernel without swap gives none.
            "memory.swap.max" => matches!(s.value.as_str(), "0" | "max"),
            "cpu.idle" | "cpu.max.burst" => true,
            _ => false,
        };
    });
    for (size, bytes) in &res.hugepages {
        let limit = |middle: &str| Setting {
            controller: "hugetlb",
            file: format!("hugetlb.{size}.{middle}max").into(),
            value: text(bytes),
            optional: *bytes == 0 || !middle.is_empty(),
        };
        out.extend([limit(""), limit("rsvd.")]);
    }
    io_v2(res, &mut out);
    for (key, value) in &res.unified {
        let (key, value) = (key.clone(), value.clone());
        out.push(Setting {
            controller: "unified",
            file: key.into(),
            value,
            optional: false,
        });
    }
    Ok(out)
}

fn io_v2(res: &Resources, out: &mut Vec<Setting>) {
    if let Some(weight) = res.blkio_weight.filter(|weight| *weight != 0) {
        let value = format!("default {}", io_weight(weight));
        out.push(Setting {
            optional: true,
            ..setting("io", "io.weight", value)
        });
    }
    for device in &res.blkio_weight_devices {
        let value = format!(
            "{}:{} {}",
            device.major,
            device.minor,
            io_weight(device.weight)
        );
        out.push(Setting {
            optional: true,
            ..setting("io", "io.weight", value)
        });
    }
    for device in &res.blkio_throttle {
        let limits = [
            ("rbps", device.read_bps),
            ("wbps", device.write_bps),
            ("riops", device.read_iops),
            ("wiops", device.write_iops),
        ];
        let mut value = format!("{}:{}", device.major, device.minor);
        for (key, limit) in limits {
            match limit {
                None => {}
                Some(0) => value += &format!(" {key}=max"),
                Some(limit) => value += &format!(" {key}={limit}"),
            }
        }
        out.push(setting("io", "io.max", value));
    }
}

fn cpu_max(res: &Resources, current: Current<'_>) -> Option<String> {
    let period = non_zero(res.cpu_period);
    if res.cpu_quota.is_none() && period.is_none() {
        return None;
    }
    let now = current("cpu", "cpu.max").unwrap_or_default();
    let mut now = now.split_whitespace();
    let quota_now = now.next().unwrap_or("max").to_owned();
    let period_now = now
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or(DEFAULT_PERIOD);
    let quota = match res.cpu_quota {
        Some(quota) if quota > 0 => text(quota),
        Some(_) => "max".to_owned(),
        None => quota_now,
    };
    Some(format!("{quota} {}", period.unwrap_or(period_now)))
}

fn swap_max(res: &Resources) -> Result<Option<String>, ResourceError> {
    let limit = res.memory_limit.unwrap_or(0);
    match res.memory_swap.unwrap_or(0) {
        0 => Ok(None),
        -1 => Ok(Some("max".into())),
        // Both unlimited but for the sum: nothing v2 could express.
        swap if limit <= 0 => Err(ResourceError::SwapWithoutMemory { swap }),
        swap if swap < limit => Err(ResourceError::SwapBelowMemory { swap, limit }),
        swap => Ok(Some(text(swap - limit))),
    }
}

/// v1 shares to v2 weight: the curve through (2, 1), (1024, 100) and (262144, 10000) that kubelet
/// uses for the groups above ours.
fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            #[expect(clippy::cast_precision_loss, reason = "below 2^18")]
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "1 to 10000"
            )]
            let weight = 10f64.powf(exponent).ceil() as u64;
            weight
        }
    }
}

/// The least shares that give this v2 weight.
pub(super) fn shares_of_weight(wanted: u64) -> u64 {
    let (mut least, mut most) = (2, 262_144);
    while least < most {
        let middle = u64::midpoint(least, most);
        match weight(middle) < wanted {
            true => least = middle + 1,
            false => most = middle,
        }
    }
    least
}

/// 10..1000 to 1..10000.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9999 / 990
}

fn check(res: &Resources) -> Result<(), ResourceError> {
    for (size, _) in &res.hugepages {
        let digits = size.trim_end_matches(|c: char| c.is_ascii_uppercase());
        let unit = &size[digits.len()..];
        let number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if !number || !matches!(unit, "KB" | "MB" | "GB") {
            return Err(ResourceError::HugepageSize { size: size.clone() });
        }
    }
    let texts = [
        ("cpuset_cpus", &res.cpuset_cpus),
        ("cpuset_mems", &res.cpuset_mems),
    ];
    let texts = texts
        .into_iter()
        .filter_map(|(key, value)| Some((key, value.as_ref()?)));
    for (key, value) in texts {
        if value.bytes().any(|byte| byte < b' ') {
            return Err(ResourceError::Value { key: key.into() });
        }
    }
    for (key, value) in &res.unified {
        // cgroup.procs, cgroup.kill and the like act on processes; they are no settings.
        let core = key.starts_with("cgroup.")
            && !matches!(key.as_str(), "cgroup.max.depth" | "cgroup.max.descendants");
        let name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let first = key.split('.').next().unwrap_or_default();
        if core || first.is_empty() || !key.contains('.') || !key.bytes().all(name) {
            return Err(ResourceError::UnifiedKey { key: key.clone() });
        }
        if value
            .bytes()
            .any(|byte| byte < b' ' && byte != b'\n' && byte != b'\t')
        {
            return Err(ResourceError::Value { key: key.clone() });
        }
    }
    Ok(())
}

fn setting(controller: &'static str, file: &'static str, value: String) -> Setting {
    Setting {
        controller,
        file: file.into(),
        value,
        optional: false,
    }
}

fn text(value: impl ToString) -> String {
    value.to_string()
}

fn non_zero(value: Option<u64>) -> Option<u64> {
    value.filter(|value| *value != 0)
}

fn non_empty(value: Option<&String>) -> Option<String> {
    value.filter(|value| !value.is_empty()).cloned()
}

/// v1 takes -1 for unlimited; other negative numbers mean it too.
fn signed(value: Option<i64>) -> Option<String> {
    value
        .filter(|value| *value != 0)
        .map(|value| text(value.max(-1)))
}

fn max_or(value: i64) -> String {
    if value < 0 { "max".into() } else { text(value) }
}

fn pids(limit: i64) -> String {
    max_or(if limit == 0 { 1 } else { limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_: &'static str, _: &str) -> Option<String> {
        None
    }

    fn lines(settings: Result<Vec<Setting>, ResourceError>) -> Vec<String> {
        settings
            .unwrap()
            .iter()
            .map(|s| format!("{}={}", s.file, s.value))
            .collect()
    }

    #[test]
    fn weights_follow_kubelets_curve() {
        let table = [
            (0, 1),
            (2, 1),
            (3, 2),
            (10, 4),
            (100, 17),
            (1024, 100),
            (2048, 174),
        ];
        for (shares, expected) in table
            .into_iter()
            .chain([(262_144, 10_000), (300_000, 10_000)])
        {
            assert_eq!(weight(shares), expected, "{shares} shares");
        }
    }

    #[test]
    fn v2_values() {
        let res = Resources {
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            cpuset_cpus: Some("0-1".into()),
            memory_limit: Some(1 << 30),
            memory_swap: Some(3 << 29),
            memory_reservation: Some(1 << 20),
            pids_limit: Some(-1),
            hugepages: vec![("2MB".into(), 0)],
            blkio_weight: Some(10),
            blkio_throttle: vec![BlkioThrottle {
                major: 8,
                read_bps: Some(1000),
                write_iops: Some(0),
                ..BlkioThrottle::default()
            }],
            unified: vec![("memory.high".into(), "5000".into())],
            ..Resources::default()
        };
        let expected = [
            "cpuset.cpus=0-1",
            "cpu.weight=100",
            "cpu.max=50000 100000",
            "memory.low=1048576",
            "memory.swap.max=536870912",
            "memory.max=1073741824",
            "pids.max=max",
            "hugetlb.2MB.max=0",
            "hugetlb.2MB.rsvd.max=0",
            "io.weight=default 1",
            "io.max=8:0 rbps=1000 wiops=max",
            "memory.high=5000",
        ];
        assert_eq!(lines(v2(&res, &nothing)), expected);
    }

    use super::super::resources::BlkioThrottle;

    #[test]
    fn shares_come_back_from_the_weight_they_give() {
        for weight_now in [1, 2, 17, 100, 174, 9999, 10_000] {
            assert!(weight(shares_of_weight(weight_now)) >= weight_now);
            assert!(weight(shares_of_weight(weight_now) - 1) <= weight_now);
        }
        assert_eq!(shares_of_weight(1), 2);
    }

    #[test]
    fn v2_keeps_the_half_of_cpu_max_that_is_not_named() {
        let now = |_: &'static str, _: &str| Some("20000 50000\n".to_owned());
        let of = |quota, period| {
            let res = Resources {
                cpu_quota: quota,
                cpu_period: period,
                ..Resources::default()
            };
            lines(v2(&res, &now))
        };
        assert_eq!(of(Some(-1), None), ["cpu.max=max 50000"]);
        assert_eq!(of(None, Some(100_000)), ["cpu.max=20000 100000"]);
        assert!(of(None, None).is_empty());
    }

    #[test]
    fn v2_swap_is_the_difference() {
        let of = |limit, swap| {
            let res = Resources {
                memory_limit: limit,
                memory_swap: swap,
                ..Resources::default()
            };
            swap_max(&res)
        };
        assert_eq!(of(Some(10), Some(10)), Ok(Some("0".into())));
        assert_eq!(of(Some(10), Some(-1)), Ok(Some("max".into())));
        assert_eq!(of(Some(10), None), Ok(None));
        assert_eq!(of(Some(-1), Some(-1)), Ok(Some("max".into())));
        assert!(matches!(
            of(Some(10), Some(9)),
            Err(ResourceError::SwapBelowMemory { .. })
        ));
        assert!(matches!(
            of(None, Some(9)),
            Err(ResourceError::SwapWithoutMemory { .. })
        ));
    }

    #[test]
    fn v1_orders_memory_by_what_is_set_now() {
        let res = Resources {
            memory_limit: Some(2000),
            memory_swap: Some(3000),
            ..Resources::default()
        };
        let at = |now: i64| {
            lines(v1(&res, &move |_: &'static str, _: &str| {
                Some(now.to_string())
            }))
        };
        let (limit, sum) = (
            "memory.limit_in_bytes=2000",
            "memory.memsw.limit_in_bytes=3000",
        );
        assert_eq!(at(1000), [sum, limit]);
        assert_eq!(at(5000), [limit, sum]);
        let res = Resources {
            memory_swap: None,
            ..res
        };
        let now = |_: &'static str, _: &str| Some("1000".to_owned());
        assert_eq!(
            lines(v1(&res, &now)),
            ["memory.memsw.limit_in_bytes=2000", limit]
        );
    }

    #[test]
    fn unified_keys_cannot_leave_the_group_or_act_on_processes() {
        let keys = [
            "cgroup.procs",
            "cgroup.kill",
            "../memory.max",
            "a/b.c",
            "memory",
            "",
            ".x",
        ];
        for key in keys {
            let res = Resources {
                unified: vec![(key.into(), "1".into())],
                ..Resources::default()
            };
            assert!(v2(&res, &nothing).is_err(), "{key}");
        }
        let res = Resources {
            unified: vec![("pids.max".into(), "1".into())],
            ..Resources::default()
        };
        assert!(matches!(
            v1(&res, &nothing),
            Err(ResourceError::UnifiedOnV1 { .. })
        ));
    }

    #[test]
    fn hugepage_sizes_are_checked() {
        for size in ["2M", "MB", "../2MB", "2MB/", "2 MB", ""] {
            let res = Resources {
                hugepages: vec![(size.into(), 1)],
                ..Resources::default()
            };
            let error = v1(&res, &nothing).unwrap_err();
            assert_eq!(error, ResourceError::HugepageSize { size: size.into() });
        }
    }
}
