use api::v1::{
    Address, AnaState, BdevSpec, ChangeAction, DelayBdev, Document, FileBdev, HostSpec,
    ListenerSpec, MallocBdev, NamespaceSpec, QosLimits, SubsystemDocument, SubsystemSpec,
    TransportSpec, bdev_spec::Kind, transport_spec,
};
use metastore::{Contents, StateStore};

use super::*;
use crate::error::ControlError;

const NQN: &str = "nqn.2026-11.io.adit:a";
const HOST: &str = "nqn.2026-11.io.adit:host";

fn malloc(name: &str, size_bytes: u64) -> BdevSpec {
    let kind = Kind::Malloc(MallocBdev {
        size_bytes,
        block_size: None,
    });
    BdevSpec {
        name: name.into(),
        kind: Some(kind),
        ..BdevSpec::default()
    }
}

fn delay(name: &str, base: &str) -> BdevSpec {
    let kind = Kind::Delay(DelayBdev {
        base_bdev: base.into(),
        ..DelayBdev::default()
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

fn namespace(bdev: &str) -> NamespaceSpec {
    NamespaceSpec {
        bdev_name: bdev.into(),
        ..NamespaceSpec::default()
    }
}

fn listener(uri: &str) -> ListenerSpec {
    let address = Some(Address::from_uri(uri).unwrap());
    ListenerSpec {
        address,
        ..ListenerSpec::default()
    }
}

fn host() -> HostSpec {
    HostSpec { nqn: HOST.into() }
}

fn change<T>(
    model: &mut Model,
    edit: impl FnOnce(&mut Transaction<'_>) -> Result<T, ControlError>,
) -> Result<(T, Option<Change>), ControlError> {
    let mut transaction = model.begin();
    let answer = edit(&mut transaction)?;
    Ok((answer, transaction.finish()))
}

/// One of everything.
fn full() -> Model {
    let mut model = Model::new(Limits::default());
    change(&mut model, |edit| {
        edit.create_bdev(malloc("m0", 1 << 20))?;
        edit.create_bdev(malloc("m1", 1 << 20))?;
        edit.create_bdev(delay("d0", "m0"))?;
        edit.create_subsystem(subsystem(NQN))?;
        edit.create_namespace(NQN, namespace("d0"))?;
        edit.create_listener(NQN, listener("tcp://127.0.0.1:4420"))?;
        edit.create_host(NQN, host())
    })
    .unwrap();
    model
}

fn field(error: &ControlError) -> &str {
    match error {
        ControlError::Invalid { violations, .. } => &violations[0].field,
        other => panic!("{other}"),
    }
}

#[test]
fn a_dropped_transaction_leaves_nothing_behind() {
    let mut model = full();
    let before = model.clone();
    let result = change(&mut model, |edit| {
        edit.delete_subsystem(NQN, None, false)?;
        edit.delete_bdev("d0", None, false)?;
        edit.create_bdev(malloc("m2", 512))?;
        edit.create_subsystem(subsystem("nqn.2026-11.io.adit:b"))?;
        edit.create_namespace("nqn.2026-11.io.adit:b", namespace("m0"))?;
        edit.delete_bdev("never there", None, false)
    });
    assert!(matches!(
        result,
        Err(ControlError::NotFound { kind: "bdev", .. })
    ));
    assert_eq!(model, before);
}

#[test]
fn a_reverted_change_leaves_nothing_behind() {
    let mut model = full();
    let before = model.clone();
    let (_, made) = change(&mut model, |edit| {
        edit.delete_subsystem(NQN, None, false)?;
        edit.resize_bdev("m0", 2 << 20, None)
    })
    .unwrap();
    assert_eq!(model.revision(), before.revision() + 1);
    model.revert(&made.unwrap());
    assert_eq!(model, before);
}

#[test]
fn the_same_request_again_changes_nothing() {
    let mut model = full();
    let before = model.clone();
    let (_, made) = change(&mut model, |edit| {
        edit.create_transport(TransportSpec {
            trtype: "TCP".into(),
            ..Default::default()
        })?;
        edit.create_bdev(malloc("m0", 1 << 20))?;
        edit.create_bdev(delay("d0", "m0"))?;
        edit.create_subsystem(subsystem(NQN))?;
        let found = edit.create_namespace(NQN, namespace("d0"))?;
        assert_eq!(found.spec.nsid, 1);
        edit.create_namespace(
            NQN,
            NamespaceSpec {
                nsid: 1,
                ..namespace("d0")
            },
        )?;
        edit.create_listener(NQN, listener("tcp://127.0.0.1:4420"))?;
        edit.create_host(NQN, host())
    })
    .unwrap();
    assert_eq!(made, None);
    assert_eq!(model, before);
}

#[test]
fn a_different_request_under_the_same_name_tells_the_difference() {
    let mut model = full();
    let error = change(&mut model, |edit| edit.create_bdev(malloc("m0", 2 << 20))).unwrap_err();
    let ControlError::Exists {
        kind: "bdev",
        differences,
        ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(differences.len(), 1);
    assert_eq!(differences[0].field, "malloc.size_bytes");
    let spec = SubsystemSpec {
        max_namespaces: Some(64),
        ..subsystem(NQN)
    };
    let error = change(&mut model, |edit| edit.create_subsystem(spec)).unwrap_err();
    let ControlError::Exists { differences, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(differences[0].field, "max_namespaces");
    let spec = NamespaceSpec {
        nsid: 1,
        ..namespace("m1")
    };
    let error = change(&mut model, |edit| edit.create_namespace(NQN, spec)).unwrap_err();
    assert!(matches!(
        error,
        ControlError::Exists {
            kind: "namespace",
            ..
        }
    ));
}

#[test]
fn what_others_set_does_not_make_a_create_different() {
    let mut model = full();
    change(&mut model, |edit| {
        let qos = Some(QosLimits {
            rw_ios_per_sec: 5,
            ..QosLimits::default()
        });
        let spec = BdevSpec {
            name: "m0".into(),
            qos,
            ..BdevSpec::default()
        };
        edit.update_bdev(&spec, &["qos.rw_ios_per_sec".into()], None)?;
        let address = listener("tcp://127.0.0.1:4420").address;
        edit.set_ana_state(NQN, address, 2, AnaState::Inaccessible, None)
    })
    .unwrap();
    let (_, made) = change(&mut model, |edit| {
        edit.create_bdev(malloc("m0", 1 << 20))?;
        edit.create_listener(NQN, listener("tcp://127.0.0.1:4420"))
    })
    .unwrap();
    assert_eq!(made, None);
}

#[test]
fn defaults_are_filled_in() {
    let model = full();
    let entry = &model.subsystems()[NQN];
    assert_eq!(entry.subsystem.spec.max_namespaces, Some(32));
    assert_eq!(entry.subsystem.spec.serial_number().len(), 20);
    let namespace = &entry.namespaces[&1].spec;
    let uuid = model.bdevs()["d0"].spec.uuid();
    assert_eq!(namespace.uuid(), uuid);
    assert_eq!(namespace.nguid(), uuid.replace('-', ""));
    assert_eq!(namespace.anagrpid, Some(1));
    let tcp = &model.transports()["tcp"].spec;
    assert_eq!(
        (tcp.max_queue_depth, tcp.in_capsule_data_size),
        (Some(128), Some(8192))
    );
}

#[test]
fn wrong_fields_are_named() {
    let mut model = full();
    let mut bdev = |spec: BdevSpec| {
        let error = change(&mut model, |edit| edit.create_bdev(spec)).unwrap_err();
        field(&error).to_owned()
    };
    assert_eq!(bdev(malloc("bad name", 512)), "bdev.name");
    assert_eq!(
        bdev(malloc("5f6a2b6c-6d1e-4b7e-9d55-8d9d3c1f7a11", 512)),
        "bdev.name"
    );
    assert_eq!(bdev(malloc("x", 513)), "bdev.malloc.size_bytes");
    assert_eq!(bdev(malloc("x", 0)), "bdev.malloc.size_bytes");
    assert_eq!(
        bdev(BdevSpec {
            name: "x".into(),
            ..BdevSpec::default()
        }),
        "bdev.kind"
    );
    assert_eq!(
        bdev(BdevSpec {
            uuid: Some("u".into()),
            ..malloc("x", 512)
        }),
        "bdev.uuid"
    );
    let kind = Some(Kind::File(FileBdev {
        path: "relative".into(),
        ..FileBdev::default()
    }));
    assert_eq!(
        bdev(BdevSpec {
            kind,
            ..malloc("x", 512)
        }),
        "bdev.file.path"
    );

    let mut subsystem = |spec: SubsystemSpec| {
        let error = change(&mut model, |edit| edit.create_subsystem(spec)).unwrap_err();
        field(&error).to_owned()
    };
    let named = |nqn: &str| SubsystemSpec {
        nqn: nqn.into(),
        ..SubsystemSpec::default()
    };
    assert_eq!(subsystem(named("a")), "subsystem.nqn");
    assert_eq!(
        subsystem(named(fabric_wire::DISCOVERY_NQN)),
        "subsystem.nqn"
    );
    let nqn = "nqn.2026-11.io.adit:n";
    let wrong = SubsystemSpec {
        serial_number: Some("x".repeat(21)),
        ..named(nqn)
    };
    assert_eq!(subsystem(wrong), "subsystem.serial_number");
    let wrong = SubsystemSpec {
        min_cntlid: Some(5),
        max_cntlid: Some(4),
        ..named(nqn)
    };
    assert_eq!(subsystem(wrong), "subsystem.max_cntlid");
    let wrong = SubsystemSpec {
        passthrough: Some(true),
        ..named(nqn)
    };
    assert_eq!(subsystem(wrong), "subsystem.passthrough");

    let wrong = NamespaceSpec {
        nsid: 33,
        ..namespace("m1")
    };
    let error = change(&mut model, |edit| edit.create_namespace(NQN, wrong)).unwrap_err();
    assert_eq!(field(&error), "namespace.nsid");
    let transport = |trtype: &str, options| TransportSpec {
        trtype: trtype.into(),
        options,
        ..TransportSpec::default()
    };
    let tcp = || Some(transport_spec::Options::Tcp(api::v1::TcpOptions::default()));
    let rdma = || {
        Some(transport_spec::Options::Rdma(
            api::v1::RdmaOptions::default(),
        ))
    };
    for (wrong, name) in [
        (transport("fc", None), "transport.trtype"),
        (transport("tcp", rdma()), "transport.rdma"),
        (transport("rdma", tcp()), "transport.tcp"),
    ] {
        let error = change(&mut model, |edit| edit.create_transport(wrong)).unwrap_err();
        assert_eq!(field(&error), name);
    }
}

#[test]
fn an_rdma_transport_gets_its_defaults() {
    let mut model = full();
    let spec = TransportSpec {
        trtype: "RDMA".into(),
        ..TransportSpec::default()
    };
    let (made, _) = change(&mut model, |edit| edit.create_transport(spec)).unwrap();
    assert_eq!(made.spec.trtype, "rdma");
    assert_eq!(made.spec.in_capsule_data_size, Some(4096));
    let Some(transport_spec::Options::Rdma(rdma)) = &made.spec.options else {
        panic!("{:?}", made.spec);
    };
    assert_eq!((rdma.max_srq_depth, rdma.no_srq), (Some(4096), Some(false)));
}

#[test]
fn what_is_used_stays() {
    let mut model = full();
    for name in ["m0", "d0"] {
        let error = change(&mut model, |edit| edit.delete_bdev(name, None, false)).unwrap_err();
        assert!(
            matches!(error, ControlError::InUse { kind: "bdev", .. }),
            "{error}"
        );
        let nqn = "nqn.2026-11.io.adit:b";
        let error = change(&mut model, |edit| {
            edit.create_subsystem(subsystem(nqn))?;
            edit.create_namespace(nqn, namespace(name))
        })
        .unwrap_err();
        assert!(matches!(error, ControlError::InUse { .. }), "{error}");
    }
    let error = change(&mut model, |edit| edit.delete_transport("tcp", None, false)).unwrap_err();
    assert!(matches!(
        error,
        ControlError::InUse {
            kind: "transport",
            ..
        }
    ));
    change(&mut model, |edit| {
        edit.delete_subsystem(NQN, None, false)?;
        edit.delete_bdev("d0", None, false)?;
        edit.delete_bdev("m0", None, false)?;
        edit.delete_transport("tcp", None, false)
    })
    .unwrap();
    assert_eq!(model.counts(), Counts::default());
}

#[test]
fn generations_guard_against_lost_updates() {
    let mut model = full();
    let before = model.bdevs()["m1"].generation;
    let resize = |model: &mut Model, expected| {
        change(model, |edit| {
            edit.resize_bdev("m1", 4 << 20, Some(expected))
        })
        .map(|(bdev, _)| bdev)
    };
    assert!(matches!(
        resize(&mut model, before + 1),
        Err(ControlError::Generation { actual, .. }) if actual == before
    ));
    let after = resize(&mut model, before).unwrap();
    assert_eq!(after.generation, model.revision());
    assert!(resize(&mut model, before).is_err());
}

#[test]
fn missing_objects_may_be_allowed() {
    let mut model = Model::new(Limits::default());
    let (_, made) = change(&mut model, |edit| {
        edit.delete_bdev("x", None, true)?;
        edit.delete_subsystem("x", None, true)?;
        edit.delete_namespace("x", 1, None, true)?;
        edit.delete_listener("x", listener("tcp://127.0.0.1:1").address, None, true)?;
        edit.delete_host("x", "y", None, true)?;
        edit.delete_transport("tcp", None, true)
    })
    .unwrap();
    assert_eq!(made, None);
}

#[test]
fn limits_are_enforced() {
    let limits = Limits {
        bdevs_max: 1,
        subsystems_max: 1,
        ..Limits::default()
    };
    let mut model = Model::new(limits);
    let error = change(&mut model, |edit| {
        edit.create_bdev(malloc("a", 512))?;
        edit.create_bdev(malloc("b", 512))
    })
    .unwrap_err();
    assert!(matches!(
        error,
        ControlError::Limit {
            what: "bdevs",
            max: 1,
            ..
        }
    ));
    let error = change(&mut model, |edit| {
        edit.create_subsystem(subsystem("nqn.2026-11.io.adit:a"))?;
        edit.create_subsystem(subsystem("nqn.2026-11.io.adit:b"))
    })
    .unwrap_err();
    assert!(matches!(
        error,
        ControlError::Limit {
            what: "subsystems",
            ..
        }
    ));
}

#[test]
fn namespaces_take_the_lowest_free_number() {
    let mut model = full();
    change(&mut model, |edit| {
        edit.create_bdev(malloc("m2", 512))?;
        assert_eq!(edit.create_namespace(NQN, namespace("m1"))?.spec.nsid, 2);
        edit.delete_namespace(NQN, 1, None, false)?;
        assert_eq!(edit.create_namespace(NQN, namespace("m2"))?.spec.nsid, 1);
        Ok(())
    })
    .unwrap();
}

#[test]
fn ana_states_are_kept_in_one_form() {
    let mut model = full();
    let address = || listener("tcp://127.0.0.1:4420").address;
    let set = |model: &mut Model, group, state| {
        let (stored, made) = change(model, |edit| {
            edit.set_ana_state(NQN, address(), group, state, None)
        })
        .unwrap();
        (stored.spec.ana_groups.len(), made.is_some())
    };
    assert_eq!(set(&mut model, 3, AnaState::Inaccessible), (1, true));
    assert_eq!(set(&mut model, 3, AnaState::Inaccessible), (1, false));
    assert_eq!(set(&mut model, 3, AnaState::Optimized), (0, true));
    assert_eq!(set(&mut model, 1, AnaState::Change), (1, true));
    assert_eq!(set(&mut model, 0, AnaState::Inaccessible), (0, true));
    let error = change(&mut model, |edit| {
        edit.set_ana_state(NQN, address(), 33, AnaState::Change, None)
    });
    assert!(matches!(error, Err(ControlError::Invalid { .. })));
}

#[test]
fn stored_records_restore_the_model() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    let (store, _) = StateStore::open(&path).unwrap();
    let mut model = Model::new(Limits::default());
    let store_change = |model: &mut Model, edit: &dyn Fn(&mut Transaction<'_>)| {
        let (_, made) = change(model, |transaction| {
            edit(transaction);
            Ok(())
        })
        .unwrap();
        store
            .commit(batch(&made.unwrap()), |result| result.unwrap())
            .unwrap();
    };
    store_change(&mut model, &|edit| {
        edit.create_bdev(malloc("m0", 1 << 20)).unwrap();
        edit.create_bdev(delay("d0", "m0")).unwrap();
        edit.create_subsystem(subsystem(NQN)).unwrap();
        edit.create_namespace(NQN, namespace("d0")).unwrap();
        edit.create_listener(NQN, listener("tcp://[::1]:4420"))
            .unwrap();
        edit.create_host(NQN, host()).unwrap();
    });
    store_change(&mut model, &|edit| {
        edit.delete_host(NQN, HOST, None, false).unwrap();
        edit.resize_bdev("m0", 2 << 20, None).unwrap();
    });
    store.close();
    let (_, contents) = StateStore::open(&path).unwrap();
    assert_eq!(Model::restore(Limits::default(), &contents).unwrap(), model);
}

#[test]
fn records_that_make_no_sense_are_refused() {
    let record = |kind: &str, value: &[u8]| metastore::Record {
        kind: kind.into(),
        name: "x".into(),
        generation: 1,
        value: value.to_vec(),
    };
    for wrong in [
        record("drive", b""),
        record("bdev", b""),
        record("bdev", b"\xFF"),
        record("namespace", b""),
        record("listener", b""),
    ] {
        let contents = Contents {
            generation: 1,
            records: vec![wrong],
        };
        assert!(Model::restore(Limits::default(), &contents).is_err());
    }
}

fn document() -> Document {
    Document {
        transports: vec![],
        bdevs: vec![delay("d0", "m0"), malloc("m0", 1 << 20)],
        subsystems: vec![SubsystemDocument {
            subsystem: Some(subsystem(NQN)),
            namespaces: vec![namespace("d0")],
            listeners: vec![listener("tcp://127.0.0.1:4420")],
            hosts: vec![host()],
        }],
        pools: vec![],
    }
}

fn apply(
    model: &mut Model,
    document: &Document,
) -> Result<Vec<(ChangeAction, String)>, ControlError> {
    let (changes, _) = change(model, |edit| {
        edit.apply(document, false)?;
        Ok(edit.changes())
    })?;
    Ok(changes.into_iter().map(|c| (c.action(), c.name)).collect())
}

#[test]
fn a_document_makes_the_state_and_again_changes_nothing() {
    let mut model = Model::new(Limits::default());
    let made = apply(&mut model, &document()).unwrap();
    assert_eq!(made.len(), 7, "{made:?}");
    assert!(
        made.iter()
            .all(|(action, _)| *action == ChangeAction::Create)
    );
    let revision = model.revision();
    assert_eq!(apply(&mut model, &document()).unwrap(), []);
    assert_eq!(model.revision(), revision);
    let exported = model.document();
    assert_eq!(apply(&mut model, &exported).unwrap(), []);
}

#[test]
fn a_document_deletes_updates_and_creates_in_one_change() {
    let mut model = full();
    let mut document = document();
    let Some(Kind::Malloc(m0)) = &mut document.bdevs[1].kind else {
        panic!()
    };
    m0.size_bytes = 4 << 20;
    document.bdevs[0].qos = Some(QosLimits {
        rw_ios_per_sec: 9,
        ..QosLimits::default()
    });
    document.subsystems[0].hosts.clear();
    document.subsystems[0]
        .subsystem
        .as_mut()
        .unwrap()
        .allow_any_host = Some(true);
    document.subsystems[0].listeners[0].ana_state = AnaState::NonOptimized.into();
    document.bdevs.push(malloc("m5", 512));
    let before = model.revision();
    let mut made = apply(&mut model, &document).unwrap();
    made.sort_by(|a, b| a.1.cmp(&b.1));
    let listener = format!("{NQN}/tcp://127.0.0.1:4420");
    assert_eq!(
        made,
        [
            (ChangeAction::Update, "d0".to_owned()),
            (ChangeAction::Update, "m0".to_owned()),
            (ChangeAction::Delete, "m1".to_owned()),
            (ChangeAction::Create, "m5".to_owned()),
            (ChangeAction::Update, NQN.to_owned()),
            (ChangeAction::Delete, format!("{NQN}/{HOST}")),
            (ChangeAction::Update, listener),
        ]
    );
    assert_eq!(model.revision(), before + 1);
    assert_eq!(apply(&mut model, &document).unwrap(), []);
    // Nothing named: nothing left.
    let gone = apply(&mut model, &Document::default()).unwrap();
    assert!(
        gone.iter()
            .all(|(action, _)| *action == ChangeAction::Delete)
    );
    assert_eq!(model.keys(), []);
}

#[test]
fn a_document_that_cannot_be_changes_nothing() {
    let mut model = full();
    let before = model.clone();
    let mut twice = document();
    twice.bdevs.push(malloc("m0", 512));
    let mut circle = document();
    circle.bdevs = vec![delay("x", "y"), delay("y", "x")];
    let mut fixed = document();
    fixed.subsystems[0].subsystem.as_mut().unwrap().model_number = Some("other".into());
    let mut kind = document();
    kind.bdevs[1] = delay("m0", "m1");
    let mut missing = document();
    missing.subsystems[0].namespaces[0].bdev_name = "nowhere".into();
    for wrong in [twice, circle, fixed, kind, missing] {
        assert!(apply(&mut model, &wrong).is_err());
        assert_eq!(model, before);
    }
}
