//! PCI functions.

use super::source::{functions, hex, last_name, names, text, value};
use super::users::{self, Users};
use super::{NvmeController, NvmeNamespace, PciDevice, PciLink, RdmaDevice};
use crate::{Host, PciAddress};

const DEVICES: &str = "sys/bus/pci/devices";

pub(super) fn read(host: &dyn Host, users: &Users) -> Vec<PciDevice> {
    let slots = slots(host);
    let rdma = rdma(host);
    let mut devices: Vec<PciDevice> = names(host, DEVICES)
        .iter()
        .filter_map(|name| name.parse().ok())
        .filter_map(|address| device(host, users, address))
        .collect();
    for device in &mut devices {
        let at = device.address;
        let slot = slots.iter().find(|(address, _)| {
            (address.domain, address.bus, address.device) == (at.domain, at.bus, at.device)
        });
        device.slot = slot.map(|(_, name)| name.clone());
        let here = rdma.iter().filter(|(address, _)| *address == at);
        device.rdma = here.map(|(_, device)| device.clone()).collect();
    }
    devices.sort_by_key(|device| device.address);
    devices
}

/// One function; `None` if it went away meanwhile.
fn device(host: &dyn Host, users: &Users, address: PciAddress) -> Option<PciDevice> {
    let folder = format!("{DEVICES}/{address}");
    let file = |name: &str| format!("{folder}/{name}");
    let mut parents = functions(&host.link(&folder).unwrap_or_default());
    parents.retain(|parent| *parent != address);
    let driver_override =
        text(host, &file("driver_override")).filter(|name| !name.is_empty() && name != "(null)");
    let vfio_nodes = names(host, &file("vfio-dev"));
    Some(PciDevice {
        address,
        vendor: u16::try_from(hex(host, &file("vendor"))?).ok()?,
        device: u16::try_from(hex(host, &file("device"))?).ok()?,
        class: hex(host, &file("class"))?,
        driver: last_name(host, &file("driver")),
        driver_override,
        group: last_name(host, &file("iommu_group")).and_then(|name| name.parse().ok()),
        // -1 where the firmware does not say.
        node: value(host, &file("numa_node")),
        parents,
        slot: None,
        link: link(host, &folder),
        virtual_functions: value(host, &file("sriov_numvfs")).unwrap_or(0),
        physical_function: last_name(host, &file("physfn")).and_then(|name| name.parse().ok()),
        nvme: nvme(host, &folder),
        rdma: Vec::new(),
        vfio_users: vfio_nodes
            .iter()
            .flat_map(|name| users::of(users, &format!("/dev/vfio/devices/{name}")))
            .collect(),
    })
}

fn link(host: &dyn Host, folder: &str) -> Option<PciLink> {
    let link = PciLink {
        speed_mts: speed(host, &format!("{folder}/current_link_speed")),
        speed_max_mts: speed(host, &format!("{folder}/max_link_speed")),
        width: value(host, &format!("{folder}/current_link_width")).filter(|lanes| *lanes > 0),
        width_max: value(host, &format!("{folder}/max_link_width")).filter(|lanes| *lanes < 255),
    };
    (link != PciLink::default()).then_some(link)
}

/// `8.0 GT/s PCIe` in MT/s.
fn speed(host: &dyn Host, path: &str) -> Option<u32> {
    let text = text(host, path)?;
    let (whole, tenth) = text.split_once(' ')?.0.split_once('.')?;
    let whole: u32 = whole.parse().ok()?;
    let tenth: u32 = tenth.parse().ok().filter(|tenth| *tenth < 10)?;
    whole.checked_mul(1000)?.checked_add(tenth * 100)
}

/// The physical slots and the device in each.
fn slots(host: &dyn Host) -> Vec<(PciAddress, String)> {
    let slot = |name: String| {
        let device = text(host, &format!("sys/bus/pci/slots/{name}/address"))?;
        Some((format!("{device}.0").parse().ok()?, name))
    };
    names(host, "sys/bus/pci/slots")
        .into_iter()
        .filter_map(slot)
        .collect()
}

/// The controller that the kernel's driver made of the function in `folder`.
fn nvme(host: &dyn Host, folder: &str) -> Option<NvmeController> {
    let name = names(host, &format!("{folder}/nvme")).into_iter().next()?;
    let file = |attribute: &str| format!("{folder}/nvme/{name}/{attribute}");
    let attribute = |attribute: &str| text(host, &file(attribute)).unwrap_or_default();
    Some(NvmeController {
        serial: attribute("serial"),
        model: attribute("model"),
        firmware: attribute("firmware_rev"),
        namespaces: namespaces(host, &format!("{folder}/nvme/{name}"), &name),
        name,
    })
}

/// Namespaces below a controller. With multipath the controller has a hidden path, `nvme0c1n2`,
/// and the disk is `nvme0n2`, below the subsystem.
fn namespaces(host: &dyn Host, folder: &str, controller: &str) -> Vec<NvmeNamespace> {
    let disk = |name: String| {
        let rest = name.strip_prefix("nvme")?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
        if let Some((path, namespace)) = rest.split_once('n')
            && digits(namespace)
        {
            let subsystem = path.split('c').next()?;
            let good = digits(subsystem) && (path.contains('c') || name.starts_with(controller));
            return good.then(|| format!("nvme{subsystem}n{namespace}"));
        }
        None
    };
    let mut found: Vec<NvmeNamespace> = names(host, folder)
        .into_iter()
        .filter_map(disk)
        .map(|name| {
            let file = |attribute: &str| format!("sys/class/block/{name}/{attribute}");
            NvmeNamespace {
                nsid: value(host, &file("nsid")),
                bytes: value(host, &file("size")).and_then(|each: u64| each.checked_mul(512)),
                block_bytes: value(host, &file("queue/logical_block_size")),
                name,
            }
        })
        .collect();
    found.sort_by(|a, b| (a.nsid, &a.name).cmp(&(b.nsid, &b.name)));
    found
}

/// RDMA devices and the functions they are on. A software device (`rxe0`) is on an interface, which
/// its file `parent` names.
fn rdma(host: &dyn Host) -> Vec<(PciAddress, RdmaDevice)> {
    let folder = super::RDMA_FOLDER;
    let device = |name: String| {
        let parent = text(host, &format!("{folder}/{name}/parent"));
        let target = match &parent {
            Some(interface) => host.link(&format!("sys/class/net/{interface}")),
            None => host.link(&format!("{folder}/{name}")),
        };
        let address = functions(&target.ok()?).pop()?;
        Some((
            address,
            RdmaDevice {
                name,
                interface: parent,
            },
        ))
    };
    names(host, folder).into_iter().filter_map(device).collect()
}
