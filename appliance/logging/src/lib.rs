//! The log of a program: events are formatted where they happen, queued, and written by threads of their own.
//!
//! What it is: [`Log::start`] takes the events of the whole process and brings them to standard error, to the
//! journal (systemd-journald), or to both ([`LogTo`]). Each of the two has a queue and a thread: the journal may
//! stand still (its clients block once its queue is full), be full, come late or come back; a pipe may have no
//! reader. Neither holds up the thread that logs, or the other place. What a queue has no room for is counted and
//! told in both places.
//!
//! What it is not: it keeps nothing on a disk, and it is not for the I/O path, which logs nothing.
//!
//! An event that comes too often is let through ten times a second; what was left out is told with the next one.
//! Threading: everything but the writers is called from any thread and does not block. Errors: [`LogError`].

mod journal;
mod layer;
mod rfc3339;
mod stderr;
mod writer;

use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::{EnvFilter, reload};

use crate::journal::Journal;
use crate::layer::QueueLayer;
use crate::stderr::Stderr;
use crate::writer::{Place, Queue, Writer};

pub use crate::layer::chain;
pub use crate::rfc3339::civil;

/// Where the log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum LogTo {
    /// The journal when this process was started by systemd (`JOURNAL_STREAM`), else standard error.
    #[default]
    Auto,
    /// The journal of systemd.
    Journald,
    /// Standard error.
    Stderr,
    /// Standard error at once and without times, for whoever reads it puts them; and the journal when it is
    /// there. For a service of process 1 of the appliance.
    Both,
}

impl FromStr for LogTo {
    type Err = String;

    fn from_str(text: &str) -> Result<LogTo, String> {
        match text {
            "auto" => Ok(LogTo::Auto),
            "journald" => Ok(LogTo::Journald),
            "stderr" => Ok(LogTo::Stderr),
            "both" => Ok(LogTo::Both),
            _ => Err(format!("{text:?} must be auto, journald, stderr or both")),
        }
    }
}

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
    queues: Vec<Queue>,
    _filter: reload::Handle<EnvFilter, Registry>,
}

impl Log {
    /// Sets up logging for the whole process. `program` is its name in the journal.
    ///
    /// # Errors
    /// A wrong filter, no journal though it alone was asked for, or a second call.
    pub fn start(program: &'static str, filter: &str, to: LogTo) -> Result<Log, LogError> {
        let parsed = EnvFilter::try_new(filter).map_err(|error| LogError::Filter {
            filter: filter.to_owned(),
            problem: error.to_string(),
        })?;
        let places = places(program, filter, to)?;
        let mut queues = Vec::new();
        let mut writers = Vec::new();
        for (thread, place) in places {
            let (queue, writer) = Writer::new(place);
            queues.push(queue);
            writers.push((thread, writer));
        }
        for (at, (thread, writer)) in writers.into_iter().enumerate() {
            let mut others = queues.clone();
            others.remove(at);
            std::thread::Builder::new()
                .name(thread.to_owned())
                .spawn(move || writer.run(&others))
                .map_err(LogError::Thread)?;
        }
        let (filter, handle) = reload::Layer::new(parsed);
        let subscriber = Registry::default()
            .with(filter)
            .with(QueueLayer::new(queues.clone()));
        tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Twice)?;
        Ok(Log {
            queues,
            _filter: handle,
        })
    }

    /// Waits until everything logged so far is written, at most this long.
    pub fn flush(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        // All are asked before the first is waited for: one that stands still has the others write meanwhile.
        let asked: Vec<_> = self.queues.iter().filter_map(Queue::ask_flush).collect();
        for written in asked {
            let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        }
    }
}

type NamedPlace = (&'static str, Box<dyn Place>);

/// The places that lines go to, each with the name of its thread.
fn places(program: &'static str, filter: &str, to: LogTo) -> Result<Vec<NamedPlace>, LogError> {
    let stderr = |times| -> NamedPlace { ("log", Box::new(Stderr { times })) };
    let journal = || {
        let journal = Journal::new(Path::new(journal::SOCKET), program, filter);
        journal.map_err(LogError::Journal)
    };
    let boxed = |journal: Journal| -> NamedPlace { ("log_journal", Box::new(journal)) };
    // systemd sets this when it has connected standard error to the journal.
    let is_of_systemd = || std::env::var_os("JOURNAL_STREAM").is_some();
    match to {
        LogTo::Stderr => Ok(vec![stderr(true)]),
        LogTo::Both => Ok(vec![stderr(false), boxed(journal()?)]),
        LogTo::Journald => {
            let journal = journal()?;
            journal.look().map_err(LogError::Journal)?;
            Ok(vec![boxed(journal)])
        }
        LogTo::Auto if is_of_systemd() => match journal() {
            Ok(journal) if journal.look().is_ok() => Ok(vec![boxed(journal)]),
            _ => Ok(vec![stderr(true)]),
        },
        LogTo::Auto => Ok(vec![stderr(true)]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_names() {
        for (text, to) in [
            ("auto", LogTo::Auto),
            ("journald", LogTo::Journald),
            ("stderr", LogTo::Stderr),
            ("both", LogTo::Both),
        ] {
            assert_eq!(text.parse(), Ok(to));
        }
        assert!("paper".parse::<LogTo>().unwrap_err().contains("both"));
    }
}
