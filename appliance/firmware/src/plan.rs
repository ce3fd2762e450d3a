//! What of a profile can be set on drives that `aditd` drives.

use serde::Serialize;

use crate::profile::Profile;
use crate::value::Value;

/// A drive of `aditd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveState {
    /// Name of the drive.
    pub name: String,
    /// Serial number.
    pub serial: String,
    /// Power state; `None`: not known.
    pub power_state: Option<u64>,
    /// Number of the last power state that the drive has.
    pub power_state_max: u64,
    /// Whether the volatile write cache is on; `None`: there is none, or it is not known.
    pub write_cache: Option<bool>,
    /// Arbitration burst; `None`: not known.
    pub arbitration_burst: Option<u64>,
    /// Why the drive cannot be changed now; empty when it can.
    pub problem: String,
    /// Namespaces.
    pub namespaces: Vec<NamespaceState>,
}

/// A namespace of a drive of `aditd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceState {
    /// Its NSID.
    pub nsid: u32,
    /// Name of its block device; `DRIVEnN` where it has none.
    pub name: String,
    /// Formats that it can have.
    pub formats: Vec<LbaFormat>,
    /// Who uses it.
    pub users: Vec<String>,
}

/// An LBA format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LbaFormat {
    /// Bytes of a logical block.
    pub data_bytes: u64,
    /// Bytes of its metadata.
    pub metadata_bytes: u64,
    /// The namespace has it.
    pub in_use: bool,
}

/// Something to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Change {
    /// Set a feature of a drive.
    Feature {
        /// The drive.
        drive: String,
        /// Key of the setting: `power_state`, `write_cache`, `arbitration_burst`.
        feature: &'static str,
        /// As it is; `None`: not known.
        from: Option<Value>,
        /// As it is to be.
        to: Value,
    },
    /// Format a namespace: its data is lost.
    Format {
        /// The drive.
        drive: String,
        /// Its serial number, which has to be typed back.
        serial: String,
        /// The namespace.
        nsid: u32,
        /// Name of its block device.
        bdev: String,
        /// Bytes of a logical block and of its metadata, as they are.
        from: Option<(u64, u64)>,
        /// As they are to be.
        to: (u64, u64),
    },
}

/// What is to be done, and what cannot be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Features first, then formats.
    pub changes: Vec<Change>,
    /// What a profile wants of a drive and cannot have, in sentences.
    pub refused: Vec<String>,
}

/// What is to be done so that the drives are as the profile wants them.
#[must_use]
pub fn changes(profile: &Profile, drives: &[DriveState]) -> Plan {
    let mut plan = Plan::default();
    for drive in drives {
        if drive.problem.is_empty() {
            features(profile, drive, &mut plan);
        } else {
            plan.refused
                .push(format!("drive {}: {}", drive.name, drive.problem));
        }
    }
    for drive in drives.iter().filter(|drive| drive.problem.is_empty()) {
        formats(profile, drive, &mut plan);
    }
    plan
}

fn features(profile: &Profile, drive: &DriveState, plan: &mut Plan) {
    let wanted = |key: &str| {
        profile
            .value("nvme", key)
            .map(|wanted| wanted.value.clone())
    };
    let mut put = |feature, from: Option<Value>, to: Value| {
        if from.as_ref() != Some(&to) {
            plan.changes.push(Change::Feature {
                drive: drive.name.clone(),
                feature,
                from,
                to,
            });
        }
    };
    if let Some(to) = wanted("arbitration_burst") {
        put(
            "arbitration_burst",
            drive.arbitration_burst.map(Value::from),
            to,
        );
    }
    // A drive without a cache has none to switch.
    if let (Some(to), Some(from)) = (wanted("write_cache"), drive.write_cache) {
        put("write_cache", Some(from.into()), to);
    }
    match wanted("power_state") {
        Some(Value::Number(to)) if to > drive.power_state_max => {
            let text = format!(
                "drive {}: it has no power state {to}; its last is {}",
                drive.name, drive.power_state_max
            );
            plan.refused.push(text);
        }
        Some(to) => put("power_state", drive.power_state.map(Value::from), to),
        None => {}
    }
}

fn formats(profile: &Profile, drive: &DriveState, plan: &mut Plan) {
    let wanted = |key: &str| match profile.value("nvme", key).map(|wanted| &wanted.value) {
        Some(Value::Number(number)) => Some(*number),
        _ => None,
    };
    let (data, metadata) = (wanted("lba_data_bytes"), wanted("lba_metadata_bytes"));
    if data.is_none() && metadata.is_none() {
        return;
    }
    for namespace in &drive.namespaces {
        let now = namespace.formats.iter().find(|format| format.in_use);
        let now = now.map(|format| (format.data_bytes, format.metadata_bytes));
        let (Some(data), Some(metadata)) = (
            data.or(now.map(|(data, _)| data)),
            metadata.or(now.map(|(_, metadata)| metadata)),
        ) else {
            let text = format!("{}: its format is not known", namespace.name);
            plan.refused.push(text);
            continue;
        };
        let to = (data, metadata);
        if now == Some(to) {
            continue;
        }
        let is_offered = namespace
            .formats
            .iter()
            .any(|format| (format.data_bytes, format.metadata_bytes) == to);
        if !is_offered {
            plan.refused.push(format!(
                "{}: the drive has no format of {data} bytes with {metadata} bytes of metadata",
                namespace.name
            ));
            continue;
        }
        if !namespace.users.is_empty() {
            plan.refused.push(format!(
                "{}: is in use by {}; remove that first",
                namespace.name,
                namespace.users.join(", ")
            ));
            continue;
        }
        plan.changes.push(Change::Format {
            drive: drive.name.clone(),
            serial: drive.serial.clone(),
            nsid: namespace.nsid,
            bdev: namespace.name.clone(),
            from: now,
            to,
        });
    }
}

#[cfg(test)]
mod tests;
