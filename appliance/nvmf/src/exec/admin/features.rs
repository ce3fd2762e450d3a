//! Get Features and Set Features (NVMe Base 2.1, sections 5.1.11 and 5.1.25).

use std::rc::Rc;
use std::sync::Arc;

use nvme_spec::feature::{Select, capability, fid};
use nvme_spec::{Nsid, Sqe, Status};

use super::{answer, identify, namespace, receive, wait};
use crate::config::WriteProtect;
use crate::exec::io::reservation;
use crate::queue::{Association, Queue};
use crate::reservation::{Request, Reservations};
use crate::slot::Slot;

/// Features that a discovery controller has.
const OF_DISCOVERY: [u8; 2] = [fid::ASYNC_EVENT_CONFIG, fid::KEEP_ALIVE_TIMER];

fn check_known(association: &Association, fid: u8) -> Result<(), Status> {
    let known = if association.controller.is_discovery() {
        OF_DISCOVERY.contains(&fid)
    } else {
        crate::features::Features::KNOWN.contains(&fid)
    };
    if known {
        Ok(())
    } else {
        Err(Status::INVALID_FIELD.with_dnr(true))
    }
}

fn is_of_namespace(fid: u8) -> bool {
    matches!(
        fid,
        fid::NAMESPACE_WRITE_PROTECTION | fid::RESERVATION_MASK | fid::RESERVATION_PERSISTENCE
    )
}

/// What may be done with a feature (Get Features, SEL 011b). Nothing is saveable.
fn capabilities(fid: u8) -> u64 {
    let of_namespace = is_of_namespace(fid);
    let changeable = fid != fid::HOST_IDENTIFIER;
    let mut bits = 0;
    if of_namespace {
        bits |= capability::NAMESPACE_SPECIFIC;
    }
    if changeable {
        bits |= capability::CHANGEABLE;
    }
    bits.into()
}

pub(super) async fn get(
    queue: &Rc<Queue>,
    slot: &Slot,
    sqe: &Sqe,
    association: &Association,
) -> Result<u64, Status> {
    check_known(association, sqe.fid())?;
    let invalid = Status::INVALID_FIELD.with_dnr(true);
    let is_default = match sqe.sel() {
        Select::Current => false,
        // What is not saveable has its default as the saved value.
        Select::Default | Select::Saved => true,
        Select::Supported => return Ok(capabilities(sqe.fid())),
        Select::Reserved(_) => return Err(invalid),
    };
    match sqe.fid() {
        fid::VOLATILE_WRITE_CACHE => {
            let subsystem = association.subsystem.as_ref().ok_or(invalid)?;
            if !identify::has_volatile_cache(&subsystem.config(), &association.host_nqn) {
                return Err(invalid);
            }
            Ok(u64::from(
                is_default || !association.controller.is_write_through(),
            ))
        }
        fid::NAMESPACE_WRITE_PROTECTION => {
            let namespace = namespace(association, sqe.nsid())?;
            Ok(if is_default {
                0
            } else {
                namespace.write_protect as u64
            })
        }
        fid::RESERVATION_MASK => {
            let nsid = namespace(association, sqe.nsid())?.nsid;
            let state = association.controller.lock();
            let mask = state.reservation_masks.get(&nsid).copied();
            Ok(mask.filter(|_| !is_default).unwrap_or(0).into())
        }
        fid::RESERVATION_PERSISTENCE => {
            let nsid = namespace(association, sqe.nsid())?.nsid;
            let reservations = reservations(association, nsid)?;
            Ok((!is_default && reservations.view().record.ptpl).into())
        }
        fid::HOST_IDENTIFIER => {
            if sqe.cdw11() & 1 == 0 {
                // Only the 16-byte form exists on fabrics.
                return Err(invalid);
            }
            let host_id = *association.controller.host_id();
            answer(queue, slot, sqe, &host_id).await
        }
        fid::HOST_BEHAVIOR => {
            let data = association
                .controller
                .lock()
                .features
                .host_behavior(is_default);
            answer(queue, slot, sqe, &data).await
        }
        fid => association
            .controller
            .lock()
            .features
            .get(fid, sqe.cdw11(), is_default),
    }
}

pub(super) async fn set(
    queue: &Rc<Queue>,
    slot: &Slot,
    sqe: &Sqe,
    association: &Association,
) -> Result<u64, Status> {
    check_known(association, sqe.fid())?;
    if sqe.save() {
        return Err(Status::FEATURE_NOT_SAVEABLE.with_dnr(true));
    }
    if !is_of_namespace(sqe.fid()) && sqe.nsid() != Nsid::NONE && sqe.nsid() != Nsid::ALL {
        return Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC.with_dnr(true));
    }
    match sqe.fid() {
        fid::VOLATILE_WRITE_CACHE => set_write_cache(sqe, association),
        fid::NUMBER_OF_QUEUES => set_queues(queue, sqe, association),
        fid::KEEP_ALIVE_TIMER => set_keep_alive(queue, sqe, association),
        fid::HOST_IDENTIFIER => Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr(true)),
        fid::RESERVATION_MASK => set_reservation_mask(sqe, association),
        fid::RESERVATION_PERSISTENCE => {
            set_reservation_persistence(queue, slot, sqe, association).await
        }
        fid::NAMESPACE_WRITE_PROTECTION => {
            set_write_protection(queue, slot, sqe, association).await
        }
        fid::HOST_BEHAVIOR => {
            let payload = receive(queue, slot, sqe, 512).await?;
            let bytes = payload.as_buf().map_or(&[][..], |buffer| buffer.as_slice());
            association
                .controller
                .lock()
                .features
                .set_host_behavior(bytes)
        }
        fid => association.controller.lock().features.set(fid, sqe.cdw11()),
    }
}

/// With the write cache off every write is sent with FUA: slower, and true.
fn set_write_cache(sqe: &Sqe, association: &Association) -> Result<u64, Status> {
    let invalid = Status::INVALID_FIELD.with_dnr(true);
    let subsystem = association.subsystem.as_ref().ok_or(invalid)?;
    if !identify::has_volatile_cache(&subsystem.config(), &association.host_nqn) {
        return Err(invalid);
    }
    association
        .controller
        .set_write_through(sqe.cdw11() & 1 == 0);
    Ok(0)
}

fn set_queues(queue: &Queue, sqe: &Sqe, association: &Association) -> Result<u64, Status> {
    let (submission, completion) = (sqe.cdw11() as u16, (sqe.cdw11() >> 16) as u16);
    if submission == u16::MAX || completion == u16::MAX {
        return Err(Status::INVALID_FIELD.with_dnr(true));
    }
    let mut state = association.controller.lock();
    if !state.io.is_empty() {
        return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr(true));
    }
    // On fabrics a submission queue has its completion queue: as many of one as of the other.
    let granted = submission
        .min(completion)
        .saturating_add(1)
        .min(queue.limits.max_io_qpairs_per_ctrlr)
        .max(1);
    state.features.io_queues = granted;
    Ok(u64::from(granted - 1) << 16 | u64::from(granted - 1))
}

fn set_keep_alive(queue: &Queue, sqe: &Sqe, association: &Association) -> Result<u64, Status> {
    let asked_ms = sqe.cdw11();
    if asked_ms == 0 && association.controller.is_discovery() {
        return Err(Status::KEEP_ALIVE_TIMEOUT_INVALID.with_dnr(true));
    }
    let granted = super::super::fabrics::granted_kato_ms(queue, asked_ms, false);
    association.controller.set_kato_ms(granted);
    association.controller.lock().features.kato_ms = granted;
    queue.group.target.keep_alive_changed();
    Ok(granted.into())
}

/// Answered once every thread refuses (or takes) writes.
async fn set_write_protection(
    queue: &Queue,
    slot: &Slot,
    sqe: &Sqe,
    association: &Association,
) -> Result<u64, Status> {
    let namespace = namespace(association, sqe.nsid())?;
    let state = match sqe.cdw11() & 0x7 {
        0 => WriteProtect::None,
        1 => WriteProtect::WriteProtect,
        _ => return Err(Status::INVALID_FIELD.with_dnr(true)),
    };
    let subsystem = association
        .subsystem
        .as_ref()
        .ok_or(Status::INVALID_FIELD.with_dnr(true))?;
    let changed = subsystem
        .subsystem
        .set_write_protect_by_host(namespace.nsid, state);
    let ticket = changed.map_err(|_| Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true))?;
    wait(queue, slot, || ticket.is_done()).await?;
    Ok(0)
}

/// The namespaces that a Set Features names: one, or all that the host sees.
fn named(association: &Association, nsid: Nsid) -> Result<Vec<Nsid>, Status> {
    if nsid != Nsid::ALL {
        return Ok(vec![namespace(association, nsid)?.nsid]);
    }
    let subsystem = association
        .subsystem
        .as_ref()
        .ok_or(Status::INVALID_FIELD.with_dnr(true))?;
    let config = subsystem.config();
    let visible = config.visible_namespaces(&association.host_nqn);
    Ok(visible.map(|namespace| namespace.nsid).collect())
}

fn reservations(association: &Association, nsid: Nsid) -> Result<Arc<Reservations>, Status> {
    let subsystem = association.subsystem.as_ref();
    subsystem
        .and_then(|subsystem| subsystem.subsystem.reservations_of(nsid))
        .ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true))
}

/// The notifications that the host does not want: bits 1 to 3, one for each kind.
fn set_reservation_mask(sqe: &Sqe, association: &Association) -> Result<u64, Status> {
    let nsids = named(association, sqe.nsid())?;
    let mask = sqe.cdw11() & 0b1110;
    let mut state = association.controller.lock();
    let masks = nsids.into_iter().map(|nsid| (nsid, mask));
    state.reservation_masks.extend(masks);
    Ok(0)
}

async fn set_reservation_persistence(
    queue: &Rc<Queue>,
    slot: &Slot,
    sqe: &Sqe,
    association: &Association,
) -> Result<u64, Status> {
    let request = Request::Persist(sqe.cdw11() & 1 == 1);
    for nsid in named(association, sqe.nsid())? {
        let reservations = reservations(association, nsid)?;
        reservation::change(queue, slot, &reservations, &request).await?;
    }
    Ok(0)
}
