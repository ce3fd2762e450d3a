//! Nanoseconds per digest and per header. Run with `cargo bench -p fabric_wire`.

use std::hint::black_box;
use std::time::Instant;

use fabric_wire::digest::{Crc32c, crc32c};
use fabric_wire::tcp::{self, DecodeLimits, EncodeOptions, Receiver};
use nvme_spec::{Cid, Lba, Nsid, Sqe};

/// Calls `run` `count` times, five times over, and gives the fewest nanoseconds per call.
fn best_ns(count: u32, mut run: impl FnMut()) -> f64 {
    (0..5)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..count {
                run();
            }
            start.elapsed().as_secs_f64() * 1e9 / f64::from(count)
        })
        .fold(f64::INFINITY, f64::min)
}

fn digests() {
    println!(
        "{:>8} {:>10} {:>12} {:>12} {:>8}",
        "bytes", "crc32c ns", "one-shot ns", "digest ns", "GB/s"
    );
    let data = vec![0x5A_u8; 1 << 20];
    for len in [
        8,
        16,
        24,
        32,
        48,
        64,
        72,
        96,
        128,
        256,
        512,
        4096,
        8192,
        131_072,
        1 << 20,
    ] {
        let bytes = &data[..len];
        let count = u32::try_from((1_usize << 28) / (len + 256))
            .expect("at most 2^20")
            .max(100);
        let ours = best_ns(count, || {
            black_box(crc32c(black_box(bytes)));
        });
        let one_shot = best_ns(count, || {
            black_box(crc_fast::crc32_iscsi(black_box(bytes)));
        });
        let digest = best_ns(count, || {
            let mut state = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
            state.update(black_box(bytes));
            black_box(state.finalize());
        });
        let rate = len as f64 / ours;
        println!("{len:>8} {ours:>10.1} {one_shot:>12.1} {digest:>12.1} {rate:>8.1}");
    }
    let parts = best_ns(100_000, || {
        let mut state = Crc32c::new();
        for part in black_box(&data[..4096]).chunks(1024) {
            state.update(part);
        }
        black_box(state.finalize());
    });
    println!("4096 bytes in 4 parts: {parts:.1} ns");
}

fn headers() {
    let sqe = Sqe::read(Cid(7), Nsid(1), Lba(4096), 8);
    for header_digest in [false, true] {
        let options = EncodeOptions {
            header_digest,
            ..EncodeOptions::default()
        };
        let limits = DecodeLimits {
            header_digest,
            ..DecodeLimits::default()
        };
        let mut command = [0; tcp::MAX_ENCODED_HEADER_LEN];
        let mut data = command;
        let encode = best_ns(2_000_000, || {
            let len = tcp::encode_capsule_cmd(&mut command, black_box(&sqe), 0, &options);
            black_box(len.expect("the buffer is large enough"));
        });
        let decode = best_ns(2_000_000, || {
            let pdu = tcp::decode_header(black_box(&command), Receiver::Controller, &limits);
            black_box(pdu.expect("it was just encoded"));
        });
        let c2h = best_ns(2_000_000, || {
            let len = tcp::encode_c2h_data(&mut data, Cid(7), 0, 4096, true, true, &options);
            black_box(len.expect("the buffer is large enough"));
        });
        println!(
            "header digest {header_digest}: CapsuleCmd encode {encode:.1} ns, decode {decode:.1} ns; \
             C2HData encode {c2h:.1} ns"
        );
    }
}

fn main() {
    digests();
    headers();
}
