//! The source tree is what docs/architecture.md says. Method: `cargo metadata`, and a look at every
//! tracked file.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Crates with `unsafe`, and in which of their files it may be; an empty path is all of them.
const UNSAFE: &[(&str, &str)] = &[
    ("dma", ""),
    ("vfio", ""),
    ("verbs", ""),
    ("reactor", ""),
    ("block", "src/file/ring.rs"),
    ("init", "src/ioctl.rs"),
];

const LINES_MAX: usize = 800;

/// Crates of tests: they are not in the table.
const TEST_CRATES: &[&str] = &["program_tests", "qemu_machines", "qemu_tests"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

struct Package {
    name: String,
    folder: PathBuf,
    /// Crates of this workspace that it depends on, tests aside.
    dependencies: BTreeSet<String>,
}

fn packages() -> Vec<Package> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .args(["--offline", "--manifest-path"])
        .arg(root().join("Cargo.toml"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let package = |package: &Value| Package {
        name: package["name"].as_str().unwrap().to_owned(),
        folder: Path::new(package["manifest_path"].as_str().unwrap())
            .parent()
            .unwrap()
            .to_owned(),
        dependencies: package["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|each| each["path"].is_string() && each["kind"] != "dev")
            .map(|each| each["name"].as_str().unwrap().to_owned())
            .collect(),
    };
    metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(package)
        .collect()
}

type Table = BTreeMap<String, BTreeSet<String>>;

/// The table of docs/architecture.md: the rows whose first cell holds names of crates, the last
/// what they may depend on.
fn table() -> Table {
    let text = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let mut lines = text.lines();
    lines.find(|line| line.starts_with("| crate |")).unwrap();
    let names = |cell: &str| -> BTreeSet<String> {
        cell.split(',')
            .map(|name| name.trim_matches([' ', '`']).to_owned())
            .filter(|name| name != "-")
            .collect()
    };
    let mut table = Table::new();
    for line in lines.take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if cells[0].contains('`') {
            let allowed = names(cells[cells.len() - 1]);
            let crates = names(cells[0]).into_iter();
            table.extend(crates.map(|name| (name, allowed.clone())));
        }
    }
    assert!(table.len() > 5, "the table was not found: {table:?}");
    table
}

/// What a crate may depend on, with all that comes along.
fn reach(table: &Table, name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![name.to_owned()];
    while let Some(name) = open.pop() {
        for next in table.get(&name).into_iter().flatten() {
            if found.insert(next.clone()) {
                open.push(next.clone());
            }
        }
    }
    found
}

/// Every file that git knows; none where this is no checkout.
fn tracked() -> Vec<PathBuf> {
    let output = Command::new("git")
        .arg("-C")
        .arg(root())
        .args(["ls-files", "-z"])
        .output();
    match output {
        Ok(output) if output.status.success() => output
            .stdout
            .split(|byte| *byte == 0)
            .filter(|path| !path.is_empty())
            .map(|path| PathBuf::from(String::from_utf8_lossy(path).into_owned()))
            .filter(|path| root().join(path).is_file())
            .collect(),
        _ => {
            println!("skipped: this is no git checkout, so there are no tracked files to look at");
            Vec::new()
        }
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(root().join(path)).unwrap()).into_owned()
}

fn is_rust(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs")
}

/// Whether a source file holds nothing but tests, benchmarks or fuzz targets.
fn is_test(path: &Path) -> bool {
    let name = path.file_stem().unwrap().to_string_lossy();
    let folders = ["tests", "benches", "fuzz", "examples", "qemu-tests"];
    name == "tests"
        || name.ends_with("_tests")
        || path
            .components()
            .any(|part| folders.iter().any(|folder| part.as_os_str() == *folder))
}

#[test]
fn crates_depend_on_what_the_table_allows() {
    let table = table();
    let packages = packages();
    let ours: BTreeSet<&str> = packages.iter().map(|each| each.name.as_str()).collect();
    let mut wrong = Vec::new();
    for package in &packages {
        if TEST_CRATES.contains(&package.name.as_str()) {
            continue;
        }
        let Some(allowed) = table.get(&package.name) else {
            wrong.push(format!("{} is not in the table", package.name));
            continue;
        };
        for dependency in &package.dependencies {
            if ours.contains(dependency.as_str()) && !allowed.contains(dependency) {
                wrong.push(format!("{} depends on {dependency}", package.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_table_has_no_cycle() {
    let table = table();
    for name in table.keys() {
        assert!(!reach(&table, name).contains(name), "{name}");
    }
}

#[test]
fn only_agent_target_and_ctl_name_grpc_beside_api() {
    let allowed = ["api", "agent", "target", "ctl", "program_tests"];
    for package in packages() {
        let manifest = fs::read_to_string(package.folder.join("Cargo.toml")).unwrap();
        let names_it = manifest
            .lines()
            .any(|line| line.starts_with("tonic") || line.starts_with("prost"));
        assert!(
            !names_it || allowed.contains(&package.name.as_str()),
            "{}",
            package.name
        );
    }
}

#[test]
fn libraries_have_no_threads_and_no_clock() {
    let passive = [
        "nvmf",
        "nvmf_tcp",
        "nvmf_host",
        "block",
        "lvol",
        "fabric_wire",
        "nvme_spec",
    ];
    let forbidden = [
        "thread::spawn",
        "thread::sleep",
        "thread::Builder",
        "Instant::now",
        "SystemTime::now",
        "tokio::",
        "reactor::",
    ];
    let mut wrong = Vec::new();
    for path in tracked() {
        let mut parts = path.iter().map(|part| part.to_string_lossy());
        let of_library = parts.next().is_some_and(|part| part == "appliance")
            && parts.next().is_some_and(|part| passive.contains(&&*part))
            && parts.next().is_some_and(|part| part == "src");
        if !of_library || !is_rust(&path) || is_test(&path) {
            continue;
        }
        let text = read(&path);
        for (number, line) in code(&text).lines().enumerate() {
            let line = line.trim_start();
            if line.starts_with("//") {
                continue;
            }
            for word in forbidden {
                if line.contains(word) {
                    wrong.push(format!("{}:{}: {word}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_code_is_where_it_may_be() {
    let mut wrong = Vec::new();
    for path in tracked() {
        if !is_rust(&path) || path.starts_with("tests") {
            continue;
        }
        let text = read(&path);
        let opens = text.contains("unsafe_code");
        // A counting allocator cannot be written without.
        let allocator = is_test(&path) && text.contains("GlobalAlloc");
        let allowed = UNSAFE.iter().any(|(name, file)| {
            let folder = Path::new("appliance").join(name);
            path.starts_with(&folder) && (file.is_empty() || path == folder.join(file))
        });
        if opens && !allowed && !allocator {
            wrong.push(path);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    for package in packages() {
        let manifest = fs::read_to_string(package.folder.join("Cargo.toml")).unwrap();
        let name = &package.name;
        assert!(
            manifest.contains("[lints]\nworkspace = true"),
            "{name}: `[lints] workspace = true` is missing"
        );
    }
}

#[test]
fn every_crate_begins_by_saying_what_it_is() {
    for package in packages() {
        for file in ["src/lib.rs", "src/main.rs"] {
            let path = package.folder.join(file);
            let Ok(text) = fs::read_to_string(&path) else {
                continue;
            };
            assert!(text.starts_with("//! "), "{}", path.display());
        }
    }
}

/// A file up to its tests.
fn code(text: &str) -> &str {
    let begins = ["#[cfg(test)]\nmod ", "#[cfg(all(test, "];
    let found = begins.iter().filter_map(|begin| text.find(begin)).min();
    &text[..found.unwrap_or(text.len())]
}

#[test]
fn files_are_short() {
    let mut long = Vec::new();
    for path in tracked() {
        if is_rust(&path) && !is_test(&path) {
            let text = read(&path);
            let lines = code(&text).lines().count();
            if lines > LINES_MAX {
                long.push(format!("{}: {lines} lines without tests", path.display()));
            }
        }
    }
    assert!(long.is_empty(), "more than {LINES_MAX}: {long:#?}");
}

#[test]
fn the_top_level_is_fixed() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "appliance",
        "image",
        "initramfs",
        "firmware-config",
        "tests",
        "qemu-tests",
        "Makefile",
        "docs",
        "README.md",
        "LICENSE",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "rust-toolchain.toml",
        "rustfmt.toml",
        "clippy.toml",
        "deny.toml",
    ];
    let mut wrong = BTreeSet::new();
    for path in tracked() {
        let first = path.iter().next().unwrap().to_string_lossy().into_owned();
        if !first.starts_with('.') && !allowed.contains(&first.as_str()) {
            wrong.insert(first);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn nothing_names_the_machine_it_was_written_on() {
    // In two pieces each, or this file would name them.
    let forbidden = [
        concat!("/wo", "rk/"),
        concat!("/ho", "me/"),
        concat!("/Us", "ers/"),
        concat!("artif", "actory"),
        concat!("jf", "rog"),
        concat!("replace", "-with"),
    ];
    let mut wrong = Vec::new();
    for path in tracked() {
        let text = read(&path);
        for (number, line) in text.lines().enumerate() {
            for word in forbidden {
                // A path under a root that is given, as in "$root/home/", is not one of a machine.
                let found = line.match_indices(word).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    !before.is_some_and(|each| each.is_alphanumeric() || each == '}')
                });
                if found {
                    wrong.push(format!("{}:{}: {word}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn packages_come_from_the_public_registry() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let public = r#"source = "registry+https://github.com/rust-lang/crates.io-index""#;
    let other: Vec<&str> = lock
        .lines()
        .filter(|line| line.starts_with("source = ") && *line != public)
        .collect();
    assert!(other.is_empty(), "{other:#?}");
}

/// A mutation that no longer applies shows nothing, and is noticed only by who runs them all.
#[test]
fn every_mutation_applies() {
    let patches: Vec<_> = tracked()
        .into_iter()
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "patch")
        })
        .collect();
    for patch in &patches {
        let check = Command::new("git")
            .current_dir(root())
            .args(["apply", "--check"])
            .arg(patch)
            .output()
            .unwrap();
        let complaint = String::from_utf8_lossy(&check.stderr);
        assert!(
            check.status.success(),
            "{}: {complaint}make it anew, and see it caught",
            patch.display()
        );
    }
}

/// The names of tests in the tables of docs/pools.md: words in backticks with `::` or `…` in them.
fn named_tests(text: &str) -> BTreeSet<String> {
    let rows = text.lines().filter(|line| line.starts_with('|'));
    let words = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let is_name = |word: &&str| {
        let is_letter =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:…*".contains(c);
        word.chars().all(is_letter) && (word.contains("::") || word.contains('…'))
    };
    words.filter(is_name).map(str::to_owned).collect()
}

/// Goal: whoever reads what a pool promises finds the test that says so. Method: a name's last part is a test
/// of a file, a beginning of one (`…`), or anything in a module (`*`).
#[test]
fn every_test_that_the_pages_name_is_there() {
    let files: Vec<PathBuf> = tracked().into_iter().filter(|path| is_rust(path)).collect();
    if files.is_empty() {
        return;
    }
    let code: Vec<String> = files.iter().map(|path| read(path)).collect();
    let is_module = |name: &str| {
        let of_file = |path: &PathBuf| path.iter().any(|part| part == name);
        files.iter().any(|path| of_file(&path.with_extension("")))
    };
    let is_test = |beginning: &str| {
        let wanted = format!("fn {beginning}");
        code.iter().any(|text| text.contains(&wanted))
    };
    let names = named_tests(&fs::read_to_string(root().join("docs/pools.md")).unwrap());
    assert!(names.len() > 40, "{names:?}");
    let is_there = |name: &&String| {
        let parts: Vec<&str> = name.split("::").collect();
        let last = parts[parts.len() - 1].trim_start_matches('…');
        match last.strip_suffix(['…', '*']) {
            Some("") => parts.len() > 1 && is_module(parts[parts.len() - 2]),
            Some(beginning) => is_test(beginning),
            None => is_test(&format!("{last}()")) || is_module(last),
        }
    };
    let missing: Vec<&String> = names.iter().filter(|name| !is_there(name)).collect();
    assert!(
        missing.is_empty(),
        "docs/pools.md names no test: {missing:?}"
    );
}
