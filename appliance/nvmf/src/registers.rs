//! Controller properties (NVMe Base 2.1, section 3.1.4) and the CC state machine.

use nvme_spec::Status;
use nvme_spec::registers::{Cap, Cc, Csts, ShutdownNotification, ShutdownStatus, Vs};

use crate::transport::TransportLimits;

/// CAP.TO and CRTO in units of 500 ms: how long enable and disable may take.
const TIMEOUT_500MS: u8 = 30;

/// What a write of CC asks of the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CcChange {
    None,
    Enabled,
    /// EN went to 0: close the I/O queues.
    Reset,
    /// A shutdown was asked for: close the I/O queues.
    ShutDown,
}

/// The properties of one controller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registers {
    cap: Cap,
    cc: Cc,
    csts: Csts,
}

impl Registers {
    pub(crate) fn new(limits: &TransportLimits) -> Self {
        let cap = Cap::default()
            .with_mqes(limits.max_queue_depth - 1)
            .with_cqr(true)
            .with_to(TIMEOUT_500MS)
            .with_css(Cap::CSS_NVM | Cap::CSS_IOCS)
            .with_mpsmin(0)
            .with_mpsmax(0)
            .with_crms(Cap::CRMS_WITH_MEDIA);
        Self {
            cap,
            cc: Cc::default(),
            csts: Csts::default(),
        }
    }

    pub(crate) fn cap(&self) -> u64 {
        self.cap.into()
    }

    pub(crate) fn vs(&self) -> u32 {
        Vs::V2_1.into()
    }

    pub(crate) fn cc(&self) -> u32 {
        self.cc.into()
    }

    pub(crate) fn csts(&self) -> u32 {
        self.csts.into()
    }

    /// Ready timeouts, with and without media (CRWMT, CRIMT), in units of 500 ms.
    pub(crate) fn crto(&self) -> u32 {
        u32::from(TIMEOUT_500MS) << 16 | u32::from(TIMEOUT_500MS)
    }

    /// The controller's state in words.
    pub(crate) fn state_name(&self) -> &'static str {
        if self.csts.cfs() {
            "failed"
        } else if self.csts.shst() != ShutdownStatus::Normal {
            "shutdown"
        } else if self.csts.rdy() {
            "ready"
        } else {
            "disabled"
        }
    }

    /// Fatal: the host must disconnect.
    pub(crate) fn fail(&mut self) {
        self.csts = self.csts.with_cfs(true).with_rdy(false);
    }

    pub(crate) fn write_cc(&mut self, value: u32, has_io_queues: bool) -> Result<CcChange, Status> {
        let (old, new) = (self.cc, Cc::from(value));
        if new.shn() == ShutdownNotification::Reserved {
            return Err(Status::INVALID_FIELD.with_dnr(true));
        }
        if new.en() && !old.en() {
            Self::check_enable(new)?;
        }
        self.cc = new;
        let mut change = CcChange::None;
        if new.en() != old.en() {
            if new.en() {
                self.csts = Csts::default()
                    .with_rdy(true)
                    .with_shst(ShutdownStatus::Normal);
                change = CcChange::Enabled;
            } else {
                change = CcChange::Reset;
            }
        }
        if new.shn() != old.shn() && new.shn() != ShutdownNotification::None {
            self.csts = self.csts.with_shst(ShutdownStatus::Occurring);
            // A reset closes the I/O queues as well, and does more.
            if change != CcChange::Reset {
                change = CcChange::ShutDown;
            }
        }
        if !has_io_queues {
            self.io_queues_gone();
        }
        Ok(change)
    }

    /// The last I/O queue is gone: a reset or a shutdown under way is complete.
    pub(crate) fn io_queues_gone(&mut self) {
        if !self.cc.en() {
            self.csts = self.csts.with_rdy(false);
        }
        if self.csts.shst() == ShutdownStatus::Occurring {
            self.csts = self.csts.with_shst(ShutdownStatus::Complete);
        }
    }

    fn check_enable(cc: Cc) -> Result<(), Status> {
        let has_known_command_set = matches!(cc.css(), Cc::CSS_NVM | Cc::CSS_IOCS);
        let has_known_sizes = cc.iosqes() == 6 && cc.iocqes() == 4;
        if !has_known_command_set || !has_known_sizes || cc.mps() != 0 || cc.ams() != 0 {
            return Err(Status::INVALID_FIELD.with_dnr(true));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: TransportLimits = TransportLimits {
        max_queue_depth: 128,
        max_aq_depth: 32,
        max_io_qpairs_per_ctrlr: 4,
        max_io_size: 131_072,
        in_capsule_data_size: 4096,
        keyed_sgl: false,
        kas_100ms: 100,
        min_kato_ms: 10_000,
        iobuf_small_cache_size: None,
        iobuf_large_cache_size: None,
    };

    fn enabled() -> Cc {
        Cc::default().with_en(true).with_iosqes(6).with_iocqes(4)
    }

    fn write(registers: &mut Registers, cc: Cc, has_io_queues: bool) -> CcChange {
        registers.write_cc(cc.into(), has_io_queues).unwrap()
    }

    #[test]
    fn capabilities_follow_from_the_transport() {
        let registers = Registers::new(&LIMITS);
        let cap = Cap::from(registers.cap());
        assert_eq!(
            (cap.mqes(), cap.cqr(), cap.crms()),
            (127, true, Cap::CRMS_WITH_MEDIA)
        );
        assert_eq!(cap.css(), Cap::CSS_NVM | Cap::CSS_IOCS);
        assert_eq!(
            (registers.vs(), registers.cc(), registers.csts()),
            (0x2_0100, 0, 0)
        );
    }

    #[test]
    fn enable_and_reset_go_through_ready() {
        let mut registers = Registers::new(&LIMITS);
        assert_eq!(write(&mut registers, Cc::default(), false), CcChange::None);
        assert_eq!(write(&mut registers, enabled(), false), CcChange::Enabled);
        assert!(registers.csts.rdy());
        assert_eq!(write(&mut registers, enabled(), true), CcChange::None);
        assert_eq!(write(&mut registers, Cc::default(), true), CcChange::Reset);
        assert!(registers.csts.rdy(), "until the last I/O queue is gone");
        registers.io_queues_gone();
        assert!(!registers.csts.rdy());
    }

    #[test]
    fn io_queues_that_go_by_themselves_change_nothing() {
        let mut registers = Registers::new(&LIMITS);
        write(&mut registers, enabled(), false);
        registers.io_queues_gone();
        assert_eq!(
            (registers.csts.rdy(), registers.csts.shst()),
            (true, ShutdownStatus::Normal)
        );
    }

    #[test]
    fn shutdown_goes_on_until_the_io_queues_are_gone_and_enable_ends_it() {
        let mut registers = Registers::new(&LIMITS);
        write(&mut registers, enabled(), false);
        let normal = enabled().with_shn(ShutdownNotification::Normal);
        assert_eq!(write(&mut registers, normal, true), CcChange::ShutDown);
        assert_eq!(registers.csts.shst(), ShutdownStatus::Occurring);
        assert_eq!(
            write(&mut registers, normal, true),
            CcChange::None,
            "asked for already"
        );
        registers.io_queues_gone();
        assert_eq!(registers.csts.shst(), ShutdownStatus::Complete);
        assert_eq!(write(&mut registers, Cc::default(), false), CcChange::Reset);
        assert_eq!(
            (registers.csts.rdy(), registers.csts.shst()),
            (false, ShutdownStatus::Complete)
        );
        assert_eq!(write(&mut registers, enabled(), false), CcChange::Enabled);
        assert_eq!(
            (registers.csts.rdy(), registers.csts.shst()),
            (true, ShutdownStatus::Normal)
        );
    }

    #[test]
    fn reset_and_shutdown_in_one_write_do_both() {
        let mut registers = Registers::new(&LIMITS);
        write(&mut registers, enabled(), false);
        let both = Cc::default().with_shn(ShutdownNotification::Abrupt);
        assert_eq!(write(&mut registers, both, true), CcChange::Reset);
        registers.io_queues_gone();
        assert_eq!(
            (registers.csts.rdy(), registers.csts.shst()),
            (false, ShutdownStatus::Complete)
        );
    }

    #[test]
    fn what_is_not_supported_changes_nothing() {
        let mut registers = Registers::new(&LIMITS);
        let wrong = [
            enabled().with_css(Cc::CSS_ADMIN_ONLY),
            enabled().with_iosqes(0),
            enabled().with_iocqes(5),
            enabled().with_mps(1),
            enabled().with_ams(7),
            enabled().with_shn(ShutdownNotification::Reserved),
        ];
        for cc in wrong {
            assert!(registers.write_cc(cc.into(), false).is_err());
            assert_eq!((registers.cc(), registers.csts()), (0, 0));
        }
    }

    #[test]
    fn a_fatal_controller_is_not_ready() {
        let mut registers = Registers::new(&LIMITS);
        write(&mut registers, enabled(), false);
        registers.fail();
        assert_eq!((registers.csts.cfs(), registers.csts.rdy()), (true, false));
    }
}
