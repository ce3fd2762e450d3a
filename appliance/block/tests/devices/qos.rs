//! Limits, on a simulated clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use block::null::{Null, NullOptions};
use block::{Bdev, BdevChannel, Io, IoError, Op, QosLimits, Submit};

use crate::rig::{self, Buffers, CountingWaker};

fn disk() -> Arc<Bdev> {
    let options = NullOptions {
        block_size: 512,
        block_count: 1 << 20,
    };
    rig::bdev(Null::new(options).unwrap())
}

/// A host that keeps a number of I/Os waiting, on a clock that jumps from deadline to deadline.
struct Host {
    channel: BdevChannel,
    start: Instant,
    done: Vec<block::Completion>,
}

impl Host {
    fn new(bdev: &Arc<Bdev>, start: Instant) -> Self {
        let channel = bdev.open(&rig::context()).unwrap();
        Self {
            channel,
            start,
            done: Vec::new(),
        }
    }

    fn at(&self, at: Duration) -> Instant {
        self.start + at
    }

    /// Keeps `depth` verifies of one block in flight until just before `end`. Returns how many ended.
    fn saturate(&mut self, from: Duration, end: Duration, depth: usize, late: Duration) -> u64 {
        let mut now = self.at(from);
        let end = self.at(end);
        let mut ended = 0;
        while now < end {
            self.done.clear();
            ended += self.channel.poll(now, &mut self.done) as u64;
            // Bounded by the limit: each round either ends at the depth or lets one go.
            while self.channel.in_flight() < depth {
                if let Submit::Done(completion) = self.channel.submit(io(), now) {
                    assert_eq!(completion.result, Ok(()));
                    ended += 1;
                }
            }
            let deadline = self.channel.next_deadline().expect("a limit is set");
            assert!(deadline > now, "a deadline in the past would spin");
            now = deadline + late;
        }
        ended
    }
}

fn io() -> Io {
    Io::new(Op::Verify, 0, 1, 0)
}

fn iops(rw_ios_per_sec: u64) -> QosLimits {
    QosLimits {
        rw_ios_per_sec,
        ..QosLimits::default()
    }
}

#[test]
fn iops_are_exact_from_one_to_fifty_thousand() {
    for (rate, seconds) in [
        (1, 100),
        (7, 100),
        (100, 30),
        (999, 10),
        (1000, 10),
        (50_000, 2),
    ] {
        let bdev = disk();
        let start = Instant::now() + Duration::from_secs(1);
        bdev.set_qos(&iops(rate), start).unwrap();
        let mut host = Host::new(&bdev, start);
        let end = Duration::from_secs(seconds);
        let ended = host.saturate(Duration::ZERO, end, 4, Duration::ZERO);
        assert_eq!(ended, rate * seconds, "{rate} IOPS over {seconds} s");
    }
}

#[test]
fn polls_that_come_late_do_not_lower_the_rate() {
    for (rate, late_us) in [(7, 5_000), (999, 900), (1000, 3_000), (50_000, 700)] {
        let bdev = disk();
        let start = Instant::now();
        bdev.set_qos(&iops(rate), start).unwrap();
        let mut host = Host::new(&bdev, start);
        let late = Duration::from_micros(late_us);
        let ended = host.saturate(Duration::ZERO, Duration::from_secs(10), 256, late);
        let expected = rate * 10;
        let slack = rate * late_us / 1_000_000 + 1;
        assert!(
            ended <= expected && ended >= expected - slack,
            "{rate}: {ended}"
        );
    }
}

#[test]
fn two_channels_share_one_limit() {
    let bdev = disk();
    let start = Instant::now();
    bdev.set_qos(&iops(1000), start).unwrap();
    let mut hosts = [Host::new(&bdev, start), Host::new(&bdev, start)];
    let mut ended = [0u64; 2];
    let mut done = Vec::new();
    for step in 0..100_000u32 {
        let now = start + Duration::from_micros(20) * step;
        for (host, ended) in hosts.iter_mut().zip(&mut ended) {
            *ended += host.channel.poll(now, &mut done) as u64;
            done.clear();
            if host.channel.in_flight() < 2
                && let Submit::Done(_) = host.channel.submit(io(), now)
            {
                *ended += 1;
            }
        }
    }
    let total = ended[0] + ended[1];
    assert!((1995..=2001).contains(&total), "{total}");
}

#[test]
fn burst_lets_saved_up_ios_go_at_once_and_no_more() {
    let bdev = disk();
    let start = Instant::now();
    bdev.set_qos(
        &QosLimits {
            burst_ms: 50,
            ..iops(1000)
        },
        start,
    )
    .unwrap();
    let mut host = Host::new(&bdev, start);
    // 50 ms at 1,000 per second are 50, and one is always free.
    let mut at_once = 0;
    for _ in 0..100 {
        at_once += u64::from(matches!(host.channel.submit(io(), start), Submit::Done(_)));
    }
    assert_eq!(at_once, 51);
    // The rest goes at the rate.
    let mut done = Vec::new();
    host.channel
        .poll(start + Duration::from_millis(10), &mut done);
    assert_eq!(done.len(), 10);
    // A long pause saves up one burst, not more.
    host.channel.poll(start + Duration::from_secs(1), &mut done);
    assert_eq!(done.len(), 49);
    let later = start + Duration::from_secs(60);
    let at_once = (0..100).filter(|_| matches!(host.channel.submit(io(), later), Submit::Done(_)));
    assert_eq!(at_once.count(), 51);
}

#[test]
fn byte_limits_hold_for_their_direction_only() {
    let mut buffers = Buffers::new();
    let bdev = disk();
    let start = Instant::now();
    let limits = QosLimits {
        w_bytes_per_sec: 1 << 20,
        ..QosLimits::default()
    };
    bdev.set_qos(&limits, start).unwrap();
    let mut host = Host::new(&bdev, start);
    for _ in 0..100 {
        assert!(
            matches!(host.channel.submit(io(), start), Submit::Done(_)),
            "reads are free"
        );
    }
    // 64 KiB writes at 1 MiB/s: one each 62.5 ms.
    let mut write = |host: &mut Host, now| {
        let payload = buffers.filled(&[1; 65_536]);
        let io = Io::with_payload(Op::Write { fua: false }, 0, 128, payload, 1);
        host.channel.submit(io, now)
    };
    assert!(matches!(write(&mut host, start), Submit::Done(_)));
    assert!(matches!(write(&mut host, start), Submit::Pending));
    let deadline = host.channel.next_deadline().unwrap();
    assert_eq!(deadline - start, Duration::from_micros(62_500));
    let mut done = Vec::new();
    assert_eq!(
        host.channel
            .poll(deadline - Duration::from_nanos(1), &mut done),
        0
    );
    assert_eq!(host.channel.poll(deadline, &mut done), 1);
}

#[test]
fn total_bytes_limit_counts_both_directions() {
    let bdev = disk();
    let start = Instant::now();
    let limits = QosLimits {
        rw_bytes_per_sec: 51_200,
        ..QosLimits::default()
    };
    bdev.set_qos(&limits, start).unwrap();
    let mut host = Host::new(&bdev, start);
    let ended = host.saturate(Duration::ZERO, Duration::from_secs(10), 4, Duration::ZERO);
    assert!((999..=1000).contains(&ended), "{ended}");
}

#[test]
fn of_several_limits_the_tightest_holds_and_the_others_are_not_charged_in_vain() {
    let bdev = disk();
    let start = Instant::now();
    let limits = QosLimits {
        rw_ios_per_sec: 1000,
        rw_bytes_per_sec: 51_200,
        r_bytes_per_sec: 1 << 30,
        ..QosLimits::default()
    };
    bdev.set_qos(&limits, start).unwrap();
    let mut host = Host::new(&bdev, start);
    let end = Duration::from_secs(10);
    let ended = host.saturate(Duration::ZERO, end, 64, Duration::ZERO);
    assert!((998..=1000).contains(&ended), "{ended}");
}

#[test]
fn a_change_applies_at_once_also_to_who_waits() {
    let waker = Arc::new(CountingWaker::default());
    let bdev = disk();
    let start = Instant::now();
    bdev.set_qos(&iops(1), start).unwrap();
    let context = block::ChannelContext::new("test", Arc::clone(&waker).into());
    let mut channel = bdev.open(&context).unwrap();
    assert!(matches!(channel.submit(io(), start), Submit::Done(_)));
    for _ in 0..10 {
        assert!(matches!(channel.submit(io(), start), Submit::Pending));
    }
    let mut done = Vec::new();
    let later = start + Duration::from_millis(5);
    assert_eq!(channel.poll(later, &mut done), 0);
    bdev.set_qos(&iops(1000), later).unwrap();
    assert_eq!(
        waker.0.load(std::sync::atomic::Ordering::SeqCst),
        1,
        "a sleeper must be woken"
    );
    assert_eq!(channel.poll(later, &mut done), 1);
    assert_eq!(channel.poll(later + Duration::from_millis(3), &mut done), 3);
    bdev.set_qos(&QosLimits::default(), later).unwrap();
    assert_eq!(channel.poll(later + Duration::from_millis(3), &mut done), 6);
    assert!(matches!(channel.submit(io(), later), Submit::Done(_)));
    assert_eq!(channel.next_deadline(), None);
}

#[test]
fn waiting_ios_go_first_come_first_served() {
    let bdev = disk();
    let start = Instant::now();
    bdev.set_qos(&iops(100), start).unwrap();
    let mut channel = bdev.open(&rig::context()).unwrap();
    for tag in 0..5 {
        let _ = channel.submit(Io::new(Op::Verify, 0, 1, tag), start);
    }
    let mut done = Vec::new();
    for ms in 0..50 {
        channel.poll(start + Duration::from_millis(ms), &mut done);
    }
    let tags: Vec<u64> = done.iter().map(|completion| completion.io.tag).collect();
    assert_eq!(tags, [1, 2, 3, 4]);
}

#[test]
fn flush_is_not_limited() {
    let bdev = disk();
    let start = Instant::now();
    bdev.set_qos(&iops(1), start).unwrap();
    let mut channel = bdev.open(&rig::context()).unwrap();
    let _ = channel.submit(io(), start);
    assert!(matches!(channel.submit(io(), start), Submit::Pending));
    assert!(matches!(
        channel.submit(Io::new(Op::Flush, 0, 0, 0), start),
        Submit::Done(_)
    ));
}

#[test]
fn a_waiting_io_can_be_aborted() {
    let bdev = disk();
    let start = Instant::now();
    bdev.set_qos(&iops(1), start).unwrap();
    let mut channel = bdev.open(&rig::context()).unwrap();
    let _ = channel.submit(io(), start);
    assert!(matches!(
        channel.submit(Io::new(Op::Verify, 0, 1, 8), start),
        Submit::Pending
    ));
    assert!(!channel.abort(9));
    assert!(channel.abort(8));
    let mut done = Vec::new();
    assert_eq!(channel.poll(start, &mut done), 1);
    assert_eq!((done[0].io.tag, done[0].result), (8, Err(IoError::Aborted)));
    assert_eq!(channel.in_flight(), 0);
}

#[test]
fn latency_counts_the_wait() {
    let bdev = disk();
    let start = Instant::now();
    bdev.set_qos(&iops(10), start).unwrap();
    let mut channel = bdev.open(&rig::context()).unwrap();
    let _ = channel.submit(io(), start);
    let _ = channel.submit(io(), start);
    let mut done = Vec::new();
    assert_eq!(bdev.statistics().queue_depth, 1);
    channel.poll(start + Duration::from_millis(100), &mut done);
    let reading = bdev.statistics();
    let verify = reading.kind(block::OpKind::Verify);
    assert_eq!((verify.ops, verify.latency_max_ns), (2, 100_000_000));
    assert_eq!((verify.latency_min_ns, reading.queue_depth), (Some(0), 0));
}

#[test]
fn an_impossible_burst_is_refused() {
    let limits = QosLimits {
        burst_ms: 60_001,
        ..iops(1)
    };
    let error = disk().set_qos(&limits, Instant::now()).unwrap_err();
    assert_eq!(error.to_string(), "option burst_ms is 60001: at most 60000");
}
