//! NVMe over RDMA on soft-RoCE: `aditd` in the guest, and as its host `aditctl` or the guest's own
//! kernel.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use qemu_tests::aditd_guest::{RDMA_MODULES, connect_rdma, join, run, wait_for_state, wait_until};
use qemu_tests::{Controller, Guest, skip_without_qemu};

const NQN: &str = "nqn.2026-11.io.adit:rdma";
/// Where the target listens, on a network device that leads nowhere else.
const ADDRESS: &str = "10.9.0.1";
const PORT: u16 = 4420;
/// Every block carries its own number and a checksum; the first that is wrong ends the run.
const FIO: &str = "fio --ioengine=libaio --direct=1 --group_reporting --eta=never \
    --verify=crc32c --verify_fatal=1 --do_verify=1 --randrepeat=0";

/// A guest with a soft-RoCE device, and an `aditd` that listens on it with these options of the
/// transport.
fn boot(name: &str, options: &str) -> Guest {
    let builder = Guest::builder(name).machine("host-large").programs();
    let mut guest = builder.boot().unwrap();
    run(
        &mut guest,
        &format!(
            "modprobe -a {RDMA_MODULES} dummy
             ip link add rdma0 type dummy
             ip link set rdma0 mtu 4200 up
             ip address add {ADDRESS}/24 dev rdma0
             rdma link add rxe0 type rxe netdev rdma0
             start
             ctl transport create rdma {options}
             ctl subsystem create {NQN} --allow-any-host
             ctl bdev create malloc disk --size 128MiB
             ctl namespace add {NQN} disk --nsid 1
             ctl listener add {NQN} rdma://{ADDRESS}:{PORT} --wait"
        ),
    );
    guest
}

/// The guest's kernel connects over RDMA.
fn connect(guest: &mut Guest) -> Controller {
    connect_rdma(guest, ADDRESS, PORT, NQN, "--keep-alive-tmo 5")
}

/// Goal: the two programs understand each other through the libraries of rdma-core, with every way
/// that data can take. Method: `aditctl check`, then `aditctl perf` writes and verifies sizes below,
/// at and above what a capsule holds; again without a shared receive queue and in-capsule data.
#[test]
fn the_programs_reach_each_other_over_soft_roce() {
    if skip_without_qemu() {
        return;
    }
    let mut guest = boot("rdma-programs", "");
    let checked = run(&mut guest, &format!("ctl check {NQN}"));
    assert!(checked.contains("rdma://"), "{checked}");
    let rounds = [
        "",
        "ctl listener remove {NQN} rdma://{ADDRESS}:{PORT}
         ctl transport delete rdma
         ctl transport create rdma --no-srq true --in-capsule-data-size 0 --no-wr-batching true
         ctl listener add {NQN} rdma://{ADDRESS}:{PORT} --wait",
    ];
    for change in rounds {
        let change = change
            .replace("{NQN}", NQN)
            .replace("{ADDRESS}", ADDRESS)
            .replace("{PORT}", &PORT.to_string());
        run(&mut guest, &change);
        for size in ["512", "4KiB", "8KiB", "12KiB", "128KiB"] {
            run(
                &mut guest,
                &format!(
                    "ctl perf rdma://{ADDRESS}:{PORT}/{NQN} --workload randrw --read-percent 50 \
                     --verify --io-size {size} --count 200 --queue-depth 16 --connections 2 \
                     --region 16MiB"
                ),
            );
        }
    }
    guest.power_off().unwrap();
}

/// Goal: an unmodified Linux host finds the subsystem, keeps a filesystem and every block on it,
/// comes and goes, and has RDMA and TCP as two paths of which one may end. Method: discovery over
/// RDMA, fio with verification, ext4 over several connections, then a second listener over TCP;
/// the one over RDMA is taken away under fio.
#[test]
fn a_linux_host_works_over_rdma_and_keeps_its_tcp_path() {
    if skip_without_qemu() {
        return;
    }
    let mut guest = boot("rdma-linux", "");
    let script = format!("nvme discover -t rdma -a {ADDRESS} -s {PORT}");
    let discovered = run(&mut guest, &script);
    assert!(discovered.contains(NQN), "{discovered}");
    assert!(discovered.contains("trtype:  rdma"), "{discovered}");

    connect(&mut guest);
    let device = guest.wait_for_namespace(NQN, 1).unwrap();
    let job = guest.spawn(&format!(
        "{FIO} --name=mixed --filename={device} --rw=randwrite --bsrange=512-256k --iodepth=32 \
         --size=48M\n\
         {FIO} --name=small --filename={device} --rw=randrw --bs=4k --iodepth=64 --numjobs=2 \
         --size=8M --offset_increment=32M"
    ));
    join(&mut guest, job.unwrap());
    run(
        &mut guest,
        &format!(
            "head -c 8M /dev/urandom >/tmp/file; mkfs.ext4 -q {device}; mount {device} /mnt
             cp /tmp/file /mnt/; umount /mnt; nvme disconnect --nqn {NQN}"
        ),
    );
    for _ in 0..5 {
        connect(&mut guest);
        let device = guest.wait_for_namespace(NQN, 1).unwrap();
        run(
            &mut guest,
            &format!(
                "mount {device} /mnt; cmp /tmp/file /mnt/file; umount /mnt\n\
                 nvme disconnect --nqn {NQN}"
            ),
        );
    }

    let second = PORT + 1;
    run(
        &mut guest,
        &format!("ctl listener add {NQN} tcp://{ADDRESS}:{second} --wait"),
    );
    let over_rdma = connect(&mut guest);
    let over_tcp = guest.nvme_connect_at("tcp", ADDRESS, second, NQN, "");
    let over_tcp = over_tcp.unwrap();
    let device = guest.wait_for_namespace(NQN, 1).unwrap();
    run(
        &mut guest,
        &format!(
            "e2fsck -fn {device}
             for each in /sys/class/nvme-subsystem/*/iopolicy; do echo round-robin >$each; done"
        ),
    );
    let job = guest.spawn(&format!(
        "{FIO} --name=paths --filename={device} --rw=randwrite --bs=4k --iodepth=16 --size=16M \
         --rate_iops=,1000"
    ));
    let name = device.trim_start_matches("/dev/");
    let script = format!("set -- $(cat /sys/block/{name}/stat); echo $5; [ $5 -ge 500 ]");
    wait_until(&mut guest, "writes over both paths", &script, 120);
    run(
        &mut guest,
        &format!("ctl listener remove {NQN} rdma://{ADDRESS}:{PORT}"),
    );
    wait_for_state(&mut guest, &over_rdma, "connecting");
    join(&mut guest, job.unwrap());
    wait_for_state(&mut guest, &over_tcp, "live");
    guest.nvme_disconnect(NQN).unwrap();
    guest.power_off().unwrap();
}

/// Goal: a host that is writing notices but a pause when its target dies and when it resets its
/// controller. Method: under a verifying fio on a file `aditd` is killed with -9 and started again;
/// then the host resets the controller three times.
#[test]
fn nothing_is_lost_when_the_target_is_killed_or_the_controller_is_reset() {
    if skip_without_qemu() {
        return;
    }
    let mut guest = boot("rdma-killed", "");
    run(
        &mut guest,
        &format!(
            "ctl bdev create file kept /run/adit/kept.img --size 64MiB
             ctl namespace add {NQN} kept --nsid 2"
        ),
    );
    let controller = connect(&mut guest);
    let device = guest.wait_for_namespace(NQN, 2).unwrap();
    let name = device.trim_start_matches("/dev/").to_owned();
    const WRITES: u64 = (32 << 20) / 4096;
    let job = guest.spawn(&format!(
        "{FIO} --name=killed --filename={device} --rw=randwrite --bs=4k --iodepth=16 --size=32M \
         --rate_iops=,800 --fsync=500"
    ));
    let written = |guest: &mut Guest, writes: u64| {
        // Field 5: writes that ended.
        let what = format!("{writes} writes");
        let script = format!("set -- $(cat /sys/block/{name}/stat); echo $5; [ $5 -ge {writes} ]");
        wait_until(guest, &what, &script, 300);
    };

    written(&mut guest, WRITES / 8);
    run(&mut guest, "kill -9 $(cat /run/aditd.pid)");
    wait_for_state(&mut guest, &controller, "connecting");
    run(&mut guest, "start");
    wait_for_state(&mut guest, &controller, "live");

    written(&mut guest, WRITES / 2);
    for _ in 0..3 {
        run(&mut guest, &format!("nvme reset /dev/{}", controller.name));
        wait_for_state(&mut guest, &controller, "live");
    }
    join(&mut guest, job.unwrap());

    assert!(!guest.serial().contains("I/O error"), "{}", guest.serial());
    guest.nvme_disconnect(NQN).unwrap();
    run(
        &mut guest,
        "kill $(cat /run/aditd.pid)
         while [ -e /proc/$(cat /run/aditd.pid)/exe ]; do sleep 0.1; done",
    );
    guest.power_off().unwrap();
}

/// Goal: an RDMA device that is removed costs the paths through it and nothing else: `aditd` lets go
/// of it, so that the removal ends; a host with a path over TCP sees no error; and the listener is back
/// with the device. So too when no connection is there, and when the only listener has no address of
/// its own. Method: `rdma link delete` under a verifying fio over both paths, twice, then without
/// hosts, then with a listener at 0.0.0.0 only.
#[test]
fn a_device_that_is_removed_costs_its_path_alone() {
    if skip_without_qemu() {
        return;
    }
    let mut guest = boot("rdma-removed", "");
    let tcp_port = PORT + 1;
    run(
        &mut guest,
        &format!("ctl listener add {NQN} tcp://{ADDRESS}:{tcp_port} --wait"),
    );
    let listener = format!("ctl listener list | grep rdma://{ADDRESS}:{PORT}");
    let is_lost = format!("{listener} | grep removed");
    let is_back = format!("if {is_lost}; then exit 1; fi\nctl check {NQN}");
    // What has the device's file open holds its removal up.
    let removed = "timeout 60 rdma link delete rxe0
         if ls -l /proc/$(cat /run/aditd.pid)/fd | grep infiniband/uverbs; then exit 1; fi
         ctl node show >/dev/null";
    let restored = "rdma link add rxe0 type rxe netdev rdma0";
    let until = |guest: &mut Guest, what: &str, script: &str| {
        wait_until(guest, what, script, 60);
    };

    let over_tcp = guest.nvme_connect_at("tcp", ADDRESS, tcp_port, NQN, "");
    let over_tcp = over_tcp.unwrap();
    for round in 0..2 {
        let over_rdma = connect(&mut guest);
        let device = guest.wait_for_namespace(NQN, 1).unwrap();
        run(
            &mut guest,
            "for each in /sys/class/nvme-subsystem/*/iopolicy; do echo round-robin >$each; done",
        );
        let job = guest.spawn(&format!(
            "{FIO} --name=removed{round} --filename={device} --rw=randwrite --bs=4k --iodepth=16 \
             --size=12M --rate_iops=,1000"
        ));
        let name = device.trim_start_matches("/dev/");
        let script = format!("set -- $(cat /sys/block/{name}/stat); echo $5; [ $5 -ge 500 ]");
        until(&mut guest, "writes over both paths", &script);
        run(&mut guest, removed);
        until(&mut guest, "the listener to be pending", &is_lost);
        let path = format!("[ ! -e /sys/class/nvme/{} ]", over_rdma.name);
        until(&mut guest, "the path to be gone", &path);
        join(&mut guest, job.unwrap());
        wait_for_state(&mut guest, &over_tcp, "live");
        run(&mut guest, restored);
        until(&mut guest, "the listener to be back", &is_back);
    }
    assert!(!guest.serial().contains("I/O error"), "{}", guest.serial());
    guest.nvme_disconnect(NQN).unwrap();

    run(&mut guest, removed);
    until(&mut guest, "the listener to be pending", &is_lost);
    run(&mut guest, restored);
    until(&mut guest, "the listener to be back", &is_back);
    run(
        &mut guest,
        &format!(
            "ctl listener remove {NQN} rdma://{ADDRESS}:{PORT}
             ctl listener add {NQN} rdma://0.0.0.0:{PORT} --wait
             {removed}\n{restored}"
        ),
    );
    until(
        &mut guest,
        "the listener at any address to take the device",
        &format!(
            "ctl perf rdma://{ADDRESS}:{PORT}/{NQN} --workload randrw --verify --io-size 4KiB \
             --count 100"
        ),
    );
    guest.power_off().unwrap();
}
