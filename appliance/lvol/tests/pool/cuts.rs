//! The power is cut after every single write of every operation, and what is left is compared.
//!
//! A scenario runs once and is recorded. At each step of the recording several cuts are opened: all of what was
//! not flushed is lost, all of it survives, and subsets of it. `ADIT_CUTS` is the number of subsets.

use std::collections::BTreeMap;

use block::Op;
use lvol::OperationKind;
use simulation::{Image, Step};

use crate::model::{BLOCK, Content, fits, golden, read_stamps, stamped};
use crate::rig::{End, Rig, drive, durable_drive};
use crate::sums::scrub;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

type Names = BTreeMap<String, Content>;

/// Operations that are recorded; after each one a mark, and what the model says then.
struct Scenario {
    rig: Rig,
    names: Names,
    /// Before the first mark, after it, and so on.
    states: Vec<Names>,
    stamp: u64,
    end: Ending,
    /// What is frozen is compared after each cut.
    scrubs: bool,
}

/// What ends each run of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The power goes, under a drive with a volatile cache: what was flushed is there.
    PowerCut,
    /// The power goes, under a drive without one: what was acknowledged is there.
    PowerCutWithoutCache,
    /// The program dies: what was acknowledged is there.
    Kill,
}

impl Ending {
    fn loses_unflushed(self) -> bool {
        self == Self::PowerCut
    }

    fn end(self) -> End {
        match self {
            Self::Kill => End::Kill,
            _ => End::PowerCut,
        }
    }
}

impl Scenario {
    fn start(seed: u64, end: Ending) -> Self {
        let drive = match end {
            Ending::PowerCutWithoutCache => durable_drive(32, seed),
            _ => drive(32, seed),
        };
        let rig = Rig::create_on(drive, 64 << 10).unwrap();
        rig.devices.put("gold", 1, 512, &stamped(&golden()));
        rig.drive.start_recording();
        Self {
            rig,
            names: Names::new(),
            states: vec![Names::new()],
            stamp: 0,
            end,
            scrubs: false,
        }
    }

    fn acknowledged(&mut self) {
        self.rig.drive.mark(self.states.len() as u64);
        self.states.push(self.names.clone());
        if !self.end.loses_unflushed() {
            // In the next state only what that operation changed is old or new.
            self.names.values_mut().for_each(Content::flushed);
        }
    }

    /// A management call was acknowledged: it is durable, with all that had completed.
    fn durable(&mut self) {
        self.names.values_mut().for_each(Content::flushed);
        self.acknowledged();
    }

    fn create(&mut self, name: &str, size: u64) {
        self.rig.create_volume(name, size);
        self.names
            .insert(name.to_owned(), Content::zeroes(size / BLOCK));
        self.durable();
    }

    fn write(&mut self, name: &str, offset: u64, len: u64, fua: bool) {
        let mut stamps = Vec::new();
        for block in offset / BLOCK..(offset + len) / BLOCK {
            self.stamp += 1;
            stamps.push(self.stamp);
            let content = self.names.get_mut(name).unwrap();
            content.put(block, self.stamp);
        }
        let mut channel = self.rig.channel(name);
        self.rig
            .try_write(&mut channel, offset, &stamped(&stamps), fua)
            .unwrap();
        if fua {
            let content = self.names.get_mut(name).unwrap();
            (offset / BLOCK..(offset + len) / BLOCK).for_each(|block| content.is_durable(block));
        }
        self.acknowledged();
    }

    fn zero(&mut self, name: &str, op: Op, offset: u64, len: u64) {
        let content = self.names.get_mut(name).unwrap();
        (offset / BLOCK..(offset + len) / BLOCK).for_each(|block| content.put(block, 0));
        let mut channel = self.rig.channel(name);
        self.rig.op(&mut channel, op, offset, len);
        self.acknowledged();
    }

    fn flush(&mut self, name: &str) {
        let mut channel = self.rig.channel(name);
        self.rig.flush(&mut channel);
        self.names.get_mut(name).unwrap().flushed();
        self.acknowledged();
    }

    fn snapshot(&mut self, pairs: &[(&str, &str)]) {
        self.rig.snapshot(pairs).unwrap();
        for (volume, snapshot) in pairs {
            let content = self.names[*volume].clone();
            self.names.insert(format!("{volume}@{snapshot}"), content);
        }
        self.durable();
    }

    fn clone_snapshot(&mut self, snapshot: &str, name: &str) {
        self.rig.clone_snapshot(snapshot, name).unwrap();
        let content = self.names[snapshot].clone();
        self.names.insert(name.to_owned(), content);
        self.durable();
    }

    fn clone_external(&mut self, name: &str, size: u64) {
        self.rig.clone_external("gold", name, size).unwrap();
        let mut content = Content::of(golden());
        content.resize(size / BLOCK);
        self.names.insert(name.to_owned(), content);
        self.durable();
    }

    /// Takes a volume off what it lies on. Nothing that is read changes.
    fn decouple(&mut self, name: &str) {
        let promise = self.rig.pool.detach(name, OperationKind::Decouple);
        self.rig.wait(promise).unwrap();
        self.durable();
        self.rig.settle();
        self.durable();
    }

    fn delete(&mut self, name: &str) {
        self.rig.delete(name).unwrap();
        self.names.remove(name);
        self.durable();
        // Its clusters come back in steps that are cut too.
        self.rig.settle();
        self.durable();
    }

    fn rollback(&mut self, volume: &str, snapshot: &str) {
        let promise = self.rig.pool.rollback(volume, snapshot);
        self.rig.wait(promise).unwrap();
        let content = self.names[snapshot].clone();
        self.names.insert(volume.to_owned(), content);
        self.durable();
        self.rig.settle();
        self.durable();
    }

    /// `own` are the bytes that the volume has itself, of whole granules.
    fn set_parent(&mut self, volume: &str, parent: &str, own: &[std::ops::Range<u64>]) {
        let mut below = if parent == "gold" {
            let device = self.rig.devices.registry.get("gold").unwrap();
            let promise = self.rig.pool.set_external_parent(volume, &device);
            self.rig.wait(promise).unwrap();
            Content::of(golden())
        } else {
            let promise = self.rig.pool.set_parent(volume, parent);
            self.rig.wait(promise).unwrap();
            self.names[parent].clone()
        };
        let content = self.names.get_mut(volume).unwrap();
        below.resize(content.blocks());
        content.take_from(&below, |block| {
            !own.iter().any(|own| own.contains(&(block * BLOCK)))
        });
        self.durable();
    }

    fn resize(&mut self, name: &str, size: u64) {
        let promise = self.rig.pool.resize(name, size);
        self.rig.wait(promise).unwrap();
        self.names.get_mut(name).unwrap().resize(size / BLOCK);
        self.durable();
    }

    fn rename(&mut self, name: &str, new_name: &str) {
        let promise = self.rig.pool.rename(name, new_name);
        self.rig.wait(promise).unwrap();
        let names = std::mem::take(&mut self.names);
        for (other, content) in names {
            let renamed = match other.strip_prefix(name) {
                Some(rest) if rest.is_empty() || rest.starts_with('@') => {
                    format!("{new_name}{rest}")
                }
                _ => other,
            };
            self.names.insert(renamed, content);
        }
        self.durable();
    }

    fn scrub(&mut self) {
        self.scrubs = true;
        let compared = scrub(&mut self.rig, 1);
        assert_eq!(compared.differing, []);
        self.acknowledged();
    }

    /// Opens cuts at every step.
    fn cut_everywhere(self, subsets: u64) {
        let recording = self.rig.drive.stop_recording();
        let mut replay = recording.replay();
        let (mut mark, mut step) = (0, 0_u64);
        while let Some(kind) = replay.next() {
            step += 1;
            match kind {
                Step::Mark(number) => mark = number as usize,
                Step::End | Step::Flush => {
                    let random = (0..subsets).map(|subset| step * 1000 + subset + 2);
                    for seed in [0, 1].into_iter().chain(random) {
                        let image = match self.end {
                            Ending::Kill => replay.killed(seed),
                            _ => replay.cut(seed),
                        };
                        self.look(image, mark, &format!("step {step} seed {seed}"));
                    }
                }
                _ => {}
            }
        }
        println!("{step} steps, {mark} operations");
    }

    /// What is there is what the last acknowledged operation left, or what the next one would have.
    fn look(&self, image: Image, mark: usize, place: &str) {
        let mut rig = self
            .rig
            .reopen(image, self.end.end(), 1)
            .unwrap_or_else(|error| panic!("{place}: the pool does not open: {error}"));
        let promise = rig.pool.check();
        let findings = rig.wait(promise).unwrap();
        assert!(findings.is_empty(), "{place}: {findings:#?}");
        if self.scrubs {
            for _ in 0..2 {
                let compared = scrub(&mut rig, 2);
                assert_eq!(compared.differing, [], "{place}");
                assert_eq!(compared.damaged, 0, "{place}");
            }
        }
        let promise = rig.pool.volumes("", 100);
        let found = rig.wait(promise).unwrap();
        let mut contents = BTreeMap::new();
        for volume in found {
            let blocks = volume.record.size_bytes / BLOCK;
            let stamps = read_stamps(&mut rig, &volume.name, 0, blocks)
                .unwrap_or_else(|problem| panic!("{place}: {problem}"));
            contents.insert(volume.name, stamps);
        }
        let mut last = self.states[mark].clone();
        if !self.end.loses_unflushed() {
            last.values_mut().for_each(Content::flushed);
        }
        let mut states = std::iter::once(&last).chain(self.states.get(mark + 1));
        let fits_one = states.any(|state| {
            state.keys().eq(contents.keys())
                && state.iter().all(|(name, content)| {
                    content.blocks() == contents[name].len() as u64
                        && fits(content, &contents[name])
                })
        });
        let names: Vec<&String> = contents.keys().collect();
        assert!(
            fits_one,
            "{place}, after operation {mark}: {names:?} are neither old nor new"
        );
    }
}

fn subsets() -> u64 {
    let cuts = std::env::var("ADIT_CUTS").ok();
    cuts.and_then(|cuts| cuts.parse().ok()).unwrap_or(4)
}

#[test]
fn volumes_and_snapshots_are_old_or_new_after_a_cut_at_every_write() {
    volumes_and_snapshots(Ending::PowerCut);
}

#[test]
fn volumes_and_snapshots_lose_nothing_that_was_acknowledged_without_a_cache() {
    volumes_and_snapshots(Ending::PowerCutWithoutCache);
}

#[test]
fn volumes_and_snapshots_lose_nothing_that_was_acknowledged_by_a_kill() {
    volumes_and_snapshots(Ending::Kill);
}

fn volumes_and_snapshots(end: Ending) {
    // One transaction for a commit, and one for each piece.
    for seed in [76, 77] {
        let mut scenario = Scenario::start(seed, end);
        scenario.create("v", MIB);
        scenario.write("v", 0, 8 * KIB, false);
        scenario.write("v", 512, 512, false);
        scenario.flush("v");
        scenario.write("v", 64 * KIB, 4 * KIB, true);
        scenario.write("v", 66 * KIB, 512, true);
        scenario.create("w", MIB);
        scenario.write("w", 0, 64 * KIB, false);
        scenario.snapshot(&[("v", "a"), ("w", "a")]);
        scenario.write("v", 4 * KIB, 512, false);
        scenario.write("w", 0, 4 * KIB, true);
        scenario.clone_snapshot("w@a", "c");
        scenario.write("c", 32 * KIB, 4 * KIB, false);
        scenario.flush("c");
        scenario.zero("w", Op::Unmap, 8 * KIB, 8 * KIB);
        scenario.zero(
            "v",
            Op::WriteZeroes {
                unmap: true,
                fua: true,
            },
            512,
            6 * KIB,
        );
        scenario.flush("w");
        scenario.cut_everywhere(subsets());
    }
}

#[test]
fn deletions_rollbacks_and_resizes_are_old_or_new_after_a_cut_at_every_write() {
    deletions_rollbacks_and_resizes(Ending::PowerCut);
}

#[test]
fn deletions_rollbacks_and_resizes_lose_nothing_that_was_acknowledged_without_a_cache() {
    deletions_rollbacks_and_resizes(Ending::PowerCutWithoutCache);
}

#[test]
fn deletions_rollbacks_and_resizes_lose_nothing_that_was_acknowledged_by_a_kill() {
    deletions_rollbacks_and_resizes(Ending::Kill);
}

fn deletions_rollbacks_and_resizes(end: Ending) {
    // One transaction for a commit, and one for each piece.
    for seed in [76, 77] {
        let mut scenario = Scenario::start(seed, end);
        scenario.create("v", MIB);
        scenario.write("v", 0, 64 * KIB, false);
        scenario.write("v", 128 * KIB, 8 * KIB, false);
        scenario.snapshot(&[("v", "a")]);
        scenario.write("v", 4 * KIB, 4 * KIB, false);
        scenario.snapshot(&[("v", "b")]);
        scenario.clone_snapshot("v@a", "c");
        scenario.write("c", 132 * KIB, 4 * KIB, false);
        scenario.write("v", 8 * KIB, 4 * KIB, true);
        scenario.delete("v@b");
        scenario.rename("v", "renamed");
        scenario.rollback("renamed", "renamed@a");
        scenario.write("renamed", 0, 4 * KIB, false);
        scenario.flush("renamed");
        scenario.resize("renamed", 128 * KIB);
        scenario.resize("renamed", MIB);
        scenario.delete("c");
        scenario.delete("renamed@a");
        scenario.delete("renamed");
        scenario.cut_everywhere(subsets());
    }
}

#[test]
fn volumes_over_another_device_are_old_or_new_after_a_cut_at_every_write() {
    volumes_over_another_device(Ending::PowerCut);
}

#[test]
fn volumes_over_another_device_lose_nothing_that_was_acknowledged_without_a_cache() {
    volumes_over_another_device(Ending::PowerCutWithoutCache);
}

#[test]
fn volumes_over_another_device_lose_nothing_that_was_acknowledged_by_a_kill() {
    volumes_over_another_device(Ending::Kill);
}

fn volumes_over_another_device(end: Ending) {
    // One transaction for a commit, and one for each piece.
    for seed in [76, 77] {
        let mut scenario = Scenario::start(seed, end);
        scenario.clone_external("e", MIB);
        scenario.write("e", 512, 512, false);
        scenario.write("e", 130 * KIB, 4 * KIB, true);
        scenario.snapshot(&[("e", "a")]);
        scenario.write("e", 60 * KIB, 8 * KIB, false);
        scenario.zero("e", Op::Unmap, 192 * KIB, 64 * KIB);
        scenario.clone_snapshot("e@a", "c");
        scenario.write("c", 64 * KIB, 1024, true);
        scenario.delete("e@a");
        scenario.resize("c", 128 * KIB);
        scenario.resize("c", MIB);
        scenario.decouple("e");
        scenario.delete("e");
        scenario.cut_everywhere(subsets());
    }
}

#[test]
fn another_parent_is_old_or_new_after_a_cut_at_every_write() {
    another_parent(Ending::PowerCut);
}

#[test]
fn another_parent_loses_nothing_that_was_acknowledged_without_a_cache() {
    another_parent(Ending::PowerCutWithoutCache);
}

#[test]
fn another_parent_loses_nothing_that_was_acknowledged_by_a_kill() {
    another_parent(Ending::Kill);
}

fn another_parent(end: Ending) {
    // One transaction for a commit, and one for each piece.
    for seed in [76, 77] {
        let mut scenario = Scenario::start(seed, end);
        scenario.create("a", MIB);
        scenario.write("a", 0, 128 * KIB, false);
        scenario.write("a", 200 * KIB, 8 * KIB, false);
        scenario.snapshot(&[("a", "s")]);
        scenario.create("v", MIB);
        scenario.write("v", 64 * KIB, 64 * KIB, false);
        // Without a parent what is unmapped is not the volume's any more.
        scenario.zero("v", Op::Unmap, 80 * KIB, 16 * KIB);
        scenario.write("v", 256 * KIB, 4 * KIB, true);
        let (first, second, third) = (
            64 * KIB..80 * KIB,
            96 * KIB..128 * KIB,
            256 * KIB..260 * KIB,
        );
        let mut own = vec![first, second, third];
        scenario.set_parent("v", "a@s", &own);
        scenario.write("v", 4 * KIB, 512, false);
        scenario.zero("v", Op::Unmap, 64 * KIB, 8 * KIB);
        scenario.zero("v", Op::Unmap, 200 * KIB, 4 * KIB);
        own.extend([4 * KIB..8 * KIB, 200 * KIB..204 * KIB]);
        scenario.set_parent("v", "gold", &own);
        scenario.write("v", 300 * KIB, 512, true);
        scenario.delete("a@s");
        scenario.snapshot(&[("v", "s")]);
        scenario.set_parent("v", "v@s", &[]);
        scenario.cut_everywhere(subsets());
    }
}

#[test]
fn scrubs_that_keep_checksums_are_cut_at_every_write() {
    scrubs(Ending::PowerCut);
}

#[test]
fn scrubs_that_keep_checksums_lose_nothing_that_was_acknowledged_by_a_kill() {
    scrubs(Ending::Kill);
}

fn scrubs(end: Ending) {
    for seed in [76, 77] {
        let mut scenario = Scenario::start(seed, end);
        scenario.create("v", MIB);
        scenario.write("v", 0, 64 * KIB, false);
        scenario.write("v", 128 * KIB, 8 * KIB, false);
        scenario.snapshot(&[("v", "a")]);
        scenario.scrub();
        scenario.write("v", 4 * KIB, 4 * KIB, false);
        scenario.snapshot(&[("v", "b")]);
        scenario.scrub();
        // Into a snapshot, then into the volume, which is written in place there.
        scenario.delete("v@a");
        scenario.scrub();
        scenario.delete("v@b");
        scenario.write("v", 128 * KIB, 4 * KIB, false);
        scenario.write("v", 0, 4 * KIB, true);
        scenario.snapshot(&[("v", "c")]);
        scenario.scrub();
        scenario.cut_everywhere(subsets());
    }
}
