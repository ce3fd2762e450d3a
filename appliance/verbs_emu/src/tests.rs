use std::net::SocketAddr;

use dma::{BackingPreference, Region, RegionOptions};
use verbs::{
    Access, Bind, CmEvent, CmEventKind, CmId, ConnParam, Cq, Mr, Pd, Qp, QpOptions, RecvWr, SendOp,
    SendWr, Sge, SgeList, WcOpcode, WcStatus, WorkCompletion,
};

use super::*;

struct Side {
    channel: Box<dyn CmChannel>,
    _id: Box<dyn CmId>,
    qp: Box<dyn Qp>,
    cq: Arc<dyn Cq>,
    pd: Arc<dyn Pd>,
    region: Arc<Region>,
    mr: Box<dyn Mr>,
}

impl Side {
    fn sge(&self, offset: usize, len: u32) -> Sge {
        Sge {
            addr: (self.region.addr() + offset) as u64,
            len,
            lkey: self.mr.lkey(),
        }
    }

    fn at(&self, offset: usize) -> u64 {
        (self.region.addr() + offset) as u64
    }

    fn completions(&self) -> Vec<WorkCompletion> {
        let mut all = Vec::new();
        let mut batch = [WorkCompletion::default(); 8];
        for _ in 0..64 {
            let count = self.cq.poll(&mut batch).unwrap();
            all.extend_from_slice(&batch[..count]);
        }
        all
    }

    fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.region.read_at(offset, &mut bytes);
        bytes
    }
}

fn region() -> Arc<Region> {
    Region::allocate(&RegionOptions {
        len: 1 << 16,
        backing: BackingPreference::Plain4K,
        ..RegionOptions::default()
    })
    .unwrap()
}

fn wait(channel: &mut Box<dyn CmChannel>) -> CmEvent {
    for _ in 0..1000 {
        if let Some(event) = channel.poll().unwrap() {
            return event;
        }
    }
    panic!("no event came");
}

fn equip(channel: Box<dyn CmChannel>, mut id: Box<dyn CmId>) -> Side {
    let device = id.device().unwrap();
    let pd = device.alloc_pd().unwrap();
    let cq = device.create_cq(64, None, 0).unwrap();
    let region = region();
    let access = Access {
        mw_bind: true,
        ..Access::REMOTE
    };
    let mr = pd.reg_mr(&region, access).unwrap();
    let qp = id
        .create_qp(&QpOptions {
            pd: &pd,
            send_cq: &cq,
            recv_cq: &cq,
            srq: None,
            max_send_wr: 16,
            max_recv_wr: 16,
            max_inline_data: 16,
        })
        .unwrap();
    Side {
        channel,
        _id: id,
        qp,
        cq,
        pd,
        region,
        mr,
    }
}

const PARAM: ConnParam = ConnParam {
    responder_resources: 4,
    initiator_depth: 4,
    retry_count: 7,
    rnr_retry_count: 2,
};

fn pair(fabric: &Fabric) -> (Side, Side) {
    let (near, far) = (fabric.node(), fabric.node());
    near.add_device("near0", "10.0.0.1".parse().unwrap());
    far.add_device("far0", "10.0.0.2".parse().unwrap());
    let mut far_channel = far.cm_channel().unwrap();
    let address: SocketAddr = "10.0.0.2:4420".parse().unwrap();
    let listener = far_channel.listen(7, address, 16).unwrap();
    let mut near_channel = near.cm_channel().unwrap();
    let mut id = near_channel.resolve(1, None, address, 1000).unwrap();
    assert!(matches!(
        wait(&mut near_channel).kind,
        CmEventKind::AddrResolved
    ));
    id.resolve_route(1000).unwrap();
    assert!(matches!(
        wait(&mut near_channel).kind,
        CmEventKind::RouteResolved
    ));
    let mut near = equip(near_channel, id);
    near._id.connect(&PARAM, b"hello").unwrap();
    let event = wait(&mut far_channel);
    assert_eq!((event.context, &event.private_data[..]), (7, &b"hello"[..]));
    let CmEventKind::ConnectRequest { id, .. } = event.kind else {
        panic!("{event:?}");
    };
    let mut far = equip(far_channel, id);
    far.channel.adopt(8, &mut *far._id).unwrap();
    far._id.accept(&PARAM, b"welcome").unwrap();
    let event = wait(&mut near.channel);
    assert!(matches!(event.kind, CmEventKind::Established { .. }));
    assert_eq!(&event.private_data[..], b"welcome");
    let event = wait(&mut far.channel);
    assert_eq!(event.context, 8);
    drop(listener);
    (near, far)
}

#[test]
fn a_message_a_write_and_a_read_move_their_bytes() {
    for seed in 0..50 {
        let fabric = Fabric::new(seed);
        let (mut near, mut far) = pair(&fabric);
        near.region.write_at(0, b"message");
        near.region.write_at(100, b"written");
        far.region.write_at(300, b"to be read");
        let receive = RecvWr {
            wr_id: 1,
            sges: SgeList::one(far.sge(1000, 64)),
        };
        far.qp.post_recv(&[receive]).unwrap();
        let rkey = far.mr.rkey();
        let write = SendOp::Write {
            remote_addr: far.at(200),
            rkey,
        };
        let read = SendOp::Read {
            remote_addr: far.at(300),
            rkey,
        };
        near.qp
            .post_send(&[
                SendWr::new(10, write, SgeList::one(near.sge(100, 7))),
                SendWr::new(11, read, SgeList::one(near.sge(400, 10))),
                SendWr::new(12, SendOp::Send, SgeList::one(near.sge(0, 7))),
            ])
            .unwrap();
        fabric.settle();
        let received = far.completions();
        assert_eq!((received.len(), received[0].byte_len), (1, 7));
        assert_eq!(received[0].opcode, WcOpcode::Recv);
        let sent: Vec<u64> = near.completions().iter().map(|wc| wc.wr_id).collect();
        assert_eq!(sent, [10, 11, 12]);
        assert_eq!(far.read(1000, 7), b"message");
        assert_eq!(far.read(200, 7), b"written");
        assert_eq!(near.read(400, 10), b"to be read");
    }
}

#[test]
fn some_seeds_deliver_a_receive_before_its_send_completes_and_some_after() {
    let (mut before, mut after) = (0, 0);
    for seed in 0..100 {
        let fabric = Fabric::new(seed);
        let (mut near, mut far) = pair(&fabric);
        let receive = RecvWr {
            wr_id: 1,
            sges: SgeList::one(far.sge(0, 64)),
        };
        far.qp.post_recv(&[receive]).unwrap();
        let send = SendWr::new(2, SendOp::Send, SgeList::one(near.sge(0, 16)));
        near.qp.post_send(&[send]).unwrap();
        let mut batch = [WorkCompletion::default(); 4];
        loop {
            if far.cq.poll(&mut batch).unwrap() > 0 {
                before += 1;
                break;
            }
            if near.cq.poll(&mut batch).unwrap() > 0 {
                after += 1;
                break;
            }
        }
    }
    assert!(before > 5 && after > 5, "{before} before, {after} after");
}

#[test]
fn a_wrong_key_or_range_fails_both_sides() {
    for (offset, len, rkey_off) in [(65_530, 16, 0), (0, 16, 1)] {
        let fabric = Fabric::new(3);
        let (mut near, mut far) = pair(&fabric);
        let receive = RecvWr {
            wr_id: 1,
            sges: SgeList::one(far.sge(0, 64)),
        };
        far.qp.post_recv(&[receive]).unwrap();
        let write = SendOp::Write {
            remote_addr: far.at(offset),
            rkey: far.mr.rkey() + rkey_off,
        };
        near.qp
            .post_send(&[
                SendWr::new(1, write, SgeList::one(near.sge(0, len))),
                SendWr::new(2, SendOp::Send, SgeList::one(near.sge(0, 16))),
            ])
            .unwrap();
        fabric.settle();
        let statuses: Vec<_> = near.completions().iter().map(|wc| wc.status).collect();
        assert_eq!(statuses, [WcStatus::RemoteAccess, WcStatus::Flushed]);
        assert_eq!(far.completions()[0].status, WcStatus::Flushed);
    }
}

#[test]
fn a_message_without_a_receive_is_tried_again_and_then_fails() {
    let fabric = Fabric::new(5);
    let (mut near, _far) = pair(&fabric);
    let send = SendWr::new(2, SendOp::Send, SgeList::one(near.sge(0, 16)));
    near.qp.post_send(&[send]).unwrap();
    fabric.settle();
    assert_eq!(near.completions()[0].status, WcStatus::RnrRetryExceeded);
    assert!(fabric.stats().receiver_not_ready > 8);
}

#[test]
fn a_port_that_is_down_ends_what_is_sent_with_retries_exceeded() {
    let fabric = Fabric::new(5);
    let (mut near, _far) = pair(&fabric);
    fabric.set_port("far0", false);
    let write = SendOp::Write {
        remote_addr: 0,
        rkey: 0,
    };
    let send = SendWr::new(2, write, SgeList::one(near.sge(0, 16)));
    near.qp.post_send(&[send]).unwrap();
    fabric.settle();
    assert_eq!(near.completions()[0].status, WcStatus::RetryExceeded);
}

#[test]
fn a_window_shows_its_range_until_a_message_invalidates_it() {
    for seed in 0..20 {
        let fabric = Fabric::new(seed);
        let (mut near, mut far) = pair(&fabric);
        let mut mw = near.pd.alloc_mw().unwrap();
        let bind = Bind {
            wr_id: 1,
            addr: near.at(512),
            len: 16,
            is_writable: true,
        };
        let rkey = near.qp.bind_mw(&mut *mw, &*near.mr, &bind).unwrap();
        let receive = RecvWr {
            wr_id: 3,
            sges: SgeList::one(near.sge(0, 64)),
        };
        near.qp.post_recv(&[receive]).unwrap();
        fabric.settle();
        let write = SendOp::Write {
            remote_addr: near.at(512),
            rkey,
        };
        far.region.write_at(0, &[9; 16]);
        far.qp
            .post_send(&[
                SendWr::new(4, write, SgeList::one(far.sge(0, 16))),
                SendWr::new(
                    5,
                    SendOp::SendWithInv { rkey },
                    SgeList::one(far.sge(0, 16)),
                ),
            ])
            .unwrap();
        fabric.settle();
        assert_eq!(near.read(512, 16), [9; 16]);
        assert_eq!(near.completions()[0].invalidated_rkey, Some(rkey));
        let again = SendWr::new(6, write, SgeList::one(far.sge(0, 16)));
        far.qp.post_send(&[again]).unwrap();
        fabric.settle();
        assert_eq!(far.completions()[2].status, WcStatus::RemoteAccess);
    }
}

#[test]
fn an_armed_queue_notes_one_completion_on_its_channel() {
    let fabric = Fabric::new(1);
    let node = fabric.node();
    node.add_device("d0", "10.0.0.1".parse().unwrap());
    let device = node.devices().unwrap().remove(0);
    let channel = device.create_comp_channel().unwrap();
    let cq = device.create_cq(4, Some(&channel), 0).unwrap();
    assert_eq!(channel.consume(), 0);
    cq.arm().unwrap();
    let number = *fabric.0.lock().cqs.keys().next().unwrap();
    for _ in 0..3 {
        let completion = WorkCompletion::default();
        fabric.0.lock().complete(number, completion);
    }
    assert_eq!((channel.consume(), channel.consume()), (1, 0));
}

#[test]
fn a_refusal_carries_its_private_data() {
    let fabric = Fabric::new(1);
    let (near, far) = (fabric.node(), fabric.node());
    near.add_device("near0", "10.0.0.1".parse().unwrap());
    far.add_device("far0", "10.0.0.2".parse().unwrap());
    let mut far_channel = far.cm_channel().unwrap();
    let address: SocketAddr = "0.0.0.0:0".parse().unwrap();
    let listener = far_channel.listen(7, address, 16).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut near_channel = near.cm_channel().unwrap();
    let peer = SocketAddr::new("10.0.0.2".parse().unwrap(), port);
    let mut id = near_channel.resolve(1, None, peer, 1000).unwrap();
    wait(&mut near_channel);
    id.connect(&PARAM, &[]).unwrap();
    let CmEventKind::ConnectRequest { mut id, .. } = wait(&mut far_channel).kind else {
        panic!();
    };
    id.reject(&[1, 2, 3]).unwrap();
    let event = wait(&mut near_channel);
    assert!(matches!(event.kind, CmEventKind::Rejected));
    assert_eq!(&event.private_data[..], [1, 2, 3]);
}

#[test]
fn a_disconnect_flushes_and_both_sides_hear_of_it() {
    let fabric = Fabric::new(9);
    let (mut near, mut far) = pair(&fabric);
    let receive = RecvWr {
        wr_id: 1,
        sges: SgeList::one(far.sge(0, 64)),
    };
    far.qp.post_recv(&[receive]).unwrap();
    near._id.disconnect().unwrap();
    assert!(matches!(
        wait(&mut near.channel).kind,
        CmEventKind::Disconnected
    ));
    assert!(matches!(
        wait(&mut far.channel).kind,
        CmEventKind::Disconnected
    ));
    far._id.disconnect().unwrap();
    far.qp.set_error().unwrap();
    fabric.settle();
    assert_eq!(far.completions()[0].status, WcStatus::Flushed);
}

#[test]
fn a_removed_device_is_told_of_and_refuses_everything() {
    let fabric = Fabric::new(9);
    let (_near, mut far) = pair(&fabric);
    let device = far._id.device().unwrap();
    fabric.remove_device("far0");
    assert!(matches!(
        wait(&mut far.channel).kind,
        CmEventKind::DeviceRemoval
    ));
    assert!(device.alloc_pd().is_err());
    assert!(device.poll_async_event().is_some());
}

#[test]
fn nothing_is_left_when_everything_is_dropped() {
    let fabric = Fabric::new(2);
    let sides = pair(&fabric);
    assert!(fabric.object_count() > 8);
    drop(sides);
    assert_eq!(fabric.object_count(), 0);
}
