//! What outlives the power: this program's state, which `aditd` keeps with the node's in its system pool.
//!
//! A node without a disk has a state directory in memory. At the first start since the power came `aditd`
//! is asked for what it kept, and the node is again who it was: document, certificate, keys. From then on the
//! directory counts, and each change goes to `aditd`. A configuration that was applied before `aditd` answered
//! is newer than what it kept, and stays. What this program cannot read, of a newer version or damaged, is
//! looked at again by each start, and nothing replaces it but a configuration that is applied.
//!
//! Bounds: one call at a time, 20 s each; asked every second, told again after 1 to 30 s.

use std::sync::Arc;
use std::time::Duration;

use api::v1::agent_state_service_client::AgentStateServiceClient;
use api::v1::{GetAgentStateRequest, PutAgentStateRequest};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::error::{AgentError, chain};
use crate::node::{Alert, Node};
use crate::store::Generation;

const CALL_MAX: Duration = Duration::from_secs(20);
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long who applies a configuration waits for it to be kept.
const APPLIED_WITHIN: Duration = Duration::from_secs(10);
/// Version of [`Kept`]. Another one is not read.
const VERSION: u32 = 1;

/// What is kept, as JSON. Names of fields never change.
#[derive(Serialize, Deserialize)]
pub(crate) struct Kept {
    version: u32,
    /// The key that the node made for itself, PEM.
    pub(crate) node_key_pem: String,
    /// Its own certificate for that key, PEM.
    pub(crate) node_certificate_pem: Option<String>,
    /// The configuration in force; `None` where another source brings it with each boot.
    pub(crate) generation: Option<Generation>,
}

impl Kept {
    pub(crate) fn new(
        node_key_pem: String,
        node_certificate_pem: Option<String>,
        generation: Option<Generation>,
    ) -> Kept {
        Kept {
            version: VERSION,
            node_key_pem,
            node_certificate_pem,
            generation,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers are always JSON")
    }

    /// # Errors
    /// When it is damaged or of another version. The text names no part of it: there are keys in it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Kept, AgentError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let failed = |text: String| AgentError::Kept(text);
        let damaged = |error: serde_json::Error| {
            failed(format!("it cannot be read at byte {}", error.column()))
        };
        let Version { version } = serde_json::from_slice(bytes).map_err(damaged)?;
        if version != VERSION {
            return Err(failed(format!(
                "it is of version {version}, and this program knows {VERSION}"
            )));
        }
        serde_json::from_slice(bytes).map_err(damaged)
    }
}

/// Where this program's state is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Keeping {
    /// In the state directory and nowhere else: there is nobody to keep it, or nobody was asked yet.
    #[default]
    Here,
    /// `aditd` has not taken the newest yet.
    Waiting(String),
    /// `aditd` has the state with this digest.
    Kept {
        /// SHA-256.
        digest: String,
        /// Why it is in `aditd`'s memory only; empty when the system pool has it.
        notice: String,
    },
    /// `aditd` has what this program cannot read, for this reason. It stays until a configuration is applied here.
    Unreadable(String),
}

/// Restores what was kept, then keeps every change, for as long as the program runs.
pub async fn keep(node: Arc<Node>) {
    let mut changes = node.changes();
    let mut kept = match restore(&node).await {
        Restored::NobodyKeeps => return,
        // It stays until there is something newer than what holds now.
        Restored::Unreadable => node.to_keep().ok().flatten(),
        Restored::Done => None,
    };
    let mut pause = PAUSE_MIN;
    let mut alert: Option<Alert<'_>> = None;
    loop {
        changes.borrow_and_update();
        let wanted = match node.to_keep() {
            Ok(wanted) => wanted.filter(|wanted| kept.as_ref() != Some(wanted)),
            Err(error) => {
                tracing::warn!(error = chain(&error), "what is to be kept cannot be read");
                None
            }
        };
        let Some(wanted) = wanted else {
            // Nobody sends any more when the program ends.
            if changes.changed().await.is_err() {
                return;
            }
            continue;
        };
        match put(&node, &wanted).await {
            Ok(notice) => {
                // From now on the directory counts, also after what could not be read.
                settle(&node);
                let digest = pki::sha256_hex(&wanted);
                node.keeping.send_replace(Keeping::Kept { digest, notice });
                kept = Some(wanted);
                (pause, alert) = (PAUSE_MIN, None);
            }
            Err(status) => {
                let why = status.message().to_owned();
                if pause == PAUSE_MAX && alert.is_none() {
                    alert = Some(node.raise(format!(
                        "the configuration would not outlive a power cut: aditd does not keep it: {why}"
                    )));
                }
                node.keeping.send_replace(Keeping::Waiting(why));
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

enum Restored {
    Done,
    Unreadable,
    NobodyKeeps,
}

/// The first start since the power came takes what was kept; a later one has it in its directory.
async fn restore(node: &Node) -> Restored {
    let waiting = "aditd was not asked yet".to_owned();
    node.keeping.send_replace(Keeping::Waiting(waiting));
    loop {
        let restored = match get(node).await {
            Ok(bytes) if node.has_asked() || bytes.is_empty() => Restored::Done,
            Ok(bytes) => match node.restore(&bytes).await {
                Ok(true) => {
                    tracing::info!("the configuration comes from the system pool");
                    Restored::Done
                }
                Ok(false) => {
                    tracing::warn!("what the system pool keeps is replaced by what holds here");
                    Restored::Done
                }
                Err(error) => {
                    let why = chain(&error);
                    node.alert(format!("what the system pool keeps is not used: {why}"));
                    // No mark: the next start must not take its directory for what counts.
                    node.keeping.send_replace(Keeping::Unreadable(why));
                    return Restored::Unreadable;
                }
            },
            Err(status) if status.code() == Code::Unimplemented => {
                node.keeping.send_replace(Keeping::Here);
                Restored::NobodyKeeps
            }
            Err(status) => {
                node.keeping
                    .send_replace(Keeping::Waiting(status.message().to_owned()));
                // A node that waits for this is not who it was: it is asked often.
                tokio::time::sleep(PAUSE_MIN).await;
                continue;
            }
        };
        // Last: a program that dies before asks again.
        settle(node);
        // Who waits for that looks.
        node.keeping.send_modify(|_| ());
        return restored;
    }
}

/// The directory counts from now on, whatever `aditd` keeps.
fn settle(node: &Node) {
    if node.has_asked() {
        return;
    }
    if let Err(error) = node.set_asked() {
        tracing::warn!(error = chain(&error), "aditd will be asked again");
    }
}

/// Waits until what holds now is kept; why it is not, in a sentence for who applied it.
pub(crate) async fn applied(node: &Node) -> Option<String> {
    let mut keeping = node.keeping.subscribe();
    let is_wanted = node.current().config.state.in_system_pool;
    if *keeping.borrow() == Keeping::Here || !is_wanted {
        return None;
    }
    let wanted = pki::sha256_hex(&node.to_keep().ok()??);
    let is_kept =
        |keeping: &Keeping| matches!(keeping, Keeping::Kept { digest, .. } if *digest == wanted);
    // The time is up, or the program ends: what is known is told.
    let _ = timeout(APPLIED_WITHIN, keeping.wait_for(is_kept)).await;
    let why = match &*keeping.borrow() {
        Keeping::Kept { digest, notice } if *digest == wanted => notice.clone(),
        Keeping::Waiting(why) => format!("aditd does not keep it yet: {why}"),
        Keeping::Kept { .. } | Keeping::Here | Keeping::Unreadable(_) => {
            "aditd does not keep it yet".to_owned()
        }
    };
    (!why.is_empty()).then(|| format!("a power cut would take it away: {why}"))
}

async fn get(node: &Node) -> Result<Vec<u8>, Status> {
    let mut client = AgentStateServiceClient::new(node.forward.channel());
    let asked = client.get_agent_state(GetAgentStateRequest {});
    let answer = timeout(CALL_MAX, asked).await.map_err(|_| late())??;
    Ok(answer.into_inner().state)
}

async fn put(node: &Node, state: &[u8]) -> Result<String, Status> {
    let mut client = AgentStateServiceClient::new(node.forward.channel());
    let state = state.to_vec();
    let asked = client.put_agent_state(PutAgentStateRequest { state });
    let answer = timeout(CALL_MAX, asked).await.map_err(|_| late())??;
    Ok(answer.into_inner().notice)
}

fn late() -> Status {
    let text = format!("it has not answered within {} s", CALL_MAX.as_secs());
    Status::deadline_exceeded(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Kept {
        let generation = Generation {
            document: "hostname = \"a\"\n".to_owned(),
            ca_key_pem: Some("secret".to_owned()),
            ..Generation::default()
        };
        Kept::new("secret".to_owned(), None, Some(generation))
    }

    #[test]
    fn what_is_kept_reads_back() {
        let back = Kept::decode(&kept().encode()).unwrap();
        assert_eq!(back.generation, kept().generation);
        assert_eq!(back.node_key_pem, "secret");
    }

    #[test]
    fn what_is_damaged_or_newer_is_refused_and_no_key_is_told() {
        let bytes = kept().encode();
        for len in 0..bytes.len() {
            let error = Kept::decode(&bytes[..len]).err().unwrap().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        let newer = String::from_utf8(bytes).unwrap();
        let newer = newer.replace("\"version\":1", "\"version\":2,\"new\":[]");
        let error = Kept::decode(newer.as_bytes()).err().unwrap().to_string();
        assert!(error.contains("version 2"), "{error}");
        let typed = "{\"version\":1,\"node_key_pem\":[\"secret\"]}";
        let error = Kept::decode(typed.as_bytes()).err().unwrap().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
