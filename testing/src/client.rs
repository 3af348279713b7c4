//! One connection to a server, and what goes over it.
//!
//! Invariant: what is sent is what the test says, byte by byte, however wrong that is.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{PATIENCE, pause};

/// A request, byte by byte as the test wants it.
#[must_use = "it is not sent by being made"]
#[derive(Debug, Clone)]
pub struct Request {
    /// In capitals, unless a test is about that.
    pub method: String,
    /// With the query.
    pub path: String,
    /// In the order in which they are sent.
    pub headers: Vec<(String, String)>,
    /// Nothing, if empty.
    pub body: Vec<u8>,
}

impl Request {
    /// One without headers of its own and without a body.
    pub fn new(method: &str, path: &str) -> Self {
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// A POST of JSON text.
    pub fn json(path: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new("POST", path)
            .header("Content-Type", "application/json")
            .body(body)
    }

    /// A POST of one raw tensor.
    pub fn raw(path: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new("POST", path)
            .header("Content-Type", "application/octet-stream")
            .body(body)
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// The bytes on the wire. `Host` and `Content-Length` are added unless given.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{} {} HTTP/1.1\r\n", self.method, self.path).into_bytes();
        let given = |wanted: &str| {
            self.headers
                .iter()
                .any(|(name, _)| name.eq_ignore_ascii_case(wanted))
        };
        if !given("host") {
            bytes.extend_from_slice(b"Host: test\r\n");
        }
        if !given("content-length")
            && !given("transfer-encoding")
            && (!self.body.is_empty() || self.method == "POST")
        {
            bytes.extend_from_slice(format!("Content-Length: {}\r\n", self.body.len()).as_bytes());
        }
        for (name, value) in &self.headers {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// For example 200.
    pub status: u16,
    /// By names in small letters.
    pub headers: HashMap<String, String>,
    /// As many bytes as the answer said.
    pub body: Vec<u8>,
}

impl Response {
    /// The header `name`, in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The body, which must be UTF-8.
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("the body is text")
    }

    /// The body, which must be JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// Whether the server ends the connection after this answer.
    pub fn closes(&self) -> bool {
        self.header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// One connection to a server.
pub struct Client {
    /// The socket itself.
    pub stream: TcpStream,
    buffer: Vec<u8>,
    pace: Option<Pace>,
}

/// How fast a client takes what was sent to it, at most.
struct Pace {
    bytes_per_second: u32,
    since: Instant,
    taken: u64,
}

impl Client {
    /// A new connection to `address`.
    pub fn connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            pace: None,
        })
    }

    /// From now on, takes no more than this.
    pub fn read_at(&mut self, bytes_per_second: u32) {
        self.pace = Some(Pace {
            bytes_per_second,
            since: Instant::now(),
            taken: 0,
        });
    }

    /// Sends `request` and reads its answer. An error when the connection ends first.
    pub fn send(&mut self, request: &Request) -> std::io::Result<Response> {
        self.write(&request.bytes())?;
        self.read()
    }

    /// Sends these bytes.
    pub fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Reads one answer, which must have a Content-Length; a `100 Continue` before it is an answer of its own.
    pub fn read(&mut self) -> std::io::Result<Response> {
        let head_end = loop {
            if let Some(end) = self
                .buffer
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            {
                break end + 4;
            }
            self.fill()?;
        };
        let head = String::from_utf8_lossy(&self.buffer[..head_end]).into_owned();
        let mut lines = head.split("\r\n");
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1))
            .and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| std::io::Error::other(format!("not HTTP: {head}")))?;
        let headers: HashMap<String, String> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let length: usize = headers
            .get("content-length")
            .map_or(0, |length| length.parse().expect("a length"));
        while self.buffer.len() < head_end + length {
            self.fill()?;
        }
        let body = self.buffer[head_end..head_end + length].to_vec();
        self.buffer.drain(..head_end + length);
        Ok(Response {
            status,
            headers,
            body,
        })
    }

    /// Resets the connection, as a client does that is gone for good.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream)
            .set_linger(Some(Duration::ZERO))
            .expect("the socket is open");
    }

    /// Waits until the server has closed the connection; returns what it still sent. Panics when it stays open.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut rest = std::mem::take(&mut self.buffer);
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => rest,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => rest,
            Err(error) => panic!("the connection stays open: {error}"),
        }
    }

    fn fill(&mut self) -> std::io::Result<()> {
        let mut chunk = [0; 16 << 10];
        let read = self.stream.read(&mut chunk)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.extend_from_slice(&chunk[..read]);
        if let Some(pace) = &mut self.pace {
            pace.taken += read as u64;
            let millis = pace.taken * 1_000 / u64::from(pace.bytes_per_second);
            let due = pace.since + Duration::from_millis(millis);
            pause(due.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }
}
