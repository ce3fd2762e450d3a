//! Formats of drives, and their features.

use super::*;

fn drive_spec() -> v1::BdevSpec {
    let kind = v1::bdev_spec::Kind::Nvme(v1::NvmeBdev {
        serial_number: "S1".into(),
        ..v1::NvmeBdev::default()
    });
    v1::BdevSpec {
        name: "d".into(),
        kind: Some(kind),
        ..v1::BdevSpec::default()
    }
}

/// A drive `d` with two namespaces, and a pool on the first.
async fn with_drive(directory: &TempDir) -> (Services, Arc<FakeRuntime>) {
    let (services, runtime) = started(directory).await;
    let request = v1::CreateBdevRequest {
        bdev: Some(drive_spec()),
    };
    services.create_bdev(Request::new(request)).await.unwrap();
    let drive = v1::NvmeDrive {
        serial_number: "S1".into(),
        ..v1::NvmeDrive::default()
    };
    runtime.memory().drives.insert("d".into(), drive);
    create_pool(&services, "p", "dn1", None).await.unwrap();
    (services, runtime)
}

fn format(nsid: u32) -> v1::FormatDriveRequest {
    v1::FormatDriveRequest {
        name: "d".into(),
        serial_number: "S1".into(),
        nsid,
        data_size: 4096,
        metadata_size: 0,
    }
}

#[tokio::test]
async fn a_namespace_in_use_is_not_formatted_and_its_users_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let (services, runtime) = with_drive(&directory).await;
    let status = services.format_drive(Request::new(format(1))).await;
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("pool p (dn1)"), "{status}");
    services
        .format_drive(Request::new(format(2)))
        .await
        .unwrap();
    assert_eq!(runtime.memory().formats, [format(2)]);
    // A drive that formats all at once: the user of the other counts too.
    let features = v1::NvmeDriveFeatures {
        formats_all_namespaces: true,
        ..v1::NvmeDriveFeatures::default()
    };
    if let Some(drive) = runtime.memory().drives.get_mut("d") {
        drive.features = Some(features);
    }
    let status = services.format_drive(Request::new(format(2))).await;
    assert!(status.unwrap_err().message().contains("pool p (dn1)"));
    assert_eq!(runtime.memory().formats.len(), 1);
}

#[tokio::test]
async fn a_format_of_another_drive_than_was_meant_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (services, runtime) = with_drive(&directory).await;
    type Change = fn(&mut v1::FormatDriveRequest);
    let wrong: [(&str, Change); 4] = [
        ("serial_number", |format| format.serial_number = "S2".into()),
        ("nsid", |format| format.nsid = 0),
        ("nsid", |format| format.nsid = u32::MAX),
        ("data_size", |format| format.data_size = 1000),
    ];
    for (name, change) in wrong {
        let mut request = format(2);
        change(&mut request);
        let status = services.format_drive(Request::new(request)).await;
        let status = status.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(field(&status), name);
    }
    let mut unknown = format(2);
    unknown.name = "e".into();
    let status = services.format_drive(Request::new(unknown)).await;
    assert_eq!(status.unwrap_err().code(), Code::NotFound);
    runtime.memory().drives.clear();
    let status = services.format_drive(Request::new(format(2))).await;
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("in place"), "{status}");
    assert!(runtime.memory().formats.is_empty());
}

#[tokio::test]
async fn a_format_that_fails_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let (services, runtime) = with_drive(&directory).await;
    for step in ["format", "formatting"] {
        runtime.memory().refused.insert(step.into());
        let status = services.format_drive(Request::new(format(2))).await;
        let status = status.unwrap_err();
        assert!(status.message().contains("the test says so"), "{status}");
        runtime.memory().refused.clear();
    }
}

#[tokio::test]
async fn features_of_a_drive_are_part_of_its_specification() {
    let directory = tempfile::tempdir().unwrap();
    let (services, _runtime) = with_drive(&directory).await;
    let update = |nvme: v1::NvmeBdev, path: &str| v1::UpdateBdevRequest {
        bdev: Some(v1::BdevSpec {
            name: "d".into(),
            kind: Some(v1::bdev_spec::Kind::Nvme(nvme)),
            ..v1::BdevSpec::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec![path.to_owned()],
        }),
        expected_generation: None,
    };
    let wanted = v1::NvmeBdev {
        power_state: Some(32),
        write_cache: Some(false),
        ..v1::NvmeBdev::default()
    };
    let request = update(wanted.clone(), "nvme.write_cache");
    let updated = services.update_bdev(Request::new(request)).await.unwrap();
    let spec = updated.into_inner().spec.unwrap();
    let Some(v1::bdev_spec::Kind::Nvme(nvme)) = spec.kind else {
        panic!("{spec:?}");
    };
    assert_eq!((nvme.write_cache, nvme.power_state), (Some(false), None));
    assert_eq!(nvme.serial_number, "S1");
    // The request that made it says nothing of features, and is still the same request.
    let again = v1::CreateBdevRequest {
        bdev: Some(drive_spec()),
    };
    let again = services.create_bdev(Request::new(again)).await.unwrap();
    assert_eq!(
        again.into_inner().spec.unwrap().kind,
        Some(v1::bdev_spec::Kind::Nvme(nvme))
    );
    for path in ["nvme.power_state", "nvme.serial_number"] {
        let request = update(wanted.clone(), path);
        let status = services.update_bdev(Request::new(request)).await;
        assert_eq!(status.unwrap_err().code(), Code::InvalidArgument, "{path}");
    }
}
