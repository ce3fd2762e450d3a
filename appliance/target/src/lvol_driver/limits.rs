//! Limits of a volume's I/O, as its pool keeps them: labels that only this program sets.
//!
//! A limit that is 0 has no label, nor has a burst of the default. Labels go with the volume's record:
//! through restarts and renames and to other nodes, not to clones and snapshots.

use api::v1::QosLimits;

use crate::pool::LabelChanges;

/// Milliseconds of its rate that an idle device may run ahead, when nobody says.
const BURST_MS_DEFAULT: u32 = 1;
/// The longest burst that the API takes.
const BURST_MS_MAX: u32 = 10_000;

const PREFIX: &str = "adit.qos.";
const RW_IOS: &str = "adit.qos.rw_ios_per_sec";
const RW_BYTES: &str = "adit.qos.rw_bytes_per_sec";
const R_BYTES: &str = "adit.qos.r_bytes_per_sec";
const W_BYTES: &str = "adit.qos.w_bytes_per_sec";
const BURST_MS: &str = "adit.qos.burst_ms";

/// Is it a label of limits, which is shown as those?
pub(super) fn is_label(key: &str) -> bool {
    key.starts_with(PREFIX)
}

/// The labels that say so, and those that go.
pub(super) fn labels_of(limits: &QosLimits) -> LabelChanges {
    let QosLimits {
        rw_ios_per_sec,
        rw_bytes_per_sec,
        r_bytes_per_sec,
        w_bytes_per_sec,
        burst_ms,
    } = *limits;
    let is_off = (
        rw_ios_per_sec,
        rw_bytes_per_sec,
        r_bytes_per_sec,
        w_bytes_per_sec,
    ) == (0, 0, 0, 0);
    let burst = burst_ms.filter(|burst| !is_off && *burst != BURST_MS_DEFAULT);
    let rates = [
        (RW_IOS, rw_ios_per_sec),
        (RW_BYTES, rw_bytes_per_sec),
        (R_BYTES, r_bytes_per_sec),
        (W_BYTES, w_bytes_per_sec),
    ];
    let rates = rates.map(|(key, rate)| (key.to_owned(), (rate > 0).then(|| rate.to_string())));
    let burst = (BURST_MS.to_owned(), burst.map(|burst| burst.to_string()));
    rates.into_iter().chain([burst]).collect()
}

/// The limits that labels say; `None` when they say none. What cannot be read is no limit.
pub(super) fn of_labels(labels: &[(String, String)]) -> Option<QosLimits> {
    let number = |wanted: &str| {
        let (_, text) = labels.iter().find(|(key, _)| key == wanted)?;
        text.parse::<u64>().ok()
    };
    let rate = |key| number(key).unwrap_or(0);
    let burst = number(BURST_MS).map(|burst| burst.min(BURST_MS_MAX.into()) as u32);
    let limits = QosLimits {
        rw_ios_per_sec: rate(RW_IOS),
        rw_bytes_per_sec: rate(RW_BYTES),
        r_bytes_per_sec: rate(R_BYTES),
        w_bytes_per_sec: rate(W_BYTES),
        burst_ms: None,
    };
    (limits != QosLimits::default()).then_some(QosLimits {
        burst_ms: Some(burst.unwrap_or(BURST_MS_DEFAULT)),
        ..limits
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(limits: &QosLimits) -> Vec<(String, String)> {
        let labels = labels_of(limits).into_iter();
        labels
            .filter_map(|(key, value)| Some((key, value?)))
            .collect()
    }

    #[test]
    fn limits_come_back_from_their_labels() {
        for (rate, burst_ms) in [(1, 1), (7, 0), (u64::MAX, 10_000)] {
            let limits = QosLimits {
                rw_ios_per_sec: rate,
                w_bytes_per_sec: rate,
                burst_ms: Some(burst_ms),
                ..QosLimits::default()
            };
            let labels = kept(&limits);
            assert_eq!(labels.len(), 2 + usize::from(burst_ms != 1), "{labels:?}");
            assert!(labels.iter().all(|(key, _)| is_label(key)));
            assert_eq!(of_labels(&labels), Some(limits));
        }
        assert_eq!(kept(&QosLimits::default()), []);
        assert_eq!(
            labels_of(&QosLimits::default()).len(),
            5,
            "all are taken away"
        );
    }

    #[test]
    fn labels_that_cannot_be_read_limit_nothing() {
        let labels = |text: &str| vec![(RW_IOS.to_owned(), text.to_owned())];
        for text in ["", "-1", "x", "99999999999999999999999"] {
            assert_eq!(of_labels(&labels(text)), None, "{text}");
        }
        let mut labels = labels("5");
        labels.push((BURST_MS.to_owned(), "70000000000".to_owned()));
        assert_eq!(of_labels(&labels).unwrap().burst_ms, Some(BURST_MS_MAX));
    }
}
