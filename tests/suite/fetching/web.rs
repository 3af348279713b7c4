//! A web server with TLS that does as a test says, faults included. It also stands in for the APIs of buckets and hubs.

#![allow(
    unreachable_pub,
    clippy::format_push_string,
    reason = "as in the module beside this one"
)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// What a client asked.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    /// With the query.
    pub target: String,
    /// By lower-case names.
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    /// The path as it was before it was encoded.
    pub fn decoded(&self) -> String {
        percent_decode_str(self.path())
            .decode_utf8()
            .unwrap()
            .into_owned()
    }

    /// Where the client wants to go on, if it does.
    pub fn from(&self) -> Option<usize> {
        let range = self.header("range")?.strip_prefix("bytes=")?;
        range.split('-').next().unwrap().parse().ok()
    }
}

/// What it gets.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// How many bytes of the body are sent.
    pub sent: usize,
    /// What then happens to the connection, if that is not all.
    pub then: Then,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It ends.
    Close,
    /// It stays, and nothing comes any more, until the client gives up.
    Stall,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self {
            status,
            headers: Vec::new(),
            sent: body.len(),
            body,
            then: Then::Close,
        }
    }

    /// `file` from where the client wants to go on, as a server does that knows ranges.
    pub fn file(asked: &Asked, file: &[u8], tag: &str) -> Self {
        let is_same = |name| asked.header(name).is_none_or(|it: &str| it == tag);
        if !is_same("if-match") {
            return Self::new(412, "");
        }
        let answer = match asked.from().filter(|_| is_same("if-range")) {
            Some(from) if from >= file.len() => Self::new(416, ""),
            Some(from) => Self::new(206, &file[from..]).header(
                "Content-Range",
                &format!("bytes {from}-{}/{}", file.len() - 1, file.len()),
            ),
            None => Self::new(200, file),
        };
        answer
            .header("ETag", tag)
            .header("Last-Modified", "Fri, 27 Nov 2026 20:00:00 GMT")
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Of the body, only so many bytes.
    pub fn cut(mut self, sent: usize, then: Then) -> Self {
        self.sent = sent.min(self.body.len());
        self.then = then;
        self
    }
}

type Handler = Box<dyn Fn(&Asked, usize) -> Answer + Send + Sync>;

struct Shared {
    handler: Handler,
    asked: Mutex<Vec<Asked>>,
    over: AtomicBool,
    tls: Arc<ServerConfig>,
}

/// A running server. Dropping it ends it.
pub struct WebServer {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
    folder: tempfile::TempDir,
}

impl WebServer {
    /// `handler` gets each request and its number, from 0 on.
    pub fn start(handler: impl Fn(&Asked, usize) -> Answer + Send + Sync + 'static) -> Self {
        let issued = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issued.cert.pem()).unwrap();
        let key = PrivateKeyDer::try_from(issued.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![issued.cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            asked: Mutex::default(),
            over: AtomicBool::new(false),
            tls: Arc::new(tls),
        });
        let of_accepting = Arc::clone(&shared);
        let accepting = std::thread::spawn(move || {
            let mut connections = Vec::new();
            for stream in listener.incoming() {
                if of_accepting.over.load(Ordering::SeqCst) {
                    break;
                }
                let shared = Arc::clone(&of_accepting);
                let stream = stream.unwrap();
                connections.push(std::thread::spawn(move || serve(&shared, stream)));
            }
            for connection in connections {
                connection.join().unwrap();
            }
        });
        Self {
            address,
            shared,
            accepting: Some(accepting),
            folder,
        }
    }

    /// The file with the authority that its clients must trust.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// An address on it.
    pub fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    /// What was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        // So that it looks.
        let _ = TcpStream::connect(self.address);
        let ended = self.accepting.take().unwrap().join();
        assert!(
            ended.is_ok() || std::thread::panicking(),
            "a handler panicked"
        );
    }
}

/// One request, and its answer. A client that goes away, or does not trust us, is no error here.
fn serve(shared: &Shared, stream: TcpStream) -> Option<()> {
    let connection = ServerConnection::new(Arc::clone(&shared.tls)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let mut stream = StreamOwned::new(connection, stream);
    let asked = read(&mut stream)?;
    let number = {
        let mut all = shared.asked.lock().unwrap();
        all.push(asked.clone());
        all.len() - 1
    };
    let answer = (shared.handler)(&asked, number);
    let mut head = format!("HTTP/1.1 {} Test\r\nConnection: close\r\n", answer.status);
    let has = |name: &str| {
        answer
            .headers
            .iter()
            .any(|(it, _)| it.eq_ignore_ascii_case(name))
    };
    if !has("content-length") && !has("transfer-encoding") {
        head.push_str(&format!("Content-Length: {}\r\n", answer.body.len()));
    }
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    if asked.method != "HEAD" {
        stream.write_all(&answer.body[..answer.sent]).ok()?;
    }
    stream.flush().ok()?;
    if answer.then == Then::Stall {
        // Until the client goes away.
        while stream.read(&mut [0; 64]).is_ok_and(|read| read > 0) {}
    }
    // A body that was cut is no orderly end, and is not made to look like one.
    if answer.sent == answer.body.len() {
        stream.conn.send_close_notify();
        stream.flush().ok()?;
    }
    Some(())
}

fn read(stream: &mut StreamOwned<ServerConnection, TcpStream>) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => {
                headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
            }
            None => break,
        }
    }
    let length = headers
        .get("content-length")
        .map_or(0, |it| it.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Asked {
        method,
        target,
        headers,
        body: String::from_utf8(body).unwrap(),
    })
}
