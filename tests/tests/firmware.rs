//! `aditctl firmware` on a host in a folder: what it prints, and its exit codes.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use std::fs;
use std::path::Path;
use std::process::Command;

use program_tests::{Adit, program};
use serde_json::Value;

/// Runs `aditctl firmware` without a server: exit code, standard output, standard error.
fn firmware(words: &[&str]) -> (i32, String, String) {
    let output = Command::new(program("aditctl"))
        .args(["--server", "unix:/nowhere/aditd.sock", "firmware"])
        .args(words)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

fn write(root: &Path, path: &str, content: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

const PROFILE: &str = "schema = 1
name = \"test\"
summary = \"s\"
[cpu]
smt = { want = false, why = \"a neighbour takes execution units\" }
boost = { want = true, why = \"one core serves a queue pair\" }
";

#[test]
fn exit_codes_tell_wrong_from_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let profile = folder.path().join("test.toml");
    fs::write(&profile, PROFILE).unwrap();
    let (root, profile) = (folder.path(), profile.to_str().unwrap());
    write(root, "proc/self/mountinfo", "");
    let smt = "sys/devices/system/cpu/smt/active";
    let boost = "sys/devices/system/cpu/cpufreq/boost";
    write(root, smt, "1\n");
    let look = |verb: &str, more: &[&str]| {
        let words = [&[verb, profile, "--root", root.to_str().unwrap()], more].concat();
        firmware(&words)
    };
    let (code, out, error) = look("check", &[]);
    assert_eq!(code, 3, "{out}{error}");
    assert!(out.contains("/sys/devices/system/cpu/smt/active"), "{out}");
    assert!(
        error.contains("1 settings are not as test wants them"),
        "{error}"
    );
    let (code, out, _) = look("diff", &[]);
    assert_eq!(code, 3);
    assert!(
        out.contains("why:      a neighbour takes execution units"),
        "{out}"
    );

    write(root, smt, "0\n");
    let (code, _, error) = look("check", &[]);
    assert_eq!(code, 4);
    assert!(error.contains("--allow-unreadable"), "{error}");
    assert_eq!(look("check", &["--allow-unreadable"]).0, 0);
    assert_eq!(look("check", &["--only", "cpu.smt"]).0, 0);

    write(root, boost, "1\n");
    let (code, out, _) = look("check", &["-o", "json"]);
    assert_eq!(code, 0);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["totals"]["ok"], 2);
    assert_eq!(report["items"][0]["setting"], "cpu.boost");
    let source = &report["items"][0]["current"]["value"]["source"];
    assert_eq!(source, "/sys/devices/system/cpu/cpufreq/boost");
    let (code, out, _) = look("diff", &[]);
    assert_eq!((code, out.lines().count()), (0, 1), "{out}");
}

#[test]
fn a_wrong_profile_is_told_with_every_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.toml");
    fs::write(&path, "schema = 1\n[cpu]\nsmtt = 1\nboost = 1\n").unwrap();
    let (code, out, error) = firmware(&["check", path.to_str().unwrap()]);
    assert_eq!((code, out.as_str()), (1, ""));
    for line in [
        "line 3: there is no setting of [cpu] \"smtt\"; is \"smt\" meant?",
        "line 4: ",
    ] {
        assert!(error.contains(line), "{error}");
    }
    let (code, _, error) = firmware(&["check", "defalt"]);
    assert_eq!(code, 2);
    assert!(
        error.contains("default, latency, lossless, lossy, roce, vm"),
        "{error}"
    );
    let (code, out, _) = firmware(&["profiles"]);
    assert_eq!((code, out.lines().count()), (0, 7), "{out}");
}

#[test]
fn without_drives_there_is_nothing_to_apply() {
    let adit = Adit::builder().start().unwrap();
    let out = adit.ctl(&["firmware", "apply", "default"]).unwrap();
    assert_eq!(out, "nothing to do\n");
    let error = adit.ctl(&["firmware", "apply", "default", "--drive", "x"]);
    assert!(error.unwrap_err().to_string().contains("there is no drive"));
    let (code, _, error) = firmware(&["apply", "default"]);
    assert_eq!(code, 1);
    assert!(error.contains("cannot reach aditd"), "{error}");
}
