//! NVMe drives.

use machine::{NvmeController, PciDevice};

use super::{Node, unreadable_node};
use crate::catalogue::{Found, Reading};
use crate::drives::{Drive, DriveNamespace, Known};
use crate::tree::{Tree, unexpected, why};
use crate::value::Value;

/// The kernel's driver shows a feature only to who sends it a command.
const BY_COMMAND: &str =
    "the kernel's driver shows it only by a command: give the drive to aditd, or ask nvme-cli";

fn reading<T: Into<Value> + Clone>(known: &Known<T>, source: &str) -> Reading {
    match known {
        Ok(value) => Reading::value(value.clone(), source),
        Err(why) => Reading::unreadable(why, source),
    }
}

fn each_drive(node: &Node, read: impl Fn(&Drive) -> Option<Reading>) -> Vec<Found> {
    let found = node.drives.iter().filter_map(|drive| {
        Some(Found {
            object: drive.object.clone(),
            reading: read(drive)?,
        })
    });
    found.chain(hidden(node)).collect()
}

/// What stands for drives that cannot be looked for. Of a node far away all that matter are known.
fn hidden(node: &Node) -> Option<Found> {
    match (&node.tree, &node.facts) {
        (Ok(_), Err(why)) => unreadable_node(why).pop(),
        _ => None,
    }
}

fn each_namespace(node: &Node, read: impl Fn(&DriveNamespace) -> Reading) -> Vec<Found> {
    let mut found = Vec::new();
    for drive in &node.drives {
        match &drive.namespaces {
            Ok(namespaces) => found.extend(namespaces.iter().map(|namespace| Found {
                object: namespace.object.clone(),
                reading: read(namespace),
            })),
            Err(why) => found.push(Found {
                object: drive.object.clone(),
                reading: Reading::unreadable(why, &drive.source),
            }),
        }
    }
    found.extend(hidden(node));
    found
}

pub(crate) fn lba_data_bytes(node: &Node) -> Vec<Found> {
    each_namespace(node, |each| reading(&each.data_bytes, &each.source))
}

pub(crate) fn lba_metadata_bytes(node: &Node) -> Vec<Found> {
    each_namespace(node, |each| reading(&each.metadata_bytes, &each.source))
}

pub(crate) fn power_state(node: &Node) -> Vec<Found> {
    each_drive(node, |drive| {
        Some(reading(&drive.power_state, &drive.source))
    })
}

pub(crate) fn write_cache(node: &Node) -> Vec<Found> {
    each_drive(node, |drive| {
        let known = drive.write_cache.clone().transpose()?;
        Some(reading(&known, &drive.source))
    })
}

pub(crate) fn arbitration_burst(node: &Node) -> Vec<Found> {
    each_drive(node, |drive| {
        Some(reading(&drive.arbitration_burst, &drive.source))
    })
}

/// Drives of the host that `aditd` does not drive.
pub(super) fn of_host(node: &Node) -> Vec<Drive> {
    let (Ok(tree), Ok(facts)) = (&node.tree, &node.facts) else {
        return Vec::new();
    };
    let is_known = |function: &PciDevice| {
        let address = function.address.to_string();
        node.drives.iter().any(|drive| drive.address == address)
    };
    let functions = facts.pci.iter().filter(|function| function.is_nvme());
    let unknown = functions.filter(|function| !is_known(function));
    unknown
        .map(|function| match (&function.nvme, &function.driver) {
            (Some(controller), _) => of_kernel(tree, function, controller),
            (None, Some(driver)) if driver == machine::VFIO_DRIVER => {
                unseen(function, &node.unknown_drives)
            }
            (None, Some(driver)) => unseen(function, &format!("{driver} has it")),
            (None, None) => unseen(function, "no driver has it"),
        })
        .collect()
}

/// A drive of which only its function is known.
fn unseen(function: &PciDevice, why: &str) -> Drive {
    let address = function.address.to_string();
    Drive {
        object: address.clone(),
        model: Err(why.to_owned()),
        firmware: Err(why.to_owned()),
        power_state: Err(why.to_owned()),
        write_cache: Err(why.to_owned()),
        arbitration_burst: Err(why.to_owned()),
        namespaces: Err(why.to_owned()),
        source: format!("/sys/bus/pci/devices/{address}"),
        address,
    }
}

fn of_kernel(tree: &Tree, function: &PciDevice, controller: &NvmeController) -> Drive {
    let namespaces = controller.namespaces.iter().map(|namespace| {
        let block_bytes = namespace.block_bytes.map(u64::from);
        DriveNamespace {
            object: namespace.name.clone(),
            data_bytes: block_bytes.ok_or_else(|| "the kernel does not show it".to_owned()),
            metadata_bytes: Err(BY_COMMAND.to_owned()),
            source: format!("/sys/class/block/{}/queue", namespace.name),
        }
    });
    Drive {
        object: controller.name.clone(),
        address: function.address.to_string(),
        model: Ok(controller.model.clone()),
        firmware: Ok(controller.firmware.clone()),
        power_state: Err(BY_COMMAND.to_owned()),
        write_cache: write_cache_of(tree, controller),
        arbitration_burst: Err(BY_COMMAND.to_owned()),
        namespaces: Ok(namespaces.collect()),
        source: format!("/sys/class/nvme/{}", controller.name),
    }
}

/// The kernel calls the cache of a drive without one, and one that is off, by the same word.
fn write_cache_of(tree: &Tree, controller: &NvmeController) -> Known<Option<bool>> {
    let Some(namespace) = controller.namespaces.first() else {
        return Err("it has no namespace by which the kernel would show it".to_owned());
    };
    let path = format!("sys/class/block/{}/queue/write_cache", namespace.name);
    let text = tree.text(&path).map_err(|error| why(&error))?;
    match text.as_str() {
        "write back" => Ok(Some(true)),
        "write through" => Err("the kernel shows no cache: it is off, or there is none".to_owned()),
        other => Err(unexpected(other, "write back or write through")),
    }
}
