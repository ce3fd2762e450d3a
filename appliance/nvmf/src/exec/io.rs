//! NVM commands on namespaces (NVM Command Set 1.1, section 3).

use std::rc::Rc;

use block::{Io, Lba, Op};
use dma::{IoBuf, Payload};
use nvme_spec::{Fuse, Nsid, Sqe, Status, opcode::nvm};

use crate::config::AnaState;
use crate::group_namespace::{Entered, GroupNamespace};
use crate::limits;
use crate::queue::{Queue, add};
use crate::reservation::Access;
use crate::slot::{Outcome, Slot};
use crate::status;

mod copy;
mod fused;
mod ranges;
pub(crate) mod reservation;

pub(crate) use fused::FirstHalf;

/// Runs one I/O command.
pub(crate) async fn execute(queue: &Rc<Queue>, slot: &Rc<Slot>, sqe: Sqe) -> Outcome {
    let result = match sqe.fuse() {
        Fuse::Normal if queue.fused.get().is_none() => run(queue, slot, &sqe).await,
        fuse => fused::run(queue, slot, &sqe, fuse).await,
    };
    add(&queue.group.handle.counters.completed_nvme_io, 1);
    match result {
        Ok(()) => Outcome::OK,
        Err(status) => {
            note_error(queue, &sqe, status);
            status.into()
        }
    }
}

/// Failures that are the target's or the device's doing go into the error log.
#[cold]
fn note_error(queue: &Queue, sqe: &Sqe, status: Status) {
    if let Some(association) = queue.association() {
        association.controller.log_error(
            association.qid,
            sqe.cid().0,
            status,
            sqe.nsid(),
            sqe.slba().0,
        );
    }
}

async fn run(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<(), Status> {
    match sqe.opcode() {
        nvm::READ => read(queue, slot, sqe).await,
        nvm::WRITE => write(queue, slot, sqe).await,
        nvm::FLUSH => flush(queue, slot, sqe).await,
        nvm::WRITE_ZEROES => write_zeroes(queue, slot, sqe).await,
        nvm::DATASET_MANAGEMENT => ranges::dataset_management(queue, slot, sqe).await,
        nvm::COMPARE => compare(queue, slot, sqe).await,
        nvm::VERIFY => verify(queue, slot, sqe).await,
        nvm::COPY => copy::copy(queue, slot, sqe).await,
        // Boxed: they are rare, and would make every slot's future larger.
        nvm::RESERVATION_REGISTER => Box::pin(reservation::register(queue, slot, sqe)).await,
        nvm::RESERVATION_ACQUIRE => Box::pin(reservation::acquire(queue, slot, sqe)).await,
        nvm::RESERVATION_RELEASE => Box::pin(reservation::release(queue, slot, sqe)).await,
        nvm::RESERVATION_REPORT => Box::pin(reservation::report(queue, slot, sqe)).await,
        _ => Err(Status::INVALID_OPCODE.with_dnr(true)),
    }
}

/// The blocks of a command, checked against the namespace and the limits told in Identify.
#[derive(Clone, Copy)]
struct Extent {
    lba: Lba,
    blocks: u32,
    bytes: u32,
}

/// Begins a command on its namespace, as far as that goes without its data: it is there, this host
/// sees it, the path may be used, and it may be written if the command writes.
///
/// A command whose data the host still holds waits here for the end of a pause, without a buffer.
/// Data in the capsule has come already, and with some transports nothing behind it is read before
/// it is taken: such a command waits in [`enter`].
async fn begin(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe, access: Access) -> Result<Begun, Status> {
    let namespace = queue.namespace(sqe.nsid())?;
    let version = namespace.version();
    check_access(queue, &namespace, access)?;
    if !sqe.sgl().is_in_capsule() {
        namespace.runs(queue, slot).await?;
    }
    Ok(Begun {
        namespace,
        version,
        access,
    })
}

/// A command that has begun: its namespace, and what it was checked against.
struct Begun {
    namespace: Rc<GroupNamespace>,
    version: u32,
    access: Access,
}

impl std::ops::Deref for Begun {
    type Target = GroupNamespace;

    fn deref(&self) -> &GroupNamespace {
        &self.namespace
    }
}

/// Goes on to the device, with everything that a host could delay done: see
/// [`GroupNamespace::enter`].
async fn enter(queue: &Rc<Queue>, slot: &Slot, begun: &Begun) -> Result<Entered, Status> {
    let entered = begun.namespace.enter(queue, slot).await?;
    // What was so when the command came may have changed since.
    if begun.version() != begun.version {
        check_access(queue, begun, begun.access)?;
    }
    Ok(entered)
}

fn check_access(queue: &Queue, namespace: &GroupNamespace, access: Access) -> Result<(), Status> {
    let Some(association) = queue.association() else {
        return Err(Status::COMMAND_SEQUENCE_ERROR);
    };
    if namespace.is_hidden_from(&association.host_nqn) {
        return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true));
    }
    check_path(queue, namespace)?;
    if !namespace.allows(association.controller.host_id(), access) {
        return Err(Status::RESERVATION_CONFLICT.with_dnr(true));
    }
    if access == Access::Write && namespace.is_write_protected.get() {
        return Err(Status::NAMESPACE_WRITE_PROTECTED.with_dnr(true));
    }
    Ok(())
}

/// Fails commands on a path whose ANA state forbids them (NVMe Base 2.1, section 8.1.1.6).
fn check_path(queue: &Queue, namespace: &GroupNamespace) -> Result<(), Status> {
    let Some(subsystem) = queue.association().and_then(|a| a.subsystem.as_ref()) else {
        return Ok(());
    };
    if subsystem.is_accessible_everywhere() {
        return Ok(());
    }
    match namespace.ana_state(queue, &subsystem.config()) {
        AnaState::Optimized | AnaState::NonOptimized => Ok(()),
        AnaState::Inaccessible => Err(Status::ANA_INACCESSIBLE),
        AnaState::PersistentLoss => Err(Status::ANA_PERSISTENT_LOSS),
        AnaState::Change => Err(Status::ANA_TRANSITION),
    }
}

impl Extent {
    fn blocks(self) -> (Lba, u32) {
        (self.lba, self.blocks)
    }

    /// The blocks of a command that moves data.
    fn of_transfer(queue: &Queue, namespace: &GroupNamespace, sqe: &Sqe) -> Result<Self, Status> {
        let extent = Self::of(namespace, sqe)?;
        if extent.bytes > queue.limits.max_io_size {
            return Err(Status::INVALID_FIELD.with_dnr(true));
        }
        Ok(extent)
    }

    /// The blocks of any command with SLBA and NLB.
    fn of(namespace: &GroupNamespace, sqe: &Sqe) -> Result<Self, Status> {
        if sqe.prinfo() != 0 || sqe.stc() {
            // No namespace has protection information.
            return Err(Status::INVALID_FIELD.with_dnr(true));
        }
        let geometry = namespace.geometry.get();
        let (lba, blocks) = (sqe.slba().0, sqe.block_count());
        let end = lba.checked_add(u64::from(blocks));
        if end.is_none_or(|end| end > geometry.block_count) {
            return Err(Status::LBA_OUT_OF_RANGE.with_dnr(true));
        }
        // At most 65,536 blocks of 4 KiB: fits.
        Ok(Self {
            lba: Lba(lba),
            blocks,
            bytes: blocks * geometry.block_size,
        })
    }
}

/// Runs one I/O; the namespace stays entered until it has ended.
async fn device(
    queue: &Rc<Queue>,
    slot: &Slot,
    namespace: &Entered,
    op: Op,
    extent: (Lba, u32),
    payload: Payload,
) -> Result<Payload, Status> {
    let io = Io {
        op,
        lba: extent.0,
        blocks: extent.1,
        payload,
        tag: 0,
    };
    let completion = queue.run(slot, namespace.namespace(), io).await;
    match completion.result {
        Ok(()) => Ok(completion.io.payload),
        Err(error) => Err(status::of_io_error(error, queue.group.target.options())),
    }
}

async fn read(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<(), Status> {
    let namespace = begin(queue, slot, sqe, Access::Read).await?;
    let extent = Extent::of_transfer(queue, &namespace, sqe)?;
    if queue.sgl_len_to_host(sqe)? < extent.bytes {
        return Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr(true));
    }
    let is_lent = queue.may_borrow_data && namespace.lends_range(extent.lba, extent.blocks);
    let payload = if is_lent {
        Payload::None
    } else {
        Payload::Buf(queue.buffer(slot, extent.bytes).await?)
    };
    let entered = enter(queue, slot, &namespace).await?;
    let payload = device(queue, slot, &entered, Op::Read, extent.blocks(), payload).await?;
    slot.set_response_data(payload, extent.bytes);
    add(&queue.counters.reads, 1);
    add(&queue.counters.read_bytes, u64::from(extent.bytes));
    Ok(())
}

/// Receives the host's data of a command that writes or compares blocks.
async fn receive(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe, bytes: u32) -> Result<Payload, Status> {
    if queue.sgl_len(sqe, slot)? != bytes {
        return Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr(true));
    }
    queue.receive(slot, bytes).await
}

async fn write(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<(), Status> {
    let namespace = begin(queue, slot, sqe, Access::Write).await?;
    let extent = Extent::of_transfer(queue, &namespace, sqe)?;
    let payload = receive(queue, slot, sqe, extent.bytes).await?;
    let entered = enter(queue, slot, &namespace).await?;
    let op = Op::Write {
        fua: sqe.fua() || is_write_through(queue),
    };
    device(queue, slot, &entered, op, extent.blocks(), payload).await?;
    add(&queue.counters.writes, 1);
    add(&queue.counters.write_bytes, u64::from(extent.bytes));
    Ok(())
}

async fn compare(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<(), Status> {
    let namespace = begin(queue, slot, sqe, Access::Read).await?;
    let extent = Extent::of_transfer(queue, &namespace, sqe)?;
    let payload = receive(queue, slot, sqe, extent.bytes).await?;
    let entered = enter(queue, slot, &namespace).await?;
    device(queue, slot, &entered, Op::Compare, extent.blocks(), payload).await?;
    Ok(())
}

async fn flush(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<(), Status> {
    if sqe.nsid() != Nsid::ALL {
        return flush_one(queue, slot, sqe).await;
    }
    // Every namespace that the host sees (Identify VWC says that this is supported).
    let association = queue.association().ok_or(Status::COMMAND_SEQUENCE_ERROR)?;
    let subsystem = association
        .subsystem
        .as_ref()
        .ok_or(Status::INVALID_OPCODE)?;
    let config = subsystem.config();
    for namespace in config.visible_namespaces(&association.host_nqn) {
        match flush_one(queue, slot, &sqe.with_nsid(namespace.nsid)).await {
            // Removed while the others were flushed: nothing left to flush.
            Err(status) if !status.is(Status::INVALID_NAMESPACE_OR_FORMAT) => return Err(status),
            Err(_) | Ok(()) => {}
        }
    }
    Ok(())
}

async fn flush_one(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<(), Status> {
    let namespace = begin(queue, slot, sqe, Access::Flush).await?;
    if !namespace.geometry.get().volatile_write_cache {
        // What was acknowledged is where it stays.
        return Ok(());
    }
    let entered = enter(queue, slot, &namespace).await?;
    device(queue, slot, &entered, Op::Flush, (Lba(0), 0), Payload::None).await?;
    Ok(())
}

async fn write_zeroes(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<(), Status> {
    let namespace = begin(queue, slot, sqe, Access::Write).await?;
    let extent = Extent::of(&namespace, sqe)?;
    if u64::from(extent.bytes) > limits::WRITE_ZEROES_BYTES_MAX {
        return Err(Status::INVALID_FIELD.with_dnr(true));
    }
    let entered = enter(queue, slot, &namespace).await?;
    let fua = sqe.fua() || is_write_through(queue);
    let op = Op::WriteZeroes {
        unmap: sqe.deac(),
        fua,
    };
    device(queue, slot, &entered, op, extent.blocks(), Payload::None).await?;
    Ok(())
}

async fn verify(queue: &Rc<Queue>, slot: &Slot, sqe: &Sqe) -> Result<(), Status> {
    let namespace = begin(queue, slot, sqe, Access::Read).await?;
    let extent = Extent::of(&namespace, sqe)?;
    if u64::from(extent.bytes) > limits::VERIFY_BYTES_MAX {
        return Err(Status::INVALID_FIELD.with_dnr(true));
    }
    let entered = enter(queue, slot, &namespace).await?;
    device(
        queue,
        slot,
        &entered,
        Op::Verify,
        extent.blocks(),
        Payload::None,
    )
    .await?;
    Ok(())
}

/// The host has turned the volatile write cache off: each write is durable before it is answered.
fn is_write_through(queue: &Queue) -> bool {
    queue
        .association()
        .is_some_and(|association| association.controller.is_write_through())
}

/// The bytes of a received buffer; data comes in buffers only, never lent.
fn bytes_of(payload: &Payload) -> &[u8] {
    payload.as_buf().map_or(&[], IoBuf::as_slice)
}
