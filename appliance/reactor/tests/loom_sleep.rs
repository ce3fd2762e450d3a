//! The hand-off of `reactor::sleep` in all interleavings: no wake-up is lost.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p reactor --release --test loom_sleep`.
//!
//! A lost wake-up leaves the sleeper waiting for ever, which loom reports as a deadlock. The
//! mutants show that the model can see one: each leaves out one step of the hand-off and must fail.

#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

// Not loom's: its drop is a step of the model, and a deadlock that is found in a drop aborts.
use std::sync::Arc;

use loom::model::Builder;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use reactor::sleep::{Notify, SleepGate};

/// What an eventfd does: a notification is kept until the next wait takes it.
#[derive(Default)]
struct Signal {
    raised: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    fn wait(&self) {
        let mut raised = self.raised.lock().unwrap();
        while !*raised {
            raised = self.changed.wait(raised).unwrap();
        }
        *raised = false;
    }
}

impl Notify for Signal {
    fn notify(&self) {
        *self.raised.lock().unwrap() = true;
        self.changed.notify_one();
    }
}

/// The gate, or a mutant of it.
trait HandOff: Send + Sync + 'static {
    /// Whether the sleeper looks at its work between announcing and sleeping.
    const LOOKS_AGAIN: bool = true;

    fn new() -> Self;
    fn wake(&self);
    fn announce(&self);
    fn is_notified(&self) -> bool;
    fn retract(&self);
    fn wait(&self);
}

impl HandOff for SleepGate<Signal> {
    fn new() -> Self {
        SleepGate::new(Signal::default())
    }
    fn wake(&self) {
        SleepGate::wake(self);
    }
    fn announce(&self) {
        SleepGate::announce(self);
    }
    fn is_notified(&self) -> bool {
        SleepGate::is_notified(self)
    }
    fn retract(&self) {
        SleepGate::retract(self);
    }
    fn wait(&self) {
        self.notifier().wait();
    }
}

/// The gate written again, with steps to leave out.
struct Mutant<const SENDER_FENCE: bool, const SLEEPER_FENCE: bool, const SECOND_LOOK: bool> {
    state: AtomicU32,
    signal: Signal,
}

impl<const SENDER_FENCE: bool, const SLEEPER_FENCE: bool, const SECOND_LOOK: bool> HandOff
    for Mutant<SENDER_FENCE, SLEEPER_FENCE, SECOND_LOOK>
{
    const LOOKS_AGAIN: bool = SECOND_LOOK;

    fn new() -> Self {
        Mutant {
            state: AtomicU32::new(0),
            signal: Signal::default(),
        }
    }
    fn wake(&self) {
        if SENDER_FENCE {
            fence(Ordering::SeqCst);
        }
        if self.state.load(Ordering::Relaxed) == 1
            && self
                .state
                .compare_exchange(1, 2, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        {
            self.signal.notify();
        }
    }
    fn announce(&self) {
        self.state.store(1, Ordering::Relaxed);
        if SLEEPER_FENCE {
            fence(Ordering::SeqCst);
        }
    }
    fn is_notified(&self) -> bool {
        self.state.load(Ordering::Relaxed) == 2
    }
    fn retract(&self) {
        self.state.store(0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
    fn wait(&self) {
        self.signal.wait();
    }
}

/// Work as weakly ordered as can be: only the hand-off orders it.
struct Work(Vec<AtomicBool>);

impl Work {
    fn new(count: usize) -> Work {
        Work((0..count).map(|_| AtomicBool::new(false)).collect())
    }

    fn publish(&self, item: usize) {
        self.0[item].store(true, Ordering::Relaxed);
    }

    fn take(&self) -> usize {
        self.0
            .iter()
            .filter(|item| {
                item.load(Ordering::Relaxed) && {
                    item.store(false, Ordering::Relaxed);
                    true
                }
            })
            .count()
    }
}

/// The reactor's loop, until it has done all work.
fn sleep_until_done<H: HandOff>(gate: &H, work: &Work, total: usize) {
    let mut done = work.take();
    while done < total {
        gate.announce();
        let found = if H::LOOKS_AGAIN { work.take() } else { 0 };
        done += found;
        if found == 0 && !gate.is_notified() {
            gate.wait();
        }
        gate.retract();
        done += work.take();
    }
}

/// Senders that publish `per_sender` items each and wake after each of them.
fn model<H: HandOff>(senders: usize, per_sender: usize, preemption_bound: Option<usize>) {
    let mut builder = Builder::new();
    builder.preemption_bound = preemption_bound;
    builder.check(move || {
        let total = senders * per_sender;
        let shared = Arc::new((H::new(), Work::new(total)));
        let threads: Vec<_> = (0..senders)
            .map(|sender| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let (gate, work) = &*shared;
                    for item in 0..per_sender {
                        work.publish(sender * per_sender + item);
                        gate.wake();
                    }
                })
            })
            .collect();
        sleep_until_done(&shared.0, &shared.1, total);
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

#[test]
fn one_sender_loses_no_wake_up() {
    model::<SleepGate<Signal>>(1, 1, None);
}

#[test]
fn one_sender_loses_none_of_two_wake_ups() {
    model::<SleepGate<Signal>>(1, 2, Some(4));
}

#[test]
fn two_senders_lose_no_wake_up() {
    model::<SleepGate<Signal>>(2, 1, Some(3));
}

#[test]
fn the_mutant_with_every_step_is_right() {
    model::<Mutant<true, true, true>>(1, 1, None);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_senders_fence_a_wake_up_is_lost() {
    model::<Mutant<false, true, true>>(1, 1, None);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_sleepers_fence_a_wake_up_is_lost() {
    model::<Mutant<true, false, true>>(1, 1, None);
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_second_look_a_wake_up_is_lost() {
    model::<Mutant<true, true, false>>(1, 1, None);
}
