//! TLS as the agent wants it: version 1.3 only, client certificates judged by a clock that may be
//! wrong, nothing resumed.

use std::sync::Arc;

use tokio_rustls::rustls;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};

use crate::clock::Clock;
use crate::error::AgentError;

/// The node's certificate and key.
#[derive(Clone)]
pub struct Identity {
    /// PEM; the node's own first, then those that signed it.
    pub certificate_pem: String,
    /// PEM.
    pub key_pem: String,
    /// SHA-256 of the certificate.
    pub fingerprint: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// A certificate and its key.
    ///
    /// # Errors
    /// When they do not belong together or cannot be read.
    pub fn new(certificate_pem: String, key_pem: String) -> Result<Identity, AgentError> {
        let der = pki::certificate_der(&certificate_pem)?;
        if !pki::is_key_of(&key_pem, &der)? {
            let problem = "the certificate was not made for the node's key; \
                           have its signing request signed";
            return Err(AgentError::Tls(problem.to_owned()));
        }
        Ok(Identity {
            fingerprint: pki::fingerprint(&der),
            certificate_pem,
            key_pem,
        })
    }
}

/// Makes the configuration of a server that shows `identity` and lets in whom `client_ca_pem` signed;
/// everybody when that is `None`.
///
/// # Errors
/// When a certificate or key is of no use.
pub fn server_config(
    identity: &Identity,
    client_ca_pem: Option<&str>,
    clock: Arc<dyn Clock>,
) -> Result<Arc<ServerConfig>, AgentError> {
    let wrong = |what: &'static str| {
        move |error: &dyn std::fmt::Display| AgentError::Tls(format!("{what}: {error}"))
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates(&identity.certificate_pem)?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())
        .map_err(|error| wrong("the node's key")(&error))?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| wrong("TLS 1.3")(&error))?;
    let builder = match client_ca_pem {
        None => builder.with_no_client_auth(),
        Some(pem) => builder.with_client_cert_verifier(verifier(pem, provider, clock)?),
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| wrong("the node's certificate")(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would be judged by an authority or a clock of the past.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, AgentError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| AgentError::Tls(format!("a certificate: {error}")))
}

fn verifier(
    ca_pem: &str,
    provider: Arc<CryptoProvider>,
    clock: Arc<dyn Clock>,
) -> Result<Arc<dyn ClientCertVerifier>, AgentError> {
    let wrong = |problem: String| AgentError::Tls(format!("the authority of clients: {problem}"));
    let mut roots = RootCertStore::empty();
    for der in certificates(ca_pem)? {
        roots.add(der).map_err(|error| wrong(error.to_string()))?;
    }
    let chain = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| wrong(error.to_string()))?;
    Ok(Arc::new(Verifier { chain, clock }))
}

/// Judges client certificates by our clock. While nobody has set it, it may stand at the time when
/// the program was built, and no certificate is refused for being too new.
#[derive(Debug)]
struct Verifier {
    chain: Arc<dyn ClientCertVerifier>,
    clock: Arc<dyn Clock>,
}

impl ClientCertVerifier for Verifier {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let client = pki::Client::read(end_entity).map_err(|error| {
            tracing::warn!(%error, "a client was refused");
            rustls::Error::InvalidCertificate(
                rustls::CertificateError::ApplicationVerificationFailure,
            )
        })?;
        let mut now = self.clock.now();
        if !self.clock.is_trusted() {
            now = now.max(client.not_before);
        }
        let since = now
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        self.chain
            .verify_client_cert(end_entity, intermediates, UnixTime::since_unix_epoch(since))
            .inspect_err(
                |error| tracing::warn!(client = client.name, %error, "a client was refused"),
            )
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Whether a text can be the authority of clients.
///
/// # Errors
/// When it cannot.
pub fn verify_authority(ca_pem: &str, clock: Arc<dyn Clock>) -> Result<(), AgentError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    verifier(ca_pem, provider, clock).map(drop)
}
