//! Sockets: making listeners, setting up connections, and what is told of them.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::sockopt::{
    Ipv4Tos, Ipv6TClass, Ipv6V6Only, KeepAlive, Priority, ReuseAddr, TcpKeepIdle,
};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, listen,
    setsockopt, socket,
};

use crate::TcpOptions;

/// A silent peer is asked after this long whether it is still there. Keep Alive commands do that
/// sooner, where a host sends them.
const KEEP_ALIVE_IDLE_S: u32 = 60;

/// A non-blocking listener at an address.
pub(crate) fn listener(address: SocketAddr, options: &TcpOptions) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, SockProtocol::Tcp)?;
    // A target that restarts must not wait for the old connections' TIME_WAIT.
    setsockopt(&fd, ReuseAddr, &true)?;
    if address.is_ipv6() {
        // `::` and `0.0.0.0` are listeners of their own.
        setsockopt(&fd, Ipv6V6Only, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&fd, Backlog::new(i32::from(options.backlog))?)?;
    Ok(TcpListener::from(fd))
}

/// A listener's socket with the options of another transport.
pub(crate) fn relisten(fd: OwnedFd, options: &TcpOptions) -> io::Result<TcpListener> {
    listen(&fd, Backlog::new(i32::from(options.backlog))?)?;
    Ok(TcpListener::from(fd))
}

/// Sets an accepted connection up.
pub(crate) fn set_up(stream: &TcpStream, peer: SocketAddr, options: &TcpOptions) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    setsockopt(stream, KeepAlive, &true)?;
    setsockopt(stream, TcpKeepIdle, &KEEP_ALIVE_IDLE_S)?;
    if options.sock_priority != 0 {
        setsockopt(stream, Priority, &i32::from(options.sock_priority))?;
    }
    if options.tos != 0 {
        let tos = i32::from(options.tos);
        if peer.is_ipv4() {
            setsockopt(stream, Ipv4Tos, &tos)?;
        } else {
            setsockopt(stream, Ipv6TClass, &tos)?;
        }
    }
    Ok(())
}

/// The NUMA node of the network device that has an address, where the system tells.
pub(crate) fn numa_node_of(address: IpAddr) -> Option<u32> {
    let interface = nix::ifaddrs::getifaddrs().ok()?.find(|interface| {
        interface
            .address
            .as_ref()
            .and_then(ip_of)
            .is_some_and(|ip| ip == address)
    })?;
    let path = format!(
        "/sys/class/net/{}/device/numa_node",
        interface.interface_name
    );
    // -1: the device is near to no node in particular.
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address
        .as_sockaddr_in()
        .map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| {
        address
            .as_sockaddr_in6()
            .map(|address| IpAddr::V6(address.ip()))
    })
}
