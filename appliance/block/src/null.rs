//! [`Null`]: takes every write, reads as zeroes. For measuring everything but a device.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use dma::{BackingPreference, Payload, Region, RegionOptions};

use crate::BlockError;
use crate::device::{BlockDevice, Channel, ChannelContext, Geometry, unsupported};
use crate::io::{Completion, Io, IoError, Op, Submit};

/// How to make a [`Null`].
#[derive(Clone, Copy, Debug)]
pub struct NullOptions {
    /// Bytes per block: 512 or 4096.
    pub block_size: u32,
    /// Number of blocks.
    pub block_count: u64,
}

/// Longest read without payload, and longest transfer told in the geometry.
const ZEROES_BYTES: usize = 1 << 20;

/// Never written, so the system backs all of it with its one zero page. Shared by all null devices.
static ZEROES: Mutex<Weak<Region>> = Mutex::new(Weak::new());

/// A device of any size that keeps nothing.
#[derive(Debug)]
pub struct Null {
    block_size: u32,
    block_count: Mutex<u64>,
    zeroes: Arc<Region>,
}

impl Null {
    /// Makes the device.
    ///
    /// # Errors
    /// An impossible size, or no memory for the page of zeroes that is lent.
    pub fn new(options: NullOptions) -> Result<Arc<Self>, BlockError> {
        Geometry::check_size(options.block_size, options.block_count)?;
        let zeroes = zeroes()?;
        let block_count = Mutex::new(options.block_count);
        Ok(Arc::new(Self {
            block_size: options.block_size,
            block_count,
            zeroes,
        }))
    }
}

fn zeroes() -> Result<Arc<Region>, BlockError> {
    let mut shared = ZEROES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(region) = shared.upgrade() {
        return Ok(region);
    }
    let options = RegionOptions {
        len: ZEROES_BYTES,
        backing: BackingPreference::Plain4K,
        ..RegionOptions::default()
    };
    let region = Region::allocate(&options).map_err(|source| BlockError::Memory {
        kind: "null",
        len_bytes: ZEROES_BYTES as u64,
        source,
    })?;
    *shared = Arc::downgrade(&region);
    Ok(region)
}

impl BlockDevice for Null {
    fn kind(&self) -> &'static str {
        "null"
    }

    fn geometry(&self) -> Geometry {
        let block_count = *self
            .block_count
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Geometry {
            max_transfer_blocks: ZEROES_BYTES as u32 / self.block_size,
            ..Geometry::new(self.block_size, block_count)
        }
    }

    fn open_channel(&self, _ctx: &ChannelContext) -> Result<Box<dyn Channel>, BlockError> {
        let block_shift = self.block_size.trailing_zeros();
        Ok(Box::new(NullChannel {
            zeroes: Arc::clone(&self.zeroes),
            block_shift,
        }))
    }

    fn resize(&self, block_count: u64) -> Result<(), BlockError> {
        Geometry::check_size(self.block_size, block_count)?;
        *self
            .block_count
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = block_count;
        Ok(())
    }
}

struct NullChannel {
    zeroes: Arc<Region>,
    block_shift: u32,
}

impl NullChannel {
    fn read(&self, io: &mut Io) -> Result<(), IoError> {
        match &mut io.payload {
            Payload::None => {
                let len = (io.blocks as usize) << self.block_shift;
                if len > self.zeroes.len() {
                    return Err(IoError::InvalidField);
                }
                io.payload = Payload::Lent(self.zeroes.lend(0, len));
            }
            Payload::Buf(buf) => {
                buf.try_as_mut_slice().ok_or(IoError::InvalidField)?.fill(0);
            }
            Payload::Lent(_) => return Err(IoError::InvalidField),
        }
        Ok(())
    }
}

/// Everything on the device is zero.
fn compare(payload: &Payload) -> Result<(), IoError> {
    let mut piece = [0; 512];
    for at in (0..payload.len()).step_by(piece.len()) {
        let piece = &mut piece[..(payload.len() - at).min(512)];
        payload.copy_range_to(at, piece);
        if let Some(position) = piece.iter().position(|byte| *byte != 0) {
            let offset_bytes = u32::try_from(at + position).unwrap_or(u32::MAX);
            return Err(IoError::CompareMismatch { offset_bytes });
        }
    }
    Ok(())
}

impl Channel for NullChannel {
    #[inline]
    fn submit(&mut self, mut io: Io, _now: Instant) -> Submit {
        let result = match io.op {
            Op::Read => self.read(&mut io),
            Op::Compare => compare(&io.payload),
            Op::CompareAndWrite { .. } => return unsupported(io),
            Op::Write { .. }
            | Op::Flush
            | Op::Unmap
            | Op::WriteZeroes { .. }
            | Op::Verify
            | Op::Reset => Ok(()),
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
