//! The parser: it goes on after a problem, so that all are listed.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::nearest::nearest;
use super::{BUILT_IN, FirmwareRule, Problem, Profile, ProfileError, Wanted};
use crate::catalogue::{Kind, SETTINGS, Setting, setting};
use crate::value::Value;

/// The schema that this program knows.
const SCHEMA: u64 = 1;
/// Longest file.
const TEXT_BYTES_MAX: usize = 256 << 10;
/// Most rules of a list, most words of a value.
const LIST_MAX: usize = 256;
/// Longest text of a value.
const TEXT_MAX: usize = 1000;
/// A profile that comes with the program rests on another one at most this often.
const DEPTH_MAX: usize = 4;

/// Keys outside of the settings.
const TOP_KEYS: [&str; 4] = ["schema", "name", "summary", "based_on"];

struct Parser<'a> {
    text: &'a str,
    problems: Vec<Problem>,
}

pub(super) fn parse(name: &str, text: &str) -> Result<Profile, ProfileError> {
    parse_at(name, text, 0)
}

fn parse_at(name: &str, text: &str, depth: usize) -> Result<Profile, ProfileError> {
    let mut parser = Parser {
        text,
        problems: Vec::new(),
    };
    let profile = parser.document(name, depth);
    let mut problems = parser.problems;
    if problems.is_empty() {
        return Ok(profile);
    }
    problems.sort_by_key(|problem| problem.line);
    let name = name.to_owned();
    Err(ProfileError::Problems { name, problems })
}

/// What is in force where a profile says nothing.
fn nothing(name: &str) -> Profile {
    Profile {
        name: name.to_owned(),
        summary: String::new(),
        ports: None,
        wanted: Vec::new(),
        drive_firmware: Vec::new(),
        system_firmware: Vec::new(),
    }
}

impl Parser<'_> {
    fn problem(&mut self, at: &Range<usize>, text: impl Into<String>) {
        let before = self.text.as_bytes().get(..at.start).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let text = text.into();
        self.problems.push(Problem { line, text });
    }

    fn document(&mut self, name: &str, depth: usize) -> Profile {
        let text = self.text;
        if text.len() > TEXT_BYTES_MAX {
            self.problem(&(0..0), format!("it is longer than {TEXT_BYTES_MAX} bytes"));
            return nothing(name);
        }
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let at = error.span().unwrap_or(0..0);
            self.problem(&at, error.message());
        }
        if !errors.is_empty() {
            // What follows from half a document would only confuse.
            return nothing(name);
        }
        let document = document.get_ref();
        self.schema(document);
        let mut profile = self.base(document, depth).unwrap_or_else(|| nothing(name));
        profile.name = name.to_owned();
        profile.summary.clear();
        for (key, value) in document {
            match key.get_ref().as_ref() {
                "schema" | "based_on" => {}
                "name" => {
                    profile.name = self.text_of("name", value).unwrap_or_default();
                }
                "summary" => {
                    profile.summary = self.text_of("summary", value).unwrap_or_default();
                }
                section if is_section(section) => self.section(section, value, &mut profile),
                other => {
                    let names = TOP_KEYS.into_iter().chain(sections());
                    let text = unknown("key", other, nearest(other, names));
                    self.problem(&key.span(), text);
                }
            }
        }
        if profile.summary.is_empty() {
            self.problem(
                &(0..0),
                "summary is missing: say in a sentence what it is for",
            );
        }
        let place = |wanted: &Wanted| {
            let is = |each: &Setting| std::ptr::eq(each, wanted.setting);
            SETTINGS.iter().position(is)
        };
        profile.wanted.sort_by_key(place);
        profile
    }

    fn schema(&mut self, document: &DeTable<'_>) {
        let Some(value) = document.get("schema") else {
            self.problem(
                &(0..0),
                format!("schema is missing: write schema = {SCHEMA}"),
            );
            return;
        };
        if number(value.get_ref()) != Some(SCHEMA) {
            let text = format!("schema must be {SCHEMA}, the one that this program knows");
            self.problem(&value.span(), text);
        }
    }

    /// The profile that this one rests on.
    fn base(&mut self, document: &DeTable<'_>, depth: usize) -> Option<Profile> {
        let value = document.get("based_on")?;
        let name = self.text_of("based_on", value)?;
        let found = BUILT_IN.iter().find(|(each, _)| *each == name);
        let Some((name, text)) = found else {
            let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
            let text = format!("based_on must be one of {}", names.join(", "));
            self.problem(&value.span(), text);
            return None;
        };
        if depth >= DEPTH_MAX {
            self.problem(&value.span(), "profiles rest on each other in a circle");
            return None;
        }
        match parse_at(name, text, depth + 1) {
            Ok(base) => Some(base),
            Err(error) => {
                self.problem(&value.span(), error.to_string());
                None
            }
        }
    }

    fn text_of(&mut self, what: &str, value: &Spanned<DeValue<'_>>) -> Option<String> {
        match value.get_ref() {
            DeValue::String(text) if text.trim().is_empty() => {
                self.problem(&value.span(), format!("{what} must not be empty"));
                None
            }
            DeValue::String(text) if text.len() > TEXT_MAX => {
                let text = format!("{what} is longer than {TEXT_MAX} bytes");
                self.problem(&value.span(), text);
                None
            }
            DeValue::String(text) => Some(text.clone().into_owned()),
            other => {
                let text = format!("{what} must be a text, not {}", kind_of(other));
                self.problem(&value.span(), text);
                None
            }
        }
    }

    fn section(&mut self, section: &str, value: &Spanned<DeValue<'_>>, profile: &mut Profile) {
        let DeValue::Table(table) = value.get_ref() else {
            let text = format!("{section} must be a table: [{section}]");
            self.problem(&value.span(), text);
            return;
        };
        for (key, value) in table {
            match (section, key.get_ref().as_ref()) {
                ("nic", "ports") => {
                    let ports = self.words("nic.ports", value);
                    profile.ports = ports.or(profile.ports.take());
                }
                ("nvme", "firmware") => {
                    self.rules("nvme.firmware", "model", value, &mut profile.drive_firmware);
                }
                ("system", "firmware") => {
                    let rules = &mut profile.system_firmware;
                    self.rules("system.firmware", "product", value, rules);
                }
                (section, name) => match setting(section, name) {
                    Some(setting) => self.wanted(setting, value, &mut profile.wanted),
                    None => {
                        let names = keys_of(section);
                        let what = format!("setting of [{section}]");
                        let text = unknown(&what, name, nearest(name, names));
                        self.problem(&key.span(), text);
                    }
                },
            }
        }
    }

    /// `KEY = { want = VALUE, why = "..." }`
    fn wanted(
        &mut self,
        setting: &'static Setting,
        value: &Spanned<DeValue<'_>>,
        all: &mut Vec<Wanted>,
    ) {
        let name = setting.name();
        let DeValue::Table(table) = value.get_ref() else {
            let text = format!("{name} must be a table: {{ want = ..., why = \"...\" }}");
            self.problem(&value.span(), text);
            return;
        };
        self.only(&name, &["want", "why"], table);
        let value_wanted = match table.get("want") {
            Some(want) => self.value(&name, setting, want),
            None => {
                self.problem(&value.span(), format!("{name}: want is missing"));
                None
            }
        };
        let why = self.why(&name, table, &value.span());
        if let (Some(value), Some(why)) = (value_wanted, why) {
            all.retain(|wanted| !std::ptr::eq(wanted.setting, setting));
            all.push(Wanted {
                setting,
                value,
                why,
            });
        }
    }

    fn why(&mut self, name: &str, table: &DeTable<'_>, at: &Range<usize>) -> Option<String> {
        match table.get("why") {
            Some(why) => self.text_of(&format!("{name}: why"), why),
            None => {
                let text =
                    format!("{name}: why is missing: nobody keeps a setting without a reason");
                self.problem(at, text);
                None
            }
        }
    }

    /// Refuses keys of a table that have no meaning.
    fn only(&mut self, name: &str, allowed: &[&str], table: &DeTable<'_>) {
        for (key, _) in table {
            let given = key.get_ref().as_ref();
            if !allowed.contains(&given) {
                let text = unknown(
                    &format!("key of {name}"),
                    given,
                    nearest(given, allowed.to_vec()),
                );
                self.problem(&key.span(), text);
            }
        }
    }

    fn value(
        &mut self,
        name: &str,
        setting: &Setting,
        value: &Spanned<DeValue<'_>>,
    ) -> Option<Value> {
        let given = value.get_ref();
        let expected = match (setting.kind, given) {
            (Kind::Bool, DeValue::Boolean(flag)) => return Some(Value::Bool(*flag)),
            (Kind::Bool, _) => "true or false".to_owned(),
            (Kind::Number { min, max }, _) => match number(given) {
                Some(number) if (min..=max).contains(&number) => {
                    return Some(Value::Number(number));
                }
                _ => format!("a number from {min} to {max}"),
            },
            (Kind::Choice(words), DeValue::String(word)) if words.contains(&word.as_ref()) => {
                return Some(Value::Text(word.clone().into_owned()));
            }
            (Kind::Choice(words), _) => format!("one of \"{}\"", words.join("\", \"")),
            (Kind::Words, _) => return self.words(name, value).map(Value::List),
        };
        self.problem(&value.span(), format!("{name}: want must be {expected}"));
        None
    }

    fn words(&mut self, name: &str, value: &Spanned<DeValue<'_>>) -> Option<Vec<String>> {
        let DeValue::Array(array) = value.get_ref() else {
            let text = format!(
                "{name} must be a list of texts, not {}",
                kind_of(value.get_ref())
            );
            self.problem(&value.span(), text);
            return None;
        };
        if array.is_empty() || array.len() > LIST_MAX {
            let text = format!("{name} must have 1 to {LIST_MAX} entries");
            self.problem(&value.span(), text);
            return None;
        }
        let words: Vec<Option<String>> = array
            .iter()
            .map(|word| self.text_of(&format!("an entry of {name}"), word))
            .collect();
        words.into_iter().collect()
    }

    /// `[[SECTION.firmware]]` with `model` or `product`, `want`, `why`. They go before those of the
    /// profile below.
    fn rules(
        &mut self,
        name: &str,
        by: &str,
        value: &Spanned<DeValue<'_>>,
        rules: &mut Vec<FirmwareRule>,
    ) {
        let DeValue::Array(array) = value.get_ref() else {
            self.problem(&value.span(), format!("{name} must be a list: [[{name}]]"));
            return;
        };
        if array.len() > LIST_MAX {
            self.problem(
                &value.span(),
                format!("{name} has more than {LIST_MAX} entries"),
            );
            return;
        }
        let mut own = Vec::new();
        for entry in array.iter() {
            let DeValue::Table(table) = entry.get_ref() else {
                let text = format!("an entry of {name} must be a table");
                self.problem(&entry.span(), text);
                continue;
            };
            self.only(name, &[by, "want", "why"], table);
            let mut text = |key: &str| match table.get(key) {
                Some(value) => self.text_of(&format!("{name}: {key}"), value),
                None => {
                    self.problem(&entry.span(), format!("{name}: {key} is missing"));
                    None
                }
            };
            let (matches, revision) = (text(by), text("want"));
            let why = self.why(name, table, &entry.span());
            if let (Some(matches), Some(revision), Some(why)) = (matches, revision, why) {
                own.push(FirmwareRule {
                    matches,
                    revision,
                    why,
                });
            }
        }
        rules.splice(0..0, own);
    }
}

fn number(value: &DeValue<'_>) -> Option<u64> {
    match value {
        DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
        _ => None,
    }
}

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn unknown(what: &str, given: &str, meant: Option<&str>) -> String {
    let given: String = given.chars().take(64).collect();
    match meant {
        Some(meant) => format!("there is no {what} {given:?}; is {meant:?} meant?"),
        None => format!("there is no {what} {given:?}"),
    }
}

/// Tables that a profile may have.
fn sections() -> impl Iterator<Item = &'static str> {
    let mut last = "";
    let of_settings = SETTINGS.iter().filter_map(move |setting| {
        let is_new = setting.section != last;
        last = setting.section;
        is_new.then_some(setting.section)
    });
    of_settings.chain(["system"])
}

fn is_section(name: &str) -> bool {
    sections().any(|section| section == name)
}

fn keys_of(section: &str) -> Vec<&'static str> {
    let own = SETTINGS.iter().filter(|setting| setting.section == section);
    let mut keys: Vec<&str> = own.map(|setting| setting.key).collect();
    match section {
        "nic" => keys.push("ports"),
        "nvme" | "system" => keys.push("firmware"),
        _ => {}
    }
    keys
}
