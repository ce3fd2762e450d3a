//! Identify (NVMe Base 2.1, section 5.1.13; NVM Command Set 1.1, section 4.1.5).

use fabric_wire::Nqn;
use fabric_wire::rdma::DESCRIPTORS_MAX;
use nvme_spec::identify::{
    self, IdentifyController, IdentifyIndependentNamespace, IdentifyNamespace,
    IdentifyNvmController, IdentifyNvmNamespace, LbaFormat, anacap, cmic, cns, cntrltype, csi,
    ctratt, dlfeat, fuses, lpa, nidt, nmic, nsattr, nsfeat, nstat, oaes, ofcs, oncs, put_ascii,
    put_nul_terminated, rescap, sgls, vwc,
};
use nvme_spec::registers::Vs;
use nvme_spec::{Nsid, Sqe, Status};
use zerocopy::{FromZeros, IntoBytes};

use super::namespace;
use crate::config::{NamespaceConfig, SubsystemConfig, WriteProtect};
use crate::controller::{ERROR_LOG_ENTRIES, EVENT_REQUESTS_MAX};
use crate::limits;
use crate::queue::{Association, Queue};

/// The 4,096 bytes that an Identify asks for.
pub(super) fn data(queue: &Queue, association: &Association, sqe: &Sqe) -> Result<Vec<u8>, Status> {
    let invalid = Status::INVALID_FIELD.with_dnr(true);
    if association.subsystem.is_none() && sqe.cns() != cns::CONTROLLER {
        return Err(invalid);
    }
    let is_nvm = sqe.csi() == csi::NVM;
    match sqe.cns() {
        cns::CONTROLLER => Ok(controller(queue, association)),
        cns::NAMESPACE => namespace_or_zeroes(queue, association, sqe),
        cns::ACTIVE_NAMESPACES => active_namespaces(association, sqe.nsid()),
        cns::CSI_ACTIVE_NAMESPACES if is_nvm => active_namespaces(association, sqe.nsid()),
        cns::NAMESPACE_DESCRIPTORS => {
            namespace(association, sqe.nsid()).map(|namespace| descriptors(&namespace))
        }
        // Active or not: nothing beyond what CNS 00h tells.
        cns::CSI_NAMESPACE if is_nvm => {
            check_possible(association, sqe.nsid())?;
            Ok(IdentifyNvmNamespace::new_zeroed().as_bytes().to_vec())
        }
        cns::CSI_CONTROLLER if is_nvm => Ok(nvm_controller()),
        cns::INDEPENDENT_NAMESPACE => {
            check_possible(association, sqe.nsid())?;
            Ok(match namespace(association, sqe.nsid()) {
                Ok(namespace) => independent(queue, &namespace),
                Err(_) => IdentifyIndependentNamespace::new_zeroed()
                    .as_bytes()
                    .to_vec(),
            })
        }
        cns::IO_COMMAND_SETS => Ok(command_sets()),
        _ => Err(invalid),
    }
}

/// The subsystem's configuration; a discovery controller never gets here.
fn config(association: &Association) -> Result<std::sync::Arc<SubsystemConfig>, Status> {
    let subsystem = association.subsystem.as_ref();
    subsystem
        .map(|subsystem| subsystem.config())
        .ok_or(Status::INVALID_FIELD.with_dnr(true))
}

fn controller(queue: &Queue, association: &Association) -> Vec<u8> {
    let options = queue.group.target.options();
    let mut id = IdentifyController::new_zeroed();
    id.mdts = (queue.limits.max_io_size / 4096).ilog2() as u8;
    id.cntlid = association.controller.cntlid().0.into();
    id.ver = u32::from(Vs::V2_1).into();
    id.lpa = lpa::EXTENDED_DATA | lpa::SUPPORTED_PAGES;
    id.elpe = (ERROR_LOG_ENTRIES - 1) as u8;
    id.aerl = (EVENT_REQUESTS_MAX - 1) as u8;
    id.acl = limits::ABORTS_MAX - 1;
    id.kas = queue.limits.kas_100ms.into();
    let data = if queue.limits.keyed_sgl {
        sgls::KEYED
    } else {
        sgls::TRANSPORT
    };
    id.sgls = (sgls::SUPPORTED | sgls::OFFSET | data).into();
    id.maxcmd = queue.limits.max_queue_depth.into();
    id.ctratt = ctratt::HOST_ID_128.into();
    id.crdt1 = options.crdt1_100ms.into();
    put_ascii(&mut id.fr, env!("CARGO_PKG_VERSION"));
    put_nul_terminated(
        &mut id.subnqn,
        association.controller.subsystem_nqn().as_str(),
    );
    match config(association) {
        Ok(config) => io_controller(&mut id, queue, &config, &association.host_nqn),
        Err(_) => {
            id.cntrltype = cntrltype::DISCOVERY;
            id.oaes = oaes::DISCOVERY_LOG_CHANGE.into();
            put_ascii(&mut id.sn, "");
            put_ascii(&mut id.mn, "Adit discovery");
        }
    }
    id.as_bytes().to_vec()
}

fn io_controller(id: &mut IdentifyController, queue: &Queue, config: &SubsystemConfig, host: &Nqn) {
    let options = queue.group.target.options();
    put_ascii(&mut id.sn, &config.serial);
    put_ascii(&mut id.mn, &config.model);
    id.cntrltype = cntrltype::IO;
    id.cmic = cmic::MULTIPLE_PORTS | cmic::MULTIPLE_CONTROLLERS;
    id.lpa |= lpa::COMMANDS_EFFECTS;
    id.oaes = oaes::NAMESPACE_ATTRIBUTE.into();
    if config.ana_reporting {
        id.cmic |= cmic::ANA_REPORTING;
        id.oaes = (oaes::NAMESPACE_ATTRIBUTE | oaes::ANA_CHANGE).into();
        id.anacap = anacap::OPTIMIZED
            | anacap::NON_OPTIMIZED
            | anacap::INACCESSIBLE
            | anacap::PERSISTENT_LOSS
            | anacap::CHANGE;
        id.anatt = options.anatt_s;
        id.anagrpmax = limits::ANA_GROUPS_MAX.into();
        id.nanagrpid = limits::ANA_GROUPS_MAX.into();
    }
    // One firmware slot, read-only: the program itself.
    id.frmw = identify::frmw::FIRST_SLOT_READ_ONLY | 1 << identify::frmw::SLOTS_SHIFT;
    id.sqes = 0x66;
    id.cqes = 0x44;
    id.nn = config.max_namespaces.into();
    id.mnan = config.max_namespaces.into();
    id.oncs = (oncs::COMPARE
        | oncs::DATASET_MANAGEMENT
        | oncs::WRITE_ZEROES
        | oncs::SAVE_SELECT
        | oncs::RESERVATIONS
        | oncs::VERIFY
        | oncs::COPY)
        .into();
    id.fuses = fuses::COMPARE_AND_WRITE.into();
    id.acwu = ((limits::COMPARE_AND_WRITE_BLOCKS_MAX - 1) as u16).into();
    // Copy descriptor format 0.
    id.cdfs = 1.into();
    id.nwpc = 1;
    id.vwc = vwc::FLUSH_ALL;
    if has_volatile_cache(config, host) {
        id.vwc |= vwc::PRESENT;
    }
    id.ioccsz = ((64 + queue.limits.in_capsule_data_size) / 16).into();
    id.iorcsz = 1.into();
    id.msdbd = if queue.limits.keyed_sgl {
        DESCRIPTORS_MAX as u8
    } else {
        1
    };
    id.ofcs = ofcs::DISCONNECT.into();
}

/// Whether a namespace that the host sees can lose acknowledged writes before a flush.
pub(super) fn has_volatile_cache(config: &SubsystemConfig, host: &Nqn) -> bool {
    config
        .visible_namespaces(host)
        .any(|namespace| namespace.bdev.geometry().volatile_write_cache)
}

/// An inactive namespace is all zeroes.
fn namespace_or_zeroes(
    queue: &Queue,
    association: &Association,
    sqe: &Sqe,
) -> Result<Vec<u8>, Status> {
    if sqe.nsid() == Nsid::ALL {
        return Ok(common_namespace(queue));
    }
    check_possible(association, sqe.nsid())?;
    let config = config(association)?;
    match namespace(association, sqe.nsid()) {
        Ok(namespace) => Ok(nvm_namespace(queue, &config, &namespace)),
        Err(_) => Ok(IdentifyNamespace::new_zeroed().as_bytes().to_vec()),
    }
}

/// A number that a namespace can have, be it active or not.
fn check_possible(association: &Association, nsid: Nsid) -> Result<(), Status> {
    let config = config(association)?;
    if (1..=config.max_namespaces).contains(&nsid.0) {
        Ok(())
    } else {
        Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true))
    }
}

/// What all namespaces have in common (NSID FFFFFFFFh): the formats.
fn common_namespace(_queue: &Queue) -> Vec<u8> {
    let mut id = IdentifyNamespace::new_zeroed();
    id.nlbaf = 1;
    id.lbaf[0] = LbaFormat::new(9);
    id.lbaf[1] = LbaFormat::new(12);
    id.as_bytes().to_vec()
}

/// A zero-based field of a number of blocks: 0 stands for 1.
fn zero_based(blocks: u32) -> u16 {
    u16::try_from(blocks.saturating_sub(1)).unwrap_or(u16::MAX)
}

fn nvm_namespace(queue: &Queue, config: &SubsystemConfig, namespace: &NamespaceConfig) -> Vec<u8> {
    let geometry = namespace.bdev.geometry();
    let mut id = IdentifyNamespace::new_zeroed();
    id.nsze = geometry.block_count.into();
    id.ncap = geometry.block_count.into();
    let device = namespace.bdev.device();
    let used = device.allocated_blocks().unwrap_or(geometry.block_count);
    id.nuse = used.min(geometry.block_count).into();
    if device.is_thin() {
        // NCAP stays NSZE: as long as there is room, every block can be written.
        id.nsfeat |= nsfeat::THIN_PROVISIONING;
    }
    id.lbaf[0] = LbaFormat::new(geometry.block_size.ilog2() as u8);
    id.nmic = nmic::SHARED;
    id.rescap = reservation_capabilities(queue);
    id.dlfeat = dlfeat::READS_ZEROES | dlfeat::WRITE_ZEROES_DEALLOCATE;
    if geometry.atomic_write_blocks > 1 {
        id.nsfeat |= nsfeat::ATOMIC;
        id.nawun = zero_based(geometry.atomic_write_blocks).into();
        id.nawupf = zero_based(geometry.atomic_write_blocks).into();
        id.nacwu = zero_based(limits::COMPARE_AND_WRITE_BLOCKS_MAX).into();
    }
    id.nsfeat |= nsfeat::OPTIMAL_PERFORMANCE;
    id.npwg = zero_based(geometry.write_granularity_blocks).into();
    id.npwa = id.npwg;
    id.npdg = zero_based(geometry.unmap_granularity_blocks).into();
    id.npda = id.npdg;
    id.nows = zero_based(geometry.optimal_io_blocks).into();
    id.noiob = u16::try_from(geometry.boundary_blocks).unwrap_or(0).into();
    id.mssrl = (limits::COPY_RANGE_BLOCKS_MAX as u16).into();
    id.mcl = limits::COPY_BLOCKS_MAX.into();
    id.msrc = (limits::COPY_RANGES_MAX - 1) as u8;
    if config.ana_reporting {
        id.anagrpid = namespace.ana_group.0.into();
    }
    id.nsattr = attributes(namespace);
    id.nguid = namespace.nguid;
    id.eui64 = namespace.eui64;
    id.as_bytes().to_vec()
}

fn attributes(namespace: &NamespaceConfig) -> u8 {
    let is_protected = namespace.write_protect != WriteProtect::None
        || namespace.bdev.is_write_protected()
        || namespace.bdev.geometry().read_only;
    if is_protected {
        nsattr::WRITE_PROTECTED
    } else {
        0
    }
}

/// All types, for every namespace; persistence where there is a store.
fn reservation_capabilities(queue: &Queue) -> u8 {
    let mut capabilities = rescap::WRITE_EXCLUSIVE
        | rescap::EXCLUSIVE_ACCESS
        | rescap::WRITE_EXCLUSIVE_REGISTRANTS
        | rescap::EXCLUSIVE_ACCESS_REGISTRANTS
        | rescap::WRITE_EXCLUSIVE_ALL_REGISTRANTS
        | rescap::EXCLUSIVE_ACCESS_ALL_REGISTRANTS
        | rescap::IEKEY_1_3;
    if queue.group.target.reservation_store().is_some() {
        capabilities |= rescap::PERSIST_THROUGH_POWER_LOSS;
    }
    capabilities
}

fn independent(queue: &Queue, namespace: &NamespaceConfig) -> Vec<u8> {
    let mut id = IdentifyIndependentNamespace::new_zeroed();
    id.nmic = nmic::SHARED;
    id.rescap = reservation_capabilities(queue);
    id.anagrpid = namespace.ana_group.0.into();
    id.nsattr = attributes(namespace);
    id.nstat = nstat::READY;
    if !namespace.bdev.geometry().volatile_write_cache {
        id.nsfeat |= nsfeat::NO_VWC;
    }
    id.as_bytes().to_vec()
}

/// The limits of single commands, in units of 4 KiB as powers of two, or in blocks.
fn nvm_controller() -> Vec<u8> {
    let mut id = IdentifyNvmController::new_zeroed();
    id.vsl = (limits::VERIFY_BYTES_MAX / 4096).ilog2() as u8;
    id.wzsl = (limits::WRITE_ZEROES_BYTES_MAX / 4096).ilog2() as u8;
    // A zero-based byte cannot say 256: no limit below what the command can name.
    id.dmrl = u8::try_from(limits::DSM_RANGES_MAX).unwrap_or(0);
    id.as_bytes().to_vec()
}

fn active_namespaces(association: &Association, after: Nsid) -> Result<Vec<u8>, Status> {
    if after.0 >= 0xffff_fffe {
        return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true));
    }
    let config = config(association)?;
    let ids = config
        .visible_namespaces(&association.host_nqn)
        .map(|namespace| namespace.nsid)
        .filter(|nsid| *nsid > after);
    Ok(list(ids.map(|nsid| nsid.0)))
}

/// Up to 1,024 numbers.
fn list(ids: impl Iterator<Item = u32>) -> Vec<u8> {
    let mut data = vec![0; identify::LEN];
    for (id, entry) in ids.zip(data.as_chunks_mut::<4>().0) {
        *entry = id.to_le_bytes();
    }
    data
}

fn descriptors(namespace: &NamespaceConfig) -> Vec<u8> {
    let mut data = Vec::with_capacity(identify::LEN);
    let mut put = |kind: u8, value: &[u8]| {
        data.extend([kind, value.len() as u8, 0, 0]);
        data.extend_from_slice(value);
    };
    if namespace.eui64 != [0; 8] {
        put(nidt::EUI64, &namespace.eui64);
    }
    if namespace.nguid != [0; 16] {
        put(nidt::NGUID, &namespace.nguid);
    }
    put(nidt::UUID, namespace.uuid.as_bytes());
    put(nidt::CSI, &[csi::NVM]);
    data.resize(identify::LEN, 0);
    data
}

/// The one combination of I/O command sets: NVM.
fn command_sets() -> Vec<u8> {
    let mut data = vec![0; identify::LEN];
    data[0] = 1 << csi::NVM;
    data
}
