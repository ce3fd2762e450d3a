//! Where init speaks: the kernel log, and the console for what a person must see.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

/// Longest line that goes into the kernel log, in bytes; the kernel's own bound is a little above.
const LINE_BYTES_MAX: usize = 900;

/// How much a line matters. The numbers are those of syslog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Error = 3,
    Warning = 4,
    Notice = 5,
    Info = 6,
}

/// Speaks. Nothing here blocks for long or fails: who cannot be heard goes on.
#[derive(Debug)]
pub(crate) struct Log {
    kmsg: Option<File>,
    console: Option<File>,
    /// The kernel shows what is below this by itself.
    console_loglevel: u8,
}

impl Log {
    /// Opens what there is; opened again, it finds what came later.
    pub(crate) fn open() -> Self {
        let open = |path: &str| {
            OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
                .open(path)
                .ok()
        };
        let console_loglevel = std::fs::read_to_string("/proc/sys/kernel/printk")
            .ok()
            .and_then(|text| text.split_whitespace().next()?.parse().ok())
            .unwrap_or(7);
        Self {
            kmsg: open("/dev/kmsg"),
            console: open("/dev/console"),
            console_loglevel,
        }
    }

    /// A line of init.
    pub(crate) fn say(&mut self, level: Level, text: &str) {
        self.line(level, "adit-init", text, level <= Level::Notice);
    }

    /// A line of a service: into the kernel log only.
    pub(crate) fn pass_on(&mut self, service: &str, text: &str) {
        self.line(Level::Info, service, text, false);
    }

    fn line(&mut self, level: Level, who: &str, text: &str, for_people: bool) {
        for text in text.lines() {
            let mut end = text.len().min(LINE_BYTES_MAX);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            let text = &text[..end];
            let logged = match &mut self.kmsg {
                // Facility "daemon" (3): the kernel keeps 0 for itself.
                Some(kmsg) => kmsg
                    .write_all(format!("<{}>{who}: {text}\n", 3 << 3 | level as u8).as_bytes())
                    .is_ok(),
                None => false,
            };
            let shown = logged && (level as u8) < self.console_loglevel;
            if for_people && !shown {
                match &mut self.console {
                    // A console that is full or gone is no reason to wait.
                    Some(console) => {
                        let _ = console.write_all(format!("{who}: {text}\r\n").as_bytes());
                    }
                    None => eprintln!("{who}: {text}"),
                }
            }
        }
    }
}

/// Standard input is nothing, output and errors are the console.
pub(crate) fn take_console() {
    if let Ok(null) = File::open("/dev/null") {
        let _ = nix::unistd::dup2_stdin(&null);
    }
    let console = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open("/dev/console");
    if let Ok(console) = console {
        let _ = nix::unistd::dup2_stdout(&console);
        let _ = nix::unistd::dup2_stderr(&console);
    }
}

/// What a panic said goes to the kernel log and the console, whatever else happens.
pub(crate) fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        Log::open().say(Level::Error, &format!("internal error: {panic}"));
    }));
}
