//! DHCPv4 (RFC 2131): the messages of a client, and what is made of the answers. Pure.

use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable as _, Encodable as _};

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

/// The bytes of a message, or `None` where it cannot be written.
#[must_use]
pub fn message(say: &Say, xid: u32, mac: [u8; 6], hostname: &str) -> Option<Vec<u8>> {
    let mut message = Message::default();
    message.set_xid(xid).set_chaddr(&mac);
    // An address that is not ours yet cannot be answered to: answers are broadcast.
    if !matches!(say, Say::Renew(_)) {
        message.set_flags(Flags::default().set_broadcast());
    }
    let mut client_id = vec![1];
    client_id.extend(mac);
    let kind = match say {
        Say::Discover => MessageType::Discover,
        Say::Request(_) | Say::Renew(_) => MessageType::Request,
    };
    if let Say::Renew(lease) = say {
        message.set_ciaddr(lease.address);
    }
    let options = message.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ClientIdentifier(client_id));
    if let Say::Request(lease) = say {
        options.insert(DhcpOption::RequestedIpAddress(lease.address));
        options.insert(DhcpOption::ServerIdentifier(lease.server));
    }
    options.insert(DhcpOption::ParameterRequestList(vec![
        OptionCode::SubnetMask,
        OptionCode::Router,
        OptionCode::DomainNameServer,
        OptionCode::NtpServers,
    ]));
    if !hostname.is_empty() && hostname.len() <= 64 {
        options.insert(DhcpOption::Hostname(hostname.to_owned()));
    }
    message.to_vec().ok()
}

/// Reads an answer to our message; `None` for anything else.
#[must_use]
pub fn answer(bytes: &[u8], xid: u32, mac: [u8; 6]) -> Option<Answer> {
    let message = Message::from_bytes(bytes).ok()?;
    let is_ours = message.opcode() == Opcode::BootReply
        && message.xid() == xid
        && message.hlen() == 6
        && message.chaddr() == mac;
    if !is_ours {
        return None;
    }
    match message.opts().msg_type()? {
        MessageType::Nak => Some(Answer::Nak),
        MessageType::Offer => lease(&message).map(Answer::Offer),
        MessageType::Ack => lease(&message).map(Answer::Ack),
        _ => None,
    }
}

fn lease(message: &Message) -> Option<Lease> {
    let options = message.opts();
    let address = message.yiaddr();
    let can_be_ours = !(address.is_unspecified()
        || address.is_broadcast()
        || address.is_multicast()
        || address.is_loopback());
    let mask = match options.get(OptionCode::SubnetMask) {
        Some(DhcpOption::SubnetMask(mask)) => mask.to_bits(),
        _ => 0xffff_ff00,
    };
    let prefix = mask.leading_ones();
    let is_mask = prefix > 0 && mask.count_ones() == prefix;
    let server = match options.get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(server)) => *server,
        _ => return None,
    };
    if !can_be_ours || !is_mask {
        return None;
    }
    let list = |option: Option<&DhcpOption>| match option {
        Some(
            DhcpOption::Router(all)
            | DhcpOption::DomainNameServer(all)
            | DhcpOption::NtpServers(all),
        ) => all.iter().copied().take(SERVERS_MAX).collect(),
        _ => Vec::new(),
    };
    let seconds = |option: Option<&DhcpOption>| match option {
        Some(
            DhcpOption::AddressLeaseTime(seconds)
            | DhcpOption::Renewal(seconds)
            | DhcpOption::Rebinding(seconds),
        ) => Some(Duration::from_secs(u64::from(*seconds))),
        _ => None,
    };
    let end = seconds(options.get(OptionCode::AddressLeaseTime))
        .unwrap_or(LEASE_MIN)
        .max(LEASE_MIN);
    let renew = seconds(options.get(OptionCode::Renewal)).unwrap_or(end / 2);
    let rebind = seconds(options.get(OptionCode::Rebinding)).unwrap_or(end / 8 * 7);
    let gateways: Vec<Ipv4Addr> = list(options.get(OptionCode::Router));
    let rebind = rebind.clamp(LEASE_MIN / 2, end);
    Some(Lease {
        address,
        prefix: u8::try_from(prefix).ok()?,
        gateway: gateways.first().copied(),
        dns: list(options.get(OptionCode::DomainNameServer)),
        time_servers: list(options.get(OptionCode::NtpServers)),
        server,
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

    fn reply(kind: MessageType, change: impl FnOnce(&mut Message)) -> Vec<u8> {
        let mut message = Message::default();
        message
            .set_opcode(Opcode::BootReply)
            .set_xid(7)
            .set_chaddr(&MAC);
        message.set_yiaddr([192, 0, 2, 10]);
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier([192, 0, 2, 1].into()));
        options.insert(DhcpOption::SubnetMask([255, 255, 255, 128].into()));
        options.insert(DhcpOption::Router(vec![[192, 0, 2, 1].into()]));
        options.insert(DhcpOption::AddressLeaseTime(3600));
        change(&mut message);
        message.to_vec().unwrap()
    }

    #[test]
    fn an_offer_becomes_a_request_becomes_a_lease() {
        let bytes = message(&Say::Discover, 7, MAC, "stor-1").unwrap();
        assert_eq!(&bytes[..4], [1, 1, 6, 0], "BOOTREQUEST over Ethernet");
        assert_eq!(&bytes[10..12], [0x80, 0], "answers are to be broadcast");
        assert_eq!(
            &bytes[236..243],
            [99, 130, 83, 99, 53, 1, 1],
            "cookie, DHCPDISCOVER"
        );
        let Some(Answer::Offer(lease)) = answer(&reply(MessageType::Offer, |_| ()), 7, MAC) else {
            panic!("no offer");
        };
        assert_eq!(
            (lease.prefix, lease.renew.as_secs(), lease.rebind.as_secs()),
            (25, 1800, 3150)
        );
        let bytes = message(&Say::Request(lease.clone()), 7, MAC, "").unwrap();
        let request = Message::from_bytes(&bytes).unwrap();
        let wanted = request.opts().get(OptionCode::RequestedIpAddress);
        assert_eq!(wanted, Some(&DhcpOption::RequestedIpAddress(lease.address)));
        let renew = message(&Say::Renew(lease.clone()), 7, MAC, "").unwrap();
        assert_eq!(&renew[12..16], lease.address.octets(), "ciaddr");
        assert_eq!(
            answer(&reply(MessageType::Ack, |_| ()), 7, MAC),
            Some(Answer::Ack(lease))
        );
        assert_eq!(
            answer(&reply(MessageType::Nak, |_| ()), 7, MAC),
            Some(Answer::Nak)
        );
    }

    #[test]
    fn an_answer_that_is_not_ours_or_of_no_use_is_dropped() {
        let good = reply(MessageType::Ack, |_| ());
        assert_eq!(answer(&good, 8, MAC), None);
        assert_eq!(answer(&good, 7, [9; 6]), None);
        let wrong = |change: fn(&mut Message)| answer(&reply(MessageType::Ack, change), 7, MAC);
        assert_eq!(wrong(|m| _ = m.set_yiaddr([0, 0, 0, 0])), None);
        assert_eq!(wrong(|m| _ = m.set_yiaddr([224, 0, 0, 1])), None);
        assert_eq!(
            wrong(|m| drop(m.opts_mut().remove(OptionCode::ServerIdentifier))),
            None
        );
        let holes = |m: &mut Message| {
            m.opts_mut()
                .insert(DhcpOption::SubnetMask([255, 0, 255, 0].into()));
        };
        assert_eq!(wrong(holes), None);
        let short = |m: &mut Message| {
            m.opts_mut().insert(DhcpOption::AddressLeaseTime(0));
            m.opts_mut().insert(DhcpOption::Renewal(u32::MAX));
        };
        let Some(Answer::Ack(lease)) = wrong(short) else {
            panic!("a lease")
        };
        assert!(lease.renew <= lease.rebind && lease.rebind <= lease.end && lease.end == LEASE_MIN);
    }

    #[test]
    fn an_answer_cut_anywhere_is_no_panic() {
        let good = reply(MessageType::Ack, |_| ());
        for end in 0..good.len() {
            let _ = answer(&good[..end], 7, MAC);
        }
    }

    proptest! {
        #[test]
        fn any_options_are_an_answer_or_none(tail in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = reply(MessageType::Ack, |_| ());
            bytes.truncate(240);
            bytes.extend(tail);
            let _ = answer(&bytes, 7, MAC);
        }
    }
}
