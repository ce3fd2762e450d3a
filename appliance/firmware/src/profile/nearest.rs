//! The name that was probably meant.

/// Longest name that is compared.
const LEN_MAX: usize = 64;

/// The name of `names` that is nearest to `given`, if one is near.
pub(super) fn nearest<'a>(
    given: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    if given.len() > LEN_MAX {
        return None;
    }
    let distances = names.into_iter().map(|name| (distance(given, name), name));
    let (distance, name) = distances.min_by_key(|(distance, _)| *distance)?;
    // Half a name leads to the whole one: `mtu` to `mtu_min`.
    let is_part = given.len() >= 3 && name.starts_with(given);
    let is_near = distance <= (name.len() / 3).max(2);
    (is_near || is_part).then_some(name)
}

/// Letters to add, take away or replace.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_finds_its_name() {
        let names = ["mtu_min", "power_state", "write_cache"];
        assert_eq!(nearest("mtu", names), Some("mtu_min"));
        assert_eq!(nearest("powerstate", names), Some("power_state"));
        assert_eq!(nearest("wirte_cache", names), Some("write_cache"));
        assert_eq!(nearest("frobnicate", names), None);
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn distances_are_those_of_levenshtein() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
    }
}
