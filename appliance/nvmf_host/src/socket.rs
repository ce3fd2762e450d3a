//! The socket of one queue.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};

/// A non-blocking TCP socket.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
}

impl Socket {
    /// Begins to connect.
    pub(crate) fn connect(address: SocketAddr, tos: Option<u8>) -> io::Result<Self> {
        let family = if address.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd: OwnedFd = socket(family, SockType::Stream, flags, None)?;
        if let Some(tos) = tos {
            if address.is_ipv4() {
                setsockopt(&fd, sockopt::Ipv4Tos, &tos.into())?;
            } else {
                setsockopt(&fd, sockopt::Ipv6TClass, &tos.into())?;
            }
        }
        let stream = TcpStream::from(fd);
        stream.set_nodelay(true)?;
        match connect(
            std::os::fd::AsRawFd::as_raw_fd(&stream),
            &SockaddrStorage::from(address),
        ) {
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(Self { stream }),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether the connection is up: `None` while it is not decided.
    pub(crate) fn connected(&self) -> io::Result<Option<()>> {
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut fds, PollTimeout::ZERO) {
            Ok(0) | Err(Errno::EINTR) => Ok(None),
            Ok(_) => match self.stream.take_error()? {
                None => Ok(Some(())),
                Some(error) => Err(error),
            },
            Err(errno) => Err(errno.into()),
        }
    }

    /// Tells the peer that no more will be sent.
    pub(crate) fn finish_sending(&self) {
        // It fails only if the peer has gone already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
