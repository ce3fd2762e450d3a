//! A connection against a peer whose every byte the test writes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric_wire::digest::crc32c;
use fabric_wire::tcp::{
    self, Pdu, encode_c2h_data, encode_capsule_resp, encode_ic_resp, encode_r2t, encode_term_req,
};
use nvme_spec::{Cntlid, Lba, Nsid, Sqe};
use proptest::prelude::*;

use super::*;
use crate::buffer::Buffer;

const MAXH2CDATA: u32 = 4096;
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection and its peer.
struct Rig {
    queue: TcpQueue,
    peer: TcpStream,
    now: Instant,
    done: Vec<Completion>,
    options: EncodeOptions,
}

fn config(peer: &TcpListener) -> QueueConfig {
    let socket_addr = peer.local_addr().unwrap();
    QueueConfig {
        socket_addr,
        address: Arc::from(socket_addr.to_string()),
        qid: Qid(1),
        depth: 4,
        header_digest: false,
        data_digest: false,
        hpda: 0,
        max_r2t: 2,
        connect_timeout: Duration::from_secs(5),
        command_timeout: Duration::from_secs(30),
        abort_grace: Duration::from_secs(5),
        tos: None,
        is_rdma: false,
        cntlid: Cntlid::DYNAMIC,
        memory_windows: false,
        verbs: None,
    }
}

impl Rig {
    /// TCP is up and ICReq has been sent.
    fn begin(digests: (bool, bool)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = config(&listener);
        (config.header_digest, config.data_digest) = digests;
        let now = Instant::now();
        let queue = TcpQueue::connect(config, &HostContext::new(), now);
        let (peer, _) = listener.accept().unwrap();
        peer.set_nodelay(true).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        let (header_digest, data_digest) = digests;
        let options = EncodeOptions {
            header_digest,
            data_digest,
            pda: 4,
        };
        let mut rig = Self {
            queue,
            peer,
            now,
            done: Vec::new(),
            options,
        };
        rig.until(|rig| matches!(rig.queue.link, Link::Initializing));
        rig
    }

    /// Commands can be sent.
    fn ready(digests: (bool, bool)) -> Self {
        let mut rig = Self::begin(digests);
        rig.read(128);
        let mut pdu = [0; 128];
        encode_ic_resp(&mut pdu, 0, digests.0, digests.1, MAXH2CDATA).unwrap();
        rig.write(&pdu);
        rig.until(|rig| rig.queue.is_ready());
        rig
    }

    fn poll(&mut self) {
        self.queue.poll(self.now, &mut self.done);
    }

    /// Polls until something is so. Nothing here depends on how long that takes.
    fn until(&mut self, mut is_so: impl FnMut(&mut Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !is_so(self) {
            self.poll();
            assert!(
                Instant::now() < until,
                "it does not happen: {:?}",
                self.queue.link
            );
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.peer.write_all(bytes).unwrap();
    }

    fn read(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.peer.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn submit(&mut self, command: Command) -> Cid {
        match self.queue.submit(command, self.now) {
            Submit::Accepted(cid) => {
                self.queue.flush(&mut self.done);
                cid
            }
            Submit::Refused(refused) => panic!("refused: {:?}", refused.reason),
        }
    }

    /// Submits a read of `len` bytes and takes its capsule.
    fn begin_read(&mut self, len: usize) -> Cid {
        let cid = self.submit(read(len));
        let digest = if self.options.header_digest { 4 } else { 0 };
        self.read(72 + digest);
        cid
    }

    fn c2h(&self, cid: Cid, offset: u32, data: &[u8], last: bool, success: bool) -> Vec<u8> {
        let mut pdu = vec![0; 256];
        let len = data.len() as u32;
        let header =
            encode_c2h_data(&mut pdu, cid, offset, len, last, success, &self.options).unwrap();
        pdu.truncate(header);
        pdu.extend_from_slice(data);
        if self.options.data_digest {
            pdu.extend_from_slice(&crc32c(data).to_le_bytes());
        }
        pdu
    }

    fn response(&self, cid: Cid, status: Status) -> Vec<u8> {
        let mut pdu = vec![0; 256];
        let len = encode_capsule_resp(
            &mut pdu,
            &Cqe::new(cid, status).with_result(7),
            &self.options,
        );
        pdu.truncate(len.unwrap());
        pdu
    }

    fn r2t(&self, cid: Cid, ttag: u16, offset: u32, len: u32) -> Vec<u8> {
        let mut pdu = vec![0; 256];
        let header = encode_r2t(&mut pdu, cid, ttag, offset, len, &self.options).unwrap();
        pdu.truncate(header);
        pdu
    }

    /// Polls until a command has ended.
    fn completion(&mut self) -> Completion {
        self.until(|rig| !rig.done.is_empty());
        self.done.remove(0)
    }

    /// Polls until the connection has ended; gives the violation.
    fn violation(&mut self) -> Violation {
        self.until(|rig| rig.queue.failure().is_some());
        match self.queue.failure().unwrap() {
            HostError::Protocol { violation, .. } => *violation,
            other => panic!("{other:?}"),
        }
    }

    /// The FES and FEI of the H2CTermReq that ends the connection.
    fn term_req(&mut self) -> (u16, u32) {
        self.until(|rig| rig.queue.failure().is_some());
        let mut bytes = Vec::new();
        // It closes its end after the TermReq.
        self.peer.read_to_end(&mut bytes).unwrap();
        let limits = DecodeLimits::default();
        loop {
            match tcp::decode_header(&bytes, tcp::Receiver::Controller, &limits).unwrap() {
                Pdu::TermReq { fes, fei, .. } => return (fes, fei),
                // Data that was on its way before the violation came.
                Pdu::H2CData { .. } => {
                    let plen = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
                    bytes.drain(..plen as usize);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

fn read(len: usize) -> Command {
    let sqe = Sqe::read(Cid(0), Nsid(1), Lba(0x1122), (len / 512) as u32);
    Command::new(sqe, 42).receiving(vec![0; len])
}

fn write(data: Vec<u8>) -> Command {
    let sqe = Sqe::write(Cid(0), Nsid(1), Lba(0), (data.len() / 512) as u32);
    Command::new(sqe, 43).sending(data)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

#[test]
fn ic_req_is_as_the_specification_says() {
    let mut rig = Rig::begin((true, false));
    let bytes = rig.read(128);
    let mut golden = [0; 128];
    golden[..16].copy_from_slice(&[0, 0, 128, 0, 128, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0]);
    assert_eq!(bytes, golden);
}

#[test]
fn a_read_is_a_capsule_and_its_data_lands_in_its_buffer() {
    let mut rig = Rig::ready((false, false));
    let cid = rig.submit(read(1024));
    let capsule = rig.read(72);
    let mut golden = vec![4, 0, 72, 0, 72, 0, 0, 0];
    golden.extend_from_slice(&[2, 0x40, 0, 0, 1, 0, 0, 0]); // READ by SGL, CID 0, NSID 1
    golden.extend_from_slice(&[0; 16]);
    golden.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0x5A]); // 1024 bytes
    golden.extend_from_slice(&[0x22, 0x11, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]); // SLBA, two blocks
    golden.extend_from_slice(&[0; 12]);
    assert_eq!(capsule, golden);
    let data = pattern(1024);
    let mut answer = rig.c2h(cid, 0, &data[..300], false, false);
    answer.extend(rig.c2h(cid, 300, &data[300..], true, false));
    answer.extend(rig.response(cid, Status::SUCCESS));
    rig.write(&answer);
    let completion = rig.completion();
    assert_eq!(completion.tag, 42);
    assert_eq!(completion.result, Ok(7));
    assert_eq!(completion.transferred, 1024);
    assert_eq!(completion.buffer.into_vec(), data);
}

#[test]
fn answers_cut_anywhere_are_put_together() {
    for digests in [(false, false), (true, true)] {
        let mut rig = Rig::ready(digests);
        let data = pattern(512);
        for cut in 1.. {
            let cid = rig.begin_read(512);
            let mut answer = rig.c2h(cid, 0, &data, true, false);
            answer.extend(rig.response(cid, Status::SUCCESS));
            if cut >= answer.len() {
                break;
            }
            let before = rig.queue.counters.received_bytes;
            let (one, two) = answer.split_at(cut);
            rig.write(one);
            rig.until(|rig| rig.queue.counters.received_bytes == before + cut as u64);
            assert!(rig.done.is_empty());
            rig.write(two);
            let completion = rig.completion();
            assert_eq!(completion.result, Ok(7), "cut at {cut}");
            assert_eq!(completion.buffer.into_vec(), data, "cut at {cut}");
        }
    }
}

#[test]
fn long_data_is_received_whole_with_and_without_digests() {
    for digests in [(false, false), (true, true)] {
        let mut rig = Rig::ready(digests);
        let data = pattern(512 << 10);
        for is_discarded in [false, true] {
            let mut command = read(data.len());
            if is_discarded {
                command.buffer = Buffer::Discard {
                    len: data.len() as u32,
                };
            }
            let cid = rig.submit(command);
            rig.read(if digests.0 { 76 } else { 72 });
            let mut answer = rig.c2h(cid, 0, &data[..100_000], false, false);
            answer.extend(rig.c2h(cid, 100_000, &data[100_000..], true, true));
            let mut peer = rig.peer.try_clone().unwrap();
            // More than the socket holds: another thread writes while this one polls.
            let writer = std::thread::spawn(move || peer.write_all(&answer).unwrap());
            let completion = rig.completion();
            writer.join().unwrap();
            assert_eq!(completion.result, Ok(0));
            if !is_discarded {
                assert!(completion.buffer.into_vec() == data);
            }
        }
    }
}

#[test]
fn small_writes_go_in_the_capsule_with_their_digest() {
    let mut rig = Rig::ready((true, true));
    let data = pattern(512);
    let cid = rig.submit(write(data.clone()));
    let capsule = rig.read(72 + 4 + 512 + 4);
    assert_eq!(capsule[..8], [4, 3, 72, 76, 0x50, 2, 0, 0]);
    assert_eq!(capsule[72..76], crc32c(&capsule[..72]).to_le_bytes());
    assert_eq!(capsule[76..588], data);
    assert_eq!(capsule[588..], crc32c(&data).to_le_bytes());
    assert_eq!(capsule[8 + 24 + 15], 0x01); // data block by offset
    let response = rig.response(cid, Status::SUCCESS);
    rig.write(&response);
    assert_eq!(rig.completion().result, Ok(7));
}

#[test]
fn long_writes_answer_each_r2t_in_pieces_of_maxh2cdata() {
    for digests in [(false, false), (true, true)] {
        let mut rig = Rig::ready(digests);
        let data = pattern(20_480);
        let cid = rig.submit(write(data.clone()));
        let header_digest = if digests.0 { 4 } else { 0 };
        let capsule = rig.read(72 + header_digest);
        assert_eq!(capsule[8 + 24 + 15], 0x5A);
        // Two R2Ts at a time, then one more.
        let mut asked = rig.r2t(cid, 10, 0, 6000);
        asked.extend(rig.r2t(cid, 11, 6000, 10_000));
        rig.write(&asked);
        let expected = [
            (10, 0, 4096, false),
            (10, 4096, 1904, true),
            (11, 6000, 4096, false),
            (11, 10_096, 4096, false),
            (11, 14_192, 1808, true),
            (12, 16_000, 4096, false),
            (12, 20_096, 384, true),
        ];
        for (index, (ttag, offset, len, is_last)) in expected.into_iter().enumerate() {
            if index == 5 {
                let asked = rig.r2t(cid, 12, 16_000, 4480);
                rig.write(&asked);
            }
            rig.until(|rig| {
                let mut byte = [0];
                rig.peer.set_nonblocking(true).unwrap();
                let is_there = rig.peer.peek(&mut byte).is_ok();
                rig.peer.set_nonblocking(false).unwrap();
                is_there
            });
            let header = rig.read(24 + header_digest);
            let limits = DecodeLimits {
                header_digest: digests.0,
                data_digest: digests.1,
                ..DecodeLimits::default()
            };
            let pdu = tcp::decode_header(&header, tcp::Receiver::Controller, &limits).unwrap();
            let cccid = cid;
            let (datao, datal, last) = (offset, len, is_last);
            assert_eq!(
                pdu,
                Pdu::H2CData {
                    cccid,
                    ttag,
                    datao,
                    datal,
                    last
                }
            );
            let sent = rig.read(len as usize);
            assert!(sent == data[offset as usize..(offset + len) as usize]);
            if digests.1 {
                assert_eq!(rig.read(4), crc32c(&sent).to_le_bytes());
            }
        }
        let response = rig.response(cid, Status::SUCCESS);
        rig.write(&response);
        let completion = rig.completion();
        assert_eq!(completion.result, Ok(7));
        assert_eq!(completion.transferred, 20_480);
    }
}

#[test]
fn a_full_queue_gives_the_command_back() {
    let mut rig = Rig::ready((false, false));
    let cids: Vec<_> = (0..4).map(|_| rig.submit(read(512))).collect();
    match rig.queue.submit(read(512), rig.now) {
        Submit::Refused(Refused {
            reason: Refusal::Full,
            command,
        }) => {
            assert_eq!(command.buffer.len(), 512);
        }
        other => panic!("{other:?}"),
    }
    let response = rig.response(cids[2], Status::SUCCESS);
    rig.write(&response);
    let completion = rig.completion();
    assert_eq!(
        completion.result,
        Err(CommandError::ShortData {
            received: 0,
            expected: 512
        })
    );
    let again = rig.submit(read(512));
    assert_ne!(
        again, cids[2],
        "a slot's next command has another identifier"
    );
}

#[test]
fn a_wrong_header_digest_ends_the_connection() {
    let mut rig = Rig::ready((true, false));
    let cid = rig.begin_read(512);
    let mut response = rig.response(cid, Status::SUCCESS);
    response[10] ^= 1;
    rig.write(&response);
    let digest = u32::from_le_bytes(response[24..].try_into().unwrap());
    assert_eq!(rig.term_req(), (tcp::FES_HEADER_DIGEST_ERROR, digest));
    assert!(matches!(rig.queue.failure(), Some(HostError::Pdu { .. })));
    assert_eq!(rig.completion().result, Err(CommandError::ConnectionLost));
}

#[test]
fn a_wrong_data_digest_fails_its_command_only() {
    for len in [512, 64 << 10] {
        let mut rig = Rig::ready((false, true));
        let cid = rig.begin_read(len);
        let data = pattern(len);
        let mut answer = rig.c2h(cid, 0, &data, true, true);
        answer[500] ^= 0x10;
        rig.write(&answer);
        let completion = rig.completion();
        assert_eq!(completion.result, Err(CommandError::DataDigest));
        let cid = rig.begin_read(512);
        let answer = rig.c2h(cid, 0, &data[..512], true, true);
        rig.write(&answer);
        assert_eq!(rig.completion().result, Ok(0));
    }
}

#[test]
fn a_term_req_is_the_reason_told() {
    let mut rig = Rig::ready((false, false));
    rig.begin_read(512);
    let mut pdu = [0; 152];
    let len = encode_term_req(&mut pdu, tcp::Receiver::Host, 4, 9, &[1; 24]).unwrap();
    rig.write(&pdu[..len]);
    assert_eq!(rig.completion().result, Err(CommandError::ConnectionLost));
    match rig.queue.failure() {
        Some(error @ HostError::Terminated { fes: 4, fei: 9, .. }) => {
            assert!(error.to_string().contains("out of range"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn answers_for_commands_that_are_not_outstanding_are_violations() {
    let mut rig = Rig::ready((false, false));
    let cid = rig.begin_read(512);
    let mut answer = rig.response(cid, Status::INVALID_FIELD);
    answer.extend(rig.response(cid, Status::INVALID_FIELD));
    rig.write(&answer);
    let violation = Violation::UnknownCommand {
        pdu: "capsuleresp",
        cid,
    };
    assert_eq!(rig.violation(), violation);
    assert_eq!(rig.term_req(), (tcp::FES_INVALID_HEADER_FIELD, 20));
    for cid in [Cid(0), Cid(3), Cid(4), Cid(0x1000), Cid(0xFFFF)] {
        for pdu in ["capsuleresp", "c2hdata", "r2t"] {
            let mut rig = Rig::ready((false, false));
            let bytes = match pdu {
                "capsuleresp" => rig.response(cid, Status::SUCCESS),
                "c2hdata" => rig.c2h(cid, 0, &[0; 16], true, false),
                _ => rig.r2t(cid, 0, 0, 16),
            };
            rig.write(&bytes);
            assert_eq!(rig.violation(), Violation::UnknownCommand { pdu, cid });
        }
    }
}

#[test]
fn data_that_does_not_fit_its_command_is_a_violation() {
    let check = |answer: &dyn Fn(&Rig, Cid) -> Vec<u8>, fes| {
        let mut rig = Rig::ready((false, false));
        let cid = rig.begin_read(1024);
        let bytes = answer(&rig, cid);
        rig.write(&bytes);
        let violation = rig.violation();
        assert_eq!(rig.term_req().0, fes, "{violation:?}");
        assert_eq!(rig.completion().buffer.len(), 1024, "the buffer comes back");
        violation
    };
    let range = tcp::FES_DATA_OUT_OF_RANGE;
    let past = check(&|rig, cid| rig.c2h(cid, 0, &[0; 1028], true, false), range);
    assert!(matches!(
        past,
        Violation::PastEnd {
            len: 1028,
            limit: 1024,
            ..
        }
    ));
    let gap = check(&|rig, cid| rig.c2h(cid, 4, &[0; 16], true, false), range);
    assert!(matches!(
        gap,
        Violation::OutOfOrder {
            offset: 4,
            expected: 0,
            ..
        }
    ));
    let twice = check(
        &|rig, cid| {
            let mut bytes = rig.c2h(cid, 0, &[0; 16], false, false);
            bytes.extend(rig.c2h(cid, 0, &[0; 16], true, false));
            bytes
        },
        range,
    );
    assert!(matches!(
        twice,
        Violation::OutOfOrder {
            offset: 0,
            expected: 16,
            ..
        }
    ));
    let field = tcp::FES_INVALID_HEADER_FIELD;
    let after = check(
        &|rig, cid| {
            let mut bytes = rig.c2h(cid, 0, &[0; 16], true, false);
            bytes.extend(rig.c2h(cid, 16, &[0; 16], true, false));
            bytes
        },
        field,
    );
    assert!(matches!(after, Violation::AfterLast { .. }));
    let wrong = check(&|rig, cid| rig.r2t(cid, 1, 0, 512), field);
    assert!(matches!(
        wrong,
        Violation::WrongDirection { pdu: "r2t", .. }
    ));
}

#[test]
fn less_data_than_asked_for_fails_the_command() {
    for success in [false, true] {
        let mut rig = Rig::ready((false, false));
        let cid = rig.begin_read(1024);
        let mut answer = rig.c2h(cid, 0, &[0; 512], true, success);
        if !success {
            answer.extend(rig.response(cid, Status::SUCCESS));
        }
        rig.write(&answer);
        let result = rig.completion().result;
        assert_eq!(
            result,
            Err(CommandError::ShortData {
                received: 512,
                expected: 1024
            })
        );
        assert!(rig.queue.is_ready());
    }
}

#[test]
fn r2ts_that_do_not_fit_their_command_are_violations() {
    let check = |asked: &[(u32, u32)], fes| {
        let mut rig = Rig::ready((false, false));
        let cid = rig.submit(write(pattern(16 << 10)));
        rig.read(72);
        let bytes: Vec<u8> = asked
            .iter()
            .flat_map(|&(offset, len)| rig.r2t(cid, 5, offset, len))
            .collect();
        rig.write(&bytes);
        let violation = rig.violation();
        assert_eq!(rig.term_req().0, fes, "{violation:?}");
        violation
    };
    let past = check(&[(0, 16_388)], tcp::FES_DATA_OUT_OF_RANGE);
    assert!(matches!(past, Violation::PastEnd { pdu: "r2t", .. }));
    let gap = check(&[(4096, 16)], tcp::FES_DATA_OUT_OF_RANGE);
    assert!(matches!(gap, Violation::OutOfOrder { pdu: "r2t", .. }));
    let many = check(&[(0, 16), (16, 16), (32, 16)], tcp::FES_R2T_LIMIT_EXCEEDED);
    assert!(matches!(many, Violation::R2tLimit { limit: 2, .. }));
    let mut rig = Rig::ready((false, false));
    let cid = rig.submit(write(pattern(16 << 10)));
    let data = rig.c2h(cid, 0, &[0; 16], true, false);
    rig.write(&data);
    assert!(matches!(
        rig.violation(),
        Violation::WrongDirection { pdu: "c2hdata", .. }
    ));
}

#[test]
fn pdus_out_of_turn_are_violations() {
    let mut rig = Rig::begin((false, false));
    let early = rig.response(Cid(0), Status::SUCCESS);
    rig.write(&early);
    assert!(matches!(
        rig.violation(),
        Violation::Sequence {
            found: "capsuleresp",
            ..
        }
    ));
    assert_eq!(rig.read(128)[0], 0);
    assert_eq!(rig.term_req().0, tcp::FES_SEQUENCE_ERROR);
    let mut rig = Rig::ready((false, false));
    let mut pdu = [0; 128];
    encode_ic_resp(&mut pdu, 0, false, false, 4096).unwrap();
    rig.write(&pdu);
    assert!(matches!(
        rig.violation(),
        Violation::Sequence {
            found: "icresp",
            ..
        }
    ));
}

#[test]
fn a_digest_that_is_not_granted_fails_the_connection() {
    let mut rig = Rig::begin((true, false));
    let mut pdu = [0; 128];
    encode_ic_resp(&mut pdu, 0, false, false, 4096).unwrap();
    rig.write(&pdu);
    rig.until(|rig| rig.queue.failure().is_some());
    let failure = rig.queue.failure();
    assert!(matches!(
        failure,
        Some(HostError::Digest {
            which: "header",
            granted: false,
            ..
        })
    ));
}

#[test]
fn a_close_anywhere_loses_the_commands_and_keeps_their_buffers() {
    let data = pattern(512);
    for cut in 0.. {
        let mut rig = Rig::ready((true, true));
        let first = rig.begin_read(512);
        rig.begin_read(1024);
        let mut answer = rig.c2h(first, 0, &data, true, false);
        answer.extend(rig.response(first, Status::SUCCESS));
        if cut > answer.len() {
            break;
        }
        rig.write(&answer[..cut]);
        rig.peer.shutdown(std::net::Shutdown::Both).unwrap();
        rig.until(|rig| rig.queue.failure().is_some());
        assert!(matches!(
            rig.queue.failure(),
            Some(HostError::Closed { .. })
        ));
        assert_eq!(rig.done.len(), 2);
        let is_answered = cut == answer.len();
        assert_eq!(rig.done[0].result.is_ok(), is_answered, "cut at {cut}");
        assert_eq!(rig.done[1].result, Err(CommandError::ConnectionLost));
        assert_eq!(rig.done[1].buffer.len(), 1024);
        assert_eq!(rig.queue.in_flight(), 0);
        assert!(matches!(
            rig.queue.submit(read(512), rig.now),
            Submit::Refused(Refused {
                reason: Refusal::NotReady,
                ..
            })
        ));
    }
}

#[test]
fn a_close_before_ic_resp_is_told() {
    let mut rig = Rig::begin((false, false));
    rig.peer.shutdown(std::net::Shutdown::Both).unwrap();
    rig.until(|rig| rig.queue.failure().is_some());
    assert!(matches!(
        rig.queue.failure(),
        Some(HostError::Closed { .. })
    ));
}

#[test]
fn nobody_listening_is_a_connect_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = config(&listener);
    drop(listener);
    let now = Instant::now();
    let mut queue = TcpQueue::connect(config, &HostContext::new(), now);
    let until = Instant::now() + PATIENCE;
    while queue.failure().is_none() && Instant::now() < until {
        queue.poll(now, &mut Vec::new());
    }
    let failure = queue.failure();
    assert!(
        matches!(
            failure,
            Some(HostError::Socket {
                operation: "connect",
                ..
            })
        ),
        "{failure:?}"
    );
}

#[test]
fn a_silent_peer_is_given_up_after_the_connect_timeout() {
    let mut rig = Rig::begin((false, false));
    assert!(rig.queue.next_deadline().is_some());
    rig.now += Duration::from_secs(6);
    rig.poll();
    let failure = rig.queue.failure();
    assert!(matches!(
        failure,
        Some(HostError::ConnectTimeout { what: "ICReq", .. })
    ));
    assert!(rig.queue.wake_fd().is_none());
}

#[test]
fn a_command_that_takes_too_long_is_aborted_and_then_fails_the_connection() {
    let mut rig = Rig::ready((false, false));
    let cid = rig.begin_read(512);
    let begun = rig.now;
    assert_eq!(
        rig.queue.next_deadline(),
        Some(begun + Duration::from_secs(30))
    );
    rig.now = begun + Duration::from_secs(29);
    rig.poll();
    assert_eq!(rig.queue.take_expired(), None);
    rig.now = begun + Duration::from_secs(30);
    rig.poll();
    assert_eq!(rig.queue.take_expired(), Some(cid));
    assert_eq!(rig.queue.take_expired(), None);
    assert!(rig.queue.is_ready());
    assert_eq!(
        rig.queue.next_deadline(),
        Some(begun + Duration::from_secs(35))
    );
    rig.now = begun + Duration::from_secs(36);
    rig.poll();
    assert!(matches!(
        rig.queue.failure(),
        Some(HostError::CommandTimeout { opcode: 2, .. })
    ));
    assert_eq!(rig.completion().result, Err(CommandError::ConnectionLost));
}

#[test]
fn an_early_answer_waits_until_its_buffer_has_been_sent() {
    let mut rig = Rig::ready((false, false));
    let data = pattern(8 << 20);
    let cid = rig.submit(write(data.clone()));
    rig.read(72);
    let asked = rig.r2t(cid, 1, 0, data.len() as u32);
    rig.write(&asked);
    rig.until(|rig| rig.queue.wants_to_send());
    let response = rig.response(cid, Status::WRITE_FAULT);
    let before = rig.queue.counters.received_bytes;
    rig.write(&response);
    rig.until(|rig| rig.queue.counters.received_bytes > before);
    assert!(
        rig.done.is_empty(),
        "the socket still reads from the buffer"
    );
    let mut peer = rig.peer.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut sink = vec![0; 1 << 20];
        while peer.read(&mut sink).unwrap_or(0) > 0 {}
    });
    let completion = rig.completion();
    assert_eq!(
        completion.result,
        Err(CommandError::Status(Status::WRITE_FAULT))
    );
    assert!(completion.buffer.into_vec() == data);
    rig.queue.close(&mut Vec::new());
    reader.join().unwrap();
}

#[test]
fn buffers_that_cannot_be_used_are_refused() {
    let mut rig = Rig::ready((false, false));
    let sqe = Sqe::read(Cid(0), Nsid(1), Lba(0), 1);
    let shared: std::rc::Rc<[u8]> = vec![0; 512].into();
    let wrong = [
        Command::new(sqe, 0).receiving(shared),
        Command::new(sqe, 0).sending(Buffer::Discard { len: 512 }),
    ];
    for command in wrong {
        match rig.queue.submit(command, rig.now) {
            Submit::Refused(refused) => assert_eq!(refused.reason, Refusal::Buffer),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(rig.queue.in_flight(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn random_bytes_never_panic(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..600), 1..6),
        kind in 0u8..10,
        digests in any::<(bool, bool)>(),
    ) {
        let mut rig = Rig::ready(digests);
        rig.submit(read(4096));
        rig.submit(write(pattern(16 << 10)));
        for mut piece in pieces {
            // Often enough something that looks like a PDU.
            piece[0] = kind;
            if piece.len() > 4 {
                piece[2] = 24;
            }
            if rig.queue.parse(&piece, &mut rig.done).is_err() {
                break;
            }
            if rig.queue.stash_len > 0 {
                break;
            }
        }
    }
}
