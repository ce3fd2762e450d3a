//! RDMA devices and the network between them, in this process, for tests of transports.
//!
//! A [`Fabric`] holds nodes; a node is a [`verbs::Provider`] with devices that have addresses. Work
//! requests are carried out as a network card would: keys, ranges, rights and protection domains
//! are checked, data is copied from region to region, a message that finds no receive is tried
//! again, a failed queue pair flushes what it has. It is not a network: nothing leaves the process.
//!
//! # Order
//! Everything that may happen in more than one order happens in one that the seed chooses, one step
//! at a time: the receive of a message before or after the completion of its send, the data of a
//! read before or after the writes that were posted behind it, flushed receives before flushed sends, a message
//! before the word that the connection is established, the queue pairs of a device in any order.
//! The same seed and the same calls give the same order. Polling a completion queue or a channel
//! makes some steps; [`Fabric::step`] makes one, [`Fabric::settle`] all that there are.
//!
//! # Faults
//! [`Fabric::fail_qp`], [`Fabric::set_port`], [`Fabric::remove_device`],
//! [`Fabric::restore_device`], [`Fabric::block`].
//!
//! # Threading
//! One lock over all of a fabric. Steps in a seed's order need one thread.

mod cm;
mod engine;
mod memory;
mod objects;
mod random;
#[cfg(test)]
mod tests;
mod world;

use std::cell::Cell;
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use verbs::{AsyncEventKind, CmChannel, Device, DeviceCaps, DeviceInfo, Provider, VerbsError};

use world::World;

/// What a device of a fabric can do, unless it is told otherwise.
pub const CAPS: DeviceCaps = DeviceCaps {
    max_qp: 1 << 16,
    max_qp_wr: 16_384,
    max_sge: 2,
    max_cqe: 1 << 20,
    max_mr_size: u64::MAX,
    max_qp_rd_atom: 16,
    max_qp_init_rd_atom: 16,
    max_srq: 64,
    max_srq_wr: 32_768,
    has_send_with_inv: true,
    has_mw_type_2: true,
    comp_vectors: 1,
};

/// What a fabric has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FabricStats {
    /// Messages sent.
    pub sends: u64,
    /// Remote writes.
    pub writes: u64,
    /// Remote reads.
    pub reads: u64,
    /// Keys invalidated by messages.
    pub remote_invalidations: u64,
    /// Times that a message found no receive.
    pub receiver_not_ready: u64,
    /// Completions that a full queue lost.
    pub overruns: u64,
}

#[derive(Debug)]
struct Shared(Mutex<World>);

impl Shared {
    fn lock(&self) -> WorldGuard<'_> {
        let world = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        IS_INSIDE.set(true);
        let since = world.is_timed.then(Instant::now);
        WorldGuard { world, since }
    }
}

thread_local! {
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is in a double at this moment: an allocator that counts for a transport
/// leaves out what is allocated there.
#[must_use]
pub fn is_inside() -> bool {
    // Fails only while the thread ends.
    IS_INSIDE.try_with(Cell::get).unwrap_or(false)
}

/// All of a fabric, with the time that is spent in it.
struct WorldGuard<'a> {
    world: MutexGuard<'a, World>,
    since: Option<Instant>,
}

impl Deref for WorldGuard<'_> {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl DerefMut for WorldGuard<'_> {
    fn deref_mut(&mut self) -> &mut World {
        &mut self.world
    }
}

impl Drop for WorldGuard<'_> {
    fn drop(&mut self) {
        IS_INSIDE.set(false);
        if let Some(since) = self.since {
            self.world.time_inside += since.elapsed();
            self.world.calls += 1;
        }
    }
}

/// Nodes and the network between them.
#[derive(Clone, Debug)]
pub struct Fabric(Arc<Shared>);

impl Fabric {
    /// An empty one, whose order of events follows from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Shared(Mutex::new(World::new(seed)))))
    }

    /// One in which everything happens at once and in order: for benchmarks.
    #[must_use]
    pub fn eager() -> Self {
        let fabric = Self::new(0);
        fabric.0.lock().is_eager = true;
        fabric
    }

    /// Counts from now on the time that is spent in the double, for benchmarks of what calls it.
    pub fn time(&self) {
        self.0.lock().is_timed = true;
    }

    /// The time that was spent in the double since [`Fabric::time`].
    #[must_use]
    pub fn time_inside(&self) -> Duration {
        self.0.lock().time_inside
    }

    /// Calls of the double since [`Fabric::time`]. Each costs its caller a little that
    /// [`Fabric::time_inside`] does not have.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.0.lock().calls
    }

    /// Adds a node without devices.
    #[must_use]
    pub fn node(&self) -> Arc<EmuProvider> {
        let node = self.0.lock().add_node();
        Arc::new(EmuProvider {
            shared: Arc::clone(&self.0),
            node,
        })
    }

    /// One step of what can happen. `false` if nothing can.
    pub fn step(&self) -> bool {
        self.0.lock().step()
    }

    /// Makes steps until nothing can happen any more.
    pub fn settle(&self) {
        while self.step() {}
    }

    /// Fails a queue pair, as a broken cable or a device's error would.
    pub fn fail_qp(&self, qp_num: u32) {
        let mut world = self.0.lock();
        world.fail_qp(qp_num);
        world.async_event_of_qp(qp_num, AsyncEventKind::QpFatal { qp_num });
    }

    /// Takes a device's port down or up. While one is down, what is sent from or to it ends with
    /// retries exceeded.
    pub fn set_port(&self, device: &str, is_up: bool) {
        self.0.lock().set_port(device, is_up);
    }

    /// Removes a device, as if it were pulled out.
    pub fn remove_device(&self, device: &str) {
        self.0.lock().remove_device(device, true);
    }

    /// Removes a device as soft-RoCE does: there is no event of the device, only of identifiers
    /// that have an address of it.
    pub fn remove_device_silently(&self, device: &str) {
        self.0.lock().remove_device(device, false);
    }

    /// Whether there are domains or completion queues of devices that were removed.
    #[must_use]
    pub fn holds_removed_devices(&self) -> bool {
        self.0.lock().holds_removed_devices()
    }

    /// Brings a device back that was removed: as a new one of the same name and address.
    pub fn restore_device(&self, device: &str) {
        self.0.lock().restore_device(device);
    }

    /// Holds back what is sent from a device, and its completions of sends, until it is let go.
    /// What others send to it arrives.
    pub fn block(&self, device: &str, is_blocked: bool) {
        self.0.lock().block(device, is_blocked);
    }

    /// Queue pairs that exist.
    #[must_use]
    pub fn qp_nums(&self) -> Vec<u32> {
        self.0.lock().qps.keys().copied().collect()
    }

    /// Objects that exist: queue pairs, completion queues, shared receive queues, registrations,
    /// windows, domains, identifiers, channels.
    #[must_use]
    pub fn object_count(&self) -> usize {
        self.0.lock().object_count()
    }

    /// What has been counted.
    #[must_use]
    pub fn stats(&self) -> FabricStats {
        self.0.lock().stats
    }
}

/// The verbs of a node.
#[derive(Debug)]
pub struct EmuProvider {
    shared: Arc<Shared>,
    node: usize,
}

impl EmuProvider {
    /// Adds a device with an address; the name is unique in the fabric.
    pub fn add_device(&self, name: &str, address: IpAddr) {
        self.add_device_with(name, address, CAPS);
    }

    /// As [`EmuProvider::add_device`], with abilities of its own.
    pub fn add_device_with(&self, name: &str, address: IpAddr, caps: DeviceCaps) {
        let info = DeviceInfo {
            name: name.to_owned(),
            node_guid: 1,
            ports: 1,
            caps,
            numa_node: None,
        };
        self.shared.lock().add_device(self.node, info, address);
    }
}

impl Provider for EmuProvider {
    fn devices(&self) -> Result<Vec<Arc<dyn Device>>, VerbsError> {
        let world = self.shared.lock();
        let indices = world.devices_of(self.node);
        Ok(indices
            .into_iter()
            .map(|index| objects::device(&self.shared, &world, index))
            .collect())
    }

    fn cm_channel(&self) -> Result<Box<dyn CmChannel>, VerbsError> {
        Ok(Box::new(cm::EmuCmChannel::open(&self.shared, self.node)?))
    }
}
