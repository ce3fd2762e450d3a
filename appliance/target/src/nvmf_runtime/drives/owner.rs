//! The thread that owns a controller: it brings it up, watches it, and takes it down.
//!
//! One thread for each drive, `nvme_ADDRESS`, that sleeps unless something happens: a reset may take
//! seconds and must hold up nobody else.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use api::v1::{NvmeDriveFeatures, NvmeErrorEntry, NvmeLbaFormat};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nvme_driver::{
    Controller, ControllerOptions, ControllerState, ControllerStats, Event, NvmeNamespace,
};
use nvme_spec::log::{ErrorEntry, SmartLog};
use tokio::sync::{oneshot, watch};

use super::Drive;
use super::commands::{self, Commands, Format, Wanted};
use super::error_log::ErrorLog;
use super::function::device;
use crate::error::chain;
use crate::events::now_unix_ms;
use crate::pool_thread::Bell;

/// How often SMART and the error log are read.
const HEALTH_INTERVAL: Duration = Duration::from_secs(60);
/// How long I/O in flight may take when the drive is to be let go of.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);
/// How often it is looked at meanwhile.
const LEAVE_INTERVAL: Duration = Duration::from_millis(1);

/// What a drive said of itself, and what became of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    pub(super) model: String,
    pub(super) serial: String,
    pub(super) firmware: String,
    pub(super) state: &'static str,
    pub(super) last_reset: &'static str,
    pub(super) stats: ControllerStats,
    /// With the time it was read, milliseconds since 1970.
    pub(super) health: Option<(Box<SmartLog>, u64)>,
    /// The newest entries of its error log, the newest first.
    pub(super) errors: Vec<NvmeErrorEntry>,
    /// The last thing that went wrong.
    pub(super) error: String,
    /// Features, once they were read.
    pub(super) features: Option<NvmeDriveFeatures>,
    /// Power states in which it does no I/O, by bit.
    pub(super) non_operational: u32,
}

/// A namespace that cannot be used.
#[derive(Clone, Debug)]
pub(super) struct Unusable {
    pub(super) why: &'static str,
    /// Formats that it could have; empty until they were read.
    pub(super) formats: Vec<NvmeLbaFormat>,
}

/// The owner's thread, as others see it.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) address: String,
    pub(super) group: u32,
    bell: Arc<Bell>,
    shared: Mutex<Shared>,
    ended: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Shared {
    report: Report,
    namespaces: BTreeMap<u32, Arc<NvmeNamespace>>,
    unusable: BTreeMap<u32, &'static str>,
    unusable_formats: BTreeMap<u32, Vec<NvmeLbaFormat>>,
    drive: Weak<Drive>,
    reset: bool,
    shutdown: bool,
    wanted: Vec<(Wanted, oneshot::Sender<()>)>,
    formats: Vec<Format>,
}

impl Handle {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        // A panic while the lock was held left plain data behind.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn report(&self) -> Report {
        self.lock().report.clone()
    }

    pub(super) fn namespaces(&self) -> BTreeMap<u32, Arc<NvmeNamespace>> {
        self.lock().namespaces.clone()
    }

    pub(super) fn unusable(&self) -> BTreeMap<u32, Unusable> {
        let shared = self.lock();
        let unusable = shared.unusable.iter().map(|(nsid, why)| {
            let formats = shared.unusable_formats.get(nsid).cloned();
            let formats = formats.unwrap_or_default();
            (*nsid, Unusable { why, formats })
        });
        unusable.collect()
    }

    /// Sets features now, and whenever the controller comes up. The receiver ends when that was
    /// tried.
    pub(super) fn want(&self, wanted: Wanted) -> oneshot::Receiver<()> {
        let (done, tried) = oneshot::channel();
        let mut shared = self.lock();
        // Under the lock: an owner that ends clears the list afterwards.
        if !self.is_ended() {
            shared.wanted.push((wanted, done));
            self.bell.waker().wake();
        }
        drop(shared);
        tried
    }

    /// Formats a namespace that nothing uses. The receiver fails when the owner ends.
    pub(super) fn format(
        &self,
        nsid: u32,
        data_bytes: u32,
        metadata_bytes: u32,
    ) -> oneshot::Receiver<Result<(), String>> {
        let (done, ended) = oneshot::channel();
        let mut shared = self.lock();
        if !self.is_ended() {
            shared.formats.push(Format {
                nsid,
                data_bytes,
                metadata_bytes,
                done,
            });
            self.bell.waker().wake();
        }
        drop(shared);
        ended
    }

    /// Who is told when namespaces come and go.
    pub(super) fn belongs_to(&self, drive: &Arc<Drive>) {
        self.lock().drive = Arc::downgrade(drive);
    }

    pub(super) fn reset(&self) {
        self.lock().reset = true;
        self.bell.waker().wake();
    }

    /// Shuts the drive down in order and gives it back. [`Handle::ended`] tells when that is done.
    pub(super) fn shut_down(&self) {
        self.lock().shutdown = true;
        self.bell.waker().wake();
    }

    pub(super) fn is_ended(&self) -> bool {
        *self.ended.borrow()
    }

    pub(super) fn ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }
}

/// Starts the owner of an open function. `ready` hears when the controller runs, or why not.
pub(super) fn start(
    function: Arc<vfio::Function>,
    options: ControllerOptions,
    ready: SyncSender<Result<(), String>>,
) -> io::Result<Arc<Handle>> {
    let handle = Arc::new(Handle {
        address: function.address().to_owned(),
        group: function.group(),
        bell: Bell::new()?,
        shared: Mutex::default(),
        ended: watch::Sender::new(false),
    });
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let own = Arc::clone(&handle);
    std::thread::Builder::new()
        .name(format!("nvme_{}", function.address()))
        .spawn(move || {
            let mut owner = Owner {
                handle: own,
                epoll,
                ready: Some(ready),
                leaving: None,
                reason: None,
                next_health: None,
                commands: Commands::default(),
                errors: ErrorLog::default(),
            };
            owner.run(function, options);
        })?;
    Ok(handle)
}

struct Owner {
    handle: Arc<Handle>,
    epoll: Epoll,
    ready: Option<SyncSender<Result<(), String>>>,
    /// No new I/O comes; until then what is in flight may end.
    leaving: Option<Leaving>,
    /// Why the drive was lost, unless it was asked to go.
    reason: Option<String>,
    next_health: Option<Instant>,
    commands: Commands,
    errors: ErrorLog,
}

struct Leaving {
    until: Instant,
    namespaces: Vec<Arc<NvmeNamespace>>,
    shutting_down: bool,
}

impl Owner {
    fn run(&mut self, function: Arc<vfio::Function>, options: ControllerOptions) {
        let address = function.address().to_owned();
        let attached = Controller::attach(device(Arc::clone(&function)), options, Instant::now());
        match attached {
            Ok(controller) => self.drive(controller, &function),
            Err(error) => self.fail(chain(&error)),
        }
        // Nothing here uses the function any more; channels let go of it as they are polled.
        drop(function);
        self.publish(BTreeMap::new());
        let drive = self.handle.lock().drive.upgrade();
        let asked = self.handle.lock().shutdown;
        self.handle.ended.send_replace(true);
        self.commands.end();
        {
            // Who comes from now on finds that it has ended.
            let mut shared = self.handle.lock();
            shared.wanted.clear();
            shared.formats.clear();
        }
        if let (Some(drive), false) = (drive, asked) {
            let reason = self.reason.take();
            let reason = reason.unwrap_or_else(|| "the drive has stopped".to_owned());
            drive.lost(format!("pci function {address}: {reason}"));
        }
    }

    fn fail(&mut self, reason: String) {
        self.handle.lock().report.error.clone_from(&reason);
        if let Some(ready) = self.ready.take() {
            // The receiver is gone when the caller has given up.
            let _ = ready.send(Err(reason));
        }
    }

    fn drive(&mut self, mut controller: Controller, function: &vfio::Function) {
        controller.set_waker(self.handle.bell.waker());
        let interrupt = EpollEvent::new(EpollFlags::EPOLLIN, 0);
        if let Some(fd) = controller.wake_fd() {
            // Without it the next deadline finds what has ended.
            let _ = self.epoll.add(fd, interrupt);
        }
        if let Some(fd) = function.request_fd() {
            let _ = self.epoll.add(fd, interrupt);
        }
        let mut events = Vec::new();
        loop {
            let now = Instant::now();
            self.obey(&mut controller, function, now);
            controller.poll(now, &mut events);
            for event in events.drain(..) {
                self.note(&mut controller, event, now);
            }
            self.commands.poll(&mut controller, now);
            self.watch_health(&mut controller, now);
            self.leave(&mut controller, now);
            {
                let mut shared = self.handle.lock();
                shared.report.state = controller.state().name();
                shared.report.stats = controller.stats();
                if shared.report.features != self.commands.features {
                    shared.report.features.clone_from(&self.commands.features);
                }
                if shared.unusable_formats != self.commands.unusable {
                    shared.unusable_formats.clone_from(&self.commands.unusable);
                }
            }
            if controller.is_final() {
                self.finish(&controller);
                return;
            }
            let deadline = controller.next_deadline().into_iter();
            let deadline = deadline.chain(self.commands.next_deadline()).min();
            let mut wait = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if self.leaving.is_some() {
                wait = Some(wait.map_or(LEAVE_INTERVAL, |wait| wait.min(LEAVE_INTERVAL)));
            }
            self.handle.bell.wait(Some(self.epoll.0.as_fd()), wait);
        }
    }

    fn obey(&mut self, controller: &mut Controller, function: &vfio::Function, now: Instant) {
        let (reset, shutdown) = {
            let mut shared = self.handle.lock();
            for (wanted, done) in std::mem::take(&mut shared.wanted) {
                self.commands.want(wanted, done);
            }
            for format in std::mem::take(&mut shared.formats) {
                self.commands.format(format);
            }
            (std::mem::take(&mut shared.reset), shared.shutdown)
        };
        if reset {
            controller.reset();
        }
        if function.is_requested() && self.reason.is_none() {
            let address = &self.handle.address;
            tracing::warn!(address, "the kernel wants the drive back: it is let go of");
            self.reason = Some("the kernel has taken it back".to_owned());
        }
        if (shutdown || self.reason.is_some()) && self.leaving.is_none() {
            let namespaces = self.handle.namespaces().into_values().collect();
            self.publish(BTreeMap::new());
            self.leaving = Some(Leaving {
                until: now + LEAVE_WITHIN,
                namespaces,
                shutting_down: false,
            });
        }
    }

    /// Shuts the controller down once no channel is open, or the time is over.
    fn leave(&mut self, controller: &mut Controller, now: Instant) {
        let Some(leaving) = &mut self.leaving else {
            return;
        };
        let open = leaving.namespaces.iter();
        let is_idle = open.clone().all(|namespace| namespace.open_channels() == 0);
        if !leaving.shutting_down && (is_idle || now >= leaving.until) {
            leaving.shutting_down = true;
            controller.shutdown(now);
        }
    }

    fn watch_health(&mut self, controller: &mut Controller, now: Instant) {
        if controller.state() == ControllerState::Running
            && self.next_health.is_none_or(|at| at <= now)
        {
            self.next_health = Some(now + HEALTH_INTERVAL);
            controller.refresh_health();
        }
    }

    fn note(&mut self, controller: &mut Controller, event: Event, now: Instant) {
        let address = self.handle.address.as_str();
        match event {
            Event::State(state) => {
                tracing::info!(address, state = state.name(), "drive");
                if state == ControllerState::Running {
                    self.commands.running();
                    self.running(controller);
                }
            }
            Event::Reset(reason) => {
                let reason = reason.name();
                tracing::warn!(address, reason, "the drive is reset");
                self.handle.lock().report.last_reset = reason;
            }
            Event::Error(error) => {
                let error = chain(&error);
                tracing::warn!(address, error, "drive");
                self.handle.lock().report.error = error;
            }
            Event::NamespaceAdded(namespace) => {
                self.look_at_namespaces(controller);
                self.commands.returned(namespace.nsid().0);
            }
            Event::NamespaceResized { .. } => self.look_at_namespaces(controller),
            Event::NamespaceRemoved(nsid) => {
                tracing::warn!(address, nsid = nsid.0, "a namespace of the drive is gone");
                self.look_at_namespaces(controller);
            }
            Event::NamespaceUnusable { nsid, why } => {
                tracing::warn!(address, nsid = nsid.0, why, "a namespace cannot be used");
                self.handle.lock().unusable.insert(nsid.0, why);
                self.commands.unusable(controller, nsid.0, now);
            }
            Event::AdminDone { id, result } => self.commands.done(controller, id, result, now),
            Event::Smart(log) => {
                if log.critical_warning != 0 {
                    let warning = log.critical_warning;
                    tracing::warn!(address, warning, "the drive has a critical warning");
                }
                self.handle.lock().report.health = Some((log, now_unix_ms()));
            }
            Event::ErrorLog(entries) => self.note_errors(&entries),
            Event::Shutdown { clean } if !clean => {
                tracing::warn!(address, "the drive has not said that it has stored all");
            }
            Event::Shutdown { .. } => tracing::info!(address, "the drive is shut down"),
            other => tracing::debug!(address, ?other, "drive"),
        }
    }

    /// What was read of the error log. It is read again and again: only what is new is told.
    fn note_errors(&mut self, read: &[ErrorEntry]) {
        let address = self.handle.address.as_str();
        let new = self.errors.add(read, now_unix_ms());
        for entry in new.iter().rev() {
            tracing::info!(
                address,
                error_count = entry.error_count,
                status = entry.status,
                sqid = entry.submission_queue_id,
                cid = entry.command_id,
                nsid = entry.nsid,
                lba = entry.lba,
                "a new entry in the error log of the drive"
            );
        }
        if !new.is_empty() {
            let entries = self.errors.entries().to_vec();
            self.handle.lock().report.errors = entries;
        }
    }

    fn running(&mut self, controller: &Controller) {
        if let Some(identify) = controller.identify() {
            let text = |field: &[u8]| String::from_utf8_lossy(field).trim().to_owned();
            let mut shared = self.handle.lock();
            shared.report.model = text(&identify.mn);
            shared.report.serial = text(&identify.sn);
            shared.report.firmware = text(&identify.fr);
            shared.report.non_operational = commands::non_operational(identify);
        }
        self.look_at_namespaces(controller);
        if let Some(ready) = self.ready.take()
            && ready.send(Ok(())).is_err()
        {
            // Nobody wants it any more.
            self.handle.lock().shutdown = true;
        }
    }

    fn look_at_namespaces(&self, controller: &Controller) {
        if self.leaving.is_some() || self.ready.is_some() && controller.identify().is_none() {
            return;
        }
        let there = controller
            .namespaces()
            .filter(|namespace| !namespace.is_gone());
        self.publish(there.map(|n| (n.nsid().0, Arc::clone(n))).collect());
    }

    /// Tells of the namespaces that there are.
    fn publish(&self, namespaces: BTreeMap<u32, Arc<NvmeNamespace>>) {
        let drive = {
            let mut shared = self.handle.lock();
            shared
                .unusable
                .retain(|nsid, _| !namespaces.contains_key(nsid));
            shared.namespaces = namespaces;
            shared.drive.upgrade()
        };
        if let Some(drive) = drive {
            drive.look();
        }
    }

    fn finish(&mut self, controller: &Controller) {
        let state = controller.state();
        if self.reason.is_none() {
            let error = self.handle.lock().report.error.clone();
            self.reason = match state {
                ControllerState::Removed => Some("the drive is gone".to_owned()),
                ControllerState::Failed => Some(format!("the controller was given up: {error}")),
                _ => None,
            };
        }
        let reason = self.reason.clone();
        self.fail(reason.unwrap_or_else(|| format!("the controller is {}", state.name())));
        self.leaving = None;
    }
}

#[cfg(test)]
mod tests;
