//! Reactors from outside: what a program that uses the crate relies on.

#![expect(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

use std::cell::{Cell, RefCell};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use reactor::{
    CpuMask, Failure, MAX_POLLERS_PER_THREAD, PollOutcome, PollerId, PollerSpec, PollerState,
    Reactor, ReactorError, ReactorSet, ReactorState, SendError, SleepPolicy, Thread, ThreadContext,
    ThreadState,
};

/// Longer than anything here takes on a machine that still makes progress.
const LONG: Duration = Duration::from_secs(60);

fn one_reactor() -> ReactorSet {
    ReactorSet::builder().count(1).start().unwrap()
}

fn receive<T>(from: &Receiver<T>) -> T {
    from.recv_timeout(LONG).expect("it is sent within a minute")
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < LONG, "not within a minute: {what}");
        std::thread::yield_now();
    }
}

fn wait_until_asleep(reactor: &Reactor) {
    wait_until("the reactor sleeps", || {
        reactor.stats().state == ReactorState::Sleeping
    });
}

/// Runs `call` on the thread and returns what it returns.
fn on<T: Send + 'static>(
    thread: &Thread,
    call: impl FnOnce(&mut ThreadContext<'_>) -> T + Send + 'static,
) -> T {
    let (send, receiver) = channel();
    thread
        .send(move |context| send.send(call(context)).unwrap())
        .unwrap();
    receive(&receiver)
}

fn empty_thread(set: &ReactorSet, name: &str) -> Thread {
    set.spawn_thread(name, CpuMask::all(), |_| {}).unwrap()
}

fn stop(set: &ReactorSet) {
    set.stop(LONG).unwrap();
}

// Messages.

#[test]
fn messages_of_each_sender_run_in_order() {
    let set = one_reactor();
    let thread = empty_thread(&set, "inbox");
    let (send, receiver) = channel();
    std::thread::scope(|scope| {
        for sender in 0..3 {
            let (thread, send) = (&thread, send.clone());
            scope.spawn(move || {
                for number in 0..2000 {
                    let send = send.clone();
                    let mut message: reactor::Message =
                        Box::new(move |_| send.send((sender, number)).unwrap());
                    while let Err(refused) = thread.send_boxed(message) {
                        assert!(refused.is_full());
                        message = refused.into_message();
                        std::thread::yield_now();
                    }
                }
            });
        }
    });
    let mut next = [0; 3];
    for _ in 0..6000 {
        let (sender, number) = receive(&receiver);
        assert_eq!(number, next[sender]);
        next[sender] += 1;
    }
    wait_until("all are counted", || thread.stats().messages == 6000);
    stop(&set);
}

#[test]
fn a_full_mailbox_is_a_result_that_returns_the_message() {
    let set = ReactorSet::builder()
        .count(1)
        .mailbox_capacity(4)
        .start()
        .unwrap();
    let thread = empty_thread(&set, "inbox");
    let (entered, has_entered) = channel();
    let (release, released) = channel::<()>();
    thread
        .send(move |_| {
            entered.send(()).unwrap();
            released.recv().unwrap();
        })
        .unwrap();
    receive(&has_entered);
    let ran = Arc::new(AtomicUsize::new(0));
    let count = || {
        let ran = Arc::clone(&ran);
        move |_: &mut ThreadContext<'_>| {
            ran.fetch_add(1, Ordering::Relaxed);
        }
    };
    for _ in 0..4 {
        thread.send(count()).unwrap();
    }
    let refused = thread.send(count()).unwrap_err();
    assert!(matches!(&refused, SendError::Full { capacity: 4, .. }));
    assert_eq!(
        refused.to_string(),
        "mailbox of thread inbox is full (4 messages)"
    );
    assert_eq!(
        (thread.stats().mailbox_len, thread.stats().mailbox_full),
        (4, 1)
    );
    release.send(()).unwrap();
    wait_until("the mailbox is empty", || thread.stats().mailbox_len == 0);
    thread.send_boxed(refused.into_message()).unwrap();
    on(&thread, |_| ());
    assert_eq!(ran.load(Ordering::Relaxed), 5);
    stop(&set);
}

#[test]
fn messages_may_be_sent_before_the_thread_is_made() {
    let set = one_reactor();
    let busy = empty_thread(&set, "busy");
    let (release, released) = channel::<()>();
    busy.send(move |_| released.recv().unwrap()).unwrap();
    let (send, receiver) = channel();
    let init = send.clone();
    let thread = set
        .spawn_thread("late", CpuMask::all(), move |_| init.send("init").unwrap())
        .unwrap();
    assert_eq!(thread.state(), ThreadState::Starting);
    thread.send(move |_| send.send("message").unwrap()).unwrap();
    release.send(()).unwrap();
    assert_eq!(
        [receive(&receiver), receive(&receiver)],
        ["init", "message"]
    );
    stop(&set);
}

// Pollers.

#[test]
fn pollers_own_state_that_is_not_send_and_are_counted() {
    let set = one_reactor();
    let (send, receiver) = channel();
    let thread = set
        .spawn_thread("counted", CpuMask::all(), move |context| {
            let runs = Rc::new(Cell::new(0));
            let spec = PollerSpec::active("every_third_is_busy");
            context
                .register_poller(spec, move |context| {
                    runs.set(runs.get() + 1);
                    if runs.get() == 30 {
                        let me = context.poller();
                        context.pause_poller(me);
                        send.send(me).unwrap();
                    }
                    if runs.get() % 3 == 0 {
                        PollOutcome::Busy(5)
                    } else {
                        PollOutcome::Busy(0)
                    }
                })
                .unwrap();
        })
        .unwrap();
    let id = receive(&receiver);
    on(&thread, |_| ());
    let pollers = thread.pollers();
    assert_eq!(pollers.len(), 1);
    let poller = &pollers[0];
    assert_eq!(
        (poller.id, poller.name.as_str()),
        (id, "every_third_is_busy")
    );
    assert_eq!((poller.state, poller.period), (PollerState::Paused, None));
    assert_eq!(
        (poller.run_count, poller.busy_count, poller.work_count),
        (30, 10, 50)
    );
    assert_eq!(PollerId::from_number(id.get()), id);
    stop(&set);
}

#[test]
fn pollers_are_paused_resumed_and_unregistered_from_outside() {
    let set = one_reactor();
    let (send, ids) = channel();
    let dropped = Arc::new(AtomicBool::new(false));
    let on_drop = SetOnDrop(Arc::clone(&dropped));
    let thread = set
        .spawn_thread("steered", CpuMask::all(), move |context| {
            let poll = move |context: &mut reactor::PollContext<'_>| {
                let _ = &on_drop;
                context.keep_awake();
                PollOutcome::Idle
            };
            send.send(
                context
                    .register_poller(PollerSpec::active("p").paused(), poll)
                    .unwrap(),
            )
            .unwrap();
        })
        .unwrap();
    let id = receive(&ids);
    let runs = || thread.pollers()[0].run_count;
    let settle = || on(&thread, |_| ());
    settle();
    assert_eq!((runs(), thread.stats().paused_pollers), (0, 1));
    thread.resume_poller(id).unwrap();
    wait_until("it runs", || runs() > 10);
    assert_eq!(
        (thread.stats().active_pollers, thread.stats().paused_pollers),
        (1, 0)
    );
    thread.pause_poller(id).unwrap();
    settle();
    let paused_at = runs();
    settle();
    assert_eq!(runs(), paused_at);
    thread.resume_poller(id).unwrap();
    wait_until("it runs again", || runs() > paused_at);
    assert!(!dropped.load(Ordering::SeqCst));
    thread.unregister_poller(id).unwrap();
    settle();
    assert!(dropped.load(Ordering::SeqCst));
    assert!(thread.pollers().is_empty());
    assert!(!on(&thread, move |context| context.resume_poller(id)));
    assert!(!on(&thread, move |context| context.pause_poller(id)));
    assert!(!on(&thread, move |context| context.unregister_poller(id)));
    stop(&set);
}

#[test]
fn pollers_register_and_unregister_each_other_and_themselves() {
    let set = one_reactor();
    let (send, receiver) = channel();
    let thread = set
        .spawn_thread("family", CpuMask::all(), move |context| {
            let log = send.clone();
            let victim = context.register_poller(PollerSpec::active("victim"), move |_| {
                log.send("victim").unwrap();
                PollOutcome::Idle
            });
            let victim = victim.unwrap();
            let parent = move |context: &mut reactor::PollContext<'_>| {
                assert!(context.unregister_poller(victim));
                let log = send.clone();
                let child = move |context: &mut reactor::PollContext<'_>| {
                    log.send("child").unwrap();
                    let me = context.poller();
                    // Both at once: it must neither be listed twice nor be lost.
                    assert!(context.pause_poller(me) && context.resume_poller(me));
                    assert!(context.unregister_poller(me) && !context.unregister_poller(me));
                    PollOutcome::Idle
                };
                context
                    .register_poller(PollerSpec::active("child"), child)
                    .unwrap();
                send.send("parent").unwrap();
                let me = context.poller();
                context.unregister_poller(me);
                PollOutcome::Idle
            };
            context
                .register_poller(PollerSpec::active("parent"), parent)
                .unwrap();
        })
        .unwrap();
    let log: Vec<_> = (0..3).map(|_| receive(&receiver)).collect();
    assert_eq!(
        log,
        ["victim", "parent", "child"],
        "what is registered in a turn runs in it"
    );
    on(&thread, |_| ());
    assert!(thread.pollers().is_empty());
    assert!(
        receiver.recv_timeout(LONG).is_err(),
        "all that could send is dropped"
    );
    stop(&set);
}

#[test]
fn the_bound_of_pollers_is_an_error_that_names_it() {
    let set = one_reactor();
    let thread = empty_thread(&set, "crowded");
    let error = on(&thread, |context| {
        let mut register = || {
            let spec = PollerSpec::active("p").paused();
            context.register_poller(spec, |_| PollOutcome::Idle)
        };
        for _ in 0..MAX_POLLERS_PER_THREAD {
            register().unwrap();
        }
        register().unwrap_err()
    });
    assert_eq!(
        error.to_string(),
        "poller p: thread crowded already has 4096 pollers"
    );
    stop(&set);
}

// Time.

#[test]
fn a_timed_poller_never_runs_before_its_period_has_passed() {
    let set = one_reactor();
    let (send, receiver) = channel();
    let period = Duration::from_micros(700);
    let began = Instant::now();
    let thread = set
        .spawn_thread("timed", CpuMask::all(), move |context| {
            let poll = move |context: &mut reactor::PollContext<'_>| {
                // Its owner may have stopped to listen.
                let _ = send.send((context.now(), Instant::now()));
                PollOutcome::Busy(1)
            };
            context
                .register_poller(PollerSpec::timed("t", period), poll)
                .unwrap();
        })
        .unwrap();
    let mut last = None;
    for _ in 0..50 {
        let (turn, clock) = receive(&receiver);
        assert!(turn <= clock && turn >= began + period);
        assert!(last.is_none_or(|last| turn >= last + period));
        last = Some(turn);
    }
    let poller = &thread.pollers()[0];
    assert_eq!(
        (poller.period, poller.state),
        (Some(period), PollerState::Waiting)
    );
    assert_eq!(thread.stats().timed_pollers, 1);
    stop(&set);
}

#[test]
fn a_timed_poller_that_was_paused_waits_a_whole_period_after_resume() {
    let set = one_reactor();
    let thread = empty_thread(&set, "timed");
    let period = Duration::from_millis(2);
    let (send, ran) = channel();
    let id = on(&thread, move |context| {
        let poll = move |context: &mut reactor::PollContext<'_>| {
            let _ = send.send(context.now());
            PollOutcome::Idle
        };
        context
            .register_poller(PollerSpec::timed("t", period).paused(), poll)
            .unwrap()
    });
    let resumed = on(&thread, move |context| {
        context.resume_poller(id);
        // A second time changes nothing.
        context.resume_poller(id);
        context.now()
    });
    assert!(receive(&ran) >= resumed + period);
    stop(&set);
}

#[test]
fn a_timed_poller_may_ask_to_run_before_its_period() {
    let set = one_reactor();
    let (send, receiver) = channel();
    let (period, early) = (Duration::from_millis(100), Duration::from_millis(1));
    set.spawn_thread("early", CpuMask::all(), move |context| {
        let runs = Rc::new(Cell::new(0));
        let counted = Rc::clone(&runs);
        let mut last = None;
        let poll = move |context: &mut reactor::PollContext<'_>| {
            let now = context.now();
            assert!(last.is_none_or(|last| now >= last + early));
            last = Some(now);
            counted.set(counted.get() + 1);
            // The earliest counts.
            context.wake_at(now + LONG);
            context.wake_at(now + early);
            PollOutcome::Idle
        };
        context
            .register_poller(PollerSpec::timed("early", period), poll)
            .unwrap();
        let tell = move |_: &mut reactor::PollContext<'_>| {
            let _ = send.send(runs.get());
            PollOutcome::Idle
        };
        context
            .register_poller(PollerSpec::timed("twice the period", period * 2), tell)
            .unwrap();
    })
    .unwrap();
    // By its period alone it would have run twice.
    let runs = receive(&receiver);
    assert!(runs > 2, "{runs}");
    stop(&set);
}

#[test]
fn an_active_poller_is_woken_at_the_time_it_asked_for() {
    let set = one_reactor();
    let reactor = &set.reactors()[0];
    let (send, receiver) = channel();
    set.spawn_thread("deadline", CpuMask::all(), move |context| {
        let mut deadline = context.now() + Duration::from_millis(20);
        let poll = move |context: &mut reactor::PollContext<'_>| {
            if context.now() >= deadline {
                let _ = send.send(context.now() - deadline);
                deadline = context.now() + Duration::from_millis(20);
            }
            context.wake_at(deadline);
            PollOutcome::Idle
        };
        context
            .register_poller(PollerSpec::active("deadline"), poll)
            .unwrap();
    })
    .unwrap();
    for _ in 0..5 {
        receive(&receiver);
    }
    let stats = reactor.stats();
    assert!(stats.sleeps > 0 && stats.woken_by_deadline > 0, "{stats:?}");
    stop(&set);
}

#[test]
fn a_deadline_in_the_past_keeps_the_reactor_awake() {
    let set = one_reactor();
    let thread = empty_thread(&set, "late");
    on(&thread, |context| {
        let began = context.now();
        let poll = move |context: &mut reactor::PollContext<'_>| {
            context.wake_at(began);
            PollOutcome::Idle
        };
        context
            .register_poller(PollerSpec::active("late"), poll)
            .unwrap();
    });
    wait_until("it runs often", || thread.pollers()[0].run_count > 10_000);
    let before = set.reactors()[0].stats().sleeps;
    wait_until("it runs on", || thread.pollers()[0].run_count > 20_000);
    assert_eq!(set.reactors()[0].stats().sleeps, before);
    stop(&set);
}

// Sleep.

#[test]
fn a_sleeping_reactor_wakes_on_a_message() {
    let set = one_reactor();
    let reactor = &set.reactors()[0];
    let thread = empty_thread(&set, "inbox");
    for _ in 0..100 {
        wait_until_asleep(reactor);
        on(&thread, |_| ());
    }
    assert!(reactor.stats().woken_by_message > 0);
    stop(&set);
}

#[test]
fn a_sleeping_reactor_wakes_on_a_waker() {
    let set = one_reactor();
    let reactor = &set.reactors()[0];
    let inbox = Arc::new(AtomicUsize::new(0));
    let (send, receiver) = channel();
    let seen = Arc::clone(&inbox);
    let thread = set
        .spawn_thread("library", CpuMask::all(), move |context| {
            let poll = move |_: &mut reactor::PollContext<'_>| match seen.swap(0, Ordering::Relaxed)
            {
                0 => PollOutcome::Idle,
                work => {
                    let _ = send.send(work);
                    PollOutcome::Busy(work)
                }
            };
            context
                .register_poller(PollerSpec::active("library"), poll)
                .unwrap();
        })
        .unwrap();
    let waker = thread.waker().clone();
    assert!(waker.will_wake(reactor.waker()));
    for number in 1..=100 {
        wait_until_asleep(reactor);
        inbox.store(number, Ordering::Relaxed);
        waker.wake_by_ref();
        assert_eq!(receive(&receiver), number);
    }
    stop(&set);
}

#[test]
fn a_sleeping_reactor_wakes_on_a_descriptor() {
    let set = one_reactor();
    let reactor = &set.reactors()[0];
    let event = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
    let (send, receiver) = channel();
    let watched = Arc::clone(&event);
    let thread = empty_thread(&set, "readable");
    let wake_fd = on(&thread, move |context| {
        let wake_fd = context.register_wake_fd(watched.as_fd()).unwrap();
        let poll = move |_: &mut reactor::PollContext<'_>| match watched.read() {
            Ok(value) => {
                let _ = send.send(value);
                PollOutcome::Busy(1)
            }
            Err(_) => PollOutcome::Idle,
        };
        context
            .register_poller(PollerSpec::active("readable"), poll)
            .unwrap();
        wake_fd
    });
    for value in 1..=100 {
        wait_until_asleep(reactor);
        event.write(value).unwrap();
        assert_eq!(receive(&receiver), value);
    }
    assert!(reactor.stats().woken_by_fd > 0);
    assert!(on(&thread, move |context| context.unregister_wake_fd(wake_fd)));
    assert!(!on(&thread, move |context| context.unregister_wake_fd(wake_fd)));
    wait_until_asleep(reactor);
    let woken = reactor.stats().woken_by_fd;
    event.write(7).unwrap();
    on(&thread, |_| ());
    wait_until_asleep(reactor);
    assert_eq!(
        reactor.stats().woken_by_fd,
        woken,
        "it is not waited for any more"
    );
    stop(&set);
}

#[test]
fn a_descriptor_that_epoll_refuses_is_an_error_that_names_it() {
    let set = one_reactor();
    let thread = empty_thread(&set, "files");
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let error = on(&thread, move |context| {
        context.register_wake_fd(file.as_fd()).unwrap_err()
    });
    assert!(
        matches!(error, ReactorError::RegisterWakeFd { .. }),
        "{error}"
    );
    stop(&set);
}

#[test]
fn a_hundred_thousand_sleeps_and_wake_ups_between_two_reactors_lose_nothing() {
    const CYCLES: usize = 100_000;
    let set = ReactorSet::builder()
        .count(2)
        .idle_turns_before_sleep(0)
        .idle_time_before_sleep(Duration::ZERO..=Duration::ZERO)
        .start()
        .unwrap();
    let mask = CpuMask::all();
    let sides: Vec<_> = (set.reactors().iter())
        .map(|reactor| reactor.spawn_thread(reactor.name(), mask, |_| {}).unwrap())
        .collect();
    let (send, receiver) = channel();
    fn pass(to: Thread, back: Thread, left: usize, done: Sender<()>) {
        if left == 0 {
            done.send(()).unwrap();
            return;
        }
        let next = to.clone();
        to.send(move |_| pass(back, next, left - 1, done)).unwrap();
    }
    pass(sides[0].clone(), sides[1].clone(), CYCLES, send);
    receive(&receiver);
    for side in &sides {
        on(side, |_| ());
    }
    let messages: u64 = sides.iter().map(|side| side.stats().messages).sum();
    assert!(messages >= CYCLES as u64, "{messages}");
    let sleeps: u64 = set
        .reactors()
        .iter()
        .map(|reactor| reactor.stats().sleeps)
        .sum();
    println!("{CYCLES} messages, {sleeps} sleeps");
    assert!(sleeps > 0, "the test is to be about sleeping");
    stop(&set);
}

#[test]
fn an_idle_reactor_uses_less_than_one_percent_of_a_core() {
    let set = one_reactor();
    let reactor = &set.reactors()[0];
    let (send, ticks) = channel();
    set.spawn_thread("idle", CpuMask::all(), move |context| {
        context
            .register_poller(PollerSpec::active("a"), |_| PollOutcome::Idle)
            .unwrap();
        let tick = move |_: &mut reactor::PollContext<'_>| {
            let _ = send.send(());
            PollOutcome::Busy(1)
        };
        let period = Duration::from_millis(20);
        context
            .register_poller(PollerSpec::timed("housekeeping", period), tick)
            .unwrap();
    })
    .unwrap();
    receive(&ticks);
    let (began, before) = (Instant::now(), reactor.cpu_time().unwrap().total);
    for _ in 0..50 {
        receive(&ticks);
    }
    let (used, window) = (reactor.cpu_time().unwrap().total - before, began.elapsed());
    let share = used.as_secs_f64() / window.as_secs_f64();
    println!("{:.3} % of a core over {window:?}", share * 100.0);
    assert!(share < 0.01, "{used:?} of {window:?}");
    stop(&set);
}

#[test]
fn a_reactor_that_may_not_sleep_does_not() {
    let builder = ReactorSet::builder()
        .count(1)
        .sleep_policy(SleepPolicy::Never);
    let set = builder.start().unwrap();
    let reactor = &set.reactors()[0];
    wait_until("it turns", || reactor.stats().turns > 100_000);
    let stats = reactor.stats();
    assert_eq!((stats.sleeps, stats.state), (0, ReactorState::Polling));
    stop(&set);
}

// Accounting.

#[test]
fn busy_and_idle_add_up_and_never_go_back() {
    let set = one_reactor();
    let reactor = &set.reactors()[0];
    let thread = empty_thread(&set, "worker");
    let began = Instant::now();
    let mut last = reactor.stats();
    for round in 0..2000 {
        if round % 20 == 0 {
            on(&thread, |_| ());
        }
        let stats = reactor.stats();
        assert!(stats.busy >= last.busy && stats.idle >= last.idle);
        assert!(stats.asleep >= last.asleep && stats.turns >= last.turns);
        assert!(stats.idle >= stats.asleep);
        last = stats;
    }
    let before = reactor.stats();
    let worked = on(&thread, |_| {
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(3) {}
        began.elapsed()
    });
    on(&thread, |_| ());
    wait_until_asleep(reactor);
    let (after, total) = (reactor.stats(), began.elapsed() + Duration::from_secs(1));
    assert!(after.busy - before.busy >= worked);
    assert!(after.busy + after.idle <= total);
    let worker = thread.stats();
    assert!(
        worker.busy >= worked && worker.busy <= after.busy,
        "{worker:?}"
    );
    assert_eq!(worker.busy + worker.idle, worker.elapsed);
    stop(&set);
}

#[test]
fn busy_time_is_billed_to_the_thread_that_worked() {
    let set = one_reactor();
    let (idler, worker) = (empty_thread(&set, "idler"), empty_thread(&set, "worker"));
    let idle_after = empty_thread(&set, "idle after");
    for thread in [&idler, &idle_after] {
        on(thread, |context| {
            context
                .register_poller(PollerSpec::active("i"), |_| PollOutcome::Idle)
                .unwrap();
        });
    }
    // The clock is read once more: what they did so far is booked.
    on(&worker, |_| ());
    let before = [idler.stats().busy, idle_after.stats().busy];
    let worked = on(&worker, |_| {
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(5) {}
        began.elapsed()
    });
    wait_until("it is booked", || worker.stats().busy >= worked);
    assert_eq!([idler.stats().busy, idle_after.stats().busy], before);
    stop(&set);
}

#[test]
fn reactors_tell_their_place() {
    let set = ReactorSet::builder().count(2).start().unwrap();
    let allowed = CpuMask::allowed().unwrap();
    let mut tids = Vec::new();
    for (index, reactor) in set.reactors().iter().enumerate() {
        let thread = reactor
            .spawn_thread(format!("thread {index}"), CpuMask::all(), |_| {})
            .unwrap();
        let seen = on(&thread, |_| {
            let name = std::thread::current().name().map(str::to_owned);
            (
                name,
                nix::unistd::gettid().as_raw(),
                CpuMask::allowed().unwrap(),
            )
        });
        let stats = reactor.stats();
        assert_eq!((stats.index, stats.threads), (index, 1));
        assert_eq!(
            (seen.0.as_deref(), seen.1),
            (Some(stats.name.as_str()), stats.tid)
        );
        assert_eq!(stats.name, format!("reactor_{index}"));
        let core = stats.core.expect("an allowed core can be pinned to");
        assert!(allowed.contains(core));
        assert_eq!(seen.2, CpuMask::of(core));
        tids.push(stats.tid);
        assert_eq!(thread.stats().reactor, index);
    }
    assert_ne!(tids[0], tids[1]);
    let names: Vec<_> = set
        .threads()
        .iter()
        .map(|thread| thread.name().to_owned())
        .collect();
    assert_eq!(names, ["thread 0", "thread 1"]);
    stop(&set);
}

// Placement.

#[test]
fn threads_go_to_the_reactor_with_the_fewest_within_their_mask() {
    let set = ReactorSet::builder().count(2).start().unwrap();
    let names = ["a", "b", "c", "d"];
    let threads: Vec<_> = names.iter().map(|name| empty_thread(&set, name)).collect();
    let places: Vec<_> = threads
        .iter()
        .map(|thread| thread.reactor().index())
        .collect();
    assert_eq!(places, [0, 1, 0, 1]);
    let core = set.reactors()[1].core().unwrap();
    let pinned = set
        .spawn_thread("pinned", CpuMask::of(core), |_| {})
        .unwrap();
    assert_eq!(pinned.reactor().core(), Some(core));
    assert_eq!(pinned.stats().cpu_mask, CpuMask::of(core));
    let error = set
        .spawn_thread("nowhere", CpuMask::of(1000), |_| {})
        .unwrap_err();
    assert!(
        matches!(error, ReactorError::NoReactorInMask { .. }),
        "{error}"
    );
    stop(&set);
}

#[test]
fn a_core_that_cannot_be_had_leaves_the_reactor_unpinned_and_says_so() {
    let set = ReactorSet::builder()
        .cores(CpuMask::of(1023))
        .start()
        .unwrap();
    let stats = set.reactors()[0].stats();
    assert_eq!(stats.core, None);
    assert_eq!(stats.notices.len(), 1);
    assert!(
        stats.notices[0].contains("cannot be pinned to core 1023"),
        "{:?}",
        stats.notices
    );
    on(&empty_thread(&set, "anywhere"), |_| ());
    stop(&set);
}

#[test]
fn more_reactors_than_cores_share_them_and_say_so() {
    let cores = CpuMask::allowed().unwrap().len();
    let set = ReactorSet::builder().count(cores + 1).start().unwrap();
    let last = set.reactors().last().unwrap().stats();
    assert!(
        last.notices
            .iter()
            .any(|notice| notice.contains("shares core")),
        "{last:?}"
    );
    stop(&set);
}

#[test]
fn placements_that_cannot_be_are_refused() {
    let start = |builder: reactor::ReactorSetBuilder| builder.start().unwrap_err();
    assert!(matches!(
        start(ReactorSet::builder().count(0)),
        ReactorError::NoReactors
    ));
    let nowhere = ReactorSet::builder().cores(CpuMask::empty());
    assert!(matches!(start(nowhere), ReactorError::NoReactors));
    let everywhere = ReactorSet::builder().cores(CpuMask::all());
    assert!(matches!(
        start(everywhere),
        ReactorError::TooManyReactors { asked: 1024, .. }
    ));
    let many = ReactorSet::builder().count(usize::MAX);
    assert!(matches!(start(many), ReactorError::TooManyReactors { .. }));
}

// Ends.

struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

type DropLog = Arc<Mutex<Vec<(&'static str, Option<String>)>>>;

struct LogOnDrop(&'static str, DropLog);

impl Drop for LogOnDrop {
    fn drop(&mut self) {
        let os_thread = std::thread::current().name().map(str::to_owned);
        self.1.lock().unwrap().push((self.0, os_thread));
    }
}

fn poller_that_owns(context: &mut ThreadContext<'_>, state: LogOnDrop) {
    let poll = move |_: &mut reactor::PollContext<'_>| {
        let _ = &state;
        PollOutcome::Idle
    };
    context
        .register_poller(PollerSpec::active("owner"), poll)
        .unwrap();
}

#[test]
fn stop_ends_threads_last_made_first_and_drops_their_state_on_the_reactor() {
    let set = one_reactor();
    let log = DropLog::default();
    for names in [["first 1", "first 2"], ["second 1", "second 2"]] {
        let states = names.map(|name| LogOnDrop(name, Arc::clone(&log)));
        set.spawn_thread("owner", CpuMask::all(), move |context| {
            for state in states {
                poller_that_owns(context, state);
            }
        })
        .unwrap();
    }
    let thread = set.threads().remove(0);
    on(&set.threads()[1], |_| ());
    stop(&set);
    let on_reactor = Some("reactor_0".to_owned());
    let expected = ["second 1", "second 2", "first 1", "first 2"];
    assert_eq!(
        *log.lock().unwrap(),
        expected.map(|name| (name, on_reactor.clone()))
    );
    assert_eq!(thread.state(), ThreadState::Exited);
    assert!(matches!(thread.send(|_| {}), Err(SendError::Exited { .. })));
    let error = set
        .spawn_thread("late", CpuMask::all(), |_| {})
        .unwrap_err();
    assert_eq!(error.to_string(), "reactor_0 has stopped");
    assert_eq!(set.reactors()[0].stats().state, ReactorState::Stopped);
    assert!(
        set.reactors()[0].cpu_time().is_err(),
        "its OS thread is gone"
    );
    set.join().unwrap();
    stop(&set);
}

#[test]
fn a_reactor_that_does_not_stop_in_time_is_named() {
    let set = ReactorSet::builder().count(2).start().unwrap();
    let (entered, has_entered) = channel();
    let (release, released) = channel::<()>();
    set.reactors()[1]
        .spawn_thread("stuck", CpuMask::all(), move |_| {
            entered.send(()).unwrap();
            released.recv().unwrap();
        })
        .unwrap();
    receive(&has_entered);
    let error = set.stop(Duration::from_millis(1)).unwrap_err();
    let ReactorError::StopTimeout { reactors, .. } = &error else {
        panic!("{error}")
    };
    // The other one may or may not have made it within the millisecond.
    assert!(reactors.contains("reactor_1"), "{error}");
    release.send(()).unwrap();
    stop(&set);
}

#[test]
fn an_exited_thread_is_gone_with_all_it_had() {
    let set = one_reactor();
    let log = DropLog::default();
    let state = LogOnDrop("state", Arc::clone(&log));
    let event = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
    let watched = Arc::clone(&event);
    let thread = set
        .spawn_thread("brief", CpuMask::all(), move |context| {
            poller_that_owns(context, state);
            context.register_wake_fd(watched.as_fd()).unwrap();
            let period = Duration::from_millis(1);
            context
                .register_poller(PollerSpec::timed("tick", period), |_| PollOutcome::Idle)
                .unwrap();
        })
        .unwrap();
    let id = thread.id();
    on(&thread, |_| ());
    thread.exit().unwrap();
    wait_until("it has exited", || thread.state() == ThreadState::Exited);
    assert_eq!(log.lock().unwrap().len(), 1);
    assert!(set.threads().is_empty() && thread.pollers().is_empty());
    let elapsed = thread.stats().elapsed;
    // Its descriptor is readable for ever and its timer would be due: neither wakes the reactor.
    event.write(1).unwrap();
    wait_until_asleep(&set.reactors()[0]);
    let sleeps = set.reactors()[0].stats().sleeps;
    let next = empty_thread(&set, "next");
    on(&next, |_| ());
    wait_until_asleep(&set.reactors()[0]);
    assert!(set.reactors()[0].stats().sleeps <= sleeps + 2);
    assert_eq!(thread.stats().elapsed, elapsed);
    assert!(next.id() > id, "numbers are not used again");
    stop(&set);
}

#[test]
fn a_thread_may_exit_in_its_first_closure() {
    let set = one_reactor();
    let thread = set
        .spawn_thread("brief", CpuMask::all(), |context| context.exit())
        .unwrap();
    wait_until("it has exited", || thread.state() == ThreadState::Exited);
    wait_until("it is not listed", || set.threads().is_empty());
    stop(&set);
}

#[test]
fn what_runs_on_a_reactor_can_make_threads_and_send() {
    let set = one_reactor();
    let (send, receiver) = channel();
    set.spawn_thread("parent", CpuMask::all(), move |context| {
        let reactor = context.reactor().clone();
        let child = reactor
            .spawn_thread("child", CpuMask::all(), |_| {})
            .unwrap();
        let parent = context.thread().clone();
        let answer = move |_: &mut ThreadContext<'_>| {
            parent.send(move |_| send.send("back").unwrap()).unwrap();
        };
        child.send(answer).unwrap();
    })
    .unwrap();
    assert_eq!(receive(&receiver), "back");
    stop(&set);
}

// Panics. Each prints its panic to standard error: that is the hook's, and right.

fn with_failures() -> (ReactorSet, Receiver<Failure>) {
    let (send, failures) = channel();
    let send = Mutex::new(send);
    let builder = ReactorSet::builder().count(1);
    let builder = builder.on_failure(move |failure| {
        send.lock().unwrap().send(failure.clone()).unwrap();
    });
    (builder.start().unwrap(), failures)
}

#[test]
fn a_panic_in_a_poller_ends_its_thread_only() {
    let (set, failures) = with_failures();
    let bystander = empty_thread(&set, "bystander");
    let dropped = Arc::new(AtomicBool::new(false));
    let states = [
        SetOnDrop(Arc::clone(&dropped)),
        SetOnDrop(Arc::clone(&dropped)),
    ];
    let thread = set
        .spawn_thread("victim", CpuMask::all(), move |context| {
            let [mine, other] = states;
            let bad = move |_: &mut reactor::PollContext<'_>| -> PollOutcome {
                let _ = &mine;
                panic!("on purpose: {}", 7)
            };
            let period = Duration::from_millis(1);
            context
                .register_poller(PollerSpec::timed("bad", period), bad)
                .unwrap();
            let good = move |_: &mut reactor::PollContext<'_>| {
                let _ = &other;
                PollOutcome::Idle
            };
            context
                .register_poller(PollerSpec::active("good"), good)
                .unwrap();
        })
        .unwrap();
    let failure = receive(&failures);
    assert_eq!(failure.thread, Some((thread.id(), "victim".to_owned())));
    assert_eq!(failure.poller.as_deref(), Some("bad"));
    let text = format!(
        "thread victim (id {}) on reactor_0, poller bad: on purpose: 7",
        thread.id()
    );
    assert_eq!(failure.to_string(), text);
    assert_eq!(thread.state(), ThreadState::Failed);
    assert!(matches!(thread.send(|_| {}), Err(SendError::Exited { .. })));
    assert!(
        !dropped.load(Ordering::SeqCst),
        "a device may still write to its memory"
    );
    on(&bystander, |_| ());
    wait_until_asleep(&set.reactors()[0]);
    on(&bystander, |_| ());
    assert_eq!(set.threads().len(), 1);
    stop(&set);
}

#[test]
fn a_panic_in_a_message_or_first_closure_ends_the_thread() {
    let (set, failures) = with_failures();
    let thread = empty_thread(&set, "message");
    thread.send(|_| panic!("in a message")).unwrap();
    let failure = receive(&failures);
    assert_eq!(
        (failure.poller, failure.message.as_str()),
        (None, "in a message")
    );
    let thread = set
        .spawn_thread("init", CpuMask::all(), |_| panic!("in init"))
        .unwrap();
    assert_eq!(
        receive(&failures).thread,
        Some((thread.id(), "init".to_owned()))
    );
    assert!(set.threads().is_empty());
    on(&empty_thread(&set, "next"), |_| ());
    stop(&set);
}

struct PanicOnDrop;

impl Drop for PanicOnDrop {
    fn drop(&mut self) {
        panic!("in a drop");
    }
}

#[test]
fn a_panic_in_a_drop_is_a_failure_of_the_thread_that_ends() {
    let (set, failures) = with_failures();
    let register = |context: &mut ThreadContext<'_>| {
        let state = RefCell::new(PanicOnDrop);
        let poll = move |_: &mut reactor::PollContext<'_>| {
            let _ = &state;
            PollOutcome::Idle
        };
        context
            .register_poller(PollerSpec::active("grudge"), poll)
            .unwrap();
    };
    let thread = set.spawn_thread("exits", CpuMask::all(), register).unwrap();
    thread.exit().unwrap();
    assert_eq!(
        receive(&failures).thread,
        Some((thread.id(), "exits".to_owned()))
    );
    assert_eq!(thread.state(), ThreadState::Failed);
    // Also while the reactor stops, which it does.
    let thread = set
        .spawn_thread("stopped", CpuMask::all(), register)
        .unwrap();
    on(&thread, |_| ());
    stop(&set);
    assert_eq!(receive(&failures).message, "in a drop");
}

#[test]
fn a_panic_of_one_timed_poller_does_not_cost_another_its_turn() {
    let (set, failures) = with_failures();
    let (send, ran) = channel();
    let period = Duration::from_millis(1);
    let bad = empty_thread(&set, "bad");
    let good = empty_thread(&set, "good");
    on(&bad, move |context| {
        let poll = |_: &mut reactor::PollContext<'_>| -> PollOutcome { panic!("on purpose") };
        context
            .register_poller(PollerSpec::timed("bad", period).paused(), poll)
            .unwrap();
    });
    on(&good, move |context| {
        let poll = move |_: &mut reactor::PollContext<'_>| {
            let _ = send.send(());
            PollOutcome::Idle
        };
        context
            .register_poller(PollerSpec::timed("good", period).paused(), poll)
            .unwrap();
    });
    let ids = [&bad, &good].map(|thread| thread.pollers()[0].id);
    // Both are resumed and both are overdue when the timers are looked at next.
    let (entered, has_entered) = channel();
    let (release, released) = channel::<()>();
    bad.send(move |context| {
        context.resume_poller(ids[0]);
        entered.send(()).unwrap();
        released.recv().unwrap();
    })
    .unwrap();
    receive(&has_entered);
    good.send(move |context| {
        context.resume_poller(ids[1]);
        while context.now().elapsed() < 2 * period {}
    })
    .unwrap();
    release.send(()).unwrap();
    receive(&failures);
    receive(&ran);
    receive(&ran);
    assert_eq!(good.state(), ThreadState::Running);
    stop(&set);
}

#[test]
fn messages_that_panic_when_dropped_do_not_stop_the_end_of_a_thread() {
    let (set, failures) = with_failures();
    let thread = empty_thread(&set, "grudges");
    let (entered, has_entered) = channel();
    let (release, released) = channel::<()>();
    thread
        .send(move |context| {
            entered.send(()).unwrap();
            released.recv().unwrap();
            context.exit();
        })
        .unwrap();
    receive(&has_entered);
    for _ in 0..3 {
        let grudge = PanicOnDrop;
        thread.send(move |_| std::mem::forget(grudge)).unwrap();
    }
    release.send(()).unwrap();
    assert_eq!(receive(&failures).message, "in a drop");
    assert_eq!(
        (thread.state(), thread.stats().mailbox_len),
        (ThreadState::Failed, 0)
    );
    on(&empty_thread(&set, "next"), |_| ());
    stop(&set);
}

#[test]
fn a_reactor_that_fails_is_reported_and_hangs_nobody() {
    let failures = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&failures);
    let builder = ReactorSet::builder().count(2).on_failure(move |failure| {
        seen.lock().unwrap().push(failure.clone());
        // The callback runs on the reactor: its panic is one of the reactor itself.
        assert!(failure.thread.is_none(), "the callback fails");
    });
    let set = builder.start().unwrap();
    let [failing, other] = [&set.reactors()[0], &set.reactors()[1]];
    let victim = failing
        .spawn_thread("victim", CpuMask::all(), |_| {})
        .unwrap();
    let bystander = failing
        .spawn_thread("bystander", CpuMask::all(), |_| {})
        .unwrap();
    let elsewhere = other
        .spawn_thread("elsewhere", CpuMask::all(), |_| {})
        .unwrap();
    on(&bystander, |_| ());
    victim.send(|_| panic!("on purpose")).unwrap();
    wait_until("the reactor has failed", || {
        bystander.state() == ThreadState::Failed
    });
    assert_eq!(failing.stats().state, ReactorState::Failed);
    assert!(matches!(
        bystander.send(|_| {}),
        Err(SendError::Exited { .. })
    ));
    on(&elsewhere, |_| ());
    let error = set.stop(LONG).unwrap_err();
    assert_eq!(error.to_string(), "reactor_0 failed: the callback fails");
    let reported: Vec<_> = (failures.lock().unwrap().iter())
        .map(|failure| failure.thread.as_ref().map(|(_, name)| name.clone()))
        .collect();
    assert_eq!(reported, [Some("victim".to_owned()), None]);
}
