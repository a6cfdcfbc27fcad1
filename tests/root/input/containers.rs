//! Configs of containers that are refused, and odd ones that are not.

use crisp_harness::{
    cri::v1::{
        Capability, ContainerConfig, Device, HugepageLimit, Int64Value, KeyValue,
        LinuxContainerResources, Mount, MountPropagation, NamespaceMode, NamespaceOption,
        SeLinuxOption, SecurityProfile, security_profile::ProfileType,
    },
    pods::namespaces,
};
use tonic::Code;

use super::{ContainerCase, context};

/// An odd config, a script and what it prints.
type ServedCase = (
    &'static str,
    fn(&mut ContainerConfig),
    &'static str,
    &'static str,
);

const INVALID: Code = Code::InvalidArgument;

fn name(config: &mut ContainerConfig, name: &str) {
    config.metadata.as_mut().unwrap().name = name.into();
}

fn image(config: &mut ContainerConfig, image: &str) {
    config.image.as_mut().unwrap().image = image.into();
}

fn mount(config: &mut ContainerConfig, container_path: &str, host_path: &str) {
    config.mounts.push(Mount {
        container_path: container_path.into(),
        host_path: host_path.into(),
        ..Mount::default()
    });
}

fn env(config: &mut ContainerConfig, key: &str, value: &[u8]) {
    config.envs.push(KeyValue {
        key: key.into(),
        value: value.into(),
    });
}

fn user(config: &mut ContainerConfig, value: i64) {
    context(config).run_as_user = Some(Int64Value { value });
}

fn capabilities(config: &mut ContainerConfig, add: &[&str], drop: &[&str], ambient: &[&str]) {
    let list = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    context(config).capabilities = Some(Capability {
        add_capabilities: list(add),
        drop_capabilities: list(drop),
        add_ambient_capabilities: list(ambient),
    });
}

fn localhost(path: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile {
        profile_type: ProfileType::Localhost.into(),
        localhost_ref: path.into(),
    })
}

fn device(config: &mut ContainerConfig, host_path: &str, permissions: &str) {
    config.devices.push(Device {
        container_path: "/dev/mine".into(),
        host_path: host_path.into(),
        permissions: permissions.into(),
    });
}

fn limits(config: &mut ContainerConfig) -> &mut LinuxContainerResources {
    let linux = config.linux.as_mut().unwrap();
    linux.resources.get_or_insert_default()
}

fn hugepages(config: &mut ContainerConfig, page_size: &str) {
    limits(config).hugepage_limits.push(HugepageLimit {
        page_size: page_size.into(),
        limit: 1,
    });
}

pub const CASES: &[ContainerCase] = &[
    ("G4 no metadata", |c| c.metadata = None, INVALID, "metadata"),
    ("G4 no image", |c| c.image = None, INVALID, "image"),
    ("G5 no name", |c| name(c, ""), INVALID, "name"),
    (
        "G5 a name with a slash",
        |c| name(c, "a/b"),
        INVALID,
        "name",
    ),
    ("G5 a name of two dots", |c| name(c, ".."), INVALID, "name"),
    ("G5 a name with NUL", |c| name(c, "a\0"), INVALID, "name"),
    (
        "G5 a name with a newline",
        |c| name(c, "a\nb"),
        INVALID,
        "name",
    ),
    (
        "G5 a name of 10 KiB",
        |c| name(c, &"n".repeat(10 << 10)),
        INVALID,
        "name",
    ),
    (
        "G7 an absolute log path",
        |c| c.log_path = "/etc/passwd".into(),
        INVALID,
        "log_path",
    ),
    (
        "G7 a log path that escapes",
        |c| c.log_path = "../../x.log".into(),
        INVALID,
        "log_path",
    ),
    (
        "G7 a log path that is a directory",
        |c| c.log_path = "a/".into(),
        INVALID,
        "log_path",
    ),
    (
        "G8 a relative source",
        |c| mount(c, "/x", "tmp"),
        INVALID,
        "host_path",
    ),
    (
        "G8 a source with two dots",
        |c| mount(c, "/x", "/tmp/../etc"),
        INVALID,
        "host_path",
    ),
    (
        "G8 a source that is not there",
        |c| mount(c, "/x", "/no/such/place"),
        INVALID,
        "host_path",
    ),
    (
        "G8 a source below a file",
        |c| mount(c, "/x", "/etc/hostname/x"),
        INVALID,
        "host_path",
    ),
    (
        "G8 a source in /proc/self",
        |c| mount(c, "/x", "/proc/self/fd/3"),
        INVALID,
        "host_path",
    ),
    (
        "G8 a source in /proc/thread-self",
        |c| mount(c, "/x", "/proc/thread-self/root"),
        INVALID,
        "host_path",
    ),
    ("G8 no source", |c| mount(c, "/x", ""), INVALID, "host_path"),
    (
        "G9 no target",
        |c| mount(c, "", "/tmp"),
        INVALID,
        "container_path",
    ),
    (
        "G9 a relative target",
        |c| mount(c, "tmp", "/tmp"),
        INVALID,
        "container_path",
    ),
    (
        "G9 a target with two dots",
        |c| mount(c, "/a/../../b", "/tmp"),
        INVALID,
        "container_path",
    ),
    (
        "G9 the root as target",
        |c| mount(c, "/", "/tmp"),
        INVALID,
        "container_path",
    ),
    (
        "G9 /proc as target",
        |c| mount(c, "/proc", "/tmp"),
        INVALID,
        "container_path",
    ),
    (
        "G9 a target in /proc",
        |c| mount(c, "/proc/self/attr", "/tmp"),
        INVALID,
        "container_path",
    ),
    (
        "G10 10000 mounts",
        |c| (0..10_000).for_each(|i| mount(c, &format!("/m{i}"), "/tmp")),
        INVALID,
        "mounts",
    ),
    (
        "G10 4000 mounts of long names",
        |c| {
            let long = format!("/{}", "d".repeat(250)).repeat(10);
            (0..4000).for_each(|i| mount(c, &format!("/m{i}{long}"), "/tmp"));
        },
        INVALID,
        "at most",
    ),
    (
        "G11 a mount that reaches the host without privilege",
        |c| {
            mount(c, "/x", "/tmp");
            c.mounts[0].propagation = MountPropagation::PropagationBidirectional.into();
        },
        INVALID,
        "propagation",
    ),
    (
        "G14 annotations of 2 MiB",
        |c| drop(c.annotations.insert("k".into(), "v".repeat(2 << 20))),
        INVALID,
        "annotations",
    ),
    (
        "G14 a CDI device by annotation that is a path",
        |c| {
            drop(
                c.annotations
                    .insert("cdi.k8s.io/x".into(), "../../etc=passwd".into()),
            )
        },
        INVALID,
        "cdi.k8s.io/x",
    ),
    (
        "G14 a CDI device by annotation that is not there",
        |c| {
            drop(
                c.annotations
                    .insert("cdi.k8s.io/x".into(), "vendor.com/gpu=0".into()),
            )
        },
        INVALID,
        "vendor.com/gpu=0",
    ),
    (
        "G15 an argument with NUL",
        |c| c.command = vec!["a\0b".into()],
        INVALID,
        "command",
    ),
    (
        "G15 a variable with = in its name",
        |c| env(c, "A=B", b"x"),
        INVALID,
        "envs",
    ),
    (
        "G15 a variable without a name",
        |c| env(c, "", b"x"),
        INVALID,
        "envs",
    ),
    (
        "G15 a variable with NUL",
        |c| env(c, "A", b"x\0y"),
        INVALID,
        "envs",
    ),
    (
        "G15 a variable of 200 KB",
        |c| env(c, "A", &[b'x'; 200_000]),
        INVALID,
        "envs",
    ),
    (
        "G15 100001 variables",
        |c| (0..100_001).for_each(|i| env(c, &format!("V{i}"), b"")),
        INVALID,
        "envs",
    ),
    (
        "G15 variables of 6 MB together",
        |c| (0..60_000).for_each(|i| env(c, &format!("V{i}"), &[b'x'; 100])),
        INVALID,
        "envs",
    ),
    (
        "G15 arguments of 6 MB together",
        |c| c.args = vec!["x".repeat(100_000); 60],
        INVALID,
        "args",
    ),
    (
        "G22 a relative working directory",
        |c| c.working_dir = "tmp".into(),
        INVALID,
        "working_dir",
    ),
    (
        "G22 a working directory by a descriptor",
        |c| c.working_dir = "/proc/self/fd/7".into(),
        INVALID,
        "working_dir",
    ),
    ("G16 user -1", |c| user(c, -1), INVALID, "run_as_user"),
    (
        "G16 user 2^31",
        |c| user(c, 1 << 31),
        INVALID,
        "run_as_user",
    ),
    (
        "G16 user 2^32",
        |c| user(c, 1 << 32),
        INVALID,
        "run_as_user",
    ),
    (
        "G16 a group without a user",
        |c| context(c).run_as_group = Some(Int64Value { value: 5 }),
        INVALID,
        "run_as_group",
    ),
    (
        "G16 a user name that is not there",
        |c| context(c).run_as_username = "nobody-here".into(),
        INVALID,
        "nobody-here",
    ),
    (
        "G16 a user name with a colon",
        |c| context(c).run_as_username = "root:0".into(),
        INVALID,
        "run_as_username",
    ),
    (
        "G16 a user name with a newline",
        |c| context(c).run_as_username = "a\nroot".into(),
        INVALID,
        "run_as_username",
    ),
    (
        "G17 an unknown capability",
        |c| capabilities(c, &["FLY"], &[], &[]),
        INVALID,
        "add_capabilities[0]",
    ),
    (
        "G17 a capability with a NUL",
        |c| capabilities(c, &[], &["CHOWN\0"], &[]),
        INVALID,
        "drop_capabilities[0]",
    ),
    (
        "G17 ambient ALL",
        |c| capabilities(c, &[], &[], &["ALL"]),
        INVALID,
        "ambient",
    ),
    (
        "G18 a profile that is a relative path",
        |c| context(c).seccomp = localhost("p.json"),
        INVALID,
        "localhost_ref",
    ),
    (
        "G18 a profile that escapes",
        |c| context(c).seccomp = localhost("/a/../../etc/shadow"),
        INVALID,
        "localhost_ref",
    ),
    (
        "G18 a profile that is not there",
        |c| context(c).seccomp = localhost("/no/such.json"),
        INVALID,
        "/no/such.json",
    ),
    (
        "G18 a profile that never ends",
        |c| context(c).seccomp = localhost("/dev/zero"),
        INVALID,
        "/dev/zero",
    ),
    (
        "G18 an AppArmor profile with a newline",
        |c| context(c).apparmor = localhost("a\nb"),
        INVALID,
        "apparmor",
    ),
    (
        "G19 a SELinux level with a space",
        |c| {
            context(c).selinux_options = Some(SeLinuxOption {
                level: "s0 c1".into(),
                ..SeLinuxOption::default()
            });
        },
        INVALID,
        "selinux_options.level",
    ),
    (
        "G19 a SELinux type that brings a level",
        |c| {
            context(c).selinux_options = Some(SeLinuxOption {
                r#type: "spc_t:s0".into(),
                ..SeLinuxOption::default()
            });
        },
        INVALID,
        "selinux_options.type",
    ),
    (
        "G20 a device with two dots",
        |c| device(c, "/dev/../etc/passwd", "r"),
        INVALID,
        "host_path",
    ),
    (
        "G20 a file that is no device",
        |c| device(c, "/etc/passwd", "r"),
        INVALID,
        "/etc/passwd",
    ),
    (
        "G20 a device that is not there",
        |c| device(c, "/dev/no-such", "r"),
        INVALID,
        "/dev/no-such",
    ),
    (
        "G20 permissions that are none",
        |c| device(c, "/dev/null", "rx"),
        INVALID,
        "permissions",
    ),
    (
        "G20 a device below a file",
        |c| device(c, "/etc/passwd/x", "r"),
        INVALID,
        "/etc/passwd/x",
    ),
    (
        "G21 a negative memory limit",
        |c| limits(c).memory_limit_in_bytes = -7,
        INVALID,
        "memory_limit",
    ),
    (
        "G21 negative shares",
        |c| limits(c).cpu_shares = i64::MIN,
        INVALID,
        "cpu_shares",
    ),
    (
        "G21 a quota of -2",
        |c| limits(c).cpu_quota = -2,
        INVALID,
        "cpu_quota",
    ),
    (
        "G21 a quota below what the kernel takes",
        |c| limits(c).cpu_quota = 1,
        INVALID,
        "cpu_quota",
    ),
    (
        "G21 a period of a year",
        |c| limits(c).cpu_period = i64::MAX,
        INVALID,
        "cpu_period",
    ),
    (
        "G21 processors that are none",
        |c| limits(c).cpuset_cpus = "0-x".into(),
        INVALID,
        "cpuset_cpus",
    ),
    (
        "G21 processors that are not there",
        |c| limits(c).cpuset_cpus = "100000".into(),
        INVALID,
        "cpuset",
    ),
    (
        "G21 a page size that is none",
        |c| hugepages(c, "3MB;rm"),
        INVALID,
        "hugepage_limits[0]",
    ),
    (
        "G21 a page size that is a path",
        |c| hugepages(c, "../../MB"),
        INVALID,
        "hugepage_limits[0]",
    ),
    (
        "G21 a file of the group that escapes",
        |c| {
            drop(
                limits(c)
                    .unified
                    .insert("../cgroup.procs".into(), "1".into()),
            )
        },
        INVALID,
        "unified",
    ),
    (
        "G22 an OOM score of 2000",
        |c| limits(c).oom_score_adj = 2000,
        INVALID,
        "oom_score_adj",
    ),
    (
        "G23 an unknown image",
        |c| image(c, "registry.k8s.io/none:1"),
        Code::NotFound,
        "none:1",
    ),
    (
        "G23 a short digest",
        |c| image(c, "registry.k8s.io/none@sha256:abc"),
        INVALID,
        "digest",
    ),
    (
        "G23 a digest in capitals",
        |c| {
            image(
                c,
                &format!("registry.k8s.io/none@sha256:{}", "A".repeat(64)),
            )
        },
        INVALID,
        "digest",
    ),
    (
        "G23 a digest that is a path",
        |c| image(c, "registry.k8s.io/none@sha256:../../etc"),
        INVALID,
        "image",
    ),
    (
        "G23 an image that is a path",
        |c| image(c, "../../etc/passwd"),
        INVALID,
        "image",
    ),
    (
        "G23 an image of 5 KiB",
        |c| image(c, &"a".repeat(5 << 10)),
        INVALID,
        "image",
    ),
    (
        "G23 letters that look like others",
        |c| image(c, "regіstry.k8s.io/nоne:1"),
        INVALID,
        "image",
    ),
    (
        "G25 a target that is not there",
        |c| {
            context(c).namespace_options = Some(NamespaceOption {
                target_id: "0123456789abcdef".into(),
                ..namespaces(NamespaceMode::Target)
            });
        },
        INVALID,
        "target",
    ),
];

pub const SERVED: &[ServedCase] = &[
    (
        "G4 no linux config",
        |c| c.linux = None,
        "echo runs",
        "runs",
    ),
    (
        "G9 /dev as target",
        |c| mount(c, "/dev", "/tmp"),
        "ls /dev/pts 2>&1 || echo covered",
        "covered",
    ),
    (
        "G9 /sys as target",
        |c| mount(c, "/sys", "/tmp"),
        "ls /sys/kernel 2>&1 || echo covered",
        "covered",
    ),
    (
        "G10 one target twice",
        |c| {
            mount(c, "/x", "/tmp");
            mount(c, "/x", "/etc");
        },
        "ls /x/passwd",
        "/x/passwd",
    ),
    (
        "G15 a variable with a newline",
        |c| env(c, "V", b"one\ntwo=2"),
        "echo \"[$V]\"; echo \"[$two]\"",
        "two=2]\n[]",
    ),
    (
        "G15 10000 variables",
        |c| (0..10_000).for_each(|i| env(c, &format!("V{i}"), b"v")),
        "env | grep -c ^V",
        "10000",
    ),
    (
        "G17 ALL added and dropped",
        |c| capabilities(c, &["ALL"], &["ALL"], &[]),
        "grep CapEff /proc/self/status",
        "CapEff:\t0000000000000000",
    ),
    (
        "G17 small letters",
        |c| capabilities(c, &["net_admin"], &["ALL"], &[]),
        "grep CapEff /proc/self/status",
        "CapEff:\t0000000000001000",
    ),
    (
        "G21 no quota, said twice",
        |c| limits(c).cpu_quota = -1,
        "echo runs",
        "runs",
    ),
    (
        "G21 as much memory as can be said",
        |c| limits(c).memory_limit_in_bytes = i64::MAX,
        "echo runs",
        "runs",
    ),
    (
        "G21 as many shares as can be said",
        |c| limits(c).cpu_shares = i64::MAX,
        "echo runs",
        "runs",
    ),
];
