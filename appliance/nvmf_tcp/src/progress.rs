//! Whether a peer moves on: what it owes and what it does not take, from period to period.

use crate::connection::Connection;
use crate::receive::Expect;

/// Bytes that a peer moves in a period at least, if there are as many to move.
pub(crate) const PROGRESS_MIN: u64 = 64 * 1024;

/// A connection's note of where it stood when the period began.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Bytes received and sent since the connection was made.
    pub(crate) received: u64,
    pub(crate) sent: u64,
    /// A period runs; it has an entry in the group's queue.
    pub(crate) is_watched: bool,
    /// Reading was stopped by this end during the period.
    pub(crate) was_stopped: bool,
    owed: u64,
    was_blocked: bool,
    received_before: u64,
    sent_before: u64,
}

impl Connection {
    /// Bytes of data, or of the PDU that has begun, that the peer is to send.
    fn owed(&self) -> u64 {
        let of_pdu = match self.expect {
            Expect::Data(fill) => u64::from(fill.end - fill.at),
            Expect::Skip(left) => u64::from(left),
            Expect::Digest(_) => 1,
            Expect::Header => u64::from(self.stash_len > 0),
            Expect::Buffer { .. } | Expect::Nothing => 0,
        };
        of_pdu + self.awaited_bytes
    }

    /// Whether the peer is to send or to take something, and no period runs yet.
    pub(crate) fn wants_watching(&self) -> bool {
        !self.progress.is_watched && !self.is_ending() && (self.is_send_blocked || self.owed() > 0)
    }

    /// A period begins.
    pub(crate) fn begin_period(&mut self) {
        self.progress = Progress {
            received: self.progress.received,
            sent: self.progress.sent,
            is_watched: true,
            was_stopped: self.is_reading_stopped(),
            owed: self.owed(),
            was_blocked: self.is_send_blocked,
            received_before: self.progress.received,
            sent_before: self.progress.sent,
        };
    }

    /// Whether the peer has moved too little in the period that ends.
    pub(crate) fn has_stalled(&self) -> bool {
        let progress = &self.progress;
        let received = progress.received - progress.received_before;
        let sent = progress.sent - progress.sent_before;
        let owes = self.owed() > 0 && !progress.was_stopped;
        (owes && received < progress.owed.min(PROGRESS_MIN))
            || (self.is_send_blocked && progress.was_blocked && sent < PROGRESS_MIN)
    }
}
