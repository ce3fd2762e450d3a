use std::collections::BTreeMap;

use api::v1::{
    self, Address, BdevSpec, Document, ListenerSpec, MallocBdev, NamespaceSpec, NodeState,
    PoolSpec, SubsystemDocument, SubsystemSpec, bdev_spec::Kind,
};
use nvmf::{ReservationKey, ReservationRecord, ReservationStore as _, SaveDone};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::boot::{Beginning, Looked, decide};
use super::*;
use crate::control::About;
use crate::fake_pool::{FakePool, Gate};
use crate::fake_runtime::FakeRuntime;
use crate::model::{self, AgentState, Limits, Model};
use crate::pool::Attach;
use crate::reservations::{self, Reservations};

const NQN: &str = "nqn.2026-11.io.adit:a";
const ID: &str = "00000000-0000-4000-8000-000000000001";
const OTHER_ID: &str = "00000000-0000-4000-8000-000000000002";

/// A node on fakes. What it writes into the directory goes with it; its drives stay.
struct Node {
    control: Control,
    runtime: Arc<FakeRuntime>,
    reservations: Arc<Reservations>,
    tasks: Vec<JoinHandle<()>>,
    directory: TempDir,
}

type Drives = BTreeMap<String, Arc<FakePool>>;

fn malloc(name: &str) -> BdevSpec {
    let kind = Kind::Malloc(MallocBdev {
        size_bytes: 1 << 20,
        block_size: None,
    });
    BdevSpec {
        name: name.into(),
        kind: Some(kind),
        ..BdevSpec::default()
    }
}

fn subsystem() -> Document {
    let address = Some(Address::from_uri("tcp://127.0.0.1:4420").unwrap());
    Document {
        bdevs: vec![malloc("m0")],
        subsystems: vec![SubsystemDocument {
            subsystem: Some(SubsystemSpec {
                nqn: NQN.into(),
                ..SubsystemSpec::default()
            }),
            namespaces: vec![NamespaceSpec {
                bdev_name: "m0".into(),
                ..NamespaceSpec::default()
            }],
            listeners: vec![ListenerSpec {
                address,
                ..ListenerSpec::default()
            }],
            hosts: vec![v1::HostSpec {
                nqn: "nqn.2026-11.io.adit:host".into(),
            }],
        }],
        ..Document::default()
    }
}

/// A node's first start since the power came, by what its drives hold.
async fn power_on(drives: &Drives) -> Node {
    let looked: Vec<Looked> = drives
        .iter()
        .map(|(device, pool)| {
            let inner = pool.inner();
            let state = inner.is_system.then(|| inner.node_state.clone());
            let look = lvol::NodeLook {
                name: pool.name(),
                uuid: pool.uuid().into_bytes(),
                state,
            };
            Looked {
                at: device.clone(),
                found: Ok(Some(look)),
            }
        })
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    match decide(&looked, None) {
        Beginning::Kept {
            node_id, contents, ..
        } => {
            let opened = StateStore::restore(&path, &contents).unwrap();
            start(directory, &node_id, opened, None, drives).await
        }
        Beginning::Empty { problem } => {
            let opened = StateStore::open(&path).unwrap();
            start(directory, ID, opened, problem, drives).await
        }
    }
}

async fn start(
    directory: TempDir,
    node_id: &str,
    (store, contents): (StateStore, Contents),
    problem: Option<String>,
    drives: &Drives,
) -> Node {
    let runtime = Arc::new(FakeRuntime::default());
    runtime.memory().on_device = drives.clone();
    let model = Model::restore(Limits::default(), &contents).unwrap();
    let saved = model::reservations(&contents).unwrap();
    let about = About {
        node_id: node_id.to_owned(),
        state_dir: directory.path().into(),
        start_time_unix_ms: 0,
        started: std::time::Instant::now(),
    };
    let control = Control::new(model, store, runtime.clone(), about);
    let (control, task) = control.with_system_pool(&contents, problem);
    let (reservations, saves) = Reservations::new(saved);
    let saving = reservations::run(control.clone(), reservations.clone(), saves);
    let tasks = vec![
        tokio::spawn(task.run(control.clone())),
        tokio::spawn(saving),
    ];
    control.start().await;
    Node {
        control,
        runtime,
        reservations,
        tasks,
        directory,
    }
}

impl Node {
    async fn apply(&self, document: &Document) -> Result<(), ControlError> {
        self.control
            .change_with_bdevs(|edit| edit.apply(document, true))
            .await
    }

    async fn add_bdev(&self, name: &str) -> Result<(), ControlError> {
        let document = Document {
            bdevs: vec![malloc(name)],
            ..Document::default()
        };
        self.apply(&document).await
    }

    async fn create_pool(&self, name: &str, device: &str, system: bool) {
        self.add_bdev(device).await.unwrap();
        let spec = PoolSpec {
            name: name.into(),
            bdev_name: device.into(),
            uuid: None,
            system: Some(system),
        };
        let attach = Attach::Create {
            cluster_size: None,
            force: false,
            change: PoolChange::default(),
        };
        self.control
            .change_with(attach, |edit| edit.attach_pool(spec.clone()).map(drop))
            .await
            .unwrap();
        self.settle().await;
    }

    /// Waits until the node knows which pool its system pool is, which it keeps by itself.
    async fn settle(&self) {
        let is_known = |name: &str| {
            let spec = self
                .control
                .read(|view| view.model.pools()[name].spec.clone());
            spec.uuid.is_some()
        };
        if let Some(name) = self.keeper().pool() {
            while !is_known(&name) {
                tokio::task::yield_now().await;
            }
        }
        // Returns when what was changed before is stored.
        self.control.change(|_| Ok(())).await.unwrap();
    }

    async fn import_pool(&self, name: &str, device: &str) {
        self.add_bdev(device).await.unwrap();
        let spec = PoolSpec {
            name: name.into(),
            bdev_name: device.into(),
            uuid: None,
            system: None,
        };
        self.control
            .change_with(Attach::Open, |edit| {
                edit.attach_pool(spec.clone()).map(drop)
            })
            .await
            .unwrap();
    }

    async fn set_system(&self, name: &str, system: bool) {
        self.control
            .change(|edit| edit.set_system_pool(name, system))
            .await
            .unwrap();
        self.settle().await;
    }

    async fn reserve(&self, registrants: u8) -> Result<(), String> {
        let (done, answer) = oneshot::channel();
        let done = SaveDone::new(move |result| done.send(result).unwrap());
        self.reservations
            .save(&key(), Some(&record(registrants)), done);
        answer.await.unwrap()
    }

    /// Has the keeper look at the pool, and lets it: what it waits for are fakes.
    async fn look(&self) {
        self.keeper().look();
        self.let_work().await;
    }

    /// Lets tasks work until they wait for something that is no fake.
    async fn let_work(&self) {
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
    }

    fn keys(&self) -> Vec<Key> {
        self.control.read(|view| view.model.keys())
    }

    fn drives(&self) -> Drives {
        self.runtime.memory().on_device.clone()
    }

    fn keeper(&self) -> &Keeper {
        self.control.keeper().unwrap()
    }

    async fn end(self) -> TempDir {
        for task in self.tasks {
            task.abort();
            // It holds the store until it has been dropped.
            let _ = task.await;
        }
        self.directory
    }
}

fn key() -> ReservationKey {
    ReservationKey {
        nqn: NQN.parse().unwrap(),
        nsid: nvme_spec::Nsid(1),
        uuid: Uuid::from_bytes([7; 16]),
    }
}

fn record(registrants: u8) -> ReservationRecord {
    ReservationRecord {
        ptpl: true,
        generation: 1,
        registrants: (0..registrants).map(|host| ([host; 16], 5)).collect(),
        reservation: None,
    }
}

/// Goal: what a node acknowledged is there after a power cut, with nobody saying anything to it. Method: only
/// what is in the pools survives; the node starts from that.
#[tokio::test]
async fn what_was_acknowledged_comes_back_after_a_power_cut() {
    let node = power_on(&Drives::new()).await;
    node.add_bdev("before").await.unwrap();
    node.create_pool("tank", "b0", true).await;
    node.apply(&subsystem()).await.unwrap();
    node.reserve(3).await.unwrap();
    let (keys, drives) = (node.keys(), node.drives());
    let revision = node.control.read(|view| view.model.revision());
    assert_eq!(node.keeper().pool().as_deref(), Some("tank"));
    assert_eq!(node.control.state(), NodeState::Serving);
    node.end().await;

    let node = power_on(&drives).await;
    assert_eq!(node.keys(), keys);
    let there = node.control.read(|view| view.model.revision());
    assert_eq!(there, revision);
    assert!(node.runtime.memory().there.iter().eq(keys.iter()));
    assert_eq!(node.control.about.node_id, ID);
    let reserved = node.reservations.of(NQN, 1, key().uuid);
    assert_eq!(reserved, record(3));
    // And on it goes.
    node.add_bdev("after").await.unwrap();
    assert_eq!(node.keeper().notice(), None);
    let replaced = "replace the node's state".to_owned();
    let calls = drives["b0"].inner().calls.clone();
    let replaced = calls.iter().filter(|call| **call == replaced).count();
    assert_eq!(
        replaced, 1,
        "only when it became the system pool: {calls:?}"
    );
    let keys = node.keys();
    node.end().await;
    assert_eq!(power_on(&drives).await.keys(), keys);
}

#[tokio::test]
async fn without_a_system_pool_state_is_in_memory_and_nothing_is_promised() {
    let node = power_on(&Drives::new()).await;
    assert_eq!(node.control.state(), NodeState::Serving);
    let notice = node.keeper().notice().unwrap();
    assert!(notice.contains("no pool is the system pool"), "{notice}");
    node.create_pool("data", "b0", false).await;
    node.apply(&subsystem()).await.unwrap();
    let refused = node.reserve(1).await.unwrap_err();
    assert!(refused.contains("no pool is the system pool"), "{refused}");
    assert_eq!(node.reservations.of(NQN, 1, key().uuid), Default::default());
    let drives = node.drives();
    assert_eq!(drives["b0"].inner().node_state, Default::default());
    node.end().await;
    assert_eq!(power_on(&drives).await.keys(), []);
}

#[tokio::test]
async fn of_two_system_pools_neither_is_used_until_somebody_says_which() {
    let node = power_on(&Drives::new()).await;
    node.create_pool("tank", "b0", true).await;
    node.apply(&subsystem()).await.unwrap();
    let keys = node.keys();
    let mut drives = node.drives();
    node.end().await;
    // Of another node.
    let other = Arc::new(FakePool::new("other", None));
    other.inner().is_system = true;
    other.inner().node_state = Mirror::default().state(OTHER_ID);
    drives.insert("b1".to_owned(), Arc::clone(&other));

    let node = power_on(&drives).await;
    assert_eq!(node.keys(), []);
    assert_eq!(node.control.state(), NodeState::Degraded);
    let notice = node.keeper().notice().unwrap();
    assert!(
        notice.contains("\"tank\"") && notice.contains("\"other\""),
        "{notice}"
    );
    // It can be repaired: the wrong one loses its mark.
    node.import_pool("other", "b1").await;
    let unmark = PoolChange {
        system: Some(false),
        ..PoolChange::default()
    };
    let pool = node.control.runtime().pool("other").unwrap();
    pool.change(unmark).await.unwrap();
    node.end().await;
    assert_eq!(power_on(&drives).await.keys(), keys);
}

#[tokio::test]
async fn a_pool_that_comes_late_gets_what_the_node_has() {
    let node = power_on(&Drives::new()).await;
    node.apply(&subsystem()).await.unwrap();
    node.create_pool("tank", "b0", false).await;
    node.set_system("tank", true).await;
    assert_eq!(node.keeper().pool().as_deref(), Some("tank"));
    node.reserve(2).await.unwrap();
    let (keys, drives) = (node.keys(), node.drives());
    node.end().await;
    let node = power_on(&drives).await;
    assert_eq!(node.keys(), keys);
    assert_eq!(node.reservations.of(NQN, 1, key().uuid), record(2));
    // No more: the mark goes with the change.
    node.set_system("tank", false).await;
    node.let_work().await;
    assert!(!drives["b0"].inner().is_system);
    // And so does the state: the pool may go to another machine.
    assert_eq!(drives["b0"].inner().node_state, Default::default());
    node.end().await;
    assert_eq!(power_on(&drives).await.keys(), []);
}

/// Goal: no change is answered that a power cut would take away. Method: the pool has not answered yet.
#[tokio::test]
async fn a_change_is_answered_after_the_pool_has_it() {
    let node = power_on(&Drives::new()).await;
    node.create_pool("tank", "b0", true).await;
    let (open, held) = watch::channel(false);
    let reached = Arc::new(Notify::new());
    node.drives()["b0"].inner().gate = Some(Gate {
        reached: Arc::clone(&reached),
        open: held,
    });
    let control = node.control.clone();
    let adding = tokio::spawn(async move {
        let state = AgentState(vec![1]);
        control.keep_agent_state(state).await
    });
    reached.notified().await;
    // Whatever was answered before the pool was asked is with its caller then.
    node.let_work().await;
    assert!(!adding.is_finished());
    open.send(true).unwrap();
    adding.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_the_agent_keeps_comes_back_after_a_power_cut() {
    let node = power_on(&Drives::new()).await;
    let state = |text: &str| AgentState(text.as_bytes().to_vec());
    // Before there is a pool, and with it.
    node.control.keep_agent_state(state("first")).await.unwrap();
    node.create_pool("tank", "b0", true).await;
    let drives = node.drives();
    node.end().await;
    let node = power_on(&drives).await;
    assert_eq!(node.control.agent_state(), state("first"));
    node.control.keep_agent_state(state("next")).await.unwrap();
    let revision = || node.control.read(|view| view.model.revision());
    let before = revision();
    node.control.keep_agent_state(state("next")).await.unwrap();
    assert_eq!(revision(), before, "it was so already");
    // It is no object that a document speaks of.
    let document = Document {
        bdevs: vec![malloc("b0")],
        ..Document::default()
    };
    let all = node
        .control
        .change_with_bdevs(|edit| edit.apply(&document, true));
    all.await.unwrap();
    node.end().await;
    let node = power_on(&drives).await;
    assert_eq!(node.control.agent_state(), state("next"));
    node.control.keep_agent_state(state("")).await.unwrap();
    node.end().await;
    let node = power_on(&drives).await;
    assert_eq!(node.control.agent_state(), state(""));
    let kept = &drives["b0"].inner().node_state;
    assert!(
        !kept
            .records
            .iter()
            .any(|(key, _)| key.starts_with(b"agent"))
    );
}

/// A node that came up without its drives has nothing: that must not replace what it had.
#[tokio::test]
async fn the_state_of_another_start_is_replaced_only_when_somebody_says_so() {
    let pool = Arc::new(FakePool::new("tank", None));
    pool.inner().is_system = true;
    let kept = Mirror::default().state(OTHER_ID);
    pool.inner().node_state = kept.clone();
    let drives = Drives::from([("b0".to_owned(), Arc::clone(&pool))]);
    let node = power_on(&Drives::new()).await;
    node.runtime.memory().on_device = drives.clone();
    node.import_pool("tank", "b0").await;
    node.set_system("tank", true).await;
    node.add_bdev("m1").await.unwrap();
    node.look().await;
    assert_eq!(pool.inner().node_state, kept);
    let notice = node.keeper().notice().unwrap();
    assert!(
        notice.contains(OTHER_ID) && notice.contains("--system"),
        "{notice}"
    );
    assert_eq!(node.control.state(), NodeState::Degraded);
    node.keeper().adopt().await.unwrap();
    assert_eq!(node.control.state(), NodeState::Serving);
    let keys = node.keys();
    node.end().await;
    assert_eq!(power_on(&drives).await.keys(), keys);
}

#[tokio::test]
async fn while_the_pool_is_lost_changes_work_and_nothing_is_promised() {
    let node = power_on(&Drives::new()).await;
    node.create_pool("tank", "b0", true).await;
    node.apply(&subsystem()).await.unwrap();
    node.reserve(1).await.unwrap();
    let drives = node.drives();
    let before = drives["b0"].inner().node_state.clone();
    drives["b0"].inner().broken = Some("its drive has gone".to_owned());
    node.add_bdev("m1").await.unwrap();
    assert_eq!(node.control.state(), NodeState::Degraded);
    let notice = node.keeper().notice().unwrap();
    assert!(
        notice.starts_with("degraded: state is kept in memory only:"),
        "{notice}"
    );
    assert!(notice.contains("its drive has gone"), "{notice}");
    // What a host counts on after a power cut is refused, and others go on.
    let refused = node.reserve(2).await.unwrap_err();
    assert!(refused.contains("its drive has gone"), "{refused}");
    assert_eq!(node.reservations.of(NQN, 1, key().uuid), record(1));
    node.add_bdev("m2").await.unwrap();
    assert_eq!(drives["b0"].inner().node_state, before);

    drives["b0"].inner().broken = None;
    node.look().await;
    assert_eq!(node.control.state(), NodeState::Serving);
    node.reserve(2).await.unwrap();
    let keys = node.keys();
    node.end().await;
    let node = power_on(&drives).await;
    assert_eq!(node.keys(), keys);
    assert_eq!(node.reservations.of(NQN, 1, key().uuid), record(2));
}

/// A pool that is marked holds a state: a start takes it for that.
#[tokio::test]
async fn a_pool_that_does_not_take_the_state_is_not_marked() {
    let node = power_on(&Drives::new()).await;
    node.create_pool("tank", "b0", false).await;
    let tank = Arc::clone(&node.drives()["b0"]);
    tank.inner().broken = Some("its drive has gone".to_owned());
    node.set_system("tank", true).await;
    node.look().await;
    assert_eq!(node.control.state(), NodeState::Degraded);
    assert!(!tank.inner().is_system);
    tank.inner().broken = None;
    node.look().await;
    assert!(tank.inner().is_system);
    assert_ne!(tank.inner().node_state, Default::default());
}

/// Goal: a pool that was given up while its drive was away is no second system pool when that is back. Method:
/// the drive comes back to the running node, or while its power is off; or another node has had it.
#[tokio::test]
async fn a_pool_that_was_given_up_while_it_was_away_is_let_go_of_later() {
    for case in ["back", "back after a power cut", "another node's"] {
        let node = power_on(&Drives::new()).await;
        node.create_pool("tank", "b0", true).await;
        let tank = Arc::clone(&node.drives()["b0"]);
        let spec = node
            .control
            .read(|view| view.model.pools()["tank"].spec.clone());
        assert_eq!(spec.uuid, Some(tank.uuid().to_string()));
        tank.inner().broken = Some("its drive has gone".to_owned());
        node.look().await;
        node.set_system("tank", false).await;
        node.create_pool("next", "b1", true).await;
        let drives = node.drives();
        assert!(tank.inner().is_system);
        let keys = node.keys();
        let node = match case {
            "back after a power cut" => {
                node.end().await;
                tank.inner().broken = None;
                power_on(&drives).await
            }
            "another node's" => {
                tank.inner().node_state = Mirror::default().state(OTHER_ID);
                node
            }
            _ => node,
        };
        assert_eq!(node.keys(), keys, "{case}");
        tank.inner().broken = None;
        tokio::time::pause();
        tokio::time::advance(CALL_PAUSE).await;
        tokio::time::resume();
        node.look().await;
        assert_eq!(node.keeper().pool().as_deref(), Some("next"), "{case}");
        let is_ours = case != "another node's";
        assert_eq!(tank.inner().is_system, !is_ours, "{case}");
        let is_empty = tank.inner().node_state.records.is_empty();
        assert_eq!(is_empty, is_ours, "{case}");
        node.end().await;
    }
}

/// The pool fails between the look at it and the batch.
#[tokio::test]
async fn a_reservation_that_the_pool_does_not_take_is_taken_back() {
    let node = power_on(&Drives::new()).await;
    node.create_pool("tank", "b0", true).await;
    node.apply(&subsystem()).await.unwrap();
    let drives = node.drives();
    drives["b0"].inner().broken = Some("its drive has gone".to_owned());
    // Nobody knows yet.
    assert_eq!(node.keeper().pool().as_deref(), Some("tank"));
    let refused = node.reserve(1).await.unwrap_err();
    assert!(refused.contains("its drive has gone"), "{refused}");
    let none = ReservationRecord::default();
    assert_eq!(node.reservations.of(NQN, 1, key().uuid), none);
    node.add_bdev("m1").await.unwrap();
}

#[tokio::test]
async fn a_pool_that_is_lost_while_nothing_changes_is_told_of() {
    let node = power_on(&Drives::new()).await;
    node.create_pool("tank", "b0", true).await;
    let drives = node.drives();
    drives["b0"].inner().broken = Some("its drive has gone".to_owned());
    node.look().await;
    assert_eq!(node.control.state(), NodeState::Degraded);
    drives["b0"].inner().broken = None;
    node.look().await;
    assert_eq!(node.control.state(), NodeState::Serving);
    // The drive below is not in place any more.
    node.runtime
        .memory()
        .pending
        .insert("b0".to_owned(), "unplugged".to_owned());
    node.control
        .lost(Key::Bdev("b0".to_owned()), "unplugged".to_owned());
    node.look().await;
    let notice = node.keeper().notice().unwrap();
    assert!(notice.contains("bdev b0 is pending: unplugged"), "{notice}");
}

#[tokio::test]
async fn after_a_restart_of_the_program_the_file_counts() {
    let node = power_on(&Drives::new()).await;
    node.create_pool("tank", "b0", true).await;
    let drives = node.drives();
    drives["b0"].inner().broken = Some("hangs".to_owned());
    node.add_bdev("m1").await.unwrap();
    let keys = node.keys();
    let directory = node.end().await;
    drives["b0"].inner().broken = None;
    let opened = StateStore::open(&directory.path().join("state.redb")).unwrap();
    let node = start(directory, ID, opened, None, &drives).await;
    node.look().await;
    assert_eq!(node.keys(), keys);
    assert_eq!(node.keeper().notice(), None);
    node.end().await;
    assert_eq!(power_on(&drives).await.keys(), keys);
}

#[tokio::test]
async fn a_system_pool_is_one_and_is_not_let_go_of_by_mistake() {
    let node = power_on(&Drives::new()).await;
    node.create_pool("tank", "b0", true).await;
    node.create_pool("data", "b1", false).await;
    let control = &node.control;
    let second = control.trial(|edit| edit.set_system_pool("data", true));
    assert!(
        second
            .unwrap_err()
            .to_string()
            .contains("\"tank\" is the system pool")
    );
    let gone = control.trial(|edit| edit.detach_pool("tank", None, false));
    assert!(gone.unwrap_err().to_string().contains("--no-system"));
    // A document that does not speak of it changes nothing.
    let spec = PoolSpec {
        name: "tank".into(),
        bdev_name: "b0".into(),
        uuid: None,
        system: None,
    };
    let document = Document {
        pools: vec![spec],
        ..Document::default()
    };
    node.apply(&document).await.unwrap();
    assert_eq!(node.keeper().pool().as_deref(), Some("tank"));
}
