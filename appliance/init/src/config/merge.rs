//! Sources into one document.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Document, Given};

/// Most values of one source.
pub(crate) const VALUES_MAX: usize = 512;
/// Longest document in bytes.
pub(crate) const DOCUMENT_BYTES_MAX: usize = 256 << 10;
/// Deepest key.
const DEPTH_MAX: usize = 8;

/// Where a value is from; a later one overrules an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// `/etc/adit/config.toml` of the image.
    Image,
    /// SMBIOS, OEM strings (type 11).
    Smbios,
    /// QEMU's firmware configuration device.
    FwCfg,
    /// The agent: fetched from `config_url`, or applied by a person or a controller.
    Agent,
    /// The kernel command line: whoever stands at the machine has the last word.
    CommandLine,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::Image => "/etc/adit/config.toml",
            Self::Smbios => "SMBIOS type 11",
            Self::FwCfg => "fw_cfg",
            Self::Agent => "agent",
            Self::CommandLine => "kernel command line",
        })
    }
}

/// A value that holds, and where it is from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Value {
    /// Key: `watchdog.timeout_s`.
    pub key: String,
    /// The value, as TOML.
    pub value: String,
    /// Where it is from.
    pub source: Source,
}

/// A value that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Where it is from.
    pub source: Source,
    /// Key; empty when the source could not be read at all.
    pub key: String,
    /// What is wrong, and what would be right.
    pub text: String,
    /// What holds in its place.
    pub instead: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            source,
            key,
            text,
            instead,
        } = self;
        if key.is_empty() {
            write!(
                f,
                "configuration from {source} is not used: {text}; {instead}"
            )
        } else {
            write!(f, "{key} from {source} is not used: {text}; {instead}")
        }
    }
}

/// What holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Effective {
    /// The document.
    pub document: Document,
    /// What somebody said, and who; sorted by key. What is not here is the default.
    pub values: Vec<Value>,
    /// What does not hold.
    pub problems: Vec<Problem>,
}

/// Puts sources together.
#[must_use]
pub fn merge(given: &[Given]) -> Effective {
    let mut order: Vec<&Given> = given.iter().collect();
    order.sort_by_key(|given| given.source);
    let mut tree = toml::Table::new();
    let mut effective = Effective::default();
    for given in order {
        effective.problems.extend(given.problems.iter().cloned());
        for (index, (key, value)) in given.values.iter().enumerate() {
            let refused = if index >= VALUES_MAX {
                Err(format!("a source has at most {VALUES_MAX} values"))
            } else {
                attempt(&tree, key, value)
            };
            match refused {
                Ok((next, document)) => {
                    tree = next;
                    effective.document = document;
                    // A value takes the place of what was at, above or below its key.
                    effective
                        .values
                        .retain(|old| !is_below(&old.key, key) && !is_below(key, &old.key));
                    effective.values.push(Value {
                        key: key.clone(),
                        value: value.to_string(),
                        source: given.source,
                    });
                }
                Err(text) => effective.problems.push(Problem {
                    source: given.source,
                    key: key.clone(),
                    text,
                    instead: instead(&effective.values, key),
                }),
            }
            if index > VALUES_MAX {
                break;
            }
        }
    }
    effective.values.sort_by(|a, b| a.key.cmp(&b.key));
    effective
}

fn is_below(key: &str, above: &str) -> bool {
    key == above
        || (key.len() > above.len()
            && key.starts_with(above)
            && key.as_bytes()[above.len()] == b'.')
}

fn instead(values: &[Value], key: &str) -> String {
    match values.iter().find(|value| value.key == key) {
        Some(value) => format!("{} from {} is used", value.value, value.source),
        None => "the default is used".to_owned(),
    }
}

/// The tree with the value in it, and its document.
fn attempt(
    tree: &toml::Table,
    key: &str,
    value: &toml::Value,
) -> Result<(toml::Table, Document), String> {
    let mut next = tree.clone();
    let parts: Vec<&str> = split_key(key)?;
    let (last, above) = parts.split_last().ok_or("the key is empty")?;
    let mut at = &mut next;
    for part in above {
        let inner = at
            .entry((*part).to_owned())
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        if !inner.is_table() {
            *inner = toml::Value::Table(toml::Table::new());
        }
        let toml::Value::Table(table) = inner else {
            return Err(format!("{part:?} is no table"));
        };
        at = table;
    }
    at.insert((*last).to_owned(), value.clone());
    let document: Document = toml::Value::Table(next.clone())
        .try_into()
        .map_err(|error: toml::de::Error| one_line(&error.to_string()))?;
    document.check()?;
    Ok((next, document))
}

/// Names of sysctls have dots of their own: what follows `sysctl.` is one part.
fn split_key(key: &str) -> Result<Vec<&str>, String> {
    let parts: Vec<&str> = match key.strip_prefix("sysctl.") {
        Some(name) => vec!["sysctl", name],
        None => key.split('.').collect(),
    };
    if parts.len() > DEPTH_MAX || parts.iter().any(|part| part.is_empty()) {
        return Err("this is no key, as in watchdog.timeout_s".to_owned());
    }
    Ok(parts)
}

fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ")
}

/// A TOML document as values of a source.
#[must_use]
pub fn parse_document(source: Source, bytes: &[u8]) -> Given {
    let mut given = Given::new(source);
    let not_used = |text: String| Problem {
        source,
        key: String::new(),
        text,
        instead: "the other sources and the defaults are used".to_owned(),
    };
    if bytes.len() > DOCUMENT_BYTES_MAX {
        let text = format!("it is longer than {} KiB", DOCUMENT_BYTES_MAX >> 10);
        given.problems.push(not_used(text));
        return given;
    }
    let parsed = std::str::from_utf8(bytes)
        .map_err(|_| "it is no UTF-8".to_owned())
        .and_then(|text| {
            text.parse::<toml::Table>()
                .map_err(|error| first_line(&error))
        });
    match parsed {
        Ok(table) => given.values = leaves(&table),
        Err(text) => given.problems.push(not_used(text)),
    }
    given
}

fn first_line(error: &toml::de::Error) -> String {
    one_line(error.message())
}

/// The values of a document with their keys. Tables are taken apart, lists are not.
#[must_use]
pub fn leaves(table: &toml::Table) -> Vec<(String, toml::Value)> {
    fn walk(prefix: &str, table: &toml::Table, depth: usize, out: &mut Vec<(String, toml::Value)>) {
        for (name, value) in table {
            let key = if prefix.is_empty() {
                name.clone()
            } else {
                format!("{prefix}.{name}")
            };
            match value {
                // An empty name or one with a dot cannot be said as a key: its table stays whole.
                toml::Value::Table(inner)
                    if depth < DEPTH_MAX
                        && !inner.is_empty()
                        && (prefix.is_empty() && name == "sysctl"
                            || inner
                                .keys()
                                .all(|key| !key.is_empty() && !key.contains('.'))) =>
                {
                    walk(&key, inner, depth + 1, out);
                }
                _ => out.push((key, value.clone())),
            }
        }
    }
    let mut out = Vec::new();
    walk("", table, 1, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn given(source: Source, values: &[(&str, toml::Value)]) -> Given {
        Given {
            values: values
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.clone()))
                .collect(),
            ..Given::new(source)
        }
    }

    fn number(number: i64) -> toml::Value {
        toml::Value::Integer(number)
    }

    #[test]
    fn a_later_source_overrules_an_earlier_one_whatever_their_order() {
        let sources = [
            given(Source::CommandLine, &[("watchdog.timeout_s", number(30))]),
            given(
                Source::Image,
                &[
                    ("watchdog.timeout_s", number(10)),
                    ("crash.count_max", number(9)),
                ],
            ),
        ];
        let effective = merge(&sources);
        assert_eq!(effective.document.watchdog.timeout_s, 30);
        assert_eq!(effective.document.crash.count_max, 9);
        let sources: Vec<_> = effective.values.iter().map(|value| value.source).collect();
        assert_eq!(sources, [Source::Image, Source::CommandLine]);
    }

    #[test]
    fn a_wrong_value_is_told_with_its_source_and_what_holds_instead() {
        let sources = [
            given(Source::FwCfg, &[("watchdog.timeout_s", number(20))]),
            given(
                Source::CommandLine,
                &[
                    ("watchdog.timeout_s", number(2)),
                    (
                        "watchdog.enabled",
                        toml::Value::String("perhaps".to_owned()),
                    ),
                    ("wachdog.enabled", toml::Value::Boolean(true)),
                ],
            ),
        ];
        let effective = merge(&sources);
        assert_eq!(effective.document.watchdog.timeout_s, 20);
        let texts: Vec<String> = effective.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts[0],
            "watchdog.timeout_s from kernel command line is not used: watchdog.timeout_s is 2; it \
             must be 5 to 3600; 20 from fw_cfg is used"
        );
        assert!(
            texts[1].starts_with(
                "watchdog.enabled from kernel command line is not used: invalid type: string"
            ),
            "{}",
            texts[1]
        );
        assert!(texts[1].ends_with("; the default is used"));
        assert!(texts[2].contains("unknown field `wachdog`"), "{}", texts[2]);
    }

    #[test]
    fn a_document_that_is_no_toml_is_one_problem() {
        let given = parse_document(Source::FwCfg, b"hostname = ");
        assert!(given.values.is_empty());
        let text = given.problems[0].to_string();
        assert!(
            text.starts_with("configuration from fw_cfg is not used: "),
            "{text}"
        );
        assert_eq!(parse_document(Source::Image, &[0xff]).problems.len(), 1);
        let long = vec![b'#'; DOCUMENT_BYTES_MAX + 1];
        assert_eq!(parse_document(Source::Image, &long).problems.len(), 1);
    }

    #[test]
    fn names_of_sysctls_keep_their_dots() {
        let given = parse_document(Source::Image, b"[sysctl]\n\"vm.swappiness\" = \"10\"\n");
        assert_eq!(given.values[0].0, "sysctl.vm.swappiness");
        let effective = merge(&[given]);
        assert_eq!(effective.document.sysctl["vm.swappiness"], "10");
    }

    #[test]
    fn lists_of_tables_are_one_value() {
        let text = b"[machine]\nvfio = [{class = \"nvme\"}]\n[[machine.hugepages]]\nsize_kib = 2048\npages = 64\n";
        let effective = merge(&[parse_document(Source::Image, text)]);
        assert_eq!(effective.problems, []);
        assert_eq!(effective.document.machine.hugepages[0].pages, 64);
        assert_eq!(effective.document.machine.vfio.len(), 1);
    }

    #[test]
    fn a_source_of_too_many_values_is_cut() {
        let values: Vec<(&str, toml::Value)> = (0..VALUES_MAX + 9)
            .map(|_| ("crash.count_max", number(2)))
            .collect();
        let effective = merge(&[given(Source::Image, &values)]);
        assert!(effective.problems.len() <= 2);
        assert_eq!(effective.document.crash.count_max, 2);
    }

    fn some_value() -> impl Strategy<Value = (String, toml::Value)> {
        let key = prop_oneof![
            Just("watchdog.timeout_s".to_owned()),
            Just("crash.count_max".to_owned()),
            Just("shutdown.timeout_s".to_owned()),
            Just("watchdog".to_owned()),
            Just("agent.network.dhcp".to_owned()),
            "[a-z.]{0,12}",
        ];
        let value = prop_oneof![
            any::<i64>().prop_map(toml::Value::Integer),
            (0i64..200).prop_map(toml::Value::Integer),
            any::<bool>().prop_map(toml::Value::Boolean),
            ".{0,8}".prop_map(toml::Value::String),
            Just(toml::Value::Table(toml::Table::new())),
        ];
        (key, value)
    }

    proptest! {
        #[test]
        fn each_value_holds_for_the_highest_source_that_says_it_right(
            sources in prop::collection::vec((0usize..5, prop::collection::vec(some_value(), 0..6)), 0..5)
        ) {
            let names = [Source::Image, Source::Smbios, Source::FwCfg, Source::Agent, Source::CommandLine];
            let mut given: Vec<Given> = sources
                .into_iter()
                .map(|(at, values)| Given { values, ..Given::new(names[at]) })
                .collect();
            let effective = merge(&given);
            // What holds is right.
            prop_assert_eq!(effective.document.check(), Ok(()));
            // What is told to hold does hold, by itself.
            for value in effective.values.iter().filter(|value| value.key == "crash.count_max") {
                prop_assert_eq!(&value.value, &effective.document.crash.count_max.to_string());
                // And no higher source says anything right.
                for higher in given.iter().filter(|given| given.source > value.source) {
                    for (key, said) in &higher.values {
                        let right = said.as_integer().is_some_and(|n| (1..=64).contains(&n));
                        prop_assert!(key != "crash.count_max" || !right);
                    }
                }
            }
            // The order in which sources of different rank were read does not matter.
            given.sort_by_key(|given| given.source);
            let sorted = merge(&given);
            prop_assert_eq!(sorted.document, effective.document);
        }

        #[test]
        fn no_document_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = merge(&[parse_document(Source::Agent, &bytes)]);
        }
    }
}
