//! Which functions a selector means.

use super::Reason;
use crate::{Config, Facts, PciAddress, PciDevice, Selector};

/// The serial number of a controller: its driver shows it, or a claim remembers it.
pub(super) fn serial<'a>(config: &'a Config, device: &'a PciDevice) -> Option<&'a str> {
    if let Some(nvme) = &device.nvme {
        return Some(&nvme.serial)
            .filter(|serial| !serial.is_empty())
            .map(String::as_str);
    }
    let claim = config
        .claims
        .iter()
        .find(|claim| claim.address == device.address)?;
    claim
        .serial
        .as_deref()
        .filter(|_| device.driver.as_deref() == Some(crate::VFIO_DRIVER))
}

/// The NVMe controllers that a selector means; never none.
pub(super) fn controllers(
    facts: &Facts,
    config: &Config,
    selector: &Selector,
) -> Result<Vec<PciAddress>, Reason> {
    let nvme = || facts.pci.iter().filter(|device| device.is_nvme());
    let all = |found: Vec<&PciDevice>| found.iter().map(|device| device.address).collect();
    match selector {
        Selector::Address(address) => one(facts, *address),
        Selector::Slot(slot) => some(all(nvme()
            .filter(|device| device.slot.as_ref() == Some(slot))
            .collect())),
        Selector::Serial(wanted) => {
            let named = |device: &&PciDevice| serial(config, device) == Some(wanted.trim());
            let found: Vec<PciAddress> = all(nvme().filter(named).collect());
            let silent = nvme()
                .filter(|device| serial(config, device).is_none())
                .count();
            match found.len() {
                0 if silent > 0 => Err(Reason::SerialNotShown(silent)),
                0 => Err(Reason::NotFound),
                1 => Ok(found),
                _ => Err(Reason::Ambiguous(found)),
            }
        }
        Selector::Class(class) if class == "nvme" => Ok(all(nvme().collect())),
        Selector::Class(_) => Err(Reason::UnknownClass),
        Selector::Interface(_) | Selector::Mac(_) => Err(Reason::WrongSelector),
    }
}

/// The functions below the network port that a selector means.
pub(super) fn ports(facts: &Facts, selector: &Selector) -> Result<Vec<PciAddress>, Reason> {
    let below = |name: &str| facts.functions_below(name);
    match selector {
        Selector::Address(address) => one(facts, *address),
        Selector::Slot(slot) => {
            let here = |device: &&PciDevice| device.is_nic() && device.slot.as_ref() == Some(slot);
            some(
                facts
                    .pci
                    .iter()
                    .filter(here)
                    .map(|device| device.address)
                    .collect(),
            )
        }
        Selector::Interface(name) => match facts.net.iter().find(|each| each.name == *name) {
            Some(each) => Ok(below(&each.name)),
            None => Err(Reason::NotFound),
        },
        Selector::Mac(mac) => {
            let named = facts
                .net
                .iter()
                .filter(|each| each.mac.eq_ignore_ascii_case(mac));
            // A bond has the address of one of its ports.
            let hardware: Vec<PciAddress> = named.clone().filter_map(|each| each.pci).collect();
            match hardware.len() {
                0 => named
                    .clone()
                    .next()
                    .map(|each| below(&each.name))
                    .ok_or(Reason::NotFound),
                _ => Ok(hardware),
            }
        }
        Selector::Serial(_) | Selector::Class(_) => Err(Reason::WrongSelector),
    }
}

/// The one function of a port.
pub(super) fn port(facts: &Facts, selector: &Selector) -> Result<PciAddress, Reason> {
    let found = ports(facts, selector)?;
    match found.as_slice() {
        [] => Err(Reason::NotFound),
        [one] => Ok(*one),
        _ => Err(Reason::Ambiguous(found)),
    }
}

fn one(facts: &Facts, address: PciAddress) -> Result<Vec<PciAddress>, Reason> {
    facts
        .device(address)
        .map(|device| vec![device.address])
        .ok_or(Reason::NotFound)
}

fn some(found: Vec<PciAddress>) -> Result<Vec<PciAddress>, Reason> {
    if found.is_empty() {
        Err(Reason::NotFound)
    } else {
        Ok(found)
    }
}
