//! Statistics of a bdev: always on, written by one thread per channel, read by anyone at any time.
//!
//! Every counter is written by the channel's thread alone with relaxed stores and only ever grows,
//! so recording costs no locked instruction and reading pauses nothing. A reading taken while I/O
//! goes on may have counted an operation but not yet its bytes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::histogram::{AtomicHistogram, Histogram};
use crate::io::OpKind;

/// A counter that only its owner thread writes.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    #[inline]
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    #[inline]
    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    #[inline]
    fn add(&self, value: u64) {
        self.set(self.get().wrapping_add(value));
    }
}

#[derive(Debug, Default)]
struct KindCounters {
    ops: Counter,
    bytes: Counter,
    errors: Counter,
    latency_total_ns: Counter,
    latency_max_ns: Counter,
    /// Shortest latency plus 1, so that 0 can mean "none yet".
    latency_min_ns_plus_1: Counter,
    /// Made when the first operation of the kind ends: idle channels stay small.
    histogram: OnceLock<Box<AtomicHistogram>>,
}

/// Counters of one channel.
#[derive(Debug)]
pub(crate) struct ChannelStats {
    thread: Arc<str>,
    kinds: [KindCounters; OpKind::COUNT],
    in_flight: Counter,
    in_flight_max: Counter,
}

impl ChannelStats {
    fn new(thread: Arc<str>) -> Self {
        Self {
            thread,
            kinds: Default::default(),
            in_flight: Counter::default(),
            in_flight_max: Counter::default(),
        }
    }

    /// Counts an operation that ended. `bytes` is 0 for one that failed.
    #[inline]
    pub(crate) fn record(&self, kind: OpKind, bytes: u64, latency_ns: u64, failed: bool) {
        let counters = &self.kinds[kind.index()];
        counters.ops.add(1);
        counters.bytes.add(bytes);
        if failed {
            counters.errors.add(1);
        }
        counters
            .histogram
            .get_or_init(|| Box::new(AtomicHistogram::new()))
            .record(latency_ns);
        if latency_ns > 0 {
            counters.latency_total_ns.add(latency_ns);
            if latency_ns > counters.latency_max_ns.get() {
                counters.latency_max_ns.set(latency_ns);
            }
        }
        if latency_ns < counters.latency_min_ns_plus_1.get().wrapping_sub(1) {
            counters
                .latency_min_ns_plus_1
                .set(latency_ns.saturating_add(1));
        }
    }

    #[inline]
    pub(crate) fn set_in_flight(&self, in_flight: usize) {
        let in_flight = in_flight as u64;
        self.in_flight.set(in_flight);
        if in_flight > self.in_flight_max.get() {
            self.in_flight_max.set(in_flight);
        }
    }

    fn read(&self) -> ChannelReading {
        let mut reading = Reading::default();
        for (counters, kind) in self.kinds.iter().zip(&mut reading.kinds) {
            kind.ops = counters.ops.get();
            kind.bytes = counters.bytes.get();
            kind.errors = counters.errors.get();
            kind.latency_total_ns = counters.latency_total_ns.get();
            kind.latency_max_ns = counters.latency_max_ns.get();
            kind.latency_min_ns = counters.latency_min_ns_plus_1.get().checked_sub(1);
            if let Some(histogram) = counters.histogram.get() {
                histogram.add_to(&mut kind.histogram);
            }
        }
        reading.queue_depth = self.in_flight.get();
        reading.queue_depth_max = self.in_flight_max.get();
        ChannelReading {
            thread: Arc::clone(&self.thread),
            reading,
        }
    }
}

/// What was counted for one kind of operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KindReading {
    /// Operations that ended, failed ones included.
    pub ops: u64,
    /// Bytes read, written, compared or zeroed by those that succeeded.
    pub bytes: u64,
    /// Operations that failed. A compare that found a difference is not a failure.
    pub errors: u64,
    /// Sum of all latencies, ns. Over the time between two readings it is the mean queue depth.
    pub latency_total_ns: u64,
    /// Longest latency, ns.
    pub latency_max_ns: u64,
    /// Shortest latency, ns, once there was one.
    pub latency_min_ns: Option<u64>,
    /// Latencies, from submit to the poll that returned the completion.
    pub histogram: Histogram,
}

impl KindReading {
    fn merge(&mut self, other: &Self) {
        self.ops += other.ops;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.latency_total_ns = self.latency_total_ns.wrapping_add(other.latency_total_ns);
        self.latency_max_ns = self.latency_max_ns.max(other.latency_max_ns);
        self.latency_min_ns = match (self.latency_min_ns, other.latency_min_ns) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.histogram.merge(&other.histogram);
    }
}

/// Statistics of a bdev, or of one channel of it, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Per kind, indexed by [`OpKind::index`].
    pub kinds: [KindReading; OpKind::COUNT],
    /// I/Os in flight, those that wait for a limit included.
    pub queue_depth: u64,
    /// The most there ever were in one channel.
    pub queue_depth_max: u64,
}

impl Reading {
    /// The counts of one kind.
    #[must_use]
    pub fn kind(&self, kind: OpKind) -> &KindReading {
        &self.kinds[kind.index()]
    }

    /// Operations of all kinds.
    #[must_use]
    pub fn ops(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.ops).sum()
    }

    /// Errors of all kinds.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.errors).sum()
    }

    /// Adds another reading: that of another channel or another device.
    pub fn merge(&mut self, other: &Self) {
        for (sum, kind) in self.kinds.iter_mut().zip(&other.kinds) {
            sum.merge(kind);
        }
        self.queue_depth += other.queue_depth;
        self.queue_depth_max = self.queue_depth_max.max(other.queue_depth_max);
    }

    /// What was counted since `earlier`. Minima, maxima and queue depths stay those of the whole
    /// life: a counter that a reader can reset would lie to the other readers.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut difference = self.clone();
        for (kind, old) in difference.kinds.iter_mut().zip(&earlier.kinds) {
            kind.ops = kind.ops.saturating_sub(old.ops);
            kind.bytes = kind.bytes.saturating_sub(old.bytes);
            kind.errors = kind.errors.saturating_sub(old.errors);
            kind.latency_total_ns = kind.latency_total_ns.wrapping_sub(old.latency_total_ns);
            kind.histogram = kind.histogram.since(&old.histogram);
        }
        difference
    }
}

/// Statistics of one open channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelReading {
    /// Name of the thread that opened the channel.
    pub thread: Arc<str>,
    /// Its counts.
    pub reading: Reading,
}

/// All channels' statistics of one bdev.
#[derive(Debug, Default)]
pub(crate) struct DeviceStats {
    /// Locked when a channel opens or closes and when someone reads; never per I/O.
    state: Mutex<DeviceState>,
}

#[derive(Debug, Default)]
struct DeviceState {
    open: Vec<Arc<ChannelStats>>,
    closed: Reading,
}

impl DeviceStats {
    fn lock(&self) -> MutexGuard<'_, DeviceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn open_channel(&self, thread: &Arc<str>) -> Arc<ChannelStats> {
        let stats = Arc::new(ChannelStats::new(Arc::clone(thread)));
        self.lock().open.push(Arc::clone(&stats));
        stats
    }

    /// Moves a channel's counts to the total of closed ones.
    pub(crate) fn close_channel(&self, stats: &Arc<ChannelStats>) {
        let mut state = self.lock();
        state.open.retain(|open| !Arc::ptr_eq(open, stats));
        let mut last = stats.read().reading;
        last.queue_depth = 0;
        state.closed.merge(&last);
    }

    pub(crate) fn total(&self) -> Reading {
        let state = self.lock();
        let mut total = state.closed.clone();
        for stats in &state.open {
            total.merge(&stats.read().reading);
        }
        total
    }

    pub(crate) fn channels(&self) -> Vec<ChannelReading> {
        self.lock().open.iter().map(|stats| stats.read()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_a_closed_channel_stay_in_the_total() {
        let device = DeviceStats::default();
        let first = device.open_channel(&"reactor_0".into());
        let second = device.open_channel(&"reactor_1".into());
        first.record(OpKind::Read, 4096, 2_000, false);
        first.set_in_flight(3);
        second.record(OpKind::Read, 0, 5_000, true);
        second.set_in_flight(1);
        assert_eq!(device.total().queue_depth, 4);
        assert_eq!(device.channels().len(), 2);
        device.close_channel(&first);
        let total = device.total();
        let reads = total.kind(OpKind::Read);
        assert_eq!((reads.ops, reads.bytes, reads.errors), (2, 4096, 1));
        assert_eq!(
            (reads.latency_min_ns, reads.latency_max_ns),
            (Some(2_000), 5_000)
        );
        assert_eq!(reads.histogram.total(), 2);
        assert_eq!((total.queue_depth, total.queue_depth_max), (1, 3));
        assert_eq!(&*device.channels()[0].thread, "reactor_1");
    }

    #[test]
    fn difference_of_two_readings_counts_what_lies_between() {
        let device = DeviceStats::default();
        let stats = device.open_channel(&"t".into());
        stats.record(OpKind::Write, 512, 1_500, false);
        let before = device.total();
        stats.record(OpKind::Write, 1024, 900, false);
        let between = device.total().since(&before);
        let writes = between.kind(OpKind::Write);
        assert_eq!(
            (writes.ops, writes.bytes, writes.histogram.total()),
            (1, 1024, 1)
        );
        assert_eq!(writes.latency_total_ns, 900);
        assert_eq!(writes.histogram.counts()[0], 1);
    }
}
