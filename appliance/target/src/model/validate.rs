//! Checks that several kinds of object share.

use fabric_wire::Nqn;

use crate::error::{ControlError, Violation};

/// Gathers every field that is wrong, so that one answer names them all.
#[derive(Debug)]
pub(super) struct Check {
    /// What is checked, for the message: `bdev "a"`.
    what: String,
    /// Name of the message in the request.
    prefix: &'static str,
    violations: Vec<Violation>,
}

impl Check {
    pub(super) fn new(what: impl Into<String>, prefix: &'static str) -> Check {
        Check {
            what: what.into(),
            prefix,
            violations: Vec::new(),
        }
    }

    pub(super) fn wrong(&mut self, field: &str, description: impl Into<String>) {
        let field = format!("{}.{field}", self.prefix);
        self.violations.push(Violation {
            field,
            description: description.into(),
        });
    }

    pub(super) fn that(&mut self, is_right: bool, field: &str, description: &str) {
        if !is_right {
            self.wrong(field, description);
        }
    }

    /// Fills in a default and checks the range.
    pub(super) fn number(
        &mut self,
        field: &str,
        value: &mut Option<u32>,
        default: u32,
        range: std::ops::RangeInclusive<u32>,
    ) -> u32 {
        let given = *value.get_or_insert(default);
        if !range.contains(&given) {
            let problem = format!("{given} must be {} to {}", range.start(), range.end());
            self.wrong(field, problem);
        }
        given
    }

    /// Refuses a value of a feature that is not built in.
    pub(super) fn only(&mut self, field: &str, value: &mut Option<bool>, only: bool, why: &str) {
        if *value.get_or_insert(only) != only {
            self.wrong(field, format!("only {only} is possible: {why}"));
        }
    }

    pub(super) fn nqn(&mut self, field: &str, nqn: &str) {
        if let Err(error) = Nqn::new(nqn) {
            self.wrong(field, error.to_string());
        }
    }

    pub(super) fn printable(&mut self, field: &str, text: &str, max: usize) {
        let is_printable = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        if text.is_empty() || text.len() > max || !is_printable {
            let problem = format!("{text:?} must be 1 to {max} printable ASCII characters");
            self.wrong(field, problem);
        }
    }

    /// Hexadecimal digits, brought to lower case; hyphens as in UUIDs are taken out.
    pub(super) fn hex(&mut self, field: &str, value: &mut Option<String>, digits: usize) {
        let Some(text) = value else { return };
        let plain: String = text
            .chars()
            .filter(|c| *c != '-')
            .map(|c| c.to_ascii_lowercase())
            .collect();
        if plain.len() != digits || !plain.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            self.wrong(
                field,
                format!("{text:?} must be {digits} hexadecimal digits"),
            );
        }
        *text = plain;
    }

    pub(super) fn uuid(&mut self, field: &str, text: &mut String) {
        match uuid::Uuid::parse_str(text) {
            Ok(uuid) if !uuid.is_nil() => *text = uuid.to_string(),
            _ => self.wrong(
                field,
                format!("{text:?} is no UUID; leave it out to get one"),
            ),
        }
    }

    pub(super) fn finish(self) -> Result<(), ControlError> {
        if self.violations.is_empty() {
            Ok(())
        } else {
            Err(ControlError::Invalid {
                what: self.what,
                violations: self.violations,
            })
        }
    }
}

/// The text of an error about a wrong mask, as a field violation.
pub(super) fn mask_error(what: String, error: &api::fields::UpdateError) -> ControlError {
    ControlError::field(what, "update_mask", error.to_string())
}
