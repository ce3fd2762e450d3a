//! Reading single values.

use std::io;
use std::str::FromStr;

use crate::{FactsError, Host, PciAddress};

/// A file without the space around it; `None` when it is not there or not readable.
pub(crate) fn text(host: &dyn Host, path: &str) -> Option<String> {
    Some(host.read(path).ok()?.trim().to_owned())
}

/// A value in a file.
pub(crate) fn value<T: FromStr>(host: &dyn Host, path: &str) -> Option<T> {
    text(host, path)?.parse().ok()
}

/// A hexadecimal number in a file, with or without `0x`.
pub(crate) fn hex(host: &dyn Host, path: &str) -> Option<u32> {
    let text = text(host, path)?;
    u32::from_str_radix(text.strip_prefix("0x").unwrap_or(&text), 16).ok()
}

/// The entries of a folder; none when it is not there.
pub(crate) fn names(host: &dyn Host, path: &str) -> Vec<String> {
    host.list(path).unwrap_or_default()
}

/// The last name of what a link points to.
pub(crate) fn last_name(host: &dyn Host, path: &str) -> Option<String> {
    let target = host.link(path).ok()?;
    Some(target.rsplit('/').next()?.to_owned())
}

/// The functions that a link into `devices/` goes through, from the root.
pub(crate) fn functions(target: &str) -> Vec<PciAddress> {
    target
        .split('/')
        .filter_map(|name| name.parse().ok())
        .collect()
}

/// A file that has to be read for anything to be called unused; absent is empty.
pub(crate) fn vital(host: &dyn Host, path: &str) -> Result<String, FactsError> {
    match host.read(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(FactsError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// A number in the order of numbers before a name in the order of names.
pub(crate) fn numbered(names: &[String]) -> Vec<u32> {
    let mut numbers: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}
