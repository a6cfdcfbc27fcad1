//! Output on its way into the log.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use conmon_rs::protocol::{CreateRequest, Event, Request};

use crate::fixture::{Site, eventually, records};

#[test]
fn lines_are_assembled_cut_and_kept_as_bytes() {
    let site = Site::new();
    let script = r#"printf 'a\r\n\0\377 b\n'; printf '{"half":'; printf '1}\n'
        head -c 16384 /dev/zero; echo; head -c 16385 /dev/zero; echo; printf tail"#;
    let (_monitor, record) = site.run(script);
    assert_eq!(record.lost_bytes, 0);
    let found: Vec<_> = site
        .records()
        .into_iter()
        .map(|r| (r.tag, r.content))
        .collect();
    let expected: Vec<(char, Vec<u8>)> = vec![
        ('F', b"a\r".to_vec()),
        ('F', b"\0\xff b".to_vec()),
        ('F', b"{\"half\":1}".to_vec()),
        ('F', vec![0; 16384]),
        ('P', vec![0; 16384]),
        ('F', vec![0; 1]),
        ('P', b"tail".to_vec()),
    ];
    assert_eq!(found, expected);
    let mode = fs::metadata(site.log()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o640);
}

#[test]
fn a_prompt_shows_after_a_pause_and_its_line_is_ended_later() {
    let site = Site::new();
    let request = CreateRequest {
        stdin: true,
        ..site.request()
    };
    let plan = site.plan(&["sh", "-c", "printf 'name? '; cat; echo"]);
    let mut monitor = site.create_with(&plan, request);
    monitor.done(Request::Start);
    eventually("the prompt shows", || !site.log_bytes().is_empty());
    monitor.done(Request::CloseStdin);
    monitor.exited();
    let tags: Vec<_> = site
        .records()
        .into_iter()
        .map(|r| (r.tag, r.content))
        .collect();
    assert_eq!(tags, [('P', b"name? ".to_vec()), ('F', vec![])]);
}

#[test]
fn a_hundred_megabytes_survive_rotations_without_a_lost_line() {
    const LINES: usize = 1_000_000;
    let site = Site::new();
    let program = format!(
        "BEGIN {{ for (i = 1; i <= {LINES}; i++) printf \"%7d %s\\n\", i, \"{}\" }}",
        "x".repeat(91)
    );
    let mut monitor = site.start(&site.plan(&["awk", &program]));
    let mut old = Vec::new();
    // Rotates as kubelet does, while it prints.
    while site.exit_file().is_none() {
        let name = site.dir.path().join(format!("0.log.{}", old.len()));
        fs::rename(site.log(), &name).expect("the log is there");
        monitor.done(Request::ReopenLog);
        assert!(
            site.log().exists(),
            "the new file is there when the answer is"
        );
        let size = fs::metadata(&name).unwrap().len();
        old.push((name, size));
        if old.len() >= 50 {
            break;
        }
        // A rotation for every few megabytes.
        eventually("more is printed", || {
            site.exit_file().is_some() || fs::metadata(site.log()).unwrap().len() > 2 << 20
        });
        if site.exit_file().is_some() {
            break;
        }
    }
    let record = monitor.exited();
    assert_eq!((record.code, record.lost_bytes), (0, 0));
    assert!(old.len() > 2, "it was rotated {} times", old.len());
    let mut next = 1;
    let mut bytes = 0;
    for (path, size) in old
        .iter()
        .map(|(path, size)| (path.clone(), Some(*size)))
        .chain([(site.log(), None)])
    {
        let content = fs::read(&path).unwrap();
        if let Some(size) = size {
            assert_eq!(
                content.len() as u64,
                size,
                "nothing is written to an old file"
            );
        }
        for seen in records(&content) {
            assert_eq!(seen.tag, 'F');
            bytes += seen.content.len();
            let text = String::from_utf8(seen.content).unwrap();
            let number: usize = text.split_whitespace().next().unwrap().parse().unwrap();
            assert_eq!(number, next, "in {}", path.display());
            next += 1;
        }
    }
    assert_eq!(next, LINES + 1);
    assert!(bytes > 90_000_000, "{bytes}");
    monitor.acknowledge();
}

#[test]
fn a_reopen_that_fails_keeps_the_old_file() {
    let site = Site::new();
    let mut monitor = site.shell("echo one; while [ ! -e /tmp/go ]; do sleep 0.01; done; echo two");
    eventually("it prints", || !site.log_bytes().is_empty());
    let kept = site.dir.path().join("kept");
    fs::rename(site.log(), &kept).unwrap();
    fs::create_dir(site.log()).unwrap();
    assert_eq!(
        monitor.refused(Request::ReopenLog),
        ("log".to_string(), libc::EISDIR)
    );
    let (exec, ..) = monitor
        .exec(&crate::fixture::process(&["sh", "-c", ": > /tmp/go"]))
        .unwrap();
    assert_eq!(monitor.exec_exited(exec), (0, 0));
    monitor.exited();
    assert_eq!(records(&fs::read(&kept).unwrap()).len(), 2);
    assert_eq!(
        monitor.refused(Request::ReopenLog).1,
        libc::ESRCH,
        "nothing to reopen any more"
    );
}

#[test]
fn a_full_disk_does_not_stop_the_container_and_is_told() {
    let site = Site::new();
    let small = site.small_disk();
    let log = small.join("0.log");
    let request = CreateRequest {
        log_path: Some(log.display().to_string()),
        ..site.request()
    };
    let plan = site.plan(&[
        "sh",
        "-c",
        "seq 1 100000; while [ ! -e /tmp/go ]; do sleep 0.01; done; echo last",
    ]);
    let mut monitor = site.create_with(&plan, request);
    monitor.done(Request::Start);
    let trouble = |event: &Event| match event {
        Event::LogTrouble { lost_bytes, errno } => Some((*lost_bytes, *errno)),
        _ => None,
    };
    let (lost, errno) = monitor.event(trouble);
    assert!(lost > 0);
    assert_eq!(errno, libc::ENOSPC);
    // 100,000 records of 40 bytes, their numbers and newlines.
    eventually("all of it was read", || {
        let log = monitor.hello().0.log;
        log.written_bytes + log.lost_bytes >= 4_588_895
    });
    // An operator makes room.
    fs::rename(&log, small.join("1.log")).unwrap();
    fs::remove_file(small.join("1.log")).unwrap();
    monitor.done(Request::ReopenLog);
    let (exec, ..) = monitor
        .exec(&crate::fixture::process(&["sh", "-c", ": > /tmp/go"]))
        .unwrap();
    assert_eq!(monitor.exec_exited(exec), (0, 0));
    let record = monitor.exited();
    assert!(record.lost_bytes > 4_000_000, "{record:?}");
    let seen = records(&fs::read(&log).unwrap());
    assert_eq!(
        seen.last().map(|r| r.content.as_slice()),
        Some(&b"last"[..])
    );
    let recovered = monitor.events.iter().filter_map(trouble).next_back();
    assert_eq!(recovered, Some((record.lost_bytes, 0)));
}

#[test]
fn an_idle_container_wakes_nobody() {
    let site = Site::new();
    let monitor = site.shell("echo line; sleep 1000");
    eventually("it prints", || !site.log_bytes().is_empty());
    let switches = || {
        let text = fs::read_to_string(format!("/proc/{}/status", monitor.pid())).unwrap();
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"))
            .unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    let mut before = switches();
    eventually("it comes to rest", || {
        let now = switches();
        let resting = now == before;
        before = now;
        resting
    });
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert_eq!(switches(), before);
    // Beside those there is one for each cgroup tree, so that an exec need not open them.
    let targets = fs::read_dir(format!("/proc/{}/fd", monitor.pid()))
        .unwrap()
        .flatten();
    let targets = targets.filter_map(|entry| fs::read_link(entry.path()).ok());
    let fds: Vec<_> = targets
        .filter(|target| !target.starts_with("/sys/fs/cgroup"))
        .collect();
    assert!(fds.len() <= 14, "{fds:?}");
}

#[test]
fn output_goes_on_while_no_daemon_is_there() {
    let site = Site::new();
    let mut monitor =
        site.shell("i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); sleep 0.001; done");
    monitor.hang_up();
    eventually("it ends", || site.exit_file().is_some());
    let numbers: Vec<usize> = site
        .records()
        .iter()
        .map(|r| String::from_utf8_lossy(&r.content).parse().unwrap())
        .collect();
    assert_eq!(numbers, (0..300).collect::<Vec<_>>());
    let mut daemon = site.connect();
    let (snapshot, _) = daemon.hello();
    assert_eq!(snapshot.exit, site.exit_file());
    assert_eq!(
        snapshot.log.written_bytes,
        fs::metadata(site.log()).unwrap().size()
    );
    daemon.done(Request::AckExit);
    assert_eq!(monitor.ended(), Some(0));
}

/// How fast lines of a hundred bytes come through, as a line for a reader. `CONMON_RS` names the
/// build to judge: a debug build says little.
#[test]
fn throughput_is_told() {
    let size: usize = match std::env::var_os("CRISP_TEST_FULL") {
        Some(_) => 1 << 30,
        None => 64 << 20,
    };
    let site = Site::new();
    let line = format!("{}\n", "x".repeat(99));
    let text = line.repeat((16 << 20) / line.len());
    fs::write(site.dir.path().join("rootfs/text"), &text).unwrap();
    let rounds = size / text.len();
    let script = format!("for i in $(seq {rounds}); do cat /text; done");
    let fast = std::path::Path::new("/dev/shm");
    for (what, dir) in [("a disk", site.dir.path()), ("memory", fast)] {
        let log = dir.join(format!("crisp-throughput-{}.log", std::process::id()));
        let request = CreateRequest {
            log_path: Some(log.display().to_string()),
            ..site.request()
        };
        let mut monitor = site.create_with(&site.plan(&["sh", "-c", &script]), request);
        let began = std::time::Instant::now();
        monitor.done(Request::Start);
        let record = monitor.exited();
        let took = began.elapsed();
        let written = fs::metadata(&log).unwrap().len();
        fs::remove_file(&log).unwrap();
        assert_eq!((record.code, record.lost_bytes), (0, 0));
        assert_eq!(written, (rounds * text.len() / 100 * 140) as u64);
        println!(
            "to {what}: {:.0} MB/s of output, {:.0} MB in {took:?}",
            (rounds * text.len()) as f64 / 1e6 / took.as_secs_f64(),
            (rounds * text.len()) as f64 / 1e6,
        );
        monitor.acknowledge();
    }
}
