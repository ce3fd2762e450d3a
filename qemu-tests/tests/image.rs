//! The image: what is in it, each way to boot it, and the main job: a storage node that boots from the
//! network, drives its NVMe drives itself, serves a volume, and loses its power.

#![expect(
    clippy::unwrap_used,
    reason = "steps of a test stand outside of the test's function"
)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use initramfs::{Profile, Sources, Stamp, Tree, assemble, compress, decompress, sbom};
use program_tests::{Dice, program, until};
use qemu_tests::{
    Appliance, ApplianceBuilder, Boot, FlushLog, Guest, Image, Job, Power, VolatileDisk, free_port,
    make_site, patience, skip_without_qemu, tools_root,
};

const NQN: &str = "nqn.2026-11.io.adit:image";
const MIB: u64 = 1 << 20;
/// Kernel, firmware stub and what is Debian's in the release, compressed, take less than this. The
/// project's own programs are those of a debug build here; `make image` holds the whole to 60 MB.
const FOREIGN_BYTES_MAX: u64 = 36 * 1000 * 1000;
/// A node that serves no pool takes no more than this for its programs and their files.
const IDLE_KIB_MAX: u64 = 150 * 1000;

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(profile: Profile) -> Sources {
    Sources {
        image: project().join("image"),
        tools: tools_root().unwrap(),
        programs: program("aditd").parent().unwrap().to_owned(),
        profile,
        stamp: Stamp::of_checkout(&project()),
    }
}

/// Goal: nothing comes into an image or leaves it unseen. Method: the list of its files is compared
/// with the one in the repository.
#[test]
fn every_file_of_an_image_is_in_its_manifest() {
    if skip_without_qemu() {
        return;
    }
    for profile in [Profile::Release, Profile::Dev] {
        let all = assemble(&sources(profile)).unwrap();
        let manifest = all.tree.manifest(&all.kernel.release);
        let path = project().join(format!("image/manifest-{}.txt", profile.word()));
        if std::env::var_os("ADIT_RENEW_MANIFEST").is_some() {
            fs::write(&path, &manifest).unwrap();
        }
        let held = fs::read_to_string(&path).unwrap_or_default();
        let lines = |text: &str| -> Vec<String> { text.lines().map(str::to_owned).collect() };
        let (held, made) = (lines(&held), lines(&manifest));
        let new: Vec<&String> = made.iter().filter(|line| !held.contains(line)).collect();
        let gone: Vec<&String> = held.iter().filter(|line| !made.contains(line)).collect();
        assert!(
            new.is_empty() && gone.is_empty(),
            "{}: new {new:#?}, gone {gone:#?}\nif it is meant to be so: \
             ADIT_RENEW_MANIFEST=1 cargo nextest run -p qemu_tests every_file_of",
            path.display()
        );
    }
}

/// Goal: who looks for a weak version finds it. Method: the bill of materials names what is linked, what the
/// kernel is and where files of Debian come from (one of no package is an error), and nothing of the tests.
#[test]
fn what_an_image_is_made_of_is_in_its_bill_of_materials() {
    if skip_without_qemu() {
        return;
    }
    for profile in [Profile::Release, Profile::Dev] {
        let sources = sources(profile);
        let all = assemble(&sources).unwrap();
        let bill = sbom(&sources, &all, &project()).unwrap();
        let bill: serde_json::Value = serde_json::from_str(&bill).unwrap();
        let packages = bill["packages"].as_array().unwrap();
        let version = |name: &str| {
            let found = packages.iter().find(|package| package["name"] == name);
            found.and_then(|package| package["versionInfo"].as_str())
        };
        let kernel = format!("linux-image-{}", all.kernel.release);
        assert_eq!(version(&kernel), Some(&*all.kernel.version));
        for name in [
            "init",
            "agent",
            "target",
            "redb",
            "rustls",
            "libc6",
            "systemd",
            "libibverbs1",
        ] {
            let is_told = version(name).is_some_and(|version| !version.is_empty());
            assert!(is_told, "{name} is not in the bill of {profile:?}");
        }
        let dev_only = version("fio").is_some() && version("ctl").is_some();
        assert_eq!(dev_only, profile == Profile::Dev);
        for name in ["proptest", "qemu_tests", "tonic-prost-build"] {
            assert_eq!(version(name), None, "{name} is in no image");
        }
    }
}

/// Goal: what a contributor boots is what mkosi makes, the same inputs are the same bytes, and it is
/// small. Method: both builders' trees are compared file by file, nothing excepted; mkosi runs twice.
#[test]
fn the_image_is_the_initramfs_and_the_same_bytes_each_time() {
    if skip_without_qemu() {
        return;
    }
    let all = assemble(&sources(Profile::Release)).unwrap();
    let image = Image::make("release").unwrap();
    let initrd = fs::read(image.file("initrd")).unwrap();
    let tree = Tree::from_archive(&decompress(&initrd).unwrap()).unwrap();
    assert_eq!(all.tree.difference(&tree, &[]), "");
    let bytes = |kind| fs::metadata(image.file(kind)).unwrap().len();
    let (uki, kernel, initrd) = (bytes("efi"), bytes("vmlinuz"), bytes("initrd"));
    let mut own = Vec::new();
    for path in ["init", "usr/bin/aditd", "usr/bin/adit-agent"] {
        own.extend(tree.bytes(path).unwrap());
    }
    let own = compress(&own, 3).unwrap().len() as u64;
    println!(
        "UKI {uki} bytes: kernel {kernel}, tree {initrd}, of which programs (debug build) {own}; \
         unpacked:\n{}",
        all.tree.sizes(10)
    );
    assert!(uki < FOREIGN_BYTES_MAX + own, "{uki} bytes, programs {own}");
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new(project().join("image/make-image"))
        .arg("release")
        .arg(tools_root().unwrap())
        .arg(program("aditd").parent().unwrap())
        .arg(folder.path())
        .env("INITRAMFS", program("initramfs"))
        .status();
    assert!(made.unwrap().success());
    for kind in ["efi", "initrd", "vmlinuz"] {
        let again = fs::read(folder.path().join(format!("adit-release.{kind}"))).unwrap();
        assert!(
            again == fs::read(image.file(kind)).unwrap(),
            "{kind} differs"
        );
    }
}

/// Goal: firmware starts the UKI, and its own command line counts. Method: OVMF gets it as a file.
#[test]
fn a_uki_boots_under_uefi_firmware() {
    if skip_without_qemu() {
        return;
    }
    let image = Image::make("release").unwrap();
    let node = Appliance::builder("uki", &image)
        .by(Boot::Uki)
        .boot()
        .unwrap();
    println!("UKI: ready {:.1?} after the start of QEMU", node.age());
    node.ctl_until(&["node", "show"], "");
    // What the node's firmware is set to is read through its agent; the release has no `aditctl`.
    let words = [
        "firmware",
        "check",
        "default",
        "--only",
        "platform.iommu",
        "--only",
        "boot",
    ];
    let shown = match node.ctl(&words) {
        Ok(text) => text,
        // This firmware is not set as a storage node's.
        Err(error) => error.to_string(),
    };
    for source in [
        "/sys/kernel/iommu_groups",
        "/sys/firmware/efi/efivars/Boot",
        ", 0 not readable",
    ] {
        assert!(shown.contains(source), "no {source} in {shown}");
    }
}

/// Goal: a node with UEFI firmware and no disk boots over HTTP. Method: OVMF fetches the UKI from a
/// server of the test.
#[test]
fn a_uki_boots_over_http() {
    if skip_without_qemu() {
        return;
    }
    let image = Image::make("release").unwrap();
    let builder = Appliance::builder("http", &image).by(Boot::UefiHttp);
    let node = builder.boot().unwrap();
    let name = format!("GET {}.efi", image.name);
    assert!(node.fetched().contains(&name), "{:?}", node.fetched());
    println!(
        "HTTP boot: ready {:.1?} after the start of QEMU",
        node.age()
    );
}

/// Goal: an idle node is small, and one knows what its start takes. Method: a boot from kernel and
/// initrd with a script beside it that reads /proc; a connection is tried until NVMe/TCP answers.
#[test]
fn an_idle_node_is_small_and_soon_there() {
    if skip_without_qemu() {
        return;
    }
    let image = Image::make("release").unwrap();
    let mut node = Appliance::builder("idle", &image)
        .overlay(image.with_script(MEASURE).unwrap())
        .start()
        .unwrap();
    let mut steps = Vec::new();
    for text in ["adit-init: Adit ", "services begin", "aditd: ready"] {
        node.wait_for_console(text, patience(240)).unwrap();
        steps.push((text, node.age()));
    }
    node.manage().unwrap();
    steps.push(("management answers over the network", node.age()));
    node.ctl(&["bdev", "create", "malloc", "ram", "--size", "16MiB"])
        .unwrap();
    node.ctl(&["subsystem", "create", NQN, "--allow-any-host"])
        .unwrap();
    node.ctl(&["namespace", "add", NQN, "ram"]).unwrap();
    node.ctl(&["listener", "add", NQN, "tcp://10.0.2.15:4420", "--wait"])
        .unwrap();
    let port = free_port().unwrap();
    node.forward(port, 4420).unwrap();
    until("an NVMe/TCP connection", || {
        nvme_connects(port).then_some(())
    });
    steps.push(("first NVMe/TCP connection accepted", node.age()));
    for (text, age) in steps {
        println!("{:6.2} s  {text}", age.as_secs_f64());
    }
    node.wait_for_console("measured: end", patience(120))
        .unwrap();
    let console = node.console();
    let measured = |name: &str| -> u64 {
        let prefix = format!("measured: {name} ");
        let line = console.lines().find_map(|line| line.split_once(&prefix));
        let (_, rest) = line.unwrap_or_else(|| panic!("no {name} in {console}"));
        rest.trim().parse().unwrap()
    };
    for line in console.lines().filter(|line| line.contains("measured: ")) {
        println!("{}", line.trim());
    }
    let (programs, files) = (measured("programs"), measured("files"));
    println!("idle: {programs} KiB of programs, {files} KiB of files of the image in memory");
    assert!(programs + files < IDLE_KIB_MAX);
}

/// Goal: a node that cannot have what it was told says why, in the same sentence on its console and over
/// the network, and is managed all the same. Method: no IOMMU, more huge pages than there is memory,
/// an `aditd` that fails at every start.
#[test]
fn a_node_that_cannot_drive_its_drives_says_why_and_is_managed() {
    if skip_without_qemu() {
        return;
    }
    let image = Image::make("release").unwrap();
    let disk = VolatileDisk::new("drive-1", 64 * MIB, &Power::new()).unwrap();
    let mut node = Appliance::builder("degraded", &image)
        .machine("appliance-without-iommu")
        .drive(&disk)
        .kernel("adit.machine.hugepages=[{size_kib=2048,pages=4000}]")
        .kernel("adit.services.aditd.arguments=['--no-such-option']")
        .start()
        .unwrap();
    let no_iommu = "there is no IOMMU: give this virtual machine one: -device intel-iommu in QEMU";
    let no_memory = "MiB are kept: ask for fewer pages, or for best effort";
    let held = "held: crashed 5 times in 60 s, last: exit ";
    for sentence in [no_iommu, no_memory, held] {
        node.wait_for_console(sentence, patience(120)).unwrap();
    }
    node.manage().unwrap();
    let actions = node.ctl_until(&["node", "actions", "-o", "json"], no_iommu);
    assert!(actions.contains(no_memory), "{actions}");
    let services = node.ctl_until(&["node", "services", "-o", "json"], held);
    assert!(services.contains("--no-such-option"), "{services}");
    let refused = node.ctl(&["bdev", "list"]).unwrap_err().to_string();
    assert!(refused.contains("aditd does not answer"), "{refused}");
}

/// Goal: a node without a network comes up and says so. Method: it has no network card.
#[test]
fn a_node_without_a_network_says_so_and_serves_what_it_can() {
    if skip_without_qemu() {
        return;
    }
    let image = Image::make("release").unwrap();
    let mut node = Appliance::builder("alone", &image)
        .machine("appliance-without-network")
        .start()
        .unwrap();
    for sentence in ["aditd: ready", "no address yet"] {
        node.wait_for_console(sentence, patience(240)).unwrap();
    }
}

/// Goal: a person at a node in maintenance mode destroys the data of a drive that the kernel has not, and of
/// that drive alone. Method: the code on the console; drives that are vfio-pci's; what is on the disks.
#[test]
fn a_drive_is_wiped_in_maintenance_mode_and_is_then_what_it_was() {
    if skip_without_qemu() {
        return;
    }
    const DATA: [u8; 512] = [0xa5; 512];
    let image = Image::make("release").unwrap();
    let power = Power::new();
    let disk = |name| VolatileDisk::new(name, 64 * MIB, &power).unwrap();
    let (disk, other) = (disk("drive-1"), disk("drive-2"));
    let places = [0, MIB + 512, 64 * MIB - 512];
    for place in places {
        disk.put(place, &DATA);
        other.put(place, &DATA);
    }
    let mut node = Appliance::builder("wipe", &image)
        .machine("appliance-two-drives")
        .drive(&disk)
        .drive(&other)
        .kernel("adit.maintenance")
        .start()
        .unwrap();
    node.wait_for_console("aditd: ready", patience(240))
        .unwrap();
    let code = until("the code and the fingerprint", || {
        let console = node.console();
        let mut words = console
            .lines()
            .rev()
            .filter_map(|line| line.trim().strip_prefix("code "));
        let code = words.find_map(|word| Some(word.trim()).filter(|word| word.len() == 14))?;
        node.fingerprint()
            .map(|fingerprint| (code.to_owned(), fingerprint))
    });
    let endpoint = node.endpoint();
    let words = [
        "context",
        "add",
        "node",
        "--endpoint",
        &endpoint,
        "--code",
        &code.0,
    ];
    node.ctl(&[&words[..], &["--fingerprint", &code.1]].concat())
        .unwrap();
    let shown = || {
        let text = node.ctl_until(&["machine", "show", "-o", "json"], "\"pci\"");
        let facts: serde_json::Value = serde_json::from_str(&text).unwrap();
        let drives = facts["pci"].as_array().unwrap().iter();
        let drives = drives.filter(|function| function["class"] == 0x0001_0802);
        let drives = drives.map(|drive| (drive["address"].clone(), drive["driver"].clone()));
        drives.collect::<Vec<_>>()
    };
    let before = shown();
    assert_eq!(before.len(), 2);
    assert!(
        before.iter().all(|(_, driver)| driver == "vfio-pci"),
        "{before:?}"
    );
    let at = before[0].0.as_str().unwrap();
    let refused = |words: &[&str]| node.ctl(words).unwrap_err().to_string();
    let text = refused(&["node", "wipe", at]);
    assert!(
        text.contains("has the serial number drive-1: give it back"),
        "{text}"
    );
    let text = refused(&["node", "wipe", at, "--serial", "drive-2"]);
    assert!(text.contains("another serial number"), "{text}");
    assert_eq!(shown(), before);
    for place in places {
        assert_eq!(disk.durable(place, 512), DATA, "nothing was written");
    }
    let told = node
        .ctl(&["node", "wipe", at, "--serial", "drive-1"])
        .unwrap();
    assert!(told.contains("100"), "{told}");
    assert_eq!(shown(), before, "it is what it was");
    for place in places {
        assert_eq!(disk.durable(place, 512), [0; 512]);
        assert_eq!(other.durable(place, 512), DATA, "the other drive");
    }
}

/// Says once what takes memory: the proportional share of each program but for what is files of the
/// image, and the files, which live in memory.
const MEASURE: &str = r#"
b=/beside/busybox
$b sleep 5
say() { echo "measured: $*" >/dev/console; }
sum=0
for each in /proc/[0-9]*; do
    [ -s $each/smaps_rollup ] || [ -r $each/smaps_rollup ] || continue
    kib=$($b awk '/^Pss_Anon:|^Pss_Shmem:/ { kib += $2 } END { print kib + 0 }' \
        $each/smaps_rollup 2>/dev/null) || continue
    [ ${kib:-0} -gt 0 ] || continue
    say $($b cat $each/comm) $kib KiB
    sum=$((sum + kib))
done
for line in MemTotal MemFree MemAvailable AnonPages Shmem Slab KernelStack PageTables; do
    say $($b grep ^$line: /proc/meminfo)
done
say programs $sum
say files $($b du -skx / | $b cut -f1)
say end
"#;

/// Whether an NVMe/TCP target answers behind a port: an ICReq gets its ICResp (NVMe/TCP Transport
/// Specification, "Initialize Connection").
fn nvme_connects(port: u16) -> bool {
    let talk = || -> std::io::Result<u8> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut request = [0; 128];
        request[2] = 128;
        request[4] = 128;
        stream.write_all(&request)?;
        let mut answer = [0; 128];
        stream.read_exact(&mut answer)?;
        Ok(answer[0])
    };
    talk().is_ok_and(|kind| kind == 1)
}

/// The storage node of the main job, and what outlives its power.
struct Storage {
    node: Option<Appliance>,
    image: Image,
    power: std::sync::Arc<Power>,
    disks: [VolatileDisk; 4],
    port: u16,
    /// Holds `site`, the authority of who manages it.
    folder: tempfile::TempDir,
}

impl Storage {
    fn new(image: Image) -> Self {
        let power = Power::new();
        let disk = |name| VolatileDisk::new(name, 256 * MIB, &power).unwrap();
        let folder = tempfile::tempdir().unwrap();
        make_site(&folder.path().join("site")).unwrap();
        Self {
            folder,
            node: None,
            image,
            disks: ["drive-1", "drive-2", "drive-3", "drive-4"].map(disk),
            power,
            port: free_port().unwrap(),
        }
    }

    fn node(&self) -> &Appliance {
        self.node.as_ref().expect("it has been booted")
    }

    fn ctl(&self, words: &str) -> String {
        let words: Vec<&str> = words.split(' ').collect();
        self.node().ctl(&words).unwrap()
    }

    /// Boots it.
    fn power_on(&mut self, by: Boot) {
        let builder = Appliance::builder("storage", &self.image).by(by);
        let builder = builder.site(&self.folder.path().join("site"));
        let builder = builder.machine("storage");
        let builder = self.disks.iter().fold(builder, ApplianceBuilder::drive);
        self.node = Some(builder.boot().unwrap());
    }

    /// Boots it and waits until all four drives are driven from user space.
    fn boot(&mut self, by: Boot) {
        self.power_on(by);
        for number in 1..=4 {
            self.ctl(&format!(
                "bdev create nvme d{number} --serial drive-{number}"
            ));
        }
        for number in 1..=4 {
            let name = format!("d{number}n1");
            self.node().ctl_until(&["bdev", "show", &name], &name);
        }
    }

    /// Shares a volume of each pool, and a drive as it is. The node keeps nothing of this: its memory
    /// is all that it has.
    fn serve(&self) {
        self.ctl(&format!("subsystem create {NQN} --allow-any-host"));
        for (bdev, nsid) in [("tank/v", 1), ("lake/f", 2), ("d3n1", 3)] {
            self.ctl(&format!("namespace add {NQN} {bdev} --nsid {nsid}"));
        }
        self.ctl(&format!("listener add {NQN} tcp://10.0.2.15:4420 --wait"));
        until("the port", || self.node().forward(self.port, 4420).ok());
    }

    /// The host makes a filesystem on the fourth drive; no pool takes its place unasked.
    fn refuses_a_drive_with_a_filesystem(&self, host: &mut Guest) {
        self.ctl(&format!("namespace add {NQN} d4n1 --nsid 4"));
        let device = host.wait_for_namespace(NQN, 4).unwrap();
        host.run(&format!("mkfs.ext4 -q {device}")).unwrap();
        self.ctl(&format!("namespace remove {NQN} 4"));
        let refused = self.node().ctl(&["pool", "create", "pond", "d4n1"]);
        let refused = refused.unwrap_err().to_string();
        let sentence =
            "the device holds an ext2, ext3 or ext4 file system; use force to overwrite it";
        assert!(refused.contains(sentence), "{refused}");
    }

    /// Cuts the power with the n-th write from now on; the drives lose a part of what was not flushed.
    fn cut(&mut self, write: u64, seed: u64) -> Vec<(usize, usize)> {
        self.power.off_at_write(write);
        assert!(self.power.wait_until_off(patience(120)), "there is no load");
        self.node.take().expect("it runs").cut();
        let disks = self.disks.iter().zip(0..);
        disks
            .map(|(disk, number)| disk.lose_unflushed(seed.wrapping_add(number)))
            .collect()
    }
}

/// fio again and again: it writes at random with FUA and verifies every block.
fn start_fio(guest: &mut Guest, device: &str) -> Job {
    let script = format!(
        "trap '' PIPE\n\
         until [ -e /tmp/fio-enough ]; do\n\
         fio --name=load --ioengine=libaio --direct=1 --eta=never --verify=crc32c \
         --verify_fatal=1 --do_verify=1 --randrepeat=0 --filename={device} --rw=randwrite \
         --bsrange=4k-16k --iodepth=8 --size=8M --sync=dsync >/tmp/fio ||\n\
         {{ cat /tmp/fio; exit 1; }}\n\
         done"
    );
    guest.spawn(&script).unwrap()
}

/// Goal: the main job. Method: a node boots the image over the network (TFTP brings iPXE, HTTP the
/// rest), takes four NVMe drives behind an IOMMU from the kernel and drives them itself; pools on two
/// of them. A second machine with an unmodified kernel keeps a log of flushed records on the one, over
/// NVMe/TCP, and runs fio with verification on the other, whose drive makes each write durable, while
/// the node's power is cut, with the drives losing part of what was not flushed. `ADIT_CUTS` says how often.
#[test]
fn a_node_that_boots_from_the_network_loses_nothing_that_was_flushed() {
    if skip_without_qemu() {
        return;
    }
    let cuts = std::env::var("ADIT_CUTS").ok();
    let cuts: u32 = cuts.and_then(|text| text.parse().ok()).unwrap_or(10);
    let seed = std::env::var("ADIT_SEED").ok();
    let seed = seed.and_then(|text| text.parse().ok()).unwrap_or(4);
    let mut dice = Dice::new(seed);
    let mut storage = Storage::new(Image::make("release").unwrap());
    let start = Instant::now();
    storage.boot(Boot::Ipxe);
    let fetched = storage.node().fetched();
    for kind in ["vmlinuz", "initrd"] {
        let wanted = format!("GET {}.{kind}", storage.image.name);
        assert!(fetched.contains(&wanted), "{fetched:?}");
    }
    println!(
        "{:.1?}: booted over the network, drives are driven",
        start.elapsed()
    );
    for (pool, drive, volume) in [("tank", "d1n1", "tank/v"), ("lake", "d2n1", "lake/f")] {
        storage.ctl(&format!("pool create {pool} {drive} --cluster-size 64KiB"));
        storage.ctl(&format!("volume create {volume} --size 512MiB"));
    }
    storage.serve();
    let mut host = Guest::builder("host").machine("host-small").boot().unwrap();
    host.nvme_connect(NQN, storage.port, "--keep-alive-tmo 5")
        .unwrap();
    let logged = host.wait_for_namespace(NQN, 1).unwrap();
    let load = host.wait_for_namespace(NQN, 2).unwrap();
    let raw = host.wait_for_namespace(NQN, 3).unwrap();
    host.run(&format!(
        "head -c 1M /dev/urandom >/tmp/data\n\
         dd if=/tmp/data of={raw} oflag=direct bs=64k conv=fsync status=none"
    ))
    .unwrap();
    storage.refuses_a_drive_with_a_filesystem(&mut host);
    let mut log = FlushLog::start(&mut host, &logged).unwrap();
    let fio = start_fio(&mut host, &load);
    for cut in 0..cuts {
        // The host is back before the next cut counts.
        log.progress(&host, 2, patience(120)).unwrap();
        let write = 1 + dice.below(300);
        let lost = storage.cut(write, dice.below(u64::MAX));
        let record = log.acknowledged(&host);
        println!(
            "{:.1?}: cut {cut} at record {record}; unflushed writes and lost parts: {lost:?}",
            start.elapsed()
        );
        assert!(lost.iter().any(|(unflushed, _)| *unflushed > 0));
        // Over the network takes longer: once is enough.
        storage.boot(if cut == 0 { Boot::Ipxe } else { Boot::Kernel });
        log.interrupt(&host, record);
        for (pool, drive) in [("tank", "d1n1"), ("lake", "d2n1")] {
            storage.ctl(&format!("pool import {drive} --name {pool}"));
            storage.ctl(&format!("pool check {pool}"));
        }
        storage.serve();
        println!("{:.1?}: serves again", start.elapsed());
    }
    log.progress(&host, 2, patience(120)).unwrap();
    host.run("touch /tmp/fio-enough").unwrap();
    host.join(fio, patience(300)).unwrap();
    log.stop(&mut host, patience(60)).unwrap();
    let records = log.acknowledged(&host);
    let image = FlushLog::read(&mut host, &logged, records).unwrap();
    log.check(&image, records);
    host.run(&format!(
        "dd if={raw} iflag=direct bs=64k count=16 status=none | cmp - /tmp/data"
    ))
    .unwrap();
    assert!(!host.serial().contains("I/O error"), "{}", host.serial());
    println!("{:.1?}: {records} records, all there", start.elapsed());
    host.nvme_disconnect(NQN).unwrap();
    host.power_off().unwrap();
}

const HOST_NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:6f1d53f4-7a53-4a55-9f0c-5f5f1d6a0001";

/// Goal: a node's own state outlives its power. Method: a node that booted the image gets a system pool, a
/// volume, a subsystem for one host, and a second pool, and a person gives it a document; the host writes and
/// registers a reservation that persists. The power is cut and the node boots again, with nothing said to it
/// by anybody: the host goes on by itself, what it flushed is there, and so are its registration, the node's
/// identity, its certificate and the document.
#[test]
fn a_node_with_a_system_pool_comes_back_by_itself_after_a_power_cut() {
    if skip_without_qemu() {
        return;
    }
    let mut storage = Storage::new(Image::make("release").unwrap());
    let start = Instant::now();
    storage.boot(Boot::Kernel);
    let notice = "no pool is the system pool";
    storage.node().ctl_until(&["node", "show"], notice);
    storage.ctl("pool create tank d1n1 --cluster-size 64KiB --system");
    storage.ctl("pool create lake d2n1 --cluster-size 64KiB");
    storage.ctl("volume create tank/v --size 256MiB");
    storage.ctl("volume create lake/f --size 64MiB");
    storage.ctl(&format!("subsystem create {NQN}"));
    storage.ctl(&format!("host add {NQN} {HOST_NQN}"));
    for (bdev, nsid) in [("tank/v", 1), ("lake/f", 2)] {
        storage.ctl(&format!("namespace add {NQN} {bdev} --nsid {nsid}"));
    }
    storage.ctl(&format!("listener add {NQN} tcp://10.0.2.15:4420 --wait"));
    let identity = |storage: &Storage| {
        let shown = storage.ctl("node show");
        let line = shown.lines().find(|line| line.starts_with("node:"));
        line.unwrap().to_owned()
    };
    let document = storage.folder.path().join("node.toml");
    let authority = fs::read_to_string(storage.folder.path().join("site/ca.pem")).unwrap();
    let by_a_person = "hostname = 'storage'\nagent.time.servers = ['10.0.2.2']";
    let text = format!("{by_a_person}\nagent.api.ca = \"\"\"\n{authority}\"\"\"\n");
    fs::write(&document, text).unwrap();
    storage.ctl(&format!("node config apply -f {}", document.display()));
    let fingerprint = storage.node().fingerprint().unwrap();
    let (before, shown) = (identity(&storage), storage.ctl("node show"));
    assert!(shown.contains("tank") && !shown.contains(notice), "{shown}");
    until("the port", || {
        storage.node().forward(storage.port, 4420).ok()
    });

    let mut host = Guest::builder("host").machine("host-small").boot().unwrap();
    let options = format!("--keep-alive-tmo 5 --hostnqn {HOST_NQN}");
    host.nvme_connect(NQN, storage.port, &options).unwrap();
    let logged = host.wait_for_namespace(NQN, 1).unwrap();
    let other = host.wait_for_namespace(NQN, 2).unwrap();
    host.run(&format!(
        "nvme resv-register {other} --nrkey=0x1234 --rrega=0 --cptpl=3\n\
         head -c 1M /dev/urandom >/tmp/data\n\
         dd if=/tmp/data of={other} oflag=direct bs=64k conv=fsync status=none"
    ))
    .unwrap();
    let mut log = FlushLog::start(&mut host, &logged).unwrap();
    for cut in 0..2 {
        log.progress(&host, 2, patience(120)).unwrap();
        let lost = storage.cut(20 + cut, 5 + cut);
        let record = log.acknowledged(&host);
        println!(
            "{:.1?}: cut {cut} at record {record}; unflushed writes and lost parts: {lost:?}",
            start.elapsed()
        );
        // Nobody says anything to it.
        storage.power_on(Boot::Kernel);
        log.interrupt(&host, record);
        until("the port", || {
            storage.node().forward(storage.port, 4420).ok()
        });
        log.progress(&host, 2, patience(240)).unwrap();
        println!("{:.1?}: serves again by itself", start.elapsed());
        let node = storage.node.as_mut().unwrap();
        until("the certificate that the node had", || {
            (node.fingerprint().as_ref() == Some(&fingerprint)).then_some(())
        });
        node.manage().unwrap();
        assert_eq!(identity(&storage), before);
        assert!(storage.ctl("node config get").contains(by_a_person));
    }
    let report = host
        .run(&format!(
            "dd if={other} iflag=direct bs=64k count=16 status=none | cmp - /tmp/data\n\
             nvme resv-report {other} --eds -o json"
        ))
        .unwrap();
    // 0x1234.
    assert!(report.contains("4660"), "{report}");
    log.stop(&mut host, patience(60)).unwrap();
    let records = log.acknowledged(&host);
    let image = FlushLog::read(&mut host, &logged, records).unwrap();
    log.check(&image, records);
    println!("{:.1?}: {records} records, all there", start.elapsed());
    host.nvme_disconnect(NQN).unwrap();
    host.power_off().unwrap();
}
