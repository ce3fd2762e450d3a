//! Latencies, counted in buckets.

use std::time::Duration;

/// Buckets per power of two: a bucket is at most 1/64 of its values wide.
const SUB_BITS: u32 = 6;
const SUB_COUNT: u64 = 1 << SUB_BITS;
const BUCKETS: usize = ((64 - SUB_BITS + 1) << SUB_BITS) as usize;

/// A log-linear histogram of nanoseconds. Recording allocates nothing.
#[derive(Clone)]
pub struct LatencyHistogram {
    buckets: Box<[u64]>,
    count: u64,
    sum_ns: u128,
    min_ns: u64,
    max_ns: u64,
}

impl LatencyHistogram {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        let buckets = vec![0; BUCKETS].into_boxed_slice();
        Self {
            buckets,
            count: 0,
            sum_ns: 0,
            min_ns: u64::MAX,
            max_ns: 0,
        }
    }

    /// Counts a latency.
    #[inline]
    pub fn record(&mut self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(ns)] += 1;
        self.count += 1;
        self.sum_ns += u128::from(ns);
        self.min_ns = self.min_ns.min(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    /// Adds what another has counted.
    pub fn merge(&mut self, other: &Self) {
        for (into, from) in self.buckets.iter_mut().zip(&other.buckets) {
            *into += from;
        }
        self.count += other.count;
        self.sum_ns += other.sum_ns;
        self.min_ns = self.min_ns.min(other.min_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// Latencies counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The latency that `per_mille` of 1000 latencies do not exceed; to within 1/64. Zero when
    /// nothing was counted.
    #[must_use]
    pub fn percentile(&self, per_mille: u32) -> Duration {
        if self.count == 0 {
            return Duration::ZERO;
        }
        let rank = (u128::from(self.count) * u128::from(per_mille))
            .div_ceil(1000)
            .max(1);
        let mut seen = 0u128;
        for (bucket, &count) in self.buckets.iter().enumerate() {
            seen += u128::from(count);
            if seen >= rank {
                let ns = last_of(bucket).clamp(self.min_ns, self.max_ns);
                return Duration::from_nanos(ns);
            }
        }
        Duration::from_nanos(self.max_ns)
    }

    /// Least, mean and greatest latency, and percentiles.
    #[must_use]
    pub fn summary(&self) -> LatencySummary {
        if self.count == 0 {
            return LatencySummary::default();
        }
        let mean = self.sum_ns / u128::from(self.count);
        LatencySummary {
            min: Duration::from_nanos(self.min_ns),
            avg: Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX)),
            p50: self.percentile(500),
            p90: self.percentile(900),
            p99: self.percentile(990),
            p99_9: self.percentile(999),
            max: Duration::from_nanos(self.max_ns),
        }
    }
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for LatencyHistogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "LatencyHistogram({} values, {:?})",
            self.count,
            self.summary()
        )
    }
}

/// What a histogram says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencySummary {
    /// The least.
    pub min: Duration,
    /// The mean.
    pub avg: Duration,
    /// The median.
    pub p50: Duration,
    /// 90 of 100 are at most this.
    pub p90: Duration,
    /// 99 of 100 are at most this.
    pub p99: Duration,
    /// 999 of 1000 are at most this.
    pub p99_9: Duration,
    /// The greatest.
    pub max: Duration,
}

#[inline]
fn bucket_of(ns: u64) -> usize {
    if ns < SUB_COUNT {
        return ns as usize;
    }
    let exponent = 63 - ns.leading_zeros();
    let sub = (ns >> (exponent - SUB_BITS)) & (SUB_COUNT - 1);
    ((u64::from(exponent - SUB_BITS + 1) << SUB_BITS) + sub) as usize
}

/// The greatest value of a bucket.
fn last_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SUB_COUNT {
        return bucket;
    }
    let exponent = (bucket >> SUB_BITS) as u32 + SUB_BITS - 1;
    let sub = bucket & (SUB_COUNT - 1);
    let width = 1u64 << (exponent - SUB_BITS);
    (1u64 << exponent) + sub * width + (width - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_are_contiguous() {
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(last_of(BUCKETS - 1), u64::MAX);
        for bucket in 0..BUCKETS - 1 {
            assert_eq!(bucket_of(last_of(bucket)), bucket);
            assert_eq!(bucket_of(last_of(bucket) + 1), bucket + 1);
        }
    }

    #[test]
    fn percentiles_of_known_values() {
        let mut histogram = LatencyHistogram::new();
        assert_eq!(histogram.summary(), LatencySummary::default());
        for us in 1..=1000 {
            histogram.record(Duration::from_micros(us));
        }
        let summary = histogram.summary();
        assert_eq!(summary.min, Duration::from_micros(1));
        assert_eq!(summary.max, Duration::from_micros(1000));
        assert_eq!(summary.avg, Duration::from_nanos(500_500));
        let near = |found: Duration, us: f64| {
            let found = found.as_secs_f64() * 1e6;
            assert!(
                (us..=us * 1.02).contains(&found),
                "{found} us where {us} is due"
            );
        };
        near(summary.p50, 500.0);
        near(summary.p99, 990.0);
        near(summary.p99_9, 999.0);
    }

    proptest! {
        #[test]
        fn a_bucket_is_at_most_a_64th_wide(ns in any::<u64>()) {
            let last = last_of(bucket_of(ns));
            prop_assert!(last >= ns && last - ns <= ns / 64);
        }
    }
}
