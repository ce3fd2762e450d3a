//! NVMe drives that this process drives itself, and their namespaces among the block devices.
//!
//! A drive has a name; its namespaces are the block devices `NAMEn1`, `NAMEn2` and so on. Whoever
//! has opened one keeps it when the drive goes away ([`device`]), and goes on when it is back.

mod commands;
mod device;
#[cfg(test)]
mod emulated;
mod error_log;
mod function;
mod look;
mod owner;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use api::v1::{
    Bdev as BdevMessage, BdevSpec, NvmeBdev, NvmeDrive, NvmeDriveNamespace, NvmeHealth,
    NvmeLbaFormat, bdev_spec::Kind,
};
use block::{Bdev, BdevOptions, BlockDevice as _};
use nvme_driver::{ControllerOptions, NvmeNamespace};
use tokio::sync::mpsc;
use uuid::Uuid;
use vfio::{Bound, Container, VfioError};

use self::commands::Wanted;
use self::device::DriveDevice;
use self::owner::Handle;
use super::refused;
use crate::data_plane::DataPlane;
use crate::error::chain;
use crate::runtime::{Formatting, Prepared, Preparing, RuntimeError, Settled};

/// Class, subclass and programming interface of an NVMe I/O controller.
const CLASS_NVME: u32 = 0x01_0802;
/// CAP.TO is at most 127.5 s; a first attempt, a function reset and a second one.
const READY_WITHIN: Duration = Duration::from_secs(400);
/// How long a drive is waited for that may not be the one that is looked for, while there are others
/// to ask.
const ASKED_WITHIN: Duration = Duration::from_secs(10);
/// I/O queue pairs for each reactor when the specification says nothing: as many namespaces can be
/// in use on all reactors at a time.
const QUEUES_PER_REACTOR: usize = 8;
const QUEUES_MAX: usize = 128;

/// A drive that was in place is not any more.
#[derive(Debug)]
pub struct LostDrive {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// The drives of a node.
#[derive(Debug)]
pub(super) struct Drives {
    plane: Arc<DataPlane>,
    lost: mpsc::UnboundedSender<LostDrive>,
    /// Those that are in place, or were and are waited for.
    named: Mutex<BTreeMap<String, Arc<Drive>>>,
    bus: Mutex<Bus>,
}

/// What is known of functions.
#[derive(Debug, Default)]
struct Bus {
    container: Option<Arc<Container>>,
    /// Functions that were opened, until nobody holds them any more.
    open: HashMap<String, Weak<vfio::Function>>,
    /// What is known of the instance at an address.
    known: HashMap<String, (u64, Known)>,
}

/// What a drive answered when it was asked for its serial number.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    Serial(String),
    /// Nothing in the time that it had.
    Silent,
}

/// A drive by its name, there or not.
#[derive(Debug)]
pub(super) struct Drive {
    name: String,
    plane: Arc<DataPlane>,
    lost: mpsc::UnboundedSender<LostDrive>,
    state: Mutex<DriveState>,
}

#[derive(Debug, Default)]
struct DriveState {
    handle: Option<Arc<Handle>>,
    serial: String,
    namespaces: BTreeMap<u32, Registered>,
    /// Namespaces that are being formatted: they are no block devices meanwhile.
    formatting: BTreeSet<u32>,
}

#[derive(Debug)]
struct Registered {
    device: Arc<DriveDevice>,
    bdev: Arc<Bdev>,
    lba_formats: Vec<NvmeLbaFormat>,
    problem: &'static str,
}

/// A drive that was brought up ahead. Dropped, it is shut down.
struct PreparedDrive(Option<Arc<Handle>>);

impl Drop for PreparedDrive {
    fn drop(&mut self) {
        if let Some(handle) = self.0.take() {
            handle.shut_down();
        }
    }
}

fn pending(reason: impl Into<String>) -> RuntimeError {
    RuntimeError::Pending(reason.into())
}

impl Drives {
    pub(super) fn new(
        plane: Arc<DataPlane>,
        lost: mpsc::UnboundedSender<LostDrive>,
    ) -> Arc<Drives> {
        Arc::new(Drives {
            plane,
            lost,
            named: Mutex::default(),
            bus: Mutex::default(),
        })
    }

    fn named(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Drive>>> {
        // A panic while the lock was held left a plain map behind.
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bus(&self) -> MutexGuard<'_, Bus> {
        self.bus.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, name: &str) -> Option<Arc<Drive>> {
        self.named().get(name).cloned()
    }

    /// Brings a drive up, on a thread that may wait.
    pub(super) fn prepare(self: &Arc<Self>, spec: &NvmeBdev) -> Preparing {
        let (drives, spec) = (Arc::clone(self), spec.clone());
        Box::pin(async move {
            let opening = tokio::task::spawn_blocking(move || drives.open(&spec));
            let opened = opening.await;
            opened.unwrap_or_else(|error| Err(RuntimeError::Refused(error.to_string())))
        })
    }

    fn open(&self, spec: &NvmeBdev) -> Result<Prepared, RuntimeError> {
        let prepared = if spec.serial_number.is_empty() {
            let address = &spec.pci_address;
            let opened = self.bring_up(address, spec.io_queues, READY_WITHIN);
            opened.map_err(|down| down.into_error(address))?
        } else {
            self.find(spec)?
        };
        Ok(Box::new(prepared))
    }

    /// Looks for a drive by its serial number. A drive that was not seen before is brought up to be
    /// asked.
    fn find(&self, spec: &NvmeBdev) -> Result<PreparedDrive, RuntimeError> {
        let wanted = &spec.serial_number;
        let bound = vfio::bound_functions().map_err(|error| pending(error.to_string()))?;
        let bound: Vec<Bound> = bound
            .into_iter()
            .filter(|b| b.class == CLASS_NVME)
            .collect();
        let mut problems = Vec::new();
        let asked = to_ask(&bound, &self.bus().known, wanted);
        for (index, bound) in asked.iter().enumerate() {
            let address = &bound.address;
            let is_last = index + 1 == asked.len();
            let within = if is_last { READY_WITHIN } else { ASKED_WITHIN };
            let prepared = match self.bring_up(address, spec.io_queues, within) {
                Ok(prepared) => prepared,
                Err(Down::Silent) => {
                    let entry = (bound.instance, Known::Silent);
                    self.bus().known.insert(address.clone(), entry);
                    problems.push(Down::Silent.told(address));
                    continue;
                }
                Err(down) => {
                    problems.push(down.told(address));
                    continue;
                }
            };
            if self.remember(bound, &prepared) == *wanted {
                return Ok(prepared);
            }
        }
        let mut reason = format!(
            "none of the {} drives that vfio-pci has shows the serial number {wanted}: is it \
             plugged in and bound to vfio-pci?",
            bound.len()
        );
        for problem in problems {
            reason.push_str(&format!(" ({problem})"));
        }
        Err(pending(reason))
    }

    /// Notes whose drive is in a place; its serial number.
    fn remember(&self, bound: &Bound, prepared: &PreparedDrive) -> String {
        let serial = prepared.0.as_ref().map(|handle| handle.report().serial);
        let serial = serial.unwrap_or_default();
        let entry = (bound.instance, Known::Serial(serial.clone()));
        self.bus().known.insert(bound.address.clone(), entry);
        serial
    }

    /// Opens a function and waits until its controller runs.
    fn bring_up(
        &self,
        address: &str,
        queues: Option<u32>,
        within: Duration,
    ) -> Result<PreparedDrive, Down> {
        let reactors = self.plane.reactors().reactors().len();
        let by_itself = ((reactors + 1) * QUEUES_PER_REACTOR).min(QUEUES_MAX);
        let io_queues = queues.and_then(|queues| u16::try_from(queues).ok());
        let options = ControllerOptions {
            io_queues: io_queues.unwrap_or(by_itself as u16),
            numa_node: vfio::numa_node_of(address),
            ..ControllerOptions::default()
        };
        let function = self.function(address, options.io_queues);
        let function = function.map_err(Down::Error)?;
        let (ready, told) = sync_channel(1);
        let handle = owner::start(function, options, ready)
            .map_err(|error| Down::Error(pending(format!("no thread for the drive: {error}"))))?;
        let prepared = PreparedDrive(Some(handle));
        match told.recv_timeout(within) {
            Ok(Ok(())) => Ok(prepared),
            Ok(Err(reason)) => {
                let reason = format!("pci function {address}: {reason}");
                Err(Down::Error(pending(reason)))
            }
            Err(_) => Err(Down::Silent),
        }
    }

    fn function(&self, address: &str, queues: u16) -> Result<Arc<vfio::Function>, RuntimeError> {
        vfio::group_of(address).map_err(|error| pending(told(&error)))?;
        let mut bus = self.bus();
        bus.open.retain(|_, function| function.strong_count() > 0);
        if bus.open.contains_key(address) {
            let reason = "is in use here, or was and is not let go of yet";
            return Err(pending(format!("pci function {address} {reason}")));
        }
        let container = match &bus.container {
            Some(container) => Arc::clone(container),
            None => {
                let container = Container::open().map_err(|error| pending(chain(&error)))?;
                Arc::clone(bus.container.insert(container))
            }
        };
        let opened = vfio::Function::open(&container, address, queues.saturating_add(1));
        let function = opened.map_err(|error| match &error {
            VfioError::Unsupported { .. } => refused(&error),
            _ => pending(told(&error)),
        })?;
        bus.open
            .insert(address.to_owned(), Arc::downgrade(&function));
        Ok(function)
    }

    /// Puts a drive in place, for the first time or again.
    pub(super) fn put(
        &self,
        spec: &BdevSpec,
        prepared: Option<Prepared>,
    ) -> Result<(), RuntimeError> {
        let prepared = prepared.and_then(|prepared| prepared.downcast::<PreparedDrive>().ok());
        let Some(mut prepared) = prepared else {
            return Err(pending("the drive has not been opened yet"));
        };
        let serial = prepared.0.as_ref().map(|handle| handle.report().serial);
        let serial = serial.unwrap_or_default();
        let drive = self.get(&spec.name).unwrap_or_else(|| {
            Arc::new(Drive {
                name: spec.name.clone(),
                plane: Arc::clone(&self.plane),
                lost: self.lost.clone(),
                state: Mutex::default(),
            })
        });
        {
            let mut state = drive.lock();
            if !state.namespaces.is_empty() && state.serial != serial {
                return Err(pending(format!(
                    "another drive is there: its serial number is {serial}, that of {} was {}; put \
                     the right one back, or delete {} and create it anew",
                    spec.name, state.serial, spec.name
                )));
            }
            let Some(handle) = prepared.0.take() else {
                return Err(pending("the drive has not been opened yet"));
            };
            state.serial = serial;
            handle.belongs_to(&drive);
            if let Some(nvme) = of(spec) {
                // Nobody waits: what cannot be set is told with the drive.
                drop(handle.want(Wanted::of(nvme)));
            }
            state.handle = Some(handle);
        }
        drive.look();
        self.named().insert(spec.name.clone(), Arc::clone(&drive));
        let handle = drive.lock().handle.clone();
        if let Some(handle) = handle.filter(|handle| handle.is_ended()) {
            // It went while it was put in place, before it knew whom to tell.
            drive.lost(format!(
                "pci function {}: the drive has stopped",
                handle.address
            ));
        }
        Ok(())
    }

    /// Takes a drive out of place, unless something uses a namespace of it, and shuts it down.
    pub(super) fn remove(&self, name: &str) -> Result<Settled, RuntimeError> {
        let Some(drive) = self.get(name) else {
            return Ok(crate::runtime::at_once());
        };
        drive.unregister()?;
        self.named().remove(name);
        let handle = drive.lock().handle.take();
        Ok(Box::pin(async move {
            if let Some(handle) = handle {
                handle.shut_down();
                // An owner that is gone has ended.
                let _ = handle.ended().wait_for(|ended| *ended).await;
            }
        }))
    }

    /// Shuts all drives down, at the end of the program.
    pub(super) async fn shut_down_all(&self) {
        let all: Vec<_> = self.named().values().cloned().collect();
        let handles: Vec<_> = all
            .iter()
            .filter_map(|drive| drive.lock().handle.clone())
            .collect();
        for handle in &handles {
            handle.shut_down();
        }
        for handle in handles {
            let _ = handle.ended().wait_for(|ended| *ended).await;
        }
    }
}

/// Why a drive was not brought up.
#[derive(Debug)]
enum Down {
    Error(RuntimeError),
    /// It has not said in time whether it comes up.
    Silent,
}

impl Down {
    fn told(self, address: &str) -> String {
        self.into_error(address).to_string()
    }

    fn into_error(self, address: &str) -> RuntimeError {
        match self {
            Self::Error(error) => error,
            Self::Silent => pending(format!("the drive at {address} does not come up")),
        }
    }
}

/// Those among the drives of vfio-pci that may have the serial number `wanted`: first the one that
/// has it, last those that did not answer before, for whom there is most time then.
fn to_ask(bound: &[Bound], known: &HashMap<String, (u64, Known)>, wanted: &str) -> Vec<Bound> {
    let rank = |bound: &Bound| match known.get(&bound.address) {
        Some((instance, known)) if *instance == bound.instance => match known {
            Known::Serial(serial) if serial == wanted => Some(0),
            Known::Serial(_) => None,
            Known::Silent => Some(2),
        },
        _ => Some(1),
    };
    let mut asked: Vec<(u8, Bound)> = bound
        .iter()
        .filter_map(|bound| Some((rank(bound)?, bound.clone())))
        .collect();
    asked.sort_by_key(|(rank, _)| *rank);
    asked.into_iter().map(|(_, bound)| bound).collect()
}

/// The error for a person; a missing IOMMU with what to do about it on this machine.
fn told(error: &VfioError) -> String {
    static GAP: OnceLock<Option<String>> = OnceLock::new();
    if let VfioError::NoIommu { address } = error {
        let gap = GAP.get_or_init(|| {
            let facts = machine::Facts::read(&machine::Root::new("/")).ok()?;
            facts.iommu.gap.map(|gap| gap.to_string())
        });
        if let Some(gap) = gap {
            return format!("pci function {address} is in no iommu group: {gap}");
        }
    }
    chain(error)
}

/// The identity of a namespace for ever: its own, or one made of the drive's serial number.
fn uuid_of(namespace: &NvmeNamespace) -> Uuid {
    if namespace.nguid() != [0; 16] {
        return Uuid::from_bytes(namespace.nguid());
    }
    let name = if namespace.eui64() == [0; 8] {
        format!("nvme {} {}", namespace.serial(), namespace.nsid().0)
    } else {
        format!("eui {:016x}", u64::from_be_bytes(namespace.eui64()))
    };
    Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())
}

fn lba_formats(namespace: &NvmeNamespace) -> Vec<NvmeLbaFormat> {
    let formats = namespace.lba_formats().iter();
    formats
        .map(|format| NvmeLbaFormat {
            index: format.index.into(),
            data_size: format.data_bytes,
            metadata_size: format.metadata_bytes.into(),
            relative_performance: format.relative_performance.into(),
            in_use: format.in_use,
        })
        .collect()
}

impl Drive {
    fn lock(&self) -> MutexGuard<'_, DriveState> {
        // A panic while the lock was held left plain data behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the control plane that the drive is not in place any more.
    fn lost(&self, reason: String) {
        let name = self.name.clone();
        // The receiver is gone when the program ends.
        let _ = self.lost.send(LostDrive { name, reason });
    }

    /// Brings the block devices in line with the namespaces that there are.
    fn look(&self) {
        // Those that poll groups have to look at: channels that are idle are not polled.
        let mut changed = Vec::new();
        {
            let mut state = self.lock();
            let handle = state.handle.clone();
            let there = handle.map(|handle| handle.namespaces()).unwrap_or_default();
            for (nsid, registered) in &mut state.namespaces {
                match there.get(nsid) {
                    Some(namespace) if registered.renew(namespace) => {
                        changed.push(Arc::clone(&registered.bdev));
                    }
                    None if registered.device.set(None) => {
                        changed.push(Arc::clone(&registered.bdev));
                    }
                    _ => {}
                }
            }
            for (nsid, namespace) in &there {
                if !state.namespaces.contains_key(nsid)
                    && !state.formatting.contains(nsid)
                    && let Some(registered) = self.register(*nsid, namespace)
                {
                    state.namespaces.insert(*nsid, registered);
                }
            }
        }
        for bdev in changed {
            self.tell_of_change(&bdev);
        }
    }

    fn register(&self, nsid: u32, namespace: &Arc<NvmeNamespace>) -> Option<Registered> {
        let name = format!("{}n{nsid}", self.name);
        let device = DriveDevice::new(&name, namespace);
        let options = BdevOptions {
            name,
            uuid: Some(uuid_of(namespace)),
            aliases: Vec::new(),
        };
        let name = options.name.clone();
        let registry = self.plane.registry();
        match registry.create(options, device.clone(), Instant::now()) {
            Ok(bdev) => Some(Registered {
                device,
                bdev,
                lba_formats: lba_formats(namespace),
                problem: "",
            }),
            Err(error) => {
                tracing::error!(bdev = name, %error, "the namespace does not become a device");
                None
            }
        }
    }

    fn tell_of_change(&self, bdev: &Arc<Bdev>) {
        for subsystem in self.plane.target().subsystems() {
            for namespace in subsystem.config().namespaces.values() {
                if Arc::ptr_eq(&namespace.bdev, bdev) {
                    // Nobody waits for it to be in force everywhere.
                    drop(subsystem.namespace_resized(namespace.nsid));
                }
            }
        }
    }

    /// Deletes the block devices: all of them, or none.
    fn unregister(&self) -> Result<(), RuntimeError> {
        let mut state = self.lock();
        if !state.formatting.is_empty() {
            let problem = "a namespace of it is being formatted; wait for its end";
            return Err(RuntimeError::Refused(format!("{}: {problem}", self.name)));
        }
        let registry = self.plane.registry();
        for registered in state.namespaces.values() {
            let bdev = &registered.bdev;
            if !bdev.claims().is_empty() || bdev.open_channels() > 0 {
                let problem = "is in use; try again when its I/O has ended";
                return Err(RuntimeError::Refused(format!("{} {problem}", bdev.name())));
            }
        }
        for registered in std::mem::take(&mut state.namespaces).into_values() {
            registered.device.set(None);
            if let Err(error) = registry.delete(registered.bdev.name()) {
                tracing::error!(bdev = registered.bdev.name(), %error, "is not deleted");
            }
        }
        Ok(())
    }

    pub(super) fn reset(&self) -> bool {
        let handle = self.lock().handle.clone();
        let handle = handle.filter(|handle| !handle.is_ended());
        handle.inspect(|handle| handle.reset()).is_some()
    }

    /// Sets other features than before.
    pub(super) fn change(&self, spec: &NvmeBdev) -> Result<Settled, RuntimeError> {
        let handle = self.lock().handle.clone();
        let Some(handle) = handle.filter(|handle| !handle.is_ended()) else {
            return Ok(crate::runtime::at_once());
        };
        let wanted = Wanted::of(spec);
        let report = handle.report();
        if let Some(features) = &report.features {
            let checked = commands::check(&wanted, features, report.non_operational);
            checked.map_err(RuntimeError::Refused)?;
        }
        let tried = handle.want(wanted);
        Ok(Box::pin(async move {
            // Both ways it was tried, or the drive has gone.
            let _ = tried.await;
        }))
    }

    /// Formats a namespace that nothing uses. It is no block device from the call on, until the
    /// future has ended; that goes on by itself when it is dropped.
    pub(super) fn format(
        self: &Arc<Self>,
        nsid: u32,
        data_bytes: u32,
        metadata_bytes: u32,
    ) -> Result<Formatting, RuntimeError> {
        let refuse = |problem: String| Err(RuntimeError::Refused(problem));
        let mut state = self.lock();
        let handle = state.handle.clone().filter(|handle| !handle.is_ended());
        let Some(handle) = handle else {
            return refuse("the drive is not in place".to_owned());
        };
        let Some(features) = handle.report().features else {
            return refuse("the drive was not asked yet whether it can: try again".to_owned());
        };
        if !features.can_format {
            return refuse("the drive does not know the command".to_owned());
        }
        if !state.formatting.is_empty() {
            return refuse("a namespace of it is being formatted: wait for its end".to_owned());
        }
        let is_meant = |each: u32| each == nsid || features.formats_all_namespaces;
        let meant = state.namespaces.iter().filter(|(each, _)| is_meant(**each));
        let meant: BTreeSet<u32> = meant.map(|(nsid, _)| *nsid).collect();
        for registered in meant.iter().filter_map(|nsid| state.namespaces.get(nsid)) {
            let bdev = &registered.bdev;
            if !bdev.claims().is_empty() || bdev.open_channels() > 0 {
                return refuse(format!(
                    "{} is in use; try again when its I/O has ended",
                    bdev.name()
                ));
            }
        }
        for registered in meant
            .iter()
            .filter_map(|nsid| state.namespaces.remove(nsid))
        {
            registered.device.set(None);
            if let Err(error) = self.plane.registry().delete(registered.bdev.name()) {
                tracing::error!(bdev = registered.bdev.name(), %error, "is not deleted");
            }
        }
        state.formatting.extend(meant);
        state.formatting.insert(nsid);
        drop(state);
        let ended = handle.format(nsid, data_bytes, metadata_bytes);
        let drive = Arc::clone(self);
        let work = tokio::spawn(async move {
            let result = ended.await;
            drive.lock().formatting.clear();
            drive.look();
            result.unwrap_or_else(|_| {
                Err("the drive went away meanwhile: look at its format when it is back".to_owned())
            })
        });
        Ok(Box::pin(async move {
            let ended = work.await.unwrap_or_else(|error| Err(error.to_string()));
            ended.map_err(RuntimeError::Refused)
        }))
    }

    pub(super) fn fill(&self, message: &mut BdevMessage) {
        let state = self.lock();
        let Some(handle) = &state.handle else {
            return;
        };
        let report = handle.report();
        let namespaces = state.namespaces.iter();
        let mut namespaces: Vec<_> = namespaces.map(|(nsid, r)| r.message(*nsid)).collect();
        for (nsid, unusable) in handle.unusable() {
            namespaces.push(NvmeDriveNamespace {
                nsid,
                problem: unusable.why.to_owned(),
                lba_formats: unusable.formats,
                ..NvmeDriveNamespace::default()
            });
        }
        message.product_name = report.model.clone();
        message.nvme = Some(NvmeDrive {
            pci_address: handle.address.clone(),
            iommu_group: handle.group,
            model_number: report.model,
            serial_number: report.serial,
            firmware_revision: report.firmware,
            state: report.state.to_owned(),
            last_reset_reason: report.last_reset.to_owned(),
            resets: report.stats.resets,
            timeouts: report.stats.timeouts,
            aborts: report.stats.aborts,
            retries: report.stats.retries,
            bounced: report.stats.bounced,
            namespaces,
            health: report.health.map(|(log, read)| health(&log, read)),
            features: report.features,
            errors: report.errors,
        });
    }
}

impl Registered {
    /// The namespace is there (again). Whether it came, went or has another size now.
    fn renew(&mut self, namespace: &Arc<NvmeNamespace>) -> bool {
        if let Some(why) = self.device.differs(namespace) {
            self.problem = why;
            return self.device.set(None);
        }
        self.problem = "";
        self.lba_formats = lba_formats(namespace);
        let came = self.device.set(Some(namespace));
        let block_count = namespace.geometry().block_count;
        if block_count == self.bdev.geometry().block_count {
            return came;
        }
        self.device.set_block_count(block_count);
        if let Err(error) = self.bdev.resize(block_count) {
            tracing::error!(bdev = self.bdev.name(), %error, "the new size is not taken");
        }
        true
    }

    fn message(&self, nsid: u32) -> NvmeDriveNamespace {
        let geometry = self.bdev.geometry();
        NvmeDriveNamespace {
            nsid,
            bdev_name: self.bdev.name().to_owned(),
            uuid: self.bdev.uuid().to_string(),
            block_size: geometry.block_size,
            num_blocks: geometry.block_count,
            lba_formats: self.lba_formats.clone(),
            removed: !self.device.is_there(),
            problem: self.problem.to_owned(),
        }
    }
}

fn health(log: &nvme_spec::log::SmartLog, read_unix_ms: u64) -> NvmeHealth {
    let narrow = |value: u128| u64::try_from(value).unwrap_or(u64::MAX);
    NvmeHealth {
        critical_warning: log.critical_warning.into(),
        temperature_celsius: i32::from(log.composite_temperature.get()) - 273,
        available_spare_percent: log.available_spare.into(),
        available_spare_threshold_percent: log.available_spare_threshold.into(),
        percentage_used: log.percentage_used.into(),
        power_cycles: narrow(log.power_cycles()),
        power_on_hours: narrow(log.power_on_hours()),
        unsafe_shutdowns: narrow(log.unsafe_shutdowns()),
        media_errors: narrow(log.media_errors()),
        read_unix_ms,
    }
}

/// The drive's part of a specification.
pub(super) fn of(spec: &BdevSpec) -> Option<&NvmeBdev> {
    match &spec.kind {
        Some(Kind::Nvme(nvme)) => Some(nvme),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_that_did_not_answer_is_asked_last_and_another_one_not_at_all() {
        let bound: Vec<Bound> = ["a", "b", "c", "d", "e"]
            .map(|address| Bound {
                address: address.to_owned(),
                class: CLASS_NVME,
                instance: 1,
            })
            .into();
        let serial = |text: &str| Known::Serial(text.to_owned());
        let known = [
            ("a", 1, Known::Silent),
            ("b", 1, serial("other")),
            // Another drive is in its place now.
            ("c", 0, serial("other")),
            ("e", 1, serial("wanted")),
        ];
        let known = known.map(|(address, instance, known)| (address.to_owned(), (instance, known)));
        let asked = to_ask(&bound, &known.into(), "wanted");
        let asked: Vec<&str> = asked.iter().map(|bound| &*bound.address).collect();
        assert_eq!(asked, ["e", "c", "d", "a"]);
    }
}
