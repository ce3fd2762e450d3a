//! The power button: the kernel's ACPI events over generic netlink.
//!
//! Numbers are those of the kernel's `include/uapi/linux/genetlink.h` and `drivers/acpi/event.c`.

use std::io;
use std::os::fd::AsFd;

use machine::netlink::{FLAG_REQUEST, Message, attributes, messages};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::SockProtocol;

use crate::netlink::Netlink;

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;
const FAMILY: &str = "acpi_event";
const ACPI_GENL_ATTR_EVENT: u16 = 1;
/// How long the kernel may take to name the group, in ms; it answers before it returns.
const WAIT_MS: u16 = 200;

/// Listens to ACPI events.
pub(crate) fn listen() -> io::Result<Netlink> {
    let netlink = Netlink::open(SockProtocol::NetlinkGeneric, 0)?;
    let mut question = Message::new(GENL_ID_CTRL, FLAG_REQUEST);
    // struct genlmsghdr: command, version, reserved.
    question.head(&[CTRL_CMD_GETFAMILY, 1, 0, 0]);
    question.text(CTRL_ATTR_FAMILY_NAME, FAMILY);
    netlink.send(&question.bytes())?;
    let mut fds = [PollFd::new(netlink.fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, WAIT_MS)?;
    let mut group = None;
    netlink.receive(&mut |bytes| group = group.or(group_of(bytes)));
    match group {
        // The mask of bind() reaches 32 groups; a kernel hands out low numbers first.
        Some(group @ 1..=32) => netlink.join(1 << (group - 1))?,
        _ => {
            let text = "this kernel has no ACPI events";
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
    }
    Ok(netlink)
}

/// The number of the multicast group in the kernel's answer.
fn group_of(bytes: &[u8]) -> Option<u32> {
    let (_, body) = messages(bytes).find(|(kind, _)| *kind == GENL_ID_CTRL)?;
    let (_, groups) =
        attributes(body.get(4..)?).find(|(kind, _)| *kind == CTRL_ATTR_MCAST_GROUPS)?;
    let (_, first) = attributes(groups).next()?;
    let (_, id) = attributes(first).find(|(kind, _)| *kind == CTRL_ATTR_MCAST_GRP_ID)?;
    Some(u32::from_le_bytes(id.try_into().ok()?))
}

/// Whether the message says that the power button was pressed.
pub(crate) fn is_power_button(bytes: &[u8]) -> bool {
    messages(bytes).any(|(_, body)| {
        let Some(rest) = body.get(4..) else {
            return false;
        };
        attributes(rest).any(|(kind, event)| {
            // struct acpi_genl_event: device class, 20 bytes, first.
            kind == ACPI_GENL_ATTR_EVENT && event.starts_with(b"button/power")
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(4 + content.len())
            .unwrap()
            .to_le_bytes()
            .to_vec();
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn answer() -> Vec<u8> {
        let group = [
            attribute(1, b"acpi_mc_group\0"),
            attribute(2, &5u32.to_le_bytes()),
        ]
        .concat();
        let mut answer = Message::new(GENL_ID_CTRL, 0);
        answer.head(&[1, 2, 0, 0]);
        answer.text(CTRL_ATTR_FAMILY_NAME, FAMILY);
        answer.attribute(CTRL_ATTR_MCAST_GROUPS, &attribute(1, &group));
        answer.bytes()
    }

    #[test]
    fn the_group_is_found_in_the_answer_and_nowhere_when_it_is_cut() {
        let whole = answer();
        assert_eq!(group_of(&whole), Some(5));
        for length in 0..whole.len() {
            assert_eq!(group_of(&whole[..length]), None);
        }
    }

    #[test]
    fn the_power_button_is_told_from_the_lid() {
        let event = |class: &[u8]| {
            let mut event = class.to_vec();
            event.resize(44, 0);
            let mut message = Message::new(27, 0);
            message.head(&[1, 1, 0, 0]);
            message.attribute(ACPI_GENL_ATTR_EVENT, &event);
            message.bytes()
        };
        assert!(is_power_button(&event(b"button/power")));
        assert!(!is_power_button(&event(b"button/lid")));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = group_of(&bytes);
            let _ = is_power_button(&bytes);
        }
    }
}
