//! Drives that are plugged in: the kernel tells of each function that vfio-pci gets, and what is
//! pending is tried at once, not only with the next look of every second.
//!
//! What it is not: it binds nothing (that is `adit-init`'s, or an operator's) and chooses nothing:
//! which drive is whose its serial number tells, when it is asked. A drive that goes away is
//! noticed by the thread that owns it.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use machine::{PciAddress, UEVENT_GROUPS, Uevent};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::control::Control;

/// Longest event that is read, in bytes; the kernel's are shorter (`UEVENT_BUFFER_SIZE` is 2048).
const EVENT_BYTES_MAX: usize = 8 << 10;

/// Tries what is pending whenever vfio-pci gets a function. Ends when events cannot be had.
pub(crate) async fn run(control: Control) {
    let result = match Listener::open() {
        Ok(mut listener) => loop {
            match listener.bound().await {
                Ok(Some(address)) => {
                    tracing::info!(%address, "vfio-pci has a function: what is pending is tried");
                }
                Ok(None) => tracing::debug!("events of devices were lost"),
                Err(error) => break error,
            }
            control.try_pending();
        },
        Err(error) => error,
    };
    tracing::warn!(
        error = %result,
        "events of devices cannot be had: drives that are plugged in are found within a second"
    );
}

/// A socket on which the kernel tells of devices.
struct Listener {
    socket: AsyncFd<OwnedFd>,
    event: Vec<u8>,
}

impl Listener {
    fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, UEVENT_GROUPS))?;
        Self::over(fd)
    }

    /// Over a socket that does not block and keeps messages apart.
    #[expect(
        deprecated,
        reason = "its successor is unsafe for descriptors that may be closed; this one is owned"
    )]
    fn over(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: AsyncFd::with_interest(fd, Interest::READABLE)?,
            event: vec![0; EVENT_BYTES_MAX],
        })
    }

    /// Waits until vfio-pci has got a function: which one, or `None` when events were lost, which
    /// may have told of one.
    async fn bound(&mut self) -> io::Result<Option<PciAddress>> {
        loop {
            let mut ready = self.socket.readable().await?;
            let fd = ready.get_inner().as_raw_fd();
            match recv(fd, &mut self.event, MsgFlags::empty()) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    let event = Uevent::parse(&self.event[..length]);
                    let given = event.and_then(|event| event.given_to_user_space());
                    if given.is_some() {
                        return Ok(given);
                    }
                }
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{send, socketpair};

    use super::*;

    fn event(action: &str, address: &str, driver: &str) -> Vec<u8> {
        let path = format!("/devices/pci0000:00/{address}");
        let text = format!(
            "{action}@{path}\0ACTION={action}\0DEVPATH={path}\0SUBSYSTEM=pci\0DRIVER={driver}\0"
        );
        text.into_bytes()
    }

    #[tokio::test]
    async fn only_what_vfio_gets_is_told() {
        let flags = SockFlag::SOCK_NONBLOCK;
        let (kernel, ours) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let mut listener = Listener::over(ours).unwrap();
        for event in [
            event("add", "0000:01:00.0", ""),
            event("bind", "0000:02:00.0", "nvme"),
            event("unbind", "0000:03:00.0", "vfio-pci"),
            b"libudev\0ACTION=bind".to_vec(),
            vec![0xff; 64],
            event("bind", "0000:04:00.0", "vfio-pci"),
            event("bind", "0000:05:00.0", "vfio-pci"),
        ] {
            send(kernel.as_raw_fd(), &event, MsgFlags::empty()).unwrap();
        }
        for address in ["0000:04:00.0", "0000:05:00.0"] {
            let told = listener.bound().await.unwrap().unwrap();
            assert_eq!(told.to_string(), address);
        }
        drop(kernel);
        listener.bound().await.unwrap_err();
    }
}
