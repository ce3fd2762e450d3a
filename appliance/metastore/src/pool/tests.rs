use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use simulation::{Image, SimDevice, SimOptions};

use block::BlockDevice as _;

use super::*;

/// A part of a simulated device; grows within it in steps of 64 KiB clusters.
#[derive(Debug)]
pub(super) struct Extents {
    pub(super) device: Arc<SimDevice>,
    len: Cell<u64>,
    max: Cell<u64>,
}

const CLUSTER: u64 = 64 << 10;

/// Marks a new length in a recording.
pub(super) const GREW: u64 = 1 << 63;

impl Extents {
    /// On a device of zeroes.
    pub(super) fn new_clean(max: u64) -> Rc<Self> {
        Self::on(Image::new(max), 0)
    }

    /// On a device full of what somebody else has left.
    pub(super) fn new(max: u64) -> Rc<Self> {
        let mut image = Image::new(max);
        for block in (0..max.min(4 << 20)).step_by(4096) {
            image.write_at(block, &[0xa5; 4096]);
        }
        Self::on(image, 0)
    }

    pub(super) fn on(image: Image, len: u64) -> Rc<Self> {
        let max = Cell::new(image.len_bytes());
        let device = SimDevice::from_image(image, SimOptions::new(4096, 0, 1));
        Rc::new(Self {
            device,
            len: Cell::new(len),
            max,
        })
    }
}

impl MetadataDevice for Extents {
    fn len(&self) -> u64 {
        self.len.get()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        assert!(offset + out.len() as u64 <= self.len.get());
        self.device.read_at(offset, out)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        assert!(offset + data.len() as u64 <= self.len.get());
        self.device.write_at(offset, data)
    }

    fn flush(&self) -> io::Result<()> {
        self.device.flush()
    }

    fn grow(&self, len: u64) -> io::Result<()> {
        let len = len.next_multiple_of(CLUSTER);
        if len > self.max.get() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.len.set(len);
        self.device.mark(len | GREW);
        Ok(())
    }

    fn shrink(&self, len: u64) -> io::Result<()> {
        self.len.set(len.next_multiple_of(CLUSTER));
        Ok(())
    }
}

pub(super) fn create(device: &Rc<Extents>) -> PoolStore {
    PoolStore::create(device.clone(), PoolStoreOptions::default()).unwrap()
}

pub(super) fn open(device: &Rc<Extents>) -> Result<PoolStore, PoolStoreError> {
    PoolStore::open(device.clone(), PoolStoreOptions::default())
}

pub(super) fn put(store: &PoolStore, key: &str, value: &str) -> Result<(), PoolStoreError> {
    let mut transaction = store.transaction();
    transaction.put(Table::Map, key.as_bytes(), value.as_bytes())?;
    transaction.commit()
}

pub(super) fn get(store: &PoolStore, key: &str) -> Option<String> {
    let value = store.get(Table::Map, key.as_bytes()).unwrap();
    value.map(|value| String::from_utf8(value).unwrap())
}

/// What a power cut leaves, as a new device of the same length.
fn after_cut(device: &Extents, seed: u64) -> Rc<Extents> {
    Extents::on(device.device.cut(seed), device.len())
}

fn all(store: &PoolStore) -> Vec<(Vec<u8>, Vec<u8>)> {
    store.scan(Table::Map, .., usize::MAX).unwrap()
}

#[test]
fn records_come_back_after_close_drop_and_power_cut() {
    let device = Extents::new(64 << 20);
    let store = create(&device);
    put(&store, "a", "1").unwrap();
    let cut = after_cut(&device, 0);
    store.close().unwrap();
    for device in [device, cut] {
        let store = open(&device).unwrap();
        assert_eq!(get(&store, "a").as_deref(), Some("1"));
        assert_eq!(store.stats().commits, 1);
        assert!(!store.stats().repaired);
        drop(store);
        assert_eq!(get(&open(&device).unwrap(), "a").as_deref(), Some("1"));
    }
}

#[test]
fn transaction_sees_its_own_changes_and_leaves_no_trace_when_dropped() {
    let device = Extents::new(64 << 20);
    let store = create(&device);
    put(&store, "a", "1").unwrap();
    put(&store, "b", "1").unwrap();
    let mut transaction = store.transaction();
    assert!(transaction.is_empty());
    transaction.put(Table::Map, b"a", b"2").unwrap();
    transaction.delete(Table::Map, b"b").unwrap();
    transaction.delete(Table::Map, b"none").unwrap();
    transaction.put(Table::Names, b"a", b"3").unwrap();
    let seen = |table, key: &[u8]| transaction.get(table, key).unwrap();
    assert_eq!(seen(Table::Map, b"a").as_deref(), Some(&b"2"[..]));
    assert_eq!(seen(Table::Map, b"b"), None);
    assert_eq!(seen(Table::Pool, b"a"), None);
    assert_eq!(get(&store, "a").as_deref(), Some("1"));
    drop(transaction);
    assert_eq!(get(&store, "b").as_deref(), Some("1"));
    assert_eq!(store.stats().commits, 2);
}

#[test]
fn counters_follow_what_is_stored() {
    let device = Extents::new(64 << 20);
    let store = create(&device);
    put(&store, "a", "12345").unwrap();
    put(&store, "b", "1").unwrap();
    assert_eq!(store.stats().live_bytes, 8);
    put(&store, "a", "1").unwrap();
    assert_eq!(store.stats().live_bytes, 4);
    let mut transaction = store.transaction();
    transaction.delete(Table::Map, b"a").unwrap();
    transaction.commit().unwrap();
    assert_eq!(store.stats().live_bytes, 2);
    assert_eq!(store.len(Table::Map).unwrap(), 1);
    store.transaction().commit().unwrap();
    drop(store);
    let stats = open(&device).unwrap().stats();
    assert_eq!((stats.live_bytes, stats.commits), (2, 4));
}

#[test]
fn scan_gives_a_range_in_order_up_to_its_limit() {
    let device = Extents::new(64 << 20);
    let store = create(&device);
    for key in ["c", "a", "d", "b"] {
        put(&store, key, key).unwrap();
    }
    let keys = |range: (Bound<&[u8]>, Bound<&[u8]>), limit| -> String {
        let entries = store.scan(Table::Map, range, limit).unwrap();
        entries.iter().map(|(key, _)| char::from(key[0])).collect()
    };
    let (b, d) = (&b"b"[..], &b"d"[..]);
    assert_eq!(keys((Bound::Unbounded, Bound::Unbounded), 9), "abcd");
    assert_eq!(keys((Bound::Unbounded, Bound::Unbounded), 3), "abc");
    assert_eq!(keys((Bound::Included(b), Bound::Excluded(d)), 9), "bc");
    assert_eq!(keys((Bound::Excluded(b), Bound::Included(d)), 9), "cd");
    for (from, to) in [
        (Bound::Included(d), Bound::Included(b)),
        (Bound::Excluded(b), Bound::Excluded(b)),
        (Bound::Included(b), Bound::Excluded(b)),
    ] {
        assert_eq!(keys((from, to), 9), "");
    }
    assert_eq!(store.scan(Table::Map, b..d, 9).unwrap().len(), 2);
    assert!(store.scan(Table::Names, .., 9).unwrap().is_empty());
}

#[test]
fn too_long_keys_values_and_transactions_are_refused() {
    let device = Extents::new(64 << 20);
    let store = create(&device);
    let mut transaction = store.transaction();
    let too_long = |result| matches!(result, Err(PoolStoreError::TooLong { .. }));
    let value = vec![0; VALUE_BYTES_MAX + 1];
    assert!(too_long(transaction.put(
        Table::Map,
        &value[..KEY_BYTES_MAX + 1],
        b""
    )));
    assert!(too_long(
        transaction.delete(Table::Map, &value[..KEY_BYTES_MAX + 1])
    ));
    assert!(too_long(transaction.put(Table::Map, b"", &value)));
    let mut refused = false;
    for key in 0..100_u8 {
        refused |= too_long(transaction.put(Table::Map, &[key], &value[..VALUE_BYTES_MAX]));
    }
    assert!(refused);
}

#[test]
fn largest_transaction_is_committed_and_survives() {
    let device = Extents::new(256 << 20);
    let store = create(&device);
    let mut transaction = store.transaction();
    for key in 0..31_u8 {
        let value = vec![key; VALUE_BYTES_MAX];
        transaction.put(Table::Map, &[key], &value).unwrap();
    }
    transaction.commit().unwrap();
    let again = open(&after_cut(&device, 0)).unwrap();
    for key in 0..31_u8 {
        let value = again.get(Table::Map, &[key]).unwrap().unwrap();
        assert!(value.len() == VALUE_BYTES_MAX && value.iter().all(|byte| *byte == key));
    }
}

#[test]
fn commit_is_few_writes_and_two_flushes() {
    let device = Extents::new(64 << 20);
    let store = create(&device);
    for key in 0..100 {
        put(&store, &format!("key {key}"), "value").unwrap();
    }
    device.device.reset_stats();
    for key in 0..100 {
        put(&store, &format!("key {key}"), "other").unwrap();
    }
    let stats = device.device.stats();
    println!("100 commits of one key: {stats:?}");
    assert_eq!(stats.flushes, 200);
    assert_eq!(stats.reads, 0);
    assert!(stats.writes <= 1000, "{stats:?}");
}

#[test]
fn full_device_fails_the_commit_and_nothing_else() {
    let device = Extents::new(4 << 20);
    let store = create(&device);
    let value = "x".repeat(1000);
    let mut stored = 0;
    let error = loop {
        match put(&store, &format!("{stored:06}"), &value) {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, PoolStoreError::NoSpace { .. }), "{error:?}");
    assert!(error.to_string().contains("delete volumes"), "{error}");
    assert!(stored > 1000, "{stored}");
    assert!(!store.is_faulted());
    assert_eq!(all(&store).len(), stored);
    // Again and again, and across a power cut.
    for _ in 0..3 {
        assert!(put(&store, "more", &"y".repeat(100_000)).is_err());
    }
    let cut = open(&after_cut(&device, 0)).unwrap();
    assert_eq!(all(&cut).len(), stored);
    // Once there is room, it goes on.
    let mut transaction = store.transaction();
    for key in 0..stored / 2 {
        let key = format!("{key:06}");
        transaction.delete(Table::Map, key.as_bytes()).unwrap();
    }
    device.max.set(64 << 20);
    device.device.resize((64 << 20) / 4096).unwrap();
    transaction.commit().unwrap();
    put(&store, "more", &"y".repeat(100_000)).unwrap();
    assert_eq!(all(&store).len(), stored - stored / 2 + 1);
}

#[test]
fn transactions_on_a_full_device_are_whole_or_absent() {
    let (mut refused, mut done) = (0, 0);
    for seed in 0..20 {
        let device = Extents::new(2 << 20);
        let store = create(&device);
        let mut random = simulation::Random::new(seed);
        let mut model = std::collections::BTreeMap::new();
        for _ in 0..150 {
            let mut transaction = store.transaction();
            let mut changed = model.clone();
            for _ in 0..=random.below(12) {
                let key = random.below(200).to_be_bytes();
                if random.chance(40) {
                    transaction.delete(Table::Map, &key).unwrap();
                    changed.remove(&key[..]);
                } else {
                    let value = vec![key[7]; random.below(12_000) as usize];
                    transaction.put(Table::Map, &key, &value).unwrap();
                    changed.insert(key.to_vec(), value);
                }
            }
            match transaction.commit() {
                Ok(()) => {
                    model = changed;
                    done += 1;
                }
                Err(PoolStoreError::NoSpace { .. }) => refused += 1,
                Err(error) => panic!("seed {seed}: {error}"),
            }
            let model: Vec<_> = model.clone().into_iter().collect();
            assert!(all(&store) == model, "seed {seed}");
            let cut = open(&after_cut(&device, 0)).unwrap();
            assert!(all(&cut) == model, "seed {seed}, after a power cut");
        }
    }
    assert!(refused > 100 && done > 1000, "{refused} {done}");
}

#[test]
fn records_can_be_deleted_from_a_full_store() {
    let device = Extents::new(4 << 20);
    let store = create(&device);
    let value = "x".repeat(1000);
    let mut stored = 0;
    while put(&store, &format!("{stored:06}"), &value).is_ok() {
        stored += 1;
    }
    // One key after the other: what a full pool's owner would do.
    for key in 0..stored {
        let mut transaction = store.transaction();
        let key = format!("{key:06}");
        transaction.delete(Table::Map, key.as_bytes()).unwrap();
        transaction.commit().unwrap();
    }
    put(&store, "again", &value).unwrap();
    assert_eq!(all(&store).len(), 1);
}

#[test]
fn failed_read_costs_one_call() {
    let device = Extents::new(64 << 20);
    let store = create(&device);
    let mut transaction = store.transaction();
    for key in 0..2000 {
        let key = format!("{key:06}");
        transaction
            .put(Table::Map, key.as_bytes(), key.as_bytes())
            .unwrap();
    }
    transaction.commit().unwrap();
    store.close().unwrap();
    // Without a cache every call reads.
    let options = PoolStoreOptions { cache_bytes: 0 };
    let read = |store: &PoolStore, key: &[u8]| store.get(Table::Map, key);
    let (mut goes_on, mut is_faulted) = (0, 0);
    for block in 0..device.len() / 4096 {
        let store = PoolStore::open(device.clone(), options).unwrap();
        device.device.fail_reads(block * 4096..(block + 1) * 4096);
        let result = read(&store, b"000001");
        if let Err(error) = result {
            let expected = matches!(
                error,
                PoolStoreError::Device {
                    operation: "read",
                    ..
                }
            );
            assert!(expected, "{error:?}");
            if store.is_faulted() {
                // Opening it again needs the same block.
                is_faulted += 1;
            } else {
                // A block of one record's own: the others can be read, and it again when it is well.
                goes_on += 1;
                assert!(read(&store, b"001999").unwrap().is_some());
                device.device.clear_faults();
                assert!(read(&store, b"000001").unwrap().is_some());
                put(&store, "000001", "000001").unwrap();
            }
        }
        device.device.clear_faults();
    }
    assert!(goes_on > 0, "{goes_on} {is_faulted}");
}

#[test]
fn device_error_at_any_point_of_a_commit_is_an_error_and_never_half_a_transaction() {
    for point in 0..200 {
        let device = Extents::new(64 << 20);
        let store = create(&device);
        put(&store, "a", "1").unwrap();
        device.device.power_off_after(point);
        let mut transaction = store.transaction();
        transaction.put(Table::Map, b"a", b"2").unwrap();
        transaction.put(Table::Names, b"b", b"2").unwrap();
        let result = transaction.commit();
        if let Err(error) = &result {
            assert!(matches!(error, PoolStoreError::Device { .. }), "{error:?}");
            assert!(store.is_faulted());
            let error = store.get(Table::Map, b"a").unwrap_err();
            assert!(matches!(error, PoolStoreError::Faulted { .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.contains("open the pool again"), "{text}");
            assert!(put(&store, "a", "3").is_err());
            assert!(store.compact_if_it_pays().is_ok_and(|done| !done));
        }
        drop(store);
        for seed in 0..20 {
            let again = open(&after_cut(&device, seed)).unwrap();
            let a = get(&again, "a");
            let b = again.get(Table::Names, b"b").unwrap();
            match (a.as_deref(), b.as_deref()) {
                (Some("1"), None) => assert!(result.is_err()),
                (Some("2"), Some(b"2")) => {}
                other => panic!("half a transaction: {other:?}"),
            }
        }
        if result.is_ok() {
            assert!(point > 1);
            return;
        }
    }
    panic!("the commit never succeeded");
}

#[test]
fn failed_flush_faults_the_store() {
    let device = Extents::new(64 << 20);
    let store = create(&device);
    put(&store, "a", "1").unwrap();
    device.device.fail_flushes();
    let error = put(&store, "a", "2").unwrap_err();
    assert!(matches!(
        error,
        PoolStoreError::Device {
            operation: "flush",
            ..
        }
    ));
    device.device.clear_faults();
    // The device is well again, but what it holds is not known.
    let error = put(&store, "a", "3").unwrap_err();
    assert!(matches!(error, PoolStoreError::Faulted { .. }), "{error:?}");
    assert!(store.close().is_err());
    let value = get(&open(&device).unwrap(), "a").unwrap();
    assert!(value == "1" || value == "2", "{value}");
}

#[test]
fn no_store_and_damaged_stores_are_errors_that_say_what_to_do() {
    let told = |device: &Rc<Extents>| {
        let error = open(device).unwrap_err();
        assert!(matches!(error, PoolStoreError::Damaged { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("put back a copy"), "{text}");
    };
    told(&Extents::new(1 << 20));
    told(&Extents::on(Image::new(1 << 20), 1 << 20));
    let mut garbage = Image::new(1 << 20);
    garbage.write_at(0, &[0xa5; 1 << 20]);
    told(&Extents::on(garbage, 1 << 20));
    // Cut while it was made.
    let device = Extents::new(64 << 20);
    device.device.start_recording();
    let store = create(&device);
    let recording = device.device.stop_recording();
    drop(store);
    let mut replay = recording.replay();
    while replay.next().is_some() {
        for seed in 0..8 {
            let cut = Extents::on(replay.cut(seed), device.len());
            if let Err(error) = open(&cut) {
                assert!(matches!(error, PoolStoreError::Damaged { .. }), "{error:?}");
            }
        }
    }
}

#[test]
fn check_finds_what_a_read_would_not() {
    let device = Extents::new(64 << 20);
    let store = create(&device);
    for key in 0..300 {
        put(&store, &format!("{key:06}"), &"v".repeat(100)).unwrap();
    }
    assert!(store.check().unwrap());
    let cut = open(&after_cut(&device, 0)).unwrap();
    assert!(
        !cut.stats().repaired,
        "a check leaves a store that opens quickly"
    );
    assert!(cut.check().unwrap());
    store.close().unwrap();
    // One bit of a value, on each page that holds values, those of old versions too.
    let image = device.device.image();
    let mut found = 0;
    for offset in (0..device.len()).step_by(4096) {
        let mut block = [0; 4096];
        image.read_at(offset, &mut block);
        let Some(at) = block.windows(50).position(|bytes| bytes == [b'v'; 50]) else {
            continue;
        };
        let mut image = image.clone();
        image.write_at(offset + at as u64, b"w");
        let damaged = open(&Extents::on(image, device.len())).unwrap();
        if let Err(error) = damaged.check() {
            assert!(matches!(error, PoolStoreError::Damaged { .. }), "{error:?}");
            found += 1;
        }
    }
    assert!(found > 0);
}

#[test]
fn damaged_page_costs_only_its_own_records() {
    let device = Extents::new(64 << 20);
    let store = create(&device);
    let mut transaction = store.transaction();
    for key in 0..2000 {
        let key = format!("{key:06}");
        transaction
            .put(Table::Map, key.as_bytes(), &[b'v'; 50])
            .unwrap();
    }
    transaction.commit().unwrap();
    store.close().unwrap();
    let image = device.device.image();
    let mut errors = 0;
    for offset in (0..device.len()).step_by(4096) {
        let mut block = [0; 4096];
        image.read_at(offset, &mut block);
        if !block.windows(50).any(|bytes| bytes == [b'v'; 50]) {
            continue;
        }
        let mut image = image.clone();
        // A leaf with offsets beyond its end: redb panics over it.
        image.write_at(offset + 4, &[0xff; 64]);
        let store = open(&Extents::on(image, device.len())).unwrap();
        let mut readable = 0;
        for key in (0..2000).step_by(10) {
            match store.get(Table::Map, format!("{key:06}").as_bytes()) {
                Ok(_) => readable += 1,
                Err(error) => {
                    assert!(matches!(error, PoolStoreError::Damaged { .. }), "{error:?}");
                    errors += 1;
                }
            }
        }
        assert!(readable > 150, "{readable}");
        let mut transaction = store.transaction();
        transaction.put(Table::Names, b"more", b"value").unwrap();
        transaction.commit().unwrap();
    }
    assert!(errors > 10, "{errors}");
}

#[test]
fn damage_anywhere_never_panics() {
    let device = Extents::new(64 << 20);
    let store = create(&device);
    for key in 0..300 {
        put(&store, &format!("{key:06}"), &"v".repeat(100)).unwrap();
    }
    store.close().unwrap();
    let image = device.device.image();
    let mut random = simulation::Random::new(7);
    let (mut refused, mut opened) = (0, 0);
    for _ in 0..400 {
        let mut image = image.clone();
        // Half of the damage goes where opening looks.
        let span = if random.chance(128) {
            512
        } else {
            device.len() - 8
        };
        for _ in 0..=random.below(4) {
            let bytes = random.next_u64().to_le_bytes();
            image.write_at(random.below(span), &bytes[..=random.below(7) as usize]);
        }
        let damaged = Extents::on(image, device.len());
        match open(&damaged) {
            Ok(store) => {
                opened += 1;
                let _ = store.scan(Table::Map, .., usize::MAX);
                let _ = put(&store, "more", "value");
                let _ = store.check();
                let _ = store.compact_if_it_pays();
                let _ = store.close();
            }
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 0 && opened > 0, "{refused} {opened}");
}

#[test]
fn twenty_thousand_commits_do_not_grow_the_database() {
    let device = Extents::new(256 << 20);
    let store = create(&device);
    for key in 0..1000 {
        put(&store, &format!("{key:06}"), &"v".repeat(100)).unwrap();
    }
    let early = store.stats().device_bytes;
    for commit in 0..20_000 {
        put(&store, &format!("{:06}", commit % 1000), &"w".repeat(100)).unwrap();
    }
    let late = store.stats().device_bytes;
    println!("device bytes after 1,000 commits: {early}, after 21,000: {late}");
    assert!(late <= 4 << 20, "{early} -> {late}");
}

#[test]
fn compaction_gives_room_back_when_it_pays() {
    let device = Extents::new(256 << 20);
    let store = create(&device);
    let mut keys = 0..40_000;
    loop {
        let mut transaction = store.transaction();
        for key in keys.by_ref().take(5000) {
            let key = format!("{key:06}");
            let value = key.repeat(50);
            transaction
                .put(Table::Map, key.as_bytes(), value.as_bytes())
                .unwrap();
        }
        if transaction.is_empty() {
            break;
        }
        transaction.commit().unwrap();
    }
    let full = store.stats().device_bytes;
    assert!(full >= 16 << 20);
    assert!(!store.compact_if_it_pays().unwrap(), "nothing was deleted");
    assert_eq!(store.stats().device_bytes, full);
    let mut transaction = store.transaction();
    for key in (0..40_000).filter(|key| key % 50 != 0) {
        let key = format!("{key:06}");
        transaction.delete(Table::Map, key.as_bytes()).unwrap();
    }
    transaction.commit().unwrap();
    device.device.start_recording();
    assert!(store.compact_if_it_pays().unwrap());
    let recording = device.device.stop_recording();
    let lean = store.stats().device_bytes;
    println!("device bytes: {full} full, {lean} compacted");
    assert!(lean * 4 < full, "{full} -> {lean}");
    assert!(!store.compact_if_it_pays().unwrap());
    assert_eq!(all(&store).len(), 800);
    // A power cut afterwards finds a store that opens quickly, at its new length.
    let again = open(&after_cut(&device, 0)).unwrap();
    assert!(!again.stats().repaired);
    assert_eq!(all(&again).len(), 800);
    // One in the middle loses nothing.
    let mut replay = recording.replay();
    let mut step = 0;
    while replay.next().is_some() {
        step += 1;
        if step % 5 == 0 {
            let cut = open(&Extents::on(replay.cut(step), full)).unwrap();
            assert_eq!(all(&cut).len(), 800);
        }
    }
    put(&store, "more", "value").unwrap();
}

/// Bytes that opening reads, of a store with this many keys.
fn opening_reads(keys: u64, clean: bool) -> u64 {
    let device = Extents::new(1 << 30);
    let store = create(&device);
    for first in (0..keys).step_by(20_000) {
        let mut transaction = store.transaction();
        for key in first..keys.min(first + 20_000) {
            // A layer and a piece of its map.
            let key = [(key / 100).to_be_bytes(), (key % 100).to_be_bytes()].concat();
            transaction.put(Table::Map, &key, &[7; 40]).unwrap();
        }
        transaction.commit().unwrap();
    }
    put(&store, "last", "one").unwrap();
    let cut = after_cut(&device, 0);
    store.close().unwrap();
    let device = if clean { device } else { cut };
    device.device.reset_stats();
    let store = open(&device).unwrap();
    let stats = store.stats();
    println!("{keys} keys, clean {clean}: {stats:?}");
    assert_eq!(stats.bytes_read, device.device.stats().bytes_read);
    assert_eq!(store.len(Table::Map).unwrap(), keys + 1);
    stats.bytes_read
}

#[test]
fn opening_reads_the_same_for_a_thousand_and_a_million_keys() {
    for clean in [true, false] {
        let few = opening_reads(1000, clean);
        let many = opening_reads(1_000_000, clean);
        assert!(many <= 2 * few, "clean {clean}: {few} -> {many}");
    }
}
