//! Scatter and gather: socket calls over buffers, without unsafe code at the caller.
//!
//! A [`Segment`] borrows the bytes to send, a [`SegmentMut`] the bytes to fill. A connection
//! keeps one [`SegmentList`] for its life and refills it for every call, which allocates nothing.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::iobuf::{IoBuf, Payload};
use crate::lent::Lent;

/// Most segments that the kernel takes in one call. What is above it is left for the next call.
pub const MAX_SEGMENTS: usize = 1024;

/// Bytes to send: an address and a length that stay readable for `'a`.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Segment<'a> {
    iovec: libc::iovec,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> Segment<'a> {
    /// Bytes of ordinary memory.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self::raw(bytes.as_ptr().cast_mut(), bytes.len())
    }

    /// A part of an I/O buffer.
    ///
    /// # Panics
    /// If the range is not inside the buffer.
    #[must_use]
    pub fn of_buf(buf: &'a IoBuf, range: Range<usize>) -> Self {
        Self::new(&buf.as_slice()[range])
    }

    /// A part of lent memory.
    ///
    /// # Panics
    /// If the range is not inside what is lent.
    #[must_use]
    pub fn of_lent(lent: &'a Lent, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= lent.len(),
            "range outside of lent memory"
        );
        // `wrapping_add` stays inside the region: just checked.
        Self::raw(
            lent.base().wrapping_add(range.start),
            range.end - range.start,
        )
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.iovec.iov_len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iovec.iov_len == 0
    }

    fn raw(base: *mut u8, len: usize) -> Self {
        Self {
            iovec: libc::iovec {
                iov_base: base.cast(),
                iov_len: len,
            },
            memory: PhantomData,
        }
    }
}

impl<'a> From<&'a [u8]> for Segment<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::new(bytes)
    }
}

impl<'a> From<&'a IoBuf> for Segment<'a> {
    fn from(buf: &'a IoBuf) -> Self {
        Self::new(buf.as_slice())
    }
}

impl<'a> From<&'a Lent> for Segment<'a> {
    fn from(lent: &'a Lent) -> Self {
        Self::of_lent(lent, 0..lent.len())
    }
}

impl fmt::Debug for Segment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Segment({} bytes)", self.len())
    }
}

/// Bytes to fill: an address and a length that are the holder's alone for `'a`.
#[repr(transparent)]
pub struct SegmentMut<'a> {
    iovec: libc::iovec,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> SegmentMut<'a> {
    /// Bytes of ordinary memory.
    #[must_use]
    pub fn new(bytes: &'a mut [u8]) -> Self {
        let (base, len) = (bytes.as_mut_ptr(), bytes.len());
        Self {
            iovec: libc::iovec {
                iov_base: base.cast(),
                iov_len: len,
            },
            memory: PhantomData,
        }
    }

    /// A part of an I/O buffer.
    ///
    /// # Panics
    /// If the range is not inside the buffer, or the buffer is shared.
    #[must_use]
    pub fn of_buf(buf: &'a mut IoBuf, range: Range<usize>) -> Self {
        Self::new(&mut buf.as_mut_slice()[range])
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.iovec.iov_len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iovec.iov_len == 0
    }
}

impl<'a> From<&'a mut [u8]> for SegmentMut<'a> {
    fn from(bytes: &'a mut [u8]) -> Self {
        Self::new(bytes)
    }
}

impl<'a> From<&'a mut IoBuf> for SegmentMut<'a> {
    fn from(buf: &'a mut IoBuf) -> Self {
        Self::new(buf.as_mut_slice())
    }
}

impl fmt::Debug for SegmentMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SegmentMut({} bytes)", self.len())
    }
}

/// Sends segments on a stream socket, as many bytes as it takes now (`MSG_DONTWAIT`,
/// `MSG_NOSIGNAL`). At most [`MAX_SEGMENTS`] are looked at. Returns the bytes taken.
///
/// # Errors
/// As `sendmsg(2)`; `WouldBlock` if the socket takes nothing now.
pub fn sendmsg(fd: BorrowedFd<'_>, segments: &[Segment<'_>]) -> io::Result<usize> {
    // SAFETY: Segment is a transparent iovec, and each points to memory readable meanwhile.
    unsafe { send_raw(fd, segments.as_ptr().cast(), segments.len()) }
}

/// Receives from a stream socket into segments, what is there now (`MSG_DONTWAIT`). At most
/// [`MAX_SEGMENTS`] are looked at. Returns the bytes received; 0 is the end of the stream (or
/// there was no room in the segments).
///
/// # Errors
/// As `recvmsg(2)`; `WouldBlock` if nothing is there now.
pub fn recvmsg(fd: BorrowedFd<'_>, segments: &mut [SegmentMut<'_>]) -> io::Result<usize> {
    // SAFETY: SegmentMut is a transparent iovec, and each points to memory ours to write.
    unsafe { receive_raw(fd, segments.as_mut_ptr().cast(), segments.len()) }
}

/// Reusable storage for segments, of a fixed capacity. It never allocates after it was made.
pub struct SegmentList {
    storage: Box<[libc::iovec]>,
}

// SAFETY: between uses the entries are dead numbers: nothing reads through them.
unsafe impl Send for SegmentList {}

impl SegmentList {
    /// Storage for `capacity` segments, at most [`MAX_SEGMENTS`].
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let empty = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            storage: vec![empty; capacity.clamp(1, MAX_SEGMENTS)].into_boxed_slice(),
        }
    }

    /// Segments that fit.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.storage.len()
    }

    /// Begins an empty list of bytes to send.
    pub fn gather<'a>(&mut self) -> Gather<'_, 'a> {
        Gather {
            storage: &mut self.storage,
            first: 0,
            end: 0,
            bytes: 0,
            memory: PhantomData,
        }
    }

    /// Begins an empty list of bytes to fill.
    pub fn scatter<'a>(&mut self) -> Scatter<'_, 'a> {
        Scatter {
            storage: &mut self.storage,
            end: 0,
            bytes: 0,
            memory: PhantomData,
        }
    }
}

impl fmt::Debug for SegmentList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SegmentList({} segments)", self.capacity())
    }
}

/// A list of bytes to send, in a [`SegmentList`]'s storage.
#[derive(Debug)]
pub struct Gather<'list, 'a> {
    storage: &'list mut [libc::iovec],
    first: usize,
    end: usize,
    bytes: usize,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> Gather<'_, 'a> {
    /// Appends a segment. `false` if the list is full; empty segments are left out.
    #[must_use]
    pub fn push(&mut self, segment: impl Into<Segment<'a>>) -> bool {
        let segment = segment.into();
        if segment.is_empty() {
            return true;
        }
        let Some(slot) = self.storage.get_mut(self.end) else {
            return false;
        };
        *slot = segment.iovec;
        self.end += 1;
        self.bytes += segment.len();
        true
    }

    /// Appends a payload from byte `from` on. `false` if the list is full.
    ///
    /// # Panics
    /// If `from` is greater than the payload's length.
    #[must_use]
    pub fn push_payload(&mut self, payload: &'a Payload, from: usize) -> bool {
        match payload {
            Payload::None => {
                assert!(from == 0, "offset {from} in no payload");
                true
            }
            Payload::Buf(buf) => self.push(Segment::of_buf(buf, from..buf.len())),
            Payload::Lent(lent) => self.push(Segment::of_lent(lent, from..lent.len())),
        }
    }

    /// Bytes still to send.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Segments still to send.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.end - self.first
    }

    /// Segments that can still be pushed.
    #[must_use]
    pub fn room(&self) -> usize {
        self.storage.len() - self.end
    }

    /// Sends what it can and takes that off the front. Returns the bytes taken.
    ///
    /// # Errors
    /// As [`sendmsg`].
    pub fn send(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let live = &self.storage[self.first..self.end];
        // SAFETY: each entry came from a Segment<'a>, and 'a outlives this borrow.
        let sent = unsafe { send_raw(fd, live.as_ptr(), live.len()) }?;
        self.advance(sent);
        Ok(sent)
    }

    fn advance(&mut self, mut sent: usize) {
        self.bytes -= sent;
        while let Some(slot) = self.storage[..self.end]
            .get_mut(self.first)
            .filter(|_| sent > 0)
        {
            let taken = sent.min(slot.iov_len);
            slot.iov_base = slot.iov_base.wrapping_byte_add(taken);
            slot.iov_len -= taken;
            sent -= taken;
            if slot.iov_len == 0 {
                self.first += 1;
            }
        }
    }
}

/// A list of bytes to fill, in a [`SegmentList`]'s storage.
#[derive(Debug)]
pub struct Scatter<'list, 'a> {
    storage: &'list mut [libc::iovec],
    end: usize,
    bytes: usize,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> Scatter<'_, 'a> {
    /// Appends a segment. `false` if the list is full; empty segments are left out.
    #[must_use]
    pub fn push(&mut self, segment: impl Into<SegmentMut<'a>>) -> bool {
        let segment = segment.into();
        if segment.is_empty() {
            return true;
        }
        let Some(slot) = self.storage.get_mut(self.end) else {
            return false;
        };
        *slot = segment.iovec;
        self.end += 1;
        self.bytes += segment.len();
        true
    }

    /// Bytes that can be received.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Receives once and ends the list: the segments' memory is free to be read again.
    ///
    /// # Errors
    /// As [`recvmsg`].
    pub fn receive(self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let live = &mut self.storage[..self.end];
        // SAFETY: each entry came from a SegmentMut<'a>, and 'a outlives this value.
        unsafe { receive_raw(fd, live.as_mut_ptr(), live.len()) }
    }
}

/// # Safety
/// `count` iovecs at `iovecs`, each of memory readable for the length of the call.
unsafe fn send_raw(
    fd: BorrowedFd<'_>,
    iovecs: *const libc::iovec,
    count: usize,
) -> io::Result<usize> {
    let message = header(iovecs.cast_mut(), count);
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the header is on this stack; the kernel only reads the iovecs and their memory.
    retry(|| unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) })
}

/// # Safety
/// `count` iovecs at `iovecs`, each of memory that is the caller's to write during the call.
unsafe fn receive_raw(
    fd: BorrowedFd<'_>,
    iovecs: *mut libc::iovec,
    count: usize,
) -> io::Result<usize> {
    let mut message = header(iovecs, count);
    // SAFETY: the header is on this stack; the kernel writes into the iovecs' memory only.
    retry(|| unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) })
}

fn header(iovecs: *mut libc::iovec, count: usize) -> libc::msghdr {
    // SAFETY: all-zero bytes are a valid msghdr: null pointers and zero lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs;
    message.msg_iovlen = count.min(MAX_SEGMENTS) as _;
    message
}

/// Repeats a call that a signal interrupted.
fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
