//! What outlives the power: with an `aditd` that keeps it and a directory that does not.

use std::path::Path;
use std::sync::{Arc, Mutex};

use agent::keep::{self, Keeping};
use agent::listener::Limits;
use agent::node::Wanted;
use api::v1::agent_state_service_server::{AgentStateService, AgentStateServiceServer};
use api::v1::node_config_service_client::NodeConfigServiceClient;
use api::v1::system_service_client::SystemServiceClient;
use api::v1::{
    AgentState, ApplyNodeConfigRequest, GetAgentStateRequest, GetSystemRequest,
    PutAgentStateRequest, PutAgentStateResponse,
};
use pki::{Role, Validity};
use tokio::net::UnixListener;
use tonic::{Request, Response, Status};

use crate::rig::{FakeInit, Running, Site, YEARS, now, site, start, start_in};

/// An `aditd` as far as it keeps the agent's state. What it keeps outlives the nodes of a test.
#[derive(Debug, Clone, Default)]
struct FakeAditd {
    state: Arc<Mutex<Vec<u8>>>,
    notice: &'static str,
}

#[tonic::async_trait]
impl AgentStateService for FakeAditd {
    async fn get_agent_state(
        &self,
        _: Request<GetAgentStateRequest>,
    ) -> Result<Response<AgentState>, Status> {
        let state = self.kept();
        Ok(Response::new(AgentState { state }))
    }

    async fn put_agent_state(
        &self,
        request: Request<PutAgentStateRequest>,
    ) -> Result<Response<PutAgentStateResponse>, Status> {
        *self.state.lock().unwrap() = request.into_inner().state;
        Ok(Response::new(PutAgentStateResponse {
            notice: self.notice.to_owned(),
            ..PutAgentStateResponse::default()
        }))
    }
}

impl FakeAditd {
    fn kept(&self) -> Vec<u8> {
        self.state.lock().unwrap().clone()
    }

    /// Answers behind a node for as long as the runtime runs.
    fn serve(&self, folder: &Path) {
        let listener = UnixListener::bind(folder.join("aditd.sock")).unwrap();
        let incoming = futures_util::stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let service = AgentStateServiceServer::new(self.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(incoming));
    }

    /// A node at its first start since the power came, with this `aditd`.
    async fn power_on(&self) -> Running {
        let running = start(Limits::default()).await;
        self.serve(running.folder.path());
        tokio::spawn(keep::keep(running.node.clone()));
        running
    }

    /// As [`Self::power_on`]; returns when what was kept is taken.
    async fn power_on_restored(&self) -> Running {
        let running = self.power_on().await;
        let mut changes = running.node.changes();
        changes
            .wait_for(|current| current.is_configured)
            .await
            .unwrap();
        running
    }
}

/// The program starts again, the power stays: its directory and `aditd` are there.
async fn restart(running: Running) -> Running {
    // The one before keeps nothing any more.
    let running = start_in(running.folder, Limits::default()).await;
    tokio::spawn(keep::keep(running.node.clone()));
    running
}

async fn until_unreadable(running: &Running) {
    let mut keeping = running.node.keeping.subscribe();
    let is_looked_at =
        |keeping: &Keeping| matches!(keeping, Keeping::Unreadable(_) | Keeping::Kept { .. });
    let looked = keeping.wait_for(is_looked_at).await.unwrap();
    assert!(matches!(*looked, Keeping::Unreadable(_)), "it was replaced");
}

async fn until_kept(running: &Running) {
    let mut keeping = running.node.keeping.subscribe();
    let is_kept = |keeping: &Keeping| matches!(keeping, Keeping::Kept { .. });
    keeping.wait_for(is_kept).await.unwrap();
}

fn node_key(running: &Running) -> String {
    std::fs::read_to_string(running.folder.path().join("state/node-key.pem")).unwrap()
}

/// An administrator of the site calls the node, and knows it by its certificate.
async fn is_reached(running: &Running, site: &Site) -> bool {
    let admin = site
        .authority
        .issue_client("admin", Role::Admin, Validity::days(now(), YEARS))
        .unwrap();
    let Ok(channel) = running.connect(site, Some(&admin)).await else {
        return false;
    };
    let mut client = SystemServiceClient::new(channel);
    client.get_system(GetSystemRequest {}).await.is_ok()
}

/// Goal: a configured node is who it was after a power cut, and administrators reach it. Method: its
/// directory is gone, what `aditd` keeps is there.
#[tokio::test]
async fn a_configured_node_is_who_it_was_after_a_power_cut() {
    let aditd = FakeAditd::default();
    let site = site();
    let running = aditd.power_on().await;
    assert_eq!(aditd.kept(), b"", "of a node that nobody has configured");
    running.configure(&site).await;
    until_kept(&running).await;
    let (before, key) = (running.node.current(), node_key(&running));
    drop(running);

    let running = aditd.power_on_restored().await;
    let after = running.node.current();
    assert_eq!(after.document, before.document);
    assert_eq!(after.identity.fingerprint, before.identity.fingerprint);
    assert_eq!(*running.node.gate.code().borrow(), None);
    assert!(is_reached(&running, &site).await);
    assert_eq!(node_key(&running), key);
}

#[tokio::test]
async fn what_was_applied_before_aditd_answered_stays() {
    let aditd = FakeAditd::default();
    let (old, new) = (site(), site());
    let running = aditd.power_on().await;
    running.configure(&old).await;
    until_kept(&running).await;
    let kept = aditd.kept();
    drop(running);

    let running = start(Limits::default()).await;
    running.configure(&new).await;
    let fingerprint = running.node.current().identity.fingerprint.clone();
    aditd.serve(running.folder.path());
    tokio::spawn(keep::keep(running.node.clone()));
    until_kept(&running).await;
    let current = running.node.current();
    assert_eq!(current.ca_pem.as_ref(), Some(&new.ca_pem));
    assert_eq!(current.identity.fingerprint, fingerprint);
    assert_ne!(aditd.kept(), kept);
    drop(running);
    let running = aditd.power_on_restored().await;
    assert!(is_reached(&running, &new).await);
}

#[tokio::test]
async fn a_node_keeps_nothing_in_the_pool_when_its_configuration_says_so() {
    let aditd = FakeAditd::default();
    let site = site();
    let running = aditd.power_on().await;
    running.configure(&site).await;
    until_kept(&running).await;
    assert_ne!(aditd.kept(), b"");
    let document = format!(
        "[agent.api]\nca = '''{}'''\n[agent.state]\nin_system_pool = false\n",
        site.ca_pem
    );
    let wanted = Wanted {
        document,
        ..Wanted::default()
    };
    running.node.configure(&wanted, false).await.unwrap();
    let mut keeping = running.node.keeping.subscribe();
    let nothing = pki::sha256_hex(b"");
    let is_nothing =
        |keeping: &Keeping| matches!(keeping, Keeping::Kept { digest, .. } if *digest == nothing);
    keeping.wait_for(is_nothing).await.unwrap();
    assert_eq!(aditd.kept(), b"");
}

#[tokio::test]
async fn what_cannot_be_read_changes_nothing_and_stays_until_there_is_something_newer() {
    let aditd = FakeAditd::default();
    let newer = b"{\"version\":9}";
    *aditd.state.lock().unwrap() = newer.to_vec();
    let site = site();
    let running = aditd.power_on().await;
    until_unreadable(&running).await;
    let alerts = running.node.alerts();
    assert!(alerts[0].contains("version 9"), "{alerts:?}");
    assert!(!running.node.current().is_configured);
    assert!(running.node.gate.code().borrow().is_some());
    assert_eq!(aditd.kept(), newer);
    running.configure(&site).await;
    until_kept(&running).await;
    assert_ne!(aditd.kept(), newer);
}

/// Goal: an older image, or damage, costs nobody the newer state. Method: a node that another source configures
/// with each boot, so that it has something to keep at every start of the program.
#[tokio::test]
async fn what_cannot_be_read_stays_over_restarts_of_the_program() {
    let aditd = FakeAditd::default();
    let newer = b"{\"version\":9}";
    *aditd.state.lock().unwrap() = newer.to_vec();
    let site = site();
    let folder = tempfile::tempdir().unwrap();
    let document = format!("[agent.api]\nca = '''{}'''\n", site.ca_pem);
    FakeInit::configured(&folder.path().join("init.sock"), &document);
    let mut running = start_in(folder, Limits::default()).await;
    aditd.serve(running.folder.path());
    tokio::spawn(keep::keep(running.node.clone()));
    for _ in 0..3 {
        assert!(running.node.current().is_configured);
        assert_ne!(running.node.to_keep().unwrap(), None);
        until_unreadable(&running).await;
        assert_eq!(aditd.kept(), newer);
        running = restart(running).await;
    }
    until_unreadable(&running).await;
    // What a person applies is newer, and takes its place: here and after a restart.
    running.configure(&site).await;
    until_kept(&running).await;
    let kept = aditd.kept();
    assert_ne!(kept, newer);
    let running = restart(running).await;
    until_kept(&running).await;
    assert_eq!(aditd.kept(), kept);
}

#[tokio::test]
async fn who_applies_a_configuration_is_told_when_it_would_not_outlive_the_power() {
    let aditd = FakeAditd {
        notice: "no pool is the system pool",
        ..FakeAditd::default()
    };
    let site = site();
    let running = aditd.power_on().await;
    running.configure(&site).await;
    let admin = site
        .authority
        .issue_client("admin", Role::Admin, Validity::days(now(), YEARS))
        .unwrap();
    let channel = running.connect(&site, Some(&admin)).await.unwrap();
    let mut client = NodeConfigServiceClient::new(channel);
    let request = ApplyNodeConfigRequest {
        toml: running.node.current().document.clone() + "# changed\n",
        ..ApplyNodeConfigRequest::default()
    };
    let answer = client.apply_node_config(request).await.unwrap();
    let notes = answer.into_inner().notes;
    let wanted = "a power cut would take it away: no pool is the system pool";
    assert!(notes.iter().any(|note| note == wanted), "{notes:?}");
}
