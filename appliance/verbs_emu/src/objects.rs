//! The traits of [`verbs`] over a fabric. Each object is a number, and takes its record away when it
//! is dropped.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use dma::{BusView, Region};
use verbs::{
    Access, AsyncEvent, Bind, CompChannel, Cq, Device, DeviceInfo, Mr, Mw, Pd, PostError, Qp,
    QpOptions, RecvWr, SendWr, Srq, VerbsError, WorkCompletion,
};

use crate::Shared;
use crate::memory::MrRec;
use crate::world::{ChannelRec, CqRec, Posted, QpRec, QpState, Signal, SrqRec, Stage, Work, World};

/// Most steps that one poll makes.
const STEPS_PER_POLL: usize = 8;

/// What every object has.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) number: u32,
}

fn nix_error(errno: i32, posted: usize) -> PostError {
    PostError {
        posted,
        source: io::Error::from_raw_os_error(errno),
    }
}
const ENOMEM: i32 = 12;
const EINVAL: i32 = 22;

#[derive(Debug)]
pub(crate) struct EmuDevice {
    shared: Arc<Shared>,
    index: usize,
    info: DeviceInfo,
    signal: Option<Signal>,
}

pub(crate) fn device(shared: &Arc<Shared>, world: &World, index: usize) -> Arc<dyn Device> {
    Arc::new(EmuDevice {
        shared: Arc::clone(shared),
        index,
        info: world.devices[index].info.clone(),
        signal: world.devices[index].signal.clone(),
    })
}

impl EmuDevice {
    fn limit(&self, what: &'static str, wanted: u32, max: u32) -> Result<(), VerbsError> {
        if wanted <= max {
            return Ok(());
        }
        let device = self.info.name.clone();
        Err(VerbsError::Limit {
            device,
            what,
            wanted,
            max,
        })
    }
}

impl Device for EmuDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn alloc_pd(&self) -> Result<Arc<dyn Pd>, VerbsError> {
        let mut world = self.shared.lock();
        world.check_device(self.index)?;
        let number = world.number();
        world.pds.insert(number, self.index);
        Ok(Arc::new(EmuPd(Arc::new(PdInner {
            handle: Handle {
                shared: Arc::clone(&self.shared),
                number,
            },
            device: self.index,
            info: self.info.clone(),
        }))))
    }

    fn is_removed(&self) -> bool {
        self.shared.lock().devices[self.index].is_removed
    }

    fn active_mtu(&self, _port: u8) -> Result<u32, VerbsError> {
        self.shared.lock().check_device(self.index)?;
        Ok(4096)
    }

    fn create_comp_channel(&self) -> Result<Arc<dyn CompChannel>, VerbsError> {
        let mut world = self.shared.lock();
        world.check_device(self.index)?;
        let number = world.number();
        let signal = Signal::new()?;
        let rec = ChannelRec {
            notes: 0,
            signal: signal.clone(),
        };
        world.channels.insert(number, rec);
        Ok(Arc::new(EmuCompChannel {
            handle: Handle {
                shared: Arc::clone(&self.shared),
                number,
            },
            signal,
        }))
    }

    fn create_cq(
        &self,
        cqe: u32,
        channel: Option<&Arc<dyn CompChannel>>,
        _vector: u32,
    ) -> Result<Arc<dyn Cq>, VerbsError> {
        self.limit("completion queue size", cqe, self.info.caps.max_cqe)?;
        let channel_number = match channel {
            None => None,
            Some(channel) => match channel.as_any().downcast_ref::<EmuCompChannel>() {
                Some(channel) => Some(channel.handle.number),
                None => {
                    return Err(VerbsError::Foreign {
                        what: "a completion channel",
                    });
                }
            },
        };
        let mut world = self.shared.lock();
        world.check_device(self.index)?;
        let number = world.number();
        let rec = CqRec {
            device: self.index,
            entries: std::collections::VecDeque::with_capacity(cqe as usize),
            capacity: cqe as usize,
            is_armed: false,
            channel: channel_number,
        };
        world.cqs.insert(number, rec);
        Ok(Arc::new(EmuCq {
            handle: Handle {
                shared: Arc::clone(&self.shared),
                number,
            },
            info: self.info.clone(),
            _channel: channel.map(Arc::clone),
        }))
    }

    fn poll_async_event(&self) -> Option<AsyncEvent> {
        let mut world = self.shared.lock();
        let events = &mut world.devices[self.index].events;
        let event = events.pop_front();
        if events.is_empty()
            && let Some(signal) = &self.signal
        {
            signal.clear();
        }
        event
    }

    fn async_fd(&self) -> Option<BorrowedFd<'_>> {
        self.signal.as_ref().map(|signal| signal.0.as_fd())
    }
}

/// A protection domain, shared with what is made in it.
#[derive(Clone, Debug)]
struct EmuPd(Arc<PdInner>);

#[derive(Debug)]
struct PdInner {
    handle: Handle,
    device: usize,
    info: DeviceInfo,
}

impl std::ops::Deref for EmuPd {
    type Target = PdInner;

    fn deref(&self) -> &PdInner {
        &self.0
    }
}

impl Pd for EmuPd {
    fn reg_mr(&self, region: &Arc<Region>, access: Access) -> Result<Box<dyn Mr>, VerbsError> {
        let bus = BusView::new();
        bus.map(region);
        let mut world = self.handle.shared.lock();
        world.check_device(self.device)?;
        let key = world.key();
        let rec = MrRec {
            pd: self.handle.number,
            bus,
            addr: region.addr() as u64,
            len: region.len() as u64,
            access,
        };
        world.mrs.insert(key, rec);
        Ok(Box::new(EmuMr {
            pd: self.clone(),
            key,
        }))
    }

    fn create_srq(&self, max_wr: u32) -> Result<Arc<dyn Srq>, VerbsError> {
        let max = self.info.caps.max_srq_wr;
        if max_wr > max || self.info.caps.max_srq == 0 {
            return Err(VerbsError::Limit {
                device: self.info.name.clone(),
                what: "shared receive queue size",
                wanted: max_wr,
                max,
            });
        }
        let mut world = self.handle.shared.lock();
        world.check_device(self.device)?;
        let number = world.number();
        let rec = SrqRec {
            pd: self.handle.number,
            receives: std::collections::VecDeque::with_capacity(max_wr as usize),
            capacity: max_wr as usize,
        };
        world.srqs.insert(number, rec);
        Ok(Arc::new(EmuSrq {
            handle: Handle {
                shared: Arc::clone(&self.handle.shared),
                number,
            },
            _pd: self.clone(),
        }))
    }

    fn alloc_mw(&self) -> Result<Box<dyn Mw>, VerbsError> {
        if !self.info.caps.has_mw_type_2 {
            return Err(VerbsError::Unsupported {
                device: self.info.name.clone(),
                what: "memory windows of type 2",
            });
        }
        let mut world = self.handle.shared.lock();
        world.check_device(self.device)?;
        world.windows += 1;
        let key = world.key();
        Ok(Box::new(EmuMw {
            pd: self.clone(),
            key,
        }))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for PdInner {
    fn drop(&mut self) {
        self.handle.shared.lock().pds.remove(&self.handle.number);
    }
}

#[derive(Debug)]
struct EmuMr {
    pd: EmuPd,
    key: u32,
}

impl Mr for EmuMr {
    fn lkey(&self) -> u32 {
        self.key
    }

    fn rkey(&self) -> u32 {
        self.key
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for EmuMr {
    fn drop(&mut self) {
        self.pd.handle.shared.lock().mrs.remove(&self.key);
    }
}

#[derive(Debug)]
struct EmuMw {
    pd: EmuPd,
    key: u32,
}

impl Mw for EmuMw {
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

impl Drop for EmuMw {
    fn drop(&mut self) {
        let mut world = self.pd.handle.shared.lock();
        world.mws.remove(&self.key);
        world.windows -= 1;
    }
}

#[derive(Debug)]
struct EmuCompChannel {
    handle: Handle,
    signal: Signal,
}

impl CompChannel for EmuCompChannel {
    fn fd(&self) -> BorrowedFd<'_> {
        self.signal.0.as_fd()
    }

    fn consume(&self) -> usize {
        let mut world = self.handle.shared.lock();
        self.signal.clear();
        let channel = world.channels.get_mut(&self.handle.number);
        channel.map_or(0, |channel| std::mem::take(&mut channel.notes))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for EmuCompChannel {
    fn drop(&mut self) {
        let mut world = self.handle.shared.lock();
        world.channels.remove(&self.handle.number);
    }
}

#[derive(Debug)]
struct EmuCq {
    handle: Handle,
    info: DeviceInfo,
    _channel: Option<Arc<dyn CompChannel>>,
}

impl Cq for EmuCq {
    fn poll(&self, completions: &mut [WorkCompletion]) -> Result<usize, VerbsError> {
        let mut world = self.handle.shared.lock();
        if world.is_eager {
            while world.step() {}
        } else {
            for _ in 0..world.random.below(STEPS_PER_POLL) {
                world.step();
            }
        }
        // What has come may also be seen a little later.
        let most = if world.is_eager {
            completions.len()
        } else {
            world.random.below(completions.len() + 1)
        };
        let Some(cq) = world.cqs.get_mut(&self.handle.number) else {
            return Ok(0);
        };
        let count = cq.entries.len().min(most);
        for (slot, entry) in completions.iter_mut().zip(cq.entries.drain(..count)) {
            *slot = entry;
        }
        Ok(count)
    }

    fn arm(&self) -> Result<(), VerbsError> {
        let mut world = self.handle.shared.lock();
        if let Some(cq) = world.cqs.get_mut(&self.handle.number) {
            cq.is_armed = true;
        }
        Ok(())
    }

    fn resize(&self, cqe: u32) -> Result<(), VerbsError> {
        let max = self.info.caps.max_cqe;
        if cqe > max {
            return Err(VerbsError::Limit {
                device: self.info.name.clone(),
                what: "completion queue size",
                wanted: cqe,
                max,
            });
        }
        let mut world = self.handle.shared.lock();
        if let Some(cq) = world.cqs.get_mut(&self.handle.number) {
            cq.capacity = cqe as usize;
            let more = (cqe as usize).saturating_sub(cq.entries.len());
            cq.entries.reserve(more);
        }
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for EmuCq {
    fn drop(&mut self) {
        self.handle.shared.lock().cqs.remove(&self.handle.number);
    }
}

#[derive(Debug)]
struct EmuSrq {
    handle: Handle,
    _pd: EmuPd,
}

impl Srq for EmuSrq {
    fn post_recv(&self, requests: &[RecvWr]) -> Result<(), PostError> {
        let mut world = self.handle.shared.lock();
        let Some(srq) = world.srqs.get_mut(&self.handle.number) else {
            return Err(nix_error(EINVAL, 0));
        };
        let room = srq.capacity - srq.receives.len();
        let taken = requests.len().min(room);
        srq.receives.extend(&requests[..taken]);
        world.activate_all();
        if taken < requests.len() {
            return Err(nix_error(ENOMEM, taken));
        }
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for EmuSrq {
    fn drop(&mut self) {
        self.handle.shared.lock().srqs.remove(&self.handle.number);
    }
}

/// A queue pair; what it stands on lives as long.
#[derive(Debug)]
pub(crate) struct EmuQp {
    handle: Handle,
    max_inline: u32,
    _pd: Arc<dyn Pd>,
    _cqs: [Arc<dyn Cq>; 2],
    _srq: Option<Arc<dyn Srq>>,
}

impl EmuQp {
    pub(crate) fn create(
        shared: &Arc<Shared>,
        device: usize,
        options: &QpOptions<'_>,
    ) -> Result<Self, VerbsError> {
        let foreign = |what| VerbsError::Foreign { what };
        let cq_of = |cq: &Arc<dyn Cq>| {
            let cq = cq.as_any().downcast_ref::<EmuCq>();
            cq.map(|cq| cq.handle.number)
                .ok_or(foreign("a completion queue"))
        };
        let pd = options.pd.as_any().downcast_ref::<EmuPd>();
        let pd = pd.filter(|pd| pd.device == device);
        let pd = pd.ok_or(foreign("a protection domain"))?.handle.number;
        let (send_cq, recv_cq) = (cq_of(options.send_cq)?, cq_of(options.recv_cq)?);
        let srq = match options.srq {
            None => None,
            Some(srq) => {
                let srq = srq.as_any().downcast_ref::<EmuSrq>();
                Some(srq.ok_or(foreign("a shared receive queue"))?.handle.number)
            }
        };
        let mut world = shared.lock();
        world.check_device(device)?;
        if srq.is_some_and(|srq| world.srqs.get(&srq).is_none_or(|srq| srq.pd != pd)) {
            return Err(foreign("a shared receive queue"));
        }
        let max = world.devices[device].info.caps.max_qp_wr;
        let wanted = options.max_send_wr.max(options.max_recv_wr);
        if wanted > max {
            return Err(VerbsError::Limit {
                device: world.devices[device].info.name.clone(),
                what: "queue size",
                wanted,
                max,
            });
        }
        let number = world.number();
        let room = |count: u32| std::collections::VecDeque::with_capacity(count as usize);
        let rec = QpRec {
            device,
            pd,
            send_cq,
            recv_cq,
            srq,
            state: QpState::Init,
            peer: None,
            sq: room(options.max_send_wr),
            rq: std::collections::VecDeque::with_capacity(options.max_recv_wr as usize),
            max_send_wr: options.max_send_wr as usize,
            max_recv_wr: options.max_recv_wr as usize,
            max_reads: 0,
            rnr_retry_count: 0,
            has_told_last_wqe: false,
        };
        world.qps.insert(number, rec);
        drop(world);
        Ok(Self {
            handle: Handle {
                shared: Arc::clone(shared),
                number,
            },
            max_inline: options.max_inline_data,
            _pd: Arc::clone(options.pd),
            _cqs: [Arc::clone(options.send_cq), Arc::clone(options.recv_cq)],
            _srq: options.srq.map(Arc::clone),
        })
    }

    pub(crate) fn number(&self) -> u32 {
        self.handle.number
    }

    fn post(&self, works: impl ExactSizeIterator<Item = Work>) -> Result<(), PostError> {
        let mut world = self.handle.shared.lock();
        let Some(qp) = world.qps.get_mut(&self.handle.number) else {
            return Err(nix_error(EINVAL, 0));
        };
        if qp.state == QpState::Init {
            return Err(nix_error(EINVAL, 0));
        }
        let count = works.len();
        let room = qp.max_send_wr - qp.sq.len();
        qp.sq.extend(works.take(room).map(|work| Posted {
            work,
            stage: Stage::Posted,
            tries: 0,
        }));
        world.activate(self.handle.number);
        if count > room {
            return Err(nix_error(ENOMEM, room));
        }
        Ok(())
    }
}

impl Qp for EmuQp {
    fn qp_num(&self) -> u32 {
        self.handle.number
    }

    fn max_inline(&self) -> u32 {
        self.max_inline
    }

    fn post_send(&mut self, requests: &[SendWr]) -> Result<(), PostError> {
        self.post(requests.iter().map(|wr| Work::Send(*wr)))
    }

    fn post_recv(&mut self, requests: &[RecvWr]) -> Result<(), PostError> {
        let mut world = self.handle.shared.lock();
        let Some(qp) = world.qps.get_mut(&self.handle.number) else {
            return Err(nix_error(EINVAL, 0));
        };
        if qp.srq.is_some() {
            return Err(nix_error(EINVAL, 0));
        }
        let taken = requests.len().min(qp.max_recv_wr - qp.rq.len());
        qp.rq.extend(&requests[..taken]);
        let peer = qp.peer;
        world.activate(self.handle.number);
        if let Some(peer) = peer {
            world.activate(peer);
        }
        if taken < requests.len() {
            return Err(nix_error(ENOMEM, taken));
        }
        Ok(())
    }

    fn bind_mw(&mut self, mw: &mut dyn Mw, mr: &dyn Mr, bind: &Bind) -> Result<u32, PostError> {
        let mw = mw.as_any_mut().downcast_mut::<EmuMw>();
        let mw = mw.ok_or_else(|| nix_error(EINVAL, 0))?;
        let mr = mr.as_any().downcast_ref::<EmuMr>();
        let mr = mr.ok_or_else(|| nix_error(EINVAL, 0))?;
        mw.key = (mw.key & !0xff) | (mw.key.wrapping_add(1) & 0xff);
        let work = Work::Bind {
            wr_id: bind.wr_id,
            rkey: mw.key,
            mr_key: mr.key,
            addr: bind.addr,
            len: bind.len.into(),
            is_writable: bind.is_writable,
        };
        self.post(std::iter::once(work))?;
        Ok(mw.key)
    }

    fn set_error(&mut self) -> Result<(), VerbsError> {
        self.handle.shared.lock().fail_qp(self.handle.number);
        Ok(())
    }
}

impl Drop for EmuQp {
    fn drop(&mut self) {
        let mut world = self.handle.shared.lock();
        let number = self.handle.number;
        let Some(qp) = world.qps.remove(&number) else {
            return;
        };
        for id in world.ids.values_mut() {
            if id.qp == Some(number) {
                id.qp = None;
            }
        }
        if let Some(peer) = qp.peer {
            world.activate(peer);
        }
        // Some libraries take the completions of a queue pair that is gone away, some do not.
        if world.random.below(2) == 0 {
            for cq in [qp.send_cq, qp.recv_cq] {
                if let Some(cq) = world.cqs.get_mut(&cq) {
                    cq.entries.retain(|entry| entry.qp_num != number);
                }
            }
        }
    }
}
