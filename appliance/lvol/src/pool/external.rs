//! Block devices outside the pool that layers lie on.
//!
//! A layer with such a parent shows the device's first bytes, as many as the device had when the layer
//! was made, where neither it nor a layer above has anything. The device is only read. The pool holds
//! one claim on each device that a volume or a snapshot is read from.
//!
//! A device that is not there, or is not what it was, costs only what would have been read from it. The
//! worker looks for it every second.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use block::{Bdev, BlockDevice, Claim, IoError, OpKind};
use uuid::Uuid;

use super::check::Finding;
use super::disk::Disk;
use super::garbage::{CopyFrom, Merged};
use super::manage::{NewVolume, VolumeInfo};
use super::operation::{Copied, below};
use super::shared::{Chain, Mailbox, Reply};
use super::worker::PoolWorker;
use crate::LvolError;
use crate::format::{LayerId, NameKind, Parent};
use crate::map::{Granules, Source};

/// Time between two looks for a device that is not there.
pub(crate) const EXTERNAL_RETRY: Duration = Duration::from_secs(1);

/// Where a pool finds the block devices outside it that its volumes lie on.
pub trait ExternalDevices: Send + Sync + fmt::Debug {
    /// Claims the device with this UUID for `user`, so that nobody deletes it or writes to it. `name` is
    /// what it was called; only the UUID identifies it. Several claims of a device must be possible.
    /// Called on the pool's thread, at most once a second for a device that is not there.
    ///
    /// # Errors
    /// Why not, in one sentence that names the device.
    fn claim(&self, uuid: [u8; 16], name: &str, user: &str) -> Result<Claim, String>;
}

/// No device is found.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoExternalDevices;

impl ExternalDevices for NoExternalDevices {
    fn claim(&self, _: [u8; 16], name: &str, _: &str) -> Result<Claim, String> {
        Err(format!(
            "the block device {name:?} is not found: this program lends pools none"
        ))
    }
}

/// The block device that a volume lies on, below all its layers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExternalInfo {
    /// Its UUID.
    pub uuid: [u8; 16],
    /// The name it had when the first volume was made on it.
    pub name: String,
    /// Bytes of it that are seen.
    pub len_bytes: u64,
    /// Why it cannot be read, if it cannot.
    pub missing: Option<String>,
}

/// The part of a device that a chain of layers lies on: its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExternalPart {
    pub(crate) uuid: [u8; 16],
    pub(crate) len_bytes: u64,
}

impl ExternalPart {
    /// Of the `len` bytes from `start` on, so many are the device's; the others are zeroes.
    pub(crate) fn covers(&self, start: u64, len: u64) -> u64 {
        self.len_bytes.saturating_sub(start).min(len)
    }
}

/// What the worker knows of a device.
#[derive(Debug)]
pub(super) struct ExternalState {
    name: String,
    /// Who is told to use it.
    user: String,
    claim: Option<Claim>,
    /// Why there is no claim.
    problem: String,
    tried_at: Option<Instant>,
    /// Channels that may have a channel to it.
    readers: Vec<Weak<Mailbox>>,
    /// The worker's own way to it.
    disk: Option<Rc<Disk>>,
}

/// A device that a name needs.
struct Needed {
    name: String,
    first_user: String,
    users: usize,
}

impl PoolWorker {
    /// Makes a volume that shows what a device outside the pool shows.
    pub(super) fn clone_external(
        &mut self,
        device: &Arc<Bdev>,
        mut new: NewVolume,
    ) -> Result<VolumeInfo, LvolError> {
        self.check_new(&new.name)?;
        if new.size_bytes == 0 {
            let block_size = u64::from(self.shared.block_size);
            new.size_bytes = device.geometry().len_bytes().next_multiple_of(block_size);
        }
        self.check_size(&new.name, new.size_bytes)?;
        self.check_room(new.thick, new.size_bytes)?;
        let parent = self.claim_parent(device, &new.name, new.size_bytes)?;
        let layer = self.new_layer(parent);
        let made = self.add_volume(new, layer);
        self.externals_may_change();
        made
    }

    /// A device as the parent of a volume, if that may be. It is claimed.
    pub(super) fn claim_parent(
        &mut self,
        device: &Arc<Bdev>,
        volume: &str,
        size_bytes: u64,
    ) -> Result<Parent, LvolError> {
        let refused = |problem: String| LvolError::Refused {
            name: volume.to_owned(),
            problem,
        };
        let cannot = |reason: String| {
            refused(format!(
                "cannot lie on block device {}: {reason}",
                device.name()
            ))
        };
        let len_bytes = device.geometry().len_bytes();
        let part = ExternalPart {
            uuid: *device.uuid().as_bytes(),
            len_bytes,
        };
        self.check_fit(device, &part).map_err(cannot)?;
        if size_bytes < len_bytes {
            return Err(refused(format!(
                "cannot be smaller than the device's {len_bytes} bytes"
            )));
        }
        let user = self.user_text(volume, 1);
        let state = self.externals.entry(part.uuid);
        let state = state.or_insert_with(|| ExternalState::new(device.name(), user));
        let devices = Arc::clone(&self.options.externals);
        if let Err(reason) = state.claim(&*devices, part.uuid, self.now) {
            self.refresh_externals();
            return Err(cannot(reason));
        }
        Ok(Parent::External {
            uuid: part.uuid,
            name: device.name().to_owned(),
            len_bytes,
        })
    }

    /// What a device must be, to be read for a part of it.
    fn check_fit(&self, device: &Arc<Bdev>, part: &ExternalPart) -> Result<(), String> {
        let geometry = device.geometry();
        if *device.uuid().as_bytes() != part.uuid {
            return Err(format!("it has another UUID, {}", device.uuid()));
        }
        if device.is_removed() {
            return Err("it was removed".to_owned());
        }
        // A pool that waited for itself, or for another that waits for it, would wait for ever.
        if is_in_pool(device.device()) || device.uuid() == self.shared.base.uuid() {
            return Err("it lies in a pool; clone a snapshot there".to_owned());
        }
        let (theirs, ours) = (geometry.block_size, self.shared.block_size);
        if theirs > ours {
            return Err(format!(
                "its blocks have {theirs} bytes and the pool's {ours}; they may not be larger than \
                 the pool's"
            ));
        }
        if !geometry.supports.contains(OpKind::Read) {
            return Err("it cannot be read".to_owned());
        }
        let (has, had) = (geometry.len_bytes(), part.len_bytes);
        if has < had {
            return Err(format!("it has {has} bytes, less than the {had} it had"));
        }
        Ok(())
    }

    /// The device that a layer is read from where no layer has anything.
    pub(super) fn external_under(&self, layer: LayerId) -> Option<ExternalPart> {
        let mut at = layer;
        // More steps than layers would be a circle.
        for _ in 0..=self.layers.len() {
            match &self.layers.get(&at)?.parent {
                Parent::Layer(parent) => at = *parent,
                Parent::None | Parent::Lost => return None,
                Parent::External {
                    uuid, len_bytes, ..
                } => {
                    return Some(ExternalPart {
                        uuid: *uuid,
                        len_bytes: *len_bytes,
                    });
                }
            }
        }
        None
    }

    pub(super) fn external_info(&self, layer: LayerId) -> Option<ExternalInfo> {
        if self.externals.is_empty() {
            return None;
        }
        let part = self.external_under(layer)?;
        let state = self.externals.get(&part.uuid)?;
        Some(ExternalInfo {
            uuid: part.uuid,
            name: state.name.clone(),
            len_bytes: part.len_bytes,
            missing: self.external_bdev(&part).err(),
        })
    }

    /// The device of a part, if it is there and what it was.
    fn external_bdev(&self, part: &ExternalPart) -> Result<&Arc<Bdev>, String> {
        let Some(state) = self.externals.get(&part.uuid) else {
            return Err("no volume lies on it".to_owned());
        };
        let claim = state.claim.as_ref().ok_or_else(|| state.problem.clone())?;
        let bdev = claim.bdev();
        let fits = self.check_fit(bdev, part);
        fits.map_err(|reason| format!("the block device {:?}: {reason}", bdev.name()))?;
        Ok(bdev)
    }

    /// As [`Self::external_bdev`]; looks for it when it is not there and was not looked for just now.
    fn find_external(&mut self, part: &ExternalPart) -> Result<Arc<Bdev>, String> {
        if let Some(state) = self.externals.get_mut(&part.uuid) {
            let is_recent = |at: Instant| self.now < at + EXTERNAL_RETRY;
            if state.is_lost() && !state.tried_at.is_some_and(is_recent) {
                let devices = Arc::clone(&self.options.externals);
                // The reason is kept and told below.
                drop(state.claim(&*devices, part.uuid, self.now));
            }
        }
        self.external_bdev(part).cloned()
    }

    /// Answers a channel that wants to read from a device.
    pub(super) fn lend_external(&mut self, part: &ExternalPart, mailbox: &Arc<Mailbox>) {
        let device = self.find_external(part);
        let device = match device {
            Ok(bdev) => {
                if let Some(state) = self.externals.get_mut(&part.uuid) {
                    let asks = Arc::downgrade(mailbox);
                    // Each once, and those only that are there still.
                    let stays = |reader: &Weak<Mailbox>| reader.strong_count() > 0;
                    state
                        .readers
                        .retain(|reader| stays(reader) && !reader.ptr_eq(&asks));
                    state.readers.push(asks);
                }
                Ok(bdev)
            }
            // Told once, when the claim failed.
            Err(_) => Err(IoError::Internal),
        };
        mailbox.put(Reply::External {
            uuid: part.uuid,
            device,
        });
    }

    /// Reads from a device; what lies past its end is left as it is.
    ///
    /// # Errors
    /// [`LvolError::ExternalMissing`] when it is not there; it may come.
    pub(super) fn read_external(
        &mut self,
        part: &ExternalPart,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), LvolError> {
        let len = part.covers(offset, out.len() as u64) as usize;
        if len == 0 {
            return Ok(());
        }
        let disk = self.external_disk(part)?;
        disk.read(offset, &mut out[..len]).map_err(|error| {
            // Whatever it was: the next time it is opened anew.
            if let Some(state) = self.externals.get_mut(&part.uuid) {
                state.disk = None;
            }
            let (name, reason) = (self.external_name(part), crate::chain(&error));
            match error {
                LvolError::Device {
                    source: IoError::Removed | IoError::OutOfRange,
                    ..
                } => LvolError::ExternalMissing { name, reason },
                _ => LvolError::ExternalRead { name, reason },
            }
        })
    }

    /// Copies what a slot shows of a device, in the granule and in those that follow. What reads as
    /// zeroes takes no room.
    pub(super) fn detach_external(
        &mut self,
        chain: &Arc<Chain>,
        slot: usize,
        first: u16,
    ) -> Result<Copied, LvolError> {
        let granularity = self.shared.granularity;
        let granule_size = granularity.granule_size();
        let covered = chain.external_bytes(slot, granularity.cluster_size());
        let Some(part) = chain.external else {
            return Ok(Copied::Yes);
        };
        let is_seen = |granule: &u16| {
            u64::from(*granule) * granule_size < covered
                && chain.own.look(slot).source(*granule) == Source::Parent
                && below(chain, slot, *granule).is_none()
        };
        let count = (first..granularity.granules()).take_while(is_seen).count();
        if count == 0 {
            return Ok(Copied::Yes);
        }
        let mut data = vec![0; count * granule_size as usize];
        let start = chain.start_of(slot, granularity.cluster_size());
        let offset = start + u64::from(first) * granule_size;
        self.read_external(&part, offset, &mut data)?;
        let (mut written, mut zero) = (Granules::NONE, Granules::NONE);
        for (granule, bytes) in (first..).zip(data.chunks(granule_size as usize)) {
            let is_zero = bytes.iter().all(|byte| *byte == 0);
            let set = if is_zero { &mut zero } else { &mut written };
            set.set(granule);
        }
        if !zero.is_empty() {
            match chain.own.zero_missing(slot, zero) {
                Ok(change) => self.shared.note(chain, change),
                Err(_) => return Ok(Copied::Busy),
            }
        }
        if written.is_empty() {
            return Ok(Copied::Yes);
        }
        self.check_clusters(u64::from(chain.own.look(slot).cluster().is_none()))?;
        let from = CopyFrom::Bytes { first, data: &data };
        let key = (chain.layer, chain.index);
        let merged = self.copy_granules(key, &chain.own, slot, from, written)?;
        Ok(match merged {
            Merged::Done => Copied::Yes,
            _ => Copied::Busy,
        })
    }

    fn external_disk(&mut self, part: &ExternalPart) -> Result<Rc<Disk>, LvolError> {
        let found = self.find_external(part);
        let name = self.external_name(part);
        let bdev = found.map_err(|reason| LvolError::ExternalMissing {
            name: name.clone(),
            reason,
        })?;
        if let Some(state) = self.externals.get(&part.uuid)
            && let Some(disk) = &state.disk
        {
            return Ok(Rc::clone(disk));
        }
        let disk = self.disk.open_other(&bdev, &self.options.buffers);
        let disk = disk.map_err(|error| LvolError::ExternalMissing {
            name,
            reason: crate::chain(&error),
        })?;
        let disk = Rc::new(disk);
        if let Some(state) = self.externals.get_mut(&part.uuid) {
            state.disk = Some(Rc::clone(&disk));
        }
        Ok(disk)
    }

    fn external_name(&self, part: &ExternalPart) -> String {
        let state = self.externals.get(&part.uuid);
        state.map_or_else(
            || Uuid::from_bytes(part.uuid).to_string(),
            |state| state.name.clone(),
        )
    }

    /// Names or layers have changed: claims follow when that is durable.
    pub(super) fn externals_may_change(&mut self) {
        if self.externals.is_empty() || self.externals_wait {
            return;
        }
        self.externals_wait = true;
        self.when_committed(|worker, _| {
            worker.externals_wait = false;
            worker.refresh_externals();
        });
    }

    /// Claims what is needed, and lets go of what is not.
    pub(super) fn refresh_externals(&mut self) {
        let mut needed = self.needed_externals();
        let devices = Arc::clone(&self.options.externals);
        for (uuid, mut state) in std::mem::take(&mut self.externals) {
            let Some(wanted) = needed.remove(&uuid) else {
                state.release(uuid);
                continue;
            };
            let user = self.user_text(&wanted.first_user, wanted.users);
            state.rename_user(&*devices, uuid, user);
            self.externals.insert(uuid, state);
        }
        for (uuid, wanted) in needed {
            let user = self.user_text(&wanted.first_user, wanted.users);
            let state = ExternalState::new(&wanted.name, user);
            self.externals.insert(uuid, state);
        }
        self.look_for_externals();
    }

    /// Looks for devices that are not there, and whether those that were are still. Every second while
    /// there is any: nobody tells.
    pub(super) fn look_for_externals(&mut self) {
        let devices = Arc::clone(&self.options.externals);
        let mut found = false;
        let mut next: Option<Instant> = None;
        for (uuid, state) in &mut self.externals {
            let due = state.tried_at.map(|at| at + EXTERNAL_RETRY);
            if state.is_lost() && due.is_none_or(|due| due <= self.now) {
                found |= state.claim(&*devices, *uuid, self.now).is_ok();
            }
            let at = match state.tried_at {
                Some(at) if state.is_lost() => at,
                _ => self.now,
            };
            next = Some(next.map_or(at, |next| next.min(at)));
        }
        self.external_at = next.map(|at| at + EXTERNAL_RETRY);
        if found {
            self.go_on_with_waiting();
        }
    }

    /// By device: what it is called, and who is read from it.
    fn needed_externals(&self) -> BTreeMap<[u8; 16], Needed> {
        let mut needed: BTreeMap<[u8; 16], Needed> = BTreeMap::new();
        let is_external = |parent: &Parent| matches!(parent, Parent::External { .. });
        if !self
            .layers
            .values()
            .any(|record| is_external(&record.parent))
        {
            return needed;
        }
        // The lowest layer of each, found once: chains may be long and many.
        let mut lowest: std::collections::HashMap<LayerId, LayerId> = self
            .layers
            .keys()
            .map(|layer| (*layer, LayerId(0)))
            .collect();
        let mut path = Vec::new();
        for (name, entry) in &self.names {
            let mut at = entry.record.layer;
            let end = loop {
                match lowest.get(&at) {
                    Some(LayerId(0)) => {}
                    Some(end) => break *end,
                    None => break at,
                }
                path.push(at);
                match self.layers.get(&at).map(|record| &record.parent) {
                    // More steps than layers would be a circle.
                    Some(Parent::Layer(parent)) if path.len() <= self.layers.len() => at = *parent,
                    _ => break at,
                }
            };
            for layer in path.drain(..) {
                lowest.insert(layer, end);
            }
            let Some(Parent::External { uuid, name: of, .. }) =
                self.layers.get(&end).map(|record| &record.parent)
            else {
                continue;
            };
            let entry = needed.entry(*uuid).or_insert_with(|| Needed {
                name: of.clone(),
                first_user: name.clone(),
                users: 0,
            });
            entry.users += 1;
        }
        needed
    }

    /// Who uses a device, for whoever wants to delete it.
    fn user_text(&self, first: &str, users: usize) -> String {
        let kind = match self.names.get(first).map(|entry| entry.record.kind) {
            Some(NameKind::Snapshot) => "snapshot",
            _ => "volume",
        };
        let pool = self.metadata.superblock().name;
        match users {
            0 | 1 => format!("{kind} {pool}/{first}"),
            _ => format!("{kind} {pool}/{first} and {} more", users - 1),
        }
    }

    /// What the check says of devices: the records are sound, but volumes cannot be read.
    pub(super) fn missing_externals(&self) -> Vec<Finding> {
        let names = self.names.iter();
        let missing = names.filter_map(|(name, entry)| {
            let info = self.external_info(entry.record.layer)?;
            let problem = format!("lies on a block device that is missing: {}", info.missing?);
            Some(Finding {
                record: format!("volume {name:?}"),
                problem,
                action: "nothing; put the device back".to_owned(),
                volumes: vec![name.clone()],
            })
        });
        missing.collect()
    }

    /// The pool is closed: nobody reads from the devices any more.
    pub(super) fn release_externals(&mut self) {
        for (uuid, mut state) in std::mem::take(&mut self.externals) {
            state.release(uuid);
        }
        self.external_at = None;
    }
}

impl ExternalState {
    fn new(name: &str, user: String) -> Self {
        Self {
            name: name.to_owned(),
            user,
            claim: None,
            problem: format!("the block device {name:?} was not looked for yet"),
            tried_at: None,
            readers: Vec::new(),
            disk: None,
        }
    }

    /// Is there no device that can be read?
    fn is_lost(&self) -> bool {
        let claim = self.claim.as_ref();
        claim.is_none_or(|claim| claim.bdev().is_removed())
    }

    fn claim(
        &mut self,
        devices: &dyn ExternalDevices,
        uuid: [u8; 16],
        now: Instant,
    ) -> Result<(), String> {
        if !self.is_lost() {
            return Ok(());
        }
        // Of a device that went away: it can be deleted only without.
        self.claim = None;
        self.disk = None;
        self.tried_at = Some(now);
        match devices.claim(uuid, &self.name, &self.user) {
            Ok(claim) => {
                tracing::info!(
                    bdev = claim.bdev().name(),
                    user = self.user,
                    "a parent is there"
                );
                self.claim = Some(claim);
                self.problem.clear();
                Ok(())
            }
            Err(reason) => {
                if self.problem != reason {
                    tracing::warn!(user = self.user, reason, "a parent is missing");
                }
                self.problem.clone_from(&reason);
                Err(reason)
            }
        }
    }

    /// The claim is to name who is left.
    fn rename_user(&mut self, devices: &dyn ExternalDevices, uuid: [u8; 16], user: String) {
        if self.user == user {
            return;
        }
        self.user = user;
        if self.is_lost() {
            return;
        }
        // The new one first: there is no moment without. If it fails, the old name has to do.
        if let Ok(claim) = devices.claim(uuid, &self.name, &self.user) {
            self.claim = Some(claim);
        }
    }

    fn release(&mut self, uuid: [u8; 16]) {
        self.disk = None;
        self.claim = None;
        for reader in self.readers.drain(..).filter_map(|reader| reader.upgrade()) {
            reader.put(Reply::ExternalGone { uuid });
        }
    }
}

/// Is this a volume, or a layer over one?
fn is_in_pool(device: &Arc<dyn BlockDevice>) -> bool {
    let mut at = Some(device);
    while let Some(device) = at {
        if device.kind() == "lvol" {
            return true;
        }
        at = device.inner();
    }
    false
}
