use std::time::Instant;

use api::v1::bdev_service_server::BdevService as _;
use api::v1::config_service_server::ConfigService as _;
use api::v1::namespace_service_server::NamespaceService as _;
use api::v1::operation_service_server::OperationService as _;
use api::v1::pool_service_server::PoolService as _;
use api::v1::snapshot_service_server::SnapshotService as _;
use api::v1::volume_service_server::VolumeService as _;
use metastore::StateStore;
use tempfile::TempDir;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use super::*;
use crate::control::About;
use crate::fake_runtime::FakeRuntime;
use crate::model::{Limits, Model};

mod drives;

const NQN: &str = "nqn.2026-11.io.adit:p:v";

/// Services over the state in a directory.
async fn started(directory: &TempDir) -> (Services, Arc<FakeRuntime>) {
    let path = directory.path().join("state.redb");
    let (store, contents) = StateStore::open(&path).unwrap();
    let runtime = Arc::new(FakeRuntime::default());
    let model = Model::restore(Limits::default(), &contents).unwrap();
    let about = About {
        node_id: "test".into(),
        state_dir: directory.path().into(),
        start_time_unix_ms: 0,
        started: Instant::now(),
    };
    let control = Control::new(model, store, runtime.clone(), about);
    control.start().await;
    let (shutdown, _) = mpsc::channel(1);
    (Services::new(control, shutdown), runtime)
}

async fn add_bdev(services: &Services, name: &str) {
    let kind = v1::bdev_spec::Kind::Malloc(v1::MallocBdev {
        size_bytes: 1 << 30,
        block_size: None,
    });
    let bdev = v1::BdevSpec {
        name: name.into(),
        kind: Some(kind),
        ..v1::BdevSpec::default()
    };
    let request = v1::CreateBdevRequest { bdev: Some(bdev) };
    services.create_bdev(Request::new(request)).await.unwrap();
}

async fn create_pool(
    services: &Services,
    name: &str,
    bdev: &str,
    cluster_size_bytes: Option<u64>,
) -> Result<v1::Pool, Status> {
    let request = v1::CreatePoolRequest {
        pool: Some(v1::PoolSpec {
            name: name.into(),
            bdev_name: bdev.into(),
            uuid: None,
            system: None,
        }),
        cluster_size_bytes,
        ..v1::CreatePoolRequest::default()
    };
    let answer = services.create_pool(Request::new(request)).await?;
    Ok(answer.into_inner())
}

async fn create_volume(
    services: &Services,
    name: &str,
    size_bytes: u64,
) -> Result<v1::Volume, Status> {
    let volume = v1::VolumeSpec {
        name: name.into(),
        size_bytes,
        ..v1::VolumeSpec::default()
    };
    let request = v1::CreateVolumeRequest {
        volume: Some(volume),
    };
    let answer = services.create_volume(Request::new(request)).await?;
    Ok(answer.into_inner())
}

async fn snapshots(services: &Services, names: &[&str]) -> Result<Vec<v1::Volume>, Status> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    let request = v1::CreateSnapshotsRequest {
        names,
        ..v1::CreateSnapshotsRequest::default()
    };
    let answer = services.create_snapshots(Request::new(request)).await?;
    Ok(answer.into_inner().snapshots)
}

async fn share(services: &Services, name: &str) -> Result<v1::ShareVolumeResponse, Status> {
    let request = v1::ShareVolumeRequest {
        name: name.into(),
        address: Some(v1::Address::from_uri("tcp://127.0.0.1:4420").unwrap()),
        nqn: None,
        host_nqns: Vec::new(),
    };
    let answer = services.share_volume(Request::new(request)).await?;
    Ok(answer.into_inner())
}

/// A pool `p` on `b0` with a volume `p/v`.
async fn with_volume(directory: &TempDir) -> (Services, Arc<FakeRuntime>) {
    let (services, runtime) = started(directory).await;
    add_bdev(&services, "b0").await;
    create_pool(&services, "p", "b0", None).await.unwrap();
    create_volume(&services, "p/v", 1 << 20).await.unwrap();
    (services, runtime)
}

async fn delete_bdev(services: &Services, name: &str) -> Result<(), Status> {
    let request = v1::DeleteBdevRequest {
        name: name.into(),
        ..v1::DeleteBdevRequest::default()
    };
    services.delete_bdev(Request::new(request)).await.map(drop)
}

async fn export_pool(services: &Services, name: &str) -> Result<(), Status> {
    let request = v1::ExportPoolRequest {
        name: name.into(),
        ..v1::ExportPoolRequest::default()
    };
    services.export_pool(Request::new(request)).await.map(drop)
}

async fn delete_pool(services: &Services, name: &str) -> Result<(), Status> {
    let request = v1::DeletePoolRequest {
        name: name.into(),
        ..v1::DeletePoolRequest::default()
    };
    services.delete_pool(Request::new(request)).await.map(drop)
}

async fn import_pool(services: &Services, bdev: &str, name: &str) -> Result<v1::Pool, Status> {
    let request = v1::ImportPoolRequest {
        bdev_name: bdev.into(),
        name: name.into(),
    };
    let answer = services.import_pool(Request::new(request)).await?;
    Ok(answer.into_inner())
}

fn field(status: &Status) -> String {
    let bad = status.get_details_bad_request().unwrap();
    bad.field_violations[0].field.clone()
}

#[tokio::test]
async fn a_pool_is_made_once_and_its_difference_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let (services, _runtime) = started(&directory).await;
    add_bdev(&services, "b0").await;
    add_bdev(&services, "b1").await;
    let first = create_pool(&services, "p", "b0", Some(65_536))
        .await
        .unwrap();
    assert_eq!(first.cluster_size_bytes, 65_536);
    assert_eq!(
        create_pool(&services, "p", "b0", Some(65_536))
            .await
            .unwrap(),
        first
    );
    assert_eq!(
        create_pool(&services, "p", "b0", None).await.unwrap(),
        first
    );
    let other_size = create_pool(&services, "p", "b0", Some(1 << 20)).await;
    let status = other_size.unwrap_err();
    assert_eq!(
        (status.code(), field(&status)),
        (Code::AlreadyExists, "cluster_size_bytes".to_owned())
    );
    let status = create_pool(&services, "p", "b1", None).await.unwrap_err();
    assert_eq!(
        (status.code(), field(&status)),
        (Code::AlreadyExists, "bdev_name".to_owned())
    );
    // Its device is taken, for a second pool as for deletion.
    let status = create_pool(&services, "q", "b0", None).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("pool p"), "{}", status.message());
    let status = delete_bdev(&services, "b0").await.unwrap_err();
    assert!(status.message().contains("pool p"), "{}", status.message());
    for size in [1000, 32 << 10, 64 << 20] {
        let status = create_pool(&services, "q", "b1", Some(size))
            .await
            .unwrap_err();
        assert_eq!(field(&status), "cluster_size_bytes");
    }
    for name in ["", "a/b", "-a", "a@b", &"a".repeat(64)] {
        let status = create_pool(&services, name, "b1", None).await.unwrap_err();
        assert_eq!(field(&status), "pool.name");
    }
}

#[tokio::test]
async fn an_exported_pool_comes_back_with_its_volumes() {
    let directory = tempfile::tempdir().unwrap();
    let (services, runtime) = with_volume(&directory).await;
    export_pool(&services, "p").await.unwrap();
    assert_eq!(
        export_pool(&services, "p").await.unwrap_err().code(),
        Code::NotFound
    );
    let status = create_volume(&services, "p/w", 4096).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    // The device is free, and says what is on it.
    let status = create_pool(&services, "q", "b0", None).await.unwrap_err();
    assert!(status.message().contains("holds a pool"));
    let status = import_pool(&services, "b0", "q").await.unwrap_err();
    assert!(status.message().contains("holds pool \"p\""));
    for name in ["", "p"] {
        let pool = import_pool(&services, "b0", name).await.unwrap();
        assert_eq!(pool.spec.unwrap().name, "p");
    }
    assert!(runtime.memory().open["p"].inner().volumes.contains_key("v"));
    delete_pool(&services, "p").await.unwrap();
    let status = import_pool(&services, "b0", "").await.unwrap_err();
    assert!(status.message().contains("holds no pool"));
    delete_bdev(&services, "b0").await.unwrap();
}

#[tokio::test]
async fn a_pool_that_does_not_close_stays_attached() {
    let directory = tempfile::tempdir().unwrap();
    let (services, runtime) = with_volume(&directory).await;
    runtime.memory().refused.insert("close".to_owned());
    let status = export_pool(&services, "p").await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    let pending = services.control.all_pending(10);
    assert_eq!(pending.len(), 1);
    assert_eq!(pending[0].0.name(), "p");
    // A pool that is not open cannot be wiped: to forget it is another call.
    let status = delete_pool(&services, "p").await.unwrap_err();
    assert!(
        status.message().contains("Export it"),
        "{}",
        status.message()
    );
}

#[tokio::test]
async fn attached_pools_are_opened_at_start_or_wait() {
    let directory = tempfile::tempdir().unwrap();
    let (services, runtime) = with_volume(&directory).await;
    share(&services, "p/v").await.unwrap();
    let on_device = runtime.memory().on_device.clone();
    drop((services, runtime));

    let (services, runtime) = started(&directory).await;
    // The pool is not on its device: it and what rests on it wait, nothing is lost.
    let names: Vec<_> = services
        .control
        .all_pending(10)
        .into_iter()
        .map(|(key, _)| key.name())
        .collect();
    let listener = format!("{NQN}/tcp://127.0.0.1:4420");
    assert_eq!(names, ["p".to_owned(), format!("{NQN}/1"), listener]);
    let request = v1::GetPoolRequest { name: "p".into() };
    let pool = services.get_pool(Request::new(request)).await.unwrap();
    let status = pool.into_inner().status.unwrap();
    assert_eq!(status.reason, "no pool there");
    runtime.memory().on_device = on_device;
    let retrying = services.control.clone();
    let retrying = tokio::spawn(async move { retrying.run().await });
    // Told by the control plane, not waited for by the clock.
    services
        .control
        .lost(crate::model::Key::Pool("p".into()), String::new());
    while !services.control.all_pending(1).is_empty() {
        tokio::task::yield_now().await;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    retrying.abort();
    create_volume(&services, "p/w", 4096).await.unwrap();
}

#[tokio::test]
async fn volumes_are_made_once_and_the_difference_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let (services, runtime) = with_volume(&directory).await;
    create_volume(&services, "p/v", 1 << 20).await.unwrap();
    let status = create_volume(&services, "p/v", 2 << 20).await.unwrap_err();
    assert_eq!(
        (status.code(), field(&status)),
        (Code::AlreadyExists, "size_bytes".to_owned())
    );
    assert_eq!(
        runtime.memory().open["p"].inner().calls,
        ["make v".to_owned()]
    );
    for name in ["v", "p/", "/v", "p/v@s", "p/a/b", "p/\u{e4}"] {
        let status = create_volume(&services, name, 4096).await.unwrap_err();
        assert_eq!(field(&status), "volume.name", "{name}");
    }
    let status = create_volume(&services, "p/z", 0).await.unwrap_err();
    assert_eq!(field(&status), "volume.size_bytes");
}

#[tokio::test]
async fn snapshots_are_taken_together_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let (services, _runtime) = with_volume(&directory).await;
    create_volume(&services, "p/w", 4096).await.unwrap();
    let names = ["p/v@1", "p/w@1"];
    assert_eq!(snapshots(&services, &names).await.unwrap().len(), 2);
    assert_eq!(snapshots(&services, &names).await.unwrap().len(), 2);
    let status = snapshots(&services, &["p/v@1", "p/w@2"]).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    let status = snapshots(&services, &["p/v@3", "p/x@3"]).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    for wrong in [
        &[][..],
        &["p/v"],
        &["p/v@a", "q/v@a"],
        &["p/v@a", "p/v@b"],
        &["p/v@a@b"],
    ] {
        let status = snapshots(&services, wrong).await.unwrap_err();
        assert_eq!(field(&status), "names", "{wrong:?}");
    }
    let clone = |name: &str| {
        let request = v1::CloneVolumeRequest {
            snapshot: "p/v@1".into(),
            name: name.into(),
            ..v1::CloneVolumeRequest::default()
        };
        services.clone_volume(Request::new(request))
    };
    clone("p/c").await.unwrap();
    clone("p/c").await.unwrap();
    assert_eq!(clone("p/w").await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(
        field(&clone("q/c").await.unwrap_err()),
        "name",
        "a clone stays in its pool"
    );
    let of_bdev = |bdev: &str, snapshot: &str| {
        let request = v1::CloneVolumeRequest {
            snapshot: snapshot.into(),
            name: "p/b".into(),
            bdev: bdev.into(),
            ..v1::CloneVolumeRequest::default()
        };
        services.clone_volume(Request::new(request))
    };
    for (bdev, snapshot) in [("", ""), ("gold", "p/v@1")] {
        assert_eq!(
            field(&of_bdev(bdev, snapshot).await.unwrap_err()),
            "snapshot"
        );
    }
    let made = of_bdev("gold", "").await.unwrap().into_inner();
    assert_eq!(made.parent, "gold");
    of_bdev("gold", "").await.unwrap();
    let other = of_bdev("silver", "").await.unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists);
}

#[tokio::test]
async fn a_volume_gets_another_parent() {
    let directory = tempfile::tempdir().unwrap();
    let (services, _runtime) = with_volume(&directory).await;
    snapshots(&services, &["p/v@1"]).await.unwrap();
    let set = |name: &str, snapshot: &str, bdev: &str| {
        let request = v1::SetVolumeParentRequest {
            name: name.into(),
            snapshot: snapshot.into(),
            bdev: bdev.into(),
        };
        services.set_volume_parent(Request::new(request))
    };
    for (snapshot, bdev) in [("", ""), ("p/v@1", "gold")] {
        let status = set("p/v", snapshot, bdev).await.unwrap_err();
        assert_eq!(field(&status), "snapshot");
    }
    for wrong in ["p/v", "q/v@1"] {
        assert_eq!(
            field(&set("p/v", wrong, "").await.unwrap_err()),
            "snapshot",
            "{wrong}"
        );
    }
    for (name, snapshot) in [("p/none", "p/v@1"), ("p/v", "p/v@none")] {
        let status = set(name, snapshot, "").await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
    }
    let on = set("p/v", "p/v@1", "").await.unwrap().into_inner();
    assert_eq!(on.parent, "p/v@1");
    let on = set("p/v", "", "gold").await.unwrap().into_inner();
    assert_eq!(on.parent, "gold");
}

#[tokio::test]
async fn a_volume_that_is_served_is_not_deleted_renamed_or_exported() {
    let directory = tempfile::tempdir().unwrap();
    let (services, _runtime) = with_volume(&directory).await;
    let shared = share(&services, "p/v").await.unwrap();
    assert_eq!(
        shared.created,
        [
            format!("subsystem {NQN}"),
            format!("namespace {NQN}/1"),
            "transport tcp".to_owned(),
            format!("listener {NQN}/tcp://127.0.0.1:4420"),
        ]
    );
    let again = share(&services, "p/v").await.unwrap();
    assert_eq!(again.created, Vec::<String>::new());
    let delete = v1::DeleteVolumeRequest {
        name: "p/v".into(),
        allow_missing: false,
    };
    let deleted = services.delete_volume(Request::new(delete.clone())).await;
    let rename = v1::RenameVolumeRequest {
        name: "p/v".into(),
        new_name: "p/w".into(),
    };
    let renamed = services.rename_volume(Request::new(rename.clone())).await;
    let exported = export_pool(&services, "p").await;
    for status in [
        deleted.unwrap_err(),
        renamed.unwrap_err(),
        exported.unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::FailedPrecondition);
        let named = format!("namespace {NQN}/1");
        assert!(status.message().contains(&named), "{}", status.message());
    }
    let request = v1::DeleteNamespaceRequest {
        nqn: NQN.into(),
        nsid: 1,
        ..v1::DeleteNamespaceRequest::default()
    };
    services
        .delete_namespace(Request::new(request))
        .await
        .unwrap();
    for _ in 0..2 {
        let renamed = services.rename_volume(Request::new(rename.clone())).await;
        assert_eq!(renamed.unwrap().into_inner().name, "p/w");
    }
    let status = services.delete_volume(Request::new(delete)).await;
    assert_eq!(status.unwrap_err().code(), Code::NotFound);
    let delete = v1::DeleteVolumeRequest {
        name: "p/w".into(),
        allow_missing: false,
    };
    let deleted = services.delete_volume(Request::new(delete)).await.unwrap();
    assert_eq!(deleted.into_inner().operation, "p/1");
}

#[tokio::test]
async fn a_namespace_of_no_volume_is_refused_while_its_pool_is_open() {
    let directory = tempfile::tempdir().unwrap();
    let (services, _runtime) = with_volume(&directory).await;
    for name in ["p/none", "q/v", "none"] {
        let request = v1::CreateNamespaceRequest {
            nqn: NQN.into(),
            namespace: Some(v1::NamespaceSpec {
                bdev_name: name.into(),
                ..v1::NamespaceSpec::default()
            }),
        };
        let status = services.create_namespace(Request::new(request)).await;
        assert_eq!(status.unwrap_err().code(), Code::NotFound, "{name}");
    }
}

#[tokio::test]
async fn a_volume_is_made_smaller_only_when_that_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let (services, _runtime) = with_volume(&directory).await;
    let resize = |size_bytes, allow_shrink| {
        let request = v1::ResizeVolumeRequest {
            name: "p/v".into(),
            size_bytes,
            allow_shrink,
        };
        services.resize_volume(Request::new(request))
    };
    resize(2 << 20, false).await.unwrap();
    let status = resize(1 << 20, false).await.unwrap_err();
    assert_eq!(field(&status), "size_bytes");
    assert_eq!(
        resize(1 << 20, true).await.unwrap().into_inner().size_bytes,
        1 << 20
    );
}

#[tokio::test]
async fn pages_of_volumes_go_over_pools() {
    let directory = tempfile::tempdir().unwrap();
    let (services, _runtime) = started(&directory).await;
    let mut expected = Vec::new();
    // In the order of the pools' names, which is not that of the volumes' full names.
    for pool in ["a", "a-b", "c"] {
        add_bdev(&services, &format!("b-{pool}")).await;
        create_pool(&services, pool, &format!("b-{pool}"), None)
            .await
            .unwrap();
        for number in 0..3 {
            let name = format!("{pool}/{number}");
            create_volume(&services, &name, 4096).await.unwrap();
            expected.push(name);
        }
    }
    for page_size in [1, 2, 3, 4, 9, 100] {
        let mut found = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListVolumesRequest {
                pool: String::new(),
                page_size,
                page_token,
                ..v1::ListVolumesRequest::default()
            };
            let page = services.list_volumes(Request::new(request)).await;
            let page = page.unwrap().into_inner();
            assert_eq!(page.total_size, 9);
            assert!(page.volumes.len() <= page_size as usize);
            found.extend(page.volumes.into_iter().map(|volume| volume.name));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(found, expected, "pages of {page_size}");
    }
}

#[tokio::test]
async fn operations_are_listed_cancelled_and_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let (services, runtime) = with_volume(&directory).await;
    let scrub = v1::ScrubPoolRequest {
        name: "p".into(),
        bytes_per_sec: 0,
    };
    for number in 1..=11 {
        let started = services.scrub_pool(Request::new(scrub.clone())).await;
        assert_eq!(started.unwrap().into_inner().name, format!("p/{number}"));
    }
    let list = v1::ListOperationsRequest {
        page_size: 1000,
        ..v1::ListOperationsRequest::default()
    };
    let list = services.list_operations(Request::new(list)).await.unwrap();
    let names: Vec<_> = list
        .into_inner()
        .operations
        .into_iter()
        .map(|operation| operation.name)
        .collect();
    assert_eq!(
        (names[1].as_str(), names[10].as_str()),
        ("p/2", "p/11"),
        "by number"
    );
    let wait = |timeout_ms| {
        let request = v1::WaitOperationRequest {
            name: "p/1".into(),
            timeout_ms: Some(timeout_ms),
        };
        services.wait_operation(Request::new(request))
    };
    let running = wait(0).await.unwrap().into_inner();
    assert_eq!(running.state(), v1::OperationState::Running);
    let cancel = v1::CancelOperationRequest { name: "p/1".into() };
    for _ in 0..2 {
        let cancelled = services
            .cancel_operation(Request::new(cancel.clone()))
            .await
            .unwrap();
        assert_eq!(
            cancelled.into_inner().state(),
            v1::OperationState::Cancelled
        );
    }
    let ended = wait(60_000).await.unwrap().into_inner();
    assert_eq!(ended.state(), v1::OperationState::Cancelled);
    runtime.memory().open.clear();
    assert_eq!(
        wait(0).await.unwrap_err().code(),
        Code::FailedPrecondition,
        "a closed pool tells so"
    );
}

#[tokio::test]
async fn a_document_attaches_and_lets_go_of_pools() {
    let directory = tempfile::tempdir().unwrap();
    let (services, runtime) = with_volume(&directory).await;
    share(&services, "p/v").await.unwrap();
    let request = v1::GetDocumentRequest {};
    let document = services.get_document(Request::new(request)).await;
    let document = document.unwrap().into_inner().document.unwrap();
    assert_eq!(document.pools.len(), 1);
    let apply = |document: &v1::Document| {
        let request = v1::ApplyRequest {
            document: Some(document.clone()),
            ..v1::ApplyRequest::default()
        };
        services.apply(Request::new(request))
    };
    let same = apply(&document).await.unwrap().into_inner();
    assert_eq!(same.changes, []);
    apply(&v1::Document::default()).await.unwrap();
    assert!(runtime.memory().open.is_empty());
    // The devices come first: the pool is opened when its device is in place.
    apply(&document).await.unwrap();
    assert_eq!(services.control.all_pending(10), []);
    assert!(runtime.memory().open["p"].inner().volumes.contains_key("v"));
    let mut other = document.clone();
    other.bdevs.push(v1::BdevSpec {
        name: "b1".into(),
        ..document.bdevs[0].clone()
    });
    other.bdevs[1].uuid = None;
    other.pools[0].bdev_name = "b1".into();
    let status = apply(&other).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(
        status.message().contains("bdev_name"),
        "{}",
        status.message()
    );
}

fn map(labels: &[(&str, &str)]) -> std::collections::HashMap<String, String> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    labels.iter().map(owned).collect()
}

#[tokio::test]
async fn labels_come_with_creation_and_are_looked_for() {
    let directory = tempfile::tempdir().unwrap();
    let (services, _runtime) = with_volume(&directory).await;
    let create = |name: &str, labels: &[(&str, &str)]| {
        let volume = v1::VolumeSpec {
            name: name.into(),
            size_bytes: 4096,
            labels: map(labels),
            ..v1::VolumeSpec::default()
        };
        services.create_volume(Request::new(v1::CreateVolumeRequest {
            volume: Some(volume),
        }))
    };
    let made = create("p/a", &[("tier", "1"), ("app", "db")])
        .await
        .unwrap();
    assert_eq!(
        made.into_inner().labels,
        map(&[("tier", "1"), ("app", "db")])
    );
    // What is not named is no difference, what is named and differs is one.
    create("p/a", &[("tier", "1")]).await.unwrap();
    let status = create("p/a", &[("tier", "2")]).await.unwrap_err();
    assert_eq!(
        (status.code(), field(&status)),
        (Code::AlreadyExists, "labels[tier]".to_owned())
    );
    let status = create("p/b", &[("adit.qos.burst_ms", "1")])
        .await
        .unwrap_err();
    assert_eq!(field(&status), "volume.labels");
    let request = v1::CreateSnapshotsRequest {
        names: vec!["p/a@s".into(), "p/v@s".into()],
        labels: map(&[("tier", "1")]),
    };
    for _ in 0..2 {
        let taken = services
            .create_snapshots(Request::new(request.clone()))
            .await;
        let taken = taken.unwrap().into_inner().snapshots;
        assert!(taken.iter().all(|one| one.labels == map(&[("tier", "1")])));
    }
    let other = v1::CreateSnapshotsRequest {
        labels: map(&[("tier", "2")]),
        ..request
    };
    let status = services.create_snapshots(Request::new(other)).await;
    assert_eq!(status.unwrap_err().code(), Code::AlreadyExists);
    let clone = v1::CloneVolumeRequest {
        snapshot: "p/a@s".into(),
        name: "p/c".into(),
        labels: map(&[("app", "db")]),
        ..v1::CloneVolumeRequest::default()
    };
    let cloned = services.clone_volume(Request::new(clone)).await.unwrap();
    assert_eq!(cloned.into_inner().labels, map(&[("app", "db")]));
    for (labels, expected) in [
        (&[][..], &["p/a", "p/c", "p/v"][..]),
        (&[("app", "db")], &["p/a", "p/c"]),
        (&[("app", "db"), ("tier", "1")], &["p/a"]),
        (&[("app", "web")], &[]),
    ] {
        let request = v1::ListVolumesRequest {
            labels: map(labels),
            page_size: 1,
            ..v1::ListVolumesRequest::default()
        };
        let page = services.list_volumes(Request::new(request)).await.unwrap();
        let page = page.into_inner();
        assert_eq!(page.total_size as usize, expected.len());
        let first = page.volumes.first().map(|volume| volume.name.as_str());
        assert_eq!(first, expected.first().copied());
    }
    let request = v1::ListSnapshotsRequest {
        labels: map(&[("tier", "1")]),
        parent: "p/v".into(),
        ..v1::ListSnapshotsRequest::default()
    };
    let found = services
        .list_snapshots(Request::new(request))
        .await
        .unwrap();
    assert_eq!(found.into_inner().total_size, 1);
}

#[tokio::test]
async fn labels_of_the_program_are_not_their_owners() {
    let directory = tempfile::tempdir().unwrap();
    let (services, runtime) = with_volume(&directory).await;
    let update = |set: &[(&str, &str)], remove: &[&str]| {
        let request = v1::UpdateVolumeRequest {
            name: "p/v".into(),
            labels: map(set),
            remove_labels: remove.iter().map(|key| (*key).to_owned()).collect(),
            ..v1::UpdateVolumeRequest::default()
        };
        services.update_volume(Request::new(request))
    };
    let status = update(&[("adit.repaired", "no")], &[]).await.unwrap_err();
    assert_eq!(field(&status), "labels");
    let status = update(&[], &["adit.qos.burst_ms"]).await.unwrap_err();
    assert_eq!(field(&status), "remove_labels");
    let told = || map(&[("adit.repaired", "a piece is lost")]);
    let open = runtime.memory().open["p"].clone();
    open.inner().volumes.get_mut("v").unwrap().labels = told();
    // Who has seen it takes it away.
    let volume = update(&[("a", "")], &["adit.repaired"]).await.unwrap();
    assert_eq!(volume.into_inner().labels, map(&[("a", "")]));
    let request = v1::UpdatePoolRequest {
        name: "p".into(),
        labels: map(&[("adit.space.warning_percent", "5")]),
        ..v1::UpdatePoolRequest::default()
    };
    let status = services
        .update_pool(Request::new(request))
        .await
        .unwrap_err();
    assert_eq!(field(&status), "labels");
}

#[tokio::test]
async fn limits_of_a_volume_change_one_by_one_and_as_its_block_device() {
    let directory = tempfile::tempdir().unwrap();
    let (services, _runtime) = with_volume(&directory).await;
    let limits = |rw_ios_per_sec, w_bytes_per_sec| v1::QosLimits {
        rw_ios_per_sec,
        w_bytes_per_sec,
        ..v1::QosLimits::default()
    };
    let mask = |path: &str| {
        Some(prost_types::FieldMask {
            paths: vec![path.to_owned()],
        })
    };
    let update = |qos, path: &str| {
        let request = v1::UpdateVolumeRequest {
            name: "p/v".into(),
            qos: Some(qos),
            update_mask: mask(path),
            ..v1::UpdateVolumeRequest::default()
        };
        services.update_volume(Request::new(request))
    };
    let set = update(limits(100, 0), "qos.rw_ios_per_sec").await.unwrap();
    let with_burst = |qos: v1::QosLimits| v1::QosLimits {
        burst_ms: Some(1),
        ..qos
    };
    assert_eq!(set.into_inner().qos, Some(with_burst(limits(100, 0))));
    let bdev = v1::BdevSpec {
        name: "p/v".into(),
        qos: Some(limits(0, 4096)),
        ..v1::BdevSpec::default()
    };
    let request = v1::UpdateBdevRequest {
        bdev: Some(bdev),
        update_mask: mask("qos.w_bytes_per_sec"),
        expected_generation: None,
    };
    let changed = services.update_bdev(Request::new(request.clone())).await;
    let spec = changed.unwrap().into_inner().spec.unwrap();
    assert_eq!(spec.qos, Some(with_burst(limits(100, 4096))));
    let request = v1::UpdateBdevRequest {
        expected_generation: Some(1),
        ..request
    };
    let status = services.update_bdev(Request::new(request)).await;
    assert_eq!(field(&status.unwrap_err()), "expected_generation");
    let request = v1::GetBdevRequest { name: "p/v".into() };
    let shown = services.get_bdev(Request::new(request)).await.unwrap();
    let qos = shown.into_inner().spec.unwrap().qos;
    assert_eq!(qos, Some(with_burst(limits(100, 4096))));
    // The same creation as before: limits that it does not name are no difference.
    create_volume(&services, "p/v", 1 << 20).await.unwrap();
    let volume = v1::VolumeSpec {
        name: "p/v".into(),
        size_bytes: 1 << 20,
        qos: Some(limits(100, 1)),
        ..v1::VolumeSpec::default()
    };
    let request = v1::CreateVolumeRequest {
        volume: Some(volume),
    };
    let status = services.create_volume(Request::new(request)).await;
    assert_eq!(field(&status.unwrap_err()), "qos.w_bytes_per_sec");
    let off = update(limits(0, 0), "qos").await.unwrap();
    assert_eq!(off.into_inner().qos, None);
    let long = v1::QosLimits {
        burst_ms: Some(10_001),
        ..limits(1, 0)
    };
    let status = update(long, "qos").await.unwrap_err();
    assert!(field(&status).contains("burst_ms"), "{status:?}");
    let status = update(limits(1, 0), "size_bytes").await.unwrap_err();
    assert_eq!(field(&status), "update_mask");
    snapshots(&services, &["p/v@s"]).await.unwrap();
    let request = v1::UpdateVolumeRequest {
        name: "p/v@s".into(),
        qos: Some(limits(1, 0)),
        update_mask: mask("qos"),
        ..v1::UpdateVolumeRequest::default()
    };
    let status = services.update_volume(Request::new(request)).await;
    assert_eq!(field(&status.unwrap_err()), "qos");
}

#[tokio::test]
async fn counters_of_all_devices_are_also_those_of_volumes_and_snapshots() {
    let directory = tempfile::tempdir().unwrap();
    let (services, _runtime) = with_volume(&directory).await;
    snapshots(&services, &["p/v@s"]).await.unwrap();
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListBdevStatsRequest {
            page_size: 2,
            page_token,
            ..v1::ListBdevStatsRequest::default()
        };
        let page = services.list_bdev_stats(Request::new(request)).await;
        let page = page.unwrap().into_inner();
        found.extend(page.bdevs.into_iter().map(|stats| stats.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(found, ["b0", "p/v", "p/v@s"]);
}

#[tokio::test]
async fn a_pool_keeps_labels_and_thresholds() {
    let directory = tempfile::tempdir().unwrap();
    let (services, _runtime) = started(&directory).await;
    add_bdev(&services, "b0").await;
    let create = |warning: Option<u32>, critical: Option<u32>, tier: &str| {
        let request = v1::CreatePoolRequest {
            pool: Some(v1::PoolSpec {
                name: "p".into(),
                bdev_name: "b0".into(),
                uuid: None,
                system: None,
            }),
            labels: map(&[("tier", tier)]),
            warning_percent: warning,
            critical_percent: critical,
            ..v1::CreatePoolRequest::default()
        };
        services.create_pool(Request::new(request))
    };
    for (warning, critical, wrong) in [
        (Some(0), None, "warning_percent"),
        (None, Some(101), "critical_percent"),
        (Some(95), None, "warning_percent"),
        (Some(60), Some(50), "warning_percent"),
    ] {
        let status = create(warning, critical, "1").await.unwrap_err();
        assert_eq!(field(&status), wrong, "{warning:?} {critical:?}");
    }
    for _ in 0..2 {
        let pool = create(Some(50), Some(60), "1").await.unwrap().into_inner();
        assert_eq!((pool.warning_percent, pool.critical_percent), (50, 60));
        assert_eq!(pool.labels, map(&[("tier", "1")]));
    }
    let status = create(Some(51), None, "2").await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    let update = |warning, critical| {
        let request = v1::UpdatePoolRequest {
            name: "p".into(),
            labels: map(&[("rack", "7")]),
            remove_labels: vec!["tier".into()],
            warning_percent: warning,
            critical_percent: critical,
            system: None,
        };
        services.update_pool(Request::new(request))
    };
    // Over those that are there.
    let status = update(Some(61), None).await.unwrap_err();
    assert_eq!(field(&status), "warning_percent");
    let pool = update(None, Some(70)).await.unwrap().into_inner();
    assert_eq!((pool.warning_percent, pool.critical_percent), (50, 70));
    assert_eq!(pool.labels, map(&[("rack", "7")]));
}

async fn rename_pool(services: &Services, name: &str, new_name: &str) -> Result<v1::Pool, Status> {
    let request = v1::RenamePoolRequest {
        name: name.into(),
        new_name: new_name.into(),
        expected_generation: None,
    };
    let answer = services.rename_pool(Request::new(request)).await?;
    Ok(answer.into_inner())
}

#[tokio::test]
async fn a_pool_that_nothing_uses_gets_another_name() {
    let directory = tempfile::tempdir().unwrap();
    let (services, _runtime) = with_volume(&directory).await;
    add_bdev(&services, "b1").await;
    create_pool(&services, "q", "b1", None).await.unwrap();
    share(&services, "p/v").await.unwrap();
    let status = rename_pool(&services, "p", "lake").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let named = format!("namespace {NQN}/1 (p/v)");
    assert!(status.message().contains(&named), "{}", status.message());
    let request = v1::DeleteNamespaceRequest {
        nqn: NQN.into(),
        nsid: 1,
        ..v1::DeleteNamespaceRequest::default()
    };
    services
        .delete_namespace(Request::new(request))
        .await
        .unwrap();
    let status = rename_pool(&services, "p", "q").await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    let status = rename_pool(&services, "p", "a/b").await.unwrap_err();
    assert_eq!(field(&status), "new_name");
    let status = rename_pool(&services, "none", "other").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    for _ in 0..2 {
        let pool = rename_pool(&services, "p", "lake").await.unwrap();
        let spec = pool.spec.unwrap();
        assert_eq!((spec.name.as_str(), spec.uuid()), ("lake", &*pool.uuid));
    }
    assert_eq!(services.control.all_pending(10), []);
    create_volume(&services, "lake/w", 4096).await.unwrap();
    let request = v1::GetVolumeRequest {
        name: "lake/v".into(),
    };
    services.get_volume(Request::new(request)).await.unwrap();
}

#[tokio::test]
async fn a_pool_whose_renaming_fails_keeps_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let (services, runtime) = with_volume(&directory).await;
    runtime.memory().refused.insert("lake".to_owned());
    rename_pool(&services, "p", "lake").await.unwrap_err();
    let pending = services.control.all_pending(10);
    assert_eq!(pending.len(), 1, "it is closed, and opened again");
    assert_eq!(pending[0].0.name(), "p");
}
