//! Listen addresses as people write them: `tcp://127.0.0.1:4420`, `tcp://[::1]:4420`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::v1;

/// Why an address is not one.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
#[non_exhaustive]
pub enum AddressError {
    /// No `type://` at the start.
    #[error("{0:?} is no address; write it as tcp://ADDRESS:PORT")]
    NotAUri(String),
    /// The address part is wrong.
    #[error("{0:?} is no IP address; write 192.0.2.1 or 2001:db8::1")]
    Traddr(String),
    /// The port is missing, no number, or 0.
    #[error("{0:?} is no port; write a number from 1 to 65535, 4420 is usual")]
    Trsvcid(String),
    /// The family does not go with the address.
    #[error("address family {given:?} does not fit {traddr:?}; leave it out or write {right:?}")]
    Adrfam {
        /// The family in the message.
        given: String,
        /// The address in the message.
        traddr: String,
        /// The family of that address.
        right: &'static str,
    },
}

impl AddressError {
    /// The field of `Address` that is wrong.
    #[must_use]
    pub fn field(&self) -> &'static str {
        match self {
            AddressError::NotAUri(_) => "trtype",
            AddressError::Traddr(_) => "traddr",
            AddressError::Trsvcid(_) => "trsvcid",
            AddressError::Adrfam { .. } => "adrfam",
        }
    }
}

impl v1::Address {
    /// Reads `TYPE://ADDRESS:PORT`; IPv6 addresses stand in brackets.
    ///
    /// # Errors
    /// When it has another form, or address or port are wrong.
    pub fn from_uri(uri: &str) -> Result<v1::Address, AddressError> {
        let not_a_uri = || AddressError::NotAUri(uri.to_owned());
        let (trtype, rest) = uri.split_once("://").ok_or_else(not_a_uri)?;
        if trtype.is_empty() {
            return Err(not_a_uri());
        }
        let (host, port) = rest.rsplit_once(':').ok_or_else(not_a_uri)?;
        let host = match (host.strip_prefix('['), host.contains(':')) {
            (Some(inner), _) => inner.strip_suffix(']').ok_or_else(not_a_uri)?,
            (None, true) => return Err(not_a_uri()),
            (None, false) => host,
        };
        let address = v1::Address {
            trtype: trtype.to_ascii_lowercase(),
            adrfam: String::new(),
            traddr: host.to_owned(),
            trsvcid: port.to_owned(),
        };
        Ok(v1::Address::from_socket(
            &address.trtype,
            address.socket_addr()?,
        ))
    }

    /// The address in normal form.
    #[must_use]
    pub fn from_socket(trtype: &str, socket: SocketAddr) -> v1::Address {
        v1::Address {
            trtype: trtype.to_owned(),
            adrfam: family(socket.ip()).to_owned(),
            traddr: socket.ip().to_string(),
            trsvcid: socket.port().to_string(),
        }
    }

    /// The IP address and port. Checks every field but `trtype`.
    ///
    /// # Errors
    /// When a field is wrong.
    pub fn socket_addr(&self) -> Result<SocketAddr, AddressError> {
        let ip: IpAddr = self
            .traddr
            .parse()
            .map_err(|_| AddressError::Traddr(self.traddr.clone()))?;
        let trsvcid = || AddressError::Trsvcid(self.trsvcid.clone());
        // `u16::from_str` takes a leading plus sign; two spellings of a port would be two listeners.
        if !self.trsvcid.bytes().all(|b| b.is_ascii_digit()) {
            return Err(trsvcid());
        }
        let port: u16 = self.trsvcid.parse().map_err(|_| trsvcid())?;
        if port == 0 {
            return Err(trsvcid());
        }
        let right = family(ip);
        if !self.adrfam.is_empty() && !self.adrfam.eq_ignore_ascii_case(right) {
            return Err(AddressError::Adrfam {
                given: self.adrfam.clone(),
                traddr: self.traddr.clone(),
                right,
            });
        }
        Ok(SocketAddr::new(ip, port))
    }

    /// As a URI: what [`v1::Address::from_uri`] reads.
    #[must_use]
    pub fn uri(&self) -> String {
        UriOf(self).to_string()
    }
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "ipv4" } else { "ipv6" }
}

struct UriOf<'a>(&'a v1::Address);

impl fmt::Display for UriOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v1::Address {
            trtype,
            traddr,
            trsvcid,
            ..
        } = self.0;
        if traddr.contains(':') {
            write!(f, "{trtype}://[{traddr}]:{trsvcid}")
        } else {
            write!(f, "{trtype}://{traddr}:{trsvcid}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_round_trip() {
        for uri in [
            "tcp://127.0.0.1:4420",
            "tcp://[::1]:4420",
            "tcp://0.0.0.0:1",
        ] {
            assert_eq!(v1::Address::from_uri(uri).unwrap().uri(), uri);
        }
        let v6 = v1::Address::from_uri("TCP://[2001:DB8:0::1]:8009").unwrap();
        assert_eq!(v6.uri(), "tcp://[2001:db8::1]:8009");
        assert_eq!(v6.adrfam, "ipv6");
    }

    #[test]
    fn wrong_uris_name_the_field() {
        for (uri, field) in [
            ("127.0.0.1:4420", "trtype"),
            ("://127.0.0.1:4420", "trtype"),
            ("tcp://127.0.0.1", "trtype"),
            ("tcp://::1:4420", "trtype"),
            ("tcp://[::1:4420", "trtype"),
            ("tcp://localhost:4420", "traddr"),
            ("tcp://127.0.0.1:0", "trsvcid"),
            ("tcp://127.0.0.1:+1", "trsvcid"),
            ("tcp://127.0.0.1:65536", "trsvcid"),
            ("tcp://127.0.0.1:", "trsvcid"),
        ] {
            assert_eq!(
                v1::Address::from_uri(uri).unwrap_err().field(),
                field,
                "{uri}"
            );
        }
    }

    #[test]
    fn family_must_fit() {
        let mut address = v1::Address::from_uri("tcp://127.0.0.1:4420").unwrap();
        address.adrfam = "ipv6".into();
        assert_eq!(address.socket_addr().unwrap_err().field(), "adrfam");
        address.adrfam = "IPv4".into();
        assert!(address.socket_addr().is_ok());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_refused_or_read_without_panic(text in ".*") {
            let _ = v1::Address::from_uri(&text);
            let _ = v1::Address::from_uri(&format!("tcp://{text}"));
        }
    }
}
