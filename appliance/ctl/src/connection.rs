//! The way to the server.

use std::path::PathBuf;
use std::time::Duration;

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::failure::Failure;

/// Where the server is and who we are.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    /// `unix:PATH` or `tcp:ADDRESS:PORT`.
    pub(crate) uri: String,
    /// Certificate authority of the server's certificate.
    pub(crate) ca: Option<PathBuf>,
    /// Our certificate.
    pub(crate) cert: Option<PathBuf>,
    /// The key of our certificate.
    pub(crate) key: Option<PathBuf>,
    /// Name in the server's certificate, when it is not the address.
    pub(crate) server_name: Option<String>,
}

impl Server {
    /// Connects, or says why that cannot be.
    pub(crate) async fn connect(&self) -> Result<Channel, Failure> {
        let endpoint = self.endpoint()?.connect_timeout(Duration::from_secs(10));
        endpoint
            .connect()
            .await
            .map_err(|error| Failure::Unreachable {
                server: self.uri.clone(),
                reason: innermost(&error),
            })
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
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name);
        }
        match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
            }
            (None, None) => {}
            _ => return Err(Failure::Usage("--cert and --key go together".to_owned())),
        }
        endpoint
            .tls_config(tls)
            .map_err(|error| Failure::Usage(innermost(&error)))
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|source| Failure::File {
        path: path.display().to_string(),
        source,
    })
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
        server.cert = Some("c.pem".into());
        assert!(matches!(server.endpoint(), Err(Failure::Usage(_))));
    }
}
