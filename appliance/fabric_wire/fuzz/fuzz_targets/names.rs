//! NQNs and addresses. What is accepted survives being written again.
#![no_main]

use fabric_wire::{Nqn, TransportAddress};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let _ = Nqn::from_padded(input);
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(nqn) = Nqn::new(text) {
        assert_eq!(Nqn::from_padded(&nqn.to_padded()), Ok(nqn));
    }
    let _ = TransportAddress::parse_with_nqn(text);
    if let Ok(address) = text.parse::<TransportAddress>() {
        assert_eq!(address.to_string().parse(), Ok(address));
    }
});
