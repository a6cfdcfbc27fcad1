//! Connections: restarted daemons, strangers, garbage.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use conmon_rs::protocol::{
    Frame, MAX_FRAME, Phase, Reply, Request, SOCKET_NAME, STAGE_PHASE, STAGE_UNKNOWN,
};
use crisp_oci::tlv::Writer;
use crisp_sys::{pidfd, socket};

use crate::fixture::{Client, Monitor, Site, eventually, process};

#[test]
fn a_restarted_daemon_finds_everything_as_it_was() {
    let site = Site::new();
    let mut monitor = site.shell("sleep 1000");
    let (before, _) = monitor.hello();
    monitor.hang_up();
    let mut daemon = site.connect();
    let (after, fds) = daemon.hello();
    assert_eq!(after, before);
    assert_eq!(after.monitor_pid, monitor.pid());
    pidfd::send_signal(fds[0].as_fd(), 9).unwrap();
    assert_eq!(daemon.exited().code, 137);
    // The next one has missed the event and is told all the same.
    drop(daemon);
    let mut daemon = site.connect();
    let (snapshot, fds) = daemon.hello();
    assert_eq!((snapshot.phase, fds.len()), (Phase::Exited, 0));
    assert_eq!(snapshot.exit, site.exit_file());
    daemon.done(Request::AckExit);
    assert_eq!(monitor.ended(), Some(0));
}

#[test]
fn events_go_to_all_who_said_hello_and_to_nobody_else() {
    let site = Site::new();
    let mut monitor = site.shell("sleep 1000");
    let mut listening = site.connect();
    listening.hello();
    let mut silent = site.connect();
    assert_eq!(silent.refused(Request::AckExit).0, STAGE_PHASE);
    monitor.done(Request::KillAll);
    assert_eq!(monitor.exited(), listening.exited());
    silent.done(Request::KillAll);
    assert!(silent.events.is_empty());
}

#[test]
fn the_socket_is_for_root_alone() {
    let site = Site::new();
    let mut monitor = site.shell("sleep 1000");
    let path = site.state().join(SOCKET_NAME);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    // Even with the doors open, another user is shown out.
    for (path, mode) in [
        (path, 0o666),
        (site.state(), 0o755),
        (site.dir.path().into(), 0o755),
    ] {
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
    // Perl is what every Debian has and that may run as another user from anywhere.
    let script = "socket(my $s, AF_UNIX, SOCK_SEQPACKET, 0) or die $!;\
        connect($s, sockaddr_un($ARGV[0])) or die $!;\
        defined(recv($s, my $got, 10, 0)) or die $!;\
        exit(length($got) == 0 ? 0 : 1)";
    let status = Command::new("perl")
        .args(["-MSocket", "-e", script])
        .arg(site.state().join(SOCKET_NAME))
        .uid(65534)
        .gid(65534)
        .status()
        .expect("perl");
    println!(
        "M2 another user, the doors open: shown out {}",
        status.success()
    );
    assert!(status.success(), "it was not shown out");
    assert_eq!(monitor.hello().0.phase, Phase::Running);
}

#[test]
fn garbage_ends_only_the_connection_it_came_through() {
    let site = Site::new();
    let mut monitor = site.shell("sleep 1000");
    let mut unknown = Writer::new();
    unknown.put_u64(1, 99);
    unknown.put_u64(2, 7);
    let reply = Frame::Reply {
        seq: 1,
        reply: Reply::Ok,
    }
    .encode();
    for (what, bytes) in [
        ("noise", vec![0xff; 100]),
        ("one byte", vec![0]),
        ("an oversized frame", vec![0; MAX_FRAME + 1]),
        ("a reply", reply),
    ] {
        let stranger = site.connect();
        stranger.send(&bytes, &[]);
        assert!(stranger.receive().is_none(), "{what}");
        println!("M3 {what}: the connection is closed");
    }
    // A request of a later version is refused, and the connection stays.
    let mut newer = site.connect();
    newer.send(&unknown.into_bytes(), &[]);
    let Some((
        Frame::Reply {
            seq: 7,
            reply: Reply::Error { stage, errno, .. },
        },
        _,
    )) = newer.receive()
    else {
        panic!("no refusal")
    };
    println!("M6 a request of a later version: {stage}, ENOSYS");
    assert_eq!((stage.as_str(), errno), (STAGE_UNKNOWN, libc::ENOSYS));
    // Daemons of any version are told everything; what they do not know they pass over.
    for version in [0, 99, u32::MAX] {
        let reply = newer.ask(Request::Hello { version });
        println!(
            "M6 a daemon of version {version}: is told {}",
            matches!(reply, Reply::Snapshot(_))
        );
        assert!(matches!(reply, Reply::Snapshot(_)), "{reply:?}");
    }
    assert_eq!(newer.hello().0.phase, Phase::Running);
    // Descriptors that nobody asked for are closed.
    let count = || {
        fs::read_dir(format!("/proc/{}/fd", monitor.pid()))
            .unwrap()
            .count()
    };
    let before = count();
    let null = || File::open("/dev/null").unwrap().into();
    let seq = newer.post(Request::KillAll, &[null(), null(), null()]);
    newer.answer(seq);
    eventually("they are closed", || count() <= before);
    monitor.exited();
}

#[test]
fn connections_that_do_not_read_and_too_many_of_them() {
    let site = Site::new();
    let mut monitor = site.shell("sleep 1000");
    let stuffed = site.connect();
    let hello = Frame::Request {
        seq: 1,
        request: Request::Hello { version: 1 },
    }
    .encode();
    let mut sent = 0_u32;
    // It asks and asks and reads no answer: it is cut off, and the monitor goes on.
    eventually("it is cut off", || {
        while socket::send_with_fds(stuffed.socket.as_fd(), &hello, &[]).is_ok()
            && sent % 1000 != 999
        {
            sent += 1;
        }
        sent += 1;
        crisp_sys::event::poll(
            stuffed.socket.as_fd(),
            libc::POLLHUP,
            Some(std::time::Duration::ZERO),
        )
        .is_ok_and(|_| socket::send_with_fds(stuffed.socket.as_fd(), &hello, &[]).is_err())
    });
    assert_eq!(monitor.hello().0.phase, Phase::Running);
    println!("M4 one that asks {sent} times and reads nothing: cut off");
    let many: Vec<Client> = (0..1000).map(|_| site.connect()).collect();
    assert_eq!(monitor.hello().0.phase, Phase::Running);
    let fds = fs::read_dir(format!("/proc/{}/fd", monitor.pid()))
        .unwrap()
        .count();
    println!("M4 1000 connections: the first one is served, the monitor has {fds} descriptors");
    assert!(fds < 60, "{fds} descriptors");
    drop(many);
    eventually("there is room again", || {
        let mut late = site.connect();
        let asked = Frame::Request {
            seq: 1,
            request: Request::Hello { version: 1 },
        };
        socket::send_with_fds(late.socket.as_fd(), &asked.encode(), &[]).is_ok()
            && late.receive().is_some()
            && {
                late.done(Request::Signal { signo: 0 });
                true
            }
    });
}

#[test]
fn signals_to_the_monitor_do_nothing() {
    let site = Site::new();
    let mut monitor = site.shell("sleep 1000");
    let target = pidfd::open(monitor.pid()).unwrap();
    for signo in [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGPIPE,
        libc::SIGUSR1,
        libc::SIGQUIT,
        libc::SIGALRM,
    ] {
        pidfd::send_signal(target.as_fd(), signo).unwrap();
    }
    assert_eq!(monitor.hello().0.phase, Phase::Running);
}

#[test]
fn what_remains_of_a_killed_monitor() {
    let site = Site::new();
    let mut monitor = site.shell("while sleep 0.01; do :; done");
    let init = pidfd::open(monitor.init).unwrap();
    monitor.child.kill().unwrap();
    monitor.ended();
    // The container runs on, with no exit record to come: its group is what the daemon kills.
    assert!(pidfd::send_signal(init.as_fd(), 0).is_ok());
    assert!(site.group_exists());
    assert_eq!(site.exit_file(), None);
    let state = File::open(site.state()).unwrap();
    assert!(
        socket::seqpacket_connect(state.as_fd(), SOCKET_NAME).is_err(),
        "nobody listens"
    );
    site.cgroup().kill().unwrap();
    eventually("all are gone", || !site.cgroup().populated().unwrap());
    site.cgroup().remove().unwrap();
    assert!(!site.group_exists());

    // Before the start it takes its container along.
    let site = Site::new();
    let mut monitor = site.create(&site.plan(&["sleep", "1000"]));
    let path = format!("/proc/{}", monitor.init);
    assert!(Path::new(&path).exists());
    monitor.child.kill().unwrap();
    eventually("init is gone", || {
        let state = fs::read_to_string(format!("{path}/stat")).unwrap_or_default();
        state.is_empty() || state.contains(") Z ")
    });
}

#[test]
fn a_stale_socket_is_replaced_and_a_link_not_followed() {
    let site = Site::new();
    let victim = site.dir.path().join("victim");
    fs::write(&victim, "keep").unwrap();
    std::os::unix::fs::symlink(&victim, site.state().join(SOCKET_NAME)).unwrap();
    let mut monitor = site.shell("sleep 1000");
    assert_eq!(site.connect().hello().0.phase, Phase::Running);
    monitor.done(Request::Quit);
    assert_eq!(monitor.ended(), Some(0));
    println!("M5 a link in the place of a socket: replaced, what it led to is as it was");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "keep");
}

#[test]
fn nothing_inherited_stays_open_and_nothing_of_the_monitors_reaches_the_container() {
    let site = Site::new();
    let mut monitor = site.shell("sleep 1000");
    let link =
        |pid: i32, fd: &str| fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
    let (_, pid, _output) = monitor.exec(&process(&["sleep", "1000"])).unwrap();
    for pid in [monitor.init, pid] {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            assert!(
                ["0", "1", "2"].contains(&name.as_str()),
                "{name} is {:?}",
                link(pid, &name)
            );
        }
    }
    assert_eq!(link(monitor.pid(), "0"), Path::new("/dev/null"));

    // Descriptors that a careless parent leaves open.
    let (ours, theirs) = socket::seqpacket_pair().unwrap();
    let (reader, writer) = crisp_sys::fd::pipe().unwrap();
    crisp_sys::fd::set_cloexec(writer.as_fd(), false).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_conmon-rs"))
        .stdin(theirs)
        .spawn()
        .unwrap();
    drop(writer);
    let mut careless = Monitor::adopt(child, ours);
    assert_eq!(careless.hello().0.phase, Phase::Creating);
    let mut byte = [0; 1];
    let ready =
        crisp_sys::event::poll(reader.as_fd(), libc::POLLIN, Some(crate::fixture::PATIENCE));
    assert!(ready.unwrap());
    assert_eq!(
        crisp_sys::fd::read(reader.as_fd(), &mut byte),
        Ok(0),
        "the copy was closed"
    );
}

#[test]
fn started_by_hand_it_says_what_is_wrong() {
    let run = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_conmon-rs"))
            .args(args)
            .output()
            .unwrap()
    };
    let by_hand = run(&["some-container"]);
    assert_eq!(by_hand.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&by_hand.stderr).contains("no control socket"));
    let version = run(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("conmon-rs 0."));
}
