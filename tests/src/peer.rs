//! One NVMe/TCP connection that sends what it is told to, right or wrong.
//!
//! Tests of hostile peers must send what no initiator sends, so this is not `nvmf_host`: it knows
//! PDUs and nothing of queues.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use fabric_wire::Nqn;
use fabric_wire::digest::crc32c;
use fabric_wire::fabrics::{ConnectCommand, ConnectData};
use fabric_wire::tcp::{
    self, DecodeLimits, EncodeOptions, Pdu, PduError, PduLayout, Receiver, data_alignment_bytes,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nvme_spec::{Cid, Cntlid, Qid, SglDescriptor, Sqe};
use zerocopy::IntoBytes as _;

use crate::patience;

const CHUNK_BYTES: usize = 64 << 10;
/// Most that the headers of this crate's PDUs take.
const HEADER_BYTES: usize = 256;

/// A connection. Its socket does not block; what waits has a deadline.
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
    encode: EncodeOptions,
    decode: DecodeLimits,
    maxh2cdata: usize,
    chunk: Box<[u8]>,
    received: Vec<u8>,
    /// What of `received` was looked at.
    taken: usize,
    is_closed: bool,
}

fn broken(what: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.into())
}

impl Peer {
    /// Connects to a port of 127.0.0.1.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn connect(port: u16) -> io::Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = TcpStream::connect_timeout(&address, patience(30))?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            encode: EncodeOptions::default(),
            decode: DecodeLimits::default(),
            maxh2cdata: 0,
            chunk: vec![0; CHUNK_BYTES].into(),
            received: Vec::new(),
            taken: 0,
            is_closed: false,
        })
    }

    /// Bytes of an ICReq.
    pub fn ic_req(header_digest: bool, data_digest: bool) -> Vec<u8> {
        let mut bytes = vec![0; 128];
        tcp::encode_ic_req(&mut bytes, 0, header_digest, data_digest, 0)
            .expect("an ICReq has 128 bytes");
        bytes
    }

    /// Exchanges ICReq and ICResp.
    ///
    /// # Errors
    ///
    /// The socket's, or when the target answers with something else.
    pub fn initialize(&mut self, header_digest: bool, data_digest: bool) -> io::Result<()> {
        self.send(&Self::ic_req(header_digest, data_digest))?;
        let Pdu::IcResp {
            cpda,
            header_digest,
            data_digest,
            maxh2cdata,
        } = self.pdu()?.0
        else {
            return Err(broken("something else than ICResp came"));
        };
        self.encode = EncodeOptions {
            header_digest,
            data_digest,
            pda: data_alignment_bytes(cpda).ok_or_else(|| broken("wrong CPDA"))?,
        };
        self.decode.header_digest = header_digest;
        self.decode.data_digest = data_digest;
        self.maxh2cdata = maxh2cdata as usize;
        Ok(())
    }

    /// Sends all of it; the target must read it within half a minute.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let start = Instant::now();
        while !bytes.is_empty() {
            match self.stream.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if start.elapsed() > patience(30) {
                        return Err(ErrorKind::TimedOut.into());
                    }
                    // The target may wait for us to read.
                    self.ready(
                        PollFlags::POLLOUT | PollFlags::POLLIN,
                        Duration::from_secs(1),
                    )?;
                    self.fill()?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends what goes at once; how much that was.
    ///
    /// # Errors
    ///
    /// The socket's, but for a full one.
    pub fn send_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.stream.write(bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            result => result,
        }
    }

    fn ready(&self, flags: PollFlags, wait: Duration) -> io::Result<()> {
        let timeout = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.stream.as_fd(), flags)], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Receives what is there.
    fn fill(&mut self) -> io::Result<()> {
        if self.taken == self.received.len() {
            self.received.clear();
            self.taken = 0;
        } else if self.taken > CHUNK_BYTES {
            self.received.drain(..self.taken);
            self.taken = 0;
        }
        match self.stream.read(&mut self.chunk) {
            Ok(0) => self.is_closed = true,
            Ok(count) => self.received.extend_from_slice(&self.chunk[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => {
                self.is_closed = true;
                return Err(error);
            }
        }
        Ok(())
    }

    /// The next PDU with its data, if it has come whole within `wait`. None too when the target has
    /// closed: see [`Peer::is_closed`].
    ///
    /// # Errors
    ///
    /// The socket's, or when what came is no PDU.
    pub fn poll(&mut self, wait: Duration) -> io::Result<Option<(Pdu, Vec<u8>)>> {
        if let Some(found) = self.buffered()? {
            return Ok(Some(found));
        }
        if self.is_closed {
            return Ok(None);
        }
        if !wait.is_zero() {
            self.ready(PollFlags::POLLIN, wait)?;
        }
        self.fill()?;
        self.buffered()
    }

    fn buffered(&mut self) -> io::Result<Option<(Pdu, Vec<u8>)>> {
        let bytes = &self.received[self.taken..];
        let layout: PduLayout = match tcp::decode_common(bytes, Receiver::Host, &self.decode) {
            Ok(layout) => layout,
            Err(PduError::Incomplete { .. }) => return Ok(None),
            Err(error) => return Err(broken(error.to_string())),
        };
        let len = layout.plen as usize;
        if bytes.len() < len {
            return Ok(None);
        }
        let pdu = layout
            .decode(bytes)
            .map_err(|error| broken(error.to_string()))?;
        let end = layout.data_offset + layout.data_len as usize;
        let data = bytes[layout.data_offset..end].to_vec();
        if layout.data_digest && bytes[end..end + 4] != tcp::data_digest(crc32c(&data)) {
            return Err(broken("wrong data digest"));
        }
        self.taken += len;
        Ok(Some((pdu, data)))
    }

    /// Waits for a PDU.
    ///
    /// # Errors
    ///
    /// The socket's, when the target closes, and when nothing comes within half a minute.
    pub fn pdu(&mut self) -> io::Result<(Pdu, Vec<u8>)> {
        self.pdu_or_end()?
            .ok_or_else(|| io::Error::new(ErrorKind::UnexpectedEof, "the target has closed"))
    }

    /// Waits for a PDU, or for the target to close: None. A reset is a close.
    ///
    /// # Errors
    ///
    /// When what comes is no PDU, or nothing comes within half a minute.
    pub fn pdu_or_end(&mut self) -> io::Result<Option<(Pdu, Vec<u8>)>> {
        let start = Instant::now();
        loop {
            match self.poll(Duration::from_millis(200)) {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) if self.is_closed => return Ok(None),
                Ok(None) => {}
                Err(error) if self.is_closed && error.kind() != ErrorKind::InvalidData => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
            if start.elapsed() > patience(30) {
                return Err(io::Error::new(ErrorKind::TimedOut, "nothing came in 30 s"));
            }
        }
    }

    /// Waits for the target to close; the status (FES) of a C2HTermReq that came before, if any.
    ///
    /// # Errors
    ///
    /// As [`Peer::pdu_or_end`].
    pub fn ending(&mut self) -> io::Result<Option<u16>> {
        let mut reason = None;
        while let Some((pdu, _)) = self.pdu_or_end()? {
            if let Pdu::TermReq { fes, .. } = pdu {
                reason = Some(fes);
            }
        }
        Ok(reason)
    }

    /// Whether the target has closed.
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Most bytes of an H2CData, as ICResp said.
    pub fn maxh2cdata(&self) -> usize {
        self.maxh2cdata
    }

    /// Sends FIN and goes on receiving.
    ///
    /// # Errors
    ///
    /// The socket's.
    pub fn finish_sending(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Ends the connection with RST.
    pub fn reset(self) {
        let linger = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        // Should it fail, the end is a FIN: another end, but an end.
        let _ =
            nix::sys::socket::setsockopt(&self.stream, nix::sys::socket::sockopt::Linger, &linger);
    }

    fn with_data(&self, mut bytes: Vec<u8>, len: usize, data: &[u8]) -> Vec<u8> {
        bytes.truncate(len);
        bytes.extend_from_slice(data);
        if self.encode.data_digest && !data.is_empty() {
            bytes.extend_from_slice(&tcp::data_digest(crc32c(data)));
        }
        bytes
    }

    /// Bytes of a command capsule.
    pub fn capsule(&self, sqe: &Sqe, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        let len = tcp::encode_capsule_cmd(&mut bytes, sqe, data.len() as u32, &self.encode)
            .expect("a capsule's header has at most 256 bytes");
        self.with_data(bytes, len, data)
    }

    /// Bytes of an H2CData.
    pub fn h2c_data(&self, cid: Cid, ttag: u16, datao: u32, data: &[u8], last: bool) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        let len = data.len() as u32;
        let len = tcp::encode_h2c_data(&mut bytes, cid, ttag, datao, len, last, &self.encode)
            .expect("an H2CData's header has at most 256 bytes");
        self.with_data(bytes, len, data)
    }

    /// Sends the data that an R2T asks for.
    ///
    /// # Errors
    ///
    /// The socket's, and when the R2T asks for what is not there.
    pub fn answer_r2t(&mut self, r2t: &Pdu, data: &[u8]) -> io::Result<()> {
        let Pdu::R2T {
            cccid,
            ttag,
            r2to,
            r2tl,
        } = *r2t
        else {
            return Err(broken("something else than an R2T came"));
        };
        let (from, end) = (r2to as usize, r2to as usize + r2tl as usize);
        if end > data.len() || self.maxh2cdata == 0 {
            return Err(broken("an R2T asks for data that is not there"));
        }
        for at in (from..end).step_by(self.maxh2cdata) {
            let to = end.min(at + self.maxh2cdata);
            let pdu = self.h2c_data(cccid, ttag, at as u32, &data[at..to], to == end);
            self.send(&pdu)?;
        }
        Ok(())
    }

    /// A Connect with its data in the capsule.
    pub fn connect_capsule(&self, queue: &QueueOptions<'_>) -> Vec<u8> {
        let command = ConnectCommand {
            recfmt: 0,
            qid: Qid(queue.qid),
            sqsize: queue.sqsize,
            cattr: 0,
            kato_ms: queue.kato_ms,
        };
        let cntlid = Cntlid(queue.cntlid);
        let data = ConnectData::new(queue.hostid, cntlid, queue.subnqn, queue.hostnqn);
        let sqe = command
            .to_sqe(Cid(0))
            .with_sgl(SglDescriptor::in_capsule(0, data.as_bytes().len() as u32));
        self.capsule(&sqe, data.as_bytes())
    }
}

/// Parameters of a Connect.
#[derive(Debug, Clone, Copy)]
pub struct QueueOptions<'a> {
    /// 0 is the admin queue.
    pub qid: u16,
    /// Entries less one.
    pub sqsize: u16,
    /// Controller; FFFFh for the admin queue.
    pub cntlid: u16,
    /// Keep-alive time-out; 0 is none.
    pub kato_ms: u32,
    /// Host identifier.
    pub hostid: [u8; 16],
    /// Name of the subsystem.
    pub subnqn: &'a Nqn,
    /// Name of the host.
    pub hostnqn: &'a Nqn,
}
