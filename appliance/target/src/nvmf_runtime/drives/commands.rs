//! Admin commands that a drive's owner sends for people: features, formats.
//!
//! A reset of the controller forgets features that were not saved, so what is wanted is set again
//! whenever the controller comes up. What is as wanted already is not set: some drives refuse a
//! feature that cannot be changed even when it is to stay as it is.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use api::v1::{NvmeBdev, NvmeDriveFeatures, NvmeLbaFormat};
use nvme_driver::{AdminId, AdminReply, AdminRequest, Controller, ControllerState, NvmeError};
use nvme_spec::Nsid;
use nvme_spec::feature::fid;
use nvme_spec::identify::{IdentifyController, IdentifyNamespace, cns, oacs, vwc};
use tokio::sync::oneshot;
use zerocopy::FromBytes as _;

use crate::error::chain;
use crate::events::now_unix_ms;

/// FNA: a format of one namespace is one of all (Base §5.1.13, Identify Controller).
const FNA_FORMATS_ALL: u8 = 1 << 0;
/// NOPS of a power state: no I/O in it.
const NON_OPERATIONAL: u8 = 1 << 1;
/// How long the namespace may take to be there again after a format has ended.
const RETURN_WITHIN: Duration = Duration::from_secs(10);
/// Formats of a drive that may wait for each other.
const FORMATS_MAX: usize = 16;

/// Features as they are wanted; what is not set is left as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    power_state: Option<u32>,
    write_cache: Option<bool>,
    arbitration_burst: Option<u32>,
}

impl Wanted {
    pub(super) fn of(spec: &NvmeBdev) -> Self {
        Self {
            power_state: spec.power_state,
            write_cache: spec.write_cache,
            arbitration_burst: spec.arbitration_burst,
        }
    }

    /// The dword that is to be set; `None`: nothing is wanted. Bits that belong to something else
    /// stay as they are.
    fn value(&self, fid: u8, now: u32) -> Option<u32> {
        match fid {
            fid::POWER_MANAGEMENT => self.power_state.map(|state| now & !0x1f | state & 0x1f),
            fid::VOLATILE_WRITE_CACHE => self.write_cache.map(u32::from),
            fid::ARBITRATION => self
                .arbitration_burst
                .map(|burst| now & !0b111 | burst & 0b111),
            _ => None,
        }
    }
}

fn name_of(fid: u8) -> &'static str {
    match fid {
        fid::POWER_MANAGEMENT => "power_state",
        fid::VOLATILE_WRITE_CACHE => "write_cache",
        _ => "arbitration_burst",
    }
}

/// A format that is wanted.
#[derive(Debug)]
pub(super) struct Format {
    pub(super) nsid: u32,
    pub(super) data_bytes: u32,
    pub(super) metadata_bytes: u32,
    /// Hears how it ended.
    pub(super) done: oneshot::Sender<Result<(), String>>,
}

/// What an admin command was sent for.
#[derive(Debug)]
enum Call {
    /// Reads a feature, and sets it if it is not as wanted and may be set.
    Get {
        fid: u8,
        may_set: bool,
    },
    Set(u8),
    /// Finds the format for a namespace.
    FindFormat(Format),
    Format(Format),
    /// Reads the formats of a namespace that cannot be used.
    Formats(u32),
}

/// A format has ended; its namespace is waited for.
#[derive(Debug)]
struct Returning {
    nsid: u32,
    until: Instant,
    result: Result<(), String>,
    done: oneshot::Sender<Result<(), String>>,
}

/// What is known by admin commands, and what is under way.
#[derive(Debug, Default)]
pub(super) struct Commands {
    wanted: Wanted,
    calls: HashMap<AdminId, Call>,
    /// Feature commands outstanding.
    outstanding: usize,
    /// Features are to be looked at (again).
    look: bool,
    waiters: Vec<oneshot::Sender<()>>,
    /// Values as they were read.
    values: BTreeMap<u8, u32>,
    problems: BTreeMap<u8, String>,
    formats: Vec<Format>,
    returning: Vec<Returning>,
    /// Formats of namespaces that cannot be used, by NSID.
    pub(super) unusable: BTreeMap<u32, Vec<NvmeLbaFormat>>,
    pub(super) features: Option<NvmeDriveFeatures>,
}

impl Commands {
    /// Sets what is wanted. `done` is dropped once that was tried.
    pub(super) fn want(&mut self, wanted: Wanted, done: oneshot::Sender<()>) {
        self.wanted = wanted;
        self.look = true;
        self.waiters.push(done);
    }

    /// Takes a format up.
    pub(super) fn format(&mut self, format: Format) {
        if self.formats.len() >= FORMATS_MAX {
            let reason =
                format!("{FORMATS_MAX} formats wait already: try again when one has ended");
            // Who asked may have gone.
            let _ = format.done.send(Err(reason));
            return;
        }
        self.formats.push(format);
    }

    /// The controller is up: its features are those that it begins with.
    pub(super) fn running(&mut self) {
        self.look = true;
    }

    /// A namespace cannot be used: its formats tell what it could be.
    pub(super) fn unusable(&mut self, controller: &mut Controller, nsid: u32, now: Instant) {
        let request = AdminRequest::identify(Nsid(nsid), cns::NAMESPACE);
        self.send(controller, &request, Call::Formats(nsid), now);
        self.returned(nsid);
    }

    /// A namespace is there again.
    pub(super) fn returned(&mut self, nsid: u32) {
        for each in self.returning.extract_if(.., |each| each.nsid == nsid) {
            let _ = each.done.send(each.result);
        }
    }

    /// Sends what is to be sent.
    pub(super) fn poll(&mut self, controller: &mut Controller, now: Instant) {
        for each in self.returning.extract_if(.., |each| each.until <= now) {
            let _ = each.done.send(each.result);
        }
        if controller.state() != ControllerState::Running {
            return;
        }
        if self.look && self.outstanding == 0 {
            self.look = false;
            self.problems.clear();
            let has_cache = controller.identify().is_some_and(has_write_cache);
            for fid in [
                fid::ARBITRATION,
                fid::POWER_MANAGEMENT,
                fid::VOLATILE_WRITE_CACHE,
            ] {
                if fid != fid::VOLATILE_WRITE_CACHE || has_cache {
                    self.get(controller, fid, true, now);
                } else if self.wanted.write_cache.is_some() {
                    let problem = "the drive has no volatile write cache".to_owned();
                    self.problems.insert(fid, problem);
                }
            }
            self.tell(controller);
        }
        for format in std::mem::take(&mut self.formats) {
            let request = AdminRequest::identify(Nsid(format.nsid), cns::NAMESPACE);
            self.send(controller, &request, Call::FindFormat(format), now);
        }
    }

    /// The owner ends: nobody waits any longer.
    pub(super) fn end(&mut self) {
        self.waiters.clear();
        self.calls.clear();
        self.formats.clear();
        self.returning.clear();
    }

    /// When to poll at the latest.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.returning.iter().map(|each| each.until).min()
    }

    /// A command has ended.
    pub(super) fn done(
        &mut self,
        controller: &mut Controller,
        id: AdminId,
        result: Result<AdminReply, NvmeError>,
        now: Instant,
    ) {
        let Some(call) = self.calls.remove(&id) else {
            return;
        };
        match call {
            Call::Get { fid, may_set } => self.got(controller, fid, may_set, result, now),
            Call::Set(fid) => {
                self.outstanding -= 1;
                if let Err(error) = result {
                    self.problems.insert(fid, chain(&error));
                }
                self.get(controller, fid, false, now);
                self.tell(controller);
            }
            Call::FindFormat(format) => match result {
                Ok(reply) => self.begin_format(controller, format, &reply, now),
                Err(error) => fail(format, chain(&error)),
            },
            Call::Format(format) => {
                // Done or not, its namespace was taken out of use and comes back.
                self.returning.push(Returning {
                    nsid: format.nsid,
                    until: now + RETURN_WITHIN,
                    result: result.map(drop).map_err(|error| chain(&error)),
                    done: format.done,
                });
            }
            Call::Formats(nsid) => {
                if let Ok(reply) = result
                    && let Ok(identify) = IdentifyNamespace::read_from_bytes(&reply.data)
                {
                    self.unusable.insert(nsid, lba_formats(&identify));
                }
            }
        }
    }

    fn send(
        &mut self,
        controller: &mut Controller,
        request: &AdminRequest,
        call: Call,
        now: Instant,
    ) {
        match controller.admin(request, now) {
            Ok(id) => {
                self.outstanding += usize::from(matches!(call, Call::Get { .. } | Call::Set(_)));
                self.calls.insert(id, call);
            }
            Err(error) => match call {
                Call::Get { fid, .. } | Call::Set(fid) => {
                    self.problems.insert(fid, chain(&error));
                }
                Call::FindFormat(format) | Call::Format(format) => fail(format, chain(&error)),
                Call::Formats(_) => {}
            },
        }
    }

    fn get(&mut self, controller: &mut Controller, fid: u8, may_set: bool, now: Instant) {
        let request = AdminRequest::get_features(fid);
        self.send(controller, &request, Call::Get { fid, may_set }, now);
    }

    fn got(
        &mut self,
        controller: &mut Controller,
        fid: u8,
        may_set: bool,
        result: Result<AdminReply, NvmeError>,
        now: Instant,
    ) {
        self.outstanding -= 1;
        let read = match result {
            Ok(reply) => Some(reply.dw0),
            Err(error) => {
                self.values.remove(&fid);
                if self.wanted.value(fid, 0).is_some() {
                    self.problems.entry(fid).or_insert_with(|| chain(&error));
                }
                None
            }
        };
        if let Some(value) = read {
            self.values.insert(fid, value);
            let wanted = self
                .wanted
                .value(fid, value)
                .filter(|wanted| *wanted != value);
            match (wanted, may_set) {
                (Some(wanted), true) => {
                    let request = AdminRequest::set_features(fid, wanted);
                    self.send(controller, &request, Call::Set(fid), now);
                }
                (Some(_), false) => {
                    let problem = || "the drive took it and did not keep it".to_owned();
                    self.problems.entry(fid).or_insert_with(problem);
                }
                (None, _) => {}
            }
        }
        self.tell(controller);
    }

    /// Makes the report anew, and lets go of who waited for it once nothing is outstanding.
    fn tell(&mut self, controller: &Controller) {
        if self.outstanding > 0 || self.look {
            return;
        }
        let Some(identify) = controller.identify() else {
            return;
        };
        let value = |fid: u8| self.values.get(&fid).copied();
        let cache = value(fid::VOLATILE_WRITE_CACHE).filter(|_| has_write_cache(identify));
        let problems = self.problems.iter();
        let problems: Vec<String> = problems
            .map(|(fid, problem)| format!("{}: {problem}", name_of(*fid)))
            .collect();
        self.features = Some(NvmeDriveFeatures {
            power_state: value(fid::POWER_MANAGEMENT).map(|value| value & 0x1f),
            power_state_max: u32::from(identify.npss).min(31),
            has_write_cache: has_write_cache(identify),
            write_cache: cache.map(|value| value & 1 != 0),
            arbitration_burst: value(fid::ARBITRATION).map(|value| value & 0b111),
            can_format: identify.oacs.get() & oacs::FORMAT_NVM != 0,
            formats_all_namespaces: identify.fna & FNA_FORMATS_ALL != 0,
            problem: problems.join("; "),
            read_unix_ms: now_unix_ms(),
        });
        self.waiters.clear();
    }

    /// Finds the LBA format and formats, unless the namespace has it.
    fn begin_format(
        &mut self,
        controller: &mut Controller,
        format: Format,
        reply: &AdminReply,
        now: Instant,
    ) {
        let Ok(identify) = IdentifyNamespace::read_from_bytes(&reply.data) else {
            return fail(format, "Identify Namespace has the wrong length".to_owned());
        };
        if identify.nsze.get() == 0 {
            let reason = format!("the drive has no namespace {}", format.nsid);
            return fail(format, reason);
        }
        let formats = lba_formats(&identify);
        let is_it = |each: &&NvmeLbaFormat| {
            (each.data_size, each.metadata_size) == (format.data_bytes, format.metadata_bytes)
        };
        let offered: Vec<&NvmeLbaFormat> = formats.iter().filter(is_it).collect();
        if offered.iter().any(|each| each.in_use) {
            // Who asked may have gone.
            let _ = format.done.send(Ok(()));
            return;
        }
        let best = offered
            .into_iter()
            .min_by_key(|each| each.relative_performance);
        let Some(best) = best else {
            let all: Vec<String> = formats
                .iter()
                .map(|each| format!("{}+{}", each.data_size, each.metadata_size))
                .collect();
            let reason = format!(
                "the drive has no format of {} bytes with {} bytes of metadata; it has {}",
                format.data_bytes,
                format.metadata_bytes,
                all.join(", ")
            );
            return fail(format, reason);
        };
        let lbaf = u8::try_from(best.index).unwrap_or(0);
        tracing::warn!(
            address = controller.address(),
            nsid = format.nsid,
            data_bytes = format.data_bytes,
            "the namespace is formatted"
        );
        let request = AdminRequest::format(Nsid(format.nsid), lbaf, 0);
        self.send(controller, &request, Call::Format(format), now);
    }
}

fn fail(format: Format, reason: String) {
    // Who asked may have gone.
    let _ = format.done.send(Err(reason));
}

fn has_write_cache(identify: &IdentifyController) -> bool {
    identify.vwc & vwc::PRESENT != 0
}

/// Why a drive that said this of itself cannot be set as wanted; for a caller that still waits.
pub(super) fn check(
    wanted: &Wanted,
    features: &NvmeDriveFeatures,
    non_operational: u32,
) -> Result<(), String> {
    if let Some(state) = wanted.power_state {
        if state > features.power_state_max {
            let last = features.power_state_max;
            return Err(format!("it has no power state {state}; its last is {last}"));
        }
        if non_operational >> state & 1 != 0 {
            return Err(format!(
                "power state {state} is not operational: no I/O is done in it"
            ));
        }
    }
    if wanted.write_cache.is_some() && !features.has_write_cache {
        return Err("it has no volatile write cache".to_owned());
    }
    Ok(())
}

/// Power states in which a drive does no I/O, by bit.
pub(super) fn non_operational(identify: &IdentifyController) -> u32 {
    let states = identify.psd.iter().enumerate();
    states
        .filter(|(_, state)| state.flags & NON_OPERATIONAL != 0)
        .fold(0, |bits, (number, _)| bits | 1 << number)
}

fn lba_formats(identify: &IdentifyNamespace) -> Vec<NvmeLbaFormat> {
    let count = usize::from(identify.nlbaf) + 1;
    let formats = identify.lbaf.iter().take(count).enumerate();
    formats
        .map(|(index, format)| NvmeLbaFormat {
            index: index as u32,
            data_size: match format.lbads {
                bits @ 9..=31 => 1 << bits,
                // The drive does not offer it.
                _ => 0,
            },
            metadata_size: format.ms.get().into(),
            relative_performance: u32::from(format.rp & 0b11),
            in_use: index == identify.format_index(),
        })
        .collect()
}

#[cfg(test)]
mod tests;
