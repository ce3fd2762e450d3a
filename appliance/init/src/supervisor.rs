//! Which service is to be started, ended, or left alone. Pure: time and events come in, orders go
//! out; process 1 carries them out.

use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ring::Ring;
use crate::service::{Ready, Service};

/// First pause before a service is started again, in ms; it doubles with each crash.
const BACKOFF_MIN_MS: u64 = 250;
/// Longest pause, in ms.
const BACKOFF_MAX_MS: u64 = 30_000;
/// Crashes within this many ms count towards being held; one that ran longer begins anew.
const WINDOW_MS: u64 = 60_000;
/// How long a service that was silent may take to die of SIGABRT, its crash report included, in ms.
const ABORT_MS: u64 = 10_000;
/// Process 1 turns every second. When it did not for so many ms, reports may have waited for it.
const DEAF_MS: u64 = 5_000;
/// Lines of a service that are told when it is held.
const LAST_LINES: usize = 3;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit {code}"),
            Self::Signal(number) => match nix::sys::signal::Signal::try_from(*number) {
                Ok(signal) => write!(f, "signal {signal}"),
                Err(_) => write!(f, "signal {number}"),
            },
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Order {
    /// Start the service.
    Start(usize),
    /// SIGTERM to its process group.
    Terminate(usize),
    /// SIGABRT to its process, also when that was stopped: it leaves a crash report.
    Abort(usize),
    /// SIGKILL to everything that it started.
    Kill(usize),
    /// Tell it.
    Tell { wrong: bool, text: String },
}

/// Where a service is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// For others to be ready.
    Waiting {
        since_ms: u64,
    },
    /// For the end of a pause.
    Pausing {
        until_ms: u64,
    },
    /// Told to start.
    Starting {
        since_ms: u64,
    },
    Ready,
    /// It ran for long and did not say that it is ready.
    Late,
    Ending {
        kill_at_ms: u64,
        killed: bool,
        again: bool,
        /// It is ended because its last report of health is so many ms old.
        silent_ms: Option<u64>,
    },
    /// Did its work.
    Done,
    /// Somebody ended it.
    Ended,
    /// Crashed too often.
    Held,
}

/// Where a service is in its life, as told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// For others to be ready.
    Waiting,
    /// It crashed and is started again after a pause.
    Pausing,
    /// It runs and is not ready.
    Starting,
    /// It runs and is ready.
    Ready,
    /// It runs, and should have been ready long ago.
    Late,
    /// It was told to end.
    Ending,
    /// It did its work and ended.
    Done,
    /// It was ended and stays so.
    Ended,
    /// It crashed too often and stays so until somebody starts it.
    Held,
}

impl fmt::Display for ServiceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Waiting => "waiting",
            Self::Pausing => "pausing",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Late => "late",
            Self::Ending => "ending",
            Self::Done => "done",
            Self::Ended => "ended",
            Self::Held => "held",
        })
    }
}

/// A service as it is told over the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// Name.
    pub name: String,
    /// Where it is in its life.
    pub state: ServiceState,
    /// The same in a sentence, with the reason.
    pub text: String,
    /// Its process.
    pub pid: Option<i32>,
    /// Times that it was started.
    pub starts: u64,
    /// Times that it ended although nobody asked.
    pub crashes: u64,
    /// Milliseconds since its state changed.
    pub for_ms: u64,
    /// Its last report of health.
    pub health: Option<Health>,
}

/// A report of health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether it is well.
    pub ok: bool,
    /// In a sentence.
    pub text: String,
    /// How old the report is, in ms.
    pub age_ms: u64,
}

#[derive(Debug)]
struct Unit {
    service: Service,
    phase: Phase,
    changed_ms: u64,
    pid: Option<i32>,
    started_ms: u64,
    starts: u64,
    crashes: u64,
    /// When it crashed of late.
    recent_ms: VecDeque<u64>,
    backoff_ms: u64,
    why: String,
    health: Option<(u64, bool, String)>,
    /// Times that it was ended for its silence since its last report.
    silences: u32,
}

/// All services.
#[derive(Debug)]
pub(crate) struct Supervisor {
    units: Vec<Unit>,
    /// Nothing is started any more.
    closing: bool,
    turned_ms: u64,
    /// Nobody is silent for what was not heard before this.
    deaf_until_ms: u64,
}

impl Supervisor {
    pub(crate) fn new(services: Vec<Service>, now_ms: u64) -> Self {
        let unit = |service| Unit {
            service,
            phase: Phase::Waiting { since_ms: now_ms },
            changed_ms: now_ms,
            pid: None,
            started_ms: 0,
            starts: 0,
            crashes: 0,
            recent_ms: VecDeque::new(),
            backoff_ms: BACKOFF_MIN_MS,
            why: String::new(),
            health: None,
            silences: 0,
        };
        Self {
            units: services.into_iter().map(unit).collect(),
            closing: false,
            turned_ms: now_ms,
            deaf_until_ms: now_ms,
        }
    }

    pub(crate) fn service(&self, at: usize) -> &Service {
        &self.units[at].service
    }

    pub(crate) fn len(&self) -> usize {
        self.units.len()
    }

    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.units.iter().position(|unit| unit.service.name == name)
    }

    pub(crate) fn by_pid(&self, pid: i32) -> Option<usize> {
        self.units.iter().position(|unit| unit.pid == Some(pid))
    }

    pub(crate) fn pid(&self, at: usize) -> Option<i32> {
        self.units[at].pid
    }

    /// Services whose readiness a socket tells, and that do not answer yet.
    pub(crate) fn to_probe(&self) -> Vec<(usize, String)> {
        let open = self.units.iter().enumerate().filter_map(|(at, unit)| {
            let unready = matches!(unit.phase, Phase::Starting { .. } | Phase::Late);
            match &unit.service.ready {
                Ready::Socket(path) if unready && unit.pid.is_some() => Some((at, path.clone())),
                _ => None,
            }
        });
        open.collect()
    }

    /// What is due now.
    pub(crate) fn tick(&mut self, now_ms: u64) -> Vec<Order> {
        let mut orders = Vec::new();
        if now_ms.saturating_sub(self.turned_ms) > DEAF_MS {
            self.deaf_until_ms = now_ms;
        }
        self.turned_ms = now_ms;
        for at in 0..self.units.len() {
            if let Some(silent_ms) = self.silence(at, now_ms) {
                self.end_silent(at, silent_ms, now_ms, &mut orders);
                continue;
            }
            let phase = self.units[at].phase.clone();
            match phase {
                Phase::Waiting { since_ms } if !self.closing => {
                    self.start_if_free(at, since_ms, now_ms, &mut orders);
                }
                Phase::Pausing { until_ms } if !self.closing && now_ms >= until_ms => {
                    self.order_start(at, now_ms, &mut orders);
                }
                Phase::Starting { since_ms } => {
                    let unit = &mut self.units[at];
                    let limit = unit.service.ready_timeout_ms;
                    if now_ms.saturating_sub(since_ms) >= limit && unit.pid.is_some() {
                        unit.enter(Phase::Late, now_ms);
                        unit.why = format!("not ready after {} s", limit / 1000);
                        orders.push(unit.tell(true));
                    }
                }
                Phase::Ending {
                    kill_at_ms,
                    killed: false,
                    again,
                    silent_ms,
                } if now_ms >= kill_at_ms => {
                    let unit = &mut self.units[at];
                    unit.phase = Phase::Ending {
                        kill_at_ms,
                        killed: true,
                        again,
                        silent_ms,
                    };
                    let limit = kill_at_ms.saturating_sub(unit.changed_ms) / 1000;
                    unit.why = format!("did not end within {limit} s and is killed");
                    orders.push(unit.tell(true));
                    orders.push(Order::Kill(at));
                }
                _ => {}
            }
        }
        orders
    }

    /// How old the last report of a service is, when that is too old.
    fn silence(&self, at: usize, now_ms: u64) -> Option<u64> {
        let unit = &self.units[at];
        let limit_ms = unit.service.health_timeout_ms?;
        let (at_ms, ..) = unit.health.as_ref()?;
        // While it starts or ends other limits hold.
        let is_meant = matches!(unit.phase, Phase::Ready | Phase::Late) && unit.pid.is_some();
        if !is_meant || self.closing {
            return None;
        }
        let since_ms = unit.changed_ms.max(*at_ms).max(self.deaf_until_ms);
        let is_silent = now_ms.saturating_sub(since_ms) > limit_ms;
        is_silent.then(|| now_ms.saturating_sub(*at_ms))
    }

    fn end_silent(&mut self, at: usize, silent_ms: u64, now_ms: u64, orders: &mut Vec<Order>) {
        let unit = &mut self.units[at];
        unit.silences += 1;
        unit.enter(
            Phase::Ending {
                kill_at_ms: now_ms + ABORT_MS,
                killed: false,
                again: true,
                silent_ms: Some(silent_ms),
            },
            now_ms,
        );
        unit.why = format!("no report of health for {} s: ended", silent_ms / 1000);
        orders.push(unit.tell(true));
        orders.push(Order::Abort(at));
    }

    fn start_if_free(&mut self, at: usize, since_ms: u64, now_ms: u64, orders: &mut Vec<Order>) {
        let missing: Vec<&Unit> = self.units[at]
            .service
            .after
            .iter()
            .filter_map(|name| self.units.iter().find(|unit| unit.service.name == *name))
            .filter(|unit| !unit.lets_others_start())
            .collect();
        let Some(first) = missing.first() else {
            self.order_start(at, now_ms, orders);
            return;
        };
        // A wait is bounded by what is waited for; should that be a circle, by this.
        let limit: u64 = missing
            .iter()
            .map(|unit| unit.service.ready_timeout_ms)
            .sum();
        let why = format!("waits for {}", first.service.name);
        if now_ms.saturating_sub(since_ms) < limit.saturating_add(1000) {
            self.units[at].why = why;
            return;
        }
        let name = &self.units[at].service.name;
        orders.push(Order::Tell {
            wrong: true,
            text: format!("{name}: {why} for too long and is started without"),
        });
        self.order_start(at, now_ms, orders);
    }

    fn order_start(&mut self, at: usize, now_ms: u64, orders: &mut Vec<Order>) {
        let unit = &mut self.units[at];
        unit.enter(Phase::Starting { since_ms: now_ms }, now_ms);
        unit.started_ms = now_ms;
        unit.starts += 1;
        unit.why.clear();
        orders.push(Order::Start(at));
    }

    /// The service runs as process `pid`.
    pub(crate) fn started(&mut self, at: usize, pid: i32, now_ms: u64) {
        let unit = &mut self.units[at];
        unit.pid = Some(pid);
        if unit.service.ready == Ready::Started && !unit.service.once {
            unit.enter(Phase::Ready, now_ms);
        }
    }

    /// The service could not be started at all.
    pub(crate) fn start_failed(&mut self, at: usize, why: &str, now_ms: u64) -> Vec<Order> {
        self.crashed(at, &format!("cannot be started: {why}"), &[], now_ms)
    }

    /// The service printed a line.
    pub(crate) fn printed(&mut self, at: usize, line: &str, now_ms: u64) -> Vec<Order> {
        match &self.units[at].service.ready {
            Ready::Line(wanted) if line.contains(wanted.as_str()) => self.is_ready(at, now_ms),
            _ => Vec::new(),
        }
    }

    /// The service is ready.
    pub(crate) fn is_ready(&mut self, at: usize, now_ms: u64) -> Vec<Order> {
        let unit = &mut self.units[at];
        if !matches!(unit.phase, Phase::Starting { .. } | Phase::Late) {
            return Vec::new();
        }
        unit.enter(Phase::Ready, now_ms);
        unit.why = format!("ready after {} ms", now_ms.saturating_sub(unit.started_ms));
        vec![unit.tell(false)]
    }

    /// The service's process has ended. `ring` holds what it said.
    pub(crate) fn exited(&mut self, at: usize, exit: Exit, ring: &Ring, now_ms: u64) -> Vec<Order> {
        let unit = &mut self.units[at];
        unit.pid = None;
        match unit.phase {
            Phase::Ending {
                again: true,
                silent_ms: Some(silent_ms),
                ..
            } => {
                let silent_s = silent_ms / 1000;
                let why = format!("no report of health for {silent_s} s, ended with {exit}");
                self.crashed(at, &why, &ring.last(LAST_LINES), now_ms)
            }
            Phase::Ending { again, killed, .. } => {
                unit.why = format!("ended with {exit}");
                if killed {
                    unit.why.push_str(", killed");
                }
                if again && !self.closing {
                    unit.enter(Phase::Waiting { since_ms: now_ms }, now_ms);
                    unit.recent_ms.clear();
                    unit.backoff_ms = BACKOFF_MIN_MS;
                } else {
                    unit.enter(Phase::Ended, now_ms);
                }
                vec![unit.tell(killed)]
            }
            _ if unit.service.once && exit == Exit::Code(0) => {
                unit.enter(Phase::Done, now_ms);
                unit.why = "done".to_owned();
                Vec::new()
            }
            _ => self.crashed(at, &exit.to_string(), &ring.last(LAST_LINES), now_ms),
        }
    }

    fn crashed(&mut self, at: usize, why: &str, last: &[&str], now_ms: u64) -> Vec<Order> {
        let closing = self.closing;
        let unit = &mut self.units[at];
        unit.pid = None;
        unit.crashes += 1;
        if closing {
            unit.enter(Phase::Ended, now_ms);
            unit.why = format!("ended with {why}");
            return vec![unit.tell(true)];
        }
        if now_ms.saturating_sub(unit.started_ms) >= WINDOW_MS {
            unit.recent_ms.clear();
            unit.backoff_ms = BACKOFF_MIN_MS;
        }
        unit.recent_ms.push_back(now_ms);
        while unit
            .recent_ms
            .front()
            .is_some_and(|at_ms| now_ms.saturating_sub(*at_ms) > WINDOW_MS)
        {
            unit.recent_ms.pop_front();
        }
        let count = unit.recent_ms.len();
        let said = if last.is_empty() {
            String::new()
        } else {
            format!(", last lines: {}", last.join(" | "))
        };
        if count >= unit.service.crashes_max.max(1) as usize {
            let times = if count == 1 { "time" } else { "times" };
            unit.enter(Phase::Held, now_ms);
            unit.why = format!(
                "held: crashed {count} {times} in {} s, last: {why}{said}",
                WINDOW_MS / 1000
            );
        } else {
            let pause_ms = unit.backoff_ms;
            unit.backoff_ms = (pause_ms * 2).min(BACKOFF_MAX_MS);
            unit.enter(
                Phase::Pausing {
                    until_ms: now_ms + pause_ms,
                },
                now_ms,
            );
            unit.why = format!("crashed: {why}; starts again in {pause_ms} ms{said}");
        }
        vec![unit.tell(true)]
    }

    /// Ends the service, if it runs.
    pub(crate) fn stop(&mut self, at: usize, now_ms: u64) -> Vec<Order> {
        self.end(at, false, now_ms)
    }

    /// Ends the service, if it runs, and starts it: also one that is held.
    pub(crate) fn restart(&mut self, at: usize, now_ms: u64) -> Vec<Order> {
        self.end(at, true, now_ms)
    }

    fn end(&mut self, at: usize, again: bool, now_ms: u64) -> Vec<Order> {
        let unit = &mut self.units[at];
        unit.silences = 0;
        match (&mut unit.phase, unit.pid) {
            (Phase::Ending { again: then, .. }, Some(_)) => {
                *then = again;
                Vec::new()
            }
            (_, Some(_)) => {
                let kill_at_ms = now_ms + unit.service.stop_timeout_ms;
                unit.enter(
                    Phase::Ending {
                        kill_at_ms,
                        killed: false,
                        again,
                        silent_ms: None,
                    },
                    now_ms,
                );
                unit.why = "told to end".to_owned();
                vec![Order::Terminate(at)]
            }
            (_, None) if again => {
                unit.recent_ms.clear();
                unit.backoff_ms = BACKOFF_MIN_MS;
                unit.enter(Phase::Waiting { since_ms: now_ms }, now_ms);
                Vec::new()
            }
            (Phase::Held | Phase::Done, None) => Vec::new(),
            (_, None) => {
                unit.enter(Phase::Ended, now_ms);
                Vec::new()
            }
        }
    }

    /// From now on nothing is started.
    pub(crate) fn close(&mut self) {
        self.closing = true;
    }

    /// Ends those whose turn it is.
    pub(crate) fn stop_turn(&mut self, turn: u8, now_ms: u64) -> Vec<Order> {
        let due = |unit: &Unit| unit.service.stop_turn == turn;
        let due: Vec<usize> = (0..self.units.len())
            .filter(|at| due(&self.units[*at]))
            .collect();
        due.into_iter()
            .flat_map(|at| self.stop(at, now_ms))
            .collect()
    }

    /// Turns that there are, in order.
    pub(crate) fn turns(&self) -> Vec<u8> {
        let mut turns: Vec<u8> = self
            .units
            .iter()
            .map(|unit| unit.service.stop_turn)
            .collect();
        turns.sort_unstable();
        turns.dedup();
        turns
    }

    /// Whether anything of this turn runs.
    pub(crate) fn turn_runs(&self, turn: u8) -> bool {
        let mut units = self.units.iter();
        units.any(|unit| unit.service.stop_turn == turn && unit.pid.is_some())
    }

    /// The service says how it is.
    pub(crate) fn report_health(&mut self, at: usize, ok: bool, text: &str, now_ms: u64) {
        let text: String = text.chars().take(500).collect();
        let unit = &mut self.units[at];
        unit.health = Some((now_ms, ok, text));
        unit.silences = 0;
    }

    /// The first service that is silent although it was ended for that: it does not end, or was started again and
    /// said nothing since. And how old its last report is.
    pub(crate) fn stale(&self, now_ms: u64) -> Option<(&str, u64)> {
        self.units.iter().find_map(|unit| {
            let (at_ms, ..) = unit.health.as_ref()?;
            let limit_ms = unit.service.health_timeout_ms?;
            let is_stale = match unit.phase {
                // One that is held or was ended on purpose waits for a person, who is told why.
                Phase::Ended | Phase::Held | Phase::Done => false,
                Phase::Ending {
                    silent_ms: Some(_), ..
                } if now_ms.saturating_sub(unit.changed_ms) > limit_ms => true,
                _ => unit.silences > 1,
            };
            let age_ms = now_ms.saturating_sub(*at_ms);
            is_stale.then_some((unit.service.name.as_str(), age_ms))
        })
    }

    /// All of it, for people and programs.
    pub(crate) fn reports(&self, now_ms: u64) -> Vec<ServiceReport> {
        self.units.iter().map(|unit| unit.report(now_ms)).collect()
    }

    /// When something is due at the latest without an event.
    pub(crate) fn due_ms(&self) -> Option<u64> {
        let due = self.units.iter().filter_map(|unit| match unit.phase {
            Phase::Pausing { until_ms } if !self.closing => Some(until_ms),
            Phase::Starting { since_ms } => Some(since_ms + unit.service.ready_timeout_ms),
            Phase::Ending {
                kill_at_ms,
                killed: false,
                ..
            } => Some(kill_at_ms),
            _ => None,
        });
        due.min()
    }
}

impl Unit {
    fn enter(&mut self, phase: Phase, now_ms: u64) {
        self.phase = phase;
        self.changed_ms = now_ms;
    }

    fn tell(&self, wrong: bool) -> Order {
        Order::Tell {
            wrong,
            text: format!("{}: {}", self.service.name, self.why),
        }
    }

    /// Those that come after it may start: it is ready, or there is no sense in waiting.
    fn lets_others_start(&self) -> bool {
        matches!(
            self.phase,
            Phase::Ready | Phase::Late | Phase::Done | Phase::Ended | Phase::Held
        )
    }

    fn report(&self, now_ms: u64) -> ServiceReport {
        let state = match self.phase {
            Phase::Waiting { .. } => ServiceState::Waiting,
            Phase::Pausing { .. } => ServiceState::Pausing,
            Phase::Starting { .. } => ServiceState::Starting,
            Phase::Ready => ServiceState::Ready,
            Phase::Late => ServiceState::Late,
            Phase::Ending { .. } => ServiceState::Ending,
            Phase::Done => ServiceState::Done,
            Phase::Ended => ServiceState::Ended,
            Phase::Held => ServiceState::Held,
        };
        ServiceReport {
            name: self.service.name.clone(),
            state,
            text: self.why.clone(),
            pid: self.pid,
            starts: self.starts,
            crashes: self.crashes,
            for_ms: now_ms.saturating_sub(self.changed_ms),
            health: self.health.as_ref().map(|(at_ms, ok, text)| Health {
                ok: *ok,
                text: text.clone(),
                age_ms: now_ms.saturating_sub(*at_ms),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::RING_BYTES_MAX;

    fn daemon(name: &str) -> Service {
        Service::new(name, "/bin/x")
    }

    fn said(lines: &[&str]) -> Ring {
        let mut ring = Ring::new(RING_BYTES_MAX);
        for line in lines {
            ring.push((*line).to_owned(), 0);
        }
        ring
    }

    fn state(supervisor: &Supervisor, at: usize) -> ServiceState {
        supervisor.reports(0)[at].state
    }

    #[test]
    fn a_crash_is_followed_by_a_pause_that_doubles() {
        let mut supervisor = Supervisor::new(
            vec![Service {
                crashes_max: 99,
                ..daemon("a")
            }],
            0,
        );
        let mut now = 0;
        let mut pauses = Vec::new();
        assert_eq!(supervisor.tick(now), [Order::Start(0)]);
        for pid in 1..12 {
            supervisor.started(0, pid, now);
            supervisor.exited(0, Exit::Code(1), &said(&[]), now);
            assert_eq!(supervisor.tick(now), []);
            let due = supervisor.due_ms().unwrap();
            pauses.push(due - now);
            assert_eq!(supervisor.tick(due - 1), []);
            assert_eq!(supervisor.tick(due), [Order::Start(0)]);
            now = due;
        }
        assert_eq!(pauses[..4], [250, 500, 1000, 2000]);
        assert_eq!(*pauses.last().unwrap(), BACKOFF_MAX_MS);
        // Running well for long begins anew.
        supervisor.started(0, 99, now);
        supervisor.exited(0, Exit::Code(1), &said(&[]), now + WINDOW_MS);
        assert_eq!(supervisor.due_ms(), Some(now + WINDOW_MS + BACKOFF_MIN_MS));
    }

    #[test]
    fn a_crash_loop_is_held_with_its_last_words_until_somebody_starts_it() {
        let mut supervisor = Supervisor::new(vec![daemon("a")], 0);
        let ring = said(&["old", "one", "two", "cannot open the state"]);
        let mut now = 0;
        for pid in 1..=5 {
            assert_eq!(supervisor.tick(now), [Order::Start(0)]);
            supervisor.started(0, pid, now);
            supervisor.exited(0, Exit::Code(1), &ring, now);
            now = supervisor.due_ms().unwrap_or(now);
        }
        let report = &supervisor.reports(now)[0];
        assert_eq!(report.state, ServiceState::Held);
        assert_eq!(
            report.text,
            "held: crashed 5 times in 60 s, last: exit 1, last lines: one | two | cannot open the state"
        );
        assert_eq!(supervisor.tick(now + 1_000_000), []);
        assert_eq!(supervisor.restart(0, now), []);
        assert_eq!(supervisor.tick(now), [Order::Start(0)]);
    }

    #[test]
    fn crashes_far_apart_are_not_a_loop() {
        let mut supervisor = Supervisor::new(vec![daemon("a")], 0);
        let mut now = 0;
        for pid in 1..20 {
            assert_eq!(supervisor.tick(now), [Order::Start(0)]);
            supervisor.started(0, pid, now);
            now += 20_000;
            supervisor.exited(0, Exit::Signal(9), &said(&[]), now);
            assert_eq!(state(&supervisor, 0), ServiceState::Pausing, "{pid}");
            now = supervisor.due_ms().unwrap();
        }
    }

    #[test]
    fn a_service_waits_for_those_before_it_but_not_for_one_that_is_held() {
        let first = Service {
            once: true,
            crashes_max: 1,
            ..daemon("first")
        };
        let second = Service {
            after: vec!["first".to_owned()],
            ..daemon("second")
        };
        let mut supervisor = Supervisor::new(vec![first, second], 0);
        assert_eq!(supervisor.tick(0), [Order::Start(0)]);
        supervisor.started(0, 1, 0);
        assert_eq!(supervisor.tick(1), []);
        assert_eq!(supervisor.reports(1)[1].text, "waits for first");
        supervisor.exited(0, Exit::Code(3), &said(&[]), 2);
        assert_eq!(
            supervisor.reports(2)[0].text,
            "held: crashed 1 time in 60 s, last: exit 3"
        );
        assert_eq!(supervisor.tick(3), [Order::Start(1)]);
    }

    #[test]
    fn services_that_wait_for_each_other_are_started_after_a_while() {
        let a = Service {
            after: vec!["b".to_owned()],
            ..daemon("a")
        };
        let b = Service {
            after: vec!["a".to_owned()],
            ..daemon("b")
        };
        let mut supervisor = Supervisor::new(vec![a, b], 0);
        assert_eq!(supervisor.tick(30_000), []);
        let orders = supervisor.tick(31_000);
        assert!(orders.contains(&Order::Start(0)), "{orders:?}");
    }

    #[test]
    fn readiness_is_a_line_or_comes_late() {
        let service = Service {
            ready: Ready::Line("ready".to_owned()),
            ..daemon("a")
        };
        let after = Service {
            after: vec!["a".to_owned()],
            ..daemon("b")
        };
        let mut supervisor = Supervisor::new(vec![service, after], 0);
        supervisor.tick(0);
        supervisor.started(0, 1, 0);
        assert_eq!(supervisor.printed(0, "hello", 1), []);
        assert_eq!(state(&supervisor, 0), ServiceState::Starting);
        let orders = supervisor.tick(30_000);
        assert!(
            matches!(&orders[0], Order::Tell { wrong: true, text } if text == "a: not ready after 30 s")
        );
        assert_eq!(orders[1], Order::Start(1));
        assert_eq!(supervisor.printed(0, "I am ready.", 31_000).len(), 1);
        assert_eq!(state(&supervisor, 0), ServiceState::Ready);
    }

    #[test]
    fn what_does_not_end_is_killed_once() {
        let mut supervisor = Supervisor::new(vec![daemon("a")], 0);
        supervisor.tick(0);
        supervisor.started(0, 1, 0);
        assert_eq!(supervisor.stop(0, 100), [Order::Terminate(0)]);
        assert_eq!(
            supervisor.stop(0, 200),
            [],
            "a second SIGTERM would cut a drain short"
        );
        assert_eq!(supervisor.tick(10_099), []);
        assert_eq!(supervisor.tick(10_100).last(), Some(&Order::Kill(0)));
        assert_eq!(supervisor.tick(20_000), []);
        supervisor.exited(0, Exit::Signal(9), &said(&[]), 20_001);
        assert_eq!(state(&supervisor, 0), ServiceState::Ended);
        assert_eq!(supervisor.tick(30_000), []);
    }

    #[test]
    fn a_restart_is_no_crash() {
        let mut supervisor = Supervisor::new(vec![daemon("a")], 0);
        supervisor.tick(0);
        supervisor.started(0, 1, 0);
        assert_eq!(supervisor.restart(0, 1), [Order::Terminate(0)]);
        supervisor.exited(0, Exit::Code(0), &said(&[]), 2);
        assert_eq!(supervisor.tick(3), [Order::Start(0)]);
        assert_eq!(supervisor.reports(3)[0].crashes, 0);
    }

    #[test]
    fn once_closed_nothing_is_started() {
        let mut supervisor = Supervisor::new(vec![daemon("a"), daemon("b")], 0);
        supervisor.tick(0);
        supervisor.started(0, 1, 0);
        supervisor.started(1, 2, 0);
        supervisor.close();
        supervisor.exited(0, Exit::Code(1), &said(&[]), 1);
        assert_eq!(supervisor.tick(100_000), []);
        supervisor.restart(1, 100_000);
        supervisor.exited(1, Exit::Code(0), &said(&[]), 100_001);
        assert_eq!(supervisor.tick(200_000), []);
    }

    /// A service that has to report every ten seconds, running as process 1 and ready.
    fn watched() -> Supervisor {
        let agent = Service {
            health_timeout_ms: Some(10_000),
            ..daemon("agent")
        };
        let mut supervisor = Supervisor::new(vec![agent], 0);
        supervisor.tick(0);
        supervisor.started(0, 1, 0);
        supervisor
    }

    /// Turns once a second, as process 1 does, up to `to_ms`; what was ordered last, and when.
    fn turn(supervisor: &mut Supervisor, from_ms: u64, to_ms: u64) -> Option<(u64, Vec<Order>)> {
        let mut last = None;
        for now_ms in (from_ms..=to_ms).step_by(1000) {
            let orders = supervisor.tick(now_ms);
            if !orders.is_empty() {
                last = Some((now_ms, orders));
            }
        }
        last
    }

    #[test]
    fn one_that_was_well_and_is_silent_is_ended_and_started_again() {
        let mut supervisor = watched();
        assert_eq!(
            turn(&mut supervisor, 1000, 60_000),
            None,
            "it never reported"
        );
        supervisor.report_health(0, true, "well", 60_000);
        assert_eq!(turn(&mut supervisor, 61_000, 70_000), None);
        let orders = supervisor.tick(71_000);
        let text = "agent: no report of health for 11 s: ended".to_owned();
        assert_eq!(orders, [Order::Tell { wrong: true, text }, Order::Abort(0)]);
        assert_eq!(supervisor.stale(71_000), None);
        assert_eq!(turn(&mut supervisor, 72_000, 80_000), None);
        assert_eq!(supervisor.tick(81_000).last(), Some(&Order::Kill(0)));

        supervisor.exited(0, Exit::Signal(9), &said(&["I wait"]), 81_500);
        assert_eq!(
            supervisor.reports(0)[0].text,
            "crashed: no report of health for 11 s, ended with signal SIGKILL; starts again in \
             250 ms, last lines: I wait"
        );
        assert_eq!(supervisor.tick(81_750), [Order::Start(0)]);
        supervisor.started(0, 2, 81_750);
        supervisor.report_health(0, true, "well", 85_000);
        assert_eq!(turn(&mut supervisor, 82_000, 95_000), None);
        assert_eq!(supervisor.reports(0)[0].crashes, 1);
    }

    #[test]
    fn the_watchdog_starves_when_a_second_start_says_nothing_either() {
        let mut supervisor = watched();
        supervisor.report_health(0, true, "well", 0);
        let (at_ms, _) = turn(&mut supervisor, 1000, 11_000).unwrap();
        supervisor.exited(0, Exit::Signal(6), &said(&[]), at_ms);
        supervisor.tick(12_000);
        supervisor.started(0, 2, 12_000);
        assert_eq!(turn(&mut supervisor, 13_000, 22_000), None);
        assert_eq!(supervisor.stale(22_000), None);
        let orders = supervisor.tick(23_000);
        assert_eq!(orders.last(), Some(&Order::Abort(0)));
        assert_eq!(supervisor.stale(23_000), Some(("agent", 23_000)));
        // Also while it is started once more, until it reports.
        supervisor.exited(0, Exit::Signal(6), &said(&[]), 23_000);
        supervisor.tick(24_000);
        supervisor.started(0, 3, 24_000);
        assert_eq!(supervisor.stale(24_000), Some(("agent", 24_000)));
        supervisor.report_health(0, true, "well", 25_000);
        assert_eq!(supervisor.stale(25_000), None);
    }

    #[test]
    fn the_watchdog_starves_when_the_silent_one_does_not_end() {
        let mut supervisor = watched();
        supervisor.report_health(0, true, "well", 0);
        let (at_ms, _) = turn(&mut supervisor, 1000, 11_000).unwrap();
        assert_eq!(at_ms, 11_000);
        turn(&mut supervisor, 12_000, 21_000);
        assert_eq!(supervisor.stale(21_000), None);
        turn(&mut supervisor, 22_000, 22_000);
        assert_eq!(supervisor.stale(22_000), Some(("agent", 22_000)));
        // A person who asks for its end does not make that come about.
        supervisor.stop(0, 22_000);
        assert_eq!(supervisor.stale(22_000), Some(("agent", 22_000)));
        supervisor.exited(0, Exit::Signal(9), &said(&[]), 22_500);
        assert_eq!(state(&supervisor, 0), ServiceState::Ended);
        assert_eq!(supervisor.stale(23_000), None);
    }

    #[test]
    fn nobody_is_silent_while_process_1_does_not_turn_or_the_service_starts_or_ends() {
        let mut supervisor = watched();
        supervisor.report_health(0, true, "well", 0);
        assert_eq!(
            supervisor.tick(60_000),
            [],
            "its reports may wait to be read"
        );
        supervisor.report_health(0, true, "well", 60_500);
        assert_eq!(supervisor.stop(0, 61_000), [Order::Terminate(0)]);
        let (_, orders) = turn(&mut supervisor, 62_000, 90_000).unwrap();
        assert!(!orders.contains(&Order::Abort(0)), "{orders:?}");
        assert_eq!(supervisor.stale(90_000), None);

        let slow = Service {
            ready: Ready::Line("ready".to_owned()),
            ready_timeout_ms: 40_000,
            health_timeout_ms: Some(10_000),
            ..daemon("slow")
        };
        let mut supervisor = Supervisor::new(vec![slow], 0);
        supervisor.report_health(0, true, "of the one before", 0);
        supervisor.tick(0);
        supervisor.started(0, 1, 0);
        assert_eq!(turn(&mut supervisor, 1000, 39_000), None);
        supervisor.tick(40_000);
        assert_eq!(state(&supervisor, 0), ServiceState::Late);
        assert_eq!(turn(&mut supervisor, 41_000, 50_000), None);
        assert_eq!(supervisor.tick(51_000).last(), Some(&Order::Abort(0)));
    }

    #[test]
    fn what_cannot_be_started_is_held_in_the_end() {
        let mut supervisor = Supervisor::new(
            vec![Service {
                crashes_max: 2,
                ..daemon("a")
            }],
            0,
        );
        supervisor.tick(0);
        supervisor.start_failed(0, "no such file", 0);
        let now = supervisor.due_ms().unwrap();
        supervisor.tick(now);
        supervisor.start_failed(0, "no such file", now);
        assert_eq!(
            supervisor.reports(now)[0].text,
            "held: crashed 2 times in 60 s, last: cannot be started: no such file"
        );
    }
}
