//! The driver under operations and faults that a fuzzer chose, and what must hold whatever it chose.
//!
//! - Nothing panics; every I/O is answered, once, within [`ANSWER_WITHIN`] of the driver's clock.
//! - Each block holds what was written last, or, where something failed or the power was cut, one
//!   of the things that it may hold: per block, old or new.
//! - A buffer that was given back is not written any more, and none is kept for ever.
//! - Where nothing fails, every I/O succeeds and the controller runs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use block::{BlockDevice, Channel, Completion, Io, IoError, Op, Submit};
use dma::{IoBuf, Payload};
use nvme_driver::{AdminId, AdminRequest, ControllerState, Event};
use nvme_emu::Cut;
use nvme_spec::{Nsid, registers};

use crate::input::Input;
use crate::rig::{Host, bytes};

/// Blocks that the model follows, from the first.
const BLOCKS: usize = 64;
const BLOCKS_PER_IO: usize = 16;
const STEPS_MAX: usize = 200;
/// What buffers hold once they were given back. No block is ever written with it.
const CANARY: u8 = 0xc5;
/// What a buffer holds before it is read into.
const UNREAD: u8 = 0xee;
const KEPT_MAX: usize = 16;
/// All deadlines, attempts and set-ups that one I/O can meet with the few faults of a run.
const ANSWER_WITHIN: Duration = Duration::from_secs(600);
const TICK: Duration = Duration::from_millis(10);

/// What a block may hold: bit n for a block filled with n. A fill is below 128.
type Fills = u128;
const ANY: Fills = Fills::MAX;

#[derive(Clone)]
struct Block {
    /// What a read may find.
    now: Fills,
    /// What else it may find after a power cut.
    cut: Fills,
    /// Its halves may be of two kinds: a torn write.
    torn: bool,
    cut_torn: bool,
    /// Changes with every write and every power cut.
    version: u64,
    /// I/Os that are in flight there: others would have no order with them.
    busy: bool,
    /// A channel was dropped with a write in flight there, which may be done at any later time.
    wild: bool,
}

struct Sent {
    channel: usize,
    op: Op,
    first: usize,
    count: usize,
    fill: u8,
    at: Instant,
    /// Of a flush: each block's version, where it covers the block.
    covers: Vec<Option<u64>>,
}

struct Run {
    host: Host,
    channels: [Option<Box<dyn Channel>>; 2],
    blocks: Vec<Block>,
    sent: BTreeMap<u64, Sent>,
    next_tag: u64,
    kept: VecDeque<IoBuf>,
    retries: u64,
    /// Nothing was made to fail.
    harmless: bool,
    shutdown: bool,
    formatting: Option<AdminId>,
}

/// Runs what the bytes say.
pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (emu, options) = input.settings();
    let (at_start, faults) = (input.is(), input.below(6));
    let faults: Vec<_> = (0..faults).map(|_| input.fault()).collect();
    let retries = options.retries.into();
    let mut host = Host::attach(emu, options);
    host.tick = TICK;
    let block = Block {
        now: 1,
        cut: 1,
        torn: false,
        cut_torn: false,
        version: 0,
        busy: false,
        wild: false,
    };
    let mut run = Run {
        host,
        channels: [None, None],
        blocks: vec![block; BLOCKS],
        sent: BTreeMap::new(),
        next_tag: 0,
        kept: VecDeque::new(),
        retries,
        harmless: faults.is_empty(),
        shutdown: false,
        formatting: None,
    };
    let inject = |run: &mut Run| {
        for fault in &faults {
            run.host.emu().inject(*fault);
        }
    };
    if at_start {
        inject(&mut run);
    }
    run.settle();
    if !at_start {
        inject(&mut run);
    }
    run.open(0);
    run.open(1);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        run.step(&mut input);
    }
    run.end(input.is());
}

impl Run {
    fn step(&mut self, input: &mut Input<'_>) {
        let what = input.byte();
        match what % 16 {
            0..=3 => {
                let fua = what & 16 != 0;
                self.submit(Op::Write { fua }, input);
            }
            4 | 5 => self.submit(Op::Read, input),
            6 => self.submit(Op::Flush, input),
            7 if what & 16 != 0 => self.submit(Op::Unmap, input),
            7 => {
                let (unmap, fua) = (what & 32 != 0, what & 64 != 0);
                self.submit(Op::WriteZeroes { unmap, fua }, input);
            }
            8 => self.submit(Op::Compare, input),
            9 if what & 16 != 0 => self.submit(Op::Reset, input),
            9 => self.submit(Op::Verify, input),
            10 => self.turns(1 + input.below(64)),
            11 => {
                self.host.tick = TICK * 20;
                self.turns(1 + input.below(64));
                self.host.tick = TICK;
            }
            12 => self.owner(input),
            13 => {
                let channel = input.below(2);
                if what & 16 != 0 {
                    self.close(channel);
                } else {
                    self.open(channel);
                }
            }
            14 => self.accident(input),
            _ if what & 16 != 0 => self.format(input),
            _ => {
                self.harmless = false;
                let fault = input.fault();
                self.host.emu().inject(fault);
            }
        }
    }

    /// What the owner of the controller can ask for.
    fn owner(&mut self, input: &mut Input<'_>) {
        match input.below(6) {
            0 => self.host.controller.reset(),
            1 => self.host.controller.refresh_health(),
            2 => self.host.controller.rescan(),
            3 => {
                let tag = self.next_tag.saturating_sub(1 + input.below(8) as u64);
                let known = self.sent.get(&tag).map(|sent| sent.channel);
                if let Some(channel) = known.and_then(|at| self.channels[at].as_mut()) {
                    self.harmless &= !channel.abort(tag);
                }
            }
            4 => {
                self.harmless = false;
                let count = (BLOCKS + input.below(64)) as u64;
                self.host.emu().resize_namespace(1, count);
            }
            _ if input.below(4) == 0 => {
                self.harmless = false;
                self.shutdown = true;
                let now = self.host.now;
                self.host.controller.shutdown(now);
            }
            _ => self.host.emu().set_critical_warning(1),
        }
    }

    fn accident(&mut self, input: &mut Input<'_>) {
        self.harmless = false;
        let host = &self.host;
        match input.below(10) {
            0 => host.emu().fail(),
            1 => host.emu().function_reset(),
            2 | 3 if !host.emu().is_removed() => {
                let cut = Cut {
                    seed: input.byte().into(),
                    tear_blocks: input.is(),
                };
                host.emu().power_cut(cut);
                for block in &mut self.blocks {
                    block.now |= block.cut;
                    block.cut = block.now;
                    block.torn |= block.cut_torn | cut.tear_blocks;
                    block.cut_torn = block.torn;
                    block.version += 1;
                }
            }
            4 if input.below(4) == 0 => host.emu().remove(),
            5 => {
                // One at a time: a controller whose CC is stuck and that says that it is disabled
                // lies.
                host.emu().unstick_register(registers::CC);
                let values = [0, 1, 2, 3, u32::MAX];
                let value = values[input.below(values.len())];
                let survives = input.is();
                host.emu().stick_register(registers::CSTS, value, survives);
            }
            6 => {
                host.emu().unstick_register(registers::CSTS);
                let (value, survives) = (input.word(), input.is());
                host.emu().stick_register(registers::CC, value, survives);
            }
            7 => host.function.reset_fails.store(input.is(), SeqCst),
            8 => host.emu().clear_faults(),
            _ => {
                host.emu().unstick_register(registers::CC);
                host.emu().unstick_register(registers::CSTS);
            }
        }
    }

    fn open(&mut self, channel: usize) {
        let namespace = self.host.controller.namespaces().next().map(Arc::clone);
        let (Some(namespace), None) = (namespace, &self.channels[channel]) else {
            return;
        };
        let opened = namespace.open_channel(&self.host.context()).ok();
        assert!(
            opened.is_none() || self.formatting.is_none(),
            "a namespace is in use while it is formatted"
        );
        self.channels[channel] = opened;
    }

    /// Drops a channel. Nobody answers what was in flight.
    fn close(&mut self, channel: usize) {
        self.channels[channel] = None;
        let lost: Vec<u64> = (self.sent.iter())
            .filter(|(_, sent)| sent.channel == channel)
            .map(|(tag, _)| *tag)
            .collect();
        for tag in lost {
            let sent = self.sent.remove(&tag).unwrap();
            for block in self.range(&sent) {
                block.busy = false;
                if sent.op.modifies() {
                    (block.now, block.cut, block.wild) = (ANY, ANY, true);
                    block.version += 1;
                }
            }
        }
    }

    fn format(&mut self, input: &mut Input<'_>) {
        let lbaf = input.below(3) as u8;
        if !self.sent.is_empty() || self.formatting.is_some() {
            return;
        }
        self.close(0);
        self.close(1);
        let request = AdminRequest::format(Nsid(1), lbaf, 0);
        if let Ok(id) = self.host.controller.admin(&request, self.host.now) {
            self.formatting = Some(id);
            for block in &mut self.blocks {
                (block.now, block.cut) = (ANY, ANY);
                (block.torn, block.cut_torn) = (true, true);
            }
        }
    }

    fn range(&mut self, sent: &Sent) -> &mut [Block] {
        let end = sent.first + sent.count;
        &mut self.blocks[sent.first..end]
    }

    fn submit(&mut self, op: Op, input: &mut Input<'_>) {
        let [place, length, fill] = input.bytes();
        let (channel, fill) = (usize::from(place >> 7), fill & 0x7f);
        let Some(namespace) = self.host.controller.namespaces().next().map(Arc::clone) else {
            return;
        };
        if self.channels[channel].is_none() {
            return;
        }
        let geometry = namespace.geometry();
        let count = if op.has_range() {
            1 + usize::from(length) % BLOCKS_PER_IO.min(geometry.max_transfer_blocks as usize)
        } else {
            0
        };
        let first = usize::from(place & 0x7f) % (BLOCKS - count);
        let is_zeroes = matches!(op, Op::WriteZeroes { .. } | Op::Unmap);
        let covers = |block: &Block| (!block.busy && !block.wild).then_some(block.version);
        let sent = Sent {
            channel,
            op,
            first,
            count,
            fill: if is_zeroes { 0 } else { fill },
            at: self.host.now,
            covers: match op {
                Op::Flush => self.blocks.iter().map(covers).collect(),
                _ => Vec::new(),
            },
        };
        if self.range(&sent).iter().any(|block| block.busy) {
            return;
        }
        let len = count * geometry.block_size as usize;
        let is_odd = length & 0x80 != 0;
        let payload = match op {
            Op::Read => self.payload(len, UNREAD, is_odd),
            Op::Write { .. } | Op::Compare => self.payload(len, fill, is_odd),
            _ => Some(Payload::None),
        };
        let Some(payload) = payload else {
            return;
        };
        for block in self.range(&sent) {
            block.busy = true;
            if op.modifies() {
                block.now |= 1 << sent.fill;
                block.cut |= 1 << sent.fill;
                block.version += 1;
            }
        }
        let tag = self.next_tag;
        self.next_tag += 1;
        self.sent.insert(tag, sent);
        let io = Io::with_payload(op, first as u64, count as u32, payload, tag);
        let now = self.host.now;
        let answer = self.channels[channel].as_mut().unwrap().submit(io, now);
        if let Submit::Done(completion) = answer {
            self.ended(completion);
        }
    }

    /// A payload at an address that the drive reaches, or at an odd one.
    fn payload(&self, len: usize, fill: u8, is_odd: bool) -> Option<Payload> {
        let mut buf = self.host.bufs.get(len + 4)?;
        let mut buf = if is_odd {
            let _front = buf.split_to(3);
            buf
        } else {
            buf
        };
        buf.set_len(len);
        buf.as_mut_slice().fill(fill);
        Some(Payload::Buf(buf))
    }

    fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.turn();
        }
    }

    fn turn(&mut self) {
        self.host.turn();
        let mut done = Vec::new();
        for channel in self.channels.iter_mut().flatten() {
            channel.poll(self.host.now, &mut done);
        }
        for completion in done {
            self.ended(completion);
        }
        for event in std::mem::take(&mut self.host.events) {
            if let Event::Error(error) = &event {
                assert!(!error.to_string().is_empty());
            }
            if let Event::AdminDone { id, result } = event {
                assert_eq!(self.formatting.take(), Some(id), "answered once");
                if result.is_ok() {
                    for block in self.blocks.iter_mut().filter(|block| !block.wild) {
                        (block.now, block.cut) = (1, 1);
                        (block.torn, block.cut_torn) = (false, false);
                        block.version += 1;
                    }
                }
            }
        }
    }

    fn ended(&mut self, completion: Completion) {
        let Completion { io, result } = completion;
        let sent = self.sent.remove(&io.tag).expect("answered once");
        let waited = self.host.now - sent.at;
        assert!(waited <= ANSWER_WITHIN, "{:?} took {waited:?}", sent.op);
        let stats = self.host.controller.stats();
        // How many resets an I/O outlives is a setting; a busy queue can take its time.
        let must_succeed = self.harmless && stats.timeouts == 0 && stats.resets <= self.retries;
        let may_fail = matches!(
            result,
            Err(IoError::CompareMismatch { .. } | IoError::Unsupported)
        );
        assert!(
            result.is_ok() || may_fail || !must_succeed,
            "{:?} failed with {result:?} and nothing was wrong",
            sent.op
        );
        for block in self.range(&sent) {
            block.busy = false;
        }
        match (sent.op, result) {
            (Op::Read, Ok(())) => self.was_read(&sent, &bytes(&io.payload)),
            (Op::Compare, Ok(())) => {
                let fill = sent.fill;
                for block in self.range(&sent) {
                    assert!(block.now >> fill & 1 != 0, "compare took {fill} for equal");
                    block.is_known(fill);
                }
            }
            (Op::Compare, Err(IoError::CompareMismatch { .. })) => {
                let only = 1 << sent.fill;
                let differs = |block: &Block| block.now != only || block.torn || block.wild;
                assert!(self.range(&sent).iter().any(differs));
            }
            (Op::Flush, Ok(())) => {
                for (block, version) in self.blocks.iter_mut().zip(sent.covers) {
                    if version == Some(block.version) {
                        (block.cut, block.cut_torn) = (block.now, block.torn);
                    }
                }
            }
            (op, Ok(())) if op.modifies() => {
                let fill = 1 << sent.fill;
                for block in self.range(&sent).iter_mut().filter(|block| !block.wild) {
                    (block.now, block.torn) = (fill, false);
                    if op.fua() {
                        (block.cut, block.cut_torn) = (fill, false);
                    }
                }
            }
            _ => {}
        }
        if let Payload::Buf(mut buf) = io.payload {
            let slice = buf.try_as_mut_slice();
            slice.expect("it is nobody else's").fill(CANARY);
            self.kept.push_back(buf);
            if self.kept.len() > KEPT_MAX {
                self.give_back();
            }
        }
    }

    /// Looks at the buffer that was answered longest ago.
    fn give_back(&mut self) {
        if let Some(buf) = self.kept.pop_front() {
            let untouched = buf.as_slice().iter().all(|byte| *byte == CANARY);
            assert!(untouched, "written after it was given back");
        }
    }

    fn was_read(&mut self, sent: &Sent, data: &[u8]) {
        let block_size = data.len() / sent.count;
        for (block, data) in (self.range(sent).iter_mut()).zip(data.chunks_exact(block_size)) {
            if let Some(fill) = block.check(data) {
                block.is_known(fill);
            }
        }
    }

    /// Until the controller runs or has ended.
    fn settle(&mut self) {
        let until = self.host.now + ANSWER_WITHIN;
        let settled = |host: &Host| {
            let state = host.controller.state();
            state == ControllerState::Running || state.is_final()
        };
        while !settled(&self.host) {
            assert!(self.host.now < until, "neither up nor given up");
            self.turn();
        }
    }

    fn answer_all(&mut self) {
        let until = self.host.now + ANSWER_WITHIN;
        while !self.sent.is_empty() {
            assert!(self.host.now < until, "not answered: {:?}", {
                let ops = self.sent.values().map(|sent| sent.op);
                ops.collect::<Vec<_>>()
            });
            self.turn();
        }
    }

    fn end(mut self, by_shutdown: bool) {
        self.host.tick = TICK * 4;
        self.answer_all();
        {
            let mut emu = self.host.emu();
            emu.clear_faults();
            emu.unstick_register(registers::CC);
            emu.unstick_register(registers::CSTS);
        }
        self.host.function.reset_fails.store(false, SeqCst);
        self.settle();
        let state = self.host.controller.state();
        if self.harmless && self.host.controller.stats().timeouts == 0 {
            assert_eq!(state, ControllerState::Running, "nothing was wrong");
        }
        self.look_at_media();
        if state == ControllerState::Running {
            self.read_all();
        }
        if by_shutdown && !self.host.controller.is_final() {
            let now = self.host.now;
            self.host.controller.shutdown(now);
            let until = now + ANSWER_WITHIN;
            while !self.host.controller.is_final() {
                assert!(self.host.now < until, "the shutdown does not end");
                self.turn();
            }
        }
        while !self.kept.is_empty() {
            self.give_back();
        }
        self.nothing_is_left();
    }

    fn look_at_media(&self) {
        let emu = self.host.emu();
        let Some(media) = emu.media(1) else {
            return;
        };
        for (lba, block) in self.blocks.iter().enumerate() {
            block.check(&media.block(lba as u64));
        }
    }

    /// The driver works on: every block can be read.
    fn read_all(&mut self) {
        let until = self.host.now + ANSWER_WITHIN;
        while self.channels.iter().all(Option::is_none) {
            assert!(self.host.now < until, "no channel can be opened");
            self.turn();
            if self.host.controller.is_final() {
                return;
            }
            self.open(0);
        }
        // What was left over may still cost a command its time, or the controller a reset.
        for lba in (0..BLOCKS).step_by(8) {
            let at = usize::from(self.channels[0].is_none()) << 7 | lba;
            self.submit(Op::Read, &mut Input::new(&[at as u8, 7, 0]));
            self.answer_all();
        }
    }

    /// Once all are dropped, the device reaches nothing but the pool, and the pool is whole. What
    /// channels left in flight waits for the next look of one of their thread: there must be one.
    fn nothing_is_left(self) {
        let Self {
            host, mut channels, ..
        } = self;
        let Host {
            function,
            controller,
            pool,
            bufs,
            now,
            ..
        } = host;
        drop(controller);
        // A channel that is polled frees what others of its thread left.
        for channel in channels.iter_mut().flatten() {
            channel.poll(now, &mut Vec::new());
        }
        let collected = channels.iter().any(Option::is_some);
        drop(channels);
        assert!(!function.emu().is_bus_master());
        drop(bufs);
        if !collected {
            return;
        }
        let of_pool = pool.regions();
        let is_ours = |region: &&Arc<dma::Region>| {
            !(of_pool.iter()).any(|of_pool| of_pool.addr() == region.addr())
        };
        let mapped = function.regions.lock().unwrap().clone();
        assert_eq!(mapped.iter().filter(is_ours).count(), 0, "still mapped");
        let stats = pool.stats();
        let in_use = stats.small.in_use() + stats.large.in_use();
        assert_eq!(in_use, 0, "buffers are kept");
    }
}

impl Block {
    /// Whether it may hold `data`. What it is filled with, where it is of one kind.
    fn check(&self, data: &[u8]) -> Option<u8> {
        let halves = data.split_at(data.len() / 2);
        let fill = |half: &[u8]| {
            let fill = half[0];
            assert!(half.iter().all(|byte| *byte == fill), "two writes in one");
            let may_be = fill < 128 && self.now >> fill & 1 != 0;
            assert!(may_be, "it holds {fill:#x}, may hold {:#x}", self.now);
            fill
        };
        let fills = (fill(halves.0), fill(halves.1));
        assert!(fills.0 == fills.1 || self.torn, "torn: {fills:?}");
        (fills.0 == fills.1).then_some(fills.0)
    }

    /// It was seen to hold this.
    fn is_known(&mut self, fill: u8) {
        if !self.wild && !self.torn {
            self.now = 1 << fill;
        }
    }
}
