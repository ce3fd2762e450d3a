//! Writes, unmaps and writes of zeroes.
//!
//! A first write locks its granules, writes the data and what they lack from below, and then says that
//! they are written. Until then nobody reads them, and a crash finds the old content.

use std::ops::Range;
use std::sync::Arc;

use block::{Completion, Io, Op, Submit};
use dma::{IoBuf, Payload};

use super::channel::{Attempt, VolumeChannel};
use super::external::into_buffer;
use super::flight::{Fill, Flight, Origin, Place, State, Writing, Zeroing, tag};
use crate::map::{Cluster, GranuleRange, Granules, Look, PartialGranule, Source};
use crate::pool::Chain;

/// Number of the part that the host's data are.
const DATA: usize = 0;

impl VolumeChannel {
    pub(super) fn attempt_write(&mut self, index: usize, flight: &mut Flight) -> Attempt {
        let place = self.place(&flight.io);
        self.write_at(index, flight, &place)
    }

    /// Writes the payload to a place.
    fn write_at(&mut self, index: usize, flight: &mut Flight, place: &Place) -> Attempt {
        let token = match self.enter(&flight.io) {
            Ok(token) => token,
            Err(attempt) => return attempt,
        };
        let touched = self.shared.granularity.span(place.bytes.clone()).touched;
        let is_fua = flight.io.op.fua();
        let Some(chain) = self.chain(place.piece) else {
            self.leave(token);
            return self.need_piece(place.piece);
        };
        let cluster = match chain.own.look(place.slot) {
            Look::Whole(Source::Own(cluster)) => Some(cluster),
            Look::Mixed {
                cluster, written, ..
            } if written.contains(touched.into()) => cluster,
            _ => None,
        };
        let Some(cluster) = cluster else {
            let chain = Arc::clone(chain);
            return self.write_first(index, flight, place, token, chain);
        };
        let chain = is_fua.then(|| Arc::clone(chain));
        let io = self.data_io(index, flight, place, cluster, is_fua);
        self.submit_below(index, flight, io, token, chain)
    }

    fn data_io(
        &self,
        index: usize,
        flight: &mut Flight,
        place: &Place,
        cluster: Cluster,
        fua: bool,
    ) -> Io {
        let at = self.block_of(cluster, place.bytes.start);
        let len = (place.bytes.end - place.bytes.start) as u32;
        let payload = flight.io.payload.take();
        let blocks = len / self.shared.block_size;
        Io::with_payload(Op::Write { fua }, at, blocks, payload, tag(index, DATA))
    }

    /// Writes granules that the volume does not have yet.
    fn write_first(
        &mut self,
        index: usize,
        flight: &mut Flight,
        place: &Place,
        token: u8,
        chain: Arc<Chain>,
    ) -> Attempt {
        let locked = self.shared.granularity.span(place.bytes.clone()).touched;
        if !self.lock(&chain, place.slot, locked) {
            self.leave(token);
            return Attempt::Going(State::Retry);
        }
        // Nobody writes these granules for the first time now but this.
        match self.prepare_first(place, &chain, locked.into()) {
            Err(attempt) => {
                self.unlock(&chain, place.slot, locked);
                self.leave(token);
                attempt
            }
            Ok((cluster, fills)) => {
                let writing = Box::new(Writing {
                    token,
                    chain,
                    slot: place.slot,
                    locked,
                    is_logged: false,
                    cluster,
                    fills,
                });
                self.start_writing(index, flight, place, writing)
            }
        }
    }

    /// Locks granules for a change of the map. False if somebody has them, or a commit has to come first.
    fn lock(&self, chain: &Arc<Chain>, slot: usize, granules: GranuleRange) -> bool {
        if !chain.own.lock(slot, granules.into()) {
            return false;
        }
        // With the lock the slot keeps its cluster from now on.
        if chain.own.is_held() {
            self.unlock(chain, slot, granules);
            return false;
        }
        true
    }

    /// Gives granules back as they were.
    pub(super) fn unlock(&self, chain: &Arc<Chain>, slot: usize, granules: GranuleRange) {
        let change = chain.own.unlock(slot, granules.into());
        self.shared.note(chain, change);
    }

    /// What a first write needs: a cluster, and what is to be filled from below.
    fn prepare_first(
        &mut self,
        place: &Place,
        chain: &Chain,
        locked: Granules,
    ) -> Result<(Cluster, [Option<Fill>; 2]), Attempt> {
        let look = chain.own.look(place.slot);
        let written = match look {
            Look::Whole(Source::Own(_)) => locked,
            Look::Whole(_) => Granules::NONE,
            Look::Mixed { written, .. } => written,
        };
        let mut fills = [None, None];
        for (fill, bytes) in fills.iter_mut().zip(self.unwritten_edges(place, written)) {
            if let Some(bytes) = bytes {
                *fill = Some(self.prepare_fill(place, chain, bytes)?);
            }
        }
        let cluster = match look.cluster() {
            Some(cluster) => cluster,
            None => {
                let Some(cluster) = self.clusters.pop() else {
                    return Err(self.need_clusters());
                };
                match chain.own.allocate(place.slot, cluster) {
                    Ok(()) => cluster,
                    Err(winner) => {
                        self.give_back(cluster);
                        winner
                    }
                }
            }
        };
        Ok((cluster, fills))
    }

    /// A cluster that was not needed after all. A thick volume keeps none in hand.
    fn give_back(&mut self, cluster: Cluster) {
        if self.volume.thick.load(std::sync::atomic::Ordering::Relaxed) {
            self.shared.inbox().returned.push(cluster);
            self.shared.wake_worker();
        } else {
            self.clusters.push(cluster);
        }
    }

    /// The bytes of unwritten granules before and after what is written.
    fn unwritten_edges(&self, place: &Place, written: Granules) -> [Option<Range<u64>>; 2] {
        let span = self.shared.granularity.span(place.bytes.clone());
        let granule = self.shared.granularity.granule_size();
        let unwritten = |edge: &PartialGranule| !written.test(edge.granule);
        let start = |edge: &PartialGranule| u64::from(edge.granule) * granule;
        let before = span
            .head
            .filter(unwritten)
            .and_then(|head| (head.start > 0).then(|| start(&head)..place.bytes.start));
        // The last granule: the first, if it is the only one.
        let last = span.tail.or_else(|| {
            span.head
                .filter(|head| head.granule + 1 == span.touched.end)
        });
        let after = last.filter(unwritten).and_then(|tail| {
            (u64::from(tail.end) < granule).then(|| place.bytes.end..start(&tail) + granule)
        });
        [before, after]
    }

    fn prepare_fill(
        &mut self,
        place: &Place,
        chain: &Chain,
        bytes: Range<u64>,
    ) -> Result<Fill, Attempt> {
        let granule = (bytes.start / self.shared.granularity.granule_size()) as u16;
        let own = chain.own.look(place.slot).source(granule);
        let below = chain.ancestors.iter();
        let mut sources =
            std::iter::once(own).chain(below.map(|piece| piece.look(place.slot).source(granule)));
        let cluster_size = self.shared.granularity.cluster_size();
        let from = match sources.find(|source| *source != Source::Parent) {
            Some(Source::Own(cluster)) => Some(Origin::Cluster(cluster)),
            Some(_) => None,
            None => (chain.external_bytes(place.slot, cluster_size) > bytes.start)
                .then_some(Origin::External),
        };
        if let (Some(Origin::External), Some(part)) = (from, chain.external) {
            self.need_external(part)?;
        }
        // I/O that was in flight at the snapshot may still change what is below.
        if own == Source::Parent
            && chain.has_parent
            && self
                .volume
                .unsettled
                .load(std::sync::atomic::Ordering::SeqCst)
        {
            return Err(Attempt::Going(State::Retry));
        }
        let len = (bytes.end - bytes.start) as usize;
        let Some(mut buffer) = self.buffers.get(len) else {
            return Err(self.no_buffer(len));
        };
        if from.is_none() {
            buffer.as_mut_slice().fill(0);
        }
        Ok(Fill {
            bytes,
            from,
            buffer: Some(buffer),
            tail: None,
        })
    }

    fn start_writing(
        &mut self,
        index: usize,
        flight: &mut Flight,
        place: &Place,
        mut writing: Box<Writing>,
    ) -> Attempt {
        flight.error = None;
        let data = self.data_io(index, flight, place, writing.cluster, false);
        self.submit_part(index, flight, &mut writing, DATA, data);
        for part in 1..=2 {
            self.start_fill(index, flight, &mut writing, part);
        }
        self.writing_goes_on(index, flight, writing)
    }

    /// Reads what a fill needs, or writes it when it is there.
    fn start_fill(
        &mut self,
        index: usize,
        flight: &mut Flight,
        writing: &mut Box<Writing>,
        part: usize,
    ) {
        let cluster = writing.cluster;
        let Some(fill) = &mut writing.fills[part - 1] else {
            return;
        };
        let Some(buffer) = fill.buffer.take() else {
            return;
        };
        let (op, cluster) = match fill.from {
            Some(Origin::External) => {
                return self.start_external_fill(index, flight, writing, part, buffer);
            }
            Some(Origin::Cluster(from)) => (Op::Read, from),
            _ => (Op::Write { fua: false }, cluster),
        };
        let at = self.block_of(cluster, fill.bytes.start);
        let blocks = buffer.len() as u32 / self.shared.block_size;
        let io = Io::with_payload(op, at, blocks, buffer.into(), tag(index, part));
        self.submit_part(index, flight, writing, part, io);
    }

    /// Reads a fill from the device outside the pool: as much of it as that device has.
    fn start_external_fill(
        &mut self,
        index: usize,
        flight: &mut Flight,
        writing: &mut Box<Writing>,
        part: usize,
        mut buffer: IoBuf,
    ) {
        let chain = &writing.chain;
        let cluster_size = self.shared.granularity.cluster_size();
        let inside = chain.external_bytes(writing.slot, cluster_size);
        let (Some(external), Some(fill)) = (chain.external, &mut writing.fills[part - 1]) else {
            return;
        };
        let start = fill.bytes.start;
        let len = inside.min(fill.bytes.end).saturating_sub(start);
        if len < buffer.len() as u64 {
            let front = buffer.split_to(len as usize);
            buffer.as_mut_slice().fill(0);
            fill.tail = Some(std::mem::replace(&mut buffer, front));
        }
        let place = Place {
            piece: chain.index,
            slot: writing.slot,
            bytes: fill.bytes.clone(),
        };
        let io = Io::with_payload(Op::Read, 0, 0, buffer.into(), tag(index, part));
        flight.parts_out += 1;
        if let Submit::Done(completion) = self.submit_external(external, &place, start, io, len) {
            self.take_part(index, flight, writing, part, completion);
        }
    }

    fn submit_part(
        &mut self,
        index: usize,
        flight: &mut Flight,
        writing: &mut Box<Writing>,
        part: usize,
        io: Io,
    ) {
        flight.parts_out += 1;
        if let Submit::Done(completion) = self.submit_to_base(io) {
            self.take_part(index, flight, writing, part, completion);
        }
    }

    fn take_part(
        &mut self,
        index: usize,
        flight: &mut Flight,
        writing: &mut Box<Writing>,
        part: usize,
        completion: Completion,
    ) {
        flight.parts_out -= 1;
        if let Err(error) = completion.result {
            flight.error.get_or_insert(error);
        }
        if part == DATA {
            flight.io.payload = completion.io.payload;
            return;
        }
        let Some(fill) = &mut writing.fills[part - 1] else {
            return;
        };
        // It was read: now it can be written.
        if fill.from.take().is_some() && flight.error.is_none() {
            fill.buffer = into_buffer(completion.io.payload);
            if let (Some(buffer), Some(tail)) = (&mut fill.buffer, fill.tail.take()) {
                let joined = buffer.join(tail);
                debug_assert!(joined.is_ok(), "it was split off there");
            }
            self.start_fill(index, flight, writing, part);
        }
    }

    pub(super) fn write_part_ended(
        &mut self,
        index: usize,
        flight: &mut Flight,
        mut writing: Box<Writing>,
        part: usize,
        completion: Completion,
    ) -> Attempt {
        self.take_part(index, flight, &mut writing, part, completion);
        self.writing_goes_on(index, flight, writing)
    }

    fn writing_goes_on(
        &mut self,
        index: usize,
        flight: &mut Flight,
        writing: Box<Writing>,
    ) -> Attempt {
        if flight.parts_out > 0 {
            return Attempt::Going(State::Writing(writing));
        }
        if let Some(error) = flight.error {
            self.unlock(&writing.chain, writing.slot, writing.locked);
            self.leave(writing.token);
            return Attempt::Done(Err(error));
        }
        if self.shared.log().is_some() {
            self.log_later(index);
            return Attempt::Going(State::Logging(writing));
        }
        let change = writing
            .chain
            .own
            .complete_write(writing.slot, writing.locked.into());
        self.shared.note(&writing.chain, change);
        self.first_write_ended(index, flight, writing.token)
    }

    /// The map has what was written.
    pub(super) fn first_write_ended(
        &mut self,
        index: usize,
        flight: &mut Flight,
        token: u8,
    ) -> Attempt {
        self.leave(token);
        if flight.edges.is_some() {
            return self.next_edge(index, flight);
        }
        if flight.io.op.fua() && !self.log_survives_power_loss() {
            return self.need_commit(index);
        }
        Attempt::Done(Ok(()))
    }

    pub(super) fn attempt_zero(&mut self, index: usize, flight: &mut Flight) -> Attempt {
        if flight.edges.is_some() {
            return self.next_edge(index, flight);
        }
        let place = self.place(&flight.io);
        let token = match self.enter(&flight.io) {
            Ok(token) => token,
            Err(attempt) => return attempt,
        };
        let Some(chain) = self.chain(place.piece).cloned() else {
            self.leave(token);
            return self.need_piece(place.piece);
        };
        let whole = self.shared.granularity.span(place.bytes.clone()).whole();
        if whole.is_empty() {
            return self.zeroes_ended(index, flight, token);
        }
        if !self.lock(&chain, place.slot, whole) {
            self.leave(token);
            return Attempt::Going(State::Retry);
        }
        let hides = chain.hides(place.slot, self.shared.granularity.cluster_size());
        if !chain
            .own
            .is_changed_by_zero(place.slot, whole.into(), hides)
        {
            self.unlock(&chain, place.slot, whole);
            return self.zeroes_ended(index, flight, token);
        }
        if self.shared.log().is_some() {
            self.log_later(index);
            return Attempt::Going(State::LoggingZero(Zeroing {
                token,
                chain,
                slot: place.slot,
                granules: whole,
                hides,
                is_logged: false,
            }));
        }
        let change = chain.own.complete_zero(place.slot, whole.into(), hides);
        self.shared.note(&chain, change);
        flight.zeroed = true;
        self.zeroes_ended(index, flight, token)
    }

    /// The map has the whole granules that are zeroes; parts of others are left.
    pub(super) fn zeroes_ended(&mut self, index: usize, flight: &mut Flight, token: u8) -> Attempt {
        self.leave(token);
        let span = self
            .shared
            .granularity
            .span(self.place(&flight.io).bytes.clone());
        if flight.io.op == Op::Unmap {
            // A part of a granule stays as it is: unmap is advice.
            return Attempt::Done(Ok(()));
        }
        let granule = self.shared.granularity.granule_size();
        let edges = [span.head, span.tail].into_iter().flatten();
        let edges = edges.map(|edge| {
            let start = u64::from(edge.granule) * granule;
            start + u64::from(edge.start)..start + u64::from(edge.end)
        });
        flight.edges = Some(edges.collect());
        self.next_edge(index, flight)
    }

    /// Writes zeroes to the next part of a granule, or ends.
    pub(super) fn next_edge(&mut self, index: usize, flight: &mut Flight) -> Attempt {
        loop {
            // Of the edge before.
            flight.io.payload = Payload::None;
            let Some(bytes) = flight
                .edges
                .as_ref()
                .and_then(|edges| edges.last().cloned())
            else {
                let is_pending = flight.zeroed || self.shared.is_uncommitted();
                if flight.io.op.fua() && is_pending && !self.log_survives_power_loss() {
                    return self.need_commit(index);
                }
                return Attempt::Done(Ok(()));
            };
            let attempt = self.write_edge(index, flight, bytes);
            match &attempt {
                Attempt::Done(Err(_)) => return attempt,
                // Not begun: it is tried again.
                Attempt::Going(state) if state.waits() => return attempt,
                _ => {}
            }
            flight.edges.as_mut().and_then(Vec::pop);
            if matches!(attempt, Attempt::Going(_)) {
                return attempt;
            }
        }
    }

    fn write_edge(&mut self, index: usize, flight: &mut Flight, bytes: Range<u64>) -> Attempt {
        let place = Place {
            bytes,
            ..self.place(&flight.io)
        };
        let token = match self.enter(&flight.io) {
            Ok(token) => token,
            Err(attempt) => return attempt,
        };
        let Some(chain) = self.chain(place.piece).cloned() else {
            self.leave(token);
            return self.need_piece(place.piece);
        };
        let is_zero = self.only_run(&chain, &place) == Some(Origin::Zeroes);
        self.leave(token);
        if is_zero {
            return Attempt::Done(Ok(()));
        }
        let len = (place.bytes.end - place.bytes.start) as usize;
        let Some(mut buffer) = self.buffers.get(len) else {
            return self.no_buffer(len);
        };
        buffer.as_mut_slice().fill(0);
        flight.io.payload = buffer.into();
        self.write_at(index, flight, &place)
    }
}
