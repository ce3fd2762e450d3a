//! The hardware watchdog: fed while init's loop turns, and no service stays silent that was ended for its silence.

use std::fs::{File, OpenOptions};
use std::io::Write;

use crate::config::ConfigWatchdog;
use crate::ioctl;
use crate::status::{State, Status};

/// When to feed. Pure.
#[derive(Debug)]
pub(crate) struct Feeding {
    period_ms: u64,
    last_ms: u64,
    /// Why it starves; told once.
    starving: Option<String>,
}

/// What to do with the watchdog now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Meal {
    /// It is not time yet.
    NotDue,
    /// Feed it.
    Feed,
    /// Feed it; health is back.
    FeedAgain,
    /// Do not feed it; the reason is told now, or was before.
    Starve { tell: Option<String> },
}

impl Feeding {
    pub(crate) fn new(timeout_s: u32, now_ms: u64) -> Self {
        Self {
            period_ms: u64::from(timeout_s) * 1000 / 3,
            last_ms: now_ms,
            starving: None,
        }
    }

    /// `stale` is the service that is past help, and how old its last health report is.
    pub(crate) fn due(&mut self, stale: Option<(&str, u64)>, now_ms: u64) -> Meal {
        if now_ms.saturating_sub(self.last_ms) < self.period_ms {
            return Meal::NotDue;
        }
        self.last_ms = now_ms;
        match stale {
            None => match self.starving.take() {
                None => Meal::Feed,
                Some(_) => Meal::FeedAgain,
            },
            Some((service, age_ms)) => {
                let text = format!(
                    "the watchdog is not fed: the last health report of {service} is {} s old",
                    age_ms / 1000
                );
                let known = self.starving.replace(text.clone()).is_some();
                Meal::Starve {
                    tell: (!known).then_some(text),
                }
            }
        }
    }

    pub(crate) fn due_ms(&self) -> u64 {
        self.last_ms + self.period_ms
    }
}

/// An open watchdog. While it is open and not fed, the machine is reset after its timeout.
#[derive(Debug)]
pub(crate) struct Watchdog {
    device: File,
    pub(crate) feeding: Feeding,
}

impl Watchdog {
    /// Opens the device and sets its timeout.
    pub(crate) fn open(config: &ConfigWatchdog, now_ms: u64) -> (Option<Self>, Status) {
        let told = |state, text: String| Status::new("watchdog", state, text);
        if !config.enabled {
            return (
                None,
                told(
                    State::Skipped,
                    "the configuration switches it off".to_owned(),
                ),
            );
        }
        let path = &config.device;
        let device = match OpenOptions::new().write(true).open(path) {
            Ok(device) => device,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let text = format!("this machine has no {path}: a hang is not noticed by itself");
                return (None, told(State::Skipped, text));
            }
            Err(error) => {
                return (
                    None,
                    told(State::Failed, format!("{path} cannot be opened: {error}")),
                );
            }
        };
        let (timeout_s, text, state) = match ioctl::set_watchdog_timeout(&device, config.timeout_s)
        {
            Ok(taken) => (
                taken.max(1),
                format!(
                    "{path} resets the node {taken} s after init stops or a silent service is past help"
                ),
                State::Ok,
            ),
            Err(error) => (
                // What drivers have by themselves is at least this.
                config.timeout_s.min(10),
                format!("{path} keeps its own timeout: {error}"),
                State::Degraded,
            ),
        };
        let mut watchdog = Self {
            device,
            feeding: Feeding::new(timeout_s, now_ms),
        };
        watchdog.feed();
        (Some(watchdog), told(state, text))
    }

    pub(crate) fn feed(&mut self) {
        // A watchdog that does not take it will say so itself, in its way.
        let _ = self.device.write_all(b"+");
    }

    /// Lets it go without a reset ("magic close").
    pub(crate) fn disarm(mut self) {
        let _ = self.device.write_all(b"V");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_fed_at_a_third_of_its_timeout() {
        let mut feeding = Feeding::new(30, 0);
        assert_eq!(feeding.due(None, 9_999), Meal::NotDue);
        assert_eq!(feeding.due(None, 10_000), Meal::Feed);
        assert_eq!(feeding.due(None, 10_001), Meal::NotDue);
        assert_eq!(feeding.due_ms(), 20_000);
    }

    #[test]
    fn it_starves_while_health_is_stale_and_says_so_once() {
        let mut feeding = Feeding::new(30, 0);
        let told = feeding.due(Some(("adit-agent", 31_000)), 10_000);
        let text = "the watchdog is not fed: the last health report of adit-agent is 31 s old";
        assert_eq!(
            told,
            Meal::Starve {
                tell: Some(text.to_owned())
            }
        );
        assert_eq!(
            feeding.due(Some(("adit-agent", 41_000)), 20_000),
            Meal::Starve { tell: None }
        );
        assert_eq!(feeding.due(None, 30_000), Meal::FeedAgain);
        assert_eq!(feeding.due(None, 40_000), Meal::Feed);
    }

    #[test]
    fn a_machine_without_one_is_told() {
        let config = ConfigWatchdog {
            device: "/dev/no-such-watchdog".to_owned(),
            ..Default::default()
        };
        let (watchdog, status) = Watchdog::open(&config, 0);
        assert!(watchdog.is_none());
        assert_eq!(status.state, State::Skipped);
        let off = ConfigWatchdog {
            enabled: false,
            ..Default::default()
        };
        assert_eq!(
            Watchdog::open(&off, 0).1.text,
            "the configuration switches it off"
        );
    }
}
