//! IOMMU, PCI Express, watchdog.

use machine::{IommuGap, PciDevice};

use super::{Node, unreadable_node};
use crate::acpi::{Dmar, parse_dmar, parse_ivrs};
use crate::catalogue::{Found, Reading};
use crate::pci_config::{ExpressCapability, find_express_capability};
use crate::tree::{Tree, number, shown, why};

const TABLES: &str = "sys/firmware/acpi/tables";
const WATCHDOG: &str = "sys/class/watchdog";
const GROUPS: &str = "/sys/kernel/iommu_groups";

pub(crate) fn iommu(node: &Node) -> Vec<Found> {
    node.one(|_| {
        let facts = match &node.facts {
            Ok(facts) => facts,
            Err(why) => return Reading::unreadable(why, GROUPS),
        };
        let count = facts.iommu.groups.len();
        match &facts.iommu.gap {
            None => Reading::value(true, format!("{GROUPS} ({count} groups)")),
            Some(gap @ IommuGap::NotShown) => Reading::unreadable(gap.to_string(), GROUPS),
            Some(gap) => Reading::value(false, format!("{GROUPS} (none: {gap})")),
        }
    })
}

/// The table of the IOMMU that firmware has.
enum IommuTable {
    Intel(Dmar),
    Amd,
    None,
}

/// `Err` is a reading that says why.
fn table(tree: &Tree) -> Result<(IommuTable, String), Reading> {
    let names = tree.names(TABLES);
    if names.is_empty() {
        let why = "the kernel shows no ACPI tables, or only to root";
        return Err(Reading::unreadable(why, shown(TABLES)));
    }
    for name in ["DMAR", "IVRS"] {
        if !names.iter().any(|each| each == name) {
            continue;
        }
        let path = format!("{TABLES}/{name}");
        let failed = |why: String| Reading::unreadable(why, shown(&path));
        let bytes = tree.bytes(&path).map_err(|error| failed(why(&error)))?;
        let parsed = if name == "DMAR" {
            parse_dmar(&bytes).map(IommuTable::Intel)
        } else {
            parse_ivrs(&bytes).map(|()| IommuTable::Amd)
        };
        let table = parsed.map_err(|error| failed(error.to_string()))?;
        return Ok((table, shown(&path)));
    }
    Ok((IommuTable::None, shown(TABLES)))
}

pub(crate) fn interrupt_remapping(node: &Node) -> Vec<Found> {
    node.one(|tree| match table(tree) {
        Ok((IommuTable::Intel(dmar), path)) => Reading::value(dmar.interrupt_remapping, path),
        Ok((IommuTable::Amd, path)) => Reading::value(true, path),
        Ok((IommuTable::None, path)) => Reading::value(false, format!("{path} (no DMAR, no IVRS)")),
        Err(unreadable) => unreadable,
    })
}

pub(crate) fn dma_protection(node: &Node) -> Vec<Found> {
    node.one(|tree| match table(tree) {
        Ok((IommuTable::Intel(dmar), path)) => Reading::value(dmar.dma_protection, path),
        Ok((IommuTable::Amd, path)) => {
            Reading::unreadable("an AMD IOMMU tells it in no table that is read here", path)
        }
        Ok((IommuTable::None, path)) => Reading::value(false, format!("{path} (no DMAR, no IVRS)")),
        Err(unreadable) => unreadable,
    })
}

pub(crate) fn sriov(node: &Node) -> Vec<Found> {
    node.each_port(|tree, _, function| {
        let path = format!("sys/bus/pci/devices/{}/sriov_totalvfs", function.address);
        if !tree.exists(&path) {
            return Reading::value(false, format!("{} (there is none)", shown(&path)));
        }
        tree.reading(&path, |text| Ok((number(text)? > 0).into()))
    })
}

pub(crate) fn watchdog(node: &Node) -> Vec<Found> {
    node.one(|tree| {
        let names = tree.names(WATCHDOG);
        // The kernel can make a watchdog of a timer; it does not help when the kernel hangs.
        let identity = |name: &String| {
            let text = tree.text(&format!("{WATCHDOG}/{name}/identity"));
            text.unwrap_or_default()
        };
        let hardware = names
            .iter()
            .find(|name| !identity(name).to_ascii_lowercase().contains("software"));
        match hardware {
            Some(name) => {
                let source = format!("{}/{name} ({})", shown(WATCHDOG), identity(name));
                Reading::value(true, source)
            }
            None => Reading::value(false, shown(WATCHDOG)),
        }
    })
}

pub(crate) fn watchdog_timeout(node: &Node) -> Vec<Found> {
    let tree = match &node.tree {
        Ok(tree) => tree,
        Err(why) => return unreadable_node(why),
    };
    let names = tree.names(WATCHDOG).into_iter();
    let found = names.map(|name| {
        let path = format!("{WATCHDOG}/{name}/timeout");
        Found {
            reading: tree.reading(&path, |text| number(text).map(Into::into)),
            object: name,
        }
    });
    found.collect()
}

/// A field of the PCI Express capability of a function.
pub(crate) fn express(
    tree: &Tree,
    function: &PciDevice,
    read: impl FnOnce(&ExpressCapability) -> Reading,
) -> Reading {
    let path = format!("sys/bus/pci/devices/{}/config", function.address);
    let failed = |why: &str| Reading::unreadable(why, shown(&path));
    match tree.bytes(&path) {
        Ok(bytes) => match find_express_capability(&bytes) {
            Ok(capability) => read(&capability),
            Err(why) => failed(why),
        },
        Err(error) => failed(&why(&error)),
    }
}

pub(crate) fn aspm(node: &Node) -> Vec<Found> {
    node.each_function(|tree, function, folder| {
        express(tree, function, |express| {
            let states = match (express.aspm_l0s, express.aspm_l1) {
                (true, true) => "L0s and L1",
                (true, false) => "L0s",
                (false, true) => "L1",
                (false, false) => "neither L0s nor L1",
            };
            let source = format!("{}/config ({states})", shown(&folder));
            Reading::value(express.aspm_l0s || express.aspm_l1, source)
        })
    })
}

pub(crate) fn full_link(node: &Node) -> Vec<Found> {
    node.each_function(|_, function, folder| {
        let folder = shown(&folder);
        let link = function.link.clone().unwrap_or_default();
        let (Some(speed), Some(speed_max), Some(width), Some(width_max)) = (
            link.speed_mts,
            link.speed_max_mts,
            link.width,
            link.width_max,
        ) else {
            return Reading::unreadable("the kernel shows no PCI Express link", folder);
        };
        let is_full = speed >= speed_max && width >= width_max;
        let text = format!("{speed} MT/s x{width} of {speed_max} MT/s x{width_max}");
        Reading::value(is_full, format!("{folder} ({text})"))
    })
}

pub(crate) fn numa_known(node: &Node) -> Vec<Found> {
    let nodes = node.facts.as_ref().map_or(0, |facts| facts.nodes.len());
    if node.facts.is_ok() && nodes < 2 {
        // With one node there is nothing to know.
        return Vec::new();
    }
    node.each_function(|_, function, folder| {
        let path = format!("{}/numa_node", shown(&folder));
        Reading::value(function.node.is_some(), path)
    })
}
