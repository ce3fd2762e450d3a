//! One connection of whichever transport.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use nvme_spec::Cid;
use verbs::Provider;

use crate::command::{Command, Completion, Submit};
use crate::error::HostError;
use crate::queue::{HostContext, QueueConfig, QueueCounters, TcpQueue};
use crate::rdma::RdmaQueue;

/// One connection and its commands.
pub(crate) enum HostQueue {
    Tcp(Box<TcpQueue>),
    Rdma(Box<RdmaQueue>),
}

macro_rules! either {
    ($self:expr, $queue:ident => $call:expr) => {
        match $self {
            HostQueue::Tcp($queue) => $call,
            HostQueue::Rdma($queue) => $call,
        }
    };
}

impl HostQueue {
    /// Begins to connect.
    pub(crate) fn connect(config: QueueConfig, context: &HostContext, now: Instant) -> Self {
        if config.is_rdma {
            let provider: Option<Arc<dyn Provider>> = config.verbs.clone();
            return Self::Rdma(Box::new(RdmaQueue::connect(config, provider.as_ref(), now)));
        }
        Self::Tcp(Box::new(TcpQueue::connect(config, context, now)))
    }

    #[inline]
    pub(crate) fn config(&self) -> &QueueConfig {
        either!(self, queue => &queue.config)
    }

    pub(crate) fn counters(&self) -> QueueCounters {
        either!(self, queue => queue.counters)
    }

    /// In-capsule data that the controller takes on this queue, in bytes.
    pub(crate) fn set_max_in_capsule(&mut self, len: u32) {
        either!(self, queue => queue.max_in_capsule = len);
    }

    pub(crate) fn failure(&self) -> Option<&HostError> {
        either!(self, queue => queue.failure())
    }

    pub(crate) fn is_ready(&self) -> bool {
        either!(self, queue => queue.is_ready())
    }

    pub(crate) fn in_flight(&self) -> u16 {
        either!(self, queue => queue.slots.in_use())
    }

    pub(crate) fn capacity(&self) -> u16 {
        either!(self, queue => queue.slots.capacity())
    }

    pub(crate) fn has_room(&self) -> bool {
        self.in_flight() < self.capacity()
    }

    #[inline]
    pub(crate) fn submit(&mut self, command: Command, now: Instant) -> Submit<Command> {
        either!(self, queue => queue.submit(command, now))
    }

    #[inline]
    pub(crate) fn poll(&mut self, now: Instant, completions: &mut Vec<Completion>) -> bool {
        either!(self, queue => queue.poll(now, completions))
    }

    pub(crate) fn flush(&mut self, completions: &mut Vec<Completion>) {
        either!(self, queue => queue.flush(completions));
    }

    pub(crate) fn wants_to_send(&self) -> bool {
        match self {
            Self::Tcp(queue) => queue.wants_to_send(),
            Self::Rdma(_) => false,
        }
    }

    pub(crate) fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        either!(self, queue => queue.wake_fd())
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        either!(self, queue => queue.next_deadline())
    }

    pub(crate) fn take_expired(&mut self) -> Option<Cid> {
        either!(self, queue => queue.take_expired())
    }

    pub(crate) fn is_keep_alive(&mut self, cid: Cid) -> bool {
        either!(self, queue => queue.is_keep_alive(cid))
    }

    /// Closes the connection. Outstanding commands are completed as lost.
    pub(crate) fn close(&mut self, completions: &mut Vec<Completion>) {
        let qid = self.config().qid;
        self.end(HostError::ClosedHere { qid }, completions);
    }

    /// Closes the connection for a reason that its owner found.
    pub(crate) fn end(&mut self, error: HostError, completions: &mut Vec<Completion>) {
        either!(self, queue => queue.end(error, completions));
    }
}
