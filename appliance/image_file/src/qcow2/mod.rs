//! qcow2, as docs/interop/qcow2 of QEMU tells: clusters of the disk, found by two levels of tables.

mod header;
mod reader;
mod writer;

pub(crate) use reader::Qcow2Reader;
pub(crate) use writer::Qcow2Writer;

/// The first bytes of every image: `QFI` and 0xfb.
const MAGIC: [u8; 4] = [0x51, 0x46, 0x49, 0xfb];
/// Bits of an entry that are an offset in the file.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// In an L1 or L2 entry: its refcount is exactly one.
const COPIED: u64 = 1 << 63;
/// In an L2 entry: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// In an L2 entry of version 3: the cluster is zeroes.
const ZERO: u64 = 1;

/// Is this how an image begins?
pub(crate) fn recognise(first: &[u8]) -> bool {
    first.starts_with(&MAGIC)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(field)
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(field)
}
