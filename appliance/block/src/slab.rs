//! A slab: values at stable indices, freed places used again. Allocates only while it grows.

/// Values by index.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    /// Head of the list of free places; `entries.len()` when there is none.
    free: usize,
    len: usize,
}

#[derive(Debug)]
enum Entry<T> {
    Free { next: usize },
    Used(T),
}

impl<T> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self {
            entries: Vec::new(),
            free: 0,
            len: 0,
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The index that the next insert will use.
    #[inline]
    pub(crate) fn next_index(&self) -> usize {
        self.free
    }

    #[inline]
    pub(crate) fn insert(&mut self, value: T) -> usize {
        let index = self.free;
        match self.entries.get_mut(index) {
            Some(entry) => {
                let Entry::Free { next } = *entry else {
                    unreachable!("free list names used entry")
                };
                self.free = next;
                *entry = Entry::Used(value);
            }
            None => {
                self.entries.push(Entry::Used(value));
                self.free = self.entries.len();
            }
        }
        self.len += 1;
        index
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        match self.entries.get_mut(index) {
            Some(Entry::Used(value)) => Some(value),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn remove(&mut self, index: usize) -> Option<T> {
        let entry = self.entries.get_mut(index)?;
        if matches!(entry, Entry::Free { .. }) {
            return None;
        }
        let freed = std::mem::replace(entry, Entry::Free { next: self.free });
        self.free = index;
        self.len -= 1;
        match freed {
            Entry::Used(value) => Some(value),
            Entry::Free { .. } => None,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.entries
            .iter()
            .enumerate()
            .filter_map(|(index, entry)| match entry {
                Entry::Used(value) => Some((index, value)),
                Entry::Free { .. } => None,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::Slab;

    #[test]
    fn freed_places_are_used_again() {
        let mut slab = Slab::new();
        let a = slab.insert('a');
        let b = slab.insert('b');
        assert_eq!(slab.remove(a), Some('a'));
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.next_index(), a);
        assert_eq!(slab.insert('c'), a);
        assert_eq!(slab.next_index(), 2);
        assert_eq!(slab.get_mut(b), Some(&mut 'b'));
        assert_eq!(slab.iter().map(|(_, c)| *c).collect::<String>(), "cb");
        assert_eq!(slab.len(), 2);
        assert_eq!(slab.remove(7), None);
    }
}
