//! The form of a profile, for editors and people.

use serde_json::{Map, Value as Json, json};

use crate::catalogue::{Kind, Rule, SETTINGS, Setting};
use crate::profile::BUILT_IN;

/// The JSON Schema (draft 2020-12) of a profile. What the parser takes and what it says are the same.
#[must_use]
pub fn json_schema() -> Json {
    let mut sections: Map<String, Json> = Map::new();
    for setting in SETTINGS {
        let section = sections
            .entry(setting.section)
            .or_insert_with(|| json!({ "type": "object", "additionalProperties": false }));
        section["properties"][setting.key] = of_setting(setting);
    }
    let rules = |by: &str, about: &str| {
        json!({
            "type": "array",
            "description": about,
            "items": {
                "type": "object",
                "additionalProperties": false,
                "required": [by, "want", "why"],
                "properties": {
                    by: { "type": "string", "description": "a * stands for any text" },
                    "want": { "type": "string" },
                    "why": { "type": "string", "minLength": 1 },
                },
            },
        })
    };
    sections["nic"]["properties"]["ports"] = json!({
        "type": "array",
        "description": "Data ports, by interface name or MAC address. Without it: physical ports \
                        that carry no default route.",
        "items": { "type": "string" },
        "minItems": 1,
    });
    sections["nvme"]["properties"]["firmware"] = rules(
        "model",
        "Firmware revisions of drives. The first entry that fits a drive counts.",
    );
    let system = json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "firmware": rules("product", "Version of the node's own firmware, by product name."),
        },
    });
    sections.insert("system".to_owned(), system);
    let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
    let mut properties = json!({
        "schema": { "const": 1 },
        "name": { "type": "string" },
        "summary": { "type": "string", "minLength": 1 },
        "based_on": { "enum": names, "description": "The profile that holds where this is silent." },
    });
    if let Some(properties) = properties.as_object_mut() {
        properties.extend(sections);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Adit firmware profile",
        "type": "object",
        "additionalProperties": false,
        "required": ["schema", "summary"],
        "properties": properties,
    })
}

fn of_setting(setting: &Setting) -> Json {
    let want = match setting.kind {
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Number { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Choice(words) => json!({ "enum": words }),
        Kind::Words => json!({ "type": "array", "items": { "type": "string" }, "minItems": 1 }),
    };
    json!({
        "type": "object",
        "description": setting.about,
        "additionalProperties": false,
        "required": ["want", "why"],
        "properties": { "want": want, "why": { "type": "string", "minLength": 1 } },
    })
}

/// All settings as a table in Markdown.
#[must_use]
pub fn settings_table() -> String {
    let mut text = "| setting | value | what it is | read from | changed by |\n".to_owned();
    text.push_str("|---|---|---|---|---|\n");
    for setting in SETTINGS {
        let value = match setting.kind {
            Kind::Bool => "true, false".to_owned(),
            Kind::Number { min, max } => format!("{min} to {max}"),
            Kind::Choice(words) => words.join(", "),
            Kind::Words => "list of words".to_owned(),
        };
        let rule = match setting.rule {
            Rule::Equal => "",
            Rule::AtLeast => "at least: ",
            Rule::AtMost => "at most: ",
            Rule::Contains => "all of: ",
        };
        let row = format!(
            "| `{}` | {rule}{value} | {} | {} | {} |\n",
            setting.name(),
            setting.about,
            setting.read_from,
            setting.effect.name(),
        );
        text.push_str(&row);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed(name: &str) -> String {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../firmware-config");
        std::fs::read_to_string(format!("{folder}/{name}")).unwrap()
    }

    #[test]
    fn the_committed_schema_is_that_of_the_parser() {
        let committed: Json = serde_json::from_str(&committed("profile.schema.json")).unwrap();
        assert!(
            committed == json_schema(),
            "write it anew: cargo run -p firmware --example write_schema"
        );
    }

    #[test]
    fn the_readme_lists_every_setting() {
        assert!(
            committed("README.md").contains(&settings_table()),
            "write it anew: cargo run -p firmware --example write_schema"
        );
    }
}
