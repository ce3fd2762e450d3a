//! Accepting without descriptors. A test of its own process: it lowers the process's limit.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use std::fs::File;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nvmf::transport::{Acceptor, Transport, TransportId};
use nvmf_tcp::{TcpOptions, TcpTransport};

fn is_readable(acceptor: &dyn Acceptor) -> bool {
    let fd = acceptor.wake_fd().unwrap();
    poll(
        &mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)],
        PollTimeout::ZERO,
    )
    .unwrap()
        == 1
}

#[test]
fn without_descriptors_accepting_backs_off_and_goes_on_later() {
    let transport = TcpTransport::new(TcpOptions::default()).unwrap();
    let address = Arc::new("tcp://127.0.0.1:0".parse().unwrap());
    let mut acceptor = transport.listen(TransportId(0), &address).unwrap();
    let _waiting = TcpStream::connect(acceptor.local_address()).unwrap();
    let mut now = Instant::now();
    let mut accepted = Vec::new();

    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let next = File::open("/dev/null").unwrap().as_raw_fd() as u64;
    setrlimit(Resource::RLIMIT_NOFILE, next, hard).unwrap();
    assert!(is_readable(&*acceptor));
    for _ in 0..10 {
        assert_eq!(
            acceptor.poll(now, &mut |connection| accepted.push(connection)),
            0
        );
        now += Duration::from_millis(5);
    }
    assert_eq!(
        transport.stats().snapshot().accept_errors,
        1,
        "it did not spin"
    );
    assert!(
        !is_readable(&*acceptor),
        "nor does it keep an idle thread awake"
    );

    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    now = acceptor.next_deadline().unwrap();
    assert_eq!(
        acceptor.poll(now, &mut |connection| accepted.push(connection)),
        1
    );
    assert_eq!(accepted.len(), 1);
}
