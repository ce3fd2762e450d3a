//! The connections of one poll group: who is polled, who posts, who has run out of time.
//!
//! # Sleeping loses nothing
//! Each device's completion queue is polled. When it has been empty for some polls, which are told
//! as work, it is armed and polled once more: a completion that comes later makes the channel's
//! descriptor readable. So a poll that did no work has left every queue armed. The descriptors of
//! the channels, of the connection manager and of device events are in one epoll.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dma::IobufPool;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nvmf::Core;
use nvmf::transport::{
    CloseReason, ConnectionId, NewConnection, SlotId, Step, TransportGroup, TransportId,
};
use verbs::{AsyncEventKind, CmChannel, CmEventKind, RecvWr, WcStatus, WorkCompletion};

use crate::RdmaOptions;
use crate::admit::release;
use crate::closing::{Bound, Closings, Why};
use crate::commands::Commands;
use crate::connection::{Connection, End, Phase};
use crate::group_device::GroupDevice;
use crate::memory::Devices;
use crate::slab::Slab;
use crate::stats::{RdmaGroupStats, RdmaStats, add, count};
use crate::timeouts::Timeouts;
use crate::wr_id::{Kind, WrId};

/// The connection manager and devices' events are asked this often.
const EVENT_INTERVAL: Duration = Duration::from_millis(1);
/// Completions taken at once.
const BATCH: usize = 64;
/// Batches of one device in one poll; then it is the next one's turn.
const BATCHES_PER_POLL: usize = 4;
/// Empty polls after which the completion queues are armed.
const PATIENCE: u32 = 64;
/// Events of the connection manager handled in one poll.
const EVENTS_PER_POLL: usize = 64;
/// Devices that were removed without an event are looked for this often.
const REMOVAL_INTERVAL: Duration = Duration::from_secs(2);

/// What the connections of a group share.
pub(crate) struct GroupIo {
    pub(crate) transport: TransportId,
    pub(crate) options: Arc<RdmaOptions>,
    pub(crate) stats: Arc<RdmaGroupStats>,
    /// Empty between posts.
    pub(crate) receives: Vec<RecvWr>,
}

pub(crate) struct RdmaGroup {
    // Before what they stand on.
    pub(crate) slab: Slab<Connection>,
    pub(crate) devices: Vec<Option<GroupDevice>>,
    pub(crate) channel: Box<dyn CmChannel>,
    pub(crate) io: GroupIo,
    pub(crate) shared: Arc<Devices>,
    pub(crate) totals: Arc<RdmaStats>,
    pub(crate) iobuf: Arc<IobufPool>,
    pub(crate) epoll: Epoll,
    completions: Box<[WorkCompletion; BATCH]>,
    /// Connections that have something to post, or to end.
    dirty: Vec<ConnectionId>,
    /// Empty between flushes: the other memory of `dirty`.
    flushing: Vec<ConnectionId>,
    device_events: Vec<AsyncEventKind>,
    pub(crate) half_open: Timeouts<ConnectionId>,
    draining: Timeouts<ConnectionId>,
    next_event_check: Option<Instant>,
    next_removal_check: Option<Instant>,
    warnings: Bound,
    closings: Closings,
    pub(crate) idle_polls: u32,
    /// The time of the last call that told it.
    pub(crate) now: Option<Instant>,
}

impl RdmaGroup {
    pub(crate) fn new(
        transport: TransportId,
        iobuf: &Arc<IobufPool>,
        options: &Arc<RdmaOptions>,
        totals: &Arc<RdmaStats>,
        shared: &Arc<Devices>,
    ) -> io::Result<Self> {
        let channel = shared.provider.cm_channel()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        if let Some(fd) = channel.fd() {
            epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        }
        // Memory is registered now, which takes long, and not with the first connection. A device
        // that cannot be used says so when a connection comes.
        for device in shared.provider.devices()? {
            if let Err(error) = shared.get(&device, iobuf) {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    error,
                    device = device.info().name,
                    "cannot prepare a device"
                );
            }
        }
        Ok(Self {
            slab: Slab::default(),
            devices: Vec::new(),
            channel,
            io: GroupIo {
                transport,
                options: Arc::clone(options),
                stats: totals.add_group(),
                receives: Vec::new(),
            },
            shared: Arc::clone(shared),
            totals: Arc::clone(totals),
            iobuf: Arc::clone(iobuf),
            epoll,
            completions: Box::new([WorkCompletion::default(); BATCH]),
            dirty: Vec::new(),
            flushing: Vec::new(),
            device_events: Vec::new(),
            half_open: Timeouts::new(options.half_open_timeout_ms),
            draining: Timeouts::new(options.linger_timeout_ms),
            next_event_check: None,
            next_removal_check: None,
            warnings: Bound::default(),
            closings: Closings::default(),
            idle_polls: 0,
            now: None,
        })
    }

    pub(crate) fn now(&self) -> Instant {
        self.now
            .expect("a connection is added with the time, and nothing is asked before")
    }

    // Work completes.

    pub(crate) fn poll_with<C: Commands>(&mut self, core: &mut C, now: Instant) -> usize {
        self.now = Some(now);
        let mut work = 0;
        if self.next_event_check.is_none_or(|at| at <= now) {
            self.next_event_check = Some(now + EVENT_INTERVAL);
            work += self.poll_events(core);
            work += self.expire(core);
        }
        if self.next_removal_check.is_none_or(|at| at <= now) {
            self.next_removal_check = Some(now + REMOVAL_INTERVAL);
            self.shared.look_for_removed();
        }
        work += self.poll_queues(core);
        if work > 0 {
            self.idle_polls = 0;
            return work;
        }
        if self.slab.len() == 0 && self.devices.iter().flatten().all(|d| d.connections == 0) {
            self.arm();
            return 0;
        }
        self.idle_polls += 1;
        if self.idle_polls < PATIENCE {
            return 1;
        }
        if self.arm() {
            self.poll_queues(core)
        } else {
            0
        }
    }

    fn arm(&mut self) -> bool {
        let mut is_any = false;
        for device in self.devices.iter_mut().flatten() {
            is_any |= device.arm();
        }
        is_any
    }

    fn poll_queues<C: Commands>(&mut self, core: &mut C) -> usize {
        let mut work = 0;
        for index in 0..self.devices.len() {
            for _ in 0..BATCHES_PER_POLL {
                let Some(device) = &mut self.devices[index] else {
                    break;
                };
                add(&self.io.stats.polls, 1);
                let Some(count) = device.poll(&mut *self.completions) else {
                    self.device_failed(core, index);
                    break;
                };
                if count == 0 {
                    add(&self.io.stats.idle_polls, 1);
                    break;
                }
                add(&self.io.stats.completions, count as u64);
                work += count;
                for at in 0..count {
                    let completion = self.completions[at];
                    self.complete(core, index, &completion);
                }
                if count < BATCH {
                    break;
                }
            }
            if self.devices[index].as_ref().is_some_and(|d| d.is_dead) {
                self.device_failed(core, index);
            }
        }
        work
    }

    fn complete<C: Commands>(&mut self, core: &mut C, index: usize, wc: &WorkCompletion) {
        let Some(wr_id) = WrId::unpack(wc.wr_id) else {
            return;
        };
        let Some(device) = &mut self.devices[index] else {
            return;
        };
        let mut id = wr_id.connection;
        if wr_id.kind == Kind::SharedReceive {
            let Some(shared) = &mut device.receives else {
                return;
            };
            shared.set.posted = shared.set.posted.saturating_sub(1);
            match shared.owners.get(&wc.qp_num) {
                Some(owner) => id = *owner,
                None => {
                    add(&self.io.stats.stale_completions, 1);
                    shared.set.repost(wr_id.index);
                    return;
                }
            }
        }
        let Some(connection) = self.slab.get_mut(id) else {
            add(&self.io.stats.stale_completions, 1);
            return;
        };
        if wr_id.kind == Kind::Receive
            && let Some(receives) = &mut connection.receives
        {
            receives.posted = receives.posted.saturating_sub(1);
        }
        if !connection.is_dirty {
            connection.is_dirty = true;
            self.dirty.push(id);
        }
        let is_receive = matches!(wr_id.kind, Kind::Receive | Kind::SharedReceive);
        let slot = SlotId(wr_id.index as u16);
        let result = if wc.status != WcStatus::Success {
            if matches!(wr_id.kind, Kind::Read | Kind::Send) {
                connection.posted = connection.posted.saturating_sub(1);
            }
            if wr_id.kind == Kind::SharedReceive
                && let Some(shared) = &mut device.receives
            {
                shared.set.repost(wr_id.index);
            }
            self.failed(core, id, wc);
            return;
        } else if is_receive {
            connection.on_capsule(core, device, &self.io, wr_id.index, wc.byte_len)
        } else if wr_id.kind == Kind::Chained {
            Ok(())
        } else {
            connection.on_completed(core, device, &self.io, wr_id.kind, slot)
        };
        if let Err(end) = result {
            self.end(core, id, end);
        }
    }

    #[inline]
    fn dirty_one(&mut self, id: ConnectionId) {
        if let Some(connection) = self.slab.get_mut(id)
            && !connection.is_dirty
        {
            connection.is_dirty = true;
            self.dirty.push(id);
        }
    }

    /// How many warnings were not given since the last, if one may be.
    pub(crate) fn may_warn(&mut self) -> Option<u64> {
        let now = self.now();
        self.warnings.take(now)
    }

    /// A work request failed.
    #[cold]
    fn failed<C: Commands>(&mut self, core: &mut C, id: ConnectionId, wc: &WorkCompletion) {
        // Flushed: something failed before, or somebody else failed the queue pair.
        if wc.status != WcStatus::Flushed {
            count(&self.totals.transport_errors);
        }
        self.close_for(core, id, Why::WorkRequest(wc.status, wc.vendor_err));
        self.dirty_one(id);
    }

    #[cold]
    fn end<C: Commands>(&mut self, core: &mut C, id: ConnectionId, end: End) {
        let why = match end {
            End::Protocol(what) => {
                count(&self.totals.protocol_errors);
                Why::Protocol(what)
            }
            End::Refused => Why::NoQpair,
        };
        self.close_for(core, id, why);
    }

    // Events come.

    fn poll_events<C: Commands>(&mut self, core: &mut C) -> usize {
        let mut work = 0;
        while work < EVENTS_PER_POLL {
            let event = match self.channel.poll() {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(error) => {
                    if let Some(untold) = self.may_warn() {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(error, untold, "cannot read events of connections");
                    }
                    break;
                }
            };
            work += 1;
            let id = ConnectionId(event.context as u32);
            match event.kind {
                CmEventKind::Disconnected | CmEventKind::Rejected => {
                    self.close_for(core, id, Why::Host);
                }
                CmEventKind::Failed => self.close_for(core, id, Why::Unreachable(event.status)),
                CmEventKind::DeviceRemoval => {
                    if let Some(device) = self.slab.get(id).map(|connection| connection.device) {
                        self.device_failed(core, device);
                    }
                }
                _ => {}
            }
        }
        for index in 0..self.devices.len() {
            let Some(device) = &mut self.devices[index] else {
                continue;
            };
            let mut events = std::mem::take(&mut self.device_events);
            device.events.poll(&mut events);
            work += events.len();
            for kind in events.drain(..) {
                self.device_event(core, index, kind);
            }
            self.device_events = events;
        }
        work
    }

    #[cold]
    fn device_event<C: Commands>(&mut self, core: &mut C, index: usize, kind: AsyncEventKind) {
        match kind {
            AsyncEventKind::QpFatal { qp_num } => {
                if let Some(id) = self.find(index, qp_num) {
                    count(&self.totals.transport_errors);
                    self.close_for(core, id, Why::QpFatal);
                }
            }
            AsyncEventKind::QpLastWqeReached { qp_num } => {
                if let Some(id) = self.find(index, qp_num)
                    && let Some(connection) = self.slab.get_mut(id)
                {
                    connection.has_last_receive = true;
                    self.dirty_one(id);
                }
            }
            AsyncEventKind::PortError { port } => {
                count(&self.totals.port_errors);
                if let Some(device) = &self.devices[index] {
                    let device = &device.shared.device.info().name;
                    tracing::warn!(%device, port, "a port is down");
                }
            }
            AsyncEventKind::CqError | AsyncEventKind::SrqError | AsyncEventKind::DeviceFatal => {
                self.device_failed(core, index);
            }
            AsyncEventKind::PortActive { .. } | AsyncEventKind::Other(_) => {}
        }
    }

    /// The connection of a queue pair. Rare: looks at all of them.
    fn find(&self, device: usize, qp_num: u32) -> Option<ConnectionId> {
        self.slab.ids().into_iter().find(|id| {
            let connection = self.slab.get(*id);
            connection.is_some_and(|c| c.device == device && c.qp.qp_num() == qp_num)
        })
    }

    /// Everything on a device ends at once: it carries nothing out any more.
    #[cold]
    fn device_failed<C: Commands>(&mut self, core: &mut C, index: usize) {
        let Some(device) = &mut self.devices[index] else {
            return;
        };
        device.is_dead = true;
        let name = device.shared.device.info().name.clone();
        count(&self.totals.device_removals);
        tracing::error!(device = name, "a device has failed or was removed");
        self.shared.forget(&device.shared);
        for id in self.slab.ids() {
            if self.slab.get(id).is_some_and(|c| c.device == index) {
                self.close_for(core, id, Why::Device);
                self.finish(id);
            }
        }
        if let Some(fd) = self.devices[index]
            .as_ref()
            .and_then(|device| device.shared.device.async_fd())
        {
            // Nobody reads it any more: it must not keep the group awake.
            let _ = self.epoll.delete(fd);
        }
        self.devices[index] = None;
    }

    // Connections go.

    fn expire<C: Commands>(&mut self, core: &mut C) -> usize {
        let now = self.now();
        let mut work = 0;
        while let Some(id) = self.half_open.pop_due(now) {
            if is_half_open(&self.slab, id) {
                work += 1;
                count(&self.totals.timed_out);
                self.close_for(core, id, Why::TimedOut);
            }
        }
        while let Some(id) = self.draining.pop_due(now) {
            if self.slab.get(id).is_some_and(Connection::is_ending) {
                work += 1;
                count(&self.totals.drained_by_force);
                self.finish(id);
            }
        }
        work
    }

    pub(crate) fn close_for<C: Commands>(&mut self, core: &mut C, id: ConnectionId, why: Why) {
        let now = self.now();
        let Some(connection) = self.slab.get_mut(id) else {
            return;
        };
        let Some(device) = &mut self.devices[connection.device] else {
            return;
        };
        if connection.is_ending() {
            return;
        }
        self.closings.tell(connection, why, now);
        connection.begin_close(core, device);
        let slab = &self.slab;
        let drains = |id: ConnectionId| slab.get(id).is_some_and(Connection::is_ending);
        self.draining.add(now, id, drains);
        self.dirty_one(id);
    }

    /// Destroys a connection, and gives back all that it has.
    fn finish(&mut self, id: ConnectionId) {
        let Some(connection) = self.slab.remove(id) else {
            return;
        };
        if let Some(device) = &mut self.devices[connection.device] {
            device.connections = device.connections.saturating_sub(1);
            release(connection, device);
        }
    }

    pub(crate) fn step_with<C: Commands>(
        &mut self,
        core: &mut C,
        id: ConnectionId,
        slot: SlotId,
        step: Step,
    ) {
        let Some(connection) = self.slab.get_mut(id) else {
            return;
        };
        let Some(device) = &mut self.devices[connection.device] else {
            return;
        };
        let result = connection.on_step(core, device, &self.io, slot, step);
        self.dirty_one(id);
        if let Err(end) = result {
            self.end(core, id, end);
        }
    }

    pub(crate) fn flush_with<C: Commands>(&mut self, core: &mut C) -> usize {
        let mut work = 0;
        loop {
            // Shared receives first: what is sent below may be answered.
            for device in self.devices.iter_mut().flatten() {
                device.post_shared_receives(Some(&self.io.stats));
            }
            if self.dirty.is_empty() {
                break;
            }
            let mut dirty = std::mem::replace(&mut self.dirty, std::mem::take(&mut self.flushing));
            for id in dirty.drain(..) {
                work += self.flush_one(core, id);
            }
            self.flushing = dirty;
        }
        work
    }

    fn flush_one<C: Commands>(&mut self, core: &mut C, id: ConnectionId) -> usize {
        let Some(connection) = self.slab.get_mut(id) else {
            return 0;
        };
        connection.is_dirty = false;
        if connection.is_ending() {
            if connection.is_drained() {
                self.finish(id);
            }
            return 1;
        }
        let Some(device) = &mut self.devices[connection.device] else {
            return 0;
        };
        connection.gather(device, &self.io);
        if !connection.post(device, &mut self.io) {
            count(&self.totals.transport_errors);
            self.close_for(core, id, Why::NotPosted);
        } else if let Some(reason) = connection.close_when_sent
            && !connection.has_responses()
        {
            self.close_for(core, id, Why::Target(reason));
        }
        1
    }
}

/// Not yet a queue pair of a controller.
pub(crate) fn is_half_open(slab: &Slab<Connection>, id: ConnectionId) -> bool {
    slab.get(id)
        .is_some_and(|connection| matches!(connection.phase, Phase::Connect | Phase::Connecting))
}

impl Drop for RdmaGroup {
    fn drop(&mut self) {
        for id in self.slab.ids() {
            self.finish(id);
        }
        self.totals.remove_group(&self.io.stats);
    }
}

impl TransportGroup for RdmaGroup {
    fn adopt(&mut self, _core: &mut Core, connection: NewConnection, now: Instant) {
        self.add(connection, now);
    }

    fn poll(&mut self, core: &mut Core, now: Instant) -> usize {
        self.poll_with(core, now)
    }

    fn step(&mut self, core: &mut Core, connection: ConnectionId, slot: SlotId, step: Step) {
        self.step_with(core, connection, slot, step);
    }

    fn flush(&mut self, core: &mut Core, _now: Instant) -> usize {
        self.flush_with(core)
    }

    fn close(&mut self, core: &mut Core, connection: ConnectionId, reason: CloseReason) {
        self.close_for(core, connection, Why::Target(reason));
    }

    fn close_all(&mut self, core: &mut Core, reason: CloseReason) {
        for id in self.slab.ids() {
            self.close_for(core, id, Why::Target(reason));
        }
    }

    fn close_after_flush(&mut self, connection: ConnectionId, reason: CloseReason) {
        if let Some(connection) = self.slab.get_mut(connection) {
            connection.close_when_sent = Some(reason);
        }
        self.dirty_one(connection);
    }

    fn connection_count(&self) -> usize {
        self.slab.len()
    }

    fn next_deadline(&self) -> Option<Instant> {
        // Who makes a device known is a group that is awake, and looks at it from then on.
        let is_any_known = self.shared.is_any_known();
        let removal = self.next_removal_check.filter(|_| is_any_known);
        [self.half_open.next(), self.draining.next(), removal]
            .into_iter()
            .flatten()
            .min()
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.0.as_fd())
    }
}
