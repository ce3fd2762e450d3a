//! The node as this program knows it: which configuration holds, who it is, who may come.

mod names;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use init::config::Source;
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;

use self::names::{names, names_in, own_names, server_name, server_name_of};
use crate::clock::Clock;
use crate::config::{self, AgentConfig, Violation};
use crate::error::{AgentError, chain};
use crate::forward::Forward;
use crate::health::Boot;
use crate::init_client::InitClient;
use crate::keep::{Keeping, Kept};
use crate::maintenance::Gate;
use crate::network::NetworkStatus;
use crate::store::{Generation, Store};
use crate::time::TimeStatus;
use crate::tls::{self, Identity};
use crate::wipe::Loans;

/// How long a certificate holds that the node makes for itself, in days. Clients pin it or its
/// authority; nobody is there to renew it.
const OWN_CERTIFICATE_DAYS: u32 = 10 * 365;
/// How long the first administrator's certificate holds, in days.
const ADMIN_CERTIFICATE_DAYS: u32 = 365;
/// Most alerts that are kept.
const ALERTS_MAX: usize = 32;

/// Where things are. Tests have them in a folder of their own.
#[derive(Debug, Clone)]
pub struct Paths {
    /// What is kept.
    pub state_dir: PathBuf,
    /// Init's control socket.
    pub init_socket: PathBuf,
    /// `aditd`'s socket.
    pub aditd_socket: PathBuf,
    /// Holds `sys/`, `proc/` and `dev/`.
    pub root: PathBuf,
}

/// The state in which a connection comes.
#[derive(Debug)]
pub struct Current {
    /// Grows with every change of who may come. A connection of another epoch is not served.
    pub epoch: u64,
    /// Whether client certificates are wanted; if not, the node is in maintenance mode.
    pub is_configured: bool,
    /// What a connection is offered.
    pub tls: Arc<ServerConfig>,
    /// Who the node says that it is.
    pub identity: Identity,
    /// The name in its certificate.
    pub server_name: String,
    /// The authority of clients, PEM.
    pub ca_pem: Option<String>,
    /// The document, without a key.
    pub document: String,
    /// The agent's part of what holds.
    pub config: AgentConfig,
    /// Where the document was fetched; `None` when a person or a controller applied it.
    pub fetched_from: Option<String>,
    /// Where one is to be fetched; `None` also when only a person may give one.
    pub config_url: Option<String>,
    /// Where values are from that are not from the document.
    pub sources: Vec<String>,
    /// What is wrong with it.
    pub alerts: Vec<String>,
}

/// A request for another configuration.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The document.
    pub document: String,
    /// The node's certificate, signed for its request.
    pub certificate_pem: Option<String>,
    /// A request to sign for an administrator.
    pub admin_request_pem: Option<String>,
    /// Digest of the document that must be in force.
    pub expected_digest: Option<String>,
    /// Where the document was fetched; `None` when a person or a controller gives it.
    pub fetched_from: Option<String>,
}

/// A configuration that was checked, or applied.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Digest of its document.
    pub digest: String,
    /// What is worth knowing.
    pub notes: Vec<String>,
    /// The authority of clients.
    pub ca_pem: String,
    /// The administrator's certificate, if one was signed.
    pub admin_certificate_pem: Option<String>,
    /// SHA-256 of the node's certificate.
    pub fingerprint: String,
    /// The name in it.
    pub server_name: String,
}

/// Why a configuration is not applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigureError {
    /// Things are wrong with it.
    #[error("the configuration is wrong: {} problems", .0.len())]
    Invalid(Vec<Violation>),
    /// Another one is in force than the caller thinks.
    #[error("the configuration in force is {actual}, not {expected}; read it and try again")]
    Changed {
        /// The digest that was expected.
        expected: String,
        /// The digest that is.
        actual: String,
    },
    /// It could not be kept or made so.
    #[error(transparent)]
    Failed(#[from] AgentError),
}

/// The node.
#[derive(Debug)]
pub struct Node {
    /// Where things are.
    pub paths: Paths,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where codes are tried.
    pub gate: Gate,
    /// The way to PID 1.
    pub init: InitClient,
    /// The way to `aditd`.
    pub forward: Forward,
    /// What the management interface does.
    pub network: watch::Sender<NetworkStatus>,
    /// What is known of the clock.
    pub time: watch::Sender<TimeStatus>,
    /// Whether this boot is good.
    pub boot: watch::Sender<Boot>,
    /// Drives that the kernel has while they are wiped.
    pub loans: Arc<Loans>,
    /// Where this program's state is kept.
    pub keeping: watch::Sender<Keeping>,
    store: Store,
    current: watch::Sender<Arc<Current>>,
    /// One change at a time.
    change: tokio::sync::Mutex<()>,
    alerts: Mutex<Vec<String>>,
}

impl Node {
    /// Reads what is kept and asks init what holds. A configuration that is wrong leaves the node in
    /// maintenance mode, never out of reach.
    ///
    /// # Errors
    /// When there is no state directory or no key: then there is nothing to be reached by.
    pub async fn start(paths: Paths, clock: Arc<dyn Clock>) -> Result<Arc<Node>, AgentError> {
        let store = Store::open(&paths.state_dir)?;
        let init = InitClient::new(&paths.init_socket);
        let forward = Forward::new(&paths.aditd_socket)?;
        let (stored, mut alerts) = match store.current() {
            Ok(stored) => (stored, Vec::new()),
            Err(error) => {
                let alert = format!(
                    "the configuration that is kept cannot be used: {}",
                    chain(&error)
                );
                (store.previous().unwrap_or(None), vec![alert])
            }
        };
        let document = stored
            .as_ref()
            .map_or("", |stored| stored.document.as_str());
        let effective = effective(&init, document, &mut alerts).await;
        let name = server_name(&init).await;
        let first = first(&store, stored, effective, &name, &clock, alerts)?;
        let gate = Gate::closed();
        if !first.is_configured {
            gate.open();
        }
        Ok(Arc::new(Node {
            loans: Loans::new(&paths.init_socket),
            paths,
            clock,
            gate,
            init,
            forward,
            network: watch::Sender::new(NetworkStatus::default()),
            time: watch::Sender::new(TimeStatus::default()),
            boot: watch::Sender::new(Boot::default()),
            keeping: watch::Sender::new(Keeping::default()),
            store,
            current: watch::Sender::new(Arc::new(first)),
            change: tokio::sync::Mutex::new(()),
            alerts: Mutex::new(Vec::new()),
        }))
    }

    /// What holds now.
    #[must_use]
    pub fn current(&self) -> Arc<Current> {
        self.current.borrow().clone()
    }

    /// Tells of changes of it.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<Current>> {
        self.current.subscribe()
    }

    /// The configuration in force, or the one before.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn document(&self, previous: bool) -> Result<String, AgentError> {
        if previous {
            let generation = self.store.previous()?;
            return Ok(generation.map(|each| each.document).unwrap_or_default());
        }
        Ok(self.current().document.clone())
    }

    /// Whether `aditd` was asked for what outlived the power.
    pub(crate) fn has_asked(&self) -> bool {
        self.store.has_asked()
    }

    pub(crate) fn set_asked(&self) -> Result<(), AgentError> {
        self.store.set_asked()
    }

    /// What is to outlive the power; nothing (no bytes) where the configuration says so, `None` for a node that
    /// nobody has configured: what was kept of it before may be needed yet.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn to_keep(&self) -> Result<Option<Vec<u8>>, AgentError> {
        let current = self.current();
        if !current.config.state.in_system_pool {
            return Ok(Some(Vec::new()));
        }
        if !current.is_configured {
            return Ok(None);
        }
        Ok(Some(self.store.to_keep()?.encode()))
    }

    /// Takes what outlived the power, unless a configuration was applied meanwhile. Whether it did.
    ///
    /// # Errors
    /// When it is of no use; then nothing has changed.
    pub async fn restore(&self, bytes: &[u8]) -> Result<bool, AgentError> {
        let _one = self.change.lock().await;
        let before = self.current();
        if self.store.current()?.is_some() || !before.config.state.in_system_pool {
            return Ok(false);
        }
        let kept = Kept::decode(bytes)?;
        // A key that signs is one.
        pki::signing_request(
            &kept.node_key_pem,
            std::slice::from_ref(&before.server_name),
        )?;
        if let Some(generation) = &kept.generation {
            let (certificate, key) = (&generation.certificate_pem, &generation.key_pem);
            let identity = Identity::new(certificate.clone(), key.clone())?;
            tls::server_config(&identity, Some(&generation.ca_pem), self.clock.clone())?;
        }
        self.store.restore(&kept)?;
        let mut alerts = Vec::new();
        let document = kept.generation.as_ref().map_or("", |each| &each.document);
        let effective = effective(&self.init, document, &mut alerts).await;
        let name = server_name(&self.init).await;
        let stored = kept.generation.clone();
        let mut next = first(&self.store, stored, effective, &name, &self.clock, alerts)?;
        next.epoch = before.epoch + 1;
        match (before.is_configured, next.is_configured) {
            (_, true) => self.gate.close(),
            (true, false) => self.gate.open(),
            (false, false) => {}
        }
        self.current.send_replace(Arc::new(next));
        Ok(true)
    }

    /// Something that an operator should read. The newest are kept.
    pub fn alert(&self, text: impl Into<String>) {
        let text = text.into();
        tracing::warn!("{text}");
        let mut alerts = self.alerts.lock().unwrap_or_else(PoisonError::into_inner);
        alerts.retain(|old| *old != text);
        if alerts.len() == ALERTS_MAX {
            alerts.remove(0);
        }
        alerts.push(text);
    }

    /// As [`Node::alert`], until what is returned is dropped.
    pub(crate) fn raise(&self, text: impl Into<String>) -> Alert<'_> {
        let text = text.into();
        self.alert(&text);
        Alert { node: self, text }
    }

    /// Every alert.
    #[must_use]
    pub fn alerts(&self) -> Vec<String> {
        let mut all = self.current().alerts.clone();
        let own = self.alerts.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(own.iter().cloned());
        all
    }

    /// A request to sign a certificate for the node's key, and the names that it is for: those in
    /// `document`, or in the one in force. The first is the node's own.
    ///
    /// # Errors
    /// When there is no key, or the document or a name is wrong.
    pub fn signing_request(
        &self,
        document: Option<&str>,
    ) -> Result<(String, Vec<String>), ConfigureError> {
        let current = self.current();
        let document = document.unwrap_or(&current.document);
        let table = config::parse(document).map_err(|each| ConfigureError::Invalid(vec![each]))?;
        let (config, _) = config::read(&table);
        let name = server_name_of(&table).unwrap_or_else(|| current.server_name.clone());
        let names = names(&name, &config);
        let key = self.store.node_key()?;
        let pem = pki::signing_request(&key, &names).map_err(AgentError::from)?;
        Ok((pem, names))
    }

    /// Checks a configuration, and unless `dry_run` makes it the one in force.
    ///
    /// # Errors
    /// When something is wrong with it; then nothing has changed.
    pub async fn configure(
        &self,
        wanted: &Wanted,
        dry_run: bool,
    ) -> Result<Outcome, ConfigureError> {
        let _one = self.change.lock().await;
        let current = self.current();
        let actual = pki::sha256_hex(current.document.as_bytes());
        if let Some(expected) = &wanted.expected_digest
            && *expected != actual
        {
            return Err(ConfigureError::Changed {
                expected: expected.clone(),
                actual,
            });
        }
        let one = |violation| ConfigureError::Invalid(vec![violation]);
        let mut table = config::parse(&wanted.document).map_err(one)?;
        let (mut config, mut violations) = config::read(&table);
        let key = config::take_key(&mut table);
        // Comments are worth keeping where nothing has to be taken out.
        let document = match key {
            Some(_) => table.to_string(),
            None => wanted.document.clone(),
        };
        let mut notes = Vec::new();
        if let Some(merged) = self.ask_init(&document, &mut violations, &mut notes).await {
            // Other sources may say what the document does not, such as the authority.
            let own_key = config.api.key.take();
            config = merged;
            config.api.key = own_key.or(config.api.key);
        }
        let name = server_name_of(&table).unwrap_or_else(|| current.server_name.clone());
        let made = self.make(wanted, &config, &name, document, &mut violations);
        let Some((generation, admin)) = made.filter(|_| violations.is_empty()) else {
            return Err(ConfigureError::Invalid(violations));
        };
        let identity = Identity::new(
            generation.certificate_pem.clone(),
            generation.key_pem.clone(),
        )?;
        let tls = tls::server_config(&identity, Some(&generation.ca_pem), self.clock.clone())?;
        let mut outcome = Outcome {
            digest: generation.digest(),
            notes,
            ca_pem: generation.ca_pem.clone(),
            admin_certificate_pem: admin,
            fingerprint: identity.fingerprint.clone(),
            server_name: name.clone(),
        };
        if dry_run {
            return Ok(outcome);
        }
        self.store.commit(&generation)?;
        let mut alerts = Vec::new();
        let effective = effective(&self.init, &generation.document, &mut alerts).await;
        outcome.notes.extend(alerts.iter().cloned());
        let who_may_come = current.ca_pem.as_deref() != Some(generation.ca_pem.as_str());
        let next = Current {
            epoch: current.epoch + u64::from(who_may_come),
            is_configured: true,
            tls,
            identity,
            server_name: name,
            ca_pem: Some(generation.ca_pem),
            document: generation.document,
            fetched_from: generation.fetched_from,
            config_url: effective.config_url,
            config: effective.config,
            sources: effective.sources,
            alerts,
        };
        self.gate.close();
        self.current.send_replace(Arc::new(next));
        tracing::info!(digest = outcome.digest, "a configuration was applied");
        Ok(outcome)
    }

    /// What init makes of the document: the agent's part together with what other sources say.
    async fn ask_init(
        &self,
        document: &str,
        violations: &mut Vec<Violation>,
        notes: &mut Vec<String>,
    ) -> Option<AgentConfig> {
        if !self.init.is_there() {
            notes.push("there is no init here: only the agent's part was checked".to_owned());
            return None;
        }
        match self.init.configure(document, true).await {
            Ok(answer) => {
                for problem in answer.problems {
                    if problem.source == Source::Agent {
                        violations.push(Violation::new(&problem.key, problem.text));
                    } else {
                        notes.push(format!(
                            "{} from {}: {}",
                            problem.key, problem.source, problem.text
                        ));
                    }
                }
                notes.extend(answer.later);
                let merged = config::parse(&answer.document).ok()?;
                Some(config::read(&merged).0)
            }
            Err(AgentError::Refused(text)) => {
                violations.push(Violation::new("", text));
                None
            }
            Err(error) => {
                notes.push(format!("init did not check it: {}", chain(&error)));
                None
            }
        }
    }

    /// Everything that a configuration needs. What is wrong goes into `violations`.
    fn make(
        &self,
        wanted: &Wanted,
        config: &AgentConfig,
        name: &str,
        document: String,
        violations: &mut Vec<Violation>,
    ) -> Option<(Generation, Option<String>)> {
        // One that cannot be read is nothing to go on with.
        let kept = self.store.current().ok().flatten();
        let given = &config.api.certificate;
        let kept_key = kept
            .as_ref()
            .filter(|kept| given.as_ref() == Some(&kept.certificate_pem))
            .map(|kept| kept.key_pem.clone());
        let key_pem = match config.api.key.clone().or(kept_key) {
            Some(key) => key,
            None => note(self.store.node_key(), "", violations)?,
        };
        if let Some(ca_pem) = &config.api.ca {
            // Clients know the node by its certificate: it stays where nobody brings another.
            let stays = kept.filter(|kept| kept.key_pem == key_pem && kept.ca_pem == *ca_pem);
            let given = wanted.certificate_pem.clone().or(given.clone());
            let certificate_pem = match given.or(stays.map(|kept| kept.certificate_pem)) {
                Some(pem) => pem,
                None => note(
                    own_certificate(&self.store, name, config, &self.clock),
                    "",
                    violations,
                )?,
            };
            let pair = Identity::new(certificate_pem.clone(), key_pem.clone());
            note(pair, "agent.api.certificate", violations)?;
            let tls = tls::verify_authority(ca_pem, self.clock.clone());
            note(tls, "agent.api.ca", violations)?;
            let generation = Generation {
                document,
                ca_pem: ca_pem.clone(),
                ca_key_pem: None,
                certificate_pem,
                key_pem,
                fetched_from: wanted.fetched_from.clone(),
            };
            return Some((generation, None));
        }
        let made = self.own_authority(wanted, name, config, document, key_pem);
        note(made, "agent.api.ca", violations)
    }

    /// The node is its own authority: the one that it made before, or a new one that signs an
    /// administrator's request.
    fn own_authority(
        &self,
        wanted: &Wanted,
        name: &str,
        config: &AgentConfig,
        document: String,
        key_pem: String,
    ) -> Result<(Generation, Option<String>), AgentError> {
        let now = self.clock.now();
        let before = self
            .store
            .current()?
            .filter(|each| each.ca_key_pem.is_some());
        let (authority, ca_key_pem) = match (&before, &wanted.admin_request_pem) {
            (Some(before), _) => {
                let key = before.ca_key_pem.clone().unwrap_or_default();
                (pki::Authority::read(&before.ca_pem, &key)?, key)
            }
            (None, Some(_)) => {
                let validity = pki::Validity::days(now, OWN_CERTIFICATE_DAYS);
                let (authority, issued) =
                    pki::Authority::make(&format!("{name} authority"), validity)?;
                (authority, issued.key_pem)
            }
            (None, None) => {
                let problem = "it must be the authority of client certificates, PEM \
                               (`aditctl pki init` makes one); or come with a signing request, \
                               and the node makes its own";
                return Err(AgentError::Tls(problem.to_owned()));
            }
        };
        let admin = wanted.admin_request_pem.as_ref().map(|request| {
            let validity = pki::Validity::days(now, ADMIN_CERTIFICATE_DAYS);
            authority.sign_client(request, "admin", pki::Role::Admin, validity)
        });
        let names = own_names(name, config);
        let stays = before.filter(|before| {
            before.key_pem == key_pem && names_in(&before.document).as_ref() == Some(&names)
        });
        let certificate_pem = match stays {
            Some(before) => before.certificate_pem,
            None => {
                let request = pki::signing_request(&key_pem, &names)?;
                let validity = pki::Validity::days(now, OWN_CERTIFICATE_DAYS);
                authority.sign_node(&request, &names, validity)?
            }
        };
        let generation = Generation {
            document,
            ca_pem: authority.certificate_pem().to_owned(),
            ca_key_pem: Some(ca_key_pem),
            certificate_pem,
            key_pem,
            fetched_from: wanted.fetched_from.clone(),
        };
        Ok((generation, admin.transpose()?))
    }
}

/// Something that is wrong for as long as this is held.
#[derive(Debug)]
pub(crate) struct Alert<'a> {
    node: &'a Node,
    pub(crate) text: String,
}

impl Drop for Alert<'_> {
    fn drop(&mut self) {
        let mut alerts = self
            .node
            .alerts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        alerts.retain(|alert| *alert != self.text);
    }
}

fn note<T>(
    result: Result<T, AgentError>,
    field: &str,
    violations: &mut Vec<Violation>,
) -> Option<T> {
    result
        .map_err(|error| violations.push(Violation::new(field, chain(&error))))
        .ok()
}

#[derive(Debug, Default)]
struct Effective {
    config: AgentConfig,
    violations: Vec<Violation>,
    sources: Vec<String>,
    wants_maintenance: bool,
    config_url: Option<String>,
}

/// What holds: on an appliance init says so, for other sources may overrule the document.
async fn effective(init: &InitClient, document: &str, alerts: &mut Vec<String>) -> Effective {
    let mut effective = Effective::default();
    let mut text = document.to_owned();
    if init.is_there() {
        let answer = if document.is_empty() {
            init.configuration().await
        } else {
            init.configure(document, false).await
        };
        match answer {
            Ok(answer) => {
                text = answer.document;
                alerts.extend(answer.problems.iter().map(|problem| {
                    let key = if problem.key.is_empty() {
                        "configuration"
                    } else {
                        &problem.key
                    };
                    format!(
                        "{key} from {} is not used: {}",
                        problem.source, problem.text
                    )
                }));
                effective.sources = answer
                    .values
                    .iter()
                    .filter(|value| {
                        value.source != Source::Agent && !value.key.ends_with("api.key")
                    })
                    .map(|value| format!("{} = {} ({})", value.key, value.value, value.source))
                    .collect();
            }
            Err(error) => alerts.push(format!("init does not say what holds: {}", chain(&error))),
        }
    }
    match config::parse(&text) {
        Ok(table) => {
            effective.wants_maintenance =
                table.get("maintenance").and_then(toml::Value::as_bool) == Some(true);
            effective.config_url = table
                .get("config_url")
                .and_then(toml::Value::as_str)
                .filter(|_| !effective.wants_maintenance)
                .map(str::to_owned);
            (effective.config, effective.violations) = config::read(&table);
            alerts.extend(effective.violations.iter().map(ToString::to_string));
        }
        Err(violation) => alerts.push(violation.to_string()),
    }
    effective
}

/// What holds at the start.
fn first(
    store: &Store,
    stored: Option<Generation>,
    effective: Effective,
    name: &str,
    clock: &Arc<dyn Clock>,
    mut alerts: Vec<String>,
) -> Result<Current, AgentError> {
    let document = stored
        .as_ref()
        .map_or(String::new(), |stored| stored.document.clone());
    let fetched_from = stored
        .as_ref()
        .and_then(|stored| stored.fetched_from.clone());
    let (config, sources, config_url) = (effective.config, effective.sources, effective.config_url);
    let configured = configured(store, stored, &config, name, clock);
    let found = match configured {
        Ok(found) => found.filter(|_| !effective.wants_maintenance),
        Err(error) => {
            alerts.push(format!("maintenance mode, because {}", chain(&error)));
            None
        }
    };
    let is_configured = found.is_some();
    let (identity, tls, ca_pem) = match found {
        Some((identity, tls, ca_pem)) => (identity, tls, Some(ca_pem)),
        None => {
            let certificate = own_certificate(store, name, &config, clock)?;
            let identity = Identity::new(certificate, store.node_key()?)?;
            let tls = tls::server_config(&identity, None, clock.clone())?;
            (identity, tls, None)
        }
    };
    Ok(Current {
        epoch: 1,
        is_configured,
        tls,
        identity,
        server_name: name.to_owned(),
        ca_pem,
        document,
        fetched_from,
        config_url,
        config,
        sources,
        alerts,
    })
}

type Found = (Identity, Arc<ServerConfig>, String);

/// The identity of a configured node: what is kept, or what another source brings with it.
fn configured(
    store: &Store,
    stored: Option<Generation>,
    config: &AgentConfig,
    name: &str,
    clock: &Arc<dyn Clock>,
) -> Result<Option<Found>, AgentError> {
    let (certificate, key, ca_pem) = match (stored, &config.api.ca) {
        (Some(stored), _) => (stored.certificate_pem, stored.key_pem, stored.ca_pem),
        (None, Some(ca_pem)) => {
            let (certificate, key) = match (&config.api.certificate, &config.api.key) {
                (Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
                _ => (
                    own_certificate(store, name, config, clock)?,
                    store.node_key()?,
                ),
            };
            (certificate, key, ca_pem.clone())
        }
        (None, None) => return Ok(None),
    };
    let identity = Identity::new(certificate, key)?;
    let tls = tls::server_config(&identity, Some(&ca_pem), clock.clone())?;
    Ok(Some((identity, tls, ca_pem)))
}

/// The certificate that the node makes for its own key. Made once, so that its fingerprint stays.
fn own_certificate(
    store: &Store,
    name: &str,
    config: &AgentConfig,
    clock: &Arc<dyn Clock>,
) -> Result<String, AgentError> {
    let key = store.node_key()?;
    if let Some(pem) = store.own_certificate()
        && let Ok(der) = pki::certificate_der(&pem)
        && pki::is_key_of(&key, &der).unwrap_or(false)
    {
        return Ok(pem);
    }
    let validity = pki::Validity::days(clock.now(), OWN_CERTIFICATE_DAYS);
    let pem = pki::self_signed(&key, &own_names(name, config), validity)?;
    store.keep_own_certificate(&pem)?;
    Ok(pem)
}

/// Whether an address is worth showing to a person.
#[must_use]
pub fn is_shown(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    }
}
