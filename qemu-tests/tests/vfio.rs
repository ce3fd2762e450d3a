//! Drives that `aditd` drives itself: emulated NVMe behind an emulated IOMMU, `aditd` in the guest.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use std::path::Path;
use std::time::Duration;

use program_tests::program;
use qemu_tests::{Guest, GuestBuilder, patience, skip_without_qemu};
use serde_json::json;
use tempfile::TempDir;

const NQN: &str = "nqn.2026-11.io.adit:drives";
/// Port of the target in the guest.
const PORT: u16 = 4420;
/// Shell functions for all scripts in the guest.
const TOOLS: &str = r#"
ctl() { /share/aditctl --server unix:/run/adit/aditd.sock "$@"; }
# The address of the drive with this place among the NVMe functions.
drive() { for each in /sys/bus/pci/devices/*; do
    case $(cat $each/class) in 0x010802) echo ${each##*/};; esac; done | sed -n "$1p"; }
bind() { echo vfio-pci >/sys/bus/pci/devices/$1/driver_override
    [ ! -e /sys/bus/pci/devices/$1/driver ] || echo $1 >/sys/bus/pci/devices/$1/driver/unbind
    echo $1 >/sys/bus/pci/drivers_probe; }
start() { mkdir -p /run/adit; ip link set lo up 2>/dev/null || busybox ifconfig lo up
    /share/aditd --state-dir /run/adit --grpc unix:/run/adit/aditd.sock --reactors 1 \
        >>/share/aditd.log 2>&1 & echo $! >/run/aditd.pid
    until ctl node show >/dev/null 2>&1; do kill -0 $(cat /run/aditd.pid); sleep 0.1; done; }
is() { [ "$(eval "$1")" = "$2" ] || { echo "$1 is $(eval "$1"), not $2" >&2; exit 1; }; }
"#;

struct Disks(TempDir);

impl Disks {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Puts sparse files behind the drives of a machine.
    fn behind(&self, builder: GuestBuilder, names: &[&str]) -> GuestBuilder {
        names.iter().fold(builder, |builder, name| {
            let path = self.0.path().join(name);
            let file = std::fs::File::create(&path).unwrap();
            file.set_len(64 << 20).unwrap();
            builder.drive(name, &path)
        })
    }
}

/// A guest with the programs in its share.
fn boot(builder: GuestBuilder) -> Guest {
    let guest = builder.boot().unwrap();
    for name in ["aditd", "aditctl"] {
        copy(&program(name), &guest.share().join(name));
    }
    guest
}

fn copy(from: &Path, to: &Path) {
    let copied = std::fs::hard_link(from, to).or_else(|_| std::fs::copy(from, to).map(drop));
    copied.unwrap();
}

fn run(guest: &mut Guest, script: &str) -> String {
    match guest.run(&format!("{TOOLS}{script}")) {
        Ok(stdout) => stdout,
        Err(error) => {
            let log = std::fs::read_to_string(guest.share().join("aditd.log"));
            panic!("{error:?}\n--- aditd ---\n{}", log.unwrap_or_default());
        }
    }
}

fn wait_until(guest: &mut Guest, what: &str, script: &str) {
    if let Err(error) = guest.wait_until(what, &format!("{TOOLS}{script}"), patience(120)) {
        let log = std::fs::read_to_string(guest.share().join("aditd.log"));
        panic!("{error:?}\n--- aditd ---\n{}", log.unwrap_or_default());
    }
}

/// Goal: two drives of different block sizes, one with two namespaces, serve a host through vfio
/// with right data, through FLUSH, resets under load and a killed target; an orderly stop is one for
/// the drives too. Method: `aditd` in the guest, the guest's own kernel as the host over loopback,
/// fio verifies; QEMU's trace tells of shutdown notifications.
#[test]
fn drives_serve_a_host_through_resets_kills_and_an_orderly_stop() {
    if skip_without_qemu() {
        return;
    }
    let disks = Disks::new();
    let builder = Guest::builder("vfio")
        .machine("drives")
        .qemu("-trace pci_nvme_mmio_shutdown_set -trace pci_nvme_mmio_shutdown_cleared");
    let mut guest = boot(disks.behind(builder, &["a1", "a2", "DRIVE-B"]));
    run(
        &mut guest,
        "modprobe -a vfio-pci vfio_iommu_type1 nvme-tcp
         start
         ctl bdev create nvme a $(drive 1) >/share/pending.txt 2>&1 || true
         ctl bdev show a >>/share/pending.txt
         grep -q 'bind it to vfio-pci' /share/pending.txt",
    );
    // Bound while it is waited for; the other is found by its serial number.
    run(&mut guest, "bind $(drive 1); bind $(drive 2)");
    wait_until(
        &mut guest,
        "the drive to come up",
        "ctl bdev show a | grep -q 'DRIVE-A'",
    );
    let shown = run(
        &mut guest,
        "ctl bdev create nvme b --serial DRIVE-B; ctl bdev show a; ctl bdev show an2",
    );
    for wanted in [
        "DRIVE-A",
        "an1",
        "an2",
        "4096",
        "unsafe shutdowns",
        "DRIVE-B",
    ] {
        assert!(shown.contains(wanted), "no {wanted} in\n{shown}");
    }
    run(
        &mut guest,
        &format!(
            "ctl transport create tcp || true
             ctl subsystem create {NQN} --allow-any-host
             for each in an1 an2 bn1; do ctl namespace add {NQN} $each; done
             ctl listener add {NQN} tcp://127.0.0.1:{PORT}
             nvme connect -t tcp -a 127.0.0.1 -s {PORT} -n {NQN} --reconnect-delay 1 -l -1"
        ),
    );
    for nsid in 1..=3 {
        guest.wait_for_namespace(NQN, nsid).unwrap();
    }
    let device = guest.wait_for_namespace(NQN, 1).unwrap();
    let second = guest.wait_for_namespace(NQN, 2).unwrap();
    assert_eq!(
        run(&mut guest, &format!("blockdev --getss {second}")).trim(),
        "4096"
    );

    // Writes with flushes while the controllers are reset and the target is killed.
    let fio = |device: &str, name: &str| {
        format!(
            "fio --name={name} --filename={device} --rw=randwrite --bs=4k --iodepth=16 --size=24M \
             --ioengine=libaio --direct=1 --fsync=64 --verify=crc32c --verify_fatal=1 \
             --do_verify=1 --randrepeat=0 --rate_iops=,600 >/share/{name}.fio 2>&1"
        )
    };
    let jobs = [
        guest.spawn(&fio(&device, "first")).unwrap(),
        guest.spawn(&fio(&second, "second")).unwrap(),
    ];
    let written = |guest: &mut Guest, count: u32| {
        let name = device.trim_start_matches("/dev/");
        let script = format!("set -- $(cat /sys/block/{name}/stat); echo $5; [ $5 -ge {count} ]");
        guest.wait_until("writes", &script, patience(300)).unwrap();
    };
    for count in [500, 1000, 1500] {
        written(&mut guest, count);
        run(&mut guest, "ctl bdev reset a >/dev/null");
    }
    written(&mut guest, 2000);
    run(
        &mut guest,
        "kill -9 $(cat /run/aditd.pid); sleep 0.5; start",
    );
    wait_until(
        &mut guest,
        "the drives to come back",
        "ctl bdev show a | grep -q DRIVE-A",
    );
    for job in jobs {
        guest.join(job, patience(600)).unwrap();
    }
    assert!(!guest.serial().contains("I/O error"), "{}", guest.serial());

    // Orderly: each drive is told, and says that it has stored all.
    let told = |guest: &Guest| guest.qemu_log().matches("shutdown_set").count();
    let before = told(&guest);
    let unsafe_before = run(&mut guest, "ctl bdev show a | grep 'unsafe shutdowns'");
    run(
        &mut guest,
        &format!(
            "nvme disconnect -n {NQN}
             kill $(cat /run/aditd.pid)
             while [ -e /proc/$(cat /run/aditd.pid)/exe ]; do sleep 0.1; done
             grep -c 'the drive is shut down' /share/aditd.log"
        ),
    );
    assert_eq!(told(&guest) - before, 2, "{}", guest.qemu_log());
    run(&mut guest, "start");
    wait_until(
        &mut guest,
        "the drive",
        "ctl bdev show a | grep -q 'unsafe shutdowns'",
    );
    let unsafe_after = run(&mut guest, "ctl bdev show a | grep 'unsafe shutdowns'");
    assert_eq!(unsafe_before, unsafe_after);
    guest.power_off().unwrap();
}

/// Goal: a drive that is pulled out costs its own namespace only, and is served again once it is
/// back. Method: hot unplug and plug over QMP under reads of a host; the host's namespace stays.
#[test]
fn a_drive_is_pulled_out_and_plugged_in_again() {
    if skip_without_qemu() {
        return;
    }
    let disks = Disks::new();
    let builder = Guest::builder("hotplug").machine("drives-hot");
    let mut guest = boot(disks.behind(builder, &["HOT", "STAYS"]));
    run(
        &mut guest,
        &format!(
            "modprobe -a vfio-pci vfio_iommu_type1 nvme-tcp
             start
             bind $(drive 1); bind $(drive 2)
             ctl bdev create nvme hot --serial HOT
             ctl bdev create nvme stays --serial STAYS
             ctl transport create tcp || true
             ctl subsystem create {NQN} --allow-any-host
             ctl namespace add {NQN} hotn1
             ctl namespace add {NQN} staysn1
             ctl listener add {NQN} tcp://127.0.0.1:{PORT}
             nvme connect -t tcp -a 127.0.0.1 -s {PORT} -n {NQN}"
        ),
    );
    let hot = guest.wait_for_namespace(NQN, 1).unwrap();
    let stays = guest.wait_for_namespace(NQN, 2).unwrap();
    run(
        &mut guest,
        &format!(
            "head -c 65536 /dev/urandom >/tmp/data
             dd if=/tmp/data of={hot} oflag=direct bs=64k status=none
             dd if=/tmp/data of={stays} oflag=direct bs=64k status=none"
        ),
    );
    for _ in 0..2 {
        guest.qmp("device_del", &json!({"id": "HOT"})).unwrap();
        wait_until(
            &mut guest,
            "the drive to be let go of",
            "ctl bdev show hot | grep -q 'pending'; is 'drive 2' ''",
        );
        run(
            &mut guest,
            &format!("dd if={stays} iflag=direct bs=64k count=1 status=none | cmp - /tmp/data"),
        );
        // QEMU takes the device away a little after the guest has powered its slot off.
        let deadline = std::time::Instant::now() + patience(60);
        let plug = json!({
            "driver": "nvme", "id": "HOT", "bus": "port-HOT", "serial": "HOT", "drive": "HOT"
        });
        while let Err(error) = guest.qmp("device_add", &plug) {
            assert!(std::time::Instant::now() < deadline, "{error:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
        wait_until(
            &mut guest,
            "the drive to be seen",
            "[ -n \"$(drive 2)\" ]; for each in 1 2; do bind $(drive $each); done",
        );
        wait_until(
            &mut guest,
            "the drive to be back",
            "ctl bdev show hot | grep -q running; ! ctl bdev show hot | grep -q pending",
        );
        wait_until(
            &mut guest,
            "its data",
            &format!("dd if={hot} iflag=direct bs=64k count=1 status=none | cmp - /tmp/data"),
        );
    }
    guest.power_off().unwrap();
}

/// Goal: without an IOMMU the operator is told what to do, and the bdev waits. Method: the same
/// guest without one.
#[test]
fn without_an_iommu_the_reason_says_what_to_do() {
    if skip_without_qemu() {
        return;
    }
    let disks = Disks::new();
    let builder = Guest::builder("no-iommu").machine("drive-without-iommu");
    let mut guest = boot(disks.behind(builder, &["DRIVE-A"]));
    let shown = run(
        &mut guest,
        "modprobe -a vfio-pci vfio_iommu_type1; start
         ctl bdev create nvme a $(drive 1) >/dev/null 2>&1 || true
         ctl bdev show a; drive 1",
    );
    let address = shown.lines().last().unwrap().trim().to_owned();
    let sentence = format!(
        "pci function {address} is in no iommu group: give this virtual machine one: -device \
         intel-iommu in QEMU"
    );
    assert!(shown.contains(&sentence), "{shown}");
    guest.power_off().unwrap();
}

/// Measures 4 KiB random reads at depth 32: fio with `io_uring` on the kernel's driver, then
/// `nvme_perf` through vfio, in one guest. Prints both; not a test of speed, which needs a quiet
/// machine. `NVME_PERF` names the built example.
#[test]
#[ignore = "a measurement: cargo build --release -p nvme_driver --example nvme_perf"]
fn random_reads_through_vfio_against_the_kernel() {
    if skip_without_qemu() {
        return;
    }
    let perf = std::env::var("NVME_PERF").expect("NVME_PERF names the example");
    let disks = Disks::new();
    let builder = Guest::builder("iops").machine("drive");
    let mut guest = boot(disks.behind(builder, &["DRIVE-A"]));
    copy(Path::new(&perf), &guest.share().join("nvme_perf"));
    let script = format!(
        "{TOOLS}modprobe -a vfio-pci vfio_iommu_type1 nvme
         echo 64 >/proc/sys/vm/nr_hugepages
         for round in 1 2 3; do
         until [ -b /dev/nvme0n1 ]; do sleep 0.1; done
         fio --name=kernel --filename=/dev/nvme0n1 --ioengine=io_uring --direct=1 --rw=randread \
             --bs=4k --iodepth=32 --time_based --runtime=8 --randrepeat=0 --readonly |
             grep IOPS
         bind $(drive 1)
         /share/nvme_perf $(drive 1) 8 32
         NVME_PERF_INTERRUPTS=1 /share/nvme_perf $(drive 1) 8 32
         a=$(drive 1); echo $a >/sys/bus/pci/devices/$a/driver/unbind
         echo nvme >/sys/bus/pci/devices/$a/driver_override; echo $a >/sys/bus/pci/drivers_probe
         done"
    );
    let job = guest.spawn(&script).unwrap();
    let output = guest.join(job, patience(600)).unwrap();
    println!("{}", output.stdout);
    guest.power_off().unwrap();
}
