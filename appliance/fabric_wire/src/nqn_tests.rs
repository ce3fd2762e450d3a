use proptest::prelude::*;

use super::*;

#[test]
fn well_formed_names_are_accepted() {
    for name in [
        DISCOVERY_NQN,
        "nqn.2014-08.com.example:disk1",
        "nqn.2014-08.com.example",
        "nqn.2016-06.io.spdk:cnode1",
        "nqn.1988-11.com.dell:powerstore:00:0d3f",
        "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555aAbBcC",
        "nqn.2014-08.org.nvmexpress:8086144d-something with spaces",
        "nqn.2014-08.localhost:x",
        "nqn.2014-08.com.example:größe",
    ] {
        let nqn: Nqn = name.parse().unwrap();
        assert_eq!(nqn.as_str(), name);
        assert_eq!(nqn.to_string(), name);
        assert_eq!(format!("{nqn:?}"), format!("{name:?}"));
        assert_eq!(Nqn::from_padded(&nqn.to_padded()).unwrap(), nqn);
        assert_eq!(nqn.is_discovery(), name == DISCOVERY_NQN);
    }
    assert_eq!(Nqn::discovery(), DISCOVERY_NQN);
}

#[test]
fn each_fault_of_a_name_is_told_apart() {
    let name = |text: &str| text.to_owned();
    for (text, error) in [
        ("", NqnError::Empty),
        (
            "iqn.2014-08.com.example:a",
            NqnError::Prefix {
                name: name("iqn.2014-08.com.example:a"),
            },
        ),
        (
            "NQN.2014-08.com.example",
            NqnError::Prefix {
                name: name("NQN.2014-08.com.example"),
            },
        ),
        ("nqn.", NqnError::DateFormat { name: name("nqn.") }),
        (
            "nqn.2014-8.com",
            NqnError::DateFormat {
                name: name("nqn.2014-8.com"),
            },
        ),
        (
            "nqn.2014.08.com",
            NqnError::DateFormat {
                name: name("nqn.2014.08.com"),
            },
        ),
        (
            "nqn.+014-08.com",
            NqnError::DateFormat {
                name: name("nqn.+014-08.com"),
            },
        ),
        (
            "nqn.2014-08com",
            NqnError::DateFormat {
                name: name("nqn.2014-08com"),
            },
        ),
        (
            "nqn.201ä-08.com",
            NqnError::DateFormat {
                name: name("nqn.201ä-08.com"),
            },
        ),
        (
            "nqn.2014-13.com",
            NqnError::DateRange {
                year: 2014,
                month: 13,
            },
        ),
        (
            "nqn.2014-00.com",
            NqnError::DateRange {
                year: 2014,
                month: 0,
            },
        ),
        (
            "nqn.1984-12.com",
            NqnError::DateRange {
                year: 1984,
                month: 12,
            },
        ),
        (
            "nqn.2200-01.com",
            NqnError::DateRange {
                year: 2200,
                month: 1,
            },
        ),
        (
            "nqn.2014-08",
            NqnError::DomainMissing {
                name: name("nqn.2014-08"),
            },
        ),
        (
            "nqn.2014-08.",
            NqnError::DomainMissing {
                name: name("nqn.2014-08."),
            },
        ),
        (
            "nqn.2014-08.:a",
            NqnError::DomainMissing {
                name: name("nqn.2014-08.:a"),
            },
        ),
        (
            "nqn.2014-08.com..a",
            NqnError::DomainLabel { label: name("") },
        ),
        (
            "nqn.2014-08.com.-a",
            NqnError::DomainLabel { label: name("-a") },
        ),
        (
            "nqn.2014-08.com.a-:b",
            NqnError::DomainLabel { label: name("a-") },
        ),
        (
            "nqn.2014-08.com.a_b",
            NqnError::DomainLabel { label: name("a_b") },
        ),
        (
            "nqn.2014-08.com.a:",
            NqnError::NameMissing {
                name: name("nqn.2014-08.com.a:"),
            },
        ),
        (
            "nqn.2014-08.com.a:b\n",
            NqnError::ControlCharacter { offset: 19 },
        ),
        (
            "nqn.2014-08.org.nvmexpress:uuid:1234",
            NqnError::Uuid { uuid: name("1234") },
        ),
        (
            "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-55555555555g",
            NqnError::Uuid {
                uuid: name("11111111-2222-3333-4444-55555555555g"),
            },
        ),
    ] {
        assert_eq!(Nqn::new(text), Err(error), "{text}");
    }
}

#[test]
fn length_limit_is_223_bytes() {
    let prefix = "nqn.2014-08.com.example:";
    let longest = format!("{prefix}{}", "x".repeat(NQN_MAX_LEN - prefix.len()));
    assert!(Nqn::new(&longest).is_ok());
    assert_eq!(
        Nqn::new(&format!("{longest}x")),
        Err(NqnError::TooLong { len: 224 })
    );
    let mut field = [b'x'; NQN_FIELD_LEN];
    assert_eq!(
        Nqn::from_padded(&field),
        Err(NqnError::Unterminated { len: 256 })
    );
    field[255] = 0;
    assert_eq!(
        Nqn::from_padded(&field),
        Err(NqnError::TooLong { len: 255 })
    );
}

#[test]
fn a_label_of_64_letters_is_refused() {
    let good = format!("nqn.2014-08.com.{}", "a".repeat(63));
    assert!(Nqn::new(&good).is_ok());
    assert!(matches!(
        Nqn::new(&format!("{good}a")),
        Err(NqnError::DomainLabel { .. })
    ));
}

#[test]
fn padded_field_that_is_not_utf8_is_refused() {
    let mut field = Nqn::discovery().to_padded();
    field[30] = 0xFF;
    assert_eq!(
        Nqn::from_padded(&field),
        Err(NqnError::NotUtf8 { offset: 30 })
    );
    assert_eq!(Nqn::from_padded(&[0; 256]), Err(NqnError::Empty));
    assert_eq!(
        Nqn::from_padded(&[]),
        Err(NqnError::Unterminated { len: 0 })
    );
}

#[test]
fn padded_field_is_cut_at_every_byte() {
    let field = Nqn::new("nqn.2014-08.com.example:disk1")
        .unwrap()
        .to_padded();
    for len in 0..=29 {
        assert_eq!(
            Nqn::from_padded(&field[..len]),
            Err(NqnError::Unterminated { len })
        );
    }
    assert!(Nqn::from_padded(&field[..30]).is_ok());
}

#[test]
fn uuid_form_prints_the_bytes_in_order() {
    let uuid = [
        0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xAA, 0xBB, 0xCC, 0xDD, 0xEE,
        0xFF,
    ];
    let nqn = Nqn::from_uuid_bytes(uuid);
    assert_eq!(
        nqn,
        "nqn.2014-08.org.nvmexpress:uuid:00112233-4455-6677-8899-aabbccddeeff"
    );
    assert_eq!(Nqn::new(nqn.as_str()), Ok(nqn));
}

#[test]
fn a_map_of_names_is_searched_by_text() {
    let map = std::collections::HashMap::from([(Nqn::discovery(), 1)]);
    assert_eq!(map.get(DISCOVERY_NQN), Some(&1));
}

proptest! {
    #[test]
    fn random_text_never_panics(text in ".{0,260}", dated in "nqn\\.[0-9-]{0,8}\\PC{0,40}") {
        let _ = Nqn::new(&text);
        let _ = Nqn::new(&dated);
    }

    #[test]
    fn random_field_never_panics(field in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Nqn::from_padded(&field);
    }

    #[test]
    fn names_survive_the_wire(
        year in 1985_u16..2200,
        month in 1_u8..=12,
        domain in "[a-z0-9]{1,8}(\\.[a-z0-9]{1,8}){0,3}",
        name in "[a-z0-9A-Z._/ -]{1,60}",
    ) {
        let nqn = Nqn::new(&format!("nqn.{year:04}-{month:02}.{domain}:{name}")).unwrap();
        prop_assert_eq!(Nqn::from_padded(&nqn.to_padded()).unwrap(), nqn);
    }
}
