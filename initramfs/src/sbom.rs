//! The bill of materials, as SPDX 2.3 in JSON: the crates that the programs are built of, and the Debian
//! packages that files of the image come from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::{Assembled, InitramfsError, Sources};

/// Makes the bill of materials of an image. `workspace` is the project's folder.
///
/// # Errors
///
/// When cargo does not tell what there is, or a file is of no package.
pub fn sbom(
    sources: &Sources,
    assembled: &Assembled,
    workspace: &Path,
) -> Result<String, InitramfsError> {
    let mut packages = crates(workspace, &assembled.programs)?;
    packages.extend(debian(&sources.tools.join("root"), &assembled.debian)?);
    let kernel = &assembled.kernel;
    packages.push(package(
        &format!("linux-image-{}", kernel.release),
        &kernel.version,
        "GPL-2.0-only",
        &purl("deb/debian", "linux", &kernel.version),
    ));
    packages.sort_by_key(|package| package["SPDXID"].as_str().map(str::to_owned));
    packages.dedup();
    let version = &sources.stamp.version;
    let profile = sources.profile.word();
    let relations: Vec<Value> = packages
        .iter()
        .map(|package| {
            json!({
                "spdxElementId": "SPDXRef-DOCUMENT",
                "relationshipType": "DESCRIBES",
                "relatedSpdxElement": package["SPDXID"],
            })
        })
        .collect();
    let document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("adit-{profile}-{version}"),
        "documentNamespace": format!("urn:adit:image:{profile}:{version}"),
        "creationInfo": {
            "created": utc(sources.stamp.made_unix_s),
            "creators": [format!("Tool: adit-initramfs-{}", env!("CARGO_PKG_VERSION"))],
        },
        "packages": packages,
        "relationships": relations,
    });
    let text = serde_json::to_string_pretty(&document);
    Ok(text.expect("strings and lists are always JSON") + "\n")
}

fn package(name: &str, version: &str, license: &str, purl: &str) -> Value {
    let id: String = format!("{name}-{version}")
        .chars()
        .map(|each| {
            if each.is_ascii_alphanumeric() || each == '.' {
                each
            } else {
                '-'
            }
        })
        .collect();
    let kind = purl.split(['/', ':']).nth(1).unwrap_or_default();
    json!({
        "SPDXID": format!("SPDXRef-{kind}-{id}"),
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": license,
        "copyrightText": "NOASSERTION",
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": purl,
        }],
    })
}

fn purl(kind: &str, name: &str, version: &str) -> String {
    let version = version.replace('+', "%2B").replace(':', "%3A");
    format!("pkg:{kind}/{name}@{version}")
}

/// The crates that these programs are made of, tests and build scripts aside.
fn crates(workspace: &Path, programs: &[String]) -> Result<Vec<Value>, InitramfsError> {
    let failed = |detail: String| InitramfsError::Tool {
        program: "cargo metadata",
        detail,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--format-version",
            "1",
            "--offline",
            "--filter-platform",
        ])
        .args(["x86_64-unknown-linux-gnu", "--manifest-path"])
        .arg(workspace.join("Cargo.toml"))
        .output();
    let output = output.map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    let metadata: Value =
        serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))?;
    Ok(crates_of(&metadata, programs))
}

fn crates_of(metadata: &Value, programs: &[String]) -> Vec<Value> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let packages: BTreeMap<String, Value> = list(&metadata["packages"])
        .into_iter()
        .map(|package| (package["id"].to_string(), package))
        .collect();
    let nodes: BTreeMap<String, Value> = list(&metadata["resolve"]["nodes"])
        .into_iter()
        .map(|node| (node["id"].to_string(), node))
        .collect();
    let has_program = |package: &Value| {
        list(&package["targets"]).iter().any(|target| {
            let is_program = list(&target["kind"]).contains(&json!("bin"));
            is_program && programs.iter().any(|name| target["name"] == json!(name))
        })
    };
    let mut open: Vec<String> = packages
        .iter()
        .filter(|(_, package)| has_program(package))
        .map(|(id, _)| id.clone())
        .collect();
    let mut seen: BTreeSet<String> = open.iter().cloned().collect();
    while let Some(id) = open.pop() {
        for dependency in list(&nodes.get(&id).unwrap_or(&Value::Null)["deps"]) {
            let kinds = list(&dependency["dep_kinds"]);
            let is_linked = kinds.iter().any(|kind| kind["kind"].is_null());
            let next = dependency["pkg"].to_string();
            if is_linked && seen.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    let found = seen.iter().filter_map(|id| packages.get(id));
    let text = |value: &Value| value.as_str().unwrap_or("NOASSERTION").to_owned();
    found
        .map(|each| {
            let (name, version) = (text(&each["name"]), text(&each["version"]));
            let purl = purl("cargo", &name, &version);
            // Older manifests put a slash where SPDX has OR.
            let license = text(&each["license"]).replace('/', " OR ");
            package(&name, &version, &license, &purl)
        })
        .collect()
}

/// The packages that files of the tools root belong to.
fn debian(root: &Path, files: &BTreeSet<String>) -> Result<Vec<Value>, InitramfsError> {
    let info = root.join("var/lib/dpkg/info");
    let entries = fs::read_dir(&info).map_err(InitramfsError::file("read", &info))?;
    let mut owners: BTreeSet<String> = BTreeSet::new();
    let mut left: BTreeSet<&str> = files.iter().map(String::as_str).collect();
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "list") {
            continue;
        }
        let text = fs::read_to_string(&path).map_err(InitramfsError::file("read", &path))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let name = name.split(':').next().unwrap_or_default().to_owned();
        for line in text.lines() {
            // Some packages still say /lib and /bin for what is in /usr.
            let line = line.trim_start_matches('/');
            let merged = format!("usr/{line}");
            if left.remove(line) | left.remove(&*merged) {
                owners.insert(name.clone());
            }
        }
    }
    if let Some(orphan) = left.first() {
        return Err(InitramfsError::damaged(*orphan, "no Debian package has it"));
    }
    let status = root.join("var/lib/dpkg/status");
    let text = fs::read_to_string(&status).map_err(InitramfsError::file("read", &status))?;
    Ok(text
        .split("\n\n")
        .filter_map(|stanza| {
            let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name));
            let (name, version) = (field("Package: ")?, field("Version: ")?);
            let purl = purl("deb/debian", name, version);
            owners
                .contains(name)
                .then(|| package(name, version, "NOASSERTION", &purl))
        })
        .collect())
}

/// Seconds since 1970 as SPDX wants them. Civil time by days: years of 365.2425 days, counted from March.
fn utc(unix_s: i64) -> String {
    let (days, second) = (unix_s.div_euclid(86_400), unix_s.rem_euclid(86_400));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_795_219_200), "2026-11-21T00:00:00Z");
    }

    #[test]
    fn crates_are_those_that_are_linked() {
        let package = |id: &str, kind: &str, name: &str| {
            json!({"id": id, "name": id, "version": "1.0.0", "license": "MIT/Apache-2.0",
                   "targets": [{"kind": [kind], "name": name}]})
        };
        let metadata = json!({
            "packages": [package("p", "bin", "aditd"), package("l", "lib", "l"),
                         package("t", "lib", "t"), package("q", "bin", "other")],
            "resolve": {"nodes": [
                {"id": "p", "deps": [{"pkg": "l", "dep_kinds": [{"kind": null}]},
                                     {"pkg": "t", "dep_kinds": [{"kind": "dev"}]}]},
                {"id": "l", "deps": []}
            ]}
        });
        let found = crates_of(&metadata, &["aditd".to_owned()]);
        let names: Vec<&str> = found
            .iter()
            .filter_map(|each| each["name"].as_str())
            .collect();
        assert_eq!(names, ["l", "p"]);
        assert_eq!(found[0]["licenseDeclared"], "MIT OR Apache-2.0");
        assert_eq!(
            found[0]["externalRefs"][0]["referenceLocator"],
            "pkg:cargo/l@1.0.0"
        );
    }

    #[test]
    fn a_package_is_told_by_its_files_wherever_usr_is() {
        let root = tempfile::tempdir().unwrap();
        let dpkg = root.path().join("var/lib/dpkg");
        fs::create_dir_all(dpkg.join("info")).unwrap();
        fs::write(dpkg.join("info/libc6:amd64.list"), "/lib/libc.so.6\n").unwrap();
        fs::write(dpkg.join("info/other.list"), "/usr/bin/other\n").unwrap();
        let status = "Package: libc6\nVersion: 2.41-1+b1\n\nPackage: other\nVersion: 1\n";
        fs::write(dpkg.join("status"), status).unwrap();
        let files = BTreeSet::from(["usr/lib/libc.so.6".to_owned()]);
        let found = debian(root.path(), &files).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0]["externalRefs"][0]["referenceLocator"],
            "pkg:deb/debian/libc6@2.41-1%2Bb1"
        );
        let orphan = BTreeSet::from(["usr/bin/nobody".to_owned()]);
        assert!(debian(root.path(), &orphan).is_err());
    }
}
