//! Results of plugins: parsed from bytes a foreign program printed, validated, converted between
//! versions. Pure.

use std::net::IpAddr;

use serde_json::{Map, Value};

use super::conflist::CniVersion;

/// The most interfaces in a result.
pub const MAX_INTERFACES: usize = 128;
/// The most addresses in a result. A pod has two; a node with many networks some more.
pub const MAX_IPS: usize = 64;
/// The most routes in a result.
pub const MAX_ROUTES: usize = 1024;
/// The kernel's limit on an interface name, without its NUL.
const IFNAME_MAX: usize = 15;

/// Why a result cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResultError {
    /// Nothing was printed.
    #[error("printed nothing")]
    Empty,
    /// Not a JSON object.
    #[error("printed no JSON object: {0}")]
    NotJson(String),
    /// A version this daemon does not speak, or none.
    #[error("is of version {0:?}, not 0.3.0 to 1.1.0")]
    Version(String),
    /// A value that cannot be.
    #[error("{key}: {problem}")]
    Key {
        /// Path of the key, as `ips[0].address`.
        key: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

fn key(key: impl Into<String>, problem: &'static str) -> ResultError {
    ResultError::Key {
        key: key.into(),
        problem,
    }
}

/// An interface that a plugin made or moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name, valid for the kernel.
    pub name: String,
    /// Whether it is in the pod (its `sandbox` is set) or on the host.
    pub in_sandbox: bool,
}

/// An address given to the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// Prefix length, at most 32 or 128.
    pub prefix: u8,
    /// Index into the interfaces, if it was told.
    pub interface: Option<usize>,
}

/// A validated result.
#[derive(Debug, Clone, PartialEq)]
pub struct CniResult {
    /// The object, its version made the asked one: what later plugins get as `prevResult`.
    pub raw: Value,
    /// Interfaces in the order given.
    pub interfaces: Vec<Interface>,
    /// Addresses in the order given.
    pub addresses: Vec<Address>,
}

impl CniResult {
    /// The addresses on the pod's interface of this name, in order, without repetition. An address
    /// whose interface was not told counts.
    #[must_use]
    pub fn pod_ips(&self, ifname: &str) -> Vec<IpAddr> {
        let mut ips = Vec::new();
        for address in &self.addresses {
            let ours = address.interface.is_none_or(|index| {
                self.interfaces
                    .get(index)
                    .is_some_and(|interface| interface.in_sandbox && interface.name == ifname)
            });
            if ours && !ips.contains(&address.ip) {
                ips.push(address.ip);
            }
        }
        ips
    }
}

/// Parses what a plugin printed on ADD. The result may be of any known version; it is converted to
/// `wanted`, the version of the list, because that is what the next plugin is spoken to in.
///
/// # Errors
/// Names what is wrong.
pub fn parse(stdout: &[u8], wanted: CniVersion) -> Result<CniResult, ResultError> {
    if stdout.iter().all(u8::is_ascii_whitespace) {
        return Err(ResultError::Empty);
    }
    let value: Value =
        serde_json::from_slice(stdout).map_err(|error| ResultError::NotJson(error.to_string()))?;
    parse_value(value, wanted)
}

/// As [`parse`], from a JSON value: what the cache holds.
///
/// # Errors
/// Names what is wrong.
pub fn parse_value(value: Value, wanted: CniVersion) -> Result<CniResult, ResultError> {
    let Value::Object(mut object) = value else {
        return Err(ResultError::NotJson(
            "the top level is something else".into(),
        ));
    };
    let written = object
        .get("cniVersion")
        .and_then(Value::as_str)
        .unwrap_or("");
    if CniVersion::parse(written).is_none() {
        return Err(ResultError::Version(written.chars().take(32).collect()));
    }
    let interfaces = entries(&object, "interfaces", MAX_INTERFACES)?
        .iter()
        .enumerate()
        .map(|(index, entry)| interface(entry, index))
        .collect::<Result<Vec<_>, _>>()?;
    let addresses = entries(&object, "ips", MAX_IPS)?
        .iter()
        .enumerate()
        .map(|(index, entry)| address(entry, index, interfaces.len()))
        .collect::<Result<Vec<_>, _>>()?;
    for (index, route) in entries(&object, "routes", MAX_ROUTES)?.iter().enumerate() {
        check_route(route, index)?;
    }
    if object
        .get("dns")
        .is_some_and(|dns| !dns.is_object() && !dns.is_null())
    {
        return Err(key("dns", "is not an object"));
    }
    convert(&mut object, &addresses, wanted);
    Ok(CniResult {
        raw: Value::Object(object),
        interfaces,
        addresses,
    })
}

/// Before 1.0.0 each address says its IP version; later the key is gone. The rest of the object is
/// the same in all versions, with optional keys added.
fn convert(object: &mut Map<String, Value>, addresses: &[Address], wanted: CniVersion) {
    object.insert("cniVersion".into(), Value::String(wanted.as_str().into()));
    let Some(Value::Array(ips)) = object.get_mut("ips") else {
        return;
    };
    for (ip, address) in ips.iter_mut().zip(addresses) {
        let Value::Object(ip) = ip else { continue };
        if wanted >= CniVersion::V1_0_0 {
            ip.remove("version");
        } else {
            let version = if address.ip.is_ipv4() { "4" } else { "6" };
            ip.insert("version".into(), Value::String(version.into()));
        }
    }
}

fn entries<'a>(
    object: &'a Map<String, Value>,
    name: &'static str,
    limit: usize,
) -> Result<&'a [Value], ResultError> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(all)) if all.len() > limit => Err(key(name, "has too many entries")),
        Some(Value::Array(all)) => Ok(all),
        Some(_) => Err(key(name, "is not an array")),
    }
}

/// Whether the kernel would take this as the name of an interface.
#[must_use]
pub fn is_interface_name(name: &str) -> bool {
    (1..=IFNAME_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && !name
            .chars()
            .any(|c| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control())
}

fn interface(entry: &Value, index: usize) -> Result<Interface, ResultError> {
    let at = |field: &str| format!("interfaces[{index}].{field}");
    let name = entry
        .get("name")
        .and_then(Value::as_str)
        .ok_or_else(|| key(at("name"), "is missing or no string"))?;
    if !is_interface_name(name) {
        return Err(key(at("name"), "is no legal interface name"));
    }
    let sandbox = match entry.get("sandbox") {
        None | Some(Value::Null) => "",
        Some(Value::String(sandbox)) if sandbox.len() <= 4096 => sandbox,
        Some(_) => return Err(key(at("sandbox"), "is no string of sane length")),
    };
    if let Some(mac) = entry.get("mac")
        && !mac.as_str().is_some_and(is_hardware_address)
    {
        return Err(key(at("mac"), "is no hardware address"));
    }
    Ok(Interface {
        name: name.to_owned(),
        in_sandbox: !sandbox.is_empty(),
    })
}

/// Empty, or pairs of hexadecimal digits with colons (6 bytes, or 20 for InfiniBand).
fn is_hardware_address(mac: &str) -> bool {
    let pair = |pair: &str| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit());
    mac.is_empty() || (mac.len() <= 60 && mac.split([':', '-']).all(pair))
}

fn address(entry: &Value, index: usize, interfaces: usize) -> Result<Address, ResultError> {
    let at = |field: &str| format!("ips[{index}].{field}");
    let written = entry
        .get("address")
        .and_then(Value::as_str)
        .ok_or_else(|| key(at("address"), "is missing or no string"))?;
    let (ip, prefix) = parse_cidr(written)
        .ok_or_else(|| key(at("address"), "is no address with a prefix length"))?;
    if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
        return Err(key(at("address"), "is no address a pod can have"));
    }
    if let Some(gateway) = entry.get("gateway").filter(|gateway| !gateway.is_null())
        && !gateway
            .as_str()
            .is_some_and(|text| text.is_empty() || text.parse::<IpAddr>().is_ok())
    {
        return Err(key(at("gateway"), "is no address"));
    }
    let interface = match entry.get("interface") {
        None | Some(Value::Null) => None,
        Some(number) => Some(
            number
                .as_u64()
                .and_then(|number| usize::try_from(number).ok())
                .filter(|number| *number < interfaces)
                .ok_or_else(|| key(at("interface"), "is no index into interfaces"))?,
        ),
    };
    Ok(Address {
        ip,
        prefix,
        interface,
    })
}

/// `address/prefix`.
#[must_use]
pub fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, prefix) = text.split_once('/')?;
    let ip: IpAddr = ip.parse().ok()?;
    if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let prefix: u8 = prefix.parse().ok()?;
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    (prefix <= longest).then_some((ip, prefix))
}

fn check_route(route: &Value, index: usize) -> Result<(), ResultError> {
    let destination = route
        .get("dst")
        .and_then(Value::as_str)
        .and_then(parse_cidr);
    if destination.is_none() {
        return Err(key(format!("routes[{index}].dst"), "is no network"));
    }
    match route.get("gw") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(gw)) if gw.is_empty() || gw.parse::<IpAddr>().is_ok() => Ok(()),
        Some(_) => Err(key(format!("routes[{index}].gw"), "is no address")),
    }
}

/// The error object of the specification, if the bytes are one: code, and message with details,
/// cleaned with [`clean`].
#[must_use]
pub fn parse_error(stdout: &[u8]) -> Option<(u64, String)> {
    let Ok(Value::Object(object)) = serde_json::from_slice::<Value>(stdout) else {
        return None;
    };
    // Some plugins print the code as a string.
    let code = match object.get("code")? {
        Value::Number(number) => number.as_u64()?,
        Value::String(text) => text.parse().ok()?,
        _ => return None,
    };
    let part = |name: &str| {
        object
            .get(name)
            .and_then(Value::as_str)
            .map(clean)
            .unwrap_or_default()
    };
    let message = match (part("msg"), part("details")) {
        (msg, details) if msg.is_empty() && details.is_empty() => "no message".to_owned(),
        (msg, details) if details.is_empty() => msg,
        (msg, details) if msg.is_empty() => details,
        (msg, details) => format!("{msg}; {details}"),
    };
    Some((code, message))
}

/// Versions a plugin says it speaks, from what it printed on VERSION.
#[must_use]
pub fn parse_versions(stdout: &[u8]) -> Option<Vec<String>> {
    let value: Value = serde_json::from_slice(stdout).ok()?;
    let all = value.get("supportedVersions")?.as_array()?;
    Some(
        all.iter()
            .take(64)
            .filter_map(Value::as_str)
            .map(clean)
            .collect(),
    )
}

/// Text of a foreign program made fit for a log line, a terminal and a gRPC message: control
/// characters (escapes, newlines) become spaces, runs of them one, and it ends after 1024 bytes.
#[must_use]
pub fn clean(text: &str) -> String {
    const LIMIT: usize = 1024;
    let mut out = String::new();
    // A terminal escape is dropped as a whole, so that `ESC[31m` leaves no `[31m` behind.
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if out.len() >= LIMIT {
            out.push_str("...");
            break;
        }
        if c == '\u{1b}' && chars.peek() == Some(&'[') {
            chars.next();
            while chars
                .next_if(|c| !('\u{40}'..='\u{7e}').contains(c))
                .is_some()
            {}
            chars.next();
        } else if c.is_control() || c.is_whitespace() || is_direction_mark(c) {
            if !out.is_empty() && !out.ends_with(' ') {
                out.push(' ');
            }
        } else {
            out.push(c);
        }
    }
    out.truncate(out.trim_end().len());
    out
}

/// Characters that reorder what a terminal shows.
fn is_direction_mark(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parsed(value: &Value) -> Result<CniResult, ResultError> {
        parse(value.to_string().as_bytes(), CniVersion::V1_0_0)
    }

    fn sample() -> Value {
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                { "name": "br0", "mac": "00:11:22:33:44:55" },
                { "name": "veth1" },
                { "name": "eth0", "sandbox": "/run/netns/x" },
            ],
            "ips": [
                { "address": "10.0.0.5/24", "gateway": "10.0.0.1", "interface": 2 },
                { "address": "fd00::5/64", "interface": 2 },
                { "address": "10.9.0.1/24", "interface": 0 },
                { "address": "10.0.0.5/24", "interface": 2 },
            ],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "10.0.0.1" }, { "dst": "::/0" }],
            "dns": { "nameservers": ["10.0.0.1"] },
            "vendor": { "kept": true },
        })
    }

    #[test]
    fn the_pods_addresses_come_in_order_once_and_without_the_hosts() {
        let result = parsed(&sample()).unwrap();
        let ips: Vec<String> = result
            .pod_ips("eth0")
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(ips, ["10.0.0.5", "fd00::5"]);
        assert!(result.pod_ips("eth1").is_empty());
        assert_eq!(result.raw["vendor"]["kept"], true);
    }

    #[test]
    fn results_are_converted_to_the_lists_version() {
        let old = parse(sample().to_string().as_bytes(), CniVersion::V0_4_0)
            .unwrap()
            .raw;
        assert_eq!(old["cniVersion"], "0.4.0");
        assert_eq!(
            (&old["ips"][0]["version"], &old["ips"][1]["version"]),
            (&json!("4"), &json!("6"))
        );
        let new = parse_value(old, CniVersion::V1_1_0).unwrap().raw;
        assert_eq!(new["cniVersion"], "1.1.0");
        assert!(new["ips"][0].get("version").is_none());
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let with = |pointer: &str, value: Value| {
            let mut result = sample();
            *result.pointer_mut(pointer).unwrap() = value;
            match parsed(&result) {
                Err(ResultError::Key { key, .. }) => key,
                other => panic!("{pointer}: {other:?}"),
            }
        };
        for name in [
            "../../x",
            "sixteen-chars-xx",
            "",
            ".",
            "a b",
            "a:b",
            "a\nb",
            "\u{1b}[0m",
        ] {
            assert_eq!(
                with("/interfaces/1/name", json!(name)),
                "interfaces[1].name",
                "{name:?}"
            );
        }
        for address in [
            "10.0.0.5",
            "10.0.0.5/33",
            "fd00::1/129",
            "10.0.0/24",
            "x/8",
            "10.0.0.5/+8",
            "0.0.0.0/0",
            "127.0.0.1/8",
            "224.0.0.1/4",
            "10.0.0.5/24; rm",
            "::/0",
        ] {
            assert_eq!(
                with("/ips/0/address", json!(address)),
                "ips[0].address",
                "{address}"
            );
        }
        assert_eq!(with("/ips/1/interface", json!(3)), "ips[1].interface");
        assert_eq!(with("/ips/1/interface", json!(-1)), "ips[1].interface");
        assert_eq!(with("/ips/0/gateway", json!("x")), "ips[0].gateway");
        assert_eq!(
            with("/interfaces/0/mac", json!("00:zz")),
            "interfaces[0].mac"
        );
        assert_eq!(
            with("/interfaces/2/sandbox", json!(7)),
            "interfaces[2].sandbox"
        );
        assert_eq!(with("/routes/0/dst", json!("all")), "routes[0].dst");
        assert_eq!(with("/dns", json!("x")), "dns");
        assert_eq!(
            with("/ips", json!(vec![sample()["ips"][0].clone(); MAX_IPS + 1])),
            "ips"
        );
        assert_eq!(with("/interfaces", json!({})), "interfaces");
        assert_eq!(
            with("/routes", json!(vec![json!({}); MAX_ROUTES + 1])),
            "routes"
        );
    }

    #[test]
    fn other_versions_and_other_things_are_refused() {
        let version = |version: Value| parsed(&json!({ "cniVersion": version }));
        for unknown in [json!("0.2.0"), json!("2.0.0"), json!(1), Value::Null] {
            assert!(matches!(version(unknown), Err(ResultError::Version(_))));
        }
        assert_eq!(parse(b" \n", CniVersion::V1_0_0), Err(ResultError::Empty));
        for text in ["hello", "[]", "\"x\"", "{\"cniVersion\":\"1.0.0\""] {
            let result = parse(text.as_bytes(), CniVersion::V1_0_0);
            assert!(matches!(result, Err(ResultError::NotJson(_))), "{text}");
        }
        let deep = "[".repeat(1_000_000);
        assert!(matches!(
            parse(deep.as_bytes(), CniVersion::V1_0_0),
            Err(ResultError::NotJson(_))
        ));
    }

    #[test]
    fn error_objects_are_understood_and_cleaned() {
        let parse = |value: Value| parse_error(value.to_string().as_bytes());
        let full = json!({ "cniVersion": "1.0.0", "code": 11, "msg": "try", "details": "later" });
        assert_eq!(parse(full), Some((11, "try; later".to_owned())));
        assert_eq!(
            parse(json!({ "code": "100", "msg": "x" })),
            Some((100, "x".to_owned()))
        );
        assert_eq!(
            parse(json!({ "code": 7 })),
            Some((7, "no message".to_owned()))
        );
        let nasty = json!({ "code": 1, "msg": "\u{1b}[31mred\u{1b}[0m\r\nnext\u{202e}line\u{0}" });
        assert_eq!(parse(nasty), Some((1, "red next line".to_owned())));
        for none in [
            json!({ "msg": "x" }),
            json!({ "code": -1 }),
            json!([]),
            json!({ "code": {} }),
        ] {
            assert_eq!(parse(none), None);
        }
        assert!(clean(&"x".repeat(1 << 20)).len() < 1100);
    }

    proptest! {
        #[test]
        fn cleaned_text_has_no_control_character(text in ".{0,200}", raw in any::<Vec<u8>>()) {
            for text in [text, String::from_utf8_lossy(&raw).into_owned()] {
                prop_assert!(!clean(&text).chars().any(char::is_control));
            }
        }

        #[test]
        fn no_output_panics(bytes in any::<Vec<u8>>()) {
            let _ = parse(&bytes, CniVersion::V0_4_0);
            let _ = parse_error(&bytes);
            let _ = parse_versions(&bytes);
        }
    }
}
