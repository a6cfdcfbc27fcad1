//! Containers that mean harm, seen from the socket: they end when they are told to, and the host is
//! none the worse.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crisp_harness::{
    audit::{Snapshot, settled},
    cri::v1::{Capability, ContainerState, Mount, SecurityProfile, security_profile::ProfileType},
    process::until,
};
use tonic::Code;

use crate::{
    Host,
    users::{container_context, context},
};

const SOON: Duration = Duration::from_secs(20);

fn command(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Whether a line stands in the log of a container.
fn printed(host: &Host, pod: &str, name: &str, words: &str) -> bool {
    let log = host.pods.log_directory(pod).join(format!("{name}.log"));
    fs::read_to_string(log).is_ok_and(|text| text.contains(words))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_ignores_signals_or_leaves_children_with_the_output_is_ended() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("deaf");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let deaf = "trap '' TERM INT HUP QUIT USR1; echo ready; while :; do sleep 1000; done";
    let id = host
        .pods
        .launch(&pod, &host.script("deaf", deaf), &sandbox)
        .await
        .unwrap();
    assert!(until(SOON, || printed(&host, "deaf", "deaf", "ready")));
    let began = Instant::now();
    host.pods.stop(&id, 1).await.unwrap();
    let (took, status) = (began.elapsed(), host.pods.status(&id).await.unwrap());
    println!(
        "P8 a container that ignores signals, one second of grace: code {} after {took:?}",
        status.exit_code
    );
    assert!(took >= Duration::from_secs(1) && took < SOON, "{took:?}");
    assert_eq!(status.exit_code, 137);
    // Its init ends, what it started holds the output and is deaf, in a session of its own. With the
    // PID namespace of its own the kernel ends it; in the pod's, the monitor does.
    for (name, pid) in [("own", 1), ("shared", 0)] {
        let mut config = host.script(
            name,
            "(trap '' TERM HUP; setsid sh -c 'while :; do echo on; sleep 1; done' & ) ; exec >&- 2>&-; exit 5",
        );
        let asked = container_context(&mut config);
        asked.namespace_options.as_mut().unwrap().pid = pid;
        let began = Instant::now();
        let id = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
        let status = host.pods.exited(&id, SOON).await.unwrap();
        println!(
            "P4 an init that leaves a child with the output, PID namespace {name}: code {} after {:?}",
            status.exit_code,
            began.elapsed()
        );
        assert_eq!(status.exit_code, 5);
    }
    host.pods.remove_all().await.unwrap();
}

/// A file system in a file, frozen on demand; thawed, unmounted and gone with this.
struct Freezer(PathBuf);

impl Freezer {
    fn new(dir: &Path) -> Self {
        let (file, mount) = (dir.join("disk"), dir.join("frozen"));
        fs::create_dir(&mount).unwrap();
        fs::File::create(&file).unwrap().set_len(16 << 20).unwrap();
        let name = file.display().to_string();
        command("mkfs.ext4", &["-q", &name]);
        // The device goes with the mount.
        command(
            "mount",
            &["-o", "loop", &name, &mount.display().to_string()],
        );
        Self(mount)
    }

    fn freeze(&self) {
        command("fsfreeze", &["-f", &self.0.display().to_string()]);
    }

    fn thaw(&self) {
        command("fsfreeze", &["-u", &self.0.display().to_string()]);
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let run = |program: &str, arguments: &[&str]| {
            Command::new(program).args(arguments).output().ok();
        };
        let mount = self.0.display().to_string();
        run("fsfreeze", &["-u", &mount]);
        run("umount", &["-l", &mount]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_not_even_sigkill_ends_holds_up_its_own_container_only() {
    let host = Host::new().await;
    let freezer = Freezer::new(host.daemon.site().dir());
    let sandbox = host.pods.sandbox("stuck");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let mut config = host.script(
        "c",
        "while [ ! -e /tmp/go ]; do usleep 10000; done; echo x > /v/file",
    );
    config.mounts.push(Mount {
        container_path: "/v".into(),
        host_path: freezer.0.display().to_string(),
        ..Mount::default()
    });
    let id = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
    let pid = host.pods.pid(&id).await.unwrap();
    let (_pod, neighbour) = host.running("neighbour", &["sleep", "1000"]).await;
    freezer.freeze();
    fs::write(format!("/proc/{pid}/root/tmp/go"), "").unwrap();
    let state = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .map_or('?', |(_, rest)| rest.chars().next().unwrap())
    };
    let stuck = until(SOON, || state() == 'D');
    let mut runtime = host.pods.cri.runtime.clone();
    let mut request = tonic::Request::new(crisp_harness::cri::v1::StopContainerRequest {
        container_id: id.clone(),
        timeout: 0,
    });
    request.set_timeout(Duration::from_secs(2));
    let answer = runtime.stop_container(request).await;
    let meanwhile = host.pods.exec(&neighbour, &["echo", "fine"]).await;
    let running = host.pods.status(&id).await.unwrap().state();
    freezer.thaw();
    assert!(stuck, "its process is {:?}", state());
    let code = answer.map_err(|status| status.code()).map(drop);
    // The client's own timer may be the first.
    assert!(
        matches!(code, Err(Code::DeadlineExceeded | Code::Cancelled)),
        "{code:?}"
    );
    assert_eq!(
        running,
        ContainerState::ContainerRunning,
        "it has not ended"
    );
    assert_eq!(meanwhile.unwrap().stdout, b"fine\n");
    let status = host.pods.exited(&id, SOON).await.unwrap();
    host.pods.stop(&id, 0).await.unwrap();
    println!(
        "P8 a process in state D: the stop says {code:?}, the neighbour is served; once the disk \
         answers it ends with {}",
        status.exit_code
    );
    assert_eq!(status.exit_code, 137);
    host.pods.remove_all().await.unwrap();
}

/// Directories of the trees of control groups on the host.
fn trees() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let fields = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    fields
        .filter(|fields| fields[2].starts_with("cgroup"))
        .map(|fields| PathBuf::from(fields[1]))
        .collect()
}

/// Where a process is in each of them.
fn groups_of(pid: u32) -> Vec<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let paths: Vec<&str> = text
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .collect();
    let all = trees();
    let mut found = Vec::new();
    for tree in all {
        for path in &paths {
            let group = tree.join(path.trim_start_matches('/'));
            let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            if procs.lines().any(|line| line == pid.to_string()) && !found.contains(&group) {
                found.push(group);
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_freezes_itself_or_leaves_its_groups_is_ended() {
    let host = Host::new().await;
    let mut sandbox = host.pods.sandbox("groups");
    context(&mut sandbox).privileged = true;
    let pod = host.pods.run(&sandbox).await.unwrap();
    let before = Snapshot::take(&host.daemon);
    // It is told where it is, since it sees its own groups as the root.
    let wait = "while [ ! -e /tmp/where ]; do usleep 10000; done; ";
    let cases = [
        (
            "freezes",
            "while read g; do echo FROZEN > /host$g/freezer.state; echo 1 > /host$g/cgroup.freeze; done 2>/dev/null < /tmp/where; while :; do usleep 10000; done",
        ),
        (
            "leaves",
            "while read g; do echo 0 > /host$(echo $g | sed 's,^\\(/sys/fs/cgroup/[^/]*\\).*,\\1,')/cgroup.procs; done 2>/dev/null < /tmp/where; sleep 1000 & echo moved; while :; do sleep 1000; done",
        ),
    ];
    for (name, script) in cases {
        let mut config = host.script(name, &format!("{wait}{script}"));
        container_context(&mut config).privileged = true;
        config.mounts.push(Mount {
            container_path: "/host/sys/fs/cgroup".into(),
            host_path: "/sys/fs/cgroup".into(),
            ..Mount::default()
        });
        let id = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
        let pid = host.pods.pid(&id).await.unwrap();
        let groups = groups_of(pid);
        assert!(!groups.is_empty());
        let lines: String = groups
            .iter()
            .map(|group| format!("{}\n", group.display()))
            .collect();
        let root = format!("/proc/{pid}/root/tmp");
        fs::write(format!("{root}/where.new"), lines).unwrap();
        fs::rename(format!("{root}/where.new"), format!("{root}/where")).unwrap();
        let frozen = || {
            groups.iter().any(|group| {
                let read = |file: &str| fs::read_to_string(group.join(file)).unwrap_or_default();
                read("freezer.state").starts_with("FROZEN")
                    || read("cgroup.events").contains("frozen 1")
            })
        };
        let done = || match name {
            "freezes" => frozen(),
            _ => printed(&host, "groups", name, "moved"),
        };
        assert!(until(SOON, done), "{name}: {:?}", groups_of(pid));
        let began = Instant::now();
        host.pods.stop(&id, 1).await.unwrap();
        let status = host.pods.status(&id).await.unwrap();
        println!(
            "P10 a container that {name}: ended with {} after {:?}",
            status.exit_code,
            began.elapsed()
        );
        assert_eq!(status.exit_code, 137, "{name}");
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{name}");
        host.pods.remove(&id).await.unwrap();
    }
    let left = settled(&host.daemon, &before, Duration::from_secs(10)).await;
    assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    host.pods.remove_all().await.unwrap();
}

/// A file system of a daemon's own, gone with this.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path, options: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let place = at.display().to_string();
        command("mount", &["-t", "tmpfs", "-o", options, "tmpfs", &place]);
        Self(at.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).output().ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_a_container_fills_is_emptied_by_its_removal() {
    for (what, options, fill) in [
        (
            "bytes",
            "size=48m",
            "dd if=/dev/zero of=/fill bs=64k 2>&1; dd if=/dev/zero of=/rest bs=1 2>/dev/null; echo full",
        ),
        (
            "files",
            "size=256m,nr_inodes=6000",
            "mkdir /d; i=0; while echo > /d/$i; do i=$((i+1)); done 2>/dev/null; echo full",
        ),
    ] {
        let mut disk = None;
        let host = Host::configured(|dir| {
            disk = Some(Disk::mount(&dir.join("root"), options));
            String::new()
        })
        .await;
        host.pods.pull(crisp_harness::suite::BUSYBOX).await.unwrap();
        let sandbox = host.pods.sandbox("full");
        let pod = host.pods.run(&sandbox).await.unwrap();
        let other = host.pods.container("other", &["sleep", "1000"]);
        let other = host.pods.launch(&pod, &other, &sandbox).await.unwrap();
        let config = host.script("greedy", &format!("{fill}; sleep 1000"));
        let greedy = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
        assert!(until(Duration::from_secs(60), || printed(
            &host, "full", "greedy", "full"
        )));
        let answer = host.pods.exec(&other, &["echo", "fine"]).await.unwrap();
        assert_eq!(answer.stdout, b"fine\n");
        let late = host.pods.container("late", &["true"]);
        let refused = host.pods.create(&pod, &late, &sandbox).await;
        let told = refused
            .as_ref()
            .map_err(|status| (status.code(), status.message().to_owned()));
        println!("P11 no {what} left: a command runs, another container: {told:?}");
        let began = Instant::now();
        host.pods.stop(&greedy, 0).await.unwrap();
        let status = host.pods.status(&greedy).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerExited);
        host.pods.remove(&greedy).await.unwrap();
        let mut late = host.pods.container("later", &["true"]);
        late.log_path = "later.log".into();
        let deadline = Instant::now() + SOON;
        let id = loop {
            match host.pods.launch(&pod, &late, &sandbox).await {
                Ok(id) => break id,
                // What was removed is deleted in the background.
                Err(_) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await
                }
                Err(status) => panic!("{what}: {status:?}"),
            }
        };
        assert_eq!(host.pods.exited(&id, SOON).await.unwrap().exit_code, 0);
        println!(
            "P11 {what}: removed, and room for the next after {:?}",
            began.elapsed()
        );
        if let Err(status) = refused {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        }
        // Once more, and the pod as a whole is evicted.
        let config = host.script("again", &format!("{fill}; sleep 1000"));
        host.pods.launch(&pod, &config, &sandbox).await.unwrap();
        assert!(until(Duration::from_secs(60), || printed(
            &host, "full", "again", "full"
        )));
        let began = Instant::now();
        host.pods.stop_pod(&pod).await.unwrap();
        host.pods.remove_pod(&pod).await.unwrap();
        println!(
            "P11 no {what} left: the whole pod is removed after {:?}",
            began.elapsed()
        );
        let sandbox = host.pods.sandbox("next");
        host.pods.run(&sandbox).await.unwrap();
        host.pods.remove_all().await.unwrap();
        drop(host);
        drop(disk);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_that_dumps_its_memory_leaves_nothing_on_the_host() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("crash");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let before = Snapshot::take(&host.daemon);
    let cores = || {
        let here = fs::read_dir(host.daemon.site().dir()).unwrap();
        let root = fs::read_dir("/").unwrap();
        let names = here.chain(root).flatten().map(|entry| entry.file_name());
        names
            .filter(|name| name.to_string_lossy().starts_with("core"))
            .count()
    };
    let known = cores();
    let config = host.script(
        "c",
        "cd /tmp; sh -c 'ulimit -c unlimited; kill -SEGV $$'; exit $?",
    );
    let id = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
    let status = host.pods.exited(&id, SOON).await.unwrap();
    let answer = async |script: &str| {
        let running = host.pods.container("r", &["sleep", "1000"]);
        let id = host.pods.launch(&pod, &running, &sandbox).await.unwrap();
        let answer = host.pods.exec(&id, &["sh", "-c", script]).await.unwrap();
        host.pods.remove(&id).await.unwrap();
        answer.exit_code
    };
    let of_exec = answer("ulimit -c unlimited; kill -ABRT $$").await;
    println!(
        "P12 a container that crashes with a core of any size: code {}, a command: code {of_exec}, {} \
         cores on the host",
        status.exit_code,
        cores() - known
    );
    assert_eq!((status.exit_code, of_exec), (139, 134));
    assert_eq!(cores(), known);
    host.pods.remove(&id).await.unwrap();
    let left = settled(&host.daemon, &before, Duration::from_secs(10)).await;
    assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_at_once_has_run_and_is_told() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("short");
    let pod = host.pods.run(&sandbox).await.unwrap();
    for number in 0..20 {
        let name = format!("c{number}");
        let config = host.pods.container(&name, &["true"]);
        let id = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
        let status = host.pods.exited(&id, SOON).await.unwrap();
        assert_eq!((status.exit_code, &*status.reason), (0, "Completed"));
        assert!(status.started_at > 0 && status.finished_at >= status.started_at);
    }
    let config = host.pods.container("long", &["sleep", "1000"]);
    let id = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
    let mut commands = tokio::task::JoinSet::new();
    for code in 0..200 {
        let (pods, id) = (host.pods.clone(), id.clone());
        let script = format!("exit {}", code % 256);
        commands.spawn(async move {
            let answer = pods.exec(&id, &["sh", "-c", &script]).await;
            answer.unwrap().exit_code == code % 256
        });
    }
    let right = commands
        .join_all()
        .await
        .into_iter()
        .filter(|right| *right)
        .count();
    println!(
        "P13 20 containers and 200 commands at once that end at once: {right} codes of commands are right"
    );
    assert_eq!(right, 200);
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_may_trace_sees_nothing_of_the_host_in_commands() {
    let host = Host::new().await;
    let canary = host.daemon.site().dir().join("canary");
    fs::write(&canary, "of the host").unwrap();
    let sandbox = host.pods.sandbox("tracer");
    let pod = host.pods.run(&sandbox).await.unwrap();
    // As fast as a shell can, in every process of the namespace but its own.
    let spy = format!(
        "echo ready; while :; do for p in /proc/[0-9]*; do [ $p = /proc/1 ] || cat $p/root{} 2>/dev/null && echo; done; done",
        canary.display()
    );
    let mut config = host.script("spy", &spy);
    container_context(&mut config).capabilities = Some(Capability {
        add_capabilities: vec!["SYS_PTRACE".into()],
        ..Capability::default()
    });
    // Loaded while there still is the privilege, and so before the process is made that executes.
    container_context(&mut config).seccomp = Some(SecurityProfile {
        profile_type: ProfileType::RuntimeDefault.into(),
        ..SecurityProfile::default()
    });
    let id = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
    assert!(until(SOON, || printed(&host, "tracer", "spy", "ready")));
    for number in 0..100 {
        let script = format!("exit {number}");
        let answer = host.pods.exec(&id, &["sh", "-c", &script]).await.unwrap();
        assert_eq!(answer.exit_code, number);
    }
    let answer = host.pods.exec(&id, &["no-such-program"]).await.unwrap_err();
    let seen = printed(&host, "tracer", "spy", "of the host");
    println!(
        "P7 a shell with CAP_SYS_PTRACE beside 100 commands: the host's file {}; {}",
        if seen { "was read" } else { "was never seen" },
        answer.message()
    );
    assert!(!seen);
    host.pods.remove_all().await.unwrap();
}
