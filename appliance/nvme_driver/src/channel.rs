//! A thread's way to a namespace: one queue pair.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use block::{Channel, ChannelContext, Completion, Io, IoError, Op, Submit};
use dma::{IobufPool, Payload, Region, RegionOptions};
use nvme_spec::{Cid, Cqe, DsmRange, Lba, Sqe, Status};

use crate::device::Interrupts;
use crate::namespace::{NamespaceFacts, Users};
use crate::orphans::{self, Left};
use crate::ring::Ring;
use crate::shared::{ControllerState, QueueShared, ResetReason, Shared, lock};
use crate::transfer;

/// CIDs hold a slot in these bits, and above them how often the slot was used.
const SLOT_BITS: u32 = 12;
const SLOT_MASK: u16 = (1 << SLOT_BITS) - 1;
/// Polls without a completion after which no interrupt is expected any more. A power of two.
const IDLE_POLLS: u32 = 64;
/// DEAC of Write Zeroes.
const DEAC: u32 = 1 << 25;

/// A command in flight.
struct Slot {
    io: Option<Io>,
    deadline: Option<Instant>,
    retries: u8,
    /// Tells a late completion of an earlier use from one of this use.
    use_count: u16,
    aborted: bool,
    bounce: Option<u16>,
}

/// What became of an attempt to start an I/O.
enum Start {
    Started,
    /// No bounce buffer is free.
    Wait(Io),
    Failed(Io, IoError),
}

pub(crate) struct NvmeChannel {
    shared: Arc<Shared>,
    facts: NamespaceFacts,
    block_shift: u32,
    users: Arc<Users>,
    /// Place of the queue in `shared.queues`.
    place: usize,
    /// The generation that the ring belongs to.
    generation: u32,
    /// `None` while the queue is out of use.
    ring: Option<Ring>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    waiting: VecDeque<(Io, u8)>,
    /// Ended outside of `poll`.
    ended: Vec<Completion>,
    /// Resets asked for, each with the generation that it is to end: they end when a later one is
    /// live.
    resets: Vec<(Io, u32)>,
    queue_depth: usize,
    next_check: Option<Instant>,
    reach: Reach,
    bounce: Bounce,
    /// Completions came whose interrupt may still come.
    interrupt_due: bool,
    /// Polls without a completion since the last one.
    idle_polls: u32,
}

/// Memory that the device can reach.
struct Reach {
    ranges: Vec<(usize, usize)>,
    pool: Option<Arc<IobufPool>>,
    last: usize,
    /// Regions of the pool that were tried. One that cannot be mapped is not tried again.
    tried: usize,
}

impl Reach {
    /// Whether the device reaches the range. Maps regions that the pool got since.
    #[inline]
    fn covers(&mut self, shared: &Shared, address: usize, len: usize) -> bool {
        let end = address + len;
        let holds = |range: &(usize, usize)| range.0 <= address && end <= range.1;
        if self.ranges.get(self.last).is_some_and(holds) {
            return true;
        }
        if let Some(index) = self.ranges.iter().position(holds) {
            self.last = index;
            return true;
        }
        self.map_new(shared) && self.ranges.iter().any(holds)
    }

    /// Whether a region was added.
    #[cold]
    fn map_new(&mut self, shared: &Shared) -> bool {
        let Some(pool) = &self.pool else {
            return false;
        };
        if pool.region_count() == self.tried {
            return false;
        }
        let known = self.ranges.len();
        let regions = pool.regions();
        for region in &regions[self.tried..] {
            if shared.device.mapper.map(region).is_ok() {
                self.ranges
                    .push((region.addr(), region.addr() + region.len()));
            }
        }
        self.tried = regions.len();
        self.ranges.len() > known
    }
}

/// Buffers for payloads that the device cannot reach. Made when the first is needed.
#[derive(Default)]
struct Bounce {
    region: Option<Arc<Region>>,
    free: Vec<u16>,
    each: usize,
}

impl Bounce {
    fn prepare(&mut self, shared: &Shared) -> Result<(), IoError> {
        if self.region.is_some() {
            return Ok(());
        }
        let count = shared.options.bounce_buffers;
        let region = Region::allocate(&RegionOptions {
            len: self.each * usize::from(count),
            prefault: true,
            ..RegionOptions::default()
        });
        let region = region.map_err(|_| IoError::Internal)?;
        let mapped = shared.device.mapper.map(&region);
        mapped.map_err(|_| IoError::Internal)?;
        self.region = Some(region);
        self.free = (0..count).collect();
        Ok(())
    }

    fn offset(&self, index: u16) -> usize {
        usize::from(index) * self.each
    }
}

impl NvmeChannel {
    /// Takes a free queue pair. The error says why there is none.
    pub(crate) fn open(
        shared: &Arc<Shared>,
        facts: NamespaceFacts,
        users: &Arc<Users>,
        ctx: &ChannelContext,
    ) -> Result<Self, String> {
        orphans::collect();
        let (place, generation, ring) = claim(shared)?;
        *lock(&shared.queues[place].waker) = Some(ctx.waker.clone());
        let depth = shared.layout.entries() - 1;
        let slots = (0..depth).map(|_| Slot {
            io: None,
            deadline: None,
            retries: 0,
            use_count: 0,
            aborted: false,
            bounce: None,
        });
        let geometry = &facts.geometry;
        let transfer = geometry.max_transfer_blocks as usize * geometry.block_size as usize;
        let mut reach = Reach {
            ranges: Vec::new(),
            pool: ctx.pool.clone(),
            last: 0,
            tried: 0,
        };
        reach.map_new(shared);
        let queue_depth = ctx.queue_depth as usize;
        Ok(Self {
            block_shift: geometry.block_size.trailing_zeros(),
            shared: Arc::clone(shared),
            facts,
            users: Arc::clone(users),
            place,
            generation,
            ring: Some(ring),
            slots: slots.collect(),
            free: (0..depth).rev().collect(),
            waiting: VecDeque::with_capacity(queue_depth),
            ended: Vec::new(),
            resets: Vec::new(),
            queue_depth,
            next_check: None,
            reach,
            bounce: Bounce {
                each: transfer.max(4096),
                ..Bounce::default()
            },
            interrupt_due: true,
            idle_polls: 0,
        })
    }

    fn queue(&self) -> &QueueShared {
        &self.shared.queues[self.place]
    }

    fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The interrupts of the function with the vector of this queue, if it has one.
    fn interrupt(&self) -> Option<(&dyn Interrupts, u16)> {
        let interrupts = self.shared.device.interrupts.as_deref();
        let interrupts = interrupts.filter(|_| self.shared.options.interrupts)?;
        let vector = vector(interrupts.count(), self.queue().qid.0)?;
        Some((interrupts, vector))
    }

    /// What can be said of an I/O without the device.
    fn check(&self, io: &Io) -> Result<(), IoError> {
        let geometry = &self.facts.geometry;
        if self.users.is_gone() {
            return Err(IoError::Removed);
        }
        if !geometry.supports.contains(io.op.kind()) {
            return Err(IoError::Unsupported);
        }
        if !io.op.has_range() {
            return Ok(());
        }
        let (most, len) = match io.op {
            Op::Unmap | Op::WriteZeroes { .. } => (geometry.max_unmap_blocks, 0),
            Op::Verify => (geometry.max_verify_blocks, 0),
            _ => {
                let len = (io.blocks as usize) << self.block_shift;
                (geometry.max_transfer_blocks, len)
            }
        };
        if io.blocks == 0 || io.blocks > most || io.payload.len() != len {
            return Err(IoError::InvalidField);
        }
        if let (Op::Read, Payload::Buf(buf)) = (io.op, &io.payload)
            && !buf.is_exclusive()
        {
            return Err(IoError::InvalidField);
        }
        if matches!((io.op, &io.payload), (Op::Read, Payload::Lent(_))) {
            return Err(IoError::InvalidField);
        }
        Ok(())
    }

    /// Sends what waits, as far as there are slots.
    fn start_waiting(&mut self, now: Instant, done: &mut Vec<Completion>) {
        if !self.waiting.is_empty() && self.users.is_gone() {
            // What has its identifier now is another device, maybe with blocks of another size.
            let waiting = self.waiting.drain(..).map(|(io, _)| io);
            done.extend(waiting.map(|io| io.complete(Err(IoError::Removed))));
            return;
        }
        while !self.free.is_empty() {
            let Some((io, retries)) = self.waiting.pop_front() else {
                break;
            };
            match self.start(io, retries, now) {
                Start::Started => {}
                Start::Wait(io) => {
                    self.waiting.push_front((io, retries));
                    break;
                }
                Start::Failed(io, error) => done.push(io.complete(Err(error))),
            }
        }
    }

    /// Puts one I/O into the queue. A slot is free.
    #[inline]
    fn start(&mut self, io: Io, retries: u8, now: Instant) -> Start {
        let (Some(slot), Some(_)) = (self.free.last().copied(), &self.ring) else {
            return Start::Wait(io);
        };
        let use_count = self.slots[usize::from(slot)].use_count.wrapping_add(1);
        let cid = Cid(use_count << SLOT_BITS | slot);
        let (nsid, lba, blocks) = (self.facts.nsid, Lba(io.lba.0), io.blocks);
        let list = self.shared.layout.slot(self.queue().qid.0, slot);
        let mut bounce = None;
        let sqe = match io.op {
            Op::Read => Sqe::read(cid, nsid, lba, blocks),
            Op::Write { fua } => Sqe::write(cid, nsid, lba, blocks).with_fua(fua),
            Op::Compare => Sqe::compare(cid, nsid, lba, blocks),
            Op::Flush => Sqe::flush(cid, nsid),
            Op::Verify => Sqe::verify(cid, nsid, lba, blocks),
            Op::WriteZeroes { unmap, fua } => {
                let sqe = Sqe::write_zeroes(cid, nsid, lba, blocks).with_fua(fua);
                let deac = if unmap { DEAC } else { 0 };
                sqe.with_cdw12(sqe.cdw12() | deac)
            }
            Op::Unmap => {
                let range: [u64; 2] = zerocopy::transmute!(DsmRange::new(lba, blocks));
                self.shared.layout.region.store_words(list, &range);
                Sqe::deallocate(cid, nsid, 1).with_prp(self.shared.layout.address(list), 0)
            }
            Op::CompareAndWrite { .. } | Op::Reset => {
                return Start::Failed(io, IoError::Unsupported);
            }
        };
        let len = io.payload.len();
        let sqe = if len == 0 {
            sqe
        } else {
            let address = match self.place_data(&io, &mut bounce) {
                Ok(Some(address)) => address,
                Ok(None) => return Start::Wait(io),
                Err(error) => return Start::Failed(io, error),
            };
            let list = (&*self.shared.layout.region, list);
            transfer::with_data(sqe, self.facts.format, address, len, list)
        };
        self.free.pop();
        let deadline = now + self.shared.options.io_timeout;
        self.next_check.get_or_insert(deadline);
        self.slots[usize::from(slot)] = Slot {
            io: Some(io),
            deadline: Some(deadline),
            retries,
            use_count,
            aborted: false,
            bounce,
        };
        if let Some(ring) = &mut self.ring {
            ring.push(&sqe);
        }
        Start::Started
    }

    /// The address of the payload for the device: its own, or that of a bounce buffer with a copy.
    /// `None`: no bounce buffer is free.
    #[inline]
    fn place_data(&mut self, io: &Io, bounce: &mut Option<u16>) -> Result<Option<usize>, IoError> {
        let len = io.payload.len();
        let address = match &io.payload {
            Payload::Buf(buf) => buf.addr(),
            Payload::Lent(lent) => lent.addr(),
            Payload::None => return Err(IoError::InvalidField),
        };
        if self.facts.format.takes(address) && self.reach.covers(&self.shared, address, len) {
            return Ok(Some(address));
        }
        self.bounce.prepare(&self.shared)?;
        let (Some(region), Some(index)) = (&self.bounce.region, self.bounce.free.pop()) else {
            return Ok(None);
        };
        *bounce = Some(index);
        self.shared.counters.bounced.fetch_add(1, Relaxed);
        let offset = self.bounce.offset(index);
        if io.op != Op::Read {
            let mut piece = [0; 4096];
            for from in (0..len).step_by(piece.len()) {
                let piece = &mut piece[..(len - from).min(4096)];
                io.payload.copy_range_to(from, piece);
                region.write_at(offset + from, piece);
            }
        }
        Ok(Some(region.addr() + offset))
    }

    /// Takes completions.
    fn reap(&mut self, done: &mut Vec<Completion>) {
        // Bounded by the entries: a device cannot keep this thread for ever.
        for _ in 0..=self.slots.len() {
            let Some(cqe) = self.ring.as_mut().and_then(Ring::next) else {
                break;
            };
            self.interrupt_due = true;
            self.idle_polls = 0;
            self.end(&cqe, done);
        }
        if let Some(ring) = &mut self.ring {
            ring.ring_cq(&*self.shared.device.registers);
        }
    }

    /// Makes the eventfd unreadable, so that the thread can sleep. The interrupt of a completion that
    /// polling found can come a little later: it is looked for some more times, ever more rarely.
    fn quiet_interrupt(&mut self, done: &mut Vec<Completion>) {
        self.idle_polls += 1;
        self.interrupt_due = self.idle_polls < IDLE_POLLS;
        if let Some((interrupts, vector)) = self.interrupt() {
            if self.idle_polls.is_power_of_two() {
                interrupts.clear(vector);
                // What came between the last look and the clearing.
                self.reap(done);
            }
        } else {
            self.interrupt_due = false;
        }
    }

    #[inline]
    fn end(&mut self, cqe: &Cqe, done: &mut Vec<Completion>) {
        let cid = cqe.cid().0;
        let index = cid & SLOT_MASK;
        let slot = self.slots.get_mut(usize::from(index));
        let slot = slot.filter(|slot| slot.use_count << SLOT_BITS == cid & !SLOT_MASK);
        let Some((slot, mut io)) = slot.and_then(|slot| slot.io.take().map(|io| (slot, io))) else {
            self.shared.counters.spurious.fetch_add(1, Relaxed);
            return;
        };
        let (retries, bounce) = (slot.retries, slot.bounce.take());
        slot.deadline = None;
        self.free.push(index);
        let status = cqe.status();
        if let Some(bounce) = bounce {
            if status.is_success() && io.op == Op::Read {
                self.copy_back(bounce, &mut io);
            }
            self.bounce.free.push(bounce);
        }
        if status.is_success() {
            done.push(io.complete(Ok(())));
        } else if is_retryable(status) && retries < self.shared.options.retries {
            self.shared.counters.retries.fetch_add(1, Relaxed);
            self.waiting.push_front((io, retries + 1));
        } else {
            let error = io_error(status, io.op);
            done.push(io.complete(Err(error)));
        }
    }

    #[cold]
    fn copy_back(&self, bounce: u16, io: &mut Io) {
        let offset = self.bounce.offset(bounce);
        let buf = io.payload.as_buf_mut();
        let into = buf.and_then(|buf| buf.try_as_mut_slice());
        if let (Some(region), Some(into)) = (&self.bounce.region, into) {
            region.read_at(offset, into);
        }
    }

    /// Looks for commands past their deadline: an Abort first, then a reset.
    #[cold]
    fn check_deadlines(&mut self, now: Instant) {
        let mut next: Option<Instant> = None;
        let mut wants_reset = false;
        let mut call = false;
        let abort = &self.shared.queues[self.place].abort;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Some(deadline) = slot.deadline else {
                continue;
            };
            if deadline > now {
                next = Some(next.map_or(deadline, |next| next.min(deadline)));
                continue;
            }
            if slot.aborted {
                wants_reset = true;
                continue;
            }
            slot.aborted = true;
            let later = now + self.shared.options.abort_timeout;
            slot.deadline = Some(later);
            next = Some(next.map_or(later, |next| next.min(later)));
            self.shared.counters.timeouts.fetch_add(1, Relaxed);
            // One Abort at a time for each queue; if the others do not end, a reset follows.
            let cid = u32::from(slot.use_count << SLOT_BITS) | index as u32;
            let free = abort.compare_exchange(0, cid + 1, SeqCst, SeqCst);
            call |= free.is_ok();
        }
        if wants_reset {
            self.shared
                .request_reset(ResetReason::IoTimeout, self.generation);
            let later = now + self.shared.options.abort_timeout;
            next = Some(next.map_or(later, |next| next.min(later)));
        } else if call {
            self.shared.call_owner();
        }
        self.next_check = next;
    }

    /// The queue is not in the generation that this channel is in: let go of it, and go on with
    /// the next generation once there is one.
    #[cold]
    fn change_generation(&mut self, live: u32, done: &mut Vec<Completion>) {
        if self.ring.take().is_some() {
            self.queue().parked.store(self.generation, SeqCst);
            self.next_check = None;
            self.shared.call_owner();
        }
        let is_final = self.shared.state().is_final();
        if self.shared.released.load(SeqCst) >= self.generation {
            self.take_back(is_final, done);
        }
        if is_final || self.queue().withheld.load(SeqCst) {
            self.fail_waiting(done);
        }
        if live <= self.generation || self.outstanding() > 0 {
            return;
        }
        let ring = lock(&self.shared.queues[self.place].ring).take();
        if ring.is_some() {
            self.generation = live;
            self.ring = ring;
            self.interrupt_due = true;
            let ended = self.resets.extract_if(.., |(_, until)| *until < live);
            done.extend(ended.map(|(io, _)| io.complete(Ok(()))));
        }
    }

    /// The device has let go of what was in flight: it is to be sent again.
    fn take_back(&mut self, is_final: bool, done: &mut Vec<Completion>) {
        // Backwards, so that what comes to the front keeps its order.
        for index in (0..self.slots.len()).rev() {
            let slot = &mut self.slots[index];
            let Some(io) = slot.io.take() else {
                continue;
            };
            slot.deadline = None;
            let (retries, bounce) = (slot.retries, slot.bounce.take());
            self.free.push(index as u16);
            self.bounce.free.extend(bounce);
            if is_final {
                self.waiting.push_front((io, retries));
            } else if retries < self.shared.options.retries {
                self.shared.counters.retries.fetch_add(1, Relaxed);
                self.waiting.push_front((io, retries + 1));
            } else {
                done.push(io.complete(Err(IoError::Internal)));
            }
        }
    }

    fn fail_waiting(&mut self, done: &mut Vec<Completion>) {
        let error = match self.shared.state() {
            ControllerState::Removed => IoError::Removed,
            ControllerState::Stopped => IoError::Aborted,
            _ => IoError::Internal,
        };
        let waiting = self.waiting.drain(..).map(|(io, _)| io);
        let failed = waiting.chain(self.resets.drain(..).map(|(io, _)| io));
        done.extend(failed.map(|io| io.complete(Err(error))));
    }
}

impl Channel for NvmeChannel {
    #[inline]
    fn submit(&mut self, io: Io, now: Instant) -> Submit {
        if let Err(error) = self.check(&io) {
            return Submit::Done(io.complete(Err(error)));
        }
        if self.in_flight() >= self.queue_depth {
            return Submit::Done(io.complete(Err(IoError::Busy)));
        }
        if io.op == Op::Reset {
            let generation = self.shared.generation();
            self.resets.push((io, generation));
            self.shared.request_reset(ResetReason::Asked, generation);
            return Submit::Pending;
        }
        if self.waiting.is_empty() && self.ring.is_some() && !self.free.is_empty() {
            match self.start(io, 0, now) {
                Start::Started => {}
                Start::Wait(io) => self.waiting.push_back((io, 0)),
                Start::Failed(io, error) => return Submit::Done(io.complete(Err(error))),
            }
        } else {
            self.waiting.push_back((io, 0));
        }
        Submit::Pending
    }

    #[inline]
    fn poll(&mut self, now: Instant, done: &mut Vec<Completion>) -> usize {
        let before = done.len();
        orphans::collect();
        done.append(&mut self.ended);
        let live = self.queue().live.load(SeqCst);
        if live != self.generation || self.ring.is_none() {
            self.change_generation(live, done);
        }
        if self.ring.is_some() {
            if self.outstanding() > 0 {
                self.reap(done);
            }
            self.start_waiting(now, done);
            if let Some(ring) = &mut self.ring {
                ring.ring_sq(&*self.shared.device.registers);
            }
            if self.next_check.is_some_and(|at| at <= now) {
                self.check_deadlines(now);
            }
            if self.outstanding() == 0 {
                self.next_check = None;
            }
            if done.len() == before && self.interrupt_due {
                self.quiet_interrupt(done);
            }
        }
        done.len() - before
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.next_check
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        let (interrupts, vector) = self.interrupt()?;
        interrupts.fd(vector)
    }

    fn is_quiet(&self) -> bool {
        !self.interrupt_due
    }

    fn abort(&mut self, tag: u64) -> bool {
        let place = self.waiting.iter().position(|(io, _)| io.tag == tag);
        let Some((io, _)) = place.and_then(|place| self.waiting.remove(place)) else {
            return false;
        };
        self.ended.push(io.complete(Err(IoError::Aborted)));
        true
    }

    fn in_flight(&self) -> usize {
        self.outstanding() + self.waiting.len() + self.ended.len() + self.resets.len()
    }
}

impl Drop for NvmeChannel {
    fn drop(&mut self) {
        let queue = &self.shared.queues[self.place];
        *lock(&queue.waker) = None;
        let owned = self.slots.iter_mut().filter_map(|slot| slot.io.take());
        let payloads: Vec<Payload> = owned.map(|io| io.payload).collect();
        let released = || self.shared.released.load(SeqCst) >= self.generation;
        let in_flight = !payloads.is_empty() && !released();
        if in_flight {
            let flag = Arc::new(AtomicBool::new(false));
            orphans::keep(Arc::clone(&flag), payloads);
            let bounce = self.bounce.region.take();
            *lock(&queue.orphan) = Some(Left::new(flag, bounce));
            if released() {
                queue.release_orphan(&self.shared.device);
            }
        } else if let Some(ring) = self.ring.take()
            && queue.live.load(SeqCst) == self.generation
        {
            *lock(&queue.ring) = Some(ring);
        }
        if let Some(region) = self.bounce.region.take() {
            self.shared.device.mapper.unmap(&region);
        }
        queue.parked.store(self.generation, SeqCst);
        queue.opened.store(false, SeqCst);
        self.users.close();
        self.shared.call_owner();
    }
}

/// Finds a queue that works and has no channel.
fn claim(shared: &Shared) -> Result<(usize, u32, Ring), String> {
    for (place, queue) in shared.queues.iter().enumerate() {
        if queue.live.load(SeqCst) == 0 || queue.opened.swap(true, SeqCst) {
            continue;
        }
        // The owner may have stopped the queue meanwhile. It looks at `opened` and `parked` after
        // it has set `live` to 0, so either it waits for us or we see the 0.
        queue.parked.store(0, SeqCst);
        let live = queue.live.load(SeqCst);
        if live != 0
            && let Some(ring) = lock(&queue.ring).take()
        {
            return Ok((place, live, ring));
        }
        // The owner may have passed the queue over while it looked taken.
        queue.opened.store(false, SeqCst);
        shared.call_owner();
    }
    let state = shared.state();
    if state != ControllerState::Running {
        return Err(format!("the controller is {}", state.name()));
    }
    Err(format!(
        "all {} queue pairs are taken: close channels or raise io_queues",
        shared.queues.len()
    ))
}

/// The vector of a queue; vector 0 is the admin queue's. None is shared: who clears an eventfd must
/// be the only one to sleep on it. Queues beyond the vectors are polled only.
pub(crate) fn vector(count: u16, qid: u16) -> Option<u16> {
    (qid < count).then_some(qid)
}

/// Whether sending the command again may help.
fn is_retryable(status: Status) -> bool {
    let again = [
        Status::COMMAND_ABORT_REQUESTED,
        Status::ABORTED_SQ_DELETION,
        Status::COMMAND_INTERRUPTED,
        Status::NAMESPACE_NOT_READY,
        Status::TRANSIENT_TRANSPORT_ERROR,
        Status::ABORTED_POWER_LOSS,
        Status::COMMAND_ID_CONFLICT,
    ];
    !status.dnr() && again.iter().any(|other| status.is(*other))
}

fn io_error(status: Status, op: Op) -> IoError {
    let code = status.code();
    match code {
        Status::LBA_OUT_OF_RANGE => IoError::OutOfRange,
        Status::INVALID_FIELD | Status::COMMAND_SIZE_LIMIT_EXCEEDED => IoError::InvalidField,
        Status::INVALID_OPCODE => IoError::Unsupported,
        Status::NAMESPACE_WRITE_PROTECTED | Status::WRITE_TO_READ_ONLY_RANGE => {
            IoError::WriteProtected
        }
        Status::CAPACITY_EXCEEDED => IoError::NoSpace,
        // The drive does not say where.
        Status::COMPARE_FAILURE => IoError::CompareMismatch { offset_bytes: 0 },
        Status::WRITE_FAULT => IoError::MediaWrite,
        Status::COMMAND_ABORT_REQUESTED => IoError::Aborted,
        Status::INVALID_NAMESPACE_OR_FORMAT => IoError::Removed,
        _ if code.sct() == Status::SCT_MEDIA || code == Status::UNRECOVERED_ERROR => {
            if op.modifies() {
                IoError::MediaWrite
            } else {
                IoError::MediaRead
            }
        }
        _ => IoError::Internal,
    }
}

/// CAP.TO and its like, in units of 500 ms. At least one unit.
pub(crate) fn half_seconds(units: u16) -> Duration {
    Duration::from_millis(500) * u32::from(units.max(1))
}
