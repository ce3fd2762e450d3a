//! Opcodes of admin, NVM and Fabrics commands.

/// Data direction, bits 1:0 of every opcode (Base §4.1): 01b is host to controller, 10b controller
/// to host, 00b none, 11b both.
pub const fn data_direction(opcode: u8) -> u8 {
    opcode & 0b11
}

/// Admin commands (Base §5).
pub mod admin {
    /// Delete I/O Submission Queue.
    pub const DELETE_IO_SQ: u8 = 0x00;
    /// Create I/O Submission Queue.
    pub const CREATE_IO_SQ: u8 = 0x01;
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Delete I/O Completion Queue.
    pub const DELETE_IO_CQ: u8 = 0x04;
    /// Create I/O Completion Queue.
    pub const CREATE_IO_CQ: u8 = 0x05;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features.
    pub const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request.
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0c;
    /// Namespace Management.
    pub const NAMESPACE_MANAGEMENT: u8 = 0x0d;
    /// Firmware Commit.
    pub const FIRMWARE_COMMIT: u8 = 0x10;
    /// Firmware Image Download.
    pub const FIRMWARE_IMAGE_DOWNLOAD: u8 = 0x11;
    /// Device Self-test.
    pub const DEVICE_SELF_TEST: u8 = 0x14;
    /// Namespace Attachment.
    pub const NAMESPACE_ATTACHMENT: u8 = 0x15;
    /// Keep Alive.
    pub const KEEP_ALIVE: u8 = 0x18;
    /// Directive Send.
    pub const DIRECTIVE_SEND: u8 = 0x19;
    /// Directive Receive.
    pub const DIRECTIVE_RECEIVE: u8 = 0x1a;
    /// Virtualization Management.
    pub const VIRTUALIZATION_MANAGEMENT: u8 = 0x1c;
    /// NVMe-MI Send.
    pub const NVME_MI_SEND: u8 = 0x1d;
    /// NVMe-MI Receive.
    pub const NVME_MI_RECEIVE: u8 = 0x1e;
    /// Capacity Management.
    pub const CAPACITY_MANAGEMENT: u8 = 0x20;
    /// Discovery Information Management.
    pub const DISCOVERY_INFORMATION_MANAGEMENT: u8 = 0x21;
    /// Fabric Zoning Receive.
    pub const FABRIC_ZONING_RECEIVE: u8 = 0x22;
    /// Lockdown.
    pub const LOCKDOWN: u8 = 0x24;
    /// Fabric Zoning Lookup.
    pub const FABRIC_ZONING_LOOKUP: u8 = 0x25;
    /// Clear Exported NVM Resource Configuration.
    pub const CLEAR_EXPORTED_NVM_RESOURCES: u8 = 0x28;
    /// Fabric Zoning Send.
    pub const FABRIC_ZONING_SEND: u8 = 0x29;
    /// Create Exported NVM Subsystem.
    pub const CREATE_EXPORTED_NVM_SUBSYSTEM: u8 = 0x2a;
    /// Manage Exported NVM Subsystem.
    pub const MANAGE_EXPORTED_NVM_SUBSYSTEM: u8 = 0x2d;
    /// Manage Exported Namespace.
    pub const MANAGE_EXPORTED_NAMESPACE: u8 = 0x31;
    /// Manage Exported Port.
    pub const MANAGE_EXPORTED_PORT: u8 = 0x35;
    /// Send Discovery Log Page.
    pub const SEND_DISCOVERY_LOG_PAGE: u8 = 0x39;
    /// Track Send.
    pub const TRACK_SEND: u8 = 0x3d;
    /// Track Receive.
    pub const TRACK_RECEIVE: u8 = 0x3e;
    /// Migration Send.
    pub const MIGRATION_SEND: u8 = 0x41;
    /// Migration Receive.
    pub const MIGRATION_RECEIVE: u8 = 0x42;
    /// Controller Data Queue.
    pub const CONTROLLER_DATA_QUEUE: u8 = 0x45;
    /// Doorbell Buffer Config.
    pub const DOORBELL_BUFFER_CONFIG: u8 = 0x7c;
    /// Fabrics commands; see [`super::fabrics`].
    pub const FABRICS: u8 = 0x7f;
    /// Format NVM.
    pub const FORMAT_NVM: u8 = 0x80;
    /// Security Send.
    pub const SECURITY_SEND: u8 = 0x81;
    /// Security Receive.
    pub const SECURITY_RECEIVE: u8 = 0x82;
    /// Sanitize.
    pub const SANITIZE: u8 = 0x84;
    /// Load Program (Computational Programs).
    pub const LOAD_PROGRAM: u8 = 0x85;
    /// Get LBA Status (NVM command set).
    pub const GET_LBA_STATUS: u8 = 0x86;
}

/// I/O commands of all command sets (Base §7) and of the NVM command set (NVM §3.3).
pub mod nvm {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Write Uncorrectable.
    pub const WRITE_UNCORRECTABLE: u8 = 0x04;
    /// Compare.
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    /// Verify.
    pub const VERIFY: u8 = 0x0c;
    /// Reservation Register.
    pub const RESERVATION_REGISTER: u8 = 0x0d;
    /// Reservation Report.
    pub const RESERVATION_REPORT: u8 = 0x0e;
    /// Reservation Acquire.
    pub const RESERVATION_ACQUIRE: u8 = 0x11;
    /// I/O Management Receive.
    pub const IO_MANAGEMENT_RECEIVE: u8 = 0x12;
    /// Reservation Release.
    pub const RESERVATION_RELEASE: u8 = 0x15;
    /// Cancel.
    pub const CANCEL: u8 = 0x18;
    /// Copy.
    pub const COPY: u8 = 0x19;
    /// I/O Management Send.
    pub const IO_MANAGEMENT_SEND: u8 = 0x1d;
}

/// Fabrics commands (Base §6): opcode 7Fh, told apart by FCTYPE.
pub mod fabrics {
    /// The opcode of all Fabrics commands.
    pub const OPCODE: u8 = 0x7f;
    /// FCTYPE 00h: Property Set.
    pub const PROPERTY_SET: u8 = 0x00;
    /// FCTYPE 01h: Connect.
    pub const CONNECT: u8 = 0x01;
    /// FCTYPE 04h: Property Get.
    pub const PROPERTY_GET: u8 = 0x04;
    /// FCTYPE 05h: Authentication Send.
    pub const AUTHENTICATION_SEND: u8 = 0x05;
    /// FCTYPE 06h: Authentication Receive.
    pub const AUTHENTICATION_RECEIVE: u8 = 0x06;
    /// FCTYPE 08h: Disconnect.
    pub const DISCONNECT: u8 = 0x08;
}
