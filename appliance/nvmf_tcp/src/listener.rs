//! A listening address: accepting, within a rate and a number.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fabric_wire::TransportAddress;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nvmf::transport::{Acceptor, NewConnection, Peer, TransportId};

use crate::TcpOptions;
use crate::pace::TokenBucket;
use crate::socket;
use crate::stats::{TcpStats, count};

/// A busy group looks for connections this often. An idle one is woken by the descriptor.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// Connections accepted in one poll; the rest is for the next, so that I/O goes on.
const BATCH: usize = 32;
/// Pause after accepting failed for want of descriptors or memory.
const BACK_OFF: Duration = Duration::from_millis(100);
/// Refusals are told in the log at most this often.
const WARN_INTERVAL: Duration = Duration::from_secs(10);
/// Local addresses whose NUMA node is remembered.
const NUMA_CACHE_MAX: usize = 256;

/// Counts a connection for as long as it lives.
#[derive(Debug)]
pub(crate) struct ConnectionTicket(Arc<TcpStats>);

impl ConnectionTicket {
    /// `None` if there are as many as may be.
    fn take(stats: &Arc<TcpStats>, max: u32) -> Option<Self> {
        let before = stats.connections.fetch_add(1, Ordering::Relaxed);
        // The ticket gives the count back when it is dropped, also when it is refused.
        let ticket = Self(Arc::clone(stats));
        (before < u64::from(max)).then_some(ticket)
    }
}

impl Drop for ConnectionTicket {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An accepted connection on its way from a listener to a poll group.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) ticket: ConnectionTicket,
}

/// The acceptor of one address.
///
/// Its descriptor is an epoll with the listener in it: while accepting is paused (rate, or no
/// descriptors left) the listener is taken out of it, so that connections that wait in the backlog
/// do not keep an idle thread awake.
pub(crate) struct TcpAcceptor {
    id: TransportId,
    address: Arc<TransportAddress>,
    local: SocketAddr,
    listener: TcpListener,
    epoll: Epoll,
    options: Arc<TcpOptions>,
    stats: Arc<TcpStats>,
    bucket: TokenBucket,
    next_poll: Option<Instant>,
    paused_until: Option<Instant>,
    next_warning: Option<Instant>,
    refused_since_warning: u64,
    numa_nodes: HashMap<IpAddr, Option<u32>>,
}

impl TcpAcceptor {
    pub(crate) fn new(
        id: TransportId,
        address: Arc<TransportAddress>,
        options: Arc<TcpOptions>,
        stats: Arc<TcpStats>,
    ) -> io::Result<Self> {
        let socket_address = address
            .socket_addr()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let listener = socket::listener(socket_address, &options)?;
        Self::on(id, address, listener, options, stats)
    }

    /// Accepts on a listener that is there.
    pub(crate) fn on(
        id: TransportId,
        address: Arc<TransportAddress>,
        listener: TcpListener,
        options: Arc<TcpOptions>,
        stats: Arc<TcpStats>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        Ok(Self {
            id,
            address,
            local: listener.local_addr()?,
            listener,
            epoll,
            bucket: TokenBucket::new(options.accept_rate_per_s),
            options,
            stats,
            next_poll: None,
            paused_until: None,
            next_warning: None,
            refused_since_warning: 0,
            numa_nodes: HashMap::new(),
        })
    }

    fn watch(&self, flags: EpollFlags) {
        let changed = self
            .epoll
            .modify(&self.listener, &mut EpollEvent::new(flags, 0));
        if let Err(error) = changed {
            tracing::error!(%error, address = %self.address, "cannot watch the listener");
        }
    }

    fn pause(&mut self, until: Instant) {
        self.paused_until = Some(until);
        self.watch(EpollFlags::empty());
    }

    /// Accepts one connection: `None` when there is none, or not now.
    fn accept(&mut self, now: Instant) -> Option<(TcpStream, SocketAddr)> {
        if let Err(at) = self.bucket.take(now) {
            self.pause(at);
            return None;
        }
        let error = match self.listener.accept() {
            Ok(accepted) => return Some(accepted),
            Err(error) => error,
        };
        self.bucket.put_back();
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EAGAIN) => None,
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
                count(&self.stats.accept_errors);
                self.warn(
                    now,
                    "cannot accept: raise the limit of open files",
                    Some(&error),
                );
                self.pause(now + BACK_OFF);
                None
            }
            // The connection was gone before it was accepted (ECONNABORTED and kin): that is
            // its own affair, the next poll takes the next one.
            _ => None,
        }
    }

    #[cold]
    fn warn(&mut self, now: Instant, what: &str, error: Option<&io::Error>) {
        self.refused_since_warning += 1;
        if self.next_warning.is_some_and(|at| now < at) {
            return;
        }
        self.next_warning = Some(now + WARN_INTERVAL);
        let error = error.map(ToString::to_string);
        tracing::warn!(
            address = %self.address,
            times = self.refused_since_warning,
            error,
            "{what}"
        );
        self.refused_since_warning = 0;
    }

    fn connection(
        &mut self,
        stream: TcpStream,
        remote: SocketAddr,
        now: Instant,
    ) -> Option<NewConnection> {
        count(&self.stats.accepted);
        let Some(ticket) = ConnectionTicket::take(&self.stats, self.options.max_connections) else {
            count(&self.stats.refused_at_limit);
            self.warn(
                now,
                "a connection was refused: there are max_connections of them",
                None,
            );
            return None;
        };
        // A peer that is gone already fails here; there is nobody to tell.
        let local = stream.local_addr().ok()?;
        socket::set_up(&stream, remote, &self.options).ok()?;
        Some(NewConnection {
            transport: self.id,
            peer: Peer {
                listener: Arc::clone(&self.address),
                local: local.to_string(),
                remote: remote.to_string(),
            },
            numa_node: self.numa_node(local.ip()),
            io: Box::new(Accepted { stream, ticket }),
        })
    }

    fn numa_node(&mut self, local: IpAddr) -> Option<u32> {
        if let Some(node) = self.numa_nodes.get(&local) {
            return *node;
        }
        if self.numa_nodes.len() == NUMA_CACHE_MAX {
            self.numa_nodes.clear();
        }
        let node = socket::numa_node_of(local);
        self.numa_nodes.insert(local, node);
        node
    }
}

impl Acceptor for TcpAcceptor {
    fn poll(&mut self, now: Instant, accepted: &mut dyn FnMut(NewConnection)) -> usize {
        if self.next_poll.is_some_and(|at| now < at) {
            return 0;
        }
        if let Some(until) = self.paused_until {
            if now < until {
                return 0;
            }
            self.paused_until = None;
            self.watch(EpollFlags::EPOLLIN);
        }
        let mut taken = 0;
        while taken < BATCH {
            let Some((stream, remote)) = self.accept(now) else {
                break;
            };
            taken += 1;
            if let Some(connection) = self.connection(stream, remote, now) {
                accepted(connection);
            }
        }
        self.next_poll = (taken < BATCH).then(|| now + POLL_INTERVAL);
        taken
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.paused_until
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.0.as_fd())
    }

    fn local_address(&self) -> String {
        self.local.to_string()
    }

    fn socket(&self) -> Option<OwnedFd> {
        self.listener.try_clone().ok().map(OwnedFd::from)
    }
}
