//! RDMA devices of software, made and removed over netlink (`RDMA_NL_NLDEV`).
//!
//! Three messages of one protocol, which no kept crate speaks. Whoever asks needs CAP_NET_ADMIN.

use std::io;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

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

const HEADER_LEN: usize = 16;
const MSG_ERROR: u16 = 2;
const MSG_DONE: u16 = 3;
const FLAG_REQUEST: u16 = 0x1;
const FLAG_ACK: u16 = 0x4;
const FLAG_DUMP: u16 = 0x300;
/// The bits of an attribute's type that are flags.
const ATTR_TYPE_MASK: u16 = 0x3fff;

/// A kernel that does not answer for so long is not waited for.
const ANSWER_WAIT_S: i64 = 10;
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Most packets of one answer. A packet has the devices that fit into a page, at least.
const PACKETS_MAX: usize = 1024;

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
            ask(&message.bytes(), &mut |_| {})
        }
        RdmaLink::Remove { name } => {
            let mut index = None;
            let get = Message::new(CMD_GET, FLAG_REQUEST | FLAG_DUMP);
            ask(&get.bytes(), &mut |found: (u32, &str)| {
                if found.1 == *name {
                    index = Some(found.0);
                }
            })?;
            let Some(index) = index else { return Ok(()) };
            let mut message = Message::new(CMD_DELLINK, FLAG_REQUEST | FLAG_ACK);
            message.attribute(ATTR_DEV_INDEX, &number(index));
            ask(&message.bytes(), &mut |_| {})
        }
    }
}

/// Sends a message and reads the answer to its end.
fn ask(message: &[u8], found: &mut dyn FnMut((u32, &str))) -> io::Result<()> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRDMA,
    )?;
    setsockopt(
        &socket,
        sockopt::ReceiveTimeout,
        &TimeVal::seconds(ANSWER_WAIT_S),
    )?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), message, &kernel, MsgFlags::empty())?;
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    for _ in 0..PACKETS_MAX {
        let len = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(len) => len,
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(errno) => return Err(errno.into()),
        };
        if let Some(end) = read_packet(&buffer[..len], found)? {
            return end;
        }
    }
    Err(wrong("the answer has no end"))
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads the messages of a packet: tells the devices in it, and returns the end if that is in it.
fn read_packet(
    mut packet: &[u8],
    found: &mut dyn FnMut((u32, &str)),
) -> io::Result<Option<io::Result<()>>> {
    while !packet.is_empty() {
        let (len, kind) = match (read_u32(packet, 0), read_u16(packet, 4)) {
            (Some(len), Some(kind)) => (len as usize, kind),
            _ => return Err(wrong("a message is cut short")),
        };
        if len < HEADER_LEN || len > packet.len() {
            return Err(wrong("a message has a wrong length"));
        }
        let body = &packet[HEADER_LEN..len];
        match kind {
            MSG_DONE => return Ok(Some(Ok(()))),
            MSG_ERROR => {
                // 0, or a negative number of an error.
                let code = read_u32(body, 0).ok_or_else(|| wrong("an error without a number"))?;
                let code = code.cast_signed();
                return Ok(Some(match code {
                    0 => Ok(()),
                    code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                }));
            }
            CMD_GET => {
                if let Some(device) = device(body) {
                    found(device);
                }
            }
            _ => {}
        }
        packet = packet.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(None)
}

/// Index and name in the attributes of a device.
fn device(mut body: &[u8]) -> Option<(u32, &str)> {
    let (mut index, mut name) = (None, None);
    while let (Some(len), Some(kind)) = (read_u16(body, 0), read_u16(body, 2)) {
        let len = usize::from(len);
        let value = body.get(4..len)?;
        match kind & ATTR_TYPE_MASK {
            ATTR_DEV_INDEX => index = read_u32(value, 0),
            ATTR_DEV_NAME => {
                let end = value.iter().position(|byte| *byte == 0);
                name = str::from_utf8(&value[..end.unwrap_or(value.len())]).ok();
            }
            _ => {}
        }
        body = body.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Some((index?, name?))
}

/// A request in the making.
struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

#[expect(
    clippy::host_endian_bytes,
    reason = "netlink is between this kernel and its programs, in the machine's own order"
)]
mod order {
    pub(super) fn number(value: u32) -> [u8; 4] {
        value.to_ne_bytes()
    }

    pub(super) fn short(value: u16) -> [u8; 2] {
        value.to_ne_bytes()
    }

    pub(super) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
        let bytes = bytes.get(at..)?.first_chunk()?;
        Some(u32::from_ne_bytes(*bytes))
    }

    pub(super) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
        let bytes = bytes.get(at..)?.first_chunk()?;
        Some(u16::from_ne_bytes(*bytes))
    }
}

use order::{number, read_u16, read_u32, short};

impl Message {
    const fn new(kind: u16, flags: u16) -> Self {
        Self {
            kind,
            flags,
            body: Vec::new(),
        }
    }

    /// Names are 63 bytes at most, so lengths fit.
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.body.extend(short(len));
        self.body.extend(short(kind));
        self.body.extend(value);
        self.body.resize(self.body.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, text: &str) {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    fn bytes(&self) -> Vec<u8> {
        let len = u32::try_from(HEADER_LEN + self.body.len()).unwrap_or(u32::MAX);
        let mut bytes = number(len).to_vec();
        bytes.extend(short(self.kind));
        bytes.extend(short(self.flags));
        // The sequence and the sender: one question is asked of a socket.
        bytes.extend([0; 8]);
        bytes.extend(&self.body);
        bytes
    }
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type End = io::Result<Option<io::Result<()>>>;

    fn devices(packet: &[u8]) -> (Vec<(u32, String)>, End) {
        let mut all = Vec::new();
        let end = read_packet(packet, &mut |(index, name)| {
            all.push((index, name.to_owned()));
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
        message
            .body
            .extend((-libc::EPERM).cast_unsigned().to_le_bytes());
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
