//! nvme-cli on an unmodified kernel against `aditd`: what a host is told, and the commands a shell
//! can send.

#![expect(
    clippy::unwrap_used,
    reason = "steps of a test stand outside of the test's function"
)]

use qemu_tests::{Adit, Guest, HOST_ADDRESS, skip_without_qemu};
use serde_json::Value;

const NQN: &str = "nqn.2026-11.io.adit:cli";
const BLOCK_SIZE: u64 = 512;
const BLOCK_COUNT: u64 = (64 << 20) / BLOCK_SIZE;

/// Goal: discovery, Identify, log pages and features tell the truth, as nvme-cli reads them.
/// Method: export a RAM disk, connect, and compare each answer with what was configured or done
/// before.
#[test]
fn nvme_cli_reads_what_was_configured() {
    if skip_without_qemu() {
        return;
    }
    let adit = Adit::builder().start().unwrap();
    adit.ctl(&["bdev", "create", "malloc", "ram", "--size", "64MiB"])
        .unwrap();
    let words = [
        "--allow-any-host",
        "--serial",
        "ADIT0001",
        "--model",
        "Adit test disk",
    ];
    adit.ctl(&[&["subsystem", "create", NQN], &words[..]].concat())
        .unwrap();
    let port = adit.expose(NQN, "ram").unwrap();
    let mut guest = Guest::builder("cli").boot().unwrap();

    discovery_lists_the_subsystem(&mut guest, port);
    let controller = guest.nvme_connect(NQN, port, "").unwrap();
    let namespace = guest.wait_for_namespace(NQN, 1).unwrap();
    let controller = format!("/dev/{}", controller.name);
    identify_tells_the_configuration(&mut guest, &controller, &namespace);
    io_commands_do_what_they_say(&mut guest, &namespace);
    log_pages_tell_what_happened(&mut guest, &controller, &namespace);
    features_can_be_read_and_set(&mut guest, &controller);
    subsystems_are_listed_with_their_path(&mut guest, port);

    guest.nvme_disconnect(NQN).unwrap();
    guest.wait_for_no_namespace(NQN, 1).unwrap();
    guest.power_off().unwrap();
}

fn discovery_lists_the_subsystem(guest: &mut Guest, port: u16) {
    let log = json(
        guest,
        &format!("nvme discover -t tcp -a {HOST_ADDRESS} -s {port} -o json"),
    );
    let records = log["records"].as_array().unwrap();
    let record = records
        .iter()
        .find(|record| record["subnqn"] == NQN)
        .unwrap();
    assert_eq!(record["trtype"], "tcp");
    assert_eq!(record["adrfam"], "ipv4");
    assert_eq!(record["traddr"], "127.0.0.1");
    assert_eq!(record["trsvcid"], port.to_string());
    assert_eq!(record["subtype"], "nvme subsystem");
}

fn identify_tells_the_configuration(guest: &mut Guest, controller: &str, namespace: &str) {
    let id = json(guest, &format!("nvme id-ctrl {controller} -o json"));
    assert_eq!(id["sn"].as_str().unwrap().trim(), "ADIT0001");
    assert_eq!(id["mn"].as_str().unwrap().trim(), "Adit test disk");
    assert_eq!(id["subnqn"], NQN);
    assert_eq!(id["cntrltype"], 1, "an I/O controller");
    assert!(number(&id["ver"]) >= 0x2_0000, "NVMe 2.0 or later");
    assert_eq!(id["sqes"], 0x66);
    assert_eq!(id["cqes"], 0x44);
    assert!(number(&id["mdts"]) > 0, "the largest transfer is told");
    assert!(number(&id["aerl"]) >= 3, "four asynchronous event requests");
    assert!(number(&id["kas"]) > 0, "keep alive");
    // Units of 16 bytes: the command and 8 KiB of data in its capsule.
    assert_eq!(id["ioccsz"], (64 + 8192) / 16);
    assert_eq!(number(&id["fuses"]) & 1, 1, "compare and write");
    // Compare, dataset management, write zeroes, verify and copy.
    for (bit, name) in [
        (0, "compare"),
        (2, "dsm"),
        (3, "write zeroes"),
        (7, "verify"),
        (8, "copy"),
    ] {
        assert_eq!(number(&id["oncs"]) >> bit & 1, 1, "{name}: {}", id["oncs"]);
    }

    let id = json(guest, &format!("nvme id-ns {namespace} -o json"));
    for field in ["nsze", "ncap"] {
        assert_eq!(number(&id[field]), BLOCK_COUNT, "{field}");
    }
    let format = usize::try_from(number(&id["flbas"]) & 0xf).unwrap();
    assert_eq!(1u64 << number(&id["lbafs"][format]["ds"]), BLOCK_SIZE);
    assert_eq!(number(&id["nmic"]) & 1, 1, "may be shared by controllers");
    assert_ne!(id["nguid"], "00000000000000000000000000000000");
    let descriptors = guest
        .run(&format!("nvme ns-descs {namespace} -o json"))
        .unwrap();
    assert!(descriptors.contains("\"uuid\""), "{descriptors}");
    let namespaces = json(guest, &format!("nvme list-ns {controller} -o json"));
    assert_eq!(namespaces["nsid_list"].as_array().unwrap().len(), 1);
    assert_eq!(namespaces["nsid_list"][0]["nsid"], 1);
    let size = guest
        .run(&format!("blockdev --getsize64 {namespace}"))
        .unwrap();
    assert_eq!(size.trim(), (BLOCK_COUNT * BLOCK_SIZE).to_string());
}

/// Each command of the I/O set, sent by hand; what they wrote is read back by another way.
fn io_commands_do_what_they_say(guest: &mut Guest, namespace: &str) {
    guest
        .run(&format!(
            "set -x; d={namespace}; a='--block-count=15 --data-size=8192'\n\
             head -c 8192 /dev/urandom >/tmp/a; head -c 8192 /dev/urandom >/tmp/b\n\
             nvme write $d --start-block=8 $a --data=/tmp/a --force-unit-access\n\
             nvme flush $d --namespace-id=1\n\
             dd if=$d iflag=direct bs=4096 skip=1 count=2 status=none | cmp - /tmp/a\n\
             nvme compare $d --start-block=8 $a --data=/tmp/a\n\
             if nvme compare $d --start-block=8 $a --data=/tmp/b; then exit 1; fi\n\
             nvme verify $d --start-block=0 --block-count=127 --namespace-id=1\n\
             nvme copy $d --sdlba=64 --slbs=8 --blocks=15 --format=0 --namespace-id=1\n\
             nvme read $d --start-block=64 $a --data=/tmp/c\n\
             cmp /tmp/a /tmp/c\n\
             nvme write-zeroes $d --start-block=8 --block-count=15 --namespace-id=1\n\
             dd if=$d iflag=direct bs=4096 skip=1 count=2 status=none | cmp -n 8192 - /dev/zero\n\
             nvme dsm $d --ad --slbs=64 --blocks=16 --namespace-id=1\n\
             blkdiscard $d\n\
             blkdiscard --zeroout --offset 1048576 --length 1048576 $d"
        ))
        .unwrap();
}

fn log_pages_tell_what_happened(guest: &mut Guest, controller: &str, namespace: &str) {
    let smart = |guest: &mut Guest| json(guest, &format!("nvme smart-log {controller} -o json"));
    let before = smart(guest);
    guest
        .run(&format!(
            "dd if=/dev/urandom of={namespace} oflag=direct bs=128k count=80 status=none"
        ))
        .unwrap();
    let after = smart(guest);
    let grown = |field: &str| number(&after[field]) - number(&before[field]);
    assert!(grown("host_write_commands") >= 80, "{before} {after}");
    // Units of 512,000 bytes, rounded up: 10 MiB are 20.48 of them.
    assert!(
        (20..=21).contains(&grown("data_units_written")),
        "{before} {after}"
    );
    assert_eq!(after["critical_warning"], 0);
    assert_eq!(after["media_errors"], 0);

    let command = format!(
        "nvme read {namespace} --start-block={BLOCK_COUNT} --block-count=0 --data-size=512 \
         --data=/dev/null"
    );
    let refused = guest.attempt(&command).unwrap();
    assert_ne!(refused.status, 0, "a read past the end");
    let errors = json(
        guest,
        &format!("nvme error-log {controller} --log-entries=4 -o json"),
    );
    let error = &errors["errors"][0];
    assert!(number(&error["error_count"]) > 0, "{errors}");
    assert_eq!(number(&error["lba"]), BLOCK_COUNT, "{errors}");
    assert_eq!(error["nsid"], 1, "{errors}");

    let ana = json(guest, &format!("nvme ana-log {controller} -o json"));
    let groups = ana["ANA DESC LIST "].as_array().unwrap();
    assert!(
        groups.iter().all(|group| group["state"] == "optimized"),
        "{ana}"
    );
    let nsids = groups
        .iter()
        .filter_map(|group| group["NSIDS"].as_array())
        .flatten();
    assert!(nsids.into_iter().any(|entry| entry["nsid"] == 1), "{ana}");

    let firmware = guest
        .run(&format!("nvme fw-log {controller} -o json"))
        .unwrap();
    assert!(
        firmware.contains("Active Firmware Slot (afi)\":1"),
        "{firmware}"
    );
    let effects = guest
        .run(&format!("nvme effects-log {controller} -o json"))
        .unwrap();
    for name in ["(Write)", "(Read)", "(Flush)", "(Identify)", "(Keep Alive)"] {
        assert!(effects.contains(name), "{name} is missing in {effects}");
    }
    guest
        .run(&format!("nvme changed-ns-list-log {controller} -o json"))
        .unwrap();
}

fn features_can_be_read_and_set(guest: &mut Guest, controller: &str) {
    // Number of queues, asynchronous events, keep alive.
    for feature in ["0x07", "0x0b", "0x0f"] {
        guest
            .run(&format!("nvme get-feature {controller} -f {feature}"))
            .unwrap();
    }
    // A RAM disk has no volatile write cache, and then the feature is refused.
    let cache = guest
        .attempt(&format!("nvme get-feature {controller} -f 0x06"))
        .unwrap();
    assert!(cache.stderr.contains("Invalid Field"), "{}", cache.stderr);
    let set = format!("nvme set-feature {controller} -f 0x04 --value=350");
    guest
        .run(&format!(
            "{set}; nvme get-feature {controller} -f 0x04 | grep -i 15e"
        ))
        .unwrap();
    let unknown = guest
        .attempt(&format!("nvme get-feature {controller} -f 0x7f"))
        .unwrap();
    assert_ne!(unknown.status, 0, "a feature that nobody has");
}

fn subsystems_are_listed_with_their_path(guest: &mut Guest, port: u16) {
    let list = json(guest, "nvme list-subsys -o json");
    let subsystems = list[0]["Subsystems"].as_array().unwrap();
    let subsystem = subsystems
        .iter()
        .find(|subsystem| subsystem["NQN"] == NQN)
        .unwrap();
    let path = &subsystem["Paths"][0];
    assert_eq!(path["Transport"], "tcp");
    assert_eq!(path["State"], "live");
    let address = format!("traddr={HOST_ADDRESS},trsvcid={port}");
    assert!(
        path["Address"].as_str().unwrap().starts_with(&address),
        "{path}"
    );
    let devices = json(guest, "nvme list -o json");
    assert_eq!(
        devices["Devices"][0]["ModelNumber"]
            .as_str()
            .unwrap()
            .trim(),
        "Adit test disk"
    );
}

fn json(guest: &mut Guest, command: &str) -> Value {
    let text = guest.run(command).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command}: {error}\n{text}"))
}

fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}
