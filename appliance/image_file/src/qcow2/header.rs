//! The header.

use super::{be32, be64, recognise};

/// Bytes of it that are looked at.
pub(super) const HEADER_BYTES: usize = 112;
/// Bytes of the header of version 2.
const V2_BYTES: u32 = 72;
/// Least bytes of the header of version 3.
const V3_BYTES: u32 = 104;
/// Largest disk: that of a volume.
const SIZE_MAX: u64 = 1 << 60;

/// Incompatible features.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// What a reader needs of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    /// Bytes of the disk.
    pub(super) size: u64,
    pub(super) l1_offset: u64,
    /// Entries of L1 that the disk needs; the table may have more.
    pub(super) l1_entries: u64,
    /// Where the name of the backing file is, and its bytes.
    pub(super) backing: Option<(u64, u32)>,
}

/// Why a header is none that is read here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Problem {
    Damaged(String),
    Unsupported(String, &'static str),
}

const CONVERT: &str = "convert it with qemu-img convert first";

fn damaged<T>(problem: impl Into<String>) -> Result<T, Problem> {
    Err(Problem::Damaged(problem.into()))
}

fn unsupported<T>(what: impl Into<String>) -> Result<T, Problem> {
    Err(Problem::Unsupported(what.into(), CONVERT))
}

impl Header {
    /// The header of a file of `file_len` bytes that begins with these.
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES], file_len: u64) -> Result<Self, Problem> {
        if !recognise(bytes) {
            return damaged("it does not begin as a qcow2 image does");
        }
        if file_len < u64::from(V2_BYTES) {
            return damaged("it ends within its header");
        }
        let version = be32(bytes, 4);
        match version {
            2 => {}
            3 => check_features(bytes, file_len)?,
            other => return unsupported(format!("version {other} of qcow2")),
        }
        let cluster_bits = be32(bytes, 20);
        if !(9..=21).contains(&cluster_bits) {
            return damaged(format!("clusters of 2^{cluster_bits} bytes"));
        }
        let size = be64(bytes, 24);
        if size > SIZE_MAX {
            return damaged(format!("a disk of {size} bytes"));
        }
        match be32(bytes, 32) {
            0 => {}
            _ => return unsupported("encryption"),
        }
        let cluster_size = 1_u64 << cluster_bits;
        // An L2 table is a cluster of 8-byte entries.
        let l1_entries = size.div_ceil(cluster_size * (cluster_size / 8));
        let (l1_size, l1_offset) = (u64::from(be32(bytes, 36)), be64(bytes, 40));
        if l1_size < l1_entries {
            return damaged(format!(
                "its L1 table has {l1_size} entries and needs {l1_entries}"
            ));
        }
        let l1_end = l1_offset.checked_add(l1_entries * 8);
        let is_inside = l1_end.is_some_and(|end| end <= file_len);
        if l1_entries > 0
            && (!l1_offset.is_multiple_of(cluster_size) || l1_offset == 0 || !is_inside)
        {
            return damaged(format!("its L1 table cannot be at {l1_offset}"));
        }
        let (backing_offset, backing_bytes) = (be64(bytes, 8), be32(bytes, 16));
        Ok(Self {
            version,
            cluster_bits,
            size,
            l1_offset,
            l1_entries,
            backing: (backing_offset != 0).then_some((backing_offset, backing_bytes)),
        })
    }
}

fn check_features(bytes: &[u8; HEADER_BYTES], file_len: u64) -> Result<(), Problem> {
    let header_length = be32(bytes, 100);
    if header_length < V3_BYTES || u64::from(header_length) > file_len {
        return damaged(format!("a header of {header_length} bytes"));
    }
    let refcount_order = be32(bytes, 96);
    if refcount_order > 6 {
        return damaged(format!("refcounts of 2^{refcount_order} bits"));
    }
    let features = be64(bytes, 72);
    if features & CORRUPT != 0 {
        return damaged("it is marked as corrupt");
    }
    if features & EXTERNAL_DATA != 0 {
        return unsupported("its data in another file");
    }
    if features & EXTENDED_L2 != 0 {
        return unsupported("subclusters");
    }
    if features & COMPRESSION_TYPE != 0 && header_length > V3_BYTES && bytes[104] != 0 {
        return unsupported(format!("compression of type {}, not deflate", bytes[104]));
    }
    let known = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;
    if features & !known != 0 {
        return unsupported(format!(
            "features {:#x} that nobody here knows",
            features & !known
        ));
    }
    Ok(())
}
