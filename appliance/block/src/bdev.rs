//! [`Bdev`]: a device with a name, and all that is the same for every kind of device.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use uuid::Uuid;

use crate::BlockError;
use crate::bdev_channel::BdevChannel;
use crate::device::{BlockDevice, ChannelContext, Geometry};
use crate::gate::WriteGate;
use crate::io::OpKind;
use crate::qos::{Qos, QosLimits};
use crate::stats::{ChannelReading, DeviceStats, Reading};

/// How a claim goes with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimKind {
    /// Nobody else may claim the bdev.
    Exclusive,
    /// Others may claim it shared too.
    Shared,
    /// What it holds must not change: others may claim it read-only too, and in no other way.
    ReadOnly,
}

impl ClaimKind {
    /// Can a bdev be claimed in both ways at once?
    fn goes_with(self, other: Self) -> bool {
        self == other && self != Self::Exclusive
    }
}

/// A device under a name. The registry holds one `Arc`, its users others.
///
/// Control calls take a short lock; nothing here is called per I/O but through a [`BdevChannel`],
/// which touches atomics only.
pub struct Bdev {
    name: String,
    uuid: Uuid,
    aliases: Vec<String>,
    device: Arc<dyn BlockDevice>,
    /// As it was at registration; `block_count` is kept apart because it changes.
    geometry: Geometry,
    pub(crate) block_count: AtomicU64,
    pub(crate) write_protected: AtomicBool,
    pub(crate) removed: AtomicBool,
    pub(crate) qos: Qos,
    pub(crate) gate: Arc<WriteGate>,
    pub(crate) stats: DeviceStats,
    control: Mutex<Control>,
}

#[derive(Debug, Default)]
struct Control {
    claims: Vec<(u64, String, ClaimKind)>,
    next_claim: u64,
    channels: usize,
}

/// Names of a new bdev.
#[derive(Clone, Debug, Default)]
pub struct BdevOptions {
    /// The name; unique in the registry.
    pub name: String,
    /// Unique too; made up when `None`.
    pub uuid: Option<Uuid>,
    /// Other names it can be found by.
    pub aliases: Vec<String>,
}

impl BdevOptions {
    /// Options with a name and nothing else.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }
}

impl Bdev {
    /// A bdev over `device`. `now` starts the clock of its limits.
    ///
    /// Usually called by [`crate::Registry::create`]; a program without registry may call it.
    ///
    /// # Errors
    /// [`BlockError::Name`] for an empty, overlong or unprintable name or alias, and an impossible
    /// block size or count.
    pub fn new(
        options: BdevOptions,
        device: Arc<dyn BlockDevice>,
        now: Instant,
    ) -> Result<Arc<Self>, BlockError> {
        for name in std::iter::once(&options.name).chain(&options.aliases) {
            if name.is_empty() || name.len() > 255 || name.chars().any(char::is_control) {
                return Err(BlockError::Name { name: name.clone() });
            }
        }
        let mut geometry = device.geometry();
        Geometry::check_size(geometry.block_size, geometry.block_count)?;
        if Self::emulates_compare_and_write(&geometry) {
            geometry.supports = geometry.supports.with(OpKind::CompareAndWrite);
        }
        Ok(Arc::new(Self {
            name: options.name,
            uuid: options.uuid.unwrap_or_else(Uuid::new_v4),
            aliases: options.aliases,
            block_count: AtomicU64::new(geometry.block_count),
            write_protected: AtomicBool::new(geometry.read_only),
            removed: AtomicBool::new(false),
            qos: Qos::new(now),
            gate: Arc::default(),
            stats: DeviceStats::default(),
            control: Mutex::default(),
            geometry,
            device,
        }))
    }

    /// A device that compares and writes, but not both in one, has it done by the channel under
    /// the write gate.
    pub(crate) fn emulates_compare_and_write(device: &Geometry) -> bool {
        device.supports.contains(OpKind::Compare)
            && device.supports.contains(OpKind::Write)
            && !device.supports.contains(OpKind::CompareAndWrite)
            && !device.read_only
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The UUID.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Other names.
    #[must_use]
    pub fn aliases(&self) -> &[String] {
        &self.aliases
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// What the device offers through this bdev: compare-and-write is added where it is emulated,
    /// `read_only` tells of the write protection too.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        Geometry {
            block_count: self.block_count.load(Ordering::Relaxed),
            read_only: self.is_write_protected(),
            ..self.geometry
        }
    }

    /// Opens a channel for the calling thread.
    ///
    /// # Errors
    /// [`BlockError::Removed`] after deletion, else what the device says.
    pub fn open(self: &Arc<Self>, ctx: &ChannelContext) -> Result<BdevChannel, BlockError> {
        {
            let mut control = self.lock();
            self.check_present()?;
            control.channels += 1;
        }
        BdevChannel::open(self, ctx, true).inspect_err(|_| self.channel_closed())
    }

    /// Opens a channel that does not keep the bdev from being deleted: for who holds a claim while it
    /// matters, and cannot close the channel at once when it does not any more. After a deletion its
    /// I/O ends with [`IoError::Removed`](crate::IoError::Removed); what the device holds, such as the
    /// lock of a file, it lets go of with the channel.
    ///
    /// # Errors
    /// As [`Bdev::open`].
    pub fn open_revocable(
        self: &Arc<Self>,
        ctx: &ChannelContext,
    ) -> Result<BdevChannel, BlockError> {
        self.check_present()?;
        BdevChannel::open(self, ctx, false)
    }

    pub(crate) fn channel_closed(&self) {
        let mut control = self.lock();
        control.channels = control.channels.saturating_sub(1);
    }

    /// How many channels are open.
    #[must_use]
    pub fn open_channels(&self) -> usize {
        self.lock().channels
    }

    /// Claims the bdev for `owner` ("namespace 1 of nqn...", "pool p0"), until the claim is dropped.
    ///
    /// # Errors
    /// [`BlockError::Claimed`] when another claim does not go with this one.
    pub fn claim(self: &Arc<Self>, owner: &str, kind: ClaimKind) -> Result<Claim, BlockError> {
        let mut control = self.lock();
        self.check_present()?;
        let conflict = control
            .claims
            .iter()
            .find(|(_, _, other)| !kind.goes_with(*other));
        if let Some((_, owner, _)) = conflict {
            return Err(BlockError::Claimed {
                name: self.name.clone(),
                owner: owner.clone(),
            });
        }
        let id = control.next_claim;
        control.next_claim += 1;
        control.claims.push((id, owner.to_owned(), kind));
        drop(control);
        Ok(Claim {
            bdev: Arc::clone(self),
            id,
        })
    }

    /// Who claims the bdev.
    #[must_use]
    pub fn claims(&self) -> Vec<(String, ClaimKind)> {
        self.lock()
            .claims
            .iter()
            .map(|(_, owner, kind)| (owner.clone(), *kind))
            .collect()
    }

    /// Sets the limits; they hold from `now`, also for I/Os that wait already.
    ///
    /// # Errors
    /// [`BlockError::Option`] for a burst that is too long.
    pub fn set_qos(&self, limits: &QosLimits, now: Instant) -> Result<(), BlockError> {
        self.qos.set(limits, now)?;
        self.gate.wake_all();
        Ok(())
    }

    /// The limits.
    #[must_use]
    pub fn qos(&self) -> QosLimits {
        self.qos.limits()
    }

    /// Refuses (or allows again) what would change the device. A read-only device stays so.
    pub fn set_write_protected(&self, write_protected: bool) {
        let value = write_protected || self.geometry.read_only;
        self.write_protected.store(value, Ordering::Relaxed);
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn is_write_protected(&self) -> bool {
        self.write_protected.load(Ordering::Relaxed)
    }

    /// Changes the number of blocks while I/O goes on. Blocks beyond a smaller size are out of range
    /// for every I/O submitted after the return.
    ///
    /// # Errors
    /// What the device says; the size is then as before.
    pub fn resize(&self, block_count: u64) -> Result<(), BlockError> {
        let _control = self.lock();
        self.check_present()?;
        Geometry::check_size(self.geometry.block_size, block_count)?;
        let before = self.block_count.fetch_min(block_count, Ordering::SeqCst);
        match self.device.resize(block_count) {
            Ok(()) => {
                self.block_count.store(block_count, Ordering::SeqCst);
                Ok(())
            }
            Err(error) => {
                self.block_count.store(before, Ordering::SeqCst);
                Err(error)
            }
        }
    }

    /// All counts since the bdev was made, over all channels, closed ones included.
    #[must_use]
    pub fn statistics(&self) -> Reading {
        self.stats.total()
    }

    /// The counts of each open channel.
    #[must_use]
    pub fn channel_statistics(&self) -> Vec<ChannelReading> {
        self.stats.channels()
    }

    /// The device went away by itself: every new and waiting I/O ends with `Removed`.
    pub fn mark_removed(&self) {
        self.removed.store(true, Ordering::SeqCst);
        self.gate.wake_all();
    }

    /// Whether the bdev was deleted or its device went away.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }

    /// Marks the bdev as removed if nobody uses it.
    pub(crate) fn retire(&self) -> Result<(), BlockError> {
        let control = self.lock();
        if let Some((_, owner, _)) = control.claims.first() {
            return Err(BlockError::Claimed {
                name: self.name.clone(),
                owner: owner.clone(),
            });
        }
        if control.channels > 0 {
            return Err(BlockError::Open {
                name: self.name.clone(),
                channels: control.channels,
            });
        }
        self.removed.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn check_present(&self) -> Result<(), BlockError> {
        if self.is_removed() {
            return Err(BlockError::Removed {
                name: self.name.clone(),
            });
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Bdev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bdev")
            .field("name", &self.name)
            .field("uuid", &self.uuid)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

/// The right to use a bdev; ends when dropped.
#[derive(Debug)]
#[must_use = "a claim ends when it is dropped"]
pub struct Claim {
    bdev: Arc<Bdev>,
    id: u64,
}

impl Claim {
    /// The claimed bdev.
    #[must_use]
    pub fn bdev(&self) -> &Arc<Bdev> {
        &self.bdev
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.bdev.lock().claims.retain(|(id, _, _)| *id != self.id);
    }
}
