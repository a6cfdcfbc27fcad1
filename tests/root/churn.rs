//! Pods come and go, half of them cancelled mid-call by their client; then the host is as before.

use std::{sync::Arc, time::Duration};

use crisp_harness::{
    audit::{Snapshot, settled},
    pods::Pods,
};
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

use crate::{Host, repeats};

/// A full life, patiently.
async fn live(pods: &Pods, name: &str) {
    let sandbox = pods.sandbox(name);
    let pod = pods.run(&sandbox).await.unwrap();
    let container = pods
        .launch(&pod, &pods.container("c", &["sleep", "1000"]), &sandbox)
        .await
        .unwrap();
    assert_eq!(
        pods.exec(&container, &["echo", "hi"]).await.unwrap().stdout,
        b"hi\n"
    );
    pods.stop(&container, 0).await.unwrap();
    pods.stop_pod(&pod).await.unwrap();
    pods.remove_pod(&pod).await.unwrap();
}

/// A client with little patience: every call is given up after a while that differs each time, and
/// what it got so far it forgets. Somebody else (kubelet's own relist) removes what came of it.
async fn give_up(pods: &Pods, name: &str, number: u64) {
    let patience = Duration::from_micros(200 + number * 977 % 60_000);
    let sandbox = pods.sandbox(name);
    let Ok(Ok(pod)) = timeout(patience, pods.run(&sandbox)).await else {
        return;
    };
    let config = pods.container("c", &["sleep", "1000"]);
    let Ok(Ok(container)) = timeout(patience, pods.create(&pod, &config, &sandbox)).await else {
        return;
    };
    let _given_up = timeout(patience, pods.start(&container)).await;
    let _given_up = timeout(patience, pods.stop(&container, 0)).await;
    let _given_up = timeout(patience, pods.stop_pod(&pod)).await;
    let _given_up = timeout(patience, pods.remove_pod(&pod)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_half_of_them_cancelled_leave_nothing() {
    let host = Host::new().await;
    // The first pods make what stays by design: the bridge, the groups' parent, connections.
    for name in ["warm-one", "warm-two"] {
        live(&host.pods, name).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = Snapshot::take(&host.daemon);

    let four = Arc::new(Semaphore::new(4));
    let mut tasks = JoinSet::new();
    for number in 0..repeats(60, 200) as u64 {
        let pods = host.pods.clone();
        let turn = Arc::clone(&four).acquire_owned().await.unwrap();
        tasks.spawn(async move {
            let name = format!("pod{number}");
            if number % 2 == 0 {
                live(&pods, &name).await
            } else {
                give_up(&pods, &name, number).await
            }
            drop(turn);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }

    // What the impatient left is removed as kubelet would, until two lists in a row are empty: a
    // call that was given up may still end with a pod.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let mut empty = 0;
    while empty < 5 {
        let (pods, containers) = (
            host.pods.pods().await.unwrap(),
            host.pods.containers().await.unwrap(),
        );
        empty = if pods.is_empty() && containers.is_empty() {
            empty + 1
        } else {
            0
        };
        for pod in pods {
            let _again = host.pods.stop_pod(&pod).await;
            let _again = host.pods.remove_pod(&pod).await;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "pods are left: {:?}",
            host.pods.pods().await
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let left = settled(&host.daemon, &before, Duration::from_secs(30)).await;
    assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_daemon_leaves_no_half_made_pods() {
    let mut host = Host::new().await;
    live(&host.pods, "warm").await;
    let before = Snapshot::take(&host.daemon);
    for round in 0..repeats(10, 60) as u64 {
        // The daemon dies while a pod is being made, at another moment each time.
        let pods = host.pods.clone();
        let sandbox = pods.sandbox(&format!("half{round}"));
        let maker = tokio::spawn(async move {
            let pod = pods.run(&sandbox).await?;
            let container = pods
                .create(&pod, &pods.container("c", &["sleep", "1000"]), &sandbox)
                .await?;
            pods.start(&container).await?;
            pods.stop_pod(&pod).await?;
            pods.remove_pod(&pod).await
        });
        tokio::time::sleep(Duration::from_millis(round * 13 % 150)).await;
        host.daemon.kill().unwrap();
        let _died = maker.await.unwrap();
        host.again().await;
        host.pods.remove_all().await.unwrap();
        let left: Vec<String> = settled(&host.daemon, &before, Duration::from_secs(30))
            .await
            .into_iter()
            .filter(|line| !line.contains("descriptors"))
            .collect();
        assert!(
            left.is_empty(),
            "round {round}: left behind:\n{}",
            left.join("\n")
        );
    }
}
