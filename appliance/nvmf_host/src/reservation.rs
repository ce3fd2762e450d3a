//! Requests for reservations, and what a report says (NVMe Base 2.1, section 8.1.22).
//!
//! Each is an [`IoRequest`] for [`crate::IoQueue::submit`]; the actions and types are those of
//! [`nvme_spec::reservation`].

use nvme_spec::reservation::{
    RCSTS_HOLDER, RegisteredControllerExtended, ReservationAcquire, ReservationRegister,
    ReservationRelease, ReservationStatusExtended, ReservationType,
};
use nvme_spec::{Cid, Nsid, Sqe};
use zerocopy::{FromBytes, IntoBytes};

use crate::command::Direction;
use crate::io::{IoOp, IoRequest};

fn request(nsid: Nsid, sqe: Sqe, direction: Direction, data: Vec<u8>, tag: u64) -> IoRequest {
    IoRequest::new(nsid, IoOp::Raw { sqe, direction }, tag).with_buffer(data)
}

/// Reservation Register. `key` is the present key, `None` to have it ignored; `cptpl` changes what
/// persists.
#[must_use]
pub fn register(
    nsid: Nsid,
    action: u8,
    key: Option<u64>,
    new_key: u64,
    cptpl: u8,
    tag: u64,
) -> IoRequest {
    let sqe = Sqe::reservation_register(Cid(0), nsid, action, key.is_none(), cptpl);
    let data = ReservationRegister {
        crkey: key.unwrap_or(0).into(),
        nrkey: new_key.into(),
    };
    let data = data.as_bytes().to_vec();
    request(nsid, sqe, Direction::ToController, data, tag)
}

/// Reservation Acquire. `preempted` is the key to preempt, where the action does that.
#[must_use]
pub fn acquire(
    nsid: Nsid,
    action: u8,
    rtype: ReservationType,
    key: u64,
    preempted: u64,
    tag: u64,
) -> IoRequest {
    let sqe = Sqe::reservation_acquire(Cid(0), nsid, action, rtype as u8);
    let data = ReservationAcquire {
        crkey: key.into(),
        prkey: preempted.into(),
    };
    let data = data.as_bytes().to_vec();
    request(nsid, sqe, Direction::ToController, data, tag)
}

/// Reservation Release, or Clear, which looks at no type.
#[must_use]
pub fn release(nsid: Nsid, action: u8, rtype: ReservationType, key: u64, tag: u64) -> IoRequest {
    let sqe = Sqe::reservation_release(Cid(0), nsid, action, rtype as u8);
    let data = ReservationRelease { crkey: key.into() };
    let data = data.as_bytes().to_vec();
    request(nsid, sqe, Direction::ToController, data, tag)
}

/// Reservation Report with room for so many registrants. Its completion's buffer is for
/// [`ReservationReport::parse`].
#[must_use]
pub fn report(nsid: Nsid, registrants: u16, tag: u64) -> IoRequest {
    let entries = usize::from(registrants) * size_of::<RegisteredControllerExtended>();
    let len = size_of::<ReservationStatusExtended>() + entries;
    // At most 65,536 entries of 64 bytes: fits.
    let sqe = Sqe::reservation_report(Cid(0), nsid, len as u32, true);
    request(nsid, sqe, Direction::FromController, vec![0; len], tag)
}

/// A registrant of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registrant {
    /// Its host identifier.
    pub host_id: [u8; 16],
    /// Its key.
    pub key: u64,
    /// Whether it holds the reservation.
    pub is_holder: bool,
}

/// What a report says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservationReport {
    /// Counts the changes of the registrations.
    pub generation: u32,
    /// The reservation's type; `None` when nothing is reserved, or the type is unknown.
    pub rtype: Option<ReservationType>,
    /// Whether it persists through a loss of power.
    pub ptpl: bool,
    /// Registrants that there are; more than `registrants` if there was too little room.
    pub count: u16,
    /// Those for which there was room.
    pub registrants: Vec<Registrant>,
}

impl ReservationReport {
    /// Reads the data of a report; `None` if it is too short.
    #[must_use]
    pub fn parse(data: &[u8]) -> Option<Self> {
        let (head, rest) = ReservationStatusExtended::ref_from_prefix(data).ok()?;
        let head = &head.head;
        let count = head.registrants.get();
        let entries = rest.chunks_exact(size_of::<RegisteredControllerExtended>());
        let registrants = entries.take(usize::from(count)).filter_map(|entry| {
            let entry = RegisteredControllerExtended::ref_from_bytes(entry).ok()?;
            Some(Registrant {
                host_id: entry.hostid,
                key: entry.rkey.get(),
                is_holder: entry.rcsts & RCSTS_HOLDER != 0,
            })
        });
        Some(Self {
            generation: head.generation.get(),
            rtype: ReservationType::from_value(head.rtype),
            ptpl: head.ptpls & 1 != 0,
            count,
            registrants: registrants.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_far_as_it_goes() {
        let mut data = [0; 64 + 2 * 64];
        data[0] = 5;
        data[4] = 6;
        data[5] = 3;
        data[9] = 1;
        data[64 + 2] = 1;
        data[64 + 8] = 7;
        data[64 + 16..64 + 32].fill(0xab);
        for len in 0..64 {
            assert_eq!(ReservationReport::parse(&data[..len]), None);
        }
        for (len, there) in [(64, 0), (127, 0), (128, 1), (191, 1), (192, 2)] {
            let report = ReservationReport::parse(&data[..len]).unwrap();
            assert_eq!((report.generation, report.ptpl, report.count), (5, true, 3));
            let rtype = Some(ReservationType::ExclusiveAccessAllRegistrants);
            assert_eq!(report.rtype, rtype);
            assert_eq!(report.registrants.len(), there);
            let first = Registrant {
                host_id: [0xab; 16],
                key: 7,
                is_holder: true,
            };
            assert!(there == 0 || report.registrants[0] == first);
        }
    }

    proptest::proptest! {
        #[test]
        fn random_bytes_never_panic(data: Vec<u8>) {
            let _ = ReservationReport::parse(&data);
        }
    }
}
