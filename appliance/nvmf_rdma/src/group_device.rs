//! A device within one poll group: its completion queue, and what its connections share.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use dma::{ChannelOptions, IobufChannel, IobufPool};
use fabric_wire::rdma::KeyedSgl;
use nvmf::transport::ConnectionId;
use verbs::{CompChannel, Cq, RecvWr, Srq, VerbsError, WorkCompletion};

use crate::RdmaOptions;
use crate::device_events::Subscription;
use crate::memory::{PoolKeys, SharedDevice, SlotError, SlotMemory};
use crate::receive::{ReceiveMemory, ReceiveSet};
use crate::stats::{RdmaGroupStats, add};
use crate::wr_id::{Kind, WrId};

/// Memory for capsules grows by so many bytes.
const CAPSULE_CHUNK: usize = 512 << 10;
const DATA_CHUNK: usize = 2 << 20;

/// Why a poll group cannot use a device, or take one more connection on it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    #[error("the device cannot be used")]
    Verbs(#[from] VerbsError),
    #[error("receives cannot be made")]
    Slots(#[from] SlotError),
    #[error("buffers to receive into cannot be had")]
    Iobuf(#[from] dma::DmaError),
    #[error("events of the device cannot be watched")]
    Events(#[from] std::io::Error),
}

/// A shared receive queue.
pub(crate) struct SharedReceives {
    pub(crate) srq: Arc<dyn Srq>,
    pub(crate) set: ReceiveSet,
    /// Whose a receive is, by the number of the queue pair.
    pub(crate) owners: HashMap<u32, ConnectionId, BuildHasherDefault<QpNumHasher>>,
}

/// Hashes numbers of queue pairs. The device gives them, so nobody can choose some that collide.
#[derive(Default)]
pub(crate) struct QpNumHasher(u64);

impl Hasher for QpNumHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32((self.0 as u32).rotate_left(8) ^ u32::from(*byte));
        }
    }

    #[inline]
    fn write_u32(&mut self, number: u32) {
        // 2^64 by the golden ratio: neighbours come to lie far apart, in the upper bits too.
        self.0 = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

pub(crate) struct GroupDevice {
    pub(crate) shared: Arc<SharedDevice>,
    pub(crate) cq: Arc<dyn Cq>,
    comp_channel: Arc<dyn CompChannel>,
    pub(crate) events: Subscription,
    pub(crate) receives: Option<SharedReceives>,
    pub(crate) memory: ReceiveMemory,
    iobuf: IobufChannel,
    cq_capacity: u32,
    cq_used: u32,
    pub(crate) connections: usize,
    pub(crate) is_dead: bool,
    is_armed: bool,
    /// Of the command that is being begun.
    pub(crate) sgl: KeyedSgl,
    /// Empty between posts.
    requests: Vec<RecvWr>,
}

impl GroupDevice {
    pub(crate) fn new(
        shared: Arc<SharedDevice>,
        pool: &Arc<IobufPool>,
        options: &RdmaOptions,
    ) -> Result<Self, DeviceError> {
        let device = &shared.device;
        let comp_channel = device.create_comp_channel()?;
        let cq_capacity = options.num_cqe.min(device.info().caps.max_cqe);
        let cq = device.create_cq(cq_capacity, Some(&comp_channel), 0)?;
        let iobuf = pool.channel(
            "nvmf_rdma_receive",
            ChannelOptions {
                small_cache: 0,
                large_cache: 0,
                ..ChannelOptions::default()
            },
        )?;
        let data_size = options.in_capsule_data_size;
        let memory = ReceiveMemory {
            capsules: SlotMemory::new(&shared.pd, 64, CAPSULE_CHUNK),
            data: SlotMemory::new(&shared.pd, data_size, DATA_CHUNK),
            keys: PoolKeys::new(&shared, pool)?,
            data_size,
        };
        let events = shared.events.subscribe()?;
        let mut made = Self {
            cq,
            comp_channel,
            events,
            receives: None,
            memory,
            iobuf,
            cq_capacity,
            cq_used: 0,
            connections: 0,
            is_dead: false,
            is_armed: false,
            sgl: KeyedSgl::default(),
            requests: Vec::new(),
            shared,
        };
        made.make_shared_receives(options)?;
        Ok(made)
    }

    fn make_shared_receives(&mut self, options: &RdmaOptions) -> Result<(), DeviceError> {
        let caps = &self.shared.device.info().caps;
        if options.no_srq || caps.max_srq == 0 || caps.max_srq_wr < 32 {
            return Ok(());
        }
        let depth = options.max_srq_depth.min(caps.max_srq_wr);
        self.reserve_completions(depth)?;
        let srq = self.shared.pd.create_srq(depth)?;
        let set = self.receive_set(depth)?;
        self.receives = Some(SharedReceives {
            srq,
            set,
            owners: HashMap::default(),
        });
        self.post_shared_receives(None);
        Ok(())
    }

    /// Receives of a queue. As many have a buffer of the pool as leave it half of its free ones.
    pub(crate) fn receive_set(&mut self, count: u32) -> Result<ReceiveSet, SlotError> {
        let free = self.iobuf.pool().stats().small.free;
        ReceiveSet::new(count, &mut self.memory, &self.iobuf, free / 2)
    }

    /// Makes room for so many more completions.
    pub(crate) fn reserve_completions(&mut self, count: u32) -> Result<(), VerbsError> {
        let wanted = self.cq_used.saturating_add(count);
        if wanted > self.cq_capacity {
            let max = self.shared.device.info().caps.max_cqe;
            let larger = wanted.max(self.cq_capacity.saturating_mul(2)).min(max);
            if larger < wanted {
                return Err(VerbsError::Limit {
                    device: self.shared.device.info().name.clone(),
                    what: "completion queue size",
                    wanted,
                    max,
                });
            }
            self.cq.resize(larger)?;
            self.cq_capacity = larger;
        }
        self.cq_used = wanted;
        Ok(())
    }

    pub(crate) fn release_completions(&mut self, count: u32) {
        self.cq_used = self.cq_used.saturating_sub(count);
    }

    /// Posts the shared receives that wait for it.
    pub(crate) fn post_shared_receives(&mut self, stats: Option<&RdmaGroupStats>) {
        let Some(shared) = &mut self.receives else {
            return;
        };
        if !shared.set.has_to_post() {
            return;
        }
        let wr_id = |index| {
            WrId {
                kind: Kind::SharedReceive,
                connection: ConnectionId(0),
                index,
            }
            .pack()
        };
        shared
            .set
            .drain(&mut self.memory, wr_id, &mut self.requests);
        if let Some(stats) = stats {
            add(&stats.total_recv_wrs, self.requests.len() as u64);
            add(&stats.recv_doorbell_updates, 1);
        }
        if let Err(error) = shared.srq.post_recv(&self.requests) {
            // They fit, so the device has failed; its event tells so too.
            shared.set.posted -= self.requests.len() - error.posted;
            tracing::error!(%error, "receives were not taken by the device");
            self.is_dead = true;
        }
        self.requests.clear();
    }

    /// Takes completions. `None`: the queue has failed.
    pub(crate) fn poll(&mut self, completions: &mut [WorkCompletion]) -> Option<usize> {
        if self.is_armed && self.comp_channel.consume() > 0 {
            self.is_armed = false;
        }
        match self.cq.poll(completions) {
            Ok(count) => Some(count),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "a completion queue has failed");
                None
            }
        }
    }

    /// Has the next completion make the channel readable. `true` if it was not so before: then
    /// one may have come meanwhile.
    pub(crate) fn arm(&mut self) -> bool {
        if self.is_armed {
            return false;
        }
        self.is_armed = self.cq.arm().is_ok();
        true
    }

    pub(crate) fn wake_fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.comp_channel.fd(), self.events.wake_fd()]
    }
}
