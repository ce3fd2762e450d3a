//! A listening address: checking requests to connect, within a rate and a number.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric_wire::TransportAddress;
use fabric_wire::rdma::{CmStatus, ConnectReject, ConnectRequest};
use nvmf::transport::{Acceptor, NewConnection, Peer, TransportId};
use verbs::{CmChannel, CmEvent, CmEventKind, CmId, ConnParam, Provider};

use crate::RdmaOptions;
use crate::accepted::{Accepted, ConnectionTicket};
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

/// The acceptor of one address.
#[derive(Debug)]
pub(crate) struct RdmaAcceptor {
    transport: TransportId,
    address: Arc<TransportAddress>,
    local: String,
    // Before the channel that it reports to.
    _listener: Box<dyn CmId>,
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
        provider: &dyn Provider,
        options: &Arc<RdmaOptions>,
        stats: &Arc<RdmaStats>,
    ) -> io::Result<Self> {
        let socket_address = address
            .socket_addr()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let mut channel = provider.cm_channel()?;
        let backlog = options.acceptor_backlog.into();
        let listener = channel.listen(0, socket_address, backlog)?;
        let local = listener.local_addr().unwrap_or(socket_address);
        Ok(Self {
            transport,
            address: Arc::clone(address),
            local: local.to_string(),
            _listener: listener,
            channel,
            rate: Rate::new(options.accept_rate_per_s),
            options: Arc::clone(options),
            stats: Arc::clone(stats),
            next_poll: None,
            paused_until: None,
            next_warning: None,
        })
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
        let CmEventKind::ConnectRequest { id, param } = event.kind else {
            // What became of a request that another thread has taken over.
            return;
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
        self.paused_until
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.channel.fd()
    }

    fn local_address(&self) -> String {
        self.local.clone()
    }
}
