//! The engine that runs a workload.

use std::rc::Rc;
use std::time::{Duration, Instant};

use nvme_spec::{Lba, Nsid};

use super::histogram::LatencyHistogram;
use super::options::PerfOptions;
use super::pattern::{Pattern, mix};
use super::report::{OpReport, PerfReport};
use super::units::{MAX_VERIFIED_UNITS, Units};
use crate::admin::NamespaceInfo;
use crate::association::Operation;
use crate::buffer::Buffer;
use crate::command::{Completion, Submit};
use crate::controller::{Controller, ControllerState};
use crate::error::{CommandError, HostError};
use crate::io::{IoOp, IoRequest, MAX_BLOCKS};
use crate::io_queue::IoQueue;
use crate::queue::HostContext;

const DEFAULT_TIME: Duration = Duration::from_secs(10);

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PerfPhase {
    /// The controller is being connected.
    Connecting,
    /// The namespace is being looked at.
    Preparing,
    /// What is going to be read is being written.
    Filling,
    /// The workload runs, and nothing is counted yet.
    WarmingUp,
    /// The workload runs.
    Running,
    /// No more I/Os begin; those outstanding come back.
    Draining,
    /// The controller is being shut down.
    Disconnecting,
    /// The run is over.
    Finished,
}

/// What an I/O is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Read,
    Write,
    /// Reads a write back.
    ReadBack,
    /// Writes what is going to be read.
    Fill,
}

/// An I/O outstanding.
#[derive(Debug)]
struct Slot {
    started: Instant,
    unit: u64,
    purpose: Purpose,
    /// Kept between I/Os.
    buffer: Vec<u8>,
}

/// A connection and its I/Os.
struct Lane {
    queue: IoQueue,
    slots: Vec<Slot>,
    free: Vec<u16>,
}

/// What the run does to its namespace.
struct Plan {
    nsid: Nsid,
    /// Blocks of an I/O.
    blocks: u32,
    read_percent: u8,
    pattern: Pattern,
    write_data: Rc<[u8]>,
    /// The next unit to fill.
    fill_next: u64,
    filled: u64,
}

/// Figures so far.
struct Figures {
    since: Instant,
    until: Option<Instant>,
    reads: LatencyHistogram,
    writes: LatencyHistogram,
    begun: u64,
    errors: u64,
    first_error: Option<String>,
    verified: u64,
}

/// Runs a workload. See the module for how.
pub struct PerfEngine {
    options: PerfOptions,
    phase: PerfPhase,
    controller: Controller,
    preparing: Option<Operation<Vec<NamespaceInfo>>>,
    lanes: Vec<Lane>,
    plan: Option<Plan>,
    units: Units,
    figures: Figures,
    failure: Option<HostError>,
    completions: Vec<Completion>,
    scratch: Vec<u8>,
    calls: (u64, u64),
}

impl PerfEngine {
    /// Begins a run: its first step is to connect.
    ///
    /// # Errors
    /// An option cannot be used. All else shows in [`PerfEngine::failure`].
    pub fn new(options: PerfOptions, now: Instant) -> Result<Self, HostError> {
        options.check()?;
        let mut host = options.host.clone();
        host.io_queues = options.connections;
        host.io_queue_depth = options.queue_depth;
        let context = HostContext::new();
        let controller =
            Controller::connect(&options.address, &options.subnqn, host, &context, now)?;
        let outstanding = usize::from(options.queue_depth);
        Ok(Self {
            phase: PerfPhase::Connecting,
            controller,
            preparing: None,
            lanes: Vec::new(),
            plan: None,
            units: Units::new(1, false, options.seed, false),
            figures: Figures::new(now),
            failure: None,
            completions: Vec::with_capacity(outstanding),
            scratch: Vec::new(),
            calls: (0, 0),
            options,
        })
    }

    /// How far it is.
    #[must_use]
    pub fn phase(&self) -> PerfPhase {
        self.phase
    }

    /// Whether it is over, well or not.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.phase == PerfPhase::Finished
    }

    /// Why it ended early, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<&HostError> {
        self.failure.as_ref()
    }

    /// The controller that it uses.
    #[must_use]
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// Ends the workload before its time.
    pub fn stop(&mut self, now: Instant) {
        match self.phase {
            PerfPhase::Filling | PerfPhase::WarmingUp | PerfPhase::Running => self.drain(now),
            PerfPhase::Draining | PerfPhase::Disconnecting | PerfPhase::Finished => {}
            PerfPhase::Connecting | PerfPhase::Preparing => self.phase = PerfPhase::Finished,
        }
    }

    /// Moves everything on. Call it without pause. Returns whether anything came.
    pub fn poll(&mut self, now: Instant) -> bool {
        let worked = match self.phase {
            PerfPhase::Running | PerfPhase::WarmingUp | PerfPhase::Filling => {
                let worked = self.poll_lanes(now, true);
                self.advance_time(now);
                worked
            }
            PerfPhase::Draining => {
                let worked = self.poll_lanes(now, false);
                let is_idle = |lane: &Lane| lane.queue.in_flight() == 0;
                if self.phase == PerfPhase::Draining && self.lanes.iter().all(is_idle) {
                    self.disconnect(now);
                }
                worked
            }
            PerfPhase::Connecting => self.poll_connecting(),
            PerfPhase::Preparing => self.poll_preparing(now),
            PerfPhase::Disconnecting => {
                use ControllerState::{Failed, ShutDown};
                if matches!(self.controller.state(), ShutDown | Failed(_)) {
                    self.phase = PerfPhase::Finished;
                }
                false
            }
            PerfPhase::Finished => return false,
        };
        worked | self.poll_controller(now)
    }

    /// What the run has found so far.
    #[must_use]
    pub fn report(&self, now: Instant) -> PerfReport {
        let figures = &self.figures;
        let elapsed = figures.until.unwrap_or(now).saturating_duration_since(figures.since);
        let mut all = figures.reads.clone();
        all.merge(&figures.writes);
        let of = |histogram: &LatencyHistogram| {
            let count = histogram.count();
            OpReport::new(count, self.options.io_size, elapsed, histogram.summary())
        };
        let (mut send_calls, mut receive_calls) = self.calls;
        for lane in &self.lanes {
            let counters = lane.queue.counters();
            send_calls += counters.send_calls;
            receive_calls += counters.receive_calls;
        }
        PerfReport {
            elapsed,
            total: of(&all),
            reads: of(&figures.reads),
            writes: of(&figures.writes),
            errors: figures.errors,
            first_error: figures.first_error.clone(),
            verified: figures.verified,
            send_calls,
            receive_calls,
        }
    }

    fn poll_controller(&mut self, now: Instant) -> bool {
        let worked = self.controller.poll(now);
        while self.controller.take_event().is_some() {}
        if self.phase != PerfPhase::Disconnecting
            && let Some(error) = self.controller.failure()
        {
            let error = error.clone();
            self.fail(error, now);
        }
        worked
    }

    fn poll_connecting(&mut self) -> bool {
        if self.controller.is_ready() {
            self.preparing = Some(match self.options.nsid {
                Some(nsid) => {
                    let mut one = self.controller.admin().namespace(nsid);
                    Operation::new(std::future::poll_fn(move |_| match one.poll() {
                        Some(result) => std::task::Poll::Ready(result.map(|info| vec![info])),
                        None => std::task::Poll::Pending,
                    }))
                }
                None => self.controller.admin().namespaces(),
            });
            self.phase = PerfPhase::Preparing;
            return true;
        }
        false
    }

    fn poll_preparing(&mut self, now: Instant) -> bool {
        let Some(result) = self.preparing.as_mut().and_then(Operation::poll) else { return false };
        self.preparing = None;
        let prepared = result.and_then(|namespaces| {
            let first = namespaces.into_iter().next();
            first.ok_or_else(|| HostError::Unusable {
                reason: format!("subsystem {} has no namespace", self.options.subnqn),
            })
        });
        match prepared.and_then(|namespace| self.prepare(&namespace)) {
            Ok(()) => self.begin(now),
            Err(error) => self.fail(error, now),
        }
        true
    }

    /// Lays out the run.
    fn prepare(&mut self, namespace: &NamespaceInfo) -> Result<(), HostError> {
        let options = &self.options;
        let refuse = |reason| {
            let value = options.io_size.into();
            Err(HostError::Option { option: "io_size", value, reason })
        };
        let io_size = options.io_size;
        if !io_size.is_multiple_of(namespace.block_size) {
            return refuse("a multiple of the namespace's block size is needed");
        }
        let blocks = io_size / namespace.block_size;
        let info = self.controller.info();
        let most = info.and_then(|info| info.max_transfer_bytes).unwrap_or(u64::MAX);
        if blocks > MAX_BLOCKS || u64::from(io_size) > most {
            return refuse("it is more than the controller takes in one command (mdts)");
        }
        let size = namespace.size_bytes();
        let region = options.region_bytes.unwrap_or(size).min(size);
        let count = region / u64::from(io_size);
        if count == 0 {
            return refuse("it is more than the region that is used");
        }
        if options.verify && count > MAX_VERIFIED_UNITS {
            let (option, value) = ("region_bytes", region);
            let reason = "at most 2^26 I/Os can be verified: use a smaller region";
            return Err(HostError::Option { option, value, reason });
        }
        let mut random = options.seed ^ 0xAD17;
        let write_data: Vec<u8> =
            (0..io_size / 8).flat_map(|_| mix(&mut random).to_le_bytes()).collect();
        let pattern = Pattern {
            nsid: namespace.nsid,
            block_size: namespace.block_size as usize,
            run: mix(&mut random) as u32,
        };
        self.units = Units::new(count, options.workload.is_random(), options.seed, options.verify);
        self.scratch = vec![0; if options.verify { io_size as usize } else { 0 }];
        self.plan = Some(Plan {
            nsid: namespace.nsid,
            blocks,
            read_percent: options.workload.read_percent(options.read_percent),
            pattern,
            write_data: write_data.into(),
            fill_next: 0,
            filled: 0,
        });
        let queues = self.controller.take_io_queues();
        if queues.len() < usize::from(options.connections) {
            let (option, value) = ("connections", options.connections.into());
            let reason = "the controller does not grant so many I/O queues";
            return Err(HostError::Option { option, value, reason });
        }
        let now = self.figures.since;
        let (depth, verify, keep) = (options.queue_depth, options.verify, options.keep_data);
        self.lanes = queues
            .into_iter()
            .map(|queue| Lane::new(queue, depth, if verify || keep { io_size } else { 0 }, now))
            .collect();
        Ok(())
    }

    fn begin(&mut self, now: Instant) {
        let reads = self.plan.as_ref().is_some_and(|plan| plan.read_percent > 0);
        if self.options.verify && reads {
            self.phase = PerfPhase::Filling;
        } else {
            self.begin_workload(now);
        }
    }

    fn begin_workload(&mut self, now: Instant) {
        self.figures = Figures::new(now);
        self.phase = if self.options.warm_up.is_zero() {
            PerfPhase::Running
        } else {
            PerfPhase::WarmingUp
        };
    }

    fn advance_time(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.figures.since);
        match self.phase {
            PerfPhase::Filling
                if self.plan.as_ref().is_some_and(|plan| plan.filled == self.units.count()) =>
            {
                self.begin_workload(now);
            }
            PerfPhase::WarmingUp if elapsed >= self.options.warm_up => {
                let begun = self.figures.begun;
                self.figures = Figures::new(now);
                self.figures.begun = begun;
                self.phase = PerfPhase::Running;
            }
            PerfPhase::Running => {
                let time = match (self.options.time, self.options.count) {
                    (None, None) => Some(DEFAULT_TIME),
                    (time, _) => time,
                };
                let is_counted = self.options.count.is_some_and(|count| {
                    let figures = &self.figures;
                    figures.reads.count() + figures.writes.count() + figures.errors >= count
                });
                if is_counted || time.is_some_and(|time| elapsed >= time) {
                    self.drain(now);
                }
            }
            _ => {}
        }
    }

    fn drain(&mut self, now: Instant) {
        self.figures.until = Some(now);
        self.phase = PerfPhase::Draining;
    }

    fn disconnect(&mut self, now: Instant) {
        self.phase = PerfPhase::Disconnecting;
        let mut queues = Vec::new();
        for lane in self.lanes.drain(..) {
            let counters = lane.queue.counters();
            self.calls.0 += counters.send_calls;
            self.calls.1 += counters.receive_calls;
            queues.push(lane.queue);
        }
        self.controller.shut_down(queues, now);
    }

    fn fail(&mut self, error: HostError, now: Instant) {
        self.failure.get_or_insert(error);
        self.figures.until.get_or_insert(now);
        self.lanes.clear();
        self.phase = PerfPhase::Finished;
    }

    fn poll_lanes(&mut self, now: Instant, may_begin: bool) -> bool {
        let mut worked = false;
        let mut completions = std::mem::take(&mut self.completions);
        for index in 0..self.lanes.len() {
            worked |= self.lanes[index].queue.poll(now, &mut completions);
            for completion in completions.drain(..) {
                self.complete(index, completion, now);
                if self.phase == PerfPhase::Finished {
                    break;
                }
            }
            if self.phase == PerfPhase::Finished {
                break;
            }
            if let Some(error) = self.lanes[index].queue.failure() {
                let error = error.clone();
                self.fail(error, now);
                break;
            }
            if may_begin {
                self.begin_ios(index, now);
            }
        }
        completions.clear();
        self.completions = completions;
        worked
    }

    #[inline]
    fn begin_ios(&mut self, index: usize, now: Instant) {
        let Some(plan) = &mut self.plan else { return };
        let lane = &mut self.lanes[index];
        while let Some(&slot) = lane.free.last() {
            let (unit, purpose) = match self.phase {
                PerfPhase::Filling => {
                    if plan.fill_next == self.units.count() {
                        return;
                    }
                    plan.fill_next += 1;
                    self.units.take_at(plan.fill_next - 1);
                    (plan.fill_next - 1, Purpose::Fill)
                }
                PerfPhase::Running | PerfPhase::WarmingUp => {
                    if self.options.count.is_some_and(|count| self.figures.begun >= count) {
                        return;
                    }
                    let Some(unit) = self.units.take() else { return };
                    self.figures.begun += 1;
                    let is_read = match plan.read_percent {
                        100 => true,
                        0 => false,
                        percent => self.units.random_below(100) < percent.into(),
                    };
                    (unit, if is_read { Purpose::Read } else { Purpose::Write })
                }
                _ => return,
            };
            lane.free.pop();
            lane.begin(slot, (unit, purpose), plan, &mut self.units, now);
        }
    }

    #[inline]
    fn complete(&mut self, index: usize, completion: Completion, now: Instant) {
        let Some(plan) = &mut self.plan else { return };
        let lane = &mut self.lanes[index];
        let slot_index = completion.tag as u16;
        let slot = &mut lane.slots[usize::from(slot_index)];
        let (unit, purpose) = (slot.unit, slot.purpose);
        if let Buffer::Vec(bytes) = completion.buffer {
            slot.buffer = bytes;
        }
        if let Err(error) = completion.result {
            lane.free.push(slot_index);
            self.units.release(unit);
            self.count_error(error, (unit, purpose), now);
            return;
        }
        let is_counted = self.phase == PerfPhase::Running;
        let latency = now.saturating_duration_since(slot.started);
        match purpose {
            Purpose::Read if is_counted => self.figures.reads.record(latency),
            Purpose::Write if is_counted => self.figures.writes.record(latency),
            Purpose::Fill => plan.filled += 1,
            _ => {}
        }
        if self.options.verify {
            match purpose {
                Purpose::Read | Purpose::ReadBack => {
                    let lba = plan.lba(unit);
                    let generation = self.units.generation(unit);
                    let scratch = &mut self.scratch;
                    if let Err(mismatch) =
                        plan.pattern.check(&slot.buffer, lba, generation, scratch)
                    {
                        self.fail(HostError::Miscompare(mismatch), now);
                        return;
                    }
                    self.figures.verified += 1;
                }
                Purpose::Write => {
                    lane.begin(slot_index, (unit, Purpose::ReadBack), plan, &mut self.units, now);
                    return;
                }
                Purpose::Fill => {}
            }
        }
        lane.free.push(slot_index);
        self.units.release(unit);
    }

    #[cold]
    fn count_error(&mut self, error: CommandError, (unit, purpose): (u64, Purpose), now: Instant) {
        self.figures.errors += 1;
        let lba = self.plan.as_ref().map_or(Lba(0), |plan| plan.lba(unit));
        if self.figures.first_error.is_none() {
            let what = if purpose == Purpose::Read || purpose == Purpose::ReadBack {
                "read"
            } else {
                "write"
            };
            self.figures.first_error = Some(format!("{what} at block {lba}: {error}"));
        }
        // A lost connection is noticed by its queue, which knows why.
        let is_lost = error == CommandError::ConnectionLost;
        let is_fill = purpose == Purpose::Fill;
        if (self.figures.errors > self.options.max_errors || is_fill) && !is_lost {
            let what = if purpose == Purpose::Read || purpose == Purpose::ReadBack {
                "a read"
            } else {
                "a write"
            };
            let qid = nvme_spec::Qid(0);
            self.fail(error.of(what, None, qid), now);
        }
    }
}

impl Figures {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            until: None,
            reads: LatencyHistogram::new(),
            writes: LatencyHistogram::new(),
            begun: 0,
            errors: 0,
            first_error: None,
            verified: 0,
        }
    }
}

impl Plan {
    fn lba(&self, unit: u64) -> Lba {
        Lba(unit * u64::from(self.blocks))
    }
}

impl Lane {
    fn new(queue: IoQueue, depth: u16, buffer_len: u32, now: Instant) -> Self {
        let depth = depth.min(queue.depth());
        let slots = (0..depth).map(|_| Slot {
            started: now,
            unit: 0,
            purpose: Purpose::Read,
            buffer: vec![0; buffer_len as usize],
        });
        Self { queue, slots: slots.collect(), free: (0..depth).rev().collect() }
    }

    #[inline]
    fn begin(
        &mut self,
        index: u16,
        (unit, purpose): (u64, Purpose),
        plan: &Plan,
        units: &mut Units,
        now: Instant,
    ) {
        let slot = &mut self.slots[usize::from(index)];
        slot.started = now;
        slot.unit = unit;
        slot.purpose = purpose;
        let (lba, blocks) = (plan.lba(unit), plan.blocks);
        let len = plan.write_data.len();
        let (op, buffer) = match purpose {
            Purpose::Read | Purpose::ReadBack => {
                let buffer = if slot.buffer.is_empty() {
                    Buffer::Discard { len: len as u32 }
                } else {
                    Buffer::Vec(std::mem::take(&mut slot.buffer))
                };
                (IoOp::Read { lba, blocks }, buffer)
            }
            Purpose::Write | Purpose::Fill => {
                let generation = units.begin_write(unit);
                let buffer = if generation == 0 {
                    Buffer::Shared(Rc::clone(&plan.write_data))
                } else {
                    plan.pattern.fill(&mut slot.buffer, lba, generation);
                    Buffer::Vec(std::mem::take(&mut slot.buffer))
                };
                (IoOp::Write { lba, blocks, fua: false }, buffer)
            }
        };
        let request = IoRequest { nsid: plan.nsid, op, buffer, tag: index.into(), timeout: None };
        if let Submit::Refused(refused) = self.queue.submit(request, now) {
            // The queue is as deep as there are slots, so it has ended. Its failure is told after
            // this poll; the slot is not used again.
            slot.buffer = refused.command.buffer.into_vec();
        }
    }
}

impl std::fmt::Debug for PerfEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PerfEngine")
            .field("phase", &self.phase)
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}
