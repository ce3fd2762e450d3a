//! The one owner of a controller: bringing it up, watching it, resetting it, shutting it down.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::task::Waker;
use std::time::{Duration, Instant};

use nvme_spec::identify::{IdentifyController, IdentifyNvmController};
use nvme_spec::log::{ErrorEntry, SmartLog};
use nvme_spec::opcode::admin;
use nvme_spec::registers::{self, Aqa, Cap, Cc, Crto, Csts, ShutdownNotification, ShutdownStatus};
use nvme_spec::{Cid, Nsid, Sqe};

use crate::admin::{AdminId, AdminQueue, AdminReply, AdminRequest, Ended, Owner};
use crate::channel::half_seconds;
use crate::device::Device;
use crate::error::NvmeError;
use crate::jobs::Job;
use crate::memory::{ADMIN_ENTRIES, Layout};
use crate::namespace::{NvmeNamespace, text};
use crate::options::{ControllerOptions, check_cap};
use crate::shared::{ControllerState, ControllerStats, ResetReason, Shared};

/// What a register of a function that is gone reads as.
const GONE: u32 = u32::MAX;
/// Log pages and registers lie below.
const REGISTERS_MIN: u64 = 0x1000;

/// FNA: a format of one namespace is one of all (Base §5.1.13, Identify Controller).
const FNA_FORMATS_ALL: u8 = 1 << 0;

/// How often CSTS is read while a change of it is waited for.
const CSTS_INTERVAL: Duration = Duration::from_millis(1);

/// What [`Controller::poll`] tells its owner.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// The state changed.
    State(ControllerState),
    /// The controller is being reset.
    Reset(ResetReason),
    /// Why bringing it up failed; a further attempt may follow.
    Error(NvmeError),
    /// A namespace is there.
    NamespaceAdded(Arc<NvmeNamespace>),
    /// A namespace has another size.
    NamespaceResized {
        /// Its identifier.
        nsid: Nsid,
        /// Logical blocks now.
        block_count: u64,
    },
    /// A namespace is gone, or has become another device (reformatted).
    NamespaceRemoved(Nsid),
    /// A namespace is there that this driver cannot serve.
    NamespaceUnusable {
        /// Its identifier.
        nsid: Nsid,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The drive reported an event; what its log page says follows by itself.
    Async {
        /// Event type.
        kind: u8,
        /// Event information.
        info: u8,
        /// Log page.
        log_id: u8,
    },
    /// The SMART / health log page was read.
    Smart(Box<SmartLog>),
    /// The newest entries of the error log were read.
    ErrorLog(Vec<ErrorEntry>),
    /// A command of [`Controller::admin`] ended.
    AdminDone {
        /// The command.
        id: AdminId,
        /// How.
        result: Result<AdminReply, NvmeError>,
    },
    /// A shutdown ended. `clean`: the drive said so before the deadline.
    Shutdown {
        /// The drive has stored all.
        clean: bool,
    },
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// CC.EN is 0; waiting for CSTS.RDY to follow.
    Disabling {
        deadline: Instant,
        function_reset: bool,
        then: Option<ControllerState>,
    },
    /// CC.EN is 1; waiting for CSTS.RDY to follow.
    Enabling {
        deadline: Instant,
    },
    /// Finding out what the drive is.
    SettingUp,
    Running,
    ShuttingDown {
        deadline: Instant,
    },
    /// Nothing more will happen.
    Final,
}

/// A controller and its admin queue. Poll it from one thread; see the crate's page.
#[derive(Debug)]
pub struct Controller {
    pub(crate) shared: Arc<Shared>,
    pub(crate) identify: Option<Box<IdentifyController>>,
    pub(crate) nvm: IdentifyNvmController,
    pub(crate) namespaces: BTreeMap<Nsid, Arc<NvmeNamespace>>,
    pub(crate) jobs: VecDeque<Job>,
    pub(crate) current: Option<Job>,
    /// Queue pairs that the drive allows.
    pub(crate) granted: usize,
    /// Queues that were made and are not yet given to their channels.
    pub(crate) created: Vec<usize>,
    /// The generation that each queue worked in last.
    pub(crate) last_live: Vec<u32>,
    pub(crate) event_slots: usize,
    phase: Phase,
    admin: AdminQueue,
    attempts: u32,
    events_outstanding: usize,
    next_id: u64,
    next_health: Instant,
    shutdown_asked: bool,
    polled: Instant,
    /// Admin completions came since vector 0 was cleared last.
    interrupt_due: bool,
}

impl Controller {
    /// Takes over a function. What follows happens in [`Controller::poll`]; when the state is
    /// [`ControllerState::Running`], the namespaces are there.
    ///
    /// # Errors
    /// The function is gone, it cannot be driven by this driver, or memory cannot be had.
    pub fn attach(
        device: Device,
        options: ControllerOptions,
        now: Instant,
    ) -> Result<Self, NvmeError> {
        options.check()?;
        let address = device.function.address().to_owned();
        if device.registers.len() < REGISTERS_MIN {
            let what = "its BAR 0 is shorter than the registers";
            return Err(NvmeError::Unsupported { address, what });
        }
        if device.registers.read32(registers::CSTS) == GONE {
            return Err(NvmeError::Removed { address });
        }
        let cap = Cap(device.registers.read64(registers::CAP));
        check_cap(cap, &device, &options)?;
        let entries = options.queue_entries.min(cap.mqes().saturating_add(1));
        let layout = Layout::allocate(&device, &options, entries)?;
        let shared = Shared::new(device, options, layout, cap);
        let mut controller = Self {
            identify: None,
            nvm: IdentifyNvmController::default(),
            namespaces: BTreeMap::new(),
            jobs: VecDeque::new(),
            current: None,
            granted: 0,
            created: Vec::new(),
            last_live: vec![0; shared.queues.len()],
            event_slots: 0,
            phase: Phase::Final,
            admin: AdminQueue::new(&shared),
            attempts: 0,
            events_outstanding: 0,
            next_id: 0,
            next_health: now,
            shutdown_asked: false,
            polled: now,
            interrupt_due: true,
            shared,
        };
        controller.disable(None, now);
        Ok(controller)
    }

    /// Its address, `0000:01:00.0`.
    #[must_use]
    pub fn address(&self) -> &str {
        self.shared.device.function.address()
    }

    /// Where it is in its life.
    #[must_use]
    pub fn state(&self) -> ControllerState {
        self.shared.state()
    }

    /// What it said of itself, once it has.
    #[must_use]
    pub fn identify(&self) -> Option<&IdentifyController> {
        self.identify.as_deref()
    }

    /// Its serial number, once it is known.
    #[must_use]
    pub fn serial(&self) -> Option<String> {
        self.identify.as_ref().map(|identify| text(&identify.sn))
    }

    /// The namespaces in use, in order.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<NvmeNamespace>> {
        self.namespaces.values()
    }

    /// Counters of what went wrong.
    #[must_use]
    pub fn stats(&self) -> ControllerStats {
        self.shared.stats()
    }

    /// Who is to be woken when a channel needs the owner.
    pub fn set_waker(&self, waker: Waker) {
        self.shared.set_owner(waker);
    }

    /// Readable when an admin command has ended, if the function has interrupts.
    #[must_use]
    pub fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        let interrupts = self.shared.device.interrupts.as_ref();
        let interrupts = interrupts.filter(|_| self.shared.options.interrupts);
        interrupts.and_then(|interrupts| interrupts.fd(0))
    }

    /// When to poll next at the latest. [`Controller::wake_fd`] and the waker may call earlier.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        match self.phase {
            // CSTS tells of no change by itself.
            Phase::Disabling { deadline, .. }
            | Phase::Enabling { deadline }
            | Phase::ShuttingDown { deadline } => Some(deadline.min(self.polled + CSTS_INTERVAL)),
            Phase::SettingUp | Phase::Running => {
                let admin = self.admin.next_deadline();
                Some(admin.map_or(self.next_health, |at| at.min(self.next_health)))
            }
            Phase::Final => None,
        }
    }

    /// Sends an admin command. Its end is an [`Event::AdminDone`].
    ///
    /// A namespace that is formatted is taken out of use first, and comes back as a new device.
    ///
    /// # Errors
    /// The controller is not running, too many are outstanding, the data is too long, or a
    /// namespace to be formatted has open channels.
    pub fn admin(&mut self, request: &AdminRequest, now: Instant) -> Result<AdminId, NvmeError> {
        if !matches!(self.phase, Phase::Running) {
            return Err(NvmeError::NotReady {
                address: self.address().to_owned(),
                state: self.state().name(),
            });
        }
        if request.sqe.opcode() == admin::FORMAT_NVM {
            self.close_for_format(request.sqe.nsid())?;
        }
        let id = AdminId(self.next_id);
        let options = &self.shared.options;
        let timeout = if request.is_slow() {
            options.format_timeout
        } else {
            options.admin_timeout
        };
        let owner = Owner::User(id);
        let sent = self
            .admin
            .submit(&self.shared, owner, request, Some(timeout), now);
        if sent.is_err() && request.sqe.opcode() == admin::FORMAT_NVM {
            // Those that were closed come back as new devices.
            self.push_job(Job::ListNamespaces);
        }
        sent?;
        self.next_id += 1;
        Ok(id)
    }

    /// Whether a Format NVM is outstanding.
    pub(crate) fn is_formatting(&self) -> bool {
        self.admin.has(admin::FORMAT_NVM)
    }

    /// Takes the namespaces that a Format NVM concerns out of use.
    fn close_for_format(&mut self, nsid: Nsid) -> Result<(), NvmeError> {
        let fna = self.identify.as_ref().map_or(0, |identify| identify.fna);
        let all = nsid.is_all() || fna & FNA_FORMATS_ALL != 0;
        let concerned = |known: &Nsid| all || *known == nsid;
        let mut namespaces = self.namespaces.iter().filter(|(nsid, _)| concerned(nsid));
        let used = namespaces.find(|(_, namespace)| !namespace.is_gone() && !namespace.try_close());
        let Some((nsid, _)) = used else {
            return Ok(());
        };
        let error = NvmeError::InUse {
            address: self.address().to_owned(),
            nsid: *nsid,
        };
        // Those that were closed come back as new devices.
        self.push_job(Job::ListNamespaces);
        Err(error)
    }

    /// Reads SMART and the error log; [`Event::Smart`] and [`Event::ErrorLog`] follow.
    pub fn refresh_health(&mut self) {
        self.push_job(Job::Smart);
        self.push_job(Job::ErrorLog);
    }

    /// Looks at the list of namespaces again.
    pub fn rescan(&mut self) {
        self.push_job(Job::ListNamespaces);
    }

    /// Resets the controller. I/O in flight is sent again afterwards. A reset that is under way and
    /// has not enabled the controller again is this one, too.
    pub fn reset(&mut self) {
        let generation = self.shared.generation();
        self.shared.request_reset(ResetReason::Asked, generation);
    }

    /// Shuts the controller down: it stores what its cache holds, and stops. Close the channels
    /// first: what is in flight fails. [`Event::Shutdown`] follows.
    pub fn shutdown(&mut self, now: Instant) {
        self.shutdown_asked = true;
        if matches!(self.phase, Phase::SettingUp | Phase::Running) {
            self.begin_shutdown(now);
        }
    }

    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self.phase, Phase::Final)
    }

    /// Does what can be done now. Never waits.
    pub fn poll(&mut self, now: Instant, events: &mut Vec<Event>) {
        self.polled = now;
        match self.phase {
            Phase::Final => {}
            Phase::Disabling {
                deadline,
                function_reset,
                then,
            } => self.poll_disabling(deadline, function_reset, then, now, events),
            Phase::Enabling { deadline } => self.poll_enabling(deadline, now, events),
            Phase::SettingUp | Phase::Running => self.poll_commands(now, events),
            Phase::ShuttingDown { deadline } => self.poll_shutdown(deadline, now, events),
        }
    }

    fn csts(&self) -> Csts {
        Csts(self.shared.device.registers.read32(registers::CSTS))
    }

    fn cc(&self) -> Cc {
        Cc(self.shared.device.registers.read32(registers::CC))
    }

    fn write_cc(&self, cc: Cc) {
        self.shared.device.registers.write32(registers::CC, cc.0);
    }

    /// How long CSTS.RDY may take to follow CC.EN.
    fn ready_timeout(&self) -> Duration {
        let cap = self.shared.cap;
        let mut timeout = half_seconds(u16::from(cap.to()));
        if cap.crms() != 0 {
            let crto = Crto(self.shared.device.registers.read32(registers::CRTO));
            timeout = timeout.max(half_seconds(crto.crwmt()));
        }
        timeout
    }

    fn set_state(&self, state: ControllerState, events: &mut Vec<Event>) {
        if self.shared.state() != state {
            self.shared.set_state(state);
            events.push(Event::State(state));
        }
    }

    /// Stops the queues and clears CC.EN.
    fn disable(&mut self, then: Option<ControllerState>, now: Instant) {
        for queue in &self.shared.queues {
            queue.live.store(0, SeqCst);
            queue.abort.store(0, SeqCst);
        }
        self.shared.wake_channels();
        self.jobs.clear();
        self.current = None;
        self.events_outstanding = 0;
        self.write_cc(
            self.cc()
                .with_en(false)
                .with_shn(ShutdownNotification::None),
        );
        self.phase = Phase::Disabling {
            deadline: now + self.ready_timeout(),
            function_reset: false,
            then,
        };
    }

    fn begin_reset(&mut self, reason: ResetReason, now: Instant, events: &mut Vec<Event>) {
        self.shared.counters.resets.fetch_add(1, SeqCst);
        events.push(Event::Reset(reason));
        // Whoever asks for a reset does not say that the drive is bad.
        let counts = reason != ResetReason::Asked;
        self.attempts += u32::from(counts);
        self.fail_admin(events);
        if self.shared.state() == ControllerState::Running {
            self.set_state(ControllerState::Resetting, events);
        }
        let given_up = counts && self.attempts > self.shared.options.reset_attempts;
        self.disable(given_up.then_some(ControllerState::Failed), now);
    }

    /// Ends what callers wait for.
    fn fail_admin(&mut self, events: &mut Vec<Event>) {
        for pending in self.admin.drain() {
            if let Owner::User(id) = pending.owner {
                let opcode = pending.opcode;
                let result = Err(NvmeError::AdminReset { opcode });
                events.push(Event::AdminDone { id, result });
            }
        }
    }

    fn poll_disabling(
        &mut self,
        deadline: Instant,
        function_reset: bool,
        then: Option<ControllerState>,
        now: Instant,
        events: &mut Vec<Event>,
    ) {
        let csts = self.csts();
        if csts.0 == GONE {
            return self.halt(ControllerState::Removed, events);
        }
        if !csts.rdy() {
            self.release();
            if let Some(state) = then {
                return self.halt(state, events);
            }
            if self.shutdown_asked {
                events.push(Event::Shutdown { clean: false });
                return self.halt(ControllerState::Stopped, events);
            }
            return self.enable(now, events);
        }
        if now < deadline {
            return;
        }
        let waited = self.ready_timeout();
        events.push(Event::Error(NvmeError::ReadyTimeout {
            address: self.address().to_owned(),
            wanted: "disabled",
            waited,
        }));
        if function_reset {
            return self.halt(ControllerState::Failed, events);
        }
        // It does not let go of its memory by itself: make it.
        if let Err(error) = self.shared.device.function.reset() {
            events.push(Event::Error(error.into()));
            return self.halt(ControllerState::Failed, events);
        }
        self.phase = Phase::Disabling {
            deadline: now + waited,
            function_reset: true,
            then,
        };
    }

    /// The device reaches no memory any more that was named to it in this generation.
    fn release(&self) {
        self.shared.released.store(self.shared.generation(), SeqCst);
        for queue in &self.shared.queues {
            queue.release_orphan(&self.shared.device);
        }
        self.shared.wake_channels();
    }

    /// Stops for good. Payloads are given back only if the device can reach memory no more.
    fn halt(&mut self, state: ControllerState, events: &mut Vec<Event>) {
        self.fail_admin(events);
        for queue in &self.shared.queues {
            queue.live.store(0, SeqCst);
        }
        let stopped = self.shared.device.function.set_bus_master(false);
        let removed = state == ControllerState::Removed;
        match stopped {
            Ok(()) => self.release(),
            Err(_) if removed => self.release(),
            Err(error) => events.push(Event::Error(error.into())),
        }
        self.jobs.clear();
        self.current = None;
        self.phase = Phase::Final;
        self.set_state(state, events);
        if removed {
            for (nsid, namespace) in std::mem::take(&mut self.namespaces) {
                namespace.set_gone();
                events.push(Event::NamespaceRemoved(nsid));
            }
        }
    }

    fn enable(&mut self, now: Instant, events: &mut Vec<Event>) {
        let shared = &self.shared;
        if let Err(error) = shared.device.function.set_bus_master(true) {
            events.push(Event::Error(error.into()));
            return self.halt(ControllerState::Failed, events);
        }
        shared.begin_generation();
        self.admin = AdminQueue::new(shared);
        let layout = &shared.layout;
        let registers = &shared.device.registers;
        let sizes = Aqa(0)
            .with_asqs(ADMIN_ENTRIES - 1)
            .with_acqs(ADMIN_ENTRIES - 1);
        registers.write32(registers::AQA, sizes.0);
        registers.write64(registers::ASQ, layout.address(layout.sq(0)));
        registers.write64(registers::ACQ, layout.address(layout.cq(0)));
        let css = if shared.cap.css() & Cap::CSS_NVM != 0 {
            Cc::CSS_NVM
        } else {
            Cc::CSS_IOCS
        };
        let cc = Cc(0).with_css(css).with_iosqes(6).with_iocqes(4);
        self.write_cc(cc.with_en(true));
        self.phase = Phase::Enabling {
            deadline: now + self.ready_timeout(),
        };
    }

    fn poll_enabling(&mut self, deadline: Instant, now: Instant, events: &mut Vec<Event>) {
        let csts = self.csts();
        if csts.0 == GONE {
            return self.halt(ControllerState::Removed, events);
        }
        let address = || self.shared.device.function.address().to_owned();
        if csts.cfs() {
            let (address, doing) = (address(), "enabled");
            events.push(Event::Error(NvmeError::Fatal { address, doing }));
            return self.begin_reset(ResetReason::Fatal, now, events);
        }
        if csts.rdy() {
            self.phase = Phase::SettingUp;
            self.next_health = now + self.shared.options.health_interval;
            if self.shutdown_asked {
                return self.begin_shutdown(now);
            }
            self.start_jobs();
            return self.poll_commands(now, events);
        }
        if now >= deadline {
            events.push(Event::Error(NvmeError::ReadyTimeout {
                address: address(),
                wanted: "ready",
                waited: self.ready_timeout(),
            }));
            self.begin_reset(ResetReason::SetUp, now, events);
        }
    }

    fn poll_commands(&mut self, now: Instant, events: &mut Vec<Event>) {
        if std::mem::take(&mut self.interrupt_due)
            && let Some(interrupts) = &self.shared.device.interrupts
        {
            // Before the look at the queue, so that none is missed.
            interrupts.clear(0);
        }
        while let Some(ended) = self.admin.next(&self.shared) {
            self.interrupt_due = true;
            if let Err(error) = self.ended(ended, now, events) {
                events.push(Event::Error(error));
                return self.begin_reset(ResetReason::SetUp, now, events);
            }
        }
        if now >= self.next_health {
            self.next_health = now + self.shared.options.health_interval;
            let csts = self.csts();
            if csts.0 == GONE {
                return self.halt(ControllerState::Removed, events);
            }
            if csts.cfs() {
                return self.begin_reset(ResetReason::Fatal, now, events);
            }
        }
        if self.shared.take_attention() {
            self.send_aborts(now);
            self.tend_queues();
        }
        if let Some(reason) = self.shared.take_reset_request() {
            if self.csts().0 == GONE {
                return self.halt(ControllerState::Removed, events);
            }
            return self.begin_reset(reason, now, events);
        }
        if let Some(pending) = self.admin.overdue(now) {
            self.shared.counters.timeouts.fetch_add(1, SeqCst);
            events.push(Event::Error(NvmeError::AdminTimeout {
                opcode: pending.opcode,
                waited: pending.waited,
            }));
            if self.csts().0 == GONE {
                return self.halt(ControllerState::Removed, events);
            }
            return self.begin_reset(ResetReason::AdminTimeout, now, events);
        }
        self.next_job(now);
        if self.current.is_none() && self.jobs.is_empty() {
            self.publish_created();
            if matches!(self.phase, Phase::SettingUp) {
                self.phase = Phase::Running;
                self.attempts = 0;
                self.set_state(ControllerState::Running, events);
            }
            self.ask_for_events(now);
        }
    }

    /// Begins the next job if none is under way.
    fn next_job(&mut self, now: Instant) {
        if self.current.is_some() {
            return;
        }
        let Some(job) = self.jobs.pop_front() else {
            return;
        };
        let request = self.job_request(job);
        let timeout = Some(self.shared.options.admin_timeout);
        let sent = self
            .admin
            .submit(&self.shared, Owner::Job, &request, timeout, now);
        match sent {
            Ok(()) => self.current = Some(job),
            // No slot: the next poll tries again.
            Err(_) => self.jobs.push_front(job),
        }
    }

    fn ask_for_events(&mut self, now: Instant) {
        let request = AdminRequest::new(Sqe::async_event_request(Cid(0)));
        while self.events_outstanding < self.event_slots {
            let sent = self
                .admin
                .submit(&self.shared, Owner::Event, &request, None, now);
            if sent.is_err() {
                break;
            }
            self.events_outstanding += 1;
        }
    }

    fn send_aborts(&mut self, now: Instant) {
        let shared = Arc::clone(&self.shared);
        for (place, queue) in shared.queues.iter().enumerate() {
            let wanted = queue.abort.load(SeqCst);
            if wanted == 0 || queue.live.load(SeqCst) == 0 {
                continue;
            }
            let cid = Cid((wanted - 1) as u16);
            let request = AdminRequest::new(Sqe::abort(Cid(0), queue.qid, cid));
            let timeout = Some(shared.options.admin_timeout);
            let owner = Owner::Abort(place);
            // Where there is no slot, the channel's second deadline leads to a reset.
            if self
                .admin
                .submit(&shared, owner, &request, timeout, now)
                .is_ok()
            {
                shared.counters.aborts.fetch_add(1, SeqCst);
            }
        }
    }

    fn ended(
        &mut self,
        ended: Ended,
        now: Instant,
        events: &mut Vec<Event>,
    ) -> Result<(), NvmeError> {
        let Ended {
            pending,
            status,
            reply,
        } = ended;
        match pending.owner {
            Owner::Job => {
                if let Some(job) = self.current.take() {
                    self.job_done(job, status, &reply, events)?;
                }
                self.next_job(now);
            }
            Owner::User(id) => {
                let opcode = pending.opcode;
                let changes_namespaces = [
                    admin::FORMAT_NVM,
                    admin::NAMESPACE_ATTACHMENT,
                    admin::NAMESPACE_MANAGEMENT,
                ];
                if changes_namespaces.contains(&opcode) {
                    self.push_job(Job::ListNamespaces);
                }
                let result = if status.is_success() {
                    Ok(reply)
                } else {
                    Err(NvmeError::Status { opcode, status })
                };
                events.push(Event::AdminDone { id, result });
            }
            Owner::Event => {
                self.events_outstanding = self.events_outstanding.saturating_sub(1);
                if status.is_success() {
                    self.event_arrived(reply.dw0, events);
                } else {
                    // It takes fewer than it said.
                    self.event_slots = self.events_outstanding;
                }
            }
            Owner::Abort(place) => self.shared.queues[place].abort.store(0, SeqCst),
        }
        Ok(())
    }

    fn begin_shutdown(&mut self, now: Instant) {
        for queue in &self.shared.queues {
            queue.live.store(0, SeqCst);
        }
        self.shared.set_state(ControllerState::ShuttingDown);
        let cc = self.cc().with_shn(ShutdownNotification::Normal);
        self.write_cc(cc);
        let stated = self.identify.as_ref().map_or(0, |id| id.rtd3e.get());
        let stated = Duration::from_micros(u64::from(stated));
        self.phase = Phase::ShuttingDown {
            deadline: now + stated.max(self.shared.options.shutdown_timeout),
        };
    }

    fn poll_shutdown(&mut self, deadline: Instant, now: Instant, events: &mut Vec<Event>) {
        let csts = self.csts();
        if csts.0 == GONE {
            events.push(Event::Shutdown { clean: false });
            return self.halt(ControllerState::Removed, events);
        }
        let clean = csts.shst() == ShutdownStatus::Complete;
        if clean || csts.cfs() || now >= deadline {
            events.push(Event::Shutdown { clean });
            self.fail_admin(events);
            self.disable(Some(ControllerState::Stopped), now);
        }
    }
}

impl Drop for Controller {
    /// Stops the device from reaching memory. The orderly way is [`Controller::shutdown`].
    fn drop(&mut self) {
        if !self.is_final() {
            self.write_cc(self.cc().with_en(false));
            self.halt(ControllerState::Stopped, &mut Vec::new());
        }
        // Where bus mastering could not be turned off, the memory stays mapped.
        if self.shared.released.load(SeqCst) >= self.shared.generation() {
            let shared = &self.shared;
            shared.device.mapper.unmap(&shared.layout.region);
        }
    }
}
