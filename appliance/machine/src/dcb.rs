//! Data centre bridging of a network port: what of it is lossless, and how packets find their way
//! into it (`RTM_GETDCB`). Read only.

use std::io;

use nix::sys::socket::SockProtocol;
use serde::{Deserialize, Serialize};

use crate::netlink::{FLAG_REQUEST, Message, ask, attributes, read_u16, wrong};

const RTM_GETDCB: u16 = 78;
const CMD_IEEE_GET: u8 = 21;
const ATTR_IFNAME: u16 = 1;
const ATTR_IEEE: u16 = 13;
const IEEE_PFC: u16 = 2;
const IEEE_APP_TABLE: u16 = 3;
const IEEE_APP: u16 = 1;
/// The selector of an entry that is about DSCP.
const SELECTOR_DSCP: u8 = 5;
/// Most entries of the table: a byte has 256 values.
const ENTRIES_MAX: usize = 256;

/// Data centre bridging of a port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dcb {
    /// Priorities that may be paused (PFC), 0 to 7, in order.
    pub paused: Vec<u8>,
    /// Priority by DSCP, in the kernel's order. With an entry the port goes by DSCP and not by the
    /// priority of a VLAN.
    pub dscp: Vec<(u8, u8)>,
}

/// Asks the kernel of this machine.
pub(crate) fn read(interface: &str) -> io::Result<Dcb> {
    let mut message = Message::new(RTM_GETDCB, FLAG_REQUEST);
    // Family and padding of `dcbmsg`.
    message.head(&[0, CMD_IEEE_GET, 0, 0]);
    message.text(ATTR_IFNAME, interface);
    let mut answer = None;
    ask(
        SockProtocol::NetlinkRoute,
        &message.bytes(),
        &mut |kind, body| {
            if kind == RTM_GETDCB {
                answer = parse(body);
            }
            kind == RTM_GETDCB
        },
    )?;
    answer.ok_or_else(|| wrong("the answer has no attributes of IEEE 802.1Qaz"))
}

/// The body of an answer.
fn parse(body: &[u8]) -> Option<Dcb> {
    let find = |body, wanted| attributes(body).find(|(kind, _)| *kind == wanted);
    let (_, ieee) = find(body.get(4..)?, ATTR_IEEE)?;
    let mut dcb = Dcb::default();
    // `ieee_pfc`: priorities that can be paused, then those that may be, a bit each.
    if let Some(enabled) = find(ieee, IEEE_PFC).and_then(|(_, pfc)| pfc.get(1).copied()) {
        dcb.paused = (0..8)
            .filter(|priority| enabled & (1 << priority) != 0)
            .collect();
    }
    if let Some((_, table)) = find(ieee, IEEE_APP_TABLE) {
        // `dcb_app`: selector, priority, protocol.
        let entries = attributes(table).filter(|(kind, _)| *kind == IEEE_APP);
        let entry = |(_, app): (u16, &[u8])| {
            let (selector, priority) = (*app.first()?, *app.get(1)?);
            let dscp = read_u16(app, 2).filter(|_| selector == SELECTOR_DSCP)?;
            Some((u8::try_from(dscp).ok()?, priority))
        };
        dcb.dscp = entries.filter_map(entry).take(ENTRIES_MAX).collect();
    }
    Some(dcb)
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An answer: priority 3 may be paused, DSCP 26 goes there, and an entry about something else.
    fn golden() -> Vec<u8> {
        let mut table = Message::new(0, 0);
        table.attribute(IEEE_APP, &[SELECTOR_DSCP, 3, 26, 0]);
        table.attribute(IEEE_APP, &[1, 4, 0x06, 0x89]);
        let mut pfc = [0; 136];
        pfc[..2].copy_from_slice(&[8, 0b1000]);
        let mut ieee = Message::new(0, 0);
        ieee.attribute(IEEE_PFC, &pfc);
        ieee.attribute(IEEE_APP_TABLE, &table.bytes()[16..]);
        let mut answer = Message::new(RTM_GETDCB, 0);
        answer.head(&[0, CMD_IEEE_GET, 0, 0]);
        answer.text(ATTR_IFNAME, "eth0");
        answer.attribute(0x8000 | ATTR_IEEE, &ieee.bytes()[16..]);
        answer.bytes()[16..].to_vec()
    }

    #[test]
    fn paused_priorities_and_dscp_are_read() {
        let dcb = Dcb {
            paused: vec![3],
            dscp: vec![(26, 3)],
        };
        assert_eq!(parse(&golden()), Some(dcb));
    }

    #[test]
    fn an_answer_that_is_cut_short_or_says_nothing_is_none() {
        let whole = golden();
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len]), None, "{len}");
        }
    }

    proptest! {
        #[test]
        fn bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }

    #[test]
    fn an_interface_that_is_not_there_is_an_error() {
        assert!(read("no-such-port").is_err());
    }
}
