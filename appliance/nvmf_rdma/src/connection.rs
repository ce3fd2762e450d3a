//! A connection: from capsules to commands, and from responses to work requests.
//!
//! Nothing here polls a queue or knows the time. What is to be posted gathers in a chain.

use std::collections::VecDeque;

use dma::Payload;
use fabric_wire::fabrics::ConnectCommand;
use fabric_wire::rdma::{DESCRIPTORS_MAX, DataPlace, KeyedSgl, RESPONSE_LEN};
use nvme_spec::{Cqe, Qid, SglDescriptor, Sqe, Status};
use nvmf::OpenQpair;
use nvmf::transport::{CloseReason, ConnectionId, Digests, Peer, QpairId, Response, SlotId, Step};
use verbs::{CmId, INLINE_LEN, Qp, SendOp, SendWr, SgeList};
use zerocopy::IntoBytes;

use crate::accepted::ConnectionTicket;
use crate::commands::Commands;
use crate::group::GroupIo;
use crate::group_device::GroupDevice;
use crate::memory::MemorySlot;
use crate::receive::ReceiveSet;
use crate::request::{Request, RequestState};
use crate::stats::add;
use crate::wr_id::{Kind, WrId};

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Connect must be the first command.
    Connect,
    /// The first command runs.
    Connecting,
    /// Connect has succeeded.
    Live,
    /// Its queue pair has failed; it waits until everything has been flushed.
    Draining,
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The host broke the protocol.
    Protocol(&'static str),
    /// No queue pair could be made.
    Refused,
}

/// Work requests that the longest chain has: data in as many pieces as can be, and the response.
pub(crate) const CHAIN_MAX: u32 = DESCRIPTORS_MAX as u32 + 1;

/// Work requests that the send queue of a connection has room for.
pub(crate) fn send_queue_len(depth: u16, max: u32) -> u32 {
    (2 * u32::from(depth) + CHAIN_MAX).min(max)
}

pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    pub(crate) phase: Phase,
    pub(crate) peer: Peer,
    /// Index of its device in the group.
    pub(crate) device: usize,
    // Dropped first: nothing is carried out any more after that.
    pub(crate) qp: Box<dyn Qp>,
    pub(crate) cm: Box<dyn CmId>,
    /// None before Connect and once the connection ends.
    pub(crate) qpair: Option<QpairId>,
    /// The queue that it was connected for.
    qid: Qid,
    /// Entries of the queue that were agreed on when it was connected.
    pub(crate) depth: u16,
    /// Slots of the queue pair, as Connect asked for.
    slots: u16,
    slots_in_use: u16,
    is_io_queue: bool,
    /// By slot.
    pub(crate) requests: Vec<Request>,
    /// Its own receives, unless they are the device's.
    pub(crate) receives: Option<ReceiveSet>,
    /// Capsules that wait for a slot, in the order of their coming.
    waiting: VecDeque<u32>,
    pending_reads: VecDeque<SlotId>,
    pending_sends: VecDeque<SlotId>,
    /// Reads that may be begun.
    read_credits: u16,
    /// Work requests that the send queue has room for.
    send_room: u32,
    pub(crate) send_queue_len: u32,
    pub(crate) has_inline: bool,
    pub(crate) has_send_with_inv: bool,
    /// Where responses lie that are not sent inline, by slot.
    pub(crate) response_slots: Vec<MemorySlot>,
    /// What is posted at the end of the poll.
    pub(crate) chain: Vec<SendWr>,
    /// Signaled work requests that the device has.
    pub(crate) posted: usize,
    /// The last receive that came from a shared queue has completed.
    pub(crate) has_last_receive: bool,
    pub(crate) is_dirty: bool,
    pub(crate) close_when_sent: Option<CloseReason>,
    pub(crate) _ticket: ConnectionTicket,
}

/// What a new connection is made of.
pub(crate) struct ConnectionParts {
    pub(crate) id: ConnectionId,
    pub(crate) peer: Peer,
    pub(crate) device: usize,
    pub(crate) qp: Box<dyn Qp>,
    pub(crate) cm: Box<dyn CmId>,
    pub(crate) qid: Qid,
    pub(crate) depth: u16,
    pub(crate) receives: Option<ReceiveSet>,
    pub(crate) read_depth: u16,
    pub(crate) send_queue_len: u32,
    pub(crate) has_inline: bool,
    pub(crate) has_send_with_inv: bool,
    pub(crate) response_slots: Vec<MemorySlot>,
    pub(crate) ticket: ConnectionTicket,
}

impl Connection {
    pub(crate) fn new(parts: ConnectionParts) -> Self {
        let depth = usize::from(parts.depth);
        Self {
            id: parts.id,
            phase: Phase::Connect,
            peer: parts.peer,
            device: parts.device,
            qp: parts.qp,
            cm: parts.cm,
            qpair: None,
            qid: parts.qid,
            depth: parts.depth,
            slots: 1,
            slots_in_use: 0,
            is_io_queue: false,
            requests: Vec::new(),
            receives: parts.receives,
            waiting: VecDeque::with_capacity(depth),
            pending_reads: VecDeque::with_capacity(depth),
            pending_sends: VecDeque::with_capacity(depth),
            read_credits: parts.read_depth,
            send_room: parts.send_queue_len,
            send_queue_len: parts.send_queue_len,
            has_inline: parts.has_inline,
            has_send_with_inv: parts.has_send_with_inv,
            response_slots: parts.response_slots,
            chain: Vec::with_capacity(parts.send_queue_len as usize),
            posted: 0,
            has_last_receive: false,
            is_dirty: false,
            close_when_sent: None,
            _ticket: parts.ticket,
        }
    }

    pub(crate) fn qid(&self) -> Qid {
        self.qid
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.phase == Phase::Draining
    }

    /// Whether a response is on its way, or about to be.
    pub(crate) fn has_responses(&self) -> bool {
        let is_on_its_way = |request: &Request| {
            matches!(
                request.state(),
                RequestState::CompletePending | RequestState::Completing
            )
        };
        self.requests.iter().any(is_on_its_way)
    }

    fn receives<'a>(&'a mut self, device: &'a mut GroupDevice) -> Option<&'a mut ReceiveSet> {
        match &mut self.receives {
            Some(own) => Some(own),
            None => device.receives.as_mut().map(|shared| &mut shared.set),
        }
    }

    /// A capsule's place is free again.
    fn repost(&mut self, device: &mut GroupDevice, index: u32) {
        if let Some(receives) = self.receives(device) {
            receives.repost(index);
        }
    }

    /// A capsule has come.
    pub(crate) fn on_capsule<C: Commands>(
        &mut self,
        core: &mut C,
        device: &mut GroupDevice,
        io: &GroupIo,
        index: u32,
        byte_len: u32,
    ) -> Result<(), End> {
        if self.is_ending() {
            if self.receives.is_none() {
                self.repost(device, index);
            }
            return Ok(());
        }
        let Some(receives) = self.receives(device) else {
            return Ok(());
        };
        if !receives.arrived(index, byte_len) {
            self.repost(device, index);
            return Err(End::Protocol("a capsule is shorter than a command"));
        }
        if self.slots_in_use < self.slots && self.waiting.is_empty() {
            return self.run(core, device, io, index);
        }
        if self.waiting.len() >= usize::from(self.depth) {
            self.repost(device, index);
            return Err(End::Protocol("there are more commands than entries"));
        }
        add(&io.stats.pending_free_request, 1);
        self.waiting.push_back(index);
        Ok(())
    }

    /// Runs capsules that have waited, as far as there are slots.
    fn run_waiting<C: Commands>(
        &mut self,
        core: &mut C,
        device: &mut GroupDevice,
        io: &GroupIo,
    ) -> Result<(), End> {
        while self.slots_in_use < self.slots && !self.is_ending() {
            let Some(index) = self.waiting.pop_front() else {
                break;
            };
            self.run(core, device, io, index)?;
        }
        Ok(())
    }

    /// Runs a command.
    fn run<C: Commands>(
        &mut self,
        core: &mut C,
        device: &mut GroupDevice,
        io: &GroupIo,
        index: u32,
    ) -> Result<(), End> {
        let set = match &self.receives {
            Some(own) => own,
            None => match &device.receives {
                Some(shared) => &shared.set,
                None => return Ok(()),
            },
        };
        let mut sqe = set.sqe(index, &device.memory);
        let data_len = set.data_len(index);
        let parsed = set.with_descriptors(index, &sqe, &device.memory, |capsule| {
            device.sgl.read(&sqe, capsule)
        });
        let qpair = match self.qpair {
            Some(qpair) => qpair,
            None => match self.open(core, io, &sqe) {
                Ok(qpair) => qpair,
                Err(end) => {
                    self.repost(device, index);
                    return Err(end);
                }
            },
        };
        match parsed {
            Ok(()) => tell_one(&mut sqe, &device.sgl),
            Err(error) => sqe = refusable(&sqe, error.status()),
        }
        // Descriptors in the capsule are not data.
        let in_capsule_len = match device.sgl.place() {
            DataPlace::InCapsule { .. } => data_len,
            DataPlace::None | DataPlace::Keyed => 0,
        };
        add(&io.stats.requests, 1);
        let Ok((slot, step)) = core.command(qpair, sqe, in_capsule_len) else {
            self.repost(device, index);
            return Err(End::Protocol("there are more commands than entries"));
        };
        self.slots_in_use += 1;
        let is_io = self.phase == Phase::Live && !sqe.is_fabrics() && self.is_io_queue;
        let request = self.request(slot);
        request.set_state(RequestState::Executing, &io.stats);
        request.is_io = is_io;
        request.sgl.copy_from(&device.sgl);
        request.posted_len = 0;
        let is_data_in_capsule = in_capsule_len > 0;
        request.receive = is_data_in_capsule.then_some(index);
        if !is_data_in_capsule {
            self.repost(device, index);
        }
        self.advance(core, device, io, slot, step);
        Ok(())
    }

    /// Makes the queue pair for the first command, as large as its Connect asks and may ask.
    fn open<C: Commands>(&mut self, core: &mut C, io: &GroupIo, sqe: &Sqe) -> Result<QpairId, End> {
        // What is wrong with the command is for the target library to say. A queue pair of one
        // entry is enough for that.
        let (qid, entries) = ConnectCommand::parse(sqe)
            .map_or((self.qid, 1), |connect| (connect.qid, connect.entries()));
        if qid != self.qid {
            return Err(End::Protocol(
                "Connect is for another queue than the connection",
            ));
        }
        let max = if qid.is_admin() {
            io.options.max_aq_depth
        } else {
            io.options.max_queue_depth
        };
        let depth = entries.clamp(1, u32::from(max));
        let depth = u16::try_from(depth).expect("clamped to a u16");
        let qpair = core
            .open(OpenQpair {
                transport: io.transport,
                connection: self.id,
                peer: self.peer.clone(),
                depth,
                may_borrow_data: false,
                digests: Digests::default(),
            })
            .ok_or(End::Refused)?;
        self.qpair = Some(qpair);
        self.is_io_queue = !qid.is_admin();
        // No more can be served than the device has memory for responses.
        self.slots = depth.min(self.depth);
        self.phase = Phase::Connecting;
        Ok(qpair)
    }

    /// The request of a slot; the list grows to the slots that were ever used.
    fn request(&mut self, slot: SlotId) -> &mut Request {
        let index = usize::from(slot.0);
        if self.requests.len() <= index {
            self.requests.resize_with(index + 1, Request::default);
        }
        &mut self.requests[index]
    }

    /// A command has moved on while nobody was looking.
    pub(crate) fn on_step<C: Commands>(
        &mut self,
        core: &mut C,
        device: &mut GroupDevice,
        io: &GroupIo,
        slot: SlotId,
        step: Step,
    ) -> Result<(), End> {
        self.advance(core, device, io, slot, step);
        // It may be over.
        self.run_waiting(core, device, io)
    }

    /// Does what a slot's command waits for.
    fn advance<C: Commands>(
        &mut self,
        core: &mut C,
        device: &mut GroupDevice,
        io: &GroupIo,
        slot: SlotId,
        mut step: Step,
    ) {
        let Some(qpair) = self.qpair else { return };
        if step == Step::Receive {
            match self.fetch_data(core, device, io, qpair, slot) {
                Some(next) => step = next,
                None => return,
            }
        }
        match step {
            Step::Respond => self.respond(core, device, io, qpair, slot),
            Step::Forget => {
                self.free(io, slot);
                core.forgotten(qpair, slot);
            }
            Step::Pending | Step::Receive => {}
        }
    }

    /// A slot's command is over: the slot may serve a capsule that waits.
    fn free(&mut self, io: &GroupIo, slot: SlotId) {
        self.request(slot).set_state(RequestState::Free, &io.stats);
        self.slots_in_use -= 1;
    }

    /// Gets a command's data, from its capsule or from the host's memory. `None`: it is on its way.
    fn fetch_data<C: Commands>(
        &mut self,
        core: &mut C,
        device: &mut GroupDevice,
        io: &GroupIo,
        qpair: QpairId,
        slot: SlotId,
    ) -> Option<Step> {
        let (mut payload, len) = core.take_receive(qpair, slot);
        let request = self.request(slot);
        let is_io = request.is_io;
        if let Some(index) = request.receive.take() {
            let taken = {
                let set = match &mut self.receives {
                    Some(own) => Some(own),
                    None => device.receives.as_mut().map(|shared| &mut shared.set),
                };
                set.and_then(|set| set.take_data(index, &mut payload, len, is_io, &device.memory))
            };
            self.repost(device, index);
            if is_io {
                add(&io.stats.copied_bytes, taken.unwrap_or(0).into());
            }
            let payload = taken.map_or(Payload::None, |_| payload);
            return Some(core.data_received(qpair, slot, payload));
        }
        let has_room = payload
            .as_buf()
            .is_some_and(|buf| buf.len() >= len as usize);
        if !has_room || len == 0 || request.sgl.len() < len || request.sgl.blocks().is_empty() {
            return Some(core.data_received(qpair, slot, Payload::None));
        }
        request.payload = payload;
        request.data_len = len;
        request.posted_len = 0;
        request.set_state(RequestState::TransferToControllerPending, &io.stats);
        self.pending_reads.push_back(slot);
        None
    }

    fn respond<C: Commands>(
        &mut self,
        core: &mut C,
        device: &mut GroupDevice,
        io: &GroupIo,
        qpair: QpairId,
        slot: SlotId,
    ) {
        let Some(Response {
            mut cqe,
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
        let request = self.request(slot);
        let receive = request.receive.take();
        let held = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        request.data_len = if is_success { data_len.min(held) } else { 0 };
        let is_sendable = request.data_len == 0 || payload.as_buf().is_some();
        if request.sgl.len() < request.data_len || !is_sendable {
            // The host has not said where it goes.
            let status = Status::DATA_SGL_LENGTH_INVALID.with_dnr(true);
            cqe = Cqe::new(cqe.cid(), status)
                .with_sqhd(cqe.sqhd())
                .with_sqid(cqe.sqid());
            request.data_len = 0;
        }
        request.payload = if request.data_len > 0 {
            payload
        } else {
            Payload::None
        };
        request.cqe = cqe;
        request.set_state(RequestState::CompletePending, &io.stats);
        self.pending_sends.push_back(slot);
        if let Some(index) = receive {
            // Nobody wanted the data.
            self.repost(device, index);
        }
    }

    /// Reads, or the response, of a slot have completed well.
    pub(crate) fn on_completed<C: Commands>(
        &mut self,
        core: &mut C,
        device: &mut GroupDevice,
        io: &GroupIo,
        kind: Kind,
        slot: SlotId,
    ) -> Result<(), End> {
        self.posted = self.posted.saturating_sub(1);
        if self.is_ending() {
            return Ok(());
        }
        let (Some(qpair), Some(request)) = (self.qpair, self.requests.get_mut(usize::from(slot.0)))
        else {
            return Ok(());
        };
        self.send_room += u32::from(request.chain_len);
        request.chain_len = 0;
        match (kind, request.state()) {
            (Kind::Read, RequestState::TransferringToController) => {
                self.read_credits += request.reads;
                request.reads = 0;
                if request.posted_len < request.data_len {
                    request.set_state(RequestState::TransferToControllerPending, &io.stats);
                    self.pending_reads.push_front(slot);
                    return Ok(());
                }
                request.set_state(RequestState::Executing, &io.stats);
                let payload = request.payload.take();
                let step = core.data_received(qpair, slot, payload);
                self.advance(core, device, io, slot, step);
                Ok(())
            }
            (Kind::Send, RequestState::Completing) => {
                drop(request.payload.take());
                self.free(io, slot);
                core.response_sent(qpair, slot);
                self.run_waiting(core, device, io)
            }
            _ => Ok(()),
        }
    }

    /// Adds what can be posted now to the chain.
    pub(crate) fn gather(&mut self, device: &mut GroupDevice, io: &GroupIo) {
        while let Some(&slot) = self.pending_sends.front() {
            if !self.gather_response(device, io, slot) {
                add(&io.stats.pending_rdma_send, 1);
                break;
            }
            self.pending_sends.pop_front();
        }
        while let Some(&slot) = self.pending_reads.front() {
            if self.read_credits == 0 || self.send_room == 0 {
                add(&io.stats.pending_rdma_read, 1);
                break;
            }
            self.pending_reads.pop_front();
            self.gather_reads(device, io, slot);
        }
    }

    fn wr_id(&self, kind: Kind, slot: SlotId) -> u64 {
        WrId {
            kind,
            connection: self.id,
            index: slot.0.into(),
        }
        .pack()
    }

    fn gather_reads(&mut self, device: &mut GroupDevice, io: &GroupIo, slot: SlotId) {
        let (last_id, chained_id) = (
            self.wr_id(Kind::Read, slot),
            self.wr_id(Kind::Chained, slot),
        );
        let room = self.send_room.min(self.read_credits.into()) as usize;
        let before = self.chain.len();
        let request = &mut self.requests[usize::from(slot.0)];
        let mut end = request.posted_len;
        if let Some(buf) = request.payload.as_buf() {
            for (at, block) in request
                .blocks(request.posted_len, request.data_len)
                .take(room)
            {
                let Some(sge) = device.memory.keys.sge(buf, at, block.len) else {
                    break;
                };
                let op = SendOp::Read {
                    remote_addr: block.address,
                    rkey: block.rkey,
                };
                let mut wr = SendWr::new(chained_id, op, SgeList::one(sge));
                wr.is_signaled = false;
                self.chain.push(wr);
                end = at + block.len;
            }
        }
        let count = self.chain.len() - before;
        let Some(last) = self.chain.last_mut().filter(|_| count > 0) else {
            // Its buffer lies in memory that the device does not take: nothing can be done.
            device.is_dead = true;
            return;
        };
        last.wr_id = last_id;
        last.is_signaled = true;
        request.posted_len = end;
        request.reads = count as u16;
        request.chain_len = count as u16;
        request.set_state(RequestState::TransferringToController, &io.stats);
        self.read_credits -= count as u16;
        self.send_room -= count as u32;
    }

    /// `false` if there is no room for it now.
    fn gather_response(&mut self, device: &mut GroupDevice, io: &GroupIo, slot: SlotId) -> bool {
        let (send_id, chained_id) = (
            self.wr_id(Kind::Send, slot),
            self.wr_id(Kind::Chained, slot),
        );
        let index = usize::from(slot.0);
        let request = &mut self.requests[index];
        let count = request.blocks(0, request.data_len).count() as u32 + 1;
        if self.send_room < count {
            return false;
        }
        if let Some(buf) = request.payload.as_buf() {
            for (at, block) in request.blocks(0, request.data_len) {
                let Some(sge) = device.memory.keys.sge(buf, at, block.len) else {
                    device.is_dead = true;
                    return false;
                };
                let op = SendOp::Write {
                    remote_addr: block.address,
                    rkey: block.rkey,
                };
                let mut wr = SendWr::new(chained_id, op, SgeList::one(sge));
                wr.is_signaled = false;
                self.chain.push(wr);
            }
        }
        let op = match request.sgl.invalidate() {
            Some(rkey) if self.has_send_with_inv => SendOp::SendWithInv { rkey },
            _ => SendOp::Send,
        };
        let mut wr = SendWr::new(send_id, op, SgeList::EMPTY);
        let bytes = request.cqe.as_bytes();
        if self.has_inline {
            let mut inline = [0; INLINE_LEN];
            inline.copy_from_slice(bytes);
            wr.inline = Some(inline);
        } else {
            let place = self.response_slots[index];
            device.memory.capsules.write(place, bytes);
            let sge = device.memory.capsules.sge(place, RESPONSE_LEN as u32);
            wr.sges = SgeList::one(sge);
        }
        self.chain.push(wr);
        request.chain_len = count as u16;
        request.set_state(RequestState::Completing, &io.stats);
        self.send_room -= count;
        true
    }

    /// Posts the receives that wait for it, then the chain. `false`: the queue pair has failed.
    pub(crate) fn post(&mut self, device: &mut GroupDevice, io: &mut GroupIo) -> bool {
        if let Some(receives) = &mut self.receives
            && receives.has_to_post()
        {
            let id = self.id;
            let wr_id = |index| {
                WrId {
                    kind: Kind::Receive,
                    connection: id,
                    index,
                }
                .pack()
            };
            receives.drain(&mut device.memory, wr_id, &mut io.receives);
            add(&io.stats.total_recv_wrs, io.receives.len() as u64);
            add(&io.stats.recv_doorbell_updates, 1);
            let result = self.qp.post_recv(&io.receives);
            let count = io.receives.len();
            io.receives.clear();
            if let Err(error) = result {
                receives.posted -= count - error.posted;
                return false;
            }
        }
        if self.chain.is_empty() {
            return true;
        }
        add(&io.stats.total_send_wrs, self.chain.len() as u64);
        let step = if io.options.no_wr_batching {
            1
        } else {
            self.chain.len()
        };
        let mut is_right = true;
        for part in self.chain.chunks(step) {
            add(&io.stats.send_doorbell_updates, 1);
            let taken = match self.qp.post_send(part) {
                Ok(()) => part.len(),
                Err(error) => {
                    is_right = false;
                    error.posted.min(part.len())
                }
            };
            self.posted += part[..taken].iter().filter(|wr| wr.is_signaled).count();
            if !is_right {
                break;
            }
        }
        self.chain.clear();
        is_right
    }

    /// Gives the queue pair back to the target library, and fails the device's. The buffers stay
    /// until the device has let go of them.
    pub(crate) fn begin_close<C: Commands>(&mut self, core: &mut C, device: &mut GroupDevice) {
        if self.is_ending() {
            return;
        }
        self.phase = Phase::Draining;
        if let Some(qpair) = self.qpair.take() {
            core.closed(qpair);
        }
        self.chain.clear();
        self.pending_reads.clear();
        self.pending_sends.clear();
        if self.receives.is_none() {
            // Shared receives go on serving others.
            while let Some(index) = self.waiting.pop_front() {
                self.repost(device, index);
            }
            for slot in 0..self.requests.len() {
                if let Some(index) = self.requests[slot].receive.take() {
                    self.repost(device, index);
                }
            }
        }
        self.waiting.clear();
        // Either of them flushes; a device that is gone takes neither.
        let _ = self.cm.disconnect();
        let _ = self.qp.set_error();
    }

    /// Whether the device has nothing of it any more.
    pub(crate) fn is_drained(&self) -> bool {
        let has_receives = match &self.receives {
            Some(own) => own.posted > 0,
            None => !self.has_last_receive,
        };
        self.posted == 0 && !has_receives
    }
}

/// Has the target library see one descriptor with the length of all.
fn tell_one(sqe: &mut Sqe, sgl: &KeyedSgl) {
    if sgl.place() == DataPlace::Keyed && sqe.sgl().type_() == SglDescriptor::TYPE_LAST_SEGMENT {
        *sqe = sqe.with_sgl(SglDescriptor::keyed(0, sgl.len(), 0, false));
    }
}

/// A command whose SGL is wrong, in a form that the target library refuses with that status.
fn refusable(sqe: &Sqe, status: Status) -> Sqe {
    if status.is(Status::SGL_OFFSET_INVALID) {
        sqe.with_sgl(SglDescriptor::in_capsule(1, 0))
    } else if status.is(Status::DATA_SGL_LENGTH_INVALID) {
        sqe.with_sgl(SglDescriptor::in_capsule(0, u32::MAX))
    } else {
        // A type that is not taken over RDMA.
        sqe.with_sgl(SglDescriptor::transport_data(0))
    }
}
