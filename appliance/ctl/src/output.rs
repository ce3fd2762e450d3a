//! What goes to standard output.

use std::io::Write as _;

use prost::{Message, Name};
use serde_json::Value;

use crate::failure::Failure;
use crate::grammar::Format;

/// Prints a list: a table, or `{"NAME": [...]}`.
pub(crate) fn list<M: Message + Name>(
    format: Format,
    name: &str,
    items: &[M],
    table: impl FnOnce(&[M]) -> String,
) -> Result<(), Failure> {
    match format {
        Format::Table => text(&table(items)),
        Format::Json => {
            let items = items.iter().map(api::json::to_json).collect();
            let mut object = serde_json::Map::new();
            object.insert(name.to_owned(), Value::Array(items));
            json(&Value::Object(object))
        }
    }
}

/// Prints one object: a text, or its JSON form.
pub(crate) fn object<M: Message + Name>(
    format: Format,
    object: &M,
    people: impl FnOnce(&M) -> String,
) -> Result<(), Failure> {
    match format {
        Format::Table => text(&people(object)),
        Format::Json => json(&api::json::to_json(object)),
    }
}

/// Prints JSON on one line, for streams.
pub(crate) fn json_line<M: Message + Name>(message: &M) -> Result<(), Failure> {
    text(&format!("{}\n", api::json::to_json(message)))
}

pub(crate) fn text(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Prints a JSON value for programs and people.
pub(crate) fn json(value: &Value) -> Result<(), Failure> {
    text(&format!("{value:#}\n"))
}
