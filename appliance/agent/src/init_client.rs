//! The way to PID 1: JSON lines over its control socket. This is the one place that knows them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use crate::error::AgentError;

/// How long an answer may take. Applying a plan can be seconds.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Longest answer in bytes.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// What is asked of init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
pub enum Request {
    /// Every status, by group.
    Status,
    /// Who this node is.
    Identity,
    /// The services.
    Services,
    /// What a service printed after line `after`.
    Logs {
        /// The service.
        service: String,
        /// Number of the last line that is known; 0: none.
        after: u64,
        /// Most lines.
        max: usize,
    },
    /// Ends a service and starts it again.
    Restart {
        /// The service.
        service: String,
    },
    /// What holds of the configuration.
    Configuration,
    /// Takes a document as the agent's part of the configuration.
    Configure {
        /// TOML.
        document: String,
        /// Only say what would hold.
        dry_run: bool,
    },
    /// Looks at the hardware again and does what is to be done.
    Prepare,
    /// The agent is well: the watchdog may be fed.
    Health {
        /// The service.
        service: String,
        /// Whether it is well.
        ok: bool,
        /// In a sentence.
        text: String,
    },
    /// The clock was set from a trusted source.
    TimeSynced {
        /// Which.
        by: String,
    },
    /// Ends everything in order, and the power.
    Poweroff,
    /// Ends everything in order, and starts again.
    Reboot,
}

/// What init answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// Done, or under way.
    Done {
        /// What.
        text: String,
    },
    /// Not done.
    Error {
        /// Why.
        text: String,
    },
    /// Statuses by group.
    Status {
        /// Groups.
        groups: BTreeMap<String, Vec<InitStatus>>,
    },
    /// Who this node is.
    Identity {
        /// It.
        identity: InitIdentity,
    },
    /// The services.
    Services {
        /// In the order of init's table.
        services: Vec<InitService>,
    },
    /// Lines that a service printed.
    Logs {
        /// The oldest first.
        lines: Vec<InitLine>,
        /// Lines that are gone.
        lost: u64,
    },
    /// The configuration.
    Configuration(InitConfiguration),
}

/// One thing that init did or wants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InitStatus {
    /// What it is about.
    pub name: String,
    /// `ok`, `skipped`, `waiting`, `degraded` or `failed`.
    pub state: String,
    /// In a sentence.
    pub text: String,
}

impl InitStatus {
    /// Whether a person should look at it.
    #[must_use]
    pub fn is_wrong(&self) -> bool {
        matches!(self.state.as_str(), "degraded" | "failed")
    }
}

/// Who this node is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InitIdentity {
    /// Name of the node.
    pub hostname: String,
    /// UUID of the machine.
    pub uuid: String,
    /// Serial number.
    pub serial: Option<String>,
    /// Version of the image.
    pub image_version: String,
    /// The slot that was booted.
    pub slot: String,
    /// Release of the kernel.
    pub kernel: String,
}

/// A service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InitService {
    /// Name.
    pub name: String,
    /// A word.
    pub state: String,
    /// In a sentence.
    pub text: String,
    /// Its process.
    pub pid: Option<i32>,
    /// Times that it was started.
    pub starts: u64,
}

/// A line of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InitLine {
    /// Its number.
    pub seq: u64,
    /// When, in ms since 1970.
    pub unix_ms: i64,
    /// The text.
    pub text: String,
}

/// What holds of the configuration, and what does not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InitConfiguration {
    /// The whole document as it holds.
    pub document: String,
    /// What somebody said, and who.
    pub values: Vec<InitValue>,
    /// What does not hold.
    pub problems: Vec<InitProblem>,
    /// What takes effect later.
    pub later: Vec<String>,
}

/// A value and where it is from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InitValue {
    /// Key.
    pub key: String,
    /// Value, as TOML.
    pub value: String,
    /// `agent`, `command_line`, ...
    pub source: String,
}

/// A value that does not hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InitProblem {
    /// Where it is from.
    pub source: String,
    /// Key; empty when all of the source could not be read.
    pub key: String,
    /// What is wrong.
    pub text: String,
    /// What holds in its place.
    #[serde(default)]
    pub instead: String,
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
    pub async fn status(&self) -> Result<BTreeMap<String, Vec<InitStatus>>, AgentError> {
        match self.call(&Request::Status).await? {
            Answer::Status { groups } => Ok(groups),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Who this node is.
    ///
    /// # Errors
    /// As [`InitClient::call`].
    pub async fn identity(&self) -> Result<InitIdentity, AgentError> {
        match self.call(&Request::Identity).await? {
            Answer::Identity { identity } => Ok(identity),
            other => Err(self.unexpected(&other)),
        }
    }

    /// The services.
    ///
    /// # Errors
    /// As [`InitClient::call`].
    pub async fn services(&self) -> Result<Vec<InitService>, AgentError> {
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
    ) -> Result<(Vec<InitLine>, u64), AgentError> {
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
            Answer::Configuration(configuration) => Ok(configuration),
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
