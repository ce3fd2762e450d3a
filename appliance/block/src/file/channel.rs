//! One thread's channel to a file device: each I/O is a small state machine over ring operations.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use dma::Payload;

use crate::BlockError;
use crate::device::{Channel, ChannelContext, unsupported};
use crate::file::Shared;
use crate::file::ring::{Buffer, Command, Finished, RingChannel, Scratch};
use crate::io::{Completion, Io, IoError, Op, Submit};
use crate::slab::Slab;

/// Scratch buffers of one channel. An I/O that needs one waits when all are out.
const SCRATCH_MAX: usize = 8;

pub(crate) struct FileChannel {
    shared: Arc<Shared>,
    ring: RingChannel,
    block_shift: u32,
    /// Payload memory must be aligned so, or is copied through scratch.
    alignment: usize,
    queue_depth: usize,
    tasks: Slab<Task>,
    count: usize,
    scratch_free: Vec<Scratch>,
    scratch_made: usize,
    /// Tasks that wait for a scratch buffer.
    scratch_waiting: VecDeque<usize>,
    finished: Vec<Finished>,
    ready: Vec<Completion>,
    pushed: bool,
}

/// An I/O on its way. It has at most one operation in the ring.
#[derive(Debug)]
struct Task {
    io: Io,
    step: Step,
    first_byte: u64,
    len: usize,
    /// Bytes of the range that are dealt with.
    done: usize,
    /// Bytes of the operation in the ring.
    moving: usize,
    scratch: Option<Scratch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Between file and payload.
    Direct,
    /// Between file and payload, through scratch.
    Bounce,
    /// Read into scratch and compare, or just read.
    Check,
    /// Deallocate or zero a range.
    Allocate { punch: bool },
    /// Write zeroes out of scratch.
    ZeroWrite,
    /// `fdatasync`.
    Sync,
}

impl Step {
    fn needs_scratch(self) -> bool {
        matches!(self, Self::Bounce | Self::Check | Self::ZeroWrite)
    }
}

/// What to do with a task now.
enum Next {
    Continue,
    End(Result<(), IoError>),
}

impl FileChannel {
    pub(crate) fn open(
        ctx: &ChannelContext,
        shared: Arc<Shared>,
        block_shift: u32,
        alignment: usize,
    ) -> Result<Self, BlockError> {
        Ok(Self {
            ring: RingChannel::open(ctx, Arc::clone(&shared.file))?,
            shared,
            block_shift,
            alignment,
            queue_depth: ctx.queue_depth as usize,
            tasks: Slab::new(),
            count: 0,
            scratch_free: Vec::new(),
            scratch_made: 0,
            scratch_waiting: VecDeque::new(),
            finished: Vec::new(),
            ready: Vec::new(),
            pushed: false,
        })
    }

    fn first_step(&self, io: &Io) -> Step {
        match io.op {
            Op::Read | Op::Write { .. } => {
                let addr = match &io.payload {
                    Payload::Buf(buf) => buf.addr(),
                    Payload::Lent(lent) => lent.addr(),
                    Payload::None => 0,
                };
                if addr.is_multiple_of(self.alignment) {
                    Step::Direct
                } else {
                    Step::Bounce
                }
            }
            Op::Compare | Op::Verify => Step::Check,
            Op::Unmap => Step::Allocate { punch: true },
            Op::WriteZeroes { unmap, .. } => {
                if unmap && !self.shared.no_punch_hole.load(Ordering::Relaxed) {
                    Step::Allocate { punch: true }
                } else if !self.shared.no_zero_range.load(Ordering::Relaxed) {
                    Step::Allocate { punch: false }
                } else {
                    Step::ZeroWrite
                }
            }
            Op::Flush | Op::Reset | Op::CompareAndWrite { .. } => Step::Sync,
        }
    }

    /// Takes a scratch buffer if the step needs one, and pushes the next operation.
    fn advance(&mut self, index: usize) {
        let Some(task) = self.tasks.get_mut(index) else {
            return;
        };
        if task.step.needs_scratch() && task.scratch.is_none() {
            task.scratch = match self.scratch_free.pop() {
                Some(scratch) => Some(scratch),
                None if self.scratch_made < SCRATCH_MAX => {
                    self.scratch_made += 1;
                    Some(Scratch::new())
                }
                None => {
                    self.scratch_waiting.push_back(index);
                    return;
                }
            };
            if task.step == Step::ZeroWrite
                && let Some(scratch) = &mut task.scratch
            {
                scratch.as_mut_slice().fill(0);
            }
        }
        let (command, buffer) = task.next_operation();
        if let Err(buffer) = self.ring.push(index as u64, command, buffer) {
            task.take_back(buffer);
            self.end(index, Err(IoError::InvalidField));
            return;
        }
        self.pushed = true;
    }

    /// An operation of the ring has ended.
    fn operation_ended(&mut self, finished: Finished) {
        let index = finished.token as usize;
        let Some(task) = self.tasks.get_mut(index) else {
            return;
        };
        task.take_back(finished.buffer);
        let next = match usize::try_from(finished.result) {
            Ok(moved) => task.moved(moved),
            Err(_) => task.failed(-finished.result, &self.shared),
        };
        match next {
            Next::Continue => self.advance(index),
            Next::End(result) => self.end(index, result),
        }
    }

    fn end(&mut self, index: usize, result: Result<(), IoError>) {
        let Some(mut task) = self.tasks.remove(index) else {
            return;
        };
        self.count -= 1;
        if let Some(scratch) = task.scratch.take() {
            self.scratch_free.push(scratch);
            if let Some(waiting) = self.scratch_waiting.pop_front() {
                self.advance(waiting);
            }
        }
        self.ready.push(task.io.complete(result));
    }
}

impl Task {
    /// The operation that the task wants from the ring now.
    fn next_operation(&mut self) -> (Command, Buffer) {
        let offset = self.first_byte + self.done as u64;
        let left = self.len - self.done;
        let dsync = matches!(self.io.op, Op::Write { fua: true });
        match self.step {
            Step::Direct => {
                self.moving = left;
                let buffer = Buffer::Payload(self.io.payload.take(), self.done);
                let command = match self.io.op {
                    Op::Read => Command::Read { offset, len: left },
                    _ => Command::Write {
                        offset,
                        len: left,
                        dsync,
                    },
                };
                (command, buffer)
            }
            Step::Bounce | Step::Check | Step::ZeroWrite => {
                let len = left.min(Scratch::LEN);
                self.moving = len;
                let is_write = matches!(self.io.op, Op::Write { .. } | Op::WriteZeroes { .. });
                let mut scratch = self.scratch.take().expect("`advance` gave it one");
                if is_write && self.step == Step::Bounce {
                    self.io
                        .payload
                        .copy_range_to(self.done, &mut scratch.as_mut_slice()[..len]);
                }
                let command = if is_write {
                    Command::Write { offset, len, dsync }
                } else {
                    Command::Read { offset, len }
                };
                (command, Buffer::Scratch(scratch))
            }
            Step::Allocate { punch } => {
                let mode = if punch {
                    libc::FALLOC_FL_PUNCH_HOLE
                } else {
                    libc::FALLOC_FL_ZERO_RANGE
                };
                let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
                (
                    Command::Allocate {
                        offset,
                        len: left as u64,
                        mode,
                    },
                    Buffer::None,
                )
            }
            Step::Sync => (Command::Sync, Buffer::None),
        }
    }

    fn take_back(&mut self, buffer: Buffer) {
        match buffer {
            Buffer::None => {}
            Buffer::Payload(payload, _) => self.io.payload = payload,
            Buffer::Scratch(scratch) => self.scratch = Some(scratch),
        }
    }

    /// The operation moved so many bytes.
    fn moved(&mut self, moved: usize) -> Next {
        match self.step {
            Step::Sync => return Next::End(Ok(())),
            Step::Allocate { .. } => return self.range_done(),
            Step::Direct | Step::Bounce | Step::Check | Step::ZeroWrite => {}
        }
        if moved == 0 || moved > self.moving {
            // The file ends before the device does: someone cut it.
            return Next::End(Err(self.media_error()));
        }
        if self.step != Step::Direct
            && let Some(scratch) = &self.scratch
        {
            let bytes = &scratch.as_slice()[..moved];
            match self.io.op {
                Op::Read => {
                    let to = self
                        .io
                        .payload
                        .as_buf_mut()
                        .and_then(|buf| buf.try_as_mut_slice());
                    let Some(to) = to else {
                        return Next::End(Err(IoError::InvalidField));
                    };
                    to[self.done..self.done + moved].copy_from_slice(bytes);
                }
                Op::Compare => {
                    if let Some(at) = first_difference(&self.io.payload, self.done, bytes) {
                        let offset_bytes = u32::try_from(at).unwrap_or(u32::MAX);
                        return Next::End(Err(IoError::CompareMismatch { offset_bytes }));
                    }
                }
                _ => {}
            }
        }
        self.done += moved;
        if self.done < self.len {
            Next::Continue
        } else {
            self.range_done()
        }
    }

    /// The whole range is dealt with. What was not written with `RWF_DSYNC` is synced if it must be.
    fn range_done(&mut self) -> Next {
        if matches!(self.io.op, Op::WriteZeroes { fua: true, .. }) {
            self.step = Step::Sync;
            return Next::Continue;
        }
        Next::End(Ok(()))
    }

    /// The operation failed with this error number.
    fn failed(&mut self, errno: i32, shared: &Shared) -> Next {
        match (errno, self.step) {
            (libc::EINTR | libc::EAGAIN, _) => Next::Continue,
            (libc::EOPNOTSUPP | libc::ENOSYS, Step::Allocate { punch }) => {
                if punch {
                    shared.no_punch_hole.store(true, Ordering::Relaxed);
                } else {
                    shared.no_zero_range.store(true, Ordering::Relaxed);
                }
                if self.io.op == Op::Unmap {
                    // A hint that the file system cannot take.
                    return Next::End(Ok(()));
                }
                let zero_range = punch && !shared.no_zero_range.load(Ordering::Relaxed);
                self.step = if zero_range {
                    Step::Allocate { punch: false }
                } else {
                    Step::ZeroWrite
                };
                Next::Continue
            }
            _ => Next::End(Err(error_of(errno, self.media_error()))),
        }
    }

    fn media_error(&self) -> IoError {
        match self.io.op {
            Op::Read | Op::Compare | Op::Verify => IoError::MediaRead,
            _ => IoError::MediaWrite,
        }
    }
}

/// What an error number of the kernel means for an I/O; `media` is for those that blame the medium.
fn error_of(errno: i32, media: IoError) -> IoError {
    match errno {
        libc::EIO | libc::ENODATA | libc::EILSEQ | libc::EREMOTEIO | libc::ETIMEDOUT => media,
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => IoError::NoSpace,
        libc::EROFS => IoError::WriteProtected,
        libc::ENODEV | libc::ENXIO | libc::ESTALE => IoError::Removed,
        libc::ECANCELED => IoError::Aborted,
        libc::EOPNOTSUPP => IoError::Unsupported,
        _ => IoError::Internal,
    }
}

/// The first byte at which `payload`, from `from` on, differs from `bytes`; counted from the start of
/// the payload.
fn first_difference(payload: &Payload, from: usize, bytes: &[u8]) -> Option<usize> {
    let position = |ours: &[u8], theirs: &[u8]| ours.iter().zip(theirs).position(|(a, b)| a != b);
    if let Payload::Buf(buf) = payload {
        let ours = &buf.as_slice()[from..from + bytes.len()];
        if ours == bytes {
            return None;
        }
        return position(ours, bytes).map(|at| from + at);
    }
    let mut piece = [0; 512];
    for (index, theirs) in bytes.chunks(piece.len()).enumerate() {
        let at = from + index * 512;
        let ours = &mut piece[..theirs.len()];
        payload.copy_range_to(at, ours);
        if let Some(difference) = position(ours, theirs) {
            return Some(at + difference);
        }
    }
    None
}

impl Channel for FileChannel {
    fn submit(&mut self, io: Io, _now: Instant) -> Submit {
        match io.op {
            Op::CompareAndWrite { .. } => return unsupported(io),
            // Nothing to reset: the kernel owns the drive.
            Op::Reset => return Submit::Done(io.complete(Ok(()))),
            _ => {}
        }
        if self.count >= self.queue_depth {
            return Submit::Done(io.complete(Err(IoError::Busy)));
        }
        let step = self.first_step(&io);
        let task = Task {
            first_byte: io.lba.0 << self.block_shift,
            len: (io.blocks as usize) << self.block_shift,
            io,
            step,
            done: 0,
            moving: 0,
            scratch: None,
        };
        let index = self.tasks.insert(task);
        self.count += 1;
        self.advance(index);
        Submit::Pending
    }

    fn poll(&mut self, _now: Instant, done: &mut Vec<Completion>) -> usize {
        if self.count == 0 && self.ready.is_empty() {
            return 0;
        }
        let mut finished = std::mem::take(&mut self.finished);
        self.ring.turn(&mut finished);
        self.pushed = false;
        for operation in finished.drain(..) {
            self.operation_ended(operation);
        }
        self.finished = finished;
        if self.pushed {
            self.ring.flush();
        }
        let count = self.ready.len();
        done.append(&mut self.ready);
        count
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ring.wake_fd().as_fd())
    }

    fn abort(&mut self, tag: u64) -> bool {
        // What the kernel has cannot be taken back; what waits for a scratch buffer can.
        let waiting = self.scratch_waiting.iter().position(|index| {
            self.tasks
                .iter()
                .any(|(other, task)| other == *index && task.io.tag == tag)
        });
        let Some(index) = waiting.and_then(|at| self.scratch_waiting.remove(at)) else {
            return false;
        };
        self.end(index, Err(IoError::Aborted));
        true
    }

    fn in_flight(&self) -> usize {
        self.count + self.ready.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_medium_gives_media_errors() {
        for errno in [libc::EIO, libc::ENODATA, libc::EILSEQ] {
            assert_eq!(error_of(errno, IoError::MediaRead), IoError::MediaRead);
            assert_eq!(error_of(errno, IoError::MediaWrite), IoError::MediaWrite);
        }
    }

    #[test]
    fn a_full_file_system_and_an_exhausted_quota_give_no_space() {
        for errno in [libc::ENOSPC, libc::EDQUOT, libc::EFBIG] {
            assert_eq!(error_of(errno, IoError::MediaWrite), IoError::NoSpace);
        }
    }

    #[test]
    fn other_errors_have_their_status() {
        assert_eq!(
            error_of(libc::EROFS, IoError::MediaWrite),
            IoError::WriteProtected
        );
        assert_eq!(error_of(libc::ENXIO, IoError::MediaRead), IoError::Removed);
        assert_eq!(
            error_of(libc::EINVAL, IoError::MediaRead),
            IoError::Internal
        );
    }

    fn task(op: Op, len: usize) -> Task {
        let io = Io::new(op, 0, (len / 512) as u32, 0);
        let (first_byte, done, moving) = (4096, 0, 0);
        Task {
            io,
            step: Step::Direct,
            first_byte,
            len,
            done,
            moving,
            scratch: None,
        }
    }

    #[test]
    fn short_transfers_are_continued_where_they_ended() {
        let mut task = task(Op::Read, 4096);
        let (command, _) = task.next_operation();
        assert_eq!(
            command,
            Command::Read {
                offset: 4096,
                len: 4096
            }
        );
        assert!(matches!(task.moved(1024), Next::Continue));
        let (command, buffer) = task.next_operation();
        assert_eq!(
            command,
            Command::Read {
                offset: 5120,
                len: 3072
            }
        );
        assert!(matches!(buffer, Buffer::Payload(_, 1024)));
        assert!(matches!(task.moved(3072), Next::End(Ok(()))));
    }

    #[test]
    fn a_file_that_was_cut_gives_media_errors() {
        let mut task = task(Op::Read, 4096);
        let _ = task.next_operation();
        assert!(matches!(task.moved(0), Next::End(Err(IoError::MediaRead))));
    }

    #[test]
    fn write_zeroes_with_fua_ends_with_a_sync() {
        let mut task = task(
            Op::WriteZeroes {
                unmap: true,
                fua: true,
            },
            4096,
        );
        task.step = Step::Allocate { punch: true };
        let _ = task.next_operation();
        assert!(matches!(task.moved(0), Next::Continue));
        assert_eq!(task.next_operation().0, Command::Sync);
        assert!(matches!(task.moved(0), Next::End(Ok(()))));
    }

    fn shared() -> Shared {
        let file = std::fs::File::open("/dev/null").unwrap();
        let how = nix::fcntl::FlockArg::LockSharedNonblock;
        Shared {
            file: Arc::new(file.try_clone().unwrap()),
            no_zero_range: false.into(),
            no_punch_hole: false.into(),
            _lock: nix::fcntl::Flock::lock(file, how).unwrap(),
        }
    }

    #[test]
    fn an_interrupted_operation_is_repeated() {
        let mut task = task(Op::Write { fua: true }, 512);
        let first = task.next_operation().0;
        assert_eq!(
            first,
            Command::Write {
                offset: 4096,
                len: 512,
                dsync: true
            }
        );
        assert!(matches!(
            task.failed(libc::EINTR, &shared()),
            Next::Continue
        ));
        assert_eq!(task.next_operation().0, first);
        let next = task.failed(libc::EIO, &shared());
        assert!(matches!(next, Next::End(Err(IoError::MediaWrite))));
    }

    #[test]
    fn zeroes_are_written_out_where_the_file_system_knows_no_better() {
        let shared = shared();
        let mut task = task(
            Op::WriteZeroes {
                unmap: true,
                fua: false,
            },
            4096,
        );
        task.step = Step::Allocate { punch: true };
        assert!(matches!(
            task.failed(libc::EOPNOTSUPP, &shared),
            Next::Continue
        ));
        assert_eq!(task.step, Step::Allocate { punch: false });
        assert!(matches!(
            task.failed(libc::EOPNOTSUPP, &shared),
            Next::Continue
        ));
        assert_eq!(task.step, Step::ZeroWrite);
        task.scratch = Some(Scratch::new());
        let (command, _) = task.next_operation();
        assert_eq!(
            command,
            Command::Write {
                offset: 4096,
                len: 4096,
                dsync: false
            }
        );
        assert!(shared.no_punch_hole.load(Ordering::Relaxed));
    }

    #[test]
    fn unmap_is_a_hint_that_may_be_ignored() {
        let mut task = task(Op::Unmap, 4096);
        task.step = Step::Allocate { punch: true };
        let next = task.failed(libc::EOPNOTSUPP, &shared());
        assert!(matches!(next, Next::End(Ok(()))));
    }
}
