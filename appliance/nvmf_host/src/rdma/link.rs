//! From an address to a queue pair that commands go through.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use fabric_wire::rdma::{CmStatus, ConnectAccept, ConnectReject, ConnectRequest, RESPONSE_LEN};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nvme_spec::Cntlid;
use verbs::{
    CmChannel, CmEvent, CmEventKind, CmId, CompChannel, ConnParam, Cq, Mw, Provider, Qp, QpOptions,
    RecvWr, SgeList, VerbsError,
};

use super::memory::{MemoryError, QueueMemory};
use crate::error::HostError;
use crate::queue::QueueConfig;

/// Reads of the controller that this side serves at a time, at most.
const READS_MAX: u32 = 16;
/// Retries of a message that is not acknowledged.
const RETRIES: u8 = 7;
/// Retries without end of a message for which the controller has no receive.
const RNR_RETRIES: u8 = 7;

/// What a connection is made of. The order is that of dropping: the queue pair first, so that the device
/// reaches no memory that is given back after it.
pub(super) struct Endpoint {
    pub(super) qp: Box<dyn Qp>,
    pub(super) windows: Vec<Box<dyn Mw>>,
    pub(super) memory: QueueMemory,
    pub(super) cq: Arc<dyn Cq>,
    pub(super) comp_channel: Arc<dyn CompChannel>,
}

/// How far connecting is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Address,
    Route,
    Connect,
    Established,
}

/// The way to a controller.
pub(super) struct Link {
    pub(super) endpoint: Option<Endpoint>,
    id: Box<dyn CmId>,
    channel: Box<dyn CmChannel>,
    epoll: Epoll,
    pub(super) step: Step,
    timeout_ms: u32,
}

/// Why there is no connection.
pub(super) enum LinkError {
    Verbs(&'static str, VerbsError),
    Memory(MemoryError),
    /// The controller, or somebody on the way, said no.
    Rejected(String),
    /// It was there, and is gone.
    Ended,
}

fn failed(operation: &'static str) -> impl FnOnce(VerbsError) -> LinkError {
    move |error| LinkError::Verbs(operation, error)
}

impl LinkError {
    pub(super) fn into_host_error(self, config: &QueueConfig) -> HostError {
        let address = config.address.to_string();
        let qid = config.qid;
        match self {
            Self::Verbs(operation, source) => HostError::Rdma {
                operation,
                address,
                source: Arc::new(source.into()),
            },
            Self::Memory(source) => HostError::Rdma {
                operation: "memory",
                address,
                source: Arc::new(std::io::Error::other(source)),
            },
            Self::Rejected(reason) => HostError::RdmaRejected {
                qid,
                address,
                reason,
            },
            Self::Ended => HostError::Closed { address, qid },
        }
    }
}

impl Link {
    /// Begins to connect.
    pub(super) fn begin(provider: &dyn Provider, config: &QueueConfig) -> Result<Self, LinkError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC);
        let epoll = epoll.map_err(|errno| {
            let error = VerbsError::call("epoll_create", "a queue", errno.into());
            LinkError::Verbs("connect", error)
        })?;
        let mut channel = provider.cm_channel().map_err(failed("connect"))?;
        if let Some(fd) = channel.fd() {
            // Fails for want of memory only; the queue is then polled at its deadlines.
            let _ = epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0));
        }
        let timeout_ms = u32::try_from(config.connect_timeout.as_millis()).unwrap_or(u32::MAX);
        let mut id = channel
            .resolve(0, None, config.socket_addr, timeout_ms)
            .map_err(failed("resolve the address"))?;
        if let Some(tos) = config.tos {
            // The system's own choice stands where it cannot be set.
            let _ = id.set_tos(tos);
        }
        Ok(Self {
            endpoint: None,
            id,
            channel,
            epoll,
            step: Step::Address,
            timeout_ms,
        })
    }

    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Goes on as far as events tell. `true` if there was one.
    pub(super) fn poll(&mut self, config: &QueueConfig) -> Result<bool, LinkError> {
        let mut worked = false;
        while let Some(event) = self.channel.poll().map_err(failed("read an event"))? {
            worked = true;
            self.take(event, config)?;
        }
        Ok(worked)
    }

    fn take(&mut self, event: CmEvent, config: &QueueConfig) -> Result<(), LinkError> {
        match event.kind {
            CmEventKind::AddrResolved if self.step == Step::Address => {
                self.step = Step::Route;
                let resolved = self.id.resolve_route(self.timeout_ms);
                resolved.map_err(failed("resolve the route"))
            }
            CmEventKind::RouteResolved if self.step == Step::Route => {
                self.step = Step::Connect;
                self.connect(config)
            }
            CmEventKind::Established { .. } if self.step == Step::Connect => {
                let granted = ConnectAccept::parse(&event.private_data).map_err(|status| {
                    LinkError::Rejected(format!("its private data is wrong: {status}"))
                })?;
                if granted.crqsize <= config.depth {
                    // Commands would find no receive; they are tried again, which is slow.
                    let wanted = config.depth + 1;
                    let crqsize = granted.crqsize;
                    let reason = format!("it receives {crqsize} commands at a time, not {wanted}");
                    return Err(LinkError::Rejected(reason));
                }
                self.step = Step::Established;
                Ok(())
            }
            CmEventKind::Rejected => Err(LinkError::Rejected(rejection(&event))),
            CmEventKind::Failed => {
                let errno = event.status.unsigned_abs() as i32;
                let error = std::io::Error::from_raw_os_error(errno);
                let object = config.socket_addr.to_string();
                let call = match self.step {
                    Step::Address => "rdma_resolve_addr",
                    Step::Route => "rdma_resolve_route",
                    Step::Connect | Step::Established => "rdma_connect",
                };
                let error = VerbsError::call(call, object, error);
                Err(LinkError::Verbs("connect", error))
            }
            CmEventKind::Disconnected | CmEventKind::DeviceRemoval => Err(LinkError::Ended),
            _ => Ok(()),
        }
    }

    /// Makes the queue pair, posts receives, and asks the controller.
    fn connect(&mut self, config: &QueueConfig) -> Result<(), LinkError> {
        let device = self.id.device().ok_or(LinkError::Ended)?;
        let caps = device.info().caps;
        let make = failed("make a queue pair");
        let (slots, responses) = (config.depth, config.depth + 1);
        // A command is a bind, a send and perhaps an invalidation.
        let sends = (3 * u32::from(slots) + 1).min(caps.max_qp_wr);
        let made = (|| {
            let pd = device.alloc_pd()?;
            let comp_channel = device.create_comp_channel()?;
            let cq = device.create_cq(sends + u32::from(responses), Some(&comp_channel), 0)?;
            let qp = self.id.create_qp(&QpOptions {
                pd: &pd,
                send_cq: &cq,
                recv_cq: &cq,
                srq: None,
                max_send_wr: sends,
                max_recv_wr: responses.into(),
                max_inline_data: 0,
            })?;
            let mut windows = Vec::new();
            if config.memory_windows && caps.has_mw_type_2 && sends > 3 * u32::from(slots) {
                for _ in 0..slots {
                    windows.push(pd.alloc_mw()?);
                }
            }
            Ok((pd, comp_channel, cq, qp, windows))
        })();
        let (pd, comp_channel, cq, qp, windows) = made.map_err(make)?;
        let memory = QueueMemory::new(&pd, slots, responses, !windows.is_empty());
        let memory = memory.map_err(LinkError::Memory)?;
        // As above: without it the queue is polled at its deadlines.
        let _ = self
            .epoll
            .add(comp_channel.fd(), EpollEvent::new(EpollFlags::EPOLLIN, 0));
        let endpoint = self.endpoint.insert(Endpoint {
            qp,
            windows,
            memory,
            cq,
            comp_channel,
        });
        let receives: Vec<RecvWr> = (0..u32::from(responses))
            .map(|index| endpoint.receive(index))
            .collect();
        endpoint.qp.post_recv(&receives).map_err(|error| {
            let error = VerbsError::call("ibv_post_recv", "a queue", error.source);
            LinkError::Verbs("post receives", error)
        })?;
        let reads = caps.max_qp_rd_atom.clamp(1, READS_MAX);
        let param = ConnParam {
            responder_resources: reads as u8,
            initiator_depth: 0,
            retry_count: RETRIES,
            rnr_retry_count: RNR_RETRIES,
        };
        let request = ConnectRequest {
            qid: config.qid,
            hrqsize: responses,
            hsqsize: slots,
            cntlid: if config.qid.is_admin() {
                Cntlid(0xffff)
            } else {
                config.cntlid
            },
        };
        let asked = self.id.connect(&param, &request.to_bytes());
        asked.map_err(failed("connect"))
    }

    /// Ends the connection: the device lets go of all memory.
    pub(super) fn end(&mut self) {
        let _ = self.id.disconnect();
        self.endpoint = None;
    }
}

impl Endpoint {
    /// The receive of a response.
    pub(super) fn receive(&self, index: u32) -> RecvWr {
        let sge = self.memory.response(index, RESPONSE_LEN as u32);
        RecvWr {
            wr_id: u64::from(index) | super::queue::RECEIVE,
            sges: SgeList::one(sge),
        }
    }
}

/// Why the controller refused.
fn rejection(event: &CmEvent) -> String {
    match ConnectReject::parse(&event.private_data) {
        Ok(reject) => match CmStatus::from_wire(reject.sts) {
            Some(status) => status.to_string(),
            None => format!("status {:#x}", reject.sts),
        },
        Err(_) => format!(
            "nobody listens there, or not for nvme (reason {})",
            event.status
        ),
    }
}
