//! A host with one I/O queue: the initiator library, driven by a small loop.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use fabric_wire::{Nqn, TransportAddress};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nvme_spec::{Lba, Nsid, Sqe, Status};
use nvmf_host::{
    Buffer, CommandError, Completion, Controller, ControllerState, Direction, HostContext,
    HostIdentity, IoOp, IoQueue, IoRequest,
};

use crate::patience;

/// Bytes of a logical block of every device in these tests.
pub const BLOCK_BYTES: usize = 512;

thread_local! {
    /// The hosts of a thread share their scratch memory.
    static CONTEXT: HostContext = HostContext::new();
}

/// Why a host's call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The initiator says so: the connection broke, or the target refused it.
    #[error("the initiator failed")]
    Host(#[from] nvmf_host::HostError),
    /// The connection broke while a command was outstanding.
    #[error("{command} was lost: {reason}")]
    Lost {
        /// Which.
        command: &'static str,
        /// Why.
        reason: String,
    },
    /// Nothing came in time.
    #[error("waited {waited:?} for {what}")]
    Deadline {
        /// What was waited for.
        what: &'static str,
        /// How long.
        waited: Duration,
    },
    /// A command ended with an error.
    #[error("{command} ended with {status}")]
    Status {
        /// Which.
        command: &'static str,
        /// Its status.
        status: Status,
    },
}

impl HostError {
    /// Whether the connection is gone.
    pub fn is_connection(&self) -> bool {
        !matches!(self, Self::Status { .. })
    }
}

/// How a host connects.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// Ask for header digests.
    pub header_digest: bool,
    /// Ask for data digests.
    pub data_digest: bool,
    /// Commands outstanding, 1 to 127.
    pub queue_depth: u16,
    /// Keep-alive time-out, 0 = none. The caller then calls [`Host::poll`] often enough.
    pub kato_ms: u32,
    /// Which host it is: each has a name and identifier of its own.
    pub number: u32,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            header_digest: false,
            data_digest: false,
            queue_depth: 32,
            kato_ms: 0,
            number: 1,
        }
    }
}

/// An I/O command to namespace 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Read blocks.
    Read {
        /// First block.
        lba: u64,
        /// How many.
        blocks: u32,
    },
    /// Write blocks.
    Write {
        /// First block.
        lba: u64,
        /// Whole blocks.
        data: Vec<u8>,
        /// Force unit access.
        fua: bool,
    },
    /// Flush.
    Flush,
    /// A command with data to send.
    Send {
        /// The entry.
        sqe: Sqe,
        /// The data.
        data: Vec<u8>,
    },
}

impl Request {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Flush => "flush",
            Self::Send { .. } => "a command",
        }
    }
}

/// How a request ended.
#[derive(Debug)]
pub struct Outcome {
    /// The number that [`Host::submit`] was given.
    pub tag: u64,
    /// The request.
    pub request: Request,
    /// Data read, or what went wrong.
    pub result: Result<Vec<u8>, HostError>,
}

/// A host: an admin queue and one I/O queue. Dropping it closes the connections without a word, as
/// a host that dies does.
#[derive(Debug)]
pub struct Host {
    controller: Controller,
    io: IoQueue,
    /// Requests that have not ended; what they write is with the queue.
    pending: HashMap<u64, Request>,
    completions: Vec<Completion>,
}

impl Host {
    /// Connects to a subsystem at a port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// When the target refuses, or does not answer.
    ///
    /// # Panics
    ///
    /// When `subnqn` is no name.
    pub fn connect(port: u16, subnqn: &str, options: &HostOptions) -> Result<Self, HostError> {
        let subnqn = Nqn::new(subnqn).expect("the test gives a valid name");
        let address: TransportAddress = format!("tcp://127.0.0.1:{port}")
            .parse()
            .expect("an address and a port");
        let name = format!("nqn.2026-11.io.adit.test:host{}", options.number);
        let mut hostid = [0x11; 16];
        hostid[..4].copy_from_slice(&options.number.to_le_bytes());
        let identity = HostIdentity {
            hostnqn: Nqn::new(&name).expect("it is a valid name"),
            hostid,
        };
        let host_options = nvmf_host::HostOptions {
            header_digest: options.header_digest,
            data_digest: options.data_digest,
            io_queue_depth: options.queue_depth,
            keep_alive: Duration::from_millis(options.kato_ms.into()),
            connect_timeout: patience(20),
            admin_timeout: patience(20),
            io_timeout: patience(40),
            ..nvmf_host::HostOptions::new(identity)
        };
        let start = Instant::now();
        let mut controller = CONTEXT
            .with(|context| Controller::connect(&address, &subnqn, host_options, context, start))?;
        loop {
            controller.poll(Instant::now());
            match controller.state() {
                ControllerState::Ready => break,
                ControllerState::Failed(error) => return Err(error.clone().into()),
                _ => {}
            }
            let waited = start.elapsed();
            if waited > patience(60) {
                let what = "the connection";
                return Err(HostError::Deadline { what, waited });
            }
            let until = controller.next_deadline();
            controller.with_wake_fd(|fd| {
                let send = controller.wants_to_send();
                sleep(&[fd.map(|fd| (fd, send))], Duration::from_millis(10), until);
            });
        }
        let mut queues = controller.take_io_queues();
        let io = queues
            .pop()
            .expect("a ready controller has the queue asked for");
        Ok(Self {
            controller,
            io,
            pending: HashMap::new(),
            completions: Vec::new(),
        })
    }

    /// Requests that have not ended.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Whether [`Host::submit`] has room.
    pub fn has_room(&self) -> bool {
        self.io.has_room()
    }

    /// Looks whether the controller still answers.
    ///
    /// # Errors
    ///
    /// Why it does not.
    pub fn probe(&mut self) -> Result<(), HostError> {
        let mut operation = self.controller.admin().identify_controller();
        let start = Instant::now();
        loop {
            self.controller.poll(Instant::now());
            if let Some(result) = operation.poll() {
                return Ok(result.map(drop)?);
            }
            let waited = start.elapsed();
            if waited > patience(60) {
                let what = "identify controller";
                return Err(HostError::Deadline { what, waited });
            }
            let controller = &self.controller;
            controller.with_wake_fd(|fd| {
                let send = controller.wants_to_send();
                sleep(&[fd.map(|fd| (fd, send))], Duration::from_millis(10), None);
            });
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    ///
    /// When the connection is gone.
    ///
    /// # Panics
    ///
    /// When there is no room: see [`Host::has_room`].
    pub fn submit(&mut self, tag: u64, mut request: Request) -> Result<(), HostError> {
        let (op, buffer) = match &mut request {
            Request::Flush => (IoOp::Flush, Buffer::None),
            Request::Send { sqe, data } => {
                let (sqe, direction) = (*sqe, Direction::ToController);
                let data = std::mem::take(data);
                (IoOp::Raw { sqe, direction }, Buffer::Vec(data))
            }
            Request::Read { lba, blocks } => {
                let (lba, blocks) = (Lba(*lba), *blocks);
                let room = vec![0; blocks as usize * BLOCK_BYTES];
                (IoOp::Read { lba, blocks }, Buffer::Vec(room))
            }
            Request::Write { lba, data, fua } => {
                let (lba, fua) = (Lba(*lba), *fua);
                let blocks = (data.len() / BLOCK_BYTES) as u32;
                let data = std::mem::take(data);
                (IoOp::Write { lba, blocks, fua }, Buffer::Vec(data))
            }
        };
        let command = request.name();
        let io_request = IoRequest::new(Nsid(1), op, tag).with_buffer(buffer);
        let submitted = self.io.submit(io_request, Instant::now());
        if !submitted.is_accepted() {
            if let Some(error) = self.failure() {
                return Err(error);
            }
            panic!("{command} {tag} was refused: the queue is full, or the tag is in use");
        }
        self.pending.insert(tag, request);
        Ok(())
    }

    fn failure(&self) -> Option<HostError> {
        let failure = self.io.failure().or(self.controller.failure());
        failure.map(|error| error.clone().into())
    }

    /// Sends what was submitted and takes what has come; waits for so long when nothing has.
    ///
    /// # Errors
    ///
    /// When the connection is gone.
    pub fn poll(&mut self, wait: Duration, done: &mut Vec<Outcome>) -> Result<(), HostError> {
        let now = Instant::now();
        self.controller.poll(now);
        let worked = self.io.poll(now, &mut self.completions);
        if !worked && self.completions.is_empty() && !wait.is_zero() {
            let io = self.io.wake_fd().map(|fd| (fd, self.io.wants_to_send()));
            let deadline = [self.io.next_deadline(), self.controller.next_deadline()];
            let deadline = deadline.into_iter().flatten().min();
            self.controller.with_wake_fd(|admin| {
                let admin = admin.map(|fd| (fd, self.controller.wants_to_send()));
                sleep(&[io, admin], wait, deadline);
            });
            let now = Instant::now();
            self.controller.poll(now);
            self.io.poll(now, &mut self.completions);
        }
        let reason = self.failure();
        for completion in std::mem::take(&mut self.completions) {
            done.extend(self.end(completion, reason.as_ref()));
        }
        match reason {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn end(&mut self, completion: Completion, reason: Option<&HostError>) -> Option<Outcome> {
        let mut request = self.pending.remove(&completion.tag)?;
        let command = request.name();
        let bytes = completion.buffer.into_vec();
        let mut read = Vec::new();
        match &mut request {
            Request::Write { data, .. } => *data = bytes,
            _ => read = bytes,
        }
        let result = match completion.result {
            Ok(_) => Ok(read),
            Err(CommandError::Status(status)) => Err(HostError::Status { command, status }),
            Err(error) => {
                let reason = reason.map_or(error.to_string(), |reason| format!("{reason:?}"));
                Err(HostError::Lost { command, reason })
            }
        };
        let tag = completion.tag;
        Some(Outcome {
            tag,
            request,
            result,
        })
    }

    /// Runs one request while no other is in flight.
    ///
    /// # Errors
    ///
    /// Of the connection, or the command's status.
    pub fn run(&mut self, request: Request) -> Result<Vec<u8>, HostError> {
        self.submit(0, request)?;
        let mut done = Vec::new();
        let start = Instant::now();
        while done.is_empty() {
            self.poll(Duration::from_millis(200), &mut done)?;
            let waited = start.elapsed();
            if waited > patience(60) {
                let what = "a completion";
                return Err(HostError::Deadline { what, waited });
            }
        }
        done.remove(0).result
    }

    /// Reads blocks.
    ///
    /// # Errors
    ///
    /// As [`Host::run`].
    pub fn read(&mut self, lba: u64, blocks: u32) -> Result<Vec<u8>, HostError> {
        self.run(Request::Read { lba, blocks })
    }

    /// Writes blocks.
    ///
    /// # Errors
    ///
    /// As [`Host::run`].
    pub fn write(&mut self, lba: u64, data: Vec<u8>) -> Result<(), HostError> {
        let fua = false;
        self.run(Request::Write { lba, data, fua }).map(drop)
    }

    /// Flushes.
    ///
    /// # Errors
    ///
    /// As [`Host::run`].
    pub fn flush(&mut self) -> Result<(), HostError> {
        self.run(Request::Flush).map(drop)
    }
}

/// Sleeps until a socket is ready, or it is time.
fn sleep(fds: &[Option<(BorrowedFd<'_>, bool)>], wait: Duration, deadline: Option<Instant>) {
    let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
    let wait = left.map_or(wait, |left| left.min(wait));
    let mut fds: Vec<PollFd<'_>> = fds
        .iter()
        .flatten()
        .map(|(fd, wants_to_send)| {
            let flags = if *wants_to_send {
                PollFlags::POLLIN | PollFlags::POLLOUT
            } else {
                PollFlags::POLLIN
            };
            PollFd::new(*fd, flags)
        })
        .collect();
    // Whatever it says, the caller looks.
    let _ = poll(
        &mut fds,
        PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO),
    );
}
