//! A machine to run containers on: a root filesystem, a plan for it, and what it takes to run it.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crisp_oci::apply::{self, CreateError, Created, IoPlan, JoinedNamespaces, StartError, Stdio};
use crisp_oci::cgroup::{Cgroup, Hierarchy, Resources};
use crisp_oci::plan::{BindStep, CgroupPlan, FdIndex, Plan, ProcessPlan, RootfsSource};
use crisp_sys::clone::SingleThreaded;
use crisp_sys::mount;
use crisp_sys::pidfd::{self, WaitStatus};

use crate::ordinary;
pub use crate::ordinary::{DEFAULT_CAPS, device_rules, eventually, process, steps};

/// Where the cases' cgroups are.
pub const GROUP: &str = "/crisp-oci-test";

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
        ordinary::overlay(self.dir.path())
    }

    /// A container as an engine would make it that runs `script` in a shell as root.
    pub fn plan(&self, script: &str) -> Plan {
        Plan {
            id: self.name.clone(),
            bundle: self.dir.path().display().to_string(),
            rootfs: RootfsSource::DetachedMount(FdIndex(0)),
            namespaces: ordinary::namespaces(),
            hostname: Some("inside".into()),
            steps: steps(),
            process: process(&["sh", "-c", script]),
            cgroup: CgroupPlan {
                hierarchy: self.hierarchy.clone(),
                path: format!("{GROUP}/{}", self.name),
                resources: Resources::default(),
                device_rules: device_rules(),
                owner: None,
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

/// A bind of a path of the host's, without further wishes.
pub fn bind(source: &Path, target: &str) -> BindStep {
    BindStep {
        source: source.display().to_string(),
        target: target.into(),
        recursive: true,
        ..BindStep::default()
    }
}

fn group_roots() -> Vec<PathBuf> {
    let trees = ordinary::trees(&Hierarchy::probe().expect("cgroups"));
    let below = trees.into_iter().map(|mount| mount.join(&GROUP[1..]));
    below.collect()
}

/// A case's group in the unified tree, if the host has one.
pub fn unified_group(name: &str) -> Option<PathBuf> {
    let mount = match Hierarchy::probe().expect("cgroups") {
        Hierarchy::V2 { mount } => mount,
        Hierarchy::V1 { unified, .. } => unified?,
    };
    Some(mount.join(&GROUP[1..]).join(name))
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
