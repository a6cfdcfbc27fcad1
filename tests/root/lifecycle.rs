//! The daemon's own life, and what happens when a helper dies.

use std::time::Duration;

use crisp_harness::{
    cri::v1::{ContainerState, PodSandboxState},
    daemon::Kind,
    process::{kill_pid, until},
};
use nix::sys::signal::Signal;

use crate::{Host, helper};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_ends_the_daemon_within_a_second_and_containers_go_on() {
    let mut host = Host::new().await;
    let (_pod, container) = host.running("goes-on", &["sleep", "1000"]).await;
    let pid = host.pods.pid(&container).await.unwrap();
    // A call that waits must not keep the daemon alive.
    let pods = host.pods.clone();
    let id = container.clone();
    let waiting = tokio::spawn(async move { pods.exec(&id, &["sleep", "100"]).await });
    assert!(until(Duration::from_secs(10), || {
        std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|group| {
            let path = group.lines().find_map(|line| {
                line.split_once(":pids:")
                    .or_else(|| line.split_once("0::"))
                    .map(|(_, path)| path.to_owned())
            });
            let groups = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"];
            let processes = groups.iter().find_map(|base| {
                std::fs::read_to_string(format!("{base}{}/cgroup.procs", path.as_deref()?)).ok()
            });
            processes.is_some_and(|processes| processes.lines().count() >= 2)
        })
    }));
    let took = host.daemon.stop(Duration::from_secs(10)).unwrap();
    assert!(
        took.is_some_and(|took| took < Duration::from_secs(1)),
        "SIGTERM took {took:?}"
    );
    waiting.await.unwrap().unwrap_err();
    assert!(
        std::path::Path::new(&format!("/proc/{pid}")).exists(),
        "the container goes on"
    );
    host.again().await;
    assert_eq!(
        host.pods.status(&container).await.unwrap().state(),
        ContainerState::ContainerRunning
    );
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_daemon_on_the_same_root_is_refused_with_the_pid_of_the_first() {
    let host = Host::without_image().await;
    let second = tokio::process::Command::from(host.daemon.command().unwrap())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(20), second)
        .await
        .expect("the second one ends")
        .unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains(&host.daemon.pid().to_string()),
        "it names the first one's pid: {said}"
    );
    host.daemon
        .connect()
        .await
        .expect("the first one is not disturbed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_monitor_ends_its_container_with_255_and_the_reason() {
    let host = Host::new().await;
    if host.daemon.kind() != Kind::Crisp {
        // A rival's monitor has another name and another promise.
        return;
    }
    let (pod, container) = host.running("monitor", &["sleep", "1000"]).await;
    let pid = host.pods.pid(&container).await.unwrap();
    let monitor = helper("conmon-rs", &container).expect("the container has a monitor");
    kill_pid(monitor, Signal::SIGKILL).unwrap();
    let status = host
        .pods
        .exited(&container, Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!(status.exit_code, 255);
    let why = format!("{} {}", status.reason, status.message);
    assert!(
        why.to_lowercase().contains("monitor"),
        "the reason names the monitor: {why}"
    );
    assert!(
        until(Duration::from_secs(5), || !std::path::Path::new(&format!(
            "/proc/{pid}"
        ))
        .exists()),
        "its process is killed"
    );
    // The pod is as good as before.
    let sandbox = host.pods.sandbox("monitor");
    let mut config = host.pods.container("c", &["sleep", "1000"]);
    config.metadata.as_mut().unwrap().attempt = 1;
    let next = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
    assert_eq!(
        host.pods.status(&next).await.unwrap().state(),
        ContainerState::ContainerRunning
    );
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_monitor_killed_while_no_daemon_runs_is_seen_by_the_next() {
    let mut host = Host::new().await;
    if host.daemon.kind() != Kind::Crisp {
        return;
    }
    let (_pod, container) = host.running("unseen", &["sleep", "1000"]).await;
    let monitor = helper("conmon-rs", &container).expect("the container has a monitor");
    host.daemon.kill().unwrap();
    kill_pid(monitor, Signal::SIGKILL).unwrap();
    host.again().await;
    let status = host
        .pods
        .exited(&container, Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!(status.exit_code, 255, "{status:?}");
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_pause_makes_the_sandbox_notready() {
    let host = Host::new().await;
    if host.daemon.kind() != Kind::Crisp {
        return;
    }
    let (pod, _container) = host.running("pause", &["sleep", "1000"]).await;
    assert_eq!(
        host.pods.pod_state(&pod).await.unwrap(),
        PodSandboxState::SandboxReady
    );
    let pause = helper("crisp-pause", &pod).expect("the pod has a pause");
    kill_pid(pause, Signal::SIGKILL).unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while host.pods.pod_state(&pod).await.unwrap() != PodSandboxState::SandboxNotready {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the sandbox is still READY"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    host.pods.stop_pod(&pod).await.unwrap();
    host.pods.remove_pod(&pod).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_left_in_a_shared_pid_namespace_dies_with_its_container() {
    let host = Host::new().await;
    for (name, mode) in [("shared", 0), ("host", 2)] {
        let mut sandbox = host.pods.sandbox(name);
        let options = |mode| {
            Some(crisp_harness::cri::v1::NamespaceOption {
                pid: mode,
                ..Default::default()
            })
        };
        sandbox
            .linux
            .as_mut()
            .unwrap()
            .security_context
            .as_mut()
            .unwrap()
            .namespace_options = options(mode);
        let pod = host.pods.run(&sandbox).await.unwrap();
        let mut config = host
            .pods
            .container("c", &["sh", "-c", "sleep 987654 & echo $!; exit 4"]);
        config
            .linux
            .as_mut()
            .unwrap()
            .security_context
            .as_mut()
            .unwrap()
            .namespace_options = options(mode);
        let id = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
        let status = host
            .pods
            .exited(&id, Duration::from_secs(10))
            .await
            .unwrap();
        assert_eq!(status.exit_code, 4, "{name}");
        let left = crisp_harness::site::pids().into_iter().find(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|command| command == b"sleep\x00987654\x00")
        });
        assert_eq!(
            left, None,
            "{name}: EXITED is reported when nothing of it runs"
        );
        host.pods.stop_pod(&pod).await.unwrap();
        host.pods.remove_pod(&pod).await.unwrap();
    }
}
