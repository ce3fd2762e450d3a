//! Where the pool's own data lie: the superblock's two copies and the extents of the metadata.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use metastore::pool::{METADATA_BLOCK_BYTES, MetadataDevice};

use super::disk::Disk;
use crate::LvolError;
use crate::format::{EXTENTS_MAX, Extent, SUPERBLOCK_OFFSETS, Superblock};

/// The metadata extents as one device, and the superblock that names them.
///
/// It grows into a reserve of extents that the worker refills between transactions: redb asks for
/// room in the middle of one, when nothing can be looked up.
#[derive(Debug)]
pub(crate) struct Metadata {
    disk: Rc<Disk>,
    superblock: RefCell<Superblock>,
    /// The copy that the next write of the superblock replaces.
    next_copy: Cell<usize>,
    reserve: RefCell<Vec<Extent>>,
    /// Data that the next transaction names may not be on the medium yet.
    data_unflushed: Cell<bool>,
}

impl Metadata {
    /// `copy` is the one that `superblock` was read from.
    pub(crate) fn new(disk: Rc<Disk>, superblock: Superblock, copy: usize) -> Self {
        Self {
            disk,
            superblock: RefCell::new(superblock),
            next_copy: Cell::new(1 - copy),
            reserve: RefCell::default(),
            data_unflushed: Cell::new(false),
        }
    }

    pub(crate) fn superblock(&self) -> Superblock {
        self.superblock.borrow().clone()
    }

    /// Writes a changed superblock over the older copy, durably.
    pub(crate) fn store(&self, change: impl FnOnce(&mut Superblock)) -> Result<(), LvolError> {
        let mut next = self.superblock();
        change(&mut next);
        next.sequence += 1;
        let copy = self.next_copy.get();
        // What it names must be there before it is.
        self.disk.flush()?;
        self.disk
            .write(SUPERBLOCK_OFFSETS[copy], &next.encode()[..])?;
        self.disk.flush()?;
        self.next_copy.set(1 - copy);
        *self.superblock.borrow_mut() = next;
        Ok(())
    }

    /// Clusters that the metadata has.
    pub(crate) fn clusters(&self) -> u64 {
        let superblock = self.superblock.borrow();
        superblock
            .metadata
            .iter()
            .map(|extent| extent.clusters)
            .sum()
    }

    /// Clusters that the metadata may grow by.
    pub(crate) fn reserved(&self) -> u64 {
        self.reserve
            .borrow()
            .iter()
            .map(|extent| extent.clusters)
            .sum()
    }

    /// The device is to be flushed before the next transaction becomes visible.
    pub(crate) fn flush_before_commit(&self) {
        self.data_unflushed.set(true);
    }

    /// Adds to the reserve.
    pub(crate) fn add_reserve(&self, extents: Vec<Extent>) {
        self.reserve.borrow_mut().extend(extents);
    }

    /// Takes the reserve away.
    pub(crate) fn take_reserve(&self) -> Vec<Extent> {
        std::mem::take(&mut self.reserve.borrow_mut())
    }

    fn cluster_size(&self) -> u64 {
        self.superblock.borrow().granularity.cluster_size()
    }

    /// Calls `part` with the device's bytes that `len` bytes at `offset` lie on.
    fn for_each_part(
        &self,
        offset: u64,
        len: usize,
        mut part: impl FnMut(u64, std::ops::Range<usize>) -> Result<(), LvolError>,
    ) -> io::Result<()> {
        let cluster_size = self.cluster_size();
        let extents = self.superblock.borrow().metadata.clone();
        let (mut skip, mut done) = (offset, 0);
        for extent in extents {
            let bytes = extent.clusters * cluster_size;
            if skip >= bytes {
                skip -= bytes;
                continue;
            }
            let piece = (bytes - skip).min((len - done) as u64) as usize;
            part(extent.start * cluster_size + skip, done..done + piece)
                .map_err(io::Error::other)?;
            done += piece;
            skip = 0;
            if done == len {
                return Ok(());
            }
        }
        let text = format!("{len} bytes at {offset} are beyond the metadata's extents");
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    }
}

impl MetadataDevice for Metadata {
    fn len(&self) -> u64 {
        self.clusters() * self.cluster_size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.for_each_part(offset, out.len(), |at, part| {
            self.disk.read(at, &mut out[part])
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        // The database's first block is what makes a transaction visible. Its pages were flushed before, and
        // the data with them; if one day they are not, the data still are.
        if offset < METADATA_BLOCK_BYTES && self.data_unflushed.get() {
            MetadataDevice::flush(self)?;
        }
        self.for_each_part(offset, data.len(), |at, part| {
            self.disk.write(at, &data[part])
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.flush().map_err(io::Error::other)?;
        self.data_unflushed.set(false);
        Ok(())
    }

    fn grow(&self, len: u64) -> io::Result<()> {
        let needed = len.div_ceil(self.cluster_size());
        let have = self.clusters();
        if needed <= have {
            return Ok(());
        }
        if needed - have > self.reserved() {
            let text = format!(
                "{} clusters more are needed and {} are kept for it",
                needed - have,
                self.reserved()
            );
            return Err(io::Error::new(io::ErrorKind::StorageFull, text));
        }
        let before = self.reserve.borrow().clone();
        let mut metadata = self.superblock.borrow().metadata.clone();
        take_from(&mut self.reserve.borrow_mut(), needed - have, &mut metadata);
        let stored = if metadata.len() > EXTENTS_MAX {
            Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("the metadata would be in more than {EXTENTS_MAX} pieces"),
            ))
        } else {
            self.store(|superblock| superblock.metadata = metadata)
                .map_err(io::Error::other)
        };
        if stored.is_err() {
            *self.reserve.borrow_mut() = before;
        }
        stored
    }
}

/// Moves `wanted` clusters from the front of the reserve to the end of the extents.
fn take_from(reserve: &mut Vec<Extent>, wanted: u64, extents: &mut Vec<Extent>) {
    let mut left = wanted;
    while left > 0
        && let Some(first) = reserve.first_mut()
    {
        let clusters = first.clusters.min(left);
        let start = first.start;
        match extents.last_mut() {
            Some(last) if last.start + last.clusters == start => last.clusters += clusters,
            _ => extents.push(Extent { start, clusters }),
        }
        first.start += clusters;
        first.clusters -= clusters;
        if first.clusters == 0 {
            reserve.remove(0);
        }
        left -= clusters;
    }
}
