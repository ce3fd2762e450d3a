//! Commands, data formats, geometry.

use crate::rig::{Host, bytes, driver_options};
use block::{Bdev, BdevOptions, BlockDevice, Io, IoError, Op, OpKind, Submit};
use dma::{BackingPreference, Payload, Region, RegionOptions};
use nvme_driver::{ControllerOptions, ControllerState, Event};
use nvme_emu::{Cut, EmuOptions, NamespaceOptions};
use nvme_spec::Nsid;

#[test]
fn a_controller_comes_up_and_its_namespaces_are_block_devices() {
    let host = Host::running(
        EmuOptions {
            namespaces: vec![
                NamespaceOptions {
                    block_size: 512,
                    block_count: 1000,
                },
                NamespaceOptions {
                    block_size: 4096,
                    block_count: 77,
                },
            ],
            ..EmuOptions::default()
        },
        driver_options(),
    );
    let geometries: Vec<_> = host
        .controller
        .namespaces()
        .map(|ns| ns.geometry())
        .collect();
    assert_eq!(geometries[0].block_size, 512);
    assert_eq!(geometries[0].block_count, 1000);
    assert_eq!(geometries[0].max_transfer_blocks, 256);
    assert_eq!(geometries[1].block_size, 4096);
    assert_eq!(geometries[1].block_count, 77);
    assert_eq!(geometries[1].max_transfer_blocks, 32);
    assert!(geometries[0].volatile_write_cache);
    assert!(geometries[0].supports.contains(OpKind::Verify));
    assert!(!geometries[0].supports.contains(OpKind::CompareAndWrite));
    assert_eq!(host.controller.serial().unwrap(), "EMU0001");
    assert_eq!(host.emu().io_queue_count(), 2);
}

#[test]
fn what_is_written_is_read_at_every_length_and_offset() {
    for sgl in [false, true] {
        let emu = EmuOptions {
            sgl,
            ..EmuOptions::default()
        };
        let mut host = Host::running(emu, driver_options());
        let mut channel = host.open();
        for blocks in [1u32, 7, 8, 9, 16, 17, 64, 255, 256] {
            let pattern = |at: usize| (at * 7 + blocks as usize) as u8;
            let mut payload = host.buffer(blocks as usize * 512, 0);
            let data = payload.as_buf_mut().unwrap().as_mut_slice();
            data.iter_mut()
                .enumerate()
                .for_each(|(at, b)| *b = pattern(at));
            let io = Io::with_payload(Op::Write { fua: false }, 100, blocks, payload, 1);
            host.run(&mut *channel, io).0.unwrap();
            let back = host.read(&mut *channel, 100, blocks);
            assert!(back.iter().enumerate().all(|(at, b)| *b == pattern(at)));
        }
        assert_eq!(host.controller.stats().bounced, 0);
    }
}

#[test]
fn a_view_in_the_middle_of_a_buffer_needs_no_copy() {
    let mut host = Host::default();
    let mut channel = host.open();
    let Payload::Buf(mut whole) = host.buffer(65536, 5) else {
        unreachable!()
    };
    let _front = whole.split_to(1536);
    whole.set_len(33 * 512);
    let io = Io::with_payload(Op::Write { fua: false }, 0, 33, whole.into(), 1);
    host.run(&mut *channel, io).0.unwrap();
    assert_eq!(host.read(&mut *channel, 0, 33), vec![5; 33 * 512]);
    assert_eq!(host.controller.stats().bounced, 0);
}

#[test]
fn memory_out_of_the_device_s_reach_is_copied() {
    let mut host = Host::default();
    let mut channel = host.open();
    let region = Region::allocate(&RegionOptions {
        len: 1 << 20,
        backing: BackingPreference::Plain4K,
        ..RegionOptions::default()
    })
    .unwrap();
    region.write_at(10, &[9; 16384]);
    for round in 0..12 {
        let lent = Payload::Lent(region.lend(10, 16384));
        let io = Io::with_payload(Op::Write { fua: false }, round * 32, 32, lent, 1);
        host.submit(&mut *channel, io);
    }
    host.finish(&mut *channel, 12);
    assert_eq!(host.controller.stats().bounced, 12);
    // An odd address: read through a bounce buffer, too.
    let Payload::Buf(mut odd) = host.buffer(8192, 0) else {
        unreachable!()
    };
    let _front = odd.split_to(3);
    odd.set_len(4096);
    let io = Io::with_payload(Op::Read, 40, 8, odd.into(), 1);
    let (result, payload) = host.run(&mut *channel, io);
    result.unwrap();
    assert_eq!(bytes(&payload), vec![9; 4096]);
    assert_eq!(host.controller.stats().bounced, 13);
}

#[test]
fn every_operation_does_what_it_says() {
    let mut host = Host::default();
    let mut channel = host.open();
    host.write(&mut *channel, 0, 8, 1);
    let same = host.buffer(4096, 1);
    let io = Io::with_payload(Op::Compare, 0, 8, same, 1);
    host.run(&mut *channel, io).0.unwrap();
    let other = host.buffer(4096, 2);
    let io = Io::with_payload(Op::Compare, 0, 8, other, 1);
    let (result, _) = host.run(&mut *channel, io);
    assert!(matches!(result, Err(IoError::CompareMismatch { .. })));
    host.command(&mut *channel, Op::Verify).unwrap();
    host.command(&mut *channel, Op::Unmap).unwrap();
    assert_eq!(host.read(&mut *channel, 0, 8), vec![0; 4096]);
    host.write(&mut *channel, 0, 8, 1);
    let zeroes = Op::WriteZeroes {
        unmap: true,
        fua: true,
    };
    host.command(&mut *channel, zeroes).unwrap();
    assert_eq!(host.read(&mut *channel, 0, 8), vec![0; 4096]);
    assert_eq!(host.emu().media(1).unwrap().cached_blocks(), 0);
}

#[test]
fn flush_and_fua_reach_the_medium_and_a_cut_takes_only_the_rest() {
    let mut host = Host::default();
    let mut channel = host.open();
    host.write(&mut *channel, 0, 16, 1);
    host.command(&mut *channel, Op::Flush).unwrap();
    let payload = host.buffer(8192, 2);
    let io = Io::with_payload(Op::Write { fua: true }, 16, 16, payload, 1);
    host.run(&mut *channel, io).0.unwrap();
    host.write(&mut *channel, 0, 32, 3);
    drop(channel);
    host.emu().power_cut(Cut {
        seed: 4,
        tear_blocks: false,
    });
    let emu = host.emu();
    let media = emu.media(1).unwrap();
    for lba in 0..32 {
        let old = if lba < 16 { 1 } else { 2 };
        assert!([old, 3].contains(&media.block(lba)[0]));
    }
}

#[test]
fn what_cannot_be_sent_is_refused() {
    let mut host = Host::default();
    let mut channel = host.open();
    let refused = [
        (Io::new(Op::Read, 0, 1, 1), IoError::InvalidField),
        (
            Io::with_payload(Op::Read, 0, 300, host.buffer(300 * 512 / 2, 0), 1),
            IoError::InvalidField,
        ),
        (Io::new(Op::Verify, 0, 0, 1), IoError::InvalidField),
        (
            Io::new(Op::CompareAndWrite { fua: false }, 0, 1, 1),
            IoError::Unsupported,
        ),
    ];
    for (io, error) in refused {
        match channel.submit(io, host.now) {
            Submit::Done(completion) => assert_eq!(completion.result, Err(error)),
            Submit::Pending => panic!("accepted"),
        }
    }
    let io = Io::new(Op::Verify, u64::MAX - 3, 8, 1);
    assert_eq!(host.run(&mut *channel, io).0, Err(IoError::OutOfRange));
    let Payload::Buf(mut shared) = host.buffer(4096, 0) else {
        unreachable!()
    };
    let _other = shared.share(0..512);
    let io = Io::with_payload(Op::Read, 0, 8, shared.into(), 1);
    assert_eq!(host.run(&mut *channel, io).0, Err(IoError::InvalidField));
}

#[test]
fn more_than_the_queue_holds_waits_and_more_than_the_depth_is_busy() {
    let mut host = Host::default();
    let mut channel = host.open();
    for tag in 0..256 {
        host.submit(&mut *channel, Io::new(Op::Verify, tag, 1, tag));
    }
    assert_eq!(channel.in_flight(), 256);
    match channel.submit(Io::new(Op::Flush, 0, 0, 1), host.now) {
        Submit::Done(completion) => assert_eq!(completion.result, Err(IoError::Busy)),
        Submit::Pending => panic!("accepted"),
    }
    assert!(channel.abort(255), "it waits in software");
    assert!(!channel.abort(0), "it is with the device");
    let done = host.finish(&mut *channel, 256);
    let aborted: Vec<_> = done.iter().filter(|c| c.result.is_err()).collect();
    assert_eq!(aborted.len(), 1);
    assert_eq!(aborted[0].io.tag, 255);
}

#[test]
fn a_batch_rings_the_doorbell_once() {
    let mut host = Host::default();
    let mut channel = host.open();
    let before = host.emu().doorbell_writes();
    for tag in 0..20 {
        host.submit(&mut *channel, Io::new(Op::Verify, tag, 1, tag));
    }
    assert_eq!(host.emu().doorbell_writes(), before);
    channel.poll(host.now, &mut Vec::new());
    assert_eq!(host.emu().doorbell_writes(), before + 1);
    host.finish(&mut *channel, 20);
    assert_eq!(host.emu().doorbell_writes(), before + 2);
}

#[test]
fn shadow_doorbells_spare_the_registers() {
    let emu = |shadow_doorbells| EmuOptions {
        shadow_doorbells,
        // The device stays awake over several rounds.
        burst: 1,
        ..EmuOptions::default()
    };
    let writes = [false, true].map(|shadow| {
        let mut host = Host::running(emu(shadow), driver_options());
        let mut channel = host.open();
        let before = host.emu().doorbell_writes();
        let mut done = Vec::new();
        let mut sent = 0;
        host.until("500 commands end", |host| {
            while sent < 500 && channel.in_flight() < 16 {
                host.submit(&mut *channel, Io::new(Op::Verify, sent, 1, sent));
                sent += 1;
            }
            channel.poll(host.now, &mut done);
            done.len() == 500
        });
        assert!(done.iter().all(|completion| completion.result.is_ok()));
        host.write(&mut *channel, 3, 1, 7);
        assert_eq!(host.read(&mut *channel, 3, 1)[0], 7);
        host.emu().doorbell_writes() - before
    });
    assert!(writes[1] * 4 < writes[0], "{writes:?}");
}

#[test]
fn doorbells_follow_the_stride() {
    let emu = EmuOptions {
        doorbell_stride: 3,
        ..EmuOptions::default()
    };
    let mut host = Host::running(emu, driver_options());
    let mut channel = host.open();
    host.write(&mut *channel, 0, 1, 7);
    assert_eq!(host.read(&mut *channel, 0, 1)[0], 7);
}

#[test]
fn each_channel_has_a_queue_and_gives_it_back() {
    let mut host = Host::default();
    let mut first = host.open();
    let mut second = host.open();
    let refusal = host.namespace().open_channel(&host.context());
    let message = refusal.err().unwrap().to_string();
    assert!(message.contains("all 2 queue pairs are taken"), "{message}");
    host.write(&mut *first, 0, 1, 1);
    host.write(&mut *second, 1, 1, 2);
    drop(first);
    let mut third = host.open();
    assert_eq!(host.read(&mut *third, 1, 1)[0], 2);
    host.write(&mut *third, 0, 1, 3);
    assert_eq!(host.read(&mut *second, 0, 1)[0], 3);
}

#[test]
fn a_channel_dropped_with_commands_in_flight_keeps_their_memory_until_they_are_gone() {
    let mut host = Host::default();
    let mut channel = host.open();
    let free = host.pool.stats();
    for tag in 0..4 {
        let payload = host.buffer(4096, 0);
        host.submit(
            &mut *channel,
            Io::with_payload(Op::Read, 0, 8, payload, tag),
        );
    }
    channel.poll(host.now, &mut Vec::new());
    drop(channel);
    let mut other = host.open();
    let _third = host
        .namespace()
        .open_channel(&host.context())
        .err()
        .unwrap();
    let mut reopened = None;
    host.until("the queue is made anew", |host| {
        reopened = host.namespace().open_channel(&host.context()).ok();
        reopened.is_some()
    });
    other.poll(host.now, &mut Vec::new());
    let mut reopened = reopened.unwrap();
    host.write(&mut *reopened, 0, 1, 3);
    assert_eq!(host.read(&mut *other, 0, 1)[0], 3);
    drop(free);
}

/// Drops a channel that has a write in flight through its bounce buffer. Gives the regions that were
/// mapped before and after.
fn drop_with_a_bounce_in_flight(host: &mut Host) -> (usize, usize) {
    let mapped = |host: &Host| host.function.regions.lock().unwrap().len();
    let mut channel = host.open();
    let before = mapped(host);
    let region = Region::allocate(&RegionOptions {
        len: 4096,
        backing: BackingPreference::Plain4K,
        ..RegionOptions::default()
    });
    let lent = Payload::Lent(region.unwrap().lend(0, 4096));
    let io = Io::with_payload(Op::Write { fua: false }, 0, 8, lent, 1);
    host.submit(&mut *channel, io);
    channel.poll(host.now, &mut Vec::new());
    drop(channel);
    (before, mapped(host))
}

#[test]
fn a_bounce_region_is_unmapped_when_its_channel_is_gone_and_the_device_has_let_go() {
    let mut host = Host::default();
    let (before, after) = drop_with_a_bounce_in_flight(&mut host);
    // The device may still write to it.
    assert_eq!(after, before + 1);
    // No channel of this thread is polled meanwhile.
    host.until("the queue is deleted", |host| {
        host.function.regions.lock().unwrap().len() == before
    });
    assert_eq!(host.controller.stats().resets, 0);

    let mut host = Host::default();
    let (before, after) = drop_with_a_bounce_in_flight(&mut host);
    assert_eq!(after, before + 1);
    host.controller.reset();
    host.until("the controller is reset", |host| {
        host.function.regions.lock().unwrap().len() == before
    });
}

#[test]
fn a_drive_has_its_own_limit_of_verify() {
    // 4 KiB << 1 is less than a transfer, 4 KiB << 7 is more; 0 tells no limit.
    for (vsl, blocks) in [(1, 16), (7, 1024), (0, 256)] {
        let emu = EmuOptions {
            vsl,
            ..EmuOptions::default()
        };
        let mut host = Host::running(emu, driver_options());
        let geometry = host.namespace().geometry();
        assert_eq!(geometry.max_verify_blocks, blocks);
        assert_eq!(geometry.max_transfer_blocks, 256);
        let mut channel = host.open();
        let most = Io::new(Op::Verify, 0, blocks, 1);
        host.run(&mut *channel, most).0.unwrap();
        let more = Io::new(Op::Verify, 0, blocks + 1, 1);
        assert_eq!(host.run(&mut *channel, more).0, Err(IoError::InvalidField));
        drop(channel);
        // What is longer is split.
        let bdev = Bdev::new(BdevOptions::named("d"), host.namespace(), host.now).unwrap();
        let mut channel = bdev.open(&host.context()).unwrap();
        let commands = host.emu().commands();
        let long = Io::new(Op::Verify, 0, 4000, 1);
        let mut done = Vec::new();
        assert!(matches!(channel.submit(long, host.now), Submit::Pending));
        host.until("it ends", |host| channel.poll(host.now, &mut done) > 0);
        assert_eq!(done[0].result, Ok(()));
        let parts = u64::from(4000_u32.div_ceil(blocks));
        assert_eq!(host.emu().commands() - commands, parts);
    }
}

#[test]
fn a_numa_node_without_memory_keeps_no_drive_away() {
    let options = ControllerOptions {
        numa_node: Some(1000),
        ..driver_options()
    };
    let mut host = Host::running(EmuOptions::default(), options);
    let mut channel = host.open();
    host.write(&mut *channel, 0, 1, 7);
}

#[test]
fn a_drive_without_options_says_so() {
    let emu = EmuOptions {
        volatile_write_cache: false,
        optional_commands: false,
        mdts: 0,
        ..EmuOptions::default()
    };
    let mut host = Host::running(emu, driver_options());
    let geometry = host.namespace().geometry();
    assert!(!geometry.volatile_write_cache);
    assert!(!geometry.supports.contains(OpKind::Unmap));
    assert_eq!(geometry.max_transfer_blocks, 512);
    let mut channel = host.open();
    host.write(&mut *channel, 0, 1, 4);
    assert_eq!(host.emu().media(1).unwrap().durable_block(0)[0], 4);
}

#[test]
fn a_resize_and_a_new_namespace_are_noticed() {
    let mut host = Host::default();
    host.emu().resize_namespace(1, 1234);
    host.until("the new size is known", |host| {
        host.namespace().geometry().block_count == 1234
    });
    let nsid = Nsid(1);
    assert!(host.has_event(
        |event| matches!(event, Event::NamespaceResized { nsid: n, block_count: 1234 } if *n == nsid)
    ));
    assert_eq!(host.controller.state(), ControllerState::Running);
}
