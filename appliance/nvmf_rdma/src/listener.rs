//! A listening address: checking requests to connect, within a rate and a number.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fabric_wire::TransportAddress;
use fabric_wire::rdma::{CmStatus, ConnectReject, ConnectRequest};
use nvmf::transport::{Acceptor, NewConnection, Peer, TransportId};
use verbs::{CmChannel, CmEvent, CmEventKind, CmId, ConnParam};

use crate::RdmaOptions;
use crate::accepted::{Accepted, ConnectionTicket};
use crate::memory::Devices;
use crate::stats::{RdmaStats, count};
use crate::timeouts::Rate;

/// A busy group looks for requests this often. An idle one is woken by the descriptor.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// Requests answered in one poll; the rest is for the next, so that I/O goes on.
const BATCH: usize = 32;
/// Refusals are told in the log at most this often.
const WARN_INTERVAL: Duration = Duration::from_secs(10);
/// The shortest queue that commands can go through.
const ENTRIES_MIN: u16 = 2;

/// After its device was removed an address is tried again so soon, then after twice the time each,
/// up to the longest.
const RETRY_INTERVAL_MIN: Duration = Duration::from_secs(1);
const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(8);

/// Addresses of a transport at which nothing listens although it should, and why. Written when a
/// device goes or comes.
#[derive(Debug, Default)]
pub(crate) struct LostListeners(Mutex<BTreeMap<String, String>>);

impl LostListeners {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn reason(&self, address: &TransportAddress) -> Option<String> {
        self.lock().get(&address.to_string()).cloned()
    }
}

/// An address that is to be tried again.
#[derive(Debug)]
struct Retry {
    at: Instant,
    interval: Duration,
}

/// The acceptor of one address.
#[derive(Debug)]
pub(crate) struct RdmaAcceptor {
    transport: TransportId,
    address: Arc<TransportAddress>,
    /// Where it listens, with port 0 resolved.
    socket_address: SocketAddr,
    // Before the channel that it reports to. `None` while the device is away.
    listener: Option<Box<dyn CmId>>,
    retry: Option<Retry>,
    lost: Arc<LostListeners>,
    devices: Arc<Devices>,
    channel: Box<dyn CmChannel>,
    options: Arc<RdmaOptions>,
    stats: Arc<RdmaStats>,
    rate: Rate,
    next_poll: Option<Instant>,
    paused_until: Option<Instant>,
    next_warning: Option<Instant>,
}

impl RdmaAcceptor {
    pub(crate) fn new(
        transport: TransportId,
        address: &Arc<TransportAddress>,
        devices: &Arc<Devices>,
        options: &Arc<RdmaOptions>,
        stats: &Arc<RdmaStats>,
        lost: &Arc<LostListeners>,
    ) -> io::Result<Self> {
        let socket_address = address
            .socket_addr()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let mut channel = devices.provider.cm_channel()?;
        let backlog = options.acceptor_backlog.into();
        let listener = channel.listen(0, socket_address, backlog)?;
        let socket_address = listener.local_addr().unwrap_or(socket_address);
        Ok(Self {
            transport,
            address: Arc::clone(address),
            socket_address,
            listener: Some(listener),
            retry: None,
            lost: Arc::clone(lost),
            devices: Arc::clone(devices),
            channel,
            rate: Rate::new(options.accept_rate_per_s),
            options: Arc::clone(options),
            stats: Arc::clone(stats),
            next_poll: None,
            paused_until: None,
            next_warning: None,
        })
    }

    /// The device of the address is gone. A listener at any address has none: the kernel takes the
    /// devices that are there.
    #[cold]
    fn lose(&mut self, now: Instant) {
        self.devices.look_for_removed();
        if self.socket_address.ip().is_unspecified() || self.listener.take().is_none() {
            return;
        }
        let interval = RETRY_INTERVAL_MIN;
        let at = now + interval;
        self.retry = Some(Retry { at, interval });
        let reason = "its RDMA device was removed; it listens again when that is back";
        self.lost
            .lock()
            .insert(self.address.to_string(), reason.to_owned());
        tracing::warn!(address = %self.address, "a listener has lost its RDMA device");
    }

    #[cold]
    fn listen_again(&mut self, interval: Duration, now: Instant) {
        let backlog = self.options.acceptor_backlog.into();
        match self.channel.listen(0, self.socket_address, backlog) {
            Ok(listener) => {
                self.listener = Some(listener);
                self.retry = None;
                self.lost.lock().remove(&self.address.to_string());
                tracing::info!(address = %self.address, "a listener is back with its RDMA device");
            }
            // The device is told of as gone; that it still is, is no news.
            Err(_) => {
                let interval = (interval * 2).min(RETRY_INTERVAL_MAX);
                let at = now + interval;
                self.retry = Some(Retry { at, interval });
            }
        }
    }

    #[cold]
    fn reject(&mut self, mut id: Box<dyn CmId>, status: CmStatus, now: Instant) {
        let counter = if status == CmStatus::NoResources {
            &self.stats.refused_at_limit
        } else {
            &self.stats.rejected
        };
        count(counter);
        // A host that is gone needs no answer.
        let _ = id.reject(&ConnectReject::from(status).to_bytes());
        if self.next_warning.is_none_or(|at| at <= now) {
            self.next_warning = Some(now + WARN_INTERVAL);
            let peer = id.remote_addr().map(|peer| peer.to_string());
            tracing::warn!(address = %self.address, peer, %status, "a connection was rejected");
        }
    }

    /// Entries of the queue that a request asks for, as far as they can be had.
    fn agree(&self, request: &ConnectRequest, param: &ConnParam) -> Result<u16, CmStatus> {
        let options = &self.options;
        let max = if request.qid.is_admin() {
            options.max_aq_depth
        } else if request.qid.0 > options.max_io_qpairs_per_ctrlr {
            return Err(CmStatus::InvalidQid);
        } else {
            options.max_queue_depth
        };
        let sends = request.hsqsize.saturating_add(1);
        if sends < ENTRIES_MIN {
            return Err(CmStatus::InvalidHsqsize);
        }
        if request.hrqsize < ENTRIES_MIN {
            return Err(CmStatus::InvalidHrqsize);
        }
        if param.initiator_depth == 0 {
            // Nothing could be read from the host.
            return Err(CmStatus::InvalidIrd);
        }
        Ok(sends.min(request.hrqsize).min(max))
    }

    fn connection(
        &mut self,
        event: CmEvent,
        now: Instant,
        accepted: &mut dyn FnMut(NewConnection),
    ) {
        let (id, param) = match event.kind {
            CmEventKind::ConnectRequest { id, param } => (id, param),
            CmEventKind::DeviceRemoval => return self.lose(now),
            // What became of a request that another thread has taken over.
            _ => return,
        };
        count(&self.stats.requested);
        let request = ConnectRequest::parse(&event.private_data);
        let agreed = request.and_then(|request| Ok((request, self.agree(&request, &param)?)));
        let (request, depth) = match agreed {
            Ok(agreed) => agreed,
            Err(status) => return self.reject(id, status, now),
        };
        let ticket = ConnectionTicket::take(&self.stats, self.options.max_connections);
        let Some(ticket) = ticket else {
            return self.reject(id, CmStatus::NoResources, now);
        };
        let Some(device) = id.device() else {
            return self.reject(id, CmStatus::NoResources, now);
        };
        let show = |address: Option<std::net::SocketAddr>| {
            address.map_or_else(String::new, |address| address.to_string())
        };
        accepted(NewConnection {
            transport: self.transport,
            peer: Peer {
                listener: Arc::clone(&self.address),
                local: show(id.local_addr()),
                remote: show(id.remote_addr()),
            },
            numa_node: device.info().numa_node,
            io: Box::new(Accepted {
                id: Some(id),
                request,
                param,
                depth,
                ticket: Some(ticket),
            }),
        });
    }
}

impl Acceptor for RdmaAcceptor {
    fn poll(&mut self, now: Instant, accepted: &mut dyn FnMut(NewConnection)) -> usize {
        if let Some(&Retry { at, interval }) = self.retry.as_ref()
            && at <= now
        {
            self.listen_again(interval, now);
        }
        if self.next_poll.is_some_and(|at| now < at) {
            return 0;
        }
        if self.paused_until.is_some_and(|at| now < at) {
            return 0;
        }
        self.paused_until = None;
        let mut taken = 0;
        while taken < BATCH {
            match self.channel.poll() {
                Ok(Some(event)) => {
                    self.connection(event, now, accepted);
                    if let Err(at) = self.rate.take(now) {
                        self.paused_until = Some(at);
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, address = %self.address, "cannot accept");
                    self.paused_until = Some(now + WARN_INTERVAL);
                    break;
                }
            }
            taken += 1;
        }
        self.next_poll = (taken < BATCH).then(|| now + POLL_INTERVAL);
        taken
    }

    fn next_deadline(&self) -> Option<Instant> {
        let retry = self.retry.as_ref().map(|retry| retry.at);
        self.paused_until.into_iter().chain(retry).min()
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.channel.fd()
    }

    fn local_address(&self) -> String {
        self.socket_address.to_string()
    }
}

impl Drop for RdmaAcceptor {
    fn drop(&mut self) {
        if self.retry.is_some() {
            self.lost.lock().remove(&self.address.to_string());
        }
    }
}
