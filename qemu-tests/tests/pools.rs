//! Pools under a Linux host: snapshots under load, `kill -9`, and power cuts.
//!
//! A host that lives on while its target dies sends the commands again that were not answered; what was
//! answered it never sends again. When only `aditd` dies all of that must be there, flushed or not: fio
//! writes without FUA, and the [`FlushLog`] without a FLUSH.
//!
//! When the power goes under disks with a volatile cache, a host may rely on what was flushed or had FUA
//! (promise 1). What was answered and not yet flushed may be gone, and the host does not know. So there fio
//! writes with FUA (`--sync=dsync`): each write that was answered must be there, and the [`FlushLog`] does
//! the same for FLUSH.

#![expect(
    clippy::unwrap_used,
    reason = "steps of a test stand outside of the test's function"
)]

use std::time::{Duration, Instant};

use program_tests::{Dice, POLL_INTERVAL, until};
use qemu_tests::{
    Adit, FlushLog, Guest, GuestBuilder, HarnessError, Job, Power, VolatileDisk, free_port,
    patience, skip_without_qemu,
};

const NQN: &str = "nqn.2026-11.io.adit:pools";
const MIB: u64 = 1 << 20;
/// The volume of the [`FlushLog`], and fio's. They are in pools of their own: a commit for fio's FUA
/// would be one for the log too, and hide a FLUSH that commits nothing.
const LOGGED: &str = "tank/v";
const LOADED: &str = "lake/f";

/// fio again and again until told to stop: it writes at random and verifies every block.
fn start_fio(guest: &mut Guest, options: &str) -> Job {
    // The kernel's initiator sends from the caller of a system call, and when it finds the connection
    // closed, that process gets SIGPIPE, as if the socket were its own.
    let script = format!(
        "trap '' PIPE\n\
         rounds=0\n\
         until [ -e /tmp/fio-enough ]; do\n\
         fio --name=load --ioengine=libaio --direct=1 --eta=never --verify=crc32c \
         --verify_fatal=1 --do_verify=1 --randrepeat=0 {options} >/tmp/fio ||\n\
         {{ cat /tmp/fio; exit 1; }}\n\
         rounds=$((rounds + 1))\n\
         done\n\
         echo $rounds"
    );
    guest.spawn(&script).unwrap()
}

/// Lets fio end its round, verification included; how many rounds it made.
fn stop_fio(guest: &mut Guest, job: Job) -> u32 {
    guest.run("touch /tmp/fio-enough").unwrap();
    let output = guest.join(job, patience(300)).unwrap();
    output.stdout.trim().parse().unwrap()
}

fn number(value: &serde_json::Value) -> u64 {
    let text = value.as_str().map(str::to_owned);
    text.unwrap_or_else(|| value.to_string()).parse().unwrap()
}

fn free_bytes(adit: &Adit) -> u64 {
    number(&adit.ctl_json(&["pool", "show", "tank"]).unwrap()["free_bytes"])
}

/// An `aditd` with pools in files of 512 MiB.
fn with_pools(names: &[&str]) -> Adit {
    let adit = Adit::builder().start().unwrap();
    for name in names {
        let (file, disk) = (adit.state_dir().join(name), format!("disk-{name}"));
        let file = file.display().to_string();
        adit.ctl(&["bdev", "create", "file", &disk, &file, "--size", "512MiB"])
            .unwrap();
        adit.ctl(&["pool", "create", name, &disk, "--cluster-size", "64KiB"])
            .unwrap();
    }
    adit
}

/// Goal: the main job with a filesystem. Method: ext4 on a thin volume, fio on a file of it; snapshots
/// are taken and cloned under it, and a clone mounts with every file that was synced before. The
/// volume grows under the mounted filesystem, and fstrim gives space back to the pool.
#[test]
fn snapshots_of_a_filesystem_under_load_are_consistent() {
    if skip_without_qemu() {
        return;
    }
    let adit = with_pools(&["tank"]);
    let empty = free_bytes(&adit);
    let create = ["volume", "create", "tank/v", "--size", "192MiB"];
    adit.ctl(&create).unwrap();
    let port = adit.export(NQN, "tank/v").unwrap();
    let mut guest = Guest::builder("snapshots")
        .machine("host-small")
        .boot()
        .unwrap();
    guest.nvme_connect(NQN, port, "").unwrap();
    let device = guest.wait_for_namespace(NQN, 1).unwrap();
    guest
        .run(&format!(
            "modprobe ext4; mkfs.ext4 -q {device}; mkdir /mnt/v /mnt/c; mount {device} /mnt/v"
        ))
        .unwrap();
    let fio = start_fio(
        &mut guest,
        "--filename=/mnt/v/load --rw=randwrite --bsrange=4k-64k --iodepth=8 --size=8M --fsync=32 \
         --rate_iops=,100",
    );

    const ROUNDS: u32 = 3;
    for round in 0..ROUNDS {
        // A file that was synced is there; one that came later is not.
        guest
            .run(&format!(
                "head -c 300001 /dev/urandom >/mnt/v/file{round}; sync /mnt/v/file{round} /mnt/v\n\
                 cd /mnt/v; sha256sum file{round} >>/tmp/sums"
            ))
            .unwrap();
        let (snapshot, clone) = (format!("tank/v@s{round}"), format!("tank/c{round}"));
        adit.ctl(&["snapshot", "create", &snapshot]).unwrap();
        adit.ctl(&["volume", "clone", &snapshot, &clone]).unwrap();
        let nsid = 10 + round;
        let nsid_text = nsid.to_string();
        adit.ctl(&["namespace", "add", NQN, &clone, "--nsid", &nsid_text])
            .unwrap();
        guest
            .run("date >/mnt/v/later; sync /mnt/v/later /mnt/v")
            .unwrap();
        let cloned = guest.wait_for_namespace(NQN, nsid).unwrap();
        // The mount replays the journal; after it nothing is left to repair.
        guest
            .run(&format!(
                "mount {cloned} /mnt/c\n\
                 cd /mnt/c; sha256sum --check --quiet /tmp/sums\n\
                 [ $(ls file* | wc -l) -eq {files} ]\n\
                 [ -e later ] && [ {round} -eq 0 ] && exit 1\n\
                 echo written >/mnt/c/new; cd /; umount /mnt/c\n\
                 e2fsck -f -n {cloned}\n\
                 rm /mnt/v/later",
                files = round + 1,
            ))
            .unwrap();
        adit.ctl(&["namespace", "remove", NQN, &nsid_text]).unwrap();
        guest.wait_for_no_namespace(NQN, nsid).unwrap();
        if let Some(old) = round.checked_sub(2) {
            adit.ctl(&["volume", "delete", &format!("tank/c{old}")])
                .unwrap();
            adit.ctl(&["snapshot", "delete", &format!("tank/v@s{old}")])
                .unwrap();
        }
    }

    grow_and_trim(&adit, &mut guest, &device);
    let rounds = stop_fio(&mut guest, fio);
    println!("fio: {rounds} rounds of 8 MiB");
    guest.run("umount /mnt/v").unwrap();
    guest.run(&format!("e2fsck -f -n {device}")).unwrap();
    guest.nvme_disconnect(NQN).unwrap();
    guest.power_off().unwrap();

    adit.ctl(&["subsystem", "delete", NQN]).unwrap();
    for round in ROUNDS - 2..ROUNDS {
        adit.ctl(&["snapshot", "delete", &format!("tank/v@s{round}")])
            .unwrap();
        adit.ctl(&["volume", "delete", &format!("tank/c{round}")])
            .unwrap();
    }
    adit.ctl(&["volume", "delete", "tank/v"]).unwrap();
    until("all space to come back", || {
        (free_bytes(&adit) == empty).then_some(())
    });
    adit.ctl(&["pool", "check", "tank"]).unwrap();
}

/// The volume grows under its mounted filesystem; a large file comes and goes, and fstrim gives its
/// space back.
fn grow_and_trim(adit: &Adit, guest: &mut Guest, device: &str) {
    adit.ctl(&["volume", "resize", "tank/v", "--size", "256MiB"])
        .unwrap();
    let bytes = 256 * MIB;
    let script =
        format!("blockdev --getsize64 {device}; [ $(blockdev --getsize64 {device}) = {bytes} ]");
    guest
        .wait_until("the new size", &script, patience(60))
        .unwrap();
    guest.run(&format!("resize2fs {device}")).unwrap();
    let before = free_bytes(adit);
    guest
        .run(
            "dd if=/dev/zero of=/mnt/v/large bs=1M count=64 oflag=direct status=none\n\
             sync /mnt/v/large /mnt/v",
        )
        .unwrap();
    let full = free_bytes(adit);
    // fio overwrites in place by now, but for what the last snapshots still hold.
    assert!(before - full >= 60 * MIB, "{before} {full}");
    let said = guest
        .run("rm /mnt/v/large; sync -f /mnt/v; fstrim -v /mnt/v")
        .unwrap();
    until("fstrim's space to come back", || {
        (free_bytes(adit) >= full + 50 * MIB).then_some(())
    });
    println!(
        "free: {} MiB, with the file {}, trimmed {} ({})",
        before / MIB,
        full / MIB,
        free_bytes(adit) / MIB,
        said.trim()
    );
}

/// Commands of a guest's host that ended because their connection went: the kernel's own count.
struct Cancelled {
    seen: usize,
}

impl Cancelled {
    fn start(guest: &mut Guest) -> Self {
        guest
            .run(
                "mount -t tracefs tracefs /sys/kernel/tracing\n\
                 cd /sys/kernel/tracing/events/nvme/nvme_complete_rq\n\
                 # NVME_SC_HOST_ABORTED_CMD, on an I/O queue.\n\
                 echo 'status == 0x371 && qid > 0' >filter; echo 1 >enable",
            )
            .unwrap();
        guest
            .spawn("exec cat /sys/kernel/tracing/trace_pipe >/share/cancelled")
            .unwrap();
        Self { seen: 0 }
    }

    /// How many have been cancelled since the last look. It waits for the first of them, but not long:
    /// there may have been none in flight.
    fn count(&mut self, guest: &Guest) -> usize {
        let path = guest.share().join("cancelled");
        let start = Instant::now();
        let lines = loop {
            let text = std::fs::read(&path).unwrap_or_default();
            let lines = text.iter().filter(|byte| **byte == b'\n').count();
            if lines > self.seen || start.elapsed() > Duration::from_secs(3) {
                break lines;
            }
            std::thread::sleep(POLL_INTERVAL);
        };
        let cancelled = lines - self.seen;
        self.seen = lines;
        cancelled
    }
}

/// I/Os that `aditd` has ended on the two volumes since it started, and those that are in them now.
fn ended_and_depth(grpc: &program_tests::Grpc) -> (u64, u64) {
    let volumes = [LOGGED, LOADED].map(|volume| {
        let request = api::v1::ListBdevStatsRequest {
            name: volume.to_owned(),
            ..Default::default()
        };
        let answer = grpc.wait(grpc.bdevs().list_bdev_stats(request)).unwrap();
        let stats = &answer.bdevs[0];
        let ended: u64 = stats.io.iter().map(|io| io.num_ops).sum();
        (ended, stats.queue_depth)
    });
    let [(logged, log_depth), (loaded, load_depth)] = volumes;
    (logged + loaded, log_depth + load_depth)
}

/// Goal: 50 times `kill -9` under fio lose nothing that was acknowledged, although nothing is flushed and
/// nothing has FUA. Method: `aditd` is
/// killed once a random number of I/Os has ended since the last kill; the kernel tells how many
/// commands it had to cancel: a kill that found none does not count. The kernel reconnects, sends them again, and
/// fio verifies. Snapshots are taken in between, and show at the end what they showed at first.
#[test]
fn fifty_kills_under_fio_lose_nothing() {
    if skip_without_qemu() {
        return;
    }
    const KILLS: u32 = 50;
    let seed = seed();
    let mut dice = Dice::new(seed);
    let mut adit = with_pools(&["tank", "lake"]);
    let port = share_two_volumes(|words| adit.ctl(words), || adit.listen(NQN));
    let mut guest = Guest::builder("kills")
        .machine("host-small")
        .boot()
        .unwrap();
    let options = "--keep-alive-tmo 5";
    guest.nvme_connect(NQN, port, options).unwrap();
    let logged = guest.wait_for_namespace(NQN, 1).unwrap();
    let load = guest.wait_for_namespace(NQN, 2).unwrap();
    let mut cancelled = Cancelled::start(&mut guest);
    let log = FlushLog::start_unflushed(&mut guest, &logged).unwrap();
    let fio = start_fio(&mut guest, &fio_without_fua(&load));

    let mut snapshots = Snapshots::default();
    let start = Instant::now();
    let (mut kills, mut idle_kills, mut all) = (0, 0, 0);
    while kills < KILLS {
        if kills % 16 == 8 && snapshots.taken.len() < kills as usize / 16 + 1 {
            let name = format!("s{kills}");
            snapshots.take(&mut guest, &log, &name, |words| adit.ctl(words));
        }
        let grpc = adit.grpc();
        let goal = ended_and_depth(&grpc).0 + 1 + dice.below(150);
        let (ended, depth) = until("I/O", || {
            let (ended, depth) = ended_and_depth(&grpc);
            (ended >= goal && depth > 0).then_some((ended, depth))
        });
        adit.kill_9();
        let record = log.acknowledged(&guest);
        let in_flight = cancelled.count(&guest);
        all += in_flight;
        // One that cut nothing short proves nothing, and does not count.
        kills += u32::from(in_flight > 0);
        idle_kills += u32::from(in_flight == 0);
        assert!(idle_kills <= KILLS, "there is no load");
        println!(
            "kill {kills} at {:.1?}: {ended} I/Os ended, {depth} in the volumes, \
             {in_flight} commands cancelled, record {record}",
            start.elapsed(),
        );
        adit.start().unwrap();
    }
    println!(
        "seed {seed}: {all} commands cancelled by {kills} kills, {idle_kills} cut nothing short"
    );
    log.progress(&guest, 2, patience(60)).unwrap();
    println!("through at {:.1?}", start.elapsed());
    let rounds = stop_fio(&mut guest, fio);
    log.stop(&mut guest, patience(60)).unwrap();
    let records = log.acknowledged(&guest);
    println!("fio: {rounds} rounds; {records} records of the log");
    let image = FlushLog::read(&mut guest, &logged, records).unwrap();
    log.check(&image, records);
    snapshots.check(&mut guest);
    assert!(!guest.serial().contains("I/O error"), "{}", guest.serial());
    guest.nvme_disconnect(NQN).unwrap();
    guest.power_off().unwrap();
    for pool in ["tank", "lake"] {
        adit.ctl(&["pool", "check", pool]).unwrap();
    }
}

/// Seed of the random moments; `ADIT_SEED` repeats a run, as far as two machines can.
fn seed() -> u64 {
    let given = std::env::var("ADIT_SEED").ok();
    let seed = given.and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        u64::from(now.subsec_nanos())
    });
    println!("ADIT_SEED={seed}");
    seed
}

/// The log's volume is namespace 1, fio's 2; what `listen` says.
fn share_two_volumes<T>(
    mut ctl: impl FnMut(&[&str]) -> Result<String, HarnessError>,
    listen: impl FnOnce() -> Result<T, HarnessError>,
) -> T {
    ctl(&["subsystem", "create", NQN, "--allow-any-host"]).unwrap();
    for (volume, nsid) in [(LOGGED, "1"), (LOADED, "2")] {
        ctl(&["volume", "create", volume, "--size", "1GiB"]).unwrap();
        ctl(&["namespace", "add", NQN, volume, "--nsid", nsid]).unwrap();
    }
    listen().unwrap()
}

/// Other places in each round, so that first writes do not come to an end.
fn fio_without_fua(device: &str) -> String {
    format!(
        "--filename={device} --rw=randwrite --bsrange=4k-16k --iodepth=8 --size=8M \
         --offset=$((rounds % 20 * 8))M"
    )
}

fn fio_with_fua(device: &str) -> String {
    format!(
        "--filename={device} --rw=randwrite --bsrange=4k-16k --iodepth=8 --size=8M --sync=dsync"
    )
}

/// Snapshots of the log's volume, and what each showed when it was taken.
#[derive(Default)]
struct Snapshots {
    /// NSID, name and content.
    taken: Vec<(u32, String, Vec<u8>)>,
}

impl Snapshots {
    /// Takes one of both volumes, shows it to the guest, and checks that it has what was flushed
    /// before. The one before the last is deleted; the first stays.
    fn take(
        &mut self,
        guest: &mut Guest,
        log: &FlushLog,
        name: &str,
        mut ctl: impl FnMut(&[&str]) -> Result<String, HarnessError>,
    ) {
        let records = log.acknowledged(guest);
        let snapshot = format!("{LOGGED}@{name}");
        ctl(&["snapshot", "create", &snapshot]).unwrap();
        ctl(&["snapshot", "create", &format!("{LOADED}@{name}")]).unwrap();
        let nsid = (10..).find(|nsid| self.taken.iter().all(|(taken, ..)| taken != nsid));
        let nsid = nsid.unwrap();
        let nsid_text = nsid.to_string();
        ctl(&["namespace", "add", NQN, &snapshot, "--nsid", &nsid_text]).unwrap();
        let device = guest.wait_for_namespace(NQN, nsid).unwrap();
        // Two records more than it needs to have: those must not come later.
        let image = FlushLog::read(guest, &device, records + 2).unwrap();
        log.check(&image, records);
        self.taken.push((nsid, name.to_owned(), image));
        if self.taken.len() > 3 {
            let (nsid, name, _) = self.taken.remove(1);
            ctl(&["namespace", "remove", NQN, &nsid.to_string()]).unwrap();
            guest.wait_for_no_namespace(NQN, nsid).unwrap();
            for volume in [LOGGED, LOADED] {
                ctl(&["snapshot", "delete", &format!("{volume}@{name}")]).unwrap();
            }
        }
    }

    /// Checks that each shows what it showed at first.
    fn check(&self, guest: &mut Guest) {
        assert!(self.taken.len() >= 2, "too few to show anything");
        for (nsid, name, image) in &self.taken {
            let device = guest.wait_for_namespace(NQN, *nsid).unwrap();
            let records = image.len() as u64 / FlushLog::bytes(1);
            guest.run("echo 3 >/proc/sys/vm/drop_caches").unwrap();
            let found = FlushLog::read(guest, &device, records as u32).unwrap();
            assert!(found == *image, "snapshot {name} has changed");
            println!("snapshot {name}: {records} records, as they were");
        }
    }
}

/// A guest that is the storage node: `aditd` in it, pools and state on disks that lose power.
struct Storage {
    guest: Option<Guest>,
    power: std::sync::Arc<Power>,
    /// Two pools' and the state's.
    disks: [VolatileDisk; 3],
    port: u16,
}

impl Storage {
    const LISTENER: &str = "tcp://10.0.2.15:4420";

    fn new() -> Self {
        let power = Power::new();
        let disk = |name, bytes| VolatileDisk::new(name, bytes, &power).unwrap();
        let disks = [("tank", 512), ("lake", 512), ("state", 64)];
        let disks = disks.map(|(name, mib)| disk(name, mib * MIB));
        let mut storage = Self {
            guest: None,
            power,
            disks,
            port: free_port().unwrap(),
        };
        // Its superblock lies in two sectors and is in no journal: one that a cut tears fails its checksum, and
        // ext4 is not what is tested.
        storage.boot("mkfs.ext4 -q -O ^metadata_csum /dev/disk-state");
        storage
    }

    /// Boots it; `first` runs before the state directory is mounted.
    fn boot(&mut self, first: &str) {
        let guest = Guest::builder("storage").machine("host-small").programs();
        let guest = self.disks.iter().fold(guest, GuestBuilder::disk);
        let mut guest = guest.boot().unwrap();
        let script = format!(
            "modprobe ext4; {first}\n\
             mkdir /state; mount /dev/disk-state /state\n\
             setsid /programs/aditd --state-dir /state --grpc unix:/run/aditd.sock \
             --reactors 0x1 >/share/aditd.log 2>&1 </dev/null &\n\
             echo $!"
        );
        guest.run(&script).unwrap();
        let served = guest.wait_until("aditd to serve", &format!("{CTL} node show"), patience(60));
        if served.is_err() {
            let log = std::fs::read_to_string(guest.share().join("aditd.log"));
            panic!("{served:?}\naditd said: {}", log.unwrap_or_default());
        }
        self.guest = Some(guest);
    }

    fn guest(&mut self) -> &mut Guest {
        self.guest.as_mut().expect("it has been booted")
    }

    fn ctl(&mut self, words: &[&str]) -> Result<String, HarnessError> {
        self.guest().run(&format!("{CTL} {}", words.join(" ")))
    }

    fn check(&mut self) {
        for pool in ["tank", "lake"] {
            self.ctl(&["pool", "check", pool]).unwrap();
        }
    }

    /// Lets hosts connect. Until then they are refused at once; with nobody behind the port, QEMU
    /// would take their connections and leave them waiting.
    fn open_port(&mut self) {
        let port = self.port;
        until("the port", || self.guest().forward(port, 4420).ok());
    }

    /// Cuts the power with the n-th write from now on. For each disk: writes that were unflushed, and
    /// how many parts of them are lost.
    fn cut(&mut self, write: u64, seed: u64) -> Vec<(usize, usize)> {
        self.power.off_at_write(write);
        assert!(self.power.wait_until_off(patience(120)), "there is no load");
        self.guest.take().expect("it runs").cut();
        let disks = self.disks.iter().zip(0..);
        disks
            .map(|(disk, number)| disk.lose_unflushed(seed.wrapping_add(number)))
            .collect()
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(guest) = &self.guest
        {
            let log = std::fs::read_to_string(guest.share().join("aditd.log"));
            eprintln!("--- aditd's log ---\n{}", log.unwrap_or_default());
        }
    }
}

const CTL: &str = "/programs/aditctl --server unix:/run/aditd.sock";

/// Goal: the main job. Method: a storage guest is cut off its power ten times under a host's
/// load, each time with a write that just reached the disk's cache; the disks lose a random part of
/// what was not flushed. It boots again on the same disks; the host's kernel reconnects and goes on.
/// At the end fio has verified all it wrote with FUA, each record that was flushed is there, the pools
/// check clean, and snapshots show what they showed.
#[test]
fn power_cuts_lose_nothing_that_was_flushed() {
    if skip_without_qemu() {
        return;
    }
    const CUTS: u32 = 10;
    let seed = seed();
    let mut dice = Dice::new(seed);
    let mut storage = Storage::new();
    for pool in ["tank", "lake"] {
        let disk = format!("disk-{pool}");
        let path = format!("/dev/{disk}");
        storage
            .ctl(&["bdev", "create", "file", &disk, &path])
            .unwrap();
        storage
            .ctl(&["pool", "create", pool, &disk, "--cluster-size", "64KiB"])
            .unwrap();
    }
    share_two_volumes(|words| storage.ctl(words), || Ok(()));
    storage
        .ctl(&["listener", "add", NQN, Storage::LISTENER, "--wait"])
        .unwrap();
    storage.open_port();
    let mut host = Guest::builder("host").machine("host-small").boot().unwrap();
    host.nvme_connect(NQN, storage.port, "--keep-alive-tmo 5")
        .unwrap();
    let logged = host.wait_for_namespace(NQN, 1).unwrap();
    let load = host.wait_for_namespace(NQN, 2).unwrap();
    let mut log = FlushLog::start(&mut host, &logged).unwrap();
    let fio = start_fio(&mut host, &fio_with_fua(&load));

    let mut snapshots = Snapshots::default();
    let start = Instant::now();
    for cut in 0..CUTS {
        // The host is back before the next cut counts.
        log.progress(&host, 2, patience(120)).unwrap();
        if cut % 3 == 1 {
            let name = format!("s{cut}");
            snapshots.take(&mut host, &log, &name, |words| storage.ctl(words));
        }
        let write = 1 + dice.below(300);
        let lost = storage.cut(write, dice.below(u64::MAX));
        let record = log.acknowledged(&host);
        println!(
            "cut {cut} at {:.1?}, record {record}, write {write}: unflushed writes and lost parts of \
             tank, lake, state: {lost:?}",
            start.elapsed(),
        );
        assert!(lost.iter().any(|(unflushed, _)| *unflushed > 0));
        storage.boot("true");
        log.interrupt(&host, record);
        storage.check();
        storage.open_port();
    }
    log.progress(&host, 2, patience(120)).unwrap();
    let rounds = stop_fio(&mut host, fio);
    log.stop(&mut host, patience(60)).unwrap();
    let records = log.acknowledged(&host);
    println!("fio: {rounds} rounds; {records} records of the log");
    let image = FlushLog::read(&mut host, &logged, records).unwrap();
    log.check(&image, records);
    snapshots.check(&mut host);
    assert!(!host.serial().contains("I/O error"), "{}", host.serial());
    host.nvme_disconnect(NQN).unwrap();
    host.power_off().unwrap();
    storage.check();
}
