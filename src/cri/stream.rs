//! Answers that come in parts: lists in batches, and events as they happen.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, stream};
use prost::Message;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tonic::Status;

use super::{convert::render, proto, views};
use crate::events::{Event, EventKind, Events};

/// Bytes of a batch. A client takes 16 MiB in one message; what is larger than this alone is a batch
/// of its own.
const BATCH: usize = 1024 * 1024;
/// Most items of a batch.
const ITEMS: usize = 256;

/// What a streaming method answers.
pub type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The items in batches, each item once, and then the end.
pub fn batches<T: Message + 'static, R: Send + 'static>(
    items: Vec<T>,
    wrap: fn(Vec<T>) -> R,
) -> Items<R> {
    let batches = split(items).into_iter().map(move |batch| Ok(wrap(batch)));
    Box::pin(stream::iter(batches))
}

fn split<T: Message>(items: Vec<T>) -> Vec<Vec<T>> {
    let mut batches = Vec::<Vec<T>>::new();
    let mut bytes = 0;
    for item in items {
        let length = item.encoded_len();
        match batches.last_mut() {
            Some(batch) if bytes + length <= BATCH && batch.len() < ITEMS => {
                bytes += length;
                batch.push(item);
            }
            _ => {
                bytes = length;
                batches.push(vec![item]);
            }
        }
    }
    batches
}

/// What happens from now on, until the client goes, the daemon ends, or the client falls so far
/// behind that events were lost for it.
///
/// # Errors
/// The daemon is ending.
pub fn events(events: &Events) -> Result<Items<proto::ContainerEventResponse>, Status> {
    Ok(told(events.listen().ok_or_else(ending)?))
}

fn told(listener: Receiver<Arc<Event>>) -> Items<proto::ContainerEventResponse> {
    Box::pin(stream::unfold(Some(listener), |listener| async {
        let mut listener = listener?;
        Some(match next(&mut listener).await {
            Ok(event) => (Ok(event), Some(listener)),
            // The last word: a gap must not go unnoticed.
            Err(status) => (Err(status), None),
        })
    }))
}

async fn next(
    listener: &mut Receiver<Arc<Event>>,
) -> Result<proto::ContainerEventResponse, Status> {
    match listener.recv().await {
        Ok(event) => Ok(response(&event)),
        Err(RecvError::Closed) => Err(ending()),
        Err(RecvError::Lagged(lost)) => Err(Status::resource_exhausted(format!(
            "client fell behind and lost {lost} events: list everything and listen again"
        ))),
    }
}

fn ending() -> Status {
    Status::unavailable("the daemon is shutting down")
}

fn response(event: &Event) -> proto::ContainerEventResponse {
    let kind = match event.kind {
        EventKind::Created => proto::ContainerEventType::ContainerCreatedEvent,
        EventKind::Started => proto::ContainerEventType::ContainerStartedEvent,
        EventKind::Stopped => proto::ContainerEventType::ContainerStoppedEvent,
        EventKind::Deleted => proto::ContainerEventType::ContainerDeletedEvent,
    };
    let id = match &event.container {
        Some(container) => container.to_string(),
        None => event.sandbox.to_string(),
    };
    let (sandbox, containers) = match &event.pod {
        None => (None, Vec::new()),
        Some(pod) => {
            let sandbox = views::sandbox_as(&pod.sandbox, &pod.published);
            let containers = pod.containers.iter();
            let statuses = containers.map(|seen| {
                let view = views::container_as(&seen.container, &seen.state, &seen.resources);
                render::container_status(&view)
            });
            (Some(render::sandbox_status(&sandbox)), statuses.collect())
        }
    };
    proto::ContainerEventResponse {
        container_id: id,
        container_event_type: kind.into(),
        created_at: event.at,
        pod_sandbox_status: sandbox,
        containers_statuses: containers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_that_falls_behind_hears_how_far_and_nothing_more() {
        use futures_util::StreamExt;
        let (sender, listener) = tokio::sync::broadcast::channel(2);
        let sandbox = crate::id::SandboxId::random();
        let event = |at| Event {
            kind: EventKind::Started,
            container: None,
            sandbox: sandbox.clone(),
            at,
            pod: None,
        };
        let mut events = told(listener);
        assert!(sender.send(Arc::new(event(1))).is_ok());
        let heard = events.next().await.unwrap().unwrap();
        assert_eq!(
            (heard.created_at, &*heard.container_id),
            (1, sandbox.as_str())
        );
        for at in 2..7 {
            assert!(sender.send(Arc::new(event(at))).is_ok());
        }
        let end = events.next().await.unwrap().unwrap_err();
        assert_eq!(end.code(), tonic::Code::ResourceExhausted);
        assert!(end.message().contains("lost 3 events"), "{end}");
        assert!(events.next().await.is_none());
    }

    fn image(id: usize, bytes: usize) -> proto::Image {
        proto::Image {
            id: id.to_string(),
            username: "u".repeat(bytes),
            ..proto::Image::default()
        }
    }

    #[test]
    fn batches_are_bounded_and_hold_each_item_once_in_order() {
        for (count, bytes, batches) in [
            (0, 0, 0),
            (1, 0, 1),
            (ITEMS, 0, 1),
            (ITEMS + 1, 0, 2),
            (3, BATCH / 2 + 1, 3),
            (2, BATCH * 3, 2),
        ] {
            let items = (0..count).map(|id| image(id, bytes)).collect();
            let split = split(items);
            assert_eq!(split.len(), batches, "{count} of {bytes}");
            assert!(split.iter().all(|batch| !batch.is_empty()));
            let ids: Vec<String> = split.into_iter().flatten().map(|image| image.id).collect();
            let expected: Vec<String> = (0..count).map(|id| id.to_string()).collect();
            assert_eq!(ids, expected);
        }
    }
}
