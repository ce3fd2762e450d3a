//! What the data plane knows of each object.

use api::v1;
use fabric_wire::{Nqn, TransportAddress};
use nvme_spec::Nsid;
use nvmf::{ReservationRecord, Subsystem};
use nvmf_rdma::RdmaTransport;
use nvmf_tcp::TcpTransport;

use super::NvmfRuntime;
use super::devices::io_type;

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// An address of a connection's end as a message; empty when it is of an unknown form. Sockets tell
/// theirs without a transport type.
pub(super) fn address(text: &str) -> Option<v1::Address> {
    v1::Address::from_uri(text)
        .or_else(|_| v1::Address::from_uri(&format!("tcp://{text}")))
        .ok()
}

impl NvmfRuntime {
    pub(super) fn fill_transport(&self, transport: &mut v1::Transport) {
        let trtype = transport
            .spec
            .as_ref()
            .map(|spec| spec.trtype.clone())
            .unwrap_or_default();
        for used in self.plane.target().transports() {
            if !used.name().eq_ignore_ascii_case(&trtype) {
                continue;
            }
            if let Some(tcp) = used.as_any().downcast_ref::<TcpTransport>() {
                let stats = tcp.stats().snapshot();
                transport.connections = u32::try_from(stats.connections).unwrap_or(u32::MAX);
                transport.connections_accepted = stats.accepted;
                transport.connections_refused = stats.refused_at_limit;
            }
            if let Some(rdma) = used.as_any().downcast_ref::<RdmaTransport>() {
                let stats = rdma.stats().snapshot();
                transport.connections = u32::try_from(stats.connections).unwrap_or(u32::MAX);
                transport.connections_accepted = stats.requested - stats.rejected;
                transport.connections_refused = stats.refused_at_limit;
            }
        }
    }

    pub(super) fn fill_bdev(&self, bdev: &mut v1::Bdev) {
        let name = bdev
            .spec
            .as_ref()
            .map(|spec| spec.name.as_str())
            .unwrap_or_default();
        if let Some(drive) = self.drives.get(name) {
            drive.fill(bdev);
            return;
        }
        let Ok(found) = self.plane.registry().get(name) else {
            return;
        };
        let geometry = found.geometry();
        bdev.block_size = geometry.block_size;
        bdev.num_blocks = geometry.block_count;
        bdev.optimal_io_blocks = geometry.optimal_io_blocks;
        bdev.write_granularity_blocks = geometry.write_granularity_blocks;
        bdev.unmap_granularity_blocks = geometry.unmap_granularity_blocks;
        bdev.atomic_write_blocks = geometry.atomic_write_blocks;
        bdev.volatile_write_cache = geometry.volatile_write_cache;
        bdev.read_only = found.is_write_protected();
        bdev.supported_io_types = geometry
            .supports
            .iter()
            .map(|kind| io_type(kind).into())
            .collect();
        let kind = found.device().kind();
        bdev.product_name = match kind {
            "malloc" | "null" => format!("{kind} disk"),
            "file" => "file (io_uring)".to_owned(),
            "volume" => "volume of a pool".to_owned(),
            "nvme" => "namespace of a drive".to_owned(),
            layer => format!("{layer} layer"),
        };
        bdev.notice = self.lock().notices.get(name).cloned().unwrap_or_default();
    }

    pub(super) fn fill_subsystem(&self, message: &mut v1::Subsystem) {
        let nqn = message
            .spec
            .as_ref()
            .map(|spec| spec.nqn.as_str())
            .unwrap_or_default();
        let Some(subsystem) = self.subsystem(nqn) else {
            return;
        };
        message.state = match subsystem.state() {
            nvmf::SubsystemState::Inactive => v1::SubsystemState::Inactive,
            nvmf::SubsystemState::Activating => v1::SubsystemState::Activating,
            nvmf::SubsystemState::Active => v1::SubsystemState::Active,
            nvmf::SubsystemState::Pausing => v1::SubsystemState::Pausing,
            nvmf::SubsystemState::Paused => v1::SubsystemState::Paused,
            nvmf::SubsystemState::Resuming => v1::SubsystemState::Resuming,
            nvmf::SubsystemState::Deactivating => v1::SubsystemState::Deactivating,
        }
        .into();
        let controllers = subsystem.controllers();
        message.controllers = count(controllers.len());
        for controller in &controllers {
            let qpairs = controller.qpairs();
            let admin = qpairs.iter().filter(|qpair| qpair.qid.0 == 0).count();
            message.admin_qpairs += count(admin);
            message.io_qpairs += count(qpairs.len() - admin);
        }
        let state = self.lock();
        message.connects = state.connects.get(subsystem.nqn()).copied().unwrap_or(0);
    }

    pub(super) fn fill_namespace(&self, message: &mut v1::Namespace) {
        let Some(subsystem) = self.subsystem(&message.nqn) else {
            return;
        };
        let Some(spec) = &mut message.spec else {
            return;
        };
        let config = subsystem.config();
        if let Some(namespace) = config.namespaces.get(&Nsid(spec.nsid)) {
            // Those of a volume, which the namespace took over.
            spec.uuid.get_or_insert_with(|| namespace.uuid.to_string());
            let nguid = || uuid::Uuid::from_bytes(namespace.nguid).simple().to_string();
            spec.nguid.get_or_insert_with(nguid);
            let geometry = namespace.bdev.geometry();
            message.block_size = geometry.block_size;
            message.num_blocks = geometry.block_count;
        }
        let record = subsystem.reservations(Nsid(spec.nsid));
        let record = record.filter(|record| !record.registrants.is_empty());
        message.reservation = record.map(|record| reservation(&subsystem, &record));
    }

    pub(super) fn fill_listener(&self, message: &mut v1::Listener) {
        let address = message.spec.as_ref().and_then(|spec| spec.address.as_ref());
        let Some(address) = address.and_then(|a| a.uri().parse::<TransportAddress>().ok()) else {
            return;
        };
        let transports = self.plane.target().transports();
        let mut rdma = transports
            .iter()
            .filter_map(|transport| transport.as_any().downcast_ref::<RdmaTransport>());
        if let Some(reason) = rdma.find_map(|rdma| rdma.listener_lost(&address)) {
            message.status = Some(v1::Status {
                state: v1::ObjectState::Pending.into(),
                reason,
            });
        }
        let Some(subsystem) = self.subsystem(&message.nqn) else {
            return;
        };
        message.connections = subsystem
            .controllers()
            .iter()
            .flat_map(|controller| controller.qpairs())
            .filter(|qpair| *qpair.peer.listener == address)
            .count()
            .try_into()
            .unwrap_or(u32::MAX);
    }

    pub(super) fn fill_host(&self, message: &mut v1::Host) {
        let Some(host) = message
            .spec
            .as_ref()
            .and_then(|spec| spec.nqn.parse::<Nqn>().ok())
        else {
            return;
        };
        let Some(subsystem) = self.subsystem(&message.subsystem_nqn) else {
            return;
        };
        let controllers = subsystem.controllers();
        message.controllers = count(
            controllers
                .iter()
                .filter(|controller| *controller.host_nqn() == host)
                .count(),
        );
    }
}

/// What is registered with a namespace, and by whom.
fn reservation(subsystem: &Subsystem, record: &ReservationRecord) -> v1::Reservation {
    let controllers = subsystem.controllers();
    let registrants = record.registrants.iter().map(|(host, key)| {
        let of_host = controllers.iter().filter(|one| one.host_id() == host);
        let mut host_nqns: Vec<_> = of_host.map(|one| one.host_nqn().to_string()).collect();
        host_nqns.sort();
        host_nqns.dedup();
        v1::Registrant {
            host_id: uuid::Uuid::from_bytes(*host).to_string(),
            key: format!("{key:016x}"),
            holder: record.is_holder(host),
            host_nqns,
        }
    });
    v1::Reservation {
        r#type: record.reservation.map_or(0, |held| held.rtype as i32),
        persists_through_power_loss: record.ptpl,
        generation: record.generation,
        registrants: registrants.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_a_type() {
        for text in ["tcp://127.0.0.1:4420", "127.0.0.1:4420"] {
            assert_eq!(address(text).unwrap().uri(), "tcp://127.0.0.1:4420");
        }
        assert_eq!(address("[::1]:4420").unwrap().uri(), "tcp://[::1]:4420");
        assert_eq!(address("somewhere"), None);
    }
}
