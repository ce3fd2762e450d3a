//! Leases: who lends memory that will one day hold something else learns when it is looked at no more.
//!
//! A pool lends its device's memory for a read. The host may take its time to fetch what was read, and
//! meanwhile the memory may be freed. Before it is used for another volume the pool asks the
//! [`LeaseBoard`] of each of its channels. Taking a lease and giving it up is one store each.

use std::cell::RefCell;
use std::fmt;
use std::num::NonZeroU64;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the leases of one [`Lessor`] are about, for any thread to look at.
#[derive(Debug)]
pub struct LeaseBoard {
    /// 0: vacant.
    places: Box<[AtomicU64]>,
}

impl LeaseBoard {
    /// What is leased now, in no order; some more than once.
    ///
    /// A lease that began before something this thread has seen since is among them, until it ends.
    pub fn leased(&self) -> impl Iterator<Item = u64> {
        let values = self.places.iter();
        let values = values.map(|place| place.load(Ordering::Acquire));
        values.filter(|value| *value != 0)
    }
}

/// Gives out leases on one thread.
pub struct Lessor {
    board: Arc<LeaseBoard>,
    vacant: RefCell<Vec<u32>>,
}

impl Lessor {
    /// One that gives out up to `places` leases at a time.
    #[must_use]
    pub fn new(places: u32) -> Rc<Self> {
        let board = LeaseBoard {
            places: (0..places).map(|_| AtomicU64::new(0)).collect(),
        };
        Rc::new(Self {
            board: Arc::new(board),
            vacant: RefCell::new((0..places).rev().collect()),
        })
    }

    /// What others look at.
    #[must_use]
    pub fn board(&self) -> &Arc<LeaseBoard> {
        &self.board
    }

    /// Is there a place for one more lease?
    #[must_use]
    #[inline]
    pub fn has_room(&self) -> bool {
        !self.vacant.borrow().is_empty()
    }

    /// A lease of whatever `value` stands for. `None` while all places are taken.
    #[must_use]
    #[inline]
    pub fn lease(self: &Rc<Self>, value: NonZeroU64) -> Option<Lease> {
        let place = self.vacant.borrow_mut().pop()?;
        self.board.places[place as usize].store(value.get(), Ordering::Release);
        Some(Lease {
            lessor: Some(Rc::clone(self)),
            place,
        })
    }

    /// What was read with a lease was read before.
    #[inline]
    pub(crate) fn end(&self, place: u32) {
        self.board.places[place as usize].store(0, Ordering::Release);
        self.vacant.borrow_mut().push(place);
    }
}

impl fmt::Debug for Lessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lessor")
            .field("vacant", &self.vacant.borrow().len())
            .finish_non_exhaustive()
    }
}

/// Something is looked at until this is dropped.
pub struct Lease {
    /// There until it is dropped or taken apart.
    lessor: Option<Rc<Lessor>>,
    place: u32,
}

impl Lease {
    /// For who keeps its parts apart, and calls [`Lessor::end`].
    #[inline]
    pub(crate) fn into_parts(mut self) -> (Option<Rc<Lessor>>, u32) {
        (self.lessor.take(), self.place)
    }
}

impl Drop for Lease {
    #[inline]
    fn drop(&mut self) {
        if let Some(lessor) = &self.lessor {
            lessor.end(self.place);
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leased(lessor: &Lessor) -> Vec<u64> {
        let mut values: Vec<u64> = lessor.board().leased().collect();
        values.sort_unstable();
        values
    }

    #[test]
    fn a_lease_is_on_the_board_until_it_is_dropped() {
        let lessor = Lessor::new(3);
        let seven = NonZeroU64::new(7).unwrap();
        let leases: Vec<_> = (0..3).map(|_| lessor.lease(seven).unwrap()).collect();
        assert_eq!(leased(&lessor), [7, 7, 7]);
        assert!(lessor.lease(seven).is_none(), "it is full");
        drop(leases);
        assert_eq!(leased(&lessor), []);
        assert!(lessor.lease(seven).is_some());
    }

    #[test]
    fn leases_outlive_their_lessor() {
        let lessor = Lessor::new(1);
        let board = Arc::clone(lessor.board());
        let lease = lessor.lease(NonZeroU64::MIN).unwrap();
        drop(lessor);
        assert_eq!(board.leased().count(), 1);
        drop(lease);
        assert_eq!(board.leased().count(), 0);
    }
}
