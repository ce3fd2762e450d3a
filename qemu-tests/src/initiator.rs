//! A guest as an NVMe host over TCP or RDMA: what every test does with nvme-cli and the kernel's initiator.

use std::time::Duration;

use crate::{Guest, HOST_ADDRESS, HarnessError, Job, patience};

/// A controller of the guest's kernel: one path to one subsystem.
#[derive(Debug, Clone)]
pub struct Controller {
    /// Its name, "nvme0".
    pub name: String,
    nqn: String,
}

impl Guest {
    /// Connects the guest's kernel to a subsystem that listens on `port` of the host's 127.0.0.1.
    ///
    /// `options` are further options of `nvme connect`. A lost connection is retried every second,
    /// for ever.
    ///
    /// # Errors
    ///
    /// When `nvme connect` fails; the message has the kernel's last words.
    pub fn nvme_connect(
        &mut self,
        nqn: &str,
        port: u16,
        options: &str,
    ) -> Result<Controller, HarnessError> {
        self.nvme_connect_at("tcp", HOST_ADDRESS, port, nqn, options)
    }

    /// As [`Guest::nvme_connect`], over any transport and to any address: a target in the guest
    /// itself has one of the guest's.
    ///
    /// # Errors
    ///
    /// When `nvme connect` fails; the message has the kernel's last words.
    pub fn nvme_connect_at(
        &mut self,
        transport: &str,
        address: &str,
        port: u16,
        nqn: &str,
        options: &str,
    ) -> Result<Controller, HarnessError> {
        let script = format!(
            "nvme connect --transport {transport} --traddr {address} --trsvcid {port} --nqn {nqn} \
             --reconnect-delay 1 --ctrl-loss-tmo -1 {options} --output-format json ||\n\
             {{ status=$?; dmesg | tail -n 5 >&2; exit $status; }}"
        );
        let answer = self.run(&script)?;
        // {"device":"nvme0"}
        let name = answer.split('"').find(|word| word.starts_with("nvme"));
        let name = name.ok_or_else(|| HarnessError::Answer {
            command: "nvme connect".to_owned(),
            answer: answer.clone(),
        })?;
        Ok(Controller {
            name: name.to_owned(),
            nqn: nqn.to_owned(),
        })
    }

    /// Disconnects the guest's kernel from a subsystem, all paths.
    ///
    /// # Errors
    ///
    /// When `nvme disconnect` fails.
    pub fn nvme_disconnect(&mut self, nqn: &str) -> Result<(), HarnessError> {
        self.run(&format!("nvme disconnect --nqn {nqn}"))
            .map(|_| ())
    }

    /// Waits until the kernel shows a namespace; its block device, "/dev/nvme0n1".
    ///
    /// # Errors
    ///
    /// When it does not come in time.
    pub fn wait_for_namespace(&mut self, nqn: &str, nsid: u32) -> Result<String, HarnessError> {
        let what = format!("namespace {nsid} of {nqn} to come");
        let script = format!(
            "{}[ -b \"$device\" ]\necho \"$device\"",
            find_namespace(nqn, nsid)
        );
        let device = self.wait_until(&what, &script, patience(60))?;
        Ok(device.trim().to_owned())
    }

    /// Waits until the kernel does not show a namespace any more.
    ///
    /// # Errors
    ///
    /// When it does not go in time.
    pub fn wait_for_no_namespace(&mut self, nqn: &str, nsid: u32) -> Result<(), HarnessError> {
        let what = format!("namespace {nsid} of {nqn} to go");
        let script = format!("{}[ -z \"$device\" ]", find_namespace(nqn, nsid));
        self.wait_until(&what, &script, patience(60)).map(|_| ())
    }

    /// Has fio write a device at random and verify every block, a flush after every 32, again and again until
    /// `/tmp/enough` is there or an I/O fails.
    ///
    /// # Errors
    ///
    /// When the guest is gone.
    pub fn verify_again_and_again(&mut self, device: &str) -> Result<Job, HarnessError> {
        self.spawn(&format!(
            "until [ -e /tmp/enough ]; do\n\
             fio --name=load --ioengine=libaio --direct=1 --eta=never --verify=crc32c \
             --verify_fatal=1 --do_verify=1 --randrepeat=0 --filename={device} --rw=randwrite \
             --bs=4k --iodepth=8 --size=4M --fsync=32 || exit 1\n\
             done"
        ))
    }

    /// Waits until the guest has ended so many writes to a device since it came; how many these are then.
    ///
    /// # Errors
    ///
    /// When it has not in time.
    pub fn wait_for_writes(&mut self, device: &str, count: u64) -> Result<u64, HarnessError> {
        let name = device.trim_start_matches("/dev/");
        let script = format!("set -- $(cat /sys/block/{name}/stat); [ $5 -ge {count} ]; echo $5");
        let answer = self.wait_until("writes", &script, patience(240))?;
        answer.trim().parse().map_err(|_| HarnessError::Answer {
            command: script,
            answer,
        })
    }

    /// Waits until a controller is in a state: "live", "connecting".
    ///
    /// # Errors
    ///
    /// When it does not get there in time.
    pub fn wait_for_state(
        &mut self,
        controller: &Controller,
        state: &str,
        deadline: Duration,
    ) -> Result<(), HarnessError> {
        let Controller { name, nqn } = controller;
        let what = format!("{name} of {nqn} to be {state}");
        let script = format!(
            "state=$(cat /sys/class/nvme/{name}/state); echo $state; [ \"$state\" = {state} ]"
        );
        self.wait_until(&what, &script, deadline).map(|_| ())
    }
}

/// Shell that sets `device` to the block device of a namespace, or to nothing.
///
/// With native multipath a subsystem has one such device, whatever the number of paths.
fn find_namespace(nqn: &str, nsid: u32) -> String {
    format!(
        "device=\n\
         for subsystem in /sys/class/nvme-subsystem/nvme-subsys*; do\n\
         [ \"$(cat $subsystem/subsysnqn 2>/dev/null)\" = {nqn} ] || continue\n\
         for namespace in $subsystem/nvme*n*; do\n\
         [ \"$(cat $namespace/nsid 2>/dev/null)\" = {nsid} ] || continue\n\
         device=/dev/${{namespace##*/}}\n\
         done\ndone\n"
    )
}
