use std::sync::Arc;

use dma::{BackingPreference, BusView, Region, RegionOptions};
use nvme_spec::registers::{self, Aqa, Cc, Csts};
use nvme_spec::{Cid, Cqe, Lba, Nsid, Qid, Sqe, Status};
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use crate::{Cut, Emu, EmuOptions, Fault, FaultKind};

/// A host that knows just enough: admin queue, one I/O queue, commands one at a time.
struct Host {
    emu: Emu,
    memory: Arc<Region>,
    tail: [u32; 2],
    head: [u32; 2],
}

const ENTRIES: u32 = 16;
const DATA: usize = 0x8000;

fn queue_at(qid: usize) -> (usize, usize) {
    (qid * 0x2000, qid * 0x2000 + 0x1000)
}

impl Host {
    fn new(options: EmuOptions) -> Self {
        let memory = Region::allocate(&RegionOptions {
            len: 1 << 20,
            backing: BackingPreference::Plain4K,
            ..RegionOptions::default()
        })
        .unwrap();
        let bus = BusView::new();
        bus.map(&memory);
        let emu = Emu::new(options, bus);
        let mut host = Self {
            emu,
            memory,
            tail: [0; 2],
            head: [0; 2],
        };
        host.enable();
        host
    }

    fn at(&self, offset: usize) -> u64 {
        (self.memory.addr() + offset) as u64
    }

    fn enable(&mut self) {
        (self.tail, self.head) = ([0; 2], [0; 2]);
        self.memory.zero(0, 0x4000);
        self.emu.set_bus_master(true);
        let sizes = Aqa(0)
            .with_asqs(ENTRIES as u16 - 1)
            .with_acqs(ENTRIES as u16 - 1);
        self.emu.write32(registers::AQA, sizes.0);
        self.emu.write64(registers::ASQ, self.at(queue_at(0).0));
        self.emu.write64(registers::ACQ, self.at(queue_at(0).1));
        let cc = Cc(0).with_en(true).with_iosqes(6).with_iocqes(4);
        self.emu.write32(registers::CC, cc.0);
        self.emu.step();
        assert!(Csts(self.emu.read32(registers::CSTS)).rdy());
        let (sq, cq) = (self.at(queue_at(1).0), self.at(queue_at(1).1));
        let create = Sqe::create_io_cq(Cid(1), Qid(1), ENTRIES as u16, cq, Some(1));
        assert_eq!(self.run(0, create).status(), Status::SUCCESS);
        let create = Sqe::create_io_sq(Cid(2), Qid(1), ENTRIES as u16, sq, Qid(1), 0);
        assert_eq!(self.run(0, create).status(), Status::SUCCESS);
    }

    fn submit(&mut self, qid: usize, sqe: Sqe) {
        let at = queue_at(qid).0 + self.tail[qid] as usize * 64;
        self.memory.write_at(at, sqe.as_bytes());
        self.tail[qid] = (self.tail[qid] + 1) % ENTRIES;
        self.emu.write32(0x1000 + qid as u32 * 8, self.tail[qid]);
    }

    fn completion(&mut self, qid: usize) -> Option<Cqe> {
        let mut bytes = [0; 16];
        let at = queue_at(qid).1 + self.head[qid] as usize % ENTRIES as usize * 16;
        self.memory.read_at(at, &mut bytes);
        let cqe = Cqe::read_from_bytes(&bytes).unwrap();
        if cqe.phase() != (self.head[qid] / ENTRIES).is_multiple_of(2) {
            return None;
        }
        self.head[qid] += 1;
        let head = self.head[qid] % ENTRIES;
        self.emu.write32(0x1004 + qid as u32 * 8, head);
        Some(cqe)
    }

    fn run(&mut self, qid: usize, sqe: Sqe) -> Cqe {
        self.submit(qid, sqe);
        self.emu.step();
        let cqe = self.completion(qid).expect("the command ends in one step");
        assert_eq!(cqe.cid(), sqe.cid());
        cqe
    }

    fn write(&mut self, lba: u64, fill: u8) {
        self.memory.write_at(DATA, &[fill; 512]);
        let sqe = Sqe::write(Cid(3), Nsid(1), Lba(lba), 1).with_prp(self.at(DATA), 0);
        assert_eq!(self.run(1, sqe).status(), Status::SUCCESS);
    }

    fn read(&mut self, lba: u64) -> u8 {
        let sqe = Sqe::read(Cid(4), Nsid(1), Lba(lba), 1).with_prp(self.at(DATA), 0);
        assert_eq!(self.run(1, sqe).status(), Status::SUCCESS);
        let mut byte = [0];
        self.memory.read_at(DATA, &mut byte);
        byte[0]
    }
}

#[test]
fn what_is_written_is_read_round_after_round_of_the_queue() {
    let mut host = Host::new(EmuOptions::default());
    for lba in 0..50 {
        host.write(lba, lba as u8 + 1);
    }
    for lba in 0..50 {
        assert_eq!(host.read(lba), lba as u8 + 1);
    }
    assert_eq!(host.emu.take_interrupts(), [0, 1]);
}

#[test]
fn a_power_cut_keeps_what_was_flushed_and_some_of_the_rest() {
    let mut host = Host::new(EmuOptions::default());
    for lba in 0..64 {
        host.write(lba, 1);
    }
    host.run(1, Sqe::flush(Cid(9), Nsid(1)));
    for lba in 0..64 {
        host.write(lba, 2);
    }
    host.emu.power_cut(Cut {
        seed: 1,
        tear_blocks: false,
    });
    host.enable();
    let after: Vec<u8> = (0..64).map(|lba| host.read(lba)).collect();
    assert!(after.iter().all(|byte| [1, 2].contains(byte)));
    assert!(after.contains(&1) && after.contains(&2), "{after:?}");
}

#[test]
fn fua_and_a_drive_without_cache_are_durable_at_once() {
    let mut host = Host::new(EmuOptions {
        volatile_write_cache: false,
        ..EmuOptions::default()
    });
    host.write(5, 7);
    assert_eq!(host.emu.media(1).unwrap().durable_block(5)[0], 7);
    let mut host = Host::new(EmuOptions::default());
    host.memory.write_at(DATA, &[8; 512]);
    let sqe = Sqe::write(Cid(3), Nsid(1), Lba(6), 1)
        .with_fua(true)
        .with_prp(host.at(DATA), 0);
    host.run(1, sqe);
    assert_eq!(host.emu.media(1).unwrap().durable_block(6)[0], 8);
    assert_eq!(host.emu.media(1).unwrap().cached_blocks(), 0);
}

#[test]
fn faults_hit_the_command_that_they_name() {
    let mut host = Host::new(EmuOptions::default());
    let read = nvme_spec::opcode::nvm::READ;
    let status = Status::UNRECOVERED_READ_ERROR;
    host.emu
        .inject(Fault::io(read, FaultKind::Status(status)).after(1));
    host.write(0, 1);
    assert_eq!(host.read(0), 1);
    let sqe = Sqe::read(Cid(4), Nsid(1), Lba(0), 1).with_prp(host.at(DATA), 0);
    assert_eq!(host.run(1, sqe).status(), status);
    assert_eq!(host.read(0), 1);
    host.emu.inject(Fault::io(read, FaultKind::Late(3)));
    host.submit(1, sqe);
    for _ in 0..3 {
        host.emu.step();
        assert!(host.completion(1).is_none());
    }
    host.emu.step();
    assert!(host.completion(1).is_some());
    host.emu.inject(Fault::io(read, FaultKind::Remove));
    host.submit(1, sqe);
    host.emu.step();
    assert_eq!(host.emu.read32(registers::CSTS), u32::MAX);
}

#[test]
fn a_slow_command_is_done_when_it_is_due_and_not_at_all_once_it_is_aborted() {
    let mut host = Host::new(EmuOptions::default());
    let write = nvme_spec::opcode::nvm::WRITE;
    let sqe = Sqe::write(Cid(3), Nsid(1), Lba(0), 1).with_prp(host.at(DATA), 0);
    host.emu.inject(Fault::io(write, FaultKind::Slow(2)));
    host.memory.write_at(DATA, &[1; 512]);
    host.submit(1, sqe);
    host.emu.step();
    // The memory is still the controller's: what it holds when the command is done counts.
    host.memory.write_at(DATA, &[2; 512]);
    host.emu.step();
    assert!(host.completion(1).is_none());
    host.emu.step();
    assert_eq!(host.completion(1).unwrap().status(), Status::SUCCESS);
    assert_eq!(host.emu.media(1).unwrap().block(0)[0], 2);
    host.emu.inject(Fault::io(write, FaultKind::Slow(2)));
    host.memory.write_at(DATA, &[3; 512]);
    host.submit(1, sqe);
    host.emu.step();
    assert_eq!(host.run(0, Sqe::abort(Cid(5), Qid(1), Cid(3))).dw0(), 0);
    let aborted = host.completion(1).unwrap();
    assert_eq!(aborted.status(), Status::COMMAND_ABORT_REQUESTED);
    for _ in 0..4 {
        host.emu.step();
    }
    assert_eq!(host.emu.media(1).unwrap().block(0)[0], 2);
}

#[test]
fn a_command_can_give_wrong_data_and_a_wrong_result() {
    let mut host = Host::new(EmuOptions::default());
    host.write(0, 1);
    let read = nvme_spec::opcode::nvm::READ;
    let garbled = FaultKind::Garbled(508, [9; 8]);
    host.emu.inject(Fault::io(read, garbled));
    host.memory.write_at(DATA, &[0; 1024]);
    assert_eq!(host.read(0), 1);
    let mut data = [0; 6];
    host.memory.read_at(DATA + 507, &mut data);
    assert_eq!(data, [1, 9, 9, 9, 9, 0]);
    host.read(0);
    host.memory.read_at(DATA + 507, &mut data);
    assert_eq!(data, [1, 1, 1, 1, 1, 0]);
    host.emu.inject(Fault::io(read, FaultKind::Result(7)));
    let sqe = Sqe::read(Cid(4), Nsid(1), Lba(0), 1).with_prp(host.at(DATA), 0);
    assert_eq!(host.run(1, sqe).dw0(), 7);
}

#[test]
fn an_address_outside_of_memory_is_an_error_and_no_crash() {
    let mut host = Host::new(EmuOptions::default());
    let sqe = Sqe::read(Cid(4), Nsid(1), Lba(0), 1).with_prp(0x10, 0);
    assert_eq!(host.run(1, sqe).status(), Status::DATA_TRANSFER_ERROR);
    host.emu.write32(0x1008, 999);
    assert_eq!(host.emu.events.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_command_makes_it_panic(
        commands in proptest::collection::vec(
            (any::<bool>(), any::<[u8; 32]>(), any::<[u8; 32]>()), 1..24),
        small in any::<bool>(),
    ) {
        let mut host = Host::new(EmuOptions {
            sgl: true,
            shadow_doorbells: true,
            ..EmuOptions::default()
        });
        for (io, first, second) in commands {
            let mut bytes = [0; 64];
            bytes[..32].copy_from_slice(&first);
            bytes[32..].copy_from_slice(&second);
            if small {
                // Likelier to get past the first checks.
                bytes[0] &= 0x1f;
                bytes[4..8].copy_from_slice(&1u32.to_le_bytes());
                bytes[24..32].copy_from_slice(&host.at(DATA).to_le_bytes());
                bytes[44..48].fill(0);
            }
            host.submit(usize::from(io), Sqe::read_from_bytes(&bytes).unwrap());
            host.emu.step();
            while host.completion(usize::from(io)).is_some() {}
        }
    }

    #[test]
    fn no_register_write_makes_it_panic(
        writes in proptest::collection::vec((0u32..0x1100, any::<u32>()), 1..64),
    ) {
        let mut host = Host::new(EmuOptions::default());
        for (offset, value) in writes {
            host.emu.write32(offset, value);
            let _ = host.emu.read64(offset);
            host.emu.step();
        }
    }
}
