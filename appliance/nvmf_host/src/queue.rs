//! One NVMe/TCP connection: commands out, data and completions in.

use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dma::sg::SegmentList;
use fabric_wire::tcp::{DecodeLimits, EncodeOptions, data_alignment_bytes};
use nvme_spec::opcode::admin;
use nvme_spec::{Cid, Cntlid, Cqe, Qid, SglDescriptor, Status};
use verbs::Provider;

#[cfg(test)]
use crate::command::Refused;
use crate::command::{Command, Completion, Direction, Refusal, SglSource, Submit};
use crate::error::{CommandError, HostError, Violation, ms};
use crate::receive::{Expect, STASH_LEN};
use crate::send::SendQueue;
use crate::slots::{MAX_SLOTS, Phase, Slots};
use crate::socket::Socket;

/// In-capsule data that every controller takes on an admin queue, and with Connect on every queue
/// (NVMe TCP 1.1: 8192 bytes).
pub(crate) const ADMIN_IN_CAPSULE: u32 = 8192;
/// How long a connection that ended waits for its peer to take notice.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes received at a time.
const SCRATCH_LEN: usize = 256 << 10;
/// Segments sent at a time.
const SEGMENTS: usize = 256;

/// Memory that connections of one thread receive into, one after the other.
pub(crate) struct Scratch {
    pub(crate) bytes: Box<[u8]>,
    pub(crate) list: SegmentList,
}

/// The memory that the connections of one thread share. Clones mean the same memory.
#[derive(Clone)]
pub struct HostContext(pub(crate) Rc<RefCell<Scratch>>);

impl HostContext {
    /// Makes it: about 256 KiB.
    #[must_use]
    pub fn new() -> Self {
        let bytes = vec![0; SCRATCH_LEN].into_boxed_slice();
        Self(Rc::new(RefCell::new(Scratch {
            bytes,
            list: SegmentList::new(SEGMENTS),
        })))
    }
}

impl Default for HostContext {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for HostContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostContext")
    }
}

/// What a connection is made with.
#[derive(Clone, Debug)]
pub(crate) struct QueueConfig {
    pub(crate) socket_addr: SocketAddr,
    /// The address as people know it.
    pub(crate) address: Arc<str>,
    pub(crate) qid: Qid,
    pub(crate) depth: u16,
    pub(crate) header_digest: bool,
    pub(crate) data_digest: bool,
    pub(crate) hpda: u8,
    pub(crate) max_r2t: u16,
    pub(crate) connect_timeout: Duration,
    pub(crate) command_timeout: Duration,
    pub(crate) abort_grace: Duration,
    pub(crate) tos: Option<u8>,
    /// Over RDMA, and not over TCP.
    pub(crate) is_rdma: bool,
    /// The controller of an I/O queue, where the transport tells it when it connects.
    pub(crate) cntlid: Cntlid,
    pub(crate) memory_windows: bool,
    /// Where RDMA comes from.
    pub(crate) verbs: Option<Arc<dyn Provider>>,
}

/// How far a connection is.
#[derive(Debug)]
pub(crate) enum Link {
    /// TCP's handshake runs.
    Connecting,
    /// ICReq has been sent.
    Initializing,
    /// Commands can be sent.
    Ready,
    /// It has ended.
    Failed(HostError),
}

/// Counters of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounters {
    /// Commands submitted.
    pub commands: u64,
    /// Commands completed, well or not.
    pub completions: u64,
    /// `sendmsg` calls.
    pub send_calls: u64,
    /// `recvmsg` calls.
    pub receive_calls: u64,
    /// Bytes received.
    pub received_bytes: u64,
}

/// One connection and its commands.
pub(crate) struct TcpQueue {
    pub(crate) config: QueueConfig,
    pub(crate) socket: Option<Socket>,
    pub(crate) link: Link,
    /// Of the phases before `Ready`, or of lingering after the end.
    deadline: Option<Instant>,
    pub(crate) slots: Slots,
    pub(crate) send: SendQueue,
    pub(crate) expect: Expect,
    pub(crate) stash: [u8; STASH_LEN],
    pub(crate) stash_len: usize,
    /// The last data received was long: receive headers apart from data.
    pub(crate) is_bulk: bool,
    pub(crate) context: HostContext,
    pub(crate) decode: DecodeLimits,
    pub(crate) max_in_capsule: u32,
    /// The socket took no more.
    is_send_blocked: bool,
    /// No command's deadline is before this.
    next_expiry: Option<Instant>,
    /// Commands whose deadline passed; their owner has them aborted.
    expired: Vec<Cid>,
    /// Slots whose buffers are free now, though they were answered before.
    released: Vec<u16>,
    pub(crate) counters: QueueCounters,
}

impl TcpQueue {
    /// Begins to connect.
    pub(crate) fn connect(config: QueueConfig, context: &HostContext, now: Instant) -> Self {
        let depth = config.depth.clamp(1, MAX_SLOTS as u16 - 1);
        let mut queue = Self {
            socket: None,
            link: Link::Connecting,
            deadline: now.checked_add(config.connect_timeout),
            slots: Slots::new(depth),
            send: SendQueue::new(depth, config.max_r2t),
            expect: Expect::Header,
            stash: [0; STASH_LEN],
            stash_len: 0,
            is_bulk: false,
            context: context.clone(),
            decode: DecodeLimits {
                max_c2h_data: u32::MAX,
                pda: data_alignment_bytes(config.hpda).unwrap_or(4),
                ..DecodeLimits::default()
            },
            max_in_capsule: ADMIN_IN_CAPSULE,
            is_send_blocked: false,
            next_expiry: None,
            expired: Vec::with_capacity(depth.into()),
            released: Vec::with_capacity(depth.into()),
            counters: QueueCounters::default(),
            config,
        };
        match Socket::connect(queue.config.socket_addr, queue.config.tos) {
            Ok(socket) => queue.socket = Some(socket),
            Err(error) => queue.link = Link::Failed(queue.socket_error("connect", error)),
        }
        queue
    }

    /// Why the connection ended, if it did.
    pub(crate) fn failure(&self) -> Option<&HostError> {
        match &self.link {
            Link::Failed(error) => Some(error),
            _ => None,
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.link, Link::Ready)
    }

    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> u16 {
        self.slots.in_use()
    }

    /// Queues a command; [`TcpQueue::flush`] or [`TcpQueue::poll`] sends it.
    #[inline]
    pub(crate) fn submit(&mut self, mut command: Command, now: Instant) -> Submit<Command> {
        if !self.is_ready() {
            return Submit::refused(Refusal::NotReady, command);
        }
        let Some(len) = self.check_buffer(&mut command) else {
            return Submit::refused(Refusal::Buffer, command);
        };
        let Some(index) = self.slots.take() else {
            return Submit::refused(Refusal::Full, command);
        };
        let cid = self.slots.cid(index);
        let has_capsule_data = command.direction == Direction::ToController && len > 0;
        let (sgl, in_capsule) = match command.sgl {
            SglSource::Queue if has_capsule_data && len <= self.max_in_capsule => {
                (Some(SglDescriptor::in_capsule(0, len)), len)
            }
            SglSource::Queue | SglSource::Transport => {
                (Some(SglDescriptor::transport_data(len)), 0)
            }
            SglSource::EntryInCapsule if has_capsule_data => (None, len),
            SglSource::EntryInCapsule | SglSource::Entry => (None, 0),
        };
        let mut sqe = command.sqe.with_cid(cid);
        if let Some(sgl) = sgl {
            sqe = sqe.with_sgl(sgl);
        }
        let slot = self.slots.get_mut(index);
        slot.direction = command.direction;
        slot.opcode = sqe.opcode();
        slot.tag = command.tag;
        slot.len = len;
        slot.moved = in_capsule;
        slot.buffer = std::mem::take(&mut command.buffer);
        if self
            .send
            .push_command(&sqe, index, in_capsule, &mut self.slots)
            .is_err()
        {
            command.buffer = std::mem::take(&mut self.slots.get_mut(index).buffer);
            self.slots.release(index);
            return Submit::refused(Refusal::Buffer, command);
        }
        let deadline = now.checked_add(command.timeout.unwrap_or(self.config.command_timeout));
        self.slots.get_mut(index).deadline = deadline;
        if let Some(deadline) = deadline {
            self.next_expiry = Some(self.next_expiry.map_or(deadline, |at| at.min(deadline)));
        }
        self.counters.commands += 1;
        Submit::Accepted(cid)
    }

    /// The length of a command's data, if its buffer can be used for it.
    fn check_buffer(&self, command: &mut Command) -> Option<u32> {
        let len = command.buffer.len();
        match command.direction {
            Direction::None => return Some(0),
            Direction::FromController => {
                if len > 0 && !command.buffer.can_receive() {
                    return None;
                }
            }
            Direction::ToController => {
                if self.send.has_data_digest() {
                    command.buffer.own();
                }
                if len > 0 && command.buffer.segment(0, len).is_none() {
                    return None;
                }
            }
        }
        u32::try_from(len).ok()
    }

    /// Sends what is queued, receives what has come; appends completions. Returns whether anything
    /// was received or completed.
    pub(crate) fn poll(&mut self, now: Instant, completions: &mut Vec<Completion>) -> bool {
        match self.link {
            Link::Ready => {}
            Link::Failed(_) => {
                self.linger(now);
                return false;
            }
            Link::Connecting | Link::Initializing => self.advance_link(now, completions),
        }
        let before = completions.len();
        self.flush(completions);
        let mut worked = false;
        if matches!(self.link, Link::Ready | Link::Initializing) {
            match self.receive(completions) {
                Ok(received) => worked = received,
                Err(fault) => self.fail_and_tell(*fault, now, completions),
            }
            // What R2Ts have asked for goes out at once: the caller may sleep after this.
            if !self.send.is_empty() && !self.is_send_blocked {
                self.flush(completions);
            }
        }
        if self.next_expiry.is_some_and(|at| at <= now) {
            self.expire(now, completions);
        }
        worked || completions.len() != before
    }

    /// Sends what is queued.
    pub(crate) fn flush(&mut self, completions: &mut Vec<Completion>) {
        let Some(socket) = &self.socket else { return };
        if self.send.is_empty() || matches!(self.link, Link::Connecting | Link::Failed(_)) {
            return;
        }
        self.counters.send_calls += 1;
        let sent = {
            let list = &mut self.context.0.borrow_mut().list;
            self.send
                .flush(socket.as_fd(), &mut self.slots, list, &mut self.released)
        };
        match sent {
            Ok(all) => self.is_send_blocked = !all,
            Err(error) => {
                let error = self.socket_error("send", error);
                self.fail(error, completions);
                return;
            }
        }
        while let Some(index) = self.released.pop() {
            let cqe = self.slots.get(index).cqe;
            self.finish(index, cqe, completions);
        }
    }

    /// The socket must be watched for room to send, not only for data to receive.
    pub(crate) fn wants_to_send(&self) -> bool {
        matches!(self.link, Link::Connecting) || self.is_send_blocked
    }

    pub(crate) fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// When something must be done although nothing is received.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let expiry = if self.slots.in_use() > 0 {
            self.next_expiry
        } else {
            None
        };
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

    /// Closes the connection. Outstanding commands are completed as lost.
    #[cfg(test)]
    pub(crate) fn close(&mut self, completions: &mut Vec<Completion>) {
        let qid = self.config.qid;
        self.end(HostError::ClosedHere { qid }, completions);
    }

    /// Closes the connection for a reason that its owner found.
    pub(crate) fn end(&mut self, error: HostError, completions: &mut Vec<Completion>) {
        self.fail(error, completions);
        self.socket = None;
        self.deadline = None;
    }

    pub(crate) fn socket_error(&self, operation: &'static str, error: std::io::Error) -> HostError {
        let address = self.config.address.to_string();
        HostError::Socket {
            operation,
            address,
            source: Arc::new(error),
        }
    }

    pub(crate) fn violation(&self, violation: Violation) -> HostError {
        let address = self.config.address.to_string();
        HostError::Protocol {
            address,
            qid: self.config.qid,
            violation,
        }
    }

    fn advance_link(&mut self, now: Instant, completions: &mut Vec<Completion>) {
        if matches!(self.link, Link::Connecting) {
            match self.socket.as_ref().map(Socket::connected) {
                Some(Ok(Some(()))) => {
                    let digests = (self.config.header_digest, self.config.data_digest);
                    self.send
                        .push_ic_req(self.config.hpda, digests, self.config.max_r2t);
                    self.link = Link::Initializing;
                    self.deadline = now.checked_add(self.config.connect_timeout);
                }
                Some(Ok(None)) | None => {}
                Some(Err(error)) => {
                    let error = self.socket_error("connect", error);
                    self.fail(error, completions);
                    return;
                }
            }
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            let is_tcp = matches!(self.link, Link::Connecting);
            let error = HostError::ConnectTimeout {
                address: self.config.address.to_string(),
                what: if is_tcp {
                    "the TCP connection"
                } else {
                    "ICReq"
                },
                timeout_ms: ms(self.config.connect_timeout),
            };
            self.fail(error, completions);
            self.socket = None;
            self.deadline = None;
        }
    }

    /// Takes what ICResp says.
    pub(crate) fn agree(
        &mut self,
        cpda: u8,
        (header_digest, data_digest): (bool, bool),
        max_h2c_data: u32,
    ) -> Result<(), HostError> {
        let config = &self.config;
        let digests = [
            ("header", config.header_digest, header_digest),
            ("data", config.data_digest, data_digest),
        ];
        for (which, asked, granted) in digests {
            if asked != granted {
                let address = config.address.to_string();
                return Err(HostError::Digest {
                    address,
                    which,
                    asked,
                    granted,
                });
            }
        }
        let pda = data_alignment_bytes(cpda).unwrap_or(4);
        self.send.agree(
            EncodeOptions {
                header_digest,
                data_digest,
                pda,
            },
            max_h2c_data,
        );
        self.decode.header_digest = header_digest;
        self.decode.data_digest = data_digest;
        self.max_in_capsule = ADMIN_IN_CAPSULE;
        self.link = Link::Ready;
        self.deadline = None;
        Ok(())
    }

    /// Takes the answer to a command.
    #[inline]
    pub(crate) fn complete(&mut self, index: u16, cqe: Cqe, completions: &mut Vec<Completion>) {
        let slot = self.slots.get_mut(index);
        if slot.r2ts > 0 {
            self.send.drop_transfers(index);
        }
        if slot.pieces > 0 {
            // An early answer: the buffer is needed until what is queued has been sent.
            slot.phase = Phase::Answered;
            slot.cqe = cqe;
            return;
        }
        self.finish(index, cqe, completions);
    }

    #[inline]
    fn finish(&mut self, index: u16, cqe: Cqe, completions: &mut Vec<Completion>) {
        let slot = self.slots.get_mut(index);
        let status = cqe.status();
        let result = if !status.is_success() {
            Err(CommandError::Status(status))
        } else if slot.has_bad_digest {
            Err(CommandError::DataDigest)
        } else if slot.moved < slot.len {
            Err(CommandError::ShortData {
                received: slot.moved,
                expected: slot.len,
            })
        } else {
            Ok(cqe.result())
        };
        completions.push(Completion {
            tag: slot.tag,
            result,
            cqe,
            buffer: std::mem::take(&mut slot.buffer),
            transferred: slot.moved,
        });
        self.slots.release(index);
        self.counters.completions += 1;
    }

    /// Looks for commands whose time is over.
    #[cold]
    fn expire(&mut self, now: Instant, completions: &mut Vec<Completion>) {
        let mut next: Option<Instant> = None;
        let mut hopeless = None;
        let mut expired = std::mem::take(&mut self.expired);
        let grace = self.config.abort_grace;
        let mut newly = [0; 16];
        let mut newly_len = 0;
        for (index, slot) in self.slots.iter_mut() {
            if slot.phase == Phase::Free {
                continue;
            }
            let Some(deadline) = slot.deadline else {
                continue;
            };
            if deadline <= now {
                if slot.is_aborting {
                    hopeless.get_or_insert(slot.opcode);
                } else if newly_len < newly.len() {
                    slot.is_aborting = true;
                    slot.deadline = now.checked_add(grace);
                    newly[newly_len] = index;
                    newly_len += 1;
                }
            }
            if let Some(deadline) = slot.deadline {
                next = Some(next.map_or(deadline, |at| at.min(deadline)));
            }
        }
        expired.extend(
            newly[..newly_len]
                .iter()
                .map(|&index| self.slots.cid(index)),
        );
        self.expired = expired;
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

    /// Ends the connection, and tells the controller why where the protocol has words for it.
    #[cold]
    fn fail_and_tell(&mut self, fault: Fault, now: Instant, completions: &mut Vec<Completion>) {
        // What was begun must not be cut off by a TermReq in its middle.
        self.flush(completions);
        let can_tell = self.send.is_empty() && self.failure().is_none();
        self.fail(fault.error, completions);
        if let (true, Some(term)) = (can_tell, fault.term) {
            self.send
                .push_term_req(term.fes, term.fei, &term.header[..term.len]);
            self.deadline = now.checked_add(LINGER);
            self.linger(now);
        } else {
            self.socket = None;
        }
    }

    #[cold]
    fn fail(&mut self, error: HostError, completions: &mut Vec<Completion>) {
        if matches!(self.link, Link::Failed(_)) {
            return;
        }
        self.link = Link::Failed(error);
        self.deadline = None;
        self.send.clear();
        self.expired.clear();
        self.next_expiry = None;
        self.is_send_blocked = false;
        self.stash_len = 0;
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
                transferred: slot.moved,
            });
            self.slots.release(index);
            self.counters.completions += 1;
        }
    }

    /// After the end: sends the TermReq, then waits for the peer to close. Closing with unread data
    /// would reset the connection, and the peer could lose the TermReq.
    #[cold]
    fn linger(&mut self, now: Instant) {
        let Some(socket) = &self.socket else { return };
        let mut scratch = self.context.0.borrow_mut();
        let Scratch { bytes, list } = &mut *scratch;
        let is_over = self.deadline.is_none_or(|deadline| deadline <= now);
        let mut is_gone = is_over;
        if !self.send.is_empty() && !is_gone {
            let fd = socket.as_fd();
            match self
                .send
                .flush(fd, &mut self.slots, list, &mut self.released)
            {
                Ok(true) => socket.finish_sending(),
                Ok(false) => {}
                Err(_) => is_gone = true,
            }
        }
        let mut segments = [dma::sg::SegmentMut::new(bytes)];
        match dma::sg::recvmsg(socket.as_fd(), &mut segments) {
            Ok(0) => is_gone = true,
            Ok(_) => {}
            Err(error) => is_gone |= error.kind() != std::io::ErrorKind::WouldBlock,
        }
        if is_gone {
            self.socket = None;
            self.deadline = None;
        }
    }
}

/// Why a connection must end.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) error: HostError,
    pub(crate) term: Option<Term>,
}

/// The contents of an H2CTermReq.
#[derive(Debug)]
pub(crate) struct Term {
    pub(crate) fes: u16,
    pub(crate) fei: u32,
    pub(crate) header: [u8; fabric_wire::tcp::MAX_TERM_REQ_DATA_LEN],
    pub(crate) len: usize,
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
