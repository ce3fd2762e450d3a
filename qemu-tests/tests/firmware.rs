//! Profiles of firmware beside a guest with an emulated drive.

use program_tests::program;
use qemu_tests::{Guest, patience, skip_without_qemu};

/// Shell functions for all scripts in the guest. `code` runs a command and prints its exit code.
/// The program is copied once: a start from the shared folder reads all of it through 9p again.
const TOOLS: &str = r#"
[ -e /run/aditctl ] || cp /share/aditctl /run/aditctl
ctl() { /run/aditctl --server unix:/run/adit/aditd.sock "$@"; }
code() { set +e; "$@" >/tmp/out 2>&1; echo "exit $?"; cat /tmp/out; set -e; }
address() { for each in /sys/bus/pci/devices/*; do
    case $(cat $each/class) in 0x010802) echo ${each##*/};; esac; done; }
"#;

/// What the emulated drive can be set to.
const PROFILE: &str = r#"schema = 1
name = "guest"
summary = "The emulated drive, in other settings than it comes with."
[platform]
iommu = { want = true, why = "vfio-pci needs one" }
interrupt_remapping = { want = true, why = "vfio-pci needs it for interrupts" }
[nvme]
lba_data_bytes = { want = 4096, why = "the drive comes with 512" }
lba_metadata_bytes = { want = 0, why = "nothing here has metadata" }
power_state = { want = 0, why = "it has one only" }
write_cache = { want = false, why = "the drive comes with it on" }
"#;

/// Goal: a drive with 512 byte blocks and its cache on is seen to differ, is left alone without
/// `--yes` and while it is used, and is as the profile wants it afterwards, in a fresh `aditd` too;
/// a host reads what it writes to the new blocks. Method: `aditd` and `aditctl` in a guest.
#[test]
fn a_drive_is_checked_formatted_and_set_as_a_profile_wants_it() {
    if skip_without_qemu() {
        return;
    }
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(64 << 20).unwrap();
    let builder = Guest::builder("firmware").machine("drive");
    let mut guest = builder.drive("DRIVE-A", disk.path()).boot().unwrap();
    for name in ["aditd", "aditctl"] {
        std::fs::copy(program(name), guest.share().join(name)).unwrap();
    }
    std::fs::write(guest.share().join("guest.toml"), PROFILE).unwrap();
    let mut run = |script: &str| match guest.run(&format!("{TOOLS}{script}")) {
        Ok(stdout) => stdout,
        Err(error) => {
            let log = std::fs::read_to_string(guest.share().join("aditd.log"));
            panic!("{error:?}\n--- aditd ---\n{}", log.unwrap_or_default());
        }
    };
    let start = "mkdir -p /run/adit
         /share/aditd --state-dir /run/adit --grpc unix:/run/adit/aditd.sock --reactors 1 \
             >>/share/aditd.log 2>&1 & echo $! >/run/aditd.pid
         until ctl node show >/dev/null 2>&1; do kill -0 $(cat /run/aditd.pid); sleep 0.1; done";
    let ready = "until ctl bdev show d -o json | grep -q power_state; do sleep 0.1; done";

    // The kernel has it: what its driver keeps to itself is said to be so.
    let shown = run(
        "modprobe nvme; until [ -b /dev/nvme0n1 ]; do sleep 0.1; done
         code ctl firmware check /share/guest.toml",
    );
    assert!(shown.contains("exit 3"), "{shown}");
    assert!(shown.contains("/sys/class/block/nvme0n1/queue"), "{shown}");
    assert!(shown.contains("only by a command"), "{shown}");

    run(&format!(
        "modprobe -a vfio-pci vfio_iommu_type1; a=$(address)
         echo vfio-pci >/sys/bus/pci/devices/$a/driver_override
         echo $a >/sys/bus/pci/devices/$a/driver/unbind; echo $a >/sys/bus/pci/drivers_probe
         {start}
         ctl bdev create nvme d --serial DRIVE-A --wait >/dev/null
         {ready}"
    ));
    let shown = run("code ctl firmware check /share/guest.toml");
    assert!(shown.contains("exit 3"), "{shown}");
    assert!(
        shown.contains("guest: 4 as wanted, 2 not, 0 not readable"),
        "{shown}"
    );
    assert!(shown.contains("/sys/firmware/acpi/tables/DMAR"), "{shown}");
    let shown = run("code ctl firmware diff /share/guest.toml");
    assert!(shown.contains("the drive comes with 512"), "{shown}");

    // A dry run changes nothing; a format without the serial number is not done.
    let shown = run("code ctl firmware apply /share/guest.toml
         ctl bdev show dn1");
    assert!(shown.contains("exit 3"), "{shown}");
    assert!(
        shown.contains("would be done: drive d: write_cache from on to off"),
        "{shown}"
    );
    assert!(shown.contains("FORMAT dn1 from 512+0 to 4096+0"), "{shown}");
    let shown = run("code ctl firmware apply --yes /share/guest.toml </dev/null");
    assert!(shown.contains("done: drive d: write_cache"), "{shown}");
    assert!(shown.contains("give --serial DRIVE-A"), "{shown}");

    // In use: refused, and by whom.
    let shown = run("ctl pool create p dn1 >/dev/null
         code ctl firmware apply --yes --serial DRIVE-A /share/guest.toml
         ctl pool delete p >/dev/null");
    assert!(shown.contains("dn1: is in use by pool p"), "{shown}");

    let shown = run(
        "code ctl firmware apply --yes --serial DRIVE-A /share/guest.toml
         code ctl firmware apply --yes /share/guest.toml
         code ctl firmware check /share/guest.toml",
    );
    assert_eq!(shown.matches("exit 0").count(), 3, "{shown}");
    assert!(shown.contains("nothing to do"), "{shown}");

    // A restart of aditd resets the controller; the cache is off again all the same.
    let shown = run(&format!(
        "kill $(cat /run/aditd.pid); while [ -e /proc/$(cat /run/aditd.pid)/exe ]; do sleep 0.1; done
         {start}
         {ready}
         code ctl firmware check /share/guest.toml
         ctl bdev show dn1 -o json"
    ));
    assert!(shown.contains("exit 0"), "{shown}");
    assert!(shown.contains("\"block_size\": 4096"), "{shown}");
    let pool = "ctl pool create p dn1 >/dev/null && ctl volume create p/v --size 8MiB >/dev/null";
    guest
        .wait_until(
            "a pool on the new blocks",
            &format!("{TOOLS}{pool}"),
            patience(60),
        )
        .unwrap();
    guest.power_off().unwrap();
}
