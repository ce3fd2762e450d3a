//! DHCPv4 (RFC 2131): the messages of a client, and what is made of the answers. Pure.

mod wire;

use std::net::Ipv4Addr;
use std::time::Duration;

use self::wire::{Reply, code};

/// A lease that is not told how long it holds, and the shortest that is taken as told.
const LEASE_MIN: Duration = Duration::from_secs(60);
/// Servers of one kind that are kept.
const SERVERS_MAX: usize = 4;

/// What a server lends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// Bits of the prefix.
    pub prefix: u8,
    /// Default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// Time servers.
    pub time_servers: Vec<Ipv4Addr>,
    /// Who lends it.
    pub server: Ipv4Addr,
    /// When it is renewed with that server (T1).
    pub renew: Duration,
    /// When it is asked of any server (T2).
    pub rebind: Duration,
    /// When it ends.
    pub end: Duration,
}

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Say {
    /// Who lends addresses?
    Discover,
    /// This offer is taken.
    Request(Lease),
    /// This lease is to go on.
    Renew(Lease),
}

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It would lend this.
    Offer(Lease),
    /// It lends this.
    Ack(Lease),
    /// It does not lend what was asked for.
    Nak,
}

/// The bytes of a message.
#[must_use]
pub fn message(say: &Say, xid: u32, mac: [u8; 6], hostname: &str) -> Vec<u8> {
    let (kind, own) = match say {
        Say::Discover => (wire::DISCOVER, Ipv4Addr::UNSPECIFIED),
        Say::Request(_) => (wire::REQUEST, Ipv4Addr::UNSPECIFIED),
        Say::Renew(lease) => (wire::REQUEST, lease.address),
    };
    let mut message = wire::Request::new(kind, xid, mac, own);
    // Ethernet, and the address: what a server knows a client by.
    let [a, b, c, d, e, f] = mac;
    message.option(code::CLIENT_ID, &[1, a, b, c, d, e, f]);
    if let Say::Request(lease) = say {
        message.option(code::REQUESTED_ADDRESS, &lease.address.octets());
        message.option(code::SERVER_ID, &lease.server.octets());
    }
    let wanted = [code::SUBNET_MASK, code::ROUTER, code::DNS, code::NTP];
    message.option(code::PARAMETERS, &wanted);
    if !hostname.is_empty() && hostname.len() <= 64 {
        message.option(code::HOSTNAME, hostname.as_bytes());
    }
    message.bytes()
}

/// Reads an answer to our message; `None` for anything else.
#[must_use]
pub fn answer(bytes: &[u8], xid: u32, mac: [u8; 6]) -> Option<Answer> {
    let reply = Reply::read(bytes, xid, mac)?;
    match reply.byte(code::MESSAGE_TYPE)? {
        wire::OFFER => lease(&reply).map(Answer::Offer),
        wire::ACK => lease(&reply).map(Answer::Ack),
        wire::NAK => Some(Answer::Nak),
        _ => None,
    }
}

fn lease(reply: &Reply) -> Option<Lease> {
    let address = reply.address;
    let can_be_ours = !(address.is_unspecified()
        || address.is_broadcast()
        || address.is_multicast()
        || address.is_loopback());
    let mask = reply.number(code::SUBNET_MASK).unwrap_or(0xffff_ff00);
    let prefix = mask.leading_ones();
    let is_mask = prefix > 0 && mask.count_ones() == prefix;
    if !can_be_ours || !is_mask {
        return None;
    }
    let seconds = |code| {
        let seconds = reply.number(code)?;
        Some(Duration::from_secs(u64::from(seconds)))
    };
    let end = seconds(code::LEASE_TIME)
        .unwrap_or(LEASE_MIN)
        .max(LEASE_MIN);
    let renew = seconds(code::RENEWAL_TIME).unwrap_or(end / 2);
    let rebind = seconds(code::REBINDING_TIME).unwrap_or(end / 8 * 7);
    let rebind = rebind.clamp(LEASE_MIN / 2, end);
    let list = |code| reply.addresses(code).take(SERVERS_MAX).collect();
    Some(Lease {
        address,
        prefix: u8::try_from(prefix).ok()?,
        gateway: reply.addresses(code::ROUTER).next(),
        dns: list(code::DNS),
        time_servers: list(code::NTP),
        server: reply.number(code::SERVER_ID).map(Ipv4Addr::from_bits)?,
        renew: renew.clamp(LEASE_MIN / 4, rebind),
        rebind,
        end,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

    /// An answer of 192.0.2.1 that lends 192.0.2.10, with other options in place of its own.
    fn reply(kind: u8, address: [u8; 4], other: &[(u8, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 240];
        bytes[..4].copy_from_slice(&[2, 1, 6, 0]);
        bytes[4..8].copy_from_slice(&7u32.to_be_bytes());
        bytes[16..20].copy_from_slice(&address);
        bytes[28..34].copy_from_slice(&MAC);
        bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
        let usual: [(u8, &[u8]); 5] = [
            (53, &[kind]),
            (54, &[192, 0, 2, 1]),
            (1, &[255, 255, 255, 128]),
            (3, &[192, 0, 2, 1]),
            (51, &3600u32.to_be_bytes()),
        ];
        let is_replaced = |code: &u8| other.iter().any(|(changed, _)| changed == code);
        let usual = usual.iter().filter(|(code, _)| !is_replaced(code));
        for (code, value) in usual.chain(other) {
            bytes.extend([*code, value.len() as u8]);
            bytes.extend(*value);
        }
        bytes.push(255);
        bytes
    }

    fn good(kind: u8) -> Vec<u8> {
        reply(kind, [192, 0, 2, 10], &[])
    }

    #[test]
    fn an_offer_becomes_a_request_becomes_a_lease() {
        let bytes = message(&Say::Discover, 7, MAC, "stor-1");
        assert_eq!(&bytes[..4], [1, 1, 6, 0], "BOOTREQUEST over Ethernet");
        assert_eq!(&bytes[10..12], [0x80, 0], "answers are to be broadcast");
        assert_eq!(
            &bytes[236..243],
            [99, 130, 83, 99, 53, 1, 1],
            "cookie, DHCPDISCOVER"
        );
        let Some(Answer::Offer(lease)) = answer(&good(2), 7, MAC) else {
            panic!("no offer");
        };
        assert_eq!(
            (lease.prefix, lease.renew.as_secs(), lease.rebind.as_secs()),
            (25, 1800, 3150)
        );
        assert_eq!(lease.gateway, Some([192, 0, 2, 1].into()));
        let bytes = message(&Say::Request(lease.clone()), 7, MAC, "");
        let wanted = [50, 4, 192, 0, 2, 10, 54, 4, 192, 0, 2, 1];
        assert!(bytes.windows(wanted.len()).any(|part| part == wanted));
        let renew = message(&Say::Renew(lease.clone()), 7, MAC, "");
        assert_eq!(&renew[12..16], lease.address.octets(), "ciaddr");
        assert_eq!(&renew[10..12], [0, 0], "we can be answered to");
        assert_eq!(answer(&good(5), 7, MAC), Some(Answer::Ack(lease)));
        assert_eq!(answer(&good(6), 7, MAC), Some(Answer::Nak));
    }

    #[test]
    fn an_answer_that_is_not_ours_or_of_no_use_is_dropped() {
        assert_eq!(answer(&good(5), 8, MAC), None);
        assert_eq!(answer(&good(5), 7, [9; 6]), None);
        let mut request = good(5);
        request[0] = 1;
        assert_eq!(answer(&request, 7, MAC), None);
        for address in [[0, 0, 0, 0], [224, 0, 0, 1], [127, 0, 0, 1], [255; 4]] {
            assert_eq!(answer(&reply(5, address, &[]), 7, MAC), None);
        }
        let with = |other: &[(u8, &[u8])]| answer(&reply(5, [192, 0, 2, 10], other), 7, MAC);
        assert_eq!(with(&[(54, &[1, 2])]), None, "no server");
        assert_eq!(with(&[(1, &[255, 0, 255, 0])]), None, "a mask with holes");
        let Some(Answer::Ack(lease)) = with(&[(51, &[0; 4]), (58, &[0xff; 4])]) else {
            panic!("a lease")
        };
        assert!(lease.renew <= lease.rebind && lease.rebind <= lease.end && lease.end == LEASE_MIN);
    }

    #[test]
    fn an_answer_cut_anywhere_is_no_panic() {
        let good = good(5);
        for end in 0..good.len() {
            let _ = answer(&good[..end], 7, MAC);
        }
    }

    proptest! {
        #[test]
        fn any_options_are_an_answer_or_none(tail in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = good(5);
            bytes.truncate(240);
            bytes.extend(tail);
            let _ = answer(&bytes, 7, MAC);
        }
    }
}
