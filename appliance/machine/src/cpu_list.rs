//! Sets of CPUs in the kernel's list format.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Highest CPU number that is understood; Linux is built for 8192 at most.
const CPU_MAX: u32 = 16383;

/// CPUs, or NUMA nodes, as in `0-3,8`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuList(pub BTreeSet<u32>);

/// A text that is no list of CPUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no list of CPUs: write it like 0-3,8")]
pub struct CpuListError {
    /// What was given.
    pub text: String,
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if(|next| *next == last + 1) {
                last = next;
            }
            if first == last {
                write!(f, "{separator}{first}")?;
            } else {
                write!(f, "{separator}{first}-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl FromStr for CpuList {
    type Err = CpuListError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text.trim()).ok_or_else(|| CpuListError {
            text: text.chars().take(64).collect(),
        })
    }
}

impl TryFrom<String> for CpuList {
    type Error = CpuListError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<CpuList> for String {
    fn from(list: CpuList) -> Self {
        list.to_string()
    }
}

fn parse(text: &str) -> Option<CpuList> {
    let mut cpus = BTreeSet::new();
    // nohz_full is "(null)" while there is none.
    if text.is_empty() || text == "(null)" {
        return Some(CpuList(cpus));
    }
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(CpuList(cpus))
}

fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|each| each.is_ascii_digit());
    let number: u32 = digits.then(|| text.parse().ok())??;
    (number <= CPU_MAX).then_some(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_list_is_written_as_the_kernel_writes_it() {
        for text in ["", "0", "0-3", "0-1,4,6-7"] {
            assert_eq!(text.parse::<CpuList>().unwrap().to_string(), text);
        }
        assert_eq!("(null)\n".parse::<CpuList>().unwrap(), CpuList::default());
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in ["x", "1-", "3-1", "0,,1", "-1", "0-99999999"] {
            assert!(text.parse::<CpuList>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_list_survives_being_written(cpus in prop::collection::btree_set(0u32..600, 0..40)) {
            let list = CpuList(cpus);
            prop_assert_eq!(list.to_string().parse::<CpuList>().unwrap(), list);
        }

        #[test]
        fn any_text_is_a_list_or_an_error(text in "[0-9,-]{0,24}") {
            let _ = text.parse::<CpuList>();
        }
    }
}
