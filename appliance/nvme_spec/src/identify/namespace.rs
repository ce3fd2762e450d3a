//! Identify data of namespaces, and of the NVM command set's part of a controller.

use zerocopy::little_endian::{U16, U32, U64};

use crate::layout::{constants, wire_structs};

wire_structs! {
    /// LBA Format (NVM §4.1.5).
    LbaFormat[4] {
        /// MS: metadata per logical block, in bytes.
        0 ms: U16,
        /// LBADS: a logical block is 2^LBADS bytes. 0: this format is not available.
        2 lbads: u8,
        /// RP in bits 1:0: relative performance, 0 is best.
        3 rp: u8,
    }

    /// Identify Namespace of the NVM command set, CNS 00h (NVM §4.1.5).
    IdentifyNamespace[4096] {
        /// NSZE: size, in logical blocks.
        0 nsze: U64,
        /// NCAP: blocks that may be allocated at one time.
        8 ncap: U64,
        /// NUSE: blocks that are allocated.
        16 nuse: U64,
        /// NSFEAT: features; see [`nsfeat`].
        24 nsfeat: u8,
        /// NLBAF: number of LBA formats, zero-based.
        25 nlbaf: u8,
        /// FLBAS: the format in use: index in bits 3:0 and 6:5; bit 4: metadata is interleaved.
        26 flbas: u8,
        /// MC: metadata capabilities.
        27 mc: u8,
        /// DPC: data protection capabilities.
        28 dpc: u8,
        /// DPS: data protection in use.
        29 dps: u8,
        /// NMIC: multi-path and sharing; see [`nmic`].
        30 nmic: u8,
        /// RESCAP: reservations; see [`rescap`].
        31 rescap: u8,
        /// FPI: format progress: bit 7 supported, bits 6:0 per cent that remain.
        32 fpi: u8,
        /// DLFEAT: deallocated blocks; see [`dlfeat`].
        33 dlfeat: u8,
        /// NAWUN: atomic write unit in normal operation, in logical blocks, zero-based.
        34 nawun: U16,
        /// NAWUPF: atomic write unit on power fail, in logical blocks, zero-based.
        36 nawupf: U16,
        /// NACWU: atomic Compare and Write unit, in logical blocks, zero-based.
        38 nacwu: U16,
        /// NABSN: atomic boundary in normal operation, in logical blocks, zero-based.
        40 nabsn: U16,
        /// NABO: logical block that the first atomic boundary starts at.
        42 nabo: U16,
        /// NABSPF: atomic boundary on power fail, in logical blocks, zero-based.
        44 nabspf: U16,
        /// NOIOB: optimal I/O boundary, in logical blocks; 0: none.
        46 noiob: U16,
        /// NVMCAP: size of the NVM allocated to the namespace, in bytes.
        48 nvmcap: [u8; 16],
        /// NPWG: preferred write granularity, in logical blocks, zero-based.
        64 npwg: U16,
        /// NPWA: preferred write alignment, in logical blocks, zero-based.
        66 npwa: U16,
        /// NPDG: preferred deallocate granularity, in logical blocks, zero-based.
        68 npdg: U16,
        /// NPDA: preferred deallocate alignment, in logical blocks, zero-based.
        70 npda: U16,
        /// NOWS: optimal write size, in logical blocks, zero-based.
        72 nows: U16,
        /// MSSRL: longest single source range of Copy, in logical blocks.
        74 mssrl: U16,
        /// MCL: longest Copy, in logical blocks.
        76 mcl: U32,
        /// MSRC: most source ranges of Copy, zero-based.
        80 msrc: u8,
        /// KPIOS: key per I/O status.
        81 kpios: u8,
        /// NULBAF: number of unique attribute LBA formats.
        82 nulbaf: u8,
        /// Reserved.
        83 reserved83: u8,
        /// KPIODAAG: key per I/O data access alignment and granularity.
        84 kpiodaag: U32,
        /// Reserved.
        88 reserved88: [u8; 4],
        /// ANAGRPID: ANA group identifier; 0: in no group.
        92 anagrpid: U32,
        /// Reserved.
        96 reserved96: [u8; 3],
        /// NSATTR: attributes; see [`nsattr`].
        99 nsattr: u8,
        /// NVMSETID: NVM set identifier.
        100 nvmsetid: U16,
        /// ENDGID: endurance group identifier.
        102 endgid: U16,
        /// NGUID: globally unique identifier, big-endian; all zero: none.
        104 nguid: [u8; 16],
        /// EUI64: IEEE extended unique identifier, big-endian; all zero: none.
        120 eui64: [u8; 8],
        /// LBAF: LBA formats.
        128 lbaf: [LbaFormat; 64],
        /// VS: vendor specific.
        384 vs: [u8; 3712],
    }

    /// I/O Command Set Specific Identify Namespace of the NVM command set, CNS 05h with CSI 00h
    /// (NVM §4.1.5).
    IdentifyNvmNamespace[4096] {
        /// LBSTM: logical block storage tag mask.
        0 lbstm: U64,
        /// PIC: protection information capabilities.
        8 pic: u8,
        /// PIFA: protection information format attribute.
        9 pifa: u8,
        /// Reserved.
        10 reserved10: [u8; 2],
        /// ELBAF: extended LBA formats: STS in bits 6:0, PIF in 8:7, QPIF in 12:9.
        12 elbaf: [U32; 64],
        /// NPDGL: preferred deallocate granularity, in logical blocks.
        268 npdgl: U32,
        /// NPRG: preferred read granularity.
        272 nprg: U32,
        /// NPRA: preferred read alignment.
        276 npra: U32,
        /// NORS: optimal read size.
        280 nors: U32,
        /// NPDAL: preferred deallocate alignment, in logical blocks.
        284 npdal: U32,
        /// LBAPSS: LBA format placement shard size.
        288 lbapss: U32,
        /// TLBAAG: tracked LBA allocation granularity.
        292 tlbaag: U32,
        /// Reserved.
        296 reserved296: [u8; 3800],
    }

    /// I/O Command Set Specific Identify Controller of the NVM command set, CNS 06h with CSI 00h
    /// (NVM §4.1.5).
    ///
    /// The first three limits are powers of two of the smallest memory page; 0 is no limit.
    IdentifyNvmController[4096] {
        /// VSL: size limit of Verify.
        0 vsl: u8,
        /// WZSL: size limit of Write Zeroes.
        1 wzsl: u8,
        /// WUSL: size limit of Write Uncorrectable.
        2 wusl: u8,
        /// DMRL: most ranges of Dataset Management; 0: no limit.
        3 dmrl: u8,
        /// DMRSL: most logical blocks in one range of Dataset Management; 0: no limit.
        4 dmrsl: U32,
        /// DMSL: most logical blocks in one Dataset Management; 0: no limit.
        8 dmsl: U64,
        /// KPIOCAP: key per I/O capabilities.
        16 kpiocap: u8,
        /// WZDSL: size limit of Write Zeroes with DEAC.
        17 wzdsl: u8,
        /// AOCS: admin optional commands.
        18 aocs: U16,
        /// VER: version of the NVM Command Set Specification.
        20 ver: U32,
        /// LBAMQF: LBA migration queue format.
        24 lbamqf: u8,
        /// Reserved.
        25 reserved25: [u8; 4071],
    }

    /// I/O Command Set Independent Identify Namespace, CNS 08h (Base §5.1.13).
    IdentifyIndependentNamespace[4096] {
        /// NSFEAT: features; see [`nsfeat`].
        0 nsfeat: u8,
        /// NMIC: multi-path and sharing; see [`nmic`].
        1 nmic: u8,
        /// RESCAP: reservations; see [`rescap`].
        2 rescap: u8,
        /// FPI: format progress: bit 7 supported, bits 6:0 per cent that remain.
        3 fpi: u8,
        /// ANAGRPID: ANA group identifier; 0: in no group.
        4 anagrpid: U32,
        /// NSATTR: attributes; see [`nsattr`].
        8 nsattr: u8,
        /// Reserved.
        9 reserved9: u8,
        /// NVMSETID: NVM set identifier.
        10 nvmsetid: U16,
        /// ENDGID: endurance group identifier.
        12 endgid: U16,
        /// NSTAT: status; see [`nstat`].
        14 nstat: u8,
        /// KPIOS: key per I/O status.
        15 kpios: u8,
        /// MAXKT: greatest key tag.
        16 maxkt: U16,
        /// Reserved.
        18 reserved18: [u8; 2],
        /// RGRPID: reachability group identifier.
        20 rgrpid: U32,
        /// Reserved.
        24 reserved24: [u8; 4072],
    }
}

impl LbaFormat {
    /// Logical blocks of `2^lbads` bytes without metadata.
    pub const fn new(lbads: u8) -> Self {
        Self {
            ms: U16::ZERO,
            lbads,
            rp: 0,
        }
    }
}

impl IdentifyNamespace {
    /// Index of the LBA format in use: bits 6:5 and 3:0 of FLBAS.
    pub const fn format_index(&self) -> usize {
        ((self.flbas >> 5 & 0b11) << 4 | self.flbas & 0xf) as usize
    }

    /// The LBA format in use.
    pub const fn format(&self) -> &LbaFormat {
        // Six bits index 64 formats.
        &self.lbaf[self.format_index()]
    }

    /// Bytes of a logical block without metadata; `None` if LBADS is outside 9 (512 bytes) to 31.
    pub const fn block_size(&self) -> Option<u32> {
        match self.format().lbads {
            lbads @ 9..=31 => Some(1 << lbads),
            _ => None,
        }
    }
}

/// NSFEAT. Bits 0, 1, 2 and 4 to 7 of [`IdentifyNamespace`]; [`UID_REUSE`](nsfeat::UID_REUSE),
/// `ROTATIONAL` and `NO_VWC` of [`IdentifyIndependentNamespace`].
pub mod nsfeat {
    super::constants! { u8;
        /// THINP: NCAP may be less than NSZE, NUSE is tracked.
        THIN_PROVISIONING = 1 << 0;
        /// NSABP: NAWUN, NAWUPF and NACWU are valid.
        ATOMIC = 1 << 1;
        /// DAE: reads of deallocated blocks can be made to fail.
        DEALLOCATED_ERROR = 1 << 2;
        /// UIDREUSE: NGUID and EUI64 are never used again.
        UID_REUSE = 1 << 3;
        /// OPTPERF 01b, bits 5:4: NPWG, NPWA, NPDG, NPDA and NOWS are valid.
        OPTIMAL_PERFORMANCE = 0b01 << 4;
        /// OPTPERF 10b: as 01b, with NPDGL and NPDAL in place of NPDG and NPDA.
        OPTIMAL_PERFORMANCE_LARGE = 0b10 << 4;
        /// MAM: multiple atomicity mode.
        MULTIPLE_ATOMICITY = 1 << 6;
        /// OPTRPERF: NPRG, NPRA and NORS are valid.
        OPTIMAL_READ_PERFORMANCE = 1 << 7;
        /// RMEDIA: the media rotates. Of the I/O command set independent structure.
        ROTATIONAL = 1 << 4;
        /// VWCNP: no volatile write cache. Of the I/O command set independent structure.
        NO_VWC = 1 << 5;
    }
}

/// NMIC.
pub mod nmic {
    super::constants! { u8;
        /// SHRNS: may be attached to more than one controller.
        SHARED = 1 << 0;
        /// DISNS: dispersed over more than one subsystem.
        DISPERSED = 1 << 1;
    }
}

/// RESCAP.
pub mod rescap {
    super::constants! { u8;
        /// Persist Through Power Loss.
        PERSIST_THROUGH_POWER_LOSS = 1 << 0;
        /// Write Exclusive.
        WRITE_EXCLUSIVE = 1 << 1;
        /// Exclusive Access.
        EXCLUSIVE_ACCESS = 1 << 2;
        /// Write Exclusive - Registrants Only.
        WRITE_EXCLUSIVE_REGISTRANTS = 1 << 3;
        /// Exclusive Access - Registrants Only.
        EXCLUSIVE_ACCESS_REGISTRANTS = 1 << 4;
        /// Write Exclusive - All Registrants.
        WRITE_EXCLUSIVE_ALL_REGISTRANTS = 1 << 5;
        /// Exclusive Access - All Registrants.
        EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 1 << 6;
        /// IEKEY as defined since NVM Express 1.3.
        IEKEY_1_3 = 1 << 7;
    }
}

/// DLFEAT.
pub mod dlfeat {
    super::constants! { u8;
        /// DRB 001b, bits 2:0: deallocated blocks read as zeroes.
        READS_ZEROES = 0b001;
        /// DRB 010b, bits 2:0: deallocated blocks read as FFh.
        READS_ONES = 0b010;
        /// WZDS: DEAC of Write Zeroes is honoured.
        WRITE_ZEROES_DEALLOCATE = 1 << 3;
        /// GDS: the guard of deallocated blocks is a CRC.
        GUARD_CRC = 1 << 4;
    }
}

/// NSATTR.
pub mod nsattr {
    super::constants! { u8;
        /// CWP: write-protected now.
        WRITE_PROTECTED = 1 << 0;
    }
}

/// NSTAT of [`IdentifyIndependentNamespace`](super::IdentifyIndependentNamespace).
pub mod nstat {
    super::constants! { u8;
        /// NRDY: ready.
        READY = 1 << 0;
    }
}
