//! Every call comes through here: who calls, may they, and who answers.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderMap, Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower_service::Service;

use crate::access::{self, Rule, Server};
use crate::listener::PeerInfo;
use crate::maintenance::CodeError;
use crate::node::Node;

/// What goes before the code in the metadata `authorization`.
pub const CODE_SCHEME: &str = "Code ";

/// The one service of the server.
#[derive(Debug, Clone)]
pub struct Endpoint {
    node: Arc<Node>,
    routes: Routes,
}

impl Endpoint {
    /// Serves `routes` for what is the agent's, and `aditd` for the rest.
    #[must_use]
    pub fn new(node: Arc<Node>, routes: Routes) -> Endpoint {
        Endpoint { node, routes }
    }
}

impl Service<Request<Body>> for Endpoint {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Axum's router is always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let node = self.node.clone();
        let mut routes = self.routes.clone();
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            let peer = request.extensions().get::<PeerInfo>().cloned();
            let code = code_of(request.headers());
            let rule = match authorize(&node, &path, peer, code).await {
                Ok(rule) => rule,
                Err(status) => return Ok(status.into_http()),
            };
            match rule.server {
                Server::Aditd => Ok(node.forward.call(request).await),
                Server::Agent => routes.call(request).await.or_else(|error| {
                    let status = Status::internal(format!("{path} failed: {error}"));
                    Ok(status.into_http())
                }),
            }
        })
    }
}

/// The code that came with a call.
fn code_of(headers: &HeaderMap) -> Option<String> {
    let given = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    given.strip_prefix(CODE_SCHEME).map(str::to_owned)
}

async fn authorize(
    node: &Node,
    path: &str,
    peer: Option<PeerInfo>,
    code: Option<String>,
) -> Result<Rule, Status> {
    let rule = access::rule(path).ok_or_else(|| {
        Status::permission_denied(format!("{path} is no method that anybody may call here"))
    })?;
    let peer = peer.ok_or_else(|| Status::unauthenticated("nobody knows who calls"))?;
    let current = node.current();
    if peer.epoch != current.epoch {
        return Err(Status::unauthenticated(
            "who may call this node has changed since this connection was made; connect again",
        ));
    }
    if current.is_configured {
        let client = peer.client.as_ref();
        let client =
            client.ok_or_else(|| Status::unauthenticated(CodeError::Closed.to_string()))?;
        by_certificate(node, path, rule, client)?;
    } else {
        by_code(node, path, rule, code).await?;
    }
    Ok(rule)
}

fn by_certificate(node: &Node, path: &str, rule: Rule, client: &pki::Client) -> Result<(), Status> {
    // TLS has checked this when the connection was made, which may be long ago.
    if node.clock.is_trusted() && node.clock.now() > client.not_after {
        let text = format!(
            "the certificate of {:?} has expired; get another one",
            client.name
        );
        return Err(Status::unauthenticated(text));
    }
    if client.role < rule.role {
        tracing::warn!(client = client.name, role = %client.role, path, "a call was denied");
        return Err(Status::permission_denied(format!(
            "{path} needs the role {}; {:?} is {}",
            rule.role, client.name, client.role
        )));
    }
    if rule.role > pki::Role::Reader {
        tracing::info!(client = client.name, role = %client.role, path, "called");
    }
    Ok(())
}

async fn by_code(node: &Node, path: &str, rule: Rule, code: Option<String>) -> Result<(), Status> {
    let code = code.ok_or_else(|| {
        Status::unauthenticated(
            "this node is in maintenance mode: give the code that its console shows",
        )
    })?;
    match node.gate.check(&code).await {
        Ok(()) => {}
        Err(error @ CodeError::Busy) => return Err(Status::resource_exhausted(error.to_string())),
        Err(error) => return Err(Status::unauthenticated(error.to_string())),
    }
    if !rule.in_maintenance {
        return Err(Status::permission_denied(format!(
            "{path} is closed while this node is in maintenance mode; apply a configuration first"
        )));
    }
    tracing::info!(path, "called in maintenance mode");
    Ok(())
}
