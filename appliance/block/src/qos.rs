//! Limits of a bdev: I/Os per second and bytes per second, shared by all its channels.
//!
//! Each limit is a GCRA (a leaky bucket told as a time): one atomic holds the *theoretical arrival
//! time* of the next I/O. An I/O may go once that time, less the burst tolerance, has come; going
//! moves it on by the I/O's cost. No lock, no timer, no slices: 7 IOPS are one I/O every
//! 142,857,143 ns, not 1,000 of them rounded up.
//!
//! An I/O that waited is charged from when it *arrived*, so a poll that comes late does not lower
//! the rate. How much lateness is forgiven is bounded by [`LATENESS_FORGIVEN`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::BlockError;
use crate::io::OpKind;

/// Time is kept in 1/64 ns since the bdev was made: nine years fit, and the rounding of one I/O's
/// cost is below 1e-6 up to 100,000 IOPS.
const UNITS_PER_NS: u64 = 64;
const UNITS_PER_S: u64 = 1_000_000_000 * UNITS_PER_NS;

/// A thread that polls later than this loses the difference.
pub const LATENESS_FORGIVEN: Duration = Duration::from_millis(10);

/// Limits; 0 is off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QosLimits {
    /// Reads, writes, compares, verifies, unmaps and write zeroes per second, together.
    pub rw_ios_per_sec: u64,
    /// Bytes read and written per second, together.
    pub rw_bytes_per_sec: u64,
    /// Bytes read (and compared) per second.
    pub r_bytes_per_sec: u64,
    /// Bytes written per second.
    pub w_bytes_per_sec: u64,
    /// How much of each limit may go at once after a pause, as time: with 1,000 IOPS and 50 ms, 50
    /// I/Os more than the one that is always free. 0: evenly spaced.
    pub burst_ms: u32,
}

impl QosLimits {
    /// Longest burst, ms.
    pub const BURST_MS_MAX: u32 = 60_000;

    /// Whether no limit is set.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.rw_ios_per_sec == 0
            && self.rw_bytes_per_sec == 0
            && self.r_bytes_per_sec == 0
            && self.w_bytes_per_sec == 0
    }

    fn check(&self) -> Result<(), BlockError> {
        if self.burst_ms > Self::BURST_MS_MAX {
            return Err(BlockError::Option {
                option: "burst_ms",
                value: self.burst_ms.to_string(),
                expected: "at most 60000",
            });
        }
        Ok(())
    }
}

/// One limit.
#[derive(Debug, Default)]
struct Limiter {
    /// Units per second; 0: off.
    rate: AtomicU64,
    /// Burst tolerance, time units.
    tolerance: AtomicU64,
    /// Theoretical arrival time, time units since the bdev was made.
    tat: AtomicU64,
}

impl Limiter {
    fn set(&self, rate: u64, tolerance: u64, now: u64) {
        if self.rate.load(Ordering::Relaxed) == rate
            && self.tolerance.load(Ordering::Relaxed) == tolerance
        {
            return;
        }
        // What was charged under the old rate is forgotten: the new one holds from now.
        self.tat.store(now, Ordering::Relaxed);
        self.tolerance.store(tolerance, Ordering::Relaxed);
        self.rate.store(rate, Ordering::Relaxed);
    }

    fn cost(rate: u64, amount: u64) -> u64 {
        match amount.checked_mul(UNITS_PER_S) {
            // Rounded up: never more than the limit.
            Some(product) => product.div_ceil(rate),
            None => {
                let wide = u128::from(amount) * u128::from(UNITS_PER_S) / u128::from(rate);
                u64::try_from(wide).unwrap_or(u64::MAX / 2)
            }
        }
    }

    /// Takes `amount` at `now` for an I/O that came at `arrival`. On refusal: when to ask again.
    fn take(&self, amount: u64, arrival: u64, now: u64) -> Result<u64, u64> {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 || amount == 0 {
            return Ok(0);
        }
        let cost = Self::cost(rate, amount);
        let tolerance = self.tolerance.load(Ordering::Relaxed);
        let mut tat = self.tat.load(Ordering::Relaxed);
        loop {
            let allowed_at = tat.saturating_sub(tolerance);
            if allowed_at > now {
                return Err(allowed_at);
            }
            let next = tat.max(arrival).saturating_add(cost);
            match self
                .tat
                .compare_exchange_weak(tat, next, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Ok(cost),
                Err(actual) => tat = actual,
            }
        }
    }

    fn give_back(&self, cost: u64) {
        if cost > 0 {
            self.tat.fetch_sub(cost, Ordering::Relaxed);
        }
    }
}

/// The limits of one bdev.
#[derive(Debug)]
pub(crate) struct Qos {
    epoch: Instant,
    active: AtomicBool,
    ios: Limiter,
    bytes: Limiter,
    read_bytes: Limiter,
    write_bytes: Limiter,
    burst_ms: AtomicU64,
}

impl Qos {
    pub(crate) fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            active: AtomicBool::new(false),
            ios: Limiter::default(),
            bytes: Limiter::default(),
            read_bytes: Limiter::default(),
            write_bytes: Limiter::default(),
            burst_ms: AtomicU64::new(0),
        }
    }

    fn units(&self, at: Instant) -> u64 {
        let ns = at.saturating_duration_since(self.epoch).as_nanos();
        u64::try_from(ns)
            .unwrap_or(u64::MAX)
            .saturating_mul(UNITS_PER_NS)
    }

    fn instant(&self, units: u64) -> Instant {
        // Rounded up: asking a moment too early would be refused again.
        self.epoch + Duration::from_nanos(units.div_ceil(UNITS_PER_NS))
    }

    pub(crate) fn set(&self, limits: &QosLimits, now: Instant) -> Result<(), BlockError> {
        limits.check()?;
        let now = self.units(now);
        let tolerance = u64::from(limits.burst_ms) * 1_000_000 * UNITS_PER_NS;
        self.ios.set(limits.rw_ios_per_sec, tolerance, now);
        self.bytes.set(limits.rw_bytes_per_sec, tolerance, now);
        self.read_bytes.set(limits.r_bytes_per_sec, tolerance, now);
        self.write_bytes.set(limits.w_bytes_per_sec, tolerance, now);
        self.burst_ms
            .store(limits.burst_ms.into(), Ordering::Relaxed);
        self.active.store(!limits.is_off(), Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn limits(&self) -> QosLimits {
        QosLimits {
            rw_ios_per_sec: self.ios.rate.load(Ordering::Relaxed),
            rw_bytes_per_sec: self.bytes.rate.load(Ordering::Relaxed),
            r_bytes_per_sec: self.read_bytes.rate.load(Ordering::Relaxed),
            w_bytes_per_sec: self.write_bytes.rate.load(Ordering::Relaxed),
            burst_ms: self.burst_ms.load(Ordering::Relaxed) as u32,
        }
    }

    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// Lets one I/O go, or says when to ask again. `bytes` is what it moves between host and device.
    pub(crate) fn admit(
        &self,
        kind: OpKind,
        bytes: u64,
        arrival: Instant,
        now: Instant,
    ) -> Result<(), Instant> {
        let (read_bytes, write_bytes) = match kind {
            OpKind::Read | OpKind::Compare | OpKind::Verify => (bytes, 0),
            OpKind::Write | OpKind::CompareAndWrite => (0, bytes),
            OpKind::Unmap | OpKind::WriteZeroes => (0, 0),
            OpKind::Flush | OpKind::Reset => return Ok(()),
        };
        let now = self.units(now);
        let forgiven = LATENESS_FORGIVEN.as_nanos() as u64 * UNITS_PER_NS;
        let arrival = self.units(arrival).max(now.saturating_sub(forgiven));
        let takes = [
            (&self.ios, 1),
            (&self.bytes, read_bytes + write_bytes),
            (&self.read_bytes, read_bytes),
            (&self.write_bytes, write_bytes),
        ];
        let mut costs = [0; 4];
        for (i, (limiter, amount)) in takes.iter().enumerate() {
            match limiter.take(*amount, arrival, now) {
                Ok(cost) => costs[i] = cost,
                Err(at) => {
                    for ((limiter, _), cost) in takes.iter().zip(costs).take(i) {
                        limiter.give_back(cost);
                    }
                    return Err(self.instant(at));
                }
            }
        }
        Ok(())
    }
}
