//! NVM commands.

use nvme_spec::feature::fid;
use nvme_spec::log::SmartLog;
use nvme_spec::opcode::nvm;
use nvme_spec::{DsmRange, Sqe, Status};
use zerocopy::FromBytes;

use crate::controller::Emu;
use crate::transfer::{self, PAGE};

impl Emu {
    /// Runs one NVM command.
    pub(crate) fn io(&mut self, sqe: &Sqe) -> (Status, u32) {
        let result = match sqe.opcode() {
            nvm::FLUSH => self.flush(sqe),
            nvm::READ => self.read_blocks(sqe),
            nvm::WRITE => self.write_blocks(sqe),
            nvm::COMPARE if self.options.optional_commands => self.compare(sqe),
            nvm::VERIFY if self.options.optional_commands => self.verify(sqe),
            nvm::WRITE_ZEROES if self.options.optional_commands => self.write_zeroes(sqe),
            nvm::DATASET_MANAGEMENT if self.options.optional_commands => self.deallocate(sqe),
            _ => Err(Status::INVALID_OPCODE.with_dnr(true)),
        };
        (result.err().unwrap_or(Status::SUCCESS), 0)
    }

    /// Whether writes are durable at once.
    fn is_write_through(&self) -> bool {
        let enabled = self.features.get(&fid::VOLATILE_WRITE_CACHE).copied();
        !self.options.volatile_write_cache || enabled.unwrap_or(1) & 1 == 0
    }

    fn flush(&mut self, sqe: &Sqe) -> Result<(), Status> {
        if sqe.nsid().is_all() {
            for namespace in self.namespaces.values_mut() {
                namespace.media.flush();
            }
            return Ok(());
        }
        let namespace = self.namespaces.get_mut(&sqe.nsid().0);
        let namespace = namespace.filter(|namespace| namespace.attached);
        let namespace = namespace.ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true))?;
        namespace.media.flush();
        Ok(())
    }

    /// First block, number of blocks and bytes per block of a command.
    fn range(&self, sqe: &Sqe) -> Result<(u64, u64, usize), Status> {
        let namespace = self.namespaces.get(&sqe.nsid().0);
        let namespace = namespace.filter(|namespace| namespace.attached);
        let namespace = namespace.ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true))?;
        let (first, count) = (sqe.slba().0, u64::from(sqe.block_count()));
        let end = first.checked_add(count);
        if end.is_none_or(|end| end > namespace.media.block_count()) {
            return Err(Status::LBA_OUT_OF_RANGE.with_dnr(true));
        }
        Ok((first, count, namespace.media.block_size()))
    }

    /// As [`Self::range`], of a command that moves data.
    fn data_range(&self, sqe: &Sqe) -> Result<(u64, u64, usize), Status> {
        let (first, count, block_size) = self.range(sqe)?;
        let limit = PAGE << self.options.mdts.min(20);
        if self.options.mdts != 0 && count * block_size as u64 > limit {
            return Err(Status::INVALID_FIELD.with_dnr(true));
        }
        Ok((first, count, block_size))
    }

    fn read_blocks(&mut self, sqe: &Sqe) -> Result<(), Status> {
        let (first, count, block_size) = self.data_range(sqe)?;
        let mut data = Vec::with_capacity(count as usize * block_size);
        let media = &self.namespaces[&sqe.nsid().0].media;
        for lba in first..first + count {
            data.extend_from_slice(&media.block(lba));
        }
        self.send(sqe, &data)?;
        let smart = &mut self.smart;
        smart.set_host_read_commands(smart.host_read_commands() + 1);
        let units = SmartLog::data_units(data.len() as u128);
        smart.set_data_units_read(smart.data_units_read() + units);
        Ok(())
    }

    fn write_blocks(&mut self, sqe: &Sqe) -> Result<(), Status> {
        let (first, count, block_size) = self.data_range(sqe)?;
        let data = transfer::read(&self.bus, sqe, count as usize * block_size)?;
        let durable = self.is_write_through() || sqe.fua();
        if let Some(namespace) = self.namespaces.get_mut(&sqe.nsid().0) {
            for (lba, block) in (first..).zip(data.chunks_exact(block_size)) {
                namespace.media.set(lba, Some(block), durable);
            }
        }
        let smart = &mut self.smart;
        smart.set_host_write_commands(smart.host_write_commands() + 1);
        let units = SmartLog::data_units(data.len() as u128);
        smart.set_data_units_written(smart.data_units_written() + units);
        Ok(())
    }

    fn compare(&mut self, sqe: &Sqe) -> Result<(), Status> {
        let (first, count, block_size) = self.data_range(sqe)?;
        let data = transfer::read(&self.bus, sqe, count as usize * block_size)?;
        let media = &self.namespaces[&sqe.nsid().0].media;
        let mut blocks = (first..).zip(data.chunks_exact(block_size));
        if blocks.all(|(lba, block)| media.block(lba) == block) {
            return Ok(());
        }
        Err(Status::COMPARE_FAILURE.with_dnr(true))
    }

    fn verify(&self, sqe: &Sqe) -> Result<(), Status> {
        let (_, count, block_size) = self.range(sqe)?;
        let limit = PAGE << self.options.vsl.min(20);
        if self.options.vsl != 0 && count * block_size as u64 > limit {
            return Err(Status::INVALID_FIELD.with_dnr(true));
        }
        Ok(())
    }

    fn write_zeroes(&mut self, sqe: &Sqe) -> Result<(), Status> {
        let (first, count, _) = self.range(sqe)?;
        let durable = self.is_write_through() || sqe.fua();
        if let Some(namespace) = self.namespaces.get_mut(&sqe.nsid().0) {
            for lba in first..first + count {
                namespace.media.set(lba, None, durable);
            }
        }
        Ok(())
    }

    fn deallocate(&mut self, sqe: &Sqe) -> Result<(), Status> {
        let data = transfer::read(&self.bus, sqe, sqe.dsm_range_count() as usize * 16)?;
        if !sqe.dsm_deallocate() {
            return Ok(());
        }
        let durable = self.is_write_through();
        let namespace = self.namespaces.get_mut(&sqe.nsid().0);
        let namespace = namespace.filter(|namespace| namespace.attached);
        let namespace = namespace.ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(true))?;
        for chunk in data.chunks_exact(16) {
            let range = DsmRange::read_from_bytes(chunk).expect("16 bytes are a range");
            let (first, count) = (range.slba().0, u64::from(range.block_count()));
            let end = first.checked_add(count);
            let end = end.filter(|end| *end <= namespace.media.block_count());
            let end = end.ok_or(Status::LBA_OUT_OF_RANGE.with_dnr(true))?;
            for lba in first..end {
                namespace.media.set(lba, None, durable);
            }
        }
        Ok(())
    }
}
