//! Registrations and the reservation of one namespace, and what each command makes of them.

use std::collections::BTreeMap;

use nvme_spec::Status;
use nvme_spec::reservation::{ReservationType, acquire, cptpl, notification, register, release};

/// A host identifier of 128 bits, as in Connect.
pub type HostId = [u8; 16];

/// Hosts that may be registered with a namespace. At the bound Register fails with Internal Error.
pub const REGISTRANTS_MAX: usize = 256;

/// What is registered with a namespace and who holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReservationRecord {
    /// Whether it persists through a loss of power (PTPL).
    pub ptpl: bool,
    /// Counts changes of the registrations (GEN).
    pub generation: u32,
    /// Keys by host.
    pub registrants: BTreeMap<HostId, u64>,
    /// The reservation, if there is one.
    pub reservation: Option<Reservation>,
}

/// A reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Its type.
    pub rtype: ReservationType,
    /// The holder; `None` where every registrant is one.
    pub holder: Option<HostId>,
}

/// What a command does to a namespace, as a reservation sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// It reads or compares.
    Read,
    /// It changes no data, but counts with the commands that do: Flush, hints.
    Flush,
    /// It writes.
    Write,
    /// Its own rules say who may: the reservation commands.
    Reserve,
}

/// What a host asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Register {
        action: u8,
        ignores_key: bool,
        cptpl: u8,
        key: u64,
        new_key: u64,
    },
    Acquire {
        action: u8,
        ignores_key: bool,
        rtype: u8,
        key: u64,
        preempted: u64,
    },
    Release {
        action: u8,
        ignores_key: bool,
        rtype: u8,
        key: u64,
    },
    /// Feature 83h.
    Persist(bool),
}

/// What comes of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) record: ReservationRecord,
    /// Hosts to tell, and the kind of notification.
    pub(crate) notices: Vec<(HostId, u8)>,
    /// Hosts whose commands are aborted.
    pub(crate) aborted: Vec<HostId>,
    /// It is complete only when what was begun before it has ended.
    pub(crate) drains: bool,
}

const CONFLICT: Status = Status::RESERVATION_CONFLICT.with_dnr(true);
const INVALID: Status = Status::INVALID_FIELD.with_dnr(true);

impl Reservation {
    fn new(rtype: ReservationType, host: &HostId) -> Self {
        Self {
            rtype,
            holder: (!rtype.is_all_registrants()).then_some(*host),
        }
    }
}

impl ReservationRecord {
    /// Whether a host is registered.
    pub fn is_registrant(&self, host: &HostId) -> bool {
        self.registrants.contains_key(host)
    }

    /// Whether a host holds the reservation.
    pub fn is_holder(&self, host: &HostId) -> bool {
        self.reservation.is_some_and(|reservation| {
            reservation
                .holder
                .map_or_else(|| self.is_registrant(host), |holder| holder == *host)
        })
    }

    /// What is left after a loss of power, and is whole.
    pub(crate) fn restored(mut self) -> Self {
        if !self.ptpl {
            return Self::default();
        }
        let is_whole = self.reservation.is_none_or(|reservation| {
            match (reservation.holder, reservation.rtype.is_all_registrants()) {
                (Some(holder), false) => self.is_registrant(&holder),
                (None, true) => !self.registrants.is_empty(),
                _ => false,
            }
        });
        if !is_whole {
            self.reservation = None;
        }
        self
    }

    /// Whether a host's command may run (NVMe Base 2.1, section 8.1.22, "Command Behavior in the
    /// Presence of a Reservation").
    pub(crate) fn allows(&self, host: &HostId, access: Access) -> bool {
        let Some(Reservation { rtype, .. }) = self.reservation else {
            return true;
        };
        match access {
            Access::Reserve => true,
            Access::Read if !rtype.excludes_reads() => true,
            _ if rtype.admits_registrants() => self.is_registrant(host),
            _ => self.is_holder(host),
        }
    }

    /// What a request of a host makes of this.
    pub(crate) fn apply(
        &self,
        host: &HostId,
        request: &Request,
        can_persist: bool,
    ) -> Result<Change, Status> {
        let mut change = Change {
            record: self.clone(),
            ..Change::default()
        };
        match *request {
            Request::Register {
                action,
                ignores_key,
                cptpl,
                key,
                new_key,
            } => {
                let persist = change.persist(cptpl, can_persist)?;
                let key = (!ignores_key).then_some(key);
                change.register(host, action, key, new_key)?;
                change.record.ptpl = persist;
            }
            Request::Acquire {
                action,
                ignores_key,
                rtype,
                key,
                preempted,
            } => {
                let rtype = ReservationType::from_value(rtype).ok_or(INVALID)?;
                if ignores_key || action > acquire::PREEMPT_AND_ABORT {
                    return Err(INVALID);
                }
                change.check_key(host, Some(key))?;
                change.drains = true;
                if action == acquire::ACQUIRE {
                    change.acquire(host, rtype)?;
                } else {
                    change.preempt(host, rtype, preempted)?;
                }
                if action != acquire::PREEMPT_AND_ABORT {
                    change.aborted.clear();
                }
            }
            Request::Release {
                action,
                ignores_key,
                rtype,
                key,
            } => {
                if ignores_key || action > release::CLEAR {
                    return Err(INVALID);
                }
                change.check_key(host, Some(key))?;
                if action == release::RELEASE {
                    change.release(host, rtype)?;
                } else {
                    change.clear(host);
                }
            }
            Request::Persist(is_on) => {
                let cptpl = if is_on { cptpl::SET } else { cptpl::CLEAR };
                change.record.ptpl = change.persist(cptpl, can_persist)?;
            }
        }
        Ok(change)
    }
}

impl Change {
    /// The host must be registered, and with this key unless that is not looked at.
    fn check_key(&self, host: &HostId, key: Option<u64>) -> Result<(), Status> {
        let registered = self.record.registrants.get(host).ok_or(CONFLICT)?;
        if key.is_none_or(|key| key == *registered) {
            Ok(())
        } else {
            Err(CONFLICT)
        }
    }

    fn persist(&self, cptpl: u8, can_persist: bool) -> Result<bool, Status> {
        match cptpl {
            cptpl::KEEP => Ok(self.record.ptpl),
            cptpl::CLEAR => Ok(false),
            cptpl::SET if can_persist => Ok(true),
            _ => Err(INVALID),
        }
    }

    fn count(&mut self) {
        self.record.generation = self.record.generation.wrapping_add(1);
    }

    /// Tells the registrants but one.
    fn tell_others(&mut self, host: &HostId, kind: u8) {
        let others = self
            .record
            .registrants
            .keys()
            .filter(|other| *other != host);
        self.notices.extend(others.map(|other| (*other, kind)));
    }

    fn register(
        &mut self,
        host: &HostId,
        action: u8,
        key: Option<u64>,
        new_key: u64,
    ) -> Result<(), Status> {
        match action {
            register::REGISTER => {
                let registrants = &mut self.record.registrants;
                let is_full = registrants.len() >= REGISTRANTS_MAX;
                match registrants.get(host) {
                    None if is_full => return Err(Status::INTERNAL_ERROR.with_dnr(true)),
                    None => {
                        registrants.insert(*host, new_key);
                    }
                    Some(registered) if *registered == new_key => {}
                    Some(_) => return Err(CONFLICT),
                }
            }
            register::UNREGISTER => {
                self.check_key(host, key)?;
                self.unregister(host);
            }
            register::REPLACE => {
                self.check_key(host, key)?;
                self.record.registrants.insert(*host, new_key);
            }
            _ => return Err(INVALID),
        }
        self.count();
        Ok(())
    }

    /// Who leaves takes along the reservation that it alone holds.
    fn unregister(&mut self, host: &HostId) {
        let was_holder = self.record.is_holder(host);
        self.record.registrants.remove(host);
        let Some(Reservation { rtype, .. }) = self.record.reservation.filter(|_| was_holder) else {
            return;
        };
        if rtype.is_all_registrants() && !self.record.registrants.is_empty() {
            return;
        }
        self.record.reservation = None;
        if rtype.admits_registrants() {
            self.tell_others(host, notification::RESERVATION_RELEASED);
        }
    }

    fn acquire(&mut self, host: &HostId, rtype: ReservationType) -> Result<(), Status> {
        match self.record.reservation {
            None => {
                self.record.reservation = Some(Reservation::new(rtype, host));
                Ok(())
            }
            Some(held) if held.rtype == rtype && self.record.is_holder(host) => Ok(()),
            Some(_) => Err(CONFLICT),
        }
    }

    fn preempt(
        &mut self,
        host: &HostId,
        rtype: ReservationType,
        preempted: u64,
    ) -> Result<(), Status> {
        let held = self.record.reservation;
        let is_all = held.is_some_and(|held| held.rtype.is_all_registrants());
        if preempted == 0 && !is_all {
            return Err(INVALID);
        }
        let takes_over = match held.and_then(|held| held.holder) {
            Some(holder) => self.record.registrants.get(&holder) == Some(&preempted),
            None => is_all && preempted == 0,
        };
        let everyone = is_all && preempted == 0;
        let keys = &self.record.registrants;
        if !everyone && !keys.values().any(|key| *key == preempted) {
            return Err(CONFLICT);
        }
        // Never the host itself: it goes on as a registrant, and may change its own reservation.
        let gone: Vec<HostId> = keys
            .iter()
            .filter(|(other, key)| *other != host && (everyone || **key == preempted))
            .map(|(other, _)| *other)
            .collect();
        for other in &gone {
            self.record.registrants.remove(other);
            self.notices
                .push((*other, notification::REGISTRATION_PREEMPTED));
        }
        self.aborted = gone;
        if takes_over {
            self.record.reservation = Some(Reservation::new(rtype, host));
            if held.is_some_and(|held| held.rtype != rtype) {
                self.tell_others(host, notification::RESERVATION_RELEASED);
            }
        }
        self.count();
        Ok(())
    }

    fn release(&mut self, host: &HostId, rtype: u8) -> Result<(), Status> {
        // Who does not hold it has nothing to release, and that is no error.
        let held = self
            .record
            .reservation
            .filter(|_| self.record.is_holder(host));
        let Some(held) = held else { return Ok(()) };
        if held.rtype as u8 != rtype {
            return Err(INVALID);
        }
        self.record.reservation = None;
        if held.rtype.admits_registrants() {
            self.tell_others(host, notification::RESERVATION_RELEASED);
        }
        Ok(())
    }

    fn clear(&mut self, host: &HostId) {
        self.tell_others(host, notification::RESERVATION_PREEMPTED);
        self.record.reservation = None;
        self.record.registrants.clear();
        self.count();
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
