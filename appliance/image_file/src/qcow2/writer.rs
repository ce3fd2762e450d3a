//! Writing, once and in rising order: header, L1 table, then L2 tables and data as they come, then the
//! refcounts. The header is written last: before that the file is no image.

use super::{COPIED, MAGIC};
use crate::file::Sink;
use crate::{Format, ImageError};

/// 64 KiB, as QEMU makes them.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const L2_ENTRIES: u64 = CLUSTER / 8;
/// Bytes of the disk that an L2 table maps.
const L2_REACH: u64 = L2_ENTRIES * CLUSTER;
/// Refcounts have 2^4 bits.
const REFCOUNT_ORDER: u32 = 4;
const REFCOUNTS_PER_BLOCK: u64 = CLUSTER / 2;
/// Bytes of the L1 table that QEMU reads at most.
const L1_BYTES_MAX: u64 = 32 << 20;
const HEADER_LENGTH: u32 = 104;

/// An image on its way.
#[derive(Debug)]
pub(crate) struct Qcow2Writer<S> {
    sink: S,
    size: u64,
    l1: Vec<u64>,
    /// Index in L1, offset in the file, entries.
    l2: Option<(u64, u64, Vec<u64>)>,
    /// The next free cluster of the file.
    next: u64,
}

impl<S: Sink> Qcow2Writer<S> {
    /// An image of `size` bytes.
    pub(crate) fn new(sink: S, size: u64) -> Result<Self, ImageError> {
        let entries = size.div_ceil(L2_REACH);
        if entries * 8 > L1_BYTES_MAX {
            return Err(ImageError::Size {
                len: size,
                format: Format::Qcow2,
            });
        }
        let l1_clusters = (entries * 8).div_ceil(CLUSTER).max(1);
        Ok(Self {
            sink,
            size,
            l1: vec![0; entries as usize],
            l2: None,
            next: 1 + l1_clusters,
        })
    }

    pub(crate) fn cluster_size(&self) -> u64 {
        CLUSTER
    }

    /// Writes whole clusters, but for the last of the disk. The caller keeps the order.
    pub(crate) async fn write(
        &mut self,
        offset: u64,
        mut buffer: Vec<u8>,
    ) -> Result<Vec<u8>, ImageError> {
        let len = buffer.len();
        buffer.resize(len.next_multiple_of(CLUSTER as usize), 0);
        let mut at = 0;
        while at < buffer.len() {
            let disk = offset + at as u64;
            let index = disk / L2_REACH;
            if self.l2.as_ref().is_none_or(|(there, _, _)| *there != index) {
                self.end_table().await?;
                self.l2 = Some((index, self.allocate(1), vec![0; L2_ENTRIES as usize]));
            }
            // What of the buffer this table maps goes into the file in one piece.
            let run = ((index + 1) * L2_REACH - disk).min((buffer.len() - at) as u64);
            let host = self.allocate(run / CLUSTER);
            if let Some((_, _, table)) = &mut self.l2 {
                let first = (disk % L2_REACH / CLUSTER) as usize;
                let entries = table[first..].iter_mut().zip(0..run / CLUSTER);
                for (entry, number) in entries {
                    *entry = (host + number * CLUSTER) | COPIED;
                }
            }
            if at == 0 && run == buffer.len() as u64 {
                buffer = self.sink.write(host, buffer).await?;
            } else {
                let part = buffer[at..at + run as usize].to_vec();
                self.sink.write(host, part).await?;
            }
            at += run as usize;
        }
        buffer.truncate(len);
        Ok(buffer)
    }

    /// Writes what is left, and the header.
    pub(crate) async fn finish(mut self) -> Result<(), ImageError> {
        self.end_table().await?;
        let (table, table_clusters, end) = self.write_refcounts().await?;
        self.sink.write(CLUSTER, be_bytes(&self.l1)).await?;
        if self.l1.is_empty() {
            self.sink.write(CLUSTER, vec![0; 8]).await?;
        }
        // A file ends with a whole cluster.
        self.sink.write(end - 1, vec![0]).await?;
        self.sink.sync().await?;
        let header = self.header(table, table_clusters);
        self.sink.write(0, header).await?;
        self.sink.sync().await
    }

    fn allocate(&mut self, clusters: u64) -> u64 {
        let first = self.next;
        self.next += clusters;
        first * CLUSTER
    }

    async fn end_table(&mut self) -> Result<(), ImageError> {
        if let Some((index, offset, table)) = self.l2.take() {
            self.l1[index as usize] = offset | COPIED;
            self.sink.write(offset, be_bytes(&table)).await?;
        }
        Ok(())
    }

    /// Each cluster of the file is used once. Where the table is, its clusters, and where the file ends.
    async fn write_refcounts(&mut self) -> Result<(u64, u64, u64), ImageError> {
        let used = self.next;
        // They count themselves too: a few rounds until nothing changes.
        let (mut blocks, mut table_clusters) = (1, 1);
        loop {
            let all = used + blocks + table_clusters;
            let wanted = all.div_ceil(REFCOUNTS_PER_BLOCK);
            let table_wanted = (wanted * 8).div_ceil(CLUSTER);
            if (wanted, table_wanted) == (blocks, table_clusters) {
                break;
            }
            (blocks, table_clusters) = (wanted, table_wanted);
        }
        let first = self.allocate(blocks);
        let table = self.allocate(table_clusters);
        let mut left = self.next;
        let mut entries = Vec::with_capacity(blocks as usize);
        for number in 0..blocks {
            let count = left.min(REFCOUNTS_PER_BLOCK);
            left -= count;
            let mut block = Vec::with_capacity(CLUSTER as usize);
            for _ in 0..count {
                block.extend_from_slice(&1_u16.to_be_bytes());
            }
            block.resize(CLUSTER as usize, 0);
            let offset = first + number * CLUSTER;
            self.sink.write(offset, block).await?;
            entries.push(offset);
        }
        let mut bytes = be_bytes(&entries);
        bytes.resize((table_clusters * CLUSTER) as usize, 0);
        self.sink.write(table, bytes).await?;
        Ok((table, table_clusters, self.next * CLUSTER))
    }

    fn header(&self, refcount_table: u64, refcount_clusters: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(CLUSTER as usize);
        let l1_entries = self.l1.len() as u32;
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&3_u32.to_be_bytes());
        // No backing file.
        bytes.extend_from_slice(&[0; 12]);
        bytes.extend_from_slice(&CLUSTER_BITS.to_be_bytes());
        bytes.extend_from_slice(&self.size.to_be_bytes());
        // No encryption.
        bytes.extend_from_slice(&0_u32.to_be_bytes());
        bytes.extend_from_slice(&l1_entries.to_be_bytes());
        bytes.extend_from_slice(&CLUSTER.to_be_bytes());
        bytes.extend_from_slice(&refcount_table.to_be_bytes());
        bytes.extend_from_slice(&(refcount_clusters as u32).to_be_bytes());
        // No snapshots; no features.
        bytes.extend_from_slice(&[0; 12 + 24]);
        bytes.extend_from_slice(&REFCOUNT_ORDER.to_be_bytes());
        bytes.extend_from_slice(&HEADER_LENGTH.to_be_bytes());
        debug_assert_eq!(bytes.len(), HEADER_LENGTH as usize);
        // The end of the header's extensions is eight zeroes.
        bytes.resize(CLUSTER as usize, 0);
        bytes
    }
}

fn be_bytes(entries: &[u64]) -> Vec<u8> {
    entries
        .iter()
        .flat_map(|entry| entry.to_be_bytes())
        .collect()
}
