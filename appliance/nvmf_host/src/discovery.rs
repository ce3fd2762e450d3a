//! Discovery: which subsystems are where.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use fabric_wire::discovery::{
    DiscoveryError, DiscoveryLogEntry, DiscoveryLogHeader, DiscoveryRecord, ENTRY_LEN, HEADER_LEN,
};
use fabric_wire::{Nqn, TransportAddress};
use nvme_spec::log::lid;
use nvme_spec::{Nsid, Status};

use crate::admin::Admin;
use crate::association::Operation;
use crate::controller::{Controller, ControllerState};
use crate::error::HostError;
use crate::event::Event;
use crate::options::HostOptions;
use crate::queue::HostContext;

/// Reads of a log that changes meanwhile.
const ATTEMPTS: u32 = 8;
/// Most entries taken of a log: 16 MiB of them.
const MAX_ENTRIES: u64 = 16_000;

/// The discovery log at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiscoveryLog {
    /// GENCTR.
    pub generation: u64,
    /// The entries that can be used.
    pub records: Vec<DiscoveryRecord>,
    /// Why the others cannot: transports or address families that are not known here, or mistakes.
    pub skipped: Vec<DiscoveryError>,
}

/// A connection to a discovery controller.
///
/// It reads the log once, and again whenever the controller tells that it changed (a persistent
/// connection, which needs a keep-alive time-out).
pub struct Discovery {
    controller: Controller,
    reading: Option<Operation<DiscoveryLog>>,
    must_read: bool,
    log: Option<DiscoveryLog>,
    failure: Option<HostError>,
}

impl Discovery {
    /// Begins to connect to the discovery controller at an address.
    ///
    /// # Errors
    /// As [`Controller::connect`].
    pub fn connect(
        address: &TransportAddress,
        mut options: HostOptions,
        context: &HostContext,
        now: Instant,
    ) -> Result<Self, HostError> {
        options.io_queues = 0;
        let controller = Controller::connect(address, &Nqn::discovery(), options, context, now)?;
        Ok(Self { controller, reading: None, must_read: true, log: None, failure: None })
    }

    /// Moves everything on. Returns whether there was anything to do.
    pub fn poll(&mut self, now: Instant) -> bool {
        let worked = self.controller.poll(now);
        while let Some(event) = self.controller.take_event() {
            self.must_read |= event == Event::DiscoveryLogChange;
        }
        if self.controller.is_ready() && self.must_read && self.reading.is_none() {
            self.must_read = false;
            let admin = self.controller.admin();
            self.reading = Some(Operation::new(read(admin)));
        }
        match self.reading.as_mut().and_then(Operation::poll) {
            Some(Ok(log)) => {
                self.log = Some(log);
                self.reading = None;
            }
            Some(Err(error)) => {
                self.failure = Some(error);
                self.reading = None;
            }
            None => {}
        }
        worked
    }

    /// The log as it was last read, once for each time that it was.
    pub fn take_log(&mut self) -> Option<DiscoveryLog> {
        self.log.take()
    }

    /// Reads the log again.
    pub fn refresh(&mut self) {
        self.must_read = true;
        self.failure = None;
    }

    /// Why the log cannot be read, or the connection ended, if so.
    #[must_use]
    pub fn failure(&self) -> Option<&HostError> {
        self.controller.failure().or(self.failure.as_ref())
    }

    /// How far its controller is.
    #[must_use]
    pub fn state(&self) -> &ControllerState {
        self.controller.state()
    }

    /// Shuts the controller down in order; poll until [`ControllerState::ShutDown`].
    pub fn shut_down(&mut self, now: Instant) {
        self.reading = None;
        self.controller.shut_down(Vec::new(), now);
    }

    /// See [`Controller::with_wake_fd`].
    pub fn with_wake_fd<R>(&self, use_fd: impl FnOnce(Option<BorrowedFd<'_>>) -> R) -> R {
        self.controller.with_wake_fd(use_fd)
    }

    /// See [`Controller::next_deadline`].
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let deadline = self.controller.next_deadline();
        match &self.reading {
            None => deadline,
            // It has a piece to ask for with every answer; those wake it.
            Some(_) => deadline.map(|at| at.min(at + Duration::from_millis(1))),
        }
    }
}

impl fmt::Debug for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discovery").field("controller", &self.controller).finish_non_exhaustive()
    }
}

/// Reads the log until its generation is the same before and after.
pub(crate) async fn read(admin: Admin) -> Result<DiscoveryLog, HostError> {
    for _ in 0..ATTEMPTS {
        match read_once(&admin).await {
            Ok(Some(log)) => return Ok(log),
            Ok(None) => {}
            Err(HostError::Command { status, .. }) if status.is(Status::DISCOVER_RESTART) => {}
            Err(error) => return Err(error),
        }
    }
    Err(HostError::DiscoveryUnstable { attempts: ATTEMPTS })
}

/// `None`: it changed while it was read.
async fn read_once(admin: &Admin) -> Result<Option<DiscoveryLog>, HostError> {
    let header = read_header(admin, true).await?;
    let (generation, count) = (header.genctr.get(), header.numrec.get());
    if count > MAX_ENTRIES {
        let reason = format!("it claims {count} entries; at most {MAX_ENTRIES} are read");
        return Err(HostError::Malformed { what: "the discovery log", reason });
    }
    let mut log = DiscoveryLog { generation, ..DiscoveryLog::default() };
    if count > 0 {
        let len = u32::try_from(count).expect("bounded above") * ENTRY_LEN as u32;
        let at = (HEADER_LEN as u64, len);
        let entries = read_piece(admin, at, true).await?;
        for entry in entries.chunks_exact(ENTRY_LEN) {
            match DiscoveryLogEntry::parse(entry) {
                Ok(record) => log.records.push(record),
                Err(error) => log.skipped.push(error),
            }
        }
    }
    // Reading without RAE unmasks the event: from here on a change is reported.
    let after = read_header(admin, false).await?;
    let is_same = after.genctr.get() == generation && after.numrec.get() == count;
    Ok(is_same.then_some(log))
}

async fn read_header(admin: &Admin, rae: bool) -> Result<DiscoveryLogHeader, HostError> {
    let bytes = read_piece(admin, (0, HEADER_LEN as u32), rae).await?;
    Ok(DiscoveryLogHeader::parse(&bytes)?)
}

async fn read_piece(admin: &Admin, at: (u64, u32), rae: bool) -> Result<Vec<u8>, HostError> {
    admin.read_log("get discovery log", Nsid::NONE, lid::DISCOVERY, 0, at, rae).await
}
