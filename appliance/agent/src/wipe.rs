//! Destroying all data of a drive that nobody uses.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};

use machine::{Facts, FactsError, Root};
use nix::fcntl::{FallocateFlags, fallocate};

/// Written in one go; progress is told and a cancelled call ends in between.
const STEP_BYTES: u64 = 256 << 20;

/// Why a drive is not wiped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WipeError {
    /// There is no such drive.
    #[error("there is no disk {0:?}; `aditctl machine show` lists them")]
    NotFound(String),
    /// It is a partition, or shows no serial number.
    #[error("{drive} cannot be wiped: {problem}")]
    Unfit {
        /// The drive.
        drive: String,
        /// Why.
        problem: String,
    },
    /// The serial number is another.
    #[error("{drive} has another serial number than the one that was given; nothing was changed")]
    Serial {
        /// The drive.
        drive: String,
    },
    /// Somebody uses it.
    #[error("{drive} is in use: {users}; nothing was changed")]
    InUse {
        /// The drive.
        drive: String,
        /// Who.
        users: String,
    },
    /// The host cannot be read.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// The drive cannot be written.
    #[error("{drive} cannot be wiped at byte {offset}")]
    Write {
        /// The drive.
        drive: String,
        /// Where.
        offset: u64,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A drive that may be wiped, held so that nobody else takes it.
#[derive(Debug)]
pub struct Wipe {
    drive: String,
    file: File,
    bytes: u64,
    done: u64,
}

impl Wipe {
    /// Looks at the host, and takes the drive when its serial number is `serial` and nobody uses it.
    ///
    /// # Errors
    /// When it may not be wiped; nothing has changed then.
    pub fn begin(root: &Root, drive: &str, serial: &str) -> Result<Wipe, WipeError> {
        let facts = Facts::read(root)?;
        let bytes = check(&facts, drive, serial)?;
        let path = root.path().join("dev").join(drive);
        let failed = |source| WipeError::Write {
            drive: drive.to_owned(),
            offset: 0,
            source,
        };
        // On a block device O_EXCL asks for the claim that a mount takes.
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(nix::libc::O_EXCL)
            .open(&path)
            .map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_block_device() {
            return Err(WipeError::Unfit {
                drive: drive.to_owned(),
                problem: "its node is no block device".to_owned(),
            });
        }
        Ok(Wipe {
            drive: drive.to_owned(),
            file,
            bytes,
            done: 0,
        })
    }

    /// Bytes of the drive.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes zeros over the next part; bytes that are done. Blocks.
    ///
    /// # Errors
    /// As the drive says.
    pub fn step(&mut self) -> Result<u64, WipeError> {
        let length = STEP_BYTES.min(self.bytes - self.done);
        let failed = |source: std::io::Error| WipeError::Write {
            drive: self.drive.clone(),
            offset: self.done,
            source,
        };
        if length > 0 {
            // The drive's own Write Zeroes where it has it, else zeros over the bus.
            let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let range = (i64::try_from(self.done), i64::try_from(length));
            let (Ok(offset), Ok(length)) = range else {
                return Err(failed(std::io::Error::other(
                    "the drive is larger than 2^63 bytes",
                )));
            };
            fallocate(self.file.as_fd(), flags, offset, length)
                .map_err(|errno| failed(errno.into()))?;
        }
        if self.done + length == self.bytes {
            self.file.sync_all().map_err(failed)?;
        }
        self.done += length;
        Ok(self.done)
    }

    /// Whether all of it is zero.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done == self.bytes
    }
}

/// Whether the drive may be wiped; its size.
fn check(facts: &Facts, drive: &str, serial: &str) -> Result<u64, WipeError> {
    let unfit = |problem: &str| WipeError::Unfit {
        drive: drive.to_owned(),
        problem: problem.to_owned(),
    };
    let named = facts.block.iter().find(|each| each.name == drive);
    let device = named.ok_or_else(|| WipeError::NotFound(drive.to_owned()))?;
    if device.partition_of.is_some() {
        return Err(unfit("it is a partition; name the disk"));
    }
    let serials: Vec<&str> = facts
        .pci
        .iter()
        .filter(|function| device.pci.contains(&function.address))
        .filter_map(|function| function.nvme.as_ref())
        .map(|nvme| nvme.serial.trim())
        .collect();
    let own = serials.first();
    let own =
        own.ok_or_else(|| unfit("it shows no serial number to type back; only NVMe drives do"))?;
    if serial.trim() != *own || own.is_empty() {
        return Err(WipeError::Serial {
            drive: drive.to_owned(),
        });
    }
    let is_of = |name: &Option<String>| name.as_deref() == Some(drive);
    let parts = facts
        .block
        .iter()
        .filter(|each| each.name == drive || is_of(&each.partition_of));
    let users: Vec<String> = parts
        .flat_map(|part| {
            part.holders
                .iter()
                .map(move |user| format!("{} by {user:?}", part.name))
        })
        .collect();
    if !users.is_empty() {
        return Err(WipeError::InUse {
            drive: drive.to_owned(),
            users: users.join(", "),
        });
    }
    device
        .bytes
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| unfit("it shows no size"))
}

#[cfg(test)]
mod tests {
    use machine::{BlockDevice, Holder, NvmeController, PciDevice};

    use super::*;

    fn facts() -> Facts {
        let address = "0000:01:00.0".parse().unwrap();
        let json = serde_json::json!({
            "address": "0000:01:00.0", "vendor": 1, "device": 1, "class": 0x0001_0802,
            "driver": "nvme", "driver_override": null, "group": null, "node": null,
            "parents": [], "slot": null, "link": null, "virtual_functions": 0,
            "physical_function": null, "nvme": null, "rdma": [], "vfio_users": [],
        });
        let mut function: PciDevice = serde_json::from_value(json).unwrap();
        function.nvme = Some(NvmeController {
            name: "nvme0".into(),
            serial: "S1  ".into(),
            model: "M".into(),
            firmware: "1".into(),
            namespaces: Vec::new(),
        });
        let device = |name: &str, of: Option<&str>| BlockDevice {
            name: name.into(),
            number: "259:0".into(),
            bytes: Some(1 << 20),
            partition_of: of.map(str::to_owned),
            pci: vec![address],
            holders: Vec::new(),
        };
        let mut facts = Facts::default();
        facts.pci.push(function);
        facts.block.push(device("nvme0n1", None));
        facts.block.push(device("nvme0n1p1", Some("nvme0n1")));
        let mut other = device("sda", None);
        other.pci.clear();
        facts.block.push(other);
        facts
    }

    #[test]
    fn only_an_unused_disk_with_its_serial_is_wiped() {
        let mut facts = facts();
        assert_eq!(check(&facts, "nvme0n1", " S1").unwrap(), 1 << 20);
        let no =
            |facts: &Facts, drive: &str, serial: &str| check(facts, drive, serial).unwrap_err();
        assert!(matches!(
            no(&facts, "nvme0n1", "S2"),
            WipeError::Serial { .. }
        ));
        assert!(matches!(
            no(&facts, "nvme0n1", ""),
            WipeError::Serial { .. }
        ));
        assert!(matches!(
            no(&facts, "nvme0n1p1", "S1"),
            WipeError::Unfit { .. }
        ));
        assert!(matches!(no(&facts, "sda", ""), WipeError::Unfit { .. }));
        assert!(matches!(no(&facts, "../x", "S1"), WipeError::NotFound(_)));
        facts.block[1].holders.push(Holder::Mount("/srv".into()));
        let error = no(&facts, "nvme0n1", "S1");
        assert!(error.to_string().contains("/srv"), "{error}");
    }
}
