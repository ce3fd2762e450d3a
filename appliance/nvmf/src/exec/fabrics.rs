//! Fabrics commands: Connect, Property Get and Set, Disconnect (NVMe Base 2.1, section 6).

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use fabric_wire::fabrics::{
    CNTLID_DYNAMIC, ConnectCommand, ConnectData, ConnectDataError, ConnectParts, FCTYPE_CONNECT,
    FCTYPE_DISCONNECT, FCTYPE_PROPERTY_GET, FCTYPE_PROPERTY_SET, FabricsError, PropertyGet,
    PropertySet, PropertySize, connect_invalid_parameters_result, fctype,
};
use nvme_spec::{Cntlid, Sqe, Status, registers};

use crate::controller::{AddQueueError, Controller, ControllerKind, ControllerParts, QpairRef};
use crate::events::TargetEvent;
use crate::queue::{Association, Queue, add};
use crate::registers::CcChange;
use crate::slot::{Outcome, Slot};
use crate::subsystem::Subsystem;

/// How long a Connect waits for an older queue pair of the same number to end.
const DUPLICATE_QID_WAIT: Duration = Duration::from_secs(2);
/// How often it looks.
const DUPLICATE_QID_PERIOD: Duration = Duration::from_millis(5);

/// Runs a fabrics command of a queue pair that is connected.
pub(crate) fn execute(queue: &Queue, sqe: &Sqe) -> Outcome {
    let Some(association) = queue.association() else {
        return Status::COMMAND_SEQUENCE_ERROR.into();
    };
    let is_admin = association.qid.0 == 0;
    match fctype(sqe) {
        Some(FCTYPE_PROPERTY_GET) if is_admin => property_get(&association.controller, sqe),
        Some(FCTYPE_PROPERTY_SET) if is_admin => property_set(queue, &association.controller, sqe),
        Some(FCTYPE_PROPERTY_GET | FCTYPE_PROPERTY_SET) => {
            Status::INVALID_QUEUE_TYPE.with_dnr(true).into()
        }
        Some(FCTYPE_DISCONNECT) if !is_admin => {
            // The response goes out first, then the connection is closed.
            queue.close_after_response.set(true);
            Outcome::OK
        }
        Some(FCTYPE_DISCONNECT) => Status::INVALID_QUEUE_TYPE.with_dnr(true).into(),
        Some(FCTYPE_CONNECT) => Status::COMMAND_SEQUENCE_ERROR.with_dnr(true).into(),
        _ => Status::INVALID_OPCODE.with_dnr(true).into(),
    }
}

fn property_get(controller: &Controller, sqe: &Sqe) -> Outcome {
    let Ok(get) = PropertyGet::parse(sqe) else {
        return Status::INVALID_FIELD.with_dnr(true).into();
    };
    let state = controller.lock();
    let value = match (get.offset, get.size) {
        (registers::CAP, PropertySize::Eight) => state.registers.cap(),
        (registers::VS, PropertySize::Four) => state.registers.vs().into(),
        (registers::CC, PropertySize::Four) => state.registers.cc().into(),
        (registers::CSTS, PropertySize::Four) => state.registers.csts().into(),
        (registers::CRTO, PropertySize::Four) => state.registers.crto().into(),
        _ => return Status::INVALID_FIELD.with_dnr(true).into(),
    };
    Outcome::ok(value)
}

fn property_set(queue: &Queue, controller: &Controller, sqe: &Sqe) -> Outcome {
    let Ok(set) = PropertySet::parse(sqe) else {
        return Status::INVALID_FIELD.with_dnr(true).into();
    };
    match (set.offset, set.size, u32::try_from(set.value)) {
        (registers::CC, PropertySize::Four, Ok(value)) => match controller.write_cc(value) {
            Ok(change) => {
                if change == CcChange::Reset {
                    queue.forget_event_requests();
                    // The timeout is that of Connect again.
                    queue.group.target.keep_alive_changed();
                }
                Outcome::OK
            }
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

    fn of_command(error: &FabricsError) -> Self {
        match error {
            FabricsError::RecordFormat { .. } => Self {
                status: Status::CONNECT_INCOMPATIBLE_FORMAT.with_dnr(true),
                result: connect_invalid_parameters_result(false, ConnectCommand::RECFMT_OFFSET),
            },
            FabricsError::Field { offset, .. } => Self::command(*offset),
            _ => Self::status(Status::INVALID_FIELD.with_dnr(true)),
        }
    }

    fn of_data(error: &ConnectDataError) -> Self {
        match error.offset() {
            Some(offset) => Self::data(offset),
            None => Self::status(Status::DATA_SGL_LENGTH_INVALID.with_dnr(true)),
        }
    }

    fn status(status: Status) -> Self {
        Self { status, result: 0 }
    }
}

/// Runs the first command of a queue pair, which must be Connect. A queue pair whose Connect is
/// refused is closed once the host has the response.
pub(crate) async fn connect(queue: &Rc<Queue>, slot: &Rc<Slot>, sqe: Sqe) -> Outcome {
    // One Connect, and nothing beside it until it is answered.
    if fctype(&sqe) != Some(FCTYPE_CONNECT) || queue.has_connect.replace(true) {
        queue.close_after_response.set(true);
        return Status::COMMAND_SEQUENCE_ERROR.with_dnr(true).into();
    }
    match try_connect(queue, slot, &sqe).await {
        Ok(cntlid) => Outcome::ok(cntlid.0.into()),
        Err(refusal) => {
            queue.close_after_response.set(true);
            queue.group.target.tell(TargetEvent::ConnectRefused {
                remote: queue.peer.remote.clone(),
                status: refusal.status.of_fabrics().to_string(),
            });
            Outcome {
                status: refusal.status,
                result: refusal.result.into(),
            }
        }
    }
}

/// The checked parts of a Connect.
struct Request {
    command: ConnectCommand,
    data: ConnectParts,
}

impl Request {
    /// Entries of the submission queue.
    fn depth(&self) -> u16 {
        // SQSIZE was checked to be below a limit of the same type.
        self.command.sqsize + 1
    }
}

async fn try_connect(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<Cntlid, Refusal> {
    let request = read_request(queue, slot, sqe).await?;
    queue
        .sq_flow_control
        .set(!request.command.disables_sq_flow_control());
    if request.command.qid.0 == 0 {
        connect_admin(queue, request)
    } else {
        connect_io(queue, slot, request).await
    }
}

async fn read_request(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<Request, Refusal> {
    let command = ConnectCommand::parse(sqe).map_err(|error| Refusal::of_command(&error))?;
    let max = if command.qid.0 == 0 {
        queue.limits.max_aq_depth
    } else {
        queue.limits.max_queue_depth
    };
    if command.sqsize >= max {
        return Err(Refusal::command(ConnectCommand::SQSIZE_OFFSET));
    }
    let len = queue.sgl_len(sqe, slot).map_err(Refusal::status)?;
    if len as usize != size_of::<ConnectData>() {
        return Err(Refusal::status(
            Status::DATA_SGL_LENGTH_INVALID.with_dnr(true),
        ));
    }
    let payload = queue
        .receive_reserved(slot, len)
        .await
        .map_err(Refusal::status)?;
    let bytes = payload.as_buf().map_or(&[][..], |buffer| buffer.as_slice());
    let data = ConnectData::parse(bytes).map_err(|error| Refusal::of_data(&error))?;
    if data.hostid_is_zero() {
        return Err(Refusal::data(ConnectData::HOSTID_OFFSET));
    }
    Ok(Request { command, data })
}

/// The subsystem that a host asks for, if it may have it at this address.
fn find_subsystem(queue: &Queue, request: &Request) -> Result<Arc<Subsystem>, Refusal> {
    let subsystem = queue
        .group
        .target
        .subsystem(&request.data.subnqn)
        .filter(|subsystem| subsystem.is_active())
        .ok_or_else(|| Refusal::data(ConnectData::SUBNQN_OFFSET))?;
    let config = subsystem.config();
    if config.listener(&queue.peer.listener).is_none() {
        return Err(Refusal::data(ConnectData::SUBNQN_OFFSET));
    }
    if !config.allows_host(&request.data.hostnqn) {
        return Err(Refusal {
            status: Status::CONNECT_INVALID_HOST.with_dnr(true),
            result: connect_invalid_parameters_result(true, ConnectData::HOSTNQN_OFFSET),
        });
    }
    Ok(subsystem)
}

/// The keep-alive timeout granted: at least the minimum, rounded up to the granularity.
pub(crate) fn granted_kato_ms(queue: &Queue, asked_ms: u32, is_discovery: bool) -> u32 {
    let options = queue.group.target.options();
    let asked_ms = match asked_ms {
        0 if is_discovery => options.discovery_kato_ms,
        0 => return 0,
        asked => asked.max(queue.limits.min_kato_ms),
    };
    let granularity_ms = u32::from(queue.limits.kas_100ms.max(1)) * 100;
    asked_ms
        .div_ceil(granularity_ms)
        .saturating_mul(granularity_ms)
}

fn connect_admin(queue: &Rc<Queue>, request: Request) -> Result<Cntlid, Refusal> {
    if request.data.cntlid.0 != CNTLID_DYNAMIC {
        // Only the dynamic controller model: the controller identifier is the target's choice.
        return Err(Refusal::data(ConnectData::CNTLID_OFFSET));
    }
    let is_discovery = request.data.subnqn.is_discovery();
    let kato_ms = granted_kato_ms(queue, request.command.kato_ms, is_discovery);
    let parts = |kind, cntlid| ControllerParts {
        cntlid,
        subsystem_nqn: request.data.subnqn.clone(),
        host_nqn: request.data.hostnqn.clone(),
        host_id: request.data.hostid,
        kind,
        transport: queue.transport,
        limits: Arc::clone(&queue.limits),
        peer: queue.peer.clone(),
        kato_ms,
        made_at: queue.group.now.get(),
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
    controller.set_admin_queue(qpair_ref(queue, request.depth()));
    target.tell(TargetEvent::ControllerConnected {
        nqn: request.data.subnqn.clone(),
        host: request.data.hostnqn.clone(),
        cntlid: controller.cntlid(),
        remote: queue.peer.remote.clone(),
    });
    let cntlid = controller.cntlid();
    associate(queue, request, controller, subsystem.as_ref());
    if kato_ms > 0 {
        target.keep_alive_changed();
    }
    // The subsystem may have been stopped, or its access rules changed, while this host was on its
    // way in: then nobody has told the admin queue, as it was not there yet.
    if let (Some(subsystem), Some(association)) = (subsystem, queue.association()) {
        let controller = &association.controller;
        if controller.is_ended() || controller.is_refused_by(&subsystem.config()) {
            controller.end_because("access taken away", None);
        }
    }
    Ok(cntlid)
}

async fn connect_io(queue: &Rc<Queue>, slot: &Slot, request: Request) -> Result<Cntlid, Refusal> {
    let subsystem = find_subsystem(queue, &request)?;
    let controller = subsystem
        .controller(request.data.cntlid)
        .ok_or_else(|| Refusal::data(ConnectData::CNTLID_OFFSET))?;
    if *controller.host_nqn() != request.data.hostnqn {
        return Err(Refusal::data(ConnectData::HOSTNQN_OFFSET));
    }
    if *controller.host_id() != request.data.hostid {
        return Err(Refusal::data(ConnectData::HOSTID_OFFSET));
    }
    if controller.transport != queue.transport
        || request.command.qid.0 > controller.granted_io_queues()
    {
        return Err(Refusal::command(ConnectCommand::QID_OFFSET));
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
        match controller.add_io_queue(request.command.qid, qpair_ref(queue, request.depth())) {
            Ok(()) => return Ok(()),
            Err(AddQueueError::NotReady) => {
                return Err(Refusal::status(
                    Status::COMMAND_SEQUENCE_ERROR.with_dnr(true),
                ));
            }
            Err(AddQueueError::InUse) if group.now.get() >= give_up_at => {
                return Err(Refusal::command(ConnectCommand::QID_OFFSET));
            }
            Err(AddQueueError::InUse) => {
                let at = group.now.get() + DUPLICATE_QID_PERIOD;
                group.timed.borrow_mut().push((at, queue.id, slot.id));
                let mut is_first_poll = true;
                poll_fn(|_| {
                    if std::mem::take(&mut is_first_poll) {
                        Poll::Pending
                    } else {
                        Poll::Ready(())
                    }
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
        digests: queue.digests,
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
    let (total, current) = if request.command.qid.0 == 0 {
        (&counters.admin_qpairs, &counters.current_admin_qpairs)
    } else {
        (&counters.io_qpairs, &counters.current_io_qpairs)
    };
    add(total, 1);
    add(current, 1);
    add(&counters.current_unassociated_qpairs, u64::MAX);
    queue.set_host(&request.data.hostnqn);
    let association = Association {
        qid: request.command.qid,
        controller,
        subsystem: subsystem.map(|subsystem| queue.group.attach(subsystem)),
        host_nqn: request.data.hostnqn,
    };
    let is_new = queue.association.set(association).is_ok();
    debug_assert!(is_new, "a queue pair connects once");
}
