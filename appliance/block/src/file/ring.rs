//! The io_uring of a thread, shared by all its file channels.
//!
//! One ring per thread, not per channel: what all file devices were given in one turn goes to the
//! kernel in one system call, and a thread with a thousand devices has one ring's memory. Each
//! channel has an inbox in the ring; whoever polls first reaps for all.
//!
//! This is the only module of the crate with unsafe code. Its rule: the ring *owns* the memory that
//! the kernel reads or writes, from the push until the completion is reaped. Callers hand a
//! [`Buffer`] in and get it back; nothing they drop can pull memory away from the kernel.
#![expect(
    unsafe_code,
    reason = "io_uring: pushing entries that name memory and descriptors"
)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use dma::{IobufPool, Payload, Region};
use io_uring::types::{Fd, Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::BlockError;
use crate::device::ChannelContext;
use crate::slab::Slab;

/// Entries that wait for one system call; more wait in software.
const SQ_ENTRIES: u32 = 128;
/// Completions that the ring has room for; beyond, the kernel keeps them in a list of its own.
const CQ_ENTRIES: u32 = 1024;
/// Files that can be registered with one ring; more work by their descriptor.
const FIXED_FILES: u32 = 256;
/// The kernel's limit for one registered buffer.
const FIXED_BUFFER_BYTES_MAX: usize = 1 << 30;
/// The kernel's limit for the number of registered buffers.
const FIXED_BUFFERS_MAX: usize = 1 << 14;

/// Memory of one operation, owned by the ring while the kernel has it.
#[derive(Debug, Default)]
pub(crate) enum Buffer {
    /// The operation moves no data.
    #[default]
    None,
    /// A part of an I/O's payload, beginning at this byte.
    Payload(Payload, usize),
    /// A bounce buffer.
    Scratch(Scratch),
}

impl Buffer {
    /// Address and length of what the kernel may touch.
    fn extent(&self) -> (usize, usize) {
        match self {
            Self::Payload(Payload::Buf(buf), from) => (buf.addr() + from, buf.len() - from),
            Self::Payload(Payload::Lent(lent), from) => (lent.addr() + from, lent.len() - from),
            Self::Scratch(scratch) => (
                scratch.as_slice().as_ptr().expose_provenance(),
                scratch.as_slice().len(),
            ),
            Self::None | Self::Payload(Payload::None, _) => (0, 0),
        }
    }

    /// Whether the kernel may write here while the ring owns it: nobody else can look.
    fn is_writable(&self) -> bool {
        match self {
            Self::Payload(Payload::Buf(buf), _) => buf.is_exclusive(),
            Self::Scratch(_) => true,
            _ => false,
        }
    }
}

/// A page-aligned buffer of the channel's own.
pub(crate) struct Scratch {
    bytes: Box<[u8]>,
    start: usize,
}

impl Scratch {
    /// Bytes of one scratch buffer.
    pub(crate) const LEN: usize = 128 << 10;
    const ALIGN: usize = 4096;

    pub(crate) fn new() -> Self {
        let bytes = vec![0; Self::LEN + Self::ALIGN].into_boxed_slice();
        let start = bytes.as_ptr().addr().next_multiple_of(Self::ALIGN) - bytes.as_ptr().addr();
        Self { bytes, start }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.start + Self::LEN]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + Self::LEN]
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scratch")
    }
}

/// What the kernel is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Read `len` bytes at `offset` into the buffer.
    Read { offset: u64, len: usize },
    /// Write `len` bytes of the buffer at `offset`.
    Write {
        offset: u64,
        len: usize,
        dsync: bool,
    },
    /// `fdatasync`.
    Sync,
    /// `fallocate`.
    Allocate { offset: u64, len: u64, mode: i32 },
}

/// A finished operation, for the channel that pushed it.
#[derive(Debug)]
pub(crate) struct Finished {
    /// The channel's own number of the operation.
    pub(crate) token: u64,
    /// As the system call would have returned it, or the negative error number.
    pub(crate) result: i32,
    /// The buffer that was pushed.
    pub(crate) buffer: Buffer,
}

/// A file as the ring knows it.
#[derive(Debug)]
pub(crate) struct RingFile {
    file: Arc<File>,
    fixed: Option<u32>,
}

/// The ring of one thread.
pub(crate) struct SharedRing {
    ring: RefCell<Ring>,
}

struct Ring {
    uring: IoUring,
    /// Signalled by the kernel when a completion waits. The ring's own descriptor does not do: with
    /// deferred completions it does not become readable for who polls it already.
    signal: EventFd,
    /// Completions were reaped since `signal` was last cleared.
    clear_signal: bool,
    in_flight: Slab<InFlight>,
    count: usize,
    /// Entries for which the submission queue had no room.
    backlog: VecDeque<squeue::Entry>,
    inboxes: Slab<Inbox>,
    next_channel: u64,
    fixed_free: Vec<u32>,
    /// Files whose channel is closed while the kernel still works on them.
    closing: Vec<Rc<RingFile>>,
    buffers: Vec<FixedBuffer>,
    /// Completions need a system call to appear, and the kernel says when.
    deferred: bool,
    enter_failed: bool,
}

#[derive(Debug)]
struct InFlight {
    inbox: usize,
    channel: u64,
    token: u64,
    buffer: Buffer,
    /// Keeps the descriptor open, and its registration in place.
    _file: Rc<RingFile>,
}

#[derive(Debug)]
struct Inbox {
    channel: u64,
    finished: Vec<Finished>,
}

/// A registered range of memory.
#[derive(Debug)]
struct FixedBuffer {
    addr: usize,
    len: usize,
    index: u16,
    /// Keeps the mapping, and so the meaning of the addresses.
    _region: Arc<Region>,
}

/// A channel's place in the ring of its thread.
pub(crate) struct RingChannel {
    shared: Rc<SharedRing>,
    file: Rc<RingFile>,
    inbox: usize,
    channel: u64,
    wake_fd: OwnedFd,
}

impl SharedRing {
    /// The ring of the context's thread, made when the first channel wants it.
    fn of(ctx: &ChannelContext) -> Result<Rc<Self>, BlockError> {
        if let Some(shared) = ctx.ring.borrow().upgrade() {
            return Ok(shared);
        }
        let ring = Ring::new(ctx.pool.as_deref()).map_err(ring_error)?;
        let shared = Rc::new(Self {
            ring: RefCell::new(ring),
        });
        *ctx.ring.borrow_mut() = Rc::downgrade(&shared);
        Ok(shared)
    }
}

fn ring_error(source: io::Error) -> BlockError {
    let hint = match source.raw_os_error() {
        Some(libc::EPERM) => {
            "the kernel refuses it to this process: see the sysctl kernel.io_uring_disabled, \
             or the container's seccomp profile"
        }
        Some(libc::ENOSYS) => "the kernel has no io_uring, or a seccomp profile hides it",
        Some(libc::ENOMEM) => "not enough memory or locked memory: raise RLIMIT_MEMLOCK",
        Some(libc::EMFILE | libc::ENFILE) => "too many open files: raise RLIMIT_NOFILE",
        _ => "see the cause",
    };
    BlockError::Ring { hint, source }
}

impl RingChannel {
    pub(crate) fn open(ctx: &ChannelContext, file: Arc<File>) -> Result<Self, BlockError> {
        let shared = SharedRing::of(ctx)?;
        let mut ring = shared.ring.borrow_mut();
        // A descriptor of its own for each channel: one descriptor cannot be put into an epoll
        // set twice.
        let wake_fd = ring.signal.as_fd().try_clone_to_owned();
        let wake_fd = wake_fd.map_err(|source| BlockError::WakeFd { source })?;
        let file = Rc::new(ring.register(file));
        let channel = ring.next_channel;
        ring.next_channel += 1;
        let inbox = ring.inboxes.insert(Inbox {
            channel,
            finished: Vec::new(),
        });
        drop(ring);
        Ok(Self {
            shared,
            file,
            inbox,
            channel,
            wake_fd,
        })
    }

    pub(crate) fn wake_fd(&self) -> &OwnedFd {
        &self.wake_fd
    }

    /// Gathers an operation for the next [`RingChannel::turn`]. Gives the buffer back if the kernel
    /// must not have it: too short for the command, or seen by others during a read.
    pub(crate) fn push(&self, token: u64, command: Command, buffer: Buffer) -> Result<(), Buffer> {
        let file = Rc::clone(&self.file);
        let (inbox, channel) = (self.inbox, self.channel);
        let in_flight = InFlight {
            inbox,
            channel,
            token,
            buffer,
            _file: file,
        };
        self.shared
            .ring
            .borrow_mut()
            .push(&self.file, command, in_flight)
    }

    /// Gives the kernel what was gathered, and appends this channel's finished operations.
    pub(crate) fn turn(&self, finished: &mut Vec<Finished>) {
        let mut ring = self.shared.ring.borrow_mut();
        ring.turn();
        if let Some(inbox) = ring.inboxes.get_mut(self.inbox) {
            finished.append(&mut inbox.finished);
        }
    }

    /// Gives the kernel what was gathered.
    pub(crate) fn flush(&self) {
        self.shared.ring.borrow_mut().enter(0);
    }

    /// How many ranges of memory and files are registered.
    #[cfg(test)]
    fn registered(&self) -> (usize, bool) {
        (
            self.shared.ring.borrow().buffers.len(),
            self.file.fixed.is_some(),
        )
    }
}

impl Drop for RingChannel {
    fn drop(&mut self) {
        let mut ring = self.shared.ring.borrow_mut();
        ring.inboxes.remove(self.inbox);
        ring.closing.push(Rc::clone(&self.file));
        // This channel still holds one reference: the file is released by the next turn of another
        // channel, or with the ring.
        ring.enter(0);
        if Rc::strong_count(&self.file) == 2 {
            ring.closing.pop();
            ring.release(&self.file);
        }
    }
}

impl Ring {
    fn new(pool: Option<&IobufPool>) -> io::Result<Self> {
        let (uring, deferred) = build()?;
        let signal = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        uring
            .submitter()
            .register_eventfd(signal.as_fd().as_raw_fd())?;
        let mut ring = Self {
            uring,
            signal,
            clear_signal: false,
            in_flight: Slab::new(),
            count: 0,
            backlog: VecDeque::new(),
            inboxes: Slab::new(),
            next_channel: 0,
            fixed_free: Vec::new(),
            closing: Vec::new(),
            buffers: Vec::new(),
            deferred,
            enter_failed: false,
        };
        match ring.uring.submitter().register_files_sparse(FIXED_FILES) {
            Ok(()) => ring.fixed_free = (0..FIXED_FILES).rev().collect(),
            Err(error) => tracing::debug!(%error, "no fixed files: descriptors are used"),
        }
        if let Some(pool) = pool {
            ring.register_buffers(pool);
        }
        Ok(ring)
    }

    /// Registers those regions of the pool that are resident anyway. The others would be made
    /// resident by it, whole, which is not worth the gain.
    fn register_buffers(&mut self, pool: &IobufPool) {
        let mut buffers = Vec::new();
        let mut iovecs = Vec::new();
        for region in pool.regions() {
            if !region.is_resident() {
                continue;
            }
            let mut from = 0;
            while from < region.len() && buffers.len() < FIXED_BUFFERS_MAX {
                let len = (region.len() - from).min(FIXED_BUFFER_BYTES_MAX);
                let addr = region.addr() + from;
                let base = std::ptr::with_exposed_provenance_mut(addr);
                iovecs.push(libc::iovec {
                    iov_base: base,
                    iov_len: len,
                });
                let index = buffers.len() as u16;
                buffers.push(FixedBuffer {
                    addr,
                    len,
                    index,
                    _region: Arc::clone(&region),
                });
                from += len;
            }
        }
        if iovecs.is_empty() {
            return;
        }
        // SAFETY: the ranges are whole mappings, which `buffers` keeps for the ring's life.
        match unsafe { self.uring.submitter().register_buffers(&iovecs) } {
            Ok(()) => self.buffers = buffers,
            Err(error) => tracing::info!(
                %error,
                "io_uring does not register the buffer pool (RLIMIT_MEMLOCK?): file devices \
                 work without, a little slower"
            ),
        }
    }

    /// Puts a file into the table of registered ones, if there is room.
    fn register(&mut self, file: Arc<File>) -> RingFile {
        let mut fixed = None;
        if let Some(index) = self.fixed_free.pop() {
            match self
                .uring
                .submitter()
                .register_files_update(index, &[file.as_raw_fd()])
            {
                Ok(_) => fixed = Some(index),
                Err(_) => self.fixed_free.push(index),
            }
        }
        RingFile { file, fixed }
    }

    fn release(&mut self, file: &RingFile) {
        if let Some(index) = file.fixed
            && self
                .uring
                .submitter()
                .register_files_update(index, &[-1])
                .is_ok()
        {
            self.fixed_free.push(index);
        }
    }

    fn fixed_buffer(&self, addr: usize, len: usize) -> Option<u16> {
        let holds =
            |buffer: &&FixedBuffer| addr >= buffer.addr && addr + len <= buffer.addr + buffer.len;
        self.buffers.iter().find(holds).map(|buffer| buffer.index)
    }

    fn push(
        &mut self,
        file: &RingFile,
        command: Command,
        in_flight: InFlight,
    ) -> Result<(), Buffer> {
        let (addr, room) = in_flight.buffer.extent();
        let allowed = match command {
            Command::Read { len, .. } => len <= room && in_flight.buffer.is_writable(),
            Command::Write { len, .. } => len <= room,
            Command::Sync | Command::Allocate { .. } => true,
        };
        if !allowed {
            return Err(in_flight.buffer);
        }
        let fixed_buffer = match command {
            Command::Read { len, .. } | Command::Write { len, .. } => self.fixed_buffer(addr, len),
            _ => None,
        };
        let user_data = self.in_flight.insert(in_flight) as u64;
        let entry = match file.fixed {
            Some(index) => entry!(Fixed(index), command, addr, fixed_buffer),
            None => entry!(Fd(file.file.as_raw_fd()), command, addr, fixed_buffer),
        };
        let entry = entry.user_data(user_data);
        self.count += 1;
        // SAFETY: the entry names memory and a file that `in_flight` owns until its completion is
        // reaped, or, failing that, until the ring is dropped, which waits for the kernel first.
        if !self.backlog.is_empty() || unsafe { self.uring.submission().push(&entry) }.is_err() {
            self.backlog.push_back(entry);
        }
        Ok(())
    }

    /// Submits, lets the kernel do its deferred work, and reaps.
    fn turn(&mut self) {
        if self.count == 0 {
            return;
        }
        if self.clear_signal {
            // Before looking for completions: what comes after the look signals anew.
            self.clear_signal();
        }
        self.enter(0);
        self.clear_signal |= self.reap() > 0;
        if self.clear_signal && self.count == 0 {
            // Nobody may turn the ring again before sleeping, and nothing can come any more.
            self.clear_signal();
        }
        if !self.backlog.is_empty() {
            self.enter(0);
        }
        if !self.closing.is_empty() {
            self.release_closed();
        }
    }

    fn clear_signal(&mut self) {
        self.clear_signal = false;
        // EAGAIN: it was not signalled. Nothing else can go wrong with an eventfd.
        let _ = self.signal.read();
    }

    fn release_closed(&mut self) {
        let mut index = 0;
        while index < self.closing.len() {
            if Rc::strong_count(&self.closing[index]) == 1 {
                let file = self.closing.swap_remove(index);
                self.release(&file);
            } else {
                index += 1;
            }
        }
    }

    /// One system call, if one is needed.
    fn enter(&mut self, wait_for: u32) {
        loop {
            let (to_submit, taskrun, full) = {
                let mut queue = self.uring.submission();
                while !queue.is_full()
                    && let Some(entry) = self.backlog.pop_front()
                {
                    // SAFETY: as in `push`.
                    if unsafe { queue.push(&entry) }.is_err() {
                        self.backlog.push_front(entry);
                        break;
                    }
                }
                queue.sync();
                (
                    queue.len(),
                    queue.taskrun() || queue.cq_overflow(),
                    queue.is_full(),
                )
            };
            if to_submit == 0 && !taskrun && wait_for == 0 {
                return;
            }
            let flags = if self.deferred || wait_for > 0 {
                ENTER_GETEVENTS
            } else {
                0
            };
            // SAFETY: no argument is passed; the entries were pushed under `push`'s rule.
            let entered = unsafe {
                self.uring.submitter().enter::<libc::sigset_t>(
                    to_submit as u32,
                    wait_for,
                    flags,
                    None,
                )
            };
            match entered {
                Ok(submitted) => {
                    self.enter_failed = false;
                    // A full queue with more behind it: go on, as long as the kernel takes some.
                    if !(full && submitted > 0 && !self.backlog.is_empty()) {
                        return;
                    }
                }
                Err(error) => return self.enter_error(&error),
            }
        }
    }

    #[cold]
    fn enter_error(&mut self, error: &io::Error) {
        // EAGAIN, EBUSY, EINTR: the entries are still there, the next turn tries again. So it does
        // for anything else, but that is worth a line, once.
        let passing = matches!(
            error.raw_os_error(),
            Some(libc::EAGAIN | libc::EBUSY | libc::EINTR)
        );
        if !passing && !self.enter_failed {
            self.enter_failed = true;
            tracing::error!(%error, "io_uring_enter fails: file devices are stuck until it works");
        }
    }

    /// Takes what has ended to the inboxes. Returns how much that was.
    fn reap(&mut self) -> usize {
        let before = self.count;
        let mut queue = self.uring.completion();
        queue.sync();
        for completion in &mut queue {
            let index = completion.user_data() as usize;
            let Some(ended) = self.in_flight.remove(index) else {
                debug_assert!(false, "the kernel completed an operation twice");
                continue;
            };
            self.count -= 1;
            let finished = Finished {
                token: ended.token,
                result: completion.result(),
                buffer: ended.buffer,
            };
            match self.inboxes.get_mut(ended.inbox) {
                Some(inbox) if inbox.channel == ended.channel => inbox.finished.push(finished),
                // Its channel is closed; the buffer goes back to its pool here.
                _ => drop(finished),
            }
        }
        before - self.count
    }
}

impl Drop for Ring {
    /// Waits until the kernel has let go of all memory. There is no way to take it back early that
    /// works for every file, and none that is sound without waiting.
    fn drop(&mut self) {
        while self.count > 0 {
            self.enter(1);
            self.reap();
        }
    }
}

const ENTER_GETEVENTS: u32 = 1;

/// Builds the ring with the cheapest completion mode that the kernel has. The flag tells whether
/// completions wait for a system call.
fn build() -> io::Result<(IoUring, bool)> {
    let deferred = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_cqsize(CQ_ENTRIES)
        .build(SQ_ENTRIES);
    // EINVAL: a kernel before 6.1.
    let invalid = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    match deferred {
        Ok(uring) => return Ok((uring, true)),
        Err(error) if invalid(&error) => {}
        Err(error) => return Err(error),
    }
    let cooperative = IoUring::builder()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_cqsize(CQ_ENTRIES)
        .build(SQ_ENTRIES);
    match cooperative {
        Ok(uring) => return Ok((uring, true)),
        Err(error) if invalid(&error) => {}
        Err(error) => return Err(error),
    }
    let plain = IoUring::builder()
        .setup_cqsize(CQ_ENTRIES)
        .build(SQ_ENTRIES)?;
    Ok((plain, false))
}

/// The entry of a command. `$file` is a descriptor or an index of registered files; the crate does
/// not name the trait that both have.
macro_rules! entry {
    ($file:expr, $command:expr, $addr:expr, $fixed_buffer:expr) => {{
        let memory = std::ptr::with_exposed_provenance_mut::<u8>($addr);
        let flags = |dsync: bool| if dsync { libc::RWF_DSYNC } else { 0 };
        match ($command, $fixed_buffer) {
            (Command::Read { offset, len }, Some(index)) => {
                opcode::ReadFixed::new($file, memory, len as u32, index)
                    .offset(offset)
                    .build()
            }
            (Command::Read { offset, len }, None) => opcode::Read::new($file, memory, len as u32)
                .offset(offset)
                .build(),
            (Command::Write { offset, len, dsync }, Some(index)) => {
                let write = opcode::WriteFixed::new($file, memory, len as u32, index);
                write.offset(offset).rw_flags(flags(dsync)).build()
            }
            (Command::Write { offset, len, dsync }, None) => {
                let write = opcode::Write::new($file, memory, len as u32);
                write.offset(offset).rw_flags(flags(dsync)).build()
            }
            (Command::Sync, _) => opcode::Fsync::new($file)
                .flags(FsyncFlags::DATASYNC)
                .build(),
            (Command::Allocate { offset, len, mode }, _) => opcode::Fallocate::new($file, len)
                .offset(offset)
                .mode(mode)
                .build(),
        }
    }};
}
use entry;

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use dma::{BackingPreference, IobufOptions};

    use super::*;

    fn ring(pool: Option<Arc<IobufPool>>) -> (RingChannel, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut ctx = ChannelContext::new("test", Waker::noop().clone());
        ctx.pool = pool;
        let ring = RingChannel::open(&ctx, Arc::new(file.reopen().unwrap())).unwrap();
        (ring, file)
    }

    fn one(ring: &RingChannel) -> Finished {
        let mut finished = Vec::new();
        while finished.is_empty() {
            ring.turn(&mut finished);
        }
        finished.remove(0)
    }

    #[test]
    fn memory_goes_to_the_kernel_and_comes_back() {
        let (ring, _file) = ring(None);
        let mut scratch = Scratch::new();
        scratch.as_mut_slice()[..4].copy_from_slice(b"adit");
        let write = Command::Write {
            offset: 0,
            len: 4096,
            dsync: true,
        };
        ring.push(7, write, Buffer::Scratch(scratch)).unwrap();
        let finished = one(&ring);
        assert_eq!((finished.token, finished.result), (7, 4096));
        ring.push(8, Command::Sync, Buffer::None).unwrap();
        assert_eq!(one(&ring).result, 0);
        let read = Command::Read {
            offset: 0,
            len: 4096,
        };
        ring.push(9, read, Buffer::Scratch(Scratch::new())).unwrap();
        let finished = one(&ring);
        let Buffer::Scratch(scratch) = finished.buffer else {
            panic!("another buffer came back")
        };
        assert_eq!(&scratch.as_slice()[..4], b"adit");
        assert!(ring.registered().1);
    }

    #[test]
    fn the_kernel_never_gets_more_than_the_buffer_has() {
        let (ring, _file) = ring(None);
        let len = Scratch::LEN + 1;
        for command in [
            Command::Read { offset: 0, len },
            Command::Write {
                offset: 0,
                len,
                dsync: false,
            },
        ] {
            assert!(
                ring.push(0, command, Buffer::Scratch(Scratch::new()))
                    .is_err()
            );
            assert!(ring.push(0, command, Buffer::None).is_err());
        }
    }

    #[test]
    fn a_buffer_that_others_see_is_not_read_into() {
        let (ring, _file) = ring(None);
        let options = IobufOptions {
            backing: BackingPreference::Plain4K,
            ..Default::default()
        };
        let pool = IobufPool::new(options).unwrap();
        let channel = pool.channel("test", Default::default()).unwrap();
        let mut buf = channel.get(4096).unwrap();
        let view = buf.share(0..512);
        let read = Command::Read {
            offset: 0,
            len: 512,
        };
        let refused = ring
            .push(0, read, Buffer::Payload(buf.into(), 0))
            .unwrap_err();
        drop(view);
        ring.push(0, read, refused).unwrap();
        assert_eq!(one(&ring).result, 0);
    }

    #[test]
    fn regions_that_are_resident_are_registered_and_others_are_not() {
        let options = |backing| IobufOptions {
            small_pool_count: 128,
            large_pool_count: 8,
            backing,
            ..Default::default()
        };
        let plain = IobufPool::new(options(BackingPreference::Plain4K)).unwrap();
        assert_eq!(ring(Some(plain)).0.registered().0, 0);
        match IobufPool::new(options(BackingPreference::Hugetlb2M)) {
            Err(error) => eprintln!("skipped: no hugepages here: {error}"),
            Ok(pool) => {
                let channel = pool.channel("test", Default::default()).unwrap();
                let mut buf = channel.get(8192).unwrap();
                buf.as_mut_slice().fill(6);
                let (ring, _file) = ring(Some(Arc::clone(&pool)));
                assert!(ring.registered().0 > 0);
                let write = Command::Write {
                    offset: 0,
                    len: 8192,
                    dsync: false,
                };
                ring.push(0, write, Buffer::Payload(buf.into(), 0)).unwrap();
                assert_eq!(one(&ring).result, 8192);
            }
        }
    }
}
