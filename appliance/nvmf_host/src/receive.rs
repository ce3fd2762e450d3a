//! From received bytes to data and completions.

use std::io;
use std::os::fd::AsFd;

use dma::sg::{SegmentMut, recvmsg};
use fabric_wire::digest::{Crc32c, DIGEST_LEN};
use fabric_wire::tcp::{
    COMMON_HEADER_LEN, FES_SEQUENCE_ERROR, MAX_TERM_REQ_DATA_LEN, Pdu, PduError, Receiver,
    decode_common,
};
use nvme_spec::{Cid, Cqe, Status};

use crate::buffer::Buffer;
use crate::command::{Completion, Direction};
use crate::error::{HostError, Violation};
use crate::queue::{Fault, Link, Scratch, TcpQueue, Term};

/// Room for the longest header with digest and padding: PDO is one byte.
pub(crate) const STASH_LEN: usize = 256;
/// Data of at least this length is received straight into the command's buffer.
const DIRECT_MIN: usize = 8 << 10;
/// Room for headers behind and before such data.
const BULK_WINDOW: usize = 4 << 10;
/// Receive calls of one poll, so that other connections get their turn.
const MAX_CALLS: usize = 8;

/// What the next received byte is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expect {
    /// Of a header, or of the padding after it.
    Header,
    /// Of a command's data.
    Data(Incoming),
    /// Of the digest of a command's data.
    Digest(Incoming),
}

/// The data of a C2HData.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming {
    slot: u16,
    /// Where in the command's data the next byte goes.
    at: u32,
    remaining: u32,
    crc: Option<Crc32c>,
    /// The command has succeeded with it.
    is_success: bool,
}

pub(crate) type Checked<T> = Result<T, Box<Fault>>;

impl TcpQueue {
    /// Receives what has come. Returns whether anything had.
    pub(crate) fn receive(&mut self, completions: &mut Vec<Completion>) -> Checked<bool> {
        let context = self.context.clone();
        let mut scratch = context.0.borrow_mut();
        let Scratch { bytes, .. } = &mut *scratch;
        for call in 0..MAX_CALLS {
            let (received, asked) = match self.receive_once(bytes, completions) {
                Ok(counts) => counts,
                Err(Stop::Nothing) => return Ok(call > 0),
                Err(Stop::Fault(fault)) => return Err(fault),
            };
            // A short count means that the socket is empty.
            if received < asked {
                return Ok(true);
            }
        }
        Ok(true)
    }

    fn receive_once(
        &mut self,
        scratch: &mut [u8],
        completions: &mut Vec<Completion>,
    ) -> Result<(usize, usize), Stop> {
        let Some(socket) = &self.socket else {
            return Err(Stop::Nothing);
        };
        self.counters.receive_calls += 1;
        let window = if self.is_bulk {
            BULK_WINDOW
        } else {
            scratch.len()
        };
        let stashed = self.stash_len;
        let direct = match &self.expect {
            Expect::Data(incoming) if incoming.remaining as usize >= DIRECT_MIN => Some(*incoming),
            _ => None,
        };
        let (received, asked) = match direct {
            Some(incoming) => {
                let (at, len) = (incoming.at as usize, incoming.remaining as usize);
                let buffer = self.slots.get_mut(incoming.slot).buffer.as_mut_slice();
                match buffer.and_then(|bytes| bytes.get_mut(at..at + len)) {
                    Some(data) => {
                        let mut segments = [
                            SegmentMut::new(data),
                            SegmentMut::new(&mut scratch[..window]),
                        ];
                        let received = recvmsg(socket.as_fd(), &mut segments);
                        let received = self.check_received(received)?;
                        let count = received.min(len);
                        self.take_direct(incoming, count, completions);
                        let rest = &scratch[..received - count];
                        self.parse(rest, completions).map_err(Stop::Fault)?;
                        return Ok((received, len + window));
                    }
                    // Data that is discarded goes through the scratch.
                    None => {
                        let mut segments = [SegmentMut::new(&mut *scratch)];
                        (recvmsg(socket.as_fd(), &mut segments), scratch.len())
                    }
                }
            }
            None => {
                scratch[..stashed].copy_from_slice(&self.stash[..stashed]);
                let mut segments = [SegmentMut::new(
                    &mut scratch[stashed..window.max(STASH_LEN * 2)],
                )];
                let asked = segments[0].len();
                (recvmsg(socket.as_fd(), &mut segments), asked)
            }
        };
        let received = self.check_received(received)?;
        self.stash_len = 0;
        let bytes = &scratch[..stashed + received];
        self.parse(bytes, completions).map_err(Stop::Fault)?;
        Ok((received, asked))
    }

    fn check_received(&mut self, received: io::Result<usize>) -> Result<usize, Stop> {
        match received {
            Ok(0) => {
                let address = self.config.address.to_string();
                let error = HostError::Closed {
                    address,
                    qid: self.config.qid,
                };
                Err(Stop::Fault(Box::new(Fault { error, term: None })))
            }
            Ok(received) => {
                self.counters.received_bytes += received as u64;
                Ok(received)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Stop::Nothing),
            Err(error) => {
                let error = self.socket_error("receive", error);
                Err(Stop::Fault(Box::new(Fault { error, term: None })))
            }
        }
    }

    /// Takes bytes that lie in the command's buffer already.
    fn take_direct(
        &mut self,
        mut incoming: Incoming,
        count: usize,
        completions: &mut Vec<Completion>,
    ) {
        let at = incoming.at as usize;
        if let Some(crc) = &mut incoming.crc {
            let bytes = self.slots.get(incoming.slot).buffer.as_slice();
            crc.update(
                bytes
                    .and_then(|bytes| bytes.get(at..at + count))
                    .unwrap_or_default(),
            );
        }
        self.advance_data(incoming, count, completions);
    }

    /// `count` bytes of data have been put where they belong.
    fn advance_data(
        &mut self,
        mut incoming: Incoming,
        count: usize,
        completions: &mut Vec<Completion>,
    ) {
        let count = u32::try_from(count).expect("at most the remaining bytes, a u32");
        incoming.at += count;
        incoming.remaining -= count;
        if incoming.remaining > 0 {
            self.expect = Expect::Data(incoming);
        } else if incoming.crc.is_some() {
            self.expect = Expect::Digest(incoming);
        } else {
            self.expect = Expect::Header;
            self.end_data(&incoming, completions);
        }
    }

    fn end_data(&mut self, incoming: &Incoming, completions: &mut Vec<Completion>) {
        if incoming.is_success {
            let cid = self.slots.cid(incoming.slot);
            self.complete(incoming.slot, Cqe::new(cid, Status::SUCCESS), completions);
        }
    }

    /// Takes all of `bytes`. What is left of a header is stashed.
    pub(crate) fn parse(
        &mut self,
        mut bytes: &[u8],
        completions: &mut Vec<Completion>,
    ) -> Checked<()> {
        while !bytes.is_empty() {
            match self.expect {
                Expect::Header => match self.parse_header(bytes, completions)? {
                    Some(taken) => bytes = &bytes[taken..],
                    None => {
                        self.stash[..bytes.len()].copy_from_slice(bytes);
                        self.stash_len = bytes.len();
                        return Ok(());
                    }
                },
                Expect::Data(mut incoming) => {
                    let count = bytes.len().min(incoming.remaining as usize);
                    let (data, rest) = bytes.split_at(count);
                    if let Some(crc) = &mut incoming.crc {
                        crc.update(data);
                    }
                    let at = incoming.at as usize;
                    let buffer = &mut self.slots.get_mut(incoming.slot).buffer;
                    if !matches!(buffer, Buffer::Discard { .. }) {
                        let into = buffer.as_mut_slice();
                        into.and_then(|into| into.get_mut(at..at + count))
                            .expect("the range was checked against the command's buffer")
                            .copy_from_slice(data);
                    }
                    self.advance_data(incoming, count, completions);
                    bytes = rest;
                }
                Expect::Digest(incoming) => {
                    let Some((digest, rest)) = bytes.split_first_chunk::<DIGEST_LEN>() else {
                        self.stash[..bytes.len()].copy_from_slice(bytes);
                        self.stash_len = bytes.len();
                        return Ok(());
                    };
                    let computed = incoming.crc.unwrap_or_default().finalize();
                    if u32::from_le_bytes(*digest) != computed {
                        self.slots.get_mut(incoming.slot).has_bad_digest = true;
                    }
                    self.expect = Expect::Header;
                    self.end_data(&incoming, completions);
                    bytes = rest;
                }
            }
        }
        Ok(())
    }

    /// Takes a header with its digest and padding. `None`: some of it is missing.
    #[inline]
    fn parse_header(
        &mut self,
        bytes: &[u8],
        completions: &mut Vec<Completion>,
    ) -> Checked<Option<usize>> {
        if bytes.len() < COMMON_HEADER_LEN {
            return Ok(None);
        }
        let layout = decode_common(bytes, Receiver::Host, &self.decode)
            .map_err(|error| self.pdu_fault(error, &bytes[..COMMON_HEADER_LEN]))?;
        let end = layout.data_offset.max(layout.header_len_with_digest());
        if bytes.len() < end {
            return Ok(None);
        }
        let header = &bytes[..layout.header_len];
        let pdu = layout
            .decode(bytes)
            .map_err(|error| self.pdu_fault(error, header))?;
        match pdu {
            Pdu::C2HData {
                cccid,
                datao,
                datal,
                last,
                success,
            } if self.is_ready() => {
                self.begin_data(cccid, (datao, datal), (last, success), header)?;
            }
            Pdu::CapsuleResp { cqe } if self.is_ready() => {
                let Some((index, _)) = self.slots.find(cqe.cid()) else {
                    let violation = Violation::UnknownCommand {
                        pdu: "capsuleresp",
                        cid: cqe.cid(),
                    };
                    return Err(self.fault(violation, header));
                };
                self.complete(index, cqe, completions);
            }
            Pdu::R2T {
                cccid,
                ttag,
                r2to,
                r2tl,
            } if self.is_ready() => {
                self.take_r2t(cccid, ttag, (r2to, r2tl), header)?;
            }
            Pdu::IcResp {
                cpda,
                header_digest,
                data_digest,
                maxh2cdata,
            } if matches!(self.link, Link::Initializing) => {
                self.agree(cpda, (header_digest, data_digest), maxh2cdata)
                    .map_err(|error| Box::new(Fault { error, term: None }))?;
            }
            Pdu::TermReq { fes, fei, .. } => {
                let address = self.config.address.to_string();
                let error = HostError::Terminated {
                    address,
                    qid: self.config.qid,
                    fes,
                    fei,
                };
                return Err(Box::new(Fault { error, term: None }));
            }
            other => {
                let expected = if self.is_ready() {
                    "an answer"
                } else {
                    "icresp"
                };
                let violation = Violation::Sequence {
                    found: pdu_name(&other),
                    expected,
                };
                return Err(self.fault(violation, header));
            }
        }
        Ok(Some(end))
    }

    #[inline]
    fn begin_data(
        &mut self,
        cid: Cid,
        (offset, len): (u32, u32),
        (is_last, is_success): (bool, bool),
        header: &[u8],
    ) -> Checked<()> {
        let pdu = "c2hdata";
        let has_digest = self.decode.data_digest;
        let Some((index, slot)) = self.slots.find(cid) else {
            return Err(self.fault(Violation::UnknownCommand { pdu, cid }, header));
        };
        let (expected, limit) = (slot.moved, slot.len);
        let violation = if slot.direction != Direction::FromController {
            Some(Violation::WrongDirection { pdu, cid })
        } else if slot.is_last_seen {
            Some(Violation::AfterLast { cid })
        } else if offset != expected {
            Some(Violation::OutOfOrder {
                pdu,
                cid,
                offset,
                expected,
            })
        } else if len > limit - expected {
            Some(Violation::PastEnd {
                pdu,
                cid,
                offset,
                len,
                limit,
            })
        } else {
            None
        };
        if let Some(violation) = violation {
            return Err(self.fault(violation, header));
        }
        slot.moved += len;
        slot.is_last_seen = is_last;
        self.is_bulk =
            len as usize >= 2 * DIRECT_MIN && !matches!(slot.buffer, Buffer::Discard { .. });
        let crc = has_digest.then(Crc32c::new);
        self.expect = Expect::Data(Incoming {
            slot: index,
            at: offset,
            remaining: len,
            crc,
            is_success,
        });
        Ok(())
    }

    fn take_r2t(
        &mut self,
        cid: Cid,
        ttag: u16,
        (offset, len): (u32, u32),
        header: &[u8],
    ) -> Checked<()> {
        let pdu = "r2t";
        let max_r2t = self.config.max_r2t;
        let Some((index, slot)) = self.slots.find(cid) else {
            return Err(self.fault(Violation::UnknownCommand { pdu, cid }, header));
        };
        let (expected, limit) = (slot.moved, slot.len);
        let violation = if slot.direction != Direction::ToController {
            Some(Violation::WrongDirection { pdu, cid })
        } else if offset != expected {
            Some(Violation::OutOfOrder {
                pdu,
                cid,
                offset,
                expected,
            })
        } else if len > limit - expected {
            Some(Violation::PastEnd {
                pdu,
                cid,
                offset,
                len,
                limit,
            })
        } else if slot.r2ts >= max_r2t {
            Some(Violation::R2tLimit {
                cid,
                limit: max_r2t,
            })
        } else {
            None
        };
        if let Some(violation) = violation {
            return Err(self.fault(violation, header));
        }
        slot.moved += len;
        slot.r2ts += 1;
        self.send.push_transfer((index, cid), ttag, offset, len);
        Ok(())
    }

    #[cold]
    fn pdu_fault(&self, error: PduError, header: &[u8]) -> Box<Fault> {
        let term = Term::new(
            error.fes().unwrap_or(FES_SEQUENCE_ERROR),
            error.fei(),
            header,
        );
        let address = self.config.address.to_string();
        let error = HostError::Pdu {
            address,
            qid: self.config.qid,
            source: error,
        };
        Box::new(Fault {
            error,
            term: Some(term),
        })
    }

    #[cold]
    fn fault(&self, violation: Violation, header: &[u8]) -> Box<Fault> {
        let term = Term::new(violation.fes(), violation.fei(), header);
        Box::new(Fault {
            error: self.violation(violation),
            term: Some(term),
        })
    }
}

/// Why a receive ended without data.
enum Stop {
    /// Nothing is there.
    Nothing,
    Fault(Box<Fault>),
}

impl Term {
    fn new(fes: u16, fei: u32, offending: &[u8]) -> Self {
        let len = offending.len().min(MAX_TERM_REQ_DATA_LEN);
        let mut header = [0; MAX_TERM_REQ_DATA_LEN];
        header[..len].copy_from_slice(&offending[..len]);
        Self {
            fes,
            fei,
            header,
            len,
        }
    }
}

fn pdu_name(pdu: &Pdu) -> &'static str {
    match pdu {
        Pdu::IcResp { .. } => "icresp",
        Pdu::CapsuleResp { .. } => "capsuleresp",
        Pdu::C2HData { .. } => "c2hdata",
        Pdu::R2T { .. } => "r2t",
        _ => "a pdu for controllers",
    }
}
