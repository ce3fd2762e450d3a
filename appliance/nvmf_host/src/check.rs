//! Finds out, rung by rung, why a host cannot use a subsystem.
//!
//! [`Check`] climbs: is the address reachable, does NVMe/TCP answer there, does discovery list the
//! subsystem, does the subsystem let this host in, does its controller become ready, are there
//! namespaces, are they reachable, can one be read. Each [`Rung`] says what was found, and what to do
//! where it is not well.

use std::fmt;
use std::time::Instant;

use fabric_wire::{Nqn, TransportAddress};
use nvme_spec::identify::cmic;
use nvme_spec::{Lba, Status};

use crate::admin::NamespaceInfo;
use crate::ana::AnaLog;
use crate::association::Operation;
use crate::command::{Completion, Submit};
use crate::controller::{Controller, ControllerState};
use crate::discovery::{Discovery, DiscoveryLog};
use crate::error::HostError;
use crate::io::{IoOp, IoRequest};
use crate::io_queue::IoQueue;
use crate::options::HostOptions;
use crate::queue::HostContext;

/// How a rung was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Well; what was found.
    Ok(String),
    /// Not as it should be, but one can go on.
    Warning {
        /// What was found.
        what: String,
        /// What to do.
        advice: String,
    },
    /// Nothing above this rung can work.
    Failed {
        /// What was found.
        what: String,
        /// What to do.
        advice: String,
    },
}

/// One step of the ladder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rung {
    /// Its name: `address`, `transport`, `discovery`, `host`, `controller`, `namespaces`, `ana`,
    /// `read`.
    pub name: &'static str,
    /// How it was found.
    pub outcome: Outcome,
}

impl Rung {
    /// Whether it failed.
    #[must_use]
    pub const fn is_failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed { .. })
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name;
        match &self.outcome {
            Outcome::Ok(what) => write!(f, "{name:<11} ok       {what}"),
            Outcome::Warning { what, advice } => {
                write!(f, "{name:<11} warning  {what}; {advice}")
            }
            Outcome::Failed { what, advice } => write!(f, "{name:<11} failed   {what}; {advice}"),
        }
    }
}

/// What is climbed.
enum Climb {
    Discovering(Discovery),
    Connecting(Controller),
    Listing(Controller, Operation<Vec<NamespaceInfo>>),
    Ana(Controller, Vec<NamespaceInfo>, Operation<AnaLog>),
    Reading(Controller, NamespaceInfo, Vec<IoQueue>),
    Leaving(Controller),
    Done,
}

/// A climb. Poll it until [`Check::finished`].
pub struct Check {
    address: TransportAddress,
    subnqn: Nqn,
    options: HostOptions,
    context: HostContext,
    climb: Climb,
    rungs: Vec<Rung>,
    completions: Vec<Completion>,
}

impl Check {
    /// Begins a climb.
    ///
    /// # Errors
    /// As [`Controller::connect`].
    pub fn new(
        address: &TransportAddress,
        subnqn: &Nqn,
        mut options: HostOptions,
        now: Instant,
    ) -> Result<Self, HostError> {
        let context = HostContext::new();
        options.io_queues = 1;
        options.io_queue_depth = options.io_queue_depth.min(8);
        let discovery = Discovery::connect(address, options.clone(), &context, now)?;
        Ok(Self {
            address: address.clone(),
            subnqn: subnqn.clone(),
            options,
            context,
            climb: Climb::Discovering(discovery),
            rungs: Vec::new(),
            completions: Vec::new(),
        })
    }

    /// The rungs so far, from the lowest up.
    #[must_use]
    pub fn rungs(&self) -> &[Rung] {
        &self.rungs
    }

    /// Whether it has come as far as it can.
    #[must_use]
    pub fn finished(&self) -> bool {
        matches!(self.climb, Climb::Done)
    }

    /// Whether no rung failed.
    #[must_use]
    pub fn is_well(&self) -> bool {
        !self.rungs.iter().any(Rung::is_failed)
    }

    /// Moves the climb on. Returns whether there was anything to do.
    pub fn poll(&mut self, now: Instant) -> bool {
        let (climb, worked) = match std::mem::replace(&mut self.climb, Climb::Done) {
            Climb::Discovering(discovery) => self.discover(discovery, now),
            Climb::Connecting(controller) => self.connect(controller, now),
            Climb::Listing(controller, listing) => self.list(controller, listing, now),
            Climb::Ana(controller, namespaces, log) => self.ana(controller, namespaces, log, now),
            Climb::Reading(controller, namespace, queues) => {
                self.read(controller, namespace, queues, now)
            }
            Climb::Leaving(mut controller) => {
                let worked = controller.poll(now);
                match controller.state() {
                    ControllerState::ShutDown | ControllerState::Failed(_) => (Climb::Done, worked),
                    _ => (Climb::Leaving(controller), worked),
                }
            }
            Climb::Done => (Climb::Done, false),
        };
        self.climb = climb;
        worked
    }

    fn discover(&mut self, mut discovery: Discovery, now: Instant) -> (Climb, bool) {
        let worked = discovery.poll(now);
        if let Some(log) = discovery.take_log() {
            self.reached();
            self.judge_log(&log);
            return (self.begin_connect(now), worked);
        }
        let Some(error) = discovery.failure().cloned() else {
            return (Climb::Discovering(discovery), worked);
        };
        if self.failed_below(&error) {
            return (Climb::Done, worked);
        }
        self.reached();
        let what = error.describe();
        let advice = "the target may have its discovery controller elsewhere (often at port 8009)";
        self.warn("discovery", what, advice);
        (self.begin_connect(now), worked)
    }

    fn judge_log(&mut self, log: &DiscoveryLog) {
        let mut places = log.records.iter().filter(|record| record.subnqn == self.subnqn);
        let count = log.records.len();
        match places.next() {
            Some(_) if log.records.iter().any(|record| {
                record.subnqn == self.subnqn && record.address == self.address
            }) => {
                let what = format!("{} is listed at {}", self.subnqn, self.address);
                self.ok("discovery", what);
            }
            Some(record) => {
                let what = format!("{} is listed at {} instead", self.subnqn, record.address);
                let advice = "connect there, or add a listener at the address asked for";
                self.warn("discovery", what, advice);
            }
            None => {
                let what = format!("{} is not among the {count} entries of the log", self.subnqn);
                let advice = "it is not there, not active, has no listener at this address, \
                              or does not allow this host";
                self.warn("discovery", what, advice);
            }
        }
    }

    fn begin_connect(&mut self, now: Instant) -> Climb {
        let options = self.options.clone();
        match Controller::connect(&self.address, &self.subnqn, options, &self.context, now) {
            Ok(controller) => Climb::Connecting(controller),
            Err(error) => {
                self.fail("host", error.describe(), "correct it");
                Climb::Done
            }
        }
    }

    fn connect(&mut self, mut controller: Controller, now: Instant) -> (Climb, bool) {
        let worked = controller.poll(now);
        if controller.is_ready() {
            self.accepted();
            let info = controller.info().expect("a ready controller has it");
            let what = format!(
                "controller {} is ready, NVMe {}, {} I/O queue(s) of {}",
                info.cntlid, info.version, info.io_queues, info.io_queue_depth
            );
            self.ok("controller", what);
            if info.io_queues == 0 {
                let what = "it grants no I/O queue".to_owned();
                self.fail("controller", what, "raise the transport's limit of queues");
                return (self.leave(controller, Vec::new(), now), worked);
            }
            let listing = controller.admin().namespaces();
            return (Climb::Listing(controller, listing), worked);
        }
        let Some(error) = controller.failure() else {
            return (Climb::Connecting(controller), worked);
        };
        let error = error.clone();
        match &error {
            HostError::Refused { qid, status, advice, .. } if qid.is_admin() => {
                let what = format!("connect was refused: {status}");
                let is_host = status.is(Status::CONNECT_INVALID_HOST);
                self.fail(if is_host { "host" } else { "subsystem" }, what, advice);
            }
            HostError::Authentication { .. } => {
                self.fail("host", error.describe(), "turn authentication off for this host");
            }
            _ if self.failed_below(&error) => {}
            _ => {
                self.accepted();
                let what = format!("{} at step: {}", error.describe(), controller.step());
                self.fail("controller", what, "look into the target's log");
            }
        }
        (Climb::Done, worked)
    }

    fn list(
        &mut self,
        mut controller: Controller,
        mut listing: Operation<Vec<NamespaceInfo>>,
        now: Instant,
    ) -> (Climb, bool) {
        let worked = controller.poll(now);
        let climb = match listing.poll() {
            None => Climb::Listing(controller, listing),
            Some(Err(error)) => {
                self.fail("namespaces", error.describe(), "look into the target's log");
                self.leave(controller, Vec::new(), now)
            }
            Some(Ok(namespaces)) if namespaces.is_empty() => {
                let advice = "add one, or make one visible to this host";
                self.fail("namespaces", "there is none".to_owned(), advice);
                self.leave(controller, Vec::new(), now)
            }
            Some(Ok(namespaces)) => {
                let each: Vec<_> = namespaces
                    .iter()
                    .map(|namespace| {
                        let NamespaceInfo { nsid, block_size, block_count, .. } = namespace;
                        format!("{nsid} ({block_count} blocks of {block_size} bytes)")
                    })
                    .collect();
                self.ok("namespaces", each.join(", "));
                let cmic = controller.info().map_or(0, |info| info.identify.cmic);
                if cmic & cmic::ANA_REPORTING != 0 {
                    let log = controller.admin().ana_log();
                    Climb::Ana(controller, namespaces, log)
                } else {
                    self.begin_read(controller, namespaces)
                }
            }
        };
        (climb, worked)
    }

    fn ana(
        &mut self,
        mut controller: Controller,
        mut namespaces: Vec<NamespaceInfo>,
        mut log: Operation<AnaLog>,
        now: Instant,
    ) -> (Climb, bool) {
        let worked = controller.poll(now);
        let climb = match log.poll() {
            None => Climb::Ana(controller, namespaces, log),
            Some(Err(error)) => {
                self.warn("ana", error.describe(), "look into the target's log");
                self.begin_read(controller, namespaces)
            }
            Some(Ok(log)) => {
                let state = |namespace: &NamespaceInfo| log.state_of(namespace.nsid);
                let is_usable =
                    |namespace: &NamespaceInfo| state(namespace).is_some_and(|s| s.is_usable());
                let each: Vec<_> = namespaces
                    .iter()
                    .map(|namespace| match state(namespace) {
                        Some(state) => format!("{} {state:?}", namespace.nsid),
                        None => format!("{} in no group", namespace.nsid),
                    })
                    .collect();
                let (what, advice) = (each.join(", "), "use another path, or change its ANA state");
                if namespaces.iter().all(is_usable) {
                    self.ok("ana", what);
                } else if namespaces.iter().any(is_usable) {
                    self.warn("ana", what, advice);
                } else {
                    self.fail("ana", what, advice);
                    return (self.leave(controller, Vec::new(), now), worked);
                }
                namespaces.retain(is_usable);
                self.begin_read(controller, namespaces)
            }
        };
        (climb, worked)
    }

    fn begin_read(&mut self, mut controller: Controller, namespaces: Vec<NamespaceInfo>) -> Climb {
        let queues = controller.take_io_queues();
        let first = namespaces.into_iter().next();
        Climb::Reading(controller, first.expect("an empty list has ended the climb"), queues)
    }

    fn read(
        &mut self,
        mut controller: Controller,
        namespace: NamespaceInfo,
        mut queues: Vec<IoQueue>,
        now: Instant,
    ) -> (Climb, bool) {
        let mut worked = controller.poll(now);
        let Some(queue) = queues.first_mut() else {
            return (self.leave(controller, queues, now), worked);
        };
        let is_begun = queue.counters().commands > 1; // the first was Connect
        if !is_begun && queue.failure().is_none() {
            let op = IoOp::Read { lba: Lba(0), blocks: 1 };
            let request = IoRequest::new(namespace.nsid, op, 0)
                .with_buffer(vec![0; namespace.block_size as usize]);
            if let Submit::Refused(_) = queue.submit(request, now) {
                self.fail("read", "the I/O queue takes no command".to_owned(), "try again");
                return (self.leave(controller, queues, now), worked);
            }
        }
        worked |= queue.poll(now, &mut self.completions);
        let Some(completion) = self.completions.pop() else {
            return (Climb::Reading(controller, namespace, queues), worked);
        };
        match completion.result {
            Ok(_) => self.ok("read", format!("block 0 of namespace {}", namespace.nsid)),
            Err(error) => {
                let why = queue.failure().map(HostError::describe);
                let what = why.unwrap_or_else(|| error.to_string());
                let what = format!("block 0 of namespace {}: {what}", namespace.nsid);
                self.fail("read", what, "look into the state of its block device");
            }
        }
        (self.leave(controller, queues, now), worked)
    }

    fn leave(&mut self, mut controller: Controller, queues: Vec<IoQueue>, now: Instant) -> Climb {
        controller.shut_down(queues, now);
        Climb::Leaving(controller)
    }

    /// Records an error of the lowest rungs. `false`: the error is of a higher one.
    fn failed_below(&mut self, error: &HostError) -> bool {
        let what = error.describe();
        match error {
            HostError::Socket { operation: "connect", .. } => {
                let advice = "start the target, add a listener at this address, \
                              or open the port in the firewall";
                self.fail("address", what, advice);
            }
            HostError::ConnectTimeout { what: "the TCP connection", .. } => {
                self.fail("address", what, "check the address, the route and the firewall");
            }
            HostError::ConnectTimeout { what: "ICReq", .. } => {
                self.ok_once("address", format!("{} is reachable", self.address));
                self.fail("transport", what, "something else than NVMe/TCP may listen there");
            }
            HostError::Digest { .. } => {
                self.ok_once("address", format!("{} is reachable", self.address));
                let advice = "turn the digest off here, or on at the target";
                self.fail("transport", what, advice);
            }
            HostError::Closed { .. }
            | HostError::Terminated { .. }
            | HostError::Pdu { .. }
            | HostError::Protocol { .. }
            | HostError::Socket { .. }
                if !self.rungs.iter().any(|rung| rung.name == "transport") =>
            {
                self.ok_once("address", format!("{} is reachable", self.address));
                self.fail("transport", what, "look into the target's log for a limit");
            }
            _ => return false,
        }
        true
    }

    /// A controller has answered, whatever it said.
    fn reached(&mut self) {
        self.ok_once("address", format!("{} is reachable", self.address));
        self.ok_once("transport", "NVMe/TCP answers".to_owned());
    }

    fn accepted(&mut self) {
        self.reached();
        let host = &self.options.identity.hostnqn;
        let what = format!("{} lets {host} in", self.subnqn);
        self.ok_once("host", what);
    }

    fn ok(&mut self, name: &'static str, what: String) {
        self.rungs.push(Rung { name, outcome: Outcome::Ok(what) });
    }

    fn ok_once(&mut self, name: &'static str, what: String) {
        if !self.rungs.iter().any(|rung| rung.name == name) {
            self.ok(name, what);
        }
    }

    fn warn(&mut self, name: &'static str, what: String, advice: &str) {
        let outcome = Outcome::Warning { what, advice: advice.to_owned() };
        self.rungs.push(Rung { name, outcome });
    }

    fn fail(&mut self, name: &'static str, what: String, advice: &str) {
        let outcome = Outcome::Failed { what, advice: advice.to_owned() };
        self.rungs.push(Rung { name, outcome });
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check").field("rungs", &self.rungs).finish_non_exhaustive()
    }
}
