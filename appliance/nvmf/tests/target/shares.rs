//! Hosts that keep buffers: the others do not notice.

use nvme_spec::{Cid, Nsid, Sqe, Status};

use crate::loopback::End;
use crate::rig::{Rig, Served, capsule, read, take, taken, transport, write};

const HOG: &str = "nqn.2026-11.io.adit:hog";
const HOG_2: &str = "nqn.2026-11.io.adit:hog-2";
/// Blocks of a command that takes a large buffer.
const LARGE: u32 = 128;

/// Queues of a host of this name, as many as a controller has.
fn queues(rig: &mut Rig, served: &Served, name: &str) -> Vec<End> {
    let host = rig.host_in(0, &served.host.subsystem, name);
    (1..5).map(|qid| rig.io(&host, qid)).collect()
}

fn large_in_use(rig: &Rig) -> u64 {
    let stats = rig.pool.stats();
    stats.large.total - stats.large.free
}

#[test]
fn hosts_that_withhold_data_leave_buffers_for_the_others() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 4096);
    let mut hogs = Vec::new();
    for (name, in_use) in [(HOG, 11), (HOG_2, 18)] {
        let queues = queues(&mut rig, &served, name);
        for io in &queues {
            io.wire().holds_data = true;
            for cid in 0..30 {
                rig.send(io, write(cid, 0, LARGE), &[1; 65_536]);
            }
        }
        assert_eq!(large_in_use(&rig), in_use);
        hogs.push(queues);
    }
    // Fourteen are left, and serve whoever gives them back.
    for cid in 0..20 {
        let status = rig.status(&served.io, write(cid, 0, LARGE), &[2; 65_536]);
        assert_eq!(status, Status::SUCCESS);
    }
    // What the hogs asked for goes on where it stood.
    for io in hogs.iter().flatten() {
        io.wire().holds_data = false;
    }
    rig.poll();
    for io in hogs.iter().flatten() {
        for cid in 0..30 {
            assert_eq!(taken(io, cid), Some(Status::SUCCESS));
        }
    }
    rig.assert_all_buffers_back();
}

#[test]
fn a_host_that_does_not_read_leaves_buffers_for_the_others() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 4096);
    let queues = queues(&mut rig, &served, HOG);
    for io in &queues {
        io.wire().holds_replies = true;
        for cid in 0..30 {
            rig.send(io, read(cid, 0, LARGE), &[]);
        }
    }
    // The loopback copies the data at once, and keeps the slot: it is charged until it is sent.
    assert!(large_in_use(&rig) <= 11);
    let status = rig.status(&served.io, read(1, 0, LARGE), &[]);
    assert_eq!(status, Status::SUCCESS);
    for io in &queues {
        io.wire().holds_replies = false;
    }
    rig.poll();
    for io in &queues {
        assert!((0..30).all(|cid| taken(io, cid) == Some(Status::SUCCESS)));
    }
    rig.assert_all_buffers_back();
}

#[test]
fn what_waits_for_the_hosts_share_can_be_aborted_and_closed() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 4096);
    served.io.wire().holds_data = true;
    for cid in 0..20 {
        rig.send(&served.io, write(cid, 0, LARGE), &[1; 65_536]);
    }
    assert_eq!(large_in_use(&rig), 11);
    let abort = Sqe::abort(Cid(1), nvme_spec::Qid(1), Cid(18));
    rig.send(&served.host.admin, abort, &[]);
    rig.advance(std::time::Duration::from_millis(1));
    let reply = take(&served.host.admin, Cid(1)).unwrap();
    assert_eq!(reply.cqe.dw0() & 1, 0, "it was aborted");
    assert_eq!(taken(&served.io, 18), Some(Status::COMMAND_ABORT_REQUESTED));
    served.io.wire().is_cut = true;
    rig.poll();
    rig.assert_all_buffers_back();
    let io = rig.io(&served.host, 2);
    assert!(
        rig.status(&io, write(1, 0, LARGE), &[1; 65_536])
            .is_success()
    );
}

#[test]
fn hosts_that_withhold_the_data_of_admin_commands_leave_others_theirs() {
    let mut rig = Rig::new();
    let served = rig.with_device(512, 64);
    let hogs: Vec<_> = (0..8)
        .map(|_| rig.host_in(0, &served.host.subsystem, HOG))
        .collect();
    let set = |cid| {
        let sqe = Sqe::set_features(Cid(cid), nvme_spec::feature::fid::HOST_BEHAVIOR, 0);
        transport(sqe, 512)
    };
    for hog in &hogs {
        hog.admin.wire().holds_data = true;
        for cid in 0..20 {
            rig.send(&hog.admin, set(cid), &[0; 512]);
        }
    }
    let stats = rig.pool.stats();
    let in_use = stats.small.total - stats.small.free + stats.reserve_total - stats.reserve_free;
    assert_eq!(in_use, 22);
    let identify = transport(Sqe::identify(Cid(1), Nsid(1), 0), 4096);
    assert!(rig.status(&served.host.admin, identify, &[]).is_success());
    let in_capsule = capsule(write(2, 0, 1), 512);
    assert!(rig.status(&served.io, in_capsule, &[3; 512]).is_success());
    for hog in &hogs {
        hog.admin.wire().is_cut = true;
    }
    rig.poll();
    rig.assert_all_buffers_back();
}
