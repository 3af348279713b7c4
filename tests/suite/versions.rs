//! Versions of one model side by side: which are served, how they are called, and what each has of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the first thing that is wrong"
)]

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testing::models::Repository;
use testing::{Request, Response, Server};

/// Versions of the model `m`: of `addone` where the version is odd, else of `addten`.
struct Versions(Repository);

impl Versions {
    fn with(versions: &[u64], policy: &str) -> Self {
        let repository = Self(Repository::with(&[]));
        for version in versions {
            repository.put(*version);
        }
        repository.set_policy(policy);
        repository
    }

    fn path(&self, place: &str) -> PathBuf {
        self.0.path(&format!("m/{place}"))
    }

    fn put(&self, version: u64) {
        let name = if version % 2 == 1 { "addone" } else { "addten" };
        self.put_as(name, version);
    }

    fn put_as(&self, name: &str, version: u64) {
        self.0.put(name, &format!("m/{version}/model.onnx"));
    }

    fn set_policy(&self, policy: &str) {
        let policy = format!("version_policy = {policy}");
        self.0.write("m/model.toml", &policy);
    }

    fn serve(&self, flags: &[&str]) -> Server {
        self.0.serve(flags)
    }
}

fn call(server: &Server, version: Option<u64>) -> Response {
    let path = match version {
        Some(version) => format!("/v1/models/m/versions/{version}:predict"),
        None => "/v1/models/m:predict".to_owned(),
    };
    server.request(&Request::json(&path, r#"{"inputs": [[0, 0, 0, 0]]}"#))
}

/// What is added to each number, and the version that says it.
fn answer(server: &Server, version: Option<u64>) -> (f64, String) {
    let answer = call(server, version).json();
    let added = answer["outputs"]["y"][0][0].as_f64();
    let version = answer["model_version"].as_str();
    (added.unwrap(), version.unwrap().to_owned())
}

/// The versions that `/ready` names.
fn listed(server: &Server) -> Vec<String> {
    let models = server.get("/ready").json()["models"].clone();
    let models = models.as_array().unwrap().iter();
    models
        .map(|model| model["version"].as_str().unwrap().to_owned())
        .collect()
}

/// The versions that are served, by each place that says so.
fn served(server: &Server) -> Vec<String> {
    let versions = listed(server);
    let metadata = server.get("/v2/models/m").json();
    assert_eq!(metadata["versions"], json!(versions));
    versions
}

#[test]
fn two_versions_side_by_side_have_instances_queues_and_metrics_of_their_own() {
    let repository = Versions::with(&[1, 2, 10], "{ specific = [1, 2] }");
    let server = repository.serve(&["--instances", "1"]);
    assert_eq!(served(&server), ["1", "2"]);
    assert_eq!(answer(&server, Some(1)), (1.0, "1".to_owned()));
    assert_eq!(answer(&server, Some(2)), (10.0, "2".to_owned()));
    // Who names none gets the highest, and so does /predict.
    assert_eq!(answer(&server, None), (10.0, "2".to_owned()));
    let body = json!({"inputs": [[0, 0, 0, 0]]});
    assert_eq!(server.predict(&body).json()["model_version"], "2");
    for (version, requests) in [("1", 1.0), ("2", 3.0)] {
        let labels = [("model_name", "m"), ("version", version)];
        let metric = |name: &str| server.metric(name, &labels);
        assert_eq!(metric("ml_executed_batch_size_count"), Some(requests));
        assert_eq!(metric("ml_queue_duration_seconds_count"), Some(requests));
        assert_eq!(
            metric("ml_inference_duration_seconds_count"),
            Some(requests)
        );
        for gauge in ["ml_queue_rows", "ml_saturation"] {
            assert_eq!(metric(gauge), Some(0.0), "{gauge}");
        }
        for gauge in ["ml_model_info", "ml_model_batching_info"] {
            assert_eq!(metric(gauge), Some(1.0), "{gauge}");
        }
        let metadata = server
            .get(&format!("/v2/models/m/versions/{version}"))
            .json();
        let loaded = server
            .log
            .wait_for(|line| line["message"] == "model loaded" && line["version"] == version);
        assert_eq!(metadata["properties"]["sha256"], loaded.unwrap()["sha256"]);
        assert_eq!(metadata["versions"], json!(["1", "2"]));
    }
    let total = [("model_name", "m"), ("status", "success")];
    assert_eq!(server.metric("ml_predictions_total", &total), Some(4.0));

    let answers = [
        call(&server, Some(10)),
        server.get("/v2/models/m/versions/10"),
        server.request(&Request::json("/v1/models/x/versions/1:predict", "{}")),
        server.request(&Request::json("/v1/models/m/versions/1", "{}")),
        server.request(&Request::json("/v1/models/m/versions/%ff:predict", "{}")),
    ];
    for (answer, part) in answers.iter().zip([
        "no such version of this model",
        "no such version of this model",
        "no such model",
        "/v1/models/{model}/versions/{version}:predict",
        "UTF-8",
    ]) {
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (404, &"not_found".into())
        );
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_full_queue_of_one_version_refuses_nothing_of_another() {
    let repository = Versions::with(&[1], "\"all\"");
    repository.put_as("loop", 2);
    let server = repository.serve(&[
        "--instances",
        "1",
        "--max-batch-size",
        "1",
        "--max-queue-size",
        "1",
        "--request-timeout",
        "1h",
    ]);
    let slow = Request::json(
        "/v1/models/m/versions/2:predict",
        r#"{"inputs": [300000000]}"#,
    );
    let rows = |version: &str| {
        let labels = [("model_name", "m"), ("version", version)];
        server.metric("ml_queue_rows", &labels)
    };
    let overloaded = [("model_name", "m"), ("status", "overloaded")];
    let mut waiting = Vec::new();
    // One is executed for longer than the test takes, one waits, and the next is refused.
    testing::eventually("the queue is full", || {
        let mut client = server.connect();
        client.write(&slow.bytes()).unwrap();
        waiting.push(client);
        server.metric("ml_predictions_total", &overloaded) >= Some(1.0)
    });
    assert_eq!(rows("2"), Some(1.0));
    assert_eq!(answer(&server, Some(1)), (1.0, "1".to_owned()));
    assert_eq!(rows("1"), Some(0.0));
}

#[test]
fn versions_come_and_go_as_the_policy_says() {
    let repository = Versions::with(&[1, 2, 10], "{ latest = 2 }");
    let server = repository.serve(&["--watch-model", "20ms"]);
    let becomes = |versions: &[&str]| {
        testing::eventually("other versions are served", || listed(&server) == versions);
        assert_eq!(served(&server), versions);
    };
    assert_eq!(served(&server), ["2", "10"]);
    repository.put(11);
    becomes(&["10", "11"]);
    assert_eq!(answer(&server, None), (1.0, "11".to_owned()));
    // One that cannot be served takes nobody's place.
    repository.put_as("not_onnx", 12);
    let refused = |line: &Value| line["level"] == "WARN" && line["version"] == "12";
    assert!(server.log.wait_for(refused).is_some());
    assert_eq!(served(&server), ["10", "11"]);
    let skipped = server.get("/ready").json()["skipped"].clone();
    assert_eq!(skipped[0]["path"], "m/12", "{skipped}");
    // Nor does one that would answer with another signature where no version is named.
    repository.put_as("image", 12);
    testing::eventually("it is told why", || {
        server.log.lines().iter().any(|line| {
            let reason = line["reason"].as_str().unwrap_or_default();
            line["version"] == "12" && reason.contains("the signature changed")
        })
    });
    assert_eq!(served(&server), ["10", "11"]);
    fs::remove_dir_all(repository.path("12")).unwrap();

    repository.set_policy("{ specific = [1, 3, 11] }");
    becomes(&["1", "11"]);
    let skipped = server.get("/ready").json()["skipped"].clone();
    assert_eq!(skipped[0]["path"], "m/3", "{skipped}");
    // What is taken away is let go, with its series.
    fs::remove_dir_all(repository.path("11")).unwrap();
    becomes(&["1"]);
    assert_eq!(answer(&server, None), (1.0, "1".to_owned()));
    let labels = [("model_name", "m"), ("version", "11")];
    testing::eventually("its series are gone", || {
        [
            "ml_queue_rows",
            "ml_executed_batch_size_count",
            "ml_model_info",
        ]
        .iter()
        .all(|name| server.metric(name, &labels).is_none())
    });
    repository.set_policy("\"all\"");
    becomes(&["1", "2", "10"]);
    fs::remove_file(repository.path("model.toml")).unwrap();
    becomes(&["10"]);
}

#[test]
fn versions_that_were_there_at_the_start_may_have_signatures_of_their_own() {
    let repository = Versions::with(&[1], "\"all\"");
    repository.put_as("image", 2);
    let server = repository.serve(&[]);
    assert_eq!(served(&server), ["1", "2"]);
    assert_eq!(answer(&server, Some(1)), (1.0, "1".to_owned()));
    server.signal(Signal::SIGHUP);
    let reloads = [("result", "success")];
    testing::eventually("both are loaded again", || {
        server.metric("ml_model_reloads_total", &reloads) == Some(2.0)
    });
    assert_eq!(served(&server), ["1", "2"]);
    // Whoever names no version is answered by another signature when the highest is gone, which is told.
    fs::remove_dir_all(repository.path("2")).unwrap();
    server.signal(Signal::SIGHUP);
    let told = server.log.wait_for(|line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.contains("answered by one of another signature")
    });
    assert_eq!(told.unwrap()["version"], "1");
    assert_eq!(answer(&server, None), (1.0, "1".to_owned()));
}

#[test]
fn settings_of_all_versions_lie_in_the_model_s_folder_and_each_version_may_have_others() {
    let repository = Versions::with(&[1, 2], "\"all\"");
    fs::write(
        repository.path("model.toml"),
        "version_policy = \"all\"\ndescription = \"adds\"\n[batching]\nmax_batch_size = 8\n",
    )
    .unwrap();
    let own = "description = \"adds ten\"\n[batching]\nmax_batch_size = 4\n";
    fs::write(repository.path("2/model.toml"), own).unwrap();
    let server = repository.serve(&[]);
    for (version, description, rows) in [(1, "adds", "8"), (2, "adds ten", "4")] {
        let metadata = server.get(&format!("/v2/models/m/versions/{version}"));
        let properties = metadata.json()["properties"].clone();
        assert_eq!(properties["description"], description);
        assert_eq!(properties["max_batch_size"], rows);
    }
    // A policy beside the highest version is as good.
    fs::write(repository.path("model.toml"), "").unwrap();
    fs::write(
        repository.path("2/model.toml"),
        "version_policy = { latest = 2 }",
    )
    .unwrap();
    drop(server);
    assert_eq!(served(&repository.serve(&[])), ["1", "2"]);
}
