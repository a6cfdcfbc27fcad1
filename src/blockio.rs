//! Classes of block I/O: a file of named limits, as operators of other runtimes have it.
//!
//! A class is a list of limits, each for the disks that its patterns fit; a weight without devices
//! is for all. The file is read when a class is asked for, so it may change at any time, and disks are
//! looked up then.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::sys::stat::{major, minor};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxBlockIoBuilder, LinuxThrottleDevice, LinuxThrottleDeviceBuilder,
    LinuxWeightDevice, LinuxWeightDeviceBuilder,
};
use serde::Deserialize;

use crate::{
    error::{Classify, ErrorKind},
    yaml,
};

/// Largest class file.
const MAX_FILE: u64 = 1024 * 1024;
/// Weights the kernel takes.
const WEIGHTS: std::ops::RangeInclusive<u16> = 10..=1000;

/// Why a class cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BlockIoError {
    /// There is no class file.
    #[error("there is no file of classes at {} (runtime.blockio_config)", path.display())]
    NoFile {
        /// Where it would be.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It says something that has no meaning.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// It has no such class.
    #[error("{} has no such class, only {known:?}", path.display())]
    Unknown {
        /// Which.
        path: PathBuf,
        /// Those it has.
        known: Vec<String>,
    },
}

impl Classify for BlockIoError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoFile { .. } => ErrorKind::Unsupported,
            Self::Unknown { .. } => ErrorKind::InvalidArgument,
            Self::Read { .. } | Self::Invalid { .. } => ErrorKind::Internal,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(alias = "classes", rename = "Classes")]
    classes: BTreeMap<String, Vec<Limits>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Limits {
    #[serde(alias = "devices", rename = "Devices")]
    devices: Vec<String>,
    #[serde(alias = "weight", rename = "Weight")]
    weight: Option<Amount>,
    #[serde(alias = "throttleReadBps", rename = "ThrottleReadBps")]
    read_bps: Option<Amount>,
    #[serde(alias = "throttleWriteBps", rename = "ThrottleWriteBps")]
    write_bps: Option<Amount>,
    #[serde(alias = "throttleReadIOPS", rename = "ThrottleReadIOPS")]
    read_iops: Option<Amount>,
    #[serde(alias = "throttleWriteIOPS", rename = "ThrottleWriteIOPS")]
    write_iops: Option<Amount>,
}

/// A number, or one with a unit: `50M`, `10Ki`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Amount {
    Number(u64),
    Text(String),
}

impl Amount {
    fn value(&self) -> Result<u64, String> {
        let text = match self {
            Self::Number(number) => return Ok(*number),
            Self::Text(text) => text,
        };
        let end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let factor: u64 = match &text[end..] {
            "" => 1,
            "k" => 1000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            _ => return Err(format!("{text:?} is no amount such as 50M")),
        };
        let digits: Option<u64> = text[..end].parse().ok();
        digits
            .and_then(|digits| digits.checked_mul(factor))
            .ok_or_else(|| format!("{text:?} is no amount such as 50M"))
    }
}

/// The limits of a class. Blocks.
///
/// # Errors
/// The file cannot be used, or has no such class.
pub fn class(path: &Path, name: &str) -> Result<LinuxBlockIo, BlockIoError> {
    let invalid = |problem: String| BlockIoError::Invalid {
        path: path.to_owned(),
        problem,
    };
    let document = yaml::parse(&read(path)?).map_err(|error| invalid(error.to_string()))?;
    let file: File =
        serde_json::from_value(document).map_err(|error| invalid(error.to_string()))?;
    let Some(limits) = file.classes.get(name) else {
        return Err(BlockIoError::Unknown {
            path: path.to_owned(),
            known: file.classes.keys().cloned().collect(),
        });
    };
    let in_class = |problem| invalid(format!("class {name:?}: {problem}"));
    build(limits, &disks).map_err(in_class)
}

fn read(path: &Path) -> Result<String, BlockIoError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => BlockIoError::NoFile {
            path: path.to_owned(),
        },
        _ => BlockIoError::Read {
            path: path.to_owned(),
            source,
        },
    };
    let file = fs::File::open(path).map_err(failed)?;
    io::read_to_string(io::Read::take(file, MAX_FILE)).map_err(failed)
}

/// Numbers of a disk.
type Disk = (i64, i64);

fn build(list: &[Limits], disks: &dyn Fn(&str) -> Vec<Disk>) -> Result<LinuxBlockIo, String> {
    let mut weights: BTreeMap<Disk, u16> = BTreeMap::new();
    let mut rates: [BTreeMap<Disk, u64>; 4] = Default::default();
    let mut weight = None;
    for limits in list {
        let own = limits.weight.as_ref().map(Amount::value).transpose()?;
        let own = own.map(|value| {
            let value = u16::try_from(value).ok().filter(|w| WEIGHTS.contains(w));
            value.ok_or_else(|| format!("Weight must be {WEIGHTS:?}"))
        });
        let own = own.transpose()?;
        let asked = [
            &limits.read_bps,
            &limits.write_bps,
            &limits.read_iops,
            &limits.write_iops,
        ];
        if limits.devices.is_empty() {
            if asked.into_iter().any(Option::is_some) {
                return Err("a throttle needs Devices".to_owned());
            }
            weight = own.or(weight);
            continue;
        }
        for disk in limits.devices.iter().flat_map(|pattern| disks(pattern)) {
            if let Some(own) = own {
                weights.insert(disk, own);
            }
            for (rates, amount) in rates.iter_mut().zip(asked) {
                if let Some(amount) = amount {
                    rates.insert(disk, amount.value()?);
                }
            }
        }
    }
    limits_of(weight, &weights, &rates).map_err(|error| error.to_string())
}

fn limits_of(
    weight: Option<u16>,
    weights: &BTreeMap<Disk, u16>,
    rates: &[BTreeMap<Disk, u64>; 4],
) -> Result<LinuxBlockIo, oci_spec::OciSpecError> {
    let rate = |rates: &BTreeMap<Disk, u64>| -> Result<Vec<LinuxThrottleDevice>, _> {
        let each = rates.iter().map(|((major, minor), rate)| {
            let device = LinuxThrottleDeviceBuilder::default();
            device.major(*major).minor(*minor).rate(*rate).build()
        });
        each.collect::<Result<_, oci_spec::OciSpecError>>()
    };
    let weights = weights.iter().map(|((major, minor), weight)| {
        let device = LinuxWeightDeviceBuilder::default();
        device.major(*major).minor(*minor).weight(*weight).build()
    });
    let weights = weights.collect::<Result<Vec<LinuxWeightDevice>, _>>()?;
    let mut limits = LinuxBlockIoBuilder::default().build()?;
    limits.set_weight(weight);
    limits.set_weight_device(Some(weights).filter(|list| !list.is_empty()));
    let some = |list: Vec<LinuxThrottleDevice>| (!list.is_empty()).then_some(list);
    limits.set_throttle_read_bps_device(some(rate(&rates[0])?));
    limits.set_throttle_write_bps_device(some(rate(&rates[1])?));
    limits.set_throttle_read_iops_device(some(rate(&rates[2])?));
    limits.set_throttle_write_iops_device(some(rate(&rates[3])?));
    Ok(limits)
}

/// The whole disks that a pattern fits, links followed. Partitions have no limits of their own.
fn disks(pattern: &str) -> Vec<Disk> {
    let paths = expand(pattern);
    let disk = |path: PathBuf| {
        let meta = fs::metadata(path).ok()?;
        if !meta.file_type().is_block_device() {
            return None;
        }
        let (major, minor) = (major(meta.rdev()), minor(meta.rdev()));
        let partition = format!("/sys/dev/block/{major}:{minor}/partition");
        if Path::new(&partition).exists() {
            return None;
        }
        Some((i64::try_from(major).ok()?, i64::try_from(minor).ok()?))
    };
    paths.into_iter().filter_map(disk).collect()
}

/// The existing paths that an absolute pattern with `*` and `?` fits.
fn expand(pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        let within = |directory: PathBuf| -> Vec<PathBuf> {
            if !part.contains(['*', '?']) {
                return vec![directory.join(part)];
            }
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            let mut names: Vec<String> = names.filter(|name| fits(part, name)).collect();
            names.sort();
            names.into_iter().map(|name| directory.join(name)).collect()
        };
        found = found.into_iter().flat_map(within).collect();
    }
    found
}

fn fits(pattern: &str, name: &str) -> bool {
    match pattern.chars().next() {
        None => name.is_empty(),
        Some('*') => {
            let rest = &pattern[1..];
            let mut tails = name.char_indices().map(|(at, _)| &name[at..]);
            fits(rest, "") || tails.any(|tail| fits(rest, tail))
        }
        Some(wanted) => {
            let mut rest = name.chars();
            let next = rest.next();
            let fit = next.is_some_and(|found| wanted == '?' || wanted == found);
            fit && fits(&pattern[wanted.len_utf8()..], rest.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Chain;

    #[test]
    fn patterns_fit_names() {
        for (pattern, name, fit) in [
            ("sd*", "sda1", true),
            ("sd?", "sda", true),
            ("sd?", "sda1", false),
            ("*", "", true),
            ("*SSD*", "ata-SSD-1", true),
            ("*SSD", "ata-SSD-1", false),
            ("a*b*c", "a12b34c", true),
            ("a*b*c", "a12b34", false),
            ("", "x", false),
        ] {
            assert_eq!(fits(pattern, name), fit, "{pattern} {name}");
        }
        let dir = tempfile::tempdir().unwrap();
        for name in ["one/disk", "two/disk", "two/other"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let pattern = format!("{}/*/di?k", dir.path().display());
        let expected = ["one/disk", "two/disk"].map(|name| dir.path().join(name));
        assert_eq!(expand(&pattern), expected);
        assert!(disks(&pattern).is_empty(), "directories are no disks");
    }

    #[test]
    fn a_class_becomes_limits() {
        let text = "Classes:\n  slow:\n  - Devices: [/dev/a*]\n    ThrottleReadBps: 50M\n    \
                    ThrottleWriteIOPS: 2k\n  - Devices: [/dev/ab]\n    Weight: 80\n    \
                    ThrottleReadBps: 1Mi\n  - Weight: 500\n  none: []\n";
        let document = yaml::parse(text).unwrap();
        let file: File = serde_json::from_value(document).unwrap();
        let disks = |pattern: &str| match pattern {
            "/dev/a*" => vec![(8, 0), (8, 16)],
            _ => vec![(8, 16)],
        };
        let limits = build(&file.classes["slow"], &disks).unwrap();
        let rates = |list: &Option<Vec<LinuxThrottleDevice>>| -> Vec<(i64, i64, u64)> {
            let list = list.iter().flatten();
            list.map(|d| (d.major(), d.minor(), d.rate())).collect()
        };
        assert_eq!(limits.weight(), Some(500));
        assert_eq!(limits.weight_device().as_ref().map(Vec::len), Some(1));
        assert_eq!(
            rates(limits.throttle_read_bps_device()),
            [(8, 0, 50_000_000), (8, 16, 1 << 20)],
            "the later one counts"
        );
        assert_eq!(
            rates(limits.throttle_write_iops_device()),
            [(8, 0, 2000), (8, 16, 2000)]
        );
        assert_eq!(limits.throttle_write_bps_device(), &None);
    }

    #[test]
    fn what_is_wrong_with_a_class_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("classes.yaml");
        let told = |text: &str| {
            fs::write(&path, text).unwrap();
            let error = class(&path, "slow").unwrap_err();
            Chain(&error).to_string()
        };
        let missing = class(&path, "slow").unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::Unsupported);
        for (text, expected) in [
            ("Classes: {fast: []}", "no such class, only [\"fast\"]"),
            ("Classes: [", "line "),
            ("Kinds: {}", "unknown field `Kinds`"),
            ("Classes: {slow: [{Weight: 5}]}", "Weight must be 10..=1000"),
            (
                "Classes: {slow: [{ThrottleReadBps: 5}]}",
                "a throttle needs Devices",
            ),
            (
                "Classes: {slow: [{Devices: [/dev], Weight: 5x}]}",
                "\"5x\" is no amount",
            ),
        ] {
            let told = told(text);
            assert!(told.contains(expected), "{told}");
        }
    }
}
