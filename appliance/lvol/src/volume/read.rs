//! Reads, compares and verifies.

use std::sync::Arc;

use block::{Completion, Io, IoError, Lba, Op, OpKind, Submit};
use dma::{IoBuf, Payload};

use super::channel::{Attempt, VolumeChannel, fill_with_zeroes};
use super::flight::{Flight, Origin, Place, Reading, Run, State, runs, tag};
use crate::map::{Cluster, Look, Source};
use crate::pool::ExternalPart;

impl VolumeChannel {
    pub(super) fn attempt_read(&mut self, index: usize, flight: &mut Flight) -> Attempt {
        if flight.io.op == Op::Read && flight.io.payload.is_empty() {
            // The device below lends its memory, and this is not in one place there.
            let len = flight.io.blocks as usize * self.shared.block_size as usize;
            if len > self.buffers.len_max() {
                return Attempt::Done(Err(IoError::InvalidField));
            }
            match self.buffers.get(len) {
                Some(buffer) => flight.io.payload = buffer.into(),
                None => return Attempt::Going(State::Retry),
            }
        }
        let place = self.place(&flight.io);
        let token = match self.enter(&flight.io) {
            Ok(token) => token,
            Err(attempt) => return attempt,
        };
        let whole = match self.chain(place.piece) {
            None => {
                self.leave(token);
                return self.need_piece(place.piece);
            }
            Some(chain) => match chain.own.look(place.slot) {
                Look::Whole(Source::Own(cluster)) => Some(Origin::Cluster(cluster)),
                Look::Whole(Source::Zero) => Some(Origin::Zeroes),
                Look::Whole(Source::Parent)
                    if chain.ancestors.is_empty() && chain.external.is_none() =>
                {
                    Some(Origin::Zeroes)
                }
                _ => {
                    let chain = Arc::clone(chain);
                    self.only_run(&chain, &place)
                }
            },
        };
        match whole {
            Some(Origin::Cluster(cluster)) => {
                let at = self.block_of(cluster, place.bytes.start);
                let payload = flight.io.payload.take();
                let (op, blocks) = (flight.io.op, flight.io.blocks);
                let io = Io::with_payload(op, at, blocks, payload, tag(index, 0));
                self.submit_below(index, flight, io, token, None)
            }
            Some(Origin::Zeroes) if flight.io.op != Op::Compare => {
                self.leave(token);
                Attempt::Done(fill_with_zeroes(&mut flight.io.payload))
            }
            // Not every device compares or verifies: those go the long way.
            Some(Origin::External) if flight.io.op == Op::Read => {
                let part = self.chain(place.piece).and_then(|chain| chain.external);
                match part {
                    Some(part) => self.read_external(index, flight, token, part, &place),
                    None => self.read_runs(index, flight, token, &place),
                }
            }
            _ => self.read_runs(index, flight, token, &place),
        }
    }

    fn read_runs(
        &mut self,
        index: usize,
        flight: &mut Flight,
        token: u8,
        place: &Place,
    ) -> Attempt {
        let granularity = self.shared.granularity;
        let Some(chain) = self.chain(place.piece) else {
            self.leave(token);
            return self.need_piece(place.piece);
        };
        let external = chain.external;
        let runs = runs(chain, place.slot, &place.bytes, granularity);
        let mut origins = runs.iter().map(|run| run.origin);
        // Opened before anything begins.
        if let Some(part) = external.filter(|_| origins.any(|origin| origin == Origin::External))
            && let Err(attempt) = self.need_external(part)
        {
            self.leave(token);
            return attempt;
        }
        self.start_runs(index, flight, token, place, &runs, external)
    }

    /// The one source of an I/O, if it has only one.
    pub(super) fn only_run(&self, chain: &crate::pool::Chain, place: &Place) -> Option<Origin> {
        match runs(chain, place.slot, &place.bytes, self.shared.granularity).as_slice() {
            [run] => Some(run.origin),
            _ => None,
        }
    }

    /// The block of the device below at a byte of a cluster.
    #[inline]
    pub(super) fn block_of(&self, cluster: Cluster, byte: u64) -> u64 {
        let at = cluster.get() * self.shared.granularity.cluster_size() + byte;
        at >> self.shared.block_shift
    }

    fn cluster_of(&self, block: u64) -> Option<Cluster> {
        let byte = block * u64::from(self.shared.block_size);
        Cluster::new(self.shared.granularity.split(byte).0)
    }

    /// Gives all of an I/O with a chain to the device below.
    pub(super) fn submit_below(
        &mut self,
        index: usize,
        flight: &mut Flight,
        io: Io,
        token: u8,
        chain: Option<Arc<crate::pool::Chain>>,
    ) -> Attempt {
        let written = io
            .op
            .modifies()
            .then(|| self.cluster_of(io.lba.0))
            .flatten();
        match self.submit_to_base(io) {
            Submit::Pending => Attempt::Going(State::Below {
                token,
                chain,
                written,
                lease: None,
            }),
            Submit::Done(completion) => {
                flight.io.payload = completion.io.payload;
                self.leave(token);
                self.whole_ended(index, flight, chain.as_deref(), completion.result)
            }
        }
    }

    /// Reads from several places, all at once.
    fn start_runs(
        &mut self,
        index: usize,
        flight: &mut Flight,
        token: u8,
        place: &Place,
        runs: &[Run],
        external: Option<ExternalPart>,
    ) -> Attempt {
        let mut reading = Box::new(Reading {
            token,
            parts: Vec::new(),
            expected: None,
        });
        let mut rest = match flight.io.op {
            // What cannot be verified is read.
            Op::Verify if external.is_some_and(|part| self.must_read(part)) => {
                let len = (place.bytes.end - place.bytes.start) as usize;
                let Some(buffer) = self.buffers.get(len) else {
                    self.leave(token);
                    return self.no_buffer(len);
                };
                Some(buffer)
            }
            Op::Verify => None,
            Op::Compare => {
                let Some(buffer) = self.buffers.get(flight.io.payload.len()) else {
                    self.leave(token);
                    return self.no_buffer(flight.io.payload.len());
                };
                reading.expected = Some(flight.io.payload.take());
                Some(buffer)
            }
            _ => match flight.io.payload.take() {
                Payload::Buf(buffer) => Some(buffer),
                other => {
                    flight.io.payload = other;
                    self.leave(token);
                    return Attempt::Done(Err(IoError::InvalidField));
                }
            },
        };
        flight.error = None;
        for (part, run) in runs.iter().enumerate() {
            let len = (run.bytes.end - run.bytes.start) as usize;
            let mut buffer = rest.as_mut().map(|rest| rest.split_to(len));
            if run.origin == Origin::Zeroes {
                if let Some(buffer) = &mut buffer {
                    match buffer.try_as_mut_slice() {
                        Some(bytes) => bytes.fill(0),
                        None => flight.error = Some(IoError::InvalidField),
                    }
                }
                reading.parts.push(buffer);
                continue;
            }
            let op = if buffer.is_some() {
                Op::Read
            } else {
                Op::Verify
            };
            let payload = buffer.map_or(Payload::None, Payload::Buf);
            let io = Io::with_payload(op, 0, 0, payload, tag(index, part));
            reading.parts.push(None);
            match self.submit_run(io, place, run, external) {
                Submit::Pending => flight.parts_out += 1,
                Submit::Done(completion) => keep_part(flight, &mut reading, part, completion),
            }
        }
        drop(rest);
        self.reading_goes_on(flight, reading)
    }

    /// A device outside the pool that does not verify, and is open.
    fn must_read(&self, part: ExternalPart) -> bool {
        !self.external_supports(part, OpKind::Verify)
    }

    /// Gives a run that is not zeroes to where it lies.
    fn submit_run(
        &mut self,
        mut io: Io,
        place: &Place,
        run: &Run,
        external: Option<ExternalPart>,
    ) -> Submit {
        let len = run.bytes.end - run.bytes.start;
        match (run.origin, external) {
            (Origin::External, Some(part)) => {
                self.submit_external(part, place, run.bytes.start, io, len)
            }
            (Origin::Cluster(cluster), _) => {
                io.lba = Lba(self.block_of(cluster, run.bytes.start));
                io.blocks = len as u32 / self.shared.block_size;
                self.submit_to_base(io)
            }
            _ => Submit::Done(io.complete(Err(IoError::Internal))),
        }
    }

    pub(super) fn read_part_ended(
        &mut self,
        flight: &mut Flight,
        mut reading: Box<Reading>,
        part: usize,
        completion: Completion,
    ) -> Attempt {
        flight.parts_out -= 1;
        keep_part(flight, &mut reading, part, completion);
        self.reading_goes_on(flight, reading)
    }

    fn reading_goes_on(&mut self, flight: &mut Flight, mut reading: Box<Reading>) -> Attempt {
        if flight.parts_out > 0 {
            return Attempt::Going(State::Reading(reading));
        }
        self.leave(reading.token);
        let read = join(std::mem::take(&mut reading.parts));
        let result = match (reading.expected, read) {
            (Some(expected), Some(read)) => {
                let result = flight.error.map_or_else(|| compare(&expected, &read), Err);
                flight.io.payload = expected;
                result
            }
            (_, read) => {
                let read = read.filter(|_| flight.io.op != Op::Verify);
                flight.io.payload = read.map_or(Payload::None, Payload::Buf);
                flight.error.map_or(Ok(()), Err)
            }
        };
        Attempt::Done(result)
    }

    /// There may be a buffer at the next poll, unless none is ever as long.
    pub(super) fn no_buffer(&self, len: usize) -> Attempt {
        let longest = self.buffers.pool().options().large_bufsize as usize;
        if len > longest {
            return Attempt::Done(Err(IoError::InvalidField));
        }
        Attempt::Going(State::Retry)
    }
}

fn keep_part(flight: &mut Flight, reading: &mut Reading, part: usize, completion: Completion) {
    if let Payload::Buf(buffer) = completion.io.payload {
        reading.parts[part] = Some(buffer);
    }
    if let Err(error) = completion.result {
        flight.error.get_or_insert(error);
    }
}

/// The parts of a payload as one again.
fn join(parts: Vec<Option<IoBuf>>) -> Option<IoBuf> {
    let mut parts = parts.into_iter().flatten();
    let mut whole = parts.next()?;
    for part in parts {
        let joined = whole.join(part);
        debug_assert!(joined.is_ok(), "parts were split off in this order");
    }
    Some(whole)
}

fn compare(expected: &Payload, read: &IoBuf) -> Result<(), IoError> {
    let mut bytes = vec![0; expected.len()];
    expected.copy_range_to(0, &mut bytes);
    let mut pairs = bytes.iter().zip(read.as_slice());
    match pairs.position(|(expected, read)| expected != read) {
        None => Ok(()),
        Some(offset) => Err(IoError::CompareMismatch {
            offset_bytes: offset as u32,
        }),
    }
}
