//! The transport: options in, acceptors and groups out.

use std::any::Any;
use std::io;
use std::sync::Arc;

use fabric_wire::TransportAddress;
use nvmf::transport::{
    Acceptor, GroupContext, Transport, TransportGroup, TransportId, TransportLimits,
};
use verbs::Provider;

use crate::group::RdmaGroup;
use crate::listener::{LostListeners, RdmaAcceptor};
use crate::memory::Devices;
use crate::stats::RdmaStats;
use crate::{RdmaError, RdmaOptions};

/// The NVMe over RDMA transport of a target; give it to [`nvmf::Target::add_transport`].
#[derive(Debug)]
pub struct RdmaTransport {
    options: Arc<RdmaOptions>,
    limits: TransportLimits,
    stats: Arc<RdmaStats>,
    devices: Arc<Devices>,
    lost: Arc<LostListeners>,
}

impl RdmaTransport {
    /// Makes it, over the verbs of `provider`.
    ///
    /// # Errors
    /// An option that is wrong.
    pub fn new(options: RdmaOptions, provider: Arc<dyn Provider>) -> Result<Self, RdmaError> {
        options.validate()?;
        Ok(Self {
            limits: options.limits(),
            options: Arc::new(options),
            stats: Arc::default(),
            devices: Devices::new(provider),
            lost: Arc::default(),
        })
    }

    /// The options it was made with.
    #[must_use]
    pub fn options(&self) -> &RdmaOptions {
        &self.options
    }

    /// Its counters.
    #[must_use]
    pub fn stats(&self) -> &Arc<RdmaStats> {
        &self.stats
    }

    /// Why nothing listens at an address although the target was told to: its device was removed.
    /// It listens again by itself; it looks for the device every 1 to 8 s.
    #[must_use]
    pub fn listener_lost(&self, address: &TransportAddress) -> Option<String> {
        self.lost.reason(address)
    }
}

impl Transport for RdmaTransport {
    fn name(&self) -> &'static str {
        "RDMA"
    }

    fn limits(&self) -> &TransportLimits {
        &self.limits
    }

    fn listen(
        &self,
        id: TransportId,
        address: &Arc<TransportAddress>,
    ) -> io::Result<Box<dyn Acceptor>> {
        Ok(Box::new(RdmaAcceptor::new(
            id,
            address,
            &self.devices,
            &self.options,
            &self.stats,
            &self.lost,
        )?))
    }

    fn group(&self, context: &GroupContext<'_>) -> io::Result<Box<dyn TransportGroup>> {
        Ok(Box::new(RdmaGroup::new(
            context.transport,
            context.iobuf,
            &self.options,
            &self.stats,
            &self.devices,
        )?))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
