//! Whole requests, one after another on one connection, and ONNX Runtime's part of them alone.
//!
//! The real server, an empty axum route to compare with, and the client share this process and its cores. Every
//! request waits for the one before, so this is latency without load; `cargo bench --bench rough` measures throughput.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark stops at the first thing that is wrong"
)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use clap::Parser;
use criterion::{Criterion, criterion_group, criterion_main};
use model_serving::config::ServeFlags;
use model_serving::model::repository;
use model_serving::runtime::library::Library;
use model_serving::runtime::providers::{CudaConfig, Device};
use model_serving::runtime::session::{self, InstanceGroup, SessionConfig};
use model_serving::runtime::{InputView, Model};
use model_serving::server;
use model_serving::signals::Signals;
use model_serving::telemetry::logging;
use model_serving::telemetry::traces::Tracer;
use model_serving::tensor::{Shape, TensorData};
use smallvec::smallvec;
use support::numbers;
use tokio::net::TcpListener;

const JSON: &str = "Content-Type: application/json\r\n";
const RAW: &str = "Content-Type: application/octet-stream\r\nAccept: application/octet-stream\r\n";

/// A model that is served.
struct Served {
    name: &'static str,
    file: &'static str,
    /// The shape of one row of its input.
    row: &'static [usize],
    /// Where to ask for its one output, or one of them.
    route: &'static str,
    /// One row as JSON.
    json: &'static str,
}

const MODELS: [Served; 2] = [
    Served {
        name: "addone",
        file: "tests/fixtures/addone.onnx",
        row: &[4],
        route: "/predict",
        json: r#"{"inputs": [[0.25, 1.5, -3.75, 4]]}"#,
    },
    Served {
        name: "digits",
        file: "models/best.onnx",
        row: &[1, 8, 8],
        route: "/predict?outputs=probabilities",
        json: include_str!("../models/samples/digit-7.json"),
    },
];

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn whole_requests(criterion: &mut Criterion) {
    // The log is part of what a request costs, and goes where nobody reads it.
    let flags = ServeFlags::parse_from(["model-serving"]);
    let _flushed_at_the_end = logging::start_to(flags.log_config(), std::io::sink());
    // Leaked, because dropping a runtime waits for what runs in it, also when a benchmark fails.
    let runtime = Box::leak(Box::new(
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap(),
    ));
    let mut group = criterion.benchmark_group("serve");
    let empty = runtime.block_on(empty_route());
    let mut client = Client::connect(empty);
    group.bench_function("empty axum route", |bencher| {
        bencher.iter(|| client.exchange(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"));
    });
    for served in MODELS {
        let mut client = Client::connect(runtime.block_on(serve(served.file)));
        let ready = get("/ready");
        while client.exchange(&ready) != 200 {
            std::thread::yield_now();
        }
        // The server sends panics to its log; one of a benchmark is for whoever runs it.
        drop(std::panic::take_hook());
        let raw: Vec<u8> = numbers(served.row.iter().product())
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let name = served.name;
        for (form, request) in [
            ("health", get("/health")),
            ("JSON row", post(served.route, JSON, served.json.as_bytes())),
            ("raw row", post(served.route, RAW, &raw)),
        ] {
            group.bench_function(format!("{name}/{form}"), |bencher| {
                bencher.iter(|| assert_eq!(client.exchange(&request), 200));
            });
        }
    }
    group.finish();
}

fn model_alone(criterion: &mut Criterion) {
    let library = Library::load(None).unwrap();
    let mut group = criterion.benchmark_group("model alone");
    for served in MODELS {
        let name = served.name;
        let source = repository::find(&file(served.file), None)
            .unwrap()
            .remove(0);
        let config = SessionConfig {
            device: Device::CPU,
            cuda: CudaConfig::default(),
            run_memory: None,
            most_sessions: 1,
        };
        let instance_group = |_| InstanceGroup {
            instances: 1,
            intra_op_threads: 1,
        };
        let mut model = session::load(&library, &source, config, instance_group)
            .unwrap()
            .models
            .remove(0);
        for rows in [1, 32] {
            let shape = Shape::from_slice(&[&[rows], served.row].concat());
            let values = TensorData::from(numbers(shape.iter().product()));
            group.bench_function(format!("{name}/{rows}"), |bencher| {
                bencher.iter(|| {
                    let input = InputView {
                        shape: shape.clone(),
                        elements: values.view(),
                    };
                    model.run(smallvec![input]).unwrap()
                });
            });
        }
    }
    group.finish();
}

async fn serve(model: &str) -> SocketAddr {
    let arguments = ["model-serving", "--host", "127.0.0.1", "--port", "0"];
    let instance_group = ["--instances", "1", "--intra-op-threads", "1"];
    let mut flags = ServeFlags::parse_from(arguments.iter().chain(&instance_group));
    flags.model = file(model);
    let config = flags.into_config(|_| None).unwrap();
    let listener = server::bind(&config).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let signals = Signals::install().unwrap();
        server::run(config, listener, signals, Tracer::default())
            .await
            .unwrap();
    });
    address
}

async fn empty_route() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = axum::Router::new().route("/", axum::routing::get(async || {}));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n").into_bytes()
}

fn post(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: bench\r\n{headers}Content-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// One keep-alive connection. Its time is a part of what is measured, so it does no more than it must, and the tests' client
/// does more.
struct Client {
    stream: TcpStream,
    buffer: [u8; 16 * 1024],
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: [0; 16 * 1024],
        }
    }

    /// Sends `request`, reads the whole answer and returns its status.
    fn exchange(&mut self, request: &[u8]) -> u16 {
        self.stream.write_all(request).unwrap();
        let mut received = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[received..]).unwrap();
            assert!(read > 0, "the connection ended");
            received += read;
            let answer = &self.buffer[..received];
            let Some(head) = answer.windows(4).position(|part| part == b"\r\n\r\n") else {
                continue;
            };
            let text = std::str::from_utf8(&answer[..head]).unwrap();
            let length = text
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .map_or(0, |length| length.parse().unwrap());
            if received == head + 4 + length {
                return text[9..12].parse().unwrap();
            }
        }
    }
}

criterion_group!(benches, whole_requests, model_alone);
criterion_main!(benches);
