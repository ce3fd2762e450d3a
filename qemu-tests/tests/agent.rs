//! `adit-agent` on a node whose process 1 is `adit-init`: from the code on the console to the orderly
//! end, over the network alone.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use program_tests::{KilledChild, free_port, program, until};
use qemu_tests::{Node, NodeBuilder, patience, skip_without_qemu};

/// A node with an agent, whose port is `port` of this machine's loopback.
fn builder(name: &str, port: u16) -> NodeBuilder {
    Node::builder(name)
        .program("adit-agent", "usr/bin/adit-agent")
        .file(
            "etc/adit/services.toml",
            include_str!("../guest/node/services-agent.toml"),
        )
        .machine("node-network")
        .qemu(&format!(
            "-netdev user,id=net,hostfwd=tcp:127.0.0.1:{port}-:50051"
        ))
}

/// A person with `aditctl` beside the node.
struct Person {
    folder: tempfile::TempDir,
    endpoint: String,
}

impl Person {
    fn new(port: u16) -> Person {
        Person {
            folder: tempfile::tempdir().unwrap(),
            endpoint: format!("127.0.0.1:{port}"),
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program("aditctl"));
        command
            .env("ADIT_CONTEXTS", self.path().join("contexts.toml"))
            .env_remove("ADIT_SERVER")
            .env_remove("ADIT_CONTEXT")
            .current_dir(self.path())
            .args(words);
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
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

    /// Waits until a call's answer holds `text`.
    fn wait_for(&self, words: &[&str], text: &str) -> String {
        until(&format!("{text:?} of {words:?}"), || {
            let output = self.run(words);
            let answer = String::from_utf8(output.stdout).unwrap();
            answer.contains(text).then_some(answer)
        })
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).unwrap();
    }

    /// Makes the authority of a site; its certificate.
    fn site(&self) -> String {
        self.ctl(&["pki", "init", "pki", "--name", "site"]);
        std::fs::read_to_string(self.path().join("pki/ca.pem")).unwrap()
    }
}

/// The screens on the console, the newest first. Other messages may stand between their lines, or
/// break one.
fn screens(console: &str) -> impl Iterator<Item = &str> {
    console
        .rsplit("\nAdit ")
        .filter(|screen| screen.contains("fingerprint "))
}

/// What stands behind `name` on the newest screen where it is `length` characters.
fn on_screen(console: &str, name: &str, length: usize) -> Option<String> {
    let value = |screen: &str| {
        let mut lines = screen.lines().map(str::trim);
        let value = lines.find_map(|line| line.strip_prefix(name)?.split_whitespace().next_back());
        value
            .filter(|value| value.len() == length)
            .map(str::to_owned)
    };
    screens(console).find_map(value)
}

fn unbroken(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// It stands on two lines of 16 pairs.
fn fingerprint(console: &str) -> Option<String> {
    let first = on_screen(console, "fingerprint ", 48)?;
    let mut lines = console
        .lines()
        .map(str::trim)
        .skip_while(|line| !line.ends_with(&first));
    let second = lines.nth(1).filter(|line| line.len() == 47)?;
    Some(format!("{first}{second}"))
}

/// A time server on loopback, as long as it is held.
struct TimeServer {
    port: u16,
    ends: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl TimeServer {
    fn start() -> TimeServer {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let look = Some(Duration::from_millis(200));
        socket.set_read_timeout(look).unwrap();
        let port = socket.local_addr().unwrap().port();
        let ends = Arc::new(AtomicBool::new(false));
        let told = ends.clone();
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let mut packet = [0; 48];
                let Ok((48, from)) = socket.recv_from(&mut packet) else {
                    continue;
                };
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
                // NTP counts from 1900.
                let now = ((since.as_secs() + 2_208_988_800) << 32).to_be_bytes();
                let mut answer = [0; 48];
                (answer[0], answer[1]) = (0x24, 1);
                answer[24..32].copy_from_slice(&packet[40..]);
                answer[32..40].copy_from_slice(&now);
                answer[40..].copy_from_slice(&now);
                let _ = socket.send_to(&answer, from);
            }
        });
        TimeServer {
            port,
            ends,
            thread: Some(thread),
        }
    }
}

impl Drop for TimeServer {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The files of a support bundle, by their names below its folder.
fn unpacked(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let file = std::fs::File::open(path).unwrap();
    let mut archive = tar::Archive::new(zstd::stream::read::Decoder::new(file).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let (_, name) = name.split_once('/').unwrap();
        (name.to_owned(), bytes)
    });
    entries.collect()
}

/// Goal: a node is configured, looked at, repaired and ended over the network alone. Method: what a
/// person does with the console's code, `aditctl` and a document; the clock begins in 1970.
#[test]
fn a_node_is_configured_and_kept_over_the_network() {
    if skip_without_qemu() {
        return;
    }
    let port = free_port().unwrap();
    let time = TimeServer::start();
    let mut node = builder("agent", port)
        .machine("node-network-1970")
        .boot()
        .unwrap();
    let person = Person::new(port);
    let limit = patience(60);
    let code = node.find_on_console("the code", limit, |text| on_screen(text, "code ", 14));
    let code = code.unwrap();
    let shown = node.find_on_console("the fingerprint", limit, fingerprint);
    let shown = shown.unwrap();
    node.wait_for_console("reached at 10.0.2.15:50051", limit)
        .unwrap();

    // Maintenance mode: the code opens what configures, and nothing else.
    let add = |name, code: &str| {
        let mut words = vec!["context", "add", name, "--endpoint", &person.endpoint];
        words.extend(["--fingerprint", &shown, "--code", code]);
        person.ctl(&words);
    };
    add("n1", &code);
    add("wrong", "0000-0000-0000");
    assert!(person.ctl(&["node", "system"]).contains("maintenance"));
    assert!(
        person
            .ctl_fails(&["--context", "wrong", "node", "system"])
            .contains("code is wrong")
    );
    assert!(
        person
            .ctl(&["machine", "show", "-o", "json"])
            .contains("\"cpus\"")
    );
    assert!(
        person
            .ctl(&["node", "logs", "adit-agent"])
            .contains("adit-agent serves at")
    );
    assert!(person.ctl(&["node", "kmsg"]).contains("Linux version"));
    for closed in [
        &["bdev", "list"][..],
        &["node", "poweroff"],
        &["node", "services"],
    ] {
        let text = person.ctl_fails(closed);
        assert!(text.contains("maintenance mode"), "{closed:?}: {text}");
    }

    // A wrong document changes nothing; a dry run neither.
    let apply = ["node", "config", "apply", "--sign-with", "pki", "-f"];
    let ca = person.site();
    person.write("wrong.toml", "hostname = 'a b'\n[agent.network]\nmtu = 9\n");
    let text = person.ctl_fails(&[&apply[..], &["wrong.toml"]].concat());
    assert!(
        text.contains("hostname") && text.contains("agent.network.mtu"),
        "{text}"
    );
    let base = format!(
        "hostname = 'stor-7'\n[agent.api]\nca = '''{ca}'''\n\
         [agent.time]\nservers = ['10.0.2.2:{}']\n",
        time.port
    );
    person.write("node.toml", &base);
    person.ctl(&[&apply[..], &["node.toml", "--dry-run"]].concat());
    assert!(person.ctl(&["node", "system"]).contains("maintenance"));

    // Applied: certificates open it, the code does not.
    person.ctl(&[&apply[..], &["node.toml"]].concat());
    let system = person.ctl(&["node", "system"]);
    assert!(
        system.contains("configured") && system.contains("stor-7"),
        "{system}"
    );
    assert!(
        person
            .ctl_fails(&["--context", "wrong", "node", "system"])
            .len()
            > 1
    );
    assert_eq!(node.run("hostname").unwrap(), "stor-7\n");
    let gone = node.find_on_console("a screen without a code", limit, |text| {
        let newest = screens(text).next()?;
        (newest.contains("stor-7") && !newest.contains("MAINTENANCE")).then_some(())
    });
    gone.unwrap();

    // What the node is and does.
    let network = person.ctl(&["node", "network"]);
    assert!(
        network.contains("lent by 10.0.2.2") && network.contains("10.0.2.15/24"),
        "{network}"
    );
    person.wait_for(
        &["node", "time", "get"],
        &format!("server 10.0.2.2:{}", time.port),
    );
    let year = node.run("date +%Y").unwrap();
    assert!(*year >= *"2026", "{year}");
    let services = person.wait_for(&["node", "services"], "ready");
    assert!(
        services.contains("adit-agent") && services.contains("aditd"),
        "{services}"
    );
    assert!(person.ctl(&["node", "actions"]).contains("identity"));
    person.ctl(&["bdev", "create", "malloc", "m0", "--size", "8MiB"]);
    let system = person.wait_for(&["node", "system"], "good");
    assert!(
        system.contains("test") && system.contains("net"),
        "{system}"
    );
    assert!(
        node.run("cat /run/adit/boot-good")
            .unwrap()
            .contains("version = \"test\"")
    );

    // The target is away: a sentence. It is back: everything as before. The agent never went.
    let pid = node.run("pidof adit-agent").unwrap();
    let mut follow = KilledChild::spawn(&program("aditctl").display().to_string(), |command| {
        command
            .env("ADIT_CONTEXTS", person.path().join("contexts.toml"))
            .args(["node", "logs", "aditd", "--follow", "--tail", "0"])
            .stdout(Stdio::piped());
    })
    .unwrap();
    let mut followed = BufReader::new(follow.stdout().unwrap()).lines();
    node.run("/init call '{\"call\":\"stop\",\"service\":\"aditd\"}'")
        .unwrap();
    person.wait_for(&["node", "services"], "ended");
    let text = person.ctl_fails(&["bdev", "list"]);
    assert!(
        text.contains("Unavailable") && text.contains("aditd does not answer"),
        "{text}"
    );
    person.ctl(&["node", "restart", "aditd"]);
    person.wait_for(&["bdev", "list"], "m0");
    node.run("kill -9 $(pidof aditd)").unwrap();
    person.wait_for(&["bdev", "list"], "m0");
    assert_eq!(node.run("pidof adit-agent").unwrap(), pid);
    assert!(
        followed.next().unwrap().unwrap().contains("aditd: "),
        "lines are followed"
    );
    follow.kill_9();

    // A bundle has what there is of a crash, the core too where it is asked for.
    node.run("kill -ABRT $(pidof aditd)").unwrap();
    node.wait_until("ls /run/adit/crash | grep aditd").unwrap();
    person.wait_for(&["bdev", "list"], "m0");
    person.ctl(&["node", "bundle", "-f", "b.tar.zst", "--cores"]);
    let bundle = unpacked(&person.path().join("b.tar.zst"));
    let text = |name: &str| String::from_utf8_lossy(&bundle[name]).into_owned();
    let manifest = text("manifest.json");
    let log = text("logs/aditd.log");
    assert!(log.matches("program: ready").count() >= 4, "{log}");
    assert!(text("kernel.log").contains("Linux version"), "{manifest}");
    assert!(text("aditd/document.json").contains("\"m0\""), "{manifest}");
    assert!(
        text("aditd/bdevs.json").contains("malloc disk"),
        "{manifest}"
    );
    assert!(text("network.json").contains("10.0.2.15/24"), "{manifest}");
    let reports = text("crash/reports.json");
    assert!(reports.contains("\"program\": \"aditd\""), "{reports}");
    assert!(reports.contains("\"signal\": 6"), "{reports}");
    let core = bundle
        .iter()
        .find(|(name, _)| name.starts_with("crash/cores/"));
    assert_eq!(core.unwrap().1[..4], *b"\x7fELF", "{manifest}");

    // A network that cannot be: the node is reached all the same, and says what is wrong.
    let wrong =
        "[agent.network]\ninterface = 'eth9'\nmode = 'static'\naddresses = ['192.0.2.9/24']\n";
    person.write("unreachable.toml", &format!("{base}{wrong}"));
    person.ctl(&["node", "config", "apply", "-f", "unreachable.toml"]);
    let system = person.wait_for(&["node", "system"], "eth9");
    assert!(system.contains("trying DHCP on any interface"), "{system}");
    person.wait_for(&["node", "network"], "lent by 10.0.2.2");
    let fixed = "[agent.network]\nmode = 'static'\naddresses = ['10.0.2.15/24', 'fd00::7/64']\n\
        gateway = '10.0.2.2'\nmtu = 1400\n";
    person.write("static.toml", &format!("{base}{fixed}"));
    person.ctl(&["node", "config", "apply", "-f", "static.toml"]);
    let network = person.wait_for(&["node", "network"], "static");
    assert!(
        network.contains("10.0.2.15/24") && network.contains("fd00::7/64"),
        "{network}"
    );
    let routes = node.run("ip route; cat /sys/class/net/eth*/mtu").unwrap();
    assert!(
        routes.contains("default via 10.0.2.2") && routes.contains("1400"),
        "{routes}"
    );
    let system = person.ctl(&["node", "system"]);
    assert!(
        !system.contains("eth9"),
        "what is right again is no alert: {system}"
    );
    person.ctl(&["node", "config", "apply", "-f", "node.toml"]);
    let network = person.wait_for(&["node", "network"], "lent by 10.0.2.2");
    assert!(!network.contains("fd00::7"), "{network}");
    let previous = person.ctl(&["node", "config", "get", "--previous"]);
    assert!(previous.contains("static"), "{previous}");

    person.ctl(&["node", "reboot"]);
    node.wait_for_end(patience(120)).unwrap();
    let console = node.console();
    for sentence in [
        "reboot: asked for by the control socket",
        "reboot: everything has ended",
    ] {
        assert!(console.contains(sentence), "{sentence}: {console}");
    }
    assert!(!console.contains("panicked"), "{console}");
}

/// Serves `documents` over HTTP, one to each request, the last one again and again; what was asked.
fn http_server(documents: Vec<Option<String>>) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    // It ends with the test's process.
    std::thread::spawn(move || {
        for (index, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { return };
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                request.push(byte[0]);
            }
            let request = String::from_utf8_lossy(&request).into_owned();
            let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
            seen.lock().unwrap().push(path);
            let document = &documents[index.min(documents.len() - 1)];
            let (status, body) = match document {
                Some(document) => ("200 OK", document.as_str()),
                None => ("404 Not Found", ""),
            };
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        }
    });
    (port, asked)
}

/// Goal: a node fetches its configuration, however late the right one is there, and ends in order.
/// Method: a server that has nothing, then a wrong document, then the right one.
#[test]
fn a_node_fetches_its_configuration_until_it_holds() {
    if skip_without_qemu() {
        return;
    }
    let port = free_port().unwrap();
    let person = Person::new(port);
    let ca = person.site();
    let right = format!("hostname = 'fetched'\n[agent.api]\nca = '''{ca}'''\n");
    let wrong = right.replace("'fetched'", "'not a name'");
    let (server, asked) = http_server(vec![None, Some(wrong), Some(right)]);
    let mut node = builder("fetch", port)
        .kernel(&format!(
            "adit.config_url=http://10.0.2.2:{server}/${{serial}}.toml"
        ))
        .boot()
        .unwrap();
    let limit = patience(90);
    for sentence in [
        "A1B2.toml: the server answers with status 404",
        "A1B2.toml: hostname:",
    ] {
        // A long sentence is broken where the screen ends.
        let find = |text: &str| unbroken(text).contains(sentence).then_some(());
        node.find_on_console(sentence, limit, find).unwrap();
    }
    let configured = node.find_on_console("the fetched name", limit, |console| {
        let newest = screens(console).next()?;
        (newest.contains("fetched") && !newest.contains("MAINTENANCE")).then_some(())
    });
    configured.unwrap();
    let shown = node.find_on_console("the fingerprint", limit, fingerprint);
    let shown = shown.unwrap();
    assert!(
        asked
            .lock()
            .unwrap()
            .iter()
            .all(|path| path == "/A1B2.toml")
    );

    let mut words = vec!["context", "add", "n1", "--endpoint", &person.endpoint];
    words.extend([
        "--fingerprint",
        &shown,
        "--cert",
        "pki/admin.pem",
        "--key",
        "pki/admin.key",
    ]);
    person.ctl(&words);
    let config = person.ctl(&["node", "config", "get"]);
    assert!(config.contains("fetched from http://10.0.2.2:"), "{config}");
    assert!(config.contains("config_url = "), "{config}");
    let system = person.ctl(&["node", "system"]);
    assert!(!system.contains("no configuration from"), "{system}");

    person.ctl(&["node", "poweroff"]);
    node.wait_for_end(patience(120)).unwrap();
    let console = node.console();
    assert!(
        console.contains("power off: everything has ended"),
        "{console}"
    );
}
