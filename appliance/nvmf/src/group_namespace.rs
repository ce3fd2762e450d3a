//! Subsystems and namespaces as one poll group sees them: snapshots, and a channel per device.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Instant;

use block::{BdevChannel, Geometry, Io, IoError, Lba, Submit};
use fabric_wire::Nqn;
use nvme_spec::{Nsid, Status};

use crate::config::{AnaState, NamespaceConfig, SubsystemConfig, Visibility, WriteProtect};
use crate::poll_group::GroupShared;
use crate::queue::Queue;
use crate::reservation::{Access, HostId, Reservations, View};
use crate::slot::Slot;
use crate::subsystem::Subsystem;
use crate::ticket::Part;
use crate::transport::{QpairId, SlotId};

/// A subsystem in one poll group; there while the group has a queue pair of it.
pub(crate) struct GroupSubsystem {
    pub(crate) subsystem: Arc<Subsystem>,
    config: RefCell<Arc<SubsystemConfig>>,
    /// Index is NSID - 1. Entries are opened on first use.
    namespaces: RefCell<Vec<Option<Rc<GroupNamespace>>>>,
    /// No listener has a group in a state that forbids I/O: most subsystems, most of the time.
    is_accessible_everywhere: Cell<bool>,
    pauses: RefCell<Arc<Pauses>>,
    /// Version of the snapshot under which opening a device failed last: it is logged once.
    failed_version: Cell<Option<u64>>,
    /// Queue pairs of this subsystem in this group.
    pub(crate) users: Cell<u32>,
}

/// The pauses in force, as the control side last told.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    /// Counts the changes: a message that comes late is known by it.
    pub(crate) sequence: u64,
    /// How many pauses, by namespace ([`Nsid::ALL`] for all).
    pub(crate) counts: BTreeMap<Nsid, u32>,
}

impl Pauses {
    fn of(&self, nsid: Nsid) -> u32 {
        let count = |nsid| self.counts.get(&nsid).copied().unwrap_or(0);
        count(Nsid::ALL) + count(nsid)
    }
}

impl GroupSubsystem {
    pub(crate) fn new(
        subsystem: Arc<Subsystem>,
        config: Arc<SubsystemConfig>,
        pauses: Arc<Pauses>,
    ) -> Self {
        Self {
            pauses: RefCell::new(pauses),
            failed_version: Cell::new(None),
            subsystem,
            is_accessible_everywhere: Cell::new(config.is_accessible_everywhere()),
            config: RefCell::new(config),
            namespaces: RefCell::default(),
            users: Cell::new(0),
        }
    }

    pub(crate) fn config(&self) -> Arc<SubsystemConfig> {
        Arc::clone(&self.config.borrow())
    }

    /// The namespace behind a number, if there is one that the host sees.
    pub(crate) fn namespace(
        &self,
        nsid: Nsid,
        host: &Nqn,
        group: &Rc<GroupShared>,
    ) -> Result<Rc<GroupNamespace>, Status> {
        let index = nsid.0.wrapping_sub(1) as usize;
        if let Some(Some(namespace)) = self.namespaces.borrow().get(index) {
            return namespace.visible_to(host);
        }
        self.open(nsid, group)?.visible_to(host)
    }

    #[cold]
    fn open(&self, nsid: Nsid, group: &Rc<GroupShared>) -> Result<Rc<GroupNamespace>, Status> {
        let config = self.config();
        if nsid.0 == 0 || nsid.0 > config.max_namespaces {
            return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true));
        }
        let namespace = config
            .namespaces
            .get(&nsid)
            .ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true))?;
        let channel = namespace
            .bdev
            .open(group.channel_context())
            .map_err(|error| {
                if self.failed_version.replace(Some(config.version)) != Some(config.version) {
                    tracing::error!(nqn = %config.nqn, nsid = nsid.0,
                    error = &error as &dyn std::error::Error,
                    "cannot open a channel to the namespace's device");
                }
                Status::NAMESPACE_NOT_READY
            })?;
        if let Some(fd) = channel.wake_fd() {
            group.watch(fd);
        }
        let pauses = self.pauses.borrow().of(nsid);
        // Gone already: a snapshot without the namespace is on its way.
        let reservations = self.subsystem.reservations_of(nsid);
        let reservations = reservations.ok_or(Status::NAMESPACE_NOT_READY)?;
        let config = Arc::clone(namespace);
        let opened = GroupNamespace::new(config, channel, pauses, reservations, group);
        let opened = Rc::new(opened);
        let index = (nsid.0 - 1) as usize;
        let mut namespaces = self.namespaces.borrow_mut();
        if namespaces.len() <= index {
            namespaces.resize(index + 1, None);
        }
        namespaces[index] = Some(Rc::clone(&opened));
        Ok(opened)
    }

    /// Takes the next snapshot. A namespace that is gone stops taking commands; `part` is held
    /// until the last command that runs on it has ended.
    pub(crate) fn update(
        &self,
        config: Arc<SubsystemConfig>,
        part: &Arc<Part>,
        group: &GroupShared,
    ) {
        if config.version <= self.config.borrow().version {
            // The group left the subsystem and came back, with a newer snapshot, since this was sent.
            return;
        }
        for slot in self.namespaces.borrow_mut().iter_mut() {
            let Some(namespace) = slot else { continue };
            let nsid = namespace.config.borrow().nsid;
            match config.namespaces.get(&nsid) {
                Some(next) if Arc::ptr_eq(&next.bdev, &namespace.config.borrow().bdev) => {
                    namespace.config.replace(Arc::clone(next));
                    namespace.refresh();
                    // Its device may have come or gone: the channel looks when it is polled.
                    group.mark_active(namespace);
                }
                _ => {
                    namespace.retire(part);
                    group.ready.borrow_mut().extend(namespace.waiting.take());
                    *slot = None;
                }
            }
        }
        self.is_accessible_everywhere
            .set(config.is_accessible_everywhere());
        self.config.replace(config);
    }

    pub(crate) fn is_accessible_everywhere(&self) -> bool {
        self.is_accessible_everywhere.get()
    }

    /// Puts a reservation's change in force. `part` is held until what it takes access from has
    /// ended.
    pub(crate) fn reserve(
        &self,
        reservations: &Arc<Reservations>,
        view: Arc<View>,
        drain: bool,
        part: &Arc<Part>,
    ) {
        let index = reservations.nsid.0.wrapping_sub(1) as usize;
        let namespace = self.namespaces.borrow().get(index).cloned().flatten();
        // One that is opened later sees what is in force then.
        let namespace =
            namespace.filter(|namespace| Arc::ptr_eq(&namespace.reservations, reservations));
        if let Some(namespace) = namespace {
            namespace.reserve(view, drain, part);
        }
    }

    /// Pauses and resumes namespaces, also those that are opened later. `part` is held until what
    /// has begun on those that pause has ended.
    pub(crate) fn set_pauses(
        &self,
        pauses: Arc<Pauses>,
        part: Option<&Arc<Part>>,
        group: &GroupShared,
    ) {
        if pauses.sequence <= self.pauses.borrow().sequence {
            return;
        }
        for namespace in self.namespaces.borrow().iter().flatten() {
            let nsid = namespace.config.borrow().nsid;
            namespace.set_pauses(pauses.of(nsid), part, group);
        }
        self.pauses.replace(pauses);
    }
}

/// A namespace in one poll group: its configuration and this thread's channel to the device.
pub(crate) struct GroupNamespace {
    pub(crate) config: RefCell<Arc<NamespaceConfig>>,
    /// There until the namespace is retired and idle.
    channel: RefCell<Option<BdevChannel>>,
    /// Copied out of the configuration because every command asks.
    is_restricted: Cell<bool>,
    pub(crate) is_write_protected: Cell<bool>,
    lends: bool,
    /// What the device says of itself; read anew with every snapshot, so a resize sends one.
    pub(crate) geometry: Cell<Geometry>,
    /// I/O that the device holds.
    pub(crate) in_flight: Cell<u32>,
    /// Commands that have entered and not left.
    entered: Cell<u32>,
    /// How many pauses are in force; 0 runs.
    pauses: Cell<u32>,
    is_retired: Cell<bool>,
    /// Counts the changes of what commands are checked against.
    version: Cell<u32>,
    /// The one place of what is reserved, and what was in force when this thread heard of it last.
    reservations: Arc<Reservations>,
    view: RefCell<Arc<View>>,
    is_reserved: Cell<bool>,
    /// Commands wait until those that are inside have ended: a reservation has changed.
    is_draining: Cell<bool>,
    group: Weak<GroupShared>,
    /// Held by pauses until nothing is in flight.
    pause_parts: RefCell<Vec<Arc<Part>>>,
    /// Held by the removal until the channel is closed.
    removal: RefCell<Option<Arc<Part>>>,
    /// Commands that wait for the end of a pause, in their order. Bounded by the slots.
    waiting: RefCell<VecDeque<(QpairId, SlotId)>>,
    pub(crate) is_listed_active: Cell<bool>,
}

/// Leaves the namespace when it is dropped, also when the command's future is.
pub(crate) struct Entered(Rc<GroupNamespace>);

impl Entered {
    pub(crate) fn namespace(&self) -> &Rc<GroupNamespace> {
        &self.0
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.entered.set(self.0.entered.get() - 1);
        self.0.settle();
    }
}

impl GroupNamespace {
    fn new(
        config: Arc<NamespaceConfig>,
        channel: BdevChannel,
        pauses: u32,
        reservations: Arc<Reservations>,
        group: &Rc<GroupShared>,
    ) -> Self {
        let view = reservations.view();
        let lends = channel.lends();
        let geometry = channel.bdev().geometry();
        let namespace = Self {
            config: RefCell::new(config),
            channel: RefCell::new(Some(channel)),
            is_restricted: Cell::new(false),
            is_write_protected: Cell::new(false),
            lends,
            geometry: Cell::new(geometry),
            in_flight: Cell::new(0),
            entered: Cell::new(0),
            pauses: Cell::new(pauses),
            is_retired: Cell::new(false),
            version: Cell::new(0),
            is_reserved: Cell::new(view.record.reservation.is_some()),
            view: RefCell::new(view),
            reservations,
            is_draining: Cell::new(false),
            group: Rc::downgrade(group),
            pause_parts: RefCell::default(),
            removal: RefCell::default(),
            waiting: RefCell::default(),
            is_listed_active: Cell::new(false),
        };
        namespace.refresh();
        namespace
    }

    /// Whether a read of these blocks gets memory of the device, and needs none of its own.
    #[inline]
    pub(crate) fn lends_range(&self, lba: Lba, blocks: u32) -> bool {
        self.lends
            && self
                .channel
                .borrow()
                .as_ref()
                .is_some_and(|channel| channel.lends_range(lba.0, blocks))
    }

    /// Counts the changes of what commands are checked against: a command that was checked under
    /// the present number need not be checked again.
    pub(crate) fn version(&self) -> u32 {
        self.version.get()
    }

    fn touch(&self) {
        self.version.set(self.version.get().wrapping_add(1));
    }

    fn refresh(&self) {
        self.touch();
        let config = self.config.borrow();
        let geometry = config.bdev.geometry();
        self.geometry.set(geometry);
        self.is_restricted
            .set(matches!(config.visibility, Visibility::Hosts(_)));
        // `read_only` tells of the bdev's own protection too.
        self.is_write_protected
            .set(config.write_protect != WriteProtect::None || geometry.read_only);
    }

    fn visible_to(self: &Rc<Self>, host: &Nqn) -> Result<Rc<Self>, Status> {
        if self.is_hidden_from(host) {
            return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true));
        }
        Ok(Rc::clone(self))
    }

    pub(crate) fn is_hidden_from(&self, host: &Nqn) -> bool {
        self.is_restricted.get() && !self.config.borrow().is_visible_to(host)
    }

    pub(crate) fn ana_state(&self, queue: &Queue, config: &SubsystemConfig) -> AnaState {
        config
            .listener(&queue.peer.listener)
            .map_or(AnaState::Optimized, |listener| {
                listener.ana_state(self.config.borrow().ana_group)
            })
    }

    /// Waits while the namespace is paused.
    pub(crate) async fn runs(&self, queue: &Queue, slot: &Slot) -> Result<(), Status> {
        if self.is_stopped() {
            let waiter = Waiter {
                namespace: self,
                key: (queue.id, slot.id),
            };
            slot.until(|| waiter.may_go()).await?;
        }
        if self.is_retired.get() {
            return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true));
        }
        Ok(())
    }

    /// Begins a command's work on the device: waits while the namespace is paused. A pause or a
    /// removal that comes now is complete once [`Entered`] is dropped, so nothing that a host could
    /// delay may happen in between: its data must be there, and the buffers.
    pub(crate) async fn enter(
        self: &Rc<Self>,
        queue: &Queue,
        slot: &Slot,
    ) -> Result<Entered, Status> {
        self.runs(queue, slot).await?;
        self.entered.set(self.entered.get() + 1);
        Ok(Entered(Rc::clone(self)))
    }

    pub(crate) fn submit(&self, io: Io, now: Instant) -> Submit {
        let submitted = match self.channel.borrow_mut().as_mut() {
            Some(channel) => channel.submit(io, now),
            None => Submit::Done(io.complete(Err(IoError::Removed))),
        };
        if matches!(submitted, Submit::Pending) {
            self.in_flight.set(self.in_flight.get() + 1);
        }
        submitted
    }

    pub(crate) fn poll_channel(&self, now: Instant, done: &mut Vec<block::Completion>) {
        let before = done.len();
        if let Some(channel) = self.channel.borrow_mut().as_mut() {
            channel.poll(now, done);
        }
        let ended = u32::try_from(done.len() - before).unwrap_or(u32::MAX);
        self.in_flight
            .set(self.in_flight.get().saturating_sub(ended));
        if ended > 0 {
            self.settle();
        }
    }

    /// Whether its channel need not be polled while nothing is in flight.
    pub(crate) fn is_quiet(&self) -> bool {
        let channel = self.channel.borrow();
        channel.as_ref().is_none_or(BdevChannel::is_quiet)
    }

    /// `None` once the channel is closed.
    pub(crate) fn with_channel<T>(&self, f: impl FnOnce(&mut BdevChannel) -> T) -> Option<T> {
        self.channel.borrow_mut().as_mut().map(f)
    }

    /// Sets how many pauses are in force. The first stops commands, the end of the last lets those
    /// that wait go on in their order. `part` is held until those inside have ended.
    fn set_pauses(&self, count: u32, part: Option<&Arc<Part>>, group: &GroupShared) {
        let before = self.pauses.replace(count);
        if count > before {
            self.pause_parts.borrow_mut().extend(part.cloned());
            self.settle();
        } else if count == 0 && before > 0 {
            if self.is_draining.get() {
                // The drain still does; it lets them go.
                return;
            }
            // Nobody waits for a pause that has ended.
            self.pause_parts.borrow_mut().clear();
            self.resume(group);
        }
    }

    /// Whether commands wait before they enter.
    fn is_stopped(&self) -> bool {
        self.pauses.get() > 0 || self.is_draining.get()
    }

    /// Those that wait go on, in their order.
    fn resume(&self, group: &GroupShared) {
        group
            .ready
            .borrow_mut()
            .extend(self.waiting.borrow_mut().drain(..));
    }

    pub(crate) fn reservations(&self) -> &Arc<Reservations> {
        &self.reservations
    }

    /// Whether the reservation, if there is one, lets a host's command run.
    pub(crate) fn allows(&self, host: &HostId, access: Access) -> bool {
        !self.is_reserved.get() || self.view.borrow().record.allows(host, access)
    }

    fn reserve(&self, view: Arc<View>, drains: bool, part: &Arc<Part>) {
        if view.sequence <= self.view.borrow().sequence {
            // The namespace was opened since this was sent: nothing older runs here.
            return;
        }
        self.is_reserved.set(view.record.reservation.is_some());
        self.view.replace(view);
        self.touch();
        if drains {
            self.is_draining.set(true);
            self.pause_parts.borrow_mut().push(Arc::clone(part));
            self.settle();
        }
    }

    /// Stops taking commands; `part` is held until the channel to the device is closed.
    fn retire(&self, part: &Arc<Part>) {
        self.is_retired.set(true);
        self.removal.replace(Some(Arc::clone(part)));
        self.settle();
    }

    /// Lets go of the parts once nothing is inside or in flight.
    fn settle(&self) {
        if self.entered.get() == 0 && self.in_flight.get() == 0 {
            self.pause_parts.borrow_mut().clear();
            if self.is_draining.replace(false)
                && self.pauses.get() == 0
                && let Some(group) = self.group.upgrade()
            {
                self.resume(&group);
            }
            if self.is_retired.get() {
                // The channel first: whoever waits for the removal may delete the device then.
                drop(self.channel.take());
                drop(self.removal.take());
            }
        }
    }
}

/// A command that waits for the end of a pause.
struct Waiter<'a> {
    namespace: &'a GroupNamespace,
    key: (QpairId, SlotId),
}

impl Waiter<'_> {
    fn may_go(&self) -> bool {
        if !self.namespace.is_stopped() || self.namespace.is_retired.get() {
            return true;
        }
        // Also when it was told to go on and the next pause came first.
        let mut waiting = self.namespace.waiting.borrow_mut();
        if !waiting.contains(&self.key) {
            waiting.push_back(self.key);
        }
        false
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.namespace
            .waiting
            .borrow_mut()
            .retain(|waiter| *waiter != self.key);
    }
}
