//! A queue pair within its poll group: slots, association, and the loop that serves a slot.

use std::cell::{Cell, OnceCell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use block::{Completion, Io, Submit};
use dma::{IoBuf, IobufChannel, Payload};
use fabric_wire::Nqn;
use nvme_spec::{Cid, Cqe, Nsid, Qid, SglDescriptor, Sqe, Status};

use crate::controller::Controller;
use crate::exec;
use crate::group_namespace::{GroupNamespace, GroupSubsystem};
use crate::poll_group::GroupShared;
use crate::share::{Class, Holder, Share};
use crate::slot::{Outcome, Slot};
use crate::status;
use crate::transport::{
    ConnectionId, Digests, Peer, QpairId, SlotId, TransportId, TransportLimits,
};

/// The logic of one slot: serves one command after another for as long as the queue pair lives.
pub(crate) type SlotFuture = Pin<Box<dyn Future<Output = Infallible>>>;

/// What Connect made of a queue pair.
pub(crate) struct Association {
    pub(crate) qid: Qid,
    pub(crate) controller: Arc<Controller>,
    /// The subsystem as this group sees it; a discovery controller has none.
    pub(crate) subsystem: Option<Rc<GroupSubsystem>>,
    /// Kept here because every I/O command asks.
    pub(crate) host_nqn: Nqn,
}

/// Counters of one queue pair; written by its thread, read by anyone.
#[derive(Debug, Default)]
pub struct QpairCounters {
    /// Commands accepted.
    pub commands: AtomicU64,
    /// Commands that ended with an error status.
    pub errors: AtomicU64,
    /// Read commands that succeeded.
    pub reads: AtomicU64,
    /// Write commands that succeeded.
    pub writes: AtomicU64,
    /// Bytes read by the host.
    pub read_bytes: AtomicU64,
    /// Bytes written by the host.
    pub write_bytes: AtomicU64,
    /// Commands being served now.
    pub outstanding: AtomicU64,
}

/// Adds to a counter that only this thread writes: a load and a store, no locked instruction.
pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(amount),
        Ordering::Relaxed,
    );
}

pub(crate) struct Queue {
    pub(crate) group: Rc<GroupShared>,
    pub(crate) id: QpairId,
    /// Distinguishes this queue pair from a later one that reuses its index.
    pub(crate) uid: u64,
    pub(crate) transport: TransportId,
    pub(crate) limits: Arc<TransportLimits>,
    pub(crate) connection: ConnectionId,
    pub(crate) peer: Peer,
    /// Entries of the submission queue: SQSIZE + 1.
    pub(crate) depth: u16,
    /// Whether read data may be sent from memory that others write meanwhile. Not so with a data
    /// digest: the digest and the data must be of one moment.
    pub(crate) may_borrow_data: bool,
    pub(crate) digests: Digests,
    pub(crate) association: OnceCell<Association>,
    pub(crate) iobuf: Rc<RefCell<IobufChannel>>,
    /// Whom buffers are charged to: the peer's address, from Connect on its host.
    share: RefCell<Rc<Share>>,
    /// Commands whose data comes outside of capsules, from their wait for a buffer on.
    receives: Cell<u32>,
    pub(crate) counters: Arc<QpairCounters>,
    pub(crate) slots: RefCell<Vec<Rc<Slot>>>,
    pub(crate) free_slots: RefCell<Vec<u16>>,
    sqhd: Cell<u16>,
    pub(crate) sq_flow_control: Cell<bool>,
    /// Commands that the device or the host has not let go of.
    pub(crate) device_ios: Cell<u32>,
    pub(crate) is_closed: Cell<bool>,
    /// Set once the response to Disconnect or to a refused Connect is on its way.
    pub(crate) close_after_response: Cell<bool>,
    /// The first half of a fused operation that waits for its second.
    pub(crate) fused: Cell<Option<SlotId>>,
    /// Asynchronous Event Request commands outstanding, oldest first (admin queue only).
    pub(crate) event_waiters: RefCell<Vec<SlotId>>,
    pub(crate) last_command: Cell<Instant>,
    /// A Connect runs or has run; there is no second one.
    pub(crate) has_connect: Cell<bool>,
    /// Abort commands that wait for another thread (Identify ACL).
    pub(crate) aborts: Cell<u8>,
    cids: RefCell<CidSet>,
}

/// Which command identifiers are in use: 65,536 bits, made on first use.
#[derive(Default)]
struct CidSet(Vec<u64>);

impl CidSet {
    /// Marks a CID; `false` if it was marked already.
    fn insert(&mut self, cid: Cid) -> bool {
        if self.0.is_empty() {
            self.0 = vec![0; 1024];
        }
        let (word, bit) = (usize::from(cid.0 / 64), 1_u64 << (cid.0 % 64));
        let is_new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        is_new
    }

    fn remove(&mut self, cid: Cid) {
        if let Some(word) = self.0.get_mut(usize::from(cid.0 / 64)) {
            *word &= !(1_u64 << (cid.0 % 64));
        }
    }
}

/// What a new queue pair is made from.
pub(crate) struct QueueParts {
    pub(crate) group: Rc<GroupShared>,
    pub(crate) id: QpairId,
    pub(crate) uid: u64,
    pub(crate) transport: TransportId,
    pub(crate) limits: Arc<TransportLimits>,
    pub(crate) connection: ConnectionId,
    pub(crate) peer: Peer,
    pub(crate) depth: u16,
    pub(crate) may_borrow_data: bool,
    pub(crate) digests: Digests,
    pub(crate) iobuf: Rc<RefCell<IobufChannel>>,
}

impl Queue {
    pub(crate) fn new(parts: QueueParts) -> Rc<Self> {
        let now = parts.group.now.get();
        let holder = Holder::of_remote(&parts.peer.remote);
        let share = RefCell::new(parts.group.ledger.share(holder));
        Rc::new(Self {
            share,
            group: parts.group,
            id: parts.id,
            uid: parts.uid,
            transport: parts.transport,
            limits: parts.limits,
            connection: parts.connection,
            peer: parts.peer,
            depth: parts.depth,
            may_borrow_data: parts.may_borrow_data,
            digests: parts.digests,
            association: OnceCell::new(),
            iobuf: parts.iobuf,
            counters: Arc::default(),
            slots: RefCell::default(),
            free_slots: RefCell::default(),
            sqhd: Cell::new(0),
            sq_flow_control: Cell::new(true),
            device_ios: Cell::new(0),
            is_closed: Cell::new(false),
            close_after_response: Cell::new(false),
            fused: Cell::new(None),
            event_waiters: RefCell::default(),
            last_command: Cell::new(now),
            has_connect: Cell::new(false),
            aborts: Cell::new(0),
            receives: Cell::new(0),
            cids: RefCell::default(),
        })
    }

    pub(crate) fn slot(&self, id: SlotId) -> Rc<Slot> {
        Rc::clone(&self.slots.borrow()[usize::from(id.0)])
    }

    /// Takes a free slot for a command; makes one if none is free and the depth allows it.
    pub(crate) fn take_slot(&self) -> Option<Rc<Slot>> {
        if let Some(index) = self.free_slots.borrow_mut().pop() {
            return Some(Rc::clone(&self.slots.borrow()[usize::from(index)]));
        }
        let mut slots = self.slots.borrow_mut();
        let index = u16::try_from(slots.len())
            .ok()
            .filter(|index| *index < self.depth)?;
        let slot = Rc::new(Slot::new(SlotId(index)));
        slots.push(Rc::clone(&slot));
        Some(slot)
    }

    /// Gives a command to a slot. If its CID is in use, it is answered Command ID Conflict.
    pub(crate) fn accept(&self, slot: &Slot, sqe: Sqe, in_capsule_len: u32) {
        let next = self.sqhd.get() + 1;
        self.sqhd.set(if next == self.depth { 0 } else { next });
        self.last_command.set(self.group.now.get());
        add(&self.counters.commands, 1);
        add(&self.counters.outstanding, 1);
        let is_new = self.cids.borrow_mut().insert(sqe.cid());
        slot.accept(sqe, in_capsule_len, !is_new);
    }

    /// The slot's response is with the transport. Once the host has it, it may use the command's
    /// identifier again, and with RDMA that may come before the word that the response was sent.
    pub(crate) fn answered(&self, slot: &Slot) {
        if !slot.is_duplicate() {
            self.cids.borrow_mut().remove(slot.sqe().cid());
        }
    }

    /// The slot's response has been sent: it may serve another command.
    pub(crate) fn release(&self, slot: &Slot) {
        slot.response_sent();
        self.give_back(slot);
    }

    /// The transport has let go of a forgotten command, whose identifier is free already.
    pub(crate) fn release_forgotten(&self, slot: &Slot) {
        slot.forgotten();
        self.give_back(slot);
    }

    fn give_back(&self, slot: &Slot) {
        self.counters.outstanding.store(
            self.counters
                .outstanding
                .load(Ordering::Relaxed)
                .saturating_sub(1),
            Ordering::Relaxed,
        );
        self.free_slots.borrow_mut().push(slot.id.0);
    }

    /// Ends the Asynchronous Event Requests without a response, as a controller reset does (NVMe
    /// Base 2.1, section 3.7.2). Their identifiers are free at once.
    pub(crate) fn forget_event_requests(&self) {
        for id in self.event_waiters.take() {
            let slot = self.slot(id);
            self.cids.borrow_mut().remove(slot.sqe().cid());
            slot.forget();
            self.group.ready.borrow_mut().push_back((self.id, id));
        }
    }

    fn cqe(&self, cid: Cid, outcome: Outcome) -> Cqe {
        let sqhd = if self.sq_flow_control.get() {
            self.sqhd.get()
        } else {
            0xffff
        };
        Cqe::new(cid, outcome.status)
            .with_result(outcome.result)
            .with_sqhd(sqhd)
    }

    /// A status as this host may be told it: CRD has a meaning only for hosts that have enabled it
    /// (Host Behavior Support, ACRE).
    #[cold]
    fn told(&self, status: Status) -> Status {
        let takes_delays = || {
            self.association()
                .is_some_and(|a| a.controller.lock().features.takes_delays())
        };
        if status.crd() == 0 || takes_delays() {
            status
        } else {
            status.with_crd(0)
        }
    }

    // What the commands' logic uses.

    /// The association; every command but Connect runs within one.
    pub(crate) fn association(&self) -> Option<&Association> {
        self.association.get()
    }

    /// The group's view of a namespace that this host sees.
    pub(crate) fn namespace(&self, nsid: Nsid) -> Result<Rc<GroupNamespace>, Status> {
        let association = self
            .association
            .get()
            .ok_or(Status::COMMAND_SEQUENCE_ERROR)?;
        let subsystem = association
            .subsystem
            .as_ref()
            .ok_or(Status::INVALID_OPCODE)?;
        subsystem.namespace(nsid, &association.host_nqn, &self.group)
    }

    /// The host is known: what its commands hold from now on is charged to it.
    pub(crate) fn set_host(&self, host: &Nqn) {
        let share = self.group.ledger.share(Holder::Host(host.clone()));
        self.share.replace(share);
    }

    /// Charges the command's buffer to its host, if that may be now. A command holds one buffer: what
    /// was charged for an earlier one has gone back.
    #[inline]
    fn try_charge(&self, slot: &Slot, len: u32, small: Class) -> bool {
        slot.discharge();
        let share = self.share.borrow();
        let charge = share.take(share.class(len, small));
        let is_charged = charge.is_some();
        if let Some(charge) = charge {
            slot.charge(charge);
        }
        is_charged
    }

    /// As [`Queue::try_charge`]; waits while the host holds too many.
    async fn charge(&self, slot: &Slot, len: u32, small: Class) -> Result<(), Status> {
        if self.try_charge(slot, len, small) {
            return Ok(());
        }
        self.group
            .buffer_waits
            .set(self.group.buffer_waits.get() + 1);
        let share = Rc::clone(&self.share.borrow());
        share.wait(share.class(len, small), self.id, slot.id);
        let waiting = Waiting {
            share: &share,
            key: (self.id, slot.id),
        };
        let waited = slot.until(|| slot.is_charged()).await;
        drop(waiting);
        waited
    }

    /// The data length of a command with data of the host, or either way.
    pub(crate) fn sgl_len(&self, sqe: &Sqe, slot: &Slot) -> Result<u32, Status> {
        sgl_len(sqe, slot.in_capsule_len(), self.limits.keyed_sgl)
    }

    /// The data length of a command whose data goes to the host.
    pub(crate) fn sgl_len_to_host(&self, sqe: &Sqe) -> Result<u32, Status> {
        sgl_len_to_host(sqe, self.limits.keyed_sgl)
    }

    /// Waits for a data buffer: for the host's share, then from the cache, from the pool, or in the
    /// order of asking.
    pub(crate) async fn buffer(&self, slot: &Slot, len: u32) -> Result<IoBuf, Status> {
        self.charge(slot, len, Class::Small).await?;
        self.pool_buffer(slot, len).await
    }

    async fn pool_buffer(&self, slot: &Slot, len: u32) -> Result<IoBuf, Status> {
        let token = token(self.id, slot.id);
        // Refused only when the pool's queue of waiters is full, or no buffer is ever that large.
        let ready = self
            .iobuf
            .borrow_mut()
            .get_or_wait(len as usize, token)
            .map_err(|_| status::no_buffer(self.group.target.options()))?;
        if let Some(buffer) = ready {
            return Ok(buffer);
        }
        self.group
            .buffer_waits
            .set(self.group.buffer_waits.get() + 1);
        let buffer = slot.buffer().await;
        if buffer.is_none() {
            self.iobuf.borrow_mut().cancel_wait(token);
        }
        buffer.ok_or(Status::COMMAND_ABORT_REQUESTED)
    }

    /// As [`Queue::buffer`] for commands that must not wait: charged whatever the host holds, and
    /// an error if there is no buffer now.
    pub(crate) fn buffer_now(&self, slot: &Slot, len: u32) -> Result<IoBuf, Status> {
        self.must_charge(slot, len, Class::Small);
        self.pool_buffer_now(len)
    }

    /// A data buffer if there is one now; from the reserve if need be.
    fn pool_buffer_now(&self, len: u32) -> Result<IoBuf, Status> {
        let iobuf = self.iobuf.borrow();
        let buffer = iobuf
            .get(len as usize)
            .or_else(|| iobuf.get_reserved(len as usize));
        buffer.ok_or_else(|| status::no_buffer(self.group.target.options()))
    }

    /// Receives the host's data of a command into a buffer of exactly `len` bytes.
    pub(crate) async fn receive(&self, slot: &Slot, len: u32) -> Result<Payload, Status> {
        self.receive_with_room(slot, len, len).await
    }

    /// As [`Queue::receive`], into a buffer of at least `room` bytes.
    pub(crate) async fn receive_with_room(
        &self,
        slot: &Slot,
        len: u32,
        room: u32,
    ) -> Result<Payload, Status> {
        let _pending = self.charge_receive(slot, room, Class::Small).await?;
        let mut buffer = self.pool_buffer(slot, room).await?;
        buffer.set_len(len as usize);
        slot.receive(Payload::Buf(buffer), len).await
    }

    /// Charges the buffer of a command that takes data of the host.
    ///
    /// While a command waits for the buffer of its in-capsule data, nothing behind it is read. Data
    /// that other commands of this connection wait for may lie there, and their charges may be
    /// what it waits for: then it does not wait.
    async fn charge_receive(
        &self,
        slot: &Slot,
        len: u32,
        small: Class,
    ) -> Result<Option<PendingReceive<'_>>, Status> {
        let is_in_capsule = slot.in_capsule_len() > 0;
        let pending = (!is_in_capsule).then(|| PendingReceive::new(&self.receives));
        if !self.try_charge(slot, len, small) {
            if is_in_capsule && self.receives.get() > 0 {
                self.must_charge(slot, len, small);
            } else {
                self.charge(slot, len, small).await?;
            }
        }
        Ok(pending)
    }

    #[cold]
    fn must_charge(&self, slot: &Slot, len: u32, small: Class) {
        let share = self.share.borrow();
        slot.charge(share.must_take(share.class(len, small)));
    }

    /// As [`Queue::receive`], for admin and fabrics commands: their buffers have a reserve, so
    /// that a host can connect and manage while I/O holds every other buffer.
    pub(crate) async fn receive_reserved(&self, slot: &Slot, len: u32) -> Result<Payload, Status> {
        let _pending = self.charge_receive(slot, len, Class::Reserve).await?;
        let buffer = self.charged_reserved_buffer(slot, len).await?;
        slot.receive(Payload::Buf(buffer), len).await
    }

    /// A buffer for an admin or fabrics command.
    pub(crate) async fn reserved_buffer(&self, slot: &Slot, len: u32) -> Result<IoBuf, Status> {
        self.charge(slot, len, Class::Reserve).await?;
        self.charged_reserved_buffer(slot, len).await
    }

    async fn charged_reserved_buffer(&self, slot: &Slot, len: u32) -> Result<IoBuf, Status> {
        match self.pool_buffer_now(len) {
            Ok(buffer) => Ok(buffer),
            Err(_) => self.pool_buffer(slot, len).await,
        }
    }

    /// Runs one I/O on a namespace's device.
    pub(crate) async fn run(&self, slot: &Slot, ns: &Rc<GroupNamespace>, mut io: Io) -> Completion {
        io.tag = token(self.id, slot.id);
        match ns.submit(io, self.group.now.get()) {
            Submit::Done(completion) => completion,
            Submit::Pending => {
                self.device_ios.set(self.device_ios.get() + 1);
                self.group.mark_active(ns);
                slot.completion().await
            }
        }
    }

    /// The command of a slot that has this CID and is not finished.
    pub(crate) fn find(&self, cid: Cid) -> Option<Rc<Slot>> {
        self.slots
            .borrow()
            .iter()
            .find(|slot| slot.is_in_work() && slot.sqe().cid() == cid)
            .cloned()
    }
}

/// Counts a command whose data comes outside of its capsule.
struct PendingReceive<'a>(&'a Cell<u32>);

impl<'a> PendingReceive<'a> {
    fn new(count: &'a Cell<u32>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for PendingReceive<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// A command that waits until its host may take another buffer.
struct Waiting<'a> {
    share: &'a Share,
    key: (QpairId, SlotId),
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.share.forget(self.key.0, self.key.1);
    }
}

/// The tag under which devices and buffer pools know a slot's request.
pub(crate) fn token(qpair: QpairId, slot: SlotId) -> u64 {
    u64::from(qpair.0) << 16 | u64::from(slot.0)
}

pub(crate) fn from_token(token: u64) -> (QpairId, SlotId) {
    (QpairId((token >> 16) as u32), SlotId(token as u16))
}

/// The length of a command's data that goes to the host: never in the command's capsule.
fn sgl_len_to_host(sqe: &Sqe, is_keyed: bool) -> Result<u32, Status> {
    if sqe.sgl().is_in_capsule() {
        return Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.with_dnr(true));
    }
    sgl_len(sqe, 0, is_keyed)
}

/// The data length that a command's SGL gives, checked for the forms that the transport takes.
fn sgl_len(sqe: &Sqe, in_capsule_len: u32, is_keyed: bool) -> Result<u32, Status> {
    if sqe.psdt() != Sqe::PSDT_SGL {
        // Fabrics have no PRPs, and no namespace has metadata.
        return Err(Status::INVALID_FIELD.with_dnr(true));
    }
    let sgl: SglDescriptor = sqe.sgl();
    if sgl.is_in_capsule() {
        if sgl.offset() != 0 {
            return Err(Status::SGL_OFFSET_INVALID.with_dnr(true));
        }
        if sgl.len() != in_capsule_len {
            return Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr(true));
        }
        return Ok(sgl.len());
    }
    let is_taken = if is_keyed {
        sgl.is_keyed()
    } else {
        sgl.is_transport_data()
    };
    if is_taken {
        return Ok(sgl.len());
    }
    Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.with_dnr(true))
}

/// Serves one slot for the life of its queue pair.
pub(crate) async fn serve(queue: Rc<Queue>, slot: Rc<Slot>) -> Infallible {
    loop {
        let sqe = slot.command().await;
        let mut outcome = if slot.is_duplicate() {
            Status::COMMAND_ID_CONFLICT.with_dnr(true).into()
        } else {
            execute(&queue, &slot, sqe).await
        };
        if slot.is_forgotten() {
            slot.end_unanswered().await;
            continue;
        }
        if !outcome.status.is_success() {
            add(&queue.counters.errors, 1);
            if outcome.status.is(Status::COMMAND_ABORT_REQUESTED) {
                outcome.status = slot.abort_status();
            }
            outcome.status = queue.told(outcome.status);
        }
        let cqe = queue.cqe(sqe.cid(), outcome);
        slot.respond(cqe).await;
    }
}

async fn execute(queue: &Rc<Queue>, slot: &Rc<Slot>, sqe: Sqe) -> Outcome {
    match queue.association() {
        // Boxed: these run rarely and would make every slot's future as large as theirs.
        Some(association) if association.qid.0 != 0 && !sqe.is_fabrics() => {
            if association.controller.is_ready() {
                exec::io::execute(queue, slot, sqe).await
            } else {
                Status::COMMAND_SEQUENCE_ERROR.into()
            }
        }
        Some(_) if sqe.is_fabrics() => exec::fabrics::execute(queue, &sqe),
        Some(_) => Box::pin(exec::admin::execute(queue, slot, sqe)).await,
        None => Box::pin(exec::fabrics::connect(queue, slot, sqe)).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_carry_queue_pair_and_slot() {
        for (qpair, slot) in [(0, 0), (u32::MAX, u16::MAX), (7, 9)] {
            let ids = (QpairId(qpair), SlotId(slot));
            assert_eq!(from_token(token(ids.0, ids.1)), ids);
        }
    }

    #[test]
    fn a_command_identifier_is_in_use_until_it_is_removed() {
        let mut cids = CidSet::default();
        cids.remove(Cid(3));
        for cid in [0, 63, 64, u16::MAX] {
            assert!(cids.insert(Cid(cid)));
            assert!(!cids.insert(Cid(cid)));
            cids.remove(Cid(cid));
            assert!(cids.insert(Cid(cid)));
        }
        assert!(cids.insert(Cid(1)));
    }

    #[test]
    fn lengths_come_from_the_forms_of_sgl_that_are_taken() {
        let with = |sgl| Sqe::default().with_sgl(sgl);
        let in_capsule = with(SglDescriptor::in_capsule(0, 512));
        let wrong_type = Err(Status::SGL_DESCRIPTOR_TYPE_INVALID.with_dnr(true));
        let transport = with(SglDescriptor::transport_data(4096));
        let keyed = with(SglDescriptor::keyed(0x1000, 4096, 7, false));
        for is_keyed in [false, true] {
            assert_eq!(sgl_len(&in_capsule, 512, is_keyed), Ok(512));
            assert!(sgl_len(&in_capsule, 511, is_keyed).is_err());
            assert_eq!(sgl_len_to_host(&in_capsule, is_keyed), wrong_type);
            let (right, wrong) = if is_keyed {
                (keyed, transport)
            } else {
                (transport, keyed)
            };
            assert_eq!(sgl_len(&right, 0, is_keyed), Ok(4096));
            assert_eq!(sgl_len_to_host(&right, is_keyed), Ok(4096));
            assert_eq!(sgl_len(&wrong, 0, is_keyed), wrong_type);
            assert_eq!(sgl_len_to_host(&wrong, is_keyed), wrong_type);
            let prp = right.with_psdt(Sqe::PSDT_PRP);
            assert!(sgl_len(&prp, 0, is_keyed).is_err());
        }
        assert!(sgl_len(&with(SglDescriptor::in_capsule(8, 512)), 512, false).is_err());
        let block = with(SglDescriptor::data_block(0, 512));
        assert_eq!(sgl_len(&block, 0, false), wrong_type);
    }
}
