//! The configuration from init's `config_url`: fetched after the start until it holds.
//!
//! Bounds: 256 KiB, 30 s for all of it, three redirects, one try at a time. After a try that failed
//! the next waits longer, up to a minute; an alert tells why. What a person has applied is never
//! replaced.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use init::identity::Identity;
use tokio_rustls::rustls::crypto::ring;
use ureq::tls::{PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

use crate::config::DOCUMENT_BYTES_MAX;
use crate::error::chain;
use crate::keep::Keeping;
use crate::node::{Alert, ConfigureError, Node, Wanted};

const TIMEOUT: Duration = Duration::from_secs(30);
const REDIRECTS_MAX: u32 = 3;
/// How long what outlived the power is waited for.
const RESTORED_WITHIN: Duration = Duration::from_secs(60);
const PAUSE_MIN: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Why a document was not fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// `https://` without an authority.
    #[error("https needs agent.fetch.ca, the authority of the server, in PEM")]
    NoAuthority,
    /// The authority is of no use.
    #[error("agent.fetch.ca is of no use")]
    Authority(#[source] Box<ureq::Error>),
    /// The server refuses.
    #[error("the server answers with status {0}")]
    Status(u16),
    /// The document is too long.
    #[error("the document is longer than {DOCUMENT_BYTES_MAX} bytes")]
    TooLong,
    /// It did not come.
    #[error("the document did not come")]
    Http(#[source] Box<ureq::Error>),
}

/// Fetches a document. Blocks, 30 s at most.
///
/// # Errors
/// When it does not come, or not as it should.
pub fn fetch(url: &str, ca_pem: Option<&str>) -> Result<String, FetchError> {
    let roots = match ca_pem {
        Some(pem) => authorities(pem)?,
        None if url.starts_with("https://") => return Err(FetchError::NoAuthority),
        None => Vec::new(),
    };
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .root_certs(RootCerts::new_with_certs(&roots))
        .build();
    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .max_redirects(REDIRECTS_MAX)
        // A redirect must not lead from a server that was checked to one that is not.
        .https_only(url.starts_with("https://"))
        .proxy(None)
        .user_agent(concat!("adit-agent/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls)
        .build()
        .new_agent();
    let failed = |error| match error {
        ureq::Error::StatusCode(status) => FetchError::Status(status),
        ureq::Error::BodyExceedsLimit(_) => FetchError::TooLong,
        error => FetchError::Http(Box::new(error)),
    };
    let mut answer = agent.get(url).call().map_err(failed)?;
    let body = answer.body_mut().with_config();
    // One byte more than a document may have tells that it is too long.
    let text = body.limit(DOCUMENT_BYTES_MAX as u64 + 1).read_to_string();
    let text = text.map_err(failed)?;
    if text.len() > DOCUMENT_BYTES_MAX {
        return Err(FetchError::TooLong);
    }
    Ok(text)
}

fn authorities(pem: &str) -> Result<Vec<ureq::tls::Certificate<'static>>, FetchError> {
    let failed = |error| FetchError::Authority(Box::new(error));
    let mut found = Vec::new();
    for item in parse_pem(pem.as_bytes()) {
        if let PemItem::Certificate(certificate) = item.map_err(failed)? {
            found.push(certificate);
        }
    }
    if found.is_empty() {
        return Err(failed(ureq::Error::Tls("there is no certificate in it")));
    }
    Ok(found)
}

/// Fills in `${uuid}`, `${serial}`, `${mac}` and `${hostname}`; what is not known is empty.
#[must_use]
pub fn fill_in(url: &str, identity: &Identity, mac: &str) -> String {
    [
        ("${uuid}", identity.uuid.as_str()),
        ("${serial}", identity.serial.as_deref().unwrap_or_default()),
        ("${mac}", mac),
        ("${hostname}", &identity.hostname),
    ]
    .iter()
    .fold(url.to_owned(), |url, (name, value)| {
        url.replace(name, &escaped(value))
    })
}

/// A value as a part of a path (RFC 3986, "unreserved"); a MAC address keeps its colons.
fn escaped(value: &str) -> String {
    let mut text = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// Fetches and applies, until a configuration holds.
pub async fn keep(node: Arc<Node>) {
    // With what outlived the power the node has its key again, and may have been configured by a person.
    let mut keeping = node.keeping.subscribe();
    let is_asked =
        |keeping: &Keeping| node.has_asked() || matches!(keeping, Keeping::Unreadable(_));
    let asked = keeping.wait_for(is_asked);
    let _ = tokio::time::timeout(RESTORED_WITHIN, asked).await;
    if node.current().config_url.is_none() {
        return;
    }
    // Without an address there is nobody to ask. Nobody sends any more when the program ends.
    let mut network = node.network.subscribe();
    let _ = network
        .wait_for(|status| !status.addresses.is_empty())
        .await;
    let mut pause = PAUSE_MIN;
    let mut alert: Option<Alert<'_>> = None;
    loop {
        let current = node.current();
        let by_a_person = current.is_configured && current.fetched_from.is_none();
        let url = match &current.config_url {
            Some(url) if !by_a_person => url.clone(),
            _ => return,
        };
        let url = fill_in(
            &url,
            &node.init.identity().await.unwrap_or_default(),
            &mac(&node),
        );
        let problem = match once(&node, &url, current.config.fetch.ca.clone()).await {
            Ok(()) => return,
            Err(problem) => format!("no configuration from {url}: {problem}"),
        };
        if alert.as_ref().is_none_or(|alert| alert.text != problem) {
            alert = Some(node.raise(problem));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn once(node: &Arc<Node>, url: &str, ca_pem: Option<String>) -> Result<(), String> {
    let from = url.to_owned();
    let fetched = tokio::task::spawn_blocking(move || fetch(&from, ca_pem.as_deref()));
    let document = fetched
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| chain(&error))?;
    let wanted = Wanted {
        document,
        fetched_from: Some(url.to_owned()),
        ..Wanted::default()
    };
    match node.configure(&wanted, false).await {
        Ok(_) => Ok(()),
        Err(ConfigureError::Invalid(violations)) => {
            let all: Vec<String> = violations.iter().map(ToString::to_string).collect();
            Err(all.join("; "))
        }
        Err(error) => Err(chain(&error)),
    }
}

/// The hardware address of the management interface.
fn mac(node: &Node) -> String {
    let interface = node.network.borrow().interface.clone();
    let folder = node.paths.root.join("sys/class/net").join(interface);
    std::fs::read_to_string(folder.join("address"))
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// Serves one answer to each of `answers.len()` connections; where it is.
    fn server(answers: Vec<Vec<u8>>) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    request.push(byte[0]);
                }
                let text = String::from_utf8(request).unwrap();
                asked.push(text.lines().next().unwrap().to_owned());
                // A client that has read enough closes.
                let _ = stream.write_all(&answer);
            }
            asked
        });
        (url, serving)
    }

    fn ok(body: &[u8]) -> Vec<u8> {
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        answer.push_str(std::str::from_utf8(body).unwrap());
        answer.into_bytes()
    }

    #[test]
    fn a_document_is_fetched_over_a_redirect() {
        let moved = b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\n\
                      Connection: close\r\n\r\n";
        let (url, serving) = server(vec![moved.to_vec(), ok(b"hostname = 'a'\n")]);
        assert_eq!(
            fetch(&format!("{url}/here"), None).unwrap(),
            "hostname = 'a'\n"
        );
        assert_eq!(
            serving.join().unwrap(),
            ["GET /here HTTP/1.1", "GET /there HTTP/1.1"]
        );
    }

    #[test]
    fn a_document_that_is_too_long_or_not_there_is_an_error() {
        let endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
        let endless = [endless, chunk.repeat(8).into_bytes()].concat();
        let missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec();
        let binary = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xfe".to_vec();
        let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhost".to_vec();
        let answers = vec![
            ok(&vec![b'x'; DOCUMENT_BYTES_MAX]),
            ok(&vec![b'x'; DOCUMENT_BYTES_MAX + 1]),
            endless,
            missing,
            binary,
            cut,
            b"nonsense\r\n\r\n".to_vec(),
        ];
        let (url, serving) = server(answers);
        assert_eq!(fetch(&url, None).unwrap().len(), DOCUMENT_BYTES_MAX);
        for _ in 0..2 {
            let error = fetch(&url, None).unwrap_err();
            assert!(matches!(error, FetchError::TooLong), "{error:?}");
        }
        let error = fetch(&url, None).unwrap_err();
        assert!(matches!(error, FetchError::Status(404)), "{error:?}");
        for what in ["no text", "cut short", "no HTTP"] {
            let error = fetch(&url, None).expect_err(what);
            assert!(matches!(error, FetchError::Http(_)), "{what}: {error:?}");
        }
        serving.join().unwrap();
    }

    #[test]
    fn https_needs_the_authority_of_the_server() {
        let url = "https://127.0.0.1:1/x";
        assert!(matches!(fetch(url, None), Err(FetchError::NoAuthority)));
        for pem in ["", "nonsense", "-----BEGIN CERTIFICATE-----\n!\n"] {
            let error = fetch(url, Some(pem)).unwrap_err();
            assert!(matches!(error, FetchError::Authority(_)), "{error:?}");
        }
    }

    #[test]
    fn an_address_is_filled_in() {
        let identity = Identity {
            hostname: "stor-1".into(),
            uuid: "1234".into(),
            serial: Some("A/B 1".into()),
            ..Identity::default()
        };
        let url = "http://h/${uuid}/${serial}/${mac}/${hostname}/${other}";
        assert_eq!(
            fill_in(url, &identity, "52:54:00:01:02:03"),
            "http://h/1234/A%2FB%201/52:54:00:01:02:03/stor-1/${other}"
        );
    }
}
