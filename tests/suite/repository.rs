//! Repositories: what is served of them, what is not and why, and which model answers requests that name none.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the first thing that is wrong"
)]

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use serde_json::{Value, json};
use testing::Server;
use testing::models::{Repository, answer_of};

/// Asks for a reload, and waits until all models have been loaded again.
fn reload(server: &Server) {
    let reloaded = |server: &Server| {
        let labels = [("result", "success")];
        server.metric("ml_model_reloads_total", &labels).unwrap()
    };
    let before = reloaded(server);
    server.signal(Signal::SIGHUP);
    testing::eventually("a reload", || reloaded(server) > before);
}

fn count(server: &Server, wanted: impl Fn(&Value) -> bool) -> usize {
    server
        .log
        .lines()
        .iter()
        .filter(|line| wanted(line))
        .count()
}

fn is_about(line: &Value, part: &str) -> bool {
    line["message"]
        .as_str()
        .is_some_and(|message| message.contains(part))
}

fn predict(server: &Server) -> (u16, Value) {
    let answer = server.predict(&json!({"inputs": [[1, 2, 3, 4]]}));
    (answer.status, answer.json())
}

#[test]
fn what_is_not_served_is_named_once_in_the_log_and_by_ready() {
    let repository = Repository::with(&[
        ("addone", "good/1/model.onnx"),
        ("addone", "good/v4/model.onnx"),
        ("addone", "good/18446744073709551616/model.onnx"),
        ("addone", "my model/1/model.onnx"),
        ("addone", "stray.onnx"),
        ("addone", "other/1/best.onnx"),
    ]);
    repository.write("README.md", "harmless");
    let server = repository.serve(&[]);
    let paths = [
        "good/18446744073709551616",
        "good/v4",
        "my model",
        "other",
        "stray.onnx",
    ];
    let listed = |server: &Server| -> Vec<String> {
        let ready = server.get("/ready").json();
        let skipped = ready["skipped"].as_array().cloned().unwrap_or_default();
        let path = |entry: &Value| {
            assert!(entry["reason"].as_str().unwrap().len() > 10, "{entry}");
            entry["path"].as_str().unwrap().to_owned()
        };
        let mut paths: Vec<String> = skipped.iter().map(path).collect();
        paths.sort();
        paths
    };
    assert_eq!(listed(&server), paths);
    let reason = reason_for(&server, "other").unwrap();
    assert!(
        reason.contains("other/1 (holds no model.onnx; rename best.onnx"),
        "{reason}"
    );
    reload(&server);
    repository.put("addone", "good/v5/model.onnx");
    fs::remove_dir_all(repository.path("good/v4")).unwrap();
    reload(&server);
    server
        .log
        .wait_for(|line| line["path"] == "good/v5")
        .unwrap();
    for path in paths.iter().chain(&["good/v5"]) {
        let told = |line: &Value| line["path"] == *path && line["level"] == "WARN";
        assert_eq!(count(&server, told), 1, "{path}");
    }
    assert!(listed(&server).contains(&"good/v5".to_owned()));
    assert!(!listed(&server).contains(&"good/v4".to_owned()));
}

#[test]
fn a_second_model_that_appears_leaves_predict_with_the_first_and_warns_once() {
    let repository = Repository::with(&[("addone", "first/1/model.onnx")]);
    let server = repository.serve(&["--watch-model", "20ms"]);
    assert_eq!(server.get("/ready").json()["default_model"], "first");
    repository.put("addten", "second/1/model.onnx");
    let warning = server
        .log
        .wait_for(|line| is_about(line, "/predict stays with 'first'"));
    let warning = warning.unwrap();
    assert!(
        is_about(&warning, "--default-model (DEFAULT_MODEL)"),
        "{warning}"
    );
    assert_eq!(predict(&server).1["model_name"], "first");
    assert_eq!(server.get("/ready").json()["default_model"], "first");

    // The first one goes: nobody is sent to the other one without being asked.
    fs::remove_dir_all(repository.path("first")).unwrap();
    server
        .log
        .wait_for(|line| is_about(line, "the default model 'first' is not served"))
        .unwrap();
    let (status, answer) = predict(&server);
    assert_eq!((status, &answer["code"]), (404, &json!("not_found")));
    assert!(
        answer["error"]
            .as_str()
            .unwrap()
            .contains("/v1/models/{model}:predict")
    );
    assert_eq!(server.get("/ready").json()["default_model"], Value::Null);

    repository.write("second/1/model.toml", "default = true");
    testing::eventually("the sidecar names it", || predict(&server).0 == 200);
    assert_eq!(predict(&server).1["model_name"], "second");
    assert_eq!(
        count(&server, |line| is_about(line, "/predict stays with")),
        1
    );
}

#[test]
fn of_several_models_the_flag_or_a_sidecar_names_the_default_one() {
    let repository = Repository::with(&[
        ("addone", "first/1/model.onnx"),
        ("addten", "second/1/model.onnx"),
    ]);
    let server = repository.serve(&[]);
    let warned = |line: &Value| is_about(line, "none is the default one");
    assert_eq!(count(&server, warned), 1);
    let (status, answer) = predict(&server);
    assert_eq!(status, 404);
    for part in ["/v1/models/{model}:predict", "--default-model"] {
        assert!(answer["error"].as_str().unwrap().contains(part), "{answer}");
    }
    assert_eq!(server.get("/ready").json()["default_model"], Value::Null);
    drop(server);

    let server = repository.serve(&["--default-model", "second"]);
    assert_eq!(predict(&server).1["model_name"], "second");
    assert_eq!(count(&server, |line| is_about(line, "/predict")), 0);
    drop(server);

    repository.write("first/1/model.toml", "default = true");
    let server = repository.serve(&[]);
    assert_eq!(predict(&server).1["model_name"], "first");
    // A contradiction changes nothing of what is served.
    repository.write("second/1/model.toml", "default = true");
    reload(&server);
    server
        .log
        .wait_for(|line| is_about(line, "first, second all say 'default = true'"))
        .unwrap();
    assert_eq!(predict(&server).1["model_name"], "first");
    drop(server);

    // It keeps no model from being served at the start either, but none is the default one then.
    let server = repository.serve(&[]);
    let told = |line: &Value| is_about(line, "first, second all say 'default = true'");
    assert!(server.log.wait_for(told).is_some());
    assert_eq!(predict(&server).0, 404);
    assert_eq!(answer_of(&server, "first"), Some(2.0));
    drop(server);

    let (text, exit_code) = repository.refused(&["--default-model", "third"]);
    assert_eq!(exit_code, 2);
    for part in [
        "--default-model (DEFAULT_MODEL)",
        "'third'",
        "first, second",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_broken_model_keeps_no_other_from_being_served_at_the_start_and_is_named_everywhere() {
    let repository = Repository::with(&[
        ("not_onnx", "a/1/model.onnx"),
        ("addone", "b/1/model.onnx"),
        ("addten", "c/3/model.onnx"),
        ("addone", "d/7/model.onnx"),
        ("addone", "e/1/model.onnx"),
    ]);
    repository.write("d/7/model.toml", "nmae = 1");
    let server = repository.spawn(&[]);
    let begun = server.log.wait_for(|line| is_about(line, "not ready"));
    assert_eq!(begun.unwrap()["level"], "WARN");
    let answers = |server: &Server| ["a", "b", "c", "d", "e"].map(|name| answer_of(server, name));
    let failed = |server: &Server, name, version| {
        let labels = [("model_name", name), ("version", version)];
        server.metric("ml_model_load_failed", &labels)
    };
    // The same after every look.
    for look in 1..4 {
        assert_eq!(
            answers(&server),
            [None, Some(2.0), Some(11.0), None, Some(2.0)]
        );
        let ready = server.get("/ready");
        assert_eq!(
            (ready.status, &ready.json()["code"]),
            (503, &"not_ready".into())
        );
        let models = ready.json()["models"].clone();
        let names = models
            .as_array()
            .unwrap()
            .iter()
            .map(|model| &model["name"]);
        assert_eq!(names.collect::<Vec<_>>(), ["b", "c", "e"]);
        for (name, version, public, reason) in [
            ("a", "1", "could not be loaded", "a/1/model.onnx"),
            ("d", "7", "its sidecar is not valid", "d/7/model.toml"),
        ] {
            let said = reason_for(&server, name).unwrap();
            assert!(said.contains(public), "{said}");
            let is_told = |line: &Value| {
                let told = line["reason"].as_str().unwrap_or_default();
                line["model"] == name && line["version"] == version && told.contains(reason)
            };
            testing::eventually("it is told once more", || count(&server, is_told) >= look);
            assert_eq!(count(&server, is_told), look, "{name}");
            assert_eq!(failed(&server, name, version), Some(1.0));
        }
        assert_eq!(server.metric("ml_ready", &[]), Some(0.0));
        assert_eq!(server.metric("ml_model_reload_blocked", &[]), Some(1.0));
        // Nobody knows whether another one says that it is the default one.
        assert_eq!(predict(&server).0, 404);
        assert_eq!(server.get("/health").status, 200);
        if look < 3 {
            reload(&server);
        }
    }

    // Whoever is not required keeps the server from nothing, and what is mended is served.
    fs::remove_dir_all(repository.path("a")).unwrap();
    repository.write("d/7/model.toml", "");
    reload(&server);
    let ready = |line: &Value| is_about(line, "ready, as every model");
    assert!(server.log.wait_for(ready).is_some());
    assert_eq!(server.get("/ready").status, 200);
    assert_eq!(failed(&server, "a", "1"), None);
    assert_eq!(failed(&server, "d", "7"), None);
    assert_eq!(answer_of(&server, "d"), Some(2.0));
    // What breaks later takes nothing from anybody.
    repository.put("not_onnx", "d/8/model.onnx");
    reload(&server);
    testing::eventually("it is refused", || failed(&server, "d", "8") == Some(1.0));
    assert_eq!(server.get("/ready").status, 200);
    assert_eq!(answer_of(&server, "d"), Some(2.0));
    drop(server);

    // Its own sidecar, or that of all its versions, says that it is not required.
    repository.write("d/model.toml", "required = false");
    let server = repository.serve(&[]);
    assert_eq!(server.get("/ready").status, 200);
    assert!(reason_for(&server, "d").is_some());
    assert_eq!(answer_of(&server, "d"), None);
}

/// The threads of a server that execute models: those of instances, and those that ONNX Runtime starts, which are called
/// like the thread that loads.
fn executing_threads(server: &Server) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    let executing = names.filter(|name| name.starts_with("instance-") || name == "load\n");
    executing.count()
}

#[test]
fn models_share_the_cpus_instead_of_each_having_all() {
    let repository = Repository::with(&[
        ("loop", "a/1/model.onnx"),
        ("loop", "b/1/model.onnx"),
        ("loop", "c/1/model.onnx"),
        ("loop", "d/1/model.onnx"),
        ("loop", "e/1/model.onnx"),
    ]);
    // One of them has what its own sidecar says.
    let own = "[instance_group]\ninstances = 2\n";
    repository.write("e/model.toml", own);
    let cpus = std::thread::available_parallelism().unwrap().get();
    let share = (cpus / 5).max(1);
    let server = repository.serve(&[]);
    let instances = |server: &Server| {
        let models = server.get("/ready").json()["models"].clone();
        let models = models.as_array().unwrap().iter();
        models
            .map(|model| model["instances"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    let [each @ .., own] = &instances(&server)[..] else {
        panic!("no models");
    };
    assert!(each.iter().all(|each| *each <= share as u64), "{each:?}");
    assert_eq!(*own, 2);
    // The thread of the last load may just be ending.
    let most = 4 * share + 2.max(share);
    testing::eventually("no more threads execute than there is room for", || {
        executing_threads(&server) <= most
    });
    drop(server);
    // A flag goes before all of that.
    let server = repository.serve(&["--instances", "3", "--intra-op-threads", "1"]);
    assert_eq!(instances(&server), [3; 5]);
    assert_eq!(executing_threads(&server), 15);
}

/// What is done to a repository.
type Change = fn(&Repository);

#[test]
fn a_model_that_is_required_holds_readiness_until_it_serves_is_gone_or_is_not_required() {
    let holding = || {
        let repository =
            Repository::with(&[("addone", "a/1/model.onnx"), ("not_onnx", "b/1/model.onnx")]);
        let server = repository.spawn(&["--watch-model", "20ms"]);
        let begun = server.log.wait_for(|line| is_about(line, "not ready"));
        assert!(begun.is_some());
        (repository, server)
    };
    let is_ready = |server: &Server| server.get("/ready").status == 200;
    let changes: [(&str, bool, Change); 7] = [
        ("another version is as broken", false, |repository| {
            repository.put("not_onnx", "b/2/model.onnx");
        }),
        ("its version has another number", false, |repository| {
            fs::rename(repository.path("b/1"), repository.path("b/2")).unwrap();
        }),
        ("its policy wants what is not there", false, |repository| {
            repository.write("b/model.toml", "version_policy = { specific = [9] }");
        }),
        ("its name is another one's", false, |repository| {
            repository.write("b/model.toml", "name = \"a\"");
        }),
        ("it is mended", true, |repository| {
            repository.put("addten", "new/1/model.onnx");
            let new = repository.path("new/1/model.onnx");
            fs::rename(new, repository.path("b/1/model.onnx")).unwrap();
            fs::remove_dir_all(repository.path("new")).unwrap();
        }),
        ("it is gone", true, |repository| {
            fs::remove_dir_all(repository.path("b")).unwrap();
        }),
        ("it is not required", true, |repository| {
            repository.write("b/model.toml", "required = false");
        }),
    ];
    for (what, ready, change) in changes {
        let (repository, server) = holding();
        change(&repository);
        // One that comes at the same time shows that the change was looked at.
        repository.put("addone", "z/1/model.onnx");
        testing::eventually(what, || answer_of(&server, "z") == Some(2.0));
        if ready {
            testing::eventually(what, || is_ready(&server));
        } else {
            testing::pause(Duration::from_millis(100));
            assert!(!is_ready(&server), "{what}");
        }
    }
}

#[test]
fn what_is_broken_is_named_before_what_is_only_stray() {
    let repository = Repository::with(&[
        ("addone", "good/1/model.onnx"),
        ("not_onnx", "zz/1/model.onnx"),
    ]);
    for number in 0..130 {
        fs::create_dir(repository.path(&format!("good/v{number}"))).unwrap();
    }
    let server = repository.spawn(&[]);
    let begun = server.log.wait_for(|line| is_about(line, "not ready"));
    assert!(begun.is_some());
    assert!(reason_for(&server, "zz").is_some());
    assert_eq!(server.get("/ready").json()["skipped_more"], 3);
}

#[test]
fn a_model_that_nobody_can_read_is_missed_like_one_that_is_broken() {
    let repository = Repository::with(&[("addone", "good/1/model.onnx")]);
    fs::create_dir_all(repository.path("folder/1/model.onnx")).unwrap();
    fs::create_dir_all(repository.path("pipe/7")).unwrap();
    nix::unistd::mkfifo(&repository.path("pipe/7/model.onnx"), Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("../gone", repository.path("link")).unwrap();
    let server = repository.spawn(&["--watch-model", "20ms"]);
    let begun = server.log.wait_for(|line| is_about(line, "not ready"));
    assert!(begun.is_some());
    assert_eq!(server.get("/ready").status, 503);
    assert_eq!(answer_of(&server, "good"), Some(2.0));
    let failed = |name, version| {
        let labels = [("model_name", name), ("version", version)];
        server.metric("ml_model_load_failed", &labels)
    };
    for (name, version, part) in [
        ("folder", "1", "is a folder, not a file"),
        ("pipe", "7", "is neither a file nor a folder"),
        ("link", "", "is a link that leads nowhere"),
    ] {
        let reason = reason_for(&server, name).unwrap();
        assert!(reason.contains(part), "{reason}");
        assert_eq!(failed(name, version), Some(1.0), "{name}");
        let told = |line: &Value| {
            let reason = line["reason"].as_str().unwrap_or_default();
            line["model"] == name && reason.contains(part)
        };
        assert_eq!(count(&server, told), 1, "{name}");
    }
    fs::remove_file(repository.path("link")).unwrap();
    fs::remove_dir_all(repository.path("pipe")).unwrap();
    fs::remove_dir(repository.path("folder/1/model.onnx")).unwrap();
    repository.put("addone", "folder/1/model.onnx");
    testing::eventually("all serve", || server.get("/ready").status == 200);
    assert_eq!(answer_of(&server, "folder"), Some(2.0));
    testing::eventually("nothing failed", || failed("folder", "1").is_none());
}

#[test]
fn the_default_model_is_followed_to_another_name_beside_one_that_was_broken_before() {
    let repository = Repository::with(&[
        ("addone", "a/1/model.onnx"),
        ("addone", "misspelt/1/model.onnx"),
    ]);
    repository.write("a/1/model.toml", "default = true");
    repository.write("misspelt/model.toml", "required = false");
    repository.write("misspelt/1/model.toml", "nmae = 1");
    let server = repository.serve(&["--watch-model", "20ms"]);
    assert_eq!(predict(&server).0, 200);
    repository.write("a/1/model.toml", "");
    reload(&server);
    fs::rename(repository.path("a"), repository.path("b")).unwrap();
    testing::eventually("it has the other name", || {
        let (status, answer) = predict(&server);
        assert_eq!(status, 200, "{answer}");
        answer["model_name"] == "b"
    });
}

#[test]
fn names_that_come_and_go_leave_no_series_behind() {
    let repository = Repository::with(&[("addone", "kept/1/model.onnx")]);
    let server = repository.serve(&["--watch-model", "20ms"]);
    let series = || server.metrics().samples.len();
    let before = series();
    for number in 0..3 {
        let name = format!("m{number}");
        repository.put("addone", &format!("{name}/1/model.onnx"));
        testing::eventually("it is served", || answer_of(&server, &name).is_some());
        fs::remove_dir_all(repository.path(&name)).unwrap();
        testing::eventually("it is gone, with its series", || {
            answer_of(&server, &name).is_none()
                && server
                    .metric("ml_requests_in_flight", &[("model_name", &name)])
                    .is_none()
        });
    }
    // A few are of routes and results that had not occurred before.
    assert!(series() <= before + 5, "{before} {}", series());
}

#[test]
fn no_other_model_becomes_the_default_one_while_one_serves_that_is_not_found() {
    let repository =
        Repository::with(&[("addone", "g/1/model.onnx"), ("addten", "m/1/model.onnx")]);
    let server = repository.serve(&["--watch-model", "20ms"]);
    assert_eq!(predict(&server).0, 404);
    repository.write("m/model.toml", "version_policy = { specific = [9] }");
    testing::eventually("it is looked at", || reason_for(&server, "m/9").is_some());
    reload(&server);
    assert_eq!(predict(&server).0, 404);
}

#[test]
fn where_nothing_at_all_can_be_served_the_start_fails_and_names_all() {
    let repository = Repository::with(&[
        ("not_onnx", "a/1/model.onnx"),
        ("truncated", "c/1/model.onnx"),
        ("addone", "d/1/model.onnx"),
    ]);
    repository.write("d/1/model.toml", "nmae = 1");
    let (text, exit_code) = repository.refused(&[]);
    assert_eq!(exit_code, 1);
    for part in [
        "3 models cannot be served",
        "d/1/model.toml",
        "a/1/model.onnx",
        "c/1/model.onnx",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_refused_model_is_not_said_to_be_loaded_and_one_that_takes_over_says_what_was_before() {
    let repository = Repository::with(&[("addone", "m/1/model.onnx")]);
    let server = repository.serve(&[]);
    let loaded = |line: &Value| line["message"] == "model loaded";
    assert_eq!(count(&server, loaded), 1);
    repository.put("two", "m/2/model.onnx");
    server.signal(Signal::SIGHUP);
    let refused = server
        .log
        .wait_for(|line| is_about(line, "this version of the model could not be loaded"));
    assert!(
        refused.unwrap()["reason"]
            .as_str()
            .unwrap()
            .contains("signature changed")
    );
    assert_eq!(count(&server, loaded), 1);

    repository.put("addten", "m/3/model.onnx");
    server.signal(Signal::SIGHUP);
    let line = server
        .log
        .wait_for(|line| line["message"] == "model reloaded")
        .unwrap();
    assert_eq!(
        (&line["version_before"], &line["version"]),
        (&json!("1"), &json!("3"))
    );
    let fingerprints = [&line["sha256_before"], &line["sha256"]];
    assert_ne!(fingerprints[0], fingerprints[1]);
    assert!(
        fingerprints
            .iter()
            .all(|print| print.as_str().unwrap().len() == 64),
        "{line}"
    );
    assert_eq!(count(&server, loaded), 2);
}

#[test]
fn a_sidecar_that_is_a_pipe_or_huge_is_refused_and_blocks_nothing() {
    let repository = Repository::with(&[("addone", "m/1/model.onnx")]);
    let server = repository.serve(&[]);
    let sidecar = repository.path("m/1/model.toml");
    let refused = |part: &'static str| {
        server.signal(Signal::SIGHUP);
        let told = |line: &Value| {
            line["reason"]
                .as_str()
                .is_some_and(|reason| reason.contains(part))
        };
        let line = server.log.wait_for(told).unwrap();
        assert!(
            line["reason"].as_str().unwrap().contains("m/1/model.toml"),
            "{line}"
        );
        assert_eq!(predict(&server).0, 200);
    };
    nix::unistd::mkfifo(&sidecar, Mode::S_IRWXU).unwrap();
    refused("is a pipe");
    fs::remove_file(&sidecar).unwrap();
    fs::File::create(&sidecar)
        .unwrap()
        .set_len(100 << 20)
        .unwrap();
    refused("larger than 1048576 bytes");
    let tuning = "[tuning]\nsha256 = \"a\"\ncpus = 1\nintra_op_threads = 1\ninstances = 1000000\n";
    repository.write("m/1/model.toml", tuning);
    refused("from 1 to 1024");
    let tuning = tuning
        .replace("1000000", "1000")
        .replace("threads = 1\n", "threads = 2\n");
    repository.write("m/1/model.toml", &tuning);
    refused("1000 instances of 2 threads are 2000 threads");
    fs::remove_file(&sidecar).unwrap();
    reload(&server);
}

/// The reason that `/ready` gives for what lies at `path` and is not served.
fn reason_for(server: &Server, path: &str) -> Option<String> {
    let ready = server.get("/ready").json();
    let skipped = ready["skipped"].as_array()?;
    let entry = skipped.iter().find(|entry| entry["path"] == path)?;
    entry["reason"].as_str().map(str::to_owned)
}

#[test]
fn a_sidecar_that_breaks_is_named_with_its_model_and_keeps_no_other_from_being_loaded() {
    let repository = Repository::with(&[
        ("addone", "broken/1/model.onnx"),
        ("addone", "other/1/model.onnx"),
    ]);
    let server = repository.serve(&["--watch-model", "20ms"]);
    repository.write("broken/1/model.toml", "nmae = 1");
    repository.put("addten", "other/2/model.onnx");
    testing::eventually("the other model is loaded", || {
        answer_of(&server, "other") == Some(11.0)
    });
    let told = |line: &Value| line["model"] == "broken" && line["level"] == "WARN";
    let line = server.log.wait_for(told).unwrap();
    let reason = line["reason"].as_str().unwrap();
    assert!(reason.contains("broken/1/model.toml"), "{line}");
    assert!(is_about(&line, "what served before goes on"), "{line}");
    let reason = reason_for(&server, "broken").unwrap();
    assert!(reason.contains("its sidecar is not valid"), "{reason}");
    assert_eq!(answer_of(&server, "broken"), Some(2.0));
    let blocked = |server: &Server| server.metric("ml_model_reload_blocked", &[]).unwrap();
    testing::eventually("it is counted", || blocked(&server) > 0.5);

    fs::remove_file(repository.path("broken/1/model.toml")).unwrap();
    testing::eventually("nothing is blocked", || blocked(&server) < 0.5);
    assert_eq!(reason_for(&server, "broken"), None);
    assert_eq!(count(&server, told), 1);
}

#[test]
fn a_single_model_whose_sidecar_breaks_is_named_by_ready() {
    let repository = Repository::with(&[("addone", "m.onnx")]);
    let path = repository.path("m.onnx");
    let server = Server::start(&["--model", path.to_str().unwrap()]);
    repository.write("m.toml", "[batching]\nmax_queue_delay = \"5\"\n");
    server.signal(Signal::SIGHUP);
    let line = server
        .log
        .wait_for(|line| line["model"] == "m" && line["level"] == "WARN");
    let line = line.unwrap();
    assert!(
        line["reason"].as_str().unwrap().contains("m.toml"),
        "{line}"
    );
    testing::eventually("/ready names it", || {
        reason_for(&server, "m.onnx").is_some()
    });
    assert_eq!(predict(&server).0, 200);

    // Valid by itself, and too long beside the time that requests have.
    repository.write("m.toml", "[batching]\nmax_queue_delay = \"40s\"\n");
    server.signal(Signal::SIGHUP);
    let told = |line: &Value| {
        line["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("is not below --request-timeout"))
    };
    assert_eq!(server.log.wait_for(told).unwrap()["model"], "m");
    testing::eventually("/ready names it", || reason_for(&server, "m").is_some());
    assert_eq!(predict(&server).0, 200);

    fs::remove_file(&path).unwrap();
    server.signal(Signal::SIGHUP);
    testing::eventually("/ready says that it is gone", || {
        reason_for(&server, "m.onnx").as_deref() == Some("it is gone")
    });
    assert_eq!(predict(&server).0, 200);
}

#[test]
fn what_takes_the_place_of_a_model_without_being_one_does_not_end_it() {
    let repository =
        Repository::with(&[("addone", "a/1/model.onnx"), ("addone", "b/1/model.onnx")]);
    let server = repository.serve(&["--watch-model", "20ms"]);
    let places = [
        repository.path("a/1/model.onnx"),
        repository.path("b/1/model.onnx"),
    ];
    for place in &places {
        fs::remove_file(place).unwrap();
    }
    fs::create_dir(&places[0]).unwrap();
    nix::unistd::mkfifo(&places[1], Mode::S_IRWXU).unwrap();
    // Both are named, and another model that comes is loaded after that.
    for name in ["a", "b"] {
        let told = |line: &Value| line["model"] == name && line["reason"].is_string();
        server.log.wait_for(told).unwrap();
    }
    repository.put("addten", "c/1/model.onnx");
    testing::eventually("the new model serves", || {
        answer_of(&server, "c") == Some(11.0)
    });
    assert_eq!(["a", "b"].map(|it| answer_of(&server, it)), [Some(2.0); 2]);

    fs::remove_dir(&places[0]).unwrap();
    testing::eventually("the model is gone", || answer_of(&server, "a").is_none());
    fs::remove_file(&places[1]).unwrap();
    repository.put("addten", "b/1/model.onnx");
    testing::eventually("the model is replaced", || {
        answer_of(&server, "b") == Some(11.0)
    });
}

#[test]
fn a_default_model_that_comes_back_damaged_is_not_served_and_sends_nobody_elsewhere() {
    let repository =
        Repository::with(&[("addone", "a/1/model.onnx"), ("addten", "b/1/model.onnx")]);
    let server = repository.serve(&["--default-model", "a", "--watch-model", "20ms"]);
    fs::remove_dir_all(repository.path("a")).unwrap();
    testing::eventually("it is gone", || predict(&server).0 == 404);
    repository.put("truncated", "a/1/model.onnx");
    let told = |line: &Value| line["model"] == "a" && line["reason"].is_string();
    assert!(is_about(
        &server.log.wait_for(told).unwrap(),
        "is not served"
    ));
    assert_eq!(predict(&server).0, 404);
    repository.put("addone", "a/1/model.onnx");
    testing::eventually("it is whole", || predict(&server).0 == 200);
    assert_eq!(predict(&server).1["model_name"], "a");
}

#[test]
fn a_model_that_the_flag_names_is_not_followed_to_another_name() {
    let repository = Repository::with(&[("addone", "a/1/model.onnx")]);
    let server = repository.serve(&["--default-model", "a", "--watch-model", "20ms"]);
    fs::rename(repository.path("a"), repository.path("b")).unwrap();
    testing::eventually("the name is gone", || {
        let (status, answer) = predict(&server);
        assert_ne!(answer["model_name"], "b");
        status == 404
    });
    assert_eq!(answer_of(&server, "b"), Some(2.0));
}

#[test]
fn a_model_that_is_removed_goes_although_another_one_is_broken() {
    let repository = Repository::with(&[
        ("addone", "a/1/model.onnx"),
        ("addone", "b/1/model.onnx"),
        ("addone", "c/1/model.onnx"),
    ]);
    let server = repository.serve(&["--watch-model", "20ms"]);
    repository.put("truncated", "damaged/1/model.onnx");
    repository.put("addone", "misspelt/1/model.onnx");
    repository.write("misspelt/1/model.toml", "nmae = 1");
    for name in ["damaged", "misspelt"] {
        let told = |line: &Value| line["model"] == name && line["reason"].is_string();
        server.log.wait_for(told).unwrap();
    }
    fs::remove_dir_all(repository.path("a")).unwrap();
    testing::eventually("it is gone", || answer_of(&server, "a").is_none());

    // What comes damaged in the moment in which another one goes may be the same model under another name.
    repository.write("b/1/model.toml", "nmae = 1");
    fs::rename(repository.path("b"), repository.path("renamed")).unwrap();
    let told = |line: &Value| {
        let reason = line["reason"].as_str().unwrap_or_default();
        line["model"] == "b" && reason.contains("it may be 'renamed' now")
    };
    server.log.wait_for(told).unwrap();
    assert_eq!(answer_of(&server, "b"), Some(2.0));
    assert!(
        reason_for(&server, "b")
            .unwrap()
            .contains("its files are gone")
    );
    fs::remove_file(repository.path("renamed/1/model.toml")).unwrap();
    testing::eventually("the new name serves, and the old one is gone", || {
        answer_of(&server, "b").is_none() && answer_of(&server, "renamed") == Some(2.0)
    });
    assert_eq!(answer_of(&server, "c"), Some(2.0));
}
