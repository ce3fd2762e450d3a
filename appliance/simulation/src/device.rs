//! [`SimDevice`]: the device, its faults, its counters, its synchronous face.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use block::{BlockDevice, BlockError, Channel, ChannelContext, Geometry, IoError, OpKind};

use crate::channel::SimChannel;
use crate::medium::{Change, Event, Medium};
use crate::{Image, Random, Recording};

/// How to make a [`SimDevice`].
#[derive(Clone, Copy, Debug)]
pub struct SimOptions {
    /// Bytes per block: 512 or 4096.
    pub block_size: u32,
    /// Number of blocks.
    pub block_count: u64,
    /// Where order and delay of completions come from.
    pub seed: u64,
    /// A completion arrives at the first to this-th poll after its submission. 0: at submission.
    pub delay_polls_max: u32,
    /// A power cut tears writes at multiples of this many bytes.
    pub tear_bytes: u32,
    /// Without: every write is durable when it completes, and the geometry says so.
    pub volatile_write_cache: bool,
}

impl SimOptions {
    /// A device with a cache, torn at 512 bytes, whose completions take up to 4 polls.
    #[must_use]
    pub fn new(block_size: u32, block_count: u64, seed: u64) -> Self {
        Self {
            block_size,
            block_count,
            seed,
            delay_polls_max: 4,
            tear_bytes: 512,
            volatile_write_cache: true,
        }
    }
}

/// What has reached a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimStats {
    /// Reads that ended well, compares and verifies with them.
    pub reads: u64,
    /// Bytes of them.
    pub bytes_read: u64,
    /// Writes that ended well.
    pub writes: u64,
    /// Bytes of them.
    pub bytes_written: u64,
    /// Unmaps and writes of zeroes that ended well.
    pub zeroings: u64,
    /// Flushes that ended well.
    pub flushes: u64,
    /// Operations that failed.
    pub failed: u64,
}

/// A drive in memory with a volatile cache. See the crate's documentation.
#[derive(Debug)]
pub struct SimDevice {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    options: SimOptions,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(crate) struct State {
    medium: Medium,
    recording: Option<Recording>,
    next_id: u64,
    channels: u64,
    stats: SimStats,
    bad_reads: Vec<Range<u64>>,
    bad_writes: Vec<Range<u64>>,
    bad_flushes: bool,
    /// Changes until the power goes.
    changes_left: Option<u64>,
    powered_off: bool,
}

impl SimDevice {
    /// A device of zeroes.
    ///
    /// # Panics
    /// If the size is none that a device can have.
    #[must_use]
    pub fn new(options: SimOptions) -> Arc<Self> {
        let len_bytes = options
            .block_count
            .saturating_mul(u64::from(options.block_size));
        Self::from_image(Image::new(len_bytes), options)
    }

    /// A device with this content; its length stands above `options.block_count`.
    ///
    /// # Panics
    /// If the size is none that a device can have.
    #[must_use]
    pub fn from_image(image: Image, options: SimOptions) -> Arc<Self> {
        let block_count = image.len_bytes() / u64::from(options.block_size.max(1));
        assert!(
            Geometry::check_size(options.block_size, block_count).is_ok(),
            "no device has this size: {options:?}, {image:?}"
        );
        assert!(options.tear_bytes > 0, "{options:?}");
        let state = State {
            medium: Medium::new(image, options.tear_bytes),
            recording: None,
            next_id: 0,
            channels: 0,
            stats: SimStats::default(),
            bad_reads: Vec::new(),
            bad_writes: Vec::new(),
            bad_flushes: false,
            changes_left: None,
            powered_off: false,
        };
        Arc::new(Self {
            shared: Arc::new(Shared {
                options,
                state: Mutex::new(state),
            }),
        })
    }

    /// The seed that it was made with.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.shared.options.seed
    }

    /// What a power cut now could leave; the device itself goes on. Seed 0: nothing unflushed
    /// survives. Seed 1: everything does, also what is in flight. Others: a subset drawn by the seed,
    /// torn at sectors.
    #[must_use]
    pub fn cut(&self, seed: u64) -> Image {
        self.state().medium.cut(seed)
    }

    /// What the end of the program alone could leave now, the device having power still: all that has
    /// completed, and of what is in flight what [`SimDevice::cut`] with this seed would.
    #[must_use]
    pub fn killed(&self, seed: u64) -> Image {
        self.state().medium.killed(seed)
    }

    /// Whether it has a volatile cache.
    #[must_use]
    pub fn has_volatile_cache(&self) -> bool {
        self.shared.options.volatile_write_cache
    }

    /// What reads see now: what a clean stop leaves.
    #[must_use]
    pub fn image(&self) -> Image {
        self.state().medium.current().clone()
    }

    /// Completed changes that no flush covers.
    #[must_use]
    pub fn unflushed(&self) -> usize {
        self.state().medium.unflushed()
    }

    /// Records from here on what reaches the device.
    pub fn start_recording(&self) {
        let mut state = self.state();
        state.recording = Some(Recording {
            start: state.medium.clone(),
            events: Vec::new(),
        });
    }

    /// Ends recording and gives what there is; empty if it was never started.
    #[must_use]
    pub fn stop_recording(&self) -> Recording {
        let mut state = self.state();
        let recording = state.recording.take();
        recording.unwrap_or_else(|| Recording {
            start: state.medium.clone(),
            events: Vec::new(),
        })
    }

    /// Puts a mark into the recording, such as "change 7 was acknowledged".
    pub fn mark(&self, mark: u64) {
        self.state().apply(Event::Mark(mark));
    }

    /// The power goes once `changes` more writes, zeroings or unmaps have completed (0: now). From
    /// then on all I/O fails and nothing changes; [`SimDevice::cut`] gives what is left.
    pub fn power_off_after(&self, changes: u64) {
        let mut state = self.state();
        state.changes_left = Some(changes);
        state.powered_off = changes == 0;
    }

    /// Whether the power has gone.
    #[must_use]
    pub fn is_powered_off(&self) -> bool {
        self.state().powered_off
    }

    /// Reads that touch these bytes fail from now on.
    pub fn fail_reads(&self, bytes: Range<u64>) {
        self.state().bad_reads.push(bytes);
    }

    /// Writes, zeroings and unmaps that touch these bytes fail from now on and change nothing.
    pub fn fail_writes(&self, bytes: Range<u64>) {
        self.state().bad_writes.push(bytes);
    }

    /// Flushes fail from now on, and make nothing durable.
    pub fn fail_flushes(&self) {
        self.state().bad_flushes = true;
    }

    /// Takes all faults back; the power stays as it is.
    pub fn clear_faults(&self) {
        let mut state = self.state();
        state.bad_reads.clear();
        state.bad_writes.clear();
        state.bad_flushes = false;
    }

    /// What has reached the device so far.
    #[must_use]
    pub fn stats(&self) -> SimStats {
        self.state().stats
    }

    /// Sets the counters to 0.
    pub fn reset_stats(&self) {
        self.state().stats = SimStats::default();
    }

    /// Reads whole blocks at once, without a channel.
    ///
    /// # Errors
    /// A range that is not made of blocks of the device, a fault, no power.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.check(offset, out.len())?;
        let result = self.state().read(offset, out);
        result.map_err(to_io)
    }

    /// Writes whole blocks at once, into the cache.
    ///
    /// # Errors
    /// A range that is not made of blocks of the device, a fault, no power.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check(offset, data.len())?;
        let mut state = self.state();
        let change = Change::Write {
            offset,
            data: data.into(),
        };
        let id = state.start(change);
        let range = offset..offset + data.len() as u64;
        let durable = !self.shared.options.volatile_write_cache;
        state.end(id, OpKind::Write, &range, durable).map_err(to_io)
    }

    /// Makes every completed write durable.
    ///
    /// # Errors
    /// A fault, no power.
    pub fn flush(&self) -> io::Result<()> {
        let mut state = self.state();
        let covers = state.medium.completed();
        state.flush(covers).map_err(to_io)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    fn check(&self, offset: u64, len: usize) -> io::Result<()> {
        let block = u64::from(self.shared.options.block_size);
        let end = offset.checked_add(len as u64);
        let inside = end.is_some_and(|end| end <= self.state().medium.current().len_bytes());
        if inside && offset.is_multiple_of(block) && (len as u64).is_multiple_of(block) {
            return Ok(());
        }
        let text = format!("{len} bytes at {offset} are not blocks of the device");
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    }
}

fn to_io(error: IoError) -> io::Error {
    let kind = match error {
        IoError::Removed => io::ErrorKind::NotConnected,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

impl BlockDevice for SimDevice {
    fn kind(&self) -> &'static str {
        "simulation"
    }

    fn geometry(&self) -> Geometry {
        let options = &self.shared.options;
        let len_bytes = self.state().medium.current().len_bytes();
        let block_count = len_bytes / u64::from(options.block_size);
        Geometry {
            volatile_write_cache: options.volatile_write_cache,
            ..Geometry::new(options.block_size, block_count)
        }
    }

    fn open_channel(&self, _ctx: &ChannelContext) -> Result<Box<dyn Channel>, BlockError> {
        let number = {
            let mut state = self.state();
            state.channels += 1;
            state.channels
        };
        let seed = self.shared.options.seed ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93);
        let random = Random::new(seed);
        Ok(Box::new(SimChannel::new(Arc::clone(&self.shared), random)))
    }

    fn resize(&self, block_count: u64) -> Result<(), BlockError> {
        let block_size = self.shared.options.block_size;
        Geometry::check_size(block_size, block_count)?;
        let len_bytes = block_count * u64::from(block_size);
        self.state().apply(Event::Resize { len_bytes });
        Ok(())
    }
}

impl Shared {
    pub(crate) fn options(&self) -> &SimOptions {
        &self.options
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(crate) fn apply(&mut self, event: Event) {
        if let Some(recording) = &mut self.recording {
            recording.events.push(event.clone());
        }
        self.medium.apply(event);
    }

    pub(crate) fn len_bytes(&self) -> u64 {
        self.medium.current().len_bytes()
    }

    pub(crate) fn completed(&self) -> u64 {
        self.medium.completed()
    }

    /// Puts a change in flight. Without power it goes nowhere.
    pub(crate) fn start(&mut self, change: Change) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        if !self.powered_off {
            self.apply(Event::Start { id, change });
        }
        id
    }

    pub(crate) fn end(
        &mut self,
        id: u64,
        kind: OpKind,
        range: &Range<u64>,
        durable: bool,
    ) -> Result<(), IoError> {
        // Without power it stays in flight for ever: the cut decides.
        self.powered()?;
        if range.end > self.len_bytes() || touches(&self.bad_writes, range) {
            self.stats.failed += 1;
            self.apply(Event::Failed { id });
            return Err(IoError::MediaWrite);
        }
        self.apply(Event::End { id, durable });
        if kind == OpKind::Write {
            self.stats.writes += 1;
            self.stats.bytes_written += range.end - range.start;
        } else {
            self.stats.zeroings += 1;
        }
        if let Some(left) = &mut self.changes_left {
            *left = left.saturating_sub(1);
            self.powered_off = *left == 0;
        }
        Ok(())
    }

    pub(crate) fn flush(&mut self, covers: u64) -> Result<(), IoError> {
        self.powered()?;
        if self.bad_flushes {
            self.stats.failed += 1;
            return Err(IoError::MediaWrite);
        }
        self.stats.flushes += 1;
        self.apply(Event::Flush { covers });
        Ok(())
    }

    pub(crate) fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<(), IoError> {
        let range = offset..offset + out.len() as u64;
        self.readable(&range)?;
        self.medium.current().read_at(offset, out);
        Ok(())
    }

    /// Counts a read of the range, or says why it cannot be read.
    pub(crate) fn readable(&mut self, range: &Range<u64>) -> Result<(), IoError> {
        self.powered()?;
        if range.end > self.len_bytes() || touches(&self.bad_reads, range) {
            self.stats.failed += 1;
            return Err(IoError::MediaRead);
        }
        self.stats.reads += 1;
        self.stats.bytes_read += range.end - range.start;
        Ok(())
    }

    fn powered(&mut self) -> Result<(), IoError> {
        if self.powered_off {
            self.stats.failed += 1;
            return Err(IoError::Removed);
        }
        Ok(())
    }
}

fn touches(bad: &[Range<u64>], range: &Range<u64>) -> bool {
    let mut bad = bad.iter();
    bad.any(|bad| bad.start < range.end && range.start < bad.end)
}
