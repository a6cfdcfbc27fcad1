//! Making, starting and ending containers.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use crisp_oci::apply::{self, CreateError, ExecError, IoPlan, JoinedNamespaces, Stage};
use crisp_oci::plan::{FdIndex, NamespaceHow, NamespaceKind, RootfsSource};
use crisp_sys::clone::{self, CloneArgs};
use crisp_sys::pidfd::{self, WaitStatus};
use crisp_sys::watched::Watched;
use crisp_sys::{Errno, event};

use crate::fixture::{eventually, machine, pipes, process, remove};

pub fn output_and_exit_code_come_back() {
    let machine = machine();
    let ended = machine.run(&machine.plan("echo hello; busybox hostname; exit 42"));
    assert_eq!(ended.text, "hello\ninside\n");
    assert_eq!(ended.status, WaitStatus::Exited(42));
    assert!(machine.groups_left().is_empty());
}

pub fn a_rootfs_may_be_a_directory() {
    let machine = machine();
    let mut plan = machine.plan("echo here > /tmp/mark; cat /tmp/mark");
    plan.rootfs = RootfsSource::Path(machine.root().display().to_string());
    assert_eq!(machine.run(&plan).text, "here\n");
    assert!(machine.root().join("tmp/mark").exists());
}

pub fn nothing_runs_before_the_gate_opens() {
    let machine = machine();
    let plan = machine.plan("echo ran");
    let (created, mut output) = machine.create(&plan).expect("create");
    let waits = event::poll(
        output.as_fd(),
        1,
        Some(std::time::Duration::from_millis(50)),
    );
    assert!(!waits.expect("poll"), "the program ran early");
    assert_eq!(pidfd::try_wait(created.pidfd.as_fd()).expect("wait"), None);
    assert_eq!(
        created.start_time,
        pidfd::start_time(created.pid).expect("start time")
    );
    created.gate.open().expect("start");
    let mut text = String::new();
    output.read_to_string(&mut text).expect("output");
    assert_eq!(text, "ran\n");
    pidfd::wait(created.pidfd.as_fd()).expect("wait");
    remove(&created.cgroup);
}

pub fn a_dropped_gate_ends_the_init() {
    let machine = machine();
    let (created, mut output) = machine.create(&machine.plan("echo ran")).expect("create");
    drop(created.gate);
    assert_eq!(
        pidfd::wait(created.pidfd.as_fd()).expect("wait"),
        WaitStatus::Exited(1)
    );
    let mut text = String::new();
    output.read_to_string(&mut text).expect("output");
    assert_eq!(text, "");
    remove(&created.cgroup);
}

fn failure(error: CreateError) -> (Stage, Errno, String) {
    match error {
        CreateError::Child(failure) => (failure.stage, failure.errno, failure.message),
        other => panic!("{other:?}"),
    }
}

pub fn a_missing_program_is_found_out_at_create() {
    let machine = machine();
    let mut plan = machine.plan("");
    plan.process.args = vec![b"nosuch".to_vec()];
    let (stage, errno, message) = failure(machine.create(&plan).unwrap_err());
    assert_eq!((stage, errno), (Stage::Exec, Errno::ENOENT));
    assert_eq!(message, "\"nosuch\": executable file not found in $PATH");
    plan.process.args = vec![b"/tmp/nosuch".to_vec()];
    let (_, errno, message) = failure(machine.create(&plan).unwrap_err());
    assert_eq!(errno, Errno::ENOENT);
    assert_eq!(message, "\"/tmp/nosuch\": no such file or directory");
    plan.process.args = vec![b"/etc".to_vec()];
    assert_eq!(failure(machine.create(&plan).unwrap_err()).1, Errno::EACCES);
    assert!(machine.groups_left().is_empty());
}

pub fn a_program_that_cannot_run_is_found_out_at_start() {
    let machine = machine();
    let script = machine.root().join("bin/script");
    std::fs::write(&script, "#!/no/such/shell\n").expect("write");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("chmod");
    let mut plan = machine.plan("");
    plan.process.args = vec![b"script".to_vec()];
    let ended = machine.run(&plan);
    let error = ended.started.unwrap_err();
    assert_eq!((error.errno(), error.exit_code()), (Errno::ENOENT, 127));
    assert!(machine.groups_left().is_empty());
}

pub fn failures_leave_nothing() {
    let machine = machine();
    let descriptors = || std::fs::read_dir("/proc/self/fd").expect("fds").count();
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let before = (descriptors(), mounts());
    type Breaking = fn(&mut crisp_oci::plan::Plan);
    let break_at: [(&str, Breaking); 6] = [
        ("plan", |plan| plan.process.cwd = "relative".into()),
        ("table", |plan| {
            plan.rootfs = RootfsSource::DetachedMount(FdIndex(7))
        }),
        ("cgroup", |plan| plan.cgroup.path = "/a/../../b".into()),
        ("source", |plan| {
            let bind = crate::fixture::bind(Path::new("/no/such/source"), "/mnt");
            plan.steps.push(crisp_oci::plan::Step::Bind(bind));
        }),
        ("sysctl", |plan| {
            plan.sysctls = vec![("no/such".into(), "1".into())]
        }),
        ("uid", |plan| plan.process.args = vec![b"nosuch".to_vec()]),
    ];
    for (name, breaking) in break_at {
        let mut plan = machine.plan("true");
        breaking(&mut plan);
        let error = machine.create(&plan).map(|_| ()).expect_err(name);
        assert!(
            !matches!(error, CreateError::Undo { .. }),
            "{name}: {error}"
        );
        assert!(machine.groups_left().is_empty(), "{name}: a cgroup is left");
        assert_eq!(
            pidfd::try_wait_any().unwrap_err().errno(),
            Errno::ECHILD,
            "{name}"
        );
    }
    assert_eq!(before, (descriptors(), mounts()));
}

pub fn a_terminal_is_the_containers_own() {
    let machine = machine();
    let mut plan =
        machine.plan("tty; busybox stty size; ls -l /dev/console | busybox cut -c1; id -u");
    plan.process.terminal = true;
    plan.process.console_size = Some((132, 43));
    plan.process.uid = 1000;
    plan.steps.push(crisp_oci::plan::Step::Console);
    let fds = [machine.overlay()];
    let created = machine
        .create_with(&plan, &fds, IoPlan::Terminal)
        .expect("create");
    let console = created.console.expect("a console");
    created.gate.open().expect("start");
    let text = read_terminal(&console);
    assert_eq!(text, "/dev/pts/0\r\n43 132\r\nc\r\n1000\r\n");
    pidfd::wait(created.pidfd.as_fd()).expect("wait");
    remove(&created.cgroup);
}

/// Reads until the other side is closed, which a terminal reports as EIO.
pub fn read_terminal(master: &std::os::fd::OwnedFd) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = crisp_sys::fd::read(master.as_fd(), &mut buffer) {
        text.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8(text).expect("text")
}

pub fn exec_joins_everything() {
    let machine = machine();
    let running = machine.start(&machine.plan("sleep 1000"));
    let script = "echo $$ > /tmp/pid; busybox hostname; cat /proc/self/cgroup; ls /proc/self/fd; \
                  busybox ps | busybox grep -c 'sleep 1000'; for n in /proc/self/ns/*; do busybox readlink $n; done";
    let inside = machine.exec(&running, &process(&["sh", "-c", script]));
    assert_eq!(inside.status, WaitStatus::Exited(0), "{}", inside.text);
    let text = &inside.text;
    assert!(text.starts_with("inside\n"), "{text}");
    for line in text
        .lines()
        .filter(|line| line.contains("::/") || line.contains(":cpu:"))
    {
        assert!(line.ends_with(":/"), "not in the container's group: {line}");
    }
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
        let link = format!("/proc/{}/ns/{kind}", running.pid);
        let namespace = std::fs::read_link(link).expect("namespace");
        let namespace = namespace.to_string_lossy();
        assert!(
            text.lines().any(|line| line == namespace),
            "not in {namespace}: {text}"
        );
    }
    // ls has the directory itself open as 3.
    assert!(text.contains("\n0\n1\n2\n3\n"), "{text}");
    let code = machine.exec(&running, &process(&["sh", "-c", "exit 7"]));
    assert_eq!(code.status, WaitStatus::Exited(7));
}

pub fn exec_failure_leaves_the_container_alone() {
    let machine = machine();
    let running = machine.start(&machine.plan("sleep 1000"));
    let request = |args: &[&str], cwd: &str| {
        let mut process = process(args);
        process.cwd = cwd.into();
        let (_output, io) = pipes();
        let request = apply::ExecRequest {
            process: &process,
            io,
        };
        apply::exec(
            &machine.token,
            running.pidfd.as_fd(),
            &running.joined,
            &running.cgroup,
            request,
        )
        .expect_err("must fail")
    };
    let missing = request(&["nosuch"], "/");
    assert_eq!(
        (missing.stage(), missing.errno()),
        (Stage::Exec, Errno::ENOENT)
    );
    assert_eq!(
        missing.to_string(),
        "exec: \"nosuch\": executable file not found in $PATH"
    );
    assert_eq!(request(&["true"], "/nosuch").stage(), Stage::Cwd);
    assert!(matches!(request(&[], "/"), ExecError::Invalid(_)));
    assert_eq!(pidfd::try_wait_any().expect("init lives"), None);
    assert_eq!(
        machine.exec(&running, &process(&["true"])).status,
        WaitStatus::Exited(0)
    );
}

pub fn exec_with_terminal() {
    let machine = machine();
    let running = machine.start(&machine.plan("sleep 1000"));
    let mut process = process(&["sh", "-c", "tty; busybox stty size"]);
    process.terminal = true;
    process.console_size = Some((80, 24));
    let request = apply::ExecRequest {
        process: &process,
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
    assert_eq!(
        read_terminal(&exec.console.expect("a console")),
        "/dev/pts/0\r\n24 80\r\n"
    );
    pidfd::wait(exec.pidfd.as_fd()).expect("wait");
}

pub fn pid_namespace_of_another_container_is_joined() {
    let machine = machine();
    let pod = machine.start(&machine.plan("sleep 1000"));
    let other = crate::fixture::machine();
    let mut plan = other.plan("echo $$; cat /proc/1/cmdline; busybox hostname");
    plan.hostname = None;
    for entry in &mut plan.namespaces {
        let join = [
            NamespaceKind::Pid,
            NamespaceKind::Net,
            NamespaceKind::Ipc,
            NamespaceKind::Uts,
        ];
        if join.contains(&entry.kind) {
            entry.how = NamespaceHow::JoinPidfd(FdIndex(1));
        }
    }
    let (mut output, io) = pipes();
    let fds = [
        other.overlay(),
        crisp_sys::fd::dup(pod.pidfd.as_fd()).expect("dup"),
    ];
    let created = other.create_with(&plan, &fds, io).expect("create");
    created.gate.open().expect("start");
    let mut text = String::new();
    output.read_to_string(&mut text).expect("output");
    pidfd::wait(created.pidfd.as_fd()).expect("wait");
    remove(&created.cgroup);
    assert_eq!(text, "2\nsleep\u{0}1000\u{0}inside\n");
    // The maker's own children are in its own namespace again.
    let child = clone::clone3(&other.token, &CloneArgs::default(), |_| {
        i32::from(std::process::id() != 2 && std::process::id() != 3)
    })
    .expect("clone");
    assert_eq!(
        pidfd::wait(child.pidfd.as_fd()).expect("wait"),
        WaitStatus::Exited(1)
    );
    let exec = process(&["sh", "-c", "echo $$"]);
    let number: u32 = machine
        .exec(&pod, &exec)
        .text
        .trim()
        .parse()
        .expect("number");
    assert!((2..10).contains(&number), "{number}");
    drop(pod);
    assert_eq!(
        JoinedNamespaces::of(&plan),
        JoinedNamespaces::of(&other.plan(""))
    );
}

pub fn nothing_is_allocated_between_clone_and_exec() {
    let machine = machine();
    std::fs::create_dir(machine.dir.path().join("volume")).expect("mkdir");
    let mut plan = machine.plan("tty");
    let volume = crate::fixture::bind(&machine.dir.path().join("volume"), "/new/mount/point");
    plan.steps.push(crisp_oci::plan::Step::Bind(volume));
    plan.steps.push(crisp_oci::plan::Step::Console);
    plan.sysctls = vec![("kernel/msgmax".into(), "12345".into())];
    plan.process.terminal = true;
    plan.process.uid = 1000;
    plan.process.additional_gids = vec![1, 2, 3];
    plan.process.cwd = "/made/for/it".into();
    plan.process.oom_score_adj = Some(1000);
    plan.process.rlimits = vec![crisp_oci::plan::Rlimit {
        resource: 7,
        soft: 10,
        hard: 10,
    }];
    let fds = [machine.overlay()];
    Watched::arm();
    let created = machine
        .create_with(&plan, &fds, IoPlan::Terminal)
        .expect("create");
    created.gate.open().expect("start");
    Watched::disarm();
    assert_eq!(
        read_terminal(&created.console.expect("a console")),
        "/dev/pts/0\r\n"
    );
    pidfd::wait(created.pidfd.as_fd()).expect("wait");
    remove(&created.cgroup);
    let running = machine.start(&machine.plan("sleep 1000"));
    Watched::arm();
    let ended = machine.exec(&running, &process(&["true"]));
    Watched::disarm();
    assert_eq!(ended.status, WaitStatus::Exited(0));
}

pub fn the_host_keeps_its_mounts() {
    let machine = machine();
    let mounts = || {
        std::fs::read_to_string("/proc/self/mountinfo")
            .expect("mounts")
            .lines()
            .count()
    };
    let before = mounts();
    let running = machine.start(&machine.plan("sleep 1000"));
    assert_eq!(mounts(), before);
    drop(running);
}

pub fn death_of_the_maker_ends_a_waiting_init() {
    let machine = machine();
    let plan = machine.plan("echo ran");
    let (reader, writer) = crisp_sys::fd::pipe().expect("pipe");
    let maker = clone::clone3(&machine.token, &CloneArgs::default(), |_| {
        let (created, _output) = machine.create(&plan).expect("create");
        let pid = created.pid.to_string();
        crisp_sys::fd::write_all(writer.as_fd(), pid.as_bytes()).expect("write");
        // Ends without any destructor: the gate is neither opened nor closed by hand.
        std::process::exit(0)
    })
    .expect("clone");
    pidfd::wait(maker.pidfd.as_fd()).expect("wait");
    let mut buffer = [0; 16];
    let count = crisp_sys::fd::read(reader.as_fd(), &mut buffer).expect("read");
    let pid: i32 = std::str::from_utf8(&buffer[..count])
        .expect("text")
        .parse()
        .expect("pid");
    eventually("the waiting init ends", || {
        pidfd::start_time(pid).is_err()
            || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| s.contains(") Z"))
    });
    let cgroup = crisp_oci::cgroup::Cgroup::observe(&plan.cgroup.hierarchy, &plan.cgroup.path)
        .expect("a path");
    eventually("its group can be removed", || cgroup.remove().is_ok());
    assert!(machine.groups_left().is_empty());
}
