//! The connection manager of a fabric.

use std::any::Any;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use verbs::{CmChannel, CmEvent, CmEventKind, CmId, ConnParam, Device, Qp, QpOptions, VerbsError};

use crate::Shared;
use crate::objects::{self, EmuQp};
use crate::world::{CmChannelRec, IdRec, IdState, PendingKind, QpState, Signal, World};

/// The connection manager's reason of a rejection by the peer's program.
const REJECTED_BY_CONSUMER: i32 = 28;
/// The reason where nobody listens.
const REJECTED_NO_LISTENER: i32 = 8;
const EINVAL: i32 = 22;
const EADDRINUSE: i32 = 98;
const EADDRNOTAVAIL: i32 = 99;
const ENETUNREACH: i32 = 101;

fn failed(call: &'static str, object: impl ToString, errno: i32) -> VerbsError {
    let source = std::io::Error::from_raw_os_error(errno);
    VerbsError::call(call, object.to_string(), source)
}

#[derive(Debug)]
pub(crate) struct EmuCmChannel {
    shared: Arc<Shared>,
    node: usize,
    inner: Arc<ChannelInner>,
}

/// Lives for as long as an identifier reports there.
#[derive(Debug)]
struct ChannelInner {
    shared: Arc<Shared>,
    number: u32,
    signal: Signal,
}

impl Drop for ChannelInner {
    fn drop(&mut self) {
        self.shared.lock().cm_channels.remove(&self.number);
    }
}

impl EmuCmChannel {
    pub(crate) fn open(shared: &Arc<Shared>, node: usize) -> Result<Self, VerbsError> {
        let signal = Signal::new()?;
        let mut world = shared.lock();
        let number = world.number();
        let rec = CmChannelRec {
            pending: VecDeque::new(),
            arrived: VecDeque::new(),
            signal: signal.clone(),
        };
        world.cm_channels.insert(number, rec);
        Ok(Self {
            shared: Arc::clone(shared),
            node,
            inner: Arc::new(ChannelInner {
                shared: Arc::clone(shared),
                number,
                signal,
            }),
        })
    }

    fn id(&self, world: &mut World, context: u64) -> EmuCmId {
        let number = world.number();
        let rec = IdRec {
            node: self.node,
            channel: self.inner.number,
            context,
            device: None,
            local: None,
            remote: None,
            state: IdState::Idle,
            qp: None,
            peer: None,
            param: ConnParam::default(),
        };
        world.ids.insert(number, rec);
        self.own(number)
    }

    fn own(&self, number: u32) -> EmuCmId {
        EmuCmId(Arc::new(IdInner {
            shared: Arc::clone(&self.shared),
            number,
            channel: std::sync::Mutex::new(Arc::clone(&self.inner)),
        }))
    }
}

impl CmChannel for EmuCmChannel {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.inner.signal.0.as_fd())
    }

    fn poll(&mut self) -> Result<Option<CmEvent>, VerbsError> {
        let mut world = self.shared.lock();
        world.step();
        let Some(channel) = world.cm_channels.get_mut(&self.inner.number) else {
            return Ok(None);
        };
        let event = channel.arrived.pop_front();
        if channel.arrived.is_empty() {
            channel.signal.clear();
        }
        let Some(event) = event else { return Ok(None) };
        let Some(about) = world.ids.get(&event.id) else {
            return Ok(None);
        };
        let context = about.context;
        drop(world);
        let kind = match event.kind {
            PendingKind::AddrResolved => CmEventKind::AddrResolved,
            PendingKind::RouteResolved => CmEventKind::RouteResolved,
            PendingKind::ConnectRequest { new, param } => CmEventKind::ConnectRequest {
                id: Box::new(self.own(new)),
                param,
            },
            PendingKind::Established { param } => CmEventKind::Established { param },
            PendingKind::Rejected => CmEventKind::Rejected,
            PendingKind::Failed => CmEventKind::Failed,
            PendingKind::Disconnected => CmEventKind::Disconnected,
            PendingKind::DeviceRemoval => CmEventKind::DeviceRemoval,
        };
        Ok(Some(CmEvent {
            context,
            kind,
            status: event.status,
            private_data: event.private_data,
        }))
    }

    fn listen(
        &mut self,
        context: u64,
        address: SocketAddr,
        _backlog: u32,
    ) -> Result<Box<dyn CmId>, VerbsError> {
        let mut world = self.shared.lock();
        let devices = world.devices_of(self.node);
        let is_ours = |index: &usize| world.devices[*index].address == address.ip();
        if !address.ip().is_unspecified() && !devices.iter().any(is_ours) {
            return Err(failed("rdma_bind_addr", address, EADDRNOTAVAIL));
        }
        let is_taken = world.ids.values().any(|id| {
            let is_listener = id.state == IdState::Listening && id.node == self.node;
            let same_ip = id.local.is_some_and(|local| {
                local.port() == address.port()
                    && (local.ip() == address.ip()
                        || local.ip().is_unspecified()
                        || address.ip().is_unspecified())
            });
            is_listener && same_ip
        });
        if is_taken {
            return Err(failed("rdma_listen", address, EADDRINUSE));
        }
        let mut local = address;
        if local.port() == 0 {
            local.set_port(world.port());
        }
        let id = self.id(&mut world, context);
        let rec = world.ids.get_mut(&id.0.number).expect("just made");
        rec.local = Some(local);
        rec.state = IdState::Listening;
        Ok(Box::new(id))
    }

    fn resolve(
        &mut self,
        context: u64,
        source: Option<SocketAddr>,
        peer: SocketAddr,
        _timeout_ms: u32,
    ) -> Result<Box<dyn CmId>, VerbsError> {
        let mut world = self.shared.lock();
        let devices = world.devices_of(self.node);
        let from = |index: &&usize| {
            source.is_none_or(|source| world.devices[**index].address == source.ip())
        };
        let device = devices.iter().find(from).copied();
        let Some(device) = device else {
            return Err(failed("rdma_resolve_addr", peer, ENETUNREACH));
        };
        let port = world.port();
        let local = SocketAddr::new(world.devices[device].address, port);
        let id = self.id(&mut world, context);
        let rec = world.ids.get_mut(&id.0.number).expect("just made");
        rec.device = Some(device);
        rec.local = Some(local);
        rec.remote = Some(peer);
        rec.state = IdState::Resolved;
        world.notify(id.0.number, PendingKind::AddrResolved, 0, &[]);
        Ok(Box::new(id))
    }

    fn adopt(&mut self, context: u64, id: &mut dyn CmId) -> Result<(), VerbsError> {
        let id = id.as_any_mut().downcast_mut::<EmuCmId>();
        let id = id.ok_or(VerbsError::Foreign {
            what: "an identifier",
        })?;
        let mut world = self.shared.lock();
        let number = id.0.number;
        let Some(rec) = world.ids.get_mut(&number) else {
            return Err(failed("rdma_migrate_id", "an identifier", EINVAL));
        };
        let old = std::mem::replace(&mut rec.channel, self.inner.number);
        rec.context = context;
        let (mut pending, mut arrived) = (VecDeque::new(), VecDeque::new());
        if let Some(from) = world.cm_channels.get_mut(&old) {
            (pending, from.pending) = std::mem::take(&mut from.pending)
                .into_iter()
                .partition(|event| event.id == number);
            (arrived, from.arrived) = std::mem::take(&mut from.arrived)
                .into_iter()
                .partition(|event| event.id == number);
        }
        if let Some(to) = world.cm_channels.get_mut(&self.inner.number) {
            to.pending.extend(pending);
            if !arrived.is_empty() {
                to.arrived.extend(arrived);
                to.signal.set();
            }
        }
        drop(world);
        let mut channel =
            id.0.channel
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        let old = std::mem::replace(&mut *channel, Arc::clone(&self.inner));
        drop(channel);
        drop(old);
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[derive(Debug)]
struct IdInner {
    shared: Arc<Shared>,
    number: u32,
    channel: std::sync::Mutex<Arc<ChannelInner>>,
}

impl Drop for IdInner {
    fn drop(&mut self) {
        let mut world = self.shared.lock();
        world.end_id(self.number);
        world.ids.remove(&self.number);
        for channel in world.cm_channels.values_mut() {
            let is_of = |event: &crate::world::PendingEvent| event.id != self.number;
            channel.pending.retain(is_of);
            channel.arrived.retain(is_of);
        }
    }
}

/// An identifier.
#[derive(Debug)]
struct EmuCmId(Arc<IdInner>);

impl EmuCmId {
    fn with<R>(&self, f: impl FnOnce(&mut World, u32) -> R) -> R {
        f(&mut self.0.shared.lock(), self.0.number)
    }
}

impl World {
    /// Ends a connection from this side, or refuses it.
    fn end_id(&mut self, number: u32) {
        let Some(id) = self.ids.get_mut(&number) else {
            return;
        };
        let state = std::mem::replace(&mut id.state, IdState::Ended);
        let (peer, qp) = (id.peer, id.qp);
        match state {
            IdState::Connected => {
                if let Some(qp) = qp {
                    self.fail_qp(qp);
                }
                self.notify(number, PendingKind::Disconnected, 0, &[]);
                self.peer_ended(peer, PendingKind::Disconnected, 0);
            }
            IdState::Connecting => {
                self.peer_ended(peer, PendingKind::Rejected, REJECTED_BY_CONSUMER);
            }
            _ => {}
        }
    }

    fn peer_ended(&mut self, peer: Option<u32>, kind: PendingKind, status: i32) {
        let Some(peer) = peer else { return };
        let Some(rec) = self.ids.get_mut(&peer) else {
            return;
        };
        if matches!(rec.state, IdState::Connected | IdState::Connecting) {
            rec.state = IdState::Ended;
            self.notify(peer, kind, status, &[]);
        }
    }

    fn connect(&mut self, number: u32, param: &ConnParam, data: &[u8]) -> Result<(), i32> {
        let id = self.ids.get_mut(&number).ok_or(EINVAL)?;
        if id.state != IdState::Resolved {
            return Err(EINVAL);
        }
        id.state = IdState::Connecting;
        id.param = *param;
        let (local, remote) = (id.local, id.remote.ok_or(EINVAL)?);
        let device = self.devices.iter().position(|device| {
            device.address == remote.ip() && !device.is_removed && device.is_port_up
        });
        let Some(device) = device else {
            self.ids.get_mut(&number).ok_or(EINVAL)?.state = IdState::Ended;
            self.notify(number, PendingKind::Failed, -110, &[]);
            return Ok(());
        };
        let node = self.devices[device].node;
        let listener = self.ids.iter().find(|(_, id)| {
            let listens_there = id.local.is_some_and(|local| {
                local.port() == remote.port()
                    && (local.ip() == remote.ip() || local.ip().is_unspecified())
            });
            id.state == IdState::Listening && id.node == node && listens_there
        });
        let Some((&listener, rec)) = listener else {
            self.ids.get_mut(&number).ok_or(EINVAL)?.state = IdState::Ended;
            self.notify(number, PendingKind::Rejected, REJECTED_NO_LISTENER, &[]);
            return Ok(());
        };
        let channel = rec.channel;
        let new = self.number();
        // The depths as the other side sees them.
        let param = ConnParam {
            responder_resources: param.initiator_depth,
            initiator_depth: param.responder_resources,
            ..*param
        };
        self.ids.insert(
            new,
            IdRec {
                node,
                channel,
                context: 0,
                device: Some(device),
                local: Some(remote),
                remote: local,
                state: IdState::Connecting,
                qp: None,
                peer: Some(number),
                param,
            },
        );
        self.ids.get_mut(&number).ok_or(EINVAL)?.peer = Some(new);
        let kind = PendingKind::ConnectRequest { new, param };
        self.notify(listener, kind, 0, data);
        Ok(())
    }

    fn accept(&mut self, number: u32, param: &ConnParam, data: &[u8]) -> Result<(), i32> {
        let id = self.ids.get(&number).ok_or(EINVAL)?;
        let (Some(peer), Some(qp)) = (id.peer, id.qp) else {
            return Err(EINVAL);
        };
        let asked = id.param;
        let peer_rec = self.ids.get(&peer).ok_or(EINVAL)?;
        let state = id.state;
        if state != IdState::Connecting || peer_rec.state != IdState::Connecting {
            return Err(EINVAL);
        }
        let peer_qp = peer_rec.qp.ok_or(EINVAL)?;
        let depth = |mine: u8, theirs: u8| usize::from(mine.min(theirs));
        let near_reads = depth(param.initiator_depth, asked.initiator_depth);
        let far_reads = depth(asked.responder_resources, param.responder_resources);
        for (qp, peer, reads, rnr) in [
            (qp, peer_qp, near_reads, param.rnr_retry_count),
            (peer_qp, qp, far_reads, asked.rnr_retry_count),
        ] {
            let rec = self.qps.get_mut(&qp).ok_or(EINVAL)?;
            rec.peer = Some(peer);
            rec.max_reads = reads;
            rec.rnr_retry_count = rnr;
            if rec.state == QpState::Init {
                rec.state = QpState::Rts;
            }
            self.activate(qp);
        }
        for id in [number, peer] {
            self.ids.get_mut(&id).ok_or(EINVAL)?.state = IdState::Connected;
        }
        let seen_by_peer = ConnParam {
            responder_resources: param.initiator_depth,
            initiator_depth: param.responder_resources,
            ..*param
        };
        let established = PendingKind::Established {
            param: seen_by_peer,
        };
        self.notify(peer, established, 0, data);
        self.notify(number, PendingKind::Established { param: asked }, 0, &[]);
        Ok(())
    }
}

impl CmId for EmuCmId {
    fn device(&self) -> Option<Arc<dyn Device>> {
        self.with(|world, number| {
            let device = world.ids.get(&number)?.device?;
            Some(objects::device(&self.0.shared, world, device))
        })
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        self.with(|world, number| world.ids.get(&number)?.local)
    }

    fn remote_addr(&self) -> Option<SocketAddr> {
        self.with(|world, number| world.ids.get(&number)?.remote)
    }

    fn set_tos(&mut self, _tos: u8) -> Result<(), VerbsError> {
        Ok(())
    }

    fn set_ack_timeout(&mut self, _exponent: u8) -> Result<(), VerbsError> {
        Ok(())
    }

    fn resolve_route(&mut self, _timeout_ms: u32) -> Result<(), VerbsError> {
        self.with(|world, number| {
            world.notify(number, PendingKind::RouteResolved, 0, &[]);
        });
        Ok(())
    }

    fn create_qp(&mut self, options: &QpOptions<'_>) -> Result<Box<dyn Qp>, VerbsError> {
        let device = self.with(|world, number| {
            let id = world.ids.get(&number)?;
            id.device.filter(|_| id.qp.is_none())
        });
        let device = device.ok_or_else(|| failed("rdma_create_qp", "an identifier", EINVAL))?;
        let qp = EmuQp::create(&self.0.shared, device, options)?;
        self.with(|world, number| {
            if let Some(id) = world.ids.get_mut(&number) {
                id.qp = Some(qp.number());
            }
        });
        Ok(Box::new(qp))
    }

    fn connect(&mut self, param: &ConnParam, private_data: &[u8]) -> Result<(), VerbsError> {
        self.with(|world, number| world.connect(number, param, private_data))
            .map_err(|errno| failed("rdma_connect", "an identifier", errno))
    }

    fn accept(&mut self, param: &ConnParam, private_data: &[u8]) -> Result<(), VerbsError> {
        self.with(|world, number| world.accept(number, param, private_data))
            .map_err(|errno| failed("rdma_accept", "an identifier", errno))
    }

    fn reject(&mut self, private_data: &[u8]) -> Result<(), VerbsError> {
        self.with(|world, number| {
            let Some(id) = world.ids.get_mut(&number) else {
                return;
            };
            id.state = IdState::Ended;
            if let Some(peer) = id.peer
                && let Some(rec) = world.ids.get_mut(&peer)
            {
                rec.state = IdState::Ended;
                let kind = PendingKind::Rejected;
                world.notify(peer, kind, REJECTED_BY_CONSUMER, private_data);
            }
        });
        Ok(())
    }

    fn disconnect(&mut self) -> Result<(), VerbsError> {
        self.with(|world, number| world.end_id(number));
        Ok(())
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
