//! Dataset Management (NVM Command Set 1.1, section 3.2.3).

use std::rc::Rc;

use block::{Lba, Op, OpKind};
use dma::Payload;
use nvme_spec::{DsmRange, Sqe, Status};
use zerocopy::FromBytes;

use super::{Access, begin, bytes_of, device, enter};
use crate::limits;
use crate::queue::Queue;
use crate::slot::Slot;

/// Deallocates the ranges. The other attributes are hints, and are taken as such.
pub(super) async fn dataset_management(
    queue: &Rc<Queue>,
    slot: &Slot,
    sqe: &Sqe,
) -> Result<(), Status> {
    let access = if sqe.dsm_deallocate() {
        Access::Write
    } else {
        Access::Flush
    };
    let namespace = begin(queue, slot, sqe, access).await?;
    let count = sqe.dsm_range_count();
    let size = size_of::<DsmRange>();
    // Linux always sends the room of 256 ranges, however few it counts: more than needed is right.
    let len = queue.sgl_len(sqe, slot)?;
    if !(count * size as u32..=limits::DSM_RANGES_MAX * size as u32).contains(&len) {
        return Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr(true));
    }
    let payload = queue.receive(slot, len).await?;
    let geometry = namespace.geometry.get();
    if !sqe.dsm_deallocate() || !geometry.supports.contains(OpKind::Unmap) {
        // Advice that is not taken.
        return Ok(());
    }
    let block_count = geometry.block_count;
    // All ranges are checked before the first is touched.
    for index in 0..count as usize {
        let (lba, blocks) = range(&payload, index)?;
        let end = lba.checked_add(u64::from(blocks));
        if end.is_none_or(|end| end > block_count) {
            return Err(Status::LBA_OUT_OF_RANGE.with_dnr(true));
        }
    }
    let entered = enter(queue, slot, &namespace).await?;
    for index in 0..count as usize {
        let (lba, blocks) = range(&payload, index)?;
        if blocks > 0 {
            device(
                queue,
                slot,
                &entered,
                Op::Unmap,
                (Lba(lba), blocks),
                Payload::None,
            )
            .await?;
        }
    }
    Ok(())
}

fn range(payload: &Payload, index: usize) -> Result<(u64, u32), Status> {
    let size = size_of::<DsmRange>();
    let bytes = bytes_of(payload).get(index * size..(index + 1) * size);
    let range = bytes
        .and_then(|bytes| DsmRange::read_from_bytes(bytes).ok())
        .ok_or(Status::DATA_SGL_LENGTH_INVALID.with_dnr(true))?;
    Ok((range.slba.get(), range.llb.get()))
}
