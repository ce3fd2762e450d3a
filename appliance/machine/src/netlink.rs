//! Netlink (netlink(7)): its messages and attributes, and one question to the kernel with its answer, read
//! within bounds.

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
/// A question to the kernel.
pub const FLAG_REQUEST: u16 = 0x1;
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

/// The first message of what was received, as kind and body, and what comes after it.
fn first_message(packet: &[u8]) -> Result<(u16, &[u8], &[u8]), &'static str> {
    let (Some(len), Some(kind)) = (read_u32(packet, 0), read_u16(packet, 4)) else {
        return Err("a message is cut short");
    };
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let body = packet
        .get(HEADER_LEN..len)
        .ok_or("a message has a wrong length")?;
    let rest = packet.get(len.next_multiple_of(4)..).unwrap_or_default();
    Ok((kind, body, rest))
}

/// The messages in what was received: kind and body. Damage ends them.
pub fn messages(mut packet: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (kind, body, rest) = first_message(packet).ok()?;
        packet = rest;
        Some((kind, body))
    })
}

/// Shows the messages of a packet to `look`, and returns the end if that is in it.
pub(crate) fn read_packet(mut packet: &[u8], look: Look<'_>) -> io::Result<Option<io::Result<()>>> {
    while !packet.is_empty() {
        let (kind, body, rest) = first_message(packet).map_err(wrong)?;
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
        packet = rest;
    }
    Ok(None)
}

/// The attributes of a body: type, without its flags, and value. What is cut short ends them.
pub fn attributes(mut body: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (len, kind) = (usize::from(read_u16(body, 0)?), read_u16(body, 2)?);
        let value = body.get(4..len)?;
        body = body.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & ATTR_TYPE_MASK, value))
    })
}

/// A message in the making.
#[derive(Debug)]
pub struct Message {
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
    /// One without a body.
    #[must_use]
    pub const fn new(kind: u16, flags: u16) -> Self {
        Self {
            kind,
            flags,
            body: Vec::new(),
        }
    }

    /// Adds what stands before the attributes.
    pub fn head(&mut self, bytes: &[u8]) {
        self.body.extend(bytes);
    }

    /// Adds an attribute.
    ///
    /// # Panics
    /// If the value is longer than an attribute can be, which is 64 KiB.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(4 + value.len()).expect("a value that fits into an attribute");
        self.body.extend(short(len));
        self.body.extend(short(kind));
        self.body.extend(value);
        self.body.resize(self.body.len().next_multiple_of(4), 0);
    }

    /// Adds an attribute with a text.
    ///
    /// # Panics
    /// As [`Message::attribute`].
    pub fn text(&mut self, kind: u16, text: &str) {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    /// What the kernel is sent.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_and_attributes_are_found_up_to_the_damage() {
        let mut message = Message::new(16, FLAG_REQUEST);
        message.attribute(0x8002, b"abc");
        message.attribute(3, &[1, 2, 3, 4]);
        let found: Vec<_> = attributes(&message.body).collect();
        assert_eq!(found, [(2, &b"abc"[..]), (3, &[1, 2, 3, 4][..])]);
        let mut bytes = message.bytes();
        bytes.extend(Message::new(17, 0).bytes());
        let kinds: Vec<_> = messages(&bytes).map(|(kind, _)| kind).collect();
        assert_eq!(kinds, [16, 17]);
        for len in 0..bytes.len() {
            assert!(messages(&bytes[..len]).count() < 2);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_hang(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = messages(&bytes).flat_map(|(_, body)| attributes(body)).count();
            let _ = attributes(&bytes).count();
            let _ = read_packet(&bytes, &mut |_, _| false);
        }
    }
}
