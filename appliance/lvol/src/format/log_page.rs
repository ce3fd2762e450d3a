//! A page of the log of first writes: changes of maps that were acknowledged before a commit had them.
//!
//! A page is one logical block of the device, so that a power cut leaves the old one or the new one; a
//! checksum tells where it did not. Pages are numbered without end: page `n` lies in block
//! `n % (blocks of the log)`.

use super::value::crc32c;
use super::{FormatError, LayerId};
use crate::map::{Cluster, GranuleRange};

/// First bytes of a page.
const MAGIC: &[u8; 8] = b"ADITWLOG";
const VERSION: u16 = 1;
/// Bytes before the first entry.
const HEADER_BYTES: usize = 48;
/// Bytes of an entry.
const ENTRY_BYTES: usize = 24;
/// Bytes of the checksum at the end.
const SUM_BYTES: usize = 4;
/// Name of the record in errors.
const RECORD: &str = "log page";
/// Numbers of clusters and slots have 48 bits.
const NUMBER_MAX: u64 = (1 << 48) - 1;

const KIND_WRITTEN: u8 = 1;
const KIND_ZERO: u8 = 2;

/// Offsets of the fields, bytes.
mod at {
    pub(super) const VERSION: usize = 8;
    pub(super) const COUNT: usize = 10;
    pub(super) const UNUSED: usize = 12;
    pub(super) const UUID: usize = 16;
    pub(super) const EPOCH: usize = 32;
    pub(super) const NUMBER: usize = 40;
}

/// What became of granules of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogChange {
    /// They are written in this cluster of the device.
    Written(Cluster),
    /// They read as zeroes.
    Zero,
}

/// A change of a layer's map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogEntry {
    /// Whose map.
    pub layer: LayerId,
    /// Slot of the layer: cluster of its address space, at most 48 bits.
    pub slot: u64,
    /// The granules: at least one.
    pub granules: GranuleRange,
    /// What they are now.
    pub change: LogChange,
}

/// What a page says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogHeader {
    /// The pool that it is of.
    pub pool_uuid: [u8; 16],
    /// A commit with a higher epoch has the page's changes.
    pub epoch: u64,
    /// Its number. Of two changes of one granule the one in the page with the higher number came later.
    pub number: u64,
}

/// Entries that a page of `bytes` bytes has room for.
#[must_use]
pub const fn log_entries_max(bytes: usize) -> usize {
    (bytes - HEADER_BYTES - SUM_BYTES) / ENTRY_BYTES
}

/// Fills a page, which is as long as a block of the device.
///
/// # Panics
/// If there are more entries than [`log_entries_max`].
pub fn encode_log_page(header: &LogHeader, entries: &[LogEntry], page: &mut [u8]) {
    assert!(
        entries.len() <= log_entries_max(page.len()),
        "{} entries for a page of {} bytes",
        entries.len(),
        page.len()
    );
    page.fill(0);
    page[..MAGIC.len()].copy_from_slice(MAGIC);
    page[at::VERSION..][..2].copy_from_slice(&VERSION.to_le_bytes());
    page[at::COUNT..][..2].copy_from_slice(&(entries.len() as u16).to_le_bytes());
    page[at::UUID..][..16].copy_from_slice(&header.pool_uuid);
    page[at::EPOCH..][..8].copy_from_slice(&header.epoch.to_le_bytes());
    page[at::NUMBER..][..8].copy_from_slice(&header.number.to_le_bytes());
    let places = page[HEADER_BYTES..].chunks_exact_mut(ENTRY_BYTES);
    for (entry, place) in entries.iter().zip(places) {
        encode_entry(entry, place);
    }
    let end = page.len() - SUM_BYTES;
    let sum = crc32c(&page[..end]);
    page[end..].copy_from_slice(&sum.to_le_bytes());
}

fn encode_entry(entry: &LogEntry, place: &mut [u8]) {
    debug_assert!(
        !entry.granules.is_empty() && entry.slot <= NUMBER_MAX,
        "{entry:?}"
    );
    let (kind, cluster) = match entry.change {
        LogChange::Written(cluster) => (KIND_WRITTEN, cluster.get()),
        LogChange::Zero => (KIND_ZERO, 0),
    };
    place[..8].copy_from_slice(&entry.layer.0.to_le_bytes());
    place[8..14].copy_from_slice(&entry.slot.to_le_bytes()[..6]);
    place[14..20].copy_from_slice(&cluster.to_le_bytes()[..6]);
    place[20] = kind;
    place[21] = entry.granules.start as u8;
    place[22] = (entry.granules.end - 1) as u8;
}

/// The page in a block of the log; `granules` is how many a cluster has.
///
/// # Errors
/// [`FormatError::Magic`] and [`FormatError::Checksum`] where there is none, or one that a power cut has
/// torn; others if it is sound and cannot be.
pub fn decode_log_page(
    page: &[u8],
    granules: u16,
) -> Result<(LogHeader, Vec<LogEntry>), FormatError> {
    if page.len() <= HEADER_BYTES + SUM_BYTES {
        return Err(FormatError::Truncated {
            record: RECORD,
            field: "header",
        });
    }
    if !page.starts_with(MAGIC) {
        return Err(FormatError::Magic);
    }
    let (fields, sum) = page.split_at(page.len() - SUM_BYTES);
    let stored = u32::from_le_bytes(array_at(sum, 0));
    let computed = crc32c(fields);
    if stored != computed {
        return Err(FormatError::Checksum {
            record: RECORD,
            stored,
            computed,
        });
    }
    let wrong = |field, value: u64, rule| FormatError::Field {
        record: RECORD,
        field,
        value,
        rule,
    };
    let version = u16::from_le_bytes(array_at(fields, at::VERSION));
    if version != VERSION {
        return Err(wrong("a version", version.into(), "this program knows 1"));
    }
    let count = usize::from(u16::from_le_bytes(array_at(fields, at::COUNT)));
    if count > log_entries_max(page.len()) {
        return Err(wrong("a count", count as u64, "so many do not fit"));
    }
    if fields[at::UNUSED..at::UUID] != [0; at::UUID - at::UNUSED] {
        return Err(wrong("unused bytes", 1, "they are zero"));
    }
    let header = LogHeader {
        pool_uuid: array_at(fields, at::UUID),
        epoch: u64::from_le_bytes(array_at(fields, at::EPOCH)),
        number: u64::from_le_bytes(array_at(fields, at::NUMBER)),
    };
    let places = fields[HEADER_BYTES..].chunks_exact(ENTRY_BYTES);
    let entries = places
        .take(count)
        .map(|place| decode_entry(place, granules));
    Ok((header, entries.collect::<Result<_, _>>()?))
}

fn decode_entry(place: &[u8], granules: u16) -> Result<LogEntry, FormatError> {
    let wrong = |field, value: u64, rule| FormatError::Field {
        record: RECORD,
        field,
        value,
        rule,
    };
    let layer = u64::from_le_bytes(array_at(place, 0));
    if layer == 0 {
        return Err(wrong("a layer", 0, "layer 0 is never used"));
    }
    let number = u48_at(place, 14);
    let change = match (place[20], Cluster::new(number)) {
        (KIND_WRITTEN, Some(cluster)) if !cluster.is_lost() => LogChange::Written(cluster),
        (KIND_ZERO, None) => LogChange::Zero,
        (KIND_WRITTEN | KIND_ZERO, _) => {
            return Err(wrong(
                "a cluster",
                number,
                "what is written has one, zeroes none",
            ));
        }
        (kind, _) => return Err(wrong("a kind", kind.into(), "must be 1 or 2")),
    };
    let (first, last) = (u16::from(place[21]), u16::from(place[22]));
    if first > last || last >= granules {
        return Err(wrong(
            "a last granule",
            last.into(),
            "a cluster has not so many",
        ));
    }
    if place[23] != 0 {
        return Err(wrong("an unused byte", place[23].into(), "it is zero"));
    }
    Ok(LogEntry {
        layer: LayerId(layer),
        slot: u48_at(place, 8),
        granules: GranuleRange::new(first, last + 1),
        change,
    })
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[at + index])
}

fn u48_at(bytes: &[u8], at: usize) -> u64 {
    let [a, b, c, d, e, f] = array_at(bytes, at);
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

#[cfg(test)]
mod tests;
