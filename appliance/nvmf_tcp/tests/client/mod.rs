//! A raw NVMe/TCP host for tests and benchmarks: it sends what it is told to, right or wrong.
//! It never blocks: while it waits it has the target polled.

#![expect(dead_code, reason = "each user of this file takes what it needs")]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use fabric_wire::digest::crc32c;
use fabric_wire::fabrics::{ConnectCommand, ConnectData};
use fabric_wire::tcp::{
    self, DecodeLimits, EncodeOptions, Pdu, PduError, Receiver, data_alignment_bytes,
};
use fabric_wire::{Nqn, tcp::PduLayout};
use nvme_spec::{Cid, Cntlid, Cqe, Qid, SglDescriptor, Sqe, Status};
use zerocopy::IntoBytes;

/// A test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Polls the target once.
pub(crate) trait Pump {
    /// As said.
    fn pump(&mut self);
}

/// The target runs elsewhere.
pub(crate) struct Elsewhere;

impl Pump for Elsewhere {
    fn pump(&mut self) {
        std::hint::spin_loop();
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Done {
    /// The completion's status; success if the data said so.
    pub(crate) status: Status,
    /// Dwords 0 and 1 of the completion.
    pub(crate) result: u64,
    /// The data read.
    pub(crate) data: Vec<u8>,
    /// Whether a response PDU came.
    pub(crate) had_response: bool,
    /// R2Ts that came.
    pub(crate) r2ts: usize,
}

/// A connection.
pub(crate) struct Client {
    /// Its socket, non-blocking.
    pub(crate) stream: TcpStream,
    /// What was agreed for sending.
    pub(crate) encode: EncodeOptions,
    /// What was agreed for receiving.
    pub(crate) decode: DecodeLimits,
    /// From ICResp.
    pub(crate) maxh2cdata: u32,
    /// The target has closed its end.
    pub(crate) is_closed: bool,
    chunk: Box<[u8]>,
    received: Vec<u8>,
    start: usize,
}

/// The subsystem that tests connect to.
pub(crate) fn subsystem_nqn() -> Nqn {
    Nqn::new("nqn.2026-11.example.adit:tcp-test").unwrap()
}

/// The host that tests connect as.
pub(crate) fn host_nqn() -> Nqn {
    Nqn::new("nqn.2026-11.example.adit:host").unwrap()
}

impl Client {
    /// Connects to an address of the form `127.0.0.1:4420`.
    pub(crate) fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            encode: EncodeOptions::default(),
            decode: DecodeLimits::default(),
            maxh2cdata: 0,
            is_closed: false,
            chunk: vec![0; 256 << 10].into(),
            received: Vec::new(),
            start: 0,
        }
    }

    /// Sends all of it.
    pub(crate) fn write(&mut self, pump: &mut dyn Pump, mut bytes: &[u8]) {
        let start = Instant::now();
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => pump.pump(),
                Err(error) => panic!("send: {error}"),
            }
            assert!(start.elapsed() < PATIENCE, "the target reads no more");
        }
    }

    /// Sends what goes without waiting; the target may have closed.
    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> usize {
        self.stream.write(bytes).unwrap_or(0)
    }

    /// Receives what is there.
    pub(crate) fn fill(&mut self) {
        if self.start == self.received.len() {
            self.received.clear();
            self.start = 0;
        } else if self.start > 1 << 20 {
            self.received.drain(..self.start);
            self.start = 0;
        }
        match self.stream.read(&mut self.chunk) {
            Ok(0) => self.is_closed = true,
            Ok(count) => self.received.extend_from_slice(&self.chunk[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.is_closed = true,
        }
    }

    /// Bytes that were received and not looked at.
    pub(crate) fn pending(&self) -> usize {
        self.received.len() - self.start
    }

    /// The next PDU among what was received, if it is there whole: its header's bytes and data.
    pub(crate) fn buffered_pdu(&mut self) -> Option<(PduLayout, Pdu, &[u8])> {
        let bytes = &self.received[self.start..];
        let layout = match tcp::decode_common(bytes, Receiver::Host, &self.decode) {
            Ok(layout) => layout,
            Err(PduError::Incomplete { .. }) => return None,
            Err(error) => panic!("the target sent {error}"),
        };
        if bytes.len() < layout.plen as usize {
            return None;
        }
        let pdu = layout.decode(bytes).unwrap();
        let start = self.start;
        self.start += layout.plen as usize;
        let bytes = &self.received[start..];
        let end = layout.data_offset + layout.data_len as usize;
        let data = &bytes[layout.data_offset..end];
        if layout.data_digest {
            let digest: [u8; 4] = bytes[end..end + 4].try_into().unwrap();
            assert_eq!(u32::from_le_bytes(digest), crc32c(data), "data digest");
        }
        Some((layout, pdu, data))
    }

    /// Waits for a PDU.
    pub(crate) fn pdu(&mut self, pump: &mut dyn Pump) -> (Pdu, Vec<u8>) {
        self.pdu_or_end(pump)
            .expect("the target closed the connection")
    }

    /// Waits for a PDU, or for the target to close: `None`.
    pub(crate) fn pdu_or_end(&mut self, pump: &mut dyn Pump) -> Option<(Pdu, Vec<u8>)> {
        let start = Instant::now();
        loop {
            if let Some((_, pdu, data)) = self.buffered_pdu() {
                return Some((pdu, data.to_vec()));
            }
            if self.is_closed {
                return None;
            }
            pump.pump();
            self.fill();
            assert!(start.elapsed() < PATIENCE, "the target does not answer");
        }
    }

    /// Waits for the target to close, whatever it sends before.
    pub(crate) fn wait_for_end(&mut self, pump: &mut dyn Pump) {
        let start = Instant::now();
        while !self.is_closed {
            pump.pump();
            self.fill();
            self.start = self.received.len();
            assert!(start.elapsed() < PATIENCE, "the target does not close");
        }
    }

    /// Waits for the C2HTermReq and the end; returns its FES and FEI.
    pub(crate) fn term_req(&mut self, pump: &mut dyn Pump) -> (u16, u32) {
        loop {
            match self.pdu_or_end(pump) {
                Some((Pdu::TermReq { fes, fei, .. }, _)) => {
                    assert!(self.pdu_or_end(pump).is_none(), "nothing follows a TermReq");
                    return (fes, fei);
                }
                Some(_) => {}
                None => panic!("the target closed without a TermReq"),
            }
        }
    }

    /// Bytes of an ICReq.
    pub(crate) fn ic_req(hpda: u8, header_digest: bool, data_digest: bool) -> Vec<u8> {
        let mut bytes = vec![0; 128];
        tcp::encode_ic_req(&mut bytes, hpda, header_digest, data_digest, 0).unwrap();
        bytes
    }

    /// Sends ICReq and takes ICResp.
    pub(crate) fn initialize(&mut self, pump: &mut dyn Pump, hpda: u8, digests: (bool, bool)) {
        self.write(pump, &Self::ic_req(hpda, digests.0, digests.1));
        let (pdu, _) = self.pdu(pump);
        self.agree(hpda, pdu);
    }

    /// Takes what an ICResp says.
    pub(crate) fn agree(&mut self, hpda: u8, pdu: Pdu) {
        let Pdu::IcResp {
            cpda,
            header_digest,
            data_digest,
            maxh2cdata,
        } = pdu
        else {
            panic!("{pdu:?} where ICResp was due");
        };
        self.encode = EncodeOptions {
            header_digest,
            data_digest,
            pda: data_alignment_bytes(cpda).unwrap(),
        };
        self.decode.header_digest = header_digest;
        self.decode.data_digest = data_digest;
        self.decode.pda = data_alignment_bytes(hpda).unwrap();
        self.maxh2cdata = maxh2cdata;
    }

    /// A header made by `encode`, then data and its digest.
    fn with_data(&self, mut bytes: Vec<u8>, len: usize, data: &[u8]) -> Vec<u8> {
        bytes.truncate(len);
        bytes.extend_from_slice(data);
        if self.encode.data_digest && !data.is_empty() {
            bytes.extend_from_slice(&tcp::data_digest(crc32c(data)));
        }
        bytes
    }

    /// Bytes of a command capsule.
    pub(crate) fn capsule(&self, sqe: &Sqe, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 256];
        let len =
            tcp::encode_capsule_cmd(&mut bytes, sqe, data.len() as u32, &self.encode).unwrap();
        self.with_data(bytes, len, data)
    }

    /// Appends the bytes of a command capsule.
    pub(crate) fn append_capsule(&self, bytes: &mut Vec<u8>, sqe: &Sqe, data: &[u8]) {
        let start = bytes.len();
        bytes.resize(start + 256, 0);
        let data_len = data.len() as u32;
        let len =
            tcp::encode_capsule_cmd(&mut bytes[start..], sqe, data_len, &self.encode).unwrap();
        bytes.truncate(start + len);
        bytes.extend_from_slice(data);
        if self.encode.data_digest && !data.is_empty() {
            bytes.extend_from_slice(&tcp::data_digest(crc32c(data)));
        }
    }

    /// Bytes of an H2CData.
    pub(crate) fn h2c(&self, cid: Cid, ttag: u16, datao: u32, data: &[u8], last: bool) -> Vec<u8> {
        let mut bytes = vec![0; 256];
        let len = data.len() as u32;
        let len =
            tcp::encode_h2c_data(&mut bytes, cid, ttag, datao, len, last, &self.encode).unwrap();
        self.with_data(bytes, len, data)
    }

    /// A Connect and its data.
    pub(crate) fn connect_capsule(qid: u16, sqsize: u16, cntlid: u16) -> (Sqe, Vec<u8>) {
        let command = ConnectCommand {
            recfmt: 0,
            qid: Qid(qid),
            sqsize,
            cattr: 0,
            kato_ms: 0,
        };
        let data = ConnectData::new([7; 16], Cntlid(cntlid), &subsystem_nqn(), &host_nqn());
        let sqe = command
            .to_sqe(Cid(0xc0))
            .with_sgl(SglDescriptor::in_capsule(0, data.as_bytes().len() as u32));
        (sqe, data.as_bytes().to_vec())
    }

    /// Connects a queue; the result is the controller identifier.
    pub(crate) fn connect_queue(
        &mut self,
        pump: &mut dyn Pump,
        qid: u16,
        sqsize: u16,
        cntlid: u16,
    ) -> Done {
        let (sqe, data) = Self::connect_capsule(qid, sqsize, cntlid);
        let capsule = self.capsule(&sqe, &data);
        self.write(pump, &capsule);
        self.finish(pump, sqe.cid(), &[])
    }

    /// Runs a command that sends nothing, or its data in the capsule.
    pub(crate) fn run(&mut self, pump: &mut dyn Pump, sqe: Sqe, in_capsule: &[u8]) -> Done {
        let capsule = self.capsule(&sqe, in_capsule);
        self.write(pump, &capsule);
        self.finish(pump, sqe.cid(), &[])
    }

    /// Runs a command whose data the target asks for.
    pub(crate) fn run_with_r2t(&mut self, pump: &mut dyn Pump, sqe: Sqe, data: &[u8]) -> Done {
        let sqe = sqe.with_sgl(SglDescriptor::transport_data(data.len() as u32));
        let capsule = self.capsule(&sqe, &[]);
        self.write(pump, &capsule);
        self.finish(pump, sqe.cid(), data)
    }

    /// Takes PDUs of one command until it ends, and sends the data asked for.
    pub(crate) fn finish(&mut self, pump: &mut dyn Pump, cid: Cid, data: &[u8]) -> Done {
        let mut done = Done {
            status: Status::SUCCESS,
            result: 0,
            data: Vec::new(),
            had_response: false,
            r2ts: 0,
        };
        loop {
            let (pdu, bytes) = self.pdu(pump);
            match pdu {
                Pdu::R2T {
                    cccid,
                    ttag,
                    r2to,
                    r2tl,
                } => {
                    assert_eq!(cccid, cid);
                    done.r2ts += 1;
                    let (from, end) = (r2to as usize, (r2to + r2tl) as usize);
                    for at in (from..end).step_by(self.maxh2cdata as usize) {
                        let to = end.min(at + self.maxh2cdata as usize);
                        let part = &data[at..to];
                        let pdu = self.h2c(cid, ttag, at as u32, part, to == end);
                        self.write(pump, &pdu);
                    }
                }
                Pdu::C2HData {
                    cccid,
                    datao,
                    success,
                    ..
                } => {
                    assert_eq!(cccid, cid);
                    assert_eq!(datao as usize, done.data.len(), "data comes in order");
                    done.data.extend_from_slice(&bytes);
                    if success {
                        return done;
                    }
                }
                Pdu::CapsuleResp { cqe } => {
                    assert_eq!(cqe.cid(), cid);
                    done.status = cqe.status();
                    done.result = cqe.result();
                    done.had_response = true;
                    return done;
                }
                other => panic!("{other:?} while a command runs"),
            }
        }
    }

    /// The next response, whatever the command.
    pub(crate) fn response(&mut self, pump: &mut dyn Pump) -> Cqe {
        match self.pdu(pump) {
            (Pdu::CapsuleResp { cqe }, _) => cqe,
            (other, _) => panic!("{other:?} where a response was due"),
        }
    }
}
