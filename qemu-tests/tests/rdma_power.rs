//! NVMe over RDMA on soft-RoCE between two machines: a link that is down, power that is cut.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use qemu_tests::aditd_guest::{RDMA_MODULES, connect_rdma, fail, run, wait_for_state, wait_until};
use qemu_tests::{
    Controller, FlushLog, Guest, GuestBuilder, Power, VolatileDisk, free_port, patience,
    skip_without_qemu,
};
use serde_json::json;

const NQN: &str = "nqn.2026-11.io.adit:rdma-power";
const PORT: u16 = 4420;

/// Two machines and the wire between them: datagrams, so that either may go and come back.
struct Wire {
    ports: [u16; 2],
}

impl Wire {
    fn new() -> Self {
        Self {
            ports: [free_port().unwrap(), free_port().unwrap()],
        }
    }

    /// Its end, behind the second network card of a guest.
    fn end(&self, builder: GuestBuilder, end: usize) -> GuestBuilder {
        let (here, there) = (self.ports[end], self.ports[1 - end]);
        builder.qemu(&format!(
            "-netdev socket,id=wire,udp=127.0.0.1:{there},localaddr=127.0.0.1:{here}"
        ))
    }
}

fn link(end: usize) -> String {
    format!(
        "modprobe -a {RDMA_MODULES} ext4
         ip address add 10.9.1.{number}/24 dev eth1
         ip link set eth1 up
         rdma link add rxe0 type rxe netdev eth1\n",
        number = end + 1,
    )
}

struct Storage {
    wire: Wire,
    disks: [VolatileDisk; 2],
}

impl Storage {
    fn boot(&self, first: &str, then: &str) -> Guest {
        let builder = Guest::builder("rdma-storage")
            .machine("wired-storage")
            .programs();
        let builder = self.disks.iter().fold(builder, GuestBuilder::disk);
        let mut guest = self.wire.end(builder, 0).boot().unwrap();
        let script = format!(
            "{}{first}\nmkdir -p /state; mount /dev/disk-state /state; start /state\n{then}",
            link(0)
        );
        run(&mut guest, &script);
        guest
    }

    fn boot_host(&self) -> (Guest, Controller) {
        let builder = Guest::builder("rdma-host").machine("wired-host");
        let mut guest = self.wire.end(builder, 1).boot().unwrap();
        run(&mut guest, &link(1));
        let options = "--keep-alive-tmo 5 -i 1";
        let controller = connect_rdma(&mut guest, "10.9.1.1", PORT, NQN, options);
        (guest, controller)
    }
}

/// Goal: what a host has flushed over RDMA is there, and the host goes on by itself, after the link
/// was down for 20 s and after the target's power was cut; a host whose power was cut costs nothing
/// but its connections. Method: two machines; a log with a flush after each record; the wire is
/// unplugged in QEMU; disks lose what was not flushed.
#[test]
fn a_link_that_was_down_and_power_that_was_cut_lose_nothing() {
    if skip_without_qemu() {
        return;
    }
    let power = Power::new();
    let disk = |name, mib: u64| VolatileDisk::new(name, mib << 20, &power).unwrap();
    let storage = Storage {
        wire: Wire::new(),
        disks: [disk("data", 256), disk("state", 64)],
    };
    let serve = format!(
        "ctl transport create rdma
         ctl subsystem create {NQN} --allow-any-host
         ctl bdev create file kept /dev/disk-data
         ctl namespace add {NQN} kept --nsid 1
         ctl listener add {NQN} rdma://10.9.1.1:{PORT} --wait"
    );
    let mut target = storage.boot("mkfs.ext4 -q /dev/disk-state", &serve);
    let (mut host, controller) = storage.boot_host();
    let device = host.wait_for_namespace(NQN, 1).unwrap();
    let mut log = FlushLog::start(&mut host, &device).unwrap();
    let goes_on = |log: &FlushLog, host: &Guest| {
        if let Err(error) = log.progress(host, 5, patience(120)) {
            fail(host, &format!("{error:?}"));
        }
    };
    goes_on(&log, &host);

    let up = |guest: &mut Guest, is_up: bool| {
        guest
            .qmp("set_link", &json!({"name": "wire", "up": is_up}))
            .unwrap();
    };
    let uptime = run(&mut host, "cut -d. -f1 /proc/uptime");
    let back_at = uptime.trim().parse::<u64>().unwrap() + 20;
    up(&mut target, false);
    wait_for_state(&mut host, &controller, "connecting");
    let passed = format!("[ $(cut -d. -f1 /proc/uptime) -ge {back_at} ]");
    wait_until(&mut host, "20 s without a link", &passed, 120);
    up(&mut target, true);
    wait_for_state(&mut host, &controller, "live");
    goes_on(&log, &host);

    let flushed = log.acknowledged(&host);
    target.cut();
    for (disk, seed) in storage.disks.iter().zip([7, 11]) {
        println!("{}: {:?} lost", disk.name(), disk.lose_unflushed(seed));
    }
    wait_for_state(&mut host, &controller, "connecting");
    log.interrupt(&host, flushed);
    let mut target = storage.boot("", "");
    wait_for_state(&mut host, &controller, "live");
    goes_on(&log, &host);

    let flushed = log.acknowledged(&host);
    assert!(!host.serial().contains("I/O error"), "{}", host.serial());
    host.cut();
    wait_until(&mut target, "the host to be gone", "no_controllers", 120);
    let (mut host, _) = storage.boot_host();
    let device = host.wait_for_namespace(NQN, 1).unwrap();
    let image = FlushLog::read(&mut host, &device, flushed).unwrap();
    log.check(&image, flushed);
    println!("{flushed} records, all there");
    host.nvme_disconnect(NQN).unwrap();
    host.power_off().unwrap();
    target.power_off().unwrap();
}
