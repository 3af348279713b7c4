//! Instances, threads and batch sizes are chosen by measuring, unless somebody has said what they are to be.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testing::models::Repository;
use testing::{Request, Server, fixture, program};

/// The log's line about the model that was loaded.
fn loaded(server: &Server) -> Value {
    let line = server
        .log
        .wait_for(|line| line["message"] == "model loaded");
    line.unwrap()
}

/// Whether settings were tried before the model was loaded.
fn was_measured(server: &Server) -> bool {
    let lines = server.log.lines();
    lines.iter().any(|line| line["measured"].is_string())
}

/// One setting that was tried, as the log tells it.
struct Tried {
    instances: u64,
    threads: u64,
    rows: u64,
    rows_per_second: f64,
    milliseconds: f64,
}

/// Every setting that was tried for the model of `server`, in the order in which it was.
fn tried(server: &Server) -> Vec<Tried> {
    let lines = server.log.lines();
    let measured = lines.iter().find_map(|line| line["measured"].as_str());
    let one = |text: &str| {
        // For example "1x1x32: 3200000/s 0.010 ms".
        let (setting, figures) = text.split_once(": ").unwrap();
        let [instances, threads, rows] = setting
            .split('x')
            .map(|number| number.parse().unwrap())
            .collect::<Vec<u64>>()[..]
        else {
            panic!("not three numbers: {text}");
        };
        let (rate, run) = figures.split_once("/s ").unwrap();
        Tried {
            instances,
            threads,
            rows,
            rows_per_second: rate.parse().unwrap(),
            milliseconds: run.strip_suffix(" ms").unwrap().parse().unwrap(),
        }
    };
    measured.unwrap().split("; ").map(one).collect()
}

/// Panics unless what the log says was chosen follows from what it says was measured: what is measured depends on the
/// machine and on what else it does meanwhile, but not what follows.
fn check_choice(server: &Server) {
    let (line, tried) = (loaded(server), tried(server));
    // A hundredth more or less is how the log rounds.
    let (nearly, hardly) = (0.99, 1.01);
    if tried[0].milliseconds < 0.2 * nearly {
        assert_eq!(
            line["intra_op_threads"], 1,
            "threads for so short a run: {line}"
        );
    }
    // Batches are tried at last, with the sessions that are chosen, or with one if its runs are short.
    let last = tried.last().unwrap();
    let sizes = || {
        tried
            .iter()
            .filter(|it| (it.instances, it.threads) == (last.instances, last.threads))
    };
    let rate = |rows: u64| {
        let of_that_size = sizes().filter(|it| it.rows == rows);
        of_that_size
            .map(|it| it.rows_per_second)
            .fold(0.0, f64::max)
    };
    let merge_rows = line["merge_rows"].as_u64().unwrap();
    if sizes().all(|it| it.rows == 1) {
        assert_eq!(merge_rows, 32, "nothing speaks against it: {line}");
        return;
    }
    let best = sizes().map(|it| it.rows_per_second).fold(0.0, f64::max);
    if merge_rows == 1 {
        let (pays, single) = (
            best * nearly >= 1.1 * rate(1),
            rate(1) >= 0.95 * best * nearly,
        );
        assert!(!pays || single, "batches would pay: {line}");
    } else {
        assert!(best * hardly >= 1.1 * rate(1), "no batch pays: {line}");
        assert!(
            rate(merge_rows) * hardly >= 0.95 * best,
            "others are better: {line}"
        );
    }
    for smaller in sizes().filter(|it| it.rows < merge_rows) {
        let enough = rate(smaller.rows) * nearly >= 0.95 * best;
        assert!(!enough, "{} rows suffice: {line}", smaller.rows);
    }
    // What was measured of a size first is what it is called short by.
    let by_one_thread = || tried.iter().filter(|it| it.threads == 1);
    let all_are_short = by_one_thread().all(|size| {
        let first = by_one_thread().find(|it| it.rows == size.rows);
        first.unwrap().milliseconds <= 0.5
    });
    let executor = if all_are_short && line["intra_op_threads"] == 1 {
        "runtime"
    } else {
        "threads"
    };
    assert_eq!(line["executor"], executor, "{line}");
}

/// A copy of the fixture `name` in a folder of its own.
fn copy(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    fs::copy(fixture(name), &path).unwrap();
    (folder, path)
}

fn tune(path: &std::path::Path, flags: &[&str]) -> Output {
    let mut command = program();
    command
        .arg("tune")
        .arg(path)
        .args(["--time", "2s"])
        .args(flags);
    command.output().unwrap()
}

#[test]
fn a_start_measures_what_nobody_has_fixed_and_says_what_it_chose() {
    let server = Server::fixture("addone", &[]);
    check_choice(&server);
    let answer = server.predict(&json!({"inputs": [[1, 2, 3, 4]]}));
    assert_eq!(answer.json()["outputs"]["y"], json!([[2.0, 3.0, 4.0, 5.0]]));
}

#[test]
fn what_is_fixed_is_had_and_off_measures_nothing() {
    let fixed = Server::fixture(
        "addone",
        &[
            "--instances",
            "3",
            "--intra-op-threads",
            "2",
            "--max-batch-size",
            "4",
        ],
    );
    let line = loaded(&fixed);
    assert_eq!(
        [
            &line["instances"],
            &line["intra_op_threads"],
            &line["merge_rows"]
        ],
        [3, 2, 4],
        "{line}"
    );
    let off = Server::fixture("addone", &["--tuning-time", "off"]);
    assert!(!was_measured(&off));
    assert_eq!(loaded(&off)["merge_rows"], 32);
}

#[test]
fn only_runs_that_are_known_to_be_short_are_made_beside_the_connections() {
    let executor =
        |name: &str, flags: &[&str]| loaded(&Server::fixture(name, flags))["executor"].clone();
    assert_eq!(executor("addone", &[]), "runtime");
    // As many threads as instances are what the flag promises.
    assert_eq!(executor("addone", &["--instances", "1"]), "threads");
    // A request can make these run as long as it wants, or on as much as it wants.
    for unbounded in ["loop", "big", "dyn", "identity_string"] {
        assert_eq!(executor(unbounded, &[]), "threads", "{unbounded}");
    }
}

/// While a long run goes on, whatever is asked of the server besides must be answered.
#[test]
fn a_long_run_keeps_no_connection_waiting() {
    let server = Server::fixture("loop", &["--request-timeout", "20s"]);
    let (started, ended) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = server.connect();
                started.store(true, Ordering::SeqCst);
                // About two seconds.
                let request = Request::json("/predict", r#"{"inputs": [2000000]}"#);
                assert_eq!(client.send(&request).unwrap().status, 200);
                ended.store(true, Ordering::SeqCst);
            });
        }
        let executing = || server.metric("ml_requests_in_flight", &[]) == Some(4.0);
        testing::eventually("all are executing, or one has been", || {
            executing() || ended.load(Ordering::SeqCst)
        });
        let mut answered = 0;
        while !ended.load(Ordering::SeqCst) {
            assert_eq!(server.get("/health").status, 200);
            answered += 1;
        }
        assert!(answered > 10, "{answered}");
    });
}

#[test]
fn a_model_that_cannot_be_tuned_keeps_no_other_from_it() {
    let repository = Repository::with(&[
        ("not_onnx", "a/1/model.onnx"),
        ("addone", "b/1/model.onnx"),
        ("addone", "c/1/model.onnx"),
    ]);
    repository.write("c/1/model.toml", "nmae = 1");
    let output = tune(&repository.path(""), &[]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    let last = told.lines().last().unwrap();
    for part in [
        "2 models cannot be tuned",
        "a/1/model.onnx",
        "c/1/model.toml",
    ] {
        assert!(last.contains(part), "{told}");
    }
    let written = fs::read_to_string(repository.path("b/1/model.toml")).unwrap();
    assert!(written.contains("[tuning]"), "{written}");
}

#[test]
fn tune_prints_a_table_and_the_next_start_takes_what_it_wrote() {
    let (_folder, path) = copy("addone");
    let sidecar = path.with_extension("toml");
    fs::write(&sidecar, "name = \"adder\" # kept\n").unwrap();

    let dry = tune(&path, &["--dry-run"]);
    assert!(dry.status.success(), "{dry:?}");
    assert_eq!(
        fs::read_to_string(&sidecar).unwrap(),
        "name = \"adder\" # kept\n"
    );

    let output = tune(&path, &[]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("instances  threads   rows      rows/s      ms/run"),
        "{text}"
    );
    assert_eq!(text.matches("chosen").count(), 1, "{text}");
    assert!(
        text.contains(&format!("written to {}", sidecar.display())),
        "{text}"
    );
    let written = fs::read_to_string(&sidecar).unwrap();
    assert!(
        written.starts_with("name = \"adder\" # kept\n"),
        "{written}"
    );

    let server = Server::start(&["--model", path.to_str().unwrap()]);
    assert!(!was_measured(&server));
    assert_eq!(loaded(&server)["executor"], "runtime");
    drop(server);

    // What somebody has written down by hand is taken as it stands, too.
    let edited = written
        .lines()
        .map(|line| match line.split_once(" = ") {
            Some(("instances", _)) => "instances = 3",
            Some(("merge_rows", _)) => "merge_rows = 5",
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n");
    fs::write(&sidecar, edited).unwrap();
    let server = Server::start(&["--model", path.to_str().unwrap()]);
    let line = loaded(&server);
    assert_eq!([&line["instances"], &line["merge_rows"]], [3, 5], "{line}");

    // What is written down no more does not live on in a server that loads the model again.
    fs::write(&sidecar, "name = \"adder\"\n").unwrap();
    server.signal(Signal::SIGHUP);
    let reloaded = |line: &Value| line["message"] == "model reloaded";
    assert!(server.log.wait_for(reloaded).is_some());
    assert!(was_measured(&server));
    // What was measured does: a server that is in use cannot be measured.
    let measurements = |server: &Server| {
        server
            .log
            .lines()
            .iter()
            .filter(|line| line["measured"].is_string())
            .count()
    };
    server.signal(Signal::SIGHUP);
    let twice = || {
        server
            .log
            .lines()
            .iter()
            .filter(|line| reloaded(line))
            .count()
            == 2
    };
    testing::eventually("a second reload", twice);
    assert_eq!(measurements(&server), 1);
    drop(server);
}

#[test]
fn what_tune_had_no_time_to_measure_is_not_written_down_as_measured() {
    let (_folder, path) = copy("image");
    let mut command = program();
    let output = command.arg("tune").arg(&path).args(["--time", "1us"]);
    let text = String::from_utf8(output.output().unwrap().stdout).unwrap();
    assert!(
        text.contains("whether that pays was not measured"),
        "{text}"
    );
    let written = fs::read_to_string(path.with_extension("toml")).unwrap();
    assert!(!written.contains("merge_rows"), "{written}");
    let server = Server::start(&["--model", path.to_str().unwrap()]);
    assert!(!was_measured(&server));
    let merged = [("batching", "on"), ("reason", "unmeasured")];
    assert_eq!(server.metric("ml_model_batching_info", &merged), Some(1.0));
}

#[test]
fn settings_that_were_measured_are_kept_also_beside_a_sidecar_that_is_ignored() {
    let (_folder, path) = copy("addone");
    let stale = "[tuning]\nsha256 = \"5c\"\ncpus = 1\ninstances = 1\nintra_op_threads = 1\nmerge_rows = 1\n";
    fs::write(path.with_extension("toml"), stale).unwrap();
    let server = Server::start(&["--model", path.to_str().unwrap()]);
    let count = |wanted: &dyn Fn(&Value) -> bool| {
        let lines = server.log.lines();
        lines.iter().filter(|line| wanted(line)).count()
    };
    for reloads in 1..=2 {
        server.signal(Signal::SIGHUP);
        testing::eventually("a model reloaded", || {
            count(&|line| line["message"] == "model reloaded") == reloads
        });
    }
    assert_eq!(count(&|line| line["measured"].is_string()), 1);
}

#[test]
fn settings_of_another_model_are_ignored_and_said_to_be() {
    let (_folder, path) = copy("addone");
    assert!(tune(&path, &[]).status.success());
    let sidecar = path.with_extension("toml");
    let written = fs::read_to_string(&sidecar).unwrap();
    // The first session is made before it is known that they are of another model, and must not be measured for one.
    fs::write(
        &sidecar,
        written.replace("intra_op_threads = 1", "intra_op_threads = 2"),
    )
    .unwrap();
    fs::copy(fixture("addten"), &path).unwrap();
    let server = Server::start(&["--model", path.to_str().unwrap()]);
    let ignored = |line: &Value| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.contains("is ignored"))
    };
    assert!(server.log.lines().iter().any(ignored));
    let first = &tried(&server)[0];
    assert_eq!((first.instances, first.threads, first.rows), (1, 1, 1));
    check_choice(&server);
}

#[test]
fn tune_fails_in_one_line_where_it_cannot_measure_or_write() {
    for (output, part) in [
        (tune(&PathBuf::from("nowhere.onnx"), &[]), "nowhere.onnx"),
        (
            tune(&PathBuf::from(fixture("not_onnx")), &[]),
            "not an ONNX model",
        ),
    ] {
        assert_eq!(output.status.code(), Some(1));
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(complaint.lines().count(), 1, "{complaint}");
        assert!(complaint.contains(part), "{complaint}");
    }
    let (folder, path) = copy("addone");
    // A folder in the sidecar's place cannot be written, whoever asks.
    fs::create_dir(path.with_extension("toml")).unwrap();
    let output = tune(&path, &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    drop(folder);
}
