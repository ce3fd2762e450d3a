//! Random operations against a model in memory, with power cuts.
//!
//! Each block of a volume is written with a stamp, a number that is its own. The model knows for each block the
//! stamp that a read must return, and those that a power cut may leave: the last one that was made durable,
//! and all since.
//!
//! A third of the seeds has a drive without a volatile cache: there, and where only the program dies, all that was
//! acknowledged must be left, and of what was in flight the old or the new.
//!
//! `ADIT_SEED` replays one seed, `ADIT_SEEDS` runs so many.

use std::collections::BTreeMap;

use block::{BdevChannel, Completion, Io, IoError, Op, Submit};
use dma::Payload;
use lvol::{LvolError, MappedRuns, NewVolume, OperationKind, Promise, VolumeInfo};
use simulation::Random;

use crate::rig::{End, Rig, drive, durable_drive};
use crate::sums::{compare, mapped};

pub(crate) const BLOCK: u64 = 512;
/// Blocks of a new volume: 20 clusters of 64 KiB.
const BLOCKS: u64 = 20 * 128;
const VOLUMES_MAX: usize = 6;
const NAMES_MAX: usize = 16;

/// The content of a volume or a snapshot.
#[derive(Clone, Default)]
pub(crate) struct Content {
    /// Stamp by block; 0 is zeroes.
    now: Vec<u64>,
    /// By block, what was there since the last flush, the last flushed first. Absent: only `now`.
    before: BTreeMap<u64, Vec<u64>>,
    /// By block, what was there before a write that is in flight.
    in_flight: BTreeMap<u64, u64>,
}

impl Content {
    pub(crate) fn zeroes(blocks: u64) -> Self {
        Self {
            now: vec![0; blocks as usize],
            ..Self::default()
        }
    }

    pub(crate) fn of(stamps: Vec<u64>) -> Self {
        Self {
            now: stamps,
            ..Self::default()
        }
    }

    pub(crate) fn put(&mut self, block: u64, stamp: u64) {
        let old = std::mem::replace(&mut self.now[block as usize], stamp);
        self.before.entry(block).or_default().push(old);
    }

    /// Shows another content in some of its blocks, durably: what was there is gone.
    pub(crate) fn take_from(&mut self, other: &Self, is_taken: impl Fn(u64) -> bool) {
        for block in (0..self.blocks()).filter(|block| is_taken(*block)) {
            self.now[block as usize] = other.now[block as usize];
            self.before.remove(&block);
        }
    }

    fn put_in_flight(&mut self, block: u64, stamp: u64) {
        self.in_flight.insert(block, self.now[block as usize]);
        self.put(block, stamp);
    }

    /// What was acknowledged is durable, and what is in flight may be there or not.
    fn acknowledged_is_durable(&mut self) {
        let in_flight = std::mem::take(&mut self.in_flight).into_iter();
        self.before = in_flight.map(|(block, old)| (block, vec![old])).collect();
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.now.len() as u64
    }

    pub(crate) fn is_durable(&mut self, block: u64) {
        self.before.remove(&block);
    }

    pub(crate) fn flushed(&mut self) {
        self.before.clear();
    }

    pub(crate) fn resize(&mut self, blocks: u64) {
        self.now.resize(blocks as usize, 0);
        self.before.retain(|block, _| *block < blocks);
    }
}

/// A call whose promise was not kept when the power went.
struct Unanswered {
    after: BTreeMap<String, Content>,
}

struct Run {
    rig: Rig,
    random: Random,
    seed: u64,
    names: BTreeMap<String, Content>,
    channels: BTreeMap<String, Vec<BdevChannel>>,
    stamp: u64,
    number: u64,
    log: Vec<String>,
    turns: u64,
    /// What was mapped when a scrub last asked; read and compared some turns later.
    scrubbed: Option<MappedRuns>,
}

enum Change {
    Create,
    External,
    Clone(String),
    Delete,
    Snapshot(Vec<(String, String)>),
    Rollback(String),
    Resize(u64),
}

/// A call that was made.
enum Started {
    Volume(Promise<VolumeInfo>),
    Other(Promise<()>),
    Deletion(Promise<Option<u64>>),
}

impl Started {
    fn try_take(&self) -> Option<Result<(), LvolError>> {
        match self {
            Self::Volume(promise) => Some(promise.try_take()?.map(|_| ())),
            Self::Other(promise) => promise.try_take(),
            Self::Deletion(promise) => Some(promise.try_take()?.map(drop)),
        }
    }
}

impl Run {
    fn new(seed: u64) -> Self {
        let drive = if seed % 3 == 1 {
            durable_drive(48, seed)
        } else {
            drive(48, seed)
        };
        let rig = Rig::create_on(drive, 64 << 10).expect("the drive is large enough");
        rig.devices.put("gold", 1, 512, &stamped(&golden()));
        Self {
            rig,
            random: Random::new(seed),
            seed,
            names: BTreeMap::new(),
            channels: BTreeMap::new(),
            stamp: 0,
            number: 0,
            log: Vec::new(),
            turns: 0,
            scrubbed: None,
        }
    }

    fn note(&mut self, text: String) {
        if std::env::var_os("ADIT_SEED").is_some() {
            println!("{text}");
        }
        self.log.push(text);
        if self.log.len() > 40 {
            self.log.remove(0);
        }
    }

    fn fail(&self, text: &str) -> ! {
        for line in &self.log {
            eprintln!("{line}");
        }
        panic!("seed {}: {text}", self.seed);
    }

    fn pick(&mut self, snapshots: bool) -> Option<String> {
        let names: Vec<&String> = self
            .names
            .keys()
            .filter(|name| name.contains('@') == snapshots)
            .collect();
        if names.is_empty() {
            return None;
        }
        let index = self.random.below(names.len() as u64) as usize;
        Some(names[index].clone())
    }

    fn turn(&mut self) {
        self.turns += 1;
        if self.turns.is_multiple_of(8) {
            self.scrub_some();
        }
        match self.random.below(100) {
            0..66 => self.io(false),
            66..70 => self.io(true),
            70..76 => self.flush(),
            76..78 => self.detach(),
            78..96 => self.manage(),
            96..98 => self.crash(None),
            _ => self.settle_and_check(),
        }
    }

    /// A bit of a scrub. Nothing is ever damaged here: nothing may be told to be.
    fn scrub_some(&mut self) {
        self.note("scrub".to_owned());
        let part = self.scrubbed.take();
        if let Some(part) = &part {
            let compared = compare(&mut self.rig, part, self.turns);
            if !compared.differing.is_empty() || compared.damaged > 0 {
                self.fail(&format!("the scrub finds {compared:#?}"));
            }
        }
        let from = part.and_then(|part| part.next).unwrap_or_default();
        self.scrubbed = Some(mapped(&mut self.rig, from));
    }

    /// One or several I/Os at a time to one volume, over one or several channels, on blocks of their own.
    /// With `crash` the end comes while some are in flight.
    fn io(&mut self, crash: bool) {
        let Some(name) = self.pick(false) else {
            return self.manage();
        };
        let channels = self.random.below(3) as usize + 1;
        while self.channels.entry(name.clone()).or_default().len() < channels {
            let channel = self.rig.channel(&name);
            self.channels.entry(name.clone()).or_default().push(channel);
        }
        let blocks = self.names[&name].now.len() as u64;
        let count = self.random.below(4) + 1;
        let share = blocks / count;
        let mut ios = Vec::new();
        for part in 0..count {
            let span = share.min(if self.random.chance(2) { 16 } else { 256 });
            let len = self.random.below(span) + 1;
            let lba = part * share + self.random.below(share - len + 1);
            ios.push((lba, len));
        }
        self.run_ios(&name, channels, ios, crash);
    }

    fn run_ios(&mut self, name: &str, channels: usize, ranges: Vec<(u64, u64)>, crash: bool) {
        let mut expected: BTreeMap<u64, (Op, u64, Vec<u64>)> = BTreeMap::new();
        let mut done: Vec<Completion> = Vec::new();
        let count = ranges.len();
        for (tag, (lba, len)) in ranges.into_iter().enumerate() {
            let tag = tag as u64;
            let op = match self.random.below(10) {
                0..4 => Op::Write { fua: false },
                4 => Op::Write { fua: true },
                5..7 => Op::Read,
                7 => Op::Unmap,
                8 => Op::WriteZeroes {
                    unmap: true,
                    fua: self.random.chance(3),
                },
                _ => Op::Compare,
            };
            let stamps: Vec<u64> = match op {
                Op::Write { .. } => (0..len)
                    .map(|_| {
                        self.stamp += 1;
                        self.stamp
                    })
                    .collect(),
                _ => self.names[name].now[lba as usize..(lba + len) as usize].to_vec(),
            };
            let payload = match op {
                Op::Unmap | Op::WriteZeroes { .. } => Payload::None,
                Op::Read => self.rig.payload(&vec![0xee; (len * BLOCK) as usize]),
                _ => self.rig.payload(&stamped(&stamps)),
            };
            self.note(format!("{name} {op:?} {lba}+{len}"));
            let io = Io::with_payload(op, lba, len as u32, payload, tag);
            let channel = self.random.below(channels as u64) as usize;
            let channels = self.channels.get_mut(name).expect("opened before");
            match channels[channel].submit(io, self.rig.now) {
                Submit::Done(completion) => done.push(completion),
                Submit::Pending => {}
            }
            expected.insert(tag, (op, lba, stamps));
        }
        let mut turns = 0;
        let turns_max = match crash {
            true => self.random.below(25),
            false => u64::MAX,
        };
        while done.len() < count && turns < turns_max {
            turns += 1;
            if turns > 200_000 {
                self.fail("an i/o does not end");
            }
            self.rig.step();
            for channel in self.channels.get_mut(name).expect("opened before") {
                channel.poll(self.rig.now, &mut done);
            }
        }
        for completion in done {
            let ended = expected.remove(&completion.io.tag);
            let (op, lba, stamps) = ended.expect("each ends once");
            self.ended(name, op, lba, &stamps, &completion);
        }
        if crash {
            let content = self.names.get_mut(name).expect("it is there");
            for (op, lba, stamps) in expected.into_values() {
                for (block, stamp) in (lba..).zip(stamps) {
                    match op {
                        Op::Write { .. } => content.put_in_flight(block, stamp),
                        Op::Unmap | Op::WriteZeroes { .. } => content.put_in_flight(block, 0),
                        _ => {}
                    }
                }
            }
            self.crash(None);
        }
    }

    fn ended(&mut self, name: &str, op: Op, lba: u64, stamps: &[u64], completion: &Completion) {
        match completion.result {
            Ok(()) => {}
            Err(IoError::NoSpace) if op.modifies() => {
                // Any part of it may have been done.
                let content = self.names.get_mut(name).expect("it is there");
                let len = stamps.len();
                for (at, stamp) in stamps.iter().enumerate().take(len) {
                    let block = lba + at as u64;
                    let new = if matches!(op, Op::Write { .. }) {
                        *stamp
                    } else {
                        0
                    };
                    content.put(block, new);
                }
                return self.adopt_blocks(name, lba, len as u64);
            }
            Err(error) => self.fail(&format!("{name} {op:?} at {lba}: {error}")),
        }
        let content = self.names.get_mut(name).expect("it is there");
        let blocks = lba..lba + stamps.len() as u64;
        match op {
            Op::Write { .. } => {
                for (block, stamp) in blocks.clone().zip(stamps) {
                    content.put(block, *stamp);
                }
            }
            Op::WriteZeroes { .. } => blocks.clone().for_each(|block| content.put(block, 0)),
            Op::Unmap => return self.unmapped(name, lba, stamps.len() as u64),
            Op::Read => {
                let mut read = vec![0; stamps.len() * BLOCK as usize];
                completion.io.payload.copy_range_to(0, &mut read);
                if read != stamped(stamps) {
                    self.fail(&format!("{name} reads wrong at {lba}"));
                }
            }
            _ => {}
        }
        if op.fua() {
            for block in blocks {
                content.before.remove(&block);
            }
        }
    }

    /// Whole granules read as zeroes now; what is left of others may stay.
    fn unmapped(&mut self, name: &str, lba: u64, len: u64) {
        let content = self.names.get_mut(name).expect("it is there");
        let (start, end) = (lba.next_multiple_of(8), (lba + len) / 8 * 8);
        for block in start..end.max(start) {
            content.put(block, 0);
        }
    }

    /// Reads blocks that may be one thing or another, and takes what is found.
    fn adopt_blocks(&mut self, name: &str, lba: u64, len: u64) {
        let found = self.read_stamps(name, lba, len);
        let content = self.names.get_mut(name).expect("it is there");
        for (at, stamp) in found.into_iter().enumerate() {
            let block = lba + at as u64;
            let may_be = &content.before[&block];
            let expected = may_be.last() == Some(&stamp) || content.now[block as usize] == stamp;
            assert!(expected, "block {block} of {name} holds {stamp}");
            content.now[block as usize] = stamp;
        }
    }

    fn read_stamps(&mut self, name: &str, lba: u64, len: u64) -> Vec<u64> {
        match read_stamps(&mut self.rig, name, lba, len) {
            Ok(stamps) => stamps,
            Err(problem) => self.fail(&problem),
        }
    }

    fn flush(&mut self) {
        let Some(name) = self.pick(false) else { return };
        self.note(format!("{name} flush"));
        let mut channel = self.rig.channel(&name);
        self.rig.flush(&mut channel);
        self.names.get_mut(&name).expect("it is there").flushed();
    }

    /// Begins to take a volume off its parent. Nothing that is read changes by it, at any time.
    fn detach(&mut self) {
        let Some(name) = self.pick(false) else { return };
        self.note(format!("take {name} off its parent"));
        let promise = self.rig.pool.detach(&name, OperationKind::Decouple);
        match self.rig.wait(promise) {
            Ok(_) | Err(LvolError::Refused { .. }) => {}
            Err(error) => self.fail(&format!("{name}: {error}")),
        }
        // A call is durable, and with it all that had completed.
        self.names.values_mut().for_each(Content::flushed);
    }

    fn manage(&mut self) {
        let Some((name, change)) = self.pick_change() else {
            return;
        };
        let after = self.apply(&name, &change);
        let promise = self.start(&name, &change);
        if self.random.chance(8) {
            for _ in 0..self.random.below(6) {
                self.rig.step();
            }
            if promise.try_take().is_none() {
                return self.crash(Some(Unanswered { after }));
            }
        } else {
            let result = match promise {
                Started::Volume(promise) => self.rig.wait(promise).map(|_| ()),
                Started::Deletion(promise) => self.rig.wait(promise).map(drop),
                Started::Other(promise) => self.rig.wait(promise),
            };
            match result {
                Ok(()) => {}
                Err(LvolError::NoSpace { .. }) => return,
                Err(error) => self.fail(&format!("{name}: {error}")),
            }
        }
        self.names = after;
        // A call is durable, and with it all that had completed.
        self.names.values_mut().for_each(Content::flushed);
    }

    fn pick_change(&mut self) -> Option<(String, Change)> {
        self.number += 1;
        let number = self.number;
        let volumes = self.names.keys().filter(|name| !name.contains('@')).count();
        let room = self.names.len() < NAMES_MAX;
        match self.random.below(10) {
            0 if volumes < VOLUMES_MAX => Some((format!("v{number}"), Change::Create)),
            1 if volumes < VOLUMES_MAX => Some((format!("e{number}"), Change::External)),
            2..5 if room => {
                let first = self.pick(false)?;
                let mut pairs = vec![(first.clone(), format!("s{number}"))];
                if let Some(second) = self.pick(false)
                    && second != first
                {
                    pairs.push((second, format!("s{number}")));
                }
                Some((first, Change::Snapshot(pairs)))
            }
            5 if volumes < VOLUMES_MAX => {
                let snapshot = self.pick(true)?;
                Some((format!("c{number}"), Change::Clone(snapshot)))
            }
            6 => {
                let snapshot = self.pick(true)?;
                let volume = self.pick(false)?;
                Some((volume, Change::Rollback(snapshot)))
            }
            7 => {
                let volume = self.pick(false)?;
                let blocks = (self.random.below(BLOCKS / 8) + 8) * 8;
                Some((volume, Change::Resize(blocks)))
            }
            _ => {
                let snapshots = self.random.chance(2);
                let name = self.pick(snapshots)?;
                Some((name, Change::Delete))
            }
        }
    }

    /// The model after a change.
    fn apply(&mut self, name: &str, change: &Change) -> BTreeMap<String, Content> {
        let mut after = self.names.clone();
        match change {
            Change::Create => {
                after.insert(name.to_owned(), Content::zeroes(BLOCKS));
            }
            Change::External => {
                after.insert(name.to_owned(), Content::of(golden()));
            }
            Change::Clone(from) | Change::Rollback(from) => {
                after.insert(name.to_owned(), self.names[from].clone());
            }
            Change::Delete => {
                after.remove(name);
            }
            Change::Snapshot(pairs) => {
                for (volume, snapshot) in pairs {
                    after.insert(format!("{volume}@{snapshot}"), self.names[volume].clone());
                }
            }
            Change::Resize(blocks) => after
                .get_mut(name)
                .expect("it was picked from there")
                .resize(*blocks),
        }
        after
    }

    fn start(&mut self, name: &str, change: &Change) -> Started {
        match change {
            Change::Create => self.note(format!("create {name}")),
            Change::External => self.note(format!("clone the device to {name}")),
            Change::Clone(from) => self.note(format!("clone {from} to {name}")),
            Change::Delete => self.note(format!("delete {name}")),
            Change::Snapshot(pairs) => self.note(format!("snapshots {pairs:?}")),
            Change::Rollback(from) => self.note(format!("roll {name} back to {from}")),
            Change::Resize(blocks) => self.note(format!("resize {name} to {blocks}")),
        }
        let mut new = NewVolume {
            name: name.to_owned(),
            size_bytes: BLOCKS * BLOCK,
            ..NewVolume::default()
        };
        let pool = self.rig.pool.clone();
        match change {
            Change::Create => Started::Volume(pool.create_volume(new)),
            Change::External => {
                new.size_bytes = 0;
                let device = self.rig.devices.registry.get("gold");
                Started::Volume(pool.clone_external(&device.expect("it was put there"), new))
            }
            Change::Clone(from) => {
                new.size_bytes = 0;
                Started::Volume(pool.clone_snapshot(from, new))
            }
            Change::Delete => {
                self.channels.remove(name);
                Started::Deletion(pool.delete(name))
            }
            Change::Snapshot(pairs) => Started::Other(pool.create_snapshots(pairs, 0)),
            Change::Rollback(from) => {
                // The size may change with it: bdevs of the test keep the old one.
                self.channels.remove(name);
                Started::Other(pool.rollback(name, from))
            }
            Change::Resize(blocks) => {
                self.channels.remove(name);
                Started::Other(pool.resize(name, blocks * BLOCK))
            }
        }
    }

    /// Cuts the power, opens what is left, and compares.
    fn crash(&mut self, unanswered: Option<Unanswered>) {
        let seed = self.random.next_u64();
        let end = match self.random.below(2) {
            0 => End::PowerCut,
            _ => End::Kill,
        };
        self.note(format!("{end:?} {seed}"));
        let is_durable = end == End::Kill || !self.rig.drive.has_volatile_cache();
        let rig = match self.rig.end(end, seed) {
            Ok(rig) => rig,
            Err(error) => self.fail(&format!("the pool does not open: {error}")),
        };
        // After the look at what it would leave: what is in flight ends with the channels.
        self.channels.clear();
        self.scrubbed = None;
        self.rig = rig;
        let found = self.listed();
        let mut before = std::mem::take(&mut self.names);
        let mut after = unanswered.map(|unanswered| unanswered.after);
        if is_durable {
            for names in std::iter::once(&mut before).chain(&mut after) {
                let contents = names.values_mut();
                contents.for_each(Content::acknowledged_is_durable);
            }
        }
        let sizes = |names: &BTreeMap<String, Content>| -> Vec<(String, u64)> {
            names
                .iter()
                .map(|(name, content)| (name.clone(), content.now.len() as u64))
                .collect()
        };
        let mut models = vec![before];
        models.extend(after);
        models.retain(|model| sizes(model) == found);
        if models.is_empty() {
            self.fail(&format!("what is there is neither old nor new: {found:?}"));
        }
        let mut contents = BTreeMap::new();
        for (name, blocks) in found {
            contents.insert(name.clone(), self.read_stamps(&name, 0, blocks));
        }
        let fitting = models.iter().position(|model| {
            model
                .iter()
                .all(|(name, content)| fits(content, &contents[name]))
        });
        let Some(fitting) = fitting else {
            let model = &models[0];
            for (name, content) in model {
                for (block, found) in contents[name].iter().enumerate() {
                    let block = block as u64;
                    if !may_be(content, block, *found) {
                        self.fail(&format!("{name} block {block} holds {found} after the cut"));
                    }
                }
            }
            self.fail("no model fits");
        };
        self.names = models.swap_remove(fitting);
        for (name, content) in &mut self.names {
            content.now.clone_from(&contents[name]);
            content.in_flight.clear();
            content.flushed();
        }
        self.check();
    }

    fn listed(&mut self) -> Vec<(String, u64)> {
        let promise = self.rig.pool.volumes("", 1000);
        let volumes = self.rig.wait(promise).unwrap_or_default();
        volumes
            .into_iter()
            .map(|volume| (volume.name, volume.record.size_bytes / BLOCK))
            .collect()
    }

    fn check(&mut self) {
        let promise = self.rig.pool.check();
        match self.rig.wait(promise) {
            Ok(findings) if findings.is_empty() => {}
            other => self.fail(&format!("the check finds {other:#?}")),
        }
    }

    fn settle_and_check(&mut self) {
        self.note("settle".to_owned());
        self.channels.clear();
        self.rig.settle();
        self.names.values_mut().for_each(Content::flushed);
        self.check();
        let names: Vec<String> = self.names.keys().cloned().collect();
        for name in names {
            let blocks = self.names[&name].now.len() as u64;
            let found = self.read_stamps(&name, 0, blocks);
            if found != self.names[&name].now {
                self.fail(&format!("{name} has changed"));
            }
        }
    }

    /// Deletes everything: all of the space must come back.
    fn end(&mut self, free: u64) {
        self.channels.clear();
        let names: Vec<String> = self.names.keys().cloned().collect();
        for name in names {
            self.rig.delete(&name).unwrap_or_else(|error| {
                self.fail(&format!("{name}: {error}"));
            });
        }
        self.rig.settle();
        self.check();
        let promise = self.rig.pool.info();
        let info = self.rig.wait(promise).expect("the pool is open");
        assert_eq!(info.used_clusters, 0, "seed {}", self.seed);
        assert_eq!(info.layers, 0, "seed {}", self.seed);
        // The metadata may have grown.
        assert_eq!(
            info.free_clusters + info.metadata_clusters,
            free,
            "seed {}",
            self.seed
        );
    }
}

/// What the device outside the pool holds: 13 clusters and a bit, with zeroes in between.
pub(crate) fn golden() -> Vec<u64> {
    let stamp = |block: u64| if block % 300 < 90 { 0 } else { 1 << 40 | block };
    (0..13 * 128 + 5).map(stamp).collect()
}

pub(crate) fn stamped(stamps: &[u64]) -> Vec<u8> {
    stamps
        .iter()
        .flat_map(|stamp| std::iter::repeat_n(stamp.to_le_bytes(), 64))
        .flatten()
        .collect()
}

/// The stamps of blocks; an error if one has more than one.
pub(crate) fn read_stamps(
    rig: &mut Rig,
    name: &str,
    lba: u64,
    len: u64,
) -> Result<Vec<u64>, String> {
    let mut channel = rig.channel(name);
    let mut stamps = Vec::with_capacity(len as usize);
    let mut at = lba;
    while at < lba + len {
        let part = (lba + len - at).min(256);
        let read = rig.read(&mut channel, at * BLOCK, (part * BLOCK) as usize);
        for block in read.chunks(BLOCK as usize) {
            let mut words = block
                .chunks(8)
                .map(|word| u64::from_le_bytes(word.try_into().expect("a chunk of 8")));
            let first = words.next().expect("a block has words");
            if words.any(|word| word != first) {
                return Err(format!("{name} has a torn block near {at}"));
            }
            stamps.push(first);
        }
        at += part;
    }
    Ok(stamps)
}

fn may_be(content: &Content, block: u64, stamp: u64) -> bool {
    content.now[block as usize] == stamp
        || content
            .before
            .get(&block)
            .is_some_and(|before| before.contains(&stamp))
}

pub(crate) fn fits(content: &Content, found: &[u64]) -> bool {
    found
        .iter()
        .enumerate()
        .all(|(block, stamp)| may_be(content, block as u64, *stamp))
}

fn run(seed: u64, turns: u64) {
    let mut run = Run::new(seed);
    let promise = run.rig.pool.info();
    let info = run.rig.wait(promise).expect("the pool is open");
    let free = info.free_clusters + info.metadata_clusters;
    for _ in 0..turns {
        run.turn();
    }
    run.end(free);
}

#[test]
fn random_operations_and_power_cuts_lose_nothing() {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    if let Some(seed) = number("ADIT_SEED") {
        return run(seed, 400);
    }
    for seed in 1..=number("ADIT_SEEDS").unwrap_or(20) {
        run(seed, 400);
    }
}
