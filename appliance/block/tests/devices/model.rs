//! Every device, behind a bdev, does what a plain vector of bytes does: all operations, in and out of
//! range, split and whole, at once and late.

use std::sync::Arc;

use block::file::{File, FileOptions};
use block::malloc::{Malloc, MallocOptions};
use block::{BdevChannel, BlockDevice, Io, IoError, Op, Submit};
use proptest::prelude::*;

use crate::rig::{self, Buffers, Model, Narrow};

const BLOCKS: u64 = 64;

#[derive(Clone, Debug)]
struct Step {
    op: Op,
    lba: u64,
    blocks: u32,
    fill: u8,
    /// Compare data is taken from the device's real content (else from `fill`).
    matching: bool,
    lent: bool,
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => Just(Op::Read),
        4 => any::<bool>().prop_map(|fua| Op::Write { fua }),
        1 => Just(Op::Flush),
        2 => Just(Op::Unmap),
        2 => any::<(bool, bool)>().prop_map(|(unmap, fua)| Op::WriteZeroes { unmap, fua }),
        2 => Just(Op::Compare),
        2 => any::<bool>().prop_map(|fua| Op::CompareAndWrite { fua }),
        1 => Just(Op::Verify),
        1 => Just(Op::Reset),
    ]
}

fn any_range() -> impl Strategy<Value = (u64, u32)> {
    prop_oneof![
        8 => (0..BLOCKS).prop_flat_map(|lba| (Just(lba), 1..=(BLOCKS - lba) as u32)),
        1 => (0..BLOCKS * 2, 0..100u32),
        1 => (any::<u64>(), any::<u32>()),
        1 => (Just(u64::MAX), Just(u32::MAX)),
        1 => (Just(BLOCKS - 1), 1..3u32),
    ]
}

prop_compose! {
    fn any_step()(
        op in any_op(),
        (lba, blocks) in any_range(),
        fill: u8,
        matching: bool,
        lent: bool,
    ) -> Step {
        Step { op, lba, blocks, fill, matching, lent }
    }
}

/// The data that goes along with a step. Payloads of impossible ranges are cut to what the pool has.
fn data_of(step: &Step, model: &Model) -> Vec<u8> {
    let len = (step.blocks as usize)
        .saturating_mul(model.block_size)
        .min(65_536);
    let pattern = |salt: u8| {
        (0..len)
            .map(move |i| step.fill ^ salt ^ (i / 512) as u8)
            .collect::<Vec<u8>>()
    };
    let current = || {
        let start = (step.lba as usize).saturating_mul(model.block_size);
        let mut bytes = model.bytes.get(start..).unwrap_or_default().to_vec();
        bytes.resize(len, 0);
        if !step.matching && len > 0 {
            bytes[usize::from(step.fill) * len / 256] ^= 1;
        }
        bytes
    };
    match step.op {
        Op::Write { .. } => pattern(0),
        Op::Compare => current(),
        Op::CompareAndWrite { .. } => [current(), pattern(0x55)].concat(),
        _ => Vec::new(),
    }
}

fn check_step(channel: &mut BdevChannel, buffers: &mut Buffers, model: &mut Model, step: &Step) {
    let data = data_of(step, model);
    let (expected, expected_bytes) = model.apply(step.op, step.lba, step.blocks, &data);
    let is_lent = step.op == Op::Read && step.lent && channel.lends();
    let payload = match step.op {
        Op::Read if is_lent => dma::Payload::None,
        Op::Read => {
            let len = (step.blocks as usize)
                .saturating_mul(model.block_size)
                .min(65_536);
            buffers.empty(len.max(1))
        }
        _ if data.is_empty() => dma::Payload::None,
        _ => buffers.filled(&data),
    };
    let io = Io::with_payload(step.op, step.lba, step.blocks, payload, 77);
    let completion = rig::run(channel, io);
    assert_eq!(completion.result, expected, "{step:?}");
    assert_eq!(completion.io.tag, 77);
    assert_eq!(
        (completion.io.lba.0, completion.io.blocks),
        (step.lba, step.blocks)
    );
    if expected.is_ok() && step.op == Op::Read {
        assert_eq!(
            rig::bytes(&completion.io.payload),
            expected_bytes,
            "{step:?}"
        );
    } else if !data.is_empty() {
        assert_eq!(
            rig::bytes(&completion.io.payload),
            data,
            "the payload comes back as it was"
        );
    }
}

fn check_device(device: Arc<dyn BlockDevice>, steps: &[Step]) {
    let mut buffers = Buffers::new();
    let block_size = device.geometry().block_size as usize;
    let mut model = Model::new(block_size, BLOCKS as usize);
    let bdev = rig::bdev(device);
    let context = rig::context().with_pool(Arc::clone(&buffers.pool));
    let mut channel = bdev.open(&context).unwrap();
    for step in steps {
        check_step(&mut channel, &mut buffers, &mut model, step);
    }
    let whole = Step {
        op: Op::Read,
        lba: 0,
        blocks: BLOCKS as u32,
        fill: 0,
        matching: true,
        lent: false,
    };
    if block_size == 512 {
        check_step(&mut channel, &mut buffers, &mut model, &whole);
    }
    assert_eq!(channel.in_flight(), 0);
}

fn malloc(block_size: u32) -> Arc<dyn BlockDevice> {
    Malloc::new(MallocOptions::new(block_size, BLOCKS)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn malloc_is_like_the_model(steps in prop::collection::vec(any_step(), 1..60)) {
        check_device(malloc(512), &steps);
    }

    #[test]
    fn split_io_is_like_the_model(
        steps in prop::collection::vec(any_step(), 1..40),
        max_transfer_blocks in 1u32..20,
        max_unmap_blocks in 0u32..9,
        max_verify_blocks in 0u32..40,
        boundary_blocks in prop_oneof![Just(0u32), 1u32..16],
        pending_every in 0u64..4,
    ) {
        let inner = malloc(512);
        let narrow = Narrow {
            inner, max_transfer_blocks, max_unmap_blocks, max_verify_blocks, boundary_blocks,
            pending_every,
        };
        // What cannot be split is refused by design; the model does not know that.
        let splits = |step: &Step| {
            let range = u64::from(step.blocks);
            let limit = u64::from(max_transfer_blocks);
            let boundary = u64::from(boundary_blocks);
            step.lba < BLOCKS && range <= BLOCKS && (range > limit
                || boundary != 0 && range > 0 && step.lba % boundary + range > boundary)
        };
        let steps: Vec<Step> = steps.into_iter().filter_map(|mut step| {
            if matches!(step.op, Op::CompareAndWrite { .. }) && splits(&step) {
                return None;
            }
            step.lent &= !splits(&step);
            Some(step)
        }).collect();
        check_device(Arc::new(narrow), &steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn direct_file_is_like_the_model(steps in prop::collection::vec(any_step(), 1..40)) {
        let folder = tempfile::tempdir().unwrap();
        let options = FileOptions::create(folder.path().join("disk"), BLOCKS * 512);
        let (file, notice) = File::open(options).unwrap();
        prop_assert_eq!(file.is_direct(), notice.is_none());
        check_device(file, &steps);
    }

    #[test]
    fn buffered_file_is_like_the_model(steps in prop::collection::vec(any_step(), 1..40)) {
        let folder = tempfile::tempdir().unwrap();
        let mut options = FileOptions::create(folder.path().join("disk"), BLOCKS * 4096);
        options.block_size = 4096;
        options.direct = false;
        let (file, notice) = File::open(options).unwrap();
        prop_assert!(notice.is_none());
        // 64 KiB of buffer are 16 blocks of 4096.
        let small = |step: &Step| step.blocks <= 8 || step.blocks > BLOCKS as u32;
        let steps: Vec<Step> = steps.into_iter().filter(small).collect();
        check_device(file, &steps);
    }

    /// As directly, but with memory that direct I/O cannot use, so all goes through bounce buffers.
    #[test]
    fn unaligned_payloads_are_bounced(lba in 0..BLOCKS, blocks in 1u32..20, shift in 1usize..511) {
        prop_assume!(lba + u64::from(blocks) <= BLOCKS);
        let folder = tempfile::tempdir().unwrap();
        let options = FileOptions::create(folder.path().join("disk"), BLOCKS * 512);
        let (file, _) = File::open(options).unwrap();
        let mut buffers = Buffers::new();
        let mut channel = rig::bdev(file).open(&rig::context()).unwrap();
        let len = blocks as usize * 512;
        let data: Vec<u8> = (0..len).map(|i| (i * 7 + shift) as u8).collect();
        let mut shifted = |fill: Option<&[u8]>| {
            let mut buf = buffers.get(len + shift);
            drop(buf.split_to(shift));
            match fill {
                Some(data) => buf.as_mut_slice().copy_from_slice(data),
                None => buf.as_mut_slice().fill(0),
            }
            dma::Payload::Buf(buf)
        };
        let payload = shifted(Some(&data));
        let write = Io::with_payload(Op::Write { fua: true }, lba, blocks, payload, 0);
        rig::run_ok(&mut channel, write);
        let payload = shifted(None);
        let read = rig::run_ok(&mut channel, Io::with_payload(Op::Read, lba, blocks, payload, 0));
        prop_assert_eq!(rig::bytes(&read.io.payload), data);
    }
}

#[test]
fn ranges_that_would_overflow_are_out_of_range() {
    let bdev = rig::bdev(malloc(4096));
    let mut channel = bdev.open(&rig::context()).unwrap();
    for (lba, blocks) in [
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (u64::MAX - u64::from(u32::MAX) + 1, u32::MAX),
        (1 << 52, 1),
        (BLOCKS, 1),
        (BLOCKS - 1, 2),
        (0, u32::MAX),
    ] {
        let io = Io::new(Op::Unmap, lba, blocks, 0);
        assert_eq!(
            rig::run(&mut channel, io).result,
            Err(IoError::OutOfRange),
            "{lba}+{blocks}"
        );
    }
    rig::run_ok(&mut channel, Io::new(Op::Unmap, BLOCKS - 1, 1, 0));
}

#[test]
fn payloads_of_the_wrong_length_are_refused() {
    let mut buffers = Buffers::new();
    let bdev = rig::bdev(malloc(512));
    let mut channel = bdev.open(&rig::context()).unwrap();
    for (op, len) in [
        (Op::Read, 511),
        (Op::Read, 1024),
        (Op::Write { fua: false }, 0),
        (Op::Write { fua: false }, 513),
        (Op::Compare, 1024),
        (Op::CompareAndWrite { fua: false }, 512),
        (Op::Unmap, 512),
        (Op::Verify, 512),
    ] {
        let payload = if len == 0 {
            dma::Payload::None
        } else {
            buffers.empty(len)
        };
        let completion = rig::run(&mut channel, Io::with_payload(op, 0, 1, payload, 0));
        assert_eq!(
            completion.result,
            Err(IoError::InvalidField),
            "{op:?} {len}"
        );
    }
}

#[test]
fn write_protection_refuses_what_changes_the_device() {
    let mut buffers = Buffers::new();
    let bdev = rig::bdev(malloc(512));
    let mut channel = bdev.open(&rig::context()).unwrap();
    bdev.set_write_protected(true);
    assert!(bdev.geometry().read_only);
    let zeroes = Op::WriteZeroes {
        unmap: false,
        fua: false,
    };
    let caw = Op::CompareAndWrite { fua: false };
    for (op, len) in [
        (Op::Write { fua: false }, 512),
        (Op::Unmap, 0),
        (zeroes, 0),
        (caw, 1024),
    ] {
        let payload = if len == 0 {
            dma::Payload::None
        } else {
            buffers.filled(&vec![0; len])
        };
        let completion = rig::run(&mut channel, Io::with_payload(op, 0, 1, payload, 0));
        assert_eq!(completion.result, Err(IoError::WriteProtected), "{op:?}");
    }
    rig::run_ok(&mut channel, Io::new(Op::Flush, 0, 0, 0));
    rig::read(&mut channel, &mut buffers, 0, 1);
    bdev.set_write_protected(false);
    rig::write(&mut channel, &mut buffers, 0, &[1; 512]);
}

#[test]
fn one_io_more_than_the_depth_is_busy_and_the_others_end() {
    let narrow = Narrow {
        inner: malloc(512),
        max_transfer_blocks: 0,
        max_unmap_blocks: 0,
        max_verify_blocks: 0,
        boundary_blocks: 0,
        pending_every: 1,
    };
    let bdev = rig::bdev(Arc::new(narrow));
    let mut channel = bdev.open(&rig::context().with_queue_depth(4)).unwrap();
    let now = std::time::Instant::now();
    for tag in 0..4 {
        assert!(matches!(
            channel.submit(Io::new(Op::Verify, 0, 1, tag), now),
            Submit::Pending
        ));
    }
    let Submit::Done(refused) = channel.submit(Io::new(Op::Verify, 0, 1, 9), now) else {
        panic!("the fifth was taken");
    };
    assert_eq!(refused.result, Err(IoError::Busy));
    let mut done = Vec::new();
    assert_eq!(channel.poll(now, &mut done), 4);
    assert!(done.iter().all(|completion| completion.result.is_ok()));
    assert!(matches!(
        channel.submit(Io::new(Op::Verify, 0, 1, 9), now),
        Submit::Pending
    ));
}

#[test]
fn an_io_at_the_device_can_be_aborted_if_the_device_can() {
    let narrow = Narrow {
        inner: malloc(512),
        max_transfer_blocks: 0,
        max_unmap_blocks: 0,
        max_verify_blocks: 0,
        boundary_blocks: 0,
        pending_every: 1,
    };
    let bdev = rig::bdev(Arc::new(narrow));
    let mut channel = bdev.open(&rig::context()).unwrap();
    let now = std::time::Instant::now();
    assert!(matches!(
        channel.submit(Io::new(Op::Verify, 0, 1, 40), now),
        Submit::Pending
    ));
    assert!(matches!(
        channel.submit(Io::new(Op::Verify, 0, 1, 41), now),
        Submit::Pending
    ));
    assert!(channel.abort(41));
    assert!(!channel.abort(42));
    let mut done = Vec::new();
    channel.poll(now, &mut done);
    done.sort_by_key(|completion| completion.io.tag);
    assert_eq!(done[0].result, Ok(()));
    assert_eq!(done[1].result, Err(IoError::Aborted));
}

#[test]
fn huge_unmap_on_a_split_device_ends_without_keeping_its_thread() {
    let device = block::null::Null::new(block::null::NullOptions {
        block_size: 4096,
        block_count: u64::from(u32::MAX),
    });
    let narrow = Narrow {
        inner: device.unwrap(),
        max_transfer_blocks: 0,
        max_unmap_blocks: 1 << 20,
        max_verify_blocks: 0,
        boundary_blocks: 0,
        pending_every: 0,
    };
    let bdev = rig::bdev(Arc::new(narrow));
    let mut channel = bdev.open(&rig::context()).unwrap();
    let now = std::time::Instant::now();
    assert!(matches!(
        channel.submit(Io::new(Op::Unmap, 0, u32::MAX, 5), now),
        Submit::Pending
    ));
    let mut done = Vec::new();
    let mut polls = 0;
    while channel.poll(now, &mut done) == 0 {
        assert_eq!(
            channel.next_deadline(),
            Some(now),
            "nothing but polling moves it on"
        );
        polls += 1;
    }
    assert!(polls > 10, "{polls}");
    assert_eq!(done[0].result, Ok(()));
    assert_eq!(done[0].io.blocks, u32::MAX);
}

#[test]
fn null_reads_as_zeroes_and_takes_every_write() {
    let options = block::null::NullOptions {
        block_size: 512,
        block_count: 1 << 30,
    };
    let mut buffers = Buffers::new();
    let bdev = rig::bdev(block::null::Null::new(options).unwrap());
    let mut channel = bdev.open(&rig::context()).unwrap();
    rig::write(&mut channel, &mut buffers, 7, &[9; 4096]);
    assert_eq!(rig::read(&mut channel, &mut buffers, 7, 8), [0; 4096]);
    let lent = rig::run_ok(&mut channel, Io::new(Op::Read, 7, 8, 0));
    assert_eq!(rig::bytes(&lent.io.payload), [0; 4096]);
    let mut data = vec![0; 1024];
    data[700] = 1;
    let payload = buffers.filled(&data);
    let completion = rig::run(
        &mut channel,
        Io::with_payload(Op::Compare, 0, 2, payload, 0),
    );
    assert_eq!(
        completion.result,
        Err(IoError::CompareMismatch { offset_bytes: 700 })
    );
}

#[test]
fn malloc_grows_and_shrinks_under_an_open_channel() {
    let mut buffers = Buffers::new();
    let bdev = rig::bdev(malloc(512));
    let mut channel = bdev.open(&rig::context()).unwrap();
    rig::write(&mut channel, &mut buffers, BLOCKS - 1, &[1; 512]);
    bdev.resize(BLOCKS * 5).unwrap();
    let data: Vec<u8> = (0..4096).map(|i| i as u8).collect();
    // Across the seam of old and new memory: copied and lent.
    rig::write(&mut channel, &mut buffers, BLOCKS - 4, &data);
    assert_eq!(rig::read(&mut channel, &mut buffers, BLOCKS - 4, 8), data);
    let lent = rig::run_ok(&mut channel, Io::new(Op::Read, BLOCKS - 4, 8, 0));
    assert_eq!(rig::bytes(&lent.io.payload), data);
    rig::write(&mut channel, &mut buffers, BLOCKS * 5 - 1, &[3; 512]);
    bdev.resize(BLOCKS - 2).unwrap();
    let io = Io::new(Op::Read, BLOCKS - 2, 1, 0);
    assert_eq!(rig::run(&mut channel, io).result, Err(IoError::OutOfRange));
    bdev.resize(BLOCKS * 5).unwrap();
    assert_eq!(
        rig::read(&mut channel, &mut buffers, BLOCKS - 4, 2),
        data[..1024]
    );
    assert_eq!(
        rig::read(&mut channel, &mut buffers, BLOCKS - 2, 6),
        [0; 3072]
    );
    assert_eq!(
        rig::read(&mut channel, &mut buffers, BLOCKS * 5 - 1, 1),
        [0; 512]
    );
}

#[test]
fn statistics_count_what_was_done() {
    let mut buffers = Buffers::new();
    let bdev = rig::bdev(malloc(512));
    let mut channel = bdev.open(&rig::context()).unwrap();
    rig::write(&mut channel, &mut buffers, 0, &[1; 2048]);
    rig::read(&mut channel, &mut buffers, 0, 1);
    let _ = rig::run(&mut channel, Io::new(Op::Unmap, BLOCKS, 1, 0));
    drop(channel);
    let reading = bdev.statistics();
    let kind = |kind| {
        let counts = reading.kind(kind);
        (counts.ops, counts.bytes, counts.errors)
    };
    assert_eq!(kind(block::OpKind::Write), (1, 2048, 0));
    assert_eq!(kind(block::OpKind::Read), (1, 512, 0));
    assert_eq!(kind(block::OpKind::Unmap), (1, 0, 1));
    assert_eq!(reading.queue_depth, 0);
}
