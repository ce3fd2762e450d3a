//! The discovery log page (NVMe Base 2.1, section 5.1.12.3.1).
//!
//! A host reads the log in pieces. The log that it saw at offset 0 is kept for its controller and
//! serves every later offset, so that the pieces fit together whatever changes meanwhile; GENCTR
//! then tells the host that it should read again.

use std::net::SocketAddr;
use std::sync::Arc;

use fabric_wire::discovery::{
    DiscoveryLogHeader, DiscoveryRecord, EFLAGS_DUPRETINFO, EFLAGS_EPCSD, HEADER_LEN,
    SUBTYPE_CURRENT_DISCOVERY, SUBTYPE_NVM, SUBTYPE_REFERRAL, TCP_SECTYPE_NONE,
    TREQ_DISABLE_SQ_FLOW_CONTROL, TREQ_SECURE_CHANNEL_NOT_REQUIRED,
};
use fabric_wire::fabrics::CNTLID_DYNAMIC;
use fabric_wire::{Nqn, TransportAddress};
use nvme_spec::{Cntlid, Sqe};
use zerocopy::IntoBytes;

use crate::queue::{Association, Queue};
use crate::subsystem::SubsystemState;
use crate::target::Target;

pub(super) fn read(queue: &Queue, sqe: &Sqe, association: &Association) -> Arc<[u8]> {
    let target = &queue.group.target;
    let mut state = association.controller.lock();
    // A host that polls the header alone (GENCTR) shall see the present one.
    let is_fresh_read = sqe.log_offset() == 0;
    match &state.discovery_log {
        Some(log) if !is_fresh_read => Arc::clone(log),
        _ => {
            let log = build(target, queue, &association.host_nqn);
            state.discovery_log = Some(Arc::clone(&log));
            log
        }
    }
}

/// The whole log as one host sees it at one address.
fn build(target: &Target, queue: &Queue, host: &Nqn) -> Arc<[u8]> {
    // Read before the entries: a change while they are gathered makes the host read again.
    let generation = target.discovery_generation();
    let mut records = vec![current_discovery(target, queue)];
    for subsystem in target.subsystems() {
        let config = subsystem.config();
        if subsystem.state() == SubsystemState::Inactive || !config.allows_host(host) {
            continue;
        }
        for listener in &config.listeners {
            if is_same_fabric(&listener.address, &queue.peer.listener) {
                let nqn = config.nqn.clone();
                records.push(record(
                    target,
                    queue,
                    &listener.address,
                    SUBTYPE_NVM,
                    nqn,
                    0,
                ));
            }
        }
    }
    for referral in target.referrals() {
        let address = &referral.address;
        records.push(record(
            target,
            queue,
            address,
            SUBTYPE_REFERRAL,
            referral.nqn.clone(),
            0,
        ));
    }
    let header = DiscoveryLogHeader::new(generation, records.len() as u64);
    let mut log = Vec::with_capacity(HEADER_LEN * (1 + records.len()));
    log.extend_from_slice(header.as_bytes());
    for record in &records {
        log.extend_from_slice(record.to_entry().as_bytes());
    }
    log.into()
}

/// A host that reached the target by one transport is told of addresses of that transport and
/// address family: the others it may not be able to reach from where it asks.
fn is_same_fabric(address: &TransportAddress, asked: &TransportAddress) -> bool {
    address.trtype == asked.trtype && address.adrfam == asked.adrfam
}

fn current_discovery(target: &Target, queue: &Queue) -> DiscoveryRecord {
    let flags = EFLAGS_DUPRETINFO | EFLAGS_EPCSD;
    let subtype = SUBTYPE_CURRENT_DISCOVERY;
    record(
        target,
        queue,
        &queue.peer.listener,
        subtype,
        Nqn::discovery(),
        flags,
    )
}

fn record(
    target: &Target,
    queue: &Queue,
    address: &TransportAddress,
    subtype: u8,
    nqn: Nqn,
    eflags: u16,
) -> DiscoveryRecord {
    let port_id = target.port_id(address);
    let shown = shown_address(address, queue);
    DiscoveryRecord {
        address: shown,
        subtype,
        treq: TREQ_SECURE_CHANNEL_NOT_REQUIRED | TREQ_DISABLE_SQ_FLOW_CONTROL,
        portid: port_id,
        cntlid: Cntlid(CNTLID_DYNAMIC),
        asqsz: queue.limits.max_aq_depth,
        eflags,
        subnqn: nqn,
        tcp_sectype: TCP_SECTYPE_NONE,
    }
}

/// A wildcard address, or the port that the system chose, is shown as the one at which this host
/// reached the target.
fn shown_address(address: &TransportAddress, queue: &Queue) -> TransportAddress {
    let Ok(local) = queue.peer.local.parse::<SocketAddr>() else {
        return address.clone();
    };
    let local = TransportAddress::from_socket_addr(address.trtype, local);
    let mut shown = address.clone();
    if address.is_wildcard() && local.adrfam == address.adrfam {
        shown.traddr = local.traddr;
    }
    if address.port() == Some(0) && *address == *queue.peer.listener {
        shown.trsvcid = local.trsvcid;
    }
    shown
}
