//! From Create to the end of the monitor.

use std::fs;
use std::path::Path;
use std::time::Duration;

use conmon_rs::protocol::{CreateRequest, Event, Phase, Reply, Request, STAGE_PHASE};
use crisp_oci::plan::NamespaceKind;

use crate::fixture::{Monitor, Site, eventually, process};

#[test]
fn a_container_runs_and_is_reported_in_order() {
    let site = Site::new();
    let mut monitor = site.create(&site.plan(&["sh", "-c", "echo out; echo err >&2; exit 3"]));
    let (snapshot, fds) = monitor.hello();
    assert_eq!(
        (snapshot.phase, snapshot.pid),
        (Phase::Created, monitor.init)
    );
    assert_eq!(fds.len(), 1, "init's pidfd");
    assert!(site.log().exists());
    assert_eq!(site.exit_file(), None);

    monitor.done(Request::Start);
    let record = monitor.exited();
    // Whoever hears the event finds log and record complete.
    let seen = site.records();
    assert_eq!(site.exit_file(), Some(record.clone()));
    assert_eq!(
        (record.code, record.signal, record.reason.as_str()),
        (3, 0, "Error")
    );
    assert_eq!(record.pid, monitor.init);
    assert!(record.started_at_ns > 0 && record.finished_at_ns >= record.started_at_ns);
    let mut lines: Vec<_> = seen
        .iter()
        .map(|r| {
            format!(
                "{} {} {}",
                r.stream,
                r.tag,
                String::from_utf8_lossy(&r.content)
            )
        })
        .collect();
    lines.sort();
    assert_eq!(lines, ["stderr F err", "stdout F out"]);

    let (snapshot, fds) = monitor.hello();
    assert_eq!(
        (snapshot.phase, snapshot.exit, fds.len()),
        (Phase::Exited, Some(record), 0)
    );
    eventually("the group is removed", || !site.group_exists());
    monitor.acknowledge();
    assert_eq!(
        fs::read_dir(site.state()).unwrap().count(),
        1,
        "only the exit record is left"
    );
}

#[test]
fn exit_codes_and_signals() {
    let site = Site::new();
    for (script, code, signal, reason) in [
        ("exit 0", 0, 0, "Completed"),
        ("exit 255", 255, 0, "Error"),
        ("exit 256", 0, 0, "Completed"),
        ("kill -9 $$; sleep 100", 137, 9, "Error"),
    ] {
        // The init of a PID namespace is immune to its own signals, so that one is sent from outside.
        let mut monitor = site.shell(if signal == 0 { script } else { "sleep 1000" });
        if signal != 0 {
            monitor.done(Request::Signal { signo: signal });
        }
        let record = monitor.exited();
        assert_eq!(
            (record.code, record.signal, record.reason.as_str()),
            (code, signal, reason),
            "{script}"
        );
        monitor.acknowledge();
    }
    let mut monitor = site.shell("trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done");
    eventually("the trap is set", || !site.log_bytes().is_empty());
    monitor.done(Request::Signal {
        signo: libc::SIGTERM,
    });
    assert_eq!(monitor.exited().code, 7);
}

#[test]
fn a_program_that_cannot_be_executed() {
    let site = Site::new();
    // Found missing before anything waits for a start.
    let mut monitor = Monitor::spawn();
    let plan = site.plan(&["nonesuch"]);
    let fds = site.plan_fds(&plan);
    let (reply, _) = monitor.ask_with(Request::Create(site.request()), fds);
    let Reply::Error { errno, message, .. } = reply else {
        panic!("{reply:?}")
    };
    assert_eq!(errno, libc::ENOENT, "{message}");
    assert!(message.contains("nonesuch"), "{message}");
    assert_eq!(monitor.ended(), Some(0));
    assert!(!site.group_exists(), "a failed create leaves no group");
    assert_eq!(
        fs::read_dir(site.state()).unwrap().count(),
        0,
        "nor a socket"
    );

    // A script whose interpreter is missing shows only at the exec itself.
    let script = site.dir.path().join("rootfs/bin/script");
    fs::write(&script, "#!/nonesuch\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut monitor = site.create(&site.plan(&["script"]));
    assert_eq!(
        monitor.refused(Request::Start),
        ("start".to_string(), libc::ENOENT)
    );
    let record = monitor.exited();
    assert_eq!(
        (record.code, record.signal, record.started_at_ns),
        (127, 0, 0)
    );
    assert!(
        record.reason.starts_with("StartError: "),
        "{}",
        record.reason
    );
    assert_eq!(monitor.refused(Request::Start).0, STAGE_PHASE);
    monitor.acknowledge();
    assert!(!site.group_exists());
}

#[test]
fn bad_create_requests_are_refused_and_leave_nothing() {
    let site = Site::new();
    let plan = site.plan(&["true"]);
    let link = site.dir.path().join("link.log");
    std::os::unix::fs::symlink("/etc/hostname", &link).unwrap();
    let log = |path: &str| CreateRequest {
        log_path: Some(path.into()),
        ..site.request()
    };
    let cases = [
        ("link", log(&link.display().to_string()), libc::ELOOP),
        ("directory", log("/tmp"), libc::EISDIR),
        ("device", log("/dev/null"), libc::EINVAL),
        ("relative", log("x.log"), libc::EINVAL),
        ("missing directory", log("/nonexistent/x.log"), libc::ENOENT),
        (
            "terminal",
            CreateRequest {
                terminal: true,
                ..site.request()
            },
            libc::EINVAL,
        ),
        (
            "no id",
            CreateRequest {
                id: String::new(),
                ..site.request()
            },
            libc::EINVAL,
        ),
    ];
    for (what, request, expected) in cases {
        let mut monitor = Monitor::spawn();
        let (reply, _) = monitor.ask_with(Request::Create(request), site.plan_fds(&plan));
        let Reply::Error { errno, message, .. } = reply else {
            panic!("{what}: {reply:?}")
        };
        assert_eq!(errno, expected, "{what}: {message}");
        monitor.ended();
    }
    let state = || fs::File::open(site.state()).unwrap().into();
    let unsealed = crisp_sys::fd::memfd_create("plan").unwrap();
    let garbage = crisp_sys::fd::sealed_memfd("plan", b"garbage").unwrap();
    for (what, fds) in [
        ("none", vec![]),
        ("unsealed", vec![unsealed, state()]),
        ("garbage", vec![garbage, state()]),
    ] {
        let mut monitor = Monitor::spawn();
        let (reply, _) = monitor.ask_with(Request::Create(site.request()), fds);
        assert!(matches!(reply, Reply::Error { .. }), "{what}: {reply:?}");
        assert_eq!(monitor.ended(), Some(0));
    }
    assert!(!site.group_exists());
    assert_eq!(fs::read_dir(site.state()).unwrap().count(), 0);
}

#[test]
fn a_daemon_that_goes_before_it_asked_for_anything() {
    let mut monitor = Monitor::spawn();
    monitor.hang_up();
    assert_eq!(monitor.ended(), Some(0));
}

#[test]
fn what_init_leaves_behind_in_a_shared_pid_namespace_is_killed() {
    let site = Site::new();
    let mut plan = site.plan(&[
        "sh",
        "-c",
        "setsid sh -c 'echo child; sleep 1000' & echo init; sleep 0.1; exit 4",
    ]);
    plan.namespaces
        .retain(|entry| entry.kind != NamespaceKind::Pid);
    let mut monitor = site.start(&plan);
    let record = monitor.exited();
    assert_eq!(record.code, 4);
    // What is past its last instruction but not yet a zombie may still be listed by number.
    assert!(
        !site.cgroup().populated().unwrap(),
        "nothing runs when the exit is told"
    );
    assert_eq!(site.records().len(), 2);
    monitor.acknowledge();
    assert!(!site.group_exists());
}

#[test]
fn a_container_that_closes_its_streams_keeps_running() {
    let site = Site::new();
    let mut monitor = site.shell("echo -n tail; exec >/dev/null 2>&1 </dev/null; sleep 1000");
    eventually("the end of the stream is logged", || {
        site.records().len() == 1
    });
    let seen = &site.records()[0];
    assert_eq!((seen.tag, seen.content.as_slice()), ('P', &b"tail"[..]));
    assert_eq!(monitor.hello().0.phase, Phase::Running);
    monitor.done(Request::Signal { signo: 9 });
    assert_eq!(monitor.exited().code, 137);
    assert_eq!(site.records().len(), 1, "no empty record closes the tail");
}

#[test]
fn quit_undoes_a_created_and_a_running_container() {
    for start in [false, true] {
        let site = Site::new();
        let mut monitor = site.create(&site.plan(&["sleep", "1000"]));
        if start {
            monitor.done(Request::Start);
        }
        monitor.done(Request::Quit);
        assert_eq!(monitor.ended(), Some(0));
        assert!(!site.group_exists());
        assert!(!Path::new(&format!("/proc/{}", monitor.init)).exists());
    }
}

#[test]
fn nobody_acknowledges_and_the_monitor_ends_by_itself() {
    let site = Site::new();
    let request = CreateRequest {
        linger_ms: 50,
        ..site.request()
    };
    let mut monitor = site.create_with(&site.plan(&["true"]), request);
    monitor.done(Request::Start);
    monitor.exited();
    // As long as the daemon is there, it waits.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(monitor.hello().0.phase, Phase::Exited);
    monitor.hang_up();
    assert_eq!(monitor.ended(), Some(0));
    assert_eq!(site.exit_file().map(|record| record.code), Some(0));
}

#[test]
fn oom_kills_are_told_counted_and_recorded() {
    let site = Site::new();
    let mut plan = site.plan(&["dd", "if=/dev/zero", "of=/dev/null", "bs=20M"]);
    plan.cgroup.resources.memory_limit = Some(15 << 20);
    plan.cgroup.resources.memory_swap = Some(15 << 20);
    let mut monitor = site.start(&plan);
    let record = monitor.exited();
    assert_eq!(
        (record.code, record.signal, record.reason.as_str()),
        (137, 9, "OOMKilled")
    );
    assert!(record.oom_killed && record.oom_kill_count >= 1);
    assert_eq!(site.exit_file(), Some(record));
    monitor.acknowledge();
    assert!(!site.group_exists());
}

#[test]
fn an_oom_kill_of_a_child_is_told_while_init_goes_on() {
    let site = Site::new();
    let mut plan = site.plan(&[
        "sh",
        "-c",
        "dd if=/dev/zero of=/dev/null bs=40M; sleep 1000",
    ]);
    plan.cgroup.resources.memory_limit = Some(25 << 20);
    plan.cgroup.resources.memory_swap = Some(25 << 20);
    let mut monitor = site.start(&plan);
    let count = monitor.event(|event| match event {
        Event::Oom { count } => Some(*count),
        _ => None,
    });
    assert_eq!(count, 1);
    let (snapshot, _) = monitor.hello();
    assert_eq!((snapshot.phase, snapshot.oom_count), (Phase::Running, 1));
    monitor.done(Request::Signal { signo: 9 });
    assert_eq!(monitor.exited().reason, "OOMKilled");
}

#[test]
fn a_hundred_short_lives() {
    let site = Site::new();
    for round in 0..100 {
        let (mut monitor, record) = site.run(&format!("exit {round}"));
        assert_eq!(record.code, round);
        monitor.acknowledge();
    }
    assert!(!site.group_exists());
}

#[test]
fn orphans_are_reaped() {
    let site = Site::new();
    let mut plan = site.plan(&[
        "sh",
        "-c",
        "for i in 1 2 3 4 5; do (sleep 0 &) ; done; echo made; sleep 1000",
    ]);
    // Without a namespace of its own the orphans come to the monitor.
    plan.namespaces
        .retain(|entry| entry.kind != NamespaceKind::Pid);
    let mut monitor = site.start(&plan);
    eventually("all are made", || !site.log_bytes().is_empty());
    let own = monitor.pid();
    eventually("no child but init is left", || {
        let path = format!("/proc/{own}/task/{own}/children");
        fs::read_to_string(path).unwrap().split_whitespace().count() == 1
    });
    monitor.done(Request::KillAll);
    monitor.exited();
}

#[test]
fn a_terminal_is_logged_resized_and_survives_being_closed() {
    let site = Site::new();
    let mut plan = site.plan(&[
        "sh",
        "-c",
        "tty; stty size; exec >/dev/null 2>&1 </dev/null; sleep 0.2; \
        echo again >/dev/console; sleep 1000",
    ]);
    plan.process.terminal = true;
    plan.process.console_size = Some((80, 24));
    plan.steps.push(crisp_oci::plan::Step::Console);
    let request = CreateRequest {
        terminal: true,
        stdin: true,
        ..site.request()
    };
    let mut monitor = site.create_with(&plan, request);
    monitor.done(Request::Start);
    eventually("all three lines are there", || site.records().len() >= 3);
    let seen = site.records();
    assert!(seen.iter().all(|record| record.stream == "stdout"));
    let lines: Vec<_> = seen
        .iter()
        .map(|r| String::from_utf8_lossy(&r.content).trim_end().to_string())
        .collect();
    assert_eq!(lines[1], "24 80");
    assert_eq!(lines[2], "again");
    monitor.done(Request::Resize {
        exec: 0,
        width: 132,
        height: 50,
    });
    assert_eq!(
        monitor
            .refused(Request::Resize {
                exec: 0,
                width: 0,
                height: 1
            })
            .1,
        libc::EINVAL
    );
    let (exec, _, mut output) = monitor
        .exec(&process(&["stty", "size", "-F", "/dev/console"]))
        .unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut output, &mut text).unwrap();
    assert_eq!((monitor.exec_exited(exec), text.trim()), ((0, 0), "50 132"));
    monitor.done(Request::Signal { signo: 9 });
    assert_eq!(monitor.exited().code, 137);
}

#[test]
fn stdin_is_held_open_until_it_is_closed() {
    let site = Site::new();
    let request = CreateRequest {
        stdin: true,
        ..site.request()
    };
    let mut monitor = site.create_with(
        &site.plan(&["sh", "-c", "echo ready; cat; echo end"]),
        request,
    );
    monitor.done(Request::Start);
    eventually("it reads", || site.records().len() == 1);
    monitor.hang_up();
    let mut daemon = site.connect();
    assert_eq!(daemon.hello().0.phase, Phase::Running);
    daemon.done(Request::CloseStdin);
    assert_eq!(daemon.exited().code, 0);
    assert_eq!(site.records().len(), 2);
    assert_eq!(daemon.refused(Request::CloseStdin).1, libc::EBADF);
}

#[test]
fn without_stdin_it_reads_nothing_and_without_a_log_nothing_is_written() {
    let site = Site::new();
    let request = CreateRequest {
        log_path: None,
        ..site.request()
    };
    let plan = site.plan(&["sh", "-c", "cat && seq 1 100000 && exit 5"]);
    let mut monitor = site.create_with(&plan, request);
    monitor.done(Request::Start);
    assert_eq!(monitor.exited().code, 5);
    assert!(!site.log().exists());
    monitor.acknowledge();
}
