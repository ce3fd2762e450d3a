//! Reservations of namespaces (NVMe Base 2.1, section 8.1.22).
//!
//! What is registered and reserved is one [`ReservationRecord`] per namespace, and lives with the
//! subsystem, whatever the device behind the namespace. A command that changes it computes the
//! next record, which is durable before it is in force if it persists ([`ReservationStore`]), and
//! in force in every poll group before the command is answered. Poll groups check I/O against an
//! immutable snapshot. Changes of one namespace happen one after the other.
//!
//! A change by Reservation Acquire is complete only when no device holds I/O of the namespace any
//! more that was begun before it: a host that lost its access can change nothing after another
//! has been told that it has the reservation, not even when its connection is gone already.
//!
//! Hosts are told apart by their host identifier, never by name or controller. A registration
//! stays when its host disconnects.

mod record;
mod store;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nvme_spec::{Nsid, Status};

pub(crate) use self::record::{Access, Change, Request};
pub use self::record::{HostId, REGISTRANTS_MAX, Reservation, ReservationRecord};
pub use self::store::{ReservationKey, ReservationStore, SaveDone};
use crate::subsystem::Subsystem;
use crate::ticket::Ticket;

/// A namespace's record at one time.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// Counts the changes: a message that comes late is known by it.
    pub(crate) sequence: u64,
    pub(crate) record: ReservationRecord,
}

/// The reservations of one namespace.
#[derive(Debug)]
pub(crate) struct Reservations {
    pub(crate) nsid: Nsid,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    view: Arc<View>,
    /// A change is on its way to the store.
    is_saving: bool,
    /// The last change is on its way through the poll groups.
    settling: Option<Arc<Ticket>>,
}

/// What became of a request.
pub(crate) enum Start {
    /// Another change must end first.
    Busy,
    /// Nothing is to be changed.
    Unchanged,
    /// It goes on, whatever becomes of who asked for it.
    Running(Arc<Pending>),
}

/// A change under way.
#[derive(Debug, Default)]
pub(crate) struct Pending(Mutex<Progress>);

#[derive(Debug, Default)]
enum Progress {
    #[default]
    Saving,
    Settling(Arc<Ticket>),
    Failed,
}

impl Pending {
    fn set(&self, progress: Progress) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = progress;
    }

    /// How it ended, once it has.
    pub(crate) fn result(&self) -> Option<Result<(), Status>> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Progress::Saving => None,
            Progress::Settling(ticket) => ticket.is_done().then_some(Ok(())),
            Progress::Failed => Some(Err(Status::INTERNAL_ERROR)),
        }
    }
}

impl Reservations {
    pub(crate) fn new(nsid: Nsid, record: ReservationRecord) -> Arc<Self> {
        Arc::new(Self {
            nsid,
            inner: Mutex::new(Inner {
                view: Arc::new(View {
                    sequence: 0,
                    record,
                }),
                is_saving: false,
                settling: None,
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock was held left plain data behind: go on with it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in force.
    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.lock().view)
    }

    /// Whether a change is under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.lock().is_busy()
    }

    /// Begins a change of a host.
    ///
    /// # Errors
    /// The host may not do this, or not now.
    pub(crate) fn start(
        self: &Arc<Self>,
        subsystem: &Arc<Subsystem>,
        host: &HostId,
        request: &Request,
    ) -> Result<Start, Status> {
        let store = subsystem.reservation_store();
        let mut inner = self.lock();
        if inner.is_busy() {
            return Ok(Start::Busy);
        }
        let old = &inner.view.record;
        let change = old.apply(host, request, store.is_some())?;
        if change.record == *old {
            return Ok(Start::Unchanged);
        }
        let pending = Arc::<Pending>::default();
        let persists = old.ptpl || change.record.ptpl;
        let Some(store) = store.filter(|_| persists) else {
            self.commit(&mut inner, subsystem, change, &pending);
            return Ok(Start::Running(pending));
        };
        inner.is_saving = true;
        drop(inner);
        let key = subsystem.reservation_key(self.nsid);
        let saved = change.record.ptpl.then(|| change.record.clone());
        let done = self.when_saved(subsystem, change, &pending);
        store.save(&key, saved.as_ref(), done);
        Ok(Start::Running(pending))
    }

    /// What happens when the store has answered, on whatever thread it does.
    fn when_saved(
        self: &Arc<Self>,
        subsystem: &Arc<Subsystem>,
        change: Change,
        pending: &Arc<Pending>,
    ) -> SaveDone {
        let (me, pending) = (Arc::clone(self), Arc::clone(pending));
        let subsystem: Weak<Subsystem> = Arc::downgrade(subsystem);
        SaveDone::new(move |result| {
            let mut inner = me.lock();
            inner.is_saving = false;
            match (result, subsystem.upgrade()) {
                (Ok(()), Some(subsystem)) => me.commit(&mut inner, &subsystem, change, &pending),
                (Ok(()), None) => pending.set(Progress::Failed),
                (Err(reason), _) => {
                    tracing::error!(nsid = me.nsid.0, reason, "cannot save a reservation");
                    pending.set(Progress::Failed);
                }
            }
        })
    }

    /// Puts a change in force and tells those concerned.
    fn commit(
        self: &Arc<Self>,
        inner: &mut Inner,
        subsystem: &Subsystem,
        change: Change,
        pending: &Pending,
    ) {
        inner.view = Arc::new(View {
            sequence: inner.view.sequence + 1,
            record: change.record,
        });
        let view = Arc::clone(&inner.view);
        let ticket = subsystem.tell_reservation(self, view, change.aborted, change.drains);
        let ticket = Arc::new(ticket);
        inner.settling = Some(Arc::clone(&ticket));
        pending.set(Progress::Settling(ticket));
        subsystem.notify_reservation(self.nsid, &change.notices);
    }
}

impl Inner {
    fn is_busy(&self) -> bool {
        let is_settling = self
            .settling
            .as_ref()
            .is_some_and(|ticket| !ticket.is_done());
        self.is_saving || is_settling
    }
}
