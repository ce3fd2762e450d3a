//! The connections of one poll group: who is polled, who sends, who has run out of time.
//!
//! # Which connections are polled
//! A connection that had data lately is *hot*: each poll receives from it without asking epoll
//! first, as it most likely has data again. After some empty receives it is no longer hot, and
//! costs nothing until epoll tells of it. So a poll costs what is busy, not what is connected.
//! Epoll is asked when nothing is hot, when a send waits for room, and else every few polls.
//!
//! # Sleeping loses nothing
//! Sockets are in the epoll edge-triggered. An edge that has been fetched is
//! gone, so a connection leaves the hot list only after a receive that found nothing
//! (EAGAIN): what comes later makes a new edge. A poll that did no work has received from every
//! hot connection and found nothing: whoever sleeps after it is woken by new edges, since an epoll
//! descriptor is readable while it holds an edge that was not fetched and whose socket is ready. A
//! connection whose reading has stopped for want of a buffer is made hot when it goes on. A send
//! that found no room (EAGAIN) is followed by an edge when there is some: such a connection is
//! watched for that from then on until it is no longer hot. (Were all watched for it, an edge that
//! was not fetched would always find its socket ready, and nobody would sleep.)

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nvmf::Core;
use nvmf::transport::{
    CloseReason, ConnectionId, NewConnection, SlotId, Step, TransportGroup, TransportId,
};

use crate::TcpOptions;
use crate::commands::Commands;
use crate::connection::{Connection, End, Phase};
use crate::group_io::GroupIo;
use crate::listener::Accepted;
use crate::pace::DeadlineQueue;
use crate::receive::Received;
use crate::slab::Slab;
use crate::stats::{TcpStats, count};

/// While something is hot, epoll is asked in one poll of this many.
const POLLS_PER_LOOK: u32 = 16;
/// Events fetched at once.
const EVENTS_MAX: usize = 64;
/// Receives from one connection in one poll; then it is the next one's turn.
const RECEIVES_PER_TURN: usize = 2;
/// Empty receives that all hot connections together may cost: one that is alone stays hot for that
/// many, of many each leaves soon.
const EMPTY_RECEIVES_MAX: u32 = 512;
const EMPTY_POLLS_MAX: u32 = 128;
const EMPTY_POLLS_MIN: u32 = 2;

/// What a turn at a connection came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Worked,
    Idle,
    /// It leaves the hot list.
    Cold,
}

/// A connection with a deadline: its number, and what tells it from a later one of that number.
type Timed = (ConnectionId, u64);

pub(crate) struct TcpGroup {
    pub(crate) io: GroupIo,
    pub(crate) slab: Slab,
    epoll: Epoll,
    events: Vec<EpollEvent>,
    /// The last look filled `events`: there may be more.
    has_more_events: bool,
    polls: u32,
    pub(crate) looks: u64,
    pub(crate) hot: Vec<ConnectionId>,
    /// Connections that have something to send, or to end.
    dirty: Vec<ConnectionId>,
    /// Empty between flushes: the other memory of `dirty`.
    flushing: Vec<ConnectionId>,
    pub(crate) blocked_sends: usize,
    next_serial: u64,
    ic_req: DeadlineQueue<Timed>,
    half_open: DeadlineQueue<Timed>,
    ending: DeadlineQueue<Timed>,
    /// Connections whose peer is to send or to take something.
    progress: DeadlineQueue<Timed>,
}

impl TcpGroup {
    pub(crate) fn new(
        transport: TransportId,
        options: Arc<TcpOptions>,
        stats: Arc<TcpStats>,
    ) -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            events: vec![EpollEvent::empty(); EVENTS_MAX],
            has_more_events: false,
            polls: 0,
            looks: 0,
            slab: Slab::default(),
            hot: Vec::new(),
            dirty: Vec::new(),
            flushing: Vec::new(),
            blocked_sends: 0,
            next_serial: 0,
            ic_req: DeadlineQueue::new(options.icreq_timeout_ms),
            half_open: DeadlineQueue::new(options.half_open_timeout_ms),
            ending: DeadlineQueue::new(options.linger_timeout_ms),
            progress: DeadlineQueue::new(options.progress_timeout_ms),
            io: GroupIo::new(transport, options, stats),
        })
    }

    pub(crate) fn add(&mut self, connection: NewConnection, now: Instant) {
        let NewConnection { peer, io, .. } = connection;
        let Ok(accepted) = io.downcast::<Accepted>() else {
            tracing::error!(
                peer = peer.remote,
                "a connection of another transport was closed"
            );
            return;
        };
        self.io.now = Some(now);
        let serial = self.next_serial;
        self.next_serial += 1;
        let shared = &self.io;
        let added = self
            .slab
            .insert(|id| Box::new(Connection::new((id, serial), *accepted, peer, shared)));
        let Some(id) = added else {
            tracing::warn!("a connection was closed: the poll group can number no more");
            return;
        };
        let connection = self.slab.get(id).expect("just added");
        let event = watch(connection);
        if let Err(error) = self.epoll.add(&connection.stream, event) {
            tracing::warn!(%error, peer = connection.peer.remote, "cannot watch a connection");
            self.slab.remove(id);
            return;
        }
        let slab = &self.slab;
        self.ic_req
            .push(now, (id, serial), |timed| waits_for_ic_req(slab, timed));
        self.half_open
            .push(now, (id, serial), |timed| is_half_open(slab, timed));
    }

    pub(crate) fn poll_with<C: Commands>(&mut self, core: &mut C, now: Instant) -> usize {
        self.io.now = Some(now);
        let mut work = self.expire(core, now);
        work += self.check_progress(core, now);
        self.polls = self.polls.wrapping_add(1);
        if self.hot.is_empty()
            || self.blocked_sends > 0
            || self.has_more_events
            || self.polls.is_multiple_of(POLLS_PER_LOOK)
        {
            work += self.look();
        }
        let hot = u32::try_from(self.hot.len()).unwrap_or(u32::MAX).max(1);
        let patience = (EMPTY_RECEIVES_MAX / hot).clamp(EMPTY_POLLS_MIN, EMPTY_POLLS_MAX);
        let mut at = 0;
        while let Some(id) = self.hot.get(at).copied() {
            match self.turn(core, id, patience) {
                Turn::Worked => {
                    self.watch_progress(id);
                    work += 1;
                    at += 1;
                }
                Turn::Idle => at += 1,
                Turn::Cold => {
                    self.hot.swap_remove(at);
                    self.cool(id);
                }
            }
        }
        work
    }

    fn cool(&mut self, id: ConnectionId) {
        let Some(connection) = self.slab.get_mut(id) else {
            return;
        };
        connection.is_hot = false;
        if connection.watches_send && !connection.is_send_blocked {
            connection.watches_send = false;
            rewatch(&self.epoll, connection);
        }
    }

    /// If the socket takes no more: an event shall tell when it does.
    fn note_block(&mut self, id: ConnectionId) {
        let Some(connection) = self.slab.get_mut(id) else {
            return;
        };
        if !connection.is_send_blocked || connection.is_block_noted {
            return;
        }
        connection.is_block_noted = true;
        self.blocked_sends += 1;
        if !connection.watches_send {
            connection.watches_send = true;
            rewatch(&self.epoll, connection);
        }
        self.watch_progress(id);
    }

    /// If the peer is to send or to take something: it has a bounded time for that.
    fn watch_progress(&mut self, id: ConnectionId) {
        let now = self.io.now();
        let Some(connection) = self.slab.get_mut(id) else {
            return;
        };
        if !connection.wants_watching() {
            return;
        }
        connection.begin_period();
        let timed = (id, connection.serial);
        let slab = &self.slab;
        self.progress
            .push(now, timed, |timed| is_watched(slab, timed));
    }

    /// Looks at connections whose period ends: closes those whose peer does not move on.
    fn check_progress<C: Commands>(&mut self, core: &mut C, now: Instant) -> usize {
        let mut work = 0;
        loop {
            let slab = &self.slab;
            let due = self.progress.pop_due(now, |timed| is_watched(slab, timed));
            let Some((id, _)) = due else { return work };
            work += 1;
            let Some(connection) = self.slab.get_mut(id) else {
                continue;
            };
            connection.progress.is_watched = false;
            if !connection.has_stalled() {
                self.watch_progress(id);
                continue;
            }
            count(&self.io.stats.stalled);
            if self.io.may_warn() {
                let peer = &connection.peer.remote;
                tracing::warn!(%peer, "closed: the host neither sends what it owes nor reads");
            }
            self.remove(core, id);
        }
    }

    /// Fetches events: heats connections that can be read, and takes up sends that waited.
    fn look(&mut self) -> usize {
        self.looks += 1;
        let count = match self.epoll.wait(&mut self.events, EpollTimeout::ZERO) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => {
                debug_assert!(false, "epoll of a live descriptor: {error}");
                0
            }
        };
        self.has_more_events = count == self.events.len();
        let mut work = 0;
        for index in 0..count {
            let event = self.events[index];
            let id = ConnectionId(event.data() as u32);
            let Some(connection) = self.slab.get_mut(id) else {
                continue;
            };
            if connection.is_block_noted && event.events().contains(EpollFlags::EPOLLOUT) {
                connection.is_send_blocked = false;
                connection.is_block_noted = false;
                self.blocked_sends -= 1;
                mark_dirty(connection, &mut self.dirty);
                work += 1;
            }
            if event.events().intersects(!EpollFlags::EPOLLOUT) {
                heat(connection, &mut self.hot);
            }
        }
        work
    }

    /// Receives from a hot connection.
    fn turn<C: Commands>(&mut self, core: &mut C, id: ConnectionId, patience: u32) -> Turn {
        let Some(connection) = self.slab.get_mut(id) else {
            return Turn::Cold;
        };
        if connection.is_reading_stopped() {
            return Turn::Cold;
        }
        let mut turn = Turn::Idle;
        for _ in 0..RECEIVES_PER_TURN {
            match connection.receive(core, &mut self.io) {
                Ok(Received::Nothing) => break,
                Ok(Received::Bytes { is_drained }) => {
                    turn = Turn::Worked;
                    if is_drained || connection.is_reading_stopped() {
                        break;
                    }
                }
                Err(end) => {
                    self.end(core, id, &end);
                    return if self.slab.get(id).is_some() {
                        Turn::Worked
                    } else {
                        Turn::Cold
                    };
                }
            }
        }
        if turn == Turn::Idle {
            connection.empty_polls += 1;
            if connection.empty_polls > patience {
                return Turn::Cold;
            }
        } else {
            connection.empty_polls = 0;
            if !connection.send.is_empty() {
                mark_dirty(connection, &mut self.dirty);
            }
        }
        turn
    }

    /// Ends a connection for a reason that it found itself.
    #[cold]
    fn end<C: Commands>(&mut self, core: &mut C, id: ConnectionId, end: &End) {
        let Some(connection) = self.slab.get_mut(id) else {
            return;
        };
        match end {
            End::Fatal(fatal) => {
                count(&self.io.stats.terminated);
                if self.io.may_warn() {
                    let (peer, fes, fei) = (&connection.peer.remote, fatal.fes, fatal.fei);
                    tracing::warn!(%peer, fes, fei, "the host broke the protocol: C2HTermReq");
                }
                connection.terminate(core, &mut self.io, fatal);
                self.note_ending(id);
            }
            End::Peer | End::Refused => self.remove(core, id),
        }
    }

    /// A connection has begun to close: it has a bounded time for that.
    fn note_ending(&mut self, id: ConnectionId) {
        let Some(connection) = self.slab.get_mut(id) else {
            return;
        };
        mark_dirty(connection, &mut self.dirty);
        // What the peer still sends is read and thrown away, until it closes.
        heat(connection, &mut self.hot);
        let timed = (id, connection.serial);
        let slab = &self.slab;
        self.ending
            .push(self.io.now(), timed, |timed| is_ending(slab, timed));
    }

    /// Closes a connection at once.
    fn remove<C: Commands>(&mut self, core: &mut C, id: ConnectionId) {
        let Some(mut connection) = self.slab.remove(id) else {
            return;
        };
        connection.release(core, &mut self.io);
        if connection.is_block_noted {
            self.blocked_sends -= 1;
        }
        // Closing the socket takes it out of the epoll; lists find nobody under its number.
    }

    /// Ends connections whose time has run out.
    fn expire<C: Commands>(&mut self, core: &mut C, now: Instant) -> usize {
        let mut work = 0;
        loop {
            let slab = &self.slab;
            let late = self
                .ic_req
                .pop_due(now, |timed| waits_for_ic_req(slab, timed));
            let late = late.or_else(|| {
                self.half_open
                    .pop_due(now, |timed| is_half_open(slab, timed))
            });
            let Some((id, _)) = late else { break };
            count(&self.io.stats.timed_out);
            self.remove(core, id);
            work += 1;
        }
        loop {
            let slab = &self.slab;
            let late = self.ending.pop_due(now, |timed| is_ending(slab, timed));
            let Some((id, _)) = late else { break };
            self.remove(core, id);
            work += 1;
        }
        work
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
        let was_stopped = connection.is_reading_stopped();
        if let Err(end) = connection.step(core, &mut self.io, slot, step) {
            self.end(core, id, &end);
            return;
        }
        if !connection.send.is_empty() {
            mark_dirty(connection, &mut self.dirty);
        }
        if was_stopped {
            heat(connection, &mut self.hot);
        }
        self.watch_progress(id);
    }

    pub(crate) fn flush_with<C: Commands>(&mut self, core: &mut C) -> usize {
        let mut work = 0;
        // A connection that ends by being flushed becomes dirty once more.
        while !self.dirty.is_empty() {
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
        if connection.is_send_blocked {
            // A send amid receiving found it so.
            self.note_block(id);
            return 0;
        }
        match connection.flush(core, &mut self.io) {
            Ok(true) if connection.phase == Phase::Closing => connection.linger(),
            Ok(true) => {
                if let Some(reason) = connection.close_when_sent.take() {
                    self.close_with(core, id, reason);
                }
            }
            Ok(false) => self.note_block(id),
            Err(_) => self.remove(core, id),
        }
        1
    }

    pub(crate) fn close_with<C: Commands>(
        &mut self,
        core: &mut C,
        id: ConnectionId,
        reason: CloseReason,
    ) {
        let Some(connection) = self.slab.get_mut(id) else {
            return;
        };
        if connection.is_ending() {
            return;
        }
        if reason == CloseReason::Peer {
            self.remove(core, id);
            return;
        }
        connection.begin_close(core, &mut self.io);
        self.note_ending(id);
    }
}

fn has(slab: &Slab, (id, serial): Timed, is: impl Fn(&Connection) -> bool) -> bool {
    slab.get(id)
        .is_some_and(|connection| connection.serial == serial && is(connection))
}

fn waits_for_ic_req(slab: &Slab, timed: Timed) -> bool {
    has(slab, timed, |connection| connection.phase == Phase::IcReq)
}

/// Not yet a queue pair of a controller.
fn is_half_open(slab: &Slab, timed: Timed) -> bool {
    has(slab, timed, |connection| {
        matches!(
            connection.phase,
            Phase::IcReq | Phase::Connect | Phase::Connecting
        )
    })
}

fn is_watched(slab: &Slab, timed: Timed) -> bool {
    has(slab, timed, |connection| connection.progress.is_watched)
}

fn is_ending(slab: &Slab, timed: Timed) -> bool {
    has(slab, timed, Connection::is_ending)
}

fn watch(connection: &Connection) -> EpollEvent {
    let mut flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
    flags.set(EpollFlags::EPOLLOUT, connection.watches_send);
    EpollEvent::new(flags, u64::from(connection.id.0))
}

/// Changes what a socket is watched for. What is ready already is told again.
fn rewatch(epoll: &Epoll, connection: &Connection) {
    if let Err(error) = epoll.modify(&connection.stream, &mut watch(connection)) {
        let peer = &connection.peer.remote;
        tracing::error!(%error, peer, "cannot change what a connection is watched for");
    }
}

fn heat(connection: &mut Connection, hot: &mut Vec<ConnectionId>) {
    connection.empty_polls = 0;
    if !connection.is_hot && !connection.is_reading_stopped() {
        connection.is_hot = true;
        hot.push(connection.id);
    }
}

fn mark_dirty(connection: &mut Connection, dirty: &mut Vec<ConnectionId>) {
    if !connection.is_dirty {
        connection.is_dirty = true;
        dirty.push(connection.id);
    }
}

impl TransportGroup for TcpGroup {
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
        self.close_with(core, connection, reason);
    }

    fn close_all(&mut self, core: &mut Core, reason: CloseReason) {
        for id in self.slab.ids() {
            self.close_with(core, id, reason);
        }
    }

    fn close_after_flush(&mut self, connection: ConnectionId, reason: CloseReason) {
        if let Some(connection) = self.slab.get_mut(connection) {
            connection.close_when_sent = Some(reason);
            mark_dirty(connection, &mut self.dirty);
        }
    }

    fn connection_count(&self) -> usize {
        self.slab.len()
    }

    fn next_deadline(&self) -> Option<Instant> {
        [
            self.ic_req.next(),
            self.half_open.next(),
            self.ending.next(),
            self.progress.next(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.0.as_fd())
    }
}
