//! What happens to a node that serves: its target is killed, a drive is pulled out, it is powered off. The image,
//! the drives that it drives itself, a host with I/O.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use std::net::TcpStream;

use program_tests::until;
use qemu_tests::{
    Appliance, ApplianceBuilder, Guest, Image, Power, VolatileDisk, free_port, patience,
    skip_without_qemu,
};
use serde_json::{Value, json};

const NQN: &str = "nqn.2026-11.io.adit:outages";
const MIB: u64 = 1 << 20;

/// Kills the target whenever somebody connects.
const KILLER: &str = "b=/beside/busybox\n\
    while $b nc -l -p 4999 </dev/null >/dev/null; do $b kill -9 $($b pidof aditd); done\n";

struct Storage {
    node: Appliance,
    disks: [VolatileDisk; 4],
    /// Ports of the host's 127.0.0.1: NVMe/TCP, and who kills the target.
    nvme: u16,
    killer: u16,
}

impl Storage {
    /// A node that shares a volume on its first drive, and its third drive as it is.
    fn boot() -> Self {
        let image = Image::make("release").unwrap();
        let power = Power::new();
        let disk = |name| VolatileDisk::new(name, 128 * MIB, &power).unwrap();
        let disks = ["drive-1", "drive-2", "drive-3", "drive-4"].map(disk);
        let builder = Appliance::builder("outages", &image)
            .machine("storage")
            .overlay(image.with_script(KILLER).unwrap());
        let builder = disks.iter().fold(builder, ApplianceBuilder::drive);
        let storage = Self {
            node: builder.boot().unwrap(),
            disks,
            nvme: free_port().unwrap(),
            killer: free_port().unwrap(),
        };
        storage.ctl(&format!("subsystem create {NQN} --allow-any-host"));
        for drive in ["1", "3"] {
            let name = format!("d{drive}");
            storage.ctl(&format!("bdev create nvme {name} --serial drive-{drive}"));
            let show = ["bdev", "show", &format!("{name}n1")];
            storage.node.ctl_until(&show, &name);
        }
        storage.ctl("pool create tank d1n1 --cluster-size 64KiB");
        storage.ctl("volume create tank/v --size 64MiB");
        for (bdev, nsid) in [("tank/v", 1), ("d3n1", 2)] {
            storage.ctl(&format!("namespace add {NQN} {bdev} --nsid {nsid}"));
        }
        storage.ctl(&format!("listener add {NQN} tcp://10.0.2.15:4420 --wait"));
        for (own, port) in [(storage.nvme, 4420), (storage.killer, 4999)] {
            until("the port", || storage.node.forward(own, port).ok());
        }
        storage
    }

    fn ctl(&self, words: &str) -> String {
        let words: Vec<&str> = words.split(' ').collect();
        self.node.ctl(&words).unwrap()
    }

    /// Process and restarts of a service.
    fn service(&self, name: &str) -> (u64, u64) {
        let services: Value = serde_json::from_str(&self.ctl("node services -o json")).unwrap();
        let services = services["services"].as_array().unwrap();
        let service = services.iter().find(|service| service["name"] == name);
        let service = service.unwrap_or_else(|| panic!("{services:?}"));
        let number = |key: &str| service[key].as_u64().unwrap();
        (number("pid"), number("restarts"))
    }
}

/// Waits until the host has ended `more` further writes to a device.
fn writes_go_on(host: &mut Guest, device: &str, more: u64) {
    let before = host.wait_for_writes(device, 0).unwrap();
    host.wait_for_writes(device, before + more).unwrap();
}

/// Goal: nothing of what an operator sees in an ordinary week costs a host its data or its path. A target that is
/// killed is back and serves, the host's I/O goes on, the agent was never away. A drive that is pulled out costs
/// itself, is told of in the same words on the console and over the network, and serves again once it is back. An
/// orderly end leaves nothing in the caches of the drives. Method: fio verifies all the while; hot plug over QMP;
/// the disks count what is not flushed.
#[test]
fn a_killed_target_a_pulled_drive_and_an_orderly_end_cost_a_host_nothing() {
    if skip_without_qemu() {
        return;
    }
    let mut storage = Storage::boot();
    let builder = Guest::builder("host").machine("host-small");
    let mut host = builder.boot().unwrap();
    host.nvme_connect(NQN, storage.nvme, "--keep-alive-tmo 5")
        .unwrap();
    let volume = host.wait_for_namespace(NQN, 1).unwrap();
    let raw = host.wait_for_namespace(NQN, 2).unwrap();
    host.run(&format!(
        "head -c 1M /dev/urandom >/tmp/data\n\
         dd if=/tmp/data of={raw} oflag=direct bs=64k conv=fsync status=none"
    ))
    .unwrap();
    let fio = host.verify_again_and_again(&volume).unwrap();
    writes_go_on(&mut host, &volume, 300);

    let ((agent, _), (target, _)) = (storage.service("adit-agent"), storage.service("aditd"));
    drop(TcpStream::connect(("127.0.0.1", storage.killer)).unwrap());
    until("another process of aditd", || {
        let (pid, restarts) = storage.service("aditd");
        (pid != target && pid != 0 && restarts == 1).then_some(())
    });
    writes_go_on(&mut host, &volume, 300);
    assert_eq!(storage.service("adit-agent"), (agent, 0));

    let sentence = "bdev d3 is not there: none of the 3 drives that vfio-pci has shows the serial number drive-3";
    let unplug = json!({"id": "drive-3"});
    storage.node.qmp("device_del", &unplug).unwrap();
    storage.node.ctl_until(&["node", "system"], sentence);
    // A line of the screen holds so much.
    let (on_the_console, _) = sentence.split_at(60);
    let limit = patience(60);
    storage
        .node
        .wait_for_console(on_the_console, limit)
        .unwrap();
    writes_go_on(&mut host, &volume, 100);
    let plug = json!({
        "driver": "nvme", "id": "drive-3", "bus": "port-drive-3", "serial": "drive-3",
        "drive": "drive-3"
    });
    until("the slot to be free", || {
        storage.node.qmp("device_add", &plug).ok()
    });
    let same = format!("dd if={raw} iflag=direct bs=64k count=16 status=none | cmp - /tmp/data");
    host.wait_until("the drive", &same, patience(120)).unwrap();
    assert!(!storage.ctl("node system").contains("is not there"));

    host.run("touch /tmp/enough").unwrap();
    host.join(fio, patience(120)).unwrap();
    host.run(&format!(
        "dd if=/tmp/data of={raw} oflag=direct bs=64k seek=64 status=none"
    ))
    .unwrap();
    let unflushed = |disk: &VolatileDisk| disk.unflushed();
    assert!(unflushed(&storage.disks[2]) > 0, "nothing to lose");
    storage.ctl("node poweroff");
    // QEMU itself flushes when it ends: what the target has left to do is seen before.
    let ended = storage
        .node
        .wait_for_console("aditd: ended with exit 0", patience(120));
    let left = storage.disks.each_ref().map(unflushed);
    ended.unwrap();
    assert_eq!(left, [0; 4]);
    storage.node.wait_for_end(patience(120)).unwrap();
    let console = storage.node.console();
    assert!(
        console.contains("power off: everything has ended"),
        "{console}"
    );
    println!("{:.1?} from the start of QEMU", storage.node.age());
}
