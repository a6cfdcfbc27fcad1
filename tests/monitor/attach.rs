//! Clients attached to the streams of a container.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use conmon_rs::protocol::{AttachRequest, CreateRequest, Event, Reply, Request, STAGE_PHASE};
use crisp_sys::fd;

use crate::fixture::{Client, Monitor, Site, eventually};

/// A client's ends, all blocking.
pub struct Pipes {
    stdin: Option<File>,
    stdout: Option<File>,
    stderr: Option<File>,
}

impl Pipes {
    /// What comes on stdout until there are `length` bytes.
    pub fn read(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.stdout
            .as_mut()
            .expect("stdout")
            .read_exact(&mut bytes)
            .expect("output");
        bytes
    }

    /// What comes on stdout until it ends.
    fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let stdout = self.stdout.as_mut().expect("stdout");
        stdout.read_to_end(&mut bytes).expect("output");
        bytes
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stdin
            .as_mut()
            .expect("stdin")
            .write_all(bytes)
            .expect("input");
    }
}

pub const OUTPUT: AttachRequest = AttachRequest {
    stdin: false,
    stdout: true,
    stderr: false,
};
const ALL: AttachRequest = AttachRequest {
    stdin: true,
    stdout: true,
    stderr: true,
};

/// Asks for an attach; our ends if it is granted.
fn try_attach(client: &mut Client, request: AttachRequest) -> Result<Pipes, Box<Reply>> {
    let pipe = |wanted: bool| wanted.then(|| fd::pipe().expect("pipe"));
    let (in_read, in_write) = pipe(request.stdin).unzip();
    let (out_read, out_write) = pipe(request.stdout).unzip();
    let (err_read, err_write) = pipe(request.stderr).unzip();
    let theirs: Vec<OwnedFd> = [in_read, out_write, err_write]
        .into_iter()
        .flatten()
        .collect();
    match client.ask_with(Request::Attach(request), theirs).0 {
        Reply::Ok => Ok(Pipes {
            stdin: in_write.map(File::from),
            stdout: out_read.map(File::from),
            stderr: err_read.map(File::from),
        }),
        other => Err(Box::new(other)),
    }
}

pub fn attach(client: &mut Client, request: AttachRequest) -> Pipes {
    try_attach(client, request).expect("attached")
}

fn with_stdin(site: &Site, script: &str, once: bool) -> Monitor {
    let request = CreateRequest {
        stdin: true,
        stdin_once: once,
        ..site.request()
    };
    let mut monitor = site.create_with(&site.plan(&["sh", "-c", script]), request);
    monitor.done(Request::Start);
    monitor
}

fn descriptors(monitor: &Monitor) -> usize {
    let path = format!("/proc/{}/fd", monitor.pid());
    std::fs::read_dir(path).expect("fd").count()
}

#[test]
fn every_client_sees_what_is_printed_and_the_end() {
    let site = Site::new();
    let mut monitor = with_stdin(&site, "cat; echo over; echo wrong >&2; exit 3", true);
    let before = descriptors(&monitor);
    let mut first = attach(&mut monitor, ALL);
    let mut second = attach(&mut monitor, OUTPUT);
    first.write(b"hello\n");
    assert_eq!(first.read(6), b"hello\n");
    assert_eq!(second.read(6), b"hello\n");
    first.stdin = None;
    assert_eq!(first.rest(), b"over\n");
    assert_eq!(second.rest(), b"over\n");
    let mut errors = String::new();
    first
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut errors)
        .unwrap();
    assert_eq!(errors, "wrong\n");
    assert_eq!(monitor.exited().code, 3);
    assert_eq!(site.records().len(), 3, "the log has it all");
    assert!(descriptors(&monitor) < before, "no pipe is left");
    monitor.acknowledge();
}

#[test]
fn stdin_ends_with_the_first_client_only_where_that_was_asked_for() {
    let site = Site::new();
    let mut monitor = with_stdin(&site, "cat", false);
    for word in ["one\n", "two\n"] {
        let mut client = attach(&mut monitor, ALL);
        client.write(word.as_bytes());
        client.stdin = None;
        assert_eq!(
            client.read(4),
            word.as_bytes(),
            "output goes on after the end of input"
        );
    }
    // Without a word, and with no input wanted at all.
    drop(attach(&mut monitor, ALL));
    drop(attach(&mut monitor, OUTPUT));
    let mut client = attach(&mut monitor, ALL);
    client.write(b"end\n");
    assert_eq!(client.read(4), b"end\n");
    monitor.done(Request::CloseStdin);
    assert_eq!(monitor.exited().code, 0);
    assert_eq!(client.rest(), b"");
    assert!(
        client.stdin.unwrap().write_all(b"x").is_err(),
        "nobody takes input"
    );
}

#[test]
fn input_of_a_container_that_does_not_read_waits_in_order() {
    let site = Site::new();
    let script = "while [ ! -e /tmp/go ]; do sleep 0.01; done; exec cat";
    let mut monitor = with_stdin(&site, script, true);
    let mut client = attach(&mut monitor, ALL);
    let mut input = client.stdin.take().unwrap();
    let text: Vec<u8> = (0..100_000)
        .flat_map(|n| format!("{n:07}\n").into_bytes())
        .collect();
    let sent = text.clone();
    let writer = std::thread::spawn(move || input.write_all(&sent).unwrap());
    // It is bounded: two pipes are full and the monitor still answers and does not spin.
    eventually("the writer is held up", || {
        monitor.hello();
        !writer.is_finished() && ticks(&monitor) < 50
    });
    let busy = ticks(&monitor);
    std::thread::sleep(Duration::from_millis(300));
    assert!(
        ticks(&monitor) - busy < 10,
        "it spins: {} ticks",
        ticks(&monitor) - busy
    );
    let (exec, ..) = monitor
        .exec(&crate::fixture::process(&["sh", "-c", ": > /tmp/go"]))
        .unwrap();
    assert_eq!(monitor.exec_exited(exec), (0, 0));
    assert!(client.rest() == text, "all of it, in order");
    writer.join().unwrap();
    assert_eq!(monitor.exited().code, 0);
}

#[test]
fn input_of_many_waits_for_a_container_that_does_not_read() {
    const EACH: usize = 300_000;
    let site = Site::new();
    let script = "while [ ! -e /tmp/go ]; do sleep 0.01; done; exec head -c 1200000";
    let mut monitor = with_stdin(&site, script, false);
    let mut watcher = attach(&mut monitor, OUTPUT);
    let writers: Vec<_> = (0..4_u8)
        .map(|number| {
            let request = AttachRequest {
                stdin: true,
                stdout: false,
                stderr: false,
            };
            let mut input = attach(&mut monitor, request).stdin.unwrap();
            std::thread::spawn(move || input.write_all(&[b'0' + number; EACH]).unwrap())
        })
        .collect();
    std::thread::sleep(Duration::from_millis(100));
    let (exec, ..) = monitor
        .exec(&crate::fixture::process(&["sh", "-c", ": > /tmp/go"]))
        .unwrap();
    assert_eq!(monitor.exec_exited(exec), (0, 0));
    let seen = watcher.rest();
    for number in 0..4 {
        let of_one = seen.iter().filter(|byte| **byte == b'0' + number).count();
        assert_eq!(of_one, EACH, "of client {number}");
    }
    for writer in writers {
        writer.join().unwrap();
    }
    assert_eq!(monitor.exited().code, 0);
}

/// Processor time of the monitor, in hundredths of a second.
fn ticks(monitor: &Monitor) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", monitor.pid())).expect("stat");
    let rest = text.rsplit_once(')').expect("stat").1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    [11, 12]
        .map(|at| fields[at].parse::<u64>().expect("ticks"))
        .iter()
        .sum()
}

#[test]
fn a_client_that_does_not_read_is_dropped_and_nobody_waits_for_it() {
    let site = Site::new();
    let script = "while [ ! -e /tmp/go ]; do sleep 0.01; done; seq 1 2000000";
    let mut monitor = site.shell(script);
    let mut stuck = attach(&mut monitor, OUTPUT);
    let mut reader = attach(&mut monitor, OUTPUT);
    let counted = std::thread::spawn(move || reader.rest().len());
    let (exec, ..) = monitor
        .exec(&crate::fixture::process(&["sh", "-c", ": > /tmp/go"]))
        .unwrap();
    assert_eq!(monitor.exec_exited(exec), (0, 0));
    let began = Instant::now();
    let dropped = monitor.event(|event| match event {
        Event::AttachDropped { count } => Some(*count),
        _ => None,
    });
    println!("dropped {dropped} after {:?}", began.elapsed());
    let record = monitor.exited();
    assert_eq!((record.code, record.lost_bytes), (0, 0));
    assert_eq!((dropped, monitor.hello().0.dropped_clients), (1, 1));
    let all: usize = (1..=2_000_000_u32).map(|n| n.to_string().len() + 1).sum();
    let seen = counted.join().unwrap();
    println!("the reader saw {seen} of {all} bytes");
    assert_eq!(seen, all, "who reads is not dropped with who does not");
    assert_eq!(site.records().len(), 2_000_000);
    // The pipe holds what there was room for; then it ends.
    assert!(stuck.rest().len() <= 65_536);
    monitor.acknowledge();
}

#[test]
fn clients_that_go_leave_nothing() {
    let site = Site::new();
    let mut monitor = with_stdin(&site, "exec sleep 1000", false);
    let before = descriptors(&monitor);
    for _ in 0..200 {
        drop(attach(&mut monitor, ALL));
    }
    eventually("their pipes are closed", || descriptors(&monitor) == before);
    // While they are there, there are not more than so many.
    let mut crowd = Vec::new();
    let refused = loop {
        match try_attach(&mut monitor, OUTPUT) {
            Ok(pipes) => crowd.push(pipes),
            Err(reply) => break reply,
        }
    };
    println!("{} clients, then {refused:?}", crowd.len());
    assert!(matches!(
        *refused,
        Reply::Error {
            errno: libc::EAGAIN,
            ..
        }
    ));
    drop(crowd);
    eventually("their pipes are closed", || descriptors(&monitor) == before);
    monitor.done(Request::KillAll);
    monitor.exited();
}

#[test]
fn a_terminal_takes_input_from_many_and_never_ends() {
    let site = Site::new();
    let mut plan = site.plan(&[
        "sh",
        "-c",
        "stty -echo; echo ready; read a; read b; echo $a-$b",
    ]);
    plan.process.terminal = true;
    plan.steps.push(crisp_oci::plan::Step::Console);
    let request = CreateRequest {
        terminal: true,
        stdin: true,
        stdin_once: true,
        ..site.request()
    };
    let mut monitor = site.create_with(&plan, request);
    let mut watcher = attach(&mut monitor, OUTPUT);
    monitor.done(Request::Start);
    assert_eq!(watcher.read(7), b"ready\r\n");
    let terminal = AttachRequest {
        stderr: false,
        ..ALL
    };
    for word in ["x\n", "y\n"] {
        let mut client = attach(&mut monitor, terminal);
        client.write(word.as_bytes());
    }
    assert_eq!(watcher.rest(), b"x-y\r\n");
    assert_eq!(monitor.exited().code, 0);
}

#[test]
fn what_cannot_be_attached_is_refused() {
    let site = Site::new();
    let mut monitor = site.shell("exec sleep 1000");
    let refused = |monitor: &mut Monitor, request, fds| match monitor
        .ask_with(Request::Attach(request), fds)
        .0
    {
        Reply::Error { stage, errno, .. } => (stage, errno),
        other => panic!("{other:?}"),
    };
    let pipe = || fd::pipe().unwrap().1;
    let none = AttachRequest::default();
    assert_eq!(refused(&mut monitor, none, vec![]).1, libc::EINVAL);
    assert_eq!(refused(&mut monitor, OUTPUT, vec![]).1, libc::EINVAL);
    let two = vec![pipe(), pipe()];
    assert_eq!(refused(&mut monitor, OUTPUT, two).1, libc::EINVAL);
    // Made without stdin.
    let three = vec![fd::pipe().unwrap().0, pipe(), pipe()];
    assert_eq!(refused(&mut monitor, ALL, three).1, libc::EINVAL);
    // No pipe at all.
    let file = File::open(site.state().join("monitor.sock").parent().unwrap()).unwrap();
    assert_eq!(
        refused(&mut monitor, OUTPUT, vec![file.into()]).1,
        libc::EPERM
    );
    monitor.done(Request::KillAll);
    monitor.exited();
    assert_eq!(refused(&mut monitor, OUTPUT, vec![pipe()]).0, STAGE_PHASE);
    monitor.acknowledge();
}

#[test]
fn an_attach_outlives_the_connection_that_asked_for_it() {
    let site = Site::new();
    let mut monitor = with_stdin(&site, "cat", true);
    let mut daemon = site.connect();
    let mut client = attach(&mut daemon, ALL);
    drop(daemon);
    client.write(b"still here\n");
    assert_eq!(client.read(11), b"still here\n");
    fd::set_nonblocking(client.stdout.as_ref().unwrap().as_fd(), false).unwrap();
    drop(client);
    assert_eq!(
        monitor.exited().code,
        0,
        "the end of its input was the container's"
    );
}
