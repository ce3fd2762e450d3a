//! The reset that is asked for, with the generation of the controller that it is meant for.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::shared::ResetReason;

const REASON_BITS: u32 = 8;

/// One request at a time. Whoever asks names the generation that the reset is to end; once the next
/// one is enabled, the request has been answered and is forgotten. A channel that was slow to find
/// its time-out so costs no second reset, and no second attempt to bring the controller up.
#[derive(Debug, Default)]
pub(crate) struct ResetRequest(AtomicU64);

impl ResetRequest {
    /// Asks for the end of `generation`. The first reason of a generation stays.
    pub(crate) fn ask(&self, reason: ResetReason, generation: u32) {
        let new = u64::from(generation) << REASON_BITS | u64::from(reason as u8);
        let newer = |old: u64| {
            let is_newer = old == 0 || old >> REASON_BITS < new >> REASON_BITS;
            is_newer.then_some(new)
        };
        // Refused: one that is as good is there.
        let _ = self.0.fetch_update(SeqCst, SeqCst, newer);
    }

    /// Takes the request, if it is for `generation`.
    pub(crate) fn take(&self, generation: u32) -> Option<ResetReason> {
        if self.0.load(SeqCst) == 0 {
            return None;
        }
        let taken = self.0.swap(0, SeqCst);
        let is_meant = taken >> REASON_BITS >= u64::from(generation);
        ResetReason::from_u8(taken as u8).filter(|_| is_meant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_ended_once_and_late_requests_for_it_are_forgotten() {
        let request = ResetRequest::default();
        assert_eq!(request.take(1), None);
        request.ask(ResetReason::IoTimeout, 1);
        request.ask(ResetReason::Asked, 1);
        assert_eq!(request.take(1), Some(ResetReason::IoTimeout));
        assert_eq!(request.take(1), None);
        // Another channel finds its time-out when the next generation is enabled already.
        request.ask(ResetReason::IoTimeout, 1);
        assert_eq!(request.take(2), None);
        // What is late hides nothing that is not.
        request.ask(ResetReason::IoTimeout, 1);
        request.ask(ResetReason::Asked, 2);
        request.ask(ResetReason::IoTimeout, 1);
        assert_eq!(request.take(2), Some(ResetReason::Asked));
    }
}
