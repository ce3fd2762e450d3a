//! Where reservations that persist through a loss of power are kept: the program's affair.

use fabric_wire::Nqn;
use nvme_spec::Nsid;
use uuid::Uuid;

use super::ReservationRecord;

/// Names the namespace whose record is saved.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReservationKey {
    /// The subsystem.
    pub nqn: Nqn,
    /// The namespace's number.
    pub nsid: Nsid,
    /// The namespace's identity: a record is of this one only, whatever its number is.
    pub uuid: Uuid,
}

/// Keeps the records of namespaces whose reservations persist through a loss of power (PTPL).
///
/// [`crate::Target::set_reservation_store`] gives it to the target; without one no namespace
/// says that it can persist. At start the program gives back what it has kept, by
/// [`crate::Subsystem::add_namespace_with_reservations`]. When it removes a namespace for good it
/// removes the record as well.
pub trait ReservationStore: Send + Sync + std::fmt::Debug {
    /// Makes `record` durable in the place of the last one of this namespace, or removes that, and
    /// then calls [`SaveDone::done`] from any thread. It must not block: it is called on the
    /// thread of a poll group. At most one call per namespace is under way.
    fn save(&self, key: &ReservationKey, record: Option<&ReservationRecord>, done: SaveDone);
}

/// What a save ends with.
type Then = Box<dyn FnOnce(Result<(), String>) + Send>;

/// Answers a [`ReservationStore::save`]. Dropping it unanswered is a failure.
pub struct SaveDone(Option<Then>);

impl SaveDone {
    /// Calls `then` with the answer; for tests of stores.
    pub fn new(then: impl FnOnce(Result<(), String>) + Send + 'static) -> Self {
        Self(Some(Box::new(then)))
    }

    /// The record is durable; or why it is not, in words: the host's command fails then, and what
    /// was in force stays.
    pub fn done(mut self, result: Result<(), String>) {
        self.answer(result);
    }

    fn answer(&mut self, result: Result<(), String>) {
        if let Some(then) = self.0.take() {
            then(result);
        }
    }
}

impl Drop for SaveDone {
    fn drop(&mut self) {
        self.answer(Err("the store gave no answer".into()));
    }
}

impl std::fmt::Debug for SaveDone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SaveDone")
    }
}
