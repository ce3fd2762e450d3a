//! Get Log Page.

use nvme_spec::event::kind;
use nvme_spec::log::{ChangedNamespaces, FirmwareSlot, lid};
use nvme_spec::{Nsid, Sqe, Status};
use zerocopy::IntoBytes;

use crate::controller::Emu;
use crate::transfer;

impl Emu {
    pub(crate) fn get_log_page(&mut self, sqe: &Sqe) -> Result<u32, Status> {
        let len = usize::try_from(sqe.log_len()).unwrap_or(usize::MAX);
        if len > transfer::TRANSFER_MAX {
            return Err(Status::INVALID_FIELD.with_dnr(true));
        }
        let (page, cleared) = match sqe.log_id() {
            lid::ERROR => {
                let entries = self.errors.iter().flat_map(|entry| entry.as_bytes());
                (entries.copied().collect(), Some(kind::ERROR))
            }
            lid::SMART => (self.smart.as_bytes().to_vec(), Some(kind::SMART)),
            lid::FIRMWARE_SLOT => (self.firmware_slots().as_bytes().to_vec(), None),
            lid::CHANGED_NAMESPACES => {
                let changed = self.changed_namespaces.iter().map(|nsid| Nsid(*nsid));
                let page = ChangedNamespaces::new(changed).as_bytes().to_vec();
                if !sqe.rae() {
                    self.changed_namespaces.clear();
                }
                (page, Some(kind::NOTICE))
            }
            _ => return Err(Status::INVALID_LOG_PAGE.with_dnr(true)),
        };
        if let (false, Some(kind)) = (sqe.rae(), cleared) {
            self.masked_events.remove(&kind);
        }
        let from = usize::try_from(sqe.log_offset()).unwrap_or(usize::MAX);
        let mut data = page.get(from..).unwrap_or_default().to_vec();
        data.resize(len, 0);
        self.send(sqe, &data)?;
        Ok(0)
    }

    fn firmware_slots(&self) -> FirmwareSlot {
        let mut slots = FirmwareSlot {
            afi: 1,
            ..FirmwareSlot::default()
        };
        slots.frs[0] = crate::admin::padded(&self.firmware);
        slots
    }
}
