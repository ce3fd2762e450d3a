//! The management API over the control plane: one type for every service.

mod agent_state;
mod bdev;
mod config;
mod controller;
mod copies;
mod describe;
mod host;
mod labels;
mod limits;
mod listener;
mod namespace;
mod node;
mod operation;
mod page;
mod pool;
mod reactor;
mod subsystem;
mod transport;
mod volume;
mod volume_parent;
mod watch;

use api::v1;
use api::v1::bdev_service_server::BdevServiceServer;
use api::v1::config_service_server::ConfigServiceServer;
use api::v1::controller_service_server::ControllerServiceServer;
use api::v1::host_service_server::HostServiceServer;
use api::v1::listener_service_server::ListenerServiceServer;
use api::v1::namespace_service_server::NamespaceServiceServer;
use api::v1::node_service_server::NodeServiceServer;
use api::v1::operation_service_server::OperationServiceServer;
use api::v1::pool_service_server::PoolServiceServer;
use api::v1::reactor_service_server::ReactorServiceServer;
use api::v1::snapshot_service_server::SnapshotServiceServer;
use api::v1::subsystem_service_server::SubsystemServiceServer;
use api::v1::transport_service_server::TransportServiceServer;
use api::v1::volume_service_server::VolumeServiceServer;
use api::v1::watch_service_server::WatchServiceServer;
use std::sync::Arc;

use tokio::sync::{Mutex, mpsc};
use tonic::service::{Routes, RoutesBuilder};
use tonic::{Response, Status};

use crate::control::Control;
use crate::error::ControlError;

/// Largest request. A document of a whole node fits.
const REQUEST_BYTES_MAX: usize = 16 << 20;

/// Every service of the management API.
#[derive(Debug, Clone)]
pub struct Services {
    control: Control,
    /// Told when a call asks for the end of the process.
    shutdown: mpsc::Sender<()>,
    /// Pools are attached and let go of one at a time.
    pool_gate: Arc<Mutex<()>>,
    /// Limits and thresholds are read, checked and changed one call at a time.
    limits_gate: Arc<Mutex<()>>,
}

type Answer<T> = Result<Response<T>, Status>;

impl Services {
    /// Services over a control plane. `shutdown` gets a message when a call asks for the end.
    #[must_use]
    pub fn new(control: Control, shutdown: mpsc::Sender<()>) -> Services {
        Services {
            control,
            shutdown,
            pool_gate: Arc::default(),
            limits_gate: Arc::default(),
        }
    }

    /// Routes for a server, with health and reflection.
    ///
    /// # Errors
    /// Never in practice: the compiled definitions are part of the program.
    pub fn routes(&self) -> Result<Routes, tonic_reflection::server::Error> {
        let mut routes = RoutesBuilder::default();
        macro_rules! add {
            ($($server:ident),*) => {
                $(routes.add_service(
                    $server::new(self.clone()).max_decoding_message_size(REQUEST_BYTES_MAX),
                );)*
            };
        }
        add!(
            BdevServiceServer,
            ConfigServiceServer,
            ControllerServiceServer,
            HostServiceServer,
            ListenerServiceServer,
            NamespaceServiceServer,
            NodeServiceServer,
            OperationServiceServer,
            PoolServiceServer,
            ReactorServiceServer,
            SnapshotServiceServer,
            SubsystemServiceServer,
            TransportServiceServer,
            VolumeServiceServer,
            WatchServiceServer
        );
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(api::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        routes.add_service(reflection().build_v1()?);
        routes.add_service(reflection().build_v1alpha()?);
        Ok(routes.routes())
    }
}

/// A message of a request that must be there.
fn required<T>(field: Option<T>, name: &'static str) -> Result<T, ControlError> {
    field.ok_or_else(|| ControlError::field("the request", name, "must be set"))
}

/// The paths of an update mask.
fn paths(mask: Option<prost_types::FieldMask>) -> Vec<String> {
    mask.map(|mask| mask.paths).unwrap_or_default()
}

/// One second in the ticks of the API.
const TICK_RATE: u64 = 1_000_000_000;

/// An empty answer.
fn done<T: Default>() -> Answer<T> {
    Ok(Response::new(T::default()))
}

#[cfg(test)]
mod tests;

/// `status` of an object.
fn ready() -> v1::Status {
    v1::Status {
        state: v1::ObjectState::Ready.into(),
        reason: String::new(),
    }
}
