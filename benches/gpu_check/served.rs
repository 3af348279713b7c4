//! The server as its users run it, and the clients that load it.
//!
//! The tests' launcher and client would disturb what is measured: they keep every line of the log and take each answer
//! apart. These throw the lines away, and read of an answer what must be read. The server has this process's
//! environment, which says where the GPU's libraries are.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a server may take until it is ready.
const READY: Duration = Duration::from_secs(300);

/// A running server; dropping it stops it.
pub(crate) struct Served {
    child: Child,
    pub(crate) address: SocketAddr,
    /// From the start of the process to its readiness.
    pub(crate) seconds_to_ready: f64,
}

/// What every start has in common.
pub(crate) struct Program<'a> {
    pub(crate) path: &'a Path,
    pub(crate) library: Option<&'a str>,
}

impl Program<'_> {
    fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(self.path);
        command
            .args(flags)
            .args(["--host", "127.0.0.1", "--port", "0"]);
        if let Some(library) = self.library {
            command.args(["--onnxruntime", library]);
        }
        command
    }

    /// Starts a server and waits until it is ready.
    pub(crate) fn serve(&self, flags: &[&str]) -> Result<Served, String> {
        let started = Instant::now();
        let mut command = self.command(flags);
        // The lines with the port and with the requests; writing the latter is part of serving.
        command
            .args(["--log-level", "info"])
            .env("LOG_FORMAT", "json");
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let listening = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let line: Value = serde_json::from_str(&line).ok()?;
            line["address"].as_str()?.parse().ok()
        });
        // Nobody reads the rest, and the server must not wait for that.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let mut served = Served {
            child,
            address: listening.ok_or("the server did not listen")?,
            seconds_to_ready: 0.0,
        };
        while started.elapsed() < READY {
            if Client::connect(served.address).get("/ready").status == 200 {
                served.seconds_to_ready = started.elapsed().as_secs_f64();
                return Ok(served);
            }
            if served.child.try_wait().ok().flatten().is_some() {
                let mut complaint = String::new();
                let _ = served
                    .child
                    .stderr
                    .take()
                    .unwrap()
                    .read_to_string(&mut complaint);
                return Err(complaint.trim().to_owned());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err("not ready in time".to_owned())
    }

    /// Runs a start that is expected to fail: its exit code, what it said, and how many seconds it took.
    pub(crate) fn fail(
        &self,
        flags: &[&str],
        environment: &[(&str, &str)],
    ) -> (Option<i32>, String, f64) {
        let started = Instant::now();
        let mut command = self.command(flags);
        let output = command.envs(environment.iter().copied()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        (output.status.code(), text, started.elapsed().as_secs_f64())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

/// One connection, kept open.
pub(crate) struct Client(Option<BufReader<TcpStream>>);

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).ok();
        Self(stream.map(|stream| {
            let _ = stream.set_nodelay(true);
            BufReader::new(stream)
        }))
    }

    pub(crate) fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
    }

    /// Sends `request` and reads the answer; status 0 if there is none.
    pub(crate) fn send(&mut self, request: &[u8]) -> Answer {
        self.exchange(request).unwrap_or(Answer {
            status: 0,
            body: Vec::new(),
        })
    }

    fn exchange(&mut self, request: &[u8]) -> Option<Answer> {
        let stream = self.0.as_mut()?;
        stream.get_mut().write_all(request).ok()?;
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let status = line.split(' ').nth(1)?.parse().ok()?;
        let mut length = 0;
        loop {
            line.clear();
            stream.read_line(&mut line).ok()?;
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        Some(Answer { status, body })
    }
}

/// A raw request for `output` of `rows` rows of `shape`, each a copy of `row`.
pub(crate) fn raw_request(rows: usize, output: &str, shape: &[usize], row: &[f32]) -> Vec<u8> {
    let sizes: Vec<String> = std::iter::once(&rows)
        .chain(shape)
        .map(ToString::to_string)
        .collect();
    let bytes = rows * size_of_val(row);
    let head = format!(
        "POST /predict?outputs={output} HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nAccept: application/octet-stream\r\nX-Tensor-Shape: {}\r\nContent-Length: {bytes}\r\n\r\n",
        sizes.join(",")
    );
    let mut request = head.into_bytes();
    let one: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
    for _ in 0..rows {
        request.extend_from_slice(&one);
    }
    request
}

/// What a load has shown.
pub(crate) struct Load {
    pub(crate) requests_per_second: f64,
    /// Milliseconds, ascending.
    pub(crate) latencies: Vec<f64>,
    pub(crate) failed: usize,
}

impl Load {
    pub(crate) fn quantile(&self, quantile: f64) -> f64 {
        quantile_of(&self.latencies, quantile)
    }
}

/// The quantile of ascending values; 0 if there are none.
pub(crate) fn quantile_of(values: &[f64], quantile: f64) -> f64 {
    let last = values.len().saturating_sub(1);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index"
    )]
    let index = (last as f64 * quantile).round() as usize;
    values.get(index).copied().unwrap_or_default()
}

/// Sends `request` over `connections` connections, one after the other on each, for `time`.
pub(crate) fn load(
    address: SocketAddr,
    request: &[u8],
    connections: usize,
    time: Duration,
) -> Load {
    let stop = AtomicBool::new(false);
    let started = Instant::now();
    let results: Vec<(Vec<f64>, usize)> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..connections)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = Client::connect(address);
                    let (mut latencies, mut failed) = (Vec::new(), 0);
                    while !stop.load(Ordering::Relaxed) {
                        let sent = Instant::now();
                        if client.send(request).status == 200 {
                            latencies.push(sent.elapsed().as_secs_f64() * 1e3);
                        } else {
                            failed += 1;
                            client = Client::connect(address);
                        }
                    }
                    (latencies, failed)
                })
            })
            .collect();
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .collect()
    });
    let seconds = started.elapsed().as_secs_f64();
    let failed = results.iter().map(|result| result.1).sum();
    let mut latencies: Vec<f64> = results.into_iter().flat_map(|result| result.0).collect();
    latencies.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    let count = latencies.len() as f64;
    Load {
        requests_per_second: count / seconds,
        latencies,
        failed,
    }
}
