//! Copy within a namespace, source descriptor format 0 (NVM Command Set 1.1, section 3.2.2).

use std::rc::Rc;

use block::{Lba, Op};
use dma::Payload;
use nvme_spec::{CopyRange, Sqe, Status};
use zerocopy::FromBytes;

use super::{Access, begin, bytes_of, device, enter, receive};
use crate::group_namespace::Entered;
use crate::limits;
use crate::queue::Queue;
use crate::slot::Slot;

/// Source ranges: first block and number of blocks.
type Ranges = [(u64, u32); limits::COPY_RANGES_MAX as usize];

/// Copies the ranges one after the other, through one buffer.
pub(super) async fn copy(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<(), Status> {
    let namespace = begin(queue, slot, sqe, Access::Write).await?;
    // PRINFOR, PRINFOW, STCR, STCW: no namespace has protection information.
    let has_protection = sqe.cdw12() >> 12 & 0xf != 0 || sqe.cdw12() >> 24 & 0x3f != 0;
    if sqe.copy_format() != 0 || has_protection {
        return Err(Status::INVALID_FIELD.with_dnr(true));
    }
    // The list's buffer goes back before the next is asked for: commands that hold one and wait
    // for another could wait for each other.
    let (ranges, count) = read_ranges(queue, slot, sqe).await?;
    let ranges = &ranges[..count];
    let geometry = namespace.geometry.get();
    check(geometry.block_count, sqe, ranges)?;
    let longest = ranges.iter().map(|(_, blocks)| *blocks).max().unwrap_or(1);
    let chunk = (queue.limits.max_io_size / geometry.block_size).clamp(1, longest);
    let mut copy = Copy {
        queue,
        slot,
        block_size: geometry.block_size,
        chunk,
        fua: sqe.fua() || super::is_write_through(queue),
        // One buffer for all: once entered, nothing is waited for but the device.
        buffer: Payload::Buf(queue.buffer(slot, chunk * geometry.block_size).await?),
    };
    let entered = enter(queue, slot, &namespace).await?;
    let mut target = sqe.copy_sdlba().0;
    for (source, blocks) in ranges {
        copy.range(&entered, *source, target, *blocks).await?;
        target += u64::from(*blocks);
    }
    Ok(())
}

async fn read_ranges(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<(Ranges, usize), Status> {
    let count = sqe.copy_range_count();
    if count > limits::COPY_RANGES_MAX {
        return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.with_dnr(true));
    }
    let payload = receive(queue, slot, sqe, count * size_of::<CopyRange>() as u32).await?;
    let mut ranges = Ranges::default();
    let count = count as usize;
    for (index, range) in ranges[..count].iter_mut().enumerate() {
        *range = self::range(&payload, index)?;
    }
    Ok((ranges, count))
}

/// Checks every range and the whole before anything is written.
fn check(block_count: u64, sqe: &Sqe, ranges: &[(u64, u32)]) -> Result<(), Status> {
    let fits = |lba: u64, blocks: u64| {
        lba.checked_add(blocks)
            .is_some_and(|end| end <= block_count)
    };
    let mut total = 0;
    for (lba, blocks) in ranges {
        if *blocks > limits::COPY_RANGE_BLOCKS_MAX {
            return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.with_dnr(true));
        }
        if !fits(*lba, u64::from(*blocks)) {
            return Err(Status::LBA_OUT_OF_RANGE.with_dnr(true));
        }
        total += u64::from(*blocks);
    }
    if total > u64::from(limits::COPY_BLOCKS_MAX) {
        return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED.with_dnr(true));
    }
    if !fits(sqe.copy_sdlba().0, total) {
        return Err(Status::LBA_OUT_OF_RANGE.with_dnr(true));
    }
    Ok(())
}

struct Copy<'a> {
    queue: &'a Rc<Queue>,
    slot: &'a Slot,
    block_size: u32,
    /// Blocks that the buffer holds.
    chunk: u32,
    fua: bool,
    buffer: Payload,
}

impl Copy<'_> {
    async fn range(
        &mut self,
        entered: &Entered,
        source: u64,
        target: u64,
        blocks: u32,
    ) -> Result<(), Status> {
        let mut done = 0;
        while done < blocks {
            let now = self.chunk.min(blocks - done);
            let offset = u64::from(done);
            let mut buffer = self.buffer.take();
            if let Some(buffer) = buffer.as_buf_mut() {
                buffer.set_len((now * self.block_size) as usize);
            }
            let from = (Lba(source + offset), now);
            let data = device(self.queue, self.slot, entered, Op::Read, from, buffer).await?;
            let to = (Lba(target + offset), now);
            let op = Op::Write { fua: self.fua };
            self.buffer = device(self.queue, self.slot, entered, op, to, data).await?;
            done += now;
        }
        Ok(())
    }
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
