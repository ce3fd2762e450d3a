//! The status screen of the console.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use init::supervisor::{ServiceReport, ServiceState};

use crate::node::Node;

/// How often the node is looked at.
const INTERVAL: Duration = Duration::from_secs(2);
/// Lines of each list; a screen has 25.
const LIST_MAX: usize = 5;
const WIDTH: usize = 79;
/// Lines of one sentence.
const LINES_MAX: usize = 3;
/// A serial line at 9600 baud takes a second for a screen.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(50);

/// What is on the screen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Screen {
    /// Name of the node.
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// Where it is reached.
    pub addresses: Vec<String>,
    /// The port.
    pub port: u16,
    /// SHA-256 of its certificate.
    pub fingerprint: String,
    /// The code, in maintenance mode.
    pub code: Option<String>,
    /// Services with what they do.
    pub services: Vec<(String, String)>,
    /// Pools with their state.
    pub pools: Vec<(String, String)>,
    /// What is wrong.
    pub alerts: Vec<String>,
}

impl Screen {
    /// The screen as lines of at most 79 characters, without any that move a cursor.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |words: String| wrap(&words, &mut text);
        line(format!("Adit {}  {}", self.version, self.name));
        match self.addresses.as_slice() {
            [] => line("no address yet".to_owned()),
            all => all.iter().take(LIST_MAX).for_each(|each| {
                let host = each.split('/').next().unwrap_or(each);
                let host = if host.contains(':') {
                    format!("[{host}]")
                } else {
                    host.to_owned()
                };
                line(format!("reached at {host}:{}", self.port));
            }),
        }
        if let Some(code) = &self.code {
            line("MAINTENANCE: not configured. To configure it from another machine:".to_owned());
            line(format!("  code         {code}"));
        }
        // 95 characters: two lines of 16 pairs. Who comes with a certificate compares it too.
        let (first, second) = self.fingerprint.split_at(self.fingerprint.len().min(48));
        line(format!("  fingerprint  {first}"));
        line(format!("               {second}"));
        let mut list = |title: &str, items: Vec<String>| {
            if items.is_empty() {
                return;
            }
            line(format!("{title}:"));
            let more = items.len().saturating_sub(LIST_MAX);
            items
                .into_iter()
                .take(LIST_MAX)
                .for_each(|item| line(format!("  {item}")));
            if more > 0 {
                line(format!("  and {more} more"));
            }
        };
        let pairs = |pairs: &[(String, String)]| -> Vec<String> {
            pairs
                .iter()
                .map(|(name, state)| format!("{name:14} {state}"))
                .collect()
        };
        list("services", pairs(&self.services));
        list("pools", pairs(&self.pools));
        list("alerts", self.alerts.clone());
        let _ = writeln!(text);
        text
    }
}

/// Adds a line; one that is too long goes on below, further in, and ends in dots at last.
fn wrap(words: &str, text: &mut String) {
    let mut rest: Vec<char> = words
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    for number in 1..=LINES_MAX {
        let indent = if number == 1 { "" } else { "      " };
        let width = WIDTH - indent.len();
        text.push_str(indent);
        if rest.len() <= width {
            text.extend(rest);
            text.push('\n');
            return;
        }
        let dots = if number == LINES_MAX { "..." } else { "" };
        let width = width - dots.len();
        let space = rest[..=width].iter().rposition(|c| *c == ' ');
        // The spaces before the first word are no place to break.
        let end = space.filter(|end| *end > width / 2).unwrap_or(width);
        text.extend(rest.drain(..end));
        text.push_str(dots);
        text.push('\n');
        let spaces = rest.iter().take_while(|c| **c == ' ').count();
        rest.drain(..spaces);
    }
}

/// Shows the screen on `consoles`, again only when it has changed.
pub async fn show(node: Arc<Node>, consoles: Vec<PathBuf>, port: u16) {
    if consoles.is_empty() {
        return;
    }
    let mut shown = None;
    let mut changes = node.changes();
    let mut code = node.gate.code();
    loop {
        let screen = look(&node, port).await;
        if shown.as_ref() != Some(&screen) {
            let text = screen.text();
            let consoles = consoles.clone();
            // A serial line takes its time.
            let drawn = tokio::task::spawn_blocking(move || {
                consoles.iter().for_each(|console| draw(console, &text));
            });
            if let Err(error) = drawn.await {
                tracing::debug!(%error, "the screen was not drawn");
            }
            shown = Some(screen);
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            _ = changes.changed() => {}
            _ = code.changed() => {}
        }
    }
}

fn draw(console: &Path, text: &str) {
    let mut options = std::fs::OpenOptions::new();
    // A terminal that waits for its carrier must not stop us, nor become ours.
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY;
    let Ok(mut file) = options.write(true).custom_flags(flags).open(console) else {
        return;
    };
    let clear = if is_virtual_terminal(console) {
        "\x1b[H\x1b[2J"
    } else {
        ""
    };
    let text = format!("{clear}{text}");
    let mut rest = text.as_bytes();
    for _ in 0..TRIES {
        match file.write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
            Err(_) => return,
        }
        if rest.is_empty() {
            return;
        }
    }
    // A console that takes nothing for so long loses the rest; the next screen is whole again.
}

/// `tty0` to `tty63` understand escape codes; of a serial line nobody knows.
fn is_virtual_terminal(console: &Path) -> bool {
    let name = console
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("");
    name.strip_prefix("tty")
        .is_some_and(|number| number.parse::<u8>().is_ok())
}

async fn look(node: &Node, port: u16) -> Screen {
    let current = node.current();
    let services = if node.init.is_there() {
        node.init.services().await.unwrap_or_default()
    } else {
        Vec::new()
    };
    let pools = pools(node).await;
    let alerts = crate::health::alerts(node).await;
    Screen {
        name: current.server_name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        addresses: node.network.borrow().addresses.clone(),
        port,
        fingerprint: current.identity.fingerprint.clone(),
        code: node.gate.code().borrow().clone(),
        services: services.into_iter().map(service).collect(),
        pools,
        alerts,
    }
}

fn service(service: ServiceReport) -> (String, String) {
    // The sentence of a service that runs counts its seconds: that would be a new screen each time.
    let is_well = matches!(service.state, ServiceState::Ready | ServiceState::Done);
    let state = if is_well || service.text.is_empty() {
        service.state.to_string()
    } else {
        service.text
    };
    (service.name, state)
}

async fn pools(node: &Node) -> Vec<(String, String)> {
    let pools = crate::health::pools(node).await.into_iter();
    pools
        .map(|pool| {
            let status = pool.status.unwrap_or_default();
            let state = if !pool.fault.is_empty() {
                // Why, an alert says.
                "faulted".to_owned()
            } else if status.reason.is_empty() {
                "ready".to_owned()
            } else {
                status.reason
            };
            (pool.spec.unwrap_or_default().name, state)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen() -> Screen {
        Screen {
            name: "stor-1".into(),
            version: "0.1.0".into(),
            addresses: vec!["192.0.2.10/24".into(), "2001:db8::1/64".into()],
            port: 50051,
            fingerprint: ["ab"; 32].join(":"),
            code: Some("0123-4567-89AB".into()),
            services: vec![("aditd".into(), "held: crashed 5 times in 60 s".into())],
            pools: vec![("p".into(), "ready".into())],
            alerts: vec!["no IOMMU\x1b[31m".into()],
        }
    }

    #[test]
    fn the_screen_says_how_to_come_in() {
        let text = screen().text();
        let half = ["ab"; 16].join(":");
        let expected = format!(
            "Adit 0.1.0  stor-1\nreached at 192.0.2.10:50051\nreached at [2001:db8::1]:50051\n\
             MAINTENANCE: not configured. To configure it from another machine:\n\
             \x20 code         0123-4567-89AB\n  fingerprint  {half}:\n               {half}\n\
             services:\n  aditd          held: crashed 5 times in 60 s\npools:\n  p              ready\n\
             alerts:\n  no IOMMU?[31m\n\n"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn a_configured_node_shows_no_code_and_lists_are_bounded() {
        let mut screen = screen();
        screen.code = None;
        screen.alerts = (0..20)
            .map(|n| format!("alert {n} {}", "x".repeat(100)))
            .collect();
        let text = screen.text();
        assert!(!text.contains("code"), "{text}");
        assert!(text.contains("and 15 more"));
        assert!(text.lines().count() <= 25 && text.lines().all(|line| line.len() <= WIDTH));
    }

    #[test]
    fn a_long_sentence_goes_on_below() {
        let mut text = String::new();
        let sentence = "word ".repeat(20);
        wrap(&format!("  {sentence}"), &mut text);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].ends_with("word") && lines[1].starts_with("      word"));
        let mut text = String::new();
        wrap(&"x".repeat(1000), &mut text);
        assert_eq!(text.lines().count(), LINES_MAX);
        assert!(text.ends_with("x...\n") && text.lines().all(|line| line.len() <= WIDTH));
    }

    #[test]
    fn only_a_virtual_terminal_gets_escape_codes() {
        assert!(is_virtual_terminal(Path::new("/dev/tty0")));
        for dumb in ["/dev/ttyS0", "/dev/console", "/dev/hvc0", "/dev/tty"] {
            assert!(!is_virtual_terminal(Path::new(dumb)), "{dumb}");
        }
        let folder = tempfile::tempdir().unwrap();
        for (name, clears) in [("ttyS0", false), ("tty1", true)] {
            let path = folder.path().join(name);
            std::fs::write(&path, "").unwrap();
            draw(&path, "a\n");
            let drawn = std::fs::read_to_string(&path).unwrap();
            assert_eq!(drawn.contains('\x1b'), clears, "{drawn:?}");
        }
    }
}
