//! The node's name, and the names in its certificates.

use crate::config::{self, AgentConfig};
use crate::init_client::InitClient;

/// Names and addresses for a certificate: a name that cannot stand in one is left out.
pub(super) fn names(name: &str, config: &AgentConfig) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    names.extend(config.api.names.iter().cloned());
    names.extend(
        config
            .network
            .addresses
            .iter()
            .map(|cidr| cidr.address.to_string()),
    );
    names.retain(|name| name.is_ascii());
    names.dedup();
    names
}

/// The same for a certificate that no other node's clients trust: it is for this machine's loopback
/// too.
pub(super) fn own_names(name: &str, config: &AgentConfig) -> Vec<String> {
    let mut names = names(name, config);
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    names
}

/// The names that the node's own certificate has for a document that gives it one.
pub(super) fn names_in(document: &str) -> Option<Vec<String>> {
    let table = config::parse(document).ok()?;
    let name = server_name_of(&table)?;
    Some(own_names(&name, &config::read(&table).0))
}

pub(super) fn server_name_of(document: &toml::Table) -> Option<String> {
    document.get("hostname")?.as_str().map(str::to_owned)
}

pub(super) async fn server_name(init: &InitClient) -> String {
    let said = if init.is_there() {
        init.identity().await.map(|identity| identity.hostname)
    } else {
        Ok(String::new())
    };
    match said {
        Ok(name) if !name.is_empty() => name,
        _ => nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok())
            .filter(|name| !name.is_empty() && name.len() <= 64)
            .unwrap_or_else(|| "adit-node".to_owned()),
    }
}
