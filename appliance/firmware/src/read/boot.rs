//! How the node is started.

use std::io;

use super::Node;
use crate::catalogue::{Found, Reading};
use crate::efi::{Medium, parse_boot_order, parse_flag, parse_load_option};
use crate::tree::{Tree, shown, why};
use crate::value::Value;

const EFI: &str = "sys/firmware/efi";
/// Vendor of the variables that the specification defines.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Boot options that are looked at until one is active.
const OPTIONS_MAX: usize = 256;

pub(crate) fn uefi(node: &Node) -> Vec<Found> {
    node.one(|tree| Reading::value(tree.exists(EFI), shown(EFI)))
}

fn path(variable: &str) -> String {
    format!("{EFI}/efivars/{variable}-{GLOBAL}")
}

/// Why a variable cannot be read.
fn missing(tree: &Tree, error: &io::Error) -> String {
    if error.kind() != io::ErrorKind::NotFound {
        return why(error);
    }
    if !tree.exists(EFI) {
        return "the node was not started by UEFI".to_owned();
    }
    if tree.names(&format!("{EFI}/efivars")).is_empty() {
        return "efivarfs is not mounted".to_owned();
    }
    "firmware has no such variable".to_owned()
}

pub(crate) fn secure_boot(node: &Node) -> Vec<Found> {
    node.one(|tree| {
        let path = path("SecureBoot");
        match tree.bytes(&path) {
            Ok(bytes) => match parse_flag(&bytes) {
                Ok(on) => Reading::value(on, shown(&path)),
                Err(error) => Reading::unreadable(error.to_string(), shown(&path)),
            },
            Err(error) => Reading::unreadable(missing(tree, &error), shown(&path)),
        }
    })
}

pub(crate) fn first(node: &Node) -> Vec<Found> {
    node.one(|tree| first_of(tree).unwrap_or_else(|unreadable| unreadable))
}

/// The first active option. `Err` is a reading too.
fn first_of(tree: &Tree) -> Result<Reading, Reading> {
    let at = path("BootOrder");
    let failed = |why: String, at: &str| Reading::unreadable(why, shown(at));
    let bytes = tree.bytes(&at);
    let bytes = bytes.map_err(|error| failed(missing(tree, &error), &at))?;
    let order = parse_boot_order(&bytes).map_err(|error| failed(error.to_string(), &at))?;
    for number in order.into_iter().take(OPTIONS_MAX) {
        let at = path(&format!("Boot{number:04X}"));
        let bytes = match tree.bytes(&at) {
            Ok(bytes) => bytes,
            // The order may name options that were deleted: firmware skips them.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(why(&error), &at)),
        };
        let option = parse_load_option(&bytes).map_err(|error| failed(error.to_string(), &at))?;
        if option.is_active {
            let description: String = option.description.chars().take(60).collect();
            let source = format!("{} ({description:?})", shown(&at));
            let name = match option.medium {
                Medium::Other => "something else",
                medium => medium.name(),
            };
            return Ok(Reading::Value {
                value: Value::from(name),
                source,
            });
        }
    }
    Err(failed(
        "no entry of the boot order is active".to_owned(),
        &at,
    ))
}
