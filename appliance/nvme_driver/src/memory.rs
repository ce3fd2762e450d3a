//! The memory of a controller's queues, in one region.

use std::sync::Arc;

use dma::{Region, RegionOptions};

use crate::admin::{ADMIN_DATA_MAX, ADMIN_SLOTS};
use crate::device::Device;
use crate::error::NvmeError;
use crate::options::ControllerOptions;

/// Entries of the admin queues.
pub(crate) const ADMIN_ENTRIES: u16 = 64;
/// Bytes of each command's own area: its PRP list or its range list.
pub(crate) const SLOT_BYTES: usize = 512;
const PAGE: usize = 4096;

/// What lies where in the region. Offsets are in bytes; queues begin at pages.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) region: Arc<Region>,
    entries: u16,
    io_queues: u16,
    io_start: usize,
    queue_bytes: usize,
}

impl Layout {
    /// Takes the memory for queues of `entries` entries and lets the device reach it.
    pub(crate) fn allocate(
        device: &Device,
        options: &ControllerOptions,
        entries: u16,
    ) -> Result<Self, NvmeError> {
        let io_start = Self::admin_data(ADMIN_SLOTS);
        let count = usize::from(entries);
        let page = |bytes: usize| bytes.next_multiple_of(PAGE);
        let queue_bytes = page(count * 64) + page(count * 16) + page(count * SLOT_BYTES);
        let len_bytes = io_start + queue_bytes * usize::from(options.io_queues);
        let allocate = |numa_node: Option<u32>| {
            Region::allocate(&RegionOptions {
                len: len_bytes,
                numa_node,
                prefault: true,
                ..RegionOptions::default()
            })
        };
        let region = allocate(options.numa_node);
        let region = match options.numa_node {
            // The node has no memory, or none that this process may use: better far than not at all.
            Some(_) => region.or_else(|_| allocate(None)),
            None => region,
        };
        let region = region.map_err(|source| NvmeError::Memory {
            address: device.function.address().to_owned(),
            len_bytes,
            source,
        })?;
        device.mapper.map(&region)?;
        Ok(Self {
            region,
            entries,
            io_queues: options.io_queues,
            io_start,
            queue_bytes,
        })
    }

    pub(crate) fn entries(&self) -> u16 {
        self.entries
    }

    pub(crate) fn io_queues(&self) -> u16 {
        self.io_queues
    }

    /// Address that the device uses for an offset: IOVA = VA.
    pub(crate) fn address(&self, offset: usize) -> u64 {
        (self.region.addr() + offset) as u64
    }

    /// Offset of a submission queue. Queue 0 is the admin queue.
    pub(crate) fn sq(&self, qid: u16) -> usize {
        match qid {
            0 => 0,
            _ => self.io_start + usize::from(qid - 1) * self.queue_bytes,
        }
    }

    /// Offset of a completion queue.
    pub(crate) fn cq(&self, qid: u16) -> usize {
        match qid {
            0 => PAGE,
            _ => self.sq(qid) + (usize::from(self.entries) * 64).next_multiple_of(PAGE),
        }
    }

    /// Offset of the area of a command of an I/O queue.
    pub(crate) fn slot(&self, qid: u16, slot: u16) -> usize {
        let areas = self.cq(qid) + (usize::from(self.entries) * 16).next_multiple_of(PAGE);
        areas + usize::from(slot) * SLOT_BYTES
    }

    /// Offset of the shadow doorbells.
    pub(crate) const fn shadow(&self) -> usize {
        2 * PAGE
    }

    /// Offset of the event indexes.
    pub(crate) const fn event_index(&self) -> usize {
        3 * PAGE
    }

    /// Offset of the data of an admin command.
    pub(crate) const fn admin_data(slot: usize) -> usize {
        4 * PAGE + slot * ADMIN_DATA_MAX
    }
}
