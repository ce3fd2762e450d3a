//! The way to PID 1: its control socket ([`init::control`]), without blocking. This is the one place
//! that talks to it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use init::config::{Problem, Value};
use init::control::{Answer, Request};
use init::identity::Identity;
use init::ring::Line;
use init::status::Status;
use init::supervisor::ServiceReport;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use crate::error::AgentError;

/// How long an answer may take. Applying a plan can be seconds.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Longest answer in bytes.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// What holds of the configuration, and what does not.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InitConfiguration {
    /// The whole document as it holds.
    pub document: String,
    /// What somebody said, and who.
    pub values: Vec<Value>,
    /// What does not hold.
    pub problems: Vec<Problem>,
    /// What takes effect later.
    pub later: Vec<String>,
}

/// The way to init. Each call is a connection: init closes those that are silent.
#[derive(Debug, Clone)]
pub struct InitClient {
    path: PathBuf,
}

impl InitClient {
    /// A client of the socket at `path`; nothing is opened yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> InitClient {
        InitClient { path: path.into() }
    }

    /// Whether there is a socket: whether this is an appliance.
    #[must_use]
    pub fn is_there(&self) -> bool {
        Path::exists(&self.path)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// When init is not there, does not answer in 30 s, or refuses ([`AgentError::Refused`]).
    pub async fn call(&self, request: &Request) -> Result<Answer, AgentError> {
        let failed = |problem: String| AgentError::Init {
            path: self.path.display().to_string(),
            problem,
        };
        let answer = tokio::time::timeout(TIMEOUT, self.exchange(request))
            .await
            .map_err(|_| failed("did not answer in 30 s".to_owned()))?
            .map_err(|error| failed(format!("does not answer: {error}; is this an appliance?")))?;
        match serde_json::from_str(&answer) {
            Ok(Answer::Error { text }) => Err(AgentError::Refused(text)),
            Ok(answer) => Ok(answer),
            Err(error) => Err(failed(format!(
                "gave an answer that is not understood: {error}"
            ))),
        }
    }

    async fn exchange(&self, request: &Request) -> std::io::Result<String> {
        let mut stream = UnixStream::connect(&self.path).await?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut answer = String::new();
        let mut reader = BufReader::new(stream.take(ANSWER_BYTES_MAX));
        reader.read_line(&mut answer).await?;
        if answer.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(answer)
    }

    /// Every status, by group.
    ///
    /// # Errors
    /// As [`InitClient::call`].
    pub async fn status(&self) -> Result<BTreeMap<String, Vec<Status>>, AgentError> {
        match self.call(&Request::Status).await? {
            Answer::Status { groups } => Ok(groups),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Who this node is.
    ///
    /// # Errors
    /// As [`InitClient::call`].
    pub async fn identity(&self) -> Result<Identity, AgentError> {
        match self.call(&Request::Identity).await? {
            Answer::Identity { identity } => Ok(identity),
            other => Err(self.unexpected(&other)),
        }
    }

    /// The services.
    ///
    /// # Errors
    /// As [`InitClient::call`].
    pub async fn services(&self) -> Result<Vec<ServiceReport>, AgentError> {
        match self.call(&Request::Services).await? {
            Answer::Services { services } => Ok(services),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Lines of a service after number `after`, and how many are gone.
    ///
    /// # Errors
    /// As [`InitClient::call`].
    pub async fn logs(
        &self,
        service: &str,
        after: u64,
        max: usize,
    ) -> Result<(Vec<Line>, u64), AgentError> {
        let request = Request::Logs {
            service: service.to_owned(),
            after,
            max,
        };
        match self.call(&request).await? {
            Answer::Logs { lines, lost } => Ok((lines, lost)),
            other => Err(self.unexpected(&other)),
        }
    }

    /// What holds of the configuration.
    ///
    /// # Errors
    /// As [`InitClient::call`].
    pub async fn configuration(&self) -> Result<InitConfiguration, AgentError> {
        self.configured(&Request::Configuration).await
    }

    /// Gives init a document, or asks what it would make of it.
    ///
    /// # Errors
    /// As [`InitClient::call`].
    pub async fn configure(
        &self,
        document: &str,
        dry_run: bool,
    ) -> Result<InitConfiguration, AgentError> {
        let document = document.to_owned();
        self.configured(&Request::Configure { document, dry_run })
            .await
    }

    async fn configured(&self, request: &Request) -> Result<InitConfiguration, AgentError> {
        match self.call(request).await? {
            Answer::Configuration {
                document,
                values,
                problems,
                later,
            } => Ok(InitConfiguration {
                document,
                values,
                problems,
                later,
            }),
            other => Err(self.unexpected(&other)),
        }
    }

    fn unexpected(&self, answer: &Answer) -> AgentError {
        let text: String = format!("{answer:?}").chars().take(200).collect();
        AgentError::Init {
            path: self.path.display().to_string(),
            problem: format!("gave another answer than was asked for: {text}"),
        }
    }
}
