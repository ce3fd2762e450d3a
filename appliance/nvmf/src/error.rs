//! Errors of the control side.

use fabric_wire::Nqn;
use nvme_spec::Nsid;

/// Why a call on the target failed. Hosts never see these: they get NVMe status values.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// No such subsystem.
    #[error("no subsystem {nqn}")]
    NoSubsystem {
        /// Its name.
        nqn: Nqn,
    },
    /// The name is taken.
    #[error("subsystem {nqn} exists already")]
    SubsystemExists {
        /// Its name.
        nqn: Nqn,
    },
    /// The target's limit of subsystems is reached.
    #[error("the target holds {max} subsystems, its limit; raise max_subsystems or delete one")]
    TooManySubsystems {
        /// The limit.
        max: usize,
    },
    /// A string does not fit its Identify field.
    #[error("{field} {value:?} must be 1 to {max} printable ASCII characters")]
    BadString {
        /// Which.
        field: &'static str,
        /// What was given.
        value: String,
        /// The field's size.
        max: usize,
    },
    /// The controller identifier range is empty or out of bounds.
    #[error("controller identifiers {min} to {max}: the range must lie within 1 to 65519")]
    BadCntlidRange {
        /// Lowest.
        min: u16,
        /// Highest.
        max: u16,
    },
    /// The namespace number is taken.
    #[error("namespace {} of {nqn} exists already", nsid.0)]
    NamespaceExists {
        /// The subsystem.
        nqn: Nqn,
        /// The number.
        nsid: Nsid,
    },
    /// The ANA group's number is out of range.
    #[error("ana group {group}: the number must lie within 1 to {max}")]
    BadAnaGroup {
        /// The number.
        group: u32,
        /// The highest.
        max: u32,
    },
    /// No such namespace.
    #[error("{nqn} has no namespace {}", nsid.0)]
    NoNamespace {
        /// The subsystem.
        nqn: Nqn,
        /// The number.
        nsid: Nsid,
    },
    /// All numbers are taken, or the number is above the subsystem's limit.
    #[error("{nqn} has room for {max} namespaces; create it with a larger max_namespaces")]
    TooManyNamespaces {
        /// The subsystem.
        nqn: Nqn,
        /// Its limit.
        max: u32,
    },
    /// The subsystem is reached at this address already.
    #[error("{nqn} is reached at {address} already")]
    ListenerExists {
        /// The subsystem.
        nqn: Nqn,
        /// The address.
        address: String,
    },
    /// The subsystem is not reached at this address.
    #[error("{nqn} is not reached at {address}")]
    NoListener {
        /// The subsystem.
        nqn: Nqn,
        /// The address.
        address: String,
    },
    /// The transport cannot listen.
    #[error("cannot listen at {address}")]
    Listen {
        /// The address.
        address: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// No transport for this address.
    #[error("no transport {name}; create it first")]
    NoTransport {
        /// Its name.
        name: String,
    },
    /// The transport was created already.
    #[error("transport {name} exists already")]
    TransportExists {
        /// Its name.
        name: String,
    },
    /// A transport moves more in one command than a buffer holds.
    #[error(
        "transport {transport} has max_io_size {max_io_size}, and the buffers of the pool hold \
         large_bufsize {large_bufsize} bytes: make the one smaller or the other larger"
    )]
    IoSize {
        /// The transport.
        transport: &'static str,
        /// Its option.
        max_io_size: u32,
        /// The pool's option.
        large_bufsize: u32,
    },
    /// A transport could not make its part of a poll group.
    #[error("transport {transport} cannot work in this poll group")]
    TransportGroup {
        /// The transport.
        transport: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// No data buffers for a poll group.
    #[error("no data buffers for {module}")]
    Iobuf {
        /// Who asked.
        module: String,
        /// The sum, and the option to change.
        #[source]
        source: dma::DmaError,
    },
    /// No epoll descriptor.
    #[error("cannot make an epoll descriptor for a poll group; raise the limit of open files")]
    Epoll {
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// There is no poll group to do the work.
    #[error("the target has no poll group yet")]
    NoPollGroup,
    /// The subsystem's state does not allow this.
    #[error("subsystem {nqn} is {state}")]
    WrongState {
        /// The subsystem.
        nqn: Nqn,
        /// Its state.
        state: &'static str,
    },
}
