use std::os::fd::BorrowedFd;
use std::task::Waker;
use std::time::Instant;

use block::{Bdev, BdevOptions};
use dma::{BackingPreference, IobufOptions, IobufPool};
use simulation::{SimDevice, SimOptions};

use super::*;
use crate::{CreateOptions, Host, Pool, PoolOptions};

#[derive(Debug)]
struct Clock;

impl Host for Clock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wait(&self, _: Option<BorrowedFd<'_>>, _: Option<Instant>) {}
}

/// A pool of 12 MiB.
fn small_pool() -> (Pool, PoolWorker) {
    let drive = SimDevice::new(SimOptions::new(512, 12 << 11, 1));
    let base = Bdev::new(BdevOptions::named("base"), drive, Instant::now()).unwrap();
    let buffers = IobufPool::new(IobufOptions {
        small_pool_count: 1024,
        large_pool_count: 128,
        backing: BackingPreference::Plain4K,
        ..IobufOptions::default()
    });
    let options = PoolOptions::new(buffers.unwrap());
    let create = CreateOptions {
        cluster_size: 64 << 10,
        ..CreateOptions::named("tank")
    };
    let waker = Waker::noop().clone();
    PoolWorker::create(&base, &create, options, Box::new(Clock), waker).unwrap()
}

fn commit(pool: &Pool, worker: &mut PoolWorker) -> Result<(), LvolError> {
    let promise = pool.commit();
    loop {
        worker.step(Instant::now());
        if let Some(answer) = promise.try_take() {
            return answer;
        }
    }
}

#[test]
fn a_commit_that_lacks_room_leaves_checksums_out() {
    let (pool, mut worker) = small_pool();
    let key = |index| piece_key(LayerId(1), index);
    for index in 0..20 {
        worker.stage(Table::Sums, &key(index), Some(vec![1; 900 << 10]));
    }
    worker.stage(Table::Names, b"what matters", Some(vec![2; 100]));
    commit(&pool, &mut worker).unwrap();
    let store = worker.usable_store().unwrap();
    assert_eq!(store.len(Table::Sums).unwrap(), 0);
    assert!(store.get(Table::Names, b"what matters").unwrap().is_some());
    // With room they are there.
    worker.stage(Table::Sums, &key(0), Some(vec![1; 100]));
    commit(&pool, &mut worker).unwrap();
    let store = worker.usable_store().unwrap();
    assert_eq!(store.len(Table::Sums).unwrap(), 1);
}

#[test]
fn who_brings_many_checksums_waits_for_a_commit() {
    let (pool, mut worker) = small_pool();
    worker.stage(Table::Operations, b"1", Some(vec![1]));
    for index in 0..UNCOMMITTED_MAX as u64 {
        assert!(!worker.has_many_sums(), "{index}");
        let key = piece_key(LayerId(1), index);
        worker.stage(Table::Sums, &key, Some(vec![1; 100]));
    }
    assert!(worker.has_many_sums());
    let promise = pool.compare_sums(Vec::new(), 0);
    worker.step(Instant::now());
    worker.step(Instant::now());
    // Nobody else asked for a commit.
    assert_eq!(
        promise.try_take().unwrap().unwrap(),
        ComparedSums::default()
    );
    assert!(!worker.has_many_sums());
    let store = worker.usable_store().unwrap();
    assert_eq!(store.len(Table::Sums).unwrap(), UNCOMMITTED_MAX as u64);
}
