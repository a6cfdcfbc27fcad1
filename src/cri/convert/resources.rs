//! `LinuxContainerResources` to [`Resources`].

use std::collections::{BTreeMap, BTreeSet};

use super::field::{Field, Result, quoted};
use crate::{
    cri::proto,
    sandbox::{
        spec::{HugepageLimit, Resources},
        update::PodResources,
    },
};

/// Bounds of a CFS period in microseconds (kernel: 1 ms to 1 s).
const PERIOD: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;
/// Smallest CFS quota in microseconds.
const MIN_QUOTA: i64 = 1_000;
/// Bounds of `oom_score_adj`.
const OOM_SCORE_ADJ: std::ops::RangeInclusive<i64> = -1000..=1000;
/// Most hugepage limits; no architecture has that many page sizes.
const MAX_HUGEPAGES: usize = 64;
/// Most raw cgroup files.
const MAX_UNIFIED: usize = 256;
/// Longest value of a raw cgroup file: one page.
const MAX_UNIFIED_VALUE: usize = 4096;
/// Longest CPU or memory node list.
const MAX_CPUSET: usize = 4096;

/// Validates resources; zero and empty mean "not asked for", as everywhere in CRI.
///
/// # Errors
/// Names the first field that cannot be served.
pub fn resources(field: &Field<'_>, asked: &proto::LinuxContainerResources) -> Result<Resources> {
    let positive = |name, value: i64| {
        field
            .child(name)
            .not_negative(value)
            .map(|value| (value != 0).then_some(value))
    };
    let oom_score_adj = i32::try_from(asked.oom_score_adj)
        .ok()
        .filter(|_| OOM_SCORE_ADJ.contains(&asked.oom_score_adj))
        .ok_or_else(|| {
            let problem = format!("must be -1000 to 1000, is {}", asked.oom_score_adj);
            field.child("oom_score_adj").invalid(problem)
        })?;
    let memory_limit = positive("memory_limit_in_bytes", asked.memory_limit_in_bytes)?;
    Ok(Resources {
        cpu_period: period(&field.child("cpu_period"), asked.cpu_period)?,
        cpu_quota: quota(&field.child("cpu_quota"), asked.cpu_quota)?,
        cpu_shares: positive("cpu_shares", asked.cpu_shares)?,
        memory_limit,
        memory_swap_limit: swap(
            &field.child("memory_swap_limit_in_bytes"),
            asked.memory_swap_limit_in_bytes,
            memory_limit,
        )?,
        oom_score_adj,
        cpuset_cpus: cpuset(&field.child("cpuset_cpus"), &asked.cpuset_cpus)?,
        cpuset_mems: cpuset(&field.child("cpuset_mems"), &asked.cpuset_mems)?,
        hugepage_limits: hugepages(&field.child("hugepage_limits"), &asked.hugepage_limits)?,
        unified: unified(&field.child("unified"), &asked.unified)?,
    })
}

/// Limits that an update names. Annotations of the request are for others.
///
/// # Errors
/// Names the first field that cannot be served.
pub fn update(asked: &proto::UpdateContainerResourcesRequest) -> Result<Resources> {
    if asked.windows.is_some() {
        let problem = "this is Linux, its limits are in the field linux";
        return Err(Field::root("windows").invalid(problem));
    }
    let field = Field::root("linux");
    let named = asked.linux.as_ref();
    named.map_or_else(
        || Ok(Resources::default()),
        |named| resources(&field, named),
    )
}

/// Resources of a pod as an update names them.
///
/// # Errors
/// Names the first field that cannot be served.
pub fn update_pod(asked: &proto::UpdatePodSandboxResourcesRequest) -> Result<PodResources> {
    let one = |name, asked: Option<&proto::LinuxContainerResources>| {
        let field = Field::root(name);
        asked.map(|asked| resources(&field, asked)).transpose()
    };
    Ok(PodResources {
        overhead: one("overhead", asked.overhead.as_ref())?,
        resources: one("resources", asked.resources.as_ref())?,
    })
}

fn period(field: &Field<'_>, value: i64) -> Result<Option<u64>> {
    let value = field.not_negative(value)?;
    if value == 0 {
        return Ok(None);
    }
    if !PERIOD.contains(&value) {
        let (least, most) = (PERIOD.start(), PERIOD.end());
        return Err(field.invalid(format!(
            "must be {least} to {most} microseconds, is {value}"
        )));
    }
    Ok(Some(value))
}

fn quota(field: &Field<'_>, value: i64) -> Result<Option<i64>> {
    match value {
        0 => Ok(None),
        -1 => Ok(Some(-1)),
        value if value >= MIN_QUOTA => Ok(Some(value)),
        value => {
            let rule = format!("must be -1 for no limit or at least {MIN_QUOTA} microseconds");
            Err(field.invalid(format!("{rule}, is {value}")))
        }
    }
}

fn swap(field: &Field<'_>, value: i64, memory: Option<u64>) -> Result<Option<i64>> {
    match (value, memory) {
        (0, _) => Ok(None),
        (-1, _) => Ok(Some(-1)),
        (value, _) if value < 0 => {
            Err(field.invalid(format!("must be -1 for no limit or positive, is {value}")))
        }
        (value, Some(memory)) if value.unsigned_abs() < memory => {
            let rule = "is memory and swap together and must not be below the memory limit";
            Err(field.invalid(format!("{rule} {memory}, is {value}")))
        }
        (value, _) => Ok(Some(value)),
    }
}

/// A list of numbers and ranges, as the kernel's cpuset takes it.
fn cpuset(field: &Field<'_>, list: &str) -> Result<Option<String>> {
    if list.is_empty() {
        return Ok(None);
    }
    field.at_most(list, MAX_CPUSET)?;
    let number = |text: &str| {
        let digits =
            !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u32>().ok()).flatten()
    };
    let valid = list.split(',').all(|part| match part.split_once('-') {
        Some((first, last)) => {
            matches!((number(first), number(last)), (Some(first), Some(last)) if first <= last)
        }
        None => number(part).is_some(),
    });
    if !valid {
        let problem = format!("must be a list such as \"0-3,7\", is {}", quoted(list));
        return Err(field.invalid(problem));
    }
    Ok(Some(list.to_owned()))
}

fn hugepages(field: &Field<'_>, limits: &[proto::HugepageLimit]) -> Result<Vec<HugepageLimit>> {
    field.count(limits, MAX_HUGEPAGES)?;
    let mut seen = BTreeSet::new();
    let mut out = Vec::with_capacity(limits.len());
    for (index, limit) in limits.iter().enumerate() {
        let place = field.index(index);
        let size = limit.page_size.as_str();
        let number = ["KB", "MB", "GB"]
            .iter()
            .find_map(|unit| size.strip_suffix(unit));
        let valid = number.is_some_and(|digits| {
            digits.len() <= 9
                && !digits.starts_with('0')
                && !digits.is_empty()
                && digits.bytes().all(|b| b.is_ascii_digit())
        });
        if !valid {
            let problem = format!(
                "must be a size such as \"2MB\" or \"1GB\", is {}",
                quoted(size)
            );
            return Err(place.child("page_size").invalid(problem));
        }
        if !seen.insert(size) {
            return Err(place
                .child("page_size")
                .invalid(format!("{size} is limited twice")));
        }
        if i64::try_from(limit.limit).is_err() {
            return Err(place.child("limit").invalid("must be below 2^63"));
        }
        out.push(HugepageLimit {
            page_size: size.to_owned(),
            limit: limit.limit,
        });
    }
    Ok(out)
}

/// Raw cgroup v2 files: `controller.file`, never a path.
fn unified(
    field: &Field<'_>,
    map: &std::collections::HashMap<String, String>,
) -> Result<BTreeMap<String, String>> {
    if map.len() > MAX_UNIFIED {
        let problem = format!("must have at most {MAX_UNIFIED} entries, has {}", map.len());
        return Err(field.invalid(problem));
    }
    let mut out = BTreeMap::new();
    for (key, value) in map {
        let place = field.key(key);
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let (controller, file) = key.split_once('.').unwrap_or_default();
        let named = !controller.is_empty() && !file.is_empty() && !key.contains("..");
        if !named || !key.chars().all(allowed) || key.len() > 128 {
            return Err(place.invalid("must be a cgroup file such as memory.high"));
        }
        if controller == "cgroup" {
            let problem = "must not be a file of the cgroup core, which moves or kills processes";
            return Err(place.invalid(problem));
        }
        place.at_most(value, MAX_UNIFIED_VALUE)?;
        place.no_nul(value)?;
        out.insert(key.clone(), value.clone());
    }
    Ok(out)
}
