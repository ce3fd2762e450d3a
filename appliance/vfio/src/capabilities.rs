//! Chains of capabilities behind VFIO's answers.
//!
//! Each begins with an ID (16 bits), a version (16) and the offset of the next (32), in the byte
//! order of the machine; offsets count from the start of the answer, 0 ends the chain.

use std::ops::RangeInclusive;

use vfio_bindings::bindings::vfio::{
    VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
    VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, VFIO_REGION_INFO_CAP_SPARSE_MMAP,
};

/// Most capabilities of a chain. The kernel has no more than a handful.
const CHAIN_MAX: usize = 64;
const HEADER: usize = 8;

// In the byte order of the machine, as all of the kernel's structures.
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..at.checked_add(4)?)?;
    word.try_into().ok().map(u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..at.checked_add(8)?)?;
    word.try_into().ok().map(u64::from_ne_bytes)
}

/// The offsets of a chain with the IDs, as far as it is sound.
fn chain(answer: &[u8], first: u32) -> impl Iterator<Item = (u32, usize)> {
    let mut next = first as usize;
    std::iter::from_fn(move || {
        let at = next;
        if at < HEADER {
            return None;
        }
        let id = u32_at(answer, at)?;
        next = u32_at(answer, at + 4)? as usize;
        let id = if cfg!(target_endian = "little") {
            id & 0xffff
        } else {
            id >> 16
        };
        Some((id, at))
    })
    .take(CHAIN_MAX)
}

/// What the IOMMU of a container takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IommuInfo {
    /// Sizes of its pages: bit n is set for pages of `1 << n` bytes.
    pub page_sizes: u64,
    /// Addresses that can be mapped. Empty: the kernel does not say.
    pub ranges: Vec<RangeInclusive<u64>>,
    /// Mappings that can still be made; `None`: the kernel does not say.
    pub dma_avail: Option<u32>,
}

impl IommuInfo {
    pub(crate) fn parse(page_sizes: u64, answer: &[u8], first: u32) -> Self {
        let mut info = Self {
            page_sizes,
            ..Self::default()
        };
        for (id, at) in chain(answer, first) {
            match id {
                VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => info.ranges = ranges(answer, at),
                VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => info.dma_avail = u32_at(answer, at + HEADER),
                _ => {}
            }
        }
        info
    }

    /// Whether all of `len` bytes at `start` can be mapped.
    #[must_use]
    pub fn reaches(&self, start: u64, len: u64) -> bool {
        let Some(last) = start.checked_add(len.saturating_sub(1)) else {
            return false;
        };
        let holds = |range: &RangeInclusive<u64>| range.contains(&start) && range.contains(&last);
        self.ranges.is_empty() || self.ranges.iter().any(holds)
    }

    /// Bits of the highest address that can be mapped; 64 where the kernel does not say.
    #[must_use]
    pub fn address_bits(&self) -> u8 {
        let last = self.ranges.iter().map(|range| *range.end()).max();
        last.map_or(64, |last| (64 - last.leading_zeros()) as u8)
    }
}

/// Body: count (32), padding (32), then pairs of first and last address (64 each).
fn ranges(answer: &[u8], at: usize) -> Vec<RangeInclusive<u64>> {
    let count = u32_at(answer, at + HEADER).unwrap_or(0) as usize;
    let pair = |index: usize| {
        let at = at + HEADER + 8 + index * 16;
        Some(u64_at(answer, at)?..=u64_at(answer, at + 8)?)
    };
    (0..count).map_while(pair).collect()
}

/// What may be mapped of a region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RegionCaps {
    /// Offset and length of the parts, where not all of it may be. `None`: all.
    pub(crate) areas: Option<Vec<(u64, u64)>>,
    /// Also where the MSI-X table is.
    pub(crate) msix_mappable: bool,
}

impl RegionCaps {
    pub(crate) fn parse(answer: &[u8], first: u32) -> Self {
        let mut caps = Self::default();
        for (id, at) in chain(answer, first) {
            match id {
                VFIO_REGION_INFO_CAP_SPARSE_MMAP => caps.areas = Some(areas(answer, at)),
                VFIO_REGION_INFO_CAP_MSIX_MAPPABLE => caps.msix_mappable = true,
                _ => {}
            }
        }
        caps
    }
}

/// Body: count (32), reserved (32), then pairs of offset and length (64 each).
fn areas(answer: &[u8], at: usize) -> Vec<(u64, u64)> {
    let count = u32_at(answer, at + HEADER).unwrap_or(0) as usize;
    let pair = |index: usize| {
        let at = at + HEADER + 8 + index * 16;
        Some((u64_at(answer, at)?, u64_at(answer, at + 8)?))
    };
    (0..count).map_while(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// The answer of a 39-bit Intel IOMMU: a head of 24 bytes, ranges, migration, avail.
    fn golden() -> Vec<u8> {
        let head = [0; 6];
        let ranges = [
            1 | 1 << 16,
            24 + 48,
            2,
            0,
            0,
            0,
            0xfedf_ffff,
            0,
            0xfef0_0000,
            0,
            0xffff_ffff,
            0x7f,
        ];
        let migration = [2 | 1 << 16, 24 + 48 + 16, 0, 0];
        let avail = [3 | 1 << 16, 0, 65533];
        words(&[&head[..], &ranges, &migration, &avail].concat())
    }

    #[test]
    fn ranges_and_entries_of_an_iommu_are_read() {
        let info = IommuInfo::parse(0x1000, &golden(), 24);
        assert_eq!(info.ranges, [0..=0xfedf_ffff, 0xfef0_0000..=0x7f_ffff_ffff]);
        assert_eq!((info.dma_avail, info.address_bits()), (Some(65533), 39));
        assert!(info.reaches(0x20_0000_0000, 1 << 30));
        // The interrupt window, an end beyond the width, a wrap.
        assert!(!info.reaches(0xfee0_0000, 4096));
        assert!(!info.reaches(0x7f_ffff_f000, 8192));
        assert!(!info.reaches(u64::MAX, 2));
    }

    #[test]
    fn an_answer_cut_at_any_byte_is_taken_as_far_as_it_goes() {
        let golden = golden();
        for len in 0..golden.len() {
            let info = IommuInfo::parse(0, &golden[..len], 24);
            assert!(info.ranges.len() <= 2);
            assert_eq!(info.dma_avail, None);
        }
    }

    #[test]
    fn a_chain_in_a_circle_ends() {
        let bytes = words(&[0, 0, 1 | 1 << 16, 8, 0, 0]);
        assert!(IommuInfo::parse(0, &bytes, 8).ranges.is_empty());
    }

    #[test]
    fn parts_of_a_region_are_read() {
        let head = [0; 8];
        let sparse = [1 | 1 << 16, 56, 1, 0, 0, 0, 0x2000, 0];
        let mut bytes = words(&head);
        bytes.extend(words(&sparse[..4]));
        bytes.extend(words(&[0x2000, 0]));
        bytes.extend(words(&[3 | 1 << 16, 0]));
        let caps = RegionCaps::parse(&bytes, 32);
        // The second word of the pair lies in the next capability: both are as the bytes say.
        assert!(caps.msix_mappable);
        assert_eq!(caps.areas.as_deref().map(<[_]>::len), Some(1));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256), first: u32) {
            IommuInfo::parse(0, &bytes, first % 300);
            RegionCaps::parse(&bytes, first % 300);
            IommuInfo::parse(0, &bytes, first);
        }
    }
}
