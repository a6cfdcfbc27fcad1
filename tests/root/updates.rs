//! Limits that change while something runs under them.

use crisp_harness::{
    cgroup,
    cri::v1::{
        ContainerConfig, LinuxContainerResources, UpdateContainerResourcesRequest,
        UpdatePodSandboxResourcesRequest,
    },
};
use tonic::{Code, Status};

use crate::Host;

const MIB: i64 = 1 << 20;

impl Host {
    async fn update(&self, container: &str, linux: LinuxContainerResources) -> Result<(), Status> {
        let request = UpdateContainerResourcesRequest {
            container_id: container.to_owned(),
            linux: Some(linux),
            ..UpdateContainerResourcesRequest::default()
        };
        let mut runtime = self.pods.cri.runtime.clone();
        runtime.update_container_resources(request).await.map(drop)
    }

    async fn resources(&self, container: &str) -> LinuxContainerResources {
        let status = self.pods.status(container).await.unwrap();
        status.resources.unwrap().linux.unwrap()
    }
}

fn limited(mut config: ContainerConfig) -> ContainerConfig {
    config.linux.as_mut().unwrap().resources = Some(LinuxContainerResources {
        cpu_shares: 512,
        memory_limit_in_bytes: 64 * MIB,
        oom_score_adj: 500,
        ..LinuxContainerResources::default()
    });
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_is_all_or_nothing_and_outlives_the_daemon() {
    let mut host = Host::new().await;
    let sandbox = host.pods.sandbox("limits");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let config = limited(host.pods.container("c", &["sleep", "1000"]));
    let id = host.pods.create(&pod, &config, &sandbox).await.unwrap();
    let pid = host.pods.pid(&id).await.unwrap();
    // One that only was created has limits too.
    let more = LinuxContainerResources {
        memory_limit_in_bytes: 128 * MIB,
        ..LinuxContainerResources::default()
    };
    host.update(&id, more).await.unwrap();
    host.pods.start(&id).await.unwrap();
    let memory = || cgroup::number(pid, cgroup::MEMORY_LIMIT).unwrap();
    let shares = || cgroup::read(pid, cgroup::SHARES).unwrap();
    assert_eq!(memory(), 128 << 20);
    let before = (memory(), shares(), host.resources(&id).await);
    assert_eq!((before.2.cpu_shares, before.2.oom_score_adj), (512, 500));
    // Shares and memory are fine and are set first; no host has this CPU.
    let half = LinuxContainerResources {
        cpu_shares: 2048,
        memory_limit_in_bytes: 256 * MIB,
        cpuset_cpus: "9999".to_owned(),
        ..LinuxContainerResources::default()
    };
    let refused = host.update(&id, half).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("cpuset"), "{refused}");
    assert_eq!((memory(), shares(), host.resources(&id).await), before);
    let fine = LinuxContainerResources {
        cpu_shares: 1024,
        memory_limit_in_bytes: 96 * MIB,
        ..LinuxContainerResources::default()
    };
    host.update(&id, fine).await.unwrap();
    host.daemon.kill().unwrap();
    host.again().await;
    let after = host.resources(&id).await;
    assert_eq!(
        (after.cpu_shares, after.memory_limit_in_bytes),
        (1024, 96 * MIB)
    );
    assert_eq!(memory(), 96 << 20);
    host.pods.stop(&id, 0).await.unwrap();
    let refused = host.update(&id, after).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_below_what_is_in_use_is_refused_in_clear_words() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("full");
    let pod = host.pods.run(&sandbox).await.unwrap();
    // The shell keeps what it reads: memory that cannot be given back.
    let hold = "x=$(head -c 20000000 /dev/zero | tr '\\0' x); echo held; sleep 1000; echo $x";
    let mut config = limited(host.pods.container("c", &["sh", "-c", hold]));
    config
        .linux
        .as_mut()
        .unwrap()
        .resources
        .as_mut()
        .unwrap()
        .memory_limit_in_bytes = 256 * MIB;
    let id = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
    let log = host.pods.log_directory("full").join("c.log");
    assert!(crisp_harness::process::until(
        std::time::Duration::from_secs(20),
        || { crisp_harness::pods::log_lines(&log, "stdout").is_ok_and(|lines| lines == ["held"]) }
    ));
    let less = LinuxContainerResources {
        memory_limit_in_bytes: 8 * MIB,
        cpu_shares: 2,
        ..LinuxContainerResources::default()
    };
    let refused = host.update(&id, less).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("in use"), "{refused}");
    let after = host.resources(&id).await;
    assert_eq!(
        (after.memory_limit_in_bytes, after.cpu_shares),
        (256 * MIB, 512)
    );
    let pid = host.pods.pid(&id).await.unwrap();
    assert_eq!(
        cgroup::number(pid, cgroup::MEMORY_LIMIT).unwrap(),
        256 << 20
    );
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oom_score_reaches_every_process_and_later_execs() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("score");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let script = "sleep 1000 & echo 900 > /proc/self/oom_score_adj; sleep 1001 & echo up; wait";
    let config = limited(host.pods.container("c", &["sh", "-c", script]));
    let id = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
    let log = host.pods.log_directory("score").join("c.log");
    assert!(crisp_harness::process::until(
        std::time::Duration::from_secs(20),
        || { crisp_harness::pods::log_lines(&log, "stdout").is_ok_and(|lines| lines == ["up"]) }
    ));
    let update = LinuxContainerResources {
        oom_score_adj: 950,
        ..LinuxContainerResources::default()
    };
    host.update(&id, update).await.unwrap();
    let read = ["cat", "/proc/self/oom_score_adj"];
    let exec = host.pods.exec(&id, &read).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&exec.stdout).trim(), "950");
    let script = "for p in $(pgrep sleep); do cat /proc/$p/oom_score_adj; done";
    let exec = host.pods.exec(&id, &["sh", "-c", script]).await.unwrap();
    let mut scores: Vec<String> = String::from_utf8_lossy(&exec.stdout)
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    scores.sort();
    // The first one forked before its parent chose another: it has a score of its own.
    assert_eq!(scores, ["500", "950"]);
    assert_eq!(host.resources(&id).await.oom_score_adj, 950);
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resources_of_a_pod_are_noted_and_limit_a_group_of_our_own() {
    let host = Host::new().await;
    let mut sandbox = host.pods.sandbox("whole");
    sandbox.linux.as_mut().unwrap().cgroup_parent.clear();
    let pod = host.pods.run(&sandbox).await.unwrap();
    let config = host.pods.container("c", &["sleep", "1000"]);
    let id = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
    let of = |bytes| {
        Some(LinuxContainerResources {
            memory_limit_in_bytes: bytes,
            ..LinuxContainerResources::default()
        })
    };
    let request = UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.clone(),
        overhead: of(16 * MIB),
        resources: of(112 * MIB),
    };
    let mut runtime = host.pods.cri.runtime.clone();
    runtime
        .update_pod_sandbox_resources(request.clone())
        .await
        .unwrap();
    let pid = host.pods.pid(&id).await.unwrap();
    let own = cgroup::directory(pid, cgroup::MEMORY_LIMIT).unwrap();
    let parent = own.parent().unwrap();
    let limit = ["memory.limit_in_bytes", "memory.max"]
        .iter()
        .find_map(|file| std::fs::read_to_string(parent.join(file)).ok());
    assert_eq!(limit.unwrap().trim(), (128 << 20).to_string());
    host.pods.stop_pod(&pod).await.unwrap();
    let refused = runtime
        .update_pod_sandbox_resources(request)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    host.pods.remove_all().await.unwrap();
}
