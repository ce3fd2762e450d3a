//! The [`PoolDriver`] of the program.

use std::sync::Arc;

use block::Bdev;
use tokio::sync::mpsc;

use crate::pool::{Attach, Opening, PoolDriver, PoolEvent, Work};
use crate::runtime::RuntimeError;

/// Opens pools, each with a thread of its own.
#[derive(Debug)]
pub struct LvolDriver {
    /// Where events of pools go.
    events: mpsc::Sender<PoolEvent>,
}

impl LvolDriver {
    /// A driver whose pools tell their events to `events`.
    #[must_use]
    pub fn new(events: mpsc::Sender<PoolEvent>) -> LvolDriver {
        LvolDriver { events }
    }
}

impl PoolDriver for LvolDriver {
    fn probe(&self, _: Arc<Bdev>) -> Work<Option<String>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn open(&self, _: Arc<Bdev>, name: &str, _: Attach) -> Opening {
        let reason = format!("this program was built without pools: {name} cannot be opened");
        tracing::debug!(capacity = self.events.capacity(), reason);
        Box::pin(std::future::ready(Err(RuntimeError::Refused(reason))))
    }
}
