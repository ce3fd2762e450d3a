//! Queue pairs: chains of work requests.

use std::fmt;
use std::io;
use std::mem::{self, MaybeUninit};
use std::ptr;
use std::sync::Arc;

use rdma_mummy_sys as sys;

use super::check;
use super::cm::IdInner;
use super::device::{CqInner, PdInner, RdmaCq, RdmaMr, RdmaMw, RdmaPd, RdmaSrq, SrqInner};
use crate::error::VerbsError;
use crate::traits::{Mr, Mw, Qp};
use crate::types::{
    Bind, INLINE_LEN, PostError, QpOptions, RecvWr, SGE_MAX, SendOp, SendWr, SgeList,
};

/// Work requests that are chained at once; longer lists are several chains.
const CHAIN: usize = 32;

pub(super) struct RdmaQp {
    qp: *mut sys::ibv_qp,
    qp_num: u32,
    max_inline: u32,
    id: Arc<IdInner>,
    pd: Arc<PdInner>,
    _cqs: [Arc<CqInner>; 2],
    _srq: Option<Arc<SrqInner>>,
}

// SAFETY: verbs may be called from any thread; `&mut` keeps callers apart.
unsafe impl Send for RdmaQp {}

impl fmt::Debug for RdmaQp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RdmaQp").field(&self.qp_num).finish()
    }
}

impl RdmaQp {
    pub(super) fn create(id: &Arc<IdInner>, options: &QpOptions<'_>) -> Result<Self, VerbsError> {
        let foreign = |what| VerbsError::Foreign { what };
        let pd = options.pd.as_any().downcast_ref::<RdmaPd>();
        let pd = Arc::clone(&pd.ok_or(foreign("a protection domain"))?.0);
        let cq_of = |cq: &Arc<dyn crate::Cq>| -> Result<Arc<CqInner>, VerbsError> {
            let cq = cq.as_any().downcast_ref::<RdmaCq>();
            let cq = Arc::clone(&cq.ok_or(foreign("a completion queue"))?.0);
            if cq.device.is(&pd.device) {
                Ok(cq)
            } else {
                Err(foreign("a completion queue"))
            }
        };
        let cqs = [cq_of(options.send_cq)?, cq_of(options.recv_cq)?];
        let srq = match options.srq {
            None => None,
            Some(srq) => {
                let srq = srq.as_any().downcast_ref::<RdmaSrq>();
                let srq = Arc::clone(&srq.ok_or(foreign("a shared receive queue"))?.0);
                if !Arc::ptr_eq(&srq.pd, &pd) {
                    return Err(foreign("a shared receive queue"));
                }
                Some(srq)
            }
        };
        let mut attr = sys::ibv_qp_init_attr {
            qp_context: ptr::null_mut(),
            send_cq: cqs[0].cq,
            recv_cq: cqs[1].cq,
            srq: srq.as_ref().map_or(ptr::null_mut(), |srq| srq.srq),
            cap: sys::ibv_qp_cap {
                max_send_wr: options.max_send_wr,
                max_recv_wr: if srq.is_some() {
                    0
                } else {
                    options.max_recv_wr
                },
                max_send_sge: SGE_MAX as u32,
                max_recv_sge: SGE_MAX as u32,
                max_inline_data: options.max_inline_data,
            },
            qp_type: sys::ibv_qp_type::IBV_QPT_RC,
            sq_sig_all: 0,
        };
        let (result, qp) = id.with(|raw| {
            // SAFETY: the identifier, the domain, and the queues live for as long as the queue pair
            // holds them. Whether they are of one device, the library checks.
            unsafe {
                let result = sys::rdma_create_qp(raw, pd.pd, &raw mut attr);
                (result, (*raw).qp)
            }
        });
        check("rdma_create_qp", || id.describe(), result)?;
        // SAFETY: a queue pair that was just made.
        let qp_num = unsafe { (*qp).qp_num };
        Ok(Self {
            qp,
            qp_num,
            max_inline: attr.cap.max_inline_data,
            id: Arc::clone(id),
            pd,
            _cqs: cqs,
            _srq: srq,
        })
    }
}

impl Drop for RdmaQp {
    fn drop(&mut self) {
        self.id.with(|raw| {
            // SAFETY: the identifier lives, and its queue pair is this one.
            unsafe { sys::rdma_destroy_qp(raw) };
        });
    }
}

fn post_error(posted: usize, result: i32) -> PostError {
    let source = if result > 0 {
        io::Error::from_raw_os_error(result)
    } else {
        io::Error::last_os_error()
    };
    PostError { posted, source }
}

/// The entries of a list in the form of the library.
fn raw_sges(list: &SgeList) -> [sys::ibv_sge; SGE_MAX] {
    std::array::from_fn(|index| {
        let sge = list.get(index).copied().unwrap_or_default();
        sys::ibv_sge {
            addr: sge.addr,
            length: sge.len,
            lkey: sge.lkey,
        }
    })
}

/// Posts receives by `post`, which takes the first of a chain and says which was not taken.
pub(super) fn post_receives(
    requests: &[RecvWr],
    mut post: impl FnMut(*mut sys::ibv_recv_wr, *mut *mut sys::ibv_recv_wr) -> i32,
) -> Result<(), PostError> {
    let mut posted = 0;
    for chunk in requests.chunks(CHAIN) {
        let mut chain = [const { MaybeUninit::<sys::ibv_recv_wr>::uninit() }; CHAIN];
        let mut sges = [const { MaybeUninit::<[sys::ibv_sge; SGE_MAX]>::uninit() }; CHAIN];
        let first = chain.as_mut_ptr().cast::<sys::ibv_recv_wr>();
        for (index, request) in chunk.iter().enumerate() {
            let sges = sges[index].write(raw_sges(&request.sges));
            // SAFETY: plain numbers and pointers: all zero is a value of it.
            let wr = chain[index].write(unsafe { mem::zeroed() });
            wr.wr_id = request.wr_id;
            wr.sg_list = sges.as_mut_ptr();
            wr.num_sge = request.sges.len() as i32;
            wr.next = if index + 1 < chunk.len() {
                // Inside the array: `index + 1` is below its length.
                first.wrapping_add(index + 1)
            } else {
                ptr::null_mut()
            };
        }
        let mut bad = ptr::null_mut();
        let result = post(first, &raw mut bad);
        if result != 0 {
            let taken = (0..chunk.len()).find(|&index| first.wrapping_add(index) == bad);
            return Err(post_error(posted + taken.unwrap_or(0), result));
        }
        posted += chunk.len();
    }
    Ok(())
}

/// What a send work request points to.
struct Places {
    sges: [sys::ibv_sge; SGE_MAX],
    inline: [u8; INLINE_LEN],
}

fn fill(wr: &mut sys::ibv_send_wr, places: &mut MaybeUninit<Places>, request: &SendWr) {
    use sys::ibv_send_flags as f;
    use sys::ibv_wr_opcode as o;
    wr.wr_id = request.wr_id;
    let flags = [
        (request.is_signaled, f::IBV_SEND_SIGNALED),
        (request.is_fenced, f::IBV_SEND_FENCE),
        (request.inline.is_some(), f::IBV_SEND_INLINE),
    ];
    let flags = flags.iter().filter(|(is_on, _)| *is_on);
    wr.send_flags = flags.fold(0, |all, (_, flag)| all | flag.0);
    let rdma = |remote_addr, rkey| sys::wr_t {
        rdma: sys::rdma_t { remote_addr, rkey },
    };
    let key = |invalidated_rkey| sys::imm_data_invalidated_rkey_union_t { invalidated_rkey };
    match request.op {
        SendOp::Send => wr.opcode = o::IBV_WR_SEND,
        SendOp::SendWithInv { rkey } => {
            wr.opcode = o::IBV_WR_SEND_WITH_INV;
            wr.imm_data_invalidated_rkey_union = key(rkey);
        }
        SendOp::Write { remote_addr, rkey } => {
            wr.opcode = o::IBV_WR_RDMA_WRITE;
            wr.wr = rdma(remote_addr, rkey);
        }
        SendOp::Read { remote_addr, rkey } => {
            wr.opcode = o::IBV_WR_RDMA_READ;
            wr.wr = rdma(remote_addr, rkey);
        }
        SendOp::LocalInv { rkey } => {
            wr.opcode = o::IBV_WR_LOCAL_INV;
            wr.imm_data_invalidated_rkey_union = key(rkey);
        }
    }
    let places = places.write(Places {
        sges: raw_sges(&request.sges),
        inline: request.inline.unwrap_or_default(),
    });
    wr.num_sge = request.sges.len() as i32;
    if request.inline.is_some() {
        places.sges[0] = sys::ibv_sge {
            addr: places.inline.as_mut_ptr().expose_provenance() as u64,
            length: INLINE_LEN as u32,
            lkey: 0,
        };
        wr.num_sge = 1;
    }
    wr.sg_list = places.sges.as_mut_ptr();
}

impl Qp for RdmaQp {
    fn qp_num(&self) -> u32 {
        self.qp_num
    }

    fn max_inline(&self) -> u32 {
        self.max_inline
    }

    fn post_send(&mut self, requests: &[SendWr]) -> Result<(), PostError> {
        let mut posted = 0;
        for chunk in requests.chunks(CHAIN) {
            let mut chain = [const { MaybeUninit::<sys::ibv_send_wr>::uninit() }; CHAIN];
            let mut places = [const { MaybeUninit::<Places>::uninit() }; CHAIN];
            let first = chain.as_mut_ptr().cast::<sys::ibv_send_wr>();
            for (index, request) in chunk.iter().enumerate() {
                if request.inline.is_some() && self.max_inline < INLINE_LEN as u32 {
                    return Err(post_error(posted, libc::EINVAL));
                }
                // SAFETY: plain numbers and pointers: all zero is a value of it.
                let wr = chain[index].write(unsafe { mem::zeroed() });
                fill(wr, &mut places[index], request);
                wr.next = if index + 1 < chunk.len() {
                    // Inside the array: `index + 1` is below its length.
                    first.wrapping_add(index + 1)
                } else {
                    ptr::null_mut()
                };
            }
            let mut bad = ptr::null_mut();
            // SAFETY: the queue pair lives. Chain, entries and inline data are read before the call
            // returns; other memory is reached by the device through its keys.
            let result = unsafe { sys::ibv_post_send(self.qp, first, &raw mut bad) };
            if result != 0 {
                let taken = (0..chunk.len()).find(|&index| first.wrapping_add(index) == bad);
                return Err(post_error(posted + taken.unwrap_or(0), result));
            }
            posted += chunk.len();
        }
        Ok(())
    }

    fn post_recv(&mut self, requests: &[RecvWr]) -> Result<(), PostError> {
        post_receives(requests, |first, bad| {
            // SAFETY: the queue pair lives; the chain is read before the call returns.
            unsafe { sys::ibv_post_recv(self.qp, first, bad) }
        })
    }

    fn bind_mw(&mut self, mw: &mut dyn Mw, mr: &dyn Mr, bind: &Bind) -> Result<u32, PostError> {
        let invalid = || post_error(0, libc::EINVAL);
        let mw = mw.as_any_mut().downcast_mut::<RdmaMw>();
        let mw = mw
            .filter(|mw| Arc::ptr_eq(&mw.pd, &self.pd))
            .ok_or_else(invalid)?;
        let mr = mr.as_any().downcast_ref::<RdmaMr>();
        let mr = mr
            .filter(|mr| Arc::ptr_eq(&mr.pd, &self.pd))
            .ok_or_else(invalid)?;
        let rkey = mw.next_rkey();
        type A = sys::ibv_access_flags;
        let write = if bind.is_writable {
            A::IBV_ACCESS_REMOTE_WRITE.0
        } else {
            0
        };
        // SAFETY: plain numbers and pointers: all zero is a value of it.
        let mut wr: sys::ibv_send_wr = unsafe { mem::zeroed() };
        wr.wr_id = bind.wr_id;
        wr.opcode = sys::ibv_wr_opcode::IBV_WR_BIND_MW;
        wr.bind_mw_tso_union = sys::bind_mw_tso_union_t {
            bind_mw: sys::bind_mw_t {
                mw: mw.mw,
                rkey,
                bind_info: sys::ibv_mw_bind_info {
                    mr: mr.mr,
                    addr: bind.addr,
                    length: u64::from(bind.len),
                    mw_access_flags: A::IBV_ACCESS_REMOTE_READ.0 | write,
                },
            },
        };
        let mut bad = ptr::null_mut();
        // SAFETY: queue pair, window and registration live, and are of one domain. The request is
        // read before the call returns. A window or a registration that goes before the request
        // is carried out makes it fail.
        let result = unsafe { sys::ibv_post_send(self.qp, &raw mut wr, &raw mut bad) };
        if result != 0 {
            return Err(post_error(0, result));
        }
        Ok(rkey)
    }

    fn set_error(&mut self) -> Result<(), VerbsError> {
        // SAFETY: plain numbers: all zero is a value of it.
        let mut attr: sys::ibv_qp_attr = unsafe { mem::zeroed() };
        attr.qp_state = sys::ibv_qp_state::IBV_QPS_ERR;
        let mask = sys::ibv_qp_attr_mask::IBV_QP_STATE.0 as i32;
        // SAFETY: the queue pair lives.
        let result = unsafe { sys::ibv_modify_qp(self.qp, &raw mut attr, mask) };
        check("ibv_modify_qp", || self.id.describe(), result)
    }
}
