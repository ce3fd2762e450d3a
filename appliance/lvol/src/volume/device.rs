//! [`Volume`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use block::{BlockDevice, BlockError, Channel, ChannelContext, Geometry, OpKind};

use super::channel::VolumeChannel;
use crate::pool::{Shared, VolumeShared};

/// A volume or a snapshot as a block device.
///
/// It has a volatile write cache whatever the device below says: a FLUSH commits where first writes went, so
/// that they do not rest on the log alone, and the log is of no use under a device with such a cache.
pub struct Volume {
    shared: Arc<Shared>,
    volume: Arc<VolumeShared>,
}

impl Volume {
    pub(crate) fn new(shared: Arc<Shared>, volume: Arc<VolumeShared>) -> Self {
        Self { shared, volume }
    }
}

impl fmt::Debug for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volume")
            .field("layer", &self.volume.layer())
            .finish_non_exhaustive()
    }
}

impl BlockDevice for Volume {
    fn kind(&self) -> &'static str {
        "lvol"
    }

    fn geometry(&self) -> Geometry {
        let base = self.shared.base.geometry();
        let blocks = |bytes: u64| (bytes / u64::from(self.shared.block_size)) as u32;
        let cluster = blocks(self.shared.granularity.cluster_size());
        let granule = blocks(self.shared.granularity.granule_size());
        // An I/O lies in one cluster, and the device below need not split it again.
        let boundary = match base.boundary_blocks {
            0 => cluster,
            boundary => boundary.min(cluster),
        };
        Geometry {
            optimal_io_blocks: cluster,
            write_granularity_blocks: granule,
            unmap_granularity_blocks: granule,
            atomic_write_blocks: base.atomic_write_blocks,
            max_transfer_blocks: base.max_transfer_blocks,
            boundary_blocks: boundary,
            alignment_bytes: base.alignment_bytes,
            volatile_write_cache: true,
            supports: Geometry::new(512, 1)
                .supports
                .without(OpKind::CompareAndWrite),
            // A volume's own switch may be turned back: it is the owner's to show.
            read_only: self.volume.is_snapshot,
            dma_reach: base.dma_reach,
            ..Geometry::new(
                self.shared.block_size,
                self.volume.block_count.load(Ordering::SeqCst),
            )
        }
    }

    fn open_channel(&self, ctx: &ChannelContext) -> Result<Box<dyn Channel>, BlockError> {
        let channel = VolumeChannel::open(&self.shared, &self.volume, ctx)?;
        Ok(Box::new(channel))
    }

    /// A volume is resized through its pool; this takes only the size that it has by then.
    fn resize(&self, block_count: u64) -> Result<(), BlockError> {
        if block_count == self.volume.block_count.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(BlockError::ResizeUnsupported { kind: self.kind() })
    }

    /// Clusters of the volume and of what it lies on: what it shows is at most that.
    fn allocated_blocks(&self) -> Option<u64> {
        let clusters = self.volume.allocated.load(Ordering::Relaxed);
        let bytes = clusters * self.shared.granularity.cluster_size();
        let count = self.volume.block_count.load(Ordering::SeqCst);
        Some((bytes / u64::from(self.shared.block_size)).min(count))
    }

    fn is_thin(&self) -> bool {
        !self.volume.thick.load(Ordering::Relaxed)
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let cluster_size = self.shared.granularity.cluster_size();
        vec![
            ("base", self.shared.base.name().to_owned()),
            ("cluster_size", cluster_size.to_string()),
        ]
    }
}
