//! Events over the socket.

use std::time::Duration;

use crisp_harness::cri::v1::{
    ContainerEventResponse, ContainerEventType, ContainerState, GetEventsRequest, PodSandboxState,
};
use tonic::{Code, Streaming};

use crate::Host;

impl Host {
    async fn listen(&self) -> Streaming<ContainerEventResponse> {
        let mut runtime = self.pods.cri.runtime.clone();
        let events = runtime.get_container_events(GetEventsRequest {}).await;
        events.unwrap().into_inner()
    }
}

async fn next(events: &mut Streaming<ContainerEventResponse>) -> ContainerEventResponse {
    tokio::time::timeout(Duration::from_secs(60), events.message())
        .await
        .expect("an event comes")
        .unwrap()
        .expect("the stream stays open")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_listener_hears_a_life_in_its_order_with_the_state_of_the_pod() {
    let host = Host::new().await;
    let (mut one, mut two) = (host.listen().await, host.listen().await);
    let (pod, container) = host.running("heard", &["sleep", "1000"]).await;
    host.pods.stop(&container, 0).await.unwrap();
    host.pods.remove(&container).await.unwrap();
    host.pods.stop_pod(&pod).await.unwrap();
    host.pods.remove_pod(&pod).await.unwrap();
    use ContainerEventType::{
        ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted,
        ContainerStartedEvent as Started, ContainerStoppedEvent as Stopped,
    };
    let ready = Some(PodSandboxState::SandboxReady);
    let not_ready = Some(PodSandboxState::SandboxNotready);
    let expected = [
        (&pod, Created, ready, None),
        (&pod, Started, ready, None),
        (
            &container,
            Created,
            ready,
            Some(ContainerState::ContainerCreated),
        ),
        (
            &container,
            Started,
            ready,
            Some(ContainerState::ContainerRunning),
        ),
        (
            &container,
            Stopped,
            ready,
            Some(ContainerState::ContainerExited),
        ),
        (&container, Deleted, ready, None),
        (&pod, Stopped, not_ready, None),
        (&pod, Deleted, not_ready, None),
    ];
    let mut last = 0;
    for (id, kind, sandbox, state) in expected {
        let event = next(&mut one).await;
        assert_eq!(event, next(&mut two).await, "all hear the same");
        assert_eq!(
            (&event.container_id, event.container_event_type()),
            (id, kind)
        );
        assert!(event.created_at > last, "times grow");
        last = event.created_at;
        let status = event.pod_sandbox_status.unwrap();
        assert_eq!(status.metadata.as_ref().unwrap().name, "heard");
        assert_eq!(Some(status.state()), sandbox, "{kind:?}");
        let states: Vec<ContainerState> = event
            .containers_statuses
            .iter()
            .map(|status| status.state())
            .collect();
        assert_eq!(states, Vec::from_iter(state), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_program_is_heard_with_its_exit_code() {
    let host = Host::new().await;
    let mut events = host.listen().await;
    let (_pod, container) = host.running("ends", &["sh", "-c", "exit 7"]).await;
    loop {
        let event = next(&mut events).await;
        if event.container_event_type() == ContainerEventType::ContainerStoppedEvent {
            assert_eq!(event.container_id, container);
            assert_eq!(event.containers_statuses[0].exit_code, 7);
            break;
        }
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_is_lost_under_load_and_a_listener_does_not_keep_the_daemon_up() {
    let mut host = Host::new().await;
    let mut events = host.listen().await;
    let lives = (0..8).map(|number| {
        let pods = host.pods.clone();
        async move {
            let sandbox = pods.sandbox(&format!("busy{number}"));
            let pod = pods.run(&sandbox).await.unwrap();
            let config = pods.container("c", &["sleep", "1000"]);
            pods.launch(&pod, &config, &sandbox).await.unwrap();
            pods.stop_pod(&pod).await.unwrap();
            pods.remove_pod(&pod).await.unwrap();
        }
    });
    let lives: Vec<_> = lives.map(tokio::spawn).collect();
    let mut heard = std::collections::BTreeMap::<String, Vec<i32>>::new();
    // Eight pods with a container each, four events apiece.
    for _ in 0..8 * 2 * 4 {
        let event = next(&mut events).await;
        let of = heard.entry(event.container_id).or_default();
        of.push(event.container_event_type);
    }
    for life in lives {
        life.await.unwrap();
    }
    assert_eq!(heard.len(), 16);
    assert!(
        heard.values().all(|kinds| *kinds == [0, 1, 2, 3]),
        "{heard:?}"
    );
    let took = host.daemon.stop(Duration::from_secs(10)).unwrap();
    assert!(
        took.is_some_and(|took| took < Duration::from_secs(1)),
        "{took:?}"
    );
    let end = events
        .message()
        .await
        .expect_err("the stream has an end with a reason");
    assert_eq!(end.code(), Code::Unavailable, "{end}");
}
