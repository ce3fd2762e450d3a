//! What the connections of a group share: options, receive memory, reusable lists.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dma::sg::SegmentList;
use nvmf::transport::{SlotId, TransportId};

use crate::TcpOptions;
use crate::stats::TcpStats;

/// Bytes received at once. What a connection leaves of them when it is done parsing is less than
/// a header, and is kept with the connection; so one such memory serves all, and stays in cache.
pub(crate) const SCRATCH_LEN: usize = 64 * 1024;
/// Segments of one send.
const SEND_SEGMENTS: usize = 128;
/// Unused receive memories that are kept.
const SPARES_MAX: usize = 4;
/// Broken protocols are told in the log at most this often.
const WARN_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) struct GroupIo {
    pub(crate) transport: TransportId,
    pub(crate) options: Arc<TcpOptions>,
    pub(crate) stats: Arc<TcpStats>,
    /// Empty while a connection parses what is in it.
    pub(crate) scratch: Box<[u8]>,
    spares: Vec<Box<[u8]>>,
    pub(crate) list: SegmentList,
    /// Slots whose response has been sent.
    pub(crate) released: Vec<SlotId>,
    /// Receive calls made; tests count them.
    pub(crate) receive_calls: u64,
    /// Send calls made; tests count them.
    pub(crate) send_calls: u64,
    /// The time of the last call that told it.
    pub(crate) now: Option<Instant>,
    next_warning: Option<Instant>,
}

impl GroupIo {
    pub(crate) fn new(
        transport: TransportId,
        options: Arc<TcpOptions>,
        stats: Arc<TcpStats>,
    ) -> Self {
        Self {
            transport,
            options,
            stats,
            scratch: new_scratch(),
            spares: Vec::new(),
            list: SegmentList::new(SEND_SEGMENTS),
            released: Vec::new(),
            receive_calls: 0,
            send_calls: 0,
            now: None,
            next_warning: None,
        }
    }

    pub(crate) fn now(&self) -> Instant {
        self.now
            .expect("a connection is added with the time, and nothing is asked before")
    }

    /// Memory in place of a scratch that a connection keeps.
    pub(crate) fn spare(&mut self) -> Box<[u8]> {
        self.spares.pop().unwrap_or_else(new_scratch)
    }

    pub(crate) fn give_back(&mut self, scratch: Box<[u8]>) {
        if self.spares.len() < SPARES_MAX {
            self.spares.push(scratch);
        }
    }

    /// Whether a warning that a peer can cause may be written now.
    pub(crate) fn may_warn(&mut self) -> bool {
        let now = self.now();
        if self.next_warning.is_some_and(|at| now < at) {
            return false;
        }
        self.next_warning = Some(now + WARN_INTERVAL);
        true
    }
}

fn new_scratch() -> Box<[u8]> {
    vec![0; SCRATCH_LEN].into_boxed_slice()
}
