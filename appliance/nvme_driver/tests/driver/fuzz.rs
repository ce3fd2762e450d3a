//! Random faults, and a device that writes nonsense.

use std::path::Path;
use std::time::Duration;

use block::{Io, IoError, Op, Submit};
use nvme_driver::ControllerState;
use nvme_emu::{EmuOptions, Fault, FaultKind};
use nvme_spec::Status;
use nvme_spec::opcode::nvm;
use proptest::prelude::*;

use crate::rig::{Host, bytes, driver_options};
use crate::{liar, scenario};

/// Blocks that one I/O of the model covers.
const PIECE: u64 = 4;

fn fault() -> impl Strategy<Value = Fault> {
    let kind = prop_oneof![
        (1u64..3000).prop_map(FaultKind::Late),
        Just(FaultKind::Lost),
        Just(FaultKind::Stall),
        Just(FaultKind::Duplicate),
        Just(FaultKind::WrongPhase),
        Just(FaultKind::WrongCid(0xffff)),
        Just(FaultKind::Status(Status::COMMAND_INTERRUPTED)),
        Just(FaultKind::Status(Status::INTERNAL_ERROR)),
        Just(FaultKind::Fatal),
    ];
    let opcode = prop_oneof![
        Just(nvm::WRITE),
        Just(nvm::READ),
        Just(nvm::FLUSH),
        Just(nvm::WRITE_ZEROES)
    ];
    (opcode, kind, 0u32..20, 1u32..3)
        .prop_map(|(opcode, kind, skip, count)| Fault::io(opcode, kind).after(skip).times(count))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn whatever_fails_every_io_ends_once_and_what_succeeded_is_there(
        faults in proptest::collection::vec(fault(), 0..5),
        batches in proptest::collection::vec(
            proptest::collection::vec((0u8..4, 0u64..24, 1u8..), 1..12), 1..12),
        shadow_doorbells in any::<bool>(),
        burst in 1u32..5,
    ) {
        let emu = EmuOptions { shadow_doorbells, burst, ..EmuOptions::default() };
        let mut host = Host::running(emu, driver_options());
        host.tick = Duration::from_millis(20);
        for fault in faults {
            host.emu().inject(fault);
        }
        let mut channel = host.open();
        // What each piece holds; `None` once that is unknown.
        let mut model = vec![Some(0u8); 24];
        for batch in batches {
            let mut sent = Vec::new();
            for (what, piece, fill) in batch {
                // Two I/Os to one place have no order.
                if sent.contains(&piece) {
                    continue;
                }
                let op = match what {
                    0 => Op::Read,
                    1 => Op::Flush,
                    2 => Op::WriteZeroes { unmap: false, fua: false },
                    _ => Op::Write { fua: fill & 1 == 0 },
                };
                let payload = match op {
                    Op::Read | Op::Write { .. } => host.buffer(PIECE as usize * 512, fill),
                    _ => dma::Payload::None,
                };
                sent.push(piece);
                let io = Io::with_payload(op, piece * PIECE, PIECE as u32, payload, piece);
                host.submit(&mut *channel, io);
                let written = match op {
                    Op::Write { .. } => Some(fill),
                    Op::WriteZeroes { .. } => Some(0),
                    _ => None,
                };
                pending(&mut model, piece, written);
            }
            let done = host.finish(&mut *channel, sent.len());
            let mut ended: Vec<u64> = done.iter().map(|completion| completion.io.tag).collect();
            ended.sort_unstable();
            sent.sort_unstable();
            prop_assert_eq!(ended, sent);
            for completion in done {
                let piece = completion.io.tag as usize;
                match (completion.io.op, completion.result) {
                    (Op::Read, Ok(())) => {
                        let data = bytes(&completion.io.payload);
                        if let Some(fill) = model[piece] {
                            prop_assert!(data.iter().all(|byte| *byte == fill));
                        }
                    }
                    (op, Err(_)) if op.modifies() => model[piece] = None,
                    _ => {}
                }
            }
        }
        host.emu().clear_faults();
        host.until_state(ControllerState::Running);
        for (piece, fill) in model.into_iter().enumerate() {
            let data = host.read(&mut *channel, piece as u64 * PIECE, PIECE as u32);
            if let Some(fill) = fill {
                prop_assert!(data.iter().all(|byte| *byte == fill));
            }
        }
    }

    #[test]
    fn a_device_that_writes_nonsense_makes_nothing_panic(
        scribbles in proptest::collection::vec(
            (any::<usize>(), any::<[u8; 16]>(), 0u8..16), 1..200),
        set_up in any::<bool>(),
    ) {
        let emu = EmuOptions { shadow_doorbells: true, ..EmuOptions::default() };
        let mut host = Host::attach(emu, driver_options());
        host.tick = Duration::from_millis(20);
        if !set_up {
            host.until_state(ControllerState::Running);
        }
        let mut channel = (!set_up).then(|| host.open());
        let queues = host.function.regions.lock().unwrap()[0].clone();
        let mut done = Vec::new();
        for (tag, (offset, mut noise, what)) in (0..).zip(scribbles) {
            // The first pages hold the admin queues and what Identify answers.
            let window = if what & 1 == 0 { 0x8000 } else { queues.len() };
            if what & 2 == 0 {
                // Likelier to be taken for a completion.
                noise[12..14].copy_from_slice(&[tag as u8 & 0x1f, 0x10]);
                noise[14..].copy_from_slice(&[1, 0]);
            }
            queues.write_at(offset % (window / 16) * 16, &noise);
            match what {
                12 => host.emu().stick_register(0x1c, u32::from(noise[0]), true),
                13 => host.emu().unstick_register(0x1c),
                14 => host.controller.refresh_health(),
                _ => {}
            }
            if let Some(channel) = &mut channel {
                let payload = host.buffer(4096, 1);
                let io = Io::with_payload(Op::Read, 0, 8, payload, tag);
                if let Submit::Done(completion) = channel.submit(io, host.now) {
                    prop_assert!(completion.result != Err(IoError::InvalidField));
                }
                channel.poll(host.now, &mut done);
            }
            host.turn();
        }
        host.emu().remove();
        host.emu().unstick_register(0x1c);
        for _ in 0..2000 {
            host.turn();
            if let Some(channel) = &mut channel {
                channel.poll(host.now, &mut done);
            }
        }
        prop_assert!(host.controller.is_final());
        prop_assert_eq!(channel.map_or(0, |channel| channel.in_flight()), 0);
    }
}

/// What the fuzzer found worth keeping.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus");
    let files = std::fs::read_dir(Path::new(folder).join(target)).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files
        .iter()
        .map(|file| std::fs::read(file).unwrap())
        .collect()
}

#[test]
fn whatever_the_fuzzer_kept_still_holds() {
    corpus("faults")
        .iter()
        .for_each(|bytes| scenario::run(bytes));
    corpus("lies").iter().for_each(|bytes| liar::run(bytes));
}

/// Notes what a write will leave, if it succeeds.
fn pending(model: &mut [Option<u8>], piece: u64, written: Option<u8>) {
    if let Some(fill) = written {
        model[piece as usize] = Some(fill);
    }
}
