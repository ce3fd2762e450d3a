//! A real target over real sockets: what hosts rely on, and what hosts must not be able to do.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

mod client;
mod served;

use std::sync::Arc;

use client::{Client, Pump};
use fabric_wire::fabrics;
use fabric_wire::tcp::{FES_INVALID_HEADER_FIELD, FES_SEQUENCE_ERROR, Pdu};
use nvme_spec::{Cid, Lba, Nsid, SglDescriptor, Sqe, Status};
use nvmf_tcp::{TcpOptions, TcpTransport};
use served::{Served, iobuf_options, ram_disk};

const DIGESTS: [(bool, bool); 4] = [(false, false), (true, false), (false, true), (true, true)];

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (((at + seed) * 31) ^ (at >> 8)) as u8)
        .collect()
}

fn write(cid: u16, lba: u64, len: usize) -> Sqe {
    Sqe::write(Cid(cid), Nsid(1), Lba(lba), (len / 512) as u32)
        .with_sgl(SglDescriptor::in_capsule(0, len as u32))
}

fn read(cid: u16, lba: u64, len: usize) -> Sqe {
    Sqe::read(Cid(cid), Nsid(1), Lba(lba), (len / 512) as u32)
        .with_sgl(SglDescriptor::transport_data(len as u32))
}

#[test]
fn a_disk_is_written_and_read_back() {
    for digests in DIGESTS {
        let mut served = Served::ram();
        let (_admin, mut io) = served.connected(digests, 127);
        for (index, len) in [512, 4096, 8192, 16_384, 131_072].into_iter().enumerate() {
            let (cid, lba) = (index as u16, index as u64 * 256);
            let data = pattern(len, index);
            let done = if len <= 8192 {
                io.run(&mut served, write(cid, lba, len), &data)
            } else {
                io.run_with_r2t(&mut served, write(cid, lba, len), &data)
            };
            assert_eq!(done.status, Status::SUCCESS);
            let done = io.run(&mut served, read(cid, lba, len), &[]);
            assert_eq!(done.data, data);
        }
    }
}

#[test]
fn a_full_queue_of_mixed_commands_is_served() {
    for digests in [(false, false), (true, true)] {
        let mut served = Served::ram();
        let (_admin, mut io) = served.connected(digests, 127);
        let (len, count) = (4096, 120_u16);
        for round in 0..20 {
            let mut capsules = Vec::new();
            for cid in 0..count {
                let lba = u64::from(cid) * 8;
                if round % 2 == 0 {
                    let data = pattern(len, usize::from(cid) + round);
                    capsules.extend(io.capsule(&write(cid, lba, len), &data));
                } else {
                    capsules.extend(io.capsule(&read(cid, lba, len), &[]));
                }
            }
            io.write(&mut served, &capsules);
            for cid in 0..count {
                let done = io.finish(&mut served, Cid(cid), &[]);
                assert_eq!(done.status, Status::SUCCESS);
                if round % 2 == 1 {
                    assert_eq!(done.data, pattern(len, usize::from(cid) + round - 1));
                }
            }
        }
    }
}

#[test]
fn damaged_data_ends_the_command_and_reaches_no_disk() {
    let mut served = Served::ram();
    let (_admin, mut io) = served.connected((true, true), 31);
    let old = pattern(4096, 1);
    assert_eq!(
        io.run(&mut served, write(1, 0, 4096), &old).status,
        Status::SUCCESS
    );
    let mut capsule = io.capsule(&write(2, 0, 4096), &pattern(4096, 2));
    capsule[500] ^= 4;
    io.write(&mut served, &capsule);
    let done = io.finish(&mut served, Cid(2), &[]);
    assert_eq!(done.status.sc(), Status::TRANSIENT_TRANSPORT_ERROR.sc());
    assert_eq!(io.run(&mut served, read(3, 0, 4096), &[]).data, old);
}

#[test]
fn hosts_without_buffers_wait_and_all_are_served() {
    let mut iobuf = iobuf_options();
    (iobuf.small_pool_count, iobuf.large_pool_count) = (512, 64);
    // Hardly more buffers than the caches hold, and more commands than buffers.
    let mut served = Served::new(TcpOptions::default(), iobuf, ram_disk(32_768));
    let (_admin, mut first) = served.connected((false, true), 127);
    let (_admin2, mut second) = served.connected((true, false), 127);
    let len = 65_536;
    for cid in 0..120_u16 {
        let lba = u64::from(cid % 60) * 128;
        for io in [&mut first, &mut second] {
            let sqe = write(cid, lba, len).with_sgl(SglDescriptor::transport_data(len as u32));
            let capsule = io.capsule(&sqe, &[]);
            io.write(&mut served, &capsule);
        }
    }
    // Both hosts answer R2Ts as they come: a buffer is given out again only then.
    let data = pattern(len, 3);
    let mut left = [120, 120];
    while left != [0, 0] {
        served.pump();
        for (io, left) in [&mut first, &mut second].into_iter().zip(&mut left) {
            io.fill();
            while let Some((_, pdu, _)) = io.buffered_pdu() {
                match pdu {
                    Pdu::R2T { cccid, ttag, .. } => {
                        let pdu = io.h2c(cccid, ttag, 0, &data, true);
                        io.write(&mut served, &pdu);
                    }
                    Pdu::CapsuleResp { cqe } => {
                        assert_eq!(cqe.status(), Status::SUCCESS);
                        *left -= 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    let waits = &served.group.handle().counters.buffer_waits;
    assert!(waits.load(std::sync::atomic::Ordering::Relaxed) > 0);
}

#[test]
fn a_first_command_other_than_connect_is_answered_and_the_connection_closed() {
    let mut served = Served::ram();
    let mut client = served.client((false, false));
    let done = client.run(&mut served, read(1, 0, 512), &[]);
    assert_eq!(done.status.sc(), Status::COMMAND_SEQUENCE_ERROR.sc());
    assert!(client.pdu_or_end(&mut served).is_none());
}

#[test]
fn a_keyed_sgl_is_of_the_wrong_type() {
    let mut served = Served::ram();
    let (_admin, mut io) = served.connected((false, false), 31);
    for sqe in [write(1, 0, 4096), read(1, 0, 4096)] {
        let keyed = sqe.with_sgl(SglDescriptor::keyed(0x1000, 4096, 7, false));
        let done = io.run(&mut served, keyed, &[]);
        let wrong = Status::SGL_DESCRIPTOR_TYPE_INVALID.with_dnr(true);
        assert_eq!((done.status, done.r2ts), (wrong, 0));
    }
}

#[test]
fn another_transport_takes_the_listeners_over() {
    let mut served = Served::ram();
    let (_admin, mut old) = served.connected((false, false), 31);
    // It waits in the backlog while the transports change.
    let mut waiting = Client::connect(&served.address);
    let options = TcpOptions {
        maxh2cdata: 4096,
        ..TcpOptions::default()
    };
    let transport = Arc::new(TcpTransport::new(options).unwrap());
    let failed = served.target.put_transport(transport).unwrap();
    assert!(failed.is_empty(), "{failed:?}");
    let ic_req = Client::ic_req(0, false, false);
    waiting.write(&mut served, &ic_req);
    let (pdu, _) = waiting.pdu(&mut served);
    let Pdu::IcResp { maxh2cdata, .. } = pdu else {
        panic!("{pdu:?}")
    };
    assert_eq!(maxh2cdata, 4096);
    assert!(
        old.run(&mut served, read(1, 0, 4096), &[])
            .status
            .is_success()
    );
    // The old acceptor's socket is closed too: the address is free when listening ends.
    let address = "tcp://127.0.0.1:0".parse().unwrap();
    let ticket = served.target.stop_listening(&address);
    served.settle();
    assert!(ticket.is_done());
    std::net::TcpListener::bind(&served.address).unwrap();
}

#[test]
fn transfers_larger_than_a_buffer_are_refused_at_configuration() {
    let served = Served::ram();
    let iobuf = dma::IobufOptions {
        large_bufsize: 65_536,
        ..iobuf_options()
    };
    let small = dma::IobufPool::new(iobuf).unwrap();
    let now = std::time::Instant::now();
    let waker = std::task::Waker::noop().clone();
    let Err(error) = served.target.poll_group(waker.clone(), &small, None, now) else {
        panic!("the transport is there already")
    };
    let names_both = |error: &nvmf::TargetError| {
        let text = error.to_string();
        text.contains("max_io_size 131072") && text.contains("large_bufsize 65536")
    };
    assert!(names_both(&error), "{error}");
    let target = nvmf::Target::new(nvmf::TargetOptions::default());
    let _group = target.poll_group(waker, &small, None, now).unwrap();
    let transport = |max_io_size| {
        let options = TcpOptions {
            max_io_size,
            ..TcpOptions::default()
        };
        Arc::new(TcpTransport::new(options).unwrap())
    };
    let added = target.add_transport(transport(131_072));
    assert!(names_both(&added.unwrap_err()));
    let put = target.put_transport(transport(131_072));
    assert!(names_both(&put.unwrap_err()));
    assert!(target.transports().is_empty());
    target.add_transport(transport(65_536)).unwrap();
}

#[test]
fn a_refused_connect_is_answered_and_the_connection_closed() {
    let mut served = Served::ram();
    for (qid, sqsize, cntlid) in [(0, 0, 0xffff), (0, 500, 0xffff), (1, 31, 77), (0, 31, 5)] {
        let mut client = served.client((true, true));
        let done = client.connect_queue(&mut served, qid, sqsize, cntlid);
        assert!(
            !done.status.is_success(),
            "qid {qid} sqsize {sqsize} cntlid {cntlid}"
        );
        assert!(client.pdu_or_end(&mut served).is_none());
        drop(client);
        served.settle();
    }
    assert_eq!(served.group.connection_count(), 0);
}

#[test]
fn disconnect_is_answered_and_the_connection_closed() {
    let mut served = Served::ram();
    let (mut admin, mut io) = served.connected((false, false), 31);
    let done = io.run(&mut served, fabrics::Disconnect.to_sqe(Cid(9)), &[]);
    assert_eq!(done.status, Status::SUCCESS);
    assert!(io.pdu_or_end(&mut served).is_none());
    drop(io);
    served.settle();
    assert_eq!(served.group.connection_count(), 1);
    // The association lives on: another queue can be connected.
    let mut again = served.client((false, false));
    assert_eq!(
        again.connect_queue(&mut served, 1, 31, 1).status,
        Status::SUCCESS
    );
    let size = fabrics::PropertySize::Four;
    let csts = fabrics::PropertyGet {
        size,
        offset: nvme_spec::registers::CSTS,
    };
    let done = admin.run(&mut served, csts.to_sqe(Cid(2)), &[]);
    assert_eq!((done.status, done.result), (Status::SUCCESS, 1));
}

#[test]
fn hostile_hosts_disturb_nobody() {
    let mut served = Served::ram();
    let (_admin, mut good) = served.connected((true, true), 31);
    let data = pattern(8192, 5);
    let check = |served: &mut Served, good: &mut Client| {
        assert_eq!(
            good.run(served, write(1, 64, 8192), &data).status,
            Status::SUCCESS
        );
        assert_eq!(good.run(served, read(2, 64, 8192), &[]).data, data);
    };
    check(&mut served, &mut good);

    let mut garbage = Client::connect(&served.address);
    garbage.write(&mut served, &[0xa5; 1000]);
    assert_eq!(garbage.term_req(&mut served), (FES_INVALID_HEADER_FIELD, 0));
    check(&mut served, &mut good);

    let (_admin, mut oversize) = served.connected((false, false), 31);
    let mut capsule = oversize.capsule(&write(1, 0, 8192), &data);
    capsule[4..8].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    oversize.write(&mut served, &capsule[..72]);
    oversize.term_req(&mut served);
    check(&mut served, &mut good);

    let (_admin, mut flood) = served.connected((false, false), 3);
    let sqe = |cid| write(cid, 0, 512).with_sgl(SglDescriptor::transport_data(512));
    let flooding: Vec<u8> = (0..9)
        .flat_map(|cid| flood.capsule(&sqe(cid), &[]))
        .collect();
    flood.write(&mut served, &flooding);
    assert_eq!(flood.term_req(&mut served).0, FES_SEQUENCE_ERROR);
    check(&mut served, &mut good);

    let (_admin, mut gone) = served.connected((false, false), 31);
    let capsule = gone.capsule(&sqe(1), &[]);
    gone.write(&mut served, &capsule);
    let (Pdu::R2T { ttag, .. }, _) = gone.pdu(&mut served) else {
        panic!()
    };
    let half = gone.h2c(Cid(1), ttag, 0, &[0; 512], true);
    gone.write(&mut served, &half[..200]);
    drop(gone);
    served.settle();
    check(&mut served, &mut good);
    drop((garbage, oversize, flood));
}

#[test]
fn a_thousand_connections_come_and_go() {
    const COUNT: usize = 1_000;
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    let (_, hard) = limit.unwrap();
    if hard < 2 * COUNT as u64 + 200 {
        println!("skipped: at most {hard} open files are allowed here");
        return;
    }
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let mut served = Served::ram();
    let clients: Vec<_> = (0..COUNT)
        .map(|index| {
            let mut client = served.client((false, false));
            if index % 2 == 0 {
                let done = client.connect_queue(&mut served, 0, 31, 0xffff);
                assert_eq!(done.status, Status::SUCCESS);
            }
            client
        })
        .collect();
    assert_eq!(served.group.connection_count(), COUNT);
    drop(clients);
    served.settle();
    assert_eq!(served.group.connection_count(), 0);
    assert_eq!(served.transport.stats().snapshot().connections, 0);
    let (_admin, mut io) = served.connected((false, false), 31);
    assert_eq!(
        io.run(&mut served, read(1, 0, 512), &[]).status,
        Status::SUCCESS
    );
}
