//! Sizes and times as people write them: `512MiB`, `4KiB`, `10s`.

/// Why a quantity could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
#[non_exhaustive]
pub enum QuantityError {
    /// There is no number at the start.
    #[error(
        "{0:?} does not start with a number; write a size such as 512MiB or a time such as 10s"
    )]
    NotANumber(String),
    /// The unit is not known.
    #[error("unknown unit {unit:?} in {text:?}; use one of {allowed}")]
    UnknownUnit {
        /// What was given.
        text: String,
        /// The part after the number.
        unit: String,
        /// Units that are understood.
        allowed: &'static str,
    },
    /// The value is larger than 2^64 - 1 or is no whole number of the smallest unit.
    #[error("{0:?} is too large, or not a whole number of its smallest unit")]
    OutOfRange(String),
}

const BYTE_UNITS: &str =
    "B, KiB, MiB, GiB, TiB, PiB (powers of 1024), KB, MB, GB, TB, PB (powers of 1000)";
const TIME_UNITS: &str = "ns, us, ms, s, m, h";

/// Reads a size in bytes: `4096`, `4KiB`, `1.5GiB`, `1TB`. `K`, `M`, `G`, `T` alone are powers of 1024.
///
/// # Errors
/// When it is no number with a known unit, or more than 2^64 - 1 bytes, or not a whole number of bytes.
pub fn parse_bytes(text: &str) -> Result<u64, QuantityError> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "p" | "pib" => 1 << 50,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "pb" => 1_000_000_000_000_000,
        _ => return Err(unknown(text, unit, BYTE_UNITS)),
    };
    scale(text, number, factor)
}

/// Reads a time in nanoseconds: `10s`, `1.5ms`, `2m`. A bare number is seconds.
///
/// # Errors
/// When it is no number with a known unit, or more than 2^64 - 1 ns, or not a whole number of ns.
pub fn parse_duration_ns(text: &str) -> Result<u64, QuantityError> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "" | "s" => 1_000_000_000,
        "m" | "min" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return Err(unknown(text, unit, TIME_UNITS)),
    };
    scale(text, number, factor)
}

/// Writes a size the short way: `512 MiB`, `1.5 TiB`. Exact values print exactly.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    while unit + 1 < UNITS.len() && bytes >> (10 * (unit + 1)) != 0 {
        unit += 1;
    }
    let whole = 1_u64 << (10 * unit);
    if bytes.is_multiple_of(whole) {
        return format!("{} {}", bytes / whole, UNITS[unit]);
    }
    // Two digits after the point, rounded down: never shows more than there is.
    let hundredths = u128::from(bytes % whole) * 100 / u128::from(whole);
    format!("{}.{hundredths:02} {}", bytes / whole, UNITS[unit])
}

fn split(text: &str) -> Result<(&str, &str), QuantityError> {
    let trimmed = text.trim();
    let end = trimmed
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(end);
    if !number.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(QuantityError::NotANumber(text.to_owned()));
    }
    Ok((number, unit.trim()))
}

fn unknown(text: &str, unit: &str, allowed: &'static str) -> QuantityError {
    QuantityError::UnknownUnit {
        text: text.to_owned(),
        unit: unit.to_owned(),
        allowed,
    }
}

/// Exact decimal arithmetic: no float ever rounds somebody's disk size.
fn scale(text: &str, number: &str, factor: u64) -> Result<u64, QuantityError> {
    let out_of_range = || QuantityError::OutOfRange(text.to_owned());
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') {
        return Err(QuantityError::NotANumber(text.to_owned()));
    }
    if fraction.len() > 12 {
        return Err(out_of_range());
    }
    let whole: u64 = whole.parse().map_err(|_| out_of_range())?;
    let mut value = u128::from(whole) * u128::from(factor);
    if !fraction.is_empty() {
        let digits: u128 = fraction.parse().map_err(|_| out_of_range())?;
        let divisor = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| out_of_range())?);
        let scaled = digits * u128::from(factor);
        if !scaled.is_multiple_of(divisor) {
            return Err(out_of_range());
        }
        value += scaled / divisor;
    }
    u64::try_from(value).map_err(|_| out_of_range())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_exactly() {
        assert_eq!(parse_bytes("512MiB"), Ok(512 << 20));
        assert_eq!(parse_bytes("1TiB"), Ok(1 << 40));
        assert_eq!(parse_bytes("4k"), Ok(4096));
        assert_eq!(parse_bytes("1.5 GiB"), Ok(3 << 29));
        assert_eq!(parse_bytes("1MB"), Ok(1_000_000));
        assert_eq!(parse_bytes("18446744073709551615"), Ok(u64::MAX));
    }

    #[test]
    fn wrong_sizes_say_what_is_wrong() {
        assert!(matches!(
            parse_bytes("MiB"),
            Err(QuantityError::NotANumber(_))
        ));
        assert!(matches!(
            parse_bytes("-1"),
            Err(QuantityError::NotANumber(_))
        ));
        assert!(matches!(
            parse_bytes(".5k"),
            Err(QuantityError::NotANumber(_))
        ));
        assert!(matches!(
            parse_bytes("1.2.3"),
            Err(QuantityError::NotANumber(_))
        ));
        assert!(matches!(
            parse_bytes("5 parsecs"),
            Err(QuantityError::UnknownUnit { .. })
        ));
        assert!(matches!(
            parse_bytes("18446744073709551616"),
            Err(QuantityError::OutOfRange(_))
        ));
        assert!(matches!(
            parse_bytes("20000PiB"),
            Err(QuantityError::OutOfRange(_))
        ));
        assert!(matches!(
            parse_bytes("1.0001KiB"),
            Err(QuantityError::OutOfRange(_))
        ));
    }

    #[test]
    fn times_are_read() {
        assert_eq!(parse_duration_ns("10s"), Ok(10_000_000_000));
        assert_eq!(parse_duration_ns("1.5ms"), Ok(1_500_000));
        assert_eq!(parse_duration_ns("3"), Ok(3_000_000_000));
    }

    #[test]
    fn sizes_are_written_short_and_never_too_large() {
        assert_eq!(format_bytes(0), "0 B");
        assert_eq!(format_bytes(512 << 20), "512 MiB");
        assert_eq!(format_bytes((1 << 40) - 1), "1023.99 GiB");
        assert_eq!(format_bytes(u64::MAX), "16383.99 PiB");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_refused_or_read_without_panic(text in ".*") {
            let _ = parse_bytes(&text);
            let _ = parse_duration_ns(&text);
        }

        #[test]
        fn plain_numbers_round_trip(bytes: u64) {
            proptest::prop_assert_eq!(parse_bytes(&bytes.to_string()), Ok(bytes));
        }
    }
}
