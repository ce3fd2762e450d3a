//! The agent's own services over the node.

mod bundle;
mod config;
mod system;

use std::sync::Arc;

use api::v1::node_config_service_server::NodeConfigServiceServer;
use api::v1::system_service_server::SystemServiceServer;
use tonic::service::{Routes, RoutesBuilder};
use tonic::{Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::config::{DOCUMENT_BYTES_MAX, Violation};
use crate::error::{AgentError, chain};
use crate::node::{ConfigureError, Node};

pub(crate) use self::system::aditd_serves;

type Answer<T> = Result<Response<T>, Status>;

/// The agent's services.
#[derive(Debug, Clone)]
pub struct Services {
    node: Arc<Node>,
}

impl Services {
    /// Services over a node.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Services {
        Services { node }
    }

    /// Routes for a server, with health and reflection.
    ///
    /// # Errors
    /// Never in practice: the compiled definitions are part of the program.
    pub fn routes(&self) -> Result<Routes, tonic_reflection::server::Error> {
        // A document, certificates beside it, and room for their frame.
        let request_bytes_max = 2 * DOCUMENT_BYTES_MAX;
        let mut routes = RoutesBuilder::default();
        routes.add_service(
            SystemServiceServer::new(self.clone()).max_decoding_message_size(request_bytes_max),
        );
        routes.add_service(
            NodeConfigServiceServer::new(self.clone()).max_decoding_message_size(request_bytes_max),
        );
        let (_, health) = tonic_health::server::health_reporter();
        routes.add_service(health);
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

impl From<AgentError> for Status {
    fn from(error: AgentError) -> Status {
        let text = chain(&error);
        match error {
            AgentError::Init { .. } => Status::unavailable(text),
            AgentError::Refused(_) => Status::failed_precondition(text),
            AgentError::Certificate(_) | AgentError::Tls(_) => Status::invalid_argument(text),
            _ => Status::internal(text),
        }
    }
}

fn invalid(message: impl Into<String>, violations: &[Violation]) -> Status {
    let mut details = ErrorDetails::new();
    for violation in violations {
        details.add_bad_request_violation(&violation.field, &violation.problem);
    }
    Status::with_error_details(tonic::Code::InvalidArgument, message, details)
}

impl From<ConfigureError> for Status {
    fn from(error: ConfigureError) -> Status {
        let text = chain(&error);
        match error {
            ConfigureError::Invalid(violations) => invalid(text, &violations),
            ConfigureError::Changed { .. } => Status::aborted(text),
            ConfigureError::Failed(error) => error.into(),
        }
    }
}
