use super::{assert_golden, assert_truncation_is_rejected};
use crate::feature::{
    HostBehaviorSupport, async_event, fid, number_of_queues, parse_number_of_queues,
};
use crate::log::{
    AnaGroupDescriptor, AnaHeader, ChangedNamespaces, CommandsEffects, ErrorEntry, FeatureEffects,
    FirmwareSlot, SmartLog, SupportedLogPages, ana_state, effects, feature_effects, lid, supported,
};
use crate::opcode::{admin, nvm};
use crate::{Nsid, Status, event};

#[test]
fn error_entry_has_the_golden_bytes() {
    let entry = ErrorEntry {
        error_count: 0x0102_0304_0506_0708.into(),
        sqid: 0x1112.into(),
        cid: 0x1314.into(),
        parameter_error_location: 0xffff.into(),
        lba: 0x2122_2324_2526_2728.into(),
        nsid: 0x3132_3334.into(),
        trtype: 3,
        opcode: nvm::READ,
        command_specific: 0x41.into(),
        log_page_version: 1,
        ..Default::default()
    }
    .with_status(Status::UNRECOVERED_READ_ERROR.with_dnr(true));
    assert_golden(
        &entry,
        &[
            (
                0,
                &[
                    8, 7, 6, 5, 4, 3, 2, 1, 0x12, 0x11, 0x14, 0x13, 0x02, 0x85, 0xff, 0xff,
                ],
            ),
            (
                16,
                &[
                    0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21, 0x34, 0x33, 0x32, 0x31,
                ],
            ),
            (29, &[3, 0, 2, 0x41]),
            (63, &[1]),
        ],
    );
    assert_eq!(
        entry.status(),
        Status::UNRECOVERED_READ_ERROR.with_dnr(true)
    );
}

#[test]
fn smart_log_has_the_golden_bytes() {
    let mut smart = SmartLog {
        critical_warning: 1,
        composite_temperature: 0x0130.into(),
        available_spare: 100,
        available_spare_threshold: 10,
        percentage_used: 3,
        warning_temperature_time: 0x0102_0304.into(),
        ..Default::default()
    };
    smart.temperature_sensor[7] = 0x0506.into();
    let setters: [fn(&mut SmartLog, u128); 10] = [
        SmartLog::set_data_units_read,
        SmartLog::set_data_units_written,
        SmartLog::set_host_read_commands,
        SmartLog::set_host_write_commands,
        SmartLog::set_controller_busy_time,
        SmartLog::set_power_cycles,
        SmartLog::set_power_on_hours,
        SmartLog::set_unsafe_shutdowns,
        SmartLog::set_media_errors,
        SmartLog::set_error_log_entries,
    ];
    for (value, set) in (1..).zip(setters) {
        set(&mut smart, value << 120 | value);
    }
    let mut counters = [0; 160];
    for (value, counter) in (1..).zip(counters.chunks_exact_mut(16)) {
        counter[0] = value;
        counter[15] = value;
    }
    assert_golden(
        &smart,
        &[
            (0, &[1, 0x30, 0x01, 100, 10, 3]),
            (32, &counters),
            (192, &[4, 3, 2, 1]),
            (214, &[6, 5]),
        ],
    );
    assert_eq!(smart.media_errors(), 9 << 120 | 9);
    assert_eq!(SmartLog::data_units(0), 0);
    assert_eq!(SmartLog::data_units(1), 1);
    assert_eq!(SmartLog::data_units(512_001), 2);
}

#[test]
fn firmware_slot_has_the_golden_bytes() {
    let mut slots = FirmwareSlot {
        afi: 1,
        ..Default::default()
    };
    slots.frs[0] = *b"0.1.0   ";
    slots.frs[6] = *b"7.7.7   ";
    assert_golden(&slots, &[(0, &[1]), (8, b"0.1.0   "), (56, b"7.7.7   ")]);
}

#[test]
fn changed_namespaces_overflow_into_the_broadcast_value() {
    let list = ChangedNamespaces::new([1, 0x0102_0304].map(Nsid));
    assert_golden(&list, &[(0, &[1, 0, 0, 0, 4, 3, 2, 1])]);
    assert!(!list.is_overflow());
    assert!(!ChangedNamespaces::new((1..=1024).map(Nsid)).is_overflow());
    let overflow = ChangedNamespaces::new((1..=1025).map(Nsid));
    assert_golden(&overflow, &[(0, &[0xff; 4])]);
    assert!(overflow.is_overflow());
}

#[test]
fn effects_have_the_golden_bytes() {
    let mut commands = CommandsEffects::default();
    commands.admin[usize::from(admin::IDENTIFY)] = effects::CSUPP.into();
    commands.io[usize::from(nvm::WRITE)] = (effects::CSUPP | effects::LBCC).into();
    commands.io[255] = effects::CSE_ALL.into();
    assert_golden(
        &commands,
        &[
            (6 * 4, &[1]),
            (1024 + 4, &[3]),
            (1024 + 255 * 4, &[0, 0, 2, 0]),
        ],
    );
    let mut features = FeatureEffects::default();
    features.fid[usize::from(fid::KEEP_ALIVE_TIMER)] =
        (feature_effects::FSUPP | feature_effects::SCOPE_CONTROLLER).into();
    assert_golden(&features, &[(0x0f * 4, &[1, 0, 0x20, 0])]);
    let mut pages = SupportedLogPages::default();
    pages.lids[usize::from(lid::ANA)] = (supported::LSUPP | 1 << supported::LIDSP_SHIFT).into();
    assert_golden(&pages, &[(0x0c * 4, &[1, 0, 1, 0])]);
}

#[test]
fn ana_log_has_the_golden_bytes() {
    let header = AnaHeader::new(0x0102_0304_0506_0708, 0x090a);
    assert_golden(&header, &[(0, &[8, 7, 6, 5, 4, 3, 2, 1, 0x0a, 9])]);
    let group = AnaGroupDescriptor::new(0x0102_0304, 0x0506_0708, 9, ana_state::INACCESSIBLE);
    assert_golden(
        &group,
        &[(0, &[4, 3, 2, 1, 8, 7, 6, 5, 9, 0, 0, 0, 0, 0, 0, 0, 3])],
    );
    let reserved = AnaGroupDescriptor {
        state: 0xff,
        ..Default::default()
    };
    assert_eq!(reserved.ana_state(), ana_state::CHANGE);
}

#[test]
fn host_behavior_has_the_golden_bytes() {
    let host = HostBehaviorSupport {
        acre: 1,
        lbafee: 1,
        cdfe: 0x001c.into(),
        ..Default::default()
    };
    assert_golden(&host, &[(0, &[1, 0, 1, 0, 0x1c, 0])]);
}

#[test]
fn queue_counts_are_zero_based() {
    assert_eq!(number_of_queues(4, 8), 0x0007_0003);
    assert_eq!(parse_number_of_queues(0x0007_0003), (4, 8));
    assert_eq!(parse_number_of_queues(0xffff_ffff), (65536, 65536));
}

#[test]
fn events_have_the_golden_dword() {
    let ana = event::event_dw0(event::kind::NOTICE, event::notice::ANA_CHANGE, lid::ANA);
    assert_eq!(ana, 0x000c_0302);
    let discovery = event::event_dw0(
        event::kind::NOTICE,
        event::notice::DISCOVERY_LOG_CHANGE,
        lid::DISCOVERY,
    );
    assert_eq!(discovery, 0x0070_f002);
    assert_eq!(event::parse_event_dw0(discovery), (2, 0xf0, 0x70));
}

#[test]
fn event_configuration_has_the_bits_of_the_capabilities() {
    use crate::identify::oaes;
    assert_eq!(async_event::NAMESPACE_ATTRIBUTE, oaes::NAMESPACE_ATTRIBUTE);
    assert_eq!(async_event::FIRMWARE_ACTIVATION, oaes::FIRMWARE_ACTIVATION);
    assert_eq!(async_event::ANA_CHANGE, oaes::ANA_CHANGE);
    assert_eq!(
        async_event::DISCOVERY_LOG_CHANGE,
        oaes::DISCOVERY_LOG_CHANGE
    );
    assert_eq!(async_event::DISCOVERY_LOG_CHANGE, 0x8000_0000);
    assert_eq!(async_event::ANA_CHANGE, 0x0800);
}

#[test]
fn truncated_structures_are_rejected() {
    assert_truncation_is_rejected::<ErrorEntry>();
    assert_truncation_is_rejected::<SmartLog>();
    assert_truncation_is_rejected::<FirmwareSlot>();
    assert_truncation_is_rejected::<ChangedNamespaces>();
    assert_truncation_is_rejected::<CommandsEffects>();
    assert_truncation_is_rejected::<FeatureEffects>();
    assert_truncation_is_rejected::<SupportedLogPages>();
    assert_truncation_is_rejected::<AnaHeader>();
    assert_truncation_is_rejected::<AnaGroupDescriptor>();
    assert_truncation_is_rejected::<HostBehaviorSupport>();
}
