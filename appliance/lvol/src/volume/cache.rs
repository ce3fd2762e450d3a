//! A channel's chains, by piece: direct-mapped, a few at first, more when they get in each other's way.

use std::sync::Arc;

use crate::pool::Chain;

const PLACES_MIN: usize = 16;
const PLACES_MAX: usize = 2048;

#[derive(Debug)]
pub(super) struct ChainCache {
    /// A power of two of places.
    places: Vec<Option<Arc<Chain>>>,
}

impl ChainCache {
    pub(super) fn new() -> Self {
        Self {
            places: vec![None; PLACES_MIN],
        }
    }

    #[inline]
    pub(super) fn get(&self, piece: u64) -> Option<&Arc<Chain>> {
        self.places[self.place(piece)]
            .as_ref()
            .filter(|chain| chain.index == piece)
    }

    pub(super) fn put(&mut self, chain: Arc<Chain>) {
        let mut place = self.place(chain.index);
        while self.places.len() < PLACES_MAX
            && self.places[place]
                .as_ref()
                .is_some_and(|other| other.index != chain.index)
        {
            self.double();
            place = self.place(chain.index);
        }
        self.places[place] = Some(chain);
    }

    pub(super) fn clear(&mut self) {
        self.places.fill(None);
    }

    #[inline]
    fn place(&self, piece: u64) -> usize {
        piece as usize & (self.places.len() - 1)
    }

    fn double(&mut self) {
        let len = self.places.len();
        let old = std::mem::replace(&mut self.places, vec![None; 2 * len]);
        for chain in old.into_iter().flatten() {
            let place = self.place(chain.index);
            self.places[place] = Some(chain);
        }
    }
}
