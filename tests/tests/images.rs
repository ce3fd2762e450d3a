//! Images in and out, shallow copies and scrubs over the programs.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use program_tests::{Adit, Dice, Host, HostOptions, until};
use serde_json::Value;

const NQN: &str = "nqn.2026-11.io.adit.test:image";
const MIB: u64 = 1 << 20;

/// An `aditd` with pool `tank` on a file of `size`.
fn with_pool(size: &str) -> Adit {
    let adit = Adit::builder().start().unwrap();
    make_disk(&adit, size);
    make_pool(&adit, "disk");
    adit
}

fn make_disk(adit: &Adit, size: &str) {
    let path = adit.state_dir().join("pool.img").display().to_string();
    adit.ctl(&["bdev", "create", "file", "disk", &path, "--size", size])
        .unwrap();
}

fn make_pool(adit: &Adit, bdev: &str) {
    adit.ctl(&["pool", "create", "tank", bdev, "--cluster-size", "64KiB"])
        .unwrap();
}

/// A pool whose device is slow to write, so that an import of some MiB takes seconds.
fn with_slow_pool() -> Adit {
    let adit = Adit::builder().start().unwrap();
    make_disk(&adit, "256MiB");
    let words = "bdev create delay slow disk --avg-write 40ms --p99-write 40ms";
    adit.ctl(&words.split(' ').collect::<Vec<_>>()).unwrap();
    make_pool(&adit, "slow");
    adit
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A raw image: data in the ranges (first MiB, MiB), holes between.
fn image(path: &Path, size: u64, data: &[(u64, u64)], seed: u64) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    let mut dice = Dice::new(seed);
    for (first, count) in data {
        for mib in *first..first + count {
            let bytes: Vec<u8> = (0..MIB / 8)
                .flat_map(|_| dice.below(u64::MAX).to_le_bytes())
                .collect();
            let bytes = &bytes[..MIB.min(size - mib * MIB) as usize];
            file.write_all_at(bytes, mib * MIB).unwrap();
        }
    }
}

fn stored_bytes(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

fn same(a: &Path, b: &Path) -> bool {
    fs::read(a).unwrap() == fs::read(b).unwrap()
}

fn number(value: &Value) -> u64 {
    let text = value.as_str().map(str::to_owned);
    text.unwrap_or_else(|| value.to_string()).parse().unwrap()
}

fn pool_bytes(adit: &Adit, what: &str) -> u64 {
    number(&adit.ctl_json(&["pool", "show", "tank"]).unwrap()[what])
}

fn operation(adit: &Adit, name: &str) -> Value {
    adit.ctl_json(&["operation", "show", name]).unwrap()
}

/// Begins, and gives the operation's name.
fn detached(adit: &Adit, words: &[&str]) -> String {
    let words = [words, &["--detach"]].concat();
    let begun = adit.ctl_json(&words).unwrap();
    begun["name"].as_str().unwrap().to_owned()
}

fn volumes(adit: &Adit) -> usize {
    let listed = adit.ctl_json(&["volume", "list"]).unwrap();
    listed["volumes"].as_array().map_or(0, Vec::len)
}

/// Goal: what goes in comes out, in both formats, and holes stay holes.
#[test]
fn images_go_in_and_come_out_sparse_and_the_same() {
    let adit = with_pool("256MiB");
    let folder = adit.state_dir().to_owned();
    let path = |name: &str| -> PathBuf { folder.join(name) };
    let first = path("first.raw");
    // Not a multiple of anything but a block.
    let size = 700 * MIB + 512;
    image(&first, size, &[(0, 3), (333, 5), (700, 1)], 1);
    // Zeroes that are stored are no data.
    let zeroes = vec![0; 8 * MIB as usize];
    let file = File::options().write(true).open(&first).unwrap();
    file.write_all_at(&zeroes, 500 * MIB).unwrap();

    adit.ctl(&["volume", "import", "tank/v", text(&first)])
        .unwrap();
    let volume = adit.ctl_json(&["volume", "show", "tank/v"]).unwrap();
    assert_eq!(number(&volume["size_bytes"]), size);
    assert!(pool_bytes(&adit, "data_bytes") <= 10 * MIB);

    adit.ctl(&["snapshot", "create", "tank/v@s"]).unwrap();
    let (raw, qcow2) = (path("second.raw"), path("third.qcow2"));
    adit.ctl(&["volume", "export", "tank/v@s", text(&raw)])
        .unwrap();
    assert!(same(&first, &raw));
    assert!(stored_bytes(&raw) <= 10 * MIB, "{}", stored_bytes(&raw));
    adit.ctl(&["volume", "export", "tank/v", text(&qcow2)])
        .unwrap();
    let len = fs::metadata(&qcow2).unwrap().len();
    assert!(len <= 10 * MIB, "{len}");
    qemu_img_agrees(&qcow2, &first);

    adit.ctl(&["volume", "import", "tank/w", text(&qcow2)])
        .unwrap();
    let last = path("fourth.raw");
    adit.ctl(&["volume", "export", "tank/w", text(&last)])
        .unwrap();
    assert!(same(&first, &last));

    let refused = adit.ctl_fails(&["volume", "export", "tank/w", text(&last)]);
    assert!(refused.contains("is there already"), "{refused}");
    let refused = adit.ctl_fails(&["volume", "import", "tank/w", text(&last)]);
    assert!(refused.contains("exists already"), "{refused}");
    let refused = adit.ctl_fails(&["volume", "import", "tank/x", "first.raw"]);
    assert!(refused.contains("absolute"), "{refused}");
    let refused = adit.ctl_fails(&["volume", "import", "tank/x", text(&path("none"))]);
    assert!(refused.contains("cannot open"), "{refused}");
    // What a host uses is not of one moment.
    adit.export(NQN, "tank/w").unwrap();
    let refused = adit.ctl_fails(&["volume", "export", "tank/w", text(&path("fifth.raw"))]);
    assert!(refused.contains("take a snapshot"), "{refused}");
    assert_eq!(volumes(&adit), 2);
    assert!(fs::read_dir(&folder).unwrap().all(|entry| {
        let name = entry.unwrap().file_name();
        !name.to_string_lossy().ends_with(".part")
    }));
}

/// Runs `qemu-img`. `None`, with the reason printed, where there is none and nobody insists on one: `make test`
/// does, with `ADIT_QEMU_TESTS=require`.
fn qemu_img(words: &[&str]) -> Option<std::process::Output> {
    match std::process::Command::new("qemu-img").args(words).output() {
        Ok(output) => Some(output),
        Err(error) => {
            let required = std::env::var("ADIT_QEMU_TESTS").is_ok_and(|value| value == "require");
            assert!(!required, "qemu-img: {error}; `make deps` installs it");
            println!("skipped a part: there is no qemu-img on this machine");
            None
        }
    }
}

/// QEMU's own program reads what is written here as what went in.
fn qemu_img_agrees(qcow2: &Path, raw: &Path) {
    let compare = [
        "compare",
        "-f",
        "qcow2",
        "-F",
        "raw",
        text(qcow2),
        text(raw),
    ];
    let Some(compared) = qemu_img(&compare) else {
        return;
    };
    assert!(compared.status.success(), "{compared:?}");
    let checked = qemu_img(&["check", "-f", "qcow2", text(qcow2)]).unwrap();
    assert!(checked.status.success(), "{checked:?}");
}

/// Goal: what `qemu-img` writes is imported as what it wrote, or refused with what is to be done; what is
/// exported it reads and finds nothing wrong with.
#[test]
fn images_of_qemu_img_are_imported_or_refused() {
    let adit = with_pool("256MiB");
    let folder = adit.state_dir().to_owned();
    let raw = folder.join("raw");
    image(&raw, 40 * MIB + 512, &[(0, 2), (17, 1), (40, 1)], 7);
    // Of one byte, so that it can be compressed.
    let file = File::options().write(true).open(&raw).unwrap();
    file.write_all_at(&vec![0x61; 3 * MIB as usize], 5 * MIB)
        .unwrap();
    let made = folder.join("made.qcow2");
    let out = folder.join("out.raw");
    let again = folder.join("again.qcow2");
    for options in [
        &["-o", "compat=1.1"][..],
        &["-o", "compat=0.10"],
        &["-o", "cluster_size=4k"],
        &["-o", "cluster_size=2M"],
        &["-o", "lazy_refcounts=on"],
        &["-o", "preallocation=metadata"],
        &["-c"],
        &["-c", "-o", "cluster_size=4k"],
    ] {
        let words = [
            &["convert", "-f", "raw", "-O", "qcow2"],
            options,
            &[text(&raw), text(&made)],
        ];
        let Some(converted) = qemu_img(&words.concat()) else {
            return;
        };
        assert!(converted.status.success(), "{options:?}: {converted:?}");
        adit.ctl(&["volume", "import", "tank/v", text(&made)])
            .unwrap();
        for path in [&out, &again] {
            adit.ctl(&["volume", "export", "tank/v", text(path)])
                .unwrap();
        }
        assert!(same(&raw, &out), "{options:?}");
        qemu_img_agrees(&again, &raw);
        adit.ctl(&["volume", "delete", "tank/v"]).unwrap();
        for path in [&made, &out, &again] {
            fs::remove_file(path).unwrap();
        }
    }
    let refused = |words: &[&str], why: &str| {
        let created = qemu_img(words).unwrap();
        assert!(created.status.success(), "{created:?}");
        let refused = adit.ctl_fails(&["volume", "import", "tank/v", text(&made)]);
        assert!(refused.contains(why), "{words:?}: {refused}");
        fs::remove_file(&made).unwrap();
    };
    let (base, new) = (text(&raw), text(&made));
    let overlay = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, new];
    refused(&overlay, "a backing file");
    let convert = ["convert", "-f", "raw", "-O", "qcow2", "-o"];
    let zstd = [&convert[..], &["compression_type=zstd", "-c", base, new]].concat();
    refused(&zstd, "compression of type");
    let subclusters = [&convert[..], &["extended_l2=on", base, new]].concat();
    refused(&subclusters, "qemu-img convert");
    assert_eq!(volumes(&adit), 0);
}

/// Goal: an import survives the program. Method: kill it when a part is done, start it, compare.
#[test]
fn an_import_goes_on_after_kill_9() {
    let mut adit = with_slow_pool();
    let source = adit.state_dir().join("source.raw");
    image(&source, 100 * MIB, &[(0, 100)], 2);
    let name = detached(&adit, &["volume", "import", "tank/v", text(&source)]);
    let done = |least: u64| {
        until("a part of the import", || {
            Some(number(&operation(&adit, &name)["done"])).filter(|done| *done > least)
        })
    };
    // What is told is durable when more than that has been told.
    done(done(0));
    // It is the operation's alone.
    let refused = adit.export(NQN, "tank/v").unwrap_err().to_string();
    assert!(refused.contains("operation tank/1"), "{refused}");
    adit.ctl(&["subsystem", "delete", NQN]).unwrap();
    adit.kill_9();
    adit.start().unwrap();
    let found = until("the pool", || {
        adit.ctl_json(&["operation", "show", &name]).ok()
    });
    assert!(number(&found["done"]) > 0, "{found}");
    adit.ctl(&["operation", "wait", &name]).unwrap();
    let target = adit.state_dir().join("target.raw");
    adit.ctl(&["volume", "export", "tank/v", text(&target)])
        .unwrap();
    assert!(same(&source, &target));
}

/// Goal: an import whose image changed while the program was down fails, and says so.
#[test]
fn an_import_whose_image_has_changed_fails_and_takes_its_volume_along() {
    let mut adit = with_slow_pool();
    let source = adit.state_dir().join("source.raw");
    image(&source, 100 * MIB, &[(0, 100)], 3);
    let name = detached(&adit, &["volume", "import", "tank/v", text(&source)]);
    adit.kill_9();
    image(&source, 90 * MIB, &[(0, 1)], 4);
    adit.start().unwrap();
    until("the pool", || {
        adit.ctl_json(&["operation", "show", &name]).ok()
    });
    let failed = adit.ctl_fails(&["operation", "wait", &name]);
    assert!(failed.contains("was changed"), "{failed}");
    assert_eq!(volumes(&adit), 0);
}

/// Goal: cancelling works, and leaves nothing.
#[test]
fn a_cancelled_import_and_export_leave_nothing() {
    let adit = with_slow_pool();
    let empty = pool_bytes(&adit, "free_bytes");
    let source = adit.state_dir().join("source.raw");
    image(&source, 100 * MIB, &[(0, 100)], 5);
    let name = detached(&adit, &["volume", "import", "tank/v", text(&source)]);
    let shown = operation(&adit, &name);
    assert!(shown["text"].as_str().unwrap().contains("source.raw"));
    adit.ctl(&["operation", "cancel", &name]).unwrap();
    let failed = adit.ctl_fails(&["operation", "wait", &name]);
    assert!(failed.contains("cancelled"), "{failed}");
    assert_eq!(volumes(&adit), 0);
    until("all space to come back", || {
        (pool_bytes(&adit, "free_bytes") == empty).then_some(())
    });
    assert!(adit.ctl(&["pool", "check", "tank"]).is_ok());

    adit.ctl(&[
        "bdev",
        "delay",
        "slow",
        "--avg-write",
        "0ms",
        "--p99-write",
        "0ms",
    ])
    .unwrap();
    adit.ctl(&["volume", "import", "tank/v", text(&source)])
        .unwrap();
    adit.ctl(&[
        "bdev",
        "delay",
        "slow",
        "--avg-read",
        "100ms",
        "--p99-read",
        "100ms",
    ])
    .unwrap();
    let target = adit.state_dir().join("target.raw");
    let name = detached(&adit, &["volume", "export", "tank/v", text(&target)]);
    adit.ctl(&["operation", "cancel", &name]).unwrap();
    let failed = adit.ctl_fails(&["operation", "wait", &name]);
    assert!(failed.contains("cancelled"), "{failed}");
    assert!(!target.exists());
    assert!(!target.with_extension("raw.part").exists());
}

/// Goal: an import that does not fit fails with the reason and leaves nothing odd.
#[test]
fn an_import_into_a_full_pool_fails_and_gives_everything_back() {
    let adit = with_pool("64MiB");
    let empty = pool_bytes(&adit, "free_bytes");
    let source = adit.state_dir().join("source.raw");
    image(&source, 100 * MIB, &[(0, 100)], 6);
    let failed = adit.ctl_fails(&["volume", "import", "tank/v", text(&source)]);
    assert!(failed.contains("the pool is full"), "{failed}");
    assert_eq!(volumes(&adit), 0);
    until("all space to come back", || {
        (pool_bytes(&adit, "free_bytes") == empty).then_some(())
    });
    let refused = adit.ctl_fails(&["volume", "import", "tank/v", text(&source), "--thick"]);
    assert!(refused.contains("clusters are needed"), "{refused}");
    assert_eq!(volumes(&adit), 0);
    assert!(adit.ctl(&["pool", "check", "tank"]).is_ok());
    // The pool serves as before.
    image(&source, 10 * MIB, &[(0, 10)], 7);
    adit.ctl(&["volume", "import", "tank/v", text(&source)])
        .unwrap();
}

/// Where the file of the pool's device holds these bytes.
fn place(adit: &Adit, bytes: &[u8]) -> u64 {
    let disk = fs::read(adit.state_dir().join("pool.img")).unwrap();
    let mut blocks = disk.chunks(4096);
    let index = blocks.position(|block| block == bytes).unwrap();
    index as u64 * 4096
}

/// Goal: a scrub names what the device cannot read.
#[test]
fn a_scrub_names_the_volume_and_the_byte_that_cannot_be_read() {
    let adit = Adit::builder().start().unwrap();
    make_disk(&adit, "128MiB");
    adit.ctl(&["bdev", "create", "error", "bad", "disk"])
        .unwrap();
    make_pool(&adit, "bad");
    let source = adit.state_dir().join("source.raw");
    image(&source, 20 * MIB, &[(3, 10)], 8);
    adit.ctl(&["volume", "import", "tank/v", text(&source)])
        .unwrap();
    adit.ctl(&["snapshot", "create", "tank/v@s"]).unwrap();
    let scrubbed = adit.ctl(&["pool", "scrub", "tank"]).unwrap();
    assert!(scrubbed.contains("all is well"), "{scrubbed}");

    let offset = 5 * MIB + 40960;
    let mut bytes = vec![0; 4096];
    let file = File::open(&source).unwrap();
    file.read_exact_at(&mut bytes, offset).unwrap();
    let lba = place(&adit, &bytes) / 512;
    let rule = format!("io=read,type=failure,lba={lba}-{}", lba + 1);
    adit.ctl(&["bdev", "error", "bad", "--rule", &rule])
        .unwrap();
    let failed = adit.ctl_fails(&["pool", "scrub", "tank", "--rate", "100MiB"]);
    let wanted = format!("1 places, 4096 bytes, cannot be read: tank/v@s at {offset}");
    assert!(failed.contains(&wanted), "{failed}");
    // The slowest one is ended within the patience of this test.
    let name = detached(&adit, &["pool", "scrub", "tank", "--rate", "1KiB"]);
    adit.ctl(&["operation", "cancel", &name]).unwrap();
    let failed = adit.ctl_fails(&["operation", "wait", &name]);
    assert!(failed.contains("cancelled"), "{failed}");
}

/// Goal: a scrub finds what the device returns wrong without an error, in what cannot change.
#[test]
fn a_scrub_finds_what_is_not_what_it_was_when_a_snapshot_was_first_read() {
    let mut adit = with_pool("128MiB");
    let source = adit.state_dir().join("source.raw");
    // More than is asked for at a time.
    image(&source, 60 * MIB, &[(3, 47)], 12);
    adit.ctl(&["volume", "import", "tank/v", text(&source)])
        .unwrap();
    adit.ctl(&["snapshot", "create", "tank/v@s"]).unwrap();
    let scrub = ["pool", "scrub", "tank"];
    let first = adit.ctl(&scrub).unwrap();
    assert!(
        first.contains("49283072 bytes read; all is well"),
        "{first}"
    );
    let second = adit.ctl(&scrub).unwrap();
    let wanted = "49283072 bytes read, 49283072 compared with checksums; all is well";
    assert!(second.contains(wanted), "{second}");

    let offset = 5 * MIB + 40960;
    let mut bytes = vec![0; 4096];
    let file = File::open(&source).unwrap();
    file.read_exact_at(&mut bytes, offset).unwrap();
    let at = place(&adit, &bytes);
    bytes[1000] ^= 4;
    let disk = File::options()
        .write(true)
        .open(adit.state_dir().join("pool.img"))
        .unwrap();
    disk.write_all_at(&bytes, at).unwrap();
    let failed = adit.ctl_fails(&scrub);
    // That is the beginning of its cluster.
    let wanted = format!(
        "1 clusters, 65536 bytes in them, differ from their checksums: tank/v@s at {} (checksum of 20",
        5 * MIB
    );
    assert!(failed.contains(&wanted), "{failed}");

    // What was found is not forgotten when the program dies, and the rest is compared after that.
    let name = detached(&adit, &["pool", "scrub", "tank", "--rate", "16MiB"]);
    until("a place", || {
        let shown = operation(&adit, &name).to_string();
        shown
            .contains("1 places differ from their checksums so far")
            .then_some(())
    });
    adit.kill_9();
    adit.start().unwrap();
    until("the pool", || {
        adit.ctl_json(&["operation", "show", &name]).ok()
    });
    let failed = adit.ctl_fails(&["operation", "wait", &name]);
    assert!(failed.contains(&wanted), "{failed}");
}

/// Goal: a shallow copy has what the snapshot has itself, and nothing else.
#[test]
fn a_shallow_copy_of_each_snapshot_makes_the_whole() {
    let adit = with_pool("128MiB");
    let source = adit.state_dir().join("source.raw");
    image(&source, 16 * MIB, &[(1, 2)], 9);
    adit.ctl(&["volume", "import", "tank/v", text(&source)])
        .unwrap();
    adit.ctl(&["snapshot", "create", "tank/v@a"]).unwrap();
    let port = adit.export(NQN, "tank/v").unwrap();
    let mut host = until("a host", || {
        Host::connect(port, NQN, &HostOptions::default()).ok()
    });
    host.write(20480, vec![7; 65536]).unwrap();
    host.flush().unwrap();
    drop(host);
    adit.ctl(&["snapshot", "create", "tank/v@b"]).unwrap();
    for (name, size) in [("ram", "16MiB"), ("small", "8MiB")] {
        adit.ctl(&["bdev", "create", "malloc", name, "--size", size])
            .unwrap();
    }
    let refused = adit.ctl_fails(&["snapshot", "copy", "tank/v@b", "small"]);
    assert!(refused.contains("are needed"), "{refused}");
    adit.ctl(&["snapshot", "copy", "tank/v@b", "ram"]).unwrap();
    let read = |lba: u64| {
        let nqn = format!("{NQN}ram");
        let port = adit.export(&nqn, "ram").unwrap();
        let mut host = until("a host", || {
            Host::connect(port, &nqn, &HostOptions::default()).ok()
        });
        let bytes = host.read(lba, 128).unwrap();
        drop(host);
        adit.ctl(&["subsystem", "delete", &nqn]).unwrap();
        bytes
    };
    assert_eq!(read(20480), vec![7; 65536]);
    assert_eq!(read(2048), vec![0; 65536], "that is the parent's");
    adit.ctl(&["snapshot", "copy", "tank/v@a", "ram"]).unwrap();
    let mut bytes = vec![0; 65536];
    let file = File::open(&source).unwrap();
    file.read_exact_at(&mut bytes, MIB).unwrap();
    assert_eq!(read(2048), bytes);
    assert_eq!(read(20480), vec![7; 65536]);
}
