//! The superblock: what a pool is, and where its metadata lies.
//!
//! Two copies of 4 KiB in cluster 0, written alternately, each followed by a FLUSH: a write that a
//! power cut tears leaves the other. The newer valid one counts.

use super::FormatError;
use super::value::crc32c;
use crate::map::{Cluster, Granularity};

/// Bytes of a copy.
pub const SUPERBLOCK_BYTES: usize = 4096;
/// Where the copies lie on the device, bytes.
pub const SUPERBLOCK_OFFSETS: [u64; 2] = [0, 32768];
/// Longest name of a pool, bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Most metadata extents.
pub const EXTENTS_MAX: usize = 200;

/// First bytes of a copy.
pub(super) const MAGIC: &[u8; 8] = b"ADITPOOL";
/// The format that this program writes, and the newest that it knows.
const VERSION: u32 = 2;
/// Least format that a program must know to use a pool that this one writes: one that does not know the log
/// would lose what is in it.
const MIN_READER: u32 = 2;
/// The first format with a log.
const VERSION_WITH_LOG: u32 = 2;

const RECORD: &str = "superblock";
const FLAG_CLEAN: u32 = 1;

/// Offsets of the fields, bytes. Magic, versions, sequence and checksum stay in all formats.
mod at {
    pub(super) const VERSION: usize = 8;
    pub(super) const MIN_READER: usize = 12;
    pub(super) const SEQUENCE: usize = 16;
    pub(super) const UUID: usize = 24;
    pub(super) const CLUSTERS: usize = 40;
    pub(super) const CLUSTER_SIZE: usize = 48;
    pub(super) const BLOCK_SIZE: usize = 52;
    pub(super) const FLAGS: usize = 56;
    pub(super) const EXTENT_COUNT: usize = 60;
    pub(super) const NAME_BYTES: usize = 62;
    pub(super) const NAME: usize = 64;
    pub(super) const EXTENTS: usize = 320;
    pub(super) const LOG: usize = 3520;
    pub(super) const BOOT_ID: usize = 3536;
    pub(super) const UNUSED: usize = 3552;
    pub(super) const CHECKSUM: usize = 4092;
}
/// Bytes of an extent in the table.
const EXTENT_BYTES: usize = 16;

/// What a pool is, and where its metadata lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Grows by one with each write: the newer copy has the larger.
    pub sequence: u64,
    /// Identity of the pool.
    pub pool_uuid: [u8; 16],
    /// Name of the pool: 1 to [`NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// Sizes of clusters and granules.
    pub granularity: Granularity,
    /// Logical block size of the device when the pool was made: 512 or 4096.
    pub block_size: u32,
    /// All clusters, the header included.
    pub clusters: u64,
    /// The pool was closed in order.
    pub clean: bool,
    /// Where the metadata database lies, in its order.
    pub metadata: Vec<Extent>,
    /// Where the log of first writes lies. None in pools of format 1, until they are opened.
    pub log: Option<Extent>,
    /// Which boot of which machine opened the pool last; zeroes if nobody knows. The device has had power
    /// since then if it is the same still.
    pub boot_id: [u8; 16],
}

/// Consecutive clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Number of the first.
    pub start: u64,
    /// How many.
    pub clusters: u64,
}

impl Superblock {
    /// A copy's bytes. The caller has been through [`Self::check`]: what does not fit is cut off,
    /// and the bytes do not decode.
    #[must_use]
    pub fn encode(&self) -> Box<[u8; SUPERBLOCK_BYTES]> {
        let mut out = Box::new([0; SUPERBLOCK_BYTES]);
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(at::VERSION, &VERSION.to_le_bytes());
        put(at::MIN_READER, &MIN_READER.to_le_bytes());
        put(at::SEQUENCE, &self.sequence.to_le_bytes());
        put(at::UUID, &self.pool_uuid);
        put(at::CLUSTERS, &self.clusters.to_le_bytes());
        let cluster_size = self.granularity.cluster_size() as u32;
        put(at::CLUSTER_SIZE, &cluster_size.to_le_bytes());
        put(at::BLOCK_SIZE, &self.block_size.to_le_bytes());
        let flags = if self.clean { FLAG_CLEAN } else { 0 };
        put(at::FLAGS, &flags.to_le_bytes());
        let extents = u16::try_from(self.metadata.len()).unwrap_or(u16::MAX);
        put(at::EXTENT_COUNT, &extents.to_le_bytes());
        // A name that is too long gets length 0, which does not decode.
        let name = self.name.as_bytes();
        let name = if name.len() > NAME_BYTES_MAX {
            &[]
        } else {
            name
        };
        put(at::NAME_BYTES, &[name.len() as u8]);
        put(at::NAME, name);
        for (index, extent) in self.metadata.iter().take(EXTENTS_MAX).enumerate() {
            let entry = at::EXTENTS + index * EXTENT_BYTES;
            put(entry, &extent.start.to_le_bytes());
            put(entry + 8, &extent.clusters.to_le_bytes());
        }
        if let Some(log) = self.log {
            put(at::LOG, &log.start.to_le_bytes());
            put(at::LOG + 8, &log.clusters.to_le_bytes());
        }
        put(at::BOOT_ID, &self.boot_id);
        let sum = crc32c(&out[..at::CHECKSUM]);
        out[at::CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Can a pool be so? What passes encodes and decodes to itself.
    ///
    /// # Errors
    /// [`FormatError::Field`] and [`FormatError::Extent`] tell what cannot be.
    pub fn check(&self) -> Result<(), FormatError> {
        let wrong = |field, value, rule| {
            Err(FormatError::Field {
                record: RECORD,
                field,
                value,
                rule,
            })
        };
        if !(1..=NAME_BYTES_MAX).contains(&self.name.len()) {
            let rule = "a pool's name has 1 to 255 bytes";
            return wrong("a name length", self.name.len() as u64, rule);
        }
        if !matches!(self.block_size, 512 | 4096) {
            let rule = "blocks have 512 or 4096 bytes";
            return wrong("a block size", self.block_size.into(), rule);
        }
        let bytes = self.clusters.checked_mul(self.granularity.cluster_size());
        if bytes.is_none() || self.clusters > Cluster::MAX {
            return wrong("a cluster count", self.clusters, "no device is so large");
        }
        if self.clusters == 0 {
            return wrong("a cluster count", 0, "the header is a cluster");
        }
        if self.metadata.len() > EXTENTS_MAX {
            let count = self.metadata.len() as u64;
            return wrong("an extent count", count, "at most 200 fit");
        }
        self.check_extents()
    }

    /// Inside the device, past the header, apart from each other. So they also fit together. The log's has
    /// the number after those of the metadata.
    fn check_extents(&self) -> Result<(), FormatError> {
        let extents = self.metadata.iter().chain(&self.log);
        let mut sorted: Vec<(usize, Extent)> = extents.copied().enumerate().collect();
        sorted.sort_unstable_by_key(|(_, extent)| extent.start);
        let mut free_from = 1;
        for (index, extent) in sorted {
            let Extent { start, clusters } = extent;
            let end = start
                .checked_add(clusters)
                .filter(|end| *end <= self.clusters);
            let rule = match end {
                _ if clusters == 0 => "it is empty",
                _ if start == 0 => "cluster 0 is the header",
                _ if start < free_from => "it overlaps another",
                None => "it reaches past the end of the pool",
                Some(end) => {
                    free_from = end;
                    continue;
                }
            };
            return Err(FormatError::Extent {
                index,
                start,
                clusters,
                rule,
            });
        }
        Ok(())
    }

    /// The superblock of a copy's bytes, of which there may be more.
    ///
    /// # Errors
    /// [`FormatError::Magic`] if there is none, [`FormatError::TooNew`] if it is sound and needs a
    /// newer program, others if it is damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = sealed(bytes)?;
        let version = u32_at(bytes, at::VERSION);
        let min_reader = u32_at(bytes, at::MIN_READER);
        if version > VERSION && min_reader > VERSION {
            return Err(FormatError::TooNew {
                version,
                min_reader,
                known: VERSION,
            });
        }
        let wrong = |field, value: u64, rule| FormatError::Field {
            record: RECORD,
            field,
            value,
            rule,
        };
        if version == 0 || min_reader == 0 || min_reader > version {
            return Err(wrong(
                "a reader version",
                min_reader.into(),
                "versions must be 1 or more, readers' not the larger",
            ));
        }
        let flags = u32_at(bytes, at::FLAGS);
        let extents = usize::from(u16::from_le_bytes(array_at(bytes, at::EXTENT_COUNT)));
        if extents > EXTENTS_MAX {
            return Err(wrong("an extent count", extents as u64, "at most 200 fit"));
        }
        let name_bytes = usize::from(bytes[at::NAME_BYTES]);
        if version <= VERSION {
            if flags & !FLAG_CLEAN != 0 {
                return Err(wrong("flags", flags.into(), "this format has one flag"));
            }
            check_unused(bytes, version, name_bytes, extents)?;
        }
        let has_log = version >= VERSION_WITH_LOG;
        let log = Extent {
            start: u64_at(bytes, at::LOG),
            clusters: u64_at(bytes, at::LOG + 8),
        };
        let no_log = Extent {
            start: 0,
            clusters: 0,
        };
        let name = std::str::from_utf8(&bytes[at::NAME..at::NAME + name_bytes]);
        let granularity = Granularity::new(u32_at(bytes, at::CLUSTER_SIZE).into());
        let superblock = Self {
            sequence: u64_at(bytes, at::SEQUENCE),
            pool_uuid: array_at(bytes, at::UUID),
            name: name
                .map_err(|_| FormatError::Text {
                    record: RECORD,
                    field: "name",
                })?
                .to_owned(),
            granularity: granularity.map_err(FormatError::Granularity)?,
            block_size: u32_at(bytes, at::BLOCK_SIZE),
            clusters: u64_at(bytes, at::CLUSTERS),
            clean: flags & FLAG_CLEAN != 0,
            metadata: (0..extents)
                .map(|index| at::EXTENTS + index * EXTENT_BYTES)
                .map(|entry| Extent {
                    start: u64_at(bytes, entry),
                    clusters: u64_at(bytes, entry + 8),
                })
                .collect(),
            log: (has_log && log != no_log).then_some(log),
            boot_id: if has_log {
                array_at(bytes, at::BOOT_ID)
            } else {
                [0; 16]
            },
        };
        superblock.check()?;
        Ok(superblock)
    }

    /// The newer valid one of the two copies, and its index.
    ///
    /// # Errors
    /// If none is valid, the error of the copy that is nearer to be. [`FormatError::TooNew`] also
    /// if the newer copy needs a newer program: what the older one says holds no more.
    /// [`FormatError::TwoPools`] if they are of different pools.
    pub fn newest(copies: [&[u8]; 2]) -> Result<(Self, usize), FormatError> {
        let sequences =
            copies.map(|copy| sealed(copy).map_or(0, |bytes| u64_at(bytes, at::SEQUENCE)));
        match copies.map(Self::decode) {
            [Ok(first), Ok(second)] if first.pool_uuid != second.pool_uuid => {
                Err(FormatError::TwoPools)
            }
            [Ok(_), Ok(second)] if sequences[1] > sequences[0] => Ok((second, 1)),
            [Ok(first), Ok(_)] => Ok((first, 0)),
            [Ok(_), Err(error @ FormatError::TooNew { .. })] if sequences[1] > sequences[0] => {
                Err(error)
            }
            [Err(error @ FormatError::TooNew { .. }), Ok(_)] if sequences[0] > sequences[1] => {
                Err(error)
            }
            [Ok(first), Err(_)] => Ok((first, 0)),
            [Err(_), Ok(second)] => Ok((second, 1)),
            [Err(first), Err(second)] => Err(if nearness(&second) > nearness(&first) {
                second
            } else {
                first
            }),
        }
    }
}

/// Whether bytes are meant to be a superblock, damaged or not.
#[must_use]
pub fn is_superblock(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// How near to a superblock bytes with this error are.
fn nearness(error: &FormatError) -> u8 {
    match error {
        FormatError::Truncated { .. } => 0,
        FormatError::Magic => 1,
        FormatError::Checksum { .. } => 2,
        FormatError::TooNew { .. } => 4,
        _ => 3,
    }
}

/// A copy whose magic and checksum are right, of whatever version.
fn sealed(bytes: &[u8]) -> Result<&[u8; SUPERBLOCK_BYTES], FormatError> {
    if !bytes.starts_with(MAGIC) && bytes.len() >= MAGIC.len() {
        return Err(FormatError::Magic);
    }
    let bytes = bytes
        .first_chunk::<SUPERBLOCK_BYTES>()
        .ok_or(FormatError::Truncated {
            record: RECORD,
            field: "4096 bytes",
        })?;
    let stored = u32_at(bytes, at::CHECKSUM);
    let computed = crc32c(&bytes[..at::CHECKSUM]);
    if stored != computed {
        return Err(FormatError::Checksum {
            record: RECORD,
            stored,
            computed,
        });
    }
    Ok(bytes)
}

/// What a format does not use is zero.
fn check_unused(
    bytes: &[u8; SUPERBLOCK_BYTES],
    version: u32,
    name_bytes: usize,
    extents: usize,
) -> Result<(), FormatError> {
    let end = if version >= VERSION_WITH_LOG {
        at::UNUSED
    } else {
        at::LOG
    };
    let unused = [
        at::NAME_BYTES + 1..at::NAME,
        at::NAME + name_bytes..at::EXTENTS,
        at::EXTENTS + extents * EXTENT_BYTES..at::LOG,
        end..at::CHECKSUM,
    ];
    match unused.into_iter().flatten().find(|byte| bytes[*byte] != 0) {
        Some(byte) => Err(FormatError::Field {
            record: RECORD,
            field: "an unused byte",
            value: bytes[byte].into(),
            rule: "this format has zeroes there",
        }),
        None => Ok(()),
    }
}

fn array_at<const N: usize>(bytes: &[u8; SUPERBLOCK_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[at + index])
}

fn u32_at(bytes: &[u8; SUPERBLOCK_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8; SUPERBLOCK_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

#[cfg(test)]
mod tests;
