//! limit: a bare echo of the NBD protocol over one file, to measure real servers against.
//!
//! How it works      `limit SOCKET FILE` serves FILE under any export name on a unix socket until it is killed. One
//!                   thread for each connection: one `recv` takes many requests, each is one `pread` or `pwrite`,
//!                   one `send` carries all the replies. `limit SOCKET FILE direct` serves O_DIRECT reads ([`direct`]).
//!                   `limit SOCKET FILE redirect LOG` never overwrites a block ([`redirect`]), and serves one
//!                   connection at a time.
//! What it is not    A server to use. It maps nothing, has no snapshots, passes nothing to another thread, lets one
//!                   slow read delay all later ones, and trusts the peer. Its speed shows the cost of the protocol and
//!                   of the page cache only: no server can be much faster on this machine with these system calls.
//! Errors            a failed I/O is answered with its errno; a broken stream ends its connection.

mod direct;
mod redirect;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use redirect::Redirect;

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
/// NBD_FLAG_HAS_FLAGS, SEND_FLUSH, CAN_MULTI_CONN.
const EXPORT_FLAGS: u16 = 1 | 1 << 2 | 1 << 8;
const REQUEST_BYTES: usize = 28;
const REPLY_BYTES: usize = 16;
const OPTION_BYTES_MAX: usize = 64 << 10;
const PAYLOAD_BYTES_MAX: usize = 32 << 20;
/// Requests are received, and replies gathered, up to about this size at a time.
const BATCH_BYTES: usize = 256 << 10;
const EINVAL: u32 = 22;
const EIO: u32 = 5;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [_, socket, path, how @ ..] = &words[..] else { refuse() };
    let flags = if how == ["direct"] { libc::O_DIRECT } else { 0 };
    let file = File::options().read(true).write(true).custom_flags(flags).open(path)?;
    let (size, file) = (file.metadata()?.len(), Arc::new(file));
    match how {
        [] => listen(socket, size, move |stream| serve(stream, &mut &*file)),
        ["direct"] => listen(socket, size, move |stream| direct::serve(stream, &file)),
        ["redirect", log] => {
            let store = Arc::new(Mutex::new(Redirect::new(file, log)?));
            listen(socket, size, move |stream| {
                serve(stream, &mut *store.lock().expect("none panics"))
            })
        }
        _ => refuse(),
    }
}

fn refuse() -> ! {
    eprintln!("usage: limit SOCKET FILE [direct | redirect LOG]");
    std::process::exit(2);
}

/// Serves each connection on a thread of its own.
fn listen(
    socket: &str,
    size: u64,
    served: impl Fn(UnixStream) -> io::Result<()> + Clone + Send + 'static,
) -> io::Result<()> {
    for stream in UnixListener::bind(socket)?.incoming() {
        let (mut stream, served) = (stream?, served.clone());
        std::thread::spawn(move || {
            // After any end of a connection, the others continue.
            if let Ok(true) = handshake(&mut stream, size) {
                let _ = served(stream);
            }
        });
    }
    Ok(())
}

/// The storage of the bytes.
trait Store {
    fn read(&mut self, out: &mut [u8], offset: u64) -> io::Result<()>;
    fn write(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
}

impl Store for &File {
    fn read(&mut self, out: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(out, offset)
    }

    fn write(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

fn serve(mut stream: UnixStream, store: &mut impl Store) -> io::Result<()> {
    let mut inbox = vec![0; BATCH_BYTES + REQUEST_BYTES + PAYLOAD_BYTES_MAX];
    let mut outbox = Vec::with_capacity(2 * BATCH_BYTES);
    let mut filled = 0;
    loop {
        let received = stream.read(&mut inbox[filled..])?;
        if received == 0 {
            return Ok(());
        }
        filled += received;
        let mut at = 0;
        while let Some(taken) = answer(&inbox[at..filled], store, &mut outbox)? {
            at += taken;
            if outbox.len() >= BATCH_BYTES {
                stream.write_all(&outbox)?;
                outbox.clear();
            }
        }
        stream.write_all(&outbox)?;
        outbox.clear();
        inbox.copy_within(at..filled, 0);
        filled -= at;
    }
}

/// Answers the first request of `bytes`; returns its length, `None` if it is incomplete. An error ends the connection.
fn answer(bytes: &[u8], store: &mut impl Store, out: &mut Vec<u8>) -> io::Result<Option<usize>> {
    if bytes.len() < REQUEST_BYTES {
        return Ok(None);
    }
    let (command, offset) = (be16(bytes, 6), be64(bytes, 16));
    let length = be32(bytes, 24) as usize;
    if be32(bytes, 0) != REQUEST_MAGIC || command == 2 || length > PAYLOAD_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let taken = REQUEST_BYTES + if command == 1 { length } else { 0 };
    if bytes.len() < taken {
        return Ok(None);
    }
    let head = out.len();
    out.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&0_u32.to_be_bytes());
    out.extend_from_slice(&bytes[8..16]);
    let body = out.len();
    let done = match command {
        0 => {
            out.resize(body + length, 0);
            store.read(&mut out[body..], offset)
        }
        1 => store.write(&bytes[REQUEST_BYTES..taken], offset),
        3 => store.sync(),
        _ => Err(io::Error::from_raw_os_error(EINVAL.cast_signed())),
    };
    if let Err(error) = done {
        out.truncate(body);
        let number = if error.raw_os_error() == Some(EINVAL.cast_signed()) { EINVAL } else { EIO };
        out[head + 4..head + 8].copy_from_slice(&number.to_be_bytes());
    }
    debug_assert_eq!(body - head, REPLY_BYTES);
    Ok(Some(taken))
}

/// Fixed newstyle, without TLS, structured replies or metadata contexts. Returns whether transmission follows.
fn handshake(stream: &mut UnixStream, size: u64) -> io::Result<bool> {
    stream.write_all(b"NBDMAGIC")?;
    stream.write_all(&OPTION_MAGIC.to_be_bytes())?;
    stream.write_all(&3_u16.to_be_bytes())?;
    let mut flags = [0; 4];
    stream.read_exact(&mut flags)?;
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        let (option, length) = (be32(&head, 8), be32(&head, 12) as usize);
        if be64(&head, 0) != OPTION_MAGIC || length > OPTION_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut data = vec![0; length];
        stream.read_exact(&mut data)?;
        match option {
            OPT_EXPORT_NAME => {
                stream.write_all(&size.to_be_bytes())?;
                stream.write_all(&EXPORT_FLAGS.to_be_bytes())?;
                if flags[3] & 2 == 0 {
                    stream.write_all(&[0; 124])?;
                }
                return Ok(true);
            }
            OPT_GO | OPT_INFO => {
                let mut info = vec![0, 0];
                info.extend_from_slice(&size.to_be_bytes());
                info.extend_from_slice(&EXPORT_FLAGS.to_be_bytes());
                reply(stream, option, REP_INFO, &info)?;
                reply(stream, option, REP_ACK, &[])?;
                if option == OPT_GO {
                    return Ok(true);
                }
            }
            OPT_ABORT => {
                reply(stream, option, REP_ACK, &[])?;
                return Ok(false);
            }
            _ => reply(stream, option, REP_ERR_UNSUP, &[])?,
        }
    }
}

fn reply(stream: &mut UnixStream, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let length = u32::try_from(data.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&OPTION_REPLY_MAGIC.to_be_bytes())?;
    for word in [option, kind, length] {
        stream.write_all(&word.to_be_bytes())?;
    }
    stream.write_all(data)
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    bytes[at..at + 2].iter().fold(0, |sum, &byte| sum << 8 | u16::from(byte))
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |sum, &byte| sum << 8 | u32::from(byte))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}
