//! Everything that a fabric holds.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use verbs::{
    AsyncEvent, AsyncEventKind, ConnParam, DeviceInfo, PrivateData, RecvWr, SendWr, VerbsError,
    WcStatus, WorkCompletion,
};

use crate::FabricStats;
use crate::memory::{MrRec, MwRec};
use crate::random::Random;

/// A descriptor that is readable while something waits.
#[derive(Clone, Debug)]
pub(crate) struct Signal(pub(crate) Arc<EventFd>);

impl Signal {
    pub(crate) fn new() -> Result<Self, VerbsError> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let fd = EventFd::from_value_and_flags(0, flags)
            .map_err(|errno| VerbsError::call("eventfd", "the double", errno.into()))?;
        Ok(Self(Arc::new(fd)))
    }

    pub(crate) fn set(&self) {
        // It is full only after 2^64 notes.
        let _ = self.0.write(1);
    }

    pub(crate) fn clear(&self) {
        let _ = self.0.read();
    }
}

#[derive(Debug)]
pub(crate) struct DeviceRec {
    pub(crate) node: usize,
    pub(crate) info: DeviceInfo,
    pub(crate) address: IpAddr,
    pub(crate) is_removed: bool,
    pub(crate) is_port_up: bool,
    pub(crate) is_blocked: bool,
    pub(crate) events: VecDeque<AsyncEvent>,
    pub(crate) signal: Option<Signal>,
}

#[derive(Debug)]
pub(crate) struct CqRec {
    pub(crate) device: usize,
    pub(crate) entries: VecDeque<WorkCompletion>,
    pub(crate) capacity: usize,
    pub(crate) is_armed: bool,
    pub(crate) channel: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct ChannelRec {
    pub(crate) notes: usize,
    pub(crate) signal: Signal,
}

#[derive(Debug)]
pub(crate) struct SrqRec {
    pub(crate) pd: u32,
    pub(crate) receives: VecDeque<RecvWr>,
    pub(crate) capacity: usize,
}

/// How far a send work request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Posted,
    /// A read that the peer has been asked for.
    Reading,
    Ended(WcStatus),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    Send(SendWr),
    Bind {
        wr_id: u64,
        rkey: u32,
        mr_key: u32,
        addr: u64,
        len: u64,
        is_writable: bool,
    },
}

impl Work {
    pub(crate) fn wr_id(&self) -> u64 {
        match self {
            Self::Send(wr) => wr.wr_id,
            Self::Bind { wr_id, .. } => *wr_id,
        }
    }

    pub(crate) fn is_signaled(&self) -> bool {
        matches!(self, Self::Send(wr) if wr.is_signaled)
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Posted {
    pub(crate) work: Work,
    pub(crate) stage: Stage,
    pub(crate) tries: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QpState {
    Init,
    Rts,
    Error,
}

#[derive(Debug)]
pub(crate) struct QpRec {
    pub(crate) device: usize,
    pub(crate) pd: u32,
    pub(crate) send_cq: u32,
    pub(crate) recv_cq: u32,
    pub(crate) srq: Option<u32>,
    pub(crate) state: QpState,
    pub(crate) peer: Option<u32>,
    pub(crate) sq: VecDeque<Posted>,
    pub(crate) rq: VecDeque<RecvWr>,
    pub(crate) max_send_wr: usize,
    pub(crate) max_recv_wr: usize,
    /// Reads outstanding at a time.
    pub(crate) max_reads: usize,
    pub(crate) rnr_retry_count: u8,
    pub(crate) has_told_last_wqe: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IdState {
    Idle,
    Listening,
    Resolved,
    /// The passive side, before it accepts; the active side, before it is answered.
    Connecting,
    Connected,
    Ended,
}

#[derive(Debug)]
pub(crate) struct IdRec {
    pub(crate) node: usize,
    pub(crate) channel: u32,
    pub(crate) context: u64,
    pub(crate) device: Option<usize>,
    pub(crate) local: Option<SocketAddr>,
    pub(crate) remote: Option<SocketAddr>,
    pub(crate) state: IdState,
    pub(crate) qp: Option<u32>,
    pub(crate) peer: Option<u32>,
    pub(crate) param: ConnParam,
}

/// An event before it becomes one of [`verbs`]: identifiers are numbers here.
#[derive(Debug)]
pub(crate) struct PendingEvent {
    pub(crate) id: u32,
    pub(crate) kind: PendingKind,
    pub(crate) status: i32,
    pub(crate) private_data: PrivateData,
}

#[derive(Debug)]
pub(crate) enum PendingKind {
    AddrResolved,
    RouteResolved,
    ConnectRequest { new: u32, param: ConnParam },
    Established { param: ConnParam },
    Rejected,
    Failed,
    Disconnected,
    DeviceRemoval,
}

#[derive(Debug)]
pub(crate) struct CmChannelRec {
    /// On their way.
    pub(crate) pending: VecDeque<PendingEvent>,
    /// To be fetched.
    pub(crate) arrived: VecDeque<PendingEvent>,
    pub(crate) signal: Signal,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) is_eager: bool,
    /// Whether the time that is spent in here is counted.
    pub(crate) is_timed: bool,
    pub(crate) time_inside: Duration,
    pub(crate) calls: u64,
    nodes: usize,
    next_number: u32,
    next_port: u16,
    pub(crate) devices: Vec<DeviceRec>,
    pub(crate) pds: BTreeMap<u32, usize>,
    pub(crate) mrs: BTreeMap<u32, MrRec>,
    pub(crate) mws: BTreeMap<u32, MwRec>,
    /// Windows, bound or not.
    pub(crate) windows: usize,
    pub(crate) cqs: BTreeMap<u32, CqRec>,
    pub(crate) channels: BTreeMap<u32, ChannelRec>,
    pub(crate) srqs: BTreeMap<u32, SrqRec>,
    pub(crate) qps: BTreeMap<u32, QpRec>,
    pub(crate) ids: BTreeMap<u32, IdRec>,
    pub(crate) cm_channels: BTreeMap<u32, CmChannelRec>,
    pub(crate) stats: FabricStats,
    pub(crate) scratch: Vec<u8>,
    /// Queue pairs that may have something to do.
    pub(crate) active: Vec<u32>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            is_eager: false,
            is_timed: false,
            time_inside: Duration::ZERO,
            calls: 0,
            nodes: 0,
            next_number: 1,
            next_port: 20_000,
            devices: Vec::new(),
            pds: BTreeMap::new(),
            mrs: BTreeMap::new(),
            mws: BTreeMap::new(),
            windows: 0,
            cqs: BTreeMap::new(),
            channels: BTreeMap::new(),
            srqs: BTreeMap::new(),
            qps: BTreeMap::new(),
            ids: BTreeMap::new(),
            cm_channels: BTreeMap::new(),
            stats: FabricStats::default(),
            scratch: Vec::new(),
            active: Vec::new(),
        }
    }

    pub(crate) fn add_node(&mut self) -> usize {
        self.nodes += 1;
        self.nodes - 1
    }

    /// A number that no object has had. Keys leave room for the owner's byte.
    pub(crate) fn number(&mut self) -> u32 {
        self.next_number += 1;
        self.next_number
    }

    pub(crate) fn key(&mut self) -> u32 {
        self.number() << 8
    }

    pub(crate) fn port(&mut self) -> u16 {
        self.next_port += 1;
        self.next_port
    }

    pub(crate) fn add_device(&mut self, node: usize, info: DeviceInfo, address: IpAddr) {
        self.devices.push(DeviceRec {
            node,
            info,
            address,
            is_removed: false,
            is_port_up: true,
            is_blocked: false,
            events: VecDeque::new(),
            signal: Signal::new().ok(),
        });
    }

    pub(crate) fn devices_of(&self, node: usize) -> Vec<usize> {
        let devices = self.devices.iter().enumerate();
        devices
            .filter(|(_, device)| device.node == node && !device.is_removed)
            .map(|(index, _)| index)
            .collect()
    }

    pub(crate) fn object_count(&self) -> usize {
        self.pds.len()
            + self.mrs.len()
            + self.windows
            + self.cqs.len()
            + self.channels.len()
            + self.srqs.len()
            + self.qps.len()
            + self.ids.len()
            + self.cm_channels.len()
    }

    pub(crate) fn check_device(&self, device: usize) -> Result<(), VerbsError> {
        if self.devices[device].is_removed {
            return Err(VerbsError::Removed {
                device: self.devices[device].info.name.clone(),
            });
        }
        Ok(())
    }

    fn find_device(&self, name: &str) -> Option<usize> {
        // A device that came back has a new entry; the old one stays removed.
        self.devices.iter().rposition(|d| d.info.name == name)
    }

    pub(crate) fn async_event(&mut self, device: usize, kind: AsyncEventKind) {
        let device = &mut self.devices[device];
        device.events.push_back(AsyncEvent { kind });
        if let Some(signal) = &device.signal {
            signal.set();
        }
    }

    pub(crate) fn async_event_of_qp(&mut self, qp_num: u32, kind: AsyncEventKind) {
        if let Some(device) = self.qps.get(&qp_num).map(|qp| qp.device) {
            self.async_event(device, kind);
        }
    }

    pub(crate) fn set_port(&mut self, name: &str, is_up: bool) {
        let Some(index) = self.find_device(name) else {
            return;
        };
        self.devices[index].is_port_up = is_up;
        self.activate_all();
        let kind = if is_up {
            AsyncEventKind::PortActive { port: 1 }
        } else {
            AsyncEventKind::PortError { port: 1 }
        };
        self.async_event(index, kind);
    }

    pub(crate) fn block(&mut self, name: &str, is_blocked: bool) {
        if let Some(index) = self.find_device(name) {
            self.devices[index].is_blocked = is_blocked;
            self.activate_all();
        }
    }

    pub(crate) fn holds_removed_devices(&self) -> bool {
        let is_removed = |device: usize| self.devices[device].is_removed;
        self.pds.values().any(|device| is_removed(*device))
            || self.cqs.values().any(|cq| is_removed(cq.device))
    }

    pub(crate) fn remove_device(&mut self, name: &str, has_event: bool) {
        let Some(index) = self.find_device(name) else {
            return;
        };
        self.devices[index].is_removed = true;
        if has_event {
            self.async_event(index, AsyncEventKind::DeviceFatal);
        }
        let qps: Vec<u32> = self.qps.keys().copied().collect();
        for qp_num in qps {
            if self.qps[&qp_num].device == index {
                self.fail_qp(qp_num);
            }
        }
        let ids: Vec<u32> = self.ids.keys().copied().collect();
        for id in ids {
            let rec = &self.ids[&id];
            let listens_there = rec.state == IdState::Listening
                && rec.node == self.devices[index].node
                && rec
                    .local
                    .is_some_and(|local| local.ip() == self.devices[index].address);
            if rec.device == Some(index) || listens_there {
                self.notify(id, PendingKind::DeviceRemoval, 0, &[]);
            }
            if listens_there && let Some(rec) = self.ids.get_mut(&id) {
                rec.state = IdState::Ended;
            }
        }
    }

    pub(crate) fn restore_device(&mut self, name: &str) {
        let found = self.find_device(name).map(|index| &self.devices[index]);
        if let Some(device) = found.filter(|device| device.is_removed) {
            let (node, info, address) = (device.node, device.info.clone(), device.address);
            self.add_device(node, info, address);
        }
    }

    /// Puts an event on its way to an identifier's channel.
    pub(crate) fn notify(&mut self, id: u32, kind: PendingKind, status: i32, data: &[u8]) {
        let Some(channel) = self.ids.get(&id).map(|id| id.channel) else {
            return;
        };
        if let Some(channel) = self.cm_channels.get_mut(&channel) {
            channel.pending.push_back(PendingEvent {
                id,
                kind,
                status,
                private_data: PrivateData::new(data),
            });
        }
    }

    pub(crate) fn complete(&mut self, cq: u32, completion: WorkCompletion) {
        let Some(rec) = self.cqs.get_mut(&cq) else {
            return;
        };
        if rec.entries.len() >= rec.capacity {
            let device = rec.device;
            self.stats.overruns += 1;
            self.async_event(device, AsyncEventKind::CqError);
            return;
        }
        rec.entries.push_back(completion);
        if std::mem::take(&mut rec.is_armed)
            && let Some(channel) = rec.channel.and_then(|c| self.channels.get_mut(&c))
        {
            channel.notes += 1;
            channel.signal.set();
        }
    }

    /// Moves a queue pair into the error state: what it has is flushed from now on.
    pub(crate) fn fail_qp(&mut self, qp_num: u32) {
        if let Some(qp) = self.qps.get_mut(&qp_num) {
            qp.state = QpState::Error;
            let peer = qp.peer;
            self.activate(qp_num);
            if let Some(peer) = peer {
                self.activate(peer);
            }
        }
    }

    /// Looks at every queue pair again.
    pub(crate) fn activate_all(&mut self) {
        self.active.clear();
        self.active.extend(self.qps.keys().copied());
    }

    pub(crate) fn activate(&mut self, qp_num: u32) {
        if !self.active.contains(&qp_num) {
            self.active.push(qp_num);
        }
    }
}
