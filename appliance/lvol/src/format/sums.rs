//! The record of the table `sums`: checksums of the data of a piece, as a scrub has read them.
//!
//! After the header: 8 bytes, the time; 16 bytes, a bitmap of the slots that have a checksum; for each of
//! these, in order, 4 bytes that say which place was read and 4 bytes that say what was there. The place is a
//! CRC-32C too, [`place_sum`]: a slot whose map says something else now has no checksum any more, whoever
//! changed it.

use super::FormatError;
use super::value::{Reader, Writer, crc32c};
use crate::map::{Cluster, Granularity, Granules, PIECE_SLOTS, SlotContent};

/// Bytes of the bitmap of slots.
const SLOT_BYTES: usize = PIECE_SLOTS / 8;

/// The checksum of a slot's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotSum {
    /// Index in the piece.
    pub slot: u8,
    /// [`place_sum`] of where the data lay.
    pub place: u32,
    /// CRC-32C of the bytes of the granules that are written, in their order.
    pub data: u32,
}

/// A record of the table `sums`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SumsRecord {
    /// When the data were last known to be what the checksums say, seconds since 1970.
    pub recorded_unix_s: u64,
    /// In the order of slots, each once; at least one.
    pub slots: Vec<SlotSum>,
}

impl SumsRecord {
    const NAME: &str = "checksums of a piece";

    /// The record's value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u64(self.recorded_unix_s);
        let mut slots = 0_u128;
        for sum in &self.slots {
            slots |= 1 << sum.slot;
        }
        out.bytes(&slots.to_le_bytes());
        for sum in &self.slots {
            out.u32(sum.place);
            out.u32(sum.data);
        }
        out.finish()
    }

    /// The record of a value.
    ///
    /// # Errors
    /// [`FormatError`] if it is damaged, or of a newer version.
    pub fn decode(value: &[u8]) -> Result<Self, FormatError> {
        let mut fields = Reader::open(Self::NAME, value)?;
        let recorded_unix_s = fields.u64("time")?;
        let bitmap = fields.bytes("bitmap of slots", SLOT_BYTES)?;
        let mut slots = Vec::new();
        for slot in 0..PIECE_SLOTS {
            if bitmap[slot / 8] >> (slot % 8) & 1 == 1 {
                slots.push(SlotSum {
                    slot: slot as u8,
                    place: fields.u32("place of a slot")?,
                    data: fields.u32("checksum of a slot")?,
                });
            }
        }
        if slots.is_empty() {
            return Err(fields.wrong("bitmap of slots", 0, "a record is of some slot"));
        }
        fields.finish()?;
        Ok(Self {
            recorded_unix_s,
            slots,
        })
    }
}

/// The cluster of a slot and the granules that are written in it; `None` if it has no data.
#[must_use]
pub fn data_of(content: &SlotContent, granularity: Granularity) -> Option<(Cluster, Granules)> {
    let (cluster, written) = match content {
        SlotContent::Empty | SlotContent::Zero => return None,
        SlotContent::Full(cluster) => (*cluster, Granules::from(granularity.whole())),
        SlotContent::Partial {
            cluster, written, ..
        } => ((*cluster)?, *written),
    };
    (!cluster.is_lost()).then_some((cluster, written))
}

/// Which place it is: CRC-32C of the number of the cluster, 8 bytes, and the bitmap of the granules that are
/// written in it, 32 bytes.
#[must_use]
pub fn place_sum(cluster: Cluster, written: Granules) -> u32 {
    let mut bytes = [0; 40];
    let words = [[cluster.get()].as_slice(), &written.words()].concat();
    for (out, word) in bytes.chunks_exact_mut(8).zip(words) {
        out.copy_from_slice(&word.to_le_bytes());
    }
    crc32c(&bytes)
}

#[cfg(test)]
mod tests;
