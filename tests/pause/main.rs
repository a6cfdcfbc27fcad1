//! The pause as a process: what it makes, what it holds, what it is able to do, how it ends.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot read its answer has failed"
)]

mod users;

use std::{
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use crisp_pause::{MAX_FRAME, PROGRAM_NAME, Reply, Request};
use crisp_sys::{event, pidfd, socket};

const PATIENCE: Duration = Duration::from_secs(20);
const POLLIN: i16 = 1;
const SIGKILL: i32 = 9;

/// A started pause and our end of its socket; killed when dropped.
struct Started {
    child: Child,
    control: OwnedFd,
    name: String,
    holder: Option<OwnedFd>,
}

struct Held {
    pid: i32,
    network: Option<OwnedFd>,
}

impl Started {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{}-{count}", std::process::id());
        let (control, theirs) = socket::seqpacket_pair().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_crisp-pause"))
            .arg0(PROGRAM_NAME)
            .arg(&name)
            .env_clear()
            .current_dir("/")
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            control,
            name,
            holder: None,
        }
    }

    fn send(&self, bytes: &[u8]) {
        socket::send_with_fds(self.control.as_fd(), bytes, &[]).unwrap();
    }

    /// The answer to a request; nothing if the pause ended without one.
    fn answer(&mut self) -> Option<(Reply, Vec<OwnedFd>)> {
        assert!(
            event::poll(self.control.as_fd(), POLLIN, Some(PATIENCE)).unwrap(),
            "no answer"
        );
        let mut frame = vec![0; MAX_FRAME];
        let received = socket::recv_with_fds(self.control.as_fd(), &mut frame, 8);
        let (length, fds) = received.ok()?;
        (length > 0).then(|| (Reply::decode(&frame[..length]).unwrap(), fds))
    }

    fn hold(&mut self, request: &Request) -> Held {
        self.send(&request.encode());
        let (reply, fds) = self.answer().expect("an answer");
        let Reply::Held { pid } = reply else {
            panic!("{reply:?}")
        };
        let mut fds = fds.into_iter();
        self.holder = fds.next();
        Held {
            pid,
            network: fds.next(),
        }
    }

    fn refuse(&mut self, request: &Request) -> (String, i32) {
        self.send(&request.encode());
        match self.answer().expect("an answer") {
            (Reply::Failed { stage, errno, .. }, fds) => {
                assert!(fds.is_empty());
                assert!(!self.child.wait().unwrap().success());
                (stage, errno)
            }
            (other, _) => panic!("{other:?}"),
        }
    }

    fn holder(&self) -> &OwnedFd {
        self.holder.as_ref().expect("it holds")
    }

    fn ended(&self, within: Duration) -> bool {
        event::poll(self.holder().as_fd(), POLLIN, Some(within)).unwrap()
    }

    /// Processes that carry this pause's name.
    fn named(&self) -> Vec<i32> {
        let line = format!("{PROGRAM_NAME}\0{}\0", self.name).into_bytes();
        all_pids()
            .filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|read| read == line))
            .collect()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(holder) = &self.holder {
            pidfd::send_signal(holder.as_fd(), SIGKILL).ok();
            // A sibling of the first one is our child, too.
            pidfd::wait(holder.as_fd()).ok();
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn all_pids() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn namespace(pid: &str, kind: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

fn differs(pid: i32, kind: &str) -> bool {
    namespace(&pid.to_string(), kind) != namespace("self", kind)
}

fn status(pid: i32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_once(':').unwrap().1.trim().to_owned()
}

fn inside(pid: i32, command: &[&str]) -> String {
    let mut all = vec![
        "-t".to_owned(),
        pid.to_string(),
        "-n".into(),
        "-i".into(),
        "-u".into(),
    ];
    all.extend(command.iter().map(|&word| word.to_owned()));
    let output = Command::new("nsenter").args(&all).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn pod() -> Request {
    Request {
        network: true,
        ipc: true,
        uts: true,
        hostname: Some("web-0".to_owned()),
        oom_score_adj: -998,
        ..Request::default()
    }
}

#[test]
fn the_asked_namespaces_are_made_and_no_others() {
    let mut pause = Started::new();
    let held = pause.hold(&Request {
        sysctls: vec![
            ("net/ipv4/ip_unprivileged_port_start".into(), "81".into()),
            ("kernel/shmmni".into(), "77".into()),
        ],
        ..pod()
    });
    assert_eq!(u32::try_from(held.pid).unwrap(), pause.child.id());
    for (kind, own) in [
        ("net", true),
        ("ipc", true),
        ("uts", true),
        ("pid", false),
        ("user", false),
    ] {
        assert_eq!(differs(held.pid, kind), own, "{kind}");
    }
    let network = fs::File::from(held.network.unwrap());
    let linked = fs::metadata(format!("/proc/{}/ns/net", held.pid)).unwrap();
    assert_eq!(network.metadata().unwrap().ino(), linked.ino());
    assert_eq!(inside(held.pid, &["hostname"]), "web-0");
    let value = |path: &str| inside(held.pid, &["cat", path]);
    assert_eq!(value("/proc/sys/net/ipv4/ip_unprivileged_port_start"), "81");
    assert_eq!(value("/proc/sys/kernel/shmmni"), "77");
    let loopback = inside(held.pid, &["ip", "-o", "addr", "show", "dev", "lo"]);
    assert!(loopback.contains("127.0.0.1/8"), "{loopback}");
    let host = fs::read_to_string("/proc/sys/kernel/shmmni").unwrap();
    assert_ne!(host.trim(), "77", "the host's value is its own");
}

#[test]
fn with_the_hosts_namespaces_it_only_holds() {
    let mut pause = Started::new();
    let held = pause.hold(&Request::default());
    assert!(held.network.is_none());
    for kind in ["net", "ipc", "uts", "pid", "user"] {
        assert!(!differs(held.pid, kind), "{kind}");
    }
}

#[test]
fn it_keeps_no_privilege_and_sees_nothing_of_the_host() {
    for pid in [false, true] {
        let mut pause = Started::new();
        let held = pause.hold(&Request { pid, ..pod() });
        // It answers before it gives up the last of it, and is useless to a container until then.
        eventually("nobody", || {
            status(held.pid, "Uid")
                .split('\t')
                .all(|uid| uid == "65534")
        });
        eventually("no capability", || {
            ["CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"]
                .iter()
                .all(|set| status(held.pid, set) == "0000000000000000")
        });
        assert_eq!(status(held.pid, "NoNewPrivs"), "1");
        assert_eq!(status(held.pid, "Name"), "pause");
        assert_eq!(status(held.pid, "Groups"), "");
        // Not dumpable: its files in /proc are root's though it is nobody.
        assert_eq!(
            fs::metadata(format!("/proc/{}/ns", held.pid))
                .unwrap()
                .uid(),
            0
        );
        let root = PathBuf::from(format!("/proc/{}/root", held.pid));
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
        assert!(fs::write(root.join("x"), "").is_err(), "read-only");
        // Its standard streams and the signal descriptor, no socket, no directory, nothing that was
        // inherited: this test's own process has more.
        eventually("the rest is closed", || {
            fs::read_dir(format!("/proc/{}/fd", held.pid))
                .unwrap()
                .all(|entry| {
                    let target = fs::read_link(entry.unwrap().path()).unwrap_or_default();
                    target == Path::new("/dev/null")
                        || target.to_string_lossy().contains("signalfd")
                })
        });
    }
}

#[test]
fn only_sigkill_ends_it() {
    for pid in [false, true] {
        let mut pause = Started::new();
        let held = pause.hold(&Request { pid, ..pod() });
        for signo in [1, 2, 3, 10, 12, 13, 14, 15, 20, 34] {
            pidfd::send_signal(pause.holder().as_fd(), signo).unwrap();
        }
        assert!(!pause.ended(Duration::from_millis(100)));
        assert_eq!(status(held.pid, "State").chars().next(), Some('S'));
        pidfd::send_signal(pause.holder().as_fd(), SIGKILL).unwrap();
        assert!(pause.ended(PATIENCE));
    }
}

#[test]
fn in_a_shared_pid_namespace_it_is_pid_1_our_child_and_the_reaper() {
    let mut pause = Started::new();
    let held = pause.hold(&Request { pid: true, ..pod() });
    assert!(pause.child.wait().unwrap().success(), "the first one ends");
    assert!(differs(held.pid, "pid"));
    assert_eq!(status(held.pid, "NSpid").rsplit('\t').next(), Some("1"));
    assert_eq!(status(held.pid, "PPid"), std::process::id().to_string());
    let children = || -> Vec<i32> {
        all_pids()
            .filter(|pid| {
                fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
                    let rest = stat.rsplit_once(") ").unwrap().1;
                    rest.split(' ').nth(1) == Some(&held.pid.to_string())
                })
            })
            .collect()
    };
    // Five orphans of a shell that entered the namespace.
    let shell = ["sh", "-c", "for i in 1 2 3 4 5; do sleep 600 & done"];
    let entered = Command::new("nsenter")
        .args(["-t", &held.pid.to_string(), "-p", "--"])
        .args(shell)
        .status()
        .unwrap();
    assert!(entered.success());
    eventually("the orphans are its own", || children().len() == 5);
    for orphan in children() {
        let descriptor = pidfd::open(orphan).unwrap();
        pidfd::send_signal(descriptor.as_fd(), SIGKILL).unwrap();
    }
    eventually("no zombie is left", || children().is_empty());
    assert!(!pause.ended(Duration::ZERO));
}

#[test]
fn it_joins_its_cgroup() {
    let Some(tree) = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"]
        .into_iter()
        .map(Path::new)
        .find(|tree| tree.join("cgroup.procs").exists())
    else {
        panic!("no cgroup tree on this machine");
    };
    let name = format!("crisp-pause-test-{}", std::process::id());
    let group = tree.join(&name);
    fs::create_dir(&group).unwrap();
    let joined = {
        let mut pause = Started::new();
        let file = group.join("cgroup.procs").display().to_string();
        let held = pause.hold(&Request {
            cgroup_files: vec![file],
            pid: true,
            ..pod()
        });
        fs::read_to_string(format!("/proc/{}/cgroup", held.pid)).unwrap()
    };
    let removed = fs::remove_dir(&group);
    assert!(joined.lines().any(|line| line.ends_with(&name)), "{joined}");
    removed.unwrap();
}

#[test]
fn what_cannot_be_done_is_named_and_leaves_nothing() {
    let sysctl = |key: &str| Request {
        sysctls: vec![(key.to_owned(), "1".into())],
        ..pod()
    };
    let mut pause = Started::new();
    assert_eq!(
        pause.refuse(&sysctl("net/ipv4/no_such_thing")),
        ("set a sysctl".into(), 2)
    );
    assert!(pause.named().is_empty());
    let missing = Request {
        cgroup_files: vec!["/nowhere/tasks".into()],
        ..pod()
    };
    assert_eq!(
        Started::new().refuse(&missing),
        ("join the cgroup".into(), 2)
    );
    let long = Request {
        hostname: Some("x".repeat(65)),
        ..pod()
    };
    assert_eq!(
        Started::new().refuse(&long),
        ("set the host name".into(), 22)
    );
}

#[test]
fn a_parameter_of_the_host_is_refused_whoever_asks() {
    let core_pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    for (request, key) in [
        (pod(), "kernel/core_pattern"),
        (pod(), "net/../kernel/core_pattern"),
        (pod(), "net//../../kernel/core_pattern"),
        (pod(), "/proc/sys/kernel/core_pattern"),
        (pod(), "net"),
        (pod(), ""),
        (pod(), "kernel/hostname"),
        (
            Request {
                network: false,
                ..pod()
            },
            "net/ipv4/ip_forward",
        ),
        (
            Request {
                ipc: false,
                ..pod()
            },
            "kernel/shmmni",
        ),
        (
            Request {
                ipc: false,
                ..pod()
            },
            "fs/mqueue/msg_max",
        ),
    ] {
        let request = Request {
            sysctls: vec![(key.to_owned(), "pwned".into())],
            ..request
        };
        let (stage, errno) = Started::new().refuse(&request);
        assert_eq!((stage.as_str(), errno), ("set a sysctl", 1), "{key}");
    }
    assert_eq!(
        fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(),
        core_pattern
    );
}

#[test]
fn nonsense_on_the_socket_ends_it() {
    for frame in [
        &b"x"[..],
        &[0xff; 64],
        &[7, 0, 255, 255, 255, 255],
        &vec![1; MAX_FRAME + 1],
    ] {
        let mut pause = Started::new();
        pause.send(frame);
        if let Some((reply, _)) = pause.answer() {
            assert!(matches!(reply, Reply::Failed { .. }), "{reply:?}");
        }
        assert!(!pause.child.wait().unwrap().success());
    }
}

#[test]
fn a_daemon_that_dies_early_leaves_no_pause() {
    // Before the request: the socket ends.
    let mut pause = Started::new();
    let (unused, _) = socket::seqpacket_pair().unwrap();
    drop(std::mem::replace(&mut pause.control, unused));
    pause.child.wait().unwrap();
    // After it, before the answer is read.
    for pid in [false, true] {
        let mut pause = Started::new();
        pause.send(&Request { pid, ..pod() }.encode());
        let (unused, _) = socket::seqpacket_pair().unwrap();
        drop(std::mem::replace(&mut pause.control, unused));
        if pid {
            pause.child.wait().unwrap();
        } else {
            // A process that is just being executed has no command line for a moment.
            eventually("it ended or is found", || {
                pause.child.try_wait().unwrap().is_some() || !pause.named().is_empty()
            });
        }
        // The answer may have been sent before the socket was closed: then a daemon finds the pause
        // by its name, which is why it carries one.
        for left in pause.named() {
            let descriptor = pidfd::open(left).unwrap();
            pidfd::send_signal(descriptor.as_fd(), SIGKILL).unwrap();
            pidfd::wait(descriptor.as_fd()).ok();
        }
        assert!(pause.named().is_empty());
    }
}

#[test]
fn it_needs_next_to_no_memory() {
    let mut pause = Started::new();
    let held = pause.hold(&Request { pid: true, ..pod() });
    // Pages that the first one still shares would not count.
    assert!(pause.child.wait().unwrap().success());
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", held.pid)).unwrap();
    let kib: u64 = rollup
        .lines()
        // Not the dirty pages of a program file that was built a moment ago.
        .filter(|line| line.starts_with("Anonymous:"))
        .map(|line| {
            line.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        })
        .sum();
    println!("anonymous memory of this build's pause: {kib} KiB");
    // The released build is static and has less; this one also carries its relocations.
    assert!(kib <= 256, "{kib} KiB");
}
