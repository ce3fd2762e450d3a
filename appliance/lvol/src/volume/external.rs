//! Reads from the device outside the pool that a volume lies on.
//!
//! The channel to it is opened when it is first needed, and closed when the volume lies on it no more
//! and nothing is in flight.
//!
//! What cannot be read because the device is not there ends in [`IoError::Internal`]: a host may try
//! that again, here or on another path, and finds the data once the device is back. A media error would
//! say that the data are lost.

use std::sync::Arc;
use std::time::Instant;

use block::{Bdev, BdevChannel, Completion, Io, IoError, Op, OpKind, Submit};
use dma::Payload;

use super::channel::{Attempt, VolumeChannel};
use super::flight::{Flight, Place, State, tag};
use crate::map::PIECE_SLOTS;
use crate::pool::{EXTERNAL_RETRY, ExternalPart, Request};

/// A channel's way to a device outside the pool.
pub(super) struct ExternalSide {
    uuid: [u8; 16],
    /// Open, unless it has to be asked for.
    channel: Option<BdevChannel>,
    /// The worker was asked for it.
    asked: bool,
    /// To be closed when nothing is in flight: the device is gone.
    is_lost: bool,
    /// To be forgotten when nothing is in flight: the volume does not lie on it any more.
    is_released: bool,
    /// Not asked for again before.
    retry_at: Option<Instant>,
}

impl ExternalSide {
    fn new(uuid: [u8; 16]) -> Self {
        Self {
            uuid,
            channel: None,
            asked: false,
            is_lost: false,
            is_released: false,
            retry_at: None,
        }
    }

    fn is_idle(&self) -> bool {
        let channel = self.channel.as_ref();
        channel.is_none_or(|channel| channel.in_flight() == 0)
    }

    /// Closes what is not to be used any more.
    fn tidy(&mut self) {
        if self.is_lost && self.is_idle() {
            self.channel = None;
            self.is_lost = false;
        }
    }

    /// An error of the device as the volume's.
    fn judge(&mut self, result: Result<(), IoError>, now: Instant) -> Result<(), IoError> {
        result.map_err(|error| match error {
            IoError::Removed | IoError::OutOfRange => {
                self.is_lost = true;
                self.retry_at = Some(now + EXTERNAL_RETRY);
                IoError::Internal
            }
            IoError::Unsupported | IoError::InvalidField => IoError::Internal,
            error => error,
        })
    }
}

impl VolumeChannel {
    /// Opens the way to a device, or says what an I/O that needs it does meanwhile.
    pub(super) fn need_external(&mut self, part: ExternalPart) -> Result<(), Attempt> {
        let now = self.now.expect("every way here begins with submit or poll");
        let known = self
            .externals
            .iter()
            .position(|side| side.uuid == part.uuid);
        let index = known.unwrap_or(self.externals.len());
        if known.is_none() {
            self.externals.push(ExternalSide::new(part.uuid));
        }
        let side = &mut self.externals[index];
        side.tidy();
        if side.is_lost {
            return Err(Attempt::Done(Err(IoError::Internal)));
        }
        if side.channel.is_some() {
            return Ok(());
        }
        if side.asked {
            return Err(Attempt::Going(State::External(part.uuid)));
        }
        if side.retry_at.is_some_and(|at| now < at) {
            return Err(Attempt::Done(Err(IoError::Internal)));
        }
        side.asked = true;
        self.shared.request(Request::External {
            part,
            mailbox: Arc::clone(&self.mailbox),
        });
        Err(Attempt::Going(State::External(part.uuid)))
    }

    /// Is the worker's answer on its way?
    pub(super) fn asks_external(&self, uuid: [u8; 16]) -> bool {
        let mut sides = self.externals.iter();
        sides.any(|side| side.uuid == uuid && side.asked)
    }

    /// The worker's answer.
    pub(super) fn external_came(&mut self, uuid: [u8; 16], device: Result<Arc<Bdev>, IoError>) {
        let Some(side) = self.externals.iter_mut().find(|side| side.uuid == uuid) else {
            return;
        };
        side.asked = false;
        side.is_released = false;
        let opened = device.and_then(|bdev| {
            let opened = bdev.open_revocable(&self.context);
            opened.map_err(|error| {
                tracing::warn!(bdev = bdev.name(), %error, "a parent cannot be opened");
                IoError::Internal
            })
        });
        match opened {
            Ok(channel) => {
                side.channel = Some(channel);
                side.retry_at = None;
            }
            Err(error) => {
                side.retry_at = self.now.map(|now| now + EXTERNAL_RETRY);
                self.end_waiting(|_, state| {
                    matches!(state, State::External(waits) if *waits == uuid).then_some(Err(error))
                });
            }
        }
    }

    pub(super) fn external_gone(&mut self, uuid: [u8; 16]) {
        for side in self.externals.iter_mut().filter(|side| side.uuid == uuid) {
            side.is_released = true;
        }
        self.drop_released();
    }

    fn drop_released(&mut self) {
        self.externals
            .retain(|side| side.asked || !side.is_released || !side.is_idle());
    }

    /// Where a place lies in the volume, bytes.
    fn start_of(&self, place: &Place) -> u64 {
        let cluster = place.piece * PIECE_SLOTS as u64 + place.slot as u64;
        cluster * self.shared.granularity.cluster_size()
    }

    /// Does the device do this operation? It is open.
    pub(super) fn external_supports(&self, part: ExternalPart, kind: OpKind) -> bool {
        let mut sides = self.externals.iter();
        let side = sides.find(|side| side.uuid == part.uuid);
        let channel = side.and_then(|side| side.channel.as_ref());
        channel.is_some_and(|channel| channel.geometry().supports.contains(kind))
    }

    /// Gives an I/O to a device that is open. `byte` is of the place's cluster.
    pub(super) fn submit_external(
        &mut self,
        part: ExternalPart,
        place: &Place,
        byte: u64,
        mut io: Io,
        len: u64,
    ) -> Submit {
        let now = self.now.expect("every way here begins with submit or poll");
        let start = self.start_of(place) + byte;
        let mut sides = self.externals.iter_mut();
        let Some(side) = sides.find(|side| side.uuid == part.uuid) else {
            debug_assert!(false, "an i/o to a parent that is not open");
            return Submit::Done(io.complete(Err(IoError::Internal)));
        };
        let Some(channel) = &mut side.channel else {
            return Submit::Done(io.complete(Err(IoError::Internal)));
        };
        let block = u64::from(channel.geometry().block_size);
        io.lba = block::Lba(start / block);
        io.blocks = (len / block) as u32;
        let submitted = channel.submit(io, now);
        match submitted {
            Submit::Pending => Submit::Pending,
            Submit::Done(Completion { io, result }) => {
                Submit::Done(io.complete(side.judge(result, now)))
            }
        }
    }

    /// Gives all of a read to the device.
    pub(super) fn read_external(
        &mut self,
        index: usize,
        flight: &mut Flight,
        token: u8,
        part: ExternalPart,
        place: &Place,
    ) -> Attempt {
        if let Err(attempt) = self.need_external(part) {
            self.leave(token);
            return attempt;
        }
        let payload = flight.io.payload.take();
        let len = place.bytes.end - place.bytes.start;
        let io = Io::with_payload(Op::Read, 0, 0, payload, tag(index, 0));
        match self.submit_external(part, place, place.bytes.start, io, len) {
            Submit::Pending => Attempt::Going(State::Below {
                token,
                chain: None,
                written: None,
                lease: None,
            }),
            Submit::Done(completion) => {
                flight.io.payload = completion.io.payload;
                self.leave(token);
                Attempt::Done(completion.result)
            }
        }
    }

    /// What the devices have ended.
    pub(super) fn poll_externals(&mut self, now: Instant, done: &mut Vec<Completion>) {
        for side in &mut self.externals {
            let before = done.len();
            if let Some(channel) = &mut side.channel {
                channel.poll(now, done);
            }
            for completion in &mut done[before..] {
                completion.result = side.judge(completion.result, now);
            }
            side.tidy();
        }
        self.drop_released();
    }

    /// While a device has I/O it is asked again at once: the channel has one descriptor to tell of, and
    /// that is the pool's device's.
    pub(super) fn externals_in_flight(&self) -> bool {
        self.externals.iter().any(|side| !side.is_idle())
    }

    pub(super) fn abort_external(&mut self, tag: u64) -> bool {
        let mut channels = self
            .externals
            .iter_mut()
            .filter_map(|side| side.channel.as_mut());
        channels.any(|channel| channel.abort(tag))
    }
}

/// The buffer of a payload.
pub(super) fn into_buffer(payload: Payload) -> Option<dma::IoBuf> {
    match payload {
        Payload::Buf(buffer) => Some(buffer),
        _ => None,
    }
}
