use std::path::Path;

use block::BdevOptions;
use block::file::{File, FileOptions};
use block::malloc::{Malloc, MallocOptions};

use super::*;

use crate::pool::{Job, PoolChange, VolumeChange, VolumeQuery, VolumeSettings};

const MIB: u64 = 1 << 20;
const CREATE: Attach = Attach::Create {
    cluster_size: Some(64 << 10),
    force: false,
    change: PoolChange {
        labels: Vec::new(),
        warning_percent: None,
        critical_percent: None,
        system: None,
    },
};

fn spec(name: &str) -> PoolSpec {
    PoolSpec {
        name: name.into(),
        bdev_name: "b0".into(),
        uuid: None,
        system: None,
    }
}

fn driver() -> (LvolDriver, mpsc::Receiver<PoolEvent>) {
    let options = dma::IobufOptions {
        small_pool_count: 512,
        large_pool_count: 64,
        backing: dma::BackingPreference::Plain4K,
        ..dma::IobufOptions::default()
    };
    let (events, told) = mpsc::channel(16);
    let driver = LvolDriver::new(IobufPool::new(options).unwrap(), events, Arc::default());
    (driver, told)
}

fn ram(mib: u64) -> Arc<Bdev> {
    let device = Malloc::new(MallocOptions::new(4096, mib * MIB / 4096)).unwrap();
    Bdev::new(BdevOptions::named("b0"), device, Instant::now()).unwrap()
}

async fn open(
    driver: &LvolDriver,
    base: &Arc<Bdev>,
    attach: Attach,
) -> Result<Arc<dyn Engine>, String> {
    let opened = driver.open(Arc::clone(base), &spec("p"), attach).await;
    opened.map_err(|error| error.to_string())
}

async fn names(pool: &Arc<dyn Engine>, snapshots: bool) -> Vec<String> {
    let query = VolumeQuery {
        snapshots,
        limit: 100,
        ..VolumeQuery::default()
    };
    let page = pool.volumes(query).await.unwrap();
    assert_eq!(page.total, page.volumes.len());
    page.volumes.into_iter().map(|volume| volume.name).collect()
}

fn file(path: &Path, mib: u64) -> Arc<Bdev> {
    let (device, _) = File::open(FileOptions::create(path, mib * MIB)).unwrap();
    Bdev::new(BdevOptions::named("b0"), device, Instant::now()).unwrap()
}

#[tokio::test]
async fn a_pool_in_a_file_is_there_again_after_it_was_closed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool.img");
    let (driver, _events) = driver();
    let base = file(&path, 64);
    assert_eq!(driver.probe(Arc::clone(&base)).await, Ok(None));
    let pool = open(&driver, &base, CREATE).await.unwrap();
    pool.create_volume("v", 10 * MIB, false, VolumeSettings::default())
        .await
        .unwrap();
    let pairs = [("v".to_owned(), "s".to_owned())];
    pool.create_snapshots(&pairs, Vec::new()).await.unwrap();
    pool.clone_volume("v@s", "c", VolumeSettings::default())
        .await
        .unwrap();
    pool.resize_volume("v", 12 * MIB).await.unwrap();
    assert_eq!(names(&pool, false).await, ["p/c", "p/v"]);
    assert_eq!(names(&pool, true).await, ["p/v@s"]);
    let before = pool.volume("v").await.unwrap().unwrap();
    assert_eq!((before.size_bytes, &*before.parent), (12 * MIB, "p/v@s"));
    let clone = pool.volume("c").await.unwrap().unwrap();
    assert_eq!((clone.size_bytes, &*clone.parent), (10 * MIB, "p/v@s"));
    let snapshot = pool.volume("v@s").await.unwrap().unwrap();
    assert!(snapshot.snapshot && snapshot.read_only && snapshot.children == 2);
    let reading = pool.reading().await.unwrap();
    assert_eq!((reading.volumes, reading.snapshots), (2, 1));
    assert_eq!(reading.provisioned_bytes, 22 * MIB);
    assert_eq!(
        (reading.cluster_size_bytes, &*reading.fault),
        (64 << 10, "")
    );
    assert_eq!(pool.check(false).await.unwrap(), []);
    pool.close(false).await.unwrap();
    // Closed pools have let go of their device.
    drop((pool, base));

    let base = file(&path, 64);
    let found = driver.probe(Arc::clone(&base)).await.unwrap();
    assert_eq!(found.as_deref(), Some("p"));
    let pool = open(&driver, &base, Attach::Open).await.unwrap();
    assert_eq!(pool.volume("v").await.unwrap(), Some(before));
    let devices = pool.devices().await.unwrap();
    let found: Vec<_> = devices.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(found, ["c", "v", "v@s"]);
    assert_eq!(
        devices[1].device.geometry().block_count,
        12 * MIB / u64::from(base.geometry().block_size)
    );
    assert!(devices[2].device.geometry().read_only);
    for name in ["v@s", "v", "c"] {
        assert_eq!(pool.delete_volume(name).await, Ok(None));
    }
    assert_eq!(names(&pool, false).await, [""; 0]);
    pool.close(true).await.unwrap();
    assert_eq!(driver.probe(base).await, Ok(None));
}

#[tokio::test]
async fn a_pool_that_is_dropped_closes_in_the_background() {
    let (driver, _events) = driver();
    let base = ram(32);
    for attach in [CREATE, Attach::Open, Attach::Open] {
        let pool = open(&driver, &base, attach.clone()).await.unwrap();
        let device = pool.device("v").await.unwrap();
        assert_eq!(device.is_some(), attach == Attach::Open);
        if attach == CREATE {
            pool.create_volume("v", MIB, false, VolumeSettings::default())
                .await
                .unwrap();
        }
        drop((device, pool));
        // Its thread lets go of the device when it has closed the pool.
        while Arc::strong_count(&base) > 1 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn what_is_on_the_device_decides() {
    let (driver, _events) = driver();
    let base = ram(32);
    let error = open(&driver, &base, Attach::Open).await.unwrap_err();
    assert!(error.contains("holds no pool"), "{error}");
    let pool = open(&driver, &base, CREATE).await.unwrap();
    pool.close(false).await.unwrap();
    let error = open(&driver, &base, CREATE).await.unwrap_err();
    assert!(
        error.contains("the pool \"p\"") && error.contains("force"),
        "{error}"
    );
    let other = driver
        .open(Arc::clone(&base), &spec("q"), Attach::Open)
        .await;
    let error = other.unwrap_err().to_string();
    assert!(error.contains("holds the pool \"p\", not \"q\""), "{error}");
    let force = Attach::Create {
        cluster_size: None,
        force: true,
        change: PoolChange::default(),
    };
    let error = open(&driver, &ram(1), force.clone()).await.unwrap_err();
    assert!(error.contains("too small"), "{error}");
    let pool = open(&driver, &base, force).await.unwrap();
    pool.close(true).await.unwrap();
    open(&driver, &base, CREATE).await.unwrap();
}

#[tokio::test]
async fn errors_say_what_is_the_matter() {
    let (driver, _events) = driver();
    let base = ram(32);
    let pool = open(&driver, &base, CREATE).await.unwrap();
    pool.create_volume("v", MIB, false, VolumeSettings::default())
        .await
        .unwrap();
    let again = pool
        .create_volume("v", MIB, false, VolumeSettings::default())
        .await
        .unwrap_err();
    assert!(
        matches!(again, ControlError::Exists { kind: "volume", ref name, .. } if name == "p/v")
    );
    let odd = pool
        .create_volume("w", MIB + 1, false, VolumeSettings::default())
        .await
        .unwrap_err();
    assert!(matches!(odd, ControlError::Invalid { .. }), "{odd}");
    let missing = pool
        .clone_volume("v@s", "c", VolumeSettings::default())
        .await
        .unwrap_err();
    assert!(
        matches!(
            missing,
            ControlError::NotFound {
                kind: "snapshot",
                ..
            }
        ),
        "{missing}"
    );
    assert_eq!(pool.volume("w").await, Ok(None));
    let refused = pool.rollback_volume("v", "v").await.unwrap_err();
    assert!(
        matches!(refused, ControlError::Precondition { .. }),
        "{refused}"
    );
    let large = pool
        .create_volume("t", 64 * MIB, true, VolumeSettings::default())
        .await
        .unwrap_err();
    assert!(large.to_string().contains("clusters are needed"), "{large}");
    let status = tonic::Status::from(large);
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    pool.create_volume("t", 4 * MIB, true, VolumeSettings::default())
        .await
        .unwrap();
    assert!(pool.volume("t").await.unwrap().unwrap().thick);
    assert_eq!(pool.reading().await.unwrap().reserved_bytes, 4 * MIB);
    let scrub = Job::Scrub { bytes_per_sec: 0 };
    // Whoever has the volumes as block devices does that.
    let error = pool.begin(scrub).await.unwrap_err();
    assert!(
        error.to_string().contains("this version does not"),
        "{error}"
    );
    let status = tonic::Status::from(error);
    assert_eq!(status.code(), tonic::Code::Unimplemented);
    assert_eq!(pool.check(true).await, Ok(Vec::new()));
    assert_eq!(pool.operations().await, Ok(Vec::new()));
    pool.close(false).await.unwrap();
    let closed = pool
        .create_volume("w", MIB, false, VolumeSettings::default())
        .await
        .unwrap_err();
    assert!(
        closed.to_string().contains("the pool was closed"),
        "{closed}"
    );
}

#[tokio::test]
async fn a_volume_on_a_block_device_tells_its_parent_and_when_it_is_missing() {
    let (driver, _events) = driver();
    let base = ram(64);
    let pool = open(&driver, &base, CREATE).await.unwrap();
    let image = |uuid: Option<Uuid>| {
        let options = BdevOptions {
            uuid,
            ..BdevOptions::named("gold")
        };
        let device = Malloc::new(MallocOptions::new(512, 20)).unwrap();
        driver
            .registry
            .create(options, device, Instant::now())
            .unwrap()
    };
    let error = pool
        .clone_bdev("gold", "c", VolumeSettings::default())
        .await
        .unwrap_err();
    assert!(matches!(error, ControlError::NotFound { .. }), "{error}");
    let uuid = image(None).uuid();
    pool.clone_bdev("gold", "c", VolumeSettings::default())
        .await
        .unwrap();
    let clone = pool.volume("c").await.unwrap().unwrap();
    assert_eq!((&*clone.parent, clone.size_bytes), ("gold", 12_288));
    assert_eq!(clone.status, None);
    let error = driver.registry.delete("gold").unwrap_err();
    assert!(error.to_string().ends_with("volume p/c"), "{error}");
    pool.close(false).await.unwrap();
    driver.registry.delete("gold").unwrap();
    // The pool is there before the device, or another has its name.
    let pool = open(&driver, &base, Attach::Open).await.unwrap();
    let reason = pool.volume("c").await.unwrap().unwrap().status.unwrap();
    assert!(
        reason.reason.contains("\"gold\" is not in place"),
        "{reason:?}"
    );
    pool.close(false).await.unwrap();
    image(None);
    let pool = open(&driver, &base, Attach::Open).await.unwrap();
    let reason = pool.volume("c").await.unwrap().unwrap().status.unwrap();
    assert!(reason.reason.contains("another UUID"), "{reason:?}");
    pool.close(false).await.unwrap();
    driver.registry.delete("gold").unwrap();
    image(Some(uuid));
    let pool = open(&driver, &base, Attach::Open).await.unwrap();
    assert_eq!(pool.volume("c").await.unwrap().unwrap().status, None);
    pool.close(false).await.unwrap();
}

#[tokio::test]
async fn limits_and_labels_go_with_the_volume_and_not_to_its_clones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pool.img");
    let (driver, _events) = driver();
    let base = file(&path, 64);
    let pool = open(&driver, &base, CREATE).await.unwrap();
    let limits = api::v1::QosLimits {
        rw_ios_per_sec: 700,
        burst_ms: Some(20),
        ..api::v1::QosLimits::default()
    };
    let label = |value: &str| vec![("tier".to_owned(), value.to_owned())];
    let settings = VolumeSettings {
        labels: label("1"),
        qos: Some(limits),
    };
    pool.create_volume("v", MIB, false, settings).await.unwrap();
    let pairs = [("v".to_owned(), "s".to_owned())];
    pool.create_snapshots(&pairs, label("2")).await.unwrap();
    let settings = VolumeSettings {
        labels: label("3"),
        qos: None,
    };
    pool.clone_volume("v@s", "c", settings).await.unwrap();
    pool.rename_volume("v", "w").await.unwrap();
    let change = PoolChange {
        labels: vec![("rack".to_owned(), Some("7".to_owned()))],
        warning_percent: Some(1),
        ..PoolChange::default()
    };
    pool.change(change).await.unwrap();
    pool.close(false).await.unwrap();
    drop((pool, base));

    let base = file(&path, 64);
    let pool = open(&driver, &base, Attach::Open).await.unwrap();
    for (name, qos, tier) in [
        ("w", Some(limits), "1"),
        ("w@s", None, "2"),
        ("c", None, "3"),
    ] {
        let volume = pool.volume(name).await.unwrap().unwrap();
        let labels: Vec<_> = volume.labels.into_iter().collect();
        assert_eq!((volume.qos, labels), (qos, label(tier)), "{name}");
        let device = pool.device(name).await.unwrap().unwrap();
        let rate = qos.map_or(0, |qos| qos.rw_ios_per_sec);
        assert_eq!(device.qos.rw_ios_per_sec, rate, "{name}");
    }
    let query = VolumeQuery {
        labels: label("3"),
        limit: 10,
        ..VolumeQuery::default()
    };
    let found = pool.volumes(query).await.unwrap();
    assert_eq!((found.total, &*found.volumes[0].name), (1, "p/c"));
    // 64 labels of the owner have room beside those of the program.
    let labels = (0..63).map(|number| (format!("k{number}"), Some(String::new())));
    let change = VolumeChange {
        labels: labels.collect(),
        ..VolumeChange::default()
    };
    pool.change_volume("w", change).await.unwrap();
    let change = VolumeChange {
        qos: Some(api::v1::QosLimits::default()),
        ..VolumeChange::default()
    };
    pool.change_volume("w", change).await.unwrap();
    assert_eq!(pool.volume("w").await.unwrap().unwrap().qos, None);
    let reading = pool.reading().await.unwrap();
    assert_eq!((reading.warning_percent, reading.critical_percent), (1, 90));
    assert_eq!(reading.labels.len(), 1);
    assert_eq!(reading.space_level(), api::v1::PoolSpaceLevel::Warning);
    pool.close(false).await.unwrap();
}

#[tokio::test]
async fn a_pool_that_is_known_gets_the_name_that_the_node_has_for_it() {
    let (driver, _events) = driver();
    let base = ram(32);
    let pool = open(&driver, &base, CREATE).await.unwrap();
    let uuid = pool.reading().await.unwrap().uuid;
    pool.close(false).await.unwrap();
    drop(pool);
    let known = |name: &str, uuid: &str| PoolSpec {
        uuid: Some(uuid.to_owned()),
        ..spec(name)
    };
    let pool = driver.open(Arc::clone(&base), &known("lake", &uuid), Attach::Open);
    let pool = pool.await.unwrap();
    pool.close(false).await.unwrap();
    drop(pool);
    let found = driver.probe(Arc::clone(&base)).await.unwrap();
    assert_eq!(found.as_deref(), Some("lake"));
    // Another pool of the name is another pool.
    let other = Uuid::new_v4().to_string();
    let other = driver
        .open(base, &known("lake", &other), Attach::Open)
        .await;
    let error = other.unwrap_err().to_string();
    assert!(
        error.contains("another pool") && error.contains(&uuid),
        "{error}"
    );
}

#[test]
fn the_boot_is_read_from_the_kernel() {
    assert_ne!(read_boot_id(Path::new(BOOT_ID)), [0; 16]);
    assert_eq!(read_boot_id(Path::new("/nonexistent")), [0; 16]);
}
