//! The record of the table `map`: 128 slots of a layer.
//!
//! A list of runs from slot 0 on. What no run says is empty. Each begins with a varint, whose two
//! low bits are the kind and whose other bits are `n`:
//! - 0: `n` empty slots;
//! - 1: `n` full slots, whose clusters are consecutive; then the first cluster as a varint. Cluster 0
//!   says that the data of these slots are lost;
//! - 2: `n` slots of zeroes;
//! - 3: one partial slot: `n` is the length of its bitmap of written granules; then a byte, the
//!   length of its bitmap of zero granules; if `n` is not 0, the cluster as a varint; then both
//!   bitmaps. Granule `g` is bit `g % 8` of byte `g / 8`; zero bytes at the end are left out.

use super::FormatError;
use super::value::{Reader, Writer};
use crate::map::{Cluster, Granularity, Granules, PIECE_SLOTS, SlotContent};

const RECORD: &str = "map piece";
const EMPTY: u64 = 0;
const FULL: u64 = 1;
const ZERO: u64 = 2;
const PARTIAL: u64 = 3;
/// Bytes of a bitmap of 256 granules.
const BITMAP_BYTES: usize = 32;

/// The value of a piece. Empty slots at the end cost nothing.
///
/// A partial slot's cluster in which nothing is written is left out.
#[must_use]
pub fn encode_piece(slots: &[SlotContent; PIECE_SLOTS]) -> Vec<u8> {
    let mut out = Writer::new();
    let mut at = 0;
    while at < PIECE_SLOTS {
        let run = run_length(&slots[at..]);
        let header = |kind| (run as u64) << 2 | kind;
        match &slots[at] {
            SlotContent::Empty if at + run == PIECE_SLOTS => {}
            SlotContent::Empty => out.varint(header(EMPTY)),
            SlotContent::Zero => out.varint(header(ZERO)),
            SlotContent::Full(cluster) => {
                out.varint(header(FULL));
                out.varint(stored(*cluster));
            }
            SlotContent::Partial {
                cluster,
                written,
                zero,
            } => encode_partial(&mut out, *cluster, *written, *zero),
        }
        at += run;
    }
    out.finish()
}

/// The slots of a piece's value, of a pool with `clusters` clusters.
///
/// # Errors
/// [`FormatError`] if it is damaged, of a newer version, names a cluster that the pool does not
/// have or one cluster twice, or has bitmaps that contradict each other.
pub fn decode_piece(
    bytes: &[u8],
    granularity: Granularity,
    clusters: u64,
) -> Result<Box<[SlotContent; PIECE_SLOTS]>, FormatError> {
    let mut fields = Reader::open(RECORD, bytes)?;
    let mut slots = Box::new([SlotContent::Empty; PIECE_SLOTS]);
    let mut at = 0;
    while at < PIECE_SLOTS && !fields.is_empty() {
        let header = fields.varint("run header")?;
        let (kind, n) = (header & 3, header >> 2);
        if kind == PARTIAL {
            slots[at] = decode_partial(&mut fields, at, n, granularity, clusters)?;
            at += 1;
            continue;
        }
        if n == 0 || n > (PIECE_SLOTS - at) as u64 {
            return Err(fields.wrong("run length", n, "a run has slots and ends in the piece"));
        }
        let run = &mut slots[at..at + n as usize];
        match kind {
            EMPTY if fields.is_empty() => {
                return Err(fields.wrong("run length", n, "empty slots at the end have no run"));
            }
            FULL => {
                // Checked before it counts up, so that the numbers do not overflow.
                let first = cluster_below(fields.varint("cluster")?, clusters, at)?;
                if first.is_lost() {
                    run.fill(SlotContent::Full(first));
                    at += n as usize;
                    continue;
                }
                let first = first.get();
                for (index, slot) in run.iter_mut().enumerate() {
                    let number = first + index as u64;
                    *slot = SlotContent::Full(cluster_below(number, clusters, at + index)?);
                }
            }
            ZERO => run.fill(SlotContent::Zero),
            _ => {}
        }
        at += n as usize;
    }
    fields.finish()?;
    check_clusters_differ(&slots)?;
    Ok(slots)
}

/// As [`decode_piece`], of a record that is sound but says what cannot be: such slots are lost, and so
/// is what follows where the record cannot be read on. Without a sound checksum all of it is.
#[must_use]
pub fn salvage_piece(
    bytes: &[u8],
    granularity: Granularity,
    clusters: u64,
) -> Box<[SlotContent; PIECE_SLOTS]> {
    let lost = SlotContent::Full(Cluster::LOST);
    let mut slots = Box::new([lost; PIECE_SLOTS]);
    if Reader::open(RECORD, bytes).is_err() {
        return slots;
    }
    // With no bound all numbers are taken; what is not the pool's is lost afterwards.
    let Ok(read) = decode_piece(bytes, granularity, Cluster::LOST.get()) else {
        return slots;
    };
    *slots = read.map(|content| match content.data_cluster() {
        Some(cluster) if cluster.get() >= clusters => lost,
        _ => content,
    });
    slots
}

/// Slots from the first on that one run says.
fn run_length(slots: &[SlotContent]) -> usize {
    let follows = |index: usize| match (slots[0], slots[index]) {
        (SlotContent::Empty, SlotContent::Empty) | (SlotContent::Zero, SlotContent::Zero) => true,
        (SlotContent::Full(first), SlotContent::Full(next)) if first.is_lost() => next.is_lost(),
        (SlotContent::Full(first), SlotContent::Full(next)) => {
            next.get().checked_sub(first.get()) == Some(index as u64)
        }
        _ => false,
    };
    (1..slots.len())
        .find(|index| !follows(*index))
        .unwrap_or(slots.len())
}

fn encode_partial(out: &mut Writer, cluster: Option<Cluster>, written: Granules, zero: Granules) {
    let (written, zero) = (Bitmap::new(written), Bitmap::new(zero));
    out.varint((written.length as u64) << 2 | PARTIAL);
    out.u8(zero.length as u8);
    if written.length > 0 {
        out.varint(cluster.map_or(0, stored));
    }
    out.bytes(&written.bytes[..written.length]);
    out.bytes(&zero.bytes[..zero.length]);
}

fn decode_partial(
    fields: &mut Reader<'_>,
    slot: usize,
    written_bytes: u64,
    granularity: Granularity,
    clusters: u64,
) -> Result<SlotContent, FormatError> {
    let zero_bytes = fields.u8("length of a zero bitmap")?;
    let cluster = match written_bytes {
        0 => None,
        _ => Some(cluster_below(fields.varint("cluster")?, clusters, slot)?),
    };
    let written = read_bitmap(fields, written_bytes)?;
    let zero = read_bitmap(fields, zero_bytes.into())?;
    let wrong = |rule| Err(FormatError::Slot { slot, rule });
    if written.intersects(zero) {
        return wrong("a granule is both written and zero");
    }
    if !Granules::from(granularity.whole()).contains(written.or(zero)) {
        return wrong("a granule is past the end of the cluster");
    }
    Ok(SlotContent::Partial {
        cluster,
        written,
        zero,
    })
}

/// Lost data have the number of the header, where no data lie.
fn stored(cluster: Cluster) -> u64 {
    if cluster.is_lost() { 0 } else { cluster.get() }
}

fn cluster_below(number: u64, clusters: u64, slot: usize) -> Result<Cluster, FormatError> {
    if number == 0 {
        return Ok(Cluster::LOST);
    }
    Cluster::new(number)
        .filter(|_| number < clusters)
        .ok_or(FormatError::Slot {
            slot,
            rule: "its cluster is not one of the pool's data clusters",
        })
}

/// A cluster belongs to one slot.
fn check_clusters_differ(slots: &[SlotContent; PIECE_SLOTS]) -> Result<(), FormatError> {
    let mut owners = [(0, 0); PIECE_SLOTS];
    let mut count = 0;
    for (slot, content) in slots.iter().enumerate() {
        if let Some(cluster) = content.data_cluster() {
            owners[count] = (cluster.get(), slot);
            count += 1;
        }
    }
    owners[..count].sort_unstable();
    match owners[..count]
        .windows(2)
        .find(|pair| pair[0].0 == pair[1].0)
    {
        Some(pair) => Err(FormatError::Slot {
            slot: pair[1].1,
            rule: "its cluster is that of another slot",
        }),
        None => Ok(()),
    }
}

/// A set of granules as bytes, without zero bytes at the end.
struct Bitmap {
    bytes: [u8; BITMAP_BYTES],
    length: usize,
}

impl Bitmap {
    fn new(set: Granules) -> Self {
        let mut bytes = [0; BITMAP_BYTES];
        for (out, word) in bytes.chunks_exact_mut(8).zip(set.words()) {
            out.copy_from_slice(&word.to_le_bytes());
        }
        let length = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        Self { bytes, length }
    }
}

fn read_bitmap(fields: &mut Reader<'_>, length: u64) -> Result<Granules, FormatError> {
    if length > BITMAP_BYTES as u64 {
        return Err(fields.wrong("length of a bitmap", length, "must be at most 32 bytes"));
    }
    let bytes = fields.bytes("bitmap", length as usize)?;
    if bytes.last() == Some(&0) {
        return Err(fields.wrong(
            "last byte of a bitmap",
            0,
            "zero bytes at the end are left out",
        ));
    }
    let mut words = [0; BITMAP_BYTES / 8];
    for (index, byte) in bytes.iter().enumerate() {
        words[index / 8] |= u64::from(*byte) << (index % 8 * 8);
    }
    Ok(Granules::from_words(words))
}

#[cfg(test)]
mod tests;
