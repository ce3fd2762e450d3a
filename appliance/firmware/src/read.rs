//! A node as it is.

pub(crate) mod boot;
pub(crate) mod cpu;
pub(crate) mod nic;
pub(crate) mod nvme;
pub(crate) mod platform;
mod told;

use machine::{Facts, NetInterface, PciDevice};

use crate::catalogue::{Found, Reading, Setting};
use crate::drives::{Drive, Known};
use crate::tree::Tree;

pub use self::told::Readings;

/// A node: its files, its devices, its drives.
#[derive(Debug)]
pub struct Node {
    /// Files of the host; or why there are none to read.
    pub(crate) tree: Known<Tree>,
    /// Devices of the host.
    pub(crate) facts: Known<Facts>,
    pub(crate) drives: Vec<Drive>,
    /// Why the drives on vfio-pci that are not among `drives` are not known.
    pub(crate) unknown_drives: String,
    /// Names or MAC addresses of data ports; `None`: physical ports without a default route.
    pub(crate) ports: Option<Vec<String>>,
    /// What a node far away told of itself.
    pub(crate) told: Option<Readings>,
}

impl Node {
    /// The node below `tree`. `drives` are those that `aditd` drives, or why it cannot be asked.
    #[must_use]
    pub fn local(tree: Tree, drives: Known<Vec<Drive>>) -> Self {
        let facts = Facts::read(&tree.root()).map_err(|error| error.to_string());
        let mut node = Self::of_aditd(drives);
        (node.tree, node.facts) = (Ok(tree), facts);
        node.add_drives(nvme::all_of_host(&node));
        node
    }

    /// A node far away, by what it told. `drives` as in [`Node::local`]. Ports are those that it was asked for.
    #[must_use]
    pub fn told(readings: Readings, drives: Known<Vec<Drive>>) -> Self {
        let mut node = Self::of_aditd(drives);
        node.add_drives(readings.drives.clone());
        node.told = Some(readings);
        node
    }

    /// A node of which nothing but these drives is known, or why they are not.
    fn of_aditd(drives: Known<Vec<Drive>>) -> Self {
        let (drives, unknown_drives) = match drives {
            Ok(drives) => (
                drives,
                "on vfio-pci, and not among the drives of aditd".into(),
            ),
            Err(why) => (Vec::new(), format!("on vfio-pci, and {why}")),
        };
        Self {
            unknown_drives,
            ..Self::remote(drives, "it was not asked")
        }
    }

    fn add_drives(&mut self, of_host: Known<Vec<nvme::HostDrive>>) {
        if let Ok(all) = of_host {
            let more = nvme::of_host(self, all);
            self.drives.extend(more);
        }
    }

    /// A node of which only the drives of `aditd` are known.
    #[must_use]
    pub fn remote(drives: Vec<Drive>, why: &str) -> Self {
        Self {
            tree: Err(why.to_owned()),
            facts: Err(why.to_owned()),
            drives,
            unknown_drives: String::new(),
            ports: None,
            told: None,
        }
    }

    /// Names the data ports, by interface name or MAC address.
    pub fn set_ports(&mut self, ports: Option<Vec<String>>) {
        self.ports = ports;
    }

    /// Drives, those of `aditd` first.
    #[must_use]
    pub fn drives(&self) -> &[Drive] {
        &self.drives
    }

    /// What has a setting, and what it is there.
    pub(crate) fn found(&self, setting: &Setting) -> Vec<Found> {
        match &self.told {
            Some(told) if !told::is_of_drives(setting) => told.found(setting),
            _ => (setting.read)(self),
        }
    }

    /// The product that the node is, and the version of its firmware.
    pub(crate) fn system_firmware(&self) -> Known<(String, Reading)> {
        const DMI: &str = "sys/class/dmi/id";
        if let Some(told) = &self.told {
            return told.system_firmware.clone();
        }
        let tree = self.tree.as_ref().map_err(Clone::clone)?;
        let product = tree
            .text(&format!("{DMI}/product_name"))
            .map_err(|_| "the kernel shows no name of the product".to_owned())?;
        let reading = tree.reading(&format!("{DMI}/bios_version"), |text| Ok(text.into()));
        Ok((product, reading))
    }

    /// One reading of the whole node, from its files.
    pub(crate) fn one(&self, read: impl FnOnce(&Tree) -> Reading) -> Vec<Found> {
        let reading = match &self.tree {
            Ok(tree) => read(tree),
            Err(why) => return unreadable_node(why),
        };
        vec![Found {
            object: String::new(),
            reading,
        }]
    }

    /// A reading of each of some devices.
    fn each<'a, T: 'a>(
        &'a self,
        select: impl FnOnce(&'a Facts) -> Vec<T>,
        read: impl Fn(&Tree, &T) -> (String, Reading),
    ) -> Vec<Found> {
        let (tree, facts) = match (&self.tree, &self.facts) {
            (Ok(tree), Ok(facts)) => (tree, facts),
            (Err(why), _) | (_, Err(why)) => return unreadable_node(why),
        };
        let found = select(facts).into_iter().map(|each| {
            let (object, reading) = read(tree, &each);
            Found { object, reading }
        });
        found.collect()
    }

    /// A reading of each NVMe controller and each network controller that is no virtual function.
    pub(crate) fn each_function(
        &self,
        read: impl Fn(&Tree, &PciDevice, String) -> Reading,
    ) -> Vec<Found> {
        let select = |facts: &'_ Facts| {
            let functions = facts.pci.iter().filter(|function| {
                (function.is_nvme() || function.is_nic()) && function.physical_function.is_none()
            });
            functions.cloned().collect()
        };
        self.each(select, |tree, function: &PciDevice| {
            let folder = format!("sys/bus/pci/devices/{}", function.address);
            (function.address.to_string(), read(tree, function, folder))
        })
    }

    /// A reading of each data port, with the function that it is on.
    pub(crate) fn each_port(
        &self,
        read: impl Fn(&Tree, &NetInterface, &PciDevice) -> Reading,
    ) -> Vec<Found> {
        let mut found = self.each(
            |facts| self.ports_of(facts),
            |tree, (port, function)| (port.name.clone(), read(tree, port, function)),
        );
        let (Some(ports), Ok(facts)) = (&self.ports, &self.facts) else {
            return found;
        };
        let there = self.ports_of(facts);
        let missing = ports.iter().filter(|port| {
            let is = |(each, _): &(&NetInterface, _)| is_called(each, port);
            !there.iter().any(is)
        });
        found.extend(missing.map(|port| Found {
            object: port.clone(),
            reading: Reading::unreadable("there is no such port", "/sys/class/net"),
        }));
        found
    }

    fn ports_of<'a>(&self, facts: &'a Facts) -> Vec<(&'a NetInterface, &'a PciDevice)> {
        let routed: Vec<_> = facts.management().into_iter().map(|(at, _)| at).collect();
        let is_data = |port: &NetInterface, function: &PciDevice| match &self.ports {
            Some(names) => names.iter().any(|name| is_called(port, name)),
            None => function.physical_function.is_none() && !routed.contains(&function.address),
        };
        let ports = facts.net.iter().filter_map(|port| {
            let function = facts.device(port.pci?)?;
            is_data(port, function).then_some((port, function))
        });
        ports.collect()
    }
}

/// The reading of a node whose files or devices cannot be read.
pub(crate) fn unreadable_node(why: &str) -> Vec<Found> {
    vec![Found {
        object: String::new(),
        reading: Reading::unreadable(why, "-"),
    }]
}

fn is_called(port: &NetInterface, name: &str) -> bool {
    port.name == name || port.mac.eq_ignore_ascii_case(name)
}
