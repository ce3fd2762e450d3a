//! `adit-agent` as a program, before a real `aditd`: from maintenance mode to a configured node, and
//! what happens to calls while `aditd` is away.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use program_tests::{Adit, KilledChild, program, until};

struct Agent {
    process: KilledChild,
    folder: tempfile::TempDir,
    endpoint: String,
    fingerprint: String,
}

impl Agent {
    /// An agent before the `aditd` at `socket`, with an empty state directory and a console.
    fn start(socket: &Path) -> Agent {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ttyS0"), "").unwrap();
        let mut process =
            KilledChild::spawn(&program("adit-agent").display().to_string(), |command| {
                command
                    .args(["--listen", "127.0.0.1:0", "--state-dir"])
                    .arg(folder.path().join("state"))
                    .arg("--init")
                    .arg(folder.path().join("init.sock"))
                    .arg("--aditd")
                    .arg(socket)
                    .arg("--console")
                    .arg(folder.path().join("ttyS0"))
                    .stdout(Stdio::piped());
            })
            .unwrap();
        let mut line = String::new();
        let stdout = process.stdout().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        Agent {
            endpoint: words[3].trim_end_matches(',').to_owned(),
            fingerprint: words.last().unwrap().to_string(),
            process,
            folder,
        }
    }

    /// The code that the console shows.
    fn code(&self) -> String {
        until("the code on the console", || {
            let screen = std::fs::read_to_string(self.folder.path().join("ttyS0")).unwrap();
            assert!(!screen.contains('\x1b'), "a serial line is dumb");
            let line = screen
                .lines()
                .find(|line| line.trim_start().starts_with("code "))?;
            line.split_whitespace().nth(1).map(str::to_owned)
        })
    }

    fn run(&self, words: &[&str]) -> Output {
        Command::new(program("aditctl"))
            .env("ADIT_CONTEXTS", self.folder.path().join("contexts.toml"))
            .env_remove("ADIT_SERVER")
            .current_dir(self.folder.path())
            .args(words)
            .output()
            .unwrap()
    }

    fn ctl(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn ctl_fails(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(!output.status.success(), "{words:?} did not fail");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Adds the context `n1` by the code on the console.
    fn add_by_code(&self) {
        let (code, fingerprint) = (self.code(), self.fingerprint.clone());
        let mut words = vec!["context", "add", "n1", "--endpoint", &self.endpoint];
        words.extend(["--code", &code, "--fingerprint", &fingerprint]);
        self.ctl(&words);
    }

    /// Configures the node for a site's authority, and gives `n1` the administrator's certificate.
    fn configure(&self) {
        self.add_by_code();
        self.ctl(&["pki", "init", "pki", "--name", "site"]);
        let ca = std::fs::read_to_string(self.folder.path().join("pki/ca.pem")).unwrap();
        let document = format!("hostname = \"stor-1\"\n[agent.api]\nca = '''{ca}'''\n");
        std::fs::write(self.folder.path().join("node.toml"), document).unwrap();
        let apply = [
            "node",
            "config",
            "apply",
            "-f",
            "node.toml",
            "--sign-with",
            "pki",
        ];
        self.ctl(&[&apply[..], &["--dry-run"]].concat());
        assert!(
            self.ctl(&["node", "system"]).contains("maintenance"),
            "a dry run changes nothing"
        );
        self.ctl(&apply);
    }
}

#[test]
fn a_node_is_configured_by_the_code_and_then_only_certificates_open_it() {
    let adit = Adit::builder().start().unwrap();
    let agent = Agent::start(&adit.socket());
    let mut wrong = vec![
        "context",
        "add",
        "evil",
        "--endpoint",
        &agent.endpoint,
        "--code",
        "X",
    ];
    let other = "ab".repeat(32);
    wrong.extend(["--fingerprint", &other]);
    agent.ctl(&wrong);
    let text = agent.ctl_fails(&["--context", "evil", "node", "system"]);
    assert!(text.contains("another certificate"), "{text}");
    agent.ctl(&["context", "remove", "evil"]);

    agent.configure();
    let system = agent.ctl(&["--context", "n1", "node", "system"]);
    assert!(
        system.contains("configured") && system.contains("stor-1"),
        "{system}"
    );
    let document = agent.ctl(&["--context", "n1", "node", "config", "get"]);
    assert!(document.contains("hostname = \"stor-1\""), "{document}");

    // The same document again, signed by nobody: the node shows the certificate that it has.
    agent.ctl(&["node", "config", "apply", "-f", "node.toml"]);

    // Another client of the site may do less; who has no certificate, nothing.
    agent.ctl(&["pki", "issue", "pki", "bob", "--role", "reader"]);
    let mut bob = vec!["context", "add", "bob", "--endpoint", &agent.endpoint];
    bob.extend([
        "--ca",
        "pki/ca.pem",
        "--cert",
        "pki/bob.pem",
        "--key",
        "pki/bob.key",
    ]);
    bob.extend(["--server-name", "stor-1"]);
    agent.ctl(&bob);
    agent.ctl(&["--context", "bob", "bdev", "list"]);
    let create = ["bdev", "create", "malloc", "m0", "--size", "8MiB"];
    let denied = agent.ctl_fails(&[&["--context", "bob"], &create[..]].concat());
    assert!(
        denied.contains("PermissionDenied") && denied.contains("operator"),
        "{denied}"
    );
    agent.ctl(&[&["--context", "n1"], &create[..]].concat());
    assert!(
        agent
            .ctl(&["--context", "bob", "bdev", "list"])
            .contains("m0")
    );
    let mut nobody = vec!["context", "add", "nobody", "--endpoint", &agent.endpoint];
    nobody.extend(["--ca", "pki/ca.pem", "--server-name", "stor-1"]);
    agent.ctl(&nobody);
    agent.ctl_fails(&["--context", "nobody", "bdev", "list"]);
}

#[test]
fn a_node_without_a_site_makes_its_own_authority() {
    let adit = Adit::builder().start().unwrap();
    let agent = Agent::start(&adit.socket());
    agent.add_by_code();
    let wrong = "[agent.network]\nmode = \"static\"\nmtu = 1\n";
    std::fs::write(agent.folder.path().join("wrong.toml"), wrong).unwrap();
    let text = agent.ctl_fails(&["node", "config", "apply", "-f", "wrong.toml"]);
    assert!(
        text.contains("agent.network.addresses") && text.contains("agent.network.mtu"),
        "{text}"
    );
    std::fs::write(
        agent.folder.path().join("node.toml"),
        "hostname = \"lone\"\n",
    )
    .unwrap();
    agent.ctl(&["node", "config", "apply", "-f", "node.toml"]);
    // The context has the certificate that the node signed.
    assert!(agent.ctl(&["node", "system"]).contains("configured"));
    agent.ctl(&["bdev", "list"]);
    // Another name is another certificate, and the context learns of it.
    for document in ["hostname = \"lone\"\n", "hostname = \"alone\"\n"] {
        std::fs::write(agent.folder.path().join("node.toml"), document).unwrap();
        agent.ctl(&["node", "config", "apply", "-f", "node.toml"]);
        agent.ctl(&["bdev", "list"]);
    }
    assert!(agent.ctl(&["node", "system"]).contains("alone"));
    let contexts = agent.folder.path().join("contexts.toml");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(contexts).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    let bundle = agent.folder.path().join("b.tar.zst");
    agent.ctl(&["node", "bundle", "-f", "b.tar.zst"]);
    assert_eq!(
        std::fs::read(bundle).unwrap()[..4],
        [0x28, 0xb5, 0x2f, 0xfd],
        "zstd's magic number"
    );
}

#[test]
fn calls_end_with_a_sentence_while_aditd_is_away_and_go_on_when_it_is_back() {
    let mut adit = Adit::builder().start().unwrap();
    let mut agent = Agent::start(&adit.socket());
    agent.configure();
    agent.ctl(&["bdev", "create", "malloc", "m0", "--size", "8MiB"]);
    // A stream: its first event comes through, and it ends with a status when aditd is killed.
    let mut watch = Command::new(program("aditctl"))
        .env("ADIT_CONTEXTS", agent.folder.path().join("contexts.toml"))
        .args(["watch", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut events = BufReader::new(watch.stdout.take().unwrap()).lines();
    assert!(events.next().unwrap().unwrap().contains("SYNCED"));
    agent.ctl(&["bdev", "create", "malloc", "m1", "--size", "8MiB"]);
    assert!(events.next().unwrap().unwrap().contains("m1"));
    adit.kill_9();
    let ended = watch.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(
        text.contains("Unavailable") && text.contains("aditd"),
        "{text}"
    );

    let away = agent.ctl_fails(&["bdev", "list"]);
    assert!(away.contains("aditd does not answer"), "{away}");
    assert!(agent.ctl(&["node", "system"]).contains("does not answer"));
    assert!(agent.process.ended().is_none(), "the agent lives on");
    adit.start().unwrap();
    until("calls to get through again", || {
        agent.run(&["bdev", "list"]).status.success().then_some(())
    });
    assert!(agent.ctl(&["bdev", "list"]).contains("m1"));
}
