//! Status of a completed command (Base §4.2.3).

use core::fmt;

/// The 15-bit status field of a completion queue entry, without the phase tag (Base §4.2.3).
///
/// SC is in bits 7:0, SCT in 10:8, CRD in 12:11, M in 13 and DNR in 14. Two values are equal only
/// if CRD, M and DNR are too; [`Self::is`] compares the code alone.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Status(pub u16);

impl Status {
    /// SCT 0h: generic.
    pub const SCT_GENERIC: u8 = 0x0;
    /// SCT 1h: command specific.
    pub const SCT_COMMAND_SPECIFIC: u8 = 0x1;
    /// SCT 2h: media and data integrity errors.
    pub const SCT_MEDIA: u8 = 0x2;
    /// SCT 3h: path related.
    pub const SCT_PATH: u8 = 0x3;
    /// SCT 7h: vendor specific.
    pub const SCT_VENDOR: u8 = 0x7;

    const CODE: u16 = 0x07ff;
    const MORE: u16 = 1 << 13;
    const DNR: u16 = 1 << 14;

    /// Status code `sc` of type `sct` (three bits), with CRD, M and DNR zero.
    pub const fn new(sct: u8, sc: u8) -> Self {
        Self((sct as u16 & 0x7) << 8 | sc as u16)
    }

    /// SCT, status code type.
    pub const fn sct(self) -> u8 {
        (self.0 >> 8) as u8 & 0x7
    }

    /// SC, status code.
    pub const fn sc(self) -> u8 {
        self.0 as u8
    }

    /// CRD: 0, or which of CRDT1 to CRDT3 to wait for before a retry.
    pub const fn crd(self) -> u8 {
        (self.0 >> 11) as u8 & 0x3
    }

    /// M: the Error Information log page tells more.
    pub const fn more(self) -> bool {
        self.0 & Self::MORE != 0
    }

    /// DNR: the same command would fail again.
    pub const fn dnr(self) -> bool {
        self.0 & Self::DNR != 0
    }

    /// Whether the command succeeded: SCT and SC are zero.
    pub const fn is_success(self) -> bool {
        self.0 & Self::CODE == 0
    }

    /// SCT and SC alone: this status with CRD, M and DNR zero.
    #[must_use]
    pub const fn code(self) -> Self {
        Self(self.0 & Self::CODE)
    }

    /// Whether SCT and SC are those of `other`.
    pub const fn is(self, other: Self) -> bool {
        self.0 & Self::CODE == other.0 & Self::CODE
    }

    /// With DNR replaced.
    #[must_use]
    pub const fn with_dnr(self, dnr: bool) -> Self {
        Self(if dnr {
            self.0 | Self::DNR
        } else {
            self.0 & !Self::DNR
        })
    }

    /// With M replaced.
    #[must_use]
    pub const fn with_more(self, more: bool) -> Self {
        Self(if more {
            self.0 | Self::MORE
        } else {
            self.0 & !Self::MORE
        })
    }

    /// With the low two bits of `crd` as CRD.
    #[must_use]
    pub const fn with_crd(self, crd: u8) -> Self {
        Self(self.0 & !(0x3 << 11) | (crd as u16 & 0x3) << 11)
    }
}

impl fmt::Display for Status {
    /// The name if there is one, SCT/SC in hexadecimal, and those of DNR, M and CRD that are set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(self.name(), f)
    }
}

/// The status of a Fabrics command in words: see [`Status::fabrics_name`].
struct OfFabrics(Status);

impl fmt::Display for OfFabrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write(self.0.fabrics_name(), f)
    }
}

impl Status {
    /// As [`fmt::Display`] of the status, with the name that it has when a Fabrics command ended
    /// with it.
    pub fn of_fabrics(self) -> impl fmt::Display {
        OfFabrics(self)
    }

    fn write(self, name: Option<&str>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name.unwrap_or(match self.sct() {
            Self::SCT_VENDOR => "vendor specific status",
            _ => "unknown status",
        }))?;
        write!(f, " ({:x}h/{:02x}h", self.sct(), self.sc())?;
        if self.dnr() {
            f.write_str(", do not retry")?;
        }
        if self.more() {
            f.write_str(", more in the error log")?;
        }
        if self.crd() != 0 {
            write!(f, ", retry delay {}", self.crd())?;
        }
        f.write_str(")")
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({self})")
    }
}

/// Constants of one status code type, and the table of their names.
macro_rules! statuses {
    ($table:ident, $sct:expr; $($sc:literal $name:ident $text:literal,)*) => {
        impl Status {
            $(
                #[doc = concat!("SC ", stringify!($sc), ": ", $text, ".")]
                pub const $name: Self = Self::new($sct, $sc);
            )*
        }

        const $table: &[(Status, &str)] = &[$((Status::$name, $text)),*];
    };
}

// Generic command status (Base §4.2.3.1). 80h and above are those of I/O command sets.
statuses! { GENERIC, Status::SCT_GENERIC;
    0x00 SUCCESS "successful completion",
    0x01 INVALID_OPCODE "invalid command opcode",
    0x02 INVALID_FIELD "invalid field in command",
    0x03 COMMAND_ID_CONFLICT "command id conflict",
    0x04 DATA_TRANSFER_ERROR "data transfer error",
    0x05 ABORTED_POWER_LOSS "command aborted due to power loss notification",
    0x06 INTERNAL_ERROR "internal error",
    0x07 COMMAND_ABORT_REQUESTED "command abort requested",
    0x08 ABORTED_SQ_DELETION "command aborted due to submission queue deletion",
    0x09 ABORTED_FAILED_FUSED "command aborted due to failed fused command",
    0x0a ABORTED_MISSING_FUSED "command aborted due to missing fused command",
    0x0b INVALID_NAMESPACE_OR_FORMAT "invalid namespace or format",
    0x0c COMMAND_SEQUENCE_ERROR "command sequence error",
    0x0d INVALID_SGL_SEGMENT_DESCRIPTOR "invalid sgl segment descriptor",
    0x0e INVALID_NUMBER_OF_SGL_DESCRIPTORS "invalid number of sgl descriptors",
    0x0f DATA_SGL_LENGTH_INVALID "data sgl length invalid",
    0x10 METADATA_SGL_LENGTH_INVALID "metadata sgl length invalid",
    0x11 SGL_DESCRIPTOR_TYPE_INVALID "sgl descriptor type invalid",
    0x12 INVALID_USE_OF_CMB "invalid use of controller memory buffer",
    0x13 PRP_OFFSET_INVALID "prp offset invalid",
    0x14 ATOMIC_WRITE_UNIT_EXCEEDED "atomic write unit exceeded",
    0x15 OPERATION_DENIED "operation denied",
    0x16 SGL_OFFSET_INVALID "sgl offset invalid",
    0x18 HOST_IDENTIFIER_INCONSISTENT_FORMAT "host identifier inconsistent format",
    0x19 KEEP_ALIVE_TIMER_EXPIRED "keep alive timer expired",
    0x1a KEEP_ALIVE_TIMEOUT_INVALID "keep alive timeout invalid",
    0x1b ABORTED_PREEMPT_AND_ABORT "command aborted due to preempt and abort",
    0x1c SANITIZE_FAILED "sanitize failed",
    0x1d SANITIZE_IN_PROGRESS "sanitize in progress",
    0x1e SGL_DATA_BLOCK_GRANULARITY_INVALID "sgl data block granularity invalid",
    0x1f COMMAND_NOT_SUPPORTED_FOR_QUEUE_IN_CMB "command not supported for queue in cmb",
    0x20 NAMESPACE_WRITE_PROTECTED "namespace is write protected",
    0x21 COMMAND_INTERRUPTED "command interrupted",
    0x22 TRANSIENT_TRANSPORT_ERROR "transient transport error",
    0x23 PROHIBITED_BY_LOCKDOWN "command prohibited by command and feature lockdown",
    0x24 ADMIN_COMMAND_MEDIA_NOT_READY "admin command media not ready",
    0x25 INVALID_KEY_TAG "invalid key tag",
    0x26 HOST_DISPERSED_NAMESPACE_NOT_ENABLED "host dispersed namespace support not enabled",
    0x27 HOST_IDENTIFIER_NOT_INITIALIZED "host identifier not initialized",
    0x28 INCORRECT_KEY "incorrect key",
    0x29 FDP_DISABLED "fdp disabled",
    0x2a INVALID_PLACEMENT_HANDLE_LIST "invalid placement handle list",
    0x80 LBA_OUT_OF_RANGE "lba out of range",
    0x81 CAPACITY_EXCEEDED "capacity exceeded",
    0x82 NAMESPACE_NOT_READY "namespace not ready",
    0x83 RESERVATION_CONFLICT "reservation conflict",
    0x84 FORMAT_IN_PROGRESS "format in progress",
    0x85 INVALID_VALUE_SIZE "invalid value size",
    0x86 INVALID_KEY_SIZE "invalid key size",
    0x87 KV_KEY_DOES_NOT_EXIST "kv key does not exist",
    0x88 UNRECOVERED_ERROR "unrecovered error",
    0x89 KEY_EXISTS "key exists",
}

// Command specific status of admin and of I/O commands (Base §4.2.3.2; 80h to 89h: NVM §3;
// B6h to BFh: Zoned Namespace Command Set).
statuses! { COMMAND_SPECIFIC, Status::SCT_COMMAND_SPECIFIC;
    0x00 COMPLETION_QUEUE_INVALID "completion queue invalid",
    0x01 INVALID_QUEUE_IDENTIFIER "invalid queue identifier",
    0x02 INVALID_QUEUE_SIZE "invalid queue size",
    0x03 ABORT_COMMAND_LIMIT_EXCEEDED "abort command limit exceeded",
    0x05 ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED "asynchronous event request limit exceeded",
    0x06 INVALID_FIRMWARE_SLOT "invalid firmware slot",
    0x07 INVALID_FIRMWARE_IMAGE "invalid firmware image",
    0x08 INVALID_INTERRUPT_VECTOR "invalid interrupt vector",
    0x09 INVALID_LOG_PAGE "invalid log page",
    0x0a INVALID_FORMAT "invalid format",
    0x0b FIRMWARE_NEEDS_CONVENTIONAL_RESET "firmware activation requires conventional reset",
    0x0c INVALID_QUEUE_DELETION "invalid queue deletion",
    0x0d FEATURE_NOT_SAVEABLE "feature identifier not saveable",
    0x0e FEATURE_NOT_CHANGEABLE "feature not changeable",
    0x0f FEATURE_NOT_NAMESPACE_SPECIFIC "feature not namespace specific",
    0x10 FIRMWARE_NEEDS_SUBSYSTEM_RESET "firmware activation requires nvm subsystem reset",
    0x11 FIRMWARE_NEEDS_CONTROLLER_RESET "firmware activation requires controller level reset",
    0x12 FIRMWARE_NEEDS_MAXIMUM_TIME "firmware activation requires maximum time violation",
    0x13 FIRMWARE_ACTIVATION_PROHIBITED "firmware activation prohibited",
    0x14 OVERLAPPING_RANGE "overlapping range",
    0x15 NAMESPACE_INSUFFICIENT_CAPACITY "namespace insufficient capacity",
    0x16 NAMESPACE_IDENTIFIER_UNAVAILABLE "namespace identifier unavailable",
    0x18 NAMESPACE_ALREADY_ATTACHED "namespace already attached",
    0x19 NAMESPACE_IS_PRIVATE "namespace is private",
    0x1a NAMESPACE_NOT_ATTACHED "namespace not attached",
    0x1b THIN_PROVISIONING_NOT_SUPPORTED "thin provisioning not supported",
    0x1c CONTROLLER_LIST_INVALID "controller list invalid",
    0x1d DEVICE_SELF_TEST_IN_PROGRESS "device self-test in progress",
    0x1e BOOT_PARTITION_WRITE_PROHIBITED "boot partition write prohibited",
    0x1f INVALID_CONTROLLER_IDENTIFIER "invalid controller identifier",
    0x20 INVALID_SECONDARY_CONTROLLER_STATE "invalid secondary controller state",
    0x21 INVALID_NUMBER_OF_CONTROLLER_RESOURCES "invalid number of controller resources",
    0x22 INVALID_RESOURCE_IDENTIFIER "invalid resource identifier",
    0x23 SANITIZE_PROHIBITED_PMR_ENABLED
        "sanitize prohibited while persistent memory region is enabled",
    0x24 ANA_GROUP_IDENTIFIER_INVALID "ana group identifier invalid",
    0x25 ANA_ATTACH_FAILED "ana attach failed",
    0x26 INSUFFICIENT_CAPACITY "insufficient capacity",
    0x27 NAMESPACE_ATTACHMENT_LIMIT_EXCEEDED "namespace attachment limit exceeded",
    0x28 PROHIBITION_NOT_SUPPORTED "prohibition of command execution not supported",
    0x29 IO_COMMAND_SET_NOT_SUPPORTED "i/o command set not supported",
    0x2a IO_COMMAND_SET_NOT_ENABLED "i/o command set not enabled",
    0x2b IO_COMMAND_SET_COMBINATION_REJECTED "i/o command set combination rejected",
    0x2c INVALID_IO_COMMAND_SET "invalid i/o command set",
    0x2d IDENTIFIER_UNAVAILABLE "identifier unavailable",
    0x2e NAMESPACE_IS_DISPERSED "namespace is dispersed",
    0x2f INVALID_DISCOVERY_INFORMATION "invalid discovery information",
    0x30 ZONING_DATA_STRUCTURE_LOCKED "zoning data structure locked",
    0x31 ZONING_DATA_STRUCTURE_NOT_FOUND "zoning data structure not found",
    0x32 INSUFFICIENT_DISCOVERY_RESOURCES "insufficient discovery resources",
    0x33 REQUESTED_FUNCTION_DISABLED "requested function disabled",
    0x34 ZONE_GROUP_ORIGINATOR_INVALID "zonegroup originator invalid",
    0x35 INVALID_HOST "invalid host",
    0x36 INVALID_NVM_SUBSYSTEM "invalid nvm subsystem",
    0x37 INVALID_CONTROLLER_DATA_QUEUE "invalid controller data queue",
    0x38 NOT_ENOUGH_RESOURCES "not enough resources",
    0x39 CONTROLLER_SUSPENDED "controller suspended",
    0x3a CONTROLLER_NOT_SUSPENDED "controller not suspended",
    0x3b CONTROLLER_DATA_QUEUE_FULL "controller data queue full",
    0x80 CONFLICTING_ATTRIBUTES "conflicting attributes",
    0x81 INVALID_PROTECTION_INFORMATION "invalid protection information",
    0x82 WRITE_TO_READ_ONLY_RANGE "attempted write to read only range",
    0x83 COMMAND_SIZE_LIMIT_EXCEEDED "command size limit exceeded",
    0x84 INVALID_COMMAND_ID "invalid command id",
    0x85 INCOMPATIBLE_NAMESPACE_OR_FORMAT "incompatible namespace or format",
    0x86 FAST_COPY_NOT_POSSIBLE "fast copy not possible",
    0x87 OVERLAPPING_IO_RANGE "overlapping i/o range",
    0x88 NAMESPACE_NOT_REACHABLE "namespace not reachable",
    0x89 INSUFFICIENT_RESOURCES "insufficient resources",
    0xb6 INVALID_ZONE_OPERATION_REQUEST "invalid zone operation request",
    0xb7 ZRWA_RESOURCES_UNAVAILABLE "zrwa resources unavailable",
    0xb8 ZONE_BOUNDARY_ERROR "zoned boundary error",
    0xb9 ZONE_IS_FULL "zone is full",
    0xba ZONE_IS_READ_ONLY "zone is read only",
    0xbb ZONE_IS_OFFLINE "zone is offline",
    0xbc ZONE_INVALID_WRITE "zone invalid write",
    0xbd TOO_MANY_ACTIVE_ZONES "too many active zones",
    0xbe TOO_MANY_OPEN_ZONES "too many open zones",
    0xbf INVALID_ZONE_STATE_TRANSITION "invalid zone state transition",
}

// Command specific status of Fabrics commands (Base §4.2.3.2). 80h to 85h are used by NVM commands
// too: which is meant follows from the command.
statuses! { FABRICS, Status::SCT_COMMAND_SPECIFIC;
    0x80 CONNECT_INCOMPATIBLE_FORMAT "connect incompatible format",
    0x81 CONNECT_CONTROLLER_BUSY "connect controller busy",
    0x82 CONNECT_INVALID_PARAMETERS "connect invalid parameters",
    0x83 CONNECT_RESTART_DISCOVERY "connect restart discovery",
    0x84 CONNECT_INVALID_HOST "connect invalid host",
    0x85 INVALID_QUEUE_TYPE "invalid queue type",
    0x90 DISCOVER_RESTART "discover restart",
    0x91 AUTHENTICATION_REQUIRED "authentication required",
}

// Media and data integrity errors (Base §4.2.3.3).
statuses! { MEDIA, Status::SCT_MEDIA;
    0x80 WRITE_FAULT "write fault",
    0x81 UNRECOVERED_READ_ERROR "unrecovered read error",
    0x82 GUARD_CHECK_ERROR "end-to-end guard check error",
    0x83 APPLICATION_TAG_CHECK_ERROR "end-to-end application tag check error",
    0x84 REFERENCE_TAG_CHECK_ERROR "end-to-end reference tag check error",
    0x85 COMPARE_FAILURE "compare failure",
    0x86 ACCESS_DENIED "access denied",
    0x87 DEALLOCATED_OR_UNWRITTEN "deallocated or unwritten logical block",
    0x88 STORAGE_TAG_CHECK_ERROR "end-to-end storage tag check error",
}

// Path related status (Base §4.2.3.4).
statuses! { PATH, Status::SCT_PATH;
    0x00 INTERNAL_PATH_ERROR "internal path error",
    0x01 ANA_PERSISTENT_LOSS "asymmetric access persistent loss",
    0x02 ANA_INACCESSIBLE "asymmetric access inaccessible",
    0x03 ANA_TRANSITION "asymmetric access transition",
    0x60 CONTROLLER_PATHING_ERROR "controller pathing error",
    0x70 HOST_PATHING_ERROR "host pathing error",
    0x71 HOST_ABORTED_COMMAND "command aborted by host",
}

impl Status {
    /// The specification's name, in lower case; `None` for codes that it does not define.
    ///
    /// Where NVM and Fabrics commands share a code this is the NVM name: the ends of Fabrics
    /// commands are named by [`Self::fabrics_name`].
    pub fn name(self) -> Option<&'static str> {
        let tables: &[&[(Self, &'static str)]] = match self.sct() {
            Self::SCT_GENERIC => &[GENERIC],
            Self::SCT_COMMAND_SPECIFIC => &[COMMAND_SPECIFIC, FABRICS],
            Self::SCT_MEDIA => &[MEDIA],
            Self::SCT_PATH => &[PATH],
            _ => &[],
        };
        tables.iter().find_map(|table| self.find(table))
    }

    /// The name that this status has when a Fabrics command ended with it.
    pub fn fabrics_name(self) -> Option<&'static str> {
        self.find(FABRICS).or_else(|| self.name())
    }

    fn find(self, table: &[(Self, &'static str)]) -> Option<&'static str> {
        table
            .iter()
            .find(|(status, _)| self.is(*status))
            .map(|(_, name)| *name)
    }
}
