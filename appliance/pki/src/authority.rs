//! Making and signing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::{PkiError, Role, certificate_der};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// From when to when a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// When it begins.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
}

impl Validity {
    /// So many days, from a day ago: the clocks of two machines are not the same.
    #[must_use]
    pub fn days(now: SystemTime, days: u32) -> Validity {
        Validity {
            not_before: now.checked_sub(DAY).unwrap_or(UNIX_EPOCH),
            not_after: now + DAY * days,
        }
    }
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: String,
}

/// A key is not for logs.
impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued")
            .field("certificate_pem", &self.certificate_pem)
            .finish_non_exhaustive()
    }
}

/// Who signs certificates.
pub struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// A new authority with a new key.
    ///
    /// # Errors
    /// When the name cannot stand in a certificate.
    pub fn make(name: &str, validity: Validity) -> Result<(Authority, Issued), PkiError> {
        let key_pem = generate_key()?;
        let key = read_key(&key_pem)?;
        let mut params = params(name, &[], validity)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate_pem = params
            .self_signed(&key)
            .map_err(|error| cannot_sign(name, &error))?
            .pem();
        let authority = Authority {
            certificate_pem: certificate_pem.clone(),
            issuer: Issuer::new(params, key),
        };
        Ok((
            authority,
            Issued {
                certificate_pem,
                key_pem,
            },
        ))
    }

    /// An authority that was made before.
    ///
    /// # Errors
    /// When one of the texts cannot be read, or the certificate is no authority's.
    pub fn read(certificate_pem: &str, key_pem: &str) -> Result<Authority, PkiError> {
        let der = certificate_der(certificate_pem)?;
        let (name, is_authority) = crate::reading::authority(&der)?;
        if !is_authority {
            return Err(PkiError::NoAuthority(name));
        }
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, read_key(key_pem)?)
            .map_err(|error| PkiError::Certificate(error.to_string()))?;
        Ok(Authority {
            certificate_pem: certificate_pem.to_owned(),
            issuer,
        })
    }

    /// Its certificate, which those who trust it need.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A certificate and a new key for a client.
    ///
    /// # Errors
    /// When the name cannot stand in a certificate.
    pub fn issue_client(
        &self,
        name: &str,
        role: Role,
        validity: Validity,
    ) -> Result<Issued, PkiError> {
        let key_pem = generate_key()?;
        let key = read_key(&key_pem)?;
        let certificate = client_params(name, role, validity)?
            .signed_by(&key, &self.issuer)
            .map_err(|error| cannot_sign(name, &error))?;
        Ok(Issued {
            certificate_pem: certificate.pem(),
            key_pem,
        })
    }

    /// Signs a client's request. Only its key is taken from it: the name and the role are ours to say.
    ///
    /// # Errors
    /// When the request cannot be read or is not signed by its own key.
    pub fn sign_client(
        &self,
        request_pem: &str,
        name: &str,
        role: Role,
        validity: Validity,
    ) -> Result<String, PkiError> {
        let params = client_params(name, role, validity)?;
        Ok(self.sign(request_pem, name, params)?.pem())
    }

    /// Signs a node's request, for these names and addresses. Only its key is taken from it.
    ///
    /// # Errors
    /// When the request cannot be read, or a name cannot stand in a certificate.
    pub fn sign_node(
        &self,
        request_pem: &str,
        names: &[String],
        validity: Validity,
    ) -> Result<String, PkiError> {
        let name = names.first().map_or("adit-node", String::as_str);
        let params = node_params(names, validity)?;
        Ok(self.sign(request_pem, name, params)?.pem())
    }

    fn sign(
        &self,
        request_pem: &str,
        name: &str,
        params: CertificateParams,
    ) -> Result<Certificate, PkiError> {
        let mut request = CertificateSigningRequestParams::from_pem(request_pem)
            .map_err(|error| PkiError::Request(error.to_string()))?;
        request.params = params;
        request
            .signed_by(&self.issuer)
            .map_err(|error| cannot_sign(name, &error))
    }
}

/// A new private key, in PEM.
///
/// # Errors
/// When the system gives no random numbers.
pub fn generate_key() -> Result<String, PkiError> {
    let key = KeyPair::generate().map_err(|error| PkiError::Generate(error.to_string()))?;
    Ok(key.serialize_pem())
}

/// A certificate that a node makes for its own key; a client pins its fingerprint.
///
/// # Errors
/// When the key cannot be read or a name cannot stand in a certificate.
pub fn self_signed(
    key_pem: &str,
    names: &[String],
    validity: Validity,
) -> Result<String, PkiError> {
    let name = names.first().map_or("adit-node", String::as_str);
    let certificate = node_params(names, validity)?
        .self_signed(&read_key(key_pem)?)
        .map_err(|error| cannot_sign(name, &error))?;
    Ok(certificate.pem())
}

/// A request to sign the certificate of this key, for these names.
///
/// # Errors
/// When the key cannot be read or a name cannot stand in a certificate.
pub fn signing_request(key_pem: &str, names: &[String]) -> Result<String, PkiError> {
    let name = names.first().map_or("adit-node", String::as_str);
    let mut params = CertificateParams::new(names.to_vec()).map_err(|error| PkiError::Name {
        name: name.to_owned(),
        problem: error.to_string(),
    })?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let request = params
        .serialize_request(&read_key(key_pem)?)
        .map_err(|error| cannot_sign(name, &error))?;
    request
        .pem()
        .map_err(|error| PkiError::Request(error.to_string()))
}

pub(crate) fn read_key(pem: &str) -> Result<KeyPair, PkiError> {
    KeyPair::from_pem(pem).map_err(|error| PkiError::Key(error.to_string()))
}

fn cannot_sign(name: &str, error: &rcgen::Error) -> PkiError {
    PkiError::Sign {
        name: name.to_owned(),
        problem: error.to_string(),
    }
}

fn params(name: &str, names: &[String], validity: Validity) -> Result<CertificateParams, PkiError> {
    if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
        return Err(PkiError::Name {
            name: name.chars().take(80).collect(),
            problem: "it must have 1 to 64 printable characters".to_owned(),
        });
    }
    let mut params = CertificateParams::new(names.to_vec()).map_err(|error| PkiError::Name {
        name: names.join(", "),
        problem: error.to_string(),
    })?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let since = |time: SystemTime| {
        rcgen::date_time_ymd(1970, 1, 1) + time.duration_since(UNIX_EPOCH).unwrap_or_default()
    };
    params.not_before = since(validity.not_before);
    params.not_after = since(validity.not_after);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn client_params(
    name: &str,
    role: Role,
    validity: Validity,
) -> Result<CertificateParams, PkiError> {
    let mut params = params(name, &[], validity)?;
    params
        .distinguished_name
        .push(DnType::OrganizationName, role.organization());
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn node_params(names: &[String], validity: Validity) -> Result<CertificateParams, PkiError> {
    let name = names.first().map_or("adit-node", String::as_str);
    let mut params = params(name, names, validity)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Client;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_790_000_000)
    }

    fn year() -> Validity {
        Validity::days(now(), 365)
    }

    #[test]
    fn a_client_is_who_its_authority_says() {
        let (made, issued) = Authority::make("site", year()).unwrap();
        let again = Authority::read(&issued.certificate_pem, &issued.key_pem).unwrap();
        for authority in [made, again] {
            let client = authority
                .issue_client("alice", Role::Operator, year())
                .unwrap();
            let der = certificate_der(&client.certificate_pem).unwrap();
            let read = Client::read(&der).unwrap();
            assert_eq!((read.name.as_str(), read.role), ("alice", Role::Operator));
            assert_eq!(read.not_after, year().not_after);
            assert!(crate::is_key_of(&client.key_pem, &der).unwrap());
            assert!(!format!("{client:?}").contains("PRIVATE"));
        }
    }

    #[test]
    fn a_request_does_not_choose_its_own_role() {
        let (authority, _) = Authority::make("site", year()).unwrap();
        let key = read_key(&generate_key().unwrap()).unwrap();
        let mut wants = client_params("root", Role::Admin, year()).unwrap();
        wants.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        wants.use_authority_key_identifier_extension = false;
        let request = wants.serialize_request(&key).unwrap().pem().unwrap();
        let signed = authority
            .sign_client(&request, "bob", Role::Reader, year())
            .unwrap();
        let der = certificate_der(&signed).unwrap();
        let read = Client::read(&der).unwrap();
        assert_eq!((read.name.as_str(), read.role), ("bob", Role::Reader));
        assert!(!crate::reading::authority(&der).unwrap().1);
    }

    #[test]
    fn what_is_no_authority_does_not_sign() {
        let (authority, _) = Authority::make("site", year()).unwrap();
        let client = authority
            .issue_client("alice", Role::Admin, year())
            .unwrap();
        let error = Authority::read(&client.certificate_pem, &client.key_pem).unwrap_err();
        assert!(matches!(error, PkiError::NoAuthority(name) if name == "alice"));
    }

    #[test]
    fn names_are_checked() {
        let long = "x".repeat(65);
        for name in ["", "a\nb", long.as_str()] {
            let error = Authority::make(name, year()).unwrap_err();
            assert!(matches!(error, PkiError::Name { .. }), "{name:?}: {error}");
        }
        assert!(self_signed("no key", &["n".into()], year()).is_err());
        let key = generate_key().unwrap();
        assert!(self_signed(&key, &["ä".into()], year()).is_err());
    }

    #[test]
    fn a_nodes_request_is_signed_for_its_key() {
        let (authority, _) = Authority::make("site", year()).unwrap();
        let key = generate_key().unwrap();
        let names = ["stor-1".to_owned(), "192.0.2.1".to_owned()];
        let request = signing_request(&key, &names).unwrap();
        let signed = authority.sign_node(&request, &names, year()).unwrap();
        let der = certificate_der(&signed).unwrap();
        assert!(crate::is_key_of(&key, &der).unwrap());
        assert!(!crate::is_key_of(&generate_key().unwrap(), &der).unwrap());
        assert!(authority.sign_node("nonsense", &names, year()).is_err());
    }
}
