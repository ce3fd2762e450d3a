//! NVMe over RDMA on soft-RoCE with hosts that come in a crowd, come and go, lie, or say nothing.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use std::fs;

use qemu_tests::aditd_guest::{RDMA_MODULES, join, run, spawn, wait_until};
use qemu_tests::{Guest, skip_without_qemu};

const NQN: &str = "nqn.2026-11.io.adit:rdma-hosts";
const PORT: u16 = 4420;
const ADDRESS: &str = "10.0.2.15";
/// The queues of the crowd.
const CROWD: &str = "128 queues";
/// Time to Connect: long enough for a crowd on an emulated machine.
const CONNECT_TIMEOUT: &str = "10s";
/// Shell functions: memory of `aditd`, and what it has of a device. The kernel's host keeps completion
/// queues of its own for the next time.
const HELD: &str = r#"
used() { for each in pd mr cq srq qp cm_id; do
    rdma resource show $each | grep -o 'pid [0-9]*' | while read _ pid; do
        [ ! -d /proc/$(cat /run/aditd.pid)/task/$pid ] || echo $each; done; done | sort | uniq -c; }
resident() { grep VmRSS /proc/$(cat /run/aditd.pid)/status | tr -dc 0-9; }
"#;

/// `rdma_hosts` in the guest.
fn hosts(words: &str) -> String {
    let (kind, rest) = words.split_once(' ').unwrap_or((words, ""));
    format!("/share/rdma_hosts {kind} rdma://{ADDRESS}:{PORT}/{NQN} {rest}")
}

/// The guest's kernel connects and goes.
fn kernel(times: u32) -> String {
    format!(
        "for each in $(seq {times}); do
             nvme connect -t rdma -a {ADDRESS} -s {PORT} -n {NQN} -i 1 --output-format json
             nvme disconnect -n {NQN}
         done"
    )
}

/// A guest whose port has become one for verbs by its rule, and an `aditd` that serves there.
fn boot() -> Guest {
    let builder = Guest::builder("rdma-hosts")
        .machine("host-large")
        .programs();
    let mut guest = builder.boot().unwrap();
    let program = guest.share().join("rdma_hosts");
    fs::copy(env!("CARGO_BIN_EXE_rdma_hosts"), program).unwrap();
    let listed = run(
        &mut guest,
        &format!(
            "modprobe -a {RDMA_MODULES}
             printf '[[nic]]\\nport = {{ interface = \"eth0\" }}\\nmode = \"verbs\"\\nsoft_roce = true\\n' \
                 >/run/verbs.toml
             ctl machine apply -f /run/verbs.toml --yes
             start /run/adit/state
             ctl transport create rdma --max-io-qpairs-per-ctrlr 128 --connect-timeout {CONNECT_TIMEOUT}
             ctl subsystem create {NQN} --allow-any-host
             ctl bdev create malloc disk --size 64MiB
             ctl namespace add {NQN} disk --nsid 1
             ctl listener add {NQN} rdma://{ADDRESS}:{PORT} --wait
             ctl rdma list"
        ),
    );
    for part in ["rxe_eth0", "ACTIVE", "RoCE v2", NQN, "MTU 1500 of eth0"] {
        assert!(listed.contains(part), "{part} in\n{listed}");
    }
    guest
}

/// Goal: hosts that come and go, come in a crowd, lie, or say nothing, leave nothing behind, each end
/// has its reason in the log, and others are served meanwhile. Method: one guest with soft-RoCE; after
/// some hosts of each kind, 240 associations of our own host and 10 of the kernel's (of 500 in all,
/// half, as emulation is slow), 128 queues at once, and one that is no host, while another reads all
/// the time. Memory and RDMA objects are then what they were.
#[test]
fn hosts_of_any_kind_leave_nothing_behind() {
    if skip_without_qemu() {
        return;
    }
    let mut guest = boot();
    // What a crowd needed stays registered.
    let first = ["restless 10", "crowd 32"].map(hosts).join("\n");
    let first = run(&mut guest, &format!("{first}\n{}", kernel(1)));
    assert!(first.contains("32 queues"), "{first}");
    wait_until(
        &mut guest,
        "the first hosts to be gone",
        "no_controllers",
        120,
    );
    let script = format!("{HELD}used | tee /tmp/before; resident");
    let before = run(&mut guest, &script);
    let kib = |printed: &str| -> u64 { printed.lines().last().unwrap().parse().unwrap() };

    let steady = format!("{} >/share/steady 2>&1", hosts("steady /run/stop"));
    let steady = spawn(&mut guest, &steady);
    let script = "grep -q begins /share/steady || { cat /share/steady; exit 1; }";
    wait_until(&mut guest, "the steady host", script, 60);
    let hostile = spawn(&mut guest, &hosts("hostile"));
    assert!(run(&mut guest, &hosts("restless 230")).contains("230 times"));
    let hostile = join(&mut guest, hostile);
    for part in ["7 rejected", "24 half-open ended", "200 asked"] {
        assert!(hostile.contains(part), "{part} in {hostile}");
    }
    run(&mut guest, &kernel(9));
    let crowd = run(&mut guest, &hosts("crowd 128"));
    assert!(crowd.contains(CROWD), "{crowd}");
    run(&mut guest, "touch /run/stop");
    join(&mut guest, steady);
    println!("{}", run(&mut guest, "cat /share/steady"));

    let script =
        format!("{HELD}no_controllers; used >/tmp/now; diff /tmp/before /tmp/now; resident");
    let after = wait_until(&mut guest, "nothing more than before", &script, 120);
    println!("{before}KiB resident, then {after}");
    assert!(kib(&after) < kib(&before) + (16 << 10), "{before}, {after}");
    let log = fs::read_to_string(guest.share().join("aditd.log")).unwrap();
    for part in [
        "no Connect has succeeded in time",
        "a connection was rejected",
    ] {
        assert!(log.contains(part), "{part} in\n{log}");
    }
    guest.power_off().unwrap();
}
