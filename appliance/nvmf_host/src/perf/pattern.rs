//! What verified blocks hold, and what is wrong with one that does not.
//!
//! Each logical block carries a stamp: who it is (LBA), which write it is of (generation), which run
//! wrote it, and a checksum over all of it. A block that was lost, torn, misplaced or mixed up with an
//! older one is told apart.

use std::fmt;

use fabric_wire::digest::Crc32c;
use nvme_spec::{Lba, Nsid};

const MAGIC: [u8; 8] = *b"ADITPERF";
const CRC_AT: std::ops::Range<usize> = 24..28;
/// Length of a stamp in bytes. The smallest block has 512.
const STAMP_LEN: usize = 32;

/// Makes and checks patterns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern {
    pub(crate) nsid: Nsid,
    pub(crate) block_size: usize,
    /// Tells runs apart.
    pub(crate) run: u32,
}

impl Pattern {
    /// Fills blocks from `lba` on.
    pub(crate) fn fill(&self, bytes: &mut [u8], lba: Lba, generation: u32) {
        for (lba, block) in (lba.0..).zip(bytes.chunks_exact_mut(self.block_size)) {
            self.fill_block(block, lba, generation);
        }
    }

    fn fill_block(&self, block: &mut [u8], lba: u64, generation: u32) {
        let (stamp, body) = block.split_at_mut(STAMP_LEN);
        stamp[..8].copy_from_slice(&MAGIC);
        stamp[8..16].copy_from_slice(&lba.to_le_bytes());
        stamp[16..20].copy_from_slice(&generation.to_le_bytes());
        stamp[20..24].copy_from_slice(&self.run.to_le_bytes());
        stamp[CRC_AT].fill(0);
        stamp[28..].fill(0);
        let mut state = lba ^ u64::from(generation) << 40 ^ u64::from(self.run) << 20;
        for word in body.chunks_exact_mut(8) {
            word.copy_from_slice(&mix(&mut state).to_le_bytes());
        }
        let crc = checksum(block);
        block[CRC_AT].copy_from_slice(&crc.to_le_bytes());
    }

    /// Compares blocks from `lba` on with what they must hold. `scratch` has their length.
    pub(crate) fn check(
        &self,
        found: &[u8],
        lba: Lba,
        generation: u32,
        scratch: &mut [u8],
    ) -> Result<(), Box<Mismatch>> {
        let expected = &mut scratch[..found.len()];
        self.fill(expected, lba, generation);
        if found == &*expected {
            return Ok(());
        }
        let at = found
            .iter()
            .zip(&*expected)
            .position(|(a, b)| a != b)
            .unwrap_or(0);
        let block = at / self.block_size;
        let block_at = block * self.block_size;
        let bytes = &found[block_at..block_at + self.block_size];
        Err(Box::new(Mismatch {
            nsid: self.nsid,
            io_lba: lba,
            lba: Lba(lba.0 + block as u64),
            offset: at - block_at,
            expected: expected[at],
            found: found[at],
            expected_generation: generation,
            content: self.content_of(bytes, lba.0 + block as u64, generation),
        }))
    }

    fn content_of(&self, block: &[u8], lba: u64, generation: u32) -> Content {
        if block.iter().all(|&byte| byte == 0) {
            return Content::Zeroes;
        }
        if block[..8] != MAGIC {
            return Content::Foreign;
        }
        let found = BlockStamp {
            lba: Lba(u64::from_le_bytes(
                block[8..16].try_into().expect("8 bytes"),
            )),
            generation: u32::from_le_bytes(block[16..20].try_into().expect("4 bytes")),
            run: u32::from_le_bytes(block[20..24].try_into().expect("4 bytes")),
        };
        let crc = u32::from_le_bytes(block[CRC_AT].try_into().expect("4 bytes"));
        if crc != checksum(block) {
            Content::Damaged(found)
        } else if found.lba.0 != lba {
            Content::Misplaced(found)
        } else if found.run != self.run {
            Content::OtherRun(found)
        } else if found.generation < generation {
            Content::Stale(found)
        } else {
            Content::Damaged(found)
        }
    }
}

/// CRC-32C of a block without that of its checksum field.
fn checksum(block: &[u8]) -> u32 {
    let mut crc = Crc32c::new();
    crc.update(&block[..CRC_AT.start]);
    crc.update(&block[CRC_AT.end..]);
    crc.finalize()
}

/// The next of a sequence of numbers that look random (splitmix64).
#[inline]
pub(crate) fn mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut value = *state;
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// The stamp of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStamp {
    /// The block that it was written for.
    pub lba: Lba,
    /// Which write of that block.
    pub generation: u32,
    /// The run that wrote it.
    pub run: u32,
}

/// What a block holds that does not hold what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing but zeroes.
    Zeroes,
    /// Nothing that this program wrote.
    Foreign,
    /// An older write of this run.
    Stale(BlockStamp),
    /// A write of another run.
    OtherRun(BlockStamp),
    /// A whole block that belongs elsewhere.
    Misplaced(BlockStamp),
    /// A stamp whose checksum does not fit the rest: torn or damaged.
    Damaged(BlockStamp),
}

/// The first difference between what was written and what was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The namespace.
    pub nsid: Nsid,
    /// First block of the command that read it.
    pub io_lba: Lba,
    /// The block that differs.
    pub lba: Lba,
    /// Offset in the block of the first byte that differs.
    pub offset: usize,
    /// The byte that was written.
    pub expected: u8,
    /// The byte that was read.
    pub found: u8,
    /// Which write of this block should be there.
    pub expected_generation: u32,
    /// What is there.
    pub content: Content,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "namespace {} block {} (read from {} on), byte {}: {:#04x} where {:#04x} was written; \
             write {} should be there, ",
            self.nsid,
            self.lba,
            self.io_lba,
            self.offset,
            self.found,
            self.expected,
            self.expected_generation,
        )?;
        match self.content {
            Content::Zeroes => f.write_str("the block is all zeroes"),
            Content::Foreign => f.write_str("the block holds something else"),
            Content::Stale(stamp) => write!(f, "the block holds write {}", stamp.generation),
            Content::OtherRun(stamp) => write!(f, "the block is of run {:08x}", stamp.run),
            Content::Misplaced(stamp) => {
                write!(
                    f,
                    "the block holds write {} of block {}",
                    stamp.generation, stamp.lba
                )
            }
            Content::Damaged(stamp) => write!(
                f,
                "the block is damaged (its stamp says write {} of block {})",
                stamp.generation, stamp.lba
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATTERN: Pattern = Pattern {
        nsid: Nsid(1),
        block_size: 512,
        run: 9,
    };

    fn written(lba: u64, generation: u32) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        PATTERN.fill(&mut bytes, Lba(lba), generation);
        bytes
    }

    fn content(found: &[u8], lba: u64, generation: u32) -> Content {
        let mut scratch = vec![0; 1024];
        PATTERN
            .check(found, Lba(lba), generation, &mut scratch)
            .unwrap_err()
            .content
    }

    #[test]
    fn what_was_written_is_accepted() {
        let mut scratch = vec![0; 1024];
        assert!(
            PATTERN
                .check(&written(7, 3), Lba(7), 3, &mut scratch)
                .is_ok()
        );
    }

    #[test]
    fn each_kind_of_damage_is_told_apart() {
        assert_eq!(content(&[0; 1024], 7, 3), Content::Zeroes);
        assert_eq!(content(&[0xA5; 1024], 7, 3), Content::Foreign);
        assert!(matches!(content(&written(7, 2), 7, 3), Content::Stale(_)));
        assert!(matches!(
            content(&written(9, 3), 7, 3),
            Content::Misplaced(_)
        ));
        let mut torn = written(7, 3);
        torn[512 + 256..].copy_from_slice(&written(7, 2)[512 + 256..]);
        let mut scratch = vec![0; 1024];
        let mismatch = PATTERN.check(&torn, Lba(7), 3, &mut scratch).unwrap_err();
        assert_eq!(mismatch.lba, Lba(8));
        assert_eq!(mismatch.offset, 256);
        assert!(matches!(mismatch.content, Content::Damaged(_)));
        let mut other = vec![0; 1024];
        Pattern { run: 8, ..PATTERN }.fill(&mut other, Lba(7), 3);
        assert!(matches!(content(&other, 7, 3), Content::OtherRun(_)));
    }
}
