//! Which functions a selector means.

use super::Reason;
use super::devices::is_overridden;
use crate::{Claim, Config, Facts, PciAddress, PciDevice, Selector, VFIO_DRIVER};

/// The serial number of a controller: its driver shows it, or a claim remembers it.
pub(super) fn serial<'a>(config: &'a Config, device: &'a PciDevice) -> Option<&'a str> {
    if let Some(nvme) = &device.nvme {
        return Some(&nvme.serial)
            .filter(|serial| !serial.is_empty())
            .map(String::as_str);
    }
    let known_as = config
        .claims
        .iter()
        .find(|claim| is_taken(device, claim))
        .map(|c| &c.known_as)?;
    known_as.iter().find_map(|each| match each {
        Selector::Serial(serial) => Some(serial.as_str()),
        _ => None,
    })
}

/// Whether a claim is on a function that has been taken, or was about to be.
fn is_taken(device: &PciDevice, claim: &Claim) -> bool {
    let taken = match device.driver.as_deref() {
        Some(driver) => driver == VFIO_DRIVER,
        None => is_overridden(device),
    };
    taken && claim.address == device.address
}

/// What a function is called by that vfio-pci does not show.
pub(super) fn known_as(facts: &Facts, config: &Config, device: &PciDevice) -> Vec<Selector> {
    let serial = device.nvme.iter().map(|nvme| nvme.serial.clone());
    let mut names: Vec<Selector> = serial
        .filter(|serial| !serial.is_empty())
        .map(Selector::Serial)
        .collect();
    for each in facts
        .net
        .iter()
        .filter(|each| each.pci == Some(device.address))
    {
        names.push(Selector::Interface(each.name.clone()));
        names.push(Selector::Mac(each.mac.clone()));
    }
    if names.is_empty() {
        let claim = config.claims.iter().find(|claim| is_taken(device, claim));
        names.extend(
            claim
                .into_iter()
                .flat_map(|claim| claim.known_as.iter().cloned()),
        );
    }
    names
}

/// The taken functions that were called so. They come before what is called so now: the name of an
/// interface that is gone may be given to another.
fn remembered(facts: &Facts, config: &Config, selector: &Selector) -> Vec<PciAddress> {
    let same = |known: &Selector| match (known, selector) {
        (Selector::Mac(known), Selector::Mac(wanted)) => known.eq_ignore_ascii_case(wanted),
        _ => known == selector,
    };
    let claims = config.claims.iter().filter(|claim| {
        claim.known_as.iter().any(same)
            && facts
                .device(claim.address)
                .is_some_and(|device| is_taken(device, claim))
    });
    claims.map(|claim| claim.address).collect()
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
pub(super) fn ports(
    facts: &Facts,
    config: &Config,
    selector: &Selector,
) -> Result<Vec<PciAddress>, Reason> {
    if matches!(selector, Selector::Interface(_) | Selector::Mac(_)) {
        let found = remembered(facts, config, selector);
        if !found.is_empty() {
            return Ok(found);
        }
    }
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
pub(super) fn port(
    facts: &Facts,
    config: &Config,
    selector: &Selector,
) -> Result<PciAddress, Reason> {
    let found = ports(facts, config, selector)?;
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
