//! Events of devices, as the kernel tells them to whoever listens (netlink, `KOBJECT_UEVENT`).

use crate::{PciAddress, VFIO_DRIVER};

/// The multicast group of the kernel's own events, as a mask. What udev passes on has another.
pub const UEVENT_GROUPS: u32 = 1;

/// A device has come, gone or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uevent {
    /// What happened: `add`, `remove`, `bind` and so on.
    pub action: String,
    /// Kind of device: `pci`, `net`, `block` and so on; empty when it is not told.
    pub subsystem: String,
    /// Path below `/sys`, with a leading slash.
    pub path: String,
    /// The driver that has it; empty when none has, or it is not told.
    pub driver: String,
}

impl Uevent {
    /// Reads `ACTION@PATH\0KEY=VALUE\0...`. What a program sends (`libudev\0...`) is no event.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut parts = bytes.split(|byte| *byte == 0);
        let head = std::str::from_utf8(parts.next()?).ok()?;
        head.split_once('@')?;
        let mut event = Self {
            action: String::new(),
            subsystem: String::new(),
            path: String::new(),
            driver: String::new(),
        };
        for part in parts {
            let Some((key, value)) = std::str::from_utf8(part)
                .ok()
                .and_then(|text| text.split_once('='))
            else {
                continue;
            };
            match key {
                "ACTION" => event.action = value.to_owned(),
                "SUBSYSTEM" => event.subsystem = value.to_owned(),
                "DEVPATH" => event.path = value.to_owned(),
                "DRIVER" => event.driver = value.to_owned(),
                _ => {}
            }
        }
        let whole = !event.action.is_empty() && !event.path.is_empty();
        whole.then_some(event)
    }

    /// Whether the plan for the host may be another now.
    #[must_use]
    pub fn changes_the_plan(&self) -> bool {
        match self.subsystem.as_str() {
            // A bind is what a plan does.
            "pci" => matches!(self.action.as_str(), "add" | "remove"),
            "net" => matches!(self.action.as_str(), "add" | "remove" | "move"),
            _ => false,
        }
    }

    /// The function that vfio-pci has got: it can be opened from now on.
    #[must_use]
    pub fn given_to_user_space(&self) -> Option<PciAddress> {
        let is_given =
            self.subsystem == "pci" && self.action == "bind" && self.driver == VFIO_DRIVER;
        let name = self.path.rsplit('/').next().filter(|_| is_given)?;
        name.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLUGGED: &[u8] = b"add@/devices/pci0000:00/0000:00:05.0\0ACTION=add\0\
        DEVPATH=/devices/pci0000:00/0000:00:05.0\0SUBSYSTEM=pci\0PCI_CLASS=10802\0SEQNUM=1\0";
    const BOUND: &[u8] = b"bind@/devices/pci0000:00/0000:00:05.0/0000:01:00.0\0ACTION=bind\0\
        DEVPATH=/devices/pci0000:00/0000:00:05.0/0000:01:00.0\0SUBSYSTEM=pci\0DRIVER=vfio-pci\0\
        PCI_CLASS=10802\0PCI_SLOT_NAME=0000:01:00.0\0SEQNUM=2\0";

    #[test]
    fn a_drive_that_is_plugged_in_is_heard() {
        let event = Uevent::parse(PLUGGED).unwrap();
        assert_eq!(event.path, "/devices/pci0000:00/0000:00:05.0");
        assert!(event.changes_the_plan());
        assert_eq!(event.given_to_user_space(), None);
    }

    #[test]
    fn a_function_that_vfio_has_got_can_be_opened_and_changes_no_plan() {
        let event = Uevent::parse(BOUND).unwrap();
        assert!(!event.changes_the_plan());
        let address = event.given_to_user_space().unwrap();
        assert_eq!(address.to_string(), "0000:01:00.0");
        let changes: [fn(&mut Uevent); 4] = [
            |event| event.driver = "nvme".to_owned(),
            |event| event.action = "unbind".to_owned(),
            |event| event.subsystem = "usb".to_owned(),
            |event| event.path = "/devices/virtual".to_owned(),
        ];
        for change in changes {
            let mut other = event.clone();
            change(&mut other);
            assert_eq!(other.given_to_user_space(), None, "{other:?}");
        }
    }

    #[test]
    fn an_event_cut_off_anywhere_is_none_or_less() {
        for whole in [PLUGGED, BOUND] {
            let event = Uevent::parse(whole).unwrap();
            for length in 0..whole.len() {
                if let Some(cut) = Uevent::parse(&whole[..length]) {
                    assert_eq!(cut.action, event.action);
                    assert!(event.path.starts_with(&cut.path));
                }
            }
        }
        let program = b"libudev\0\xfe\xed\xca\xfeACTION=add\0DEVPATH=/x\0";
        assert_eq!(Uevent::parse(program), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Uevent::parse(&bytes).and_then(|event| event.given_to_user_space());
        }
    }
}
