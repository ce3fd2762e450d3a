//! The state machine against a core that does as the test says, over real sockets.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dma::{ChannelOptions, IoBuf, IobufChannel, IobufOptions, IobufPool, Payload};
use fabric_wire::tcp::{
    FES_DATA_LIMIT_EXCEEDED, FES_DATA_OUT_OF_RANGE, FES_HEADER_DIGEST_ERROR,
    FES_INVALID_HEADER_FIELD, FES_SEQUENCE_ERROR, FES_UNSUPPORTED_PARAMETER, Pdu,
};
use fabric_wire::{TransportAddress, TransportType};
use nvme_spec::opcode::nvm;
use nvme_spec::{Cid, Cqe, Lba, Nsid, SglDescriptor, Sqe, Status};
use nvmf::transport::{
    Acceptor, ConnectionId, QpairId, Response, SlotId, Step, Transport, TransportId,
};
use nvmf::{CommandError, OpenQpair};

use crate::commands::Commands;
use crate::group::TcpGroup;
use crate::{TcpOptions, TcpTransport};

#[path = "../tests/client/mod.rs"]
mod client;
use client::{Client, Done, Pump};

const BLOCK: usize = 512;

enum FakeState {
    Free,
    Receive(Payload, u32),
    Receiving,
    WaitsForBuffer(u32),
    Respond(Response),
    Responding,
}

struct FakeSlot {
    sqe: Sqe,
    state: FakeState,
}

/// A memory of blocks behind queue pairs of any depth.
struct FakeCore {
    iobuf: IobufChannel,
    memory: Vec<u8>,
    slots: Vec<FakeSlot>,
    depth: usize,
    connection: Option<ConnectionId>,
    /// Commands that need a buffer wait until the test gives them one.
    is_out_of_buffers: bool,
    opened: usize,
    closed: usize,
    commands: usize,
    damaged: usize,
}

impl FakeCore {
    fn new() -> Self {
        let options = IobufOptions {
            small_pool_count: 512,
            large_pool_count: 160,
            ..Default::default()
        };
        let pool = IobufPool::new(options).unwrap();
        let iobuf = pool.channel("nvmf_TCP", ChannelOptions::default()).unwrap();
        Self {
            iobuf,
            memory: vec![0; 4 << 20],
            slots: Vec::new(),
            depth: 0,
            connection: None,
            is_out_of_buffers: false,
            opened: 0,
            closed: 0,
            commands: 0,
            damaged: 0,
        }
    }

    fn buffer(&self, len: u32) -> IoBuf {
        self.iobuf
            .get(len as usize)
            .expect("the pool is large enough for the tests")
    }

    fn range(sqe: &Sqe) -> std::ops::Range<usize> {
        let start = (sqe.slba().0 as usize).saturating_mul(BLOCK);
        start..start.saturating_add(sqe.block_count() as usize * BLOCK)
    }

    fn end(&mut self, slot: usize, status: Status, payload: Payload) {
        let data_len = payload.len() as u32;
        let cqe = Cqe::new(self.slots[slot].sqe.cid(), status);
        self.slots[slot].state = FakeState::Respond(Response {
            cqe,
            payload,
            data_len,
        });
    }

    fn begin(&mut self, slot: usize, in_capsule_len: u32) {
        let sqe = self.slots[slot].sqe;
        let len = sqe.sgl().len();
        // What a controller's MDTS forbids.
        let blocks = if sqe.is_fabrics() {
            0
        } else {
            Self::range(&sqe).len()
        };
        if blocks.max(len as usize) > self.iobuf.len_max() {
            return self.end(slot, Status::INVALID_FIELD, Payload::None);
        }
        let is_wrong = sqe.sgl().is_in_capsule() && len != in_capsule_len;
        if sqe.is_fabrics() || sqe.opcode() == nvm::WRITE {
            if is_wrong {
                self.end(slot, Status::DATA_SGL_LENGTH_INVALID, Payload::None);
            } else if Self::range(&sqe).end > self.memory.len() && !sqe.is_fabrics() {
                self.end(slot, Status::LBA_OUT_OF_RANGE, Payload::None);
            } else if self.is_out_of_buffers {
                self.slots[slot].state = FakeState::WaitsForBuffer(len);
            } else {
                self.slots[slot].state = FakeState::Receive(self.buffer(len).into(), len);
            }
        } else if sqe.opcode() == nvm::READ {
            let range = Self::range(&sqe);
            if range.end > self.memory.len() {
                return self.end(slot, Status::LBA_OUT_OF_RANGE, Payload::None);
            }
            let mut buffer = self.buffer(range.len() as u32);
            buffer.as_mut_slice().copy_from_slice(&self.memory[range]);
            self.end(slot, Status::SUCCESS, buffer.into());
        } else {
            self.end(slot, Status::INVALID_OPCODE, Payload::None);
        }
    }

    /// Gives the oldest waiting command its buffer.
    fn serve_one(&mut self) -> Option<(ConnectionId, SlotId, Step)> {
        let waits = |slot: &FakeSlot| matches!(slot.state, FakeState::WaitsForBuffer(_));
        let index = self.slots.iter().position(waits)?;
        let FakeState::WaitsForBuffer(len) = self.slots[index].state else {
            unreachable!()
        };
        self.slots[index].state = FakeState::Receive(self.buffer(len).into(), len);
        Some((
            self.connection.unwrap(),
            SlotId(index as u16),
            Step::Receive,
        ))
    }

    fn step(&self, slot: SlotId) -> Step {
        match self.slots[usize::from(slot.0)].state {
            FakeState::Receive(..) => Step::Receive,
            FakeState::Respond(_) => Step::Respond,
            _ => Step::Pending,
        }
    }
}

impl Commands for FakeCore {
    fn open(&mut self, open: OpenQpair) -> Option<QpairId> {
        self.opened += 1;
        self.depth = usize::from(open.depth);
        self.connection = Some(open.connection);
        self.slots.clear();
        Some(QpairId(0))
    }

    fn command(
        &mut self,
        _: QpairId,
        sqe: Sqe,
        in_capsule_len: u32,
    ) -> Result<(SlotId, Step), CommandError> {
        let free = self
            .slots
            .iter()
            .position(|slot| matches!(slot.state, FakeState::Free));
        let index = match free {
            Some(index) => index,
            None if self.slots.len() == self.depth => return Err(CommandError::QueueOverrun),
            None => {
                self.slots.push(FakeSlot {
                    sqe,
                    state: FakeState::Free,
                });
                self.slots.len() - 1
            }
        };
        self.commands += 1;
        self.slots[index].sqe = sqe;
        self.begin(index, in_capsule_len);
        let slot = SlotId(index as u16);
        Ok((slot, self.step(slot)))
    }

    fn take_receive(&mut self, _: QpairId, slot: SlotId) -> (Payload, u32) {
        let state = &mut self.slots[usize::from(slot.0)].state;
        match std::mem::replace(state, FakeState::Receiving) {
            FakeState::Receive(payload, len) => (payload, len),
            _ => panic!("a buffer is taken of a slot that receives"),
        }
    }

    fn data_received(&mut self, _: QpairId, slot: SlotId, payload: Payload) -> Step {
        let index = usize::from(slot.0);
        assert!(matches!(self.slots[index].state, FakeState::Receiving));
        let sqe = self.slots[index].sqe;
        match payload {
            Payload::Buf(buffer) => {
                if !sqe.is_fabrics() {
                    self.memory[Self::range(&sqe)].copy_from_slice(buffer.as_slice());
                }
                self.end(index, Status::SUCCESS, Payload::None);
            }
            _ => {
                self.damaged += 1;
                self.end(index, Status::TRANSIENT_TRANSPORT_ERROR, Payload::None);
            }
        }
        self.step(slot)
    }

    fn take_response(&mut self, _: QpairId, slot: SlotId) -> Option<Response> {
        let state = &mut self.slots[usize::from(slot.0)].state;
        match std::mem::replace(state, FakeState::Responding) {
            FakeState::Respond(response) => Some(response),
            _ => panic!("a response is taken of a slot that has one"),
        }
    }

    fn response_sent(&mut self, _: QpairId, slot: SlotId) {
        let slot = &mut self.slots[usize::from(slot.0)];
        assert!(matches!(slot.state, FakeState::Responding));
        slot.state = FakeState::Free;
    }

    fn forgotten(&mut self, _: QpairId, _: SlotId) {
        unreachable!("it serves no event requests");
    }

    fn closed(&mut self, _: QpairId) {
        self.closed += 1;
        self.slots.clear();
    }
}

/// An acceptor, a group and the core, polled by the test, with a clock of its own.
struct Bench {
    transport: TcpTransport,
    acceptor: Box<dyn Acceptor>,
    group: TcpGroup,
    core: FakeCore,
    now: Instant,
}

impl Bench {
    fn new(options: TcpOptions) -> Self {
        let transport = TcpTransport::new(options).unwrap();
        let socket = "127.0.0.1:0".parse().unwrap();
        let address = Arc::new(TransportAddress::from_socket_addr(
            TransportType::Tcp,
            socket,
        ));
        let acceptor = transport.listen(TransportId(0), &address).unwrap();
        let options = Arc::new(transport.options().clone());
        let stats = Arc::clone(transport.stats());
        let group = TcpGroup::new(TransportId(0), options, stats).unwrap();
        Self {
            transport,
            acceptor,
            group,
            core: FakeCore::new(),
            now: Instant::now(),
        }
    }

    /// Polls as a poll group does; returns the work done.
    fn poll(&mut self) -> usize {
        let (group, now) = (&mut self.group, self.now);
        let accepted = self
            .acceptor
            .poll(now, &mut |connection| group.add(connection, now));
        let work = self.group.poll_with(&mut self.core, now);
        accepted + work + self.group.flush_with(&mut self.core)
    }

    fn client(&mut self) -> Client {
        Client::connect(&self.acceptor.local_address())
    }

    /// A client that has done its ICReq and Connect to an I/O queue of 32 entries.
    fn connected(&mut self, digests: (bool, bool)) -> Client {
        let mut client = self.client();
        client.initialize(self, 0, digests);
        let done = client.connect_queue(self, 1, 31, 1);
        assert_eq!(done.status, Status::SUCCESS);
        client
    }

    fn stats(&self) -> crate::TcpStatsSnapshot {
        self.transport.stats().snapshot()
    }

    /// Polls until nothing happens any more.
    fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 300 {
            quiet = if self.poll() == 0 { quiet + 1 } else { 0 };
            self.now += Duration::from_micros(200);
        }
    }
}

impl Pump for Bench {
    fn pump(&mut self) {
        self.poll();
        self.now += Duration::from_micros(200);
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed)
        .collect()
}

fn write(cid: u16, lba: u64, data: &[u8]) -> Sqe {
    Sqe::write(Cid(cid), Nsid(1), Lba(lba), (data.len() / BLOCK) as u32)
        .with_sgl(SglDescriptor::in_capsule(0, data.len() as u32))
}

fn read(cid: u16, lba: u64, len: usize) -> Sqe {
    Sqe::read(Cid(cid), Nsid(1), Lba(lba), (len / BLOCK) as u32)
        .with_sgl(SglDescriptor::transport_data(len as u32))
}

// The life of a connection.

#[test]
fn ic_resp_tells_what_both_ends_want() {
    for (asked, offered) in [((true, true), (true, false)), ((false, true), (true, true))] {
        let options = TcpOptions {
            header_digest: offered.0,
            data_digest: offered.1,
            maxh2cdata: 8192,
            ..TcpOptions::default()
        };
        let mut bench = Bench::new(options);
        let mut client = bench.client();
        client.write(&mut bench, &Client::ic_req(3, asked.0, asked.1));
        let (pdu, _) = client.pdu(&mut bench);
        let Pdu::IcResp {
            cpda,
            header_digest,
            data_digest,
            maxh2cdata,
        } = pdu
        else {
            panic!()
        };
        assert_eq!((cpda, maxh2cdata), (0, 8192));
        assert_eq!(header_digest, asked.0 && offered.0);
        assert_eq!(data_digest, asked.1 && offered.1);
    }
}

#[test]
fn data_is_written_and_read_back_with_all_digests_and_alignments() {
    for digests in [(false, false), (true, false), (false, true), (true, true)] {
        for hpda in [0, 1, 7, 31] {
            let mut bench = Bench::new(TcpOptions::default());
            let mut client = bench.client();
            client.initialize(&mut bench, hpda, digests);
            client.connect_queue(&mut bench, 1, 31, 1);
            for (cid, len) in [(1, 512), (2, 4096), (3, 8192)] {
                let data = pattern(len, cid as u8);
                let done = client.run(&mut bench, write(cid, 0, &data), &data);
                assert_eq!((done.status, done.r2ts), (Status::SUCCESS, 0));
                let done = client.run(&mut bench, read(cid, 0, len), &[]);
                assert_eq!(done.data, data);
                assert!(!done.had_response, "the data said so");
            }
            for (cid, len) in [(4, 512), (5, 8192), (6, 131_072)] {
                let data = pattern(len, cid as u8);
                let done = client.run_with_r2t(&mut bench, write(cid, 8, &data), &data);
                assert_eq!((done.status, done.r2ts), (Status::SUCCESS, 1));
                let done = client.run(&mut bench, read(cid, 8, len), &[]);
                assert_eq!(done.data, data);
            }
            assert_eq!(bench.core.damaged, 0);
        }
    }
}

#[test]
fn without_c2h_success_data_is_followed_by_a_response() {
    let options = TcpOptions {
        c2h_success: false,
        ..TcpOptions::default()
    };
    let mut bench = Bench::new(options);
    let mut client = bench.connected((false, true));
    let done = client.run(&mut bench, read(9, 0, 4096), &[]);
    assert_eq!((done.data.len(), done.had_response), (4096, true));
}

#[test]
fn long_data_is_split_by_maxh2cdata() {
    let mut bench = Bench::new(TcpOptions {
        maxh2cdata: 4096,
        ..TcpOptions::default()
    });
    let mut client = bench.connected((true, true));
    let data = pattern(131_072, 3);
    let done = client.run_with_r2t(&mut bench, write(1, 0, &data), &data);
    assert_eq!((done.status, done.r2ts), (Status::SUCCESS, 1));
    assert_eq!(bench.core.memory[..data.len()], data);
}

#[test]
fn everything_works_when_bytes_come_one_by_one() {
    for digests in [(false, false), (true, true)] {
        let mut bench = Bench::new(TcpOptions::default());
        let mut client = bench.client();
        for byte in Client::ic_req(0, digests.0, digests.1) {
            client.write(&mut bench, &[byte]);
            bench.poll();
        }
        let (pdu, _) = client.pdu(&mut bench);
        client.agree(0, pdu);
        let (connect, data) = Client::connect_capsule(1, 31, 1);
        let written = pattern(512, 9);
        let mut capsules = client.capsule(&connect, &data);
        capsules.extend(client.capsule(&write(1, 3, &written), &written));
        capsules.extend(client.capsule(&read(2, 3, 512), &[]));
        for byte in capsules {
            client.write(&mut bench, &[byte]);
            bench.poll();
        }
        assert_eq!(
            client.finish(&mut bench, connect.cid(), &[]).status,
            Status::SUCCESS
        );
        assert_eq!(
            client.finish(&mut bench, Cid(1), &[]).status,
            Status::SUCCESS
        );
        assert_eq!(client.finish(&mut bench, Cid(2), &[]).data, written);

        let sqe = write(3, 3, &written).with_sgl(SglDescriptor::transport_data(512));
        let capsule = client.capsule(&sqe, &[]);
        client.write(&mut bench, &capsule);
        let (pdu, _) = client.pdu(&mut bench);
        let Pdu::R2T {
            ttag, r2tl: 512, ..
        } = pdu
        else {
            panic!("{pdu:?}")
        };
        for byte in client.h2c(Cid(3), ttag, 0, &pattern(512, 5), true) {
            client.write(&mut bench, &[byte]);
            bench.poll();
        }
        assert_eq!(
            client.finish(&mut bench, Cid(3), &[]).status,
            Status::SUCCESS
        );
        assert_eq!(bench.core.memory[3 * BLOCK..4 * BLOCK], pattern(512, 5));
    }
}

#[test]
fn many_commands_in_one_segment_are_answered_in_one_send() {
    let mut bench = Bench::new(TcpOptions::default());
    let mut client = bench.connected((false, false));
    bench.settle();
    let (receives, sends) = (bench.group.io.receive_calls, bench.group.io.send_calls);
    let data = pattern(512, 1);
    let mut capsules = Vec::new();
    for cid in 0..31 {
        capsules.extend(client.capsule(&write(cid, u64::from(cid), &data), &data));
    }
    client.write(&mut bench, &capsules);
    bench.poll();
    assert_eq!(bench.core.commands, 32);
    assert_eq!(bench.group.io.receive_calls - receives, 1);
    assert_eq!(bench.group.io.send_calls - sends, 1);
    for cid in 0..31 {
        assert_eq!(client.response(&mut bench).cid(), Cid(cid));
    }
}

#[test]
fn several_r2ts_are_answered_in_any_order() {
    let mut bench = Bench::new(TcpOptions::default());
    let mut client = bench.connected((true, true));
    let mut tags = VecDeque::new();
    for cid in 0..8_u16 {
        let sqe = write(cid, u64::from(cid) * 16, &[0; 8192])
            .with_sgl(SglDescriptor::transport_data(8192));
        let capsule = client.capsule(&sqe, &[]);
        client.write(&mut bench, &capsule);
        let (Pdu::R2T { ttag, cccid, .. }, _) = client.pdu(&mut bench) else {
            panic!()
        };
        tags.push_front((cccid, ttag));
    }
    for half in 0..2_u32 {
        for (cid, ttag) in &tags {
            let data = pattern(8192, cid.0 as u8);
            let at = half * 4096;
            let part = &data[at as usize..][..4096];
            let pdu = client.h2c(*cid, *ttag, at, part, half == 1);
            client.write(&mut bench, &pdu);
        }
    }
    for (cid, _) in &tags {
        assert_eq!(client.response(&mut bench).cid(), *cid);
        let at = usize::from(cid.0) * 8192;
        assert_eq!(bench.core.memory[at..at + 8192], pattern(8192, cid.0 as u8));
    }
}

#[test]
fn a_command_that_fails_has_its_data_skipped() {
    for digests in [(false, false), (true, true)] {
        let mut bench = Bench::new(TcpOptions::default());
        let mut client = bench.connected(digests);
        let data = pattern(4096, 2);
        let mut capsules = client.capsule(&write(1, 1 << 40, &data), &data);
        let flush_with_data =
            Sqe::flush(Cid(2), Nsid(1)).with_sgl(SglDescriptor::in_capsule(0, 4096));
        capsules.extend(client.capsule(&flush_with_data, &data));
        capsules.extend(client.capsule(&read(3, 0, 512), &[]));
        client.write(&mut bench, &capsules);
        let status = |done: Done| done.status;
        let failed = status(client.finish(&mut bench, Cid(1), &[]));
        assert_eq!(failed, Status::LBA_OUT_OF_RANGE);
        assert_eq!(
            status(client.finish(&mut bench, Cid(2), &[])),
            Status::INVALID_OPCODE
        );
        assert_eq!(
            status(client.finish(&mut bench, Cid(3), &[])),
            Status::SUCCESS
        );
    }
}

#[test]
fn without_buffers_reading_stops_and_goes_on_when_there_are_some() {
    for digests in [(false, false), (true, true)] {
        let mut bench = Bench::new(TcpOptions::default());
        let mut client = bench.connected(digests);
        bench.core.is_out_of_buffers = true;
        let mut capsules = Vec::new();
        for cid in 0..20_u16 {
            let data = pattern(8192, cid as u8);
            capsules.extend(client.capsule(&write(cid, u64::from(cid) * 16, &data), &data));
        }
        client.write(&mut bench, &capsules);
        bench.settle();
        assert_eq!(
            bench.core.commands, 2,
            "Connect and one write: then reading stops"
        );
        let receives = bench.group.io.receive_calls;
        bench.settle();
        assert_eq!(
            bench.group.io.receive_calls, receives,
            "nothing is polled meanwhile"
        );
        let mut served = 0;
        while served < 20 {
            if let Some((id, slot, step)) = bench.core.serve_one() {
                served += 1;
                bench.group.step_with(&mut bench.core, id, slot, step);
            }
            bench.poll();
        }
        for cid in 0..20_u16 {
            assert_eq!(client.response(&mut bench).cid(), Cid(cid));
            let at = usize::from(cid) * 8192;
            assert_eq!(bench.core.memory[at..at + 8192], pattern(8192, cid as u8));
        }
    }
}

#[test]
fn an_r2t_waits_for_its_buffer_while_reading_goes_on() {
    let mut bench = Bench::new(TcpOptions::default());
    let mut client = bench.connected((false, false));
    bench.core.is_out_of_buffers = true;
    let data = pattern(65_536, 4);
    let sqe = write(1, 0, &data).with_sgl(SglDescriptor::transport_data(65_536));
    let capsule = client.capsule(&sqe, &[]);
    client.write(&mut bench, &capsule);
    let done = client.run(&mut bench, read(2, 0, 512), &[]);
    assert_eq!(done.status, Status::SUCCESS);
    let (id, slot, step) = bench.core.serve_one().unwrap();
    bench.group.step_with(&mut bench.core, id, slot, step);
    assert_eq!(
        client.finish(&mut bench, Cid(1), &data).status,
        Status::SUCCESS
    );
    assert_eq!(bench.core.memory[..65_536], data);
}

#[test]
fn damaged_data_fails_its_command_and_nothing_else() {
    let mut bench = Bench::new(TcpOptions::default());
    let mut client = bench.connected((true, true));
    let data = pattern(4096, 6);
    let mut capsule = client.capsule(&write(1, 0, &data), &data);
    let at = capsule.len() - 100;
    capsule[at] ^= 1;
    client.write(&mut bench, &capsule);
    let done = client.finish(&mut bench, Cid(1), &[]);
    assert_eq!(done.status, Status::TRANSIENT_TRANSPORT_ERROR);
    assert_eq!(bench.core.memory[..4096], [0; 4096]);

    let sqe = write(2, 0, &data).with_sgl(SglDescriptor::transport_data(4096));
    let capsule = client.capsule(&sqe, &[]);
    client.write(&mut bench, &capsule);
    let (Pdu::R2T { ttag, .. }, _) = client.pdu(&mut bench) else {
        panic!()
    };
    let mut first = client.h2c(Cid(2), ttag, 0, &data[..2048], false);
    let last = first.len() - 1;
    first[last] ^= 0x80;
    first.extend(client.h2c(Cid(2), ttag, 2048, &data[2048..], true));
    client.write(&mut bench, &first);
    let done = client.finish(&mut bench, Cid(2), &[]);
    assert_eq!(done.status, Status::TRANSIENT_TRANSPORT_ERROR);

    assert_eq!(
        client.run(&mut bench, write(3, 0, &data), &data).status,
        Status::SUCCESS
    );
    assert_eq!(bench.stats().data_digest_errors, 2);
}

// Hosts that break the protocol.

/// Sends bytes on a fresh connection that has done its ICReq and Connect, and returns how the
/// target ends it: FES and FEI.
fn end_of(
    digests: (bool, bool),
    make: impl FnOnce(&mut Client, &mut Bench) -> Vec<u8>,
) -> (u16, u32) {
    let mut bench = Bench::new(TcpOptions::default());
    let mut client = bench.connected(digests);
    let bytes = make(&mut client, &mut bench);
    client.write(&mut bench, &bytes);
    let end = client.term_req(&mut bench);
    assert_eq!(bench.core.closed, 1, "the queue pair is gone");
    assert_eq!(bench.stats().terminated, 1);
    drop(client);
    bench.settle();
    assert_eq!(
        bench.group.slab.len(),
        0,
        "the connection is gone once the host has closed"
    );
    assert_eq!(bench.stats().connections, 0);
    end
}

#[test]
fn garbage_is_answered_with_a_term_req() {
    let end = end_of((false, false), |_, _| vec![0xff; 4096]);
    assert_eq!(end, (FES_INVALID_HEADER_FIELD, 0));
}

#[test]
fn pdus_out_of_turn_are_sequence_errors() {
    let end = end_of((false, false), |_, _| Client::ic_req(0, false, false));
    assert_eq!(end.0, FES_SEQUENCE_ERROR);

    let mut bench = Bench::new(TcpOptions::default());
    let mut client = bench.client();
    let (sqe, data) = Client::connect_capsule(0, 31, 0xffff);
    let capsule = client.capsule(&sqe, &data);
    client.write(&mut bench, &capsule);
    assert_eq!(client.term_req(&mut bench).0, FES_SEQUENCE_ERROR);
    assert_eq!(bench.core.opened, 0);
}

#[test]
fn an_unknown_format_version_is_an_unsupported_parameter() {
    let mut bench = Bench::new(TcpOptions::default());
    let mut client = bench.client();
    let mut bytes = Client::ic_req(0, false, false);
    bytes[8] = 1;
    client.write(&mut bench, &bytes);
    assert_eq!(client.term_req(&mut bench), (FES_UNSUPPORTED_PARAMETER, 8));
}

#[test]
fn a_wrong_header_digest_is_told_with_the_digest_received() {
    let end = end_of((true, false), |client, _| {
        let mut bytes = client.capsule(&read(1, 0, 512), &[]);
        bytes[72..76].copy_from_slice(&[1, 2, 3, 4]);
        bytes
    });
    assert_eq!(end, (FES_HEADER_DIGEST_ERROR, 0x0403_0201));
}

#[test]
fn more_in_capsule_data_than_allowed_is_refused_before_it_comes() {
    let end = end_of((false, false), |client, _| {
        let data = vec![0; 8192 + 512];
        let mut capsule = client.capsule(&write(1, 0, &data), &data);
        // Not one byte of the data: the header is enough.
        capsule.truncate(72);
        capsule
    });
    assert_eq!(end.0, FES_DATA_LIMIT_EXCEEDED);
}

#[test]
fn an_admin_queue_takes_8_kib_in_a_capsule_whatever_the_option_says() {
    let options = TcpOptions {
        in_capsule_data_size: 1024,
        ..TcpOptions::default()
    };
    let mut bench = Bench::new(options);
    let mut client = bench.client();
    client.initialize(&mut bench, 0, (false, false));
    client.connect_queue(&mut bench, 0, 31, 0xffff);
    let data = pattern(8192, 1);
    assert_eq!(
        client.run(&mut bench, write(1, 0, &data), &data).status,
        Status::SUCCESS
    );

    let mut client = bench.client();
    client.initialize(&mut bench, 0, (false, false));
    client.connect_queue(&mut bench, 1, 31, 1);
    let capsule = client.capsule(&write(1, 0, &data), &data);
    client.write(&mut bench, &capsule);
    assert_eq!(client.term_req(&mut bench).0, FES_DATA_LIMIT_EXCEEDED);
}

/// Has an R2T of 8192 bytes outstanding, then sends what `make` makes for its tag.
fn end_of_data(make: impl FnOnce(&Client, u16) -> Vec<u8>) -> (u16, u32) {
    end_of((false, false), |client, bench| {
        let sqe = write(1, 0, &[0; 8192]).with_sgl(SglDescriptor::transport_data(8192));
        let capsule = client.capsule(&sqe, &[]);
        client.write(bench, &capsule);
        let (Pdu::R2T { ttag, .. }, _) = client.pdu(bench) else {
            panic!()
        };
        make(client, ttag)
    })
}

#[test]
fn data_that_was_not_asked_for_is_refused() {
    let data = [0; 8192];
    let end = end_of_data(|client, ttag| client.h2c(Cid(1), ttag + 1, 0, &data, true));
    assert_eq!(end, (FES_INVALID_HEADER_FIELD, 10), "no such transfer tag");
    let end = end_of_data(|client, ttag| client.h2c(Cid(2), ttag, 0, &data, true));
    assert_eq!(
        end,
        (FES_INVALID_HEADER_FIELD, 8),
        "the tag is another command's"
    );
    let end = end_of_data(|client, ttag| client.h2c(Cid(1), ttag, 4096, &data[..4096], true));
    assert_eq!(end.0, FES_DATA_OUT_OF_RANGE, "not in order");
    let end = end_of_data(|client, ttag| client.h2c(Cid(1), ttag, 0, &[0; 8193], true));
    assert_eq!(end.0, FES_DATA_OUT_OF_RANGE, "more than was asked for");
    let end = end_of_data(|client, ttag| client.h2c(Cid(1), ttag, 0, &data[..4096], true));
    assert_eq!(end, (FES_INVALID_HEADER_FIELD, 1), "the last PDU too soon");
    let end = end_of_data(|client, ttag| client.h2c(Cid(1), ttag, 0, &data, false));
    assert_eq!(
        end,
        (FES_INVALID_HEADER_FIELD, 1),
        "all data without a last PDU"
    );
    let end = end_of_data(|client, ttag| {
        let mut twice = client.h2c(Cid(1), ttag, 0, &data, true);
        twice.extend(client.h2c(Cid(1), ttag, 0, &data, true));
        twice
    });
    assert_eq!(end, (FES_INVALID_HEADER_FIELD, 10), "the transfer is over");
}

#[test]
fn more_commands_than_the_queue_has_entries_end_the_connection() {
    let end = end_of((false, false), |client, bench| {
        bench.core.is_out_of_buffers = true;
        let sqe = |cid| write(cid, 0, &[0; 512]).with_sgl(SglDescriptor::transport_data(512));
        (0..33)
            .flat_map(|cid| client.capsule(&sqe(cid), &[]))
            .collect()
    });
    assert_eq!(end.0, FES_SEQUENCE_ERROR);
}

#[test]
fn a_term_req_of_the_host_ends_the_connection() {
    let mut bench = Bench::new(TcpOptions::default());
    let mut client = bench.connected((false, false));
    let mut bytes = vec![0; 24];
    let host = fabric_wire::tcp::Receiver::Controller;
    fabric_wire::tcp::encode_term_req(&mut bytes, host, 1, 4, &[]).unwrap();
    client.write(&mut bench, &bytes);
    assert!(client.pdu_or_end(&mut bench).is_none());
    assert_eq!(
        (bench.core.closed, bench.stats().term_reqs_received),
        (1, 1)
    );
}

// Hosts that are gone, slow or silent.

#[test]
fn a_reset_or_half_close_at_every_byte_leaves_nothing_behind() {
    let mut bytes = Client::ic_req(0, true, true);
    let client = Bench::new(TcpOptions::default()).connected((true, true));
    let boundary = bytes.len();
    let (connect, data) = Client::connect_capsule(1, 31, 1);
    bytes.extend(client.capsule(&connect, &data));
    let data = pattern(512, 1);
    bytes.extend(client.capsule(&write(1, 0, &data), &data));
    bytes.extend(client.capsule(&read(2, 0, 512), &[]));
    let sqe = write(3, 0, &data).with_sgl(SglDescriptor::transport_data(512));
    bytes.extend(client.capsule(&sqe, &[]));

    let mut bench = Bench::new(TcpOptions::default());
    for end in (0..=bytes.len()).filter(|end| end % 13 == 0 || *end == boundary) {
        for is_half_close in [false, true] {
            let mut client = bench.client();
            client.write(&mut bench, &bytes[..end]);
            bench.settle();
            if is_half_close {
                client.stream.shutdown(std::net::Shutdown::Write).unwrap();
                client.wait_for_end(&mut bench);
            }
            // With answers unread this is a reset.
            drop(client);
            bench.settle();
            assert_eq!(bench.group.slab.len(), 0, "after {end} bytes");
        }
    }
    assert_eq!(bench.core.opened, bench.core.closed);
    assert_eq!(bench.stats().connections, 0);
}

#[test]
fn silent_hosts_are_closed_in_time_and_connected_ones_are_not() {
    let options = TcpOptions {
        icreq_timeout_ms: 1_000,
        half_open_timeout_ms: 3_000,
        ..Default::default()
    };
    let mut bench = Bench::new(options);
    let mut silent = bench.client();
    let mut loris = bench.client();
    let mut half_open = bench.client();
    half_open.initialize(&mut bench, 0, (false, false));
    let mut live = bench.connected((false, false));
    bench.settle();
    let ic_req = Client::ic_req(0, false, false);
    for byte in &ic_req[..10] {
        loris.write(&mut bench, &[*byte]);
        bench.now += Duration::from_millis(50);
        bench.poll();
    }
    use nvmf::transport::TransportGroup;
    let deadline = bench.group.next_deadline().unwrap();
    assert!(deadline > bench.now);
    bench.now = deadline;
    bench.poll();
    bench.now += Duration::from_millis(100);
    bench.poll();
    assert!(silent.pdu_or_end(&mut bench).is_none());
    assert!(loris.pdu_or_end(&mut bench).is_none());
    assert_eq!((bench.group.slab.len(), bench.stats().timed_out), (2, 2));
    bench.now += Duration::from_secs(3);
    bench.poll();
    assert!(half_open.pdu_or_end(&mut bench).is_none());
    assert_eq!((bench.group.slab.len(), bench.stats().timed_out), (1, 3));
    assert_eq!(bench.group.next_deadline(), None);
    bench.now += Duration::from_secs(3_600);
    assert_eq!(
        live.run(&mut bench, read(1, 0, 512), &[]).status,
        Status::SUCCESS
    );
}

#[test]
fn a_host_that_never_reads_holds_its_slots_and_no_more() {
    let mut bench = Bench::new(TcpOptions::default());
    let mut stuck = bench.client();
    stuck.initialize(&mut bench, 0, (false, false));
    stuck.connect_queue(&mut bench, 1, 127, 1);
    let capsules: Vec<u8> = (0..127)
        .flat_map(|cid| stuck.capsule(&read(cid, 0, 131_072), &[]))
        .collect();
    stuck.write(&mut bench, &capsules);
    bench.settle();
    assert_eq!((bench.core.commands, bench.group.blocked_sends), (128, 1));
    let sends = bench.group.io.send_calls;
    let receives = bench.group.io.receive_calls;
    bench.settle();
    assert_eq!(
        bench.group.io.send_calls, sends,
        "nothing is tried while the socket is full"
    );
    assert_eq!(bench.group.io.receive_calls, receives);
    // Once it reads, it gets everything.
    for cid in 0..127 {
        assert_eq!(stuck.finish(&mut bench, Cid(cid), &[]).data.len(), 131_072);
    }
    assert_eq!(bench.group.blocked_sends, 0);
    assert_eq!(stuck.run(&mut bench, read(1, 0, 512), &[]).data.len(), 512);
}

/// An R2T for a write of `len` bytes.
fn r2t(bench: &mut Bench, client: &mut Client, cid: u16, len: usize) -> (Cid, u16) {
    let sqe = write(cid, 0, &vec![0; len]).with_sgl(SglDescriptor::transport_data(len as u32));
    let capsule = client.capsule(&sqe, &[]);
    client.write(bench, &capsule);
    let (Pdu::R2T { ttag, cccid, .. }, _) = client.pdu(bench) else {
        panic!()
    };
    (cccid, ttag)
}

/// Lets time go by in steps, as a poll group that is woken by its deadlines sees it.
fn pass(bench: &mut Bench, time: Duration) {
    for _ in 0..10 {
        bench.now += time / 10;
        bench.poll();
    }
}

#[test]
fn a_host_that_withholds_asked_data_is_closed_in_time() {
    let mut bench = Bench::new(TcpOptions::default());
    let mut silent = bench.connected((false, false));
    let mut trickling = bench.connected((false, false));
    let free = |bench: &Bench| {
        let large = bench.core.iobuf.pool().stats().large;
        large.free + large.cached
    };
    let all = free(&bench);
    r2t(&mut bench, &mut silent, 1, 131_072);
    let (cid, tag) = r2t(&mut bench, &mut trickling, 1, 131_072);
    assert_eq!(free(&bench), all - 2);
    // A few bytes now and then are no progress.
    let pdu = trickling.h2c(cid, tag, 0, &[0; 65_536], false);
    for bytes in pdu[..40].chunks(4) {
        trickling.write(&mut bench, bytes);
        pass(&mut bench, Duration::from_millis(1_400));
    }
    pass(&mut bench, Duration::from_millis(1_500));
    assert_eq!((bench.group.slab.len(), bench.stats().stalled), (0, 2));
    assert!(silent.pdu_or_end(&mut bench).is_none());
    assert_eq!((bench.core.closed, free(&bench)), (2, all));
}

#[test]
fn a_host_that_is_slow_but_moves_on_is_served() {
    let mut bench = Bench::new(TcpOptions::default());
    let mut client = bench.connected((false, true));
    let (cid, tag) = r2t(&mut bench, &mut client, 1, 131_072);
    let data = pattern(131_072, 9);
    for half in 0..2 {
        pass(&mut bench, Duration::from_secs(14));
        let part = &data[half * 65_536..][..65_536];
        let pdu = client.h2c(cid, tag, half as u32 * 65_536, part, half == 1);
        client.write(&mut bench, &pdu);
        bench.settle();
    }
    assert_eq!(client.response(&mut bench).status(), Status::SUCCESS);
    // An idle connection owes nothing.
    pass(&mut bench, Duration::from_secs(3_600));
    use nvmf::transport::TransportGroup;
    assert_eq!(bench.group.next_deadline(), None);
    assert_eq!(bench.stats().stalled, 0);
    let done = client.run(&mut bench, read(2, 0, 512), &[]);
    assert_eq!(done.data, data[..512]);
}

#[test]
fn a_host_that_waits_for_a_buffer_is_not_blamed_for_it() {
    let mut bench = Bench::new(TcpOptions::default());
    let mut client = bench.connected((false, false));
    bench.core.is_out_of_buffers = true;
    let data = pattern(4096, 1);
    let capsule = client.capsule(&write(1, 0, &data), &data);
    client.write(&mut bench, &capsule);
    for _ in 0..5 {
        pass(&mut bench, Duration::from_secs(15));
    }
    let (id, slot, step) = bench.core.serve_one().unwrap();
    bench.group.step_with(&mut bench.core, id, slot, step);
    assert_eq!(client.response(&mut bench).status(), Status::SUCCESS);
}

#[test]
fn a_host_that_never_reads_is_closed_in_time() {
    let mut bench = Bench::new(TcpOptions::default());
    let mut stuck = bench.client();
    stuck.initialize(&mut bench, 0, (false, false));
    stuck.connect_queue(&mut bench, 1, 127, 1);
    let capsules: Vec<u8> = (0..100)
        .flat_map(|cid| stuck.capsule(&read(cid, 0, 131_072), &[]))
        .collect();
    stuck.write(&mut bench, &capsules);
    bench.settle();
    assert_eq!(bench.group.blocked_sends, 1);
    let before = bench.core.iobuf.pool().stats().large.free;
    // The first period may begin with the socket still taking some.
    pass(&mut bench, Duration::from_secs(31));
    assert_eq!((bench.group.slab.len(), bench.stats().stalled), (0, 1));
    assert_eq!(bench.group.blocked_sends, 0);
    assert!(bench.core.iobuf.pool().stats().large.free >= before + 40);
}

#[test]
fn who_breaks_the_protocol_holds_one_pdu_while_it_lingers() {
    for digest in [false, true] {
        let mut bench = Bench::new(TcpOptions::default());
        let mut stuck = bench.client();
        stuck.initialize(&mut bench, 0, (false, digest));
        stuck.connect_queue(&mut bench, 1, 127, 1);
        let free = |bench: &Bench| {
            let large = bench.core.iobuf.pool().stats().large;
            large.free + large.cached
        };
        let all = free(&bench);
        let mut bytes: Vec<u8> = (0..100)
            .flat_map(|cid| stuck.capsule(&read(cid, 0, 131_072), &[]))
            .collect();
        bytes.extend([0xff; 24]);
        stuck.write(&mut bench, &bytes);
        bench.settle();
        assert_eq!(bench.stats().terminated, 1);
        assert_eq!(free(&bench), all - 1, "the PDU that is on its way");
        // What was on its way is whole, and the reason comes behind it.
        let mut whole = 0;
        let fes = loop {
            match stuck.pdu(&mut bench).0 {
                Pdu::C2HData { .. } => whole += 1,
                Pdu::TermReq { fes, .. } => break fes,
                other => panic!("{other:?}"),
            }
        };
        assert!(whole > 0 && fes > 0);
        assert_eq!(free(&bench), all);
    }
}

#[test]
fn one_connection_more_than_allowed_is_closed() {
    let mut bench = Bench::new(TcpOptions {
        max_connections: 2,
        ..TcpOptions::default()
    });
    let first = bench.connected((false, false));
    let _second = bench.connected((false, false));
    let mut third = bench.client();
    assert!(third.pdu_or_end(&mut bench).is_none());
    assert_eq!(
        (bench.stats().refused_at_limit, bench.stats().connections),
        (1, 2)
    );
    drop(first);
    bench.settle();
    let _fourth = bench.connected((false, false));
}

#[test]
fn accepting_is_paced_and_says_when_it_goes_on() {
    let mut bench = Bench::new(TcpOptions {
        accept_rate_per_s: 2,
        ..TcpOptions::default()
    });
    let _clients: Vec<_> = (0..4).map(|_| bench.client()).collect();
    let accept = |bench: &mut Bench| {
        let now = bench.now;
        let mut accepted = Vec::new();
        bench
            .acceptor
            .poll(now, &mut |connection| accepted.push(connection));
        accepted.len()
    };
    assert_eq!(accept(&mut bench), 2);
    let at = bench.acceptor.next_deadline().unwrap();
    assert_eq!(at, bench.now + Duration::from_millis(500));
    bench.now += Duration::from_millis(499);
    assert_eq!(accept(&mut bench), 0);
    bench.now = at;
    assert_eq!(accept(&mut bench), 1);
}

#[test]
fn idle_connections_cost_a_poll_nothing() {
    const IDLE: usize = 200;
    let mut bench = Bench::new(TcpOptions::default());
    let _idle: Vec<_> = (0..IDLE)
        .map(|_| {
            let mut client = bench.client();
            client.initialize(&mut bench, 0, (false, false));
            client
        })
        .collect();
    bench.settle();
    assert_eq!((bench.group.slab.len(), bench.group.hot.len()), (IDLE, 0));
    let (receives, looks) = (bench.group.io.receive_calls, bench.group.looks);
    for _ in 0..1_000 {
        assert_eq!(bench.poll(), 0);
    }
    assert_eq!(bench.group.io.receive_calls, receives);
    assert_eq!(
        bench.group.looks - looks,
        1_000,
        "one look a poll, whatever is connected"
    );
    // With one of them busy, the others still cost nothing.
    let mut busy = bench.connected((false, false));
    busy.run(&mut bench, read(1, 0, 512), &[]);
    let (receives, looks) = (bench.group.io.receive_calls, bench.group.looks);
    for _ in 0..64 {
        bench.poll();
    }
    assert_eq!(bench.group.hot.len(), 1);
    assert_eq!(bench.group.io.receive_calls - receives, 64);
    assert_eq!(bench.group.looks - looks, 4);
}

#[test]
fn whoever_sleeps_after_an_idle_poll_is_woken_by_what_comes() {
    use nvmf::transport::TransportGroup;
    use std::os::fd::AsFd;
    let is_readable = |bench: &Bench| {
        let fd = bench.group.wake_fd().unwrap();
        let mut fds = [nix::poll::PollFd::new(
            fd.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).unwrap() == 1
    };
    let mut bench = Bench::new(TcpOptions::default());
    let mut client = bench.connected((false, false));
    // Asleep after any number of polls: while it is hot, as it cools down, and cold.
    for polls in 0..300 {
        while bench.poll() > 0 {}
        for _ in 0..polls {
            bench.poll();
        }
        assert!(!is_readable(&bench), "nothing has come after {polls} polls");
        let capsule = client.capsule(&read(1, 0, 512), &[]);
        client.write(&mut bench, &capsule);
        assert!(
            is_readable(&bench),
            "a command has come after {polls} polls"
        );
        assert_eq!(client.finish(&mut bench, Cid(1), &[]).data.len(), 512);
    }
}

#[test]
fn a_closed_connection_sends_its_last_response_first() {
    use nvmf::transport::CloseReason;
    let mut bench = Bench::new(TcpOptions::default());
    let mut client = bench.connected((false, false));
    let capsule = client.capsule(&read(1, 0, 8192), &[]);
    client.write(&mut bench, &capsule);
    let now = bench.now;
    while bench.group.poll_with(&mut bench.core, now) == 0 {}
    let id = bench.core.connection.unwrap();
    bench
        .group
        .close_with(&mut bench.core, id, CloseReason::Disconnect);
    bench.group.flush_with(&mut bench.core);
    assert_eq!(client.finish(&mut bench, Cid(1), &[]).data.len(), 8192);
    assert!(client.pdu_or_end(&mut bench).is_none());
    assert_eq!((bench.core.closed, bench.group.slab.len()), (1, 1));
    // A host that does not close its end is not waited for.
    bench.now += Duration::from_secs(3);
    bench.poll();
    assert_eq!(bench.group.slab.len(), 0);
    // Its number is another's now: calls for the old one find nobody.
    let mut next = bench.connected((false, false));
    assert_ne!(bench.core.connection.unwrap(), id);
    bench
        .group
        .close_with(&mut bench.core, id, CloseReason::Disconnect);
    assert_eq!(next.run(&mut bench, read(1, 0, 512), &[]).data.len(), 512);
}

#[test]
fn an_ipv6_listener_serves() {
    let transport = TcpTransport::new(TcpOptions {
        tos: 0x28,
        sock_priority: 3,
        ..Default::default()
    });
    let transport = transport.unwrap();
    let address = "tcp://[::1]:0".parse::<TransportAddress>().unwrap();
    let acceptor = match transport.listen(TransportId(0), &Arc::new(address)) {
        Ok(acceptor) => acceptor,
        Err(error) => {
            println!("skipped: no IPv6 loopback here ({error})");
            return;
        }
    };
    let mut bench = Bench::new(TcpOptions::default());
    bench.acceptor = acceptor;
    let mut client = bench.connected((false, false));
    assert_eq!(client.run(&mut bench, read(1, 0, 512), &[]).data.len(), 512);
}

#[test]
fn an_address_in_use_is_refused_with_the_reason() {
    let bench = Bench::new(TcpOptions::default());
    let socket = bench.acceptor.local_address().parse().unwrap();
    let address = Arc::new(TransportAddress::from_socket_addr(
        TransportType::Tcp,
        socket,
    ));
    let Err(error) = bench.transport.listen(TransportId(0), &address) else {
        panic!()
    };
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn random_bytes_never_panic(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 1..600),
        kind in 0..10_u8,
        is_connected in proptest::prelude::any::<bool>(),
    ) {
        let mut bench = Bench::new(TcpOptions::default());
        let mut client = if is_connected { bench.connected((false, false)) } else { bench.client() };
        let mut bytes = bytes;
        bytes[0] = kind;
        if bytes.len() >= 8 {
            bytes[5..8].fill(0);
        }
        client.write(&mut bench, &bytes);
        bench.settle();
    }

    #[test]
    fn a_damaged_session_never_panics(
        damage in proptest::collection::vec(
            (proptest::prelude::any::<proptest::sample::Index>(), proptest::prelude::any::<u8>()),
            1..4,
        ),
        digests in proptest::prelude::any::<(bool, bool)>(),
        cut in proptest::prelude::any::<proptest::sample::Index>(),
    ) {
        let mut bench = Bench::new(TcpOptions::default());
        let mut client = bench.connected(digests);
        let mut bytes = Vec::new();
        for cid in 0..6 {
            let data = pattern(512, cid as u8);
            let asked = write(cid, 1, &data).with_sgl(SglDescriptor::transport_data(512));
            bytes.extend(client.capsule(&write(cid + 10, 2, &data), &data));
            bytes.extend(client.capsule(&read(cid + 20, 2, 512), &[]));
            bytes.extend(client.capsule(&asked, &[]));
            // The slot, and so the tag, is the first that is free.
            bytes.extend(client.h2c(Cid(cid), 0, 0, &data, true));
        }
        for (index, value) in damage {
            let at = index.index(bytes.len());
            bytes[at] ^= value;
        }
        let (first, second) = bytes.split_at(cut.index(bytes.len()));
        client.write(&mut bench, first);
        bench.settle();
        // The target may have closed meanwhile.
        client.try_write(second);
        bench.settle();
        drop(client);
        bench.settle();
        proptest::prop_assert_eq!(bench.group.slab.len(), 0);
    }
}
