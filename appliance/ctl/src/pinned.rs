//! TLS to a server whose certificate is known by its fingerprint.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

use crate::failure::Failure;

/// Connects to the server with one certificate, and to no other.
#[derive(Debug, Clone)]
pub(crate) struct Pinned {
    config: Arc<ClientConfig>,
}

impl Pinned {
    /// `identity` is our certificate and its key, PEM.
    pub(crate) fn new(
        fingerprint: &str,
        identity: Option<(String, String)>,
    ) -> Result<Pinned, Failure> {
        let wrong = |problem: String| Failure::Usage(problem);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Verifier {
            fingerprint: canonical(fingerprint)?,
            provider: provider.clone(),
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| wrong(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = CertificateDer::pem_slice_iter(cert.as_bytes())
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|error| wrong(format!("our certificate: {error}")))?;
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
                    .map_err(|error| wrong(format!("our key: {error}")))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| wrong(format!("our certificate: {error}")))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Pinned {
            config: Arc::new(config),
        })
    }
}

/// 64 hexadecimal digits, with or without colons, in lower case without.
pub(crate) fn canonical(fingerprint: &str) -> Result<String, Failure> {
    let digits: String = fingerprint
        .chars()
        .filter(|c| *c != ':' && !c.is_whitespace())
        .map(|c| c.to_ascii_lowercase())
        .collect();
    if digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(digits);
    }
    Err(Failure::Usage(
        "--fingerprint must be a SHA-256: 64 hexadecimal digits".to_owned(),
    ))
}

impl tower_service::Service<http::Uri> for Pinned {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: http::Uri) -> Self::Future {
        let connector = TlsConnector::from(self.config.clone());
        Box::pin(async move {
            let host = uri
                .host()
                .unwrap_or_default()
                .trim_matches(['[', ']'])
                .to_owned();
            let stream =
                TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(50051))).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(host).map_err(std::io::Error::other)?;
            Ok(TokioIo::new(connector.connect(name, stream).await?))
        })
    }
}

#[derive(Debug)]
struct Verifier {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = pki::sha256_hex(end_entity);
        if shown == self.fingerprint {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General(format!(
            "the server shows another certificate, with the fingerprint {shown}; compare it with \
             the console"
        )))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_as_the_console_writes_it() {
        let digits = "ab".repeat(32);
        assert_eq!(canonical(&["AB"; 32].join(":")).unwrap(), digits);
        assert_eq!(
            canonical(&format!("{}\n {}", &digits[..32], &digits[32..])).unwrap(),
            digits
        );
        for wrong in ["", "ab:cd", &"g".repeat(64), &"a".repeat(63)] {
            assert!(canonical(wrong).is_err(), "{wrong}");
        }
    }
}
