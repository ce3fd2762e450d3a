//! A host in a folder, with a kernel that reacts to writes as Linux does.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use machine::{Host, RdmaLink, Root};

/// What the kernel does otherwise than it should.
#[derive(Default)]
pub(crate) struct Faults {
    /// `/dev/vfio/N` does not appear by itself.
    pub(crate) vfio_nodes_are_late: bool,
    /// This driver takes nothing.
    pub(crate) driver_refuses: Option<String>,
    /// This driver lets nothing go.
    pub(crate) driver_keeps: Option<String>,
    /// Writes to files that end so fail with this number.
    pub(crate) write_fails: Option<(String, i32)>,
    /// Writes to files that end so are taken and change nothing.
    pub(crate) write_is_lost: Option<String>,
}

pub(crate) struct FakeHost {
    folder: tempfile::TempDir,
    root: Root,
    /// Every write that reached the kernel.
    pub(crate) writes: RefCell<Vec<String>>,
    pub(crate) faults: RefCell<Faults>,
    /// Block devices that the kernel has for itself.
    pub(crate) claimed: RefCell<BTreeSet<String>>,
    /// Driver that takes a function when no override says otherwise.
    default_driver: RefCell<BTreeMap<String, String>>,
    /// Huge pages that there is memory for, by folder.
    pub(crate) pages_max: RefCell<BTreeMap<String, u64>>,
}

impl FakeHost {
    /// A host with a mounted root, one NUMA node, an IOMMU and the drivers nvme and vfio-pci.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let host = Self {
            root: Root::new(folder.path()),
            folder,
            writes: RefCell::default(),
            faults: RefCell::default(),
            claimed: RefCell::default(),
            default_driver: RefCell::default(),
            pages_max: RefCell::default(),
        };
        host.file("proc/cmdline", "quiet intel_iommu=on iommu=pt\n");
        host.file(
            "proc/self/mountinfo",
            "22 1 0:2 / / rw - rootfs rootfs rw\n",
        );
        host.file("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n");
        host.file("proc/net/route", "Iface\tDestination\tGateway\n");
        host.file("proc/sys/vm/drop_caches", "0\n");
        host.file("proc/sys/vm/compact_memory", "");
        host.file("sys/bus/pci/drivers_probe", "");
        host.file("sys/class/iommu/dmar0/uevent", "");
        host.file("sys/devices/system/cpu/online", "0-3\n");
        host.file("sys/devices/system/cpu/isolated", "2-3\n");
        host.file("sys/devices/system/cpu/nohz_full", "(null)\n");
        host.driver("nvme");
        host.driver("vfio-pci");
        host.node(0, "0-3", 4096);
        host
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn file(&self, path: &str, text: &str) {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn dir(&self, path: &str) {
        fs::create_dir_all(self.path().join(path)).unwrap();
    }

    pub(crate) fn remove(&self, path: &str) {
        let path = self.path().join(path);
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }

    /// A link to `target`, both below the root, written relative as sysfs writes them.
    pub(crate) fn link(&self, path: &str, target: &str) {
        let up = "../".repeat(path.matches('/').count());
        let at = self.path().join(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&at);
        symlink(format!("{up}{target}"), at).unwrap();
    }

    pub(crate) fn driver(&self, name: &str) {
        self.dir(&format!("sys/bus/pci/drivers/{name}"));
    }

    pub(crate) fn node(&self, node: u32, cpus: &str, memory_mib: u64) {
        let folder = format!("sys/devices/system/node/node{node}");
        let kib = memory_mib * 1024;
        self.file(&format!("{folder}/cpulist"), cpus);
        let line = |name: &str, kib: u64| format!("Node {node} {name}:  {kib} kB\n");
        let meminfo = line("MemTotal", kib)
            + &line("MemFree", kib / 2)
            + &line("Active(file)", kib / 8)
            + &line("Inactive(file)", kib / 8)
            + &line("FilePages", kib);
        self.file(&format!("{folder}/meminfo"), &meminfo);
        self.pool(&format!("{folder}/hugepages/hugepages-2048kB"), 0);
        self.pool(&format!("{folder}/hugepages/hugepages-1048576kB"), 0);
    }

    pub(crate) fn pool(&self, folder: &str, pages: u64) {
        self.file(&format!("{folder}/nr_hugepages"), &format!("{pages}\n"));
        self.file(&format!("{folder}/free_hugepages"), &format!("{pages}\n"));
        self.file(&format!("{folder}/surplus_hugepages"), "0\n");
    }

    /// A function at `way` (addresses from the root), with a driver, in a group. Gives its folder.
    pub(crate) fn function(&self, way: &[&str], class: u32, driver: &str, group: u32) -> String {
        let address = *way.last().unwrap();
        let folder = format!("sys/devices/pci0000:00/{}", way.join("/"));
        let file = |name: &str, text: &str| self.file(&format!("{folder}/{name}"), text);
        file("vendor", "0x1b36\n");
        file("device", "0x0010\n");
        file("class", &format!("{class:#08x}\n"));
        file("numa_node", "-1\n");
        file("driver_override", "(null)\n");
        self.link(&format!("sys/bus/pci/devices/{address}"), &folder);
        self.link(
            &format!("{folder}/iommu_group"),
            &format!("sys/kernel/iommu_groups/{group}"),
        );
        self.link(
            &format!("sys/kernel/iommu_groups/{group}/devices/{address}"),
            &folder,
        );
        if !driver.is_empty() {
            self.driver(driver);
            self.link(
                &format!("{folder}/driver"),
                &format!("sys/bus/pci/drivers/{driver}"),
            );
            self.default_driver
                .borrow_mut()
                .insert(address.to_owned(), driver.to_owned());
        }
        folder
    }

    /// An NVMe controller `nvmeK` behind a port of its own, with one namespace `nvmeKn1` of 1 GiB.
    pub(crate) fn nvme(&self, number: u32, group: u32) -> String {
        let port = format!("0000:00:0{number}.0");
        if !self
            .path()
            .join(format!("sys/bus/pci/devices/{port}"))
            .exists()
        {
            self.function(&[&port], 0x060400, "pcieport", 100 + number);
        }
        let address = format!("0000:0{number}:00.0");
        let folder = self.function(&[&port, &address], 0x010802, "nvme", group);
        let controller = format!("{folder}/nvme/nvme{number}");
        self.file(
            &format!("{controller}/serial"),
            &format!("S{number}            \n"),
        );
        self.file(&format!("{controller}/model"), "QEMU NVMe Ctrl\n");
        self.file(&format!("{controller}/firmware_rev"), "7.2.22\n");
        self.disk(&format!("{controller}/nvme{number}n1"), 259, number * 8);
        self.file(&format!("{controller}/nvme{number}n1/nsid"), "1\n");
        folder
    }

    /// A disk or partition in this folder of sysfs.
    pub(crate) fn disk(&self, folder: &str, major: u32, minor: u32) {
        let name = folder.rsplit('/').next().unwrap();
        self.file(&format!("{folder}/dev"), &format!("{major}:{minor}\n"));
        self.file(&format!("{folder}/size"), "2097152\n");
        self.file(&format!("{folder}/queue/logical_block_size"), "512\n");
        self.dir(&format!("{folder}/holders"));
        self.link(&format!("sys/class/block/{name}"), folder);
    }

    /// The first partition of the namespace of controller `nvmeK`. Gives its folder.
    pub(crate) fn partition(&self, number: u32) -> String {
        let folder = format!(
            "sys/devices/pci0000:00/0000:00:0{number}.0/0000:0{number}:00.0/nvme/nvme{number}/\
             nvme{number}n1/nvme{number}n1p1"
        );
        self.disk(&folder, 259, number * 8 + 1);
        self.file(&format!("{folder}/partition"), "1\n");
        folder
    }

    /// A network port `ethK` at `0000:00:1K.0`.
    pub(crate) fn nic(&self, number: u32, group: u32) -> String {
        let address = format!("0000:00:1{number}.0");
        let folder = self.function(&[&address], 0x020000, "virtio-pci", group);
        self.interface(
            &format!("eth{number}"),
            &format!("{folder}/net/eth{number}"),
            number,
        );
        folder
    }

    pub(crate) fn interface(&self, name: &str, folder: &str, number: u32) {
        self.file(
            &format!("{folder}/address"),
            &format!("52:54:00:00:00:0{number}\n"),
        );
        self.file(&format!("{folder}/operstate"), "up\n");
        self.file(&format!("{folder}/mtu"), "1500\n");
        self.file(&format!("{folder}/speed"), "-1\n");
        self.link(&format!("sys/class/net/{name}"), folder);
    }

    pub(crate) fn default_route(&self, interface: &str) {
        let line = format!("{interface}\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n");
        let path = self.path().join("proc/net/route");
        let text = fs::read_to_string(&path).unwrap() + &line;
        fs::write(path, text).unwrap();
    }

    pub(crate) fn mount(&self, number: &str, point: &str, source: &str) {
        let path = self.path().join("proc/self/mountinfo");
        let text = fs::read_to_string(&path).unwrap();
        let line = format!("40 22 {number} / {point} rw shared:1 - ext4 {source} rw\n");
        fs::write(path, text + &line).unwrap();
    }

    /// A process that has a node open.
    pub(crate) fn process(&self, pid: u32, name: &str, node: &str) {
        self.file(&format!("proc/{pid}/comm"), &format!("{name}\n"));
        self.dir(&format!("proc/{pid}/fd"));
        symlink(node, self.path().join(format!("proc/{pid}/fd/7"))).unwrap();
    }

    pub(crate) fn no_iommu(&self) {
        self.dir("sys/kernel/iommu_groups");
        self.remove("sys/kernel/iommu_groups");
        self.remove("sys/class/iommu/dmar0");
    }

    /// What `/sys/bus/pci/devices/ADDRESS/NAME` holds.
    pub(crate) fn attribute(&self, address: &str, name: &str) -> String {
        let path = self
            .path()
            .join(format!("sys/bus/pci/devices/{address}/{name}"));
        fs::read_to_string(path).unwrap().trim().to_owned()
    }

    pub(crate) fn driver_of(&self, address: &str) -> Option<String> {
        let link = Host::link(self, &format!("sys/bus/pci/devices/{address}/driver")).ok()?;
        Some(link.rsplit('/').next().unwrap().to_owned())
    }

    fn is_fault(fault: Option<&String>, what: &str) -> bool {
        fault.is_some_and(|each| each == what)
    }

    fn unbind(&self, address: &str) -> io::Result<()> {
        let driver = self.driver_of(address).ok_or(io::ErrorKind::NotFound)?;
        if !Self::is_fault(self.faults.borrow().driver_keeps.as_ref(), &driver) {
            self.remove(&format!("sys/bus/pci/devices/{address}/driver"));
        }
        Ok(())
    }

    fn probe(&self, address: &str) -> io::Result<()> {
        if self.driver_of(address).is_some() {
            return Ok(());
        }
        let wanted = match self.attribute(address, "driver_override").as_str() {
            "(null)" => self.default_driver.borrow().get(address).cloned(),
            name => Some(name.to_owned()),
        };
        let Some(driver) = wanted else { return Ok(()) };
        let folder = format!("sys/bus/pci/drivers/{driver}");
        let refuses = Self::is_fault(self.faults.borrow().driver_refuses.as_ref(), &driver);
        if !self.path().join(&folder).exists() || refuses {
            return Ok(());
        }
        // The folder of the function itself, as a link's own depth counts.
        let real = Host::link(self, &format!("sys/bus/pci/devices/{address}")).unwrap();
        let real = real.trim_start_matches("../").to_owned();
        self.link(&format!("{real}/driver"), &folder);
        if driver == "vfio-pci" && !self.faults.borrow().vfio_nodes_are_late {
            self.vfio_node(address);
        }
        Ok(())
    }

    /// `/dev/vfio/N` of a function appears.
    pub(crate) fn vfio_node(&self, address: &str) {
        let group = Host::link(self, &format!("sys/bus/pci/devices/{address}/iommu_group"));
        let group = group.unwrap().rsplit('/').next().unwrap().to_owned();
        self.file(&format!("dev/vfio/{group}"), "");
    }

    fn set_pages(&self, path: &str, text: &str) -> io::Result<()> {
        let folder = path.strip_suffix("/nr_hugepages").unwrap();
        let wanted: u64 = text.trim().parse().unwrap();
        let most = self
            .pages_max
            .borrow()
            .get(folder)
            .copied()
            .unwrap_or(u64::MAX);
        self.pool(folder, wanted.min(most));
        Ok(())
    }
}

impl Host for FakeHost {
    fn read(&self, path: &str) -> io::Result<String> {
        self.root.read(path)
    }

    fn write(&self, path: &str, text: &str) -> io::Result<()> {
        // As in sysfs, there is nothing to write to that is not there.
        if !path.ends_with("driver/unbind") && !self.exists(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let faults = self.faults.borrow();
        if let Some((end, number)) = &faults.write_fails
            && path.ends_with(end.as_str())
        {
            return Err(io::Error::from_raw_os_error(*number));
        }
        self.writes.borrow_mut().push(format!("{path} <- {text:?}"));
        if faults
            .write_is_lost
            .as_ref()
            .is_some_and(|end| path.ends_with(end.as_str()))
        {
            return Ok(());
        }
        drop(faults);
        if path.ends_with("driver/unbind") {
            return self.unbind(text);
        }
        if path.ends_with("drivers_probe") {
            return self.probe(text);
        }
        if path.ends_with("nr_hugepages") {
            return self.set_pages(path, text);
        }
        if path.ends_with("driver_override") && text.trim().is_empty() {
            return self.root.write(path, "(null)\n");
        }
        self.root.write(path, text)
    }

    fn link(&self, path: &str) -> io::Result<String> {
        self.root.link(path)
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.root.list(path)
    }

    fn exists(&self, path: &str) -> bool {
        self.root.exists(path)
    }

    fn is_claimed(&self, path: &str) -> Option<bool> {
        Some(self.claimed.borrow().contains(path))
    }

    fn change_rdma_link(&self, change: &RdmaLink<'_>) -> io::Result<()> {
        match change {
            RdmaLink::AddSoftRoce { name, interface } => {
                if !self.exists("sys/module/rdma_rxe") {
                    return Err(io::Error::from_raw_os_error(libc::EINVAL));
                }
                let folder = format!("sys/devices/virtual/infiniband/{name}");
                self.file(&format!("{folder}/parent"), &format!("{interface}\n"));
                self.link(&format!("sys/class/infiniband/{name}"), &folder);
            }
            RdmaLink::Remove { name } => self.remove(&format!("sys/class/infiniband/{name}")),
        }
        Ok(())
    }
}
