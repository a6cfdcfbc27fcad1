//! Configs of pods that are refused.

use crisp_harness::{
    cri::v1::{
        DnsConfig, IdMapping, Int64Value, LinuxContainerResources, LinuxSandboxSecurityContext,
        NamespaceMode, PodSandboxConfig, PodSandboxMetadata, PortMapping, SeLinuxOption,
        UserNamespace,
    },
    pods::namespaces,
};

use super::SandboxCase;

/// What other runtimes, init systems and plugins obey, and what we write ourselves.
pub const FOREIGN_ANNOTATIONS: &[(&str, &str)] = &[
    ("org.systemd.property.ExecStopPost", "'/bin/sh'"),
    ("run.oci.hooks.stdout", "/etc/passwd"),
    ("io.katacontainers.config.hypervisor.path", "/bin/sh"),
    ("org.criu.config", "/etc/passwd"),
    ("noderesource.dev/nri.io", "x"),
    ("io.kubernetes.cri.runtime-handler", "evil"),
];

fn metadata(config: &mut PodSandboxConfig) -> &mut PodSandboxMetadata {
    config.metadata.as_mut().unwrap()
}

fn security(config: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
    let linux = config.linux.as_mut().unwrap();
    linux.security_context.as_mut().unwrap()
}

fn sysctl(config: &mut PodSandboxConfig, key: &str, value: &str) {
    let linux = config.linux.as_mut().unwrap();
    linux.sysctls.insert(key.into(), value.into());
}

fn parent(config: &mut PodSandboxConfig, parent: &str) {
    config.linux.as_mut().unwrap().cgroup_parent = parent.into();
}

fn user(config: &mut PodSandboxConfig, value: i64) {
    security(config).run_as_user = Some(Int64Value { value });
}

fn users(config: &mut PodSandboxConfig, ranges: &[(u32, u32, u32)]) {
    let range = |&(host_id, container_id, length): &(u32, u32, u32)| IdMapping {
        host_id,
        container_id,
        length,
    };
    let ranges: Vec<_> = ranges.iter().map(range).collect();
    let options = security(config).namespace_options.as_mut().unwrap();
    options.userns_options = Some(UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids: ranges.clone(),
        gids: ranges,
    });
}

fn dns(config: &mut PodSandboxConfig, servers: &[&str], searches: &[&str], options: &[&str]) {
    let list = |words: &[&str]| words.iter().map(ToString::to_string).collect();
    config.dns_config = Some(DnsConfig {
        servers: list(servers),
        searches: list(searches),
        options: list(options),
    });
}

fn port(config: &mut PodSandboxConfig, container_port: i32, host_port: i32) {
    config.port_mappings.push(PortMapping {
        container_port,
        host_port,
        ..PortMapping::default()
    });
}

pub const CASES: &[SandboxCase] = &[
    ("G4 no metadata", |c| c.metadata = None, "metadata"),
    ("G5 no name", |c| metadata(c).name.clear(), "name"),
    ("G5 no uid", |c| metadata(c).uid.clear(), "uid"),
    (
        "G5 no namespace",
        |c| metadata(c).namespace.clear(),
        "namespace",
    ),
    (
        "G5 a name with a slash",
        |c| metadata(c).name = "a/../b".into(),
        "name",
    ),
    (
        "G5 a name of two dots",
        |c| metadata(c).name = "..".into(),
        "name",
    ),
    (
        "G5 a name with NUL",
        |c| metadata(c).name = "a\0b".into(),
        "name",
    ),
    (
        "G5 a name with a newline",
        |c| metadata(c).name = "a\nb".into(),
        "name",
    ),
    (
        "G5 a name of 10 KiB",
        |c| metadata(c).name = "n".repeat(10 << 10),
        "name",
    ),
    (
        "G5 a uid that is a path",
        |c| metadata(c).uid = "../../etc".into(),
        "uid",
    ),
    (
        "G6 a relative log directory",
        |c| c.log_directory = "logs".into(),
        "log_directory",
    ),
    (
        "G6 a log directory that escapes",
        |c| c.log_directory = "/var/log/../../etc".into(),
        "log_directory",
    ),
    (
        "G6 a log directory with NUL",
        |c| c.log_directory = "/tmp/a\0b".into(),
        "log_directory",
    ),
    (
        "G6 the root as log directory",
        |c| c.log_directory = "//.".into(),
        "log_directory",
    ),
    (
        "G12 a sysctl of the host",
        |c| sysctl(c, "kernel.core_pattern", "|/bin/sh"),
        "kernel.core_pattern",
    ),
    (
        "G12 the same with slashes",
        |c| sysctl(c, "kernel/core_pattern", "x"),
        "core_pattern",
    ),
    (
        "G12 a sysctl with NUL",
        |c| sysctl(c, "no/such\0thing", "1"),
        "sysctl",
    ),
    (
        "G12 a sysctl that leaves its tree",
        |c| sysctl(c, "net/../kernel/core_pattern", "x"),
        "sysctl",
    ),
    (
        "G12 a value with +",
        |c| sysctl(c, "kernel.shm_rmid_forced", "1+kernel.core_pattern=x"),
        "shm_rmid_forced",
    ),
    (
        "G12 a value with =",
        |c| sysctl(c, "net.ipv4.ip_forward", "1=2"),
        "ip_forward",
    ),
    (
        "G12 a value with a newline",
        |c| sysctl(c, "net.ipv4.ip_forward", "1\n0"),
        "ip_forward",
    ),
    (
        "G13 a network sysctl with the host's network",
        |c| {
            sysctl(c, "net.ipv4.ip_forward", "1");
            security(c).namespace_options.as_mut().unwrap().network = NamespaceMode::Node.into();
        },
        "network",
    ),
    (
        "G14 an annotation of 2 MiB",
        |c| drop(c.annotations.insert("k".into(), "v".repeat(2 << 20))),
        "annotations",
    ),
    (
        "G14 a label of 5 KiB",
        |c| drop(c.labels.insert("k".into(), "v".repeat(5 << 10))),
        "labels",
    ),
    (
        "G14 an annotation without a key",
        |c| drop(c.annotations.insert(String::new(), "v".into())),
        "annotations",
    ),
    ("G16 user -1", |c| user(c, -1), "run_as_user"),
    ("G16 user 2^31", |c| user(c, 1 << 31), "run_as_user"),
    ("G16 user 2^32", |c| user(c, 1 << 32), "run_as_user"),
    (
        "G16 a group without a user",
        |c| security(c).run_as_group = Some(Int64Value { value: 1000 }),
        "run_as_group",
    ),
    (
        "G19 a SELinux level with a space",
        |c| {
            security(c).selinux_options = Some(SeLinuxOption {
                level: "s0:c1 s0:c2".into(),
                ..SeLinuxOption::default()
            });
        },
        "selinux_options.level",
    ),
    (
        "G21 a negative overhead",
        |c| {
            c.linux.as_mut().unwrap().overhead = Some(LinuxContainerResources {
                cpu_shares: -1,
                ..LinuxContainerResources::default()
            });
        },
        "overhead.cpu_shares",
    ),
    (
        "G24 a cgroup parent that escapes",
        |c| parent(c, "/../../x"),
        "cgroup_parent",
    ),
    (
        "G24 a cgroup parent that is relative",
        |c| parent(c, "../.."),
        "cgroup_parent",
    ),
    (
        "G24 a cgroup parent with a newline",
        |c| parent(c, "/a\nb"),
        "cgroup_parent",
    ),
    (
        "G26 a host name of 300 bytes",
        |c| c.hostname = "h".repeat(300),
        "hostname",
    ),
    (
        "G26 a host name with a slash",
        |c| c.hostname = "a/b".into(),
        "hostname",
    ),
    (
        "G26 a host name with NUL",
        |c| c.hostname = "a\0b".into(),
        "hostname",
    ),
    (
        "G27 10000 DNS options",
        |c| dns(c, &[], &[], &["ndots:5"; 10_000]),
        "dns_config.options",
    ),
    (
        "G27 a server with a second line",
        |c| dns(c, &["1.1.1.1\nnameserver 6.6.6.6"], &[], &[]),
        "dns_config.servers[0]",
    ),
    (
        "G27 a search domain with a second line",
        |c| dns(c, &[], &["a\nnameserver 6.6.6.6"], &[]),
        "dns_config.searches[0]",
    ),
    (
        "G27 an option with a second line",
        |c| dns(c, &[], &[], &["a\nnameserver 6.6.6.6"]),
        "dns_config.options[0]",
    ),
    (
        "G28 ranges that overlap",
        |c| users(c, &[(200_000, 0, 1000), (200_500, 1000, 1000)]),
        "userns_options.uids",
    ),
    (
        "G28 a range of no length",
        |c| users(c, &[(200_000, 0, 0)]),
        "userns_options.uids[0].length",
    ),
    (
        "G28 root of the host",
        |c| users(c, &[(0, 0, 65_536)]),
        "userns_options.uids[0].host_id",
    ),
    (
        "G28 a range beyond 2^32",
        |c| users(c, &[(u32::MAX, 0, 2)]),
        "userns_options.uids[0].length",
    ),
    (
        "G29 port 0",
        |c| port(c, 0, 80),
        "port_mappings[0].container_port",
    ),
    (
        "G29 port 70000",
        |c| port(c, 70_000, 80),
        "port_mappings[0].container_port",
    ),
    (
        "G29 port -1 of the host",
        |c| port(c, 80, -1),
        "port_mappings[0].host_port",
    ),
    (
        "G29 a port of the host twice",
        |c| {
            port(c, 80, 8080);
            port(c, 81, 8080);
        },
        "port_mappings[1].host_port",
    ),
    (
        "G25 pid mode TARGET for a pod",
        |c| security(c).namespace_options = Some(namespaces(NamespaceMode::Target)),
        "pid",
    ),
];
