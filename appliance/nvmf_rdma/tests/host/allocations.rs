//! Steady I/O allocates nothing: not in the transport, not in the library behind it.

#![expect(unsafe_code, reason = "a counting allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use nvme_spec::{Cid, Lba, Nsid, SglDescriptor, Sqe};

use crate::raw::{Host, Served};

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

const DEPTH: u16 = 15;

/// One command of each slot: in-capsule writes, writes and reads by key. What the target allocated.
fn round(served: &mut Served, io: &mut Host) -> u64 {
    let data = [0x3c; 4096];
    for cid in 0..DEPTH {
        let lba = Lba(u64::from(cid) * 16);
        let keyed = io.keyed(usize::from(cid) * 8192, 8192);
        match cid % 3 {
            0 => io.send(&Sqe::read(Cid(cid), Nsid(1), lba, 16).with_sgl(keyed), &[]),
            1 => {
                let sgl = SglDescriptor::in_capsule(0, 4096);
                io.send(&Sqe::write(Cid(cid), Nsid(1), lba, 8).with_sgl(sgl), &data);
            }
            _ => io.send(&Sqe::write(Cid(cid), Nsid(1), lba, 16).with_sgl(keyed), &[]),
        }
    }
    let mut left = DEPTH;
    let mut allocations = 0;
    while left > 0 {
        let before = ALLOCATIONS.get();
        served.turn();
        allocations += ALLOCATIONS.get() - before;
        while let Some(cqe) = io.poll() {
            assert!(cqe.status().is_success(), "{}", cqe.status());
            left -= 1;
        }
        assert!(!io.is_broken);
    }
    allocations
}

#[test]
fn steady_io_allocates_nothing() {
    for no_srq in [false, true] {
        let mut served = Served::new(11, no_srq);
        let (_admin, mut io) = served.associate();
        // Long enough for each receive to have given its first buffer away: from then on all of them are
        // of the channel of the commands.
        let first: u64 = (0..200).map(|_| round(&mut served, &mut io)).sum();
        assert!(first > 0, "the first rounds make the slots");
        let steady: u64 = (0..50).map(|_| round(&mut served, &mut io)).sum();
        assert_eq!(
            steady, 0,
            "in 50 rounds of {DEPTH} commands, no_srq {no_srq}"
        );
        let copied = served.transport.stats().groups()[0].copied_bytes();
        assert_eq!(copied, 0);
    }
}
