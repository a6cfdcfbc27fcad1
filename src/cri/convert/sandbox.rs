//! `RunPodSandboxRequest` to [`SandboxSpec`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::PathBuf,
};

use super::{
    HostSupport,
    field::{Field, Result, annotations, labels, quoted},
    resources::resources,
    security::sandbox_security,
};
use crate::{
    cri::proto,
    sandbox::spec::{
        DnsConfig, IpcMode, NamespaceOptions, NetworkMode, PortMapping, Protocol, SandboxMetadata,
        SandboxSpec,
    },
};

/// Longest host name the kernel takes (`__NEW_UTS_LEN`).
const MAX_HOSTNAME: usize = 64;
/// Most entries in each list of a DNS config. kubelet's own limits are 3, 32 and a handful.
const MAX_DNS_ENTRIES: usize = 64;
/// Longest DNS entry.
const MAX_DNS_ENTRY: usize = 1024;
/// Most port mappings of a pod.
const MAX_PORTS: usize = 4096;
/// Most sysctls of a pod.
const MAX_SYSCTLS: usize = 1024;
/// Longest sysctl value.
const MAX_SYSCTL_VALUE: usize = 1024;

/// Validates a request to run a sandbox.
///
/// # Errors
/// Names the first field that cannot be served.
pub fn sandbox(request: &proto::RunPodSandboxRequest, host: HostSupport) -> Result<SandboxSpec> {
    let field = Field::root("config");
    let config = field.required(request.config.as_ref())?;
    if config.windows.is_some() {
        return Err(field
            .child("windows")
            .unsupported("this is a Linux runtime"));
    }
    let empty = proto::LinuxPodSandboxConfig::default();
    let linux = config.linux.as_ref().unwrap_or(&empty);
    let linux_field = field.child("linux");
    let security = sandbox_security(
        &linux_field.child("security_context"),
        linux.security_context.as_ref(),
        host,
    )?;
    let sysctls = sysctls(
        &linux_field.child("sysctls"),
        &linux.sysctls,
        &security.namespaces,
    )?;
    let optional_resources = |name, value: Option<&proto::LinuxContainerResources>| {
        value
            .map(|value| resources(&linux_field.child(name), value))
            .transpose()
    };
    Ok(SandboxSpec {
        metadata: metadata(&field.child("metadata"), config.metadata.as_ref())?,
        hostname: hostname(&field.child("hostname"), &config.hostname)?,
        log_directory: log_directory(&field.child("log_directory"), &config.log_directory)?,
        dns: dns(&field.child("dns_config"), config.dns_config.as_ref())?,
        port_mappings: ports(&field.child("port_mappings"), &config.port_mappings)?,
        labels: labels(&field.child("labels"), &config.labels)?,
        annotations: annotations(&field.child("annotations"), &config.annotations)?,
        cgroup_parent: cgroup_parent(&linux_field.child("cgroup_parent"), &linux.cgroup_parent)?,
        security,
        sysctls,
        overhead: optional_resources("overhead", linux.overhead.as_ref())?,
        resources: optional_resources("resources", linux.resources.as_ref())?,
        runtime_handler: runtime_handler(&request.runtime_handler)?,
    })
}

fn metadata(
    field: &Field<'_>,
    metadata: Option<&proto::PodSandboxMetadata>,
) -> Result<SandboxMetadata> {
    let metadata = field.required(metadata)?;
    Ok(SandboxMetadata {
        name: field.child("name").name(&metadata.name)?,
        uid: field.child("uid").name(&metadata.uid)?,
        namespace: field.child("namespace").name(&metadata.namespace)?,
        attempt: metadata.attempt,
    })
}

fn runtime_handler(name: &str) -> Result<String> {
    if name.is_empty() {
        Ok(String::new())
    } else {
        Field::root("runtime_handler").name(name)
    }
}

fn hostname(field: &Field<'_>, name: &str) -> Result<Option<String>> {
    if name.is_empty() {
        return Ok(None);
    }
    field.at_most(name, MAX_HOSTNAME)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if !name.chars().all(allowed) || name.starts_with(['.', '-']) {
        let rule = "must be letters, digits, \"-\", \"_\" and \".\", and start with none of \"-.\"";
        return Err(field.invalid(format!("{rule}, is {}", quoted(name))));
    }
    Ok(Some(name.to_owned()))
}

fn log_directory(field: &Field<'_>, path: &str) -> Result<Option<PathBuf>> {
    if path.is_empty() {
        return Ok(None);
    }
    let path = field.absolute_path(path)?;
    if path == "/" {
        return Err(field.invalid("must not be the root directory"));
    }
    Ok(Some(path.into()))
}

fn dns(field: &Field<'_>, config: Option<&proto::DnsConfig>) -> Result<Option<DnsConfig>> {
    let Some(config) = config else {
        return Ok(None);
    };
    let servers = field.child("servers");
    let servers = words(&servers, &config.servers)?;
    for (index, server) in servers.iter().enumerate() {
        let (address, zone) = server.split_once('%').unwrap_or((server, "eth0"));
        let scoped = server.contains('%');
        let valid = match address.parse() {
            Ok(IpAddr::V4(_)) => !scoped,
            Ok(IpAddr::V6(_)) => !zone.is_empty() && zone.len() < 16,
            Err(_) => false,
        };
        if !valid {
            let problem = format!("must be an IP address, is {}", quoted(server));
            return Err(field.child("servers").index(index).invalid(problem));
        }
    }
    Ok(Some(DnsConfig {
        servers,
        searches: words(&field.child("searches"), &config.searches)?,
        options: words(&field.child("options"), &config.options)?,
    }))
}

/// Entries of resolv.conf: a white space or newline in one would smuggle in others.
fn words(field: &Field<'_>, list: &[String]) -> Result<Vec<String>> {
    field.count(list, MAX_DNS_ENTRIES)?;
    for (index, entry) in list.iter().enumerate() {
        let place = field.index(index);
        if entry.is_empty() {
            return Err(place.invalid("must not be empty"));
        }
        place.at_most(entry, MAX_DNS_ENTRY)?;
        place.one_word(entry)?;
    }
    Ok(list.to_vec())
}

fn ports(field: &Field<'_>, mappings: &[proto::PortMapping]) -> Result<Vec<PortMapping>> {
    field.count(mappings, MAX_PORTS)?;
    let mut published = BTreeSet::new();
    let mut out = Vec::with_capacity(mappings.len());
    for (index, mapping) in mappings.iter().enumerate() {
        let place = field.index(index);
        let mapping = port(&place, mapping)?;
        if let Some(port) = mapping.host_port
            && !published.insert((mapping.protocol, mapping.host_ip, port))
        {
            let protocol = mapping.protocol.as_str();
            let problem = format!("{protocol} port {port} of the host is published twice");
            return Err(place.child("host_port").invalid(problem));
        }
        out.push(mapping);
    }
    Ok(out)
}

fn port(field: &Field<'_>, mapping: &proto::PortMapping) -> Result<PortMapping> {
    let number = |name, value: i32, least: u16| match u16::try_from(value) {
        Ok(port) if port >= least => Ok(port),
        _ => {
            let problem = format!("must be {least} to 65535, is {value}");
            Err(field.child(name).invalid(problem))
        }
    };
    let host_port = number("host_port", mapping.host_port, 0)?;
    let host_ip = match mapping.host_ip.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            let problem = format!("must be an IP address, is {}", quoted(text));
            field.child("host_ip").invalid(problem)
        })?),
    };
    let protocol = field.child("protocol").enumerated(mapping.protocol)?;
    Ok(PortMapping {
        protocol: match protocol {
            proto::Protocol::Tcp => Protocol::Tcp,
            proto::Protocol::Udp => Protocol::Udp,
            proto::Protocol::Sctp => Protocol::Sctp,
        },
        container_port: number("container_port", mapping.container_port, 1)?,
        host_port: (host_port != 0).then_some(host_port),
        host_ip,
    })
}

/// A cgroup path or the name of a systemd slice. Which of them the driver takes is the driver's to
/// say; here only that it stays where it points.
fn cgroup_parent(field: &Field<'_>, parent: &str) -> Result<Option<String>> {
    if parent.is_empty() {
        return Ok(None);
    }
    if parent.starts_with('/') {
        let path = field.absolute_path(parent)?;
        return Ok(Some(path));
    }
    let slice = field.name(parent)?;
    if !slice.ends_with(".slice") {
        let rule = "must be an absolute cgroup path or the name of a systemd slice";
        return Err(field.invalid(format!("{rule}, is {}", quoted(parent))));
    }
    Ok(Some(slice))
}

/// Which namespace a sysctl belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SysctlNamespace {
    Ipc,
    Net,
}

/// Kernel parameters that a namespace keeps apart; every other one would change the host.
fn sysctl_namespace(key: &str) -> Option<SysctlNamespace> {
    const IPC_PREFIXES: [&str; 3] = ["fs.mqueue.", "kernel.shm", "kernel.msg"];
    if key == "kernel.sem" || IPC_PREFIXES.iter().any(|prefix| key.starts_with(prefix)) {
        Some(SysctlNamespace::Ipc)
    } else if key.starts_with("net.") {
        Some(SysctlNamespace::Net)
    } else {
        None
    }
}

fn sysctls(
    field: &Field<'_>,
    asked: &HashMap<String, String>,
    namespaces: &NamespaceOptions,
) -> Result<BTreeMap<String, String>> {
    if asked.len() > MAX_SYSCTLS {
        let problem = format!(
            "must have at most {MAX_SYSCTLS} entries, has {}",
            asked.len()
        );
        return Err(field.invalid(problem));
    }
    let mut out = BTreeMap::new();
    for (raw, value) in asked {
        let place = field.key(raw);
        let key = sysctl_key(&place, raw)?;
        place.at_most(value, MAX_SYSCTL_VALUE)?;
        // "+" and "=" once let a value carry a second sysctl into a helper's command line.
        if value.contains(['+', '=', '\n', '\r', '\0']) {
            let rule = "value must not contain \"+\", \"=\", newlines or NUL";
            return Err(place.invalid(format!("{rule}, is {}", quoted(value))));
        }
        let host = match sysctl_namespace(&key) {
            Some(SysctlNamespace::Ipc) if namespaces.ipc == IpcMode::Node => "IPC",
            Some(SysctlNamespace::Net) if namespaces.network == NetworkMode::Node => "network",
            Some(_) => "",
            None => {
                let rule = "is not namespaced and would change the host; a pod may set";
                let problem =
                    format!("{rule} net.*, fs.mqueue.*, kernel.shm*, kernel.msg*, kernel.sem");
                return Err(place.invalid(problem));
            }
        };
        if !host.is_empty() {
            let problem =
                format!("would change the host: the pod uses the host's {host} namespace");
            return Err(place.invalid(problem));
        }
        if out.insert(key.clone(), value.clone()).is_some() {
            return Err(place.invalid(format!("is given twice, as {key} in both notations")));
        }
    }
    Ok(out)
}

/// The key with dots as separators. With slashes as separators, dots are part of a name
/// (`net/ipv4/conf/eth0.1/forwarding`), and the two swap places, as sysctl(8) does it.
fn sysctl_key(field: &Field<'_>, raw: &str) -> Result<String> {
    let swap = raw
        .find(['.', '/'])
        .is_some_and(|first| raw.as_bytes()[first] == b'/');
    let key: String = raw
        .chars()
        .map(|c| match c {
            '/' if swap => '.',
            '.' if swap => '/',
            other => other,
        })
        .collect();
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '/' | '_' | '-' | ':');
    let parts_fine = key
        .split('.')
        .all(|part| !part.is_empty() && part != "/" && part != "//");
    if !key.contains('.') || !key.chars().all(allowed) || !parts_fine || key.len() > 253 {
        let rule = "must be a sysctl name such as net.ipv4.ip_forward";
        return Err(field.invalid(rule));
    }
    Ok(key)
}
