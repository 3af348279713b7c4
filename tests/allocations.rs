//! What a prediction allocates in the steady state: more than a stated number would be a step back on the hot path.
//!
//! The real server runs in this process, its log included, under an allocator that counts. The client allocates
//! nothing. What ONNX Runtime allocates is not counted, since it does not ask Rust's allocator.
//!
//! It is a test binary of its own, and not a module of `tests/suite/`: the allocator is a whole process's, and what other
//! tests allocate meanwhile would be counted too.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a test stops at the first thing that is wrong, and this one tells what it counted"
)]

use std::alloc::System;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use clap::Parser;
use model_serving::config::ServeFlags;
use model_serving::server;
use model_serving::signals::Signals;
use model_serving::telemetry::logging;
use model_serving::telemetry::traces::Tracer;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use testing::{PATIENCE, eventually, fixture};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Requests are counted together, because what the server does after an answer falls into the next request.
const REQUESTS_IN_A_GROUP: u32 = 50;

/// The median of so many groups is not moved by what happens once in a while, such as a look at the instances.
const GROUPS: usize = 15;

/// What was counted when this was written. Lower them when less is counted.
const RAW_BOUND: f64 = 49.0;
const JSON_BOUND: f64 = 48.0;

#[test]
fn a_prediction_allocates_no_more_than_it_did() {
    let flags = |arguments: &[&str]| {
        let mut flags = ServeFlags::parse_from(["model-serving"].iter().chain(arguments).copied());
        flags.model = fixture("addone").into();
        flags
    };
    let flags = flags(&["--host", "127.0.0.1", "--port", "0"]);
    // The lines of the log are part of a request.
    let _flushed_at_the_end = logging::start_to(flags.log_config(), std::io::sink());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let address = runtime.block_on(serve(flags));
    let mut client = Client::connect(address);
    client.wait_until_ready();
    // The server sends panics to its log; those of a test are for whoever runs it.
    drop(std::panic::take_hook());

    let raw = post(
        "Content-Type: application/octet-stream\r\nAccept: application/octet-stream\r\n",
        &[0; 16],
    );
    let json = post(
        "Content-Type: application/json\r\n",
        br#"{"inputs": [[0.25, 1.5, -3.75, 4]]}"#,
    );
    let counted = [("raw", &raw, RAW_BOUND), ("JSON", &json, JSON_BOUND)]
        .map(|(name, request, bound)| (name, allocations_per_request(&mut client, request), bound));
    for (name, allocations, bound) in counted {
        println!("{name}, one row: {allocations:.2} allocations, at most {bound} are allowed");
    }
    for (name, allocations, bound) in counted {
        // Half of one is left to what happens once in a while.
        assert!(
            allocations < bound + 0.5,
            "a {name} prediction costs {allocations:.2} allocations, not {bound}"
        );
    }
    runtime.shutdown_background();
}

async fn serve(flags: ServeFlags) -> SocketAddr {
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

fn post(headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST /predict HTTP/1.1\r\nHost: test\r\n{headers}Content-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// The median of the groups. A reallocation counts as an allocation.
fn allocations_per_request(client: &mut Client, request: &[u8]) -> f64 {
    for _ in 0..4 * REQUESTS_IN_A_GROUP {
        assert_eq!(client.exchange(request), 200);
    }
    let mut groups = [0.0; GROUPS];
    for group in &mut groups {
        let before = ALLOCATOR.stats();
        for _ in 0..REQUESTS_IN_A_GROUP {
            assert_eq!(client.exchange(request), 200);
        }
        let spent = ALLOCATOR.stats() - before;
        let count = u32::try_from(spent.allocations + spent.reallocations).unwrap();
        *group = f64::from(count) / f64::from(REQUESTS_IN_A_GROUP);
    }
    groups.sort_by(f64::total_cmp);
    groups[GROUPS / 2]
}

/// A keep-alive connection and a buffer: nothing that would have to be allocated for a request.
struct Client {
    stream: TcpStream,
    buffer: [u8; 4096],
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream,
            buffer: [0; 4096],
        }
    }

    fn wait_until_ready(&mut self) {
        eventually("the server is ready", || {
            self.exchange(b"GET /ready HTTP/1.1\r\nHost: test\r\n\r\n") == 200
        });
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
