//! Log pages (Base §5.1.12.1). The discovery log page is in `fabric_wire`.

use zerocopy::little_endian::{U16, U32, U64};

use crate::layout::{constants, wire_structs};
use crate::{Nsid, Status};

/// LID, log page identifiers.
pub mod lid {
    super::constants! { u8;
        /// Supported Log Pages.
        SUPPORTED_LOG_PAGES = 0x00;
        /// Error Information.
        ERROR = 0x01;
        /// SMART / Health Information.
        SMART = 0x02;
        /// Firmware Slot Information.
        FIRMWARE_SLOT = 0x03;
        /// Changed Attached Namespace List.
        CHANGED_NAMESPACES = 0x04;
        /// Commands Supported and Effects.
        COMMANDS_EFFECTS = 0x05;
        /// Device Self-test.
        DEVICE_SELF_TEST = 0x06;
        /// Telemetry Host-Initiated.
        TELEMETRY_HOST = 0x07;
        /// Telemetry Controller-Initiated.
        TELEMETRY_CONTROLLER = 0x08;
        /// Endurance Group Information.
        ENDURANCE_GROUP = 0x09;
        /// Predictable Latency Per NVM Set.
        PREDICTABLE_LATENCY = 0x0a;
        /// Predictable Latency Event Aggregate.
        PREDICTABLE_LATENCY_EVENTS = 0x0b;
        /// Asymmetric Namespace Access.
        ANA = 0x0c;
        /// Persistent Event Log.
        PERSISTENT_EVENT = 0x0d;
        /// LBA Status Information (NVM command set).
        LBA_STATUS = 0x0e;
        /// Endurance Group Event Aggregate.
        ENDURANCE_GROUP_EVENTS = 0x0f;
        /// Media Unit Status.
        MEDIA_UNIT_STATUS = 0x10;
        /// Supported Capacity Configuration List.
        CAPACITY_CONFIGURATIONS = 0x11;
        /// Feature Identifiers Supported and Effects.
        FEATURE_EFFECTS = 0x12;
        /// NVMe-MI Commands Supported and Effects.
        NVME_MI_EFFECTS = 0x13;
        /// Command and Feature Lockdown.
        LOCKDOWN = 0x14;
        /// Boot Partition.
        BOOT_PARTITION = 0x15;
        /// Rotational Media Information.
        ROTATIONAL_MEDIA = 0x16;
        /// Dispersed Namespace Participating NVM Subsystems.
        DISPERSED_NAMESPACES = 0x17;
        /// Management Address List.
        MANAGEMENT_ADDRESSES = 0x18;
        /// Reachability Groups.
        REACHABILITY_GROUPS = 0x1a;
        /// Reachability Associations.
        REACHABILITY_ASSOCIATIONS = 0x1b;
        /// Changed Allocated Namespace List.
        CHANGED_ALLOCATED_NAMESPACES = 0x1c;
        /// FDP Configurations.
        FDP_CONFIGURATIONS = 0x20;
        /// Reclaim Unit Handle Usage.
        RECLAIM_UNIT_HANDLES = 0x21;
        /// FDP Statistics.
        FDP_STATISTICS = 0x22;
        /// FDP Events.
        FDP_EVENTS = 0x23;
        /// Discovery.
        DISCOVERY = 0x70;
        /// Host Discovery.
        HOST_DISCOVERY = 0x71;
        /// AVE Discovery.
        AVE_DISCOVERY = 0x72;
        /// Pull Model DDC Request.
        PULL_MODEL_DDC_REQUEST = 0x73;
        /// Reservation Notification.
        RESERVATION_NOTIFICATION = 0x80;
        /// Sanitize Status.
        SANITIZE_STATUS = 0x81;
        /// Changed Zone List (Zoned Namespace Command Set).
        CHANGED_ZONES = 0xbf;
    }
}

/// Entries of [`SupportedLogPages`].
pub mod supported {
    super::constants! { u32;
        /// LSUPP: the log page is supported.
        LSUPP = 1 << 0;
        /// IOS: its offset may be an index.
        IOS = 1 << 1;
        /// LIDSP, bits 31:16: LID specific parameter; shift of the field.
        LIDSP_SHIFT = 16;
    }
}

/// Entries of [`CommandsEffects`].
pub mod effects {
    super::constants! { u32;
        /// CSUPP: the command is supported.
        CSUPP = 1 << 0;
        /// LBCC: it may change the content of logical blocks.
        LBCC = 1 << 1;
        /// NCC: it may change the capability of one namespace.
        NCC = 1 << 2;
        /// NIC: it may change the number or the capabilities of namespaces.
        NIC = 1 << 3;
        /// CCC: it may change controller capabilities.
        CCC = 1 << 4;
        /// CSER 01b, bits 15:14: not beside other admin commands of the same namespace.
        CSER_NAMESPACE = 1 << 14;
        /// CSER 10b, bits 15:14: not beside other admin commands.
        CSER_ALL = 2 << 14;
        /// CSE 001b, bits 18:16: not beside other commands of the same namespace.
        CSE_NAMESPACE = 1 << 16;
        /// CSE 010b, bits 18:16: not beside any other command.
        CSE_ALL = 2 << 16;
        /// USS: the command takes a UUID index.
        USS = 1 << 19;
        /// CSP, bits 31:20: command scope; shift of the field.
        CSP_SHIFT = 20;
    }
}

/// Entries of [`FeatureEffects`].
pub mod feature_effects {
    super::constants! { u32;
        /// FSUPP: the feature is supported.
        FSUPP = 1 << 0;
        /// UDCC: setting it may change the content of user data.
        UDCC = 1 << 1;
        /// NCC: setting it may change the capability of one namespace.
        NCC = 1 << 2;
        /// NIC: setting it may change the number or the capabilities of namespaces.
        NIC = 1 << 3;
        /// CCC: setting it may change controller capabilities.
        CCC = 1 << 4;
        /// USS: the feature takes a UUID index.
        USS = 1 << 19;
        /// FSP, bits 31:20, bit 0: its scope is a namespace.
        SCOPE_NAMESPACE = 1 << 20;
        /// FSP, bit 1: its scope is a controller.
        SCOPE_CONTROLLER = 1 << 21;
        /// FSP, bit 2: its scope is an NVM set.
        SCOPE_NVM_SET = 1 << 22;
        /// FSP, bit 3: its scope is an endurance group.
        SCOPE_ENDURANCE_GROUP = 1 << 23;
        /// FSP, bit 4: its scope is a domain.
        SCOPE_DOMAIN = 1 << 24;
        /// FSP, bit 5: its scope is an NVM subsystem.
        SCOPE_SUBSYSTEM = 1 << 25;
        /// FSP, bit 6: its scope is a controller data queue.
        SCOPE_CONTROLLER_DATA_QUEUE = 1 << 26;
    }
}

/// Critical warnings of [`SmartLog`].
pub mod critical_warning {
    super::constants! { u8;
        /// Spare below its threshold.
        SPARE = 1 << 0;
        /// Temperature beyond a threshold.
        TEMPERATURE = 1 << 1;
        /// Reliability degraded.
        RELIABILITY = 1 << 2;
        /// All media read-only.
        READ_ONLY = 1 << 3;
        /// Backup of volatile memory failed.
        VOLATILE_BACKUP = 1 << 4;
        /// Persistent memory region read-only or unreliable.
        PMR_READ_ONLY = 1 << 5;
    }
}

/// ANA state, of [`AnaGroupDescriptor`] (Base §8.1.1).
pub mod ana_state {
    super::constants! { u8;
        /// ANA Optimized.
        OPTIMIZED = 0x1;
        /// ANA Non-Optimized.
        NON_OPTIMIZED = 0x2;
        /// ANA Inaccessible.
        INACCESSIBLE = 0x3;
        /// ANA Persistent Loss.
        PERSISTENT_LOSS = 0x4;
        /// ANA Change.
        CHANGE = 0xf;
    }
}

/// LSP of Get Log Page for the ANA log, bit 0, RGO: group descriptors come without namespaces.
pub const ANA_RETURN_GROUPS_ONLY: u8 = 1 << 0;

/// What the Changed Attached Namespace List holds, alone, once more than 1024 have changed.
pub const CHANGED_NAMESPACES_OVERFLOW: Nsid = Nsid::ALL;

wire_structs! {
    /// Supported Log Pages, LID 00h (Base §5.1.12.1): an entry for each LID; see [`supported`].
    SupportedLogPages[1024] {
        /// LIDS.
        0 lids: [U32; 256],
    }

    /// Error Information Log Entry, LID 01h (Base §5.1.12.1). The log page is ELPE + 1 of them,
    /// the newest first.
    ErrorEntry[64] {
        /// ECNT: number of this error since the controller was made; 0: no entry.
        0 error_count: U64,
        /// SQID of the command; FFFFh: no command.
        8 sqid: U16,
        /// CID of the command; FFFFh: no command.
        10 cid: U16,
        /// STSI: phase tag in bit 0, status in bits 15:1, as in a completion queue entry.
        12 status: U16,
        /// PEL: byte in bits 7:0 and bit in 10:8 of the command that is wrong; FFFFh: none.
        14 parameter_error_location: U16,
        /// LBA: the first logical block that failed.
        16 lba: U64,
        /// NSID of the command.
        24 nsid: U32,
        /// VSIA: log page identifier with more; 0: none.
        28 vendor_log: u8,
        /// TRTYPE of the transport.
        29 trtype: u8,
        /// CSI of the command; valid if `log_page_version` is 1 or more.
        30 csi: u8,
        /// OPC of the command; valid if `log_page_version` is 1 or more.
        31 opcode: u8,
        /// CSINF: command specific.
        32 command_specific: U64,
        /// TTSI: transport specific.
        40 transport_specific: U16,
        /// Reserved.
        42 reserved42: [u8; 21],
        /// LPVER: log page version.
        63 log_page_version: u8,
    }

    /// SMART / Health Information, LID 02h (Base §5.1.12.1).
    SmartLog[512] {
        /// CW; see [`critical_warning`].
        0 critical_warning: u8,
        /// CTEMP: composite temperature, in kelvins.
        1 composite_temperature: U16,
        /// AVSP: available spare, per cent.
        3 available_spare: u8,
        /// AVSPT: its threshold, per cent.
        4 available_spare_threshold: u8,
        /// PUSED: estimate of life used, per cent, up to 255.
        5 percentage_used: u8,
        /// EGCWS: critical warnings of endurance groups.
        6 endurance_group_warning: u8,
        /// Reserved.
        7 reserved7: [u8; 25],
        /// DUR: data read, in units of 1000 times 512 bytes, rounded up.
        32 data_units_read: [u8; 16],
        /// DUW: data written, in units of 1000 times 512 bytes, rounded up.
        48 data_units_written: [u8; 16],
        /// HRC: read commands of hosts.
        64 host_read_commands: [u8; 16],
        /// HWC: write commands of hosts.
        80 host_write_commands: [u8; 16],
        /// CBT: time that the controller was busy, in minutes.
        96 controller_busy_time: [u8; 16],
        /// PWRC: power cycles.
        112 power_cycles: [u8; 16],
        /// POH: power on hours.
        128 power_on_hours: [u8; 16],
        /// UPL: unexpected power losses.
        144 unsafe_shutdowns: [u8; 16],
        /// MDIE: media and data integrity errors.
        160 media_errors: [u8; 16],
        /// NEILE: entries that the Error Information log ever had.
        176 error_log_entries: [u8; 16],
        /// WCTT: time above the warning temperature, in minutes.
        192 warning_temperature_time: U32,
        /// CCTT: time above the critical temperature, in minutes.
        196 critical_temperature_time: U32,
        /// TSEN1 to TSEN8: temperature sensors, in kelvins; 0: none.
        200 temperature_sensor: [U16; 8],
        /// TMT1TC: transitions to thermal management temperature 1.
        216 thermal_temperature_1_transitions: U32,
        /// TMT2TC: transitions to thermal management temperature 2.
        220 thermal_temperature_2_transitions: U32,
        /// TTTMT1: time at thermal management temperature 1, in seconds.
        224 thermal_temperature_1_time: U32,
        /// TTTMT2: time at thermal management temperature 2, in seconds.
        228 thermal_temperature_2_time: U32,
        /// Reserved.
        232 reserved232: [u8; 280],
    }

    /// Firmware Slot Information, LID 03h (Base §5.1.12.1).
    FirmwareSlot[512] {
        /// AFI: active slot in bits 2:0, slot of the next reset in bits 6:4.
        0 afi: u8,
        /// Reserved.
        1 reserved1: [u8; 7],
        /// FRS1 to FRS7: firmware revisions, ASCII; all zero: the slot is empty.
        8 frs: [[u8; 8]; 7],
        /// Reserved.
        64 reserved64: [u8; 448],
    }

    /// Changed Attached Namespace List, LID 04h (Base §5.1.12.1).
    ChangedNamespaces[4096] {
        /// Identifiers in increasing order, then zeroes; or [`CHANGED_NAMESPACES_OVERFLOW`] alone.
        0 nsid: [U32; 1024],
    }

    /// Commands Supported and Effects, LID 05h (Base §5.1.12.1); see [`effects`].
    CommandsEffects[4096] {
        /// ACS: an entry for each admin opcode.
        0 admin: [U32; 256],
        /// IOCS: an entry for each I/O opcode of the command set asked for in CSI.
        1024 io: [U32; 256],
        /// Reserved.
        2048 reserved2048: [u8; 2048],
    }

    /// Feature Identifiers Supported and Effects, LID 12h (Base §5.1.12.1); see
    /// [`feature_effects`].
    FeatureEffects[1024] {
        /// FIS: an entry for each FID.
        0 fid: [U32; 256],
    }

    /// Head of the Asymmetric Namespace Access log page, LID 0Ch (Base §5.1.12.1). As many
    /// group descriptors follow as `groups` says.
    AnaHeader[16] {
        /// CHGCNT: changes of this log page.
        0 change_count: U64,
        /// NAGD: group descriptors that follow.
        8 groups: U16,
        /// Reserved.
        10 reserved10: [u8; 6],
    }

    /// Head of an ANA Group Descriptor (Base §5.1.12.1). As many 32-bit namespace identifiers
    /// follow, in increasing order, as `namespaces` says.
    AnaGroupDescriptor[32] {
        /// AGID: group identifier.
        0 group_id: U32,
        /// NNV: namespace identifiers that follow.
        4 namespaces: U32,
        /// CHGCNT: the change of the log page that this group changed in last.
        8 change_count: U64,
        /// ASTA in bits 3:0; see [`ana_state`].
        16 state: u8,
        /// Reserved.
        17 reserved17: [u8; 15],
    }
}

impl ErrorEntry {
    /// The status of the command, without the phase tag.
    pub const fn status(&self) -> Status {
        Status(self.status.get() >> 1)
    }

    /// With the status of the command replaced, phase tag 0.
    #[must_use]
    pub const fn with_status(mut self, status: Status) -> Self {
        self.status = U16::new(status.0 << 1);
        self
    }
}

/// Getter and setter of 128-bit counters.
macro_rules! counters {
    ($($field:ident $set:ident),* $(,)?) => {
        impl SmartLog {$(
            #[doc = concat!("`", stringify!($field), "` as a number.")]
            pub const fn $field(&self) -> u128 {
                u128::from_le_bytes(self.$field)
            }

            #[doc = concat!("Sets `", stringify!($field), "`.")]
            pub const fn $set(&mut self, value: u128) {
                self.$field = value.to_le_bytes();
            }
        )*}
    };
}

counters! {
    data_units_read set_data_units_read,
    data_units_written set_data_units_written,
    host_read_commands set_host_read_commands,
    host_write_commands set_host_write_commands,
    controller_busy_time set_controller_busy_time,
    power_cycles set_power_cycles,
    power_on_hours set_power_on_hours,
    unsafe_shutdowns set_unsafe_shutdowns,
    media_errors set_media_errors,
    error_log_entries set_error_log_entries,
}

impl SmartLog {
    /// Bytes in "data units": thousands of 512 bytes, rounded up.
    pub const fn data_units(bytes: u128) -> u128 {
        bytes.div_ceil(512 * 1000)
    }
}

impl ChangedNamespaces {
    /// The list of `nsids`, in increasing order; if more than 1024, the overflow value alone.
    pub fn new(nsids: impl IntoIterator<Item = Nsid>) -> Self {
        let mut list = Self::default();
        let mut nsids = nsids.into_iter();
        for (entry, nsid) in list.nsid.iter_mut().zip(&mut nsids) {
            *entry = U32::new(nsid.0);
        }
        if nsids.next().is_some() {
            list = Self::default();
            list.nsid[0] = U32::new(CHANGED_NAMESPACES_OVERFLOW.0);
        }
        list
    }

    /// The identifiers, up to the first 0.
    pub fn iter(&self) -> impl Iterator<Item = Nsid> {
        self.nsid
            .iter()
            .map(|nsid| Nsid(nsid.get()))
            .take_while(|nsid| *nsid != Nsid::NONE)
    }

    /// Whether more changed than the list holds: every namespace may have.
    pub fn is_overflow(&self) -> bool {
        self.nsid[0].get() == CHANGED_NAMESPACES_OVERFLOW.0
    }
}

impl AnaHeader {
    /// Head of a log page with `groups` group descriptors.
    pub const fn new(change_count: u64, groups: u16) -> Self {
        Self {
            change_count: U64::new(change_count),
            groups: U16::new(groups),
            reserved10: [0; 6],
        }
    }
}

impl AnaGroupDescriptor {
    /// Head of a group with `namespaces` namespaces, in `state`.
    pub const fn new(group_id: u32, namespaces: u32, change_count: u64, state: u8) -> Self {
        Self {
            group_id: U32::new(group_id),
            namespaces: U32::new(namespaces),
            change_count: U64::new(change_count),
            state: state & 0xf,
            reserved17: [0; 15],
        }
    }

    /// ASTA: one of [`ana_state`], or reserved.
    pub const fn ana_state(&self) -> u8 {
        self.state & 0xf
    }
}
