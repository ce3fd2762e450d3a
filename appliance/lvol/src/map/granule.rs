//! Granules: the unit that is written, zeroed or left to the parent inside a cluster.
//!
//! A cluster has at most 256 of them, so that one bitmap is four words and needs no allocation.

use std::fmt;
use std::ops::Range;

use thiserror::Error;

/// Words of a bitmap of granules.
pub(super) const WORDS: usize = 4;
/// Most granules that a cluster has.
pub(crate) const GRANULES_MAX: u64 = 256;
/// Smallest granule, bytes.
const GRANULE_MIN: u64 = 4096;

/// A cluster size that a pool cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GranularityError {
    /// Not a power of two from 64 KiB to 32 MiB.
    #[error(
        "cluster size of {0} bytes is not a power of two from {min} to {max}",
        min = Granularity::CLUSTER_MIN,
        max = Granularity::CLUSTER_MAX
    )]
    ClusterSize(u64),
}

/// Sizes of a pool's clusters and of the granules inside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granularity {
    cluster_shift: u8,
    granule_shift: u8,
}

impl Granularity {
    /// Smallest cluster, bytes.
    pub const CLUSTER_MIN: u64 = 64 << 10;
    /// Largest cluster, bytes.
    pub const CLUSTER_MAX: u64 = 32 << 20;

    /// Sizes for clusters of `cluster_size` bytes.
    ///
    /// # Errors
    /// [`GranularityError::ClusterSize`] unless it is a power of two from 64 KiB to 32 MiB.
    pub fn new(cluster_size: u64) -> Result<Self, GranularityError> {
        if !cluster_size.is_power_of_two()
            || !(Self::CLUSTER_MIN..=Self::CLUSTER_MAX).contains(&cluster_size)
        {
            return Err(GranularityError::ClusterSize(cluster_size));
        }
        let granule = (cluster_size / GRANULES_MAX).max(GRANULE_MIN);
        Ok(Self {
            cluster_shift: cluster_size.trailing_zeros() as u8,
            granule_shift: granule.trailing_zeros() as u8,
        })
    }

    /// Bytes of a cluster.
    #[must_use]
    pub const fn cluster_size(self) -> u64 {
        1 << self.cluster_shift
    }

    /// Bytes of a granule: 1/256 of a cluster, at least 4 KiB.
    #[must_use]
    pub const fn granule_size(self) -> u64 {
        1 << self.granule_shift
    }

    /// Granules of a cluster, 16 to 256.
    #[must_use]
    pub const fn granules(self) -> u16 {
        1 << (self.cluster_shift - self.granule_shift)
    }

    /// All granules of a cluster.
    #[must_use]
    pub const fn whole(self) -> GranuleRange {
        GranuleRange {
            start: 0,
            end: self.granules(),
        }
    }

    /// The cluster that byte `offset` is in, and the offset inside it.
    #[must_use]
    pub const fn split(self, offset: u64) -> (u64, u64) {
        (
            offset >> self.cluster_shift,
            offset & (self.cluster_size() - 1),
        )
    }

    /// The granules that `bytes` of one cluster touch, with the edges told apart.
    ///
    /// # Panics
    /// If the range is empty or reaches past the cluster.
    #[must_use]
    pub fn span(self, bytes: Range<u64>) -> ClusterSpan {
        assert!(
            bytes.start < bytes.end && bytes.end <= self.cluster_size(),
            "bytes {bytes:?} are not a range inside a cluster of {}",
            self.cluster_size()
        );
        let granule = self.granule_size();
        let first = bytes.start >> self.granule_shift;
        let end = bytes.end.div_ceil(granule);
        let touched = GranuleRange {
            start: first as u16,
            end: end as u16,
        };
        let partial = |index: u64| {
            let start = bytes.start.max(index * granule);
            let stop = bytes.end.min((index + 1) * granule);
            (stop - start < granule).then(|| PartialGranule {
                granule: index as u16,
                start: (start - index * granule) as u32,
                end: (stop - index * granule) as u32,
            })
        };
        let head = partial(first);
        let tail = if end - 1 > first {
            partial(end - 1)
        } else {
            None
        };
        ClusterSpan {
            touched,
            head,
            tail,
        }
    }
}

/// What a byte range of one cluster touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterSpan {
    /// Every granule with a byte in the range.
    pub touched: GranuleRange,
    /// The first granule, if only a part of it is in the range.
    pub head: Option<PartialGranule>,
    /// The last granule, if it is another one and only a part of it is in the range.
    pub tail: Option<PartialGranule>,
}

impl ClusterSpan {
    /// The granules that are in the range from end to end. May be empty.
    #[must_use]
    pub fn whole(&self) -> GranuleRange {
        let start = self.touched.start + u16::from(self.head.is_some());
        let end = self.touched.end - u16::from(self.tail.is_some());
        GranuleRange {
            start,
            end: end.max(start),
        }
    }
}

/// A granule of which only some bytes are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialGranule {
    /// Which granule of the cluster.
    pub granule: u16,
    /// First byte inside the granule.
    pub start: u32,
    /// Byte after the last, inside the granule.
    pub end: u32,
}

/// Consecutive granules of one cluster: `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GranuleRange {
    /// First granule.
    pub start: u16,
    /// Granule after the last.
    pub end: u16,
}

impl GranuleRange {
    /// `start..end`.
    ///
    /// # Panics
    /// Unless `start <= end <= 256`.
    #[must_use]
    pub fn new(start: u16, end: u16) -> Self {
        assert!(
            start <= end && u64::from(end) <= GRANULES_MAX,
            "{start}..{end} is not a range of granules"
        );
        Self { start, end }
    }

    /// Granules in the range.
    #[must_use]
    pub const fn len(self) -> u16 {
        self.end - self.start
    }

    /// No granule at all.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// A set of granules of one cluster.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Granules([u64; WORDS]);

impl Granules {
    /// No granule.
    pub const NONE: Self = Self([0; WORDS]);

    /// The set whose granule `n` is bit `n % 64` of word `n / 64`.
    #[must_use]
    pub const fn from_words(words: [u64; WORDS]) -> Self {
        Self(words)
    }

    /// The words: granule `n` is bit `n % 64` of word `n / 64`.
    #[must_use]
    pub const fn words(self) -> [u64; WORDS] {
        self.0
    }

    /// Is `granule` in the set?
    #[must_use]
    pub const fn test(self, granule: u16) -> bool {
        self.0[(granule / 64) as usize] >> (granule % 64) & 1 == 1
    }

    /// Puts a granule in.
    pub const fn set(&mut self, granule: u16) {
        self.0[(granule / 64) as usize] |= 1 << (granule % 64);
    }

    /// Takes a granule out.
    pub const fn clear(&mut self, granule: u16) {
        self.0[(granule / 64) as usize] &= !(1 << (granule % 64));
    }

    /// No granule is in the set.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::NONE
    }

    /// Granules in the set.
    #[must_use]
    pub fn count(self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// What is in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & other.0[word]))
    }

    /// What is in either.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }

    /// What is here and not in `other`.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & !other.0[word]))
    }

    /// Is every granule of `other` here too?
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        other.minus(self).is_empty()
    }

    /// Do the sets share a granule?
    #[must_use]
    pub fn intersects(self, other: Self) -> bool {
        !self.and(other).is_empty()
    }

    /// Stretches of consecutive granules, in rising order.
    #[must_use]
    pub const fn runs(self) -> GranuleRuns {
        GranuleRuns { set: self, at: 0 }
    }

    /// First granule at or after `from` that is in the set, or is not; 256 if there is none.
    fn seek(self, from: u16, present: bool) -> u16 {
        let mut word = usize::from(from / 64);
        let mut skip = from % 64;
        while word < WORDS {
            let bits = if present { self.0[word] } else { !self.0[word] } & (u64::MAX << skip);
            if bits != 0 {
                return word as u16 * 64 + bits.trailing_zeros() as u16;
            }
            word += 1;
            skip = 0;
        }
        GRANULES_MAX as u16
    }
}

impl From<GranuleRange> for Granules {
    fn from(range: GranuleRange) -> Self {
        let below = |end: u16, word: usize| match end.saturating_sub(word as u16 * 64) {
            0 => 0,
            bits @ 1..64 => (1 << bits) - 1,
            _ => u64::MAX,
        };
        Self(std::array::from_fn(|word| {
            below(range.end, word) & !below(range.start, word)
        }))
    }
}

impl fmt::Debug for Granules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.runs().map(|run| run.start..run.end))
            .finish()
    }
}

/// Iterator over the stretches of a set, see [`Granules::runs`].
#[derive(Debug, Clone)]
pub struct GranuleRuns {
    set: Granules,
    at: u16,
}

impl Iterator for GranuleRuns {
    type Item = GranuleRange;

    fn next(&mut self) -> Option<GranuleRange> {
        if u64::from(self.at) >= GRANULES_MAX {
            return None;
        }
        let start = self.set.seek(self.at, true);
        if u64::from(start) >= GRANULES_MAX {
            self.at = start;
            return None;
        }
        let end = self.set.seek(start, false);
        self.at = end;
        Some(GranuleRange { start, end })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn members(set: Granules) -> BTreeSet<u16> {
        (0..256).filter(|granule| set.test(*granule)).collect()
    }

    #[test]
    fn granule_is_a_256th_of_the_cluster_but_at_least_4_kib() {
        for (cluster, granule, count) in [
            (64 << 10, 4096, 16),
            (1 << 20, 4096, 256),
            (2 << 20, 8192, 256),
            (32 << 20, 128 << 10, 256),
        ] {
            let granularity = Granularity::new(cluster).unwrap();
            assert_eq!(granularity.cluster_size(), cluster);
            assert_eq!(granularity.granule_size(), granule);
            assert_eq!(granularity.granules(), count);
        }
    }

    #[test]
    fn cluster_size_out_of_range_is_rejected() {
        for size in [
            0,
            1,
            4096,
            32 << 10,
            (64 << 10) + 1,
            96 << 10,
            64 << 20,
            u64::MAX,
        ] {
            assert_eq!(
                Granularity::new(size),
                Err(GranularityError::ClusterSize(size))
            );
        }
    }

    #[test]
    fn edges_of_a_byte_range_are_told_apart() {
        let granularity = Granularity::new(64 << 10).unwrap();
        let span = granularity.span(512..8192 + 1024);
        assert_eq!(span.touched, GranuleRange::new(0, 3));
        assert_eq!(
            span.head,
            Some(PartialGranule {
                granule: 0,
                start: 512,
                end: 4096
            })
        );
        assert_eq!(
            span.tail,
            Some(PartialGranule {
                granule: 2,
                start: 0,
                end: 1024
            })
        );
        assert_eq!(span.whole(), GranuleRange::new(1, 2));

        let inside = granularity.span(4096 + 512..4096 + 1024);
        assert_eq!(
            inside.head,
            Some(PartialGranule {
                granule: 1,
                start: 512,
                end: 1024
            })
        );
        assert_eq!(inside.tail, None);
        assert!(inside.whole().is_empty());

        let whole = granularity.span(0..64 << 10);
        assert_eq!((whole.head, whole.tail), (None, None));
        assert_eq!(whole.whole(), granularity.whole());
    }

    #[test]
    #[should_panic(expected = "not a range inside a cluster")]
    fn span_past_the_cluster_is_refused() {
        let _ = Granularity::new(64 << 10).unwrap().span(0..(64 << 10) + 1);
    }

    proptest! {
        #[test]
        fn range_holds_what_is_between_its_ends(a in 0u16..=256, b in 0u16..=256) {
            let range = GranuleRange::new(a.min(b), a.max(b));
            let set = Granules::from(range);
            prop_assert_eq!(members(set), (range.start..range.end).collect());
            prop_assert_eq!(set.count(), u32::from(range.len()));
            prop_assert_eq!(set.is_empty(), range.is_empty());
        }

        #[test]
        fn runs_are_maximal_and_cover_the_set(words: [u64; 4], mask: [u64; 4]) {
            let set = Granules::from_words(words).and(Granules::from_words(mask));
            let mut rebuilt = Granules::NONE;
            let mut last_end = None;
            for run in set.runs() {
                prop_assert!(!run.is_empty());
                prop_assert!(last_end.is_none_or(|end| run.start > end));
                last_end = Some(run.end);
                rebuilt = rebuilt.or(run.into());
            }
            prop_assert_eq!(rebuilt, set);
        }

        #[test]
        fn set_algebra_is_that_of_sets(a: [u64; 4], b: [u64; 4], granule in 0u16..256) {
            let (a, b) = (Granules::from_words(a), Granules::from_words(b));
            let (am, bm) = (members(a), members(b));
            prop_assert_eq!(members(a.and(b)), &am & &bm);
            prop_assert_eq!(members(a.or(b)), &am | &bm);
            prop_assert_eq!(members(a.minus(b)), &am - &bm);
            prop_assert_eq!(a.contains(b), bm.is_subset(&am));
            prop_assert_eq!(a.intersects(b), !am.is_disjoint(&bm));
            let mut c = a;
            c.set(granule);
            prop_assert!(c.test(granule) && c.contains(a));
            c.clear(granule);
            prop_assert!(!c.test(granule));
        }

        #[test]
        fn span_counts_every_byte_once(shift in 16u32..=25, a: u32, b: u32) {
            let granularity = Granularity::new(1 << shift).unwrap();
            let size = granularity.cluster_size();
            let (a, b) = (u64::from(a) % size, u64::from(b) % size);
            let range = a.min(b)..a.max(b) + 1;
            let span = granularity.span(range.clone());
            let edges: u64 = [span.head, span.tail].into_iter().flatten()
                .map(|edge| u64::from(edge.end - edge.start)).sum();
            let whole = u64::from(span.whole().len()) * granularity.granule_size();
            prop_assert_eq!(edges + whole, range.end - range.start);
        }
    }
}
