//! Copy within a namespace, source descriptor format 0 (NVM Command Set 1.1, section 3.2.2).

use std::rc::Rc;

use block::{Lba, Op};
use dma::Payload;
use nvme_spec::{CopyRange, Sqe, Status};
use zerocopy::FromBytes;

use super::{Access, begin, bytes_of, device, receive};
use crate::group_namespace::Entered;
use crate::limits;
use crate::queue::Queue;
use crate::slot::Slot;

/// Copies the ranges one after the other, through one buffer.
pub(super) async fn copy(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<(), Status> {
    let namespace = begin(queue, slot, sqe, Access::Write).await?;
    if sqe.copy_format() != 0 {
        return Err(Status::INVALID_FIELD.with_dnr(true));
    }
    let count = sqe.copy_range_count();
    if count > limits::COPY_RANGES_MAX {
        return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.with_dnr(true));
    }
    let ranges = receive(queue, slot, sqe, count * size_of::<CopyRange>() as u32).await?;
    check(&namespace, sqe, &ranges, count)?;
    let fua = sqe.fua() || super::is_write_through(queue);
    let mut target = sqe.copy_sdlba().0;
    for index in 0..count as usize {
        let (source, blocks) = range(&ranges, index)?;
        copy_range(queue, slot, &namespace, source, target, blocks, fua).await?;
        target += u64::from(blocks);
    }
    Ok(())
}

/// Checks every range and the whole before anything is written.
fn check(namespace: &Entered, sqe: &Sqe, ranges: &Payload, count: u32) -> Result<(), Status> {
    let block_count = namespace.namespace().geometry.get().block_count;
    let fits = |lba: u64, blocks: u64| lba.checked_add(blocks).is_some_and(|end| end <= block_count);
    let mut total = 0;
    for index in 0..count as usize {
        let (lba, blocks) = range(ranges, index)?;
        if blocks > limits::COPY_RANGE_BLOCKS_MAX {
            return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.with_dnr(true));
        }
        if !fits(lba, u64::from(blocks)) {
            return Err(Status::LBA_OUT_OF_RANGE.with_dnr(true));
        }
        total += u64::from(blocks);
    }
    if total > u64::from(limits::COPY_BLOCKS_MAX) {
        return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.with_dnr(true));
    }
    if !fits(sqe.copy_sdlba().0, total) {
        return Err(Status::LBA_OUT_OF_RANGE.with_dnr(true));
    }
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "the five numbers of one copy, and who runs it")]
async fn copy_range(
    queue: &Rc<Queue>,
    slot: &Slot,
    namespace: &Entered,
    source: u64,
    target: u64,
    blocks: u32,
    fua: bool,
) -> Result<(), Status> {
    let block_size = namespace.namespace().geometry.get().block_size;
    let chunk = (queue.limits.max_io_size / block_size).max(1);
    let mut done = 0;
    while done < blocks {
        let now = chunk.min(blocks - done);
        let offset = u64::from(done);
        let buffer = Payload::Buf(queue.buffer(slot, now * block_size).await?);
        let from = (Lba(source + offset), now);
        let data = device(queue, slot, namespace, Op::Read, from, buffer).await?;
        let to = (Lba(target + offset), now);
        device(queue, slot, namespace, Op::Write { fua }, to, data).await?;
        done += now;
    }
    Ok(())
}

/// Source LBA and number of blocks of a range.
fn range(payload: &Payload, index: usize) -> Result<(u64, u32), Status> {
    let size = size_of::<CopyRange>();
    let bytes = bytes_of(payload).get(index * size..(index + 1) * size);
    let range = bytes
        .and_then(|bytes| CopyRange::read_from_bytes(bytes).ok())
        .ok_or(Status::DATA_SGL_LENGTH_INVALID.with_dnr(true))?;
    Ok((range.slba.get(), u32::from(range.nlb.get()) + 1))
}
