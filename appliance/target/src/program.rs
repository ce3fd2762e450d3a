//! The life of `aditd`: from the command line to the exit code.

use std::fs::{DirBuilder, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use api::v1::{EventType, NamespaceSpec};
use logging::{Log, LogError};
use metastore::{Contents, StateStore};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nvmf::{TargetEvent, TargetOptions, WriteProtect};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tonic_health::ServingStatus;

use crate::config::{Backing, Config, ConfigError, Flags, Memory, Reactors};
use crate::control::{About, Control};
use crate::data_plane::{Cores, DataPlane, DataPlaneError, DataPlaneOptions};
use crate::error::chain;
use crate::events::now_unix_ms;
use crate::lvol_driver::LvolDriver;
use crate::model::{self, Key, Model, RecordError};
use crate::nvmf_runtime::{LostDrive, NvmfRuntime};
use crate::pool::PoolEvent;
use crate::reservations::{self, Reservations};
use crate::serve::{Bound, ServeError, bind};
use crate::services::Services;
use crate::system_pool::KeeperTask;
use crate::system_pool::boot::{self, Beginning, Looked};
use crate::{config, health, hot_plug, metrics};

/// Name of the store in the state directory.
const STORE: &str = "state.redb";
/// Name of the file that holds the node's identity.
const NODE_ID: &str = "node-id";
/// Events of pools that wait to be told; more are lost, and the log says so.
const POOL_EVENTS_MAX: usize = 1024;
/// How long calls in progress may take at the end, when everything is drained.
const GOODBYE: Duration = Duration::from_secs(2);

/// Why the program did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// The configuration is wrong.
    #[error("wrong configuration")]
    Config(#[from] ConfigError),
    /// There is no log.
    #[error("cannot log")]
    Log(#[from] LogError),
    /// The state directory cannot be used.
    #[error("cannot use {path} in the state directory")]
    StateDir {
        /// The directory or a file in it.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The node's identity is damaged.
    #[error("{path} holds no UUID; put the right one back, or remove it to make this a new node")]
    NodeId {
        /// The file.
        path: String,
    },
    /// The store cannot be opened.
    #[error("cannot open the state")]
    Store(#[from] metastore::OpenError),
    /// The store holds what this program does not understand.
    #[error("cannot restore the state")]
    Restore(#[from] RecordError),
    /// Reactors or memory are missing.
    #[error("cannot start the data plane")]
    DataPlane(#[source] Box<DataPlaneError>),
    /// The control thread has no runtime.
    #[error("cannot start the control thread's runtime")]
    Runtime(#[source] std::io::Error),
    /// gRPC is not served.
    #[error("cannot serve the management API")]
    Serve(#[from] ServeError),
    /// Metrics are not served.
    #[error("cannot serve metrics at {address}")]
    Metrics {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Signals cannot be received.
    #[error("cannot receive signals")]
    Signals(#[source] std::io::Error),
    /// A second signal cut the drain short.
    #[error("ended by a second signal before everything was drained")]
    Interrupted,
}

impl ProgramError {
    /// 2 for a wrong configuration, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if matches!(self, ProgramError::Config(_)) {
            2
        } else {
            1
        }
    }
}

/// Runs until it is told to end and everything is drained.
///
/// # Errors
/// When it cannot start, or ends otherwise than drained.
pub fn run(flags: &Flags) -> Result<(), ProgramError> {
    let started = Instant::now();
    let config = Config::load(flags)?;
    let log = Log::start("aditd", &config.log_filter, config.log_to)?;
    raise_file_limit();
    make_state_dir(&config.state_dir)?;
    // Else it is the first start since the power came.
    let has_state = !config.system_pool || config.state_dir.join(STORE).exists();
    let opened = has_state.then(|| open_state(&config.state_dir));
    let opened = opened.transpose()?;
    let plane = Arc::new(
        DataPlane::start(plane_options(&config))
            .map_err(|error| ProgramError::DataPlane(Box::new(error)))?,
    );
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ProgramError::Runtime)?;
    let (pool_events, pool_events_in) = mpsc::channel(POOL_EVENTS_MAX);
    let registry = Arc::clone(plane.registry());
    let pools = LvolDriver::new(plane.iobuf_pool().clone(), pool_events, registry);
    let pools = Arc::new(pools.with_map_cache(config.map_cache_pieces));
    let runtime = NvmfRuntime::new(plane.clone(), config.connections_max, pools);
    let Opened {
        store,
        contents,
        problem,
    } = match opened {
        Some(opened) => opened,
        None => find_state(&config, &runtime.look_for_system_pools())?,
    };
    let about = About {
        node_id: node_id(&config.state_dir)?,
        state_dir: std::path::absolute(&config.state_dir).unwrap_or(config.state_dir.clone()),
        start_time_unix_ms: now_unix_ms(),
        started,
    };
    let model = Model::restore(config.limits, &contents)?;
    let (reservations, saves) = Reservations::new(model::reservations(&contents)?);
    let runtime = Arc::new(runtime.with_reservations(reservations.clone()));
    let mut control = Control::new(model, store, runtime.clone(), about);
    let mut keeping = None;
    if config.system_pool {
        let (kept, task) = control.with_system_pool(&contents, problem);
        control = kept;
        keeping = Some(task);
    }
    drop(contents);
    let saving = reservations::run(control.clone(), reservations, saves);
    let reporting = health::keep(config.init.clone(), plane.clone());
    let others = (pool_events_in, saving, reporting, keeping);
    let result = tokio.block_on(serve(&config, control, runtime, others));
    // Tasks hold the store; with them it closes, after it has written what was queued. A thread that
    // waits for a drive to come up is not waited for.
    tokio.shutdown_timeout(GOODBYE);
    if let Err(error) = plane.stop(GOODBYE) {
        tracing::warn!(%error, "the reactors did not end well");
    }
    log.flush(Duration::from_secs(1));
    result
}

async fn serve(
    config: &Config,
    control: Control,
    runtime: Arc<NvmfRuntime>,
    (pool_events, saving, reporting, keeping): (
        mpsc::Receiver<PoolEvent>,
        impl Future<Output = ()> + Send + 'static,
        impl Future<Output = ()> + Send + 'static,
        Option<KeeperTask>,
    ),
) -> Result<(), ProgramError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(ProgramError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ProgramError::Signals)?;
    let mut sockets = Vec::new();
    for endpoint in &config.grpc {
        sockets.push(bind(endpoint, config.tls.as_ref()).await?);
    }
    // These never end by themselves and hold the control plane: they end with this set.
    let mut others = JoinSet::new();
    others.spawn(reporting);
    if let Some(keeping) = keeping {
        others.spawn(keeping.run(control.clone()));
    }
    control.start().await;
    let (shutdown, mut asked) = mpsc::channel(1);
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", ServingStatus::Serving).await;
    let services = Services::new(control.clone(), shutdown);
    let routes = services
        .routes()
        .map_err(|error| ServeError::Tls(error.to_string()))?
        .add_service(health_service);
    let (stop, stopped) = watch::channel(false);
    let mut servers = JoinSet::new();
    for socket in sockets {
        tracing::info!(at = socket.uri(), "serving the management API");
        let own = services.agent_state().filter(|_| socket.is_private());
        let routes = match own {
            Some(own) => routes.clone().add_service(own),
            None => routes.clone(),
        };
        servers.spawn(Bound::serve(socket, routes, stopped.clone()));
    }
    let retrying = control.clone();
    others.spawn(async move { retrying.run().await });
    others.spawn(hot_plug::run(control.clone()));
    if let Some(lost) = runtime.take_lost_drives() {
        others.spawn(take_lost_drives(control.clone(), lost));
    }
    others.spawn(tell_target_events(control.clone(), runtime));
    others.spawn(tell_pool_events(control.clone(), pool_events));
    others.spawn(saving);
    let (metrics_failed, mut metrics_failure) = mpsc::channel(1);
    if let Some(address) = config.metrics {
        let control = control.clone();
        others.spawn(async move {
            if let Err(source) = metrics::serve(address, control).await {
                // Full is not possible: there is one sender and it sends once.
                let _ = metrics_failed.try_send(ProgramError::Metrics { address, source });
            }
        });
    }
    tracing::info!(
        revision = control.read(|view| view.model.revision()),
        "ready"
    );

    let failure = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        _ = asked.recv() => None,
        Some(ended) = servers.join_next() => match ended {
            Ok(Err(error)) => Some(ProgramError::Serve(error)),
            _ => None,
        },
        Some(error) = metrics_failure.recv() => Some(error),
    };
    tracing::info!("draining");
    health
        .set_service_status("", ServingStatus::NotServing)
        .await;
    let end = async {
        control.drain(config.drain_timeout).await;
        let _ = stop.send(true);
        // Streams of watchers do not end by themselves.
        let _ = tokio::time::timeout(GOODBYE, async {
            while servers.join_next().await.is_some() {}
        })
        .await;
    };
    let drained = tokio::select! {
        () = end => Ok(()),
        _ = terminate.recv() => Err(ProgramError::Interrupted),
        _ = interrupt.recv() => Err(ProgramError::Interrupted),
    };
    tracing::info!("ended");
    failure.map_or(drained, Err)
}

/// What hosts do becomes events; what they set for good becomes part of the state.
async fn tell_target_events(control: Control, runtime: Arc<NvmfRuntime>) {
    let wake = Arc::new(WakeNotify(Notify::new()));
    let waker = Waker::from(wake.clone());
    loop {
        for event in runtime.take_events(Some(&waker)) {
            match event {
                TargetEvent::ControllerConnected {
                    nqn,
                    host,
                    cntlid,
                    remote,
                } => {
                    tracing::info!(%nqn, %host, cntlid = cntlid.0, remote, "host connected");
                    let (name, text) = (
                        format!("{nqn}/{}", cntlid.0),
                        format!("{host} from {remote}"),
                    );
                    control.tell(EventType::Connected, "controller", name, text);
                }
                TargetEvent::ControllerDisconnected {
                    nqn,
                    host,
                    cntlid,
                    reason,
                } => {
                    tracing::info!(%nqn, %host, cntlid = cntlid.0, reason, "host disconnected");
                    let (name, text) = (format!("{nqn}/{}", cntlid.0), format!("{host}: {reason}"));
                    control.tell(EventType::Disconnected, "controller", name, text);
                }
                TargetEvent::ConnectRefused { remote, status } => {
                    tracing::warn!(remote, status, "connect refused");
                }
                TargetEvent::WriteProtectChanged {
                    nqn,
                    nsid,
                    write_protect,
                } => {
                    let spec = NamespaceSpec {
                        nsid: nsid.0,
                        write_protect: Some(write_protect == WriteProtect::WriteProtect),
                        ..NamespaceSpec::default()
                    };
                    let paths = ["write_protect".to_owned()];
                    let nqn = nqn.to_string();
                    let kept = control
                        .change(|edit| edit.update_namespace(&nqn, &spec, &paths, None))
                        .await;
                    if let Err(error) = kept {
                        tracing::error!(nqn, nsid = nsid.0, %error, "write protection was not kept");
                    }
                }
                other => tracing::debug!(?other, "event of the target"),
            }
        }
        wake.0.notified().await;
    }
}

/// A drive that went away is pending, and tried again.
async fn take_lost_drives(control: Control, mut lost: mpsc::UnboundedReceiver<LostDrive>) {
    while let Some(LostDrive { name, reason }) = lost.recv().await {
        tracing::error!(bdev = name, reason, "the drive is not in place any more");
        control.lost(Key::Bdev(name), reason);
    }
}

/// What happens in pools becomes events.
async fn tell_pool_events(control: Control, mut events: mpsc::Receiver<PoolEvent>) {
    while let Some(event) = events.recv().await {
        let PoolEvent {
            event_type,
            kind,
            name,
            text,
        } = event;
        match event_type {
            EventType::Fault => tracing::error!(kind, name, text, "fault in a pool"),
            EventType::Space => tracing::warn!(kind, name, text, "space of a pool"),
            _ => tracing::info!(kind, name, text, "event of a pool"),
        }
        control.tell(event_type, kind, name, text);
    }
}

struct WakeNotify(Notify);

impl Wake for WakeNotify {
    fn wake(self: Arc<WakeNotify>) {
        self.0.notify_one();
    }
}

fn plane_options(config: &Config) -> DataPlaneOptions {
    let Memory {
        backing,
        small_pool_count,
        small_bufsize,
        large_pool_count,
        large_bufsize,
        numa_node,
    } = config.memory;
    let bytes = |size: config::Size| u32::try_from(size.0).unwrap_or(u32::MAX);
    DataPlaneOptions {
        cores: match &config.reactors {
            None => Cores::Default,
            Some(Reactors::Count(count)) => Cores::Count(*count),
            Some(Reactors::Mask(mask)) => Cores::Mask(*mask),
        },
        sleep_policy: reactor::SleepPolicy::Adaptive,
        iobuf: dma::IobufOptions {
            small_pool_count,
            small_bufsize: bytes(small_bufsize),
            large_pool_count,
            large_bufsize: bytes(large_bufsize),
            backing: match backing {
                Backing::Auto => dma::BackingPreference::Auto,
                Backing::Hugetlb2M => dma::BackingPreference::Hugetlb2M,
                Backing::Hugetlb1G => dma::BackingPreference::Hugetlb1G,
                Backing::HugepageRs => dma::BackingPreference::HugepageRs,
                Backing::Locked4K => dma::BackingPreference::Locked4K,
                Backing::Plain4K => dma::BackingPreference::Plain4K,
            },
            numa_node,
            ..dma::IobufOptions::default()
        },
        target: TargetOptions {
            max_subsystems: config.limits.subsystems_max,
            max_connections: config.connections_max as usize,
            ..TargetOptions::default()
        },
    }
}

/// A connection is a descriptor: take as many as the system lets us.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
        } else {
            Ok(())
        }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// The state that a node begins with.
struct Opened {
    store: StateStore,
    contents: Contents,
    /// Why that may not be what was kept.
    problem: Option<String>,
}

fn make_state_dir(directory: &Path) -> Result<(), ProgramError> {
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    made.map_err(|source| ProgramError::StateDir {
        path: directory.display().to_string(),
        source,
    })
}

fn open_state(directory: &Path) -> Result<Opened, ProgramError> {
    let (store, contents) = StateStore::open(&directory.join(STORE))?;
    Ok(Opened {
        store,
        contents,
        problem: None,
    })
}

/// Begins with what a system pool has kept. A node must be reached whatever is on its drives: what cannot be
/// used is told, and the node begins with nothing.
fn find_state(config: &Config, looked: &[Looked]) -> Result<Opened, ProgramError> {
    let directory = &config.state_dir;
    let problem = match boot::decide(looked, config.system_pool_uuid) {
        Beginning::Kept {
            from,
            node_id,
            contents,
        } => match Model::restore(config.limits, &contents) {
            Ok(_) => {
                let generation = contents.generation;
                tracing::info!(from, generation, "the state comes from the system pool");
                let path = directory.join(NODE_ID);
                let written = write_whole(directory, &path, &format!("{node_id}\n"));
                written.map_err(|source| ProgramError::StateDir {
                    path: path.display().to_string(),
                    source,
                })?;
                // Last: with this file the state is not looked for any more.
                let (store, contents) = StateStore::restore(&directory.join(STORE), &contents)?;
                return Ok(Opened {
                    store,
                    contents,
                    problem: None,
                });
            }
            Err(error) => Some(format!(
                "the state in the system pool {from} is not used: {}",
                chain(&error)
            )),
        },
        Beginning::Empty { problem } => problem,
    };
    match &problem {
        Some(problem) => tracing::error!(problem, "the node starts with an empty state"),
        None => tracing::info!("no drive holds a system pool: the node starts with an empty state"),
    }
    let opened = open_state(directory)?;
    Ok(Opened { problem, ..opened })
}

/// The node's identity; made when there is none. Called with the store open, so by one process.
fn node_id(directory: &Path) -> Result<String, ProgramError> {
    let path = directory.join(NODE_ID);
    let failed = |source| ProgramError::StateDir {
        path: path.display().to_string(),
        source,
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => match uuid::Uuid::parse_str(text.trim()) {
            Ok(id) => Ok(id.to_string()),
            Err(_) => Err(ProgramError::NodeId {
                path: path.display().to_string(),
            }),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let id = uuid::Uuid::new_v4().to_string();
            write_whole(directory, &path, &format!("{id}\n")).map_err(failed)?;
            Ok(id)
        }
        Err(source) => Err(failed(source)),
    }
}

/// Writes a file so that after a power cut it is there whole or not at all.
fn write_whole(directory: &Path, path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut options = File::options();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_of_a_node_stays() {
        let directory = tempfile::tempdir().unwrap();
        let first = node_id(directory.path()).unwrap();
        assert_eq!(node_id(directory.path()).unwrap(), first);
        std::fs::write(directory.path().join(NODE_ID), "damaged").unwrap();
        assert!(matches!(
            node_id(directory.path()),
            Err(ProgramError::NodeId { .. })
        ));
    }

    const ID: &str = "00000000-0000-4000-8000-000000000001";

    /// A drive with a system pool that holds an identity and nothing else.
    fn looked() -> Looked {
        let identity = (b"node\0id".to_vec(), [&[0; 8], ID.as_bytes()].concat());
        let state = lvol::NodeState {
            generation: 7,
            records: vec![identity],
        };
        let look = lvol::NodeLook {
            name: "tank".to_owned(),
            uuid: [1; 16],
            state: Some(state),
        };
        Looked {
            at: "0000:01:00.0n1".to_owned(),
            found: Ok(Some(look)),
        }
    }

    fn config(directory: &Path) -> Config {
        let words = ["aditd", "--system-pool", "--state-dir"].map(Into::into);
        let words = words.into_iter().chain([directory.as_os_str().to_owned()]);
        Config::load(&<Flags as clap::Parser>::parse_from(words)).unwrap()
    }

    #[test]
    fn identity_and_state_come_back_from_the_system_pool() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let opened = find_state(&config, &[looked()]).unwrap();
        assert_eq!((opened.contents.generation, opened.problem), (7, None));
        drop(opened.store);
        assert_eq!(node_id(directory.path()).unwrap(), ID);
        // Neither is looked for at the next start of the program.
        let (_, contents) = StateStore::open(&directory.path().join(STORE)).unwrap();
        assert_eq!(contents.generation, 7);
    }

    /// With the state's file nobody looks at drives any more: what was found must be there whole by then.
    #[test]
    fn the_file_of_the_state_appears_after_the_identity() {
        let directory = tempfile::tempdir().unwrap();
        let identity = directory.path().join(NODE_ID).with_extension("new");
        std::fs::create_dir(&identity).unwrap();
        let config = config(directory.path());
        assert!(find_state(&config, &[looked()]).is_err());
        assert!(!directory.path().join(STORE).exists());
        std::fs::remove_dir(identity).unwrap();
        let opened = find_state(&config, &[looked()]).unwrap();
        assert_eq!(opened.contents.generation, 7);
    }
}
