//! What a run has found.

use std::fmt;
use std::time::Duration;

use super::histogram::LatencySummary;

/// I/Os of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OpReport {
    /// I/Os done.
    pub ios: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// I/Os in a second.
    pub iops: f64,
    /// MiB in a second.
    pub mib_per_s: f64,
    /// Their latencies.
    pub latency: LatencySummary,
}

impl OpReport {
    pub(crate) fn new(ios: u64, io_size: u32, elapsed: Duration, latency: LatencySummary) -> Self {
        let seconds = elapsed.as_secs_f64();
        let bytes = ios * u64::from(io_size);
        let per_second = |value: f64| if seconds > 0.0 { value / seconds } else { 0.0 };
        Self {
            ios,
            bytes,
            iops: per_second(ios as f64),
            mib_per_s: per_second(bytes as f64 / f64::from(1 << 20)),
            latency,
        }
    }
}

/// A run's figures. Latency is the time from the poll that submitted an I/O to the poll that found it
/// done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PerfReport {
    /// Time that was counted.
    pub elapsed: Duration,
    /// All I/Os.
    pub total: OpReport,
    /// Reads.
    pub reads: OpReport,
    /// Writes.
    pub writes: OpReport,
    /// I/Os that failed.
    pub errors: u64,
    /// The first of them.
    pub first_error: Option<String>,
    /// I/Os that were compared, those that read writes back included.
    pub verified: u64,
    /// `sendmsg` calls.
    pub send_calls: u64,
    /// `recvmsg` calls.
    pub receive_calls: u64,
}

impl fmt::Display for PerfReport {
    /// A table for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<7}{:>12}{:>12}{:>11}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "", "I/Os", "IOPS", "MiB/s", "min us", "avg us", "p50", "p90", "p99", "p99.9", "max"
        )?;
        for (name, op) in [
            ("read", &self.reads),
            ("write", &self.writes),
            ("total", &self.total),
        ] {
            if op.ios == 0 && name != "total" {
                continue;
            }
            write!(
                f,
                "{name:<7}{:>12}{:>12.0}{:>11.1}",
                op.ios, op.iops, op.mib_per_s
            )?;
            let latency = &op.latency;
            let all = [
                latency.min,
                latency.avg,
                latency.p50,
                latency.p90,
                latency.p99,
            ];
            for value in all.into_iter().chain([latency.p99_9, latency.max]) {
                write!(f, "{:>10.1}", value.as_secs_f64() * 1e6)?;
            }
            writeln!(f)?;
        }
        if self.verified > 0 {
            writeln!(f, "{} I/Os verified", self.verified)?;
        }
        if self.errors > 0 {
            let first = self.first_error.as_deref().unwrap_or_default();
            writeln!(f, "{} I/Os failed, the first: {first}", self.errors)?;
        }
        Ok(())
    }
}
