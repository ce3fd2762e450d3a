//! Controller properties: registers in BAR 0 for PCIe, properties for Fabrics (Base §3.1.4).

use core::fmt;

/// Controller Capabilities; 64 bits.
pub const CAP: u32 = 0x00;
/// Version.
pub const VS: u32 = 0x08;
/// Interrupt Mask Set.
pub const INTMS: u32 = 0x0c;
/// Interrupt Mask Clear.
pub const INTMC: u32 = 0x10;
/// Controller Configuration.
pub const CC: u32 = 0x14;
/// Controller Status.
pub const CSTS: u32 = 0x1c;
/// NVM Subsystem Reset.
pub const NSSR: u32 = 0x20;
/// Admin Queue Attributes.
pub const AQA: u32 = 0x24;
/// Admin Submission Queue Base Address; 64 bits.
pub const ASQ: u32 = 0x28;
/// Admin Completion Queue Base Address; 64 bits.
pub const ACQ: u32 = 0x30;
/// Controller Memory Buffer Location.
pub const CMBLOC: u32 = 0x38;
/// Controller Memory Buffer Size.
pub const CMBSZ: u32 = 0x3c;
/// Boot Partition Information.
pub const BPINFO: u32 = 0x40;
/// Boot Partition Read Select.
pub const BPRSEL: u32 = 0x44;
/// Boot Partition Memory Buffer Location; 64 bits.
pub const BPMBL: u32 = 0x48;
/// Controller Memory Buffer Memory Space Control; 64 bits.
pub const CMBMSC: u32 = 0x50;
/// Controller Memory Buffer Status.
pub const CMBSTS: u32 = 0x58;
/// Controller Memory Buffer Elasticity Buffer Size.
pub const CMBEBS: u32 = 0x5c;
/// Controller Memory Buffer Sustained Write Throughput.
pub const CMBSWTP: u32 = 0x60;
/// NVM Subsystem Shutdown.
pub const NSSD: u32 = 0x64;
/// Controller Ready Timeouts.
pub const CRTO: u32 = 0x68;
/// Persistent Memory Region Capabilities.
pub const PMRCAP: u32 = 0xe00;
/// The first doorbell (PCIe transport).
pub const DOORBELLS: u32 = 0x1000;

/// What is written to [`NSSR`] to reset the NVM subsystem: "NVMe" in ASCII.
pub const NSSR_RESET: u32 = 0x4e56_4d65;
/// What is written to [`NSSD`] to shut the NVM subsystem down normally: "Nrml" in ASCII.
pub const NSSD_NORMAL: u32 = 0x4e72_6d6c;
/// What is written to [`NSSD`] to shut the NVM subsystem down abruptly: "Abpt" in ASCII.
pub const NSSD_ABRUPT: u32 = 0x4162_7074;

/// A register as a newtype: conversions and hexadecimal Debug.
macro_rules! register {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub $inner);

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }

        impl From<$name> for $inner {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl $name {
            const fn field(self, shift: u32, width: u32) -> $inner {
                self.0 >> shift & ((1 << width) - 1)
            }

            /// Bits of `value` beyond `width` are dropped.
            const fn with_field(self, shift: u32, width: u32, value: $inner) -> Self {
                let mask: $inner = ((1 << width) - 1) << shift;
                Self(self.0 & !mask | value << shift & mask)
            }
        }
    };
}

/// Getter and builder of one-bit and of wider fields.
macro_rules! fields {
    ($inner:ty: $(
        $(#[$doc:meta])* $get:ident $with:ident $ty:tt $shift:literal $width:literal;
    )*) => {
        $(fields!(@one $inner, $(#[$doc])* $get $with $ty $shift $width);)*
    };
    (@one $inner:ty,
        $(#[$doc:meta])* $get:ident $with:ident bool $shift:literal $width:literal
    ) => {
        $(#[$doc])*
        pub const fn $get(self) -> bool {
            self.field($shift, $width) != 0
        }

        #[doc = concat!("With the field of [`Self::", stringify!($get), "`] replaced.")]
        #[must_use]
        pub const fn $with(self, value: bool) -> Self {
            self.with_field($shift, $width, value as $inner)
        }
    };
    (@one $inner:ty,
        $(#[$doc:meta])* $get:ident $with:ident $ty:tt $shift:literal $width:literal
    ) => {
        $(#[$doc])*
        pub const fn $get(self) -> $ty {
            self.field($shift, $width) as $ty
        }

        #[doc = concat!("With the field of [`Self::", stringify!($get), "`] replaced.")]
        #[must_use]
        pub const fn $with(self, value: $ty) -> Self {
            self.with_field($shift, $width, value as $inner)
        }
    };
}

register! {
    /// Controller Capabilities (Base §3.1.4.1).
    Cap(u64)
}

impl Cap {
    /// CSS bit 0: the NVM command set.
    pub const CSS_NVM: u8 = 1 << 0;
    /// CSS bit 6: one or more I/O command sets, told by Identify CNS 1Ch.
    pub const CSS_IOCS: u8 = 1 << 6;
    /// CSS bit 7: no I/O command set.
    pub const CSS_ADMIN_ONLY: u8 = 1 << 7;
    /// CRMS bit 0: controller ready with media.
    pub const CRMS_WITH_MEDIA: u8 = 1 << 0;
    /// CRMS bit 1: controller ready independent of media.
    pub const CRMS_INDEPENDENT: u8 = 1 << 1;

    fields! { u64:
        /// MQES: entries of the largest I/O queue, zero-based.
        mqes with_mqes u16 0 16;
        /// CQR: queues are physically contiguous.
        cqr with_cqr bool 16 1;
        /// AMS: arbitration mechanisms beside round robin. Bit 0 is weighted round robin.
        ams with_ams u8 17 2;
        /// TO: the longest wait for CSTS.RDY, in units of 500 ms.
        to with_to u8 24 8;
        /// DSTRD: doorbells are 2^(2 + DSTRD) bytes apart.
        dstrd with_dstrd u8 32 4;
        /// NSSRS: NVM subsystem reset is supported.
        nssrs with_nssrs bool 36 1;
        /// CSS: I/O command sets; see the `CSS_*` constants.
        css with_css u8 37 8;
        /// BPS: boot partitions.
        bps with_bps bool 45 1;
        /// CPS: controller power scope.
        cps with_cps u8 46 2;
        /// MPSMIN: the smallest memory page is 2^(12 + MPSMIN) bytes.
        mpsmin with_mpsmin u8 48 4;
        /// MPSMAX: the largest memory page is 2^(12 + MPSMAX) bytes.
        mpsmax with_mpsmax u8 52 4;
        /// PMRS: persistent memory region.
        pmrs with_pmrs bool 56 1;
        /// CMBS: controller memory buffer.
        cmbs with_cmbs bool 57 1;
        /// NSSS: NVM subsystem shutdown is supported.
        nsss with_nsss bool 58 1;
        /// CRMS: controller ready modes; see the `CRMS_*` constants.
        crms with_crms u8 59 2;
        /// NSSES: NVM subsystem shutdown enhancements.
        nsses with_nsses bool 61 1;
    }
}

register! {
    /// Version (Base §3.1.4.2): major in bits 31:16, minor in 15:8, tertiary in 7:0.
    Vs(u32)
}

impl Vs {
    /// NVM Express 1.3.
    pub const V1_3: Self = Self::new(1, 3, 0);
    /// NVM Express 1.4.
    pub const V1_4: Self = Self::new(1, 4, 0);
    /// NVM Express 2.0.
    pub const V2_0: Self = Self::new(2, 0, 0);
    /// NVM Express 2.1.
    pub const V2_1: Self = Self::new(2, 1, 0);

    /// Version `major.minor.tertiary`.
    pub const fn new(major: u16, minor: u8, tertiary: u8) -> Self {
        Self((major as u32) << 16 | (minor as u32) << 8 | tertiary as u32)
    }

    fields! { u32:
        /// TER.
        tertiary with_tertiary u8 0 8;
        /// MNR.
        minor with_minor u8 8 8;
        /// MJR.
        major with_major u16 16 16;
    }
}

impl fmt::Display for Vs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major(), self.minor(), self.tertiary())
    }
}

/// CC.SHN: what the host asks for (Base §3.1.4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ShutdownNotification {
    /// 00b: nothing.
    #[default]
    None,
    /// 01b: normal shutdown.
    Normal,
    /// 10b: abrupt shutdown.
    Abrupt,
    /// 11b.
    Reserved,
}

register! {
    /// Controller Configuration (Base §3.1.4.5).
    Cc(u32)
}

impl Cc {
    /// CSS 000b: the NVM command set.
    pub const CSS_NVM: u8 = 0b000;
    /// CSS 110b: all supported I/O command sets.
    pub const CSS_IOCS: u8 = 0b110;
    /// CSS 111b: admin commands only.
    pub const CSS_ADMIN_ONLY: u8 = 0b111;

    fields! { u32:
        /// EN: enable.
        en with_en bool 0 1;
        /// CSS: the I/O command sets selected; see the `CSS_*` constants.
        css with_css u8 4 3;
        /// MPS: memory pages are 2^(12 + MPS) bytes.
        mps with_mps u8 7 4;
        /// AMS: arbitration mechanism.
        ams with_ams u8 11 3;
        /// IOSQES: I/O submission queue entries are 2^IOSQES bytes.
        iosqes with_iosqes u8 16 4;
        /// IOCQES: I/O completion queue entries are 2^IOCQES bytes.
        iocqes with_iocqes u8 20 4;
        /// CRIME: be ready independent of media.
        crime with_crime bool 24 1;
    }

    /// SHN: the shutdown asked for.
    pub const fn shn(self) -> ShutdownNotification {
        match self.field(14, 2) {
            0 => ShutdownNotification::None,
            1 => ShutdownNotification::Normal,
            2 => ShutdownNotification::Abrupt,
            _ => ShutdownNotification::Reserved,
        }
    }

    /// With SHN replaced.
    #[must_use]
    pub const fn with_shn(self, shn: ShutdownNotification) -> Self {
        let bits = match shn {
            ShutdownNotification::None => 0,
            ShutdownNotification::Normal => 1,
            ShutdownNotification::Abrupt => 2,
            ShutdownNotification::Reserved => 3,
        };
        self.with_field(14, 2, bits)
    }
}

/// CSTS.SHST: how far a shutdown is (Base §3.1.4.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ShutdownStatus {
    /// 00b: no shutdown was asked for.
    #[default]
    Normal,
    /// 01b: going on.
    Occurring,
    /// 10b: done.
    Complete,
    /// 11b.
    Reserved,
}

register! {
    /// Controller Status (Base §3.1.4.6).
    Csts(u32)
}

impl Csts {
    fields! { u32:
        /// RDY: ready.
        rdy with_rdy bool 0 1;
        /// CFS: controller fatal status.
        cfs with_cfs bool 1 1;
        /// NSSRO: an NVM subsystem reset occurred.
        nssro with_nssro bool 4 1;
        /// PP: processing is paused.
        pp with_pp bool 5 1;
        /// ST: SHST tells of an NVM subsystem shutdown, not of a controller shutdown.
        st with_st bool 6 1;
    }

    /// SHST: how far a shutdown is.
    pub const fn shst(self) -> ShutdownStatus {
        match self.field(2, 2) {
            0 => ShutdownStatus::Normal,
            1 => ShutdownStatus::Occurring,
            2 => ShutdownStatus::Complete,
            _ => ShutdownStatus::Reserved,
        }
    }

    /// With SHST replaced.
    #[must_use]
    pub const fn with_shst(self, shst: ShutdownStatus) -> Self {
        let bits = match shst {
            ShutdownStatus::Normal => 0,
            ShutdownStatus::Occurring => 1,
            ShutdownStatus::Complete => 2,
            ShutdownStatus::Reserved => 3,
        };
        self.with_field(2, 2, bits)
    }
}

register! {
    /// Controller Ready Timeouts (Base §3.1.4).
    Crto(u32)
}

impl Crto {
    fields! { u32:
        /// CRWMT: the longest wait to be ready with media, in units of 500 ms.
        crwmt with_crwmt u16 0 16;
        /// CRIMT: the longest wait to be ready independent of media, in units of 500 ms.
        crimt with_crimt u16 16 16;
    }
}

register! {
    /// Admin Queue Attributes (Base §3.1.4.8): sizes of the admin queues, zero-based.
    Aqa(u32)
}

impl Aqa {
    fields! { u32:
        /// ASQS: entries of the admin submission queue, zero-based.
        asqs with_asqs u16 0 12;
        /// ACQS: entries of the admin completion queue, zero-based.
        acqs with_acqs u16 16 12;
    }
}
