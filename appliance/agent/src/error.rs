//! What can go wrong.

use std::net::SocketAddr;
use std::path::PathBuf;

pub use logging::chain;

/// Why the agent cannot do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The address cannot be bound.
    #[error("cannot serve at tcp:{address}; give another --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the state directory.
    #[error("cannot {action} {path}")]
    State {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A certificate or key.
    #[error(transparent)]
    Certificate(#[from] pki::PkiError),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// The server ended.
    #[error("the server ended: {0}")]
    Serve(String),
    /// Init did not answer.
    #[error("init at {path} {problem}")]
    Init {
        /// Its socket.
        path: String,
        /// What went wrong.
        problem: String,
    },
    /// Init refused.
    #[error("init refuses: {0}")]
    Refused(String),
    /// What outlived the power.
    #[error("what was kept is of no use: {0}")]
    Kept(String),
    /// There is no log.
    #[error("cannot log")]
    Log(#[from] logging::LogError),
    /// The runtime cannot start.
    #[error("cannot start")]
    Start(#[source] std::io::Error),
    /// Something of the network.
    #[error("the network interface {interface} cannot be set up: {problem}")]
    Network {
        /// The interface.
        interface: String,
        /// What went wrong.
        problem: String,
    },
    /// A time server.
    #[error("the time server {server} cannot be used: {problem}")]
    Time {
        /// The server.
        server: String,
        /// What went wrong.
        problem: String,
    },
}

impl AgentError {
    /// For `map_err`: a file of the state directory.
    pub(crate) fn state(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> AgentError {
        let path = path.into();
        move |source| AgentError::State {
            action,
            path,
            source,
        }
    }
}
