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

/// An image of two layers as a mount that is attached nowhere.
fn image(machine: &Machine) -> OwnedFd {
    let layer = |name: &str| machine.dir.path().join(name);
    fs::create_dir_all(layer("top/etc/deep")).expect("mkdir");
    fs::create_dir_all(layer("base/etc")).expect("mkdir");
    fs::write(layer("top/etc/deep/file"), "top\n").expect("write");
    fs::write(layer("base/etc/base"), "base\n").expect("write");
    for (name, target) in [("link", "/etc/deep"), ("out", "/../../../..")] {
        let link = layer("base").join(name);
        if !link.is_symlink() {
            std::os::unix::fs::symlink(target, link).expect("symlink");
        }
    }
    let fs = mount::fsopen("overlay").expect("fsopen");
    let lowers = format!("{}:{}", layer("top").display(), layer("base").display());
    mount::fsconfig_set_string(fs.as_fd(), "lowerdir", &lowers).expect("lowerdir");
    mount::fsconfig_create(fs.as_fd()).expect("create");
    mount::fsmount(fs.as_fd(), MOUNT_ATTR_RDONLY).expect("fsmount")
}

/// A step for the descriptor at `index`, named by it in messages.
fn detached(index: u16, below: Option<&str>, target: &str) -> Step {
    Step::Bind(BindStep {
        source: format!("/nowhere/{index}"),
        in_root: below.map(str::to_owned),
        target: target.into(),
        recursive: true,
        attr_set: MOUNT_ATTR_RDONLY,
        propagation: MS_PRIVATE | MS_REC,
        detached: Some(crisp_oci::plan::FdIndex(index)),
        ..BindStep::default()
    })
}

fn output_with(machine: &Machine, plan: &crisp_oci::plan::Plan, fds: &[OwnedFd]) -> String {
    use std::io::Read;
    let (mut reader, io) = crate::fixture::pipes();
    let created = machine
        .create_with(plan, fds, io)
        .unwrap_or_else(|error| panic!("{error:?}"));
    created.gate.open().expect("start");
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("output");
    crisp_sys::pidfd::wait(created.pidfd.as_fd()).expect("wait");
    crate::fixture::remove(&created.cgroup);
    text
}

pub fn a_detached_mount_is_a_volume_whole_or_in_part() {
    let machine = machine();
    let mounts = || {
        fs::read_to_string("/proc/self/mountinfo")
            .expect("mountinfo")
            .lines()
            .count()
    };
    let before = mounts();
    let fds = [
        machine.overlay(),
        image(&machine),
        image(&machine),
        image(&machine),
    ];
    let mut plan = machine.plan(
        "cat /whole/etc/deep/file /whole/etc/base /part/deep/file /linked/file; ls /part; \
         echo x > /whole/new; echo x > /part/new; grep -c ' /part ' /proc/self/mountinfo",
    );
    plan.steps.extend([
        detached(1, None, "/whole"),
        detached(2, Some("etc"), "/part"),
        detached(3, Some("link"), "/linked"),
    ]);
    let text = output_with(&machine, &plan, &fds);
    let refused = "sh: can't create /whole/new: Read-only file system\n\
                   sh: can't create /part/new: Read-only file system\n";
    let expected = format!("top\nbase\ntop\ntop\nbase\ndeep\n{refused}1\n");
    // busybox prefixes the shell's name in its own way.
    let plain = text.replace("sh: line 0: ", "sh: ");
    assert_eq!(plain, expected);
    assert_eq!(mounts(), before, "nothing is attached on the host");
}

pub fn a_part_of_a_detached_mount_cannot_lie_outside_of_it() {
    let machine = machine();
    let mut plan = machine.plan("ls /out");
    plan.steps.push(detached(1, Some("out/../.."), "/out"));
    let fds = [machine.overlay(), image(&machine)];
    // Its own root, whatever dots and links say.
    assert_eq!(output_with(&machine, &plan, &fds), "etc\nlink\nout\n");
    for missing in ["not-there", "etc/base"] {
        let mut plan = machine.plan("true");
        plan.steps.push(detached(1, Some(missing), "/v"));
        let fds = [machine.overlay(), image(&machine)];
        let (_reader, io) = crate::fixture::pipes();
        let error = machine.create_with(&plan, &fds, io).expect_err("refused");
        assert_eq!(error.stage(), crisp_oci::apply::Stage::Mount, "{error:?}");
        assert!(error.to_string().contains("/v"), "{error}");
    }
}

pub fn options_of_a_tmpfs_are_in_force() {
    let machine = machine();
    let mut plan = machine.plan("grep ' /t ' /proc/self/mountinfo; stat -c %a /t");
    let option = |key: &str, value: &str| (key.to_owned(), Some(value.to_owned()));
    plan.steps
        .push(Step::Filesystem(crisp_oci::plan::FilesystemStep {
            fstype: "tmpfs".into(),
            source: "scratch".into(),
            target: "/t".into(),
            flags: mount::MOUNT_ATTR_NOEXEC | mount::MOUNT_ATTR_NODEV,
            options: vec![option("size", "128k"), option("mode", "1750")],
            ..Default::default()
        }));
    let text = machine.run(&plan).text;
    for part in ["nodev,noexec", "size=128k", "mode=1750", " scratch "] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(text.ends_with("\n1750\n"), "{text}");
}

pub fn a_process_joins_its_group_of_cache_and_bandwidth() {
    let machine = machine();
    let tasks = machine.dir.path().join("tasks");
    fs::write(&tasks, "").expect("write");
    let mut plan = machine.plan("sleep 1000");
    plan.process.resctrl = Some(tasks.display().to_string());
    let running = machine.start(&plan);
    assert_eq!(fs::read_to_string(&tasks).expect("read"), "0");
    fs::write(&tasks, "").expect("write");
    let mut list = process(&["true"]);
    list.resctrl = plan.process.resctrl.clone();
    machine.exec(&running, &list);
    assert_eq!(fs::read_to_string(&tasks).expect("read"), "0", "execs too");
    plan.process.resctrl = Some(machine.dir.path().join("none/tasks").display().to_string());
    let error = machine.create(&plan).expect_err("there is no such group");
    assert_eq!(error.stage(), crisp_oci::apply::Stage::Resctrl, "{error:?}");
}
