//! I/O queues.

use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use fabric_wire::Nqn;
use fabric_wire::fabrics::{
    AUTHREQ_ASCR, AUTHREQ_ATR, CATTR_DISABLE_SQ_FLOW_CONTROL, ConnectCommand, ConnectData,
    ConnectResult, Disconnect, parse_connect_invalid_parameters_result,
};
use nvme_spec::{Cid, Cntlid, Cqe, Fuse, Qid, Status};
use zerocopy::IntoBytes;

use crate::association::Association;
use crate::command::{Command, Completion, Direction, Refusal, Submit};
use crate::error::{HostError, ms};
use crate::host_queue::HostQueue;
use crate::io::{IoRequest, MAX_TAG};
use crate::options::HostIdentity;
use crate::queue::{HostContext, QueueConfig, QueueCounters};

const TAG_CONNECT: u64 = MAX_TAG;
const TAG_DISCONNECT: u64 = MAX_TAG + 1;

/// What is needed to connect an I/O queue of a controller, on whichever thread.
#[derive(Clone, Debug)]
pub struct IoQueueConnector {
    pub(crate) config: QueueConfig,
    pub(crate) identity: HostIdentity,
    pub(crate) subnqn: Nqn,
    pub(crate) cntlid: Cntlid,
    pub(crate) cattr: u8,
    pub(crate) max_in_capsule: u32,
}

impl IoQueueConnector {
    /// The Connect command for `qid`.
    pub(crate) fn command(&self, qid: Qid, kato_ms: u32, timeout: Duration) -> Command {
        let connect = ConnectCommand {
            recfmt: 0,
            qid,
            sqsize: self.config.depth,
            cattr: self.cattr,
            kato_ms,
        };
        let identity = &self.identity;
        let data = ConnectData::new(
            identity.hostid,
            self.cntlid,
            &self.subnqn,
            &identity.hostnqn,
        );
        let mut command =
            Command::new(connect.to_sqe(Cid(0)), TAG_CONNECT).sending(data.as_bytes().to_vec());
        command.timeout = Some(timeout);
        command
    }

    /// Reads the answer to Connect.
    pub(crate) fn result(&self, qid: Qid, cqe: &Cqe) -> Result<Cntlid, HostError> {
        let address = self.config.address.to_string();
        let subnqn = self.subnqn.to_string();
        let status = cqe.status();
        if !status.is_success() {
            let advice = advice(status, cqe.dw0(), &subnqn, self.identity.hostnqn.as_str());
            return Err(HostError::Refused {
                qid,
                subnqn,
                address,
                status,
                advice,
            });
        }
        let result = ConnectResult::from_dword(cqe.dw0());
        if result.authreq & (AUTHREQ_ATR | AUTHREQ_ASCR) != 0 {
            return Err(HostError::Authentication { subnqn, address });
        }
        Ok(result.cntlid)
    }

    pub(crate) fn disables_flow_control(disable: bool) -> u8 {
        if disable {
            CATTR_DISABLE_SQ_FLOW_CONTROL
        } else {
            0
        }
    }
}

/// What a refused Connect means.
fn advice(status: Status, dw0: u32, subnqn: &str, hostnqn: &str) -> String {
    if status.is(Status::CONNECT_INVALID_HOST) {
        return format!("the subsystem does not allow host {hostnqn}: add it to the allow list");
    }
    if status.is(Status::CONNECT_INVALID_PARAMETERS) {
        let (in_data, offset) = parse_connect_invalid_parameters_result(dw0);
        return match (in_data, offset) {
            (true, ConnectData::SUBNQN_OFFSET) => {
                format!("there is no subsystem {subnqn} at this address")
            }
            (true, ConnectData::HOSTNQN_OFFSET) => format!("host name {hostnqn} is not accepted"),
            (true, ConnectData::HOSTID_OFFSET) => "the host identifier is not accepted".to_owned(),
            (true, ConnectData::CNTLID_OFFSET) => "there is no such controller".to_owned(),
            (true, _) => format!("byte {offset} of its data is wrong"),
            (false, ConnectCommand::SQSIZE_OFFSET) => {
                "the queue is larger than the controller allows".to_owned()
            }
            (false, ConnectCommand::QID_OFFSET) => {
                "the queue exists, or is beyond the number of queues granted".to_owned()
            }
            (false, ConnectCommand::KATO_OFFSET) => {
                "the keep-alive time-out is not accepted".to_owned()
            }
            (false, _) => format!("byte {offset} of the command is wrong"),
        };
    }
    if status.is(Status::CONNECT_CONTROLLER_BUSY) {
        return "the controller has no queue left: try again later".to_owned();
    }
    if status.dnr() {
        "do not try again unchanged"
    } else {
        "try again later"
    }
    .to_owned()
}

/// How far an I/O queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Link,
    Connect,
    Ready,
    Disconnecting,
    Disconnected,
}

/// An I/O queue with a connection of its own. It belongs to whoever polls it.
///
/// Requests submitted are sent by the next [`IoQueue::poll`] or [`IoQueue::flush`], together. When
/// the connection ends, every outstanding request is completed with
/// [`crate::CommandError::ConnectionLost`].
pub struct IoQueue {
    queue: HostQueue,
    connector: IoQueueConnector,
    stage: Stage,
    association: Option<Rc<Association>>,
}

impl IoQueue {
    /// Begins to connect queue `qid`, 1 or more, of the controller.
    ///
    /// Made this way it knows nothing of its controller: on a time-out there is no Abort, the
    /// connection fails once the grace time is over.
    #[must_use]
    pub fn connect(
        connector: &IoQueueConnector,
        qid: Qid,
        context: &HostContext,
        now: Instant,
    ) -> Self {
        let mut config = connector.config.clone();
        config.qid = qid;
        Self {
            queue: HostQueue::connect(config, context, now),
            connector: connector.clone(),
            stage: Stage::Link,
            association: None,
        }
    }

    pub(crate) fn of(mut self, association: &Rc<Association>) -> Self {
        self.association = Some(Rc::clone(association));
        self
    }

    /// Whether requests are taken.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.stage == Stage::Ready && self.queue.is_ready()
    }

    /// Why it has ended, if it has.
    #[must_use]
    pub fn failure(&self) -> Option<&HostError> {
        self.queue.failure()
    }

    /// Its number.
    #[must_use]
    pub fn qid(&self) -> Qid {
        self.queue.config().qid
    }

    /// Requests that can be outstanding at a time.
    #[must_use]
    pub fn depth(&self) -> u16 {
        self.queue.capacity()
    }

    /// Requests outstanding.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.queue.in_flight()
    }

    /// Whether a request would not be refused as [`Refusal::Full`].
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.queue.has_room()
    }

    /// Counters of its connection.
    #[must_use]
    pub fn counters(&self) -> QueueCounters {
        self.queue.counters()
    }

    /// Takes a request.
    #[inline]
    pub fn submit(&mut self, request: IoRequest, now: Instant) -> Submit<IoRequest> {
        if self.stage != Stage::Ready {
            return Submit::refused(Refusal::NotReady, request);
        }
        if !self.queue.has_room() && self.queue.is_ready() {
            return Submit::refused(Refusal::Full, request);
        }
        let Some(entry) = request.entry().filter(|_| request.tag < MAX_TAG) else {
            return Submit::refused(Refusal::Invalid, request);
        };
        let (nsid, op) = (request.nsid, request.op);
        match self
            .queue
            .submit(request.into_command(entry, Fuse::Normal), now)
        {
            Submit::Accepted(cid) => Submit::Accepted(cid),
            Submit::Refused(refused) => {
                let Command {
                    buffer,
                    tag,
                    timeout,
                    ..
                } = refused.command;
                let request = IoRequest {
                    nsid,
                    op,
                    buffer,
                    tag,
                    timeout,
                };
                Submit::refused(refused.reason, request)
            }
        }
    }

    /// Takes two requests as one fused operation: both are done, or none. Each has a completion.
    pub fn submit_fused(
        &mut self,
        (first, second): (IoRequest, IoRequest),
        now: Instant,
    ) -> Submit<Box<(IoRequest, IoRequest)>> {
        let refuse = |reason, pair| Submit::refused(reason, Box::new(pair));
        if !self.is_ready() {
            return refuse(Refusal::NotReady, (first, second));
        }
        if self.queue.in_flight() + 2 > self.depth() {
            return refuse(Refusal::Full, (first, second));
        }
        let are_tags_free = first.tag < MAX_TAG && second.tag < MAX_TAG;
        let (Some(one), Some(two), true) = (first.entry(), second.entry(), are_tags_free) else {
            return refuse(Refusal::Invalid, (first, second));
        };
        let can_send = |request: &IoRequest, direction: Direction| {
            let len = request.buffer.len();
            let fits = len == 0 || request.buffer.segment(0, len).is_some();
            fits && direction != Direction::FromController && u32::try_from(len).is_ok()
        };
        if !(can_send(&first, one.1) && can_send(&second, two.1)) {
            return refuse(Refusal::Buffer, (first, second));
        }
        let first = self.queue.submit(first.into_command(one, Fuse::First), now);
        let second = self
            .queue
            .submit(second.into_command(two, Fuse::Second), now);
        match (first, second) {
            (Submit::Accepted(cid), Submit::Accepted(_)) => Submit::Accepted(cid),
            _ => unreachable!("room and buffers were checked"),
        }
    }

    /// Takes a command as it is, with a data description of the caller's choice: for tests of
    /// targets.
    pub fn submit_raw(&mut self, command: Command, now: Instant) -> Submit<Command> {
        if self.stage != Stage::Ready {
            return Submit::refused(Refusal::NotReady, command);
        }
        if command.tag >= MAX_TAG {
            return Submit::refused(Refusal::Invalid, command);
        }
        self.queue.submit(command, now)
    }

    /// Sends what was submitted, receives what has come, and appends the completions. Returns
    /// whether there was anything.
    #[inline]
    pub fn poll(&mut self, now: Instant, completions: &mut Vec<Completion>) -> bool {
        if self.stage != Stage::Ready {
            return self.poll_unready(now, completions);
        }
        let worked = self.queue.poll(now, completions);
        if let Some(association) = &self.association {
            while let Some(cid) = self.queue.take_expired() {
                association.request_abort(self.queue.config().qid, cid);
            }
            if association.is_ended.get() && self.queue.failure().is_none() {
                let qid = self.queue.config().qid;
                self.queue
                    .end(HostError::AssociationEnded { qid }, completions);
            }
        }
        worked
    }

    /// Sends what was submitted.
    pub fn flush(&mut self, completions: &mut Vec<Completion>) {
        self.queue.flush(completions);
    }

    /// Readable when completions may have come; [`IoQueue::wants_to_send`] tells whether it must be
    /// watched for room to send as well. `None` once it has ended.
    #[must_use]
    pub fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.queue.wake_fd()
    }

    /// See [`IoQueue::wake_fd`].
    #[must_use]
    pub fn wants_to_send(&self) -> bool {
        self.queue.wants_to_send()
    }

    /// When it must be polled although nothing became readable.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.queue.next_deadline()
    }

    /// Sends Disconnect: the controller deletes this queue and closes the connection. Outstanding
    /// requests should have ended before. Not every controller takes it, see
    /// [`crate::Controller::can_disconnect_queues`].
    pub fn disconnect(&mut self, now: Instant) {
        if self.is_ready() {
            let mut command = Command::new(Disconnect.to_sqe(Cid(0)), TAG_DISCONNECT);
            command.timeout = Some(self.connector.config.connect_timeout);
            if self.queue.submit(command, now).is_accepted() {
                self.stage = Stage::Disconnecting;
                return;
            }
        }
        self.stage = Stage::Disconnected;
        self.queue.close(&mut Vec::new());
    }

    /// Whether the controller has answered Disconnect, or the connection has ended.
    #[must_use]
    pub fn is_disconnected(&self) -> bool {
        self.stage == Stage::Disconnected || self.queue.failure().is_some()
    }

    /// Closes the connection at once. Outstanding requests are completed as lost.
    pub fn close(&mut self, completions: &mut Vec<Completion>) {
        self.queue.close(completions);
    }

    #[cold]
    fn poll_unready(&mut self, now: Instant, completions: &mut Vec<Completion>) -> bool {
        let before = completions.len();
        let worked = self.queue.poll(now, completions);
        if self.stage == Stage::Link && self.queue.is_ready() {
            let timeout = self.connector.config.connect_timeout;
            let command = self.connector.command(self.qid(), 0, timeout);
            if self.queue.submit(command, now).is_accepted() {
                self.stage = Stage::Connect;
                self.queue.flush(completions);
            }
        }
        let own = |completion: &Completion| completion.tag >= MAX_TAG;
        while let Some(at) = completions[before..].iter().position(own) {
            let completion = completions.remove(before + at);
            match completion.tag {
                TAG_CONNECT => self.connected(&completion, completions),
                _ => {
                    self.stage = Stage::Disconnected;
                    self.queue.close(completions);
                }
            }
        }
        if self.queue.take_expired().is_some() && self.stage == Stage::Connect {
            let error = HostError::ConnectTimeout {
                address: self.queue.config().address.to_string(),
                what: "Connect",
                timeout_ms: ms(self.queue.config().connect_timeout),
            };
            self.queue.end(error, completions);
        }
        worked
    }

    fn connected(&mut self, completion: &Completion, completions: &mut Vec<Completion>) {
        if self.queue.failure().is_some() {
            return;
        }
        let qid = self.qid();
        match self.connector.result(qid, &completion.cqe) {
            Ok(_) => {
                self.stage = Stage::Ready;
                let max = self.connector.max_in_capsule;
                self.queue.set_max_in_capsule(max);
            }
            Err(error) => self.queue.end(error, completions),
        }
    }
}

impl std::fmt::Debug for IoQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IoQueue")
            .field("qid", &self.qid())
            .field("stage", &self.stage)
            .field("in_flight", &self.in_flight())
            .field("failure", &self.failure())
            .finish_non_exhaustive()
    }
}
