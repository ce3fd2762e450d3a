//! A child process that does not outlive the test.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{HarnessError, POLL_INTERVAL};

/// A process that is killed when this is dropped, and by the kernel when the test's thread ends.
#[derive(Debug)]
pub struct KilledChild {
    child: Child,
    ended: Option<ExitStatus>,
}

impl KilledChild {
    /// Starts `program` in a process group of its own; `adjust` sets arguments and redirections.
    /// Standard input is empty.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn spawn(program: &str, adjust: impl FnOnce(&mut Command)) -> Result<Self, HarnessError> {
        // The test may be killed outright, by a runner's time-out for one: then no Drop runs.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", program])
            .process_group(0)
            .stdin(Stdio::null());
        adjust(&mut command);
        let child = command.spawn().map_err(|source| HarnessError::Spawn {
            program: program.to_owned(),
            source,
        })?;
        Ok(Self { child, ended: None })
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Its process ID.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Takes a pipe that `adjust` made of its standard output.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Sends it a signal, if it still runs.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            let pid = i32::try_from(self.child.id()).expect("a process id is a small number");
            // It may end between the look and the signal; it is not reaped yet, so the id is still
            // its own.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Ends it with SIGKILL and waits until it is gone.
    pub fn kill_9(&mut self) {
        if self.ended().is_none() {
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    ///
    /// When it has not after `deadline`.
    pub fn wait(
        &mut self,
        program: &'static str,
        deadline: Duration,
    ) -> Result<ExitStatus, HarnessError> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            if start.elapsed() > deadline {
                let what = format!("{program} to end");
                return Err(HarnessError::Deadline {
                    what,
                    waited: start.elapsed(),
                });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for KilledChild {
    fn drop(&mut self) {
        self.kill_9();
    }
}
