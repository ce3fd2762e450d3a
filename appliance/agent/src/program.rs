//! The program: flags, and what runs.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use logging::{Log, LogError, LogTo};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tonic::transport::Server;

use crate::clock::{Clock, SystemClock};
use crate::endpoint::Endpoint;
use crate::error::{AgentError, chain};
use crate::listener::{Limits, incoming};
use crate::node::{Node, Paths};
use crate::services::Services;

/// How long calls in progress may take at the end.
const END: Duration = Duration::from_secs(5);
/// How long the last lines of the log may take.
const LOG_END: Duration = Duration::from_secs(1);
/// Calls in progress on one connection.
const CALLS_MAX: u32 = 64;
/// A peer that is silent for both together is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// The node's one gRPC endpoint.
#[derive(Debug, Clone, Parser)]
#[command(name = "adit-agent", version, max_term_width = 100)]
pub struct Flags {
    /// Where to listen
    #[arg(long, default_value = "[::]:50051", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// Where configuration, certificates and keys are kept
    #[arg(
        long,
        default_value = "/run/adit/state/agent",
        value_name = "DIRECTORY"
    )]
    pub state_dir: PathBuf,
    /// Control socket of adit-init
    #[arg(long, default_value = "/run/adit/init.sock", value_name = "SOCKET")]
    pub init: PathBuf,
    /// Management socket of aditd
    #[arg(long, default_value = "/run/adit/aditd.sock", value_name = "SOCKET")]
    pub aditd: PathBuf,
    /// Consoles for the status screen; on one named tty0 to tty63 it is redrawn in place [default on
    /// an appliance: /dev/tty0 and /dev/ttyS0]
    #[arg(long, value_name = "DEVICE")]
    pub console: Vec<PathBuf>,
    /// What is logged: error, warn, info, debug, trace, or a filter such as info,agent=debug
    #[arg(long, value_name = "FILTER", env = "ADIT_LOG", default_value = "info")]
    pub log: String,
    /// Where the log goes: auto (the journal when systemd has started this, else stderr), journald,
    /// stderr, or both, for a service of adit-init
    #[arg(long, value_name = "PLACE", default_value = "auto")]
    pub log_to: LogTo,
    /// Another folder with sys, proc and dev, for tests
    #[arg(long, default_value = "/", hide = true)]
    pub root: PathBuf,
}

/// Runs the agent until it is told to end.
///
/// # Errors
/// When it cannot be reached by anybody: no state directory, no address.
pub fn run(flags: Flags) -> Result<(), AgentError> {
    let log = start_log(&flags)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Reading facts and wiping block; more of them wait.
        .max_blocking_threads(8)
        .build()
        .map_err(AgentError::Start)?;
    let ended = runtime.block_on(serve(flags));
    runtime.shutdown_timeout(END);
    log.flush(LOG_END);
    ended
}

/// A wrong filter must not keep the node from being reached.
fn start_log(flags: &Flags) -> Result<Log, AgentError> {
    match Log::start("adit-agent", &flags.log, flags.log_to) {
        Err(error @ LogError::Filter { .. }) => {
            let log = Log::start("adit-agent", "info", flags.log_to)?;
            tracing::warn!("{error}; info is used");
            Ok(log)
        }
        other => Ok(other?),
    }
}

async fn serve(flags: Flags) -> Result<(), AgentError> {
    let paths = Paths {
        state_dir: flags.state_dir.clone(),
        init_socket: flags.init.clone(),
        aditd_socket: flags.aditd.clone(),
        root: flags.root.clone(),
    };
    let is_appliance = flags.init.exists();
    let clock: Arc<dyn Clock> = if is_appliance {
        Arc::new(SystemClock::default())
    } else {
        Arc::new(SystemClock::trusted())
    };
    let node = Node::start(paths, clock).await?;
    let listener = bind(flags.listen).await?;
    let address = listener.local_addr().unwrap_or(flags.listen);
    let consoles = match (flags.console.is_empty(), is_appliance) {
        (true, true) => vec![PathBuf::from("/dev/tty0"), PathBuf::from("/dev/ttyS0")],
        _ => flags.console.clone(),
    };
    tokio::spawn(crate::console::show(node.clone(), consoles, address.port()));
    if is_appliance {
        tokio::spawn(crate::health::keep(node.clone()));
        tokio::spawn(crate::time::keep(node.clone()));
        tokio::spawn(crate::network::keep(node.clone()));
        tokio::spawn(crate::keep::keep(node.clone()));
        tokio::spawn(crate::fetch::keep(node.clone()));
    }
    tokio::spawn(crate::network::watch_addresses(node.clone()));
    announce(&node, address);
    let routes = Services::new(node.clone())
        .routes()
        .map_err(|error| AgentError::Serve(chain(&error)))?;
    let endpoint = Endpoint::new(node.clone(), routes);
    let ending = ending();
    let served = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .max_concurrent_streams(CALLS_MAX)
        .http2_max_header_list_size(16 << 10)
        .serve_with_incoming(endpoint, incoming(listener, node, Limits::default()));
    // Streams that are followed would never end by themselves.
    tokio::select! {
        served = served => served.map_err(|error| AgentError::Serve(chain(&error))),
        () = ending => Ok(()),
    }
}

/// Binds; where there is no IPv6, the same port of IPv4.
async fn bind(address: SocketAddr) -> Result<TcpListener, AgentError> {
    let failed = |source| AgentError::Listen { address, source };
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(_) if address.ip() == std::net::Ipv6Addr::UNSPECIFIED => {
            let any = SocketAddr::from(([0, 0, 0, 0], address.port()));
            TcpListener::bind(any).await.map_err(failed)
        }
        Err(source) => Err(failed(source)),
    }
}

/// The line that says that the agent is ready, for who started it.
fn announce(node: &Node, address: SocketAddr) {
    let current = node.current();
    let mode = if current.is_configured {
        "configured"
    } else {
        "maintenance"
    };
    // Nobody may be reading; then there is nobody to tell.
    let _ = writeln!(
        std::io::stdout(),
        "adit-agent serves at {address}, mode {mode}, fingerprint {}",
        current.identity.fingerprint
    );
}

async fn ending() {
    let wait = |kind: SignalKind| async move {
        match signal(kind) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(error) => {
                tracing::warn!(%error, "a signal cannot be waited for");
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::interrupt()) => {}
    }
}
