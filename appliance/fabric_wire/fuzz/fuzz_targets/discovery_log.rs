//! A header and the entries behind it. What is accepted survives being written again.
#![no_main]

use fabric_wire::discovery::{DiscoveryLogEntry, DiscoveryLogHeader, ENTRY_LEN, HEADER_LEN};
use libfuzzer_sys::fuzz_target;
use zerocopy::IntoBytes;

fuzz_target!(|input: &[u8]| {
    let _ = DiscoveryLogHeader::parse(input);
    for entry in input
        .get(HEADER_LEN..)
        .unwrap_or_default()
        .chunks(ENTRY_LEN)
    {
        if let Ok(record) = DiscoveryLogEntry::parse(entry) {
            assert_eq!(
                DiscoveryLogEntry::parse(record.to_entry().as_bytes()),
                Ok(record)
            );
        }
    }
});
