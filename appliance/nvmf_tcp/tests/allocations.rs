//! Steady I/O allocates nothing: not in the transport, not in the library behind it.

#![expect(unsafe_code, reason = "a counting allocator")]

mod client;
mod served;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use client::{Client, Pump};
use fabric_wire::tcp::Pdu;
use nvme_spec::{Cid, Lba, Nsid, SglDescriptor, Sqe};
use nvmf_tcp::TcpOptions;
use served::Served;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // Fails only while the thread ends; nobody counts then.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count();
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(memory, layout, len) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The target, with what its polls allocated.
struct Counted {
    served: Served,
    allocations: u64,
}

impl Pump for Counted {
    fn pump(&mut self) {
        let before = ALLOCATIONS.get();
        self.served.poll();
        self.allocations += ALLOCATIONS.get() - before;
    }
}

const DEPTH: u16 = 100;

/// One command of each slot: in-capsule writes, writes by R2T, reads, short and long.
fn round(io: &mut Client, counted: &mut Counted, data: &[u8]) {
    let mut capsules = Vec::new();
    for cid in 0..DEPTH {
        let lba = Lba(u64::from(cid) * 256);
        let len = [4096, 8192, 65_536, 131_072][usize::from(cid / 3 % 4)];
        let blocks = (len / 512) as u32;
        let asked = SglDescriptor::transport_data(len as u32);
        match cid % 3 {
            0 => {
                let sqe = Sqe::read(Cid(cid), Nsid(1), lba, blocks).with_sgl(asked);
                io.append_capsule(&mut capsules, &sqe, &[]);
            }
            1 => {
                let sqe = Sqe::write(Cid(cid), Nsid(1), lba, 16)
                    .with_sgl(SglDescriptor::in_capsule(0, 8192));
                io.append_capsule(&mut capsules, &sqe, &data[..8192]);
            }
            _ => {
                let sqe = Sqe::write(Cid(cid), Nsid(1), lba, blocks).with_sgl(asked);
                io.append_capsule(&mut capsules, &sqe, &[]);
            }
        }
    }
    io.write(counted, &capsules);
    let mut left = DEPTH;
    while left > 0 {
        counted.pump();
        io.fill();
        let mut asked = Vec::new();
        while let Some((_, pdu, _)) = io.buffered_pdu() {
            match pdu {
                Pdu::R2T {
                    cccid, ttag, r2tl, ..
                } => asked.push((cccid, ttag, r2tl as usize)),
                Pdu::C2HData { success: true, .. } => left -= 1,
                Pdu::CapsuleResp { cqe } => {
                    assert!(cqe.status().is_success(), "{}", cqe.status());
                    left -= 1;
                }
                other => panic!("{other:?}"),
            }
        }
        for (cid, ttag, len) in asked {
            let pdu = io.h2c(cid, ttag, 0, &data[..len], true);
            io.write(counted, &pdu);
        }
    }
}

#[test]
fn steady_io_allocates_nothing() {
    let data = vec![0x3c; 131_072];
    for digests in [(false, false), (true, true)] {
        let served = Served::new(
            TcpOptions::default(),
            served::iobuf_options(),
            served::ram_disk(32_768),
        );
        let mut counted = Counted {
            served,
            allocations: 0,
        };
        let (_admin, mut io) = counted.served.connected(digests, 127);
        for _ in 0..20 {
            round(&mut io, &mut counted, &data);
        }
        assert!(counted.allocations > 0, "the first rounds make the slots");
        counted.allocations = 0;
        for _ in 0..50 {
            round(&mut io, &mut counted, &data);
        }
        assert_eq!(
            counted.allocations, 0,
            "in 50 rounds of {DEPTH} commands, {digests:?}"
        );
    }
}
