//! Registered memory of one queue.

use std::sync::Arc;

use dma::{BackingPreference, Region, RegionOptions};
use verbs::{Access, Mr, Pd, Sge, VerbsError};

/// Bytes of the buffers of each class.
const CLASSES: [u32; 3] = [8 << 10, 128 << 10, 1 << 20];
/// Bytes that a class grows by.
const CHUNK: usize = 2 << 20;

/// A buffer that data is staged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Staging {
    class: u8,
    chunk: u16,
    offset: u32,
}

struct Chunk {
    // The registration goes before the memory.
    mr: Box<dyn Mr>,
    region: Arc<Region>,
}

impl Chunk {
    fn new(pd: &Arc<dyn Pd>, len: usize, access: Access) -> Result<Self, MemoryError> {
        let region = Region::allocate(&RegionOptions {
            len,
            backing: BackingPreference::Locked4K,
            ..RegionOptions::default()
        })?;
        let mr = pd.reg_mr(&region, access)?;
        Ok(Self { mr, region })
    }

    fn sge(&self, offset: u32, len: u32) -> Sge {
        Sge {
            addr: self.region.addr() as u64 + u64::from(offset),
            len,
            lkey: self.mr.lkey(),
        }
    }
}

/// Why there is no memory.
#[derive(Debug, thiserror::Error)]
pub(super) enum MemoryError {
    #[error("no memory for a queue over rdma")]
    Memory(#[from] dma::DmaError),
    #[error("memory of a queue cannot be registered")]
    Register(#[from] VerbsError),
}

#[derive(Default)]
struct Class {
    chunks: Vec<Chunk>,
    free: Vec<Staging>,
}

/// The memory of a queue: entries to send, responses to receive, and buffers.
pub(super) struct QueueMemory {
    pd: Arc<dyn Pd>,
    access: Access,
    capsules: Chunk,
    slots: u32,
    classes: [Class; CLASSES.len()],
}

/// Bytes between capsules: an entry, or a response.
const CAPSULE: u32 = 64;

impl QueueMemory {
    /// For `slots` commands and `responses` responses.
    pub(super) fn new(
        pd: &Arc<dyn Pd>,
        slots: u16,
        responses: u16,
        has_windows: bool,
    ) -> Result<Self, MemoryError> {
        let slots = u32::from(slots);
        let len = (slots + u32::from(responses)) * CAPSULE;
        let access = Access {
            // A window needs these rights of what it is bound to.
            mw_bind: has_windows,
            ..Access::REMOTE
        };
        Ok(Self {
            pd: Arc::clone(pd),
            access,
            capsules: Chunk::new(pd, len as usize, Access::LOCAL)?,
            slots,
            classes: Default::default(),
        })
    }

    /// Whether there is a buffer that long.
    pub(super) fn can_stage(len: u32) -> bool {
        CLASSES.last().is_some_and(|longest| len <= *longest)
    }

    /// A buffer of at least `len` bytes.
    pub(super) fn take(&mut self, len: u32) -> Result<Option<Staging>, MemoryError> {
        let Some(index) = CLASSES.iter().position(|size| len <= *size) else {
            return Ok(None);
        };
        let class = &mut self.classes[index];
        if class.free.is_empty() {
            let chunk = class.chunks.len() as u16;
            class.chunks.push(Chunk::new(&self.pd, CHUNK, self.access)?);
            let count = CHUNK as u32 / CLASSES[index];
            class.free.extend((0..count).rev().map(|at| Staging {
                class: index as u8,
                chunk,
                offset: at * CLASSES[index],
            }));
        }
        Ok(class.free.pop())
    }

    pub(super) fn give_back(&mut self, staging: Staging) {
        self.classes[usize::from(staging.class)].free.push(staging);
    }

    fn chunk(&self, staging: Staging) -> &Chunk {
        &self.classes[usize::from(staging.class)].chunks[usize::from(staging.chunk)]
    }

    /// The buffer for work requests.
    pub(super) fn sge(&self, staging: Staging, len: u32) -> Sge {
        self.chunk(staging).sge(staging.offset, len)
    }

    /// The registration that the buffer lies in.
    pub(super) fn mr(&self, staging: Staging) -> &dyn Mr {
        &*self.chunk(staging).mr
    }

    /// Copies data in.
    pub(super) fn write(&self, staging: Staging, at: usize, from: &[u8]) {
        let chunk = self.chunk(staging);
        chunk.region.write_at(staging.offset as usize + at, from);
    }

    /// Copies data out.
    pub(super) fn read(&self, staging: Staging, into: &mut [u8]) {
        let chunk = self.chunk(staging);
        chunk.region.read_at(staging.offset as usize, into);
    }

    /// The place of a slot's entry.
    pub(super) fn write_entry(&self, slot: u16, bytes: &[u8]) -> Sge {
        let offset = u32::from(slot) * CAPSULE;
        self.capsules.region.write_at(offset as usize, bytes);
        self.capsules.sge(offset, bytes.len() as u32)
    }

    /// The place of a response.
    pub(super) fn response(&self, index: u32, len: u32) -> Sge {
        self.capsules.sge((self.slots + index) * CAPSULE, len)
    }

    pub(super) fn read_response(&self, index: u32, into: &mut [u8]) {
        let offset = (self.slots + index) * CAPSULE;
        self.capsules.region.read_at(offset as usize, into);
    }
}
