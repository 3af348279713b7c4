//! Requests per second of the bundled model, and of one that only adds 1, as ratios to an empty axum route served by the same process.
//!
//! A first, rough figure: the load generator shares the cores with the server, so only the ratios mean something.
//! Rounds are interleaved and the medians are printed. `cargo bench --bench rough -- [connections] [seconds]`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a benchmark stops at the first thing that is wrong, and prints"
)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use model_serving::config::ServeFlags;
use model_serving::server;
use model_serving::signals::Signals;
use model_serving::telemetry::logging;
use model_serving::telemetry::traces::Tracer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const ROUNDS: usize = 7;

fn main() {
    let numbers: Vec<u64> = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse().ok())
        .collect();
    let connections = usize::try_from(numbers.first().copied().unwrap_or(32)).unwrap();
    let seconds = Duration::from_secs(numbers.get(1).copied().unwrap_or(2));

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let (digits, tiny, empty) = runtime.block_on(start());
    let file = |path: &str| std::fs::read(repository(path)).unwrap();
    let json = "Content-Type: application/json\r\n";
    let raw = "Content-Type: application/octet-stream\r\nAccept: application/octet-stream\r\n";
    let post = |path: &str, headers: &str, body: &[u8]| request("POST", path, headers, body);
    let targets = [
        ("empty axum route", empty, request("GET", "/", "", &[])),
        (
            "digits, JSON, one row",
            digits,
            post("/predict", json, &file("models/samples/digit-7.json")),
        ),
        (
            "digits, raw, one row",
            digits,
            post(
                "/predict?outputs=probabilities",
                raw,
                &file("models/samples/digit-7.f32"),
            ),
        ),
        (
            "x + 1, JSON, one row",
            tiny,
            post("/predict", json, br#"{"inputs": [[0.25, 1.5, -3.75, 4]]}"#),
        ),
        ("x + 1, raw, one row", tiny, post("/predict", raw, &[0; 16])),
    ];

    let mut rates = vec![Vec::new(); targets.len()];
    for round in 0..=ROUNDS {
        for (index, (_, address, bytes)) in targets.iter().enumerate() {
            let rate = load(*address, bytes, connections, seconds);
            // The first round warms everything up.
            if round > 0 {
                rates[index].push(rate);
            }
        }
    }
    let medians: Vec<f64> = rates
        .iter_mut()
        .map(|rates| {
            rates.sort_by(f64::total_cmp);
            rates[rates.len() / 2]
        })
        .collect();
    println!(
        "\n{connections} connections, {ROUNDS} interleaved rounds of {} s, medians",
        seconds.as_secs()
    );
    for ((name, ..), median) in targets.iter().zip(&medians) {
        println!(
            "{name:<22} {median:>9.0} requests/s   {:.2} of the empty route",
            median / medians[0]
        );
    }
    runtime.shutdown_background();
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Starts a server on the bundled model, one on a model that costs next to nothing, and an empty route beside them;
/// returns their addresses.
async fn start() -> (SocketAddr, SocketAddr, SocketAddr) {
    // The log is part of what a request costs, and goes where nobody reads it.
    let flags = ServeFlags::parse_from(["model-serving"]);
    std::mem::forget(logging::start_to(flags.log_config(), std::io::sink()));
    let digits = serve("models/best.onnx").await;
    let tiny = serve("tests/fixtures/addone.onnx").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let empty = listener.local_addr().unwrap();
    let router = axum::Router::new().route("/", axum::routing::get(async || {}));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (digits, tiny, empty)
}

async fn serve(model: &str) -> SocketAddr {
    let mut flags = ServeFlags::parse_from(["model-serving", "--host", "127.0.0.1", "--port", "0"]);
    flags.model = repository(model);
    let config = flags.into_config(|_| None).unwrap();
    let listener = server::bind(&config).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        server::run(
            config,
            listener,
            Signals::install().unwrap(),
            Tracer::default(),
        )
        .await
        .unwrap();
    });
    let ready = request("GET", "/ready", "", &[]);
    while !once(address, &ready).await {
        tokio::task::yield_now().await;
    }
    address
}

fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: bench\r\n{headers}").into_bytes();
    if method == "POST" {
        bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

async fn once(address: SocketAddr, request: &[u8]) -> bool {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut buffer = Vec::new();
    exchange(&mut stream, request, &mut buffer).await
}

/// Sends `request` and reads the answer; returns whether its status was 200.
async fn exchange(stream: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) -> bool {
    stream.write_all(request).await.unwrap();
    buffer.clear();
    loop {
        assert!(
            stream.read_buf(buffer).await.unwrap() > 0,
            "the connection ended"
        );
        let Some(head) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else {
            continue;
        };
        let text = std::str::from_utf8(&buffer[..head]).unwrap();
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        if buffer.len() >= head + 4 + length {
            return text.starts_with("HTTP/1.1 200");
        }
    }
}

/// Closed-loop load from a thread of its own; returns requests per second.
#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn load(address: SocketAddr, request: &[u8], connections: usize, duration: Duration) -> f64 {
    let count = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let started = Instant::now();
        let tasks: Vec<_> = (0..connections)
            .map(|_| {
                let (count, stop, request) =
                    (Arc::clone(&count), Arc::clone(&stop), request.to_vec());
                tokio::spawn(async move {
                    let mut stream = TcpStream::connect(address).await.unwrap();
                    stream.set_nodelay(true).unwrap();
                    let mut buffer = Vec::with_capacity(4096);
                    while !stop.load(Ordering::Relaxed) {
                        assert!(
                            exchange(&mut stream, &request, &mut buffer).await,
                            "{}",
                            String::from_utf8_lossy(&buffer)
                        );
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        tokio::time::sleep(duration).await;
        stop.store(true, Ordering::Relaxed);
        for task in tasks {
            task.await.unwrap();
        }
        count.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64()
    })
}
