//! Writes `firmware-config/profile.schema.json` and the table of settings in its README anew.

#![expect(clippy::unwrap_used, reason = "a program for contributors")]

use std::fs;
use std::path::Path;

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../firmware-config");
    let schema = format!("{:#}\n", firmware::json_schema());
    fs::write(folder.join("profile.schema.json"), schema).unwrap();
    let path = folder.join("README.md");
    let text = fs::read_to_string(&path).unwrap();
    let start = text.find("| setting | value |").unwrap();
    let end = text[start..]
        .find("\n\n")
        .map_or(text.len(), |at| start + at + 1);
    let text = format!(
        "{}{}{}",
        &text[..start],
        firmware::settings_table(),
        &text[end..]
    );
    fs::write(path, text).unwrap();
}
