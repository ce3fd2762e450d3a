//! Subsystems and namespaces as one poll group sees them: snapshots, and a channel per device.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use block::{BdevChannel, Geometry, Io, Submit};
use fabric_wire::Nqn;
use nvme_spec::{Nsid, Status};

use crate::config::{AnaState, NamespaceConfig, SubsystemConfig, Visibility, WriteProtect};
use crate::poll_group::GroupShared;
use crate::queue::Queue;
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
    /// Queue pairs of this subsystem in this group.
    pub(crate) users: Cell<u32>,
}

impl GroupSubsystem {
    pub(crate) fn new(subsystem: Arc<Subsystem>, config: Arc<SubsystemConfig>) -> Self {
        Self {
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
        group: &GroupShared,
    ) -> Result<Rc<GroupNamespace>, Status> {
        let index = nsid.0.wrapping_sub(1) as usize;
        if let Some(Some(namespace)) = self.namespaces.borrow().get(index) {
            return namespace.visible_to(host);
        }
        self.open(nsid, group)?.visible_to(host)
    }

    #[cold]
    fn open(&self, nsid: Nsid, group: &GroupShared) -> Result<Rc<GroupNamespace>, Status> {
        let config = self.config();
        if nsid.0 == 0 || nsid.0 > config.max_namespaces {
            return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true));
        }
        let namespace =
            config.namespaces.get(&nsid).ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true))?;
        let channel = namespace.bdev.open(group.channel_context()).map_err(|error| {
            tracing::error!(nqn = %config.nqn, nsid = nsid.0, error = &error as &dyn std::error::Error,
                "cannot open a channel to the namespace's device");
            Status::NAMESPACE_NOT_READY
        })?;
        if let Some(fd) = channel.wake_fd() {
            group.watch(fd);
        }
        let opened = Rc::new(GroupNamespace::new(Arc::clone(namespace), channel));
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
        for slot in self.namespaces.borrow_mut().iter_mut() {
            let Some(namespace) = slot else { continue };
            let nsid = namespace.config.borrow().nsid;
            match config.namespaces.get(&nsid) {
                Some(next) if Arc::ptr_eq(&next.bdev, &namespace.config.borrow().bdev) => {
                    namespace.config.replace(Arc::clone(next));
                    namespace.refresh();
                }
                _ => {
                    namespace.retire(part);
                    group.ready.borrow_mut().extend(namespace.waiting.take());
                    *slot = None;
                }
            }
        }
        self.is_accessible_everywhere.set(config.is_accessible_everywhere());
        self.config.replace(config);
    }

    pub(crate) fn is_accessible_everywhere(&self) -> bool {
        self.is_accessible_everywhere.get()
    }

    /// Every namespace open in this group.
    pub(crate) fn open_namespaces(&self) -> Vec<Rc<GroupNamespace>> {
        self.namespaces.borrow().iter().flatten().cloned().collect()
    }

    /// Pauses or resumes a namespace; opens nothing.
    pub(crate) fn open_namespace(&self, nsid: Nsid) -> Option<Rc<GroupNamespace>> {
        self.namespaces.borrow().get(nsid.0.wrapping_sub(1) as usize).cloned().flatten()
    }
}

/// A namespace in one poll group: its configuration and this thread's channel to the device.
pub(crate) struct GroupNamespace {
    pub(crate) config: RefCell<Arc<NamespaceConfig>>,
    channel: RefCell<BdevChannel>,
    /// Copied out of the configuration because every command asks.
    is_restricted: Cell<bool>,
    pub(crate) is_write_protected: Cell<bool>,
    pub(crate) lends: bool,
    /// What the device says of itself; read anew with every snapshot, so a resize sends one.
    pub(crate) geometry: Cell<Geometry>,
    /// I/O that the device holds.
    pub(crate) in_flight: Cell<u32>,
    /// Commands that have entered and not left.
    entered: Cell<u32>,
    /// How many pauses are in force; 0 runs.
    pauses: Cell<u32>,
    is_retired: Cell<bool>,
    /// Held until nothing is in flight any more: by pauses and by the removal.
    parts: RefCell<Vec<Arc<Part>>>,
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
    fn new(config: Arc<NamespaceConfig>, channel: BdevChannel) -> Self {
        let lends = channel.lends();
        let geometry = channel.bdev().geometry();
        let namespace = Self {
            config: RefCell::new(config),
            channel: RefCell::new(channel),
            is_restricted: Cell::new(false),
            is_write_protected: Cell::new(false),
            lends,
            geometry: Cell::new(geometry),
            in_flight: Cell::new(0),
            entered: Cell::new(0),
            pauses: Cell::new(0),
            is_retired: Cell::new(false),
            parts: RefCell::default(),
            waiting: RefCell::default(),
            is_listed_active: Cell::new(false),
        };
        namespace.refresh();
        namespace
    }

    fn refresh(&self) {
        let config = self.config.borrow();
        self.geometry.set(config.bdev.geometry());
        self.is_restricted.set(matches!(config.visibility, Visibility::Hosts(_)));
        self.is_write_protected.set(config.write_protect != WriteProtect::None);
    }

    fn visible_to(self: &Rc<Self>, host: &Nqn) -> Result<Rc<Self>, Status> {
        if self.is_restricted.get() && !self.config.borrow().is_visible_to(host) {
            return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true));
        }
        Ok(Rc::clone(self))
    }

    pub(crate) fn ana_state(&self, queue: &Queue, config: &SubsystemConfig) -> AnaState {
        config
            .listener(&queue.peer.listener)
            .map_or(AnaState::Optimized, |listener| listener.ana_state(self.config.borrow().ana_group))
    }

    /// Begins a command on this namespace: waits while it is paused.
    pub(crate) async fn enter(
        self: &Rc<Self>,
        queue: &Queue,
        slot: &Slot,
    ) -> Result<Entered, Status> {
        if self.pauses.get() > 0 {
            self.waiting.borrow_mut().push_back((queue.id, slot.id));
            let waited = slot.until(|| self.pauses.get() == 0 || self.is_retired.get()).await;
            if let Err(status) = waited {
                self.waiting.borrow_mut().retain(|waiter| *waiter != (queue.id, slot.id));
                return Err(status);
            }
        }
        if self.is_retired.get() {
            return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true));
        }
        self.entered.set(self.entered.get() + 1);
        Ok(Entered(Rc::clone(self)))
    }

    pub(crate) fn submit(&self, io: Io, now: Instant) -> Submit {
        let submitted = self.channel.borrow_mut().submit(io, now);
        if matches!(submitted, Submit::Pending) {
            self.in_flight.set(self.in_flight.get() + 1);
        }
        submitted
    }

    pub(crate) fn poll_channel(&self, now: Instant, done: &mut Vec<block::Completion>) {
        let before = done.len();
        self.channel.borrow_mut().poll(now, done);
        let ended = u32::try_from(done.len() - before).unwrap_or(u32::MAX);
        self.in_flight.set(self.in_flight.get().saturating_sub(ended));
        if ended > 0 {
            self.settle();
        }
    }

    pub(crate) fn with_channel<T>(&self, f: impl FnOnce(&mut BdevChannel) -> T) -> T {
        f(&mut self.channel.borrow_mut())
    }

    /// Stops new commands; `part` is held until those inside have ended.
    pub(crate) fn pause(&self, part: &Arc<Part>) {
        self.pauses.set(self.pauses.get() + 1);
        self.parts.borrow_mut().push(Arc::clone(part));
        self.settle();
    }

    /// Ends one pause; at the last, the commands that wait go on in their order.
    pub(crate) fn resume(&self, group: &GroupShared) {
        self.pauses.set(self.pauses.get().saturating_sub(1));
        if self.pauses.get() == 0 {
            group.ready.borrow_mut().extend(self.waiting.borrow_mut().drain(..));
        }
    }

    fn retire(&self, part: &Arc<Part>) {
        self.is_retired.set(true);
        self.parts.borrow_mut().push(Arc::clone(part));
        self.settle();
    }


    /// Lets go of the parts once nothing is inside or in flight.
    fn settle(&self) {
        if self.entered.get() == 0 && self.in_flight.get() == 0 {
            self.parts.borrow_mut().clear();
        }
    }
}
