//! `adit-init` as process 1: it boots, prepares hardware, supervises and ends, whatever it is told.

use std::time::{Duration, Instant};

use qemu_tests::{Node, patience, skip_without_qemu};
use serde_json::json;

/// Goal: a node comes up as it is told and keeps its services. Method: an IOMMU, two drives, a
/// configuration by fw_cfg, SMBIOS and the command line; services are killed and fail.
#[test]
fn a_node_prepares_its_hardware_and_keeps_its_services() {
    if skip_without_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.toml");
    let text = "hostname = 'fw-cfg'\n[machine]\nvfio = [{ class = 'nvme' }]\n\
        hugepages = [{ size_kib = 2048, pages = 48 }]\n[crash]\ncount_max = 3\n";
    std::fs::write(&config, text).unwrap();
    let mut node = Node::builder("init")
        .machine("node-drives")
        .qemu("-smbios type=11,value=adit.hostname=smbios,value=adit.crash.size_max_mib=8")
        .qemu(&format!(
            "-fw_cfg name=opt/io.adit/config,file={}",
            config.display()
        ))
        .kernel("adit.crash.count_max=2 adit.sysctl.vm.swappiness=7")
        .boot()
        .unwrap();

    // Mounts, modules, identity, sources.
    let mounts = node.run("cat /proc/mounts").unwrap();
    for line in [
        "/run tmpfs rw,nosuid,nodev",
        "/sys/fs/cgroup cgroup2",
        "/dev/hugepages hugetlbfs",
    ] {
        assert!(mounts.contains(line), "{line}: {mounts}");
    }
    assert_eq!(node.run("hostname").unwrap(), "fw-cfg\n");
    assert_eq!(
        node.run("cat /etc/machine-id").unwrap(),
        "4c4c4544004235108054b6c04f303233\n"
    );
    let configuration = node
        .run("/init call '{\"call\":\"configuration\"}'")
        .unwrap();
    let configuration: serde_json::Value = serde_json::from_str(&configuration).unwrap();
    let source = |key: &str| {
        let values = configuration["values"].as_array().unwrap();
        let found = values.iter().find(|value| value["key"] == key);
        found.unwrap_or_else(|| panic!("{key}: {values:?}"))["source"].clone()
    };
    assert_eq!(source("hostname"), "fw_cfg");
    assert_eq!(source("crash.size_max_mib"), "smbios");
    assert_eq!(source("crash.count_max"), "command_line");
    assert_eq!(node.run("cat /proc/sys/vm/swappiness").unwrap(), "7\n");

    // Huge pages and drives.
    node.wait_until("test -e /run/adit/status/machine.json")
        .unwrap();
    let pages = node
        .run("cat /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
        .unwrap();
    assert_eq!(pages, "48\n");
    let status = node.run("/init status").unwrap();
    let bound = node
        .run("ls /sys/bus/pci/drivers/vfio-pci | grep -c :; ls /dev/vfio")
        .unwrap();
    assert!(bound.starts_with("2\n"), "{bound}\n{status}");
    let claims = node.run("cat /run/adit/claims.json").unwrap();
    assert_eq!(claims.matches("\"address\"").count(), 2, "{claims}");

    // The target serves, is killed and serves again.
    node.wait_until("aditctl node show").unwrap();
    let services = node.run("/init services").unwrap();
    assert!(services.contains("aditd            ready"), "{services}");
    let pid = node.run("pidof aditd").unwrap();
    node.run("kill -ABRT $(pidof aditd)").unwrap();
    // It is there until its report is read.
    let sentence = "aditd: crashed: signal SIGABRT; starts again in 250 ms";
    node.wait_for_console(sentence, patience(30)).unwrap();
    node.wait_until("aditctl node show").unwrap();
    assert_ne!(node.run("pidof aditd").unwrap(), pid);
    node.wait_until("ls /run/adit/crash | grep aditd").unwrap();

    // The one that fails is held, the reason is on the console, and a person may start it.
    let held = "fragile: held: crashed 3 times in 60 s, last: exit 3, last lines: I am about to \
        fail | I am about to fail | I am about to fail";
    node.wait_for_console(held, patience(60)).unwrap();
    node.run("/init call '{\"call\":\"restart\",\"service\":\"fragile\"}'")
        .unwrap();
    node.wait_until("/init call '{\"call\":\"services\"}' | grep '\"starts\": 6'")
        .unwrap();

    // An orphan is reaped.
    node.run("(sleep 0.1 &) ; true").unwrap();
    node.wait_until("! ps | grep -q '[Zz]ombie\\|\\[sleep\\]'")
        .unwrap();

    // The end: the kernel's way, the target first.
    node.begin("/sbin/poweroff").unwrap();
    node.wait_for_end(patience(120)).unwrap();
    let console = node.console();
    let at = |text: &str| {
        console
            .find(text)
            .unwrap_or_else(|| panic!("{text}: {console}"))
    };
    assert!(at("power off: asked for by the control socket") < at("aditd: ended with exit 0"));
    assert!(at("aditd: ended with exit 0") < at("probe: ended with"));
    assert!(at("probe: ended with") < at("power off: everything has ended"));
}

/// Goal: a drive that is plugged into a running node is given to vfio-pci as the configuration wants
/// it and becomes the block device that waits for its serial number; another drive in that place
/// does not. Method: hot plug over QMP, without a kernel driver for drives.
#[test]
fn a_drive_that_is_plugged_in_is_bound_and_taken_up_by_its_serial_number() {
    if skip_without_qemu() {
        return;
    }
    let mut node = Node::builder("plug")
        .machine("node-slot")
        .kernel("adit.machine.vfio=[{class='nvme'}]")
        .boot()
        .unwrap();
    node.wait_until("test -e /run/adit/status/machine.json && aditctl node show")
        .unwrap();
    let plug = |node: &mut Node, serial: &str| {
        let drive = json!({
            "driver": "nvme", "id": "hot", "bus": "port1", "serial": serial, "drive": "null1"
        });
        // A drive that was pulled out is away a little after its slot is off.
        let deadline = Instant::now() + patience(60);
        while let Err(error) = node.qmp_with("device_add", &drive) {
            assert!(Instant::now() < deadline, "{error:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    let waits = "aditctl bdev show hot | grep -q 'is it plugged in and bound to vfio-pci?'";
    let bound = "ls /sys/bus/pci/drivers/vfio-pci | grep -q :";
    node.run("aditctl bdev create nvme hot --serial HOT || true")
        .unwrap();
    node.run(waits).unwrap();

    plug(&mut node, "OTHER");
    node.wait_until(bound).unwrap();
    node.wait_until("aditctl bdev show hot | grep -q 'none of the 1 drives'")
        .unwrap();
    node.qmp_with("device_del", &json!({"id": "hot"})).unwrap();
    node.wait_until(&format!("! {bound}")).unwrap();
    // The one that may come to this place next is another.
    node.wait_until("! grep -q address /run/adit/claims.json")
        .unwrap();

    for _ in 0..2 {
        plug(&mut node, "HOT");
        node.wait_until("aditctl bdev show hot | grep -q running && aditctl bdev show hotn1")
            .unwrap();
        let log = node.run("/init logs aditd").unwrap();
        assert!(log.contains("vfio-pci has a function"), "{log}");
        node.qmp_with("device_del", &json!({"id": "hot"})).unwrap();
        node.wait_until(waits).unwrap();
    }
    node.begin("/sbin/poweroff").unwrap();
    node.wait_for_end(patience(120)).unwrap();
}

/// Goal: a wrong configuration and a clock at 1970 leave a node that is reached and says exactly what
/// is wrong; the power button ends it. Method: each source says something wrong.
#[test]
fn a_node_that_is_told_nonsense_says_so_and_works() {
    if skip_without_qemu() {
        return;
    }
    let mut node = Node::builder("nonsense")
        .machine("node-1970")
        .qemu("-smbios type=11,value=adit.crash.count_max=many")
        .qemu("-fw_cfg name=opt/io.adit/config,string=hostname")
        .kernel(
            "adit.watchdog.timeout_s=1 adit.wachdog.enabled=0 adit.machine.vfio=[{class='nvme'}]",
        )
        .file(
            "etc/adit/modules",
            "vfio_iommu_type1\nvfio-pci\nno-such-module\n?qemu_fw_cfg\n?button\n",
        )
        .boot()
        .unwrap();
    for sentence in [
        "watchdog.timeout_s from kernel command line is not used: watchdog.timeout_s is 1; it must \
         be 5 to 3600; the default is used",
        "crash.count_max from SMBIOS type 11 is not used: invalid type: string \"many\", expected u32",
        "configuration from fw_cfg is not used: ",
        "unknown field `wachdog`",
        "the hardware clock said 1970-01-01, which cannot be: it is set to 2026-",
        "no-such-module: /lib/modules/",
        "booted degraded: ",
    ] {
        node.wait_for_console(sentence, patience(60)).unwrap();
    }
    assert_eq!(node.run("hostname").unwrap(), "stor-a1b2\n");
    assert!(*node.run("date +%Y").unwrap() >= *"2026");
    node.wait_until("aditctl node show").unwrap();
    node.qmp("system_powerdown").unwrap();
    node.wait_for_end(patience(120)).unwrap();
    let console = node.console();
    assert!(
        console.contains("power off: asked for by the power button"),
        "{console}"
    );
    assert!(
        console.contains("power off: everything has ended"),
        "{console}"
    );
}

/// Goal: a service that hangs costs its own restart and not the node: it is ended with a crash report and serves
/// again. Method: target and agent are stopped by a signal, under a watchdog that bites after ten seconds.
#[test]
fn a_service_that_hangs_is_started_again_and_the_node_goes_on() {
    if skip_without_qemu() {
        return;
    }
    let mut node = Node::builder("silent")
        .program("adit-agent", "usr/bin/adit-agent")
        .file(
            "etc/adit/services.toml",
            include_str!("../guest/node/services-agent.toml"),
        )
        .machine("node-watchdog")
        .kernel("adit.watchdog.timeout_s=10")
        .boot()
        .unwrap();
    let services = "/init call '{\"call\":\"services\"}'";
    let both_report = format!("[ $({services} | grep -c '\"ok\": true') = 2 ]");
    node.wait_until(&both_report).unwrap();
    let names = ["aditd", "adit-agent"];
    let pids = names.map(|name| node.run(&format!("pidof {name}")).unwrap());
    node.run("kill -STOP $(pidof aditd) $(pidof adit-agent)")
        .unwrap();
    for (name, pid) in names.iter().zip(&pids) {
        let silent = format!("{name}: no report of health for 3");
        node.wait_for_console(&silent, patience(90)).unwrap();
        let crashed = format!("{name}: crashed: no report of health for 3");
        node.wait_for_console(&crashed, patience(60)).unwrap();
        // Named after the thread that took the signal.
        let kept = format!("ls /run/adit/crash | grep -e '-{}-6.core'", pid.trim());
        node.wait_until(&kept).unwrap();
    }
    let console = node.console();
    let aborted = console.matches(" s, ended with signal SIGABRT; starts again in 250 ms");
    assert_eq!(aborted.count(), 2, "{console}");

    node.wait_until("aditctl node show").unwrap();
    let again = format!("[ $({services} | grep -c '\"starts\": 2') = 2 ] && {both_report}");
    node.wait_until(&again).unwrap();
    let console = node.console();
    assert!(!console.contains("the watchdog is not fed"), "{console}");
    node.begin("/sbin/poweroff").unwrap();
    node.wait_for_end(patience(120)).unwrap();
}

/// Goal: a node is reset when a service stays silent although it was ended and started again. Method: one report
/// of health, then none; QEMU ends where a machine would start again.
#[test]
fn a_node_without_fresh_health_is_reset_by_its_watchdog() {
    if skip_without_qemu() {
        return;
    }
    let mut node = Node::builder("health")
        .machine("node-watchdog")
        .kernel("adit.watchdog.timeout_s=10")
        .boot()
        .unwrap();
    let status = node.run("/init status | grep watchdog").unwrap();
    assert!(
        status.contains("/dev/watchdog0 resets the node 10 s after"),
        "{status}"
    );
    let report = "{\"call\":\"health\",\"service\":\"probe\",\"ok\":true}";
    node.run(&format!("/init call '{report}'")).unwrap();
    node.wait_for_end(patience(90)).unwrap();
    let console = node.console();
    for sentence in [
        "probe: crashed: no report of health for ",
        "the watchdog is not fed: the last health report of probe is ",
    ] {
        assert!(console.contains(sentence), "{console}");
    }
    assert!(!console.contains("everything has ended"), "{console}");
}

/// Goal: a node whose process 1 hangs is reset. Method: the control group freezer stops it, which no
/// signal can.
#[test]
fn a_node_whose_init_hangs_is_reset_by_its_watchdog() {
    if skip_without_qemu() {
        return;
    }
    let mut node = Node::builder("hang")
        .machine("node-watchdog")
        .kernel("adit.watchdog.timeout_s=10")
        .boot()
        .unwrap();
    node.begin(
        "mkdir /sys/fs/cgroup/ice && echo 1 >/sys/fs/cgroup/ice/cgroup.procs && \
         echo 1 >/sys/fs/cgroup/ice/cgroup.freeze",
    )
    .unwrap();
    node.wait_for_end(patience(90)).unwrap();
    let console = node.console();
    assert!(!console.contains("everything has ended"), "{console}");
}
