//! The target: subsystems, transports, listeners and poll groups.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::task::Waker;
use std::time::Instant;

use dma::IobufPool;
use fabric_wire::{Nqn, TransportAddress};
use nvme_spec::Cntlid;

use crate::controller::Controller;
use crate::error::TargetError;
use crate::events::{Events, TargetEvent};
use crate::inbox::{GroupHandle, Message, PollGroupId};
use crate::poll_group::PollGroup;
use crate::reservation::ReservationStore;
use crate::subsystem::{Subsystem, SubsystemOptions, SubsystemUid};
use crate::ticket::Ticket;
use crate::transport::{CloseReason, NewConnection, Transport, TransportId, TransportLimits};

/// Options of a target. The names and defaults are SPDK's where they mean the same.
#[derive(Clone, Debug)]
pub struct TargetOptions {
    /// Subsystems that may exist, 65,536 by default (SPDK: 1,024).
    pub max_subsystems: usize,
    /// Connections that may be up at a time, all transports together, 65,536 by default. One more
    /// is closed as soon as it is accepted.
    pub max_connections: usize,
    /// Keep-alive timeout of a discovery controller that asks for none, 120,000 ms by default.
    pub discovery_kato_ms: u32,
    /// Discovery controllers that may exist at a time.
    pub max_discovery_controllers: usize,
    /// Data buffers that each poll group caches for a transport that does not say: small and large.
    pub iobuf_small_cache_size: u32,
    /// See [`TargetOptions::iobuf_small_cache_size`].
    pub iobuf_large_cache_size: u32,
    /// How long a host shall wait before it retries a command refused for want of resources,
    /// in units of 100 ms (Identify CRDT1); 0: no delay given.
    pub crdt1_100ms: u16,
    /// ANA transition time in seconds (Identify ANATT).
    pub anatt_s: u8,
}

impl Default for TargetOptions {
    fn default() -> Self {
        Self {
            max_subsystems: 65_536,
            max_connections: 65_536,
            discovery_kato_ms: 120_000,
            max_discovery_controllers: 1_024,
            iobuf_small_cache_size: 128,
            iobuf_large_cache_size: 16,
            crdt1_100ms: 0,
            anatt_s: 10,
        }
    }
}

/// Another discovery service that hosts are told of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Referral {
    /// Where it is.
    pub address: TransportAddress,
    /// Its name, the well-known one by default.
    pub nqn: Nqn,
}

/// An address at which the target listens.
#[derive(Debug)]
struct Listening {
    address: Arc<TransportAddress>,
    group: Arc<GroupHandle>,
    /// PORTID in the discovery log.
    port_id: u16,
    local: String,
    users: usize,
    /// The socket, where there is one: for a transport that replaces the one that listens.
    socket: Option<OwnedFd>,
}

#[derive(Debug, Default)]
pub(crate) struct Discovery {
    pub(crate) generation: AtomicU64,
    pub(crate) referrals: Mutex<BTreeSet<Referral>>,
    pub(crate) controllers: Mutex<DiscoveryControllers>,
}

#[derive(Debug, Default)]
pub(crate) struct DiscoveryControllers {
    by_id: BTreeMap<u16, Weak<Controller>>,
    next: u16,
}

/// Picks the poll group of a new connection; gets the groups, returns an index.
pub type GroupPicker = dyn Fn(&NewConnection, &[Arc<GroupHandle>]) -> usize + Send + Sync;

/// A transport, its limits for the queue pairs to share, and whether it is in use: the flag is
/// clear once the transport has been replaced or removed.
type RegisteredTransport = (Arc<dyn Transport>, Arc<TransportLimits>, bool);

/// A target: subsystems and the transports over which hosts reach them. Shared by the control
/// side and all poll groups. Reading it never pauses I/O.
pub struct Target {
    me: Weak<Target>,
    options: TargetOptions,
    subsystems: RwLock<HashMap<Nqn, Arc<Subsystem>>>,
    /// By identifier. Entries stay for the connections that use them.
    transports: RwLock<Vec<RegisteredTransport>>,
    groups: RwLock<Vec<Arc<GroupHandle>>>,
    next_group_id: AtomicUsize,
    round_robin: AtomicUsize,
    picker: RwLock<Option<Box<GroupPicker>>>,
    listening: Mutex<Vec<Listening>>,
    next_port_id: AtomicUsize,
    pub(crate) discovery: Discovery,
    next_subsystem_uid: AtomicU64,
    keep_alive_changes: AtomicU64,
    is_shut_down: AtomicBool,
    reservation_store: OnceLock<Arc<dyn ReservationStore>>,
    events: Mutex<Events>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held left plain data behind: go on with it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Target {
    /// A target without subsystems, transports or poll groups.
    pub fn new(options: TargetOptions) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            options,
            subsystems: RwLock::default(),
            transports: RwLock::default(),
            groups: RwLock::default(),
            next_group_id: AtomicUsize::new(0),
            round_robin: AtomicUsize::new(0),
            picker: RwLock::default(),
            listening: Mutex::default(),
            next_port_id: AtomicUsize::new(1),
            discovery: Discovery::default(),
            next_subsystem_uid: AtomicU64::new(0),
            keep_alive_changes: AtomicU64::new(0),
            is_shut_down: AtomicBool::new(false),
            reservation_store: OnceLock::new(),
            events: Mutex::default(),
        })
    }

    /// Its options.
    pub fn options(&self) -> &TargetOptions {
        &self.options
    }

    /// Gives the target a place to keep reservations that persist through a loss of power; to be
    /// called before hosts connect. `false` if there is one already: that stays.
    pub fn set_reservation_store(&self, store: Arc<dyn ReservationStore>) -> bool {
        self.reservation_store.set(store).is_ok()
    }

    pub(crate) fn reservation_store(&self) -> Option<Arc<dyn ReservationStore>> {
        self.reservation_store.get().cloned()
    }

    // Poll groups.

    /// Makes a poll group for the calling thread. `waker` wakes this thread; `numa_node` is the
    /// thread's, where known.
    ///
    /// # Errors
    /// No descriptor for its epoll, or buffers too small for a transport's `max_io_size`.
    pub fn poll_group(
        &self,
        waker: Waker,
        iobuf_pool: &Arc<IobufPool>,
        numa_node: Option<u32>,
        now: Instant,
    ) -> Result<PollGroup, TargetError> {
        let me = self.me.upgrade().expect("called on a live target");
        let id = PollGroupId(self.next_group_id.fetch_add(1, Ordering::Relaxed));
        let large_bufsize = iobuf_pool.options().large_bufsize;
        for transport in self.transports() {
            check_io_size(transport.as_ref(), large_bufsize)?;
        }
        let handle = Arc::new(GroupHandle::new(id, numa_node, large_bufsize, waker));
        let group = PollGroup::new(me, Arc::clone(&handle), Arc::clone(iobuf_pool), now)?;
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        groups.push(handle);
        groups.sort_by_key(|group| group.id);
        Ok(group)
    }

    pub(crate) fn remove_group(&self, id: PollGroupId) {
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|group| group.id != id);
    }

    pub(crate) fn poll_group_count(&self) -> usize {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        groups.len()
    }

    /// The poll groups.
    pub fn poll_groups(&self) -> Vec<Arc<GroupHandle>> {
        self.groups
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Lets the caller choose the poll group of each connection; `None` goes back to round-robin
    /// among the groups on the connection's NUMA node, or among all.
    pub fn set_group_picker(&self, picker: Option<Box<GroupPicker>>) {
        *self.picker.write().unwrap_or_else(PoisonError::into_inner) = picker;
    }

    /// Gives a connection to a poll group. Without any it is closed.
    pub(crate) fn assign(&self, connection: NewConnection) {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        if groups.is_empty() {
            return;
        }
        let up: usize = groups.iter().map(|group| group.connection_count()).sum();
        if up >= self.options.max_connections {
            groups[0].refuse();
            tracing::warn!(
                peer = connection.peer.remote,
                max_connections = self.options.max_connections,
                "as many connections are up as may be: one was closed; raise limits.connections_max"
            );
            return;
        }
        let picker = self.picker.read().unwrap_or_else(PoisonError::into_inner);
        let group = match picker.as_ref() {
            Some(picker) => &groups[picker(&connection, &groups).min(groups.len() - 1)],
            None => self.round_robin(&connection, &groups),
        };
        if !group.adopt(connection) {
            tracing::warn!(
                group = group.name,
                "too many connections wait: one was closed"
            );
        }
    }

    fn round_robin<'a>(
        &self,
        connection: &NewConnection,
        groups: &'a [Arc<GroupHandle>],
    ) -> &'a Arc<GroupHandle> {
        let turn = self.round_robin.fetch_add(1, Ordering::Relaxed);
        let near = |group: &&Arc<GroupHandle>| {
            connection.numa_node.is_some() && group.numa_node == connection.numa_node
        };
        let count = groups.iter().filter(near).count();
        match groups.iter().filter(near).nth(turn % count.max(1)) {
            Some(group) => group,
            None => &groups[turn % groups.len()],
        }
    }

    // Transports and listeners.

    /// Whether a command of this transport fits into a buffer of every poll group.
    fn check_transport(&self, transport: &dyn Transport) -> Result<(), TargetError> {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        let mut groups = groups.iter();
        groups.try_for_each(|group| check_io_size(transport, group.large_bufsize))
    }

    /// Adds a transport.
    ///
    /// # Errors
    /// One of this name is there, or its `max_io_size` is more than a buffer holds.
    pub fn add_transport(&self, transport: Arc<dyn Transport>) -> Result<TransportId, TargetError> {
        self.check_transport(transport.as_ref())?;
        let mut transports = self
            .transports
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if transports
            .iter()
            .any(|(other, _, used)| *used && other.name() == transport.name())
        {
            return Err(TargetError::TransportExists {
                name: transport.name().into(),
            });
        }
        let limits = Arc::new(transport.limits().clone());
        transports.push((transport, limits, true));
        Ok(TransportId(
            u16::try_from(transports.len() - 1).expect("few transports exist"),
        ))
    }

    /// Puts a transport in the place of the one of the same name, or adds it. Connections that are
    /// up keep the old one's options. Listeners go over to the new one with their sockets; where
    /// there are none they are opened anew. Those that fail are returned, and are gone.
    ///
    /// # Errors
    /// Its `max_io_size` is more than a buffer holds; nothing has changed then.
    pub fn put_transport(
        &self,
        transport: Arc<dyn Transport>,
    ) -> Result<Vec<TargetError>, TargetError> {
        self.check_transport(transport.as_ref())?;
        let name = transport.name();
        let id = {
            let mut transports = self
                .transports
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            let limits = Arc::new(transport.limits().clone());
            transports
                .iter_mut()
                .filter(|entry| entry.2 && entry.0.name() == name)
                .for_each(|entry| entry.2 = false);
            transports.push((Arc::clone(&transport), limits, true));
            TransportId(u16::try_from(transports.len() - 1).expect("few transports exist"))
        };
        let mut failed = Vec::new();
        lock(&self.listening).retain_mut(|entry| {
            if !entry.address.trtype.as_str().eq_ignore_ascii_case(name) {
                return true;
            }
            let result = entry.hand_over(id, transport.as_ref());
            result.map_err(|error| failed.push(error)).is_ok()
        });
        if !failed.is_empty() {
            self.discovery_changed();
        }
        Ok(failed)
    }

    /// Takes a transport away: nobody can listen with it any more. Connections end by themselves.
    /// `false` if there is none of this name.
    pub fn remove_transport(&self, name: &str) -> bool {
        let mut transports = self
            .transports
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let mut entries = transports.iter_mut();
        let found = entries.find(|entry| entry.2 && entry.0.name().eq_ignore_ascii_case(name));
        found.map(|entry| entry.2 = false).is_some()
    }

    /// The transports in use, in the order of their identifiers.
    pub fn transports(&self) -> Vec<Arc<dyn Transport>> {
        let transports = self
            .transports
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let used = transports.iter().filter(|(_, _, used)| *used);
        used.map(|(transport, ..)| Arc::clone(transport)).collect()
    }

    pub(crate) fn transport(&self, id: TransportId) -> Result<Arc<dyn Transport>, TargetError> {
        let transports = self
            .transports
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        transports
            .get(usize::from(id.0))
            .map(|(transport, ..)| Arc::clone(transport))
            .ok_or_else(|| TargetError::NoTransport {
                name: format!("number {}", id.0),
            })
    }

    pub(crate) fn transport_limits(
        &self,
        id: TransportId,
    ) -> Result<Arc<TransportLimits>, TargetError> {
        let transports = self
            .transports
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        transports
            .get(usize::from(id.0))
            .map(|(_, limits, _)| Arc::clone(limits))
            .ok_or_else(|| TargetError::NoTransport {
                name: format!("number {}", id.0),
            })
    }

    pub(crate) fn transport_name(&self, id: TransportId) -> Result<&'static str, TargetError> {
        Ok(self.transport(id)?.name())
    }

    /// Small and large buffers that a poll group caches for a transport.
    pub(crate) fn iobuf_cache_sizes(&self, limits: &TransportLimits) -> (u32, u32) {
        (
            limits
                .iobuf_small_cache_size
                .unwrap_or(self.options.iobuf_small_cache_size),
            limits
                .iobuf_large_cache_size
                .unwrap_or(self.options.iobuf_large_cache_size),
        )
    }

    /// Listens at an address, or notes one user more of a listener that is there. Returns the
    /// address with port 0 resolved.
    ///
    /// # Errors
    /// No such transport, no poll group, or the system's reason.
    pub fn listen(&self, address: &TransportAddress) -> Result<String, TargetError> {
        let mut listening = lock(&self.listening);
        if let Some(entry) = listening
            .iter_mut()
            .find(|entry| *entry.address == *address)
        {
            entry.users += 1;
            return Ok(entry.local.clone());
        }
        let name = address.trtype.as_str();
        let (id, transport) = self.transport_by_name(name)?;
        let group = self
            .poll_groups()
            .into_iter()
            .next()
            .ok_or(TargetError::NoPollGroup)?;
        let address = Arc::new(address.clone());
        let acceptor = transport
            .listen(id, &address)
            .map_err(|source| TargetError::Listen {
                address: address.to_string(),
                source,
            })?;
        let (local, socket) = (acceptor.local_address(), acceptor.socket());
        self.is_shut_down.store(false, Ordering::Release);
        group.send(Message::Accept(acceptor, Arc::clone(&address)));
        let port_id = self.next_port_id.fetch_add(1, Ordering::Relaxed) as u16;
        listening.push(Listening {
            address,
            group,
            port_id,
            local: local.clone(),
            users: 1,
            socket,
        });
        drop(listening);
        self.discovery_changed();
        Ok(local)
    }

    fn transport_by_name(
        &self,
        name: &str,
    ) -> Result<(TransportId, Arc<dyn Transport>), TargetError> {
        let transports = self
            .transports
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let index = transports
            .iter()
            .position(|(transport, _, used)| *used && transport.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| TargetError::NoTransport { name: name.into() })?;
        let id = TransportId(u16::try_from(index).expect("few transports exist"));
        Ok((id, Arc::clone(&transports[index].0)))
    }

    /// Drops one user of a listener; with the last it stops listening. The ticket is done when
    /// the address is free again.
    pub fn stop_listening(&self, address: &TransportAddress) -> Ticket {
        let (ticket, part) = Ticket::new();
        let mut listening = lock(&self.listening);
        if let Some(index) = listening
            .iter()
            .position(|entry| *entry.address == *address)
        {
            listening[index].users -= 1;
            if listening[index].users == 0 {
                let mut entry = listening.swap_remove(index);
                // Before the acceptor's: the address is free when that is closed.
                drop(entry.socket.take());
                entry
                    .group
                    .send(Message::StopAccepting(entry.address, part));
            }
        }
        drop(listening);
        self.discovery_changed();
        ticket
    }

    /// The port identifier of an address in the discovery log.
    pub(crate) fn port_id(&self, address: &TransportAddress) -> u16 {
        lock(&self.listening)
            .iter()
            .find(|entry| *entry.address == *address)
            .map_or(0, |entry| entry.port_id)
    }

    // Subsystems.

    /// Makes a subsystem; it is inactive until [`Subsystem::start`].
    ///
    /// # Errors
    /// The name is taken, a string does not fit, or there are too many.
    pub fn create_subsystem(
        &self,
        options: SubsystemOptions,
    ) -> Result<Arc<Subsystem>, TargetError> {
        let uid = SubsystemUid(self.next_subsystem_uid.fetch_add(1, Ordering::Relaxed));
        let subsystem = Subsystem::new(uid, options, Weak::clone(&self.me))?;
        let nqn = subsystem.nqn().clone();
        let mut subsystems = self
            .subsystems
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if subsystems.contains_key(&nqn) || nqn == Nqn::discovery() {
            return Err(TargetError::SubsystemExists { nqn });
        }
        if subsystems.len() >= self.options.max_subsystems {
            return Err(TargetError::TooManySubsystems {
                max: self.options.max_subsystems,
            });
        }
        subsystems.insert(nqn, Arc::clone(&subsystem));
        Ok(subsystem)
    }

    /// Deletes a subsystem: its controllers end. The ticket is done when they are gone.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn delete_subsystem(&self, nqn: &Nqn) -> Result<Ticket, TargetError> {
        let subsystem = {
            let mut subsystems = self
                .subsystems
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            subsystems
                .remove(nqn)
                .ok_or_else(|| TargetError::NoSubsystem { nqn: nqn.clone() })?
        };
        Ok(subsystem.stop())
    }

    /// The subsystem of a name.
    pub fn subsystem(&self, nqn: &Nqn) -> Option<Arc<Subsystem>> {
        self.subsystems
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(nqn)
            .cloned()
    }

    /// All subsystems, ordered by name.
    pub fn subsystems(&self) -> Vec<Arc<Subsystem>> {
        let subsystems = self
            .subsystems
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<_> = subsystems.values().cloned().collect();
        drop(subsystems);
        list.sort_by(|a, b| a.nqn().cmp(b.nqn()));
        list
    }

    // Discovery.

    /// Adds a referral; `false` if it was there.
    pub fn add_referral(&self, referral: Referral) -> bool {
        let is_new = lock(&self.discovery.referrals).insert(referral);
        if is_new {
            self.discovery_changed();
        }
        is_new
    }

    /// Removes a referral; `false` if it was not there.
    pub fn remove_referral(&self, referral: &Referral) -> bool {
        let was_there = lock(&self.discovery.referrals).remove(referral);
        if was_there {
            self.discovery_changed();
        }
        was_there
    }

    /// The referrals.
    pub fn referrals(&self) -> Vec<Referral> {
        lock(&self.discovery.referrals).iter().cloned().collect()
    }

    /// The generation of the discovery log (GENCTR).
    pub fn discovery_generation(&self) -> u64 {
        self.discovery.generation.load(Ordering::Acquire)
    }

    /// What a discovery log shows has changed: counts it and tells the discovery controllers.
    pub(crate) fn discovery_changed(&self) {
        self.discovery.generation.fetch_add(1, Ordering::AcqRel);
        for controller in self.discovery_controllers() {
            controller.discovery_changed();
        }
    }

    /// The discovery controllers.
    pub fn discovery_controllers(&self) -> Vec<Arc<Controller>> {
        let controllers = lock(&self.discovery.controllers);
        controllers
            .by_id
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }

    /// Hands out an identifier for a discovery controller; `None` when there are too many.
    pub(crate) fn add_discovery_controller(
        &self,
        make: impl FnOnce(Cntlid) -> Arc<Controller>,
    ) -> Option<Arc<Controller>> {
        let mut controllers = lock(&self.discovery.controllers);
        controllers
            .by_id
            .retain(|_, controller| controller.strong_count() > 0);
        if controllers.by_id.len() >= self.options.max_discovery_controllers {
            return None;
        }
        let start = controllers.next.clamp(1, 0xffef);
        let id = (start..=0xffef)
            .chain(1..start)
            .find(|id| !controllers.by_id.contains_key(id))?;
        controllers.next = if id == 0xffef { 1 } else { id + 1 };
        let controller = make(Cntlid(id));
        controllers.by_id.insert(id, Arc::downgrade(&controller));
        Some(controller)
    }

    // Events.

    pub(crate) fn tell(&self, event: TargetEvent) {
        lock(&self.events).push(event);
    }

    /// Takes the events that have gathered, oldest first, and how many were dropped because
    /// nobody took them. `waker` is woken when the next one comes.
    pub fn take_events(&self, waker: Option<&Waker>) -> (Vec<TargetEvent>, u64) {
        let mut events = lock(&self.events);
        events.waker = waker.cloned();
        (
            events.queue.drain(..).collect(),
            std::mem::take(&mut events.dropped),
        )
    }

    // Keep-alive.

    /// A keep-alive timeout is new or has changed: every poll group looks again.
    pub(crate) fn keep_alive_changed(&self) {
        self.keep_alive_changes.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn keep_alive_changes(&self) -> u64 {
        self.keep_alive_changes.load(Ordering::Acquire)
    }

    /// Nobody comes in: since [`Target::shut_down`] nothing listens.
    pub(crate) fn is_shut_down(&self) -> bool {
        self.is_shut_down.load(Ordering::Acquire)
    }

    /// Closes every listener and connection, also those that have not sent Connect. The ticket is done when the last I/O has ended.
    pub fn shut_down(&self) -> Ticket {
        let (ticket, part) = Ticket::new();
        self.is_shut_down.store(true, Ordering::Release);
        lock(&self.listening).clear();
        for group in self.poll_groups() {
            group.send(Message::CloseAll(CloseReason::Shutdown, Arc::clone(&part)));
        }
        ticket
    }
}

impl Listening {
    /// Has another transport listen in the place of the one that does.
    fn hand_over(&mut self, id: TransportId, to: &dyn Transport) -> Result<(), TargetError> {
        let of_listen = |address: &TransportAddress, source| TargetError::Listen {
            address: address.to_string(),
            source,
        };
        let (_ticket, part) = Ticket::new();
        let stop = Message::StopAccepting(Arc::clone(&self.address), part);
        let acceptor = match self.socket.take() {
            Some(socket) => {
                let acceptor = to.listen_on(id, &self.address, socket);
                self.group.send(stop);
                acceptor
            }
            None => {
                self.group.send(stop);
                to.listen(id, &self.address)
            }
        };
        let acceptor = acceptor.map_err(|source| of_listen(&self.address, source))?;
        self.local = acceptor.local_address();
        self.socket = acceptor.socket();
        self.group
            .send(Message::Accept(acceptor, Arc::clone(&self.address)));
        Ok(())
    }
}

fn check_io_size(transport: &dyn Transport, large_bufsize: u32) -> Result<(), TargetError> {
    let max_io_size = transport.limits().max_io_size;
    if max_io_size <= large_bufsize {
        return Ok(());
    }
    Err(TargetError::IoSize {
        transport: transport.name(),
        max_io_size,
        large_bufsize,
    })
}
