//! An agent on loopback, a site's authority, and a PID 1 that answers as the test wants.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent::clock::ManualClock;
use agent::endpoint::Endpoint;
use agent::listener::{Limits, incoming};
use agent::node::{Node, Paths, Wanted};
use agent::services::Services;
use init::control::{Answer, Request};
use init::ring::Line;
use init::supervisor::ServiceReport;
use pki::{Authority, Issued, Validity};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, UnixListener};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

pub(crate) const NOW_S: u64 = 1_790_000_000;

/// Days for what is judged by a client, which goes by the real clock.
pub(crate) const YEARS: u32 = 36_500;

pub(crate) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW_S)
}

pub(crate) struct Running {
    pub(crate) node: Arc<Node>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) port: u16,
    pub(crate) folder: tempfile::TempDir,
}

pub(crate) async fn start(limits: Limits) -> Running {
    start_in(tempfile::tempdir().unwrap(), limits).await
}

/// A start with what is in a folder: one that follows another while the power is on.
pub(crate) async fn start_in(folder: tempfile::TempDir, limits: Limits) -> Running {
    let paths = Paths {
        state_dir: folder.path().join("state"),
        init_socket: folder.path().join("init.sock"),
        aditd_socket: folder.path().join("aditd.sock"),
        root: folder.path().to_owned(),
    };
    let clock = Arc::new(ManualClock::new(NOW_S, true));
    let node = Node::start(paths, clock.clone()).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let routes = Services::new(node.clone()).routes().unwrap();
    let endpoint = Endpoint::new(node.clone(), routes);
    let incoming = incoming(listener, node.clone(), limits);
    tokio::spawn(tonic::transport::Server::builder().serve_with_incoming(endpoint, incoming));
    Running {
        node,
        clock,
        port,
        folder,
    }
}

pub(crate) struct Site {
    pub(crate) authority: Authority,
    pub(crate) ca_pem: String,
}

pub(crate) fn site() -> Site {
    let (authority, issued) = Authority::make("site", Validity::days(now(), YEARS)).unwrap();
    Site {
        authority,
        ca_pem: issued.certificate_pem,
    }
}

impl Running {
    /// Configures the node for an authority, whose certificate the node shows too.
    pub(crate) async fn configure(&self, site: &Site) {
        let (request, mut names) = self.node.signing_request(None).unwrap();
        names.push("localhost".to_owned());
        let signed = site
            .authority
            .sign_node(&request, &names, Validity::days(now(), YEARS));
        let wanted = Wanted {
            document: format!("[agent.api]\nca = '''{}'''\n", site.ca_pem),
            certificate_pem: Some(signed.unwrap()),
            ..Wanted::default()
        };
        self.node.configure(&wanted, false).await.unwrap();
    }

    pub(crate) async fn connect(
        &self,
        site: &Site,
        client: Option<&Issued>,
    ) -> Result<Channel, tonic::transport::Error> {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&site.ca_pem))
            .domain_name("localhost");
        if let Some(client) = client {
            tls = tls.identity(Identity::from_pem(&client.certificate_pem, &client.key_pem));
        }
        let uri = format!("https://127.0.0.1:{}", self.port);
        Channel::from_shared(uri)
            .unwrap()
            // A reader that does not read is felt after little.
            .initial_stream_window_size(65_535)
            .tls_config(tls)
            .unwrap()
            .connect()
            .await
    }
}

/// Most lines that the ring of [`FakeInit`] keeps where a test does not say.
pub(crate) const RING_LINES: usize = 500;

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<Line>,
    printed: u64,
    handed_out: usize,
}

/// A PID 1 with one service, whose output the test prints.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeInit {
    ring: Arc<Mutex<Ring>>,
    ring_lines: usize,
    /// The whole document, where there is one.
    document: Option<String>,
}

impl FakeInit {
    /// Answers at `path` for as long as the runtime runs.
    pub(crate) fn serve(path: &Path) -> FakeInit {
        FakeInit::with_ring(path, RING_LINES)
    }

    /// The same, with so many lines in its ring.
    pub(crate) fn with_ring(path: &Path, ring_lines: usize) -> FakeInit {
        let fake = FakeInit {
            ring_lines,
            ..FakeInit::default()
        };
        fake.answers_at(path)
    }

    /// One that has a document from another source than the agent.
    pub(crate) fn configured(path: &Path, document: &str) -> FakeInit {
        let fake = FakeInit {
            document: Some(document.to_owned()),
            ..FakeInit::default()
        };
        fake.answers_at(path)
    }

    fn answers_at(self, path: &Path) -> FakeInit {
        let fake = self;
        let listener = UnixListener::bind(path).unwrap();
        let serving = fake.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (reader, mut writer) = stream.into_split();
                let mut line = String::new();
                // Who asks may have gone away again.
                let _ = BufReader::new(reader).read_line(&mut line).await;
                if let Ok(request) = serde_json::from_str(&line) {
                    let mut answer = serde_json::to_vec(&serving.answer(request)).unwrap();
                    answer.push(b'\n');
                    let _ = writer.write_all(&answer).await;
                }
            }
        });
        fake
    }

    /// Prints lines of 4 KiB that begin with their number.
    pub(crate) fn print(&self, count: usize) {
        let mut ring = self.ring.lock().unwrap();
        for _ in 0..count {
            ring.printed += 1;
            let seq = ring.printed;
            let text = format!("{seq} {}", "x".repeat(4096));
            ring.lines.push_back(Line {
                seq,
                unix_ms: 1,
                text,
            });
        }
        let gone = ring.lines.len().saturating_sub(self.ring_lines);
        ring.lines.drain(..gone);
    }

    /// Lines that somebody got.
    pub(crate) fn handed_out(&self) -> usize {
        self.ring.lock().unwrap().handed_out
    }

    fn answer(&self, request: Request) -> Answer {
        let mut ring = self.ring.lock().unwrap();
        match request {
            Request::Logs {
                service,
                after,
                max,
            } if service == "aditd" => {
                let first = ring.lines.front().map_or(0, |line| line.seq);
                let new = ring.lines.iter().filter(|line| line.seq > after);
                let lines: Vec<Line> = new.take(max).cloned().collect();
                ring.handed_out += lines.len();
                Answer::Logs {
                    lines,
                    lost: first.saturating_sub(after + 1),
                }
            }
            Request::Configuration | Request::Configure { .. } if self.document.is_some() => {
                Answer::Configuration {
                    document: self.document.clone().unwrap_or_default(),
                    values: Vec::new(),
                    problems: Vec::new(),
                    later: Vec::new(),
                }
            }
            Request::Services => Answer::Services {
                services: vec![service()],
            },
            other => Answer::Error {
                text: format!("there is nothing for {other:?}"),
            },
        }
    }
}

fn service() -> ServiceReport {
    let json = serde_json::json!({
        "name": "aditd", "state": "ready", "text": "ready", "pid": 7, "starts": 1, "crashes": 0,
        "for_ms": 1, "health": null,
    });
    serde_json::from_value(json).unwrap()
}
