//! A profile beside a host in a folder.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use firmware::{
    Drive, DriveNamespace, Item, Known, Node, Profile, Reading, Readings, Report, SETTINGS, Tree,
    Verdict, check,
};
use proptest::prelude::*;
use tempfile::TempDir;

const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
const NIC: &str = "0000:41:00.0";
const KERNEL_DRIVE: &str = "0000:01:00.0";
const VFIO_DRIVE: &str = "0000:02:00.0";

struct Host(TempDir);

impl Host {
    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn remove(&self, path: &str) {
        let path = self.path().join(path);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    fn function(&self, address: &str, class: &str, driver: &str) {
        let folder = format!("sys/devices/pci0000:00/{address}");
        self.link(
            &format!("sys/bus/pci/devices/{address}"),
            &format!("../../../devices/pci0000:00/{address}"),
        );
        for (name, text) in [
            ("vendor", "0x15b3"),
            ("device", "0x1021"),
            ("class", class),
            ("numa_node", "0"),
            ("current_link_speed", "16.0 GT/s PCIe"),
            ("max_link_speed", "16.0 GT/s PCIe"),
            ("current_link_width", "4"),
            ("max_link_width", "4"),
        ] {
            self.file(&format!("{folder}/{name}"), text);
        }
        self.file(&format!("{folder}/config"), config(0x5010, 0));
        self.link(
            &format!("{folder}/driver"),
            &format!("../../../bus/pci/drivers/{driver}"),
        );
    }

    /// A storage node that is as `default.toml` wants it, but for what it cannot show.
    fn good() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        host.file("proc/cmdline", "intel_iommu=on");
        host.file(
            "proc/self/mountinfo",
            "22 1 0:2 / / rw - rootfs rootfs rw\n",
        );
        let flags = "flags\t\t: fpu constant_tsc nonstop_tsc aes\n";
        host.file(
            "proc/cpuinfo",
            format!("processor\t: 0\n{flags}\nprocessor\t: 1\n{flags}"),
        );
        host.file("sys/kernel/iommu_groups/1/devices/x", "");
        host.file("sys/firmware/acpi/tables/DMAR", dmar(0b101));
        let efi = |name: &str| format!("sys/firmware/efi/efivars/{name}-{GLOBAL}");
        host.file(&efi("BootOrder"), [7, 0, 0, 0, 9, 0, 1, 0, 2, 0]);
        host.file(&efi("Boot0001"), boot_option(0, "disk", &[4, 1, 4, 0]));
        host.file(
            &efi("Boot0002"),
            boot_option(1, "UEFI HTTPv4", &[3, 0x18, 4, 0]),
        );
        host.file(&efi("SecureBoot"), [6, 0, 0, 0, 0]);
        let cpus = "sys/devices/system/cpu";
        for cpu in 0..2 {
            host.file(
                &format!("{cpus}/cpufreq/policy{cpu}/scaling_governor"),
                "performance\n",
            );
            host.file(
                &format!("{cpus}/cpu{cpu}/topology/physical_package_id"),
                "0\n",
            );
            for (state, name, latency, disable) in [
                (0, "POLL", 0, 0),
                (1, "C1", 2, 0),
                (2, "C6", 170, 0),
                (3, "C10", 890, 1),
            ] {
                let folder = format!("{cpus}/cpu{cpu}/cpuidle/state{state}");
                host.file(&format!("{folder}/name"), name);
                host.file(&format!("{folder}/latency"), format!("{latency}\n"));
                host.file(&format!("{folder}/disable"), format!("{disable}\n"));
            }
        }
        host.file(&format!("{cpus}/intel_pstate/no_turbo"), "0\n");
        host.file(&format!("{cpus}/smt/active"), "1\n");
        host.file("sys/devices/system/node/node0/cpulist", "0-1\n");
        host.file("sys/class/watchdog/watchdog0/identity", "iTCO_wdt\n");
        host.file("sys/class/watchdog/watchdog0/timeout", "30\n");
        host.file("sys/class/dmi/id/product_name", "AS -1115HS\n");
        host.file("sys/class/dmi/id/bios_version", "3.3\n");
        host.function(NIC, "0x020000", "mlx5_core");
        host.file(
            &format!("sys/devices/pci0000:00/{NIC}/sriov_totalvfs"),
            "8\n",
        );
        let net = format!("sys/devices/pci0000:00/{NIC}/net/data0");
        for (name, text) in [
            ("address", "0c:42:a1:00:00:01"),
            ("operstate", "up"),
            ("speed", "100000"),
            ("mtu", "9000"),
        ] {
            host.file(&format!("{net}/{name}"), text);
        }
        host.link(
            "sys/class/net/data0",
            &format!("../../devices/pci0000:00/{NIC}/net/data0"),
        );
        host.function(KERNEL_DRIVE, "0x010802", "nvme");
        let nvme = format!("sys/devices/pci0000:00/{KERNEL_DRIVE}/nvme/nvme0");
        for (name, text) in [
            ("serial", "K1"),
            ("model", "Model K"),
            ("firmware_rev", "1.0"),
        ] {
            host.file(&format!("{nvme}/{name}"), text);
        }
        host.file(&format!("{nvme}/nvme0n1/nsid"), "1");
        for (name, text) in [
            ("nsid", "1"),
            ("size", "1000"),
            ("queue/logical_block_size", "4096"),
            ("queue/write_cache", "write back"),
        ] {
            host.file(&format!("sys/class/block/nvme0n1/{name}"), text);
        }
        host.function(VFIO_DRIVE, "0x010802", "vfio-pci");
        host
    }

    fn node(&self, drives: Known<Vec<Drive>>) -> Node {
        Node::local(Tree::new(self.path()), drives)
    }

    fn check(&self, profile: &str) -> Report {
        let profile = Profile::built_in(profile).unwrap();
        check(&profile, &self.node(Ok(vec![drive()])))
    }
}

/// The drive on vfio-pci, as `aditd` tells of it.
fn drive() -> Drive {
    Drive {
        object: "drive a".to_owned(),
        address: VFIO_DRIVE.to_owned(),
        model: Ok("Model V".to_owned()),
        firmware: Ok("2.0".to_owned()),
        power_state: Ok(0),
        write_cache: Ok(Some(true)),
        arbitration_burst: Ok(7),
        namespaces: Ok(vec![DriveNamespace {
            object: "an1".to_owned(),
            data_bytes: Ok(4096),
            metadata_bytes: Ok(0),
            source: "aditd".to_owned(),
        }]),
        source: "aditd".to_owned(),
    }
}

fn dmar(flags: u8) -> Vec<u8> {
    let mut table = vec![0; 48];
    table[..4].copy_from_slice(b"DMAR");
    table[4] = 48;
    (table[36], table[37]) = (45, flags);
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    table[9] = 0u8.wrapping_sub(sum);
    table
}

fn boot_option(attributes: u8, description: &str, path: &[u8]) -> Vec<u8> {
    let mut bytes = vec![7, 0, 0, 0, attributes, 0, 0, 0, path.len() as u8, 0];
    let units = description.encode_utf16().chain([0]);
    bytes.extend(units.flat_map(u16::to_le_bytes));
    bytes.extend_from_slice(path);
    bytes
}

fn config(device_control: u16, link_control: u16) -> Vec<u8> {
    let mut bytes = vec![0; 256];
    (bytes[0x06], bytes[0x34]) = (0x10, 0x40);
    bytes[0x40] = 0x10;
    bytes[0x48..0x4a].copy_from_slice(&device_control.to_le_bytes());
    bytes[0x50..0x52].copy_from_slice(&link_control.to_le_bytes());
    bytes
}

fn items<'a>(report: &'a Report, setting: &str) -> Vec<&'a Item> {
    let items = report.items.iter();
    let found: Vec<_> = items.filter(|item| item.setting == setting).collect();
    assert!(!found.is_empty(), "no {setting}");
    found
}

fn one<'a>(report: &'a Report, setting: &str) -> &'a Item {
    let found = items(report, setting);
    assert_eq!(found.len(), 1, "{found:#?}");
    found[0]
}

fn source(item: &Item) -> &str {
    item.current.as_ref().map_or("", Reading::source)
}

#[test]
fn a_node_as_wanted_differs_in_nothing() {
    let host = Host::good();
    let report = host.check("default");
    let wrong: Vec<_> = report
        .items
        .iter()
        .filter(|item| item.verdict == Verdict::Differs)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    // What the kernel's nvme driver keeps to itself is said to be so.
    let unreadable: Vec<_> = report
        .items
        .iter()
        .filter(|item| item.verdict == Verdict::Unreadable)
        .map(|item| format!("{} {}", item.setting, item.object))
        .collect();
    assert_eq!(
        unreadable,
        ["nvme.lba_metadata_bytes nvme0n1", "nvme.power_state nvme0"]
    );
    assert_eq!(report.totals.unreadable, 2);
    assert_eq!(report.totals.differs, 0);
    // One NUMA node: there is nothing to know.
    assert_eq!(
        one(&report, "pcie.numa_known").verdict,
        Verdict::NotApplicable
    );
}

#[test]
fn every_item_tells_where_it_was_read() {
    let host = Host::good();
    let report = host.check("default");
    let path = format!("/sys/firmware/efi/efivars/Boot0002-{GLOBAL} (\"UEFI HTTPv4\")");
    assert_eq!(source(one(&report, "boot.first")), path);
    let idle = one(&report, "cpu.idle_exit_latency_max_us");
    assert_eq!(idle.current_text(), "170");
    assert_eq!(idle.wanted_text(), "at most 200");
    assert!(source(idle).ends_with("cpu0/cpuidle/state2/latency (C6)"));
    for item in report.items.iter().filter(|item| item.current.is_some()) {
        assert!(!source(item).is_empty(), "{item:?}");
        assert!(!item.why.is_empty(), "{item:?}");
    }
}

#[test]
fn what_differs_is_found() {
    let host = Host::good();
    let cpus = "sys/devices/system/cpu";
    host.file(
        &format!("{cpus}/cpufreq/policy1/scaling_governor"),
        "powersave\n",
    );
    host.file(&format!("{cpus}/cpu1/cpuidle/state3/disable"), "0\n");
    host.file("proc/cpuinfo", "flags : fpu nonstop_tsc\n");
    host.file("sys/devices/system/node/node1/cpulist", "1\n");
    host.file(
        "sys/class/watchdog/watchdog0/identity",
        "Software Watchdog\n",
    );
    host.file(
        &format!("sys/devices/pci0000:00/{VFIO_DRIVE}/config"),
        config(0, 0b10),
    );
    host.file(
        &format!("sys/devices/pci0000:00/{VFIO_DRIVE}/current_link_width"),
        "2",
    );
    host.file(
        &format!("sys/devices/pci0000:00/{NIC}/net/data0/mtu"),
        "1500",
    );
    host.file("sys/class/block/nvme0n1/queue/logical_block_size", "512");
    host.file("sys/firmware/acpi/tables/DMAR", dmar(0));
    host.remove("sys/kernel/iommu_groups");
    let efi = format!("sys/firmware/efi/efivars/BootOrder-{GLOBAL}");
    host.file(&efi, [7, 0, 0, 0, 2, 0]);
    host.file(
        &format!("sys/firmware/efi/efivars/Boot0002-{GLOBAL}"),
        boot_option(1, "debian", &[4, 1, 4, 0]),
    );
    let report = host.check("default");
    for (setting, object, current) in [
        ("boot.first", "", "disk"),
        ("platform.iommu", "", "off"),
        ("platform.interrupt_remapping", "", "off"),
        ("platform.watchdog", "", "off"),
        ("cpu.governor", "", "performance and powersave"),
        ("cpu.idle_exit_latency_max_us", "", "890"),
        ("cpu.features", "", "without constant_tsc"),
        ("cpu.numa_nodes_per_socket", "", "2"),
        ("pcie.aspm", VFIO_DRIVE, "on"),
        ("pcie.full_link", VFIO_DRIVE, "off"),
        ("nic.mtu_min", "data0", "1500"),
        ("nvme.lba_data_bytes", "nvme0n1", "512"),
    ] {
        let found = items(&report, setting)
            .into_iter()
            .find(|item| item.object == object);
        let found = found.unwrap_or_else(|| panic!("no {setting} of {object}"));
        assert_eq!(found.current_text(), current, "{setting}");
        assert_eq!(found.verdict, Verdict::Differs, "{setting}");
    }
    assert_eq!(report.totals.differs, 12, "{report:#?}");
}

#[test]
fn what_cannot_be_read_says_why() {
    let host = Host::good();
    host.remove("sys/firmware/efi/efivars");
    host.remove("sys/firmware/acpi");
    host.remove("sys/devices/system/cpu/cpufreq");
    host.remove("sys/devices/system/cpu/intel_pstate");
    host.file(
        &format!("sys/devices/pci0000:00/{NIC}/config"),
        &config(0, 0)[..64],
    );
    host.file("sys/class/watchdog/watchdog0/timeout", "soon");
    host.file(
        &format!("sys/devices/pci0000:00/{NIC}/net/data0/operstate"),
        "down",
    );
    host.file(
        &format!("sys/devices/pci0000:00/{NIC}/net/data0/speed"),
        "-1",
    );
    let profile = Profile::built_in("default").unwrap();
    let unreachable = || Err("aditd cannot be asked: no such socket".to_owned());
    let report = check(&profile, &host.node(unreachable()));
    for (setting, object, why) in [
        ("boot.first", "", "efivarfs is not mounted"),
        (
            "platform.interrupt_remapping",
            "",
            "the kernel shows no ACPI tables, or only to root",
        ),
        (
            "cpu.governor",
            "",
            "no driver for P-states is loaded: firmware keeps them to itself",
        ),
        ("cpu.boost", "", "there is no such file"),
        (
            "platform.watchdog_timeout_max_s",
            "watchdog0",
            "it holds \"soon\", not a number",
        ),
        (
            "pcie.aspm",
            NIC,
            "only root may read its configuration space past the header",
        ),
        ("nic.link_speed_min_mbps", "data0", "its link is down"),
        (
            "nvme.power_state",
            VFIO_DRIVE,
            "on vfio-pci, and aditd cannot be asked: no such socket",
        ),
    ] {
        let found = items(&report, setting)
            .into_iter()
            .find(|item| item.object == object);
        let found = found.unwrap_or_else(|| panic!("no {setting} of {object}"));
        assert_eq!(found.current_text(), why, "{setting}");
        assert_eq!(found.verdict, Verdict::Unreadable, "{setting}");
    }
    host.remove("sys/firmware/efi");
    let report = host.check("default");
    let first = one(&report, "boot.first");
    assert_eq!(first.current_text(), "the node was not started by UEFI");
    assert_eq!(one(&report, "boot.uefi").verdict, Verdict::Differs);
}

#[test]
fn an_empty_host_is_told_and_never_panics() {
    let empty = tempfile::tempdir().unwrap();
    for (name, _) in firmware::BUILT_IN {
        let profile = Profile::built_in(name).unwrap();
        let node = Node::local(Tree::new(empty.path()), Ok(Vec::new()));
        let report = check(&profile, &node);
        assert_eq!(report.totals.ok, 0, "{report:#?}");
        assert!(report.totals.unreadable > 0, "{report:#?}");
    }
}

#[test]
fn of_a_node_far_away_only_its_drives_are_known() {
    let profile = Profile::built_in("default").unwrap();
    let why = "aditctl does not run on that node";
    let report = check(&profile, &Node::remote(vec![drive()], why));
    assert_eq!(one(&report, "boot.first").current_text(), why);
    assert_eq!(one(&report, "nvme.power_state").verdict, Verdict::Ok);
    assert_eq!(one(&report, "nvme.lba_data_bytes").verdict, Verdict::Ok);
    let elsewhere = report
        .items
        .iter()
        .filter(|item| !item.setting.starts_with("nvme."));
    for item in elsewhere {
        assert_eq!(item.verdict, Verdict::Unreadable, "{item:?}");
    }
}

/// Goal: who looks through a node's agent sees what who sits at the node sees. Method: both, of hosts that show
/// much, little and nothing, with and without `aditd`.
#[test]
fn a_node_that_tells_of_itself_is_the_node_that_is_looked_at() {
    let good = Host::good();
    let bare = Host::good();
    bare.remove("sys/firmware/efi");
    bare.remove("proc/self/mountinfo");
    let empty = Host(tempfile::tempdir().unwrap());
    let asked: [Known<Vec<Drive>>; 3] = [
        Ok(vec![drive()]),
        Ok(Vec::new()),
        Err("aditd cannot be asked: no such socket".to_owned()),
    ];
    let ports = [None, Some(vec!["eth7".to_owned()])];
    for host in [&good, &bare, &empty] {
        for (name, _) in firmware::BUILT_IN {
            for (drives, ports) in asked
                .iter()
                .flat_map(|one| ports.iter().map(move |p| (one, p)))
            {
                let profile = Profile::built_in(name).unwrap();
                let mut local = Node::local(Tree::new(host.path()), drives.clone());
                local.set_ports(ports.clone());
                let mut far = Node::local(Tree::new(host.path()), Ok(Vec::new()));
                far.set_ports(ports.clone());
                let json = serde_json::to_string(&Readings::of(&far)).unwrap();
                let told = Node::told(serde_json::from_str(&json).unwrap(), drives.clone());
                assert_eq!(check(&profile, &told), check(&profile, &local), "{name}");
            }
        }
    }
}

#[test]
fn roce_is_looked_at_where_a_port_has_it() {
    let host = Host::good();
    let device = format!("sys/devices/pci0000:00/{NIC}/infiniband/mlx5_0");
    host.file(
        &format!("{device}/ports/1/gid_attrs/types/0"),
        "IB/RoCE v1\n",
    );
    host.file(&format!("{device}/ports/1/gid_attrs/types/1"), "RoCE v2\n");
    host.link(
        "sys/class/infiniband/mlx5_0",
        &format!("../../devices/pci0000:00/{NIC}/infiniband/mlx5_0"),
    );
    host.file(
        "sys/kernel/config/rdma_cm/mlx5_0/ports/1/default_roce_tos",
        "106\n",
    );
    let report = host.check("roce");
    for setting in [
        "roce.device",
        "roce.gid_v2",
        "roce.default_tos",
        "nic.relaxed_ordering",
        "nic.max_read_request_min_bytes",
        "platform.sriov",
    ] {
        let item = one(&report, setting);
        assert_eq!(item.verdict, Verdict::Ok, "{item:?}");
    }
    for profile in ["lossless", "lossy"] {
        let report = host.check(profile);
        assert_eq!(one(&report, "roce.device").verdict, Verdict::Ok);
        for setting in ["roce.flow_control", "roce.ecn", "roce.dscp_trust"] {
            assert_eq!(one(&report, setting).verdict, Verdict::Unreadable);
        }
        let pfc = one(&report, "roce.flow_control");
        assert!(pfc.current_text().contains("dcb pfc show dev data0"));
    }
    host.file("sys/class/net/data0/ecn/roce_np/enable/3", "1\n");
    assert_eq!(
        one(&host.check("lossy"), "roce.ecn").verdict,
        Verdict::Differs
    );
    host.file("sys/class/net/data0/ecn/roce_rp/enable/3", "1\n");
    assert_eq!(one(&host.check("lossy"), "roce.ecn").verdict, Verdict::Ok);
    host.remove("sys/class/infiniband/mlx5_0");
    let report = host.check("roce");
    assert_eq!(one(&report, "roce.device").verdict, Verdict::Differs);
    assert_eq!(one(&report, "roce.gid_v2").verdict, Verdict::Unreadable);
}

#[test]
fn the_port_of_the_default_route_is_no_data_port_unless_it_is_named() {
    let host = Host::good();
    host.file(
        "proc/net/route",
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
         data0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\n",
    );
    let report = host.check("default");
    assert_eq!(one(&report, "nic.mtu_min").verdict, Verdict::NotApplicable);
    let profile = Profile::built_in("default").unwrap();
    let mut node = host.node(Ok(Vec::new()));
    let named = ["0C:42:A1:00:00:01", "data9"].map(str::to_owned).to_vec();
    node.set_ports(Some(named));
    let report = check(&profile, &node);
    let found: Vec<_> = items(&report, "nic.mtu_min")
        .into_iter()
        .map(|item| (item.object.as_str(), item.verdict))
        .collect();
    assert_eq!(
        found,
        [("data0", Verdict::Ok), ("data9", Verdict::Unreadable)]
    );
}

#[test]
fn firmware_revisions_are_compared_by_model() {
    let host = Host::good();
    let text = "schema = 1
summary = \"s\"
[[nvme.firmware]]
model = \"Model V\"
want = \"2.1\"
why = \"w\"
[[nvme.firmware]]
model = \"Model *\"
want = \"1.0\"
why = \"w\"
[[system.firmware]]
product = \"AS -1115*\"
want = \"3.4\"
why = \"w\"
";
    let profile = Profile::parse("test", text).unwrap();
    let report = check(&profile, &host.node(Ok(vec![drive()])));
    let found: Vec<_> = report
        .items
        .iter()
        .map(|item| (item.object.as_str(), item.current_text(), item.verdict))
        .collect();
    let wanted = [
        ("drive a", "2.0".to_owned(), Verdict::Differs),
        ("nvme0", "1.0".to_owned(), Verdict::Ok),
        ("AS -1115HS", "3.3".to_owned(), Verdict::Differs),
    ];
    assert_eq!(found, wanted);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_in_any_file_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..80), which in 0usize..18,
    ) {
        let host = Host::good();
        let files = [
            "proc/cpuinfo".to_owned(),
            "proc/cmdline".to_owned(),
            "proc/net/route".to_owned(),
            format!("sys/firmware/efi/efivars/BootOrder-{GLOBAL}"),
            format!("sys/firmware/efi/efivars/Boot0002-{GLOBAL}"),
            format!("sys/firmware/efi/efivars/SecureBoot-{GLOBAL}"),
            "sys/firmware/acpi/tables/DMAR".to_owned(),
            format!("sys/devices/pci0000:00/{NIC}/config"),
            format!("sys/devices/pci0000:00/{NIC}/sriov_totalvfs"),
            format!("sys/devices/pci0000:00/{NIC}/max_link_speed"),
            format!("sys/devices/pci0000:00/{NIC}/net/data0/mtu"),
            "sys/class/watchdog/watchdog0/timeout".to_owned(),
            "sys/class/watchdog/watchdog0/identity".to_owned(),
            "sys/devices/system/cpu/cpu0/cpuidle/state2/latency".to_owned(),
            "sys/devices/system/cpu/cpufreq/policy0/scaling_governor".to_owned(),
            "sys/devices/system/cpu/smt/active".to_owned(),
            "sys/class/block/nvme0n1/queue/write_cache".to_owned(),
            "sys/class/dmi/id/product_name".to_owned(),
        ];
        host.file(&files[which], &bytes);
        for name in ["default", "latency", "lossless", "lossy"] {
            host.check(name);
        }
    }
}

/// Not a test of the machine that runs it: only that nothing panics, and that each setting is read.
#[test]
fn this_machine_can_be_looked_at() {
    let node = Node::local(Tree::new("/"), Err("aditd was not asked".to_owned()));
    let all: String = SETTINGS
        .iter()
        .map(|setting| setting.name())
        .collect::<Vec<_>>()
        .join(" ");
    assert!(all.contains("nvme.power_state"));
    for (name, _) in firmware::BUILT_IN {
        let report = check(&Profile::built_in(name).unwrap(), &node);
        assert!(!report.items.is_empty());
    }
}
