//! Listening for gRPC: a socket in the filesystem, and TCP with certificates.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::service::Routes;
use tonic::transport::server::Router;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use crate::config::{Endpoint, Tls};

/// Why gRPC cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The socket cannot be made.
    #[error(
        "cannot serve gRPC at unix:{path}: {source}; its directory is made where the one above is there"
    )]
    Unix {
        /// Its path.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process serves there.
    #[error("another process serves at unix:{path}; stop it or give another --grpc")]
    UnixInUse {
        /// Its path.
        path: String,
    },
    /// The address cannot be bound.
    #[error("cannot serve gRPC at tcp:{address}: {source}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A certificate or key cannot be read.
    #[error("cannot read {path}: {source}")]
    Certificate {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Certificates or the server are not as they must be.
    #[error("gRPC over TLS cannot be set up: {0}")]
    Tls(String),
}

/// A bound socket, not served yet. Binding early tells errors before anything is started.
#[derive(Debug)]
pub struct Bound {
    kind: BoundKind,
    tls: Option<ServerTlsConfig>,
}

#[derive(Debug)]
enum BoundKind {
    Unix(UnixListener, SocketFile),
    Tcp(TcpListener),
}

/// Removes the file of a socket when dropped.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Binds one endpoint.
///
/// # Errors
/// When it cannot be bound, is in use, or certificates cannot be read.
pub async fn bind(endpoint: &Endpoint, tls: Option<&Tls>) -> Result<Bound, ServeError> {
    match endpoint {
        Endpoint::Unix(path) => {
            let failed = |source| ServeError::Unix {
                path: path.display().to_string(),
                source,
            };
            make_directory(path).map_err(failed)?;
            remove_stale(path).await?;
            let listener = UnixListener::bind(path).map_err(failed)?;
            let file = SocketFile(path.clone());
            let owner_only = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(path, owner_only).map_err(failed)?;
            Ok(Bound {
                kind: BoundKind::Unix(listener, file),
                tls: None,
            })
        }
        Endpoint::Tcp(address) => {
            let failed = |source| ServeError::Tcp {
                address: *address,
                source,
            };
            let tls = tls.map(server_tls).transpose()?;
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            Ok(Bound {
                kind: BoundKind::Tcp(listener),
                tls,
            })
        }
    }
}

/// Makes the directory of a socket: `/run/adit` is gone after each boot. What that would be in must be there:
/// a path that was mistyped stays an error.
fn make_directory(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(directory) if directory != Path::new("") && !directory.exists() => {
            std::fs::create_dir(directory)
        }
        _ => Ok(()),
    }
}

/// Removes the socket that a killed process left behind. Anything else stays.
async fn remove_stale(path: &Path) -> Result<(), ServeError> {
    let name = || path.display().to_string();
    let failed = |source| ServeError::Unix {
        path: name(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(failed(std::io::Error::other(
                "there is a file that is no socket",
            )));
        }
        Ok(_) => {}
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(ServeError::UnixInUse { path: name() });
    }
    std::fs::remove_file(path).map_err(failed)
}

fn server_tls(tls: &Tls) -> Result<ServerTlsConfig, ServeError> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|source| ServeError::Certificate {
            path: path.display().to_string(),
            source,
        })
    };
    let identity = Identity::from_pem(read(&tls.cert)?, read(&tls.key)?);
    let ca = Certificate::from_pem(read(&tls.ca)?);
    Ok(ServerTlsConfig::new().identity(identity).client_ca_root(ca))
}

impl Bound {
    /// Where it is.
    #[must_use]
    pub fn uri(&self) -> String {
        match &self.kind {
            BoundKind::Unix(_, file) => format!("unix:{}", file.0.display()),
            BoundKind::Tcp(listener) => match listener.local_addr() {
                Ok(address) => format!("tcp:{address}"),
                Err(_) => "tcp:?".to_owned(),
            },
        }
    }

    /// Whether only root and this program's user reach it.
    #[must_use]
    pub fn is_private(&self) -> bool {
        matches!(self.kind, BoundKind::Unix(..))
    }

    /// Serves until `stop` becomes true, then lets calls in progress end.
    ///
    /// # Errors
    /// When certificates are wrong or the socket fails.
    pub async fn serve(
        self,
        routes: Routes,
        stop: watch::Receiver<bool>,
    ) -> Result<(), ServeError> {
        let wrong = |error: tonic::transport::Error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            ServeError::Tls(source.unwrap_or_else(|| error.to_string()))
        };
        let mut server = Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .max_concurrent_streams(256);
        if let Some(tls) = self.tls {
            server = server.tls_config(tls).map_err(wrong)?;
        }
        let router = server.add_routes(routes);
        match self.kind {
            BoundKind::Unix(listener, _file) => {
                run(router, permitted(listener), stop).await.map_err(wrong)
            }
            BoundKind::Tcp(listener) => {
                let incoming = TcpListenerStream::new(listener).map(|stream| {
                    stream.inspect(|stream| {
                        // An answer is small and somebody waits for it.
                        let _ = stream.set_nodelay(true);
                    })
                });
                run(router, incoming, stop).await.map_err(wrong)
            }
        }
    }
}

async fn run<S, IO>(
    router: Router,
    incoming: S,
    mut stop: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error>
where
    S: Stream<Item = std::io::Result<IO>> + Send,
    IO: tokio::io::AsyncRead
        + tokio::io::AsyncWrite
        + tonic::transport::server::Connected
        + Unpin
        + Send
        + 'static,
{
    let stopped = async move {
        // An error means that nobody can ask any more.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    router.serve_with_incoming_shutdown(incoming, stopped).await
}

type Connections = Pin<Box<dyn Stream<Item = std::io::Result<UnixStream>> + Send>>;

/// Connections of root and of the user that runs this; others are closed.
fn permitted(listener: UnixListener) -> Connections {
    let own = nix::unistd::geteuid().as_raw();
    Box::pin(UnixListenerStream::new(listener).filter(move |connection| {
        let Ok(stream) = connection else { return true };
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == 0 || peer.uid() == own => true,
            Ok(peer) => {
                tracing::warn!(
                    uid = peer.uid(),
                    "a user who is neither root nor ours was refused"
                );
                false
            }
            Err(error) => {
                tracing::warn!(%error, "a caller whose identity is not known was refused");
                false
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_directory_of_a_socket_is_made_and_no_more_than_that() {
        let above = tempfile::tempdir().unwrap();
        let socket = above.path().join("adit/aditd.sock");
        let bound = bind(&Endpoint::Unix(socket.clone()), None).await.unwrap();
        UnixStream::connect(&socket).await.unwrap();
        drop(bound);
        assert!(!socket.exists(), "it is taken away with its server");

        let mistyped = above.path().join("a/b/aditd.sock");
        let error = bind(&Endpoint::Unix(mistyped), None).await.unwrap_err();
        assert!(matches!(error, ServeError::Unix { .. }), "{error}");
        assert!(!above.path().join("a").exists());
    }
}
