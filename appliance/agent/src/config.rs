//! The agent's part of the node's configuration: the table `[agent]` of the document. The rest of the
//! document is init's, which checks it.
//!
//! ```toml
//! hostname = "stor-1"
//!
//! [agent.api]
//! ca = """-----BEGIN CERTIFICATE-----..."""
//!
//! [agent.network]
//! interface = "eth0"
//! mode = "static"
//! addresses = ["192.0.2.10/24"]
//! gateway = "192.0.2.1"
//! dns = ["192.0.2.1"]
//!
//! [agent.time]
//! servers = ["192.0.2.1"]
//! ```

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest document in bytes; init's bound.
pub const DOCUMENT_BYTES_MAX: usize = 256 << 10;

/// Most addresses, servers or names in a list.
const LIST_MAX: usize = 16;

/// What the agent is told.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// Who may call.
    pub api: Api,
    /// The management interface.
    pub network: NetworkConfig,
    /// The clock.
    pub time: TimeConfig,
    /// Where the configuration is fetched from.
    pub fetch: FetchConfig,
    /// What outlives the power.
    pub state: StateConfig,
}

/// Who may call, and who the node says that it is.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// The authority of clients' certificates, PEM. A node without one is in maintenance mode.
    pub ca: Option<String>,
    /// The node's certificate, PEM. By default it makes one itself.
    pub certificate: Option<String>,
    /// The key of `certificate`, PEM. It is taken out of the document and never shown. By default the
    /// node makes one, which is better: it never travels.
    pub key: Option<String>,
    /// More names and addresses for the certificate that the node makes.
    pub names: Vec<String>,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api")
            .field("ca", &self.ca.is_some())
            .field("certificate", &self.certificate.is_some())
            .field("key", &self.key.is_some())
            .field("names", &self.names)
            .finish()
    }
}

/// How the management interface gets its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// DHCPv4, and IPv6 addresses that routers announce.
    Dhcp,
    /// As written.
    Static,
    /// Left as it is.
    None,
}

/// The management interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// Its name. By default the first that has a link.
    pub interface: Option<String>,
    /// Its MAC address, in place of the name.
    pub mac: Option<String>,
    /// How it gets addresses. By default DHCP on an appliance, and none elsewhere.
    pub mode: Option<NetworkMode>,
    /// Addresses with prefix length, for `static`.
    pub addresses: Vec<Cidr>,
    /// Default gateways, for `static`; one of each family at most.
    pub gateway: Option<IpAddr>,
    /// The other family's.
    pub gateway6: Option<IpAddr>,
    /// Name servers. For DHCP they go before the ones that it brings.
    pub dns: Vec<IpAddr>,
    /// MTU in bytes, 1280 to 9216.
    pub mtu: Option<u32>,
}

/// The clock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimeConfig {
    /// NTP servers: `ADDRESS`, `NAME` or either with `:PORT`. By default those that DHCP brings.
    pub servers: Vec<String>,
}

/// What of the agent's state outlives the power on a node without a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StateConfig {
    /// Document, certificate and keys are kept in the system pool. Who takes its drive away has them
    /// then, beside all data. If not, the node comes back without them.
    pub in_system_pool: bool,
}

impl Default for StateConfig {
    fn default() -> StateConfig {
        StateConfig {
            in_system_pool: true,
        }
    }
}

/// How the configuration is fetched from init's `config_url`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FetchConfig {
    /// The authority of the server, PEM; `https://` needs one.
    pub ca: Option<String>,
}

/// An address with the length of its prefix: `192.0.2.10/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    /// The address.
    pub address: IpAddr,
    /// Bits of the prefix.
    pub prefix: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is no address with a prefix, as in 192.0.2.10/24");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let max = if address.is_ipv4() { 32 } else { 128 };
        if prefix == 0 || prefix > max {
            return Err(format!("{text:?}: the prefix must be 1 to {max} bits"));
        }
        if address.is_unspecified() || address.is_multicast() {
            return Err(format!("{text:?} cannot be an address of an interface"));
        }
        Ok(Cidr { address, prefix })
    }
}

impl TryFrom<String> for Cidr {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> String {
        cidr.to_string()
    }
}

/// Something wrong in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Where, as in `agent.network.addresses`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl Violation {
    /// A problem of a field.
    #[must_use]
    pub fn new(field: &str, problem: impl Into<String>) -> Violation {
        Violation {
            field: field.to_owned(),
            problem: problem.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.problem)
        } else {
            write!(f, "{}: {}", self.field, self.problem)
        }
    }
}

/// Reads the document as TOML.
///
/// # Errors
/// When it is too long or no TOML.
pub fn parse(text: &str) -> Result<toml::Table, Violation> {
    if text.len() > DOCUMENT_BYTES_MAX {
        let problem = format!("the document is longer than {DOCUMENT_BYTES_MAX} bytes");
        return Err(Violation::new("", problem));
    }
    text.parse()
        .map_err(|error: toml::de::Error| Violation::new("", error.to_string().trim_end()))
}

/// The agent's part, and everything that is wrong with it. A section with something wrong is left at
/// its defaults, so there is always a configuration.
#[must_use]
pub fn read(document: &toml::Table) -> (AgentConfig, Vec<Violation>) {
    let mut config = AgentConfig::default();
    let mut violations = Vec::new();
    let table = match document.get("agent") {
        None => return (config, violations),
        Some(toml::Value::Table(table)) => table,
        Some(_) => return (config, vec![Violation::new("agent", "it must be a table")]),
    };
    for (name, value) in table {
        let field = format!("agent.{name}");
        let before = violations.len();
        match name.as_str() {
            "api" => {
                if let Some(api) = section::<Api>(&field, value, &mut violations) {
                    check_api(&api, &mut violations);
                    keep(&mut config.api, api, before == violations.len());
                }
            }
            "network" => {
                if let Some(network) = section::<NetworkConfig>(&field, value, &mut violations) {
                    check_network(&network, &mut violations);
                    keep(&mut config.network, network, before == violations.len());
                }
            }
            "time" => {
                if let Some(time) = section::<TimeConfig>(&field, value, &mut violations) {
                    check_time(&time, &mut violations);
                    keep(&mut config.time, time, before == violations.len());
                }
            }
            "fetch" => {
                if let Some(fetch) = section::<FetchConfig>(&field, value, &mut violations) {
                    check_fetch(&fetch, &mut violations);
                    keep(&mut config.fetch, fetch, before == violations.len());
                }
            }
            "state" => {
                if let Some(state) = section::<StateConfig>(&field, value, &mut violations) {
                    config.state = state;
                }
            }
            _ => violations.push(Violation::new(
                &field,
                "there is no such section; there are api, network, time, fetch and state",
            )),
        }
    }
    (config, violations)
}

/// Where `agent.api.key` is in a document, it is taken out.
pub fn take_key(document: &mut toml::Table) -> Option<String> {
    let api = document.get_mut("agent")?.get_mut("api")?.as_table_mut()?;
    api.remove("key")?.as_str().map(str::to_owned)
}

fn keep<T>(into: &mut T, value: T, is_right: bool) {
    if is_right {
        *into = value;
    }
}

fn section<'a, T: Deserialize<'a>>(
    field: &str,
    value: &toml::Value,
    violations: &mut Vec<Violation>,
) -> Option<T> {
    match value.clone().try_into() {
        Ok(section) => Some(section),
        Err(error) => {
            let text = error.to_string();
            let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
            violations.push(Violation::new(field, line));
            None
        }
    }
}

fn check_api(api: &Api, violations: &mut Vec<Violation>) {
    let mut certificate = |field: &str, pem: &Option<String>| {
        let der = pem.as_deref().map(pki::certificate_der)?;
        der.map_err(|error| violations.push(Violation::new(field, error.to_string())))
            .ok()
    };
    certificate("agent.api.ca", &api.ca);
    let own = certificate("agent.api.certificate", &api.certificate);
    match (&api.key, own) {
        (Some(key), Some(own)) => match pki::is_key_of(key, &own) {
            Ok(true) => {}
            Ok(false) => violations.push(Violation::new(
                "agent.api.key",
                "it is not the key of agent.api.certificate",
            )),
            Err(error) => violations.push(Violation::new("agent.api.key", error.to_string())),
        },
        (Some(_), None) => violations.push(Violation::new(
            "agent.api.key",
            "it comes with agent.api.certificate; leave both out and the node makes its own",
        )),
        (None, _) => {}
    }
    within("agent.api.names", api.names.len(), violations);
}

fn check_network(network: &NetworkConfig, violations: &mut Vec<Violation>) {
    let mut wrong = |field: &str, problem: &str| {
        violations.push(Violation::new(&format!("agent.network.{field}"), problem));
    };
    if network.interface.is_some() && network.mac.is_some() {
        wrong(
            "mac",
            "name the interface by interface or by mac, not by both",
        );
    }
    if let Some(name) = &network.interface
        && (name.is_empty() || name.len() > 15 || name.contains(['/', ' ']))
    {
        wrong(
            "interface",
            "it must be a name of 1 to 15 bytes, as in eth0",
        );
    }
    let is_static = network.mode == Some(NetworkMode::Static);
    if is_static && network.addresses.is_empty() {
        wrong(
            "addresses",
            "mode static needs at least one, as in 192.0.2.10/24",
        );
    }
    if !is_static && !network.addresses.is_empty() {
        wrong("addresses", "they are for mode = \"static\"");
    }
    if !is_static && (network.gateway.is_some() || network.gateway6.is_some()) {
        wrong("gateway", "it is for mode = \"static\"");
    }
    if is_static {
        gateway(network, "gateway", network.gateway, &mut wrong);
        gateway(network, "gateway6", network.gateway6, &mut wrong);
        if network.gateway6.is_some_and(|address| address.is_ipv4()) {
            wrong("gateway6", "it must be an IPv6 address");
        }
    }
    if network.mtu.is_some_and(|mtu| !(1280..=9216).contains(&mtu)) {
        wrong("mtu", "it must be 1280 to 9216 bytes");
    }
    within(
        "agent.network.addresses",
        network.addresses.len(),
        violations,
    );
    within("agent.network.dns", network.dns.len(), violations);
}

/// A gateway that no address reaches would cut the node off.
fn gateway(
    network: &NetworkConfig,
    field: &str,
    gateway: Option<IpAddr>,
    wrong: &mut impl FnMut(&str, &str),
) {
    let Some(gateway) = gateway else { return };
    let is_link_local = matches!(gateway, IpAddr::V6(address) if address.is_unicast_link_local());
    let reaches = |cidr: &Cidr| is_in(cidr, gateway);
    if !is_link_local && !network.addresses.iter().any(reaches) {
        wrong(
            field,
            "none of the addresses is in its network, so it cannot be reached",
        );
    }
    if network.addresses.iter().any(|cidr| cidr.address == gateway) {
        wrong(field, "it is the node's own address");
    }
}

fn is_in(cidr: &Cidr, address: IpAddr) -> bool {
    match (cidr.address, address) {
        (IpAddr::V4(own), IpAddr::V4(other)) => {
            let mask = u32::MAX << (32 - u32::from(cidr.prefix));
            own.to_bits() & mask == other.to_bits() & mask
        }
        (IpAddr::V6(own), IpAddr::V6(other)) => {
            let mask = u128::MAX << (128 - u32::from(cidr.prefix));
            own.to_bits() & mask == other.to_bits() & mask
        }
        _ => false,
    }
}

fn check_time(time: &TimeConfig, violations: &mut Vec<Violation>) {
    for server in &time.servers {
        let is_address = server.parse::<IpAddr>().is_ok() || server.parse::<SocketAddr>().is_ok();
        let host = server
            .rsplit_once(':')
            .map_or(server.as_str(), |(host, _)| host);
        let is_name = !host.is_empty()
            && host.len() <= 253
            && host
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b));
        if !is_address && !is_name {
            let problem = format!("{server:?} is no address and no name of a host");
            violations.push(Violation::new("agent.time.servers", problem));
        }
    }
    within("agent.time.servers", time.servers.len(), violations);
}

fn check_fetch(fetch: &FetchConfig, violations: &mut Vec<Violation>) {
    if let Some(Err(error)) = fetch.ca.as_deref().map(pki::certificate_der) {
        violations.push(Violation::new("agent.fetch.ca", error.to_string()));
    }
}

fn within(field: &str, count: usize, violations: &mut Vec<Violation>) {
    if count > LIST_MAX {
        violations.push(Violation::new(field, format!("at most {LIST_MAX}")));
    }
}

/// The addresses of a time server. Asks the name servers: blocks.
#[must_use]
pub fn resolve(server: &str) -> Vec<SocketAddr> {
    const NTP: u16 = 123;
    if let Ok(address) = server.parse::<IpAddr>() {
        return vec![SocketAddr::new(address, NTP)];
    }
    let found = match server.rsplit_once(':') {
        Some(_) => server.to_socket_addrs(),
        None => (server, NTP).to_socket_addrs(),
    };
    found
        .map(|addresses| addresses.take(LIST_MAX).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn violations(text: &str) -> Vec<String> {
        let (_, violations) = read(&parse(text).unwrap());
        violations.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_right_document_is_read() {
        let document = parse(
            "hostname = \"a\"\n[agent.network]\ninterface = \"eth0\"\nmode = \"static\"\n\
             addresses = [\"192.0.2.10/24\", \"2001:db8::1/64\"]\ngateway = \"192.0.2.1\"\n\
             gateway6 = \"fe80::1\"\ndns = [\"192.0.2.1\"]\nmtu = 1500\n\
             [agent.time]\nservers = [\"192.0.2.1\", \"ntp.example:1123\", \"[2001:db8::1]:123\"]\n",
        )
        .unwrap();
        let (config, violations) = read(&document);
        assert!(violations.is_empty(), "{violations:?}");
        assert_eq!(config.network.addresses[0].to_string(), "192.0.2.10/24");
        assert_eq!(config.time.servers.len(), 3);
    }

    #[test]
    fn every_problem_is_listed_and_the_rest_is_kept() {
        let text = "[agent.api]\nca = \"x\"\nkey = \"y\"\n[agent.network]\nmode = \"static\"\n\
                    gateway = \"192.0.2.1\"\nmtu = 9\n[agent.time]\nservers = [\"a b\"]\n\
                    [agent.fun]\n";
        let fields: Vec<String> = violations(text)
            .iter()
            .map(|each| each.split(':').next().unwrap().to_owned())
            .collect();
        assert_eq!(
            fields,
            [
                "agent.api.ca",
                "agent.api.key",
                "agent.fun",
                "agent.network.addresses",
                "agent.network.gateway",
                "agent.network.mtu",
                "agent.time.servers"
            ]
        );
        let half = "[agent.network]\nmtu = 9\n[agent.time]\nservers = [\"a\"]\n";
        let (config, _) = read(&parse(half).unwrap());
        assert_eq!(config.network, NetworkConfig::default());
        assert_eq!(config.time.servers, ["a"]);
    }

    #[test]
    fn a_gateway_that_cannot_be_reached_is_refused() {
        let with = |gateway: &str| {
            violations(&format!(
                "[agent.network]\nmode = \"static\"\naddresses = [\"192.0.2.10/25\"]\n\
                 gateway = \"{gateway}\"\n"
            ))
        };
        assert!(with("192.0.2.1").is_empty());
        assert!(with("192.0.2.129")[0].contains("cannot be reached"));
        assert!(with("192.0.2.10")[0].contains("own address"));
        assert!(!violations("[agent.network]\ngateway = \"192.0.2.1\"\n").is_empty());
    }

    #[test]
    fn the_key_is_taken_out() {
        let mut document = parse("[agent.api]\nkey = \"secret\"\nnames = [\"n\"]\n").unwrap();
        assert_eq!(take_key(&mut document).as_deref(), Some("secret"));
        assert!(!document.to_string().contains("secret"));
        assert_eq!(take_key(&mut document), None);
        let (config, _) = read(&document);
        assert_eq!(config.api.names, ["n"]);
    }

    proptest! {
        #[test]
        fn any_text_is_a_document_or_an_error(text in "\\PC{0,200}") {
            if let Ok(document) = parse(&text) {
                let _ = read(&document);
            }
        }

        #[test]
        fn a_cidr_reads_back(text in "[0-9a-f:./]{0,24}") {
            if let Ok(cidr) = text.parse::<Cidr>() {
                prop_assert_eq!(cidr.to_string().parse::<Cidr>(), Ok(cidr));
            }
        }
    }
}
