//! Admin commands (NVMe Base 2.1, section 5).

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dma::Payload;
use nvme_spec::{Nsid, Qid, Sqe, Status, opcode::admin};

use crate::controller::EVENT_REQUESTS_MAX;
use crate::inbox::{AbortResult, Message};
use crate::limits;
use crate::queue::{Association, Queue};
use crate::slot::{Outcome, Slot};

mod discovery_log;
mod features;
mod identify;
mod log_page;

/// Runs an admin command.
pub(crate) async fn execute(queue: &Rc<Queue>, slot: &Rc<Slot>, sqe: Sqe) -> Outcome {
    let Some(association) = queue.association() else {
        return Status::COMMAND_SEQUENCE_ERROR.into();
    };
    let result = run(queue, slot, &sqe, association).await;
    if let Err(status) = result
        && status != Status::COMMAND_ABORT_REQUESTED
    {
        association
            .controller
            .log_error(Qid(0), sqe.cid().0, status, sqe.nsid(), 0);
    }
    result.into()
}

async fn run(
    queue: &Rc<Queue>,
    slot: &Rc<Slot>,
    sqe: &Sqe,
    association: &Association,
) -> Result<u64, Status> {
    if sqe.fuse() != nvme_spec::Fuse::Normal {
        return Err(Status::INVALID_FIELD.with_dnr(true));
    }
    if !association.controller.is_ready() {
        return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr(true));
    }
    let is_discovery = association.controller.is_discovery();
    match sqe.opcode() {
        admin::IDENTIFY => {
            let data = identify::data(queue, association, sqe)?;
            answer(queue, slot, sqe, &data).await
        }
        admin::GET_LOG_PAGE => log_page::get(queue, slot, sqe, association).await,
        admin::GET_FEATURES => features::get(queue, slot, sqe, association).await,
        admin::SET_FEATURES => features::set(queue, slot, sqe, association).await,
        admin::ASYNC_EVENT_REQUEST => await_event(queue, slot, association).await,
        admin::KEEP_ALIVE => keep_alive(association),
        admin::ABORT if !is_discovery => abort(queue, slot, sqe, association).await,
        _ => Err(Status::INVALID_OPCODE.with_dnr(true)),
    }
}

/// Answers with data: as much of it as the host's SGL takes.
async fn answer(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe, data: &[u8]) -> Result<u64, Status> {
    let len = (queue.sgl_len_to_host(sqe)? as usize).min(data.len());
    if len < data.len() {
        return Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr(true));
    }
    if len > queue.limits.max_io_size as usize {
        return Err(Status::INVALID_FIELD.with_dnr(true));
    }
    let mut buffer = queue.reserved_buffer(slot, len as u32).await?;
    buffer.as_mut_slice().copy_from_slice(data);
    slot.set_response_data(Payload::Buf(buffer), len as u32);
    Ok(0)
}

/// Receives the data of an admin command, exactly `len` bytes.
async fn receive(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe, len: u32) -> Result<Payload, Status> {
    if queue.sgl_len(sqe, slot)? != len {
        return Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr(true));
    }
    queue.receive_reserved(slot, len).await
}

fn keep_alive(association: &Association) -> Result<u64, Status> {
    // The queue noted the time when it took the command.
    if association.controller.kato_ms() == 0 {
        return Err(Status::KEEP_ALIVE_TIMEOUT_INVALID.with_dnr(true));
    }
    Ok(0)
}

/// Asynchronous Event Request: waits until there is an event that the host wants to hear of.
async fn await_event(
    queue: &Rc<Queue>,
    slot: &Rc<Slot>,
    association: &Association,
) -> Result<u64, Status> {
    if queue.event_waiters.borrow().len() >= EVENT_REQUESTS_MAX {
        return Err(Status::ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED.with_dnr(true));
    }
    queue.event_waiters.borrow_mut().push(slot.id);
    let event = std::cell::Cell::new(None);
    let waited = slot
        .until(|| {
            // In the order of the requests: only the oldest takes an event.
            if queue.event_waiters.borrow().first() == Some(&slot.id) {
                event.set(association.controller.take_event());
            }
            event.get().is_some()
        })
        .await;
    queue
        .event_waiters
        .borrow_mut()
        .retain(|waiter| *waiter != slot.id);
    // Another event may wait for the next request.
    if let Some(next) = queue.event_waiters.borrow().first() {
        queue.group.ready.borrow_mut().push_back((queue.id, *next));
    }
    waited?;
    Ok(event.get().map_or(0, |event| u64::from(event.0)))
}

/// Abort: dword 0 bit 0 of the completion is clear when the command was aborted.
async fn abort(
    queue: &Rc<Queue>,
    slot: &Slot,
    sqe: &Sqe,
    association: &Association,
) -> Result<u64, Status> {
    let (sqid, cid) = (sqe.abort_sqid(), sqe.abort_cid());
    if sqid.0 == 0 {
        let aborted = cid != sqe.cid() && super::abort::abort_in_queue(queue, cid);
        return Ok(u64::from(!aborted));
    }
    let qpair = association
        .controller
        .lock()
        .io
        .get(&sqid)
        .filter(|qpair| !qpair.is_closed)
        .cloned()
        .ok_or(Status::INVALID_FIELD.with_dnr(true))?;
    let _counted = CountedAbort::new(queue)?;
    let result = Arc::<AbortResult>::default();
    qpair.group.send(Message::Abort(
        qpair.qpair,
        qpair.uid,
        cid.0,
        Arc::clone(&result),
    ));
    // The other thread answers within a turn of its loop; if it has gone, so has the queue, and
    // with it this controller.
    wait(queue, slot, || result.is_done.load(Ordering::Acquire)).await?;
    Ok(u64::from(!result.was_aborted.load(Ordering::Relaxed)))
}

/// Waits for other threads.
async fn wait(queue: &Queue, slot: &Slot, is_done: impl Fn() -> bool) -> Result<(), Status> {
    while !is_done() {
        let at = queue.group.now.get() + super::LOOK_PERIOD;
        queue.group.timed.borrow_mut().push((at, queue.id, slot.id));
        slot.until(|| queue.group.now.get() >= at || is_done())
            .await?;
    }
    Ok(())
}

/// One of the Abort commands that wait for another thread.
struct CountedAbort<'a>(&'a Queue);

impl<'a> CountedAbort<'a> {
    fn new(queue: &'a Queue) -> Result<Self, Status> {
        if queue.aborts.get() == limits::ABORTS_MAX {
            return Err(Status::ABORT_COMMAND_LIMIT_EXCEEDED);
        }
        queue.aborts.set(queue.aborts.get() + 1);
        Ok(Self(queue))
    }
}

impl Drop for CountedAbort<'_> {
    fn drop(&mut self) {
        self.0.aborts.set(self.0.aborts.get() - 1);
    }
}

/// The namespace of a command that names one which this host sees.
fn namespace(
    association: &Association,
    nsid: Nsid,
) -> Result<Arc<crate::config::NamespaceConfig>, Status> {
    let subsystem = association
        .subsystem
        .as_ref()
        .ok_or(Status::INVALID_FIELD.with_dnr(true))?;
    let config = subsystem.config();
    config
        .namespaces
        .get(&nsid)
        .filter(|namespace| namespace.is_visible_to(&association.host_nqn))
        .cloned()
        .ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true))
}
