//! What a service printed: the newest lines, within a bound.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Longest line in bytes; the rest is cut.
pub(crate) const LINE_BYTES_MAX: usize = 4096;
/// Most bytes that a ring keeps.
pub(crate) const RING_BYTES_MAX: usize = 256 << 10;

/// A line that a service printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Its number; each is one more than the one before, over restarts of the service.
    pub seq: u64,
    /// When it was read, in ms since 1970.
    pub unix_ms: i64,
    /// The text.
    pub text: String,
}

/// The newest lines of a service.
#[derive(Debug)]
pub(crate) struct Ring {
    lines: VecDeque<Line>,
    bytes: usize,
    bytes_max: usize,
    next_seq: u64,
    /// A line whose end has not come yet.
    part: Vec<u8>,
    /// The rest of a line that is too long is thrown away.
    cutting: bool,
}

impl Ring {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            lines: VecDeque::new(),
            bytes: 0,
            bytes_max,
            next_seq: 1,
            part: Vec::new(),
            cutting: false,
        }
    }

    /// Takes what was read from the pipe; the lines that are whole now.
    pub(crate) fn feed(&mut self, bytes: &[u8], unix_ms: i64) -> Vec<String> {
        let mut whole = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            if !self.cutting {
                let room = LINE_BYTES_MAX - self.part.len();
                self.part.extend_from_slice(&text[..text.len().min(room)]);
                self.cutting = text.len() > room;
            }
            if ends {
                whole.extend(self.finish(unix_ms));
            }
        }
        whole
    }

    /// The service has ended: what it printed last is a line without its end.
    pub(crate) fn finish(&mut self, unix_ms: i64) -> Option<String> {
        let cut = std::mem::take(&mut self.cutting);
        let part = std::mem::take(&mut self.part);
        // Escape sequences of a service would reach the console.
        let mut text: String = String::from_utf8_lossy(&part)
            .trim_end()
            .chars()
            .map(|each| {
                if each.is_control() && each != '\t' {
                    '?'
                } else {
                    each
                }
            })
            .collect();
        if cut {
            text.push_str(" [cut]");
        }
        if text.is_empty() {
            return None;
        }
        self.push(text.clone(), unix_ms);
        Some(text)
    }

    /// Adds a line; the oldest go.
    pub(crate) fn push(&mut self, text: String, unix_ms: i64) {
        // An entry costs more than its text.
        const ENTRY: usize = 48;
        self.bytes += text.len() + ENTRY;
        self.lines.push_back(Line {
            seq: self.next_seq,
            unix_ms,
            text,
        });
        self.next_seq += 1;
        while self.bytes > self.bytes_max
            && let Some(old) = self.lines.pop_front()
        {
            self.bytes -= old.text.len() + ENTRY;
        }
    }

    /// Lines after number `after`, the oldest first, `max` at most; and how many of them are gone.
    pub(crate) fn after(&self, after: u64, max: usize) -> (Vec<Line>, u64) {
        let first = self.lines.front().map_or(self.next_seq, |line| line.seq);
        let lost = first.saturating_sub(after.saturating_add(1));
        let newer = self.lines.iter().filter(|line| line.seq > after);
        (newer.take(max).cloned().collect(), lost)
    }

    /// The last lines.
    pub(crate) fn last(&self, count: usize) -> Vec<&str> {
        let skipped = self.lines.len().saturating_sub(count);
        let last = self.lines.iter().skip(skipped);
        last.map(|line| line.text.as_str()).collect()
    }
}

/// So many at once, and so many a second over time.
#[derive(Debug, Clone)]
pub(crate) struct Rate {
    burst: u64,
    per_second: u64,
    tokens_milli: u64,
    last_ms: u64,
    dropped: u64,
}

impl Rate {
    pub(crate) fn new(burst: u64, per_second: u64) -> Self {
        Self {
            burst,
            per_second,
            tokens_milli: burst * 1000,
            last_ms: 0,
            dropped: 0,
        }
    }

    /// Whether one more may pass, and how many did not since the last that did.
    pub(crate) fn pass(&mut self, now_ms: u64) -> Option<u64> {
        let passed_ms = now_ms.saturating_sub(self.last_ms);
        self.last_ms = self.last_ms.max(now_ms);
        let more = passed_ms.saturating_mul(self.per_second);
        self.tokens_milli = self
            .tokens_milli
            .saturating_add(more)
            .min(self.burst * 1000);
        if self.tokens_milli < 1000 {
            self.dropped += 1;
            return None;
        }
        self.tokens_milli -= 1000;
        Some(std::mem::take(&mut self.dropped))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_come_whole_whatever_the_pieces() {
        let mut ring = Ring::new(RING_BYTES_MAX);
        assert_eq!(ring.feed(b"one\ntw", 1), ["one"]);
        assert_eq!(ring.feed(b"o\n\nthr", 2), ["two"]);
        assert_eq!(ring.finish(3).as_deref(), Some("thr"));
        assert_eq!(ring.last(2), ["two", "thr"]);
        let (lines, lost) = ring.after(1, 10);
        assert_eq!((lines.len(), lost, lines[0].seq), (2, 0, 2));
    }

    #[test]
    fn a_line_without_end_is_cut_and_escapes_are_taken_out() {
        let mut ring = Ring::new(RING_BYTES_MAX);
        assert!(ring.feed(&vec![b'x'; LINE_BYTES_MAX + 7], 0).is_empty());
        assert!(ring.feed(&vec![b'x'; 1 << 20], 0).is_empty());
        let lines = ring.feed(b"y\n\x1b[2Jhello\n", 0);
        assert_eq!(lines[0].len(), LINE_BYTES_MAX + " [cut]".len());
        assert_eq!(lines[1], "?[2Jhello");
    }

    #[test]
    fn a_reader_that_is_slow_is_told_how_many_lines_it_lost() {
        let mut ring = Ring::new(1000);
        for number in 0..100 {
            ring.push(format!("line {number}"), 0);
        }
        let (lines, lost) = ring.after(10, 1000);
        assert_eq!(lines[0].seq, 11 + lost);
        assert!(lost > 50 && lines.len() < 25);
        assert_eq!(lines.last().unwrap().text, "line 99");
    }

    #[test]
    fn a_rate_lets_a_burst_and_then_so_many_a_second() {
        let mut rate = Rate::new(3, 2);
        let passed = (0..10).filter(|_| rate.pass(1000).is_some()).count();
        assert_eq!(passed, 3);
        assert_eq!(rate.pass(1499), None);
        assert_eq!(rate.pass(1501), Some(8));
        assert_eq!(rate.pass(0), None, "time does not go back");
    }

    proptest! {
        #[test]
        fn a_ring_stays_within_its_bound(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 0..40)) {
            let mut ring = Ring::new(4096 + LINE_BYTES_MAX);
            for piece in pieces {
                ring.feed(&piece, 0);
                prop_assert!(ring.bytes <= 4096 + LINE_BYTES_MAX);
                prop_assert!(ring.part.len() <= LINE_BYTES_MAX);
            }
        }
    }
}
