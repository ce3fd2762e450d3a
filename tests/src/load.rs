//! Load whose every byte is checked.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::host::{BLOCK_BYTES, Host, HostError, HostOptions, Outcome, Request};
use crate::patience;

/// Numbers that look random and come again with the same seed (xorshift64*).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % bound
    }
}

/// A block's content: it tells which block it is, and the how-manieth write of it. The 0th is zeroes.
fn block(lba: u64, version: u64) -> [u8; BLOCK_BYTES] {
    let mut bytes = [0; BLOCK_BYTES];
    if version > 0 {
        for (number, word) in bytes.chunks_exact_mut(8).enumerate() {
            let value = match number % 2 {
                0 => lba ^ 0xadad_0000_0000_0000,
                _ => version.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (number as u64 / 2),
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }
    bytes
}

/// What is known of one block.
#[derive(Debug, Default, Clone)]
struct Known {
    /// The last write that a flush covered, or that had FUA.
    durable: u64,
    /// The last write that was acknowledged.
    acknowledged: u64,
    /// The last write that was sent.
    sent: u64,
}

/// What was written to a range of blocks, and how safe it must be by now.
#[derive(Debug, Clone)]
pub struct Ledger {
    start: u64,
    blocks: Vec<Known>,
}

impl Ledger {
    /// For a range of zeroes.
    pub fn new(range: &Range<u64>) -> Self {
        let count = usize::try_from(range.end - range.start).expect("it fits into memory");
        Self {
            start: range.start,
            blocks: vec![Known::default(); count],
        }
    }

    fn known(&mut self, lba: u64) -> &mut Known {
        &mut self.blocks[(lba - self.start) as usize]
    }

    /// Data of the next write of these blocks.
    fn write(&mut self, lba: u64, blocks: u64) -> Vec<u8> {
        let mut data = Vec::with_capacity(blocks as usize * BLOCK_BYTES);
        for lba in lba..lba + blocks {
            let known = self.known(lba);
            known.sent += 1;
            data.extend_from_slice(&block(lba, known.sent));
        }
        data
    }

    /// Panics unless a read, made while nothing wrote these blocks, found the last acknowledged
    /// write.
    fn check_read(&mut self, lba: u64, data: &[u8]) {
        for (lba, found) in (lba..).zip(data.chunks_exact(BLOCK_BYTES)) {
            let version = self.known(lba).acknowledged;
            assert!(
                found == block(lba, version),
                "block {lba} is not as it was last written (write {version})"
            );
        }
    }

    /// Checks the whole range after a crash: of each block the last durable write or a later one,
    /// whole. What is found counts as acknowledged and, after a flush, as durable.
    ///
    /// # Errors
    ///
    /// Of the host.
    ///
    /// # Panics
    ///
    /// When a block is something else.
    pub fn check_after_crash(&mut self, host: &mut Host) -> Result<(), HostError> {
        const STEP: usize = 128;
        for at in (0..self.blocks.len()).step_by(STEP) {
            let count = STEP.min(self.blocks.len() - at);
            let lba = self.start + at as u64;
            let data = host.read(lba, count as u32)?;
            for (lba, found) in (lba..).zip(data.chunks_exact(BLOCK_BYTES)) {
                let known = self.known(lba);
                let version = (known.durable..=known.sent).find(|each| found == block(lba, *each));
                let Some(version) = version else {
                    let old = (0..known.durable).find(|each| found == block(lba, *each));
                    panic!("block {lba} holds neither of the writes {known:?}, but {old:?}");
                };
                known.acknowledged = version;
            }
        }
        host.flush()?;
        for known in &mut self.blocks {
            known.durable = known.acknowledged;
            known.sent = known.acknowledged;
        }
        Ok(())
    }
}

/// What a load does.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Blocks that it has for itself.
    pub range: Range<u64>,
    /// Blocks of the largest command.
    pub blocks_max: u64,
    /// Of 100 commands, how many are reads.
    pub read_percent: u64,
    /// One command of so many is a flush, 0 = none.
    pub flush_every: u64,
    /// One write of so many has FUA, 0 = none.
    pub fua_every: u64,
    /// Commands in flight.
    pub queue_depth: usize,
    /// Rest after each answer. A load without one keeps a core busy for itself; several of them beside
    /// polling reactors leave the rest of a small machine, its kernel threads included, without any.
    pub rest: Duration,
    /// Seed of the random choices.
    pub seed: u64,
}

impl LoadOptions {
    /// Reads and writes of up to 16 KiB in a range, 8 in flight.
    pub fn new(range: Range<u64>) -> Self {
        Self {
            range,
            blocks_max: 32,
            read_percent: 50,
            flush_every: 0,
            fua_every: 0,
            queue_depth: 8,
            rest: Duration::ZERO,
            seed: 1,
        }
    }
}

/// How a load went.
#[derive(Debug)]
pub struct LoadReport {
    /// Commands that ended well.
    pub completed: u64,
    /// Longest time without a completion.
    pub longest_gap: Duration,
    /// Why it ended, unless it was told to. Data that is wrong is a panic.
    pub error: Option<HostError>,
    /// What must be found.
    pub ledger: Ledger,
}

/// Random reads and writes from one host, one command per block at a time, every read checked.
#[derive(Debug)]
struct Work {
    options: LoadOptions,
    dice: Dice,
    ledger: Ledger,
    /// Blocks with a command in flight.
    busy: HashMap<u64, ()>,
    /// By flush: what was acknowledged when it was sent.
    flushes: HashMap<u64, Vec<(u64, u64)>>,
    /// Acknowledged, and not covered by a flush.
    unflushed: HashMap<u64, u64>,
    next_tag: u64,
}

impl Work {
    fn next(&mut self) -> Option<(u64, Request)> {
        self.next_tag += 1;
        let tag = self.next_tag;
        let hit = |dice: &mut Dice, every: u64| every > 0 && dice.below(every) == 0;
        if hit(&mut self.dice, self.options.flush_every) {
            let covered = self.unflushed.iter().map(|(lba, version)| (*lba, *version));
            self.flushes.insert(tag, covered.collect());
            return Some((tag, Request::Flush));
        }
        let blocks = 1 + self.dice.below(self.options.blocks_max);
        let room = self.options.range.end - self.options.range.start - blocks + 1;
        let lba = self.options.range.start + self.dice.below(room);
        if (lba..lba + blocks).any(|lba| self.busy.contains_key(&lba)) {
            return None;
        }
        self.busy.extend((lba..lba + blocks).map(|lba| (lba, ())));
        let request = if self.dice.below(100) < self.options.read_percent {
            let blocks = blocks as u32;
            Request::Read { lba, blocks }
        } else {
            let data = self.ledger.write(lba, blocks);
            let fua = hit(&mut self.dice, self.options.fua_every);
            Request::Write { lba, data, fua }
        };
        Some((tag, request))
    }

    fn ended(&mut self, outcome: Outcome) -> Result<(), HostError> {
        let data = outcome.result?;
        match outcome.request {
            Request::Read { lba, .. } => {
                self.ledger.check_read(lba, &data);
                for lba in lba..lba + (data.len() / BLOCK_BYTES) as u64 {
                    self.busy.remove(&lba);
                }
            }
            Request::Write { lba, data, fua } => {
                for lba in lba..lba + (data.len() / BLOCK_BYTES) as u64 {
                    self.busy.remove(&lba);
                    let known = self.ledger.known(lba);
                    known.acknowledged = known.sent;
                    if fua {
                        known.durable = known.sent;
                    }
                    let version = known.sent;
                    self.unflushed.insert(lba, version);
                }
            }
            Request::Flush | Request::Send { .. } => {
                for (lba, version) in self.flushes.remove(&outcome.tag).unwrap_or_default() {
                    let known = self.ledger.known(lba);
                    known.durable = known.durable.max(version);
                    if self.unflushed.get(&lba) == Some(&version) {
                        self.unflushed.remove(&lba);
                    }
                }
            }
        }
        Ok(())
    }
}

/// A load on a thread of its own. It goes on until it is stopped or dropped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    completed: Arc<AtomicU64>,
    thread: Option<JoinHandle<LoadReport>>,
}

impl Load {
    /// Connects a host and starts it on a range of zeroes.
    ///
    /// # Panics
    ///
    /// When there is no thread to be had.
    pub fn start(port: u16, nqn: &str, host: &HostOptions, options: LoadOptions) -> Self {
        let ledger = Ledger::new(&options.range);
        Self::resume(port, nqn, host, options, ledger)
    }

    /// Connects a host and starts it on what an earlier load left.
    ///
    /// # Panics
    ///
    /// When there is no thread to be had.
    pub fn resume(
        port: u16,
        nqn: &str,
        host: &HostOptions,
        options: LoadOptions,
        ledger: Ledger,
    ) -> Self {
        let (nqn, host) = (nqn.to_owned(), host.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let completed = Arc::new(AtomicU64::new(0));
        let (told, count) = (Arc::clone(&stop), Arc::clone(&completed));
        let thread = std::thread::Builder::new()
            .name("load".to_owned())
            .spawn(move || {
                let connect = || Host::connect(port, &nqn, &host);
                run(connect, options, ledger, &told, &count)
            })
            .expect("a thread can be had");
        Self {
            stop,
            completed,
            thread: Some(thread),
        }
    }

    /// Commands that ended well so far.
    pub fn completed(&self) -> u64 {
        self.completed.load(Ordering::Relaxed)
    }

    /// Whether it has ended by itself, as it does on an error.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until so many more commands have ended well.
    ///
    /// # Panics
    ///
    /// When the load ends before, or does not get there in a minute.
    #[track_caller]
    pub fn progress(&self, more: u64) {
        let goal = self.completed() + more;
        crate::until("the load to go on", || {
            assert!(!self.has_ended(), "the load has ended");
            (self.completed() >= goal).then_some(())
        });
    }

    /// Waits until it has ended by itself: its connection breaks.
    ///
    /// # Panics
    ///
    /// When it found wrong data.
    pub fn wait(mut self) -> LoadReport {
        self.join()
    }

    /// Ends it once all that is in flight has ended.
    ///
    /// # Panics
    ///
    /// When it found wrong data.
    pub fn stop(mut self) -> LoadReport {
        self.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    fn join(&mut self) -> LoadReport {
        let thread = self.thread.take().expect("it is joined once");
        match thread.join() {
            Ok(report) => report,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic was printed; this one is on its way out as well.
            let _ = thread.join();
        }
    }
}

fn run(
    connect: impl FnOnce() -> Result<Host, HostError>,
    options: LoadOptions,
    ledger: Ledger,
    stop: &AtomicBool,
    completed: &AtomicU64,
) -> LoadReport {
    let dice = Dice::new(options.seed);
    let pace = (options.queue_depth, options.rest);
    let mut work = Work {
        options,
        dice,
        ledger,
        busy: HashMap::new(),
        flushes: HashMap::new(),
        unflushed: HashMap::new(),
        next_tag: 0,
    };
    let mut longest_gap = Duration::ZERO;
    let gap = &mut longest_gap;
    let result =
        connect().and_then(|mut host| drive(&mut host, &mut work, pace, stop, completed, gap));
    LoadReport {
        completed: completed.load(Ordering::Relaxed),
        longest_gap,
        error: result.err(),
        ledger: work.ledger,
    }
}

fn drive(
    host: &mut Host,
    work: &mut Work,
    (depth, rest): (usize, Duration),
    stop: &AtomicBool,
    completed: &AtomicU64,
    longest_gap: &mut Duration,
) -> Result<(), HostError> {
    let mut done = Vec::new();
    let mut last = Instant::now();
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        while !stopping && host.in_flight() < depth && host.has_room() {
            let Some((tag, request)) = work.next() else {
                break;
            };
            host.submit(tag, request)?;
        }
        if stopping && host.in_flight() == 0 {
            return Ok(());
        }
        let polled = host.poll(Duration::from_millis(100), &mut done);
        let gap = last.elapsed();
        if !done.is_empty() {
            *longest_gap = gap.max(*longest_gap);
            last = Instant::now();
        } else if host.in_flight() > 0 && gap > patience(60) {
            let (what, waited) = ("a completion", gap);
            return Err(HostError::Deadline { what, waited });
        }
        // Answers that came before the connection broke count, and so does the first error.
        let mut error = None;
        for outcome in done.drain(..) {
            match work.ended(outcome) {
                Ok(()) => drop(completed.fetch_add(1, Ordering::Relaxed)),
                Err(first) => error = error.or(Some(first)),
            }
        }
        if let Some(error) = error {
            return Err(error);
        }
        polled?;
        if !rest.is_zero() {
            std::thread::sleep(rest);
        }
    }
}
