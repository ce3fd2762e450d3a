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
        }),
        cluster_size_bytes,
        force: false,
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
        thick: false,
    };
    let request = v1::CreateVolumeRequest {
        volume: Some(volume),
    };
    let answer = services.create_volume(Request::new(request)).await?;
    Ok(answer.into_inner())
}

async fn snapshots(services: &Services, names: &[&str]) -> Result<Vec<v1::Volume>, Status> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    let request = v1::CreateSnapshotsRequest { names };
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
    assert_eq!(names, ["p".to_owned(), format!("{NQN}/1")]);
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
            bdev: String::new(),
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
