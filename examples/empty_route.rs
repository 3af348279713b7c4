//! An empty axum route on the port that is given: what HTTP alone costs, for `make instructions` to compare with.

#![allow(
    clippy::unwrap_used,
    reason = "a program to measure stops at the first thing that is wrong"
)]

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() {
    let port = std::env::args().nth(1).unwrap().parse::<u16>().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let router = Router::new().route("/", get(async || {}));
    axum::serve(listener, router).await.unwrap();
}
