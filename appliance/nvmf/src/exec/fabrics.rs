//! Fabrics commands: Connect, Property Get and Set, Disconnect (NVMe Base 2.1, section 6).

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use fabric_wire::Nqn;
use fabric_wire::fabrics::{
    self, ConnectCommand, ConnectData, PropertyGet, PropertySet, connect_invalid_parameters_result,
    fctype,
};
use nvme_spec::{Cntlid, Qid, Sqe, Status, registers};

use crate::controller::{
    AddQueueError, Controller, ControllerKind, ControllerParts, QpairRef,
};
use crate::queue::{Association, Queue, add, sgl_len};
use crate::slot::{Outcome, Slot};
use crate::subsystem::Subsystem;
use crate::transport::CloseReason;

/// How long a Connect waits for an older queue pair of the same number to end.
const DUPLICATE_QID_WAIT: Duration = Duration::from_secs(2);
/// How often it looks.
const DUPLICATE_QID_PERIOD: Duration = Duration::from_millis(5);

/// Runs a fabrics command of a queue pair that is connected.
pub(crate) async fn execute(queue: &Rc<Queue>, slot: &Rc<Slot>, sqe: Sqe) -> Outcome {
    let Some(association) = queue.association() else {
        return Status::COMMAND_SEQUENCE_ERROR.into();
    };
    let is_admin = association.qid.0 == 0;
    match fctype(&sqe) {
        fabrics::PROPERTY_GET if is_admin => property_get(&association.controller, &sqe),
        fabrics::PROPERTY_SET if is_admin => property_set(&association.controller, &sqe),
        fabrics::DISCONNECT if !is_admin => {
            // The response goes out first, then the connection is closed.
            let _ = slot;
            queue.close_after_response.set(true);
            Outcome::OK
        }
        fabrics::DISCONNECT => Status::INVALID_QUEUE_TYPE.with_dnr(true).into(),
        fabrics::CONNECT => Status::COMMAND_SEQUENCE_ERROR.with_dnr(true).into(),
        _ => Status::INVALID_OPCODE.with_dnr(true).into(),
    }
}

fn property_get(controller: &Controller, sqe: &Sqe) -> Outcome {
    let get = PropertyGet::parse(sqe);
    let state = controller.lock();
    let value = match (get.offset, get.size) {
        (registers::CAP, 8) => state.registers.cap(),
        (registers::VS, 4) => state.registers.vs().into(),
        (registers::CC, 4) => state.registers.cc().into(),
        (registers::CSTS, 4) => state.registers.csts().into(),
        (registers::CRTO, 4) => state.registers.crto().into(),
        _ => return Status::INVALID_FIELD.with_dnr(true).into(),
    };
    Outcome::ok(value)
}

fn property_set(controller: &Controller, sqe: &Sqe) -> Outcome {
    let set = PropertySet::parse(sqe);
    match (set.offset, set.size, u32::try_from(set.value)) {
        (registers::CC, 4, Ok(value)) => match controller.write_cc(value) {
            Ok(()) => Outcome::OK,
            Err(status) => status.into(),
        },
        _ => Status::INVALID_FIELD.with_dnr(true).into(),
    }
}

/// Why a Connect is refused.
struct Refusal {
    status: Status,
    result: u32,
}

impl Refusal {
    /// A field of the command is wrong; `offset` is its byte within the command.
    fn command(offset: u16) -> Self {
        Self {
            status: Status::CONNECT_INVALID_PARAMETERS.with_dnr(true),
            result: connect_invalid_parameters_result(false, offset),
        }
    }

    /// A field of the data is wrong; `offset` is its byte within the data.
    fn data(offset: u16) -> Self {
        Self {
            status: Status::CONNECT_INVALID_PARAMETERS.with_dnr(true),
            result: connect_invalid_parameters_result(true, offset),
        }
    }

    fn status(status: Status) -> Self {
        Self { status, result: 0 }
    }
}

// Byte offsets of fields for refusals (NVMe Base 2.1, Connect command and data).
const RECFMT_AT: u16 = 40;
const QID_AT: u16 = 42;
const SQSIZE_AT: u16 = 44;
const HOSTID_AT: u16 = 0;
const CNTLID_AT: u16 = 16;
const SUBNQN_AT: u16 = 256;
const HOSTNQN_AT: u16 = 512;

/// Runs the first command of a queue pair, which must be Connect. A queue pair whose Connect is
/// refused is closed once the host has the response.
pub(crate) async fn connect(queue: &Rc<Queue>, slot: &Rc<Slot>, sqe: Sqe) -> Outcome {
    if !sqe.is_fabrics() || fctype(&sqe) != fabrics::CONNECT {
        queue.close_after_response.set(true);
        return Status::COMMAND_SEQUENCE_ERROR.with_dnr(true).into();
    }
    match try_connect(queue, slot, &sqe).await {
        Ok(cntlid) => Outcome::ok(cntlid.0.into()),
        Err(refusal) => {
            queue.close_after_response.set(true);
            tracing::warn!(peer = queue.peer.remote, status = %refusal.status,
                "connect refused");
            Outcome { status: refusal.status, result: refusal.result.into() }
        }
    }
}

/// The checked parts of a Connect.
struct Request {
    qid: Qid,
    depth: u16,
    kato_ms: u32,
    has_flow_control: bool,
    cntlid: Cntlid,
    host_id: [u8; 16],
    subsystem_nqn: Nqn,
    host_nqn: Nqn,
}

async fn try_connect(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<Cntlid, Refusal> {
    let request = read_request(queue, slot, sqe).await?;
    queue.sq_flow_control.set(request.has_flow_control);
    if request.qid.0 == 0 {
        connect_admin(queue, request)
    } else {
        connect_io(queue, slot, request).await
    }
}

async fn read_request(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<Request, Refusal> {
    let command = ConnectCommand::parse(sqe);
    if command.recfmt != 0 {
        return Err(Refusal {
            status: Status::CONNECT_INCOMPATIBLE_FORMAT.with_dnr(true),
            result: connect_invalid_parameters_result(false, RECFMT_AT),
        });
    }
    let max = if command.qid.0 == 0 {
        queue.limits.max_aq_depth
    } else {
        queue.limits.max_queue_depth
    };
    if command.sqsize == 0 || command.sqsize >= max {
        return Err(Refusal::command(SQSIZE_AT));
    }
    let len = sgl_len(sqe, slot.in_capsule_len()).map_err(Refusal::status)?;
    if len as usize != size_of::<ConnectData>() {
        return Err(Refusal::status(Status::DATA_SGL_LENGTH_INVALID.with_dnr(true)));
    }
    let payload = queue.receive_reserved(slot, len).await.map_err(Refusal::status)?;
    let bytes = payload.as_buf().map_or(&[][..], |buffer| buffer.as_slice());
    let data = ConnectData::parse(bytes).map_err(|_| Refusal::data(HOSTID_AT))?;
    let subsystem_nqn =
        Nqn::from_padded(&data.subnqn).map_err(|_| Refusal::data(SUBNQN_AT))?;
    let host_nqn = Nqn::from_padded(&data.hostnqn).map_err(|_| Refusal::data(HOSTNQN_AT))?;
    if data.hostid == [0; 16] {
        return Err(Refusal::data(HOSTID_AT));
    }
    Ok(Request {
        qid: command.qid,
        depth: command.sqsize + 1,
        kato_ms: command.kato_ms,
        has_flow_control: !command.disables_sq_flow_control(),
        cntlid: data.cntlid(),
        host_id: data.hostid,
        subsystem_nqn,
        host_nqn,
    })
}

/// The subsystem that a host asks for, if it may have it at this address.
fn find_subsystem(queue: &Queue, request: &Request) -> Result<Arc<Subsystem>, Refusal> {
    let subsystem = queue
        .group
        .target
        .subsystem(&request.subsystem_nqn)
        .filter(|subsystem| subsystem.is_active())
        .ok_or_else(|| Refusal::data(SUBNQN_AT))?;
    let config = subsystem.config();
    if config.listener(&queue.peer.listener).is_none() {
        return Err(Refusal::data(SUBNQN_AT));
    }
    if !config.allows_host(&request.host_nqn) {
        return Err(Refusal {
            status: Status::CONNECT_INVALID_HOST.with_dnr(true),
            result: connect_invalid_parameters_result(true, HOSTNQN_AT),
        });
    }
    Ok(subsystem)
}

/// The keep-alive timeout granted: at least the minimum, rounded up to the granularity.
fn granted_kato_ms(queue: &Queue, asked_ms: u32, is_discovery: bool) -> u32 {
    let options = queue.group.target.options();
    let asked_ms = match asked_ms {
        0 if is_discovery => options.discovery_kato_ms,
        0 => return 0,
        asked => asked.max(options.min_kato_ms),
    };
    let granularity_ms = u32::from(options.kas_100ms.max(1)) * 100;
    asked_ms.div_ceil(granularity_ms).saturating_mul(granularity_ms)
}

fn connect_admin(queue: &Rc<Queue>, request: Request) -> Result<Cntlid, Refusal> {
    if request.cntlid.0 != 0xffff {
        // Only the dynamic controller model: the controller identifier is the target's choice.
        return Err(Refusal::data(CNTLID_AT));
    }
    let is_discovery = request.subsystem_nqn == Nqn::discovery();
    let kato_ms = granted_kato_ms(queue, request.kato_ms, is_discovery);
    let parts = |kind, cntlid| ControllerParts {
        cntlid,
        subsystem_nqn: request.subsystem_nqn.clone(),
        host_nqn: request.host_nqn.clone(),
        host_id: request.host_id,
        kind,
        transport: queue.transport,
        limits: Arc::clone(&queue.limits),
        peer: queue.peer.clone(),
        kato_ms,
    };
    let target = &queue.group.target;
    let (controller, subsystem) = if is_discovery {
        let controller = target
            .add_discovery_controller(|id| Controller::new(parts(ControllerKind::Discovery, id)))
            .ok_or_else(|| Refusal::status(Status::CONNECT_CONTROLLER_BUSY))?;
        (controller, None)
    } else {
        let subsystem = find_subsystem(queue, &request)?;
        let kind = ControllerKind::Io(Arc::downgrade(&subsystem));
        let controller = subsystem
            .add_controller(|id| Controller::new(parts(kind, id)))
            .ok_or_else(|| Refusal::status(Status::CONNECT_CONTROLLER_BUSY))?;
        (controller, Some(subsystem))
    };
    controller.set_admin_queue(qpair_ref(queue, request.depth));
    let cntlid = controller.cntlid();
    associate(queue, request, controller, subsystem.as_ref());
    if kato_ms > 0 {
        target.keep_alive_changed();
    }
    // The subsystem's access rules may have changed while this host was on its way in.
    if let (Some(subsystem), Some(association)) = (subsystem, queue.association())
        && !subsystem.config().allows_host(&association.host_nqn)
    {
        association.controller.end(CloseReason::ControllerEnded, None);
    }
    Ok(cntlid)
}

async fn connect_io(
    queue: &Rc<Queue>,
    slot: &Slot,
    request: Request,
) -> Result<Cntlid, Refusal> {
    let subsystem = find_subsystem(queue, &request)?;
    let controller =
        subsystem.controller(request.cntlid).ok_or_else(|| Refusal::data(CNTLID_AT))?;
    if *controller.host_nqn() != request.host_nqn {
        return Err(Refusal::data(HOSTNQN_AT));
    }
    if *controller.host_id() != request.host_id {
        return Err(Refusal::data(HOSTID_AT));
    }
    if controller.transport != queue.transport || request.qid.0 > controller.granted_io_queues() {
        return Err(Refusal::command(QID_AT));
    }
    add_io_queue(queue, slot, &controller, &request).await?;
    let cntlid = controller.cntlid();
    associate(queue, request, controller, Some(&subsystem));
    Ok(cntlid)
}

/// Adds the queue pair to its controller. A host that reconnects a queue may come before its old
/// connection has gone: the Connect waits for that for a while.
async fn add_io_queue(
    queue: &Rc<Queue>,
    slot: &Slot,
    controller: &Controller,
    request: &Request,
) -> Result<(), Refusal> {
    let group = &queue.group;
    let give_up_at = group.now.get() + DUPLICATE_QID_WAIT;
    loop {
        match controller.add_io_queue(request.qid, qpair_ref(queue, request.depth)) {
            Ok(()) => return Ok(()),
            Err(AddQueueError::NotReady) => {
                return Err(Refusal::status(Status::COMMAND_SEQUENCE_ERROR.with_dnr(true)));
            }
            Err(AddQueueError::InUse) if group.now.get() >= give_up_at => {
                return Err(Refusal::command(QID_AT));
            }
            Err(AddQueueError::InUse) => {
                let at = group.now.get() + DUPLICATE_QID_PERIOD;
                group.timed.borrow_mut().push((at, queue.id, slot.id));
                let mut is_first_poll = true;
                poll_fn(|_| {
                    if std::mem::take(&mut is_first_poll) { Poll::Pending } else { Poll::Ready(()) }
                })
                .await;
            }
        }
    }
}

fn qpair_ref(queue: &Queue, depth: u16) -> QpairRef {
    QpairRef {
        group: Arc::clone(&queue.group.handle),
        qpair: queue.id,
        uid: queue.uid,
        depth,
        peer: queue.peer.clone(),
        counters: Arc::clone(&queue.counters),
        is_closed: false,
    }
}

/// Ties the queue pair to its controller for the rest of its life.
fn associate(
    queue: &Rc<Queue>,
    request: Request,
    controller: Arc<Controller>,
    subsystem: Option<&Arc<Subsystem>>,
) {
    let counters = &queue.group.handle.counters;
    let (total, current) = if request.qid.0 == 0 {
        (&counters.admin_qpairs, &counters.current_admin_qpairs)
    } else {
        (&counters.io_qpairs, &counters.current_io_qpairs)
    };
    add(total, 1);
    add(current, 1);
    add(&counters.current_unassociated_qpairs, u64::MAX);
    let association = Association {
        qid: request.qid,
        controller,
        subsystem: subsystem.map(|subsystem| queue.group.attach(subsystem)),
        host_nqn: request.host_nqn,
    };
    let is_new = queue.association.set(association).is_ok();
    debug_assert!(is_new, "a queue pair connects once");
}
