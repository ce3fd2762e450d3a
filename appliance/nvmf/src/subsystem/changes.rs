//! What a configuration change touched.

use nvme_spec::Nsid;

/// What a configuration change touched.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    /// Namespaces added, removed or changed.
    pub(crate) namespaces: Vec<Nsid>,
    /// ANA states or groups of namespaces that are there.
    pub(crate) ana: bool,
    /// Namespaces came to ANA groups or left them: counted in the ANA log, and told to hosts by the
    /// namespace event alone (NVMe Base 2.1, section 5.1.2, Asymmetric Namespace Access Change).
    pub(crate) ana_members: bool,
    /// What a discovery log shows.
    pub(crate) discovery: bool,
}

impl Changes {
    pub(super) const DISCOVERY: Self = Self {
        namespaces: Vec::new(),
        ana: false,
        ana_members: false,
        discovery: true,
    };

    /// A namespace came or went.
    pub(super) fn member(nsid: Nsid) -> Self {
        Self {
            namespaces: vec![nsid],
            ana_members: true,
            ..Self::default()
        }
    }
}
