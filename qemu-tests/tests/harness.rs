//! The harness itself: a guest boots, has its tools, and reaches a server on the host's loopback.

use std::io::{Read, Write};
use std::net::TcpListener;

use qemu_tests::{Guest, HOST_ADDRESS, patience, skip_without_qemu};

/// Goal: every other test here can trust its guest. Method: boot one and use each thing they use.
#[test]
fn a_guest_boots_with_its_tools_and_reaches_the_host() {
    if skip_without_qemu() {
        return;
    }
    let mut guest = Guest::builder("harness").boot().unwrap();

    let versions = guest
        .run("nvme --version; fio --version; uname -r")
        .unwrap();
    assert!(versions.contains("nvme version 2."), "{versions}");
    assert!(versions.contains("fio-3."), "{versions}");
    guest
        .run("test -d /sys/module/nvme_tcp; modprobe -a ext4 xfs")
        .unwrap();
    guest
        .run("command -v mkfs.ext4 mkfs.xfs sha256sum blockdev")
        .unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hello from the host\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let heard = guest
        .run(&format!(
            "echo hello from the guest | busybox nc -w 10 {HOST_ADDRESS} {port}"
        ))
        .unwrap();
    assert_eq!(heard, "hello from the host\n");
    assert_eq!(server.join().unwrap(), "hello from the guest\n");

    // Scripts run side by side, and a failing one tells what it said.
    let slow = guest
        .spawn("until [ -e /tmp/go ]; do sleep 0.1; done; echo gone")
        .unwrap();
    let failed = guest.attempt("echo said; echo wrong >&2; exit 3").unwrap();
    assert_eq!(
        (failed.status, &*failed.stdout, &*failed.stderr),
        (3, "said\n", "wrong\n")
    );
    guest.run("touch /tmp/go").unwrap();
    assert_eq!(guest.join(slow, patience(60)).unwrap().stdout, "gone\n");
    guest.power_off().unwrap();
}
