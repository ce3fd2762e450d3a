use std::task::Waker;

use block::ChannelContext;
use block::malloc::{Malloc, MallocOptions};

use super::*;
use crate::data_plane::{Cores, DataPlaneOptions};
use crate::fake_pool::{FakeDriver, FakePool};

/// A node with one reactor and little memory, and a device `b0`.
fn node() -> (Pools, Arc<FakeDriver>) {
    let options = DataPlaneOptions {
        cores: Cores::Count(1),
        sleep_policy: reactor::SleepPolicy::Adaptive,
        iobuf: dma::IobufOptions {
            small_pool_count: 1024,
            large_pool_count: 64,
            backing: dma::BackingPreference::Plain4K,
            ..dma::IobufOptions::default()
        },
        target: nvmf::TargetOptions::default(),
    };
    let plane = Arc::new(DataPlane::start(options).unwrap());
    let device = Malloc::new(MallocOptions::new(4096, 256)).unwrap();
    plane
        .registry()
        .create(BdevOptions::named("b0"), device, Instant::now())
        .unwrap();
    let driver = Arc::new(FakeDriver::default());
    (Pools::new(plane, driver.clone()), driver)
}

fn spec() -> PoolSpec {
    PoolSpec {
        name: "p".into(),
        bdev_name: "b0".into(),
        uuid: None,
        system: None,
    }
}

const CREATE: Attach = Attach::Create {
    cluster_size: None,
    force: false,
    change: PoolChange {
        labels: Vec::new(),
        warning_percent: None,
        critical_percent: None,
        system: None,
    },
};

async fn put(pools: &Pools, attach: Attach) -> Handle {
    let prepared = pools.prepare(&spec(), attach).await;
    let prepared = prepared.unwrap_or_else(|error| panic!("{error}"));
    pools.put("p", Some(prepared)).unwrap();
    Handle(pools.get("p").unwrap())
}

fn names(pools: &Pools) -> Vec<String> {
    let all = pools.plane.registry().list();
    all.iter().map(|bdev| bdev.name().to_owned()).collect()
}

fn fake(driver: &FakeDriver) -> Arc<FakePool> {
    driver.on_device.lock().unwrap()["b0"].clone()
}

#[tokio::test]
async fn volumes_are_block_devices_while_their_pool_is_open() {
    let (pools, _driver) = node();
    let pool = put(&pools, CREATE).await;
    pool.create_volume("v", 8192, false, VolumeSettings::default())
        .await
        .unwrap();
    pool.create_volume("w", 4096, false, VolumeSettings::default())
        .await
        .unwrap();
    let pairs = [("v".to_owned(), "s".to_owned())];
    pool.create_snapshots(&pairs, Vec::new()).await.unwrap();
    pool.clone_volume("v@s", "c", VolumeSettings::default())
        .await
        .unwrap();
    assert_eq!(names(&pools), ["b0", "p/c", "p/v", "p/v@s", "p/w"]);
    let uuid = pools.plane.registry().get("p/v").unwrap().uuid();
    let nguid = pools.nguid("p/v").unwrap();
    pool.rename_volume("v", "x").await.unwrap();
    pool.delete_volume("w").await.unwrap();
    assert_eq!(names(&pools), ["b0", "p/c", "p/x", "p/x@s"]);
    pools.close("p", false).await.unwrap();
    assert_eq!(names(&pools), ["b0"]);
    assert!(pools.get("p").is_none());
    // Closed already.
    pools.close("p", false).await.unwrap();
    put(&pools, Attach::Open).await;
    assert_eq!(names(&pools), ["b0", "p/c", "p/x", "p/x@s"]);
    let bdev = pools.plane.registry().get("p/x").unwrap();
    assert_eq!(
        (bdev.uuid(), pools.nguid("p/x")),
        (uuid, Some(nguid)),
        "identity stays"
    );
}

#[tokio::test]
async fn limits_of_a_volume_hold_on_its_block_device() {
    let (pools, _driver) = node();
    let pool = put(&pools, CREATE).await;
    let limits = |rw_ios_per_sec| v1::QosLimits {
        rw_ios_per_sec,
        ..v1::QosLimits::default()
    };
    let settings = VolumeSettings {
        qos: Some(limits(7)),
        ..VolumeSettings::default()
    };
    pool.create_volume("v", 8192, false, settings)
        .await
        .unwrap();
    let rate = |name: &str| {
        pools
            .plane
            .registry()
            .get(name)
            .unwrap()
            .qos()
            .rw_ios_per_sec
    };
    assert_eq!(rate("p/v"), 7);
    let change = VolumeChange {
        qos: Some(limits(9)),
        ..VolumeChange::default()
    };
    pool.change_volume("v", change).await.unwrap();
    assert_eq!(rate("p/v"), 9);
    pool.rename_volume("v", "w").await.unwrap();
    assert_eq!(rate("p/w"), 9);
    pools.close("p", false).await.unwrap();
    let pool = put(&pools, Attach::Open).await;
    assert_eq!(rate("p/w"), 9);
    let change = VolumeChange {
        qos: Some(limits(0)),
        ..VolumeChange::default()
    };
    pool.change_volume("w", change).await.unwrap();
    assert_eq!(rate("p/w"), 0);
}

#[tokio::test]
async fn a_volume_in_use_stays_and_so_does_its_pool() {
    let (pools, driver) = node();
    let pool = put(&pools, CREATE).await;
    pool.create_volume("v", 8192, false, VolumeSettings::default())
        .await
        .unwrap();
    pool.create_volume("w", 8192, false, VolumeSettings::default())
        .await
        .unwrap();
    let bdev = pools.plane.registry().get("p/v").unwrap();
    let claim = bdev.claim("nqn/1", ClaimKind::Shared).unwrap();
    let error = pool.delete_volume("v").await.unwrap_err();
    assert!(error.to_string().contains("nqn/1"), "{error}");
    pool.rename_volume("v", "x").await.unwrap_err();
    let error = pools.close("p", false).await.unwrap_err();
    assert!(matches!(error, ControlError::InUse { .. }), "{error}");
    assert!(pools.remove("p").is_err());
    assert_eq!(names(&pools), ["b0", "p/v", "p/w"]);
    drop(claim);
    let context = ChannelContext::new("test", Waker::noop().clone());
    let channel = bdev.open(&context).unwrap();
    let error = pools.close("p", false).await.unwrap_err();
    assert!(
        matches!(error, ControlError::Precondition { .. }),
        "{error}"
    );
    drop(channel);
    assert!(!fake(&driver).inner().calls.contains(&"close false".into()));
    pools.remove("p").unwrap().await;
    assert!(fake(&driver).inner().calls.contains(&"close false".into()));
}

#[tokio::test]
async fn a_pool_holds_its_device_until_it_is_closed() {
    let (pools, driver) = node();
    let pool = put(&pools, CREATE).await;
    drop(pool);
    let error = pools.plane.registry().delete("b0").unwrap_err();
    assert!(error.to_string().contains("pool p"), "{error}");
    let prepared = pools.prepare(&spec(), Attach::Open).await;
    assert!(matches!(prepared, Err(RuntimeError::Pending(_))));
    let prepared = pools.prepare(&spec(), CREATE).await;
    assert!(matches!(prepared, Err(RuntimeError::Refused(_))));
    pools.close("p", true).await.unwrap();
    assert!(fake(&driver).inner().calls.contains(&"close true".into()));
    pools.plane.registry().delete("b0").unwrap();
    let prepared = pools.prepare(&spec(), Attach::Open).await;
    assert!(matches!(prepared, Err(RuntimeError::Pending(_))));
}

#[tokio::test]
async fn a_delete_that_fails_leaves_the_volume_served() {
    let (pools, driver) = node();
    let pool = put(&pools, CREATE).await;
    pool.create_volume("v", 8192, false, VolumeSettings::default())
        .await
        .unwrap();
    let nguid = pools.nguid("p/v");
    fake(&driver).inner().calls.push("refuse".into());
    pool.delete_volume("v").await.unwrap_err();
    assert_eq!(names(&pools), ["b0", "p/v"]);
    assert_eq!(pools.nguid("p/v"), nguid);
}

#[tokio::test]
async fn a_new_size_is_seen_at_once() {
    let (pools, _driver) = node();
    let pool = put(&pools, CREATE).await;
    pool.create_volume("v", 8192, false, VolumeSettings::default())
        .await
        .unwrap();
    let bdev = pools.plane.registry().get("p/v").unwrap();
    pool.resize_volume("v", 12_288).await.unwrap();
    assert_eq!(bdev.geometry().block_count, 3);
}

#[tokio::test]
async fn a_pool_whose_volume_is_there_already_is_not_put_in_place() {
    let (pools, driver) = node();
    let pool = put(&pools, CREATE).await;
    pool.create_volume("a", 8192, false, VolumeSettings::default())
        .await
        .unwrap();
    pool.create_volume("v", 8192, false, VolumeSettings::default())
        .await
        .unwrap();
    pools.close("p", false).await.unwrap();
    drop(pool);
    // A copy of the volume came by another way.
    let volume = fake(&driver).device("v").await.unwrap().unwrap();
    let options = BdevOptions {
        uuid: Some(volume.uuid),
        ..BdevOptions::named("copy")
    };
    let registry = pools.plane.registry();
    registry
        .create(options, volume.device, Instant::now())
        .unwrap();
    let prepared = pools.prepare(&spec(), Attach::Open).await;
    let prepared = prepared.unwrap_or_else(|error| panic!("{error}"));
    assert!(pools.put("p", Some(prepared)).is_err());
    assert_eq!(names(&pools), ["b0", "copy"]);
    assert!(pools.get("p").is_none());
}

#[tokio::test]
async fn draining_closes_every_pool_though_volumes_are_in_use() {
    let (pools, driver) = node();
    let pool = put(&pools, CREATE).await;
    pool.create_volume("v", 8192, false, VolumeSettings::default())
        .await
        .unwrap();
    let bdev = pools.plane.registry().get("p/v").unwrap();
    let _claim = bdev.claim("nqn/1", ClaimKind::Shared).unwrap();
    pools.close_all().await;
    assert!(bdev.is_removed());
    assert!(fake(&driver).inner().calls.contains(&"close false".into()));
    assert!(pools.get("p").is_none());
}
