//! A poll group: the queue pairs of one thread, and the loop body that drives them.

mod mail;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Waker};
use std::time::Instant;

use block::ChannelContext;
use dma::{ChannelOptions, IoBuf, IobufChannel, IobufPool, Payload};
use fabric_wire::TransportAddress;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nvme_spec::{Nsid, Sqe};

use crate::config::SubsystemConfig;
use crate::error::TargetError;
use crate::group_namespace::{GroupNamespace, GroupSubsystem};
use crate::inbox::{AbortResult, GroupHandle, Message};
use crate::queue::{self, Queue, QueueParts, SlotFuture, add};
use crate::reservation::HostId;
use crate::share::Ledger;
use crate::subsystem::SubsystemUid;
use crate::target::Target;
use crate::ticket::Part;
use crate::transport::{
    Acceptor, CloseReason, ConnectionId, Digests, GroupContext, NewConnection, Peer, QpairId,
    Response, SlotId, Step, TransportGroup, TransportId,
};

/// What the commands' logic of one group shares.
pub(crate) struct GroupShared {
    pub(crate) target: Arc<Target>,
    pub(crate) handle: Arc<GroupHandle>,
    /// The time that the caller passed to this poll.
    pub(crate) now: Cell<Instant>,
    pub(crate) iobuf_pool: Arc<IobufPool>,
    /// Whose commands hold how many buffers.
    pub(crate) ledger: Rc<Ledger>,
    channel_context: ChannelContext,
    pub(crate) subsystems: RefCell<HashMap<SubsystemUid, Rc<GroupSubsystem>>>,
    /// Namespaces whose device holds I/O of this group.
    active: RefCell<Vec<Rc<GroupNamespace>>>,
    /// Slots to poll in this turn.
    pub(crate) ready: RefCell<VecDeque<(QpairId, SlotId)>>,
    /// Slots to poll at a time. Few: only commands that wait for another queue's end.
    pub(crate) timed: RefCell<Vec<(Instant, QpairId, SlotId)>>,
    pub(crate) buffer_waits: Cell<u64>,
    epoll: Epoll,
}

impl GroupShared {
    pub(crate) fn mark_active(&self, namespace: &Rc<GroupNamespace>) {
        if !namespace.is_listed_active.replace(true) {
            self.active.borrow_mut().push(Rc::clone(namespace));
        }
    }

    /// Takes back an I/O that a device has only queued in software; see [`block::Channel::abort`].
    pub(crate) fn abort_in_device(&self, token: u64) -> bool {
        self.active
            .borrow()
            .iter()
            .any(|namespace| namespace.with_channel(|channel| channel.abort(token)) == Some(true))
    }

    pub(crate) fn channel_context(&self) -> &ChannelContext {
        &self.channel_context
    }

    /// The group's view of a subsystem, made when the first of its queue pairs connects.
    pub(crate) fn attach(&self, subsystem: &Arc<crate::Subsystem>) -> Rc<GroupSubsystem> {
        let mut subsystems = self.subsystems.borrow_mut();
        let entry = subsystems.entry(subsystem.uid()).or_insert_with(|| {
            let (config, pauses) = subsystem.attach(&self.handle);
            Rc::new(GroupSubsystem::new(Arc::clone(subsystem), config, pauses))
        });
        entry.users.set(entry.users.get() + 1);
        Rc::clone(entry)
    }

    fn detach(&self, subsystem: &Rc<GroupSubsystem>) {
        subsystem.users.set(subsystem.users.get() - 1);
        if subsystem.users.get() == 0 {
            self.subsystems
                .borrow_mut()
                .remove(&subsystem.subsystem.uid());
            subsystem.subsystem.detach(&self.handle);
        }
    }

    /// Makes the group's epoll descriptor readable when `fd` is. Descriptors leave by being closed.
    pub(crate) fn watch(&self, fd: BorrowedFd<'_>) {
        let added = self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0));
        if let Err(error) = added
            && error != nix::errno::Errno::EEXIST
        {
            tracing::error!(%error, "cannot watch a descriptor: the group will be woken late");
        }
    }
}

struct Entry {
    queue: Rc<Queue>,
    futures: Vec<SlotFuture>,
    /// Held until the queue pair's I/O has ended.
    parts: Vec<Arc<Part>>,
}

/// The queue pairs of a poll group; what transports call.
pub struct Core {
    pub(crate) shared: Rc<GroupShared>,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    next_uid: u64,
    iobufs: Vec<Option<Rc<RefCell<IobufChannel>>>>,
    /// Slots that moved on while no transport was looking.
    steps: Vec<(TransportId, ConnectionId, SlotId, Step)>,
    /// Connections that the target itself ends.
    closing: Vec<(TransportId, ConnectionId, CloseReason)>,
    next_keep_alive_check: Option<Instant>,
    seen_keep_alive_changes: u64,
    completions: Vec<block::Completion>,
    served: Vec<(u64, IoBuf)>,
    busy: usize,
}

/// Why a command could not be taken; the connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// The host has more commands outstanding than its queue has entries.
    QueueOverrun,
    /// The queue pair is gone.
    Closed,
}

/// What a transport tells of a connection whose first capsule has come.
#[derive(Debug)]
pub struct OpenQpair {
    /// The transport.
    pub transport: TransportId,
    /// The transport group's own number of the connection.
    pub connection: ConnectionId,
    /// The connection's ends.
    pub peer: Peer,
    /// Entries of the submission queue, from SQSIZE of the Connect command.
    pub depth: u16,
    /// Whether read data may be sent from memory that others write meanwhile.
    pub may_borrow_data: bool,
    /// What the connection's ends have agreed on.
    pub digests: Digests,
}

impl Core {
    fn new(shared: Rc<GroupShared>) -> Self {
        Self {
            shared,
            entries: Vec::new(),
            free: Vec::new(),
            next_uid: 1,
            iobufs: Vec::new(),
            steps: Vec::new(),
            closing: Vec::new(),
            next_keep_alive_check: None,
            seen_keep_alive_changes: 0,
            completions: Vec::new(),
            served: Vec::new(),
            busy: 0,
        }
    }

    /// Makes a queue pair for a connection.
    ///
    /// # Errors
    /// No buffers left for the transport's cache in this group.
    pub fn open(&mut self, open: OpenQpair) -> Result<QpairId, TargetError> {
        let iobuf = self.iobuf(open.transport)?;
        let limits = self.shared.target.transport_limits(open.transport)?;
        let groups = self.shared.target.poll_group_count();
        self.shared.ledger.measure(&self.shared.iobuf_pool, groups);
        let id = QpairId(self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            u32::try_from(self.entries.len() - 1).expect("fewer than 2^32 queue pairs")
        }));
        let queue = Queue::new(QueueParts {
            group: Rc::clone(&self.shared),
            id,
            uid: self.next_uid,
            transport: open.transport,
            limits,
            connection: open.connection,
            peer: open.peer,
            depth: open.depth.max(1),
            may_borrow_data: open.may_borrow_data,
            digests: open.digests,
            iobuf,
        });
        self.next_uid += 1;
        let counters = &self.shared.handle.counters;
        add(&counters.current_unassociated_qpairs, 1);
        self.entries[id.0 as usize] = Some(Entry {
            queue,
            futures: Vec::new(),
            parts: Vec::new(),
        });
        Ok(id)
    }

    /// The data buffers of a transport in this group.
    fn iobuf(&mut self, transport: TransportId) -> Result<Rc<RefCell<IobufChannel>>, TargetError> {
        let index = usize::from(transport.0);
        if self.iobufs.len() <= index {
            self.iobufs.resize(index + 1, None);
        }
        if let Some(channel) = &self.iobufs[index] {
            return Ok(Rc::clone(channel));
        }
        let module = format!("nvmf_{}", self.shared.target.transport_name(transport)?);
        let limits = self.shared.target.transport_limits(transport)?;
        let (small_cache, large_cache) = self.shared.target.iobuf_cache_sizes(&limits);
        let options = ChannelOptions {
            small_cache,
            large_cache,
            waker: self.shared.handle.waker(),
        };
        let channel = self
            .shared
            .iobuf_pool
            .channel(&module, options)
            .map_err(|source| TargetError::Iobuf { module, source })?;
        let channel = Rc::new(RefCell::new(channel));
        self.iobufs[index] = Some(Rc::clone(&channel));
        Ok(channel)
    }

    fn entry(&mut self, qpair: QpairId) -> Option<&mut Entry> {
        self.entries.get_mut(qpair.0 as usize)?.as_mut()
    }

    /// Runs a command that has arrived.
    ///
    /// # Errors
    /// The host broke the queue's rules; the connection must be closed.
    pub fn command(
        &mut self,
        qpair: QpairId,
        sqe: Sqe,
        in_capsule_len: u32,
    ) -> Result<(SlotId, Step), CommandError> {
        let entry = self.entry(qpair).ok_or(CommandError::Closed)?;
        let slot = entry.queue.take_slot().ok_or(CommandError::QueueOverrun)?;
        entry.queue.accept(&slot, sqe, in_capsule_len);
        let index = usize::from(slot.id.0);
        if entry.futures.len() == index {
            let future = queue::serve(Rc::clone(&entry.queue), Rc::clone(&slot));
            entry.futures.push(Box::pin(future));
        }
        poll(&mut entry.futures[index]);
        Ok((slot.id, slot.step()))
    }

    /// The buffer that a slot in [`Step::Receive`] wants filled, and the bytes to receive.
    pub fn take_receive(&mut self, qpair: QpairId, slot: SlotId) -> (Payload, u32) {
        match self.entry(qpair) {
            Some(entry) => entry.queue.slot(slot).take_receive(),
            None => (Payload::None, 0),
        }
    }

    /// Gives the filled buffer back; the command goes on. [`Payload::None`] in its place says that
    /// the data has not come intact: the command ends with Transient Transport Error.
    pub fn data_received(&mut self, qpair: QpairId, slot: SlotId, payload: Payload) -> Step {
        let Some(entry) = self.entry(qpair) else {
            return Step::Pending;
        };
        let cell = entry.queue.slot(slot);
        cell.data_received(payload);
        poll(&mut entry.futures[usize::from(slot.0)]);
        cell.step()
    }

    /// The response of a slot in [`Step::Respond`].
    pub fn take_response(&mut self, qpair: QpairId, slot: SlotId) -> Option<Response> {
        let entry = self.entry(qpair)?;
        let cell = entry.queue.slot(slot);
        entry.queue.answered(&cell);
        let (cqe, payload, data_len) = cell.take_response();
        Some(Response {
            cqe,
            payload,
            data_len,
        })
    }

    /// The response has been handed to the network: the slot is free.
    pub fn response_sent(&mut self, qpair: QpairId, slot: SlotId) {
        let Some(entry) = self.entry(qpair) else {
            return;
        };
        let queue = Rc::clone(&entry.queue);
        queue.release(&queue.slot(slot));
        if queue.close_after_response.get() {
            self.closing
                .push((queue.transport, queue.connection, CloseReason::Disconnect));
        }
    }

    /// The transport holds nothing any more of a slot in [`Step::Forget`]: the slot is free.
    pub fn forgotten(&mut self, qpair: QpairId, slot: SlotId) {
        if let Some(entry) = self.entry(qpair) {
            entry.queue.release_forgotten(&entry.queue.slot(slot));
        }
    }

    /// Whether nobody can be harmed if read data is lent; see [`OpenQpair::may_borrow_data`].
    pub fn now(&self) -> Instant {
        self.shared.now.get()
    }

    /// The connection of a queue pair is gone: ends its commands. Buffers that a device still
    /// holds stay with the device until it lets go of them.
    pub fn closed(&mut self, qpair: QpairId) {
        let Some(entry) = self.entry(qpair) else {
            return;
        };
        if entry.queue.is_closed.replace(true) {
            return;
        }
        let queue = Rc::clone(&entry.queue);
        for slot in queue.slots.borrow().iter() {
            queue
                .iobuf
                .borrow_mut()
                .cancel_wait(queue::token(queue.id, slot.id));
        }
        // Drops the commands' futures, and with them what they hold.
        entry.futures.clear();
        queue.slots.borrow().iter().for_each(|slot| slot.clear());
        if let Some(association) = queue.association() {
            association
                .controller
                .queue_closed(association.qid, queue.uid);
        }
        self.finish_if_idle(qpair);
    }

    /// Forgets a closed queue pair once no device holds I/O of it.
    fn finish_if_idle(&mut self, qpair: QpairId) {
        let Some(entry) = self.entry(qpair) else {
            return;
        };
        let queue = Rc::clone(&entry.queue);
        if !queue.is_closed.get() || queue.device_ios.get() > 0 {
            return;
        }
        let parts = self.entries[qpair.0 as usize]
            .take()
            .map(|entry| entry.parts);
        self.free.push(qpair.0);
        let counters = &self.shared.handle.counters;
        let mut drained = None;
        let current = match queue.association() {
            None => &counters.current_unassociated_qpairs,
            Some(association) => {
                drained = Some((
                    Arc::clone(&association.controller),
                    association.qid,
                    queue.uid,
                ));
                if let Some(subsystem) = &association.subsystem {
                    self.shared.detach(subsystem);
                }
                if association.qid.0 == 0 {
                    &counters.current_admin_qpairs
                } else {
                    &counters.current_io_qpairs
                }
            }
        };
        current.store(
            current.load(Ordering::Relaxed).saturating_sub(1),
            Ordering::Relaxed,
        );
        // With the last queue pair of a subsystem its channels close. Only then may tickets be
        // done: whoever waits for them may delete the devices.
        drop(queue);
        if let Some((controller, qid, uid)) = drained {
            controller.queue_drained(qid, uid, &self.shared.target);
        }
        drop(parts);
    }

    /// Polls one slot and notes the step for its transport.
    fn resume(&mut self, qpair: QpairId, slot: SlotId) {
        let Some(entry) = self.entry(qpair) else {
            return;
        };
        let Some(future) = entry.futures.get_mut(usize::from(slot.0)) else {
            return;
        };
        let cell = entry.queue.slot(slot);
        // A slot may be polled more often than it has reason to go on. Its transport is told once.
        let was_pending = cell.step() == Step::Pending;
        poll(future);
        let step = cell.step();
        if was_pending && step != Step::Pending {
            let (transport, connection) = (entry.queue.transport, entry.queue.connection);
            self.steps.push((transport, connection, slot, step));
        }
        self.busy += 1;
    }

    fn poll_devices(&mut self, now: Instant) {
        if self.shared.active.borrow().is_empty() {
            return;
        }
        let mut active = self.shared.active.take();
        let mut completions = std::mem::take(&mut self.completions);
        for namespace in &active {
            namespace.poll_channel(now, &mut completions);
        }
        active.retain(|namespace| {
            let stays = namespace.in_flight.get() > 0 || !namespace.is_quiet();
            namespace.is_listed_active.set(stays);
            stays
        });
        // Polling commands below may make other namespaces active.
        self.shared.active.replace(active);
        for completion in completions.drain(..) {
            let (qpair, slot) = queue::from_token(completion.io.tag);
            let Some(entry) = self.entry(qpair) else {
                continue;
            };
            let queue = &entry.queue;
            queue
                .device_ios
                .set(queue.device_ios.get().saturating_sub(1));
            if queue.is_closed.get() {
                drop(completion);
                self.finish_if_idle(qpair);
            } else {
                queue.slot(slot).deliver_completion(completion);
                self.resume(qpair, slot);
            }
        }
        self.completions = completions;
    }

    /// Lets commands go on whose host may take another buffer.
    fn poll_shares(&mut self) {
        let ledger = Rc::clone(&self.shared.ledger);
        while let Some((qpair, slot, charge)) = ledger.next() {
            if let Some(entry) = self.entry(qpair) {
                entry.queue.slot(slot).charge(charge);
                self.resume(qpair, slot);
            }
        }
    }

    /// Hands buffers to the commands that waited for them, in the order of asking.
    fn poll_buffers(&mut self) {
        let mut served = std::mem::take(&mut self.served);
        for index in 0..self.iobufs.len() {
            if let Some(channel) = self.iobufs[index].clone() {
                channel.borrow_mut().poll(&mut served);
            }
            for (token, buffer) in served.drain(..) {
                let (qpair, slot) = queue::from_token(token);
                let Some(entry) = self.entry(qpair) else {
                    continue;
                };
                entry.queue.slot(slot).deliver_buffer(buffer);
                self.resume(qpair, slot);
            }
        }
        self.served = served;
    }

    fn poll_ready(&mut self, now: Instant) {
        {
            let mut timed = self.shared.timed.borrow_mut();
            let mut ready = self.shared.ready.borrow_mut();
            timed.retain(|(at, qpair, slot)| {
                if *at <= now {
                    ready.push_back((*qpair, *slot));
                }
                *at > now
            });
        }
        // Those that become ready meanwhile are polled in the next turn.
        let count = self.shared.ready.borrow().len();
        for _ in 0..count {
            let next = self.shared.ready.borrow_mut().pop_front();
            if let Some((qpair, slot)) = next {
                self.resume(qpair, slot);
            }
        }
    }

    /// Ends controllers whose host has been silent for longer than its keep-alive timeout.
    fn check_keep_alive(&mut self, now: Instant) {
        if self.next_keep_alive_check.is_some_and(|at| now < at) {
            return;
        }
        self.next_keep_alive_check = None;
        for entry in self.entries.iter().flatten() {
            let Some(association) = entry.queue.association() else {
                continue;
            };
            if association.qid.0 != 0 || entry.queue.is_closed.get() {
                continue;
            }
            let Some(timeout) = association.controller.keep_alive_timeout() else {
                continue;
            };
            let deadline = entry.queue.last_command.get() + timeout;
            if deadline <= now {
                association.controller.keep_alive_expired();
            } else {
                let check = self.next_keep_alive_check.get_or_insert(deadline);
                *check = deadline.min(*check);
            }
        }
    }

    /// Makes the next keep-alive check happen at once: a timeout is new or has changed.
    fn expect_keep_alive(&mut self) {
        let changes = self.shared.target.keep_alive_changes();
        if changes != self.seen_keep_alive_changes {
            self.seen_keep_alive_changes = changes;
            self.next_keep_alive_check = Some(self.shared.now.get());
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let timed = self.shared.timed.borrow().iter().map(|(at, ..)| *at).min();
        let devices = self
            .shared
            .active
            .borrow()
            .iter()
            .filter_map(|namespace| {
                namespace
                    .with_channel(|channel| channel.next_deadline())
                    .flatten()
            })
            .min();
        [timed, devices, self.next_keep_alive_check]
            .into_iter()
            .flatten()
            .min()
    }
}

fn poll(future: &mut SlotFuture) {
    // The futures look at their slot; nobody is to be woken.
    let _ = future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()));
}

/// What a poll found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollResult {
    /// Units of work done; 0 means idle.
    pub work: usize,
}

/// The queue pairs of one thread over all transports. Not `Send`: it lives on the thread that
/// made it. The caller's loop calls [`PollGroup::poll`]; when that has been idle for long enough
/// it may sleep until [`PollGroup::wake_fd`] is readable, the group's waker is woken or
/// [`PollGroup::next_deadline`] has come.
pub struct PollGroup {
    core: Core,
    transports: Vec<Option<Box<dyn TransportGroup>>>,
    acceptors: Vec<(Arc<TransportAddress>, Box<dyn Acceptor>)>,
    mail: VecDeque<Message>,
}

impl PollGroup {
    pub(crate) fn new(
        target: Arc<Target>,
        handle: Arc<GroupHandle>,
        iobuf_pool: Arc<IobufPool>,
        now: Instant,
    ) -> Result<Self, TargetError> {
        let epoll =
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|errno| TargetError::Epoll {
                source: errno.into(),
            })?;
        let channel_context =
            ChannelContext::new(&handle.name, handle.waker()).with_pool(Arc::clone(&iobuf_pool));
        let shared = Rc::new(GroupShared {
            target,
            handle,
            now: Cell::new(now),
            iobuf_pool,
            ledger: Rc::default(),
            channel_context,
            subsystems: RefCell::default(),
            active: RefCell::default(),
            ready: RefCell::default(),
            timed: RefCell::default(),
            buffer_waits: Cell::new(0),
            epoll,
        });
        Ok(Self {
            core: Core::new(shared),
            transports: Vec::new(),
            acceptors: Vec::new(),
            mail: VecDeque::new(),
        })
    }

    /// The group's number and counters.
    pub fn handle(&self) -> &Arc<GroupHandle> {
        &self.core.shared.handle
    }

    /// One turn: messages, connections, commands, devices, responses. Never blocks.
    pub fn poll(&mut self, now: Instant) -> PollResult {
        self.core.shared.now.set(now);
        self.core.busy = 0;
        self.read_mail();
        let mut work = self.accept(now);
        for transport in self.transports.iter_mut().flatten() {
            work += transport.poll(&mut self.core, now);
        }
        self.core.poll_devices(now);
        self.core.poll_shares();
        self.core.poll_buffers();
        self.core.poll_ready(now);
        self.core.expect_keep_alive();
        self.core.check_keep_alive(now);
        self.run_steps();
        self.run_closings();
        for transport in self.transports.iter_mut().flatten() {
            work += transport.flush(&mut self.core, now);
        }
        self.run_closings();
        self.count();
        PollResult {
            work: work + self.core.busy,
        }
    }

    /// When the group must be polled although nothing woke it.
    pub fn next_deadline(&self) -> Option<Instant> {
        let transports = self
            .transports
            .iter()
            .flatten()
            .filter_map(|transport| transport.next_deadline());
        let acceptors = self
            .acceptors
            .iter()
            .filter_map(|(_, acceptor)| acceptor.next_deadline());
        transports
            .chain(acceptors)
            .chain(self.core.next_deadline())
            .min()
    }

    /// Readable when a connection, a listener or a device has something for the group.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.core.shared.epoll.0.as_fd()
    }

    /// Whether the group may sleep: nothing waits to be polled in the next turn.
    pub fn may_sleep(&self) -> bool {
        let shared = &self.core.shared;
        !shared.handle.has_mail() && shared.ready.borrow().is_empty() && !shared.ledger.has_news()
    }

    /// Connections of all transports in this group.
    pub fn connection_count(&self) -> usize {
        self.transports
            .iter()
            .flatten()
            .map(|transport| transport.connection_count())
            .sum()
    }

    fn count(&self) {
        let counters = &self.core.shared.handle.counters;
        counters
            .buffer_waits
            .store(self.core.shared.buffer_waits.get(), Ordering::Relaxed);
    }

    fn accept(&mut self, now: Instant) -> usize {
        let target = &self.core.shared.target;
        let mut accepted = 0;
        for (_, acceptor) in &mut self.acceptors {
            accepted += acceptor.poll(now, &mut |connection| target.assign(connection));
        }
        accepted
    }

    fn run_steps(&mut self) {
        let mut steps = std::mem::take(&mut self.core.steps);
        for (transport, connection, slot, step) in steps.drain(..) {
            if let Some(Some(group)) = self.transports.get_mut(usize::from(transport.0)) {
                group.step(&mut self.core, connection, slot, step);
            }
        }
        // A transport's call can make no steps: it is given them as results.
        debug_assert!(self.core.steps.is_empty());
        self.core.steps = steps;
    }

    fn run_closings(&mut self) {
        while let Some((transport, connection, reason)) = self.core.closing.pop() {
            self.core.busy += 1;
            if let Some(Some(group)) = self.transports.get_mut(usize::from(transport.0)) {
                group.close(&mut self.core, connection, reason);
            }
        }
    }
}

impl Drop for PollGroup {
    fn drop(&mut self) {
        // Transports close their connections first: they hold buffers of the core.
        self.transports.clear();
        for index in 0..self.core.entries.len() {
            let Some(entry) = &self.core.entries[index] else {
                continue;
            };
            let id = entry.queue.id;
            self.core.closed(id);
            // Nobody polls the devices any more; what they hold they give back by themselves.
            if let Some(entry) = &self.core.entries[index] {
                entry.queue.device_ios.set(0);
                self.core.finish_if_idle(id);
            }
        }
        self.core
            .shared
            .target
            .remove_group(self.core.shared.handle.id);
        self.mail.clear();
        self.core.shared.handle.close();
    }
}
