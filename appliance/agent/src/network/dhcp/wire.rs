//! The bytes of DHCPv4: BOOTP's header (RFC 951) and the options behind it (RFC 2132).

use std::net::Ipv4Addr;

/// Values of option 53 (RFC 2132, section 9.6).
pub(super) const DISCOVER: u8 = 1;
pub(super) const OFFER: u8 = 2;
pub(super) const REQUEST: u8 = 3;
pub(super) const ACK: u8 = 5;
pub(super) const NAK: u8 = 6;

/// Codes of options (RFC 2132).
pub(super) mod code {
    pub(in super::super) const SUBNET_MASK: u8 = 1;
    pub(in super::super) const ROUTER: u8 = 3;
    pub(in super::super) const DNS: u8 = 6;
    pub(in super::super) const HOSTNAME: u8 = 12;
    pub(in super::super) const NTP: u8 = 42;
    pub(in super::super) const REQUESTED_ADDRESS: u8 = 50;
    pub(in super::super) const LEASE_TIME: u8 = 51;
    pub(in super::super) const MESSAGE_TYPE: u8 = 53;
    pub(in super::super) const SERVER_ID: u8 = 54;
    pub(in super::super) const PARAMETERS: u8 = 55;
    pub(in super::super) const RENEWAL_TIME: u8 = 58;
    pub(in super::super) const REBINDING_TIME: u8 = 59;
    pub(in super::super) const CLIENT_ID: u8 = 61;
    pub(super) const PAD: u8 = 0;
    pub(super) const OVERLOAD: u8 = 52;
    pub(super) const END: u8 = 255;
}

const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
const ETHERNET: u8 = 1;
const MAC_BYTES: u8 = 6;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const HEADER_BYTES: usize = 236;
/// A message as short as BOOTP's is taken by relays that are older than DHCP.
const MESSAGE_BYTES_MIN: usize = 300;
const SERVER_NAME: std::ops::Range<usize> = 44..108;
const BOOT_FILE: std::ops::Range<usize> = 108..236;

/// A client's message while it is written.
#[derive(Debug)]
pub(super) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A message of the kind of option 53. `own` is the client's address where it has one that it can
    /// be answered at; else answers are asked for as broadcasts.
    pub(super) fn new(kind: u8, xid: u32, mac: [u8; 6], own: Ipv4Addr) -> Request {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&[BOOT_REQUEST, ETHERNET, MAC_BYTES, 0]);
        bytes[4..8].copy_from_slice(&xid.to_be_bytes());
        if own.is_unspecified() {
            bytes[10] = 0x80;
        }
        bytes[12..16].copy_from_slice(&own.octets());
        bytes[28..34].copy_from_slice(&mac);
        bytes.extend(COOKIE);
        let mut request = Request { bytes };
        request.option(code::MESSAGE_TYPE, &[kind]);
        request
    }

    /// Adds an option of at most 255 bytes; a longer one is left out.
    pub(super) fn option(&mut self, code: u8, value: &[u8]) {
        if let Ok(length) = u8::try_from(value.len()) {
            self.bytes.extend([code, length]);
            self.bytes.extend(value);
        }
    }

    pub(super) fn bytes(mut self) -> Vec<u8> {
        self.bytes.push(code::END);
        let length = self.bytes.len().max(MESSAGE_BYTES_MIN);
        self.bytes.resize(length, code::PAD);
        self.bytes
    }
}

/// A server's message.
#[derive(Debug)]
pub(super) struct Reply {
    /// The client's address, `yiaddr`.
    pub(super) address: Ipv4Addr,
    /// Codes and values, in the order in which they stand there.
    options: Vec<(u8, Vec<u8>)>,
}

impl Reply {
    /// Reads a reply to the client `mac` and its message `xid`; `None` for anything else.
    pub(super) fn read(bytes: &[u8], xid: u32, mac: [u8; 6]) -> Option<Reply> {
        let (header, rest) = bytes.split_at_checked(HEADER_BYTES)?;
        let is_ours = header[..3] == [BOOT_REPLY, ETHERNET, MAC_BYTES]
            && header[4..8] == xid.to_be_bytes()
            && header[28..34] == mac;
        let options = rest.strip_prefix(&COOKIE)?;
        if !is_ours {
            return None;
        }
        let mut reply = Reply {
            address: quad(&header[16..20])?,
            options: Vec::new(),
        };
        reply.add(options);
        // Options may go on in fields that are not needed for what they are (RFC 2132, section 9.3).
        let overload = reply.byte(code::OVERLOAD).unwrap_or(0);
        if overload & 1 != 0 {
            reply.add(&header[BOOT_FILE]);
        }
        if overload & 2 != 0 {
            reply.add(&header[SERVER_NAME]);
        }
        Some(reply)
    }

    /// Options up to the end, or to one that is cut. Parts of one option belong together (RFC 3396).
    fn add(&mut self, mut bytes: &[u8]) {
        while let Some((code, rest)) = bytes.split_first() {
            bytes = rest;
            match *code {
                code::PAD => continue,
                code::END => return,
                _ => {}
            }
            let Some((length, rest)) = rest.split_first() else {
                return;
            };
            let Some((value, rest)) = rest.split_at_checked(usize::from(*length)) else {
                return;
            };
            bytes = rest;
            match self.options.iter_mut().find(|(known, _)| known == code) {
                Some((_, known)) => known.extend(value),
                None => self.options.push((*code, value.to_owned())),
            }
        }
    }

    fn option(&self, code: u8) -> Option<&[u8]> {
        let found = self.options.iter().find(|(known, _)| *known == code)?;
        Some(&found.1)
    }

    /// An option of one byte.
    pub(super) fn byte(&self, code: u8) -> Option<u8> {
        match self.option(code)? {
            [byte] => Some(*byte),
            _ => None,
        }
    }

    /// An option of four bytes.
    pub(super) fn number(&self, code: u8) -> Option<u32> {
        let bytes = self.option(code)?.try_into().ok()?;
        Some(u32::from_be_bytes(bytes))
    }

    /// An option that is a list of addresses.
    pub(super) fn addresses(&self, code: u8) -> impl Iterator<Item = Ipv4Addr> {
        let bytes = self.option(code).unwrap_or(&[]);
        bytes.chunks_exact(4).filter_map(quad)
    }
}

fn quad(bytes: &[u8]) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.try_into().ok()?;
    Some(Ipv4Addr::from(octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn reply(options: &[u8]) -> Vec<u8> {
        let mut bytes = Request::new(ACK, 1, MAC, [192, 0, 2, 9].into()).bytes;
        bytes[0] = BOOT_REPLY;
        bytes.truncate(HEADER_BYTES + COOKIE.len());
        bytes.extend(options);
        bytes
    }

    #[test]
    fn a_message_is_never_shorter_than_bootps() {
        let request = Request::new(DISCOVER, 1, MAC, Ipv4Addr::UNSPECIFIED).bytes();
        assert_eq!(request.len(), MESSAGE_BYTES_MIN);
        assert_eq!(request[240..244], [53, 1, 1, 255]);
    }

    #[test]
    fn parts_of_an_option_belong_together_and_pads_do_not_count() {
        let bytes = reply(&[0, 6, 4, 192, 0, 2, 1, 0, 6, 4, 192, 0, 2, 2, 255, 53, 1, 5]);
        let read = Reply::read(&bytes, 1, MAC).unwrap();
        let dns: Vec<Ipv4Addr> = read.addresses(code::DNS).collect();
        assert_eq!(dns, [[192, 0, 2, 1], [192, 0, 2, 2]].map(Ipv4Addr::from));
        assert_eq!(read.byte(code::MESSAGE_TYPE), None, "it is after the end");
    }

    #[test]
    fn options_go_on_in_the_fields_of_names() {
        let mut bytes = reply(&[52, 1, 3, 255]);
        bytes[108..111].copy_from_slice(&[53, 1, ACK]);
        bytes[111] = code::END;
        bytes[44..50].copy_from_slice(&[51, 4, 0, 0, 14, 16]);
        let read = Reply::read(&bytes, 1, MAC).unwrap();
        assert_eq!(read.byte(code::MESSAGE_TYPE), Some(ACK));
        assert_eq!(read.number(code::LEASE_TIME), Some(3600));
        bytes[242] = 0;
        assert_eq!(
            Reply::read(&bytes, 1, MAC)
                .unwrap()
                .byte(code::MESSAGE_TYPE),
            None
        );
    }

    #[test]
    fn an_option_of_another_length_is_none() {
        let read = Reply::read(
            &reply(&[51, 3, 0, 0, 1, 53, 0, 3, 5, 1, 2, 3, 4, 5]),
            1,
            MAC,
        );
        let read = read.unwrap();
        assert_eq!(read.number(code::LEASE_TIME), None);
        assert_eq!(read.byte(code::MESSAGE_TYPE), None);
        assert_eq!(read.addresses(code::ROUTER).count(), 1);
    }
}
