//! Counters.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::request::RequestState;

/// Counters of the transport over all poll groups and listeners, of rare events; and of each group.
#[derive(Debug, Default)]
pub struct RdmaStats {
    pub(crate) connections: AtomicU64,
    pub(crate) requested: AtomicU64,
    pub(crate) rejected: AtomicU64,
    pub(crate) refused_at_limit: AtomicU64,
    pub(crate) timed_out: AtomicU64,
    pub(crate) protocol_errors: AtomicU64,
    pub(crate) transport_errors: AtomicU64,
    pub(crate) drained_by_force: AtomicU64,
    pub(crate) port_errors: AtomicU64,
    pub(crate) device_removals: AtomicU64,
    groups: Mutex<Vec<Arc<RdmaGroupStats>>>,
}

/// [`RdmaStats`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RdmaStatsSnapshot {
    /// Connections now.
    pub connections: u64,
    /// Requests to connect since start.
    pub requested: u64,
    /// Those of them that were rejected for what they asked.
    pub rejected: u64,
    /// Those that were rejected for want of resources.
    pub refused_at_limit: u64,
    /// Connections closed because they sent no valid Connect in time.
    pub timed_out: u64,
    /// Connections closed because the host broke the protocol.
    pub protocol_errors: u64,
    /// Connections closed because a work request failed.
    pub transport_errors: u64,
    /// Connections whose queue pair was destroyed before it had given everything back.
    pub drained_by_force: u64,
    /// Times that a port went down.
    pub port_errors: u64,
    /// Devices that were removed or failed.
    pub device_removals: u64,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl RdmaStats {
    /// The counters now. Each is exact; together they are of about one moment.
    #[must_use]
    pub fn snapshot(&self) -> RdmaStatsSnapshot {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RdmaStatsSnapshot {
            connections: load(&self.connections),
            requested: load(&self.requested),
            rejected: load(&self.rejected),
            refused_at_limit: load(&self.refused_at_limit),
            timed_out: load(&self.timed_out),
            protocol_errors: load(&self.protocol_errors),
            transport_errors: load(&self.transport_errors),
            drained_by_force: load(&self.drained_by_force),
            port_errors: load(&self.port_errors),
            device_removals: load(&self.device_removals),
        }
    }

    /// The poll groups that live.
    #[must_use]
    pub fn groups(&self) -> Vec<Arc<RdmaGroupStats>> {
        self.lock().clone()
    }

    pub(crate) fn add_group(&self) -> Arc<RdmaGroupStats> {
        let group = Arc::new(RdmaGroupStats::default());
        self.lock().push(Arc::clone(&group));
        group
    }

    pub(crate) fn remove_group(&self, group: &Arc<RdmaGroupStats>) {
        self.lock().retain(|other| !Arc::ptr_eq(other, group));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<RdmaGroupStats>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counters of one poll group. One thread writes them.
#[derive(Debug, Default)]
pub struct RdmaGroupStats {
    pub(crate) polls: AtomicU64,
    pub(crate) idle_polls: AtomicU64,
    pub(crate) completions: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) pending_free_request: AtomicU64,
    pub(crate) pending_rdma_read: AtomicU64,
    pub(crate) pending_rdma_send: AtomicU64,
    pub(crate) total_send_wrs: AtomicU64,
    pub(crate) send_doorbell_updates: AtomicU64,
    pub(crate) total_recv_wrs: AtomicU64,
    pub(crate) recv_doorbell_updates: AtomicU64,
    pub(crate) copied_bytes: AtomicU64,
    pub(crate) stale_completions: AtomicU64,
    pub(crate) states: [AtomicU64; RequestState::COUNT],
}

/// [`RdmaGroupStats`] at one moment. Names are those of SPDK's `nvmf_get_stats` where it has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RdmaGroupSnapshot {
    /// Polls of completion queues.
    pub polls: u64,
    /// Polls that found nothing.
    pub idle_polls: u64,
    /// Completions.
    pub completions: u64,
    /// Commands.
    pub requests: u64,
    /// Capsules that waited for a slot.
    pub pending_free_request: u64,
    /// Commands that waited until data could be read.
    pub pending_rdma_read: u64,
    /// Responses that waited for room in the send queue.
    pub pending_rdma_send: u64,
    /// Send work requests.
    pub total_send_wrs: u64,
    /// Chains of them.
    pub send_doorbell_updates: u64,
    /// Receive work requests.
    pub total_recv_wrs: u64,
    /// Chains of them.
    pub recv_doorbell_updates: u64,
    /// Bytes of I/O commands' data that the CPU copied.
    pub copied_bytes: u64,
    /// Completions of connections that were gone.
    pub stale_completions: u64,
    /// How often a request was in each state, by [`RequestState`]'s number.
    pub states: [u64; RequestState::COUNT],
}

/// Adds to a counter that only this thread writes.
#[inline]
pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    let value = counter.load(Ordering::Relaxed).wrapping_add(amount);
    counter.store(value, Ordering::Relaxed);
}

impl RdmaGroupStats {
    /// Bytes of I/O commands' data that the CPU copied.
    #[must_use]
    pub fn copied_bytes(&self) -> u64 {
        self.copied_bytes.load(Ordering::Relaxed)
    }

    /// The counters now.
    #[must_use]
    pub fn snapshot(&self) -> RdmaGroupSnapshot {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RdmaGroupSnapshot {
            polls: load(&self.polls),
            idle_polls: load(&self.idle_polls),
            completions: load(&self.completions),
            requests: load(&self.requests),
            pending_free_request: load(&self.pending_free_request),
            pending_rdma_read: load(&self.pending_rdma_read),
            pending_rdma_send: load(&self.pending_rdma_send),
            total_send_wrs: load(&self.total_send_wrs),
            send_doorbell_updates: load(&self.send_doorbell_updates),
            total_recv_wrs: load(&self.total_recv_wrs),
            recv_doorbell_updates: load(&self.recv_doorbell_updates),
            copied_bytes: load(&self.copied_bytes),
            stale_completions: load(&self.stale_completions),
            states: std::array::from_fn(|index| load(&self.states[index])),
        }
    }
}
