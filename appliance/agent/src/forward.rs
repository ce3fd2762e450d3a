//! Calls that are `aditd`'s: carried to its socket and back without being decoded.
//!
//! Streams go both ways, frame by frame, as fast as the slower side reads. Metadata, the deadline and
//! trailers are kept. When `aditd` is away a call ends with UNAVAILABLE and a sentence; the agent
//! lives on, and the next call connects again.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service as _;

use crate::error::{AgentError, chain};

/// Frozen for so long, `aditd` counts as away.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// The way to `aditd`.
#[derive(Debug, Clone)]
pub struct Forward {
    channel: Channel,
    path: String,
}

impl Forward {
    /// Forwards to the unix socket at `path`. Nothing is opened yet. Needs a tokio runtime.
    ///
    /// # Errors
    /// When `path` is no path of a socket.
    pub fn new(path: &Path) -> Result<Forward, AgentError> {
        let path = path.display().to_string();
        let endpoint = Endpoint::from_shared(format!("unix:{path}"))
            .map_err(|error| AgentError::Serve(format!("{path} is no path of a socket: {error}")))?
            .connect_timeout(Duration::from_secs(5))
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        Ok(Forward {
            channel: endpoint.connect_lazy(),
            path,
        })
    }

    /// A channel for calls of our own.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Carries one call.
    pub async fn call(&self, request: Request<Body>) -> Response<Body> {
        let (mut parts, body) = request.into_parts();
        // What this program knows of its peer is its own.
        parts.extensions.clear();
        parts.headers.remove(http::header::AUTHORIZATION);
        parts.headers.remove(http::header::HOST);
        let mut channel = self.channel.clone();
        let ready = std::future::poll_fn(|context| channel.poll_ready(context)).await;
        let answer = match ready {
            Ok(()) => channel.call(Request::from_parts(parts, body)).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(response) => response.map(|body| {
                Body::new(Carried {
                    inner: body,
                    path: self.path.clone(),
                    has_failed: false,
                })
            }),
            Err(error) => away(&self.path, &chain(&error)).into_http(),
        }
    }
}

fn away(path: &str, reason: &str) -> Status {
    Status::unavailable(format!(
        "aditd does not answer at unix:{path}: {reason}; the node itself is up: see \
         `aditctl node services`"
    ))
}

/// The body of an answer. Where it breaks, trailers take its place: a client gets a status then, not
/// a broken stream.
struct Carried {
    inner: Body,
    path: String,
    has_failed: bool,
}

impl HttpBody for Carried {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.has_failed {
            return Poll::Ready(None);
        }
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(Some(Err(error))) => {
                self.has_failed = true;
                let status = away(
                    &self.path,
                    &format!("the call broke off: {}", error.message()),
                );
                let mut trailers = HeaderMap::new();
                // A status that is no header is none: the client sees a stream without trailers.
                let _ = status.add_header(&mut trailers);
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.has_failed || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
