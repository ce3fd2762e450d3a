//! Drives, whoever drives them.

use serde::{Deserialize, Serialize};

/// A value, or why it is not known.
pub type Known<T> = Result<T, String>;

/// A drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drive {
    /// How it is called in a report: `drive a`, `nvme0`.
    pub object: String,
    /// PCI address, where it is known: a drive of `aditd` stands in the place of its function.
    pub address: String,
    /// Model.
    pub model: Known<String>,
    /// Firmware revision.
    pub firmware: Known<String>,
    /// Power state.
    pub power_state: Known<u64>,
    /// Whether the volatile write cache is on. `None`: the drive has none.
    pub write_cache: Known<Option<bool>>,
    /// Arbitration burst.
    pub arbitration_burst: Known<u64>,
    /// Namespaces, or why they are not known.
    pub namespaces: Known<Vec<DriveNamespace>>,
    /// Where all of this was read.
    pub source: String,
}

/// A namespace of a drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveNamespace {
    /// How it is called in a report: `an1`, `nvme0n1`.
    pub object: String,
    /// Bytes of a logical block.
    pub data_bytes: Known<u64>,
    /// Bytes of its metadata.
    pub metadata_bytes: Known<u64>,
    /// Where this was read.
    pub source: String,
}
