//! The error of the control plane of this crate.

use std::io;
use std::path::PathBuf;

use uuid::Uuid;

/// Why a device, a channel or a registry entry could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// A block size that no device here offers.
    #[error("block size {block_size} is not supported: use 512 or 4096")]
    BlockSize {
        /// The size asked for, bytes.
        block_size: u32,
    },
    /// A device of no blocks, or of more bytes than a file offset can tell.
    #[error(
        "{block_count} blocks of {block_size} bytes: a device has at least 1 block and at most 2^63 - 1 bytes"
    )]
    BlockCount {
        /// Blocks asked for.
        block_count: u64,
        /// Bytes per block.
        block_size: u32,
    },
    /// An option outside its range.
    #[error("option {option} is {value}: {expected}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// What was given.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// Memory of the device could not be had.
    #[error("cannot get {len_bytes} bytes of memory for a {kind} device")]
    Memory {
        /// Kind of the device.
        kind: &'static str,
        /// Bytes asked for.
        len_bytes: u64,
        /// The cause.
        #[source]
        source: dma::DmaError,
    },
    /// A channel got no buffers of its own.
    #[error("no buffers for a channel of a {kind} device")]
    Buffers {
        /// Kind of the device.
        kind: &'static str,
        /// The cause.
        #[source]
        source: dma::DmaError,
    },
    /// The file could not be opened.
    #[error("cannot open {path}")]
    OpenFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is not there and was not asked to be created.
    #[error("{path} does not exist: give a size to create it")]
    FileMissing {
        /// The file.
        path: PathBuf,
    },
    /// The path names neither a regular file nor a block device.
    #[error("{path} is neither a regular file nor a block device")]
    FileType {
        /// The file.
        path: PathBuf,
    },
    /// Another process, or another device of this one, has the file.
    #[error("{path} is in use by another device or process (it holds the file's lock)")]
    FileInUse {
        /// The file.
        path: PathBuf,
    },
    /// The file has another size than the one asked for.
    #[error(
        "{path} holds {actual_bytes} bytes, not the {asked_bytes} asked for: leave the size out or resize it"
    )]
    FileSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        actual_bytes: u64,
        /// The size asked for.
        asked_bytes: u64,
    },
    /// The file holds less than one block.
    #[error("{path} holds {actual_bytes} bytes, less than one block of {block_size}")]
    FileTooSmall {
        /// The file.
        path: PathBuf,
        /// Its size.
        actual_bytes: u64,
        /// Bytes per block.
        block_size: u32,
    },
    /// A call on the file failed.
    #[error("cannot {action} {path}")]
    FileCall {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No ring to drive the file device with.
    #[error("cannot set up io_uring for file devices: {hint}")]
    Ring {
        /// What to look at.
        hint: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The wake-up descriptor of a channel could not be made.
    #[error("cannot duplicate the ring's descriptor")]
    WakeFd {
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The device keeps its size.
    #[error("a {kind} device cannot be resized")]
    ResizeUnsupported {
        /// Kind of the device.
        kind: &'static str,
    },
    /// The device has no channel to give to the calling thread.
    #[error("cannot open a channel to {device}: {reason}")]
    Channel {
        /// The device.
        device: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The device cannot lose blocks.
    #[error("a {kind} device of {from_blocks} blocks cannot shrink to {to_blocks}")]
    ResizeShrink {
        /// Kind of the device.
        kind: &'static str,
        /// Its size.
        from_blocks: u64,
        /// The size asked for.
        to_blocks: u64,
    },
    /// A name that cannot be used.
    #[error("bdev name {name:?} is not usable: use 1 to 255 printable characters")]
    Name {
        /// The name.
        name: String,
    },
    /// The name, alias or UUID belongs to another bdev.
    #[error("bdev {key:?} exists already (as {owner:?})")]
    Exists {
        /// What was to be registered.
        key: String,
        /// The bdev that has it.
        owner: String,
    },
    /// No bdev of this name, alias or UUID.
    #[error("no bdev is called {key:?}")]
    NotFound {
        /// What was looked for.
        key: String,
    },
    /// No bdev with this UUID.
    #[error("no bdev has the uuid {uuid}")]
    UuidNotFound {
        /// What was looked for.
        uuid: Uuid,
    },
    /// The registry holds as many bdevs as it may.
    #[error("the registry holds {limit} bdevs already, its limit")]
    RegistryFull {
        /// The limit.
        limit: usize,
    },
    /// Someone else uses the bdev, in a way that does not go with the one asked for.
    #[error("bdev {name:?} is claimed by {owner}")]
    Claimed {
        /// The bdev.
        name: String,
        /// Who claims it.
        owner: String,
    },
    /// Channels are open.
    #[error("bdev {name:?} is open on {channels} channels: close them first")]
    Open {
        /// The bdev.
        name: String,
        /// How many channels are open.
        channels: usize,
    },
    /// The bdev was deleted or its device went away.
    #[error("bdev {name:?} is removed")]
    Removed {
        /// The bdev.
        name: String,
    },
}
