//! Reading certificates.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::PublicKeyData as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::authority::read_key;
use crate::{PkiError, Role};

/// Longest text that is read as a certificate, in bytes.
const PEM_BYTES_MAX: usize = 64 << 10;

/// Who a client is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// The common name in its certificate.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// From when on the certificate holds.
    pub not_before: SystemTime,
    /// Until when.
    pub not_after: SystemTime,
}

impl Client {
    /// Reads a client's certificate, of which TLS has verified the chain.
    ///
    /// # Errors
    /// When it cannot be read or names no role.
    pub fn read(der: &[u8]) -> Result<Client, PkiError> {
        let certificate = parse(der)?;
        let name = common_name(&certificate);
        let organizations = certificate
            .subject()
            .iter_organization()
            .filter_map(|attribute| attribute.as_str().ok());
        let role = Role::of_organizations(organizations);
        let role = role.ok_or_else(|| PkiError::NoRole { name: name.clone() })?;
        let time = |timestamp: i64| {
            UNIX_EPOCH + Duration::from_secs(u64::try_from(timestamp).unwrap_or(0))
        };
        Ok(Client {
            name,
            role,
            not_before: time(certificate.validity().not_before.timestamp()),
            not_after: time(certificate.validity().not_after.timestamp()),
        })
    }
}

/// The first certificate of a PEM text, in DER.
///
/// # Errors
/// When there is none.
pub fn certificate_der(pem: &str) -> Result<Vec<u8>, PkiError> {
    if pem.len() > PEM_BYTES_MAX {
        return Err(PkiError::Certificate("it is longer than 64 KiB".to_owned()));
    }
    let wrong = |problem: String| PkiError::Certificate(problem);
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes())
        .map_err(|error| wrong(error.to_string()))?;
    if block.label != "CERTIFICATE" {
        return Err(wrong(format!("it is a {}", block.label)));
    }
    parse(&block.contents)?;
    Ok(block.contents)
}

/// SHA-256 of a certificate, as people compare it: `ab:cd:...`.
#[must_use]
pub fn fingerprint(der: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    let pairs: Vec<String> = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    pairs.join(":")
}

/// SHA-256 in hexadecimal digits.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

/// Whether a private key belongs to a certificate.
///
/// # Errors
/// When one of them cannot be read.
pub fn is_key_of(key_pem: &str, der: &[u8]) -> Result<bool, PkiError> {
    let key = read_key(key_pem)?;
    let certificate = parse(der)?;
    Ok(certificate.public_key().raw == key.subject_public_key_info())
}

/// The common name of a certificate, and whether it may sign others.
pub(crate) fn authority(der: &[u8]) -> Result<(String, bool), PkiError> {
    let certificate = parse(der)?;
    Ok((common_name(&certificate), certificate.is_ca()))
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, PkiError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(PkiError::Certificate("more bytes follow it".to_owned())),
        Err(error) => Err(PkiError::Certificate(error.to_string())),
    }
}

fn common_name(certificate: &X509Certificate<'_>) -> String {
    let mut names = certificate.subject().iter_common_name();
    let name = names.next().and_then(|attribute| attribute.as_str().ok());
    // It goes into logs.
    let printable = name.unwrap_or("").chars().filter(|c| !c.is_control());
    printable.take(64).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Authority, Validity, generate_key, self_signed};

    #[test]
    fn a_certificate_without_a_role_is_nobodys() {
        let key = generate_key().unwrap();
        let validity = Validity::days(UNIX_EPOCH + Duration::from_secs(1 << 30), 1);
        let pem = self_signed(&key, &["web".into()], validity).unwrap();
        let error = Client::read(&certificate_der(&pem).unwrap()).unwrap_err();
        assert!(
            error.to_string().contains("\"web\" names no role"),
            "{error}"
        );
        assert!(certificate_der(&key).is_err(), "a key is no certificate");
    }

    #[test]
    fn a_fingerprint_is_the_digest_in_pairs() {
        // SHA-256 of nothing, FIPS 180-4's well-known value.
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256_hex(b""), empty);
        assert_eq!(fingerprint(b"").replace(':', ""), empty);
    }

    #[test]
    fn a_certificate_cut_anywhere_is_an_error() {
        let validity = Validity::days(UNIX_EPOCH + Duration::from_secs(1 << 30), 1);
        let (authority, _) = Authority::make("a", validity).unwrap();
        let der = certificate_der(authority.certificate_pem()).unwrap();
        for end in 0..der.len() {
            assert!(Client::read(&der[..end]).is_err(), "cut at {end}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_certificate_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Client::read(&bytes);
            let _ = certificate_der(&String::from_utf8_lossy(&bytes));
        }
    }
}
