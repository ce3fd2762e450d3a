//! fio writes at random and verifies every block, over digests and under a target that is killed.

use qemu_tests::{Adit, Guest, patience, skip_without_qemu};
use serde_json::Value;

const NQN: &str = "nqn.2026-11.io.adit:fio";

/// Every block carries its own number and a checksum; the first that is wrong ends the run.
const FIO: &str = "fio --ioengine=libaio --direct=1 --group_reporting --eta=never \
    --verify=crc32c --verify_fatal=1 --do_verify=1 --randrepeat=0";

/// Goal: data is right with header and data digests on. Method: random writes of mixed sizes at a
/// queue depth, then fio reads all of it back; `aditctl` confirms that both digests were in use.
#[test]
fn random_writes_verify_with_both_digests() {
    if skip_without_qemu() {
        return;
    }
    let adit = Adit::builder().start().unwrap();
    adit.ctl(&["bdev", "create", "malloc", "ram", "--size", "128MiB"])
        .unwrap();
    let port = adit.export(NQN, "ram").unwrap();
    let mut guest = Guest::builder("digests").boot().unwrap();
    guest
        .nvme_connect(NQN, port, "--hdr-digest --data-digest")
        .unwrap();
    let device = guest.wait_for_namespace(NQN, 1).unwrap();

    let qpairs = adit.ctl(&["qpair", "list", NQN, "-o", "json"]).unwrap();
    let qpairs: Value = serde_json::from_str(&qpairs).unwrap();
    let qpairs = find_list(&qpairs);
    assert!(
        qpairs.len() >= 2,
        "an admin queue and I/O queues: {qpairs:?}"
    );
    for qpair in qpairs {
        assert_eq!(qpair["header_digest"], true, "{qpair}");
        assert_eq!(qpair["data_digest"], true, "{qpair}");
    }

    let script = format!(
        "{FIO} --name=mixed --filename={device} --rw=randwrite --bsrange=512-256k --iodepth=32 \
         --size=96M"
    );
    let job = guest.spawn(&script).unwrap();
    guest.join(job, patience(300)).unwrap();
    let script = format!(
        "{FIO} --name=small --filename={device} --rw=randrw --bs=4k --iodepth=64 --numjobs=2 \
         --size=16M --offset_increment=64M"
    );
    let job = guest.spawn(&script).unwrap();
    guest.join(job, patience(300)).unwrap();
    guest.nvme_disconnect(NQN).unwrap();
    guest.power_off().unwrap();
}

/// Goal: a host that is writing does not notice, but for a pause, that its target died. Method:
/// `aditd` is killed with -9 twice in the middle of a verifying fio and started again; the kernel
/// reconnects, sends again what was in flight, and fio finds every block as it wrote it.
#[test]
fn nothing_is_lost_when_the_target_is_killed_under_fio() {
    if skip_without_qemu() {
        return;
    }
    let mut adit = Adit::builder().start().unwrap();
    let path = adit.state_dir().join("disk.img").display().to_string();
    adit.ctl(&["bdev", "create", "file", "disk", &path, "--size", "256MiB"])
        .unwrap();
    let port = adit.export(NQN, "disk").unwrap();
    let mut guest = Guest::builder("killed").boot().unwrap();
    let controller = guest.nvme_connect(NQN, port, "--keep-alive-tmo 5").unwrap();
    let device = guest.wait_for_namespace(NQN, 1).unwrap();

    const WRITES: u64 = (48 << 20) / 4096;
    let name = device.trim_start_matches("/dev/");
    // The kernel's initiator sends from the writer's system call: on a connection that is closed this
    // gives the writer SIGPIPE, as if the socket were its own.
    let script = format!(
        "trap '' PIPE; {FIO} --name=killed --filename={device} --rw=randwrite --bs=4k --iodepth=16 \
         --size=48M --rate_iops=,2000 --fsync=500"
    );
    let job = guest.spawn(&script).unwrap();
    for writes in [WRITES / 6, WRITES / 2] {
        // Field 5: writes that ended.
        let what = format!("{writes} writes");
        let script = format!("set -- $(cat /sys/block/{name}/stat); echo $5; [ $5 -ge {writes} ]");
        guest.wait_until(&what, &script, patience(300)).unwrap();
        adit.kill_9();
        guest
            .wait_for_state(&controller, "connecting", patience(60))
            .unwrap();
        adit.start().unwrap();
        guest
            .wait_for_state(&controller, "live", patience(60))
            .unwrap();
    }
    guest.join(job, patience(600)).unwrap();
    assert!(!guest.serial().contains("I/O error"), "{}", guest.serial());
    guest.nvme_disconnect(NQN).unwrap();
    guest.power_off().unwrap();
    adit.terminate().unwrap();
}

/// The list in an answer, whether it comes bare or under a name.
fn find_list(answer: &Value) -> Vec<Value> {
    let list = answer
        .as_array()
        .or_else(|| answer.as_object()?.values().find_map(Value::as_array));
    list.cloned().unwrap_or_default()
}
