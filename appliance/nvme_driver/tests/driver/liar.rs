//! The driver on a controller that lies: registers, Identify, log pages and completions as a fuzzer
//! chose them. Nothing panics, what fails says why, and once the drive is pulled all is answered.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use block::{BlockDevice, Channel, Io, Op, Submit};
use dma::Payload;
use nvme_driver::{AdminRequest, Event};
use nvme_spec::{Nsid, registers};

use crate::input::Input;
use crate::rig::Host;

const STEPS_MAX: usize = 200;
/// Turns after a drive was pulled in which all must end.
const TURNS_MAX: usize = 2000;
/// Registers that are looked at: CAP, VS, CC, CSTS, CRTO.
const REGISTERS: [u32; 6] = [
    registers::CAP,
    registers::CAP + 4,
    registers::VS,
    registers::CC,
    registers::CSTS,
    registers::CRTO,
];

struct Run {
    host: Host,
    channel: Option<Box<dyn Channel>>,
    sent: BTreeSet<u64>,
    next_tag: u64,
}

/// Runs what the bytes say.
pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (emu, options) = input.settings();
    let lies: Vec<_> = (0..input.below(8)).map(|_| input.lie()).collect();
    let stuck: Vec<_> = (0..input.below(3))
        .map(|_| (REGISTERS[input.below(REGISTERS.len())], input.word()))
        .collect();
    let host = Host::try_attach(emu, options, |emu| {
        for (offset, value) in stuck {
            emu.stick_register(offset, value, true);
        }
        for lie in lies {
            emu.inject(lie);
        }
    });
    let mut host = match host {
        Ok(host) => host,
        Err(error) => {
            let says = error.to_string();
            return assert!(says.contains("0000:01:00.0"), "{says}");
        }
    };
    host.tick = Duration::from_millis(20);
    let mut run = Run {
        host,
        channel: None,
        sent: BTreeSet::new(),
        next_tag: 0,
    };
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        run.step(&mut input);
    }
    run.end();
}

impl Run {
    fn step(&mut self, input: &mut Input<'_>) {
        let what = input.byte();
        match what % 12 {
            0..=2 => self.turns(1 + usize::from(what >> 4) * 4),
            3 | 4 => self.submit(input),
            5 => {
                let lie = input.lie();
                self.host.emu().inject(lie);
            }
            6 => {
                let offset = REGISTERS[input.below(REGISTERS.len())];
                let value = input.word();
                self.host
                    .emu()
                    .stick_register(offset, value, what & 16 != 0);
            }
            7 => {
                let offset = REGISTERS[input.below(REGISTERS.len())];
                self.host.emu().unstick_register(offset);
            }
            8 => self.scribble(input),
            9 => self.ask(input),
            10 => {
                self.host.tick = Duration::from_millis(500);
                self.turns(1 + usize::from(what >> 4) * 4);
                self.host.tick = Duration::from_millis(20);
            }
            _ if what & 16 != 0 => {
                self.channel = None;
                self.sent.clear();
            }
            _ => self.open(),
        }
    }

    /// Sixteen bytes somewhere in the memory of the queues: completions, what Identify gave,
    /// doorbells, commands.
    fn scribble(&mut self, input: &mut Input<'_>) {
        let regions = self.host.function.regions.lock().unwrap();
        let Some(queues) = regions.first().map(Arc::clone) else {
            return;
        };
        let at = usize::from(input.number()) * 16 % (queues.len() - 15);
        queues.write_at(at, &input.bytes::<16>());
    }

    fn ask(&mut self, input: &mut Input<'_>) {
        let now = self.host.now;
        let controller = &mut self.host.controller;
        let request = match input.below(7) {
            0 => return controller.reset(),
            1 => return controller.refresh_health(),
            2 => return controller.rescan(),
            3 => AdminRequest::identify(Nsid(1), input.byte()),
            4 => AdminRequest::get_features(input.byte()),
            5 => AdminRequest::format(Nsid(1), 1, 0),
            _ => AdminRequest::log(input.byte(), 512),
        };
        if let Err(error) = controller.admin(&request, now) {
            assert!(!error.to_string().is_empty());
        }
    }

    fn open(&mut self) {
        let namespace = self.host.controller.namespaces().next().map(Arc::clone);
        let (Some(namespace), None) = (namespace, &self.channel) else {
            return;
        };
        assert!(
            namespace
                .details()
                .iter()
                .all(|(_, value)| value.is_ascii())
        );
        assert!(!namespace.lba_formats().is_empty());
        self.channel = namespace.open_channel(&self.host.context()).ok();
    }

    fn submit(&mut self, input: &mut Input<'_>) {
        let [op, place, length] = input.bytes();
        let namespace = self.host.controller.namespaces().next();
        let (Some(channel), Some(namespace)) = (&mut self.channel, namespace) else {
            return;
        };
        let geometry = namespace.geometry();
        let blocks = (1 + u32::from(length) % 16).min(geometry.max_transfer_blocks);
        let op = match op % 6 {
            0 => Op::Read,
            1 => Op::Flush,
            2 => Op::WriteZeroes {
                unmap: false,
                fua: false,
            },
            3 => Op::Unmap,
            4 => Op::Compare,
            _ => Op::Write { fua: false },
        };
        let payload = match op {
            Op::Read | Op::Compare | Op::Write { .. } => {
                let buf = self.host.bufs.get((blocks * geometry.block_size) as usize);
                buf.map(Payload::Buf)
            }
            _ => Some(Payload::None),
        };
        let Some(payload) = payload else {
            return;
        };
        let tag = self.next_tag;
        self.next_tag += 1;
        let io = Io::with_payload(op, place.into(), blocks, payload, tag);
        if matches!(channel.submit(io, self.host.now), Submit::Pending) {
            self.sent.insert(tag);
        }
    }

    fn turns(&mut self, count: usize) {
        let mut done = Vec::new();
        for _ in 0..count {
            self.host.turn();
            if let Some(channel) = &mut self.channel {
                channel.poll(self.host.now, &mut done);
            }
            for completion in done.drain(..) {
                assert!(self.sent.remove(&completion.io.tag), "answered once");
            }
            for event in self.host.events.drain(..) {
                if let Event::Error(error)
                | Event::AdminDone {
                    result: Err(error), ..
                } = event
                {
                    assert!(error.to_string().len() > 20, "{error:?}");
                }
            }
        }
    }

    fn end(mut self) {
        {
            let mut emu = self.host.emu();
            emu.remove();
            for offset in REGISTERS {
                emu.unstick_register(offset);
            }
        }
        self.turns(TURNS_MAX);
        assert!(self.host.controller.is_final());
        assert!(self.sent.is_empty(), "never answered");
        drop(self.channel);
        let function = Arc::clone(&self.host.function);
        let pool = Arc::clone(&self.host.pool);
        drop(self.host);
        assert!(!function.emu().is_bus_master());
        assert!(function.regions.lock().unwrap().len() <= pool.region_count());
    }
}
