//! The [`Runtime`] of the program: the NVMe-oF target, its block devices and its reactors.

mod apply;
mod copies;
mod describe;
mod devices;
mod drives;
mod observe;
mod pools;
mod transports;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::v1::{self, BdevSpec, PoolSpec};
use block::Claim;
use fabric_wire::Nqn;
use nvmf::{Subsystem, Ticket};
use tokio::sync::mpsc;

pub(crate) use self::devices::qos;
use self::drives::Drives;
pub use self::drives::LostDrive;
use self::pools::{Handle, Pools};
use crate::data_plane::DataPlane;
use crate::error::chain;
use crate::model::{Edit, Key};
use crate::pool::{Attach, Pool, PoolDriver, Work};
use crate::reservations::Reservations;
use crate::runtime::{Facts, Formatting, Prepared, Preparing, Runtime, RuntimeError, Settled};
use crate::system_pool::boot::Looked;

/// How long a removed host's I/O may take when nobody says.
const HOST_DEADLINE_DEFAULT: Duration = Duration::from_secs(5);

/// The time that pools have to close, however long the hosts' I/O took.
const POOLS_CLOSE_MIN: Duration = Duration::from_secs(2);

/// The time that drives have to shut down: what RTD3E of most drives says.
const DRIVES_STOP_MIN: Duration = Duration::from_secs(12);

/// Drives a [`DataPlane`] as the control plane says.
pub struct NvmfRuntime {
    plane: Arc<DataPlane>,
    connections_max: u32,
    pools: Pools,
    drives: Arc<Drives>,
    lost_drives: Mutex<Option<mpsc::UnboundedReceiver<LostDrive>>>,
    reservations: Option<Arc<Reservations>>,
    state: Mutex<State>,
}

struct State {
    /// What holds block devices: namespaces and layers, by their keys.
    claims: HashMap<Key, Claim>,
    /// Fallbacks taken when devices were opened, by device.
    notices: HashMap<String, String>,
    /// Connects since the start, by subsystem, and refusals in all.
    connects: HashMap<Nqn, u64>,
    connects_refused: u64,
    host_deadline: Duration,
}

impl NvmfRuntime {
    /// Over a data plane that runs. `pools` makes and opens pools.
    #[must_use]
    pub fn new(plane: Arc<DataPlane>, connections_max: u32, pools: Arc<dyn PoolDriver>) -> Self {
        let state = State {
            claims: HashMap::new(),
            notices: HashMap::new(),
            connects: HashMap::new(),
            connects_refused: 0,
            host_deadline: HOST_DEADLINE_DEFAULT,
        };
        let (lost, lost_drives) = mpsc::unbounded_channel();
        Self {
            pools: Pools::new(Arc::clone(&plane), pools),
            drives: Drives::new(Arc::clone(&plane), lost),
            lost_drives: Mutex::new(Some(lost_drives)),
            plane,
            connections_max,
            reservations: None,
            state: Mutex::new(state),
        }
    }

    /// Keeps reservations that persist, and puts back those that were kept.
    #[must_use]
    pub fn with_reservations(mut self, reservations: Arc<Reservations>) -> Self {
        self.plane
            .target()
            .set_reservation_store(Arc::clone(&reservations) as _);
        self.reservations = Some(reservations);
        self
    }

    /// Looks at every drive that vfio-pci has: which pools are there, and what nodes keep in them. Blocks for a
    /// bounded time. To be called before anything is put in place.
    pub(crate) fn look_for_system_pools(&self) -> Vec<Looked> {
        self.drives.look_at_all()
    }

    /// Where drives are told of that were in place and are not any more. Given once. At most one for
    /// each time that a drive was put in place, so it is bounded by the calls of the control plane.
    pub fn take_lost_drives(&self) -> Option<mpsc::UnboundedReceiver<LostDrive>> {
        let mut lost = self.lost_drives.lock();
        lost.as_mut().map_or(None, |lost| lost.take())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held left plain data behind: go on with it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn subsystem(&self, nqn: &str) -> Option<Arc<Subsystem>> {
        self.plane.target().subsystem(&nqn.parse().ok()?)
    }

    fn all_subsystems(&self) -> Vec<Arc<Subsystem>> {
        self.plane.target().subsystems()
    }

    /// Counts what hosts did since the last call; for the events of the control plane.
    pub fn take_events(&self, waker: Option<&std::task::Waker>) -> Vec<nvmf::TargetEvent> {
        let (events, _) = self.plane.target().take_events(waker);
        let mut state = self.lock();
        for event in &events {
            match event {
                nvmf::TargetEvent::ControllerConnected { nqn, .. } => {
                    *state.connects.entry(nqn.clone()).or_default() += 1;
                }
                nvmf::TargetEvent::ConnectRefused { .. } => state.connects_refused += 1,
                _ => {}
            }
        }
        events
    }
}

/// Waits for every ticket.
fn settle(tickets: Vec<Ticket>) -> Settled {
    Box::pin(async move {
        for ticket in tickets {
            ticket.await;
        }
    })
}

fn settle_one(ticket: Ticket) -> Settled {
    settle(vec![ticket])
}

fn refused(error: &dyn std::error::Error) -> RuntimeError {
    RuntimeError::Refused(chain(error))
}

impl Runtime for NvmfRuntime {
    fn prepare(&self, spec: &BdevSpec, is_new: bool) -> Preparing {
        match drives::of(spec) {
            Some(nvme) => self.drives.prepare(nvme),
            None => devices::prepare(spec, is_new, self.plane.registry()),
        }
    }

    fn apply(&self, edit: &Edit, prepared: Option<Prepared>) -> Result<Settled, RuntimeError> {
        self.apply_edit(edit, prepared)
    }

    fn forget_bdev(&self, name: &str) {
        match self.drives.remove(name) {
            // It shuts down by itself.
            Ok(settled) => drop(tokio::spawn(settled)),
            Err(error) => tracing::error!(bdev = name, %error, "the drive is not let go of"),
        }
    }

    fn reset_bdev(&self, name: &str) -> bool {
        self.drives.get(name).is_some_and(|drive| drive.reset())
    }

    fn format_drive(&self, request: &v1::FormatDriveRequest) -> Result<Formatting, RuntimeError> {
        let Some(drive) = self.drives.get(&request.name) else {
            return Err(RuntimeError::Refused("it is not in place".to_owned()));
        };
        drive.format(request.nsid, request.data_size, request.metadata_size)
    }

    fn prepare_pool(&self, spec: &PoolSpec, attach: Attach) -> Preparing {
        self.pools.prepare(spec, attach)
    }

    fn probe_pool(&self, bdev_name: &str) -> Work<Option<String>> {
        self.pools.probe(bdev_name)
    }

    fn close_pool(&self, name: &str, wipe: bool) -> Work<()> {
        self.pools.close(name, wipe)
    }

    fn pool(&self, name: &str) -> Option<Arc<dyn Pool>> {
        Some(Arc::new(Handle(self.pools.get(name)?)))
    }

    fn set_host_deadline(&self, deadline: Duration) {
        self.lock().host_deadline = deadline;
    }

    fn facts(&self) -> Facts {
        self.facts_now()
    }

    fn describe_transport(&self, transport: &mut v1::Transport) {
        self.fill_transport(transport);
    }

    fn describe_bdev(&self, bdev: &mut v1::Bdev) {
        self.fill_bdev(bdev);
    }

    fn describe_subsystem(&self, subsystem: &mut v1::Subsystem) {
        self.fill_subsystem(subsystem);
    }

    fn describe_namespace(&self, namespace: &mut v1::Namespace) {
        self.fill_namespace(namespace);
    }

    fn describe_listener(&self, listener: &mut v1::Listener) {
        self.fill_listener(listener);
    }

    fn describe_host(&self, host: &mut v1::Host) {
        self.fill_host(host);
    }

    fn bdevs(&self) -> Vec<String> {
        let bdevs = self.plane.registry().list();
        bdevs.iter().map(|bdev| bdev.name().to_owned()).collect()
    }

    fn bdev_stats(&self, name: &str, per_thread: bool, histograms: bool) -> Option<v1::BdevStats> {
        self.read_bdev_stats(name, per_thread, histograms)
    }

    fn reactors(&self) -> Vec<v1::Reactor> {
        self.read_reactors()
    }

    fn threads(&self) -> Vec<v1::Thread> {
        self.read_threads()
    }

    fn pollers(&self) -> Vec<v1::ThreadPollers> {
        self.read_pollers()
    }

    fn channels(&self) -> Vec<v1::ThreadChannels> {
        self.read_channels()
    }

    fn iobuf(&self) -> v1::Iobuf {
        self.read_iobuf()
    }

    fn controllers(&self) -> Vec<v1::Controller> {
        self.read_controllers()
    }

    fn qpairs(&self) -> Vec<v1::Qpair> {
        self.read_qpairs()
    }

    fn poll_groups(&self) -> Vec<v1::PollGroup> {
        self.read_poll_groups()
    }

    fn disconnect(&self, nqn: &str, cntlid: u32) -> bool {
        let controllers = self.subsystem(nqn).map(|subsystem| subsystem.controllers());
        let found = controllers
            .into_iter()
            .flatten()
            .find(|controller| u32::from(controller.cntlid().0) == cntlid);
        found
            .inspect(|controller| drop(controller.disconnect()))
            .is_some()
    }

    fn drain(&self, deadline: Duration) -> Settled {
        let (closed, plane) = (self.plane.target().shut_down(), Arc::clone(&self.plane));
        let (pools, drives) = (self.pools.clone(), Arc::clone(&self.drives));
        Box::pin(async move {
            let until = tokio::time::Instant::now() + deadline;
            if tokio::time::timeout_at(until, closed).await.is_err() {
                tracing::warn!(
                    "drain: I/O has not ended within {} ms",
                    deadline.as_millis()
                );
            }
            // A pool that has no time left to close is opened as after a power cut: nothing is lost.
            let until = until.max(tokio::time::Instant::now() + POOLS_CLOSE_MIN);
            if tokio::time::timeout_at(until, pools.close_all())
                .await
                .is_err()
            {
                tracing::warn!("drain: not every pool has closed cleanly in time");
            }
            let flushed = tokio::task::spawn_blocking(move || devices::flush_all(&plane)).await;
            if let Err(error) = flushed {
                tracing::error!(%error, "drain: flushing the block devices failed");
            }
            let until = until.max(tokio::time::Instant::now() + DRIVES_STOP_MIN);
            if tokio::time::timeout_at(until, drives.shut_down_all())
                .await
                .is_err()
            {
                tracing::warn!("drain: not every drive has shut down in time");
            }
        })
    }
}

/// A boxed future of a preparation that has ended.
fn prepared_now(result: Result<Prepared, RuntimeError>) -> Preparing {
    Box::pin(std::future::ready(result)) as Pin<Box<_>>
}
