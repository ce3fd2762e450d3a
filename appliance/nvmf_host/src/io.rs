//! I/O commands.

use std::time::Duration;

use nvme_spec::opcode::nvm;
use nvme_spec::{Cid, CopyRange, DsmRange, Fuse, Lba, Nsid, Sqe};
use zerocopy::IntoBytes;

use crate::buffer::Buffer;
use crate::command::{Command, Direction, SglSource};

/// Most logical blocks of one command: NLB has 16 bits.
pub const MAX_BLOCKS: u32 = 1 << 16;
/// Most ranges of one Dataset Management or Copy.
pub const MAX_RANGES: u32 = 256;

/// An I/O command. Blocks are 1 to [`MAX_BLOCKS`], but for Copy and Dataset Management.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoOp {
    /// Reads into the buffer.
    Read {
        /// First block.
        lba: Lba,
        /// Number of blocks.
        blocks: u32,
    },
    /// Writes from the buffer.
    Write {
        /// First block.
        lba: Lba,
        /// Number of blocks.
        blocks: u32,
        /// Force unit access: on stable media when it is answered.
        fua: bool,
    },
    /// Commits what was written. With [`Nsid::ALL`] of all namespaces, where the controller can.
    Flush,
    /// Writes zeroes without sending any.
    WriteZeroes {
        /// First block.
        lba: Lba,
        /// Number of blocks.
        blocks: u32,
        /// DEAC: the blocks may be deallocated.
        deallocate: bool,
        /// Force unit access.
        fua: bool,
    },
    /// Deallocates the ranges in the buffer; see [`dsm_ranges`].
    Deallocate,
    /// Compares with the buffer.
    Compare {
        /// First block.
        lba: Lba,
        /// Number of blocks.
        blocks: u32,
    },
    /// Reads without returning the data.
    Verify {
        /// First block.
        lba: Lba,
        /// Number of blocks.
        blocks: u32,
    },
    /// Copies the ranges in the buffer, one after the other, to here; see [`copy_ranges`].
    Copy {
        /// First block of the destination.
        to: Lba,
    },
    /// Any other command; its NSID is the request's.
    Raw {
        /// The entry.
        sqe: Sqe,
        /// Which way the buffer goes.
        direction: Direction,
    },
}

/// An I/O command with its data.
#[derive(Debug)]
pub struct IoRequest {
    /// The namespace.
    pub nsid: Nsid,
    /// What to do.
    pub op: IoOp,
    /// The data. Its length must fit the command; the controller checks that.
    pub buffer: Buffer,
    /// A number of the caller's that the completion carries; below [`MAX_TAG`].
    pub tag: u64,
    /// Time until it is aborted; `None` is the queue's default.
    pub timeout: Option<Duration>,
}

/// Tags from here on are the library's own.
pub const MAX_TAG: u64 = u64::MAX - 0xFF;

impl IoRequest {
    /// A request without data and with the default time-out.
    #[must_use]
    pub fn new(nsid: Nsid, op: IoOp, tag: u64) -> Self {
        Self {
            nsid,
            op,
            buffer: Buffer::None,
            tag,
            timeout: None,
        }
    }

    /// With data.
    #[must_use]
    pub fn with_buffer(mut self, buffer: impl Into<Buffer>) -> Self {
        self.buffer = buffer.into();
        self
    }

    /// The command; `None` when the request makes none.
    pub(crate) fn entry(&self) -> Option<(Sqe, Direction)> {
        let (cid, nsid) = (Cid(0), self.nsid);
        let fits = |blocks: u32| (1..=MAX_BLOCKS).contains(&blocks);
        let entry = match self.op {
            IoOp::Read { lba, blocks } if fits(blocks) => {
                (Sqe::read(cid, nsid, lba, blocks), Direction::FromController)
            }
            IoOp::Write { lba, blocks, fua } if fits(blocks) => {
                let sqe = Sqe::write(cid, nsid, lba, blocks).with_fua(fua);
                (sqe, Direction::ToController)
            }
            IoOp::Flush => (Sqe::flush(cid, nsid), Direction::None),
            IoOp::WriteZeroes {
                lba,
                blocks,
                deallocate,
                fua,
            } if fits(blocks) => {
                const DEAC: u32 = 1 << 25;
                let sqe = Sqe::write_zeroes(cid, nsid, lba, blocks).with_fua(fua);
                let cdw12 = sqe.cdw12() | if deallocate { DEAC } else { 0 };
                (sqe.with_cdw12(cdw12), Direction::None)
            }
            IoOp::Deallocate => {
                let ranges = self.ranges(size_of::<DsmRange>())?;
                (Sqe::deallocate(cid, nsid, ranges), Direction::ToController)
            }
            IoOp::Compare { lba, blocks } if fits(blocks) => {
                (self.at(nvm::COMPARE, lba, blocks), Direction::ToController)
            }
            IoOp::Verify { lba, blocks } if fits(blocks) => {
                (self.at(nvm::VERIFY, lba, blocks), Direction::None)
            }
            IoOp::Copy { to } => {
                let ranges = self.ranges(size_of::<CopyRange>())?;
                let sqe = Sqe::new(nvm::COPY, cid).with_nsid(nsid).with_slba(to);
                (sqe.with_cdw12(ranges - 1), Direction::ToController)
            }
            IoOp::Raw { sqe, direction } => (sqe.with_nsid(nsid), direction),
            _ => return None,
        };
        Some(entry)
    }

    fn at(&self, opcode: u8, lba: Lba, blocks: u32) -> Sqe {
        let sqe = Sqe::new(opcode, Cid(0)).with_nsid(self.nsid);
        sqe.with_slba(lba).with_block_count(blocks)
    }

    fn ranges(&self, len: usize) -> Option<u32> {
        let count = u32::try_from(self.buffer.len() / len).ok()?;
        let is_whole = self.buffer.len().is_multiple_of(len);
        (is_whole && (1..=MAX_RANGES).contains(&count)).then_some(count)
    }

    pub(crate) fn into_command(self, (sqe, direction): (Sqe, Direction), fuse: Fuse) -> Command {
        Command {
            sqe: sqe.with_fuse(fuse),
            buffer: self.buffer,
            direction,
            sgl: SglSource::Queue,
            tag: self.tag,
            timeout: self.timeout,
        }
    }
}

/// The data of [`IoOp::Deallocate`]: at most [`MAX_RANGES`] ranges of a first block and a length.
#[must_use]
pub fn dsm_ranges(ranges: &[(Lba, u32)]) -> Vec<u8> {
    let each = ranges
        .iter()
        .map(|&(lba, blocks)| DsmRange::new(lba, blocks));
    each.flat_map(|range| range.as_bytes().to_vec()).collect()
}

/// The data of [`IoOp::Copy`]: at most [`MAX_RANGES`] sources of a first block and a length of 1 to
/// [`MAX_BLOCKS`].
#[must_use]
pub fn copy_ranges(ranges: &[(Lba, u32)]) -> Vec<u8> {
    let each = ranges
        .iter()
        .map(|&(lba, blocks)| CopyRange::new(lba, blocks));
    each.flat_map(|range| range.as_bytes().to_vec()).collect()
}
