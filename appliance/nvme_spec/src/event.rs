//! Asynchronous events (Base §5.1.2).

use crate::layout::constants;

/// Event types, dword 0 bits 2:0 of the completion.
pub mod kind {
    super::constants! { u8;
        /// Error status.
        ERROR = 0x0;
        /// SMART / health status.
        SMART = 0x1;
        /// Notice.
        NOTICE = 0x2;
        /// Immediate.
        IMMEDIATE = 0x3;
        /// One shot.
        ONE_SHOT = 0x4;
        /// I/O command specific status.
        IO_COMMAND_SPECIFIC = 0x6;
        /// Vendor specific.
        VENDOR = 0x7;
    }
}

/// Event information of [`kind::ERROR`].
pub mod error {
    super::constants! { u8;
        /// Write to an invalid doorbell register.
        INVALID_DOORBELL_REGISTER = 0x00;
        /// Invalid doorbell write value.
        INVALID_DOORBELL_VALUE = 0x01;
        /// Diagnostic failure.
        DIAGNOSTIC_FAILURE = 0x02;
        /// Persistent internal error.
        PERSISTENT_INTERNAL_ERROR = 0x03;
        /// Transient internal error.
        TRANSIENT_INTERNAL_ERROR = 0x04;
        /// Firmware image load error.
        FIRMWARE_IMAGE_LOAD_ERROR = 0x05;
    }
}

/// Event information of [`kind::SMART`].
pub mod smart {
    super::constants! { u8;
        /// NVM subsystem reliability.
        RELIABILITY = 0x00;
        /// Temperature threshold.
        TEMPERATURE_THRESHOLD = 0x01;
        /// Spare below threshold.
        SPARE_BELOW_THRESHOLD = 0x02;
    }
}

/// Event information of [`kind::NOTICE`].
pub mod notice {
    super::constants! { u8;
        /// Attached Namespace Attribute Changed.
        NAMESPACE_ATTRIBUTE_CHANGED = 0x00;
        /// Firmware Activation Starting.
        FIRMWARE_ACTIVATION_STARTING = 0x01;
        /// Telemetry Log Changed.
        TELEMETRY_LOG_CHANGED = 0x02;
        /// Asymmetric Namespace Access Change.
        ANA_CHANGE = 0x03;
        /// Predictable Latency Event Aggregate Log Change.
        PREDICTABLE_LATENCY_CHANGE = 0x04;
        /// LBA Status Information Alert.
        LBA_STATUS_ALERT = 0x05;
        /// Endurance Group Event Aggregate Log Page Change.
        ENDURANCE_GROUP_CHANGE = 0x06;
        /// Reachability Group Change.
        REACHABILITY_GROUP_CHANGE = 0x07;
        /// Reachability Association Change.
        REACHABILITY_ASSOCIATION_CHANGE = 0x08;
        /// Allocated Namespace Attribute Changed.
        ALLOCATED_NAMESPACE_ATTRIBUTE_CHANGED = 0x09;
        /// Zone Descriptor Changed.
        ZONE_DESCRIPTOR_CHANGED = 0xef;
        /// Discovery Log Page Change.
        DISCOVERY_LOG_CHANGE = 0xf0;
        /// Host Discovery Log Page Change.
        HOST_DISCOVERY_LOG_CHANGE = 0xf1;
        /// AVE Discovery Log Page Change.
        AVE_DISCOVERY_LOG_CHANGE = 0xf2;
        /// Pull Model DDC Request Log Page Change.
        PULL_MODEL_DDC_REQUEST_CHANGE = 0xf3;
    }
}

/// Event information of [`kind::IMMEDIATE`].
pub mod immediate {
    super::constants! { u8;
        /// Normal NVM Subsystem Shutdown.
        SUBSYSTEM_SHUTDOWN = 0x00;
        /// Temperature Threshold Hysteresis Recovery.
        TEMPERATURE_RECOVERY = 0x01;
    }
}

/// Event information of [`kind::IO_COMMAND_SPECIFIC`].
pub mod io_command_specific {
    super::constants! { u8;
        /// Reservation Log Page Available.
        RESERVATION_LOG_AVAILABLE = 0x00;
        /// Sanitize Operation Completed.
        SANITIZE_COMPLETED = 0x01;
        /// Sanitize Operation Completed With Unexpected Deallocation.
        SANITIZE_COMPLETED_UNEXPECTED_DEALLOCATION = 0x02;
    }
}

/// Dword 0 of the completion: type in bits 2:0, information in 15:8, log page to read in 23:16.
pub const fn event_dw0(kind: u8, info: u8, log_id: u8) -> u32 {
    (kind & 0x7) as u32 | (info as u32) << 8 | (log_id as u32) << 16
}

/// Type, information and log page identifier out of dword 0 of the completion.
pub const fn parse_event_dw0(dw0: u32) -> (u8, u8, u8) {
    (dw0 as u8 & 0x7, (dw0 >> 8) as u8, (dw0 >> 16) as u8)
}
