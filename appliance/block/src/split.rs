//! Splitting an I/O at a device's limits.

use std::time::Instant;

use crate::bdev_channel::advance;
use crate::device::Geometry;
use crate::io::{Completion, Io, IoError, Op};
use crate::view::Parts;

/// A device's limits, as splitting needs them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Split {
    max_transfer_blocks: u32,
    max_unmap_blocks: u32,
    max_verify_blocks: u32,
    boundary_blocks: u32,
    /// The boundary less 1 where that is a mask, as it nearly always is: a division takes longer than all
    /// else here. All ones where there is no boundary.
    boundary_mask: Option<u64>,
    has_limits: bool,
}

impl Split {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        let unlimited = |blocks: u32| if blocks == 0 { u32::MAX } else { blocks };
        let verify = match geometry.max_verify_blocks {
            0 => geometry.max_transfer_blocks,
            blocks => blocks,
        };
        let split = Self {
            max_transfer_blocks: unlimited(geometry.max_transfer_blocks),
            max_unmap_blocks: unlimited(geometry.max_unmap_blocks),
            max_verify_blocks: unlimited(verify),
            boundary_blocks: geometry.boundary_blocks,
            boundary_mask: match geometry.boundary_blocks {
                0 => Some(u64::MAX),
                blocks => blocks.is_power_of_two().then(|| u64::from(blocks) - 1),
            },
            has_limits: false,
        };
        let has_limits = split.max_transfer_blocks != u32::MAX
            || split.max_unmap_blocks != u32::MAX
            || split.max_verify_blocks != u32::MAX
            || split.boundary_blocks != 0;
        Self {
            has_limits,
            ..split
        }
    }

    /// Is there anything that may have to be split?
    #[inline]
    pub(crate) fn has_limits(&self) -> bool {
        self.has_limits
    }

    /// How many blocks from `lba` on go in one piece, at most `blocks`.
    #[inline]
    pub(crate) fn first_piece(&self, op: Op, lba: u64, blocks: u64) -> u32 {
        let limit = match op {
            Op::Unmap | Op::WriteZeroes { .. } => self.max_unmap_blocks,
            Op::Verify => self.max_verify_blocks,
            _ => self.max_transfer_blocks,
        };
        let piece = blocks.min(u64::from(limit)).min(self.before_boundary(lba));
        u32::try_from(piece).unwrap_or(u32::MAX)
    }

    /// Blocks from `lba` to the next boundary.
    #[inline]
    fn before_boundary(&self, lba: u64) -> u64 {
        match self.boundary_mask {
            Some(mask) => (mask - (lba & mask)).saturating_add(1),
            None => u64::from(self.boundary_blocks) - lba % u64::from(self.boundary_blocks),
        }
    }

    #[inline]
    pub(crate) fn is_needed(&self, io: &Io) -> bool {
        self.has_limits
            && io.op.has_range()
            && self.first_piece(io.op, io.lba.0, io.blocks.into()) < io.blocks
    }
}

/// An I/O that goes to the device in parts.
#[derive(Debug)]
pub(crate) struct Parent {
    io: Io,
    parts: Parts,
    pub(crate) started: Instant,
    /// Blocks given to the device so far.
    given_blocks: u64,
    /// Parts that are with the device.
    pub(crate) parts_out: u32,
    /// Waits in the channel's list of split I/Os without anything to wake them.
    pub(crate) parked: bool,
    /// The error of the part with the lowest block.
    error: Option<(u64, IoError)>,
}

impl Parent {
    pub(crate) fn new(mut io: Io, started: Instant) -> Self {
        let parts = Parts::new(io.payload.take());
        Self {
            io,
            parts,
            started,
            given_blocks: 0,
            parts_out: 0,
            parked: false,
            error: None,
        }
    }

    pub(crate) fn io(&self) -> &Io {
        &self.io
    }

    pub(crate) fn parts_are_writable(&self) -> bool {
        self.parts.writable()
    }

    /// Nothing more to give: all is given, or a part failed.
    pub(crate) fn all_given(&self) -> bool {
        self.error.is_some() || self.given_blocks == u64::from(self.io.blocks)
    }

    /// The next part, and its first block counted from the start of the whole.
    pub(crate) fn next_part(&mut self, split: &Split, block_shift: u32) -> (Io, u64) {
        let first_block = self.given_blocks;
        let lba = advance(self.io.lba, first_block);
        let left = u64::from(self.io.blocks) - first_block;
        let blocks = split.first_piece(self.io.op, lba.0, left);
        let payload = match self.io.op {
            Op::Read | Op::Write { .. } | Op::Compare => {
                self.parts.take((blocks as usize) << block_shift)
            }
            _ => dma::Payload::None,
        };
        self.given_blocks += u64::from(blocks);
        self.parts_out += 1;
        (
            Io {
                op: self.io.op,
                lba,
                blocks,
                payload,
                tag: self.io.tag,
            },
            first_block,
        )
    }

    pub(crate) fn part_ended(
        &mut self,
        first_block: u64,
        block_shift: u32,
        result: Result<(), IoError>,
    ) {
        self.parts_out -= 1;
        let Err(error) = result else { return };
        let error = match error {
            IoError::CompareMismatch { offset_bytes } => {
                let offset = (first_block << block_shift) + u64::from(offset_bytes);
                IoError::CompareMismatch {
                    offset_bytes: u32::try_from(offset).unwrap_or(u32::MAX),
                }
            }
            other => other,
        };
        if self.error.is_none_or(|(block, _)| first_block < block) {
            self.error = Some((first_block, error));
        }
    }

    /// The whole, ended.
    pub(crate) fn finish(mut self) -> Completion {
        self.io.payload = self.parts.finish();
        let result = self.error.map_or(Ok(()), |(_, error)| Err(error));
        self.io.complete(result)
    }
}
