//! Where a controller is reached: transport, address family, address and service.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::str::FromStr;

use thiserror::Error;

use crate::{Nqn, NqnError};

/// The port that is registered for NVMe over Fabrics I/O, and used where none is named.
pub const DEFAULT_PORT: u16 = 4420;

/// The port that is registered for NVMe discovery over TCP.
pub const DISCOVERY_PORT: u16 = 8009;

/// A fabric transport. The discriminant is the TRTYPE of the discovery log entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TransportType {
    /// RDMA.
    Rdma = 1,
    /// TCP.
    Tcp = 3,
}

impl TransportType {
    /// The value of TRTYPE.
    #[must_use]
    pub const fn to_wire(self) -> u8 {
        self as u8
    }

    /// The transport of a TRTYPE value, if it is one of those known here.
    #[must_use]
    pub const fn from_wire(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Rdma),
            3 => Some(Self::Tcp),
            _ => None,
        }
    }

    /// The URI scheme: `tcp` or `rdma`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rdma => "rdma",
            Self::Tcp => "tcp",
        }
    }
}

impl fmt::Display for TransportType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for TransportType {
    type Err = TransportAddressError;

    fn from_str(text: &str) -> Result<Self, TransportAddressError> {
        if text.eq_ignore_ascii_case("tcp") {
            Ok(Self::Tcp)
        } else if text.eq_ignore_ascii_case("rdma") {
            Ok(Self::Rdma)
        } else {
            Err(TransportAddressError::UnknownTransport {
                transport: text.to_owned(),
            })
        }
    }
}

/// An address family. The discriminant is the ADRFAM of the discovery log entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum AddressFamily {
    /// IPv4.
    Ipv4 = 1,
    /// IPv6.
    Ipv6 = 2,
}

impl AddressFamily {
    /// The value of ADRFAM.
    #[must_use]
    pub const fn to_wire(self) -> u8 {
        self as u8
    }

    /// The family of an ADRFAM value, if it is one of those known here.
    #[must_use]
    pub const fn from_wire(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Ipv4),
            2 => Some(Self::Ipv6),
            _ => None,
        }
    }

    /// `ipv4` or `ipv6`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }
}

impl fmt::Display for AddressFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What is wrong with a transport address, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TransportAddressError {
    /// No `://` is there.
    #[error("address {text:?} has no transport; write it as tcp://127.0.0.1:4420")]
    NoTransport {
        /// The text.
        text: String,
    },
    /// The transport is not one of those known.
    #[error("transport {transport:?} is unknown; tcp and rdma are known")]
    UnknownTransport {
        /// What stands before `://`.
        transport: String,
    },
    /// The host is not an IP address.
    #[error(
        "{host:?} is not an ip address; write 127.0.0.1 or [::1], host names are not looked up"
    )]
    Host {
        /// The host.
        host: String,
    },
    /// An IPv6 address stands without brackets, or a bracket is not closed.
    #[error("{text:?}: an ipv6 address needs brackets around it, as in tcp://[::1]:4420")]
    Brackets {
        /// What follows `://`.
        text: String,
    },
    /// The port is not a number from 0 to 65535.
    #[error("port {port:?} is wrong; a decimal number from 0 to 65535 is needed")]
    Port {
        /// The port.
        port: String,
    },
    /// Something follows the port.
    #[error("{rest:?} stands after the address; nothing may follow it here")]
    TrailingPath {
        /// What follows, from the slash on.
        rest: String,
    },
    /// `adrfam` and `traddr` do not belong together.
    #[error("address family {adrfam} does not fit the address {traddr:?}")]
    FamilyMismatch {
        /// The family.
        adrfam: AddressFamily,
        /// The address.
        traddr: String,
    },
    /// The name after the address is not an NQN.
    #[error("the name after the address is wrong: {error}")]
    Nqn {
        /// What is wrong with it.
        error: NqnError,
    },
}

/// An address of a listener or controller.
///
/// As text it is a URI: `tcp://127.0.0.1:4420`, `tcp://[::1]:4420`. The text form is always that of
/// [`std::net`], so that two addresses are equal when they mean the same. Port 0 is accepted: a
/// listener then gets a port from the system.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransportAddress {
    /// The transport.
    pub trtype: TransportType,
    /// The family of `traddr`.
    pub adrfam: AddressFamily,
    /// The IP address without brackets. An IPv6 scope follows as `%` and a number.
    pub traddr: String,
    /// The port in decimal.
    pub trsvcid: String,
}

impl TransportAddress {
    /// The address of `socket` on `trtype`.
    #[must_use]
    pub fn from_socket_addr(trtype: TransportType, socket: SocketAddr) -> Self {
        let (adrfam, traddr) = match socket {
            SocketAddr::V4(v4) => (AddressFamily::Ipv4, v4.ip().to_string()),
            SocketAddr::V6(v6) if v6.scope_id() == 0 => (AddressFamily::Ipv6, v6.ip().to_string()),
            SocketAddr::V6(v6) => (
                AddressFamily::Ipv6,
                format!("{}%{}", v6.ip(), v6.scope_id()),
            ),
        };
        Self {
            trtype,
            adrfam,
            traddr,
            trsvcid: socket.port().to_string(),
        }
    }

    /// Checks the parts, as they come from a discovery log entry or an API call, and normalises
    /// them. An empty `trsvcid` means [`DEFAULT_PORT`].
    pub fn from_parts(
        trtype: TransportType,
        adrfam: AddressFamily,
        traddr: &str,
        trsvcid: &str,
    ) -> Result<Self, TransportAddressError> {
        let port = if trsvcid.is_empty() {
            DEFAULT_PORT
        } else {
            parse_port(trsvcid)?
        };
        let socket = parse_host(traddr, port)?;
        if socket.is_ipv4() != (adrfam == AddressFamily::Ipv4) {
            return Err(TransportAddressError::FamilyMismatch {
                adrfam,
                traddr: traddr.to_owned(),
            });
        }
        Ok(Self::from_socket_addr(trtype, socket))
    }

    /// Parses `tcp://127.0.0.1:4420` and `tcp://127.0.0.1:4420/NQN`.
    pub fn parse_with_nqn(uri: &str) -> Result<(Self, Option<Nqn>), TransportAddressError> {
        let (scheme, rest) =
            uri.split_once("://")
                .ok_or_else(|| TransportAddressError::NoTransport {
                    text: uri.to_owned(),
                })?;
        let trtype = scheme.parse()?;
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, path),
            None => (rest, ""),
        };
        let nqn = match path {
            "" => None,
            path => Some(Nqn::new(path).map_err(|error| TransportAddressError::Nqn { error })?),
        };
        let socket = parse_authority(authority)?;
        Ok((Self::from_socket_addr(trtype, socket), nqn))
    }

    /// The IP address and port, for `bind` and `connect`.
    pub fn socket_addr(&self) -> Result<SocketAddr, TransportAddressError> {
        parse_host(&self.traddr, parse_port(&self.trsvcid)?)
    }

    /// The port, or `None` when `trsvcid` is not a port.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        parse_port(&self.trsvcid).ok()
    }

    /// Whether this means every address of the machine: `0.0.0.0` or `::`.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.traddr
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_unspecified())
    }
}

impl fmt::Display for TransportAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trtype,
            adrfam,
            traddr,
            trsvcid,
        } = self;
        match adrfam {
            AddressFamily::Ipv4 => write!(f, "{trtype}://{traddr}:{trsvcid}"),
            AddressFamily::Ipv6 => write!(f, "{trtype}://[{traddr}]:{trsvcid}"),
        }
    }
}

impl FromStr for TransportAddress {
    type Err = TransportAddressError;

    fn from_str(uri: &str) -> Result<Self, TransportAddressError> {
        if let Some((_, rest)) = uri.split_once("://")
            && let Some(slash) = rest.find('/')
        {
            return Err(TransportAddressError::TrailingPath {
                rest: rest[slash..].to_owned(),
            });
        }
        Self::parse_with_nqn(uri).map(|(address, _)| address)
    }
}

/// Parses `HOST`, `HOST:PORT`, `[HOST]` and `[HOST]:PORT`.
fn parse_authority(text: &str) -> Result<SocketAddr, TransportAddressError> {
    let brackets = || TransportAddressError::Brackets {
        text: text.to_owned(),
    };
    if let Some(inner) = text.strip_prefix('[') {
        let (host, after) = inner.split_once(']').ok_or_else(brackets)?;
        let port = match after.strip_prefix(':') {
            Some(port) => parse_port(port)?,
            None if after.is_empty() => DEFAULT_PORT,
            None => {
                return Err(TransportAddressError::Port {
                    port: after.to_owned(),
                });
            }
        };
        return match parse_host(host, port)? {
            SocketAddr::V4(_) => Err(TransportAddressError::Host {
                host: text.to_owned(),
            }),
            socket => Ok(socket),
        };
    }
    let (host, port) = match text.split_once(':') {
        Some((_, port)) if port.contains(':') => return Err(brackets()),
        Some((host, port)) => (host, parse_port(port)?),
        None => (text, DEFAULT_PORT),
    };
    parse_host(host, port)
}

fn parse_port(text: &str) -> Result<u16, TransportAddressError> {
    let wrong = || TransportAddressError::Port {
        port: text.to_owned(),
    };
    // `u16::from_str` takes a plus sign as well.
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    text.parse().map_err(|_| wrong())
}

fn parse_host(host: &str, port: u16) -> Result<SocketAddr, TransportAddressError> {
    if let Ok(v4) = host.parse::<Ipv4Addr>() {
        return Ok(SocketAddr::from((v4, port)));
    }
    let (address, scope_id) = match host.split_once('%') {
        Some((address, scope)) => {
            let numeric = scope.bytes().all(|byte| byte.is_ascii_digit());
            (address, scope.parse::<u32>().ok().filter(|_| numeric))
        }
        None => (host, Some(0)),
    };
    match (address.parse::<Ipv6Addr>(), scope_id) {
        (Ok(v6), Some(scope_id)) => Ok(SocketAddrV6::new(v6, port, 0, scope_id).into()),
        _ => Err(TransportAddressError::Host {
            host: host.to_owned(),
        }),
    }
}

#[cfg(test)]
#[path = "transport_address_tests.rs"]
mod tests;
