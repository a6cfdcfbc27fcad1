//! What strangers may send to a monitor's socket, beyond what tests/monitor/control.rs has.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};

use conmon_rs::protocol::{
    AttachRequest, ExecRequest, Frame, MAX_FRAME, Phase, Reply, Request, SOCKET_NAME,
};
use crisp_sys::socket;

use crate::fixture::{Monitor, Site, eventually};

fn descriptors(monitor: &Monitor) -> usize {
    fs::read_dir(format!("/proc/{}/fd", monitor.pid()))
        .expect("descriptors")
        .count()
}

/// Requests that carry something.
fn requests() -> Vec<Request> {
    vec![
        Request::Hello { version: 1 },
        Request::Exec(ExecRequest {
            process: Some(vec![7; 100]),
            terminal: false,
        }),
        Request::Attach(AttachRequest {
            stdin: true,
            stdout: true,
            stderr: true,
        }),
        Request::Resize {
            exec: 0,
            width: 80,
            height: 25,
        },
    ]
}

#[test]
fn frames_cut_anywhere_and_flipped_anywhere_are_answered_or_shown_out() {
    let site = Site::new();
    let mut monitor = site.shell("sleep 1000");
    let before = descriptors(&monitor);
    let (mut answered, mut closed) = (0, 0);
    let mut tell = |bytes: &[u8]| {
        if bytes.is_empty() {
            return;
        }
        let stranger = site.connect();
        stranger.send(bytes, &[]);
        match stranger.receive() {
            Some((Frame::Reply { .. }, _)) => answered += 1,
            Some(other) => panic!("{other:?}"),
            None => closed += 1,
        }
    };
    for request in requests() {
        let bytes = Frame::Request { seq: 9, request }.encode();
        for cut in (0..bytes.len()).step_by(3) {
            tell(&bytes[..cut]);
        }
        for at in (0..bytes.len()).step_by(5) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x41;
            tell(&flipped);
        }
    }
    println!("M3 frames cut and flipped: {answered} answered, {closed} shown out");
    assert_eq!(monitor.hello().0.phase, Phase::Running);
    eventually("nothing stays open", || descriptors(&monitor) == before);
    monitor.done(Request::KillAll);
    monitor.exited();
}

#[test]
fn floods_of_descriptors_are_closed() {
    let site = Site::new();
    let mut monitor = site.shell("sleep 1000");
    let before = descriptors(&monitor);
    let null = || -> OwnedFd { File::open("/dev/null").unwrap().into() };
    let flood: Vec<OwnedFd> = (0..250).map(|_| null()).collect();
    for request in requests() {
        let mut stranger = site.connect();
        for _ in 0..8 {
            let asked = stranger.post(request.clone(), &flood);
            let (reply, _) = stranger.answer(asked);
            assert!(
                matches!(reply, Reply::Error { .. } | Reply::Snapshot(_)),
                "{reply:?}"
            );
        }
    }
    // More than are asked for, and with garbage.
    let most: Vec<OwnedFd> = (0..253).map(|_| null()).collect();
    let stranger = site.connect();
    stranger.send(&[0xff; 64], &most);
    assert!(stranger.receive().is_none());
    eventually("all are closed", || descriptors(&monitor) == before);
    println!("M3 8000 descriptors that nobody asked for: all are closed");
    assert_eq!(monitor.hello().0.phase, Phase::Running);
    monitor.done(Request::KillAll);
    monitor.exited();
}

#[test]
fn empty_and_largest_packets() {
    let site = Site::new();
    let mut monitor = site.shell("sleep 1000");
    // An empty packet looks like the end of the connection, and is taken for it.
    let stranger = site.connect();
    stranger.send(&[], &[]);
    // It may be gone before this arrives.
    let _ = socket::send_with_fds(stranger.socket.as_fd(), &vec![0; MAX_FRAME], &[]);
    assert!(stranger.receive().is_none());
    // As large as can be, and right.
    let mut large = site.connect();
    let process = vec![0; MAX_FRAME - 200];
    let request = ExecRequest {
        process: Some(process),
        terminal: false,
    };
    let asked = large.post(Request::Exec(request), &[]);
    let (reply, _) = large.answer(asked);
    println!("M3 a frame as large as can be: {reply:?}");
    assert!(matches!(reply, Reply::Error { .. }));
    assert_eq!(monitor.hello().0.phase, Phase::Running);
    monitor.done(Request::KillAll);
    monitor.exited();
}

#[test]
fn a_state_directory_deeper_than_a_socket_address_is_served() {
    let site = Site::new();
    let deep = site.state().join("d".repeat(200));
    fs::create_dir(&deep).unwrap();
    let mut fds = site.plan_fds(&site.plan(&["sleep", "1000"]));
    fds[1] = File::open(&deep).unwrap().into();
    let mut monitor = Monitor::spawn();
    let (reply, _) = monitor.ask_with(Request::Create(site.request()), fds);
    assert!(matches!(reply, Reply::Created { .. }), "{reply:?}");
    let state = File::open(&deep).unwrap();
    let later = socket::seqpacket_connect(state.as_fd(), SOCKET_NAME).unwrap();
    let mut later = crate::fixture::Client::new(later);
    assert_eq!(later.hello().0.phase, Phase::Created);
    println!(
        "M7 a socket below a directory of {} bytes: served",
        deep.as_os_str().len()
    );
    monitor.done(Request::Quit);
    assert_eq!(monitor.ended(), Some(0));
}

#[test]
fn no_socket_is_reachable_by_an_abstract_name() {
    let site = Site::new();
    let mut monitor = site.shell("sleep 1000");
    // A container in the host's network namespace sees these.
    let inodes: Vec<String> = fs::read_dir(format!("/proc/{}/fd", monitor.pid()))
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?;
            let target = target.to_string_lossy().into_owned();
            Some(
                target
                    .strip_prefix("socket:[")?
                    .strip_suffix(']')?
                    .to_owned(),
            )
        })
        .collect();
    let table = fs::read_to_string("/proc/net/unix").unwrap();
    let mine = table.lines().filter(|line| {
        let mut fields = line.split_whitespace().skip(6);
        fields
            .next()
            .is_some_and(|inode| inodes.iter().any(|own| own == inode))
    });
    let named: Vec<&str> = mine.filter(|line| line.contains('@')).collect();
    println!("M1 {} sockets, none with an abstract name", inodes.len());
    assert!(!inodes.is_empty() && named.is_empty(), "{named:?}");
    monitor.done(Request::KillAll);
    monitor.exited();
}
