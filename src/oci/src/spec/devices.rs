//! Device nodes and the links that belong to them.

use oci_spec::runtime::{Linux, LinuxDeviceType, Mount};

use super::{Result, absolute, clean, invalid, text};
use crate::plan::{DeviceStep, Step};

const S_IFIFO: u32 = 0o010_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFBLK: u32 = 0o060_000;

/// Nodes every container has, by the runtime specification.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Links every container has, by the runtime specification.
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// Nodes and links; none where the container gets the host's /dev.
pub(super) fn devices(linux: &Linux, mounts: &[Mount]) -> Result<Vec<Step>> {
    let is_bind = |mount: &Mount| {
        let words = mount.options().as_deref().unwrap_or_default();
        mount.typ().as_deref() == Some("bind")
            || words
                .iter()
                .any(|word| matches!(word.as_str(), "bind" | "rbind"))
    };
    let over_dev = |mount: &&Mount| clean(&mount.destination().to_string_lossy()) == "/dev";
    if mounts.iter().filter(over_dev).any(is_bind) {
        return Ok(Vec::new());
    }
    let mut nodes = Vec::new();
    for device in linux.devices().as_deref().unwrap_or_default() {
        let path = text("linux.devices.path", device.path())?;
        let path = absolute("linux.devices.path", &path)?;
        let kind = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => S_IFCHR,
            LinuxDeviceType::B => S_IFBLK,
            LinuxDeviceType::P => S_IFIFO,
            LinuxDeviceType::A => return Err(invalid("linux.devices.type", "a is no type")),
        };
        let number = |value: i64| {
            let reason = || format!("{path}: {value} is no device number");
            u32::try_from(value).map_err(|_| invalid("linux.devices", reason()))
        };
        let (major, minor) = match kind {
            S_IFIFO => (0, 0),
            _ => (number(device.major())?, number(device.minor())?),
        };
        nodes.push(DeviceStep {
            mode: kind | device.file_mode().unwrap_or(0o666) & 0o7777,
            major,
            minor,
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
            path,
        });
    }
    for (path, major, minor) in DEFAULT {
        if nodes.iter().all(|node| node.path != path) {
            let (path, mode) = (path.to_owned(), S_IFCHR | 0o666);
            nodes.push(DeviceStep {
                path,
                mode,
                major,
                minor,
                uid: 0,
                gid: 0,
            });
        }
    }
    let links = LINKS.map(|(path, target)| Step::Symlink {
        path: path.to_owned(),
        target: target.to_owned(),
    });
    Ok(nodes.into_iter().map(Step::Device).chain(links).collect())
}
