//! Requests that are well-formed and lead to places that are not: what lies there decides.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crisp_harness::{
    audit::Snapshot,
    cri::v1::{
        ContainerConfig, Device, LinuxContainerResources, Mount, ReopenContainerLogRequest,
        SecurityProfile, UpdateContainerResourcesRequest, security_profile::ProfileType,
    },
};
use tonic::Code;

use super::{context, judged, nothing_left, tell};
use crate::Host;

fn fifo(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
}

fn mounted(config: &mut ContainerConfig, container_path: &str, host_path: &Path) {
    config.mounts.push(Mount {
        container_path: container_path.into(),
        host_path: host_path.to_string_lossy().into_owned(),
        ..Mount::default()
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_a_file_of_its_own_or_none() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("logs");
    let logs = host.pods.log_directory("logs");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let victim = host.daemon.site().dir().join("victim");
    fs::write(&victim, "keep").unwrap();
    let before = Snapshot::take(&host.daemon);
    fifo(&logs.join("fifo.log"));
    symlink(&victim, logs.join("link.log")).unwrap();
    symlink("/dev/null", logs.join("null.log")).unwrap();
    fs::create_dir(logs.join("directory.log")).unwrap();
    let mut wrong = Vec::new();
    for (case, name, word) in [
        ("G7 a FIFO lies there", "fifo.log", "a FIFO"),
        ("G7 a link lies there", "link.log", "a link"),
        ("G7 a link to a device lies there", "null.log", "a link"),
        ("G7 a directory lies there", "directory.log", "directory"),
        ("G7 its directory is not there", "no/such/0.log", ""),
    ] {
        let mut config = host.pods.container("bad", &["echo", "overwritten"]);
        config.log_path = name.to_owned();
        let answer = host.pods.create(&pod, &config, &sandbox).await;
        match answer {
            // kubelet makes the directory of a log; whoever does not may have it made.
            Ok(id) if name.contains('/') => {
                host.pods.remove(&id).await.unwrap();
                tell(case, "it is made");
            }
            answer => wrong.extend(judged(case, answer, Code::Internal, word)),
        }
    }
    // Swapped under a running container: the old file stays in use.
    let config = host.pods.container("swapped", &["sleep", "1000"]);
    let id = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
    let log = logs.join("swapped.log");
    fs::remove_file(&log).unwrap();
    symlink(&victim, &log).unwrap();
    let request = ReopenContainerLogRequest {
        container_id: id.clone(),
    };
    let mut runtime = host.pods.cri.runtime.clone();
    let answer = runtime.reopen_container_log(request).await;
    let case = "G7 a link in the place of an open log";
    wrong.extend(judged(case, answer, Code::Internal, "a link"));
    host.pods.remove(&id).await.unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(fs::read_to_string(&victim).unwrap(), "keep");
    assert!(
        fs::metadata("/dev/null")
            .unwrap()
            .file_type()
            .is_char_device()
    );
    nothing_left(&host, &before).await;

    // A log directory behind a link is what the node's administrator made of it.
    let elsewhere = host.daemon.site().dir().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, host.pods.log_directory("linked")).unwrap();
    let sandbox = host.pods.sandbox("linked");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let config = host.pods.container("c", &["true"]);
    host.pods.launch(&pod, &config, &sandbox).await.unwrap();
    assert!(elsewhere.join("c.log").is_file());
    tell("G6 a log directory behind a link", "the link is followed");
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_sources_are_what_they_are_and_links_of_the_image_lead_nowhere() {
    let host = Host::new().await;
    let dir = host.daemon.site().dir().join("odd");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("secret"), "secret").unwrap();
    fifo(&dir.join("fifo"));
    let _listener = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
    symlink("/", dir.join("root")).unwrap();
    symlink("loop", dir.join("loop")).unwrap();
    symlink("nowhere", dir.join("dangling")).unwrap();
    let sandbox = host.pods.sandbox("sources");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let before = Snapshot::take(&host.daemon);
    let mut wrong = Vec::new();
    for (case, name) in [
        ("G8 a link that leads to itself", "loop"),
        ("G8 a link that leads nowhere", "dangling"),
    ] {
        let mut config = host.pods.container("bad", &["true"]);
        mounted(&mut config, "/x", &dir.join(name));
        let answer = host.pods.create(&pod, &config, &sandbox).await;
        wrong.extend(judged(case, answer, Code::InvalidArgument, "host_path"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (case, name, script, expected) in [
        (
            "G8 a socket",
            "socket",
            "[ -S /x ] && echo a socket",
            "a socket",
        ),
        ("G8 a FIFO", "fifo", "[ -p /x ] && echo a pipe", "a pipe"),
        (
            "G8 a link to the root",
            "root",
            "ls -d /x/etc/hostname; ls /x/proc/1 >/dev/null && echo all of it",
            "all of it",
        ),
    ] {
        let mut config = host.script(name, script);
        mounted(&mut config, "/x", &dir.join(name));
        let text = host.output(&pod, &sandbox, config).await;
        tell(case, text.trim_end());
        assert!(text.contains(expected), "{case}: {text}");
    }
    // The first container makes a link in a volume; the second has a target below it.
    let shared = dir.join("shared");
    fs::create_dir(&shared).unwrap();
    symlink(&dir, shared.join("out")).unwrap();
    let mut config = host.script("through", "cat /v/out/new/secret; ls /v");
    mounted(&mut config, "/v", &shared);
    mounted(&mut config, "/v/out/new", &dir);
    let before_link = fs::read_dir(&dir).unwrap().count();
    let case = "G9 a target through a link of a volume";
    match host.pods.launch(&pod, &config, &sandbox).await {
        Ok(_) => tell(case, "it stays inside"),
        Err(status) => tell(case, &format!("{:?} {}", status.code(), status.message())),
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), before_link);
    assert!(
        !dir.join("new").exists(),
        "a directory was made on the host"
    );
    for container in host.pods.containers().await.unwrap() {
        host.pods.remove(&container.id).await.unwrap();
    }
    nothing_left(&host, &before).await;
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_or_a_device_that_is_something_else_is_named() {
    let host = Host::new().await;
    let dir = host.daemon.site().dir().join("places");
    fs::create_dir(&dir).unwrap();
    fifo(&dir.join("fifo"));
    fs::write(dir.join("text"), "{\"defaultAction\": ").unwrap();
    fs::write(dir.join("list"), "[]").unwrap();
    let huge = fs::File::create(dir.join("huge")).unwrap();
    huge.set_len(100 << 20).unwrap();
    let many = format!(
        "{{\"defaultAction\": \"SCMP_ACT_ALLOW\", \"syscalls\": {}}}",
        "[".repeat(100_000)
    );
    fs::write(dir.join("deep"), many).unwrap();
    symlink("/dev/null", dir.join("link")).unwrap();
    let sandbox = host.pods.sandbox("places");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let before = Snapshot::take(&host.daemon);
    let mut wrong = Vec::new();
    for (case, name) in [
        ("G18 a profile that is a FIFO", "fifo"),
        ("G18 a profile that is a directory", ""),
        ("G18 a profile that ends early", "text"),
        ("G18 a profile that is a list", "list"),
        ("G18 a profile of 100 MB", "huge"),
        ("G18 a profile of 100000 brackets", "deep"),
    ] {
        let mut config = host.pods.container("bad", &["true"]);
        let path = dir.join(name).to_string_lossy().into_owned();
        context(&mut config).seccomp = Some(SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: path.clone(),
        });
        let answer = host.pods.create(&pod, &config, &sandbox).await;
        let path = path.trim_end_matches('/');
        wrong.extend(judged(case, answer, Code::InvalidArgument, path));
    }
    for (case, name) in [
        ("G20 a device that is a FIFO", "fifo"),
        ("G20 a device that is a file", "text"),
    ] {
        let mut config = host.pods.container("bad", &["true"]);
        config.devices.push(Device {
            host_path: dir.join(name).to_string_lossy().into_owned(),
            ..Device::default()
        });
        let answer = host.pods.create(&pod, &config, &sandbox).await;
        wrong.extend(judged(case, answer, Code::InvalidArgument, name));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // A disk of the host's is there only for who asked for it: its number alone opens nothing.
    let disk = fs::read_dir("/sys/block")
        .unwrap()
        .flatten()
        .find_map(|entry| {
            let text = fs::read_to_string(entry.path().join("dev")).ok()?;
            let (major, minor) = text.trim().split_once(':')?;
            Some(format!("{major} {minor}"))
        });
    let disk = disk.expect("the host has a block device");
    let script = format!("mknod /disk b {disk} && head -c 1 /disk 2>&1 || echo refused");
    let text = host
        .output(&pod, &sandbox, host.script("disk", &script))
        .await;
    tell("G20 a node of a host's disk", text.trim_end());
    assert!(
        text.contains("not permitted") && text.contains("refused"),
        "{text}"
    );
    let mut config = host.script("link", "stat -L -c %t:%T /dev/mine");
    config.devices.push(Device {
        container_path: "/dev/mine".into(),
        host_path: dir.join("link").to_string_lossy().into_owned(),
        permissions: "rw".into(),
    });
    let text = host.output(&pod, &sandbox, config).await;
    tell("G20 a link to a device", text.trim_end());
    assert_eq!(text, "1:3\n");
    for container in host.pods.containers().await.unwrap() {
        host.pods.remove(&container.id).await.unwrap();
    }
    nothing_left(&host, &before).await;
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_container_takes_no_limits_and_keeps_its_end() {
    let host = Host::new().await;
    let (_pod, id) = host.running("dead", &["false"]).await;
    let limit = Duration::from_secs(10);
    host.pods.exited(&id, limit).await.unwrap();
    let request = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(LinuxContainerResources {
            cpu_shares: 512,
            ..LinuxContainerResources::default()
        }),
        ..UpdateContainerResourcesRequest::default()
    };
    let mut runtime = host.pods.cri.runtime.clone();
    let answer = runtime.update_container_resources(request).await;
    let mut wrong = Vec::new();
    let case = "G32 new limits for a dead container";
    wrong.extend(judged(case, answer, Code::FailedPrecondition, "xited"));
    let answer = host.pods.exec(&id, &["true"]).await;
    let case = "G32 a command in a dead container";
    wrong.extend(judged(case, answer, Code::FailedPrecondition, "xited"));
    let answer = host.pods.start(&id).await;
    let case = "G32 the second start of a dead container";
    wrong.extend(judged(case, answer, Code::FailedPrecondition, "xited"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let status = host.pods.status(&id).await.unwrap();
    assert_eq!((status.exit_code, &*status.reason), (1, "Error"));
    host.pods.remove_all().await.unwrap();
}

/// Where the processes of a container are, in the tree of the pids controller or the only one.
fn group_of(pid: u32) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let of = |name: &str| {
        text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let controllers = fields.next()?;
            let path = fields.next()?;
            let is_it = controllers.split(',').any(|one| one == name);
            is_it.then(|| path.to_owned())
        })
    };
    PathBuf::from(of("pids").or_else(|| of("")).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_group_of_another_pod_is_no_place_to_take_over() {
    let host = Host::new().await;
    let (first, id) = host.running("first", &["sleep", "1000"]).await;
    let group = group_of(host.pods.pid(&id).await.unwrap());
    let mut sandbox = host.pods.sandbox("second");
    sandbox.linux.as_mut().unwrap().cgroup_parent = group.to_string_lossy().into_owned();
    // Inside another container's own group: on a v2 host the kernel refuses, as there are processes
    // in it; elsewhere it is what the client asked for, and the first pod is none the worse.
    let case = "G24 a parent that is another pod's container";
    match host.pods.run(&sandbox).await {
        Ok(pod) => {
            let config = host.pods.container("c", &["sleep", "1000"]);
            let inner = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
            host.pods.stop_pod(&pod).await.unwrap();
            host.pods.remove_pod(&pod).await.unwrap();
            assert!(host.pods.status(&inner).await.is_err());
            tell(case, "served below it, and gone without it");
        }
        Err(status) => tell(case, &format!("{:?} {}", status.code(), status.message())),
    }
    assert_eq!(host.pods.status(&id).await.unwrap().state, 1);
    let answer = host.pods.exec(&id, &["echo", "fine"]).await.unwrap();
    assert_eq!(answer.stdout, b"fine\n");
    // And the other way round: the first goes while a second lives inside its group.
    if let Ok(pod) = host.pods.run(&sandbox).await {
        let config = host.pods.container("c", &["sleep", "1000"]);
        host.pods.launch(&pod, &config, &sandbox).await.unwrap();
        let gone = tokio::time::timeout(Duration::from_secs(40), host.pods.stop_pod(&first)).await;
        tell(
            "G24 the end of a pod with another inside",
            &format!(
                "{:?}",
                gone.map(|answer| answer.map_err(|s| s.message().to_owned()))
            ),
        );
    }
    host.pods.remove_all().await.unwrap();
    let tree = Command::new("sh")
        .args([
            "-c",
            &format!(
                "ls -d /sys/fs/cgroup/*{0} /sys/fs/cgroup{0} 2>/dev/null",
                group.display()
            ),
        ])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&tree.stdout), "", "groups stay");
}
