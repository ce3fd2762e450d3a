//! What waits to be sent on a connection.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use dma::sg::{Segment, SegmentList};
use fabric_wire::digest::{Crc32c, DIGEST_LEN};
use fabric_wire::tcp::{
    EncodeError, EncodeOptions, MAX_ENCODED_HEADER_LEN, MAX_TERM_REQ_LEN, Receiver, data_digest,
    encode_capsule_cmd, encode_h2c_data, encode_ic_req, encode_term_req,
};
use nvme_spec::{Cid, Sqe};

use crate::slots::Slots;

/// Parts in the queue beyond which no further H2CData is made: they are made as room comes.
const MAX_PIECES_FOR_H2C: usize = 128;
/// Sent bytes at the front of the store from which on it is moved up.
const COMPACT_FROM: usize = 16 << 10;

/// A part of what is sent.
#[derive(Clone, Copy, Debug)]
enum Piece {
    /// The next bytes of the store: headers and digests.
    Bytes { len: usize },
    /// A part of a command's buffer.
    Data { slot: u16, from: usize, len: usize },
}

/// A transfer that the controller has asked for.
#[derive(Clone, Copy, Debug)]
struct Transfer {
    slot: u16,
    cid: Cid,
    ttag: u16,
    offset: u32,
    remaining: u32,
}

/// What waits to be sent.
#[derive(Debug)]
pub(crate) struct SendQueue {
    bytes: Vec<u8>,
    /// Bytes of the store that have been sent.
    sent: usize,
    pieces: VecDeque<Piece>,
    transfers: VecDeque<Transfer>,
    encode: EncodeOptions,
    max_h2c_data: u32,
}

impl SendQueue {
    /// A queue for `depth` commands with at most `max_r2t` R2Ts each.
    pub(crate) fn new(depth: u16, max_r2t: u16) -> Self {
        let depth = usize::from(depth);
        // A capsule has a header and at most one digest; a piece or two each.
        let store = depth * (MAX_ENCODED_HEADER_LEN + DIGEST_LEN)
            + MAX_PIECES_FOR_H2C * MAX_ENCODED_HEADER_LEN;
        Self {
            bytes: Vec::with_capacity(2 * store + COMPACT_FROM),
            sent: 0,
            pieces: VecDeque::with_capacity(2 * depth + 2 * MAX_PIECES_FOR_H2C),
            transfers: VecDeque::with_capacity(depth.min(64) * usize::from(max_r2t)),
            encode: EncodeOptions::default(),
            max_h2c_data: 0,
        }
    }

    /// What ICResp has agreed.
    pub(crate) fn agree(&mut self, encode: EncodeOptions, max_h2c_data: u32) {
        self.encode = encode;
        self.max_h2c_data = max_h2c_data;
    }

    pub(crate) fn has_data_digest(&self) -> bool {
        self.encode.data_digest
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.transfers.is_empty()
    }

    pub(crate) fn push_ic_req(&mut self, hpda: u8, digests: (bool, bool), max_r2t: u16) {
        let mut header = [0; MAX_ENCODED_HEADER_LEN];
        let maxr2t = u32::from(max_r2t).saturating_sub(1);
        let len = encode_ic_req(&mut header, hpda, digests.0, digests.1, maxr2t)
            .expect("the buffer fits every header");
        self.push_bytes(&header[..len]);
    }

    pub(crate) fn push_term_req(&mut self, fes: u16, fei: u32, offending: &[u8]) {
        let mut pdu = [0; MAX_TERM_REQ_LEN];
        let len = encode_term_req(&mut pdu, Receiver::Controller, fes, fei, offending)
            .expect("the buffer fits every TermReq");
        self.push_bytes(&pdu[..len]);
    }

    /// A command; the first `in_capsule` bytes of its slot's buffer go with it.
    ///
    /// It fails if the data is too long for a PDU, and then nothing was queued.
    #[inline]
    pub(crate) fn push_command(
        &mut self,
        sqe: &Sqe,
        slot: u16,
        in_capsule: u32,
        slots: &mut Slots,
    ) -> Result<(), EncodeError> {
        let mut header = [0; MAX_ENCODED_HEADER_LEN];
        let len = encode_capsule_cmd(&mut header, sqe, in_capsule, &self.encode)?;
        self.push_bytes(&header[..len]);
        if in_capsule > 0 {
            self.push_data(slot, 0, in_capsule, slots);
        }
        Ok(())
    }

    /// Data that the controller has asked for.
    pub(crate) fn push_transfer(
        &mut self,
        (slot, cid): (u16, Cid),
        ttag: u16,
        offset: u32,
        len: u32,
    ) {
        self.transfers.push_back(Transfer {
            slot,
            cid,
            ttag,
            offset,
            remaining: len,
        });
    }

    /// Forgets what is to be sent for an answered command and has not been begun.
    pub(crate) fn drop_transfers(&mut self, slot: u16) {
        self.transfers.retain(|transfer| transfer.slot != slot);
    }

    /// Forgets everything. A PDU that was begun stays cut off: only for a connection that ends.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.sent = 0;
        self.pieces.clear();
        self.transfers.clear();
    }

    /// Sends until all is sent or the socket takes no more; `Ok(true)` when all is sent. Slots whose
    /// buffer is free now, though they were answered before, are put into `released`.
    pub(crate) fn flush(
        &mut self,
        fd: BorrowedFd<'_>,
        slots: &mut Slots,
        list: &mut SegmentList,
        released: &mut Vec<u16>,
    ) -> io::Result<bool> {
        loop {
            self.make_h2c_data(slots);
            if self.pieces.is_empty() {
                return Ok(true);
            }
            let sent = {
                let mut gather = list.gather();
                let mut at = self.sent;
                for piece in &self.pieces {
                    let segment = match *piece {
                        Piece::Bytes { len } => {
                            let segment = Segment::new(&self.bytes[at..at + len]);
                            at += len;
                            segment
                        }
                        Piece::Data { slot, from, len } => slots
                            .get(slot)
                            .buffer
                            .segment(from, len)
                            .expect("a slot keeps its buffer while parts of it are queued"),
                    };
                    if !gather.push(segment) {
                        break;
                    }
                }
                let bytes = gather.bytes();
                match gather.send(fd) {
                    Ok(sent) if sent == bytes => sent,
                    Ok(sent) => {
                        self.advance(sent, slots, released);
                        return Ok(false);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(error) => return Err(error),
                }
            };
            self.advance(sent, slots, released);
        }
    }

    fn advance(&mut self, mut count: usize, slots: &mut Slots, released: &mut Vec<u16>) {
        while count > 0 {
            let Some(piece) = self.pieces.front_mut() else {
                break;
            };
            match piece {
                Piece::Bytes { len } => {
                    let taken = count.min(*len);
                    *len -= taken;
                    self.sent += taken;
                    count -= taken;
                    if *len == 0 {
                        self.pieces.pop_front();
                    }
                }
                Piece::Data { slot, from, len } => {
                    let taken = count.min(*len);
                    *from += taken;
                    *len -= taken;
                    count -= taken;
                    if *len == 0 {
                        let index = *slot;
                        self.pieces.pop_front();
                        let slot = slots.get_mut(index);
                        slot.pieces -= 1;
                        if slot.pieces == 0 && slot.phase == crate::slots::Phase::Answered {
                            released.push(index);
                        }
                    }
                }
            }
        }
        if self.pieces.is_empty() {
            self.bytes.clear();
            self.sent = 0;
        } else if self.sent >= COMPACT_FROM && self.sent >= self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Turns transfers into PDUs while there is room.
    fn make_h2c_data(&mut self, slots: &mut Slots) {
        while self.pieces.len() < MAX_PIECES_FOR_H2C {
            let Some(transfer) = self.transfers.front_mut() else {
                break;
            };
            let len = transfer.remaining.min(self.max_h2c_data);
            let is_last = len == transfer.remaining;
            let Transfer {
                slot,
                cid,
                ttag,
                offset,
                ..
            } = *transfer;
            transfer.offset += len;
            transfer.remaining -= len;
            let mut header = [0; MAX_ENCODED_HEADER_LEN];
            let header_len =
                encode_h2c_data(&mut header, cid, ttag, offset, len, is_last, &self.encode)
                    .expect("MAXH2CDATA is far below what a PDU can hold");
            if is_last {
                self.transfers.pop_front();
                slots.get_mut(slot).r2ts -= 1;
            }
            self.push_bytes(&header[..header_len]);
            self.push_data(slot, offset, len, slots);
        }
    }

    #[inline]
    fn push_bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        match self.pieces.back_mut() {
            Some(Piece::Bytes { len }) => *len += bytes.len(),
            _ => self.pieces.push_back(Piece::Bytes { len: bytes.len() }),
        }
    }

    fn push_data(&mut self, index: u16, from: u32, len: u32, slots: &mut Slots) {
        let (from, len) = (from as usize, len as usize);
        let slot = slots.get_mut(index);
        slot.pieces += 1;
        self.pieces.push_back(Piece::Data {
            slot: index,
            from,
            len,
        });
        if self.encode.data_digest {
            let data = slot
                .buffer
                .as_slice()
                .expect("lent memory was copied when submitted");
            let mut crc = Crc32c::new();
            crc.update(&data[from..from + len]);
            self.push_bytes(&data_digest(crc.finalize()));
        }
    }
}
