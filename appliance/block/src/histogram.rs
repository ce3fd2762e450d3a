//! Log-linear latency histogram: buckets, recording, quantiles.
//!
//! 1 us to 100 s with a relative error of at most 1/8: each power of two of nanoseconds from 1024 ns
//! to 2^37 ns (137 s) is cut into 8 equal buckets. Bucket 0 takes everything below 1024 ns, the last
//! one everything above.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const SUB_BITS: u32 = 3;
const SUBS: usize = 1 << SUB_BITS;
const LOW_BITS: u32 = 10;
const HIGH_BITS: u32 = 37;

/// Number of buckets.
pub const BUCKETS: usize = (HIGH_BITS - LOW_BITS) as usize * SUBS + 2;

/// The bucket that a latency of `ns` nanoseconds falls into.
#[must_use]
#[inline]
pub const fn bucket_of(ns: u64) -> usize {
    if ns < 1 << LOW_BITS {
        return 0;
    }
    if ns >= 1 << HIGH_BITS {
        return BUCKETS - 1;
    }
    let exponent = 63 - ns.leading_zeros();
    let sub = (ns >> (exponent - SUB_BITS)) as usize & (SUBS - 1);
    1 + (exponent - LOW_BITS) as usize * SUBS + sub
}

/// The range of nanoseconds of a bucket: from the first, up to but without the second.
/// The last bucket ends at `u64::MAX`.
///
/// # Panics
/// When `bucket` is not below [`BUCKETS`].
#[must_use]
pub const fn bucket_bounds_ns(bucket: usize) -> (u64, u64) {
    assert!(bucket < BUCKETS, "bucket out of range");
    if bucket == 0 {
        return (0, 1 << LOW_BITS);
    }
    if bucket == BUCKETS - 1 {
        return (1 << HIGH_BITS, u64::MAX);
    }
    let exponent = (bucket - 1) / SUBS + LOW_BITS as usize;
    let sub = ((bucket - 1) % SUBS) as u64;
    let width = 1u64 << (exponent - SUB_BITS as usize);
    let start = (1u64 << exponent) + sub * width;
    (start, start + width)
}

/// A histogram that one thread writes and any thread reads.
#[derive(Debug)]
pub(crate) struct AtomicHistogram {
    buckets: [AtomicU64; BUCKETS],
}

impl AtomicHistogram {
    pub(crate) fn new() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }

    /// Counts one latency. Only the owning thread may call this: the addition is not atomic.
    #[inline]
    pub(crate) fn record(&self, ns: u64) {
        let bucket = &self.buckets[bucket_of(ns)];
        bucket.store(bucket.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    pub(crate) fn add_to(&self, total: &mut Histogram) {
        total.ensure();
        for (sum, bucket) in total.counts.iter_mut().zip(&self.buckets) {
            *sum += bucket.load(Ordering::Relaxed);
        }
    }
}

/// A histogram as read: plain numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Count per bucket; empty when nothing was ever recorded.
    counts: Vec<u64>,
}

impl Histogram {
    fn ensure(&mut self) {
        if self.counts.is_empty() {
            self.counts = vec![0; BUCKETS];
        }
    }

    /// Count per bucket: [`BUCKETS`] numbers, or none when nothing was recorded.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// How many latencies were recorded.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds another histogram's counts.
    pub fn merge(&mut self, other: &Self) {
        if other.counts.is_empty() {
            return;
        }
        self.ensure();
        for (sum, count) in self.counts.iter_mut().zip(&other.counts) {
            *sum += count;
        }
    }

    /// What was recorded since `earlier`, an older reading of the same histogram.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut difference = self.clone();
        for (count, old) in difference.counts.iter_mut().zip(&earlier.counts) {
            *count = count.saturating_sub(*old);
        }
        difference
    }

    /// The latency that a share `quantile` (0 to 1) of all stays at or below: the upper end of its
    /// bucket, so never told too small. `None` when empty.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let total = self.total();
        if total == 0 {
            return None;
        }
        let rank = (quantile.clamp(0.0, 1.0) * total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                let (start, end) = bucket_bounds_ns(bucket);
                let upper = if end == u64::MAX { start } else { end };
                return Some(Duration::from_nanos(upper));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_tile_the_range_without_gap() {
        let mut expected = 0;
        for bucket in 0..BUCKETS {
            let (start, end) = bucket_bounds_ns(bucket);
            assert_eq!(start, expected);
            assert!(end > start);
            expected = end;
        }
        assert_eq!(expected, u64::MAX);
    }

    #[test]
    fn one_microsecond_and_hundred_seconds_are_told_apart_from_the_ends() {
        assert_eq!(bucket_of(1_000), 0);
        assert_eq!(bucket_of(1_024), 1);
        assert!(bucket_of(100_000_000_000) < BUCKETS - 1);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_of_a_uniform_sample_are_close() {
        let atomic = AtomicHistogram::new();
        for us in 1..=1000u64 {
            atomic.record(us * 1000);
        }
        let mut histogram = Histogram::default();
        atomic.add_to(&mut histogram);
        assert_eq!(histogram.total(), 1000);
        let median = histogram.quantile(0.5).unwrap().as_micros();
        assert!((500..=563).contains(&median), "{median}");
        let last = histogram.quantile(1.0).unwrap().as_micros();
        assert!((1000..=1125).contains(&last), "{last}");
        assert_eq!(Histogram::default().quantile(0.5), None);
    }

    proptest! {
        #[test]
        fn every_latency_lies_in_its_bucket(ns: u64) {
            let (start, end) = bucket_bounds_ns(bucket_of(ns));
            prop_assert!(start <= ns && (ns < end || end == u64::MAX));
        }

        #[test]
        fn relative_width_is_at_most_an_eighth(ns in 1024u64..(1 << 37)) {
            let (start, end) = bucket_bounds_ns(bucket_of(ns));
            prop_assert!((end - start) * 8 <= start);
        }

        #[test]
        fn order_is_kept(a: u64, b: u64) {
            prop_assert!(bucket_of(a.min(b)) <= bucket_of(a.max(b)));
        }
    }
}
