//! [`Medium`]: what is durable, what is in the cache, what is in flight. It changes by [`Event`]s
//! alone, so a recording of them replays exactly.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::Random;
use crate::image::{Image, PAGE_BYTES};

/// One change of content.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Write { offset: u64, data: Arc<[u8]> },
    Zero { range: Range<u64> },
}

impl Change {
    fn apply(&self, image: &mut Image) {
        match self {
            Self::Write { offset, data } => image.write_at(*offset, data),
            Self::Zero { range } => image.zero(range.clone()),
        }
    }

    /// Applies the parts that `survives` says yes to, part by part.
    fn apply_torn(
        &self,
        image: &mut Image,
        tear_bytes: u64,
        survives: &mut dyn FnMut(u64) -> bool,
    ) {
        match self {
            Self::Write { offset, data } => {
                let range = *offset..*offset + data.len() as u64;
                for part in parts(range, tear_bytes) {
                    if survives(part.start) {
                        let from = (part.start - offset) as usize;
                        let to = (part.end - offset) as usize;
                        image.write_at(part.start, &data[from..to]);
                    }
                }
            }
            Self::Zero { range } => {
                // Zeroing what holds nothing changes nothing.
                for page in image.stored(range) {
                    let start = (page * PAGE_BYTES).max(range.start);
                    let end = ((page + 1) * PAGE_BYTES).min(range.end);
                    for part in parts(start..end, tear_bytes) {
                        if survives(part.start) {
                            image.zero(part);
                        }
                    }
                }
            }
        }
    }
}

/// A range, cut at the multiples of `tear_bytes`.
fn parts(range: Range<u64>, tear_bytes: u64) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let start = at;
        at = ((start / tear_bytes + 1) * tear_bytes).min(range.end);
        (start < range.end).then_some(start..at)
    })
}

/// A step in the life of a medium.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A change is in flight.
    Start { id: u64, change: Change },
    /// It has completed; with `durable`, as FUA.
    End { id: u64, durable: bool },
    /// It has failed and changed nothing.
    Failed { id: u64 },
    /// A flush has completed that covers the first changes, up to this count of completed ones.
    Flush { covers: u64 },
    /// The device has another length.
    Resize { len_bytes: u64 },
    /// A test's own mark.
    Mark(u64),
}

#[derive(Clone, Debug)]
struct Cached {
    number: u64,
    change: Change,
    durable: bool,
}

/// The content of a device with a volatile cache.
#[derive(Clone, Debug)]
pub(crate) struct Medium {
    durable: Image,
    current: Image,
    /// Completed and not covered by a flush, in the order of completion.
    cached: Vec<Cached>,
    in_flight: BTreeMap<u64, Change>,
    /// Changes that have completed so far.
    completed: u64,
    tear_bytes: u64,
}

impl Medium {
    pub(crate) fn new(image: Image, tear_bytes: u32) -> Self {
        Self {
            durable: image.clone(),
            current: image,
            cached: Vec::new(),
            in_flight: BTreeMap::new(),
            completed: 0,
            tear_bytes: u64::from(tear_bytes),
        }
    }

    /// What reads see.
    pub(crate) fn current(&self) -> &Image {
        &self.current
    }

    /// How many changes have completed: what a flush submitted now covers.
    pub(crate) fn completed(&self) -> u64 {
        self.completed
    }

    pub(crate) fn unflushed(&self) -> usize {
        self.cached.iter().filter(|cached| !cached.durable).count()
    }

    pub(crate) fn apply(&mut self, event: Event) {
        match event {
            Event::Start { id, change } => {
                self.in_flight.insert(id, change);
            }
            Event::End { id, durable } => {
                let Some(change) = self.in_flight.remove(&id) else {
                    return;
                };
                self.completed += 1;
                change.apply(&mut self.current);
                if durable && self.cached.is_empty() {
                    change.apply(&mut self.durable);
                    return;
                }
                // Behind older changes of the same place it stays in order with them.
                let number = self.completed;
                self.cached.push(Cached {
                    number,
                    change,
                    durable,
                });
            }
            Event::Failed { id } => {
                self.in_flight.remove(&id);
            }
            Event::Flush { covers } => {
                let covered = self.cached.partition_point(|each| each.number <= covers);
                for cached in self.cached.drain(..covered) {
                    cached.change.apply(&mut self.durable);
                }
            }
            Event::Resize { len_bytes } => self.resize(len_bytes),
            Event::Mark(_) => {}
        }
    }

    /// A new length is durable at once; what is in the cache goes with it, for simplicity.
    fn resize(&mut self, len_bytes: u64) {
        for cached in self.cached.drain(..) {
            cached.change.apply(&mut self.durable);
        }
        self.durable.resize(len_bytes);
        self.current.resize(len_bytes);
    }

    /// What a power cut could leave. Seed 0: nothing unflushed; seed 1: everything, also what is in
    /// flight; others: a subset, drawn by write, by page or by sector.
    pub(crate) fn cut(&self, seed: u64) -> Image {
        let mut random = Random::new(seed);
        let cached = self.cached.iter();
        let cached = cached.map(|cached| (&cached.change, cached.durable));
        let in_flight = self.in_flight.values().map(|change| (change, false));
        self.lose(
            self.durable.clone(),
            seed,
            &mut random,
            cached.chain(in_flight),
        )
    }

    /// What the end of the program alone could leave, the device having power still: all that has completed,
    /// and of what is in flight what a power cut with this seed would.
    pub(crate) fn killed(&self, seed: u64) -> Image {
        let mut random = Random::new(seed);
        let in_flight = self.in_flight.values().map(|change| (change, false));
        self.lose(self.current.clone(), seed, &mut random, in_flight)
    }

    /// The image with those of the changes that survive, and those that are durable.
    fn lose<'a>(
        &self,
        mut image: Image,
        seed: u64,
        random: &mut Random,
        changes: impl Iterator<Item = (&'a Change, bool)>,
    ) -> Image {
        let share = match seed {
            0 => 0,
            1 => 256,
            _ => [16, 64, 128, 128, 192, 240][random.below(6) as usize],
        };
        let granule = [self.tear_bytes, self.tear_bytes, 4096, u64::MAX][random.below(4) as usize];
        for (change, durable) in changes {
            let mut last = None;
            let mut survives = |at: u64| {
                let place = at / granule;
                let drawn = match last {
                    Some((previous, drawn)) if previous == place => drawn,
                    _ => random.chance(share),
                };
                last = Some((place, drawn));
                durable || drawn
            };
            // In flight at a shrink: what lies beyond the end goes nowhere.
            if change_end(change) <= image.len_bytes() {
                change.apply_torn(&mut image, self.tear_bytes, &mut survives);
            }
        }
        image
    }
}

fn change_end(change: &Change) -> u64 {
    match change {
        Change::Write { offset, data } => offset + data.len() as u64,
        Change::Zero { range } => range.end,
    }
}
