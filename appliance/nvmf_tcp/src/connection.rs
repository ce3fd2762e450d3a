//! A connection: from bytes to commands, and from responses to bytes.
//!
//! A connection goes through [`Phase`]s. What the next received bytes are is in [`Expect`]. Both
//! change in this file and in `receive.rs` only; nothing here knows of epoll or of time.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;

use dma::Payload;
use fabric_wire::fabrics::ConnectCommand;
use fabric_wire::tcp::{
    DecodeLimits, EncodeOptions, FES_SEQUENCE_ERROR, MAX_TERM_REQ_DATA_LEN, PduError,
};
use nvme_spec::{Qid, Sqe};
use nvmf::OpenQpair;
use nvmf::transport::{CloseReason, ConnectionId, Digests, Peer, QpairId, Response, SlotId, Step};

use crate::commands::Commands;
use crate::group_io::GroupIo;
use crate::listener::{Accepted, ConnectionTicket};
use crate::progress::Progress;
use crate::receive::{Expect, Held, STASH_LEN};
use crate::send::SendQueue;
use crate::transfer::Transfer;

/// In-capsule data that an admin queue takes at least (NVMe TCP 1.1: 8192 bytes), and every queue
/// until its Connect has told which queue it is.
pub(crate) const ADMIN_IN_CAPSULE: u32 = 8192;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// ICReq must come first.
    IcReq,
    /// Connect must be the first command.
    Connect,
    /// The first command runs.
    Connecting,
    /// Connect has succeeded.
    Live,
    /// It ends: what is queued is still sent, what comes is thrown away.
    Closing,
    /// Everything has been sent; the peer shall close its end.
    Lingering,
}

/// Why a connection cannot go on.
#[derive(Debug)]
pub(crate) enum End {
    /// The peer closed or reset it.
    Peer,
    /// The peer broke the protocol and is told so.
    Fatal(Box<Fatal>),
    /// No queue pair could be made: closed without a word, there is none for it.
    Refused,
}

/// The contents of a C2HTermReq.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fatal {
    pub(crate) fes: u16,
    pub(crate) fei: u32,
    header: [u8; MAX_TERM_REQ_DATA_LEN],
    header_len: usize,
}

impl Fatal {
    /// `header` is that of the PDU that broke the protocol.
    #[cold]
    pub(crate) fn end(fes: u16, fei: u32, header: &[u8]) -> End {
        let header_len = header.len().min(MAX_TERM_REQ_DATA_LEN);
        let mut copy = [0; MAX_TERM_REQ_DATA_LEN];
        copy[..header_len].copy_from_slice(&header[..header_len]);
        End::Fatal(Box::new(Self {
            fes,
            fei,
            header: copy,
            header_len,
        }))
    }

    #[cold]
    pub(crate) fn of_pdu(error: &PduError, header: &[u8]) -> End {
        Self::end(
            error.fes().unwrap_or(FES_SEQUENCE_ERROR),
            error.fei(),
            header,
        )
    }
}

pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    pub(crate) id: ConnectionId,
    /// Never used again in this group, as `id` may be.
    pub(crate) serial: u64,
    pub(crate) phase: Phase,
    pub(crate) peer: Peer,
    /// None before Connect and once the connection ends.
    pub(crate) qpair: Option<QpairId>,
    pub(crate) decode: DecodeLimits,
    pub(crate) encode: EncodeOptions,

    // What is received; see receive.rs.
    pub(crate) expect: Expect,
    /// The beginning of a header or digest whose rest has not come.
    pub(crate) stash: [u8; STASH_LEN],
    pub(crate) stash_len: usize,
    /// What was received behind a command that waits for a buffer.
    pub(crate) held: Option<Held>,
    /// By slot.
    pub(crate) transfers: Vec<Transfer>,
    /// Bytes that R2Ts have asked for and that have not come.
    pub(crate) awaited_bytes: u64,

    pub(crate) send: SendQueue,
    pub(crate) progress: Progress,

    // The group's notes.
    pub(crate) is_hot: bool,
    pub(crate) empty_polls: u32,
    pub(crate) is_dirty: bool,
    /// The socket took no more; an event will tell when it does.
    pub(crate) is_send_blocked: bool,
    /// The group has noted that, until the event comes.
    pub(crate) is_block_noted: bool,
    /// The epoll also tells when the socket takes more.
    pub(crate) watches_send: bool,
    pub(crate) close_when_sent: Option<CloseReason>,
    _ticket: ConnectionTicket,
}

impl Connection {
    pub(crate) fn new(
        (id, serial): (ConnectionId, u64),
        accepted: Accepted,
        peer: Peer,
        io: &GroupIo,
    ) -> Self {
        Self {
            stream: accepted.stream,
            id,
            serial,
            phase: Phase::IcReq,
            peer,
            qpair: None,
            decode: DecodeLimits {
                max_in_capsule: ADMIN_IN_CAPSULE,
                max_h2c_data: io.options.maxh2cdata,
                ..DecodeLimits::default()
            },
            encode: EncodeOptions::default(),
            expect: Expect::Header,
            stash: [0; STASH_LEN],
            stash_len: 0,
            held: None,
            transfers: Vec::new(),
            awaited_bytes: 0,
            send: SendQueue::default(),
            progress: Progress::default(),
            is_hot: false,
            empty_polls: 0,
            is_dirty: false,
            is_send_blocked: false,
            is_block_noted: false,
            watches_send: false,
            close_when_sent: None,
            _ticket: accepted.ticket,
        }
    }

    /// Whether it ends, and is no longer the target library's.
    pub(crate) fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Closing | Phase::Lingering)
    }

    /// Makes the queue pair for the first command, as large as its Connect asks and may ask.
    pub(crate) fn open<C: Commands>(
        &mut self,
        core: &mut C,
        io: &GroupIo,
        sqe: &Sqe,
    ) -> Result<QpairId, End> {
        // What is wrong with the command is for the target library to say. A queue pair of one
        // entry is enough for that.
        let (qid, entries) = ConnectCommand::parse(sqe)
            .map_or((Qid::ADMIN, 1), |connect| (connect.qid, connect.entries()));
        let options = &io.options;
        let (depth_max, max_in_capsule) = if qid.is_admin() {
            (
                options.max_aq_depth,
                ADMIN_IN_CAPSULE.max(options.in_capsule_data_size),
            )
        } else {
            (options.max_queue_depth, options.in_capsule_data_size)
        };
        let depth = entries.clamp(1, u32::from(depth_max));
        let qpair = core
            .open(OpenQpair {
                transport: io.transport,
                connection: self.id,
                peer: self.peer.clone(),
                depth: u16::try_from(depth).expect("clamped to a u16"),
                may_borrow_data: options.zcopy && !self.encode.data_digest,
                digests: Digests {
                    header: self.encode.header_digest,
                    data: self.encode.data_digest,
                },
            })
            .ok_or(End::Refused)?;
        self.decode.max_in_capsule = max_in_capsule;
        self.qpair = Some(qpair);
        self.phase = Phase::Connecting;
        Ok(qpair)
    }

    /// Does what a slot's command waits for: asks for its data or queues its response.
    pub(crate) fn advance<C: Commands>(
        &mut self,
        core: &mut C,
        io: &GroupIo,
        slot: SlotId,
        mut step: Step,
    ) {
        let Some(qpair) = self.qpair else { return };
        if step == Step::Receive {
            match self.request_data(core, qpair, slot) {
                Some(next) => step = next,
                None => return,
            }
        }
        match step {
            Step::Respond => self.respond(core, io, qpair, slot),
            Step::Forget => core.forgotten(qpair, slot),
            Step::Pending | Step::Receive => {}
        }
    }

    /// Sends an R2T for a command's data. If there is nowhere to put that: the next step.
    fn request_data<C: Commands>(
        &mut self,
        core: &mut C,
        qpair: QpairId,
        slot: SlotId,
    ) -> Option<Step> {
        let (payload, len) = core.take_receive(qpair, slot);
        let transfer = self.transfer(slot);
        let cid = transfer.cid;
        if !transfer.begin(payload, len, true) {
            return Some(core.data_received(qpair, slot, Payload::None));
        }
        self.awaited_bytes += u64::from(len);
        // One R2T for all of it; the host splits it by MAXH2CDATA. A command never has two
        // outstanding, so the host's MAXR2T is always kept.
        self.send.push_r2t(cid, slot, len, &self.encode);
        None
    }

    /// The transfer of a slot; the list grows to the slots that were ever used.
    pub(crate) fn transfer(&mut self, slot: SlotId) -> &mut Transfer {
        let index = usize::from(slot.0);
        if self.transfers.len() <= index {
            self.transfers.resize_with(index + 1, Transfer::default);
        }
        &mut self.transfers[index]
    }

    fn respond<C: Commands>(&mut self, core: &mut C, io: &GroupIo, qpair: QpairId, slot: SlotId) {
        let Some(Response {
            cqe,
            payload,
            data_len,
        }) = core.take_response(qpair, slot)
        else {
            return;
        };
        let is_success = cqe.status().is_success();
        if self.phase == Phase::Connecting && is_success {
            self.phase = Phase::Live;
        }
        let data_len = data_len.min(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        if data_len == 0 || !is_success {
            self.send.push_response(slot, &cqe, &self.encode);
        } else if io.options.c2h_success && cqe.result() == 0 {
            self.send
                .push_data(cqe.cid(), payload, data_len, Some(slot), &self.encode);
        } else {
            self.send
                .push_data(cqe.cid(), payload, data_len, None, &self.encode);
            self.send.push_response(slot, &cqe, &self.encode);
        }
    }

    /// Sends until nothing is left or the socket takes no more. `Ok(true)`: nothing is left.
    pub(crate) fn flush<C: Commands>(
        &mut self,
        core: &mut C,
        io: &mut GroupIo,
    ) -> io::Result<bool> {
        while !self.send.is_empty() {
            io.send_calls += 1;
            let sent = self
                .send
                .send(self.stream.as_fd(), &mut io.list, &mut io.released);
            for slot in io.released.drain(..) {
                // A connection that ends has given its slots back already.
                if let Some(qpair) = self.qpair {
                    core.response_sent(qpair, slot);
                }
            }
            match sent {
                Ok(sent) => self.progress.sent += sent as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_send_blocked = true;
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Gives the queue pair back and throws away what comes from now on. What is queued is still
    /// sent: a PDU that has begun must end, and the peer may wait for the others.
    pub(crate) fn begin_close<C: Commands>(&mut self, core: &mut C, io: &mut GroupIo) {
        if self.is_ending() {
            return;
        }
        self.phase = Phase::Closing;
        self.release(core, io);
    }

    /// Gives back everything that is not the connection's own.
    pub(crate) fn release<C: Commands>(&mut self, core: &mut C, io: &mut GroupIo) {
        if let Some(qpair) = self.qpair.take() {
            core.closed(qpair);
        }
        self.expect = Expect::Nothing;
        self.stash_len = 0;
        self.transfers = Vec::new();
        self.awaited_bytes = 0;
        if let Some(held) = self.held.take() {
            io.give_back(held.scratch);
        }
    }

    /// Tells the peer what it did wrong, and begins to close.
    #[cold]
    pub(crate) fn terminate<C: Commands>(&mut self, core: &mut C, io: &mut GroupIo, fatal: &Fatal) {
        if self.is_ending() {
            return;
        }
        self.begin_close(core, io);
        // Who broke the protocol is owed nothing but the end of the PDU that has begun.
        self.send.cancel();
        self.send
            .push_term_req(fatal.fes, fatal.fei, &fatal.header[..fatal.header_len]);
    }

    /// Everything has been sent: closes this end and waits for the peer's. Closing both at once
    /// with bytes unread would reset the connection, and the peer could lose what was sent last.
    pub(crate) fn linger(&mut self) {
        self.phase = Phase::Lingering;
        // It fails only if the peer has gone, and then the next receive says so.
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}
