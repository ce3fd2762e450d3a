//! Destroying all data of a drive that nobody uses.
//!
//! A disk of the kernel is wiped as it is. A drive that the kernel does not drive, named by its PCI address, is
//! lent to the kernel's driver for it ([`Loans`]) and is then again what it was, however that ended.

mod loan;

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use machine::{BlockDevice, Facts, FactsError, PciAddress, PciDevice, Root, VFIO_DRIVER};
use nix::fcntl::{FallocateFlags, fallocate};

pub use self::loan::Loans;
use self::loan::{Lent, NVME_DRIVER};

/// Written in one go; progress is told and a cancelled call ends in between.
const STEP_BYTES: u64 = 256 << 20;
/// How long a drive that was lent may take until it shows its serial number and its namespaces.
const COMES_UP_WITHIN: Duration = Duration::from_secs(30);
/// How often it is looked at. What two looks in a row show is all of it.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Why a drive is not wiped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WipeError {
    /// There is no such drive.
    #[error("there is no disk {0:?}, and no function of PCI; `aditctl machine show` lists them")]
    NotFound(String),
    /// It is a partition, or shows no serial number.
    #[error("{drive} cannot be wiped: {problem}")]
    Unfit {
        /// The drive.
        drive: String,
        /// Why.
        problem: String,
    },
    /// No serial number was given.
    #[error(
        "{drive} has the serial number {serial}: give it back with --serial to have all its data \
         destroyed; nothing was changed"
    )]
    SerialWanted {
        /// The drive.
        drive: String,
        /// What is to be typed back.
        serial: String,
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
    /// The kernel's driver does not get it.
    #[error("{drive} cannot be lent to the kernel's driver, and nothing was wiped: {problem}")]
    Lend {
        /// The drive.
        drive: String,
        /// Why.
        problem: String,
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
    disks: Vec<Disk>,
    // After the disks: a drive that is open is not given back.
    _lent: Option<Lent>,
}

/// A disk, or a namespace of a drive.
#[derive(Debug)]
struct Disk {
    name: String,
    file: File,
    bytes: u64,
    done: u64,
}

impl Wipe {
    /// Looks at the host, and takes the drive - a disk of the kernel by its name, or an NVMe drive with all its
    /// namespaces by its PCI address - when its serial number is `serial` and nobody uses it. Blocks.
    ///
    /// # Errors
    /// When it may not be wiped; nothing has changed then, and a drive that was lent is what it was.
    pub fn begin(
        root: &Root,
        loans: &Arc<Loans>,
        drive: &str,
        serial: &str,
    ) -> Result<Wipe, WipeError> {
        let mut facts = Facts::read(root)?;
        let mut lent = None;
        let target = find(&facts, drive)?;
        if let Target::Function(address, Owner::Nobody) = target {
            lent = Some(loans.clone().lend(root, address)?);
            facts = come_up(root, address)?;
        }
        let disks = match target {
            Target::Disk => vec![check(&facts, drive, drive, serial)?],
            Target::Function(address, _) => check_function(&facts, address, serial)?,
        };
        let disks = disks
            .into_iter()
            .map(|(name, bytes)| take(root, name, bytes));
        Ok(Wipe {
            disks: disks.collect::<Result<_, _>>()?,
            _lent: lent,
        })
    }

    /// Bytes of the drive.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.disks.iter().map(|disk| disk.bytes).sum()
    }

    /// Writes zeros over the next part; bytes that are done. Blocks.
    ///
    /// # Errors
    /// As the drive says.
    pub fn step(&mut self) -> Result<u64, WipeError> {
        if let Some(disk) = self.disks.iter_mut().find(|disk| disk.done < disk.bytes) {
            disk.step()?;
        }
        Ok(self.disks.iter().map(|disk| disk.done).sum())
    }

    /// Whether all of it is zero.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.disks.iter().all(|disk| disk.done == disk.bytes)
    }
}

impl Disk {
    fn step(&mut self) -> Result<(), WipeError> {
        let length = STEP_BYTES.min(self.bytes - self.done);
        let failed = |source: std::io::Error| WipeError::Write {
            drive: self.name.clone(),
            offset: self.done,
            source,
        };
        // The drive's own Write Zeroes where it has it, else zeros over the bus.
        let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let range = (i64::try_from(self.done), i64::try_from(length));
        let (Ok(offset), Ok(bytes)) = range else {
            return Err(failed(std::io::Error::other(
                "the drive is larger than 2^63 bytes",
            )));
        };
        fallocate(self.file.as_fd(), flags, offset, bytes).map_err(|errno| failed(errno.into()))?;
        if self.done + length == self.bytes {
            self.file.sync_all().map_err(failed)?;
        }
        self.done += length;
        Ok(())
    }
}

fn take(root: &Root, name: String, bytes: u64) -> Result<Disk, WipeError> {
    let failed = |source| WipeError::Write {
        drive: name.clone(),
        offset: 0,
        source,
    };
    // On a block device O_EXCL asks for the claim that a mount takes.
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(nix::libc::O_EXCL)
        .open(root.path().join("dev").join(&name))
        .map_err(failed)?;
    if !file
        .metadata()
        .map_err(failed)?
        .file_type()
        .is_block_device()
    {
        return Err(unfit(&name, "its node is no block device"));
    }
    Ok(Disk {
        name,
        file,
        bytes,
        done: 0,
    })
}

/// What a person means by a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// A disk of the kernel.
    Disk,
    /// An NVMe drive.
    Function(PciAddress, Owner),
}

/// Who has an NVMe drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Kernel,
    /// No driver, or vfio-pci for nobody.
    Nobody,
}

fn unfit(drive: &str, problem: &str) -> WipeError {
    WipeError::Unfit {
        drive: drive.to_owned(),
        problem: problem.to_owned(),
    }
}

fn find(facts: &Facts, drive: &str) -> Result<Target, WipeError> {
    if facts.block.iter().any(|each| each.name == drive) {
        return Ok(Target::Disk);
    }
    let address = drive.parse::<PciAddress>().ok();
    let function = address.and_then(|address| facts.device(address));
    let function = function.ok_or_else(|| WipeError::NotFound(drive.to_owned()))?;
    if !function.is_nvme() {
        return Err(unfit(drive, "it is no NVMe drive"));
    }
    let owner = match function.driver.as_deref() {
        Some(NVME_DRIVER) => Owner::Kernel,
        None | Some(VFIO_DRIVER) => Owner::Nobody,
        Some(other) => return Err(unfit(drive, &format!("driver {other} has it"))),
    };
    let users = users(facts, function);
    if !users.is_empty() {
        return Err(WipeError::InUse {
            drive: drive.to_owned(),
            users: format!("by {} from user space", users.join(", ")),
        });
    }
    Ok(Target::Function(function.address, owner))
}

/// Processes that drive it from user space.
fn users(facts: &Facts, function: &PciDevice) -> Vec<String> {
    let group = function.group.and_then(|number| facts.group(number));
    let of_group = group.map(|group| group.users.clone());
    let mut users = of_group.unwrap_or_default();
    users.extend(function.vfio_users.iter().cloned());
    users
}

/// Waits until a drive that was lent shows what it is.
fn come_up(root: &Root, address: PciAddress) -> Result<Facts, WipeError> {
    let start = Instant::now();
    let mut before = Vec::new();
    loop {
        let facts = Facts::read(root)?;
        let disks = disks_of(&facts, address);
        let found: Vec<_> = disks
            .iter()
            .map(|disk| (disk.name.clone(), disk.bytes))
            .collect();
        let is_up = serial_of(&facts, &[address]).is_some() && !found.is_empty();
        if is_up && found == before {
            return Ok(facts);
        }
        if start.elapsed() > COMES_UP_WITHIN {
            let problem = "the kernel's driver shows no serial number or no namespace of it";
            return Err(unfit(&address.to_string(), problem));
        }
        before = found;
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// The disks of a drive.
fn disks_of(facts: &Facts, address: PciAddress) -> Vec<&BlockDevice> {
    let own = facts.block.iter();
    own.filter(|each| each.partition_of.is_none() && each.pci.contains(&address))
        .collect()
}

/// The serial number that the first of some functions shows.
fn serial_of<'a>(facts: &'a Facts, functions: &[PciAddress]) -> Option<&'a str> {
    let of_them = facts
        .pci
        .iter()
        .filter(|function| functions.contains(&function.address));
    let mut shown = of_them.filter_map(|function| function.nvme.as_ref());
    shown
        .next()
        .map(|nvme| nvme.serial.trim())
        .filter(|serial| !serial.is_empty())
}

/// Whether all of an NVMe drive may be wiped; its disks with their sizes.
fn check_function(
    facts: &Facts,
    address: PciAddress,
    serial: &str,
) -> Result<Vec<(String, u64)>, WipeError> {
    let drive = address.to_string();
    let disks = disks_of(facts, address);
    if disks.is_empty() {
        return Err(unfit(&drive, "it has no namespace"));
    }
    let checked = disks
        .iter()
        .map(|disk| check(facts, &drive, &disk.name, serial));
    checked.collect()
}

/// Whether a disk of what was called `drive` may be wiped; its name and size.
fn check(facts: &Facts, drive: &str, disk: &str, serial: &str) -> Result<(String, u64), WipeError> {
    let named = facts.block.iter().find(|each| each.name == disk);
    let device = named.ok_or_else(|| WipeError::NotFound(drive.to_owned()))?;
    if device.partition_of.is_some() {
        return Err(unfit(drive, "it is a partition; name the disk"));
    }
    let own = serial_of(facts, &device.pci);
    let own = own.ok_or_else(|| {
        unfit(
            drive,
            "it shows no serial number to type back; only NVMe drives do",
        )
    })?;
    let drive = drive.to_owned();
    let serial = serial.trim();
    if serial.is_empty() {
        let serial = own.to_owned();
        return Err(WipeError::SerialWanted { drive, serial });
    }
    if serial != own {
        return Err(WipeError::Serial { drive });
    }
    let is_of = |name: &Option<String>| name.as_deref() == Some(disk);
    let parts = facts
        .block
        .iter()
        .filter(|each| each.name == disk || is_of(&each.partition_of));
    let users: Vec<String> = parts
        .flat_map(|part| {
            part.holders
                .iter()
                .map(move |user| format!("{} by {user:?}", part.name))
        })
        .collect();
    if !users.is_empty() {
        let users = users.join(", ");
        return Err(WipeError::InUse { drive, users });
    }
    let bytes = device.bytes.filter(|bytes| *bytes > 0);
    let bytes = bytes.ok_or_else(|| unfit(&drive, "it shows no size"))?;
    Ok((disk.to_owned(), bytes))
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
        let (name, bytes) = check(&facts, "nvme0n1", "nvme0n1", " S1").unwrap();
        assert_eq!((&*name, bytes), ("nvme0n1", 1 << 20));
        let no = |facts: &Facts, drive: &str, serial: &str| {
            check(facts, drive, drive, serial).unwrap_err()
        };
        assert!(matches!(
            no(&facts, "nvme0n1", "S2"),
            WipeError::Serial { .. }
        ));
        let wanted = no(&facts, "nvme0n1", " ");
        assert!(matches!(wanted, WipeError::SerialWanted { .. }));
        assert!(wanted.to_string().contains("serial number S1:"), "{wanted}");
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

    #[test]
    fn a_drive_is_named_by_its_address_and_left_to_who_uses_it() {
        let mut facts = facts();
        let address = facts.pci[0].address;
        let drive = "0000:01:00.0";
        let found = |facts: &Facts| find(facts, drive);
        assert_eq!(find(&facts, "nvme0n1").unwrap(), Target::Disk);
        let by_kernel = Target::Function(address, Owner::Kernel);
        assert_eq!(found(&facts).unwrap(), by_kernel);
        let all = check_function(&facts, address, "S1").unwrap();
        assert_eq!(all, [("nvme0n1".to_owned(), 1 << 20)]);
        let error = check_function(&facts, address, "S2").unwrap_err();
        assert!(matches!(error, WipeError::Serial { .. }));
        let error = find(&facts, "0000:02:00.0").unwrap_err();
        assert!(matches!(error, WipeError::NotFound(_)));

        facts.pci[0].driver = Some("vfio-pci".to_owned());
        let by_nobody = Target::Function(address, Owner::Nobody);
        assert_eq!(found(&facts).unwrap(), by_nobody);
        facts.pci[0].group = Some(7);
        facts.iommu.groups.push(machine::Group {
            number: 7,
            members: vec![drive.to_owned()],
            users: vec!["aditd[42]".to_owned()],
        });
        let error = found(&facts).unwrap_err().to_string();
        assert!(error.contains("in use: by aditd[42]"), "{error}");
        facts.iommu.groups.clear();
        facts.pci[0].driver = None;
        assert_eq!(found(&facts).unwrap(), by_nobody);
        for (driver, class) in [("uio", 0x0001_0802), ("e1000e", 0x0002_0000)] {
            facts.pci[0].driver = Some(driver.to_owned());
            facts.pci[0].class = class;
            assert!(matches!(found(&facts), Err(WipeError::Unfit { .. })));
        }
    }

    fn disk(folder: &std::path::Path, name: &str, bytes: u64) -> Disk {
        let path = folder.join(name);
        std::fs::write(&path, vec![7; usize::try_from(bytes).unwrap() + 1]).unwrap();
        Disk {
            name: name.to_owned(),
            file: OpenOptions::new().write(true).open(path).unwrap(),
            bytes,
            done: 0,
        }
    }

    #[test]
    fn every_namespace_of_a_drive_is_zero_in_the_end_and_nothing_beyond() {
        let folder = tempfile::tempdir().unwrap();
        let mut wipe = Wipe {
            disks: vec![
                disk(folder.path(), "a", 8192),
                disk(folder.path(), "b", 4096),
            ],
            _lent: None,
        };
        assert_eq!(wipe.bytes(), 12288);
        let mut told = Vec::new();
        while !wipe.is_done() {
            told.push(wipe.step().unwrap());
        }
        assert_eq!(told, [8192, 12288]);
        for (name, bytes) in [("a", 8192), ("b", 4096)] {
            let mut wanted = vec![0; bytes];
            wanted.push(7);
            assert_eq!(std::fs::read(folder.path().join(name)).unwrap(), wanted);
        }
    }
}
