//! What is read of a host.

use std::fs;
use std::path::{Path, PathBuf};

use machine::{Config, Facts, FactsError, Holder, IommuGap, PciLink, RdmaNode, RouteFamily};

use crate::fake::FakeHost;
use crate::{assert_golden, facts};

fn holders(facts: &Facts, name: &str) -> Vec<Holder> {
    facts
        .block
        .iter()
        .find(|each| each.name == name)
        .unwrap()
        .holders
        .clone()
}

/// A host with one of everything.
fn rich() -> FakeHost {
    let host = FakeHost::new();
    host.nvme(1, 11);
    let port = host.nic(0, 20);
    host.default_route("eth0");
    let link = |name: &str, text: &str| {
        host.file(&format!("sys/bus/pci/devices/0000:01:00.0/{name}"), text);
    };
    link("current_link_speed", "8.0 GT/s PCIe\n");
    link("max_link_speed", "16.0 GT/s PCIe\n");
    link("current_link_width", "2\n");
    link("max_link_width", "4\n");
    link("numa_node", "0\n");
    host.dir("sys/bus/pci/devices/0000:01:00.0/msi_irqs/33");
    host.file("proc/irq/33/smp_affinity_list", "0-3\n");
    host.file("proc/irq/33/effective_affinity_list", "1\n");
    host.dir("proc/irq/33/nvme1q1");
    host.file("proc/irq/9/smp_affinity_list", "0-3\n");
    host.file("sys/bus/pci/slots/7/address", "0000:01:00\n");
    host.partition(1);
    host.mount("259:9", "/data", "/dev/nvme1n1p1");
    host.link(
        "sys/class/infiniband/rxe0",
        "sys/devices/virtual/infiniband/rxe0",
    );
    host.file("sys/devices/virtual/infiniband/rxe0/parent", "eth0\n");
    assert!(host.path().join(port).exists());
    host
}

#[test]
fn a_host_is_read_as_it_is() {
    let text = serde_json::to_string_pretty(&facts(&rich())).unwrap();
    assert_golden("facts.json", &(text + "\n"));
}

#[test]
fn facts_survive_being_written() {
    let facts = facts(&rich());
    let text = serde_json::to_string(&facts).unwrap();
    assert_eq!(serde_json::from_str::<Facts>(&text).unwrap(), facts);
}

#[test]
fn link_speed_and_slot_are_read() {
    let facts = facts(&rich());
    let device = facts.device("0000:01:00.0".parse().unwrap()).unwrap();
    let link = PciLink {
        speed_mts: Some(8000),
        speed_max_mts: Some(16000),
        width: Some(2),
        width_max: Some(4),
    };
    assert_eq!(device.link, Some(link));
    assert_eq!(device.slot.as_deref(), Some("7"));
    assert_eq!(device.node, Some(0));
}

#[test]
fn reading_changes_nothing() {
    let host = rich();
    facts(&host);
    assert!(host.writes.borrow().is_empty());
}

#[test]
fn a_host_without_anything_but_proc_is_read() {
    let host = FakeHost::new();
    host.remove("sys");
    let facts = facts(&host);
    assert!(facts.pci.is_empty() && facts.block.is_empty());
    assert_eq!(facts.nodes.len(), 1);
    assert_eq!(facts.nodes[0].node, None);
}

#[test]
fn without_a_list_of_mounts_nothing_is_called_unused() {
    let host = FakeHost::new();
    host.remove("proc/self/mountinfo");
    let error = Facts::read(&host).unwrap_err();
    assert!(matches!(&error, FactsError::Read { path, .. } if path == "proc/self/mountinfo"));
    assert!(
        error.to_string().contains("/proc/self/mountinfo"),
        "{error}"
    );
}

#[test]
fn every_kind_of_holder_is_seen() {
    let host = FakeHost::new();
    for number in 1..=8 {
        host.nvme(number, 10 + number);
    }
    host.mount("259:8", "/by\\040number", "/dev/root");
    // btrfs: a number of its own, so only the source tells.
    host.mount("0:44", "/by\\040name", "/dev/nvme2n1");
    host.file(
        "proc/swaps",
        "Filename Type Size\n/dev/nvme3n1 partition 1 0 -2\n",
    );
    let dm = "sys/devices/virtual/block/dm-0";
    host.disk(dm, 253, 0);
    host.file(&format!("{dm}/dm/name"), "vg-data\n");
    host.link("sys/class/block/nvme4n1/holders/dm-0", dm);
    host.mount("253:0", "/lv", "/dev/mapper/vg-data");
    host.link(
        "sys/class/block/nvme5n1/holders/md127",
        "sys/devices/virtual/block/md127",
    );
    host.link(
        "sys/fs/btrfs/uuid-1/devices/nvme6n1",
        "sys/class/block/nvme6n1",
    );
    host.process(42, "fio", "/dev/nvme7n1");
    host.process(43, "cat", "/dev/null");
    host.claimed.borrow_mut().insert("dev/nvme8n1".to_owned());
    let facts = facts(&host);
    let name = |text: &str| text.to_owned();
    assert_eq!(
        holders(&facts, "nvme1n1"),
        [Holder::Mount(name("/by number"))]
    );
    assert_eq!(
        holders(&facts, "nvme2n1"),
        [Holder::Mount(name("/by name"))]
    );
    assert_eq!(holders(&facts, "nvme3n1"), [Holder::Swap]);
    assert_eq!(
        holders(&facts, "nvme4n1"),
        [Holder::Device(name("dm-0 (vg-data)"))]
    );
    assert_eq!(holders(&facts, "nvme5n1"), [Holder::Device(name("md127"))]);
    assert_eq!(holders(&facts, "nvme6n1"), [Holder::Btrfs(name("uuid-1"))]);
    assert_eq!(
        holders(&facts, "nvme7n1"),
        [Holder::Process(name("fio[42]"))]
    );
    assert_eq!(holders(&facts, "nvme8n1"), [Holder::Kernel]);
    assert_eq!(holders(&facts, "dm-0"), [Holder::Mount(name("/lv"))]);
}

#[test]
fn a_claim_on_a_partition_is_told_once() {
    let host = FakeHost::new();
    host.nvme(1, 11);
    host.partition(1);
    let claimed = ["dev/nvme1n1", "dev/nvme1n1p1"].map(str::to_owned);
    host.claimed.borrow_mut().extend(claimed);
    let facts = facts(&host);
    assert_eq!(holders(&facts, "nvme1n1p1"), [Holder::Kernel]);
    assert_eq!(holders(&facts, "nvme1n1"), []);
}

#[test]
fn a_multipath_namespace_belongs_to_each_of_its_controllers() {
    let host = FakeHost::new();
    for number in [1, 2] {
        let folder = host.nvme(number, 10 + number);
        let controller = format!("{folder}/nvme/nvme{number}");
        host.remove(&format!("{controller}/nvme{number}n1"));
        host.remove(&format!("sys/class/block/nvme{number}n1"));
        let path = format!("{controller}/nvme0c{number}n1");
        host.disk(&path, 0, 0);
        host.file(&format!("{path}/hidden"), "1\n");
        host.link(
            &format!("sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme{number}"),
            &controller,
        );
    }
    let subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys0";
    host.disk(&format!("{subsystem}/nvme0n1"), 259, 0);
    host.file(&format!("{subsystem}/nvme0n1/nsid"), "1\n");
    host.link("sys/class/nvme-subsystem/nvme-subsys0", subsystem);
    let facts = facts(&host);
    let names: Vec<&str> = facts.block.iter().map(|each| each.name.as_str()).collect();
    assert_eq!(names, ["nvme0n1"]);
    let pci: Vec<String> = facts.block[0].pci.iter().map(ToString::to_string).collect();
    assert_eq!(pci, ["0000:01:00.0", "0000:02:00.0"]);
    for device in facts.pci.iter().filter(|device| device.is_nvme()) {
        let nvme = device.nvme.as_ref().unwrap();
        assert_eq!(nvme.namespaces[0].name, "nvme0n1");
        assert_eq!(nvme.namespaces[0].nsid, Some(1));
    }
}

#[test]
fn the_management_nic_is_found_below_a_vlan_on_a_bond() {
    let host = FakeHost::new();
    host.nic(0, 20);
    host.nic(1, 21);
    host.nic(2, 22);
    for (name, lower) in [("bond0", "eth0"), ("bond0", "eth1"), ("bond0.7", "bond0")] {
        let folder = format!("sys/devices/virtual/net/{name}");
        host.interface(name, &folder, 9);
        host.link(
            &format!("{folder}/lower_{lower}"),
            &format!("sys/class/net/{lower}"),
        );
    }
    host.default_route("bond0.7");
    let facts = facts(&host);
    let found: Vec<String> = facts
        .management()
        .iter()
        .map(|(at, name)| format!("{at} {name}"))
        .collect();
    assert_eq!(found, ["0000:00:10.0 bond0.7", "0000:00:11.0 bond0.7"]);
    let routed: Vec<_> = facts
        .net
        .iter()
        .filter(|each| each.default_routes == [RouteFamily::Ipv4])
        .collect();
    assert_eq!(routed.len(), 1);
}

#[test]
fn interfaces_in_a_ring_end_the_search() {
    let host = FakeHost::new();
    for (name, lower) in [("a", "b"), ("b", "a")] {
        let folder = format!("sys/devices/virtual/net/{name}");
        host.interface(name, &folder, 9);
        host.link(
            &format!("{folder}/lower_{lower}"),
            &format!("sys/class/net/{lower}"),
        );
    }
    host.default_route("a");
    assert!(facts(&host).management().is_empty());
}

#[test]
fn who_drives_a_group_from_user_space_is_seen() {
    let host = FakeHost::new();
    host.nvme(1, 11);
    host.dir("sys/bus/pci/devices/0000:01:00.0/vfio-dev/vfio3");
    host.process(7, "aditd", "/dev/vfio/11");
    host.process(8, "qemu", "/dev/vfio/devices/vfio3");
    let facts = facts(&host);
    assert_eq!(facts.group(11).unwrap().users, ["aditd[7]"]);
    assert_eq!(
        facts
            .device("0000:01:00.0".parse().unwrap())
            .unwrap()
            .vfio_users,
        ["qemu[8]"]
    );
}

/// What is missing for an IOMMU, of a host with this command line, tables and processor.
fn gap(command_line: &str, table: &str, cpuinfo: &str) -> IommuGap {
    let host = FakeHost::new();
    host.no_iommu();
    host.file("proc/cmdline", command_line);
    host.file("proc/cpuinfo", cpuinfo);
    if !table.is_empty() {
        host.file(&format!("sys/firmware/acpi/tables/{table}"), "");
    }
    facts(&host).iommu.gap.unwrap()
}

#[test]
fn what_an_iommu_wants_is_named() {
    let intel = "vendor_id\t: GenuineIntel\nflags\t\t: fpu vme\n";
    let amd = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu vme\n";
    let guest = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu hypervisor vme\n";
    let table = [
        gap("quiet", "DMAR", intel),
        gap("quiet", "DMAR", guest),
        gap("intel_iommu=on intel_iommu=off", "DMAR", intel),
        gap("intel_iommu=on", "DMAR", intel),
        gap("iommu=off", "IVRS", amd),
        gap("amd_iommu=off", "IVRS", amd),
        gap("quiet", "", intel),
        gap("quiet", "", amd),
        gap("quiet", "", guest),
        gap("quiet", "", ""),
    ];
    let text: String = table.iter().map(|gap| format!("{gap}\n")).collect();
    assert_golden("iommu-gaps.txt", &text);
}

/// Every plain file below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files(&entry.path(), found);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
}

#[test]
fn no_text_in_any_file_makes_reading_or_planning_panic() {
    let host = rich();
    host.process(7, "aditd", "/dev/vfio/11");
    host.file("sys/bus/pci/devices/0000:01:00.0/sriov_numvfs", "0\n");
    let config: Config = serde_json::from_str(
        r#"{"hugepages": [{"size_kib": 2048, "pages": 18446744073709551615,
                           "reservation": "best_effort"},
                          {"size_kib": 1048576, "pages": 1}],
            "vfio": [{"class": "nvme"}, {"slot": "7"}, {"serial": "S1"}],
            "nic": [{"port": {"interface": "eth0"}, "mode": "vfio"}]}"#,
    )
    .unwrap();
    let mut all = Vec::new();
    files(host.path(), &mut all);
    assert!(all.len() > 40, "{all:?}");
    let texts = [
        "",
        "\n\n",
        " - ",
        "-1",
        "0",
        "18446744073709551615",
        "99999999999999999999",
        "0xffffffff",
        "0-4294967295",
        "a\tb\tc\td\te\tf\tg\th",
        "0.0 GT/s",
        "9999999.9 GT/s",
        "\u{fffd}/\\04",
        "MemTotal: 18446744073709551615 kB\nMemFree: 18446744073709551615 kB\n\
         Active(file): 18446744073709551615 kB",
        "1 2 3 4 5 6 - 7 /dev/",
        "eth0 00000000 0 zz 0 0 0 00000000",
    ];
    for path in all {
        let before = fs::read(&path).unwrap();
        for text in texts {
            fs::write(&path, text).unwrap();
            if let Ok(facts) = Facts::read(&host) {
                let plan = machine::plan(&facts, &config).to_string();
                assert!(!plan.is_empty());
            }
        }
        // As far as it was written when the power went.
        fs::write(&path, &before[..before.len() / 2]).unwrap();
        let _ = Facts::read(&host);
        fs::write(&path, before).unwrap();
    }
}

#[test]
fn this_machine_is_read() {
    // Whatever it is: it has processors and some memory.
    let facts = Facts::read(&machine::Root::new("/")).unwrap();
    assert!(!facts.cpus.online.0.is_empty());
    assert!(facts.nodes.iter().any(|node| node.memory_kib > 0));
}

#[test]
fn rdma_devices_are_read_with_their_addresses() {
    let host = FakeHost::new();
    host.nic(0, 20);
    let folder = "sys/devices/virtual/infiniband/rxe_eth0";
    host.link("sys/class/infiniband/rxe_eth0", folder);
    host.file(&format!("{folder}/parent"), "eth0\n");
    host.file(&format!("{folder}/node_guid"), "5054:00ff:fe00:0000\n");
    let port = |name: &str, text: &str| host.file(&format!("{folder}/ports/1/{name}"), text);
    port("state", "4: ACTIVE\n");
    port("link_layer", "Ethernet\n");
    port("rate", "2.5 Gb/sec (1X SDR)\n");
    port("gids/0", "fe80:0000:0000:0000:5054:00ff:fe00:0000\n");
    port("gids/1", "0000:0000:0000:0000:0000:ffff:0a09:0001\n");
    port("gids/2", "0000:0000:0000:0000:0000:0000:0000:0000\n");
    for (index, kind) in [(0, "IB/RoCE v1\n"), (1, "RoCE v2\n")] {
        port(&format!("gid_attrs/types/{index}"), kind);
        port(&format!("gid_attrs/ndevs/{index}"), "eth0\n");
    }
    host.file(
        "sys/kernel/config/rdma_cm/rxe_eth0/ports/1/default_roce_tos",
        "106\n",
    );

    let nodes = RdmaNode::read(&host);
    let [node] = nodes.as_slice() else {
        panic!("{nodes:?}");
    };
    assert_eq!(node.parent.as_deref(), Some("eth0"));
    assert_eq!(node.pci, Some("0000:00:10.0".parse().unwrap()));
    let port = &node.ports[0];
    assert_eq!((port.number, port.state.as_str()), (1, "ACTIVE"));
    assert_eq!(port.default_tos, Some(106));
    assert_eq!(port.interface, Some(("eth0".to_owned(), Some(1500))));
    let addresses: Vec<String> = port.gids.iter().map(|g| g.address().to_string()).collect();
    assert_eq!(addresses, ["fe80::5054:ff:fe00:0", "10.9.0.1"]);
    assert!(!port.gids[0].is_roce_v2() && port.gids[1].is_roce_v2());
    let problems = port.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("4200"), "{problems:?}");
}
