//! Standard error as a place for lines.

use std::io::Write as _;

use crate::rfc3339::Rfc3339;
use crate::writer::{Line, Place};

#[derive(Debug)]
pub(crate) struct Stderr {
    /// Whether each line begins with its time.
    pub(crate) times: bool,
}

impl Place for Stderr {
    fn name(&self) -> &'static str {
        "standard error"
    }

    fn write(&mut self, line: &Line) -> bool {
        let text = shown(line, self.times);
        // Where should an error of the log be logged?
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
        true
    }
}

fn shown(line: &Line, times: bool) -> String {
    let Line {
        time,
        level,
        target,
        text,
        ..
    } = line;
    if times {
        format!("{} {level:5} {target}: {text}\n", Rfc3339(*time))
    } else {
        format!("{level:5} {target}: {text}\n")
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use tracing::Level;

    use super::*;

    #[test]
    fn a_line_has_its_time_unless_the_reader_puts_it() {
        let line = Line {
            time: UNIX_EPOCH,
            level: Level::WARN,
            target: "agent::time",
            text: "late by_s=3".to_owned(),
            metadata: None,
            fields: Vec::new(),
        };
        assert_eq!(shown(&line, false), "WARN  agent::time: late by_s=3\n");
        assert_eq!(
            shown(&line, true),
            "1970-01-01T00:00:00.000Z WARN  agent::time: late by_s=3\n"
        );
    }
}
