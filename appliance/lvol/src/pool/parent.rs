//! Another parent for a volume: what the volume does not have itself is read from that one from now on.
//!
//! 1. The volume's I/O pauses: chains are dropped, and none is given out. What is in flight ends.
//! 2. What it has written is committed. So nothing in the log of first writes rests on the old parent.
//! 3. The records change, in one transaction.
//! 4. Chains are given out again, with the new parent.
//!
//! So no granule is filled up from one parent and becomes durable over the other.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use block::Bdev;

use super::promise::Resolver;
use super::shared::{Request, VolumeShared};
use super::worker::{Entry, PoolWorker};
use crate::LvolError;
use crate::format::{LayerId, LayerState, NameKind, Parent};

/// What a volume is to lie on.
pub(super) enum NewParent {
    Snapshot(String),
    Device(Arc<Bdev>),
}

impl PoolWorker {
    pub(super) fn set_parent(&mut self, name: &str, parent: NewParent, resolver: Resolver<()>) {
        let volume = match self.check_new_parent(name, &parent) {
            Ok(volume) => volume,
            Err(error) => return resolver.resolve(Err(error)),
        };
        self.pause(&volume);
        self.after_grace(move |worker| {
            worker.when_committed(move |worker, result| {
                let changed = result.and_then(|()| worker.change_parent(&volume, &parent));
                match changed {
                    Ok(()) => {
                        let resume = move |worker: &mut Self| worker.resume(&volume);
                        worker.on_commit.push(Box::new(resume));
                        worker.when_committed(|_, result| resolver.resolve(result));
                    }
                    Err(error) => {
                        worker.resume(&volume);
                        worker.answer_unresolved();
                        // A device that was claimed for it.
                        worker.refresh_externals();
                        resolver.resolve(Err(error));
                    }
                }
            });
        });
    }

    /// I/O of the volume that begins from now on waits for its chain.
    fn pause(&mut self, volume: &Arc<VolumeShared>) {
        volume.moving.store(true, Ordering::SeqCst);
        self.paused.insert(volume.layer());
        volume.chains.fetch_add(1, Ordering::SeqCst);
        self.shared.chains.fetch_add(1, Ordering::SeqCst);
    }

    fn resume(&mut self, volume: &Arc<VolumeShared>) {
        self.paused.remove(&volume.layer());
        volume.moving.store(false, Ordering::SeqCst);
    }

    /// Answers channels that wait for chains which can be given out now.
    pub(super) fn answer_unresolved(&mut self) {
        for request in std::mem::take(&mut self.unresolved) {
            if let Request::Resolve {
                volume,
                piece,
                mailbox,
            } = request
            {
                self.resolve_when_committed(volume, piece, mailbox);
            }
        }
    }

    /// The volume, if it may lie on that.
    fn check_new_parent(
        &mut self,
        name: &str,
        parent: &NewParent,
    ) -> Result<Arc<VolumeShared>, LvolError> {
        let entry = self.entry(name)?;
        let volume = Arc::clone(&entry.shared);
        let problem = if entry.record.kind != NameKind::Volume {
            Some("is a snapshot; it keeps its parent")
        } else if volume.is_in_transit() {
            Some("is in the middle of a snapshot; try again")
        } else {
            None
        };
        match problem {
            Some(problem) => Err(refused(name, problem)),
            None => self.new_parent(name, parent).map(|_| volume),
        }
    }

    /// What the volume's layer is to lie on. Claims a device.
    fn new_parent(&mut self, name: &str, parent: &NewParent) -> Result<Parent, LvolError> {
        let Entry { record, shared } = self.entry(name)?;
        let (layer, size_bytes) = (record.layer, record.size_bytes);
        if shared.faulted.load(Ordering::SeqCst) {
            return Err(refused(name, "is faulted"));
        }
        let mut running = self.operations.values();
        if running.any(|other| other.is_detaching() && other.layer == layer) {
            let problem = "is being taken off its parent; cancel that first";
            return Err(refused(name, problem));
        }
        let is_garbage = |parent: &LayerId| {
            let record = self.layers.get(parent);
            record.is_none_or(|record| record.state == LayerState::Garbage)
        };
        match self.layers.get(&layer).map(|record| &record.parent) {
            None | Some(Parent::Lost) => {
                return Err(refused(name, "lies on a layer that is lost"));
            }
            Some(Parent::Layer(below)) if is_garbage(below) => {
                let problem = "shows data of a deleted snapshot, which would be gone; decouple it \
                               first";
                return Err(refused(name, problem));
            }
            Some(_) => {}
        }
        match parent {
            NewParent::Snapshot(snapshot) => {
                self.new_parent_layer(name, layer, size_bytes, snapshot)
            }
            NewParent::Device(device) => self.claim_parent(device, name, size_bytes),
        }
    }

    fn new_parent_layer(
        &self,
        name: &str,
        layer: LayerId,
        size_bytes: u64,
        snapshot: &str,
    ) -> Result<Parent, LvolError> {
        let Entry { record, shared } = self.entry(snapshot)?;
        let problem = if record.kind != NameKind::Snapshot {
            Some("is a volume; take a snapshot of it and name that")
        } else if shared.is_in_transit() {
            Some("is still being taken; try again")
        } else if shared.faulted.load(Ordering::SeqCst) {
            Some("is faulted")
        } else {
            None
        };
        if let Some(problem) = problem {
            return Err(refused(snapshot, problem));
        }
        if size_bytes < record.size_bytes {
            let problem = format!(
                "cannot be smaller than the snapshot's {} bytes",
                record.size_bytes
            );
            return Err(refused(name, &problem));
        }
        let mut at = Some(record.layer);
        // More steps than layers would be a circle already.
        for _ in 0..=self.layers.len() {
            match at {
                Some(below) if below == layer => {
                    return Err(refused(snapshot, "lies on the volume itself"));
                }
                Some(below) => at = self.parent_of(below),
                None => break,
            }
        }
        Ok(Parent::Layer(record.layer))
    }

    /// The volume's I/O has ended, and what it wrote is committed. It may have another name by now.
    fn change_parent(
        &mut self,
        volume: &Arc<VolumeShared>,
        parent: &NewParent,
    ) -> Result<(), LvolError> {
        let name = self.name_now(volume)?;
        // Others may have changed meanwhile.
        let parent = self.new_parent(&name, parent)?;
        self.set_layer_parent(volume.layer(), parent);
        self.externals_may_change();
        Ok(())
    }
}

fn refused(name: &str, problem: &str) -> LvolError {
    LvolError::Refused {
        name: name.to_owned(),
        problem: problem.to_owned(),
    }
}
