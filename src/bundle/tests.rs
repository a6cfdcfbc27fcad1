//! The generator's rules, one by one, and whole specs against golden files.
//!
//! `CRISP_BLESS=1` rewrites the golden files; the difference is then the reviewer's to read.

mod devices;
mod users;

use std::{collections::BTreeMap, fs, path::PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, LinuxSeccomp, Mount, Spec};
use proptest::prelude::*;

use super::*;
use crate::{
    cdi::Edits,
    container::{
        capability::{Capability, CapabilitySet},
        spec::*,
    },
    id::{ContainerId, SandboxId},
    sandbox::spec::*,
};

/// Everything a [`BundleInput`] borrows.
struct Parts {
    id: ContainerId,
    sandbox_id: SandboxId,
    container: ContainerSpec,
    sandbox: SandboxSpec,
    image: ImageDefaults,
    user: ResolvedUser,
    sources: Vec<MountSource>,
    devices: Vec<HostDevice>,
    edits: Edits,
    classes: Classes,
    seccomp: Option<LinuxSeccomp>,
    host: HostFacts,
    paths: BundlePaths,
}

impl Parts {
    /// A pod as kubelet makes them, with one container of busybox.
    fn plain() -> Self {
        Self {
            id: "c".repeat(64).parse().unwrap(),
            sandbox_id: "5".repeat(64).parse().unwrap(),
            container: container(),
            sandbox: sandbox(),
            image: ImageDefaults {
                env: vec!["PATH=/bin".into(), "LANG=C".into()],
                entrypoint: vec!["/entry".into()],
                cmd: vec!["default".into()],
                ..ImageDefaults::default()
            },
            user: ResolvedUser {
                additional_gids: vec![0],
                ..ResolvedUser::default()
            },
            sources: Vec::new(),
            devices: Vec::new(),
            edits: Edits::default(),
            classes: Classes::default(),
            seccomp: None,
            host: HostFacts {
                bounding: CapabilitySet::ALL,
                swap_accounting: true,
                hugepage_sizes: vec!["2MB".into()],
                ..HostFacts::default()
            },
            paths: BundlePaths {
                rootfs: "rootfs".into(),
                hosts: Some("/run/crisp/sandboxes/5/hosts".into()),
                resolv_conf: Some("/run/crisp/sandboxes/5/resolv.conf".into()),
                hostname: Some("/run/crisp/sandboxes/5/hostname".into()),
                shm: Some("/run/crisp/sandboxes/5/shm".into()),
                netns: Some("/run/netns/crisp-5555555555555".into()),
                pause_pid: 4242,
                target_pid: None,
                cgroups_path: "/kubepods/podX/c".into(),
            },
        }
    }

    fn input(&self) -> BundleInput<'_> {
        BundleInput {
            id: &self.id,
            sandbox_id: &self.sandbox_id,
            container: &self.container,
            sandbox: &self.sandbox,
            image_id: "sha256:1234",
            image: &self.image,
            user: &self.user,
            hostname: "pod-host",
            mount_sources: &self.sources,
            devices: &self.devices,
            edits: &self.edits,
            classes: &self.classes,
            seccomp: self.seccomp.clone(),
            host: &self.host,
            paths: &self.paths,
        }
    }

    fn generate(&self) -> Spec {
        generate(&self.input()).unwrap()
    }

    fn mount(&mut self, container_path: &str, host_path: &str) -> &mut MountSpec {
        self.sources.push(MountSource {
            path: host_path.into(),
        });
        self.container.mounts.push(MountSpec {
            container_path: container_path.into(),
            host_path: host_path.into(),
            image: None,
            options: Vec::new(),
            readonly: false,
            recursive_read_only: false,
            selinux_relabel: false,
            propagation: Propagation::Private,
            uid_mappings: Vec::new(),
            gid_mappings: Vec::new(),
        });
        self.container.mounts.last_mut().unwrap()
    }
}

fn sandbox() -> SandboxSpec {
    SandboxSpec {
        metadata: SandboxMetadata {
            name: "web".into(),
            uid: "0b1c".into(),
            namespace: "default".into(),
            attempt: 0,
        },
        hostname: Some("pod-host".into()),
        log_directory: Some("/var/log/pods/default_web_0b1c".into()),
        dns: None,
        port_mappings: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        cgroup_parent: Some("/kubepods/podX".into()),
        security: SandboxSecurity::default(),
        sysctls: BTreeMap::new(),
        overhead: None,
        resources: None,
        runtime_handler: String::new(),
    }
}

fn container() -> ContainerSpec {
    ContainerSpec {
        metadata: ContainerMetadata {
            name: "main".into(),
            attempt: 0,
        },
        image: ImageRequest {
            image: "busybox:1".into(),
            ..ImageRequest::default()
        },
        log_path: Some("main/0.log".into()),
        ..ContainerSpec::default()
    }
}

fn caps(names: &[&str]) -> CapabilitySet {
    names
        .iter()
        .map(|name| Capability::parse(name).unwrap())
        .collect()
}

fn mount_at<'a>(spec: &'a Spec, target: &str) -> Option<&'a Mount> {
    spec.mounts()
        .as_ref()
        .unwrap()
        .iter()
        .find(|m| m.destination().as_os_str() == target)
}

fn options(spec: &Spec, target: &str) -> String {
    mount_at(spec, target)
        .unwrap()
        .options()
        .as_ref()
        .unwrap()
        .join(",")
}

fn targets(spec: &Spec) -> Vec<String> {
    let mounts = spec.mounts().as_ref().unwrap();
    mounts
        .iter()
        .map(|m| m.destination().to_str().unwrap().to_owned())
        .collect()
}

/// The sets of a spec as names without prefix: bounding, effective, permitted, inheritable, ambient.
fn cap_sets(spec: &Spec) -> [Vec<String>; 5] {
    let sets = spec
        .process()
        .as_ref()
        .unwrap()
        .capabilities()
        .clone()
        .unwrap();
    let sets = [
        sets.bounding().clone(),
        sets.effective().clone(),
        sets.permitted().clone(),
        sets.inheritable().clone(),
        sets.ambient().clone(),
    ];
    sets.map(|set| {
        let mut names: Vec<String> = set.unwrap().iter().map(ToString::to_string).collect();
        names.sort();
        names
    })
}

fn golden(name: &str, parts: &Parts) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("src/bundle/goldens")
        .join(name);
    let made = String::from_utf8(to_json(&parts.generate()).unwrap()).unwrap();
    if std::env::var_os("CRISP_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &made).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    for (number, (made, expected)) in made.lines().zip(expected.lines()).enumerate() {
        assert_eq!(made, expected, "{} line {}", path.display(), number + 1);
    }
    assert_eq!(
        made.lines().count(),
        expected.lines().count(),
        "{}",
        path.display()
    );
}

#[test]
fn golden_plain() {
    golden("plain.json", &Parts::plain());
}

#[test]
fn golden_privileged_with_host_namespaces() {
    let mut parts = Parts::plain();
    parts.container.security.privileged = true;
    parts.container.security.namespaces.pid = PidMode::Node;
    let namespaces = &mut parts.sandbox.security.namespaces;
    namespaces.network = NetworkMode::Node;
    namespaces.ipc = IpcMode::Node;
    namespaces.pid = PidMode::Node;
    parts.paths.netns = None;
    parts.paths.shm = Some("/dev/shm".into());
    parts.host.devices = vec![HostDevice {
        path: "/dev/sda".into(),
        kind: DeviceKind::Block,
        major: 8,
        minor: 0,
        mode: 0o660,
        uid: 0,
        gid: 6,
        permissions: "rwm".into(),
    }];
    parts.mount("/host", "/").propagation = Propagation::Bidirectional;
    golden("privileged.json", &parts);
}

#[test]
fn golden_everything_asked_for() {
    let mut parts = Parts::plain();
    parts.container.command = vec!["sh".into(), "-c".into()];
    parts.container.args = vec!["id".into()];
    parts.container.working_dir = Some("/work".into());
    parts.container.tty = true;
    parts.container.envs = vec![
        EnvVar {
            name: "LANG".into(),
            value: b"de".to_vec(),
        },
        EnvVar {
            name: "RAW".into(),
            value: b"\xff\x01".to_vec(),
        },
    ];
    parts.container.annotations =
        BTreeMap::from([("io.kubernetes.container.hash".into(), "abcd".into())]);
    parts.user = ResolvedUser {
        uid: 1000,
        gid: 1000,
        additional_gids: vec![1000, 1234],
        home: Some("/home/app".into()),
    };
    let security = &mut parts.container.security;
    security.capabilities.drop_all = true;
    security.capabilities.add = caps(&["NET_BIND_SERVICE"]);
    security.namespaces.pid = PidMode::Container;
    security.readonly_rootfs = true;
    security.no_new_privs = true;
    security.masked_paths = vec!["/proc/kcore".into()];
    security.readonly_paths = vec!["/proc/sys".into()];
    security.seccomp = Some(SecurityProfile::RuntimeDefault);
    parts.seccomp = Some(LinuxSeccomp::default());
    parts.container.resources = Resources {
        cpu_period: Some(100_000),
        cpu_quota: Some(50_000),
        cpu_shares: Some(512),
        memory_limit: Some(64 << 20),
        memory_swap_limit: None,
        oom_score_adj: 986,
        cpuset_cpus: Some("0-1".into()),
        cpuset_mems: Some("0".into()),
        hugepage_limits: vec![HugepageLimit {
            page_size: "2MB".into(),
            limit: 0,
        }],
        unified: BTreeMap::from([("memory.oom.group".into(), "1".into())]),
    };
    parts.host.cgroup_v2 = true;
    parts.mount("/data/deep", "/srv/deep").propagation = Propagation::HostToContainer;
    let rro = parts.mount("/data", "/srv/data");
    (rro.readonly, rro.recursive_read_only) = (true, true);
    parts.devices = vec![HostDevice {
        path: "/dev/fuse".into(),
        kind: DeviceKind::Char,
        major: 10,
        minor: 229,
        mode: 0o666,
        uid: 0,
        gid: 0,
        permissions: "rw".into(),
    }];
    golden("everything.json", &parts);
}

#[test]
fn arguments_follow_kubernetes_table() {
    for (command, args, expected) in [
        (vec![], vec![], vec!["/entry", "default"]),
        (vec![], vec!["x"], vec!["/entry", "x"]),
        (vec!["sh"], vec![], vec!["sh"]),
        (vec!["sh"], vec!["x"], vec!["sh", "x"]),
    ] {
        let mut parts = Parts::plain();
        parts.container.command = command.iter().map(ToString::to_string).collect();
        parts.container.args = args.iter().map(ToString::to_string).collect();
        let spec = parts.generate();
        assert_eq!(
            spec.process().as_ref().unwrap().args().as_ref().unwrap(),
            &expected
        );
    }
}

#[test]
fn no_command_anywhere_names_the_image() {
    let mut parts = Parts::plain();
    parts.image = ImageDefaults::default();
    let error = generate(&parts.input()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("busybox:1"), "{error}");
    parts.image.cmd = vec![String::new()];
    assert!(matches!(
        generate(&parts.input()),
        Err(BundleError::NoCommand { .. })
    ));
    parts.image.cmd = vec!["a\0b".into()];
    assert!(matches!(
        generate(&parts.input()),
        Err(BundleError::ImageCommand { .. })
    ));
}

#[test]
fn the_environment_is_ours_then_the_images_then_the_requests() {
    let mut parts = Parts::plain();
    parts.container.tty = true;
    parts.image.env = vec![
        "LANG=C".into(),
        "no-name".into(),
        "=x".into(),
        "NUL=a\0b".into(),
        "EMPTY=".into(),
        "EQ=a=b".into(),
    ];
    parts.container.envs = vec![
        EnvVar {
            name: "HOSTNAME".into(),
            value: b"mine".to_vec(),
        },
        EnvVar {
            name: "RAW".into(),
            value: vec![0xff],
        },
    ];
    let env = environment(&parts.input());
    let expected: Vec<&[u8]> = vec![
        b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        b"HOSTNAME=mine",
        b"TERM=xterm",
        b"LANG=C",
        b"EMPTY=",
        b"EQ=a=b",
        b"RAW=\xff",
        b"HOME=/",
    ];
    assert_eq!(env, expected);
}

#[test]
fn the_working_directory_never_leads_through_descriptors() {
    let mut parts = Parts::plain();
    for (written, cwd) in [
        ("", "/"),
        ("app", "/app"),
        ("/a/../../b/.", "/b"),
        ("/proc", "/proc"),
    ] {
        parts.image.working_dir = written.into();
        assert_eq!(
            parts
                .generate()
                .process()
                .as_ref()
                .unwrap()
                .cwd()
                .as_os_str(),
            cwd
        );
    }
    for written in [
        "/proc/self/fd/7",
        "/proc/1/cwd",
        "proc/thread-self/fd",
        "/x/../proc/self/root/etc",
    ] {
        parts.image.working_dir = written.into();
        assert!(
            matches!(
                generate(&parts.input()),
                Err(BundleError::WorkingDir { .. })
            ),
            "{written}"
        );
    }
}

#[test]
fn capabilities_follow_drop_all_then_add_all_then_names() {
    let plain = Parts::plain().generate();
    let [bounding, effective, permitted, inheritable, ambient] = cap_sets(&plain);
    assert_eq!(bounding.len(), 14);
    assert_eq!((&bounding, &bounding), (&effective, &permitted));
    assert_eq!((inheritable.len(), ambient.len()), (0, 0));
    let bounding = |change: CapabilityChange| {
        let mut parts = Parts::plain();
        parts.container.security.capabilities = change;
        cap_sets(&parts.generate())[0].clone()
    };
    let none = CapabilityChange::default();
    assert_eq!(
        bounding(CapabilityChange {
            drop_all: true,
            ..none
        }),
        [""; 0]
    );
    assert_eq!(
        bounding(CapabilityChange {
            add_all: true,
            ..none
        })
        .len(),
        41
    );
    let both = CapabilityChange {
        add_all: true,
        drop_all: true,
        add: caps(&["KILL"]),
        ..none
    };
    assert_eq!(bounding(both), ["KILL"]);
    let dropped = bounding(CapabilityChange {
        drop: caps(&["NET_RAW"]),
        ..none
    });
    assert_eq!(dropped.len(), 13);
    let all_but = CapabilityChange {
        add_all: true,
        drop: caps(&["SYS_ADMIN"]),
        ..none
    };
    assert_eq!(bounding(all_but).len(), 40);
}

#[test]
fn ambient_capabilities_alone_are_inheritable_and_dropping_wins() {
    let mut parts = Parts::plain();
    parts.container.security.capabilities.ambient = caps(&["NET_ADMIN", "SYS_TIME"]);
    parts.container.security.capabilities.drop = caps(&["SYS_TIME"]);
    let [bounding, _, permitted, inheritable, ambient] = cap_sets(&parts.generate());
    assert_eq!(
        (inheritable, ambient),
        (vec!["NET_ADMIN".to_owned()], vec!["NET_ADMIN".to_owned()])
    );
    assert!(permitted.contains(&"NET_ADMIN".to_owned()) && bounding.len() == 15);
}

#[test]
fn nothing_is_given_that_the_daemon_may_not_give() {
    let mut parts = Parts::plain();
    parts.container.security.privileged = true;
    parts.host.bounding = CapabilitySet::ALL.difference(caps(&["SYS_RESOURCE"]));
    parts.host.oom_score_adj_floor = Some(-5);
    parts.container.resources.oom_score_adj = -997;
    let spec = parts.generate();
    assert!(!cap_sets(&spec)[0].contains(&"SYS_RESOURCE".to_owned()));
    assert_eq!(spec.process().as_ref().unwrap().oom_score_adj(), Some(-5));
    parts.container.resources.oom_score_adj = 7;
    assert_eq!(
        parts.generate().process().as_ref().unwrap().oom_score_adj(),
        Some(7)
    );
}

#[test]
fn paths_given_alone_are_exactly_those() {
    let hidden = |parts: &Parts| {
        let spec = parts.generate();
        let linux = spec.linux().as_ref().unwrap();
        (
            linux.masked_paths().clone().unwrap(),
            linux.readonly_paths().clone().unwrap(),
        )
    };
    let mut parts = Parts::plain();
    let (masked, readonly) = hidden(&parts);
    assert!(masked.contains(&"/proc/kcore".into()) && readonly.contains(&"/proc/sys".into()));
    parts.container.security.masked_paths = vec!["/bin/ls".into()];
    assert_eq!(hidden(&parts), (vec!["/bin/ls".into()], vec![]));
    parts.container.security.masked_paths = vec![];
    parts.container.security.readonly_paths = vec!["/tmp".into()];
    assert_eq!(hidden(&parts), (vec![], vec!["/tmp".into()]));
    parts.container.security.privileged = true;
    assert_eq!(hidden(&parts), (vec![], vec![]));
}

#[test]
fn seccomp_is_what_was_asked_and_must_have_been_loaded() {
    let wanted = |asked: Option<SecurityProfile>, privileged| {
        let mut spec = container();
        spec.security.seccomp = asked;
        spec.security.privileged = privileged;
        seccomp_wanted(&spec)
    };
    let local = || Some(SecurityProfile::Localhost("/p.json".into()));
    assert_eq!(wanted(None, false), SeccompWanted::None);
    assert_eq!(
        wanted(Some(SecurityProfile::Unconfined), false),
        SeccompWanted::None
    );
    let default = Some(SecurityProfile::RuntimeDefault);
    assert_eq!(
        wanted(default.clone(), false),
        SeccompWanted::RuntimeDefault
    );
    assert_eq!(
        wanted(local(), false),
        SeccompWanted::Localhost("/p.json".into())
    );
    assert_eq!(wanted(local(), true), SeccompWanted::None);
    let mut parts = Parts::plain();
    parts.container.security.seccomp = default;
    let missing = generate(&parts.input());
    assert!(
        matches!(missing, Err(BundleError::SeccompNotLoaded { .. })),
        "{missing:?}"
    );
}

#[test]
fn pid_namespaces_follow_the_modes() {
    let pid = |sandbox: PidMode, container: PidMode| {
        let mut parts = Parts::plain();
        parts.sandbox.security.namespaces.pid = sandbox;
        parts.container.security.namespaces.pid = container;
        parts.paths.target_pid = Some(77);
        let spec = parts.generate();
        let list = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
        list.into_iter()
            .find(|n| n.typ() == LinuxNamespaceType::Pid)
            .map(|n| n.path().clone().map(|p| p.to_str().unwrap().to_owned()))
    };
    let target = || PidMode::Target("abc".into());
    let pause = Some(Some("/proc/4242/ns/pid".to_owned()));
    assert_eq!(pid(PidMode::Pod, PidMode::Pod), pause);
    assert_eq!(pid(PidMode::Pod, PidMode::Container), Some(None));
    assert_eq!(pid(PidMode::Pod, PidMode::Node), None);
    assert_eq!(
        pid(PidMode::Pod, target()),
        Some(Some("/proc/77/ns/pid".to_owned()))
    );
    assert_eq!(pid(PidMode::Container, PidMode::Pod), Some(None));
    assert_eq!(pid(PidMode::Node, PidMode::Pod), None);
    let mut parts = Parts::plain();
    parts.container.security.namespaces.pid = target();
    assert!(matches!(
        generate(&parts.input()),
        Err(BundleError::TargetNotResolved)
    ));
}

#[test]
fn volumes_come_by_depth_and_hide_the_standard_mounts_they_cover() {
    let mut parts = Parts::plain();
    parts.mount("/a/b", "/1");
    parts.mount("/dev", "/dev");
    parts.mount("/a", "/2");
    parts.mount("/etc/hosts", "/kubelet/hosts");
    parts.mount("/sys", "/sys");
    let spec = parts.generate();
    assert_eq!(
        targets(&spec),
        [
            "/proc",
            "/dev",
            "/a",
            "/sys",
            "/etc/hostname",
            "/etc/resolv.conf",
            "/dev/shm",
            "/a/b",
            "/etc/hosts",
        ]
    );
    assert_eq!(
        mount_at(&spec, "/dev").unwrap().typ().as_deref(),
        Some("bind")
    );
    let hosts = mount_at(&spec, "/etc/hosts")
        .unwrap()
        .source()
        .clone()
        .unwrap();
    assert_eq!(hosts.as_os_str(), "/kubelet/hosts");
}

#[test]
fn files_of_the_sandbox_do_not_travel_to_the_host() {
    let mut parts = Parts::plain();
    parts.mount("/etc", "/srv/etc");
    assert!(mount_at(&parts.generate(), "/etc/hosts").is_some());
    parts.container.mounts[0].propagation = Propagation::Bidirectional;
    let spec = parts.generate();
    assert!(mount_at(&spec, "/etc/hosts").is_none());
    assert!(mount_at(&spec, "/dev/shm").is_some());
}

#[test]
fn volumes_say_how_they_are_mounted() {
    let mut parts = Parts::plain();
    let propagation = |spec: &Spec| spec.linux().as_ref().unwrap().rootfs_propagation().clone();
    parts.mount("/rw", "/rw");
    parts.mount("/ro", "/ro").readonly = true;
    let rro = parts.mount("/rro", "/rro");
    (rro.readonly, rro.recursive_read_only) = (true, true);
    assert_eq!(propagation(&parts.generate()), None);
    parts.mount("/slave", "/s").propagation = Propagation::HostToContainer;
    assert_eq!(propagation(&parts.generate()).as_deref(), Some("rslave"));
    parts.mount("/shared", "/s").propagation = Propagation::Bidirectional;
    let spec = parts.generate();
    assert_eq!(propagation(&spec).as_deref(), Some("rshared"));
    for (target, expected) in [
        ("/rw", "rbind,rprivate,rw"),
        ("/ro", "rbind,rprivate,ro"),
        ("/rro", "rbind,rprivate,rro"),
        ("/slave", "rbind,rslave,rw"),
        ("/shared", "rbind,rshared,rw"),
    ] {
        assert_eq!(options(&spec, target), expected);
    }
    parts.sources.pop();
    assert!(matches!(
        generate(&parts.input()),
        Err(BundleError::MountSources { .. })
    ));
}

#[test]
fn without_shared_memory_of_the_pod_a_container_has_its_own() {
    let mut parts = Parts::plain();
    parts.paths.shm = None;
    assert_eq!(
        mount_at(&parts.generate(), "/dev/shm")
            .unwrap()
            .typ()
            .as_deref(),
        Some("tmpfs")
    );
}

#[test]
fn limits_that_the_host_cannot_keep_are_refused_or_left_out_as_kubelet_expects() {
    let host = Parts::plain().host;
    let limit = |size: &str| Resources {
        hugepage_limits: vec![HugepageLimit {
            page_size: size.into(),
            limit: 1,
        }],
        ..Resources::default()
    };
    let wrong = linux_resources(&limit("1GB"), &host);
    assert!(
        matches!(wrong, Err(BundleError::HugepageSize { .. })),
        "{wrong:?}"
    );
    let none = HostFacts {
        hugepage_sizes: vec![],
        ..host.clone()
    };
    assert!(
        linux_resources(&limit("1GB"), &none)
            .unwrap()
            .hugepage_limits()
            .is_none()
    );
    let unified = Resources {
        unified: BTreeMap::from([("memory.high".into(), "1".into())]),
        ..Resources::default()
    };
    let error = linux_resources(&unified, &host).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn a_memory_limit_alone_forbids_swap() {
    let swap = |asked, accounting| {
        let host = HostFacts {
            swap_accounting: accounting,
            ..HostFacts::default()
        };
        let asked = Resources {
            memory_limit: Some(100),
            memory_swap_limit: asked,
            ..Resources::default()
        };
        linux_resources(&asked, &host)
            .unwrap()
            .memory()
            .unwrap()
            .swap()
    };
    assert_eq!(swap(None, true), Some(100));
    assert_eq!(swap(Some(300), true), Some(300));
    assert_eq!(swap(Some(-1), true), Some(-1));
    assert_eq!(swap(Some(300), false), None);
}

#[test]
fn annotations_of_clients_reach_no_knob() {
    let mut parts = Parts::plain();
    for key in [
        "run.oci.handler",
        "org.systemd.property.ExecStart",
        "org.criu.config",
        "io.katacontainers.config.hypervisor.path",
        "cdi.k8s.io/x",
        "io.kubernetes.cri.sandbox-id",
        "io.kubernetes.container.hash",
    ] {
        parts
            .container
            .annotations
            .insert(key.into(), "hostile".into());
    }
    let spec = parts.generate();
    let annotations = spec.annotations().clone().unwrap();
    let hostile: Vec<_> = annotations
        .iter()
        .filter(|(_, value)| *value == "hostile")
        .collect();
    assert_eq!(hostile.len(), 1, "{hostile:?}");
    assert_eq!(annotations["io.kubernetes.cri.sandbox-id"], "5".repeat(64));
}

#[test]
fn stop_signals_come_from_the_request_then_the_image() {
    let image = |text: &str| ImageDefaults {
        stop_signal: Some(text.into()),
        ..ImageDefaults::default()
    };
    assert_eq!(image("SIGINT").stop_signal(None).number(), 2);
    assert_eq!(image("SIGINT").stop_signal(Signal::new(3)).number(), 3);
    assert_eq!(image("nonsense").stop_signal(None), Signal::TERM);
    assert_eq!(ImageDefaults::default().stop_signal(None), Signal::TERM);
}

proptest! {
    /// Whatever an image or a client says: no panic, every mount target absolute and normalised,
    /// nothing inheritable, a program to run.
    #[test]
    fn specs_are_always_sound(
        targets in proptest::collection::vec("(/\\.)?/{1,2}([a-c]|dev|etc|proc)(/(\\.|[a-c]|hosts|shm)){0,3}/?", 0..6),
        words in proptest::collection::vec(any::<String>(), 0..4),
        env in proptest::collection::vec(any::<String>(), 0..6),
        working_dir in any::<String>(),
        privileged in any::<bool>(),
        add in any::<u64>(),
        drop in any::<u64>(),
        add_all in any::<bool>(),
        readonly in any::<bool>(),
    ) {
        let mut parts = Parts::plain();
        for target in &targets {
            parts.mount(target, "/x").readonly = readonly;
        }
        parts.image.cmd = words;
        parts.image.entrypoint = Vec::new();
        parts.image.env = env;
        parts.image.working_dir = working_dir;
        let security = &mut parts.container.security;
        security.privileged = privileged;
        security.capabilities.add = CapabilitySet::from_mask(add);
        security.capabilities.drop = CapabilitySet::from_mask(drop);
        security.capabilities.add_all = add_all;
        if let Ok(spec) = generate(&parts.input()) {
            for mount in spec.mounts().as_ref().unwrap() {
                let path = mount.destination().to_str().unwrap();
                prop_assert!(path.starts_with('/') && path != "/", "{path}");
                prop_assert!(!path.contains("//") && !path.ends_with('/'), "{path}");
                prop_assert!(path.split('/').all(|part| part != "." && part != ".."), "{path}");
            }
            prop_assert!(cap_sets(&spec)[3].is_empty());
            let process = spec.process().as_ref().unwrap();
            prop_assert!(!process.args().as_ref().unwrap()[0].is_empty());
            prop_assert!(process.cwd().is_absolute());
            let names: Vec<_> = process.env().as_ref().unwrap().iter()
                .map(|line| line.split_once('=').unwrap().0).collect();
            let unique: std::collections::BTreeSet<_> = names.iter().collect();
            prop_assert_eq!(names.len(), unique.len());
            to_json(&spec).unwrap();
        }
    }
}
