use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<TransportAddress, TransportAddressError> {
    text.parse()
}

#[test]
fn uris_are_parsed_and_normalised() {
    for (text, normal) in [
        ("tcp://127.0.0.1:4420", "tcp://127.0.0.1:4420"),
        ("tcp://127.0.0.1", "tcp://127.0.0.1:4420"),
        ("TCP://127.0.0.1:08009", "tcp://127.0.0.1:8009"),
        ("rdma://10.1.2.3:0", "rdma://10.1.2.3:0"),
        ("tcp://[::1]:4420", "tcp://[::1]:4420"),
        ("tcp://[::1]", "tcp://[::1]:4420"),
        ("tcp://[0:0:0:0:0:0:0:1]:1", "tcp://[::1]:1"),
        ("tcp://[fe80::1%3]:65535", "tcp://[fe80::1%3]:65535"),
        (
            "tcp://[::ffff:10.0.0.1]:4420",
            "tcp://[::ffff:10.0.0.1]:4420",
        ),
    ] {
        let address = parse(text).unwrap();
        assert_eq!(address.to_string(), normal);
        assert_eq!(parse(normal).as_ref(), Ok(&address));
        let socket = address.socket_addr().unwrap();
        assert_eq!(
            TransportAddress::from_socket_addr(address.trtype, socket),
            address
        );
    }
}

#[test]
fn parts_of_an_address_are_those_of_the_log_entry() {
    let address = parse("tcp://[2001:db8::1]:8009").unwrap();
    assert_eq!(address.trtype, TransportType::Tcp);
    assert_eq!(address.adrfam, AddressFamily::Ipv6);
    assert_eq!(address.traddr, "2001:db8::1");
    assert_eq!(address.trsvcid, "8009");
    assert_eq!(address.port(), Some(DISCOVERY_PORT));
    assert_eq!(address.trtype.to_wire(), 3);
    assert_eq!(address.adrfam.to_wire(), 2);
    for value in 0..=255 {
        assert!(TransportType::from_wire(value).is_none_or(|t| t.to_wire() == value));
        assert!(AddressFamily::from_wire(value).is_none_or(|f| f.to_wire() == value));
    }
}

#[test]
fn each_fault_of_an_address_is_told_apart() {
    use TransportAddressError as E;
    let text = |text: &str| text.to_owned();
    for (uri, error) in [
        (
            "127.0.0.1:4420",
            E::NoTransport {
                text: text("127.0.0.1:4420"),
            },
        ),
        ("", E::NoTransport { text: text("") }),
        (
            "fc://127.0.0.1",
            E::UnknownTransport {
                transport: text("fc"),
            },
        ),
        (
            "://127.0.0.1",
            E::UnknownTransport {
                transport: text(""),
            },
        ),
        ("tcp://", E::Host { host: text("") }),
        (
            "tcp://localhost:4420",
            E::Host {
                host: text("localhost"),
            },
        ),
        (
            "tcp://127.0.0.256",
            E::Host {
                host: text("127.0.0.256"),
            },
        ),
        (
            "tcp://[fe80::1%eth0]",
            E::Host {
                host: text("fe80::1%eth0"),
            },
        ),
        (
            "tcp://[fe80::1%+1]",
            E::Host {
                host: text("fe80::1%+1"),
            },
        ),
        (
            "tcp://[fe80::1%]",
            E::Host {
                host: text("fe80::1%"),
            },
        ),
        (
            "tcp://[127.0.0.1]:4420",
            E::Host {
                host: text("[127.0.0.1]:4420"),
            },
        ),
        ("tcp://::1", E::Brackets { text: text("::1") }),
        ("tcp://[::1", E::Brackets { text: text("[::1") }),
        ("tcp://127.0.0.1:", E::Port { port: text("") }),
        ("tcp://127.0.0.1:+1", E::Port { port: text("+1") }),
        (
            "tcp://127.0.0.1:65536",
            E::Port {
                port: text("65536"),
            },
        ),
        ("tcp://[::1]4420", E::Port { port: text("4420") }),
        ("tcp://127.0.0.1:4420/", E::TrailingPath { rest: text("/") }),
        (
            "tcp://127.0.0.1/a/b",
            E::TrailingPath { rest: text("/a/b") },
        ),
    ] {
        assert_eq!(parse(uri), Err(error), "{uri}");
    }
}

#[test]
fn an_nqn_may_follow_where_it_is_asked_for() {
    let (address, nqn) =
        TransportAddress::parse_with_nqn("tcp://[::1]:1/nqn.2014-08.com.example:a/b").unwrap();
    assert_eq!(address.to_string(), "tcp://[::1]:1");
    assert_eq!(nqn.unwrap(), "nqn.2014-08.com.example:a/b");
    assert_eq!(
        TransportAddress::parse_with_nqn("tcp://[::1]/").unwrap().1,
        None
    );
    assert!(matches!(
        TransportAddress::parse_with_nqn("tcp://[::1]/disk"),
        Err(TransportAddressError::Nqn {
            error: NqnError::Prefix { .. }
        })
    ));
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let parts = TransportAddress::from_parts;
    let (tcp, v4, v6) = (TransportType::Tcp, AddressFamily::Ipv4, AddressFamily::Ipv6);
    assert_eq!(
        parts(tcp, v4, "10.0.0.1", "").unwrap().to_string(),
        "tcp://10.0.0.1:4420"
    );
    assert!(matches!(
        parts(tcp, v6, "10.0.0.1", "1"),
        Err(TransportAddressError::FamilyMismatch { .. })
    ));
    assert!(matches!(
        parts(tcp, v4, "::1", "1"),
        Err(TransportAddressError::FamilyMismatch { .. })
    ));
    assert!(matches!(
        parts(tcp, v4, "10.0.0.1", "x"),
        Err(TransportAddressError::Port { .. })
    ));
}

#[test]
fn wildcards_are_known() {
    for (text, wildcard) in [
        ("tcp://0.0.0.0:4420", true),
        ("tcp://[::]:4420", true),
        ("tcp://127.0.0.1:4420", false),
        ("tcp://[::1]:4420", false),
    ] {
        assert_eq!(parse(text).unwrap().is_wildcard(), wildcard, "{text}");
    }
}

#[test]
fn an_address_made_by_hand_is_checked_when_used() {
    let mut address = parse("tcp://127.0.0.1:1").unwrap();
    address.trsvcid = "http".to_owned();
    assert_eq!(address.port(), None);
    assert!(address.socket_addr().is_err());
    address.traddr = "host".to_owned();
    assert!(!address.is_wildcard());
}

proptest! {
    #[test]
    fn random_text_never_panics(
        text in "\\PC{0,80}",
        close in "(tcp|rdma)://[\\[\\]0-9a-f:.%/]{0,30}",
    ) {
        let _ = parse(&text);
        let _ = TransportAddress::parse_with_nqn(&text);
        if let Ok(address) = parse(&close) {
            prop_assert_eq!(parse(&address.to_string()), Ok(address));
        }
    }

    #[test]
    fn socket_addresses_survive(ip in any::<std::net::IpAddr>(), port in any::<u16>()) {
        let socket = SocketAddr::new(ip, port);
        let address = TransportAddress::from_socket_addr(TransportType::Tcp, socket);
        prop_assert_eq!(address.socket_addr(), Ok(socket));
        prop_assert_eq!(parse(&address.to_string()), Ok(address));
    }
}
