//! What is done to a host.

use std::cell::Cell;
use std::io;

use machine::{
    Action, Applied, ApplyError, Config, Former, Host, HugepageRule, NicMode, NicRule, PciAddress,
    Reservation, Selector, Verification, apply, verify,
};

use crate::fake::FakeHost;
use crate::{assert_golden, facts, plan_of};

const DRIVE: &str = "0000:01:00.0";

fn at(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn drive() -> FakeHost {
    let host = FakeHost::new();
    host.nvme(1, 11);
    host
}

fn nvme() -> Former {
    Former::Driver("nvme".to_owned())
}

fn bind() -> Action {
    Action::Bind {
        address: at(DRIVE),
        group: 11,
        former: nvme(),
        known_as: vec![],
    }
}

fn give_back(to: Former) -> Action {
    Action::GiveBack {
        address: at(DRIVE),
        to,
    }
}

fn reserve(pages: u64, reservation: Reservation) -> Action {
    Action::ReserveHugepages {
        node: Some(0),
        size_kib: 2048,
        pages,
        reservation,
    }
}

const POOL: &str = "sys/devices/system/node/node0/hugepages/hugepages-2048kB";

fn pages(host: &FakeHost) -> u64 {
    host.read(&format!("{POOL}/nr_hugepages"))
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

fn writes(host: &FakeHost) -> String {
    host.writes
        .borrow()
        .iter()
        .map(|line| format!("{line}\n"))
        .collect()
}

/// The sentence of an error, with its cause.
fn sentence(error: &ApplyError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[test]
fn a_whole_plan_is_carried_out_and_then_nothing_is_left_to_do() {
    let host = FakeHost::new();
    host.nvme(1, 11);
    host.nvme(2, 12);
    host.nic(0, 20);
    host.nic(1, 21);
    host.default_route("eth0");
    let mut config = Config {
        hugepages: vec![HugepageRule {
            node: None,
            size_kib: 2048,
            pages: 64,
            reservation: Reservation::Required,
        }],
        vfio: vec![Selector::Class("nvme".to_owned())],
        nic: vec![NicRule {
            port: Selector::Interface("eth1".to_owned()),
            mode: NicMode::Vfio,
            soft_roce: false,
        }],
        ..Config::default()
    };
    let plan = plan_of(&host, &config);
    assert!(plan.refusals.is_empty(), "{plan}");
    for action in &plan.actions {
        config.claims.extend(machine::claim_of(action));
        assert_eq!(apply(action, &host).unwrap(), Applied::Done, "{action}");
        assert_eq!(verify(action, &host), Verification::Verified, "{action}");
    }
    assert_golden("writes.txt", &writes(&host));
    // The drives are gone from the kernel: what finds them is their class.
    for number in [1, 2] {
        host.remove(&format!("sys/class/block/nvme{number}n1"));
        host.remove(&format!("sys/bus/pci/devices/0000:0{number}:00.0/nvme"));
    }
    // The interface is gone as well: its claim remembers it, whoever is called eth1 now.
    host.remove("sys/class/net/eth1");
    let other = host.nic(2, 22);
    host.link("sys/class/net/eth1", &format!("{other}/net/eth2"));
    let again = plan_of(&host, &config);
    assert!(
        again.actions.is_empty() && again.refusals.is_empty(),
        "{again}"
    );
    // Everything is dropped, and everything goes back.
    let dropped = Config {
        claims: config.claims,
        ..Config::default()
    };
    let back = plan_of(&host, &dropped);
    assert_eq!(back.actions.len(), 3, "{back}");
    for action in &back.actions {
        assert_eq!(apply(action, &host).unwrap(), Applied::Done, "{action}");
    }
    for (address, driver) in [
        (DRIVE, "nvme"),
        ("0000:02:00.0", "nvme"),
        ("0000:00:11.0", "virtio-pci"),
    ] {
        assert_eq!(host.driver_of(address).as_deref(), Some(driver));
        assert_eq!(host.attribute(address, "driver_override"), "(null)");
    }
    assert!(plan_of(&host, &dropped).actions.is_empty());
}

#[test]
fn what_is_so_already_is_not_written_again() {
    let host = drive();
    for action in [bind(), reserve(10, Reservation::Required)] {
        assert_eq!(apply(&action, &host).unwrap(), Applied::Done);
        host.writes.borrow_mut().clear();
        assert_eq!(apply(&action, &host).unwrap(), Applied::AlreadySo);
        assert_eq!(writes(&host), "");
    }
    assert_eq!(apply(&give_back(nvme()), &host).unwrap(), Applied::Done);
    host.writes.borrow_mut().clear();
    assert_eq!(
        apply(&give_back(nvme()), &host).unwrap(),
        Applied::AlreadySo
    );
    assert_eq!(writes(&host), "");
}

#[test]
fn the_node_of_a_group_is_waited_for_by_the_caller() {
    let host = drive();
    host.faults.borrow_mut().vfio_nodes_are_late = true;
    let Applied::Waiting(reason) = apply(&bind(), &host).unwrap() else {
        panic!()
    };
    assert_eq!(reason, "/dev/vfio/11 is not there yet");
    assert_eq!(verify(&bind(), &host), Verification::NotYet(reason));
    host.vfio_node(DRIVE);
    assert_eq!(verify(&bind(), &host), Verification::Verified);
}

#[test]
fn a_device_that_vfio_does_not_take_goes_back_to_its_driver() {
    let host = drive();
    host.faults.borrow_mut().driver_refuses = Some("vfio-pci".to_owned());
    let error = apply(&bind(), &host).unwrap_err();
    assert_eq!(
        sentence(&error),
        "0000:01:00.0: vfio-pci did not take it: see the kernel log; driver nvme has \
         it again"
    );
    assert_eq!(host.driver_of(DRIVE).as_deref(), Some("nvme"));
    assert_eq!(host.attribute(DRIVE, "driver_override"), "(null)");
}

#[test]
fn a_driver_that_does_not_let_go_keeps_the_device() {
    let host = drive();
    host.faults.borrow_mut().driver_keeps = Some("nvme".to_owned());
    let error = apply(&bind(), &host).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("driver nvme did not let go of it"),
        "{error}"
    );
    assert_eq!(host.attribute(DRIVE, "driver_override"), "(null)");
}

#[test]
fn every_write_that_fails_is_named_and_the_device_stays() {
    for (file, device_has) in [
        ("driver_override", Some("nvme")),
        ("driver/unbind", Some("nvme")),
        ("drivers_probe", None),
    ] {
        let host = drive();
        host.faults.borrow_mut().write_fails = Some((file.to_owned(), 13));
        let error = sentence(&apply(&bind(), &host).unwrap_err());
        assert!(
            error.contains(file) && error.contains("ermission denied"),
            "{error}"
        );
        assert_eq!(
            host.driver_of(DRIVE).as_deref(),
            device_has,
            "{file}: {error}"
        );
        assert_eq!(host.attribute(DRIVE, "driver_override"), "(null)", "{file}");
    }
}

#[test]
fn a_write_that_changes_nothing_is_found_by_reading_back() {
    let host = drive();
    host.faults.borrow_mut().write_is_lost = Some("driver_override".to_owned());
    let error = apply(&bind(), &host).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("driver_override is nothing, not vfio-pci"),
        "{error}"
    );
    assert_eq!(host.driver_of(DRIVE).as_deref(), Some("nvme"));
}

#[test]
fn a_drive_that_was_mounted_since_the_plan_is_left_alone() {
    let host = drive();
    let plan = plan_of(
        &host,
        &Config {
            vfio: vec![Selector::Class("nvme".to_owned())],
            ..Config::default()
        },
    );
    host.mount("259:8", "/data", "/dev/nvme1n1");
    let error = apply(&plan.actions[0], &host).unwrap_err();
    assert!(matches!(error, ApplyError::InUse { .. }));
    assert_eq!(
        error.to_string(),
        "0000:01:00.0 is left alone: nvme1n1 is mounted at /data; make a new plan"
    );
    assert_eq!(writes(&host), "");
}

#[test]
fn a_port_that_got_the_default_route_since_the_plan_is_left_alone() {
    let host = FakeHost::new();
    host.nic(0, 20);
    host.default_route("eth0");
    let action = Action::Bind {
        address: at("0000:00:10.0"),
        group: 20,
        former: Former::Driver("virtio-pci".to_owned()),
        known_as: vec![],
    };
    let error = apply(&action, &host).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("the node is reached through it: eth0"),
        "{error}"
    );
    assert_eq!(writes(&host), "");
}

#[test]
fn a_device_that_is_gone_is_an_error() {
    let host = FakeHost::new();
    for action in [bind(), give_back(nvme())] {
        let error = apply(&action, &host).unwrap_err();
        assert_eq!(error.to_string(), "0000:01:00.0: it is gone from the bus");
        let gone = Verification::Failed("it is gone from the bus".to_owned());
        assert_eq!(verify(&action, &host), gone);
    }
}

#[test]
fn a_device_in_use_is_not_taken_from_vfio() {
    let host = drive();
    apply(&bind(), &host).unwrap();
    host.process(7, "aditd", "/dev/vfio/11");
    let error = apply(&give_back(nvme()), &host).unwrap_err();
    assert!(
        error.to_string().contains("it is in use by aditd[7]"),
        "{error}"
    );
    assert_eq!(host.driver_of(DRIVE).as_deref(), Some("vfio-pci"));
}

#[test]
fn a_device_that_had_no_driver_has_none_again() {
    let host = drive();
    apply(&bind(), &host).unwrap();
    assert_eq!(
        apply(&give_back(Former::Nobody), &host).unwrap(),
        Applied::Done
    );
    assert_eq!(host.driver_of(DRIVE), None);
    assert_eq!(host.attribute(DRIVE, "driver_override"), "(null)");
}

#[test]
fn the_kernel_chooses_when_the_former_driver_is_not_known() {
    let host = drive();
    apply(&bind(), &host).unwrap();
    assert_eq!(
        apply(&give_back(Former::Unknown), &host).unwrap(),
        Applied::Done
    );
    assert_eq!(host.driver_of(DRIVE).as_deref(), Some("nvme"));
}

#[test]
fn a_former_driver_that_is_not_loaded_is_named_and_no_override_stays() {
    let host = drive();
    apply(&bind(), &host).unwrap();
    host.remove("sys/bus/pci/drivers/nvme");
    let error = apply(&give_back(nvme()), &host).unwrap_err();
    assert_eq!(
        error.to_string(),
        "0000:01:00.0: driver nvme is not loaded: load its module"
    );
    assert_eq!(host.attribute(DRIVE, "driver_override"), "(null)");
    // Its module is loaded, and the same action is applied again.
    host.driver("nvme");
    assert_eq!(apply(&give_back(nvme()), &host).unwrap(), Applied::Done);
    assert_eq!(host.driver_of(DRIVE).as_deref(), Some("nvme"));
}

/// A kernel that stops for good after so many writes, as in a power cut.
struct Cut<'a> {
    host: &'a FakeHost,
    writes_left: Cell<u32>,
}

impl Host for Cut<'_> {
    fn read(&self, path: &str) -> io::Result<String> {
        self.host.read(path)
    }
    fn write(&self, path: &str, text: &str) -> io::Result<()> {
        let left = self
            .writes_left
            .get()
            .checked_sub(1)
            .ok_or(io::ErrorKind::Interrupted)?;
        self.writes_left.set(left);
        self.host.write(path, text)
    }
    fn link(&self, path: &str) -> io::Result<String> {
        Host::link(self.host, path)
    }
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.host.list(path)
    }
    fn exists(&self, path: &str) -> bool {
        self.host.exists(path)
    }
    fn is_claimed(&self, path: &str) -> Option<bool> {
        self.host.is_claimed(path)
    }
}

#[test]
fn an_action_that_was_cut_short_anywhere_is_finished_by_the_next() {
    for (first, then) in [(bind(), bind()), (bind(), give_back(nvme()))] {
        for writes in 0..8 {
            let host = drive();
            let _ = apply(
                &first,
                &Cut {
                    host: &host,
                    writes_left: Cell::new(writes),
                },
            );
            apply(&then, &host).unwrap();
            assert_eq!(
                verify(&then, &host),
                Verification::Verified,
                "after {writes}"
            );
        }
    }
    for writes in 0..8 {
        let host = drive();
        apply(&bind(), &host).unwrap();
        let back = give_back(nvme());
        let _ = apply(
            &back,
            &Cut {
                host: &host,
                writes_left: Cell::new(writes),
            },
        );
        apply(&back, &host).unwrap();
        assert_eq!(
            verify(&back, &host),
            Verification::Verified,
            "after {writes}"
        );
        assert_eq!(
            host.attribute(DRIVE, "driver_override"),
            "(null)",
            "after {writes}"
        );
    }
}

#[test]
fn a_required_reservation_that_falls_short_is_an_error() {
    let host = FakeHost::new();
    host.pages_max.borrow_mut().insert(POOL.to_owned(), 30);
    let error = apply(&reserve(64, Reservation::Required), &host).unwrap_err();
    assert!(
        error.to_string().starts_with(
            "node 0, huge pages of 2048 KiB: the kernel found memory for 30 of 64 pages"
        ),
        "{error}"
    );
    assert_eq!(pages(&host), 30);
}

#[test]
fn a_best_effort_takes_what_there_is_and_says_so() {
    let host = FakeHost::new();
    host.pages_max.borrow_mut().insert(POOL.to_owned(), 30);
    let action = reserve(64, Reservation::BestEffort);
    let Applied::Partly(reason) = apply(&action, &host).unwrap() else {
        panic!()
    };
    assert!(reason.contains("30 of 64 pages"), "{reason}");
    let seen = Verification::Failed("30 of 64 pages are reserved".to_owned());
    assert_eq!(verify(&action, &host), seen);
}

#[test]
fn more_pages_than_asked_for_are_left_alone() {
    let host = FakeHost::new();
    host.pool(POOL, 100);
    let action = reserve(64, Reservation::Required);
    assert_eq!(apply(&action, &host).unwrap(), Applied::AlreadySo);
    assert_eq!(pages(&host), 100);
    assert_eq!(verify(&action, &host), Verification::Verified);
    assert_eq!(writes(&host), "");
}

#[test]
fn a_pool_that_is_not_there_is_named() {
    let action = Action::ReserveHugepages {
        node: Some(5),
        size_kib: 2048,
        pages: 1,
        reservation: Reservation::Required,
    };
    let host = FakeHost::new();
    let error = sentence(&apply(&action, &host).unwrap_err());
    assert!(
        error.contains("node5/hugepages/hugepages-2048kB/nr_hugepages"),
        "{error}"
    );
    assert!(matches!(verify(&action, &host), Verification::Failed(_)));
}

#[test]
fn a_number_that_is_none_is_an_error() {
    let host = FakeHost::new();
    host.file(&format!("{POOL}/nr_hugepages"), "many\n");
    let error = sentence(&apply(&reserve(1, Reservation::Required), &host).unwrap_err());
    assert!(error.contains("it holds no number"), "{error}");
    assert!(
        facts(&host).nodes[0]
            .hugepages
            .iter()
            .all(|pool| pool.size_kib != 2048)
    );
}

#[test]
fn memory_is_compacted_where_the_kernel_can() {
    let host = FakeHost::new();
    assert_eq!(apply(&Action::CompactMemory, &host).unwrap(), Applied::Done);
    assert_eq!(host.writes.borrow().len(), 2);
    host.remove("proc/sys/vm/compact_memory");
    assert_eq!(apply(&Action::CompactMemory, &host).unwrap(), Applied::Done);
    assert_eq!(host.writes.borrow().len(), 3);
}

#[test]
fn a_soft_roce_device_is_made_and_removed_once() {
    let host = FakeHost::new();
    host.nic(0, 20);
    let name = || "rxe_eth0".to_owned();
    let interface = "eth0".to_owned();
    let add = Action::AddSoftRoce {
        name: name(),
        interface,
    };
    let error = apply(&add, &host).unwrap_err();
    assert!(error.to_string().contains("rdma_rxe"), "{error}");
    host.dir("sys/module/rdma_rxe");
    assert_eq!(apply(&add, &host).unwrap(), Applied::Done);
    assert_eq!(apply(&add, &host).unwrap(), Applied::AlreadySo);
    assert_eq!(verify(&add, &host), Verification::Verified);

    // The same name on another interface is somebody else's.
    let other = Action::AddSoftRoce {
        name: name(),
        interface: "eth1".to_owned(),
    };
    assert!(matches!(
        apply(&other, &host),
        Err(ApplyError::NotTaken { .. })
    ));

    let remove = Action::RemoveSoftRoce { name: name() };
    host.file("sys/class/infiniband_verbs/uverbs0/ibdev", "rxe_eth0\n");
    host.process(77, "aditd", "/dev/infiniband/uverbs0");
    let error = apply(&remove, &host).unwrap_err();
    assert!(error.to_string().contains("aditd[77]"), "{error}");
    host.remove("sys/class/infiniband_verbs/uverbs0");
    assert_eq!(apply(&remove, &host).unwrap(), Applied::Done);
    assert_eq!(apply(&remove, &host).unwrap(), Applied::AlreadySo);
}
