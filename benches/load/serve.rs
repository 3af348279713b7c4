//! The server as the program runs it, and an empty axum route, on one runtime: whatever the machine does to one of
//! them it does to the other, so that their ratio says what the server costs.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;

use axum::Router;
use axum::routing::get;
use clap::Parser;
use model_serving::config::ServeFlags;
use model_serving::server;
use model_serving::signals::Signals;
use model_serving::telemetry::logging;
use model_serving::telemetry::traces::Tracer;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Serves `model` and the empty route, prints their addresses once both answer, and returns when standard input ends.
pub(crate) fn until_standard_input_ends(model: &Path, flags: &[String]) {
    let own = ["model-serving", "--host", "127.0.0.1", "--port", "0"];
    let mut flags = ServeFlags::parse_from(own.into_iter().chain(flags.iter().map(String::as_str)));
    model.clone_into(&mut flags.model);
    // The log is part of what a request costs, and goes where nobody reads it.
    let _flushed_at_the_end = logging::start_to(flags.log_config(), std::io::sink());
    // As the program builds it.
    let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("http")
        .max_blocking_threads(cpus * 2)
        .build()
        .unwrap();
    let (server, empty) = runtime.block_on(async { (serve(flags).await, serve_nothing().await) });
    println!("{}", json!({"server": server, "empty": empty}));
    std::io::stdout().flush().unwrap();
    let mut ignored = Vec::new();
    let _ = std::io::stdin().read_to_end(&mut ignored);
    runtime.shutdown_background();
}

async fn serve_nothing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/", get(async || {}).post(async || {}));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

async fn serve(flags: ServeFlags) -> SocketAddr {
    let config = flags.into_config(|_| None).unwrap();
    let listener = server::bind(&config).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let signals = Signals::install().unwrap();
        let stopped = server::run(config, listener, signals, Tracer::default()).await;
        // Nobody is served after a failed start, nor after a signal.
        if let Err(error) = &stopped {
            eprintln!("beside: {error}");
        }
        std::process::exit(i32::from(stopped.is_err()));
    });
    while !is_ready(address).await {
        tokio::task::yield_now().await;
    }
    address
}

async fn is_ready(address: SocketAddr) -> bool {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = b"GET /ready HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    answer.starts_with(b"HTTP/1.1 200")
}
