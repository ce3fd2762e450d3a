//! Admin commands.

use nvme_spec::feature::{fid, number_of_queues, parse_number_of_queues};
use nvme_spec::identify::{
    IdentifyController, IdentifyNamespace, IdentifyNvmController, LbaFormat, NamespaceList, cns,
    cntrltype, dlfeat, frmw, lpa, oacs, oaes, oncs, sgls, vwc,
};
use nvme_spec::opcode::admin;
use nvme_spec::pcie::{ns_select, sanitize_action};
use nvme_spec::registers::Vs;
use nvme_spec::{Nsid, Sqe, Status};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::controller::{ERROR_ENTRIES_MAX, EVENT_REQUESTS_MAX, Emu, Namespace, Outcome};
use crate::media::Media;
use crate::queue::{CompletionQueue, SubmissionQueue};
use crate::transfer::{self, PAGE};

/// Namespaces that the drive can have.
const NAMESPACES_MAX: u32 = 32;
/// Bytes of the largest firmware image.
const FIRMWARE_MAX: u64 = 1 << 20;
/// Blocks of the largest namespace that can be created.
const BLOCKS_MAX: u64 = 1 << 20;

/// NPSS: the emulated drive has three power states.
const POWER_STATE_LAST: u8 = 2;

impl Emu {
    /// Runs one admin command.
    pub(crate) fn admin(&mut self, sqe: &Sqe) -> Outcome {
        let result = match sqe.opcode() {
            admin::ASYNC_EVENT_REQUEST => return self.event_request(sqe),
            admin::IDENTIFY => self.identify(sqe),
            admin::GET_LOG_PAGE => self.get_log_page(sqe),
            admin::CREATE_IO_CQ => self.create_cq(sqe),
            admin::CREATE_IO_SQ => self.create_sq(sqe),
            admin::DELETE_IO_CQ => self.delete_cq(sqe),
            admin::DELETE_IO_SQ => self.delete_sq(sqe),
            admin::ABORT => {
                let aborted = self.take_back(sqe.abort_sqid().0, sqe.abort_cid().0);
                Ok(u32::from(!aborted))
            }
            admin::SET_FEATURES => self.set_features(sqe),
            admin::GET_FEATURES => self.get_features(sqe),
            admin::DOORBELL_BUFFER_CONFIG if self.options.shadow_doorbells => {
                let (shadow, events) = sqe.prp();
                let aligned = shadow.is_multiple_of(PAGE) && events.is_multiple_of(PAGE);
                self.doorbell_buffers = aligned.then_some((shadow, events));
                aligned.then_some(0).ok_or(Status::INVALID_FIELD)
            }
            admin::FORMAT_NVM => self.format(sqe),
            admin::NAMESPACE_MANAGEMENT => self.manage_namespace(sqe),
            admin::NAMESPACE_ATTACHMENT => self.attach_namespace(sqe),
            admin::FIRMWARE_IMAGE_DOWNLOAD => self.firmware_download(sqe),
            admin::FIRMWARE_COMMIT => self.firmware_commit(),
            admin::SANITIZE => self.sanitize(sqe),
            _ => Err(Status::INVALID_OPCODE.with_dnr(true)),
        };
        match result {
            Ok(dw0) => Outcome::Done(Status::SUCCESS, dw0),
            Err(status) => Outcome::Done(status, 0),
        }
    }

    fn event_request(&mut self, sqe: &Sqe) -> Outcome {
        if self.event_requests.len() >= EVENT_REQUESTS_MAX {
            return Outcome::Done(Status::ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED, 0);
        }
        self.event_requests.push_back(sqe.cid().0);
        Outcome::Held
    }

    fn identify(&mut self, sqe: &Sqe) -> Result<u32, Status> {
        let invalid = Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true);
        let attached = |all: bool| {
            let namespaces = self.namespaces.iter();
            namespaces
                .filter(move |(_, namespace)| all || namespace.attached)
                .map(|(nsid, _)| Nsid(*nsid))
        };
        match sqe.cns() {
            cns::CONTROLLER => {
                self.send(sqe, self.identify_controller().as_bytes())?;
            }
            cns::CSI_CONTROLLER => {
                let data = IdentifyNvmController {
                    vsl: self.options.vsl,
                    ..IdentifyNvmController::default()
                };
                self.send(sqe, data.as_bytes())?;
            }
            cns::NAMESPACE => {
                if !(1..=NAMESPACES_MAX).contains(&sqe.nsid().0) {
                    return Err(invalid);
                }
                let namespace = self.namespaces.get(&sqe.nsid().0);
                let namespace = namespace.filter(|namespace| namespace.attached);
                let data = namespace.map(|namespace| self.identify_namespace(&namespace.media));
                self.send(sqe, data.unwrap_or_default().as_bytes())?;
            }
            cns::ACTIVE_NAMESPACES => {
                let list = NamespaceList::after(sqe.nsid(), attached(false));
                self.send(sqe, list.as_bytes())?;
            }
            cns::ALLOCATED_NAMESPACES => {
                let list = NamespaceList::after(sqe.nsid(), attached(true));
                self.send(sqe, list.as_bytes())?;
            }
            _ => return Err(Status::INVALID_FIELD.with_dnr(true)),
        }
        Ok(0)
    }

    fn identify_controller(&self) -> IdentifyController {
        let options = &self.options;
        let mut admin = oacs::FORMAT_NVM | oacs::FIRMWARE | oacs::NAMESPACE_MANAGEMENT;
        if options.shadow_doorbells {
            admin |= oacs::DOORBELL_BUFFER;
        }
        let mut commands = oncs::SAVE_SELECT;
        if options.optional_commands {
            commands |=
                oncs::COMPARE | oncs::DATASET_MANAGEMENT | oncs::WRITE_ZEROES | oncs::VERIFY;
        }
        let mut data = IdentifyController {
            vid: U16::new(0x1af4),
            ssvid: U16::new(0x1af4),
            sn: padded(&options.serial),
            mn: padded(&options.model),
            fr: padded(&self.firmware),
            mdts: options.mdts,
            cntlid: U16::new(1),
            ver: U32::new(Vs::V2_0.0),
            rtd3e: U32::new(1_000_000),
            oaes: U32::new(oaes::NAMESPACE_ATTRIBUTE),
            cntrltype: cntrltype::IO,
            oacs: U16::new(admin),
            acl: 3,
            aerl: EVENT_REQUESTS_MAX as u8 - 1,
            frmw: 1 << frmw::SLOTS_SHIFT | frmw::ACTIVATE_WITHOUT_RESET,
            lpa: lpa::EXTENDED_DATA,
            elpe: ERROR_ENTRIES_MAX as u8 - 1,
            sanicap: U32::new(1 << 1),
            sqes: 0x66,
            cqes: 0x44,
            nn: U32::new(NAMESPACES_MAX),
            oncs: U16::new(commands),
            fna: u8::from(options.formats_all_namespaces),
            npss: POWER_STATE_LAST,
            ..IdentifyController::default()
        };
        // The last one is non-operational.
        data.psd[usize::from(POWER_STATE_LAST)].flags = 1 << 1;
        if options.volatile_write_cache {
            data.vwc = vwc::PRESENT | vwc::FLUSH_ALL;
        }
        if options.sgl {
            data.sgls = U32::new(sgls::SUPPORTED);
        }
        let nqn = format!("nqn.2014.08.org.nvmexpress:emulated:{}", options.serial);
        let len = nqn.len().min(data.subnqn.len() - 1);
        data.subnqn[..len].copy_from_slice(&nqn.as_bytes()[..len]);
        data
    }

    fn identify_namespace(&self, media: &Media) -> IdentifyNamespace {
        let blocks = U64::new(media.block_count());
        let mut data = IdentifyNamespace {
            nsze: blocks,
            ncap: blocks,
            nuse: blocks,
            nlbaf: 1,
            flbas: u8::from(media.block_size() == 4096),
            dlfeat: dlfeat::READS_ZEROES | dlfeat::WRITE_ZEROES_DEALLOCATE,
            ..IdentifyNamespace::default()
        };
        data.lbaf[0] = LbaFormat::new(9);
        data.lbaf[1] = LbaFormat::new(12);
        data
    }

    fn create_cq(&mut self, sqe: &Sqe) -> Result<u32, Status> {
        let (qid, entries) = self.new_queue(sqe)?;
        if self.completion.contains_key(&qid) {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr(true));
        }
        let vector = sqe.queue_vector();
        if vector.is_some_and(|vector| vector >= self.options.vectors) {
            return Err(Status::INVALID_INTERRUPT_VECTOR.with_dnr(true));
        }
        let queue = CompletionQueue::new(sqe.prp().0, entries, vector);
        self.completion.insert(qid, queue);
        Ok(0)
    }

    fn create_sq(&mut self, sqe: &Sqe) -> Result<u32, Status> {
        let (qid, entries) = self.new_queue(sqe)?;
        if self.submission.contains_key(&qid) {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr(true));
        }
        let cqid = sqe.queue_cqid().0;
        if cqid == 0 || !self.completion.contains_key(&cqid) {
            return Err(Status::COMPLETION_QUEUE_INVALID.with_dnr(true));
        }
        let queue = SubmissionQueue::new(sqe.prp().0, entries, cqid);
        self.submission.insert(qid, queue);
        Ok(0)
    }

    /// Identifier and entries of a queue to be created.
    fn new_queue(&self, sqe: &Sqe) -> Result<(u16, u32), Status> {
        let (qid, entries) = (sqe.queue_id().0, sqe.queue_entries());
        if qid == 0 || qid > self.options.io_queues {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr(true));
        }
        if entries < 2 || entries > u32::from(self.options.max_queue_entries) {
            return Err(Status::INVALID_QUEUE_SIZE.with_dnr(true));
        }
        if !sqe.queue_is_contiguous() || !sqe.prp().0.is_multiple_of(PAGE) {
            return Err(Status::INVALID_FIELD.with_dnr(true));
        }
        Ok((qid, entries))
    }

    fn delete_cq(&mut self, sqe: &Sqe) -> Result<u32, Status> {
        let qid = sqe.queue_id().0;
        if qid == 0 || !self.completion.contains_key(&qid) {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr(true));
        }
        if self.submission.values().any(|queue| queue.cqid == qid) {
            return Err(Status::INVALID_QUEUE_DELETION.with_dnr(true));
        }
        self.completion.remove(&qid);
        Ok(0)
    }

    fn delete_sq(&mut self, sqe: &Sqe) -> Result<u32, Status> {
        let qid = sqe.queue_id().0;
        if qid == 0 || self.submission.remove(&qid).is_none() {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.with_dnr(true));
        }
        self.forget(qid);
        Ok(0)
    }

    fn set_features(&mut self, sqe: &Sqe) -> Result<u32, Status> {
        match sqe.fid() {
            fid::NUMBER_OF_QUEUES => {
                let (submission, completion) = parse_number_of_queues(sqe.cdw11());
                if submission > 0xffff || completion > 0xffff {
                    return Err(Status::INVALID_FIELD.with_dnr(true));
                }
                Ok(self.queue_counts())
            }
            fid::VOLATILE_WRITE_CACHE if self.options.volatile_write_cache => {
                if sqe.cdw11() & 1 == 0 {
                    for namespace in self.namespaces.values_mut() {
                        namespace.media.flush();
                    }
                }
                self.features.insert(sqe.fid(), sqe.cdw11());
                Ok(0)
            }
            fid::POWER_MANAGEMENT if sqe.cdw11() & 0x1f > u32::from(POWER_STATE_LAST) => {
                Err(Status::INVALID_FIELD.with_dnr(true))
            }
            fid::ASYNC_EVENT_CONFIG
            | fid::ARBITRATION
            | fid::INTERRUPT_COALESCING
            | fid::POWER_MANAGEMENT => {
                self.features.insert(sqe.fid(), sqe.cdw11());
                Ok(0)
            }
            _ => Err(Status::INVALID_FIELD.with_dnr(true)),
        }
    }

    fn get_features(&self, sqe: &Sqe) -> Result<u32, Status> {
        match sqe.fid() {
            fid::NUMBER_OF_QUEUES => Ok(self.queue_counts()),
            fid::VOLATILE_WRITE_CACHE if self.options.volatile_write_cache => {
                Ok(self.features.get(&sqe.fid()).copied().unwrap_or(1))
            }
            fid::ASYNC_EVENT_CONFIG
            | fid::ARBITRATION
            | fid::INTERRUPT_COALESCING
            | fid::POWER_MANAGEMENT => Ok(self.features.get(&sqe.fid()).copied().unwrap_or(0)),
            _ => Err(Status::INVALID_FIELD.with_dnr(true)),
        }
    }

    fn queue_counts(&self) -> u32 {
        let queues = self.options.io_queues.max(1);
        number_of_queues(queues, queues)
    }

    fn format(&mut self, sqe: &Sqe) -> Result<u32, Status> {
        let block_size = match sqe.format_lbaf() {
            0 => 512,
            1 => 4096,
            _ => return Err(Status::INVALID_FORMAT.with_dnr(true)),
        };
        let nsid = sqe.nsid();
        if !nsid.is_all() && !self.namespaces.contains_key(&nsid.0) {
            return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true));
        }
        let all = nsid.is_all() || self.options.formats_all_namespaces;
        let mut changed = Vec::new();
        for (id, namespace) in &mut self.namespaces {
            if all || nsid.0 == *id {
                let media = &namespace.media;
                let bytes = media.block_count() * media.block_size() as u64;
                let blocks = (bytes / u64::from(block_size)).max(1);
                namespace.media = Media::new(block_size, blocks);
                changed.push(*id);
            }
        }
        for nsid in changed {
            self.namespace_changed(nsid);
        }
        Ok(0)
    }

    fn manage_namespace(&mut self, sqe: &Sqe) -> Result<u32, Status> {
        match sqe.namespace_select() {
            ns_select::CREATE => {
                let data = transfer::read(&self.bus, sqe, 4096)?;
                let wanted = IdentifyNamespace::read_from_bytes(&data);
                let wanted = wanted.expect("4096 bytes are an Identify Namespace");
                let block_size = match wanted.format_index() {
                    0 => 512,
                    1 => 4096,
                    _ => return Err(Status::INVALID_FORMAT.with_dnr(true)),
                };
                let blocks = wanted.nsze.get();
                if !(1..=BLOCKS_MAX).contains(&blocks) {
                    return Err(Status::NAMESPACE_INSUFFICIENT_CAPACITY.with_dnr(true));
                }
                let mut ids = 1..=NAMESPACES_MAX;
                let nsid = ids.find(|nsid| !self.namespaces.contains_key(nsid));
                let nsid = nsid.ok_or(Status::NAMESPACE_IDENTIFIER_UNAVAILABLE.with_dnr(true))?;
                let media = Media::new(block_size, blocks);
                let attached = false;
                self.namespaces.insert(nsid, Namespace { media, attached });
                Ok(nsid)
            }
            ns_select::DELETE => {
                let removed = self.namespaces.remove(&sqe.nsid().0);
                removed.ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true))?;
                self.namespace_changed(sqe.nsid().0);
                Ok(0)
            }
            _ => Err(Status::INVALID_FIELD.with_dnr(true)),
        }
    }

    fn attach_namespace(&mut self, sqe: &Sqe) -> Result<u32, Status> {
        let namespace = self.namespaces.get_mut(&sqe.nsid().0);
        let namespace = namespace.ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true))?;
        match (sqe.namespace_select(), namespace.attached) {
            (ns_select::ATTACH, false) => namespace.attached = true,
            (ns_select::DETACH, true) => namespace.attached = false,
            (ns_select::ATTACH, true) => {
                return Err(Status::NAMESPACE_ALREADY_ATTACHED.with_dnr(true));
            }
            (ns_select::DETACH, false) => {
                return Err(Status::NAMESPACE_NOT_ATTACHED.with_dnr(true));
            }
            _ => return Err(Status::INVALID_FIELD.with_dnr(true)),
        }
        self.namespace_changed(sqe.nsid().0);
        Ok(0)
    }

    fn firmware_download(&mut self, sqe: &Sqe) -> Result<u32, Status> {
        let (len, offset) = sqe.firmware_range();
        if offset + len > FIRMWARE_MAX {
            return Err(Status::INVALID_FIRMWARE_IMAGE.with_dnr(true));
        }
        let data = transfer::read(&self.bus, sqe, len as usize)?;
        let (offset, end) = (offset as usize, (offset + len) as usize);
        if self.firmware_image.len() < end {
            self.firmware_image.resize(end, 0);
        }
        self.firmware_image[offset..end].copy_from_slice(&data);
        Ok(0)
    }

    /// The image's first eight bytes are its revision.
    fn firmware_commit(&mut self) -> Result<u32, Status> {
        let image = std::mem::take(&mut self.firmware_image);
        let revision = image
            .get(..8)
            .and_then(|name| std::str::from_utf8(name).ok());
        let revision = revision.ok_or(Status::INVALID_FIRMWARE_IMAGE.with_dnr(true))?;
        self.firmware = revision.trim_end().to_owned();
        Ok(0)
    }

    fn sanitize(&mut self, sqe: &Sqe) -> Result<u32, Status> {
        if sqe.cdw10() as u8 & 0b111 != sanitize_action::BLOCK_ERASE {
            return Err(Status::INVALID_FIELD.with_dnr(true));
        }
        for namespace in self.namespaces.values_mut() {
            let media = &namespace.media;
            namespace.media = Media::new(media.block_size() as u32, media.block_count());
        }
        self.sanitized = true;
        Ok(0)
    }
}

/// A string field: ASCII, filled up with spaces.
pub(crate) fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    let len = text.len().min(N);
    field[..len].copy_from_slice(&text.as_bytes()[..len]);
    field
}
