//! Sets of CPUs, in the notations that operators know from SPDK.

use std::fmt;
use std::str::FromStr;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::ReactorError;

const WORDS: usize = 16;

/// A set of CPUs, numbered as the kernel does.
///
/// Parsed from a hexadecimal mask (`0x5`, `5`) or a list (`[0,2-3]`); shown as a mask.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CpuMask {
    words: [u64; WORDS],
}

impl CpuMask {
    /// CPUs that a mask can name, as many as glibc's `cpu_set_t`.
    pub const MAX_CPUS: usize = WORDS * 64;

    /// The mask without a CPU.
    pub const fn empty() -> CpuMask {
        CpuMask { words: [0; WORDS] }
    }

    /// The mask with every CPU: "wherever there is room".
    pub const fn all() -> CpuMask {
        CpuMask {
            words: [u64::MAX; WORDS],
        }
    }

    /// The mask with one CPU. A number of [`CpuMask::MAX_CPUS`] or more gives the empty mask.
    pub fn of(cpu: usize) -> CpuMask {
        let mut mask = CpuMask::empty();
        mask.insert(cpu);
        mask
    }

    /// The CPUs that the kernel lets the calling OS thread run on.
    pub fn allowed() -> Result<CpuMask, ReactorError> {
        let set = sched_getaffinity(Pid::from_raw(0))
            .map_err(|source| ReactorError::ReadAffinity { source })?;
        Ok((0..CpuMask::MAX_CPUS.min(CpuSet::count()))
            .filter(|&cpu| set.is_set(cpu).unwrap_or(false))
            .collect())
    }

    /// Adds a CPU; `false` when the number is too large for a mask.
    pub fn insert(&mut self, cpu: usize) -> bool {
        match self.words.get_mut(cpu / 64) {
            Some(word) => {
                *word |= 1 << (cpu % 64);
                true
            }
            None => false,
        }
    }

    /// Whether the CPU is in the mask.
    pub fn contains(&self, cpu: usize) -> bool {
        self.words
            .get(cpu / 64)
            .is_some_and(|word| word & (1 << (cpu % 64)) != 0)
    }

    /// Whether no CPU is in the mask.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// How many CPUs are in the mask.
    pub fn len(&self) -> usize {
        self.words
            .iter()
            .map(|word| word.count_ones() as usize)
            .sum()
    }

    /// The CPUs, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..CpuMask::MAX_CPUS).filter(|&cpu| self.contains(cpu))
    }

    /// Binds the calling OS thread to the CPUs of the mask.
    pub(crate) fn bind_current_thread(&self) -> nix::Result<()> {
        let mut set = CpuSet::new();
        for cpu in self.iter() {
            set.set(cpu)?;
        }
        sched_setaffinity(Pid::from_raw(0), &set)
    }

    fn parse_list(list: &str) -> Result<CpuMask, &'static str> {
        let mut mask = CpuMask::empty();
        for part in list.split(',').map(str::trim) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.trim().parse::<usize>().map_err(|_| "not a CPU number");
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err("a range must rise");
            }
            if last >= CpuMask::MAX_CPUS {
                return Err("CPU numbers end at 1023");
            }
            for cpu in first..=last {
                mask.insert(cpu);
            }
        }
        Ok(mask)
    }

    fn parse_hex(digits: &str) -> Result<CpuMask, &'static str> {
        if digits.is_empty() {
            return Err("no digit");
        }
        let mut mask = CpuMask::empty();
        for (place, digit) in digits.bytes().rev().enumerate() {
            let value = char::from(digit)
                .to_digit(16)
                .ok_or("not a hexadecimal digit")?;
            for bit in (0..4).filter(|bit| value & (1 << bit) != 0) {
                if !mask.insert(place * 4 + bit) {
                    return Err("CPU numbers end at 1023");
                }
            }
        }
        Ok(mask)
    }
}

impl FromIterator<usize> for CpuMask {
    fn from_iter<I: IntoIterator<Item = usize>>(cpus: I) -> CpuMask {
        let mut mask = CpuMask::empty();
        for cpu in cpus {
            mask.insert(cpu);
        }
        mask
    }
}

impl FromStr for CpuMask {
    type Err = ReactorError;

    fn from_str(text: &str) -> Result<CpuMask, ReactorError> {
        let trimmed = text.trim();
        let list = trimmed
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let hex = trimmed
            .strip_prefix("0x")
            .or_else(|| trimmed.strip_prefix("0X"));
        match list {
            Some(list) => CpuMask::parse_list(list),
            None => CpuMask::parse_hex(hex.unwrap_or(trimmed)),
        }
        .map_err(|reason| ReactorError::ParseCpuMask {
            text: text.to_owned(),
            reason,
        })
    }
}

impl fmt::Display for CpuMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let top = self.words.iter().rposition(|word| *word != 0).unwrap_or(0);
        write!(f, "0x{:x}", self.words[top])?;
        self.words[..top]
            .iter()
            .rev()
            .try_for_each(|word| write!(f, "{word:016x}"))
    }
}

impl fmt::Debug for CpuMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuMask({self})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn masks_and_lists_name_the_same_cpus() {
        let mask: CpuMask = "0x2d".parse().unwrap();
        assert_eq!(mask, "[0,2-3,5]".parse().unwrap());
        assert_eq!(mask.iter().collect::<Vec<_>>(), [0, 2, 3, 5]);
        assert_eq!(mask.to_string(), "0x2d");
        assert_eq!(CpuMask::of(64).to_string(), "0x10000000000000000");
        assert_eq!(CpuMask::empty().to_string(), "0x0");
    }

    #[test]
    fn bad_masks_say_what_is_wrong() {
        for text in ["", "0x", "0xg", "[3-1]", "[1024]", "[a]", "[]", "[1", "-1"] {
            let error = text.parse::<CpuMask>().unwrap_err();
            assert!(
                matches!(error, ReactorError::ParseCpuMask { .. }),
                "{text}: {error}"
            );
        }
        let too_long = format!("1{}", "0".repeat(256));
        assert!(too_long.parse::<CpuMask>().is_err());
    }

    #[test]
    fn the_process_may_run_somewhere() {
        assert!(!CpuMask::allowed().unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn display_round_trips(cpus in proptest::collection::vec(0usize..1024, 0..20)) {
            let mask: CpuMask = cpus.iter().copied().collect();
            prop_assert_eq!(mask.to_string().parse::<CpuMask>().unwrap(), mask);
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in ".*") {
            let _ = text.parse::<CpuMask>();
        }
    }
}
