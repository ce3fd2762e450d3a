//! redb's storage on a [`MetadataDevice`]: writes gathered until redb asks for durability.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use fragile::Fragile;

use super::{METADATA_BLOCK_BYTES, MetadataDevice, PoolStoreError, PoolStoreStats};

const BLOCK: usize = METADATA_BLOCK_BYTES as usize;

/// Gathered bytes at which they are written before redb asks. That is allowed at any time: it asks for
/// no order but at a sync.
const GATHERED_MAX: usize = 8 << 20;

/// Longest single write to the device.
const WRITE_BYTES_MAX: usize = 1 << 20;

type Block = [u8; BLOCK];

/// The first thing that went wrong.
#[derive(Debug)]
pub(super) enum Fault {
    Device {
        operation: &'static str,
        offset: u64,
        source: io::Error,
    },
    NoSpace {
        wanted_bytes: u64,
        source: io::Error,
    },
}

impl Fault {
    /// What the device holds is not known any more.
    pub(super) fn is_write(&self) -> bool {
        matches!(self, Self::Device { operation, .. } if *operation != "read")
    }

    pub(super) fn into_error(self) -> PoolStoreError {
        match self {
            Self::Device {
                operation,
                offset,
                source,
            } => PoolStoreError::Device {
                operation,
                offset,
                source,
            },
            Self::NoSpace {
                wanted_bytes,
                source,
            } => PoolStoreError::NoSpace {
                wanted_bytes,
                source,
            },
        }
    }
}

/// One open database's way to the device.
#[derive(Debug)]
pub(super) struct Backend {
    device: Rc<dyn MetadataDevice>,
    /// What redb takes for the length of its file; at most that of the device.
    len: Cell<u64>,
    state: RefCell<State>,
    repaired: Cell<bool>,
}

#[derive(Debug, Default)]
struct State {
    /// Blocks by number, not yet written.
    gathered: BTreeMap<u64, Box<Block>>,
    /// Block 0, of which redb writes parts at each commit.
    header: Option<Box<Block>>,
    /// Something was written since the last flush.
    is_dirty: bool,
    fault: Option<Fault>,
    /// Nothing goes to the device any more: after a failed write or flush, or when told so.
    is_dead: bool,
    bytes_read: u64,
    bytes_written: u64,
    flushes: u64,
}

impl Backend {
    /// A new database begins with a file of no length, whatever the device holds. An old one takes all
    /// of the device: redb accepts more than it had.
    pub(super) fn new(device: Rc<dyn MetadataDevice>, create: bool) -> Self {
        let len = if create { 0 } else { device.len() };
        Self {
            device,
            len: Cell::new(len - len % METADATA_BLOCK_BYTES),
            state: RefCell::default(),
            repaired: Cell::new(false),
        }
    }

    pub(super) fn take_fault(&self) -> Option<Fault> {
        self.state.borrow_mut().fault.take()
    }

    pub(super) fn note_repair(&self) {
        self.repaired.set(true);
    }

    /// From here on nothing goes to the device.
    pub(super) fn stop(&self) {
        self.state.borrow_mut().is_dead = true;
    }

    pub(super) fn add_to(&self, stats: &mut PoolStoreStats) {
        let state = self.state.borrow();
        stats.database_bytes = self.len.get();
        stats.bytes_read = state.bytes_read;
        stats.bytes_written = state.bytes_written;
        stats.flushes = state.flushes;
        stats.repaired = self.repaired.get();
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.check(offset, out.len())?;
        let mut state = self.state.borrow_mut();
        let aligned =
            offset.is_multiple_of(METADATA_BLOCK_BYTES) && out.len().is_multiple_of(BLOCK);
        if !aligned {
            // redb reads parts of the header only.
            return pieces(offset, out.len(), |number, at, range| {
                let len = range.len();
                let block = self.load(&mut state, number)?;
                out[range].copy_from_slice(&block[at..at + len]);
                Ok(())
            });
        }
        self.read_blocks(&mut state, offset, out)?;
        let first = offset / METADATA_BLOCK_BYTES;
        let last = first + (out.len() / BLOCK) as u64;
        for (number, block) in state.gathered.range(first..last) {
            let at = (number - first) as usize * BLOCK;
            out[at..at + BLOCK].copy_from_slice(&**block);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check(offset, data.len())?;
        let mut state = self.state.borrow_mut();
        pieces(offset, data.len(), |number, at, range| {
            let mut block = if range.len() == BLOCK {
                Box::new([0; BLOCK])
            } else {
                self.load(&mut state, number)?
            };
            block[at..at + range.len()].copy_from_slice(&data[range]);
            if number == 0 {
                state.header = Some(block.clone());
            }
            state.gathered.insert(number, block);
            Ok(())
        })?;
        if state.gathered.len() * BLOCK >= GATHERED_MAX {
            self.write_gathered(&mut state)?;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        self.write_gathered(&mut state)?;
        if !state.is_dirty {
            return Ok(());
        }
        if let Err(source) = self.device.flush() {
            return Err(state.failed("flush", 0, source));
        }
        state.flushes += 1;
        state.is_dirty = false;
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.check_alive()?;
        if len > self.device.len() {
            let grown = self.device.grow(len);
            let long_enough = || {
                let short = || io::Error::other("the device stayed too short");
                (self.device.len() >= len).then_some(()).ok_or_else(short)
            };
            if let Err(source) = grown.and_then(|()| long_enough()) {
                let error = copy(&source);
                let wanted_bytes = len;
                state.fault.get_or_insert(Fault::NoSpace {
                    wanted_bytes,
                    source,
                });
                return Err(error);
            }
        }
        // What lay beyond the end must not come back to life.
        state
            .gathered
            .split_off(&len.div_ceil(METADATA_BLOCK_BYTES));
        self.len.set(len);
        Ok(())
    }

    /// Writes what was gathered, neighbours together.
    fn write_gathered(&self, state: &mut State) -> io::Result<()> {
        state.check_alive()?;
        let mut blocks = std::mem::take(&mut state.gathered).into_iter().peekable();
        let mut run: Vec<u8> = Vec::new();
        while let Some((number, block)) = blocks.next() {
            run.extend_from_slice(&*block);
            let goes_on = blocks.peek().is_some_and(|(next, _)| *next == number + 1);
            if goes_on && run.len() < WRITE_BYTES_MAX {
                continue;
            }
            let offset = (number + 1) * METADATA_BLOCK_BYTES - run.len() as u64;
            if let Err(source) = self.device.write(offset, &run) {
                return Err(state.failed("write", offset, source));
            }
            state.is_dirty = true;
            state.bytes_written += run.len() as u64;
            run.clear();
        }
        Ok(())
    }

    /// A block as it is now.
    fn load(&self, state: &mut State, number: u64) -> io::Result<Box<Block>> {
        if let Some(block) = state.gathered.get(&number) {
            return Ok(block.clone());
        }
        if number == 0
            && let Some(header) = &state.header
        {
            return Ok(header.clone());
        }
        let mut block = Box::new([0; BLOCK]);
        self.read_blocks(state, number * METADATA_BLOCK_BYTES, &mut block[..])?;
        if number == 0 {
            state.header = Some(block.clone());
        }
        Ok(block)
    }

    fn read_blocks(&self, state: &mut State, offset: u64, out: &mut [u8]) -> io::Result<()> {
        state.check_alive()?;
        if let Err(source) = self.device.read(offset, out) {
            return Err(state.failed("read", offset, source));
        }
        state.bytes_read += out.len() as u64;
        Ok(())
    }

    fn check(&self, offset: u64, len: usize) -> io::Result<()> {
        let end = offset.checked_add(len as u64);
        if end.is_none_or(|end| end > self.len.get()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

impl State {
    fn check_alive(&self) -> io::Result<()> {
        if self.is_dead {
            return Err(io::Error::other("an earlier write failed"));
        }
        Ok(())
    }

    fn failed(&mut self, operation: &'static str, offset: u64, source: io::Error) -> io::Error {
        let error = copy(&source);
        self.is_dead |= operation != "read";
        self.fault.get_or_insert(Fault::Device {
            operation,
            offset,
            source,
        });
        error
    }
}

/// One for redb, one for us.
fn copy(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

/// Calls `f(block, offset in it, range of the data)` for each block of a range.
fn pieces(
    offset: u64,
    len: usize,
    mut f: impl FnMut(u64, usize, std::ops::Range<usize>) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let at = offset + done as u64;
        let in_block = (at % METADATA_BLOCK_BYTES) as usize;
        let n = (BLOCK - in_block).min(len - done);
        f(at / METADATA_BLOCK_BYTES, in_block, done..done + n)?;
        done += n;
    }
    Ok(())
}

/// What redb holds. redb wants to be sent between threads; a store is not, and so neither is this: the
/// wrapper would panic on another thread.
#[derive(Debug)]
pub(super) struct Handle(Fragile<Rc<Backend>>);

impl Handle {
    pub(super) fn new(backend: &Rc<Backend>) -> Self {
        Self(Fragile::new(Rc::clone(backend)))
    }
}

impl redb::StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.get().len.get())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.get().read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.get().set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.get().sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.get().write(offset, data)
    }
}
