//! What a program finds.

use std::path::Path;

use crisp_oci::plan::{CapabilitySets, Rlimit, SeccompPlan};
use crisp_sys::pidfd::WaitStatus;

use crate::fixture::{DEFAULT_CAPS, machine, process};

pub fn only_standard_descriptors_are_open() {
    let machine = machine();
    // Descriptors of the maker's that are not close-on-exec must not get through either.
    let leak = std::fs::File::open("/etc").expect("open");
    crisp_sys::fd::set_cloexec(std::os::fd::AsFd::as_fd(&leak), false).expect("fcntl");
    // ls has the directory itself open as 3.
    assert_eq!(machine.output("exec ls /proc/self/fd"), "0\n1\n2\n3\n");
    let running = machine.start(&machine.plan("sleep 1000"));
    let exec = process(&["ls", "/proc/self/fd", "/proc/1/fd"]);
    let text = machine.exec(&running, &exec).text;
    assert_eq!(text, "/proc/1/fd:\n0\n1\n2\n\n/proc/self/fd:\n0\n1\n2\n3\n");
}

fn status_field(text: &str, name: &str) -> String {
    let line = text
        .lines()
        .find(|line| line.starts_with(name))
        .expect(name);
    line[name.len()..].trim().to_owned()
}

pub fn capabilities_are_exactly_those_planned() {
    let machine = machine();
    let set = |text: &str, name| u64::from_str_radix(&status_field(text, name), 16).expect("hex");
    let text = machine.output("cat /proc/self/status");
    for name in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(set(&text, name), DEFAULT_CAPS, "{name}");
    }
    assert_eq!((set(&text, "CapInh:"), set(&text, "CapAmb:")), (0, 0));
    let mut plan = machine.plan("cat /proc/self/status");
    plan.process.uid = 1000;
    let bit = 1 << 10;
    plan.process.capabilities = CapabilitySets {
        bounding: bit,
        effective: bit,
        permitted: bit,
        inheritable: bit,
        ambient: bit,
    };
    let text = machine.run(&plan).text;
    for name in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(set(&text, name), bit, "{name}");
    }
    plan.process.capabilities = CapabilitySets::default();
    let text = machine.run(&plan).text;
    for name in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(set(&text, name), 0, "{name}");
    }
}

pub fn no_new_privileges_is_set_or_not() {
    let machine = machine();
    let mut plan = machine.plan("cat /proc/self/status");
    assert_eq!(status_field(&machine.run(&plan).text, "NoNewPrivs:"), "1");
    plan.process.no_new_privileges = false;
    assert_eq!(status_field(&machine.run(&plan).text, "NoNewPrivs:"), "0");
}

pub fn users_and_groups() {
    let machine = machine();
    let mut plan = machine.plan("id; umask; echo x > /tmp/f; stat -c '%u %g %a' /tmp/f");
    plan.process.uid = 1001;
    plan.process.gid = 1002;
    plan.process.additional_gids = vec![7, 9];
    plan.process.umask = Some(0o077);
    let text = machine.run(&plan).text;
    assert_eq!(
        text,
        "uid=1001 gid=1002 groups=7,9,1002\n0077\n1001 1002 600\n".replace("7,9,1002", "7,9")
    );
}

pub fn streams_can_be_opened_again_by_the_user() {
    let machine = machine();
    let mut plan = machine.plan("echo again > /dev/stdout; echo $?");
    plan.process.uid = 1000;
    assert_eq!(machine.run(&plan).text, "again\n0\n");
}

pub fn limits_are_set_or_clamped() {
    const RLIMIT_NOFILE: u32 = 7;
    let machine = machine();
    let mut plan = machine.plan("ulimit -Sn; ulimit -Hn");
    let limit = |soft, hard| {
        vec![Rlimit {
            resource: RLIMIT_NOFILE,
            soft,
            hard,
        }]
    };
    plan.process.rlimits = limit(100, 200);
    assert_eq!(machine.run(&plan).text, "100\n200\n");
    let (_, ceiling) = crisp_sys::process::getrlimit(RLIMIT_NOFILE).expect("limit");
    plan.process.rlimits = limit(64, ceiling + 1);
    let text = machine.run(&plan).text;
    let hard: u64 = text
        .lines()
        .nth(1)
        .expect("two lines")
        .parse()
        .expect("number");
    assert!(hard == ceiling || hard == ceiling + 1, "{text}");
}

pub fn a_filter_is_in_force() {
    // mkdir and mkdirat fail with EPERM, all else is allowed.
    const MKDIR: u32 = 83;
    const MKDIRAT: u32 = 258;
    let instruction = |code: u16, yes: u8, no: u8, value: u32| {
        let mut bytes = code.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&[yes, no]);
        bytes.extend_from_slice(&value.to_ne_bytes());
        bytes
    };
    let program: Vec<u8> = [
        instruction(0x20, 0, 0, 0),
        instruction(0x15, 1, 0, MKDIR),
        instruction(0x15, 0, 1, MKDIRAT),
        instruction(0x06, 0, 0, 0x0005_0001),
        instruction(0x06, 0, 0, 0x7fff_0000),
    ]
    .concat();
    let machine = machine();
    for no_new_privileges in [true, false] {
        let mut plan = machine.plan("busybox mkdir /tmp/d; cat /proc/self/status");
        plan.process.no_new_privileges = no_new_privileges;
        plan.process.seccomp = Some(SeccompPlan {
            program: program.clone(),
            flags: 0,
        });
        let text = machine.run(&plan).text;
        assert!(text.contains("Operation not permitted"), "{text}");
        assert_eq!(status_field(&text, "Seccomp:"), "2");
        assert_eq!(status_field(&text, "Seccomp_filters:"), "1");
    }
    let mut plan = machine.plan("true");
    plan.process.seccomp = Some(SeccompPlan {
        program: vec![0; 7],
        flags: 0,
    });
    let ended = machine.run(&plan);
    assert!(
        ended
            .started
            .unwrap_err()
            .to_string()
            .starts_with("seccomp: ")
    );
}

pub fn masked_paths_are_hidden() {
    let machine = machine();
    std::fs::write(machine.root().join("etc/secret"), "x").expect("write");
    std::fs::create_dir(machine.root().join("etc/secrets")).expect("mkdir");
    std::fs::write(machine.root().join("etc/secrets/key"), "x").expect("write");
    let mut plan = machine.plan(
        "cat /etc/secret; ls /etc/secrets; stat -c '%F %t:%T' /etc/secret /proc/keys; \
         touch /etc/secrets/x; echo x > /etc/secret; cat /etc/secret; \
         cat /proc/timer_list; mount -o remount,rw /etc/secrets; ls /sys/firmware",
    );
    for path in ["/etc/secret", "/etc/secrets", "/etc/nosuch"] {
        plan.steps
            .push(crisp_oci::plan::Step::Mask { path: path.into() });
    }
    let text = machine.run(&plan).text;
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[..2],
        ["character special file 1:3", "character special file 1:3"],
        "{text}"
    );
    assert!(lines[2].contains("Read-only file system"), "{text}");
    assert!(
        lines[3..].iter().all(|line| line.contains("mount:")),
        "{text}"
    );
}

pub fn read_only_paths_stay_read_only() {
    let machine = machine();
    let text = machine.output(
        "echo 1 > /proc/sys/vm/swappiness; mount -o remount,rw /proc/sys; \
         echo 1 > /proc/sys/vm/swappiness",
    );
    let refused = |what: &str| text.matches(what).count();
    assert_eq!(refused("Read-only file system"), 2, "{text}");
    assert_eq!(refused("mount:"), 1, "{text}");
}

pub fn a_read_only_root() {
    let machine = machine();
    let mut plan = machine.plan("echo x > /tmp/f; echo x > /dev/f && echo written");
    plan.rootfs_readonly = true;
    let text = machine.run(&plan).text;
    assert!(
        text.contains("can't create /tmp/f: Read-only file system"),
        "{text}"
    );
    assert!(text.ends_with("written\n"), "{text}");
}

pub fn devices_are_denied_by_default() {
    let machine = machine();
    let text = machine.output(
        "mknod /tmp/tun c 10 200; cat < /tmp/tun; mknod /tmp/null c 1 3; \
         echo fine > /tmp/null && busybox head -c 1 /dev/zero | busybox wc -c",
    );
    assert!(
        text.contains("open /tmp/tun: Operation not permitted"),
        "{text}"
    );
    assert!(text.ends_with("1\n"), "{text}");
}

pub fn its_own_cgroup_namespace() {
    let machine = machine();
    let text = machine.output("cat /proc/self/cgroup");
    let known = |line: &&str| !line.contains("name=");
    let ours = text.lines().filter(known).collect::<Vec<_>>();
    assert!(
        !ours.is_empty() && ours.iter().all(|line| line.ends_with(":/")),
        "{text}"
    );
}

pub fn kernel_parameters_are_the_namespaces_own() {
    let machine = machine();
    let host = || std::fs::read_to_string("/proc/sys/kernel/msgmax").expect("read");
    let before = host();
    let mut plan =
        machine.plan("cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_unprivileged_port_start");
    plan.sysctls = vec![
        ("kernel/msgmax".into(), "12345".into()),
        ("net/ipv4/ip_unprivileged_port_start".into(), "80".into()),
    ];
    assert_eq!(machine.run(&plan).text, "12345\n80\n");
    assert_eq!(host(), before);
}

pub fn oom_score_is_raised() {
    let machine = machine();
    let own: i32 = std::fs::read_to_string("/proc/self/oom_score_adj")
        .expect("read")
        .trim()
        .parse()
        .expect("n");
    let mut plan = machine.plan("cat /proc/self/oom_score_adj");
    plan.process.oom_score_adj = Some(777);
    assert_eq!(machine.run(&plan).text, "777\n");
    // Lowering needs a privilege that not every host gives; then it stays ours.
    plan.process.oom_score_adj = Some(-997);
    let got: i32 = machine.run(&plan).text.trim().parse().expect("number");
    assert!(got == -997 || got == own, "{got}");
}

pub fn signals_are_as_a_program_expects() {
    let machine = machine();
    crisp_sys::process::set_signal_mask(u64::MAX).expect("mask");
    let mut plan = machine.plan("");
    plan.process.args = vec![b"cat".to_vec(), b"/proc/self/status".to_vec()];
    let text = machine.run(&plan).text;
    crisp_sys::process::set_signal_mask(0).expect("mask");
    assert_eq!(status_field(&text, "SigBlk:"), "0000000000000000");
    assert_eq!(status_field(&text, "SigIgn:"), "0000000000000000");
}

pub fn the_working_directory_is_made() {
    let machine = machine();
    let mut plan = machine.plan("busybox pwd");
    plan.process.cwd = "/srv/app".into();
    assert_eq!(machine.run(&plan).text, "/srv/app\n");
    std::fs::create_dir_all(machine.root().join("private/dir")).expect("mkdir");
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(machine.root().join("private"), closed).expect("chmod");
    // Root may enter it for a user who may not: as engines do.
    plan.process.cwd = "/private/dir".into();
    plan.process.uid = 1000;
    assert_eq!(machine.run(&plan).text, "/private/dir\n");
}

pub fn the_maker_is_not_traceable() {
    let machine = machine();
    let (created, _output) = machine.create(&machine.plan("true")).expect("create");
    // Files of a process that is not dumpable belong to root, whatever its user is.
    let maps = format!("/proc/{}/environ", created.pid);
    assert!(Path::new(&maps).exists());
    let mut plan = machine.plan("true");
    plan.process.uid = 1000;
    let second = crate::fixture::machine();
    let mut other = second.plan("true");
    other.process.uid = 1000;
    let (waiting, _keep) = second.create(&other).expect("create");
    let owner = std::fs::metadata(format!("/proc/{}/environ", waiting.pid)).expect("stat");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&owner), 0);
    for created in [created, waiting] {
        drop(created.gate);
        let ended = crisp_sys::pidfd::wait(std::os::fd::AsFd::as_fd(&created.pidfd));
        assert_eq!(ended.expect("wait"), WaitStatus::Exited(1));
        crate::fixture::remove(&created.cgroup);
    }
}
