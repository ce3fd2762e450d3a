//! Devices, protection domains, memory, completion queues and channels.

use std::any::Any;
use std::ffi::CStr;
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dma::Region;
use rdma_mummy_sys as sys;

use super::{check, check_pointer, qp, set_nonblocking};
use crate::error::VerbsError;
use crate::traits::{CompChannel, Cq, Device, Mr, Mw, Pd, Srq};
use crate::types::{
    Access, AsyncEvent, AsyncEventKind, DeviceCaps, DeviceInfo, PostError, RecvWr, SGE_MAX,
    WcOpcode, WcStatus, WorkCompletion,
};

/// What soft-RoCE (`rdma_rxe`) calls its vendor.
const VENDOR_SOFT_ROCE: u32 = 0xff_ffff;

/// Completions fetched by one call.
const POLL_BATCH: usize = 64;

/// A device; clones are the same one.
#[derive(Clone)]
pub(super) struct RdmaDevice(Arc<DeviceInner>);

struct DeviceInner {
    context: *mut sys::ibv_context,
    info: DeviceInfo,
    /// Where sysfs has the device's file of verbs, until the device is removed.
    sysfs: PathBuf,
    /// The connection manager has told that it is being removed.
    is_removed: AtomicBool,
}

// SAFETY: a context may be used from any thread, and is never closed (see `Devices`).
unsafe impl Send for DeviceInner {}
// SAFETY: as above.
unsafe impl Sync for DeviceInner {}

impl DeviceInner {
    fn is_removed(&self) -> bool {
        self.is_removed.load(Ordering::Relaxed) || matches!(self.sysfs.try_exists(), Ok(false))
    }
}

/// Drivers that cannot take a device from its users, soft-RoCE among them, let its removal wait until
/// nobody has its file open. librdmacm closes it late or never: it looks for devices that are gone
/// only when it is asked for the others, and not at all when there are none. So the kernel's side is
/// closed here, when the last object of a removed device is gone. The library's structure stays
/// valid; each call with it fails. Some kilobytes of it are lost for each removal.
impl Drop for DeviceInner {
    fn drop(&mut self) {
        if !self.is_removed() {
            return;
        }
        // Nothing may be written to it, lest a command that is written seem to be carried out.
        let Ok(nothing) = std::fs::File::open("/dev/null") else {
            return;
        };
        // SAFETY: the context is never freed (see `Devices`), and its descriptors are open. All
        // objects that use them hold a clone of the device, so they are gone; identifiers of the
        // connection manager have descriptors of their own. The numbers stay taken.
        unsafe {
            for fd in [(*self.context).cmd_fd, (*self.context).async_fd] {
                libc::dup3(nothing.as_raw_fd(), fd, libc::O_CLOEXEC);
            }
        }
    }
}

impl fmt::Debug for RdmaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RdmaDevice")
            .field(&self.0.info.name)
            .finish()
    }
}

impl RdmaDevice {
    /// # Safety
    /// `context` is open and stays so for as long as the program runs.
    pub(super) unsafe fn new(context: *mut sys::ibv_context) -> Result<Self, VerbsError> {
        // SAFETY: an open context has a device with a name and a path that live as long.
        let (name, sysfs) = unsafe {
            let device = (*context).device;
            let name = sys::ibv_get_device_name(device);
            let name = if name.is_null() {
                "?".to_owned()
            } else {
                CStr::from_ptr(name).to_string_lossy().into_owned()
            };
            let path = CStr::from_ptr((&raw const (*device).dev_path).cast());
            (name, PathBuf::from(path.to_string_lossy().into_owned()))
        };
        // SAFETY: plain numbers: all zero is a value of it.
        let mut attr: sys::ibv_device_attr = unsafe { mem::zeroed() };
        // SAFETY: the context is open, and `attr` is written.
        let result = unsafe { sys::ibv_query_device(context, &raw mut attr) };
        check("ibv_query_device", || name.clone(), result)?;
        // SAFETY: the context is open, and so is its descriptor.
        let (async_fd, vectors) = unsafe {
            let fd = BorrowedFd::borrow_raw((*context).async_fd);
            (fd, (*context).num_comp_vectors)
        };
        set_nonblocking(async_fd, &name)?;
        let numa_node = numa_node(&name);
        let info = DeviceInfo {
            node_guid: u64::from_be(attr.node_guid),
            ports: attr.phys_port_cnt,
            caps: caps(&attr, number(vectors)),
            numa_node,
            name,
        };
        Ok(Self(Arc::new(DeviceInner {
            context,
            info,
            sysfs,
            is_removed: AtomicBool::new(false),
        })))
    }

    /// The connection manager tells that it is being removed.
    pub(super) fn set_removed(&self) {
        self.0.is_removed.store(true, Ordering::Relaxed);
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn name(&self) -> String {
        self.0.info.name.clone()
    }
}

fn number(value: i32) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

fn caps(attr: &sys::ibv_device_attr, comp_vectors: u32) -> DeviceCaps {
    let flags = attr.device_cap_flags;
    let has = |flag: sys::ibv_device_cap_flags| flags & flag.0 != 0;
    DeviceCaps {
        max_qp: number(attr.max_qp),
        max_qp_wr: number(attr.max_qp_wr),
        max_sge: number(attr.max_sge),
        max_cqe: number(attr.max_cqe),
        max_mr_size: attr.max_mr_size,
        max_qp_rd_atom: number(attr.max_qp_rd_atom),
        max_qp_init_rd_atom: number(attr.max_qp_init_rd_atom),
        max_srq: number(attr.max_srq),
        max_srq_wr: number(attr.max_srq_wr),
        has_send_with_inv: has(sys::ibv_device_cap_flags::IBV_DEVICE_MEM_MGT_EXTENSIONS),
        // Soft-RoCE of Linux 6.12 does not tell programs that a message invalidated a window, and
        // its kernel panics over a window that is invalidated once more.
        has_mw_type_2: attr.vendor_id != VENDOR_SOFT_ROCE
            && (has(sys::ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW_TYPE_2A)
                || has(sys::ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW_TYPE_2B)),
        comp_vectors,
    }
}

/// What sysfs says of the device; soft-RoCE has no node.
fn numa_node(name: &str) -> Option<u32> {
    let path = format!("/sys/class/infiniband/{name}/device/numa_node");
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

impl Device for RdmaDevice {
    fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    fn alloc_pd(&self) -> Result<Arc<dyn Pd>, VerbsError> {
        // SAFETY: the context is open.
        let pd = unsafe { sys::ibv_alloc_pd(self.0.context) };
        let pd = check_pointer("ibv_alloc_pd", || self.name(), pd)?;
        Ok(Arc::new(RdmaPd(Arc::new(PdInner {
            pd,
            device: self.clone(),
        }))))
    }

    fn create_comp_channel(&self) -> Result<Arc<dyn CompChannel>, VerbsError> {
        // SAFETY: the context is open.
        let channel = unsafe { sys::ibv_create_comp_channel(self.0.context) };
        let channel = check_pointer("ibv_create_comp_channel", || self.name(), channel)?;
        let inner = ChannelInner {
            channel,
            device: self.clone(),
        };
        set_nonblocking(inner.fd(), &self.0.info.name)?;
        Ok(Arc::new(RdmaCompChannel(Arc::new(inner))))
    }

    fn create_cq(
        &self,
        cqe: u32,
        channel: Option<&Arc<dyn CompChannel>>,
        vector: u32,
    ) -> Result<Arc<dyn Cq>, VerbsError> {
        let max = self.0.info.caps.max_cqe;
        if cqe > max {
            return Err(VerbsError::Limit {
                device: self.name(),
                what: "completion queue size",
                wanted: cqe,
                max,
            });
        }
        let foreign = VerbsError::Foreign {
            what: "a completion channel",
        };
        let channel = match channel {
            None => None,
            Some(channel) => match channel.as_any().downcast_ref::<RdmaCompChannel>() {
                Some(channel) if channel.0.device.is(self) => Some(Arc::clone(&channel.0)),
                _ => return Err(foreign),
            },
        };
        let raw = channel.as_ref().map_or(ptr::null_mut(), |c| c.channel);
        let vector = vector % self.0.info.caps.comp_vectors.max(1);
        let (cqe, vector) = (cqe as i32, vector as i32);
        // SAFETY: the context is open; the channel is of this context and lives as long as the queue.
        let cq = unsafe { sys::ibv_create_cq(self.0.context, cqe, ptr::null_mut(), raw, vector) };
        let cq = check_pointer("ibv_create_cq", || self.name(), cq)?;
        Ok(Arc::new(RdmaCq(Arc::new(CqInner {
            cq,
            _channel: channel,
            device: self.clone(),
        }))))
    }

    fn active_mtu(&self, port: u8) -> Result<u32, VerbsError> {
        // SAFETY: plain numbers: all zero is a value of it.
        let mut attr: sys::ibv_port_attr = unsafe { mem::zeroed() };
        // SAFETY: the context is open, and `attr` is written.
        let result = unsafe { sys::ibv_query_port(self.0.context, port, &raw mut attr) };
        check("ibv_query_port", || self.name(), result)?;
        // 1 is 256 bytes, 5 is 4096.
        Ok(128 << attr.active_mtu.clamp(1, 5))
    }

    fn is_removed(&self) -> bool {
        self.0.is_removed()
    }

    fn poll_async_event(&self) -> Option<AsyncEvent> {
        let mut event = mem::MaybeUninit::<sys::ibv_async_event>::zeroed();
        // SAFETY: the context is open, `event` is written. Its type is read as a number, since the
        // kernel may know more types than the enumeration. The queue pair is alive: its
        // destruction waits until the event has been acknowledged, here.
        unsafe {
            if sys::ibv_get_async_event(self.0.context, event.as_mut_ptr()) != 0 {
                return None;
            }
            let pointer = event.as_mut_ptr();
            let kind = (&raw const (*pointer).event_type).cast::<u32>().read();
            let kind = event_kind(kind, &raw const (*pointer).element);
            sys::ibv_ack_async_event(pointer);
            Some(AsyncEvent { kind })
        }
    }

    fn async_fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the context is open, and so is its descriptor.
        Some(unsafe { BorrowedFd::borrow_raw((*self.0.context).async_fd) })
    }
}

fn event_kind(kind: u32, element: *const sys::ibv_async_event_element_t) -> AsyncEventKind {
    use sys::ibv_event_type as t;
    let is = |wanted: sys::ibv_event_type| kind == wanted as u32;
    // SAFETY: the kind says which member of the element is set; a queue pair lives until its events
    // have been acknowledged, which the caller does after this.
    let qp_num = || unsafe { (*(*element).qp).qp_num };
    // SAFETY: as above, for a number.
    let port = || u8::try_from(unsafe { (*element).port_num }).unwrap_or(0);
    if is(t::IBV_EVENT_QP_FATAL) || is(t::IBV_EVENT_QP_REQ_ERR) || is(t::IBV_EVENT_QP_ACCESS_ERR) {
        AsyncEventKind::QpFatal { qp_num: qp_num() }
    } else if is(t::IBV_EVENT_QP_LAST_WQE_REACHED) {
        AsyncEventKind::QpLastWqeReached { qp_num: qp_num() }
    } else if is(t::IBV_EVENT_CQ_ERR) {
        AsyncEventKind::CqError
    } else if is(t::IBV_EVENT_SRQ_ERR) {
        AsyncEventKind::SrqError
    } else if is(t::IBV_EVENT_PORT_ACTIVE) {
        AsyncEventKind::PortActive { port: port() }
    } else if is(t::IBV_EVENT_PORT_ERR) {
        AsyncEventKind::PortError { port: port() }
    } else if is(t::IBV_EVENT_DEVICE_FATAL) {
        AsyncEventKind::DeviceFatal
    } else {
        AsyncEventKind::Other(kind)
    }
}

/// A protection domain.
#[derive(Debug)]
pub(super) struct RdmaPd(pub(super) Arc<PdInner>);

#[derive(Debug)]
pub(super) struct PdInner {
    pub(super) pd: *mut sys::ibv_pd,
    pub(super) device: RdmaDevice,
}

// SAFETY: verbs may be called from any thread.
unsafe impl Send for PdInner {}
// SAFETY: as above.
unsafe impl Sync for PdInner {}

impl Drop for PdInner {
    fn drop(&mut self) {
        // SAFETY: whatever was made in the domain holds an `Arc` of this, so it is gone.
        unsafe { sys::ibv_dealloc_pd(self.pd) };
    }
}

impl Pd for RdmaPd {
    fn reg_mr(&self, region: &Arc<Region>, access: Access) -> Result<Box<dyn Mr>, VerbsError> {
        type A = sys::ibv_access_flags;
        let flags = [
            (access.local_write, A::IBV_ACCESS_LOCAL_WRITE),
            (access.remote_read, A::IBV_ACCESS_REMOTE_READ),
            (access.remote_write, A::IBV_ACCESS_REMOTE_WRITE),
            (access.mw_bind, A::IBV_ACCESS_MW_BIND),
        ];
        let flags = flags.iter().filter(|(is_on, _)| *is_on);
        let flags = flags.fold(0, |all, (_, flag)| all | flag.0) as i32;
        let address = ptr::with_exposed_provenance_mut(region.addr());
        // SAFETY: the domain lives; the region is mapped for as long as the registration holds it.
        let mr = unsafe { sys::ibv_reg_mr(self.0.pd, address, region.len(), flags) };
        let object = || format!("{} ({} bytes)", self.0.device.name(), region.len());
        let mr = check_pointer("ibv_reg_mr", object, mr)?;
        // SAFETY: a registration that was just made.
        let (lkey, rkey) = unsafe { ((*mr).lkey, (*mr).rkey) };
        Ok(Box::new(RdmaMr {
            mr,
            lkey,
            rkey,
            pd: Arc::clone(&self.0),
            _region: Arc::clone(region),
        }))
    }

    fn create_srq(&self, max_wr: u32) -> Result<Arc<dyn Srq>, VerbsError> {
        let caps = &self.0.device.0.info.caps;
        if max_wr > caps.max_srq_wr || caps.max_srq == 0 {
            return Err(VerbsError::Limit {
                device: self.0.device.name(),
                what: "shared receive queue size",
                wanted: max_wr,
                max: caps.max_srq_wr,
            });
        }
        let mut attr = sys::ibv_srq_init_attr {
            srq_context: ptr::null_mut(),
            attr: sys::ibv_srq_attr {
                max_wr,
                max_sge: SGE_MAX as u32,
                srq_limit: 0,
            },
        };
        // SAFETY: the domain lives for as long as the queue holds it.
        let srq = unsafe { sys::ibv_create_srq(self.0.pd, &raw mut attr) };
        let srq = check_pointer("ibv_create_srq", || self.0.device.name(), srq)?;
        Ok(Arc::new(RdmaSrq(Arc::new(SrqInner {
            srq,
            pd: Arc::clone(&self.0),
        }))))
    }

    fn alloc_mw(&self) -> Result<Box<dyn Mw>, VerbsError> {
        if !self.0.device.0.info.caps.has_mw_type_2 {
            return Err(VerbsError::Unsupported {
                device: self.0.device.name(),
                what: "memory windows of type 2",
            });
        }
        // SAFETY: the domain lives for as long as the window holds it.
        let mw = unsafe { sys::ibv_alloc_mw(self.0.pd, sys::ibv_mw_type::IBV_MW_TYPE_2) };
        let mw = check_pointer("ibv_alloc_mw", || self.0.device.name(), mw)?;
        // SAFETY: a window that was just made.
        let rkey = unsafe { (*mw).rkey };
        Ok(Box::new(RdmaMw {
            mw,
            rkey,
            pd: Arc::clone(&self.0),
        }))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[derive(Debug)]
pub(super) struct RdmaMr {
    pub(super) mr: *mut sys::ibv_mr,
    lkey: u32,
    rkey: u32,
    pub(super) pd: Arc<PdInner>,
    _region: Arc<Region>,
}

// SAFETY: verbs may be called from any thread; the pointer is used when it is dropped only.
unsafe impl Send for RdmaMr {}
// SAFETY: as above.
unsafe impl Sync for RdmaMr {}

impl Mr for RdmaMr {
    fn lkey(&self) -> u32 {
        self.lkey
    }

    fn rkey(&self) -> u32 {
        self.rkey
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for RdmaMr {
    fn drop(&mut self) {
        // SAFETY: made by `ibv_reg_mr`, given back once. Work requests that still name its key fail.
        unsafe { sys::ibv_dereg_mr(self.mr) };
    }
}

/// A memory window.
#[derive(Debug)]
pub(super) struct RdmaMw {
    pub(super) mw: *mut sys::ibv_mw,
    rkey: u32,
    pub(super) pd: Arc<PdInner>,
}

// SAFETY: verbs may be called from any thread.
unsafe impl Send for RdmaMw {}

impl RdmaMw {
    /// The key to bind it with: the low byte is the owner's to choose.
    pub(super) fn next_rkey(&mut self) -> u32 {
        self.rkey = (self.rkey & !0xff) | (self.rkey.wrapping_add(1) & 0xff);
        self.rkey
    }
}

impl Mw for RdmaMw {
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

impl Drop for RdmaMw {
    fn drop(&mut self) {
        // SAFETY: made by `ibv_alloc_mw`, given back once.
        unsafe { sys::ibv_dealloc_mw(self.mw) };
    }
}

/// A completion channel.
#[derive(Debug)]
pub(super) struct RdmaCompChannel(Arc<ChannelInner>);

#[derive(Debug)]
struct ChannelInner {
    channel: *mut sys::ibv_comp_channel,
    device: RdmaDevice,
}

// SAFETY: verbs may be called from any thread.
unsafe impl Send for ChannelInner {}
// SAFETY: as above.
unsafe impl Sync for ChannelInner {}

impl ChannelInner {
    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as the channel is.
        unsafe { BorrowedFd::borrow_raw((*self.channel).fd) }
    }
}

impl Drop for ChannelInner {
    fn drop(&mut self) {
        // SAFETY: the completion queues of the channel hold an `Arc` of this, so they are gone.
        unsafe { sys::ibv_destroy_comp_channel(self.channel) };
    }
}

impl CompChannel for RdmaCompChannel {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }

    fn consume(&self) -> usize {
        let mut count = 0;
        loop {
            let (mut cq, mut context) = (ptr::null_mut(), ptr::null_mut());
            // SAFETY: the channel lives. The queue that is told of lives until its notes have been
            // acknowledged, which happens at once.
            unsafe {
                if sys::ibv_get_cq_event(self.0.channel, &raw mut cq, &raw mut context) != 0 {
                    return count;
                }
                sys::ibv_ack_cq_events(cq, 1);
            }
            count += 1;
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A completion queue.
#[derive(Debug)]
pub(super) struct RdmaCq(pub(super) Arc<CqInner>);

#[derive(Debug)]
pub(super) struct CqInner {
    pub(super) cq: *mut sys::ibv_cq,
    pub(super) device: RdmaDevice,
    _channel: Option<Arc<ChannelInner>>,
}

// SAFETY: verbs may be called from any thread.
unsafe impl Send for CqInner {}
// SAFETY: as above.
unsafe impl Sync for CqInner {}

impl Drop for CqInner {
    fn drop(&mut self) {
        // SAFETY: the queue pairs that complete here hold an `Arc` of this, so they are gone.
        unsafe { sys::ibv_destroy_cq(self.cq) };
    }
}

impl Cq for RdmaCq {
    fn poll(&self, completions: &mut [WorkCompletion]) -> Result<usize, VerbsError> {
        let mut raw = [const { mem::MaybeUninit::<sys::ibv_wc>::uninit() }; POLL_BATCH];
        let wanted = completions.len().min(POLL_BATCH) as i32;
        // SAFETY: the queue lives, and there is room for as many as are asked for.
        let got = unsafe { sys::ibv_poll_cq(self.0.cq, wanted, raw.as_mut_ptr().cast()) };
        let Ok(got) = usize::try_from(got) else {
            let error = io::Error::from_raw_os_error(libc::EIO);
            return Err(VerbsError::call("ibv_poll_cq", self.0.device.name(), error));
        };
        for (raw, completion) in raw.iter().zip(&mut *completions).take(got) {
            // SAFETY: as many as the call returned are written.
            *completion = completion_of(unsafe { raw.assume_init_ref() });
        }
        Ok(got)
    }

    fn arm(&self) -> Result<(), VerbsError> {
        // SAFETY: the queue lives.
        let result = unsafe { sys::ibv_req_notify_cq(self.0.cq, 0) };
        check("ibv_req_notify_cq", || self.0.device.name(), result)
    }

    fn resize(&self, cqe: u32) -> Result<(), VerbsError> {
        // SAFETY: the queue lives.
        let result = unsafe { sys::ibv_resize_cq(self.0.cq, cqe.min(i32::MAX as u32) as i32) };
        check("ibv_resize_cq", || self.0.device.name(), result)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn completion_of(raw: &sys::ibv_wc) -> WorkCompletion {
    let has_key = raw.wc_flags & sys::ibv_wc_flags::IBV_WC_WITH_INV.0 != 0;
    let is_success = raw.status == sys::ibv_wc_status::IBV_WC_SUCCESS;
    // SAFETY: all members of the union are plain numbers.
    let key = unsafe { raw.imm_data_invalidated_rkey_union.invalidated_rkey };
    WorkCompletion {
        wr_id: raw.wr_id,
        status: status_of(raw.status),
        opcode: opcode_of(raw.opcode),
        byte_len: raw.byte_len,
        qp_num: raw.qp_num,
        invalidated_rkey: (is_success && has_key).then_some(key),
        vendor_err: raw.vendor_err,
    }
}

fn status_of(status: sys::ibv_wc_status::Type) -> WcStatus {
    use sys::ibv_wc_status as s;
    match status {
        s::IBV_WC_SUCCESS => WcStatus::Success,
        s::IBV_WC_LOC_LEN_ERR => WcStatus::LocalLength,
        s::IBV_WC_LOC_QP_OP_ERR => WcStatus::LocalQpOperation,
        s::IBV_WC_LOC_PROT_ERR => WcStatus::LocalProtection,
        s::IBV_WC_WR_FLUSH_ERR => WcStatus::Flushed,
        s::IBV_WC_MW_BIND_ERR => WcStatus::MwBind,
        s::IBV_WC_BAD_RESP_ERR => WcStatus::BadResponse,
        s::IBV_WC_LOC_ACCESS_ERR => WcStatus::LocalAccess,
        s::IBV_WC_REM_INV_REQ_ERR => WcStatus::RemoteInvalidRequest,
        s::IBV_WC_REM_ACCESS_ERR => WcStatus::RemoteAccess,
        s::IBV_WC_REM_OP_ERR => WcStatus::RemoteOperation,
        s::IBV_WC_RETRY_EXC_ERR => WcStatus::RetryExceeded,
        s::IBV_WC_RNR_RETRY_EXC_ERR => WcStatus::RnrRetryExceeded,
        s::IBV_WC_FATAL_ERR => WcStatus::Fatal,
        other => WcStatus::Other(other),
    }
}

fn opcode_of(opcode: sys::ibv_wc_opcode::Type) -> WcOpcode {
    use sys::ibv_wc_opcode as o;
    match opcode {
        o::IBV_WC_SEND => WcOpcode::Send,
        o::IBV_WC_RDMA_WRITE => WcOpcode::Write,
        o::IBV_WC_RDMA_READ => WcOpcode::Read,
        o::IBV_WC_RECV => WcOpcode::Recv,
        o::IBV_WC_BIND_MW => WcOpcode::BindMw,
        o::IBV_WC_LOCAL_INV => WcOpcode::LocalInv,
        other => WcOpcode::Other(other),
    }
}

/// A shared receive queue.
#[derive(Debug)]
pub(super) struct RdmaSrq(pub(super) Arc<SrqInner>);

#[derive(Debug)]
pub(super) struct SrqInner {
    pub(super) srq: *mut sys::ibv_srq,
    pub(super) pd: Arc<PdInner>,
}

// SAFETY: verbs may be called from any thread.
unsafe impl Send for SrqInner {}
// SAFETY: as above.
unsafe impl Sync for SrqInner {}

impl Drop for SrqInner {
    fn drop(&mut self) {
        // SAFETY: the queue pairs that take from it hold an `Arc` of this, so they are gone.
        unsafe { sys::ibv_destroy_srq(self.srq) };
    }
}

impl Srq for RdmaSrq {
    fn post_recv(&self, requests: &[RecvWr]) -> Result<(), PostError> {
        qp::post_receives(requests, |first, bad| {
            // SAFETY: the queue lives; the chain is read before the call returns.
            unsafe { sys::ibv_post_srq_recv(self.0.srq, first, bad) }
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_soft_roce_are_not_used() {
        // SAFETY: plain numbers: all zero is a value of it.
        let mut attr: sys::ibv_device_attr = unsafe { mem::zeroed() };
        attr.device_cap_flags = sys::ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW_TYPE_2B.0;
        attr.vendor_id = 0x15b3;
        assert!(caps(&attr, 1).has_mw_type_2);
        attr.vendor_id = VENDOR_SOFT_ROCE;
        assert!(!caps(&attr, 1).has_mw_type_2);
    }
}
