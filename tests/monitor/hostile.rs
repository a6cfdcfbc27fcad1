//! Containers that mean harm: the monitor stays itself, and they end when they are told to.

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::time::Instant;

use conmon_rs::protocol::{Event, ExecRequest, Frame, Phase, Reply, Request};
use crisp_oci::plan::{NamespaceKind, Plan};
use crisp_sys::pidfd;

use crate::fixture::{Monitor, Site, eventually, process};

/// Ends the container and tells how long that took.
#[expect(clippy::print_stdout, reason = "what happened is told to a reader")]
fn end(what: &str, mut monitor: Monitor, site: &Site) {
    let began = Instant::now();
    monitor.done(Request::KillAll);
    let record = monitor.exited();
    println!(
        "{what}: ended with {} within {:?}",
        record.code,
        began.elapsed()
    );
    assert!(
        !site.cgroup().populated().unwrap_or(false),
        "{what}: something lives on"
    );
    monitor.acknowledge();
    assert!(!site.group_exists());
}

/// What it makes stays when a shell gives up because no more can be made.
const BOMB: &str = "bomb() { sleep 1000 & bomb & bomb; }; bomb";

fn at_most(plan: &mut Plan, processes: i64) {
    plan.cgroup.resources.pids_limit = Some(processes);
}

/// Everything the exec prints.
fn output(monitor: &mut Monitor, args: &[&str]) -> String {
    let (exec, _, mut pipe) = monitor.exec(&process(args)).expect("an exec");
    let mut text = String::new();
    pipe.read_to_string(&mut text).expect("output");
    monitor.exec_exited(exec);
    text
}

#[test]
fn a_fork_bomb_stays_within_its_limit_and_is_ended() {
    let site = Site::new();
    let script = format!("({BOMB}) & exec sleep 1000");
    let mut plan = site.plan(&["sh", "-c", &script]);
    at_most(&mut plan, 40);
    let mut monitor = site.start(&plan);
    let mut most = 0;
    eventually("it has grown", || {
        most = most.max(site.cgroup().pids().unwrap().len());
        most >= 15
    });
    // An exec needs room too: it is refused or runs, and the monitor says so.
    let told = match monitor.exec(&process(&["true"])) {
        Ok((exec, ..)) => format!("ran and ended with {:?}", monitor.exec_exited(exec)),
        Err(reply) => format!("{reply:?}"),
    };
    println!("P2 {most} processes of 40, an exec meanwhile: {told}");
    assert!(most <= 40);
    assert_eq!(monitor.hello().0.phase, Phase::Running);
    end("a fork bomb", monitor, &site);

    let site = Site::new();
    let mut plan = site.plan(&["sleep", "1000"]);
    at_most(&mut plan, 40);
    let mut monitor = site.start(&plan);
    monitor.exec(&process(&["sh", "-c", BOMB])).unwrap();
    eventually("it has grown", || site.cgroup().pids().unwrap().len() >= 15);
    end("a fork bomb by exec", monitor, &site);
}

#[test]
fn endless_output_without_a_newline_takes_no_memory() {
    let size: u64 = match std::env::var_os("CRISP_TEST_FULL") {
        Some(_) => 1 << 30,
        None => 64 << 20,
    };
    let site = Site::new();
    let script = format!("head -c {size} /dev/zero; head -c {size} /dev/urandom >&2");
    let (mut monitor, record) = site.run(&script);
    assert_eq!((record.code, record.lost_bytes), (0, 0));
    let peak = monitor.smaps("Anonymous");
    let written = monitor.hello().0.log.written_bytes;
    println!("P1 {size} bytes of NUL and of noise: {written} bytes of log, {peak} KiB anonymous");
    assert!(written > 2 * size && peak < 1024);
    monitor.acknowledge();
}

#[test]
fn what_a_container_kills_is_its_own() {
    let site = Site::new();
    let script = "echo my parent is $PPID; \
        (trap '' TERM; sleep 1000) & sleep 1000 & \
        sh -c 'kill -9 $PPID; kill -9 1; kill -9 -1; echo the caller itself is spared'; \
        echo survived; kill -9 -1; echo still here; exec sleep 1000";
    let mut monitor = site.shell(script);
    eventually("init goes on", || {
        let text = String::from_utf8_lossy(&site.log_bytes()).into_owned();
        text.contains("still here")
    });
    let text = String::from_utf8_lossy(&site.log_bytes()).into_owned();
    println!("{text}");
    assert!(
        text.contains("my parent is 0"),
        "it does not see the monitor"
    );
    assert!(text.contains("spared"));
    assert_eq!(monitor.hello().0.phase, Phase::Running);
    assert_eq!(
        monitor.init,
        site.cgroup().pids().unwrap()[0],
        "init is left alone"
    );
    end("a killer", monitor, &site);
}

#[test]
fn zombies_are_no_load() {
    let site = Site::new();
    // Init executes a program that reaps nobody.
    let script = "for i in $(seq 200); do true & done; exec sleep 1000";
    let mut monitor = site.shell(script);
    let zombies = || {
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let stats = pids.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
        let of_init = format!(") Z {} ", monitor.init);
        stats.filter(|stat| stat.contains(&of_init)).count()
    };
    eventually("they are dead", || zombies() >= 200);
    println!("{} zombies", zombies());
    assert_eq!(output(&mut monitor, &["echo", "fine"]), "fine\n");
    end("zombies", monitor, &site);
}

#[test]
fn streams_may_be_closed_swapped_and_opened_again() {
    let site = Site::new();
    let script = "exec 3>&1; exec >&-; echo lost; exec >/proc/self/fd/3; echo back; \
        exec >/dev/null 2>&-; echo none; echo by name > /proc/1/fd/3; exec 3>&-; exec sleep 1000";
    let mut monitor = site.shell(script);
    eventually("it prints by name", || {
        String::from_utf8_lossy(&site.log_bytes()).contains("by name")
    });
    let contents: Vec<String> = site
        .records()
        .into_iter()
        .filter(|record| record.stream == "stdout")
        .map(|record| String::from_utf8_lossy(&record.content).into_owned())
        .collect();
    println!("P4 streams closed and opened again: {contents:?} arrive, it runs on");
    assert_eq!(contents, ["back", "by name"]);
    assert_eq!(monitor.hello().0.phase, Phase::Running);
    // None of them is a socket: nothing can be sent through but bytes.
    for number in 0..3 {
        let path = format!("/proc/{}/fd/{number}", monitor.init);
        if let Ok(data) = fs::metadata(path) {
            assert!(!data.file_type().is_socket());
        }
    }
    println!("P3 none of its streams is a socket: no descriptor can be sent through them");
    end("closed streams", monitor, &site);
}

#[test]
fn nobody_sees_the_monitor_in_an_exec_that_joins() {
    let site = Site::new();
    // It looks at every process there is, as root and as fast as it can, for what it executes, what
    // it has open, and its memory.
    let spy = "while :; do for p in /proc/[0-9]*; do \
        for what in exe root cwd; do echo $p $what $(readlink $p/$what); done; \
        cat $p/environ $p/maps 2>/dev/null | head -c 200; done; done";
    let mut monitor = site.shell(&format!(
        "readlink() {{ busybox readlink $1; }}; {spy} >/tmp/seen"
    ));
    for _ in 0..200 {
        let (exec, ..) = monitor.exec(&process(&["true"])).unwrap();
        assert_eq!(monitor.exec_exited(exec), (0, 0));
    }
    let seen = fs::read(site.dir.path().join("upper/tmp/seen")).unwrap();
    let text = String::from_utf8_lossy(&seen);
    println!(
        "P5 a spy in an exec that joins: {} looks, {} bytes, none of the monitor's",
        text.matches(" exe ").count(),
        seen.len()
    );
    assert!(text.contains("/bin/busybox"), "it looks");
    assert!(!text.contains("conmon"), "it saw the monitor's program");
    assert!(!text.contains("/rootfs") && !text.contains("/proc/self/fd"));
    end("a spy", monitor, &site);
}

#[test]
fn the_monitors_program_cannot_be_executed_or_written_through_an_exec() {
    let site = Site::new();
    let mut monitor = site.shell("sleep 1000");
    // While it is being made, the new process is a copy of the monitor; what it finds under this
    // name is that program.
    let told = match monitor.exec(&process(&["/proc/self/exe", "--version"])) {
        Ok((exec, _, mut pipe)) => {
            let mut text = String::new();
            pipe.read_to_string(&mut text).unwrap();
            format!("{:?} {text:?}", monitor.exec_exited(exec))
        }
        Err(reply) => format!("{reply:?}"),
    };
    println!("P5 /proc/self/exe as a program: {told}");
    assert!(!told.contains("conmon-rs"), "{told}");
    end("self", monitor, &site);
}

#[test]
fn a_storm_of_kills_for_memory_is_counted() {
    let site = Site::new();
    let script = "while :; do dd if=/dev/zero of=/dev/null bs=40M count=1; done 2>/dev/null";
    let mut plan = site.plan(&["sh", "-c", script]);
    plan.cgroup.resources.memory_limit = Some(25 << 20);
    plan.cgroup.resources.memory_swap = Some(25 << 20);
    let mut monitor = site.start(&plan);
    let count = monitor.event(|event| match event {
        Event::Oom { count } if *count >= 20 => Some(*count),
        _ => None,
    });
    println!("P9 {count} kills for memory are told, it runs on");
    assert_eq!(output(&mut monitor, &["echo", "fine"]), "fine\n");
    monitor.done(Request::KillAll);
    let record = monitor.exited();
    assert!(record.oom_killed && record.oom_kill_count >= count);
    monitor.acknowledge();
}

#[test]
fn a_container_that_stops_itself_is_ended() {
    let site = Site::new();
    let script = "trap '' TERM INT HUP; (trap '' TERM; sleep 1000) & kill -STOP $!; \
        echo stopped; while :; do sleep 1000; done";
    let mut plan = site.plan(&["sh", "-c", script]);
    plan.namespaces
        .retain(|entry| entry.kind != NamespaceKind::Pid);
    let mut monitor = site.start(&plan);
    eventually("it is stopped", || !site.log_bytes().is_empty());
    let init = pidfd::open(monitor.init).unwrap();
    pidfd::send_signal(init.as_fd(), libc::SIGSTOP).unwrap();
    monitor.done(Request::Signal {
        signo: libc::SIGTERM,
    });
    assert_eq!(monitor.hello().0.phase, Phase::Running);
    end("a stopped one", monitor, &site);
}

/// An exec that is asked for and not waited for; the number of the request.
fn post_exec(monitor: &mut Monitor, args: &[&str]) -> u64 {
    let null = || std::os::fd::OwnedFd::from(fs::File::open("/dev/null").expect("null"));
    let bytes = crisp_oci::wire::encode_process(&process(args));
    let (request, _) = ExecRequest::inline_or_memfd(bytes, false);
    monitor.post(Request::Exec(request), &[null(), null(), null()])
}

#[test]
fn an_exec_that_hangs_holds_nobody_up() {
    let site = Site::new();
    let mut monitor = site.shell("exec sleep 1000");
    site.cgroup().freeze().unwrap();
    let first = post_exec(&mut monitor, &["true"]);
    let second = post_exec(&mut monitor, &["false"]);
    // It answers what comes after them.
    let began = Instant::now();
    assert_eq!(monitor.hello().0.phase, Phase::Running);
    println!(
        "P10 two execs hang in a frozen container, hello is answered after {:?}",
        began.elapsed()
    );
    site.cgroup().thaw().unwrap();
    let mut codes = std::collections::BTreeMap::new();
    let mut asked_by = std::collections::BTreeMap::new();
    while codes.len() < 2 {
        match monitor.receive() {
            Some((
                Frame::Reply {
                    seq,
                    reply: Reply::ExecStarted { exec, .. },
                },
                _,
            )) => {
                asked_by.insert(exec, seq);
            }
            Some((Frame::Event(Event::ExecExited { exec, code, .. }), _)) => {
                codes.insert(asked_by[&exec], code);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((codes[&first], codes[&second]), (0, 1));
    // Frozen once more, it ends with all that hangs in it.
    site.cgroup().freeze().unwrap();
    let asked = post_exec(&mut monitor, &["true"]);
    monitor.hello();
    let ending = monitor.post(Request::KillAll, &[]);
    let (mut refused, mut killed) = (false, false);
    while !(refused && killed) {
        match monitor.receive() {
            Some((
                Frame::Reply {
                    seq,
                    reply: Reply::Error { .. },
                },
                _,
            )) if seq == asked => refused = true,
            Some((
                Frame::Reply {
                    seq,
                    reply: Reply::Ok,
                },
                _,
            )) if seq == ending => killed = true,
            Some((Frame::Event(event), _)) => monitor.events.push_back(event),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(monitor.exited().code, 137);
    monitor.acknowledge();
    assert!(!site.group_exists());
}
