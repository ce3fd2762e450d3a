//! The Asymmetric Namespace Access log page.

use nvme_spec::Nsid;
use nvme_spec::log::{AnaGroupDescriptor, AnaHeader, ana_state};
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use crate::error::HostError;

const WHAT: &str = "the ana log page";

/// How namespaces are reached through this controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AnaState {
    /// The best path.
    Optimized,
    /// It works, another path is better.
    NonOptimized,
    /// It does not work now.
    Inaccessible,
    /// It will not work any more.
    PersistentLoss,
    /// It changes: retry after ANATT seconds.
    Change,
    /// A state that the specification does not define.
    Reserved(u8),
}

impl AnaState {
    fn from_wire(state: u8) -> Self {
        match state {
            ana_state::OPTIMIZED => Self::Optimized,
            ana_state::NON_OPTIMIZED => Self::NonOptimized,
            ana_state::INACCESSIBLE => Self::Inaccessible,
            ana_state::PERSISTENT_LOSS => Self::PersistentLoss,
            ana_state::CHANGE => Self::Change,
            other => Self::Reserved(other),
        }
    }

    /// Whether I/O can be sent.
    #[must_use]
    pub const fn is_usable(self) -> bool {
        matches!(self, Self::Optimized | Self::NonOptimized)
    }
}

/// One ANA group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnaGroup {
    /// Its identifier.
    pub group_id: u32,
    /// Its state.
    pub state: AnaState,
    /// The change of the log in which it changed last.
    pub change_count: u64,
    /// Its namespaces.
    pub nsids: Vec<Nsid>,
}

/// The log page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnaLog {
    /// Changes so far.
    pub change_count: u64,
    /// The groups.
    pub groups: Vec<AnaGroup>,
}

impl AnaLog {
    /// Reads the page. What is beyond its groups is not looked at.
    ///
    /// # Errors
    /// It ends within a group.
    pub fn parse(bytes: &[u8]) -> Result<Self, HostError> {
        let short = |what: &str| HostError::Malformed {
            what: WHAT,
            reason: format!("it ends within {what} after {} bytes", bytes.len()),
        };
        let (header, mut rest) =
            AnaHeader::read_from_prefix(bytes).map_err(|_| short("its header"))?;
        let mut log = Self {
            change_count: header.change_count.get(),
            groups: Vec::new(),
        };
        for _ in 0..header.groups.get() {
            let (group, after) =
                AnaGroupDescriptor::read_from_prefix(rest).map_err(|_| short("a group"))?;
            let count = group.namespaces.get() as usize;
            let (nsids, after) = <[U32]>::ref_from_prefix_with_elems(after, count)
                .map_err(|_| short("a group's namespaces"))?;
            log.groups.push(AnaGroup {
                group_id: group.group_id.get(),
                state: AnaState::from_wire(group.ana_state()),
                change_count: group.change_count.get(),
                nsids: nsids.iter().map(|nsid| Nsid(nsid.get())).collect(),
            });
            rest = after;
        }
        Ok(log)
    }

    /// The state of a namespace, if it is in a group.
    #[must_use]
    pub fn state_of(&self, nsid: Nsid) -> Option<AnaState> {
        let group = self
            .groups
            .iter()
            .find(|group| group.nsids.contains(&nsid))?;
        Some(group.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    fn page() -> Vec<u8> {
        let mut bytes = AnaHeader::new(7, 2).as_bytes().to_vec();
        bytes.extend_from_slice(AnaGroupDescriptor::new(1, 2, 5, 1).as_bytes());
        bytes.extend_from_slice(&[1, 0, 0, 0, 3, 0, 0, 0]);
        bytes.extend_from_slice(AnaGroupDescriptor::new(4, 0, 7, 0xF).as_bytes());
        bytes
    }

    #[test]
    fn groups_and_their_namespaces_are_read() {
        let log = AnaLog::parse(&page()).unwrap();
        assert_eq!(log.change_count, 7);
        assert_eq!(log.groups.len(), 2);
        assert_eq!(log.state_of(Nsid(3)), Some(AnaState::Optimized));
        assert_eq!(log.state_of(Nsid(2)), None);
        assert_eq!(log.groups[1].state, AnaState::Change);
    }

    #[test]
    fn a_page_cut_anywhere_is_an_error() {
        let page = page();
        for len in 0..page.len() {
            assert!(AnaLog::parse(&page[..len]).is_err(), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = AnaLog::parse(&bytes);
        }
    }
}
