//! An ordinary container, as an engine would make it: what the rings around the runtime and around
//! the monitor share.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crisp_oci::cgroup::{DeviceKind, DeviceRule, Hierarchy};
use crisp_oci::plan::{
    CapabilitySets, DeviceStep, FilesystemStep, NamespaceHow, NamespaceKind, NamespacePlan,
    ProcessPlan, Step,
};
use crisp_sys::mount::{self, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID};

/// Longest time anything may take on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The capabilities container engines give by default.
pub const DEFAULT_CAPS: u64 = 0xa804_25fb;

/// Waits until `done`, failing after [`PATIENCE`].
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Where the trees of a hierarchy are mounted.
pub fn trees(hierarchy: &Hierarchy) -> Vec<PathBuf> {
    match hierarchy {
        Hierarchy::V2 { mount } => vec![mount.clone()],
        Hierarchy::V1 {
            controllers,
            unified,
        } => controllers
            .iter()
            .map(|(_, mount)| mount)
            .chain(unified)
            .cloned()
            .collect(),
    }
}

/// An overlay over `rootfs` in a directory, attached nowhere; what is written lies beside it.
pub fn overlay(dir: &Path) -> OwnedFd {
    let sub = |name: &str| {
        let path = dir.join(name);
        fs::create_dir_all(&path).expect("mkdir");
        path
    };
    let fs = mount::fsopen("overlay").expect("fsopen");
    mount::fsconfig_set_string(fs.as_fd(), "lowerdir", &sub("rootfs")).expect("lowerdir");
    mount::fsconfig_set_string(fs.as_fd(), "upperdir", &sub("upper")).expect("upperdir");
    mount::fsconfig_set_string(fs.as_fd(), "workdir", &sub("work")).expect("workdir");
    mount::fsconfig_create(fs.as_fd()).expect("create");
    mount::fsmount(fs.as_fd(), 0).expect("fsmount")
}

/// Namespaces of its own, all but the user's.
pub fn namespaces() -> Vec<NamespacePlan> {
    let kinds = [
        NamespaceKind::Pid,
        NamespaceKind::Net,
        NamespaceKind::Ipc,
        NamespaceKind::Uts,
        NamespaceKind::Mount,
        NamespaceKind::Cgroup,
    ];
    let new = |kind| NamespacePlan {
        kind,
        how: NamespaceHow::New,
    };
    kinds.map(new).into()
}

/// A process that runs as root with the default capabilities.
pub fn process(args: &[&str]) -> ProcessPlan {
    let caps = DEFAULT_CAPS;
    ProcessPlan {
        args: args.iter().map(|arg| arg.as_bytes().to_vec()).collect(),
        env: vec![b"PATH=/bin".to_vec()],
        cwd: "/".into(),
        capabilities: CapabilitySets {
            bounding: caps,
            effective: caps,
            permitted: caps,
            ..CapabilitySets::default()
        },
        no_new_privileges: true,
        ..ProcessPlan::default()
    }
}

fn filesystem(fstype: &str, target: &str, flags: u64, options: &[(&str, &str)]) -> Step {
    let option = |(key, value): &(&str, &str)| {
        let value = (!value.is_empty()).then(|| (*value).to_owned());
        ((*key).to_owned(), value)
    };
    Step::Filesystem(FilesystemStep {
        fstype: fstype.into(),
        source: fstype.into(),
        target: target.into(),
        flags,
        options: options.iter().map(option).collect(),
        ..FilesystemStep::default()
    })
}

/// The mounts, devices and hidden paths of an ordinary container.
pub fn steps() -> Vec<Step> {
    let safe = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NODEV;
    let ro = mount::MOUNT_ATTR_RDONLY;
    let mut steps = vec![
        filesystem("proc", "/proc", safe, &[]),
        filesystem(
            "tmpfs",
            "/dev",
            MOUNT_ATTR_NOSUID,
            &[("mode", "755"), ("size", "64k")],
        ),
        filesystem(
            "devpts",
            "/dev/pts",
            MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC,
            &[
                ("newinstance", ""),
                ("ptmxmode", "0666"),
                ("mode", "0620"),
                ("gid", "5"),
            ],
        ),
        filesystem("mqueue", "/dev/mqueue", safe, &[]),
        filesystem("sysfs", "/sys", safe | ro, &[]),
    ];
    for (path, major, minor) in [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ] {
        steps.push(Step::Device(DeviceStep {
            path: format!("/dev/{path}"),
            mode: 0o020_666,
            major,
            minor,
            uid: 0,
            gid: 0,
        }));
    }
    for (path, target) in [
        ("fd", "/proc/self/fd"),
        ("stdout", "/proc/self/fd/1"),
        ("ptmx", "pts/ptmx"),
    ] {
        steps.push(Step::Symlink {
            path: format!("/dev/{path}"),
            target: target.into(),
        });
    }
    for path in [
        "/proc/kcore",
        "/proc/keys",
        "/proc/acpi",
        "/proc/timer_list",
        "/sys/firmware",
    ] {
        steps.push(Step::Mask { path: path.into() });
    }
    for path in [
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger",
    ] {
        steps.push(Step::ReadOnly { path: path.into() });
    }
    steps
}

/// The device policy of an ordinary container.
pub fn device_rules() -> Vec<DeviceRule> {
    let rule = |major, minor: Option<u32>| DeviceRule {
        allow: true,
        kind: DeviceKind::Char,
        major: Some(major),
        minor,
        access: DeviceRule::ALL,
    };
    let mknod = |kind| DeviceRule {
        allow: true,
        kind,
        access: DeviceRule::MKNOD,
        ..DeviceRule::default()
    };
    let mut rules = vec![
        mknod(DeviceKind::Char),
        mknod(DeviceKind::Block),
        rule(136, None),
    ];
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)] {
        rules.push(rule(major, Some(minor)));
    }
    rules
}
