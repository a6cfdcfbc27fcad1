mod hooks;
mod users;

use std::path::PathBuf;

use crisp_sys::mount::{
    MOUNT_ATTR__ATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_STRICTATIME, MS_PRIVATE, MS_REC, MS_SLAVE,
};
use serde_json::{Value, json};

use super::*;
use crate::cgroup::{DeviceRule, Hierarchy};
use crate::plan::{BindStep, CapabilitySets, FilesystemStep, NamespaceHow, NamespacePlan, Rlimit};

fn host() -> HostFacts {
    HostFacts {
        cgroup: Hierarchy::V2 {
            mount: PathBuf::from("/sys/fs/cgroup"),
        },
        capabilities: 0x1ff_feff_ffff,
        last_capability: 40,
        has_cap_sys_resource: false,
        apparmor: false,
        selinux: false,
    }
}

/// A specification that is planned; cases change one thing of it.
fn base() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "linux": {
            "cgroupsPath": "/pods/c",
            "namespaces": [
                {"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "network"}, {"type": "cgroup"},
            ],
        },
    })
}

/// The base with the value at a JSON pointer replaced, and what lies above it made.
fn with(pointer: &str, value: Value) -> Value {
    let mut spec = base();
    let mut at = &mut spec;
    for part in pointer.split('/').skip(1) {
        if at.is_null() {
            *at = json!({});
        }
        at = &mut at[part];
    }
    *at = value;
    spec
}

fn plan_on(spec: Value, host: &HostFacts, joins: &[(NamespaceKind, FdIndex)]) -> Result<Plan> {
    let spec: Spec = serde_json::from_value(spec).expect("a specification");
    let bundle = "/run/b";
    plan(&SpecInput {
        spec: &spec,
        id: "c1",
        bundle,
        host,
        rootfs: None,
        joins,
        idmaps: &[],
        seccomp: None,
        detached: &[],
    })
}

fn planned(spec: Value) -> Plan {
    plan_on(spec, &host(), &[]).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(pointer: &str, value: Value) -> String {
    let shown = value.to_string();
    match plan_on(with(pointer, value), &host(), &[]) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{pointer} = {shown} was planned"),
    }
}

#[test]
fn what_cannot_be_served_is_refused_by_name() {
    let device = json!([{"path": "/dev/x", "type": "c", "major": -2, "minor": 0}]);
    let mount = |options: &[&str]| json!([{"destination": "/v", "type": "bind", "source": "/s", "options": options}]);
    let table = [
        (
            "/ociVersion",
            json!("2.0"),
            "ociVersion: \"2.0\" is not 1.x",
        ),
        ("/process/args", json!([]), "process.args is absent"),
        (
            "/process/cwd",
            json!("x"),
            "process.cwd: \"x\" is not an absolute path",
        ),
        (
            "/process/env",
            json!(["A=\0"]),
            "process.env: \"A=\\0\" contains NUL",
        ),
        (
            "/process/user/uid",
            json!(u32::MAX),
            "process.user.uid: -1 is no id",
        ),
        (
            "/process/user/umask",
            json!(0o1000),
            "process.user.umask: 1000 is above 777",
        ),
        (
            "/process/oomScoreAdj",
            json!(1001),
            "process.oomScoreAdj: 1001 is not between -1000 and 1000",
        ),
        (
            "/process/apparmorProfile",
            json!("p"),
            "process.apparmorProfile: this host's kernel does not enforce such labels",
        ),
        (
            "/process/selinuxLabel",
            json!("l"),
            "process.selinuxLabel: this host's kernel does not enforce such labels",
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}]),
            "process.rlimits: RLIMIT_NOFILE: soft is above hard",
        ),
        (
            "/process/capabilities",
            json!({"effective": ["CAP_CHOWN"]}),
            "process.capabilities.effective: has more than permitted",
        ),
        (
            "/process/capabilities",
            json!({"permitted": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN"]}),
            "process.capabilities.ambient: has more than permitted and inheritable",
        ),
        (
            "/linux/namespaces",
            json!([]),
            "linux.namespaces without mount is not supported",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "user"}]),
            "linux.namespaces user without a path is not supported",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "mount"}]),
            "linux.namespaces: mnt is there twice",
        ),
        (
            "/linux/uidMappings",
            json!([{"containerID": 0, "hostID": 1, "size": 1}]),
            "linux.uidMappings without a user namespace is not supported",
        ),
        (
            "/linux/rootfsPropagation",
            json!("x"),
            "linux.rootfsPropagation: \"x\" is unknown",
        ),
        (
            "/linux/cgroupsPath",
            json!("/a/../b"),
            "linux.cgroupsPath: \"/a/../b\" contains ..",
        ),
        (
            "/linux/cgroupsPath",
            json!("/"),
            "linux.cgroupsPath: the root group is not a container's",
        ),
        (
            "/linux/cgroupsPath",
            json!("a.slice:b:c"),
            "linux.cgroupsPath in systemd's slice:prefix:name form is not supported",
        ),
        (
            "/linux/maskedPaths",
            json!(["x"]),
            "linux.maskedPaths: \"x\" is not an absolute path",
        ),
        (
            "/linux/devices",
            device,
            "linux.devices: /dev/x: -2 is no device number",
        ),
        (
            "/linux/resources/memory/disableOOMKiller",
            json!(true),
            "linux.resources.memory.disableOOMKiller is not supported",
        ),
        (
            "/linux/resources/network",
            json!({"classID": 1}),
            "linux.resources.network.classID is not supported",
        ),
        (
            "/linux/resources/unified",
            json!({"../x.y": "1"}),
            "linux.resources.unified: \"../x.y\" is no control file",
        ),
        (
            "/linux/resources/devices",
            json!([{"allow": true, "access": "x"}]),
            "linux.resources.devices: 'x' is no access",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            "linux.seccomp: seccomp profile asks for SCMP_ACT_NOTIFY (the default action), which \
             is not supported",
        ),
        (
            "/mounts",
            mount(&["idmap"]),
            "mounts[0].options idmap without mappings is not supported",
        ),
        (
            "/mounts",
            mount(&["remount"]),
            "mounts[0].options remount is not supported",
        ),
        (
            "/mounts",
            mount(&["size=1"]),
            "mounts[0].options: \"size\" is no option of a bind",
        ),
        (
            "/mounts",
            mount(&[""]),
            "mounts[0].options: \"\" is no option",
        ),
        (
            "/mounts",
            json!([{"destination": "/a/..", "type": "tmpfs"}]),
            "mounts[0].destination: the root cannot be mounted over",
        ),
        (
            "/mounts",
            json!([{"destination": "/a"}]),
            "mounts[0].type: neither a type nor a bind",
        ),
        (
            "/mounts",
            json!([{"destination": "/x/../proc/", "type": "tmpfs"}]),
            "mounts[0].type: \"tmpfs\" cannot be /proc",
        ),
        (
            "/mounts",
            json!([{"destination": "/proc/self", "type": "tmpfs"}]),
            "mounts[0].destination: \"/proc/self\" lies below /proc",
        ),
        (
            "/mounts",
            json!([{"destination": "/v", "type": "bind", "source": "s"}]),
            "mounts[0].source: \"s\" is not an absolute path",
        ),
    ];
    for (pointer, value, message) in table {
        assert_eq!(refused(pointer, value), message, "{pointer}");
    }
}

#[test]
fn parameters_must_belong_to_a_namespace_of_the_containers() {
    let table = [
        ("net.ipv4.ip_forward", Some("net/ipv4/ip_forward")),
        (
            "net.ipv4.conf.eth0/100.forwarding",
            Some("net/ipv4/conf/eth0.100/forwarding"),
        ),
        ("kernel/shmmax", Some("kernel/shmmax")),
        ("fs.mqueue.msg_max", Some("fs/mqueue/msg_max")),
        ("kernel.core_pattern", None),
        ("kernel.hostname", None),
        ("net.../kernel/core_pattern", None),
        ("net/../kernel/core_pattern", None),
        ("net", None),
        ("", None),
        ("vm.swappiness", None),
        ("kernel.sem=1+kernel.core_pattern", None),
    ];
    for (name, path) in table {
        let spec = with("/linux/sysctl", json!({name: "1"}));
        let got = plan_on(spec, &host(), &[]).ok().map(|plan| plan.sysctls);
        let want = path.map(|path| vec![(path.to_owned(), "1".to_owned())]);
        assert_eq!(got, want, "{name}");
    }
    let mut spec = with("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}));
    spec["linux"]["namespaces"] = json!([{"type": "mount"}]);
    let error = plan_on(spec, &host(), &[]).unwrap_err().to_string();
    assert!(
        error.ends_with("would change the host, whose net namespace is shared"),
        "{error}"
    );
    let two_lines = refused("/linux/sysctl", json!({"kernel.sem": "1\n2"}));
    assert!(
        two_lines.ends_with("has a value of more than one line"),
        "{two_lines}"
    );
}

#[test]
fn namespaces_are_made_or_joined() {
    let spec = with(
        "/linux/namespaces",
        json!([
            {"type": "mount"}, {"type": "pid", "path": "/proc/7/ns/pid"},
            {"type": "network", "path": "/run/netns/x"}, {"type": "ipc", "path": ""},
        ]),
    );
    let joins = [
        (NamespaceKind::Pid, FdIndex(3)),
        (NamespaceKind::Ipc, FdIndex(3)),
    ];
    let plan = plan_on(spec, &host(), &joins).expect("planned");
    let entry = |kind, how| NamespacePlan { kind, how };
    assert_eq!(
        plan.namespaces,
        [
            entry(NamespaceKind::Mount, NamespaceHow::New),
            entry(NamespaceKind::Pid, NamespaceHow::JoinPidfd(FdIndex(3))),
            entry(
                NamespaceKind::Net,
                NamespaceHow::JoinPath("/run/netns/x".into())
            ),
            entry(NamespaceKind::Ipc, NamespaceHow::New),
        ]
    );
}

#[test]
fn mount_options_are_sorted_out() {
    let words = |list: &[&str]| {
        let list: Vec<_> = list.iter().map(|word| (*word).to_owned()).collect();
        options::Options::parse(&list).expect("fine")
    };
    let got = words(&[
        "nosuid",
        "strictatime",
        "mode=755",
        "size=65536k",
        "newinstance",
        "rro",
    ]);
    assert_eq!(got.set, MOUNT_ATTR_NOSUID | MOUNT_ATTR_STRICTATIME);
    assert_eq!(got.clear, MOUNT_ATTR__ATIME);
    assert_eq!(got.set_recursive, MOUNT_ATTR_RDONLY);
    assert_eq!(
        got.data,
        [
            ("mode".to_owned(), Some("755".to_owned())),
            ("size".to_owned(), Some("65536k".to_owned())),
            ("newinstance".to_owned(), None),
        ]
    );
    let got = words(&["rbind", "rslave", "ro", "noexec", "rw"]);
    assert_eq!((got.set, got.clear), (MOUNT_ATTR_NOEXEC, MOUNT_ATTR_RDONLY));
    assert_eq!(got.propagation, MS_SLAVE | MS_REC);
    assert_eq!(got.bind, Some(options::Bind::Recursive));
    assert_eq!(words(&["relatime"]).set, 0);
    assert_eq!(words(&["nosuid", "suid"]).set, 0);
}

#[test]
fn mounts_become_steps() {
    let spec = with(
        "/mounts",
        json!([
            {"destination": "/dev/", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "mode=755"]},
            {"destination": "/v//x", "type": "bind", "source": "/s",
             "options": ["rbind", "rprivate", "rro"]},
            {"destination": "/y", "source": "/s", "options": ["bind", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro", "nosuid"]},
        ]),
    );
    let steps = planned(spec.clone()).steps;
    let ro = MOUNT_ATTR_RDONLY;
    assert_eq!(
        steps[..4],
        [
            Step::Filesystem(FilesystemStep {
                fstype: "tmpfs".into(),
                source: "tmpfs".into(),
                target: "/dev".into(),
                flags: MOUNT_ATTR_NOSUID,
                options: vec![("mode".into(), Some("755".into()))],
                ..FilesystemStep::default()
            }),
            Step::Bind(BindStep {
                source: "/s".into(),
                target: "/v/x".into(),
                recursive: true,
                attr_set_recursive: ro,
                propagation: MS_PRIVATE | MS_REC,
                ..BindStep::default()
            }),
            Step::Bind(BindStep {
                source: "/s".into(),
                target: "/y".into(),
                attr_set: ro,
                ..BindStep::default()
            }),
            Step::Bind(BindStep {
                source: "/sys/fs/cgroup/pods/c".into(),
                target: "/sys/fs/cgroup".into(),
                attr_set: ro | MOUNT_ATTR_NOSUID,
                propagation: MS_PRIVATE | MS_REC,
                ..BindStep::default()
            }),
        ]
    );
    let mut shared = spec;
    shared["linux"]["namespaces"] = json!([{"type": "mount"}]);
    let whole = planned(shared).steps.remove(3);
    assert!(matches!(whole, Step::Bind(bind) if bind.source == "/sys/fs/cgroup"));
}

#[test]
fn cgroup_v1_is_a_directory_of_the_own_groups() {
    let tree = |name: &str| PathBuf::from(format!("/sys/fs/cgroup/{name}"));
    let controllers = [
        ("cpu", "cpu,cpuacct"),
        ("cpuacct", "cpu,cpuacct"),
        ("name=systemd", "systemd"),
    ];
    let hierarchy = Hierarchy::V1 {
        controllers: controllers
            .map(|(name, dir)| (name.to_owned(), tree(dir)))
            .into(),
        unified: Some(tree("unified")),
    };
    let spec = with(
        "/mounts",
        json!([{"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro"]}]),
    );
    let plan = plan_on(
        spec,
        &HostFacts {
            cgroup: hierarchy,
            ..host()
        },
        &[],
    )
    .expect("planned");
    let shown: Vec<_> = plan.steps[..7]
        .iter()
        .map(|step| match step {
            Step::Filesystem(step) => {
                let flags = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
                assert_eq!(step.flags, flags);
                format!("{} {}", step.fstype, step.target)
            }
            Step::Bind(step) => {
                assert_eq!(step.attr_set, MOUNT_ATTR_RDONLY);
                format!("{} {}", step.source, step.target)
            }
            Step::Symlink { path, target } => format!("{path} -> {target}"),
            Step::Attributes { path, set } => {
                assert_eq!(*set, MOUNT_ATTR_RDONLY);
                format!("ro {path}")
            }
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(
        shown,
        [
            "tmpfs /sys/fs/cgroup",
            "/sys/fs/cgroup/cpu,cpuacct/pods/c /sys/fs/cgroup/cpu,cpuacct",
            "/sys/fs/cgroup/cpu -> cpu,cpuacct",
            "/sys/fs/cgroup/cpuacct -> cpu,cpuacct",
            "/sys/fs/cgroup/systemd/pods/c /sys/fs/cgroup/systemd",
            "/sys/fs/cgroup/unified/pods/c /sys/fs/cgroup/unified",
            "ro /sys/fs/cgroup",
        ]
    );
}

#[test]
fn devices_come_with_defaults_unless_dev_is_the_hosts() {
    let spec = with(
        "/linux/devices",
        json!([
            {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o100_600,
             "uid": 5},
            {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
        ]),
    );
    let paths = |plan: &Plan| -> Vec<String> {
        let nodes = plan.steps.iter().filter_map(|step| match step {
            Step::Device(node) => Some(format!("{} {:o}", node.path, node.mode)),
            Step::Symlink { path, .. } => Some(path.clone()),
            _ => None,
        });
        nodes.collect()
    };
    assert_eq!(
        paths(&planned(spec.clone())),
        [
            "/dev/fuse 20600",
            "/dev/null 20666",
            "/dev/zero 20666",
            "/dev/full 20666",
            "/dev/random 20666",
            "/dev/urandom 20666",
            "/dev/tty 20666",
            "/dev/fd",
            "/dev/stdin",
            "/dev/stdout",
            "/dev/stderr",
            "/dev/ptmx",
        ]
    );
    let mut bound = spec;
    bound["mounts"] =
        json!([{"destination": "/dev", "type": "bind", "source": "/dev", "options": ["rbind"]}]);
    assert!(paths(&planned(bound)).is_empty());
}

#[test]
fn device_rules_end_with_the_default_ones() {
    let rules = planned(base()).cgroup.device_rules;
    assert!(rules.iter().all(|rule| rule.allow) && rules.len() == 11);
    let spec = with(
        "/linux/resources/devices",
        json!([{"allow": false, "access": "rwm"},
               {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}]),
    );
    let rules = planned(spec).cgroup.device_rules;
    assert_eq!(rules.len(), 13);
    assert_eq!(
        rules[0],
        DeviceRule {
            access: DeviceRule::ALL,
            ..DeviceRule::default()
        }
    );
    assert_eq!(rules[1].access, DeviceRule::READ | DeviceRule::WRITE);
    let all = with(
        "/linux/resources/devices",
        json!([{"allow": true, "access": "rwm"}]),
    );
    assert_eq!(planned(all).cgroup.device_rules.len(), 1);
}

#[test]
fn the_process_is_read_whole() {
    let mut spec = base();
    spec["process"] = json!({
        "terminal": true,
        "consoleSize": {"width": 80, "height": 24},
        "args": ["sh", "-c"],
        "env": ["A=b"],
        "cwd": "/w",
        "user": {"uid": 1, "gid": 2, "umask": 0o22, "additionalGids": [3, 4]},
        "noNewPrivileges": true,
        "oomScoreAdj": 986,
        "apparmorProfile": "unconfined",
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
        "capabilities": {
            "bounding": ["CAP_CHOWN", "CAP_SYS_RESOURCE", "CAP_CHECKPOINT_RESTORE"],
            "permitted": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"],
        },
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
        "scheduler": {"policy": "SCHED_BATCH", "nice": 5},
    });
    spec["linux"]["personality"] = json!({"domain": "LINUX32"});
    spec["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}],
    });
    let plan = planned(spec);
    assert!(plan.steps.contains(&Step::Console));
    let process = plan.process;
    assert_eq!(process.args, [b"sh".to_vec(), b"-c".to_vec()]);
    assert_eq!(
        (process.uid, process.gid, process.umask),
        (1, 2, Some(0o22))
    );
    assert_eq!(process.additional_gids, [3, 4]);
    assert_eq!(process.console_size, Some((80, 24)));
    assert_eq!(process.oom_score_adj, Some(986));
    assert_eq!(
        process.rlimits,
        [Rlimit {
            resource: 7,
            soft: 1,
            hard: 2
        }]
    );
    assert_eq!(process.io_priority, Some((2, 4)));
    assert_eq!(process.personality, Some(8));
    assert_eq!(
        process.scheduler.map(|attr| (attr.policy, attr.nice)),
        Some((3, 5))
    );
    assert_eq!(process.apparmor, None);
    // CAP_SYS_RESOURCE is what the host cannot hand on.
    let bounding = 1 | 1 << 40;
    let sets = CapabilitySets {
        bounding,
        effective: 1,
        permitted: 1,
        ..CapabilitySets::default()
    };
    assert_eq!(process.capabilities, sets);
    let seccomp = process.seccomp.expect("compiled");
    assert!(!seccomp.program.is_empty() && seccomp.program.len().is_multiple_of(8));
}

#[test]
fn a_capability_the_kernel_lacks_is_refused() {
    let spec = with(
        "/process/capabilities",
        json!({"bounding": ["CAP_CHECKPOINT_RESTORE"]}),
    );
    let old = HostFacts {
        last_capability: 37,
        ..host()
    };
    let error = plan_on(spec, &old, &[]).unwrap_err().to_string();
    assert_eq!(
        error,
        "process.capabilities.bounding: this kernel has no CAP_CHECKPOINT_RESTORE"
    );
}

#[test]
fn resources_are_read_whole() {
    let spec = with(
        "/linux/resources",
        json!({
            "cpu": {"shares": 512, "quota": 50000, "period": 100_000, "cpus": "0-1", "mems": "",
                    "burst": 3, "idle": 1},
            "memory": {"limit": 1024, "swap": 2048, "reservation": 512, "swappiness": 10,
                       "checkBeforeUpdate": true},
            "pids": {"limit": -1},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "unified": {"memory.oom.group": "1"},
            "blockIO": {"weight": 100,
                        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 9}],
                        "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 7}]},
        }),
    );
    let got = planned(spec).cgroup.resources;
    assert_eq!(
        (got.cpu_shares, got.cpu_quota, got.cpu_period),
        (Some(512), Some(50000), Some(100_000))
    );
    assert_eq!(
        (got.cpuset_cpus.as_deref(), got.cpuset_mems),
        (Some("0-1"), None)
    );
    assert_eq!(
        (got.memory_limit, got.memory_swap, got.pids_limit),
        (Some(1024), Some(2048), Some(-1))
    );
    assert!(got.memory_check_before_update);
    assert_eq!(got.hugepages, [("2MB".to_owned(), 0)]);
    assert_eq!(
        got.unified,
        [("memory.oom.group".to_owned(), "1".to_owned())]
    );
    assert_eq!(got.blkio_throttle.len(), 1);
    assert_eq!(
        (
            got.blkio_throttle[0].read_bps,
            got.blkio_throttle[0].write_iops
        ),
        (Some(9), Some(7))
    );
}

#[test]
fn roots_ids_and_groups() {
    let plan = planned(base());
    assert_eq!(plan.rootfs, RootfsSource::Path("/run/b/rootfs".into()));
    assert_eq!(plan.cgroup.path, "/pods/c");
    assert_eq!(
        planned(with("/linux/cgroupsPath", json!(null))).cgroup.path,
        "/c1"
    );
    let slave = with("/linux/rootfsPropagation", json!("rslave"));
    assert_eq!(planned(slave).rootfs_propagation, MS_SLAVE);
    for bad in ["", ".x", "a/b", "a b", "ä"] {
        assert!(id(bad).is_err(), "{bad:?}");
    }
    id("A-z0.9_+").expect("fine");
}
