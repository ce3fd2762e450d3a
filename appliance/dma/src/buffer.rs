//! What a pool keeps about each buffer.

use std::cell::Cell;
use std::ptr::NonNull;

/// Where a buffer comes from and goes back to.
pub(crate) const SMALL: usize = 0;
/// As [`SMALL`], for large ones.
pub(crate) const LARGE: usize = 1;
/// Small buffers kept for CONNECT and admin commands.
pub(crate) const RESERVE: usize = 2;
/// Number of classes.
pub(crate) const CLASSES: usize = 3;

/// A buffer's record. `refs` belongs to whoever holds the buffer, the rest never changes.
pub(crate) struct Meta {
    pub(crate) address: NonNull<u8>,
    pub(crate) region_offset: usize,
    pub(crate) region_index: u32,
    pub(crate) class: u8,
    /// Views of the buffer. 0 while nobody uses it.
    pub(crate) refs: Cell<u32>,
}

/// A buffer in nobody's hands, or the one handle that its holder has: a reference to its record.
///
/// Whoever has it may use the buffer and its record. It is passed on through the pool's lock or
/// within a thread, and its copies never leave the holder.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct BufRef(NonNull<Meta>);

// SAFETY: a buffer passes to another thread only while nobody uses it, through a mutex.
unsafe impl Send for BufRef {}

impl BufRef {
    /// The record. It lives as long as the pool, which whoever holds a buffer keeps alive.
    #[inline]
    pub(crate) fn meta(&self) -> &Meta {
        // SAFETY: records live in a `Carved` until the pool is gone; every holder of a BufRef is
        // the pool itself or keeps it alive. `refs` is touched by the buffer's one holder only.
        unsafe { self.0.as_ref() }
    }
}

/// Records of buffers carved together. They stay where they are until the pool goes.
pub(crate) struct Carved {
    metas: NonNull<[Meta]>,
}

// SAFETY: the records are reached by whoever holds the buffer, see `BufRef`.
unsafe impl Send for Carved {}

impl Carved {
    pub(crate) fn new(metas: Vec<Meta>) -> Self {
        let raw = Box::into_raw(metas.into_boxed_slice());
        Self {
            metas: NonNull::new(raw).expect("a box is never null"),
        }
    }

    /// One handle for each buffer. To be called once, or two hands could hold one buffer.
    pub(crate) fn handles(&self) -> impl DoubleEndedIterator<Item = BufRef> + use<> {
        let first = self.metas.cast::<Meta>();
        // SAFETY: each index lies inside the allocation.
        (0..self.metas.len()).map(move |index| BufRef(unsafe { first.add(index) }))
    }
}

impl Drop for Carved {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw`; the pool is going, so no handle is left.
        drop(unsafe { Box::from_raw(self.metas.as_ptr()) });
    }
}
