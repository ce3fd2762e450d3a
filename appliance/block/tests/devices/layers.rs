//! The error and delay layers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use block::delay::{DelayLayer, Delays};
use block::error::{Effect, ErrorLayer, Rule};
use block::malloc::{Malloc, MallocOptions};
use block::{BlockDevice, Io, IoError, Op, OpKind, OpSet, Submit};

use crate::rig::{self, Buffers};

fn malloc() -> Arc<dyn BlockDevice> {
    Malloc::new(MallocOptions::new(512, 64)).unwrap()
}

const READS: OpSet = OpSet::of(&[OpKind::Read]);
const WRITES: OpSet = OpSet::of(&[OpKind::Write]);

#[test]
fn a_rule_hits_its_operations_as_often_as_it_says() {
    let layer = ErrorLayer::new(malloc(), 1);
    let mut buffers = Buffers::new();
    let mut channel = rig::bdev(layer.clone()).open(&rig::context()).unwrap();
    layer
        .set_rules(&[Rule::fail(WRITES, IoError::MediaWrite).times(2)])
        .unwrap();
    for expected in [Err(IoError::MediaWrite), Err(IoError::MediaWrite), Ok(())] {
        rig::read(&mut channel, &mut buffers, 0, 1);
        let payload = buffers.filled(&[5; 512]);
        let io = Io::with_payload(Op::Write { fua: false }, 0, 1, payload, 3);
        assert_eq!(rig::run(&mut channel, io).result, expected);
    }
    assert_eq!(layer.injected(), 2);
    assert_eq!(layer.rules()[0].count, Some(0));
    assert_eq!(rig::read(&mut channel, &mut buffers, 0, 1), [5; 512]);
}

#[test]
fn a_held_operation_goes_on_when_the_rules_change() {
    let layer = ErrorLayer::new(malloc(), 1);
    let bdev = rig::bdev(layer.clone());
    let mut channel = bdev.open(&rig::context()).unwrap();
    let hold = |count| Rule {
        effect: Effect::Hold,
        ..Rule::fail(OpSet::of(&[OpKind::Verify]), IoError::Aborted).times(count)
    };
    layer.set_rules(&[hold(3)]).unwrap();
    let now = std::time::Instant::now();
    for tag in 0..3 {
        let io = Io::new(Op::Verify, tag, 1, tag);
        assert!(matches!(channel.submit(io, now), Submit::Pending));
    }
    // A fourth is not hit, and passes them.
    rig::run_ok(&mut channel, Io::new(Op::Verify, 0, 1, 9));
    let mut done = Vec::new();
    assert_eq!(channel.poll(now, &mut done), 0);
    assert_eq!(bdev.statistics().queue_depth, 3);
    assert!(channel.abort(1));
    channel.poll(now, &mut done);
    assert_eq!(done.len(), 1);
    assert_eq!((done[0].io.tag, done[0].result), (1, Err(IoError::Aborted)));
    done.clear();
    layer.set_rules(&[]).unwrap();
    channel.poll(now, &mut done);
    let ended: Vec<_> = done.iter().map(|done| (done.io.tag, done.result)).collect();
    assert_eq!(ended, [(0, Ok(())), (2, Ok(()))]);
}

#[test]
fn a_reset_ends_what_is_held() {
    let layer = ErrorLayer::new(malloc(), 1);
    let mut channel = rig::bdev(layer.clone()).open(&rig::context()).unwrap();
    let hold = Rule {
        effect: Effect::Hold,
        ..Rule::fail(OpSet::of(&[OpKind::Verify]), IoError::Aborted)
    };
    layer.set_rules(&[hold]).unwrap();
    let now = std::time::Instant::now();
    let io = Io::new(Op::Verify, 0, 1, 7);
    assert!(matches!(channel.submit(io, now), Submit::Pending));
    let _ = channel.submit(Io::new(Op::Reset, 0, 0, 8), now);
    let mut done = Vec::new();
    channel.poll(now, &mut done);
    let held = done.iter().find(|done| done.io.tag == 7).unwrap();
    assert_eq!(held.result, Err(IoError::Aborted));
}

#[test]
fn an_nvme_status_is_passed_on_as_given() {
    let layer = ErrorLayer::new(malloc(), 1);
    let bdev = rig::bdev(layer.clone());
    let mut channel = bdev.open(&rig::context()).unwrap();
    let status = IoError::Injected {
        sct: 2,
        sc: 0x81,
        dnr: true,
    };
    let verify = OpSet::of(&[OpKind::Verify]);
    layer.set_rules(&[Rule::fail(verify, status)]).unwrap();
    assert_eq!(
        rig::run(&mut channel, Io::new(Op::Verify, 0, 1, 0)).result,
        Err(status)
    );
    assert_eq!(bdev.statistics().kind(OpKind::Verify).errors, 1);
    layer.set_rules(&[]).unwrap();
    rig::run_ok(&mut channel, Io::new(Op::Verify, 0, 1, 0));
}

#[test]
fn the_same_seed_gives_the_same_failures_at_about_the_asked_rate() {
    let failures = |seed| {
        let layer = ErrorLayer::new(malloc(), seed);
        let rule = Rule::fail(OpSet::ALL, IoError::MediaRead).with_probability(0.25);
        layer.set_rules(&[rule]).unwrap();
        let mut channel = rig::bdev(layer).open(&rig::context()).unwrap();
        let run = |_| {
            rig::run(&mut channel, Io::new(Op::Verify, 0, 1, 0))
                .result
                .is_err()
        };
        (0..4000).map(run).collect::<Vec<bool>>()
    };
    let first = failures(7);
    assert_eq!(first, failures(7));
    assert_ne!(first, failures(8));
    let count = first.iter().filter(|failed| **failed).count();
    assert!((900..1100).contains(&count), "{count}");
}

#[test]
fn corrupted_reads_differ_in_the_named_byte_and_leave_the_device_alone() {
    let layer = ErrorLayer::new(malloc(), 1);
    let mut buffers = Buffers::new();
    let mut channel = rig::bdev(layer.clone()).open(&rig::context()).unwrap();
    assert!(!channel.lends());
    rig::write(&mut channel, &mut buffers, 0, &[7; 1024]);
    let effect = Effect::Corrupt {
        offset_in_block: 100,
        mask: 0x81,
    };
    let rule = Rule::fail(READS, IoError::MediaRead).times(1);
    layer.set_rules(&[Rule { effect, ..rule }]).unwrap();
    let damaged = rig::read(&mut channel, &mut buffers, 0, 2);
    assert_eq!(damaged[100], 7 ^ 0x81);
    let at = |bytes: &[u8]| (0..1024).filter(|i| bytes[*i] != 7).collect::<Vec<usize>>();
    assert_eq!(at(&damaged), [100, 612]);
    assert_eq!(
        at(&rig::read(&mut channel, &mut buffers, 0, 2)),
        [0usize; 0]
    );
}

#[test]
fn corrupted_writes_damage_the_device_and_not_the_writers_buffer() {
    let layer = ErrorLayer::new(malloc(), 1);
    let mut buffers = Buffers::new();
    let mut channel = rig::bdev(layer.clone()).open(&rig::context()).unwrap();
    let effect = Effect::Corrupt {
        offset_in_block: 0,
        mask: 0xff,
    };
    let rule = Rule::fail(WRITES, IoError::MediaWrite);
    layer.set_rules(&[Rule { effect, ..rule }]).unwrap();
    let payload = buffers.filled(&[7; 512]);
    let write = Io::with_payload(Op::Write { fua: true }, 0, 1, payload, 0);
    let completion = rig::run_ok(&mut channel, write);
    assert_eq!(rig::bytes(&completion.io.payload), [7; 512]);
    let read = rig::read(&mut channel, &mut buffers, 0, 1);
    assert_eq!((read[0], read[1]), (!7, 7));
}

#[test]
fn a_rule_hits_what_touches_its_blocks() {
    let disk = Malloc::new(MallocOptions::new(512, 1024)).unwrap();
    let layer = ErrorLayer::new(disk, 1);
    let rule = Rule::fail(READS, IoError::MediaRead).within(100, 199);
    layer.set_rules(&[rule]).unwrap();
    let mut buffers = Buffers::new();
    let mut channel = rig::bdev(layer).open(&rig::context()).unwrap();
    for (lba, blocks, is_hit) in [
        (0, 100, false),
        (99, 2, true),
        (150, 1, true),
        (199, 4, true),
        (200, 1, false),
    ] {
        let payload = buffers.filled(&vec![0; blocks as usize * 512]);
        let read = Io::with_payload(Op::Read, lba, blocks, payload, 0);
        let result = rig::run(&mut channel, read).result;
        assert_eq!(result.is_err(), is_hit, "{blocks} blocks from {lba}");
    }
}

#[test]
fn impossible_rules_are_refused() {
    let layer = ErrorLayer::new(malloc(), 1);
    let rule = Rule::fail(READS, IoError::MediaRead);
    assert!(layer.set_rules(&[rule.with_probability(1.5)]).is_err());
    assert!(layer.set_rules(&[rule.with_probability(f64::NAN)]).is_err());
    let effect = Effect::Corrupt {
        offset_in_block: 512,
        mask: 1,
    };
    assert!(layer.set_rules(&[Rule { effect, ..rule }]).is_err());
    assert!(layer.set_rules(&[rule; 65]).is_err());
    assert!(layer.rules().is_empty());
}

#[test]
fn a_slow_device_answers_on_its_deadline() {
    let delays = Delays {
        avg_read: Duration::from_millis(2),
        p99_read: Duration::from_millis(50),
        avg_write: Duration::from_millis(7),
        p99_write: Duration::ZERO,
    };
    let layer = DelayLayer::new(malloc(), delays);
    assert_eq!(layer.delays(), delays);
    let bdev = rig::bdev(layer.clone());
    let mut channel = bdev.open(&rig::context()).unwrap();
    let start = Instant::now();
    assert!(matches!(
        channel.submit(Io::new(Op::Unmap, 0, 1, 1), start),
        Submit::Pending
    ));
    assert!(matches!(
        channel.submit(Io::new(Op::Verify, 0, 1, 2), start),
        Submit::Pending
    ));
    let mut done = Vec::new();
    assert_eq!(channel.poll(start, &mut done), 0);
    let read_due = start + Duration::from_millis(2);
    assert_eq!(channel.next_deadline(), Some(read_due));
    assert_eq!(
        channel.poll(read_due - Duration::from_nanos(1), &mut done),
        0
    );
    assert_eq!(channel.poll(read_due, &mut done), 1);
    let write_due = start + Duration::from_millis(7);
    assert_eq!(channel.next_deadline(), Some(write_due));
    assert_eq!(channel.poll(write_due, &mut done), 1);
    assert_eq!(done[0].io.tag, 2);
    layer.set_delays(&Delays::default());
    assert!(matches!(
        channel.submit(Io::new(Op::Verify, 0, 1, 2), start),
        Submit::Done(_)
    ));
}

#[test]
fn one_in_a_hundred_takes_the_99th_percentile() {
    let delays = Delays {
        avg_read: Duration::from_millis(1),
        p99_read: Duration::from_millis(90),
        ..Delays::default()
    };
    let bdev = rig::bdev(DelayLayer::new(malloc(), delays));
    let mut channel = bdev.open(&rig::context()).unwrap();
    let start = Instant::now();
    for tag in 0..500 {
        assert!(matches!(
            channel.submit(Io::new(Op::Verify, 0, 1, tag), start),
            Submit::Pending
        ));
    }
    let mut done = Vec::new();
    assert_eq!(
        channel.poll(start + Duration::from_millis(1), &mut done),
        495
    );
    assert_eq!(
        channel.poll(start + Duration::from_millis(89), &mut done),
        0
    );
    assert_eq!(
        channel.poll(start + Duration::from_millis(90), &mut done),
        5
    );
    let verify = bdev.statistics().kind(OpKind::Verify).clone();
    let p50 = verify.histogram.quantile(0.5).unwrap();
    let p999 = verify.histogram.quantile(0.999).unwrap();
    assert!(
        p50 < Duration::from_millis(2) && p999 >= Duration::from_millis(90),
        "{p50:?}"
    );
}

#[test]
fn a_delayed_io_can_be_aborted() {
    let delays = Delays {
        avg_read: Duration::from_secs(60),
        ..Delays::default()
    };
    let mut channel = rig::bdev(DelayLayer::new(malloc(), delays))
        .open(&rig::context())
        .unwrap();
    let start = Instant::now();
    let _ = channel.submit(Io::new(Op::Verify, 0, 1, 10), start);
    let _ = channel.submit(Io::new(Op::Verify, 0, 1, 11), start);
    assert!(channel.abort(11));
    let mut done = Vec::new();
    assert_eq!(channel.poll(start, &mut done), 1);
    assert_eq!(
        (done[0].io.tag, done[0].result),
        (11, Err(IoError::Aborted))
    );
    assert_eq!(channel.in_flight(), 1);
}

#[test]
fn layers_stack_and_tell_what_is_under_them() {
    let error = ErrorLayer::new(malloc(), 1);
    let delay: Arc<dyn BlockDevice> = DelayLayer::new(error, Delays::default());
    assert_eq!(delay.kind(), "delay");
    assert_eq!(delay.inner().unwrap().kind(), "error");
    let error = delay.inner().unwrap().downcast_ref::<ErrorLayer>().unwrap();
    assert_eq!(error.injected(), 0);
    assert_eq!(error.inner().unwrap().kind(), "malloc");
    delay.resize(100).unwrap();
    assert_eq!(error.geometry().block_count, 100);
}
