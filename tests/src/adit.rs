//! `aditd` on the host, and `aditctl` to talk to it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{Grpc, HarnessError, KilledChild, POLL_INTERVAL, patience};

const START_DEADLINE_SECONDS: u64 = 60;
const STOP_DEADLINE_SECONDS: u64 = 60;
const LOG_TAIL_LINES: usize = 60;

/// How an `aditd` is started. [`AditBuilder::start`] does it.
#[derive(Debug, Clone)]
pub struct AditBuilder {
    arguments: Vec<String>,
    reactors: String,
}

impl AditBuilder {
    /// Adds an argument to `aditd`'s command line.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Has `aditd` run these reactors: a mask, or how many.
    #[must_use]
    pub fn reactors(mut self, mask_or_count: &str) -> Self {
        self.reactors = mask_or_count.to_owned();
        self
    }

    /// Starts `aditd` with an empty state directory and waits until it answers.
    ///
    /// # Errors
    ///
    /// When it cannot be found or started, ends, or does not answer in time.
    pub fn start(self) -> Result<Adit, HarnessError> {
        let folder = tempfile::Builder::new().prefix("adit-state-").tempdir();
        let folder =
            folder.map_err(HarnessError::file("make a folder in", std::env::temp_dir()))?;
        let state_dir = folder.path().join("state");
        fs::create_dir(&state_dir).map_err(HarnessError::file("make", &state_dir))?;
        let mut adit = Adit {
            process: None,
            folder: Some(folder),
            state_dir,
            options: self,
        };
        adit.start()?;
        Ok(adit)
    }
}

/// An `aditd` with a state directory of its own. Dropping it kills the process and removes the
/// state.
#[derive(Debug)]
pub struct Adit {
    process: Option<KilledChild>,
    /// None once it is given up for the reader of a failed test.
    folder: Option<TempDir>,
    state_dir: PathBuf,
    options: AditBuilder,
}

impl Adit {
    /// An `aditd` with one reactor.
    pub fn builder() -> AditBuilder {
        AditBuilder {
            arguments: Vec::new(),
            reactors: "0x1".to_owned(),
        }
    }

    /// The state directory; also a place for the files of file devices.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Runs `aditctl` with these words; its standard output is the answer.
    ///
    /// # Errors
    ///
    /// When it fails, with what it printed.
    pub fn ctl(&self, words: &[&str]) -> Result<String, HarnessError> {
        let program = program("aditctl");
        let server = format!("unix:{}", self.socket().display());
        let output = Command::new(&program)
            .args(["--server", &server])
            .args(words)
            .stdin(Stdio::null())
            .output()
            .map_err(|source| HarnessError::Spawn {
                program: program.display().to_string(),
                source,
            })?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(stdout);
        }
        Err(HarnessError::Failed {
            command: format!("aditctl {}", words.join(" ")),
            status: output.status.to_string(),
            stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Makes a subsystem that any host may use, with `bdev` as namespace 1 and a listener; returns
    /// its port.
    ///
    /// # Errors
    ///
    /// When one of the calls fails.
    pub fn export(&self, nqn: &str, bdev: &str) -> Result<u16, HarnessError> {
        self.ctl(&["subsystem", "create", nqn, "--allow-any-host"])?;
        self.expose(nqn, bdev)
    }

    /// Adds `bdev` as namespace 1, and a listener, to a subsystem; returns its port.
    ///
    /// # Errors
    ///
    /// When one of the calls fails.
    pub fn expose(&self, nqn: &str, bdev: &str) -> Result<u16, HarnessError> {
        self.ctl(&["namespace", "add", nqn, bdev, "--nsid", "1"])?;
        self.listen(nqn)
    }

    /// Adds a listener on a free port of 127.0.0.1 to a subsystem; returns the port.
    ///
    /// # Errors
    ///
    /// When the call fails.
    pub fn listen(&self, nqn: &str) -> Result<u16, HarnessError> {
        let port = free_port()?;
        let address = format!("tcp://127.0.0.1:{port}");
        self.ctl(&["listener", "add", nqn, &address, "--wait"])?;
        Ok(port)
    }

    /// Runs `aditctl` and reads its answer as JSON.
    ///
    /// # Errors
    ///
    /// When it fails, or answers with something else than JSON.
    pub fn ctl_json(&self, words: &[&str]) -> Result<serde_json::Value, HarnessError> {
        let answer = self.ctl(&[words, &["-o", "json"]].concat())?;
        serde_json::from_str(&answer).map_err(|_| HarnessError::Answer {
            command: format!("aditctl {} -o json", words.join(" ")),
            answer,
        })
    }

    /// Runs `aditctl`, which must fail; its standard error is the answer.
    ///
    /// # Panics
    ///
    /// When it succeeds.
    #[track_caller]
    pub fn ctl_fails(&self, words: &[&str]) -> String {
        match self.ctl(words) {
            Ok(stdout) => panic!("aditctl {} succeeded: {stdout}", words.join(" ")),
            Err(HarnessError::Failed { stderr, .. }) => stderr,
            Err(error) => panic!("{error:?}"),
        }
    }

    /// A new connection to its management API.
    ///
    /// # Panics
    ///
    /// When it cannot be had.
    #[track_caller]
    pub fn grpc(&self) -> Grpc {
        Grpc::connect(&self.socket()).expect("a running aditd takes connections")
    }

    /// Its process ID.
    ///
    /// # Panics
    ///
    /// When it does not run.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("aditd runs").id()
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.process
            .as_mut()
            .is_some_and(|process| process.ended().is_none())
    }

    /// Ends it with SIGKILL, as a power cut would, and waits until it is gone.
    pub fn kill_9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill_9();
        }
    }

    /// Ends it with SIGTERM and waits for it to drain.
    ///
    /// # Errors
    ///
    /// When it does not end in time, or with another status than 0.
    pub fn terminate(&mut self) -> Result<(), HarnessError> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        process.signal(Signal::SIGTERM);
        let status = process.wait("aditd", patience(STOP_DEADLINE_SECONDS))?;
        if status.success() {
            return Ok(());
        }
        let (what, status) = ("it to drain".to_owned(), status.to_string());
        Err(HarnessError::Ended {
            program: "aditd",
            status,
            what,
        })
    }

    /// Starts it, with the state that it left, and waits until it answers.
    ///
    /// # Errors
    ///
    /// When it cannot be started, ends, or does not answer in time.
    pub fn start(&mut self) -> Result<(), HarnessError> {
        let log_path = self.log_path();
        let log = File::options().create(true).append(true).open(&log_path);
        let log = log.map_err(HarnessError::file("open", &log_path))?;
        let again = log
            .try_clone()
            .map_err(HarnessError::file("open", &log_path))?;
        let grpc = format!("unix:{}", self.socket().display());
        let mut process = KilledChild::spawn(&program("aditd").display().to_string(), |command| {
            command.arg("--state-dir").arg(&self.state_dir).args([
                "--grpc",
                &grpc,
                "--reactors",
                &self.options.reactors,
            ]);
            command
                .args(&self.options.arguments)
                .stdout(log)
                .stderr(again);
        })?;
        let start = Instant::now();
        let limit = patience(START_DEADLINE_SECONDS);
        while !Grpc::connect(&self.socket()).is_ok_and(|grpc| grpc.serving()) {
            let what = "it to answer".to_owned();
            if let Some(status) = process.ended() {
                let (program, status) = ("aditd", status.to_string());
                return Err(HarnessError::Ended {
                    program,
                    status,
                    what,
                });
            }
            if start.elapsed() > limit {
                let what = format!("aditd: {what}");
                return Err(HarnessError::Deadline {
                    what,
                    waited: start.elapsed(),
                });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        self.process = Some(process);
        Ok(())
    }

    /// Everything that it has logged.
    pub fn log(&self) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.state_dir.with_file_name("aditd.log")
    }

    /// The socket of its management API.
    pub fn socket(&self) -> PathBuf {
        self.state_dir.join("aditd.sock")
    }
}

impl Drop for Adit {
    fn drop(&mut self) {
        let never_started = self.process.is_none() && !self.log().is_empty();
        self.kill_9();
        if std::thread::panicking() || never_started {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
            eprintln!("--- end of aditd's log ---\n{}", tail.join("\n"));
            if let Some(folder) = self.folder.take() {
                eprintln!(
                    "--- state and log are kept in {} ---",
                    folder.keep().display()
                );
            }
        }
    }
}

/// A TCP port of 127.0.0.1 that nobody listens on just now.
///
/// # Errors
///
/// When the kernel has none.
pub fn free_port() -> Result<u16, HarnessError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(HarnessError::file("take a free port of", "127.0.0.1"))
}

/// The path of a program of this project: in `ADIT_BIN_DIR`, else beside the running test, else release before
/// debug.
pub fn program(name: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os("ADIT_BIN_DIR") {
        return Path::new(&folder).join(name);
    }
    let test = std::env::current_exe().unwrap_or_default();
    let profile_dir = test
        .ancestors()
        .find(|path| path.file_name() == Some(OsStr::new("deps")));
    if let Some(profile_dir) = profile_dir.and_then(Path::parent) {
        let target_dir = profile_dir.with_file_name("");
        let candidates = [
            profile_dir.join(name),
            target_dir.join("release").join(name),
            target_dir.join("debug").join(name),
        ];
        if let Some(found) = candidates.into_iter().find(|path| path.exists()) {
            return found;
        }
    }
    PathBuf::from(name)
}
