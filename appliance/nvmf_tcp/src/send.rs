//! What a connection has to send: PDU headers in one arena, payloads where they lie.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use dma::Payload;
use dma::sg::{Gather, Segment, SegmentList};
use fabric_wire::digest::{Crc32c, DIGEST_LEN};
use fabric_wire::tcp::{
    EncodeError, EncodeOptions, MAX_ENCODED_HEADER_LEN, MAX_TERM_REQ_LEN, Receiver, data_digest,
    encode_c2h_data, encode_capsule_resp, encode_ic_resp, encode_r2t, encode_term_req,
};
use nvme_spec::{Cid, Cqe};
use nvmf::transport::SlotId;

/// The longest header, with what an encoder writes behind it.
const HEADER_ROOM: usize = if MAX_ENCODED_HEADER_LEN > MAX_TERM_REQ_LEN {
    MAX_ENCODED_HEADER_LEN
} else {
    MAX_TERM_REQ_LEN
};
/// The arena's sent bytes are dropped once they are this many and most of it.
const COMPACT_MIN: usize = 4096;
/// Lent memory has no slice: its digest is computed over copies of this size.
const DIGEST_CHUNK: usize = 1024;

/// Bytes of the arena, then bytes of a payload; then a slot is free.
#[derive(Debug)]
struct Chunk {
    header_left: usize,
    payload: Payload,
    payload_sent: usize,
    payload_len: usize,
    /// The slot whose response has been sent with this chunk's last byte.
    slot: Option<SlotId>,
    /// Some of it has been sent.
    has_begun: bool,
    /// It ends the PDU of the chunk before it.
    is_digest: bool,
}

/// The send queue of a connection.
///
/// Nothing of it is allocated per PDU: arena and chunks keep their memory. Both are bounded by
/// the queue's depth: a slot has at most one R2T, or one response, in here.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    arena: Vec<u8>,
    /// Bytes of the arena that have been sent.
    arena_sent: usize,
    chunks: VecDeque<Chunk>,
}

impl SendQueue {
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// PDUs, or parts of them, that wait.
    pub(crate) fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Has the encoder write a header at the arena's end.
    fn header(&mut self, encode: impl FnOnce(&mut [u8]) -> Result<usize, EncodeError>) -> usize {
        let start = self.arena.len();
        self.arena.resize(start + HEADER_ROOM, 0);
        let len = encode(&mut self.arena[start..])
            .expect("the longest header fits, and data lengths and alignments are checked");
        self.arena.truncate(start + len);
        len
    }

    fn push(&mut self, header_len: usize, payload: Payload, len: usize, slot: Option<SlotId>) {
        self.chunks.push_back(Chunk {
            header_left: header_len,
            payload,
            payload_sent: 0,
            payload_len: len,
            slot,
            has_begun: false,
            is_digest: false,
        });
    }

    pub(crate) fn push_ic_resp(&mut self, header_digest: bool, digest: bool, maxh2cdata: u32) {
        let len = self.header(|out| encode_ic_resp(out, 0, header_digest, digest, maxh2cdata));
        self.push(len, Payload::None, 0, None);
    }

    pub(crate) fn push_term_req(&mut self, fes: u16, fei: u32, offending: &[u8]) {
        let len = self.header(|out| encode_term_req(out, Receiver::Host, fes, fei, offending));
        self.push(len, Payload::None, 0, None);
    }

    pub(crate) fn push_r2t(&mut self, cid: Cid, ttag: SlotId, len: u32, options: &EncodeOptions) {
        let len = self.header(|out| encode_r2t(out, cid, ttag.0, 0, len, options));
        self.push(len, Payload::None, 0, None);
    }

    pub(crate) fn push_response(&mut self, slot: SlotId, cqe: &Cqe, options: &EncodeOptions) {
        let len = self.header(|out| encode_capsule_resp(out, cqe, options));
        self.push(len, Payload::None, 0, Some(slot));
    }

    /// Data for the host in one PDU. `ends` is the slot if no response PDU follows.
    pub(crate) fn push_data(
        &mut self,
        cid: Cid,
        payload: Payload,
        data_len: u32,
        ends: Option<SlotId>,
        options: &EncodeOptions,
    ) {
        let is_success = ends.is_some();
        let header_len =
            self.header(|out| encode_c2h_data(out, cid, 0, data_len, true, is_success, options));
        let len = data_len as usize;
        if !options.data_digest {
            self.push(header_len, payload, len, ends);
            return;
        }
        let digest = data_digest(crc_of(&payload, len));
        self.push(header_len, payload, len, None);
        self.arena.extend_from_slice(&digest);
        self.push(DIGEST_LEN, Payload::None, 0, ends);
        self.chunks.back_mut().expect("just pushed").is_digest = true;
    }

    /// Sends what the socket takes in one call; the bytes that it took. Slots that are free now are
    /// appended to `released`.
    pub(crate) fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        list: &mut SegmentList,
        released: &mut Vec<SlotId>,
    ) -> io::Result<usize> {
        let sent = self.gather(list).send(fd)?;
        self.advance(sent, released);
        Ok(sent)
    }

    /// Takes back the PDUs that have not begun. Their slots are not told: for a connection that has
    /// given up its queue pair.
    pub(crate) fn cancel(&mut self) {
        let is_under_way = |chunk: &Chunk| chunk.has_begun || chunk.is_digest;
        let mut kept = usize::from(self.chunks.front().is_some_and(is_under_way));
        if kept == 1 && self.chunks.get(1).is_some_and(|chunk| chunk.is_digest) {
            kept = 2;
        }
        self.chunks.truncate(kept);
        let bytes: usize = self.chunks.iter().map(|chunk| chunk.header_left).sum();
        self.arena.truncate(self.arena_sent + bytes);
    }

    fn gather<'list, 'a>(&'a self, list: &'list mut SegmentList) -> Gather<'list, 'a> {
        let mut gather = list.gather();
        let mut start = self.arena_sent;
        let mut end = start;
        for chunk in &self.chunks {
            end += chunk.header_left;
            if chunk.payload_sent == chunk.payload_len {
                continue;
            }
            // Headers of PDUs in a row lie in a row: one segment.
            if !gather.push(&self.arena[start..end]) || !gather.push(payload_segment(chunk)) {
                return gather;
            }
            start = end;
        }
        // If the list is full these bytes are for the next call.
        let _ = gather.push(&self.arena[start..end]);
        gather
    }

    fn advance(&mut self, mut sent: usize, released: &mut Vec<SlotId>) {
        while let Some(chunk) = self.chunks.front_mut() {
            let header = sent.min(chunk.header_left);
            chunk.header_left -= header;
            self.arena_sent += header;
            sent -= header;
            let payload = sent.min(chunk.payload_len - chunk.payload_sent);
            chunk.payload_sent += payload;
            sent -= payload;
            chunk.has_begun |= header + payload > 0;
            if chunk.header_left > 0 || chunk.payload_sent < chunk.payload_len {
                break;
            }
            released.extend(chunk.slot);
            self.chunks.pop_front();
        }
        if self.chunks.is_empty() {
            self.arena.clear();
            self.arena_sent = 0;
        } else if self.arena_sent >= COMPACT_MIN && self.arena_sent * 2 >= self.arena.len() {
            self.arena.drain(..self.arena_sent);
            self.arena_sent = 0;
        }
    }
}

fn payload_segment(chunk: &Chunk) -> Segment<'_> {
    let range = chunk.payload_sent..chunk.payload_len;
    match &chunk.payload {
        Payload::None => Segment::new(&[]),
        Payload::Buf(buf) => Segment::of_buf(buf, range),
        Payload::Lent(lent) => Segment::of_lent(lent, range),
    }
}

/// The CRC-32C of the first `len` bytes.
fn crc_of(payload: &Payload, len: usize) -> u32 {
    let mut crc = Crc32c::new();
    match payload {
        Payload::None => {}
        Payload::Buf(buf) => crc.update(&buf.as_slice()[..len]),
        Payload::Lent(lent) => {
            let mut copy = [0; DIGEST_CHUNK];
            for from in (0..len).step_by(DIGEST_CHUNK) {
                let part = &mut copy[..DIGEST_CHUNK.min(len - from)];
                lent.copy_range_to(from, part);
                crc.update(part);
            }
        }
    }
    crc.finalize()
}
