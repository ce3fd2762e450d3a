//! A connection on its way from a listener to a poll group.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use fabric_wire::rdma::ConnectRequest;
use verbs::{CmId, ConnParam};

use crate::stats::RdmaStats;

/// Counts a connection for as long as it lives.
#[derive(Debug)]
pub(crate) struct ConnectionTicket(Arc<RdmaStats>);

impl ConnectionTicket {
    /// `None` if there are as many as may be.
    pub(crate) fn take(stats: &Arc<RdmaStats>, max: u32) -> Option<Self> {
        let before = stats.connections.fetch_add(1, Ordering::Relaxed);
        // The ticket gives the count back when it is dropped, also when it is refused.
        let ticket = Self(Arc::clone(stats));
        (before < u64::from(max)).then_some(ticket)
    }
}

impl Drop for ConnectionTicket {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request to connect that is right as far as it goes; it has not been answered.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// Until it is a connection.
    pub(crate) id: Option<Box<dyn CmId>>,
    pub(crate) request: ConnectRequest,
    /// What the host allows and asks for, seen from this side.
    pub(crate) param: ConnParam,
    /// Entries of the queue, as the two sides agree.
    pub(crate) depth: u16,
    pub(crate) ticket: Option<ConnectionTicket>,
}
