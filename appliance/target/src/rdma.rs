//! RDMA devices of this system: the verbs behind them, and what they look like.

use std::net::IpAddr;
use std::sync::Arc;
#[cfg(feature = "rdma")]
use std::sync::{Mutex, PoisonError};

use api::v1::{ListRdmaDevicesResponse, RdmaDevice, RdmaGid, RdmaPort};
use machine::{Host, RdmaNode};
use verbs::Provider;

/// The verbs of this system, the same ones for the whole life of the program: the library's lists of
/// devices are not given back.
///
/// # Errors
/// What is missing.
#[cfg(feature = "rdma")]
pub(crate) fn provider() -> Result<Arc<dyn Provider>, String> {
    static CORE: Mutex<Option<Arc<verbs::RdmaCore>>> = Mutex::new(None);
    let mut core = CORE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(core) = &*core {
        return Ok(Arc::clone(core) as Arc<dyn Provider>);
    }
    let loaded = verbs::RdmaCore::load().map_err(|error| crate::error::chain(&error))?;
    *core = Some(Arc::clone(&loaded));
    Ok(loaded)
}

/// As above: there are none.
///
/// # Errors
/// Always.
#[cfg(not(feature = "rdma"))]
pub(crate) fn provider() -> Result<Arc<dyn Provider>, String> {
    Err("this program was built without the feature rdma".to_owned())
}

/// A listener: its address, and how it is called.
pub(crate) type Listening = (IpAddr, String);

/// The devices of a host, with the listeners that use them. Reads files: not for a thread that
/// must not wait.
pub(crate) fn list(
    host: &dyn Host,
    provider: &Result<Arc<dyn Provider>, String>,
    listeners: &[Listening],
) -> ListRdmaDevicesResponse {
    let nodes = RdmaNode::read(host);
    let port = |node: &RdmaNode, port: &machine::RdmaPort| RdmaPort {
        port: port.number,
        problems: port.problems(),
        state: port.state.clone(),
        link_layer: port.link_layer.clone(),
        rate: port.rate.clone(),
        interface: port
            .interface
            .as_ref()
            .map(|(name, _)| name.clone())
            .unwrap_or_default(),
        interface_mtu: port
            .interface
            .as_ref()
            .and_then(|(_, mtu)| *mtu)
            .unwrap_or(0),
        active_mtu: active_mtu(provider, &node.name, port.number).unwrap_or(0),
        default_tos: port.default_tos.map(u32::from),
        gids: port
            .gids
            .iter()
            .map(|found| gid(found, listeners))
            .collect(),
    };
    let device = |node: &RdmaNode| RdmaDevice {
        name: node.name.clone(),
        parent: node.parent.clone().unwrap_or_default(),
        pci_address: node.pci.map(|at| at.to_string()).unwrap_or_default(),
        node_guid: node.node_guid.clone(),
        ports: node.ports.iter().map(|each| port(node, each)).collect(),
    };
    ListRdmaDevicesResponse {
        devices: nodes.iter().map(device).collect(),
        missing: provider.as_ref().err().cloned().unwrap_or_default(),
    }
}

fn active_mtu(provider: &Result<Arc<dyn Provider>, String>, name: &str, port: u32) -> Option<u32> {
    let devices = provider.as_ref().ok()?.devices().ok()?;
    let port = u8::try_from(port).ok()?;
    // One that was removed may have had the same name.
    let mut same = devices.iter().filter(|device| device.info().name == name);
    same.find_map(|device| device.active_mtu(port).ok())
}

fn gid(found: &machine::RdmaGid, listeners: &[Listening]) -> RdmaGid {
    let address = found.address();
    let is_reached = |listener: &IpAddr| {
        found.is_roce_v2() && (*listener == address || listener.is_unspecified())
    };
    let used = listeners
        .iter()
        .filter(|(listener, _)| is_reached(listener));
    RdmaGid {
        index: found.index,
        gid: address.to_string(),
        r#type: found.kind.clone(),
        interface: found.interface.clone().unwrap_or_default(),
        listeners: used.map(|(_, name)| name.clone()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> (tempfile::TempDir, machine::Root) {
        let folder = tempfile::tempdir().unwrap();
        let port = folder.path().join("sys/class/infiniband/rxe0/ports/1");
        for (file, text) in [
            ("state", "4: ACTIVE\n"),
            ("link_layer", "Ethernet\n"),
            ("gids/0", "0000:0000:0000:0000:0000:ffff:0a09:0001\n"),
            ("gids/1", "0000:0000:0000:0000:0000:ffff:0a09:0001\n"),
            ("gid_attrs/types/0", "IB/RoCE v1\n"),
            ("gid_attrs/types/1", "RoCE v2\n"),
        ] {
            let path = port.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let root = machine::Root::new(folder.path());
        (folder, root)
    }

    #[test]
    fn a_listener_is_told_at_the_gid_that_hosts_reach_it_through() {
        let (_folder, host) = host();
        let listeners = [
            ("10.9.0.1".parse().unwrap(), "here".to_owned()),
            ("10.9.0.2".parse().unwrap(), "elsewhere".to_owned()),
            ("0.0.0.0".parse().unwrap(), "everywhere".to_owned()),
        ];
        let missing = "libibverbs.so.1 cannot be loaded".to_owned();
        let answer = list(&host, &Err(missing.clone()), &listeners);
        assert_eq!(answer.missing, missing);
        let port = &answer.devices[0].ports[0];
        assert_eq!((port.state.as_str(), port.active_mtu), ("ACTIVE", 0));
        assert!(port.gids[0].listeners.is_empty());
        assert_eq!(port.gids[1].gid, "10.9.0.1");
        assert_eq!(port.gids[1].listeners, ["here", "everywhere"]);
    }
}
