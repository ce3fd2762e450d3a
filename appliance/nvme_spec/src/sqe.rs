//! Submission queue entry (Base §4.1; the NVM command fields: NVM §3.3).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::feature::Select;
use crate::opcode::{admin, fabrics, nvm};
use crate::{Cid, Lba, Nsid, Qid, SglDescriptor};

/// Fused operation, flags bits 1:0 (Base §3.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fuse {
    /// 00b: not part of a fused operation.
    Normal,
    /// 01b: first command of a fused operation.
    First,
    /// 10b: second command of a fused operation.
    Second,
    /// 11b: reserved.
    Reserved,
}

/// One 64-byte submission queue entry (Base §4.1).
///
/// The accessors of command specific fields only cut bits out of dwords; each means something only
/// for the commands that it names.
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
pub struct Sqe {
    /// OPC.
    pub opcode: u8,
    /// FUSE in bits 1:0, PSDT in bits 7:6.
    pub flags: u8,
    /// CID.
    pub cid: U16,
    /// NSID. In a Fabrics command, byte 4 is FCTYPE.
    pub nsid: U32,
    /// Command dword 2.
    pub cdw2: U32,
    /// Command dword 3.
    pub cdw3: U32,
    /// MPTR, metadata pointer.
    pub mptr: U64,
    /// DPTR: two PRP entries or one SGL descriptor, by PSDT.
    pub dptr: [u8; 16],
    /// Command dword 10.
    pub cdw10: U32,
    /// Command dword 11.
    pub cdw11: U32,
    /// Command dword 12.
    pub cdw12: U32,
    /// Command dword 13.
    pub cdw13: U32,
    /// Command dword 14.
    pub cdw14: U32,
    /// Command dword 15.
    pub cdw15: U32,
}

const _: () = assert!(size_of::<Sqe>() == 64);

/// One getter per command dword, with its builder.
macro_rules! dwords {
    ($($dword:ident $with:ident),* $(,)?) => {$(
        #[doc = concat!("`", stringify!($dword), "` in host byte order.")]
        pub const fn $dword(&self) -> u32 {
            self.$dword.get()
        }

        #[doc = concat!("With `", stringify!($dword), "` replaced.")]
        #[must_use]
        pub const fn $with(mut self, value: u32) -> Self {
            self.$dword = U32::new(value);
            self
        }
    )*};
}

impl Sqe {
    const FLAGS_FUSE: u8 = 0b11;
    const FLAGS_PSDT_SHIFT: u32 = 6;

    /// PSDT 00b: PRPs.
    pub const PSDT_PRP: u8 = 0b00;
    /// PSDT 01b: SGL; MPTR, if used, is the address of one contiguous buffer.
    pub const PSDT_SGL: u8 = 0b01;
    /// PSDT 10b: SGL; MPTR, if used, is the address of an SGL segment.
    pub const PSDT_SGL_METADATA_SGL: u8 = 0b10;

    /// A command with this opcode and identifier and all else zero.
    pub const fn new(opcode: u8, cid: Cid) -> Self {
        Self {
            opcode,
            flags: 0,
            cid: U16::new(cid.0),
            nsid: U32::ZERO,
            cdw2: U32::ZERO,
            cdw3: U32::ZERO,
            mptr: U64::ZERO,
            dptr: [0; 16],
            cdw10: U32::ZERO,
            cdw11: U32::ZERO,
            cdw12: U32::ZERO,
            cdw13: U32::ZERO,
            cdw14: U32::ZERO,
            cdw15: U32::ZERO,
        }
    }

    /// OPC.
    pub const fn opcode(&self) -> u8 {
        self.opcode
    }

    /// CID.
    pub const fn cid(&self) -> Cid {
        Cid(self.cid.get())
    }

    /// NSID.
    pub const fn nsid(&self) -> Nsid {
        Nsid(self.nsid.get())
    }

    /// FUSE.
    pub const fn fuse(&self) -> Fuse {
        match self.flags & Self::FLAGS_FUSE {
            0 => Fuse::Normal,
            1 => Fuse::First,
            2 => Fuse::Second,
            _ => Fuse::Reserved,
        }
    }

    /// PSDT, two bits: one of the `PSDT_*` constants, or 11b, which is reserved.
    pub const fn psdt(&self) -> u8 {
        self.flags >> Self::FLAGS_PSDT_SHIFT
    }

    /// DPTR as SGL1. Means something only where PSDT says that an SGL is used.
    pub const fn sgl(&self) -> SglDescriptor {
        SglDescriptor(self.dptr)
    }

    /// DPTR as PRP1 and PRP2. Means something only where PSDT is 00b.
    pub const fn prp(&self) -> (u64, u64) {
        let d = &self.dptr;
        (
            u64::from_le_bytes([d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]),
            u64::from_le_bytes([d[8], d[9], d[10], d[11], d[12], d[13], d[14], d[15]]),
        )
    }

    /// Whether this is a Fabrics command (opcode 7Fh).
    pub const fn is_fabrics(&self) -> bool {
        self.opcode == fabrics::OPCODE
    }

    /// FCTYPE of a Fabrics command, byte 4 (Base §6).
    pub const fn fctype(&self) -> u8 {
        self.nsid.get() as u8
    }

    dwords! {
        cdw2 with_cdw2,
        cdw3 with_cdw3,
        cdw10 with_cdw10,
        cdw11 with_cdw11,
        cdw12 with_cdw12,
        cdw13 with_cdw13,
        cdw14 with_cdw14,
        cdw15 with_cdw15,
    }

    /// With CID replaced.
    #[must_use]
    pub const fn with_cid(mut self, cid: Cid) -> Self {
        self.cid = U16::new(cid.0);
        self
    }

    /// With NSID replaced.
    #[must_use]
    pub const fn with_nsid(mut self, nsid: Nsid) -> Self {
        self.nsid = U32::new(nsid.0);
        self
    }

    /// With FUSE replaced.
    #[must_use]
    pub const fn with_fuse(mut self, fuse: Fuse) -> Self {
        let bits = match fuse {
            Fuse::Normal => 0,
            Fuse::First => 1,
            Fuse::Second => 2,
            Fuse::Reserved => 3,
        };
        self.flags = self.flags & !Self::FLAGS_FUSE | bits;
        self
    }

    /// With the low two bits of `psdt` as PSDT.
    #[must_use]
    pub const fn with_psdt(mut self, psdt: u8) -> Self {
        let mask = 0b11 << Self::FLAGS_PSDT_SHIFT;
        self.flags = self.flags & !mask | psdt << Self::FLAGS_PSDT_SHIFT;
        self
    }

    /// With `sgl` as DPTR and PSDT 01b.
    #[must_use]
    pub const fn with_sgl(mut self, sgl: SglDescriptor) -> Self {
        self.dptr = sgl.0;
        self.with_psdt(Self::PSDT_SGL)
    }

    /// With two PRP entries as DPTR and PSDT 00b.
    #[must_use]
    pub const fn with_prp(mut self, prp1: u64, prp2: u64) -> Self {
        let (a, b) = (prp1.to_le_bytes(), prp2.to_le_bytes());
        self.dptr = [
            a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], b[0], b[1], b[2], b[3], b[4], b[5],
            b[6], b[7],
        ];
        self.with_psdt(Self::PSDT_PRP)
    }

    const fn cdw10_11(&self) -> u64 {
        self.cdw10.get() as u64 | (self.cdw11.get() as u64) << 32
    }

    const fn bit(dword: &U32, bit: u32) -> bool {
        dword.get() >> bit & 1 != 0
    }
}

/// Fields of NVM commands: Read, Write, Compare, Write Zeroes, Write Uncorrectable, Verify,
/// Dataset Management, Copy (NVM §3.3).
impl Sqe {
    const FUA: u32 = 1 << 30;
    const NLB: u32 = 0xffff;

    /// SLBA: dwords 10 and 11.
    pub const fn slba(&self) -> Lba {
        Lba(self.cdw10_11())
    }

    /// Number of logical blocks, 1 to 65536: NLB is zero-based on the wire.
    pub const fn block_count(&self) -> u32 {
        (self.cdw12.get() & Self::NLB) + 1
    }

    /// FUA, dword 12 bit 30.
    pub const fn fua(&self) -> bool {
        self.cdw12.get() & Self::FUA != 0
    }

    /// LR, dword 12 bit 31.
    pub const fn limited_retry(&self) -> bool {
        Self::bit(&self.cdw12, 31)
    }

    /// DEAC of Write Zeroes, dword 12 bit 25.
    pub const fn deac(&self) -> bool {
        Self::bit(&self.cdw12, 25)
    }

    /// PRINFO, dword 12 bits 29:26: PRACT in bit 3, PRCHK in bits 2:0.
    pub const fn prinfo(&self) -> u8 {
        (self.cdw12.get() >> 26) as u8 & 0xf
    }

    /// STC, dword 12 bit 24: check the storage tag.
    pub const fn stc(&self) -> bool {
        Self::bit(&self.cdw12, 24)
    }

    /// DTYPE of Write, dword 12 bits 23:20.
    pub const fn directive_type(&self) -> u8 {
        (self.cdw12.get() >> 20) as u8 & 0xf
    }

    /// Number of ranges of Dataset Management, 1 to 256: NR is zero-based on the wire.
    pub const fn dsm_range_count(&self) -> u32 {
        (self.cdw10.get() & 0xff) + 1
    }

    /// AD of Dataset Management, dword 11 bit 2: deallocate the ranges.
    pub const fn dsm_deallocate(&self) -> bool {
        Self::bit(&self.cdw11, 2)
    }

    /// Number of source ranges of Copy, 1 to 256: NR is zero-based on the wire.
    pub const fn copy_range_count(&self) -> u32 {
        (self.cdw12.get() & 0xff) + 1
    }

    /// DESFMT of Copy, dword 12 bits 11:8: format of the source range entries.
    pub const fn copy_format(&self) -> u8 {
        (self.cdw12.get() >> 8) as u8 & 0xf
    }

    /// SDLBA of Copy: where the first copied block goes.
    pub const fn copy_sdlba(&self) -> Lba {
        Lba(self.cdw10_11())
    }

    /// RREGA, RACQA or RRELA of a reservation command, dword 10 bits 2:0.
    pub const fn reservation_action(&self) -> u8 {
        self.cdw10.get() as u8 & 0x7
    }

    /// IEKEY of a reservation command, dword 10 bit 3: the current key is not looked at.
    pub const fn reservation_ignores_key(&self) -> bool {
        Self::bit(&self.cdw10, 3)
    }

    /// RTYPE of Reservation Acquire and Release, dword 10 bits 15:8.
    pub const fn reservation_type(&self) -> u8 {
        (self.cdw10.get() >> 8) as u8
    }

    /// CPTPL of Reservation Register, dword 10 bits 31:30.
    pub const fn reservation_cptpl(&self) -> u8 {
        (self.cdw10.get() >> 30) as u8
    }

    /// Bytes that Reservation Report asks for: NUMD is zero-based.
    pub const fn reservation_report_len(&self) -> u64 {
        (self.cdw10.get() as u64 + 1) * 4
    }

    /// EDS of Reservation Report, dword 11 bit 0: host identifiers of 128 bits.
    pub const fn reservation_report_is_extended(&self) -> bool {
        Self::bit(&self.cdw11, 0)
    }

    /// With SLBA replaced.
    #[must_use]
    pub const fn with_slba(mut self, lba: Lba) -> Self {
        self.cdw10 = U32::new(lba.0 as u32);
        self.cdw11 = U32::new((lba.0 >> 32) as u32);
        self
    }

    /// With the number of logical blocks replaced.
    ///
    /// `blocks` is 1 to 65536, for the caller to hold; of any other number, what `blocks - 1` has
    /// in its low 16 bits is sent.
    #[must_use]
    pub const fn with_block_count(mut self, blocks: u32) -> Self {
        let nlb = blocks.wrapping_sub(1) & Self::NLB;
        self.cdw12 = U32::new(self.cdw12.get() & !Self::NLB | nlb);
        self
    }

    /// With FUA replaced.
    #[must_use]
    pub const fn with_fua(mut self, fua: bool) -> Self {
        let rest = self.cdw12.get() & !Self::FUA;
        self.cdw12 = U32::new(if fua { rest | Self::FUA } else { rest });
        self
    }

    /// Read of `blocks` logical blocks at `lba`.
    pub const fn read(cid: Cid, nsid: Nsid, lba: Lba, blocks: u32) -> Self {
        Self::new(nvm::READ, cid)
            .with_nsid(nsid)
            .with_slba(lba)
            .with_block_count(blocks)
    }

    /// Write of `blocks` logical blocks at `lba`.
    pub const fn write(cid: Cid, nsid: Nsid, lba: Lba, blocks: u32) -> Self {
        Self::new(nvm::WRITE, cid)
            .with_nsid(nsid)
            .with_slba(lba)
            .with_block_count(blocks)
    }

    /// Write Zeroes to `blocks` logical blocks at `lba`.
    pub const fn write_zeroes(cid: Cid, nsid: Nsid, lba: Lba, blocks: u32) -> Self {
        Self::new(nvm::WRITE_ZEROES, cid)
            .with_nsid(nsid)
            .with_slba(lba)
            .with_block_count(blocks)
    }

    /// Flush of a namespace.
    pub const fn flush(cid: Cid, nsid: Nsid) -> Self {
        Self::new(nvm::FLUSH, cid).with_nsid(nsid)
    }

    /// Dataset Management that deallocates `ranges` (1 to 256) ranges.
    pub const fn deallocate(cid: Cid, nsid: Nsid, ranges: u32) -> Self {
        Self::new(nvm::DATASET_MANAGEMENT, cid)
            .with_nsid(nsid)
            .with_cdw10(ranges.wrapping_sub(1) & 0xff)
            .with_cdw11(1 << 2)
    }
}

/// Fields of admin commands: Get Log Page, Identify, Get and Set Features, Abort (Base §5).
impl Sqe {
    /// LID of Get Log Page, dword 10 bits 7:0.
    pub const fn log_id(&self) -> u8 {
        self.cdw10.get() as u8
    }

    /// LSP of Get Log Page, dword 10 bits 14:8.
    pub const fn lsp(&self) -> u8 {
        (self.cdw10.get() >> 8) as u8 & 0x7f
    }

    /// RAE of Get Log Page, dword 10 bit 15: keep the event that this log page would clear.
    pub const fn rae(&self) -> bool {
        Self::bit(&self.cdw10, 15)
    }

    /// Bytes that Get Log Page asks for, 4 to 2^34: NUMD counts dwords and is zero-based.
    pub const fn log_len(&self) -> u64 {
        let numd = self.cdw10.get() >> 16 | self.cdw11.get() << 16;
        (numd as u64 + 1) * 4
    }

    /// LPO of Get Log Page, dwords 12 and 13: bytes, or an index where
    /// [`Self::log_uses_index_offset`].
    pub const fn log_offset(&self) -> u64 {
        self.cdw12.get() as u64 | (self.cdw13.get() as u64) << 32
    }

    /// LSI of Get Log Page, dword 11 bits 31:16.
    pub const fn lsi(&self) -> u16 {
        (self.cdw11.get() >> 16) as u16
    }

    /// OT of Get Log Page, dword 14 bit 23: LPO is an index into a list of structures.
    pub const fn log_uses_index_offset(&self) -> bool {
        Self::bit(&self.cdw14, 23)
    }

    /// CSI: dword 14 bits 31:24 of Get Log Page, dword 11 bits 31:24 of Identify and Namespace
    /// Management. Which of the two is read follows from the opcode.
    pub const fn csi(&self) -> u8 {
        let dword = if self.opcode == admin::GET_LOG_PAGE {
            &self.cdw14
        } else {
            &self.cdw11
        };
        (dword.get() >> 24) as u8
    }

    /// UIDX, dword 14 bits 6:0, of Get Log Page, Identify, Get Features and Set Features.
    pub const fn uuid_index(&self) -> u8 {
        self.cdw14.get() as u8 & 0x7f
    }

    /// CNS of Identify, dword 10 bits 7:0.
    pub const fn cns(&self) -> u8 {
        self.cdw10.get() as u8
    }

    /// CNTID of Identify, dword 10 bits 31:16.
    pub const fn cntid(&self) -> u16 {
        (self.cdw10.get() >> 16) as u16
    }

    /// CNSSID, the CNS specific identifier of Identify, dword 11 bits 15:0.
    pub const fn cns_specific(&self) -> u16 {
        self.cdw11.get() as u16
    }

    /// FID of Get and Set Features, dword 10 bits 7:0.
    pub const fn fid(&self) -> u8 {
        self.cdw10.get() as u8
    }

    /// SEL of Get Features, dword 10 bits 10:8.
    pub const fn sel(&self) -> Select {
        Select::from_bits((self.cdw10.get() >> 8) as u8)
    }

    /// SV of Set Features, dword 10 bit 31: keep the value over power cycles and resets.
    pub const fn save(&self) -> bool {
        Self::bit(&self.cdw10, 31)
    }

    /// SQID of Abort, dword 10 bits 15:0.
    pub const fn abort_sqid(&self) -> Qid {
        Qid(self.cdw10.get() as u16)
    }

    /// CID of Abort, dword 10 bits 31:16: the command to abort.
    pub const fn abort_cid(&self) -> Cid {
        Cid((self.cdw10.get() >> 16) as u16)
    }

    /// Identify with `cns`; CNTID, CNSSID and CSI are 0.
    pub const fn identify(cid: Cid, nsid: Nsid, cns: u8) -> Self {
        Self::new(admin::IDENTIFY, cid)
            .with_nsid(nsid)
            .with_cdw10(cns as u32)
    }

    /// Reservation Register.
    pub const fn reservation_register(
        cid: Cid,
        nsid: Nsid,
        action: u8,
        ignores_key: bool,
        cptpl: u8,
    ) -> Self {
        Self::new(nvm::RESERVATION_REGISTER, cid)
            .with_nsid(nsid)
            .with_cdw10(action as u32 | (ignores_key as u32) << 3 | (cptpl as u32) << 30)
    }

    /// Reservation Acquire of a type's value.
    pub const fn reservation_acquire(cid: Cid, nsid: Nsid, action: u8, rtype: u8) -> Self {
        Self::new(nvm::RESERVATION_ACQUIRE, cid)
            .with_nsid(nsid)
            .with_cdw10(action as u32 | (rtype as u32) << 8)
    }

    /// Reservation Release of a type's value.
    pub const fn reservation_release(cid: Cid, nsid: Nsid, action: u8, rtype: u8) -> Self {
        Self::new(nvm::RESERVATION_RELEASE, cid)
            .with_nsid(nsid)
            .with_cdw10(action as u32 | (rtype as u32) << 8)
    }

    /// Reservation Report of `len` bytes (a multiple of 4, at least 4).
    pub const fn reservation_report(cid: Cid, nsid: Nsid, len: u32, is_extended: bool) -> Self {
        Self::new(nvm::RESERVATION_REPORT, cid)
            .with_nsid(nsid)
            .with_cdw10((len / 4).wrapping_sub(1))
            .with_cdw11(is_extended as u32)
    }

    /// Get Log Page of `len` bytes at byte `offset`.
    ///
    /// `len` is a multiple of 4 and not 0, for the caller to hold: it is rounded down, and 0 asks
    /// for 2^34 bytes. `offset` is a multiple of 4.
    pub const fn get_log_page(cid: Cid, nsid: Nsid, lid: u8, len: u32, offset: u64) -> Self {
        let numd = (len / 4).wrapping_sub(1);
        Self::new(admin::GET_LOG_PAGE, cid)
            .with_nsid(nsid)
            .with_cdw10(lid as u32 | numd << 16)
            .with_cdw11(numd >> 16)
            .with_cdw12(offset as u32)
            .with_cdw13((offset >> 32) as u32)
    }

    /// With LSP of Get Log Page replaced by the low seven bits of `lsp`.
    #[must_use]
    pub const fn with_lsp(self, lsp: u8) -> Self {
        let rest = self.cdw10.get() & !(0x7f << 8);
        self.with_cdw10(rest | (lsp as u32 & 0x7f) << 8)
    }

    /// With RAE of Get Log Page replaced.
    #[must_use]
    pub const fn with_rae(self, rae: bool) -> Self {
        let rest = self.cdw10.get() & !(1 << 15);
        self.with_cdw10(rest | (rae as u32) << 15)
    }

    /// Set Features of `fid` with `value` in dword 11.
    pub const fn set_features(cid: Cid, fid: u8, value: u32) -> Self {
        Self::new(admin::SET_FEATURES, cid)
            .with_cdw10(fid as u32)
            .with_cdw11(value)
    }

    /// Get Features of `fid`.
    pub const fn get_features(cid: Cid, fid: u8, sel: Select) -> Self {
        Self::new(admin::GET_FEATURES, cid).with_cdw10(fid as u32 | (sel.bits() as u32) << 8)
    }

    /// Asynchronous Event Request.
    pub const fn async_event_request(cid: Cid) -> Self {
        Self::new(admin::ASYNC_EVENT_REQUEST, cid)
    }

    /// Keep Alive.
    pub const fn keep_alive(cid: Cid) -> Self {
        Self::new(admin::KEEP_ALIVE, cid)
    }

    /// Abort of the command `abort_cid` on submission queue `sqid`.
    pub const fn abort(cid: Cid, sqid: Qid, abort_cid: Cid) -> Self {
        Self::new(admin::ABORT, cid).with_cdw10(sqid.0 as u32 | (abort_cid.0 as u32) << 16)
    }
}
