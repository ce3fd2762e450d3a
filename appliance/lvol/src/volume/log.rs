//! A channel's part of the log of first writes: what it changes in maps is on the device before it is seen.
//!
//! What is to be logged is gathered until the end of a poll and written together, a few writes at a time in
//! flight. When a write has ended its changes are made in the maps, unless a commit has begun meanwhile:
//! then they are written again with its epoch first. Until then their granules are locked.

use std::sync::atomic::Ordering;

use block::{Completion, Io, IoError, Op, Submit};
use dma::IoBuf;

use super::channel::VolumeChannel;
use super::flight::{Flight, State, Writing, Zeroing};
use crate::format::{LayerId, LogChange, LogEntry};
use crate::map::{Change, GateSide, GranuleRange, PIECE_SLOTS};
use crate::pool::{Chain, LogPages, Request, WriteLog};

/// Writes of pages that a channel has in flight.
const WRITES_MAX: usize = 4;
/// Most bytes of pages in one write: a small buffer.
const WRITE_BYTES_MAX: usize = 8 << 10;
/// Tags of writes of pages have this bit, which no flight's has.
const LOG_TAG: u64 = 1 << 63;

/// What a channel has to do with the log.
#[derive(Debug)]
pub(super) struct LogSide {
    gate: GateSide,
    /// Flights that are to be logged, in the order in which they came.
    ready: Vec<usize>,
    writes: [LogWrite; WRITES_MAX],
    /// The log is full; the worker was asked for room.
    asked: bool,
    /// A commit overtook what was written. Work in the background waits until this has caught up.
    overtaken: bool,
    /// Of the last write; kept for its room.
    entries: Vec<LogEntry>,
}

/// A write of pages.
#[derive(Debug, Default)]
struct LogWrite {
    /// None while there is none in flight.
    pages: Option<LogPages>,
    epoch: u64,
    /// What they say.
    flights: Vec<usize>,
}

impl LogSide {
    pub(super) fn open(log: &WriteLog) -> Self {
        Self {
            gate: log.gate.register(),
            ready: Vec::new(),
            writes: Default::default(),
            asked: false,
            overtaken: false,
            entries: Vec::new(),
        }
    }

    fn is_idle(&self) -> bool {
        self.writes.iter().all(|write| write.pages.is_none())
    }

    /// Says from which page on something may be being written.
    fn tell_oldest(&self) {
        let pages = self.writes.iter().filter_map(|write| write.pages);
        match pages.map(|pages| pages.first).min() {
            Some(first) => self.gate.set_oldest(first),
            None => self.gate.clear_oldest(),
        }
    }
}

/// Is this completion one of a write of pages?
pub(super) fn is_log_tag(tag: u64) -> bool {
    tag & LOG_TAG != 0
}

impl VolumeChannel {
    /// Is what the log has durable at once, by itself? Then nothing that is acknowledged waits for a commit.
    pub(super) fn log_survives_power_loss(&self) -> bool {
        self.shared.log().is_some_and(|log| log.survives_power_loss)
    }

    /// The flight goes to the log at the end of this poll, or of the next.
    pub(super) fn log_later(&mut self, index: usize) {
        if let Some(side) = &mut self.log {
            side.ready.push(index);
        }
    }

    /// Is there something to write that nothing else will wake the channel for?
    pub(super) fn is_log_due(&self) -> bool {
        let side = self.log.as_ref();
        side.is_some_and(|side| {
            !side.ready.is_empty()
                && !side.asked
                && side.writes.iter().any(|write| write.pages.is_none())
        })
    }

    /// Writes what is ready.
    #[inline]
    pub(super) fn write_log(&mut self) {
        if self.log.as_ref().is_some_and(|side| !side.ready.is_empty()) {
            self.write_ready();
        }
    }

    fn write_ready(&mut self) {
        if self.shared.stopped.load(Ordering::Acquire) {
            return self.fail_ready(IoError::Removed);
        }
        while let Some((write, buffer, pages)) = self.next_log_write() {
            let Some(log) = self.shared.log() else { return };
            let block = log.block_of(pages.first);
            let io = Io::with_payload(
                Op::Write { fua: false },
                block,
                (buffer.len() / self.shared.block_size as usize) as u32,
                buffer.into(),
                LOG_TAG | write as u64,
            );
            if let Submit::Done(completion) = self.submit_to_base(io) {
                self.log_write_ended(completion);
            }
        }
    }

    /// Takes pages for as much of what is ready as fits.
    fn next_log_write(&mut self) -> Option<(usize, IoBuf, LogPages)> {
        let log = self.shared.log()?;
        let side = self.log.as_mut().filter(|side| !side.asked)?;
        let write = side.writes.iter().position(|write| write.pages.is_none())?;
        let per_page = log.entries_per_page();
        let most = WRITE_BYTES_MAX / log.page_bytes();
        let wanted = side.ready.len().div_ceil(per_page).min(most);
        if wanted == 0 {
            return None;
        }
        // What waits here has buffers: with none left for the log nobody would ever give one back. None at
        // all: at the next poll.
        let len = wanted * log.page_bytes();
        let buffer = self.buffers.get(len);
        let mut buffer = buffer.or_else(|| self.buffers.get_reserved(len))?;
        // Before the pages are taken, see there.
        let epoch = log.gate.epoch();
        let Some(pages) = log.take_for(&side.gate, side.is_idle(), wanted as u64) else {
            side.asked = true;
            let mailbox = std::sync::Arc::clone(&self.mailbox);
            self.shared.request(Request::LogPages { mailbox });
            return None;
        };
        if pages.is_filling {
            self.shared.request(Request::CommitSoon);
        }
        let count = side.ready.len().min(pages.count as usize * per_page);
        let LogWrite { flights, .. } = &mut side.writes[write];
        flights.clear();
        flights.extend(side.ready.drain(..count));
        side.entries.clear();
        for index in &*flights {
            side.entries
                .extend(self.flights[*index].as_mut().and_then(entry));
        }
        let len = pages.count as usize * log.page_bytes();
        log.encode(
            pages,
            epoch,
            &side.entries,
            &mut buffer.as_mut_slice()[..len],
        );
        let buffer = if buffer.len() > len {
            buffer.split_to(len)
        } else {
            buffer
        };
        side.writes[write].pages = Some(pages);
        side.writes[write].epoch = epoch;
        side.tell_oldest();
        Some((write, buffer, pages))
    }

    /// Pages are on the device, or are not.
    pub(super) fn log_write_ended(&mut self, completion: Completion) {
        let Some(side) = &mut self.log else { return };
        let number = (completion.io.tag & !LOG_TAG) as usize;
        let write = &mut side.writes[number];
        write.pages = None;
        let epoch = write.epoch;
        let mut flights = std::mem::take(&mut write.flights);
        side.tell_oldest();
        match completion.result {
            Err(error) => {
                self.caught_up();
                flights
                    .drain(..)
                    .for_each(|index| self.fail_logged(index, error));
            }
            Ok(()) => self.make_changes(epoch, &mut flights),
        }
        // Its room is kept.
        flights.clear();
        if let Some(side) = &mut self.log {
            side.writes[number].flights = flights;
        }
    }

    /// Makes the changes of flights that the log has.
    fn make_changes(&mut self, epoch: u64, flights: &mut Vec<usize>) {
        let (Some(log), Some(side)) = (self.shared.log(), &mut self.log) else {
            return;
        };
        let made = side.gate.pass(epoch, || {
            for index in &*flights {
                if let Some(flight) = &self.flights[*index] {
                    // Inside: a commit that has the change finds its piece in the list.
                    if let Some((chain, change)) = make_change(flight) {
                        self.shared.note(chain, change);
                    }
                }
            }
            log.has_applied(epoch);
        });
        if made.is_none() {
            // A commit has begun that may not have them, and covers what the pages say.
            if !std::mem::replace(&mut side.overtaken, true) {
                log.overtaken.fetch_add(1, Ordering::SeqCst);
            }
            flights.append(&mut side.ready);
            std::mem::swap(&mut side.ready, flights);
            return;
        }
        self.caught_up();
        for index in flights.drain(..) {
            let Some(mut flight) = self.flights[index].take() else {
                continue;
            };
            let attempt = match std::mem::replace(&mut flight.state, State::Retry) {
                State::Logging(writing) => {
                    self.first_write_ended(index, &mut flight, writing.token)
                }
                State::LoggingZero(zeroing) => {
                    flight.zeroed = true;
                    self.zeroes_ended(index, &mut flight, zeroing.token)
                }
                state => {
                    debug_assert!(false, "logged in state {state:?}");
                    continue;
                }
            };
            self.settle(index, flight, attempt);
        }
    }

    /// Nothing of this channel has been overtaken any more, or it is given up.
    fn caught_up(&mut self) {
        let (Some(log), Some(side)) = (self.shared.log(), &mut self.log) else {
            return;
        };
        if std::mem::take(&mut side.overtaken) {
            log.overtaken.fetch_sub(1, Ordering::SeqCst);
            self.shared.wake_worker();
        }
    }

    /// The worker's answer: there is room, or there will be none.
    pub(super) fn log_has_room(&mut self, result: Result<(), IoError>) {
        if let Some(side) = &mut self.log {
            side.asked = false;
        }
        if let Err(error) = result {
            self.fail_ready(error);
        }
    }

    /// Ends all that is to be logged.
    fn fail_ready(&mut self, error: IoError) {
        self.caught_up();
        let Some(side) = &mut self.log else { return };
        for index in std::mem::take(&mut side.ready) {
            self.fail_logged(index, error);
        }
    }

    fn fail_logged(&mut self, index: usize, error: IoError) {
        let Some(mut flight) = self.flights[index].take() else {
            return;
        };
        let token = match std::mem::replace(&mut flight.state, State::Retry) {
            State::Logging(writing) => {
                self.give_up_write(&writing);
                writing.token
            }
            State::LoggingZero(zeroing) => {
                self.give_up_zeroes(&zeroing);
                zeroing.token
            }
            state => {
                debug_assert!(false, "to be logged in state {state:?}");
                return;
            }
        };
        self.leave(token);
        self.settle(index, flight, super::channel::Attempt::Done(Err(error)));
    }

    /// What was written is not to be seen.
    pub(super) fn give_up_write(&self, writing: &Writing) {
        if writing.is_logged {
            self.shared.hold(&writing.chain.own);
        }
        self.unlock(&writing.chain, writing.slot, writing.locked);
    }

    /// Nothing is to be zeroes.
    pub(super) fn give_up_zeroes(&self, zeroing: &Zeroing) {
        if zeroing.is_logged {
            self.shared.hold(&zeroing.chain.own);
        }
        self.unlock(&zeroing.chain, zeroing.slot, zeroing.granules);
    }

    /// The channel goes: the device may still write its pages.
    pub(super) fn abandon_log(&mut self) {
        self.caught_up();
        let (Some(log), Some(side)) = (self.shared.log(), &mut self.log) else {
            return;
        };
        for write in &mut side.writes {
            if let Some(pages) = write.pages.take() {
                log.abandon(pages);
            }
        }
    }
}

/// What the log is going to say of a flight.
fn entry(flight: &mut Flight) -> Option<LogEntry> {
    Some(match &mut flight.state {
        State::Logging(writing) => {
            writing.is_logged = true;
            LogEntry {
                change: LogChange::Written(writing.cluster),
                ..place(&writing.chain, writing.slot, writing.locked)
            }
        }
        State::LoggingZero(zeroing) => {
            zeroing.is_logged = true;
            place(&zeroing.chain, zeroing.slot, zeroing.granules)
        }
        _ => return None,
    })
}

fn place(chain: &Chain, slot: usize, granules: GranuleRange) -> LogEntry {
    let layer: LayerId = chain.layer;
    LogEntry {
        layer,
        slot: chain.index * PIECE_SLOTS as u64 + slot as u64,
        granules,
        change: LogChange::Zero,
    }
}

/// Makes the change of a flight in its piece.
fn make_change(flight: &Flight) -> Option<(&Chain, Change)> {
    Some(match &flight.state {
        State::Logging(writing) => {
            let own = &writing.chain.own;
            let change = own.complete_write(writing.slot, writing.locked.into());
            (&writing.chain, change)
        }
        State::LoggingZero(zeroing) => {
            let own = &zeroing.chain.own;
            let (granules, hides) = (zeroing.granules.into(), zeroing.hides);
            let change = own.complete_zero(zeroing.slot, granules, hides);
            (&zeroing.chain, change)
        }
        _ => return None,
    })
}
