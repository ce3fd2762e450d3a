//! What a node keeps in its system pool: whole after every cut, and seen without being changed.

use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use block::{Bdev, BdevOptions};
use lvol::{NodeChange, NodeLook, NodeState, PoolOptions, PoolWorker, SYSTEM_LABEL};
use metastore::pool::Table;
use simulation::{Image, SimDevice, SimOptions, Step};

use crate::damage::closed_store;
use crate::rig::{Clock, End, Rig, buffers};

fn put(rig: &mut Rig, generation: u64, changes: &[(&str, Option<&str>)]) {
    let changes = changes.iter().map(|(key, value)| {
        let value = value.map(|value| value.as_bytes().to_vec());
        (key.as_bytes().to_vec(), value)
    });
    let promise = rig.pool.put_node_state(NodeChange {
        generation,
        changes: changes.collect(),
    });
    rig.wait(promise).unwrap();
}

fn state(generation: u64, records: &[(&str, &str)]) -> NodeState {
    let records = records.iter();
    let bytes = |text: &str| text.as_bytes().to_vec();
    NodeState {
        generation,
        records: records
            .map(|(key, value)| (bytes(key), bytes(value)))
            .collect(),
    }
}

fn mark_system(rig: &mut Rig) {
    let label = (SYSTEM_LABEL.to_owned(), Some("yes".to_owned()));
    let promise = rig.pool.set_labels(vec![label]);
    rig.wait(promise).unwrap();
}

fn kept(rig: &mut Rig) -> NodeState {
    let promise = rig.pool.node_state();
    rig.wait(promise).unwrap()
}

fn look_at(image: Image) -> (Option<NodeLook>, Arc<SimDevice>) {
    let drive = SimDevice::from_image(image, SimOptions::new(512, 1, 9));
    let base = Bdev::new(BdevOptions::named("base"), drive.clone(), Instant::now()).unwrap();
    let options = PoolOptions::new(buffers());
    drive.reset_stats();
    let look = PoolWorker::look_for_node(&base, &options, Box::new(Clock), Waker::noop());
    (look.unwrap(), drive)
}

#[test]
fn a_look_shows_what_a_node_keeps_and_writes_nothing() {
    let mut rig = Rig::create(32, 2);
    put(&mut rig, 7, &[("a", Some("1")), ("b", Some("2"))]);
    // Without the label it is no system pool, whatever is in it.
    let (look, _) = look_at(rig.drive.cut(0));
    assert_eq!(look.unwrap().state, None);
    mark_system(&mut rig);
    put(&mut rig, 8, &[("b", None), ("c", Some("3"))]);
    let wanted = state(8, &[("a", "1"), ("c", "3")]);
    assert_eq!(kept(&mut rig), wanted);
    for image in [rig.drive.cut(0), rig.drive.killed(0)] {
        let before = image.encode();
        let (look, drive) = look_at(image);
        let look = look.unwrap();
        assert_eq!(
            (look.name.as_str(), look.state.as_ref()),
            ("tank", Some(&wanted))
        );
        let stats = drive.stats();
        assert_eq!((stats.writes, stats.flushes), (0, 0));
        assert!(drive.image().encode() == before, "the device has changed");
        // And it opens as if nobody had looked.
        let mut rig = Rig::open(drive).unwrap();
        assert_eq!(kept(&mut rig), wanted);
    }
}

#[test]
fn a_look_at_no_pool_an_old_one_and_a_damaged_one() {
    let (look, _) = look_at(Image::new(16 << 20));
    assert_eq!(look, None);
    // Of a version without the table: brought forward beside the device.
    let old = include_bytes!("../data/pool-v1.image");
    let (look, drive) = look_at(Image::decode(old).unwrap());
    assert_eq!(look.unwrap().state, None);
    assert_eq!(drive.stats().writes, 0);

    let rig = Rig::create(32, 2);
    let mut image = rig.drive.cut(0);
    for at in [100, 32_768 + 100] {
        image.write_at(at, &[0x55]);
    }
    let drive = SimDevice::from_image(image, SimOptions::new(512, 1, 9));
    let base = Bdev::new(BdevOptions::named("base"), drive, Instant::now()).unwrap();
    let options = PoolOptions::new(buffers());
    // It is a pool, and which one nobody knows: not the same as none.
    PoolWorker::look_for_node(&base, &options, Box::new(Clock), Waker::noop()).unwrap_err();
}

#[test]
fn keys_that_are_the_pools_own_are_refused() {
    let mut rig = Rig::create(32, 2);
    for key in [vec![], vec![0], vec![0, 1]] {
        let changes = vec![(key, Some(vec![1]))];
        let promise = rig.pool.put_node_state(NodeChange {
            generation: 1,
            changes,
        });
        rig.wait(promise).unwrap_err();
    }
    assert_eq!(kept(&mut rig), NodeState::default());
}

/// Goal: a change of the node's state that was acknowledged is there after a power cut, any other is
/// there wholly or not at all. Method: each write and FLUSH of a sequence of changes is cut.
#[test]
fn the_state_of_a_node_is_old_or_new_after_a_cut_at_every_write() {
    for (seed, end) in [(76, End::PowerCut), (77, End::PowerCut), (77, End::Kill)] {
        let mut rig = Rig::create(32, seed);
        mark_system(&mut rig);
        rig.drive.start_recording();
        let mut states = vec![NodeState::default()];
        let big = "x".repeat(100_000);
        for generation in 1..=12_u64 {
            let name = format!("k{}", generation % 4);
            match generation {
                6 => {
                    let new = state(100, &[("k1", "new"), ("z", big.as_str())]);
                    let promise = rig.pool.replace_node_state(new.clone());
                    rig.wait(promise).unwrap();
                }
                9 => put(&mut rig, 103, &[("z", None), ("k1", None)]),
                _ if generation > 6 => {
                    put(
                        &mut rig,
                        94 + generation,
                        &[(&name, Some("later")), ("both", Some(&name))],
                    );
                }
                _ => put(
                    &mut rig,
                    generation,
                    &[(&name, Some(&big)), ("both", Some(&name))],
                ),
            }
            states.push(kept(&mut rig));
            rig.drive.mark(generation);
        }
        assert_eq!(states[6], state(100, &[("k1", "new"), ("z", big.as_str())]));
        let recording = rig.drive.stop_recording();
        let mut replay = recording.replay();
        let (mut mark, mut looks) = (0, 0);
        while let Some(kind) = replay.next() {
            match kind {
                Step::Mark(number) => mark = number as usize,
                Step::End | Step::Flush => {
                    for seed in 0..4 {
                        let image = match end {
                            End::Kill => replay.killed(seed),
                            End::PowerCut => replay.cut(seed),
                        };
                        let (look, _) = look_at(image.clone());
                        let found = look.unwrap().state.unwrap();
                        let fits = found == states[mark] || states.get(mark + 1) == Some(&found);
                        assert!(fits, "after {mark}: generation {}", found.generation);
                        let mut rig = rig.reopen(image, end, 1).unwrap();
                        assert_eq!(kept(&mut rig), found);
                        looks += 1;
                    }
                }
                _ => {}
            }
        }
        assert!(mark == 12 && looks > 100, "{mark} {looks}");
    }
}

#[test]
fn a_damaged_record_is_an_error_found_and_deleted() {
    let mut rig = Rig::create(32, 2);
    mark_system(&mut rig);
    put(&mut rig, 3, &[("a", Some("1")), ("b", Some("2"))]);
    let store = closed_store(&mut rig);
    let mut transaction = store.transaction();
    transaction.put(Table::Node, b"a", b"nothing").unwrap();
    transaction.commit().unwrap();
    store.close().unwrap();
    let mut rig = rig.end(End::Kill, 0).unwrap();
    let promise = rig.pool.node_state();
    let error = rig.wait(promise).unwrap_err();
    assert!(
        error.to_string().contains("state of the node \"a\""),
        "{error}"
    );
    let promise = rig.pool.check_up(true);
    let findings = rig.wait(promise).unwrap().findings;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].record, "state of the node \"a\"");
    assert_eq!(kept(&mut rig), state(3, &[("b", "2")]));
}
