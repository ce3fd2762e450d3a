//! A host with one I/O queue, on the caller's thread.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use fabric_wire::Nqn;
use fabric_wire::fabrics::{PropertyGet, PropertySet, PropertySize};
use fabric_wire::tcp::Pdu;
use nvme_spec::{Cid, Cqe, Lba, Nsid, SglDescriptor, Sqe, Status, registers};

use crate::patience;
use crate::peer::{Peer, QueueOptions};

/// What goes into a capsule; more is asked for by R2T.
const IN_CAPSULE_BYTES: usize = 4096;
/// Bytes of a logical block of every device in these tests.
pub const BLOCK_BYTES: usize = 512;
/// IOSQES 6, IOCQES 4, EN.
const CC_ENABLE: u64 = 4 << 20 | 6 << 16 | 1;

/// Why a host's call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The connection broke, or the target broke the protocol.
    #[error("the connection broke")]
    Connection(#[from] io::Error),
    /// A command ended with an error.
    #[error("{command} ended with {status}")]
    Status {
        /// Which.
        command: &'static str,
        /// Its status.
        status: Status,
    },
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
    /// Keep-alive time-out, 0 = none. The caller then calls [`Host::keep_alive`].
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
}

impl Request {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Flush => "flush",
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
    /// Data read, or the status.
    pub result: Result<Vec<u8>, Status>,
}

#[derive(Debug)]
struct Pending {
    tag: u64,
    request: Request,
    received: Vec<u8>,
}

/// A host: an admin queue and one I/O queue. Dropping it closes the connections without a word, as
/// a host that dies does.
#[derive(Debug)]
pub struct Host {
    admin: Peer,
    io: Peer,
    pending: HashMap<u16, Pending>,
    free: Vec<u16>,
    cntlid: u16,
    next_admin_cid: u16,
}

impl Host {
    /// Connects to a subsystem at a port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// When the target refuses, or does not answer.
    pub fn connect(port: u16, subnqn: &str, options: &HostOptions) -> Result<Self, HostError> {
        let subnqn = Nqn::new(subnqn).map_err(|error| io::Error::other(error.to_string()))?;
        let name = format!("nqn.2026-11.io.adit.test:host{}", options.number);
        let hostnqn = Nqn::new(&name).expect("it is a valid name");
        let mut hostid = [0x11; 16];
        hostid[..4].copy_from_slice(&options.number.to_le_bytes());
        let mut queue = QueueOptions {
            qid: 0,
            sqsize: 31,
            cntlid: 0xffff,
            kato_ms: options.kato_ms,
            hostid,
            subnqn: &subnqn,
            hostnqn: &hostnqn,
        };
        let mut admin = Peer::connect(port)?;
        admin.initialize(options.header_digest, options.data_digest)?;
        let capsule = admin.connect_capsule(&queue);
        let cqe = exchange(&mut admin, "connect of the admin queue", &capsule)?;
        let cntlid = cqe.result() as u16;
        enable(&mut admin)?;
        queue.qid = 1;
        queue.sqsize = options.queue_depth;
        queue.cntlid = cntlid;
        queue.kato_ms = 0;
        let mut io = Peer::connect(port)?;
        io.initialize(options.header_digest, options.data_digest)?;
        let capsule = io.connect_capsule(&queue);
        exchange(&mut io, "connect of an I/O queue", &capsule)?;
        Ok(Self {
            admin,
            io,
            pending: HashMap::new(),
            free: (0..options.queue_depth).collect(),
            cntlid,
            next_admin_cid: 100,
        })
    }

    /// Identifier of its controller.
    pub fn cntlid(&self) -> u16 {
        self.cntlid
    }

    /// Requests that have not ended.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Whether [`Host::submit`] has room.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Runs an admin command without data.
    ///
    /// # Errors
    ///
    /// Of the connection, or the command's status.
    pub fn admin(&mut self, command: &'static str, sqe: Sqe) -> Result<Cqe, HostError> {
        self.next_admin_cid = self.next_admin_cid.wrapping_add(1);
        let capsule = self
            .admin
            .capsule(&sqe.with_cid(Cid(self.next_admin_cid)), &[]);
        exchange(&mut self.admin, command, &capsule)
    }

    /// Sends a Keep Alive.
    ///
    /// # Errors
    ///
    /// As [`Host::admin`].
    pub fn keep_alive(&mut self) -> Result<(), HostError> {
        self.admin("keep alive", Sqe::keep_alive(Cid(0))).map(drop)
    }

    /// Sends a request.
    ///
    /// # Errors
    ///
    /// Of the connection.
    ///
    /// # Panics
    ///
    /// When there is no room: see [`Host::has_room`].
    pub fn submit(&mut self, tag: u64, request: Request) -> Result<(), HostError> {
        let number = self.free.pop().expect("the caller looked for room");
        let (cid, nsid) = (Cid(number), Nsid(1));
        let capsule = match &request {
            Request::Flush => self.io.capsule(&Sqe::flush(cid, nsid), &[]),
            Request::Read { lba, blocks } => {
                let sgl = SglDescriptor::transport_data(blocks * BLOCK_BYTES as u32);
                let sqe = Sqe::read(cid, nsid, Lba(*lba), *blocks).with_sgl(sgl);
                self.io.capsule(&sqe, &[])
            }
            Request::Write { lba, data, fua } => {
                let blocks = (data.len() / BLOCK_BYTES) as u32;
                let sqe = Sqe::write(cid, nsid, Lba(*lba), blocks).with_fua(*fua);
                let len = data.len() as u32;
                if data.len() <= IN_CAPSULE_BYTES {
                    let sqe = sqe.with_sgl(SglDescriptor::in_capsule(0, len));
                    self.io.capsule(&sqe, data)
                } else {
                    let sqe = sqe.with_sgl(SglDescriptor::transport_data(len));
                    self.io.capsule(&sqe, &[])
                }
            }
        };
        let pending = Pending {
            tag,
            request,
            received: Vec::new(),
        };
        self.pending.insert(number, pending);
        Ok(self.io.send(&capsule)?)
    }

    /// Takes what has come; waits for the first PDU for so long.
    ///
    /// # Errors
    ///
    /// Of the connection.
    pub fn poll(&mut self, wait: Duration, done: &mut Vec<Outcome>) -> Result<(), HostError> {
        let mut wait = wait;
        while let Some((pdu, data)) = self.io.poll(wait)? {
            wait = Duration::ZERO;
            self.take(&pdu, &data, done)?;
        }
        if self.io.is_closed() {
            let error = io::Error::new(io::ErrorKind::UnexpectedEof, "the target has closed");
            return Err(error.into());
        }
        Ok(())
    }

    fn take(&mut self, pdu: &Pdu, data: &[u8], done: &mut Vec<Outcome>) -> Result<(), HostError> {
        let unknown = || io::Error::new(io::ErrorKind::InvalidData, "a PDU of no command of ours");
        let (Pdu::R2T { cccid, .. } | Pdu::C2HData { cccid, .. }) = pdu else {
            let Pdu::CapsuleResp { cqe } = pdu else {
                return Err(unknown().into());
            };
            return Ok(self
                .end(cqe.cid(), cqe.status(), done)
                .ok_or_else(unknown)?);
        };
        let pending = self.pending.get_mut(&cccid.0).ok_or_else(unknown)?;
        match (pdu, &pending.request) {
            (Pdu::R2T { .. }, Request::Write { data, .. }) => self.io.answer_r2t(pdu, data)?,
            (Pdu::C2HData { datao, success, .. }, Request::Read { .. }) => {
                if *datao as usize != pending.received.len() {
                    return Err(unknown().into());
                }
                pending.received.extend_from_slice(data);
                if *success {
                    return Ok(self
                        .end(*cccid, Status::SUCCESS, done)
                        .ok_or_else(unknown)?);
                }
            }
            _ => return Err(unknown().into()),
        }
        Ok(())
    }

    fn end(&mut self, cid: Cid, status: Status, done: &mut Vec<Outcome>) -> Option<()> {
        let pending = self.pending.remove(&cid.0)?;
        self.free.push(cid.0);
        let result = if status.is_success() {
            Ok(pending.received)
        } else {
            Err(status)
        };
        done.push(Outcome {
            tag: pending.tag,
            request: pending.request,
            result,
        });
        Some(())
    }

    /// Runs one request while no other is in flight.
    ///
    /// # Errors
    ///
    /// Of the connection, or the command's status.
    pub fn run(&mut self, request: Request) -> Result<Vec<u8>, HostError> {
        let command = request.name();
        self.submit(0, request)?;
        let mut done = Vec::new();
        let start = Instant::now();
        while done.is_empty() {
            self.poll(Duration::from_millis(200), &mut done)?;
            if start.elapsed() > patience(30) {
                let error = io::Error::new(io::ErrorKind::TimedOut, "no completion in 30 s");
                return Err(error.into());
            }
        }
        let outcome = done.remove(0);
        outcome
            .result
            .map_err(|status| HostError::Status { command, status })
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

/// Sends a capsule on a queue where nothing is in flight and waits for its response.
fn exchange(peer: &mut Peer, command: &'static str, capsule: &[u8]) -> Result<Cqe, HostError> {
    peer.send(capsule)?;
    match peer.pdu()? {
        (Pdu::CapsuleResp { cqe }, _) if cqe.status().is_success() => Ok(cqe),
        (Pdu::CapsuleResp { cqe }, _) => Err(HostError::Status {
            command,
            status: cqe.status(),
        }),
        (other, _) => {
            let what = format!("{other:?} where a response was due");
            Err(io::Error::new(io::ErrorKind::InvalidData, what).into())
        }
    }
}

fn enable(admin: &mut Peer) -> Result<(), HostError> {
    let set = PropertySet {
        size: PropertySize::Four,
        offset: registers::CC,
        value: CC_ENABLE,
    };
    let capsule = admin.capsule(&set.to_sqe(Cid(1)), &[]);
    exchange(admin, "property set CC", &capsule)?;
    let get = PropertyGet {
        size: PropertySize::Four,
        offset: registers::CSTS,
    };
    let capsule = admin.capsule(&get.to_sqe(Cid(2)), &[]);
    let start = Instant::now();
    while exchange(admin, "property get CSTS", &capsule)?.result() & 1 == 0 {
        if start.elapsed() > patience(30) {
            let error = io::Error::new(io::ErrorKind::TimedOut, "not ready after 30 s");
            return Err(error.into());
        }
    }
    Ok(())
}
