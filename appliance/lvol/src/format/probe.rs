//! What a device holds, before a pool is made on it.
//!
//! A guard against making a pool over somebody's data, not a proof that there is none. Signatures
//! of fewer than six bytes count only together with other fields that must hold.

mod signature;

use self::signature::Ends;
use super::FormatError;
use super::superblock::{MAGIC, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS, Superblock};

/// Bytes at the beginning of a device that [`probe`] looks at: the first ZFS label is the longest.
pub const PROBE_BYTES: usize = 256 << 10;
/// Bytes at the end of a device that [`probe`] looks at: the last ZFS label's uberblocks, on a
/// device that does not end at a multiple of 256 KiB, begin farthest from it.
pub const PROBE_TAIL_BYTES: usize = 384 << 10;

/// What a device holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing that is known: zeroes, or anybody's data without a signature.
    Nothing,
    /// A pool.
    Pool(Superblock),
    /// Something of somebody.
    Foreign {
        /// What, with its article: fits "the device holds {what}".
        what: &'static str,
    },
}

/// What a device holds.
///
/// `head` are its first [`PROBE_BYTES`], `tail` its last [`PROBE_TAIL_BYTES`]; of a smaller device
/// both are all of it. `block_size` is its logical block size, bytes.
///
/// A pool is not one any more if something else lies where its damaged copy was: a file system
/// made over it does not reach the second copy.
#[must_use]
pub fn probe(head: &[u8], tail: &[u8], block_size: u32) -> Found {
    let copies = SUPERBLOCK_OFFSETS.map(|offset| {
        let rest = head.get(offset as usize..).unwrap_or_default();
        &rest[..rest.len().min(SUPERBLOCK_BYTES)]
    });
    let ends = Ends {
        head,
        tail,
        block_size: block_size as usize,
    };
    let first_copy = Ends {
        head: copies[0],
        tail: &[],
        ..ends
    };
    let damaged = copies.iter().any(|copy| copy.starts_with(MAGIC));
    match Superblock::newest(copies) {
        Ok((pool, 0)) => Found::Pool(pool),
        Ok((pool, _)) if Superblock::decode(copies[0]).is_ok() => Found::Pool(pool),
        Ok((pool, _)) => first_copy
            .find()
            .map_or(Found::Pool(pool), |what| Found::Foreign { what }),
        Err(FormatError::TooNew { .. }) => Found::Foreign {
            what: "an Adit pool of a newer format",
        },
        Err(FormatError::TwoPools) => Found::Foreign {
            what: "superblocks of two Adit pools",
        },
        Err(_) if damaged => Found::Foreign {
            what: first_copy.find().unwrap_or("a damaged Adit pool"),
        },
        Err(_) => ends
            .find()
            .map_or(Found::Nothing, |what| Found::Foreign { what }),
    }
}

#[cfg(test)]
mod tests;
