//! What no well-behaved host sends.

use fabric_wire::fabrics::ConnectCommand;
use fabric_wire::rdma::{CmStatus, ConnectReject, ConnectRequest};
use nvme_spec::{Cid, Cntlid, Lba, Nsid, Qid, SglDescriptor, Sqe, Status};
use verbs::{CmEventKind, ConnParam};

use crate::raw::{PARAM, Polled, Served};

fn last_segment(count: usize) -> SglDescriptor {
    let mut sgl = SglDescriptor::last_segment(0, 16 * count as u32);
    sgl.0[15] |= SglDescriptor::SUBTYPE_OFFSET;
    sgl
}

fn segment(blocks: &[SglDescriptor]) -> Vec<u8> {
    blocks.iter().flat_map(|block| block.0).collect()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 256) as u8).collect()
}

#[test]
fn data_in_several_pieces_of_memory_is_moved_in_order() {
    for seed in 0..20 {
        let mut served = Served::new(seed, seed % 2 == 0);
        let (_admin, mut io) = served.associate();
        let data = pattern(8192);
        // Pieces of any length, in any order, more of them than reads may be outstanding.
        let lens = [100, 4000, 1, 91, 2000, 1000, 1000];
        let mut from = 0;
        let mut blocks = Vec::new();
        for (index, len) in lens.into_iter().enumerate() {
            let place = (lens.len() - index) * 8192;
            io.region.write_at(place, &data[from..from + len]);
            blocks.push(io.keyed(place, len as u32));
            from += len;
        }
        let write = Sqe::write(Cid(3), Nsid(1), Lba(0), 16).with_sgl(last_segment(lens.len()));
        io.send(&write, &segment(&blocks));
        assert!(served.finish(&mut io).status().is_success());
        let read = Sqe::read(Cid(4), Nsid(1), Lba(0), 16);
        io.send(&read.with_sgl(io.keyed(0, 8192)), &[]);
        assert!(served.finish(&mut io).status().is_success());
        assert!(io.read(0, 8192) == data, "seed {seed}");
        let pieces = [io.keyed(65_536, 8000), io.keyed(131_072, 192)];
        io.send(&read.with_sgl(last_segment(2)), &segment(&pieces));
        assert!(served.finish(&mut io).status().is_success());
        assert!(io.read(65_536, 8000) == data[..8000]);
        assert!(io.read(131_072, 192) == data[8000..]);
        let copied: u64 = served.transport.stats().groups()[0].copied_bytes();
        assert_eq!(copied, 0);
    }
}

/// Goal: a host may use a command's identifier again as soon as it has the response, which may be
/// before the target knows that that was sent.
#[test]
fn an_identifier_may_be_used_again_once_its_response_has_come() {
    for seed in 0..20 {
        let mut served = Served::new(seed, seed % 2 == 0);
        let (_admin, mut io) = served.associate();
        let read = Sqe::read(Cid(4), Nsid(1), Lba(0), 1).with_sgl(io.keyed(0, 512));
        for _ in 0..50 {
            io.send(&read, &[]);
            // Everything that has come is looked at before the target has another turn.
            let cqe = loop {
                match io.poll_one() {
                    Polled::Response(cqe) => break cqe,
                    Polled::Other => assert!(!io.is_broken),
                    Polled::Nothing => served.turn(),
                }
            };
            assert!(cqe.status().is_success(), "seed {seed}: {}", cqe.status());
        }
    }
}

#[test]
fn a_wrong_sgl_is_answered_and_the_connection_goes_on() {
    let mut served = Served::new(1, true);
    let (_admin, mut io) = served.associate();
    let write = |cid, sgl| Sqe::write(Cid(cid), Nsid(1), Lba(0), 1).with_sgl(sgl);
    let too_many = segment(&[SglDescriptor::keyed(0, 1, 0, false); 17]);
    let cases = [
        (
            SglDescriptor::transport_data(512),
            vec![],
            Status::SGL_DESCRIPTOR_TYPE_INVALID,
        ),
        (
            SglDescriptor::in_capsule(0, 512),
            vec![0; 100],
            Status::SGL_OFFSET_INVALID,
        ),
        (
            SglDescriptor::in_capsule(8, 504),
            vec![0; 512],
            Status::SGL_OFFSET_INVALID,
        ),
        (io.keyed(0, 1024), vec![], Status::DATA_SGL_LENGTH_INVALID),
        (io.keyed(0, 0), vec![], Status::DATA_SGL_LENGTH_INVALID),
        (
            last_segment(17),
            too_many,
            Status::SGL_DESCRIPTOR_TYPE_INVALID,
        ),
        (
            last_segment(2),
            segment(&[SglDescriptor::in_capsule(0, 512); 2]),
            Status::SGL_DESCRIPTOR_TYPE_INVALID,
        ),
    ];
    for (cid, (sgl, behind, status)) in (10..).zip(cases) {
        io.send(&write(cid, sgl), &behind);
        let cqe = served.finish(&mut io);
        assert_eq!(cqe.cid(), Cid(cid));
        assert!(cqe.status().is(status), "{sgl:?}: {:?}", cqe.status());
    }
    io.send(&write(30, io.keyed(0, 512)), &[]);
    assert!(served.finish(&mut io).status().is_success());
}

#[test]
fn a_request_to_connect_that_is_wrong_is_rejected_with_its_status() {
    let right = ConnectRequest {
        qid: Qid(0),
        hrqsize: 32,
        hsqsize: 31,
        cntlid: Cntlid(0xffff),
    };
    let mut other_format = right.to_bytes();
    other_format[0] = 9;
    let no_reads = ConnParam {
        responder_resources: 0,
        ..PARAM
    };
    let with = |change: fn(&mut ConnectRequest)| {
        let mut wrong = right;
        change(&mut wrong);
        wrong.to_bytes().to_vec()
    };
    let cases = [
        (vec![], PARAM, CmStatus::InvalidLength),
        (vec![0; 31], PARAM, CmStatus::InvalidLength),
        (other_format.to_vec(), PARAM, CmStatus::InvalidRecfmt),
        (with(|r| r.qid = Qid(128)), PARAM, CmStatus::InvalidQid),
        (with(|r| r.hsqsize = 0), PARAM, CmStatus::InvalidHsqsize),
        (with(|r| r.hrqsize = 1), PARAM, CmStatus::InvalidHrqsize),
        (right.to_bytes().to_vec(), no_reads, CmStatus::InvalidIrd),
    ];
    let mut served = Served::new(2, false);
    for (private_data, param, status) in cases {
        let (_host, event) = served.ask(&private_data, &param);
        assert!(matches!(event.kind, CmEventKind::Rejected), "{event:?}");
        let reject = ConnectReject::parse(&event.private_data).unwrap();
        assert_eq!(CmStatus::from_wire(reject.sts), Some(status));
    }
    assert_eq!(served.transport.stats().snapshot().rejected, 7);
    served.associate();
}

#[test]
fn who_breaks_the_protocol_is_disconnected_and_others_go_on() {
    for no_srq in [false, true] {
        let mut served = Served::new(4, no_srq);
        let (_admin, mut good) = served.associate();
        // A capsule that is too short.
        let mut short = served.connect(0, 32);
        short.send_bytes(&[0; 63]);
        // A first command that is no Connect is answered; what follows is refused too.
        let mut eager = served.connect(0, 32);
        eager.send(&Sqe::flush(Cid(1), Nsid(1)), &[]);
        let cqe = served.finish(&mut eager);
        assert!(!cqe.status().is_success());
        // A Connect for another queue than the connection was made for.
        let mut other = served.connect(1, 16);
        let connect = ConnectCommand {
            recfmt: 0,
            qid: Qid(2),
            sqsize: 15,
            cattr: 0,
            kato_ms: 0,
        };
        other.send(&connect.to_sqe(Cid(1)), &[]);
        for _ in 0..2000 {
            served.turn();
            short.poll();
            other.poll();
        }
        assert!(short.is_broken && other.is_broken);
        assert_eq!(served.transport.stats().snapshot().protocol_errors, 2);
        let write = Sqe::write(Cid(9), Nsid(1), Lba(0), 1).with_sgl(good.keyed(0, 512));
        good.send(&write, &[]);
        assert!(served.finish(&mut good).status().is_success());
    }
}

#[test]
fn a_key_that_does_not_allow_it_costs_its_own_connection_only() {
    for seed in 0..10 {
        let mut served = Served::new(seed, seed % 2 == 0);
        let (admin, mut io) = served.associate();
        let address = io.region.addr() as u64;
        let wrong_key = SglDescriptor::keyed(address, 512, io.mr.rkey() ^ 0x5a00, false);
        let sqe = if seed < 5 {
            Sqe::write(Cid(3), Nsid(1), Lba(0), 1)
        } else {
            Sqe::read(Cid(3), Nsid(1), Lba(0), 1)
        };
        io.send(&sqe.with_sgl(wrong_key), &[]);
        for _ in 0..2000 {
            served.turn();
            io.poll();
        }
        assert!(io.is_broken);
        assert!(served.transport.stats().snapshot().transport_errors > 0);
        served.associate();
        drop((admin, io));
        served.drain();
        assert_eq!(served.iobuf.stats().large.in_use(), 0);
    }
}

#[test]
fn who_never_sends_a_connect_is_timed_out() {
    let mut served = Served::new(8, false);
    let mut silent = served.connect(0, 32);
    for _ in 0..6000 {
        served.turn();
        silent.poll();
    }
    assert!(silent.is_broken);
    let stats = served.transport.stats().snapshot();
    assert_eq!((stats.timed_out, stats.connections), (1, 0));
    drop(served.target);
}

#[test]
fn more_commands_than_entries_end_the_connection() {
    for no_srq in [false, true] {
        let mut served = Served::new(9, no_srq);
        let (_admin, mut io) = served.associate();
        // Responses cannot be sent, so that every command keeps its slot.
        served.fabric.block("target0", true);
        for cid in 0..60 {
            let read = Sqe::read(Cid(cid), Nsid(1), Lba(0), 1);
            io.send(&read.with_sgl(io.keyed(0, 512)), &[]);
        }
        for _ in 0..2000 {
            served.turn();
        }
        served.fabric.block("target0", false);
        for _ in 0..3000 {
            served.turn();
            io.poll();
        }
        // With receives of its own the host is held up by the network instead.
        assert!(io.is_broken || no_srq);
        assert!(served.fabric.stats().overruns == 0);
        let _ = io.id.disconnect();
    }
}

/// Goal: a command that ends without a response leaves no slot taken. Four event requests are ended
/// by each of twenty resets, on a queue of 32 entries.
#[test]
fn event_requests_that_a_reset_ends_leave_their_slots() {
    for is_shared in [false, true] {
        let mut served = Served::new(3, !is_shared);
        let (mut admin, _) = served.admin();
        for _ in 0..20 {
            for cid in 10..14 {
                admin.send(&Sqe::async_event_request(Cid(cid)), &[]);
            }
            served.configure(&mut admin, false);
            served.configure(&mut admin, true);
        }
        assert!(admin.poll().is_none(), "an event request was answered");
    }
}
