//! Devices that go and come back.

use fabric_wire::rdma::ConnectRequest;
use nvme_spec::{Cid, Cntlid, Lba, Nsid, Qid, Sqe};
use verbs::CmEventKind;

use crate::raw::{PARAM, Served};

/// Goal: a device that goes and comes back costs its connections, not its listener.
#[test]
fn a_listener_is_back_when_its_device_is() {
    for seed in 0..8 {
        let mut served = Served::new(seed, seed % 2 == 0);
        let address = "rdma://10.0.0.1:4420".parse().unwrap();
        let (admin, io) = served.associate();
        for round in 0..3 {
            assert_eq!(served.transport.listener_lost(&address), None);
            served.fabric.remove_device("target0");
            served.drain();
            let lost = |served: &Served| served.transport.listener_lost(&address);
            served.until(|served| lost(served).is_some());
            assert!(lost(&served).unwrap().contains("removed"));
            let gone_ms = 1500 * round;
            for _ in 0..gone_ms {
                served.turn();
            }
            assert!(lost(&served).is_some(), "nothing is there to listen on");
            served.fabric.restore_device("target0");
            served.until(|served| lost(served).is_none());
            let (_admin, mut io) = served.associate();
            let write = Sqe::write(Cid(30), Nsid(1), Lba(0), 1);
            io.send(&write.with_sgl(io.keyed(0, 512)), &[]);
            assert!(served.finish(&mut io).status().is_success());
        }
        drop((admin, io));
        served.drain();
    }
}

/// Goal: a listener that is taken away while its device is gone does not come back with it.
#[test]
fn a_listener_that_was_removed_does_not_come_back() {
    let mut served = Served::new(5, false);
    let address = "rdma://10.0.0.1:4420".parse().unwrap();
    served.fabric.remove_device("target0");
    served.until(|served| served.transport.listener_lost(&address).is_some());
    drop(served.target.stop_listening(&address));
    served.until(|served| served.transport.listener_lost(&address).is_none());
    served.fabric.restore_device("target0");
    for _ in 0..20_000 {
        served.turn();
    }
    let request = ConnectRequest {
        qid: Qid(0),
        hrqsize: 32,
        hsqsize: 31,
        cntlid: Cntlid(0xffff),
    };
    let (_host, event) = served.ask(&request.to_bytes(), &PARAM);
    assert!(matches!(event.kind, CmEventKind::Rejected), "{event:?}");
}

/// Goal: a device whose driver tells nobody of its removal is let go of, so that the removal, which
/// may wait for that, can end: with connections there, after them, and before any. Method: the double
/// removes it without an event of the device; in the last round nobody listens there either, so that
/// no identifier is told.
#[test]
fn a_device_that_goes_silently_is_let_go() {
    let address = "rdma://10.0.0.1:4420".parse().unwrap();
    for round in 0..4 {
        let mut served = Served::new(round, round % 2 == 0);
        let hosts = (round == 0).then(|| served.associate());
        if round % 2 == 1 {
            drop(served.associate());
            served.drain();
        }
        if round == 3 {
            drop(served.target.stop_listening(&address));
            served.turn();
        }
        served.fabric.remove_device_silently("target0");
        // A poll group has nothing there before its first connection.
        assert_eq!(served.fabric.holds_removed_devices(), round != 2);
        served.until(|served| !served.fabric.holds_removed_devices());
        drop(hosts);
        if round == 3 {
            // There is nothing left to look for.
            served.until(|served| served.group.next_deadline().is_none());
        } else {
            served.until(|served| served.transport.listener_lost(&address).is_some());
            served.fabric.restore_device("target0");
            served.until(|served| served.transport.listener_lost(&address).is_none());
            served.associate();
        }
    }
}
