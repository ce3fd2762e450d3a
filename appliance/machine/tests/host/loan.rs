//! A function that another driver has for a while.

use machine::{PciAddress, lend};

use crate::fake::FakeHost;

const DRIVE: &str = "0000:01:00.0";

fn address() -> PciAddress {
    DRIVE.parse().unwrap()
}

/// A drive that vfio-pci has, or nobody, and nobody uses.
fn drive(of: &str) -> FakeHost {
    let host = FakeHost::new();
    let folder = host.nvme(1, 11);
    host.remove(&format!("{folder}/driver"));
    if !of.is_empty() {
        host.file(&format!("{folder}/driver_override"), of);
        host.link(
            &format!("{folder}/driver"),
            &format!("sys/bus/pci/drivers/{of}"),
        );
    }
    host
}

#[test]
fn a_drive_goes_to_the_kernel_and_is_then_what_it_was() {
    for (of, with) in [("vfio-pci", "vfio-pci"), ("", "(null)")] {
        let host = drive(of);
        let loan = lend(&host, address(), "nvme").unwrap();
        assert_eq!(host.driver_of(DRIVE).as_deref(), Some("nvme"));
        loan.give_back(&host).unwrap();
        assert_eq!(host.driver_of(DRIVE).unwrap_or_default(), of);
        assert_eq!(host.attribute(DRIVE, "driver_override"), with);
        // Once is enough.
        loan.give_back(&host).unwrap();
        assert_eq!(host.driver_of(DRIVE).unwrap_or_default(), of);
    }
}

#[test]
fn a_driver_that_does_not_take_it_leaves_it_as_it_was() {
    let host = drive("vfio-pci");
    host.faults.borrow_mut().driver_refuses = Some("nvme".to_owned());
    lend(&host, address(), "nvme").unwrap_err();
    assert_eq!(host.driver_of(DRIVE).as_deref(), Some("vfio-pci"));
    assert_eq!(host.attribute(DRIVE, "driver_override"), "vfio-pci");
}

#[test]
fn one_that_somebody_has_is_not_lent() {
    let host = FakeHost::new();
    host.nvme(1, 11);
    let error = lend(&host, address(), "nvme").unwrap_err().to_string();
    assert!(error.contains("driver nvme has it"), "{error}");
    assert!(host.writes.borrow().is_empty());
    let host = drive("vfio-pci");
    host.file("dev/vfio/11", "");
    host.process(77, "aditd", "/dev/vfio/11");
    let error = lend(&host, address(), "nvme").unwrap_err().to_string();
    assert!(error.contains("in use by aditd[77]"), "{error}");
    assert!(host.writes.borrow().is_empty());
}

#[test]
fn one_that_was_pulled_out_needs_no_giving_back() {
    let host = drive("vfio-pci");
    let loan = lend(&host, address(), "nvme").unwrap();
    host.remove(&format!("sys/bus/pci/devices/{DRIVE}"));
    host.writes.borrow_mut().clear();
    loan.give_back(&host).unwrap();
    assert!(host.writes.borrow().is_empty());
}
