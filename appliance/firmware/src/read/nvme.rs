//! NVMe drives.

use machine::{NvmeController, PciDevice};
use serde::{Deserialize, Serialize};

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

/// What stands for drives that cannot be looked for. Of a node far away that tells nothing of itself all that
/// matter are known.
fn hidden(node: &Node) -> Option<Found> {
    match (&node.tree, &node.facts, &node.told) {
        (Ok(_), Err(why), _) => unreadable_node(why).pop(),
        (_, _, Some(told)) => told
            .drives
            .as_ref()
            .err()
            .and_then(|why| unreadable_node(why).pop()),
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

/// A drive of a host, as its files show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HostDrive {
    /// The kernel drives it.
    Kernel(Drive),
    /// Somebody else has it, or nobody.
    Hidden {
        address: String,
        driver: Option<String>,
    },
}

impl HostDrive {
    fn address(&self) -> &str {
        match self {
            Self::Kernel(drive) => &drive.address,
            Self::Hidden { address, .. } => address,
        }
    }
}

/// Every drive of the host, or why they cannot be looked for.
pub(crate) fn all_of_host(node: &Node) -> Known<Vec<HostDrive>> {
    let (tree, facts) = match (&node.tree, &node.facts) {
        (Ok(tree), Ok(facts)) => (tree, facts),
        (Err(why), _) | (_, Err(why)) => return Err(why.clone()),
    };
    let functions = facts.pci.iter().filter(|function| function.is_nvme());
    let found = functions.map(|function| match &function.nvme {
        Some(controller) => HostDrive::Kernel(of_kernel(tree, function, controller)),
        None => HostDrive::Hidden {
            address: function.address.to_string(),
            driver: function.driver.clone(),
        },
    });
    Ok(found.collect())
}

/// Those of them that `aditd` does not drive.
pub(super) fn of_host(node: &Node, all: Vec<HostDrive>) -> Vec<Drive> {
    let is_known = |drive: &HostDrive| {
        node.drives
            .iter()
            .any(|known| known.address == drive.address())
    };
    let unknown = all.into_iter().filter(|drive| !is_known(drive));
    let found = unknown.map(|drive| match drive {
        HostDrive::Kernel(drive) => drive,
        HostDrive::Hidden { address, driver } => match driver.as_deref() {
            Some(machine::VFIO_DRIVER) => unseen(address, &node.unknown_drives),
            Some(driver) => unseen(address, &format!("{driver} has it")),
            None => unseen(address, "no driver has it"),
        },
    });
    found.collect()
}

/// A drive of which only its function is known.
fn unseen(address: String, why: &str) -> Drive {
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
