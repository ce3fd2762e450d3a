//! Sockets to the kernel: events of devices, ACPI events, and the loopback interface.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use machine::netlink::{FLAG_REQUEST, Message};
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

/// Sets the loopback interface up: metrics and probes on 127.0.0.1 need it. The others are the
/// agent's.
pub(crate) fn loopback_up() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const LOOPBACK: i32 = 1;
    let up = u32::try_from(libc::IFF_UP).expect("it is 1");
    // struct ifinfomsg: family, padding, type, index, flags, mask of flags to change.
    let mut message = Message::new(RTM_NEWLINK, FLAG_REQUEST);
    message.head(&[0; 4]);
    message.head(&LOOPBACK.to_le_bytes());
    message.head(&up.to_le_bytes());
    message.head(&up.to_le_bytes());
    let route = Netlink::open(SockProtocol::NetlinkRoute, 0)?;
    route.send(&message.bytes())
}
