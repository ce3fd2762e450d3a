//! Asynchronous events.

use nvme_spec::event::{kind, notice, parse_event_dw0};

/// What a controller reports on its own.
///
/// An event of a kind is reported once, until the log page that belongs to it is read (without
/// RAE): read it even when nothing in it is of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Event {
    /// A namespace came, went or changed: read the changed namespaces log
    /// ([`crate::Admin::changed_namespaces`]).
    NamespaceAttributeChanged,
    /// ANA states changed: read the ANA log ([`crate::Admin::ana_log`]).
    AnaChange,
    /// The discovery log changed: read it again.
    DiscoveryLogChange,
    /// The NVM subsystem shuts down.
    SubsystemShutdown,
    /// An error of the controller: `info` is of [`nvme_spec::event::error`].
    Error {
        /// What happened.
        info: u8,
    },
    /// A health event: `info` is of [`nvme_spec::event::smart`].
    Smart {
        /// What happened.
        info: u8,
    },
    /// Any other.
    Other {
        /// Type, of [`kind`].
        kind: u8,
        /// Information, its meaning depends on the type.
        info: u8,
        /// Log page to read.
        log_id: u8,
    },
}

impl Event {
    /// Reads dword 0 of the completion.
    #[must_use]
    pub const fn from_dword(dw0: u32) -> Self {
        let (kind, info, log_id) = parse_event_dw0(dw0);
        match (kind, info) {
            (kind::NOTICE, notice::NAMESPACE_ATTRIBUTE_CHANGED) => Self::NamespaceAttributeChanged,
            (kind::NOTICE, notice::ANA_CHANGE) => Self::AnaChange,
            (kind::NOTICE, notice::DISCOVERY_LOG_CHANGE) => Self::DiscoveryLogChange,
            (kind::IMMEDIATE, nvme_spec::event::immediate::SUBSYSTEM_SHUTDOWN) => {
                Self::SubsystemShutdown
            }
            (kind::ERROR, info) => Self::Error { info },
            (kind::SMART, info) => Self::Smart { info },
            (kind, info) => Self::Other { kind, info, log_id },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvme_spec::event::event_dw0;

    #[test]
    fn events_are_told_apart_by_type_and_information() {
        assert_eq!(
            Event::from_dword(event_dw0(2, 0, 4)),
            Event::NamespaceAttributeChanged
        );
        assert_eq!(Event::from_dword(event_dw0(2, 3, 0x0C)), Event::AnaChange);
        assert_eq!(
            Event::from_dword(event_dw0(2, 0xF0, 0x70)),
            Event::DiscoveryLogChange
        );
        assert_eq!(
            Event::from_dword(event_dw0(0, 3, 1)),
            Event::Error { info: 3 }
        );
        assert_eq!(
            Event::from_dword(event_dw0(7, 9, 0xC1)),
            Event::Other {
                kind: 7,
                info: 9,
                log_id: 0xC1
            }
        );
    }
}
