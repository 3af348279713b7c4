//! Everything that the project promises of a GPU, shown on one: `make gpu-check`.
//!
//! It starts the real server, asks it over HTTP, and compares with the same session run in this process. It prints a
//! table and writes a page. `--device cpu` runs it where there is no GPU, to see that it works; what is about GPUs is
//! then skipped. The exit code is 1 if a promise was not kept.
//!
//! ```text
//! gpu_check --server PROGRAM --conv RESNET50.onnx [--small MODEL.onnx] [--library libonnxruntime.so]
//!           [--device cuda] [--seconds 3] [--name NAME] [--out PAGE.md]
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a benchmark stops at the first thing that is wrong, prints, and lets time pass"
)]

mod report;
mod served;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser;
use model_serving::model::repository;
use model_serving::runtime::buckets::Buckets;
use model_serving::runtime::library::Library;
use model_serving::runtime::providers::{CudaConfig, Device};
use model_serving::runtime::session::{self, InstanceGroup, OrtModel, SessionConfig};
use model_serving::runtime::{InputView, Model};
use model_serving::tensor::{Shape, TensorView};
use report::{Report, Verdict};
use serde_json::Value;
use served::{Client, Program, Served, load, quantile_of, raw_request};

/// Rounds of a comparison, interleaved; their median counts.
const ROUNDS: usize = 5;

/// The largest relative difference from the CPU's outputs, in FP32 without TF32.
const TOLERANCE: f64 = 1e-3;

/// The served part of the in-process ceiling that the convolutional model must reach.
const CEILING: f64 = 0.95;

#[derive(Parser)]
struct Arguments {
    /// The server's program.
    #[arg(long)]
    server: PathBuf,
    /// A convolutional model with one FP32 input and a dynamic batch.
    #[arg(long)]
    conv: PathBuf,
    /// A small one.
    #[arg(long, default_value = "models/best.onnx")]
    small: PathBuf,
    /// ONNX Runtime's library.
    #[arg(long)]
    library: Option<String>,
    /// What to check.
    #[arg(long, default_value = "cuda")]
    device: Device,
    /// Seconds of each load.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Rows per execution.
    #[arg(long, default_value_t = 32)]
    max_batch_size: usize,
    /// What to call this machine.
    #[arg(long, default_value = "unnamed")]
    name: String,
    /// The page to write.
    #[arg(long)]
    out: Option<PathBuf>,
    /// `cargo bench` adds it.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Everything that the checks share.
struct Check<'a> {
    arguments: &'a Arguments,
    program: Program<'a>,
    device: String,
    on_gpu: bool,
    time: Duration,
    report: Report,
}

/// A model as it is asked: a row's shape, and its values.
struct Subject<'a> {
    path: &'a Path,
    name: &'static str,
    /// The output that is asked for.
    output: String,
    shape: Vec<usize>,
    row: Vec<f32>,
}

impl Subject<'_> {
    fn request(&self, rows: usize) -> Vec<u8> {
        raw_request(rows, &self.output, &self.shape, &self.row)
    }
}

#[expect(
    unsafe_code,
    reason = "the environment is set before there are threads"
)]
fn main() {
    // SAFETY: nothing has started a thread yet.
    unsafe { model_serving::process::prepare() };
    let arguments = Arguments::parse();
    let mut check = Check {
        program: Program {
            path: &arguments.server,
            library: arguments.library.as_deref(),
        },
        device: arguments.device.to_string(),
        on_gpu: arguments.device != Device::CPU,
        time: Duration::from_secs_f64(arguments.seconds),
        report: Report::default(),
        arguments: &arguments,
    };
    check.starts_that_fail();
    for (name, path) in [
        ("small", &arguments.small),
        ("convolutional", &arguments.conv),
    ] {
        let mut model = match check.in_process(path, arguments.device) {
            Ok(model) => model,
            Err(complaint) => {
                let what = format!("{name}: it loads in this process");
                check.report.check(&what, false, complaint);
                continue;
            }
        };
        let shape: Vec<usize> = model.metadata().inputs[0].dims()[1..]
            .iter()
            .map(|dim| match dim {
                model_serving::model::Dim::Fixed(size) => *size,
                model_serving::model::Dim::Dynamic(_) => 1,
            })
            .collect();
        let row = values(shape.iter().product());
        let subject = Subject {
            path,
            name,
            output: model.metadata().outputs[0].name.clone(),
            shape,
            row,
        };
        check.model(&subject, &mut model);
    }
    let facts = [
        ("machine", arguments.name.clone()),
        ("date", command_line("date", &["--utc", "+%F"])),
        ("GPU and driver", gpu()),
        ("CPU", cpu()),
        (
            "command",
            std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        ),
        (
            "method",
            format!(
                "loads of {} s, {ROUNDS} interleaved rounds, medians; clients on the same machine",
                arguments.seconds
            ),
        ),
    ];
    for (name, value) in &facts {
        println!("{name}: {value}");
    }
    if let Some(out) = &arguments.out {
        check
            .report
            .write(out, &format!("GPU check: {}", arguments.name), &facts)
            .unwrap();
        println!("written to {}", out.display());
    }
    let failures = check.report.failures();
    println!("{failures} promises not kept");
    std::process::exit(i32::from(failures > 0));
}

impl Check<'_> {
    /// Missing pieces end the start with one line, within ten seconds.
    fn starts_that_fail(&mut self) {
        if !self.on_gpu {
            self.report.add(
                "starts that fail",
                "this is not about a GPU".to_owned(),
                Verdict::Skipped,
            );
            return;
        }
        let small = self.arguments.small.to_str().unwrap().to_owned();
        let without = without_cublas();
        let hidden = without.as_ref().map(|folder| folder.to_str().unwrap());
        let cases = [
            (
                "a GPU that does not exist",
                "cuda:99",
                ("IGNORED", ""),
                "there is no GPU 99",
            ),
            (
                "no GPU visible",
                "cuda",
                ("CUDA_VISIBLE_DEVICES", ""),
                "shows no GPU",
            ),
            (
                "a CUDA library hidden",
                "cuda",
                ("LD_LIBRARY_PATH", hidden.unwrap_or_default()),
                "is missing",
            ),
        ];
        for (what, device, environment, expected) in cases {
            if environment.0 == "LD_LIBRARY_PATH" && hidden.is_none() {
                let reason = "cuBLAS is not found by LD_LIBRARY_PATH here, so it cannot be hidden"
                    .to_owned();
                self.report.add(what, reason, Verdict::Skipped);
                continue;
            }
            let (code, text, seconds) = self
                .program
                .fail(&["--model", &small, "--device", device], &[environment]);
            let kept = code == Some(1)
                && text.lines().count() == 1
                && text.contains(expected)
                && seconds < 10.0;
            self.report.check(
                &format!("start with {what}"),
                kept,
                format!("code {code:?}, {seconds:.1} s: {text}"),
            );
        }
    }

    /// Everything about one model.
    fn model(&mut self, subject: &Subject<'_>, model: &mut OrtModel) {
        let (name, path) = (subject.name, subject.path.to_str().unwrap());
        let max = self.arguments.max_batch_size.to_string();
        let flags = [
            "--model",
            path,
            "--device",
            &self.device,
            "--max-batch-size",
            &max,
        ];
        let served = match self.program.serve(&flags) {
            Ok(served) => served,
            Err(complaint) => {
                self.report
                    .check(&format!("{name}: it starts"), false, complaint);
                return;
            }
        };
        self.identity(subject, &served);
        self.first_requests(subject, &served);
        self.outputs(subject, &served);
        self.latencies(subject, &served);
        if self.on_gpu {
            self.gauges(subject, &served);
        }
        self.throughput(subject, &served, model);
        if self.on_gpu {
            self.memory(subject, &served);
        }
    }

    /// The device that really executes, everywhere the same.
    fn identity(&mut self, subject: &Subject<'_>, served: &Served) {
        let ready: Value =
            serde_json::from_slice(&Client::connect(served.address).get("/ready").body).unwrap();
        let model = &ready["models"][0];
        let provider = model["execution_provider"].as_str().unwrap_or_default();
        let info = metric(served, "ml_model_info", &[("execution_provider", provider)]);
        let nodes = model["nodes"][provider].as_u64().unwrap_or(0);
        let device = model["device"].as_str().unwrap_or_default();
        self.report.check(
            &format!("{}: device and nodes", subject.name),
            device == self.device && info == Some(1.0) && nodes > 0,
            format!(
                "{device}, nodes {}, ready after {:.1} s",
                model["nodes"], served.seconds_to_ready
            ),
        );
    }

    /// The first request of each batch size pays nothing that the later ones do not.
    fn first_requests(&mut self, subject: &Subject<'_>, served: &Served) {
        let mut client = Client::connect(served.address);
        let mut firsts = Vec::new();
        let sizes = Buckets::up_to(self.arguments.max_batch_size).sizes();
        let requests: Vec<_> = sizes.iter().map(|rows| subject.request(*rows)).collect();
        for request in &requests {
            let sent = Instant::now();
            assert_eq!(client.send(request).status, 200);
            firsts.push(sent.elapsed().as_secs_f64() * 1e3);
        }
        let mut worst = (0.0, String::new());
        for ((rows, request), first) in sizes.iter().zip(&requests).zip(firsts) {
            let steady = load(
                served.address,
                request,
                1,
                self.time.min(Duration::from_secs(1)),
            );
            let ratio = first / steady.quantile(0.99);
            if ratio > worst.0 {
                worst = (
                    ratio,
                    format!("{ratio:.2} × the steady p99, at {rows} rows ({first:.2} ms)"),
                );
            }
        }
        self.report.check(
            &format!(
                "{}: slowest first request of a batch size after ready",
                subject.name
            ),
            worst.0 <= 2.0,
            worst.1,
        );
    }

    /// The outputs are the CPU's.
    fn outputs(&mut self, subject: &Subject<'_>, served: &Served) {
        let mut cpu = self.in_process(subject.path, Device::CPU).unwrap();
        let mut worst: f64 = 0.0;
        for rows in [1, 3, self.arguments.max_batch_size] {
            let request = subject.request(rows);
            let answer = Client::connect(served.address).send(&request);
            assert_eq!(
                answer.status,
                200,
                "{}",
                String::from_utf8_lossy(&answer.body)
            );
            let answer: Vec<f32> = answer
                .body
                .chunks_exact(4)
                .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
                .collect();
            let expected = run(&mut cpu, subject, rows);
            assert_eq!(answer.len(), expected.len());
            let scale = expected
                .iter()
                .fold(0.0_f32, |scale, value| scale.max(value.abs()));
            let differences = answer
                .iter()
                .zip(&expected)
                .map(|(one, other)| f64::from((one - other).abs() / scale));
            worst = differences.fold(worst, f64::max);
        }
        self.report.check(
            &format!(
                "{}: largest difference from the CPU, relative to the largest output, TF32 off",
                subject.name
            ),
            worst <= TOLERANCE,
            format!("{worst:.1e}"),
        );
    }

    fn latencies(&mut self, subject: &Subject<'_>, served: &Served) {
        let request = subject.request(1);
        for connections in [1, 8, 32, 128] {
            let load = load(served.address, &request, connections, self.time);
            self.report.check(
                &format!("{}: {connections} connections, one row each", subject.name),
                load.failed == 0,
                format!(
                    "p50 {:.2} ms, p99 {:.2} ms, {:.0} rows/s, {} failed",
                    load.quantile(0.5),
                    load.quantile(0.99),
                    load.requests_per_second,
                    load.failed
                ),
            );
        }
    }

    /// NVML's gauges are there and move under load.
    fn gauges(&mut self, subject: &Subject<'_>, served: &Served) {
        let names = [
            "ml_gpu_utilization_percent",
            "ml_gpu_memory_used_bytes",
            "ml_gpu_power_watts",
            "ml_gpu_temperature_celsius",
        ];
        let read = || names.map(|name| metric(served, name, &[]));
        std::thread::sleep(Duration::from_secs(2));
        let idle = read();
        let request = subject.request(self.arguments.max_batch_size);
        let (address, time) = (served.address, self.time + Duration::from_secs(2));
        let loading = std::thread::spawn(move || load(address, &request, 8, time));
        std::thread::sleep(self.time);
        let busy = read();
        loading.join().unwrap();
        let all_there = idle.iter().chain(&busy).all(Option::is_some);
        let moved = busy[0] > idle[0] || busy[2] > idle[2];
        let text = names
            .iter()
            .zip(idle.iter().zip(&busy))
            .map(|(name, (idle, busy))| {
                format!(
                    "{name} {} → {}",
                    idle.unwrap_or(f64::NAN),
                    busy.unwrap_or(f64::NAN)
                )
            });
        self.report.check(
            &format!("{}: NVML's gauges, idle → under load", subject.name),
            all_there && moved,
            text.collect::<Vec<_>>().join(", "),
        );
    }

    /// Rows per second over HTTP, as a part of what the session does in this process.
    fn throughput(&mut self, subject: &Subject<'_>, served: &Served, model: &mut OrtModel) {
        let rows = self.arguments.max_batch_size;
        let whole = subject.request(rows);
        let single = subject.request(1);
        let plain = CudaConfig {
            pinned: false,
            ..CudaConfig::default()
        };
        let device = self.arguments.device;
        let mut unpinned = self.in_process_with(subject.path, device, plain).unwrap();
        let mut unpinned_rates = Vec::new();
        let (mut ceilings, mut wholes, mut singles) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            unpinned_rates.push(in_process_rate(&mut unpinned, subject, rows, self.time));
            ceilings.push(in_process_rate(model, subject, rows, self.time) * as_f64(rows));
            wholes.push(
                load(served.address, &whole, 8, self.time).requests_per_second * as_f64(rows),
            );
            singles.push(load(served.address, &single, 128, self.time).requests_per_second);
        }
        let ceiling = median(&mut ceilings);
        if self.on_gpu {
            let gain = ceiling / (median(&mut unpinned_rates) * as_f64(rows));
            let what = format!("{}: what pinned memory gains in process", subject.name);
            let found = format!("{gain:.3} times the rows/s without");
            self.report.add(&what, found, Verdict::Figure);
        }
        for (what, rates) in [
            ("8 connections with batches", &mut wholes),
            ("128 connections with single rows", &mut singles),
        ] {
            let served = median(rates);
            let ratio = served / ceiling;
            let what = format!(
                "{}: served by {what} of {rows}, as a part of the in-process ceiling",
                subject.name
            );
            let found = format!("{ratio:.3} ({served:.0} of {ceiling:.0} rows/s)");
            if subject.name == "convolutional" && what.contains("batches") && self.on_gpu {
                self.report.check(&what, ratio >= CEILING, found);
            } else {
                self.report.add(&what, found, Verdict::Figure);
            }
        }
    }

    /// A thousand mixed batch sizes leave the GPU's memory where it was.
    fn memory(&mut self, subject: &Subject<'_>, served: &Served) {
        let used = || metric(served, "ml_gpu_memory_used_bytes", &[]).unwrap_or(f64::NAN) / 1e6;
        std::thread::sleep(Duration::from_secs(2));
        let before = used();
        let mut client = Client::connect(served.address);
        for number in 0..1000_usize {
            let rows = 1 + number * 7 % self.arguments.max_batch_size;
            assert_eq!(client.send(&subject.request(rows)).status, 200);
        }
        std::thread::sleep(Duration::from_secs(2));
        let after = used();
        self.report.check(
            &format!("{}: GPU memory after 1,000 mixed batch sizes", subject.name),
            after - before < 64.0,
            format!("{before:.0} → {after:.0} MB"),
        );
    }

    /// The same session without a server.
    fn in_process(&self, path: &Path, device: Device) -> Result<OrtModel, String> {
        self.in_process_with(path, device, CudaConfig::default())
    }

    fn in_process_with(
        &self,
        path: &Path,
        device: Device,
        cuda: CudaConfig,
    ) -> Result<OrtModel, String> {
        let source = repository::find(path, None).unwrap().remove(0);
        let library = Library::load(self.arguments.library.as_deref().map(Path::new)).unwrap();
        let config = SessionConfig {
            device,
            cuda,
            run_memory: None,
            most_sessions: 1,
        };
        let cpus = std::thread::available_parallelism().unwrap().get();
        let on_gpu = device != Device::CPU;
        let instance_group = |_| InstanceGroup {
            instances: 1,
            intra_op_threads: if on_gpu { 1 } else { cpus },
        };
        session::load(&library, &source, config, instance_group)
            .map(|mut loaded| loaded.models.remove(0))
            .map_err(|error| error.to_string())
    }
}

/// Values between 0 and 1 that look random and are always the same.
fn values(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(u16::try_from(state >> 16).unwrap()) / 65_536.0
    };
    (0..count).map(|_| next()).collect()
}

/// The first output of `rows` rows, computed here.
fn run(model: &mut OrtModel, subject: &Subject<'_>, rows: usize) -> Vec<f32> {
    let shape: Shape = std::iter::once(rows)
        .chain(subject.shape.iter().copied())
        .collect();
    let elements = subject.row.repeat(rows);
    let input = InputView {
        shape,
        elements: TensorView::Fp32(&elements),
    };
    let outputs = model.run([input].into_iter().collect()).unwrap();
    match outputs[0].view() {
        TensorView::Fp32(elements) => elements.to_vec(),
        other => panic!("the first output is {}", other.datatype()),
    }
}

/// Executions per second of `rows` rows, computed here.
fn in_process_rate(
    model: &mut OrtModel,
    subject: &Subject<'_>,
    rows: usize,
    time: Duration,
) -> f64 {
    let shape: Shape = std::iter::once(rows)
        .chain(subject.shape.iter().copied())
        .collect();
    let elements = subject.row.repeat(rows);
    let started = Instant::now();
    let mut runs = 0_usize;
    while started.elapsed() < time {
        let input = InputView {
            shape: shape.clone(),
            elements: TensorView::Fp32(&elements),
        };
        model.run([input].into_iter().collect()).unwrap();
        runs += 1;
    }
    as_f64(runs) / started.elapsed().as_secs_f64()
}

/// The value of a metric with these labels, the first GPU's if there are several.
fn metric(served: &Served, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let body = Client::connect(served.address).get("/metrics").body;
    let text = String::from_utf8(body).ok()?;
    let scrape =
        prometheus_parse::Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).ok()?;
    testing::sample(&scrape, name, labels)
}

/// A folder with every library of `LD_LIBRARY_PATH` but cuBLAS; nothing if cuBLAS is not found that way.
fn without_cublas() -> Option<PathBuf> {
    let path = std::env::var("LD_LIBRARY_PATH").ok()?;
    let folder = std::env::temp_dir().join(format!("gpu-check-{}", std::process::id()));
    fs::create_dir_all(&folder).ok()?;
    let mut hidden = false;
    for entry in path
        .split(':')
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .flatten()
    {
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with("libcublasLt.so")
        {
            hidden = true;
        } else {
            // The first one of a name is the one that the loader takes.
            let _ = std::os::unix::fs::symlink(entry.path(), folder.join(entry.file_name()));
        }
    }
    hidden.then_some(folder)
}

fn command_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(
        |_| format!("{program} is not there"),
        |output| {
            String::from_utf8_lossy(&output.stdout)
                .trim()
                .replace('\n', "; ")
        },
    )
}

fn gpu() -> String {
    command_line(
        "nvidia-smi",
        &[
            "--query-gpu=name,driver_version,memory.total",
            "--format=csv,noheader",
        ],
    )
}

fn cpu() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("unknown");
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZeroUsize::get);
    format!(
        "{} ({cpus} cores)",
        name.trim_start_matches(['\t', ' ', ':'])
    )
}

#[expect(clippy::cast_precision_loss, reason = "a count")]
fn as_f64(count: usize) -> f64 {
    count as f64
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    quantile_of(values, 0.5)
}
