//! The connection manager: channels and identifiers.

use std::any::Any;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use rdma_mummy_sys as sys;

use super::address::{RawAddress, from_storage};
use super::qp::RdmaQp;
use super::{Devices, check, check_pointer, set_nonblocking};
use crate::error::VerbsError;
use crate::traits::{CmChannel, CmId, Device, Qp};
use crate::types::{CmEvent, CmEventKind, ConnParam, PrivateData, QpOptions};

// From rdma_cma.h; bindings have no constants of it.
const RDMA_OPTION_ID: i32 = 0;
const RDMA_OPTION_ID_TOS: i32 = 0;
const RDMA_OPTION_ID_REUSEADDR: i32 = 1;
const RDMA_OPTION_ID_AFONLY: i32 = 2;
const RDMA_OPTION_ID_ACK_TIMEOUT: i32 = 3;

/// A channel.
#[derive(Debug)]
pub(super) struct RdmaCmChannel {
    inner: Arc<CmChannelInner>,
    devices: Arc<Devices>,
}

#[derive(Debug)]
struct CmChannelInner(*mut sys::rdma_event_channel);

// SAFETY: the library may be called from any thread.
unsafe impl Send for CmChannelInner {}
// SAFETY: as above.
unsafe impl Sync for CmChannelInner {}

impl CmChannelInner {
    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as the channel is.
        unsafe { BorrowedFd::borrow_raw((*self.0).fd) }
    }
}

impl Drop for CmChannelInner {
    fn drop(&mut self) {
        // SAFETY: the identifiers that report here hold an `Arc` of this, so they are gone.
        unsafe { sys::rdma_destroy_event_channel(self.0) };
    }
}

/// What an identifier and its queue pair share.
pub(super) struct IdInner {
    /// Guards the structure behind the pointer: the queue pair's drop changes it too. Never locked
    /// for an I/O.
    state: Mutex<IdState>,
    devices: Arc<Devices>,
}

struct IdState {
    id: *mut sys::rdma_cm_id,
    /// Where it reports; must outlive it.
    channel: Arc<CmChannelInner>,
}

// SAFETY: the library may be called from any thread.
unsafe impl Send for IdState {}

impl IdInner {
    /// Calls `f` with the pointer, which is alive.
    pub(super) fn with<R>(&self, f: impl FnOnce(*mut sys::rdma_cm_id) -> R) -> R {
        f(self.state.lock().unwrap_or_else(PoisonError::into_inner).id)
    }

    /// For error messages.
    pub(super) fn describe(&self) -> String {
        self.with(|id| {
            let show = |address: Option<SocketAddr>| {
                address.map_or_else(|| "?".to_owned(), |address| address.to_string())
            };
            format!("connection {} to {}", show(local(id)), show(remote(id)))
        })
    }
}

impl Drop for IdInner {
    fn drop(&mut self) {
        // SAFETY: its queue pair holds an `Arc` of this, so it is gone; all its events have been
        // acknowledged as they were read.
        self.with(|id| unsafe { sys::rdma_destroy_id(id) });
    }
}

fn local(id: *mut sys::rdma_cm_id) -> Option<SocketAddr> {
    // SAFETY: an identifier that is alive; all of the address's storage is initialised.
    from_storage(unsafe { &(*id).route.addr.src_addr_union.src_storage })
}

fn remote(id: *mut sys::rdma_cm_id) -> Option<SocketAddr> {
    // SAFETY: as above.
    from_storage(unsafe { &(*id).route.addr.dst_addr_union.dst_storage })
}

impl RdmaCmChannel {
    pub(super) fn open(devices: &Arc<Devices>) -> Result<Self, VerbsError> {
        // SAFETY: no preconditions.
        let channel = unsafe { sys::rdma_create_event_channel() };
        let object = || "the connection manager".to_owned();
        let channel = check_pointer("rdma_create_event_channel", object, channel)?;
        let inner = Arc::new(CmChannelInner(channel));
        set_nonblocking(inner.fd(), "the connection manager")?;
        Ok(Self {
            inner,
            devices: Arc::clone(devices),
        })
    }

    fn create_id(&self, context: u64, object: SocketAddr) -> Result<RdmaCmId, VerbsError> {
        let mut id = ptr::null_mut();
        let context = ptr::without_provenance_mut(context as usize);
        let space = sys::rdma_port_space::RDMA_PS_TCP;
        // SAFETY: the channel lives for as long as the identifier holds it; `id` is written.
        let result = unsafe { sys::rdma_create_id(self.inner.0, &raw mut id, context, space) };
        check("rdma_create_id", || object.to_string(), result)?;
        Ok(self.own(id))
    }

    /// Takes an identifier over.
    fn own(&self, id: *mut sys::rdma_cm_id) -> RdmaCmId {
        RdmaCmId(Arc::new(IdInner {
            state: Mutex::new(IdState {
                id,
                channel: Arc::clone(&self.inner),
            }),
            devices: Arc::clone(&self.devices),
        }))
    }

    /// Reads an event, and takes over what is in it. `own` is what the library failed at itself, if
    /// the event says so.
    ///
    /// # Safety
    /// `event` was given by the library and has not been acknowledged.
    unsafe fn take(&self, event: *mut sys::rdma_cm_event, own: &io::Error) -> CmEvent {
        use sys::rdma_cm_event_type as t;
        // SAFETY: the event and what it names live until it is acknowledged. Of its parameters the
        // member for connections is set for the kinds that are read here; for others its memory is
        // initialised all the same.
        let (kind, id, listener, status, conn) = unsafe {
            let event = &*event;
            let conn = &event.param.conn;
            (event.event, event.id, event.listen_id, event.status, conn)
        };
        let has_param = matches!(
            kind,
            t::RDMA_CM_EVENT_CONNECT_REQUEST
                | t::RDMA_CM_EVENT_ESTABLISHED
                | t::RDMA_CM_EVENT_CONNECT_RESPONSE
                | t::RDMA_CM_EVENT_REJECTED
        );
        let private_data = if has_param && !conn.private_data.is_null() {
            // SAFETY: the library says how long the data is; it lives as long as the event.
            PrivateData::new(unsafe {
                std::slice::from_raw_parts(
                    conn.private_data.cast::<u8>(),
                    usize::from(conn.private_data_len),
                )
            })
        } else {
            PrivateData::default()
        };
        let param = ConnParam {
            responder_resources: conn.responder_resources,
            initiator_depth: conn.initiator_depth,
            retry_count: conn.retry_count,
            rnr_retry_count: conn.rnr_retry_count,
        };
        if kind == t::RDMA_CM_EVENT_DEVICE_REMOVAL {
            // SAFETY: as above.
            self.devices.removed(unsafe { (*id).verbs });
        }
        let is_request = kind == t::RDMA_CM_EVENT_CONNECT_REQUEST;
        let about = if is_request { listener } else { id };
        // SAFETY: an identifier with an event that is not acknowledged is alive.
        let context = unsafe { (*about).context }.addr() as u64;
        let kind = match kind {
            t::RDMA_CM_EVENT_ADDR_RESOLVED => CmEventKind::AddrResolved,
            t::RDMA_CM_EVENT_ROUTE_RESOLVED => CmEventKind::RouteResolved,
            t::RDMA_CM_EVENT_CONNECT_REQUEST => CmEventKind::ConnectRequest {
                id: Box::new(self.own(id)),
                param,
            },
            t::RDMA_CM_EVENT_ESTABLISHED | t::RDMA_CM_EVENT_CONNECT_RESPONSE => {
                CmEventKind::Established { param }
            }
            t::RDMA_CM_EVENT_REJECTED => CmEventKind::Rejected,
            t::RDMA_CM_EVENT_ADDR_ERROR
            | t::RDMA_CM_EVENT_ROUTE_ERROR
            | t::RDMA_CM_EVENT_CONNECT_ERROR
            | t::RDMA_CM_EVENT_UNREACHABLE => CmEventKind::Failed,
            t::RDMA_CM_EVENT_DISCONNECTED => CmEventKind::Disconnected,
            t::RDMA_CM_EVENT_DEVICE_REMOVAL => CmEventKind::DeviceRemoval,
            t::RDMA_CM_EVENT_TIMEWAIT_EXIT => CmEventKind::TimewaitExit,
            other => CmEventKind::Other(other),
        };
        // The library answers the peer's reply itself. A status of -1 says that this failed, and
        // is no EPERM.
        let status = match (&kind, status) {
            (CmEventKind::Failed, -1) => match own.raw_os_error() {
                Some(errno) if errno != 0 => -errno,
                _ => -libc::ECONNABORTED,
            },
            (CmEventKind::Failed, status) => -status.saturating_abs(),
            (_, status) => status,
        };
        CmEvent {
            context,
            kind,
            status,
            private_data,
        }
    }
}

impl CmChannel for RdmaCmChannel {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.inner.fd())
    }

    fn poll(&mut self) -> Result<Option<CmEvent>, VerbsError> {
        let mut event = ptr::null_mut();
        nix::errno::Errno::clear();
        // SAFETY: the channel lives; `event` is written.
        let result = unsafe { sys::rdma_get_cm_event(self.inner.0, &raw mut event) };
        let own = io::Error::last_os_error();
        if result != 0 {
            return match own.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(None),
                _ => Err(VerbsError::call(
                    "rdma_get_cm_event",
                    "the connection manager",
                    own,
                )),
            };
        }
        // SAFETY: an event of the library, acknowledged once, after everything was copied. A new
        // identifier is ours from here on: acknowledging does not destroy it.
        let taken = unsafe {
            let taken = self.take(event, &own);
            sys::rdma_ack_cm_event(event);
            taken
        };
        Ok(Some(taken))
    }

    fn listen(
        &mut self,
        context: u64,
        address: SocketAddr,
        backlog: u32,
    ) -> Result<Box<dyn CmId>, VerbsError> {
        let id = self.create_id(context, address)?;
        id.set_flag(RDMA_OPTION_ID_REUSEADDR)?;
        if address.is_ipv6() {
            id.set_flag(RDMA_OPTION_ID_AFONLY)?;
        }
        let mut raw = RawAddress::new(address);
        let backlog = backlog.min(i32::MAX as u32) as i32;
        id.0.with(|pointer| {
            // SAFETY: the identifier lives; the address is copied.
            let result = unsafe { sys::rdma_bind_addr(pointer, raw.as_mut_ptr()) };
            check("rdma_bind_addr", || address.to_string(), result)?;
            // SAFETY: as above.
            let result = unsafe { sys::rdma_listen(pointer, backlog) };
            check("rdma_listen", || address.to_string(), result)
        })?;
        Ok(Box::new(id))
    }

    fn resolve(
        &mut self,
        context: u64,
        source: Option<SocketAddr>,
        peer: SocketAddr,
        timeout_ms: u32,
    ) -> Result<Box<dyn CmId>, VerbsError> {
        let id = self.create_id(context, peer)?;
        let mut source = source.map(RawAddress::new);
        let source = source.as_mut().map_or(ptr::null_mut(), |s| s.as_mut_ptr());
        let mut raw = RawAddress::new(peer);
        let timeout = timeout_ms.min(i32::MAX as u32) as i32;
        id.0.with(|pointer| {
            // SAFETY: the identifier lives; addresses are copied.
            let result =
                unsafe { sys::rdma_resolve_addr(pointer, source, raw.as_mut_ptr(), timeout) };
            check("rdma_resolve_addr", || peer.to_string(), result)
        })?;
        Ok(Box::new(id))
    }

    fn adopt(&mut self, context: u64, id: &mut dyn CmId) -> Result<(), VerbsError> {
        let id = id.as_any_mut().downcast_mut::<RdmaCmId>();
        let id = id.ok_or(VerbsError::Foreign {
            what: "an identifier",
        })?;
        let object = || "an identifier".to_owned();
        let mut state = id.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: identifier and channel live. It waits until the events that were fetched from the
        // old channel are acknowledged, which whoever fetches them does at once.
        let result = unsafe { sys::rdma_migrate_id(state.id, self.inner.0) };
        check("rdma_migrate_id", object, result)?;
        state.channel = Arc::clone(&self.inner);
        // SAFETY: the identifier lives; nobody else looks at this: its events come here now.
        unsafe { (*state.id).context = ptr::without_provenance_mut(context as usize) };
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// An identifier.
struct RdmaCmId(Arc<IdInner>);

impl fmt::Debug for RdmaCmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RdmaCmId").field(&self.0.describe()).finish()
    }
}

impl RdmaCmId {
    fn set_option<T>(&self, option: i32, mut value: T) -> Result<(), VerbsError> {
        let result = self.0.with(|id| {
            // SAFETY: the identifier lives; the value is copied, and as long as is said.
            unsafe {
                sys::rdma_set_option(
                    id,
                    RDMA_OPTION_ID,
                    option,
                    (&raw mut value).cast(),
                    size_of::<T>(),
                )
            }
        });
        check("rdma_set_option", || self.0.describe(), result)
    }

    fn set_flag(&self, option: i32) -> Result<(), VerbsError> {
        self.set_option(option, 1_i32)
    }
}

/// Calls `f` with parameters in the form of the library.
fn with_param<R>(
    param: &ConnParam,
    private_data: &[u8],
    f: impl FnOnce(*mut sys::rdma_conn_param) -> R,
) -> R {
    let len = u8::try_from(private_data.len()).unwrap_or(u8::MAX);
    let mut raw = sys::rdma_conn_param {
        private_data: private_data.as_ptr().cast(),
        private_data_len: len,
        responder_resources: param.responder_resources,
        initiator_depth: param.initiator_depth,
        flow_control: 1,
        retry_count: param.retry_count,
        rnr_retry_count: param.rnr_retry_count,
        srq: 0,
        qp_num: 0,
    };
    f(&raw mut raw)
}

impl CmId for RdmaCmId {
    fn device(&self) -> Option<Arc<dyn Device>> {
        // SAFETY: the identifier lives.
        let context = self.0.with(|id| unsafe { (*id).verbs });
        let device = self.0.devices.find(context)?;
        Some(Arc::new(device))
    }

    fn local_addr(&self) -> Option<SocketAddr> {
        self.0.with(local)
    }

    fn remote_addr(&self) -> Option<SocketAddr> {
        self.0.with(remote)
    }

    fn set_tos(&mut self, tos: u8) -> Result<(), VerbsError> {
        self.set_option(RDMA_OPTION_ID_TOS, tos)
    }

    fn set_ack_timeout(&mut self, exponent: u8) -> Result<(), VerbsError> {
        self.set_option(RDMA_OPTION_ID_ACK_TIMEOUT, exponent)
    }

    fn resolve_route(&mut self, timeout_ms: u32) -> Result<(), VerbsError> {
        let timeout = timeout_ms.min(i32::MAX as u32) as i32;
        // SAFETY: the identifier lives.
        let result = self
            .0
            .with(|id| unsafe { sys::rdma_resolve_route(id, timeout) });
        check("rdma_resolve_route", || self.0.describe(), result)
    }

    fn create_qp(&mut self, options: &QpOptions<'_>) -> Result<Box<dyn Qp>, VerbsError> {
        Ok(Box::new(RdmaQp::create(&self.0, options)?))
    }

    fn connect(&mut self, param: &ConnParam, private_data: &[u8]) -> Result<(), VerbsError> {
        let result = with_param(param, private_data, |param| {
            // SAFETY: the identifier lives; parameters and data are copied.
            self.0.with(|id| unsafe { sys::rdma_connect(id, param) })
        });
        check("rdma_connect", || self.0.describe(), result)
    }

    fn accept(&mut self, param: &ConnParam, private_data: &[u8]) -> Result<(), VerbsError> {
        let result = with_param(param, private_data, |param| {
            // SAFETY: as above.
            self.0.with(|id| unsafe { sys::rdma_accept(id, param) })
        });
        check("rdma_accept", || self.0.describe(), result)
    }

    fn reject(&mut self, private_data: &[u8]) -> Result<(), VerbsError> {
        let len = u8::try_from(private_data.len()).unwrap_or(u8::MAX);
        let result = self.0.with(|id| {
            // SAFETY: the identifier lives; the data is copied.
            unsafe { sys::rdma_reject(id, private_data.as_ptr().cast(), len) }
        });
        check("rdma_reject", || self.0.describe(), result)
    }

    fn disconnect(&mut self) -> Result<(), VerbsError> {
        // SAFETY: the identifier lives.
        let result = self.0.with(|id| unsafe { sys::rdma_disconnect(id) });
        check("rdma_disconnect", || self.0.describe(), result)
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
