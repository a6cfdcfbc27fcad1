//! A machine to run containers on: a root filesystem, a plan for it, and what it takes to run it.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crisp_oci::apply::{self, CreateError, Created, IoPlan, JoinedNamespaces, StartError, Stdio};
use crisp_oci::cgroup::{Cgroup, DeviceKind, DeviceRule, Hierarchy, Resources};
use crisp_oci::plan::{
    BindStep, CapabilitySets, CgroupPlan, DeviceStep, FdIndex, FilesystemStep, NamespaceHow,
    NamespaceKind, NamespacePlan, Plan, ProcessPlan, RootfsSource, Step,
};
use crisp_sys::clone::SingleThreaded;
use crisp_sys::mount::{self, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID};
use crisp_sys::pidfd::{self, WaitStatus};

/// Where the cases' cgroups are.
pub const GROUP: &str = "/crisp-oci-test";

/// The capabilities container engines give by default.
pub const DEFAULT_CAPS: u64 = 0xa804_25fb;

/// A temporary directory with a root filesystem in it.
pub struct Machine {
    pub dir: tempfile::TempDir,
    pub token: SingleThreaded,
    name: String,
    hierarchy: Hierarchy,
}

pub fn machine() -> Machine {
    let dir = tempfile::Builder::new()
        .prefix("crisp-oci-test-")
        .tempdir()
        .expect("tempdir");
    let root = dir.path().join("rootfs");
    for sub in [
        "bin", "dev", "proc", "sys", "etc", "tmp", "run", "root", "home",
    ] {
        fs::create_dir_all(root.join(sub)).expect("mkdir");
    }
    fs::set_permissions(
        root.join("tmp"),
        std::os::unix::fs::PermissionsExt::from_mode(0o1777),
    )
    .expect("chmod");
    fs::set_permissions(
        dir.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .expect("chmod");
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("a static /bin/busybox");
    for applet in [
        "sh", "cat", "ls", "id", "mount", "sleep", "true", "mknod", "stat", "tty",
    ] {
        symlink("busybox", root.join("bin").join(applet)).expect("symlink");
    }
    let token = SingleThreaded::check().expect("a case runs in a single-threaded process");
    let name = dir
        .path()
        .file_name()
        .expect("named")
        .to_string_lossy()
        .into_owned();
    Machine {
        dir,
        token,
        name,
        hierarchy: Hierarchy::probe().expect("cgroups"),
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A case may have mounted on it, which would keep the directory from being removed.
        while mount::umount2(&self.dir.path().join("volume"), mount::MNT_DETACH).is_ok() {}
        let _ = mount::umount2(&self.dir.path().join("volume/sub"), mount::MNT_DETACH);
    }
}

impl Machine {
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    /// A name no other case has.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// An overlay over the root filesystem, attached nowhere.
    pub fn overlay(&self) -> OwnedFd {
        let sub = |name: &str| {
            let path = self.dir.path().join(name);
            fs::create_dir_all(&path).expect("mkdir");
            path
        };
        let fs = mount::fsopen("overlay").expect("fsopen");
        mount::fsconfig_set_string(fs.as_fd(), "lowerdir", &self.root()).expect("lowerdir");
        mount::fsconfig_set_string(fs.as_fd(), "upperdir", &sub("upper")).expect("upperdir");
        mount::fsconfig_set_string(fs.as_fd(), "workdir", &sub("work")).expect("workdir");
        mount::fsconfig_create(fs.as_fd()).expect("create");
        mount::fsmount(fs.as_fd(), 0).expect("fsmount")
    }

    /// A container as an engine would make it that runs `script` in a shell as root.
    pub fn plan(&self, script: &str) -> Plan {
        let new = |kind| NamespacePlan {
            kind,
            how: NamespaceHow::New,
        };
        Plan {
            id: self.name.clone(),
            bundle: self.dir.path().display().to_string(),
            rootfs: RootfsSource::DetachedMount(FdIndex(0)),
            namespaces: [
                NamespaceKind::Pid,
                NamespaceKind::Net,
                NamespaceKind::Ipc,
                NamespaceKind::Uts,
                NamespaceKind::Mount,
                NamespaceKind::Cgroup,
            ]
            .map(new)
            .into(),
            hostname: Some("inside".into()),
            steps: steps(),
            process: process(&["sh", "-c", script]),
            cgroup: CgroupPlan {
                hierarchy: self.hierarchy.clone(),
                path: format!("{GROUP}/{}", self.name),
                resources: Resources::default(),
                device_rules: device_rules(),
            },
            ..Plan::default()
        }
    }

    pub fn create_with(
        &self,
        plan: &Plan,
        fds: &[OwnedFd],
        io: IoPlan,
    ) -> Result<Created, CreateError> {
        apply::create(&self.token, plan, fds, io)
    }

    /// Creates with pipes: the container, and what reads its output.
    pub fn create(&self, plan: &Plan) -> Result<(Created, File), CreateError> {
        let (reader, io) = pipes();
        let fds = match plan.rootfs {
            RootfsSource::DetachedMount(_) => vec![self.overlay()],
            RootfsSource::Path(_) => vec![],
        };
        Ok((self.create_with(plan, &fds, io)?, reader))
    }

    /// Runs a plan to its end: its output and how it ended.
    pub fn run(&self, plan: &Plan) -> Ended {
        let (created, mut output) = self
            .create(plan)
            .unwrap_or_else(|error| panic!("{error:?}"));
        let Created {
            pidfd,
            gate,
            cgroup,
            ..
        } = created;
        let started = gate.open();
        let mut text = String::new();
        output.read_to_string(&mut text).expect("output");
        let status = pidfd::wait(pidfd.as_fd()).expect("wait");
        remove(&cgroup);
        Ended {
            text,
            status,
            started,
        }
    }

    /// Output of a container running `script` as root.
    pub fn output(&self, script: &str) -> String {
        self.run(&self.plan(script)).text
    }

    /// Whether nothing of this case's groups is left.
    pub fn groups_left(&self) -> Vec<PathBuf> {
        group_roots()
            .into_iter()
            .map(|root| root.join(&self.name))
            .filter(|p| p.exists())
            .collect()
    }

    /// Runs a process in a container: its output and how it ended.
    pub fn exec(&self, created: &Running, process: &ProcessPlan) -> Ended {
        let (mut output, io) = pipes();
        let request = apply::ExecRequest { process, io };
        let exec = apply::exec(
            &self.token,
            created.pidfd.as_fd(),
            &created.joined,
            &created.cgroup,
            request,
        )
        .unwrap_or_else(|error| panic!("{error:?}"));
        let mut text = String::new();
        output.read_to_string(&mut text).expect("output");
        let status = pidfd::wait(exec.pidfd.as_fd()).expect("wait");
        Ended {
            text,
            status,
            started: Ok(()),
        }
    }

    /// A started container that lives until dropped.
    pub fn start(&self, plan: &Plan) -> Running {
        let (created, output) = self
            .create(plan)
            .unwrap_or_else(|error| panic!("{error:?}"));
        created
            .gate
            .open()
            .unwrap_or_else(|error| panic!("{error:?}"));
        Running {
            pid: created.pid,
            pidfd: created.pidfd,
            cgroup: created.cgroup,
            joined: JoinedNamespaces::of(plan),
            _output: output,
        }
    }
}

pub struct Ended {
    pub text: String,
    pub status: WaitStatus,
    pub started: Result<(), StartError>,
}

pub struct Running {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub cgroup: Cgroup,
    pub joined: JoinedNamespaces,
    /// Held so that the program can write.
    pub _output: File,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = pidfd::send_signal(self.pidfd.as_fd(), 9);
        let _ = pidfd::wait(self.pidfd.as_fd());
        remove(&self.cgroup);
    }
}

/// Standard streams: stdin from /dev/null, both outputs into one pipe.
pub fn pipes() -> (File, IoPlan) {
    let (reader, writer) = crisp_sys::fd::pipe().expect("pipe");
    let stdin = File::open("/dev/null").expect("null").into();
    let stderr = crisp_sys::fd::dup(writer.as_fd()).expect("dup");
    (
        reader.into(),
        IoPlan::Stdio(Stdio {
            stdin,
            stdout: writer,
            stderr,
        }),
    )
}

/// Ends everything in a group and removes it.
pub fn remove(cgroup: &Cgroup) {
    cgroup.kill().expect("kill");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while let Err(error) = cgroup.remove() {
        assert!(std::time::Instant::now() < deadline, "{error:?}");
        while let Ok(Some(_)) = pidfd::try_wait_any() {}
        std::thread::yield_now();
    }
}

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
    Step::Filesystem(FilesystemStep {
        fstype: fstype.into(),
        source: fstype.into(),
        target: target.into(),
        flags,
        options: options
            .iter()
            .map(|(key, value)| {
                let value = if value.is_empty() {
                    None
                } else {
                    Some((*value).to_owned())
                };
                ((*key).to_owned(), value)
            })
            .collect(),
        ..FilesystemStep::default()
    })
}

/// A bind of a path of the host's, without further wishes.
pub fn bind(source: &Path, target: &str) -> BindStep {
    BindStep {
        source: source.display().to_string(),
        target: target.into(),
        recursive: true,
        ..BindStep::default()
    }
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

fn group_roots() -> Vec<PathBuf> {
    match Hierarchy::probe().expect("cgroups") {
        Hierarchy::V2 { mount } => vec![mount.join(&GROUP[1..])],
        Hierarchy::V1 {
            controllers,
            unified,
        } => controllers
            .into_iter()
            .map(|(_, mount)| mount)
            .chain(unified)
            .map(|mount| mount.join(&GROUP[1..]))
            .collect(),
    }
}

/// Removes groups that an earlier, crashed run left behind and that hold no process.
pub fn sweep() {
    for root in group_roots() {
        for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(entry.path());
        }
        let _ = fs::remove_dir(&root);
    }
}

/// Waits until `done`, failing after ten seconds.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !done() {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}
