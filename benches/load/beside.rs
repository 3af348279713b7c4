//! What the load of `make bench` is held against: the same work in one process, with as little around it as possible.
//!
//! Each command prints JSON objects, one a line, on standard output. `benches/load/bench.py` starts them.
//!
//! ```text
//! beside serve MODEL [-- FLAGS...]       the server and an empty axum route on one runtime, until standard input ends
//! beside ceiling MODEL --threads 1 --instances 2 --batch 1,2,4 --seconds 2
//! beside session MODEL                   the least that a program needs before it can predict, then exit
//! beside decode MODEL --seconds 2        JSON text of an image into a tensor, on one thread
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a benchmark stops at the first thing that is wrong, prints, and lets time pass"
)]

mod ceiling;
mod decode;
mod dummy_inputs;
mod serve;
mod session;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// `cargo bench` adds it.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Serves a model as the program does, and an empty axum route on the same runtime.
    Serve {
        model: PathBuf,
        /// Flags of the server.
        #[arg(last = true)]
        flags: Vec<String>,
    },
    /// Runs the server's sessions without a server.
    Ceiling {
        model: PathBuf,
        /// ONNX Runtime's library; searched as the server does if not given.
        #[arg(long)]
        onnxruntime: Option<PathBuf>,
        /// Threads of each session.
        #[arg(long, default_value_t = 1)]
        threads: usize,
        /// Sessions, each with a thread that runs it.
        #[arg(long, default_value_t = 1)]
        instances: usize,
        /// Rows of each run; several are measured one after the other.
        #[arg(long, value_delimiter = ',', default_value = "1")]
        batch: Vec<usize>,
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
    },
    /// Creates one session and exits.
    Session {
        model: PathBuf,
        #[arg(long)]
        onnxruntime: PathBuf,
        #[arg(long)]
        threads: usize,
    },
    /// Decodes JSON.
    Decode {
        model: PathBuf,
        #[arg(long)]
        onnxruntime: Option<PathBuf>,
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
    },
}

#[expect(
    unsafe_code,
    reason = "the environment is set before there are threads"
)]
fn main() {
    // SAFETY: nothing has started a thread yet.
    unsafe { model_serving::process::prepare() };
    match Arguments::parse().command {
        Command::Serve { model, flags } => serve::until_standard_input_ends(&model, &flags),
        Command::Ceiling {
            model,
            onnxruntime,
            threads,
            instances,
            batch,
            seconds,
        } => {
            let mut models =
                ceiling::load(&model, onnxruntime.as_deref(), threads, instances).models;
            for rows in batch {
                let time = Duration::from_secs_f64(seconds);
                ceiling::measure(&mut models, threads, rows, time);
            }
        }
        Command::Session {
            model,
            onnxruntime,
            threads,
        } => session::create(&model, &onnxruntime, threads),
        Command::Decode {
            model,
            onnxruntime,
            seconds,
        } => {
            let loaded = ceiling::load(&model, onnxruntime.as_deref(), 1, 1);
            decode::measure(&loaded.metadata, Duration::from_secs_f64(seconds));
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count")]
fn as_f64(count: usize) -> f64 {
    count as f64
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
