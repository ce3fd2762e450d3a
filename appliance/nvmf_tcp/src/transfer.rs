//! Data on its way from the host into a buffer.

use dma::Payload;
use nvme_spec::Cid;
use nvmf::transport::SlotId;

/// The data of one command. Its index among a connection's transfers is its slot, which is also
/// its transfer tag (TTAG).
#[derive(Debug, Default)]
pub(crate) struct Transfer {
    /// The command that the slot serves.
    pub(crate) cid: Cid,
    /// Where the data goes.
    payload: Payload,
    /// Bytes in all.
    pub(crate) len: u32,
    /// Bytes of PDUs that have come whole.
    pub(crate) received: u32,
    /// An R2T is outstanding.
    pub(crate) is_awaited: bool,
    /// A data digest did not match.
    pub(crate) is_damaged: bool,
}

impl Transfer {
    /// Begins to receive; `false`, and nothing happens, if the payload has no room for the data.
    pub(crate) fn begin(&mut self, payload: Payload, len: u32, is_awaited: bool) -> bool {
        *self = Self {
            cid: self.cid,
            payload,
            len,
            received: 0,
            is_awaited,
            is_damaged: false,
        };
        let has_room = len > 0 && self.part(0, len).len() == len as usize;
        if !has_room {
            self.end();
        }
        has_room
    }

    /// Ends: the data, or none if it has not come intact.
    pub(crate) fn end(&mut self) -> Payload {
        self.is_awaited = false;
        let payload = self.payload.take();
        if self.is_damaged || self.received < self.len {
            Payload::None
        } else {
            payload
        }
    }

    /// A part of the buffer; empty if there is no such part.
    pub(crate) fn part(&mut self, from: u32, to: u32) -> &mut [u8] {
        let bytes = self
            .payload
            .as_buf_mut()
            .and_then(|buf| buf.try_as_mut_slice());
        bytes
            .and_then(|bytes| bytes.get_mut(from as usize..to as usize))
            .unwrap_or_default()
    }
}

/// The data of one PDU on its way into its transfer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fill {
    pub(crate) slot: SlotId,
    /// The PDU's data within the transfer, in bytes.
    pub(crate) start: u32,
    pub(crate) end: u32,
    /// Bytes of the transfer up to which there is data.
    pub(crate) at: u32,
}
