//! Bytes of a fuzzer as settings, faults and choices. What is missing at the end reads as zero.

use nvme_emu::{EmuOptions, Fault, FaultKind, NamespaceOptions, QueueFilter};
use nvme_spec::Status;
use nvme_spec::opcode::{admin, nvm};

use std::time::Duration;

use nvme_driver::ControllerOptions;

/// Bytes that choices are taken from.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    pub(crate) fn number(&mut self) -> u16 {
        u16::from_le_bytes(self.bytes())
    }

    pub(crate) fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    /// 0 to `limit` less one.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit
    }

    pub(crate) fn is(&mut self) -> bool {
        self.byte() & 1 != 0
    }

    /// A drive, and how the driver is to drive it: small queues, short deadlines.
    pub(crate) fn settings(&mut self) -> (EmuOptions, ControllerOptions) {
        let (of_drive, of_driver, sizes) = (self.byte(), self.byte(), self.byte());
        let bit = |byte: u8, at: u8| byte >> at & 1 != 0;
        let block_size = if bit(of_drive, 0) { 4096 } else { 512 };
        let emu = EmuOptions {
            namespaces: vec![NamespaceOptions {
                block_size,
                block_count: (512 << 10) / u64::from(block_size),
            }],
            sgl: bit(of_drive, 1),
            shadow_doorbells: bit(of_drive, 2),
            optional_commands: !bit(of_drive, 3),
            volatile_write_cache: !bit(of_drive, 4),
            formats_all_namespaces: bit(of_drive, 5),
            io_queues: 1 + u16::from(!bit(of_drive, 6)),
            ready_timeout: 1,
            mdts: 3 + (sizes & 3),
            burst: 1 + u32::from(sizes >> 2 & 3),
            ..EmuOptions::default()
        };
        let second = Duration::from_secs(1);
        let driver = ControllerOptions {
            io_queues: 2,
            queue_entries: if bit(of_driver, 0) { 32 } else { 3 },
            io_timeout: second,
            admin_timeout: second,
            format_timeout: 2 * second,
            abort_timeout: second / 5,
            shutdown_timeout: second,
            health_interval: second / 10,
            retries: 1 + (sizes >> 4 & 1),
            reset_attempts: 2,
            interrupts: bit(of_driver, 1),
            shadow_doorbells: bit(of_driver, 2),
            sgl: bit(of_driver, 3),
            write_cache: bit(of_driver, 4).then_some(bit(of_driver, 5)),
            bounce_buffers: 1 + u16::from(of_driver >> 6),
            ..ControllerOptions::default()
        };
        (emu, driver)
    }

    /// A fault of a controller that may be slow, broken or gone, but says nothing that is untrue.
    pub(crate) fn fault(&mut self) -> Fault {
        let is_admin = self.byte().is_multiple_of(4);
        let mut fault = self.rule(is_admin);
        let steps = u64::from(self.number() % 1024);
        fault.kind = match self.below(12) {
            0 => FaultKind::Late(steps),
            1 => FaultKind::Slow(steps),
            2 => FaultKind::Lost,
            3 => FaultKind::Stall,
            4 => FaultKind::Duplicate,
            5 => FaultKind::WrongPhase,
            // No command has that one: the driver's slots end long before.
            6 => FaultKind::WrongCid(u16::MAX),
            7 => FaultKind::Status(self.status()),
            8 => FaultKind::Fatal,
            9 => FaultKind::Remove,
            10 => {
                // Fewer queues than were asked for. Other features give nothing that is looked at.
                fault.queue = QueueFilter::Admin;
                fault.opcode = Some(admin::SET_FEATURES);
                FaultKind::Result(0)
            }
            _ => FaultKind::Status(Status::COMMAND_INTERRUPTED),
        };
        fault
    }

    /// A fault of a controller that lies.
    pub(crate) fn lie(&mut self) -> Fault {
        let is_admin = self.byte() < 192;
        let mut fault = self.rule(is_admin);
        fault.kind = match self.below(8) {
            0..=3 => FaultKind::Garbled(usize::from(self.number()) % 4096, self.bytes()),
            4 => FaultKind::Result(self.word()),
            5 => FaultKind::WrongCid(self.number()),
            6 => FaultKind::Status(self.status()),
            _ => return self.fault(),
        };
        fault
    }

    fn rule(&mut self, is_admin: bool) -> Fault {
        let admins = [
            admin::IDENTIFY,
            admin::SET_FEATURES,
            admin::CREATE_IO_CQ,
            admin::CREATE_IO_SQ,
            admin::DELETE_IO_SQ,
            admin::DELETE_IO_CQ,
            admin::ABORT,
            admin::ASYNC_EVENT_REQUEST,
            admin::GET_LOG_PAGE,
            admin::FORMAT_NVM,
            admin::DOORBELL_BUFFER_CONFIG,
        ];
        let ios = [
            nvm::WRITE,
            nvm::READ,
            nvm::FLUSH,
            nvm::WRITE_ZEROES,
            nvm::COMPARE,
            nvm::DATASET_MANAGEMENT,
            nvm::VERIFY,
        ];
        let opcodes: &[u8] = if is_admin { &admins } else { &ios };
        // One more for all of them.
        let opcode = opcodes.get(self.below(opcodes.len() + 1)).copied();
        let (skip, count) = (self.byte() % 24, 1 + self.byte() % 3);
        Fault {
            queue: if is_admin {
                QueueFilter::Admin
            } else {
                QueueFilter::Io
            },
            opcode,
            skip: skip.into(),
            count: count.into(),
            kind: FaultKind::Lost,
        }
    }

    /// A status that is not success.
    fn status(&mut self) -> Status {
        let [sct, sc] = self.bytes();
        let status = Status::new(sct & 7, sc).with_dnr(sct & 8 != 0);
        if status.is_success() {
            return Status::INTERNAL_ERROR;
        }
        status
    }
}
