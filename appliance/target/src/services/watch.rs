//! The stream of changes.

use std::pin::Pin;

use api::v1::watch_service_server::WatchService;
use api::v1::{Event, EventType, WatchRequest};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Answer, Services};
use crate::error::ControlError;
use crate::events::now_unix_ms;

/// Kinds in events.
const KINDS: [&str; 12] = [
    "node",
    "transport",
    "bdev",
    "pool",
    "volume",
    "snapshot",
    "operation",
    "subsystem",
    "namespace",
    "listener",
    "host",
    "controller",
];

/// Events on their way to one reader; the rest waits in the broadcast.
const BUFFER: usize = 64;

#[tonic::async_trait]
impl WatchService for Services {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        let WatchRequest {
            kinds,
            after_revision,
        } = request.into_inner();
        if let Some(kind) = kinds.iter().find(|kind| !KINDS.contains(&kind.as_str())) {
            let problem = format!("{kind:?} is not one of {}", KINDS.join(", "));
            return Err(ControlError::field("the request", "kinds", problem).into());
        }
        let (past, mut live, revision) = self.control.events(|events, model| {
            let (past, live) = events.watch(after_revision)?;
            Ok::<_, ControlError>((past, live, model.revision()))
        })?;
        let (sender, stream) = mpsc::channel(BUFFER);
        tokio::spawn(async move {
            let is_wanted = |event: &Event| kinds.is_empty() || kinds.contains(&event.kind);
            let synced = mark(EventType::Synced, revision);
            for event in past.into_iter().filter(is_wanted).chain([synced]) {
                if sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            loop {
                let event = tokio::select! {
                    event = live.recv() => event,
                    () = sender.closed() => return,
                };
                let event = match event {
                    Ok(event) if is_wanted(&event) => event,
                    Ok(_) => continue,
                    Err(RecvError::Lagged(_)) => mark(EventType::Lost, 0),
                    Err(RecvError::Closed) => return,
                };
                if sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

fn mark(event_type: EventType, revision: u64) -> Event {
    Event {
        r#type: event_type.into(),
        revision,
        time_unix_ms: now_unix_ms(),
        ..Event::default()
    }
}
