//! What the owner does by admin commands, one after the other: finding out what the drive is,
//! making queues, reading logs.

use nvme_spec::event::{kind, notice, parse_event_dw0};
use nvme_spec::feature::{self, async_event, fid, number_of_queues, parse_number_of_queues};
use nvme_spec::identify::{
    IdentifyController, IdentifyNamespace, IdentifyNvmController, NamespaceList, cns, csi, oacs,
    oaes, vwc,
};
use nvme_spec::log::{ChangedNamespaces, ErrorEntry, SmartLog, lid};
use nvme_spec::{Cid, Nsid, Sqe, Status};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use zerocopy::FromBytes;

use crate::admin::{AdminReply, AdminRequest};
use crate::channel::vector;
use crate::controller::{Controller, Event};
use crate::error::NvmeError;
use crate::namespace::{NvmeNamespace, facts};
use crate::ring::Ring;
use crate::shared::lock;

/// Entries of the error log that are read at a time.
const ERROR_ENTRIES: u32 = 16;
const CID: Cid = Cid(0);

/// One step, done by one admin command. Queues are named by their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    IdentifyController,
    IdentifyNvm,
    QueueCount,
    DoorbellBuffers,
    WriteCache(bool),
    Arbitration(u32),
    ListNamespaces,
    /// Of a namespace, and how often that has failed.
    IdentifyNamespace(Nsid, u8),
    CreateCq(usize),
    CreateSq(usize),
    DeleteSq(usize),
    DeleteCq(usize),
    EventConfig,
    Smart,
    ErrorLog,
    ChangedNamespaces,
}

impl Job {
    /// Its name, where bringing the controller up fails without it.
    pub(crate) fn required(self) -> Option<&'static str> {
        match self {
            Self::IdentifyController => Some("Identify Controller"),
            Self::QueueCount => Some("Set Features (Number of Queues)"),
            Self::ListNamespaces => Some("Identify (Active Namespace List)"),
            Self::CreateCq(_) => Some("Create I/O Completion Queue"),
            Self::CreateSq(_) => Some("Create I/O Submission Queue"),
            Self::DeleteSq(_) => Some("Delete I/O Submission Queue"),
            Self::DeleteCq(_) => Some("Delete I/O Completion Queue"),
            _ => None,
        }
    }
}

impl Controller {
    /// The command of a job.
    pub(crate) fn job_request(&mut self, job: Job) -> AdminRequest {
        let layout = &self.shared.layout;
        let qid = |place: usize| self.shared.queues[place].qid;
        match job {
            Job::IdentifyController => AdminRequest::identify(Nsid::NONE, cns::CONTROLLER),
            Job::IdentifyNvm => {
                let mut request = AdminRequest::identify(Nsid::NONE, cns::CSI_CONTROLLER);
                request.sqe = request.sqe.with_cdw11(u32::from(csi::NVM) << 24);
                request
            }
            Job::QueueCount => {
                let count = layout.io_queues();
                let value = number_of_queues(count, count);
                AdminRequest::set_features(fid::NUMBER_OF_QUEUES, value)
            }
            Job::DoorbellBuffers => {
                let (shadow, events) = (layout.shadow(), layout.event_index());
                layout.region.zero(shadow, 4096);
                layout.region.zero(events, 4096);
                let (shadow, events) = (layout.address(shadow), layout.address(events));
                AdminRequest::new(Sqe::doorbell_buffer_config(CID, shadow, events))
            }
            Job::WriteCache(on) => {
                AdminRequest::set_features(fid::VOLATILE_WRITE_CACHE, u32::from(on))
            }
            Job::Arbitration(value) => AdminRequest::set_features(fid::ARBITRATION, value),
            Job::ListNamespaces => AdminRequest::identify(Nsid::NONE, cns::ACTIVE_NAMESPACES),
            Job::IdentifyNamespace(nsid, _) => AdminRequest::identify(nsid, cns::NAMESPACE),
            Job::CreateCq(place) => {
                let qid = qid(place);
                let ring = self.new_ring(place);
                ring.clear();
                let interrupts = self.shared.device.interrupts.as_ref();
                let interrupts = interrupts.filter(|_| self.shared.options.interrupts);
                let vector = interrupts.and_then(|all| vector(all.count(), qid.0));
                let address = layout.address(layout.cq(qid.0));
                let entries = layout.entries();
                AdminRequest::new(Sqe::create_io_cq(CID, qid, entries, address, vector))
            }
            Job::CreateSq(place) => {
                let qid = qid(place);
                let address = layout.address(layout.sq(qid.0));
                let entries = layout.entries();
                AdminRequest::new(Sqe::create_io_sq(CID, qid, entries, address, qid, 0))
            }
            Job::DeleteSq(place) => AdminRequest::new(Sqe::delete_io_sq(CID, qid(place))),
            Job::DeleteCq(place) => AdminRequest::new(Sqe::delete_io_cq(CID, qid(place))),
            Job::EventConfig => {
                let offered = self.identify.as_ref().map_or(0, |id| id.oaes.get());
                let wanted = async_event::NAMESPACE_ATTRIBUTE | async_event::FIRMWARE_ACTIVATION;
                let value = async_event::SMART & 0x1f | wanted & offered;
                AdminRequest::set_features(fid::ASYNC_EVENT_CONFIG, value)
            }
            Job::Smart => AdminRequest::smart_log(),
            Job::ErrorLog => AdminRequest::error_log(self.error_entries()),
            Job::ChangedNamespaces => AdminRequest::log(lid::CHANGED_NAMESPACES, 4096),
        }
    }

    /// What a job's command gave. `Err`: the controller cannot be used like this.
    pub(crate) fn job_done(
        &mut self,
        job: Job,
        status: Status,
        reply: &AdminReply,
        events: &mut Vec<Event>,
    ) -> Result<(), NvmeError> {
        if !status.is_success() {
            if let Job::IdentifyNamespace(nsid, failed) = job {
                self.namespace_not_identified(nsid, failed, status, events);
            }
            let Some(command) = job.required() else {
                return Ok(());
            };
            return Err(NvmeError::Command {
                address: self.address().to_owned(),
                command,
                status,
            });
        }
        match job {
            Job::IdentifyController => self.identified(&reply.data)?,
            Job::IdentifyNvm => {
                self.nvm = IdentifyNvmController::read_from_bytes(&reply.data).unwrap_or_default();
            }
            Job::QueueCount => {
                let (submission, completion) = parse_number_of_queues(reply.dw0);
                self.granted = submission.min(completion) as usize;
                for (place, queue) in self.shared.queues.iter().enumerate() {
                    queue.withheld.store(place >= self.granted, SeqCst);
                }
                self.shared.wake_channels();
                self.tend_queues();
            }
            Job::DoorbellBuffers => self.shared.shadow.store(true, SeqCst),
            Job::ListNamespaces => self.namespaces_listed(&reply.data, events),
            Job::IdentifyNamespace(nsid, _) => self.namespace_identified(nsid, &reply.data, events),
            Job::CreateCq(place) => self.jobs.push_front(Job::CreateSq(place)),
            Job::CreateSq(place) => self.created.push(place),
            Job::DeleteSq(place) => self.jobs.push_front(Job::DeleteCq(place)),
            Job::DeleteCq(place) => {
                let queue = &self.shared.queues[place];
                queue.live.store(0, SeqCst);
                queue.release_orphan(&self.shared.device);
                self.tend_queues();
            }
            Job::Smart => {
                if let Ok(log) = SmartLog::read_from_bytes(&reply.data) {
                    events.push(Event::Smart(Box::new(log)));
                }
            }
            Job::ErrorLog => {
                let entries = reply.data.chunks_exact(64);
                let entries = entries.filter_map(|entry| ErrorEntry::read_from_bytes(entry).ok());
                let entries = entries.filter(|entry| entry.error_count.get() != 0);
                events.push(Event::ErrorLog(entries.collect()));
            }
            Job::ChangedNamespaces => {
                let _ = ChangedNamespaces::read_from_bytes(&reply.data);
                // Which they are does not matter: the list is short, and so is looking at all.
                self.push_job(Job::ListNamespaces);
            }
            Job::WriteCache(_) | Job::Arbitration(_) | Job::EventConfig => {}
        }
        Ok(())
    }

    /// What has to be done once the controller is enabled.
    pub(crate) fn start_jobs(&mut self) {
        self.jobs.clear();
        self.granted = 0;
        self.created.clear();
        self.shared.shadow.store(false, SeqCst);
        self.jobs.push_back(Job::IdentifyController);
    }

    /// Adds a job, unless it waits already.
    pub(crate) fn push_job(&mut self, job: Job) {
        if !self.jobs.contains(&job) {
            self.jobs.push_back(job);
        }
    }

    /// Makes queues that are to be made, and deletes those whose channel went away with commands
    /// in flight.
    pub(crate) fn tend_queues(&mut self) {
        for place in 0..self.shared.queues.len().min(self.granted) {
            let queue = &self.shared.queues[place];
            let busy = |job: &Job| {
                matches!(job, Job::CreateCq(at) | Job::CreateSq(at)
                    | Job::DeleteSq(at) | Job::DeleteCq(at) if *at == place)
            };
            let waits = self.jobs.iter().any(busy) || self.created.contains(&place);
            if waits || self.current.as_ref().is_some_and(busy) {
                continue;
            }
            let live = queue.live.load(SeqCst) != 0;
            if live && queue.has_orphan() {
                self.push_job(Job::DeleteSq(place));
                continue;
            }
            if !live && lock(&queue.ring).take().is_some() {
                // Nobody had taken the queue: there is nobody to wait for.
                self.last_live[place] = 0;
            }
            let parked =
                !queue.opened.load(SeqCst) || queue.parked.load(SeqCst) >= self.last_live[place];
            if !live && parked {
                self.push_job(Job::CreateCq(place));
            }
        }
    }

    fn error_entries(&self) -> u32 {
        let held = self.identify.as_ref().map_or(0, |id| u32::from(id.elpe));
        (held + 1).min(ERROR_ENTRIES)
    }

    fn new_ring(&self, place: usize) -> Ring {
        let shared = &self.shared;
        let shadow = shared.shadow.load(SeqCst);
        Ring::new(&shared.layout, shared.cap, shared.queues[place].qid, shadow)
    }

    /// Gives the queues that were made to their channels. Not before the set-up has ended: a
    /// fault that I/O brings about is not one of the set-up.
    pub(crate) fn publish_created(&mut self) {
        for place in std::mem::take(&mut self.created) {
            self.publish(place);
        }
    }

    /// The queue works from now on.
    fn publish(&mut self, place: usize) {
        let ring = self.new_ring(place);
        let queue = &self.shared.queues[place];
        queue.abort.store(0, SeqCst);
        *lock(&queue.ring) = Some(ring);
        let generation = self.shared.generation();
        self.last_live[place] = generation;
        queue.live.store(generation, SeqCst);
        if let Some(waker) = &*lock(&queue.waker) {
            waker.wake_by_ref();
        }
    }

    fn identified(&mut self, data: &[u8]) -> Result<(), NvmeError> {
        let unsupported = |what| NvmeError::Unsupported {
            address: self.shared.device.function.address().to_owned(),
            what,
        };
        let identify = IdentifyController::read_from_bytes(data)
            .map_err(|_| unsupported("Identify Controller has the wrong length"))?;
        if identify.sqes & 0xf > 6 || identify.cqes & 0xf > 4 {
            return Err(unsupported("its queue entries are not of 64 and 16 bytes"));
        }
        let options = &self.shared.options;
        let mut jobs = vec![Job::IdentifyNvm];
        let shadow = identify.oacs.get() & oacs::DOORBELL_BUFFER != 0;
        if shadow && options.shadow_doorbells {
            jobs.push(Job::DoorbellBuffers);
        }
        if let (Some(on), true) = (options.write_cache, identify.vwc & vwc::PRESENT != 0) {
            jobs.push(Job::WriteCache(on));
        }
        jobs.extend(options.arbitration.map(Job::Arbitration));
        // Queues come last: no I/O goes on before the namespaces are known to be the same.
        jobs.extend([Job::ListNamespaces, Job::EventConfig, Job::QueueCount]);
        self.jobs.extend(jobs);
        self.event_slots = usize::from(identify.aerl).min(3) + 1;
        self.identify = Some(Box::new(identify));
        Ok(())
    }

    fn namespaces_listed(&mut self, data: &[u8], events: &mut Vec<Event>) {
        let list = NamespaceList::read_from_bytes(data).unwrap_or_default();
        let listed: Vec<Nsid> = list.iter().filter(|nsid| nsid.is_valid()).collect();
        let known: Vec<Nsid> = self.namespaces.keys().copied().collect();
        for nsid in known.into_iter().filter(|nsid| !listed.contains(nsid)) {
            self.remove_namespace(nsid, events);
        }
        for nsid in listed {
            self.push_job(Job::IdentifyNamespace(nsid, 0));
        }
    }

    fn remove_namespace(&mut self, nsid: Nsid, events: &mut Vec<Event>) {
        if let Some(namespace) = self.namespaces.remove(&nsid) {
            namespace.set_gone();
            events.push(Event::NamespaceRemoved(nsid));
        }
    }

    /// One that is known stays as it is; of another it is told that it is there.
    fn namespace_not_identified(
        &mut self,
        nsid: Nsid,
        failed: u8,
        status: Status,
        events: &mut Vec<Event>,
    ) {
        if !status.dnr() && failed < self.shared.options.retries {
            self.push_job(Job::IdentifyNamespace(nsid, failed + 1));
        } else if !self.namespaces.contains_key(&nsid) && !self.is_formatting() {
            let why = "Identify Namespace fails";
            events.push(Event::NamespaceUnusable { nsid, why });
        }
    }

    fn namespace_identified(&mut self, nsid: Nsid, data: &[u8], events: &mut Vec<Event>) {
        if self.is_formatting() {
            // What it is now it will not be for long. All are looked at once the format has ended.
            return;
        }
        let (Some(identify), Ok(namespace)) = (
            self.identify.as_deref(),
            IdentifyNamespace::read_from_bytes(data),
        ) else {
            return;
        };
        let new = match facts(&self.shared, nsid, identify, &self.nvm, &namespace) {
            Ok(new) => new,
            Err(why) => {
                self.remove_namespace(nsid, events);
                events.push(Event::NamespaceUnusable { nsid, why });
                return;
            }
        };
        if let Some(known) = self.namespaces.get(&nsid) {
            let old = known.facts().geometry;
            let same_device = !known.is_gone()
                && old.block_size == new.geometry.block_size
                && known.nguid() == namespace.nguid
                && known.eui64() == namespace.eui64;
            if same_device {
                known.set_facts(new);
                if old.block_count != new.geometry.block_count {
                    let block_count = new.geometry.block_count;
                    events.push(Event::NamespaceResized { nsid, block_count });
                }
                return;
            }
        }
        let device = NvmeNamespace::new(&self.shared, identify, &namespace, new);
        self.remove_namespace(nsid, events);
        self.namespaces.insert(nsid, Arc::clone(&device));
        events.push(Event::NamespaceAdded(device));
    }

    /// An asynchronous event: its log page is read, which also lets the next one come.
    pub(crate) fn event_arrived(&mut self, dw0: u32, events: &mut Vec<Event>) {
        let (kind, info, log_id) = parse_event_dw0(dw0);
        events.push(Event::Async { kind, info, log_id });
        match (kind, log_id) {
            (kind::SMART, _) | (_, lid::SMART) => self.push_job(Job::Smart),
            (kind::ERROR, _) | (_, lid::ERROR) => self.push_job(Job::ErrorLog),
            (kind::NOTICE, _) if info == notice::NAMESPACE_ATTRIBUTE_CHANGED => {
                self.push_job(Job::ChangedNamespaces);
            }
            _ => {}
        }
    }
}

/// What is asked for must be what the specification has at that place.
const _: () = assert!(async_event::NAMESPACE_ATTRIBUTE == oaes::NAMESPACE_ATTRIBUTE);
const _: () = assert!(feature::VOLATILE_WRITE_CACHE_ENABLE == 1);
