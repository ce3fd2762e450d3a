//! What a turn, a message and a wake-up cost. `cargo bench -p reactor --bench turn`.
//!
//! Each figure is the best of several runs: the machine's noise only ever adds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use reactor::wheel::TimerWheel;
use reactor::{CpuMask, PollOutcome, PollerSpec, ReactorSet, SleepPolicy, ThreadContext};

const RUNS: usize = 7;

fn main() {
    // `cargo test --benches` only wants to know that it runs.
    let scale = if std::env::args().any(|arg| arg == "--bench") {
        1
    } else {
        1000
    };
    clock(2_000_000 / scale);
    wheel(1_000_000 / scale);
    for (threads, pollers, busy) in [
        (1, 0, false),
        (1, 1, false),
        (1, 8, false),
        (4, 1, false),
        (1, 1, true),
        (4, 1, true),
    ] {
        turns(threads, pollers, busy, 2_000_000 / scale);
    }
    wake_while_awake(2_000_000 / scale);
    messages(1_000_000 / scale);
    round_trips(
        "message and answer, both polling",
        SleepPolicy::Never,
        200_000 / scale,
    );
    round_trips(
        "message and answer, asleep",
        SleepPolicy::Adaptive,
        20_000 / scale,
    );
}

fn report(what: &str, best: Duration, count: u64) {
    println!(
        "{what:<48} {:>9.1} ns",
        best.as_nanos() as f64 / count as f64
    );
}

fn best_of(mut run: impl FnMut() -> Duration) -> Duration {
    (0..RUNS)
        .map(|_| run())
        .min()
        .expect("there is at least one run")
}

fn clock(count: u64) {
    let best = best_of(|| {
        let began = Instant::now();
        for _ in 0..count {
            std::hint::black_box(Instant::now());
        }
        began.elapsed()
    });
    report("reading the clock", best, count);
}

fn wheel(count: u64) {
    let mut wheel = TimerWheel::new();
    let mut now_ns = 0u64;
    for resident in 0..1000u64 {
        wheel.insert(u64::MAX / 2 + resident, resident);
    }
    let cancels = best_of(|| {
        let began = Instant::now();
        for timer in 0..count {
            let key = wheel.insert(now_ns + 1_000 + (timer * 7919) % 10_000_000, timer);
            wheel.cancel(key);
        }
        began.elapsed()
    });
    report("timer wheel: insert and cancel", cancels, count);
    let expiries = best_of(|| {
        let began = Instant::now();
        for timer in 0..count {
            wheel.insert(now_ns + 1_000 + (timer * 7919) % 1_000_000, timer);
            now_ns += 1_000;
            wheel.advance(now_ns, |_, timer| {
                std::hint::black_box(timer);
            });
        }
        began.elapsed()
    });
    report(
        "timer wheel: insert and expire within 1 ms",
        expiries,
        count,
    );
}

fn start(policy: SleepPolicy) -> ReactorSet {
    let builder = ReactorSet::builder()
        .count(1)
        .sleep_policy(policy)
        .mailbox_capacity(4096);
    builder.start().expect("a reactor starts")
}

/// Runs `init` on a new thread of the set's first reactor and waits for what it sends.
fn on_reactor<T: Send + 'static>(
    set: &ReactorSet,
    init: impl FnOnce(&mut ThreadContext<'_>, std::sync::mpsc::Sender<T>) + Send + 'static,
) -> T {
    let (send, receive) = channel();
    let spawned = set.spawn_thread("bench", CpuMask::all(), |context| init(context, send));
    spawned.expect("the reactor takes a thread");
    receive.recv().expect("the thread answers")
}

fn turns(threads: usize, pollers: usize, busy: bool, count: u64) {
    let outcome = if busy {
        PollOutcome::Busy(1)
    } else {
        PollOutcome::Idle
    };
    let set = start(SleepPolicy::Never);
    for thread in 0..threads {
        let init = move |context: &mut ThreadContext<'_>, done: std::sync::mpsc::Sender<()>| {
            for poller in 0..pollers {
                let spec = PollerSpec::active(format!("poller {thread}.{poller}"));
                let mut polled = 0u64;
                let poll = move |_: &mut reactor::PollContext<'_>| {
                    polled = std::hint::black_box(polled + 1);
                    outcome
                };
                context.register_poller(spec, poll).expect("there is room");
            }
            let _ = done.send(());
        };
        on_reactor(&set, init);
    }
    let reactor = &set.reactors()[0];
    // The reactor counts its turns and its time itself; this side sleeps meanwhile.
    let best = (0..RUNS)
        .map(|_| {
            let (before, began) = (reactor.stats().turns, Instant::now());
            std::thread::sleep(Duration::from_nanos(count * 20));
            let turns = (reactor.stats().turns - before).max(1);
            began.elapsed().as_nanos() as f64 / turns as f64
        })
        .fold(f64::INFINITY, f64::min);
    let kind = if busy { "busy" } else { "idle" };
    let what = format!("turn, {threads} threads with {pollers} {kind} pollers each");
    println!("{what:<48} {best:>9.1} ns");
}

fn wake_while_awake(count: u64) {
    let set = start(SleepPolicy::Never);
    let waker = set.reactors()[0].waker();
    let best = best_of(|| {
        let began = Instant::now();
        for _ in 0..count {
            std::hint::black_box(waker).wake_by_ref();
        }
        began.elapsed()
    });
    report("waking a reactor that is awake", best, count);
}

fn messages(count: u64) {
    let set = start(SleepPolicy::Never);
    let thread = set
        .spawn_thread("bench", CpuMask::all(), |_| {})
        .expect("there is room");
    let best = best_of(|| {
        let received = Arc::new(AtomicU64::new(0));
        let began = Instant::now();
        for _ in 0..count {
            let received = Arc::clone(&received);
            let mut message: reactor::Message = Box::new(move |_| {
                received.store(received.load(Ordering::Relaxed) + 1, Ordering::Release);
            });
            while let Err(refused) = thread.send_boxed(message) {
                message = refused.into_message();
                std::hint::spin_loop();
            }
        }
        while received.load(Ordering::Acquire) < count {
            std::hint::spin_loop();
        }
        began.elapsed()
    });
    report("message, one sender as fast as it can", best, count);
}

fn round_trips(what: &str, policy: SleepPolicy, count: u64) {
    let set = start(policy);
    let thread = set
        .spawn_thread("bench", CpuMask::all(), |_| {})
        .expect("there is room");
    let reactor = &set.reactors()[0];
    let asleep = |sleeps| policy == SleepPolicy::Never || reactor.stats().sleeps > sleeps;
    let mut total = Vec::new();
    for _ in 0..count {
        let sleeps = reactor.stats().sleeps;
        let answered = Arc::new(AtomicU64::new(0));
        let answer = Arc::clone(&answered);
        let began = Instant::now();
        let sent = thread.send(move |_| answer.store(1, Ordering::Release));
        sent.expect("an empty mailbox takes a message");
        while answered.load(Ordering::Acquire) == 0 {
            std::hint::spin_loop();
        }
        total.push(began.elapsed());
        while !asleep(sleeps) {
            std::thread::yield_now();
        }
    }
    total.sort_unstable();
    let median = total[total.len() / 2];
    println!("{:<48} {:>9} ns (median)", what, median.as_nanos());
}
