//! Why connections end, for the log.

use std::fmt;
use std::time::{Duration, Instant};

use nvmf::transport::CloseReason;
use verbs::WcStatus;

use crate::connection::{Connection, Phase};

/// Ends of one kind are told in the log at most this often.
const INTERVAL: Duration = Duration::from_secs(1);

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The host disconnected, or refused what it had asked for.
    Host,
    /// The connection manager gave up; a negative errno.
    Unreachable(i32),
    /// The host broke the protocol.
    Protocol(&'static str),
    /// No Connect has succeeded in time.
    TimedOut,
    /// A work request failed.
    WorkRequest(WcStatus, u32),
    /// Work requests were not taken.
    NotPosted,
    /// An event of the device says so.
    QpFatal,
    /// Its device has failed, which is told once for all of its connections.
    Device,
    /// No queue pair could be made for it, which was told there.
    NoQpair,
    /// The target library wants it.
    Target(CloseReason),
}

/// Whether the log is to have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tell {
    No,
    Info,
    Warn,
}

impl Why {
    fn tell(self, phase: Phase) -> Tell {
        match self {
            Self::Device | Self::NoQpair => Tell::No,
            Self::Host if phase == Phase::Live => Tell::Info,
            Self::Target(_) => Tell::Info,
            _ => Tell::Warn,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("the host ended it"),
            Self::Unreachable(errno) => {
                let error = std::io::Error::from_raw_os_error(errno.saturating_abs());
                write!(f, "the host does not answer ({error})")
            }
            Self::Protocol(what) => write!(f, "the host broke the protocol: {what}"),
            Self::TimedOut => f.write_str("no Connect has succeeded in time"),
            Self::WorkRequest(status, vendor) => {
                write!(
                    f,
                    "a work request failed: {status} (vendor's error {vendor:#x})"
                )
            }
            Self::NotPosted => f.write_str("its queue pair takes no work requests"),
            Self::QpFatal => f.write_str("the device says that its queue pair has failed"),
            Self::Device => f.write_str("its device has failed"),
            Self::NoQpair => f.write_str("there is no queue pair for it"),
            Self::Target(reason) => f.write_str(match reason {
                CloseReason::Disconnect => "the host sent Disconnect",
                CloseReason::ControllerEnded => "its controller has ended",
                CloseReason::Shutdown => "the target shuts down",
                CloseReason::ProtocolError => "the host broke the protocol",
                CloseReason::Peer => "the host ended it",
            }),
        }
    }
}

/// A bound on lines of the log.
#[derive(Debug, Default)]
pub(crate) struct Bound {
    next: Option<Instant>,
    untold: u64,
}

impl Bound {
    /// How many were not told since the last that was, if this one may be told.
    pub(crate) fn take(&mut self, now: Instant) -> Option<u64> {
        if self.next.is_some_and(|at| now < at) {
            self.untold += 1;
            return None;
        }
        self.next = Some(now + INTERVAL);
        Some(std::mem::take(&mut self.untold))
    }
}

/// What is told of connections that end: those that end as they should, and others, each within a
/// bound of its own.
#[derive(Debug, Default)]
pub(crate) struct Closings {
    orderly: Bound,
    others: Bound,
}

impl Closings {
    /// Tells why a connection ends, unless others have just been told of.
    #[cold]
    pub(crate) fn tell(&mut self, connection: &Connection, why: Why, now: Instant) {
        let (peer, qid) = (&connection.peer.remote, connection.qid().0);
        let phase = connection.phase;
        match why.tell(phase) {
            Tell::No => {}
            Tell::Info => {
                if let Some(untold) = self.orderly.take(now) {
                    tracing::info!(%peer, qid, untold, %why, "a connection has ended");
                }
            }
            Tell::Warn => {
                if let Some(untold) = self.others.take(now) {
                    tracing::warn!(%peer, qid, ?phase, untold, %why, "a connection was closed");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_told_is_counted() {
        let start = Instant::now();
        let mut bound = Bound::default();
        assert_eq!(bound.take(start), Some(0));
        assert_eq!(bound.take(start), None);
        assert_eq!(bound.take(start + INTERVAL / 2), None);
        assert_eq!(bound.take(start + INTERVAL), Some(2));
        assert_eq!(bound.take(start + 2 * INTERVAL), Some(0));
    }

    #[test]
    fn only_what_is_told_elsewhere_is_not_told() {
        let all = [
            Why::Host,
            Why::Unreachable(-110),
            Why::Protocol("a capsule is shorter than a command"),
            Why::TimedOut,
            Why::WorkRequest(WcStatus::Flushed, 0),
            Why::NotPosted,
            Why::QpFatal,
            Why::Target(CloseReason::ControllerEnded),
        ];
        for phase in [Phase::Connect, Phase::Connecting, Phase::Live] {
            for why in all {
                assert_ne!(why.tell(phase), Tell::No, "{why}");
            }
            assert_eq!(Why::Device.tell(phase), Tell::No);
        }
        assert_eq!(Why::Host.tell(Phase::Connect), Tell::Warn);
        assert_eq!(Why::Host.tell(Phase::Live), Tell::Info);
    }
}
