//! Changes to a target that a connected host sees without reconnecting.

use qemu_tests::{Adit, Guest, patience, skip_without_qemu};

const NQN: &str = "nqn.2026-11.io.adit:live";

/// Goal: namespaces come, grow and go under a connected host, and I/O to the others goes on.
/// Method: `aditctl` changes the subsystem while fio verifies on the first namespace; the guest's
/// kernel hears of it by asynchronous events.
#[test]
fn namespaces_come_grow_and_go_under_a_connected_host() {
    if skip_without_qemu() {
        return;
    }
    let adit = Adit::builder().start().unwrap();
    adit.ctl(&["bdev", "create", "malloc", "first", "--size", "64MiB"])
        .unwrap();
    let path = adit.state_dir().join("second.img").display().to_string();
    adit.ctl(&["bdev", "create", "file", "second", &path, "--size", "32MiB"])
        .unwrap();
    let port = adit.export(NQN, "first").unwrap();
    let mut guest = Guest::builder("live").boot().unwrap();
    guest.nvme_connect(NQN, port, "").unwrap();
    let first = guest.wait_for_namespace(NQN, 1).unwrap();
    let script = format!(
        "until [ -e /tmp/enough ]; do\n\
         fio --name=bystander --filename={first} --rw=randwrite --bs=4k --iodepth=4 --size=2M \
         --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 >/tmp/bystander\n\
         done"
    );
    let bystander = guest.spawn(&script).unwrap();

    for round in 1..=2 {
        guest.wait_for_no_namespace(NQN, 2).unwrap();
        adit.ctl(&["namespace", "add", NQN, "second", "--nsid", "2"])
            .unwrap();
        let second = guest.wait_for_namespace(NQN, 2).unwrap();
        let bytes = guest
            .run(&format!("blockdev --getsize64 {second}"))
            .unwrap();
        assert_eq!(bytes.trim(), (round * (32u64 << 20)).to_string());

        let (mib, bytes) = ((round + 1) * 32, (round + 1) * (32u64 << 20));
        let size = format!("{mib}MiB");
        adit.ctl(&["bdev", "resize", "second", "--size", &size])
            .unwrap();
        let script = format!(
            "blockdev --getsize64 {second}; [ $(blockdev --getsize64 {second}) = {bytes} ]"
        );
        guest
            .wait_until("the new size", &script, patience(60))
            .unwrap();
        // The new end is really there.
        guest
            .run(&format!(
                "head -c 4096 /dev/urandom >/tmp/end\n\
                 last=$(({bytes} / 4096 - 1))\n\
                 dd if=/tmp/end of={second} oflag=direct bs=4096 seek=$last status=none\n\
                 dd if={second} iflag=direct bs=4096 skip=$last status=none | cmp - /tmp/end"
            ))
            .unwrap();
        adit.ctl(&["namespace", "remove", NQN, "2"]).unwrap();
        guest.wait_for_no_namespace(NQN, 2).unwrap();
    }
    guest.run("touch /tmp/enough").unwrap();
    guest.join(bystander, patience(120)).unwrap();
    guest.nvme_disconnect(NQN).unwrap();
    guest.power_off().unwrap();
}

/// Goal: a host follows the path states that it is told. Method: two listeners, two paths; the
/// state of one is changed by `aditctl`, the kernel shows it, and I/O takes the other path. With
/// both inaccessible I/O waits, and goes on after.
#[test]
fn path_states_are_followed_by_a_connected_host() {
    if skip_without_qemu() {
        return;
    }
    let adit = Adit::builder().start().unwrap();
    adit.ctl(&["bdev", "create", "malloc", "disk", "--size", "64MiB"])
        .unwrap();
    let ports = [adit.export(NQN, "disk").unwrap(), adit.listen(NQN).unwrap()];
    let addresses = ports.map(|port| format!("tcp://127.0.0.1:{port}"));
    let mut guest = Guest::builder("ana").boot().unwrap();
    let paths = ports.map(|port| guest.nvme_connect(NQN, port, "").unwrap());
    let device = guest.wait_for_namespace(NQN, 1).unwrap();
    // The devices of the paths, "nvme0c0n1", are hidden below their controllers.
    let states = paths.map(|path| format!("/sys/class/nvme/{}/nvme*n1/ana_state", path.name));
    let wait_for = |guest: &mut Guest, path: usize, state: &str| {
        let script = format!("cat {0}; [ \"$(cat {0})\" = {state} ]", states[path]);
        guest
            .wait_until(&format!("path {path} to be {state}"), &script, patience(60))
            .unwrap();
    };
    let set = |path: usize, state: &str| {
        adit.ctl(&["ana", "set", NQN, &addresses[path], state])
            .unwrap();
    };
    let write = format!("dd if=/dev/urandom of={device} oflag=direct bs=64k count=16 status=none");
    wait_for(&mut guest, 0, "optimized");
    wait_for(&mut guest, 1, "optimized");

    for (told, shown) in [
        ("non-optimized", "non-optimized"),
        ("inaccessible", "inaccessible"),
    ] {
        set(0, told);
        wait_for(&mut guest, 0, shown);
        wait_for(&mut guest, 1, "optimized");
        guest.run(&write).unwrap();
    }

    set(1, "inaccessible");
    wait_for(&mut guest, 1, "inaccessible");
    let waiting = guest.spawn(&write).unwrap();
    let what = "I/O to wait for a path";
    let script = format!(
        "set -- $(cat /sys/block/{}/inflight); echo $2\n\
         [ $2 -gt 0 ] || dmesg | grep 'no usable path'",
        device.trim_start_matches("/dev/")
    );
    guest.wait_until(what, &script, patience(60)).unwrap();
    set(0, "optimized");
    wait_for(&mut guest, 0, "optimized");
    guest.join(waiting, patience(60)).unwrap();
    guest.nvme_disconnect(NQN).unwrap();
    guest.power_off().unwrap();
}
