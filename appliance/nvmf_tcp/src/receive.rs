//! The receiving half of a connection.
//!
//! Bytes come into the group's scratch; small PDUs are read there. Payload that is there already is
//! copied into its buffer, and the rest of it is received straight into the buffer, with the
//! scratch behind it for what follows. When parsing stops, what is left over is the beginning of a
//! header, which is stashed in the connection. The one other case is a command whose in-capsule
//! data waits for a buffer: then the connection keeps the scratch with the bytes behind it and reads
//! no more, and TCP slows the host down.

use std::io;
use std::os::fd::AsFd;

use dma::Payload;
use fabric_wire::digest::{DIGEST_LEN, crc32c};
use fabric_wire::tcp::{
    FES_DATA_OUT_OF_RANGE, FES_INVALID_HEADER_FIELD, FES_SEQUENCE_ERROR, Pdu, PduError, PduLayout,
    PduType, Receiver, data_alignment_bytes, decode_common,
};
use nvme_spec::opcode::data_direction;
use nvme_spec::{Cid, Sqe};
use nvmf::CommandError;
use nvmf::transport::{SlotId, Step};

use crate::commands::Commands;
use crate::connection::{Connection, End, Fatal, Phase};
use crate::group_io::GroupIo;
use crate::stats::count;
use crate::transfer::Fill;

/// A header with its digest and padding ends before this: PDO is one byte.
pub(crate) const STASH_LEN: usize = 256;
/// PDUs that are sent at once, before more commands are run: the host has something to do then.
const SEND_EARLY: usize = 32;
/// Scratch used while data that R2Ts asked for is to come: most of it shall land in its buffer,
/// not here.
const DATA_WINDOW: usize = 4096;

// Offsets of H2CData fields and of the flags, for FEI.
const AT_TYPE: u32 = 0;
const AT_FLAGS: u32 = 1;
const AT_CCCID: u32 = 8;
const AT_TTAG: u32 = 10;

/// Data direction of an opcode: host to controller.
const TO_CONTROLLER: u8 = 0b01;

/// What the next bytes are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expect {
    /// A PDU's header.
    Header,
    /// In-capsule data of `len` bytes of a command that has no buffer yet: reading has stopped.
    Buffer { slot: SlotId, len: u32 },
    /// Data for a buffer.
    Data(Fill),
    /// The digest of data that has come.
    Digest(Fill),
    /// Bytes that nobody wants.
    Skip(u32),
    /// The connection ends: everything is thrown away.
    Nothing,
}

/// Received bytes that wait while reading has stopped.
pub(crate) struct Held {
    pub(crate) scratch: Box<[u8]>,
    start: usize,
    end: usize,
}

/// What a receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Nothing is there now.
    Nothing,
    /// Bytes came; `is_drained`: all that were there.
    Bytes { is_drained: bool },
}

impl Connection {
    /// Whether reading has stopped until a command gets its buffer.
    pub(crate) fn is_reading_stopped(&self) -> bool {
        matches!(self.expect, Expect::Buffer { .. })
    }

    /// Receives once and runs what came.
    pub(crate) fn receive<C: Commands>(
        &mut self,
        core: &mut C,
        io: &mut GroupIo,
    ) -> Result<Received, End> {
        let mut scratch = std::mem::take(&mut io.scratch);
        let received = self.receive_into(io, &mut scratch);
        let (count, asked, in_place) = match received {
            Ok(received) => received,
            Err(error) => {
                io.scratch = scratch;
                return match error.kind() {
                    io::ErrorKind::WouldBlock => Ok(Received::Nothing),
                    _ => Err(End::Peer),
                };
            }
        };
        if count == 0 {
            io.scratch = scratch;
            return Err(End::Peer);
        }
        self.progress.received += count as u64;
        let direct = count.min(in_place);
        let end = self.stash_len + count - direct;
        self.stash_len = 0;
        let mut used = self.place(core, io, direct);
        if used.is_ok() {
            used = self.consume(core, io, &scratch[..end]);
        }
        self.keep(io, scratch, end, used)?;
        Ok(Received::Bytes {
            is_drained: count < asked,
        })
    }

    /// One receive call: bytes received, bytes asked for, bytes that went to a buffer at most.
    fn receive_into(
        &mut self,
        io: &mut GroupIo,
        scratch: &mut [u8],
    ) -> io::Result<(usize, usize, usize)> {
        let stashed = self.stash_len;
        scratch[..stashed].copy_from_slice(&self.stash[..stashed]);
        let end = if self.awaited_bytes > 0 {
            DATA_WINDOW
        } else {
            scratch.len()
        };
        let mut scatter = io.list.scatter();
        let mut in_place = 0;
        if let Expect::Data(fill) = self.expect {
            let part = self.transfers[usize::from(fill.slot.0)].part(fill.at, fill.end);
            in_place = part.len();
            let _ = scatter.push(part);
        }
        let _ = scatter.push(&mut scratch[stashed..end]);
        let asked = scatter.bytes();
        io.receive_calls += 1;
        Ok((scatter.receive(self.stream.as_fd())?, asked, in_place))
    }

    /// Notes bytes that were received straight into a buffer.
    fn place<C: Commands>(
        &mut self,
        core: &mut C,
        io: &mut GroupIo,
        count: usize,
    ) -> Result<usize, End> {
        if let Expect::Data(mut fill) = self.expect
            && count > 0
        {
            fill.at += count as u32;
            self.filled(core, io, fill);
        }
        Ok(0)
    }

    /// Keeps what could not be consumed, or gives the scratch back.
    fn keep(
        &mut self,
        io: &mut GroupIo,
        scratch: Box<[u8]>,
        end: usize,
        used: Result<usize, End>,
    ) -> Result<(), End> {
        match used {
            Ok(start) if start < end && self.is_reading_stopped() => {
                self.held = Some(Held {
                    scratch,
                    start,
                    end,
                });
                io.scratch = io.spare();
            }
            _ => io.scratch = scratch,
        }
        used.map(|_| ())
    }

    /// A slot that was pending goes on. If its data was waited for, so does reading.
    pub(crate) fn step<C: Commands>(
        &mut self,
        core: &mut C,
        io: &mut GroupIo,
        slot: SlotId,
        step: Step,
    ) -> Result<(), End> {
        match self.expect {
            Expect::Buffer { slot: waiting, len } if waiting == slot => {
                self.in_capsule(core, io, slot, step, len);
                let Some(held) = self.held.take() else {
                    return Ok(());
                };
                let Held {
                    scratch,
                    start,
                    end,
                } = held;
                let used = self.consume(core, io, &scratch[start..end]);
                match used {
                    Ok(used) if start + used < end && self.is_reading_stopped() => {
                        self.held = Some(Held {
                            scratch,
                            start: start + used,
                            end,
                        });
                    }
                    _ => io.give_back(scratch),
                }
                used.map(|_| ())
            }
            _ => {
                self.advance(core, io, slot, step);
                Ok(())
            }
        }
    }

    /// Reads PDUs; returns how many bytes were used. Fewer than there are only when reading stops.
    fn consume<C: Commands>(
        &mut self,
        core: &mut C,
        io: &mut GroupIo,
        bytes: &[u8],
    ) -> Result<usize, End> {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            match self.expect {
                Expect::Header => match self.header(rest)? {
                    Some((layout, pdu)) => {
                        at += layout.data_offset;
                        if self.send.len() >= SEND_EARLY && !self.is_send_blocked {
                            self.flush(core, io).map_err(|_| End::Peer)?;
                        }
                        self.pdu(core, io, pdu, &rest[..layout.header_len])?;
                    }
                    None => return Ok(self.put_by(bytes, at)),
                },
                Expect::Data(mut fill) => {
                    let count = rest.len().min((fill.end - fill.at) as usize);
                    let to = fill.at + count as u32;
                    let part = self.transfer(fill.slot).part(fill.at, to);
                    part.copy_from_slice(&rest[..count]);
                    fill.at = to;
                    at += count;
                    self.filled(core, io, fill);
                    if to < fill.end {
                        return Ok(at);
                    }
                }
                Expect::Digest(fill) => match rest.first_chunk::<DIGEST_LEN>() {
                    Some(digest) => {
                        at += DIGEST_LEN;
                        self.check_digest(core, io, fill, u32::from_le_bytes(*digest));
                    }
                    None => return Ok(self.put_by(bytes, at)),
                },
                Expect::Skip(left) => {
                    let count = rest.len().min(left as usize);
                    at += count;
                    if count < left as usize {
                        self.expect = Expect::Skip(left - count as u32);
                        return Ok(at);
                    }
                    self.expect = Expect::Header;
                }
                Expect::Buffer { .. } => return Ok(at),
                Expect::Nothing => return Ok(bytes.len()),
            }
        }
    }

    /// Stashes what is left; the rest of it comes later.
    fn put_by(&mut self, bytes: &[u8], at: usize) -> usize {
        let rest = &bytes[at..];
        self.stash[..rest.len()].copy_from_slice(rest);
        self.stash_len = rest.len();
        bytes.len()
    }

    /// Checks a PDU's header; `None` if it has not come whole.
    fn header(&self, bytes: &[u8]) -> Result<Option<(PduLayout, Pdu)>, End> {
        let layout = match decode_common(bytes, Receiver::Controller, &self.decode) {
            Ok(layout) => layout,
            Err(PduError::Incomplete { .. }) => return Ok(None),
            Err(error) => {
                let header = &bytes[..fabric_wire::tcp::COMMON_HEADER_LEN];
                return Err(Fatal::of_pdu(&error, header));
            }
        };
        let is_in_turn = match layout.pdu_type {
            PduType::IcReq => self.phase == Phase::IcReq,
            PduType::H2CTermReq => true,
            _ => self.phase != Phase::IcReq,
        };
        if !is_in_turn {
            let header = &bytes[..layout.header_len.min(bytes.len())];
            return Err(Fatal::end(FES_SEQUENCE_ERROR, AT_TYPE, header));
        }
        if bytes.len() < layout.data_offset {
            return Ok(None);
        }
        match layout.decode(bytes) {
            Ok(pdu) => Ok(Some((layout, pdu))),
            Err(error) => Err(Fatal::of_pdu(&error, &bytes[..layout.header_len])),
        }
    }

    fn pdu<C: Commands>(
        &mut self,
        core: &mut C,
        io: &mut GroupIo,
        pdu: Pdu,
        header: &[u8],
    ) -> Result<(), End> {
        match pdu {
            Pdu::CapsuleCmd { sqe, data_len } => self.command(core, io, sqe, data_len, header),
            Pdu::H2CData {
                cccid,
                ttag,
                datao,
                datal,
                last,
            } => {
                let fill = self.data(cccid, ttag, (datao, datal), last, header)?;
                self.expect = Expect::Data(fill);
                Ok(())
            }
            Pdu::IcReq {
                hpda,
                header_digest,
                data_digest,
                ..
            } => {
                let pda = data_alignment_bytes(hpda)
                    .ok_or_else(|| Fatal::end(FES_INVALID_HEADER_FIELD, 10, header))?;
                self.initialize(io, pda, header_digest, data_digest);
                Ok(())
            }
            Pdu::TermReq { fes, fei, .. } => {
                count(&io.stats.term_reqs_received);
                if io.may_warn() {
                    let peer = &self.peer.remote;
                    tracing::warn!(%peer, fes, fei, "the host ended the connection: H2CTermReq");
                }
                Err(End::Peer)
            }
            // The decoder lets no other kind through to a controller.
            _ => Err(Fatal::end(FES_SEQUENCE_ERROR, AT_TYPE, header)),
        }
    }

    fn initialize(&mut self, io: &GroupIo, pda: u32, header_digest: bool, data_digest: bool) {
        let header_digest = header_digest && io.options.header_digest;
        let data_digest = data_digest && io.options.data_digest;
        // ICResp itself has no digest, whatever was agreed.
        self.send
            .push_ic_resp(header_digest, data_digest, io.options.maxh2cdata);
        self.decode.header_digest = header_digest;
        self.decode.data_digest = data_digest;
        self.encode.header_digest = header_digest;
        self.encode.data_digest = data_digest;
        self.encode.pda = pda;
        self.phase = Phase::Connect;
    }

    /// Runs a command.
    fn command<C: Commands>(
        &mut self,
        core: &mut C,
        io: &mut GroupIo,
        sqe: Sqe,
        data_len: u32,
        header: &[u8],
    ) -> Result<(), End> {
        let qpair = match self.qpair {
            Some(qpair) => qpair,
            None => self.open(core, io, &sqe)?,
        };
        let (slot, step) = match core.command(qpair, sqe, data_len) {
            Ok(running) => running,
            Err(CommandError::QueueOverrun) => {
                return Err(Fatal::end(FES_SEQUENCE_ERROR, 0, header));
            }
            Err(_) => return Err(End::Peer),
        };
        if step != Step::Respond {
            self.transfer(slot).cid = sqe.cid();
        }
        if data_len == 0 {
            self.advance(core, io, slot, step);
        } else if step == Step::Pending && sqe.sgl().is_in_capsule() && goes_to_controller(&sqe) {
            self.progress.was_stopped = true;
            self.expect = Expect::Buffer {
                slot,
                len: data_len,
            };
        } else if step == Step::Receive && sqe.sgl().is_in_capsule() {
            self.in_capsule(core, io, slot, step, data_len);
        } else {
            // The command failed already, or takes no data from here.
            self.skip(data_len);
            self.advance(core, io, slot, step);
        }
        Ok(())
    }

    /// Begins to receive a command's in-capsule data, or skips it if the command has failed.
    fn in_capsule<C: Commands>(
        &mut self,
        core: &mut C,
        io: &GroupIo,
        slot: SlotId,
        step: Step,
        data_len: u32,
    ) {
        let Some(qpair) = self.qpair else { return };
        if step != Step::Receive {
            self.skip(data_len);
            self.advance(core, io, slot, step);
            return;
        }
        let (payload, len) = core.take_receive(qpair, slot);
        if len != data_len || !self.transfer(slot).begin(payload, len, false) {
            self.skip(data_len);
            let step = core.data_received(qpair, slot, Payload::None);
            self.advance(core, io, slot, step);
            return;
        }
        self.expect = Expect::Data(Fill {
            slot,
            start: 0,
            end: len,
            at: 0,
        });
    }

    fn skip(&mut self, data_len: u32) {
        let digest_len = if self.decode.data_digest {
            DIGEST_LEN as u32
        } else {
            0
        };
        self.expect = Expect::Skip(data_len + digest_len);
    }

    /// Checks an H2CData against what was asked for.
    fn data(
        &mut self,
        cccid: Cid,
        ttag: u16,
        (datao, datal): (u32, u32),
        is_last: bool,
        header: &[u8],
    ) -> Result<Fill, End> {
        let invalid = |at| Fatal::end(FES_INVALID_HEADER_FIELD, at, header);
        let transfer = self
            .transfers
            .get(usize::from(ttag))
            .filter(|transfer| transfer.is_awaited);
        let transfer = transfer.ok_or_else(|| invalid(AT_TTAG))?;
        if transfer.cid != cccid {
            return Err(invalid(AT_CCCID));
        }
        // The decoder has checked that the sum does not overflow, and datal against MAXH2CDATA.
        let end = datao + datal;
        if datao != transfer.received || end > transfer.len {
            return Err(Fatal::end(FES_DATA_OUT_OF_RANGE, 0, header));
        }
        if is_last != (end == transfer.len) {
            return Err(invalid(AT_FLAGS));
        }
        self.awaited_bytes -= u64::from(datal);
        Ok(Fill {
            slot: SlotId(ttag),
            start: datao,
            end,
            at: datao,
        })
    }

    /// Bytes of data have come.
    fn filled<C: Commands>(&mut self, core: &mut C, io: &mut GroupIo, fill: Fill) {
        if fill.at < fill.end {
            self.expect = Expect::Data(fill);
        } else if self.decode.data_digest {
            self.expect = Expect::Digest(fill);
        } else {
            self.part_done(core, io, fill);
        }
    }

    fn check_digest<C: Commands>(
        &mut self,
        core: &mut C,
        io: &mut GroupIo,
        fill: Fill,
        digest: u32,
    ) {
        let transfer = self.transfer(fill.slot);
        if crc32c(transfer.part(fill.start, fill.end)) != digest {
            // Not fatal: the connection is in step. The command fails, and the host may retry it.
            transfer.is_damaged = true;
            count(&io.stats.data_digest_errors);
        }
        self.part_done(core, io, fill);
    }

    /// The data of one PDU has come.
    fn part_done<C: Commands>(&mut self, core: &mut C, io: &GroupIo, fill: Fill) {
        self.expect = Expect::Header;
        let transfer = self.transfer(fill.slot);
        transfer.received = fill.end;
        if transfer.received < transfer.len {
            return;
        }
        let payload = transfer.end();
        let Some(qpair) = self.qpair else { return };
        let step = core.data_received(qpair, fill.slot, payload);
        self.advance(core, io, fill.slot, step);
    }
}

/// Whether a command of this kind takes data from the host. One that does not never asks for its
/// in-capsule data, which is skipped then and there.
fn goes_to_controller(sqe: &Sqe) -> bool {
    let opcode = if sqe.is_fabrics() {
        sqe.fctype()
    } else {
        sqe.opcode()
    };
    data_direction(opcode) & TO_CONTROLLER != 0
}
