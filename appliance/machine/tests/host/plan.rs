//! What is planned for a host.

use machine::{
    Action, Claim, Config, CpuList, Facts, Former, HugepagePool, HugepageRule, NicMode, NicRule,
    NumaNode, PciAddress, Plan, Reason, Reservation, Selector, Subject,
};
use proptest::prelude::*;

use crate::fake::FakeHost;
use crate::{assert_golden, plan_of};

fn at(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn address(text: &str) -> Selector {
    Selector::Address(at(text))
}

fn all_nvme() -> Vec<Selector> {
    vec![Selector::Class("nvme".to_owned())]
}

fn vfio(vfio: Vec<Selector>) -> Config {
    Config {
        vfio,
        ..Config::default()
    }
}

fn port(port: &str, mode: NicMode) -> NicRule {
    NicRule {
        port: address(port),
        mode,
        soft_roce: false,
    }
}

fn rule(node: Option<u32>, size_kib: u64, pages: u64, reservation: Reservation) -> HugepageRule {
    HugepageRule {
        node,
        size_kib,
        pages,
        reservation,
    }
}

fn reasons(plan: &Plan, subject: &Subject) -> Vec<Reason> {
    let found = plan
        .refusals
        .iter()
        .find(|refusal| refusal.subject == *subject);
    found
        .map(|refusal| refusal.reasons.clone())
        .unwrap_or_default()
}

#[test]
fn nothing_wanted_is_nothing_done() {
    let host = FakeHost::new();
    host.nvme(1, 11);
    assert_eq!(plan_of(&host, &Config::default()), Plan::default());
}

#[test]
fn a_storage_node_is_prepared() {
    let host = FakeHost::new();
    for number in 1..=4 {
        host.nvme(number, 10 + number);
    }
    for number in 0..=2 {
        host.nic(number, 20 + number);
    }
    host.default_route("eth0");
    host.link(
        "sys/class/infiniband/mlx5_0",
        "sys/devices/pci0000:00/0000:00:12.0/infiniband/mlx5_0",
    );
    let config = Config {
        hugepages: vec![
            rule(Some(0), 2048, 256, Reservation::Required),
            rule(None, 1_048_576, 1, Reservation::BestEffort),
        ],
        vfio: all_nvme(),
        except: vec![Selector::Serial("S4".to_owned())],
        nic: vec![
            port("0000:00:11.0", NicMode::Vfio),
            port("0000:00:12.0", NicMode::Verbs),
            port("0000:00:10.0", NicMode::Kernel),
        ],
        ..Config::default()
    };
    assert_golden("storage-node.txt", &plan_of(&host, &config).to_string());
}

#[test]
fn every_reason_is_named() {
    let host = FakeHost::new();
    let folder = host.nvme(1, 11);
    host.partition(1);
    host.mount("259:9", "/data", "/dev/nvme1n1p1");
    host.process(42, "fio", "/dev/nvme1n1");
    host.file(&format!("{folder}/sriov_numvfs"), "2\n");
    host.function(&["0000:00:1f.2"], 0x010601, "ahci", 11);
    // A root port in the group does no harm.
    host.function(&["0000:00:1c.0"], 0x060400, "pcieport", 11);
    // In the same group, and refused for a reason of its own.
    host.nvme(2, 11);
    host.file("proc/swaps", "Filename\n/dev/nvme2n1 partition\n");
    // In a group with one that is refused only because of its group.
    host.nvme(3, 13);
    host.function(&["0000:00:1f.3"], 0x040300, "snd_hda_intel", 13);
    host.function(&["0000:00:1e.0"], 0x010802, "nvme", 14);
    host.remove("sys/devices/pci0000:00/0000:00:1e.0/iommu_group");
    host.file(
        "sys/devices/pci0000:00/0000:00:1e.0/driver_override",
        "pci-stub\n",
    );
    host.remove("sys/bus/pci/drivers/vfio-pci");
    let nic = host.nic(0, 20);
    host.default_route("eth0");
    host.link(
        &format!("{nic}/net/eth0/upper_br0"),
        "sys/devices/virtual/net/br0",
    );
    let mut vfio = all_nvme();
    vfio.extend([
        address("0000:00:1f.2"),
        address("0000:00:1d.0"),
        Selector::Serial("S9".to_owned()),
        Selector::Class("disk".to_owned()),
        Selector::Interface("eth0".to_owned()),
        Selector::Slot("3".to_owned()),
    ]);
    let config = Config {
        vfio,
        nic: vec![port("0000:00:10.0", NicMode::Vfio)],
        management: Some(Selector::Interface("eth7".to_owned())),
        hugepages: vec![
            rule(Some(3), 2048, 1, Reservation::Required),
            rule(Some(0), 64, 1, Reservation::Required),
            rule(Some(0), 1_048_576, 64, Reservation::Required),
            rule(Some(0), 2048, 1, Reservation::Required),
            rule(None, 2048, 2, Reservation::BestEffort),
        ],
        ..Config::default()
    };
    assert_golden("every-reason.txt", &plan_of(&host, &config).to_string());
}

#[test]
fn without_an_iommu_the_missing_argument_is_named() {
    let host = FakeHost::new();
    host.nvme(1, 11);
    host.no_iommu();
    host.remove("sys/bus/pci/devices/0000:01:00.0/iommu_group");
    host.file("proc/cmdline", "quiet");
    host.file("sys/firmware/acpi/tables/DMAR", "");
    let plan = plan_of(&host, &vfio(all_nvme()));
    assert_eq!(
        plan.to_string(),
        "nothing to do\nrefused:\n  0000:01:00.0: bind to vfio-pci\n    there is no IOMMU: boot the \
         kernel with the argument intel_iommu=on\n"
    );
    assert_eq!(
        plan.refusals[0].to_string(),
        "0000:01:00.0: bind to vfio-pci: there is no IOMMU: boot the kernel with the argument \
         intel_iommu=on"
    );
}

#[test]
fn a_group_is_taken_as_a_whole() {
    let host = FakeHost::new();
    host.nvme(1, 11);
    host.nvme(2, 11);
    let alone = plan_of(&host, &vfio(vec![address("0000:01:00.0")]));
    let reason = Reason::ForeignMember {
        group: 11,
        member: "0000:02:00.0".to_owned(),
        driver: Some("nvme".to_owned()),
    };
    assert_eq!(
        reasons(&alone, &Subject::Bind(at("0000:01:00.0"))),
        [reason]
    );
    assert!(alone.actions.is_empty());
    let both = plan_of(&host, &vfio(all_nvme()));
    assert!(both.refusals.is_empty(), "{both}");
    assert_eq!(both.actions.len(), 2);
}

#[test]
fn a_member_that_is_no_pci_function_is_foreign() {
    let host = FakeHost::new();
    host.nvme(1, 11);
    host.link(
        "sys/kernel/iommu_groups/11/devices/serial0",
        "sys/devices/platform/serial0",
    );
    let plan = plan_of(&host, &vfio(all_nvme()));
    let reasons = reasons(&plan, &Subject::Bind(at("0000:01:00.0")));
    assert!(
        reasons[0]
            .to_string()
            .starts_with("serial0, which is no PCI function")
    );
}

#[test]
fn a_drive_behind_vmd_is_refused() {
    let host = FakeHost::new();
    host.function(&["0000:00:0e.0"], 0x010400, "vmd", 5);
    host.function(&["0000:00:0e.0", "10000:e0:06.0"], 0x060400, "pcieport", 5);
    host.function(
        &["0000:00:0e.0", "10000:e0:06.0", "10000:e1:00.0"],
        0x010802,
        "nvme",
        5,
    );
    let plan = plan_of(&host, &vfio(all_nvme()));
    let reasons = reasons(&plan, &Subject::Bind(at("10000:e1:00.0")));
    assert_eq!(reasons[0], Reason::BehindVmd(at("0000:00:0e.0")));
}

#[test]
fn a_port_is_spared_when_nothing_tells_how_the_node_is_reached() {
    let host = FakeHost::new();
    host.nic(0, 20);
    host.nic(1, 21);
    let nic = vec![port("0000:00:11.0", NicMode::Vfio)];
    let mut config = Config {
        nic,
        ..Config::default()
    };
    let subject = Subject::Bind(at("0000:00:11.0"));
    assert_eq!(
        reasons(&plan_of(&host, &config), &subject),
        [Reason::ManagementUnknown]
    );
    config.management = Some(Selector::Mac("52:54:00:00:00:00".to_owned()));
    assert!(plan_of(&host, &config).refusals.is_empty());
    config.management = Some(Selector::Mac("52:54:00:00:00:01".to_owned()));
    let reason = Reason::Management("mac \"52:54:00:00:00:01\"".to_owned());
    assert_eq!(reasons(&plan_of(&host, &config), &subject), [reason]);
}

#[test]
fn a_port_below_the_management_bond_is_spared() {
    let host = FakeHost::new();
    host.nic(0, 20);
    let folder = "sys/devices/virtual/net/bond0";
    host.interface("bond0", folder, 0);
    host.link(&format!("{folder}/lower_eth0"), "sys/class/net/eth0");
    host.default_route("bond0");
    let nic = vec![port("0000:00:10.0", NicMode::Vfio)];
    let plan = plan_of(
        &host,
        &Config {
            nic,
            ..Config::default()
        },
    );
    let reason = Reason::Management("bond0".to_owned());
    assert_eq!(reasons(&plan, &Subject::Bind(at("0000:00:10.0"))), [reason]);
}

#[test]
fn two_modes_for_a_port_are_refused_and_it_stays() {
    let host = FakeHost::new();
    host.nic(0, 20);
    let nic = vec![
        port("0000:00:10.0", NicMode::Vfio),
        port("0000:00:10.0", NicMode::Kernel),
    ];
    let plan = plan_of(
        &host,
        &Config {
            nic,
            ..Config::default()
        },
    );
    assert!(plan.actions.is_empty());
    assert_eq!(
        reasons(&plan, &Subject::Port(at("0000:00:10.0"))),
        [Reason::TwoModes]
    );
}

#[test]
fn verbs_wants_an_rdma_device() {
    let host = FakeHost::new();
    host.nic(0, 20);
    let nic = vec![port("0000:00:10.0", NicMode::Verbs)];
    let plan = plan_of(
        &host,
        &Config {
            nic,
            ..Config::default()
        },
    );
    assert_eq!(
        reasons(&plan, &Subject::Port(at("0000:00:10.0"))),
        [Reason::NoRdma]
    );
}

#[test]
fn soft_roce_is_added_only_to_a_port_without_an_rdma_device() {
    let host = FakeHost::new();
    host.nic(0, 20);
    host.nic(1, 21);
    host.link(
        "sys/class/infiniband/mlx5_0",
        "sys/devices/pci0000:00/0000:00:11.0/infiniband/mlx5_0",
    );
    let soft = |at: &str, mode| NicRule {
        soft_roce: true,
        ..port(at, mode)
    };
    let config = |nic| Config {
        nic,
        ..Config::default()
    };
    let both = config(vec![
        soft("0000:00:10.0", NicMode::Verbs),
        soft("0000:00:11.0", NicMode::Verbs),
    ]);
    let plan = plan_of(&host, &both);
    let add = Action::AddSoftRoce {
        name: "rxe_eth0".to_owned(),
        interface: "eth0".to_owned(),
    };
    assert_eq!((plan.actions, plan.refusals), (vec![add], vec![]));

    let plan = plan_of(&host, &config(vec![soft("0000:00:10.0", NicMode::Kernel)]));
    assert_eq!(
        reasons(&plan, &Subject::Port(at("0000:00:10.0"))),
        [Reason::SoftRoceWithoutVerbs]
    );
}

#[test]
fn a_port_for_the_kernel_loses_its_soft_roce_device_but_no_other() {
    let host = FakeHost::new();
    host.nic(0, 20);
    for name in ["rxe_eth0", "mine"] {
        let folder = format!("sys/devices/virtual/infiniband/{name}");
        host.file(&format!("{folder}/parent"), "eth0\n");
        host.link(&format!("sys/class/infiniband/{name}"), &folder);
    }
    let plan = plan_of(
        &host,
        &Config {
            nic: vec![port("0000:00:10.0", NicMode::Kernel)],
            ..Config::default()
        },
    );
    let name = "rxe_eth0".to_owned();
    assert_eq!(plan.actions, [Action::RemoveSoftRoce { name }]);
}

/// A host whose first drive is on vfio-pci, and the claim on it.
fn bound() -> (FakeHost, Claim) {
    let host = FakeHost::new();
    let folder = host.nvme(1, 11);
    host.remove(&format!("{folder}/nvme"));
    host.remove("sys/class/block/nvme1n1");
    host.link(&format!("{folder}/driver"), "sys/bus/pci/drivers/vfio-pci");
    host.file(&format!("{folder}/driver_override"), "vfio-pci\n");
    host.file("dev/vfio/11", "");
    let claim = Claim {
        address: at("0000:01:00.0"),
        former: Former::Driver("nvme".to_owned()),
        known_as: vec![Selector::Serial("S1".to_owned())],
    };
    (host, claim)
}

#[test]
fn what_is_bound_stays_and_is_found_by_the_serial_of_its_claim() {
    let (host, claim) = bound();
    let vfio = vec![Selector::Serial("S1".to_owned())];
    let mut config = Config {
        vfio,
        ..Config::default()
    };
    assert_eq!(
        plan_of(&host, &config).refusals[0].reasons,
        [Reason::SerialNotShown(1)],
        "nothing remembers the serial"
    );
    config.claims = vec![claim];
    let plan = plan_of(&host, &config);
    assert_eq!(
        plan.to_string(),
        "nothing to do\nnotes:\n  0000:01:00.0: is bound to vfio-pci\n"
    );
}

#[test]
fn a_claim_that_nothing_asks_for_is_given_back_to_its_driver() {
    let (host, claim) = bound();
    let plan = plan_of(
        &host,
        &Config {
            claims: vec![claim],
            ..Config::default()
        },
    );
    assert_eq!(
        plan.to_string(),
        "to do:\n  0000:01:00.0: give back to nvme\n"
    );
}

#[test]
fn what_somebody_else_bound_to_vfio_is_left_alone() {
    let (host, _) = bound();
    assert_eq!(plan_of(&host, &Config::default()), Plan::default());
}

#[test]
fn a_claim_in_use_is_not_given_back() {
    let (host, claim) = bound();
    host.process(7, "aditd", "/dev/vfio/11");
    let plan = plan_of(
        &host,
        &Config {
            claims: vec![claim],
            ..Config::default()
        },
    );
    assert!(plan.actions.is_empty());
    let reason = Reason::InUse(vec!["aditd[7]".to_owned()]);
    assert_eq!(
        reasons(&plan, &Subject::GiveBack(at("0000:01:00.0"))),
        [reason]
    );
}

#[test]
fn a_wish_that_is_not_understood_gives_nothing_back() {
    let (host, claim) = bound();
    let vfio = vec![Selector::Serial("S1-mistyped".to_owned())];
    let plan = plan_of(
        &host,
        &Config {
            vfio,
            claims: vec![claim],
            ..Config::default()
        },
    );
    assert!(plan.actions.is_empty(), "{plan}");
    assert_eq!(plan.refusals.len(), 1);
}

#[test]
fn a_port_for_the_kernel_is_given_back_by_the_name_that_it_had() {
    let host = FakeHost::new();
    let folder = host.nic(0, 20);
    host.remove("sys/class/net/eth0");
    host.link(&format!("{folder}/driver"), "sys/bus/pci/drivers/vfio-pci");
    let claim = Claim {
        address: at("0000:00:10.0"),
        former: Former::Driver("virtio-pci".to_owned()),
        known_as: vec![Selector::Mac("52:54:00:AA:00:00".to_owned())],
    };
    let named = Selector::Mac("52:54:00:aa:00:00".to_owned());
    let nic = vec![NicRule {
        port: named,
        mode: NicMode::Kernel,
        soft_roce: false,
    }];
    let mut config = Config {
        nic,
        claims: vec![claim],
        ..Config::default()
    };
    let plan = plan_of(&host, &config);
    assert_eq!(
        plan.to_string(),
        "to do:\n  0000:00:10.0: give back to virtio-pci\n"
    );
    config.claims.clear();
    assert_eq!(
        plan_of(&host, &config).refusals[0].reasons,
        [Reason::NotFound]
    );
}

#[test]
fn a_port_for_the_kernel_is_given_back_without_a_claim() {
    let host = FakeHost::new();
    let folder = host.nic(0, 20);
    host.link(&format!("{folder}/driver"), "sys/bus/pci/drivers/vfio-pci");
    let nic = vec![port("0000:00:10.0", NicMode::Verbs)];
    let plan = plan_of(
        &host,
        &Config {
            nic,
            ..Config::default()
        },
    );
    assert_eq!(
        plan.to_string(),
        "to do:\n  0000:00:10.0: give back to whichever driver the kernel chooses\n"
    );
}

#[test]
fn a_bind_that_was_cut_short_is_finished_and_remembers_the_driver() {
    let host = FakeHost::new();
    let folder = host.nvme(1, 11);
    host.remove(&format!("{folder}/driver"));
    host.file(&format!("{folder}/driver_override"), "vfio-pci\n");
    let claim = Claim {
        address: at("0000:01:00.0"),
        former: Former::Driver("nvme".to_owned()),
        known_as: vec![],
    };
    let config = Config {
        claims: vec![claim.clone()],
        ..vfio(all_nvme())
    };
    let plan = plan_of(&host, &config);
    assert_eq!(plan.actions.len(), 1);
    assert_eq!(
        machine::claim_of(&plan.actions[0]).unwrap().former,
        claim.former
    );
    let dropped = plan_of(
        &host,
        &Config {
            claims: vec![claim],
            ..Config::default()
        },
    );
    assert_eq!(
        dropped.to_string(),
        "to do:\n  0000:01:00.0: give back to nvme\n"
    );
}

#[test]
fn an_exception_by_serial_spares_whatever_shows_no_serial() {
    let host = FakeHost::new();
    host.nvme(1, 11);
    let silent = host.nvme(2, 12);
    host.remove(&format!("{silent}/nvme"));
    host.remove(&format!("{silent}/driver"));
    host.remove("sys/class/block/nvme2n1");
    let except = vec![Selector::Serial("S7".to_owned())];
    let plan = plan_of(
        &host,
        &Config {
            except,
            ..vfio(all_nvme())
        },
    );
    assert_eq!(plan.actions.len(), 1, "{plan}");
    let reason = Reason::ExceptUnclear("serial \"S7\"".to_owned());
    assert_eq!(reasons(&plan, &Subject::Bind(at("0000:02:00.0"))), [reason]);
}

#[test]
fn an_exception_that_is_not_understood_stops_taking_by_class() {
    let host = FakeHost::new();
    host.nvme(1, 11);
    let except = vec![Selector::Interface("eth0".to_owned())];
    let plan = plan_of(
        &host,
        &Config {
            except,
            ..vfio(all_nvme())
        },
    );
    assert!(plan.actions.is_empty(), "{plan}");
    assert_eq!(plan.refusals[0].reasons, [Reason::WrongSelector]);
}

#[test]
fn a_serial_of_two_controllers_is_ambiguous() {
    let host = FakeHost::new();
    host.nvme(1, 11);
    let twin = host.nvme(2, 12);
    host.file(&format!("{twin}/nvme/nvme2/serial"), "S1\n");
    let plan = plan_of(&host, &vfio(vec![Selector::Serial("S1".to_owned())]));
    let both = vec![at("0000:01:00.0"), at("0000:02:00.0")];
    assert_eq!(plan.refusals[0].reasons, [Reason::Ambiguous(both)]);
}

/// A host with two nodes of 4 GiB, and this many huge pages of 2 MiB on the first.
fn two_nodes(pages: u64) -> FakeHost {
    let host = FakeHost::new();
    host.node(1, "", 4096);
    host.pool(
        "sys/devices/system/node/node0/hugepages/hugepages-2048kB",
        pages,
    );
    host
}

fn hugepages(rules: Vec<HugepageRule>) -> Config {
    Config {
        hugepages: rules,
        ..Config::default()
    }
}

#[test]
fn pages_without_a_node_are_spread_evenly() {
    let plan = plan_of(
        &two_nodes(0),
        &hugepages(vec![rule(None, 2048, 101, Reservation::Required)]),
    );
    assert_golden("hugepages-spread.txt", &plan.to_string());
}

#[test]
fn a_reservation_is_never_shrunk() {
    let plan = plan_of(
        &two_nodes(300),
        &hugepages(vec![rule(Some(0), 2048, 100, Reservation::Required)]),
    );
    assert_eq!(
        plan.to_string(),
        "nothing to do\nnotes:\n  node 0, huge pages of 2048 KiB: 300 pages stay, 100 were asked \
         for\n"
    );
}

#[test]
fn surplus_pages_are_no_reservation() {
    let host = two_nodes(300);
    let folder = "sys/devices/system/node/node0/hugepages/hugepages-2048kB";
    host.file(&format!("{folder}/surplus_hugepages"), "290\n");
    let plan = plan_of(
        &host,
        &hugepages(vec![rule(Some(0), 2048, 100, Reservation::Required)]),
    );
    assert_eq!(plan.actions.len(), 2, "{plan}");
}

#[test]
fn the_node_keeps_memory_for_itself() {
    // 3072 MiB can be had on each node, and 256 of them are kept.
    let required = |pages| {
        plan_of(
            &two_nodes(0),
            &hugepages(vec![rule(Some(0), 2048, pages, Reservation::Required)]),
        )
    };
    assert!(required(1408).refusals.is_empty());
    let refused = required(1409);
    assert!(refused.actions.is_empty());
    assert_golden("hugepages-too-many.txt", &refused.to_string());
    let best = plan_of(
        &two_nodes(0),
        &hugepages(vec![
            rule(Some(0), 2048, 2000, Reservation::BestEffort),
            rule(Some(0), 1_048_576, 1, Reservation::Required),
        ]),
    );
    assert_golden("hugepages-best-effort.txt", &best.to_string());
}

#[test]
fn a_kernel_without_numa_has_a_node_0() {
    let host = FakeHost::new();
    host.remove("sys/devices/system/node");
    host.file(
        "proc/meminfo",
        "MemTotal: 4194304 kB\nMemFree: 4000000 kB\n",
    );
    host.pool("sys/kernel/mm/hugepages/hugepages-2048kB", 0);
    let plan = plan_of(
        &host,
        &hugepages(vec![rule(Some(0), 2048, 8, Reservation::Required)]),
    );
    assert!(
        plan.to_string()
            .contains("  huge pages of 2048 KiB: reserve 8, required\n"),
        "{plan}"
    );
    let plan = plan_of(
        &host,
        &hugepages(vec![rule(Some(1), 2048, 8, Reservation::Required)]),
    );
    assert_eq!(plan.refusals[0].reasons, [Reason::NoNode(vec![])]);
}

#[test]
fn a_configuration_is_read_from_text() {
    let text = r#"{
        "hugepages": [{"node": 0, "size_kib": 2048, "pages": 512, "reservation": "best_effort"},
                      {"size_kib": 1048576, "pages": 2}],
        "vfio": [{"class": "nvme"}, {"serial": "S1"}, {"address": "0000:01:00.0"}, {"slot": "7"}],
        "except": [{"address": "10000:e1:00.0"}],
        "nic": [{"port": {"interface": "eth1"}, "mode": "verbs"}],
        "management": {"mac": "52:54:00:00:00:00"}
    }"#;
    let config: Config = serde_json::from_str(text).unwrap();
    assert_eq!(config.hugepages[1].reservation, Reservation::Required);
    assert_eq!(config.memory_kept_mib, 512);
    let again = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<Config>(&again).unwrap(), config);
    let error = serde_json::from_str::<Config>(r#"{"hugepage": []}"#).unwrap_err();
    assert!(
        error.to_string().contains("unknown field `hugepage`"),
        "{error}"
    );
    let wrong = r#"{"vfio": [{"address": "1:0.0"}]}"#;
    let error = serde_json::from_str::<Config>(wrong).unwrap_err();
    assert!(
        error.to_string().contains("write it like 0000:01:00.0"),
        "{error}"
    );
}

#[test]
fn a_plan_survives_being_written() {
    let (host, claim) = bound();
    host.nvme(2, 12);
    let config = Config {
        claims: vec![claim],
        ..vfio(vec![address("0000:02:00.0")])
    };
    let plan = plan_of(&host, &config);
    assert_eq!(plan.actions.len(), 2);
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
}

fn node() -> NumaNode {
    let pool = |size_kib| HugepagePool {
        size_kib,
        total: 0,
        free: 0,
        surplus: 0,
    };
    NumaNode {
        node: Some(0),
        cpus: CpuList::default(),
        memory_kib: u64::MAX,
        available_kib: 0,
        hugepages: vec![pool(2048), pool(1_048_576)],
    }
}

proptest! {
    /// No reservation of any size makes the arithmetic of a plan overflow, and none is lowered.
    #[test]
    fn any_rules_make_a_plan(
        pages in any::<u64>(),
        have in any::<u64>(),
        available_kib in any::<u64>(),
        best_effort in any::<bool>(),
        memory_kept_mib in any::<u64>(),
    ) {
        let mut facts = Facts { nodes: vec![node()], ..Facts::default() };
        facts.nodes[0].available_kib = available_kib;
        facts.nodes[0].hugepages[0].total = have;
        let reservation = if best_effort { Reservation::BestEffort } else { Reservation::Required };
        let rules = vec![
            rule(Some(0), 2048, pages, reservation),
            rule(Some(0), 1_048_576, pages, reservation),
        ];
        let config = Config { hugepages: rules, memory_kept_mib, ..Config::default() };
        let plan = machine::plan(&facts, &config);
        for action in &plan.actions {
            if let machine::Action::ReserveHugepages { size_kib: 2048, pages, .. } = action {
                prop_assert!(*pages > have);
            }
        }
    }
}
