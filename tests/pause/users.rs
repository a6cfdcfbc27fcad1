//! Pauses with a user namespace: it owns the others, and who holds it can do nothing.

use crisp_pause::MAPPED;

use super::*;

const FIRST: u32 = 100_000;

impl Started {
    /// Has it make a user namespace of so many ids, and what else is asked for.
    fn hold_users(&mut self, request: &Request, length: u32) -> Held {
        self.send(&request.encode());
        let (reply, fds) = self.answer().expect("an answer");
        assert_eq!((reply, fds.len()), (Reply::Unmapped, 0));
        for file in ["uid_map", "gid_map"] {
            let path = format!("/proc/{}/{file}", self.child.id());
            fs::write(path, format!("0 {FIRST} {length}")).unwrap();
        }
        self.send(MAPPED);
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
}

fn with_users(pid: bool) -> Request {
    Request {
        user: true,
        pid,
        sysctls: vec![
            ("net/ipv4/ip_unprivileged_port_start".into(), "81".into()),
            ("kernel/shmmni".into(), "77".into()),
        ],
        ..pod()
    }
}

/// What a command prints in the namespaces of the holder, the user namespace among them, as its root.
fn as_root_of(pid: i32, command: &[&str]) -> String {
    let mut all = vec!["-t".to_owned(), pid.to_string()];
    all.extend(["-U", "-n", "-i", "-u", "-S", "0", "-G", "0"].map(str::to_owned));
    all.extend(command.iter().map(|&word| word.to_owned()));
    let output = Command::new("nsenter").args(&all).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_user_namespace_owns_the_others_and_its_holder_is_nobody_in_it() {
    for shared in [false, true] {
        let mut pause = Started::new();
        let held = pause.hold_users(&with_users(shared), 65_536);
        assert!(held.network.is_some());
        for kind in ["user", "net", "ipc", "uts"] {
            assert!(differs(held.pid, kind), "{kind}");
        }
        assert_eq!(differs(held.pid, "pid"), shared);
        let nobody = (FIRST + 65_534).to_string();
        assert_eq!(status(held.pid, "Uid"), [nobody.as_str(); 4].join("\t"));
        assert_eq!(status(held.pid, "Groups"), "");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status(held.pid, set), "0000000000000000", "{set}");
        }
        assert_eq!(status(held.pid, "NoNewPrivs"), "1");
        // Not dumpable: its files belong to the host's root.
        let environ = fs::metadata(format!("/proc/{}/environ", held.pid)).unwrap();
        assert_eq!(environ.uid(), 0);
        // Only who owns the others may do this.
        let configured = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmni; \
                          ip link set lo down && ip link set lo up && hostname there && hostname";
        let text = as_root_of(held.pid, &["sh", "-c", configured]);
        assert_eq!(text, "81\n77\nthere");
    }
}

#[test]
fn a_namespace_without_nobody_is_held_all_the_same() {
    let mut pause = Started::new();
    let held = pause.hold_users(&with_users(true), 1);
    assert_eq!(
        status(held.pid, "Uid"),
        [FIRST.to_string().as_str(); 4].join("\t")
    );
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(status(held.pid, set), "0000000000000000", "{set}");
    }
}

#[test]
fn without_maps_there_is_no_pod() {
    let mut pause = Started::new();
    pause.send(&with_users(false).encode());
    assert_eq!(pause.answer().expect("an answer").0, Reply::Unmapped);
    // The daemon says yes, but nobody is root in there.
    pause.send(MAPPED);
    match pause.answer().expect("an answer").0 {
        Reply::Failed { stage, .. } => assert!(stage.contains("root of the user namespace")),
        other => panic!("{other:?}"),
    }
    assert!(!pause.child.wait().unwrap().success());
    // A daemon that dies meanwhile takes its pause along.
    let mut pause = Started::new();
    pause.send(&with_users(false).encode());
    assert_eq!(pause.answer().expect("an answer").0, Reply::Unmapped);
    let (_, nobody) = socket::seqpacket_pair().unwrap();
    pause.control = nobody;
    assert!(!pause.child.wait().unwrap().success());
}
