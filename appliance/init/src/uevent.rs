//! Events of devices, as the kernel sends them to whoever listens.

use std::io;

use nix::sys::socket::SockProtocol;

use crate::netlink::Netlink;

/// An event: a device has come, gone, or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Uevent {
    pub(crate) action: String,
    pub(crate) subsystem: String,
    /// Path below `/sys`.
    pub(crate) path: String,
}

/// Listens to the kernel's events.
pub(crate) fn listen() -> io::Result<Netlink> {
    Netlink::open(SockProtocol::NetlinkKObjectUEvent, 1)
}

/// Reads `ACTION@PATH\0KEY=VALUE\0...`. What a program sends (`libudev\0...`) is no event.
pub(crate) fn parse(bytes: &[u8]) -> Option<Uevent> {
    let mut parts = bytes.split(|byte| *byte == 0);
    let head = std::str::from_utf8(parts.next()?).ok()?;
    head.split_once('@')?;
    let mut event = Uevent {
        action: String::new(),
        subsystem: String::new(),
        path: String::new(),
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
            _ => {}
        }
    }
    let whole = !event.action.is_empty() && !event.path.is_empty();
    whole.then_some(event)
}

impl Uevent {
    /// Whether the plan for the hardware may be another now.
    pub(crate) fn changes_the_hardware(&self) -> bool {
        match self.subsystem.as_str() {
            // A bind is our own doing.
            "pci" => matches!(self.action.as_str(), "add" | "remove"),
            "net" => matches!(self.action.as_str(), "add" | "remove" | "move"),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOLDEN: &[u8] = b"add@/devices/pci0000:00/0000:00:05.0\0ACTION=add\0\
        DEVPATH=/devices/pci0000:00/0000:00:05.0\0SUBSYSTEM=pci\0PCI_CLASS=10802\0SEQNUM=1\0";

    #[test]
    fn a_drive_that_is_plugged_in_is_heard() {
        let event = parse(GOLDEN).unwrap();
        assert_eq!(event.path, "/devices/pci0000:00/0000:00:05.0");
        assert!(event.changes_the_hardware());
        let bind = Uevent {
            action: "bind".to_owned(),
            ..event
        };
        assert!(!bind.changes_the_hardware());
    }

    #[test]
    fn an_event_cut_off_anywhere_is_none_or_less() {
        for length in 0..GOLDEN.len() {
            if let Some(event) = parse(&GOLDEN[..length]) {
                assert_eq!(event.action, "add");
            }
        }
        assert_eq!(
            parse(b"libudev\0\xfe\xed\xca\xfeACTION=add\0DEVPATH=/x\0"),
            None
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }
    }
}
