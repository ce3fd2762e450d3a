//! The values of a controller's features (NVMe Base 2.1, section 5.1.25).
//!
//! Nothing is saved beyond the end of a controller, and Get Features says so. Features that act
//! elsewhere (write cache, queues, keep-alive, write protection) are in `exec/admin/features.rs`.

use nvme_spec::Status;
use nvme_spec::feature::fid;

/// Composite temperature thresholds, Kelvin: over and under. There is no sensor to exceed them.
const OVER_TEMPERATURE_K: u16 = 343;
const UNDER_TEMPERATURE_K: u16 = 0;

/// One controller's features.
#[derive(Clone, Debug)]
pub(crate) struct Features {
    arbitration: u32,
    temperature: [u16; 2],
    error_recovery: u16,
    /// I/O queues granted; 0 before the host has asked.
    pub(crate) io_queues: u16,
    interrupt_coalescing: u16,
    interrupt_vector: u32,
    write_atomicity: u32,
    /// Which events the host wants.
    pub(crate) event_config: u32,
    pub(crate) kato_ms: u32,
    default_event_config: u32,
    default_kato_ms: u32,
    host_behavior: [u8; 512],
}

impl Features {
    /// The features of an I/O controller.
    pub(crate) const KNOWN: [u8; 16] = [
        fid::ARBITRATION,
        fid::POWER_MANAGEMENT,
        fid::TEMPERATURE_THRESHOLD,
        fid::ERROR_RECOVERY,
        fid::VOLATILE_WRITE_CACHE,
        fid::NUMBER_OF_QUEUES,
        fid::INTERRUPT_COALESCING,
        fid::INTERRUPT_VECTOR,
        fid::WRITE_ATOMICITY,
        fid::ASYNC_EVENT_CONFIG,
        fid::KEEP_ALIVE_TIMER,
        fid::HOST_BEHAVIOR,
        fid::HOST_IDENTIFIER,
        fid::RESERVATION_MASK,
        fid::RESERVATION_PERSISTENCE,
        fid::NAMESPACE_WRITE_PROTECTION,
    ];

    pub(crate) fn new(kato_ms: u32, event_config: u32) -> Self {
        Self {
            arbitration: 0,
            temperature: [OVER_TEMPERATURE_K, UNDER_TEMPERATURE_K],
            error_recovery: 0,
            io_queues: 0,
            interrupt_coalescing: 0,
            interrupt_vector: 0,
            write_atomicity: 0,
            event_config,
            kato_ms,
            default_event_config: event_config,
            default_kato_ms: kato_ms,
            host_behavior: [0; 512],
        }
    }

    /// The value of a feature that is one dword.
    pub(crate) fn get(&self, feature: u8, cdw11: u32, is_default: bool) -> Result<u64, Status> {
        let or_zero = |value: u32| if is_default { 0 } else { value };
        let value = match feature {
            fid::ARBITRATION => or_zero(self.arbitration),
            fid::POWER_MANAGEMENT => 0,
            fid::TEMPERATURE_THRESHOLD => {
                let sensor = temperature_index(cdw11)?;
                let defaults = [OVER_TEMPERATURE_K, UNDER_TEMPERATURE_K];
                let values = if is_default {
                    defaults
                } else {
                    self.temperature
                };
                u32::from(values[sensor])
            }
            fid::ERROR_RECOVERY => or_zero(self.error_recovery.into()),
            fid::NUMBER_OF_QUEUES => {
                let granted = u32::from(self.io_queues.saturating_sub(1));
                or_zero(granted << 16 | granted)
            }
            fid::INTERRUPT_COALESCING => or_zero(self.interrupt_coalescing.into()),
            fid::INTERRUPT_VECTOR => or_zero(self.interrupt_vector),
            fid::WRITE_ATOMICITY => or_zero(self.write_atomicity),
            fid::ASYNC_EVENT_CONFIG if is_default => self.default_event_config,
            fid::ASYNC_EVENT_CONFIG => self.event_config,
            fid::KEEP_ALIVE_TIMER if is_default => self.default_kato_ms,
            fid::KEEP_ALIVE_TIMER => self.kato_ms,
            _ => return Err(Status::INVALID_FIELD.with_dnr(true)),
        };
        Ok(value.into())
    }

    /// Sets a feature that is one dword and acts on nothing else.
    pub(crate) fn set(&mut self, feature: u8, cdw11: u32) -> Result<u64, Status> {
        let invalid = Err(Status::INVALID_FIELD.with_dnr(true));
        match feature {
            fid::ARBITRATION => self.arbitration = cdw11,
            // One power state, number 0.
            fid::POWER_MANAGEMENT if cdw11 & 0x1f == 0 => {}
            fid::TEMPERATURE_THRESHOLD => {
                self.temperature[temperature_index(cdw11)?] = cdw11 as u16;
            }
            // Deallocated blocks are read as zeroes: DULBE cannot be had.
            fid::ERROR_RECOVERY if cdw11 >> 16 & 1 == 0 => self.error_recovery = cdw11 as u16,
            fid::INTERRUPT_COALESCING => self.interrupt_coalescing = cdw11 as u16,
            fid::INTERRUPT_VECTOR => self.interrupt_vector = cdw11 & 0x1_ffff,
            fid::WRITE_ATOMICITY => self.write_atomicity = cdw11 & 1,
            fid::ASYNC_EVENT_CONFIG => self.event_config = cdw11,
            _ => return invalid,
        }
        Ok(0)
    }

    /// ACRE: the host waits before it retries, as CRD of a status tells it to.
    pub(crate) fn takes_delays(&self) -> bool {
        self.host_behavior[0] == 1
    }

    /// A controller reset: everything is as after Connect.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.default_kato_ms, self.default_event_config);
    }

    pub(crate) fn host_behavior(&self, is_default: bool) -> [u8; 512] {
        if is_default {
            [0; 512]
        } else {
            self.host_behavior
        }
    }

    pub(crate) fn set_host_behavior(&mut self, data: &[u8]) -> Result<u64, Status> {
        let data: [u8; 512] = data
            .try_into()
            .map_err(|_| Status::DATA_SGL_LENGTH_INVALID.with_dnr(true))?;
        // Each byte that has a meaning is 0 or 1 (ACRE, ETDAS, LBAFEE, HDISNS).
        if data[..4].iter().any(|byte| *byte > 1) {
            return Err(Status::INVALID_FIELD.with_dnr(true));
        }
        self.host_behavior = data;
        Ok(0)
    }
}

/// TMPSEL 0 is the composite temperature, the only one; THSEL picks over or under.
fn temperature_index(cdw11: u32) -> Result<usize, Status> {
    match (cdw11 >> 16 & 0xf, cdw11 >> 20 & 0x3) {
        (0 | 0xf, under @ (0 | 1)) => Ok(under as usize),
        _ => Err(Status::INVALID_FIELD.with_dnr(true)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: u32 = 1 << 8;

    fn features() -> Features {
        Features::new(15_000, EVENTS)
    }

    #[test]
    fn values_are_those_set_and_defaults_stay() {
        let mut features = features();
        let cases = [
            (fid::ARBITRATION, 0x0102_0304, 0),
            (fid::ERROR_RECOVERY, 9, 0),
            (fid::INTERRUPT_COALESCING, 0x0203, 0),
            (fid::INTERRUPT_VECTOR, 0x1_0003, 0),
            (fid::WRITE_ATOMICITY, 1, 0),
            (fid::ASYNC_EVENT_CONFIG, 0, EVENTS),
        ];
        for (fid, value, default) in cases {
            assert_eq!(features.get(fid, 0, false), Ok(default.into()));
            assert_eq!(features.set(fid, value), Ok(0));
            assert_eq!(features.get(fid, 0, false), Ok(value.into()));
            assert_eq!(features.get(fid, 0, true), Ok(default.into()));
        }
        features.reset();
        for (fid, _, default) in cases {
            assert_eq!(features.get(fid, 0, false), Ok(default.into()));
        }
    }

    #[test]
    fn thresholds_over_and_under_are_two_values() {
        let mut features = features();
        let under = 1 << 20;
        assert_eq!(features.set(fid::TEMPERATURE_THRESHOLD, 350), Ok(0));
        assert_eq!(features.set(fid::TEMPERATURE_THRESHOLD, under | 260), Ok(0));
        assert_eq!(features.get(fid::TEMPERATURE_THRESHOLD, 0, false), Ok(350));
        assert_eq!(
            features.get(fid::TEMPERATURE_THRESHOLD, under, false),
            Ok(260)
        );
        assert_eq!(features.get(fid::TEMPERATURE_THRESHOLD, under, true), Ok(0));
        for sensor in [1 << 16, 8 << 16, 2 << 20, 3 << 20] {
            assert!(features.set(fid::TEMPERATURE_THRESHOLD, sensor).is_err());
            assert!(
                features
                    .get(fid::TEMPERATURE_THRESHOLD, sensor, false)
                    .is_err()
            );
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut features = features();
        let wrong = [
            (fid::POWER_MANAGEMENT, 1),
            (fid::ERROR_RECOVERY, 1 << 16),
            (fid::LBA_RANGE_TYPE, 0),
            (fid::KEEP_ALIVE_TIMER, 0),
            (0xff, 0),
        ];
        for (fid, value) in wrong {
            assert_eq!(
                features.set(fid, value),
                Err(Status::INVALID_FIELD.with_dnr(true))
            );
        }
        assert!(features.get(0xff, 0, false).is_err());
    }

    #[test]
    fn host_behavior_is_bytes_of_zero_and_one() {
        let mut features = features();
        let mut data = [0; 512];
        for index in 0..4 {
            data[index] = 2;
            assert!(features.set_host_behavior(&data).is_err());
            data[index] = 1;
        }
        assert!(!features.takes_delays());
        assert!(features.set_host_behavior(&data).is_ok());
        assert!(features.takes_delays());
        assert_eq!(features.host_behavior(false), data);
        assert_eq!(features.host_behavior(true), [0; 512]);
        assert!(features.set_host_behavior(&data[..511]).is_err());
        features.reset();
        assert!(!features.takes_delays());
    }
}
