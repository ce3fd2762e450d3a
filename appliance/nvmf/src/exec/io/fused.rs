//! Fused Compare and Write (NVM Command Set 1.1, section 3.1.2; NVMe Base 2.1, section 3.4.2).
//!
//! The two commands arrive one after the other. The first gets its data and waits; the second
//! gets its data and runs both as one device operation. Any other command in between, or a pair
//! that does not match, fails the half that cannot go on.

use std::rc::Rc;

use block::Op;
use dma::Payload;
use nvme_spec::{Fuse, Sqe, Status, opcode::nvm};

use super::{Access, Begun, Extent, begin, bytes_of, device, enter};
use crate::limits;
use crate::queue::Queue;
use crate::slot::Slot;

/// How the first half ended, as the second half decides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FirstHalf {
    /// It waits for its second half.
    Waiting,
    /// Ended, with this status.
    Ended(Status),
}

/// Runs a command that is fused, or that follows the first half of a fused pair.
pub(super) async fn run(
    queue: &Rc<Queue>,
    slot: &Slot,
    sqe: &Sqe,
    fuse: Fuse,
) -> Result<(), Status> {
    match fuse {
        Fuse::First => {
            fail_waiting(queue, Status::ABORTED_MISSING_FUSED);
            first(queue, slot, sqe).await
        }
        Fuse::Second => second(queue, slot, sqe).await,
        Fuse::Normal => {
            fail_waiting(queue, Status::ABORTED_MISSING_FUSED);
            super::run(queue, slot, sqe).await
        }
        Fuse::Reserved => {
            fail_waiting(queue, Status::ABORTED_MISSING_FUSED);
            Err(Status::INVALID_FIELD.with_dnr(true))
        }
    }
}

/// Ends the first half that waits, if one does.
fn fail_waiting(queue: &Queue, status: Status) {
    if let Some(first) = queue.fused.take() {
        queue.slot(first).fused.set(FirstHalf::Ended(status));
        queue.group.ready.borrow_mut().push_back((queue.id, first));
    }
}

/// The Compare: taken in order of arrival, so the pair is noted before its data is received.
async fn first(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<(), Status> {
    slot.fused.set(FirstHalf::Waiting);
    slot.fused_second.set(None);
    queue.fused.set(Some(slot.id));
    let ended = match prepare_first(queue, slot, sqe).await {
        Ok(payload) => {
            slot.park(payload);
            wake_second(queue, slot);
            slot.until(|| slot.fused.get() != FirstHalf::Waiting).await
        }
        Err(status) => Err(status),
    };
    let ended = match (ended, slot.fused.get()) {
        // The pair was broken while the data was on its way.
        (_, FirstHalf::Ended(status)) => status,
        (Err(status), _) => status,
        (Ok(()), FirstHalf::Waiting) => Status::ABORTED_MISSING_FUSED,
    };
    slot.fused.set(FirstHalf::Ended(ended));
    drop(slot.take_payload());
    wake_second(queue, slot);
    if ended.is_success() {
        Ok(())
    } else {
        Err(ended)
    }
}

/// The second half may have come while the data of the first was on its way.
fn wake_second(queue: &Queue, first: &Slot) {
    if let Some(second) = first.fused_second.take() {
        queue.group.ready.borrow_mut().push_back((queue.id, second));
    }
}

/// Receives the data to compare with into a buffer that has room for both halves.
async fn prepare_first(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<Payload, Status> {
    if sqe.opcode() != nvm::COMPARE {
        return Err(Status::INVALID_FIELD.with_dnr(true));
    }
    let (_, bytes) = prepare(queue, slot, sqe, Access::Read).await?;
    queue.receive_with_room(slot, bytes, 2 * bytes).await
}

async fn second(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<(), Status> {
    let Some(first) = queue.fused.take() else {
        return Err(Status::ABORTED_MISSING_FUSED.with_dnr(true));
    };
    if first == slot.id {
        // It has failed and gone, and left its slot to this command.
        return Err(Status::ABORTED_FAILED_FUSED);
    }
    let first = First::new(queue.slot(first));
    let compare = first.slot.sqe();
    let matches = sqe.opcode() == nvm::WRITE
        && sqe.nsid() == compare.nsid()
        && sqe.slba() == compare.slba()
        && sqe.block_count() == compare.block_count();
    let result = if matches {
        pair(queue, slot, &first, sqe).await
    } else {
        let invalid = Status::INVALID_FIELD.with_dnr(true);
        Err((invalid, invalid))
    };
    let (of_first, of_second) = match result {
        Ok(()) => (Status::SUCCESS, Status::SUCCESS),
        Err(both) => both,
    };
    if first.half() == FirstHalf::Waiting {
        first.slot.fused.set(FirstHalf::Ended(of_first));
        queue
            .group
            .ready
            .borrow_mut()
            .push_back((queue.id, first.slot.id));
    }
    if of_second.is_success() {
        Ok(())
    } else {
        Err(of_second)
    }
}

/// The first half as the second sees it.
struct First {
    slot: Rc<Slot>,
    /// Tells the first half from a later command in its slot.
    generation: u32,
}

impl First {
    fn new(slot: Rc<Slot>) -> Self {
        Self {
            generation: slot.generation(),
            slot,
        }
    }

    fn half(&self) -> FirstHalf {
        if self.slot.generation() == self.generation {
            self.slot.fused.get()
        } else {
            FirstHalf::Ended(Status::ABORTED_FAILED_FUSED)
        }
    }
}

/// Runs both halves; errors are the statuses of the first and of the second.
async fn pair(
    queue: &Rc<Queue>,
    slot: &Slot,
    first: &First,
    sqe: &Sqe,
) -> Result<(), (Status, Status)> {
    const FAILED: Status = Status::ABORTED_FAILED_FUSED;
    let of_second = |status| (FAILED, status);
    let (namespace, data) = prepare_second(queue, slot, sqe).await.map_err(of_second)?;
    if first.half() == FirstHalf::Waiting {
        first.slot.fused_second.set(Some(slot.id));
    }
    slot.until(|| first.half() != FirstHalf::Waiting || first.slot.is_parked())
        .await
        .map_err(of_second)?;
    let entered = enter(queue, slot, &namespace).await.map_err(of_second)?;
    if let FirstHalf::Ended(status) = first.half() {
        return Err((status, FAILED));
    }
    // From here on the first half can no longer be aborted by itself.
    first.slot.hold();
    let both = join(first.slot.take_payload(), &data).map_err(of_second)?;
    drop(data);
    let op = Op::CompareAndWrite {
        fua: sqe.fua() || super::is_write_through(queue),
    };
    let extent = (block::Lba(sqe.slba().0), sqe.block_count());
    match device(queue, slot, &entered, op, extent, both).await {
        Ok(_) => Ok(()),
        Err(status) if status.is(Status::COMPARE_FAILURE) => Err((status, FAILED)),
        Err(status) => Err((FAILED, status)),
    }
}

/// Receives the data to write. Never waits for a buffer: the first half holds one, and pairs that
/// wait for each other's would wait for ever.
async fn prepare_second(
    queue: &Rc<Queue>,
    slot: &Slot,
    sqe: &Sqe,
) -> Result<(Begun, Payload), Status> {
    let (namespace, bytes) = prepare(queue, slot, sqe, Access::Write).await?;
    let buffer = queue.buffer_now(slot, bytes)?;
    let data = slot.receive(Payload::Buf(buffer), bytes).await?;
    Ok((namespace, data))
}

/// The data to compare with and the data to write in one buffer, in this order.
fn join(mut compare: Payload, data: &Payload) -> Result<Payload, Status> {
    let half = data.len();
    let buffer = compare
        .as_buf_mut()
        .filter(|buffer| buffer.capacity() >= 2 * half);
    let buffer = buffer.ok_or(Status::INTERNAL_ERROR)?;
    buffer.set_len(2 * half);
    buffer.as_mut_slice()[half..].copy_from_slice(bytes_of(data));
    Ok(compare)
}

/// Checks one half; its namespace and bytes.
async fn prepare(
    queue: &Rc<Queue>,
    slot: &Slot,
    sqe: &Sqe,
    access: Access,
) -> Result<(Begun, u32), Status> {
    let namespace = begin(queue, slot, sqe, access).await?;
    let extent = Extent::of_transfer(queue, &namespace, sqe)?;
    if sqe.block_count() > limits::COMPARE_AND_WRITE_BLOCKS_MAX {
        return Err(Status::INVALID_FIELD.with_dnr(true));
    }
    if queue.sgl_len(sqe, slot)? != extent.bytes {
        return Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr(true));
    }
    Ok((namespace, extent.bytes))
}
