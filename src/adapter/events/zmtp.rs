//! The publishing side of ZeroMQ's wire protocol, over TCP: what subscribers of any ZeroMQ library connect to.
//!
//! ZMTP 3.0 with the NULL mechanism: a greeting of 64 bytes each way, a READY command each way, then the subscriber sends
//! its topics and gets every message whose first part begins with one of them. Small enough to be written here: the
//! libraries bring a C++ build or an async runtime. A subscriber that does not keep up is dropped, and connects anew.
//! Source: RFC 23/ZMTP (rfc.zeromq.org/spec/23), RFC 29/PUBSUB.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::{Error, Result};

/// A subscriber that takes nothing for this long is dropped, and so is one that does not introduce itself in time.
const PATIENCE: Duration = Duration::from_millis(200);
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Most subscribers at a time.
const MAX_SUBSCRIBERS: usize = 64;

/// Longest frame that a subscriber may send.
const MAX_FRAME_BYTES: u64 = 4096;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// A socket of the kind PUB that subscribers connect to.
pub(super) struct Publisher {
    listener: TcpListener,
    subscribers: Vec<Subscriber>,
}

struct Subscriber {
    stream: TcpStream,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    topics: Vec<Vec<u8>>,
    gone: bool,
}

impl Publisher {
    /// Listens on `tcp://ADDRESS:PORT`; `*` is every address. Rank r takes the r-th port behind.
    ///
    /// # Errors
    /// `InvalidArg` for another text; `Unavailable` when the port is taken.
    pub fn bind(endpoint: &str, rank: usize) -> Result<Self> {
        let parts = endpoint.strip_prefix("tcp://").and_then(|rest| rest.rsplit_once(':'));
        let parts = parts.and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?.checked_add(rank as u16)?)));
        let Some((host, port)) = parts else {
            return Err(Error::invalid(format!("kv_event_sink has zmq:{endpoint}, expected zmq:tcp://ADDRESS:PORT")));
        };
        let host = if host == "*" { "0.0.0.0" } else { host.trim_matches(['[', ']']) };
        let refused =
            |error| Error::unavailable(format!("kv_event_sink: cannot listen on {host}, port {port}: {error}"));
        let listener = TcpListener::bind((host, port)).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        Ok(Self { listener, subscribers: Vec::new() })
    }

    /// Takes those who have connected; forgets those who have gone.
    pub fn accept(&mut self) {
        self.subscribers.retain(|subscriber| !subscriber.state.lock().gone);
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return tracing::warn!("a subscriber to KV cache events was refused: {error}"),
            };
            if self.subscribers.len() == MAX_SUBSCRIBERS {
                tracing::warn!("a subscriber to KV cache events was refused: there are {MAX_SUBSCRIBERS}");
                continue;
            }
            match Subscriber::start(stream) {
                Ok(subscriber) => self.subscribers.push(subscriber),
                Err(error) => tracing::warn!("a subscriber to KV cache events was refused: {error}"),
            }
        }
    }

    /// Sends a message to those who want its first part.
    pub fn send(&mut self, parts: &[&[u8]]) {
        let mut message = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            let more = if at + 1 < parts.len() { MORE } else { 0 };
            append_frame(&mut message, more, part);
        }
        for subscriber in &mut self.subscribers {
            let wants = subscriber.state.lock().topics.iter().any(|topic| parts[0].starts_with(topic));
            if wants && subscriber.stream.write_all(&message).is_err() {
                subscriber.leave();
            }
        }
    }
}

impl Subscriber {
    /// Introduces both sides in a thread, which then listens for topics.
    fn start(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_read_timeout(Some(HANDSHAKE))?;
        let state = Arc::<Mutex<State>>::default();
        let subscriber = Self { stream: stream.try_clone()?, state: state.clone() };
        let work = move || {
            if let Err(error) = listen(stream, &state) {
                tracing::debug!("a subscriber to KV cache events left: {error}");
            }
            state.lock().gone = true;
        };
        thread::Builder::new().name("kv-event-topics".into()).spawn(work)?;
        Ok(subscriber)
    }

    fn leave(&self) {
        self.state.lock().gone = true;
        // One that has gone by itself has no connection any more.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.leave();
    }
}

fn listen(mut stream: TcpStream, state: &Mutex<State>) -> io::Result<()> {
    stream.write_all(&greeting())?;
    let mut theirs = [0; 64];
    stream.read_exact(&mut theirs)?;
    if theirs[0] != 0xFF || theirs[9] != 0x7F || theirs[10] < 3 || !theirs[12..].starts_with(b"NULL\0") {
        return Err(io::Error::new(ErrorKind::InvalidData, "its greeting is none of ZMTP 3 without security"));
    }
    stream.write_all(&ready())?;
    stream.set_read_timeout(None)?;
    loop {
        let (flags, body) = read_frame(&mut stream)?;
        if flags & COMMAND != 0 {
            subscribe_by_command(&body, state);
        } else {
            subscribe(&body, state);
        }
    }
}

/// Signature, version 3.0, mechanism, not a server, filler.
fn greeting() -> [u8; 64] {
    let mut bytes = [0; 64];
    (bytes[0], bytes[9], bytes[10]) = (0xFF, 0x7F, 3);
    bytes[12..16].copy_from_slice(b"NULL");
    bytes
}

fn ready() -> Vec<u8> {
    let mut body = b"\x05READY\x0bSocket-Type\0\0\0\x03PUB".to_vec();
    let mut frame = vec![COMMAND, body.len() as u8];
    frame.append(&mut body);
    frame
}

/// A message of a subscriber: 1 or 0, then the topic that it wants or does not want any more.
fn subscribe(body: &[u8], state: &Mutex<State>) {
    let mut state = state.lock();
    match body.split_first() {
        Some((1, topic)) => state.topics.push(topic.to_vec()),
        Some((0, topic)) => {
            if let Some(at) = state.topics.iter().position(|known| known == topic) {
                state.topics.swap_remove(at);
            }
        }
        _ => {}
    }
}

/// The same as commands, as ZMTP 3.1 has it.
fn subscribe_by_command(body: &[u8], state: &Mutex<State>) {
    for (name, word) in [(&b"\x09SUBSCRIBE"[..], 1), (&b"\x06CANCEL"[..], 0)] {
        if let Some(topic) = body.strip_prefix(name) {
            subscribe(&[&[word], topic].concat(), state);
        }
    }
}

fn append_frame(out: &mut Vec<u8>, flags: u8, body: &[u8]) {
    match u8::try_from(body.len()) {
        Ok(len) => out.extend([flags, len]),
        Err(_) => {
            out.push(flags | LONG);
            out.extend((body.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(body);
}

fn read_frame(stream: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut flags = [0];
    stream.read_exact(&mut flags)?;
    let len = if flags[0] & LONG != 0 {
        let mut len = [0; 8];
        stream.read_exact(&mut len)?;
        u64::from_be_bytes(len)
    } else {
        let mut len = [0];
        stream.read_exact(&mut len)?;
        u64::from(len[0])
    };
    if len > MAX_FRAME_BYTES {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("a frame of {len} bytes")));
    }
    let mut body = vec![0; len as usize];
    stream.read_exact(&mut body)?;
    Ok((flags[0], body))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A subscriber by the letter of the specification.
    fn connect(port: u16, topic: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(&greeting()).unwrap();
        stream.write_all(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB").unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut message = vec![0, topic.len() as u8 + 1, 1];
        message.extend_from_slice(topic);
        stream.write_all(&message).unwrap();
        stream
    }

    fn port(publisher: &Publisher) -> u16 {
        publisher.listener.local_addr().unwrap().port()
    }

    #[test]
    fn subscribers_get_messages_of_their_topics() {
        let mut publisher = Publisher::bind("tcp://127.0.0.1:0", 0).unwrap();
        let mut wants = connect(port(&publisher), b"kv@");
        let mut other = connect(port(&publisher), b"nothing");
        let subscribed = |publisher: &Publisher| {
            publisher.subscribers.iter().filter(|subscriber| !subscriber.state.lock().topics.is_empty()).count()
        };
        while subscribed(&publisher) < 2 {
            publisher.accept();
            thread::sleep(Duration::from_millis(1));
        }
        let long = vec![9; 300];
        publisher.send(&[b"kv@pod", &7u64.to_be_bytes(), &long]);
        let mut hello = [0; 64 + 27];
        wants.read_exact(&mut hello).unwrap();
        assert_eq!(hello[..64], greeting());
        assert_eq!(&hello[64..], b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03PUB");
        let parts: Vec<_> = (0..3).map(|_| read_frame(&mut wants).unwrap()).collect();
        assert_eq!(parts.iter().map(|part| part.0).collect::<Vec<_>>(), [MORE, MORE, LONG]);
        assert_eq!(parts[0].1, b"kv@pod");
        assert_eq!(parts[1].1, [0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(parts[2].1, long);
        drop(publisher);
        let mut rest = Vec::new();
        other.read_to_end(&mut rest).unwrap();
        assert_eq!(rest.len(), hello.len(), "another topic gets nothing");
    }

    #[test]
    fn who_speaks_another_protocol_is_dropped_and_leaves_the_others_alone() {
        let mut publisher = Publisher::bind("tcp://127.0.0.1:0", 0).unwrap();
        let mut stranger = TcpStream::connect(("127.0.0.1", port(&publisher))).unwrap();
        stranger.write_all(&[b'x'; 64]).unwrap();
        while publisher.subscribers.is_empty() {
            publisher.accept();
        }
        while !publisher.subscribers.is_empty() {
            publisher.accept();
            thread::sleep(Duration::from_millis(1));
        }
        let error = Publisher::bind("udp://127.0.0.1:1", 0).err().unwrap();
        assert!(error.message().contains("expected zmq:tcp://ADDRESS:PORT"), "{error}");
    }
}
