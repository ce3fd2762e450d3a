//! Where events come in: they are bounded, formatted and queued.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber, callsite};
use tracing_subscriber::layer::{Context, Layer};

use crate::writer::{Line, Queue};

/// Times that one event is let through in a window.
const BURST: u32 = 10;
const WINDOW: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct QueueLayer {
    queues: Vec<Queue>,
    /// One entry per place in the source that logs: bounded by the program.
    limits: Mutex<HashMap<callsite::Identifier, Limit>>,
}

#[derive(Debug)]
struct Limit {
    since: Instant,
    count: u32,
    left_out: u64,
}

impl Limit {
    fn new(now: Instant) -> Limit {
        Limit {
            since: now,
            count: 0,
            left_out: 0,
        }
    }

    /// Whether an event passes, and how many before it did not.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if now.duration_since(self.since) >= WINDOW {
            self.since = now;
            self.count = 0;
        }
        if self.count >= BURST {
            self.left_out += 1;
            return None;
        }
        self.count += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl QueueLayer {
    pub(crate) fn new(queues: Vec<Queue>) -> QueueLayer {
        QueueLayer {
            queues,
            limits: Mutex::default(),
        }
    }

    fn admit(&self, callsite: callsite::Identifier) -> Option<u64> {
        let now = Instant::now();
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = limits.entry(callsite).or_insert_with(|| Limit::new(now));
        limit.admit(now)
    }
}

impl<S: Subscriber> Layer<S> for QueueLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let Some(left_out) = self.admit(metadata.callsite()) else {
            return;
        };
        let mut text = Text::default();
        event.record(&mut text);
        let (mut text, fields) = text.finish();
        if left_out > 0 {
            let _ = write!(text, " ({left_out} like it before were left out)");
        }
        let line = Arc::new(Line {
            time: SystemTime::now(),
            level: *metadata.level(),
            target: metadata.target(),
            text,
            metadata: Some(metadata),
            fields,
        });
        for queue in &self.queues {
            queue.push(line.clone());
        }
    }
}

/// The message first, then `name=value` for each field; and the fields by themselves.
#[derive(Default)]
struct Text {
    message: String,
    named: String,
    fields: Vec<(Field, String)>,
}

impl Text {
    fn finish(mut self) -> (String, Vec<(Field, String)>) {
        self.message.push_str(&self.named);
        (self.message, self.fields)
    }

    fn add(&mut self, field: &Field, shown: &str, value: String) {
        let _ = write!(self.named, " {}={shown}", field.name());
        self.fields.push((field.clone(), value));
    }
}

impl Visit for Text {
    /// With its causes: an error does not repeat them.
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let text = chain(value);
        self.add(field, &text.clone(), text);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message.push_str(value),
            _ => self.add(field, &format!("{value:?}"), value.to_owned()),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.message.push_str(&text),
            _ => self.add(field, &text.clone(), text),
        }
    }
}

/// An error and its causes in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::registry::Registry;

    use super::*;
    use crate::writer::Message;

    #[test]
    fn an_event_that_comes_too_often_is_left_out_and_counted() {
        let start = Instant::now();
        let mut limit = Limit::new(start);
        for _ in 0..BURST {
            assert_eq!(limit.admit(start), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(limit.admit(start), None);
        }
        assert_eq!(limit.admit(start + WINDOW), Some(7));
        assert_eq!(limit.admit(start + WINDOW), Some(0));
    }

    #[derive(Debug, thiserror::Error)]
    #[error("the device cannot be used")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn an_error_is_told_with_its_causes() {
        let (queue, lines) = Queue::new(1);
        let subscriber = Registry::default().with(QueueLayer::new(vec![queue]));
        tracing::subscriber::with_default(subscriber, || {
            let error = Outer(std::io::Error::other("the peer is gone"));
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, pool = "tank", "it failed");
        });
        let Message::Line(line) = lines.try_recv().unwrap() else {
            panic!()
        };
        let cause = "the device cannot be used: the peer is gone";
        assert_eq!(line.text, format!("it failed error={cause} pool=\"tank\""));
        let fields: Vec<_> = line
            .fields
            .iter()
            .map(|(field, value)| (field.name(), value.as_str()))
            .collect();
        assert_eq!(fields, [("error", cause), ("pool", "tank")]);
    }

    #[test]
    fn a_full_queue_loses_lines_never_blocks_and_costs_the_other_nothing() {
        let (small, few) = Queue::new(1);
        let (large, all) = Queue::new(8);
        let layer = QueueLayer::new(vec![small.clone(), large.clone()]);
        let subscriber = Registry::default().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..3 {
                tracing::info!(number, "it happened");
            }
        });
        assert_eq!((small.take_lost(), large.take_lost()), (2, 0));
        let texts = |lines: std::sync::mpsc::Receiver<Message>| -> Vec<String> {
            lines
                .try_iter()
                .map(|message| match message {
                    Message::Line(line) => line.text.clone(),
                    Message::Flush(_) => panic!(),
                })
                .collect()
        };
        assert_eq!(texts(few), ["it happened number=0"]);
        assert_eq!(texts(all).len(), 3);
    }
}
