//! The state machine against a core that does as the test says, over real sockets.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dma::{ChannelOptions, IoBuf, IobufChannel, IobufOptions, IobufPool, Payload};
use fabric_wire::fabrics;
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
        let options = IobufOptions { small_pool_count: 512, large_pool_count: 64, ..Default::default() };
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
        self.iobuf.get(len as usize).expect("the pool is large enough for the tests")
    }

    fn range(sqe: &Sqe) -> std::ops::Range<usize> {
        let start = sqe.slba().0 as usize * BLOCK;
        start..start + sqe.block_count() as usize * BLOCK
    }

    fn end(&mut self, slot: usize, status: Status, payload: Payload) {
        let data_len = payload.len() as u32;
        let cqe = Cqe::new(self.slots[slot].sqe.cid(), status);
        self.slots[slot].state = FakeState::Respond(Response { cqe, payload, data_len });
    }

    fn begin(&mut self, slot: usize, in_capsule_len: u32) {
        let sqe = self.slots[slot].sqe;
        let len = sqe.sgl().len();
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
        let FakeState::WaitsForBuffer(len) = self.slots[index].state else { unreachable!() };
        self.slots[index].state = FakeState::Receive(self.buffer(len).into(), len);
        Some((self.connection.unwrap(), SlotId(index as u16), Step::Receive))
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
        let free = self.slots.iter().position(|slot| matches!(slot.state, FakeState::Free));
        let index = match free {
            Some(index) => index,
            None if self.slots.len() == self.depth => return Err(CommandError::QueueOverrun),
            None => {
                self.slots.push(FakeSlot { sqe, state: FakeState::Free });
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
        let address = Arc::new(TransportAddress::from_socket_addr(TransportType::Tcp, socket));
        let acceptor = transport.listen(TransportId(0), &address).unwrap();
        let options = Arc::new(transport.options().clone());
        let stats = Arc::clone(transport.stats());
        let group = TcpGroup::new(TransportId(0), options, stats).unwrap();
        Self { transport, acceptor, group, core: FakeCore::new(), now: Instant::now() }
    }

    /// Polls as a poll group does; returns the work done.
    fn poll(&mut self) -> usize {
        let (group, now) = (&mut self.group, self.now);
        let accepted = self.acceptor.poll(now, &mut |connection| group.add(connection, now));
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
            self.now += Duration::from_micros(20);
        }
    }
}

impl Pump for Bench {
    fn pump(&mut self) {
        self.poll();
        self.now += Duration::from_micros(20);
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed).collect()
}

fn write(cid: u16, lba: u64, data: &[u8]) -> Sqe {
    Sqe::write(Cid(cid), Nsid(1), Lba(lba), (data.len() / BLOCK) as u32)
        .with_sgl(SglDescriptor::in_capsule(0, data.len() as u32))
}

fn read(cid: u16, lba: u64, len: usize) -> Sqe {
    Sqe::read(Cid(cid), Nsid(1), Lba(lba), (len / BLOCK) as u32)
        .with_sgl(SglDescriptor::transport_data(len as u32))
}
