//! A host made of files: what is read of it, what is planned for it, what is done to it.
//!
//! The golden texts in `tests/golden` are written anew with `ADIT_GOLDEN=write`.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

mod apply;
mod facts;
mod fake;
mod loan;
mod plan;

use std::path::Path;

use fake::FakeHost;
use machine::{Config, Facts, Plan};

fn facts(host: &FakeHost) -> Facts {
    Facts::read(host).unwrap()
}

fn plan_of(host: &FakeHost, config: &Config) -> Plan {
    machine::plan(&facts(host), config)
}

/// Compares with a golden text.
fn assert_golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("ADIT_GOLDEN").is_some_and(|value| value == "write") {
        std::fs::write(&path, text).unwrap();
        return;
    }
    let golden = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; set ADIT_GOLDEN=write", path.display()));
    assert!(
        golden == text,
        "{name} differs; it is now:\n{text}\nand was:\n{golden}"
    );
}
