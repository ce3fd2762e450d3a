//! [`Malloc`]: a RAM device. Its memory is touched when first written, lent for reads, and gone with
//! the process.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use dma::{BackingPreference, Payload, Region, RegionOptions};

use crate::BlockError;
use crate::device::{BlockDevice, Channel, ChannelContext, Geometry, unsupported};
use crate::io::{Completion, Io, IoError, Op, Submit};

/// Zeroed in one go; more is split, so that a large unmap does not keep its thread for long.
const ZERO_BYTES_MAX: u32 = 1 << 20;

/// How to make a [`Malloc`].
#[derive(Clone, Debug)]
pub struct MallocOptions {
    /// Bytes per block: 512 or 4096.
    pub block_size: u32,
    /// Number of blocks.
    pub block_count: u64,
    /// Where the memory comes from. `Plain4K` takes a page when it is first written; hugepages are
    /// faster and taken at once.
    pub backing: BackingPreference,
    /// For ordinary memory: whether to ask for transparent hugepages. With them random access is
    /// faster, and memory is taken by 2 MiB where it is first written. `None`: as the system does.
    pub transparent_huge: Option<bool>,
    /// NUMA node of the memory.
    pub numa_node: Option<u32>,
}

impl MallocOptions {
    /// A device of `block_count` blocks in ordinary memory, taken as it is written.
    #[must_use]
    pub fn new(block_size: u32, block_count: u64) -> Self {
        Self {
            block_size,
            block_count,
            backing: BackingPreference::Plain4K,
            transparent_huge: Some(true),
            numa_node: None,
        }
    }
}

/// A RAM device. Shared by all threads; a write races a read of the same block as on a drive
/// without atomic writes: the reader may get old and new bytes.
#[derive(Debug)]
pub struct Malloc {
    options: MallocOptions,
    shared: Arc<Shared>,
    resizing: Mutex<()>,
}

#[derive(Debug)]
struct Shared {
    /// Locked when a channel opens, and once per channel after a resize.
    memory: RwLock<Arc<Memory>>,
}

impl Shared {
    fn memory(&self) -> Arc<Memory> {
        Arc::clone(&self.memory.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The extents that the device's bytes lie in, one after the other.
#[derive(Debug)]
struct Memory {
    len_bytes: u64,
    extents: Vec<Extent>,
}

#[derive(Clone, Debug)]
struct Extent {
    first_byte: u64,
    region: Arc<Region>,
}

impl Extent {
    fn end(&self) -> u64 {
        self.first_byte + self.region.len() as u64
    }
}

impl Malloc {
    /// Makes the device, reading as zeroes.
    ///
    /// # Errors
    /// An impossible size, or no memory.
    pub fn new(options: MallocOptions) -> Result<Arc<Self>, BlockError> {
        Geometry::check_size(options.block_size, options.block_count)?;
        let len_bytes = options.block_count * u64::from(options.block_size);
        let region = allocate(&options, len_bytes)?;
        let memory = Memory {
            len_bytes,
            extents: vec![Extent {
                first_byte: 0,
                region,
            }],
        };
        let shared = Arc::new(Shared {
            memory: RwLock::new(Arc::new(memory)),
        });
        Ok(Arc::new(Self {
            options,
            shared,
            resizing: Mutex::new(()),
        }))
    }
}

fn allocate(options: &MallocOptions, len_bytes: u64) -> Result<Arc<Region>, BlockError> {
    let region_options = RegionOptions {
        len: usize::try_from(len_bytes).unwrap_or(usize::MAX),
        backing: options.backing,
        numa_node: options.numa_node,
        transparent_huge: options.transparent_huge,
        ..RegionOptions::default()
    };
    Region::allocate(&region_options).map_err(|source| BlockError::Memory {
        kind: "malloc",
        len_bytes,
        source,
    })
}

impl BlockDevice for Malloc {
    fn kind(&self) -> &'static str {
        "malloc"
    }

    fn geometry(&self) -> Geometry {
        let block_size = self.options.block_size;
        let block_count = self.shared.memory().len_bytes / u64::from(block_size);
        Geometry {
            unmap_granularity_blocks: (4096 / block_size).max(1),
            max_unmap_blocks: ZERO_BYTES_MAX / block_size,
            ..Geometry::new(block_size, block_count)
        }
    }

    fn open_channel(&self, _ctx: &ChannelContext) -> Result<Box<dyn Channel>, BlockError> {
        Ok(Box::new(MallocChannel {
            memory: self.shared.memory(),
            shared: Arc::clone(&self.shared),
            block_shift: self.options.block_size.trailing_zeros(),
        }))
    }

    fn resize(&self, block_count: u64) -> Result<(), BlockError> {
        Geometry::check_size(self.options.block_size, block_count)?;
        let len_bytes = block_count * u64::from(self.options.block_size);
        let _resizing = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.shared.memory();
        let mut extents = current.extents.clone();
        let reserved = extents.last().map_or(0, Extent::end);
        // Blocks that leave or come back read as zeroes when they come back.
        let from = current.len_bytes.min(len_bytes);
        for extent in &extents {
            let start = from.max(extent.first_byte);
            if start < extent.end() {
                let offset = (start - extent.first_byte) as usize;
                extent.region.discard(offset, extent.region.len() - offset);
            }
        }
        if len_bytes > reserved {
            // Ordinary memory costs nothing until touched: at least double, so that the number of
            // extents stays small however often a device grows.
            let wanted = len_bytes - reserved;
            let generous = wanted.max(reserved);
            let region = match self.options.backing {
                BackingPreference::Plain4K => allocate(&self.options, generous)
                    .or_else(|_| allocate(&self.options, wanted))?,
                _ => allocate(&self.options, wanted)?,
            };
            extents.push(Extent {
                first_byte: reserved,
                region,
            });
        }
        let memory = Arc::new(Memory { len_bytes, extents });
        *self
            .shared
            .memory
            .write()
            .unwrap_or_else(PoisonError::into_inner) = memory;
        Ok(())
    }
}

/// A thread's view of the memory: no lock until the device grows.
struct MallocChannel {
    memory: Arc<Memory>,
    shared: Arc<Shared>,
    block_shift: u32,
}

impl MallocChannel {
    /// The byte range of an I/O.
    fn range(&mut self, io: &Io) -> Result<(u64, usize), IoError> {
        let len = (io.blocks as usize) << self.block_shift;
        let first_byte = io.lba.0 << self.block_shift;
        if first_byte + len as u64 > self.memory.len_bytes {
            self.memory = self.shared.memory();
            if first_byte + len as u64 > self.memory.len_bytes {
                return Err(IoError::OutOfRange);
            }
        }
        Ok((first_byte, len))
    }

    fn run(&mut self, io: &mut Io) -> Result<(), IoError> {
        let (first_byte, len) = self.range(io)?;
        match io.op {
            Op::Read => self.read(first_byte, len, &mut io.payload),
            Op::Write { .. } => self.write(first_byte, &io.payload),
            Op::Unmap | Op::WriteZeroes { unmap: true, .. } => {
                self.pieces(first_byte, len, |region, offset, _, n| {
                    region.discard(offset, n);
                });
                Ok(())
            }
            Op::WriteZeroes { .. } => {
                self.pieces(first_byte, len, |region, offset, _, n| {
                    region.zero(offset, n);
                });
                Ok(())
            }
            Op::Compare => self.compare(first_byte, &io.payload),
            Op::Verify => Ok(()),
            Op::CompareAndWrite { .. } | Op::Flush | Op::Reset => Err(IoError::Unsupported),
        }
    }

    /// Calls `f(region, offset in it, offset in the range, length)` for each extent in the range.
    #[inline]
    fn pieces(
        &self,
        first_byte: u64,
        len: usize,
        mut f: impl FnMut(&Arc<Region>, usize, usize, usize),
    ) {
        let mut done = 0;
        for extent in &self.memory.extents {
            let at = first_byte + done as u64;
            if at >= extent.end() {
                continue;
            }
            let offset = (at - extent.first_byte) as usize;
            let n = (len - done).min(extent.region.len() - offset);
            f(&extent.region, offset, done, n);
            done += n;
            if done == len {
                break;
            }
        }
    }

    #[inline]
    fn read(&self, first_byte: u64, len: usize, payload: &mut Payload) -> Result<(), IoError> {
        match payload {
            Payload::Buf(buf) => {
                let bytes = buf.try_as_mut_slice().ok_or(IoError::InvalidField)?;
                self.pieces(first_byte, len, |region, offset, from, n| {
                    region.read_at(offset, &mut bytes[from..from + n]);
                });
                Ok(())
            }
            Payload::None => {
                *payload = self.lend(first_byte, len)?;
                Ok(())
            }
            Payload::Lent(_) => Err(IoError::InvalidField),
        }
    }

    #[inline]
    fn lend(&self, first_byte: u64, len: usize) -> Result<Payload, IoError> {
        let mut extents = self.memory.extents.iter();
        let extent = extents
            .find(|extent| first_byte < extent.end())
            .ok_or(IoError::OutOfRange)?;
        let offset = (first_byte - extent.first_byte) as usize;
        if offset + len <= extent.region.len() {
            return Ok(Payload::Lent(extent.region.lend(offset, len)));
        }
        self.lend_copy(first_byte, len)
    }

    /// A range across two extents, so only on a device that has grown, is copied together.
    #[cold]
    fn lend_copy(&self, first_byte: u64, len: usize) -> Result<Payload, IoError> {
        let options = RegionOptions {
            len,
            backing: BackingPreference::Plain4K,
            ..RegionOptions::default()
        };
        let copy = Region::allocate(&options).map_err(|_| IoError::Internal)?;
        let mut bytes = vec![0; len];
        self.pieces(first_byte, len, |region, offset, from, n| {
            region.read_at(offset, &mut bytes[from..from + n]);
        });
        copy.write_at(0, &bytes);
        Ok(Payload::Lent(copy.lend(0, len)))
    }

    #[inline]
    fn write(&self, first_byte: u64, payload: &Payload) -> Result<(), IoError> {
        match payload {
            Payload::Buf(buf) => {
                let bytes = buf.as_slice();
                self.pieces(first_byte, bytes.len(), |region, offset, from, n| {
                    region.write_at(offset, &bytes[from..from + n]);
                });
                Ok(())
            }
            Payload::Lent(_) => {
                for_each_lent_piece(payload, |from, piece| {
                    self.pieces(
                        first_byte + from as u64,
                        piece.len(),
                        |region, offset, from, n| {
                            region.write_at(offset, &piece[from..from + n]);
                        },
                    );
                    true
                });
                Ok(())
            }
            Payload::None => Err(IoError::InvalidField),
        }
    }

    fn compare(&self, first_byte: u64, payload: &Payload) -> Result<(), IoError> {
        let mut differs = None;
        let mut compare = |at: usize, bytes: &[u8]| {
            self.pieces(
                first_byte + at as u64,
                bytes.len(),
                |region, offset, from, n| {
                    if differs.is_none() {
                        let position = region.compare_at(offset, &bytes[from..from + n]);
                        differs = position.map(|position| at + from + position);
                    }
                },
            );
            differs.is_none()
        };
        match payload {
            Payload::Buf(buf) => {
                compare(0, buf.as_slice());
            }
            Payload::Lent(_) => for_each_lent_piece(payload, compare),
            Payload::None => return Err(IoError::InvalidField),
        }
        match differs {
            None => Ok(()),
            Some(at) => {
                let offset_bytes = u32::try_from(at).unwrap_or(u32::MAX);
                Err(IoError::CompareMismatch { offset_bytes })
            }
        }
    }
}

/// Copies lent memory out piece by piece, as no reference to it can be had; `f(offset, bytes)` tells
/// whether to go on.
fn for_each_lent_piece(payload: &Payload, mut f: impl FnMut(usize, &[u8]) -> bool) {
    let mut piece = [0; 4096];
    let mut at = 0;
    while at < payload.len() {
        let n = piece.len().min(payload.len() - at);
        payload.copy_range_to(at, &mut piece[..n]);
        if !f(at, &piece[..n]) {
            break;
        }
        at += n;
    }
}

impl Channel for MallocChannel {
    #[inline]
    fn submit(&mut self, mut io: Io, _now: Instant) -> Submit {
        let result = match io.op {
            // What is written is as durable as it will ever be.
            Op::Flush | Op::Reset => Ok(()),
            Op::CompareAndWrite { .. } => return unsupported(io),
            _ => self.run(&mut io),
        };
        Submit::Done(io.complete(result))
    }

    fn poll(&mut self, _now: Instant, _done: &mut Vec<Completion>) -> usize {
        0
    }

    fn lends(&self) -> bool {
        true
    }

    fn in_flight(&self) -> usize {
        0
    }
}
