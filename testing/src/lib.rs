//! What the black-box tests share: a server in a process of its own, and a client that sends exactly what it is told.
//!
//! Nothing here reaches into the server: it is started by flags, read by its log and its routes, and stopped by signals.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    missing_docs,
    reason = "a test stops at the first thing that is wrong, and what needs no words here has none"
)]

pub mod faults;
pub mod models;
pub mod nvml;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The longest that a test waits for anything; far beyond what a loaded machine needs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again, until `holds`; panics with `what` was waited for if that is not in time.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    eventually_is(what, || holds().then_some(()));
}

/// The same for something that is there at last.
pub fn eventually_is<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        pause(Duration::from_millis(10));
    }
}

/// A client's own slowness, where a test is about it. What a test waits for is asked for by [`eventually`].
#[expect(clippy::disallowed_methods, reason = "clients may be slow")]
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    let testing = Path::new(env!("CARGO_MANIFEST_DIR"));
    testing.parent().expect("it is a folder of it").join(path)
}

/// A fixture model, for example `addone`.
pub fn fixture(name: &str) -> String {
    repository(&format!("tests/fixtures/{name}.onnx"))
        .display()
        .to_string()
}

/// The bytes of weights of the fixture `heavy`, which are not among the fixtures.
pub const HEAVY_WEIGHTS: u64 = 4 * 4200 * 4200;

/// The fixture `heavy` with its weights, all zero, in `folder`.
pub fn heavy(folder: &Path) -> String {
    let model = folder.join("heavy.onnx");
    std::fs::copy(fixture("heavy"), &model).unwrap();
    let weights = std::fs::File::create(folder.join("heavy.weights")).unwrap();
    weights.set_len(HEAVY_WEIGHTS).unwrap();
    model.display().to_string()
}

/// Where the program under test is: cargo, which has built it for the tests and with their features, says so. It also
/// lies beside the folder of the tests' own program, for those who start that themselves, under a debugger for example.
fn built() -> PathBuf {
    std::env::var_os("CARGO_BIN_EXE_model-serving").map_or_else(
        || {
            let tests = std::env::current_exe().expect("this program has a path");
            let folder = tests.parent().and_then(Path::parent);
            folder.expect("cargo's folder").join("model-serving")
        },
        PathBuf::from,
    )
}

/// The program under test, with an environment that holds none of its settings.
pub fn program() -> Command {
    let mut command = Command::new(built());
    command.current_dir(repository("")).env_clear();
    for name in ["PATH", "HOME", "TMPDIR", "LLVM_PROFILE_FILE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// The log lines of a server, as they come.
#[derive(Default)]
pub struct Log {
    lines: Mutex<(Vec<Value>, bool)>,
    changed: Condvar,
}

impl Log {
    /// Waits for a line for which `wanted` holds, or for the end of the log.
    pub fn wait_for(&self, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.lines.lock().unwrap();
        loop {
            if let Some(line) = state.0.iter().find(|line| wanted(line)) {
                return Some(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.1 || left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Every line so far.
    pub fn lines(&self) -> Vec<Value> {
        self.lines.lock().unwrap().0.clone()
    }
}

/// A running server. Dropping it kills it.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    /// The address of the admin port, if it has one.
    pub admin: Option<SocketAddr>,
    pub log: Arc<Log>,
}

impl Server {
    /// Starts the server with `flags`, on a port of the system's choice, and waits until it is ready.
    pub fn start(flags: &[&str]) -> Self {
        Self::start_with(flags, &[])
    }

    /// The same, with environment variables.
    pub fn start_with(flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let server = Self::spawn(flags, environment);
        let ready = server.log.wait_for(|line| line["message"] == "ready");
        assert!(
            ready.is_some(),
            "the server did not become ready: {:?}",
            server.log.lines()
        );
        server
    }

    /// Starts the server and waits only until it listens.
    pub fn spawn(flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = program();
        // As variables, so that a test can give the flags.
        command.env("HOST", "127.0.0.1").env("PORT", "0");
        command.args(flags).envs(environment.iter().copied());
        Self::spawn_command(command)
    }

    /// The same for a command that starts the server, perhaps with another program around it.
    pub fn spawn_command(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        // From here on, dropping the server ends the process, also when this function panics.
        let mut server = Self {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            admin: None,
            log: Arc::new(Log::default()),
        };
        std::thread::spawn({
            let log = Arc::clone(&server.log);
            move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                    log.lines.lock().unwrap().0.push(line);
                    log.changed.notify_all();
                }
                log.lines.lock().unwrap().1 = true;
                log.changed.notify_all();
            }
        });
        let listening = server.log.wait_for(|line| line["message"] == "listening");
        let Some(listening) = listening else {
            panic!("the server does not listen: {:?}", server.log.lines());
        };
        server.address = listening["address"]
            .as_str()
            .expect("an address")
            .parse()
            .expect("an address");
        let admin = listening["admin_address"].as_str();
        server.admin = admin.map(|address| address.parse().expect("an address"));
        server
    }

    /// A server for the fixture `name`.
    pub fn fixture(name: &str, flags: &[&str]) -> Self {
        let path = fixture(name);
        let mut all = vec!["--model", path.as_str()];
        all.extend(flags);
        Self::start(&all)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it `signal`.
    pub fn signal(&self, signal: Signal) {
        kill(
            Pid::from_raw(i32::try_from(self.child.id()).unwrap()),
            signal,
        )
        .expect("the process is there");
    }

    /// Waits until it has ended.
    pub fn wait(mut self) -> ExitStatus {
        eventually_is("the server ends", || {
            let status = self.child.try_wait();
            status.expect("the process can be waited for")
        })
    }

    /// A new connection.
    pub fn connect(&self) -> Client {
        Client::connect(self.address).expect("the server accepts")
    }

    /// One request on a connection of its own.
    pub fn request(&self, request: &Request) -> Response {
        self.connect().send(request).expect("an answer")
    }

    /// `GET path`.
    pub fn get(&self, path: &str) -> Response {
        self.request(&Request::new("GET", path))
    }

    /// `POST /predict` with a JSON body.
    pub fn predict(&self, body: &Value) -> Response {
        self.request(&Request::json("/predict", body.to_string()))
    }

    /// The samples of `/metrics`, parsed.
    pub fn metrics(&self) -> prometheus_parse::Scrape {
        let text = self.get("/metrics").text();
        prometheus_parse::Scrape::parse(text.lines().map(|line| Ok(line.to_owned())))
            .expect("valid text format")
    }

    /// The value of the counter or gauge `name` with `labels`.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        sample(&self.metrics(), name, labels)
    }

    /// A figure of /proc/PID/status in kB, or a count, for example `VmRSS` or `Threads`.
    pub fn status_figure(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("the process is there");
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .expect("the figure is there");
        line.split_whitespace()
            .nth(1)
            .expect("a value")
            .parse()
            .expect("a number")
    }
}

/// The value of the counter or gauge `name` with at least `labels` in `scrape`.
pub fn sample(
    scrape: &prometheus_parse::Scrape,
    name: &str,
    labels: &[(&str, &str)],
) -> Option<f64> {
    let sample = scrape.samples.iter().find(|sample| {
        sample.metric == name
            && labels
                .iter()
                .all(|(key, value)| sample.labels.get(key) == Some(*value))
    })?;
    match sample.value {
        prometheus_parse::Value::Counter(value)
        | prometheus_parse::Value::Gauge(value)
        | prometheus_parse::Value::Untyped(value) => Some(value),
        _ => None,
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request, byte by byte as the test wants it.
#[must_use = "it is not sent by being made"]
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
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

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

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
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("the body is text")
    }

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

/// A small generator of numbers that are the same in every run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    /// A number from -1 to 1.
    #[allow(
        clippy::cast_precision_loss,
        reason = "below 2^24, every integer is an f32"
    )]
    pub fn float(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Says what a test could not check here, past what the test runner keeps to itself while tests pass.
pub fn skipped(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "\nSKIPPED: {what}");
}
