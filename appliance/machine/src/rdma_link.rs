//! RDMA devices of software, made and removed over netlink (`RDMA_NL_NLDEV`).
//!
//! Three messages of one protocol. Whoever asks needs CAP_NET_ADMIN.

use std::io;

use nix::sys::socket::SockProtocol;

use crate::netlink::{
    FLAG_ACK, FLAG_DUMP, FLAG_REQUEST, Message, ask, attributes, number, read_u32,
};

/// A change of the RDMA devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RdmaLink<'a> {
    /// Makes a soft-RoCE device on an interface.
    AddSoftRoce {
        /// Its name, 63 bytes at most.
        name: &'a str,
        /// The interface.
        interface: &'a str,
    },
    /// Removes a device that was made so.
    Remove {
        /// Its name.
        name: &'a str,
    },
}

/// `RDMA_NL_GET_TYPE(RDMA_NL_NLDEV, command)`.
const NLDEV: u16 = 5 << 10;
const CMD_GET: u16 = NLDEV | 1;
const CMD_NEWLINK: u16 = NLDEV | 3;
const CMD_DELLINK: u16 = NLDEV | 4;
const ATTR_DEV_INDEX: u16 = 1;
const ATTR_DEV_NAME: u16 = 2;
const ATTR_NDEV_NAME: u16 = 51;
const ATTR_LINK_TYPE: u16 = 65;
/// The type of link that `rdma_rxe` answers to.
const SOFT_ROCE: &str = "rxe";
/// Longest name of a device, without the zero at its end (`IB_DEVICE_NAME_MAX`).
const NAME_MAX: usize = 63;

/// Asks the kernel of this machine.
pub(crate) fn change(change: &RdmaLink<'_>) -> io::Result<()> {
    match change {
        RdmaLink::AddSoftRoce { name, interface } => {
            if name.len() > NAME_MAX {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "the name is longer than 63 bytes",
                ));
            }
            let mut message = Message::new(CMD_NEWLINK, FLAG_REQUEST | FLAG_ACK);
            message.text(ATTR_DEV_NAME, name);
            message.text(ATTR_LINK_TYPE, SOFT_ROCE);
            message.text(ATTR_NDEV_NAME, interface);
            request(&message)
        }
        RdmaLink::Remove { name } => {
            let mut index = None;
            let get = Message::new(CMD_GET, FLAG_REQUEST | FLAG_DUMP);
            ask(PROTOCOL, &get.bytes(), &mut |kind, body| {
                let found = device(body).filter(|_| kind == CMD_GET);
                index = index.or(found.filter(|found| found.1 == *name).map(|found| found.0));
                false
            })?;
            let Some(index) = index else { return Ok(()) };
            let mut message = Message::new(CMD_DELLINK, FLAG_REQUEST | FLAG_ACK);
            message.attribute(ATTR_DEV_INDEX, &number(index));
            request(&message)
        }
    }
}

const PROTOCOL: SockProtocol = SockProtocol::NetlinkRDMA;

fn request(message: &Message) -> io::Result<()> {
    ask(PROTOCOL, &message.bytes(), &mut |_, _| false)
}

/// Index and name in the attributes of a device.
fn device(body: &[u8]) -> Option<(u32, &str)> {
    let (mut index, mut name) = (None, None);
    for (kind, value) in attributes(body) {
        match kind {
            ATTR_DEV_INDEX => index = read_u32(value, 0),
            ATTR_DEV_NAME => {
                let end = value.iter().position(|byte| *byte == 0);
                name = str::from_utf8(&value[..end.unwrap_or(value.len())]).ok();
            }
            _ => {}
        }
    }
    Some((index?, name?))
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::{MSG_DONE, MSG_ERROR, read_packet};

    type End = io::Result<Option<io::Result<()>>>;

    fn devices(packet: &[u8]) -> (Vec<(u32, String)>, End) {
        let mut all = Vec::new();
        let end = read_packet(packet, &mut |kind, body| {
            let found = device(body).filter(|_| kind == CMD_GET);
            all.extend(found.map(|(index, name)| (index, name.to_owned())));
            false
        });
        (all, end)
    }

    fn answer() -> Vec<u8> {
        let mut packet = Vec::new();
        for (index, name) in [(0, "mlx5_0"), (3, "rxe_eth0")] {
            let mut message = Message::new(CMD_GET, 0);
            message.attribute(ATTR_DEV_INDEX, &number(index));
            message.text(ATTR_DEV_NAME, name);
            packet.extend(message.bytes());
        }
        packet.extend(Message::new(MSG_DONE, 0).bytes());
        packet
    }

    #[test]
    fn a_new_link_is_what_the_kernel_reads() {
        let mut message = Message::new(CMD_NEWLINK, FLAG_REQUEST | FLAG_ACK);
        message.text(ATTR_DEV_NAME, "rxe0");
        message.text(ATTR_LINK_TYPE, SOFT_ROCE);
        message.text(ATTR_NDEV_NAME, "eth0");
        let golden: &[u8] = &[
            0x30, 0, 0, 0, 0x03, 0x14, 0x05, 0, 0, 0, 0, 0, 0, 0, 0, 0, // header
            9, 0, 2, 0, b'r', b'x', b'e', b'0', 0, 0, 0, 0, // name
            8, 0, 65, 0, b'r', b'x', b'e', 0, // type of the link
            9, 0, 51, 0, b'e', b't', b'h', b'0', 0, 0, 0, 0, // interface
        ];
        assert_eq!(message.bytes(), golden);
    }

    #[test]
    fn devices_are_told_up_to_the_end() {
        let (all, end) = devices(&answer());
        assert_eq!(all, [(0, "mlx5_0".to_owned()), (3, "rxe_eth0".to_owned())]);
        assert!(matches!(end, Ok(Some(Ok(())))));
    }

    #[test]
    fn an_error_is_the_systems() {
        let mut message = Message::new(MSG_ERROR, 0);
        message.head(&(-libc::EPERM).cast_unsigned().to_le_bytes());
        let (_, end) = devices(&message.bytes());
        let error = end.unwrap().unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        let (_, end) = devices(&Message::new(MSG_ERROR, 0).bytes());
        assert!(end.is_err());
    }

    #[test]
    fn an_answer_that_is_cut_short_anywhere_is_no_end() {
        let whole = answer();
        for len in 0..whole.len() {
            assert!(
                !matches!(devices(&whole[..len]).1, Ok(Some(Ok(())))),
                "{len}"
            );
        }
    }

    proptest! {
        #[test]
        fn bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = devices(&bytes);
            let _ = device(&bytes);
        }
    }

    #[test]
    fn a_host_elsewhere_has_no_kernel_to_ask() {
        use crate::Host as _;
        let folder = tempfile::tempdir().unwrap();
        let root = crate::Root::new(folder.path());
        let change = RdmaLink::Remove { name: "rxe0" };
        let error = root.change_rdma_link(&change).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }
}
