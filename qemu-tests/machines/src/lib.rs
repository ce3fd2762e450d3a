//! Machines in QEMU as data: a TOML profile each (`profiles/`), and the arguments of QEMU that make one.
//!
//! A profile says what stands in the rack: processors, memory, IOMMU, clock, network card, drives and the slots
//! that they are in, other devices, and the kernel's command line. What changes with each start is not its
//! business: files behind drives, ports of the host, where the console is written, what is booted. `qemu_tests`
//! and `image/vm` add that.
//!
//! # The form of a profile
//!
//! | key | meaning | where a profile is like another |
//! |---|---|---|
//! | `like` | the profile that holds where this one is silent: its name, without `.toml` | - |
//! | `cpu` | model and features of the processors (`-cpu`) | replaces |
//! | `cpus` | how many | replaces |
//! | `memory_mib` | | replaces |
//! | `iommu` | an Intel IOMMU with interrupt remapping, for devices that are given away | replaces |
//! | `reboots` | a reset starts it again; without, QEMU ends | replaces |
//! | `clock` | what its hardware clock says at the start, `1970-01-01T00:00:00`; else the time | replaces |
//! | `network` | the card on QEMU's netdev `net`: a `-device`; empty for none | replaces |
//! | `kernel` | words of the kernel's command line | comes after; the kernel takes the last of two |
//! | `smbios` | tables of the firmware (`-smbios`) | comes after |
//! | `devices` | each a `-device` | comes after |
//! | `blockdevs` | backends that need nothing of the host, each a `-blockdev` | comes after |
//! | `[[drive]]` | an NVMe drive in a slot, so a group of the IOMMU, of its own: [`Drive`] | comes after |
//!
//! # Main types
//!
//! [`Machine`]: a profile with all that it is like. [`Machine::load`] reads one.
//!
//! # Threading and errors
//!
//! Plain data. A [`MachineError`] names the file and what is wrong in it; an unknown key is an error.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Profiles in a chain of `like`, at most: more is a circle.
const LIKE_MAX: usize = 8;

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// No such file, or it cannot be read.
    #[error("cannot read the machine's profile {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not a profile.
    #[error("{} is not a machine's profile", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: toml::de::Error,
    },
    /// Profiles that are like each other.
    #[error("{} is like more than {LIKE_MAX} others: is one of them like itself?", path.display())]
    Circle {
        /// The file that was asked for.
        path: PathBuf,
    },
    /// A profile that says too little.
    #[error("{} and those that it is like do not say `{key}`", path.display())]
    Missing {
        /// The file that was asked for.
        path: PathBuf,
        /// What is missing.
        key: &'static str,
    },
}

/// An NVMe drive in a PCIe root port. In QEMU its identifier is its serial number and that of the port
/// `port-SERIAL`: what hot plug names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Its serial number.
    pub serial: String,
    /// More of the `-device`: `write-cache=off`.
    #[serde(default)]
    pub options: String,
    /// Its namespaces, from 1 on; without any it has one, whose backend has the name of its serial number.
    #[serde(default)]
    pub namespaces: Vec<Namespace>,
}

/// A namespace of a [`Drive`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// The block node of QEMU that holds its data.
    pub backend: String,
    /// More of the `-device`: `logical_block_size=4096`.
    #[serde(default)]
    pub options: String,
}

/// A profile as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    like: Option<String>,
    cpu: Option<String>,
    cpus: Option<u32>,
    memory_mib: Option<u32>,
    iommu: Option<bool>,
    reboots: Option<bool>,
    clock: Option<String>,
    network: Option<String>,
    #[serde(default)]
    kernel: Vec<String>,
    #[serde(default)]
    smbios: Vec<String>,
    #[serde(default)]
    devices: Vec<String>,
    #[serde(default)]
    blockdevs: Vec<String>,
    #[serde(default, rename = "drive")]
    drives: Vec<Drive>,
}

impl Profile {
    fn read(path: &Path) -> Result<Self, MachineError> {
        let path = || path.to_owned();
        let text = fs::read_to_string(path()).map_err(|source| MachineError::Read {
            path: path(),
            source,
        })?;
        toml::from_str(&text).map_err(|source| MachineError::Parse {
            path: path(),
            source,
        })
    }

    /// `self`, and where it is silent `base`.
    fn over(self, base: Self) -> Self {
        Self {
            like: base.like,
            cpu: self.cpu.or(base.cpu),
            cpus: self.cpus.or(base.cpus),
            memory_mib: self.memory_mib.or(base.memory_mib),
            iommu: self.iommu.or(base.iommu),
            reboots: self.reboots.or(base.reboots),
            clock: self.clock.or(base.clock),
            network: self.network.or(base.network),
            kernel: [base.kernel, self.kernel].concat(),
            smbios: [base.smbios, self.smbios].concat(),
            devices: [base.devices, self.devices].concat(),
            blockdevs: [base.blockdevs, self.blockdevs].concat(),
            drives: [base.drives, self.drives].concat(),
        }
    }
}

/// A machine: a profile with all that it is like.
#[derive(Debug)]
pub struct Machine {
    profile: Profile,
    cpu: String,
    cpus: u32,
    memory_mib: u32,
}

impl Machine {
    /// Reads the profile in a file; those that it is like are looked for in the same folder.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, is not a profile, or all of them leave out `cpu`, `cpus` or `memory_mib`.
    pub fn load(path: &Path) -> Result<Self, MachineError> {
        let mut profile = Profile::read(path)?;
        for _ in 0..LIKE_MAX {
            let Some(like) = &profile.like else { break };
            let base = Profile::read(&path.with_file_name(format!("{like}.toml")))?;
            profile = profile.over(base);
        }
        let path = || path.to_owned();
        if profile.like.is_some() {
            return Err(MachineError::Circle { path: path() });
        }
        let missing = |key| MachineError::Missing { path: path(), key };
        Ok(Self {
            cpu: profile.cpu.take().ok_or_else(|| missing("cpu"))?,
            cpus: profile.cpus.ok_or_else(|| missing("cpus"))?,
            memory_mib: profile.memory_mib.ok_or_else(|| missing("memory_mib"))?,
            profile,
        })
    }

    /// The words of the kernel's command line.
    pub fn kernel(&self) -> String {
        let mut words = self.profile.kernel.clone();
        if self.has_iommu() {
            words.extend(["intel_iommu=on", "iommu=pt"].map(str::to_owned));
        }
        words.join(" ")
    }

    /// The network card, as a `-device` on the netdev `net`; none when the machine has none.
    pub fn network(&self) -> Option<&str> {
        let card = self.profile.network.as_deref();
        card.filter(|card| !card.is_empty())
    }

    /// The block nodes of QEMU that its drives need and nobody but who starts the machine can give.
    pub fn backends(&self) -> Vec<&str> {
        let drives = self.profile.drives.iter();
        let needed = drives.flat_map(|drive| {
            let own = drive.namespaces.is_empty().then_some(&*drive.serial);
            let named = drive.namespaces.iter().map(|each| &*each.backend);
            own.into_iter().chain(named)
        });
        let is_given = |name: &str| {
            let node = format!("node-name={name}");
            let mut all = self.profile.blockdevs.iter();
            all.any(|text| text.split(',').any(|word| word == node))
        };
        needed.filter(|name| !is_given(name)).collect()
    }

    /// The arguments of QEMU, without the network card, the kernel's command line, and what the host gives:
    /// netdevs, backends of drives, character devices, what is booted. `ADIT_QEMU_ACCEL` in the environment
    /// names another accelerator than TCG with a thread for each processor.
    pub fn arguments(&self) -> Vec<String> {
        let accel = std::env::var("ADIT_QEMU_ACCEL").unwrap_or("tcg,thread=multi".to_owned());
        let mut all = Arguments::default();
        for flag in ["-nodefaults", "-no-user-config"] {
            all.0.push(flag.to_owned());
        }
        if self.profile.reboots != Some(true) {
            all.0.push("-no-reboot".to_owned());
        }
        all.push("-display", "none");
        all.push("-accel", accel);
        all.push("-cpu", &*self.cpu);
        all.push("-smp", self.cpus.to_string());
        all.push("-m", self.memory_mib.to_string());
        if self.has_iommu() {
            // Interrupt remapping needs the interrupt controller that QEMU emulates. The IOMMU stands before
            // every device that it is to translate for.
            all.push("-machine", "q35,kernel-irqchip=split");
            all.push("-device", "intel-iommu,intremap=on,caching-mode=on");
        } else {
            all.push("-machine", "q35");
        }
        if let Some(clock) = &self.profile.clock {
            all.push("-rtc", format!("base={clock}"));
        }
        for table in &self.profile.smbios {
            all.push("-smbios", &**table);
        }
        for blockdev in &self.profile.blockdevs {
            all.push("-blockdev", &**blockdev);
        }
        for device in &self.profile.devices {
            all.push("-device", &**device);
        }
        for (drive, chassis) in self.profile.drives.iter().zip(1..) {
            all.drive(drive, chassis);
        }
        all.0
    }

    fn has_iommu(&self) -> bool {
        self.profile.iommu == Some(true)
    }
}

#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn push(&mut self, option: &str, value: impl Into<String>) {
        self.0.extend([option.to_owned(), value.into()]);
    }

    fn drive(&mut self, drive: &Drive, chassis: u32) {
        let serial = &drive.serial;
        let more = |options: &str| match options {
            "" => String::new(),
            _ => format!(",{options}"),
        };
        self.push(
            "-device",
            format!("pcie-root-port,id=port-{serial},chassis={chassis}"),
        );
        let own = match drive.namespaces.is_empty() {
            true => format!(",drive={serial}"),
            false => String::new(),
        };
        self.push(
            "-device",
            format!(
                "nvme,id={serial},serial={serial},bus=port-{serial}{own}{}",
                more(&drive.options)
            ),
        );
        for (namespace, nsid) in drive.namespaces.iter().zip(1..) {
            let (backend, options) = (&namespace.backend, more(&namespace.options));
            self.push(
                "-device",
                format!("nvme-ns,bus={serial},nsid={nsid},drive={backend}{options}"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(format!("{name}.toml")), text).unwrap();
        }
        folder
    }

    fn load(files: &[(&str, &str)], name: &str) -> Result<Machine, MachineError> {
        let folder = folder(files);
        Machine::load(&folder.path().join(format!("{name}.toml")))
    }

    /// The values of an option.
    fn values(machine: &Machine, option: &str) -> Vec<String> {
        let arguments = machine.arguments();
        let pairs = arguments.windows(2).filter(|pair| pair[0] == option);
        pairs.map(|pair| pair[1].clone()).collect()
    }

    const EVERY: (&str, &str) = (
        "every",
        "cpu = 'max'\ncpus = 1\nmemory_mib = 1024\nkernel = ['panic=-1']\ndevices = ['first']",
    );

    #[test]
    fn what_a_profile_does_not_say_is_as_in_the_one_that_it_is_like() {
        let other = "like = 'every'\ncpus = 2\nkernel = ['panic=10']\ndevices = ['second']";
        let machine = load(&[EVERY, ("other", other)], "other").unwrap();
        assert_eq!(values(&machine, "-cpu"), ["max"]);
        assert_eq!(values(&machine, "-smp"), ["2"]);
        assert_eq!(values(&machine, "-device"), ["first", "second"]);
        assert_eq!(machine.kernel(), "panic=-1 panic=10");
        assert_eq!(machine.network(), None);
        assert!(machine.arguments().contains(&"-no-reboot".to_owned()));
    }

    #[test]
    fn an_iommu_stands_before_every_device_and_the_kernel_is_told() {
        let other = "like = 'every'\niommu = true";
        let machine = load(&[EVERY, ("other", other)], "other").unwrap();
        assert!(values(&machine, "-device")[0].starts_with("intel-iommu,"));
        assert_eq!(machine.kernel(), "panic=-1 intel_iommu=on iommu=pt");
        let without = "like = 'other'\niommu = false";
        let all = [EVERY, ("other", other), ("without", without)];
        let machine = load(&all, "without").unwrap();
        assert_eq!(values(&machine, "-device"), ["first"]);
        assert_eq!(values(&machine, "-machine"), ["q35"]);
    }

    #[test]
    fn a_drive_has_a_slot_of_its_own_and_its_backends_are_named() {
        let other = "like = 'every'\nblockdevs = ['null-co,node-name=N,size=1']\n\
            [[drive]]\nserial = 'N'\n[[drive]]\nserial = 'A'\noptions = 'write-cache=off'\n\
            [[drive]]\nserial = 'B'\nnamespaces = [{ backend = 'b1' }, { backend = 'b2', options = 'x=1' }]";
        let machine = load(&[EVERY, ("other", other)], "other").unwrap();
        assert_eq!(machine.backends(), ["A", "b1", "b2"]);
        assert_eq!(
            values(&machine, "-device")[1..],
            [
                "pcie-root-port,id=port-N,chassis=1",
                "nvme,id=N,serial=N,bus=port-N,drive=N",
                "pcie-root-port,id=port-A,chassis=2",
                "nvme,id=A,serial=A,bus=port-A,drive=A,write-cache=off",
                "pcie-root-port,id=port-B,chassis=3",
                "nvme,id=B,serial=B,bus=port-B",
                "nvme-ns,bus=B,nsid=1,drive=b1",
                "nvme-ns,bus=B,nsid=2,drive=b2,x=1",
            ]
        );
    }

    #[test]
    fn a_wrong_profile_is_refused_with_its_file_and_why() {
        let typing = load(
            &[EVERY, ("other", "like = 'every'\nmemmory_mib = 1")],
            "other",
        );
        let source = std::error::Error::source(&typing.unwrap_err())
            .unwrap()
            .to_string();
        assert!(source.contains("memmory_mib"), "{source}");
        let circle = load(&[("a", "like = 'b'"), ("b", "like = 'a'")], "a");
        assert!(matches!(circle, Err(MachineError::Circle { .. })));
        let nothing = load(&[("a", "like = 'b'")], "a");
        assert!(matches!(nothing, Err(MachineError::Read { .. })));
        let little = load(&[("a", "cpu = 'max'\ncpus = 1")], "a");
        let text = little.unwrap_err().to_string();
        assert!(text.ends_with("do not say `memory_mib`"), "{text}");
    }

    /// What the tests and `make vm` boot; QEMU itself sees them there.
    #[test]
    fn every_profile_of_the_project_is_a_machine() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
        let mut count = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let machine = Machine::load(&entry.unwrap().path());
            assert!(machine.is_ok(), "{machine:?}");
            count += 1;
        }
        assert!(count > 10);
    }
}
