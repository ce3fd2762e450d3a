//! In steady state nothing on the I/O path allocates.
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use dma::sg::SegmentList;
use dma::{BackingPreference, ChannelOptions, IoBuf, IobufOptions, IobufPool};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn nothing_allocates_in_steady_state() {
    let options = IobufOptions {
        backing: BackingPreference::Plain4K,
        ..IobufOptions::default()
    };
    let pool = IobufPool::new(options).unwrap();
    let mut channel = pool.channel("test", ChannelOptions::default()).unwrap();
    let (out, into) = UnixStream::pair().unwrap();
    let mut list = SegmentList::new(64);
    let mut held: Vec<IoBuf> = Vec::with_capacity(600);
    let mut served = Vec::with_capacity(8);
    let mut turn = |_| {
        for token in 0..500 {
            let len = if token % 10 == 0 { 100_000 } else { 4096 };
            held.extend(channel.get_or_wait(len, token).unwrap());
        }
        let mut buf = held.pop().unwrap();
        let view = buf.share(0..100);
        let mut other = held.pop().unwrap();
        let front = other.split_to(50);
        let mut gather = list.gather();
        assert!(gather.push(&view) && gather.push(&front));
        assert_eq!(gather.send(out.as_fd()).unwrap(), 150);
        let mut scatter = list.scatter();
        assert!(scatter.push(held.last_mut().unwrap()));
        assert_eq!(scatter.receive(into.as_fd()).unwrap(), 150);
        held.clear();
        channel.poll(&mut served);
        drop(channel.get_reserved(64));
    };
    // Carving the memory allocates its records: that ends once the working set is carved.
    (0..3).for_each(&mut turn);
    let before = ALLOCATIONS.get();
    (0..100).for_each(&mut turn);
    assert_eq!(ALLOCATIONS.get() - before, 0);
}
