//! Reservations that persist through a loss of power: between the target library, which makes
//! them, and the store, which keeps them.
//!
//! A save comes from a reactor, which must not wait: it is put into a bounded queue. A task of the
//! control thread takes it from there, numbers it among the other changes and waits until it is
//! durable; then the host is answered. One transaction a change.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nvme_spec::reservation::ReservationType;
use nvmf::{HostId, Reservation, ReservationKey, ReservationRecord, ReservationStore, SaveDone};
use prost::Message as _;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::control::Control;
use crate::error::ControlError;
use crate::model::SavedReservation;

/// Saves that may wait: one for each namespace at most is under way. At the bound a host's command
/// fails, and nothing has changed.
const QUEUE_MAX: usize = 4096;

/// A record as it is stored. Field numbers never change.
#[derive(Clone, PartialEq, prost::Message)]
struct Stored {
    /// The namespace's UUID: under the same number there may be another one later.
    #[prost(bytes = "vec", tag = "1")]
    uuid: Vec<u8>,
    #[prost(uint32, tag = "2")]
    generation: u32,
    #[prost(message, repeated, tag = "3")]
    registrants: Vec<StoredRegistrant>,
    /// The reservation's type, 0 when nothing is reserved.
    #[prost(uint32, tag = "4")]
    rtype: u32,
    /// Empty where every registrant is a holder.
    #[prost(bytes = "vec", tag = "5")]
    holder: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StoredRegistrant {
    #[prost(bytes = "vec", tag = "1")]
    host_id: Vec<u8>,
    #[prost(fixed64, tag = "2")]
    key: u64,
}

fn encode(uuid: Uuid, record: &ReservationRecord) -> Vec<u8> {
    let registrants = record.registrants.iter();
    let holder = record.reservation.and_then(|held| held.holder);
    let stored = Stored {
        uuid: uuid.as_bytes().to_vec(),
        generation: record.generation,
        registrants: registrants
            .map(|(host, key)| StoredRegistrant {
                host_id: host.to_vec(),
                key: *key,
            })
            .collect(),
        rtype: record.reservation.map_or(0, |held| held.rtype as u32),
        holder: holder.map(|host| host.to_vec()).unwrap_or_default(),
    };
    stored.encode_to_vec()
}

/// `None` for bytes that are no record.
fn decode(bytes: &[u8]) -> Option<(Uuid, ReservationRecord)> {
    let stored = Stored::decode(bytes).ok()?;
    let registrants = stored.registrants.iter();
    let registrants = registrants
        .map(|registrant| Some((HostId::try_from(&*registrant.host_id).ok()?, registrant.key)))
        .collect::<Option<_>>()?;
    let rtype = match stored.rtype {
        0 => None,
        value => Some(ReservationType::from_value(u8::try_from(value).ok()?)?),
    };
    let holder = match &*stored.holder {
        [] => None,
        host => Some(HostId::try_from(host).ok()?),
    };
    let record = ReservationRecord {
        ptpl: true,
        generation: stored.generation,
        registrants,
        reservation: rtype.map(|rtype| Reservation { rtype, holder }),
    };
    Some((Uuid::from_slice(&stored.uuid).ok()?, record))
}

/// A save on its way to the control thread.
pub struct Save {
    key: ReservationKey,
    record: Option<Vec<u8>>,
    done: SaveDone,
}

/// What is kept, by subsystem and namespace, and the way of saves to the control thread.
#[derive(Debug)]
pub struct Reservations {
    kept: Mutex<HashMap<(String, u32), Vec<u8>>>,
    saves: mpsc::Sender<Save>,
}

impl Reservations {
    /// Over what the store holds; [`run`] takes the saves.
    #[must_use]
    pub fn new(saved: Vec<SavedReservation>) -> (Arc<Self>, mpsc::Receiver<Save>) {
        let kept = saved.into_iter().filter_map(|saved| {
            let record = saved.record?;
            Some(((saved.nqn, saved.nsid), record))
        });
        let (saves, queue) = mpsc::channel(QUEUE_MAX);
        let reservations = Self {
            kept: Mutex::new(kept.collect()),
            saves,
        };
        (Arc::new(reservations), queue)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, u32), Vec<u8>>> {
        // A panic while the lock was held left plain data behind: go on with it.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept of a namespace that is put in place.
    pub(crate) fn of(&self, nqn: &str, nsid: u32, uuid: Uuid) -> ReservationRecord {
        let kept = self.lock().get(&(nqn.to_owned(), nsid)).cloned();
        let Some(kept) = kept else {
            return ReservationRecord::default();
        };
        match decode(&kept) {
            Some((of, record)) if of == uuid => record,
            Some(_) => ReservationRecord::default(),
            None => {
                tracing::error!(
                    nqn,
                    nsid,
                    "the kept reservations cannot be read: there are none"
                );
                ReservationRecord::default()
            }
        }
    }

    /// A namespace is gone for good.
    pub(crate) fn forget(&self, nqn: &str, nsid: u32) {
        self.lock().remove(&(nqn.to_owned(), nsid));
    }

    /// Keeps a record in the place of the one before, which it returns.
    fn keep(&self, saved: SavedReservation) -> SavedReservation {
        let key = (saved.nqn.clone(), saved.nsid);
        let mut kept = self.lock();
        let before = match saved.record {
            Some(record) => kept.insert(key, record),
            None => kept.remove(&key),
        };
        SavedReservation {
            record: before,
            ..saved
        }
    }
}

impl ReservationStore for Reservations {
    fn save(&self, key: &ReservationKey, record: Option<&ReservationRecord>, done: SaveDone) {
        let save = Save {
            record: record.map(|record| encode(key.uuid, record)),
            key: key.clone(),
            done,
        };
        if let Err(error) = self.saves.try_send(save) {
            let reason = error.to_string();
            let (mpsc::error::TrySendError::Full(save) | mpsc::error::TrySendError::Closed(save)) =
                error;
            save.done.done(Err(reason));
        }
    }
}

/// Makes saves durable. Many are under way at a time; never returns while the data plane lives.
pub async fn run(
    control: Control,
    reservations: Arc<Reservations>,
    mut saves: mpsc::Receiver<Save>,
) {
    while let Some(Save { key, record, done }) = saves.recv().await {
        let (control, reservations) = (control.clone(), Arc::clone(&reservations));
        tokio::spawn(async move {
            let saved = SavedReservation {
                nqn: key.nqn.to_string(),
                nsid: key.nsid.0,
                record,
            };
            let result = save(&control, &reservations, saved).await;
            done.done(result.map_err(|error| error.to_string()));
        });
    }
}

async fn save(
    control: &Control,
    reservations: &Reservations,
    saved: SavedReservation,
) -> Result<(), ControlError> {
    if let Some(keeper) = control.keeper() {
        // What could not be kept is refused: the host counts on it after a power cut.
        keeper.check_kept()?;
    }
    let mut before = None;
    let result = control
        .change(|transaction| {
            transaction.put_reservation(saved.clone())?;
            // In the order of the changes: the namespace may be deleted by the next.
            before = Some(reservations.keep(saved));
            Ok(())
        })
        .await;
    if let (Err(_), Some(before)) = (&result, before) {
        reservations.keep(before);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(holder: Option<HostId>, rtype: ReservationType) -> ReservationRecord {
        ReservationRecord {
            ptpl: true,
            generation: 3,
            registrants: [([1; 16], 5), ([2; 16], u64::MAX)].into(),
            reservation: Some(Reservation { rtype, holder }),
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let uuid = Uuid::from_bytes([9; 16]);
        for record in [
            record(Some([1; 16]), ReservationType::ExclusiveAccess),
            record(None, ReservationType::WriteExclusiveAllRegistrants),
            ReservationRecord {
                ptpl: true,
                ..ReservationRecord::default()
            },
        ] {
            let bytes = encode(uuid, &record);
            assert_eq!(decode(&bytes), Some((uuid, record)));
        }
    }

    #[test]
    fn damaged_records_are_none() {
        let bytes = encode(
            Uuid::from_bytes([9; 16]),
            &record(Some([1; 16]), ReservationType::ExclusiveAccess),
        );
        for len in 0..bytes.len() {
            // Some prefixes are whole messages; none panics.
            let _ = decode(&bytes[..len]);
        }
        assert_eq!(decode(&bytes[..bytes.len() - 1]), None);
        assert_eq!(decode(b""), None, "no UUID");
    }

    #[test]
    fn what_is_kept_is_of_one_namespace_only() {
        let uuid = Uuid::from_bytes([9; 16]);
        let kept = record(Some([1; 16]), ReservationType::ExclusiveAccess);
        let saved = SavedReservation {
            nqn: "nqn".into(),
            nsid: 1,
            record: Some(encode(uuid, &kept)),
        };
        let (reservations, _saves) = Reservations::new(vec![saved]);
        let none = ReservationRecord::default();
        assert_eq!(reservations.of("nqn", 1, uuid), kept);
        assert_eq!(reservations.of("nqn", 1, Uuid::nil()), none);
        assert_eq!(reservations.of("nqn", 2, uuid), none);
        reservations.forget("nqn", 1);
        assert_eq!(reservations.of("nqn", 1, uuid), none);
    }
}
