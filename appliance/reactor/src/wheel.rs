//! A hierarchical timer wheel with exact deadlines.
//!
//! Time is a count of nanoseconds that the caller passes in; the wheel never reads a clock. A slot
//! of the lowest level spans 2^10 ns, a slot of each further level 64 times as much, and the nine
//! levels span all of `u64`. Slots only find timers quickly: each timer keeps its deadline to the
//! nanosecond and never expires before it.
//!
//! Insert and cancel are O(1). [`TimerWheel::advance`] touches a timer once per level at most.

const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const TICK_SHIFT: u32 = 10;
const LEVELS: usize = (u64::BITS - TICK_SHIFT).div_ceil(SLOT_BITS) as usize;
const NIL: u32 = u32::MAX;

/// Names one timer of one wheel, also after it has expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerKey {
    index: u32,
    generation: u32,
}

#[derive(Debug)]
struct Entry<T> {
    deadline_ns: u64,
    order: u64,
    /// `None` while the entry is on the free list.
    value: Option<T>,
    generation: u32,
    /// Slot that the entry is linked into, as `level * SLOTS + slot`.
    place: u32,
    previous: u32,
    next: u32,
}

/// Timers by deadline. See the module.
#[derive(Debug)]
pub struct TimerWheel<T> {
    entries: Vec<Entry<T>>,
    free: u32,
    len: usize,
    heads: Box<[u32]>,
    /// A bit per slot: whether its list has an entry.
    occupied: [u64; LEVELS],
    /// All timers of ticks before this one have expired.
    current_tick: u64,
    /// No timer is due before this time; exact when `earliest_is_exact`.
    earliest_ns: u64,
    earliest_is_exact: bool,
    inserted: u64,
    due: Vec<(u64, u64, T)>,
}

impl<T> Default for TimerWheel<T> {
    fn default() -> TimerWheel<T> {
        TimerWheel::new()
    }
}

impl<T> TimerWheel<T> {
    /// A wheel without timers, at time 0.
    pub fn new() -> TimerWheel<T> {
        TimerWheel {
            entries: Vec::new(),
            free: NIL,
            len: 0,
            heads: vec![NIL; LEVELS * SLOTS].into_boxed_slice(),
            occupied: [0; LEVELS],
            current_tick: 0,
            earliest_ns: u64::MAX,
            earliest_is_exact: true,
            inserted: 0,
            due: Vec::new(),
        }
    }

    /// Number of timers that have neither expired nor been cancelled.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no timer.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a timer. One with a deadline in the past expires at the next [`TimerWheel::advance`].
    ///
    /// # Panics
    /// With 2^32 - 1 timers at once: the caller bounds them far below.
    pub fn insert(&mut self, deadline_ns: u64, value: T) -> TimerKey {
        let order = self.inserted;
        self.inserted += 1;
        self.len += 1;
        let index = self.take_entry(deadline_ns, order, value);
        self.link(index);
        if deadline_ns < self.earliest_ns {
            self.earliest_ns = deadline_ns;
            self.earliest_is_exact = true;
        }
        TimerKey {
            index,
            generation: self.entries[index as usize].generation,
        }
    }

    /// Removes a timer; `None` when it has expired or was cancelled before.
    pub fn cancel(&mut self, key: TimerKey) -> Option<T> {
        let entry = self.entries.get(key.index as usize)?;
        if entry.generation != key.generation || entry.value.is_none() {
            return None;
        }
        // A bound that was exact may be too early now; it never is too late.
        self.earliest_is_exact &= entry.deadline_ns != self.earliest_ns;
        self.unlink(key.index);
        self.release(key.index)
    }

    /// Hands every timer with a deadline of at most `now_ns` to `expired`, in order of deadline,
    /// those of one deadline in order of insertion. A `now_ns` before an earlier one does nothing.
    pub fn advance(&mut self, now_ns: u64, mut expired: impl FnMut(u64, T)) {
        if !self.may_be_due(now_ns) {
            return;
        }
        let mut due = std::mem::take(&mut self.due);
        self.collect_due(now_ns, &mut due);
        self.earliest_ns = self.scan_earliest();
        self.earliest_is_exact = true;
        due.sort_unstable_by_key(|(deadline_ns, order, _)| (*deadline_ns, *order));
        for (deadline_ns, _, value) in due.drain(..) {
            expired(deadline_ns, value);
        }
        self.due = due;
    }

    /// Whether [`TimerWheel::advance`] could find a timer: one comparison, for each turn of a loop.
    #[inline]
    pub fn may_be_due(&self, now_ns: u64) -> bool {
        now_ns >= self.earliest_ns && self.len > 0
    }

    /// The earliest deadline. Costs a walk over one slot after the earliest timer was cancelled.
    pub fn next_deadline(&mut self) -> Option<u64> {
        if self.len == 0 {
            return None;
        }
        if !self.earliest_is_exact {
            self.earliest_ns = self.scan_earliest();
            self.earliest_is_exact = true;
        }
        Some(self.earliest_ns)
    }

    fn collect_due(&mut self, now_ns: u64, due: &mut Vec<(u64, u64, T)>) {
        let now_tick = now_ns >> TICK_SHIFT;
        while let Some((level, slot)) = self.first_occupied() {
            let slot_start = self.slot_start(level, slot);
            if slot_start > now_tick {
                break;
            }
            self.current_tick = self.current_tick.max(slot_start);
            let place = level * SLOTS + slot;
            let mut index = std::mem::replace(&mut self.heads[place], NIL);
            self.occupied[level] &= !(1 << slot);
            while index != NIL {
                let entry = &self.entries[index as usize];
                let (deadline_ns, order, next) = (entry.deadline_ns, entry.order, entry.next);
                if deadline_ns <= now_ns {
                    let value = self.release(index);
                    due.extend(value.map(|value| (deadline_ns, order, value)));
                } else {
                    self.link(index);
                }
                index = next;
            }
            if level == 0 && slot_start == now_tick {
                // What was linked again into this slot is due later within the tick.
                break;
            }
        }
        // Every timer left is in a later slot of its level, so its level stays right.
        self.current_tick = self.current_tick.max(now_tick);
    }

    /// Levels are ordered: all timers of a level are due before those of the next one. Within a
    /// level no slot lies before the current time, so the lowest bit is the first slot.
    fn first_occupied(&self) -> Option<(usize, usize)> {
        let level = self.occupied.iter().position(|bits| *bits != 0)?;
        Some((level, self.occupied[level].trailing_zeros() as usize))
    }

    fn slot_start(&self, level: usize, slot: usize) -> u64 {
        let shift = level as u32 * SLOT_BITS;
        let above = match (u64::MAX).checked_shl(shift + SLOT_BITS) {
            Some(mask) => self.current_tick & mask,
            None => 0,
        };
        above | ((slot as u64) << shift)
    }

    fn scan_earliest(&self) -> u64 {
        let Some((level, slot)) = self.first_occupied() else {
            return u64::MAX;
        };
        let mut earliest_ns = u64::MAX;
        let mut index = self.heads[level * SLOTS + slot];
        while index != NIL {
            let entry = &self.entries[index as usize];
            earliest_ns = earliest_ns.min(entry.deadline_ns);
            index = entry.next;
        }
        earliest_ns
    }

    fn link(&mut self, index: u32) {
        let tick = (self.entries[index as usize].deadline_ns >> TICK_SHIFT).max(self.current_tick);
        let differing_bits = u64::BITS - (tick ^ self.current_tick).leading_zeros();
        let level = (differing_bits.saturating_sub(1) / SLOT_BITS) as usize;
        let slot = (tick >> (level as u32 * SLOT_BITS)) as usize % SLOTS;
        let place = level * SLOTS + slot;
        let head = std::mem::replace(&mut self.heads[place], index);
        if head != NIL {
            self.entries[head as usize].previous = index;
        }
        self.occupied[level] |= 1 << slot;
        let entry = &mut self.entries[index as usize];
        entry.place = place as u32;
        entry.previous = NIL;
        entry.next = head;
    }

    fn unlink(&mut self, index: u32) {
        let entry = &self.entries[index as usize];
        let (place, previous, next) = (entry.place as usize, entry.previous, entry.next);
        if next != NIL {
            self.entries[next as usize].previous = previous;
        }
        if previous != NIL {
            self.entries[previous as usize].next = next;
        } else {
            self.heads[place] = next;
            if next == NIL {
                self.occupied[place / SLOTS] &= !(1 << (place % SLOTS));
            }
        }
    }

    fn take_entry(&mut self, deadline_ns: u64, order: u64, value: T) -> u32 {
        if self.free != NIL {
            let index = self.free;
            let entry = &mut self.entries[index as usize];
            self.free = entry.next;
            entry.deadline_ns = deadline_ns;
            entry.order = order;
            entry.value = Some(value);
            return index;
        }
        let index = u32::try_from(self.entries.len())
            .ok()
            .filter(|index| *index != NIL);
        let index = index.expect("the caller bounds its timers far below 2^32");
        self.entries.push(Entry {
            deadline_ns,
            order,
            value: Some(value),
            generation: 0,
            place: 0,
            previous: NIL,
            next: NIL,
        });
        index
    }

    fn release(&mut self, index: u32) -> Option<T> {
        self.len -= 1;
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.next = std::mem::replace(&mut self.free, index);
        entry.value.take()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn expire<T>(wheel: &mut TimerWheel<T>, now_ns: u64) -> Vec<(u64, T)> {
        let mut expired = Vec::new();
        wheel.advance(now_ns, |deadline_ns, value| {
            expired.push((deadline_ns, value));
        });
        expired
    }

    #[test]
    fn a_timer_expires_at_its_nanosecond_and_not_before() {
        let mut wheel = TimerWheel::new();
        for deadline_ns in [0, 1, 1023, 1024, 1025, 1 << 20, (1 << 40) + 7, u64::MAX] {
            wheel.insert(deadline_ns, ());
            assert_eq!(wheel.next_deadline(), Some(deadline_ns));
            if deadline_ns > 0 && deadline_ns > wheel.current_tick << TICK_SHIFT {
                assert_eq!(expire(&mut wheel, deadline_ns - 1), []);
            }
            assert_eq!(expire(&mut wheel, deadline_ns), [(deadline_ns, ())]);
            assert!(wheel.is_empty());
            assert_eq!(wheel.next_deadline(), None);
        }
    }

    #[test]
    fn a_deadline_in_the_past_expires_at_the_next_advance() {
        let mut wheel = TimerWheel::new();
        assert_eq!(expire(&mut wheel, 1 << 30), []);
        wheel.insert(5, "late");
        assert_eq!(wheel.next_deadline(), Some(5));
        assert_eq!(expire(&mut wheel, 1 << 30), [(5, "late")]);
    }

    #[test]
    fn a_key_is_dead_after_expiry_and_cancel() {
        let mut wheel = TimerWheel::new();
        let first = wheel.insert(10, 1);
        assert_eq!(wheel.cancel(first), Some(1));
        assert_eq!(wheel.cancel(first), None);
        let second = wheel.insert(10, 2);
        assert_eq!(
            wheel.cancel(first),
            None,
            "the entry is another timer's now"
        );
        assert_eq!(expire(&mut wheel, 10), [(10, 2)]);
        assert_eq!(wheel.cancel(second), None);
    }

    #[test]
    fn entries_are_reused() {
        let mut wheel = TimerWheel::new();
        for now_ns in (0..1_000_000).step_by(1000) {
            wheel.insert(now_ns + 500, ());
            assert_eq!(expire(&mut wheel, now_ns + 500).len(), 1);
        }
        assert_eq!(wheel.entries.len(), 1);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert { after_ns: u64 },
        InsertAt { deadline_ns: u64 },
        Cancel { pick: usize },
        Advance { by_ns: u64 },
        AdvanceToNext,
    }

    fn span() -> impl Strategy<Value = u64> {
        // Every magnitude alike, so that all levels take part.
        (0u32..64, any::<u64>()).prop_map(|(bits, value)| value >> bits)
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => span().prop_map(|after_ns| Step::Insert { after_ns }),
            1 => span().prop_map(|deadline_ns| Step::InsertAt { deadline_ns }),
            3 => any::<usize>().prop_map(|pick| Step::Cancel { pick }),
            2 => (0u64..100_000).prop_map(|by_ns| Step::Advance { by_ns }),
            2 => span().prop_map(|by_ns| Step::Advance { by_ns: by_ns >> 8 }),
            2 => Just(Step::AdvanceToNext),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn behaves_as_a_sorted_map(steps in proptest::collection::vec(step(), 1..200)) {
            let mut wheel = TimerWheel::new();
            let mut model = BTreeMap::new();
            let mut keys = Vec::new();
            let mut now_ns = 0u64;
            for (id, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Insert { after_ns } => {
                        let deadline_ns = now_ns.saturating_add(after_ns);
                        keys.push((wheel.insert(deadline_ns, id), (deadline_ns, id)));
                        model.insert((deadline_ns, id), ());
                    }
                    Step::InsertAt { deadline_ns } => {
                        keys.push((wheel.insert(deadline_ns, id), (deadline_ns, id)));
                        model.insert((deadline_ns, id), ());
                    }
                    Step::Cancel { pick } if !keys.is_empty() => {
                        let (key, at) = keys[pick % keys.len()];
                        let was_there = model.remove(&at).is_some();
                        prop_assert_eq!(wheel.cancel(key), was_there.then_some(at.1));
                    }
                    Step::Cancel { .. } => {}
                    Step::Advance { by_ns } => now_ns = now_ns.saturating_add(by_ns),
                    Step::AdvanceToNext => now_ns = now_ns.max(
                        model.keys().next().map_or(now_ns, |(deadline_ns, _)| *deadline_ns),
                    ),
                }
                let later = model.split_off(&(now_ns, usize::MAX));
                let due: Vec<_> = std::mem::replace(&mut model, later).into_keys().collect();
                prop_assert_eq!(expire(&mut wheel, now_ns), due);
                prop_assert_eq!(wheel.len(), model.len());
                prop_assert_eq!(wheel.next_deadline(), model.keys().next().map(|at| at.0));
            }
        }
    }
}
