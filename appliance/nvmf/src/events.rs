//! What the target tells its owner: hosts coming and going, and what hosts changed.

use std::collections::VecDeque;

use fabric_wire::Nqn;
use nvme_spec::{Cntlid, Nsid};

use crate::config::WriteProtect;

/// Events kept for an owner that does not take them. At the bound the oldest is dropped and
/// counted.
pub(crate) const EVENTS_MAX: usize = 4096;

/// Something that happened on the hosts' side.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TargetEvent {
    /// A host connected: a controller was made.
    ControllerConnected {
        /// The subsystem.
        nqn: Nqn,
        /// The host.
        host: Nqn,
        /// The controller.
        cntlid: Cntlid,
        /// The host's address.
        remote: String,
    },
    /// A controller is gone.
    ControllerDisconnected {
        /// The subsystem.
        nqn: Nqn,
        /// The host.
        host: Nqn,
        /// The controller.
        cntlid: Cntlid,
        /// Why.
        reason: String,
    },
    /// A host set or cleared the write protection of a namespace (feature 84h).
    WriteProtectChanged {
        /// The subsystem.
        nqn: Nqn,
        /// The namespace.
        nsid: Nsid,
        /// The new state.
        write_protect: WriteProtect,
    },
    /// A Connect was refused.
    ConnectRefused {
        /// The host's address.
        remote: String,
        /// The NVMe status, in words.
        status: String,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Events {
    pub(crate) queue: VecDeque<TargetEvent>,
    pub(crate) dropped: u64,
    pub(crate) waker: Option<std::task::Waker>,
}

impl Events {
    pub(crate) fn push(&mut self, event: TargetEvent) {
        if self.queue.len() == EVENTS_MAX {
            self.queue.pop_front();
            self.dropped += 1;
        }
        self.queue.push_back(event);
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}
