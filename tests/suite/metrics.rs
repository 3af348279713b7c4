//! What the server says about itself: metric families, counters that add up, and one log line per request.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use model_serving::telemetry::metrics::FAMILIES;
use prometheus_parse::Value;
use testing::nvml::FakeNvml;
use testing::{Request, Server, sample};

/// The statuses of `ml_predictions_total`.
const STATUSES: [&str; 6] = [
    "success",
    "invalid",
    "overloaded",
    "timeout",
    "cancelled",
    "error",
];

/// Type and help of every family, by name, as the text format states them.
fn headers(text: &str) -> BTreeMap<String, (String, String)> {
    let mut families: BTreeMap<String, (String, String)> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        if words.next() != Some("#") {
            continue;
        }
        let (kind, name, rest) = (
            words.next().unwrap(),
            words.next().unwrap(),
            words.next().unwrap(),
        );
        let family = families.entry(name.to_owned()).or_default();
        match kind {
            "TYPE" => rest.clone_into(&mut family.0),
            "HELP" => rest.clone_into(&mut family.1),
            other => panic!("{other}"),
        }
    }
    families
}

/// The upper edges of the buckets of `name`.
fn edges(scrape: &prometheus_parse::Scrape, name: &str) -> Vec<f64> {
    let sample = scrape
        .samples
        .iter()
        .find(|sample| sample.metric == name)
        .unwrap_or_else(|| panic!("{name}"));
    match &sample.value {
        Value::Histogram(buckets) => buckets.iter().map(|bucket| bucket.less_than).collect(),
        other => panic!("{name}: {other:?}"),
    }
}

/// The edges of durations that the contract prescribes, in seconds.
const PRESCRIBED: [f64; 10] = [
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    f64::INFINITY,
];

/// The bundled model, and one that is broken, without which the server is ready all the same.
fn one_of_two_is_broken() -> tempfile::TempDir {
    let models = tempfile::tempdir().unwrap();
    for (model, place) in [
        (testing::repository("models/best.onnx"), "digits/1"),
        (testing::fixture("not_onnx").into(), "broken/1"),
    ] {
        let folder = models.path().join(place);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(model, folder.join("model.onnx")).unwrap();
    }
    let sidecar = models.path().join("broken/model.toml");
    std::fs::write(sidecar, "required = false").unwrap();
    models
}

#[test]
fn prescribed_families_have_their_names_labels_and_bucket_edges() {
    // A family without series is not exposed, so there have to be GPUs, which here are fakes, and a model that is broken.
    let gpus = FakeNvml::new(&FakeNvml::two_gpus());
    let models = one_of_two_is_broken();
    let path = models.path().to_str().unwrap();
    let server = gpus.serve(&["--device", "cpu", "--model", path]);
    testing::eventually("there are figures of GPUs", || {
        server.get("/metrics").text().contains("ml_gpu_power_watts")
    });
    let answer = server.get("/metrics");
    assert!(
        answer
            .header("content-type")
            .unwrap()
            .starts_with("text/plain; version=0.0.4")
    );
    let stated = headers(&answer.text());
    let scrape = server.metrics();
    for status in STATUSES {
        let labels = [("model_name", "digits"), ("status", status)];
        assert_eq!(
            sample(&scrape, "ml_predictions_total", &labels),
            Some(0.0),
            "{status}"
        );
    }
    let seconds = edges(&scrape, "ml_prediction_duration_seconds");
    let missing: Vec<_> = PRESCRIBED
        .iter()
        .filter(|edge| !seconds.contains(edge))
        .collect();
    assert!(missing.is_empty(), "{missing:?} of {seconds:?}");
    assert!(seconds.is_sorted());
    let rows = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, f64::INFINITY];
    assert_eq!(edges(&scrape, "ml_batch_size"), rows);
    let info = scrape
        .samples
        .iter()
        .find(|sample| sample.metric == "ml_model_info")
        .unwrap();
    let labels: BTreeSet<&str> = info.labels.keys().map(String::as_str).collect();
    let expected = [
        "model_name",
        "version",
        "sha256",
        "device",
        "execution_provider",
        "onnxruntime",
    ];
    assert_eq!(labels, BTreeSet::from(expected));
    assert_eq!(
        info.labels.get("execution_provider"),
        Some("CPUExecutionProvider")
    );
    for (name, value) in [("ml_ready", 1.0), ("panics_total", 0.0)] {
        assert_eq!(sample(&scrape, name, &[]), Some(value), "{name}");
    }
    for name in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
    ] {
        assert!(sample(&scrape, name, &[]).is_some(), "{name}");
    }
    // What is documented is exposed, and the other way round.
    for family in FAMILIES {
        let (kind, help) = stated
            .get(family.name)
            .unwrap_or_else(|| panic!("{} is not exposed", family.name));
        assert_eq!(
            (kind.as_str(), help.as_str()),
            (family.kind, family.help.trim()),
            "{}",
            family.name
        );
        for sample in scrape
            .samples
            .iter()
            .filter(|sample| sample.metric == family.name)
        {
            let labels: BTreeSet<&str> = sample.labels.keys().map(String::as_str).collect();
            assert_eq!(
                labels,
                family.labels.iter().copied().collect(),
                "{}",
                family.name
            );
        }
    }
    let documented: BTreeSet<&str> = FAMILIES.iter().map(|family| family.name).collect();
    let exposed = stated
        .keys()
        .map(String::as_str)
        .filter(|name| !name.starts_with("process_"));
    assert_eq!(exposed.collect::<BTreeSet<_>>(), documented);
}

/// What the clients themselves counted.
#[derive(Debug, Default)]
struct Count {
    by_status: BTreeMap<&'static str, u64>,
    received_rows: u64,
    received: u64,
    executed_rows: u64,
}

impl Count {
    fn add(&mut self, status: &'static str) {
        *self.by_status.entry(status).or_default() += 1;
    }
}

/// One mixed request by its number, and what must come of it: status, outcome, rows received, rows executed.
fn mixed(number: u64) -> (Request, u16, &'static str, Option<u64>, bool) {
    let row = "[1,2,3,4]";
    let rows = 1 + number % 8;
    let body = format!(
        "{{\"inputs\": [{}]}}",
        vec![row; usize::try_from(rows).unwrap()].join(",")
    );
    match number % 10 {
        0 => (
            Request::json("/predict", r#"{"inputs": [[1,2,3]]}"#),
            400,
            "invalid",
            None,
            false,
        ),
        1 => (Request::json("/predict", "{"), 400, "invalid", None, false),
        2 => (
            Request::new("POST", "/predict")
                .header("Content-Type", "text/plain")
                .body("x"),
            415,
            "invalid",
            None,
            false,
        ),
        3 => (
            Request::raw("/predict", vec![0; 16 * usize::try_from(rows).unwrap()]),
            200,
            "success",
            Some(rows),
            true,
        ),
        // A well-formed request whose answer JSON cannot express: it is executed, and refused afterwards.
        4 => (
            Request::json("/predict", r#"{"inputs": [[0,1,1,1]]}"#),
            422,
            "invalid",
            Some(1),
            true,
        ),
        _ => (
            Request::json("/v1/models/recip:predict", body),
            200,
            "success",
            Some(rows),
            true,
        ),
    }
}

#[test]
fn counters_equal_the_clients_own_count_after_20_000_mixed_requests() {
    let server = Server::fixture("recip", &["--log-level", "info"]);
    let count = Mutex::new(Count::default());
    std::thread::scope(|scope| {
        for client in 0..16 {
            let (server, count) = (&server, &count);
            scope.spawn(move || {
                let mut connection = server.connect();
                let mut own = Count::default();
                for number in 0..1250_u64 {
                    let (request, status, outcome, received, executed) =
                        mixed(number * 16 + client);
                    let answer = connection.send(&request).unwrap();
                    // Zeros sent raw come back as infinity, which only a raw answer could hold.
                    let refused = request.headers[0].1 == "application/octet-stream";
                    let (status, outcome) = if refused {
                        (422, "invalid")
                    } else {
                        (status, outcome)
                    };
                    assert_eq!(answer.status, status, "{}", answer.text());
                    own.add(outcome);
                    own.received += u64::from(received.is_some());
                    own.received_rows += received.unwrap_or(0);
                    own.executed_rows += if executed { received.unwrap_or(0) } else { 0 };
                }
                let mut count = count.lock().unwrap();
                for (status, number) in own.by_status {
                    *count.by_status.entry(status).or_default() += number;
                }
                count.received += own.received;
                count.received_rows += own.received_rows;
                count.executed_rows += own.executed_rows;
            });
        }
    });
    let count = count.into_inner().unwrap();
    assert_eq!(count.by_status.values().sum::<u64>(), 20_000);
    let text = server.get("/metrics").text();
    let value = |line: &str| -> u64 {
        let line = text.lines().find(|candidate| {
            candidate
                .strip_prefix(line)
                .is_some_and(|rest| rest.starts_with(' '))
        });
        line.unwrap_or("x 0")
            .rsplit(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    };
    for status in STATUSES {
        let counted = value(&format!(
            "ml_predictions_total{{model_name=\"recip\",status=\"{status}\"}}"
        ));
        assert_eq!(
            counted,
            count.by_status.get(status).copied().unwrap_or(0),
            "{status}"
        );
    }
    assert_eq!(
        value("ml_batch_size_sum{model_name=\"recip\"}"),
        count.received_rows
    );
    assert_eq!(
        value("ml_batch_size_count{model_name=\"recip\"}"),
        count.received
    );
    assert_eq!(
        value("ml_executed_batch_size_sum{model_name=\"recip\",version=\"1\"}"),
        count.executed_rows
    );
    assert_eq!(
        value("ml_queue_duration_seconds_count{model_name=\"recip\",version=\"1\"}"),
        count.received
    );
    assert_eq!(
        value("ml_prediction_duration_seconds_count{model_name=\"recip\"}"),
        count.by_status["success"]
    );
    assert_eq!(value("ml_requests_in_flight{model_name=\"recip\"}"), 0);
    assert_eq!(
        value("ml_queue_rows{model_name=\"recip\",version=\"1\"}"),
        0
    );
    assert_eq!(value("panics_total"), 0);
}

#[test]
fn timeouts_overload_and_clients_that_leave_are_counted_as_such() {
    let server = Server::fixture(
        "loop",
        &[
            "--max-queue-size",
            "2",
            "--max-batch-size",
            "1",
            "--instances",
            "1",
        ],
    );
    let counted = |status| {
        server
            .metric("ml_predictions_total", &[("status", status)])
            .unwrap()
    };
    let long = Request::json("/predict", r#"{"inputs": [2000000000]}"#);
    let mut busy = server.connect();
    busy.write(&long.bytes()).unwrap();
    let in_flight = || server.metric("ml_requests_in_flight", &[]).unwrap();
    testing::eventually("one in flight", || (in_flight() - 1.0).abs() < 0.5);
    testing::eventually("it is executed", || {
        server.metric("ml_queue_rows", &[]) == Some(0.0)
    });
    let late = long.clone().header("X-Request-Timeout-Ms", "50");
    assert_eq!(server.request(&late).status, 504);
    let mut waiting: Vec<_> = (0..2).map(|_| server.connect()).collect();
    for client in &mut waiting {
        client.write(&long.bytes()).unwrap();
    }
    testing::eventually("two wait", || {
        server.metric("ml_queue_rows", &[]) == Some(2.0)
    });
    let refused = server.request(&long);
    assert_eq!(
        (refused.status, refused.json()["code"].as_str()),
        (429, Some("overloaded"))
    );
    assert!(
        refused
            .header("retry-after")
            .unwrap()
            .parse::<u32>()
            .unwrap()
            >= 1
    );
    // Nor is the body of such a request asked for, or waited for.
    let mut large = server.connect();
    let head = "POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1048576\r\nExpect: 100-continue\r\n\r\n";
    large.write(head.as_bytes()).unwrap();
    assert_eq!(large.read().unwrap().status, 429);
    for client in waiting {
        client.reset();
    }
    busy.reset();
    testing::eventually("nothing in flight", || in_flight() < 0.5);
    for (status, expected) in [
        ("timeout", 1.0),
        ("overloaded", 2.0),
        ("cancelled", 3.0),
        ("success", 0.0),
        ("error", 0.0),
    ] {
        assert!((counted(status) - expected).abs() < 0.5, "{status}");
    }
}

#[test]
fn unknown_names_make_no_series() {
    let server = Server::start(&[]);
    let series = || {
        server
            .get("/metrics")
            .text()
            .lines()
            .filter(|line| !line.starts_with('#'))
            .count()
    };
    let before = series();
    let mut client = server.connect();
    for number in 0..2_000 {
        let answer = client
            .send(&Request::new("GET", &format!("/unknown/{number}")))
            .unwrap();
        assert_eq!(answer.status, 404);
    }
    for number in 0..500 {
        let answer = client
            .send(&Request::new(&format!("ODD{number}"), "/predict"))
            .unwrap();
        assert_eq!(answer.status, 405);
        let answer = client
            .send(&Request::json(
                &format!("/v1/models/m{number}:predict"),
                "{}",
            ))
            .unwrap();
        assert_eq!(answer.status, 404);
    }
    // The scrape before, unknown paths, methods of one route and models of another: a status each.
    assert_eq!(series(), before + 4);
    assert!(server.get("/metrics").body.len() <= 64 << 10);
}

#[test]
fn every_request_is_one_line_in_the_log_with_its_id_and_its_times() {
    let server = Server::start(&[]);
    let body = std::fs::read(testing::repository("models/samples/digit-7.json")).unwrap();
    let answer = server.request(&Request::json("/predict", body).header("X-Request-Id", "abc-1"));
    assert_eq!(
        (answer.status, answer.header("x-request-id")),
        (200, Some("abc-1"))
    );
    let line = server
        .log
        .wait_for(|line| line["request_id"] == "abc-1")
        .unwrap();
    assert_eq!(
        (&line["route"], &line["status"], &line["method"]),
        (&"/predict".into(), &200.into(), &"POST".into())
    );
    assert_eq!((&line["rows"], &line["batch"]), (&1.into(), &1.into()));
    for field in ["queue_ms", "inference_ms", "duration_ms"] {
        assert!(line[field].as_f64().unwrap() >= 0.0, "{field}");
    }
    // Ids that could forge or flood the log are replaced by one of ours.
    for (number, id) in ["", "a b", "\"", &"x".repeat(129)].into_iter().enumerate() {
        let answer = server.request(
            &Request::new("GET", &format!("/nothing/{number}")).header("X-Request-Id", id),
        );
        let made = answer.header("x-request-id").unwrap().to_owned();
        let fit = id == "\"";
        assert_eq!(made == id, fit, "{id:?}");
        assert!(
            server
                .log
                .wait_for(|line| line["request_id"] == made.as_str())
                .is_some()
        );
    }
    assert!(
        server.log.lines().iter().all(serde_json::Value::is_object),
        "every line is one JSON object"
    );
}

#[test]
fn a_probe_that_succeeds_is_no_line_of_the_log() {
    let quiet = Server::spawn(&["--log-level", "info"], &[("LOG_FORMAT", "json")]);
    assert!(
        quiet
            .log
            .wait_for(|line| line["message"] == "ready")
            .is_some()
    );
    quiet.get("/health");
    quiet.get("/nothing");
    assert!(quiet.log.wait_for(|line| line["status"] == 404).is_some());
    // A probe that succeeds is no event; it was sent before the line that was waited for.
    assert!(
        quiet
            .log
            .lines()
            .iter()
            .all(|line| line["route"] != "/health")
    );
}
