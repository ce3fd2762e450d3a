//! Fused Compare and Write (NVM Command Set 1.1, section 3.1.2; NVMe Base 2.1, section 3.4.2).
//!
//! The two commands arrive one after the other. The first gets its data and waits; the second
//! gets its data and runs both as one device operation. Any other command in between, or a pair
//! that does not match, fails the half that cannot go on.

use std::rc::Rc;

use block::Op;
use dma::Payload;
use nvme_spec::{Fuse, Sqe, Status, opcode::nvm};

use super::{Access, Extent, begin, bytes_of, device, receive};
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

impl FirstHalf {
    fn status(self) -> Status {
        match self {
            Self::Waiting => Status::ABORTED_MISSING_FUSED,
            Self::Ended(status) => status,
        }
    }
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
        Fuse::Reserved => Err(Status::INVALID_FIELD.with_dnr(true)),
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
    queue.fused.set(Some(slot.id));
    let received = if sqe.opcode() == nvm::COMPARE {
        prepare(queue, slot, sqe, Access::Read).await
    } else {
        Err(Status::INVALID_FIELD.with_dnr(true))
    };
    let payload = match received {
        Ok((_, payload)) => payload,
        Err(status) => {
            slot.fused.set(FirstHalf::Ended(status));
            return Err(status);
        }
    };
    slot.park(payload);
    // The second half may have come while the data was on its way.
    if let Some(second) = slot.fused_second.take() {
        queue.group.ready.borrow_mut().push_back((queue.id, second));
    }
    let ended = match slot.until(|| slot.fused.get() != FirstHalf::Waiting).await {
        Ok(()) => slot.fused.get().status(),
        Err(status) => status,
    };
    slot.fused.set(FirstHalf::Ended(ended));
    drop(slot.take_payload());
    if ended.is_success() { Ok(()) } else { Err(ended) }
}

async fn second(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<(), Status> {
    let Some(first) = queue.fused.take() else {
        return Err(Status::ABORTED_MISSING_FUSED.with_dnr(true));
    };
    let first = queue.slot(first);
    let compare = first.sqe();
    let matches = sqe.opcode() == nvm::WRITE
        && sqe.nsid() == compare.nsid()
        && sqe.slba() == compare.slba()
        && sqe.block_count() == compare.block_count();
    let result = if matches {
        pair(queue, slot, &first, sqe).await
    } else {
        Err((Status::INVALID_FIELD.with_dnr(true), Status::ABORTED_FAILED_FUSED))
    };
    let (of_first, of_second) = match result {
        Ok(()) => (Status::SUCCESS, Status::SUCCESS),
        Err(both) => both,
    };
    if first.fused.get() == FirstHalf::Waiting {
        first.fused.set(FirstHalf::Ended(of_first));
        queue.group.ready.borrow_mut().push_back((queue.id, first.id));
    }
    if of_second.is_success() { Ok(()) } else { Err(of_second) }
}

/// Runs both halves; errors are the statuses of the first and of the second.
async fn pair(
    queue: &Rc<Queue>,
    slot: &Slot,
    first: &Rc<Slot>,
    sqe: &Sqe,
) -> Result<(), (Status, Status)> {
    const FAILED: Status = Status::ABORTED_FAILED_FUSED;
    let (namespace, data) =
        prepare(queue, slot, sqe, Access::Write).await.map_err(|status| (FAILED, status))?;
    first.fused_second.set(Some(slot.id));
    slot.until(|| first.fused.get() != FirstHalf::Waiting || first.is_parked())
        .await
        .map_err(|status| (FAILED, status))?;
    if let FirstHalf::Ended(status) = first.fused.get() {
        return Err((status, FAILED));
    }
    let compare = first.take_payload();
    let bytes = compare.len() + data.len();
    let mut both = queue.buffer(slot, bytes as u32).await.map_err(|status| (FAILED, status))?;
    let (to_compare, to_write) = both.as_mut_slice().split_at_mut(compare.len());
    to_compare.copy_from_slice(bytes_of(&compare));
    to_write.copy_from_slice(bytes_of(&data));
    drop((compare, data));
    let op = Op::CompareAndWrite { fua: sqe.fua() || super::is_write_through(queue) };
    let extent = (block::Lba(sqe.slba().0), sqe.block_count());
    match device(queue, slot, &namespace, op, extent, Payload::Buf(both)).await {
        Ok(_) => Ok(()),
        Err(status) if status.sc() == Status::COMPARE_FAILURE.sc() => Err((status, FAILED)),
        Err(status) => Err((FAILED, status)),
    }
}

/// Enters the namespace, checks the blocks and receives the data of one half.
async fn prepare(
    queue: &Rc<Queue>,
    slot: &Slot,
    sqe: &Sqe,
    access: Access,
) -> Result<(crate::group_namespace::Entered, Payload), Status> {
    let namespace = begin(queue, slot, sqe, access).await?;
    let extent = Extent::of_transfer(queue, namespace.namespace(), sqe)?;
    if sqe.block_count() > limits::COMPARE_AND_WRITE_BLOCKS_MAX {
        return Err(Status::INVALID_FIELD.with_dnr(true));
    }
    let payload = receive(queue, slot, sqe, extent.bytes).await?;
    Ok((namespace, payload))
}
