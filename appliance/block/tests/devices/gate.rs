//! Compare-and-write is atomic between threads, and nobody waits for ever.

use std::sync::Arc;
use std::time::{Duration, Instant};

use block::file::{File, FileOptions};
use block::malloc::{Malloc, MallocOptions};
use block::{BdevChannel, BlockDevice, Io, IoError, Op, Submit};

use crate::rig::{self, Buffers, CountingWaker, Narrow};

fn counter_of(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

fn block_of(counter: u64) -> Vec<u8> {
    counter.to_le_bytes().repeat(64)
}

/// Adds 1 to the counter in block 0, as often as it takes.
fn increment(channel: &mut BdevChannel, buffers: &mut Buffers) {
    loop {
        let old = rig::read(channel, buffers, 0, 1);
        let data = [old.clone(), block_of(counter_of(&old) + 1)].concat();
        let payload = buffers.filled(&data);
        let io = Io::with_payload(Op::CompareAndWrite { fua: false }, 0, 1, payload, 0);
        match rig::run(channel, io).result {
            Ok(()) => return,
            Err(IoError::CompareMismatch { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
}

fn count_with_threads(device: Arc<dyn BlockDevice>, threads: u64, rounds: u64) {
    let bdev = rig::bdev(device);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let bdev = &bdev;
            scope.spawn(move || {
                let mut buffers = Buffers::new();
                let mut channel = bdev.open(&rig::context()).unwrap();
                for _ in 0..rounds {
                    increment(&mut channel, &mut buffers);
                    // Writes elsewhere go on all the time.
                    rig::write(&mut channel, &mut buffers, 1 + thread, &[thread as u8; 512]);
                }
            });
        }
    });
    let mut buffers = Buffers::new();
    let mut channel = bdev.open(&rig::context()).unwrap();
    let counter = counter_of(&rig::read(&mut channel, &mut buffers, 0, 1));
    assert_eq!(counter, threads * rounds);
}

#[test]
fn no_increment_is_lost_on_malloc() {
    count_with_threads(Malloc::new(MallocOptions::new(512, 16)).unwrap(), 4, 300);
}

#[test]
fn no_increment_is_lost_on_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let options = FileOptions::create(folder.path().join("disk"), 16 * 512);
    count_with_threads(File::open(options).unwrap().0, 3, 40);
}

/// Each I/O of the device takes until the next poll of its channel.
fn slow() -> Arc<dyn BlockDevice> {
    Arc::new(Narrow {
        inner: Malloc::new(MallocOptions::new(512, 16)).unwrap(),
        max_transfer_blocks: 0,
        max_unmap_blocks: 0,
        max_verify_blocks: 0,
        boundary_blocks: 0,
        pending_every: 1,
    })
}

fn caw(buffers: &mut Buffers, tag: u64) -> Io {
    let payload = buffers.filled(&[block_of(0), block_of(1)].concat());
    Io::with_payload(Op::CompareAndWrite { fua: false }, 0, 1, payload, tag)
}

fn write(buffers: &mut Buffers, tag: u64) -> Io {
    Io::with_payload(
        Op::Write { fua: false },
        0,
        1,
        buffers.filled(&[9; 512]),
        tag,
    )
}

#[test]
fn it_waits_for_writes_of_other_threads_and_they_wait_for_it() {
    let mut buffers = Buffers::new();
    let bdev = rig::bdev(slow());
    let wakers = [(); 2].map(|()| Arc::new(CountingWaker::default()));
    let mut channels = wakers.each_ref().map(|waker| {
        let context = block::ChannelContext::new("t", Arc::clone(waker).into());
        bdev.open(&context).unwrap()
    });
    let [a, b] = &mut channels;
    let woken = |index: usize| wakers[index].0.load(std::sync::atomic::Ordering::SeqCst);
    let now = Instant::now();
    let mut done = Vec::new();
    // B writes; A's compare-and-write closes the gate and waits for it.
    let first = write(&mut buffers, 1);
    assert!(matches!(b.submit(first, now), Submit::Pending));
    assert!(matches!(
        a.submit(caw(&mut buffers, 2), now),
        Submit::Pending
    ));
    assert_eq!(a.poll(now, &mut done), 0);
    // New writes of B are held back; reads are not.
    assert!(matches!(
        b.submit(write(&mut buffers, 3), now),
        Submit::Pending
    ));
    assert_eq!(b.poll(now, &mut done), 1);
    assert_eq!(
        a.next_deadline(),
        Some(now),
        "A polls until the writers have left"
    );
    assert_eq!(b.in_flight(), 1);
    // A compares (and finds B's write), ends, and wakes B.
    let mut polls = 0;
    while a.poll(now, &mut done) == 0 {
        polls += 1;
        assert!(polls < 5);
    }
    assert!(woken(1) > 0);
    assert_eq!(
        done[1].result,
        Err(IoError::CompareMismatch { offset_bytes: 0 })
    );
    assert_eq!(
        rig::bytes(&done[1].io.payload),
        [block_of(0), block_of(1)].concat()
    );
    let mut polls = 0;
    while b.poll(now, &mut done) == 0 {
        polls += 1;
        assert!(polls < 5);
    }
    assert_eq!((done[2].io.tag, done[2].result), (3, Ok(())));
}

#[test]
fn held_back_writes_go_before_the_next_compare_and_write() {
    let mut buffers = Buffers::new();
    let bdev = rig::bdev(slow());
    let mut a = bdev.open(&rig::context()).unwrap();
    let mut b = bdev.open(&rig::context()).unwrap();
    let now = Instant::now();
    let mut done = Vec::new();
    assert!(matches!(
        b.submit(write(&mut buffers, 9), now),
        Submit::Pending
    ));
    for tag in 0..2 {
        assert!(matches!(
            a.submit(caw(&mut buffers, tag), now),
            Submit::Pending
        ));
    }
    a.poll(now, &mut done);
    assert!(matches!(
        b.submit(write(&mut buffers, 5), now),
        Submit::Pending
    ));
    assert_eq!(b.poll(now, &mut done), 1);
    // However often A polls, only its first one ends: B's write has been waiting longer.
    for _ in 0..20 {
        a.poll(now, &mut done);
    }
    assert_eq!(done.len(), 2);
    while b.poll(now, &mut done) == 0 {}
    while a.poll(now, &mut done) == 0 {}
    let tags: Vec<u64> = done.iter().map(|completion| completion.io.tag).collect();
    assert_eq!(tags, [9, 0, 5, 1]);
}

#[test]
fn aborting_a_waiting_compare_and_write_opens_the_gate() {
    let mut buffers = Buffers::new();
    let bdev = rig::bdev(slow());
    let mut a = bdev.open(&rig::context()).unwrap();
    let mut b = bdev.open(&rig::context()).unwrap();
    let now = Instant::now();
    let mut done = Vec::new();
    assert!(matches!(
        b.submit(write(&mut buffers, 1), now),
        Submit::Pending
    ));
    assert!(matches!(
        a.submit(caw(&mut buffers, 2), now),
        Submit::Pending
    ));
    a.poll(now, &mut done);
    assert!(matches!(
        b.submit(write(&mut buffers, 3), now),
        Submit::Pending
    ));
    assert!(a.abort(2));
    assert_eq!(a.poll(now, &mut done), 1);
    assert_eq!(done[0].result, Err(IoError::Aborted));
    while b.in_flight() > 0 {
        b.poll(now, &mut done);
    }
    assert!(
        done.iter()
            .skip(1)
            .all(|completion| completion.result.is_ok())
    );
}

#[test]
fn closing_a_channel_opens_its_gate() {
    let mut buffers = Buffers::new();
    let bdev = rig::bdev(slow());
    let mut a = bdev.open(&rig::context()).unwrap();
    let mut b = bdev.open(&rig::context()).unwrap();
    let now = Instant::now();
    let mut done = Vec::new();
    assert!(matches!(
        a.submit(caw(&mut buffers, 2), now),
        Submit::Pending
    ));
    a.poll(now, &mut done);
    assert!(matches!(
        b.submit(write(&mut buffers, 3), now),
        Submit::Pending
    ));
    drop(a);
    let limit = Instant::now() + Duration::from_secs(5);
    while b.in_flight() > 0 {
        b.poll(now, &mut done);
        assert!(Instant::now() < limit);
    }
    assert_eq!(done.len(), 2);
}
