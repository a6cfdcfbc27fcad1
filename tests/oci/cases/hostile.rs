//! Images and plans that try to reach outside.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use crisp_oci::apply::{CreateError, Stage};
use crisp_oci::plan::{SeccompPlan, Step};
use crisp_sys::Errno;

use crate::fixture::{Machine, bind, machine, process};

fn refused(machine: &Machine, plan: &crisp_oci::plan::Plan) -> (Stage, Errno, String) {
    match machine
        .create(plan)
        .map(|_| ())
        .expect_err("must be refused")
    {
        CreateError::Child(failure) => (failure.stage, failure.errno, failure.message),
        other => panic!("{other:?}"),
    }
}

pub fn a_working_directory_through_a_descriptor_is_refused() {
    let machine = machine();
    let _host = fs::File::open("/etc").expect("open");
    for number in 3..40 {
        let mut plan = machine.plan("true");
        plan.process.cwd = format!("/proc/self/fd/{number}");
        let (stage, _, message) = refused(&machine, &plan);
        assert_eq!(stage, Stage::Cwd, "{message}");
    }
    let running = machine.start(&machine.plan("sleep 1000"));
    for number in 3..40 {
        let mut process = process(&["true"]);
        process.cwd = format!("/proc/self/fd/{number}");
        let (_output, io) = crate::fixture::pipes();
        let request = crisp_oci::apply::ExecRequest {
            process: &process,
            io,
        };
        let error = crisp_oci::apply::exec(
            &machine.token,
            running.pidfd.as_fd(),
            &running.joined,
            &running.cgroup,
            request,
        )
        .expect_err("must be refused");
        assert_eq!(error.stage(), Stage::Cwd, "{error}");
    }
}

/// A directory next to the root that must stay as it is.
fn canary(machine: &Machine) -> std::path::PathBuf {
    let canary = machine.dir.path().join("canary");
    fs::create_dir(&canary).expect("mkdir");
    fs::write(canary.join("file"), "untouched").expect("write");
    canary
}

fn assert_untouched(canary: &Path) {
    assert_eq!(
        fs::read_to_string(canary.join("file")).expect("read"),
        "untouched"
    );
    assert_eq!(fs::read_dir(canary).expect("readdir").count(), 1);
}

pub fn links_in_the_image_stay_inside() {
    for target in ["abs", "../../canary", "../../../../../../../.."] {
        let machine = machine();
        let canary = canary(&machine);
        let target = if target == "abs" {
            canary.clone()
        } else {
            Path::new(target).to_path_buf()
        };
        for name in ["dev", "etc"] {
            fs::remove_dir(machine.root().join(name)).expect("rmdir");
            symlink(&target, machine.root().join(name)).expect("symlink");
        }
        let hosts = machine.dir.path().join("hosts");
        fs::write(&hosts, "127.0.0.1 localhost").expect("write");
        let mut plan = machine.plan("echo x > /etc/new; cat /etc/hosts; ls -d /dev/null");
        plan.steps.push(Step::Bind(bind(&hosts, "/etc/hosts")));
        plan.steps.push(Step::Mkdir {
            path: "/etc/made/deep".into(),
            mode: 0o755,
        });
        // Either it fails or it stays inside; both are fine, the host must not change.
        if let Ok((created, _output)) = machine.create(&plan) {
            let _ = created.gate.open();
            let _ = crisp_sys::pidfd::wait(created.pidfd.as_fd());
            crate::fixture::remove(&created.cgroup);
        }
        assert_untouched(&canary);
        assert!(!Path::new("/made").exists() && !Path::new("/etc/made").exists());
    }
}

pub fn proc_that_is_a_link_is_refused() {
    for name in ["proc", "sys"] {
        let machine = machine();
        fs::remove_dir(machine.root().join(name)).expect("rmdir");
        symlink("/tmp", machine.root().join(name)).expect("symlink");
        let (stage, errno, message) = refused(&machine, &machine.plan("true"));
        assert_eq!((stage, errno), (Stage::Mount, Errno::ELOOP), "{message}");
        assert!(machine.groups_left().is_empty());
    }
}

pub fn volumes_over_proc_are_refused() {
    let machine = machine();
    let volume = machine.dir.path().join("volume");
    fs::create_dir(&volume).expect("mkdir");
    fs::write(volume.join("f"), "").expect("write");
    symlink("/proc/self", machine.root().join("alias")).expect("symlink");
    for (source, target) in [
        ("", "/proc"),
        ("", "/proc/self"),
        ("", "/proc/1/attr"),
        ("", "/alias"),
        ("f", "/proc/self/attr/exec"),
        ("f", "/proc/sysrq-trigger"),
    ] {
        let mut plan = machine.plan("true");
        plan.steps
            .push(Step::Bind(bind(&volume.join(source), target)));
        let (stage, _, message) = refused(&machine, &plan);
        assert_eq!(stage, Stage::Mount, "{target}: {message}");
    }
    let mut plan = machine.plan("cat /proc/cpuinfo; ls /host/1/status");
    fs::write(volume.join("f"), "fake\n").expect("write");
    plan.steps
        .push(Step::Bind(bind(&volume.join("f"), "/proc/cpuinfo")));
    plan.steps
        .push(Step::Bind(bind(Path::new("/proc"), "/host")));
    assert_eq!(machine.run(&plan).text, "fake\n/host/1/status\n");
}

pub fn a_null_that_is_no_null_is_refused() {
    let machine = machine();
    let canary = canary(&machine);
    fs::write(machine.root().join("dev/null"), "mine").expect("write");
    let mut plan = machine.plan("true");
    // Without a fresh /dev the image's own is what the device step finds.
    plan.steps
        .retain(|step| !matches!(step, Step::Filesystem(fs) if fs.fstype == "tmpfs"));
    let (stage, errno, _) = refused(&machine, &plan);
    assert_eq!((stage, errno), (Stage::Device, Errno::EEXIST));
    fs::remove_file(machine.root().join("dev/null")).expect("rm");
    symlink(canary.join("file"), machine.root().join("dev/null")).expect("symlink");
    assert_eq!(refused(&machine, &plan).1, Errno::EEXIST);
    assert_untouched(&canary);
}

pub fn setuid_programs_gain_nothing() {
    let machine = machine();
    fs::create_dir(machine.root().join("suid")).expect("mkdir");
    let program = machine.root().join("suid/busybox");
    fs::copy("/bin/busybox", &program).expect("copy");
    fs::set_permissions(
        &program,
        std::os::unix::fs::PermissionsExt::from_mode(0o4755),
    )
    .expect("chmod");
    let mut plan = machine.plan("/suid/busybox id -u; /suid/busybox cat /proc/self/status");
    plan.process.uid = 1000;
    plan.process.seccomp = None::<SeccompPlan>;
    let text = machine.run(&plan).text;
    assert!(text.starts_with("1000\n"), "{text}");
    assert!(text.contains("CapEff:\t0000000000000000"), "{text}");
}

/// A program in another container swaps a directory of a shared volume with a link to the host
/// while containers that mount below it are made.
pub fn a_volume_that_changes_under_the_mount_stays_inside() {
    const RENAME_EXCHANGE: u32 = 2;
    let machine = machine();
    let canary = canary(&machine);
    let volume = machine.dir.path().join("volume");
    fs::create_dir_all(volume.join("dir")).expect("mkdir");
    symlink(&canary, volume.join("link")).expect("symlink");
    fs::write(machine.dir.path().join("source"), "x").expect("write");
    let swapper = crisp_sys::clone::clone3(&machine.token, &Default::default(), |_| {
        let dir = fs::File::open(&volume).expect("open");
        loop {
            let (dir, flags) = (dir.as_fd(), RENAME_EXCHANGE);
            if crisp_sys::path::renameat2(dir, "dir", dir, "link", flags).is_err() {
                return 1;
            }
        }
    })
    .expect("clone");
    let mut plan = machine.plan("true");
    plan.steps.push(Step::Bind(bind(&volume, "/v")));
    plan.steps.push(Step::Bind(bind(
        &machine.dir.path().join("source"),
        "/v/dir/deep/new",
    )));
    plan.steps.push(Step::Bind(bind(
        &machine.dir.path().join("source"),
        "/v/dir/file",
    )));
    plan.steps.push(Step::Mkdir {
        path: "/v/dir/made".into(),
        mode: 0o755,
    });
    let mut made = 0;
    for _ in 0..200 {
        if let Ok((created, _output)) = machine.create(&plan) {
            drop(created.gate);
            crisp_sys::pidfd::wait(created.pidfd.as_fd()).expect("wait");
            crate::fixture::remove(&created.cgroup);
            made += 1;
        }
        assert_untouched(&canary);
    }
    crisp_sys::pidfd::send_signal(swapper.pidfd.as_fd(), 9).expect("kill");
    crisp_sys::pidfd::wait(swapper.pidfd.as_fd()).expect("wait");
    assert!(made > 0, "no container was ever made");
    assert!(machine.groups_left().is_empty());
}

pub fn a_waiting_init_holds_nothing_of_the_hosts() {
    let machine = machine();
    let _leak = fs::File::open("/etc").expect("open");
    let (created, _output) = machine.create(&machine.plan("true")).expect("create");
    let mut links: Vec<(u32, String)> = fs::read_dir(format!("/proc/{}/fd", created.pid))
        .expect("readdir")
        .flatten()
        .map(|entry| {
            let number = entry.file_name().to_string_lossy().parse().expect("number");
            let link = fs::read_link(entry.path()).expect("readlink");
            (number, link.display().to_string())
        })
        .collect();
    links.sort();
    let kinds: Vec<&str> = links
        .iter()
        .map(|(_, link)| link.split(':').next().expect("one word"))
        .collect();
    // The three streams, and the channel on which it waits.
    assert_eq!(kinds, ["/dev/null", "pipe", "pipe", "socket"], "{links:?}");
    for place in ["cwd", "root"] {
        let at = fs::metadata(format!("/proc/{}/{place}/", created.pid)).expect("stat");
        let host = fs::metadata("/").expect("stat");
        let id = |at: &fs::Metadata| {
            use std::os::unix::fs::MetadataExt;
            (at.dev(), at.ino())
        };
        assert_ne!(id(&at), id(&host), "{place} is the host's");
    }
    drop(created.gate);
    crisp_sys::pidfd::wait(created.pidfd.as_fd()).expect("wait");
    crate::fixture::remove(&created.cgroup);
}

pub fn a_waiting_init_cannot_be_looked_into_by_its_pod() {
    use crisp_oci::plan::{FdIndex, NamespaceHow, NamespaceKind};
    let pod = machine();
    let running = pod.start(&pod.plan("sleep 1000"));
    let other = machine();
    let mut plan = other.plan("true");
    for entry in &mut plan.namespaces {
        if entry.kind == NamespaceKind::Pid {
            entry.how = NamespaceHow::JoinPidfd(FdIndex(1));
        }
    }
    let (_output, io) = crate::fixture::pipes();
    let fds = [
        other.overlay(),
        crisp_sys::fd::dup(running.pidfd.as_fd()).expect("dup"),
    ];
    let waiting = other.create_with(&plan, &fds, io).expect("create");
    // It still is a copy of whoever made it; root beside it in the PID namespace must not reach that.
    let script = "ls /proc/2/root/ 2>&1; busybox readlink /proc/2/exe || echo closed; \
                  echo x 2>&1 > /proc/2/exe; cat /proc/2/environ 2>&1; \
                  for fd in /proc/2/fd/*; do busybox readlink $fd && echo open; done; true";
    let text = pod.exec(&running, &process(&["sh", "-c", script])).text;
    assert!(
        text.contains("closed") && !text.contains("open\n"),
        "{text}"
    );
    let refused = text.matches("Permission denied").count();
    assert_eq!(refused, 3, "{text}");
    drop(waiting.gate);
    crisp_sys::pidfd::wait(waiting.pidfd.as_fd()).expect("wait");
    crate::fixture::remove(&waiting.cgroup);
}

pub fn an_update_keeps_the_device_policy() {
    let machine = machine();
    let running = machine.start(&machine.plan("mknod /tmp/tun c 10 200; sleep 1000"));
    let limits = crisp_oci::cgroup::Resources {
        memory_limit: Some(64 << 20),
        ..crisp_oci::cgroup::Resources::default()
    };
    let _standing = running.cgroup.update(&limits).expect("update");
    crate::fixture::eventually("the node is there", || {
        machine.dir.path().join("upper/tmp/tun").exists()
    });
    let script = "cat < /tmp/tun; busybox head -c 1 /dev/zero | busybox wc -c";
    let text = machine.exec(&running, &process(&["sh", "-c", script])).text;
    assert!(text.contains("Operation not permitted"), "{text}");
    assert!(text.ends_with("1\n"), "{text}");
}

pub fn the_hosts_root_can_be_a_volume() {
    let machine = machine();
    let mut plan = machine
        .plan("ls -d /host/etc /host/proc/1; ls /host/proc/self/fd > /dev/null && echo alive");
    let mut step = bind(Path::new("/"), "/host");
    step.attr_set = crisp_sys::mount::MOUNT_ATTR_RDONLY;
    plan.steps.push(Step::Bind(step));
    let text = machine.run(&plan).text;
    assert!(text.starts_with("/host/etc\n/host/proc/1\n"), "{text}");
}
