//! Netlink: one question to the kernel, and its answer, read within bounds.

use std::io;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

const HEADER_LEN: usize = 16;
pub(crate) const MSG_ERROR: u16 = 2;
pub(crate) const MSG_DONE: u16 = 3;
pub(crate) const FLAG_REQUEST: u16 = 0x1;
pub(crate) const FLAG_ACK: u16 = 0x4;
pub(crate) const FLAG_DUMP: u16 = 0x300;
/// The bits of an attribute's type that are no flags.
const ATTR_TYPE_MASK: u16 = 0x3fff;

/// A kernel that does not answer for so long is not waited for.
const ANSWER_WAIT_S: i64 = 10;
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Most packets of one answer. A packet has what fits into a page, at least.
const PACKETS_MAX: usize = 1024;

/// What looks at the messages of an answer: their type and body. True ends it.
pub(crate) type Look<'a> = &'a mut dyn FnMut(u16, &[u8]) -> bool;

/// Sends a message and reads the answer to its end.
pub(crate) fn ask(protocol: SockProtocol, message: &[u8], look: Look<'_>) -> io::Result<()> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        protocol,
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
        if let Some(end) = read_packet(&buffer[..len], look)? {
            return end;
        }
    }
    Err(wrong("the answer has no end"))
}

pub(crate) fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Shows the messages of a packet to `look`, and returns the end if that is in it.
pub(crate) fn read_packet(mut packet: &[u8], look: Look<'_>) -> io::Result<Option<io::Result<()>>> {
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
            kind if look(kind, body) => return Ok(Some(Ok(()))),
            _ => {}
        }
        packet = packet.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(None)
}

/// The attributes of a body: type and value. What is cut short ends them.
pub(crate) fn attributes(mut body: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (len, kind) = (usize::from(read_u16(body, 0)?), read_u16(body, 2)?);
        let value = body.get(4..len)?;
        body = body.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & ATTR_TYPE_MASK, value))
    })
}

/// A request in the making.
pub(crate) struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

#[expect(
    clippy::host_endian_bytes,
    reason = "netlink is between this kernel and its programs, in the machine's own order"
)]
mod order {
    pub(crate) fn number(value: u32) -> [u8; 4] {
        value.to_ne_bytes()
    }

    pub(crate) fn short(value: u16) -> [u8; 2] {
        value.to_ne_bytes()
    }

    pub(crate) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
        let bytes = bytes.get(at..)?.first_chunk()?;
        Some(u32::from_ne_bytes(*bytes))
    }

    pub(crate) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
        let bytes = bytes.get(at..)?.first_chunk()?;
        Some(u16::from_ne_bytes(*bytes))
    }
}

use order::short;
pub(crate) use order::{number, read_u16, read_u32};

impl Message {
    pub(crate) const fn new(kind: u16, flags: u16) -> Self {
        Self {
            kind,
            flags,
            body: Vec::new(),
        }
    }

    /// What stands before the attributes.
    pub(crate) fn head(&mut self, bytes: &[u8]) {
        self.body.extend(bytes);
    }

    /// Names are 63 bytes at most, so lengths fit.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.body.extend(short(len));
        self.body.extend(short(kind));
        self.body.extend(value);
        self.body.resize(self.body.len().next_multiple_of(4), 0);
    }

    pub(crate) fn text(&mut self, kind: u16, text: &str) {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
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
