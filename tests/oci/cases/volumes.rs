//! Volumes and mount propagation.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use crisp_oci::plan::{BindStep, Step};
use crisp_sys::mount::{self, MOUNT_ATTR_RDONLY, MS_PRIVATE, MS_REC, MS_SHARED, MS_SLAVE};
use crisp_sys::{fd, ns, path};

use crate::fixture::{Machine, bind, eventually, machine, process};

const CLONE_NEWNS: i32 = 0x2_0000;
const O_PATH: i32 = 0o10_000_000;

pub fn files_and_directories_are_bound() {
    let machine = machine();
    let volume = machine.dir.path().join("volume");
    fs::create_dir(&volume).expect("mkdir");
    fs::write(volume.join("f"), "content\n").expect("write");
    let mut plan = machine.plan("cat /new/dir/f /etc/new/file; echo back > /new/dir/g");
    plan.steps.push(Step::Bind(bind(&volume, "/new/dir")));
    plan.steps
        .push(Step::Bind(bind(&volume.join("f"), "/etc/new/file")));
    assert_eq!(machine.run(&plan).text, "content\ncontent\n");
    assert_eq!(
        fs::read_to_string(volume.join("g")).expect("read"),
        "back\n"
    );
}

pub fn read_only_binds() {
    let machine = machine();
    private_namespace();
    let volume = machine.dir.path().join("volume");
    fs::create_dir_all(volume.join("sub")).expect("mkdir");
    attach_tmpfs(&volume.join("sub"));
    let mut plan = machine.plan(
        "for d in /ro /ro/sub /rro /rro/sub; do echo x > $d/f && echo $d written; done 2>/dev/null",
    );
    let ro = BindStep {
        attr_set: MOUNT_ATTR_RDONLY,
        ..bind(&volume, "/ro")
    };
    let rro = BindStep {
        attr_set_recursive: MOUNT_ATTR_RDONLY,
        ..bind(&volume, "/rro")
    };
    plan.steps.extend([Step::Bind(ro), Step::Bind(rro)]);
    assert_eq!(machine.run(&plan).text, "/ro/sub written\n");
}

/// A mount namespace of this case's own: what it mounts does not reach the machine.
fn private_namespace() {
    ns::unshare(CLONE_NEWNS).expect("unshare");
    mount::set_propagation(c"/", MS_REC | MS_PRIVATE).expect("private");
}

fn attach_tmpfs(at: &Path) {
    let fs = mount::fsopen("tmpfs").expect("fsopen");
    mount::fsconfig_create(fs.as_fd()).expect("create");
    let tmpfs = mount::fsmount(fs.as_fd(), 0).expect("fsmount");
    let target: OwnedFd = path::openat(fd::CWD, at, O_PATH, 0).expect("open");
    mount::move_mount(tmpfs.as_fd(), target.as_fd()).expect("mount");
}

/// A shared mount with a directory `sub` to mount on, and one `late`.
fn shared_volume(machine: &Machine) -> PathBuf {
    private_namespace();
    let volume = machine.dir.path().join("volume");
    fs::create_dir(&volume).expect("mkdir");
    attach_tmpfs(&volume);
    mount::set_propagation(&volume, MS_SHARED).expect("shared");
    for name in ["created", "running", "inside"] {
        fs::create_dir(volume.join(name)).expect("mkdir");
    }
    volume
}

fn mark(at: &Path) {
    attach_tmpfs(at);
    fs::write(at.join("mark"), "").expect("write");
}

pub fn host_mounts_reach_slaves_also_while_created() {
    let machine = machine();
    let volume = shared_volume(&machine);
    for propagation in [MS_SLAVE | MS_REC, MS_SHARED | MS_REC, 0] {
        let mut plan = machine.plan("sleep 1000");
        plan.steps.push(Step::Bind(BindStep {
            propagation,
            ..bind(&volume, "/v")
        }));
        let (created, output) = machine.create(&plan).expect("create");
        mark(&volume.join("created"));
        created.gate.open().expect("start");
        mark(&volume.join("running"));
        let running = crate::fixture::Running {
            pid: created.pid,
            pidfd: created.pidfd,
            cgroup: created.cgroup,
            joined: crisp_oci::apply::JoinedNamespaces::of(&plan),
            _output: output,
        };
        let list = process(&["ls", "/v/created", "/v/running"]);
        let text = machine.exec(&running, &list).text;
        assert_eq!(text.matches("mark").count(), 2, "{propagation:#x}: {text}");
        for name in ["created", "running"] {
            mount::umount2(&volume.join(name), mount::MNT_DETACH).expect("umount");
        }
        let text = machine.exec(&running, &list).text;
        assert_eq!(text.matches("mark").count(), 0, "{propagation:#x}: {text}");
    }
}

/// What a container mounts on its volume, as the host sees it.
fn seen_by_host(machine: &Machine, volume: &Path, propagation: u64) -> bool {
    let mut plan = machine.plan("mount -t tmpfs none /v/inside; echo > /v/inside/mark; sleep 1000");
    let admin = 1 << 21;
    let caps = &mut plan.process.capabilities;
    caps.bounding |= admin;
    caps.permitted |= admin;
    caps.effective |= admin;
    plan.steps.push(Step::Bind(BindStep {
        propagation,
        ..bind(volume, "/v")
    }));
    let running = machine.start(&plan);
    let list = process(&["ls", "/v/inside"]);
    eventually("the container mounts", || {
        machine.exec(&running, &list).text == "mark\n"
    });
    let seen = volume.join("inside/mark").exists();
    if seen {
        mount::umount2(&volume.join("inside"), mount::MNT_DETACH).expect("umount");
    }
    seen
}

pub fn shared_mounts_reach_the_host() {
    let machine = machine();
    let volume = shared_volume(&machine);
    assert!(seen_by_host(&machine, &volume, MS_SHARED | MS_REC));
    for propagation in [MS_SLAVE | MS_REC, MS_PRIVATE | MS_REC, 0] {
        assert!(
            !seen_by_host(&machine, &volume, propagation),
            "{propagation:#x}"
        );
    }
}

pub fn private_mounts_stay_apart() {
    let machine = machine();
    let volume = shared_volume(&machine);
    let mut plan = machine.plan("sleep 1000");
    let propagation = MS_PRIVATE | MS_REC;
    plan.steps.push(Step::Bind(BindStep {
        propagation,
        ..bind(&volume, "/v")
    }));
    let running = machine.start(&plan);
    mark(&volume.join("running"));
    assert_eq!(
        machine.exec(&running, &process(&["ls", "/v/running"])).text,
        ""
    );
}

pub fn a_source_below_a_volume_cannot_leave_it() {
    let machine = machine();
    let volume = machine.dir.path().join("volume");
    fs::create_dir_all(volume.join("etc")).expect("mkdir");
    fs::write(volume.join("etc/hostname"), "the volume's\n").expect("write");
    std::os::unix::fs::symlink("/etc", volume.join("link")).expect("symlink");
    let mut plan = machine.plan("cat /v/hostname");
    let below = |path: &str| BindStep {
        in_root: Some(path.into()),
        ..bind(&volume, "/v")
    };
    for path in ["link", "../../../../etc", "/etc"] {
        plan.steps.retain(|step| !matches!(step, Step::Bind(_)));
        plan.steps.push(Step::Bind(below(path)));
        assert_eq!(machine.run(&plan).text, "the volume's\n", "{path}");
    }
}
