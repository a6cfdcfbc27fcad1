//! Spec files: what they may hold, and what must hold of them. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::name;

/// Released versions of the format, oldest first.
const VERSIONS: [&str; 10] = [
    "0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0",
];
/// Most devices of a file, and most of any list of edits.
const MAX_ITEMS: usize = 4096;

/// A spec file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    cdi_version: String,
    /// `vendor.com/class`.
    pub kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    /// The devices of this kind.
    pub devices: Vec<Device>,
    /// What each of them needs beside its own edits; made once for all of them.
    #[serde(default)]
    pub container_edits: ContainerEdits,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    /// Its name within the kind.
    pub name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    /// What it needs in a container.
    pub container_edits: ContainerEdits,
}

/// Changes to a container.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ContainerEdits {
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// Device nodes to make and allow.
    pub device_nodes: Vec<DeviceNode>,
    /// Network interfaces to move in.
    pub net_devices: Vec<Value>,
    /// Programs to run at points of the container's life.
    pub hooks: Vec<Hook>,
    /// Mounts to make.
    pub mounts: Vec<Mount>,
    /// The group of cache and memory bandwidth to be in.
    pub intel_rdt: Option<IntelRdt>,
    /// Groups the process is in.
    #[serde(rename = "additionalGids")]
    pub additional_gids: Vec<u32>,
}

/// A device node. What is not said is taken from the host's node.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DeviceNode {
    /// Path in the container.
    pub path: String,
    /// Path on the host, if it is another.
    pub host_path: String,
    /// `b`, `c`, `u` (as c) or `p`.
    pub r#type: String,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Permission bits.
    pub file_mode: Option<u32>,
    /// Some of `rwm`, or `none`.
    pub permissions: String,
    /// Owner; the container's user if absent.
    pub uid: Option<u32>,
    /// Group; the container's if absent.
    pub gid: Option<u32>,
}

/// A mount, as a runtime spec has it.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Mount {
    /// Source.
    pub host_path: String,
    /// Target.
    pub container_path: String,
    /// Options.
    pub options: Vec<String>,
    /// Type; a bind if empty.
    pub r#type: String,
}

/// A hook, as a runtime spec has it.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Hook {
    /// When.
    pub hook_name: String,
    /// Which program.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<String>,
    /// Seconds it may take.
    pub timeout: Option<i64>,
}

/// A group of cache and memory bandwidth.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IntelRdt {
    /// Its name.
    #[serde(rename = "closID")]
    pub clos_id: String,
    #[serde(rename = "l3CacheSchema")]
    l3_cache_schema: String,
    #[serde(rename = "memBwSchema")]
    mem_bw_schema: String,
    schemata: Vec<String>,
    #[serde(rename = "enableCMT")]
    enable_cmt: bool,
    #[serde(rename = "enableMBM")]
    enable_mbm: bool,
    #[serde(rename = "enableMonitoring")]
    enable_monitoring: bool,
}

/// Points at which a hook may run.
const HOOKS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

type Checked = Result<(), String>;

impl Spec {
    /// Reads a document and checks all of it.
    ///
    /// # Errors
    /// What is wrong, with the place.
    pub fn read(document: Value) -> Result<Self, String> {
        let spec: Self = serde_json::from_value(document).map_err(|error| error.to_string())?;
        let Some(version) = VERSIONS.iter().position(|v| *v == spec.cdi_version) else {
            let (found, newest) = (&spec.cdi_version, VERSIONS[VERSIONS.len() - 1]);
            return Err(format!(
                "cdiVersion {found:?} is none that is known, up to {newest}"
            ));
        };
        let (_, class) =
            name::kind(&spec.kind).map_err(|problem| format!("kind {:?} {problem}", spec.kind))?;
        let (needs, why) = spec.needs(class);
        let needed = VERSIONS
            .iter()
            .position(|v| *v == needs)
            .unwrap_or_default();
        if version < needed {
            return Err(format!(
                "cdiVersion {} is too old for {why}, which needs {needs}",
                spec.cdi_version
            ));
        }
        if spec.devices.is_empty() || spec.devices.len() > MAX_ITEMS {
            return Err(format!("devices must be 1 to {MAX_ITEMS}"));
        }
        spec.container_edits
            .check()
            .map_err(|problem| format!("containerEdits: {problem}"))?;
        let mut names = std::collections::BTreeSet::new();
        for device in &spec.devices {
            let at = |problem: &str| format!("device {:?} {problem}", device.name);
            name::device(&device.name).map_err(at)?;
            if !names.insert(&device.name) {
                return Err(at("is there twice"));
            }
            if device.container_edits == ContainerEdits::default() {
                return Err(at("has no containerEdits"));
            }
            let checked = device.container_edits.check();
            checked.map_err(|problem| at(&format!("containerEdits: {problem}")))?;
        }
        Ok(spec)
    }

    /// The oldest version that has everything this spec uses, and what of it is newest.
    fn needs(&self, class: &str) -> (&'static str, &'static str) {
        let edits = || {
            let own = self.devices.iter().map(|device| &device.container_edits);
            own.chain([&self.container_edits])
        };
        let annotated =
            !self.annotations.is_empty() || self.devices.iter().any(|d| !d.annotations.is_empty());
        let digit = |device: &Device| device.name.starts_with(|c: char| c.is_ascii_digit());
        let table: [(&'static str, &'static str, bool); 8] = [
            (
                "1.1.0",
                "netDevices",
                edits().any(|e| !e.net_devices.is_empty()),
            ),
            ("0.7.0", "intelRdt", edits().any(|e| e.intel_rdt.is_some())),
            (
                "0.7.0",
                "additionalGids",
                edits().any(|e| !e.additional_gids.is_empty()),
            ),
            ("0.6.0", "annotations", annotated),
            ("0.6.0", "a dot in the class", class.contains('.')),
            (
                "0.5.0",
                "a device name that begins with a digit",
                self.devices.iter().any(digit),
            ),
            (
                "0.5.0",
                "a device node's hostPath",
                edits().any(|e| e.device_nodes.iter().any(|n| !n.host_path.is_empty())),
            ),
            (
                "0.4.0",
                "a mount's type",
                edits().any(|e| e.mounts.iter().any(|m| !m.r#type.is_empty())),
            ),
        ];
        let newest = table.into_iter().find(|(_, _, used)| *used);
        newest.map_or(("0.1.0", ""), |(version, what, _)| (version, what))
    }
}

impl ContainerEdits {
    fn check(&self) -> Checked {
        let lists = [
            self.env.len(),
            self.device_nodes.len(),
            self.hooks.len(),
            self.mounts.len(),
            self.additional_gids.len(),
        ];
        if lists.into_iter().any(|length| length > MAX_ITEMS) {
            return Err(format!("a list has more than {MAX_ITEMS} items"));
        }
        check_env(&self.env)?;
        self.device_nodes.iter().try_for_each(DeviceNode::check)?;
        self.hooks.iter().try_for_each(Hook::check)?;
        self.mounts.iter().try_for_each(Mount::check)?;
        self.intel_rdt.iter().try_for_each(IntelRdt::check)
    }
}

fn check_env(lines: &[String]) -> Checked {
    for line in lines {
        let named = line
            .split_once('=')
            .is_some_and(|(name, _)| !name.is_empty());
        if !named || line.contains('\0') {
            return Err(format!("env {line:?} is not NAME=value"));
        }
    }
    Ok(())
}

fn check_path(what: &str, path: &str) -> Checked {
    if path.starts_with('/') && !path.contains('\0') {
        Ok(())
    } else {
        Err(format!("{what} {path:?} is not an absolute path"))
    }
}

impl DeviceNode {
    fn check(&self) -> Checked {
        check_path("deviceNodes path", &self.path)?;
        if !self.host_path.is_empty() {
            check_path("deviceNodes hostPath", &self.host_path)?;
        }
        let path = &self.path;
        if !matches!(&*self.r#type, "" | "b" | "c" | "u" | "p") {
            return Err(format!("device node {path}: type {:?}", self.r#type));
        }
        if u32::try_from(self.major).is_err() || u32::try_from(self.minor).is_err() {
            return Err(format!(
                "device node {path}: number {}:{}",
                self.major, self.minor
            ));
        }
        let some = self.permissions.chars().all(|c| "rwm".contains(c));
        if !some && self.permissions != "none" {
            return Err(format!(
                "device node {path}: permissions {:?}",
                self.permissions
            ));
        }
        Ok(())
    }
}

impl Hook {
    fn check(&self) -> Checked {
        if !HOOKS.contains(&&*self.hook_name) {
            return Err(format!(
                "hookName {:?} is none of {HOOKS:?}",
                self.hook_name
            ));
        }
        check_path("hook path", &self.path)?;
        if self.timeout.is_some_and(|seconds| seconds <= 0) {
            return Err(format!("hook {}: timeout must be above 0", self.path));
        }
        check_env(&self.env)
    }
}

impl Mount {
    fn check(&self) -> Checked {
        check_path("mount containerPath", &self.container_path)?;
        if matches!(&*self.r#type, "" | "bind") {
            check_path("mount hostPath", &self.host_path)?;
        }
        if self.host_path.is_empty() {
            return Err(format!("mount {}: hostPath is empty", self.container_path));
        }
        Ok(())
    }
}

impl IntelRdt {
    /// What would change a group is refused: groups are made by whoever divides the machine.
    fn check(&self) -> Checked {
        let plain = Self {
            clos_id: self.clos_id.clone(),
            ..Self::default()
        };
        if *self != plain {
            return Err("intelRdt: only closID is served".to_owned());
        }
        let id = &*self.clos_id;
        let named = !matches!(id, "" | "." | "..") && !id.contains(['/', '\n', '\0']);
        if id != "/" && (!named || id.len() > 255) {
            return Err(format!("intelRdt: closID {id:?} is no name of a group"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn base() -> Value {
        json!({
            "cdiVersion": "1.1.0",
            "kind": "vendor.com/gpu",
            "devices": [{"name": "0", "containerEdits": {"env": ["A=1"]}}],
        })
    }

    fn with(pointer: &str, value: Value) -> Value {
        let mut document = base();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        document.pointer_mut(parent).unwrap()[key] = value;
        document
    }

    #[test]
    fn a_spec_with_everything_is_read() {
        let edits = json!({
            "env": ["A=1", "B="],
            "deviceNodes": [
                {"path": "/dev/a"},
                {"path": "/dev/b", "hostPath": "/dev/c", "type": "c", "major": 1, "minor": 2,
                 "fileMode": 438, "permissions": "rw", "uid": 0, "gid": 44},
            ],
            "netDevices": [{"hostInterfaceName": "eth1", "name": "rdma0"}],
            "hooks": [{"hookName": "createContainer", "path": "/usr/bin/x", "args": ["x", "y"],
                       "env": ["C=1"], "timeout": 5}],
            "mounts": [{"hostPath": "/usr/lib/x", "containerPath": "/usr/lib/x",
                        "options": ["ro", "nosuid", "rbind"], "type": "bind"}],
            "intelRdt": {"closID": "gold"},
            "additionalGids": [44],
        });
        let mut document = with("/containerEdits", edits.clone());
        document["devices"][0]["containerEdits"] = edits;
        document["annotations"] = json!({"x": "y"});
        let spec = Spec::read(document).unwrap();
        assert_eq!(spec.container_edits, spec.devices[0].container_edits);
        let node = &spec.container_edits.device_nodes[1];
        assert_eq!((node.file_mode, node.gid), (Some(0o666), Some(44)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let edits = |value: Value| with("/containerEdits", value);
        let node = |value: Value| edits(json!({ "deviceNodes": [value] }));
        let cases = [
            (
                with("/cdiVersion", json!("9.0.0")),
                "cdiVersion \"9.0.0\" is none",
            ),
            (with("/cdiVersion", json!(1)), "invalid type: integer"),
            (
                with("/cdiVersion", json!("0.4.0")),
                "too old for a device name that begins with a digit, which needs 0.5.0",
            ),
            (
                with("/kind", json!("gpu")),
                "kind \"gpu\" must name a vendor",
            ),
            (with("/devices", json!([])), "devices must be 1 to"),
            (
                with("/containerDevices", json!([])),
                "unknown field `containerDevices`",
            ),
            (
                with("/devices/0/name", json!("a/b")),
                "device \"a/b\" must have a device name",
            ),
            (
                with("/devices/0/containerEdits", json!({})),
                "device \"0\" has no containerEdits",
            ),
            (
                edits(json!({"env": ["=x"]})),
                "containerEdits: env \"=x\" is not NAME=value",
            ),
            (
                node(json!({"path": "dev/x"})),
                "deviceNodes path \"dev/x\" is not an absolute path",
            ),
            (
                node(json!({"path": "/dev/x", "type": "z"})),
                "device node /dev/x: type \"z\"",
            ),
            (
                node(json!({"path": "/dev/x", "major": -1})),
                "device node /dev/x: number -1:0",
            ),
            (
                node(json!({"path": "/dev/x", "permissions": "rx"})),
                "permissions \"rx\"",
            ),
            (
                edits(json!({"hooks": [{"hookName": "before", "path": "/x"}]})),
                "hookName \"before\" is none of",
            ),
            (
                edits(json!({"hooks": [{"hookName": "poststop", "path": "x"}]})),
                "hook path \"x\" is not",
            ),
            (
                edits(json!({"hooks": [{"hookName": "poststop", "path": "/x", "timeout": 0}]})),
                "timeout must be above 0",
            ),
            (
                edits(json!({"mounts": [{"hostPath": "x", "containerPath": "/x"}]})),
                "mount hostPath \"x\"",
            ),
            (
                edits(json!({"mounts": [{"hostPath": "/x"}]})),
                "mount containerPath \"\"",
            ),
            (
                edits(json!({"intelRdt": {"closID": "a/b"}})),
                "closID \"a/b\" is no name",
            ),
            (
                edits(json!({"intelRdt": {"closID": "a", "l3CacheSchema": "x"}})),
                "only closID is served",
            ),
        ];
        for (document, expected) in cases {
            let problem = Spec::read(document).expect_err(expected);
            assert!(
                problem.contains(expected),
                "{problem}\nexpected: {expected}"
            );
        }
        let mut twice = base();
        let device = twice["devices"][0].clone();
        twice["devices"].as_array_mut().unwrap().push(device);
        assert_eq!(
            Spec::read(twice),
            Err("device \"0\" is there twice".to_owned())
        );
    }

    #[test]
    fn an_old_version_may_use_what_it_had() {
        let mut document = base();
        document["devices"][0]["name"] = json!("gpu0");
        for version in VERSIONS {
            document["cdiVersion"] = json!(version);
            Spec::read(document.clone()).unwrap_or_else(|problem| panic!("{version}: {problem}"));
        }
    }
}
