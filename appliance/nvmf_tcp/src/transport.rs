//! The transport: options in, acceptors and groups out.

use std::any::Any;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fabric_wire::TransportAddress;
use nvmf::transport::{
    Acceptor, GroupContext, Transport, TransportGroup, TransportId, TransportLimits,
};

use crate::group::TcpGroup;
use crate::listener::TcpAcceptor;
use crate::stats::TcpStats;
use crate::{TcpError, TcpOptions};

/// The NVMe/TCP transport of a target; give it to [`nvmf::Target::add_transport`].
#[derive(Debug)]
pub struct TcpTransport {
    options: Arc<TcpOptions>,
    limits: TransportLimits,
    stats: Arc<TcpStats>,
}

impl TcpTransport {
    /// A transport with these options.
    ///
    /// # Errors
    /// An option has a value that cannot be.
    pub fn new(options: TcpOptions) -> Result<Self, TcpError> {
        options.validate()?;
        let limits = options.limits();
        Ok(Self {
            options: Arc::new(options),
            limits,
            stats: Arc::default(),
        })
    }

    /// The options it was made with.
    pub fn options(&self) -> &TcpOptions {
        &self.options
    }

    /// Counters over all listeners and poll groups.
    pub fn stats(&self) -> &Arc<TcpStats> {
        &self.stats
    }
}

impl Transport for TcpTransport {
    fn name(&self) -> &'static str {
        "TCP"
    }

    fn limits(&self) -> &TransportLimits {
        &self.limits
    }

    fn listen(
        &self,
        id: TransportId,
        address: &Arc<TransportAddress>,
    ) -> io::Result<Box<dyn Acceptor>> {
        let (options, stats) = (Arc::clone(&self.options), Arc::clone(&self.stats));
        Ok(Box::new(TcpAcceptor::new(
            id,
            Arc::clone(address),
            options,
            stats,
        )?))
    }

    fn listen_on(
        &self,
        id: TransportId,
        address: &Arc<TransportAddress>,
        socket: OwnedFd,
    ) -> io::Result<Box<dyn Acceptor>> {
        let (options, stats) = (Arc::clone(&self.options), Arc::clone(&self.stats));
        let listener = crate::socket::relisten(socket, &options)?;
        let address = Arc::clone(address);
        Ok(Box::new(TcpAcceptor::on(
            id, address, listener, options, stats,
        )?))
    }

    fn group(&self, context: &GroupContext<'_>) -> io::Result<Box<dyn TransportGroup>> {
        let (options, stats) = (Arc::clone(&self.options), Arc::clone(&self.stats));
        Ok(Box::new(TcpGroup::new(context.transport, options, stats)?))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
