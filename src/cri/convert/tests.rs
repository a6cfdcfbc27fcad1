//! Every rule of the conversions: the error names the field, and what is right passes unchanged.

mod users;
mod volumes;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use proptest::prelude::*;
use prost::Message;

use super::{
    filter::{ContainerFilter, SandboxFilter},
    render::{ContainerPhase, ContainerView, SandboxView},
    *,
};
use crate::{
    bundle::ResolvedUser,
    container::spec::*,
    cri::proto,
    error::{Classify, ErrorKind},
    sandbox::spec::*,
};

const NO_APPARMOR: HostSupport = HostSupport { apparmor: false };

fn sandbox_request() -> proto::RunPodSandboxRequest {
    proto::RunPodSandboxRequest {
        config: Some(proto::PodSandboxConfig {
            metadata: Some(proto::PodSandboxMetadata {
                name: "web".into(),
                uid: "0b1c".into(),
                namespace: "default".into(),
                attempt: 2,
            }),
            hostname: "test-hostname".into(),
            log_directory: "/var/log/pods//x/".into(),
            linux: Some(proto::LinuxPodSandboxConfig {
                security_context: Some(proto::LinuxSandboxSecurityContext {
                    namespace_options: Some(proto::NamespaceOption::default()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        runtime_handler: String::new(),
    }
}

fn container_request() -> proto::CreateContainerRequest {
    proto::CreateContainerRequest {
        config: Some(proto::ContainerConfig {
            metadata: Some(proto::ContainerMetadata {
                name: "main".into(),
                attempt: 1,
            }),
            image: Some(proto::ImageSpec {
                image: "busybox:1".into(),
                ..Default::default()
            }),
            log_path: "main/0.log".into(),
            linux: Some(proto::LinuxContainerConfig {
                resources: Some(proto::LinuxContainerResources::default()),
                security_context: Some(proto::LinuxContainerSecurityContext::default()),
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

type SandboxChange = fn(&mut proto::PodSandboxConfig);
type ContainerChange = fn(&mut proto::ContainerConfig);

fn changed_sandbox(change: SandboxChange) -> Result<SandboxSpec, ConvertError> {
    let mut request = sandbox_request();
    change(request.config.as_mut().unwrap());
    sandbox(&request, NO_APPARMOR)
}

fn changed_container(change: ContainerChange) -> Result<ContainerSpec, ConvertError> {
    let mut request = container_request();
    change(request.config.as_mut().unwrap());
    container(&request, NO_APPARMOR)
}

fn sandbox_context(
    config: &mut proto::PodSandboxConfig,
) -> &mut proto::LinuxSandboxSecurityContext {
    config
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap()
}

fn sandbox_namespaces(config: &mut proto::PodSandboxConfig) -> &mut proto::NamespaceOption {
    sandbox_context(config).namespace_options.as_mut().unwrap()
}

fn context(config: &mut proto::ContainerConfig) -> &mut proto::LinuxContainerSecurityContext {
    config
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap()
}

fn limits(config: &mut proto::ContainerConfig) -> &mut proto::LinuxContainerResources {
    config.linux.as_mut().unwrap().resources.as_mut().unwrap()
}

fn int(value: i64) -> Option<proto::Int64Value> {
    Some(proto::Int64Value { value })
}

fn sysctl(config: &mut proto::PodSandboxConfig, key: &str, value: &str) {
    config
        .linux
        .as_mut()
        .unwrap()
        .sysctls
        .insert(key.into(), value.into());
}

fn add_mount(config: &mut proto::ContainerConfig, container: &str, host: &str) -> usize {
    config.mounts.push(proto::Mount {
        container_path: container.into(),
        host_path: host.into(),
        ..Default::default()
    });
    config.mounts.len() - 1
}

fn volume(config: &mut proto::ContainerConfig, container: &str, host: &str) {
    add_mount(config, container, host);
}

fn userns(config: &mut proto::PodSandboxConfig, mode: i32, ranges: &[(u32, u32, u32)]) {
    let ranges: Vec<_> = ranges
        .iter()
        .map(|&(host_id, container_id, length)| proto::IdMapping {
            host_id,
            container_id,
            length,
        })
        .collect();
    sandbox_namespaces(config).userns_options = Some(proto::UserNamespace {
        mode,
        uids: ranges.clone(),
        gids: ranges,
    });
}

#[test]
fn a_plain_sandbox_passes() {
    let spec = sandbox(&sandbox_request(), NO_APPARMOR).unwrap();
    assert_eq!(spec.metadata.attempt, 2);
    assert_eq!(
        spec.log_directory.as_deref(),
        Some(std::path::Path::new("/var/log/pods/x"))
    );
    assert_eq!(
        spec.log_file(Some("a/0.log")).unwrap().as_os_str(),
        "/var/log/pods/x/a/0.log"
    );
    assert!(!spec.host_network());
    let json = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<SandboxSpec>(&json).unwrap(), spec);
}

#[test]
fn requests_without_their_messages_name_the_missing_one() {
    let none = sandbox(&proto::RunPodSandboxRequest::default(), NO_APPARMOR).unwrap_err();
    assert_eq!(none.to_string(), "config: must be set");
    let none = container(&proto::CreateContainerRequest::default(), NO_APPARMOR).unwrap_err();
    assert_eq!(none.to_string(), "config: must be set");
    changed_sandbox(|c| c.linux = None).unwrap();
    changed_container(|c| c.linux = None).unwrap();
}

/// A change, the field it must name, and the kind of the error.
const SANDBOX_REFUSALS: &[(SandboxChange, &str)] = &[
    (|c| c.metadata = None, "config.metadata: must be set"),
    (
        |c| c.metadata.as_mut().unwrap().name.clear(),
        "config.metadata.name: must not be empty",
    ),
    (
        |c| c.metadata.as_mut().unwrap().uid.clear(),
        "config.metadata.uid: must not be empty",
    ),
    (
        |c| c.metadata.as_mut().unwrap().namespace = "a/b".into(),
        "config.metadata.namespace: ",
    ),
    (
        |c| c.metadata.as_mut().unwrap().name = "..".into(),
        "config.metadata.name: ",
    ),
    (
        |c| c.metadata.as_mut().unwrap().name = "a\0b".into(),
        "config.metadata.name: ",
    ),
    (
        |c| c.metadata.as_mut().unwrap().name = "a\nb".into(),
        "config.metadata.name: ",
    ),
    (
        |c| c.metadata.as_mut().unwrap().name = "a".repeat(254),
        "config.metadata.name: must be at",
    ),
    (
        |c| c.hostname = "a".repeat(65),
        "config.hostname: must be at most 64",
    ),
    (|c| c.hostname = "a/b".into(), "config.hostname: "),
    (|c| c.hostname = "a\nb".into(), "config.hostname: "),
    (
        |c| c.log_directory = "var/log".into(),
        "config.log_directory: must be an absolute path",
    ),
    (
        |c| c.log_directory = "/var/log/../../etc".into(),
        "config.log_directory: must not contain",
    ),
    (
        |c| c.log_directory = "/".into(),
        "config.log_directory: must not be the root",
    ),
    (
        |c| c.log_directory = "/a\0".into(),
        "config.log_directory: ",
    ),
    (
        |c| c.log_directory = format!("/{}", "a".repeat(256)),
        "config.log_directory: path comp",
    ),
    (
        |c| drop(c.labels.insert("k".into(), "v".repeat(4096))),
        "config.labels[\"k\"]: ",
    ),
    (
        |c| drop(c.labels.insert(String::new(), "v".into())),
        "config.labels[\"\"]: ",
    ),
    (
        |c| drop(c.annotations.insert("k".into(), "v".repeat(1 << 20))),
        "config.annotations[\"k\"]",
    ),
    (
        |c| drop(c.annotations.insert("k".into(), "\0".into())),
        "config.annotations[\"k\"]: ",
    ),
    (
        |c| {
            c.labels
                .extend((0..200).map(|i| (format!("k{i}"), "v".repeat(2000))))
        },
        "config.labels: all entries together",
    ),
    (
        |c| sysctl(c, "kernel.core_pattern", "|/x"),
        "config.linux.sysctls[\"kernel.core_pattern\"]: ",
    ),
    (
        |c| sysctl(c, "kernel.shm_rmid_forced", "1+x"),
        "config.linux.sysctls[\"kernel.shm_rm",
    ),
    (
        |c| sysctl(c, "net.ipv4.ip_forward", "1\n"),
        "config.linux.sysctls[\"net.ipv4.ip_forward\"]",
    ),
    (
        |c| sysctl(c, "net.ipv4.x", "a=b"),
        "config.linux.sysctls[\"net.ipv4.x\"]: value must not",
    ),
    (
        |c| sysctl(c, "net.ipv4..x", "1"),
        "config.linux.sysctls[\"net.ipv4..x\"]: must be a sysctl",
    ),
    (
        |c| sysctl(c, "net/../kernel/x", "1"),
        "config.linux.sysctls[\"net/../kernel/x\"]: ",
    ),
    (
        |c| sysctl(c, "net", "1"),
        "config.linux.sysctls[\"net\"]: must be a sysctl",
    ),
    (
        |c| sysctl(c, "", "1"),
        "config.linux.sysctls[\"\"]: must be a sysctl",
    ),
    (
        |c| {
            sysctl(c, "net.ipv4.ip_forward", "1");
            sandbox_namespaces(c).network = 2;
        },
        "config.linux.sysctls[\"net.ipv4.ip_forward\"]: would change the host",
    ),
    (
        |c| {
            sysctl(c, "fs.mqueue.msg_max", "100");
            sandbox_namespaces(c).ipc = 2;
        },
        "config.linux.sysctls[\"fs.mqueue.msg_max\"]: would change the host",
    ),
    (
        |c| {
            sysctl(c, "net.ipv4.a", "1");
            sysctl(c, "net/ipv4/a", "2");
        },
        "config.linux.sysctls[\"net",
    ),
    (
        |c| c.linux.as_mut().unwrap().cgroup_parent = "/a/../..".into(),
        "config.linux.cgroup_parent",
    ),
    (
        |c| c.linux.as_mut().unwrap().cgroup_parent = "a/b.slice".into(),
        "config.linux.cgroup_parent",
    ),
    (
        |c| c.linux.as_mut().unwrap().cgroup_parent = "a".into(),
        "config.linux.cgroup_parent: must",
    ),
    (
        |c| {
            c.linux.as_mut().unwrap().overhead = Some(proto::LinuxContainerResources {
                cpu_shares: -1,
                ..Default::default()
            })
        },
        "config.linux.overhead.cpu_shares: must not be negative",
    ),
    (
        |c| sandbox_context(c).run_as_group = int(5),
        "config.linux.security_context.run_as_group: must not be set without a user",
    ),
    (
        |c| sandbox_context(c).run_as_user = int(-1),
        "config.linux.security_context.run_as_user: ",
    ),
    (
        |c| sandbox_context(c).run_as_user = int(1 << 31),
        "config.linux.security_context.run_as_us",
    ),
    (
        |c| sandbox_context(c).supplemental_groups = vec![1, 1 << 32],
        "config.linux.security_context.supplemental_groups[1]: must be 0 to",
    ),
    (
        |c| sandbox_context(c).supplemental_groups_policy = 9,
        "config.linux.security_context.supplemental_groups_policy: 9 is no value",
    ),
    (
        |c| sandbox_namespaces(c).network = 1,
        "config.linux.security_context.namespace_options.network: must be POD or NODE, is CONTAINER",
    ),
    (
        |c| sandbox_namespaces(c).ipc = 3,
        "config.linux.security_context.namespace_options.ipc: must be POD or NODE, is TARGET",
    ),
    (
        |c| sandbox_namespaces(c).pid = 3,
        "config.linux.security_context.namespace_options.pid: must be POD, CONTAINER or NODE",
    ),
    (
        |c| sandbox_namespaces(c).pid = 4,
        "config.linux.security_context.namespace_options.pid: 4 is no value",
    ),
    (
        |c| userns(c, 0, &[(100_000, 0, 1000), (200_000, 1000, 1000)]),
        "config.linux.security_context.namespace_options.userns_options.uids: must be exactly one",
    ),
    (
        |c| userns(c, 0, &[]),
        "config.linux.security_context.namespace_options.userns_options.uids: must be exactly one",
    ),
    (
        |c| userns(c, 0, &[(100_000, 1, 1000)]),
        "config.linux.security_context.namespace_options.userns_options.uids[0].container_id: ",
    ),
    (
        |c| userns(c, 0, &[(0, 0, 1000)]),
        "config.linux.security_context.namespace_options.userns_options.uids[0].host_id: ",
    ),
    (
        |c| userns(c, 0, &[(u32::MAX, 0, 1000)]),
        "config.linux.security_context.namespace_options.userns_options.uids[0].length: ",
    ),
    (
        |c| userns(c, 0, &[(1, 0, 0)]),
        "config.linux.security_context.namespace_options.userns_options.uids[0].length: ",
    ),
    (
        |c| userns(c, 1, &[(100_000, 0, 1000)]),
        "config.linux.security_context.namespace_options.userns_options.mode: must be POD or NODE",
    ),
    (
        |c| userns(c, 3, &[(100_000, 0, 1000)]),
        "config.linux.security_context.namespace_options.userns_options.mode: must be POD or NODE",
    ),
    (
        |c| userns(c, 2, &[(100_000, 0, 1000)]),
        "config.linux.security_context.namespace_options.userns_options.uids: must be empty",
    ),
    (
        |c| c.port_mappings.push(port(0, 0, 80, "")),
        "config.port_mappings[0].container_port: must",
    ),
    (
        |c| c.port_mappings.push(port(0, 70_000, 80, "")),
        "config.port_mappings[0].container_port",
    ),
    (
        |c| c.port_mappings.push(port(0, 80, -1, "")),
        "config.port_mappings[0].host_port: must be",
    ),
    (
        |c| c.port_mappings.push(port(7, 80, 80, "")),
        "config.port_mappings[0].protocol: 7 is no",
    ),
    (
        |c| c.port_mappings.push(port(0, 80, 80, "localhost")),
        "config.port_mappings[0].host_ip: ",
    ),
    (
        |c| {
            c.port_mappings = vec![
                port(0, 80, 80, ""),
                port(1, 81, 80, ""),
                port(0, 82, 80, ""),
            ]
        },
        "config.port_mappings[2].host_port: tcp port 80 of the host is published twice",
    ),
    (
        |c| dns(c, &["1.1.1.1\nnameserver 6.6.6.6"], &[], &[]),
        "config.dns_config.servers[0]: must",
    ),
    (
        |c| dns(c, &["dns.example"], &[], &[]),
        "config.dns_config.servers[0]: must be an IP",
    ),
    (
        |c| dns(c, &["10.0.0.1%eth0"], &[], &[]),
        "config.dns_config.servers[0]: must be an IP",
    ),
    (
        |c| dns(c, &[], &["a b"], &[]),
        "config.dns_config.searches[0]: must not contain white",
    ),
    (
        |c| dns(c, &[], &[""], &[]),
        "config.dns_config.searches[0]: must not be empty",
    ),
    (
        |c| dns(c, &[], &[], &["a", "x\ny"]),
        "config.dns_config.options[1]: must not contain",
    ),
    (
        |c| dns(c, &[], &[], &["a"; 65]),
        "config.dns_config.options: must have at most 64",
    ),
];

fn port(protocol: i32, container_port: i32, host_port: i32, host_ip: &str) -> proto::PortMapping {
    proto::PortMapping {
        protocol,
        container_port,
        host_port,
        host_ip: host_ip.into(),
    }
}

fn dns(
    config: &mut proto::PodSandboxConfig,
    servers: &[&str],
    searches: &[&str],
    options: &[&str],
) {
    let list = |words: &[&str]| words.iter().map(ToString::to_string).collect();
    config.dns_config = Some(proto::DnsConfig {
        servers: list(servers),
        searches: list(searches),
        options: list(options),
    });
}

#[test]
fn wrong_sandboxes_are_refused_by_field() {
    for (change, expected) in SANDBOX_REFUSALS {
        let error = changed_sandbox(*change).expect_err(expected);
        assert!(
            error.to_string().starts_with(expected),
            "{error}\nexpected: {expected}"
        );
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(
            error.to_string().len() < 400 && !error.to_string().contains('\n'),
            "{error}"
        );
    }
}

#[test]
fn right_sandboxes_pass_unchanged() {
    let spec = changed_sandbox(|c| {
        sysctl(c, "kernel.shm_rmid_forced", "1");
        sysctl(c, "net/ipv4/conf/eth0.1/forwarding", "1");
        dns(
            c,
            &["10.10.10.10", "fe80::1%eth0"],
            &["google.com", "."],
            &["ndots:8"],
        );
        c.port_mappings = vec![
            port(0, 80, 0, ""),
            port(1, 53, 53, "::1"),
            port(0, 53, 53, "127.0.0.1"),
            port(2, 1, 65_535, ""),
        ];
        c.annotations
            .insert("last-applied".into(), "x".repeat(200 * 1024));
        c.linux.as_mut().unwrap().cgroup_parent = "/test.slice".into();
    })
    .unwrap();
    let sysctls: Vec<&str> = spec.sysctls.keys().map(String::as_str).collect();
    assert_eq!(
        sysctls,
        ["kernel.shm_rmid_forced", "net.ipv4.conf.eth0/1.forwarding"]
    );
    assert_eq!(spec.port_mappings[0].host_port, None);
    assert_eq!(spec.port_mappings[3].protocol, Protocol::Sctp);
    assert_eq!(spec.cgroup_parent.as_deref(), Some("/test.slice"));
    let slice = changed_sandbox(|c| {
        c.linux.as_mut().unwrap().cgroup_parent = "kubepods-burstable-podX.slice".into();
    });
    assert!(slice.unwrap().cgroup_parent.is_some());
}

#[test]
fn a_handler_is_a_name() {
    let mut request = sandbox_request();
    request.runtime_handler = "../runc".into();
    let error = sandbox(&request, NO_APPARMOR).unwrap_err();
    assert!(
        error.to_string().starts_with("runtime_handler: "),
        "{error}"
    );
}

const CONTAINER_REFUSALS: &[(ContainerChange, &str)] = &[
    (|c| c.metadata = None, "config.metadata: must be set"),
    (
        |c| c.metadata.as_mut().unwrap().name = "a/b".into(),
        "config.metadata.name: ",
    ),
    (
        |c| c.metadata.as_mut().unwrap().name = "x".repeat(10_240),
        "config.metadata.name: must be",
    ),
    (|c| c.image = None, "config.image: must be set"),
    (
        |c| c.image.as_mut().unwrap().image.clear(),
        "config.image.image: must not be empty",
    ),
    (
        |c| c.image.as_mut().unwrap().image = "a b".into(),
        "config.image.image: must not contain",
    ),
    (
        |c| c.image.as_mut().unwrap().image = "a".repeat(5000),
        "config.image.image: must be at most",
    ),
    (
        |c| c.command = vec!["a".into(), "b\0".into()],
        "config.command[1]: must not contain NUL",
    ),
    (
        |c| c.args = vec!["a".repeat(200_000)],
        "config.args[0]: must be at most 131071 bytes",
    ),
    (
        |c| c.working_dir = "relative".into(),
        "config.working_dir: must be an absolute path",
    ),
    (
        |c| c.working_dir = "/proc/self/fd/8".into(),
        "config.working_dir: must not lead through",
    ),
    (
        |c| c.working_dir = "/a/../proc".into(),
        "config.working_dir: must not contain",
    ),
    (|c| env(c, "", b"x"), "config.envs[0].key: "),
    (|c| env(c, "a=b", b"x"), "config.envs[0].key: "),
    (|c| env(c, "a\0", b"x"), "config.envs[0].key: "),
    (
        |c| env(c, "a", b"x\0"),
        "config.envs[0].value: must not contain NUL",
    ),
    (
        |c| env(c, "a", &[b'x'; 200_000]),
        "config.envs[0].value: key=value must be at most",
    ),
    (
        |c| {
            c.envs = vec![
                proto::KeyValue {
                    key: "a".into(),
                    value: vec![]
                };
                100_001
            ]
        },
        "config.envs: must have at most 100000",
    ),
    (
        |c| volume(c, "relative", "/x"),
        "config.mounts[0].container_path: must be an abs",
    ),
    (
        |c| volume(c, "", "/x"),
        "config.mounts[0].container_path: must not be empty",
    ),
    (
        |c| volume(c, "/", "/x"),
        "config.mounts[0].container_path: must not be the root",
    ),
    (
        |c| volume(c, "/./", "/x"),
        "config.mounts[0].container_path: must not be the root",
    ),
    (
        |c| volume(c, "/a/../b", "/x"),
        "config.mounts[0].container_path: must not contain",
    ),
    (
        |c| volume(c, "/proc/self/attr", "/x"),
        "config.mounts[0].container_path: must not",
    ),
    (
        |c| volume(c, "//proc/sys", "/x"),
        "config.mounts[0].container_path: must not lie",
    ),
    (
        |c| volume(c, "/proc", "/x"),
        "config.mounts[0].container_path: must not be /proc",
    ),
    (
        |c| volume(c, "/a", ""),
        "config.mounts[0].host_path: must not be empty",
    ),
    (
        |c| volume(c, "/a", "x"),
        "config.mounts[0].host_path: must be an absolute path",
    ),
    (
        |c| volume(c, "/a", "/x/../y"),
        "config.mounts[0].host_path: must not contain",
    ),
    (
        |c| volume(c, "/a", "/proc/self/fd/3"),
        "config.mounts[0].host_path: must not lie",
    ),
    (
        |c| volume(c, "/a", "/x\ny"),
        "config.mounts[0].host_path: must not contain control",
    ),
    (
        |c| {
            add_mount(c, "/a", "/x");
            let i = add_mount(c, "/b", "/x");
            c.mounts[i].propagation = 2;
        },
        "config.mounts[1].propagation: PROPAGATION_BIDIRECTIONAL is for privileged",
    ),
    (
        |c| {
            let i = add_mount(c, "/a", "/x");
            c.mounts[i].propagation = 3;
        },
        "config.mounts[0].propagation: 3 is no value",
    ),
    (
        |c| {
            let i = add_mount(c, "/a", "/x");
            c.mounts[i].recursive_read_only = true;
        },
        "config.mounts[0].recursive_read_only: must not be set unless readonly",
    ),
    (
        |c| {
            let i = add_mount(c, "/a", "/x");
            (c.mounts[i].readonly, c.mounts[i].recursive_read_only) = (true, true);
            c.mounts[i].propagation = 1;
        },
        "config.mounts[0].recursive_read_only: must not be set unless propagation",
    ),
    (
        |c| {
            context(c).privileged = true;
            let i = add_mount(c, "/a", "/x");
            (c.mounts[i].readonly, c.mounts[i].recursive_read_only) = (true, true);
            c.mounts[i].propagation = 2;
        },
        "config.mounts[0].recursive_read_only: must not be set unless propagation",
    ),
    (
        |c| {
            let i = add_mount(c, "/a", "/x");
            c.mounts[i].image_sub_path = "etc".into();
        },
        "config.mounts[0].image_sub_path: must be empty unless image",
    ),
    (
        |c| c.mounts = vec![proto::Mount::default(); 10_000],
        "config.mounts: must have at most 4096",
    ),
    (
        |c| device(c, "dev/x", "/dev/x", "r"),
        "config.devices[0].container_path: must be an abs",
    ),
    (
        |c| device(c, "/dev/x", "/dev/../x", "r"),
        "config.devices[0].host_path: must not contain",
    ),
    (
        |c| device(c, "/dev/x", "/dev/x", "rx"),
        "config.devices[0].permissions: must be some of",
    ),
    (
        |c| c.log_path = "/abs.log".into(),
        "config.log_path: must be relative",
    ),
    (
        |c| c.log_path = "../x.log".into(),
        "config.log_path: must not contain",
    ),
    (
        |c| c.log_path = "a/../../x".into(),
        "config.log_path: must not contain",
    ),
    (
        |c| c.log_path = ".".into(),
        "config.log_path: must name a file",
    ),
    (
        |c| c.log_path = "a/".into(),
        "config.log_path: must name a file",
    ),
    (|c| c.log_path = "a\0".into(), "config.log_path: "),
    (|c| c.stop_signal = 66, "config.stop_signal: 66 is no value"),
    (
        |c| context(c).run_as_group = int(5),
        "config.linux.security_context.run_as_group: must not be set without a user",
    ),
    (
        |c| {
            context(c).run_as_user = int(5);
            context(c).run_as_username = "x".into();
        },
        "config.linux.security_context.run_as_username: must be empty when run_as_user",
    ),
    (
        |c| context(c).run_as_username = "a:b".into(),
        "config.linux.security_context.run_as_username: must not contain",
    ),
    (
        |c| context(c).run_as_username = "a\nb".into(),
        "config.linux.security_context.run_as_username: must not contain",
    ),
    (
        |c| context(c).masked_paths = vec!["/a".into(), "b".into()],
        "config.linux.security_context.masked_paths[1]: must be an absolute path",
    ),
    (
        |c| context(c).readonly_paths = vec!["/a/..".into()],
        "config.linux.security_context.readonly_paths[0]: must not contain",
    ),
    (
        |c| caps(c, &["NET_ADMIN", "FLY"], &[], &[]),
        "config.linux.security_context.capabilities.add_capabilities[1]: must be a capability",
    ),
    (
        |c| caps(c, &[], &[""], &[]),
        "config.linux.security_context.capabilities.drop_capabilities[0]: must be a capability",
    ),
    (
        |c| caps(c, &[], &[], &["ALL"]),
        "config.linux.security_context.capabilities.add_ambient_capabilities: must name",
    ),
    (
        |c| target(c, 3, ""),
        "config.linux.security_context.namespace_options.target_id: must name a container",
    ),
    (
        |c| target(c, 3, "../x"),
        "config.linux.security_context.namespace_options.target_id: must be a name",
    ),
    (
        |c| context(c).seccomp = profile(2, "relative.json"),
        "config.linux.security_context.seccomp.localhost_ref: must be an absolute path",
    ),
    (
        |c| context(c).seccomp = profile(2, "/a/../../etc/shadow"),
        "config.linux.security_context.seccomp.localhost_ref: must not contain",
    ),
    (
        |c| context(c).seccomp = profile(2, ""),
        "config.linux.security_context.seccomp.localhost_ref: must name the profile",
    ),
    (
        |c| context(c).seccomp = profile(0, "/x"),
        "config.linux.security_context.seccomp.localhost_ref: must be empty",
    ),
    (
        |c| context(c).seccomp = profile(3, ""),
        "config.linux.security_context.seccomp.profile_type: 3 is no value",
    ),
    (
        #[allow(deprecated)]
        |c| context(c).seccomp_profile_path = "/x".into(),
        "config.linux.security_context.seccomp_profile_path: must be runtime/default",
    ),
    (
        #[allow(deprecated)]
        |c| context(c).apparmor_profile = "x".into(),
        "config.linux.security_context.apparmor_profile: must be runtime/default",
    ),
    (
        |c| context(c).apparmor = profile(2, "a\nb"),
        "config.linux.security_context.apparmor.localhost_ref: must not contain",
    ),
    (
        |c| {
            context(c).selinux_options = Some(proto::SeLinuxOption {
                level: "s0 c1".into(),
                ..Default::default()
            })
        },
        "config.linux.security_context.selinux_options.level: must be one part",
    ),
    (
        |c| {
            context(c).selinux_options = Some(proto::SeLinuxOption {
                r#type: "a:b".into(),
                ..Default::default()
            })
        },
        "config.linux.security_context.selinux_options.type: must be one part",
    ),
    (
        |c| limits(c).cpu_shares = -1,
        "config.linux.resources.cpu_shares: must not be negative",
    ),
    (
        |c| limits(c).cpu_period = 999,
        "config.linux.resources.cpu_period: must be 1000 to 1000000",
    ),
    (
        |c| limits(c).cpu_period = -5,
        "config.linux.resources.cpu_period: must not be negative",
    ),
    (
        |c| limits(c).cpu_quota = 5,
        "config.linux.resources.cpu_quota: must be -1 for no limit or",
    ),
    (
        |c| limits(c).cpu_quota = -2,
        "config.linux.resources.cpu_quota: must be -1",
    ),
    (
        |c| limits(c).memory_limit_in_bytes = -1,
        "config.linux.resources.memory_limit_in_bytes: ",
    ),
    (
        |c| limits(c).memory_swap_limit_in_bytes = -2,
        "config.linux.resources.memory_swap_limit_in",
    ),
    (
        |c| {
            (
                limits(c).memory_limit_in_bytes,
                limits(c).memory_swap_limit_in_bytes,
            ) = (100, 99)
        },
        "config.linux.resources.memory_swap_limit_in_bytes: is memory and swap together",
    ),
    (
        |c| limits(c).oom_score_adj = 2000,
        "config.linux.resources.oom_score_adj: must be -1000",
    ),
    (
        |c| limits(c).oom_score_adj = i64::MIN,
        "config.linux.resources.oom_score_adj: must be -1000",
    ),
    (
        |c| limits(c).cpuset_cpus = "0-".into(),
        "config.linux.resources.cpuset_cpus: must be a list",
    ),
    (
        |c| limits(c).cpuset_cpus = "3-1".into(),
        "config.linux.resources.cpuset_cpus: must be a list",
    ),
    (
        |c| limits(c).cpuset_mems = "0\n".into(),
        "config.linux.resources.cpuset_mems: must be a list",
    ),
    (
        |c| hugepages(c, &["2mb"]),
        "config.linux.resources.hugepage_limits[0].page_size: must be a",
    ),
    (
        |c| hugepages(c, &["../MB"]),
        "config.linux.resources.hugepage_limits[0].page_size: must be",
    ),
    (
        |c| hugepages(c, &["2MB", "2MB"]),
        "config.linux.resources.hugepage_limits[1].page_size: 2MB",
    ),
    (
        |c| unified(c, "../x", ""),
        "config.linux.resources.unified[\"../x\"]: must be a cgroup file",
    ),
    (
        |c| unified(c, "memory/high", ""),
        "config.linux.resources.unified[\"memory/high\"]: must be",
    ),
    (
        |c| unified(c, "cgroup.kill", "1"),
        "config.linux.resources.unified[\"cgroup.kill\"]: must not",
    ),
    (
        |c| unified(c, "memory.high", "1\0"),
        "config.linux.resources.unified[\"memory.high\"]: must",
    ),
    (
        |c| drop(c.labels.insert("k".into(), "v".repeat(5000))),
        "config.labels[\"k\"]: key and value",
    ),
];

fn env(config: &mut proto::ContainerConfig, key: &str, value: &[u8]) {
    config.envs.push(proto::KeyValue {
        key: key.into(),
        value: value.to_vec(),
    });
}

fn device(config: &mut proto::ContainerConfig, container: &str, host: &str, permissions: &str) {
    config.devices.push(proto::Device {
        container_path: container.into(),
        host_path: host.into(),
        permissions: permissions.into(),
    });
}

fn caps(config: &mut proto::ContainerConfig, add: &[&str], drop: &[&str], ambient: &[&str]) {
    let list = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    context(config).capabilities = Some(proto::Capability {
        add_capabilities: list(add),
        drop_capabilities: list(drop),
        add_ambient_capabilities: list(ambient),
    });
}

fn target(config: &mut proto::ContainerConfig, pid: i32, id: &str) {
    context(config).namespace_options = Some(proto::NamespaceOption {
        pid,
        target_id: id.into(),
        ..Default::default()
    });
}

fn profile(profile_type: i32, localhost_ref: &str) -> Option<proto::SecurityProfile> {
    Some(proto::SecurityProfile {
        profile_type,
        localhost_ref: localhost_ref.into(),
    })
}

fn hugepages(config: &mut proto::ContainerConfig, sizes: &[&str]) {
    let limit = |size: &&str| proto::HugepageLimit {
        page_size: size.to_string(),
        limit: 1,
    };
    limits(config).hugepage_limits = sizes.iter().map(limit).collect();
}

fn unified(config: &mut proto::ContainerConfig, key: &str, value: &str) {
    limits(config).unified.insert(key.into(), value.into());
}

#[test]
fn wrong_containers_are_refused_by_field() {
    for (change, expected) in CONTAINER_REFUSALS {
        let error = changed_container(*change).expect_err(expected);
        assert!(
            error.to_string().starts_with(expected),
            "{error}\nexpected: {expected}"
        );
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(
            error.to_string().len() < 400 && !error.to_string().contains('\n'),
            "{error}"
        );
    }
}

#[test]
fn what_this_build_or_host_lacks_is_unsupported_by_field() {
    let cases: [(ContainerChange, &str); 2] = [
        (
            |c| context(c).apparmor = profile(2, "localhost/mine"),
            "config.linux.security_context.apparmor.localhost_ref: profile \"mine\" is asked for",
        ),
        (
            #[allow(deprecated)]
            |c| context(c).apparmor_profile = "localhost/mine".into(),
            "config.linux.security_context.apparmor_profile: profile \"mine\" is asked for",
        ),
    ];
    for (change, expected) in cases {
        let error = changed_container(change).expect_err(expected);
        assert!(error.to_string().starts_with(expected), "{error}");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
}

#[test]
fn seccomp_profiles_in_every_notation() {
    let asked = |field: Option<proto::SecurityProfile>, old: &str| {
        let mut request = container_request();
        let context = context(request.config.as_mut().unwrap());
        context.seccomp = field;
        #[allow(deprecated)]
        context.seccomp_profile_path.push_str(old);
        container(&request, NO_APPARMOR).unwrap().security.seccomp
    };
    let file = Some(SecurityProfile::Localhost(
        "/var/lib/kubelet/seccomp/p.json".into(),
    ));
    assert_eq!(
        asked(profile(2, "/var/lib/kubelet/seccomp/p.json"), "unconfined"),
        file
    );
    assert_eq!(
        asked(None, "localhost//var/lib/kubelet/seccomp/p.json"),
        file
    );
    assert_eq!(
        asked(None, "docker/default"),
        Some(SecurityProfile::RuntimeDefault)
    );
    assert_eq!(
        asked(profile(0, ""), ""),
        Some(SecurityProfile::RuntimeDefault)
    );
    assert_eq!(asked(profile(1, ""), ""), Some(SecurityProfile::Unconfined));
    assert_eq!(asked(None, ""), None);
}

#[test]
fn right_containers_pass_unchanged() {
    let spec = changed_container(|c| {
        env(c, "A", b"1");
        env(c, "RAW", b"\xff");
        env(c, "A", b"2");
        context(c).privileged = true;
        context(c).run_as_username = "nobody".into();
        context(c).run_as_group = int(7);
        caps(c, &["ALL", "cap_net_admin"], &["net_raw"], &[]);
        target(c, 3, "0123abcd");
        let i = add_mount(c, "/data/", "/srv/link");
        c.mounts[i].propagation = 2;
        let i = add_mount(c, "/proc/cpuinfo", "/var/lib/lxcfs/proc/cpuinfo");
        (c.mounts[i].readonly, c.mounts[i].recursive_read_only) = (true, true);
        add_mount(c, "/proc", "/proc");
        device(c, "", "/dev/fuse", "");
        device(c, "/dev/x", "/dev/null", "wr");
        c.log_path = "./main//0.log".into();
        c.stop_signal = 36;
        limits(c).cpu_quota = -1;
        limits(c).memory_swap_limit_in_bytes = -1;
        limits(c).cpuset_cpus = "0-3,7".into();
        hugepages(c, &["2MB", "1GB", "64KB"]);
        unified(c, "memory.oom.group", "1");
    })
    .unwrap();
    let envs: Vec<_> = spec
        .envs
        .iter()
        .map(|e| (e.name.as_str(), e.value.as_slice()))
        .collect();
    assert_eq!(envs, [("A", &b"2"[..]), ("RAW", &b"\xff"[..])]);
    assert_eq!(spec.security.run_as, RunAs::Name("nobody".into()));
    assert!(spec.security.capabilities.add_all && !spec.security.capabilities.drop_all);
    assert_eq!(spec.security.capabilities.drop.iter().count(), 1);
    assert_eq!(
        spec.security.namespaces.pid,
        PidMode::Target("0123abcd".into())
    );
    assert_eq!(
        spec.mounts[0].container_path, "/data/",
        "reported as it was written"
    );
    assert_eq!(spec.devices[0].container_path, "/dev/fuse");
    assert_eq!(
        (&*spec.devices[0].permissions, &*spec.devices[1].permissions),
        ("rwm", "rw")
    );
    assert_eq!(spec.log_path.as_deref(), Some("main/0.log"));
    assert_eq!(
        spec.stop_signal.map(|s| s.to_string()).as_deref(),
        Some("SIGRTMIN+1")
    );
    assert_eq!(spec.resources.cpu_quota, Some(-1));
    let json = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<ContainerSpec>(&json).unwrap(), spec);
}

#[test]
fn every_signal_of_the_protocol_is_one_of_the_kernel() {
    let of = |number: i32| {
        let mut request = container_request();
        request.config.as_mut().unwrap().stop_signal = number;
        container(&request, NO_APPARMOR).unwrap().stop_signal
    };
    assert_eq!(of(0), None);
    for number in 1..=65 {
        let signal = of(number).unwrap_or_else(|| panic!("signal {number}"));
        let back = render::signal_to_proto(signal);
        assert_eq!(of(back.into()), Some(signal), "{number}");
    }
    assert_eq!(of(proto::Signal::Sigterm.into()), Some(Signal::TERM));
    assert_eq!(
        render::signal_to_proto(Signal::KILL),
        proto::Signal::Sigkill
    );
    assert_eq!(
        render::signal_to_proto(Signal::new(6).unwrap()),
        proto::Signal::Sigabrt
    );
}

#[test]
fn a_privileged_container_needs_a_privileged_sandbox() {
    let plain = changed_container(|_| {}).unwrap();
    let privileged = changed_container(|c| context(c).privileged = true).unwrap();
    let pod = changed_sandbox(|_| {}).unwrap();
    let privileged_pod = changed_sandbox(|c| sandbox_context(c).privileged = true).unwrap();
    fits_sandbox(&plain, &pod).unwrap();
    fits_sandbox(&plain, &privileged_pod).unwrap();
    fits_sandbox(&privileged, &privileged_pod).unwrap();
    let error = fits_sandbox(&privileged, &pod).unwrap_err().to_string();
    let expected = "config.linux.security_context.privileged: must not be set";
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn execs_and_stops_are_checked() {
    let request = |cmd: &[&str], timeout| proto::ExecSyncRequest {
        container_id: "x".into(),
        cmd: cmd.iter().map(ToString::to_string).collect(),
        timeout,
    };
    let spec = exec::exec_sync(&request(&["true"], 0)).unwrap();
    assert_eq!(
        (spec.command, spec.timeout),
        (vec!["true".to_owned()], None)
    );
    let long = exec::exec_sync(&request(&["true"], i64::MAX))
        .unwrap()
        .timeout
        .unwrap();
    assert!(std::time::Instant::now().checked_add(long).is_some());
    for (cmd, timeout, expected) in [
        (&[][..], 1, "cmd: must name a program"),
        (&[""][..], 1, "cmd: must name a program"),
        (&["a", "b\0"][..], 1, "cmd[1]: must not contain NUL"),
        (&["a"][..], -1, "timeout: must not be negative"),
    ] {
        let error = exec::exec_sync(&request(cmd, timeout)).unwrap_err();
        assert!(error.to_string().starts_with(expected), "{error}");
    }
    let stop = |timeout| proto::StopContainerRequest {
        container_id: "x".into(),
        timeout,
    };
    assert_eq!(
        exec::stop_timeout(&stop(0)).unwrap(),
        std::time::Duration::ZERO
    );
    assert!(exec::stop_timeout(&stop(-1)).is_err());
}

#[test]
fn an_update_without_limits_changes_nothing_and_windows_is_refused() {
    let nothing = proto::UpdateContainerResourcesRequest::default();
    assert_eq!(update(&nothing).unwrap(), Resources::default());
    let windows = proto::UpdateContainerResourcesRequest {
        windows: Some(proto::WindowsContainerResources::default()),
        ..nothing
    };
    let error = update(&windows).unwrap_err().to_string();
    assert!(error.starts_with("windows: "), "{error}");
}

fn sandbox_view() -> SandboxView {
    SandboxView {
        id: "a".repeat(64).parse().unwrap(),
        spec: Arc::new(
            changed_sandbox(|c| {
                c.labels.insert("app".into(), "web".into());
                sandbox_namespaces(c).pid = 1;
            })
            .unwrap(),
        ),
        ready: true,
        created_at_ns: 5,
        ips: vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
    }
}

fn container_view() -> ContainerView {
    ContainerView {
        id: "b".repeat(64).parse().unwrap(),
        sandbox_id: "a".repeat(64).parse().unwrap(),
        spec: Arc::new(
            changed_container(|c| {
                c.labels.insert("app".into(), "web".into());
                c.labels.insert("tier".into(), "front".into());
                context(c).privileged = true;
                let i = add_mount(c, "/data/", "/srv");
                c.mounts[i].propagation = 2;
            })
            .unwrap(),
        ),
        phase: ContainerPhase::Exited,
        created_at_ns: 5,
        started_at_ns: 6,
        finished_at_ns: 7,
        exit_code: 137,
        reason: "OOMKilled".into(),
        message: String::new(),
        image: "busybox:1".into(),
        image_ref: "busybox@sha256:1".into(),
        image_id: "sha256:1".into(),
        log_path: "/var/log/x.log".into(),
        image_volumes: BTreeMap::new(),
        resources: Resources {
            memory_limit: Some(9),
            oom_score_adj: -3,
            ..Resources::default()
        },
        user: ResolvedUser {
            uid: 1000,
            gid: 1000,
            additional_gids: vec![50_000, 1234],
            home: None,
        },
        stop_signal: Signal::TERM,
    }
}

#[test]
fn sandboxes_are_shown_as_they_were_asked_for() {
    let view = sandbox_view();
    let status = render::sandbox_status(&view);
    assert_eq!(status.state, proto::PodSandboxState::SandboxReady as i32);
    assert_eq!(status.metadata, sandbox_request().config.unwrap().metadata);
    let network = status.network.unwrap();
    assert_eq!(
        (&*network.ip, &*network.additional_ips[0].ip),
        ("10.0.0.7", "fd00::7")
    );
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!((options.network, options.pid), (0, 1));
    assert_eq!(options.userns_options.unwrap().mode, 2);
    let item = render::sandbox_item(&view);
    assert_eq!(
        (item.id, item.labels, item.created_at),
        (status.id, status.labels, 5)
    );
}

#[test]
fn containers_are_shown_as_they_were_asked_for() {
    let view = container_view();
    let status = render::container_status(&view);
    assert_eq!(status.state, proto::ContainerState::ContainerExited as i32);
    assert_eq!((status.exit_code, &*status.reason), (137, "OOMKilled"));
    assert_eq!(status.mounts.len(), 1);
    let mount = &status.mounts[0];
    assert_eq!((&*mount.container_path, mount.propagation), ("/data/", 2));
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid), (1000, 1000));
    assert_eq!(
        user.supplemental_groups,
        [1000, 1234, 50_000],
        "the primary group is one of them"
    );
    let limits = status.resources.unwrap().linux.unwrap();
    assert_eq!(
        (limits.memory_limit_in_bytes, limits.oom_score_adj),
        (9, -3)
    );
    assert_eq!(status.stop_signal, proto::Signal::Sigterm as i32);
    let item = render::container_item(&view);
    assert_eq!(
        (item.image_id, item.image_ref),
        (status.image_id, status.image_ref)
    );
}

#[test]
fn resources_that_were_asked_for_are_reported_the_same() {
    let asked = proto::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 2,
        memory_limit_in_bytes: 1 << 30,
        oom_score_adj: 999,
        cpuset_cpus: "0".into(),
        cpuset_mems: "0-1".into(),
        hugepage_limits: vec![proto::HugepageLimit {
            page_size: "2MB".into(),
            limit: 4,
        }],
        unified: HashMap::from([("memory.high".into(), "5".into())]),
        memory_swap_limit_in_bytes: 1 << 31,
    };
    let spec = resources(&Field::root("linux"), &asked).unwrap();
    assert_eq!(render::linux_resources(&spec), asked);
    let nothing = proto::LinuxContainerResources::default();
    let spec = resources(&Field::root("linux"), &nothing).unwrap();
    assert_eq!(
        (render::linux_resources(&spec), spec),
        (nothing, Resources::default())
    );
}

#[test]
fn filters_are_conjunctions() {
    let view = container_view();
    let filter = |id: &str, state: Option<i32>, pod: &str, labels: &[(&str, &str)]| {
        ContainerFilter::from_proto(Some(&proto::ContainerFilter {
            id: id.into(),
            state: state.map(|state| proto::ContainerStateValue { state }),
            pod_sandbox_id: pod.into(),
            label_selector: labels
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect(),
        }))
        .unwrap()
        .matches(&view)
    };
    assert!(ContainerFilter::from_proto(None).unwrap().matches(&view));
    assert!(filter("", None, "", &[]));
    assert!(filter(
        "bbb",
        Some(2),
        "aaa",
        &[("app", "web"), ("tier", "front")]
    ));
    assert!(!filter("c", None, "", &[]));
    assert!(!filter("", Some(1), "", &[]));
    assert!(!filter("", None, "b", &[]));
    assert!(!filter("", None, "", &[("app", "web"), ("tier", "back")]));
    assert!(!filter("", None, "", &[("missing", "")]));
    let sandbox = sandbox_view();
    let filter = |state| {
        SandboxFilter::from_proto(Some(&proto::PodSandboxFilter {
            id: "a".into(),
            state: Some(proto::PodSandboxStateValue { state }),
            label_selector: HashMap::from([("app".to_owned(), "web".to_owned())]),
        }))
    };
    assert!(filter(0).unwrap().matches(&sandbox));
    assert!(!filter(1).unwrap().matches(&sandbox));
    assert_eq!(
        filter(2).unwrap_err().to_string(),
        "filter.state: 2 is no value of this enum"
    );
}

proptest! {
    /// Bytes that are a message by accident, and messages with every text hostile, neither panic nor
    /// give an error that cannot be logged on one line.
    #[test]
    fn hostile_messages_are_refused_or_converted(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        text in "(\\PC|[\\x00-\\x1f/.:=]){0,40}",
        number in any::<i64>(),
    ) {
        if let Ok(request) = proto::RunPodSandboxRequest::decode(&bytes[..]) {
            drop(sandbox(&request, NO_APPARMOR));
        }
        if let Ok(request) = proto::CreateContainerRequest::decode(&bytes[..]) {
            drop(container(&request, NO_APPARMOR));
        }
        let field = Field::root("config").child("x").key(&text).to_string();
        prop_assert!(!field.contains('\n') && !field.contains('\0'));
        let mut request = container_request();
        let config = request.config.as_mut().unwrap();
        add_mount(config, &format!("/{text}"), &format!("/{text}"));
        config.working_dir = format!("/{text}");
        config.log_path.clone_from(&text);
        limits(config).cpu_quota = number;
        limits(config).cpuset_cpus.clone_from(&text);
        match container(&request, NO_APPARMOR) {
            Ok(spec) => {
                let path = spec.log_path.unwrap_or_default();
                prop_assert!(path.split('/').all(|part| part != ".." && part != "."));
                prop_assert!(!path.starts_with('/'));
            }
            Err(error) => prop_assert!(!error.to_string().contains('\n')),
        }
    }
}

#[test]
fn apparmor_profiles_in_every_notation() {
    let asked = |field: Option<proto::SecurityProfile>, old: &str| {
        let mut request = container_request();
        let context = context(request.config.as_mut().unwrap());
        context.apparmor = field;
        #[allow(deprecated)]
        context.apparmor_profile.push_str(old);
        container(&request, HostSupport { apparmor: true })
            .unwrap()
            .security
            .apparmor
    };
    let mine = Some(SecurityProfile::Localhost("mine".into()));
    assert_eq!(asked(profile(2, "localhost/mine"), ""), mine);
    assert_eq!(asked(profile(2, "mine"), ""), mine);
    assert_eq!(asked(None, "localhost/mine"), mine);
    assert_eq!(
        asked(profile(2, "mine"), "localhost/other"),
        mine,
        "the newer field wins"
    );
    assert_eq!(asked(None, "unconfined"), Some(SecurityProfile::Unconfined));
    assert_eq!(
        asked(profile(0, ""), ""),
        Some(SecurityProfile::RuntimeDefault)
    );
    assert_eq!(asked(None, ""), None);
}
