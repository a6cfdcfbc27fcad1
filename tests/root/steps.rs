//! The daemon is killed once in the middle of each step of making and undoing pods and containers;
//! the next one finishes what was begun.

use std::{fs, path::Path, time::Duration};

use crisp_harness::{
    audit::Snapshot,
    cri::v1::{ContainerState, PodSandboxState},
    daemon::Kind,
    tools,
};

use crate::Host;

/// How long a daemon may take to come to the place where it dies, and the next one to finish.
const PATIENCE: Duration = Duration::from_secs(30);

/// The steps of RunPodSandbox, each with something of it done.
const MAKING_POD: &[&str] = &[
    "sandbox.reserve.journalled",
    "sandbox.namespaces.cgroup",
    "sandbox.namespaces.spawned",
    "sandbox.namespaces.held",
    "sandbox.namespaces.shm",
    "sandbox.network.begin",
    "network.add.bridge",
    "network.add.portmap",
    "sandbox.network.end",
];
/// The steps of CreateContainer.
const MAKING_CONTAINER: &[&str] = &[
    "container.reserve.journalled",
    "container.rootfs.upper",
    "container.bundle.written",
    "container.monitor.created",
];
/// The steps of StopPodSandbox: `.end` is when the step is done and nobody has noted it.
const STOPPING_POD: &[&str] = &[
    "sandbox.undo.network.begin",
    "network.del.portmap",
    "network.del.bridge",
    "sandbox.undo.network.end",
    "sandbox.undo.pause.begin",
    "sandbox.undo.pause.end",
    "sandbox.undo.network namespace.begin",
    "sandbox.undo.network namespace.end",
    "sandbox.undo.shared memory.begin",
    "sandbox.undo.shared memory.end",
    "sandbox.undo.cgroup.begin",
    "sandbox.undo.cgroup.leaf",
    "sandbox.undo.cgroup.end",
];
/// What RemovePodSandbox does beyond that.
const REMOVING_POD: &[&str] = &[
    "sandbox.undo.files.begin",
    "sandbox.undo.files.end",
    "sandbox.undo.record.begin",
    "sandbox.undo.record.end",
    "sandbox.undo.directory.begin",
    "sandbox.undo.directory.end",
];
/// The steps of RemoveContainer, from when its intention is on record.
const REMOVING_CONTAINER: &[&str] = &[
    "container.undo.journal.end",
    "container.undo.monitor.end",
    "container.undo.processes.end",
    "container.undo.cgroup.end",
    "container.undo.runtime files.begin",
    "container.undo.runtime files.end",
    "container.undo.record.begin",
    "container.undo.record.end",
    "container.undo.directory.begin",
    "container.undo.directory.renamed",
    "container.undo.directory.end",
];
/// The steps in which the next daemon ends a container whose monitor waits at the start gate.
const UNDOING_CONTAINER: &[&str] = &[
    "container.undo.journal.begin",
    "container.undo.journal.end",
    "container.undo.monitor.begin",
    "container.undo.monitor.end",
    "container.undo.processes.begin",
    "container.undo.processes.end",
    "container.undo.cgroup.begin",
    "container.undo.cgroup.end",
];

impl Host {
    /// A host whose daemon can be stopped at failpoints; none for a rival.
    async fn with_failpoints() -> Option<Self> {
        let mut host = Self::new().await;
        if host.daemon.kind() != Kind::Crisp {
            return None;
        }
        host.daemon
            .use_programs(&tools::crisp_dir_with_failpoints().unwrap());
        // What stays by design, and is no part of what is compared.
        let warm = host.pods.run(&host.pods.sandbox("warm")).await.unwrap();
        host.pods.stop_pod(&warm).await.unwrap();
        host.pods.remove_pod(&warm).await.unwrap();
        Some(host)
    }

    /// Ends the daemon and starts one that stops at a place, or nowhere.
    async fn restart_at(&mut self, point: Option<&str>) {
        self.daemon.kill().unwrap();
        let point = point.map(|point| format!("{point}=kill"));
        self.daemon.stop_at(point.as_deref());
        self.again().await;
    }

    /// The daemon has died at its place; starts one that stops nowhere.
    async fn restart_after(&mut self, point: &str) {
        self.daemon
            .ended(PATIENCE)
            .unwrap_or_else(|error| panic!("{point} is not reached: {error}"));
        self.daemon.stop_at(None);
        self.again().await;
    }

    /// Waits until nothing is there that was not there before, but for lines that hold a word.
    async fn cleared(&self, point: &str, before: &Snapshot, but: &[&str]) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let mut left = Snapshot::take(&self.daemon).difference(before);
            left.retain(|line| {
                !line.contains("descriptors") && !but.iter().any(|word| line.contains(word))
            });
            left.extend(rubbish(&self.daemon.root().join("trash")));
            if left.is_empty() {
                return;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{point}: left behind:\n{}",
                left.join("\n")
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn rubbish(trash: &Path) -> Vec<String> {
    let entries = fs::read_dir(trash).into_iter().flatten().flatten();
    entries
        .map(|entry| format!("left: {}", entry.path().display()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_step_of_making_a_pod_killed_once_is_undone() {
    let Some(mut host) = Host::with_failpoints().await else {
        return;
    };
    let before = Snapshot::take(&host.daemon);
    for point in MAKING_POD {
        host.restart_at(Some(point)).await;
        let died = host.pods.run(&host.pods.sandbox("pod")).await;
        died.expect_err("the daemon dies");
        host.restart_after(point).await;
        assert_eq!(host.pods.pods().await.unwrap(), [""; 0], "{point}");
        host.cleared(point, &before, &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_step_of_making_a_container_killed_once_is_undone() {
    let Some(mut host) = Host::with_failpoints().await else {
        return;
    };
    let sandbox = host.pods.sandbox("pod");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let config = host.pods.container("c", &["sleep", "1000"]);
    let before = Snapshot::take(&host.daemon);
    for point in MAKING_CONTAINER {
        host.restart_at(Some(point)).await;
        let died = host.pods.create(&pod, &config, &sandbox).await;
        died.expect_err("the daemon dies");
        host.restart_after(point).await;
        assert!(host.pods.containers().await.unwrap().is_empty(), "{point}");
        host.cleared(point, &before, &[]).await;
    }
    // The undoing itself is killed once in each of its steps, with a monitor that still lives.
    for point in UNDOING_CONTAINER {
        host.restart_at(Some("container.monitor.created")).await;
        let died = host.pods.create(&pod, &config, &sandbox).await;
        died.expect_err("the daemon dies");
        host.daemon.ended(PATIENCE).unwrap();
        host.daemon.stop_at(Some(&format!("{point}=kill")));
        host.daemon.spawn().unwrap();
        host.restart_after(point).await;
        assert!(host.pods.containers().await.unwrap().is_empty(), "{point}");
        host.cleared(point, &before, &[]).await;
    }
    // A gate that was opened is open, whoever noted it.
    let created = host.pods.create(&pod, &config, &sandbox).await.unwrap();
    host.restart_at(Some("start.gate.opened")).await;
    let died = host.pods.start(&created).await;
    died.expect_err("the daemon dies");
    host.restart_after("start.gate.opened").await;
    let status = host.pods.status(&created).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_step_of_stopping_a_pod_killed_once_is_finished() {
    let Some(mut host) = Host::with_failpoints().await else {
        return;
    };
    let before = Snapshot::take(&host.daemon);
    for point in STOPPING_POD {
        host.restart_at(Some(point)).await;
        let (pod, container) = host.running("pod", &["sleep", "1000"]).await;
        let died = host.pods.stop_pod(&pod).await;
        died.expect_err("the daemon dies");
        host.restart_after(point).await;
        // Without being asked again: only what a stopped pod keeps until it is removed is there.
        host.cleared(point, &before, &["/sandboxes/", "/containers/"])
            .await;
        assert_eq!(
            host.pods.pod_state(&pod).await.unwrap(),
            PodSandboxState::SandboxNotready,
            "{point}"
        );
        let status = host.pods.status(&container).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerExited, "{point}");
        assert_eq!(status.exit_code, 137, "{point}");
        host.pods.remove_pod(&pod).await.unwrap();
        host.cleared(point, &before, &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_step_of_a_removal_killed_once_is_finished() {
    let Some(mut host) = Host::with_failpoints().await else {
        return;
    };
    let before = Snapshot::take(&host.daemon);
    for point in REMOVING_POD {
        host.restart_at(Some(point)).await;
        let (pod, _) = host.running("pod", &["sleep", "1000"]).await;
        let died = host.pods.remove_pod(&pod).await;
        died.expect_err("the daemon dies");
        host.restart_after(point).await;
        host.cleared(point, &before, &[]).await;
        assert_eq!(host.pods.pods().await.unwrap(), [""; 0], "{point}");
    }
    let sandbox = host.pods.sandbox("pod");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let before = Snapshot::take(&host.daemon);
    for point in REMOVING_CONTAINER {
        host.restart_at(Some(point)).await;
        let config = host.pods.container("c", &["sleep", "1000"]);
        let container = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
        let died = host.pods.remove(&container).await;
        died.expect_err("the daemon dies");
        host.restart_after(point).await;
        host.cleared(point, &before, &[]).await;
        assert!(host.pods.containers().await.unwrap().is_empty(), "{point}");
    }
    host.pods.remove_all().await.unwrap();
}

#[test]
fn what_is_shipped_has_no_failpoints() {
    let shipped = tools::top().join("target/dist");
    if tools::crisp_dir() == shipped {
        assert!(!tools::has_failpoints(&shipped).unwrap());
    }
}
