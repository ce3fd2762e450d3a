//! The power goes after every single write of a workload, and between, with any part of what was not
//! flushed: committed transactions are wholly there, the others wholly there or wholly absent.

use std::collections::BTreeMap;

use simulation::{Image, Random, Recording, SimDevice, Step};

use super::tests::{Extents, GREW, create, open};
use super::*;

/// Drawn cuts of each flush epoch.
const CUTS_PER_EPOCH: u64 = 100;

type Content = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// The content after each transaction, the first with none.
struct Workload {
    states: Vec<Content>,
    recording: Recording,
    device_bytes: u64,
}

fn value(random: &mut Random) -> Vec<u8> {
    let len = match random.below(10) {
        0 => random.below(20_000),
        1..4 => random.below(2000),
        _ => random.below(100),
    };
    let byte = random.next_u64() as u8;
    vec![byte; len as usize]
}

/// Puts and deletes of a few keys at a time, sometimes of many, recorded; the marks are the number of
/// a transaction before it begins, and its number and `DONE` when it is acknowledged.
fn workload(seed: u64, transactions: u64) -> Workload {
    let mut random = Random::new(seed);
    let device = Extents::new(64 << 20);
    let store = create(&device);
    device.device.start_recording();
    let mut content = Content::new();
    let mut states = vec![content.clone()];
    for number in 1..=transactions {
        device.device.mark(number);
        let mut transaction = store.transaction();
        // One lets the database grow.
        let changes = if number == 10 {
            1500
        } else {
            1 + random.below(5)
        };
        for _ in 0..changes {
            let table = Table::ALL[random.below(6) as usize];
            let key = random.below(400).to_be_bytes();
            if random.chance(80) {
                transaction.delete(table, &key).unwrap();
                content.remove(&(table, key.to_vec()));
            } else {
                let value = value(&mut random);
                transaction.put(table, &key, &value).unwrap();
                content.insert((table, key.to_vec()), value);
            }
        }
        transaction.commit().unwrap();
        device.device.mark(number | DONE);
        states.push(content.clone());
    }
    let recording = device.device.stop_recording();
    assert!(device.len() > 2 << 20, "it never grew: {}", device.len());
    Workload {
        states,
        recording,
        device_bytes: device.len(),
    }
}

const DONE: u64 = 1 << 62;

/// How far a recording is.
#[derive(Clone, Copy, Default)]
struct Progress {
    begun: u64,
    done: u64,
    device_bytes: u64,
}

impl Progress {
    fn mark(&mut self, mark: u64) {
        if mark & GREW != 0 {
            self.device_bytes = mark & !GREW;
        } else if mark & DONE != 0 {
            self.done = mark & !DONE;
        } else {
            self.begun = mark;
        }
    }
}

fn content(store: &PoolStore) -> Content {
    let mut content = Content::new();
    for table in Table::ALL {
        for (key, value) in store.scan(table, .., usize::MAX).unwrap() {
            content.insert((table, key), value);
        }
    }
    content
}

/// Opens what a cut left and compares. Returns the device as opening left it.
fn check(image: Image, progress: Progress, states: &[Content], place: &str) -> Rc<Extents> {
    let device = Extents::on(image, progress.device_bytes);
    let store = open(&device).unwrap_or_else(|error| panic!("{place}: {error}"));
    let stats = store.stats();
    assert!(!stats.repaired, "{place}: the whole database was walked");
    let commits = stats.commits;
    assert!(
        (progress.done..=progress.begun).contains(&commits),
        "{place}: {commits} commits, {} acknowledged, {} begun",
        progress.done,
        progress.begun
    );
    let content = content(&store);
    assert!(
        content == states[commits as usize],
        "{place}: not commit {commits}"
    );
    let live = content
        .iter()
        .map(|((_, key), value)| key.len() + value.len());
    assert_eq!(stats.live_bytes, live.sum::<usize>() as u64, "{place}");
    // No page is lost or used twice; slow, so not for each.
    if place.ends_with('3') {
        assert!(store.check().unwrap(), "{place}: pages are out of order");
    }
    device
}

fn start(device_bytes: u64) -> Progress {
    Progress {
        device_bytes,
        ..Progress::default()
    }
}

#[test]
fn power_cut_after_every_write_leaves_whole_transactions() {
    let (mut cuts, mut writes) = (0_u64, 0_u64);
    for seed in 1..=3 {
        let workload = workload(seed, 40);
        let mut progress = start(workload.device_bytes);
        let mut replay = workload.recording.replay();
        let mut step = 0_u64;
        while let Some(kind) = replay.next() {
            step += 1;
            if let Step::Mark(mark) = kind {
                progress.mark(mark);
            }
            if kind != Step::End && kind != Step::Flush {
                continue;
            }
            writes += u64::from(kind == Step::End);
            for cut in [0, 1, 2 + step] {
                let place = format!("workload {seed}, step {step}, cut {cut}");
                check(replay.cut(cut), progress, &workload.states, &place);
                cuts += 1;
            }
        }
        assert_eq!(progress.done, 40);
    }
    println!("{writes} writes, {cuts} cuts");
}

#[test]
fn any_part_of_a_flush_epoch_may_be_lost() {
    let mut cuts = 0_u64;
    let workload = workload(7, 25);
    let mut progress = start(workload.device_bytes);
    let mut steps = workload.recording.replay();
    let mut replay = workload.recording.replay();
    // `steps` runs ahead by one, so that the cuts are made before each flush takes effect: that is
    // when most is unflushed.
    steps.next();
    let mut epoch = 0_u64;
    while let Some(kind) = replay.next() {
        let next = steps.next();
        if let Step::Mark(mark) = kind {
            progress.mark(mark);
        }
        if next != Some(Step::Flush) {
            continue;
        }
        epoch += 1;
        for cut in 0..CUTS_PER_EPOCH {
            let cut = 2 + epoch * CUTS_PER_EPOCH + cut;
            let place = format!("epoch {epoch}, cut {cut}");
            check(replay.cut(cut), progress, &workload.states, &place);
            cuts += 1;
        }
    }
    assert!(epoch >= 50, "{epoch}");
    println!("{epoch} epochs, {cuts} cuts");
}

#[test]
fn power_cut_while_opening_after_a_power_cut_loses_nothing() {
    let workload = workload(11, 20);
    let mut progress = start(workload.device_bytes);
    let mut replay = workload.recording.replay();
    let (mut step, mut cuts) = (0_u64, 0_u64);
    while let Some(kind) = replay.next() {
        step += 1;
        if let Step::Mark(mark) = kind {
            progress.mark(mark);
        }
        if step % 7 != 0 {
            continue;
        }
        let device = Extents::on(replay.cut(step), progress.device_bytes);
        device.device.start_recording();
        let store = open(&device).unwrap();
        // What is there now must stay.
        let seen = store.stats().commits;
        store.close().unwrap();
        let recording = device.device.stop_recording();
        let seen = Progress {
            begun: seen,
            done: seen,
            ..progress
        };
        let mut second = recording.replay();
        while second.next().is_some() {
            for cut in [0, 1, 2 + step] {
                let place = format!("step {step}, second cut {cut}");
                check(second.cut(cut), seen, &workload.states, &place);
                cuts += 1;
            }
        }
    }
    println!("{cuts} second cuts");
}

#[test]
fn device_that_ignores_flushes_is_noticed_by_these_tests() {
    // A check of the checks: with the flushes taken out of the recording, transactions are lost.
    let workload = workload(7, 25);
    let without_flushes = lying(&workload);
    let lost = (0..20).any(|seed| {
        let device = Extents::on(without_flushes.cut(seed), workload.device_bytes);
        match open(&device) {
            Ok(store) => {
                store.stats().commits != 25
                    || catch_unwind(AssertUnwindSafe(|| content(&store)))
                        .map_or(true, |content| content != workload.states[25])
            }
            Err(_) => true,
        }
    });
    assert!(lost);
}

/// A device that holds the end of a workload, with nothing of it flushed.
fn lying(workload: &Workload) -> std::sync::Arc<SimDevice> {
    let mut before = workload.recording.replay().cut(0);
    before.resize(64 << 20);
    let device = SimDevice::from_image(before.clone(), simulation::SimOptions::new(4096, 0, 1));
    let mut replay = workload.recording.replay();
    while replay.next().is_some() {}
    let after = replay.cut(1);
    let (mut old, mut new) = ([0; 4096], [0; 4096]);
    for offset in (0..after.len_bytes()).step_by(4096) {
        before.read_at(offset, &mut old);
        after.read_at(offset, &mut new);
        if old != new {
            device.write_at(offset, &new).unwrap();
        }
    }
    device
}
