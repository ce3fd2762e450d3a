//! What is wanted, read from TOML.

mod nearest;
mod parse;

use std::fmt;

use serde::Serialize;

use crate::catalogue::Setting;
use crate::value::Value;

/// Profiles that come with the program, with their text.
pub const BUILT_IN: &[(&str, &str)] = &[
    (
        "default",
        include_str!("../../../firmware-config/default.toml"),
    ),
    (
        "latency",
        include_str!("../../../firmware-config/latency.toml"),
    ),
    (
        "lossless",
        include_str!("../../../firmware-config/lossless.toml"),
    ),
    ("lossy", include_str!("../../../firmware-config/lossy.toml")),
    ("roce", include_str!("../../../firmware-config/roce.toml")),
    ("vm", include_str!("../../../firmware-config/vm.toml")),
];

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// What it is for, in a sentence.
    pub summary: String,
    /// Data ports by name or MAC address; `None`: physical ports without a default route.
    pub ports: Option<Vec<String>>,
    /// Settings, in the order of [`crate::SETTINGS`].
    pub wanted: Vec<Wanted>,
    /// Firmware revisions of drives, by model. The first rule that fits a drive counts.
    pub drive_firmware: Vec<FirmwareRule>,
    /// Versions of the node's own firmware, by product. The first rule that fits counts.
    pub system_firmware: Vec<FirmwareRule>,
}

/// A setting that is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Which.
    pub setting: &'static Setting,
    /// To what.
    pub value: Value,
    /// Why.
    pub why: String,
}

impl PartialEq for Wanted {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.setting, other.setting)
            && (&self.value, &self.why) == (&other.value, &other.why)
    }
}

impl Eq for Wanted {}

/// A firmware revision that is wanted of devices of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirmwareRule {
    /// Model or product; a `*` stands for any text.
    pub matches: String,
    /// The revision.
    pub revision: String,
    /// Why.
    pub why: String,
}

impl FirmwareRule {
    /// Whether a device of this model is meant.
    #[must_use]
    pub fn is_for(&self, model: &str) -> bool {
        let mut pieces = self.matches.split('*');
        let first = pieces.next().unwrap_or_default();
        let Some(mut rest) = model.strip_prefix(first) else {
            return false;
        };
        let mut pieces = pieces.peekable();
        if pieces.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(piece) = pieces.next() {
            if pieces.peek().is_none() {
                return rest.ends_with(piece);
            }
            match rest.find(piece) {
                Some(at) => rest = &rest[at + piece.len()..],
                None => return false,
            }
        }
        true
    }
}

/// Something that is wrong in a profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.text)
    }
}

/// A profile that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// Everything that is wrong with it.
    #[error("{}", told(name, problems))]
    Problems {
        /// How it is called: its file, or its name.
        name: String,
        /// What is wrong, by line.
        problems: Vec<Problem>,
    },
}

fn told(name: &str, problems: &[Problem]) -> String {
    let mut text = format!("profile {name} cannot be used");
    for problem in problems {
        text.push_str(&format!("\n  {problem}"));
    }
    text
}

impl Profile {
    /// Reads a profile. `name` is what it is called in errors, its file for instance.
    ///
    /// # Errors
    /// [`ProfileError::Problems`], with every problem of the text.
    pub fn parse(name: &str, text: &str) -> Result<Self, ProfileError> {
        parse::parse(name, text)
    }

    /// A profile that comes with the program.
    #[must_use]
    pub fn built_in(name: &str) -> Option<Self> {
        let (name, text) = BUILT_IN.iter().find(|(each, _)| *each == name)?;
        // A test parses all of them.
        Self::parse(name, text).ok()
    }

    /// The value that is wanted of a setting.
    #[must_use]
    pub fn value(&self, section: &str, key: &str) -> Option<&Wanted> {
        let is = |wanted: &&Wanted| wanted.setting.section == section && wanted.setting.key == key;
        self.wanted.iter().find(is)
    }
}

#[cfg(test)]
mod tests;
