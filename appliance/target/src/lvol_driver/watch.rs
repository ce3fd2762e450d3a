//! Looks after a pool and tells what its owner should know.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::v1::EventType;
use lvol::{PoolInfo, Promise};
use tokio::sync::mpsc;

use super::space::{SpaceLevel, used_percent};
use crate::pool::PoolEvent;

/// Time between two looks while the pool is at work. One at rest does not change.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Looks at a pool between the steps of its worker.
#[derive(Debug)]
pub(super) struct Watch {
    name: String,
    pool: lvol::Pool,
    events: mpsc::Sender<PoolEvent>,
    asked: Option<Promise<PoolInfo>>,
    /// Not before; at once when `None`.
    look_at: Option<Instant>,
    /// The pool has worked since the last look.
    is_due: bool,
    level: Arc<SpaceLevel>,
    has_told_fault: bool,
}

impl Watch {
    pub(super) fn new(
        name: String,
        pool: lvol::Pool,
        events: mpsc::Sender<PoolEvent>,
        level: Arc<SpaceLevel>,
    ) -> Watch {
        Watch {
            name,
            pool,
            events,
            asked: None,
            look_at: None,
            is_due: false,
            level,
            has_told_fault: false,
        }
    }

    /// Call it after each step; `worked`: the step did something. Answers when it wants the next step, though
    /// there may be nothing to do: so that what the last work has changed is told.
    pub(super) fn look(&mut self, now: Instant, worked: bool) -> Option<Instant> {
        self.is_due |= worked;
        if let Some(asked) = &self.asked {
            if let Some(answer) = asked.try_take() {
                self.asked = None;
                if let Ok(info) = answer {
                    self.judge(&info);
                }
            }
        } else {
            self.ask(now);
        }
        self.look_at.filter(|_| self.is_due)
    }

    fn ask(&mut self, now: Instant) {
        let has_stopped = self.pool.has_stopped() && !self.has_told_fault;
        if has_stopped || self.look_at.is_none_or(|at| at <= now) {
            self.look_at = Some(now + LOOK_INTERVAL);
            self.is_due = false;
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
        if let Some(level) = self.level.change(info) {
            let level = level.as_str_name().trim_start_matches("POOL_SPACE_LEVEL_");
            let (level, used) = (level.to_ascii_lowercase(), used_percent(info));
            let free = info.free_clusters.saturating_sub(info.reserved_clusters);
            let free = free * info.cluster_size;
            let text = format!(
                "{level}: {used} % of the pool is in use or set aside; {free} bytes are free"
            );
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
