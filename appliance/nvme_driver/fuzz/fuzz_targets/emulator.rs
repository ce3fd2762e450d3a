//! A hostile driver on the emulated controller: any register, any command, any memory.
#![no_main]

use std::sync::Arc;

use dma::{BackingPreference, BusView, Region, RegionOptions};
use libfuzzer_sys::fuzz_target;
use nvme_emu::{Cut, Emu};
use nvme_spec::registers::{self, Aqa, Cc};

#[path = "../../tests/driver/input.rs"]
mod input;
use input::Input;

const MEMORY: usize = 64 << 10;
const STEPS_MAX: usize = 200;

struct Run {
    emu: Emu,
    memory: Arc<Region>,
    /// The next place in each submission queue, admin and the first of I/O.
    tails: [u32; 2],
}

const ENTRIES: u32 = 16;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let (options, _) = input.settings();
    let memory = Region::allocate(&RegionOptions {
        len: MEMORY,
        backing: BackingPreference::Plain4K,
        ..RegionOptions::default()
    });
    let memory = memory.expect("there is memory");
    let bus = BusView::new();
    bus.map(&memory);
    let emu = Emu::new(options, bus);
    let tails = [0; 2];
    let mut run = Run { emu, memory, tails };
    if input.is() {
        run.enable();
    }
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        run.step(&mut input);
    }
});

impl Run {
    fn at(&self, offset: usize) -> u64 {
        (self.memory.addr() + offset) as u64
    }

    fn enable(&mut self) {
        self.tails = [0; 2];
        self.emu.set_bus_master(true);
        let last = ENTRIES as u16 - 1;
        let sizes = Aqa(0).with_asqs(last).with_acqs(last);
        self.emu.write32(registers::AQA, sizes.0);
        self.emu.write64(registers::ASQ, self.at(0));
        self.emu.write64(registers::ACQ, self.at(0x1000));
        let cc = Cc(0).with_en(true).with_iosqes(6).with_iocqes(4);
        self.emu.write32(registers::CC, cc.0);
        self.emu.step();
        self.emu.step();
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let what = input.byte();
        match what % 12 {
            0..=4 => self.command(what, input),
            5 => self.emu.write32(input.number().into(), input.word()),
            6 => self.emu.write64(input.word(), input.word().into()),
            7 => {
                let at = usize::from(input.number()) % (MEMORY - 8);
                self.memory.write_at(at, &input.bytes::<8>());
            }
            8 => self.enable(),
            9 => self.emu.inject(input.lie()),
            10 if what & 16 != 0 => self.emu.set_bus_master(input.is()),
            10 => self.emu.power_cut(Cut {
                seed: input.byte().into(),
                tear_blocks: input.is(),
            }),
            _ => {
                let _ = self.emu.read64(input.word());
            }
        }
        for _ in 0..=what >> 6 {
            self.emu.step();
        }
    }

    /// A command, of which some dwords are likely to be sound.
    fn command(&mut self, what: u8, input: &mut Input<'_>) {
        let qid = usize::from(what >> 4 & 1);
        let mut dwords = [0u32; 16];
        dwords[0] = u32::from(input.byte()) | u32::from(what) << 16;
        dwords[1] = u32::from(input.byte() % 3);
        let (address, odd) = (
            self.at(usize::from(input.byte()) << 12 & (MEMORY - 1)),
            input.is(),
        );
        let address = if odd {
            u64::from(input.word()) << 32
        } else {
            address
        };
        (dwords[6], dwords[7]) = (address as u32, (address >> 32) as u32);
        let second = self.at(0x4000 | usize::from(input.byte()) << 3);
        (dwords[8], dwords[9]) = (second as u32, (second >> 32) as u32);
        for dword in &mut dwords[10..14] {
            *dword = match input.byte() {
                small @ 0..=199 => small.into(),
                200..=227 => input.number().into(),
                _ => input.word(),
            };
        }
        if input.byte() == 255 {
            let at = input.below(16);
            dwords[at] = input.word();
        }
        let at = qid * 0x2000 + self.tails[qid] as usize * 64;
        for (place, dword) in dwords.iter().enumerate() {
            self.memory.store_u32(at + place * 4, dword.to_le());
        }
        self.tails[qid] = (self.tails[qid] + 1) % ENTRIES;
        // There may be no such queue, or the stride may be another: so much the better.
        self.emu.write32(0x1000 + qid as u32 * 8, self.tails[qid]);
    }
}
