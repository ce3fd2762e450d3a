//! How full a pool is, and at which shares that is told. The shares are kept in the pool, as labels that
//! only this program sets.

use std::sync::atomic::{AtomicI32, Ordering};

use api::v1::PoolSpaceLevel as Level;
use lvol::PoolInfo;

use crate::pool::{LabelChanges, PoolChange};

/// Share in use at which a pool warns, when nobody says.
pub(crate) const WARNING_PERCENT_DEFAULT: u32 = 80;
/// Share in use at which it is critical, when nobody says.
pub(crate) const CRITICAL_PERCENT_DEFAULT: u32 = 90;
/// The share must fall so far below to fall a level, percent.
const FALL_PERCENT: u32 = 2;

const PREFIX: &str = "adit.space.";
const WARNING: &str = "adit.space.warning_percent";
const CRITICAL: &str = "adit.space.critical_percent";

/// Is it a label of thresholds, which is shown as those, or the mark of a system pool?
pub(super) fn is_label(key: &str) -> bool {
    key.starts_with(PREFIX) || key == lvol::SYSTEM_LABEL
}

/// The labels that a change sets and takes away.
pub(super) fn labels_of(change: &PoolChange) -> LabelChanges {
    let mut labels = change.labels.clone();
    for (key, percent) in [
        (WARNING, change.warning_percent),
        (CRITICAL, change.critical_percent),
    ] {
        labels.extend(percent.map(|percent| (key.to_owned(), Some(percent.to_string()))));
    }
    let mark = |is_system: bool| is_system.then(|| "yes".to_owned());
    let key = || lvol::SYSTEM_LABEL.to_owned();
    labels.extend(change.system.map(|is_system| (key(), mark(is_system))));
    labels
}

/// Shares in use, percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Thresholds {
    pub(super) warning: u32,
    pub(super) critical: u32,
}

impl Thresholds {
    /// What labels say, or the defaults.
    pub(super) fn of(labels: &[(String, String)]) -> Thresholds {
        let percent = |wanted: &str, default: u32| {
            let found = labels.iter().find(|(key, _)| key == wanted);
            let found = found.and_then(|(_, text)| text.parse().ok());
            found.map_or(default, |percent: u32| percent.clamp(1, 100))
        };
        Thresholds {
            warning: percent(WARNING, WARNING_PERCENT_DEFAULT),
            critical: percent(CRITICAL, CRITICAL_PERCENT_DEFAULT),
        }
    }

    fn at(self, used: u32) -> Level {
        match used {
            100.. => Level::Full,
            used if used >= self.critical => Level::Critical,
            used if used >= self.warning => Level::Warning,
            _ => Level::Ok,
        }
    }

    /// The level at a share in use, after `before` was told: it rises at once, and falls a little later.
    pub(super) fn level(self, used: u32, before: Level) -> Level {
        let now = self.at(used);
        if now >= before {
            return now;
        }
        self.at((used + FALL_PERCENT).min(99)).min(before)
    }
}

/// What of the pool a thin volume cannot take any more, rounded down: 100 means all.
pub(super) fn used_percent(info: &PoolInfo) -> u32 {
    let free = info.free_clusters.saturating_sub(info.reserved_clusters);
    let used = u128::from(info.clusters.saturating_sub(free)) * 100;
    (used / u128::from(info.clusters.max(1))) as u32
}

/// The level that was told last, for all who show it.
#[derive(Debug, Default)]
pub(super) struct SpaceLevel(AtomicI32);

impl SpaceLevel {
    fn told(&self) -> Level {
        let told = Level::try_from(self.0.load(Ordering::Relaxed));
        told.unwrap_or_default().max(Level::Ok)
    }

    /// The level now.
    pub(super) fn now(&self, info: &PoolInfo) -> Level {
        Thresholds::of(&info.labels).level(used_percent(info), self.told())
    }

    /// The level now, if it is not the one that was told; it is told now.
    pub(super) fn change(&self, info: &PoolInfo) -> Option<Level> {
        let (before, now) = (self.told(), self.now(info));
        self.0.store(now.into(), Ordering::Relaxed);
        (now != before).then_some(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: Thresholds = Thresholds {
        warning: 80,
        critical: 90,
    };

    #[test]
    fn a_level_rises_at_once_and_falls_two_percent_later() {
        let level = |used, before| DEFAULTS.level(used, before);
        assert_eq!(level(79, Level::Ok), Level::Ok);
        assert_eq!(level(80, Level::Ok), Level::Warning);
        assert_eq!(level(90, Level::Ok), Level::Critical);
        assert_eq!(level(100, Level::Warning), Level::Full);
        // A full pool that has space again is not full.
        assert_eq!(level(99, Level::Full), Level::Critical);
        assert_eq!(level(88, Level::Critical), Level::Critical);
        assert_eq!(level(87, Level::Critical), Level::Warning);
        assert_eq!(level(78, Level::Warning), Level::Warning);
        assert_eq!(level(77, Level::Warning), Level::Ok);
        assert_eq!(level(10, Level::Full), Level::Ok);
    }

    #[test]
    fn thresholds_come_back_from_their_labels() {
        assert_eq!(Thresholds::of(&[]), DEFAULTS);
        let change = PoolChange {
            warning_percent: Some(50),
            critical_percent: Some(100),
            ..PoolChange::default()
        };
        let labels = labels_of(&change).into_iter();
        let labels: Vec<_> = labels.map(|(key, value)| (key, value.unwrap())).collect();
        assert!(labels.iter().all(|(key, _)| is_label(key)));
        let found = Thresholds::of(&labels);
        assert_eq!((found.warning, found.critical), (50, 100));
        assert_eq!(found.level(100, Level::Ok), Level::Full);
        let wrong = vec![(WARNING.to_owned(), "much".to_owned())];
        assert_eq!(Thresholds::of(&wrong), DEFAULTS);
    }
}
