//! A block device whose completions the test releases, and that remembers what it was asked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use block::{
    BlockDevice, BlockError, Channel, ChannelContext, Completion, Geometry, Io, IoError, Lba, Op,
    OpKind, Submit,
};
use dma::Payload;

#[derive(Debug)]
pub(crate) struct DeviceState {
    pub(crate) geometry: Geometry,
    pub(crate) data: Vec<u8>,
    /// Every operation that came, in order.
    pub(crate) ops: Vec<(Op, Lba, u32)>,
    /// Operations stay pending while this is set.
    pub(crate) holds: bool,
    /// Operations that wait can be taken back.
    pub(crate) can_abort: bool,
    /// How the next operations end, instead of being done.
    pub(crate) failures: VecDeque<IoError>,
    /// Operations that the device holds now.
    pub(crate) held: usize,
    pub(crate) channels: usize,
}

/// 512-byte blocks unless the geometry is changed before use.
#[derive(Debug)]
pub(crate) struct TestDevice(Arc<Mutex<DeviceState>>);

impl TestDevice {
    pub(crate) fn new(block_size: u32, block_count: u64) -> Arc<Self> {
        Self::with(Geometry {
            volatile_write_cache: true,
            ..Geometry::new(block_size, block_count)
        })
    }

    pub(crate) fn with(geometry: Geometry) -> Arc<Self> {
        Arc::new(Self(Arc::new(Mutex::new(DeviceState {
            geometry,
            data: vec![0; geometry.len_bytes() as usize],
            ops: Vec::new(),
            holds: false,
            can_abort: false,
            failures: VecDeque::new(),
            held: 0,
            channels: 0,
        }))))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, DeviceState> {
        self.0.lock().unwrap()
    }

    /// How often it was asked for a kind of operation.
    pub(crate) fn count(&self, kind: OpKind) -> usize {
        self.state()
            .ops
            .iter()
            .filter(|(op, ..)| op.kind() == kind)
            .count()
    }

    /// The operations since the last call.
    pub(crate) fn take_ops(&self) -> Vec<Op> {
        self.state().ops.drain(..).map(|(op, ..)| op).collect()
    }
}

impl BlockDevice for TestDevice {
    fn kind(&self) -> &'static str {
        "test"
    }

    fn geometry(&self) -> Geometry {
        self.state().geometry
    }

    fn open_channel(&self, _: &ChannelContext) -> Result<Box<dyn Channel>, BlockError> {
        self.state().channels += 1;
        Ok(Box::new(TestChannel {
            device: Arc::clone(&self.0),
            held: VecDeque::new(),
            aborted: Vec::new(),
        }))
    }

    fn resize(&self, block_count: u64) -> Result<(), BlockError> {
        let mut state = self.state();
        state.geometry.block_count = block_count;
        let len = state.geometry.len_bytes() as usize;
        state.data.resize(len, 0);
        Ok(())
    }
}

struct TestChannel {
    device: Arc<Mutex<DeviceState>>,
    held: VecDeque<Io>,
    aborted: Vec<Io>,
}

impl Drop for TestChannel {
    fn drop(&mut self) {
        self.device.lock().unwrap().channels -= 1;
    }
}

fn bytes(payload: &Payload) -> Vec<u8> {
    let mut bytes = vec![0; payload.len()];
    payload.copy_range_to(0, &mut bytes);
    bytes
}

impl DeviceState {
    fn run(&mut self, mut io: Io) -> Completion {
        if let Some(error) = self.failures.pop_front() {
            return io.complete(Err(error));
        }
        let size = self.geometry.block_size as usize;
        let start = if io.op.has_range() {
            io.lba.0 as usize * size
        } else {
            0
        };
        let len = if io.op.has_range() {
            io.blocks as usize * size
        } else {
            0
        };
        let range = &mut self.data[start..start + len];
        let mut result = Ok(());
        match io.op {
            Op::Read => {
                let buffer = io.payload.as_buf_mut().expect("this device does not lend");
                buffer.as_mut_slice().copy_from_slice(range);
            }
            Op::Write { .. } => range.copy_from_slice(&bytes(&io.payload)),
            Op::Unmap | Op::WriteZeroes { .. } => range.fill(0),
            Op::Compare | Op::CompareAndWrite { .. } => {
                let payload = bytes(&io.payload);
                if *range != payload[..len] {
                    result = Err(IoError::CompareMismatch { offset_bytes: 0 });
                } else if payload.len() > len {
                    range.copy_from_slice(&payload[len..]);
                }
            }
            Op::Flush | Op::Verify | Op::Reset => {}
        }
        io.complete(result)
    }
}

impl Channel for TestChannel {
    fn submit(&mut self, io: Io, _: Instant) -> Submit {
        let mut device = self.device.lock().unwrap();
        device.ops.push((io.op, io.lba, io.blocks));
        if device.holds || !self.held.is_empty() {
            device.held += 1;
            self.held.push_back(io);
            return Submit::Pending;
        }
        Submit::Done(device.run(io))
    }

    fn poll(&mut self, _: Instant, done: &mut Vec<Completion>) -> usize {
        let before = done.len();
        let mut device = self.device.lock().unwrap();
        device.held -= self.aborted.len();
        done.extend(
            self.aborted
                .drain(..)
                .map(|io| io.complete(Err(IoError::Aborted))),
        );
        if !device.holds {
            device.held -= self.held.len();
            done.extend(self.held.drain(..).map(|io| device.run(io)));
        }
        done.len() - before
    }

    fn abort(&mut self, tag: u64) -> bool {
        let can_abort = self.device.lock().unwrap().can_abort;
        let index = self
            .held
            .iter()
            .position(|io| io.tag == tag)
            .filter(|_| can_abort);
        self.aborted
            .extend(index.and_then(|index| self.held.remove(index)));
        index.is_some()
    }

    fn in_flight(&self) -> usize {
        self.held.len() + self.aborted.len()
    }
}
