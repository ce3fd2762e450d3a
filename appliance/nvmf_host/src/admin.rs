//! Admin commands.

use std::rc::Rc;

use fabric_wire::fabrics::{PropertyGet, PropertySet, PropertySize};
use nvme_spec::identify::{
    self, IdentifyController, IdentifyNamespace, NamespaceList, NsDescriptor, cns, ns_descriptors,
};
use nvme_spec::log::{AnaHeader, ChangedNamespaces, ErrorEntry, SmartLog, lid};
use nvme_spec::{Cid, Nsid, Qid, Select, Sqe};
use zerocopy::FromBytes;

use crate::ana::AnaLog;
use crate::association::{Association, Operation};
use crate::command::{Command, Completion};
use crate::error::HostError;

/// Bytes of a log page read by one command: every controller takes as much, and a data buffer of
/// this size needs no large transfer.
const LOG_PIECE: u32 = 4096;
/// The longest log page read: the ANA log of 64 Ki namespaces in as many groups is 2.3 MiB.
const LOG_MAX: u64 = 16 << 20;
/// Reads of an ANA log that changes meanwhile.
const ANA_ATTEMPTS: u32 = 8;
/// Most namespaces listed.
const MAX_NAMESPACES: usize = 1 << 16;

/// A namespace as a host sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Its identifier.
    pub nsid: Nsid,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// NSZE: its size in logical blocks.
    pub block_count: u64,
    /// NGUID; all zero: none.
    pub nguid: [u8; 16],
    /// EUI64; all zero: none.
    pub eui64: [u8; 8],
    /// UUID, if it has one.
    pub uuid: Option<[u8; 16]>,
    /// ANAGRPID; 0: none.
    pub ana_group: u32,
    /// NSATTR bit 0: it is write protected.
    pub is_write_protected: bool,
}

impl NamespaceInfo {
    /// Its size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.block_count.saturating_mul(self.block_size.into())
    }
}

/// Admin commands of one controller. Each call begins one; poll the controller, then the
/// [`Operation`].
///
/// It keeps working with the association that it was taken from, and fails once that has ended.
#[derive(Clone)]
pub struct Admin {
    pub(crate) association: Rc<Association>,
}

impl Admin {
    /// Identify Controller.
    #[must_use]
    pub fn identify_controller(&self) -> Operation<Box<IdentifyController>> {
        let me = self.clone();
        Operation::new(async move { me.get_identify_controller().await })
    }

    /// Identify Namespace.
    #[must_use]
    pub fn identify_namespace(&self, nsid: Nsid) -> Operation<Box<IdentifyNamespace>> {
        let me = self.clone();
        Operation::new(async move {
            let bytes = me
                .identify("identify namespace", nsid, cns::NAMESPACE, 0)
                .await?;
            parse("identify namespace", &bytes)
        })
    }

    /// Any Identify: 4096 bytes.
    #[must_use]
    pub fn identify_raw(&self, nsid: Nsid, cns: u8, csi: u8) -> Operation<Vec<u8>> {
        let me = self.clone();
        Operation::new(async move { me.identify("identify", nsid, cns, csi).await })
    }

    /// All active namespaces, in order.
    #[must_use]
    pub fn active_namespaces(&self) -> Operation<Vec<Nsid>> {
        let me = self.clone();
        Operation::new(async move { me.list_namespaces().await })
    }

    /// All active namespaces with what is needed for I/O.
    #[must_use]
    pub fn namespaces(&self) -> Operation<Vec<NamespaceInfo>> {
        let me = self.clone();
        Operation::new(async move {
            let mut namespaces = Vec::new();
            for nsid in me.list_namespaces().await? {
                namespaces.push(me.get_namespace(nsid).await?);
            }
            Ok(namespaces)
        })
    }

    /// One namespace with what is needed for I/O.
    #[must_use]
    pub fn namespace(&self, nsid: Nsid) -> Operation<NamespaceInfo> {
        let me = self.clone();
        Operation::new(async move { me.get_namespace(nsid).await })
    }

    /// A piece of a log page: `len` bytes, a multiple of 4, from byte `offset` on. With `rae` the
    /// event that belongs to the page stays masked.
    #[must_use]
    pub fn get_log(
        &self,
        nsid: Nsid,
        lid: u8,
        lsp: u8,
        (offset, len): (u64, u32),
        rae: bool,
    ) -> Operation<Vec<u8>> {
        let me = self.clone();
        Operation::new(async move {
            me.read_log("get log page", nsid, lid, lsp, (offset, len), rae)
                .await
        })
    }

    /// The ANA log page.
    #[must_use]
    pub fn ana_log(&self) -> Operation<AnaLog> {
        let me = self.clone();
        Operation::new(async move { me.get_ana_log().await })
    }

    /// The namespaces that changed since this was asked last. `None`: too many to tell, look at all.
    #[must_use]
    pub fn changed_namespaces(&self) -> Operation<Option<Vec<Nsid>>> {
        let me = self.clone();
        Operation::new(async move {
            let what = "get changed namespaces log";
            let len = size_of::<ChangedNamespaces>() as u32;
            let nsid = Nsid::ALL;
            let bytes = me
                .read_log(what, nsid, lid::CHANGED_NAMESPACES, 0, (0, len), false)
                .await?;
            let list: Box<ChangedNamespaces> = parse(what, &bytes)?;
            Ok((!list.is_overflow()).then(|| list.iter().collect()))
        })
    }

    /// SMART / Health Information.
    #[must_use]
    pub fn smart_log(&self, nsid: Nsid) -> Operation<Box<SmartLog>> {
        let me = self.clone();
        Operation::new(async move {
            let what = "get smart log";
            let len = size_of::<SmartLog>() as u32;
            let bytes = me
                .read_log(what, nsid, lid::SMART, 0, (0, len), false)
                .await?;
            parse(what, &bytes)
        })
    }

    /// The newest `count` (1 to 64) entries of the error log; those that are empty are left out.
    #[must_use]
    pub fn error_log(&self, count: u8) -> Operation<Vec<ErrorEntry>> {
        let me = self.clone();
        Operation::new(async move {
            let what = "get error log";
            let size = size_of::<ErrorEntry>();
            let len = size as u32 * u32::from(count.clamp(1, 64));
            let bytes = me
                .read_log(what, Nsid::ALL, lid::ERROR, 0, (0, len), false)
                .await?;
            let entries = bytes.chunks_exact(size).filter_map(|entry| {
                ErrorEntry::read_from_bytes(entry)
                    .ok()
                    .filter(|entry| entry.error_count.get() != 0)
            });
            Ok(entries.collect())
        })
    }

    /// Get Features: dword 0 of the completion.
    #[must_use]
    pub fn get_feature(&self, fid: u8, select: Select) -> Operation<u32> {
        self.value("get features", Sqe::get_features(Cid(0), fid, select))
    }

    /// Set Features: dword 0 of the completion.
    #[must_use]
    pub fn set_feature(&self, fid: u8, value: u32) -> Operation<u32> {
        self.value("set features", Sqe::set_features(Cid(0), fid, value))
    }

    /// Aborts a command of a queue. `true`: the controller aborted it.
    #[must_use]
    pub fn abort(&self, qid: Qid, cid: Cid) -> Operation<bool> {
        let me = self.clone();
        Operation::new(async move {
            let command = Command::new(Sqe::abort(Cid(0), qid, cid), 0);
            let (result, _) = me.association.execute("abort", command).await?;
            Ok(result & 1 == 0)
        })
    }

    /// Reads a property (a controller register) of 4 or 8 bytes.
    #[must_use]
    pub fn property(&self, offset: u32, size: PropertySize) -> Operation<u64> {
        let me = self.clone();
        Operation::new(async move { me.get_property(offset, size).await })
    }

    /// Any command. Its completion is a result whatever its status; its tag is not kept.
    #[must_use]
    pub fn raw(&self, command: Command) -> Operation<Completion> {
        let me = self.clone();
        Operation::new(async move { me.association.run(command).await })
    }

    fn value(&self, what: &'static str, sqe: Sqe) -> Operation<u32> {
        let me = self.clone();
        Operation::new(async move {
            let (result, _) = me.association.execute(what, Command::new(sqe, 0)).await?;
            Ok(result as u32)
        })
    }

    pub(crate) async fn get_property(
        &self,
        offset: u32,
        size: PropertySize,
    ) -> Result<u64, HostError> {
        let sqe = PropertyGet { size, offset }.to_sqe(Cid(0));
        let (value, _) = self
            .association
            .execute("property get", Command::new(sqe, 0))
            .await?;
        Ok(value)
    }

    pub(crate) async fn set_property(&self, offset: u32, value: u32) -> Result<(), HostError> {
        let set = PropertySet {
            size: PropertySize::Four,
            offset,
            value: value.into(),
        };
        let command = Command::new(set.to_sqe(Cid(0)), 0);
        self.association.execute("property set", command).await?;
        Ok(())
    }

    pub(crate) async fn get_identify_controller(
        &self,
    ) -> Result<Box<IdentifyController>, HostError> {
        let what = "identify controller";
        let bytes = self.identify(what, Nsid::NONE, cns::CONTROLLER, 0).await?;
        parse(what, &bytes)
    }

    async fn identify(
        &self,
        what: &'static str,
        nsid: Nsid,
        cns: u8,
        csi: u8,
    ) -> Result<Vec<u8>, HostError> {
        let sqe = Sqe::identify(Cid(0), nsid, cns).with_cdw11(u32::from(csi) << 24);
        let command = Command::new(sqe, 0).receiving(vec![0; identify::LEN]);
        let (_, buffer) = self.association.execute(what, command).await?;
        Ok(buffer.into_vec())
    }

    async fn list_namespaces(&self) -> Result<Vec<Nsid>, HostError> {
        let what = "identify active namespaces";
        let mut nsids: Vec<Nsid> = Vec::new();
        loop {
            let after = nsids.last().copied().unwrap_or(Nsid::NONE);
            let bytes = self
                .identify(what, after, cns::ACTIVE_NAMESPACES, 0)
                .await?;
            let list: Box<NamespaceList> = parse(what, &bytes)?;
            let before = nsids.len();
            for nsid in list.iter() {
                if nsids.last().is_some_and(|&last| nsid <= last) || !nsid.is_valid() {
                    let reason = format!("namespace {nsid} follows on {after}");
                    return Err(HostError::Malformed { what, reason });
                }
                nsids.push(nsid);
            }
            if nsids.len() - before < list.nsid.len() || nsids.len() >= MAX_NAMESPACES {
                return Ok(nsids);
            }
        }
    }

    async fn get_namespace(&self, nsid: Nsid) -> Result<NamespaceInfo, HostError> {
        let what = "identify namespace";
        let bytes = self.identify(what, nsid, cns::NAMESPACE, 0).await?;
        let identify: Box<IdentifyNamespace> = parse(what, &bytes)?;
        let block_size = identify.block_size().ok_or_else(|| HostError::Malformed {
            what,
            reason: format!(
                "namespace {nsid} has blocks of 2^{} bytes",
                identify.format().lbads
            ),
        })?;
        let what = "identify namespace descriptors";
        // An optional command before 1.3: without it there is no UUID.
        let uuid = match self
            .identify(what, nsid, cns::NAMESPACE_DESCRIPTORS, 0)
            .await
        {
            Ok(bytes) => ns_descriptors(&bytes).find_map(|descriptor| match descriptor {
                NsDescriptor::Uuid(uuid) => Some(uuid),
                _ => None,
            }),
            Err(HostError::Command { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(NamespaceInfo {
            nsid,
            block_size,
            block_count: identify.nsze.get(),
            nguid: identify.nguid,
            eui64: identify.eui64,
            uuid,
            ana_group: identify.anagrpid.get(),
            is_write_protected: identify.nsattr & identify::nsattr::WRITE_PROTECTED != 0,
        })
    }

    pub(crate) async fn read_log(
        &self,
        what: &'static str,
        nsid: Nsid,
        lid: u8,
        lsp: u8,
        (offset, len): (u64, u32),
        rae: bool,
    ) -> Result<Vec<u8>, HostError> {
        if len == 0 || !len.is_multiple_of(4) || u64::from(len) > LOG_MAX {
            let reason = "a multiple of 4 up to 16 MiB is needed";
            return Err(HostError::Option {
                option: "log length",
                value: len.into(),
                reason,
            });
        }
        let mut page = Vec::with_capacity(len as usize);
        while page.len() < len as usize {
            let at = page.len() as u32;
            let piece = LOG_PIECE.min(len - at);
            // Only the last piece unmasks the event: it would come again in between.
            let keep = rae || at + piece < len;
            let sqe = Sqe::get_log_page(Cid(0), nsid, lid, piece, offset + u64::from(at))
                .with_lsp(lsp)
                .with_rae(keep);
            let command = Command::new(sqe, 0).receiving(vec![0; piece as usize]);
            let (_, buffer) = self.association.execute(what, command).await?;
            page.extend_from_slice(buffer.as_slice().unwrap_or_default());
        }
        Ok(page)
    }

    /// Reads the ANA log: its header tells how many groups there are, each how long it is.
    async fn get_ana_log(&self) -> Result<AnaLog, HostError> {
        let what = "get ana log";
        let mut page: Vec<u8> = Vec::new();
        let mut attempts = 0;
        loop {
            let at = page.len() as u64;
            let read = self.read_log(what, Nsid::NONE, lid::ANA, 0, (at, LOG_PIECE), true);
            page.extend_from_slice(&read.await?);
            match AnaLog::parse(&page) {
                Ok(log) => {
                    // The page may have changed while it was read in pieces; this read unmasks the
                    // event, and tells whether it has.
                    let len = size_of::<AnaHeader>() as u32;
                    let head = self
                        .read_log(what, Nsid::NONE, lid::ANA, 0, (0, len), false)
                        .await?;
                    if AnaHeader::read_from_bytes(&head[..])
                        .is_ok_and(|head| head.change_count.get() == log.change_count)
                    {
                        return Ok(log);
                    }
                    attempts += 1;
                    if attempts == ANA_ATTEMPTS {
                        let reason = format!("it changed during each of {attempts} reads");
                        return Err(HostError::Malformed { what, reason });
                    }
                    page.clear();
                }
                Err(error) if page.len() as u64 >= LOG_MAX => return Err(error),
                Err(_) => {}
            }
        }
    }
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admin")
    }
}

fn parse<T: FromBytes + zerocopy::Immutable + zerocopy::KnownLayout>(
    what: &'static str,
    bytes: &[u8],
) -> Result<Box<T>, HostError> {
    T::read_from_bytes(bytes)
        .map(Box::new)
        .map_err(|_| HostError::Malformed {
            what,
            reason: format!("it has {} bytes, not {}", bytes.len(), size_of::<T>()),
        })
}
