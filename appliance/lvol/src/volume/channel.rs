//! [`VolumeChannel`]: one thread's way to a volume.
//!
//! An I/O whose cluster is written goes to the device below as it is: a look at the piece and no more.
//! All else is a [`Flight`] with a state. One that cannot go on leaves its epoch, waits, and begins
//! again from the start, so that nothing it waits for can wait for it.

use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::Instant;

use block::{
    BdevChannel, BlockError, Channel, ChannelContext, Completion, Io, IoError, Op, Submit,
};
use dma::{ChannelOptions, IobufChannel, Lessor, Payload};

use super::cache::ChainCache;
use super::external::ExternalSide;
use super::flight::{Flight, Place, State, parse_tag};
use super::in_place::hold;
use super::log::{LogSide, is_log_tag};
use crate::map::{Cluster, EpochChannel, PIECE_SLOTS};
use crate::pool::{Chain, LOG_TICKET, Mailbox, Reply, Request, Shared, VolumeShared};

/// One thread's way to a volume.
pub(super) struct VolumeChannel {
    pub(super) shared: Arc<Shared>,
    pub(super) volume: Arc<VolumeShared>,
    pub(super) base: BdevChannel,
    pub(super) epoch: EpochChannel,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) buffers: IobufChannel,
    /// [`Shared::chains`] and [`VolumeShared::chains`] that `cache` is of.
    seen: (u64, u64),
    cache: ChainCache,
    pub(super) flights: Vec<Option<Flight>>,
    vacant: Vec<usize>,
    /// Flights in states that no completion of the device below ends.
    waiting: Vec<usize>,
    queue_depth: usize,
    /// First block of [`Cluster::LOST`].
    lost_block: u64,
    /// This channel's way to the log of first writes, if the pool has one.
    pub(super) log: Option<LogSide>,
    /// Clusters for first writes.
    pub(super) clusters: Vec<Cluster>,
    clusters_asked: bool,
    asked_pieces: Vec<u64>,
    done: Vec<Completion>,
    scratch: Vec<Completion>,
    replies: Vec<Reply>,
    /// Of the last call; none before the first.
    pub(super) now: Option<Instant>,
    /// Devices outside the pool that the volume is, or was, read from: rarely more than one.
    pub(super) externals: Vec<ExternalSide>,
    /// Made with the first read of memory that is lent.
    pub(super) lessor: Option<Rc<Lessor>>,
    /// To open channels to them.
    pub(super) context: ChannelContext,
}

/// What became of an attempt.
pub(super) enum Attempt {
    /// Ended.
    Done(Result<(), IoError>),
    /// Goes on by completions of the device below, or by an answer of the worker.
    Going(State),
}

impl VolumeChannel {
    pub(super) fn open(
        shared: &Arc<Shared>,
        volume: &Arc<VolumeShared>,
        ctx: &ChannelContext,
    ) -> Result<Self, BlockError> {
        let base = shared.base.open(ctx)?;
        let pool = ctx.pool.as_ref().unwrap_or(&shared.buffers);
        let options = ChannelOptions {
            small_cache: 0,
            large_cache: 0,
            waker: Waker::noop().clone(),
        };
        let buffers = pool
            .channel("lvol", options)
            .map_err(|source| BlockError::Buffers {
                kind: "lvol",
                source,
            })?;
        let seen = {
            let _still = shared.moving.lock();
            (
                shared.chains.load(Ordering::SeqCst),
                volume.chains.load(Ordering::SeqCst),
            )
        };
        volume.channels.fetch_add(1, Ordering::SeqCst);
        Ok(Self {
            base,
            epoch: shared.epoch.register(),
            mailbox: Mailbox::new(ctx.waker.clone()),
            buffers,
            seen,
            cache: ChainCache::new(),
            flights: Vec::new(),
            vacant: Vec::new(),
            waiting: Vec::new(),
            queue_depth: ctx.queue_depth as usize,
            lost_block: Cluster::LOST.get() * shared.granularity.cluster_size()
                / u64::from(shared.block_size),
            log: shared.log().map(LogSide::open),
            clusters: Vec::new(),
            clusters_asked: false,
            asked_pieces: Vec::new(),
            done: Vec::new(),
            scratch: Vec::new(),
            replies: Vec::new(),
            now: None,
            externals: Vec::new(),
            lessor: None,
            context: ctx.clone(),
            shared: Arc::clone(shared),
            volume: Arc::clone(volume),
        })
    }

    /// Where an I/O lies. [`BdevChannel`] has split it at the ends of clusters.
    #[inline]
    pub(super) fn place(&self, io: &Io) -> Place {
        let block = u64::from(self.shared.block_size);
        let (cluster, offset) = self.shared.granularity.split(io.lba.0 * block);
        let len = u64::from(io.blocks) * block;
        debug_assert!(
            offset + len <= self.shared.granularity.cluster_size(),
            "an i/o across clusters: {io:?}"
        );
        Place {
            piece: cluster / PIECE_SLOTS as u64,
            slot: (cluster % PIECE_SLOTS as u64) as usize,
            bytes: offset..offset + len,
        }
    }

    /// The chain of a piece, if the channel has it. To be asked after entering the epoch.
    #[inline]
    pub(super) fn chain(&mut self, piece: u64) -> Option<&Arc<Chain>> {
        let all = self.shared.chains.load(Ordering::SeqCst);
        if all != self.seen.0 {
            let _still = self.shared.moving.lock();
            let chains = self.volume.chains.load(Ordering::SeqCst);
            let all = self.shared.chains.load(Ordering::SeqCst);
            if chains != self.seen.1 {
                self.cache.clear();
            }
            self.seen = (all, chains);
        }
        self.cache.get(piece)
    }

    /// Ends an I/O's part in its epoch.
    #[inline]
    pub(super) fn leave(&self, token: u8) {
        if self.epoch.leave(token) {
            self.shared.wake_worker();
        }
    }

    /// Tries an I/O from the start.
    fn attempt(&mut self, index: usize, flight: &mut Flight) -> Attempt {
        if self.shared.stopped.load(Ordering::Acquire) {
            return Attempt::Done(Err(IoError::Removed));
        }
        if self.volume.faulted.load(Ordering::Acquire) {
            return Attempt::Done(Err(IoError::Internal));
        }
        if flight.io.op.modifies() && self.volume.read_only.load(Ordering::Relaxed) {
            return Attempt::Done(Err(IoError::WriteProtected));
        }
        match flight.io.op {
            Op::Read | Op::Compare | Op::Verify => self.attempt_read(index, flight),
            Op::Write { .. } => self.attempt_write(index, flight),
            Op::Unmap | Op::WriteZeroes { .. } => self.attempt_zero(index, flight),
            Op::Flush => self.attempt_flush(index),
            Op::Reset => Attempt::Done(Ok(())),
            Op::CompareAndWrite { .. } => Attempt::Done(Err(IoError::Unsupported)),
        }
    }

    /// Begins an I/O's part in an epoch, or ends the I/O.
    pub(super) fn enter(&self, io: &Io) -> Result<u8, Attempt> {
        self.enter_inside(io)
            .ok_or(Attempt::Done(Err(IoError::OutOfRange)))
    }

    /// Begins an I/O's part in an epoch. The volume may have shrunk since the I/O was checked: looked at
    /// after entering, so that a grace period after the new size leaves no I/O beyond it.
    #[inline]
    pub(super) fn enter_inside(&self, io: &Io) -> Option<u8> {
        let token = self.epoch.enter();
        let end = io.lba.0.saturating_add(u64::from(io.blocks));
        if end > self.volume.block_count.load(Ordering::SeqCst) {
            self.leave(token);
            return None;
        }
        Some(token)
    }

    /// Asks the worker for a chain, once.
    pub(super) fn need_piece(&mut self, piece: u64) -> Attempt {
        if !self.asked_pieces.contains(&piece) {
            self.asked_pieces.push(piece);
            self.shared.request(Request::Resolve {
                volume: Arc::clone(&self.volume),
                piece,
                mailbox: Arc::clone(&self.mailbox),
            });
        }
        Attempt::Going(State::Piece(piece))
    }

    /// Asks the worker for clusters, once.
    pub(super) fn need_clusters(&mut self) -> Attempt {
        if !self.clusters_asked {
            self.clusters_asked = true;
            self.shared.request(Request::Clusters {
                thick: self.volume.thick.load(Ordering::Relaxed),
                mailbox: Arc::clone(&self.mailbox),
            });
        }
        Attempt::Going(State::Clusters)
    }

    /// Has everything committed that has completed.
    pub(super) fn need_commit(&mut self, index: usize) -> Attempt {
        self.shared.request(Request::Commit {
            mailbox: Arc::clone(&self.mailbox),
            ticket: index as u64,
        });
        Attempt::Going(State::Committing)
    }

    fn attempt_flush(&mut self, index: usize) -> Attempt {
        if self.shared.is_uncommitted() {
            return self.need_commit(index);
        }
        // What completed is committed or was written in place: the device below has it all.
        let token = self.epoch.enter();
        let io = Io::new(Op::Flush, 0, 0, super::flight::tag(index, 0));
        self.submit_whole(io, token)
    }

    /// Gives all of an I/O to the device below.
    pub(super) fn submit_whole(&mut self, io: Io, token: u8) -> Attempt {
        match self.submit_to_base(io) {
            Submit::Pending => Attempt::Going(State::Flushing { token }),
            Submit::Done(completion) => {
                self.leave(token);
                Attempt::Done(completion.result)
            }
        }
    }

    /// Data that are lost are beyond every device: neither read nor written until they are zeroed.
    pub(super) fn submit_to_base(&mut self, io: Io) -> Submit {
        if io.lba.0 >= self.lost_block {
            let error = match io.op {
                Op::Write { .. } => IoError::MediaWrite,
                _ => IoError::MediaRead,
            };
            return Submit::Done(io.complete(Err(error)));
        }
        self.base.submit(
            io,
            self.now.expect("every way here begins with submit or poll"),
        )
    }

    /// Goes on with a flight that was taken out of its place.
    fn go(&mut self, index: usize, mut flight: Flight) {
        let attempt = self.attempt(index, &mut flight);
        self.settle(index, flight, attempt);
    }

    /// Puts a flight where its attempt left it.
    pub(super) fn settle(&mut self, index: usize, mut flight: Flight, attempt: Attempt) {
        match attempt {
            Attempt::Done(result) => {
                self.vacate(index);
                self.done.push(flight.io.complete(result));
            }
            Attempt::Going(state) => {
                if state.waits() {
                    self.waiting.push(index);
                }
                flight.state = state;
                self.flights[index] = Some(flight);
            }
        }
    }

    /// Is there a place for one more?
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        !self.vacant.is_empty() || self.flights.len() < self.queue_depth
    }

    /// The place of the next flight.
    #[inline]
    pub(super) fn next_index(&self) -> usize {
        self.vacant.last().copied().unwrap_or(self.flights.len())
    }

    /// Puts a flight there.
    pub(super) fn put_next(&mut self, flight: Flight) {
        match self.vacant.pop() {
            Some(index) => self.flights[index] = Some(flight),
            None => self.flights.push(Some(flight)),
        }
    }

    fn vacate(&mut self, index: usize) {
        self.flights[index] = None;
        self.vacant.push(index);
    }

    fn reserve(&mut self) -> Option<usize> {
        if let Some(index) = self.vacant.pop() {
            return Some(index);
        }
        if self.flights.len() >= self.queue_depth {
            return None;
        }
        self.flights.push(None);
        Some(self.flights.len() - 1)
    }

    /// What the device below has ended.
    fn take_completions(&mut self, now: Instant) {
        let mut scratch = std::mem::take(&mut self.scratch);
        self.base.poll(now, &mut scratch);
        if !self.externals.is_empty() {
            self.poll_externals(now, &mut scratch);
        }
        for completion in scratch.drain(..) {
            if is_log_tag(completion.io.tag) {
                self.log_write_ended(completion);
                continue;
            }
            let (index, part) = parse_tag(completion.io.tag);
            let Some(flight) = self.flights.get_mut(index).and_then(Option::take) else {
                debug_assert!(false, "a completion of no i/o: {completion:?}");
                continue;
            };
            let (flight, attempt) = self.part_ended(index, flight, part, completion);
            self.settle(index, flight, attempt);
        }
        self.scratch = scratch;
    }

    fn part_ended(
        &mut self,
        index: usize,
        mut flight: Flight,
        part: usize,
        completion: Completion,
    ) -> (Flight, Attempt) {
        let state = std::mem::replace(&mut flight.state, State::Retry);
        let attempt = match state {
            State::Flushing { token } => {
                self.leave(token);
                Attempt::Done(completion.result)
            }
            State::Below {
                token,
                chain,
                lease,
                ..
            } => {
                flight.io.payload = completion.io.payload;
                hold(&mut flight.io.payload, lease);
                self.leave(token);
                if flight.edges.is_some() && completion.result.is_ok() {
                    self.next_edge(index, &mut flight)
                } else {
                    self.whole_ended(index, &flight, chain.as_deref(), completion.result)
                }
            }
            State::Reading(reading) => self.read_part_ended(&mut flight, reading, part, completion),
            State::Writing(writing) => {
                self.write_part_ended(index, &mut flight, writing, part, completion)
            }
            state => {
                debug_assert!(false, "a completion in state {state:?}");
                Attempt::Going(state)
            }
        };
        (flight, attempt)
    }

    /// A whole read or write has ended below.
    pub(super) fn whole_ended(
        &mut self,
        index: usize,
        flight: &Flight,
        chain: Option<&Chain>,
        result: Result<(), IoError>,
    ) -> Attempt {
        // A write in place is durable by FUA below only if the map that names the place is. Of a write of
        // zeroes there may be more to come.
        if let Some(chain) = chain
            && result.is_ok()
            && flight.edges.is_none()
            && (chain.own.is_dirty() || self.shared.committing.load(Ordering::SeqCst))
            && !self.log_survives_power_loss()
        {
            return self.need_commit(index);
        }
        Attempt::Done(result)
    }

    /// What the worker has answered.
    fn take_replies(&mut self) {
        let mut replies = std::mem::take(&mut self.replies);
        self.mailbox.take(&mut replies);
        for reply in replies.drain(..) {
            match reply {
                Reply::Resolved {
                    piece,
                    chains,
                    chain,
                } => self.resolved(piece, chains, chain),
                Reply::Clusters(clusters) => self.clusters_came(clusters),
                Reply::External { uuid, device } => self.external_came(uuid, device),
                Reply::ExternalGone { uuid } => self.external_gone(uuid),
                Reply::Committed { ticket, result } if ticket == LOG_TICKET => {
                    self.log_has_room(result);
                }
                Reply::Committed { ticket, result } => {
                    self.end_waiting(|index, state| {
                        (index as u64 == ticket && matches!(state, State::Committing))
                            .then_some(result)
                    });
                }
            }
        }
        self.replies = replies;
    }

    fn resolved(&mut self, piece: u64, chains: u64, chain: Result<Arc<Chain>, IoError>) {
        self.asked_pieces.retain(|asked| *asked != piece);
        match chain {
            Err(error) => self.end_waiting(|_, state| {
                matches!(state, State::Piece(waits) if *waits == piece).then_some(Err(error))
            }),
            // An older one is looked up again by the attempt.
            Ok(chain) if chains == self.seen.1 => self.cache.put(chain),
            Ok(_) => {}
        }
    }

    fn clusters_came(&mut self, clusters: Result<Vec<Cluster>, IoError>) {
        self.clusters_asked = false;
        match clusters {
            Ok(clusters) => self.clusters.extend(clusters),
            Err(error) => {
                self.end_waiting(|_, state| matches!(state, State::Clusters).then_some(Err(error)));
            }
        }
    }

    /// Ends waiting flights for which `ends` has a result.
    pub(super) fn end_waiting(
        &mut self,
        ends: impl Fn(usize, &State) -> Option<Result<(), IoError>>,
    ) {
        let mut at = 0;
        while at < self.waiting.len() {
            let index = self.waiting[at];
            let result = self.flights[index]
                .as_ref()
                .and_then(|flight| ends(index, &flight.state));
            let Some(result) = result else {
                at += 1;
                continue;
            };
            self.waiting.swap_remove(at);
            if let Some(flight) = self.flights[index].take() {
                self.vacate(index);
                self.done.push(flight.io.complete(result));
            }
        }
    }

    /// Tries again what waits for something that may have come.
    fn retry(&mut self) {
        let stopped = self.shared.stopped.load(Ordering::Acquire);
        if stopped {
            self.end_waiting(|_, _| Some(Err(IoError::Removed)));
        }
        // In the order in which they came, and each once.
        for index in std::mem::take(&mut self.waiting) {
            let Some(flight) = self.flights[index].take() else {
                continue;
            };
            let still_waits = match flight.state {
                State::Committing => true,
                State::Piece(piece) => self.asked_pieces.contains(&piece),
                State::Clusters => self.clusters_asked && self.clusters.is_empty(),
                State::External(uuid) => self.asks_external(uuid),
                _ => false,
            };
            if still_waits {
                self.waiting.push(index);
                self.flights[index] = Some(flight);
            } else {
                self.go(index, flight);
            }
        }
    }
}

impl Channel for VolumeChannel {
    fn submit(&mut self, io: Io, now: Instant) -> Submit {
        self.now = Some(now);
        if let Some(found) = self.find_in_place(&io) {
            return self.submit_in_place(io, found, now);
        }
        let Some(index) = self.reserve() else {
            return Submit::Done(io.complete(Err(IoError::Busy)));
        };
        let mut flight = Flight::new(io);
        match self.attempt(index, &mut flight) {
            Attempt::Done(result) => {
                self.vacate(index);
                Submit::Done(flight.io.complete(result))
            }
            going @ Attempt::Going(_) => {
                self.settle(index, flight, going);
                Submit::Pending
            }
        }
    }

    fn poll(&mut self, now: Instant, done: &mut Vec<Completion>) -> usize {
        self.now = Some(now);
        self.take_completions(now);
        self.take_replies();
        if !self.waiting.is_empty() {
            self.retry();
        }
        self.write_log();
        let count = self.done.len();
        done.append(&mut self.done);
        count
    }

    fn next_deadline(&self) -> Option<Instant> {
        let retries = self.waiting.iter().any(|index| {
            matches!(
                self.flights[*index],
                Some(Flight {
                    state: State::Retry,
                    ..
                })
            )
        });
        let asks =
            retries || !self.done.is_empty() || self.externals_in_flight() || self.is_log_due();
        let retry = asks.then_some(self.now).flatten();
        [retry, self.base.next_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.base.wake_fd()
    }

    fn lends(&self) -> bool {
        self.base.lends()
    }

    fn abort(&mut self, tag: u64) -> bool {
        let waiting = self.waiting.iter().position(|index| {
            let flight = self.flights[*index].as_ref();
            // What waits for a commit has happened already.
            flight.is_some_and(|flight| {
                flight.io.tag == tag && !matches!(flight.state, State::Committing)
            })
        });
        if let Some(at) = waiting {
            let index = self.waiting.swap_remove(at);
            if let Some(flight) = self.flights[index].take() {
                self.vacate(index);
                self.done.push(flight.io.complete(Err(IoError::Aborted)));
                return true;
            }
        }
        let below = self.flights.iter().position(|flight| {
            let flight = flight.as_ref();
            flight.is_some_and(|flight| {
                flight.io.tag == tag && matches!(flight.state, State::Below { .. })
            })
        });
        below.is_some_and(|index| {
            let tag = super::flight::tag(index, 0);
            self.base.abort(tag) || self.abort_external(tag)
        })
    }

    fn in_flight(&self) -> usize {
        self.flights.len() - self.vacant.len() + self.done.len()
    }
}

impl Drop for VolumeChannel {
    /// The device may still write to clusters that writes in flight go to: whoever frees them, nobody gets
    /// them until the pool is opened again.
    fn drop(&mut self) {
        let mut pinned = Vec::new();
        self.abandon_log();
        for flight in std::mem::take(&mut self.flights).into_iter().flatten() {
            match flight.state {
                State::Below { written, .. } => pinned.extend(written),
                State::Writing(writing) => {
                    pinned.push(writing.cluster);
                    self.unlock(&writing.chain, writing.slot, writing.locked);
                }
                // A page that says so may still come. The next commit covers it, and the cluster is nobody
                // else's before.
                State::Logging(writing) => self.give_up_write(&writing),
                State::LoggingZero(zeroing) => self.give_up_zeroes(&zeroing),
                _ => {}
            }
        }
        let unused = std::mem::take(&mut self.clusters);
        if !unused.is_empty() || !pinned.is_empty() {
            let mut inbox = self.shared.inbox();
            inbox.pinned.extend(pinned);
            inbox.returned.extend(unused);
            drop(inbox);
            self.shared.wake_worker();
        }
        self.volume.channels.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Zeroes into a payload.
pub(super) fn fill_with_zeroes(payload: &mut Payload) -> Result<(), IoError> {
    match payload {
        Payload::Buf(buffer) => {
            let bytes = buffer.try_as_mut_slice().ok_or(IoError::InvalidField)?;
            bytes.fill(0);
            Ok(())
        }
        Payload::None => Ok(()),
        Payload::Lent(_) => Err(IoError::InvalidField),
    }
}
