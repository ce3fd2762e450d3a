//! The log: events are formatted where they happen, queued, and written by a thread of their own.
//!
//! Nothing here ever blocks the thread that logs: the journal may stand still (its clients block once
//! its queue is full), a pipe may have no reader. What the queue has no room for is counted and told.
//! An event that comes too often is let through ten times a second; what was left out is told with
//! the next one.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, callsite};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::{EnvFilter, reload};

use crate::config::LogTo;

/// Lines that may wait to be written.
const QUEUE_MAX: usize = 4096;
/// Times that one event is let through in a window.
const BURST: u32 = 10;
const WINDOW: Duration = Duration::from_secs(1);

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The filter is wrong.
    #[error("log filter {filter:?}: {problem}; write info, or info,target=debug")]
    Filter {
        /// As it was given.
        filter: String,
        /// What is wrong.
        problem: String,
    },
    /// There is no journal.
    #[error("the journal cannot be reached; log to stderr instead")]
    Journal(#[source] std::io::Error),
    /// No thread.
    #[error("cannot start the thread that writes the log")]
    Thread(#[source] std::io::Error),
    /// Somebody else logs already.
    #[error("logging is set up already")]
    Twice,
}

/// Keeps the log going; flushes it when asked.
#[derive(Debug)]
pub struct Log {
    queue: SyncSender<Message>,
    _filter: reload::Handle<EnvFilter, Registry>,
}

enum Message {
    Line(Line),
    Flush(SyncSender<()>),
}

struct Line {
    time: SystemTime,
    level: Level,
    target: &'static str,
    text: String,
}

impl Log {
    /// Sets up logging for the whole process.
    ///
    /// # Errors
    /// A wrong filter, no journal though it was asked for, or a second call.
    pub fn start(filter: &str, to: LogTo) -> Result<Log, LogError> {
        let wrong = |problem: String| LogError::Filter {
            filter: filter.to_owned(),
            problem,
        };
        let filter = EnvFilter::try_new(filter).map_err(|error| wrong(error.to_string()))?;
        let sink = Sink::open(to)?;
        let (queue, lines) = sync_channel(QUEUE_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let writer_lost = lost.clone();
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write(&lines, &sink, &writer_lost))
            .map_err(LogError::Thread)?;
        let (filter, handle) = reload::Layer::new(filter);
        let layer = QueueLayer {
            queue: queue.clone(),
            lost,
            limits: Mutex::default(),
        };
        let subscriber = Registry::default().with(filter).with(layer);
        tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Twice)?;
        Ok(Log {
            queue,
            _filter: handle,
        })
    }

    /// Waits until everything logged so far is written, at most this long.
    pub fn flush(&self, timeout: Duration) {
        let (done, wait) = sync_channel(1);
        if self.queue.try_send(Message::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(timeout);
        }
    }
}

struct QueueLayer {
    queue: SyncSender<Message>,
    lost: Arc<AtomicU64>,
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

impl<S: Subscriber> Layer<S> for QueueLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let now = Instant::now();
        let admitted = {
            let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = || Limit {
                since: now,
                count: 0,
                left_out: 0,
            };
            limits
                .entry(event.metadata().callsite())
                .or_insert_with(fresh)
                .admit(now)
        };
        let Some(left_out) = admitted else { return };
        let mut text = Text::default();
        event.record(&mut text);
        let mut text = text.finish();
        if left_out > 0 {
            let _ = write!(text, " ({left_out} like it before were left out)");
        }
        let line = Line {
            time: SystemTime::now(),
            level: *event.metadata().level(),
            target: event.metadata().target(),
            text,
        };
        if self.queue.try_send(Message::Line(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The message first, then `name=value` for each field.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn finish(mut self) -> String {
        self.message.push_str(&self.fields);
        self.message
    }
}

impl Visit for Text {
    /// With its causes: an error does not repeat them.
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let _ = write!(
            self.fields,
            " {}={}",
            field.name(),
            crate::error::chain(value)
        );
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

enum Sink {
    Journal(tracing::Dispatch),
    Stderr,
}

impl Sink {
    fn open(to: LogTo) -> Result<Sink, LogError> {
        // systemd sets this when it has connected standard error to the journal.
        let is_wanted = match to {
            LogTo::Journald => true,
            LogTo::Auto => std::env::var_os("JOURNAL_STREAM").is_some(),
            LogTo::Stderr => false,
        };
        if !is_wanted {
            return Ok(Sink::Stderr);
        }
        match tracing_journald::layer() {
            Ok(layer) => {
                let layer = layer.with_syslog_identifier("aditd".to_owned());
                Ok(Sink::Journal(Registry::default().with(layer).into()))
            }
            Err(_) if to == LogTo::Auto => Ok(Sink::Stderr),
            Err(error) => Err(LogError::Journal(error)),
        }
    }

    fn write(&self, line: &Line) {
        match self {
            Sink::Journal(journal) => tracing::dispatcher::with_default(journal, || {
                let Line { target, text, .. } = line;
                match line.level {
                    Level::ERROR => tracing::error!(area = target, "{text}"),
                    Level::WARN => tracing::warn!(area = target, "{text}"),
                    Level::INFO => tracing::info!(area = target, "{text}"),
                    Level::DEBUG => tracing::debug!(area = target, "{text}"),
                    Level::TRACE => tracing::trace!(area = target, "{text}"),
                }
            }),
            Sink::Stderr => {
                let time = Rfc3339(line.time);
                let text = format!("{time} {:5} {}: {}\n", line.level, line.target, line.text);
                // Where should an error of the log be logged?
                let _ = std::io::stderr().lock().write_all(text.as_bytes());
            }
        }
    }
}

fn write(messages: &Receiver<Message>, sink: &Sink, lost: &AtomicU64) {
    while let Ok(message) = messages.recv() {
        match message {
            Message::Line(line) => sink.write(&line),
            Message::Flush(done) => {
                let _ = done.try_send(());
            }
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            sink.write(&Line {
                time: SystemTime::now(),
                level: Level::WARN,
                target: "log",
                text: format!("{lost} lines were lost: the log was not written fast enough"),
            });
        }
    }
}

/// A time as RFC 3339 has it, in UTC with milliseconds.
struct Rfc3339(SystemTime);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let millis = since.subsec_millis();
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z"
        )
    }
}

/// Year, month and day of a count of days since 1970-01-01, in the Gregorian calendar. Years begin in
/// March here, so that the leap day is the last of a year.
pub(crate) fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // since 0000-03-01
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc() {
        let at = |seconds, millis: u32| {
            Rfc3339(UNIX_EPOCH + Duration::new(seconds, millis * 1_000_000)).to_string()
        };
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_399, 999), "2000-02-28T23:59:59.999Z");
        assert_eq!(at(951_782_400, 0), "2000-02-29T00:00:00.000Z");
        assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000Z");
        assert_eq!(at(1_795_217_602, 7), "2026-11-20T23:33:22.007Z");
    }

    #[test]
    fn an_event_that_comes_too_often_is_left_out_and_counted() {
        let start = Instant::now();
        let mut limit = Limit {
            since: start,
            count: 0,
            left_out: 0,
        };
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
        let (queue, lines) = sync_channel(1);
        let layer = QueueLayer {
            queue,
            lost: Arc::default(),
            limits: Mutex::default(),
        };
        tracing::subscriber::with_default(Registry::default().with(layer), || {
            let error = Outer(std::io::Error::other("the peer is gone"));
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "it failed");
        });
        let Message::Line(line) = lines.try_recv().unwrap() else {
            panic!()
        };
        let text = "it failed error=the device cannot be used: the peer is gone";
        assert_eq!(line.text, text);
    }

    #[test]
    fn a_full_queue_loses_lines_and_never_blocks() {
        let (queue, lines) = sync_channel(1);
        let lost = Arc::new(AtomicU64::new(0));
        let layer = QueueLayer {
            queue,
            lost: lost.clone(),
            limits: Mutex::default(),
        };
        let subscriber = Registry::default().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..3 {
                tracing::info!(number, "it happened");
            }
        });
        assert_eq!(lost.load(Ordering::Relaxed), 2);
        let Message::Line(line) = lines.try_recv().unwrap() else {
            panic!()
        };
        assert_eq!(line.text, "it happened number=0");
    }
}
