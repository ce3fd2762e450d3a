//! Range lists that I/O commands bring along.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Lba;

/// One range of Dataset Management (NVM §3.3.3).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct DsmRange {
    /// CATTR, context attributes: hints that may be ignored.
    pub cattr: U32,
    /// LLB, length in logical blocks; one-based, 0 is an empty range.
    pub llb: U32,
    /// SLBA.
    pub slba: U64,
}

const _: () = assert!(size_of::<DsmRange>() == 16);

impl DsmRange {
    /// `blocks` logical blocks at `lba`, without hints.
    pub const fn new(lba: Lba, blocks: u32) -> Self {
        Self {
            cattr: U32::ZERO,
            llb: U32::new(blocks),
            slba: U64::new(lba.0),
        }
    }

    /// First logical block.
    pub const fn slba(&self) -> Lba {
        Lba(self.slba.get())
    }

    /// Length in logical blocks; may be 0.
    pub const fn block_count(&self) -> u32 {
        self.llb.get()
    }
}

/// One source range of Copy, descriptor format 0h (NVM §3.3.2).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct CopyRange {
    /// Bytes 7:0: reserved in format 0h. Formats 2h and 3h hold the source namespace in bytes 3:0.
    pub reserved0: [u8; 8],
    /// SLBA of the source.
    pub slba: U64,
    /// NLB, length in logical blocks, zero-based.
    pub nlb: U16,
    /// Bytes 23:18.
    pub reserved18: [u8; 6],
    /// ELBT: expected initial logical block reference tag.
    pub elbt: U32,
    /// ELBAT: expected logical block application tag.
    pub elbat: U16,
    /// ELBATM: expected logical block application tag mask.
    pub elbatm: U16,
}

const _: () = assert!(size_of::<CopyRange>() == 32);

impl CopyRange {
    /// `blocks` (1 to 65536) logical blocks at `lba`, without protection information.
    pub const fn new(lba: Lba, blocks: u32) -> Self {
        Self {
            reserved0: [0; 8],
            slba: U64::new(lba.0),
            nlb: U16::new(blocks.wrapping_sub(1) as u16),
            reserved18: [0; 6],
            elbt: U32::ZERO,
            elbat: U16::ZERO,
            elbatm: U16::ZERO,
        }
    }

    /// First logical block of the source.
    pub const fn slba(&self) -> Lba {
        Lba(self.slba.get())
    }

    /// Length in logical blocks, 1 to 65536.
    pub const fn block_count(&self) -> u32 {
        self.nlb.get() as u32 + 1
    }
}
