//! The way to the server.

use std::path::PathBuf;
use std::time::Duration;

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::contexts::Entry;
use crate::failure::Failure;
use crate::pinned::Pinned;

/// Where the server is and who we are.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    /// `unix:PATH` or `tcp:ADDRESS:PORT`.
    pub(crate) uri: String,
    /// Certificate authority of the server's certificate.
    pub(crate) ca: Option<Pem>,
    /// Our certificate.
    pub(crate) cert: Option<Pem>,
    /// The key of our certificate.
    pub(crate) key: Option<Pem>,
    /// Name in the server's certificate, when it is not the address.
    pub(crate) server_name: Option<String>,
    /// SHA-256 of the server's certificate: it is this one, whoever signed it.
    pub(crate) fingerprint: Option<String>,
    /// The code of a node that is not configured.
    pub(crate) code: Option<String>,
}

/// A certificate or key.
#[derive(Clone)]
pub(crate) enum Pem {
    File(PathBuf),
    Text(String),
}

/// A key is not for logs.
impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Pem::File(path) => write!(f, "{}", path.display()),
            Pem::Text(_) => f.write_str("PEM"),
        }
    }
}

impl Pem {
    pub(crate) fn read(&self) -> Result<String, Failure> {
        match self {
            Pem::Text(text) => Ok(text.clone()),
            Pem::File(path) => std::fs::read_to_string(path).map_err(|source| Failure::File {
                path: path.display().to_string(),
                source,
            }),
        }
    }
}

impl Server {
    /// The server of a context.
    pub(crate) fn of_context(context: &Entry) -> Server {
        let pem = |text: &Option<String>| text.clone().map(Pem::Text);
        Server {
            uri: format!("tcp:{}", context.endpoint),
            ca: pem(&context.ca),
            cert: pem(&context.cert),
            key: pem(&context.key),
            server_name: context.server_name.clone(),
            fingerprint: context.fingerprint.clone(),
            code: context.code.clone(),
        }
    }

    /// Connects, or says why that cannot be.
    pub(crate) async fn connect(&self) -> Result<Channel, Failure> {
        let connected = match &self.fingerprint {
            Some(fingerprint) => {
                let identity = match (&self.cert, &self.key) {
                    (Some(cert), Some(key)) => Some((cert.read()?, key.read()?)),
                    _ => None,
                };
                let connector = Pinned::new(fingerprint, identity)?;
                let plain = self.plain()?.connect_timeout(Duration::from_secs(10));
                plain.connect_with_connector(connector).await
            }
            None => {
                let endpoint = self.endpoint()?.connect_timeout(Duration::from_secs(10));
                endpoint.connect().await
            }
        };
        connected.map_err(|error| Failure::Unreachable {
            server: self.uri.clone(),
            reason: innermost(&error),
        })
    }

    /// The address without TLS: the connector that pins a certificate adds it.
    fn plain(&self) -> Result<Endpoint, Failure> {
        let address = self.uri.strip_prefix("tcp:").unwrap_or(&self.uri);
        Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| Failure::Usage(format!("{address} is no ADDRESS:PORT")))
    }

    fn endpoint(&self) -> Result<Endpoint, Failure> {
        let usage = |problem: &str| Failure::Usage(format!("--server {}: {problem}", self.uri));
        if let Some(path) = self.uri.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            let path = std::path::absolute(path)
                .map_err(|_| usage("a socket needs a path, as in unix:/run/adit.sock"))?;
            return Endpoint::from_shared(format!("unix:{}", path.display()))
                .map_err(|_| usage("this is no path of a socket"));
        }
        let Some(address) = self.uri.strip_prefix("tcp:") else {
            return Err(usage("write unix:PATH or tcp:ADDRESS:PORT"));
        };
        let address = address.strip_prefix("//").unwrap_or(address);
        let scheme = if self.ca.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
            .map_err(|_| usage("this is no ADDRESS:PORT"))?;
        let Some(ca) = &self.ca else {
            if self.cert.is_some() || self.key.is_some() {
                return Err(Failure::Usage("--cert and --key need --ca".to_owned()));
            }
            return Ok(endpoint);
        };
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca.read()?));
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name);
        }
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                tls = tls.identity(Identity::from_pem(cert.read()?, key.read()?));
            }
            (None, None) => {}
            _ => return Err(Failure::Usage("--cert and --key go together".to_owned())),
        }
        endpoint
            .tls_config(tls)
            .map_err(|error| Failure::Usage(innermost(&error)))
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(uri: &str) -> Server {
        Server {
            uri: uri.into(),
            ca: None,
            cert: None,
            key: None,
            server_name: None,
            fingerprint: None,
            code: None,
        }
    }

    #[test]
    fn addresses_are_checked() {
        for good in [
            "unix:/run/x.sock",
            "unix:///run/x.sock",
            "tcp:127.0.0.1:1",
            "tcp://[::1]:1",
        ] {
            assert!(server(good).endpoint().is_ok(), "{good}");
        }
        for bad in ["", "unix:", "127.0.0.1:1", "http://a", "tcp:a b"] {
            assert!(
                matches!(server(bad).endpoint(), Err(Failure::Usage(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn certificate_and_key_go_together() {
        let mut server = server("tcp:127.0.0.1:1");
        server.cert = Some(Pem::File("c.pem".into()));
        assert!(matches!(server.endpoint(), Err(Failure::Usage(_))));
    }
}
