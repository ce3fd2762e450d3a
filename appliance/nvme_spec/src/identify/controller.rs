//! Identify Controller, CNS 01h (Base §5.1.13).

use zerocopy::little_endian::{U16, U32};

use crate::layout::{constants, wire_structs};

wire_structs! {
    /// Power State Descriptor (Base §5.1.13).
    PowerState[32] {
        /// MP: maximum power, in units that bit 0 of `flags` tells (0: 10 mW, 1: 0.1 mW).
        0 mp: U16,
        /// Reserved.
        2 reserved2: u8,
        /// MXPS in bit 0, NOPS (non-operational) in bit 1.
        3 flags: u8,
        /// ENLAT: entry latency in microseconds.
        4 enlat: U32,
        /// EXLAT: exit latency in microseconds.
        8 exlat: U32,
        /// RRT: relative read throughput.
        12 rrt: u8,
        /// RRL: relative read latency.
        13 rrl: u8,
        /// RWT: relative write throughput.
        14 rwt: u8,
        /// RWL: relative write latency.
        15 rwl: u8,
        /// IDLP: idle power.
        16 idlp: U16,
        /// IPS in bits 7:6: scale of IDLP.
        18 ips: u8,
        /// Reserved.
        19 reserved19: u8,
        /// ACTP: active power.
        20 actp: U16,
        /// APW in bits 2:0, APS in bits 7:6: workload and scale of ACTP.
        22 apws: u8,
        /// EPFRT: emergency power fail recovery time.
        23 epfrt: u8,
        /// FQVT: forced quiescence vault time.
        24 fqvt: u8,
        /// EPFVT: emergency power fail vault time.
        25 epfvt: u8,
        /// Scales of EPFRT and FQVT.
        26 epfr_fqv_ts: u8,
        /// Scale of EPFVT.
        27 epfvts: u8,
        /// Reserved.
        28 reserved28: [u8; 4],
    }

    /// Identify Controller (Base §5.1.13).
    IdentifyController[4096] {
        /// VID: PCI vendor ID. 0 where there is no PCI function.
        0 vid: U16,
        /// SSVID: PCI subsystem vendor ID.
        2 ssvid: U16,
        /// SN: serial number, ASCII padded with spaces.
        4 sn: [u8; 20],
        /// MN: model number, ASCII padded with spaces.
        24 mn: [u8; 40],
        /// FR: firmware revision, ASCII padded with spaces.
        64 fr: [u8; 8],
        /// RAB: recommended arbitration burst, as a power of two.
        72 rab: u8,
        /// IEEE: OUI of the controller's vendor, least significant byte first.
        73 ieee: [u8; 3],
        /// CMIC: multi-path and sharing; see [`cmic`].
        76 cmic: u8,
        /// MDTS: maximum data transfer is 2^MDTS memory pages of the minimum size; 0: no limit.
        77 mdts: u8,
        /// CNTLID: controller ID.
        78 cntlid: U16,
        /// VER: as the VS property.
        80 ver: U32,
        /// RTD3R: RTD3 resume latency in microseconds.
        84 rtd3r: U32,
        /// RTD3E: RTD3 entry latency in microseconds.
        88 rtd3e: U32,
        /// OAES: optional asynchronous events; see [`oaes`].
        92 oaes: U32,
        /// CTRATT: controller attributes; see [`ctratt`].
        96 ctratt: U32,
        /// RRLS: read recovery levels.
        100 rrls: U16,
        /// BPCAP: boot partition capabilities.
        102 bpcap: u8,
        /// Reserved.
        103 reserved103: u8,
        /// NSSL: NVM subsystem shutdown latency in microseconds.
        104 nssl: U32,
        /// Reserved.
        108 reserved108: [u8; 2],
        /// PLSI: power loss signaling.
        110 plsi: u8,
        /// CNTRLTYPE: controller type; see [`cntrltype`].
        111 cntrltype: u8,
        /// FGUID: FRU globally unique identifier.
        112 fguid: [u8; 16],
        /// CRDT1: command retry delay in units of 100 ms, for CRD 1.
        128 crdt1: U16,
        /// CRDT2: as CRDT1, for CRD 2.
        130 crdt2: U16,
        /// CRDT3: as CRDT1, for CRD 3.
        132 crdt3: U16,
        /// CRCAP: controller reachability capabilities.
        134 crcap: u8,
        /// Reserved, 252:240 for the Management Interface.
        135 reserved135: [u8; 118],
        /// NVMSR: NVM subsystem report.
        253 nvmsr: u8,
        /// VWCI: VPD write cycle information.
        254 vwci: u8,
        /// MEC: management endpoint capabilities.
        255 mec: u8,
        /// OACS: optional admin commands; see [`oacs`].
        256 oacs: U16,
        /// ACL: concurrent Abort commands, zero-based.
        258 acl: u8,
        /// AERL: outstanding Asynchronous Event Requests, zero-based.
        259 aerl: u8,
        /// FRMW: firmware updates; see [`frmw`].
        260 frmw: u8,
        /// LPA: log page attributes; see [`lpa`].
        261 lpa: u8,
        /// ELPE: entries of the Error Information log page, zero-based.
        262 elpe: u8,
        /// NPSS: power states, zero-based.
        263 npss: u8,
        /// AVSCC: admin vendor specific command configuration.
        264 avscc: u8,
        /// APSTA: autonomous power state transitions.
        265 apsta: u8,
        /// WCTEMP: warning composite temperature, in kelvins.
        266 wctemp: U16,
        /// CCTEMP: critical composite temperature, in kelvins.
        268 cctemp: U16,
        /// MTFA: maximum time of firmware activation, in units of 100 ms.
        270 mtfa: U16,
        /// HMPRE: preferred host memory buffer, in units of 4 KiB.
        272 hmpre: U32,
        /// HMMIN: minimum host memory buffer, in units of 4 KiB.
        276 hmmin: U32,
        /// TNVMCAP: total NVM capacity, in bytes.
        280 tnvmcap: [u8; 16],
        /// UNVMCAP: unallocated NVM capacity, in bytes.
        296 unvmcap: [u8; 16],
        /// RPMBS: replay protected memory block.
        312 rpmbs: U32,
        /// EDSTT: extended device self-test time, in minutes.
        316 edstt: U16,
        /// DSTO: device self-test options.
        318 dsto: u8,
        /// FWUG: firmware update granularity, in units of 4 KiB.
        319 fwug: u8,
        /// KAS: granularity of the Keep Alive timer, in units of 100 ms; 0: not supported.
        320 kas: U16,
        /// HCTMA: host controlled thermal management.
        322 hctma: U16,
        /// MNTMT: minimum thermal management temperature, in kelvins.
        324 mntmt: U16,
        /// MXTMT: maximum thermal management temperature, in kelvins.
        326 mxtmt: U16,
        /// SANICAP: sanitize capabilities.
        328 sanicap: U32,
        /// HMMINDS: minimum descriptor of the host memory buffer, in units of 4 KiB.
        332 hmminds: U32,
        /// HMMAXD: descriptors of the host memory buffer.
        336 hmmaxd: U16,
        /// NSETIDMAX: greatest NVM set identifier.
        338 nsetidmax: U16,
        /// ENDGIDMAX: greatest endurance group identifier.
        340 endgidmax: U16,
        /// ANATT: longest time in the ANA Change state, in seconds.
        342 anatt: u8,
        /// ANACAP: ANA capabilities; see [`anacap`].
        343 anacap: u8,
        /// ANAGRPMAX: greatest ANA group identifier.
        344 anagrpmax: U32,
        /// NANAGRPID: number of ANA groups.
        348 nanagrpid: U32,
        /// PELS: size of the Persistent Event log page, in units of 64 KiB.
        352 pels: U32,
        /// DID: domain identifier.
        356 did: U16,
        /// KPIOC: key per I/O capabilities.
        358 kpioc: u8,
        /// Reserved.
        359 reserved359: u8,
        /// MPTFAWR: longest processing of firmware activation without reset, in units of 100 ms.
        360 mptfawr: U16,
        /// Reserved.
        362 reserved362: [u8; 6],
        /// MEGCAP: largest endurance group, in bytes.
        368 megcap: [u8; 16],
        /// TMPTHHA: temperature threshold hysteresis.
        384 tmpthha: u8,
        /// Reserved.
        385 reserved385: u8,
        /// CQT: command quiesce time, in milliseconds.
        386 cqt: U16,
        /// Reserved.
        388 reserved388: [u8; 124],
        /// SQES: size of submission queue entries as powers of two: required in bits 3:0, maximum
        /// in bits 7:4.
        512 sqes: u8,
        /// CQES: as SQES, of completion queue entries.
        513 cqes: u8,
        /// MAXCMD: outstanding commands per I/O queue. Required of Fabrics controllers.
        514 maxcmd: U16,
        /// NN: greatest namespace identifier.
        516 nn: U32,
        /// ONCS: optional NVM commands; see [`oncs`].
        520 oncs: U16,
        /// FUSES: fused operations; see [`fuses`].
        522 fuses: U16,
        /// FNA: Format NVM attributes.
        524 fna: u8,
        /// VWC: volatile write cache; see [`vwc`].
        525 vwc: u8,
        /// AWUN: atomic write unit in normal operation, in logical blocks, zero-based.
        526 awun: U16,
        /// AWUPF: atomic write unit on power fail, in logical blocks, zero-based.
        528 awupf: U16,
        /// ICSVSCC: I/O command set vendor specific command configuration.
        530 icsvscc: u8,
        /// NWPC: namespace write protection capabilities.
        531 nwpc: u8,
        /// ACWU: atomic Compare and Write unit, in logical blocks, zero-based.
        532 acwu: U16,
        /// CDFS: copy descriptor formats, bit n for format n.
        534 cdfs: U16,
        /// SGLS: SGL support; see [`sgls`].
        536 sgls: U32,
        /// MNAN: maximum number of allowed namespaces; 0: as NN says.
        540 mnan: U32,
        /// MAXDNA: maximum domain namespace attachments.
        544 maxdna: [u8; 16],
        /// MAXCNA: maximum I/O controller namespace attachments.
        560 maxcna: U32,
        /// OAQD: optimal aggregated queue depth.
        564 oaqd: U32,
        /// RHIRI: recommended host-initiated refresh interval.
        568 rhiri: u8,
        /// HIRT: host-initiated refresh time.
        569 hirt: u8,
        /// CMMRTD: controller maximum memory range tracking descriptors.
        570 cmmrtd: U16,
        /// NMMRTD: NVM subsystem maximum memory range tracking descriptors.
        572 nmmrtd: U16,
        /// MINMRTG: minimum memory range tracking granularity.
        574 minmrtg: u8,
        /// MAXMRTG: maximum memory range tracking granularity.
        575 maxmrtg: u8,
        /// TRATTR: tracking attributes.
        576 trattr: u8,
        /// Reserved.
        577 reserved577: u8,
        /// MCUDMQ: maximum controller user data migration queues.
        578 mcudmq: U16,
        /// MNSUDMQ: maximum NVM subsystem user data migration queues.
        580 mnsudmq: U16,
        /// MCMR: maximum CDQ memory ranges.
        582 mcmr: U16,
        /// NMCMR: NVM subsystem maximum CDQ memory ranges.
        584 nmcmr: U16,
        /// MCDQPC: maximum controller data queue PRP count.
        586 mcdqpc: U16,
        /// Reserved.
        588 reserved588: [u8; 180],
        /// SUBNQN: NVM subsystem NQN, UTF-8 ended by NUL.
        768 subnqn: [u8; 256],
        /// Reserved.
        1024 reserved1024: [u8; 768],
        /// IOCCSZ: I/O queue command capsule size, in units of 16 bytes. Fabrics.
        1792 ioccsz: U32,
        /// IORCSZ: I/O queue response capsule size, in units of 16 bytes. Fabrics.
        1796 iorcsz: U32,
        /// ICDOFF: offset of in-capsule data after the SQE, in units of 16 bytes. Fabrics.
        1800 icdoff: U16,
        /// FCATT: Fabrics controller attributes; see [`fcatt`].
        1802 fcatt: u8,
        /// MSDBD: maximum SGL data block descriptors in a capsule; 0: no limit. Fabrics.
        1803 msdbd: u8,
        /// OFCS: optional Fabrics commands; see [`ofcs`].
        1804 ofcs: U16,
        /// DCTYPE: discovery controller type.
        1806 dctype: u8,
        /// Reserved.
        1807 reserved1807: [u8; 241],
        /// PSD: power state descriptors.
        2048 psd: [PowerState; 32],
        /// VS: vendor specific.
        3072 vs: [u8; 1024],
    }
}

/// CMIC: controller multi-path I/O and namespace sharing capabilities.
pub mod cmic {
    super::constants! { u8;
        /// MPORTS: the subsystem may have more than one port.
        MULTIPLE_PORTS = 1 << 0;
        /// MCTRS: the subsystem may have more than one controller.
        MULTIPLE_CONTROLLERS = 1 << 1;
        /// FT: the controller is an SR-IOV virtual function.
        SRIOV_FUNCTION = 1 << 2;
        /// ANARS: asymmetric namespace access is reported.
        ANA_REPORTING = 1 << 3;
    }
}

/// OAES: optional asynchronous events. The same bits enable the events in the feature
/// Asynchronous Event Configuration.
pub mod oaes {
    super::constants! { u32;
        /// Attached Namespace Attribute Changed.
        NAMESPACE_ATTRIBUTE = 1 << 8;
        /// Firmware Activation Starting.
        FIRMWARE_ACTIVATION = 1 << 9;
        /// Asymmetric Namespace Access Change.
        ANA_CHANGE = 1 << 11;
        /// Predictable Latency Event Aggregate Log Change.
        PREDICTABLE_LATENCY = 1 << 12;
        /// LBA Status Information Alert.
        LBA_STATUS = 1 << 13;
        /// Endurance Group Event Aggregate Log Change.
        ENDURANCE_GROUP = 1 << 14;
        /// Normal NVM Subsystem Shutdown.
        SUBSYSTEM_SHUTDOWN = 1 << 15;
        /// Temperature Threshold Hysteresis Recovery.
        TEMPERATURE_HYSTERESIS = 1 << 16;
        /// Reachability Groups Change.
        REACHABILITY_GROUPS = 1 << 17;
        /// Reachability Associations Change.
        REACHABILITY_ASSOCIATIONS = 1 << 18;
        /// Allocated Namespace Attribute Changed.
        ALLOCATED_NAMESPACE_ATTRIBUTE = 1 << 19;
        /// Zone Descriptor Changed.
        ZONE_DESCRIPTOR = 1 << 27;
        /// Discovery Log Page Change.
        DISCOVERY_LOG_CHANGE = 1 << 31;
    }
}

/// CTRATT: controller attributes.
pub mod ctratt {
    super::constants! { u32;
        /// HIDS: 128-bit host identifiers.
        HOST_ID_128 = 1 << 0;
        /// NOPSPM: non-operational power state permissive mode.
        NON_OPERATIONAL_PERMISSIVE = 1 << 1;
        /// NSETS: NVM sets.
        NVM_SETS = 1 << 2;
        /// RRLVLS: read recovery levels.
        READ_RECOVERY_LEVELS = 1 << 3;
        /// EGS: endurance groups.
        ENDURANCE_GROUPS = 1 << 4;
        /// PLM: predictable latency mode.
        PREDICTABLE_LATENCY = 1 << 5;
        /// TBKAS: any command restarts the Keep Alive timer.
        TRAFFIC_BASED_KEEP_ALIVE = 1 << 6;
        /// NG: namespace granularity.
        NAMESPACE_GRANULARITY = 1 << 7;
        /// SQA: submission queue associations.
        SQ_ASSOCIATIONS = 1 << 8;
        /// ULIST: UUID list.
        UUID_LIST = 1 << 9;
        /// MDS: multi-domain subsystem.
        MULTI_DOMAIN = 1 << 10;
        /// FCM: fixed capacity management.
        FIXED_CAPACITY = 1 << 11;
        /// VCM: variable capacity management.
        VARIABLE_CAPACITY = 1 << 12;
        /// DEG: endurance groups can be deleted.
        DELETE_ENDURANCE_GROUP = 1 << 13;
        /// DNVMS: NVM sets can be deleted.
        DELETE_NVM_SET = 1 << 14;
        /// ELBAS: extended LBA formats.
        EXTENDED_LBA_FORMATS = 1 << 15;
        /// MEM: MDTS and the size limits do not count metadata.
        MDTS_EXCLUDES_METADATA = 1 << 16;
        /// HMBR: the host memory buffer can be restricted to non-operational states.
        HMB_RESTRICT = 1 << 17;
        /// RHII: reservations and host identifier interaction.
        RESERVATION_HOST_ID = 1 << 18;
        /// FDPS: flexible data placement.
        FLEXIBLE_DATA_PLACEMENT = 1 << 19;
    }
}

/// CNTRLTYPE: controller type.
pub mod cntrltype {
    super::constants! { u8;
        /// Not reported (before NVM Express 1.4).
        NOT_REPORTED = 0;
        /// I/O controller.
        IO = 1;
        /// Discovery controller.
        DISCOVERY = 2;
        /// Administrative controller.
        ADMINISTRATIVE = 3;
    }
}

/// OACS: optional admin commands.
pub mod oacs {
    super::constants! { u16;
        /// Security Send and Security Receive.
        SECURITY = 1 << 0;
        /// Format NVM.
        FORMAT_NVM = 1 << 1;
        /// Firmware Commit and Firmware Image Download.
        FIRMWARE = 1 << 2;
        /// Namespace Management and Namespace Attachment.
        NAMESPACE_MANAGEMENT = 1 << 3;
        /// Device Self-test.
        DEVICE_SELF_TEST = 1 << 4;
        /// Directives.
        DIRECTIVES = 1 << 5;
        /// NVMe-MI Send and NVMe-MI Receive.
        NVME_MI = 1 << 6;
        /// Virtualization Management.
        VIRTUALIZATION = 1 << 7;
        /// Doorbell Buffer Config.
        DOORBELL_BUFFER = 1 << 8;
        /// Get LBA Status.
        GET_LBA_STATUS = 1 << 9;
        /// Command and feature lockdown.
        LOCKDOWN = 1 << 10;
        /// Host managed live migration.
        LIVE_MIGRATION = 1 << 11;
    }
}

/// FRMW: firmware updates.
pub mod frmw {
    super::constants! { u8;
        /// FFSRO: slot 1 is read-only.
        FIRST_SLOT_READ_ONLY = 1 << 0;
        /// NOFS, bits 3:1: number of slots, 1 to 7; shift of the field.
        SLOTS_SHIFT = 1;
        /// FAWR: firmware is activated without a reset.
        ACTIVATE_WITHOUT_RESET = 1 << 4;
        /// SMUD: overlapping downloads are detected.
        DETECTS_OVERLAP = 1 << 5;
    }
}

/// LPA: log page attributes.
pub mod lpa {
    super::constants! { u8;
        /// SMARTS: SMART log page per namespace.
        SMART_PER_NAMESPACE = 1 << 0;
        /// CSES: Commands Supported and Effects log page.
        COMMANDS_EFFECTS = 1 << 1;
        /// LPEDS: NUMDU and LPO are honoured.
        EXTENDED_DATA = 1 << 2;
        /// TS: telemetry.
        TELEMETRY = 1 << 3;
        /// PES: Persistent Event log page.
        PERSISTENT_EVENT = 1 << 4;
        /// MLPS: log pages 00h, 12h and 13h, and LID Specific Parameter of 05h.
        SUPPORTED_PAGES = 1 << 5;
        /// DA4S: telemetry data area 4.
        TELEMETRY_AREA_4 = 1 << 6;
    }
}

/// ANACAP: asymmetric namespace access capabilities.
pub mod anacap {
    super::constants! { u8;
        /// ROS: the ANA Optimized state is reported.
        OPTIMIZED = 1 << 0;
        /// RNOS: the ANA Non-Optimized state is reported.
        NON_OPTIMIZED = 1 << 1;
        /// RIS: the ANA Inaccessible state is reported.
        INACCESSIBLE = 1 << 2;
        /// RPLS: the ANA Persistent Loss state is reported.
        PERSISTENT_LOSS = 1 << 3;
        /// RCS: the ANA Change state is reported.
        CHANGE = 1 << 4;
        /// ANAGRPID of an attached namespace does not change.
        GROUP_ID_STABLE = 1 << 6;
        /// A nonzero ANAGRPID is allowed in Namespace Management.
        GROUP_ID_MANAGEMENT = 1 << 7;
    }
}

/// ONCS: optional NVM commands.
pub mod oncs {
    super::constants! { u16;
        /// Compare.
        COMPARE = 1 << 0;
        /// Write Uncorrectable.
        WRITE_UNCORRECTABLE = 1 << 1;
        /// Dataset Management.
        DATASET_MANAGEMENT = 1 << 2;
        /// Write Zeroes.
        WRITE_ZEROES = 1 << 3;
        /// Save in Set Features, Select in Get Features.
        SAVE_SELECT = 1 << 4;
        /// Reservations.
        RESERVATIONS = 1 << 5;
        /// Timestamp feature.
        TIMESTAMP = 1 << 6;
        /// Verify.
        VERIFY = 1 << 7;
        /// Copy.
        COPY = 1 << 8;
        /// NVMCSA: a Copy of a single range is atomic.
        COPY_SINGLE_ATOMICITY = 1 << 9;
        /// NVMAFC: every Copy is a fast copy.
        ALL_FAST_COPY = 1 << 10;
        /// MAXWZD: Write Zeroes with DEAC may be longer than one without (WZDSL).
        WRITE_ZEROES_DEALLOCATE = 1 << 11;
        /// NSZS: Write Zeroes can zero a whole namespace.
        NAMESPACE_ZEROES = 1 << 12;
    }
}

/// FUSES: fused operations.
pub mod fuses {
    super::constants! { u16;
        /// Compare and Write.
        COMPARE_AND_WRITE = 1 << 0;
    }
}

/// VWC: volatile write cache.
pub mod vwc {
    super::constants! { u8;
        /// VWCP: a volatile write cache is present.
        PRESENT = 1 << 0;
        /// FB 10b: Flush of NSID FFFFFFFFh fails.
        FLUSH_ALL_UNSUPPORTED = 0b10 << 1;
        /// FB 11b: Flush of NSID FFFFFFFFh flushes all namespaces.
        FLUSH_ALL = 0b11 << 1;
    }
}

/// SGLS: SGL support.
pub mod sgls {
    super::constants! { u32;
        /// Bits 1:0, 01b: SGLs of any alignment and granularity.
        SUPPORTED = 0b01;
        /// Bits 1:0, 10b: SGLs of dword alignment and granularity.
        DWORD_ALIGNED = 0b10;
        /// Mask of bits 1:0.
        SUPPORT_MASK = 0b11;
        /// Keyed SGL data block.
        KEYED = 1 << 2;
        /// SDT, bits 15:8: SGL descriptor threshold; shift of the field.
        THRESHOLD_SHIFT = 8;
        /// SGL bit bucket.
        BIT_BUCKET = 1 << 16;
        /// MPTR may be the byte-aligned address of a contiguous buffer.
        METADATA_BYTE_ALIGNED = 1 << 17;
        /// An SGL longer than the data is accepted.
        OVERSIZE = 1 << 18;
        /// MPTR may be the address of an SGL segment.
        METADATA_SGL = 1 << 19;
        /// The address may be an offset (in-capsule data).
        OFFSET = 1 << 20;
        /// Transport SGL data block.
        TRANSPORT = 1 << 21;
    }
}

/// FCATT: Fabrics controller attributes.
pub mod fcatt {
    super::constants! { u8;
        /// CM: 0 is the dynamic controller model, 1 the static one.
        STATIC_MODEL = 1 << 0;
    }
}

/// OFCS: optional Fabrics commands.
pub mod ofcs {
    super::constants! { u16;
        /// Disconnect.
        DISCONNECT = 1 << 0;
    }
}
