//! Carrying an action out, and whether it has taken effect.

use std::io;

use serde::{Deserialize, Serialize};

use crate::facts::{RDMA_FOLDER, hugepages_folder, last_name, rdma_users, text};
use crate::plan::{pool, users, why_not};
use crate::{
    Action, ApplyError, Facts, Former, Host, PciAddress, PciDevice, RdmaLink, Reservation,
    VFIO_DRIVER,
};

/// How an action ended that did not fail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Applied {
    /// It was so already; nothing was written.
    AlreadySo,
    /// It is so now.
    Done,
    /// It is so as far as it goes, and less would have been an answer, too.
    Partly(String),
    /// Everything is written; the effect is still to come. Ask [`verify`].
    Waiting(String),
}

/// Whether an action has taken effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verification {
    /// It has.
    Verified,
    /// It may yet, without anything more being done. How long to ask is the caller's choice; for
    /// `/dev/vfio/N` a second is long.
    NotYet(String),
    /// It has not, and waiting will not help. Fewer huge pages than wanted are this as well when
    /// they were wanted as a best effort.
    Failed(String),
}

/// Carries `action` out. What is so already is not written again.
///
/// Before a function is taken or given back, the host is read again: who began to use it since the
/// plan was made keeps it, and so does whoever got a default route through it. A function that
/// vfio-pci did not take goes back to where it was.
///
/// # Errors
/// [`ApplyError`], with what is now and what to do.
pub fn apply(action: &Action, host: &dyn Host) -> Result<Applied, ApplyError> {
    match action {
        Action::CompactMemory => compact_memory(host),
        Action::ReserveHugepages {
            node,
            size_kib,
            pages,
            reservation,
        } => reserve(host, *node, *size_kib, *pages, *reservation),
        Action::Bind {
            address, former, ..
        } => Function {
            host,
            address: *address,
        }
        .bind(former),
        Action::GiveBack { address, to } => Function {
            host,
            address: *address,
        }
        .give_back(to),
        Action::AddSoftRoce { name, interface } => {
            let change = RdmaLink::AddSoftRoce { name, interface };
            change_link(host, action, name, &change)
        }
        Action::RemoveSoftRoce { name } => {
            change_link(host, action, name, &RdmaLink::Remove { name })
        }
    }
}

fn change_link(
    host: &dyn Host,
    action: &Action,
    name: &str,
    change: &RdmaLink<'_>,
) -> Result<Applied, ApplyError> {
    match verify(action, host) {
        Verification::Verified => return Ok(Applied::AlreadySo),
        Verification::Failed(reason) => {
            let subject = format!("soft-RoCE device {name}");
            return Err(ApplyError::NotTaken { subject, reason });
        }
        Verification::NotYet(_) => {}
    }
    if let RdmaLink::Remove { .. } = change {
        let users = rdma_users(host, name);
        if !users.is_empty() {
            // The kernel lets nobody go on who asks, until they have let go of it.
            let reason = format!("it is in use by {}: stop that first", users.join(", "));
            let subject = format!("soft-RoCE device {name}");
            return Err(ApplyError::NotTaken { subject, reason });
        }
    }
    host.change_rdma_link(change)
        .map_err(|source| ApplyError::RdmaLink {
            name: name.to_owned(),
            source,
        })?;
    Ok(match verify(action, host) {
        Verification::NotYet(reason) => Applied::Waiting(reason),
        _ => Applied::Done,
    })
}

/// Whether `action` has taken effect. Reads only.
#[must_use]
pub fn verify(action: &Action, host: &dyn Host) -> Verification {
    match action {
        // Nothing shows it.
        Action::CompactMemory => Verification::Verified,
        Action::ReserveHugepages {
            node,
            size_kib,
            pages,
            ..
        } => match reserved(host, *node, *size_kib) {
            Ok(reserved) if reserved >= *pages => Verification::Verified,
            Ok(reserved) => {
                Verification::Failed(format!("{reserved} of {pages} pages are reserved"))
            }
            Err(error) => Verification::Failed(with_source(&error)),
        },
        Action::Bind { address, .. } => Function {
            host,
            address: *address,
        }
        .is_bound(),
        Action::GiveBack { address, to } => Function {
            host,
            address: *address,
        }
        .is_back(to),
        Action::AddSoftRoce { name, interface } => {
            let folder = format!("{RDMA_FOLDER}/{name}");
            match text(host, &format!("{folder}/parent")) {
                Some(parent) if parent == *interface => Verification::Verified,
                Some(parent) => Verification::Failed(format!("it is on {parent}")),
                None if host.exists(&folder) => {
                    Verification::Failed("another device has this name".to_owned())
                }
                None => Verification::NotYet("it is not there".to_owned()),
            }
        }
        Action::RemoveSoftRoce { name } if host.exists(&format!("{RDMA_FOLDER}/{name}")) => {
            Verification::NotYet("it is still there".to_owned())
        }
        Action::RemoveSoftRoce { .. } => Verification::Verified,
    }
}

/// An error with its cause, for a sentence that stands alone.
fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn write(host: &dyn Host, path: &str, text: &str) -> Result<(), ApplyError> {
    let failed = |source| ApplyError::Write {
        path: path.to_owned(),
        text: text.trim_end().to_owned(),
        source,
    };
    host.write(path, text).map_err(failed)
}

fn compact_memory(host: &dyn Host) -> Result<Applied, ApplyError> {
    // Only clean pages are dropped. A kernel without compaction has no such file.
    for (path, text) in [
        ("proc/sys/vm/drop_caches", "3"),
        ("proc/sys/vm/compact_memory", "1"),
    ] {
        if host.exists(path) {
            write(host, path, text)?;
        }
    }
    Ok(Applied::Done)
}

fn hugepages_file(node: Option<u32>, size_kib: u64, name: &str) -> String {
    format!("{}/hugepages-{size_kib}kB/{name}", hugepages_folder(node))
}

/// Pages that are reserved for good.
fn reserved(host: &dyn Host, node: Option<u32>, size_kib: u64) -> Result<u64, ApplyError> {
    let count = |name: &str| {
        let path = hugepages_file(node, size_kib, name);
        let number = host.read(&path).and_then(|text| {
            let wrong = |_| io::Error::new(io::ErrorKind::InvalidData, "it holds no number");
            text.trim().parse::<u64>().map_err(wrong)
        });
        number.map_err(|source| ApplyError::Read { path, source })
    };
    let total = count("nr_hugepages")?;
    match count("surplus_hugepages") {
        Ok(surplus) => Ok(total.saturating_sub(surplus)),
        Err(ApplyError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(total)
        }
        Err(error) => Err(error),
    }
}

fn short(reserved: u64, pages: u64) -> String {
    format!(
        "the kernel found memory for {reserved} of {pages} pages: ask for fewer, or reserve them \
         with hugepages= on the kernel command line, before memory is in pieces"
    )
}

fn reserve(
    host: &dyn Host,
    node: Option<u32>,
    size_kib: u64,
    pages: u64,
    reservation: Reservation,
) -> Result<Applied, ApplyError> {
    // The file takes a total: whoever raises it between this read and the write is overwritten.
    // Nobody else should be raising it while the node is prepared.
    if reserved(host, node, size_kib)? >= pages {
        return Ok(Applied::AlreadySo);
    }
    write(
        host,
        &hugepages_file(node, size_kib, "nr_hugepages"),
        &pages.to_string(),
    )?;
    let got = reserved(host, node, size_kib)?;
    match reservation {
        _ if got >= pages => Ok(Applied::Done),
        Reservation::BestEffort => Ok(Applied::Partly(short(got, pages))),
        Reservation::Required => Err(ApplyError::NotTaken {
            subject: pool(node, size_kib),
            reason: short(got, pages),
        }),
    }
}

/// A PCI function on a host.
pub(crate) struct Function<'a> {
    pub(crate) host: &'a dyn Host,
    pub(crate) address: PciAddress,
}

impl Function<'_> {
    pub(crate) fn file(&self, name: &str) -> String {
        format!("sys/bus/pci/devices/{}/{name}", self.address)
    }

    pub(crate) fn driver(&self) -> Option<String> {
        last_name(self.host, &self.file("driver"))
    }

    fn driver_override(&self) -> Option<String> {
        text(self.host, &self.file("driver_override"))
            .filter(|name| !name.is_empty() && name != "(null)")
    }

    pub(crate) fn not_taken(&self, reason: impl Into<String>) -> ApplyError {
        ApplyError::NotTaken {
            subject: self.address.to_string(),
            reason: reason.into(),
        }
    }

    /// The host and this function, as they are now.
    pub(crate) fn look_again(&self) -> Result<(Facts, PciDevice), ApplyError> {
        let failed = |source| ApplyError::Recheck {
            address: self.address,
            source,
        };
        let facts = Facts::read(self.host).map_err(failed)?;
        let device = facts.device(self.address).cloned();
        let device = device.ok_or_else(|| self.not_taken("it is gone from the bus"))?;
        Ok((facts, device))
    }

    fn bind(&self, former: &Former) -> Result<Applied, ApplyError> {
        let (facts, device) = self.look_again()?;
        if device.driver.as_deref() == Some(VFIO_DRIVER) {
            return self.outcome(self.is_bound(), Applied::AlreadySo);
        }
        let reasons: Vec<String> = why_not(&facts, &device)
            .iter()
            .map(ToString::to_string)
            .collect();
        if !reasons.is_empty() {
            let reason = reasons.join("; ");
            return Err(ApplyError::InUse {
                address: self.address,
                reason,
            });
        }
        // The override first: from the moment it has no driver, only vfio-pci may take it.
        let bound = self
            .set_override(Some(VFIO_DRIVER))
            .and_then(|()| self.unbind())
            .and_then(|()| self.probe())
            .and_then(|()| self.outcome(self.is_bound(), Applied::Done));
        bound.map_err(|error| self.restored(former, &device, error))
    }

    /// Puts the function back to where it was, and says how that went.
    fn restored(&self, former: &Former, device: &PciDevice, error: ApplyError) -> ApplyError {
        let former = match &device.driver {
            Some(driver) => &Former::Driver(driver.clone()),
            None => former,
        };
        let after = match self.hand_over(former) {
            Ok(()) => match self.driver() {
                Some(driver) => format!("driver {driver} has it again"),
                None => "it has no driver now".to_owned(),
            },
            Err(second) => format!("and it could not be given back: {}", with_source(&second)),
        };
        let reason = match error {
            ApplyError::NotTaken { reason, .. } => reason,
            error => with_source(&error),
        };
        self.not_taken(format!("{reason}; {after}"))
    }

    fn give_back(&self, to: &Former) -> Result<Applied, ApplyError> {
        let (facts, device) = self.look_again()?;
        let on_vfio = device.driver.as_deref() == Some(VFIO_DRIVER);
        if !on_vfio
            && device.driver_override.is_none()
            && self.is_back(to) == Verification::Verified
        {
            return Ok(Applied::AlreadySo);
        }
        let users = users(&facts, &device);
        if on_vfio && !users.is_empty() {
            let reason = format!("it is in use by {}", users.join(", "));
            return Err(ApplyError::InUse {
                address: self.address,
                reason,
            });
        }
        self.hand_over(to)?;
        self.outcome(self.is_back(to), Applied::Done)
    }

    /// Takes the function from vfio-pci, if that has it, and offers it to `to`.
    fn hand_over(&self, to: &Former) -> Result<(), ApplyError> {
        if self.driver().is_some_and(|driver| driver != VFIO_DRIVER) {
            return self.set_override(None);
        }
        let named = match to {
            Former::Driver(driver) => Some(driver.as_str()),
            Former::Nobody | Former::Unknown => None,
        };
        self.set_override(named)?;
        let given = self.hand_over_overridden(to);
        // An override that stays would keep every other driver away for good.
        self.set_override(None).and(given)
    }

    fn hand_over_overridden(&self, to: &Former) -> Result<(), ApplyError> {
        if self.driver().as_deref() == Some(VFIO_DRIVER) {
            self.unbind()?;
        }
        if *to == Former::Nobody || self.driver().is_some() {
            Ok(())
        } else {
            self.probe()
        }
    }

    pub(crate) fn set_override(&self, driver: Option<&str>) -> Result<(), ApplyError> {
        if self.driver_override().as_deref() == driver {
            return Ok(());
        }
        let path = self.file("driver_override");
        // An empty line clears it.
        write(self.host, &path, driver.unwrap_or("\n"))?;
        let now = self.driver_override();
        if now.as_deref() == driver {
            return Ok(());
        }
        let name = |each: Option<&str>| each.unwrap_or("nothing").to_owned();
        Err(self.not_taken(format!(
            "driver_override is {}, not {}, after it was written",
            name(now.as_deref()),
            name(driver),
        )))
    }

    /// Takes the function from its driver, if it has one.
    pub(crate) fn unbind(&self) -> Result<(), ApplyError> {
        if self.driver().is_none() {
            return Ok(());
        }
        let written = write(
            self.host,
            &self.file("driver/unbind"),
            &self.address.to_string(),
        );
        match (self.driver(), written) {
            // It may have gone by itself between the look and the write.
            (None, _) => Ok(()),
            (Some(_), Err(error)) => Err(error),
            (Some(driver), Ok(())) => {
                Err(self.not_taken(format!("driver {driver} did not let go of it")))
            }
        }
    }

    /// Has the kernel look for a driver. What came of it is seen in `driver`: some kernels answer the
    /// write with an error when no driver wanted the function.
    pub(crate) fn probe(&self) -> Result<(), ApplyError> {
        let written = write(
            self.host,
            "sys/bus/pci/drivers_probe",
            &self.address.to_string(),
        );
        if self.driver().is_some() {
            Ok(())
        } else {
            written
        }
    }

    fn outcome(&self, seen: Verification, done: Applied) -> Result<Applied, ApplyError> {
        match seen {
            Verification::Verified => Ok(done),
            Verification::NotYet(reason) => Ok(Applied::Waiting(reason)),
            Verification::Failed(reason) => Err(self.not_taken(reason)),
        }
    }

    fn is_bound(&self) -> Verification {
        match self.driver().as_deref() {
            Some(VFIO_DRIVER) => {}
            Some(driver) => {
                return Verification::Failed(format!("driver {driver} has it, not {VFIO_DRIVER}"));
            }
            None if !self.host.exists(&self.file("vendor")) => {
                return Verification::Failed("it is gone from the bus".to_owned());
            }
            None => {
                return Verification::Failed(format!(
                    "{VFIO_DRIVER} did not take it: see the kernel log"
                ));
            }
        }
        let Some(group) = last_name(self.host, &self.file("iommu_group")) else {
            return Verification::Failed("it has no IOMMU group".to_owned());
        };
        if self.host.exists(&format!("dev/vfio/{group}")) {
            Verification::Verified
        } else {
            Verification::NotYet(format!("/dev/vfio/{group} is not there yet"))
        }
    }

    fn is_back(&self, to: &Former) -> Verification {
        if !self.host.exists(&self.file("vendor")) {
            return Verification::Failed("it is gone from the bus".to_owned());
        }
        match (self.driver().as_deref(), to) {
            (Some(VFIO_DRIVER), _) => Verification::Failed(format!("{VFIO_DRIVER} still has it")),
            (None, Former::Nobody | Former::Unknown) => Verification::Verified,
            (Some(_), Former::Unknown) => Verification::Verified,
            (Some(driver), Former::Nobody) => {
                Verification::Failed(format!("driver {driver} has it, and nobody should"))
            }
            (Some(driver), Former::Driver(wanted)) if driver == wanted => Verification::Verified,
            (Some(driver), Former::Driver(wanted)) => {
                Verification::Failed(format!("driver {driver} has it, not {wanted}"))
            }
            (None, Former::Driver(wanted)) => {
                if self.host.exists(&format!("sys/bus/pci/drivers/{wanted}")) {
                    Verification::NotYet(format!("driver {wanted} has not taken it yet"))
                } else {
                    Verification::Failed(format!("driver {wanted} is not loaded: load its module"))
                }
            }
        }
    }
}
