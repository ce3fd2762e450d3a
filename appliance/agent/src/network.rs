//! The management interface.

/// What the management interface does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkStatus {
    /// Its name; empty while there is none.
    pub interface: String,
    /// `dhcp`, `static` or `none`.
    pub mode: String,
    /// Addresses with prefix length.
    pub addresses: Vec<String>,
    /// Default gateways.
    pub gateways: Vec<String>,
    /// Name servers.
    pub dns: Vec<String>,
    /// Time servers that DHCP brought.
    pub time_servers: Vec<String>,
    /// What it does or waits for.
    pub state: String,
    /// When the lease ends, ms since 1970; 0 without one.
    pub lease_end_unix_ms: u64,
}

/// Keeps the management interface as configured for as long as the program runs.
pub async fn keep(_node: std::sync::Arc<crate::node::Node>) {}
