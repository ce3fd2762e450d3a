//! Things by number, where a number that is used again is another one.

use nvmf::transport::ConnectionId;

/// Things that can be numbered: 20 bits of a [`ConnectionId`]. The other 12 bits count the reuses of a
/// number, so that what was meant for a connection that is gone finds nobody.
pub(crate) const CONNECTIONS_MAX: usize = 1 << INDEX_BITS;
const INDEX_BITS: u32 = 20;
const INDEX_MASK: u32 = (1 << INDEX_BITS) - 1;

struct Entry<T> {
    /// The identifier of what is here, or of what comes next.
    id: u32,
    value: Option<Box<T>>,
}

/// The connections of a group.
pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            len: 0,
        }
    }
}

impl<T> Slab<T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The number of what is inserted next; `None` when all are taken.
    pub(crate) fn next_id(&self) -> Option<ConnectionId> {
        match self.free.last() {
            Some(index) => Some(ConnectionId(self.entries[*index as usize].id)),
            None if self.entries.len() == CONNECTIONS_MAX => None,
            None => Some(ConnectionId(self.entries.len() as u32)),
        }
    }

    /// Puts it under the number that [`Slab::next_id`] gave.
    pub(crate) fn insert(&mut self, value: Box<T>) {
        let index = match self.free.pop() {
            Some(index) => index as usize,
            None => {
                self.entries.push(Entry {
                    id: self.entries.len() as u32,
                    value: None,
                });
                self.entries.len() - 1
            }
        };
        self.entries[index].value = Some(value);
        self.len += 1;
    }

    /// The numbers that are there now.
    pub(crate) fn ids(&self) -> Vec<ConnectionId> {
        let entries = self.entries.iter();
        entries
            .filter(|entry| entry.value.is_some())
            .map(|entry| ConnectionId(entry.id))
            .collect()
    }

    pub(crate) fn get(&self, id: ConnectionId) -> Option<&T> {
        let entry = self.entries.get((id.0 & INDEX_MASK) as usize)?;
        entry.value.as_deref().filter(|_| entry.id == id.0)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: ConnectionId) -> Option<&mut T> {
        let entry = self.entries.get_mut((id.0 & INDEX_MASK) as usize)?;
        entry.value.as_deref_mut().filter(|_| entry.id == id.0)
    }

    pub(crate) fn remove(&mut self, id: ConnectionId) -> Option<Box<T>> {
        let index = id.0 & INDEX_MASK;
        let entry = self
            .entries
            .get_mut(index as usize)
            .filter(|entry| entry.id == id.0)?;
        let value = entry.value.take()?;
        entry.id = entry.id.wrapping_add(1 << INDEX_BITS);
        self.free.push(index);
        self.len -= 1;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_used_again_is_another_one() {
        let mut slab = Slab::default();
        let first = slab.next_id().unwrap();
        slab.insert(Box::new('a'));
        assert_eq!(slab.get(first), Some(&'a'));
        assert!(slab.remove(first).is_some());
        let second = slab.next_id().unwrap();
        slab.insert(Box::new('b'));
        assert_ne!(first, second);
        assert_eq!((slab.get(first), slab.get(second)), (None, Some(&'b')));
        assert_eq!((slab.len(), slab.ids()), (1, vec![second]));
    }
}
