//! A namespace as a block device.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use block::{BlockDevice, BlockError, Channel, ChannelContext, DmaReach, Geometry, OpKind, OpSet};
use nvme_spec::Nsid;
use nvme_spec::identify::{
    IdentifyController, IdentifyNamespace, IdentifyNvmController, nsattr, nsfeat, oncs, sgls, vwc,
};

use crate::channel::NvmeChannel;
use crate::shared::{Shared, lock};
use crate::transfer::{DataFormat, TRANSFER_MAX};

/// Most blocks of one command: NLB has 16 bits and counts from zero.
const BLOCKS_MAX: u32 = 65536;

/// What a channel needs to know of its namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NamespaceFacts {
    pub(crate) nsid: Nsid,
    pub(crate) geometry: Geometry,
    pub(crate) format: DataFormat,
}

/// Whether a namespace is in use.
#[derive(Debug, Default)]
pub(crate) struct Users {
    gone: AtomicBool,
    channels: AtomicU32,
}

impl Users {
    #[inline]
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Relaxed)
    }

    /// A channel is closed.
    pub(crate) fn close(&self) {
        self.channels.fetch_sub(1, SeqCst);
    }
}

/// One LBA format that a namespace can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LbaFormatInfo {
    /// Its index, as Format NVM takes it.
    pub index: u8,
    /// Bytes of a logical block; 0 where the drive offers none a host can use.
    pub data_bytes: u32,
    /// Bytes of its metadata.
    pub metadata_bytes: u16,
    /// RP: 0 is the best, 3 the worst.
    pub relative_performance: u8,
    /// The namespace has it.
    pub in_use: bool,
}

fn lba_formats(namespace: &IdentifyNamespace) -> Vec<LbaFormatInfo> {
    let count = usize::from(namespace.nlbaf) + 1;
    let formats = namespace.lbaf.iter().take(count).enumerate();
    formats
        .map(|(index, format)| LbaFormatInfo {
            index: index as u8,
            data_bytes: 1u32.checked_shl(format.lbads.into()).unwrap_or(0),
            metadata_bytes: format.ms.get(),
            relative_performance: format.rp & 0b11,
            in_use: index == namespace.format_index(),
        })
        .collect()
}

/// A namespace of a controller. Found again by [`NvmeNamespace::serial`] and NSID.
pub struct NvmeNamespace {
    shared: Arc<Shared>,
    nsid: Nsid,
    serial: String,
    model: String,
    nguid: [u8; 16],
    eui64: [u8; 8],
    lba_formats: Vec<LbaFormatInfo>,
    facts: Mutex<NamespaceFacts>,
    users: Arc<Users>,
}

impl NvmeNamespace {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        controller: &IdentifyController,
        namespace: &IdentifyNamespace,
        facts: NamespaceFacts,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::clone(shared),
            nsid: facts.nsid,
            serial: text(&controller.sn),
            model: text(&controller.mn),
            nguid: namespace.nguid,
            eui64: namespace.eui64,
            lba_formats: lba_formats(namespace),
            facts: Mutex::new(facts),
            users: Arc::default(),
        })
    }

    /// Its identifier.
    #[must_use]
    pub fn nsid(&self) -> Nsid {
        self.nsid
    }

    /// Serial number of the drive.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// NGUID; zeroes if it has none.
    #[must_use]
    pub fn nguid(&self) -> [u8; 16] {
        self.nguid
    }

    /// EUI-64; zeroes if it has none.
    #[must_use]
    pub fn eui64(&self) -> [u8; 8] {
        self.eui64
    }

    /// The LBA formats that it can have.
    #[must_use]
    pub fn lba_formats(&self) -> &[LbaFormatInfo] {
        &self.lba_formats
    }

    /// Whether it was detached, deleted, reformatted, or its drive is gone.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.users.gone.load(SeqCst)
    }

    /// How many channels are open.
    #[must_use]
    pub fn open_channels(&self) -> u32 {
        self.users.channels.load(SeqCst)
    }

    pub(crate) fn facts(&self) -> NamespaceFacts {
        *lock(&self.facts)
    }

    pub(crate) fn set_facts(&self, facts: NamespaceFacts) {
        *lock(&self.facts) = facts;
    }

    pub(crate) fn set_gone(&self) {
        self.users.gone.store(true, SeqCst);
        self.shared.wake_channels();
    }

    /// Takes it out of use if no channel is open. Whether it did.
    pub(crate) fn try_close(&self) -> bool {
        self.users.gone.store(true, SeqCst);
        let unused = self.users.channels.load(SeqCst) == 0;
        if !unused {
            self.users.gone.store(false, SeqCst);
        }
        unused
    }
}

impl fmt::Debug for NvmeNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NvmeNamespace")
            .field("serial", &self.serial)
            .field("nsid", &self.nsid)
            .finish_non_exhaustive()
    }
}

impl BlockDevice for NvmeNamespace {
    fn kind(&self) -> &'static str {
        "nvme"
    }

    fn geometry(&self) -> Geometry {
        self.facts().geometry
    }

    fn open_channel(&self, ctx: &ChannelContext) -> Result<Box<dyn Channel>, BlockError> {
        let refuse = |reason: String| {
            let address = self.shared.device.function.address();
            let device = format!("namespace {} of nvme controller {address}", self.nsid);
            BlockError::Channel { device, reason }
        };
        // Counted first: who takes the namespace away sets the flag first and then counts.
        self.users.channels.fetch_add(1, SeqCst);
        let channel = if self.is_gone() {
            Err("the namespace is gone".into())
        } else {
            NvmeChannel::open(&self.shared, self.facts(), &self.users, ctx)
        };
        match channel {
            Ok(channel) => Ok(Box::new(channel)),
            Err(reason) => {
                self.users.close();
                Err(refuse(reason))
            }
        }
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let address = self.shared.device.function.address().to_owned();
        vec![
            ("address", address),
            ("serial", self.serial.clone()),
            ("model", self.model.clone()),
            ("nsid", self.nsid.to_string()),
            ("state", self.shared.state().name().to_owned()),
        ]
    }
}

/// What Identify says, as a geometry. `Err`: why the namespace cannot be used.
pub(crate) fn facts(
    shared: &Shared,
    nsid: Nsid,
    controller: &IdentifyController,
    nvm: &IdentifyNvmController,
    namespace: &IdentifyNamespace,
) -> Result<NamespaceFacts, &'static str> {
    let block_size = namespace.block_size().unwrap_or(0);
    let blocks = namespace.nsze.get();
    if namespace.format().ms.get() != 0 {
        return Err("its format has metadata");
    }
    Geometry::check_size(block_size, blocks)
        .map_err(|_| "its size is neither in blocks of 512 nor of 4096 bytes, or it is empty")?;
    let limited = |shift: u8, none: usize| match shift {
        0 => none,
        shift => 4096_usize
            .checked_shl(u32::from(shift))
            .filter(|bytes| *bytes >= 4096)
            .unwrap_or(none),
    };
    let block_bytes = block_size as usize;
    let transfer = limited(controller.mdts, TRANSFER_MAX).min(TRANSFER_MAX);
    let zeroes = limited(nvm.wzsl, BLOCKS_MAX as usize * block_bytes);
    let zeroes = (zeroes / block_bytes).min(BLOCKS_MAX as usize) as u32;
    // Where the drive tells no limit, that of transfers: drives of before NVMe 2.0 mean it.
    let verify = limited(nvm.vsl, transfer);
    let verify = (verify / block_bytes).min(BLOCKS_MAX as usize) as u32;
    let deallocate = match nvm.dmrsl.get() {
        0 => BLOCKS_MAX,
        blocks => blocks.min(BLOCKS_MAX),
    };
    let sgl_support = controller.sgls.get() & sgls::SUPPORT_MASK;
    let format = DataFormat {
        sgl: shared.options.sgl && sgl_support != 0,
        byte_aligned: shared.options.sgl && sgl_support == sgls::SUPPORTED,
    };
    let performance = namespace.nsfeat & nsfeat::OPTIMAL_PERFORMANCE != 0;
    let optional = |value: u16| if performance { u32::from(value) + 1 } else { 1 };
    let own_atomic = namespace.nsfeat & nsfeat::ATOMIC != 0 && namespace.nawupf.get() != 0;
    let atomic = if own_atomic {
        namespace.nawupf.get()
    } else {
        controller.awupf.get()
    };
    let geometry = Geometry {
        optimal_io_blocks: if performance {
            u32::from(namespace.nows.get()) + 1
        } else {
            0
        },
        write_granularity_blocks: optional(namespace.npwg.get()),
        unmap_granularity_blocks: optional(namespace.npdg.get()),
        atomic_write_blocks: u32::from(atomic) + 1,
        max_transfer_blocks: (transfer / block_bytes) as u32,
        max_unmap_blocks: zeroes.min(deallocate),
        max_verify_blocks: verify,
        boundary_blocks: u32::from(namespace.noiob.get()),
        alignment_bytes: if format.byte_aligned { 1 } else { 4 },
        volatile_write_cache: controller.vwc & vwc::PRESENT != 0,
        supports: operations(controller.oncs.get()),
        read_only: namespace.nsattr & nsattr::WRITE_PROTECTED != 0,
        dma_reach: DmaReach::Regions {
            address_bits: shared.device.mapper.address_bits(),
        },
        ..Geometry::new(block_size, blocks)
    };
    Ok(NamespaceFacts {
        nsid,
        geometry,
        format,
    })
}

fn operations(commands: u16) -> OpSet {
    let always = [OpKind::Read, OpKind::Write, OpKind::Flush, OpKind::Reset];
    let optional = [
        (oncs::COMPARE, OpKind::Compare),
        (oncs::DATASET_MANAGEMENT, OpKind::Unmap),
        (oncs::WRITE_ZEROES, OpKind::WriteZeroes),
        (oncs::VERIFY, OpKind::Verify),
    ];
    optional
        .into_iter()
        .filter(|(bit, _)| commands & bit != 0)
        .fold(OpSet::of(&always), |set, (_, kind)| set.with(kind))
}

/// An ASCII field without its padding; what is not printable is shown as `?`.
pub(crate) fn text(field: &[u8]) -> String {
    let printable = |byte: &u8| match byte {
        b' '..=b'~' => char::from(*byte),
        _ => '?',
    };
    let text: String = field.iter().map(printable).collect();
    text.trim().to_owned()
}
