//! Models that are loaded again while they serve: the good ones take over without a lost request, the bad ones change
//! nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testing::{Request, Server, fixture};

const BODY: &str = r#"{"inputs": [[1, 2, 3, 4]]}"#;

/// A folder with the models that a server serves, and that tests change.
struct Models(tempfile::TempDir);

impl Models {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Puts the fixture `name` to `place` in one step, as a careful operator would.
    fn put(&self, name: &str, place: &str) {
        self.put_bytes(&fs::read(fixture(name)).unwrap(), place);
    }

    fn put_bytes(&self, bytes: &[u8], place: &str) {
        let place = self.path(place);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        let new = self.path("being-written");
        fs::write(&new, bytes).unwrap();
        fs::rename(new, place).unwrap();
    }

    fn serve(&self, what: &str, flags: &[&str]) -> Server {
        let path = self.path(what);
        let mut all = vec!["--model", path.to_str().unwrap()];
        all.extend(flags);
        Server::start(&all)
    }
}

/// How many reloads had this result.
fn counter(server: &Server, result: &str) -> usize {
    let labels = [("result", result)];
    let count = testing::sample(&server.metrics(), "ml_model_reloads_total", &labels).unwrap();
    format!("{count:.0}").parse().unwrap()
}

/// What the model makes of `[1, 2, 3, 4]`.
fn predict(server: &Server) -> Value {
    let answer = server.request(&Request::json("/predict", BODY));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["outputs"]["y"][0].clone()
}

/// The threads that execute a model, which are as many as its sessions.
fn instance_threads(server: &Server) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|name| name.starts_with("instance-")).count()
}

fn resident_bytes(server: &Server) -> f64 {
    testing::sample(&server.metrics(), "process_resident_memory_bytes", &[]).unwrap()
}

fn has_version(line: &Value, version: usize) -> bool {
    line["message"] == "model reloaded" && line["version"].as_str() == Some(&version.to_string())
}

#[test]
fn fifty_versions_take_over_under_load_and_each_answer_is_of_the_version_that_it_names() {
    const VERSIONS: usize = 51;
    let models = Models::new();
    models.put("addone", "repository/adder/1/model.onnx");
    let server = models.serve("repository", &["--instances", "1"]);
    // A thread names itself, so that its name may be seen a little after it is there.
    testing::eventually("the session's thread is there", || {
        instance_threads(&server) == 1
    });
    let acknowledged = AtomicUsize::new(1);
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut after_ten = 0.0;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = server.connect();
                while !stop.load(Ordering::Relaxed) {
                    let oldest = acknowledged.load(Ordering::SeqCst);
                    let answer = client.send(&Request::json("/predict", BODY)).unwrap();
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    let answer = answer.json();
                    let version: usize = answer["model_version"].as_str().unwrap().parse().unwrap();
                    // Odd versions add 1, even ones 10; and none answers after its successor was announced.
                    let first = if version % 2 == 1 { 2.0 } else { 11.0 };
                    assert_eq!(answer["outputs"]["y"][0][0], first, "{answer}");
                    assert!(version >= oldest, "{version} after {oldest}");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let swaps = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for version in 2..=VERSIONS {
                let fixture = if version % 2 == 1 { "addone" } else { "addten" };
                models.put(fixture, &format!("repository/adder/{version}/model.onnx"));
                server.signal(Signal::SIGHUP);
                testing::eventually("the next version is announced", || {
                    let ready = server.get("/ready").json();
                    ready["models"][0]["version"].as_str() == Some(&version.to_string())
                });
                acknowledged.store(version, Ordering::SeqCst);
                if version == 10 {
                    after_ten = resident_bytes(&server);
                }
            }
        }));
        stop.store(true, Ordering::Relaxed);
        swaps.unwrap();
    });
    assert!(answered.load(Ordering::Relaxed) > 100);
    testing::eventually("the old sessions are gone", || {
        instance_threads(&server) == 1
    });
    let grown = resident_bytes(&server) - after_ten;
    assert!(grown < 20e6, "{grown} bytes more after 40 reloads");
    assert_eq!(
        (counter(&server, "success"), counter(&server, "failure")),
        (50, 0)
    );
    let scrape = server.metrics();
    let infos: Vec<_> = scrape
        .samples
        .iter()
        .filter(|sample| sample.metric == "ml_model_info")
        .collect();
    assert_eq!(infos.len(), 1);
    assert_eq!(infos[0].labels.get("version"), Some("51"));
}

#[test]
fn a_model_that_cannot_take_over_leaves_the_old_one_serving_and_is_counted() {
    let models = Models::new();
    models.put("addone", "m.onnx");
    let server = models.serve("m.onnx", &[]);
    let good = fs::read(fixture("addten")).unwrap();
    let place = models.path("m.onnx");
    let clear = || {
        let _ = fs::remove_file(&place);
        let _ = fs::remove_dir(&place);
        let _ = fs::remove_file(models.path("m.toml"));
    };
    let steps: [(&str, &dyn Fn()); 10] = [
        ("cut", &|| {
            models.put_bytes(&good[..good.len() / 2], "m.onnx");
        }),
        ("empty", &|| models.put_bytes(b"", "m.onnx")),
        ("no model", &|| {
            models.put_bytes(b"\xff\x00random\x17 bytes\x03", "m.onnx");
        }),
        ("another signature", &|| models.put("two", "m.onnx")),
        ("another rank", &|| models.put("vector", "m.onnx")),
        ("a folder", &|| fs::create_dir(&place).unwrap()),
        ("deleted", &|| {}),
        ("a broken sidecar", &|| {
            models.put("addten", "m.onnx");
            models.put_bytes(b"no_such_key = 1", "m.toml");
        }),
        ("a sparse file of 3 GiB", &|| {
            fs::File::create(&place).unwrap().set_len(3 << 30).unwrap();
        }),
        ("a pipe that nobody writes to", &|| {
            nix::unistd::mkfifo(&place, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }),
    ];
    for (count, (name, step)) in steps.iter().enumerate() {
        clear();
        step();
        server.signal(Signal::SIGHUP);
        let failures = count + 1;
        testing::eventually(name, || counter(&server, "failure") == failures);
        assert_eq!(predict(&server), json!([2.0, 3.0, 4.0, 5.0]), "{name}");
        assert_eq!(server.get("/ready").status, 200, "{name}");
    }
    let told = |line: &Value| {
        line["level"] == "WARN"
            && line["reason"]
                .as_str()
                .is_some_and(|reason| reason.contains("the signature changed from"))
    };
    assert!(server.log.wait_for(told).is_some());
    assert_eq!(counter(&server, "success"), 0);
    assert_eq!(server.metric("ml_model_reload_blocked", &[]), Some(1.0));

    clear();
    models.put("addten", "m.onnx");
    server.signal(Signal::SIGHUP);
    testing::eventually("the good model serves", || {
        predict(&server) == json!([11.0, 12.0, 13.0, 14.0])
    });
    testing::eventually("nothing is refused any more", || {
        server.metric("ml_model_reload_blocked", &[]) == Some(0.0)
    });
}

#[test]
fn a_watched_file_is_loaded_when_it_has_changed_and_only_then() {
    let models = Models::new();
    models.put("addone", "m.onnx");
    let server = models.serve("m.onnx", &["--watch-model", "50ms"]);
    models.put("addten", "m.onnx");
    testing::eventually("the new file serves", || {
        predict(&server) == json!([11.0, 12.0, 13.0, 14.0])
    });
    // One failure, however often the same broken file is looked at: the good one after it comes many looks later.
    models.put("empty", "m.onnx");
    testing::eventually("the broken file was refused", || {
        counter(&server, "failure") == 1
    });
    let looks = |folder: &Path| {
        // A sidecar that changes nothing is a change that is loaded, so its reload proves that a look took place.
        fs::write(folder.join("m.toml"), "description = \"again\"").unwrap();
    };
    models.put("addone", "m.onnx");
    testing::eventually("the old file serves again", || {
        predict(&server) == json!([2.0, 3.0, 4.0, 5.0])
    });
    assert_eq!(
        (counter(&server, "success"), counter(&server, "failure")),
        (2, 1)
    );
    looks(models.0.path());
    testing::eventually("the sidecar was noticed", || {
        counter(&server, "success") == 3
    });
    assert_eq!(counter(&server, "failure"), 1);
}

#[test]
fn a_file_of_the_same_size_and_age_is_noticed_when_it_takes_the_place() {
    let models = Models::new();
    // The shorter one is made as long as the other, by a text that nobody reads.
    let mut one = fs::read(fixture("addone")).unwrap();
    let ten = fs::read(fixture("addten")).unwrap();
    let missing = ten.len() - one.len();
    let text = u8::try_from(missing - 2).unwrap();
    one.extend([0x32, text]);
    one.resize(ten.len(), b'x');
    let age = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let put = |bytes: &[u8]| {
        let new = models.path("new");
        fs::write(&new, bytes).unwrap();
        let file = fs::File::options().append(true).open(&new).unwrap();
        file.set_modified(age).unwrap();
        fs::rename(new, models.path("m.onnx")).unwrap();
    };
    put(&one);
    let server = models.serve("m.onnx", &["--watch-model", "50ms"]);
    assert_eq!(predict(&server), json!([2.0, 3.0, 4.0, 5.0]));
    put(&ten);
    testing::eventually("the new file serves", || {
        predict(&server) == json!([11.0, 12.0, 13.0, 14.0])
    });
}

#[test]
fn weights_that_arrive_long_after_their_model_are_noticed() {
    let models = Models::new();
    models.put("external", "repository/m/1/model.onnx");
    let weights = Path::new(&fixture("external")).with_extension("weights");
    let weights = fs::read(weights).unwrap();
    models.put_bytes(&weights, "repository/m/1/external.weights");
    let server = models.serve("repository", &["--watch-model", "50ms"]);
    let version = || server.get("/ready").json()["models"][0]["version"].clone();
    models.put("external", "repository/m/2/model.onnx");
    testing::eventually("the model without weights was refused", || {
        counter(&server, "failure") == 1
    });
    assert_eq!(version(), "1");
    models.put_bytes(&weights, "repository/m/2/external.weights");
    testing::eventually("the whole model serves", || version() == "2");
}

#[test]
fn a_model_that_gets_another_name_serves_under_one_of_them_all_the_time() {
    let models = Models::new();
    models.put("addone", "m.onnx");
    let server = models.serve("m.onnx", &["--watch-model", "50ms"]);
    let names = || {
        let ready = server.get("/ready");
        assert_eq!(ready.status, 200);
        let models = ready.json()["models"].clone();
        let models = models.as_array().unwrap().clone();
        let names = models.iter().map(|model| model["name"].clone());
        names.collect::<Vec<_>>()
    };
    // The new name comes with a file that cannot be loaded; many looks later the old one still serves.
    models.put("empty", "m.onnx");
    models.put_bytes(b"name = \"renamed\"", "m.toml");
    testing::eventually("the new file was refused", || {
        counter(&server, "failure") >= 1
    });
    models.put_bytes(b"name = \"renamed\"\ndescription = \"again\"", "m.toml");
    let refused = counter(&server, "failure");
    testing::eventually("it was refused again", || {
        counter(&server, "failure") > refused
    });
    assert_eq!(names(), ["m"]);
    assert_eq!(predict(&server), json!([2.0, 3.0, 4.0, 5.0]));
    // A good one takes over; no request falls between the two.
    models.put("addten", "m.onnx");
    testing::eventually("the renamed model serves", || {
        predict(&server) == json!([11.0, 12.0, 13.0, 14.0])
    });
    assert_eq!(names(), ["renamed"]);
}

#[test]
fn the_only_model_under_another_name_keeps_predict_only_with_the_same_signature() {
    let models = Models::new();
    models.put("addone", "repository/good/1/model.onnx");
    let server = models.serve("repository", &[]);
    let default = || server.get("/ready").json()["default_model"].clone();
    // Another model comes in its place.
    fs::remove_dir_all(models.path("repository/good")).unwrap();
    models.put("two", "repository/other/1/model.onnx");
    server.signal(Signal::SIGHUP);
    let refused = |line: &Value| {
        let reason = line["reason"].as_str().unwrap_or_default();
        line["level"] == "WARN" && reason.contains("take the place of 'good'")
    };
    assert!(server.log.wait_for(refused).is_some());
    assert_eq!(default(), "good");
    assert_eq!(predict(&server), json!([2.0, 3.0, 4.0, 5.0]));
    // The same model comes under another name.
    fs::remove_dir_all(models.path("repository/other")).unwrap();
    models.put("addone", "repository/third/1/model.onnx");
    server.signal(Signal::SIGHUP);
    let told = |line: &Value| {
        line["level"] == "WARN" && line["model"] == "third" && line["before"] == "good"
    };
    assert!(server.log.wait_for(told).is_some());
    testing::eventually("the new name is the default one", || default() == "third");
    assert_eq!(predict(&server), json!([2.0, 3.0, 4.0, 5.0]));
}

#[test]
fn a_new_model_is_loaded_or_not_served_but_neither_again_nor_as_before() {
    let models = Models::new();
    models.put("addone", "repository/first/1/model.onnx");
    let server = models.serve("repository", &[]);
    models.put("addten", "repository/second/1/model.onnx");
    models.put_bytes(b"no model", "repository/third/1/model.onnx");
    server.signal(Signal::SIGHUP);
    let line = server
        .log
        .wait_for(|line| line["level"] == "WARN" && line["model"] == "third");
    let message = line.unwrap()["message"].clone();
    assert_eq!(message, "the model could not be loaded, and is not served");
    let ready = || server.get("/ready").json();
    testing::eventually("it is named", || ready()["skipped"][0].is_object());
    let skipped = ready()["skipped"].clone();
    let reason = "it could not be loaded; the log says why";
    assert_eq!(skipped, json!([{"path": "third", "reason": reason}]));
    let again = |line: &Value| line["message"] == "model reloaded" && line["model"] == "second";
    assert!(!server.log.lines().iter().any(again));
}

#[test]
fn a_model_that_is_gone_leaves_no_queue_behind_in_the_metrics() {
    let models = Models::new();
    models.put("loop", "repository/slow/1/model.onnx");
    models.put("addone", "repository/other/1/model.onnx");
    let server = models.serve("repository", &["--instances", "1", "--max-batch-size", "1"]);
    let gauge = |name| testing::sample(&server.metrics(), name, &[("model_name", "slow")]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let body = r#"{"inputs": [500000]}"#;
                let request = Request::json("/v1/models/slow:predict", body);
                assert_eq!(server.request(&request).status, 200);
            });
        }
        testing::eventually("requests wait", || gauge("ml_queue_rows") > Some(0.0));
        fs::remove_dir_all(models.path("repository/slow")).unwrap();
        server.signal(Signal::SIGHUP);
    });
    testing::eventually("it has no series of a queue any more", || {
        gauge("ml_queue_rows").is_none() && gauge("ml_saturation").is_none()
    });
    let ready = server.get("/ready").json();
    assert_eq!(ready["models"].as_array().unwrap().len(), 1);
}

#[test]
fn weights_beside_a_watched_model_are_watched_too() {
    let models = Models::new();
    models.put("external", "m.onnx");
    let weights = Path::new(&fixture("external")).with_extension("weights");
    let bytes = fs::read(weights).unwrap();
    models.put_bytes(&bytes, "external.weights");
    let server = models.serve("m.onnx", &["--watch-model", "50ms"]);
    assert_eq!(counter(&server, "success"), 0);
    models.put_bytes(&vec![0; bytes.len()], "external.weights");
    testing::eventually("the new weights serve", || counter(&server, "success") == 1);
}

#[test]
fn a_file_that_is_written_slowly_is_loaded_when_it_is_whole() {
    let models = Models::new();
    models.put("addone", "m.onnx");
    let server = models.serve("m.onnx", &["--watch-model", "200ms"]);
    // In place and bit by bit, as 'scp' would.
    let bytes = fs::read(fixture("addten")).unwrap();
    let file = fs::File::create(models.path("m.onnx")).unwrap();
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    for part in bytes.chunks(bytes.len() / 10) {
        std::io::Write::write_all(&mut &file, part).unwrap();
        longest = longest.max(last.elapsed());
        last = Instant::now();
        testing::pause(Duration::from_millis(50));
    }
    testing::eventually("the whole file serves", || {
        predict(&server) == json!([11.0, 12.0, 13.0, 14.0])
    });
    assert_eq!(counter(&server, "success"), 1);
    // Only where this machine paused for longer than two looks may the file have seemed whole.
    if longest < Duration::from_millis(200) {
        assert_eq!(counter(&server, "failure"), 0);
    }
}

#[test]
fn a_request_on_its_way_is_answered_by_the_model_that_it_found() {
    let models = Models::new();
    models.put("loop", "repository/slow/1/model.onnx");
    let server = models.serve("repository", &["--instances", "1"]);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| {
            let request = Request::json("/predict", r#"{"inputs": [3000000]}"#);
            server.request(&request)
        });
        testing::eventually("the request is executed", || {
            let scrape = server.metrics();
            testing::sample(&scrape, "ml_requests_in_flight", &[("model_name", "slow")])
                == Some(1.0)
        });
        models.put("loop", "repository/slow/2/model.onnx");
        server.signal(Signal::SIGHUP);
        assert!(server.log.wait_for(|line| has_version(line, 2)).is_some());
        let quick = server.request(&Request::json("/predict", r#"{"inputs": [1]}"#));
        assert_eq!(quick.json()["model_version"], "2");
        let answer = slow.join().unwrap();
        assert_eq!(
            (answer.status, &answer.json()["model_version"]),
            (200, &"1".into())
        );
    });
    testing::eventually("the old session is gone", || instance_threads(&server) == 1);
}

#[test]
fn models_of_a_repository_come_and_go() {
    let models = Models::new();
    models.put("addone", "repository/first/1/model.onnx");
    let server = models.serve("repository", &[]);
    let status = |name: &str| {
        let path = format!("/v1/models/{name}:predict");
        server.request(&Request::json(&path, BODY)).status
    };
    assert_eq!(["first", "second"].map(status), [200, 404]);
    models.put("addten", "repository/second/1/model.onnx");
    server.signal(Signal::SIGHUP);
    testing::eventually("the second model serves", || status("second") == 200);
    fs::remove_dir_all(models.path("repository/first")).unwrap();
    server.signal(Signal::SIGHUP);
    testing::eventually("the first model is gone", || status("first") == 404);
    assert_eq!(status("second"), 200);
    let names: Vec<Value> = server.get("/ready").json()["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["name"].clone())
        .collect();
    assert_eq!(names, ["second"]);
}

#[test]
fn a_stop_in_the_middle_of_a_reload_is_a_clean_stop() {
    for _ in 0..10 {
        let models = Models::new();
        models.put("addone", "m.onnx");
        let server = models.serve("m.onnx", &[]);
        server.signal(Signal::SIGHUP);
        server.signal(Signal::SIGTERM);
        assert_eq!(server.wait().code(), Some(0));
    }
}
