use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use block::{BlockDevice, Channel, ChannelContext, Completion, Io, IoError, Op, Submit};
use dma::{BackingPreference, ChannelOptions, IobufChannel, IobufOptions, IobufPool, Payload};

use crate::{Image, Random, SimDevice, SimOptions, Step};

const BLOCK: usize = 512;

fn device(seed: u64) -> Arc<SimDevice> {
    SimDevice::new(SimOptions::new(512, 1024, seed))
}

fn reopened(image: Image) -> Arc<SimDevice> {
    SimDevice::from_image(image, SimOptions::new(512, 0, 0))
}

fn block(value: u8) -> [u8; BLOCK] {
    [value; BLOCK]
}

/// The first byte of a block.
fn at(image: &Image, block: u64) -> u8 {
    let mut byte = [0];
    image.read_at(block * BLOCK as u64, &mut byte);
    byte[0]
}

/// A channel with buffers.
struct Rig {
    channel: Box<dyn Channel>,
    buffers: IobufChannel,
    now: Instant,
}

impl Rig {
    fn new(device: &SimDevice) -> Self {
        let options = IobufOptions {
            small_pool_count: 256,
            large_pool_count: 8,
            reserve_small: 8,
            backing: BackingPreference::Plain4K,
            ..IobufOptions::default()
        };
        let pool = IobufPool::new(options).unwrap();
        let options = ChannelOptions {
            small_cache: 32,
            large_cache: 4,
            ..Default::default()
        };
        let context = ChannelContext::new("test", Waker::noop().clone());
        Self {
            channel: device.open_channel(&context).unwrap(),
            buffers: pool.channel("test", options).unwrap(),
            now: Instant::now(),
        }
    }

    fn payload(&mut self, value: u8, blocks: u32) -> Payload {
        let mut buf = self.buffers.get(blocks as usize * BLOCK).unwrap();
        buf.as_mut_slice().fill(value);
        buf.into()
    }

    fn submit(&mut self, io: Io) {
        assert!(matches!(self.channel.submit(io, self.now), Submit::Pending));
    }

    fn write(&mut self, lba: u64, value: u8, fua: bool) {
        let payload = self.payload(value, 1);
        self.submit(Io::with_payload(
            Op::Write { fua },
            lba,
            1,
            payload,
            u64::from(value),
        ));
    }

    /// Everything in flight, in the order of its end.
    fn drain(&mut self) -> Vec<Completion> {
        let mut done = Vec::new();
        while self.channel.in_flight() > 0 {
            self.channel.poll(self.now, &mut done);
        }
        done
    }

    fn run(&mut self, io: Io) -> Result<(), IoError> {
        self.submit(io);
        self.drain().remove(0).result
    }
}

#[test]
fn unflushed_write_is_read_back_and_lost_or_kept_at_the_cut() {
    let device = device(1);
    device.write_at(0, &block(1)).unwrap();
    let mut out = block(0);
    device.read_at(0, &mut out).unwrap();
    assert_eq!(out, block(1));
    assert_eq!(at(&device.cut(0), 0), 0);
    assert_eq!(at(&device.cut(1), 0), 1);
    assert_eq!(device.unflushed(), 1);
}

#[test]
fn flushed_write_survives_every_cut() {
    let device = device(1);
    device.write_at(0, &block(1)).unwrap();
    device.flush().unwrap();
    device.write_at(512, &block(2)).unwrap();
    for seed in 0..50 {
        assert_eq!(at(&device.cut(seed), 0), 1);
    }
}

#[test]
fn cut_leaves_any_subset_of_unflushed_sectors() {
    let device = device(1);
    device
        .write_at(0, &[[1; BLOCK], [1; BLOCK]].concat())
        .unwrap();
    let mut seen = [false; 4];
    for seed in 0..200 {
        let image = device.cut(seed);
        seen[usize::from(at(&image, 0) * 2 + at(&image, 1))] = true;
        assert_eq!(image, device.cut(seed), "the same seed gives another cut");
    }
    assert_eq!(seen, [true; 4]);
}

#[test]
fn older_unflushed_content_of_a_sector_can_be_what_survives() {
    let device = device(1);
    device.write_at(0, &block(1)).unwrap();
    device.write_at(0, &block(2)).unwrap();
    let found: std::collections::BTreeSet<u8> =
        (0..200).map(|seed| at(&device.cut(seed), 0)).collect();
    assert_eq!(found, [0, 1, 2].into());
}

#[test]
fn flush_covers_only_writes_completed_at_its_submission() {
    // The write is in flight when the flush is submitted; whichever ends first, it is not covered.
    let mut lost = false;
    for seed in 0..50 {
        let device = device(seed);
        let mut rig = Rig::new(&device);
        rig.write(0, 1, false);
        rig.submit(Io::new(Op::Flush, 0, 0, 9));
        rig.drain();
        lost |= at(&device.cut(0), 0) == 0;
        rig.run(Io::new(Op::Flush, 0, 0, 9)).unwrap();
        assert_eq!(at(&device.cut(0), 0), 1);
    }
    assert!(lost);
}

#[test]
fn fua_write_survives_and_is_not_overwritten_by_an_older_one() {
    let device = device(1);
    let mut rig = Rig::new(&device);
    rig.write(0, 1, false);
    rig.drain();
    rig.write(0, 2, true);
    rig.drain();
    for seed in 0..100 {
        assert_eq!(at(&device.cut(seed), 0), 2);
    }
}

#[test]
fn write_in_flight_can_be_there_after_the_cut() {
    let device = device(1);
    let mut rig = Rig::new(&device);
    rig.write(0, 1, false);
    assert_eq!(at(&device.image(), 0), 0);
    assert_eq!(at(&device.cut(0), 0), 0);
    assert_eq!(at(&device.cut(1), 0), 1);
}

#[test]
fn completions_come_in_another_order_for_another_seed() {
    let order = |seed| {
        let device = device(seed);
        let mut rig = Rig::new(&device);
        for value in 1..20 {
            rig.write(u64::from(value), value, false);
        }
        rig.drain()
            .iter()
            .map(|done| done.io.tag)
            .collect::<Vec<_>>()
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
    assert!(!order(1).is_sorted());
}

#[test]
fn without_delay_io_ends_at_submission() {
    let options = SimOptions {
        delay_polls_max: 0,
        ..SimOptions::new(512, 16, 0)
    };
    let device = SimDevice::new(options);
    let mut rig = Rig::new(&device);
    let payload = rig.payload(3, 1);
    let io = Io::with_payload(Op::Write { fua: false }, 2, 1, payload, 1);
    assert!(matches!(rig.channel.submit(io, rig.now), Submit::Done(done) if done.result.is_ok()));
    assert_eq!(at(&device.image(), 2), 3);
}

#[test]
fn device_without_cache_keeps_every_completed_write() {
    let options = SimOptions {
        volatile_write_cache: false,
        ..SimOptions::new(512, 16, 0)
    };
    let device = SimDevice::new(options);
    assert!(!device.geometry().volatile_write_cache);
    device.write_at(0, &block(1)).unwrap();
    assert_eq!(at(&device.cut(0), 0), 1);
}

#[test]
fn read_compare_and_zeroes_work_through_a_channel() {
    let device = device(3);
    let mut rig = Rig::new(&device);
    rig.write(5, 7, false);
    rig.drain();
    let payload = rig.payload(0, 1);
    rig.submit(Io::with_payload(Op::Read, 5, 1, payload, 1));
    let done = rig.drain().remove(0);
    assert_eq!(done.io.payload.as_buf().unwrap().as_slice(), block(7));
    let payload = rig.payload(7, 1);
    assert_eq!(
        rig.run(Io::with_payload(Op::Compare, 5, 1, payload, 1)),
        Ok(())
    );
    let payload = rig.payload(8, 1);
    let compared = rig.run(Io::with_payload(Op::Compare, 5, 1, payload, 1));
    assert_eq!(compared, Err(IoError::CompareMismatch { offset_bytes: 0 }));
    assert_eq!(rig.run(Io::new(Op::Unmap, 0, 1024, 1)), Ok(()));
    assert_eq!(at(&device.image(), 5), 0);
    // Not flushed: the old content may come back.
    rig.write(5, 7, true);
    rig.drain();
    let zero = Op::WriteZeroes {
        unmap: false,
        fua: false,
    };
    assert_eq!(rig.run(Io::new(zero, 5, 1, 1)), Ok(()));
    assert_eq!((at(&device.cut(0), 5), at(&device.cut(1), 5)), (7, 0));
}

#[test]
fn faults_hit_their_ranges_only() {
    let device = device(1);
    device.fail_writes(512..1024);
    device.fail_reads(1024..1025);
    assert!(device.write_at(0, &[0; 1024]).is_err());
    device.write_at(0, &block(1)).unwrap();
    assert!(device.read_at(1024, &mut block(0)).is_err());
    device.read_at(512, &mut block(0)).unwrap();
    device.fail_flushes();
    assert!(device.flush().is_err());
    assert_eq!(at(&device.cut(0), 0), 0);
    device.clear_faults();
    device.flush().unwrap();
    let mut rig = Rig::new(&device);
    device.fail_reads(0..512);
    assert_eq!(
        rig.run(Io::new(Op::Verify, 0, 1, 1)),
        Err(IoError::MediaRead)
    );
    assert_eq!(rig.run(Io::new(Op::Verify, 1, 1, 1)), Ok(()));
}

#[test]
fn power_goes_after_the_nth_change_and_nothing_moves_then() {
    let device = device(1);
    let mut rig = Rig::new(&device);
    device.power_off_after(2);
    device.write_at(0, &block(1)).unwrap();
    device.write_at(512, &block(2)).unwrap();
    assert!(device.is_powered_off());
    assert!(device.write_at(1024, &block(3)).is_err());
    assert!(device.flush().is_err());
    assert!(device.read_at(0, &mut block(0)).is_err());
    assert_eq!(rig.run(Io::new(Op::Flush, 0, 0, 1)), Err(IoError::Removed));
    assert_eq!(at(&device.cut(0), 0), 0);
    let everything = device.cut(1);
    assert_eq!([0, 1, 2].map(|block| at(&everything, block)), [1, 2, 0]);
}

#[test]
fn counters_tell_what_reached_the_device() {
    let device = device(1);
    device.write_at(0, &[0; 1024]).unwrap();
    device.read_at(0, &mut block(0)).unwrap();
    device.flush().unwrap();
    assert!(device.read_at(1 << 40, &mut block(0)).is_err());
    let stats = device.stats();
    assert_eq!((stats.writes, stats.bytes_written), (1, 1024));
    assert_eq!((stats.reads, stats.bytes_read), (1, 512));
    assert_eq!((stats.flushes, stats.failed), (1, 0));
    device.reset_stats();
    assert_eq!(device.stats(), crate::SimStats::default());
}

#[test]
fn ranges_that_are_no_blocks_are_refused() {
    let device = device(1);
    assert!(device.write_at(1, &block(1)).is_err());
    assert!(device.write_at(0, &[1; 100]).is_err());
    assert!(device.write_at(u64::MAX - 511, &block(1)).is_err());
    let mut rig = Rig::new(&device);
    let io = Io::new(Op::Unmap, 1024, 1, 1);
    assert!(
        matches!(rig.channel.submit(io, rig.now), Submit::Done(done) if done.result == Err(IoError::OutOfRange))
    );
}

#[test]
fn huge_device_costs_what_is_written() {
    let device = SimDevice::new(SimOptions::new(4096, (64 << 40) / 4096, 0));
    let last = (64 << 40) - 4096;
    device.write_at(last, &[1; 4096]).unwrap();
    device.write_at(0, &[1; 4096]).unwrap();
    let mut rig = Rig::new(&device);
    for first in 0..4_u64 {
        let lba = first * (16 << 40) / 4096;
        rig.run(Io::new(Op::Unmap, lba, u32::MAX, 1)).unwrap();
    }
    assert!(device.cut(7).stored_bytes() <= 8192);
    assert_eq!(device.image().len_bytes(), 64 << 40);
}

#[test]
fn replay_of_a_recording_ends_where_the_device_is() {
    let device = device(5);
    device.write_at(0, &block(9)).unwrap();
    device.start_recording();
    let mut rig = Rig::new(&device);
    let mut random = Random::new(5);
    for value in 1..100 {
        match random.below(8) {
            0 => rig.submit(Io::new(Op::Flush, 0, 0, 0)),
            1 => rig.submit(Io::new(Op::Unmap, random.below(20), 4, 0)),
            draw => rig.write(random.below(20), value, draw == 2),
        }
        let mut done = Vec::new();
        rig.channel.poll(rig.now, &mut done);
        device.mark(u64::from(value));
    }
    let live: Vec<Image> = (0..20).map(|seed| device.cut(seed)).collect();
    let recording = device.stop_recording();
    let mut replay = recording.replay();
    assert_eq!(at(&replay.cut(1), 0), 9);
    let steps: Vec<Step> = replay.by_ref().collect();
    assert_eq!(steps.len(), recording.len());
    assert!(steps.contains(&Step::Mark(99)) && steps.contains(&Step::Flush));
    for (seed, image) in (0..).zip(&live) {
        assert_eq!(replay.cut(seed), *image);
    }
}

#[test]
fn resize_keeps_content_and_reads_zeroes_behind_it() {
    let device = device(1);
    device.write_at(1023 * 512, &block(1)).unwrap();
    device.resize(2048).unwrap();
    assert_eq!(device.geometry().block_count, 2048);
    assert_eq!(at(&device.image(), 1023), 1);
    assert_eq!(at(&device.image(), 1024), 0);
    device.resize(1023).unwrap();
    device.resize(1024).unwrap();
    assert_eq!(at(&device.image(), 1023), 0);
}

#[test]
fn image_round_trips_through_a_file_and_refuses_others() {
    let mut image = Image::new(1 << 30);
    image.write_at(5, &[1, 2, 3]);
    image.write_at((1 << 30) - 4, &[4; 4]);
    image.write_at(8192, &[0; 4096]);
    let file = image.encode();
    assert_eq!(Image::decode(&file), Some(image.clone()));
    for len in 0..file.len() {
        assert_ne!(Image::decode(&file[..len]).as_ref(), Some(&image));
    }
    let mut damaged = file.clone();
    damaged[8] = 0xff;
    damaged[14] = 0xff;
    assert_eq!(Image::decode(&damaged), None);
}

#[test]
fn image_reopens_as_a_device() {
    let device = device(1);
    device.write_at(512, &block(4)).unwrap();
    let again = reopened(device.cut(1));
    let mut out = block(0);
    again.read_at(512, &mut out).unwrap();
    assert_eq!(out, block(4));
    assert_eq!(again.unflushed(), 0);
}

#[test]
fn what_has_completed_survives_the_end_of_the_program() {
    let device = device(1);
    let mut rig = Rig::new(&device);
    rig.write(0, 1, false);
    rig.drain();
    rig.write(1, 2, false);
    assert_eq!(device.unflushed(), 1);
    let mut seen = [false; 2];
    for seed in 0..50 {
        let image = device.killed(seed);
        assert_eq!(at(&image, 0), 1);
        seen[usize::from(at(&image, 1) == 2)] = true;
    }
    assert_eq!(seen, [true; 2], "what was in flight survives or not");
}
