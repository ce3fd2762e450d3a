//! Sockets to the kernel: events of devices, ACPI events, and the loopback interface.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname,
    recv, send, socket,
};

/// Longest message that is read, in bytes.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 10;
/// Messages that are read at once; what remains is read in the next turn.
const MESSAGES_MAX: usize = 64;

/// A socket to the kernel. Never blocks.
#[derive(Debug)]
pub(crate) struct Netlink {
    pub(crate) fd: OwnedFd,
}

impl Netlink {
    /// `groups` is a mask: bit 0 is group 1.
    pub(crate) fn open(protocol: SockProtocol, groups: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        let netlink = Self { fd };
        netlink.join(groups)?;
        Ok(netlink)
    }

    /// Sets which groups are heard.
    pub(crate) fn join(&self, groups: u32) -> io::Result<()> {
        // Bound once, it keeps its port, and the kernel wants to hear it again.
        let port = getsockname::<NetlinkAddr>(self.fd.as_raw_fd())?.pid();
        bind(self.fd.as_raw_fd(), &NetlinkAddr::new(port, groups))?;
        Ok(())
    }

    /// Listens to the kernel's events of devices.
    pub(crate) fn uevents() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkKObjectUEvent, machine::UEVENT_GROUPS)
    }

    pub(crate) fn send(&self, message: &[u8]) -> io::Result<()> {
        send(self.fd.as_raw_fd(), message, MsgFlags::empty())?;
        Ok(())
    }

    /// What has come. True when the kernel had to throw messages away.
    pub(crate) fn receive(&self, each: &mut dyn FnMut(&[u8])) -> bool {
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        for _ in 0..MESSAGES_MAX {
            match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(count) => each(&buffer[..count]),
                Err(nix::errno::Errno::ENOBUFS) => return true,
                Err(_) => return false,
            }
        }
        false
    }
}

/// A message with its header (netlink(7), `struct nlmsghdr`).
pub(crate) fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).expect("our messages are short");
    let mut bytes = Vec::with_capacity(16 + body.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&flags.to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(body);
    bytes
}

/// Sets the loopback interface up: metrics and probes on 127.0.0.1 need it. The others are the
/// agent's.
pub(crate) fn loopback_up() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const REQUEST: u16 = 1;
    const LOOPBACK: i32 = 1;
    let up = u32::try_from(libc::IFF_UP).expect("it is 1");
    // struct ifinfomsg: family, padding, type, index, flags, mask of flags to change.
    let mut body = vec![0; 4];
    body.extend_from_slice(&LOOPBACK.to_le_bytes());
    body.extend_from_slice(&up.to_le_bytes());
    body.extend_from_slice(&up.to_le_bytes());
    let route = Netlink::open(SockProtocol::NetlinkRoute, 0)?;
    route.send(&message(RTM_NEWLINK, REQUEST, &body))
}

/// The attributes of a netlink message: kind and content (`struct nlattr`). Damage ends them.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_le_bytes([header[0], header[1]]));
        // The two highest bits are flags.
        let kind = u16::from_le_bytes([header[2], header[3]]) & 0x3fff;
        let content = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, content))
    })
}

/// The messages in what was received: kind and body. Damage ends them.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = bytes.split_first_chunk::<16>()?;
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let length = usize::try_from(length).ok()?;
        let kind = u16::from_le_bytes([header[4], header[5]]);
        let body = bytes.get(16..length)?;
        let next = length.checked_next_multiple_of(4)?;
        bytes = bytes.get(next..).unwrap_or_default();
        Some((kind, body))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_and_attributes_are_found_up_to_the_damage() {
        let mut attribute = vec![7, 0, 2, 0x80, b'a', b'b', b'c', 0];
        attribute.extend_from_slice(&[8, 0, 3, 0, 1, 2, 3, 4]);
        let found: Vec<_> = attributes(&attribute).collect();
        assert_eq!(found, [(2, &b"abc"[..]), (3, &[1, 2, 3, 4][..])]);
        let mut bytes = message(16, 1, &attribute);
        bytes.extend(message(17, 1, &[]));
        assert_eq!(messages(&bytes).count(), 2);
        for length in 0..bytes.len() {
            let cut = &bytes[..length];
            assert!(messages(cut).count() < 2);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_hang(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = messages(&bytes).flat_map(|(_, body)| attributes(body)).count();
            let _ = attributes(&bytes).count();
        }
    }
}
