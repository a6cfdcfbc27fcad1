//! What a daemon finds at its start that no record explains, and what it does about it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use crisp_harness::{
    audit::Snapshot,
    cri::v1::{ImageSpec, ImageStatusRequest, PodSandboxState, RuntimeCondition, StatusRequest},
    daemon::Kind,
    process::until,
    suite::BUSYBOX,
    tools,
};

use crate::{Host, helper};

const PATIENCE: Duration = Duration::from_secs(20);

impl Host {
    async fn has_busybox(&self) -> bool {
        let request = ImageStatusRequest {
            image: Some(ImageSpec {
                image: BUSYBOX.to_owned(),
                ..ImageSpec::default()
            }),
            verbose: false,
        };
        let answer = self.pods.cri.image.clone().image_status(request).await;
        answer.unwrap().into_inner().image.is_some()
    }

    async fn condition(&self, kind: &str) -> RuntimeCondition {
        let request = StatusRequest { verbose: false };
        let answer = self.pods.cri.runtime.clone().status(request).await.unwrap();
        let conditions = answer.into_inner().status.unwrap().conditions;
        let found = conditions.into_iter().find(|one| one.r#type == kind);
        found.expect("the condition is told")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.daemon.log()).unwrap()
    }

    /// Everything that names the pod on the host.
    fn traces(&self, pod: &str) -> Vec<String> {
        let short = &pod[..13];
        let mut traces: Vec<String> = helper("crisp-pause", pod)
            .map(|pid| format!("process {pid}"))
            .into_iter()
            .collect();
        let mut see = |path: PathBuf| {
            if path.exists() {
                traces.push(path.display().to_string());
            }
        };
        see(Path::new("/run/netns").join(format!("crisp-{short}")));
        see(self.daemon.root().join("sandboxes").join(pod));
        see(self.daemon.state().join("sandboxes").join(pod));
        see(self
            .daemon
            .root()
            .join("network/results")
            .join(format!("{pod}.json")));
        let group = format!("{}/crisp-pause-{short}", self.daemon.site().name());
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            see(hierarchy.path().join(&group));
        }
        see(Path::new("/sys/fs/cgroup").join(&group));
        for lease in fs::read_dir(self.daemon.site().leases())
            .into_iter()
            .flatten()
            .flatten()
        {
            if fs::read_to_string(lease.path()).is_ok_and(|owner| owner.contains(pod)) {
                traces.push(lease.path().display().to_string());
            }
        }
        traces
    }
}

/// A file with content in one of the layers.
fn some_file(dir: &Path) -> Option<PathBuf> {
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let kind = entry.file_type().ok()?;
        let path = entry.path();
        if kind.is_dir()
            && let Some(found) = some_file(&path)
        {
            return Some(found);
        }
        if kind.is_file() && entry.metadata().ok()?.len() > 4096 {
            return Some(path);
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_are_verified_after_the_machine_went_down_under_a_daemon() {
    let mut host = Host::new().await;
    if host.daemon.kind() != Kind::Crisp {
        return;
    }
    let layers = host.daemon.root().join("layers");
    let file = some_file(&layers).expect("a layer has a file");
    let whole = fs::read(&file).unwrap();

    // Killed in the same boot: nothing can have been lost, and nothing is read.
    host.daemon.kill().unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    host.again().await;
    assert!(host.has_busybox().await);
    assert!(!host.log().contains("layers are verified"));

    // The same file, now after what looks like a power cut.
    host.daemon.kill().unwrap();
    fs::write(host.daemon.root().join("serving"), "another boot").unwrap();
    host.again().await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while host.has_busybox().await {
        assert!(tokio::time::Instant::now() < deadline, "{}", host.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // It is moved aside, and the next pull fetches it again.
    host.pods.pull(BUSYBOX).await.unwrap();
    assert!(host.has_busybox().await);
    assert_eq!(fs::read(&file).unwrap(), whole);
    let (_, container) = host.running("again", &["sleep", "1000"]).await;
    let said = host
        .pods
        .exec(&container, &["echo", "whole"])
        .await
        .unwrap();
    assert_eq!(said.stdout, b"whole\n");

    // Said once: the next start finds nothing to verify.
    assert!(until(PATIENCE, || host
        .log()
        .contains("are to be pulled again")));
    host.daemon.kill().unwrap();
    let before = host.log().matches("layers are verified").count();
    host.again().await;
    assert_eq!(host.log().matches("layers are verified").count(), before);
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_whose_record_is_lost_leaves_nothing() {
    let mut host = Host::new().await;
    if host.daemon.kind() != Kind::Crisp {
        return;
    }
    let keeper = host.pods.run(&host.pods.sandbox("keeper")).await.unwrap();
    // All that is lost: the store, and the record's file; then the directories too, so that only the
    // network's own record tells that there was a pod.
    for (name, also) in [("half", ""), ("whole", "state/sandboxes")] {
        let pod = host.pods.run(&host.pods.sandbox(name)).await.unwrap();
        assert!(host.traces(&pod).len() > 4, "{:?}", host.traces(&pod));
        host.daemon.kill().unwrap();
        let _store = fs::remove_dir_all(host.daemon.root().join("store"));
        fs::remove_dir_all(host.daemon.root().join("sandboxes").join(&pod)).unwrap();
        if !also.is_empty() {
            let state = host.daemon.site().dir().join(also).join(&pod);
            let _shm = nix::mount::umount2(&state.join("shm"), nix::mount::MntFlags::MNT_DETACH);
            fs::remove_dir_all(state).unwrap();
        }
        host.again().await;
        let gone = until(PATIENCE, || host.traces(&pod).is_empty());
        assert!(gone, "{name}: {:?}\n{}", host.traces(&pod), host.log());
        assert_eq!(host.pods.pods().await.unwrap(), [keeper.clone()], "{name}");
        assert_eq!(
            host.pods.pod_state(&keeper).await.unwrap(),
            PodSandboxState::SandboxReady
        );
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_networks_plugins_are_told_which_pods_there_are() {
    let mut host = Host::without_image().await;
    if host.daemon.kind() != Kind::Crisp {
        return;
    }
    let pod = host.pods.run(&host.pods.sandbox("stays")).await.unwrap();
    host.daemon.kill().unwrap();
    // A configuration of the version that has GC, of one plugin that keeps what it is told.
    let dir = host.daemon.site().dir().join("plugins");
    fs::create_dir(&dir).unwrap();
    let heard = dir.join("heard");
    let plugin = dir.join("listener");
    let script = format!(
        "#!/bin/sh\ncase $CNI_COMMAND in\nVERSION) echo '{{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"1.1.0\"]}}' ;;\nGC) cat > {0}.new && mv {0}.new {0} ;;\nesac\n",
        heard.display()
    );
    fs::write(&plugin, script).unwrap();
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
    let list =
        "{\"cniVersion\":\"1.1.0\",\"name\":\"listened\",\"plugins\":[{\"type\":\"listener\"}]}";
    let conf = host.daemon.site().dir().join("net.d");
    fs::write(conf.join("00-listened.conflist"), list).unwrap();
    host.daemon.use_plugins(&dir);
    host.again().await;
    assert!(until(PATIENCE, || heard.exists()), "{}", host.log());
    let told: serde_json::Value = serde_json::from_slice(&fs::read(&heard).unwrap()).unwrap();
    let valid = &told["cni.dev/valid-attachments"];
    assert_eq!(valid[0]["containerID"], pod, "{told}");
    assert_eq!(valid.as_array().unwrap().len(), 1, "{told}");
    // The pod is detached by the plugins that attached it.
    fs::remove_file(conf.join("00-listened.conflist")).unwrap();
    host.daemon.kill().unwrap();
    host.daemon
        .use_plugins(&tools::get("cni").unwrap().join("bin"));
    host.again().await;
    host.pods.remove_all().await.unwrap();
    assert!(host.traces(&pod).is_empty(), "{:?}", host.traces(&pod));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_whose_engine_hangs_makes_the_runtime_not_ready() {
    let mut host = Host::new().await;
    if host.daemon.kind() != Kind::Crisp {
        return;
    }
    host.daemon
        .use_programs(&tools::crisp_dir_with_failpoints().unwrap());
    let (pod, container) = host.running("goes-on", &["sleep", "1000"]).await;
    assert!(host.condition("RuntimeReady").await.status);
    host.daemon.kill().unwrap();
    host.daemon.stop_at(Some("store.open=hang"));
    host.again().await;
    let condition = host.condition("RuntimeReady").await;
    assert!(!condition.status, "{condition:?}");
    assert_eq!(condition.reason, "StoreStuck");
    assert!(condition.message.contains("restart"), "{condition:?}");
    assert!(host.log().contains("its thread is lost"));
    // What runs is served all the same, from the files.
    let said = host
        .pods
        .exec(&container, &["echo", "served"])
        .await
        .unwrap();
    assert_eq!(said.stdout, b"served\n");

    host.daemon.kill().unwrap();
    host.daemon.stop_at(None);
    host.again().await;
    assert!(host.condition("RuntimeReady").await.status);
    assert_eq!(
        host.pods.pod_state(&pod).await.unwrap(),
        PodSandboxState::SandboxReady
    );
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parent_cgroup_of_our_making_goes_with_the_last_pod() {
    let mut host = Host::without_image().await;
    if host.daemon.kind() != Kind::Crisp {
        return;
    }
    let parent = host.daemon.site().cgroup_parent();
    let there = || {
        let in_tree = |dir: PathBuf| dir.join(parent.trim_start_matches('/')).exists();
        let trees = fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
        in_tree("/sys/fs/cgroup".into()) || trees.map(|tree| tree.path()).any(in_tree)
    };
    assert!(!there());
    let before = Snapshot::take(&host.daemon);
    for restarted in [false, true] {
        let first = host.pods.run(&host.pods.sandbox("first")).await.unwrap();
        let second = host.pods.run(&host.pods.sandbox("second")).await.unwrap();
        if restarted {
            host.daemon.kill().unwrap();
            host.again().await;
        }
        let third = host.pods.run(&host.pods.sandbox("third")).await.unwrap();
        for (pod, stays) in [(first, true), (third, true), (second, false)] {
            host.pods.stop_pod(&pod).await.unwrap();
            host.pods.remove_pod(&pod).await.unwrap();
            assert_eq!(there(), stays, "restarted: {restarted}");
        }
    }
    let left: Vec<String> = Snapshot::take(&host.daemon)
        .difference(&before)
        .into_iter()
        .filter(|line| line.contains("cgroup"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
