//! What asked devices change in one container: the edits of their specs in order, with what the host
//! knows of their nodes.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use nix::sys::stat::{major, minor};

use super::spec::{ContainerEdits, DeviceNode, Hook, Mount};
use crate::bundle::{DeviceKind, HostDevice};

/// Changes to one container.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Edits {
    /// Environment, a name and a value each; a later one wins.
    pub env: Vec<(String, String)>,
    /// Device nodes.
    pub devices: Vec<HostDevice>,
    /// Mounts; one replaces what is mounted at the same place otherwise.
    pub mounts: Vec<Mount>,
    /// Hooks, in their order.
    pub hooks: Vec<Hook>,
    /// Groups of the process.
    pub additional_gids: Vec<u32>,
    /// The group of cache and memory bandwidth.
    pub resctrl: Option<String>,
}

/// Whom device nodes belong to that say nothing about it: the container's process, unless that is
/// root.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner {
    /// User of the process.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

impl Edits {
    /// Adds what one list asks for.
    ///
    /// # Errors
    /// What cannot be done on this host.
    pub(super) fn add(&mut self, edits: &ContainerEdits, owner: Owner) -> Result<(), String> {
        if !edits.net_devices.is_empty() {
            return Err("netDevices are not supported by this version of crisp".to_owned());
        }
        let pairs = edits.env.iter().filter_map(|line| line.split_once('='));
        self.env
            .extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
        for node in &edits.device_nodes {
            let device = on_host(node, owner)?;
            self.devices.retain(|known| known.path != device.path);
            self.devices.push(device);
        }
        for mount in &edits.mounts {
            self.mounts
                .retain(|known| known.container_path != mount.container_path);
            self.mounts.push(mount.clone());
        }
        self.hooks.extend(edits.hooks.iter().cloned());
        // Everybody may be said to be in the group of root, nobody is put there.
        let gids = edits.additional_gids.iter().filter(|gid| **gid != 0);
        self.additional_gids.extend(gids);
        if let Some(rdt) = &edits.intel_rdt {
            self.resctrl = Some(rdt.clos_id.clone());
        }
        Ok(())
    }
}

/// A node with what it does not say taken from the host's.
fn on_host(node: &DeviceNode, owner: Owner) -> Result<HostDevice, String> {
    let said = match &*node.r#type {
        "" => None,
        "b" => Some(DeviceKind::Block),
        "p" => return Err(format!("device node {}: pipes are not served", node.path)),
        _ => Some(DeviceKind::Char),
    };
    let mut kind = said;
    let number = |value: i64| u32::try_from(value).unwrap_or_default();
    let mut numbers = (number(node.major), number(node.minor));
    let mut mode = node.file_mode;
    if kind.is_none() || numbers == (0, 0) || mode.is_none() {
        let path = match &*node.host_path {
            "" => &node.path,
            path => path,
        };
        match look_up(Path::new(path)) {
            Ok(found) => {
                let told = kind.is_none_or(|kind| kind == found.0);
                if !told {
                    return Err(format!("{path} is no {} device", word(kind)));
                }
                kind = Some(found.0);
                if numbers == (0, 0) {
                    numbers = found.1;
                }
                mode = mode.or(Some(found.2));
            }
            // Nothing but the permissions was left to find out.
            Err(_) if kind.is_some() && numbers != (0, 0) => {}
            Err(error) => return Err(format!("look up {path}: {error}")),
        }
    }
    let or_process = |said: Option<u32>, own: u32| said.unwrap_or(own);
    Ok(HostDevice {
        path: node.path.clone(),
        kind: kind.unwrap_or(DeviceKind::Char),
        major: numbers.0,
        minor: numbers.1,
        mode: mode.unwrap_or(0o666) & 0o7777,
        uid: or_process(node.uid, owner.uid),
        gid: or_process(node.gid, owner.gid),
        permissions: match &*node.permissions {
            "" => "rwm".to_owned(),
            "none" => String::new(),
            some => some.to_owned(),
        },
    })
}

const fn word(kind: Option<DeviceKind>) -> &'static str {
    match kind {
        Some(DeviceKind::Block) => "block",
        _ => "character",
    }
}

/// Kind, numbers and permission bits of a node of the host.
fn look_up(path: &Path) -> io::Result<(DeviceKind, (u32, u32), u32)> {
    let meta = fs::metadata(path)?;
    let kind = if meta.file_type().is_block_device() {
        DeviceKind::Block
    } else if meta.file_type().is_char_device() {
        DeviceKind::Char
    } else {
        return Err(io::Error::other("it is no device"));
    };
    let number = |value: u64| u32::try_from(value).map_err(io::Error::other);
    let numbers = (number(major(meta.rdev()))?, number(minor(meta.rdev()))?);
    Ok((kind, numbers, meta.mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(path: &str) -> DeviceNode {
        DeviceNode {
            path: path.into(),
            ..DeviceNode::default()
        }
    }

    #[test]
    fn what_a_node_does_not_say_comes_from_the_host() {
        let owner = Owner { uid: 7, gid: 8 };
        let found = on_host(&node("/dev/null"), owner).unwrap();
        let host = fs::metadata("/dev/null").unwrap();
        assert_eq!(
            (found.kind, found.major, found.minor),
            (DeviceKind::Char, 1, 3)
        );
        assert_eq!(found.mode, host.mode() & 0o7777);
        assert_eq!((found.uid, found.gid, &*found.permissions), (7, 8, "rwm"));
        let other = DeviceNode {
            host_path: "/dev/zero".into(),
            file_mode: Some(0o600),
            permissions: "none".into(),
            uid: Some(0),
            ..node("/dev/gpu0")
        };
        let found = on_host(&other, owner).unwrap();
        assert_eq!(
            (&*found.path, found.minor, found.mode),
            ("/dev/gpu0", 5, 0o600)
        );
        assert_eq!((found.uid, found.gid, &*found.permissions), (0, 8, ""));
    }

    #[test]
    fn a_node_that_says_everything_need_not_exist() {
        let whole = DeviceNode {
            r#type: "u".into(),
            major: 195,
            minor: 255,
            ..node("/dev/there-is-none")
        };
        let found = on_host(&whole, Owner::default()).unwrap();
        assert_eq!(
            (found.kind, found.major, found.mode),
            (DeviceKind::Char, 195, 0o666)
        );
        for (node, expected) in [
            (node("/dev/there-is-none"), "look up /dev/there-is-none: "),
            (node("/etc/passwd"), "look up /etc/passwd: it is no device"),
            (
                DeviceNode {
                    r#type: "b".into(),
                    ..node("/dev/null")
                },
                "/dev/null is no block device",
            ),
            (
                DeviceNode {
                    r#type: "p".into(),
                    ..node("/p")
                },
                "pipes are not served",
            ),
        ] {
            let problem = on_host(&node, Owner::default()).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
    }

    #[test]
    fn later_edits_replace_earlier_ones_at_the_same_place() {
        let mount = |host: &str| Mount {
            host_path: host.into(),
            container_path: "/opt/x".into(),
            ..Mount::default()
        };
        let edits = |host: &str, device: &str| ContainerEdits {
            env: vec![format!("A={host}")],
            device_nodes: vec![DeviceNode {
                host_path: device.into(),
                ..node("/dev/gpu")
            }],
            mounts: vec![mount(host)],
            additional_gids: vec![0, 44],
            ..ContainerEdits::default()
        };
        let mut all = Edits::default();
        all.add(&edits("/one", "/dev/null"), Owner::default())
            .unwrap();
        all.add(&edits("/two", "/dev/full"), Owner::default())
            .unwrap();
        assert_eq!(all.mounts, [mount("/two")]);
        assert_eq!(all.devices.len(), 1);
        assert_eq!(all.devices[0].minor, 7);
        assert_eq!(all.additional_gids, [44, 44]);
        assert_eq!(all.env.last().unwrap().1, "/two");
    }
}
