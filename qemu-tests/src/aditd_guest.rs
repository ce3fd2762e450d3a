//! A guest in which `aditd` itself runs, for targets that need the guest's kernel or devices. What
//! fails ends the test, with the log of `aditd` and the kernel's.

use std::fs;

use crate::{Controller, Guest, Job, patience};

/// Modules of soft-RoCE, and of a Linux host over it, in an order that works: rxe looks for its
/// checksum without asking for it.
pub const RDMA_MODULES: &str = "crc32_generic rdma_rxe ib_uverbs rdma_ucm nvme-rdma";

/// Shell functions for all scripts in the guest. `start` takes the directory of the state.
const TOOLS: &str = r#"
ctl() { /programs/aditctl --server unix:/run/adit/aditd.sock "$@"; }
start() { state=${1:-/run/adit}; mkdir -p /run/adit $state
    setsid /programs/aditd --state-dir $state --grpc unix:/run/adit/aditd.sock --reactors 1 \
        >>/share/aditd.log 2>&1 </dev/null & echo $! >/run/aditd.pid
    until ctl node show >/dev/null 2>&1; do kill -0 $(cat /run/aditd.pid); sleep 0.1; done; }
no_controllers() { [ "$(ctl -o json controller list | grep -c cntlid)" = 0 ]; }
"#;

/// Runs a script to its end; what it printed. It has `ctl`, which is `aditctl`; `start [DIR]`, which
/// starts `aditd`, whose process is in `/run/aditd.pid`; and `no_controllers`.
pub fn run(guest: &mut Guest, script: &str) -> String {
    let result = guest.run(&format!("{TOOLS}{script}"));
    result.unwrap_or_else(|error| fail(guest, &format!("{error:?}")))
}

/// Begins a script that has what [`run`] gives.
pub fn spawn(guest: &mut Guest, script: &str) -> Job {
    let result = guest.spawn(&format!("{TOOLS}{script}"));
    result.unwrap_or_else(|error| fail(guest, &format!("{error:?}")))
}

/// Waits for the end of a job; what it printed.
pub fn join(guest: &mut Guest, job: Job) -> String {
    match guest.join(job, patience(600)) {
        Ok(output) => output.stdout,
        Err(error) => fail(guest, &format!("{error:?}")),
    }
}

/// Runs a script again and again until it succeeds; what it printed then.
pub fn wait_until(guest: &mut Guest, what: &str, script: &str, seconds: u64) -> String {
    let result = guest.wait_until(what, &format!("{TOOLS}{script}"), patience(seconds));
    result.unwrap_or_else(|error| fail(guest, &format!("{error:?}")))
}

/// Waits until a controller is in a state: "live", "connecting".
pub fn wait_for_state(guest: &mut Guest, controller: &Controller, state: &str) {
    if let Err(error) = guest.wait_for_state(controller, state, patience(120)) {
        fail(guest, &format!("{error:?}"));
    }
}

/// The guest's kernel connects over RDMA.
pub fn connect_rdma(
    guest: &mut Guest,
    address: &str,
    port: u16,
    nqn: &str,
    options: &str,
) -> Controller {
    let result = guest.nvme_connect_at("rdma", address, port, nqn, options);
    result.unwrap_or_else(|error| fail(guest, &format!("{error:?}")))
}

/// Ends the test with what `aditd` and the kernel have logged.
pub fn fail(guest: &Guest, what: &str) -> ! {
    let log = fs::read_to_string(guest.share().join("aditd.log")).unwrap_or_default();
    panic!(
        "{what}\n--- aditd ---\n{log}\n--- kernel ---\n{}",
        guest.serial()
    );
}
