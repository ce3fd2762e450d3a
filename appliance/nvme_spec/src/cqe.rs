//! Completion queue entry (Base §4.2).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Cid, Qid, Status};

/// One 16-byte completion queue entry (Base §4.2).
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
pub struct Cqe {
    /// Dword 0: command specific result.
    pub dw0: U32,
    /// Dword 1: command specific, the high half of a 64-bit result of Fabrics commands.
    pub dw1: U32,
    /// SQHD, submission queue head pointer.
    pub sqhd: U16,
    /// SQID, submission queue identifier. Reserved in Fabrics.
    pub sqid: U16,
    /// CID of the command that ended.
    pub cid: U16,
    /// Phase tag in bit 0, the status in bits 15:1.
    pub status: U16,
}

const _: () = assert!(size_of::<Cqe>() == 16);

impl Cqe {
    /// The end of command `cid`, with phase tag 0 and all else zero.
    pub const fn new(cid: Cid, status: Status) -> Self {
        Self {
            dw0: U32::ZERO,
            dw1: U32::ZERO,
            sqhd: U16::ZERO,
            sqid: U16::ZERO,
            cid: U16::new(cid.0),
            status: U16::new(status.0 << 1),
        }
    }

    /// With dwords 0 and 1 replaced by `result`.
    #[must_use]
    pub const fn with_result(mut self, result: u64) -> Self {
        self.dw0 = U32::new(result as u32);
        self.dw1 = U32::new((result >> 32) as u32);
        self
    }

    /// With SQHD replaced.
    #[must_use]
    pub const fn with_sqhd(mut self, sqhd: u16) -> Self {
        self.sqhd = U16::new(sqhd);
        self
    }

    /// With SQID replaced.
    #[must_use]
    pub const fn with_sqid(mut self, sqid: Qid) -> Self {
        self.sqid = U16::new(sqid.0);
        self
    }

    /// With the phase tag replaced. Fabrics has none: it stays 0.
    #[must_use]
    pub const fn with_phase(mut self, phase: bool) -> Self {
        self.status = U16::new(self.status.get() & !1 | phase as u16);
        self
    }

    /// CID of the command that ended.
    pub const fn cid(&self) -> Cid {
        Cid(self.cid.get())
    }

    /// How the command ended, without the phase tag.
    pub const fn status(&self) -> Status {
        Status(self.status.get() >> 1)
    }

    /// The phase tag.
    pub const fn phase(&self) -> bool {
        self.status.get() & 1 != 0
    }

    /// Dwords 0 and 1 as one number.
    pub const fn result(&self) -> u64 {
        self.dw0.get() as u64 | (self.dw1.get() as u64) << 32
    }

    /// Dword 0.
    pub const fn dw0(&self) -> u32 {
        self.dw0.get()
    }

    /// SQHD: where the head of the submission queue now is.
    pub const fn sqhd(&self) -> u16 {
        self.sqhd.get()
    }

    /// SQID.
    pub const fn sqid(&self) -> Qid {
        Qid(self.sqid.get())
    }
}
