//! I/O buffers, as their users hold them.

use std::fmt;
use std::ops::Range;
use std::rc::Rc;

use crate::buffer::BufRef;
use crate::channel::ChannelInner;
use crate::lent::Lent;

/// One contiguous, page-aligned buffer of a pool, or a view of a part of one.
///
/// It goes back to its channel when its last view is dropped: to the first waiter if there is
/// one. It may outlive its channel. Its contents are what the last user left.
///
/// **Views.** [`IoBuf::share`] makes a second view of a range; while two views overlap, both can
/// be read and neither written. [`IoBuf::split_to`] makes two views that do not overlap, each of
/// which can be written. A view that is the only one left can be written, and
/// [`IoBuf::restore`] makes it cover the whole buffer again. No call allocates.
pub struct IoBuf {
    buffer: BufRef,
    channel: Rc<ChannelInner>,
    /// Offset of this view in the buffer.
    start: u32,
    /// Bytes in use, at most `limit`.
    len: u32,
    /// Bytes that this view may use.
    limit: u32,
    /// Whether no other view overlaps this one (where false, there may still be none left).
    exclusive: bool,
}

impl IoBuf {
    /// A buffer that just left the pool; `len` is at most its size.
    #[inline]
    pub(crate) fn from_pool(buffer: BufRef, channel: Rc<ChannelInner>, len: u32) -> Self {
        let meta = buffer.meta();
        debug_assert_eq!(meta.refs.get(), 0, "a buffer in the pool has no views");
        meta.refs.set(1);
        let limit = channel.capacity(meta.class);
        debug_assert!(len <= limit, "the pool gives a buffer that is long enough");
        Self {
            buffer,
            channel,
            start: 0,
            len,
            limit,
            exclusive: true,
        }
    }

    /// Bytes in use: the length asked for, or set since.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether no bytes are in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The greatest length that this view can have.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.limit as usize
    }

    /// Sets the bytes in use. Bytes added are what the buffer's last user left there.
    ///
    /// # Panics
    /// If `len` is above [`IoBuf::capacity`].
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.capacity(),
            "length {len} is above capacity {}",
            self.limit
        );
        self.len = len as u32;
    }

    /// The bytes in use.
    #[inline]
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the view lies in the buffer. Overlapping views are read-only while there are
        // several, and making one writable needs `&mut` of the only one left.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.len()) }
    }

    /// The bytes in use, to write.
    ///
    /// # Panics
    /// If another view overlaps this one; [`IoBuf::try_as_mut_slice`] does not.
    #[inline]
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.try_as_mut_slice()
            .expect("a shared iobuf is read-only: split it, or drop the others")
    }

    /// The bytes in use, to write; `None` while another view overlaps this one.
    #[inline]
    #[must_use]
    pub fn try_as_mut_slice(&mut self) -> Option<&mut [u8]> {
        if !self.is_exclusive() {
            return None;
        }
        // SAFETY: the view lies in the buffer and no other overlaps it.
        Some(unsafe { std::slice::from_raw_parts_mut(self.pointer(), self.len()) })
    }

    /// Whether no other view overlaps this one, so that it can be written.
    #[inline]
    #[must_use]
    pub fn is_exclusive(&self) -> bool {
        self.exclusive || self.is_sole()
    }

    /// Whether this is the buffer's only view.
    #[inline]
    #[must_use]
    pub fn is_sole(&self) -> bool {
        self.buffer.meta().refs.get() == 1
    }

    /// Address of the first byte, for devices. Page-aligned unless the view was split or shared
    /// elsewhere.
    #[inline]
    #[must_use]
    pub fn addr(&self) -> usize {
        self.pointer().addr()
    }

    /// A second view of a range of the bytes in use. Both are read-only while they coexist.
    ///
    /// # Panics
    /// If the range is not inside the bytes in use.
    #[must_use]
    pub fn share(&mut self, range: Range<usize>) -> Self {
        self.check(&range);
        self.exclusive = false;
        let len = (range.end - range.start) as u32;
        self.view(self.start + range.start as u32, len, false)
    }

    /// Takes the first `at` bytes in use off as a view of their own; this one keeps what follows.
    /// The two do not overlap: each can be written if this one could.
    ///
    /// # Panics
    /// If `at` is above [`IoBuf::len`].
    #[must_use]
    pub fn split_to(&mut self, at: usize) -> Self {
        self.check(&(0..at));
        let at = at as u32;
        // The sole view covers all that is left of an earlier share.
        self.exclusive = self.is_exclusive();
        let front = self.view(self.start, at, self.exclusive);
        self.start += at;
        self.len -= at;
        self.limit -= at;
        front
    }

    /// Puts the view that follows this one back behind it: undoes [`IoBuf::split_to`]. The bytes in use
    /// are then those of both. `Err` gives `next` back if it does not follow, in the same buffer, the
    /// last byte in use of this one.
    ///
    /// # Errors
    /// `next`, unchanged.
    pub fn join(&mut self, next: Self) -> Result<(), Self> {
        if self.buffer != next.buffer || self.start + self.len != next.start {
            return Err(next);
        }
        self.exclusive = self.is_exclusive() && next.is_exclusive();
        self.len += next.len;
        self.limit = (next.start - self.start) + next.limit;
        Ok(())
    }

    /// Makes the only view left cover the buffer from its beginning again, `len` bytes of it in
    /// use. `false`, and nothing changes, while there are other views.
    ///
    /// # Panics
    /// If `len` is above the buffer's size.
    #[must_use]
    pub fn restore(&mut self, len: usize) -> bool {
        if !self.is_sole() {
            return false;
        }
        let whole = self.channel.capacity(self.buffer.meta().class);
        assert!(
            len <= whole as usize,
            "length {len} is above the buffer's {whole} bytes"
        );
        self.start = 0;
        self.limit = whole;
        self.len = len as u32;
        self.exclusive = true;
        true
    }

    /// Index in [`crate::IobufPool::regions`] of the region that the buffer lies in.
    #[must_use]
    pub fn region_index(&self) -> usize {
        self.buffer.meta().region_index as usize
    }

    /// Offset of the first byte in that region.
    #[must_use]
    pub fn region_offset(&self) -> usize {
        self.buffer.meta().region_offset + self.start as usize
    }

    fn view(&self, start: u32, limit: u32, exclusive: bool) -> Self {
        let refs = &self.buffer.meta().refs;
        // Each view takes 32 bytes of memory, so 2^32 of one buffer are out of reach.
        refs.set(refs.get().checked_add(1).expect("fewer than 2^32 views"));
        let channel = Rc::clone(&self.channel);
        Self {
            buffer: self.buffer,
            channel,
            start,
            len: limit,
            limit,
            exclusive,
        }
    }

    #[inline]
    fn pointer(&self) -> *mut u8 {
        // SAFETY: `start` is at most the buffer's size.
        unsafe { self.buffer.meta().address.as_ptr().add(self.start as usize) }
    }

    fn check(&self, range: &Range<usize>) {
        let fits = range.start <= range.end && range.end <= self.len();
        assert!(fits, "range {range:?} is outside of {} bytes", self.len);
    }
}

impl Drop for IoBuf {
    #[inline]
    fn drop(&mut self) {
        let refs = &self.buffer.meta().refs;
        refs.set(refs.get() - 1);
        if refs.get() == 0 {
            self.channel.put(self.buffer);
        }
    }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoBuf")
            .field("addr", &format_args!("{:#x}", self.addr()))
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// The data of an I/O.
#[derive(Debug, Default)]
pub enum Payload {
    /// None.
    #[default]
    None,
    /// In a buffer of a pool.
    Buf(IoBuf),
    /// In a device's own memory, lent for a read.
    Lent(Lent),
}

impl Payload {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Buf(buf) => buf.len(),
            Self::Lent(lent) => lent.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes it out and leaves `None`.
    #[must_use]
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// The buffer, if it is one.
    #[must_use]
    pub fn as_buf(&self) -> Option<&IoBuf> {
        match self {
            Self::Buf(buf) => Some(buf),
            _ => None,
        }
    }

    /// The buffer, if it is one.
    #[must_use]
    pub fn as_buf_mut(&mut self) -> Option<&mut IoBuf> {
        match self {
            Self::Buf(buf) => Some(buf),
            _ => None,
        }
    }

    /// Copies `into.len()` bytes out, beginning at byte `from`.
    ///
    /// # Panics
    /// If the range is longer than the payload.
    pub fn copy_range_to(&self, from: usize, into: &mut [u8]) {
        match self {
            Self::None => assert!(from == 0 && into.is_empty(), "there is no payload"),
            Self::Buf(buf) => into.copy_from_slice(&buf.as_slice()[from..from + into.len()]),
            Self::Lent(lent) => lent.copy_range_to(from, into),
        }
    }
}

impl From<IoBuf> for Payload {
    fn from(buf: IoBuf) -> Self {
        Self::Buf(buf)
    }
}

impl From<Lent> for Payload {
    fn from(lent: Lent) -> Self {
        Self::Lent(lent)
    }
}
