//! What is wanted beside what is.

use serde::Serialize;

use crate::catalogue::{Effect, Found, Reading, Rule};
use crate::profile::{FirmwareRule, Profile, Wanted};
use crate::read::Node;
use crate::value::Value;

/// How one setting of one object stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As wanted.
    Ok,
    /// Not as wanted.
    Differs,
    /// It cannot be read.
    Unreadable,
    /// There is nothing that has the setting.
    NotApplicable,
}

impl Verdict {
    /// Its name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Differs => "differs",
            Self::Unreadable => "not readable",
            Self::NotApplicable => "-",
        }
    }
}

/// One setting of one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// `section.key`.
    pub setting: String,
    /// What has it; empty for the node.
    pub object: String,
    /// What is wanted.
    pub wanted: Value,
    /// How current and wanted are compared, for people: empty, `at least`, `at most`, `all of`.
    pub rule: &'static str,
    /// What is. `None`: nothing has the setting.
    pub current: Option<Reading>,
    /// How it stands.
    pub verdict: Verdict,
    /// Why it is wanted.
    pub why: String,
    /// Who changes it, and when that holds.
    pub change: Effect,
}

impl Item {
    /// What is wanted, for people: `at most 10`.
    #[must_use]
    pub fn wanted_text(&self) -> String {
        format!("{} {}", self.rule, self.wanted).trim().to_owned()
    }

    /// What is, for people; of a list of features those that are missing.
    #[must_use]
    pub fn current_text(&self) -> String {
        match (&self.current, &self.wanted) {
            (
                Some(Reading::Value {
                    value: Value::List(there),
                    ..
                }),
                Value::List(wanted),
            ) => {
                let missing: Vec<&str> = wanted
                    .iter()
                    .filter(|word| !there.contains(word))
                    .map(String::as_str)
                    .collect();
                match missing.as_slice() {
                    [] => "all of them".to_owned(),
                    missing => format!("without {}", missing.join(" ")),
                }
            }
            (Some(Reading::Value { value, .. }), _) => value.to_string(),
            (Some(Reading::Unreadable { why, .. }), _) => why.clone(),
            (None, _) => "nothing here has it".to_owned(),
        }
    }
}

/// How many items stand how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// As wanted.
    pub ok: usize,
    /// Not as wanted.
    pub differs: usize,
    /// Cannot be read.
    pub unreadable: usize,
    /// Nothing has them.
    pub not_applicable: usize,
}

/// A profile beside a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Name of the profile.
    pub profile: String,
    /// Every setting of every object, in the order of [`crate::SETTINGS`].
    pub items: Vec<Item>,
    /// How many stand how.
    pub totals: Totals,
}

/// Puts a profile beside a node.
#[must_use]
pub fn check(profile: &Profile, node: &Node) -> Report {
    let mut items = Vec::new();
    items.extend(
        profile
            .wanted
            .iter()
            .flat_map(|wanted| of_setting(wanted, node)),
    );
    items.extend(drive_firmware(profile, node));
    items.extend(system_firmware(profile, node));
    let mut totals = Totals::default();
    for item in &items {
        *match item.verdict {
            Verdict::Ok => &mut totals.ok,
            Verdict::Differs => &mut totals.differs,
            Verdict::Unreadable => &mut totals.unreadable,
            Verdict::NotApplicable => &mut totals.not_applicable,
        } += 1;
    }
    Report {
        profile: profile.name.clone(),
        items,
        totals,
    }
}

fn of_setting(wanted: &Wanted, node: &Node) -> Vec<Item> {
    let setting = wanted.setting;
    let item = |object: String, current: Option<Reading>| {
        let verdict = match &current {
            Some(Reading::Value { value, .. }) if holds(setting.rule, &wanted.value, value) => {
                Verdict::Ok
            }
            Some(Reading::Value { .. }) => Verdict::Differs,
            Some(Reading::Unreadable { .. }) => Verdict::Unreadable,
            None => Verdict::NotApplicable,
        };
        Item {
            setting: setting.name(),
            object,
            wanted: wanted.value.clone(),
            rule: match setting.rule {
                Rule::Equal => "",
                Rule::AtLeast => "at least",
                Rule::AtMost => "at most",
                Rule::Contains => "all of",
            },
            current,
            verdict,
            why: wanted.why.clone(),
            change: setting.effect,
        }
    };
    let found = node.found(setting);
    if found.is_empty() {
        return vec![item(String::new(), None)];
    }
    let items = found
        .into_iter()
        .map(|Found { object, reading }| item(object, Some(reading)));
    items.collect()
}

fn holds(rule: Rule, wanted: &Value, current: &Value) -> bool {
    match (rule, wanted, current) {
        (Rule::AtLeast, Value::Number(wanted), Value::Number(current)) => current >= wanted,
        (Rule::AtMost, Value::Number(wanted), Value::Number(current)) => current <= wanted,
        (Rule::Contains, Value::List(wanted), Value::List(current)) => {
            wanted.iter().all(|word| current.contains(word))
        }
        _ => wanted == current,
    }
}

fn of_rule(setting: &str, object: String, rule: &FirmwareRule, current: Reading) -> Item {
    let verdict = match &current {
        Reading::Value { value, .. } if *value == Value::Text(rule.revision.clone()) => Verdict::Ok,
        Reading::Value { .. } => Verdict::Differs,
        Reading::Unreadable { .. } => Verdict::Unreadable,
    };
    Item {
        setting: setting.to_owned(),
        object,
        wanted: Value::Text(rule.revision.clone()),
        rule: "",
        current: Some(current),
        verdict,
        why: rule.why.clone(),
        change: Effect::Update,
    }
}

/// Firmware of drives whose model a rule names.
fn drive_firmware(profile: &Profile, node: &Node) -> Vec<Item> {
    let items = node.drives.iter().filter_map(|drive| {
        let unreadable = |why: &String| Reading::unreadable(why, &drive.source);
        let (rule, reading) = match (&drive.model, &drive.firmware) {
            (Ok(model), firmware) => {
                let rule = profile
                    .drive_firmware
                    .iter()
                    .find(|rule| rule.is_for(model))?;
                let reading = match firmware {
                    Ok(revision) => Reading::value(revision.as_str(), &drive.source),
                    Err(why) => unreadable(why),
                };
                (rule, reading)
            }
            // Any rule may be for it.
            (Err(why), _) => (profile.drive_firmware.first()?, unreadable(why)),
        };
        Some(of_rule(
            "nvme.firmware",
            drive.object.clone(),
            rule,
            reading,
        ))
    });
    items.collect()
}

/// Firmware of the node, if a rule names its product.
fn system_firmware(profile: &Profile, node: &Node) -> Option<Item> {
    let first = profile.system_firmware.first()?;
    let unreadable = |why: &str| {
        let reading = Reading::unreadable(why, "/sys/class/dmi/id");
        of_rule("system.firmware", String::new(), first, reading)
    };
    let (product, reading) = match node.system_firmware() {
        Ok(found) => found,
        Err(why) => return Some(unreadable(&why)),
    };
    let rule = profile
        .system_firmware
        .iter()
        .find(|rule| rule.is_for(&product))?;
    Some(of_rule("system.firmware", product, rule, reading))
}
