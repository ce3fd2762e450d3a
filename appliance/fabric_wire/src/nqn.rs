//! NVMe Qualified Names (NVMe Base 2.1 §4.7).

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use thiserror::Error;

/// The well-known name of every discovery subsystem.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// Longest name in bytes, without the terminating zero.
pub const NQN_MAX_LEN: usize = 223;

/// Length in bytes of the zero-padded field that holds a name on the wire.
pub const NQN_FIELD_LEN: usize = 256;

const UUID_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";

/// What is wrong with a name, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NqnError {
    /// The name has no bytes.
    #[error("nqn is empty; a name such as nqn.2014-08.com.example:disk1 is needed")]
    Empty,
    /// The name is longer than [`NQN_MAX_LEN`] bytes.
    #[error("nqn is {len} bytes long; at most {NQN_MAX_LEN} are allowed")]
    TooLong {
        /// Length in bytes.
        len: usize,
    },
    /// The wire field has no terminating zero.
    #[error("nqn field of {len} bytes has no terminating zero")]
    Unterminated {
        /// Length of the field in bytes.
        len: usize,
    },
    /// The bytes are not UTF-8.
    #[error("nqn is not utf-8: first bad byte at offset {offset}")]
    NotUtf8 {
        /// Offset of the first bad byte.
        offset: usize,
    },
    /// A control character is in the name.
    #[error("nqn has a control character at byte {offset}; only printable text is allowed")]
    ControlCharacter {
        /// Offset of the character in bytes.
        offset: usize,
    },
    /// The name does not begin with `nqn.`.
    #[error("nqn {name:?} does not start with \"nqn.\"")]
    Prefix {
        /// The name.
        name: String,
    },
    /// No date follows `nqn.`.
    #[error("nqn {name:?} needs a date as yyyy-mm and a dot after \"nqn.\", such as nqn.2014-08.")]
    DateFormat {
        /// The name.
        name: String,
    },
    /// The date has the right form but cannot be the date of a domain.
    #[error(
        "nqn date {year:04}-{month:02} is not plausible; \
         a year from 1985 to 2199 and a month from 01 to 12 are needed"
    )]
    DateRange {
        /// The year.
        year: u16,
        /// The month.
        month: u8,
    },
    /// The reversed domain is missing.
    #[error("nqn {name:?} has no domain after its date; one such as com.example is needed")]
    DomainMissing {
        /// The name.
        name: String,
    },
    /// A label of the reversed domain is not a domain label.
    #[error(
        "nqn domain label {label:?} is wrong; \
         1 to 63 letters, digits and hyphens are needed, no hyphen first or last"
    )]
    DomainLabel {
        /// The label.
        label: String,
    },
    /// A colon is there, but no name follows.
    #[error("nqn {name:?} ends with a colon; put a name after it or leave it out")]
    NameMissing {
        /// The name.
        name: String,
    },
    /// The UUID form does not hold a UUID.
    #[error(
        "nqn uuid {uuid:?} is wrong; \
         32 hexadecimal digits in groups of 8-4-4-4-12 are needed"
    )]
    Uuid {
        /// What follows `uuid:`.
        uuid: String,
    },
}

/// A validated NVMe Qualified Name. A clone shares the text.
///
/// Accepted are `nqn.yyyy-mm.reverse.domain[:name]`, the UUID form
/// `nqn.2014-08.org.nvmexpress:uuid:UUID` and the discovery name. Names compare byte by byte.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nqn(Arc<str>);

impl Nqn {
    /// Checks `name`.
    pub fn new(name: &str) -> Result<Self, NqnError> {
        validate(name)?;
        Ok(Self(Arc::from(name)))
    }

    /// The name of every discovery subsystem, [`DISCOVERY_NQN`].
    #[must_use]
    pub fn discovery() -> Self {
        static NAME: LazyLock<Nqn> = LazyLock::new(|| Nqn(Arc::from(DISCOVERY_NQN)));
        NAME.clone()
    }

    /// The UUID form, from a UUID's 16 bytes in the order in which they are printed.
    #[must_use]
    pub fn from_uuid_bytes(uuid: [u8; 16]) -> Self {
        use fmt::Write as _;
        let mut name = String::from(UUID_PREFIX);
        for (index, byte) in uuid.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                name.push('-');
            }
            write!(name, "{byte:02x}").expect("writing to a String does not fail");
        }
        Self(Arc::from(name))
    }

    /// Takes the name out of a zero-padded wire field, which is 256 bytes long in every structure.
    ///
    /// What follows the first zero is not looked at.
    pub fn from_padded(field: &[u8]) -> Result<Self, NqnError> {
        let len = field
            .iter()
            .position(|&byte| byte == 0)
            .ok_or(NqnError::Unterminated { len: field.len() })?;
        let bytes = &field[..len];
        if len > NQN_MAX_LEN {
            return Err(NqnError::TooLong { len });
        }
        let name = std::str::from_utf8(bytes).map_err(|error| NqnError::NotUtf8 {
            offset: error.valid_up_to(),
        })?;
        Self::new(name)
    }

    /// The zero-padded wire field of this name.
    #[must_use]
    pub fn to_padded(&self) -> [u8; NQN_FIELD_LEN] {
        let mut field = [0; NQN_FIELD_LEN];
        field[..self.0.len()].copy_from_slice(self.0.as_bytes());
        field
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is [`DISCOVERY_NQN`].
    #[must_use]
    pub fn is_discovery(&self) -> bool {
        &*self.0 == DISCOVERY_NQN
    }
}

impl fmt::Display for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl FromStr for Nqn {
    type Err = NqnError;

    fn from_str(name: &str) -> Result<Self, NqnError> {
        Self::new(name)
    }
}

impl TryFrom<&str> for Nqn {
    type Error = NqnError;

    fn try_from(name: &str) -> Result<Self, NqnError> {
        Self::new(name)
    }
}

impl TryFrom<String> for Nqn {
    type Error = NqnError;

    fn try_from(name: String) -> Result<Self, NqnError> {
        Self::new(&name)
    }
}

impl From<Nqn> for String {
    fn from(nqn: Nqn) -> Self {
        nqn.as_str().to_owned()
    }
}

impl AsRef<str> for Nqn {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Nqn {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for Nqn {
    fn eq(&self, other: &str) -> bool {
        &*self.0 == other
    }
}

impl PartialEq<&str> for Nqn {
    fn eq(&self, other: &&str) -> bool {
        &*self.0 == *other
    }
}

fn validate(name: &str) -> Result<(), NqnError> {
    if name.is_empty() {
        return Err(NqnError::Empty);
    }
    if name.len() > NQN_MAX_LEN {
        return Err(NqnError::TooLong { len: name.len() });
    }
    if let Some((offset, _)) = name.char_indices().find(|(_, c)| c.is_control()) {
        return Err(NqnError::ControlCharacter { offset });
    }
    let dated = name.strip_prefix("nqn.").ok_or_else(|| NqnError::Prefix {
        name: name.to_owned(),
    })?;
    let rest = validate_date(name, dated)?;
    let (domain, label) = match rest.split_once(':') {
        Some((domain, label)) => (domain, Some(label)),
        None => (rest, None),
    };
    validate_domain(name, domain)?;
    if label == Some("") {
        return Err(NqnError::NameMissing {
            name: name.to_owned(),
        });
    }
    match name.strip_prefix(UUID_PREFIX) {
        Some(uuid) if !is_uuid(uuid) => Err(NqnError::Uuid {
            uuid: uuid.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Checks `yyyy-mm.` at the start of `dated` and gives what follows.
fn validate_date<'a>(name: &str, dated: &'a str) -> Result<&'a str, NqnError> {
    let wrong = || NqnError::DateFormat {
        name: name.to_owned(),
    };
    let (date, rest) = dated.split_at_checked(7).ok_or_else(wrong)?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (year, month) = date.split_once('-').ok_or_else(wrong)?;
    if year.len() != 4 || !digits(year) || !digits(month) {
        return Err(wrong());
    }
    let year: u16 = year.parse().map_err(|_| wrong())?;
    let month: u8 = month.parse().map_err(|_| wrong())?;
    // The first domain was registered in 1985.
    if !(1985..=2199).contains(&year) || !(1..=12).contains(&month) {
        return Err(NqnError::DateRange { year, month });
    }
    match rest.strip_prefix('.') {
        Some(rest) => Ok(rest),
        None if rest.is_empty() => Err(NqnError::DomainMissing {
            name: name.to_owned(),
        }),
        None => Err(wrong()),
    }
}

fn validate_domain(name: &str, domain: &str) -> Result<(), NqnError> {
    if domain.is_empty() {
        return Err(NqnError::DomainMissing {
            name: name.to_owned(),
        });
    }
    for label in domain.split('.') {
        let good = (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-');
        if !good {
            return Err(NqnError::DomainLabel {
                label: label.to_owned(),
            });
        }
    }
    Ok(())
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
#[path = "nqn_tests.rs"]
mod tests;
