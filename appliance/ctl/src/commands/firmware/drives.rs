//! Drives of `aditd`, as the comparison and the plan want them.

use api::v1::bdev_spec::Kind;
use api::v1::{Bdev, NvmeBdev, NvmeDriveNamespace};
use firmware::{Drive, DriveNamespace, DriveState, Known, LbaFormat, NamespaceState};

const SILENT: &str = "the drive does not say";

fn name_of(bdev: &Bdev) -> String {
    bdev.spec
        .as_ref()
        .map(|spec| spec.name.clone())
        .unwrap_or_default()
}

fn spec_of(bdev: &Bdev) -> Option<&NvmeBdev> {
    match bdev.spec.as_ref()?.kind.as_ref()? {
        Kind::Nvme(nvme) => Some(nvme),
        _ => None,
    }
}

/// Why the drive is not in place.
fn absent(bdev: &Bdev) -> String {
    match bdev.status.as_ref().map(|status| status.reason.as_str()) {
        None | Some("") => "is not in place".to_owned(),
        Some(reason) => format!("is pending: {reason}"),
    }
}

fn known(value: Option<u32>) -> Known<u64> {
    value.map(u64::from).ok_or_else(|| SILENT.to_owned())
}

/// The drive for the comparison; `None` for a block device of another kind.
pub(super) fn drive(bdev: &Bdev) -> Option<Drive> {
    let spec = spec_of(bdev)?;
    let name = name_of(bdev);
    let object = format!("drive {name}");
    let source = format!("aditd, bdev {name}");
    let Some(drive) = &bdev.nvme else {
        let why = absent(bdev);
        return Some(Drive {
            object,
            address: spec.pci_address.clone(),
            model: Err(why.clone()),
            firmware: Err(why.clone()),
            power_state: Err(why.clone()),
            write_cache: Err(why.clone()),
            arbitration_burst: Err(why.clone()),
            namespaces: Err(why),
            source,
        });
    };
    let features = drive.features.clone();
    let silent = || "its features were not read yet".to_owned();
    let features = features.ok_or_else(silent);
    let of = |read: fn(&api::v1::NvmeDriveFeatures) -> Option<u32>| match &features {
        Ok(features) => known(read(features)),
        Err(why) => Err(why.clone()),
    };
    let write_cache = match &features {
        Ok(features) if !features.has_write_cache => Ok(None),
        Ok(features) => features
            .write_cache
            .map(Some)
            .ok_or_else(|| SILENT.to_owned()),
        Err(why) => Err(why.clone()),
    };
    let namespaces = drive
        .namespaces
        .iter()
        .map(|each| namespace(&name, each, &source));
    Some(Drive {
        object,
        address: drive.pci_address.clone(),
        model: Ok(drive.model_number.clone()),
        firmware: Ok(drive.firmware_revision.clone()),
        power_state: of(|features| features.power_state),
        write_cache,
        arbitration_burst: of(|features| features.arbitration_burst),
        namespaces: Ok(namespaces.collect()),
        source,
    })
}

fn name_of_namespace(drive: &str, namespace: &NvmeDriveNamespace) -> String {
    match namespace.bdev_name.as_str() {
        "" => format!("{drive}n{}", namespace.nsid),
        name => name.to_owned(),
    }
}

fn namespace(drive: &str, namespace: &NvmeDriveNamespace, source: &str) -> DriveNamespace {
    let in_use = namespace.lba_formats.iter().find(|format| format.in_use);
    let why = || match namespace.problem.as_str() {
        "" => SILENT.to_owned(),
        problem => problem.to_owned(),
    };
    DriveNamespace {
        object: name_of_namespace(drive, namespace),
        data_bytes: in_use.map(|format| format.data_size.into()).ok_or_else(why),
        metadata_bytes: in_use
            .map(|format| format.metadata_size.into())
            .ok_or_else(why),
        source: source.to_owned(),
    }
}

/// The drive for the plan, without the users of its namespaces; `None` for another kind.
pub(super) fn state(bdev: &Bdev) -> Option<DriveState> {
    spec_of(bdev)?;
    let name = name_of(bdev);
    let Some(drive) = &bdev.nvme else {
        return Some(DriveState {
            name,
            serial: String::new(),
            power_state: None,
            power_state_max: 0,
            write_cache: None,
            arbitration_burst: None,
            problem: absent(bdev),
            namespaces: Vec::new(),
        });
    };
    let features = drive.features.clone();
    let problem = if features.is_some() {
        ""
    } else {
        "its features were not read yet"
    };
    let features = features.unwrap_or_default();
    let namespaces = drive.namespaces.iter().map(|each| NamespaceState {
        nsid: each.nsid,
        name: name_of_namespace(&name, each),
        formats: each
            .lba_formats
            .iter()
            .map(|format| LbaFormat {
                data_bytes: format.data_size.into(),
                metadata_bytes: format.metadata_size.into(),
                in_use: format.in_use,
            })
            .collect(),
        users: Vec::new(),
    });
    Some(DriveState {
        power_state: features.power_state.map(u64::from),
        power_state_max: features.power_state_max.into(),
        write_cache: features.write_cache,
        arbitration_burst: features.arbitration_burst.map(u64::from),
        problem: problem.to_owned(),
        namespaces: namespaces.collect(),
        serial: drive.serial_number.clone(),
        name,
    })
}
