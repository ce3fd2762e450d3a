//! Registered memory: the pool's regions once per device, and small slots beside them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dma::{BackingPreference, IoBuf, IobufPool, Region, RegionOptions};
use verbs::{Access, AsyncEventKind, Device, Mr, Pd, Provider, Sge, VerbsError};

use crate::device_events::DeviceEvents;

/// The devices of a transport, by name.
#[derive(Debug)]
pub(crate) struct Devices {
    pub(crate) provider: Arc<dyn Provider>,
    known: Mutex<HashMap<String, Arc<SharedDevice>>>,
    /// How many are known, for who asks without the lock.
    count: AtomicUsize,
}

/// What the poll groups share of a device.
#[derive(Debug)]
pub(crate) struct SharedDevice {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) pd: Arc<dyn Pd>,
    pub(crate) events: Arc<DeviceEvents>,
    /// The registrations of the pool's regions, by region.
    pool: Mutex<Vec<Box<dyn Mr>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Devices {
    pub(crate) fn new(provider: Arc<dyn Provider>) -> Arc<Self> {
        Arc::new(Self {
            provider,
            known: Mutex::default(),
            count: AtomicUsize::new(0),
        })
    }

    /// The shared part of a device; made, with all of the pool registered, when it is first asked for.
    pub(crate) fn get(
        &self,
        device: &Arc<dyn Device>,
        iobuf: &IobufPool,
    ) -> Result<Arc<SharedDevice>, VerbsError> {
        let mut known = lock(&self.known);
        if let Some(shared) = known.get(&device.info().name) {
            return Ok(Arc::clone(shared));
        }
        let shared = Arc::new(SharedDevice {
            device: Arc::clone(device),
            pd: device.alloc_pd()?,
            events: DeviceEvents::new(Arc::clone(device)),
            pool: Mutex::default(),
        });
        shared.pool_keys(iobuf)?;
        known.insert(device.info().name.clone(), Arc::clone(&shared));
        self.count.store(known.len(), Ordering::Relaxed);
        Ok(shared)
    }

    /// Whether there is a device that may be removed.
    pub(crate) fn is_any_known(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Lets go of devices that were removed, and has the poll groups do so: not every driver tells who
    /// has no connection there, and the removal may wait for them.
    pub(crate) fn look_for_removed(&self) {
        let mut gone = Vec::new();
        self.retain(|shared| {
            let is_removed = shared.device.is_removed();
            if is_removed {
                gone.push(Arc::clone(shared));
            }
            !is_removed
        });
        if gone.is_empty() {
            return;
        }
        for shared in gone {
            let device = &shared.device.info().name;
            tracing::info!(device, "a device was removed");
            shared.events.tell(AsyncEventKind::DeviceFatal);
        }
        // The provider lets go of them too. What it finds is not asked for.
        let _ = self.provider.devices();
    }

    /// A device is gone: one of the same name is another one.
    pub(crate) fn forget(&self, gone: &Arc<SharedDevice>) {
        // Another group may have met the other one already.
        self.retain(|shared| !Arc::ptr_eq(shared, gone));
    }

    fn retain(&self, mut stays: impl FnMut(&Arc<SharedDevice>) -> bool) {
        let mut known = lock(&self.known);
        known.retain(|_, shared| stays(shared));
        self.count.store(known.len(), Ordering::Relaxed);
    }
}

impl SharedDevice {
    /// The local keys of the pool's regions; regions that are new are registered.
    pub(crate) fn pool_keys(&self, iobuf: &IobufPool) -> Result<Vec<u32>, VerbsError> {
        let mut pool = lock(&self.pool);
        for region in iobuf.regions().iter().skip(pool.len()) {
            pool.push(self.pd.reg_mr(region, Access::LOCAL)?);
        }
        Ok(pool.iter().map(|mr| mr.lkey()).collect())
    }
}

/// The local keys of the pool as one poll group knows them.
#[derive(Debug)]
pub(crate) struct PoolKeys {
    shared: Arc<SharedDevice>,
    iobuf: Arc<IobufPool>,
    keys: Vec<u32>,
}

impl PoolKeys {
    pub(crate) fn new(
        shared: &Arc<SharedDevice>,
        iobuf: &Arc<IobufPool>,
    ) -> Result<Self, VerbsError> {
        Ok(Self {
            shared: Arc::clone(shared),
            iobuf: Arc::clone(iobuf),
            keys: shared.pool_keys(iobuf)?,
        })
    }

    /// A part of a buffer; `None` if its region cannot be registered.
    #[inline]
    pub(crate) fn sge(&mut self, buf: &IoBuf, offset: u32, len: u32) -> Option<Sge> {
        let region = buf.region_index();
        if region >= self.keys.len() {
            self.refresh();
        }
        let lkey = *self.keys.get(region)?;
        let addr = buf.addr() as u64 + u64::from(offset);
        Some(Sge { addr, len, lkey })
    }

    #[cold]
    fn refresh(&mut self) {
        match self.shared.pool_keys(&self.iobuf) {
            Ok(keys) => self.keys = keys,
            Err(error) => {
                let device = &self.shared.device.info().name;
                let error = &error as &dyn std::error::Error;
                tracing::error!(
                    error,
                    device,
                    "cannot register memory that the pool grew by"
                );
            }
        }
    }
}

/// A piece of memory of [`SlotMemory`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemorySlot {
    chunk: u32,
    offset: u32,
}

/// Registered memory in pieces of one length, which grows by chunks and is given back as a whole.
#[derive(Debug)]
pub(crate) struct SlotMemory {
    pd: Arc<dyn Pd>,
    slot_len: u32,
    chunk_len: usize,
    chunks: Vec<(Box<dyn Mr>, Arc<Region>)>,
    free: Vec<MemorySlot>,
}

impl SlotMemory {
    pub(crate) fn new(pd: &Arc<dyn Pd>, slot_len: u32, chunk_len: usize) -> Self {
        Self {
            pd: Arc::clone(pd),
            slot_len: slot_len.next_multiple_of(64).max(64),
            chunk_len,
            chunks: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(crate) fn take(&mut self) -> Result<MemorySlot, SlotError> {
        if self.free.is_empty() {
            self.grow()?;
        }
        self.free.pop().ok_or(SlotError::Empty)
    }

    pub(crate) fn give_back(&mut self, slot: MemorySlot) {
        self.free.push(slot);
    }

    fn grow(&mut self) -> Result<(), SlotError> {
        let region = Region::allocate(&RegionOptions {
            len: self.chunk_len,
            backing: BackingPreference::Locked4K,
            ..RegionOptions::default()
        })?;
        let mr = self.pd.reg_mr(&region, Access::LOCAL)?;
        let chunk = self.chunks.len() as u32;
        let count = region.len() as u32 / self.slot_len;
        // The first is handed out first.
        self.free.extend((0..count).rev().map(|index| MemorySlot {
            chunk,
            offset: index * self.slot_len,
        }));
        self.chunks.push((mr, region));
        Ok(())
    }

    pub(crate) fn sge(&self, slot: MemorySlot, len: u32) -> Sge {
        debug_assert!(len <= self.slot_len);
        let (mr, region) = &self.chunks[slot.chunk as usize];
        Sge {
            addr: region.addr() as u64 + u64::from(slot.offset),
            len,
            lkey: mr.lkey(),
        }
    }

    /// Copies bytes out, from `at` on.
    #[inline]
    pub(crate) fn read(&self, slot: MemorySlot, at: usize, into: &mut [u8]) {
        debug_assert!(at + into.len() <= self.slot_len as usize);
        let (_, region) = &self.chunks[slot.chunk as usize];
        region.read_at(slot.offset as usize + at, into);
    }

    /// Copies bytes in.
    #[inline]
    pub(crate) fn write(&self, slot: MemorySlot, from: &[u8]) {
        debug_assert!(from.len() <= self.slot_len as usize);
        let (_, region) = &self.chunks[slot.chunk as usize];
        region.write_at(slot.offset as usize, from);
    }
}

/// Why there is no more memory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SlotError {
    #[error("no memory for capsules")]
    Memory(#[from] dma::DmaError),
    #[error("memory for capsules cannot be registered")]
    Register(#[from] VerbsError),
    #[error("a chunk of memory is shorter than a slot")]
    Empty,
}
