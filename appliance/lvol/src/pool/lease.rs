//! Freed clusters whose memory is still lent: a host fetches what it has read from them.
//!
//! No I/O can find them any more, so what is leased becomes less. It is looked at again now and then: the
//! end of a lease is one store, and tells nobody.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::worker::PoolWorker;
use crate::map::Cluster;

/// When leased clusters are looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// A host that takes longer to fetch what it has read is not waited for by writes that lack space.
const PATIENCE: Duration = Duration::from_secs(2);

/// Clusters that would be free if nobody looked at them.
#[derive(Debug, Default)]
pub(super) struct Leased {
    clusters: Vec<(Cluster, Instant)>,
    look_at: Option<Instant>,
}

impl Leased {
    /// When to call [`PoolWorker::release_leased`].
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// Will some be free before long?
    pub(super) fn is_promising(&self, now: Instant) -> bool {
        let mut clusters = self.clusters.iter();
        clusters.any(|(_, since)| now.saturating_duration_since(*since) < PATIENCE)
    }
}

impl PoolWorker {
    /// Makes clusters free that no I/O can find any more, once nobody looks at them.
    pub(super) fn release(&mut self, clusters: Vec<Cluster>) {
        let now = self.disk.now();
        let clusters = clusters.into_iter();
        let clusters = clusters.filter(|cluster| !self.pinned.contains(cluster));
        let clusters: Vec<_> = clusters.map(|cluster| (cluster, now)).collect();
        self.release_unleased(clusters);
    }

    /// Looks again at those that were leased.
    pub(super) fn release_leased(&mut self, now: Instant) {
        if self.leased.look_at.is_some_and(|at| at <= now) {
            self.leased.look_at = None;
            let clusters = std::mem::take(&mut self.leased.clusters);
            self.release_unleased(clusters);
        }
    }

    fn release_unleased(&mut self, clusters: Vec<(Cluster, Instant)>) {
        let mut leased = HashSet::new();
        self.shared.leases().retain(|board| {
            let board = board.upgrade();
            leased.extend(board.iter().flat_map(|board| board.leased()));
            board.is_some()
        });
        for (cluster, since) in clusters {
            if leased.contains(&cluster.get()) {
                self.leased.clusters.push((cluster, since));
            } else {
                self.allocator.release(cluster);
            }
        }
        if !self.leased.clusters.is_empty() {
            let next = self.disk.now() + LOOK_AGAIN;
            self.leased.look_at.get_or_insert(next);
        }
    }
}
