//! Containers in a user namespace.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use crisp_oci::apply::{self, CreateError, IoPlan};
use crisp_oci::plan::{FdIndex, NamespaceHow, NamespaceKind, NamespacePlan, Plan, Step};
use crisp_sys::clone::{self, Child, CloneArgs};
use crisp_sys::pidfd::{self, WaitStatus};
use crisp_sys::watched::Watched;
use crisp_sys::{Errno, fd};

use super::life::read_terminal;
use crate::fixture::{Machine, bind, machine, pipes, process, remove};

/// First id of the host's in the namespace, and how many.
const FIRST: u32 = 100_000;
const LENGTH: u32 = 65_536;

/// A process that holds a user namespace until it is dropped, as a pod's pause does.
struct Holder {
    child: Child,
    _alive: OwnedFd,
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = pidfd::send_signal(self.child.pidfd.as_fd(), 9);
        let _ = pidfd::wait(self.child.pidfd.as_fd());
    }
}

fn holder(machine: &Machine) -> Holder {
    let (wait, alive) = fd::pipe().expect("pipe");
    let args = CloneArgs {
        flags: u64::from(NamespaceKind::User.flag().unsigned_abs()),
        cgroup: None,
    };
    let child = clone::clone3(&machine.token, &args, |inside| {
        let kept = inside.close_all_but(&[wait.as_fd()]);
        i32::from(kept.is_err() || fd::read(wait.as_fd(), &mut [0]).is_err())
    })
    .expect("clone");
    for file in ["uid_map", "gid_map"] {
        fs::write(
            format!("/proc/{}/{file}", child.pid),
            format!("0 {FIRST} {LENGTH}"),
        )
        .expect("map");
    }
    Holder {
        child,
        _alive: alive,
    }
}

/// The root filesystem's files become those of the namespace's root.
fn give(path: &Path) {
    std::os::unix::fs::lchown(path, Some(FIRST), Some(FIRST)).expect("chown");
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).expect("readdir").flatten() {
            give(&entry.path());
        }
    }
}

fn with_users(machine: &Machine, script: &str) -> Plan {
    give(&machine.root());
    let mut plan = machine.plan(script);
    plan.namespaces.push(NamespacePlan {
        kind: NamespaceKind::User,
        how: NamespaceHow::JoinPidfd(FdIndex(1)),
    });
    plan
}

fn table(machine: &Machine, holder: &Holder) -> [OwnedFd; 2] {
    let upper = machine.dir.path().join("upper");
    fs::create_dir_all(&upper).expect("mkdir");
    chown(upper, Some(FIRST), Some(FIRST)).expect("chown");
    let holder = fd::dup(holder.child.pidfd.as_fd()).expect("dup");
    [machine.overlay(), holder]
}

/// Runs a plan in the namespace to its end: its output.
fn run(machine: &Machine, holder: &Holder, plan: &Plan) -> String {
    use std::io::Read;
    let (mut output, io) = pipes();
    let created = machine
        .create_with(plan, &table(machine, holder), io)
        .unwrap_or_else(|error| panic!("{error:?}"));
    created
        .gate
        .open()
        .unwrap_or_else(|error| panic!("{error:?}"));
    let mut text = String::new();
    output.read_to_string(&mut text).expect("output");
    pidfd::wait(created.pidfd.as_fd()).expect("wait");
    remove(&created.cgroup);
    text
}

pub fn a_user_namespace_owns_the_containers_namespaces() {
    let machine = machine();
    let holder = holder(&machine);
    // With every capability it could mount, configure and name what is the namespace's own.
    let mut plan = with_users(
        &machine,
        "echo $$; id -u; cat /proc/self/uid_map; readlink /proc/self/ns/user; \
         mount -t tmpfs none /tmp && busybox umount /tmp && echo mounted; \
         mount -t proc none /run && echo proc; busybox hostname other && busybox hostname; \
         busybox ip link set lo up && echo up; stat -c '%u %g' /bin/busybox /dev/null; \
         stat -c '%t:%T' /dev/full; echo x > /made; stat -c %u /made; echo x > /dev/null && echo gone",
    );
    std::os::unix::fs::symlink("busybox", machine.root().join("bin/readlink")).expect("link");
    let all = (1 << 41) - 1;
    let sets = &mut plan.process.capabilities;
    for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
        *set = all;
    }
    let text = run(&machine, &holder, &plan);
    let own = fs::read_link(format!("/proc/{}/ns/user", holder.child.pid)).expect("link");
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let map = format!("0 {FIRST} {LENGTH}");
    let want = [
        "1",
        "0",
        &map,
        &own.display().to_string(),
        "mounted",
        "proc",
        "other",
        "up",
        "0 0",
        // The host's own node, whose owner has no name here.
        "65534 65534",
        "1:7",
        "0",
        "gone",
    ];
    assert_eq!(lines, want, "{text}");
    let made = fs::metadata(machine.dir.path().join("upper/made")).expect("made");
    assert_eq!((made.uid(), made.gid()), (FIRST, FIRST));
}

pub fn a_pid_namespace_is_joined_together_with_users() {
    // A pod whose containers share processes: the init is born in that namespace and enters.
    let machine = machine();
    let holder = holder(&machine);
    let (_output, io) = pipes();
    let plan = with_users(&machine, "sleep 1000");
    let pod = machine
        .create_with(&plan, &table(&machine, &holder), io)
        .unwrap_or_else(|error| panic!("{error:?}"));
    pod.gate.open().expect("start");
    let second = crate::fixture::machine();
    let mut plan = with_users(
        &second,
        "echo $$; cat /proc/1/cmdline; id -u; busybox hostname",
    );
    plan.hostname = None;
    for entry in &mut plan.namespaces {
        if !matches!(entry.kind, NamespaceKind::Mount | NamespaceKind::Cgroup) {
            entry.how = NamespaceHow::JoinPidfd(FdIndex(1));
        }
    }
    let (mut output, io) = pipes();
    let [overlay, _] = table(&second, &holder);
    let fds = [overlay, fd::dup(pod.pidfd.as_fd()).expect("dup")];
    let created = second
        .create_with(&plan, &fds, io)
        .unwrap_or_else(|error| panic!("{error:?}"));
    created.gate.open().expect("start");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut output, &mut text).expect("output");
    pidfd::wait(created.pidfd.as_fd()).expect("wait");
    remove(&created.cgroup);
    assert_eq!(text, "2\nsleep\u{0}1000\u{0}0\ninside\n");
    let _ = pidfd::send_signal(pod.pidfd.as_fd(), 9);
    pidfd::wait(pod.pidfd.as_fd()).expect("wait");
    remove(&pod.cgroup);
}

pub fn exec_enters_the_user_namespace() {
    let machine = machine();
    let holder = holder(&machine);
    let (_output, io) = pipes();
    let plan = with_users(&machine, "sleep 1000");
    let created = machine
        .create_with(&plan, &table(&machine, &holder), io)
        .unwrap_or_else(|error| panic!("{error:?}"));
    created.gate.open().expect("start");
    let running = crate::fixture::Running {
        pid: created.pid,
        pidfd: created.pidfd,
        cgroup: created.cgroup,
        joined: apply::JoinedNamespaces::of(&plan),
        _output,
    };
    let mut command = process(&[
        "sh",
        "-c",
        "id -u; echo again > /dev/stdout; cat /proc/self/oom_score_adj",
    ]);
    command.uid = 1000;
    command.oom_score_adj = Some(888);
    assert_eq!(machine.exec(&running, &command).text, "1000\nagain\n888\n");
    // A terminal belongs to the user, too.
    let mut command = process(&["sh", "-c", "tty; stat -c %u /dev/pts/0"]);
    command.uid = 1000;
    command.terminal = true;
    let request = apply::ExecRequest {
        process: &command,
        io: IoPlan::Terminal,
    };
    let exec = apply::exec(
        &machine.token,
        running.pidfd.as_fd(),
        &running.joined,
        &running.cgroup,
        request,
    )
    .expect("exec");
    let text = read_terminal(&exec.console.expect("a console"));
    assert_eq!(text, "/dev/pts/0\r\n1000\r\n");
    pidfd::wait(exec.pidfd.as_fd()).expect("wait");
    // Whoever is not mapped is named before anything is made.
    let (_reader, io) = pipes();
    let mut command = process(&["true"]);
    command.uid = LENGTH;
    let request = apply::ExecRequest {
        process: &command,
        io,
    };
    let error = apply::exec(
        &machine.token,
        running.pidfd.as_fd(),
        &running.joined,
        &running.cgroup,
        request,
    )
    .expect_err("not mapped");
    assert!(error.to_string().contains("65536 is not mapped"), "{error}");
}

pub fn volumes_are_translated_where_the_filesystem_can() {
    let machine = machine();
    let holder = holder(&machine);
    let volume = machine.dir.path().join("volume");
    fs::create_dir(&volume).expect("mkdir");
    fs::write(volume.join("f"), "x").expect("write");
    chown(volume.join("f"), Some(7), Some(8)).expect("chown");
    let users: OwnedFd = fs::File::open(format!("/proc/{}/ns/user", holder.child.pid))
        .expect("namespace")
        .into();
    let create = |source: &Path, script: &str| {
        let mut plan = with_users(&machine, script);
        let mut step = bind(source, "/volume");
        step.idmap = Some(FdIndex(2));
        plan.steps.push(Step::Bind(step));
        let [overlay, pidfd] = table(&machine, &holder);
        let fds = [overlay, pidfd, fd::dup(users.as_fd()).expect("dup")];
        let (output, io) = pipes();
        machine
            .create_with(&plan, &fds, io)
            .map(|created| (created, output))
    };
    let script = "stat -c '%u %g' /volume/f; echo y > /volume/g; stat -c '%u %g' /volume/g";
    let (created, mut output) = create(&volume, script).unwrap_or_else(|error| panic!("{error:?}"));
    created.gate.open().expect("start");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut output, &mut text).expect("output");
    pidfd::wait(created.pidfd.as_fd()).expect("wait");
    remove(&created.cgroup);
    assert_eq!(text, "7 8\n0 0\n");
    let made = fs::metadata(volume.join("g")).expect("made");
    assert_eq!((made.uid(), made.gid()), (0, 0), "on disk as inside");
    let error = create(Path::new("/proc/sys"), "true")
        .map(drop)
        .expect_err("procfs cannot");
    assert!(
        matches!(&error, CreateError::Idmap { filesystem, .. } if filesystem == "proc"),
        "{error:?}"
    );
    assert_eq!(error.errno(), Errno::EINVAL);
    assert!(machine.groups_left().is_empty());
}

pub fn failures_in_a_user_namespace_leave_nothing() {
    let machine = machine();
    let holder = holder(&machine);
    type Breaking = fn(&mut Plan);
    let break_at: [(&str, Breaking, &str); 4] = [
        (
            "uid",
            |plan| plan.process.uid = LENGTH,
            "65536 is not mapped",
        ),
        (
            "sysctl",
            |plan| plan.sysctls = vec![("no/such".into(), "1".into())],
            "sysctl",
        ),
        (
            "program",
            |plan| plan.process.args = vec![b"nosuch".to_vec()],
            "not found",
        ),
        (
            "device",
            |plan| {
                plan.steps.push(Step::Device(crisp_oci::plan::DeviceStep {
                    path: "/dev/nosuch".into(),
                    mode: 0o020_666,
                    major: 4000,
                    minor: 77,
                    uid: 0,
                    gid: 0,
                }));
            },
            "/dev/nosuch, device 4000:77",
        ),
    ];
    for (name, breaking, says) in break_at {
        let mut plan = with_users(&machine, "true");
        breaking(&mut plan);
        let (_output, io) = pipes();
        let error = machine
            .create_with(&plan, &table(&machine, &holder), io)
            .map(|_| ())
            .expect_err(name);
        assert!(error.to_string().contains(says), "{name}: {error}");
        assert!(machine.groups_left().is_empty(), "{name}: a cgroup is left");
        assert_eq!(
            pidfd::try_wait(holder.child.pidfd.as_fd()),
            Ok(None),
            "{name}: the holder lives on"
        );
        let peeked = pidfd::peek_any().expect("one child");
        assert_eq!(peeked, None, "{name}: a zombie is left");
    }
    let mut plan = with_users(&machine, "true");
    plan.namespaces.last_mut().expect("users").how = NamespaceHow::New;
    let (_output, io) = pipes();
    let error = machine
        .create_with(&plan, &table(&machine, &holder), io)
        .map(|_| ())
        .expect_err("new");
    assert!(matches!(error, CreateError::Unsupported(_)), "{error}");
}

pub fn nothing_is_allocated_on_the_way_into_a_user_namespace() {
    let machine = machine();
    let holder = holder(&machine);
    fs::create_dir(machine.dir.path().join("volume")).expect("mkdir");
    let mut plan = with_users(&machine, "tty");
    let volume = bind(&machine.dir.path().join("volume"), "/new/mount/point");
    plan.steps.push(Step::Bind(volume));
    plan.steps.push(Step::Console);
    plan.sysctls = vec![("kernel/msgmax".into(), "12345".into())];
    plan.process.terminal = true;
    plan.process.uid = 1000;
    plan.process.additional_gids = vec![1, 2, 3];
    plan.process.oom_score_adj = Some(1000);
    plan.process.rlimits = vec![crisp_oci::plan::Rlimit {
        resource: 7,
        soft: 10,
        hard: 10,
    }];
    let fds = table(&machine, &holder);
    Watched::arm();
    let created = machine
        .create_with(&plan, &fds, IoPlan::Terminal)
        .unwrap_or_else(|error| panic!("{error:?}"));
    created.gate.open().expect("start");
    Watched::disarm();
    let console = created.console.expect("a console");
    assert_eq!(read_terminal(&console), "/dev/pts/0\r\n");
    assert_eq!(
        pidfd::wait(created.pidfd.as_fd()),
        Ok(WaitStatus::Exited(0))
    );
    remove(&created.cgroup);
}

pub fn groups_are_handed_to_the_root_of_a_user_namespace() {
    let machine = machine();
    let holder = holder(&machine);
    let mut plan = with_users(&machine, "true");
    plan.cgroup.owner = Some((FIRST, FIRST));
    let (_output, io) = pipes();
    let created = machine
        .create_with(&plan, &table(&machine, &holder), io)
        .unwrap_or_else(|error| panic!("{error:?}"));
    let unified = crate::fixture::unified_group(machine.name());
    for name in ["", "cgroup.procs", "cgroup.subtree_control"] {
        if let Some(group) = &unified {
            let owner = fs::metadata(group.join(name)).expect("stat");
            assert_eq!((owner.uid(), owner.gid()), (FIRST, FIRST), "{name}");
        }
    }
    if let Some(group) = &unified {
        let limits = fs::metadata(group.join("cgroup.freeze")).expect("stat");
        assert_eq!(limits.uid(), 0, "what is no listed file stays the host's");
    }
    drop(created.gate);
    pidfd::wait(created.pidfd.as_fd()).expect("wait");
    remove(&created.cgroup);
}
