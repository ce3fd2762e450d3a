//! One connection over RDMA and its commands.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dma::Payload;
use fabric_wire::rdma::RESPONSE_LEN;
use nvme_spec::opcode::admin;
use nvme_spec::{Cid, Cqe, SglDescriptor, Status};
use verbs::{Bind, Provider, SendOp, SendWr, SgeList, WcStatus, WorkCompletion};
use zerocopy::{FromBytes, IntoBytes};

use super::link::{Link, Step};
use super::memory::{QueueMemory, Staging};
use crate::buffer::Buffer;
use crate::command::{Command, Completion, Direction, Refusal, SglSource, Submit};
use crate::error::{CommandError, HostError, Violation, ms};
use crate::queue::{QueueConfig, QueueCounters};
use crate::slots::{MAX_SLOTS, Phase, Slots};

/// Work requests are numbered by slot and kind.
pub(super) const RECEIVE: u64 = 1 << 32;
const SEND: u64 = 2 << 32;
const INVALIDATE: u64 = 3 << 32;
const BIND: u64 = 4 << 32;
const INDEX_MASK: u64 = 0xffff_ffff;

/// Completions taken at once.
const BATCH: usize = 32;
/// Polls that find nothing, and are told as work, before the completion queue is armed.
const PATIENCE: u32 = 64;

/// What a slot's command waits for, beside what [`Slots`] knows.
#[derive(Clone, Copy, Debug, Default)]
struct InFlight {
    staging: Option<Staging>,
    /// The key that the controller was given by a window.
    window: Option<u32>,
    has_send: bool,
    has_response: bool,
    is_invalidating: bool,
}

/// One connection and its commands.
pub(crate) struct RdmaQueue {
    pub(crate) config: QueueConfig,
    link: Option<Link>,
    failure: Option<HostError>,
    deadline: Option<Instant>,
    pub(crate) slots: Slots,
    in_flight: Vec<InFlight>,
    pub(crate) max_in_capsule: u32,
    chain: Vec<SendWr>,
    next_expiry: Option<Instant>,
    expired: Vec<Cid>,
    pub(crate) counters: QueueCounters,
    idle_polls: u32,
    is_armed: bool,
}

impl RdmaQueue {
    /// Begins to connect.
    pub(crate) fn connect(
        config: QueueConfig,
        provider: Option<&Arc<dyn Provider>>,
        now: Instant,
    ) -> Self {
        let depth = config.depth.clamp(1, MAX_SLOTS as u16 - 1);
        let mut queue = Self {
            link: None,
            failure: None,
            deadline: now.checked_add(config.connect_timeout),
            slots: Slots::new(depth),
            in_flight: vec![InFlight::default(); depth.into()],
            // An admin queue takes none; an I/O queue once it has told how much.
            max_in_capsule: 0,
            chain: Vec::with_capacity(2 * usize::from(depth)),
            next_expiry: None,
            expired: Vec::with_capacity(depth.into()),
            counters: QueueCounters::default(),
            idle_polls: 0,
            is_armed: false,
            config,
        };
        let Some(provider) = provider else {
            let address = queue.config.address.to_string();
            queue.failure = Some(HostError::Transport { address });
            return queue;
        };
        match Link::begin(&**provider, &queue.config) {
            Ok(link) => queue.link = Some(link),
            Err(error) => queue.failure = Some(error.into_host_error(&queue.config)),
        }
        queue
    }

    /// Why the connection ended, if it did.
    pub(crate) fn failure(&self) -> Option<&HostError> {
        self.failure.as_ref()
    }

    pub(crate) fn is_ready(&self) -> bool {
        let link = self.link.as_ref();
        link.is_some_and(|link| link.step == Step::Established)
    }

    /// Queues a command; [`RdmaQueue::flush`] or [`RdmaQueue::poll`] sends it.
    pub(crate) fn submit(&mut self, mut command: Command, now: Instant) -> Submit<Command> {
        if !self.is_ready() {
            return Submit::refused(Refusal::NotReady, command);
        }
        let len = u32::try_from(command.buffer.len()).unwrap_or(u32::MAX);
        let len = if command.direction == Direction::None {
            0
        } else {
            len
        };
        let can_fill =
            command.direction != Direction::FromController || command.buffer.can_receive();
        if len > 0 && (!QueueMemory::can_stage(len) || !can_fill) {
            return Submit::refused(Refusal::Buffer, command);
        }
        let Some(index) = self.slots.take() else {
            return Submit::refused(Refusal::Full, command);
        };
        if !self.send_command(index, &command, len) {
            self.slots.release(index);
            return Submit::refused(Refusal::Buffer, command);
        }
        let cid = self.slots.cid(index);
        let slot = self.slots.get_mut(index);
        slot.direction = command.direction;
        slot.opcode = command.sqe.opcode();
        slot.tag = command.tag;
        slot.len = len;
        slot.buffer = std::mem::take(&mut command.buffer);
        slot.deadline = now.checked_add(command.timeout.unwrap_or(self.config.command_timeout));
        if let Some(deadline) = slot.deadline {
            self.next_expiry = Some(self.next_expiry.map_or(deadline, |at| at.min(deadline)));
        }
        self.counters.commands += 1;
        Submit::Accepted(cid)
    }

    /// Stages a command's data, and puts its capsule into the chain. `false` if there is no memory.
    fn send_command(&mut self, index: u16, command: &Command, len: u32) -> bool {
        let Some(endpoint) = self.link.as_mut().and_then(|link| link.endpoint.as_mut()) else {
            return false;
        };
        let staging = if len == 0 {
            None
        } else {
            match endpoint.memory.take(len) {
                Ok(Some(staging)) => Some(staging),
                Ok(None) | Err(_) => return false,
            }
        };
        let is_out = command.direction == Direction::ToController;
        if let (Some(staging), true) = (staging, is_out)
            && !stage(&endpoint.memory, staging, &command.buffer)
        {
            endpoint.memory.give_back(staging);
            return false;
        }
        let mut window = None;
        let (sgl, in_capsule) = match command.sgl {
            SglSource::Entry => (None, 0),
            SglSource::EntryInCapsule => (None, if is_out { len } else { 0 }),
            SglSource::Queue if is_out && len > 0 && len <= self.max_in_capsule => {
                (Some(SglDescriptor::in_capsule(0, len)), len)
            }
            SglSource::Queue | SglSource::Transport => match staging {
                None => (Some(SglDescriptor::keyed(0, 0, 0, false)), 0),
                Some(staging) => {
                    let sge = endpoint.memory.sge(staging, len);
                    let mr = endpoint.memory.mr(staging);
                    let rkey = match endpoint.windows.get_mut(usize::from(index)) {
                        None => mr.rkey(),
                        Some(mw) => {
                            let bind = Bind {
                                wr_id: u64::from(index) | BIND,
                                addr: sge.addr,
                                len,
                                is_writable: !is_out,
                            };
                            let Ok(rkey) = endpoint.qp.bind_mw(&mut **mw, mr, &bind) else {
                                endpoint.memory.give_back(staging);
                                return false;
                            };
                            window = Some(rkey);
                            rkey
                        }
                    };
                    let sgl = SglDescriptor::keyed(sge.addr, len, rkey, window.is_some());
                    (Some(sgl), 0)
                }
            },
        };
        let mut sqe = command.sqe.with_cid(self.slots.cid(index));
        if let Some(sgl) = sgl {
            sqe = sqe.with_sgl(sgl);
        }
        let entry = endpoint.memory.write_entry(index, sqe.as_bytes());
        let sges = match staging.filter(|_| in_capsule > 0) {
            Some(staging) => SgeList::two(entry, endpoint.memory.sge(staging, in_capsule)),
            None => SgeList::one(entry),
        };
        let wr_id = u64::from(index) | SEND;
        self.chain.push(SendWr::new(wr_id, SendOp::Send, sges));
        self.in_flight[usize::from(index)] = InFlight {
            staging,
            window,
            ..InFlight::default()
        };
        true
    }

    /// Sends what is queued, receives what has come; appends completions. Returns whether anything
    /// was received or completed, or may be about to be.
    pub(crate) fn poll(&mut self, now: Instant, completions: &mut Vec<Completion>) -> bool {
        if self.failure.is_some() {
            return false;
        }
        let before = completions.len();
        let mut worked = self.poll_link(completions);
        self.flush(completions);
        worked |= self.poll_queue(completions);
        self.flush(completions);
        if self.deadline.is_some_and(|at| at <= now) && !self.is_ready() {
            let error = HostError::ConnectTimeout {
                address: self.config.address.to_string(),
                what: "the RDMA connection",
                timeout_ms: ms(self.config.connect_timeout),
            };
            self.end(error, completions);
        }
        if self.next_expiry.is_some_and(|at| at <= now) {
            self.expire(now, completions);
        }
        worked |= completions.len() != before;
        if worked {
            self.idle_polls = 0;
            return true;
        }
        self.rest(completions)
    }

    /// Nothing was found: arms the completion queue after a while, and looks once more.
    fn rest(&mut self, completions: &mut Vec<Completion>) -> bool {
        if self.is_armed || self.slots.in_use() == 0 && self.idle_polls > PATIENCE {
            return false;
        }
        self.idle_polls += 1;
        if self.idle_polls < PATIENCE {
            return self.is_ready();
        }
        let Some(endpoint) = self.link.as_ref().and_then(|link| link.endpoint.as_ref()) else {
            return false;
        };
        self.is_armed = endpoint.cq.arm().is_ok();
        let worked = self.poll_queue(completions);
        self.flush(completions);
        worked
    }

    fn poll_link(&mut self, completions: &mut Vec<Completion>) -> bool {
        let Some(link) = &mut self.link else {
            return false;
        };
        match link.poll(&self.config) {
            Ok(worked) => {
                if link.step == Step::Established {
                    self.deadline = None;
                }
                worked
            }
            Err(error) => {
                let error = error.into_host_error(&self.config);
                self.end(error, completions);
                true
            }
        }
    }

    fn poll_queue(&mut self, completions: &mut Vec<Completion>) -> bool {
        let mut worked = false;
        let mut batch = [WorkCompletion::default(); BATCH];
        while let Some(endpoint) = self.link.as_mut().and_then(|link| link.endpoint.as_mut()) {
            if self.is_armed && endpoint.comp_channel.consume() > 0 {
                self.is_armed = false;
            }
            let count = match endpoint.cq.poll(&mut batch) {
                Ok(count) => count,
                Err(error) => {
                    let error = HostError::Rdma {
                        operation: "poll",
                        address: self.config.address.to_string(),
                        source: Arc::new(error.into()),
                    };
                    self.end(error, completions);
                    return true;
                }
            };
            if count == 0 {
                break;
            }
            self.counters.receive_calls += 1;
            worked = true;
            for completion in &batch[..count] {
                if let Err(error) = self.take(completion, completions) {
                    self.end(*error, completions);
                    return true;
                }
            }
            if count < BATCH {
                break;
            }
        }
        worked
    }

    fn take(
        &mut self,
        wc: &WorkCompletion,
        completions: &mut Vec<Completion>,
    ) -> Result<(), Box<HostError>> {
        if wc.status != WcStatus::Success {
            return Err(Box::new(HostError::WorkRequest {
                address: self.config.address.to_string(),
                qid: self.config.qid,
                status: wc.status.to_string(),
            }));
        }
        let index = wc.wr_id & INDEX_MASK;
        match wc.wr_id & !INDEX_MASK {
            RECEIVE => self.take_response(index as u32, wc, completions),
            SEND => {
                self.in_flight[index as usize].has_send = true;
                self.finish_if_done(index as u16, completions);
                Ok(())
            }
            INVALIDATE => {
                let in_flight = &mut self.in_flight[index as usize];
                in_flight.is_invalidating = false;
                in_flight.window = None;
                self.finish_if_done(index as u16, completions);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn violation(&self, violation: Violation) -> Box<HostError> {
        Box::new(HostError::Protocol {
            address: self.config.address.to_string(),
            qid: self.config.qid,
            violation,
        })
    }

    fn take_response(
        &mut self,
        index: u32,
        wc: &WorkCompletion,
        completions: &mut Vec<Completion>,
    ) -> Result<(), Box<HostError>> {
        let Some(endpoint) = self.link.as_mut().and_then(|link| link.endpoint.as_mut()) else {
            return Ok(());
        };
        self.counters.received_bytes += u64::from(wc.byte_len);
        let mut bytes = [0; RESPONSE_LEN];
        endpoint.memory.read_response(index, &mut bytes);
        let receive = endpoint.receive(index);
        let posted = endpoint.qp.post_recv(&[receive]);
        if let Err(error) = posted {
            return Err(Box::new(HostError::Rdma {
                operation: "post a receive",
                address: self.config.address.to_string(),
                source: Arc::new(error.source),
            }));
        }
        let cqe = Cqe::read_from_bytes(&bytes).expect("a response has 16 bytes");
        if wc.byte_len as usize != RESPONSE_LEN {
            let found = "a response that is not 16 bytes long";
            let expected = "a response";
            return Err(self.violation(Violation::Sequence { found, expected }));
        }
        let found = self.slots.find(cqe.cid()).map(|(index, slot)| {
            slot.cqe = cqe;
            index
        });
        let answered = found.filter(|at| !self.in_flight[usize::from(*at)].has_response);
        let Some(at) = answered else {
            let (pdu, cid) = ("a response", cqe.cid());
            return Err(self.violation(Violation::UnknownCommand { pdu, cid }));
        };
        let in_flight = &mut self.in_flight[usize::from(at)];
        in_flight.has_response = true;
        if let Some(rkey) = in_flight.window {
            if wc.invalidated_rkey == Some(rkey) {
                in_flight.window = None;
            } else {
                in_flight.is_invalidating = true;
                let wr_id = u64::from(at) | INVALIDATE;
                let op = SendOp::LocalInv { rkey };
                self.chain.push(SendWr::new(wr_id, op, SgeList::EMPTY));
            }
        }
        self.finish_if_done(at, completions);
        Ok(())
    }

    /// Completes a command once it is answered, its capsule has gone out, and the controller
    /// reaches its buffer no more.
    fn finish_if_done(&mut self, index: u16, completions: &mut Vec<Completion>) {
        let in_flight = self.in_flight[usize::from(index)];
        if !in_flight.has_send || !in_flight.has_response || in_flight.is_invalidating {
            return;
        }
        let Some(endpoint) = self.link.as_mut().and_then(|link| link.endpoint.as_mut()) else {
            return;
        };
        let slot = self.slots.get_mut(index);
        if slot.phase == Phase::Free {
            return;
        }
        let (cqe, len) = (slot.cqe, slot.len);
        let status = cqe.status();
        let mut moved = 0;
        if let Some(staging) = in_flight.staging {
            if status.is_success() {
                moved = len;
                if slot.direction == Direction::FromController
                    && let Some(into) = slot.buffer.as_mut_slice()
                {
                    endpoint.memory.read(staging, into);
                }
            }
            endpoint.memory.give_back(staging);
        }
        let result = if status.is_success() {
            Ok(cqe.result())
        } else {
            Err(CommandError::Status(status))
        };
        completions.push(Completion {
            tag: slot.tag,
            result,
            cqe,
            buffer: std::mem::take(&mut slot.buffer),
            transferred: moved,
        });
        self.in_flight[usize::from(index)] = InFlight::default();
        self.slots.release(index);
        self.counters.completions += 1;
    }

    /// Posts what is queued.
    pub(crate) fn flush(&mut self, completions: &mut Vec<Completion>) {
        if self.chain.is_empty() {
            return;
        }
        let Some(endpoint) = self.link.as_mut().and_then(|link| link.endpoint.as_mut()) else {
            return;
        };
        self.counters.send_calls += 1;
        let posted = endpoint.qp.post_send(&self.chain);
        self.chain.clear();
        self.idle_polls = 0;
        if let Err(error) = posted {
            let error = HostError::Rdma {
                operation: "post commands",
                address: self.config.address.to_string(),
                source: Arc::new(error.source),
            };
            self.end(error, completions);
        }
    }

    pub(crate) fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.link.as_ref().map(Link::wake_fd)
    }

    /// When something must be done although nothing is received.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let expiry = self.next_expiry.filter(|_| self.slots.in_use() > 0);
        [self.deadline, expiry].into_iter().flatten().min()
    }

    /// A command whose time is over and that its owner should have aborted.
    pub(crate) fn take_expired(&mut self) -> Option<Cid> {
        self.expired.pop()
    }

    /// Whether a command is a Keep Alive.
    pub(crate) fn is_keep_alive(&mut self, cid: Cid) -> bool {
        self.slots
            .find(cid)
            .is_some_and(|(_, slot)| slot.opcode == admin::KEEP_ALIVE)
    }

    /// Closes the connection for a reason that its owner found. Outstanding commands are completed
    /// as lost: the device has let go of their buffers.
    pub(crate) fn end(&mut self, error: HostError, completions: &mut Vec<Completion>) {
        if self.failure.is_some() {
            return;
        }
        self.failure = Some(error);
        self.deadline = None;
        self.next_expiry = None;
        self.chain.clear();
        self.expired.clear();
        if let Some(link) = &mut self.link {
            link.end();
        }
        self.link = None;
        for index in 0..self.slots.capacity() {
            if self.slots.get(index).phase == Phase::Free {
                continue;
            }
            let cid = self.slots.cid(index);
            let slot = self.slots.get_mut(index);
            completions.push(Completion {
                tag: slot.tag,
                result: Err(CommandError::ConnectionLost),
                cqe: Cqe::new(cid, Status::HOST_PATHING_ERROR),
                buffer: std::mem::take(&mut slot.buffer),
                transferred: 0,
            });
            self.in_flight[usize::from(index)] = InFlight::default();
            self.slots.release(index);
            self.counters.completions += 1;
        }
    }

    /// Looks for commands whose time is over.
    #[cold]
    fn expire(&mut self, now: Instant, completions: &mut Vec<Completion>) {
        let grace: Duration = self.config.abort_grace;
        let mut next: Option<Instant> = None;
        let mut hopeless = None;
        let mut newly = [0; 16];
        let mut count = 0;
        for (index, slot) in self.slots.iter_mut() {
            if slot.phase == Phase::Free {
                continue;
            }
            if slot.deadline.is_some_and(|at| at <= now) {
                if slot.is_aborting {
                    hopeless.get_or_insert(slot.opcode);
                } else if count < newly.len() {
                    slot.is_aborting = true;
                    slot.deadline = now.checked_add(grace);
                    newly[count] = index;
                    count += 1;
                }
            }
            next = match (next, slot.deadline) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        let cids = newly[..count].iter().map(|&index| self.slots.cid(index));
        self.expired.extend(cids);
        self.next_expiry = next;
        if let Some(opcode) = hopeless {
            let timeout_ms = ms(self.config.command_timeout) + ms(grace);
            let error = HostError::CommandTimeout {
                qid: self.config.qid,
                opcode,
                timeout_ms,
            };
            self.end(error, completions);
        }
    }
}

/// Copies a command's data to where the device can read it.
fn stage(memory: &QueueMemory, staging: Staging, buffer: &Buffer) -> bool {
    if let Buffer::Payload(Payload::Lent(lent)) = buffer {
        let mut part = [0; 4096];
        for at in (0..lent.len()).step_by(part.len()) {
            let part = &mut part[..(lent.len() - at).min(4096)];
            lent.copy_range_to(at, part);
            memory.write(staging, at, part);
        }
        return true;
    }
    match buffer.as_slice() {
        Some(bytes) => {
            memory.write(staging, 0, bytes);
            true
        }
        None => false,
    }
}
