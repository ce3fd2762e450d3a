//! The end, in order: services by their turns, then whatever is left, then the disks. Each step has a
//! deadline. Pure; [`crate::pid1`] carries it out.

use crate::config::Shutdown as Limits;

/// Ms that what no service accounts for has to end after SIGTERM.
const REST_TERM_MS: u64 = 2_000;
/// Ms that the kernel has to end what got SIGKILL.
const REST_KILL_MS: u64 = 2_000;

/// What comes after the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    Poweroff,
    Reboot,
    Halt,
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Poweroff => "power off",
            Self::Reboot => "reboot",
            Self::Halt => "halt",
        })
    }
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Do {
    /// End the services of this turn.
    StopTurn(u8),
    /// SIGTERM to every process.
    TerminateRest,
    /// SIGKILL to every process.
    KillRest,
    /// Start the child that writes back and unmounts.
    StartSync,
    /// The sync took too long: it is left alone.
    GiveUpSync,
    /// Tell the kernel.
    Finish(Goal),
}

/// What the machine looks like to a step.
pub(crate) trait View {
    /// Whether a service of this turn runs.
    fn turn_runs(&self, turn: u8) -> bool;
    /// Whether any child is left.
    fn anything_runs(&self) -> bool;
    /// Whether the child that syncs runs.
    fn sync_runs(&self) -> bool;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Turn { index: usize, ordered: bool },
    Rest { until_ms: u64 },
    Killed { until_ms: u64 },
    Sync { until_ms: u64 },
    Over,
}

/// A shutdown under way.
#[derive(Debug)]
pub(crate) struct Shutdown {
    goal: Goal,
    turns: Vec<u8>,
    step: Step,
    /// From here on nothing is waited for but the kernel.
    deadline_ms: u64,
    sync_timeout_ms: u64,
}

impl Shutdown {
    pub(crate) fn new(goal: Goal, turns: Vec<u8>, limits: &Limits, now_ms: u64) -> Self {
        Self {
            goal,
            turns,
            step: Step::Turn {
                index: 0,
                ordered: false,
            },
            deadline_ms: now_ms + u64::from(limits.timeout_s) * 1000,
            sync_timeout_ms: u64::from(limits.sync_timeout_s) * 1000,
        }
    }

    pub(crate) fn goal(&self) -> Goal {
        self.goal
    }

    /// What is due.
    pub(crate) fn tick(&mut self, view: &dyn View, now_ms: u64) -> Vec<Do> {
        let mut orders = Vec::new();
        // A step may end at once and the next begin.
        while let Some(order) = self.advance(view, now_ms) {
            orders.push(order);
            if matches!(order, Do::Finish(_)) {
                break;
            }
        }
        orders
    }

    fn advance(&mut self, view: &dyn View, now_ms: u64) -> Option<Do> {
        let late = now_ms >= self.deadline_ms;
        loop {
            match self.step {
                Step::Turn { index, ordered } => {
                    let Some(turn) = self.turns.get(index).copied().filter(|_| !late) else {
                        self.step = Step::Rest {
                            until_ms: now_ms + if late { 0 } else { REST_TERM_MS },
                        };
                        return Some(Do::TerminateRest);
                    };
                    if !ordered {
                        self.step = Step::Turn {
                            index,
                            ordered: true,
                        };
                        return Some(Do::StopTurn(turn));
                    }
                    if view.turn_runs(turn) {
                        return None;
                    }
                    self.step = Step::Turn {
                        index: index + 1,
                        ordered: false,
                    };
                }
                Step::Rest { until_ms } => {
                    if view.anything_runs() && now_ms < until_ms {
                        return None;
                    }
                    self.step = Step::Killed {
                        until_ms: now_ms + REST_KILL_MS,
                    };
                    return Some(Do::KillRest);
                }
                Step::Killed { until_ms } => {
                    if view.anything_runs() && now_ms < until_ms {
                        return None;
                    }
                    self.step = Step::Sync {
                        until_ms: now_ms + self.sync_timeout_ms,
                    };
                    return Some(Do::StartSync);
                }
                Step::Sync { until_ms } => {
                    let runs = view.sync_runs();
                    if runs && now_ms < until_ms {
                        return None;
                    }
                    self.step = Step::Over;
                    return Some(if runs {
                        Do::GiveUpSync
                    } else {
                        Do::Finish(self.goal)
                    });
                }
                Step::Over => return Some(Do::Finish(self.goal)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake {
        turn: Option<u8>,
        anything: bool,
        sync: bool,
    }

    impl View for Fake {
        fn turn_runs(&self, turn: u8) -> bool {
            self.turn == Some(turn)
        }
        fn anything_runs(&self) -> bool {
            self.anything
        }
        fn sync_runs(&self) -> bool {
            self.sync
        }
    }

    fn shutdown() -> Shutdown {
        Shutdown::new(Goal::Poweroff, vec![0, 5, 9], &Limits::default(), 0)
    }

    #[test]
    fn the_target_goes_first_and_the_journal_last() {
        let mut view = Fake {
            turn: Some(0),
            anything: true,
            sync: false,
        };
        let mut shutdown = shutdown();
        assert_eq!(shutdown.tick(&view, 0), [Do::StopTurn(0)]);
        assert_eq!(shutdown.tick(&view, 20_000), [], "the target may drain");
        view.turn = Some(5);
        assert_eq!(shutdown.tick(&view, 20_001), [Do::StopTurn(5)]);
        view.turn = Some(9);
        assert_eq!(shutdown.tick(&view, 20_002), [Do::StopTurn(9)]);
        view.turn = None;
        assert_eq!(shutdown.tick(&view, 20_003), [Do::TerminateRest]);
        assert_eq!(shutdown.tick(&view, 22_002), []);
        assert_eq!(shutdown.tick(&view, 22_003), [Do::KillRest]);
        view = Fake {
            turn: None,
            anything: false,
            sync: true,
        };
        assert_eq!(shutdown.tick(&view, 22_004), [Do::StartSync]);
        view.sync = false;
        assert_eq!(shutdown.tick(&view, 22_100), [Do::Finish(Goal::Poweroff)]);
    }

    #[test]
    fn a_sync_that_hangs_does_not_stop_the_end() {
        let view = Fake {
            turn: None,
            anything: false,
            sync: true,
        };
        let mut shutdown = shutdown();
        let orders = shutdown.tick(&view, 0);
        assert_eq!(orders.last(), Some(&Do::StartSync));
        assert_eq!(shutdown.tick(&view, 29_999), []);
        assert_eq!(
            shutdown.tick(&view, 30_000),
            [Do::GiveUpSync, Do::Finish(Goal::Poweroff)]
        );
    }

    #[test]
    fn services_that_never_end_are_left_behind_at_the_deadline() {
        let view = Fake {
            turn: Some(0),
            anything: true,
            sync: false,
        };
        let mut shutdown = shutdown();
        assert_eq!(shutdown.tick(&view, 0), [Do::StopTurn(0)]);
        assert_eq!(shutdown.tick(&view, 119_999), []);
        assert_eq!(
            shutdown.tick(&view, 120_000),
            [Do::TerminateRest, Do::KillRest]
        );
        assert_eq!(
            shutdown.tick(&view, 122_000),
            [Do::StartSync, Do::Finish(Goal::Poweroff)]
        );
    }
}
