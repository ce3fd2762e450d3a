//! The main job: filesystems on disks that Adit serves, found again after everything that may
//! happen.

#![expect(
    clippy::unwrap_used,
    reason = "steps of a test stand outside of the test's function"
)]

use qemu_tests::{Adit, Controller, Guest, patience, skip_without_qemu};

const NQN: &str = "nqn.2026-11.io.adit:files";

/// A filesystem under test: its name, its mkfs, its checker (which changes nothing), and its mount
/// point.
const FILESYSTEMS: [(&str, &str, &str, &str); 2] = [
    ("ext4", "mkfs.ext4 -q", "fsck.ext4 -f -n", "/mnt/ext4"),
    ("xfs", "mkfs.xfs -q", "xfs_repair -n", "/mnt/xfs"),
];

/// Goal: files written through the kernel's initiator are there, bit for bit, after a reconnect,
/// and after `aditd` was killed with -9 and restarted. Method: ext4 and xfs on two file devices,
/// random files with SHA-256 sums, kept in the guest; the kill comes right after a sync, under the
/// mounted filesystems.
#[test]
fn files_survive_reconnects_and_a_killed_target() {
    if skip_without_qemu() {
        return;
    }
    let mut adit = Adit::builder().start().unwrap();
    adit.ctl(&["subsystem", "create", NQN, "--allow-any-host"])
        .unwrap();
    for (name, ..) in FILESYSTEMS {
        let path = adit
            .state_dir()
            .join(format!("{name}.img"))
            .display()
            .to_string();
        adit.ctl(&["bdev", "create", "file", name, &path, "--size", "512MiB"])
            .unwrap();
    }
    let port = adit.expose(NQN, FILESYSTEMS[0].0).unwrap();
    adit.ctl(&["namespace", "add", NQN, FILESYSTEMS[1].0, "--nsid", "2"])
        .unwrap();
    let mut guest = Guest::builder("files").boot().unwrap();

    let (_, mut devices) = connect(&mut guest, port);
    for ((_, mkfs, _, folder), device) in FILESYSTEMS.iter().zip(&devices) {
        guest
            .run(&format!("{mkfs} {device}; mkdir -p {folder}"))
            .unwrap();
    }
    mount(&mut guest, &devices);
    write_files(&mut guest, "first", "umount");
    guest.nvme_disconnect(NQN).unwrap();

    // Unmount, disconnect, connect, mount.
    let controller;
    (controller, devices) = connect(&mut guest, port);
    mount(&mut guest, &devices);
    verify_files(&mut guest, "first");

    // kill -9 under the mounted filesystems; the kernel comes back by itself.
    write_files(&mut guest, "second", "sync");
    adit.kill_9();
    guest
        .wait_for_state(&controller, "connecting", patience(60))
        .unwrap();
    adit.start().unwrap();
    guest
        .wait_for_state(&controller, "live", patience(60))
        .unwrap();
    guest.run("echo 3 >/proc/sys/vm/drop_caches").unwrap();
    verify_files(&mut guest, "first second");
    write_files(&mut guest, "third", "umount");
    guest.nvme_disconnect(NQN).unwrap();

    // kill -9 with nobody there, restart, connect anew; the filesystems are sound.
    adit.kill_9();
    adit.start().unwrap();
    (_, devices) = connect(&mut guest, port);
    for ((_, _, check, _), device) in FILESYSTEMS.iter().zip(&devices) {
        guest.run(&format!("{check} {device}")).unwrap();
    }
    mount(&mut guest, &devices);
    verify_files(&mut guest, "first second third");
    guest.run("umount /mnt/ext4 /mnt/xfs").unwrap();
    guest.nvme_disconnect(NQN).unwrap();
    guest.power_off().unwrap();
    adit.terminate().unwrap();
}

fn connect(guest: &mut Guest, port: u16) -> (Controller, Vec<String>) {
    let controller = guest.nvme_connect(NQN, port, "--keep-alive-tmo 5").unwrap();
    let devices = [1, 2].map(|nsid| guest.wait_for_namespace(NQN, nsid).unwrap());
    (controller, devices.to_vec())
}

fn mount(guest: &mut Guest, devices: &[String]) {
    for ((name, _, _, folder), device) in FILESYSTEMS.iter().zip(devices) {
        guest
            .run(&format!(
                "modprobe {name}; mount -t {name} {device} {folder}"
            ))
            .unwrap();
    }
}

/// Writes 24 files of odd sizes, up to 4 MiB, into a folder of each filesystem, then syncs or
/// unmounts.
fn write_files(guest: &mut Guest, folder: &str, then: &str) {
    let mounts = FILESYSTEMS.map(|filesystem| filesystem.3).join(" ");
    let then = if then == "sync" {
        "sync".to_owned()
    } else {
        format!("{then} {mounts}")
    };
    guest
        .run(&format!(
            "head -c 4194304 /dev/urandom >/tmp/random\n\
             for mount in {mounts}; do\n\
             mkdir $mount/{folder}\n\
             for n in $(seq 1 24); do\n\
             tail -c +$n /tmp/random | head -c $((n * n * 7281 + n)) >$mount/{folder}/$n\n\
             done\n\
             ( cd $mount && sha256sum {folder}/* >/tmp/sums-$(basename $mount)-{folder} )\n\
             done\n\
             {then}"
        ))
        .unwrap();
}

fn verify_files(guest: &mut Guest, folders: &str) {
    guest
        .run(&format!(
            "for name in ext4 xfs; do\n\
             for folder in {folders}; do\n\
             cd /mnt/$name; [ $(ls $folder | wc -l) -eq 24 ]\n\
             sha256sum --check --quiet /tmp/sums-$name-$folder\n\
             done\ndone"
        ))
        .unwrap();
}
