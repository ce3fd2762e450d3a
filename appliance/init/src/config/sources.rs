//! Values from outside: the kernel command line, SMBIOS, QEMU's fw_cfg. All of it is hostile until
//! it has been read.

use super::merge::{DOCUMENT_BYTES_MAX, VALUES_MAX};
use super::{Given, Problem, Source, parse_document};
use crate::system::System;

/// What a key begins with on the command line and in SMBIOS: `adit.hostname=node7`.
pub const PREFIX: &str = "adit.";
/// Where the kernel shows what QEMU was given with `-fw_cfg name=opt/io.adit/...`.
pub const FW_CFG_FOLDER: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/io.adit";
/// Longest kernel command line that is looked at, in bytes.
const COMMAND_LINE_BYTES_MAX: usize = 64 << 10;
/// Most SMBIOS structures of type 11 that are read.
const SMBIOS_STRUCTURES_MAX: usize = 16;

/// The words of a kernel command line. Quotes keep spaces together, as the kernel has it.
pub(crate) fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let (mut quoted, mut begun) = (false, false);
    for each in line.chars() {
        match each {
            '"' => {
                quoted = !quoted;
                begun = true;
            }
            _ if each.is_whitespace() && !quoted => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            _ => {
                word.push(each);
                begun = true;
            }
        }
    }
    if begun {
        words.push(word);
    }
    words
}

/// The `adit.*` options of a kernel command line.
///
/// The kernel takes quotes around a value away and keeps those within: a TOML string needs none
/// (`adit.hostname=node7`), a list of tables is written without spaces and with `'` for strings:
/// `adit.machine.vfio=[{class='nvme'}]`.
#[must_use]
pub fn from_command_line(line: &str) -> Given {
    let mut given = Given::new(Source::CommandLine);
    if line.len() > COMMAND_LINE_BYTES_MAX {
        given.problems.push(Problem {
            source: Source::CommandLine,
            key: String::new(),
            text: format!("it is longer than {} KiB", COMMAND_LINE_BYTES_MAX >> 10),
            instead: "the other sources and the defaults are used".to_owned(),
        });
        return given;
    }
    for word in words(line) {
        // What follows is for init's own arguments.
        if word == "--" {
            break;
        }
        if let Some(option) = word.strip_prefix(PREFIX) {
            given.values.extend(option_value(option));
        }
    }
    given.values.truncate(VALUES_MAX + 1);
    given
}

/// `key=value`; a key alone is true.
fn option_value(option: &str) -> Option<(String, toml::Value)> {
    let (key, value) = option.split_once('=').unwrap_or((option, "true"));
    let key = key.trim();
    (!key.is_empty()).then(|| (key.to_owned(), bare_value(key, value.trim())))
}

/// A value as TOML, or else as the text that it is. Keys that hold text are never taken for numbers.
fn bare_value(key: &str, text: &str) -> toml::Value {
    let is_text = ["hostname", "config_url", "watchdog.device"].contains(&key)
        || key.starts_with("sysctl.")
        || key.starts_with("modules.parameters.");
    let as_text = || toml::Value::String(text.trim_matches('\'').to_owned());
    if is_text {
        return as_text();
    }
    format!("v = {text}")
        .parse::<toml::Table>()
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("v"))
        .unwrap_or_else(as_text)
}

/// The strings `adit.KEY=VALUE` of one SMBIOS structure of type 11 (DMTF DSP0134, OEM Strings).
///
/// The bytes are those of `/sys/firmware/dmi/entries/11-N/raw`. Damage ends the reading, with a
/// problem.
#[must_use]
pub fn from_smbios(raw: &[u8]) -> Given {
    let mut given = Given::new(Source::Smbios);
    let damaged = |text: &str| Problem {
        source: Source::Smbios,
        key: String::new(),
        text: text.to_owned(),
        instead: "what could be read of it is used".to_owned(),
    };
    // Type, length, handle (2), count of strings.
    let &[kind, length, _, _, count, ..] = raw else {
        given.problems.push(damaged("the structure is cut off"));
        return given;
    };
    let strings = raw.get(usize::from(length)..).unwrap_or_default();
    if kind != 11 || length < 5 || strings.is_empty() {
        given
            .problems
            .push(damaged("this is no structure of type 11"));
        return given;
    }
    let mut rest = strings;
    for _ in 0..count {
        let Some(end) = rest.iter().position(|byte| *byte == 0) else {
            given.problems.push(damaged("a string is cut off"));
            break;
        };
        if let Ok(text) = std::str::from_utf8(&rest[..end])
            && let Some(option) = text.strip_prefix(PREFIX)
        {
            given.values.extend(option_value(option));
        }
        rest = &rest[end + 1..];
    }
    given
}

/// All structures of type 11.
pub(crate) fn read_smbios(system: &dyn System) -> Given {
    let mut all = Given::new(Source::Smbios);
    let folder = "/sys/firmware/dmi/entries";
    let names = system.list(folder).unwrap_or_default();
    let names = names.iter().filter(|name| name.starts_with("11-"));
    for name in names.take(SMBIOS_STRUCTURES_MAX) {
        let Ok(raw) = system.read(&format!("{folder}/{name}/raw")) else {
            continue;
        };
        let one = from_smbios(&raw);
        all.values.extend(one.values);
        all.problems.extend(one.problems);
    }
    all
}

/// `opt/io.adit/config` is a whole document; any other file there is one value under its name
/// (`opt/io.adit/hostname`).
pub(crate) fn from_fw_cfg(system: &dyn System) -> Given {
    let mut given = Given::new(Source::FwCfg);
    let names = system.list(FW_CFG_FOLDER).unwrap_or_default();
    for name in names.iter().take(VALUES_MAX) {
        let raw = match system.read(&format!("{FW_CFG_FOLDER}/{name}/raw")) {
            Ok(raw) => raw,
            Err(error) => {
                given.problems.push(Problem {
                    source: Source::FwCfg,
                    key: name.clone(),
                    text: format!("it cannot be read: {error}"),
                    instead: "the other sources and the defaults are used".to_owned(),
                });
                continue;
            }
        };
        if name == "config" {
            let document = parse_document(Source::FwCfg, &raw);
            // The document first: a value of its own overrules it.
            given.values.splice(0..0, document.values);
            given.problems.extend(document.problems);
        } else if raw.len() <= DOCUMENT_BYTES_MAX {
            let text = String::from_utf8_lossy(&raw);
            let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
            given.values.extend(option_value(&format!("{name}={text}")));
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::merge;
    use crate::system::fake::Fake;

    fn text(text: &str) -> toml::Value {
        toml::Value::String(text.to_owned())
    }

    #[test]
    fn options_of_the_command_line_are_toml_or_text() {
        let given = from_command_line(
            "BOOT_IMAGE=/vmlinuz quiet adit.hostname=007 adit.watchdog.timeout_s=30 adit.maintenance \
             adit.machine.vfio=[{class='nvme'}] adit.agent.note=\"two words\" console=ttyS0 \
             adit.= adit -- adit.hostname=no",
        );
        let expected = [
            ("hostname", text("007")),
            ("watchdog.timeout_s", toml::Value::Integer(30)),
            ("maintenance", toml::Value::Boolean(true)),
        ];
        for (at, (key, value)) in expected.iter().enumerate() {
            assert_eq!(
                (given.values[at].0.as_str(), &given.values[at].1),
                (*key, value)
            );
        }
        assert!(given.values[3].1.is_array());
        assert_eq!(
            given.values[4],
            ("agent.note".to_owned(), text("two words"))
        );
        assert_eq!(given.values.len(), 5);
        let effective = merge(&[given]);
        assert_eq!(effective.problems, []);
        assert_eq!(effective.document.hostname.as_deref(), Some("007"));
    }

    #[test]
    fn text_cannot_bring_more_keys_along() {
        let given = from_command_line("adit.agent.x=\"1\nhostname = 2\"");
        assert_eq!(given.values.len(), 1);
        assert!(given.values[0].1.is_str());
    }

    fn golden() -> Vec<u8> {
        let mut raw = vec![11, 5, 0x34, 0x12, 3];
        raw.extend_from_slice(b"vendor stuff\0adit.hostname=node7\0adit.watchdog.timeout_s=45\0\0");
        raw
    }

    #[test]
    fn smbios_strings_with_our_prefix_are_values() {
        let given = from_smbios(&golden());
        assert_eq!(given.problems, []);
        assert_eq!(
            given.values,
            [
                ("hostname".to_owned(), text("node7")),
                ("watchdog.timeout_s".to_owned(), toml::Value::Integer(45)),
            ]
        );
    }

    #[test]
    fn smbios_cut_off_anywhere_is_a_problem_and_no_panic() {
        let whole = golden();
        for length in 0..whole.len() - 1 {
            let given = from_smbios(&whole[..length]);
            assert!(!given.problems.is_empty(), "{length}");
        }
    }

    #[test]
    fn fw_cfg_is_a_document_and_single_values_above_it() {
        let system = Fake::with(&[
            (
                "/sys/firmware/qemu_fw_cfg/by_name/opt/io.adit/config/raw",
                "hostname = 'a'\n[crash]\ncount_max = 7\n",
            ),
            (
                "/sys/firmware/qemu_fw_cfg/by_name/opt/io.adit/hostname/raw",
                "b\n",
            ),
            (
                "/sys/firmware/qemu_fw_cfg/by_name/opt/io.adit/crash.size_max_mib/raw",
                "8\0",
            ),
        ]);
        let effective = merge(&[from_fw_cfg(&system)]);
        assert_eq!(effective.problems, []);
        assert_eq!(effective.document.hostname.as_deref(), Some("b"));
        assert_eq!(effective.document.crash.count_max, 7);
        assert_eq!(effective.document.crash.size_max_mib, 8);
    }

    proptest! {
        #[test]
        fn no_command_line_makes_it_panic(line in ".{0,300}") {
            let _ = merge(&[from_command_line(&line)]);
        }

        #[test]
        fn no_option_makes_it_panic(option in "adit\\.[a-z.]{0,20}=[\\[{'\"0-9a-z=,}\\] ]{0,30}") {
            let _ = merge(&[from_command_line(&option)]);
        }

        #[test]
        fn no_smbios_bytes_make_it_panic(raw in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = from_smbios(&raw);
        }
    }
}
