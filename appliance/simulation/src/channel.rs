//! [`SimChannel`]: a thread's way to the device; completions after some polls, in a drawn order.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use block::{Channel, Completion, Io, IoError, Op, Submit};
use dma::Payload;

use crate::Random;
use crate::device::{Shared, State};
use crate::medium::Change;

/// One I/O in flight.
struct Flight {
    io: Io,
    /// What it does at its end.
    end: End,
    /// Polls still to come before it may end.
    polls_left: u64,
}

enum End {
    Change {
        id: u64,
        durable: bool,
    },
    Flush {
        covers: u64,
    },
    /// A read, or an operation without effect.
    Look,
}

pub(crate) struct SimChannel {
    shared: Arc<Shared>,
    random: Random,
    block_size: u64,
    flights: Vec<Flight>,
    last_now: Option<Instant>,
}

impl SimChannel {
    pub(crate) fn new(shared: Arc<Shared>, random: Random) -> Self {
        let block_size = u64::from(shared.options().block_size);
        Self {
            shared,
            random,
            block_size,
            flights: Vec::new(),
            last_now: None,
        }
    }

    fn range(&self, io: &Io) -> Range<u64> {
        if !io.op.has_range() {
            return 0..0;
        }
        let start = io.lba.0.saturating_mul(self.block_size);
        start..start.saturating_add(u64::from(io.blocks) * self.block_size)
    }

    fn start(&self, io: &Io) -> Result<End, IoError> {
        let range = self.range(io);
        let mut state = self.shared.state();
        if range.end > state.len_bytes() {
            return Err(IoError::OutOfRange);
        }
        let cached = self.shared.options().volatile_write_cache;
        let change = match io.op {
            Op::Read | Op::Compare | Op::Verify | Op::Reset => return Ok(End::Look),
            Op::Flush => {
                let covers = state.completed();
                return Ok(End::Flush { covers });
            }
            Op::Write { .. } => {
                let mut data = vec![0; io.payload.len()];
                io.payload.copy_range_to(0, &mut data);
                if data.len() as u64 != range.end - range.start {
                    return Err(IoError::InvalidField);
                }
                Change::Write {
                    offset: range.start,
                    data: data.into(),
                }
            }
            Op::Unmap | Op::WriteZeroes { .. } => Change::Zero { range },
            Op::CompareAndWrite { .. } => return Err(IoError::Unsupported),
        };
        Ok(End::Change {
            id: state.start(change),
            durable: io.op.fua() || !cached,
        })
    }

    fn end(&self, mut flight: Flight) -> Completion {
        let range = self.range(&flight.io);
        let mut state = self.shared.state();
        let result = match flight.end {
            End::Change { id, durable } => state.end(id, flight.io.op.kind(), &range, durable),
            End::Flush { covers } => state.flush(covers),
            End::Look => look(&mut state, &mut flight.io, &range),
        };
        drop(state);
        flight.io.complete(result)
    }
}

fn look(state: &mut State, io: &mut Io, range: &Range<u64>) -> Result<(), IoError> {
    match io.op {
        Op::Read => {
            let buf = io.payload.as_buf_mut().ok_or(IoError::InvalidField)?;
            let bytes = buf.try_as_mut_slice().ok_or(IoError::InvalidField)?;
            state.read(range.start, bytes)
        }
        Op::Compare => {
            let mut stored = vec![0; io.payload.len()];
            state.read(range.start, &mut stored)?;
            compare(&stored, &io.payload)
        }
        Op::Verify => state.readable(range),
        _ => Ok(()),
    }
}

fn compare(stored: &[u8], payload: &Payload) -> Result<(), IoError> {
    let mut expected = vec![0; payload.len()];
    payload.copy_range_to(0, &mut expected);
    match stored.iter().zip(&expected).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(at) => Err(IoError::CompareMismatch {
            offset_bytes: at as u32,
        }),
    }
}

impl Channel for SimChannel {
    fn submit(&mut self, io: Io, now: Instant) -> Submit {
        self.last_now = Some(now);
        let end = match self.start(&io) {
            Ok(end) => end,
            Err(error) => return Submit::Done(io.complete(Err(error))),
        };
        let delay_max = u64::from(self.shared.options().delay_polls_max);
        let flight = Flight {
            io,
            end,
            polls_left: self.random.below(delay_max),
        };
        if delay_max == 0 {
            return Submit::Done(self.end(flight));
        }
        self.flights.push(flight);
        Submit::Pending
    }

    fn poll(&mut self, now: Instant, done: &mut Vec<Completion>) -> usize {
        self.last_now = Some(now);
        let before = done.len();
        let mut due: Vec<Flight> = self
            .flights
            .extract_if(.., |flight| {
                let is_due = flight.polls_left == 0;
                flight.polls_left = flight.polls_left.saturating_sub(1);
                is_due
            })
            .collect();
        while !due.is_empty() {
            let next = self.random.below(due.len() as u64) as usize;
            let flight = due.swap_remove(next);
            done.push(self.end(flight));
        }
        done.len() - before
    }

    fn next_deadline(&self) -> Option<Instant> {
        // Polls alone make progress.
        self.last_now.filter(|_| !self.flights.is_empty())
    }

    fn in_flight(&self) -> usize {
        self.flights.len()
    }
}

impl Drop for SimChannel {
    fn drop(&mut self) {
        // The device finishes what it has; nobody hears of it.
        for flight in std::mem::take(&mut self.flights) {
            let _ = self.end(flight);
        }
    }
}
