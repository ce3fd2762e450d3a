//! The journal as a place for lines. Its protocol is `tracing-journald`'s; whether it is there, we look ourselves,
//! as that says nothing of a line that nobody took.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use tracing::field::{Field, Value};
use tracing::{Event, Level, Metadata};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::Registry;

use crate::writer::{Line, Place};

/// Where journald listens; `tracing-journald` knows no other place.
pub(crate) const SOCKET: &str = "/run/systemd/journal/socket";
/// Fields of one event that go into the journal by themselves; the message has all of them.
const FIELDS_MAX: usize = 32;

#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    program: &'static str,
    filter: String,
    /// Connected again and again, and never written to.
    probe: UnixDatagram,
    /// Made when the journal is there for the first time.
    dispatch: Option<tracing::Dispatch>,
}

impl Journal {
    pub(crate) fn new(path: &Path, program: &'static str, filter: &str) -> io::Result<Journal> {
        Ok(Journal {
            path: path.to_owned(),
            program,
            filter: filter.to_owned(),
            probe: UnixDatagram::unbound()?,
            dispatch: None,
        })
    }

    /// Whether somebody listens at the journal's socket. Does not block.
    pub(crate) fn look(&self) -> io::Result<()> {
        self.probe.connect(&self.path)
    }

    /// Makes what speaks the protocol. May block.
    fn open(&self) -> io::Result<tracing::Dispatch> {
        // The numbers that process 1 uses for the same levels.
        let priorities = PriorityMappings {
            info: Priority::Informational,
            debug: Priority::Debug,
            ..PriorityMappings::new()
        };
        let journal = tracing_journald::layer()?
            .with_syslog_identifier(self.program.to_owned())
            .with_priority_mappings(priorities);
        // Without the filter every event of every library would be asked for, of which most are thrown away.
        let filter = EnvFilter::new(format!("{},logging=trace", self.filter));
        Ok(Registry::default().with(filter).with(journal).into())
    }
}

impl Place for Journal {
    fn name(&self) -> &'static str {
        "the journal"
    }

    fn write(&mut self, line: &Line) -> bool {
        if self.look().is_err() {
            return false;
        }
        if self.dispatch.is_none() {
            self.dispatch = self.open().ok();
        }
        let Some(dispatch) = &self.dispatch else {
            return false;
        };
        tracing::dispatcher::with_default(dispatch, || match line.metadata {
            Some(metadata) => repeat(line, metadata),
            None => say(line),
        });
        // One that ended while the line was on its way may not have it. Twice is better than never.
        self.look().is_ok()
    }
}

/// The event once more, with the place that it came from and its fields; its message is the whole line.
fn repeat(line: &Line, metadata: &'static Metadata<'static>) {
    let fields = metadata.fields();
    let Some(message) = fields.field("message") else {
        say(line);
        return;
    };
    let text = line.text.as_str();
    let values: Vec<&str> = line
        .fields
        .iter()
        .map(|(_, value)| value.as_str())
        .collect();
    let mut set: [(&Field, Option<&dyn Value>); FIELDS_MAX] = [(&message, None); FIELDS_MAX];
    set[0] = (&message, Some(&text));
    let named = line.fields.iter().zip(&values);
    for (place, ((field, _), value)) in set[1..].iter_mut().zip(named) {
        *place = (field, Some(value));
    }
    Event::dispatch(metadata, &fields.value_set(&set));
}

/// A line that is no event, or one without a message.
fn say(line: &Line) {
    let Line { target, text, .. } = line;
    match line.level {
        Level::ERROR => tracing::error!(area = target, "{text}"),
        Level::WARN => tracing::warn!(area = target, "{text}"),
        Level::INFO => tracing::info!(area = target, "{text}"),
        Level::DEBUG => tracing::debug!(area = target, "{text}"),
        Level::TRACE => tracing::trace!(area = target, "{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_comes_goes_and_comes_back_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let journal = Journal::new(&path, "test", "info").unwrap();
        assert!(journal.look().is_err());
        for _ in 0..2 {
            let there = UnixDatagram::bind(&path).unwrap();
            assert!(journal.look().is_ok());
            drop(there);
            assert!(journal.look().is_err(), "its file alone is no journal");
            std::fs::remove_file(&path).unwrap();
        }
    }
}
