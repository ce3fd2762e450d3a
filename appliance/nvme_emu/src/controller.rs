//! Registers, queues and the passing of time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use dma::BusView;
use nvme_spec::log::{ErrorEntry, SmartLog};
use nvme_spec::pcie::{doorbell_index, doorbell_stride};
use nvme_spec::registers::{self, Aqa, Cap, Cc, Csts, ShutdownNotification, ShutdownStatus, Vs};
use nvme_spec::{Cid, Cqe, Qid, Sqe, Status, event};
use zerocopy::little_endian::{U16, U32, U64};

use crate::fault::{Fault, FaultKind, FaultPlan};
use crate::media::{Cut, Media};
use crate::options::EmuOptions;
use crate::queue::{CompletionQueue, SubmissionQueue};

/// Asynchronous Event Requests held at a time (AERL plus one).
pub(crate) const EVENT_REQUESTS_MAX: usize = 4;
/// Events kept while no request is outstanding.
const EVENTS_MAX: usize = 32;
/// Entries of the error log (ELPE plus one).
pub(crate) const ERROR_ENTRIES_MAX: usize = 16;

/// A namespace: its blocks, and whether the controller is attached to it.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) media: Media,
    pub(crate) attached: bool,
}

/// What a command leads to.
pub(crate) enum Outcome {
    /// It ends, with dword 0 of the completion.
    Done(Status, u32),
    /// It is held: an Asynchronous Event Request.
    Held,
}

#[derive(Debug)]
struct Late {
    due: u64,
    cqid: u16,
    cqe: Cqe,
}

/// A command that was fetched and is not done yet.
#[derive(Debug)]
struct Slow {
    due: u64,
    qid: u16,
    cqid: u16,
    /// SQHD of its completion.
    head: u32,
    sqe: Sqe,
}

#[derive(Clone, Copy, Debug)]
struct Stuck {
    value: u32,
    survives_reset: bool,
}

/// The controller. See the crate's page for what stands for what.
#[derive(Debug)]
pub struct Emu {
    pub(crate) options: EmuOptions,
    pub(crate) bus: Arc<BusView>,
    pub(crate) namespaces: BTreeMap<u32, Namespace>,
    pub(crate) features: BTreeMap<u8, u32>,
    pub(crate) submission: BTreeMap<u16, SubmissionQueue>,
    pub(crate) completion: BTreeMap<u16, CompletionQueue>,
    pub(crate) event_requests: VecDeque<u16>,
    pub(crate) events: VecDeque<u32>,
    /// Event types (kind) reported and not yet cleared by reading their log page.
    pub(crate) masked_events: BTreeSet<u8>,
    pub(crate) smart: SmartLog,
    pub(crate) errors: VecDeque<ErrorEntry>,
    pub(crate) changed_namespaces: BTreeSet<u32>,
    pub(crate) firmware_image: Vec<u8>,
    pub(crate) firmware: String,
    pub(crate) sanitized: bool,
    /// Pages of Doorbell Buffer Config: shadow doorbells, event indexes.
    pub(crate) doorbell_buffers: Option<(u64, u64)>,
    cc: Cc,
    csts: Csts,
    aqa: Aqa,
    asq: u64,
    acq: u64,
    faults: FaultPlan,
    stuck: BTreeMap<u32, Stuck>,
    late: Vec<Late>,
    slow: Vec<Slow>,
    /// What is to be changed in the data of the command that is being done.
    pub(crate) garbled: Option<(usize, [u8; 8])>,
    interrupts: BTreeSet<u16>,
    ready_at: Option<u64>,
    shutdown_at: Option<u64>,
    steps: u64,
    removed: bool,
    bus_master: bool,
    doorbell_writes: u64,
    commands: u64,
}

impl Emu {
    /// A drive that has just got power, with bus mastering off.
    #[must_use]
    pub fn new(options: EmuOptions, bus: Arc<BusView>) -> Self {
        let namespaces = (1..).zip(&options.namespaces).map(|(nsid, namespace)| {
            let media = Media::new(namespace.block_size, namespace.block_count);
            let attached = true;
            (nsid, Namespace { media, attached })
        });
        let mut smart = SmartLog {
            composite_temperature: U16::new(310),
            available_spare: 100,
            available_spare_threshold: 10,
            ..SmartLog::default()
        };
        smart.set_power_cycles(1);
        let mut emu = Self {
            namespaces: namespaces.collect(),
            firmware: options.firmware.clone(),
            options,
            bus,
            features: BTreeMap::new(),
            submission: BTreeMap::new(),
            completion: BTreeMap::new(),
            event_requests: VecDeque::new(),
            events: VecDeque::new(),
            masked_events: BTreeSet::new(),
            smart,
            errors: VecDeque::new(),
            changed_namespaces: BTreeSet::new(),
            firmware_image: Vec::new(),
            sanitized: false,
            doorbell_buffers: None,
            cc: Cc(0),
            csts: Csts(0),
            aqa: Aqa(0),
            asq: 0,
            acq: 0,
            faults: FaultPlan::default(),
            stuck: BTreeMap::new(),
            late: Vec::new(),
            slow: Vec::new(),
            garbled: None,
            interrupts: BTreeSet::new(),
            ready_at: None,
            shutdown_at: None,
            steps: 0,
            removed: false,
            bus_master: false,
            doorbell_writes: 0,
            commands: 0,
        };
        emu.reset_state();
        emu
    }

    /// Reads a 32-bit register. All ones once the drive is removed.
    #[must_use]
    pub fn read32(&self, offset: u32) -> u32 {
        if self.removed {
            return u32::MAX;
        }
        if let Some(stuck) = self.stuck.get(&offset) {
            return stuck.value;
        }
        match offset {
            registers::CAP => self.cap().0 as u32,
            0x04 => (self.cap().0 >> 32) as u32,
            registers::VS => Vs::V2_0.0,
            registers::CC => self.cc.0,
            registers::CSTS => self.csts.0,
            registers::AQA => self.aqa.0,
            registers::ASQ => self.asq as u32,
            0x2c => (self.asq >> 32) as u32,
            registers::ACQ => self.acq as u32,
            0x34 => (self.acq >> 32) as u32,
            _ => 0,
        }
    }

    /// Reads a 64-bit register.
    #[must_use]
    pub fn read64(&self, offset: u32) -> u64 {
        u64::from(self.read32(offset)) | u64::from(self.read32(offset.wrapping_add(4))) << 32
    }

    /// Writes a 32-bit register or a doorbell.
    pub fn write32(&mut self, offset: u32, value: u32) {
        if self.removed || self.stuck.contains_key(&offset) {
            return;
        }
        let low = |old: u64| old & !0xffff_ffff | u64::from(value);
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            registers::CC => self.write_cc(Cc(value)),
            registers::AQA => self.aqa = Aqa(value),
            registers::ASQ => self.asq = low(self.asq) & !0xfff,
            0x2c => self.asq = high(self.asq),
            registers::ACQ => self.acq = low(self.acq) & !0xfff,
            0x34 => self.acq = high(self.acq),
            registers::DOORBELLS.. => self.ring(offset, value),
            _ => {}
        }
    }

    /// Writes a 64-bit register.
    pub fn write64(&mut self, offset: u32, value: u64) {
        self.write32(offset, value as u32);
        self.write32(offset.wrapping_add(4), (value >> 32) as u32);
    }

    /// Lets a little time pass: state changes that are due, some commands of each queue, late
    /// completions. Whether anything happened.
    pub fn step(&mut self) -> bool {
        self.steps += 1;
        if self.removed {
            return false;
        }
        let mut happened = self.change_state();
        if !self.csts.rdy() || self.csts.cfs() || !self.bus_master {
            return happened;
        }
        happened |= self.post_late();
        happened |= self.do_slow();
        let queues: Vec<u16> = self.submission.keys().copied().collect();
        for qid in queues {
            for _ in 0..self.options.burst {
                match self.run_one(qid) {
                    Some(true) => happened = true,
                    Some(false) => break,
                    None => return true,
                }
            }
        }
        self.report_events();
        self.drain() || happened
    }

    /// The vectors that were raised since the last call.
    pub fn take_interrupts(&mut self) -> Vec<u16> {
        std::mem::take(&mut self.interrupts).into_iter().collect()
    }

    /// Adds a rule to the fault plan.
    pub fn inject(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    /// Forgets the fault plan.
    pub fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// A register reads as `value` and ignores writes, until [`Emu::unstick_register`], or, unless
    /// it survives that, a function reset.
    pub fn stick_register(&mut self, offset: u32, value: u32, survives_reset: bool) {
        let stuck = Stuck {
            value,
            survives_reset,
        };
        self.stuck.insert(offset, stuck);
    }

    /// A register works again.
    pub fn unstick_register(&mut self, offset: u32) {
        self.stuck.remove(&offset);
    }

    /// The drive is pulled. What its cache held is lost.
    pub fn remove(&mut self) {
        self.removed = true;
        self.reset_state();
    }

    /// Whether the drive is gone.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.removed
    }

    /// The controller stops with CSTS.CFS.
    pub fn fail(&mut self) {
        self.csts = self.csts.with_cfs(true);
    }

    /// A function level reset. The cache survives it.
    pub fn function_reset(&mut self) {
        self.stuck.retain(|_, stuck| stuck.survives_reset);
        self.bus_master = false;
        self.cc = Cc(0);
        self.csts = Csts(0);
        self.aqa = Aqa(0);
        (self.asq, self.acq) = (0, 0);
        self.reset_state();
    }

    /// Bus mastering, as the PCI command register has it.
    pub fn set_bus_master(&mut self, on: bool) {
        self.bus_master = on;
    }

    /// Whether bus mastering is on.
    #[must_use]
    pub fn is_bus_master(&self) -> bool {
        self.bus_master
    }

    /// The power goes and comes back: unflushed blocks are there or not, as `cut` says.
    pub fn power_cut(&mut self, cut: Cut) {
        if !matches!(self.csts.shst(), ShutdownStatus::Complete) {
            self.smart
                .set_unsafe_shutdowns(self.smart.unsafe_shutdowns() + 1);
        }
        self.smart.set_power_cycles(self.smart.power_cycles() + 1);
        for (nsid, namespace) in &mut self.namespaces {
            let seed = cut.seed.wrapping_add(u64::from(*nsid));
            namespace.media.power_cut(Cut { seed, ..cut });
        }
        self.function_reset();
        self.features.clear();
        self.removed = false;
    }

    /// What a namespace holds.
    #[must_use]
    pub fn media(&self, nsid: u32) -> Option<&Media> {
        self.namespaces.get(&nsid).map(|namespace| &namespace.media)
    }

    /// Resizes a namespace from outside, with the event for it.
    pub fn resize_namespace(&mut self, nsid: u32, block_count: u64) {
        if let Some(namespace) = self.namespaces.get_mut(&nsid) {
            namespace.media.resize(block_count);
            self.namespace_changed(nsid);
        }
    }

    /// Sets SMART's critical warnings, with the event for it.
    pub fn set_critical_warning(&mut self, bits: u8) {
        self.smart.critical_warning = bits;
        let info = event::smart::SPARE_BELOW_THRESHOLD;
        self.raise(event::kind::SMART, info, nvme_spec::log::lid::SMART);
    }

    /// Writes to doorbell registers so far.
    #[must_use]
    pub fn doorbell_writes(&self) -> u64 {
        self.doorbell_writes
    }

    /// Commands fetched so far.
    #[must_use]
    pub fn commands(&self) -> u64 {
        self.commands
    }

    /// Whether a sanitize operation has run.
    #[must_use]
    pub fn is_sanitized(&self) -> bool {
        self.sanitized
    }

    /// I/O queue pairs that exist.
    #[must_use]
    pub fn io_queue_count(&self) -> usize {
        self.submission.keys().filter(|qid| **qid != 0).count()
    }

    pub(crate) fn cap(&self) -> Cap {
        Cap(0)
            .with_mqes(self.options.max_queue_entries.saturating_sub(1))
            .with_cqr(true)
            .with_to(self.options.ready_timeout)
            .with_dstrd(self.options.doorbell_stride & 0xf)
            .with_css(Cap::CSS_NVM)
    }

    pub(crate) fn namespace_changed(&mut self, nsid: u32) {
        self.changed_namespaces.insert(nsid);
        let info = event::notice::NAMESPACE_ATTRIBUTE_CHANGED;
        let lid = nvme_spec::log::lid::CHANGED_NAMESPACES;
        self.raise(event::kind::NOTICE, info, lid);
    }

    pub(crate) fn raise(&mut self, kind: u8, info: u8, lid: u8) {
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(event::event_dw0(kind, info, lid));
        }
    }

    /// Takes an aborted command back, or its completion, if there is one to take.
    pub(crate) fn take_back(&mut self, sqid: u16, cid: u16) -> bool {
        let of = |slow: &Slow| slow.qid == sqid && slow.sqe.cid().0 == cid;
        if let Some(index) = self.slow.iter().position(of) {
            let slow = self.slow.remove(index);
            let cqe = Cqe::new(Cid(cid), Status::COMMAND_ABORT_REQUESTED)
                .with_sqid(Qid(sqid))
                .with_sqhd(slow.head as u16);
            self.post(slow.cqid, cqe, true);
            return true;
        }
        let of = |late: &Late| late.cqe.sqid().0 == sqid && late.cqe.cid().0 == cid;
        let Some(index) = self.late.iter().position(of) else {
            return false;
        };
        let late = self.late.remove(index);
        let status = Status::COMMAND_ABORT_REQUESTED;
        let cqe = Cqe {
            status: Cqe::new(Cid(cid), status).status,
            ..late.cqe
        };
        self.post(late.cqid, cqe, true);
        true
    }

    /// Forgets the commands of a queue that is deleted, and their completions.
    pub(crate) fn forget(&mut self, sqid: u16) {
        self.slow.retain(|slow| slow.qid != sqid);
        self.late.retain(|late| late.cqe.sqid().0 != sqid);
    }

    fn write_cc(&mut self, cc: Cc) {
        let (old, new) = (self.cc, cc);
        self.cc = cc;
        if new.en() && !old.en() {
            self.ready_at = Some(self.steps + self.options.ready_steps);
        }
        if !new.en() && old.en() {
            self.reset_state();
            self.csts = self.csts.with_cfs(false);
            self.csts = self.csts.with_shst(ShutdownStatus::Normal);
            self.ready_at = Some(self.steps + self.options.ready_steps);
        }
        if new.shn() != ShutdownNotification::None && old.shn() != new.shn() {
            self.csts = self.csts.with_shst(ShutdownStatus::Occurring);
            self.shutdown_at = Some(self.steps + self.options.ready_steps);
        }
    }

    fn change_state(&mut self) -> bool {
        let mut happened = false;
        if self.ready_at.is_some_and(|at| at <= self.steps) {
            self.ready_at = None;
            happened = true;
            if self.cc.en() {
                self.enable();
            } else {
                self.csts = self.csts.with_rdy(false);
            }
        }
        if self.shutdown_at.is_some_and(|at| at <= self.steps) {
            self.shutdown_at = None;
            happened = true;
            for namespace in self.namespaces.values_mut() {
                namespace.media.flush();
            }
            self.csts = self.csts.with_shst(ShutdownStatus::Complete);
        }
        happened
    }

    fn enable(&mut self) {
        let entries = (
            u32::from(self.aqa.asqs()) + 1,
            u32::from(self.aqa.acqs()) + 1,
        );
        let sizes = self.cc.mps() == 0 && self.cc.css() == Cc::CSS_NVM;
        if !sizes || entries.0 < 2 || entries.1 < 2 || self.asq == 0 || self.acq == 0 {
            self.fail();
            return;
        }
        let queue = SubmissionQueue::new(self.asq, entries.0, 0);
        self.submission.insert(0, queue);
        let queue = CompletionQueue::new(self.acq, entries.1, Some(0));
        self.completion.insert(0, queue);
        self.csts = self.csts.with_rdy(true);
    }

    /// What a controller level reset clears. The media and the logs stay.
    fn reset_state(&mut self) {
        self.submission.clear();
        self.completion.clear();
        self.event_requests.clear();
        self.events.clear();
        self.masked_events.clear();
        self.late.clear();
        self.slow.clear();
        self.interrupts.clear();
        self.features.clear();
        self.doorbell_buffers = None;
        self.shutdown_at = None;
    }

    fn ring(&mut self, offset: u32, value: u32) {
        self.doorbell_writes += 1;
        if !self.csts.rdy() {
            return;
        }
        let index = (offset - registers::DOORBELLS) / doorbell_stride(self.cap());
        let Ok(qid) = u16::try_from(index / 2) else {
            return;
        };
        if !self.set_doorbell(qid, index % 2 == 1, value) {
            let error = if self.submission.contains_key(&qid) {
                event::error::INVALID_DOORBELL_VALUE
            } else {
                event::error::INVALID_DOORBELL_REGISTER
            };
            self.raise(event::kind::ERROR, error, nvme_spec::log::lid::ERROR);
        }
    }

    fn set_doorbell(&mut self, qid: u16, is_completion: bool, value: u32) -> bool {
        if is_completion {
            let Some(queue) = self.completion.get_mut(&qid) else {
                return false;
            };
            if value >= queue.entries {
                return false;
            }
            queue.head = value;
        } else {
            let Some(queue) = self.submission.get_mut(&qid) else {
                return false;
            };
            if value >= queue.entries {
                return false;
            }
            queue.tail = value;
            queue.awake = true;
        }
        true
    }

    /// Takes over shadow doorbells of a queue that is awake.
    fn read_shadow(&mut self, qid: u16, is_completion: bool) {
        let (Some((shadow, _)), 1..) = (self.doorbell_buffers, qid) else {
            return;
        };
        let at = doorbell_index(Qid(qid), is_completion) * doorbell_stride(self.cap());
        let mut word = [0; 4];
        if self.bus.read(shadow + u64::from(at), &mut word).is_ok() {
            let value = u32::from_le_bytes(word);
            self.set_doorbell(qid, is_completion, value);
        }
    }

    /// Says up to where the host need not ring.
    fn write_event_index(&mut self, qid: u16, is_completion: bool, value: u32) {
        let (Some((_, events)), 1..) = (self.doorbell_buffers, qid) else {
            return;
        };
        let at = doorbell_index(Qid(qid), is_completion) * doorbell_stride(self.cap());
        let written = self.bus.write(events + u64::from(at), &value.to_le_bytes());
        if written.is_err() {
            self.fail();
        }
    }

    /// Runs one command of a queue. `Some(false)`: there was none; `None`: the controller is down.
    fn run_one(&mut self, qid: u16) -> Option<bool> {
        let queue = self.submission.get(&qid);
        let Some(queue) = queue else {
            return Some(false);
        };
        if self.doorbell_buffers.is_some() && qid != 0 {
            if !queue.awake {
                return Some(false);
            }
            self.read_shadow(qid, false);
            let queue = self.submission.get_mut(&qid)?;
            if queue.head == queue.tail {
                let tail = queue.tail;
                self.write_event_index(qid, false, tail);
                self.read_shadow(qid, false);
                let queue = self.submission.get_mut(&qid)?;
                if queue.head == queue.tail {
                    queue.awake = false;
                    return Some(false);
                }
            }
        }
        let bus = Arc::clone(&self.bus);
        let queue = self.submission.get_mut(&qid)?;
        let (cqid, fetched) = (queue.cqid, queue.fetch(&bus));
        let head = queue.head;
        match fetched {
            Ok(None) => Some(false),
            Ok(Some(sqe)) => {
                self.commands += 1;
                self.execute(qid, cqid, head, &sqe);
                (!self.removed && !self.csts.cfs()).then_some(true)
            }
            Err(_) => {
                self.fail();
                None
            }
        }
    }

    fn execute(&mut self, qid: u16, cqid: u16, head: u32, sqe: &Sqe) {
        let fault = self.faults.meet(qid, sqe.opcode());
        let due = match fault {
            // An Abort can still take it back.
            Some(FaultKind::Stall) => u64::MAX,
            Some(FaultKind::Slow(steps)) => self.steps.saturating_add(steps),
            _ => return self.perform(qid, cqid, head, sqe, fault),
        };
        self.slow.push(Slow {
            due,
            qid,
            cqid,
            head,
            sqe: *sqe,
        });
    }

    fn perform(&mut self, qid: u16, cqid: u16, head: u32, sqe: &Sqe, fault: Option<FaultKind>) {
        if let Some(FaultKind::Garbled(offset, bytes)) = fault {
            self.garbled = Some((offset, bytes));
        }
        let outcome = match fault {
            Some(FaultKind::Status(status)) => Outcome::Done(status, 0),
            Some(FaultKind::Fatal) => return self.fail(),
            Some(FaultKind::Remove) => return self.remove(),
            _ if qid == 0 => self.admin(sqe),
            _ => {
                let (status, dw0) = self.io(sqe);
                Outcome::Done(status, dw0)
            }
        };
        self.garbled = None;
        let Outcome::Done(status, mut dw0) = outcome else {
            return;
        };
        if let Some(FaultKind::Result(other)) = fault {
            dw0 = other;
        }
        if !status.is_success() {
            self.log_error(qid, sqe, status);
        }
        let cqe = Cqe::new(sqe.cid(), status)
            .with_result(u64::from(dw0))
            .with_sqid(Qid(qid))
            .with_sqhd(head as u16);
        match fault {
            Some(FaultKind::Late(steps)) => self.late.push(Late {
                due: self.steps.saturating_add(steps),
                cqid,
                cqe,
            }),
            Some(FaultKind::Lost) => {}
            Some(FaultKind::Duplicate) => {
                self.post(cqid, cqe, true);
                self.post(cqid, cqe, true);
            }
            Some(FaultKind::WrongPhase) => self.post(cqid, cqe, false),
            Some(FaultKind::WrongCid(cid)) => {
                let cid = U16::new(cid);
                self.post(cqid, Cqe { cid, ..cqe }, true);
            }
            _ => self.post(cqid, cqe, true),
        }
    }

    fn log_error(&mut self, qid: u16, sqe: &Sqe, status: Status) {
        let count = self.smart.error_log_entries() + 1;
        self.smart.set_error_log_entries(count);
        let entry = ErrorEntry {
            error_count: U64::new(count as u64),
            sqid: U16::new(qid),
            cid: U16::new(sqe.cid().0),
            parameter_error_location: U16::new(0xffff),
            lba: U64::new(sqe.slba().0),
            nsid: U32::new(sqe.nsid().0),
            opcode: sqe.opcode(),
            ..ErrorEntry::default()
        };
        self.errors.push_front(entry.with_status(status));
        self.errors.truncate(ERROR_ENTRIES_MAX);
    }

    pub(crate) fn post(&mut self, cqid: u16, cqe: Cqe, right_phase: bool) {
        if let Some(queue) = self.completion.get_mut(&cqid) {
            queue.waiting.push_back((cqe, right_phase));
        }
    }

    fn post_late(&mut self) -> bool {
        let steps = self.steps;
        let (due, later) = std::mem::take(&mut self.late)
            .into_iter()
            .partition::<Vec<_>, _>(|late| late.due <= steps);
        self.late = later;
        let happened = !due.is_empty();
        for late in due {
            self.post(late.cqid, late.cqe, true);
        }
        happened
    }

    fn do_slow(&mut self) -> bool {
        let steps = self.steps;
        let (due, later) = std::mem::take(&mut self.slow)
            .into_iter()
            .partition::<Vec<_>, _>(|slow| slow.due <= steps);
        self.slow = later;
        let happened = !due.is_empty();
        for slow in due {
            self.perform(slow.qid, slow.cqid, slow.head, &slow.sqe, None);
        }
        happened
    }

    fn report_events(&mut self) {
        let mut kept = VecDeque::new();
        while let Some(dw0) = self.events.pop_front() {
            let (kind, _, _) = event::parse_event_dw0(dw0);
            if self.masked_events.contains(&kind) || self.event_requests.is_empty() {
                kept.push_back(dw0);
                continue;
            }
            let Some(cid) = self.event_requests.pop_front() else {
                continue;
            };
            self.masked_events.insert(kind);
            let cqe = Cqe::new(Cid(cid), Status::SUCCESS).with_result(u64::from(dw0));
            self.post(0, cqe, true);
        }
        self.events = kept;
    }

    fn drain(&mut self) -> bool {
        let mut happened = false;
        let bus = Arc::clone(&self.bus);
        let queues: Vec<u16> = self.completion.keys().copied().collect();
        for cqid in queues {
            let Some(queue) = self.completion.get(&cqid) else {
                continue;
            };
            if queue.waiting.is_empty() {
                continue;
            }
            self.read_shadow(cqid, true);
            let Some(queue) = self.completion.get_mut(&cqid) else {
                continue;
            };
            match queue.drain(&bus) {
                Ok(posted) => {
                    happened |= posted;
                    let (head, vector) = (queue.head, queue.vector);
                    let is_full = !queue.waiting.is_empty();
                    if let (true, Some(vector)) = (posted, vector) {
                        self.interrupts.insert(vector);
                    }
                    // Only a full queue waits for the host.
                    if is_full {
                        self.write_event_index(cqid, true, head);
                    }
                }
                Err(_) => self.fail(),
            }
        }
        happened
    }
}
