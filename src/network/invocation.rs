//! What a plugin is given: environment and configuration. Pure.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use super::{
    conflist::{ConfList, PluginConf},
    error::NetworkError,
};

/// An operation of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Give the pod its interface.
    Add,
    /// Take it back.
    Del,
    /// Look whether it is still as it should be.
    Check,
    /// Remove what belongs to no attachment.
    Gc,
    /// Say whether ADD would work.
    Status,
    /// Say which versions are spoken.
    Version,
}

impl Verb {
    /// The value of `CNI_COMMAND`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

/// What identifies an attachment towards plugins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The sandbox id.
    pub container_id: String,
    /// Path of the namespace; empty on DEL when it is gone.
    pub netns: PathBuf,
    /// Name of the interface in the pod.
    pub ifname: String,
    /// The value of `CNI_ARGS`, from [`arguments`].
    pub args: String,
}

/// The value of `CNI_ARGS`: key and value pairs. `IgnoreUnknown` lets plugins pass over the
/// Kubernetes ones.
///
/// # Errors
/// If a value contains a separator: it could make up other arguments.
pub fn arguments(pairs: &[(&'static str, &str)]) -> Result<String, NetworkError> {
    let mut text = String::from("IgnoreUnknown=1");
    for (key, value) in pairs {
        if value
            .chars()
            .any(|c| matches!(c, ';' | '=') || c.is_control() || c.is_whitespace())
        {
            return Err(NetworkError::Request {
                field: key,
                problem: format!(
                    "{:?} has a character that separates plugin arguments",
                    value.chars().take(80).collect::<String>()
                ),
            });
        }
        text.push(';');
        text.push_str(key);
        text.push('=');
        text.push_str(value);
    }
    Ok(text)
}

/// The CNI variables of one run. They come on top of the daemon's own environment, of which the
/// keys in [`WITHHELD`] are removed.
#[must_use]
pub fn environment(
    verb: Verb,
    target: Option<&Target>,
    plugin_dirs: &[PathBuf],
) -> Vec<(&'static str, OsString)> {
    let mut variables = vec![
        ("CNI_COMMAND", OsString::from(verb.as_str())),
        ("CNI_PATH", join(plugin_dirs)),
        ("PATH", search_path(std::env::var_os("PATH").as_deref())),
    ];
    if let Some(target) = target {
        variables.push(("CNI_CONTAINERID", OsString::from(&target.container_id)));
        variables.push(("CNI_NETNS", target.netns.clone().into_os_string()));
        variables.push(("CNI_IFNAME", OsString::from(&target.ifname)));
        variables.push(("CNI_ARGS", OsString::from(&target.args)));
    } else if verb == Verb::Version {
        // Plugins built on old libraries insist on these even for VERSION.
        variables.push(("CNI_CONTAINERID", OsString::from("version")));
        variables.push(("CNI_NETNS", OsString::from("version")));
        variables.push(("CNI_IFNAME", OsString::from("version")));
    }
    variables
}

/// Variables of the daemon that a plugin must not inherit: its own CNI ones and those by which a
/// child could speak to the service manager in its name.
pub const WITHHELD: [&str; 9] = [
    "CNI_CONTAINERID",
    "CNI_NETNS",
    "CNI_IFNAME",
    "CNI_ARGS",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
];

fn join(dirs: &[PathBuf]) -> OsString {
    let mut text = OsString::new();
    for (index, dir) in dirs.iter().enumerate() {
        if index > 0 {
            text.push(":");
        }
        text.push(dir);
    }
    text
}

/// Plugins execute iptables and the like; a daemon started with a bare PATH must not break them.
fn search_path(own: Option<&OsStr>) -> OsString {
    let mut path = own.unwrap_or_default().to_owned();
    for dir in ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"] {
        if !std::env::split_paths(&path).any(|known| known == Path::new(dir)) {
            if !path.is_empty() {
                path.push(":");
            }
            path.push(dir);
        }
    }
    path
}

/// The dynamic values a pod has for plugins that advertise capabilities, by capability name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CapabilityArgs(pub Map<String, Value>);

impl CapabilityArgs {
    /// Adds a value; nothing is added for `None`.
    pub fn set(&mut self, capability: &str, value: Option<Value>) {
        if let Some(value) = value {
            self.0.insert(capability.to_owned(), value);
        }
    }
}

/// The configuration that a plugin reads from its input: its object of the list, with name and
/// version of the list, the capability values it advertised, and the previous result.
#[must_use]
pub fn plugin_input(
    list: &ConfList,
    plugin: &PluginConf,
    capabilities: &CapabilityArgs,
    prev_result: Option<&Value>,
) -> Vec<u8> {
    let mut object = base(list, plugin);
    let runtime: Map<String, Value> = capabilities
        .0
        .iter()
        .filter(|(capability, _)| plugin.advertises(capability))
        .map(|(capability, value)| (capability.clone(), value.clone()))
        .collect();
    if !runtime.is_empty() {
        object.insert("runtimeConfig".into(), Value::Object(runtime));
    }
    if let Some(result) = prev_result {
        object.insert("prevResult".into(), result.clone());
    }
    to_bytes(object)
}

/// The configuration for GC: all attachments that are to stay.
#[must_use]
pub fn gc_input(list: &ConfList, plugin: &PluginConf, valid: &[(String, String)]) -> Vec<u8> {
    let mut object = base(list, plugin);
    let valid = valid
        .iter()
        .map(|(container, ifname)| json!({ "containerID": container, "ifname": ifname }))
        .collect();
    object.insert("cni.dev/valid-attachments".into(), Value::Array(valid));
    to_bytes(object)
}

/// The configuration for STATUS.
#[must_use]
pub fn status_input(list: &ConfList, plugin: &PluginConf) -> Vec<u8> {
    to_bytes(base(list, plugin))
}

/// The plugin's object as written, but for what the runtime alone may set: a configuration file
/// cannot bring results or runtime values of its own.
fn base(list: &ConfList, plugin: &PluginConf) -> Map<String, Value> {
    let mut object = plugin.raw.clone();
    for reserved in [
        "runtimeConfig",
        "prevResult",
        "cni.dev/valid-attachments",
        "cniVersions",
    ] {
        object.remove(reserved);
    }
    object.insert("name".into(), Value::String(list.name.clone()));
    object.insert(
        "cniVersion".into(),
        Value::String(list.version.as_str().into()),
    );
    object
}

fn to_bytes(object: Map<String, Value>) -> Vec<u8> {
    Value::Object(object).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::conflist::parse;

    fn list() -> ConfList {
        let text = br#"{"cniVersion":"1.1.0","name":"pods","cniVersions":["1.1.0"],"plugins":[
            {"type":"a","name":"other","cniVersion":"0.1.0","own":{"kept":[1]},
             "runtimeConfig":{"forged":1},"prevResult":{"forged":1},
             "capabilities":{"portMappings":true,"bandwidth":false}}]}"#;
        parse(text, Path::new("x")).unwrap()
    }

    fn read(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn a_plugin_gets_its_object_with_name_version_and_what_it_advertised() {
        let list = list();
        let mut args = CapabilityArgs::default();
        args.set("portMappings", Some(json!([1])));
        args.set("bandwidth", Some(json!({})));
        args.set("dns", None);
        let input = read(&plugin_input(&list, &list.plugins[0], &args, None));
        assert_eq!(
            (&input["name"], &input["cniVersion"]),
            (&json!("pods"), &json!("1.1.0"))
        );
        assert_eq!(input["runtimeConfig"], json!({ "portMappings": [1] }));
        assert_eq!(input["own"], json!({ "kept": [1] }));
        assert_eq!(input.get("prevResult"), None);
        let result = json!({ "cniVersion": "1.1.0" });
        let none = CapabilityArgs::default();
        let input = read(&plugin_input(&list, &list.plugins[0], &none, Some(&result)));
        assert_eq!(
            (&input["prevResult"], input.get("runtimeConfig")),
            (&result, None)
        );
    }

    #[test]
    fn gc_names_the_attachments_and_status_nothing() {
        let list = list();
        let valid = [("c1".to_owned(), "eth0".to_owned())];
        let input = read(&gc_input(&list, &list.plugins[0], &valid));
        let expected = json!([{ "containerID": "c1", "ifname": "eth0" }]);
        assert_eq!(input["cni.dev/valid-attachments"], expected);
        let input = read(&status_input(&list, &list.plugins[0]));
        assert_eq!(input.get("cni.dev/valid-attachments"), None);
    }

    #[test]
    fn arguments_cannot_be_made_up() {
        let built = arguments(&[("K8S_POD_NAME", "web-0"), ("K8S_POD_UID", "u")]).unwrap();
        assert_eq!(built, "IgnoreUnknown=1;K8S_POD_NAME=web-0;K8S_POD_UID=u");
        for bad in ["a;IP=10.0.0.1", "a=b", "a\nb", "a b", "a\0"] {
            assert!(arguments(&[("K8S_POD_NAME", bad)]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_environment_is_that_of_the_specification() {
        let target = Target {
            container_id: "c1".into(),
            netns: "/run/netns/x".into(),
            ifname: "eth0".into(),
            args: "A=1".into(),
        };
        let dirs = [PathBuf::from("/a"), PathBuf::from("/b")];
        let variables = environment(Verb::Add, Some(&target), &dirs);
        let value = |name: &str| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.to_str().unwrap())
        };
        assert_eq!(value("CNI_COMMAND"), Some("ADD"));
        assert_eq!(value("CNI_CONTAINERID"), Some("c1"));
        assert_eq!(value("CNI_NETNS"), Some("/run/netns/x"));
        assert_eq!(value("CNI_IFNAME"), Some("eth0"));
        assert_eq!(value("CNI_ARGS"), Some("A=1"));
        assert_eq!(value("CNI_PATH"), Some("/a:/b"));
        assert!(
            !environment(Verb::Status, None, &dirs)
                .iter()
                .any(|(key, _)| *key == "CNI_NETNS")
        );
        assert_eq!(
            search_path(None),
            "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
        );
        let whole = OsStr::new("/x:/sbin:/usr/sbin:/bin:/usr/bin:/usr/local/sbin");
        assert_eq!(search_path(Some(whole)), whole);
    }
}
