//! The format on the device: superblock, records, keys, and what else a device may hold.
//!
//! Pure functions over bytes, no I/O. All of it is untrusted when it is read: decoders check a
//! checksum first and every field after it, and end in a [`FormatError`], never in a panic.
//! `docs/pool-format.md` says the same for who reads a pool by hand.

mod error;
mod key;
mod log_page;
mod node;
mod piece;
mod probe;
mod record;
mod sums;
mod superblock;
mod value;

pub use error::FormatError;
pub use key::{
    POOL_KEY, chunk_key, layer_key, operation_key, parse_chunk_key, parse_layer_key,
    parse_operation_key, parse_piece_key, piece_key,
};
pub use log_page::{
    LogChange, LogEntry, LogHeader, decode_log_page, encode_log_page, log_entries_max,
};
pub use node::{
    NODE_GENERATION_KEY, decode_node_generation, decode_node_record, encode_node_generation,
    encode_node_record, is_node_key,
};
pub use piece::{decode_piece, encode_piece, salvage_piece};
pub use probe::{Found, PROBE_BYTES, PROBE_TAIL_BYTES, probe};
pub use record::{
    CHUNK_CLUSTERS, FreeChunk, LayerId, LayerRecord, LayerState, NameKind, NameRecord,
    OperationRecord, Parent, PoolRecord,
};
pub use sums::{SlotSum, SumsRecord, data_of, place_sum};
pub use superblock::{
    EXTENTS_MAX, Extent, NAME_BYTES_MAX, SUPERBLOCK_BYTES, SUPERBLOCK_OFFSETS, Superblock,
    is_superblock,
};
pub(crate) use value::Crc32c;
pub use value::value_checksum;
