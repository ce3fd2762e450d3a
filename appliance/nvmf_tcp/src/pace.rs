//! Time: rates and timeouts over the instants that the caller passes in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A token bucket: `rate_per_s` tokens a second, at most that many saved up.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    interval: Duration,
    /// When the bucket would be full again: each token taken moves it by one interval.
    full_at: Option<Instant>,
    burst: Duration,
}

impl TokenBucket {
    pub(crate) fn new(rate_per_s: u32) -> Self {
        let interval = Duration::from_secs(1) / rate_per_s.max(1);
        Self {
            interval,
            full_at: None,
            burst: interval * rate_per_s.max(1),
        }
    }

    /// Takes a token; or tells when there will be one.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + self.interval;
        if full_at > now + self.burst {
            return Err(full_at - self.burst);
        }
        self.full_at = Some(full_at);
        Ok(())
    }

    /// Gives back the token that was taken last.
    pub(crate) fn put_back(&mut self) {
        self.full_at = self.full_at.map(|at| at - self.interval);
    }
}

/// Things that are due one constant time after they were added, hence in the order of adding.
///
/// A thing that no longer waits is not taken out: whoever asks says which still wait.
#[derive(Debug)]
pub(crate) struct DeadlineQueue<T> {
    timeout: Duration,
    entries: VecDeque<(Instant, T)>,
}

impl<T: Copy> DeadlineQueue<T> {
    pub(crate) fn new(timeout_ms: u32) -> Self {
        Self {
            timeout: Duration::from_millis(u64::from(timeout_ms)),
            entries: VecDeque::new(),
        }
    }

    pub(crate) fn push(&mut self, now: Instant, entry: T, waits: impl Fn(T) -> bool) {
        // Bounds the queue by twice what waits, for a constant amortised cost.
        if self.entries.len() == self.entries.capacity() {
            self.entries.retain(|(_, entry)| waits(*entry));
            if self.entries.len() * 2 > self.entries.capacity() {
                self.entries.reserve(self.entries.capacity());
            }
        }
        self.entries.push_back((now + self.timeout, entry));
    }

    /// The next that is due.
    pub(crate) fn pop_due(&mut self, now: Instant, waits: impl Fn(T) -> bool) -> Option<T> {
        while let Some((at, entry)) = self.entries.front().copied() {
            let still_waits = waits(entry);
            if still_waits && at > now {
                return None;
            }
            self.entries.pop_front();
            if still_waits {
                return Some(entry);
            }
        }
        None
    }

    /// When the first is due. It is exact after [`DeadlineQueue::pop_due`] returned `None`.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.entries.front().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(10);
        for _ in 0..10 {
            bucket.take(start).unwrap();
        }
        let at = bucket.take(start).unwrap_err();
        assert_eq!(at, start + Duration::from_millis(100));
        bucket.take(at).unwrap();
        bucket.take(at).unwrap_err();
        // A long pause saves up one burst, not more.
        let later = start + Duration::from_secs(100);
        assert_eq!((0..20).filter(|_| bucket.take(later).is_ok()).count(), 10);
    }

    #[test]
    fn deadlines_come_in_order_and_skip_what_no_longer_waits() {
        let start = Instant::now();
        let mut queue = DeadlineQueue::new(100);
        for id in 0..4_u32 {
            queue.push(start + Duration::from_millis(u64::from(id)), id, |_| true);
        }
        let due = start + Duration::from_millis(102);
        assert_eq!(queue.pop_due(start, |id| id != 0), None);
        assert_eq!(queue.next(), Some(start + Duration::from_millis(101)));
        assert_eq!(queue.pop_due(due, |_| true), Some(1));
        assert_eq!(queue.pop_due(due, |_| true), Some(2));
        assert_eq!(queue.pop_due(due, |_| true), None);
        assert_eq!(queue.next(), Some(start + Duration::from_millis(103)));
    }

    #[test]
    fn a_queue_of_things_that_no_longer_wait_stays_small() {
        let now = Instant::now();
        let mut queue = DeadlineQueue::new(100);
        for id in 0..100_000_u32 {
            queue.push(now, id, |_| false);
        }
        assert!(queue.entries.capacity() < 64);
    }
}
