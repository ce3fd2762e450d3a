//! Settings of a controller, and whether a controller suits them.

use std::time::Duration;

use nvme_spec::Qid;
use nvme_spec::pcie::{cq_doorbell, doorbell_stride};
use nvme_spec::registers::Cap;

use crate::device::Device;
use crate::error::NvmeError;

/// Settings of a controller. The defaults suit a drive in a storage node.
#[derive(Clone, Debug)]
pub struct ControllerOptions {
    /// I/O queue pairs to ask for: one for each channel that will be open at a time.
    pub io_queues: u16,
    /// Entries of each I/O queue, 2 to 4096. The drive may allow less.
    pub queue_entries: u16,
    /// Deadline of an I/O command. An Abort follows, then a reset.
    pub io_timeout: Duration,
    /// Deadline of an admin command. A reset follows. Format and sanitize have
    /// [`ControllerOptions::format_timeout`].
    pub admin_timeout: Duration,
    /// Deadline of Format NVM, Firmware Commit and Sanitize.
    pub format_timeout: Duration,
    /// How long an Abort may take before the controller is reset.
    pub abort_timeout: Duration,
    /// The least deadline of a shutdown; RTD3E of the drive can make it longer.
    pub shutdown_timeout: Duration,
    /// How often CSTS is read to find out that the controller has failed or is gone.
    pub health_interval: Duration,
    /// How many times an I/O is sent again after a reset or a status that allows it.
    pub retries: u8,
    /// How many times in a row the controller is reset, because it failed, before it is given up.
    /// Resets that were asked for do not count.
    pub reset_attempts: u32,
    /// Use interrupts, if the function has them, so that threads can sleep.
    pub interrupts: bool,
    /// Use Doorbell Buffer Config where the drive offers it.
    pub shadow_doorbells: bool,
    /// Use SGLs where the drive offers them and a PRP list would be needed otherwise.
    pub sgl: bool,
    /// Turn the volatile write cache on or off; `None`: leave it as it is.
    pub write_cache: Option<bool>,
    /// Value of the feature Arbitration (burst and weights); `None`: leave it as it is.
    pub arbitration: Option<u32>,
    /// Buffers per channel for payloads that the drive cannot reach.
    pub bounce_buffers: u16,
    /// NUMA node of the queues, where there is memory to be had.
    pub numa_node: Option<u32>,
}

impl Default for ControllerOptions {
    fn default() -> Self {
        Self {
            io_queues: 4,
            queue_entries: 256,
            io_timeout: Duration::from_secs(30),
            admin_timeout: Duration::from_secs(60),
            format_timeout: Duration::from_secs(3600),
            abort_timeout: Duration::from_secs(5),
            shutdown_timeout: Duration::from_secs(10),
            health_interval: Duration::from_millis(500),
            retries: 4,
            reset_attempts: 3,
            interrupts: true,
            shadow_doorbells: true,
            sgl: true,
            write_cache: None,
            arbitration: None,
            bounce_buffers: 4,
            numa_node: None,
        }
    }
}

impl ControllerOptions {
    pub(crate) fn check(&self) -> Result<(), NvmeError> {
        let wrong = |option, value: u64, expected| NvmeError::Option {
            option,
            value,
            expected,
        };
        if !(2..=4096).contains(&self.queue_entries) {
            let value = self.queue_entries.into();
            return Err(wrong("queue_entries", value, "give 2 to 4096"));
        }
        if !(1..=1024).contains(&self.io_queues) {
            return Err(wrong("io_queues", self.io_queues.into(), "give 1 to 1024"));
        }
        if !(1..=256).contains(&self.bounce_buffers) {
            let value = self.bounce_buffers.into();
            return Err(wrong("bounce_buffers", value, "give 1 to 256"));
        }
        Ok(())
    }
}

/// Whether this driver can drive such a controller with these settings.
pub(crate) fn check_cap(
    cap: Cap,
    device: &Device,
    options: &ControllerOptions,
) -> Result<(), NvmeError> {
    let qid = Qid(options.io_queues);
    let doorbells = u64::from(cq_doorbell(cap, qid)) + u64::from(doorbell_stride(cap));
    let what = if cap.mpsmin() != 0 {
        "it has no memory pages of 4 KiB (CAP.MPSMIN)"
    } else if cap.css() & (Cap::CSS_NVM | Cap::CSS_IOCS) == 0 {
        "it has no NVM command set (CAP.CSS)"
    } else if cap.mqes() == 0 {
        "its queues have a single entry (CAP.MQES)"
    } else if doorbells > device.registers.len() {
        "its BAR 0 has no doorbells for that many queues: lower io_queues"
    } else {
        return Ok(());
    };
    Err(NvmeError::Unsupported {
        address: device.function.address().to_owned(),
        what,
    })
}
