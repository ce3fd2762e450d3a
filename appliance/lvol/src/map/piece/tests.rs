#![expect(clippy::unwrap_used, reason = "what fails here fails its test")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use proptest::prelude::*;

use super::*;

const CLUSTER_SIZE: u64 = 64 << 10;
const GRANULES: u16 = 16;

fn granularity() -> Granularity {
    Granularity::new(CLUSTER_SIZE).unwrap()
}

fn piece() -> Piece {
    Piece::new(granularity())
}

fn cluster(number: u64) -> Cluster {
    Cluster::new(number).unwrap()
}

fn set(start: u16, end: u16) -> Granules {
    GranuleRange::new(start, end).into()
}

fn runs(piece: &Piece, slot: usize) -> Vec<(u16, u16, Source)> {
    piece
        .look_runs(slot, granularity().whole())
        .map(|(range, source)| (range.start, range.end, source))
        .collect()
}

fn first_write(piece: &Piece, slot: usize, number: u64, granules: Granules) -> Change {
    assert!(piece.lock(slot, granules));
    let _ = piece.allocate(slot, cluster(number));
    piece.complete_write(slot, granules)
}

#[test]
fn empty_slot_is_all_parent() {
    let piece = piece();
    assert_eq!(runs(&piece, 5), [(0, 16, Source::Parent)]);
    assert!(piece.is_empty() && !piece.is_dirty());
    assert!(piece.bitmaps.get().is_none());
}

#[test]
fn granule_is_written_only_after_the_write_completed() {
    let piece = piece();
    assert!(piece.lock(3, set(2, 5)));
    assert_eq!(piece.allocate(3, cluster(9)), Ok(()));
    assert_eq!(runs(&piece, 3), [(0, 16, Source::Parent)]);
    assert_eq!(piece.snapshot_slot(3), SlotContent::Empty);
    let change = piece.complete_write(3, set(2, 5));
    assert_eq!(
        change,
        Change {
            freed: None,
            covers: false,
            queue: true
        }
    );
    let own = Source::Own(cluster(9));
    assert_eq!(
        runs(&piece, 3),
        [(0, 2, Source::Parent), (2, 5, own), (5, 16, Source::Parent)]
    );
    assert_eq!(runs(&piece, 2), [(0, 16, Source::Parent)]);
}

#[test]
fn slot_turns_full_with_its_last_granule() {
    let piece = piece();
    assert!(first_write(&piece, 0, 7, set(0, 15)).queue);
    let change = first_write(&piece, 0, 8, set(15, 16));
    assert_eq!(
        change,
        Change {
            freed: None,
            covers: true,
            queue: false
        }
    );
    assert_eq!(piece.look(0), Look::Whole(Source::Own(cluster(7))));
    assert_eq!(piece.snapshot_slot(0), SlotContent::Full(cluster(7)));
}

#[test]
fn lock_takes_all_granules_or_none() {
    let piece = piece();
    assert!(piece.lock(0, set(4, 8)));
    assert!(!piece.lock(0, set(0, 5)));
    assert!(piece.lock(0, set(0, 4)));
    assert_eq!(piece.unlock(0, set(4, 8)), Change::default());
    assert!(piece.lock(0, set(4, 8)));
}

#[test]
fn loser_of_an_allocation_learns_the_winner() {
    let piece = piece();
    assert!(piece.lock(0, set(0, 1)) && piece.lock(0, set(1, 2)));
    assert_eq!(piece.allocate(0, cluster(4)), Ok(()));
    assert_eq!(piece.allocate(0, cluster(5)), Err(cluster(4)));
}

#[test]
fn failed_first_write_gives_its_cluster_back() {
    let piece = piece();
    assert!(piece.lock(0, set(0, 1)) && piece.lock(0, set(1, 2)));
    piece.allocate(0, cluster(4)).unwrap();
    assert_eq!(
        piece.unlock(0, set(0, 1)).freed,
        None,
        "another write is on its way to it"
    );
    assert_eq!(piece.unlock(0, set(1, 2)).freed, Some(cluster(4)));
    assert!(piece.is_empty() && !piece.is_dirty());
}

#[test]
fn zero_without_a_parent_empties_and_frees() {
    let piece = piece();
    let _ = first_write(&piece, 0, 4, set(0, 16));
    assert!(piece.mark_clean());
    let change = piece.zero(0, set(0, 8), false).unwrap();
    assert_eq!(
        change,
        Change {
            freed: None,
            covers: false,
            queue: true
        }
    );
    let change = piece.zero(0, set(8, 16), false).unwrap();
    assert_eq!(
        change,
        Change {
            freed: Some(cluster(4)),
            covers: false,
            queue: false
        }
    );
    assert!(piece.is_empty());
}

#[test]
fn zero_hides_the_parent_without_a_cluster() {
    let piece = piece();
    assert_eq!(piece.zero(0, set(3, 6), true).unwrap().freed, None);
    assert_eq!(
        runs(&piece, 0),
        [
            (0, 3, Source::Parent),
            (3, 6, Source::Zero),
            (6, 16, Source::Parent)
        ]
    );
    assert!(piece.zero(0, set(0, 16), true).unwrap().covers);
    assert_eq!(piece.look(0), Look::Whole(Source::Zero));
    let _ = first_write(&piece, 0, 4, set(1, 2));
    assert_eq!(
        runs(&piece, 0),
        [
            (0, 1, Source::Zero),
            (1, 2, Source::Own(cluster(4))),
            (2, 16, Source::Zero)
        ]
    );
}

#[test]
fn zero_of_what_is_zero_leaves_the_piece_clean() {
    let piece = piece();
    assert_eq!(piece.zero(0, set(0, 16), false).unwrap(), Change::default());
    assert!(!piece.is_dirty());
}

#[test]
fn zero_waits_for_a_first_write() {
    let piece = piece();
    assert!(piece.lock(0, set(3, 4)));
    piece.allocate(0, cluster(4)).unwrap();
    assert_eq!(piece.zero(0, set(0, 16), true), Err(Busy));
    assert_eq!(piece.zero(0, set(4, 16), true).unwrap().freed, None);
    let _ = piece.complete_write(0, set(3, 4));
    assert_eq!(
        piece.zero(0, set(0, 16), true).unwrap().freed,
        Some(cluster(4))
    );
}

#[test]
fn zeroes_of_what_is_missing_leave_what_was_written_meanwhile() {
    let piece = piece();
    assert!(piece.lock(0, set(0, 4)));
    assert_eq!(piece.zero_missing(0, set(2, 8)), Err(Busy));
    piece.allocate(0, cluster(9)).unwrap();
    let _ = piece.complete_write(0, set(0, 4));
    let change = piece.zero_missing(0, set(2, 12)).unwrap();
    assert_eq!((change.freed, change.covers), (None, false));
    assert_eq!(piece.look(0).source(3), Source::Own(cluster(9)));
    assert_eq!(piece.look(0).source(4), Source::Zero);
    assert_eq!(piece.look(0).source(12), Source::Parent);
}

#[test]
fn content_moves_between_layers() {
    let (parent, child) = (piece(), piece());
    let _ = first_write(&parent, 0, 4, set(3, 4));
    let _ = parent.zero(0, set(4, 5), true).unwrap();
    let content = parent.snapshot_slot(0);
    assert!(child.give(0, &content).unwrap().queue);
    assert_eq!(
        child.give(0, &content),
        Err(PieceError::NotEmpty { slot: 0 })
    );
    assert_eq!(runs(&child, 0), runs(&parent, 0));
    assert_eq!(parent.take(0).unwrap().0, content);
    assert!(parent.is_empty());
    assert_eq!(child.snapshot_slot(0), content);
}

#[test]
fn locked_slot_is_neither_taken_nor_given_to() {
    let piece = piece();
    assert!(piece.lock(0, set(3, 4)));
    assert_eq!(piece.take(0), Err(Busy));
    assert_eq!(
        piece.give(0, &SlotContent::Zero),
        Err(PieceError::Busy { slot: 0 })
    );
}

#[test]
fn contradictory_content_is_rejected() {
    let bad = [
        (Some(cluster(1)), set(0, 2), set(1, 3)),
        (None, set(0, 2), Granules::NONE),
        (Some(cluster(1)), Granules::NONE, set(0, 1)),
        (Some(cluster(1)), set(0, 17), Granules::NONE),
        (None, Granules::NONE, set(200, 256)),
    ];
    for (cluster, written, zero) in bad {
        let content = SlotContent::Partial {
            cluster,
            written,
            zero,
        };
        let error = PieceError::Contradiction { slot: 1 };
        let contents = [SlotContent::Empty, content];
        assert_eq!(
            Piece::from_contents(granularity(), &contents).unwrap_err(),
            error
        );
        assert_eq!(piece().give(1, &content), Err(error));
    }
    let error = Piece::from_contents(granularity(), &[SlotContent::Zero; 129]).unwrap_err();
    assert_eq!(error, PieceError::TooManySlots { contents: 129 });
}

#[test]
fn loaded_piece_says_what_was_encoded() {
    let contents: Vec<_> = (0..PIECE_SLOTS as u64)
        .map(|slot| match slot % 5 {
            0 => SlotContent::Empty,
            1 => SlotContent::Full(cluster(slot + Cluster::MAX - 200)),
            2 => SlotContent::Zero,
            3 => SlotContent::Partial {
                cluster: None,
                written: set(0, 0),
                zero: set(0, 3),
            },
            _ => SlotContent::Partial {
                cluster: Some(cluster(slot)),
                written: set(2, 7),
                zero: set(9, 16),
            },
        })
        .collect();
    let piece = Piece::from_contents(granularity(), &contents).unwrap();
    assert!(!piece.is_dirty());
    let encoded: Vec<_> = (0..PIECE_SLOTS)
        .map(|slot| piece.snapshot_slot(slot))
        .collect();
    assert_eq!(encoded, contents);
}

#[test]
fn piece_of_full_and_empty_slots_has_no_bitmaps() {
    let contents = [
        SlotContent::Full(cluster(1)),
        SlotContent::Zero,
        SlotContent::Empty,
    ];
    let piece = Piece::from_contents(granularity(), &contents).unwrap();
    assert_eq!(piece.look(0), Look::Whole(Source::Own(cluster(1))));
    assert!(piece.bitmaps.get().is_none());
}

#[test]
fn dirty_piece_is_queued_once_per_commit() {
    let piece = piece();
    assert!(piece.mark_dirty());
    assert!(!piece.mark_dirty());
    assert!(piece.mark_clean());
    assert!(!piece.mark_clean());
    assert!(piece.mark_dirty());
}

#[test]
fn header_is_not_a_cluster() {
    assert_eq!(Cluster::new(0), None);
    assert_eq!(Cluster::new(Cluster::MAX + 1), None);
    assert_eq!(Cluster::new(Cluster::MAX).unwrap().get(), Cluster::MAX);
}

/// What one granule of the plain model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Absent,
    Written,
    Zero,
}

#[derive(Debug)]
struct Model {
    cluster: Option<u64>,
    is: [Is; GRANULES as usize],
    locked: [bool; GRANULES as usize],
    next_cluster: u64,
}

impl Model {
    fn source(&self, granule: u16) -> Source {
        match self.is[usize::from(granule)] {
            Is::Absent => Source::Parent,
            Is::Zero => Source::Zero,
            Is::Written => Source::Own(cluster(self.cluster.unwrap())),
        }
    }

    fn release(&mut self) -> Option<Cluster> {
        let used = self.is.contains(&Is::Written) || self.locked.contains(&true);
        if used {
            None
        } else {
            self.cluster.take().map(cluster)
        }
    }

    fn covers(&self) -> bool {
        !self.is.contains(&Is::Absent)
    }
}

#[derive(Debug, Clone)]
enum Step {
    Lock(u16, u16),
    Complete(u16, u16),
    Unlock(u16, u16),
    Zero(u16, u16, bool),
    TakeAndGive,
    Reload,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ends = || (0..GRANULES, 1..=GRANULES).prop_map(|(a, b)| (a.min(b - 1), b.max(a + 1)));
    let step = prop_oneof![
        4 => ends().prop_map(|(a, b)| Step::Lock(a, b)),
        4 => ends().prop_map(|(a, b)| Step::Complete(a, b)),
        1 => ends().prop_map(|(a, b)| Step::Unlock(a, b)),
        3 => (ends(), any::<bool>()).prop_map(|((a, b), parent)| Step::Zero(a, b, parent)),
        1 => Just(Step::TakeAndGive),
        1 => Just(Step::Reload),
    ];
    prop::collection::vec(step, 1..60)
}

fn run_step(step: &Step, piece: &mut Piece, model: &mut Model) {
    match *step {
        Step::Lock(a, b) => {
            let range = usize::from(a)..usize::from(b);
            let free = !model.locked[range.clone()].contains(&true);
            assert_eq!(piece.lock(0, set(a, b)), free);
            if free {
                model.locked[range].fill(true);
                let number = model.next_cluster;
                model.next_cluster += 1;
                let expected = model.cluster.map_or(Ok(()), |winner| Err(cluster(winner)));
                assert_eq!(piece.allocate(0, cluster(number)), expected);
                model.cluster.get_or_insert(number);
            }
        }
        Step::Complete(a, b) => {
            let mut granules = Granules::NONE;
            for granule in (a..b).filter(|granule| model.locked[usize::from(*granule)]) {
                granules.set(granule);
            }
            if granules.is_empty() {
                return;
            }
            for granule in (a..b).filter(|granule| granules.test(*granule)) {
                model.is[usize::from(granule)] = Is::Written;
                model.locked[usize::from(granule)] = false;
            }
            let queue = !piece.is_dirty();
            let expected = Change {
                freed: None,
                covers: model.covers(),
                queue,
            };
            assert_eq!(piece.complete_write(0, granules), expected);
        }
        Step::Unlock(a, b) => {
            model.locked[usize::from(a)..usize::from(b)].fill(false);
            let freed = model.release();
            let expected = Change {
                freed,
                covers: model.covers(),
                queue: false,
            };
            assert_eq!(piece.unlock(0, set(a, b)), expected);
        }
        Step::Zero(a, b, has_parent) => {
            let range = usize::from(a)..usize::from(b);
            let result = piece.zero(0, set(a, b), has_parent);
            if model.locked[range.clone()].contains(&true) {
                assert_eq!(result, Err(Busy));
                return;
            }
            model.is[range].fill(if has_parent { Is::Zero } else { Is::Absent });
            let change = result.unwrap();
            assert_eq!(
                (change.freed, change.covers),
                (model.release(), model.covers())
            );
        }
        Step::TakeAndGive => {
            let content = piece.snapshot_slot(0);
            if model.locked.contains(&true) {
                assert_eq!(piece.take(0), Err(Busy));
            } else {
                assert_eq!(piece.take(0).unwrap().0, content);
                assert_eq!(piece.look(0), Look::Whole(Source::Parent));
                let _ = piece.give(0, &content).unwrap();
            }
        }
        Step::Reload => {
            // A restart: locks and clusters without data are gone.
            *piece = Piece::from_contents(granularity(), &[piece.snapshot_slot(0)]).unwrap();
            model.locked.fill(false);
            let _ = model.release();
        }
    }
}

proptest! {
    #[test]
    fn slot_does_as_the_plain_model(steps in steps()) {
        let mut piece = piece();
        let mut model = Model {
            cluster: None,
            is: [Is::Absent; GRANULES as usize],
            locked: [false; GRANULES as usize],
            next_cluster: 1,
        };
        for step in &steps {
            run_step(step, &mut piece, &mut model);
            let look = piece.look(0);
            for granule in 0..GRANULES {
                prop_assert_eq!(look.source(granule), model.source(granule));
            }
            prop_assert_eq!(look.cluster().map(Cluster::get), model.cluster);
            let all = model.is.iter().all(|is| *is == Is::Written);
            prop_assert_eq!(matches!(look, Look::Whole(Source::Own(_))), all);
            let content = piece.snapshot_slot(0);
            let written = model.is.contains(&Is::Written);
            prop_assert_eq!(content.cluster().is_some(), written);
        }
    }
}

/// Memory in place of the base device: for each (cluster, granule), was its write completed?
struct Data(Vec<AtomicBool>);

impl Data {
    fn at(&self, cluster: Cluster, granule: u16) -> &AtomicBool {
        &self.0[cluster.get() as usize * usize::from(GRANULES) + usize::from(granule)]
    }
}

/// First writes, zeroes and looks of one slot from several threads. Every cluster is used once, so
/// that a pair of an entry and another one's bitmap names granules that were never written.
#[test]
fn looks_never_see_unwritten_granules_nor_torn_pairs() {
    const WRITERS: u64 = 3;
    const ROUNDS: u64 = 20_000;
    let clusters = WRITERS * ROUNDS + 1;
    let cells = clusters * u64::from(GRANULES);
    let data = Data((0..cells).map(|_| AtomicBool::new(false)).collect());
    let piece = piece();
    let (freed, used, busy) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let running = AtomicU64::new(WRITERS);
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (piece, data, freed, used, busy) = (&piece, &data, &freed, &used, &busy);
            let running = &running;
            scope.spawn(move || {
                let mut random = writer * 7919 + 1;
                for round in 0..ROUNDS {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let start = (random >> 33) as u16 % GRANULES;
                    let end = start + 1 + (random >> 45) as u16 % (GRANULES - start);
                    let granules = set(start, end);
                    if random >> 61 == 0 {
                        match piece.zero(0, granules, random >> 60 & 1 == 0) {
                            Ok(change) => count(freed, change.freed.is_some()),
                            Err(Busy) => count(busy, true),
                        }
                        continue;
                    }
                    if !piece.lock(0, granules) {
                        count(busy, true);
                        continue;
                    }
                    let own = cluster(writer * ROUNDS + round + 1);
                    let mine = piece.allocate(0, own);
                    count(used, mine.is_ok());
                    let target = mine.err().unwrap_or(own);
                    assert_eq!(
                        piece.look(0).cluster(),
                        Some(target),
                        "a lock keeps the cluster"
                    );
                    if random >> 58 & 7 == 0 {
                        count(freed, piece.unlock(0, granules).freed.is_some());
                        continue;
                    }
                    for granule in start..end {
                        data.at(target, granule).store(true, Ordering::Relaxed);
                    }
                    let _ = piece.complete_write(0, granules);
                }
                running.fetch_sub(1, Ordering::Release);
            });
        }
        scope.spawn(|| {
            while running.load(Ordering::Acquire) > 0 {
                check(&piece.look(0), &data);
                let content = piece.snapshot_slot(0);
                assert!(
                    State::from_content(&content, piece.whole).is_some(),
                    "{content:?}"
                );
                thread::yield_now();
            }
        });
    });
    let left = u64::from(piece.look(0).cluster().is_some());
    assert_eq!(
        used.into_inner(),
        freed.into_inner() + left,
        "every cluster is freed once"
    );
    assert!(piece.lock(0, piece.whole), "no lock is left");
}

fn count(counter: &AtomicU64, one: bool) {
    counter.fetch_add(u64::from(one), Ordering::Relaxed);
}

fn check(look: &Look, data: &Data) {
    for granule in 0..GRANULES {
        if let Source::Own(cluster) = look.source(granule) {
            assert!(
                data.at(cluster, granule).load(Ordering::Relaxed),
                "granule {granule} of {cluster:?} is seen before its write completed"
            );
        }
    }
    if let Look::Mixed { written, zero, .. } = look {
        assert!(!written.intersects(*zero), "torn: {look:?}");
    }
}

/// Each change is in what the committer encodes, or the piece is queued again.
#[test]
fn no_change_is_lost_between_commits() {
    let piece = piece();
    let queued = AtomicU64::new(0);
    let writing = AtomicBool::new(true);
    let granules = Granules::from(granularity().whole());
    let committed = thread::scope(|scope| {
        scope.spawn(|| {
            for slot in 0..PIECE_SLOTS {
                assert!(piece.lock(slot, granules));
                piece.allocate(slot, cluster(slot as u64 + 1)).unwrap();
                if piece.complete_write(slot, granules).queue {
                    queued.fetch_add(1, Ordering::Release);
                }
            }
            writing.store(false, Ordering::Release);
        });
        let mut committed = vec![SlotContent::Empty; PIECE_SLOTS];
        loop {
            let more = writing.load(Ordering::Acquire);
            if queued.swap(0, Ordering::Acquire) > 0 {
                assert!(piece.mark_clean());
                for (slot, content) in committed.iter_mut().enumerate() {
                    *content = piece.snapshot_slot(slot);
                }
            } else if !more {
                return committed;
            }
            thread::yield_now();
        }
    });
    for (slot, content) in committed.iter().enumerate() {
        assert_eq!(*content, SlotContent::Full(cluster(slot as u64 + 1)));
    }
}
