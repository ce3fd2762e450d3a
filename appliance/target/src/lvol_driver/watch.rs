//! Looks after a pool and tells what its owner should know.

use std::time::{Duration, Instant};

use api::v1::EventType;
use lvol::{PoolInfo, Promise};
use tokio::sync::mpsc;

use crate::pool::PoolEvent;

/// Time between two looks while the pool is at work. One at rest does not change.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Shares of the clusters in use at which an event tells of it, percent.
const USED_PERCENT: [u64; 4] = [80, 90, 95, 100];
/// The share must fall so far below to be told of again, percent.
const FALL_PERCENT: u64 = 2;

/// Looks at a pool between the steps of its worker.
#[derive(Debug)]
pub(super) struct Watch {
    name: String,
    pool: lvol::Pool,
    events: mpsc::Sender<PoolEvent>,
    asked: Option<Promise<PoolInfo>>,
    /// Not before; at once when `None`.
    look_at: Option<Instant>,
    /// How many of [`USED_PERCENT`] are passed.
    passed: usize,
    has_told_fault: bool,
}

impl Watch {
    pub(super) fn new(name: String, pool: lvol::Pool, events: mpsc::Sender<PoolEvent>) -> Watch {
        Watch {
            name,
            pool,
            events,
            asked: None,
            look_at: None,
            passed: 0,
            has_told_fault: false,
        }
    }

    /// Call it after each step.
    pub(super) fn look(&mut self, now: Instant) {
        if let Some(asked) = &self.asked {
            if let Some(answer) = asked.try_take() {
                self.asked = None;
                if let Ok(info) = answer {
                    self.judge(&info);
                }
            }
            return;
        }
        let has_stopped = self.pool.has_stopped() && !self.has_told_fault;
        if has_stopped || self.look_at.is_none_or(|at| at <= now) {
            self.look_at = Some(now + LOOK_INTERVAL);
            // Wakes this thread for the step that answers.
            self.asked = Some(self.pool.info());
        }
    }

    fn judge(&mut self, info: &PoolInfo) {
        if let Some(fault) = &info.fault
            && !self.has_told_fault
        {
            self.has_told_fault = true;
            self.tell(EventType::Fault, format!("the pool has stopped: {fault}"));
        }
        let used = used_percent(info);
        let now_passed = passed(used, self.passed);
        if now_passed != self.passed {
            self.passed = now_passed;
            let free = info.free_clusters * info.cluster_size;
            let text = format!("{used} % of the pool is in use; {free} bytes are free");
            self.tell(EventType::Space, text);
        }
    }

    fn tell(&self, event_type: EventType, text: String) {
        tracing::warn!(pool = self.name, text, "pool");
        let event = PoolEvent {
            event_type,
            kind: "pool",
            name: self.name.clone(),
            text,
        };
        if self.events.try_send(event).is_err() {
            tracing::warn!(
                pool = self.name,
                "an event of the pool was lost: too many wait"
            );
        }
    }
}

/// What of the pool cannot be taken any more, rounded down: 100 means all.
fn used_percent(info: &PoolInfo) -> u64 {
    let free = info.free_clusters.min(info.clusters);
    let used = u128::from(info.clusters - free) * 100;
    (used / u128::from(info.clusters.max(1))) as u64
}

/// How many thresholds are passed, after `before` were.
fn passed(used: u64, before: usize) -> usize {
    let above = |percent: u64| USED_PERCENT.iter().filter(|at| **at <= percent).count();
    if above(used) >= before {
        return above(used);
    }
    above(used + FALL_PERCENT).min(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_told_once_and_again_after_a_fall() {
        assert_eq!(passed(79, 0), 0);
        assert_eq!(passed(80, 0), 1);
        assert_eq!(passed(97, 1), 3);
        assert_eq!(passed(100, 3), 4);
        // Not far enough below.
        assert_eq!(passed(99, 4), 4);
        assert_eq!(passed(78, 1), 1);
        assert_eq!(passed(77, 1), 0);
        assert_eq!(passed(10, 4), 0);
    }
}
