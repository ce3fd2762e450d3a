//! The parts of a namespace that a run uses, each as long as an I/O.

use super::pattern::mix;

/// Most units of a verified run: their generations take 4 bytes each.
pub(crate) const MAX_VERIFIED_UNITS: u64 = 1 << 26;
/// Random places looked at before the next free one is taken.
const RANDOM_TRIES: usize = 16;

/// Which unit is next, and with verification what each holds.
#[derive(Debug)]
pub(crate) struct Units {
    count: u64,
    is_random: bool,
    next: u64,
    random: u64,
    verified: Option<Verified>,
}

#[derive(Debug)]
struct Verified {
    /// Writes of each unit so far.
    generations: Vec<u32>,
    /// One bit for each unit that has an I/O outstanding.
    busy: Vec<u64>,
}

impl Units {
    /// `count` is not 0.
    pub(crate) fn new(count: u64, is_random: bool, seed: u64, verify: bool) -> Self {
        let verified = verify.then(|| Verified {
            generations: vec![0; count as usize],
            busy: vec![0; count.div_ceil(64) as usize],
        });
        Self {
            count,
            is_random,
            next: 0,
            random: seed,
            verified,
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// A random number below `bound`.
    #[inline]
    pub(crate) fn random_below(&mut self, bound: u64) -> u64 {
        let product = u128::from(mix(&mut self.random)) * u128::from(bound);
        (product >> 64) as u64
    }

    /// The next unit. `None` while each has an I/O outstanding, which verification cannot have
    /// twice.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<u64> {
        if self.verified.is_some() {
            return self.take_idle();
        }
        Some(if self.is_random {
            self.random_below(self.count)
        } else {
            self.step()
        })
    }

    /// The next unit in order, whatever the workload; for filling.
    pub(crate) fn take_at(&mut self, unit: u64) {
        if let Some(verified) = &mut self.verified {
            verified.set_busy(unit, true);
        }
    }

    /// The I/O of a unit has ended.
    #[inline]
    pub(crate) fn release(&mut self, unit: u64) {
        if let Some(verified) = &mut self.verified {
            verified.set_busy(unit, false);
        }
    }

    /// Which write of a unit is there; 0: none of this run.
    pub(crate) fn generation(&self, unit: u64) -> u32 {
        self.verified
            .as_ref()
            .map_or(0, |verified| verified.generations[unit as usize])
    }

    /// A write of a unit begins; gives its generation.
    pub(crate) fn begin_write(&mut self, unit: u64) -> u32 {
        let Some(verified) = &mut self.verified else {
            return 0;
        };
        let generation = &mut verified.generations[unit as usize];
        *generation = generation.wrapping_add(1).max(1);
        *generation
    }

    fn step(&mut self) -> u64 {
        let unit = self.next;
        self.next = if unit + 1 < self.count { unit + 1 } else { 0 };
        unit
    }

    fn take_idle(&mut self) -> Option<u64> {
        let mut unit = 0;
        for _ in 0..RANDOM_TRIES {
            unit = if self.is_random {
                self.random_below(self.count)
            } else {
                self.step()
            };
            let verified = self.verified.as_mut()?;
            if !verified.is_busy(unit) {
                verified.set_busy(unit, true);
                return Some(unit);
            }
        }
        let count = self.count;
        let verified = self.verified.as_mut()?;
        let found = (unit..count)
            .chain(0..unit)
            .find(|&unit| !verified.is_busy(unit))?;
        verified.set_busy(found, true);
        Some(found)
    }
}

impl Verified {
    fn is_busy(&self, unit: u64) -> bool {
        self.busy[(unit / 64) as usize] >> (unit % 64) & 1 == 1
    }

    fn set_busy(&mut self, unit: u64, busy: bool) {
        let word = &mut self.busy[(unit / 64) as usize];
        let bit = 1 << (unit % 64);
        if busy {
            *word |= bit;
        } else {
            *word &= !bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verified_units_are_never_taken_twice() {
        for is_random in [false, true] {
            let mut units = Units::new(70, is_random, 3, true);
            let mut taken: Vec<u64> = (0..70).map(|_| units.take().unwrap()).collect();
            taken.sort_unstable();
            assert_eq!(taken, (0..70).collect::<Vec<_>>());
            assert_eq!(units.take(), None);
            units.release(33);
            assert_eq!(units.take(), Some(33));
        }
    }

    #[test]
    fn sequential_units_wrap_around() {
        let mut units = Units::new(3, false, 0, false);
        let taken: Vec<_> = (0..5).map(|_| units.take().unwrap()).collect();
        assert_eq!(taken, [0, 1, 2, 0, 1]);
    }

    #[test]
    fn random_units_are_in_range_and_differ() {
        let mut units = Units::new(1000, true, 1, false);
        let mut taken: Vec<_> = (0..500).map(|_| units.take().unwrap()).collect();
        assert!(taken.iter().all(|&unit| unit < 1000));
        taken.sort_unstable();
        taken.dedup();
        assert!(taken.len() > 300);
    }
}
