//! [`Lent`]: a device's own memory in place of a copy.

use std::rc::Rc;
use std::sync::Arc;

use crate::lease::{Lease, Lessor};
use crate::region::Region;

/// A range of a device's own memory, lent for a read. The device may write it meanwhile: the
/// reader gets each byte old or new, as with any read that races a write.
#[derive(Debug)]
pub struct Lent {
    region: Arc<Region>,
    offset: usize,
    len: u32,
    /// Place of the lease that ends when this is dropped, if there is one.
    place: u32,
    lessor: Option<Rc<Lessor>>,
}

impl Lent {
    pub(crate) fn new(region: Arc<Region>, offset: usize, len: usize) -> Self {
        Self {
            region,
            offset,
            len: u32::try_from(len).expect("less than 4 GiB is lent at a time"),
            place: 0,
            lessor: None,
        }
    }

    /// Bytes lent.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether nothing is lent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The region that it is part of.
    #[must_use]
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Offset in the region.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Address of the first byte.
    #[must_use]
    pub fn addr(&self) -> usize {
        self.region.addr() + self.offset
    }

    /// Copies the first `into.len()` bytes out.
    ///
    /// # Panics
    /// If `into` is longer than what is lent.
    pub fn copy_to(&self, into: &mut [u8]) {
        self.copy_range_to(0, into);
    }

    /// Copies `into.len()` bytes out, beginning `from` bytes into the lent range.
    ///
    /// # Panics
    /// If the range is longer than what is lent.
    pub fn copy_range_to(&self, from: usize, into: &mut [u8]) {
        self.check(from, into.len());
        self.region.read_at(self.offset + from, into);
    }

    /// Keeps a lease until it is dropped.
    #[inline]
    pub fn hold(&mut self, lease: Lease) {
        self.end_lease();
        (self.lessor, self.place) = lease.into_parts();
    }

    /// A part of it, lent on. Not to be kept longer than the whole, which has the lease.
    ///
    /// # Panics
    /// If the range is not inside what is lent.
    #[must_use]
    pub fn slice(&self, from: usize, len: usize) -> Self {
        self.check(from, len);
        Self::new(Arc::clone(&self.region), self.offset + from, len)
    }

    /// Address of the first byte, with the right to reach it.
    pub(crate) fn base(&self) -> *mut u8 {
        self.region.at(self.offset, self.len())
    }

    fn check(&self, from: usize, len: usize) {
        let fits = from.checked_add(len).is_some_and(|end| end <= self.len());
        assert!(
            fits,
            "range {from}+{len} is outside of {} lent bytes",
            self.len
        );
    }

    #[inline]
    fn end_lease(&mut self) {
        if let Some(lessor) = self.lessor.take() {
            lessor.end(self.place);
        }
    }
}

impl Drop for Lent {
    #[inline]
    fn drop(&mut self) {
        self.end_lease();
    }
}
