//! `aditctl rdma`.

use api::v1::transport_service_client::TransportServiceClient;
use api::v1::{ListRdmaDevicesRequest, ListRdmaDevicesResponse, RdmaDevice, RdmaPort};

use super::Context;
use crate::failure::Failure;
use crate::output;
use crate::table::Table;

pub(crate) async fn run(context: &Context) -> Result<(), Failure> {
    let mut client = TransportServiceClient::new(context.channel.clone());
    let answer = client.list_rdma_devices(ListRdmaDevicesRequest {}).await?;
    output::object(context.format, &answer.into_inner(), text)
}

/// 0 stands for what is not known.
fn number(value: u32) -> String {
    match value {
        0 => "-".to_owned(),
        value => value.to_string(),
    }
}

fn word(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

fn text(answer: &ListRdmaDevicesResponse) -> String {
    let ports = || {
        let of = |device: &'_ RdmaDevice| device.ports.len();
        answer.devices.iter().filter(move |device| of(device) > 0)
    };
    let mut devices = Table::new(&[
        "DEVICE",
        "PORT",
        "STATE",
        "LINK",
        "INTERFACE",
        "MTU",
        "PACKET",
        "TOS",
        "PCI",
    ]);
    let mut gids = Table::new(&[
        "DEVICE",
        "PORT",
        "GID",
        "TYPE",
        "ADDRESS",
        "INTERFACE",
        "LISTENERS",
    ]);
    let mut problems = Vec::new();
    let mut has_gids = false;
    for device in ports() {
        for port in &device.ports {
            devices.row([
                device.name.clone(),
                port.port.to_string(),
                word(&port.state),
                word(&port.link_layer),
                word(&port.interface),
                number(port.interface_mtu),
                number(port.active_mtu),
                port.default_tos
                    .map_or_else(|| "-".to_owned(), |tos| tos.to_string()),
                word(&device.pci_address),
            ]);
            has_gids |= !port.gids.is_empty();
            add_gids(&mut gids, &device.name, port);
            let told = port.problems.iter();
            problems.extend(told.map(|each| format!("{}/{}: {each}", device.name, port.port)));
        }
    }
    let mut parts = Vec::new();
    if answer.devices.is_empty() {
        parts.push("no RDMA device".to_owned());
    } else {
        parts.push(devices.to_string());
    }
    if has_gids {
        parts.push(gids.to_string());
    }
    if !answer.missing.is_empty() {
        problems.insert(0, answer.missing.clone());
    }
    if !problems.is_empty() {
        parts.push(problems.join("\n"));
    }
    parts.join("\n\n")
}

fn add_gids(table: &mut Table, device: &str, port: &RdmaPort) {
    for gid in &port.gids {
        table.row([
            device.to_owned(),
            port.port.to_string(),
            gid.index.to_string(),
            word(&gid.r#type),
            gid.gid.clone(),
            word(&gid.interface),
            word(&gid.listeners.join(", ")),
        ]);
    }
}

#[cfg(test)]
mod tests {
    use api::v1::RdmaGid;

    use super::*;

    #[test]
    fn what_is_missing_is_said_below_the_devices() {
        let mut answer = ListRdmaDevicesResponse {
            devices: Vec::new(),
            missing: "libibverbs.so.1 cannot be loaded: install libibverbs1".to_owned(),
        };
        let empty = text(&answer);
        assert!(
            empty.starts_with("no RDMA device\n\nlibibverbs.so.1"),
            "{empty}"
        );
        answer.devices.push(RdmaDevice {
            name: "rxe0".to_owned(),
            ports: vec![RdmaPort {
                port: 1,
                state: "DOWN".to_owned(),
                gids: vec![RdmaGid {
                    gid: "10.9.0.1".to_owned(),
                    ..RdmaGid::default()
                }],
                problems: vec!["the port is DOWN".to_owned()],
                ..RdmaPort::default()
            }],
            ..RdmaDevice::default()
        });
        let told = text(&answer);
        for part in [
            "rxe0",
            "10.9.0.1",
            "install libibverbs1",
            "rxe0/1: the port is DOWN",
        ] {
            assert!(told.contains(part), "{part} in {told}");
        }
    }
}
