//! Containers that lie in wait for the processes that join them.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use conmon_rs::protocol::{
    ExecRequest, Frame, PROTOCOL_VERSION, Phase, Reply, Request, SOCKET_NAME,
};
use crisp_oci::plan::{Plan, ProcessPlan};

use crate::fixture::{Monitor, Site, eventually, process};

const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;

/// A site whose root filesystem has the program `harm`.
fn harmful() -> Site {
    let site = Site::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/monitor/harm.c");
    let mut compile = Command::new("gcc");
    compile.args(["-static", "-O1", "-Wall", "-Werror", "-o"]);
    compile
        .arg(site.dir.path().join("rootfs/bin/harm"))
        .arg(source);
    assert!(compile.status().expect("gcc").success());
    site
}

fn add(process: &mut ProcessPlan, capability: u64) {
    let caps = &mut process.capabilities;
    for set in [&mut caps.bounding, &mut caps.effective, &mut caps.permitted] {
        *set |= capability;
    }
}

fn text(site: &Site) -> String {
    let records = site.records().into_iter();
    let lines = records.map(|record| String::from_utf8_lossy(&record.content).into_owned() + "\n");
    lines.collect()
}

fn end(site: &Site, mut monitor: Monitor) {
    monitor.done(Request::KillAll);
    monitor.exited();
    monitor.acknowledge();
    assert!(!site.group_exists());
}

/// The last count of this kind that the tracer told.
fn counted(text: &str, word: &str) -> u64 {
    let mut words = text.split_whitespace().rev();
    let mut later = "0";
    words
        .find_map(|one| {
            let found = (one == word).then_some(later);
            later = one;
            found
        })
        .map_or(0, |count| count.parse().unwrap_or(0))
}

#[test]
fn an_exec_that_joins_can_be_neither_traced_nor_looked_into() {
    let site = harmful();
    let canary = site.dir.path().join("canary");
    fs::write(&canary, "of the host").unwrap();
    let canary = canary.display().to_string();
    let mut monitor = site.start(&site.plan(&["harm", "trace", &canary]));
    eventually("it lies in wait", || text(&site).contains("ready"));
    for _ in 0..300 {
        let (exec, ..) = monitor.exec(&process(&["true"])).unwrap();
        assert_eq!(monitor.exec_exited(exec), (0, 0));
    }
    // What has become a program of the container's is for its root to trace.
    let (exec, ..) = monitor.exec(&process(&["sleep", "1000"])).unwrap();
    eventually("it traces what is the container's own", || {
        counted(&text(&site), "traced") > 0
    });
    assert!(exec > 0);
    let seen = text(&site);
    println!(
        "P7 a tracer beside 300 execs: {} looks, memory of {} and {} traced once they were its own, \
         {} before",
        counted(&seen, "looks"),
        counted(&seen, "memory"),
        counted(&seen, "traced"),
        seen.matches("BREACH").count()
    );
    assert!(!seen.contains("BREACH"), "{seen}");
    end(&site, monitor);
}

#[test]
fn who_may_trace_does_not_reach_the_host_through_an_exec_that_joins() {
    let site = harmful();
    let canary = site.dir.path().join("canary");
    fs::write(&canary, "of the host").unwrap();
    let canary = canary.display().to_string();
    let mut plan = site.plan(&["harm", "trace", &canary]);
    add(&mut plan.process, SYS_PTRACE);
    let mut monitor = site.start(&plan);
    eventually("it lies in wait", || text(&site).contains("ready"));
    // As a daemon asks for it where somebody in the pod has this capability.
    let wanted = ProcessPlan {
        guarded: true,
        ..process(&["true"])
    };
    for _ in 0..300 {
        let (exec, ..) = monitor.exec(&wanted).unwrap();
        assert_eq!(monitor.exec_exited(exec), (0, 0));
    }
    let stays = ProcessPlan {
        args: process(&["sleep", "1000"]).args,
        ..wanted
    };
    let (exec, ..) = monitor.exec(&stays).unwrap();
    eventually("it traces", || counted(&text(&site), "traced") > 0);
    assert!(exec > 0);
    let seen = text(&site);
    // It may stop what is about to be its container's, and finds nothing there that it has not.
    let host = |line: &&str| {
        let early = line.contains("memory of") || line.contains("traced");
        line.starts_with("BREACH") && !early
    };
    let found: Vec<&str> = seen.lines().filter(host).collect();
    println!(
        "P7 the same with CAP_SYS_PTRACE: {} looks, {} times it stopped a process before its program, \
         {} times that had something of the host's",
        counted(&seen, "looks"),
        seen.matches("BREACH traced").count(),
        found.len()
    );
    assert!(found.is_empty(), "{found:?}");
    end(&site, monitor);
}

/// An exec with a terminal: its number, or why there is none.
fn terminal(monitor: &mut Monitor, args: &[&str]) -> Result<u64, Box<Reply>> {
    let wanted = ProcessPlan {
        terminal: true,
        ..process(args)
    };
    let request = ExecRequest {
        process: Some(crisp_oci::wire::encode_process(&wanted)),
        terminal: true,
    };
    match monitor.ask_with(Request::Exec(request), Vec::new()).0 {
        Reply::ExecStarted { exec, .. } => Ok(exec),
        other => Err(Box::new(other)),
    }
}

#[test]
fn a_container_that_replaced_its_proc_and_devices_gains_nothing_from_execs() {
    let site = Site::new();
    let script = "busybox mount -t tmpfs t /proc; busybox mkdir -p /proc/self/attr /proc/self/fd; \
        for f in exe oom_score_adj attr/exec fd/0; do busybox ln -s /tmp/evil /proc/self/$f; done; \
        busybox rm -f /dev/null /dev/tty; busybox mkfifo /dev/null; busybox ln -s /tmp/evil /dev/tty; \
        busybox umount /dev/pts; busybox ln -s /tmp/evil /dev/pts/ptmx; \
        busybox ln -s /tmp/evil /dev/console; echo ready; exec sleep 1000";
    let mut plan: Plan = site.plan(&["sh", "-c", script]);
    add(&mut plan.process, SYS_ADMIN);
    plan.process.no_new_privileges = false;
    let mut monitor = site.start(&plan);
    eventually("all is replaced", || text(&site).contains("ready"));
    let mut wanted = process(&["echo", "fine"]);
    wanted.oom_score_adj = Some(500);
    let (exec, _, mut pipe) = monitor.exec(&wanted).unwrap();
    let mut printed = String::new();
    pipe.read_to_string(&mut printed).unwrap();
    assert_eq!(monitor.exec_exited(exec), (0, 0));
    assert_eq!(printed, "fine\n");
    let refused = terminal(&mut monitor, &["true"]).expect_err("a terminal out of nothing");
    let Reply::Error { stage, message, .. } = *refused else {
        panic!("{refused:?}")
    };
    let told = format!("{stage}: {message}");
    println!(
        "P6 /proc, /dev/null and /dev/pts replaced: an exec runs, a terminal is refused: {told}"
    );
    let upper = site.dir.path().join("upper/tmp");
    assert!(!upper.join("evil").exists(), "something was written there");
    assert_eq!(monitor.hello().0.phase, Phase::Running);
    end(&site, monitor);
}

#[test]
fn a_user_whose_key_quota_is_used_up_still_gets_execs() {
    let site = harmful();
    let mut plan = site.plan(&["harm", "keys"]);
    // A user that nobody else has, so that nobody else runs out of keys.
    let user = 71_000 + std::process::id() % 1000;
    plan.process.uid = user;
    plan.process.gid = user;
    let mut monitor = site.start(&plan);
    eventually("there is no room", || text(&site).contains("keys "));
    let mut wanted = process(&["id", "-u"]);
    wanted.uid = user;
    wanted.gid = user;
    let mut fine = 0;
    for _ in 0..20 {
        let (exec, _, mut pipe) = monitor.exec(&wanted).unwrap();
        let mut printed = String::new();
        pipe.read_to_string(&mut printed).unwrap();
        assert_eq!(monitor.exec_exited(exec), (0, 0));
        fine += usize::from(printed == format!("{user}\n"));
    }
    println!(
        "P14 {}: {fine} of 20 execs of the same user run",
        text(&site).trim()
    );
    assert_eq!(fine, 20);
    end(&site, monitor);
    // And the next container of the same user is made.
    let site = Site::new();
    let mut plan = site.plan(&["true"]);
    plan.process.uid = user;
    let mut monitor = site.start(&plan);
    assert_eq!(monitor.exited().code, 0);
    monitor.acknowledge();
}

#[test]
fn a_container_that_sees_a_monitors_socket_is_shown_out() {
    for (who, user) in [("as another user", 1000), ("as root", 0)] {
        let site = harmful();
        // The state directory as a volume, its doors open.
        let place = site.dir.path().join("rootfs/state");
        fs::create_dir(&place).unwrap();
        let hello = Request::Hello {
            version: PROTOCOL_VERSION,
        };
        let bytes = Frame::Request {
            seq: 1,
            request: hello,
        }
        .encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let script = format!(
            "while [ ! -e /tmp/go ]; do sleep 0.02; done; harm talk /state/{SOCKET_NAME} {hex}"
        );
        let mut plan = site.plan(&["sh", "-c", &script]);
        plan.process.uid = user;
        plan.steps
            .push(crisp_oci::plan::Step::Bind(crisp_oci::plan::BindStep {
                source: site.state().display().to_string(),
                target: "/state".into(),
                ..crisp_oci::plan::BindStep::default()
            }));
        let mut monitor = site.start(&plan);
        for path in [site.state(), site.state().join(SOCKET_NAME)] {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
        }
        let go = format!("/proc/{}/root/tmp/go", monitor.init);
        fs::write(go, "").unwrap();
        assert_eq!(monitor.exited().code, 0);
        let told = text(&site);
        println!(
            "M1 a container that is given its monitor's directory, {who}: {}",
            told.trim()
        );
        assert!(told.contains("shown out"), "{told}");
        monitor.acknowledge();
    }
}
