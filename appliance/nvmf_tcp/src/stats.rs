//! Counters of the transport, over all poll groups and listeners.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the transport counts. Rare events only: nothing here is touched for an I/O, so that
/// poll groups share no cache line on their hot path.
#[derive(Debug, Default)]
pub struct TcpStats {
    pub(crate) connections: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) refused_at_limit: AtomicU64,
    pub(crate) accept_errors: AtomicU64,
    pub(crate) timed_out: AtomicU64,
    pub(crate) stalled: AtomicU64,
    pub(crate) terminated: AtomicU64,
    pub(crate) term_reqs_received: AtomicU64,
    pub(crate) data_digest_errors: AtomicU64,
}

/// [`TcpStats`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpStatsSnapshot {
    /// Connections now.
    pub connections: u64,
    /// Connections accepted since start, refused ones included.
    pub accepted: u64,
    /// Connections closed because `max_connections` was reached.
    pub refused_at_limit: u64,
    /// Times that accepting failed for want of descriptors or memory.
    pub accept_errors: u64,
    /// Connections closed because they sent no ICReq or no valid Connect in time.
    pub timed_out: u64,
    /// Connections closed because the host neither sent what it owed nor took what it asked for.
    pub stalled: u64,
    /// Connections ended by a C2HTermReq: the host broke the protocol.
    pub terminated: u64,
    /// H2CTermReq PDUs received: the host found the target to break the protocol.
    pub term_reqs_received: u64,
    /// Commands failed because the digest of their data did not match.
    pub data_digest_errors: u64,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl TcpStats {
    /// The counters now. Each is exact; together they are of about one moment.
    pub fn snapshot(&self) -> TcpStatsSnapshot {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TcpStatsSnapshot {
            connections: load(&self.connections),
            accepted: load(&self.accepted),
            refused_at_limit: load(&self.refused_at_limit),
            accept_errors: load(&self.accept_errors),
            timed_out: load(&self.timed_out),
            stalled: load(&self.stalled),
            terminated: load(&self.terminated),
            term_reqs_received: load(&self.term_reqs_received),
            data_digest_errors: load(&self.data_digest_errors),
        }
    }
}
