//! A controller: its association from the first connection to the last.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric_wire::{Nqn, TransportAddress, TransportType};
use nvme_spec::identify::{IdentifyController, ofcs};
use nvme_spec::registers::{Cap, Vs};
use nvme_spec::{Cid, Cntlid, Qid, Sqe, Status};

use crate::admin::Admin;
use crate::association::{Association, Operation, TAG_ABORT, TAG_EVENT, TAG_KEEP_ALIVE};
use crate::bring_up::{BringUp, bring_up, disable, shut_down};
use crate::command::{Command, Completion};
use crate::error::{CommandError, HostError, ms};
use crate::event::Event;
use crate::host_queue::HostQueue;
use crate::io_queue::{IoQueue, IoQueueConnector};
use crate::options::HostOptions;
use crate::queue::{HostContext, QueueConfig};

/// Events that wait to be taken. Beyond it no further one is asked for, so none is lost: the
/// controller keeps them.
const MAX_EVENTS: usize = 64;

/// What a controller is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It has namespaces.
    Io,
    /// It has the discovery log.
    Discovery,
}

/// How far a controller is.
#[derive(Clone, Debug)]
pub enum ControllerState {
    /// It is being connected and enabled. [`Controller::step`] tells how far that is.
    Connecting,
    /// It can be used.
    Ready,
    /// It is being disabled, to be connected anew.
    Resetting,
    /// It is being shut down.
    ShuttingDown,
    /// It was shut down. Its connections are closed.
    ShutDown,
    /// It has failed. Nothing more happens until [`Controller::reconnect`] is called.
    ///
    /// Whether to do that is the caller's decision: see [`HostError::is_retryable`].
    Failed(HostError),
}

impl ControllerState {
    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Ready => "ready",
            Self::Resetting => "resetting",
            Self::ShuttingDown => "shutting down",
            Self::ShutDown => "shut down",
            Self::Failed(_) => "failed",
        }
    }
}

/// What is known of a controller once it is ready.
#[derive(Clone, Debug)]
pub struct ControllerInfo {
    /// Its identifier.
    pub cntlid: Cntlid,
    /// CAP.
    pub cap: Cap,
    /// VS.
    pub version: Vs,
    /// Identify Controller.
    pub identify: Box<IdentifyController>,
    /// I/O queues that the controller grants, at most as many as were asked for.
    pub io_queues: u16,
    /// Commands that an I/O queue may have outstanding.
    pub io_queue_depth: u16,
    /// Bytes of in-capsule data of an I/O queue.
    pub in_capsule_data_size: u32,
    /// Most bytes that one command may move (MDTS); `None`: no limit.
    pub max_transfer_bytes: Option<u64>,
    /// Asynchronous Event Requests that are kept outstanding.
    pub async_events: u8,
}

/// An association with one controller. It is passive: everything happens in [`Controller::poll`].
///
/// Connecting begins when it is made. When it is [`ControllerState::Ready`], take its I/O queues with
/// [`Controller::take_io_queues`] and poll them yourself; the controller needs to be polled as well,
/// for keep-alive, events, Aborts and operations of [`Controller::admin`].
///
/// **Failures.** A connection that breaks, a keep-alive that is not answered, CSTS.CFS and a command
/// that not even an Abort brings back make it [`ControllerState::Failed`], and its queues fail with
/// it. A failed I/O queue alone leaves the controller ready: drop the queue, and connect another one
/// with the same number by [`Controller::connect_io_queue`], or reconnect everything. Nothing is
/// repeated by itself: which of the commands that were lost may be repeated only their issuer knows.
pub struct Controller {
    options: HostOptions,
    address: TransportAddress,
    subnqn: Nqn,
    kind: Kind,
    context: HostContext,
    association: Rc<Association>,
    state: ControllerState,
    flow: Flow,
    info: Option<ControllerInfo>,
    connector: Option<IoQueueConnector>,
    io_queues: Vec<IoQueue>,
    events: VecDeque<Event>,
    events_outstanding: u8,
    keep_alive_at: Option<Instant>,
    is_keep_alive_outstanding: bool,
    next_admin_poll: Instant,
    completions: Vec<Completion>,
}

/// What goes on besides commands.
enum Flow {
    None,
    BringUp(Operation<BringUp>),
    /// Disables the controller; then it is connected anew.
    Reset(Operation<()>),
    ShutDown(Operation<()>),
}

impl Controller {
    /// Begins to connect to the controller of a subsystem.
    ///
    /// # Errors
    /// An option or the address cannot be used. All else shows in [`Controller::state`].
    pub fn connect(
        address: &TransportAddress,
        subnqn: &Nqn,
        options: HostOptions,
        context: &HostContext,
        now: Instant,
    ) -> Result<Self, HostError> {
        let kind = if subnqn.is_discovery() {
            Kind::Discovery
        } else {
            Kind::Io
        };
        options.check()?;
        let (association, flow) = begin(address, subnqn, kind, &options, context, now)?;
        Ok(Self {
            options,
            address: address.clone(),
            subnqn: subnqn.clone(),
            kind,
            context: context.clone(),
            association,
            state: ControllerState::Connecting,
            flow: Flow::BringUp(flow),
            info: None,
            connector: None,
            io_queues: Vec::new(),
            events: VecDeque::new(),
            events_outstanding: 0,
            keep_alive_at: None,
            is_keep_alive_outstanding: false,
            next_admin_poll: now,
            completions: Vec::new(),
        })
    }

    /// How far it is.
    #[must_use]
    pub fn state(&self) -> &ControllerState {
        &self.state
    }

    /// Whether it can be used.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self.state, ControllerState::Ready)
    }

    /// Why it failed, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<&HostError> {
        match &self.state {
            ControllerState::Failed(error) => Some(error),
            _ => None,
        }
    }

    /// What connecting is at, in a few words.
    #[must_use]
    pub fn step(&self) -> &'static str {
        self.association.step.get()
    }

    /// The subsystem's name.
    #[must_use]
    pub fn subnqn(&self) -> &Nqn {
        &self.subnqn
    }

    /// The controller's address.
    #[must_use]
    pub fn address(&self) -> &TransportAddress {
        &self.address
    }

    /// What is known of it, since it was ready.
    #[must_use]
    pub fn info(&self) -> Option<&ControllerInfo> {
        self.info.as_ref()
    }

    /// How long to wait before a command that ended with `status` is repeated (CRD with CRDT1 to
    /// CRDT3). `None`: as you like.
    #[must_use]
    pub fn retry_delay(&self, status: Status) -> Option<Duration> {
        let identify = &self.info.as_ref()?.identify;
        let crdt = match status.crd() {
            1 => identify.crdt1,
            2 => identify.crdt2,
            3 => identify.crdt3,
            _ => return None,
        };
        Some(Duration::from_millis(u64::from(crdt.get()) * 100))
    }

    /// Its admin commands.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin {
            association: Rc::clone(&self.association),
        }
    }

    /// The I/O queues that were connected, once.
    #[must_use]
    pub fn take_io_queues(&mut self) -> Vec<IoQueue> {
        std::mem::take(&mut self.io_queues)
    }

    /// What I/O queues are connected with, for a queue on another thread.
    #[must_use]
    pub fn io_queue_connector(&self) -> Option<&IoQueueConnector> {
        self.connector.as_ref()
    }

    /// Begins to connect an I/O queue. Of its commands those that take too long are aborted.
    ///
    /// # Errors
    /// The controller is not ready.
    pub fn connect_io_queue(&self, qid: Qid, now: Instant) -> Result<IoQueue, HostError> {
        let state = self.state.name();
        let connector =
            self.connector
                .as_ref()
                .filter(|_| self.is_ready())
                .ok_or(HostError::NotReady {
                    what: "an I/O queue",
                    state,
                })?;
        Ok(IoQueue::connect(connector, qid, &self.context, now).of(&self.association))
    }

    /// Whether I/O queues can be disconnected one by one (OFCS bit 0).
    #[must_use]
    pub fn can_disconnect_queues(&self) -> bool {
        self.info
            .as_ref()
            .is_some_and(|info| info.identify.ofcs.get() & ofcs::DISCONNECT != 0)
    }

    /// The oldest event that has not been taken.
    pub fn take_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Moves everything on that needs no I/O queue. Returns whether there was anything to do.
    pub fn poll(&mut self, now: Instant) -> bool {
        self.association.now.set(now);
        let mut worked = false;
        if self.is_admin_poll_due(now) {
            self.next_admin_poll = now + self.options.admin_poll_interval;
            let mut completions = std::mem::take(&mut self.completions);
            worked = self
                .association
                .queue
                .borrow_mut()
                .poll(now, &mut completions);
            for completion in completions.drain(..) {
                self.dispatch(completion, now);
            }
            self.completions = completions;
        }
        if !matches!(
            self.state,
            ControllerState::Failed(_) | ControllerState::ShutDown
        ) {
            self.keep_alive(now);
            self.send_aborts(now);
            self.check_admin_timeouts();
        }
        worked |= self.advance_flow(now);
        if self.is_ready() {
            self.ask_for_events(now);
        }
        // What the flow and the others have submitted goes out in this poll.
        let mut completions = std::mem::take(&mut self.completions);
        self.association.queue.borrow_mut().flush(&mut completions);
        for completion in completions.drain(..) {
            self.dispatch(completion, now);
        }
        self.completions = completions;
        self.notice_failure();
        worked
    }

    /// Disables the controller and connects it anew. Its I/O queues end; take the new ones when it
    /// is ready again.
    pub fn reset(&mut self, now: Instant) {
        if !self.is_ready() {
            return;
        }
        self.association.is_ended.set(true);
        self.association.now.set(now);
        self.state = ControllerState::Resetting;
        let timeout = self
            .info
            .as_ref()
            .map_or(Duration::from_secs(10), ready_timeout);
        self.flow = Flow::Reset(Operation::new(disable(self.admin(), timeout)));
    }

    /// Drops the association as it is and connects anew.
    ///
    /// # Errors
    /// As [`Controller::connect`].
    pub fn reconnect(&mut self, now: Instant) -> Result<(), HostError> {
        self.end_association();
        let (association, flow) = begin(
            &self.address,
            &self.subnqn,
            self.kind,
            &self.options,
            &self.context,
            now,
        )?;
        self.association = association;
        self.flow = Flow::BringUp(flow);
        self.state = ControllerState::Connecting;
        self.info = None;
        self.connector = None;
        self.io_queues.clear();
        self.events_outstanding = 0;
        self.keep_alive_at = None;
        self.is_keep_alive_outstanding = false;
        self.next_admin_poll = now;
        Ok(())
    }

    /// Shuts the controller down in order: disconnects `io_queues`, sets CC.SHN, waits for
    /// CSTS.SHST, closes the connection.
    pub fn shut_down(&mut self, io_queues: Vec<IoQueue>, now: Instant) {
        if !self.is_ready() {
            self.end_association();
            if self.failure().is_none() {
                self.state = ControllerState::ShutDown;
            }
            return;
        }
        self.association.now.set(now);
        self.state = ControllerState::ShuttingDown;
        let mut queues = std::mem::take(&mut self.io_queues);
        queues.extend(io_queues);
        let can_disconnect = self.can_disconnect_queues();
        let flow = shut_down(
            self.admin(),
            queues,
            can_disconnect,
            self.shutdown_timeout(),
        );
        self.flow = Flow::ShutDown(Operation::new(flow));
    }

    /// The admin queue's socket; readable when [`Controller::poll`] has something to do. `None` once
    /// it has ended.
    pub fn with_wake_fd<R>(&self, use_fd: impl FnOnce(Option<BorrowedFd<'_>>) -> R) -> R {
        use_fd(self.association.queue.borrow().wake_fd())
    }

    /// Whether that socket must be watched for room to send as well.
    #[must_use]
    pub fn wants_to_send(&self) -> bool {
        self.association.queue.borrow().wants_to_send()
    }

    /// When it must be polled although nothing became readable.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let queue = self.association.queue.borrow().next_deadline();
        // What a flow waits for it asks for again and again, and it is over soon.
        let has_flow = !matches!(self.flow, Flow::None);
        let flow = has_flow.then(|| self.association.now.get() + Duration::from_millis(1));
        [queue, flow, self.keep_alive_at]
            .into_iter()
            .flatten()
            .min()
    }

    fn shutdown_timeout(&self) -> Duration {
        let rtd3e_us = self
            .info
            .as_ref()
            .map_or(0, |info| info.identify.rtd3e.get());
        Duration::from_micros(rtd3e_us.into())
            .clamp(Duration::from_secs(5), Duration::from_secs(60))
    }

    /// A call for every poll of a busy loop would be wasted when nothing but events is awaited.
    fn is_admin_poll_due(&self, now: Instant) -> bool {
        if !self.is_ready() || now >= self.next_admin_poll {
            return true;
        }
        let queue = self.association.queue.borrow();
        queue.in_flight() > u16::from(self.events_outstanding)
    }

    fn dispatch(&mut self, completion: Completion, now: Instant) {
        match completion.tag {
            TAG_EVENT => {
                self.events_outstanding -= 1;
                match completion.result {
                    Ok(dw0) => self.events.push_back(Event::from_dword(dw0 as u32)),
                    // Fewer are allowed than was told, or the association ends.
                    Err(_) => {
                        if let Some(info) = &mut self.info {
                            info.async_events = info.async_events.saturating_sub(1);
                        }
                    }
                }
            }
            TAG_KEEP_ALIVE => {
                self.is_keep_alive_outstanding = false;
                if let Err(CommandError::Status(status)) = completion.result {
                    self.fail(HostError::Command {
                        what: "keep alive",
                        status,
                    });
                }
                self.keep_alive_at = now.checked_add(self.options.keep_alive / 2);
            }
            TAG_ABORT => {}
            _ => self.association.finish(completion),
        }
    }

    fn keep_alive(&mut self, now: Instant) {
        let kato = self.options.keep_alive;
        if kato.is_zero() || !self.association.is_connected.get() {
            return;
        }
        let due = *self.keep_alive_at.get_or_insert(now + kato / 2);
        if due > now || self.is_keep_alive_outstanding {
            return;
        }
        let mut command = Command::new(Sqe::keep_alive(Cid(0)), TAG_KEEP_ALIVE);
        // The controller has waited for half of it already: after the other half it gives up.
        command.timeout = Some(kato);
        if self
            .association
            .queue
            .borrow_mut()
            .submit(command, now)
            .is_accepted()
        {
            self.is_keep_alive_outstanding = true;
            self.keep_alive_at = now.checked_add(kato);
        } else {
            // The queue is full: its commands' own time-outs will tell if it is dead.
            self.keep_alive_at = now.checked_add(Duration::from_millis(10));
        }
    }

    fn send_aborts(&mut self, now: Instant) {
        let mut requests = self.association.abort_requests.borrow_mut();
        let mut queue = self.association.queue.borrow_mut();
        while let Some(&(qid, cid)) = requests.last() {
            let mut command = Command::new(Sqe::abort(Cid(0), qid, cid), TAG_ABORT);
            command.timeout = Some(self.options.admin_timeout);
            if !queue.submit(command, now).is_accepted() {
                break;
            }
            requests.pop();
        }
    }

    /// An admin command that is not answered in time is aborted; if it is a Keep Alive or an Abort,
    /// the controller is not there any more.
    fn check_admin_timeouts(&mut self) {
        let expired = self.association.queue.borrow_mut().take_expired();
        let Some(cid) = expired else { return };
        if self.is_keep_alive_outstanding && self.association.queue.borrow_mut().is_keep_alive(cid)
        {
            let timeout_ms = ms(self.options.keep_alive);
            self.fail(HostError::KeepAlive { timeout_ms });
        } else {
            self.association.request_abort(Qid::ADMIN, cid);
        }
    }

    fn ask_for_events(&mut self, now: Instant) {
        let Some(info) = &self.info else { return };
        let mut queue = self.association.queue.borrow_mut();
        while self.events_outstanding < info.async_events
            && self.events.len() + usize::from(self.events_outstanding) < MAX_EVENTS
        {
            let mut command = Command::new(Sqe::async_event_request(Cid(0)), TAG_EVENT);
            command.timeout = Some(Duration::MAX);
            if !queue.submit(command, now).is_accepted() {
                break;
            }
            self.events_outstanding += 1;
        }
    }

    fn advance_flow(&mut self, now: Instant) -> bool {
        match &mut self.flow {
            Flow::None => false,
            Flow::BringUp(operation) => match operation.poll() {
                None => false,
                Some(Ok(up)) => {
                    self.flow = Flow::None;
                    self.info = Some(up.info);
                    self.connector = Some(up.connector);
                    self.io_queues = up.io_queues;
                    self.state = ControllerState::Ready;
                    true
                }
                Some(Err(error)) => {
                    self.fail(error);
                    true
                }
            },
            Flow::Reset(operation) => match operation.poll() {
                None => false,
                // Disabled or not: the new association does not depend on the old one.
                Some(_) => {
                    if let Err(error) = self.reconnect(now) {
                        self.fail(error);
                    }
                    true
                }
            },
            Flow::ShutDown(operation) => match operation.poll() {
                None => false,
                Some(result) => {
                    self.end_association();
                    self.state = match result {
                        Ok(()) => ControllerState::ShutDown,
                        Err(error) => ControllerState::Failed(error),
                    };
                    true
                }
            },
        }
    }

    /// The admin queue's failure is the controller's, unless it was about to end anyway.
    fn notice_failure(&mut self) {
        let is_over = matches!(
            self.state,
            ControllerState::Failed(_) | ControllerState::ShutDown
        );
        if is_over || !matches!(self.flow, Flow::None) {
            return;
        }
        let failure = self.association.queue.borrow().failure().cloned();
        if let Some(error) = failure {
            self.fail(error);
        }
    }

    fn fail(&mut self, error: HostError) {
        self.end_association();
        self.state = ControllerState::Failed(error);
    }

    /// Closes the connection; operations that wait fail at their next poll.
    fn end_association(&mut self) {
        self.flow = Flow::None;
        self.association.is_ended.set(true);
        self.association.is_connected.set(false);
        let mut completions = std::mem::take(&mut self.completions);
        self.association.queue.borrow_mut().close(&mut completions);
        for completion in completions.drain(..) {
            if completion.tag < crate::io::MAX_TAG {
                self.association.finish(completion);
            }
        }
        self.completions = completions;
        self.events_outstanding = 0;
        self.is_keep_alive_outstanding = false;
        self.keep_alive_at = None;
    }
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller")
            .field("address", &self.address.to_string())
            .field("subnqn", &self.subnqn.as_str())
            .field("state", &self.state.name())
            .finish_non_exhaustive()
    }
}

/// CAP.TO.
pub(crate) fn ready_timeout(info: &ControllerInfo) -> Duration {
    cap_timeout(info.cap)
}

/// CAP.TO in units of 500 ms; at least one.
pub(crate) fn cap_timeout(cap: Cap) -> Duration {
    Duration::from_millis(500 * u64::from(cap.to().max(1)))
}

/// Begins an association.
fn begin(
    address: &TransportAddress,
    subnqn: &Nqn,
    kind: Kind,
    options: &HostOptions,
    context: &HostContext,
    now: Instant,
) -> Result<(Rc<Association>, Operation<BringUp>), HostError> {
    let shown = address.to_string();
    let is_rdma = address.trtype == TransportType::Rdma;
    if is_rdma && options.verbs.is_none() {
        return Err(HostError::Transport { address: shown });
    }
    let socket_addr = address.socket_addr().map_err(|source| HostError::Address {
        address: shown.clone(),
        source,
    })?;
    let config = QueueConfig {
        socket_addr,
        address: Arc::from(shown),
        qid: Qid::ADMIN,
        depth: options.admin_queue_depth,
        header_digest: options.header_digest,
        data_digest: options.data_digest,
        hpda: options.hpda,
        max_r2t: options.max_r2t,
        connect_timeout: options.connect_timeout,
        command_timeout: options.admin_timeout,
        abort_grace: options.abort_grace,
        tos: options.tos,
        is_rdma,
        cntlid: Cntlid::DYNAMIC,
        memory_windows: options.memory_windows,
        verbs: options.verbs.clone(),
    };
    let connector = IoQueueConnector {
        config: config.clone(),
        identity: options.identity.clone(),
        subnqn: subnqn.clone(),
        cntlid: Cntlid::DYNAMIC,
        cattr: IoQueueConnector::disables_flow_control(options.disable_sq_flow_control),
        max_in_capsule: crate::queue::ADMIN_IN_CAPSULE,
    };
    let association = Association::new(HostQueue::connect(config, context, now), now);
    let admin = Admin {
        association: Rc::clone(&association),
    };
    let flow = bring_up(admin, connector, kind, options.clone(), context.clone());
    Ok((association, Operation::new(flow)))
}
