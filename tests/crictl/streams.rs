//! exec, attach, port-forward and logs -f: what crictl does over the streaming server, and what it
//! follows in a file.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use crisp_harness::{
    crictl::Crictl,
    image::digest,
    process::{run, until},
};
use nix::pty::{Winsize, openpty};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(20);
const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

fn own() -> serde_json::Value {
    json!({ "pid": 1 })
}

/// A child that is killed if the test fails before its end.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

/// crictl in a terminal of its own.
struct Terminal {
    _child: Ended,
    master: File,
    path: PathBuf,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn new(command: &Command) -> Self {
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = openpty(Some(&size), None).unwrap();
        let path = nix::unistd::ttyname(&pair.slave).unwrap();
        // The terminal is the controlling one of a session of its own, as of a shell's.
        let mut session = Command::new("setsid");
        session
            .args(["--ctty", "--wait"])
            .arg(command.get_program())
            .args(command.get_args());
        let end = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        session
            .stdin(end(&pair.slave))
            .stdout(end(&pair.slave))
            .stderr(end(&pair.slave));
        let child = Ended(session.spawn().unwrap());
        let master = File::from(pair.master);
        let said = Arc::new(Mutex::new(Vec::new()));
        let (mut from, to) = (master.try_clone().unwrap(), Arc::clone(&said));
        // Ends with EIO when crictl has ended.
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut chunk) {
                to.lock().unwrap().extend_from_slice(&chunk[..count]);
            }
        });
        Self {
            _child: child,
            master,
            path,
            said,
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.said.lock().unwrap()).into_owned()
    }

    fn type_line(&mut self, line: &str) {
        self.master
            .write_all(format!("{line}\r").as_bytes())
            .unwrap();
    }

    fn shows(&self, what: &str) {
        assert!(
            until(LIMIT, || self.text().contains(what)),
            "no {what:?} in {:?}",
            self.text()
        );
    }

    fn ends(&mut self) -> i32 {
        let mut status = None;
        assert!(
            until(LIMIT, || {
                status = self._child.0.try_wait().unwrap();
                status.is_some()
            }),
            "crictl does not end: {:?}",
            self.text()
        );
        status.and_then(|status| status.code()).unwrap_or(-1)
    }
}

#[tokio::test]
async fn exec_it_is_a_shell_in_a_terminal() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("terminal", 1);
    let id = crictl.launch(&pod, "terminal", "c", &["sleep", "1000"], own());
    for transport in TRANSPORTS {
        let arguments = ["exec", "-r", transport, "-i", "-t", &id, "sh"];
        let mut terminal = Terminal::new(&crictl.command(&arguments));
        terminal.shows("# ");
        // The first size follows the start.
        let sized = "until [ \"$(stty size 2>/dev/null)\" = '24 80' ]; do sleep 0.1; done";
        terminal.type_line(&format!("tty; {sized}; echo size $(stty size)"));
        terminal.shows("/dev/pts/0");
        terminal.shows("size 24 80");
        // As when the user makes the window larger.
        let _quiet = run(Command::new("stty")
            .arg("-F")
            .arg(&terminal.path)
            .args(["rows", "40", "cols", "120"]))
        .unwrap();
        terminal
            .type_line("until [ \"$(stty size)\" = '40 120' ]; do sleep 0.1; done; echo follows");
        terminal.shows("\nfollows");
        // ^C goes to the command and not to crictl.
        terminal.type_line("sleep 999");
        assert!(until(LIMIT, || !crictl
            .run(&[
                "exec",
                "-s",
                &id,
                "sh",
                "-c",
                "pgrep -f 'sleep 999$' || true"
            ])
            .is_empty()));
        terminal.master.write_all(b"\x03").unwrap();
        terminal.type_line("echo still here; exit 3");
        terminal.shows("\nstill here");
        assert_ne!(
            terminal.ends(),
            0,
            "{transport}: the exit code is no success"
        );
    }
}

#[tokio::test]
async fn exec_passes_streams_and_exit_codes_over_both_transports() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("execs", 1);
    let id = crictl.launch(&pod, "execs", "c", &["sleep", "1000"], own());
    for transport in TRANSPORTS {
        let output = crictl.output(&[
            "exec",
            "-r",
            transport,
            &id,
            "sh",
            "-c",
            "echo out; echo err >&2",
        ]);
        assert!(output.status.success(), "{transport}: {output:?}");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "out\n",
            "{transport}"
        );
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("err\n"),
            "{transport}"
        );
        let refused = crictl.refused(&["exec", "-r", transport, &id, "sh", "-c", "exit 7"]);
        assert!(refused.contains("exit code 7"), "{transport}: {refused}");
        let mut child = crictl.command(&["exec", "-r", transport, "-i", &id, "sha256sum"]);
        let mut child = Ended(
            child
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let bytes = vec![b'x'; 4 << 20];
        child.0.stdin.take().unwrap().write_all(&bytes).unwrap();
        let mut said = String::new();
        child
            .0
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert_eq!(
            format!("sha256:{}", said.split(' ').next().unwrap()),
            digest(&bytes),
            "{transport}"
        );
    }
}

#[tokio::test]
async fn attach_reads_and_writes_a_running_container() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("attached", 1);
    for transport in TRANSPORTS {
        let script = "while read line; do echo got $line; done; echo over";
        let mut request = crictl.container(&format!("c-{transport}"), &["sh", "-c", script], own());
        request["stdin"] = json!(true);
        request["stdin_once"] = json!(true);
        let id = crictl.create(&pod, "attached", &request);
        let _id = crictl.run(&["start", &id]);
        let mut command = crictl.command(&["attach", "-r", transport, "-i", &id]);
        let mut child = Ended(
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        child
            .0
            .stdin
            .take()
            .unwrap()
            .write_all(b"one\ntwo\n")
            .unwrap();
        let mut said = String::new();
        child
            .0
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert_eq!(said, "got one\ngot two\nover\n", "{transport}");
        let log =
            fs::read_to_string(crictl.logs("attached").join(format!("c-{transport}.log"))).unwrap();
        assert!(
            log.contains("stdout F got two"),
            "the log has it too: {log}"
        );
    }
}

#[tokio::test]
async fn port_forward_carries_4_mib_both_ways() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("ports", 1);
    let id = crictl.launch(
        &pod,
        "ports",
        "c",
        &["nc", "-lk", "-p", "7007", "-e", "cat"],
        own(),
    );
    assert!(until(LIMIT, || crictl
        .output(&[
            "exec",
            "-s",
            &id,
            "sh",
            "-c",
            "netstat -ltn | grep -q ':7007 '"
        ])
        .status
        .success()));
    // Every byte differs from its neighbours, so that none can be lost or moved unseen.
    let bytes: Vec<u8> = (0..1_u32 << 20)
        .flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    for transport in TRANSPORTS {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let arguments = [
            "port-forward",
            "-r",
            transport,
            &pod,
            &format!("{port}:7007"),
        ];
        let mut command = crictl.command(&arguments);
        let _forward = Ended(
            command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        let mut connection = None;
        assert!(
            until(LIMIT, || {
                connection = TcpStream::connect(("127.0.0.1", port)).ok();
                connection.is_some()
            }),
            "crictl does not listen"
        );
        let connection = connection.unwrap();
        connection.set_read_timeout(Some(LIMIT)).unwrap();
        let (mut from, mut to, sent) = (connection.try_clone().unwrap(), connection, bytes.clone());
        let writer = thread::spawn(move || {
            to.write_all(&sent).unwrap();
            to.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        from.read_to_end(&mut back).unwrap();
        writer.join().unwrap();
        assert_eq!(
            (back.len(), digest(&back)),
            (bytes.len(), digest(&bytes)),
            "{transport}"
        );
    }
}

#[tokio::test]
async fn logs_f_follows_over_rotations() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("followed", 1);
    let script =
        "i=0; while [ $i -lt 150 ]; do echo line $i; i=$((i+1)); sleep 0.02; done; sleep 1";
    let id = crictl.launch(&pod, "followed", "c", &["sh", "-c", script], own());
    let seen = crictl.daemon.site().dir().join("followed.txt");
    let mut command = crictl.command(&["logs", "-f", &id]);
    let mut follower = Ended(
        command
            .stdout(File::create(&seen).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let log = crictl.logs("followed").join("c.log");
    let lines = || fs::read_to_string(&seen).unwrap().lines().count();
    // As kubelet rotates: the file is renamed, then the runtime is asked to open a new one.
    for rotation in 1..=3_usize {
        assert!(
            until(LIMIT, || lines() >= 30 * rotation),
            "{} lines were followed",
            lines()
        );
        fs::rename(&log, log.with_extension(format!("log.{rotation}"))).unwrap();
        let _said = crictl.run(&["logs", "--reopen", &id]);
        assert!(log.exists(), "a new file is there when the call returns");
    }
    let mut status = None;
    assert!(
        until(LIMIT, || {
            status = follower.0.try_wait().unwrap();
            status.is_some()
        }),
        "crictl does not end with the container"
    );
    let text = fs::read_to_string(&seen).unwrap();
    let wanted: Vec<String> = (0..150).map(|i| format!("line {i}")).collect();
    assert_eq!(text.lines().collect::<Vec<_>>(), wanted);
}
