use super::*;

fn format(data_bytes: u64, metadata_bytes: u64, in_use: bool) -> LbaFormat {
    LbaFormat {
        data_bytes,
        metadata_bytes,
        in_use,
    }
}

fn drive() -> DriveState {
    DriveState {
        name: "a".to_owned(),
        serial: "S1".to_owned(),
        power_state: Some(2),
        power_state_max: 2,
        write_cache: Some(false),
        arbitration_burst: Some(7),
        problem: String::new(),
        namespaces: vec![NamespaceState {
            nsid: 1,
            name: "an1".to_owned(),
            formats: vec![
                format(512, 0, true),
                format(512, 8, false),
                format(4096, 0, false),
            ],
            users: Vec::new(),
        }],
    }
}

fn profile(nvme: &str) -> Profile {
    let text = format!("schema = 1\nsummary = \"s\"\n[nvme]\n{nvme}");
    Profile::parse("test", &text).unwrap()
}

const ALL: &str = "lba_data_bytes = { want = 4096, why = \"w\" }
    lba_metadata_bytes = { want = 0, why = \"w\" }
    power_state = { want = 0, why = \"w\" }
    write_cache = { want = true, why = \"w\" }
    arbitration_burst = { want = 7, why = \"w\" }";

#[test]
fn features_come_first_and_only_what_differs() {
    let plan = changes(&profile(ALL), &[drive()]);
    let feature = |feature, from: Value, to: Value| Change::Feature {
        drive: "a".to_owned(),
        feature,
        from: Some(from),
        to,
    };
    let wanted = [
        feature("write_cache", false.into(), true.into()),
        feature("power_state", 2.into(), 0.into()),
        Change::Format {
            drive: "a".to_owned(),
            serial: "S1".to_owned(),
            nsid: 1,
            bdev: "an1".to_owned(),
            from: Some((512, 0)),
            to: (4096, 0),
        },
    ];
    assert_eq!(plan.changes, wanted);
    assert!(plan.refused.is_empty());
}

#[test]
fn a_drive_that_is_as_wanted_is_left_alone() {
    let text = "lba_data_bytes = { want = 512, why = \"w\" }
        power_state = { want = 2, why = \"w\" }
        write_cache = { want = false, why = \"w\" }";
    assert_eq!(changes(&profile(text), &[drive()]), Plan::default());
}

#[test]
fn a_format_of_a_namespace_in_use_is_refused_and_its_users_are_named() {
    let mut drive = drive();
    drive.namespaces[0].users = vec!["pool p".to_owned(), "namespace nqn.x/1".to_owned()];
    let plan = changes(
        &profile("lba_data_bytes = { want = 4096, why = \"w\" }"),
        &[drive],
    );
    assert!(plan.changes.is_empty());
    assert_eq!(
        plan.refused,
        ["an1: is in use by pool p, namespace nqn.x/1; remove that first"]
    );
}

#[test]
fn what_the_drive_does_not_have_is_refused() {
    let mut drive = drive();
    drive.power_state_max = 0;
    drive.write_cache = None;
    let text = "lba_data_bytes = { want = 8192, why = \"w\" }
        power_state = { want = 1, why = \"w\" }
        write_cache = { want = true, why = \"w\" }";
    let plan = changes(&profile(text), &[drive]);
    assert!(plan.changes.is_empty());
    assert_eq!(
        plan.refused,
        [
            "drive a: it has no power state 1; its last is 0",
            "an1: the drive has no format of 8192 bytes with 0 bytes of metadata",
        ]
    );
}

#[test]
fn a_namespace_with_metadata_is_formatted_to_one_without() {
    let mut drive = drive();
    drive.namespaces[0].formats = vec![format(4096, 8, true), format(4096, 0, false)];
    let plan = changes(
        &profile("lba_metadata_bytes = { want = 0, why = \"w\" }"),
        &[drive],
    );
    let [Change::Format { from, to, .. }] = plan.changes.as_slice() else {
        panic!("{plan:?}");
    };
    assert_eq!((*from, *to), (Some((4096, 8)), (4096, 0)));
}

#[test]
fn a_drive_that_is_not_there_is_refused_with_its_reason() {
    let mut drive = drive();
    drive.problem = "is pending: the drive is gone".to_owned();
    let plan = changes(&profile(ALL), &[drive]);
    assert!(plan.changes.is_empty());
    assert_eq!(plan.refused, ["drive a: is pending: the drive is gone"]);
}
