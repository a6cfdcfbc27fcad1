//! Hooks: when they run, where, what they are told, and what becomes of those that fail.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crisp_oci::apply::{
    CreateError, Created, HookError, HookFailure, JoinedNamespaces, Stage, Within,
};
use crisp_oci::plan::{HookPlan, HooksPlan, Plan, Step};
use crisp_sys::pidfd;

use crate::fixture::{Machine, bind, eventually, machine, remove};

/// A hook that runs a script of the host's busybox; in the container there is one at the same place.
fn hook(script: &str) -> HookPlan {
    HookPlan {
        path: "/bin/busybox".into(),
        args: ["sh", "-c", script].map(str::to_owned).into(),
        env: vec!["PATH=/bin:/usr/bin".into(), "FROM=plan".into()],
        timeout: Some(30),
    }
}

/// The directory that host and container share, and a plan with it at /v and a mount point for hooks.
fn shared(machine: &Machine, script: &str) -> (PathBuf, Plan) {
    let volume = machine.dir.path().join("volume");
    fs::create_dir(&volume).expect("mkdir");
    fs::create_dir(machine.dir.path().join("mnt")).expect("mkdir");
    let mut plan = machine.plan(script);
    plan.steps.push(Step::Bind(bind(&volume, "/v")));
    plan.hooks = Some(HooksPlan {
        oci_version: "1.2.0".into(),
        root_path: machine.dir.path().join("mnt").display().to_string(),
        annotations: vec![("vendor".into(), "some \"words\"".into())],
        ..HooksPlan::default()
    });
    (volume, plan)
}

/// Traces its name and keeps the state it was told, below `directory`.
fn traced(name: &str, directory: &Path) -> HookPlan {
    let to = directory.display();
    hook(&format!(
        "echo {name} >> {to}/trace; busybox cat > {to}/{name}"
    ))
}

/// Starts a created container as the monitor does, and runs it to its end. Its output.
fn run(machine: &Machine, plan: &Plan) -> Result<String, HookError> {
    let (created, mut output) = machine
        .create(plan)
        .unwrap_or_else(|error| panic!("{error:?}"));
    let Created {
        pid,
        pidfd,
        gate,
        cgroup,
        hooks,
        ..
    } = created;
    let joined = JoinedNamespaces::of(plan);
    let within = Within {
        init: pidfd.as_fd(),
        pid,
        joined: &joined,
        cgroup: &cgroup,
    };
    let hooks = hooks.expect("the plan has hooks");
    let started = hooks.before_start(&machine.token, within).and_then(|()| {
        gate.open().expect("start");
        hooks.after_start(&machine.token, pid)
    });
    if started.is_err() {
        pidfd::send_signal(pidfd.as_fd(), 9).expect("kill");
    }
    let mut text = String::new();
    output.read_to_string(&mut text).expect("output");
    pidfd::wait(pidfd.as_fd()).expect("wait");
    remove(&cgroup);
    assert!(hooks.after_stop(&machine.token).is_empty());
    started.map(|()| text)
}

fn state(volume: &Path, name: &str) -> serde_json::Value {
    let text = fs::read(volume.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    serde_json::from_slice(&text).expect("JSON")
}

pub fn hooks_run_in_order_and_are_told_the_state() {
    let machine = machine();
    let (volume, mut plan) = shared(&machine, "echo program >> /v/trace");
    let hooks = plan.hooks.as_mut().expect("hooks");
    hooks.prestart = vec![traced("prestart", &volume)];
    hooks.create_runtime = vec![traced("createRuntime", &volume), traced("second", &volume)];
    hooks.create_container = vec![traced("createContainer", &volume)];
    hooks.start_container = vec![traced("startContainer", Path::new("/v"))];
    hooks.poststart = vec![traced("poststart", &volume)];
    hooks.poststop = vec![traced("poststop", &volume)];
    run(&machine, &plan).expect("hooks pass");
    let trace = fs::read_to_string(volume.join("trace")).expect("trace");
    let mut seen: Vec<&str> = trace.lines().collect();
    let program = seen
        .iter()
        .position(|line| *line == "program")
        .expect("it ran");
    assert!(program > 4, "{trace}");
    seen.remove(program);
    let order = [
        "prestart",
        "createRuntime",
        "second",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ];
    assert_eq!(seen, order);
    for (name, status) in [
        ("prestart", "creating"),
        ("createRuntime", "creating"),
        ("createContainer", "creating"),
        ("startContainer", "created"),
        ("poststart", "running"),
        ("poststop", "stopped"),
    ] {
        let state = state(&volume, name);
        assert_eq!(state["status"], status, "{name}");
        assert_eq!(state["id"], machine.name(), "{name}");
        assert_eq!(state["ociVersion"], "1.2.0", "{name}");
        assert_eq!(state["annotations"]["vendor"], "some \"words\"", "{name}");
        let bundle = machine.dir.path().display().to_string();
        assert_eq!(state["bundle"], bundle, "{name}");
    }
    // Numbers as those see them who are told.
    let pid = |name| state(&volume, name)["pid"].as_i64();
    assert_eq!(pid("createContainer"), Some(1));
    assert_eq!(pid("startContainer"), Some(1));
    assert!(pid("createRuntime").expect("a number") > 1);
    assert_eq!(pid("createRuntime"), pid("poststart"));
    assert_eq!(pid("poststop"), None);
}

pub fn create_container_hooks_change_the_root_before_the_pivot() {
    let machine = machine();
    let (volume, mut plan) = shared(&machine, "cat /made; cat /v/names");
    let mnt = machine.dir.path().join("mnt");
    let root = mnt.display();
    let to = volume.display();
    let hooks = plan.hooks.as_mut().expect("hooks");
    // The host's tree and the container's names are both in sight, and the volume in the root.
    hooks.create_container = vec![hook(&format!(
        "echo by-$FROM > {root}/made; busybox hostname > {to}/names; \
         test -e {root}/v/names && echo mounted >> {to}/names; \
         busybox id -u >> {to}/names; pwd >> {to}/names"
    ))];
    let text = run(&machine, &plan).expect("hooks pass");
    assert_eq!(text, "by-plan\ninside\nmounted\n0\n/\n");
    let left = fs::read_dir(&mnt).expect("readdir").count();
    assert_eq!(left, 0, "nothing of it is on the host");
}

pub fn a_hook_gets_its_own_three_descriptors_only() {
    let machine = machine();
    let (volume, mut plan) = shared(&machine, "true");
    let to = volume.display();
    let list = |name: &str, to: &dyn std::fmt::Display| {
        hook(&format!(
            "busybox ls /proc/self/fd > {to}/fds-{name}; umask >> {to}/fds-{name}"
        ))
    };
    let hooks = plan.hooks.as_mut().expect("hooks");
    hooks.create_runtime = vec![list("runtime", &to)];
    hooks.create_container = vec![list("container", &to)];
    hooks.start_container = vec![list("start", &"/v")];
    run(&machine, &plan).expect("hooks pass");
    for name in ["runtime", "container", "start"] {
        let seen = fs::read_to_string(volume.join(format!("fds-{name}"))).expect("read");
        // The fourth one is the directory that ls reads.
        assert_eq!(seen, "0\n1\n2\n3\n0022\n", "{name}");
    }
}

pub fn a_hook_that_fails_before_the_start_undoes_the_container() {
    let machine = machine();
    let (volume, plan) = shared(&machine, "echo ran > /v/ran");
    let to = volume.display();
    let failing = hook("echo no such device; exit 3");
    for point in ["createRuntime", "createContainer"] {
        let mut plan = plan.clone();
        let hooks = plan.hooks.as_mut().expect("hooks");
        hooks.poststop = vec![hook(&format!("echo {point} >> {to}/stopped"))];
        match point {
            "createRuntime" => hooks.create_runtime = vec![failing.clone()],
            _ => hooks.create_container = vec![failing.clone()],
        }
        let error = machine.create(&plan).expect_err("the hook fails");
        assert_eq!(error.stage(), Stage::Hook, "{error:?}");
        let text = match &error {
            CreateError::Hook(error) => format!("{error}: {:?}", error.source),
            CreateError::Child(failure) => failure.message.clone(),
            other => panic!("{other:?}"),
        };
        for part in [point, "[0]", "/bin/busybox", "no such device", "3"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(machine.groups_left().is_empty());
    }
    assert!(!volume.join("ran").exists());
    let stopped = fs::read_to_string(volume.join("stopped")).expect("poststop ran");
    assert_eq!(stopped, "createRuntime\ncreateContainer\n");
}

pub fn a_hook_that_fails_at_the_start_is_told() {
    let machine = machine();
    let (volume, plan) = shared(&machine, "echo ran >> /v/ran; sleep 1000");
    let mut first = plan.clone();
    first.hooks.as_mut().expect("hooks").start_container = vec![hook("exit 1")];
    let error = run(&machine, &first).expect_err("it fails");
    assert_eq!(error.point, "startContainer");
    assert!(!volume.join("ran").exists(), "the gate stayed closed");
    let mut second = plan.clone();
    let missing = HookPlan {
        path: "/there/is/none".into(),
        ..hook("")
    };
    second.hooks.as_mut().expect("hooks").poststart = vec![missing];
    let error = run(&machine, &second).expect_err("it fails");
    assert_eq!((error.point, error.index), ("poststart", 0));
    let HookFailure::Ended { status, said } = error.source else {
        panic!("{error:?}")
    };
    assert_eq!(status.code(), 127, "{said}");
    assert!(
        said.contains("ENOENT") || said.contains("no such"),
        "{said}"
    );
}

pub fn a_hook_ends_at_its_timeout_with_all_it_started() {
    let machine = machine();
    let (volume, mut plan) = shared(&machine, "true");
    let to = volume.display();
    let hooks = plan.hooks.as_mut().expect("hooks");
    hooks.create_container = vec![HookPlan {
        timeout: Some(1),
        ..hook(&format!("busybox sleep 1000 & echo $! > {to}/pid; wait"))
    }];
    let began = Instant::now();
    let error = machine.create(&plan).expect_err("it is killed");
    assert!(error.to_string().contains("killed after 1 s"), "{error}");
    assert!(began.elapsed().as_secs() < 30);
    assert!(volume.join("pid").exists(), "it was under way");
    assert!(machine.groups_left().is_empty(), "nothing of it runs");
}

pub fn what_a_hook_prints_or_leaves_running_holds_nobody_up() {
    let machine = machine();
    let (volume, mut plan) = shared(&machine, "true");
    let to = volume.display();
    let hooks = plan.hooks.as_mut().expect("hooks");
    let left = format!("busybox sleep 1000 & echo $! > {to}/left");
    hooks.create_runtime = vec![
        hook("busybox head -c 3000000 /dev/zero; echo; exit 0"),
        hook(&left),
    ];
    run(&machine, &plan).expect("hooks pass");
    let pid = fs::read_to_string(volume.join("left")).expect("read");
    let pid: i32 = pid.trim().parse().expect("a number");
    let process = pidfd::open(pid).expect("it goes on");
    pidfd::send_signal(process.as_fd(), 9).expect("kill");
    eventually("it ends", || {
        while let Ok(Some(_)) = pidfd::try_wait_any() {}
        !Path::new(&format!("/proc/{pid}")).exists()
    });
}
