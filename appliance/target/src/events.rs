//! The stream of changes: a short memory and a broadcast.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use api::v1::{Event, EventType};
use tokio::sync::broadcast;

use crate::error::ControlError;

/// Events kept for readers that come later, and those that a slow reader may lag behind.
pub const KEPT: usize = 4096;

/// Events as they happen.
#[derive(Debug)]
pub struct Events {
    kept: VecDeque<Event>,
    /// Revision before the oldest event that is kept.
    oldest: u64,
    sender: broadcast::Sender<Event>,
}

impl Events {
    /// Nothing has happened yet; `revision` is where the state stands.
    #[must_use]
    pub fn new(revision: u64) -> Events {
        Events {
            kept: VecDeque::new(),
            oldest: revision,
            sender: broadcast::Sender::new(KEPT),
        }
    }

    /// Tells everybody.
    pub fn publish(
        &mut self,
        event_type: EventType,
        revision: u64,
        kind: &str,
        name: String,
        text: String,
    ) {
        let event = Event {
            r#type: event_type.into(),
            revision,
            time_unix_ms: now_unix_ms(),
            kind: kind.to_owned(),
            name,
            text,
        };
        if self.kept.len() == KEPT
            && let Some(gone) = self.kept.pop_front()
        {
            self.oldest = gone.revision;
        }
        self.kept.push_back(event.clone());
        // An error means that nobody listens now.
        let _ = self.sender.send(event);
    }

    /// The events after a revision, and those to come.
    ///
    /// # Errors
    /// When events that old are no longer kept.
    pub fn watch(
        &self,
        after: Option<u64>,
    ) -> Result<(Vec<Event>, broadcast::Receiver<Event>), ControlError> {
        let past = match after {
            None => Vec::new(),
            Some(asked) if asked < self.oldest => {
                return Err(ControlError::EventsGone {
                    asked,
                    oldest: self.oldest,
                });
            }
            Some(asked) => self
                .kept
                .iter()
                .filter(|event| event.revision > asked)
                .cloned()
                .collect(),
        };
        Ok((past, self.sender.subscribe()))
    }
}

/// Milliseconds since 1970-01-01 UTC.
pub(crate) fn now_unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(events: &mut Events, revision: u64) {
        events.publish(
            EventType::Created,
            revision,
            "bdev",
            format!("b{revision}"),
            String::new(),
        );
    }

    #[test]
    fn events_after_a_revision_are_replayed() {
        let mut events = Events::new(10);
        for revision in 11..=13 {
            publish(&mut events, revision);
        }
        let (past, mut live) = events.watch(Some(11)).unwrap();
        assert_eq!(
            past.iter().map(|e| e.revision).collect::<Vec<_>>(),
            [12, 13]
        );
        assert!(live.try_recv().is_err());
        publish(&mut events, 14);
        assert_eq!(live.try_recv().unwrap().revision, 14);
        assert!(events.watch(None).unwrap().0.is_empty());
    }

    #[test]
    fn events_too_old_are_refused() {
        let mut events = Events::new(10);
        assert!(matches!(
            events.watch(Some(9)),
            Err(ControlError::EventsGone {
                asked: 9,
                oldest: 10
            })
        ));
        for revision in 11..11 + KEPT as u64 + 5 {
            publish(&mut events, revision);
        }
        assert!(events.watch(Some(14)).is_err());
        assert_eq!(events.watch(Some(15)).unwrap().0.len(), KEPT);
    }
}
