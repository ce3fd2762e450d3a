//! The [`PoolDriver`] of the program: pools of `lvol`, each worker on a thread of its own.

mod engine;
mod external;
mod failure;
mod limits;
mod space;
mod watch;

use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::v1::PoolSpec;
use block::{Bdev, Registry};
use dma::IobufPool;
use lvol::format::{Found, Superblock};
use lvol::{CreateOptions, Host, LvolError, PoolOptions, PoolWorker};
use tokio::sync::{mpsc, oneshot, watch as tokio_watch};
use uuid::Uuid;

use self::engine::LvolPool;
use self::external::NodeDevices;
use self::space::SpaceLevel;
pub(crate) use self::space::{CRITICAL_PERCENT_DEFAULT, WARNING_PERCENT_DEFAULT};
use self::watch::Watch;
use crate::error::{ControlError, chain};
use crate::pool::{Attach, Engine, Opening, PoolDriver, PoolEvent, Work};
use crate::pool_thread::{self, Bell, Next};
use crate::runtime::RuntimeError;

/// How often a device is asked that says neither when it will be ready nor by what.
const ASK_INTERVAL: Duration = Duration::from_micros(50);

/// Pieces of maps that a pool keeps in memory, when nobody says; each is 1 to 15 KiB.
pub const MAP_CACHE_PIECES_DEFAULT: usize = 16_384;
/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Opens pools, each with a thread of its own.
#[derive(Debug)]
pub struct LvolDriver {
    /// Buffers for pools' own I/O.
    buffers: Arc<IobufPool>,
    /// Where events of pools go.
    events: mpsc::Sender<PoolEvent>,
    /// Where volumes find devices to lie on.
    registry: Arc<Registry>,
    /// Pieces of maps that each pool keeps in memory.
    map_cache_pieces: usize,
    /// This boot of this machine; zeroes if nobody says.
    boot_id: [u8; 16],
    /// Pools that this program has opened already. One that it opens again may have been away meanwhile, on
    /// a device that lost its power.
    opened: Mutex<HashSet<String>>,
}

impl LvolDriver {
    /// A driver whose pools take their buffers from `buffers`, tell their events to `events` and find
    /// the block devices that volumes lie on in `registry`.
    #[must_use]
    pub fn new(
        buffers: Arc<IobufPool>,
        events: mpsc::Sender<PoolEvent>,
        registry: Arc<Registry>,
    ) -> LvolDriver {
        LvolDriver {
            buffers,
            events,
            registry,
            map_cache_pieces: MAP_CACHE_PIECES_DEFAULT,
            boot_id: read_boot_id(Path::new(BOOT_ID)),
            opened: Mutex::default(),
        }
    }

    /// Has each pool keep so many pieces of maps in memory that nobody uses.
    #[must_use]
    pub fn with_map_cache(mut self, pieces: usize) -> LvolDriver {
        self.map_cache_pieces = pieces;
        self
    }

    fn options(&self) -> PoolOptions {
        PoolOptions {
            externals: Arc::new(NodeDevices(Arc::clone(&self.registry))),
            cached_pieces: self.map_cache_pieces,
            boot_id: self.boot_id,
            ..PoolOptions::new(Arc::clone(&self.buffers))
        }
    }
}

impl PoolDriver for LvolDriver {
    fn probe(&self, base: Arc<Bdev>) -> Work<Option<String>> {
        let what = format!("looking for a pool on {}", base.name());
        let failed = move |reason: String| ControlError::Failed { what, reason };
        let options = self.options();
        let (tell, told) = oneshot::channel();
        // Reads of the device are waited for: not on the thread that serves the calls.
        let make = move |bell: &Arc<Bell>| {
            let found = PoolWorker::probe(&base, &options, host(bell), &bell.waker());
            // The receiver is gone when the caller is.
            let _ = tell.send(found);
            None::<fn(Instant) -> Next>
        };
        let started = pool_thread::start("probe", make);
        Box::pin(async move {
            match started {
                Err(error) => return Err(failed(error.to_string())),
                Ok(thread) => drop(thread),
            }
            match told.await {
                Ok(Ok(Found::Pool(superblock))) => Ok(Some(superblock.name)),
                Ok(Ok(_)) => Ok(None),
                Ok(Err(error)) => Err(failed(chain(&error))),
                Err(_) => Err(failed("its thread has ended".to_owned())),
            }
        })
    }

    fn open(&self, base: Arc<Bdev>, spec: &PoolSpec, attach: Attach) -> Opening {
        let name = spec.name.as_str();
        let change = match &attach {
            Attach::Create { change, .. } => space::labels_of(change),
            Attach::Open => Vec::new(),
        };
        let level = Arc::new(SpaceLevel::default());
        let block_size = base.geometry().block_size;
        let (tell, told) = oneshot::channel();
        let (alive, ended) = tokio_watch::channel(());
        // A panic while it was held left a plain set behind.
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = opened.insert(name.to_owned());
        drop(opened);
        let plan = Plan {
            base,
            name: name.to_owned(),
            uuid: spec.uuid.as_deref().and_then(|uuid| uuid.parse().ok()),
            attach,
            options: PoolOptions {
                was_away: !is_first,
                ..self.options()
            },
        };
        let events = self.events.clone();
        let told_level = Arc::clone(&level);
        let make = move |bell: &Arc<Bell>| {
            let (pool, worker) = match plan.open(bell) {
                Ok(open) => open,
                Err(reason) => {
                    // The receiver is gone when the caller is.
                    let _ = tell.send(Err(reason));
                    return None;
                }
            };
            if tell.send(Ok(pool.clone())).is_err() {
                // Nobody wants it any more. The promise is kept by the next step.
                drop(pool.close());
            }
            let mut running = Running {
                worker,
                watch: Watch::new(plan.name, pool, events, told_level),
                _alive: alive,
            };
            Some(move |now| running.step(now))
        };
        let started = pool_thread::start(name, make);
        let (name, registry) = (name.to_owned(), Arc::clone(&self.registry));
        Box::pin(async move {
            let refused = |reason: String| Err(RuntimeError::Refused(reason));
            match started {
                Err(error) => return refused(format!("no thread for the pool: {error}")),
                Ok(thread) => drop(thread),
            }
            let pool = match told.await {
                Ok(Ok(pool)) => pool,
                Ok(Err(reason)) => return refused(reason),
                Err(_) => return refused("the pool's thread has ended, see the log".to_owned()),
            };
            let settled = async {
                let info = pool.info().await?;
                if info.name != name {
                    // It was known by its UUID. Its name is what the node's namespaces are kept under.
                    tracing::warn!(pool = name, was = info.name, "the pool gets its name");
                    pool.rename_pool(&name).await?;
                }
                if !change.is_empty() {
                    pool.set_labels(change).await?;
                }
                Ok(info)
            };
            let info = match settled.await {
                Ok(info) => info,
                Err(error) => {
                    let error: LvolError = error;
                    drop(pool.close());
                    return refused(chain(&error));
                }
            };
            let sizes = (block_size, info.cluster_size);
            let engine = LvolPool::new(name, pool, sizes, registry, level, ended);
            Ok(Arc::new(engine) as Arc<dyn Engine>)
        })
    }
}

/// Which pool is on a device, and what a node keeps in it. Writes nothing; blocks.
pub(crate) fn look_for_node(
    base: &Arc<Bdev>,
    buffers: &Arc<IobufPool>,
) -> Result<Option<lvol::NodeLook>, String> {
    let bell = Bell::new().map_err(|error| error.to_string())?;
    let options = PoolOptions::new(Arc::clone(buffers));
    let looked = PoolWorker::look_for_node(base, &options, host(&bell), &bell.waker());
    looked.map_err(|error| chain(&error))
}

/// The boot as 16 bytes. Without it pools on devices with a volatile cache do without what their logs have
/// after a crash.
fn read_boot_id(path: &Path) -> [u8; 16] {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string());
    let parsed =
        text.and_then(|text| uuid::Uuid::parse_str(text.trim()).map_err(|error| error.to_string()));
    match parsed {
        Ok(id) => *id.as_bytes(),
        Err(error) => {
            let path = path.display().to_string();
            tracing::warn!(path, error, "which boot this is cannot be read");
            [0; 16]
        }
    }
}

/// What the thread of a pool begins with.
struct Plan {
    base: Arc<Bdev>,
    name: String,
    /// The pool may have another name then.
    uuid: Option<Uuid>,
    attach: Attach,
    options: PoolOptions,
}

impl Plan {
    fn open(&self, bell: &Arc<Bell>) -> Result<(lvol::Pool, PoolWorker), String> {
        let made = match self.attach {
            Attach::Create {
                cluster_size,
                force,
                ..
            } => self.create(bell, cluster_size, force),
            Attach::Open => {
                self.check_is_ours(bell)?;
                PoolWorker::open(&self.base, self.options.clone(), host(bell), bell.waker())
            }
        };
        made.map_err(|error| chain(&error))
    }

    fn create(
        &self,
        bell: &Arc<Bell>,
        cluster_size: Option<u64>,
        force: bool,
    ) -> Result<(lvol::Pool, PoolWorker), LvolError> {
        let suited = CreateOptions::cluster_size_for(&self.base.geometry());
        let create = CreateOptions {
            cluster_size: cluster_size.unwrap_or(suited),
            force,
            ..CreateOptions::named(&self.name)
        };
        let (options, host) = (self.options.clone(), host(bell));
        PoolWorker::create(&self.base, &create, options, host, bell.waker())
    }

    fn is_ours(&self, superblock: &Superblock) -> bool {
        match self.uuid {
            Some(uuid) => uuid.as_bytes() == &superblock.pool_uuid,
            None => superblock.name == self.name,
        }
    }

    /// The device may hold another pool by now, or something that was made over this one.
    fn check_is_ours(&self, bell: &Arc<Bell>) -> Result<(), String> {
        let found = PoolWorker::probe(&self.base, &self.options, host(bell), &bell.waker());
        let device = self.base.name();
        match found.map_err(|error| chain(&error))? {
            Found::Pool(superblock) if self.is_ours(&superblock) => Ok(()),
            Found::Pool(superblock) if superblock.name == self.name => Err(format!(
                "block device {device} holds another pool {:?}, with UUID {}",
                superblock.name,
                Uuid::from_bytes(superblock.pool_uuid)
            )),
            Found::Pool(superblock) => Err(format!(
                "block device {device} holds the pool {:?}, not {:?}",
                superblock.name, self.name
            )),
            Found::Foreign { what } => Err(format!("block device {device} holds {what}")),
            // To open it says what is wrong with the superblocks.
            Found::Nothing => Ok(()),
        }
    }
}

/// A pool's worker on its thread. Dropped in this order: when `_alive` goes, the device is let go of.
struct Running {
    worker: PoolWorker,
    watch: Watch,
    _alive: tokio_watch::Sender<()>,
}

impl Running {
    fn step(&mut self, now: Instant) -> Next {
        let next = self.worker.step(now);
        let look_at = self.watch.look(now, next == lvol::Next::Now);
        match next {
            lvol::Next::Now => Next::Now,
            lvol::Next::At(deadline) => Next::At(look_at.map_or(deadline, |at| at.min(deadline))),
            lvol::Next::Idle => look_at.map_or(Next::Idle, Next::At),
            lvol::Next::End => Next::End,
        }
    }
}

/// The clock and the sleep of a worker.
#[derive(Debug)]
struct PoolHost(Arc<Bell>);

fn host(bell: &Arc<Bell>) -> Box<dyn Host> {
    Box::new(PoolHost(Arc::clone(bell)))
}

impl Host for PoolHost {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wait(&self, fd: Option<BorrowedFd<'_>>, deadline: Option<Instant>) {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = match (fd, left) {
            (None, None) => Some(ASK_INTERVAL),
            (_, left) => left,
        };
        self.0.wait(fd, timeout);
    }
}

#[cfg(test)]
mod tests;
