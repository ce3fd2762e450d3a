//! On the fake host of the crate `machine`.

#[expect(
    dead_code,
    reason = "the fake host of another crate's tests, of which a part is used here"
)]
#[path = "../../../machine/tests/host/fake.rs"]
mod fake;

use std::cell::Cell;

use machine::{HugepageRule, Reservation, Selector};

use self::fake::FakeHost;
use super::*;

/// Prepares with so many looks until something late is given up; what was saved, and the outcome.
fn prepared(
    host: &FakeHost,
    config: Config,
    claims: Vec<Claim>,
    looks: u32,
    each_look: &dyn Fn(u32),
) -> (Vec<Vec<Claim>>, Vec<Status>) {
    let mut saved = Vec::new();
    let look = Cell::new(0);
    let mut now = || Duration::ZERO;
    let mut wait = |_, _| {
        look.set(look.get() + 1);
        each_look(look.get());
        look.get() < looks
    };
    let mut patience = Patience {
        now: &mut now,
        wait: &mut wait,
    };
    let mut save = |claims: &[Claim]| {
        saved.push(claims.to_vec());
        Ok(())
    };
    let done = prepare(host, config, claims, &mut save, &mut patience).unwrap();
    (saved, done)
}

fn drives() -> Config {
    Config {
        vfio: vec![Selector::Class("nvme".to_owned())],
        ..Config::default()
    }
}

#[test]
fn huge_pages_come_before_drives_and_claims_before_either_is_taken() {
    let host = FakeHost::new();
    host.nvme(1, 1);
    let config = Config {
        hugepages: vec![HugepageRule {
            node: None,
            size_kib: 2048,
            pages: 8,
            reservation: Reservation::Required,
        }],
        ..drives()
    };
    let (saved, done) = prepared(&host, config, Vec::new(), 1, &|_| {});
    assert!(
        done.iter().all(|status| status.state == State::Ok),
        "{done:#?}"
    );
    assert_eq!(saved.len(), 1);
    assert_eq!(saved[0][0].address.to_string(), "0000:01:00.0");
    let writes = host.writes.borrow();
    let pages = writes
        .iter()
        .position(|write| write.contains("nr_hugepages"))
        .unwrap();
    let bind = writes
        .iter()
        .position(|write| write.contains("driver_override"))
        .unwrap();
    assert!(pages < bind, "{writes:#?}");
}

#[test]
fn a_node_of_vfio_that_comes_late_is_waited_for_and_one_that_never_comes_is_told() {
    let host = FakeHost::new();
    host.nvme(1, 1);
    host.faults.borrow_mut().vfio_nodes_are_late = true;
    let (_, done) = prepared(&host, drives(), Vec::new(), 100, &|look| {
        if look == 7 {
            host.vfio_node("0000:01:00.0");
        }
    });
    assert!(
        done.iter().all(|status| status.state == State::Ok),
        "{done:#?}"
    );

    let host = FakeHost::new();
    host.nvme(1, 1);
    host.faults.borrow_mut().vfio_nodes_are_late = true;
    let (_, done) = prepared(&host, drives(), Vec::new(), 100, &|_| {});
    let wrong = done.iter().find(|status| status.is_wrong()).unwrap();
    assert_eq!(wrong.text, "/dev/vfio/1 is not there yet");
}

#[test]
fn a_drive_whose_claim_cannot_be_remembered_is_left_alone() {
    let host = FakeHost::new();
    host.nvme(1, 1);
    let mut save = |_: &[Claim]| Err(io::Error::from_raw_os_error(libc::ENOSPC));
    let (mut now, mut wait) = (|| Duration::ZERO, |_, _| false);
    let mut patience = Patience {
        now: &mut now,
        wait: &mut wait,
    };
    let done = prepare(&host, drives(), Vec::new(), &mut save, &mut patience).unwrap();
    assert!(done[0].text.starts_with("it is not taken: "), "{done:?}");
    assert_eq!(host.driver_of("0000:01:00.0").as_deref(), Some("nvme"));
}

#[test]
fn what_is_refused_is_a_status_with_every_reason_and_the_rest_is_done() {
    let host = FakeHost::new();
    host.nvme(1, 1);
    host.nvme(2, 2);
    host.mount("259:8", "/data", "/dev/nvme1n1");
    let (_, done) = prepared(&host, drives(), Vec::new(), 1, &|_| {});
    let wrong: Vec<&Status> = done.iter().filter(|status| status.is_wrong()).collect();
    assert_eq!(wrong.len(), 1, "{done:#?}");
    assert!(wrong[0].text.contains("/data"), "{}", wrong[0].text);
    assert_eq!(host.driver_of("0000:02:00.0").as_deref(), Some("vfio-pci"));
}

#[test]
fn what_nobody_asks_for_any_more_is_given_back_and_forgotten() {
    let host = FakeHost::new();
    host.nvme(1, 1);
    let (saved, _) = prepared(&host, drives(), Vec::new(), 1, &|_| {});
    let (saved, done) = prepared(&host, Config::default(), saved[0].clone(), 1, &|_| {});
    assert!(
        done.iter().all(|status| status.state == State::Ok),
        "{done:#?}"
    );
    assert_eq!(saved.last(), Some(&Vec::new()));
    assert_eq!(host.driver_of("0000:01:00.0").as_deref(), Some("nvme"));
}

/// Files of the controller that the kernel's driver shows once it has asked the drive.
const SERIAL_OF_1: &str = "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/nvme/nvme1/serial";

fn drive(serial: &str) -> Config {
    Config {
        vfio: vec![Selector::Serial(serial.to_owned())],
        ..Config::default()
    }
}

#[test]
fn a_drive_named_by_its_serial_number_is_waited_for_while_it_comes_up() {
    let host = FakeHost::new();
    host.nvme(1, 1);
    host.remove(SERIAL_OF_1);
    let (_, done) = prepared(&host, drive("S1"), Vec::new(), 100, &|look| {
        if look == 5 {
            host.file(SERIAL_OF_1, "S1  \n");
        }
    });
    assert!(!done.iter().any(Status::is_wrong), "{done:#?}");
    assert_eq!(host.driver_of("0000:01:00.0").as_deref(), Some("vfio-pci"));

    // One that never tells it is told, after a while.
    let host = FakeHost::new();
    host.nvme(1, 1);
    host.remove(SERIAL_OF_1);
    let looks = Cell::new(0);
    let (_, done) = prepared(&host, drive("S1"), Vec::new(), 50, &|look| looks.set(look));
    assert!(done.iter().any(Status::is_wrong), "{done:#?}");
    assert_eq!(looks.get(), 50);

    // Without a driver it will not tell: nothing is waited for. Nor is it when nothing asks.
    host.remove("sys/bus/pci/devices/0000:01:00.0/driver");
    looks.set(0);
    prepared(&host, drive("S1"), Vec::new(), 50, &|look| looks.set(look));
    assert_eq!(looks.get(), 0);
    let other = FakeHost::new();
    other.nvme(1, 1);
    other.remove(SERIAL_OF_1);
    prepared(&other, Config::default(), Vec::new(), 50, &|look| {
        looks.set(look);
    });
    assert_eq!(looks.get(), 0);
}

#[test]
fn a_drive_that_is_pulled_out_is_forgotten_and_another_in_its_place_is_another() {
    let host = FakeHost::new();
    let folder = host.nvme(1, 1);
    let (saved, _) = prepared(&host, drives(), Vec::new(), 1, &|_| {});
    let claims = saved.last().unwrap().clone();
    assert_eq!(claims[0].known_as, [Selector::Serial("S1".to_owned())]);

    // Pulled out, and looked at.
    host.remove("sys/bus/pci/devices/0000:01:00.0");
    host.remove(&folder);
    let (saved, done) = prepared(&host, drives(), claims.clone(), 1, &|_| {});
    assert!(!done.iter().any(Status::is_wrong), "{done:#?}");
    assert_eq!(saved, [Vec::new()]);

    // Another was plugged in before anybody looked.
    host.nvme(1, 1);
    host.file(SERIAL_OF_1, "OTHER\n");
    let (saved, done) = prepared(&host, drives(), claims, 1, &|_| {});
    assert!(!done.iter().any(Status::is_wrong), "{done:#?}");
    let claims = saved.last().unwrap();
    assert_eq!(claims.len(), 1);
    assert_eq!(claims[0].known_as, [Selector::Serial("OTHER".to_owned())]);
}
