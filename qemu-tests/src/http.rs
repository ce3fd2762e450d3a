//! A web server for machines that boot from the network: the files of one folder, on a port of the
//! host's 127.0.0.1.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::HarnessError;

/// Longest header that is read, in lines.
const LINES_MAX: usize = 64;
/// A client that is silent for so long has gone.
const SILENCE: Duration = Duration::from_secs(60);

/// The server. It ends when this is dropped.
#[derive(Debug)]
pub struct HttpServer {
    port: u16,
    ends: Arc<AtomicBool>,
    requests: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// Serves the files of a folder, not those of folders in it.
    ///
    /// # Errors
    ///
    /// When there is no port.
    pub fn start(folder: &Path) -> Result<Self, HarnessError> {
        let failed = HarnessError::file("serve", folder);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let bound = listener.and_then(|listener| Ok((listener.local_addr()?.port(), listener)));
        let (port, listener) = bound.map_err(failed)?;
        let ends = Arc::new(AtomicBool::new(false));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (stop, seen, folder) = (Arc::clone(&ends), Arc::clone(&requests), folder.to_owned());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                // Firmware opens one connection after the other, and closes them when it likes.
                let Ok(stream) = stream else { continue };
                let (seen, folder) = (Arc::clone(&seen), folder.clone());
                std::thread::spawn(move || talk(stream, &folder, &seen));
            }
        });
        Ok(Self {
            port,
            ends,
            requests,
            thread: Some(thread),
        })
    }

    /// Its port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// What was asked for so far: "GET adit.efi".
    pub fn requests(&self) -> Vec<String> {
        let requests = self.requests.lock();
        requests.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        // Wakes it out of accept().
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Answers the requests of one connection.
fn talk(stream: TcpStream, folder: &Path, seen: &Mutex<Vec<String>>) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    let mut output = stream.try_clone()?;
    let mut input = BufReader::new(stream);
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if input.read_line(&mut line)? == 0 || lines.len() > LINES_MAX {
                return Ok(());
            }
            if line.trim().is_empty() {
                break;
            }
            lines.push(line);
        }
        let request = lines.first().cloned().unwrap_or_default();
        let mut words = request.split_whitespace();
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let name = path.trim_start_matches('/');
        let told = format!("{method} {name}");
        let mut all = seen.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(told);
        drop(all);
        let file: PathBuf = folder.join(name);
        let bytes = (!name.contains('/'))
            .then(|| fs::read(&file).ok())
            .flatten();
        match bytes {
            Some(bytes) => {
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\
                     Content-Type: application/octet-stream\r\n\r\n",
                    bytes.len()
                );
                output.write_all(head.as_bytes())?;
                if method == "GET" {
                    output.write_all(&bytes)?;
                }
            }
            None => output.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn ask(server: &HttpServer, request: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port())).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn files_of_the_folder_are_served_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "hello").unwrap();
        let server = HttpServer::start(folder.path()).unwrap();
        let answer = ask(&server, "GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
        let answer = ask(&server, "HEAD /a HTTP/1.1\r\n\r\n");
        assert!(answer.contains("Content-Length: 5") && !answer.contains("hello"));
        for path in ["/b", "/../etc/passwd", "/"] {
            let answer = ask(&server, &format!("GET {path} HTTP/1.1\r\n\r\n"));
            assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        }
        assert_eq!(server.requests()[..2], ["GET a", "HEAD a"]);
    }
}
