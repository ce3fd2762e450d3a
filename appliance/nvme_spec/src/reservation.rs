//! Reservations: the data of their commands, and what Report answers (Base §7.2 to §7.6, §8.1.22).

use zerocopy::little_endian::{U16, U32, U64};

use crate::layout::{constants, wire_structs};

/// Reservation type, RTYPE (Base §8.1.22).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ReservationType {
    /// Only the holder writes.
    WriteExclusive = 1,
    /// Only the holder reads and writes.
    ExclusiveAccess = 2,
    /// Only registrants write.
    WriteExclusiveRegistrantsOnly = 3,
    /// Only registrants read and write.
    ExclusiveAccessRegistrantsOnly = 4,
    /// Only registrants write; all of them are holders.
    WriteExclusiveAllRegistrants = 5,
    /// Only registrants read and write; all of them are holders.
    ExclusiveAccessAllRegistrants = 6,
}

impl ReservationType {
    /// All types, in the order of their values.
    pub const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrantsOnly,
        Self::ExclusiveAccessRegistrantsOnly,
        Self::WriteExclusiveAllRegistrants,
        Self::ExclusiveAccessAllRegistrants,
    ];

    /// The type of a value; `None` for those that are reserved, 0 among them.
    pub const fn from_value(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::WriteExclusive),
            2 => Some(Self::ExclusiveAccess),
            3 => Some(Self::WriteExclusiveRegistrantsOnly),
            4 => Some(Self::ExclusiveAccessRegistrantsOnly),
            5 => Some(Self::WriteExclusiveAllRegistrants),
            6 => Some(Self::ExclusiveAccessAllRegistrants),
            _ => None,
        }
    }

    /// Whether every registrant is a holder.
    pub const fn is_all_registrants(self) -> bool {
        matches!(
            self,
            Self::WriteExclusiveAllRegistrants | Self::ExclusiveAccessAllRegistrants
        )
    }

    /// Whether registrants that are not holders, if there are such, may do what the holder may.
    pub const fn admits_registrants(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    /// Whether who may not write may not read either.
    pub const fn excludes_reads(self) -> bool {
        matches!(
            self,
            Self::ExclusiveAccess
                | Self::ExclusiveAccessRegistrantsOnly
                | Self::ExclusiveAccessAllRegistrants
        )
    }
}

/// RREGA of Reservation Register, dword 10 bits 2:0.
pub mod register {
    super::constants! { u8;
        /// Register a key.
        REGISTER = 0;
        /// Unregister.
        UNREGISTER = 1;
        /// Replace the key.
        REPLACE = 2;
    }
}

/// CPTPL of Reservation Register, dword 10 bits 31:30.
pub mod cptpl {
    super::constants! { u8;
        /// Change nothing.
        KEEP = 0b00;
        /// Reservations and registrations are lost with the power.
        CLEAR = 0b10;
        /// They persist.
        SET = 0b11;
    }
}

/// RACQA of Reservation Acquire, dword 10 bits 2:0.
pub mod acquire {
    super::constants! { u8;
        /// Acquire.
        ACQUIRE = 0;
        /// Preempt.
        PREEMPT = 1;
        /// Preempt, and abort the commands of those preempted.
        PREEMPT_AND_ABORT = 2;
    }
}

/// RRELA of Reservation Release, dword 10 bits 2:0.
pub mod release {
    super::constants! { u8;
        /// Release.
        RELEASE = 0;
        /// Clear: the reservation and all registrations.
        CLEAR = 1;
    }
}

/// RNLPT of the Reservation Notification log (Base §5.1.12.1.32), and its bit in the mask of
/// feature 82h.
pub mod notification {
    super::constants! { u8;
        /// There is none.
        EMPTY = 0;
        /// The host's registration was preempted.
        REGISTRATION_PREEMPTED = 1;
        /// The reservation was released.
        RESERVATION_RELEASED = 2;
        /// The reservation was preempted.
        RESERVATION_PREEMPTED = 3;
    }
}

/// RCSTS bit 0: the host holds the reservation.
pub const RCSTS_HOLDER: u8 = 1;
/// HOSTID of the Reservation Status has 128 bits, and so does EDS: bit 0 of dword 11.
pub const REPORT_EDS: u32 = 1;

wire_structs! {
    /// Data of Reservation Register (Base §7.4).
    ReservationRegister[16] {
        /// CRKEY, the current key.
        0 crkey: U64,
        /// NRKEY, the new key.
        8 nrkey: U64,
    }

    /// Data of Reservation Acquire (Base §7.3).
    ReservationAcquire[16] {
        /// CRKEY, the current key.
        0 crkey: U64,
        /// PRKEY, the key to preempt.
        8 prkey: U64,
    }

    /// Data of Reservation Release (Base §7.5).
    ReservationRelease[8] {
        /// CRKEY, the current key.
        0 crkey: U64,
    }

    /// Head of the data of Reservation Report (Base §7.6); [`RegisteredController`]s follow.
    ReservationStatus[24] {
        /// GEN, counts changes of the registrations.
        0 generation: U32,
        /// RTYPE, 0 when nothing is reserved.
        4 rtype: u8,
        /// REGSTRNT, entries of the list.
        5 registrants: U16,
        /// Reserved.
        7 reserved7: [u8; 2],
        /// PTPLS: registrations persist through a loss of power.
        9 ptpls: u8,
        /// Reserved.
        10 reserved10: [u8; 14],
    }

    /// Head of the extended data of Reservation Report; [`RegisteredControllerExtended`]s follow.
    ReservationStatusExtended[64] {
        /// As in the short form.
        0 head: ReservationStatus,
        /// Reserved.
        24 reserved24: [u8; 40],
    }

    /// A registrant with a host identifier of 64 bits.
    RegisteredController[24] {
        /// CNTLID, FFFFh under the dynamic controller model.
        0 cntlid: U16,
        /// RCSTS; see [`RCSTS_HOLDER`].
        2 rcsts: u8,
        /// Reserved.
        3 reserved3: [u8; 5],
        /// HOSTID.
        8 hostid: U64,
        /// RKEY.
        16 rkey: U64,
    }

    /// A registrant with a host identifier of 128 bits.
    RegisteredControllerExtended[64] {
        /// CNTLID, FFFFh under the dynamic controller model.
        0 cntlid: U16,
        /// RCSTS; see [`RCSTS_HOLDER`].
        2 rcsts: u8,
        /// Reserved.
        3 reserved3: [u8; 5],
        /// RKEY.
        8 rkey: U64,
        /// HOSTID.
        16 hostid: [u8; 16],
        /// Reserved.
        32 reserved32: [u8; 32],
    }

    /// Reservation Notification log page, 80h (Base §5.1.12.1.32).
    ReservationNotification[64] {
        /// LPC, counts the notifications of the controller; 0 when there is none.
        0 count: U64,
        /// RNLPT; see [`notification`].
        8 kind: u8,
        /// NALP, further notifications that wait.
        9 available: u8,
        /// Reserved.
        10 reserved10: [u8; 2],
        /// NSID.
        12 nsid: U32,
        /// Reserved.
        16 reserved16: [u8; 48],
    }
}
