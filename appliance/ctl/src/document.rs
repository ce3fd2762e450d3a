//! Reading the document that `apply` takes.

use std::path::Path;

use api::v1;

use crate::failure::Failure;

/// Reads a TOML or JSON document; `-` is standard input. The name decides; without one that says,
/// a text that starts with a brace is JSON.
pub(crate) fn read(path: &Path) -> Result<v1::Document, Failure> {
    let name = if path == Path::new("-") {
        "standard input".into()
    } else {
        path.display().to_string()
    };
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.map_err(|source| Failure::File {
        path: name.clone(),
        source,
    })?;
    let is_json = match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => true,
        Some("toml") => false,
        _ => text.trim_start().starts_with('{'),
    };
    parse(&text, is_json).map_err(|problem| Failure::Document {
        path: name,
        problem,
    })
}

fn parse(text: &str, is_json: bool) -> Result<v1::Document, String> {
    let value: serde_json::Value = if is_json {
        serde_json::from_str(text).map_err(|error| error.to_string())?
    } else {
        toml::from_str(text).map_err(|error| error.to_string())?
    };
    api::json::from_json(value).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = r#"
        [[bdevs]]
        name = "disk0"
        file = { path = "/srv/disk0", size_bytes = "1GiB" }

        [[subsystems]]
        subsystem = { nqn = "nqn.2026-11.io.adit:a", allow_any_host = true }
        namespaces = [{ bdev_name = "disk0" }]
        listeners = [{ address = "tcp://127.0.0.1:4420" }]
    "#;

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = parse(TOML, false).unwrap();
        let json = api::json::to_json(&toml).to_string();
        assert_eq!(parse(&json, true).unwrap(), toml);
    }

    #[test]
    fn errors_name_the_place() {
        let error = parse("[[bdevs]]\nname = \"a\"\nfile = { pat = \"/x\" }", false).unwrap_err();
        assert!(
            error.starts_with("bdevs[0].file.pat: there is no such field"),
            "{error}"
        );
        let error = parse("bdevs = [\n1 2", false).unwrap_err();
        assert!(error.contains("line 2"), "{error}");
        let error = parse("{\n!", true).unwrap_err();
        assert!(error.contains("line 2"), "{error}");
    }
}
