//! The short way: a read or a write of granules that the volume's own cluster has goes to the device
//! below as it is. What is not so simple, [`super::flight`] does.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use block::{Io, Lba, Op, Submit};
use dma::{Lease, Lessor, Payload};

use super::channel::VolumeChannel;
use super::flight::{Flight, Place, State, tag};
use crate::map::{Cluster, Granularity, Look, Source};
use crate::pool::Chain;

/// Reads of one channel whose memory is lent, and not given back yet. More are copied.
const LEASES_MAX: u32 = 512;

/// Where all of an I/O is. It has entered its epoch.
pub(super) struct InPlace {
    token: u8,
    cluster: Cluster,
    /// Block of the device below.
    block: u64,
}

impl VolumeChannel {
    /// Where all of a read or a write is, if that is one place.
    #[inline]
    pub(super) fn find_in_place(&mut self, io: &Io) -> Option<InPlace> {
        let is_simple = matches!(io.op, Op::Read | Op::Write { fua: false })
            && !self.shared.stopped.load(Ordering::Acquire)
            && !self.volume.faulted.load(Ordering::Acquire)
            && self.has_room()
            && (!is_lent(io) || self.lessor().has_room());
        if !is_simple {
            return None;
        }
        let place = self.place(io);
        let token = self.enter_inside(io)?;
        let Some(cluster) = self.cluster_at(&place) else {
            self.leave(token);
            return None;
        };
        Some(InPlace {
            token,
            cluster,
            block: self.block_of(cluster, place.bytes.start),
        })
    }

    /// The volume's own cluster, if all granules of a place are written there.
    #[inline]
    fn cluster_at(&mut self, place: &Place) -> Option<Cluster> {
        let granularity = self.shared.granularity;
        let chain = self.chain(place.piece)?;
        let full = chain.own.full(place.slot);
        full.or_else(|| cluster_in_part(granularity, chain, place))
    }

    /// Not inlined and with one way out: its answer is copied less often.
    #[inline(never)]
    pub(super) fn submit_in_place(&mut self, mut io: Io, found: InPlace, now: Instant) -> Submit {
        let (op, lba, blocks, number) = (io.op, io.lba, io.blocks, io.tag);
        let is_lent = is_lent(&io);
        io.lba = Lba(found.block);
        io.tag = tag(self.next_index(), 0);
        let mut submit = self.base.submit(io, now);
        // Before it leaves its epoch: what is freed is looked for among the leases after that.
        let lease = match is_lent {
            true => self.lessor().lease(found.cluster.number()),
            false => None,
        };
        match &mut submit {
            Submit::Done(completion) => {
                completion.io.lba = lba;
                completion.io.tag = number;
                hold(&mut completion.io.payload, lease);
                self.leave(found.token);
            }
            Submit::Pending => {
                let state = State::Below {
                    token: found.token,
                    chain: None,
                    written: op.modifies().then_some(found.cluster),
                    lease,
                };
                let flight = Flight {
                    state,
                    ..Flight::new(Io::new(op, lba.0, blocks, number))
                };
                self.put_next(flight);
            }
        }
        submit
    }

    #[inline]
    fn lessor(&mut self) -> &Rc<Lessor> {
        self.lessor.get_or_insert_with(|| {
            let lessor = Lessor::new(LEASES_MAX);
            self.shared.leases().push(Arc::downgrade(lessor.board()));
            lessor
        })
    }
}

/// The same of a cluster that is not full.
#[inline(never)]
fn cluster_in_part(granularity: Granularity, chain: &Chain, place: &Place) -> Option<Cluster> {
    match chain.own.look(place.slot) {
        Look::Whole(Source::Own(cluster)) => Some(cluster),
        Look::Mixed {
            cluster, written, ..
        } => {
            let touched = granularity.span(place.bytes.clone()).touched;
            cluster.filter(|_| written.contains(touched.into()))
        }
        Look::Whole(_) => None,
    }
}

/// Does the device below lend its memory for it?
#[inline]
fn is_lent(io: &Io) -> bool {
    matches!((io.op, &io.payload), (Op::Read, Payload::None))
}

/// Keeps the cluster that lent memory is of from being used again, until the memory is given back.
#[inline]
pub(super) fn hold(payload: &mut Payload, lease: Option<Lease>) {
    if let (Payload::Lent(lent), Some(lease)) = (payload, lease) {
        lent.hold(lease);
    }
}
