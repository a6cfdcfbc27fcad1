//! A container's surroundings, and a daemon's side of the protocol.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use conmon_rs::exit::ExitRecord;
use conmon_rs::protocol::{
    CreateRequest, EXIT_NAME, Event, ExecRequest, Frame, MAX_FDS, MAX_FRAME, PROTOCOL_VERSION,
    Reply, Request, SOCKET_NAME, Snapshot,
};
use crisp_oci::cgroup::{Cgroup, Hierarchy, Resources};
use crisp_oci::plan::{CgroupPlan, FdIndex, Plan, ProcessPlan, RootfsSource};
use crisp_oci::wire;
use crisp_sys::{fd, mount, socket};

use crate::ordinary;
pub use crate::ordinary::{PATIENCE, eventually, process};

/// The tests' groups begin with this, then comes the number of the test process. They lie at the top:
/// a group above, shared by tests that run at once, would be made and removed under them.
const GROUP: &str = "/crisp-monitor-test-";

/// A directory with a root filesystem, a state directory and a place for the log.
pub struct Site {
    pub dir: tempfile::TempDir,
    pub group: String,
    pub hierarchy: Hierarchy,
}

impl Site {
    pub fn new() -> Site {
        static SWEPT: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let hierarchy = Hierarchy::probe().expect("cgroups");
        SWEPT.call_once(|| sweep(&hierarchy));
        let dir = tempfile::Builder::new()
            .prefix("crisp-monitor-")
            .tempdir()
            .expect("tempdir");
        let root = dir.path().join("rootfs");
        for sub in ["bin", "dev", "proc", "sys", "tmp"] {
            fs::create_dir_all(root.join(sub)).expect("mkdir");
        }
        fs::hard_link("/bin/busybox", root.join("bin/busybox"))
            .or_else(|_| fs::copy("/bin/busybox", root.join("bin/busybox")).map(drop))
            .expect("a static /bin/busybox");
        for applet in [
            "awk", "sh", "cat", "dd", "echo", "false", "id", "kill", "printf", "ps", "seq",
            "setsid", "sleep", "true", "tty", "yes", "stty", "head",
        ] {
            symlink("busybox", root.join("bin").join(applet)).expect("symlink");
        }
        for sub in ["state", "upper", "work"] {
            fs::create_dir(dir.path().join(sub)).expect("mkdir");
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let group = format!("{GROUP}{}-{number}", std::process::id());
        Site {
            dir,
            group,
            hierarchy,
        }
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn log(&self) -> PathBuf {
        self.dir.path().join("0.log")
    }

    /// A filesystem of 64 KiB, gone with the site.
    pub fn small_disk(&self) -> PathBuf {
        let small = self.dir.path().join("small");
        fs::create_dir(&small).expect("mkdir");
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
            .arg(&small);
        assert!(mount.status().expect("mount").success());
        small
    }

    pub fn log_bytes(&self) -> Vec<u8> {
        fs::read(self.log()).unwrap_or_default()
    }

    /// The records of the log.
    pub fn records(&self) -> Vec<Record> {
        records(&self.log_bytes())
    }

    pub fn exit_file(&self) -> Option<ExitRecord> {
        let bytes = fs::read(self.state().join(EXIT_NAME)).ok()?;
        Some(ExitRecord::from_file(&bytes).expect("an exit record is whole or absent"))
    }

    /// The container's group, to look at from outside.
    pub fn cgroup(&self) -> Cgroup {
        Cgroup::observe(&self.hierarchy, &self.group).expect("group")
    }

    /// Whether the group is in any tree.
    pub fn group_exists(&self) -> bool {
        ordinary::trees(&self.hierarchy)
            .iter()
            .any(|mount| mount.join(&self.group[1..]).exists())
    }

    /// A container that runs `args` with namespaces of its own.
    pub fn plan(&self, args: &[&str]) -> Plan {
        Plan {
            id: "test".into(),
            bundle: self.dir.path().display().to_string(),
            rootfs: RootfsSource::DetachedMount(FdIndex(0)),
            namespaces: ordinary::namespaces(),
            steps: ordinary::steps(),
            process: process(args),
            cgroup: CgroupPlan {
                hierarchy: self.hierarchy.clone(),
                path: self.group.clone(),
                resources: Resources::default(),
                device_rules: ordinary::device_rules(),
                owner: None,
            },
            ..Plan::default()
        }
    }

    /// What goes with a plan: itself, the state directory, the root filesystem.
    pub fn plan_fds(&self, plan: &Plan) -> Vec<OwnedFd> {
        let payload = fd::sealed_memfd("plan", &wire::encode(plan)).expect("memfd");
        let state = File::open(self.state()).expect("state").into();
        vec![payload, state, ordinary::overlay(self.dir.path())]
    }

    pub fn request(&self) -> CreateRequest {
        CreateRequest {
            id: "test".into(),
            log_path: Some(self.log().display().to_string()),
            ..CreateRequest::default()
        }
    }

    /// A monitor with a container that was created as asked.
    pub fn create_with(&self, plan: &Plan, request: CreateRequest) -> Monitor {
        let mut monitor = Monitor::spawn();
        let (reply, fds) = monitor.ask_with(Request::Create(request), self.plan_fds(plan));
        let Reply::Created { pid, .. } = reply else {
            panic!("{reply:?}")
        };
        assert_eq!(fds.len(), 1);
        monitor.init = pid;
        monitor
    }

    /// A monitor with a created container.
    pub fn create(&self, plan: &Plan) -> Monitor {
        self.create_with(plan, self.request())
    }

    /// A monitor with a container that runs.
    pub fn start(&self, plan: &Plan) -> Monitor {
        let mut monitor = self.create(plan);
        monitor.done(Request::Start);
        monitor
    }

    /// A running shell.
    pub fn shell(&self, script: &str) -> Monitor {
        self.start(&self.plan(&["sh", "-c", script]))
    }

    /// Runs a shell script to its end.
    pub fn run(&self, script: &str) -> (Monitor, ExitRecord) {
        let mut monitor = self.shell(script);
        let record = monitor.exited();
        (monitor, record)
    }

    /// A connection like that of a daemon that was restarted.
    pub fn connect(&self) -> Client {
        let state = File::open(self.state()).expect("state");
        Client::new(socket::seqpacket_connect(state.as_fd(), SOCKET_NAME).expect("connect"))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        clear(&self.hierarchy, &self.group);
        let small = self.dir.path().join("small");
        if small.exists() {
            let _ = mount::umount2(&small, libc::MNT_DETACH);
        }
    }
}

fn clear(hierarchy: &Hierarchy, group: &str) {
    let group = Cgroup::observe(hierarchy, group).expect("group");
    let _ = group.kill();
    let _ = group.remove();
}

/// Ends and removes what test processes that are gone have left.
fn sweep(hierarchy: &Hierarchy) {
    for mount in ordinary::trees(hierarchy) {
        for entry in fs::read_dir(mount).into_iter().flatten().flatten() {
            let name = format!("/{}", entry.file_name().to_string_lossy());
            let pid = name
                .strip_prefix(GROUP)
                .and_then(|rest| rest.split('-').next());
            if pid.is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()) {
                clear(hierarchy, &name);
            }
        }
    }
}

/// A log record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub stream: String,
    pub tag: char,
    pub content: Vec<u8>,
}

/// Parses a log as strictly as kubelet does, and panics where it would skip a line.
pub fn records(bytes: &[u8]) -> Vec<Record> {
    let parse = |line: &[u8]| {
        let line = line
            .strip_suffix(b"\n")
            .expect("a record ends with a newline");
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let time = fields.next().expect("time");
        assert!(
            time.len() == 30 && time.ends_with(b"Z"),
            "{}",
            String::from_utf8_lossy(line)
        );
        let stream = String::from_utf8_lossy(fields.next().expect("stream")).into_owned();
        assert!(stream == "stdout" || stream == "stderr", "{stream}");
        let tag = char::from(fields.next().expect("tag")[0]);
        assert!(tag == 'P' || tag == 'F', "{tag}");
        Record {
            stream,
            tag,
            content: fields.next().expect("content").to_vec(),
        }
    };
    bytes
        .split_inclusive(|byte| *byte == b'\n')
        .map(parse)
        .collect()
}

/// One connection to a monitor.
pub struct Client {
    pub socket: OwnedFd,
    seq: u64,
    pub events: VecDeque<Event>,
}

impl Client {
    pub fn new(socket: OwnedFd) -> Client {
        Client {
            socket,
            seq: 0,
            events: VecDeque::new(),
        }
    }

    pub fn send(&self, bytes: &[u8], fds: &[OwnedFd]) {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        socket::send_with_fds(self.socket.as_fd(), bytes, &fds).expect("send");
    }

    /// The next frame; none at the end of the connection.
    pub fn receive(&self) -> Option<(Frame, Vec<OwnedFd>)> {
        let mut buffer = vec![0; MAX_FRAME];
        let ready = crisp_sys::event::poll(self.socket.as_fd(), libc::POLLIN, Some(PATIENCE));
        assert!(ready.expect("poll"), "the monitor says nothing");
        let (length, fds) =
            socket::recv_with_fds(self.socket.as_fd(), &mut buffer, MAX_FDS).ok()?;
        if length == 0 {
            return None;
        }
        Some((Frame::decode(&buffer[..length]).expect("frame"), fds))
    }

    /// Asks without waiting for the answer; returns the request's number.
    pub fn post(&mut self, request: Request, fds: &[OwnedFd]) -> u64 {
        self.seq += 1;
        self.send(
            &Frame::Request {
                seq: self.seq,
                request,
            }
            .encode(),
            fds,
        );
        self.seq
    }

    pub fn ask_with(&mut self, request: Request, fds: Vec<OwnedFd>) -> (Reply, Vec<OwnedFd>) {
        let asked = self.post(request, &fds);
        drop(fds);
        self.answer(asked)
    }

    /// The answer to a posted request.
    pub fn answer(&mut self, asked: u64) -> (Reply, Vec<OwnedFd>) {
        loop {
            match self.receive() {
                Some((Frame::Reply { seq, reply }, fds)) => {
                    assert_eq!(seq, asked);
                    return (reply, fds);
                }
                Some((Frame::Event(event), _)) => self.events.push_back(event),
                other => panic!("no answer but {other:?}"),
            }
        }
    }

    pub fn ask(&mut self, request: Request) -> Reply {
        self.ask_with(request, Vec::new()).0
    }

    pub fn done(&mut self, request: Request) {
        let text = format!("{request:?}");
        assert_eq!(self.ask(request), Reply::Ok, "{text}");
    }

    /// The stage and errno of a refusal.
    pub fn refused(&mut self, request: Request) -> (String, i32) {
        match self.ask(request) {
            Reply::Error { stage, errno, .. } => (stage, errno),
            other => panic!("not refused but {other:?}"),
        }
    }

    pub fn hello(&mut self) -> (Snapshot, Vec<OwnedFd>) {
        let (reply, fds) = self.ask_with(
            Request::Hello {
                version: PROTOCOL_VERSION,
            },
            Vec::new(),
        );
        let Reply::Snapshot(snapshot) = reply else {
            panic!("{reply:?}")
        };
        (snapshot, fds)
    }

    /// Waits for an event.
    pub fn event<T>(&mut self, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
        let mut at = 0;
        loop {
            while at < self.events.len() {
                if let Some(found) = wanted(&self.events[at]) {
                    self.events.remove(at);
                    return found;
                }
                at += 1;
            }
            match self.receive() {
                Some((Frame::Event(event), _)) => self.events.push_back(event),
                other => panic!("no event but {other:?}"),
            }
        }
    }

    pub fn exited(&mut self) -> ExitRecord {
        self.event(|event| match event {
            Event::Exited(record) => Some(record.clone()),
            _ => None,
        })
    }

    /// Code and signal of an exec that has ended.
    pub fn exec_exited(&mut self, wanted: u64) -> (i32, i32) {
        self.event(|event| match event {
            Event::ExecExited {
                exec, code, signal, ..
            } if *exec == wanted => Some((*code, *signal)),
            _ => None,
        })
    }

    /// Starts an exec whose outputs go into one pipe: number, pid, and the pipe.
    pub fn exec(&mut self, process: &ProcessPlan) -> Result<(u64, i32, File), Box<Reply>> {
        let (reader, writer) = fd::pipe().expect("pipe");
        let stdin = File::open("/dev/null").expect("null").into();
        let stderr = fd::dup(writer.as_fd()).expect("dup");
        let bytes = wire::encode_process(process);
        let (request, large) = ExecRequest::inline_or_memfd(bytes, false);
        let payload = large.map(|bytes| fd::sealed_memfd("process", &bytes).expect("memfd"));
        let fds = payload.into_iter().chain([stdin, writer, stderr]).collect();
        match self.ask_with(Request::Exec(request), fds).0 {
            Reply::ExecStarted { exec, pid } => Ok((exec, pid, File::from(reader))),
            other => Err(Box::new(other)),
        }
    }
}

/// A monitor and the connection it was started with.
pub struct Monitor {
    pub child: Child,
    client: Client,
    pub init: i32,
}

impl std::ops::Deref for Monitor {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl std::ops::DerefMut for Monitor {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Monitor {
    pub fn spawn() -> Monitor {
        let (ours, theirs) = socket::seqpacket_pair().expect("socketpair");
        let binary =
            std::env::var_os("CONMON_RS").unwrap_or(env!("CARGO_BIN_EXE_conmon-rs").into());
        let child = Command::new(binary)
            .arg("test")
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("conmon-rs");
        Monitor::adopt(child, ours)
    }

    /// A monitor that was started elsewhere.
    pub fn adopt(child: Child, socket: OwnedFd) -> Monitor {
        Monitor {
            child,
            client: Client::new(socket),
            init: 0,
        }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("pid")
    }

    /// Hangs up like a daemon that dies.
    pub fn hang_up(&mut self) {
        let (other, _) = socket::seqpacket_pair().expect("socketpair");
        self.client = Client::new(other);
    }

    /// Waits until the monitor has ended; its exit code.
    pub fn ended(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("the monitor ends", || {
            status = self.child.try_wait().expect("wait");
            status.is_some()
        });
        status.and_then(|status| status.code())
    }

    /// Acknowledges the exit and waits until the monitor has ended.
    pub fn acknowledge(&mut self) {
        self.done(Request::AckExit);
        assert_eq!(self.ended(), Some(0));
    }

    /// A line of /proc/<monitor>/smaps_rollup, in KiB.
    pub fn smaps(&self, key: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid())).expect("smaps");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let number = line.and_then(|line| line.split_whitespace().next());
        number
            .expect("a line of smaps_rollup")
            .parse()
            .expect("a number")
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // Its container ends with the group, which the site clears.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
