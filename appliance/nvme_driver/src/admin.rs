//! Admin commands: what callers ask for, and the queue that they wait in.

use std::time::{Duration, Instant};

use nvme_spec::identify::{ControllerList, IdentifyNamespace};
use nvme_spec::log::lid;
use nvme_spec::opcode::admin;
use nvme_spec::pcie::ns_select;
use nvme_spec::{Cid, Cntlid, Cqe, Nsid, Qid, Sqe, Status};
use zerocopy::IntoBytes;

use crate::error::NvmeError;
use crate::memory::Layout;
use crate::ring::Ring;
use crate::shared::Shared;

/// Most bytes of data of one admin command.
pub const ADMIN_DATA_MAX: usize = 4096;
/// Admin commands outstanding at a time, events included.
pub(crate) const ADMIN_SLOTS: usize = 32;
/// Of these, kept for the driver itself.
const RESERVED_SLOTS: usize = 12;

/// Names an admin command of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AdminId(pub u64);

/// Data of an admin command, at most [`ADMIN_DATA_MAX`] bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AdminData {
    /// None.
    #[default]
    None,
    /// This many bytes from the controller.
    ToHost(usize),
    /// These bytes to the controller.
    FromHost(Vec<u8>),
}

/// An admin command to send. Its CID and data pointer are filled in when it is sent.
#[derive(Clone, Debug)]
pub struct AdminRequest {
    /// The command.
    pub sqe: Sqe,
    /// Its data.
    pub data: AdminData,
}

/// What an admin command that succeeded gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdminReply {
    /// Dword 0 of the completion.
    pub dw0: u32,
    /// Data from the controller.
    pub data: Vec<u8>,
}

const CID: Cid = Cid(0);

impl AdminRequest {
    /// A command without data.
    #[must_use]
    pub fn new(sqe: Sqe) -> Self {
        Self {
            sqe,
            data: AdminData::None,
        }
    }

    fn to_host(sqe: Sqe, len: usize) -> Self {
        let data = AdminData::ToHost(len);
        Self { sqe, data }
    }

    /// Formats a namespace (or all: [`Nsid::ALL`]) with LBA format `lbaf`.
    #[must_use]
    pub fn format(nsid: Nsid, lbaf: u8, secure_erase: u8) -> Self {
        Self::new(Sqe::format_nvm(CID, nsid, lbaf, secure_erase))
    }

    /// Creates a namespace: NSZE, NCAP and FLBAS are looked at. Dword 0 of the reply is its NSID.
    #[must_use]
    pub fn create_namespace(namespace: &IdentifyNamespace) -> Self {
        Self {
            sqe: Sqe::namespace_management(CID, Nsid::NONE, ns_select::CREATE),
            data: AdminData::FromHost(namespace.as_bytes().to_vec()),
        }
    }

    /// Deletes a namespace.
    #[must_use]
    pub fn delete_namespace(nsid: Nsid) -> Self {
        Self::new(Sqe::namespace_management(CID, nsid, ns_select::DELETE))
    }

    /// Attaches a namespace to a controller, or detaches it.
    #[must_use]
    pub fn attach_namespace(nsid: Nsid, cntlid: Cntlid, attach: bool) -> Self {
        let select = if attach {
            ns_select::ATTACH
        } else {
            ns_select::DETACH
        };
        let list = ControllerList::from(cntlid, [cntlid]);
        Self {
            sqe: Sqe::namespace_attachment(CID, nsid, select),
            data: AdminData::FromHost(list.as_bytes().to_vec()),
        }
    }

    /// Sends a piece of a firmware image; `offset` and its length are multiples of 4.
    #[must_use]
    pub fn firmware_download(offset: u32, piece: &[u8]) -> Self {
        Self {
            sqe: Sqe::firmware_download(CID, offset, piece.len() as u32),
            data: AdminData::FromHost(piece.to_vec()),
        }
    }

    /// Commits a downloaded image to `slot` (0: the drive chooses) with commit action `action`.
    #[must_use]
    pub fn firmware_commit(slot: u8, action: u8) -> Self {
        Self::new(Sqe::firmware_commit(CID, slot, action))
    }

    /// Starts a sanitize operation; see [`nvme_spec::pcie::sanitize_action`].
    #[must_use]
    pub fn sanitize(action: u8) -> Self {
        Self::new(Sqe::sanitize(CID, action))
    }

    /// Reads the SMART / health log page.
    #[must_use]
    pub fn smart_log() -> Self {
        Self::log(lid::SMART, 512)
    }

    /// Reads the newest `entries` (1 to 64) of the error log.
    #[must_use]
    pub fn error_log(entries: u32) -> Self {
        Self::log(lid::ERROR, entries.clamp(1, 64) * 64)
    }

    /// Reads the beginning of a log page. Its events are cleared.
    #[must_use]
    pub fn log(lid: u8, len: u32) -> Self {
        let sqe = Sqe::get_log_page(CID, Nsid::ALL, lid, len, 0);
        Self::to_host(sqe, len as usize)
    }

    /// Identify.
    #[must_use]
    pub fn identify(nsid: Nsid, cns: u8) -> Self {
        Self::to_host(Sqe::identify(CID, nsid, cns), 4096)
    }

    /// Sets a feature whose value is a dword.
    #[must_use]
    pub fn set_features(fid: u8, value: u32) -> Self {
        Self::new(Sqe::set_features(CID, fid, value))
    }

    /// Gets a feature whose value is a dword.
    #[must_use]
    pub fn get_features(fid: u8) -> Self {
        Self::new(Sqe::get_features(CID, fid, nvme_spec::Select::Current))
    }

    /// Whether it may take as long as [`crate::ControllerOptions::format_timeout`].
    pub(crate) fn is_slow(&self) -> bool {
        matches!(
            self.sqe.opcode(),
            admin::FORMAT_NVM | admin::FIRMWARE_COMMIT | admin::SANITIZE
        )
    }
}

/// Who an admin command is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// The job that is under way.
    Job,
    /// A caller.
    User(AdminId),
    /// Nobody: an Asynchronous Event Request.
    Event,
    /// The queue (by its place) whose command is to be aborted.
    Abort(usize),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) owner: Owner,
    pub(crate) opcode: u8,
    pub(crate) deadline: Option<Instant>,
    pub(crate) waited: Duration,
    read_len: usize,
    cid: u16,
}

/// An admin command that ended.
pub(crate) struct Ended {
    pub(crate) pending: Pending,
    pub(crate) status: Status,
    pub(crate) reply: AdminReply,
}

/// The admin queue pair and what is outstanding on it.
#[derive(Debug)]
pub(crate) struct AdminQueue {
    ring: Ring,
    slots: [Option<Pending>; ADMIN_SLOTS],
    generation: u16,
}

impl AdminQueue {
    pub(crate) fn new(shared: &Shared) -> Self {
        let ring = Ring::new(&shared.layout, shared.cap, Qid::ADMIN, false);
        ring.clear();
        Self {
            ring,
            slots: [None; ADMIN_SLOTS],
            generation: 0,
        }
    }

    /// Puts a command into the queue. The data must fit.
    pub(crate) fn submit(
        &mut self,
        shared: &Shared,
        owner: Owner,
        request: &AdminRequest,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Result<(), NvmeError> {
        let free = self.slots.iter().filter(|slot| slot.is_none()).count();
        let is_user = matches!(owner, Owner::User(_));
        let slot = self.slots.iter().position(Option::is_none);
        let Some(slot) = slot.filter(|_| !is_user || free > RESERVED_SLOTS) else {
            return Err(NvmeError::AdminBusy {
                limit: ADMIN_SLOTS - RESERVED_SLOTS,
            });
        };
        let offset = Layout::admin_data(slot);
        let region = &shared.layout.region;
        let (len_bytes, read_len) = match &request.data {
            AdminData::None => (0, 0),
            AdminData::ToHost(len) => (*len, *len),
            AdminData::FromHost(data) => (data.len(), 0),
        };
        if len_bytes > ADMIN_DATA_MAX {
            let limit = ADMIN_DATA_MAX;
            return Err(NvmeError::AdminData { len_bytes, limit });
        }
        let mut sqe = request.sqe;
        match &request.data {
            AdminData::None => {}
            AdminData::ToHost(len) => region.zero(offset, *len),
            AdminData::FromHost(data) => region.write_at(offset, data),
        }
        if len_bytes > 0 {
            sqe = sqe.with_prp(shared.layout.address(offset), 0);
        }
        self.generation = self.generation.wrapping_add(1) & 0xff;
        let cid = self.generation << 8 | slot as u16;
        self.slots[slot] = Some(Pending {
            owner,
            opcode: sqe.opcode(),
            deadline: timeout.map(|timeout| now + timeout),
            waited: timeout.unwrap_or_default(),
            read_len,
            cid,
        });
        self.ring.push(&sqe.with_cid(Cid(cid)));
        self.ring.ring_sq(&*shared.device.registers);
        Ok(())
    }

    /// The next command that ended.
    pub(crate) fn next(&mut self, shared: &Shared) -> Option<Ended> {
        // Bounded: a completion queue holds no more, even one that a mad device fills anew.
        for _ in 0..crate::memory::ADMIN_ENTRIES {
            let cqe = self.ring.next();
            self.ring.ring_cq(&*shared.device.registers);
            if let Some(ended) = self.end(shared, &cqe?) {
                return Some(ended);
            }
            let spurious = &shared.counters.spurious;
            spurious.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        None
    }

    fn end(&mut self, shared: &Shared, cqe: &Cqe) -> Option<Ended> {
        let slot = usize::from(cqe.cid().0 & 0xff);
        let pending = self.slots.get_mut(slot)?;
        let pending = pending.take_if(|pending| pending.cid == cqe.cid().0)?;
        let mut data = vec![0; pending.read_len];
        let offset = Layout::admin_data(slot);
        shared.layout.region.read_at(offset, &mut data);
        Some(Ended {
            pending,
            status: cqe.status(),
            reply: AdminReply {
                dw0: cqe.dw0(),
                data,
            },
        })
    }

    /// A command past its deadline.
    pub(crate) fn overdue(&self, now: Instant) -> Option<Pending> {
        let mut pending = self.slots.iter().flatten();
        let is_overdue = |pending: &&Pending| pending.deadline.is_some_and(|at| at <= now);
        pending.find(is_overdue).copied()
    }

    /// Whether a command with this opcode is outstanding.
    pub(crate) fn has(&self, opcode: u8) -> bool {
        let mut pending = self.slots.iter().flatten();
        pending.any(|pending| pending.opcode == opcode)
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.slots.iter().flatten().filter_map(|p| p.deadline).min()
    }

    /// Takes all that is outstanding, before a reset.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Pending> + use<> {
        std::mem::replace(&mut self.slots, [None; ADMIN_SLOTS])
            .into_iter()
            .flatten()
    }
}
