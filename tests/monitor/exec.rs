//! Further processes in a container.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use conmon_rs::protocol::{ExecRequest, Reply, Request, STAGE_PHASE};
use crisp_oci::plan::NamespaceKind;
use crisp_oci::wire;

use crate::fixture::{Monitor, Site, eventually, process};

fn text(mut output: impl Read) -> String {
    let mut text = String::new();
    output.read_to_string(&mut text).expect("output");
    text
}

fn stop(mut monitor: Monitor) {
    monitor.done(Request::KillAll);
    monitor.exited();
    monitor.acknowledge();
}

#[test]
fn output_code_and_signal_of_execs() {
    let site = Site::new();
    let mut monitor = site.shell("sleep 1000");
    let (first, pid, output) = monitor
        .exec(&process(&["sh", "-c", "echo out; echo err >&2; exit 9"]))
        .unwrap();
    assert_eq!(text(output), "out\nerr\n");
    assert_eq!(monitor.exec_exited(first), (9, 0));
    assert!(pid > 1);
    let (second, _, output) = monitor.exec(&process(&["sh", "-c", "kill -9 $$"])).unwrap();
    assert_eq!(text(output), "");
    assert_eq!(monitor.exec_exited(second), (137, 9));
    assert_ne!(first, second);
    assert_eq!(monitor.hello().0.execs, Vec::<u64>::new());
    assert!(
        site.log_bytes().is_empty(),
        "the output of an exec is not the container's"
    );
    stop(monitor);
}

#[test]
fn an_exec_that_fails_leaves_the_container_alone() {
    let site = Site::new();
    let mut monitor = site.shell("while :; do echo tick; sleep 0.01; done");
    let refused = monitor.exec(&process(&["nonesuch"])).unwrap_err();
    let Reply::Error { errno, message, .. } = *refused else {
        panic!("{refused:?}")
    };
    assert_eq!(errno, libc::ENOENT, "{message}");
    assert!(message.contains("nonesuch"));
    // A bad description, too few streams, too many.
    let garbage = ExecRequest {
        process: Some(vec![1, 2, 3]),
        terminal: false,
    };
    let good = ExecRequest {
        process: Some(wire::encode_process(&process(&["true"]))),
        terminal: false,
    };
    let null = || OwnedFd::from(fs::File::open("/dev/null").unwrap());
    for (request, fds) in [
        (garbage, vec![null(), null(), null()]),
        (good.clone(), vec![null()]),
        (good.clone(), vec![null(), null(), null(), null()]),
        (
            ExecRequest {
                process: None,
                terminal: false,
            },
            vec![],
        ),
        (
            ExecRequest {
                process: None,
                terminal: false,
            },
            vec![null(), null(), null(), null()],
        ),
        (
            ExecRequest {
                terminal: true,
                ..good
            },
            vec![],
        ),
    ] {
        let (reply, _) = monitor.ask_with(Request::Exec(request), fds);
        assert!(
            matches!(
                reply,
                Reply::Error {
                    errno: libc::EINVAL,
                    ..
                }
            ),
            "{reply:?}"
        );
    }
    let before = site.records().len();
    eventually("it goes on", || site.records().len() > before);
    stop(monitor);
}

#[test]
fn execs_in_the_wrong_phase() {
    let site = Site::new();
    let mut monitor = site.create(&site.plan(&["true"]));
    let refused = *monitor.exec(&process(&["true"])).unwrap_err();
    assert!(
        matches!(&refused, Reply::Error { stage, .. } if stage == STAGE_PHASE),
        "{refused:?}"
    );
    monitor.done(Request::Start);
    monitor.exited();
    let refused = *monitor.exec(&process(&["true"])).unwrap_err();
    assert!(
        matches!(&refused, Reply::Error { stage, .. } if stage == STAGE_PHASE),
        "{refused:?}"
    );
    let refused = monitor.refused(Request::ExecSignal {
        exec: 1,
        signo: 9,
        group: true,
    });
    assert_eq!(refused.1, libc::ESRCH);
}

#[test]
fn a_timeout_kills_the_whole_tree() {
    let site = Site::new();
    let mut monitor = site.shell("sleep 1000");
    let script = "sleep 2000 & setsid sleep 3000 & (setsid sh -c 'sleep 4000 & sleep 5000' &) ; \
        echo ready; sleep 6000";
    let (exec, pid, mut output) = monitor.exec(&process(&["sh", "-c", script])).unwrap();
    let mut first = [0; 6];
    output.read_exact(&mut first).unwrap();
    let mut pids = Vec::new();
    eventually("the tree has grown", || {
        pids = site.cgroup().pids().unwrap();
        pids.len() >= 6
    });
    monitor.done(Request::ExecSignal {
        exec,
        signo: libc::SIGKILL,
        group: true,
    });
    assert_eq!(monitor.exec_exited(exec), (137, 9));
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    // What was orphaned in a session of its own has left the tree; the rest is gone.
    eventually("the tree is gone", || {
        let left = site.cgroup().pids().unwrap();
        let of_exec = left.iter().filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains("2000") || line.contains("3000") || line.contains("6000")
        });
        of_exec.count() == 0
    });
    assert_eq!(monitor.hello().0.phase, conmon_rs::protocol::Phase::Running);
    stop(monitor);
}

#[test]
fn a_large_environment_travels_beside_the_frame() {
    let site = Site::new();
    let mut monitor = site.shell("sleep 1000");
    let mut large = process(&["sh", "-c", "echo ${#A} ${#B}"]);
    large
        .env
        .push([b"A=", vec![b'a'; 100_000].as_slice()].concat());
    large
        .env
        .push([b"B=", vec![b'b'; 100_000].as_slice()].concat());
    let (exec, _, output) = monitor.exec(&large).unwrap();
    assert_eq!(text(output), "100000 100000\n");
    assert_eq!(monitor.exec_exited(exec), (0, 0));
    stop(monitor);
}

#[test]
fn a_terminal_of_its_own() {
    let site = Site::new();
    let mut monitor = site.shell("sleep 1000");
    let mut with_terminal = process(&["sh", "-c", "tty; stty size; exit 2"]);
    with_terminal.terminal = true;
    with_terminal.console_size = Some((90, 30));
    let request = ExecRequest {
        process: Some(wire::encode_process(&with_terminal)),
        terminal: true,
    };
    let (reply, mut fds) = monitor.ask_with(Request::Exec(request), vec![]);
    let Reply::ExecStarted { exec, .. } = reply else {
        panic!("{reply:?}")
    };
    let mut master = fs::File::from(fds.pop().expect("the terminal's master"));
    let mut output = Vec::new();
    let mut buffer = [0; 256];
    // A terminal ends with EIO.
    while let Ok(count) = master.read(&mut buffer) {
        output.extend_from_slice(&buffer[..count]);
    }
    assert_eq!(String::from_utf8_lossy(&output), "/dev/pts/0\r\n30 90\r\n");
    assert_eq!(monitor.exec_exited(exec), (2, 0));
    let refused = monitor.refused(Request::Resize {
        exec,
        width: 1,
        height: 1,
    });
    assert_eq!(refused.1, libc::EOPNOTSUPP);
    stop(monitor);
}

#[test]
fn execs_end_with_the_container_whatever_its_pid_namespace() {
    for private in [true, false] {
        let site = Site::new();
        let mut plan = site.plan(&["sleep", "1000"]);
        if !private {
            plan.namespaces
                .retain(|entry| entry.kind != NamespaceKind::Pid);
        }
        let mut monitor = site.start(&plan);
        let (exec, pid, _output) = monitor.exec(&process(&["sleep", "2000"])).unwrap();
        assert_eq!(monitor.hello().0.execs, [exec]);
        monitor.done(Request::Signal { signo: 9 });
        let record = monitor.exited();
        assert_eq!(record.code, 137);
        assert!(
            !Path::new(&format!("/proc/{pid}")).exists(),
            "private {private}"
        );
        assert_eq!(monitor.exec_exited(exec), (137, 9));
        monitor.acknowledge();
        assert!(!site.group_exists());
    }
}

#[test]
fn an_exec_outlives_the_daemon_that_asked_for_it() {
    let site = Site::new();
    let mut monitor = site.shell("sleep 1000");
    let (exec, _, mut output) = monitor
        .exec(&process(&[
            "sh",
            "-c",
            "echo on; while [ ! -e /tmp/go ]; do sleep 0.01; done; exit 6",
        ]))
        .unwrap();
    let mut first = [0; 3];
    output.read_exact(&mut first).unwrap();
    monitor.hang_up();
    let mut daemon = site.connect();
    assert_eq!(daemon.hello().0.execs, [exec]);
    let (other, ..) = daemon.exec(&process(&["sh", "-c", ": > /tmp/go"])).unwrap();
    assert_eq!(daemon.exec_exited(other), (0, 0));
    assert_eq!(daemon.exec_exited(exec), (6, 0));
    daemon.done(Request::Quit);
    assert_eq!(monitor.ended(), Some(0));
}

#[test]
fn two_hundred_execs_and_no_trace_of_them() {
    let site = Site::new();
    let mut monitor = site.shell("sleep 1000");
    let count = |what: &str| {
        fs::read_dir(format!("/proc/{}/{what}", monitor.pid()))
            .unwrap()
            .count()
    };
    let before = count("fd");
    let own = monitor.pid();
    for round in 0..200 {
        let (exec, ..) = monitor
            .exec(&process(&["sh", "-c", &format!("exit {}", round % 256)]))
            .unwrap();
        assert_eq!(monitor.exec_exited(exec), (round % 256, 0));
    }
    let after = fs::read_dir(format!("/proc/{own}/fd")).unwrap().count();
    assert_eq!(after, before, "descriptors");
    let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap();
    assert_eq!(children.split_whitespace().count(), 1, "only init is left");
    stop(monitor);
}

#[test]
fn no_exec_takes_part_in_the_monitors_immunity() {
    let site = Site::new();
    let mut monitor = site.start(&site.plan(&["sleep", "1000"]));
    for args in [
        &["cat", "/proc/self/status"][..],
        &["cat", "/proc/1/status"],
    ] {
        let (exec, _, output) = monitor.exec(&process(args)).unwrap();
        let status = text(output);
        assert_eq!(monitor.exec_exited(exec), (0, 0));
        let line = |key: &str| {
            status
                .lines()
                .find_map(|l| l.strip_prefix(key))
                .unwrap()
                .trim()
                .to_string()
        };
        for mask in ["SigBlk:", "SigIgn:"] {
            assert_eq!(
                u64::from_str_radix(&line(mask), 16),
                Ok(0),
                "{mask} {args:?}"
            );
        }
    }
    let own: i32 = fs::read_to_string("/proc/self/oom_score_adj")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let (_, _, output) = monitor
        .exec(&process(&[
            "cat",
            "/proc/self/oom_score_adj",
            "/proc/1/oom_score_adj",
        ]))
        .unwrap();
    let scores: Vec<i32> = text(output).lines().map(|l| l.parse().unwrap()).collect();
    assert_eq!(
        scores,
        [own, own],
        "the monitor's own lowered score is not handed on"
    );
    stop(monitor);
}
