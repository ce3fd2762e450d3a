//! Get Log Page (NVMe Base 2.1, section 5.1.12).

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use dma::Payload;
use nvme_spec::feature::fid;
use nvme_spec::identify::csi;
use nvme_spec::log::{
    ANA_RETURN_GROUPS_ONLY, AnaGroupDescriptor, AnaHeader, ChangedNamespaces, CommandsEffects,
    ErrorEntry, FeatureEffects, FirmwareSlot, SmartLog, SupportedLogPages, effects,
    feature_effects, lid, supported,
};
use nvme_spec::opcode::{admin, nvm};
use nvme_spec::reservation::ReservationNotification;
use nvme_spec::{Nsid, Sqe, Status};
use zerocopy::{FromZeros, IntoBytes};

use super::discovery_log;
use crate::config::AnaGroupId;
use crate::controller::{CHANGED_NAMESPACES_MAX, Controller, ERROR_LOG_ENTRIES};
use crate::features::Features;
use crate::queue::{Association, Queue};
use crate::slot::Slot;

/// Log pages of an I/O controller, and of a discovery controller. ANA is there when it is reported.
const OF_IO: [u8; 9] = [
    lid::SUPPORTED_LOG_PAGES,
    lid::ERROR,
    lid::SMART,
    lid::FIRMWARE_SLOT,
    lid::CHANGED_NAMESPACES,
    lid::COMMANDS_EFFECTS,
    lid::FEATURE_EFFECTS,
    lid::RESERVATION_NOTIFICATION,
    lid::ANA,
];
const OF_DISCOVERY: [u8; 3] = [lid::SUPPORTED_LOG_PAGES, lid::ERROR, lid::DISCOVERY];

fn pages(association: &Association) -> &'static [u8] {
    match &association.subsystem {
        None => &OF_DISCOVERY,
        Some(subsystem) if subsystem.config().ana_reporting => &OF_IO,
        Some(_) => &OF_IO[..OF_IO.len() - 1],
    }
}

pub(super) async fn get(
    queue: &Rc<Queue>,
    slot: &Slot,
    sqe: &Sqe,
    association: &Association,
) -> Result<u64, Status> {
    let invalid = Status::INVALID_FIELD.with_dnr(true);
    let (len, offset) = (sqe.log_len(), sqe.log_offset());
    if sqe.log_uses_index_offset() || offset % 4 != 0 {
        return Err(invalid);
    }
    let len = u32::try_from(len)
        .ok()
        .filter(|len| *len <= queue.limits.max_io_size);
    let len = len.ok_or(invalid)?;
    if queue.sgl_len_to_host(sqe)? < len {
        return Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr(true));
    }
    check(association, sqe)?;
    // Before the page is read: a change in between must not get lost while the host waits.
    let mut buffer = queue.reserved_buffer(slot, len).await?;
    let mut page = page(queue, sqe, association, false)?;
    let offset = usize::try_from(offset)
        .ok()
        .filter(|offset| *offset <= page.len());
    let offset = offset.ok_or(invalid)?;
    if !sqe.rae() {
        acknowledge(&association.controller, sqe.log_id());
        page = self::page(queue, sqe, association, true)?;
    }
    let rest = page.get(offset..).unwrap_or_default();
    let bytes = buffer.as_mut_slice();
    // What the host asks beyond the page's end is zeroes.
    let copied = rest.len().min(bytes.len());
    bytes[..copied].copy_from_slice(&rest[..copied]);
    bytes[copied..].fill(0);
    if rest.len() <= bytes.len() {
        // The end has been read: a log kept for its later pieces has served.
        association.controller.lock().discovery_log = None;
    }
    slot.set_response_data(Payload::Buf(buffer), len);
    Ok(0)
}

/// What can be wrong with the command apart from where it reads.
fn check(association: &Association, sqe: &Sqe) -> Result<(), Status> {
    if !pages(association).contains(&sqe.log_id()) {
        return Err(Status::INVALID_LOG_PAGE.with_dnr(true));
    }
    let is_wrong = match sqe.log_id() {
        // LPA bit 0 is clear: one log for the controller.
        lid::SMART => sqe.nsid() != Nsid::NONE && sqe.nsid() != Nsid::ALL,
        _ => false,
    };
    if is_wrong {
        Err(Status::INVALID_FIELD.with_dnr(true))
    } else {
        Ok(())
    }
}

/// The host sees the page: its event may be told again. To be called before that page is made, so
/// that what changes meanwhile is told once too often and never once too few.
fn acknowledge(controller: &Controller, log_id: u8) {
    let is_of_page = |event: u32| (event >> 16) as u8 == log_id;
    let mut state = controller.lock();
    state.masked_events.retain(|event| !is_of_page(*event));
    state.events.retain(|event| !is_of_page(event.0));
}

/// The page. `is_taken`: the host has it now, and what it lists is forgotten.
fn page(
    queue: &Queue,
    sqe: &Sqe,
    association: &Association,
    is_taken: bool,
) -> Result<Arc<[u8]>, Status> {
    let controller = &association.controller;
    match sqe.log_id() {
        lid::SUPPORTED_LOG_PAGES => Ok(supported_pages(association)),
        lid::ERROR => Ok(errors(controller)),
        lid::SMART => Ok(smart(queue, controller)),
        lid::FIRMWARE_SLOT => Ok(firmware()),
        lid::CHANGED_NAMESPACES => Ok(changed_namespaces(controller, is_taken)),
        lid::COMMANDS_EFFECTS => Ok(commands_effects(sqe.csi())),
        lid::ANA => ana(queue, sqe, association),
        lid::FEATURE_EFFECTS => Ok(features()),
        lid::RESERVATION_NOTIFICATION => Ok(reservation(&association.controller, is_taken)),
        lid::DISCOVERY => Ok(discovery_log::read(queue, sqe, association)),
        _ => Err(Status::INVALID_LOG_PAGE.with_dnr(true)),
    }
}

fn supported_pages(association: &Association) -> Arc<[u8]> {
    let mut log = SupportedLogPages::new_zeroed();
    for id in pages(association) {
        log.lids[usize::from(*id)] = supported::LSUPP.into();
    }
    log.as_bytes().into()
}

fn errors(controller: &Controller) -> Arc<[u8]> {
    let state = controller.lock();
    let mut log = vec![0; ERROR_LOG_ENTRIES * size_of::<ErrorEntry>()];
    let slots = log.chunks_exact_mut(size_of::<ErrorEntry>());
    for (record, slot) in state.errors.iter().zip(slots) {
        let mut entry = ErrorEntry::new_zeroed().with_status(record.status);
        entry.error_count = record.count.into();
        entry.sqid = record.sqid.0.into();
        entry.cid = record.cid.into();
        // FFFFh: no byte of the command is to blame in particular.
        entry.parameter_error_location = 0xffff.into();
        entry.lba = record.lba.into();
        entry.nsid = record.nsid.0.into();
        entry.log_page_version = 1;
        slot.copy_from_slice(entry.as_bytes());
    }
    log.into()
}

fn smart(queue: &Queue, controller: &Controller) -> Arc<[u8]> {
    let state = controller.lock();
    let sum = state.counters();
    let mut log = SmartLog::new_zeroed();
    log.available_spare = 100;
    log.set_data_units_read(SmartLog::data_units(sum.read_bytes.into()));
    log.set_data_units_written(SmartLog::data_units(sum.write_bytes.into()));
    log.set_host_read_commands(sum.reads.into());
    log.set_host_write_commands(sum.writes.into());
    log.set_error_log_entries(state.error_count.into());
    let age = queue
        .group
        .now
        .get()
        .saturating_duration_since(controller.made_at);
    log.set_power_on_hours(u128::from(age.as_secs() / 3600));
    log.set_power_cycles(1);
    log.set_media_errors(state.media_errors.into());
    log.as_bytes().into()
}

fn firmware() -> Arc<[u8]> {
    let mut log = FirmwareSlot::new_zeroed();
    log.afi = 1;
    nvme_spec::identify::put_ascii(&mut log.frs[0], env!("CARGO_PKG_VERSION"));
    log.as_bytes().into()
}

fn changed_namespaces(controller: &Controller, is_taken: bool) -> Arc<[u8]> {
    let mut state = controller.lock();
    debug_assert!(state.changed_namespaces.len() <= CHANGED_NAMESPACES_MAX + 1);
    let list = ChangedNamespaces::new(state.changed_namespaces.iter().copied());
    if is_taken {
        state.changed_namespaces.clear();
    }
    list.as_bytes().into()
}

/// The oldest notification; all zeroes when there is none.
fn reservation(controller: &Controller, is_taken: bool) -> Arc<[u8]> {
    let mut log = ReservationNotification::default();
    if let (Some(notice), count) = controller.read_reservation_notice(is_taken) {
        log.count = notice.count.into();
        log.kind = notice.kind;
        log.available = u8::try_from(count - 1).unwrap_or(u8::MAX);
        log.nsid = notice.nsid.0.into();
    }
    log.as_bytes().into()
}

/// Of an I/O command set that no namespace has there are no I/O commands to tell of: hosts that see
/// CAP.CSS bit 6 ask for more sets than NVM.
fn commands_effects(command_set: u8) -> Arc<[u8]> {
    let mut log = CommandsEffects::new_zeroed();
    for opcode in [
        admin::GET_LOG_PAGE,
        admin::IDENTIFY,
        admin::ABORT,
        admin::GET_FEATURES,
        admin::ASYNC_EVENT_REQUEST,
        admin::KEEP_ALIVE,
        admin::FABRICS,
    ] {
        log.admin[usize::from(opcode)] = effects::CSUPP.into();
    }
    // Write protection changes what a namespace says of itself.
    log.admin[usize::from(admin::SET_FEATURES)] = (effects::CSUPP | effects::NCC).into();
    if command_set != csi::NVM {
        return log.as_bytes().into();
    }
    for opcode in [
        nvm::READ,
        nvm::FLUSH,
        nvm::COMPARE,
        nvm::VERIFY,
        nvm::RESERVATION_REGISTER,
        nvm::RESERVATION_ACQUIRE,
        nvm::RESERVATION_RELEASE,
        nvm::RESERVATION_REPORT,
    ] {
        log.io[usize::from(opcode)] = effects::CSUPP.into();
    }
    for opcode in [
        nvm::WRITE,
        nvm::WRITE_ZEROES,
        nvm::DATASET_MANAGEMENT,
        nvm::COPY,
    ] {
        log.io[usize::from(opcode)] = (effects::CSUPP | effects::LBCC).into();
    }
    log.as_bytes().into()
}

fn features() -> Arc<[u8]> {
    let mut log = FeatureEffects::new_zeroed();
    for fid in Features::KNOWN {
        let scope = match fid {
            fid::NAMESPACE_WRITE_PROTECTION => {
                feature_effects::SCOPE_NAMESPACE | feature_effects::NCC
            }
            fid::RESERVATION_MASK | fid::RESERVATION_PERSISTENCE => {
                feature_effects::SCOPE_NAMESPACE
            }
            _ => feature_effects::SCOPE_CONTROLLER,
        };
        log.fid[usize::from(fid)] = (feature_effects::FSUPP | scope).into();
    }
    log.as_bytes().into()
}

/// The ANA log at this connection's address: the groups that the host has namespaces in.
fn ana(queue: &Queue, sqe: &Sqe, association: &Association) -> Result<Arc<[u8]>, Status> {
    let invalid = Status::INVALID_LOG_PAGE.with_dnr(true);
    let config = association.subsystem.as_ref().ok_or(invalid)?.config();
    let mut groups = BTreeMap::<AnaGroupId, Vec<Nsid>>::new();
    for namespace in config.visible_namespaces(&association.host_nqn) {
        groups
            .entry(namespace.ana_group)
            .or_default()
            .push(namespace.nsid);
    }
    let listener = config.listener(&queue.peer.listener);
    let count = u16::try_from(groups.len()).unwrap_or(u16::MAX);
    let mut log = AnaHeader::new(config.ana_change_count, count)
        .as_bytes()
        .to_vec();
    let is_short = sqe.lsp() & ANA_RETURN_GROUPS_ONLY != 0;
    for (group, nsids) in &groups {
        let state = listener.map_or_else(Default::default, |listener| listener.ana_state(*group));
        let listed: &[Nsid] = if is_short { &[] } else { nsids };
        let descriptor = AnaGroupDescriptor::new(
            group.0,
            listed.len() as u32,
            config.ana_change_count,
            state as u8,
        );
        log.extend_from_slice(descriptor.as_bytes());
        listed
            .iter()
            .for_each(|nsid| log.extend(nsid.0.to_le_bytes()));
    }
    Ok(log.into())
}
