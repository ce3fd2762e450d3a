//! One I/O of a volume on its way.

use std::ops::Range;
use std::sync::Arc;

use block::{Io, IoError};
use dma::{IoBuf, Lease};

use crate::map::{Cluster, Granularity, GranuleRange, Source};
use crate::pool::Chain;

/// An I/O, and how far it is.
#[derive(Debug)]
pub(super) struct Flight {
    /// Without its payload while that is with the device below.
    pub(super) io: Io,
    pub(super) state: State,
    /// The first error of its parts.
    pub(super) error: Option<IoError>,
    /// Parts that are with the device below.
    pub(super) parts_out: u32,
    /// Of a write of zeroes, once its whole granules are done: bytes of the cluster still to be written.
    pub(super) edges: Option<Vec<Range<u64>>>,
    /// A write of zeroes has changed the map.
    pub(super) zeroed: bool,
}

/// What it waits for.
#[derive(Debug)]
pub(super) enum State {
    /// Its chain of pieces.
    Piece(u64),
    /// A cluster.
    Clusters,
    /// The device outside the pool that the volume lies on.
    External([u8; 16]),
    /// Another I/O that has a granule locked, the end of a snapshot, or a buffer.
    Retry,
    /// The device below, which has all of it. With the chain if it is a write by FUA.
    Below {
        token: u8,
        chain: Option<Arc<Chain>>,
        /// The cluster that it writes to.
        written: Option<Cluster>,
        /// The cluster that lends memory to it.
        lease: Option<Lease>,
    },
    /// The device below, which has parts of a read.
    Reading(Box<Reading>),
    /// The device below, which has the parts of a first write.
    Writing(Box<Writing>),
    /// A page of the log, which is to say that it is written.
    Logging(Box<Writing>),
    /// A page of the log, which is to say that it is zeroes.
    LoggingZero(Zeroing),
    /// The device below, for a flush.
    Flushing { token: u8 },
    /// A commit.
    Committing,
}

impl State {
    /// Does no completion of the device below end it?
    pub(super) fn waits(&self) -> bool {
        matches!(
            self,
            Self::Piece(_) | Self::Clusters | Self::External(_) | Self::Retry | Self::Committing
        )
    }
}

impl Flight {
    pub(super) fn new(io: Io) -> Self {
        Self {
            io,
            state: State::Retry,
            error: None,
            parts_out: 0,
            edges: None,
            zeroed: false,
        }
    }
}

/// A read from several places.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) token: u8,
    /// The parts of the payload, in order; `None` while it is read into. Empty of a verify.
    pub(super) parts: Vec<Option<IoBuf>>,
    /// Of a compare: what the host sent. The parts are of a buffer of the channel's.
    pub(super) expected: Option<dma::Payload>,
}

/// A first write: its granules are locked.
#[derive(Debug)]
pub(super) struct Writing {
    pub(super) token: u8,
    pub(super) chain: Arc<Chain>,
    pub(super) slot: usize,
    /// A range: what the write touches.
    pub(super) locked: GranuleRange,
    /// A page of the log may say so.
    pub(super) is_logged: bool,
    pub(super) cluster: Cluster,
    /// Bytes of the cluster to be filled from below: before and after what the host wrote.
    pub(super) fills: [Option<Fill>; 2],
}

/// Granules that are to be zeroes: they are locked.
#[derive(Debug)]
pub(super) struct Zeroing {
    pub(super) token: u8,
    pub(super) chain: Arc<Chain>,
    pub(super) slot: usize,
    pub(super) granules: GranuleRange,
    /// There may be something below that they hide.
    pub(super) hides: bool,
    /// A page of the log may say so.
    pub(super) is_logged: bool,
}

/// A part of a granule that the host does not write.
#[derive(Debug)]
pub(super) struct Fill {
    pub(super) bytes: Range<u64>,
    /// Where it is read from; `None` when its buffer holds it.
    pub(super) from: Option<Origin>,
    /// Not here while it is with the device below.
    pub(super) buffer: Option<IoBuf>,
    /// While it is read from a device outside the pool: what lies past that device's end.
    pub(super) tail: Option<IoBuf>,
}

/// Where an I/O lies: in one cluster.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) piece: u64,
    pub(super) slot: usize,
    /// Bytes of the cluster.
    pub(super) bytes: Range<u64>,
}

/// A stretch of a read from one source.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) bytes: Range<u64>,
    pub(super) origin: Origin,
}

/// Where bytes of a volume are read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Zeroes,
    /// A cluster of the pool, where they lie in their slot.
    Cluster(Cluster),
    /// The device outside the pool, where they lie in the volume.
    External,
}

/// Number of an I/O to the device below: the flight, and which part of it.
pub(super) fn tag(flight: usize, part: usize) -> u64 {
    (flight as u64) << 16 | part as u64
}

pub(super) fn parse_tag(tag: u64) -> (usize, usize) {
    ((tag >> 16) as usize, (tag & 0xffff) as usize)
}

/// The granules of `range` and where each is read from, through all layers of the chain.
pub(super) fn runs(
    chain: &Chain,
    slot: usize,
    bytes: &Range<u64>,
    granularity: Granularity,
) -> Vec<Run> {
    let granules = granularity.span(bytes.clone()).touched;
    let granule_size = granularity.granule_size();
    let external = chain.external_bytes(slot, granularity.cluster_size());
    let looks = std::iter::once(&chain.own).chain(&chain.ancestors);
    let looks: Vec<_> = looks.map(|piece| piece.look(slot)).collect();
    let mut runs: Vec<Run> = Vec::new();
    for granule in granules.start..granules.end {
        let mut sources = looks.iter().map(|look| look.source(granule));
        let source = sources.find(|source| *source != Source::Parent);
        let start = bytes.start.max(u64::from(granule) * granule_size);
        let end = bytes.end.min((u64::from(granule) + 1) * granule_size);
        match source {
            Some(Source::Own(cluster)) => append(&mut runs, start..end, Origin::Cluster(cluster)),
            Some(_) => append(&mut runs, start..end, Origin::Zeroes),
            None => {
                let inside = external.clamp(start, end);
                append(&mut runs, start..inside, Origin::External);
                append(&mut runs, inside..end, Origin::Zeroes);
            }
        }
    }
    runs
}

fn append(runs: &mut Vec<Run>, bytes: Range<u64>, origin: Origin) {
    match runs.last_mut() {
        _ if bytes.is_empty() => {}
        Some(run) if run.origin == origin => run.bytes.end = bytes.end,
        _ => runs.push(Run { bytes, origin }),
    }
}
