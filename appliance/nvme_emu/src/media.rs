//! What a namespace holds: durable blocks, and a volatile cache over them.

use std::collections::BTreeMap;

/// How the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Picks the cached blocks that reached the medium.
    pub seed: u64,
    /// Some of them reached it half: the first half new, the second old. No drive that keeps its
    /// blocks whole does this.
    pub tear_blocks: bool,
}

/// The blocks of a namespace. A block that was never written reads as zeroes.
#[derive(Clone, Debug)]
pub struct Media {
    block_size: usize,
    block_count: u64,
    durable: BTreeMap<u64, Box<[u8]>>,
    /// Written, not flushed. `None`: deallocated.
    cache: BTreeMap<u64, Option<Box<[u8]>>>,
}

impl Media {
    pub(crate) fn new(block_size: u32, block_count: u64) -> Self {
        Self {
            block_size: block_size as usize,
            block_count,
            durable: BTreeMap::new(),
            cache: BTreeMap::new(),
        }
    }

    /// Bytes per block.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Number of blocks.
    #[must_use]
    pub fn block_count(&self) -> u64 {
        self.block_count
    }

    /// Blocks that a power cut can take back.
    #[must_use]
    pub fn cached_blocks(&self) -> usize {
        self.cache.len()
    }

    /// A block as a read sees it.
    #[must_use]
    pub fn block(&self, lba: u64) -> Vec<u8> {
        let block = match self.cache.get(&lba) {
            Some(cached) => cached.as_deref(),
            None => self.durable.get(&lba).map(|block| &**block),
        };
        block.map_or_else(|| vec![0; self.block_size], <[u8]>::to_vec)
    }

    /// A block as it is after the worst power cut.
    #[must_use]
    pub fn durable_block(&self, lba: u64) -> Vec<u8> {
        let block = self.durable.get(&lba);
        block.map_or_else(|| vec![0; self.block_size], |block| block.to_vec())
    }

    pub(crate) fn set(&mut self, lba: u64, block: Option<&[u8]>, durable: bool) {
        if durable {
            self.cache.remove(&lba);
            self.set_durable(lba, block.map(Into::into));
        } else {
            self.cache.insert(lba, block.map(Into::into));
        }
    }

    pub(crate) fn flush(&mut self) {
        for (lba, block) in std::mem::take(&mut self.cache) {
            self.set_durable(lba, block);
        }
    }

    pub(crate) fn resize(&mut self, block_count: u64) {
        self.block_count = block_count;
        self.cache.split_off(&block_count);
        self.durable.split_off(&block_count);
    }

    pub(crate) fn power_cut(&mut self, cut: Cut) {
        let half = self.block_size / 2;
        for (lba, block) in std::mem::take(&mut self.cache) {
            let dice = mix(cut.seed ^ mix(lba));
            if dice & 1 == 0 {
                continue;
            }
            if cut.tear_blocks && dice & 2 != 0 {
                let mut torn = self.durable_block(lba);
                let new = block.unwrap_or_else(|| vec![0; self.block_size].into());
                torn[..half].copy_from_slice(&new[..half]);
                self.set_durable(lba, Some(torn.into()));
            } else {
                self.set_durable(lba, block);
            }
        }
    }

    fn set_durable(&mut self, lba: u64, block: Option<Box<[u8]>>) {
        match block {
            Some(block) => self.durable.insert(lba, block),
            None => self.durable.remove(&lba),
        };
    }
}

/// A number that looks like dice (the finalizer of splitmix64).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}
