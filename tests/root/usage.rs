//! What pods use, told over the socket, beside what the kernel tells.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crisp_harness::{
    cgroup,
    cri::v1::{
        ContainerStats, ContainerStatsFilter, ContainerStatsRequest, ImageFsInfoRequest,
        LinuxContainerResources, ListContainerStatsRequest, ListContainersRequest,
        ListImagesRequest, ListMetricDescriptorsRequest, ListPodSandboxMetricsRequest,
        ListPodSandboxRequest, ListPodSandboxStatsRequest, Metric, PodSandboxStats,
        PodSandboxStatsRequest, StreamContainerStatsRequest, StreamContainersRequest,
        StreamImagesRequest, StreamPodSandboxMetricsRequest, StreamPodSandboxStatsRequest,
        StreamPodSandboxesRequest, UInt64Value,
    },
    daemon::Kind,
};
use tonic::Code;

use crate::{Host, repeats};

fn plain(value: Option<&UInt64Value>) -> u64 {
    value.expect("the figure is told").value
}

impl Host {
    async fn stats(&self, container: &str) -> Result<ContainerStats, tonic::Status> {
        let request = ContainerStatsRequest {
            container_id: container.to_owned(),
        };
        let answer = self
            .pods
            .cri
            .runtime
            .clone()
            .container_stats(request)
            .await?;
        Ok(answer.into_inner().stats.expect("stats are told"))
    }

    async fn all_stats(&self, filter: ContainerStatsFilter) -> Vec<ContainerStats> {
        let request = ListContainerStatsRequest {
            filter: Some(filter),
        };
        let mut runtime = self.pods.cri.runtime.clone();
        runtime
            .list_container_stats(request)
            .await
            .unwrap()
            .into_inner()
            .stats
    }

    async fn pod_stats(&self, pod: &str) -> Result<PodSandboxStats, tonic::Status> {
        let request = PodSandboxStatsRequest {
            pod_sandbox_id: pod.to_owned(),
        };
        let answer = self
            .pods
            .cri
            .runtime
            .clone()
            .pod_sandbox_stats(request)
            .await?;
        Ok(answer.into_inner().stats.expect("stats are told"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_of_a_container_are_those_of_its_cgroup() {
    let host = Host::new().await;
    let work = "while :; do i=0; while [ $i -lt 5000 ]; do i=$((i+1)); done; sleep 0.02; done";
    let (_pod, id) = host.running("figures", &["sh", "-c", work]).await;
    let pid = host.pods.pid(&id).await.unwrap();
    let mut last = 0;
    for _ in 0..3 {
        let before = cgroup::number(pid, cgroup::CPU).unwrap();
        let stats = host.stats(&id).await.unwrap();
        let after = cgroup::number(pid, cgroup::CPU).unwrap();
        let cpu = stats.cpu.unwrap();
        let used = plain(cpu.usage_core_nano_seconds.as_ref());
        assert!((before..=after).contains(&used), "{before} {used} {after}");
        assert!(cpu.timestamp > last, "each reading has its time");
        last = cpu.timestamp;
        let memory = stats.memory.unwrap();
        let usage = plain(memory.usage_bytes.as_ref());
        let truth = cgroup::number(pid, cgroup::MEMORY).unwrap();
        assert!(usage.abs_diff(truth) < 4 << 20, "{usage} beside {truth}");
        assert!(plain(memory.working_set_bytes.as_ref()) <= usage);
        assert!(memory.page_faults.is_some() && memory.rss_bytes.is_some());
        assert!(memory.available_bytes.is_none(), "nothing limits it");
        assert_eq!(stats.attributes.unwrap().id, id);
        assert!(plain(stats.writable_layer.unwrap().inodes_used.as_ref()) >= 1);
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_of_figures_hold_what_runs_and_follow_the_filter() {
    let host = Host::new().await;
    let (pod, runs) = host.running("one", &["sleep", "1000"]).await;
    let (_other, second) = host.running("two", &["sleep", "1000"]).await;
    let (_third, ended) = host.running("three", &["true"]).await;
    host.pods
        .exited(&ended, Duration::from_secs(10))
        .await
        .unwrap();
    let ids = |stats: Vec<ContainerStats>| -> BTreeSet<String> {
        let ids = stats.into_iter().map(|one| one.attributes.unwrap().id);
        ids.collect()
    };
    let all = ids(host.all_stats(ContainerStatsFilter::default()).await);
    assert_eq!(all, BTreeSet::from([runs.clone(), second.clone()]));
    let of_pod = ContainerStatsFilter {
        pod_sandbox_id: pod.clone(),
        ..ContainerStatsFilter::default()
    };
    assert_eq!(
        ids(host.all_stats(of_pod).await),
        BTreeSet::from([runs.clone()])
    );
    let shortened = ContainerStatsFilter {
        id: second[..13].to_owned(),
        ..ContainerStatsFilter::default()
    };
    assert_eq!(
        ids(host.all_stats(shortened).await),
        BTreeSet::from([second])
    );
    let labelled = ContainerStatsFilter {
        label_selector: [("no".to_owned(), "such".to_owned())].into(),
        ..ContainerStatsFilter::default()
    };
    assert!(host.all_stats(labelled).await.is_empty());
    let refused = host.stats(&ended).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert_eq!(host.stats("none").await.unwrap_err().code(), Code::NotFound);
    host.pods.stop_pod(&pod).await.unwrap();
    let refused = host.pod_stats(&pod).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_of_a_pod_is_told_without_a_container_and_after_a_restart() {
    let mut host = Host::new().await;
    let pod = host.pods.run(&host.pods.sandbox("traffic")).await.unwrap();
    let received = |stats: PodSandboxStats| {
        let network = stats.linux.unwrap().network.unwrap();
        let eth0 = network.default_interface.unwrap();
        assert_eq!(eth0.name, "eth0");
        plain(eth0.rx_bytes.as_ref())
    };
    let before = received(host.pod_stats(&pod).await.unwrap());
    let ip = host.pods.ip(&pod).await.unwrap();
    // Nothing listens there: what counts is that packets arrive.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let send = || {
        for _ in 0..10 {
            let _sent = socket.send_to(&[0; 1000], (ip.as_str(), 9)).unwrap();
        }
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        // Again each time: the first ones may be lost while the address is looked up.
        send();
        let now = received(host.pod_stats(&pod).await.unwrap());
        if now >= before + 10_000 {
            break;
        }
        assert!(Instant::now() < deadline, "{before} became {now}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    host.daemon.kill().unwrap();
    host.again().await;
    let again = received(host.pod_stats(&pod).await.unwrap());
    assert!(again >= before + 10_000, "a new daemon asks anew: {again}");
    let none = host.pods.host_network_sandbox("none");
    let none = host.pods.run(&none).await.unwrap();
    let linux = host.pod_stats(&none).await.unwrap().linux.unwrap();
    assert_eq!(linux.network, None, "traffic of the host is no pod's");
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_share_a_parent_do_not_count_each_other() {
    let host = Host::new().await;
    let busy = "while :; do :; done";
    let (idle, _waits) = host.running("idle", &["sleep", "1000"]).await;
    let (loud, works) = host.running("loud", &["sh", "-c", busy]).await;
    let usage = |stats: &PodSandboxStats| {
        let cpu = stats.linux.as_ref().unwrap().cpu.as_ref().unwrap();
        plain(cpu.usage_core_nano_seconds.as_ref())
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let stats = host.pod_stats(&loud).await.unwrap();
        if usage(&stats) > 1_000_000_000 {
            let linux = stats.linux.unwrap();
            assert_eq!(linux.containers[0].attributes.as_ref().unwrap().id, works);
            assert!(plain(linux.process.unwrap().process_count.as_ref()) >= 2);
            break;
        }
        assert!(Instant::now() < deadline, "it works hardly: {stats:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let quiet = usage(&host.pod_stats(&idle).await.unwrap());
    assert!(quiet < 800_000_000, "the idle one used {quiet} ns");
    host.pods.remove_all().await.unwrap();
}

/// The spec of the newer Kubernetes suite: every descriptor has help, keys and, for this pod, a
/// sample with as many values.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_that_is_described_is_told_of_every_pod() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("metrics");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let empty = host.pods.run(&host.pods.sandbox("empty")).await.unwrap();
    let mut config = host.pods.container("c", &["sleep", "1000"]);
    config.linux.as_mut().unwrap().resources = Some(LinuxContainerResources {
        cpu_quota: 20_000,
        cpu_period: 100_000,
        cpu_shares: 1024,
        memory_limit_in_bytes: 64 << 20,
        ..LinuxContainerResources::default()
    });
    let id = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
    let script = "mkdir -p /var/lib/mydisktest; for i in 1 2 3 4 5 6 7 8 9 10; do \
                  echo hi >> /var/lib/mydisktest/f$i; done; sync";
    host.pods.exec(&id, &["sh", "-c", script]).await.unwrap();
    let mut runtime = host.pods.cri.runtime.clone();
    let descriptors = runtime
        .list_metric_descriptors(ListMetricDescriptorsRequest {})
        .await
        .unwrap()
        .into_inner()
        .descriptors;
    if host.daemon.kind() == Kind::Crisp {
        // Hugepages and pressure are told where the host accounts for them.
        assert!(
            (48..=56).contains(&descriptors.len()),
            "{}",
            descriptors.len()
        );
    }
    let pods = runtime
        .list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {})
        .await
        .unwrap()
        .into_inner()
        .pod_metrics;
    let mut all = BTreeSet::new();
    for of_pod in &pods {
        let containers = of_pod.container_metrics.iter().flat_map(|one| &one.metrics);
        let mut samples = BTreeMap::<&str, Vec<&Metric>>::new();
        for metric in of_pod.metrics.iter().chain(containers) {
            samples.entry(&metric.name).or_default().push(metric);
            let unique = (metric.name.clone(), metric.label_values.clone());
            assert!(all.insert(unique), "{metric:?} is told twice");
        }
        for descriptor in &descriptors {
            assert!(!descriptor.help.is_empty() && !descriptor.label_keys.is_empty());
            let of = samples.get(descriptor.name.as_str());
            let of =
                of.unwrap_or_else(|| panic!("{} of {}", descriptor.name, of_pod.pod_sandbox_id));
            for sample in of {
                assert_eq!(
                    sample.label_values.len(),
                    descriptor.label_keys.len(),
                    "{sample:?}"
                );
                assert!(sample.timestamp > 0 && sample.value.is_some());
            }
        }
        assert!(
            samples
                .keys()
                .all(|name| descriptors.iter().any(|d| d.name == *name))
        );
    }
    assert!(
        [&pod, &empty]
            .iter()
            .all(|id| pods.iter().any(|p| p.pod_sandbox_id == **id))
    );
    let of = pods.iter().find(|p| p.pod_sandbox_id == pod).unwrap();
    let value = |name: &str| {
        let metrics = &of.container_metrics[0].metrics;
        let found = metrics.iter().find(|metric| metric.name == name).unwrap();
        plain(found.value.as_ref())
    };
    assert_eq!(value("container_spec_cpu_quota"), 20_000);
    assert_eq!(value("container_spec_memory_limit_bytes"), 64 << 20);
    assert_eq!(value("container_processes"), 1);
    assert!(value("container_file_descriptors") >= 3);
    host.pods.remove_all().await.unwrap();
}

/// Collects a stream of lists, each batch of at least one item, to its end.
macro_rules! collected {
    ($client:expr, $method:ident, $request:expr, $field:ident) => {{
        let mut stream = $client.$method($request).await.unwrap().into_inner();
        let mut items = Vec::new();
        while let Some(batch) = stream.message().await.unwrap() {
            assert!(!batch.$field.is_empty(), "a batch is never empty");
            items.extend(batch.$field);
        }
        items
    }};
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_lists_hold_each_item_once_and_end() {
    let host = Host::new().await;
    let mut runtime = host.pods.cri.runtime.clone();
    let mut images = host.pods.cri.image.clone();
    let none = collected!(
        runtime,
        stream_containers,
        StreamContainersRequest::default(),
        containers
    );
    assert!(none.is_empty(), "nothing is no batch, and the end");
    for name in ["a", "b", "c"] {
        let _ids = host.running(name, &["sleep", "1000"]).await;
    }
    let pods = collected!(
        runtime,
        stream_pod_sandboxes,
        StreamPodSandboxesRequest::default(),
        pod_sandboxes
    );
    let listed = runtime
        .list_pod_sandbox(ListPodSandboxRequest::default())
        .await;
    assert_eq!(pods, listed.unwrap().into_inner().items);
    let containers = collected!(
        runtime,
        stream_containers,
        StreamContainersRequest::default(),
        containers
    );
    let listed = runtime
        .list_containers(ListContainersRequest::default())
        .await;
    assert_eq!(containers, listed.unwrap().into_inner().containers);
    let streamed = collected!(
        images,
        stream_images,
        StreamImagesRequest::default(),
        images
    );
    let listed = images.list_images(ListImagesRequest::default()).await;
    assert_eq!(streamed, listed.unwrap().into_inner().images);
    let stats = collected!(
        runtime,
        stream_container_stats,
        StreamContainerStatsRequest::default(),
        container_stats
    );
    let ids: BTreeSet<String> = stats
        .into_iter()
        .map(|s| s.attributes.unwrap().id)
        .collect();
    assert_eq!(ids, containers.iter().map(|c| c.id.clone()).collect());
    let stats = collected!(
        runtime,
        stream_pod_sandbox_stats,
        StreamPodSandboxStatsRequest::default(),
        pod_sandbox_stats
    );
    let ids: BTreeSet<String> = stats
        .into_iter()
        .map(|s| s.attributes.unwrap().id)
        .collect();
    let known: BTreeSet<String> = pods.iter().map(|pod| pod.id.clone()).collect();
    assert_eq!(ids, known);
    let metrics = collected!(
        runtime,
        stream_pod_sandbox_metrics,
        StreamPodSandboxMetricsRequest::default(),
        pod_sandbox_metrics
    );
    let ids: BTreeSet<String> = metrics.into_iter().map(|m| m.pod_sandbox_id).collect();
    assert_eq!(ids, known);
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_figures_never_fails_while_pods_come_and_go() {
    let host = Host::new().await;
    let (_pod, stays) = host.running("stays", &["sleep", "1000"]).await;
    let pods = host.pods.clone();
    let churn = tokio::spawn(async move {
        for round in 0..repeats(6, 40) {
            let sandbox = pods.sandbox(&format!("goes{round}"));
            let pod = pods.run(&sandbox).await.unwrap();
            let config = pods.container("c", &["sleep", "1000"]);
            pods.launch(&pod, &config, &sandbox).await.unwrap();
            pods.stop_pod(&pod).await.unwrap();
            pods.remove_pod(&pod).await.unwrap();
        }
    });
    let mut runtime = host.pods.cri.runtime.clone();
    while !churn.is_finished() {
        let stats = host.all_stats(ContainerStatsFilter::default()).await;
        assert!(
            stats
                .iter()
                .any(|one| one.attributes.as_ref().unwrap().id == stays),
            "the one that stays is always told"
        );
        let request = ListPodSandboxStatsRequest::default();
        runtime.list_pod_sandbox_stats(request).await.unwrap();
        let request = ListPodSandboxMetricsRequest {};
        runtime.list_pod_sandbox_metrics(request).await.unwrap();
        images_fs(&host).await;
    }
    churn.await.unwrap();
    host.pods.remove_all().await.unwrap();
}

async fn images_fs(host: &Host) {
    let mut images = host.pods.cri.image.clone();
    let info = images.image_fs_info(ImageFsInfoRequest {}).await;
    let info = info.unwrap().into_inner();
    assert!(plain(info.image_filesystems[0].used_bytes.as_ref()) > 0);
    assert_eq!(info.container_filesystems.len(), 1);
}
