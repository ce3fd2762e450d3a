//! Reservation Register, Acquire, Release and Report (NVMe Base 2.1, sections 7.3 to 7.6).

use std::rc::Rc;

use dma::Payload;
use nvme_spec::reservation::{
    RCSTS_HOLDER, RegisteredControllerExtended, ReservationAcquire, ReservationRegister,
    ReservationRelease, ReservationStatus, ReservationStatusExtended,
};
use nvme_spec::{Sqe, Status};
use zerocopy::{FromBytes, IntoBytes};

use super::{Access, begin, bytes_of};
use crate::exec::wait_for;
use crate::queue::Queue;
use crate::reservation::{Request, Reservations, Start, View};
use crate::slot::Slot;

/// The longest data of a command that is taken: more than the structures have is not looked at.
const DATA_MAX: u32 = 4096;

pub(super) async fn register(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<(), Status> {
    let namespace = begin(queue, slot, sqe, Access::Reserve).await?;
    let data: ReservationRegister = receive(queue, slot, sqe).await?;
    let request = Request::Register {
        action: sqe.reservation_action(),
        ignores_key: sqe.reservation_ignores_key(),
        cptpl: sqe.reservation_cptpl(),
        key: data.crkey.get(),
        new_key: data.nrkey.get(),
    };
    change(queue, slot, namespace.reservations(), &request).await
}

pub(super) async fn acquire(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<(), Status> {
    let namespace = begin(queue, slot, sqe, Access::Reserve).await?;
    let data: ReservationAcquire = receive(queue, slot, sqe).await?;
    let request = Request::Acquire {
        action: sqe.reservation_action(),
        ignores_key: sqe.reservation_ignores_key(),
        rtype: sqe.reservation_type(),
        key: data.crkey.get(),
        preempted: data.prkey.get(),
    };
    change(queue, slot, namespace.reservations(), &request).await
}

pub(super) async fn release(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<(), Status> {
    let namespace = begin(queue, slot, sqe, Access::Reserve).await?;
    let data: ReservationRelease = receive(queue, slot, sqe).await?;
    let request = Request::Release {
        action: sqe.reservation_action(),
        ignores_key: sqe.reservation_ignores_key(),
        rtype: sqe.reservation_type(),
        key: data.crkey.get(),
    };
    change(queue, slot, namespace.reservations(), &request).await
}

/// Receives a command's structure; the buffer goes back before the change begins.
async fn receive<T: FromBytes>(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<T, Status> {
    let wrong = Status::DATA_SGL_LENGTH_INVALID.with_dnr(true);
    let len = queue.sgl_len(sqe, slot)?;
    if (len as usize) < size_of::<T>() || len > DATA_MAX {
        return Err(wrong);
    }
    let payload = queue.receive(slot, len).await?;
    T::read_from_prefix(bytes_of(&payload))
        .map(|(data, _)| data)
        .map_err(|_| wrong)
}

/// Makes a change: answered once it is durable, if it has to be, and in force on every thread.
///
/// A change that has begun is brought to its end, also when the command's connection is gone.
pub(crate) async fn change(
    queue: &Rc<Queue>,
    slot: &Slot,
    reservations: &std::sync::Arc<Reservations>,
    request: &Request,
) -> Result<(), Status> {
    let association = queue.association().ok_or(Status::COMMAND_SEQUENCE_ERROR)?;
    let subsystem = association
        .subsystem
        .as_ref()
        .ok_or(Status::INVALID_OPCODE)?;
    let host = association.controller.host_id();
    loop {
        match reservations.start(&subsystem.subsystem, host, request)? {
            Start::Unchanged => return Ok(()),
            Start::Busy => {
                let is_free = || (!reservations.is_busy()).then_some(());
                wait_for(queue, slot, is_free).await;
            }
            Start::Running(pending) => {
                return wait_for(queue, slot, || pending.result()).await;
            }
        }
    }
}

pub(super) async fn report(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<(), Status> {
    let namespace = begin(queue, slot, sqe, Access::Reserve).await?;
    if !sqe.reservation_report_is_extended() {
        // Hosts on fabrics have identifiers of 128 bits: the short form cannot name them.
        return Err(Status::HOST_IDENTIFIER_INCONSISTENT_FORMAT.with_dnr(true));
    }
    let len = u32::try_from(sqe.reservation_report_len()).unwrap_or(u32::MAX);
    if len > queue.limits.max_io_size {
        return Err(Status::INVALID_FIELD.with_dnr(true));
    }
    if queue.sgl_len_to_host(sqe)? < len {
        return Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr(true));
    }
    let mut buffer = queue.buffer(slot, len).await?;
    let data = report_of(&namespace.reservations().view());
    let bytes = buffer.as_mut_slice();
    // A host with less room gets the beginning, and reads from it how much there is.
    let copied = data.len().min(bytes.len());
    bytes[..copied].copy_from_slice(&data[..copied]);
    bytes[copied..].fill(0);
    slot.set_response_data(Payload::Buf(buffer), len);
    Ok(())
}

fn report_of(view: &View) -> Vec<u8> {
    let record = &view.record;
    let head = ReservationStatusExtended {
        head: ReservationStatus {
            generation: record.generation.into(),
            rtype: record.reservation.map_or(0, |held| held.rtype as u8),
            registrants: u16::try_from(record.registrants.len())
                .unwrap_or(u16::MAX)
                .into(),
            ptpls: u8::from(record.ptpl),
            ..ReservationStatus::default()
        },
        ..ReservationStatusExtended::default()
    };
    let mut data = head.as_bytes().to_vec();
    for (host, key) in &record.registrants {
        let is_holder = record.is_holder(host);
        let entry = RegisteredControllerExtended {
            // The dynamic controller model: a registration is of a host, not of a controller.
            cntlid: 0xffff.into(),
            rcsts: if is_holder { RCSTS_HOLDER } else { 0 },
            rkey: (*key).into(),
            hostid: *host,
            ..RegisteredControllerExtended::default()
        };
        data.extend_from_slice(entry.as_bytes());
    }
    data
}
