//! Commands as a queue takes them, and what it gives back.

use std::time::Duration;

use nvme_spec::{Cid, Cqe, Sqe};

use crate::buffer::Buffer;
use crate::error::CommandError;

/// Which way a command's data goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Direction {
    /// It has none.
    #[default]
    None,
    /// From the host to the controller.
    ToController,
    /// From the controller to the host.
    FromController,
}

/// Who describes the data of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SglSource {
    /// The queue: in the capsule when it fits, otherwise through the transport.
    #[default]
    Queue,
    /// The queue, always through the transport: the controller asks for the data with R2Ts.
    Transport,
    /// The submission queue entry as it is; the buffer goes into the capsule. For tests of targets.
    EntryInCapsule,
    /// The submission queue entry as it is; the capsule has no data. For tests of targets.
    Entry,
}

/// A command for a queue.
#[derive(Debug)]
pub struct Command {
    /// The entry. Its CID is the queue's to choose.
    pub sqe: Sqe,
    /// The data.
    pub buffer: Buffer,
    /// Which way it goes.
    pub direction: Direction,
    /// Who describes it.
    pub sgl: SglSource,
    /// A number of the caller's that the completion carries.
    pub tag: u64,
    /// Time until it is aborted; `None` is the queue's default.
    pub timeout: Option<Duration>,
}

impl Command {
    /// A command without data.
    #[must_use]
    pub fn new(sqe: Sqe, tag: u64) -> Self {
        Self {
            sqe,
            buffer: Buffer::None,
            direction: Direction::None,
            sgl: SglSource::Queue,
            tag,
            timeout: None,
        }
    }

    /// With data to send.
    #[must_use]
    pub fn sending(mut self, buffer: impl Into<Buffer>) -> Self {
        self.buffer = buffer.into();
        self.direction = Direction::ToController;
        self
    }

    /// With room for data to receive, all of which is asked for.
    #[must_use]
    pub fn receiving(mut self, buffer: impl Into<Buffer>) -> Self {
        self.buffer = buffer.into();
        self.direction = Direction::FromController;
        self
    }
}

/// The end of a command.
#[derive(Debug)]
pub struct Completion {
    /// The caller's number.
    pub tag: u64,
    /// Dwords 0 and 1 of the completion, or what went wrong.
    pub result: Result<u64, CommandError>,
    /// The completion queue entry. All zero but for the CID when the connection was lost or the
    /// controller let the last data stand for it.
    pub cqe: Cqe,
    /// The command's buffer.
    pub buffer: Buffer,
    /// Bytes received, or asked for by the controller.
    pub transferred: u32,
}

/// Why a command was not taken. Both cost nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The queue is full: submit it again after a completion.
    Full,
    /// The connection is not up yet, or has ended.
    NotReady,
    /// The buffer cannot be used this way: it is too long, or cannot be read or filled.
    Buffer,
    /// The caller may not use this tag, or the request makes no command.
    Invalid,
}

/// A command that was not taken.
#[derive(Debug)]
pub struct Refused<C> {
    /// Why.
    pub reason: Refusal,
    /// The command, unchanged.
    pub command: C,
}

/// What became of a command that was submitted.
#[derive(Debug)]
#[must_use = "a refused command is in here"]
pub enum Submit<C> {
    /// Taken. It is sent by the next poll or flush; its completion comes from a poll.
    Accepted(Cid),
    /// Not taken.
    Refused(Refused<C>),
}

impl<C> Submit<C> {
    #[inline]
    pub(crate) fn refused(reason: Refusal, command: C) -> Self {
        Self::Refused(Refused { reason, command })
    }

    /// Whether it was taken.
    pub fn is_accepted(&self) -> bool {
        matches!(self, Self::Accepted(_))
    }
}
