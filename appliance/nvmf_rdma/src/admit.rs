//! New connections: what they need of their device, and the answer to the host.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use fabric_wire::rdma::{CmStatus, ConnectAccept, ConnectReject};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nvmf::transport::{NewConnection, Peer};
use verbs::{ConnParam, INLINE_LEN, QpOptions};

use crate::accepted::Accepted;
use crate::connection::{Connection, ConnectionParts, send_queue_len};
use crate::group::{GroupIo, RdmaGroup, is_half_open};
use crate::group_device::{DeviceError, GroupDevice};
use crate::memory::MemorySlot;
use crate::stats::count;

impl RdmaGroup {
    pub(crate) fn add(&mut self, connection: NewConnection, now: Instant) {
        let NewConnection { peer, io, .. } = connection;
        let Ok(accepted) = io.downcast::<Accepted>() else {
            tracing::error!(
                peer = peer.remote,
                "a connection of another transport was closed"
            );
            return;
        };
        self.now = Some(now);
        let remote = peer.remote.clone();
        let mut accepted = *accepted;
        let Err(error) = self.accept(&mut accepted, peer) else {
            return;
        };
        count(&self.totals.refused_at_limit);
        let reject = ConnectReject::from(CmStatus::NoResources);
        // A host that is gone needs no answer.
        if let Some(mut id) = accepted.id.take() {
            let _ = id.reject(&reject.to_bytes());
        }
        if let Some(untold) = self.may_warn() {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, peer = remote, untold, "a connection was rejected");
        }
    }

    fn accept(&mut self, accepted: &mut Accepted, peer: Peer) -> Result<(), DeviceError> {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        let id = self.slab.next_id().ok_or(io::ErrorKind::OutOfMemory);
        let id = id.map_err(io::Error::from)?;
        let device_of = accepted.id.as_ref().and_then(|id| id.device());
        let index = self.device_index(&device_of.ok_or_else(gone)?)?;
        let device = self.devices[index].as_mut().ok_or_else(gone)?;
        let caps = device.shared.device.info().caps;
        let depth = accepted.depth;
        let is_shared = device.receives.is_some();
        let sends = send_queue_len(depth, caps.max_qp_wr);
        let receives = if is_shared { 0 } else { u32::from(depth) };
        device.reserve_completions(sends + receives)?;
        let made = Self::make(accepted, device, &self.io, (sends, receives));
        let (qp, set, response_slots) = match made {
            Ok(made) => made,
            Err(error) => {
                device.release_completions(sends + receives);
                return Err(error);
            }
        };
        let read_depth = u32::from(accepted.param.initiator_depth).min(caps.max_qp_init_rd_atom);
        let param = ConnParam {
            responder_resources: 0,
            initiator_depth: u8::try_from(read_depth).unwrap_or(u8::MAX),
            retry_count: self.io.options.retry_count,
            rnr_retry_count: self.io.options.rnr_retry_count,
        };
        let has_inline = response_slots.is_empty();
        let cm = accepted.id.take().ok_or_else(gone)?;
        let qp_num = qp.qp_num();
        let mut connection = Box::new(Connection::new(ConnectionParts {
            id,
            peer,
            device: index,
            qp,
            cm,
            qid: accepted.request.qid,
            depth,
            receives: set,
            read_depth: u16::from(param.initiator_depth),
            send_queue_len: sends,
            has_inline,
            has_send_with_inv: caps.has_send_with_inv,
            response_slots,
            ticket: accepted.ticket.take().ok_or_else(gone)?,
        }));
        if !connection.post(device, &mut self.io) {
            release(connection, device);
            return Err(gone().into());
        }
        let data = ConnectAccept { crqsize: depth }.to_bytes();
        let answered = self
            .channel
            .adopt(id.0.into(), &mut *connection.cm)
            .and_then(|()| connection.cm.accept(&param, &data));
        if let Err(error) = answered {
            release(connection, device);
            return Err(error.into());
        }
        device.connections += 1;
        if let Some(shared) = &mut device.receives {
            shared.owners.insert(qp_num, id);
        }
        self.slab.insert(connection);
        let now = self.now();
        let slab = &self.slab;
        self.half_open.add(now, id, |id| is_half_open(slab, id));
        self.idle_polls = 0;
        Ok(())
    }

    /// The queue pair, its receives and the memory of its responses.
    #[expect(clippy::type_complexity, reason = "three parts of one connection")]
    fn make(
        accepted: &mut Accepted,
        device: &mut GroupDevice,
        io: &GroupIo,
        (max_send_wr, max_recv_wr): (u32, u32),
    ) -> Result<
        (
            Box<dyn verbs::Qp>,
            Option<crate::receive::ReceiveSet>,
            Vec<MemorySlot>,
        ),
        DeviceError,
    > {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        let id = accepted.id.as_mut().ok_or_else(gone)?;
        // The kernel's own choice stands where the option cannot be set.
        if io.options.ack_timeout > 0 {
            let _ = id.set_ack_timeout(io.options.ack_timeout);
        }
        if io.options.tos > 0 {
            let _ = id.set_tos(io.options.tos);
        }
        let srq = device.receives.as_ref().map(|shared| &shared.srq);
        let max_inline_data = if io.options.inline_responses {
            INLINE_LEN as u32
        } else {
            0
        };
        let qp = id.create_qp(&QpOptions {
            pd: &device.shared.pd,
            send_cq: &device.cq,
            recv_cq: &device.cq,
            srq,
            max_send_wr,
            max_recv_wr,
            max_inline_data,
        })?;
        let mut set = match device.receives {
            Some(_) => None,
            None => Some(device.receive_set(max_recv_wr)?),
        };
        let mut slots = Vec::new();
        if !io.options.inline_responses || (qp.max_inline() as usize) < INLINE_LEN {
            for _ in 0..accepted.depth {
                match device.memory.capsules.take() {
                    Ok(slot) => slots.push(slot),
                    Err(error) => {
                        for slot in slots {
                            device.memory.capsules.give_back(slot);
                        }
                        if let Some(set) = &mut set {
                            set.release(&mut device.memory);
                        }
                        return Err(error.into());
                    }
                }
            }
        }
        Ok((qp, set, slots))
    }

    /// The index of a device; it is made when its first connection comes.
    fn device_index(&mut self, device: &Arc<dyn verbs::Device>) -> Result<usize, DeviceError> {
        let name = &device.info().name;
        let is_it = |known: &Option<GroupDevice>| {
            known
                .as_ref()
                .is_some_and(|known| known.shared.device.info().name == *name && !known.is_dead)
        };
        if let Some(index) = self.devices.iter().position(is_it) {
            return Ok(index);
        }
        let shared = self.shared.get(device, &self.iobuf)?;
        let made = GroupDevice::new(shared, &self.iobuf, &self.io.options)?;
        for fd in made.wake_fds() {
            self.epoll
                .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))
                .map_err(io::Error::from)?;
        }
        if let Some(fd) = made.shared.device.async_fd() {
            // Another device's descriptor of the same number cannot be in there: they leave by
            // being closed. This device may be, from before.
            match self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0)) {
                Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
        let free = self.devices.iter().position(Option::is_none);
        let index = free.unwrap_or_else(|| {
            self.devices.push(None);
            self.devices.len() - 1
        });
        self.devices[index] = Some(made);
        Ok(index)
    }
}

/// Gives back what a connection has of its device. The queue pair goes first: then nothing reaches
/// the memory any more.
pub(crate) fn release(connection: Box<Connection>, device: &mut GroupDevice) {
    let connection = *connection;
    if let Some(shared) = &mut device.receives {
        shared.owners.remove(&connection.qp.qp_num());
    }
    let receives = connection
        .receives
        .as_ref()
        .map_or(0, |_| u32::from(connection.depth));
    device.release_completions(connection.send_queue_len + receives);
    drop(connection.qp);
    drop(connection.requests);
    if let Some(mut set) = connection.receives {
        set.release(&mut device.memory);
    }
    for slot in connection.response_slots {
        device.memory.capsules.give_back(slot);
    }
}
