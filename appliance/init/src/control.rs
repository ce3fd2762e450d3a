//! The control socket: `/run/adit/init.sock`, a JSON object a line each way, for root only.
//!
//! `{"call":"services"}` is answered by `{"answer":"services",...}`. One answer for each request, in
//! their order; a connection may stay.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use nix::poll::PollFlags;
use serde::{Deserialize, Serialize};

use crate::config::{Problem, Value};
use crate::identity::Identity;
use crate::ring::Line;
use crate::status::Status;
use crate::supervisor::ServiceReport;

/// Where the socket is.
pub const SOCKET: &str = "/run/adit/init.sock";
/// Most connections; one more takes the place of the one that was silent the longest.
const CONNECTIONS_MAX: usize = 16;
/// Longest request in bytes; a longer one ends its connection.
const REQUEST_BYTES_MAX: usize = 512 << 10;
/// Answers that are not read stop the reading of requests at this many bytes.
const UNREAD_BYTES_MAX: usize = 1 << 20;
/// Most lines of one answer to [`Request::Logs`].
pub const LOG_LINES_MAX: usize = 1000;

/// What can be asked of init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Request {
    /// Every status, by group.
    Status,
    /// Who this node is.
    Identity,
    /// The services.
    Services,
    /// What a service printed after line `after` (0: all that there is), the oldest first.
    Logs {
        /// The service.
        service: String,
        /// Number of the last line that is known.
        #[serde(default)]
        after: u64,
        /// Most lines; [`LOG_LINES_MAX`] at most.
        max: usize,
    },
    /// Starts a service that does not run, a held one too; ends and starts one that runs.
    Restart {
        /// The service.
        service: String,
    },
    /// Ends a service, which stays so until it is restarted.
    Stop {
        /// The service.
        service: String,
    },
    /// What holds of the configuration, and what does not.
    Configuration,
    /// Takes a TOML document as the agent's part of the configuration, in place of the one before.
    Configure {
        /// The document.
        document: String,
        /// Only say what would hold.
        #[serde(default)]
        dry_run: bool,
    },
    /// Looks at the hardware again and does what is to be done.
    Prepare,
    /// Loads the kernel's driver for drives, which then takes none by itself, or unloads it. No boot does.
    DriveModule {
        /// Whether it is to be there.
        loaded: bool,
    },
    /// A service says how it is. One that stops doing so is ended and started again.
    Health {
        /// The service.
        service: String,
        /// Whether it is well.
        ok: bool,
        /// In a sentence.
        #[serde(default)]
        text: String,
    },
    /// The clock was set from a trusted source.
    TimeSynced {
        /// Which.
        by: String,
    },
    /// Ends everything in order, and the power.
    Poweroff,
    /// Ends everything in order, and starts again.
    Reboot,
    /// Ends everything in order, and stops.
    Halt,
}

/// What init answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Answer {
    /// It is done, or under way.
    Done {
        /// What.
        text: String,
    },
    /// It is not done.
    Error {
        /// Why, and what to do.
        text: String,
    },
    /// To [`Request::Status`].
    Status {
        /// Statuses by group.
        groups: BTreeMap<String, Vec<Status>>,
    },
    /// To [`Request::Identity`].
    Identity {
        /// Who this node is.
        identity: Identity,
    },
    /// To [`Request::Services`].
    Services {
        /// In the order of the table.
        services: Vec<ServiceReport>,
    },
    /// To [`Request::Logs`].
    Logs {
        /// Lines, the oldest first.
        lines: Vec<Line>,
        /// Lines after `after` that are gone for ever.
        lost: u64,
    },
    /// To [`Request::Configuration`] and [`Request::Configure`].
    Configuration {
        /// The whole document as it holds, as TOML.
        document: String,
        /// What somebody said, and who.
        values: Vec<Value>,
        /// What does not hold.
        problems: Vec<Problem>,
        /// What takes effect only after a reboot or a restart of a service.
        later: Vec<String>,
    },
}

/// A call that was not answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// Nobody is there.
    #[error("cannot reach init at {path}: is this an appliance, and are you root?")]
    Connect {
        /// The socket.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke, or took too long.
    #[error("init at {path} did not answer")]
    Talk {
        /// The socket.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The answer is not understood.
    #[error("the answer of init is not understood: {text:?}")]
    Answer {
        /// Its first bytes.
        text: String,
        /// Where it is wrong.
        source: serde_json::Error,
    },
}

/// Asks init, and waits for the answer. Blocks for `timeout` at most for each step.
///
/// # Errors
/// When there is no answer. [`Answer::Error`] is an answer.
pub fn call(path: &Path, request: &Request, timeout: Duration) -> Result<Answer, CallError> {
    let name = || path.display().to_string();
    let talk = |source| CallError::Talk {
        path: name(),
        source,
    };
    let mut stream = UnixStream::connect(path).map_err(|source| CallError::Connect {
        path: name(),
        source,
    })?;
    stream.set_read_timeout(Some(timeout)).map_err(talk)?;
    stream.set_write_timeout(Some(timeout)).map_err(talk)?;
    let mut line = serde_json::to_vec(request).expect("a request has no maps with odd keys");
    line.push(b'\n');
    stream.write_all(&line).map_err(talk)?;
    let mut answer = String::new();
    let mut reader = BufReader::new(stream).take(16 << 20);
    reader.read_line(&mut answer).map_err(talk)?;
    if answer.is_empty() {
        return Err(talk(ErrorKind::UnexpectedEof.into()));
    }
    serde_json::from_str(&answer).map_err(|source| CallError::Answer {
        text: answer.chars().take(200).collect(),
        source,
    })
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    unparsed: Vec<u8>,
    unsent: Vec<u8>,
    /// Number of the last turn in which it was heard.
    heard: u64,
    ends: bool,
}

/// The socket and its connections. Never blocks.
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    connections: Vec<Connection>,
    turn: u64,
}

impl Server {
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            connections: Vec::new(),
            turn: 0,
        })
    }

    /// What to wait for.
    pub(crate) fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let connections = self.connections.iter().map(|connection| {
            let mut flags = PollFlags::empty();
            if connection.takes_more() {
                flags |= PollFlags::POLLIN;
            }
            if !connection.unsent.is_empty() {
                flags |= PollFlags::POLLOUT;
            }
            (connection.stream.as_fd(), flags)
        });
        std::iter::once((self.listener.as_fd(), PollFlags::POLLIN)).chain(connections)
    }

    /// Takes connections, answers what was asked, sends what can be sent.
    pub(crate) fn serve(&mut self, handle: &mut dyn FnMut(Request) -> Answer) {
        self.turn += 1;
        for _ in 0..CONNECTIONS_MAX {
            let Ok((stream, _)) = self.listener.accept() else {
                break;
            };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.connections.len() == CONNECTIONS_MAX {
                let heard = self.connections.iter().enumerate();
                if let Some((oldest, _)) = heard.min_by_key(|(_, each)| each.heard) {
                    self.connections.swap_remove(oldest);
                }
            }
            self.connections.push(Connection {
                stream,
                unparsed: Vec::new(),
                unsent: Vec::new(),
                heard: self.turn,
                ends: false,
            });
        }
        let turn = self.turn;
        self.connections
            .retain_mut(|connection| connection.serve(turn, handle));
    }
}

impl Connection {
    fn takes_more(&self) -> bool {
        !self.ends && self.unsent.len() < UNREAD_BYTES_MAX
    }

    /// False when it is to be closed.
    fn serve(&mut self, turn: u64, handle: &mut dyn FnMut(Request) -> Answer) -> bool {
        let mut bytes = [0; 16 << 10];
        if self.takes_more() {
            match self.stream.read(&mut bytes) {
                Ok(0) => self.ends = true,
                Ok(count) => {
                    self.heard = turn;
                    self.unparsed.extend_from_slice(&bytes[..count]);
                }
                Err(error) if is_later(&error) => {}
                Err(_) => return false,
            }
        }
        while self.unsent.len() < UNREAD_BYTES_MAX
            && let Some(end) = self.unparsed.iter().position(|byte| *byte == b'\n')
        {
            let line: Vec<u8> = self.unparsed.drain(..=end).collect();
            let answer = match serde_json::from_slice(&line) {
                Ok(request) => handle(request),
                Err(error) => Answer::Error {
                    text: format!("this is no request: {error}"),
                },
            };
            let encoded = serde_json::to_vec(&answer);
            self.unsent.extend_from_slice(
                &encoded.unwrap_or_else(|_| br#"{"answer":"error","text":""}"#.into()),
            );
            self.unsent.push(b'\n');
        }
        if self.unparsed.len() > REQUEST_BYTES_MAX {
            return false;
        }
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(0) => return false,
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if is_later(&error) => break,
                Err(_) => return false,
            }
        }
        !(self.ends && self.unsent.is_empty())
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> (tempfile::TempDir, Server, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("init.sock");
        let server = Server::bind(&path).unwrap();
        (folder, server, path)
    }

    fn done(request: Request) -> Answer {
        Answer::Done {
            text: format!("{request:?}"),
        }
    }

    fn line(stream: &mut BufReader<UnixStream>) -> Answer {
        let mut text = String::new();
        stream.read_line(&mut text).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn requests_are_answered_in_order_also_in_pieces_and_wrong_ones() {
        let (_folder, mut server, path) = server();
        let mut client = BufReader::new(UnixStream::connect(&path).unwrap());
        client
            .get_mut()
            .write_all(b"{\"call\":\"status\"}\n{\"call\":\"stop\",\"servi")
            .unwrap();
        server.serve(&mut done);
        client
            .get_mut()
            .write_all(b"ce\":\"a\"}\nnonsense\n{\"call\":\"fly\"}\n")
            .unwrap();
        server.serve(&mut done);
        assert_eq!(line(&mut client), done(Request::Status));
        assert_eq!(
            line(&mut client),
            done(Request::Stop {
                service: "a".to_owned()
            })
        );
        for _ in 0..2 {
            assert!(matches!(line(&mut client), Answer::Error { .. }));
        }
        drop(client);
        server.serve(&mut done);
        assert_eq!(server.connections.len(), 0);
    }

    #[test]
    fn a_request_without_end_closes_its_connection() {
        let (_folder, mut server, path) = server();
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while sent <= REQUEST_BYTES_MAX + (64 << 10) {
            match client.write(&[b'x'; 8192]) {
                Ok(count) => sent += count,
                Err(error) if is_later(&error) => {}
                Err(_) => break,
            }
            server.serve(&mut done);
        }
        assert_eq!(server.connections.len(), 0);
    }

    #[test]
    fn one_that_does_not_read_is_not_read_either() {
        let (_folder, mut server, path) = server();
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_nonblocking(true).unwrap();
        let mut answered = 0;
        for _ in 0..2000 {
            let _ = client.write(b"{\"call\":\"status\"}\n");
            server.serve(&mut |_| {
                answered += 1;
                Answer::Done {
                    text: "x".repeat(100_000),
                }
            });
        }
        assert!(answered < 20, "{answered}");
        assert!(server.connections[0].unsent.len() < UNREAD_BYTES_MAX + 200_000);
    }

    #[test]
    fn one_connection_too_many_takes_the_place_of_a_silent_one() {
        let (_folder, mut server, path) = server();
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            clients.push(UnixStream::connect(&path).unwrap());
            server.serve(&mut done);
        }
        clients[0].write_all(b"{\"call\":\"status\"}\n").unwrap();
        server.serve(&mut done);
        clients.push(UnixStream::connect(&path).unwrap());
        server.serve(&mut done);
        assert_eq!(server.connections.len(), CONNECTIONS_MAX);
        // The second was silent the longest.
        assert_eq!(clients[1].read(&mut [0; 8]).unwrap(), 0);
    }

    #[test]
    fn a_call_is_answered() {
        let (_folder, mut server, path) = server();
        let client =
            std::thread::spawn(move || call(&path, &Request::Services, Duration::from_secs(60)));
        while !client.is_finished() {
            let fds: Vec<_> = server.interests().collect();
            let mut fds: Vec<_> = fds
                .into_iter()
                .map(|(fd, flags)| nix::poll::PollFd::new(fd, flags))
                .collect();
            nix::poll::poll(&mut fds, 10u8).unwrap();
            server.serve(&mut done);
        }
        assert_eq!(client.join().unwrap().unwrap(), done(Request::Services));
    }
}
