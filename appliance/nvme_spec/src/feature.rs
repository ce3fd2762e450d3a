//! Features: what Get Features and Set Features name and move (Base §5.1.25).

use zerocopy::little_endian::U16;

use crate::layout::{constants, wire_structs};

/// SEL of Get Features (Base §5.1.11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Select {
    /// 000b: the value in force.
    #[default]
    Current,
    /// 001b: the value that the controller was made with.
    Default,
    /// 010b: the value that was saved last.
    Saved,
    /// 011b: what may be done with the feature; see the `CAPABILITY_*` constants.
    Supported,
    /// 100b to 111b.
    Reserved(u8),
}

impl Select {
    /// From the low three bits of `bits`.
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 0b111 {
            0 => Self::Current,
            1 => Self::Default,
            2 => Self::Saved,
            3 => Self::Supported,
            reserved => Self::Reserved(reserved),
        }
    }

    /// The three bits of the field.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Current => 0,
            Self::Default => 1,
            Self::Saved => 2,
            Self::Supported => 3,
            Self::Reserved(reserved) => reserved & 0b111,
        }
    }
}

/// FID, feature identifiers.
pub mod fid {
    super::constants! { u8;
        /// Arbitration.
        ARBITRATION = 0x01;
        /// Power Management.
        POWER_MANAGEMENT = 0x02;
        /// LBA Range Type (NVM command set).
        LBA_RANGE_TYPE = 0x03;
        /// Temperature Threshold.
        TEMPERATURE_THRESHOLD = 0x04;
        /// Error Recovery (NVM command set).
        ERROR_RECOVERY = 0x05;
        /// Volatile Write Cache.
        VOLATILE_WRITE_CACHE = 0x06;
        /// Number of Queues.
        NUMBER_OF_QUEUES = 0x07;
        /// Interrupt Coalescing.
        INTERRUPT_COALESCING = 0x08;
        /// Interrupt Vector Configuration.
        INTERRUPT_VECTOR = 0x09;
        /// Write Atomicity Normal (NVM command set).
        WRITE_ATOMICITY = 0x0a;
        /// Asynchronous Event Configuration.
        ASYNC_EVENT_CONFIG = 0x0b;
        /// Autonomous Power State Transition.
        AUTONOMOUS_POWER_STATE = 0x0c;
        /// Host Memory Buffer.
        HOST_MEMORY_BUFFER = 0x0d;
        /// Timestamp.
        TIMESTAMP = 0x0e;
        /// Keep Alive Timer.
        KEEP_ALIVE_TIMER = 0x0f;
        /// Host Controlled Thermal Management.
        THERMAL_MANAGEMENT = 0x10;
        /// Non-Operational Power State Config.
        NON_OPERATIONAL_POWER = 0x11;
        /// Read Recovery Level Config.
        READ_RECOVERY_LEVEL = 0x12;
        /// Predictable Latency Mode Config.
        PREDICTABLE_LATENCY_CONFIG = 0x13;
        /// Predictable Latency Mode Window.
        PREDICTABLE_LATENCY_WINDOW = 0x14;
        /// LBA Status Information Attributes (NVM command set).
        LBA_STATUS_ATTRIBUTES = 0x15;
        /// Host Behavior Support.
        HOST_BEHAVIOR = 0x16;
        /// Sanitize Config.
        SANITIZE_CONFIG = 0x17;
        /// Endurance Group Event Configuration.
        ENDURANCE_GROUP_EVENT_CONFIG = 0x18;
        /// I/O Command Set Profile.
        IO_COMMAND_SET_PROFILE = 0x19;
        /// Spinup Control.
        SPINUP_CONTROL = 0x1a;
        /// Power Loss Signaling Config.
        POWER_LOSS_SIGNALING = 0x1b;
        /// Performance Characteristics.
        PERFORMANCE_CHARACTERISTICS = 0x1c;
        /// Flexible Data Placement.
        FDP = 0x1d;
        /// Flexible Data Placement Events.
        FDP_EVENTS = 0x1e;
        /// Namespace Admin Label.
        NAMESPACE_ADMIN_LABEL = 0x1f;
        /// Key Value Configuration.
        KEY_VALUE = 0x20;
        /// Controller Data Queue.
        CONTROLLER_DATA_QUEUE = 0x21;
        /// Embedded Management Controller Address.
        EMBEDDED_MANAGEMENT_ADDRESS = 0x78;
        /// Host Management Agent Address.
        HOST_MANAGEMENT_ADDRESS = 0x79;
        /// Enhanced Controller Metadata (NVMe-MI).
        ENHANCED_CONTROLLER_METADATA = 0x7d;
        /// Controller Metadata (NVMe-MI).
        CONTROLLER_METADATA = 0x7e;
        /// Namespace Metadata (NVMe-MI).
        NAMESPACE_METADATA = 0x7f;
        /// Software Progress Marker.
        SOFTWARE_PROGRESS = 0x80;
        /// Host Identifier.
        HOST_IDENTIFIER = 0x81;
        /// Reservation Notification Mask.
        RESERVATION_MASK = 0x82;
        /// Reservation Persistence.
        RESERVATION_PERSISTENCE = 0x83;
        /// Namespace Write Protection Config.
        NAMESPACE_WRITE_PROTECTION = 0x84;
        /// Boot Partition Write Protection Config.
        BOOT_PARTITION_WRITE_PROTECTION = 0x85;
    }
}

/// Dword 0 of Get Features with [`Select::Supported`] (Base §5.1.11).
pub mod capability {
    super::constants! { u32;
        /// The value can be saved.
        SAVEABLE = 1 << 0;
        /// Each namespace has a value.
        NAMESPACE_SPECIFIC = 1 << 1;
        /// The value can be changed.
        CHANGEABLE = 1 << 2;
    }
}

/// Dword 11 of Asynchronous Event Configuration (Base §5.1.25): a set bit asks for the event.
///
/// Bits 31:8 are those of [`crate::identify::oaes`], but for bit 10, which OAES lacks, and the
/// discovery controller's bits 30:28.
pub mod async_event {
    super::constants! { u32;
        /// Bits 7:0: SMART critical warnings, in the order of
        /// [`crate::log::critical_warning`].
        SMART = 0xff;
        /// Attached Namespace Attribute Notices.
        NAMESPACE_ATTRIBUTE = 1 << 8;
        /// Firmware Activation Notices.
        FIRMWARE_ACTIVATION = 1 << 9;
        /// Telemetry Log Notices.
        TELEMETRY = 1 << 10;
        /// ANA Change Notices.
        ANA_CHANGE = 1 << 11;
        /// Predictable Latency Event Aggregate Log Change Notices.
        PREDICTABLE_LATENCY = 1 << 12;
        /// LBA Status Information Alert Notices.
        LBA_STATUS = 1 << 13;
        /// Endurance Group Event Aggregate Log Change Notices.
        ENDURANCE_GROUP = 1 << 14;
        /// Normal NVM Subsystem Shutdown.
        SUBSYSTEM_SHUTDOWN = 1 << 15;
        /// Temperature Threshold Hysteresis Recovery.
        TEMPERATURE_HYSTERESIS = 1 << 16;
        /// Reachability Group Notification.
        REACHABILITY_GROUPS = 1 << 17;
        /// Reachability Association Notification.
        REACHABILITY_ASSOCIATIONS = 1 << 18;
        /// Allocated Namespace Attribute Notices.
        ALLOCATED_NAMESPACE_ATTRIBUTE = 1 << 19;
        /// Zone Descriptor Changed Notices.
        ZONE_DESCRIPTOR = 1 << 27;
        /// Pull Model DDC Request Log Page Change Notification.
        PULL_MODEL_DDC_REQUEST = 1 << 28;
        /// AVE Discovery Log Page Change Notification.
        AVE_DISCOVERY_LOG_CHANGE = 1 << 29;
        /// Host Discovery Log Page Change Notification.
        HOST_DISCOVERY_LOG_CHANGE = 1 << 30;
        /// Discovery Log Page Change Notification.
        DISCOVERY_LOG_CHANGE = 1 << 31;
    }
}

/// Dword 11 of Volatile Write Cache, bit 0, WCE: the cache is on (Base §5.1.25).
pub const VOLATILE_WRITE_CACHE_ENABLE: u32 = 1 << 0;

/// Dword 11 of Host Identifier, bit 0, EXHID: the identifier has 128 bits, not 64.
pub const HOST_IDENTIFIER_EXTENDED: u32 = 1 << 0;

/// Dword 11 of Set Features, or dword 0 of its completion, for Number of Queues
/// (Base §5.1.25).
///
/// Both counts are of I/O queues, 1 to 65535; the wire has them zero-based.
pub const fn number_of_queues(submission: u16, completion: u16) -> u32 {
    submission.wrapping_sub(1) as u32 | (completion.wrapping_sub(1) as u32) << 16
}

/// The I/O submission and completion queues in a dword of Number of Queues, each 1 to 65536.
///
/// 65536 (FFFFh on the wire) is not allowed in a request: it ends with Invalid Field.
pub const fn parse_number_of_queues(dword: u32) -> (u32, u32) {
    ((dword & 0xffff) + 1, (dword >> 16) + 1)
}

wire_structs! {
    /// Data of Host Behavior Support, FID 16h (Base §5.1.25).
    HostBehaviorSupport[512] {
        /// ACRE: 1 if Command Interrupted and CRD are understood.
        0 acre: u8,
        /// ETDAS: 1 if telemetry data area 4 is understood.
        1 etdas: u8,
        /// LBAFEE: 1 if the extended LBA formats are understood.
        2 lbafee: u8,
        /// HDISNS: 1 if dispersed namespaces are understood.
        3 hdisns: u8,
        /// CDFE: copy descriptor formats 2h to 4h that are enabled, bit n for format n.
        4 cdfe: U16,
        /// Reserved.
        6 reserved6: [u8; 506],
    }
}
