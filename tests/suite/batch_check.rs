//! Rows of strangers share an execution only where that was shown to change nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::fs;

use serde_json::{Value, json};
use testing::{Request, Server, fixture, program, repository};

/// The server's figures on how the requests for `model` are merged: on or off, and why.
fn merging(server: &Server) -> (String, String) {
    let scrape = server.metrics();
    let mut infos = scrape
        .samples
        .iter()
        .filter(|sample| sample.metric == "ml_model_batching_info");
    let info = infos.next().unwrap();
    assert!(infos.next().is_none());
    let label = |name| info.labels.get(name).unwrap().to_owned();
    (label("batching"), label("reason"))
}

fn reason(server: &Server) -> Value {
    server.get("/ready").json()["models"][0]["not_batched_because"].clone()
}

#[test]
fn a_model_whose_rows_depend_on_each_other_is_executed_request_by_request_and_says_why() {
    let server = Server::start(&["--model", &fixture("neighbours"), "--instances", "1"]);
    assert_eq!(
        merging(&server),
        ("off".to_owned(), "neighbours".to_owned())
    );
    let reason = reason(&server);
    let reason = reason.as_str().unwrap();
    assert!(
        reason.contains("output 'y' of a row depends on the rows beside it"),
        "{reason}"
    );
    let told = server.log.wait_for(|line| {
        line["level"] == "WARN"
            && line["reason"] == reason
            && line["message"]
                .as_str()
                .is_some_and(|message| message.contains("one by one"))
    });
    assert!(told.is_some());

    // Alone, the mean is the row itself. One that had met a stranger would show.
    let request = Request::json("/predict", r#"{"inputs": [[1, 2, 3, 4]]}"#);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = server.connect();
                for _ in 0..50 {
                    let answer = client.send(&request).unwrap();
                    assert_eq!(answer.json()["outputs"]["y"], json!([[0.0, 0.0, 0.0, 0.0]]));
                }
            });
        }
    });
}

#[test]
fn a_model_whose_rows_are_independent_is_batched() {
    for name in [
        "addone",
        "embed",
        "two",
        "identity_string",
        "identity_bool",
        // By the word of its sidecar.
        "loop",
        "dyn",
        // What is declared says too little, or something else than what runs.
        "renamed",
        "label_one",
        "side",
    ] {
        let server = Server::start(&["--model", &fixture(name)]);
        assert_eq!(merging(&server), ("on".to_owned(), String::new()), "{name}");
        assert_eq!(reason(&server), Value::Null);
    }
}

#[test]
fn each_reason_not_to_batch_has_a_name() {
    for (name, flags, expected) in [
        ("random", &[][..], "random"),
        ("fixed_batch", &[], "signature"),
        ("reduce", &[], "signature"),
        ("alarm", &[], "signature"),
        ("steps", &[], "neighbours"),
        ("lookup", &[], "neighbours"),
        ("addressed", &[], "neighbours"),
        ("rowgrow", &[], "neighbours"),
        ("split", &[], "neighbours"),
        ("split_rarely", &[], "neighbours"),
        ("nonzero", &[], "neighbours"),
        ("padded", &[], "neighbours"),
        ("big", &[], "neighbours"),
        // Values that nobody makes up bring strangers' rows together.
        ("partition", &[], "neighbours"),
        ("branch", &[], "neighbours"),
        ("behind_table", &[], "neighbours"),
        ("addone", &["--max-batch-size", "1"], "limit"),
    ] {
        let path = fixture(name);
        let mut all = vec!["--model", path.as_str()];
        all.extend(flags);
        let server = Server::start(&all);
        assert_eq!(
            merging(&server),
            ("off".to_owned(), expected.to_owned()),
            "{name}"
        );
    }
}

/// Sends each of `bodies` from eight clients at once, again and again, and holds every answer's outputs against what
/// is expected.
fn ask_at_once(server: &Server, bodies: &[(Value, Value)]) {
    std::thread::scope(|scope| {
        for client in 0..8 {
            scope.spawn(move || {
                let mut connection = server.connect();
                let (body, expected) = &bodies[client % bodies.len()];
                let request = Request::json("/predict", body.to_string());
                for _ in 0..50 {
                    let answer = connection.send(&request).unwrap();
                    assert_eq!(answer.json()["outputs"], *expected);
                }
            });
        }
    });
}

#[test]
fn the_length_of_an_answer_does_not_depend_on_the_texts_of_strangers() {
    let server = Server::start(&["--model", &fixture("split"), "--max-queue-delay", "5ms"]);
    let long = vec!["w"; 30];
    ask_at_once(
        &server,
        &[
            (
                json!({"inputs": ["hello world"]}),
                json!({"words": [["hello", "world"]], "count": [2]}),
            ),
            (
                json!({"inputs": [long.join(" ")]}),
                json!({"words": [long], "count": [30]}),
            ),
        ],
    );
    let reason = reason(&server);
    let reason = reason.as_str().unwrap();
    assert!(
        reason.contains("the shape of output 'words' depends on values"),
        "{reason}"
    );
}

/// Requests that wait for each other, so that they share executions.
const TOGETHER: [&str; 2] = ["--max-queue-delay", "100ms"];

fn were_merged(server: &Server) {
    let sum = server.metric("ml_executed_batch_size_sum", &[]);
    let count = server.metric("ml_executed_batch_size_count", &[]);
    assert!(sum > count, "{sum:?} rows in {count:?} executions");
}

#[test]
fn what_a_model_does_counts_and_not_what_its_declaration_is_called() {
    let server = Server::fixture("label_one", &TOGETHER);
    ask_at_once(
        &server,
        &[
            (
                json!({"inputs": [[3, 1]]}),
                json!({"label": [10], "scores": [[3.0, 1.0]]}),
            ),
            (
                json!({"inputs": [[1, 2], [5, 4]]}),
                json!({"label": [20, 10], "scores": [[1.0, 2.0], [5.0, 4.0]]}),
            ),
        ],
    );
    were_merged(&server);
    // What it says of itself is what it does.
    let metadata = server.get("/v2/models/label_one").json();
    assert_eq!(metadata["outputs"][0]["shape"], json!([-1]));
}

#[test]
fn an_output_that_belongs_to_every_row_is_answered_whole_to_each_request() {
    let server = Server::fixture("side", &TOGETHER);
    ask_at_once(
        &server,
        &[
            (
                json!({"inputs": [[1, 2, 3, 4]]}),
                json!({"y": [[2.0, 4.0, 6.0, 8.0]], "classes": [7, 8, 9]}),
            ),
            (
                json!({"inputs": [[5, 6, 7, 8], [0, 0, 0, 0]]}),
                json!({"y": [[10.0, 12.0, 14.0, 16.0], [0.0, 0.0, 0.0, 0.0]], "classes": [7, 8, 9]}),
            ),
        ],
    );
    were_merged(&server);
}

#[test]
fn an_output_without_rows_that_values_reach_tells_nobody_of_strangers() {
    let server = Server::fixture("alarm", &TOGETHER);
    let outputs = |x: f64, alarm: bool| json!({"y": [[2.0 * x, 0.0, 0.0, 0.0]], "alarm": [alarm]});
    ask_at_once(
        &server,
        &[
            (json!({"inputs": [[1, 0, 0, 0]]}), outputs(1.0, false)),
            (json!({"inputs": [[4e6, 0, 0, 0]]}), outputs(4e6, true)),
        ],
    );
}

#[test]
fn rows_that_no_trial_would_have_brought_together_stay_apart() {
    let row = |first: f64| json!([[first, 5.0, 6.0, 7.0]]);
    // The running sum begins with each request's own row, and the partition has nothing to put before it.
    for name in ["partition", "branch"] {
        let server = Server::fixture(name, &TOGETHER);
        let bodies = [1.0, 200_000.0, 3.0];
        ask_at_once(
            &server,
            &bodies.map(|first| (json!({"inputs": row(first)}), json!({"y": row(first)}))),
        );
        let reason = reason(&server);
        let reason = reason.as_str().unwrap();
        assert!(
            reason.contains("the graph puts rows together in operator"),
            "{reason}"
        );
    }
    let server = Server::fixture("behind_table", &TOGETHER);
    let given = |codes: [i64; 3], expected: [i64; 3]| {
        (json!({"inputs": [codes]}), json!({"y": [expected]}))
    };
    ask_at_once(
        &server,
        &[
            given([1000, 2, 3], [1000, 2, 3]),
            given([7, 8, 9], [0, 0, 0]),
        ],
    );
}

#[test]
fn what_was_not_measured_is_merged_and_said_not_to_be_measured() {
    // One row alone takes longer than there is time for.
    let server = Server::fixture("image", &["--tuning-time", "1us"]);
    assert_eq!(merging(&server), ("on".to_owned(), "unmeasured".to_owned()));
    assert_eq!(reason(&server), Value::Null);
    let loaded = server
        .log
        .wait_for(|line| line["message"] == "model loaded");
    let loaded = loaded.unwrap();
    merges(&loaded, 32);
    assert!(
        loaded["batching_reason"]
            .as_str()
            .unwrap()
            .contains("not measured"),
        "{loaded}"
    );
    // The rows were tried all the same.
    assert!(
        loaded["rows_tried"]
            .as_str()
            .unwrap()
            .contains("executions of 1, 2, 3"),
        "{loaded}"
    );
}

/// The sizes of the executions by which rows were tried, as `tried` tells it, if it was time that ended it: how many rows
/// there is time for depends on what else the machine does.
fn cut_short(tried: &str) -> Option<Vec<usize>> {
    let by_time = ["rows takes some ", "rows take too much"];
    if !by_time.iter().any(|words| tried.contains(words)) {
        return None;
    }
    let (_, sizes) = tried.split_once("executions of ")?;
    let (sizes, _) = sizes.split_once(" row(s)")?;
    Some(sizes.split(", ").map(|it| it.parse().unwrap()).collect())
}

/// How many rows are merged by `loaded`, a line of the log: `rows`, or as many as there was time to try.
fn merges(loaded: &Value, rows: usize) -> usize {
    let merged = usize::try_from(loaded["merge_rows"].as_u64().unwrap()).unwrap();
    let cut_short = cut_short(loaded["rows_tried"].as_str().unwrap());
    let tried = cut_short.is_some_and(|sizes| sizes.contains(&merged));
    assert!(merged == rows || (merged < rows && tried), "{loaded}");
    merged
}

/// What one of the commands says of batching.
#[derive(Debug, PartialEq)]
struct Verdict {
    batching: String,
    /// The kind of reason.
    kind: String,
    /// The reason in words.
    words: String,
    /// The rows that share an execution at most.
    rows: usize,
    /// What was tried of them, if time ended that.
    cut_short: Option<Vec<usize>>,
}

impl Verdict {
    /// What the metrics say, too.
    fn in_short(&self) -> (String, String) {
        (self.batching.clone(), self.kind.clone())
    }

    /// Whether it may change with the time that runs take.
    fn is_by_cost(&self) -> bool {
        ["cost", "unmeasured", ""].contains(&self.kind.as_str())
    }
}

/// What `inspect` says of batching under `settings`, or what it complains of.
fn inspected(path: &str, settings: &Settings<'_>) -> Result<Verdict, String> {
    let mut command = program();
    command.arg("inspect").arg(path);
    command.args(settings.flags).envs(settings.environment());
    let output = command.output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8(output.stderr).unwrap());
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let batching = line("batching   ").unwrap_or_else(|| panic!("{text}"));
    let (kind, note) = line("reason     ")
        .map(|reason| reason.split_once(": ").unwrap_or((reason, "")))
        .unwrap_or_default();
    let tried = line("rests on   ").unwrap_or_else(|| panic!("{text}"));
    let (batching, words, rows) = if let Some(words) = batching.strip_prefix("none: ") {
        ("off", words, 1)
    } else {
        let (_, rows) = batching.rsplit_once("up to ").unwrap();
        ("on", note, rows.parse().unwrap())
    };
    Ok(Verdict {
        batching: batching.to_owned(),
        kind: kind.to_owned(),
        words: words.to_owned(),
        rows,
        cut_short: cut_short(tried),
    })
}

/// What a server says that serves `path` under `settings`.
fn served(path: &str, settings: &Settings<'_>) -> Verdict {
    let mut flags = vec!["--model", path];
    flags.extend(settings.flags);
    let environment = settings.environment();
    let environment: Vec<(&str, &str)> = environment
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let server = Server::start_with(&flags, &environment);
    let (batching, kind) = merging(&server);
    let loaded = server
        .log
        .wait_for(|line| line["message"] == "model loaded")
        .unwrap();
    assert_eq!(loaded["batching"], *batching, "{loaded}");
    let words = loaded["batching_reason"].as_str().unwrap_or_default();
    let rows = usize::try_from(loaded["merge_rows"].as_u64().unwrap()).unwrap();
    // All places say the same.
    let ready = server.get("/ready").json()["models"][0].clone();
    let metadata = server.get(&format!("/v2/models/{}", ready["name"].as_str().unwrap()));
    let properties = metadata.json()["properties"].clone();
    assert_eq!(ready["merge_rows"], rows, "{ready}");
    assert_eq!(properties["merge_rows"], rows.to_string(), "{properties}");
    for place in [&ready, &properties] {
        let named = if batching == "off" {
            [&place["not_batched_because"], &place["unmeasured"]]
        } else {
            [&place["unmeasured"], &place["not_batched_because"]]
        };
        let said = named.map(|value| value.as_str().unwrap_or_default());
        assert_eq!(said, [words, ""], "{place}");
    }
    Verdict {
        batching,
        kind,
        words: words.to_owned(),
        rows,
        cut_short: cut_short(loaded["rows_tried"].as_str().unwrap()),
    }
}

/// What `inspect` and a server say of one model, of which `rows` are merged where there is time to try so many. Where there
/// was not, those that were tried count as so many.
fn verdicts(
    path: &str,
    settings: &Settings<'_>,
    rows: usize,
) -> (Result<Verdict, String>, Verdict) {
    let in_time = |verdict: Verdict| match &verdict.cut_short {
        Some(sizes) if verdict.rows < rows && sizes.contains(&verdict.rows) => Verdict {
            rows,
            cut_short: None,
            ..verdict
        },
        _ => Verdict {
            cut_short: None,
            ..verdict
        },
    };
    let said = inspected(path, settings).map(in_time);
    (said, in_time(served(path, settings)))
}

/// Flags, or the variables that mean the same.
struct Settings<'a> {
    flags: &'a [&'a str],
    variables: &'a [&'a str],
}

impl<'a> Settings<'a> {
    const NONE: Self = Self {
        flags: &[],
        variables: &[],
    };

    fn by_flags(flags: &'a [&'a str]) -> Self {
        Self {
            flags,
            ..Self::NONE
        }
    }

    fn by_environment(variables: &'a [&'a str]) -> Self {
        Self {
            variables,
            ..Self::NONE
        }
    }

    fn environment(&self) -> Vec<(String, String)> {
        let name = |flag: &str| flag.trim_start_matches('-').replace('-', "_");
        let pairs = self.variables.chunks(2);
        pairs
            .map(|pair| (name(pair[0]).to_uppercase(), pair[1].to_owned()))
            .collect()
    }
}

#[test]
fn inspect_and_serve_give_one_verdict_under_the_same_settings() {
    for (name, settings, kind, rows) in [
        ("addone", &["--max-batch-size", "1"][..], "limit", 1),
        ("addone", &["--max-batch-size", "8"], "unmeasured", 8),
        ("addone", &["--tuning-time", "off"], "unmeasured", 32),
        // One row alone takes longer than there is time for.
        ("image", &["--tuning-time", "1us"], "unmeasured", 32),
        // More rows take more memory than runs may.
        (
            "roomy",
            &["--max-batch-size", "32", "--max-inflight-bytes", "1MiB"],
            "unmeasured",
            8,
        ),
        ("roomy", &["--max-batch-size", "32"], "unmeasured", 32),
        // No more rows are merged than were tried, whatever is allowed.
        (
            "passthrough_wide",
            &["--max-batch-size", "32"],
            "unmeasured",
            8,
        ),
    ] {
        let path = fixture(name);
        for settings in [
            Settings::by_flags(settings),
            Settings::by_environment(settings),
        ] {
            let (said, served) = verdicts(&path, &settings, rows);
            assert_eq!(said.as_ref(), Ok(&served), "{name}");
            assert_eq!((served.kind.as_str(), served.rows), (kind, rows), "{name}");
        }
    }
}

#[test]
fn what_is_said_of_settings_that_were_written_down_was_measured_or_says_that_it_was_not() {
    for (name, written, kind, end, rows) in [
        (
            "addone",
            "merge_rows = 1",
            "cost",
            "(by [tuning] in the sidecar)",
            1,
        ),
        ("addone", "merge_rows = 5", "", "", 5),
        ("addone", "", "unmeasured", "was not measured", 32),
        // Of so large rows eight are tried, and whether eight pay is not what was measured.
        (
            "passthrough_wide",
            "merge_rows = 32",
            "unmeasured",
            "was not measured",
            8,
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("m.onnx");
        fs::copy(fixture(name), &model).unwrap();
        let output = program().arg("inspect").arg(&model).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines = text.lines();
        let sha256 = lines.find_map(|line| line.strip_prefix("sha256     "));
        let sha256 = sha256.unwrap();
        let cpus = std::thread::available_parallelism().unwrap();
        let settings = format!(
            "[tuning]\nsha256 = \"{sha256}\"\ncpus = {cpus}\ninstances = 1\nintra_op_threads = 1\n{written}\n"
        );
        fs::write(model.with_extension("toml"), settings).unwrap();
        let path = model.to_str().unwrap();
        let (said, served) = verdicts(path, &Settings::NONE, rows);
        assert_eq!(said.as_ref(), Ok(&served));
        assert_eq!((served.kind.as_str(), served.rows), (kind, rows), "{name}");
        assert!(served.words.ends_with(end), "{served:?}");
    }
}

#[test]
fn as_many_rows_share_an_execution_as_the_server_says() {
    let flags = [
        "--max-batch-size",
        "32",
        "--instances",
        "1",
        "--max-queue-delay",
        "50s",
        "--request-timeout",
        "60s",
    ];
    let server = Server::fixture("passthrough_wide", &flags);
    let ready = server.get("/ready").json()["models"][0].clone();
    assert_eq!(ready["max_batch_size"], 32, "{ready}");
    let loaded = server
        .log
        .wait_for(|line| line["message"] == "model loaded");
    // Of so large rows no more than eight are tried.
    let rows = merges(&loaded.unwrap(), 8);
    assert_eq!(ready["merge_rows"], rows, "{ready}");
    let rows = u32::try_from(rows).unwrap();
    let row = vec![0; 500_000 * 4];
    let request = Request::raw("/predict?outputs=y", row);
    let request = request.header("Accept", "application/octet-stream");
    // The first to come wait for company until there are as many as may share an execution.
    std::thread::scope(|scope| {
        for _ in 0..2 * rows {
            scope.spawn(|| assert_eq!(server.request(&request).status, 200));
        }
    });
    let observed = |part: &str| server.metric(&format!("ml_executed_batch_size_{part}"), &[]);
    assert_eq!(
        (observed("sum"), observed("count")),
        (Some(f64::from(2 * rows)), Some(2.0))
    );
}

#[test]
fn a_batch_size_is_stated_only_where_requests_have_rows() {
    for (name, flags, size) in [
        ("addone", &[][..], json!(32)),
        ("addone", &["--max-batch-size", "1"], json!(1)),
        ("fixed_batch", &[], Value::Null),
        ("neighbours", &[], Value::Null),
        ("scalar", &[], Value::Null),
    ] {
        let server = Server::fixture(name, flags);
        let ready = server.get("/ready").json()["models"][0].clone();
        assert_eq!(ready["max_batch_size"], size, "{ready}");
        let metadata = server.get(&format!("/v2/models/{name}")).json();
        let stated = metadata["properties"]["max_batch_size"].as_str();
        assert_eq!(
            stated,
            size.as_u64().map(|size| size.to_string()).as_deref()
        );
        let loaded = server
            .log
            .wait_for(|line| line["message"] == "model loaded");
        assert_eq!(loaded.unwrap()["max_batch_size"], size);
        if name != "addone" || !flags.is_empty() {
            assert_eq!(ready["merge_rows"], 1, "{ready}");
        }
    }
}

#[test]
fn inspect_complains_of_a_setting_as_serve_does() {
    let path = fixture("addone");
    for (settings, code) in [
        (["--device", "cuda"], 1),
        (["--max-batch-size", "0"], 2),
        (["--tuning-time", "2"], 2),
    ] {
        let complaint = |arguments: &[&str]| {
            let output = program().args(arguments).args(settings).output().unwrap();
            assert_eq!(output.status.code(), Some(code), "{arguments:?}");
            // What was wrong stands before what could be called instead.
            let text = String::from_utf8(output.stderr).unwrap();
            text.lines().next().unwrap().to_owned()
        };
        let served = complaint(&["serve", "--port", "0", "--model", &path]);
        assert_eq!(complaint(&["inspect", &path]), served);
        assert!(!served.contains("unexpected argument"), "{served}");
    }
}

#[test]
fn inspect_calls_a_model_as_serve_would_and_names_the_device() {
    let settings = ["--model-name", "other", "--device", "auto"];
    let output = program()
        .args(["inspect", &fixture("addone")])
        .args(settings)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "other version 1",
        "/v1/models/other:predict",
        "device     cpu: this ONNX Runtime is built without CUDA",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn inspect_and_serve_give_one_verdict_of_every_model_here() {
    let mut models: Vec<_> = ["tests/fixtures", "models"]
        .iter()
        .flat_map(|folder| fs::read_dir(repository(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "onnx")
        })
        // Its load never ends, whoever asks for it.
        .filter(|path| !path.ends_with("endless.onnx"))
        .collect();
    models.sort();
    let mut compared = 0;
    for path in models {
        let path = path.to_str().unwrap();
        let Ok(said) = inspected(path, &Settings::NONE) else {
            continue;
        };
        let served = served(path, &Settings::NONE);
        // What a row costs is measured by each, and a busy machine may measure otherwise the second time.
        assert!(
            said.in_short() == served.in_short() || (said.is_by_cost() && served.is_by_cost()),
            "{path}: inspect says {said:?}, serve {served:?}"
        );
        compared += 1;
    }
    assert!(compared > 40, "{compared}");
}

#[test]
fn who_knows_better_says_so_in_the_sidecar() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m.onnx");
    fs::copy(fixture("random"), &model).unwrap();
    fs::write(folder.path().join("m.toml"), "[batching]\ncheck = false\n").unwrap();
    let server = Server::start(&["--model", model.to_str().unwrap()]);
    assert_eq!(merging(&server), ("on".to_owned(), String::new()));
}

#[test]
fn inspect_says_whether_requests_would_be_merged() {
    let output = program()
        .args(["inspect", &fixture("neighbours")])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("batching   none: output 'y' of a row depends"),
        "{text}"
    );
}
