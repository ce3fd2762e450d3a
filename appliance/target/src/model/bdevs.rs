//! Rules of block devices.

use std::sync::Arc;

use api::v1::{BdevSpec, ErrorRule, ErrorType, IoType, NvmeBdev, QosLimits, bdev_spec::Kind};

use super::pools::split_volume;
use super::validate::{Check, mask_error};
use super::{Key, Model, Object, Stored, Transaction};
use crate::error::ControlError;

/// Kinds that can be created.
pub(crate) const KINDS: [&str; 6] = ["malloc", "null", "file", "nvme", "error", "delay"];

/// Fields of a drive that can be changed.
pub(super) const DRIVE_FEATURES: [&str; 3] = [
    "nvme.power_state",
    "nvme.write_cache",
    "nvme.arbitration_burst",
];

/// Layers on one device. A tower of them is a mistake.
const LAYERS_MAX: usize = 8;
const RULES_MAX: usize = 64;
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// The device below a layer.
pub(crate) fn base_of(spec: &BdevSpec) -> Option<&str> {
    match &spec.kind {
        Some(Kind::Error(layer)) => Some(&layer.base_bdev),
        Some(Kind::Delay(layer)) => Some(&layer.base_bdev),
        _ => None,
    }
}

/// The drive and the NSID in the name of a drive's namespace, `DRIVEn1`.
pub(crate) fn split_drive_namespace(name: &str) -> Option<(&str, u32)> {
    let (drive, digits) = name.rsplit_once('n')?;
    let is_number = !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
    let nsid = digits.parse().ok().filter(|_| is_number)?;
    (!drive.is_empty()).then_some((drive, nsid))
}

fn is_drive(spec: &BdevSpec) -> bool {
    matches!(spec.kind, Some(Kind::Nvme(_)))
}

impl Model {
    /// The drive that a namespace of this name is on.
    #[must_use]
    pub fn drive_of(&self, name: &str) -> Option<&Arc<Stored<BdevSpec>>> {
        let (drive, _) = split_drive_namespace(name)?;
        let found = self.bdevs.get(drive)?;
        (is_drive(&found.spec) && !self.bdevs.contains_key(name)).then_some(found)
    }

    /// Who uses namespaces of a drive, with the namespace.
    pub fn users_of_drive(&self, drive: &str) -> impl Iterator<Item = (&str, &Key)> {
        let of_drive =
            move |name: &str| split_drive_namespace(name).is_some_and(|(of, _)| of == drive);
        self.bdev_users
            .iter()
            .filter(move |(name, _)| of_drive(name))
            .flat_map(|(name, users)| users.iter().map(|user| (name.as_str(), user)))
    }
}

impl Transaction<'_> {
    /// Creates a block device; nothing happens when it is there and the same.
    ///
    /// # Errors
    /// Wrong fields, one with other options, a base that is missing or in use, the limit.
    pub fn create_bdev(&mut self, spec: BdevSpec) -> Result<Arc<Stored<BdevSpec>>, ControlError> {
        let key = Key::Bdev(spec.name.clone());
        let there = self.model.bdevs.get(&spec.name).cloned();
        let spec = self.normal_bdev(spec, there.as_deref())?;
        if let Some(there) = there {
            let differences = api::fields::differences(&there.spec, &spec);
            if differences.is_empty() {
                return Ok(there);
            }
            let (kind, name) = (key.kind(), key.name());
            return Err(ControlError::Exists {
                kind,
                name,
                differences,
            });
        }
        if self.model.bdevs.len() >= self.model.limits.bdevs_max {
            let max = self.model.limits.bdevs_max;
            return Err(ControlError::Limit {
                what: "bdevs",
                max,
                option: "limits.bdevs_max",
            });
        }
        if let Some(other) = self.model.bdev_names_by_uuid.get(spec.uuid()) {
            let problem = format!("{} is the UUID of {other:?} already", spec.uuid());
            return Err(ControlError::field(
                format!("bdev {:?}", spec.name),
                "bdev.uuid",
                problem,
            ));
        }
        if let Some((pool, _)) = split_volume(&spec.name)
            && self.model.pools.contains_key(pool)
        {
            let problem = format!("is a name of volumes: there is a pool {pool:?}");
            let what = format!("bdev {:?}", spec.name);
            return Err(ControlError::field(what, "bdev.name", problem));
        }
        self.check_drive_names(&spec)?;
        if let Some(base) = base_of(&spec) {
            self.free_bdev(base)?;
            self.check_depth(base)?;
        }
        Ok(self.put_bdev(key, spec))
    }

    /// Refuses a drive whose namespaces would have names that are taken, and the other way round.
    fn check_drive_names(&self, spec: &BdevSpec) -> Result<(), ControlError> {
        let refuse = |problem: String| {
            let what = format!("bdev {:?}", spec.name);
            Err(ControlError::field(what, "bdev.name", problem))
        };
        if let Some(drive) = self.model.drive_of(&spec.name) {
            let drive = &drive.spec.name;
            return refuse(format!(
                "is a name of namespaces: there is a drive {drive:?}"
            ));
        }
        let is_of = |name: &&String| {
            split_drive_namespace(name).is_some_and(|(drive, _)| drive == spec.name)
        };
        match self.model.bdevs.keys().find(is_of) {
            Some(taken) if is_drive(spec) => {
                refuse(format!("would hide the block device {taken:?}"))
            }
            _ => Ok(()),
        }
    }

    /// Changes limits, rules or latencies.
    ///
    /// # Errors
    /// No such device, another generation, a field that is fixed or wrong.
    pub fn update_bdev(
        &mut self,
        spec: &BdevSpec,
        paths: &[String],
        expected: Option<u64>,
    ) -> Result<Arc<Stored<BdevSpec>>, ControlError> {
        let (key, there) = self.bdev(&spec.name)?;
        Self::expect_generation(&key, expected, there.generation)?;
        let allowed: &[&str] = match there.spec.kind {
            Some(Kind::Error(_)) => &["qos", "error.rules"],
            Some(Kind::Delay(_)) => &[
                "qos",
                "delay.avg_read_latency_us",
                "delay.p99_read_latency_us",
                "delay.avg_write_latency_us",
                "delay.p99_write_latency_us",
            ],
            Some(Kind::Nvme(_)) => &DRIVE_FEATURES,
            _ => &["qos"],
        };
        let what = || format!("bdev {:?}", there.spec.name);
        let mut new = api::fields::update(&there.spec, spec, paths, allowed)
            .map_err(|error| mask_error(what(), &error))?;
        let mut check = Check::new(what(), "bdev");
        check_kind(&mut new, &mut check);
        check_qos(&mut new, &mut check);
        check.finish()?;
        if new == there.spec {
            return Ok(there);
        }
        Ok(self.put_bdev(key, new))
    }

    /// Gives a device another size.
    ///
    /// # Errors
    /// No such device, another generation, a size that is wrong, or a layer.
    pub fn resize_bdev(
        &mut self,
        name: &str,
        size_bytes: u64,
        expected: Option<u64>,
    ) -> Result<Arc<Stored<BdevSpec>>, ControlError> {
        let (key, there) = self.bdev(name)?;
        Self::expect_generation(&key, expected, there.generation)?;
        let mut new = there.spec.clone();
        let what = format!("bdev {:?}", new.name);
        match &mut new.kind {
            Some(Kind::Malloc(malloc)) => malloc.size_bytes = size_bytes,
            Some(Kind::Null(null)) => null.size_bytes = size_bytes,
            Some(Kind::File(file)) => {
                if file.size_bytes.is_some_and(|size| size_bytes < size) {
                    let problem = "a file is never made smaller: that would cut data off";
                    return Err(ControlError::field(what, "size_bytes", problem));
                }
                file.size_bytes = Some(size_bytes);
            }
            Some(Kind::Nvme(_)) => {
                return Err(ControlError::Precondition {
                    subject: new.name,
                    problem: "a drive has the namespaces that it has".to_owned(),
                });
            }
            _ => {
                return Err(ControlError::Precondition {
                    subject: new.name,
                    problem: "a layer is as large as the device below; resize that one".to_owned(),
                });
            }
        }
        let pool = self.model.bdev_users(&new.name).find_map(|key| match key {
            Key::Pool(pool) => Some(pool),
            _ => None,
        });
        if let Some(pool) = pool
            && size_of(&there.spec).is_some_and(|size| size_bytes < size)
        {
            let problem = format!("must not become less: pool {pool:?} is on it");
            return Err(ControlError::field(what, "size_bytes", problem));
        }
        let mut check = Check::new(what, "bdev");
        check_kind(&mut new, &mut check);
        check.finish()?;
        if new == there.spec {
            return Ok(there);
        }
        Ok(self.put_bdev(key, new))
    }

    /// Deletes a device that nothing uses.
    ///
    /// # Errors
    /// None of this name unless `allow_missing`, another generation, or a user.
    pub fn delete_bdev(
        &mut self,
        name: &str,
        expected: Option<u64>,
        allow_missing: bool,
    ) -> Result<(), ControlError> {
        let (key, there) = match self.bdev(name) {
            Ok(found) => found,
            Err(ControlError::NotFound { .. }) if allow_missing => return Ok(()),
            Err(error) => return Err(error),
        };
        Self::expect_generation(&key, expected, there.generation)?;
        if is_drive(&there.spec) {
            self.free_drive(&there.spec.name)?;
        } else {
            self.free_bdev(&there.spec.name)?;
        }
        self.put(key, None);
        Ok(())
    }

    fn bdev(&self, name: &str) -> Result<(Key, Arc<Stored<BdevSpec>>), ControlError> {
        match self.model.find_bdev(name) {
            Some(found) => Ok((Key::Bdev(found.spec.name.clone()), found.clone())),
            None => Err(Self::not_found(&Key::Bdev(name.to_owned()))),
        }
    }

    /// Refuses while something uses a namespace of the drive.
    fn free_drive(&self, name: &str) -> Result<(), ControlError> {
        let users = self.model.users_of_drive(name);
        let mut users: Vec<_> = users
            .map(|(namespace, key)| format!("{} {} ({namespace})", key.kind(), key.name()))
            .collect();
        users.sort();
        if users.is_empty() {
            return Ok(());
        }
        Err(ControlError::InUse {
            kind: "bdev",
            name: name.to_owned(),
            users,
        })
    }

    /// Refuses unless the device is there, or the pool of that volume is, and nothing uses it.
    pub(super) fn free_bdev(&self, name: &str) -> Result<(), ControlError> {
        if self
            .model
            .bdevs
            .get(name)
            .is_some_and(|there| is_drive(&there.spec))
        {
            return Err(ControlError::Precondition {
                subject: name.to_owned(),
                problem: format!(
                    "{name} is a drive; its namespaces are block devices: name {name}n1"
                ),
            });
        }
        if self.model.key_of_bdev(name).is_none() {
            return Err(Self::not_found(&Key::Bdev(name.to_owned())));
        }
        let users: Vec<_> = self
            .model
            .bdev_users(name)
            .map(|key| format!("{} {}", key.kind(), key.name()))
            .collect();
        if users.is_empty() {
            return Ok(());
        }
        Err(ControlError::InUse {
            kind: "bdev",
            name: name.to_owned(),
            users,
        })
    }

    fn check_depth(&self, base: &str) -> Result<(), ControlError> {
        let mut below = Some(base);
        for _ in 0..LAYERS_MAX {
            let Some(name) = below else { return Ok(()) };
            below = self
                .model
                .bdevs
                .get(name)
                .and_then(|bdev| base_of(&bdev.spec));
        }
        Err(ControlError::Precondition {
            subject: base.to_owned(),
            problem: format!("{LAYERS_MAX} layers lie on each other already"),
        })
    }

    /// A specification in normal form. What the caller left open is taken from `there`, so that the
    /// same request again finds the same object.
    pub(super) fn normal_bdev(
        &self,
        mut spec: BdevSpec,
        there: Option<&Stored<BdevSpec>>,
    ) -> Result<BdevSpec, ControlError> {
        let mut check = Check::new(format!("bdev {:?}", spec.name), "bdev");
        check_name(&spec.name, &mut check);
        if let Some(there) = there {
            spec.uuid
                .get_or_insert_with(|| there.spec.uuid().to_owned());
            if spec.qos.is_none() {
                spec.qos = there.spec.qos;
            }
            if let (Some(Kind::Nvme(spec)), Some(Kind::Nvme(there))) =
                (&mut spec.kind, &there.spec.kind)
            {
                // Set meanwhile, or left as the drive has them: both are no difference.
                spec.power_state = spec.power_state.or(there.power_state);
                spec.write_cache = spec.write_cache.or(there.write_cache);
                spec.arbitration_burst = spec.arbitration_burst.or(there.arbitration_burst);
            }
        }
        let uuid = spec
            .uuid
            .get_or_insert_with(|| uuid::Uuid::new_v4().to_string());
        check.uuid("uuid", uuid);
        check_kind(&mut spec, &mut check);
        check_qos(&mut spec, &mut check);
        // A layer may name its base by UUID.
        let base = base_of(&spec).and_then(|base| self.model.find_bdev(base));
        let base = base.map(|base| base.spec.name.clone());
        if let Some(base) = base {
            match &mut spec.kind {
                Some(Kind::Error(layer)) => layer.base_bdev = base,
                Some(Kind::Delay(layer)) => layer.base_bdev = base,
                _ => {}
            }
        }
        check.finish()?;
        Ok(spec)
    }

    pub(super) fn put_bdev(&mut self, key: Key, spec: BdevSpec) -> Arc<Stored<BdevSpec>> {
        let stored = Arc::new(Stored {
            spec,
            generation: self.generation(),
        });
        self.put(key, Some(Object::Bdev(stored.clone())));
        stored
    }
}

/// Size of a device that has one of its own.
pub(super) fn size_of(spec: &BdevSpec) -> Option<u64> {
    match &spec.kind {
        Some(Kind::Malloc(malloc)) => Some(malloc.size_bytes),
        Some(Kind::Null(null)) => Some(null.size_bytes),
        Some(Kind::File(file)) => file.size_bytes,
        _ => None,
    }
}

fn check_name(name: &str, check: &mut Check) {
    let is_right = (1..=128).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._:-@/".contains(&b));
    check.that(
        is_right,
        "name",
        "must be 1 to 128 characters: letters, digits and ._:-@/",
    );
    // A name that reads as a UUID would hide the device that has it.
    let is_uuid = uuid::Uuid::parse_str(name).is_ok();
    check.that(
        !is_uuid,
        "name",
        "must not be a UUID: devices are found by UUID too",
    );
}

fn check_kind(spec: &mut BdevSpec, check: &mut Check) {
    match &mut spec.kind {
        Some(Kind::Malloc(malloc)) => {
            let block = check_block_size("malloc", &mut malloc.block_size, check);
            check_size("malloc", malloc.size_bytes, block, check);
        }
        Some(Kind::Null(null)) => {
            let block = check_block_size("null", &mut null.block_size, check);
            check_size("null", null.size_bytes, block, check);
        }
        Some(Kind::File(file)) => {
            let block = check_block_size("file", &mut file.block_size, check);
            if let Some(size) = file.size_bytes {
                check_size("file", size, block, check);
            }
            file.direct.get_or_insert(true);
            file.read_only.get_or_insert(false);
            let is_right = file.path.starts_with('/') && !file.path.contains('\0');
            check.that(
                is_right && file.path.len() < 4096,
                "file.path",
                "must be an absolute path",
            );
        }
        Some(Kind::Error(layer)) => {
            check.that(
                !layer.base_bdev.is_empty(),
                "error.base_bdev",
                "names the device below",
            );
            let count = layer.rules.len();
            check.that(
                count <= RULES_MAX,
                "error.rules",
                "at most 64 rules are possible",
            );
            for (index, rule) in layer.rules.iter_mut().enumerate() {
                check_rule(index, rule, check);
            }
        }
        Some(Kind::Delay(layer)) => {
            check.that(
                !layer.base_bdev.is_empty(),
                "delay.base_bdev",
                "names the device below",
            );
            for (field, value) in [
                ("delay.avg_read_latency_us", layer.avg_read_latency_us),
                ("delay.p99_read_latency_us", layer.p99_read_latency_us),
                ("delay.avg_write_latency_us", layer.avg_write_latency_us),
                ("delay.p99_write_latency_us", layer.p99_write_latency_us),
            ] {
                check.that(value <= LATENCY_US_MAX, field, "must be at most an hour");
            }
        }
        Some(Kind::Nvme(nvme)) => check_drive(nvme, check),
        None => check.wrong("kind", format!("one of {} must be set", KINDS.join(", "))),
    }
}

fn check_drive(nvme: &mut NvmeBdev, check: &mut Check) {
    let (address, serial) = (&mut nvme.pci_address, &nvme.serial_number);
    check.that(
        address.is_empty() != serial.is_empty(),
        "nvme",
        "must have a pci_address or a serial_number, not both",
    );
    if !address.is_empty() {
        match address.parse::<machine::PciAddress>() {
            Ok(right) => *address = right.to_string(),
            Err(_) => check.wrong("nvme.pci_address", "must be as in 0000:01:00.0"),
        }
    }
    let is_right = serial.len() <= 20 && serial.bytes().all(|b| (b' '..=b'~').contains(&b));
    check.that(
        is_right && serial.trim() == serial,
        "nvme.serial_number",
        "must be at most 20 printable characters, without spaces around",
    );
    if let Some(queues) = nvme.io_queues {
        let is_right = (1..=1024).contains(&queues);
        check.that(is_right, "nvme.io_queues", "must be 1 to 1024");
    }
    let within = |value: Option<u32>, max| value.is_none_or(|value| value <= max);
    check.that(
        within(nvme.power_state, 31),
        "nvme.power_state",
        "must be 0 to 31",
    );
    check.that(
        within(nvme.arbitration_burst, 7),
        "nvme.arbitration_burst",
        "must be 0 to 7",
    );
}

fn check_block_size(kind: &str, block_size: &mut Option<u32>, check: &mut Check) -> u32 {
    let block = *block_size.get_or_insert(512);
    let is_right = matches!(block, 512 | 4096);
    check.that(
        is_right,
        &format!("{kind}.block_size"),
        "must be 512 or 4096",
    );
    if is_right { block } else { 512 }
}

fn check_size(kind: &str, size: u64, block: u32, check: &mut Check) {
    let field = format!("{kind}.size_bytes");
    check.that(size > 0, &field, "must not be 0");
    let is_whole = size.is_multiple_of(u64::from(block));
    check.that(
        is_whole,
        &field,
        &format!("must be a multiple of the block size, {block}"),
    );
    check.that(size <= 1 << 60, &field, "must be at most 1 EiB");
}

fn check_rule(index: usize, rule: &mut ErrorRule, check: &mut Check) {
    let field = |name: &str| format!("error.rules[{index}].{name}");
    if IoType::try_from(rule.io_type).is_err() {
        check.wrong(
            &field("io_type"),
            format!("{} is no type of I/O", rule.io_type),
        );
    }
    match ErrorType::try_from(rule.error_type) {
        Ok(ErrorType::Unspecified) | Err(_) => {
            check.wrong(
                &field("error_type"),
                "must be failure, pending or corrupt_data",
            );
        }
        Ok(_) => {}
    }
    check.number(
        &field("probability_ppm"),
        &mut rule.probability_ppm,
        1_000_000,
        1..=1_000_000,
    );
    check.number(&field("sct"), &mut rule.sct, 2, 0..=7);
    // Media errors: unrecovered read error, write fault.
    let default_sc = if rule.io_type() == IoType::Read {
        0x81
    } else {
        0x80
    };
    check.number(&field("sc"), &mut rule.sc, default_sc, 0..=255);
    check.number(
        &field("corrupt_value"),
        &mut rule.corrupt_value,
        255,
        1..=255,
    );
    if let (Some(first), Some(last)) = (rule.lba_first, rule.lba_last) {
        check.that(
            first <= last,
            &field("lba_last"),
            "must not be before lba_first",
        );
    }
}

fn check_qos(spec: &mut BdevSpec, check: &mut Check) {
    let has_limits = spec.qos.is_some_and(|qos| qos != QosLimits::default());
    check.that(
        !is_drive(spec) || !has_limits,
        "qos",
        "a drive has no limits",
    );
    check_limits(&mut spec.qos, check);
}

fn check_limits(limits: &mut Option<QosLimits>, check: &mut Check) {
    let Some(qos) = limits else { return };
    check.number("qos.burst_ms", &mut qos.burst_ms, 1, 0..=10_000);
    // No limit at all is the same as none given: one form for both.
    let burst_ms = qos.burst_ms;
    if *qos
        == (QosLimits {
            burst_ms,
            ..QosLimits::default()
        })
    {
        *limits = None;
    }
}

/// Limits of a volume in the form in which they are kept. `prefix` is the message that has them.
///
/// # Errors
/// A burst that is too long.
pub(crate) fn normal_limits(
    name: &str,
    prefix: &'static str,
    mut limits: Option<QosLimits>,
) -> Result<Option<QosLimits>, ControlError> {
    let mut check = Check::new(format!("volume {name:?}"), prefix);
    check_limits(&mut limits, &mut check);
    check.finish()?;
    Ok(limits)
}
