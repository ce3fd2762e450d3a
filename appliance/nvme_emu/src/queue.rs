//! Submission and completion queues, as the controller sees them.

use std::collections::VecDeque;

use dma::{BusFault, BusView};
use nvme_spec::{Cqe, Sqe};
use zerocopy::{FromBytes, IntoBytes};

#[derive(Debug)]
pub(crate) struct SubmissionQueue {
    pub(crate) base: u64,
    pub(crate) entries: u32,
    pub(crate) head: u32,
    pub(crate) tail: u32,
    pub(crate) cqid: u16,
    /// With shadow doorbells: a doorbell was rung since the queue was last found empty.
    pub(crate) awake: bool,
}

impl SubmissionQueue {
    pub(crate) fn new(base: u64, entries: u32, cqid: u16) -> Self {
        Self {
            base,
            entries,
            head: 0,
            tail: 0,
            cqid,
            awake: false,
        }
    }

    /// Takes the next command.
    pub(crate) fn fetch(&mut self, bus: &BusView) -> Result<Option<Sqe>, BusFault> {
        if self.head == self.tail {
            return Ok(None);
        }
        let mut bytes = [0; 64];
        bus.read(self.base + u64::from(self.head) * 64, &mut bytes)?;
        self.head = (self.head + 1) % self.entries;
        let sqe = Sqe::read_from_bytes(&bytes).expect("64 bytes are an entry");
        Ok(Some(sqe))
    }
}

#[derive(Debug)]
pub(crate) struct CompletionQueue {
    pub(crate) base: u64,
    pub(crate) entries: u32,
    pub(crate) head: u32,
    pub(crate) tail: u32,
    pub(crate) phase: bool,
    pub(crate) vector: Option<u16>,
    /// Entries that wait for room, and whether each has the right phase.
    pub(crate) waiting: VecDeque<(Cqe, bool)>,
}

impl CompletionQueue {
    pub(crate) fn new(base: u64, entries: u32, vector: Option<u16>) -> Self {
        Self {
            base,
            entries,
            head: 0,
            tail: 0,
            phase: true,
            vector,
            waiting: VecDeque::new(),
        }
    }

    /// Posts what fits. Whether anything was posted.
    pub(crate) fn drain(&mut self, bus: &BusView) -> Result<bool, BusFault> {
        let mut posted = false;
        while (self.tail + 1) % self.entries != self.head {
            let Some((cqe, right_phase)) = self.waiting.pop_front() else {
                break;
            };
            let cqe = cqe.with_phase(self.phase == right_phase);
            bus.write(self.base + u64::from(self.tail) * 16, cqe.as_bytes())?;
            self.tail = (self.tail + 1) % self.entries;
            if self.tail == 0 {
                self.phase = !self.phase;
            }
            posted = true;
        }
        Ok(posted)
    }
}
