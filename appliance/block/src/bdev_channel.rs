//! [`BdevChannel`]: one thread's way through a bdev to its device.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::BlockError;
use crate::bdev::Bdev;
use crate::device::{Channel, ChannelContext, Geometry};
use crate::gate::GateKey;
use crate::io::{Completion, Io, IoError, Lba, Op, OpKind, OpSet, Submit};
use crate::slab::Slab;
use crate::split::{Parent, Split};
use crate::stats::ChannelStats;
use crate::view::Parts;

/// Parts of one split I/O that are with the device at a time.
const SPLIT_WINDOW: u32 = 16;
/// Rounds of one poll in which completions start further parts.
const POLL_ROUNDS_MAX: u32 = 4;

/// A channel to a [`Bdev`]: checks, splits, counts and limits I/O, then hands it to the device.
///
/// Same calls as [`Channel`], and like it bound to its thread. At most `queue_depth` I/Os at a time
/// (see [`ChannelContext`]); one more is answered [`IoError::Busy`].
///
/// Close a channel only once nothing is in flight: what is, is lost, though its memory stays
/// valid, and a compare-and-write of another thread no longer waits for it.
pub struct BdevChannel {
    bdev: Arc<Bdev>,
    leaf: Box<dyn Channel>,
    stats: Arc<ChannelStats>,
    gate: GateKey,
    uses_gate: bool,
    supports: OpSet,
    lends: bool,
    split: Split,
    block_shift: u32,
    queue_depth: usize,
    /// I/Os that were answered `Pending` and have not come out of `poll`.
    in_flight: usize,
    /// Parts of split I/Os that are with the device.
    parts_in_flight: usize,
    slots: Slab<Slot>,
    parents: Slab<Parent>,
    /// Split I/Os that have no part with the device, for want of room.
    parked: VecDeque<usize>,
    /// I/Os that wait for a limit, first come first served.
    qos_waiting: VecDeque<Waiting>,
    qos_retry_at: Option<Instant>,
    /// Writes that met a closed gate.
    gate_waiting: VecDeque<Waiting>,
    /// Compare-and-writes; the first one has, or wants, the gate.
    caw_waiting: VecDeque<Waiting>,
    caw: Option<Caw>,
    ready: Vec<Completion>,
    scratch: Vec<Completion>,
    /// The device was given I/O since it was last polled, at this time.
    dirty: Option<Instant>,
    is_counted: bool,
}

/// An I/O that is with the device.
#[derive(Debug)]
struct Slot {
    tag: u64,
    started: Instant,
    part: Part,
    entered_gate: bool,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Whole,
    OfSplit { parent: usize, first_block: u64 },
    OfCompareAndWrite,
}

/// An I/O that is not yet with the device.
#[derive(Debug)]
struct Waiting {
    io: Io,
    started: Instant,
    /// Index of the split I/O it is part of.
    part: Part,
}

/// The compare-and-write that has the gate.
#[derive(Debug)]
struct Caw {
    parts: Parts,
    io: Io,
    started: Instant,
}

impl BdevChannel {
    /// `is_counted`: the bdev is not deleted while the channel is open.
    pub(crate) fn open(
        bdev: &Arc<Bdev>,
        ctx: &ChannelContext,
        is_counted: bool,
    ) -> Result<Self, BlockError> {
        // Twice the depth: one share for whole I/Os, one for parts.
        let leaf_ctx = ctx
            .clone()
            .with_queue_depth(ctx.queue_depth.saturating_mul(2));
        let leaf = bdev.device().open_channel(&leaf_ctx)?;
        let device = bdev.device().geometry();
        let geometry = bdev.geometry();
        Ok(Self {
            lends: leaf.lends(),
            leaf,
            stats: bdev.stats.open_channel(&ctx.thread),
            gate: GateKey::new(&bdev.gate, ctx.waker.clone()),
            uses_gate: Bdev::emulates_compare_and_write(&device),
            supports: geometry.supports,
            split: Split::new(&geometry),
            block_shift: geometry.block_size.trailing_zeros(),
            queue_depth: ctx.queue_depth as usize,
            in_flight: 0,
            parts_in_flight: 0,
            slots: Slab::new(),
            parents: Slab::new(),
            parked: VecDeque::new(),
            qos_waiting: VecDeque::new(),
            qos_retry_at: None,
            gate_waiting: VecDeque::new(),
            caw_waiting: VecDeque::new(),
            caw: None,
            ready: Vec::new(),
            scratch: Vec::new(),
            dirty: None,
            is_counted,
            bdev: Arc::clone(bdev),
        })
    }

    /// The bdev.
    #[must_use]
    pub fn bdev(&self) -> &Arc<Bdev> {
        &self.bdev
    }

    /// What the device offers now.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.bdev.geometry()
    }

    /// See [`Channel::submit`].
    #[inline]
    pub fn submit(&mut self, io: Io, now: Instant) -> Submit {
        let is_split = self.split.is_needed(&io);
        if let Err(error) = self.check(&io, is_split) {
            self.stats.record(io.op.kind(), 0, 0, true);
            return Submit::Done(io.complete(Err(error)));
        }
        let is_plain = !is_split
            && !matches!(io.op, Op::CompareAndWrite { .. })
            && !self.bdev.qos.is_active()
            && self.qos_waiting.is_empty()
            && self.in_flight < self.queue_depth;
        if !is_plain {
            return self.submit_other(io, now);
        }
        let enters_gate = self.uses_gate && io.op.modifies();
        if enters_gate && !self.gate.enter() {
            self.gate_waiting.push_back(Waiting {
                io,
                started: now,
                part: Part::Whole,
            });
            return self.pending();
        }
        self.submit_plain(io, enters_gate, now)
    }

    /// The short way: checked, neither limited nor split nor held back, straight to the device.
    ///
    /// Not inlined and with one way out: the answer is copied less often, and copying what was just
    /// written in other widths stalls.
    #[inline(never)]
    fn submit_plain(&mut self, mut io: Io, entered_gate: bool, now: Instant) -> Submit {
        let tag = io.tag;
        io.tag = self.slots.next_index() as u64;
        let mut submit = self.leaf.submit(io, now);
        match &mut submit {
            Submit::Done(completion) => {
                if entered_gate {
                    self.gate.leave();
                }
                completion.io.tag = tag;
                let io = &completion.io;
                // As `account` would, which looks at more.
                if completion.result.is_ok() && io.op.has_range() {
                    let bytes = u64::from(io.blocks) << self.block_shift;
                    self.stats.record(io.op.kind(), bytes, 0, false);
                } else {
                    self.account(completion, now, now);
                }
            }
            Submit::Pending => {
                self.slots.insert(Slot {
                    tag,
                    started: now,
                    part: Part::Whole,
                    entered_gate,
                });
                self.dirty = Some(now);
                self.in_flight += 1;
                self.stats.set_in_flight(self.in_flight);
            }
        }
        submit
    }

    #[inline(never)]
    fn submit_other(&mut self, io: Io, now: Instant) -> Submit {
        if self.in_flight >= self.queue_depth {
            return Submit::Done(io.complete(Err(IoError::Busy)));
        }
        if (self.bdev.qos.is_active() || !self.qos_waiting.is_empty())
            && io.op.has_range()
            && (!self.qos_waiting.is_empty() || !self.admit(&io, now, now))
        {
            self.qos_waiting.push_back(Waiting {
                io,
                started: now,
                part: Part::Whole,
            });
            return self.pending();
        }
        match self.start(io, now, now) {
            Some(completion) => Submit::Done(completion),
            None => self.pending(),
        }
    }

    /// See [`Channel::poll`].
    #[inline]
    pub fn poll(&mut self, now: Instant, done: &mut Vec<Completion>) -> usize {
        if self.in_flight == 0 && self.leaf.is_quiet() {
            return 0;
        }
        self.poll_busy(now, done)
    }

    /// See [`Channel::next_deadline`].
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.in_flight == 0 {
            return None;
        }
        // Something was given to the device after its last poll: poll at once.
        let at_once = self.dirty;
        let qos = if self.qos_waiting.is_empty() {
            None
        } else {
            self.qos_retry_at
        };
        [at_once, qos, self.leaf.next_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// See [`Channel::wake_fd`].
    #[must_use]
    pub fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.leaf.wake_fd()
    }

    /// See [`Channel::is_quiet`].
    #[must_use]
    #[inline]
    pub fn is_quiet(&self) -> bool {
        self.leaf.is_quiet()
    }

    /// See [`Channel::lends`].
    #[must_use]
    #[inline]
    pub fn lends(&self) -> bool {
        self.lends
    }

    /// Whether the device lends memory for a read of these blocks: such a read needs no payload.
    #[must_use]
    #[inline]
    pub fn lends_range(&self, lba: u64, blocks: u32) -> bool {
        self.lends
            && (!self.split.has_limits()
                || self.split.first_piece(Op::Read, lba, blocks.into()) == blocks)
    }

    /// See [`Channel::in_flight`].
    #[must_use]
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// See [`Channel::abort`]. A split I/O of which a part is with the device runs to its end.
    pub fn abort(&mut self, tag: u64) -> bool {
        if let Some(waiting) = self.take_waiting(tag) {
            // A deadline in the past: the completion is there.
            self.dirty = Some(waiting.started);
            self.end_early(waiting, IoError::Aborted);
            if self.caw.is_none() && self.caw_waiting.is_empty() {
                self.gate.give_up();
            }
            return true;
        }
        let is_it = |slot: &Slot| slot.tag == tag && matches!(slot.part, Part::Whole);
        let found = self.slots.iter().find(|(_, slot)| is_it(slot));
        let Some((index, started)) = found.map(|(index, slot)| (index, slot.started)) else {
            return false;
        };
        let aborted = self.leaf.abort(index as u64);
        if aborted {
            self.dirty = Some(started);
        }
        aborted
    }

    /// Takes a whole I/O out of the queue that it waits in.
    fn take_waiting(&mut self, tag: u64) -> Option<Waiting> {
        let queues = [
            &mut self.qos_waiting,
            &mut self.gate_waiting,
            &mut self.caw_waiting,
        ];
        queues.into_iter().find_map(|queue| {
            let index = queue
                .iter()
                .position(|waiting| waiting.io.tag == tag && matches!(waiting.part, Part::Whole))?;
            queue.remove(index)
        })
    }

    // ---- submission ----------------------------------------------------------------------

    /// The one place that decides whether an I/O is possible at all.
    #[inline]
    fn check(&self, io: &Io, is_split: bool) -> Result<(), IoError> {
        if self.bdev.removed.load(Ordering::Relaxed) {
            return Err(IoError::Removed);
        }
        let kind = io.op.kind();
        if !self.supports.contains(kind) {
            return Err(IoError::Unsupported);
        }
        if io.op.modifies() && self.bdev.write_protected.load(Ordering::Relaxed) {
            return Err(IoError::WriteProtected);
        }
        if !io.op.has_range() {
            return Ok(());
        }
        if io.blocks == 0 {
            return Err(IoError::InvalidField);
        }
        let block_count = self.bdev.block_count.load(Ordering::Relaxed);
        // No sum that could overflow: the room after `lba` is compared with the length.
        if io.lba.0 >= block_count || u64::from(io.blocks) > block_count - io.lba.0 {
            return Err(IoError::OutOfRange);
        }
        let bytes = u64::from(io.blocks) << self.block_shift;
        let expected = match kind {
            OpKind::Read if io.payload.is_empty() => {
                return if self.lends && !is_split {
                    Ok(())
                } else {
                    Err(IoError::InvalidField)
                };
            }
            OpKind::Read if matches!(io.payload, dma::Payload::Lent(_)) => {
                return Err(IoError::InvalidField);
            }
            OpKind::Read | OpKind::Write | OpKind::Compare => bytes,
            OpKind::CompareAndWrite => bytes * 2,
            _ => 0,
        };
        if io.payload.len() as u64 != expected {
            return Err(IoError::InvalidField);
        }
        if kind == OpKind::CompareAndWrite && is_split {
            return Err(IoError::InvalidField);
        }
        Ok(())
    }

    fn pending(&mut self) -> Submit {
        self.in_flight += 1;
        self.stats.set_in_flight(self.in_flight);
        Submit::Pending
    }

    /// Asks the limits.
    fn admit(&mut self, io: &Io, arrival: Instant, now: Instant) -> bool {
        let bytes = u64::from(io.blocks) << self.block_shift;
        match self.bdev.qos.admit(io.op.kind(), bytes, arrival, now) {
            Ok(()) => true,
            Err(retry_at) => {
                self.qos_retry_at = Some(retry_at);
                false
            }
        }
    }

    /// Past the limits: on to the device. `None`: it will end later.
    #[inline]
    fn start(&mut self, io: Io, started: Instant, now: Instant) -> Option<Completion> {
        if self.uses_gate && io.op.kind() == OpKind::CompareAndWrite {
            self.caw_waiting.push_back(Waiting {
                io,
                started,
                part: Part::Whole,
            });
            self.dirty = Some(now);
            return None;
        }
        if self.split.is_needed(&io) {
            return self.start_split(io, started, now);
        }
        let completion = self.give(
            Waiting {
                io,
                started,
                part: Part::Whole,
            },
            now,
        )?;
        self.account(&completion, started, now);
        Some(completion)
    }

    /// Hands an I/O to the device. Returns its completion, not yet counted, if that is there.
    #[inline]
    fn give(&mut self, waiting: Waiting, now: Instant) -> Option<Completion> {
        let Waiting {
            mut io,
            started,
            part,
        } = waiting;
        let tag = io.tag;
        let behind_gate = matches!(part, Part::OfCompareAndWrite);
        let entered_gate = self.uses_gate && io.op.modifies() && !behind_gate;
        if entered_gate && !self.gate.enter() {
            self.gate_waiting.push_back(Waiting { io, started, part });
            return None;
        }
        io.tag = self.slots.next_index() as u64;
        match self.leaf.submit(io, now) {
            Submit::Done(mut completion) => {
                if entered_gate {
                    self.gate.leave();
                }
                completion.io.tag = tag;
                Some(completion)
            }
            Submit::Pending => {
                self.slots.insert(Slot {
                    tag,
                    started,
                    part,
                    entered_gate,
                });
                self.dirty = Some(now);
                None
            }
        }
    }

    /// Counts an ended I/O.
    #[inline]
    fn account(&self, completion: &Completion, started: Instant, now: Instant) {
        let io = &completion.io;
        let (bytes, failed) = match completion.result {
            Ok(()) if io.op.has_range() => (u64::from(io.blocks) << self.block_shift, false),
            Ok(()) | Err(IoError::CompareMismatch { .. }) => (0, false),
            Err(_) => (0, true),
        };
        let latency_ns = if started == now {
            0
        } else {
            now.saturating_duration_since(started).as_nanos() as u64
        };
        self.stats.record(io.op.kind(), bytes, latency_ns, failed);
    }

    // ---- polling -------------------------------------------------------------------------

    fn poll_busy(&mut self, now: Instant, done: &mut Vec<Completion>) -> usize {
        let before = done.len();
        if self.bdev.removed.load(Ordering::Relaxed) {
            self.end_all_waiting();
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        for _ in 0..POLL_ROUNDS_MAX {
            self.serve_waiting(now);
            self.dirty = None;
            self.leaf.poll(now, &mut scratch);
            for completion in scratch.drain(..) {
                self.completed(completion, now);
            }
            if self.dirty.is_none() {
                break;
            }
        }
        self.scratch = scratch;
        let draining = self.caw.is_none() && self.gate.has_closed();
        if draining || !self.parked.is_empty() {
            self.dirty = Some(now);
        }
        done.append(&mut self.ready);
        let count = done.len() - before;
        self.in_flight -= count;
        if count > 0 {
            self.stats.set_in_flight(self.in_flight);
        }
        count
    }

    /// Takes an ended I/O from the device.
    fn completed(&mut self, mut completion: Completion, now: Instant) {
        let slot = usize::try_from(completion.io.tag)
            .ok()
            .and_then(|tag| self.slots.remove(tag));
        let Some(slot) = slot else {
            debug_assert!(false, "the device completed an I/O that it does not have");
            return;
        };
        completion.io.tag = slot.tag;
        if slot.entered_gate {
            self.gate.leave();
        }
        self.part_ended(completion, slot.part, slot.started, now);
    }

    fn part_ended(&mut self, completion: Completion, part: Part, started: Instant, now: Instant) {
        match part {
            Part::Whole => {
                self.account(&completion, started, now);
                self.ready.push(completion);
            }
            Part::OfSplit {
                parent,
                first_block,
            } => {
                self.split_part_ended(parent, first_block, completion);
                if let Some(completion) = self.go_on_with_split(parent, now) {
                    self.ready.push(completion);
                }
            }
            Part::OfCompareAndWrite => self.caw_part_ended(completion, now),
        }
    }

    /// Starts whatever can go now: limited I/O, held-back writes, compare-and-write, split I/O.
    fn serve_waiting(&mut self, now: Instant) {
        self.qos_retry_at = None;
        while let Some(waiting) = self.qos_waiting.pop_front() {
            if !self.admit(&waiting.io, waiting.started, now) {
                self.qos_waiting.push_front(waiting);
                break;
            }
            if let Some(completion) = self.start(waiting.io, waiting.started, now) {
                self.ready.push(completion);
            }
        }
        if !self.gate_waiting.is_empty() {
            self.serve_gate_waiting(now);
        }
        if self.caw.is_none() && !self.caw_waiting.is_empty() && self.gate.try_close() {
            self.start_caw(now);
        }
        for _ in 0..self.parked.len() {
            let Some(parent) = self.parked.pop_front() else {
                break;
            };
            if let Some(parent) = self.parents.get_mut(parent) {
                parent.parked = false;
            }
            if let Some(completion) = self.go_on_with_split(parent, now) {
                self.ready.push(completion);
            }
        }
    }

    fn serve_gate_waiting(&mut self, now: Instant) {
        for _ in 0..self.gate_waiting.len() {
            let Some(waiting) = self.gate_waiting.pop_front() else {
                break;
            };
            let (part, started) = (waiting.part, waiting.started);
            if let Some(completion) = self.give(waiting, now) {
                self.part_ended(completion, part, started, now);
            }
            // Still closed: `give` has put it back at the end. Its order among the others does not
            // matter, as NVMe gives none.
        }
        if self.gate_waiting.is_empty() {
            self.gate.caught_up();
        }
    }

    fn end_all_waiting(&mut self) {
        while let Some(waiting) = self.qos_waiting.pop_front() {
            self.end_early(waiting, IoError::Removed);
        }
        while let Some(waiting) = self.caw_waiting.pop_front() {
            self.end_early(waiting, IoError::Removed);
        }
        if self.caw.is_none() {
            self.gate.give_up();
        }
    }

    /// Ends an I/O that never reached the device.
    fn end_early(&mut self, waiting: Waiting, error: IoError) {
        self.stats.record(waiting.io.op.kind(), 0, 0, true);
        self.ready.push(waiting.io.complete(Err(error)));
    }

    // ---- split I/O -----------------------------------------------------------------------

    fn start_split(&mut self, io: Io, started: Instant, now: Instant) -> Option<Completion> {
        let parent = Parent::new(io, started);
        if parent.io().op == Op::Read && !parent.parts_are_writable() {
            let io = parent.finish().io;
            let completion = io.complete(Err(IoError::InvalidField));
            self.account(&completion, started, now);
            return Some(completion);
        }
        let parent = self.parents.insert(parent);
        self.go_on_with_split(parent, now)
    }

    /// Gives the device further parts. Returns the completion of the whole if that was the end.
    ///
    /// A device that answers at once could keep the thread for as long as the I/O is large, so after
    /// some parts the rest waits for the next round.
    fn go_on_with_split(&mut self, index: usize, now: Instant) -> Option<Completion> {
        let mut given = 0;
        loop {
            let room = self.parts_in_flight < self.queue_depth;
            let split = self.split;
            let block_shift = self.block_shift;
            let parent = self.parents.get_mut(index)?;
            if parent.all_given() {
                break;
            }
            if parent.parts_out >= SPLIT_WINDOW {
                return None;
            }
            if !room || given == SPLIT_WINDOW {
                if parent.parts_out == 0 && !parent.parked {
                    parent.parked = true;
                    self.parked.push_back(index);
                    self.dirty = Some(now);
                }
                return None;
            }
            let started = parent.started;
            let (io, first_block) = parent.next_part(&split, block_shift);
            let part = Part::OfSplit {
                parent: index,
                first_block,
            };
            self.parts_in_flight += 1;
            given += 1;
            if let Some(completion) = self.give(Waiting { io, started, part }, now) {
                self.split_part_ended(index, first_block, completion);
            }
        }
        if self.parents.get_mut(index)?.parts_out > 0 {
            return None;
        }
        let parent = self.parents.remove(index)?;
        let started = parent.started;
        let completion = parent.finish();
        self.account(&completion, started, now);
        Some(completion)
    }

    fn split_part_ended(&mut self, parent: usize, first_block: u64, completion: Completion) {
        self.parts_in_flight -= 1;
        let block_shift = self.block_shift;
        if let Some(parent) = self.parents.get_mut(parent) {
            parent.part_ended(first_block, block_shift, completion.result);
        }
        // The part's view of the payload goes here, before the whole is put together.
        drop(completion);
    }

    // ---- compare and write ---------------------------------------------------------------

    /// The gate is closed: compare.
    fn start_caw(&mut self, now: Instant) {
        let Some(Waiting {
            mut io, started, ..
        }) = self.caw_waiting.pop_front()
        else {
            return;
        };
        let mut parts = Parts::new(io.payload.take());
        let payload = parts.take((io.blocks as usize) << self.block_shift);
        let compare = Io::with_payload(Op::Compare, io.lba.0, io.blocks, payload, 0);
        self.caw = Some(Caw { parts, io, started });
        let waiting = Waiting {
            io: compare,
            started,
            part: Part::OfCompareAndWrite,
        };
        if let Some(completion) = self.give(waiting, now) {
            self.caw_part_ended(completion, now);
        }
    }

    /// Compare or write has ended: write, or end the whole and open the gate.
    fn caw_part_ended(&mut self, completion: Completion, now: Instant) {
        let Completion { io: part, result } = completion;
        let was_compare = part.op == Op::Compare;
        drop(part);
        let Some(mut caw) = self.caw.take() else {
            return;
        };
        if was_compare && result.is_ok() {
            let payload = caw.parts.take((caw.io.blocks as usize) << self.block_shift);
            let op = Op::Write {
                fua: caw.io.op.fua(),
            };
            let write = Io::with_payload(op, caw.io.lba.0, caw.io.blocks, payload, 0);
            let started = caw.started;
            self.caw = Some(caw);
            let waiting = Waiting {
                io: write,
                started,
                part: Part::OfCompareAndWrite,
            };
            if let Some(completion) = self.give(waiting, now) {
                self.caw_part_ended(completion, now);
            }
            return;
        }
        self.gate.open();
        caw.io.payload = caw.parts.finish();
        let completion = caw.io.complete(result);
        self.account(&completion, caw.started, now);
        self.ready.push(completion);
        // The next compare-and-write tries for the gate in the next round.
        if !self.caw_waiting.is_empty() {
            self.dirty = Some(now);
        }
    }
}

impl Drop for BdevChannel {
    fn drop(&mut self) {
        self.bdev.stats.close_channel(&self.stats);
        if self.is_counted {
            self.bdev.channel_closed();
        }
    }
}

impl fmt::Debug for BdevChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BdevChannel")
            .field("bdev", &self.bdev.name())
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

/// An LBA moved on by a number of blocks, within a range that was checked.
pub(crate) fn advance(lba: Lba, blocks: u64) -> Lba {
    Lba(lba.0 + blocks)
}
