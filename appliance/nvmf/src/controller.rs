//! Controllers: what a host's Connect made, shared by the queue pairs of one association.
//!
//! A controller's queue pairs may live in different poll groups. What every I/O command asks is
//! an atomic; everything else is behind one lock that only admin commands, connects and
//! disconnects take.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use fabric_wire::Nqn;
use nvme_spec::event::{self, event_dw0, kind, notice};
use nvme_spec::feature::async_event;
use nvme_spec::log::lid;
use nvme_spec::{Cntlid, Nsid, Qid, Status};

use crate::config::SubsystemConfig;
use crate::events::TargetEvent;
use crate::features::Features;
use crate::inbox::{GroupHandle, Message, PollGroupId};
use crate::queue::QpairCounters;
use crate::registers::{CcChange, Registers};
use crate::subsystem::{Changes, Subsystem};
use crate::target::Target;
use crate::ticket::{Part, Ticket};
use crate::transport::{CloseReason, Digests, Peer, QpairId, TransportId, TransportLimits};

/// Entries that the error log keeps (ELPE + 1).
pub(crate) const ERROR_LOG_ENTRIES: usize = 64;
/// Asynchronous Event Requests that may be outstanding (AERL + 1).
pub(crate) const EVENT_REQUESTS_MAX: usize = 4;
/// Namespaces that the changed namespace list holds; beyond it the list says "all".
pub(crate) const CHANGED_NAMESPACES_MAX: usize = 1024;

/// Reservation notifications that a controller keeps. At the bound the oldest is lost, which the
/// host sees by the counts.
pub(crate) const RESERVATION_NOTICES_MAX: usize = 64;

/// Where a queue pair of a controller lives.
#[derive(Clone, Debug)]
pub(crate) struct QpairRef {
    pub(crate) group: Arc<GroupHandle>,
    pub(crate) qpair: QpairId,
    pub(crate) uid: u64,
    pub(crate) depth: u16,
    pub(crate) peer: Peer,
    pub(crate) digests: Digests,
    pub(crate) counters: Arc<QpairCounters>,
    pub(crate) is_closed: bool,
}

/// A queue pair as an operator sees it.
#[derive(Clone, Debug)]
pub struct QpairInfo {
    /// Queue identifier; 0 is the admin queue.
    pub qid: Qid,
    /// The poll group that it lives in.
    pub group: PollGroupId,
    /// Entries.
    pub depth: u16,
    /// Its connection's ends.
    pub peer: Peer,
    /// What they have agreed on.
    pub digests: Digests,
    /// `active` or `closing`.
    pub state: &'static str,
    /// Its counters.
    pub counters: Arc<QpairCounters>,
}

/// One entry of the error log, before it is put into wire form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ErrorRecord {
    pub(crate) count: u64,
    pub(crate) sqid: Qid,
    pub(crate) cid: u16,
    pub(crate) status: Status,
    pub(crate) lba: u64,
    pub(crate) nsid: Nsid,
}

/// A reservation notification, before it is put into wire form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReservationNotice {
    pub(crate) count: u64,
    pub(crate) kind: u8,
    pub(crate) nsid: Nsid,
}

/// An asynchronous event in waiting, dword 0 of its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event(pub(crate) u32);

pub(crate) struct State {
    pub(crate) registers: Registers,
    pub(crate) admin: Option<QpairRef>,
    pub(crate) io: BTreeMap<Qid, QpairRef>,
    pub(crate) features: Features,
    /// Events not yet told, oldest first, at most one of each kind.
    pub(crate) events: VecDeque<Event>,
    /// Log pages whose event was told and that have not been read since: no further event.
    pub(crate) masked_events: BTreeSet<u32>,
    pub(crate) changed_namespaces: BTreeSet<Nsid>,
    /// Reservation notifications that the host has not read, oldest first.
    pub(crate) reservation_notices: VecDeque<ReservationNotice>,
    reservation_notice_count: u64,
    /// Notifications that the host does not want, by namespace (feature 82h).
    pub(crate) reservation_masks: BTreeMap<Nsid, u32>,
    pub(crate) errors: VecDeque<ErrorRecord>,
    pub(crate) error_count: u64,
    /// Counters of queue pairs that are gone.
    pub(crate) past: IoCounters,
    /// Errors of media and data integrity (SMART, MDIE).
    pub(crate) media_errors: u64,
    /// Held until the controller's last queue pair is gone.
    parts: Vec<Arc<Part>>,
    /// Why the controller ended, in words.
    end_reason: Option<&'static str>,
    /// What the host read of a discovery log at offset 0; later offsets are of the same log.
    pub(crate) discovery_log: Option<Arc<[u8]>>,
}

/// Sums over queue pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// Read commands that succeeded.
    pub reads: u64,
    /// Write commands that succeeded.
    pub writes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
}

/// What a controller serves.
#[derive(Clone, Debug)]
pub(crate) enum ControllerKind {
    Io(Weak<Subsystem>),
    Discovery,
}

/// A controller of a subsystem, or a discovery controller.
pub struct Controller {
    cntlid: Cntlid,
    subsystem_nqn: Nqn,
    host_nqn: Nqn,
    host_id: [u8; 16],
    pub(crate) kind: ControllerKind,
    pub(crate) transport: TransportId,
    pub(crate) limits: Arc<TransportLimits>,
    peer: Peer,
    is_ready: AtomicBool,
    is_ended: AtomicBool,
    kato_ms: AtomicU32,
    is_write_through: AtomicBool,
    pub(crate) made_at: Instant,
    state: Mutex<State>,
}

/// What a controller is made from.
pub(crate) struct ControllerParts {
    pub(crate) cntlid: Cntlid,
    pub(crate) subsystem_nqn: Nqn,
    pub(crate) host_nqn: Nqn,
    pub(crate) host_id: [u8; 16],
    pub(crate) kind: ControllerKind,
    pub(crate) transport: TransportId,
    pub(crate) limits: Arc<TransportLimits>,
    pub(crate) peer: Peer,
    pub(crate) kato_ms: u32,
    pub(crate) made_at: Instant,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller")
            .field("cntlid", &self.cntlid)
            .field("subsystem", &self.subsystem_nqn)
            .field("host", &self.host_nqn)
            .finish_non_exhaustive()
    }
}

impl Controller {
    pub(crate) fn new(parts: ControllerParts) -> Arc<Self> {
        let is_discovery = matches!(parts.kind, ControllerKind::Discovery);
        let registers = Registers::new(&parts.limits);
        let event_config = if is_discovery {
            async_event::DISCOVERY_LOG_CHANGE
        } else {
            async_event::NAMESPACE_ATTRIBUTE | async_event::ANA_CHANGE
        };
        let features = Features::new(parts.kato_ms, event_config);
        Arc::new(Self {
            cntlid: parts.cntlid,
            subsystem_nqn: parts.subsystem_nqn,
            host_nqn: parts.host_nqn,
            host_id: parts.host_id,
            kind: parts.kind,
            transport: parts.transport,
            limits: parts.limits,
            peer: parts.peer,
            is_ready: AtomicBool::new(false),
            is_ended: AtomicBool::new(false),
            kato_ms: AtomicU32::new(parts.kato_ms),
            is_write_through: AtomicBool::new(false),
            made_at: parts.made_at,
            state: Mutex::new(State {
                registers,
                admin: None,
                io: BTreeMap::new(),
                features,
                events: VecDeque::new(),
                masked_events: BTreeSet::new(),
                changed_namespaces: BTreeSet::new(),
                reservation_notices: VecDeque::new(),
                reservation_notice_count: 0,
                reservation_masks: BTreeMap::new(),
                errors: VecDeque::new(),
                error_count: 0,
                past: IoCounters::default(),
                media_errors: 0,
                parts: Vec::new(),
                end_reason: None,
                discovery_log: None,
            }),
        })
    }

    /// The controller identifier.
    pub fn cntlid(&self) -> Cntlid {
        self.cntlid
    }

    /// The subsystem's name.
    pub fn subsystem_nqn(&self) -> &Nqn {
        &self.subsystem_nqn
    }

    /// The host's name.
    pub fn host_nqn(&self) -> &Nqn {
        &self.host_nqn
    }

    /// The host's identifier.
    pub fn host_id(&self) -> &[u8; 16] {
        &self.host_id
    }

    /// The ends of the admin queue's connection.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Keep-alive timeout in milliseconds as granted, 0 when there is none.
    pub fn kato_ms(&self) -> u32 {
        self.kato_ms.load(Ordering::Relaxed)
    }

    /// Whether this is a discovery controller.
    pub fn is_discovery(&self) -> bool {
        matches!(self.kind, ControllerKind::Discovery)
    }

    /// Its queue pairs, the admin queue first.
    pub fn qpairs(&self) -> Vec<QpairInfo> {
        let state = self.lock();
        let admin = state.admin.iter().map(|qpair| (Qid(0), qpair));
        admin
            .chain(state.io.iter().map(|(qid, qpair)| (*qid, qpair)))
            .map(|(qid, qpair)| QpairInfo {
                qid,
                group: qpair.group.id,
                depth: qpair.depth,
                peer: qpair.peer.clone(),
                digests: qpair.digests,
                state: if qpair.is_closed { "closing" } else { "active" },
                counters: Arc::clone(&qpair.counters),
            })
            .collect()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held left plain data behind: go on with it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// CC.EN and CSTS.RDY are set: I/O commands run.
    pub(crate) fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }

    /// The controller takes no further queue pairs or commands.
    pub fn is_ended(&self) -> bool {
        self.is_ended.load(Ordering::Relaxed)
    }

    pub(crate) fn keep_alive_timeout(&self) -> Option<Duration> {
        match self.kato_ms() {
            0 => None,
            ms => Some(Duration::from_millis(u64::from(ms))),
        }
    }

    /// I/O queues that the host was granted; before it asked, as many as there can be.
    pub(crate) fn granted_io_queues(&self) -> u16 {
        match self.lock().features.io_queues {
            0 => self.limits.max_io_qpairs_per_ctrlr,
            granted => granted,
        }
    }

    pub(crate) fn set_kato_ms(&self, kato_ms: u32) {
        self.kato_ms.store(kato_ms, Ordering::Relaxed);
    }

    /// Ends the controller; the host may connect again. The ticket is done when its last queue
    /// pair is gone and no device holds I/O of it.
    pub fn disconnect(&self) -> Ticket {
        let (ticket, part) = Ticket::new();
        self.end_because("disconnected by the operator", Some(part));
        ticket
    }

    /// The state in words: `disabled`, `ready`, `shutdown` or `failed`.
    pub fn state_name(&self) -> &'static str {
        self.lock().registers.state_name()
    }

    /// When it was made.
    pub fn made_at(&self) -> Instant {
        self.made_at
    }

    /// Errors logged since it was made.
    pub fn error_count(&self) -> u64 {
        self.lock().error_count
    }

    /// Commands and bytes over all queue pairs, those that are gone included.
    pub fn io_counters(&self) -> IoCounters {
        self.lock().counters()
    }

    // Queue pairs.

    pub(crate) fn set_admin_queue(&self, qpair: QpairRef) {
        self.lock().admin = Some(qpair);
    }

    /// Adds an I/O queue pair.
    ///
    /// # Errors
    /// The queue identifier is in use, or the controller is not ready.
    pub(crate) fn add_io_queue(&self, qid: Qid, qpair: QpairRef) -> Result<(), AddQueueError> {
        let mut state = self.lock();
        if self.is_ended() || !self.is_ready() || state.admin.as_ref().is_none_or(|q| q.is_closed) {
            return Err(AddQueueError::NotReady);
        }
        match state.io.entry(qid) {
            std::collections::btree_map::Entry::Occupied(_) => Err(AddQueueError::InUse),
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(qpair);
                Ok(())
            }
        }
    }

    /// A queue pair's connection is gone. The end of the admin queue ends the controller.
    pub(crate) fn queue_closed(&self, qid: Qid, uid: u64) {
        let is_admin = {
            let mut state = self.lock();
            let qpair = if qid.0 == 0 {
                state.admin.as_mut()
            } else {
                state.io.get_mut(&qid)
            };
            match qpair.filter(|qpair| qpair.uid == uid) {
                Some(qpair) => qpair.is_closed = true,
                None => return,
            }
            qid.0 == 0
        };
        if is_admin {
            self.end_because("connection closed", None);
        }
    }

    /// No device holds I/O of a closed queue pair any more. The last one takes the controller along.
    pub(crate) fn queue_drained(&self, qid: Qid, uid: u64, target: &Target) {
        let is_last = {
            let mut state = self.lock();
            let gone = if qid.0 == 0 {
                state.admin.take_if(|qpair| qpair.uid == uid)
            } else if state.io.get(&qid).is_some_and(|qpair| qpair.uid == uid) {
                state.io.remove(&qid)
            } else {
                None
            };
            if let Some(qpair) = gone {
                state.past.add(&qpair.counters);
            }
            if state.io.is_empty() {
                state.registers.io_queues_gone();
            }
            state.admin.is_none() && state.io.is_empty()
        };
        if !is_last {
            return;
        }
        if let ControllerKind::Io(subsystem) = &self.kind
            && let Some(subsystem) = subsystem.upgrade()
        {
            subsystem.remove_controller(self.cntlid);
        }
        let (reason, parts) = {
            let mut state = self.lock();
            (
                state.end_reason.unwrap_or("connection closed"),
                std::mem::take(&mut state.parts),
            )
        };
        target.tell(TargetEvent::ControllerDisconnected {
            nqn: self.subsystem_nqn.clone(),
            host: self.host_nqn.clone(),
            cntlid: self.cntlid,
            reason: reason.into(),
        });
        drop(parts);
    }

    // The controller's life.

    /// Ends the controller: every queue pair is closed. `part` is held until the last is gone.
    pub(crate) fn end_because(&self, reason: &'static str, part: Option<Arc<Part>>) {
        self.is_ended.store(true, Ordering::Relaxed);
        self.is_ready.store(false, Ordering::Relaxed);
        let mut state = self.lock();
        if state.admin.is_some() || !state.io.is_empty() {
            state.parts.extend(part);
        }
        state.end_reason.get_or_insert(reason);
        for qpair in state
            .io
            .values()
            .chain(&state.admin)
            .filter(|qpair| !qpair.is_closed)
        {
            let reason = CloseReason::ControllerEnded;
            qpair
                .group
                .send(Message::Close(qpair.qpair, qpair.uid, reason, None));
        }
    }

    /// Whether a configuration no longer lets this host in, or not at an address that it uses.
    pub(crate) fn is_refused_by(&self, config: &SubsystemConfig) -> bool {
        if !config.allows_host(&self.host_nqn) {
            return true;
        }
        let state = self.lock();
        let mut qpairs = state.io.values().chain(&state.admin);
        config.listener(&self.peer.listener).is_none()
            || qpairs.any(|qpair| config.listener(&qpair.peer.listener).is_none())
    }

    fn close_io_queues(state: &State) {
        for qpair in state.io.values().filter(|qpair| !qpair.is_closed) {
            qpair.group.send(Message::Close(
                qpair.qpair,
                qpair.uid,
                CloseReason::ControllerEnded,
                None,
            ));
        }
    }

    pub(crate) fn keep_alive_expired(&self) {
        if !self.is_ended() {
            tracing::warn!(host = %self.host_nqn, cntlid = self.cntlid.0,
                timeout_ms = self.kato_ms(), "keep-alive timeout: the controller ends");
            self.lock().registers.fail();
            self.end_because("keep-alive timeout", None);
        }
    }

    /// Property Set of CC (NVMe Base 2.1, section 3.1.4.5).
    ///
    /// # Errors
    /// A value that this controller does not support.
    pub(crate) fn write_cc(&self, value: u32) -> Result<CcChange, Status> {
        let mut state = self.lock();
        let has_io_queues = !state.io.is_empty();
        let change = state.registers.write_cc(value, has_io_queues)?;
        match change {
            CcChange::None => {}
            CcChange::Enabled => {
                // An ended controller only waits for its connections to close.
                self.is_ready.store(!self.is_ended(), Ordering::Relaxed);
            }
            CcChange::Reset | CcChange::ShutDown => {
                self.is_ready.store(false, Ordering::Relaxed);
                Self::close_io_queues(&state);
            }
        }
        if change == CcChange::Reset {
            self.reset(&mut state);
        }
        Ok(change)
    }

    /// A controller reset: what is not persistent is as after Connect (NVMe Base 2.1, section
    /// 3.7.2).
    fn reset(&self, state: &mut State) {
        state.events.clear();
        state.masked_events.clear();
        state.changed_namespaces.clear();
        state.reservation_notices.clear();
        state.reservation_masks.clear();
        state.discovery_log = None;
        state.features.reset();
        self.set_kato_ms(state.features.kato_ms);
        self.set_write_through(false);
    }

    // Events.

    /// Notes an event for the host, unless it is of a kind that the host has been told of and has
    /// not looked after. Wakes the admin queue's group.
    pub(crate) fn raise(&self, state: &mut State, event: Event) {
        if !self.is_ready() {
            // The host looks at everything anyway when it enables the controller.
            return;
        }
        if state.masked_events.contains(&event.0) || state.events.contains(&event) {
            return;
        }
        state.events.push_back(event);
        if let Some(admin) = &state.admin {
            admin.group.send(Message::Event(admin.qpair, admin.uid));
        }
    }

    /// Notes an error for the error log (log page 01h).
    pub(crate) fn log_error(&self, sqid: Qid, cid: u16, status: Status, nsid: Nsid, lba: u64) {
        let mut state = self.lock();
        state.error_count += 1;
        let is_media = status.sct() == Status::SCT_MEDIA && !status.is(Status::COMPARE_FAILURE);
        if is_media {
            state.media_errors += 1;
        }
        if state.errors.len() == ERROR_LOG_ENTRIES {
            state.errors.pop_back();
        }
        let count = state.error_count;
        state.errors.push_front(ErrorRecord {
            count,
            sqid,
            cid,
            status,
            lba,
            nsid,
        });
        // What the host did wrong is in the log; what the target or a device did is an event too.
        if is_media || status.is(Status::INTERNAL_ERROR) {
            self.raise(&mut state, Event::ERROR);
        }
    }
}

/// Why an I/O queue pair was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddQueueError {
    NotReady,
    /// Another queue pair has the identifier; it may be on its way out.
    InUse,
}

impl Controller {
    /// The subsystem's configuration changed: notes what the host must be told.
    pub(crate) fn subsystem_changed(
        &self,
        old: &SubsystemConfig,
        config: &SubsystemConfig,
        changes: &Changes,
    ) {
        let mut state = self.lock();
        if !self.is_ready() {
            return;
        }
        let mut is_listed = false;
        for nsid in &changes.namespaces {
            let is_seen = |config: &SubsystemConfig| {
                let namespace = config.namespaces.get(nsid);
                namespace.is_some_and(|namespace| namespace.is_visible_to(&self.host_nqn))
            };
            if is_seen(old) || is_seen(config) {
                is_listed = true;
                if state.changed_namespaces.len() <= CHANGED_NAMESPACES_MAX {
                    state.changed_namespaces.insert(*nsid);
                }
            }
        }
        if is_listed && state.wants(async_event::NAMESPACE_ATTRIBUTE) {
            self.raise(&mut state, Event::NAMESPACE_ATTRIBUTE);
        }
        if changes.ana && config.ana_reporting && state.wants(async_event::ANA_CHANGE) {
            self.raise(&mut state, Event::ANA_CHANGE);
        }
    }

    /// A reservation notification of the host.
    pub(crate) fn reservation_notice(&self, nsid: Nsid, kind: u8) {
        let mut state = self.lock();
        let mask = state.reservation_masks.get(&nsid).copied().unwrap_or(0);
        if !self.is_ready() || mask >> kind & 1 == 1 {
            return;
        }
        state.reservation_notice_count += 1;
        let count = state.reservation_notice_count;
        if state.reservation_notices.len() == RESERVATION_NOTICES_MAX {
            state.reservation_notices.pop_front();
        }
        state
            .reservation_notices
            .push_back(ReservationNotice { count, kind, nsid });
        self.raise(&mut state, Event::RESERVATION);
    }

    /// The oldest notification, and how many there are. `is_taken`: the host has it now, and is
    /// told if there are more.
    pub(crate) fn read_reservation_notice(
        &self,
        is_taken: bool,
    ) -> (Option<ReservationNotice>, usize) {
        let mut state = self.lock();
        let count = state.reservation_notices.len();
        let first = state.reservation_notices.front().copied();
        if is_taken {
            state.reservation_notices.pop_front();
            if !state.reservation_notices.is_empty() {
                self.raise(&mut state, Event::RESERVATION);
            }
        }
        (first, count)
    }

    /// The discovery log changed.
    pub(crate) fn discovery_changed(&self) {
        let mut state = self.lock();
        if state.wants(async_event::DISCOVERY_LOG_CHANGE) {
            self.raise(&mut state, Event::DISCOVERY_LOG_CHANGE);
        }
    }

    /// The oldest event that waits. From then on its kind is masked until its log has been read.
    pub(crate) fn take_event(&self) -> Option<Event> {
        let mut state = self.lock();
        let event = state.events.pop_front()?;
        state.masked_events.insert(event.0);
        Some(event)
    }

    /// Whether every write is made durable before it is answered (feature 06h with WCE clear).
    pub(crate) fn is_write_through(&self) -> bool {
        self.is_write_through.load(Ordering::Relaxed)
    }

    pub(crate) fn set_write_through(&self, is_write_through: bool) {
        self.is_write_through
            .store(is_write_through, Ordering::Relaxed);
    }
}

impl Event {
    const NAMESPACE_ATTRIBUTE: Self =
        Self::notice(notice::NAMESPACE_ATTRIBUTE_CHANGED, lid::CHANGED_NAMESPACES);
    const ANA_CHANGE: Self = Self::notice(notice::ANA_CHANGE, lid::ANA);
    const DISCOVERY_LOG_CHANGE: Self = Self::notice(notice::DISCOVERY_LOG_CHANGE, lid::DISCOVERY);
    /// A reservation notification can be read.
    const RESERVATION: Self = Self(event_dw0(
        kind::IO_COMMAND_SPECIFIC,
        event::io_command_specific::RESERVATION_LOG_AVAILABLE,
        lid::RESERVATION_NOTIFICATION,
    ));
    /// A command failed for a reason that is the target's or the device's (error log page).
    const ERROR: Self = Self(event_dw0(
        kind::ERROR,
        event::error::TRANSIENT_INTERNAL_ERROR,
        lid::ERROR,
    ));

    const fn notice(info: u8, log_id: u8) -> Self {
        Self(event_dw0(kind::NOTICE, info, log_id))
    }
}

impl State {
    fn wants(&self, event: u32) -> bool {
        self.features.event_config & event != 0
    }
}

impl IoCounters {
    fn add(&mut self, counters: &QpairCounters) {
        self.reads += counters.reads.load(Ordering::Relaxed);
        self.writes += counters.writes.load(Ordering::Relaxed);
        self.read_bytes += counters.read_bytes.load(Ordering::Relaxed);
        self.write_bytes += counters.write_bytes.load(Ordering::Relaxed);
    }
}

impl State {
    /// Sums over all queue pairs, those that are gone included.
    pub(crate) fn counters(&self) -> IoCounters {
        let mut sum = self.past;
        self.admin
            .iter()
            .chain(self.io.values())
            .for_each(|qpair| sum.add(&qpair.counters));
        sum
    }
}
