//! A node in trouble: what fails costs itself only, and is told in the same words wherever one looks.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use std::net::TcpStream;

use program_tests::until;
use qemu_tests::{
    Appliance, Guest, Image, Power, VolatileDisk, free_port, patience, skip_without_qemu,
};

const NQN: &str = "nqn.2026-11.io.adit:trouble";
const MIB: u64 = 1 << 20;

fn words(text: &str) -> Vec<&str> {
    text.split(' ').collect()
}

/// Goal: a drive that dies under load costs its own pool only, and everybody says so: the host, the
/// control plane, the console. Beside it a drive that shares its IOMMU group with a device of the
/// kernel is refused in one sentence, and the clock begins in 1970. Method: the drive's backend answers
/// every request with an error from one moment on; a host writes to volumes of two pools meanwhile.
#[test]
fn a_drive_that_dies_under_load_costs_its_own_pool_only() {
    if skip_without_qemu() {
        return;
    }
    let image = Image::make("release").unwrap();
    let power = Power::new();
    let dies = VolatileDisk::new("dies", 128 * MIB, &power).unwrap();
    let lives = VolatileDisk::new("lives", 128 * MIB, &power).unwrap();
    let mut node = Appliance::builder("trouble", &image)
        .machine("appliance-trouble")
        .drive(&dies)
        .drive(&lives)
        .boot()
        .unwrap();
    says_what_it_found_at_boot(&mut node);
    let ctl = |text: &str| node.ctl(&words(text)).unwrap();
    ctl(&format!("subsystem create {NQN} --allow-any-host"));
    for (name, pool, nsid) in [("dies", "tank", 1), ("lives", "lake", 2)] {
        ctl(&format!("bdev create nvme {name} --serial {name}"));
        node.ctl_until(&words(&format!("bdev show {name}n1")), name);
        ctl(&format!("pool create {pool} {name}n1"));
        ctl(&format!("volume create {pool}/v --size 64MiB"));
        ctl(&format!("namespace add {NQN} {pool}/v --nsid {nsid}"));
    }
    ctl(&format!("listener add {NQN} tcp://10.0.2.15:4420 --wait"));
    let port = free_port().unwrap();
    until("the port", || node.forward(port, 4420).ok());
    let mut host = Guest::builder("host").machine("host-small").boot().unwrap();
    let controller = host.nvme_connect(NQN, port, "--keep-alive-tmo 5").unwrap();
    let dying = host.wait_for_namespace(NQN, 1).unwrap();
    let living = host.wait_for_namespace(NQN, 2).unwrap();
    let jobs = [&dying, &living].map(|device| host.verify_again_and_again(device).unwrap());
    host.wait_for_writes(&dying, 300).unwrap();
    let before = host.wait_for_writes(&living, 300).unwrap();
    dies.set_dead(true);

    // The host: an error at once, no wait for a path; on the other volume nothing.
    let failed = host.join(jobs[0], patience(120)).unwrap_err().to_string();
    assert!(
        failed.contains("No data available") || failed.contains("Remote I/O error"),
        "{failed}"
    );
    let stopped = "faulted: the pool's metadata failed: cannot write the pool's metadata at byte ";
    let shown = node.ctl_until(&["pool", "show", "tank"], stopped);
    assert!(shown.contains("write fault"), "{shown}");
    for how in [
        format!("dd if=/dev/zero of={dying} oflag=direct bs=4k count=1"),
        format!("dd if={dying} iflag=direct of=/dev/null bs=4k count=1"),
    ] {
        let output = host.attempt(&how).unwrap();
        assert!(output.stderr.contains("Remote I/O error"), "{output:?}");
    }
    // Generic Command Status, Namespace Not Ready.
    let kernel = host.run("dmesg").unwrap();
    assert!(kernel.contains("(sct 0x0 / sc 0x82)"), "{kernel}");
    host.wait_for_writes(&living, before + 500).unwrap();
    host.run("touch /tmp/enough").unwrap();
    host.join(jobs[1], patience(240)).unwrap();
    host.wait_for_state(&controller, "live", patience(10))
        .unwrap();
    let kernel = host.run("dmesg").unwrap();
    assert!(!kernel.contains("error recovery"), "{kernel}");

    // The node.
    let text = ctl("volume show tank/v");
    let sentence = "its pool has stopped, and its i/o fails: see pool show tank";
    assert!(text.contains(sentence), "{text}");
    let refused = node.ctl(&words("volume create tank/w --size 4MiB"));
    let refused = refused.unwrap_err().to_string();
    let sentence = "creating volume tank/w failed: the pool could not commit: the pool stopped \
        after this: the pool's metadata failed";
    assert!(refused.contains(sentence), "{refused}");
    ctl("volume create lake/w --size 4MiB");
    let log = ctl("node logs aditd");
    let sentence = "the pool stops pool=\"tank\" reason=\"the pool's metadata failed: cannot write";
    assert!(log.contains(sentence), "{log}");
    node.ctl_until(&["node", "system"], "alert: pool tank has stopped: ");
    node.wait_for_console("tank           faulted", patience(60))
        .unwrap();

    // Closed and tried again, it is back with the drive; then it is taken out of service.
    let ctl = |text: &str| node.ctl(&words(text)).unwrap();
    ctl(&format!("namespace remove {NQN} 1"));
    let export_fails = || {
        let unclean = node.ctl(&words("pool export tank")).unwrap_err();
        let unclean = unclean.to_string();
        assert!(unclean.contains("closing pool tank failed"), "{unclean}");
        node.ctl_until(&["pool", "show", "tank"], "pending: cannot read byte 0");
    };
    export_fails();
    dies.set_dead(false);
    node.ctl_until(&["pool", "list"], "tank");
    node.ctl_until(&["volume", "show", "tank/v"], "ready");
    ctl("pool check tank");
    ctl("volume create tank/w --size 4MiB");
    dies.set_dead(true);
    export_fails();
    ctl("pool export tank");
    ctl("bdev delete dies");
    assert!(!ctl("node system").contains("tank"));
    ctl("pool check lake");
    host.run(&format!(
        "dd if={living} iflag=direct of=/dev/null bs=64k count=16"
    ))
    .unwrap();
    println!("{:.1?} from the start of QEMU", node.age());
    host.nvme_disconnect(NQN).unwrap();
    host.power_off().unwrap();
}

/// A device of the kernel in a drive's IOMMU group and a clock that cannot be: in the same words on the
/// console and over the network, and the drive stays with nobody.
fn says_what_it_found_at_boot(node: &mut Appliance) {
    let console = node.console();
    let refused = console.lines().find_map(|line| {
        let (_, sentence) = line.split_once("adit-init: ")?;
        sentence
            .contains("IOMMU group")
            .then(|| sentence.trim().to_owned())
    });
    let refused = refused.unwrap_or_else(|| panic!("no refusal on {console}"));
    let (drive, reason) = refused.split_once(": bind to vfio-pci: ").unwrap();
    let (group, advice) = reason
        .split_once(" group ")
        .unwrap()
        .1
        .split_once(": ")
        .unwrap();
    let member = drive.replace(".0", ".1");
    assert!(group.parse::<u32>().is_ok(), "{refused}");
    assert_eq!(
        reason,
        format!("{member}, driver virtio-pci, is in its IOMMU group {group}: {advice}")
    );
    assert_eq!(
        advice,
        "take that one too, move one to another slot, or switch on ACS in the firmware"
    );
    let clock = "the hardware clock said 1970-01-01, which cannot be: it is set to 2";
    assert!(console.contains(clock), "{console}");
    let actions = node.ctl(&["node", "actions", "-o", "json"]).unwrap();
    let system = node.ctl(&["node", "system"]).unwrap();
    for sentence in [reason, clock] {
        assert!(actions.contains(sentence), "{actions}");
        assert!(system.contains(sentence), "{system}");
    }
    let shared = node.ctl(&["bdev", "create", "nvme", "shared", drive]);
    let shared = shared.unwrap() + &node.ctl(&["bdev", "show", "shared"]).unwrap();
    assert!(shared.contains("bind it to vfio-pci"), "{shared}");
    node.ctl(&["bdev", "delete", "shared"]).unwrap();
}

/// Fills the journal, says how large it is, and stops its service; after a connection to its port it says
/// where the thread of `aditd` that writes to the journal waits, lets the journal go on, and looks for lines in it that
/// only the programs themselves can have brought there.
const FLOOD: &str = r#"
b=/beside/busybox
say() { echo "beside: $*" >/dev/console; }
$b ln -s /run/systemd/journal/dev-log /dev/log
$b base64 -w 900 /dev/urandom | $b head -n 18000 | $b logger -t flood
say journal of $($b du -sk /run/log/journal | $b cut -f1) KiB
$b kill -STOP $($b pidof systemd-journald)
say it stands still
$b nc -l -p 4999 </dev/null >/dev/null
for task in /proc/$($b pidof aditd)/task/*; do
    [ $($b cat $task/comm) != log_journal ] || say the log waits in $($b cat $task/wchan)
done
$b kill -CONT $($b pidof systemd-journald)
say it goes on
for line in TARGET=target::program TARGET=agent::endpoint; do
    until $b grep -r -q $line /run/log/journal; do $b sleep 1; done
    say the journal has $line
done
"#;
/// `RuntimeMaxUse` of `image/files/journald.conf`.
const JOURNAL_KIB_MAX: u64 = 32 << 10;

/// Goal: a journal that is full keeps to its bound, and neither it nor one that stands still holds up
/// I/O or management; the lines of `aditd` and of the agent are in it. Method: more is logged than the journal keeps, then its service is stopped; `aditd`
/// logs to it directly, and hosts come, verify what they write, and go.
#[test]
fn a_journal_that_is_full_or_stands_still_holds_nothing_up() {
    if skip_without_qemu() {
        return;
    }
    let image = Image::make("release").unwrap();
    let mut node = Appliance::builder("journal", &image)
        .overlay(image.with_script(FLOOD).unwrap())
        .start()
        .unwrap();
    node.manage().unwrap();
    node.ctl_until(&["node", "show"], "serving");
    let ctl = |text: &str| node.ctl(&words(text)).unwrap();
    ctl("bdev create malloc ram --size 16MiB");
    ctl(&format!("subsystem create {NQN} --allow-any-host"));
    ctl(&format!("namespace add {NQN} ram"));
    ctl(&format!("listener add {NQN} tcp://10.0.2.15:4420 --wait"));
    let (port, go_on) = (free_port().unwrap(), free_port().unwrap());
    until("the port", || node.forward(port, 4420).ok());
    let host = |node: &Appliance, count: u32| {
        let perf = format!(
            "perf tcp://127.0.0.1:{port}/{NQN} --workload randrw --verify --queue-depth 4 \
             --count {count}"
        );
        let said = node.ctl(&words(&perf)).unwrap();
        assert!(said.contains(&format!("{count} I/Os verified")), "{said}");
    };
    host(&node, 500);
    node.wait_for_console("beside: it stands still", patience(240))
        .unwrap();
    let console = node.console();
    let kib = console.split("beside: journal of ").nth(1).unwrap();
    let kib: u64 = kib.split(' ').next().unwrap().parse().unwrap();
    assert!(
        (JOURNAL_KIB_MAX * 3 / 4..=JOURNAL_KIB_MAX).contains(&kib),
        "{kib}"
    );

    // Each host that comes is logged; the journal's queue has room for ten lines.
    for _ in 0..15 {
        host(&node, 10);
    }
    let services = node.ctl(&["node", "services"]).unwrap();
    let restarts = |name: &str| {
        let line = services.lines().find(|line| line.starts_with(name));
        line.unwrap().split_whitespace().nth(3).unwrap().to_owned()
    };
    for name in ["journald", "adit-agent", "aditd"] {
        assert_eq!(restarts(name), "0", "{services}");
    }
    node.ctl(&["bdev", "create", "malloc", "more", "--size", "1MiB"])
        .unwrap();
    until("the other port", || node.forward(go_on, 4999).ok());
    drop(TcpStream::connect(("127.0.0.1", go_on)).unwrap());
    node.wait_for_console("beside: it goes on", patience(60))
        .unwrap();
    let console = node.console();
    assert!(console.contains("the log waits in unix_"), "{console}");
    host(&node, 100);
    for module in ["target::program", "agent::endpoint"] {
        let line = format!("beside: the journal has TARGET={module}");
        node.wait_for_console(&line, patience(60)).unwrap();
    }
    println!(
        "{:.1?} from the start of QEMU; journal of {kib} KiB",
        node.age()
    );
}
