//! A client that gives a call up at any moment and sends it again gets the one id.

use std::time::Duration;

use tokio::time::timeout;

use crate::{Host, repeats};

/// Moments at which a call is given up: dense at first, where most steps are.
fn moments() -> impl Iterator<Item = Duration> {
    let count = repeats(20, 60) as u64;
    (0..count).map(move |step| Duration::from_micros(step * step * 120_000 / (count * count)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_pod_sandbox_given_up_and_repeated_gives_one_pod() {
    let host = Host::new().await;
    for (number, moment) in moments().enumerate() {
        let sandbox = host.pods.sandbox(&format!("pod{number}"));
        let first = timeout(moment, host.pods.run(&sandbox)).await;
        let second = match host.pods.run(&sandbox).await {
            Ok(id) => id,
            // The first answer was delivered after all: then, and only then, the repetition is told
            // who has the name.
            Err(status) => {
                let Ok(Ok(id)) = &first else {
                    panic!("given up after {moment:?}, repeated: {status}")
                };
                assert_eq!(status.code(), tonic::Code::AlreadyExists, "{status}");
                assert!(status.message().contains(id.as_str()), "{status}");
                id.clone()
            }
        };
        if let Ok(Ok(id)) = first {
            assert_eq!(id, second, "after {moment:?}");
        }
        assert_eq!(
            host.pods.pods().await.unwrap(),
            [second.clone()],
            "after {moment:?}"
        );
        host.pods.stop_pod(&second).await.unwrap();
        host.pods.remove_pod(&second).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn create_container_given_up_and_repeated_gives_one_container() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("pod");
    let pod = host.pods.run(&sandbox).await.unwrap();
    for (number, moment) in moments().enumerate() {
        let moment = moment / 2;
        let config = host
            .pods
            .container(&format!("c{number}"), &["sleep", "1000"]);
        let first = timeout(moment, host.pods.create(&pod, &config, &sandbox)).await;
        let second = match host.pods.create(&pod, &config, &sandbox).await {
            Ok(id) => id,
            Err(status) => {
                let Ok(Ok(id)) = &first else {
                    panic!("given up after {moment:?}, repeated: {status}")
                };
                assert_eq!(status.code(), tonic::Code::AlreadyExists, "{status}");
                assert!(status.message().contains(id.as_str()), "{status}");
                id.clone()
            }
        };
        let ids: Vec<String> = host
            .pods
            .containers()
            .await
            .unwrap()
            .into_iter()
            .map(|container| container.id)
            .collect();
        assert_eq!(ids, [second.clone()], "after {moment:?}");
        host.pods.start(&second).await.unwrap();
        host.pods.remove(&second).await.unwrap();
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pull_image_given_up_and_repeated_gives_one_image() {
    let host = Host::without_image().await;
    for moment in moments() {
        let _given_up = timeout(moment, host.pods.pull(crisp_harness::suite::BUSYBOX)).await;
        let id = host.pods.pull(crisp_harness::suite::BUSYBOX).await.unwrap();
        let images = host
            .pods
            .cri
            .image
            .clone()
            .list_images(crisp_harness::cri::v1::ListImagesRequest::default())
            .await
            .unwrap()
            .into_inner()
            .images;
        let ids: Vec<&str> = images
            .iter()
            .map(|image| image.id.as_str())
            .filter(|&listed| listed == id)
            .collect();
        assert_eq!(ids.len(), 1, "after {moment:?}: {images:?}");
        host.pods.remove_image(&id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_request_sent_by_many_at_once_gives_one_pod() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("many");
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (pods, sandbox) = (host.pods.clone(), sandbox.clone());
        calls.spawn(async move { pods.run(&sandbox).await });
    }
    let answers = calls.join_all().await;
    let ids: std::collections::BTreeSet<&String> = answers
        .iter()
        .filter_map(|answer| answer.as_ref().ok())
        .collect();
    assert_eq!(ids.len(), 1, "{answers:?}");
    for status in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert_eq!(status.code(), tonic::Code::AlreadyExists, "{status}");
    }
    host.pods.remove_all().await.unwrap();
}
