//! How the node is: what is wrong with it, and whether this boot is good.
//!
//! A boot is good once everything that init keeps running is ready and `aditd` has answered for half
//! a minute without a break. That is told once in a boot: in [`api::v1::System`], in the log, and by
//! the file `boot-good` beside init's socket, which is for whoever chooses the next boot's image.

use std::sync::Arc;
use std::time::Duration;

use api::v1::node_service_client::NodeServiceClient;
use api::v1::pool_service_client::PoolServiceClient;
use api::v1::{GetNodeRequest, ListPoolsRequest, PendingObject, Pool};
use init::control::Request;
use init::supervisor::{ServiceReport, ServiceState};

use crate::error::chain;
use crate::node::Node;
use crate::services::aditd_serves;

/// How often the node is looked at, and init hears that the agent is well.
const INTERVAL: Duration = Duration::from_secs(5);
/// Looks in a row after which a boot is good.
const GOOD_LOOKS: u32 = 6;
/// Name of this service in init's table.
const OWN_NAME: &str = "adit-agent";
/// What is wrong with a node, at most.
const ALERTS_MAX: usize = 32;

/// Whether this boot is good.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Boot {
    /// It is; that stays so.
    pub is_good: bool,
    /// Why it is not, or not yet.
    pub reason: String,
}

/// Reports to init and looks at the node for as long as the program runs.
pub async fn keep(node: Arc<Node>) {
    let mut good_looks = 0;
    loop {
        report(&node).await;
        if !node.boot.borrow().is_good {
            let found = look(&node).await;
            good_looks = if found.is_ok() { good_looks + 1 } else { 0 };
            let boot = judge(found, good_looks);
            if boot.is_good {
                mark(&node).await;
            }
            node.boot.send_replace(boot);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn report(node: &Node) {
    let request = Request::Health {
        service: OWN_NAME.to_owned(),
        ok: true,
        text: "serving".to_owned(),
    };
    if let Err(error) = node.init.call(&request).await {
        tracing::warn!(
            error = chain(&error),
            "init did not take the report of health"
        );
    }
}

async fn look(node: &Node) -> Result<(), String> {
    let services = node.init.services().await.map_err(|error| chain(&error))?;
    are_well(&services)?;
    if aditd_serves(node).await {
        Ok(())
    } else {
        Err("aditd does not answer".to_owned())
    }
}

/// Whether every service does what it should; else the first that does not, and why.
fn are_well(services: &[ServiceReport]) -> Result<(), String> {
    let is_well = |service: &&ServiceReport| {
        service.name == OWN_NAME
            || matches!(service.state, ServiceState::Ready | ServiceState::Done)
    };
    match services.iter().find(|service| !is_well(service)) {
        None => Ok(()),
        Some(service) if service.text.is_empty() => {
            Err(format!("{}: {}", service.name, service.state))
        }
        Some(service) => Err(format!("{}: {}", service.name, service.text)),
    }
}

fn judge(found: Result<(), String>, good_looks: u32) -> Boot {
    let left = GOOD_LOOKS.saturating_sub(good_looks);
    match found {
        Ok(()) if left == 0 => Boot {
            is_good: true,
            reason: String::new(),
        },
        Ok(()) => Boot {
            is_good: false,
            reason: format!("everything is ready; watched for {} s more", 5 * left),
        },
        Err(reason) => Boot {
            is_good: false,
            reason,
        },
    }
}

async fn mark(node: &Node) {
    let identity = node.init.identity().await.unwrap_or_default();
    let (version, slot) = (&identity.image_version, &identity.slot);
    tracing::info!(version, slot, "this boot is good");
    let Some(folder) = node.paths.init_socket.parent() else {
        return;
    };
    let path = folder.join("boot-good");
    let text = format!("version = {version:?}\nslot = {slot:?}\n");
    if let Err(error) = std::fs::write(&path, text) {
        node.alert(format!("{} cannot be written: {error}", path.display()));
    }
}

/// The first pools of `aditd`, as it tells of them; none when it does not answer.
pub async fn pools(node: &Node) -> Vec<Pool> {
    let mut client = PoolServiceClient::new(node.forward.channel());
    let asked = client.list_pools(ListPoolsRequest::default());
    match tokio::time::timeout(Duration::from_secs(1), asked).await {
        Ok(Ok(answer)) => answer.into_inner().pools,
        _ => Vec::new(),
    }
}

/// What `aditd` was told to have and has not, its first hundred; none when it does not answer.
async fn pending(node: &Node) -> Vec<PendingObject> {
    let mut client = NodeServiceClient::new(node.forward.channel());
    let asked = client.get_node(GetNodeRequest::default());
    match tokio::time::timeout(Duration::from_secs(1), asked).await {
        Ok(Ok(answer)) => answer.into_inner().pending_objects,
        _ => Vec::new(),
    }
}

/// What is wrong with the node: the agent's alerts, what init could not do, pools that have stopped, and what
/// is wanted and not there, such as a drive that was pulled out.
pub async fn alerts(node: &Node) -> Vec<String> {
    let mut all = node.alerts();
    if node.init.is_there() {
        // Without an answer the services are not there either, and that is seen.
        for (group, items) in node.init.status().await.unwrap_or_default() {
            let wrong = items.into_iter().filter(init::status::Status::is_wrong);
            all.extend(wrong.map(|item| format!("{group}: {}: {}", item.name, item.text)));
        }
    }
    let stopped = pools(node).await.into_iter();
    all.extend(stopped.filter(|pool| !pool.fault.is_empty()).map(|pool| {
        let name = pool.spec.unwrap_or_default().name;
        format!("pool {name} has stopped: {}", pool.fault)
    }));
    let pending = pending(node).await.into_iter();
    all.extend(pending.map(|object| {
        let PendingObject {
            kind, name, reason, ..
        } = object;
        format!("{kind} {name} is not there: {reason}")
    }));
    let more = all.len().saturating_sub(ALERTS_MAX);
    if more > 0 {
        all.truncate(ALERTS_MAX - 1);
        all.push(format!("and {} more", more + 1));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, state: ServiceState) -> ServiceReport {
        ServiceReport {
            name: name.to_owned(),
            state,
            text: "held: crashed 5 times".to_owned(),
            pid: None,
            starts: 1,
            crashes: 0,
            for_ms: 0,
            health: None,
        }
    }

    #[test]
    fn a_boot_is_good_when_everything_was_ready_for_a_while() {
        let mut services = vec![
            service("machine", ServiceState::Done),
            service("adit-agent", ServiceState::Starting),
            service("aditd", ServiceState::Held),
        ];
        assert_eq!(
            are_well(&services),
            Err("aditd: held: crashed 5 times".to_owned())
        );
        services[2].state = ServiceState::Starting;
        services[2].text.clear();
        assert_eq!(are_well(&services), Err("aditd: starting".to_owned()));
        services[2].state = ServiceState::Ready;
        assert_eq!(are_well(&services), Ok(()));

        let early = judge(Ok(()), 1);
        assert!(
            !early.is_good && early.reason.contains("25 s more"),
            "{early:?}"
        );
        assert!(judge(Ok(()), GOOD_LOOKS).is_good);
        let broken = judge(Err("aditd does not answer".to_owned()), 0);
        assert!(!broken.is_good && broken.reason == "aditd does not answer");
    }
}
