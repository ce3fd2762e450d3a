//! Time over the instants that the caller passes in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Things that are due one constant time after they were added, hence in the order of adding.
///
/// What no longer waits is not taken out: it is found out when it is due, or when the list is full.
#[derive(Debug)]
pub(crate) struct Timeouts<T> {
    timeout: Duration,
    entries: VecDeque<(Instant, T)>,
}

impl<T: Copy> Timeouts<T> {
    pub(crate) fn new(timeout_ms: u32) -> Self {
        Self {
            timeout: Duration::from_millis(timeout_ms.into()),
            entries: VecDeque::new(),
        }
    }

    /// Adds; `waits` says which of those added before still wait.
    pub(crate) fn add(&mut self, now: Instant, entry: T, waits: impl Fn(T) -> bool) {
        if self.entries.len() == self.entries.capacity() {
            self.entries.retain(|(_, entry)| waits(*entry));
        }
        self.entries.push_back((now + self.timeout, entry));
    }

    /// The next that is due, whether or not it still waits.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<T> {
        let (at, entry) = *self.entries.front()?;
        if at > now {
            return None;
        }
        self.entries.pop_front();
        Some(entry)
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.entries.front().map(|(at, _)| *at)
    }
}

/// So many in a second, as many saved up.
#[derive(Debug)]
pub(crate) struct Rate {
    interval: Duration,
    /// When everything would be saved up again.
    full_at: Option<Instant>,
}

impl Rate {
    pub(crate) fn new(per_s: u32) -> Self {
        Self {
            interval: Duration::from_secs(1) / per_s.max(1),
            full_at: None,
        }
    }

    /// Takes one, or tells when there will be one.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + self.interval;
        let latest = now + Duration::from_secs(1);
        if full_at > latest {
            return Err(now + (full_at - latest));
        }
        self.full_at = Some(full_at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_first_is_due_first() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut timeouts = Timeouts::new(10);
        timeouts.add(start, 1, |_| true);
        timeouts.add(after(5), 2, |_| true);
        assert_eq!(timeouts.next(), Some(after(10)));
        assert_eq!(timeouts.pop_due(after(9)), None);
        assert_eq!(timeouts.pop_due(after(14)), Some(1));
        assert_eq!(timeouts.pop_due(after(14)), None);
        assert_eq!(timeouts.pop_due(after(15)), Some(2));
        assert_eq!(timeouts.next(), None);
    }

    #[test]
    fn a_second_has_so_many() {
        let start = Instant::now();
        let mut rate = Rate::new(3);
        for _ in 0..3 {
            rate.take(start).unwrap();
        }
        let at = rate.take(start).unwrap_err();
        assert!(at > start);
        rate.take(at + Duration::from_millis(1)).unwrap();
    }
}
