//! One I/O: what is asked, and how it ended.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

use dma::Payload;

/// A logical block address on one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lba(pub u64);

impl fmt::Display for Lba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What an [`Io`] asks of a device.
///
/// The durability rules are those of NVMe: a completed `Write` may sit in a volatile cache until a
/// later `Flush` completes; `fua` makes the one operation durable before it completes. `Flush`
/// covers what was *completed* before it was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Read into the payload, or, when the payload is `None` and the device lends, have
    /// `Payload::Lent` filled in.
    Read,
    /// Write the payload.
    Write {
        /// Durable before the completion.
        fua: bool,
    },
    /// Make every completed write durable. `lba` and `blocks` are ignored.
    Flush,
    /// The blocks' content is no longer needed. Every device of this crate reads zeroes afterwards,
    /// but for a file system that cannot punch holes, where old data may stay.
    Unmap,
    /// Blocks read as zeroes afterwards; no payload.
    WriteZeroes {
        /// The device may deallocate the blocks (NVMe DEAC).
        unmap: bool,
        /// Durable before the completion.
        fua: bool,
    },
    /// Compare the blocks with the payload.
    Compare,
    /// Compare with the first half of the payload, then write the second half. Nothing else that
    /// changes the device happens between the two.
    CompareAndWrite {
        /// Durable before the completion.
        fua: bool,
    },
    /// Check that the blocks can be read; moves no data to the caller.
    Verify,
    /// Reset the device. `lba` and `blocks` are ignored. I/O in flight still completes.
    Reset,
}

/// The kind of an [`Op`] without its flags: an index of statistics, limits and injection rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum OpKind {
    /// [`Op::Read`]
    Read = 0,
    /// [`Op::Write`]
    Write = 1,
    /// [`Op::Flush`]
    Flush = 2,
    /// [`Op::Unmap`]
    Unmap = 3,
    /// [`Op::WriteZeroes`]
    WriteZeroes = 4,
    /// [`Op::Compare`]
    Compare = 5,
    /// [`Op::CompareAndWrite`]
    CompareAndWrite = 6,
    /// [`Op::Verify`]
    Verify = 7,
    /// [`Op::Reset`]
    Reset = 8,
}

impl OpKind {
    /// How many kinds there are.
    pub const COUNT: usize = 9;
    /// Every kind, in index order.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Unmap,
        Self::WriteZeroes,
        Self::Compare,
        Self::CompareAndWrite,
        Self::Verify,
        Self::Reset,
    ];

    /// The index of this kind in [`OpKind::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The name used in statistics and in the management interface.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Unmap => "unmap",
            Self::WriteZeroes => "write_zeroes",
            Self::Compare => "compare",
            Self::CompareAndWrite => "compare_and_write",
            Self::Verify => "verify",
            Self::Reset => "reset",
        }
    }

    /// The kind with this [`OpKind::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for OpKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Op {
    /// The kind of this operation.
    #[must_use]
    #[inline]
    pub const fn kind(self) -> OpKind {
        match self {
            Self::Read => OpKind::Read,
            Self::Write { .. } => OpKind::Write,
            Self::Flush => OpKind::Flush,
            Self::Unmap => OpKind::Unmap,
            Self::WriteZeroes { .. } => OpKind::WriteZeroes,
            Self::Compare => OpKind::Compare,
            Self::CompareAndWrite { .. } => OpKind::CompareAndWrite,
            Self::Verify => OpKind::Verify,
            Self::Reset => OpKind::Reset,
        }
    }

    /// Whether the operation names a range of blocks.
    #[must_use]
    #[inline]
    pub const fn has_range(self) -> bool {
        !matches!(self, Self::Flush | Self::Reset)
    }

    /// Whether the operation can change what a later read returns.
    #[must_use]
    #[inline]
    pub const fn modifies(self) -> bool {
        matches!(
            self,
            Self::Write { .. }
                | Self::Unmap
                | Self::WriteZeroes { .. }
                | Self::CompareAndWrite { .. }
        )
    }

    /// Whether the operation must be durable before it completes.
    #[must_use]
    pub const fn fua(self) -> bool {
        matches!(
            self,
            Self::Write { fua: true }
                | Self::WriteZeroes { fua: true, .. }
                | Self::CompareAndWrite { fua: true }
        )
    }
}

/// A set of operation kinds.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct OpSet(u16);

impl OpSet {
    /// No operation.
    pub const EMPTY: Self = Self(0);
    /// Every operation.
    pub const ALL: Self = Self((1 << OpKind::COUNT) - 1);

    /// The set of `kinds`.
    #[must_use]
    pub const fn of(kinds: &[OpKind]) -> Self {
        let mut bits = 0;
        let mut i = 0;
        while i < kinds.len() {
            bits |= 1 << kinds[i] as u16;
            i += 1;
        }
        Self(bits)
    }

    /// Whether `kind` is in the set.
    #[must_use]
    #[inline]
    pub const fn contains(self, kind: OpKind) -> bool {
        self.0 & (1 << kind as u16) != 0
    }

    /// This set without `kind`.
    #[must_use]
    pub const fn without(self, kind: OpKind) -> Self {
        Self(self.0 & !(1 << kind as u16))
    }

    /// This set and `kind`.
    #[must_use]
    pub const fn with(self, kind: OpKind) -> Self {
        Self(self.0 | (1 << kind as u16))
    }

    /// The kinds of the set.
    pub fn iter(self) -> impl Iterator<Item = OpKind> {
        OpKind::ALL
            .into_iter()
            .filter(move |kind| self.contains(*kind))
    }
}

impl BitOr for OpSet {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for OpSet {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl fmt::Debug for OpSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// One I/O, from submission to completion.
///
/// Lengths: `Read`, `Write` and `Compare` take a payload of `blocks * block_size` bytes,
/// `CompareAndWrite` twice that (compare data first), the others none. A longer payload is
/// refused, so that a wrong length is never taken for a right one.
#[derive(Debug)]
pub struct Io {
    /// What to do.
    pub op: Op,
    /// First block.
    pub lba: Lba,
    /// Number of blocks. 0 is refused for operations with a range.
    pub blocks: u32,
    /// Data; goes back to the caller in the [`Completion`].
    pub payload: Payload,
    /// The caller's own number; comes back unchanged.
    pub tag: u64,
}

impl Io {
    /// An I/O without payload.
    #[must_use]
    pub fn new(op: Op, lba: u64, blocks: u32, tag: u64) -> Self {
        Self::with_payload(op, lba, blocks, Payload::None, tag)
    }

    /// An I/O with payload.
    #[must_use]
    pub fn with_payload(op: Op, lba: u64, blocks: u32, payload: Payload, tag: u64) -> Self {
        Self {
            op,
            lba: Lba(lba),
            blocks,
            payload,
            tag,
        }
    }

    /// This I/O, ended with `result`.
    #[must_use]
    pub fn complete(self, result: Result<(), IoError>) -> Completion {
        Completion { io: self, result }
    }
}

/// An ended I/O.
#[derive(Debug)]
pub struct Completion {
    /// The I/O as it was submitted, with its payload.
    pub io: Io,
    /// How it ended.
    pub result: Result<(), IoError>,
}

/// The answer of `submit`.
#[derive(Debug)]
#[must_use]
pub enum Submit {
    /// The I/O has ended already; it will not appear in `poll`.
    Done(Completion),
    /// The I/O will appear in a later `poll`.
    Pending,
}

/// How an I/O failed. The target maps each to an NVMe status in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// The range reaches beyond the last block.
    #[error("range is beyond the end of the device")]
    OutOfRange,
    /// A field of the I/O is wrong: no blocks, a payload of another length, an impossible size.
    #[error("invalid field")]
    InvalidField,
    /// The device cannot do this operation.
    #[error("operation not supported by the device")]
    Unsupported,
    /// The device or the bdev is read-only.
    #[error("write protected")]
    WriteProtected,
    /// The medium failed to read.
    #[error("unrecovered read error")]
    MediaRead,
    /// The medium failed to write.
    #[error("write fault")]
    MediaWrite,
    /// Compare found a difference.
    #[error("compare mismatch at byte {offset_bytes}")]
    CompareMismatch {
        /// First differing byte, counted from the start of the range.
        offset_bytes: u32,
    },
    /// The backing store has no room: a full file system, an exhausted quota.
    #[error("no space in the backing store")]
    NoSpace,
    /// Taken back by `abort` or by an error before it reached the device.
    #[error("aborted")]
    Aborted,
    /// The device is gone.
    #[error("device removed")]
    Removed,
    /// A fault that is not the medium's.
    #[error("internal device error")]
    Internal,
    /// The channel's bound is reached; try again after completions.
    #[error("too many operations in flight")]
    Busy,
    /// A status put in by the error layer, passed to the host as it is.
    #[error("injected status {sct:#x}/{sc:#x}")]
    Injected {
        /// NVMe status code type.
        sct: u8,
        /// NVMe status code.
        sc: u8,
        /// NVMe do-not-retry bit.
        dnr: bool,
    },
}
