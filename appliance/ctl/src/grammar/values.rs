//! Values of arguments: times, sizes, states, rules.

use api::quantity::{parse_bytes, parse_duration_ns};

fn narrow(value: u64) -> Result<u32, String> {
    u32::try_from(value).map_err(|_| format!("{value} is more than 4294967295"))
}

pub(super) fn bytes_u32(text: &str) -> Result<u32, String> {
    narrow(parse_bytes(text).map_err(|error| error.to_string())?)
}

/// A time in a unit of `per_unit` nanoseconds, exactly.
fn time(text: &str, per_unit: u64, name: &str) -> Result<u64, String> {
    let ns = parse_duration_ns(text).map_err(|error| error.to_string())?;
    if ns.is_multiple_of(per_unit) {
        Ok(ns / per_unit)
    } else {
        Err(format!("{text:?} is not a whole number of {name}"))
    }
}

pub(super) fn microseconds(text: &str) -> Result<u64, String> {
    time(text, 1_000, "microseconds")
}

pub(super) fn milliseconds(text: &str) -> Result<u64, String> {
    time(text, 1_000_000, "milliseconds")
}

pub(super) fn milliseconds_u32(text: &str) -> Result<u32, String> {
    narrow(milliseconds(text)?)
}

pub(super) fn ana_state(text: &str) -> Result<api::v1::AnaState, String> {
    let name = format!("ANA_STATE_{}", text.to_ascii_uppercase().replace('-', "_"));
    match api::v1::AnaState::from_str_name(&name) {
        Some(state) if state != api::v1::AnaState::Unspecified => Ok(state),
        _ => {
            Err("use optimized, non-optimized, inaccessible, persistent-loss or change".to_owned())
        }
    }
}

/// Reads one `--label`.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("use KEY=VALUE".to_owned()),
    }
}

/// Reads a share.
pub(super) fn percent(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    match number.parse() {
        Ok(percent @ 1..=100) => Ok(percent),
        _ => Err("use 1 to 100".to_owned()),
    }
}

/// Reads one `--rule`.
pub(super) fn rule(text: &str) -> Result<api::v1::ErrorRule, String> {
    use api::v1::{ErrorRule, ErrorType, IoType};
    let mut rule = ErrorRule {
        error_type: ErrorType::Failure.into(),
        ..ErrorRule::default()
    };
    for word in text
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
    {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let upper = value.to_ascii_uppercase().replace('-', "_");
        let wrong = || format!("{word:?} is not understood; see --help");
        let number = || integer(value).ok_or_else(wrong);
        let small = || number().and_then(narrow).map(Some);
        match key {
            "io" if value == "any" => rule.io_type = IoType::Unspecified.into(),
            "io" => {
                let kind = IoType::from_str_name(&format!("IO_TYPE_{upper}"));
                rule.io_type = kind.ok_or_else(wrong)?.into();
            }
            "type" => {
                let kind = ErrorType::from_str_name(&format!("ERROR_TYPE_{upper}"));
                rule.error_type = kind.ok_or_else(wrong)?.into();
            }
            "num" => rule.num = number()?,
            "ppm" => rule.probability_ppm = small()?,
            "sct" => rule.sct = small()?,
            "sc" => rule.sc = small()?,
            "dnr" if value.is_empty() => rule.dnr = true,
            "offset" => rule.corrupt_offset = number()?,
            "value" => rule.corrupt_value = small()?,
            "lba" => {
                let (first, last) = value.split_once('-').unwrap_or((value, value));
                rule.lba_first = Some(integer(first).ok_or_else(wrong)?);
                rule.lba_last = Some(integer(last).ok_or_else(wrong)?);
            }
            _ => return Err(wrong()),
        }
    }
    Ok(rule)
}

/// Decimal, or hexadecimal after `0x`.
fn integer(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
