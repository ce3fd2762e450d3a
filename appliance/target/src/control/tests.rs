use std::path::Path;

use api::v1::{
    Address, BdevSpec, Document, ListenerSpec, MallocBdev, NamespaceSpec, SubsystemDocument,
    SubsystemSpec, bdev_spec::Kind,
};
use tempfile::TempDir;

use super::*;
use crate::fake_runtime::FakeRuntime;
use crate::metrics;
use crate::model::Limits;

const NQN: &str = "nqn.2026-11.io.adit:a";

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

fn subsystem(nqn: &str) -> SubsystemSpec {
    SubsystemSpec {
        nqn: nqn.into(),
        ..SubsystemSpec::default()
    }
}

fn listener() -> ListenerSpec {
    let address = Some(Address::from_uri("tcp://127.0.0.1:4420").unwrap());
    ListenerSpec {
        address,
        ..ListenerSpec::default()
    }
}

fn document() -> Document {
    Document {
        bdevs: vec![malloc("m0")],
        subsystems: vec![SubsystemDocument {
            subsystem: Some(subsystem(NQN)),
            namespaces: vec![NamespaceSpec {
                bdev_name: "m0".into(),
                ..NamespaceSpec::default()
            }],
            listeners: vec![listener()],
            hosts: vec![],
        }],
        ..Document::default()
    }
}

/// A control plane over the state in a directory.
fn open(directory: &Path) -> (Control, Arc<FakeRuntime>) {
    let (store, contents) = StateStore::open(&directory.join("state.redb")).unwrap();
    let runtime = Arc::new(FakeRuntime::default());
    let model = Model::restore(Limits::default(), &contents).unwrap();
    let about = About {
        node_id: "test".into(),
        state_dir: directory.into(),
        start_time_unix_ms: 0,
        started: std::time::Instant::now(),
    };
    (Control::new(model, store, runtime.clone(), about), runtime)
}

async fn started(directory: &TempDir) -> (Control, Arc<FakeRuntime>) {
    let (control, runtime) = open(directory.path());
    control.start().await;
    (control, runtime)
}

async fn apply(control: &Control, document: &Document) -> Result<(), ControlError> {
    control
        .change_with_bdevs(|edit| edit.apply(document, false))
        .await
}

/// Lets tasks go on that wait for nothing.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

fn pending_names(control: &Control) -> Vec<String> {
    control
        .all_pending(100)
        .into_iter()
        .map(|(key, _)| key.name())
        .collect()
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (control, runtime) = started(&directory).await;
    apply(&control, &document()).await.unwrap();
    let keys = control.read(|view| view.model.keys());
    assert_eq!(keys.len(), 5, "{keys:?}");
    assert!(runtime.memory().there.iter().eq(keys.iter()));
    drop(control);
    let (control, runtime) = started(&directory).await;
    assert_eq!(control.read(|view| view.model.keys()), keys);
    assert_eq!(control.state(), NodeState::Serving);
    assert!(runtime.memory().there.iter().eq(keys.iter()));
}

#[tokio::test]
async fn what_is_refused_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (control, runtime) = started(&directory).await;
    let listener = format!("{NQN}/tcp://127.0.0.1:4420");
    for name in ["m0", NQN, "tcp", listener.as_str()] {
        runtime.memory().refused = [name.to_owned()].into();
        let error = apply(&control, &document()).await.unwrap_err();
        assert!(matches!(error, ControlError::Refused { .. }), "{error}");
        assert_eq!(
            control.read(|view| (view.model.keys(), view.model.revision())),
            (vec![], 0)
        );
        assert!(runtime.memory().there.is_empty(), "{name}");
        assert_eq!(pending_names(&control), Vec::<String>::new());
    }
    runtime.memory().refused.clear();
    apply(&control, &document()).await.unwrap();
    assert_eq!(control.read(|view| view.model.revision()), 1);
}

#[tokio::test]
async fn what_is_missing_is_pending_and_comes_when_it_can() {
    let directory = tempfile::tempdir().unwrap();
    let (control, runtime) = started(&directory).await;
    runtime.memory().pending = [("m0".to_owned(), "no such file".to_owned())].into();
    apply(&control, &document()).await.unwrap();
    assert_eq!(control.state(), NodeState::Degraded);
    // The namespace rests on the device.
    assert_eq!(
        pending_names(&control),
        ["m0".to_owned(), format!("{NQN}/1")]
    );
    let reason = control.read(|view| view.pending[&Key::Namespace(NQN.into(), 1)].reason.clone());
    assert_eq!(reason, "bdev m0 is pending: no such file");
    runtime.memory().pending.clear();
    control.attempt_pending(START_MAX).await;
    assert_eq!(control.state(), NodeState::Serving);
    assert_eq!(runtime.memory().there.len(), 5);
}

#[tokio::test]
async fn a_device_that_does_not_come_up_holds_up_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let (control, runtime) = started(&directory).await;
    let mut wanted = document();
    wanted.bdevs.push(malloc("bad"));
    runtime.memory().pending = ["bad", "m0"]
        .map(|name| (name.to_owned(), "gone".into()))
        .into();
    apply(&control, &wanted).await.unwrap();
    runtime.memory().pending.clear();
    let comes = Arc::new(Notify::new());
    runtime.memory().slow = [("bad".to_owned(), Arc::clone(&comes))].into();
    // "bad" is the first in the order, and is still being opened when this returns.
    control.attempt_pending(Duration::ZERO).await;
    settle().await;
    control.attempt_pending(Duration::ZERO).await;
    assert_eq!(pending_names(&control), ["bad"]);
    assert!(
        runtime
            .memory()
            .there
            .contains(&Key::Namespace(NQN.into(), 1))
    );
    // It is opened once at a time, and comes when it can.
    assert_eq!(runtime.memory().opened["bad"], 2);
    comes.notify_one();
    settle().await;
    assert_eq!(pending_names(&control), Vec::<String>::new());
    assert_eq!(control.state(), NodeState::Serving);
}

#[tokio::test]
async fn a_start_does_not_wait_for_a_device_that_does_not_come_up() {
    let directory = tempfile::tempdir().unwrap();
    let (control, _) = started(&directory).await;
    let mut wanted = document();
    wanted.bdevs.push(malloc("bad"));
    apply(&control, &wanted).await.unwrap();
    drop(control);
    let (control, runtime) = open(directory.path());
    runtime.memory().slow = [("bad".to_owned(), Arc::default())].into();
    control.start_within(Duration::from_millis(1)).await;
    assert_eq!(pending_names(&control), ["bad"]);
    assert_eq!(control.state(), NodeState::Degraded);
}

#[tokio::test(start_paused = true)]
async fn a_restored_listener_waits_for_the_namespaces_of_its_subsystem_for_a_while() {
    let directory = tempfile::tempdir().unwrap();
    let (control, _) = started(&directory).await;
    apply(&control, &document()).await.unwrap();
    drop(control);
    let listener = format!("{NQN}/tcp://127.0.0.1:4420");
    for comes in [true, false] {
        let (control, runtime) = open(directory.path());
        runtime.memory().pending = [("m0".to_owned(), "not let go of yet".to_owned())].into();
        control.start().await;
        assert_eq!(control.state(), NodeState::Degraded);
        let waiting = ["m0".to_owned(), format!("{NQN}/1"), listener.clone()];
        assert_eq!(pending_names(&control), waiting);
        let key = Key::Listener(NQN.into(), "tcp://127.0.0.1:4420".into());
        let reason = control.read(|view| view.pending[&key].reason.clone());
        let first = format!("namespace {NQN}/1 comes first: bdev m0 is pending: not let go of yet");
        assert_eq!(reason, first);
        if comes {
            runtime.memory().pending.clear();
        } else {
            tokio::time::advance(START_MAX).await;
        }
        control.attempt_pending(START_MAX).await;
        let left = if comes { &[][..] } else { &waiting[..2] };
        assert_eq!(pending_names(&control), left);
    }
}

#[tokio::test]
async fn devices_are_opened_so_many_at_a_time_and_each_gets_its_turn() {
    let directory = tempfile::tempdir().unwrap();
    let (control, runtime) = started(&directory).await;
    let names: Vec<String> = (0..100).map(|number| format!("m{number:03}")).collect();
    let gone = |name: &String| (name.clone(), "gone".to_owned());
    runtime.memory().pending = names.iter().map(gone).collect();
    let bdevs = names.iter().map(|name| malloc(name)).collect();
    let all = Document {
        bdevs,
        ..Document::default()
    };
    apply(&control, &all).await.unwrap();
    runtime.memory().pending.clear();
    runtime.memory().opened.clear();
    let bad = || names[..80].iter();
    let release: Arc<Notify> = Arc::default();
    runtime.memory().slow = bad().map(|name| (name.clone(), release.clone())).collect();
    control.attempt_pending(Duration::ZERO).await;
    assert_eq!(runtime.memory().opened.len(), 64);
    // They fail at last; those that had no turn come before them.
    runtime.memory().refused = bad().cloned().collect();
    settle().await;
    release.notify_waiters();
    settle().await;
    control.attempt_pending(Duration::ZERO).await;
    assert_eq!(runtime.memory().opened.len(), 100);
}

#[tokio::test]
async fn pending_objects_can_be_changed_and_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let (control, runtime) = started(&directory).await;
    runtime.memory().pending = [("m0".to_owned(), "no such file".to_owned())].into();
    apply(&control, &document()).await.unwrap();
    control
        .change(|edit| edit.resize_bdev("m0", 2 << 20, None))
        .await
        .unwrap();
    assert_eq!(pending_names(&control).len(), 2);
    apply(&control, &Document::default()).await.unwrap();
    assert_eq!(pending_names(&control), Vec::<String>::new());
    assert!(runtime.memory().there.is_empty());
}

#[tokio::test]
async fn restore_puts_in_place_what_it_can_and_keeps_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let (control, _) = started(&directory).await;
    apply(&control, &document()).await.unwrap();
    drop(control);
    let (control, runtime) = open(directory.path());
    // At a start a refusal is no reason to lose anything either.
    runtime.memory().refused = [format!("{NQN}/tcp://127.0.0.1:4420")].into();
    control.start().await;
    assert_eq!(
        pending_names(&control),
        [format!("{NQN}/tcp://127.0.0.1:4420")]
    );
    runtime.memory().refused.clear();
    control.attempt_pending(START_MAX).await;
    assert_eq!(control.state(), NodeState::Serving);
}

#[tokio::test]
async fn calls_at_the_same_time_make_one_object() {
    let directory = tempfile::tempdir().unwrap();
    let (control, runtime) = started(&directory).await;
    let create = || control.change_with_bdevs(|edit| edit.create_bdev(malloc("m0")));
    let (a, b, c) = tokio::join!(create(), create(), create());
    let uuid = a.unwrap().spec.uuid().to_owned();
    assert_eq!(b.unwrap().spec.uuid(), uuid);
    assert_eq!(c.unwrap().spec.uuid(), uuid);
    assert_eq!(control.read(|view| view.model.revision()), 1);
    assert_eq!(runtime.memory().there.len(), 1);
}

#[tokio::test]
async fn a_store_that_fails_takes_every_later_change_back() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = StateStore::open(&directory.path().join("state.redb")).unwrap();
    // The model is ahead of the store: nothing that is committed can follow.
    let contents = metastore::Contents {
        generation: 5,
        ..metastore::Contents::default()
    };
    let model = Model::restore(Limits::default(), &contents).unwrap();
    let runtime = Arc::new(FakeRuntime::default());
    let about = About {
        node_id: "test".into(),
        state_dir: directory.path().into(),
        start_time_unix_ms: 0,
        started: std::time::Instant::now(),
    };
    let control = Control::new(model, store, runtime.clone(), about);
    control.start().await;
    let create = |nqn: &'static str| control.change(move |e| e.create_subsystem(subsystem(nqn)));
    // The third rests on the first: it found the same object and must not call it durable.
    let (a, b, c) = tokio::join!(
        create("nqn.2026-11.io.adit:a"),
        create("nqn.2026-11.io.adit:b"),
        create("nqn.2026-11.io.adit:a"),
    );
    for result in [a, b, c] {
        assert!(matches!(result, Err(ControlError::Store(_))), "{result:?}");
    }
    assert_eq!(
        control.read(|view| (view.model.keys(), view.model.revision())),
        (vec![], 5)
    );
    assert!(runtime.memory().there.is_empty());
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (control, runtime) = started(&directory).await;
    let changes = control
        .trial(|edit| {
            edit.apply(&document(), false)?;
            Ok(edit.changes())
        })
        .unwrap();
    assert_eq!(changes.len(), 5);
    assert_eq!(control.read(|view| view.model.keys()), vec![]);
    assert!(runtime.memory().there.is_empty());
}

#[tokio::test]
async fn events_follow_durable_changes() {
    let directory = tempfile::tempdir().unwrap();
    let (control, _) = started(&directory).await;
    let (_, mut live) = control.events(|events, _| events.watch(None)).unwrap();
    apply(&control, &document()).await.unwrap();
    let kinds: Vec<_> = std::iter::from_fn(|| live.try_recv().ok())
        .map(|event| (event.r#type(), event.kind, event.revision))
        .collect();
    let created = |kind: &str| (EventType::Created, kind.to_owned(), 1);
    assert_eq!(
        kinds,
        ["bdev", "subsystem", "namespace", "transport", "listener"].map(created)
    );
}

#[tokio::test]
async fn a_draining_node_takes_no_changes() {
    let directory = tempfile::tempdir().unwrap();
    let (control, _) = started(&directory).await;
    control.drain(Duration::from_secs(1)).await;
    assert_eq!(control.state(), NodeState::Drained);
    assert_eq!(
        apply(&control, &document()).await,
        Err(ControlError::Draining)
    );
}

#[tokio::test]
async fn metrics_name_objects_and_devices() {
    let directory = tempfile::tempdir().unwrap();
    let (control, _) = started(&directory).await;
    apply(&control, &document()).await.unwrap();
    let text = metrics::text(&control).await;
    assert!(text.contains("adit_up 1\n"), "{text}");
    assert!(text.contains("adit_objects{kind=\"namespace\"} 1\n"));
    assert!(text.contains("adit_bdev_queue_depth{bdev=\"m0\"} 0\n"));
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(
            line.starts_with("adit_") && line.rsplit(' ').next().unwrap().parse::<u64>().is_ok()
        );
    }
}

/// What a store holds of reservations.
fn kept(directory: &TempDir) -> Vec<crate::model::SavedReservation> {
    let (store, contents) = StateStore::open(&directory.path().join("state.redb")).unwrap();
    store.close();
    crate::model::reservations(&contents).unwrap()
}

#[tokio::test]
async fn reservations_are_kept_with_their_namespace_and_go_with_it() {
    use nvmf::{ReservationKey, ReservationRecord, ReservationStore, SaveDone};
    let directory = tempfile::tempdir().unwrap();
    let (control, _) = started(&directory).await;
    apply(&control, &document()).await.unwrap();
    let (reservations, saves) = crate::reservations::Reservations::new(Vec::new());
    let saving = crate::reservations::run(control.clone(), reservations.clone(), saves);
    let saving = tokio::spawn(saving);
    let save = async |nsid: u32, record: Option<&ReservationRecord>| {
        let (done, answer) = oneshot::channel();
        let key = ReservationKey {
            nqn: NQN.parse().unwrap(),
            nsid: nvme_spec::Nsid(nsid),
            uuid: uuid::Uuid::from_bytes([7; 16]),
        };
        let done = SaveDone::new(move |result| done.send(result).unwrap());
        reservations.save(&key, record, done);
        answer.await.unwrap()
    };
    let record = ReservationRecord {
        ptpl: true,
        generation: 1,
        registrants: [([1; 16], 5)].into(),
        reservation: None,
    };
    save(1, Some(&record)).await.unwrap();
    let revision = control.read(|view| view.model.revision());
    assert_eq!(revision, 2, "one transaction a change");
    // Of a namespace that is not there nothing is kept.
    save(2, Some(&record)).await.unwrap_err();
    let end = async |control: Control| {
        saving.abort();
        // The task holds the store until it has been dropped.
        let _ = saving.await;
        drop(control);
    };
    end(control).await;
    let saved = kept(&directory);
    assert_eq!((saved.len(), saved[0].nsid), (1, 1));
    let (again, _saves) = crate::reservations::Reservations::new(saved);
    let uuid = uuid::Uuid::from_bytes([7; 16]);
    assert_eq!(again.of(NQN, 1, uuid), record);

    // The namespace goes, and with it what was reserved.
    let (control, _) = started(&directory).await;
    control
        .change(|edit| edit.delete_namespace(NQN, 1, None, false))
        .await
        .unwrap();
    drop(control);
    assert_eq!(kept(&directory), []);
}
