//! Socket calls over segments: order, partial sends, refilled lists.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use dma::sg::{self, MAX_SEGMENTS, Segment, SegmentList, SegmentMut};
use dma::{
    BackingPreference, ChannelOptions, IobufChannel, IobufOptions, IobufPool, Payload, Region,
    RegionOptions,
};
use proptest::prelude::*;

fn channel() -> IobufChannel {
    let options = IobufOptions {
        small_pool_count: 8,
        large_pool_count: 4,
        reserve_small: 0,
        backing: BackingPreference::Plain4K,
        ..IobufOptions::default()
    };
    let caches = ChannelOptions {
        small_cache: 0,
        large_cache: 0,
        ..ChannelOptions::default()
    };
    IobufPool::new(options)
        .unwrap()
        .channel("test", caches)
        .unwrap()
}

fn region() -> Arc<Region> {
    let backing = BackingPreference::Plain4K;
    Region::allocate(&RegionOptions {
        len: 1 << 20,
        backing,
        ..RegionOptions::default()
    })
    .unwrap()
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|index| (index * 31 + seed * 7 + index / 251) as u8)
        .collect()
}

fn read_exactly(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn segments_of_all_kinds_go_out_in_order() {
    let (out, mut into) = UnixStream::pair().unwrap();
    let channel = channel();
    let mut buf = channel.get(100).unwrap();
    buf.as_mut_slice().copy_from_slice(&pattern(100, 1));
    let region = region();
    region.write_at(5000, &pattern(200, 2));
    let lent = region.lend(5000, 200);
    let header = pattern(24, 3);
    let segments = [
        Segment::from(&header[..]),
        Segment::from(&buf),
        Segment::of_buf(&buf, 90..100),
        Segment::from(&lent),
        Segment::of_lent(&lent, 10..20),
        Segment::from(&[][..]),
    ];
    assert_eq!(
        segments.map(|segment| segment.len()),
        [24, 100, 10, 200, 10, 0]
    );
    assert_eq!(sg::sendmsg(out.as_fd(), &segments).unwrap(), 344);
    let expected = [
        &header[..],
        &pattern(100, 1),
        &pattern(100, 1)[90..],
        &pattern(200, 2),
        &pattern(200, 2)[10..20],
    ];
    assert_eq!(read_exactly(&mut into, 344), expected.concat());
}

#[test]
fn bytes_are_scattered_in_order() {
    let (mut out, into) = UnixStream::pair().unwrap();
    out.write_all(&pattern(60, 1)).unwrap();
    let channel = channel();
    let mut buf = channel.get(100).unwrap();
    let mut header = [0; 24];
    let mut segments = [
        SegmentMut::from(&mut header[..]),
        SegmentMut::of_buf(&mut buf, 10..100),
    ];
    assert_eq!(sg::recvmsg(into.as_fd(), &mut segments).unwrap(), 60);
    assert_eq!(header, pattern(60, 1)[..24]);
    assert_eq!(buf.as_slice()[10..46], pattern(60, 1)[24..]);
    let error = sg::recvmsg(into.as_fd(), &mut [SegmentMut::from(&mut buf)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    drop(out);
    assert_eq!(
        sg::recvmsg(into.as_fd(), &mut [SegmentMut::from(&mut buf)]).unwrap(),
        0
    );
}

#[test]
fn sending_to_a_closed_peer_is_an_error_and_no_signal() {
    let (out, into) = UnixStream::pair().unwrap();
    drop(into);
    let error = sg::sendmsg(out.as_fd(), &[Segment::new(b"x")]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
}

#[test]
fn a_full_list_refuses_more_and_is_refilled_without_growing() {
    let (out, mut into) = UnixStream::pair().unwrap();
    let mut list = SegmentList::new(2);
    for turn in 0..3u8 {
        let data = [turn; 3];
        let mut gather = list.gather();
        assert_eq!(
            (gather.room(), gather.segments(), gather.bytes()),
            (2, 0, 0)
        );
        assert!(gather.push(&data[..1]));
        assert!(gather.push(&data[..0]), "empty segments take no room");
        assert!(gather.push(&data[1..]));
        assert!(!gather.push(&data[..]));
        assert_eq!((gather.segments(), gather.bytes()), (2, 3));
        assert_eq!(gather.send(out.as_fd()).unwrap(), 3);
        assert_eq!((gather.segments(), gather.bytes()), (0, 0));
        assert_eq!(read_exactly(&mut into, 3), data);
    }
    assert_eq!(SegmentList::new(0).capacity(), 1);
    assert_eq!(SegmentList::new(usize::MAX).capacity(), MAX_SEGMENTS);
}

#[test]
fn more_segments_than_the_kernel_takes_are_left_for_the_next_call() {
    let (out, mut into) = UnixStream::pair().unwrap();
    let bytes = pattern(MAX_SEGMENTS + 10, 1);
    let segments: Vec<Segment<'_>> = bytes.chunks(1).map(Segment::new).collect();
    assert_eq!(sg::sendmsg(out.as_fd(), &segments).unwrap(), MAX_SEGMENTS);
    assert_eq!(
        sg::sendmsg(out.as_fd(), &segments[MAX_SEGMENTS..]).unwrap(),
        10
    );
    assert_eq!(read_exactly(&mut into, bytes.len()), bytes);
}

#[test]
fn a_list_receives_into_several_buffers() {
    let (mut out, into) = UnixStream::pair().unwrap();
    let channel = channel();
    let (mut first, mut second) = (channel.get(10).unwrap(), channel.get(10).unwrap());
    let mut list = SegmentList::new(2);
    let mut third = [0; 1];
    out.write_all(&pattern(15, 4)).unwrap();
    let mut scatter = list.scatter();
    assert!(scatter.push(&mut first));
    assert!(scatter.push(&mut second));
    assert!(!scatter.push(&mut third[..]));
    assert_eq!(scatter.bytes(), 20);
    assert_eq!(scatter.receive(into.as_fd()).unwrap(), 15);
    assert_eq!(first.as_slice(), &pattern(15, 4)[..10]);
    assert_eq!(second.as_slice()[..5], pattern(15, 4)[10..]);
}

#[test]
#[should_panic(expected = "outside of lent memory")]
fn a_segment_outside_of_lent_memory_panics() {
    let lent = region().lend(0, 10);
    let _ = Segment::of_lent(&lent, 5..11);
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]
    /// A socket whose buffer is much smaller than the data takes it in pieces that end anywhere.
    #[test]
    fn partial_sends_continue_where_they_stopped(
        sizes in prop::collection::vec(
            prop_oneof![0usize..64, 1000usize..8192, 8193usize..135_168],
            1..8,
        ),
        capacity in 1usize..10,
        reads in prop::collection::vec(1usize..40_000, 1..20),
    ) {
        let (out, mut into) = UnixStream::pair().unwrap();
        let channel = channel();
        let region = region();
        let mut expected = Vec::new();
        let mut payloads = Vec::new();
        let mut at = 0;
        for (index, size) in sizes.iter().enumerate() {
            let data = pattern(*size, index);
            let payload = match channel.get(*size) {
                Some(mut buf) if index % 2 == 0 => {
                    buf.as_mut_slice().copy_from_slice(&data);
                    Payload::from(buf)
                }
                _ => {
                    at %= 200_000;
                    if at < index * 135_168 { at = index * 135_168 % 800_000; }
                    region.write_at(at, &data);
                    let lent = region.lend(at, *size);
                    at += *size;
                    Payload::from(lent)
                }
            };
            payloads.push(payload);
        }
        for payload in &payloads {
            let mut bytes = vec![0; payload.len()];
            payload.copy_range_to(0, &mut bytes);
            expected.extend(bytes);
        }
        let mut list = SegmentList::new(capacity);
        let (mut item, mut offset) = (0, 0);
        let mut received: Vec<u8> = Vec::new();
        let mut reads = reads.iter().cycle();
        while received.len() < expected.len() {
            let mut gather = list.gather();
            let mut from = offset;
            for payload in &payloads[item..] {
                if !gather.push_payload(payload, from) {
                    break;
                }
                from = 0;
            }
            // Until the socket is full: what `send` took off its front must be right.
            let mut sent = 0;
            while gather.bytes() > 0 {
                match gather.send(out.as_fd()) {
                    Ok(count) => sent += count,
                    Err(error) => {
                        prop_assert_eq!(error.kind(), ErrorKind::WouldBlock);
                        break;
                    }
                }
            }
            while item < payloads.len() && offset + sent >= payloads[item].len() {
                sent -= payloads[item].len() - offset;
                (item, offset) = (item + 1, 0);
            }
            offset += sent;
            into.set_nonblocking(true).unwrap();
            let mut piece = vec![0; *reads.next().unwrap()];
            match into.read(&mut piece) {
                Ok(count) => received.extend(&piece[..count]),
                Err(error) => prop_assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        prop_assert!(received == expected);
    }
}
