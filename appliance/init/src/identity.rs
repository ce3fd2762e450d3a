//! Who this node is: from the firmware's tables, so that it is the same after every boot.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::config::hostname_is_right;
use crate::status::{State, Status};
use crate::system::System;

/// Who this node is. Also in `/run/adit/identity.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Name of the node.
    pub hostname: String,
    /// UUID of the machine; of this boot only where the firmware tells none.
    pub uuid: String,
    /// Serial number of the machine, where the firmware tells one.
    pub serial: Option<String>,
    /// Manufacturer.
    pub vendor: Option<String>,
    /// Model.
    pub product: Option<String>,
    /// What `/etc/machine-id` holds.
    pub machine_id: String,
    /// NQN of this node as an NVMe host (NVMe Base 2.1, "NVMe Qualified Names").
    pub host_nqn: String,
    /// Version of the image.
    pub image_version: String,
    /// The slot that was booted: `net`, `a` or `b`.
    pub slot: String,
    /// Release of the kernel.
    pub kernel: String,
}

const DMI: &str = "/sys/class/dmi/id";

/// What firmware writes when nobody filled it in.
const PLACEHOLDERS: &[&str] = &[
    "",
    "0",
    "none",
    "n/a",
    "not specified",
    "not applicable",
    "to be filled by o.e.m.",
    "default string",
    "system serial number",
    "0123456789",
    "123456789",
    "unknown",
];

fn dmi(system: &dyn System, name: &str) -> Option<String> {
    let text = system.text(&format!("{DMI}/{name}")).ok()?;
    let is_placeholder = PLACEHOLDERS.contains(&text.to_ascii_lowercase().as_str());
    (!is_placeholder).then(|| text.chars().filter(|c| !c.is_control()).take(64).collect())
}

fn machine_uuid(system: &dyn System) -> Option<Uuid> {
    let uuid = Uuid::parse_str(&dmi(system, "product_uuid")?).ok()?;
    // Two vendors' way of saying nothing.
    let same = |each: u8| uuid.as_bytes().iter().all(|byte| *byte == each);
    (!same(0) && !same(0xff)).then_some(uuid)
}

/// The first hardware address that a network interface has.
fn mac(system: &dyn System) -> Option<String> {
    let names = system.list("/sys/class/net").ok()?;
    names
        .iter()
        .filter(|name| system.exists(&format!("/sys/class/net/{name}/device")))
        .filter_map(|name| system.text(&format!("/sys/class/net/{name}/address")).ok())
        .find(|mac| mac.len() == 17 && mac != "00:00:00:00:00:00")
}

/// The name of a node whose configuration gives none.
fn default_hostname(serial: Option<&str>, uuid: &Uuid) -> String {
    let plain: String = serial
        .unwrap_or_default()
        .chars()
        .map(|each| each.to_ascii_lowercase())
        .map(|each| {
            if each.is_ascii_alphanumeric() {
                each
            } else {
                '-'
            }
        })
        .take(48)
        .collect();
    let plain = plain.trim_matches('-');
    let name = format!("stor-{plain}");
    if !plain.is_empty() && hostname_is_right(&name) {
        name
    } else {
        format!("stor-{}", &uuid.simple().to_string()[..8])
    }
}

/// Finds out who this node is and tells the kernel. `random` is for a machine that tells nothing.
pub(crate) fn establish(
    system: &dyn System,
    configured: Option<&str>,
    random: [u8; 16],
) -> (Identity, Vec<Status>) {
    let serial = dmi(system, "product_serial").or_else(|| dmi(system, "chassis_serial"));
    let mut done = Vec::new();
    let (uuid, uuid_status) = match (machine_uuid(system), mac(system)) {
        (Some(uuid), _) => (uuid, Status::new("uuid", State::Ok, "from the firmware")),
        (None, Some(mac)) => (
            Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("adit {mac}").as_bytes()),
            Status::new(
                "uuid",
                State::Degraded,
                format!("the firmware tells none: made of {mac}"),
            ),
        ),
        (None, None) => (
            uuid::Builder::from_random_bytes(random).into_uuid(),
            Status::new(
                "uuid",
                State::Degraded,
                "the firmware tells none and there is no network port: it is for this boot only",
            ),
        ),
    };
    done.push(uuid_status);
    let hostname = configured
        .map(str::to_owned)
        .unwrap_or_else(|| default_hostname(serial.as_deref(), &uuid));
    let named = system.set_hostname(&hostname);
    done.push(told("hostname", &hostname, named));
    let machine_id = uuid.simple().to_string();
    let written = system
        .make_folder("/etc")
        .and_then(|()| system.create("/etc/machine-id", format!("{machine_id}\n").as_bytes()));
    done.push(told("machine-id", &machine_id, written));
    let identity = Identity {
        hostname,
        host_nqn: format!("nqn.2014-08.org.nvmexpress:uuid:{}", uuid.hyphenated()),
        uuid: uuid.hyphenated().to_string(),
        serial,
        vendor: dmi(system, "sys_vendor"),
        product: dmi(system, "product_name"),
        machine_id,
        kernel: system
            .text("/proc/sys/kernel/osrelease")
            .unwrap_or_default(),
        ..Identity::default()
    };
    (identity, done)
}

fn told(name: &str, value: &str, result: std::io::Result<()>) -> Status {
    match result {
        Ok(()) => Status::new(name, State::Ok, value),
        Err(error) => Status::new(
            name,
            State::Failed,
            format!("{value} was not taken: {error}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::fake::Fake;

    #[test]
    fn the_firmware_tells_who_a_node_is() {
        let system = Fake::with(&[
            (
                "/sys/class/dmi/id/product_uuid",
                "4C4C4544-0042-3510-8054-B6C04F303233\n",
            ),
            ("/sys/class/dmi/id/product_serial", "AB5 T023 \n"),
        ]);
        let (identity, done) = establish(&system, None, [0; 16]);
        assert_eq!(identity.hostname, "stor-ab5-t023");
        assert_eq!(identity.machine_id, "4c4c4544004235108054b6c04f303233");
        assert_eq!(
            identity.host_nqn,
            "nqn.2014-08.org.nvmexpress:uuid:4c4c4544-0042-3510-8054-b6c04f303233"
        );
        assert!(done.iter().all(|status| status.state == State::Ok));
        assert!(
            system
                .calls
                .borrow()
                .contains(&"hostname stor-ab5-t023".to_owned())
        );
    }

    #[test]
    fn what_nobody_filled_in_is_not_taken_for_an_identity() {
        for text in ["To be filled by O.E.M.", "Not Specified", "0", "\n"] {
            let system = Fake::with(&[
                ("/sys/class/dmi/id/product_serial", text),
                (
                    "/sys/class/dmi/id/product_uuid",
                    "ffffffff-ffff-ffff-ffff-ffffffffffff",
                ),
                ("/sys/class/net/eth0/device", ""),
                ("/sys/class/net/eth0/address", "52:54:00:12:34:56\n"),
            ]);
            let (identity, done) = establish(&system, None, [0; 16]);
            assert_eq!(identity.serial, None);
            assert_eq!(done[0].state, State::Degraded);
            let (again, _) = establish(&system, None, [9; 16]);
            assert_eq!(identity.uuid, again.uuid, "the same after every boot");
            assert!(identity.hostname.starts_with("stor-"));
        }
    }

    #[test]
    fn a_machine_without_anything_has_an_identity_for_this_boot() {
        let (identity, done) = establish(&Fake::default(), Some("node7"), [7; 16]);
        assert_eq!(identity.hostname, "node7");
        assert!(done[0].text.ends_with("for this boot only"));
    }

    #[test]
    fn strange_serials_make_no_strange_names() {
        for serial in ["--", "é", "a/b;c", &"x".repeat(200)] {
            assert!(
                hostname_is_right(&default_hostname(Some(serial), &Uuid::nil())),
                "{serial}"
            );
        }
    }
}
