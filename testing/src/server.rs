//! The program under test, and a server in a process of its own.
//!
//! Invariant: it has none of the settings of this process's environment, and is gone when its value is.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{Client, PATIENCE, Request, Response, eventually_is, fixture, repository};

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
    /// The address of the main port.
    pub address: SocketAddr,
    /// The address of the admin port, if it has one.
    pub admin: Option<SocketAddr>,
    /// What it says.
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
