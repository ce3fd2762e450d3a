//! Rules of transports.

use std::sync::Arc;

use api::v1::{RdmaOptions, TcpOptions, TransportSpec, transport_spec::Options};

use super::validate::{Check, mask_error};
use super::{Key, Object, Stored, Transaction};
use crate::error::ControlError;

/// Transports that are built in.
pub(crate) const BUILT_IN: [&str; 2] = ["tcp", "rdma"];

/// Fields that may change while the transport exists.
const CHANGEABLE: [&str; 17] = [
    "max_queue_depth",
    "max_io_qpairs_per_ctrlr",
    "in_capsule_data_size",
    "max_io_size",
    "max_aq_depth",
    "zcopy",
    "kas",
    "min_kato",
    "max_connections",
    "accept_rate_per_s",
    "connect_timeout_ms",
    "iobuf_small_cache_size",
    "iobuf_large_cache_size",
    "dif_insert_or_strip",
    "disable_command_passthru",
    "tcp",
    "rdma",
];

impl Transaction<'_> {
    /// Creates a transport; nothing happens when it is there and the same.
    ///
    /// # Errors
    /// Wrong fields, or one with other options.
    pub fn create_transport(
        &mut self,
        mut spec: TransportSpec,
    ) -> Result<Arc<Stored<TransportSpec>>, ControlError> {
        normalise(&mut spec)?;
        let key = Key::Transport(spec.trtype.clone());
        if let Some(there) = self.model.transports.get(&spec.trtype) {
            let differences = api::fields::differences(&there.spec, &spec);
            if differences.is_empty() {
                return Ok(there.clone());
            }
            let (kind, name) = (key.kind(), key.name());
            return Err(ControlError::Exists {
                kind,
                name,
                differences,
            });
        }
        Ok(self.put_transport(key, spec))
    }

    /// Changes the fields that `paths` names.
    ///
    /// # Errors
    /// No such transport, another generation, a field that is fixed or wrong.
    pub fn update_transport(
        &mut self,
        spec: &TransportSpec,
        paths: &[String],
        expected: Option<u64>,
    ) -> Result<Arc<Stored<TransportSpec>>, ControlError> {
        let key = Key::Transport(spec.trtype.to_ascii_lowercase());
        let Key::Transport(trtype) = &key else {
            return Err(Self::not_found(&key));
        };
        let there = self.model.transports.get(trtype).cloned();
        let there = there.ok_or_else(|| Self::not_found(&key))?;
        Self::expect_generation(&key, expected, there.generation)?;
        let mut new = api::fields::update(&there.spec, spec, paths, &CHANGEABLE)
            .map_err(|error| mask_error(format!("transport {trtype:?}"), &error))?;
        normalise(&mut new)?;
        if new == there.spec {
            return Ok(there);
        }
        Ok(self.put_transport(key, new))
    }

    /// Makes a transport be what a document says: what it leaves out has its default.
    pub(super) fn apply_transport(&mut self, spec: &TransportSpec) -> Result<(), ControlError> {
        let mut spec = spec.clone();
        normalise(&mut spec)?;
        if self
            .model
            .transports
            .get(&spec.trtype)
            .is_none_or(|there| there.spec != spec)
        {
            self.put_transport(Key::Transport(spec.trtype.clone()), spec);
        }
        Ok(())
    }

    /// Deletes a transport that no listener uses.
    ///
    /// # Errors
    /// None of this type unless `allow_missing`, another generation, or a listener.
    pub fn delete_transport(
        &mut self,
        trtype: &str,
        expected: Option<u64>,
        allow_missing: bool,
    ) -> Result<(), ControlError> {
        let trtype = trtype.to_ascii_lowercase();
        let key = Key::Transport(trtype.clone());
        let Some(there) = self.model.transports.get(&trtype) else {
            return if allow_missing {
                Ok(())
            } else {
                Err(Self::not_found(&key))
            };
        };
        Self::expect_generation(&key, expected, there.generation)?;
        let listeners = self.model.listeners_of(&trtype);
        if listeners > 0 {
            return Err(ControlError::InUse {
                kind: "transport",
                name: trtype,
                users: vec![format!("{listeners} listeners")],
            });
        }
        self.put(key, None);
        Ok(())
    }

    /// The transport that a listener of this type needs: made with the defaults if need be.
    pub(super) fn ensure_transport(&mut self, trtype: &str) -> Result<(), ControlError> {
        if self.model.transports.contains_key(trtype) {
            return Ok(());
        }
        let spec = TransportSpec {
            trtype: trtype.to_owned(),
            ..TransportSpec::default()
        };
        self.create_transport(spec).map(|_| ())
    }

    fn put_transport(&mut self, key: Key, spec: TransportSpec) -> Arc<Stored<TransportSpec>> {
        let stored = Arc::new(Stored {
            spec,
            generation: self.generation(),
        });
        self.put(key, Some(Object::Transport(stored.clone())));
        stored
    }
}

/// Brings a specification to normal form: every default is filled in.
fn normalise(spec: &mut TransportSpec) -> Result<(), ControlError> {
    spec.trtype.make_ascii_lowercase();
    let mut check = Check::new(format!("transport {:?}", spec.trtype), "transport");
    if !BUILT_IN.contains(&spec.trtype.as_str()) {
        let problem = format!(
            "{:?} is not built in; there is {}",
            spec.trtype,
            BUILT_IN.join(", ")
        );
        check.wrong("trtype", problem);
        return check.finish();
    }
    let is_rdma = spec.trtype == "rdma";
    check.number(
        "max_queue_depth",
        &mut spec.max_queue_depth,
        128,
        2..=if is_rdma { 4096 } else { 65_535 },
    );
    check.number(
        "max_io_qpairs_per_ctrlr",
        &mut spec.max_io_qpairs_per_ctrlr,
        127,
        1..=65_534,
    );
    let icd = check.number(
        "in_capsule_data_size",
        &mut spec.in_capsule_data_size,
        if is_rdma { 4096 } else { 8192 },
        0..=if is_rdma { 8192 } else { 1 << 20 },
    );
    check.that(
        icd.is_multiple_of(16),
        "in_capsule_data_size",
        "must be a multiple of 16",
    );
    let io_size = check.number(
        "max_io_size",
        &mut spec.max_io_size,
        131_072,
        8192..=if is_rdma { 131_072 } else { 1 << 30 },
    );
    check.that(
        io_size.is_power_of_two(),
        "max_io_size",
        "must be a power of two",
    );
    check.number("max_aq_depth", &mut spec.max_aq_depth, 128, 32..=4096);
    check.only(
        "dif_insert_or_strip",
        &mut spec.dif_insert_or_strip,
        false,
        "it is not built yet",
    );
    spec.zcopy.get_or_insert(true);
    check.number("kas", &mut spec.kas, 100, 1..=65_535);
    check.number("min_kato", &mut spec.min_kato, 10_000, 0..=3_600_000);
    check.only(
        "disable_command_passthru",
        &mut spec.disable_command_passthru,
        true,
        "no device here takes raw commands",
    );
    check.number(
        "max_connections",
        &mut spec.max_connections,
        1024,
        1..=65_535,
    );
    check.number(
        "accept_rate_per_s",
        &mut spec.accept_rate_per_s,
        0,
        0..=1_000_000,
    );
    check.number(
        "connect_timeout_ms",
        &mut spec.connect_timeout_ms,
        10_000,
        1..=3_600_000,
    );
    let defaults = if is_rdma {
        Options::Rdma(RdmaOptions::default())
    } else {
        Options::Tcp(TcpOptions::default())
    };
    match (spec.options.get_or_insert(defaults), is_rdma) {
        (Options::Tcp(tcp), false) => normalise_tcp(tcp, &mut check),
        (Options::Rdma(rdma), true) => normalise_rdma(rdma, &mut check),
        (Options::Rdma(_), false) => {
            check.wrong("rdma", "a TCP transport takes the options in tcp");
        }
        (Options::Tcp(_), true) => {
            check.wrong("tcp", "an RDMA transport takes the options in rdma");
        }
    }
    check.finish()
}

fn normalise_rdma(rdma: &mut RdmaOptions, check: &mut Check) {
    check.number(
        "rdma.max_srq_depth",
        &mut rdma.max_srq_depth,
        4096,
        32..=32_768,
    );
    rdma.no_srq.get_or_insert(false);
    check.number("rdma.num_cqe", &mut rdma.num_cqe, 4096, 64..=1 << 20);
    check.number(
        "rdma.acceptor_backlog",
        &mut rdma.acceptor_backlog,
        100,
        1..=65_535,
    );
    rdma.no_wr_batching.get_or_insert(false);
    check.number(
        "rdma.data_wr_pool_size",
        &mut rdma.data_wr_pool_size,
        4095,
        0..=1 << 20,
    );
    check.number("rdma.ack_timeout", &mut rdma.ack_timeout, 0, 0..=31);
    check.number("rdma.tos", &mut rdma.tos, 0, 0..=255);
}

fn normalise_tcp(tcp: &mut TcpOptions, check: &mut Check) {
    tcp.c2h_success.get_or_insert(true);
    check.number("tcp.sock_priority", &mut tcp.sock_priority, 0, 0..=6);
    check.number("tcp.tos", &mut tcp.tos, 0, 0..=255);
    check.number(
        "tcp.acceptor_backlog",
        &mut tcp.acceptor_backlog,
        1024,
        1..=65_535,
    );
    tcp.header_digest.get_or_insert(true);
    tcp.data_digest.get_or_insert(true);
}
