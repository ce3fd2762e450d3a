//! The management API, for threads that block.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use api::v1::bdev_service_client::BdevServiceClient;
use api::v1::config_service_client::ConfigServiceClient;
use api::v1::controller_service_client::ControllerServiceClient;
use api::v1::host_service_client::HostServiceClient;
use api::v1::listener_service_client::ListenerServiceClient;
use api::v1::namespace_service_client::NamespaceServiceClient;
use api::v1::node_service_client::NodeServiceClient;
use api::v1::reactor_service_client::ReactorServiceClient;
use api::v1::subsystem_service_client::SubsystemServiceClient;
use api::v1::transport_service_client::TransportServiceClient;
use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::patience;

/// One connection to an `aditd`. Each client of a service is made anew for a call: it costs nothing.
#[derive(Debug)]
pub struct Grpc {
    channel: Channel,
    runtime: Runtime,
}

impl Grpc {
    /// Connects to the socket of an `aditd`.
    ///
    /// # Errors
    ///
    /// When nobody listens there.
    pub fn connect(socket: &Path) -> Result<Self, Status> {
        let unavailable = |error: &dyn std::error::Error| Status::unavailable(error.to_string());
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| unavailable(&error))?;
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))
            .map_err(|error| unavailable(&error))?
            .connect_timeout(Duration::from_secs(10))
            .timeout(patience(60));
        let channel = runtime
            .block_on(endpoint.connect())
            .map_err(|error| unavailable(&error))?;
        Ok(Self { channel, runtime })
    }

    /// Waits for the answer to a call.
    ///
    /// # Errors
    ///
    /// The server's, or one of the connection.
    pub fn wait<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        self.runtime.block_on(call).map(Response::into_inner)
    }

    /// Waits for any future that works with this connection.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Whether the program says that it serves.
    pub fn serving(&self) -> bool {
        let mut client = HealthClient::new(self.channel.clone());
        let request = HealthCheckRequest::default();
        self.wait(client.check(request))
            .is_ok_and(|answer| answer.status() == ServingStatus::Serving)
    }

    /// Whether an error says nothing about what was done: the connection broke.
    pub fn is_broken(status: &Status) -> bool {
        matches!(
            status.code(),
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
        )
    }

    /// The connection, for services that have no method here.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Block devices.
    pub fn bdevs(&self) -> BdevServiceClient<Channel> {
        BdevServiceClient::new(self.channel())
    }

    /// Documents.
    pub fn config(&self) -> ConfigServiceClient<Channel> {
        ConfigServiceClient::new(self.channel())
    }

    /// Controllers, queue pairs and poll groups.
    pub fn controllers(&self) -> ControllerServiceClient<Channel> {
        ControllerServiceClient::new(self.channel())
    }

    /// Hosts.
    pub fn hosts(&self) -> HostServiceClient<Channel> {
        HostServiceClient::new(self.channel())
    }

    /// Listeners.
    pub fn listeners(&self) -> ListenerServiceClient<Channel> {
        ListenerServiceClient::new(self.channel())
    }

    /// Namespaces.
    pub fn namespaces(&self) -> NamespaceServiceClient<Channel> {
        NamespaceServiceClient::new(self.channel())
    }

    /// The node.
    pub fn node(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel())
    }

    /// Reactors, threads, pollers, channels, iobuf.
    pub fn reactors(&self) -> ReactorServiceClient<Channel> {
        ReactorServiceClient::new(self.channel())
    }

    /// Subsystems.
    pub fn subsystems(&self) -> SubsystemServiceClient<Channel> {
        SubsystemServiceClient::new(self.channel())
    }

    /// Transports.
    pub fn transports(&self) -> TransportServiceClient<Channel> {
        TransportServiceClient::new(self.channel())
    }
}
