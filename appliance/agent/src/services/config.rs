//! The configuration document.

use api::v1::node_config_service_server::NodeConfigService;
use api::v1::{
    ApplyNodeConfigRequest, ApplyNodeConfigResponse, GetNodeConfigRequest,
    GetSigningRequestRequest, NodeConfig, SigningRequest,
};
use tonic::{Request, Response};

use super::{Answer, Services};
use crate::keep;
use crate::node::Wanted;

#[tonic::async_trait]
impl NodeConfigService for Services {
    async fn get_node_config(&self, request: Request<GetNodeConfigRequest>) -> Answer<NodeConfig> {
        let previous = request.into_inner().previous;
        let toml = self.node.document(previous)?;
        let sources = if previous {
            Vec::new()
        } else {
            let current = self.node.current();
            let fetched = current.fetched_from.iter();
            let fetched = fetched.map(|url| format!("the document was fetched from {url}"));
            fetched.chain(current.sources.iter().cloned()).collect()
        };
        Ok(Response::new(NodeConfig {
            digest: pki::sha256_hex(toml.as_bytes()),
            toml,
            sources,
        }))
    }

    async fn apply_node_config(
        &self,
        request: Request<ApplyNodeConfigRequest>,
    ) -> Answer<ApplyNodeConfigResponse> {
        let request = request.into_inner();
        let wanted = Wanted {
            document: request.toml,
            certificate_pem: request.certificate_pem,
            admin_request_pem: request.admin_request_pem,
            expected_digest: request.expected_digest,
            fetched_from: None,
        };
        let node = self.node.clone();
        // Once begun it is carried through, whether or not the caller waits for it.
        let applying = tokio::spawn(async move { node.configure(&wanted, request.dry_run).await });
        let outcome = applying
            .await
            .map_err(|error| tonic::Status::internal(format!("the change broke off: {error}")))??;
        let mut notes = outcome.notes;
        if !request.dry_run {
            notes.extend(keep::applied(&self.node).await);
        }
        Ok(Response::new(ApplyNodeConfigResponse {
            digest: outcome.digest,
            notes,
            ca_pem: outcome.ca_pem,
            admin_certificate_pem: outcome.admin_certificate_pem.unwrap_or_default(),
            fingerprint: outcome.fingerprint,
            server_name: outcome.server_name,
        }))
    }

    async fn get_signing_request(
        &self,
        request: Request<GetSigningRequestRequest>,
    ) -> Answer<SigningRequest> {
        let document = request.into_inner().toml;
        let (pem, names) = self.node.signing_request(document.as_deref())?;
        Ok(Response::new(SigningRequest {
            pem,
            server_name: names.first().cloned().unwrap_or_default(),
            names,
        }))
    }
}
