//! A disk with a volatile write cache, for a guest: what was not flushed may be lost in a power cut.
//!
//! QEMU's own caches do not lose anything when QEMU is killed: the host's page cache lives on. So the
//! disk is a server of the NBD protocol (newstyle, the NBD project's doc/proto.md) that keeps what is
//! unflushed apart, in memory, and loses a part of it, drawn from a seed, when the power is cut.
//!
//! It takes one request after the other: a FLUSH covers every write that was answered before.

use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use simulation::{Image, Random};
use tempfile::TempDir;

use crate::HarnessError;

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// NBD_FLAG_FIXED_NEWSTYLE, NBD_FLAG_NO_ZEROES.
const HANDSHAKE_FLAGS: u16 = 0b11;
/// NBD_FLAG_HAS_FLAGS, NBD_FLAG_SEND_FLUSH, NBD_FLAG_SEND_FUA.
const TRANSMISSION_FLAGS: u16 = 0b1101;
const OPTION_ABORT: u32 = 2;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = (1 << 31) + 1;
const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_FLUSH: u16 = 3;
const FLAG_FUA: u16 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
/// QEMU sends no more in one request.
const REQUEST_BYTES_MAX: usize = 32 << 20;
const OPTION_BYTES_MAX: usize = 4096;
const SECTOR_BYTES: u64 = 512;

/// The power of a machine: of all its disks at once.
#[derive(Debug, Default)]
pub struct Power {
    state: Mutex<PowerState>,
    goes_off: Condvar,
}

#[derive(Debug, Default)]
struct PowerState {
    is_off: bool,
    /// It goes off while this many writes more have come.
    writes_left: Option<u64>,
}

impl Power {
    /// It is on.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Has the power go off with the n-th write from now on that reaches a disk: that one is in the
    /// disk's cache, and is not answered.
    pub fn off_at_write(&self, number: u64) {
        self.lock().writes_left = Some(number);
    }

    /// Waits until it is off; false when it is still on at the deadline.
    #[must_use]
    pub fn wait_until_off(&self, deadline: Duration) -> bool {
        let state = self.lock();
        let waited = self
            .goes_off
            .wait_timeout_while(state, deadline, |state| !state.is_off);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_off
    }

    fn on(&self) {
        *self.lock() = PowerState::default();
    }

    fn is_off(&self) -> bool {
        self.lock().is_off
    }

    fn count_write(&self) {
        let mut state = self.lock();
        if let Some(left) = &mut state.writes_left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                state.is_off = true;
                self.goes_off.notify_all();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, PowerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A disk. Dropping it ends its server; a guest that still uses it gets I/O errors.
pub struct VolatileDisk {
    name: String,
    folder: TempDir,
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
}

struct Shared {
    power: Arc<Power>,
    content: Mutex<Content>,
    /// The connection being served, to end it.
    connection: Mutex<Option<UnixStream>>,
    ends: Mutex<bool>,
    /// Every request is answered with an error.
    is_dead: AtomicBool,
}

struct Content {
    durable: Image,
    /// What reads see.
    current: Image,
    /// Writes that no flush has covered, in their order.
    unflushed: Vec<(u64, Vec<u8>)>,
    /// Power cuts so far. What a connection of before still has to say is not heard.
    cuts: u64,
}

impl VolatileDisk {
    /// A disk of zeroes.
    ///
    /// # Errors
    ///
    /// When there can be no socket.
    pub fn new(name: &str, bytes: u64, power: &Arc<Power>) -> Result<Self, HarnessError> {
        let folder = tempfile::Builder::new().prefix("adit-disk-").tempdir();
        let folder =
            folder.map_err(HarnessError::file("make a folder in", std::env::temp_dir()))?;
        let socket = folder.path().join("nbd");
        let listener = UnixListener::bind(&socket);
        let listener = listener.map_err(HarnessError::file("listen on", &socket))?;
        let image = Image::new(bytes);
        let shared = Arc::new(Shared {
            power: Arc::clone(power),
            content: Mutex::new(Content {
                durable: image.clone(),
                current: image,
                unflushed: Vec::new(),
                cuts: 0,
            }),
            connection: Mutex::new(None),
            ends: Mutex::new(false),
            is_dead: AtomicBool::new(false),
        });
        let served = Arc::clone(&shared);
        let server = std::thread::spawn(move || served.serve(&listener));
        Ok(Self {
            name: name.to_owned(),
            folder,
            shared,
            server: Some(server),
        })
    }

    /// Writes to its medium, as before the machine is switched on.
    pub fn put(&self, offset: u64, bytes: &[u8]) {
        let mut content = lock(&self.shared.content);
        content.durable.write_at(offset, bytes);
        content.current.write_at(offset, bytes);
    }

    /// What a power cut leaves there.
    pub fn durable(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let mut found = vec![0; bytes];
        lock(&self.shared.content)
            .durable
            .read_at(offset, &mut found);
        found
    }

    /// Its name: the name of the NBD export too.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("nbd")
    }

    /// Has it answer every request from now on with an error, as a drive whose medium is gone, or
    /// carry them out again.
    pub fn set_dead(&self, is_dead: bool) {
        self.shared.is_dead.store(is_dead, Ordering::Relaxed);
    }

    /// How many writes would be lost, in whole or in part, if the power were cut now.
    pub fn unflushed(&self) -> usize {
        lock(&self.shared.content).unflushed.len()
    }

    /// Loses, of what was not flushed, a part that the seed chooses, sector by sector or page by
    /// page, and turns the power on again; the guest must be gone. Returns how many writes were
    /// unflushed, and how many parts of them were lost.
    pub fn lose_unflushed(&self, seed: u64) -> (usize, usize) {
        if let Some(connection) = lock(&self.shared.connection).take() {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        let mut content = lock(&self.shared.content);
        let mut random = Random::new(seed);
        let share = [0, 16, 64, 128, 192, 240][random.below(6) as usize];
        let part_bytes = [SECTOR_BYTES, 4096][random.below(2) as usize];
        let unflushed = std::mem::take(&mut content.unflushed);
        let mut lost = 0;
        for (offset, data) in &unflushed {
            for (part, at) in data
                .chunks(part_bytes as usize)
                .zip((*offset..).step_by(part_bytes as usize))
            {
                if random.chance(share) {
                    content.durable.write_at(at, part);
                } else {
                    lost += 1;
                }
            }
        }
        content.current = content.durable.clone();
        content.cuts += 1;
        drop(content);
        self.shared.power.on();
        (unflushed.len(), lost)
    }
}

impl Drop for VolatileDisk {
    fn drop(&mut self) {
        *lock(&self.shared.ends) = true;
        if let Some(connection) = lock(&self.shared.connection).take() {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        // Wakes the server out of accept().
        drop(UnixStream::connect(self.socket()));
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

impl fmt::Debug for VolatileDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolatileDisk")
            .field("name", &self.name)
            .field("socket", &self.socket())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn serve(&self, listener: &UnixListener) {
        for stream in listener.incoming() {
            if *lock(&self.ends) {
                return;
            }
            let Ok(stream) = stream else { continue };
            let Ok(again) = stream.try_clone() else {
                continue;
            };
            *lock(&self.connection) = Some(again);
            // A connection ends with its guest, in the middle of anything.
            if let Err(error) = self.talk(stream)
                && !matches!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof
                        | io::ErrorKind::BrokenPipe
                        | io::ErrorKind::ConnectionReset
                )
            {
                eprintln!("the disk's connection ended: {error}");
            }
        }
    }

    fn talk(&self, stream: UnixStream) -> io::Result<()> {
        let mut output = stream.try_clone()?;
        let mut input = BufReader::with_capacity(1 << 20, stream);
        if !self.negotiate(&mut input, &mut output)? {
            return Ok(());
        }
        let cuts = lock(&self.content).cuts;
        loop {
            let magic = u32::from_be_bytes(read(&mut input)?);
            if magic != REQUEST_MAGIC {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let flags = u16::from_be_bytes(read(&mut input)?);
            let command = u16::from_be_bytes(read(&mut input)?);
            let cookie: [u8; 8] = read(&mut input)?;
            let offset = u64::from_be_bytes(read(&mut input)?);
            let length = u32::from_be_bytes(read(&mut input)?) as usize;
            if length > REQUEST_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let end = offset.saturating_add(length as u64);
            let mut data = Vec::new();
            if command == COMMAND_WRITE {
                data.resize(length, 0);
                input.read_exact(&mut data)?;
            }
            if command == COMMAND_DISCONNECT {
                return Ok(());
            }
            let content = lock(&self.content);
            if content.cuts != cuts {
                return Ok(());
            }
            let Some(answer) = self.run(content, command, flags, offset..end, data) else {
                // No power: nothing is answered until QEMU is gone.
                continue;
            };
            let (error, data) = match answer {
                Ok(data) => (0, data),
                Err(error) => (error, Vec::new()),
            };
            let mut reply = Vec::with_capacity(16 + data.len());
            reply.extend(REPLY_MAGIC.to_be_bytes());
            reply.extend(error.to_be_bytes());
            reply.extend(cookie);
            reply.extend(data);
            output.write_all(&reply)?;
        }
    }

    /// Carries a request out. None once the power is off; else data, or an error number.
    fn run(
        &self,
        mut content: MutexGuard<'_, Content>,
        command: u16,
        flags: u16,
        range: Range<u64>,
        data: Vec<u8>,
    ) -> Option<Result<Vec<u8>, u32>> {
        if self.power.is_off() {
            return None;
        }
        if self.is_dead.load(Ordering::Relaxed) {
            return Some(Err(EIO));
        }
        if range.end > content.current.len_bytes() {
            return Some(Err(EINVAL));
        }
        let offset = range.start;
        match command {
            COMMAND_READ => {
                let mut data = vec![0; (range.end - offset) as usize];
                content.current.read_at(offset, &mut data);
                Some(Ok(data))
            }
            COMMAND_WRITE => {
                content.current.write_at(offset, &data);
                content.unflushed.push((offset, data));
                self.power.count_write();
                if self.power.is_off() {
                    return None;
                }
                if flags & FLAG_FUA != 0 {
                    // A flush does more than was asked for. QEMU's virtio disks never ask.
                    content.flush();
                }
                Some(Ok(Vec::new()))
            }
            COMMAND_FLUSH => {
                content.flush();
                Some(Ok(Vec::new()))
            }
            _ => Some(Err(EINVAL)),
        }
    }

    /// True when the client goes on to requests, false when it has gone.
    fn negotiate(&self, input: &mut impl Read, output: &mut impl Write) -> io::Result<bool> {
        let mut greeting = MAGIC.to_be_bytes().to_vec();
        greeting.extend(OPTION_MAGIC.to_be_bytes());
        greeting.extend(HANDSHAKE_FLAGS.to_be_bytes());
        output.write_all(&greeting)?;
        let _client_flags: [u8; 4] = read(input)?;
        loop {
            if u64::from_be_bytes(read(input)?) != OPTION_MAGIC {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let option = u32::from_be_bytes(read(input)?);
            let length = u32::from_be_bytes(read(input)?) as usize;
            if length > OPTION_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            input.read_exact(&mut vec![0; length])?;
            let mut reply = |kind: u32, data: &[u8]| {
                let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
                bytes.extend(option.to_be_bytes());
                bytes.extend(kind.to_be_bytes());
                bytes.extend((data.len() as u32).to_be_bytes());
                bytes.extend(data);
                output.write_all(&bytes)
            };
            match option {
                OPTION_GO => {
                    // NBD_INFO_EXPORT is 0. The name is not looked at: a server has one disk.
                    let mut info = 0_u16.to_be_bytes().to_vec();
                    let bytes = lock(&self.content).current.len_bytes();
                    info.extend(bytes.to_be_bytes());
                    info.extend(TRANSMISSION_FLAGS.to_be_bytes());
                    reply(REPLY_INFO, &info)?;
                    reply(REPLY_ACK, &[])?;
                    return Ok(true);
                }
                OPTION_ABORT => {
                    reply(REPLY_ACK, &[])?;
                    return Ok(false);
                }
                _ => reply(REPLY_UNSUPPORTED, &[])?,
            }
        }
    }
}

impl Content {
    fn flush(&mut self) {
        for (offset, data) in self.unflushed.drain(..) {
            self.durable.write_at(offset, &data);
        }
    }
}

fn read<const BYTES: usize>(input: &mut impl Read) -> io::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Client {
        stream: UnixStream,
    }

    impl Client {
        fn connect(disk: &VolatileDisk) -> Self {
            let mut stream = UnixStream::connect(disk.socket()).unwrap();
            let _greeting: [u8; 18] = read(&mut stream).unwrap();
            let mut hello = 3_u32.to_be_bytes().to_vec();
            for option in [8, OPTION_GO] {
                hello.extend(OPTION_MAGIC.to_be_bytes());
                hello.extend(u32::to_be_bytes(option));
                hello.extend(6_u32.to_be_bytes());
                hello.extend([0; 6]);
            }
            stream.write_all(&hello).unwrap();
            // Unsupported, information of 12 bytes, done.
            let _replies: [u8; 20 + 20 + 12 + 20] = read(&mut stream).unwrap();
            Self { stream }
        }

        fn send(&mut self, command: u16, offset: u64, length: u32, data: &[u8]) {
            let mut request = REQUEST_MAGIC.to_be_bytes().to_vec();
            request.extend(0_u16.to_be_bytes());
            request.extend(command.to_be_bytes());
            request.extend(7_u64.to_be_bytes());
            request.extend(offset.to_be_bytes());
            request.extend(length.to_be_bytes());
            request.extend(data);
            self.stream.write_all(&request).unwrap();
        }

        fn run(&mut self, command: u16, offset: u64, length: u32, data: &[u8]) -> u32 {
            self.send(command, offset, length, data);
            let reply: [u8; 16] = read(&mut self.stream).unwrap();
            u32::from_be_bytes(reply[4..8].try_into().unwrap())
        }

        fn read(&mut self, offset: u64) -> [u8; 4096] {
            assert_eq!(self.run(COMMAND_READ, offset, 4096, &[]), 0);
            read(&mut self.stream).unwrap()
        }
    }

    #[test]
    fn what_was_flushed_stays_and_the_rest_may_go() {
        let power = Power::new();
        let disk = VolatileDisk::new("disk", 1 << 20, &power).unwrap();
        let mut client = Client::connect(&disk);
        assert_eq!(client.run(COMMAND_WRITE, 0, 4096, &[1; 4096]), 0);
        assert_eq!(client.run(COMMAND_FLUSH, 0, 0, &[]), 0);
        let mut lost = 0;
        for seed in 0..32 {
            assert_eq!(client.run(COMMAND_WRITE, 4096, 4096, &[2; 4096]), 0);
            assert_eq!(client.read(4096), [2; 4096]);
            power.off_at_write(1);
            client.send(COMMAND_WRITE, 8192, 4096, &[3; 4096]);
            assert!(power.wait_until_off(Duration::from_secs(60)));
            let (writes, parts) = disk.lose_unflushed(seed);
            assert_eq!(writes, 2);
            lost += parts;
            client = Client::connect(&disk);
            assert_eq!(client.read(0), [1; 4096]);
            for (offset, byte) in [(4096, 2), (8192, 3)] {
                let found = client.read(offset);
                for sector in found.chunks(512) {
                    assert!(sector == [0; 512] || sector == [byte; 512]);
                }
            }
            assert_eq!(client.run(COMMAND_WRITE, 4096, 8192, &[0; 8192]), 0);
            assert_eq!(client.run(COMMAND_FLUSH, 0, 0, &[]), 0);
        }
        assert!(lost > 0);
    }

    #[test]
    fn a_request_past_the_end_is_refused() {
        let disk = VolatileDisk::new("disk", 8192, &Power::new()).unwrap();
        let mut client = Client::connect(&disk);
        assert_eq!(client.run(COMMAND_WRITE, 8192, 512, &[1; 512]), EINVAL);
        assert_eq!(client.run(COMMAND_READ, u64::MAX, 512, &[]), EINVAL);
        assert_eq!(client.read(0), [0; 4096]);
    }
}
