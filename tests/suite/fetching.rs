//! `model-serving fetch` brings models from web servers, buckets and hubs, whole or not at all.
//!
//! The servers are our own, with TLS, and do as each test says; S3 is also spoken with moto, where
//! `.tools/buckets/bin/moto_server` is (`make buckets` fetches it; without it that test says that it was skipped).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::format_push_string,
    reason = "a test stops at the first thing that is wrong"
)]

mod web;

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use testing::{Client, Request, Server, program, repository, skipped};
use web::{Answer, Asked, Then, WebServer};

const TAG: &str = "\"v1\"";

/// Something large enough to arrive in many pieces, and without a pattern that hides a piece in the wrong place.
fn content(length: usize) -> Vec<u8> {
    let mut random = testing::Random::new(7);
    (0..length)
        .map(|_| u8::try_from(random.below(256)).unwrap())
        .collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// What a run of the command came to.
#[derive(Debug)]
struct Run {
    code: Option<i32>,
    error: String,
    lines: Vec<Value>,
}

impl Run {
    /// Its last line of the log, which says what is there now.
    fn last(&self) -> &Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.lines.last().unwrap()
    }

    fn has(&self, message: &str) -> bool {
        self.lines.iter().any(|line| line["message"] == message)
    }
}

/// `fetch URI --to FOLDER`, trusting `server`.
fn command(server: &WebServer, uri: &str, folder: &Path, flags: &[&str]) -> Command {
    let mut command = program();
    command
        .arg("fetch")
        .args(["--to", folder.to_str().unwrap(), uri])
        .args(flags)
        .env("SSL_CERT_FILE", server.authority())
        .stdin(Stdio::null());
    command
}

fn run(mut command: Command) -> Run {
    let output = command.output().unwrap();
    let log = String::from_utf8(output.stdout).unwrap();
    Run {
        code: output.status.code(),
        error: String::from_utf8(output.stderr).unwrap(),
        lines: log
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect(),
    }
}

fn fetch(server: &WebServer, uri: &str, folder: &Path, flags: &[&str]) -> Run {
    run(command(server, uri, folder, flags))
}

/// The files in `folder`, by their paths, with what they hold.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap();
                found.push((name.display().to_string(), std::fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_file_comes_under_its_name_and_is_checked() {
    let model = content(3_000_000);
    let copy = model.clone();
    let server = WebServer::start(move |asked, _| Answer::file(asked, &copy, TAG));
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("models");
    let digest = sha256(&model);
    let uri = server.url("/a/my%20model.onnx?X-Signature=secret");
    let flags = ["--sha256", &digest, "--log-level", "trace"];
    let done = fetch(&server, &uri, &target, &flags);
    assert_eq!(done.last()["sha256"], digest.as_str());
    assert_eq!(done.last()["bytes"], 3_000_000);
    assert_eq!(files(&target), [("my model.onnx".to_owned(), model)]);
    let said = format!("{:?}{}", done.lines, done.error);
    assert!(!said.contains("secret"), "{said}");
    assert_eq!(server.asked().len(), 1);
    // What is there already is not asked for again, and nobody need be there to be asked.
    let uri = uri.replace("https", "HTTPS");
    drop(server);
    let nobody = WebServer::start(|_, _| unreachable!());
    let again = fetch(&nobody, &uri, &target, &["--sha256", &digest]);
    assert_eq!(again.last()["message"], "the model is there already");
}

#[test]
fn what_breaks_off_is_gone_on_with_where_it_broke_off() {
    let model = content(1_000_000);
    let copy = model.clone();
    let server = WebServer::start(move |asked, number| {
        let answer = Answer::file(asked, &copy, TAG);
        match number {
            0 => answer.cut(300_000, Then::Close),
            1 => answer.cut(300_000, Then::Stall),
            _ => answer,
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let done = fetch(
        &server,
        &server.url("/m.onnx"),
        folder.path(),
        &["--timeout", "3s"],
    );
    assert_eq!(done.last()["sha256"], sha256(&model).as_str());
    assert_eq!(files(folder.path()), [("m.onnx".to_owned(), model)]);
    let asked = server.asked();
    assert_eq!(asked.len(), 3);
    assert_eq!(asked[0].from(), None);
    let from: Vec<usize> = asked[1..]
        .iter()
        .map(|asked| asked.from().unwrap())
        .collect();
    assert!(
        0 < from[0] && from[0] <= 300_000 && from[0] < from[1] && from[1] <= 600_000,
        "{from:?}"
    );
    assert!(
        asked[1..]
            .iter()
            .all(|asked| asked.header("if-range") == Some(TAG))
    );
}

#[test]
fn two_versions_of_a_file_are_never_put_together() {
    let (old, new) = (vec![b'o'; 500_000], vec![b'n'; 400_000]);
    let copy = (old, new.clone());
    // The second server keeps the rules, the third looks at no condition.
    for keeps_rules in [true, false] {
        let copy = copy.clone();
        let server = WebServer::start(move |asked, number| match number {
            0 => Answer::file(asked, &copy.0, TAG).cut(200_000, Then::Close),
            _ if keeps_rules => Answer::file(asked, &copy.1, "\"v2\""),
            _ => {
                let mut asked = asked.clone();
                asked.headers.remove("if-range");
                Answer::file(&asked, &copy.1, "\"v2\"")
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let done = fetch(&server, &server.url("/m.onnx"), folder.path(), &[]);
        assert_eq!(done.last()["bytes"], 400_000);
        assert_eq!(files(folder.path()), [("m.onnx".to_owned(), new.clone())]);
    }
}

#[test]
fn a_server_that_knows_no_ranges_is_asked_for_all_of_it_again() {
    let model = content(400_000);
    let copy = model.clone();
    let server = WebServer::start(move |_, number| {
        let answer = Answer::new(200, copy.clone());
        match number {
            0 => answer.cut(100_000, Then::Close),
            _ => answer,
        }
    });
    let folder = tempfile::tempdir().unwrap();
    fetch(&server, &server.url("/m.onnx"), folder.path(), &[]).last();
    assert_eq!(files(folder.path()), [("m.onnx".to_owned(), model)]);
    assert_eq!(server.asked()[1].from(), None);
}

#[test]
fn a_server_that_always_breaks_off_is_given_up_and_what_was_there_stays() {
    let server =
        WebServer::start(|_, _| Answer::new(200, content(400_000)).cut(100_000, Then::Close));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("m.onnx"), "old").unwrap();
    let begun = Instant::now();
    let done = fetch(
        &server,
        &server.url("/m.onnx"),
        folder.path(),
        &["--timeout", "2s"],
    );
    assert_eq!(done.code, Some(1));
    assert!(
        done.error.contains("2 s without anything new"),
        "{}",
        done.error
    );
    assert_eq!(done.error.lines().count(), 1, "{}", done.error);
    assert!(begun.elapsed() < testing::PATIENCE);
    assert!(server.asked().len() >= 2);
    assert_eq!(std::fs::read(folder.path().join("m.onnx")).unwrap(), b"old");
}

#[test]
fn a_file_with_another_digest_is_thrown_away() {
    let server = WebServer::start(|asked, _| Answer::file(asked, b"another model", TAG));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("m.onnx"), "old").unwrap();
    let digest = sha256(b"the model");
    let done = fetch(
        &server,
        &server.url("/m.onnx"),
        folder.path(),
        &["--sha256", &digest],
    );
    assert_eq!(done.code, Some(1));
    assert!(
        done.error.contains(&digest) && done.error.contains(&sha256(b"another model")),
        "{}",
        done.error
    );
    let kept: Vec<_> = files(folder.path());
    assert_eq!(kept, [("m.onnx".to_owned(), b"old".to_vec())]);
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn a_busy_server_is_asked_again_when_it_wants_to_be() {
    let server = WebServer::start(|asked, number| match number {
        0 => Answer::new(429, "slow down").header("Retry-After", "1"),
        1 => Answer::new(503, "<html>later</html>"),
        _ => Answer::file(asked, b"model", TAG),
    });
    let folder = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let done = fetch(&server, &server.url("/m.onnx"), folder.path(), &[]);
    done.last();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let again: Vec<_> = done
        .lines
        .iter()
        .filter(|line| line["message"] == "trying again")
        .collect();
    assert_eq!(again.len(), 2);
    assert!(again[0]["reason"].as_str().unwrap().contains("429"));
}

#[test]
fn what_will_not_change_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for (status, part) in [
        (404, "is not there"),
        (410, "is not there"),
        (401, "check the credentials"),
        (403, "check the credentials"),
        (400, "the server answered 400"),
        (204, "which is no file"),
    ] {
        let server = WebServer::start(move |_, _| Answer::new(status, ""));
        let done = fetch(&server, &server.url("/m.onnx"), folder.path(), &[]);
        assert_eq!(done.code, Some(1), "{status}");
        assert!(done.error.contains(part), "{status}: {}", done.error);
        assert_eq!(server.asked().len(), 1, "{status}");
    }
    let server = WebServer::start(|asked, _| {
        Answer::file(asked, b"x", TAG).header("Content-Encoding", "gzip")
    });
    let done = fetch(&server, &server.url("/m.onnx"), folder.path(), &[]);
    assert!(done.error.contains("encoded with gzip"), "{}", done.error);
    assert_eq!(
        server.asked()[0].header("accept-encoding"),
        Some("identity")
    );
    // Nobody whom we trust vouches for it.
    let stranger = WebServer::start(|_, _| Answer::new(200, "x"));
    let done = fetch(&server, &stranger.url("/m.onnx"), folder.path(), &[]);
    assert_eq!(done.code, Some(1));
    assert!(done.error.contains("SSL_CERT_FILE"), "{}", done.error);
    assert!(stranger.asked().is_empty());
    // An empty variable names no file: then the system's authorities are asked, who do not know it either.
    let mut unset = command(&server, &server.url("/m.onnx"), folder.path(), &[]);
    unset.env("SSL_CERT_FILE", "");
    let done = run(unset);
    assert!(
        done.code == Some(1) && !done.error.contains("No CA certificates"),
        "{}",
        done.error
    );
    assert!(
        files(folder.path())
            .iter()
            .all(|(name, _)| name.starts_with(".fetch/"))
    );
}

#[test]
fn redirects_are_followed_but_never_out_of_tls() {
    let folder = tempfile::tempdir().unwrap();
    let server = WebServer::start(|asked, _| match asked.path() {
        "/m.onnx" => Answer::new(302, "").header("Location", "/elsewhere/0a1b2c?sig=secret"),
        "/elsewhere/0a1b2c" => Answer::file(asked, b"model", TAG),
        "/down.onnx" => {
            Answer::new(302, "").header("Location", "http://127.0.0.1:1/m.onnx?sig=secret")
        }
        _ => Answer::new(302, "").header("Location", asked.path()),
    });
    fetch(&server, &server.url("/m.onnx"), folder.path(), &[]).last();
    assert_eq!(
        files(folder.path()),
        [("m.onnx".to_owned(), b"model".to_vec())]
    );
    let uri = server
        .url("/m.onnx")
        .replace("127.0.0.1", "user:secret@127.0.0.1");
    let told = fetch(&server, &uri, folder.path(), &["--log-level", "trace"]);
    told.last();
    assert!(!format!("{told:?}").contains("secret"), "{told:?}");
    for (path, part) in [
        ("/down.onnx", "from https to http"),
        ("/loop.onnx", "again and again"),
    ] {
        let done = fetch(&server, &server.url(path), folder.path(), &[]);
        assert_eq!(done.code, Some(1));
        assert!(
            done.error.contains(part) && !done.error.contains("secret"),
            "{}",
            done.error
        );
    }
}

#[test]
fn wrong_usage_is_told_before_anything_is_asked() {
    let server = WebServer::start(|_, _| unreachable!());
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().to_str().unwrap();
    let uri = server.url("/m.onnx");
    let plain = uri.replace("https", "http");
    for (arguments, part) in [
        (vec!["--to", to], "nothing says where the model lies"),
        (vec!["--to", to, "m.onnx"], "is not a URI"),
        (
            vec!["--to", to, "ftp://h/m.onnx"],
            "no scheme that is known",
        ),
        (vec!["--to", to, &plain], "without TLS"),
        (vec![&uri], "--to"),
        (
            vec!["--to", to, &uri, "--sha256", "abc"],
            "64 hexadecimal digits",
        ),
        (vec!["--to", to, &uri, "--timeout", "5"], "has no unit"),
        (
            vec!["--to", to, &uri, "--", "--max-batch-size", "0"],
            "--max-batch-size",
        ),
        (
            vec!["--to", to, &uri, "--", "--no-such-flag"],
            "--no-such-flag",
        ),
    ] {
        let mut command = program();
        command.arg("fetch").args(&arguments);
        let done = run(command);
        assert_eq!(done.code, Some(2), "{arguments:?}: {}", done.error);
        assert!(done.error.contains(part), "{arguments:?}: {}", done.error);
        assert!(done.lines.is_empty());
    }
    let mut command = program();
    command
        .args(["fetch", "--to", to])
        .env("MODEL_URI", "m.onnx");
    let done = run(command);
    assert_eq!(done.code, Some(2));
    assert!(done.error.contains("MODEL_URI"), "{}", done.error);
}

#[test]
fn the_address_comes_from_the_variable_or_from_vertex() {
    let server = WebServer::start(|asked, _| Answer::file(asked, asked.path().as_bytes(), TAG));
    let folder = tempfile::tempdir().unwrap();
    let digest = sha256(b"/ours.onnx");
    let mut command = program();
    command
        .arg("fetch")
        .env("SSL_CERT_FILE", server.authority())
        .env("MODEL_DIR", folder.path())
        .env("MODEL_URI", server.url("/ours.onnx"))
        .env("MODEL_SHA256", format!("sha256:{digest}"))
        .env("AIP_STORAGE_URI", server.url("/vertex.onnx"));
    run(command).last();
    let mut command = program();
    command
        .arg("fetch")
        .env("SSL_CERT_FILE", server.authority())
        .env("MODEL_DIR", folder.path())
        .env("MODEL_URI", "")
        .env("MODEL_SHA256", "")
        .env("AIP_STORAGE_URI", server.url("/vertex.onnx"));
    run(command).last();
    let names: Vec<_> = files(folder.path())
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["ours.onnx", "vertex.onnx"]);
}

#[test]
fn a_fetch_that_is_stopped_goes_on_the_next_time() {
    let model = content(600_000);
    let copy = model.clone();
    let server = WebServer::start(move |asked, number| {
        let answer = Answer::file(asked, &copy, TAG);
        match number {
            0 => answer.cut(250_000, Then::Stall),
            _ => answer,
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let uri = server.url("/m.onnx");
    let mut first = command(&server, &uri, folder.path(), &["--timeout", "60s"]);
    first.stdout(Stdio::null()).stderr(Stdio::piped());
    let child = first.spawn().unwrap();
    testing::eventually("the beginning is there", || {
        let parts = files(folder.path());
        parts
            .iter()
            .any(|(name, bytes)| name.contains(".part") && bytes.len() > 200_000)
    });
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(String::from_utf8(ended.stderr).unwrap().contains("SIGTERM"));
    let done = fetch(&server, &uri, folder.path(), &[]);
    assert_eq!(done.last()["sha256"], sha256(&model).as_str());
    assert!(server.asked()[1].from().unwrap() > 200_000);
}

#[test]
fn two_fetches_into_one_folder_take_turns() {
    let model = content(200_000);
    let copy = model.clone();
    let server = WebServer::start(move |asked, number| {
        let answer = Answer::file(asked, &copy, TAG);
        match number {
            0 => answer.cut(100_000, Then::Stall),
            _ => answer,
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let (uri, digest) = (server.url("/m.onnx"), sha256(&model));
    let flags = ["--timeout", "6s", "--sha256", &digest];
    let mut first = command(&server, &uri, folder.path(), &flags);
    let first = first.stdout(Stdio::null()).spawn().unwrap();
    testing::eventually("the first is under way", || !server.asked().is_empty());
    let second = fetch(&server, &uri, folder.path(), &flags);
    assert!(
        second.has("another fetch works in this folder, and is waited for"),
        "{second:?}"
    );
    assert_eq!(second.last()["message"], "the model is there already");
    assert!(first.wait_with_output().unwrap().status.success());
}

#[test]
fn the_same_process_becomes_the_server_once_the_model_is_there() {
    let model = std::fs::read(repository("tests/fixtures/addone.onnx")).unwrap();
    let server = WebServer::start(move |asked, _| Answer::file(asked, &model, TAG));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("addone.onnx");
    let flags = [
        "--",
        "--model",
        path.to_str().unwrap(),
        "--tuning-time",
        "off",
    ];
    let mut command = command(&server, &server.url("/addone.onnx"), folder.path(), &flags);
    command.env("HOST", "127.0.0.1").env("PORT", "0");
    let running = Server::spawn_command(command);
    assert!(
        running
            .log
            .wait_for(|line| line["message"] == "ready")
            .is_some()
    );
    assert!(
        running
            .log
            .wait_for(|line| line["message"] == "the model is there")
            .is_some()
    );
    assert_eq!(running.get("/ready").status, 200);
    running.signal(Signal::SIGTERM);
    assert!(running.wait().success());
}

/// The hub's API for one repository, page by page.
fn hub(asked: &Asked, tokens: &str) -> Answer {
    assert!(
        tokens.is_empty() || asked.header("authorization") == Some(tokens),
        "{asked:?}"
    );
    let large = b"weights".to_vec();
    let entry = |path: &str, lfs: Option<&[u8]>| {
        let mut entry = json!({"type": "file", "path": path, "size": 7, "oid": "0123"});
        if let Some(content) = lfs {
            entry["lfs"] = json!({"oid": sha256(content), "size": 7});
        }
        entry
    };
    let json = |value: Value| Answer::new(200, value.to_string());
    match (asked.method.as_str(), asked.target.as_str()) {
        ("GET", "/api/models/o/r/revision/main") => {
            json(json!({"sha": "c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff"}))
        }
        ("POST", "/api/models/o/r/paths-info/c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff") => {
            json(match asked.body.as_str() {
                "paths=onnx%2Fmodel.onnx&expand=false" => {
                    json!([entry("onnx/model.onnx", Some(&large))])
                }
                "paths=onnx%2Fbad.onnx&expand=false" => {
                    json!([entry("onnx/bad.onnx", Some(b"other"))])
                }
                "paths=onnx&expand=false" => {
                    json!([{"type": "directory", "path": "onnx", "size": 0}])
                }
                _ => json!([]),
            })
        }
        (
            "GET",
            "/api/models/o/r/tree/c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff/onnx?recursive=true",
        ) => {
            let page = json!([entry("onnx/model.onnx", Some(&large)), entry("onnx/.hidden", None), {"type": "directory", "path": "onnx/x", "size": 0}]);
            let next = "</api/models/o/r/tree/c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff/onnx?recursive=true&cursor=2>; rel=\"next\"";
            json(page).header("Link", next)
        }
        (
            "GET",
            "/api/models/o/r/tree/c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff/onnx?recursive=true&cursor=2",
        ) => json(json!([entry("onnx/x/config.json", None)])),
        (
            "GET",
            "/o/r/resolve/c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff/onnx/model.onnx"
            | "/o/r/resolve/c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff/onnx/bad.onnx",
        ) => Answer::file(asked, &large, TAG),
        ("GET", "/o/r/resolve/c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff/onnx/x/config.json") => {
            Answer::new(200, "{ }    ")
        }
        _ => Answer::new(404, ""),
    }
}

#[test]
fn models_come_from_a_hub_at_one_commit_with_the_digests_that_it_tells() {
    let server = WebServer::start(|asked, _| hub(asked, "Bearer hf_test"));
    let folder = tempfile::tempdir().unwrap();
    let fetch = |uri: &str, folder: &Path| {
        let mut command = command(&server, uri, folder, &[]);
        command
            .env("HF_ENDPOINT", server.url("/"))
            .env("HF_TOKEN", "hf_test");
        run(command)
    };
    let done = fetch("hf://o/r/onnx/model.onnx", folder.path());
    assert_eq!(done.last()["sha256"], sha256(b"weights").as_str());
    assert_eq!(
        files(folder.path()),
        [("model.onnx".to_owned(), b"weights".to_vec())]
    );
    for uri in ["hf://o/r/onnx/", "hf://o/r/onnx"] {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(fetch(uri, folder.path()).last()["files"], 2);
        let names: Vec<_> = files(folder.path())
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["model.onnx", "x/config.json"]);
    }
    let bad = fetch("hf://o/r/onnx/bad.onnx", folder.path());
    assert!(
        bad.code == Some(1) && bad.error.contains(&sha256(b"other")),
        "{bad:?}"
    );
    let none = fetch("hf://o/r/onnx/none.onnx", folder.path());
    assert!(
        none.code == Some(1) && none.error.contains("has no 'onnx/none.onnx' at main"),
        "{none:?}"
    );
}

/// Google's bucket `b`, with the objects `models/digits/1/model.onnx`, `…/model.toml` and some that are no model's.
fn google(asked: &Asked, number: usize) -> Answer {
    let objects = [
        ("models/digits/1/model.onnx", content(200_000)),
        ("models/digits/1/model.toml", b"name = \"digits\"".to_vec()),
        ("models/digits/1/.hidden", b"no".to_vec()),
        ("models/digits/1", Vec::new()),
        ("models/other.onnx", b"other".to_vec()),
    ];
    if let Some((_, query)) = asked.target.split_once("?list-type=2") {
        let prefix = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("prefix="));
        let prefix = percent_decode_str(prefix.unwrap_or_default())
            .decode_utf8()
            .unwrap();
        let mut list = "<?xml version='1.0'?><ListBucketResult>".to_owned();
        for (key, content) in objects
            .iter()
            .filter(|(key, _)| key.starts_with(prefix.as_ref()))
        {
            list.push_str(&format!(
                "<Contents><Key>{key}</Key><LastModified>2026-11-27T20:00:00Z</LastModified><ETag>\"v1\"</ETag><Size>{}</Size></Contents>",
                content.len()
            ));
        }
        return Answer::new(200, list + "</ListBucketResult>");
    }
    let path = asked.decoded();
    let key = path.strip_prefix("/b/").unwrap();
    match objects
        .iter()
        .find(|(it, content)| *it == key && !content.is_empty())
    {
        Some((_, content)) => {
            let answer = Answer::file(asked, content, TAG);
            match number {
                1 if asked.method == "GET" => answer.cut(content.len() / 2, Then::Close),
                _ => answer,
            }
        }
        None => Answer::new(404, ""),
    }
}

#[test]
fn objects_and_folders_come_from_a_bucket_of_googles() {
    let server = WebServer::start(google);
    let fetch = |uri: &str, folder: &Path, flags: &[&str]| {
        let mut command = command(&server, uri, folder, flags);
        command
            .env("GOOGLE_BASE_URL", server.url(""))
            .env("GOOGLE_SKIP_SIGNATURE", "true");
        run(command)
    };
    let folder = tempfile::tempdir().unwrap();
    let model = content(200_000);
    let done = fetch(
        "gs://b/models/digits/1/model.onnx",
        folder.path(),
        &["--sha256", &sha256(&model)],
    );
    done.last();
    assert_eq!(
        files(folder.path()),
        [("model.onnx".to_owned(), model.clone())]
    );
    let resumed = server.asked().pop().unwrap();
    assert!(
        resumed.from().unwrap() > 0 && resumed.header("if-match") == Some(TAG),
        "{resumed:?}"
    );
    // A folder's digest is that of the list of its files.
    let listed = format!(
        "{}  1/model.onnx\n{}  1/model.toml\n",
        sha256(&model),
        sha256(b"name = \"digits\"")
    );
    let digest = sha256(listed.as_bytes());
    for uri in ["gs://b/models/digits/", "gs://b/models/digits"] {
        let folder = tempfile::tempdir().unwrap();
        let done = fetch(uri, folder.path(), &["--sha256", &digest]);
        assert_eq!(done.last()["sha256"], digest.as_str());
        let names: Vec<_> = files(folder.path())
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["1/model.onnx", "1/model.toml"]);
        let asked = server.asked().len();
        let again = fetch(uri, folder.path(), &["--sha256", &digest]);
        assert_eq!(again.last()["message"], "the model is there already");
        assert_eq!(server.asked().len(), asked);
    }
    for uri in ["gs://b/none/", "gs://b/none.onnx"] {
        let none = fetch(uri, folder.path(), &[]);
        assert!(
            none.code == Some(1) && none.error.contains("is not there"),
            "{none:?}"
        );
    }
}

#[test]
fn a_list_that_leads_out_of_the_folder_is_refused() {
    for key in ["m/../../x.onnx", "m/a\\b.onnx"] {
        let server = WebServer::start(move |_, _| {
            Answer::new(
                200,
                format!(
                    "<ListBucketResult><Contents><Key>{key}</Key><LastModified>2026-11-27T20:00:00Z</LastModified><ETag>\"e\"</ETag><Size>1</Size></Contents></ListBucketResult>"
                ),
            )
        });
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("models");
        let mut command = command(&server, "gs://b/m/", &inner, &["--timeout", "2s"]);
        command
            .env("GOOGLE_BASE_URL", server.url(""))
            .env("GOOGLE_SKIP_SIGNATURE", "true");
        let done = run(command);
        assert_eq!(done.code, Some(1), "{done:?}");
        assert_eq!(files(folder.path()), []);
    }
}

#[test]
fn objects_come_from_azure() {
    let model = content(50_000);
    let copy = model.clone();
    let server = WebServer::start(move |asked, _| match asked.decoded().as_str() {
        "/account/c/models/m.onnx" => Answer::file(asked, &copy, TAG),
        _ => Answer::new(404, ""),
    });
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(&server, "az://c/models/m.onnx", folder.path(), &[]);
    command
        .env("AZURE_STORAGE_ACCOUNT_NAME", "account")
        .env("AZURE_STORAGE_ENDPOINT", server.url("/account"))
        .env("AZURE_SKIP_SIGNATURE", "true");
    let done = run(command);
    done.last();
    assert_eq!(files(folder.path()), [("m.onnx".to_owned(), model)]);
}

/// moto, which speaks S3. Dropping it ends it.
struct Moto {
    child: Child,
    address: SocketAddr,
}

impl Moto {
    fn start() -> Option<Self> {
        let program = repository(".tools/buckets/bin/moto_server");
        if !program.exists() {
            return None;
        }
        let mut child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("it tells its address").unwrap();
            if let Some((_, address)) = line.split_once("Running on http://") {
                break address.parse().unwrap();
            }
        };
        // What else it says must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Some(Self { child, address })
    }

    fn put(&self, path: &str, content: &[u8]) {
        let mut client = Client::connect(self.address).unwrap();
        let answer = client
            .send(&Request::new("PUT", path).body(content))
            .unwrap();
        assert_eq!(answer.status, 200, "{path}");
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn objects_and_folders_come_from_s3() {
    let Some(moto) = Moto::start() else {
        return skipped(format_args!(
            "S3, with moto: 'make buckets' has not fetched it"
        ));
    };
    let model = content(3_000_000);
    moto.put("/models", b"");
    moto.put("/models/digits/1/model.onnx", &model);
    moto.put("/models/digits/1/model.toml", b"name = \"digits\"");
    let fetch = |uri: &str, folder: &Path, allow: &str, flags: &[&str]| {
        let mut command = program();
        command
            .args(["fetch", "--to", folder.to_str().unwrap(), uri])
            .args(flags)
            .env("AWS_ENDPOINT_URL", format!("http://{}", moto.address))
            .env("AWS_ALLOW_HTTP", allow)
            .env("AWS_REGION", "eu-central-1")
            .env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", "secret");
        run(command)
    };
    let folder = tempfile::tempdir().unwrap();
    let digest = sha256(&model);
    let uri = "s3://models/digits/1/model.onnx";
    fetch(uri, folder.path(), "true", &["--sha256", &digest]).last();
    assert_eq!(files(folder.path()), [("model.onnx".to_owned(), model)]);
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(
        fetch("s3://models/digits", folder.path(), "true", &[]).last()["files"],
        2
    );
    let names: Vec<_> = files(folder.path())
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["1/model.onnx", "1/model.toml"]);
    for uri in ["s3://models/none.onnx", "s3://no-such-bucket/m.onnx"] {
        let none = fetch(uri, folder.path(), "true", &["--timeout", "20s"]);
        assert!(
            none.code == Some(1) && none.error.contains("is not there"),
            "{none:?}"
        );
    }
    let begun = Instant::now();
    let plain = fetch(uri, folder.path(), "", &[]);
    assert!(
        plain.code == Some(1) && plain.error.contains("AWS_ALLOW_HTTP"),
        "{plain:?}"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(60),
        "it was not tried again"
    );
}

#[test]
fn a_stop_that_comes_while_the_process_turns_into_the_server_is_heeded() {
    let model = std::fs::read(repository("tests/fixtures/addone.onnx")).unwrap();
    let digest = sha256(&model);
    let server = WebServer::start(move |asked, _| Answer::file(asked, &model, TAG));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("addone.onnx");
    let mut stopped_late = 0;
    for _ in 0..8 {
        // Nothing but variables, so that nothing stands behind the dashes.
        let flags = ["--sha256", &digest, "--"];
        let mut command = command(&server, &server.url("/addone.onnx"), folder.path(), &flags);
        command
            .env("HOST", "127.0.0.1")
            .env("PORT", "0")
            .env("MODEL_PATH", &path)
            .env("TUNING_TIME", "off")
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let is_there = |line: &String| line.contains("\"the model is there");
        assert!(lines.by_ref().any(|line| is_there(&line.unwrap())));
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
        // It ends by itself, whichever program it was at that moment.
        stopped_late += usize::from(lines.any(|line| line.unwrap().contains("\"draining\"")));
        let status = child.wait().unwrap();
        assert!(matches!(status.code(), Some(0 | 1)), "{status:?}");
    }
    assert!(
        stopped_late > 0,
        "no signal came late enough to show anything"
    );
}

#[test]
fn nothing_that_is_secret_goes_to_another_host() {
    let other = WebServer::start(|asked, _| Answer::file(asked, b"model", TAG));
    let there = other.url("/m.onnx");
    let server = WebServer::start(move |_, _| Answer::new(307, "").header("Location", &there));
    let folder = tempfile::tempdir().unwrap();
    let both = folder.path().join("both.pem");
    let read = |server: &WebServer| std::fs::read_to_string(server.authority()).unwrap();
    std::fs::write(&both, read(&server) + &read(&other)).unwrap();
    let fetch = |uri: &str, variables: &[(&str, &str)]| {
        let mut command = command(&server, uri, folder.path(), &["--timeout", "3s"]);
        command
            .env("SSL_CERT_FILE", &both)
            .envs(variables.iter().copied());
        run(command)
    };
    fetch(&server.url("/m.onnx?sig=secret"), &[]).last();
    let address = server.url("");
    // Stores and their credentials stay where they are.
    let google = [
        ("GOOGLE_BASE_URL", address.as_str()),
        ("GOOGLE_BEARER_TOKEN", "secret"),
    ];
    let amazon = [
        ("AWS_ENDPOINT_URL", address.as_str()),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_SESSION_TOKEN", "secret"),
    ];
    for (uri, variables) in [
        ("gs://b/m.onnx", &google[..]),
        ("s3://b/m.onnx", &amazon[..]),
    ] {
        let done = fetch(uri, variables);
        assert_eq!(done.code, Some(1), "{done:?}");
    }
    let asked = other.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert!(!format!("{asked:?}").contains("secret"), "{asked:?}");
}

#[test]
fn a_folder_is_replaced_whole_or_stays_as_it_was() {
    let server = WebServer::start(google);
    let folder = tempfile::tempdir().unwrap();
    // A folder lies where a file is to be, so that the last file cannot be placed.
    std::fs::create_dir_all(folder.path().join("1/model.onnx/x")).unwrap();
    std::fs::write(folder.path().join("1/model.toml"), "old").unwrap();
    let fetch = |flags: &[&str]| {
        let mut command = command(&server, "gs://b/models/digits/", folder.path(), flags);
        command
            .env("GOOGLE_BASE_URL", server.url(""))
            .env("GOOGLE_SKIP_SIGNATURE", "true");
        run(command)
    };
    let done = fetch(&[]);
    assert!(
        done.code == Some(1) && done.error.contains("1/model.onnx cannot be written"),
        "{done:?}"
    );
    assert_eq!(
        std::fs::read(folder.path().join("1/model.toml")).unwrap(),
        b"old"
    );
    std::fs::remove_dir_all(folder.path().join("1/model.onnx")).unwrap();
    fetch(&[]).last();
    let names: Vec<_> = files(folder.path())
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["1/model.onnx", "1/model.toml"]);
}

#[test]
fn settings_that_cannot_be_are_told_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    for (uri, variable, value) in [
        ("s3://b/m.onnx", "AWS_ENDPOINT_URL", "junk"),
        ("s3://b/m.onnx", "AWS_ACCESS_KEY_ID", "key\n"),
        ("s3://b/m.onnx", "AWS_ALLOW_HTTP", "perhaps"),
        ("gs://b/m.onnx", "GOOGLE_BASE_URL", "junk"),
        ("az://c/m.onnx", "AZURE_STORAGE_ACCOUNT_NAME", ""),
        ("hf://o/r/m.onnx", "HF_ENDPOINT", "http://hub.example.com"),
        ("hf://o/r/m.onnx", "HF_TOKEN", "a b"),
        ("https://127.0.0.1/m.onnx", "SSL_CERT_FILE", "/nonexistent"),
    ] {
        let mut command = program();
        command
            .args(["fetch", uri, "--to", folder.path().to_str().unwrap()])
            .env("AWS_ACCESS_KEY_ID", "key")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .env("GOOGLE_SKIP_SIGNATURE", "true")
            .env(variable, value);
        let done = run(command);
        assert_eq!(done.code, Some(2), "{variable}={value}: {done:?}");
        assert_eq!(done.error.lines().count(), 1, "{done:?}");
    }
}

#[test]
fn an_object_that_is_replaced_after_it_was_listed_is_not_taken_beside_the_others() {
    let server = WebServer::start(|asked, number| match number {
        0 => google(asked, number),
        _ => Answer::file(asked, b"of another moment", "\"v2\""),
    });
    let folder = tempfile::tempdir().unwrap();
    let mut command = command(&server, "gs://b/models/digits/", folder.path(), &[]);
    command
        .env("GOOGLE_BASE_URL", server.url(""))
        .env("GOOGLE_SKIP_SIGNATURE", "true");
    let done = run(command);
    assert!(
        done.code == Some(1) && done.error.contains("replaced after it was listed"),
        "{done:?}"
    );
    assert!(
        files(folder.path())
            .iter()
            .all(|(name, _)| name.starts_with(".fetch/"))
    );
}

#[test]
fn a_stop_is_heeded_while_a_large_file_is_hashed() {
    let server = WebServer::start(|_, _| unreachable!());
    let folder = tempfile::tempdir().unwrap();
    // All holes: it takes no room, and many minutes to read.
    let large = std::fs::File::create(folder.path().join("m.onnx")).unwrap();
    large.set_len(1 << 40).unwrap();
    let digest = sha256(b"another");
    let uri = server.url("/m.onnx");
    let mut command = command(&server, &uri, folder.path(), &["--sha256", &digest]);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let counts = format!("/proc/{}/io", child.id());
    testing::eventually("it reads the file", || {
        let counts = std::fs::read_to_string(&counts).unwrap();
        let read = counts.lines().find_map(|it| it.strip_prefix("rchar: "));
        read.unwrap().parse::<u64>().unwrap() > 64 << 20
    });
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    testing::eventually("it has ended", || child.try_wait().unwrap().is_some());
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(String::from_utf8(ended.stderr).unwrap().contains("SIGTERM"));
}

#[test]
fn a_list_without_an_end_is_given_up() {
    let object = "<Contents><Key>m/a.onnx</Key><LastModified>2026-11-27T20:00:00Z</LastModified><ETag>\"v1\"</ETag><Size>1</Size></Contents>";
    for (objects, part) in [(0, "did not end"), (1_000, "more than 10000 objects")] {
        let page = format!(
            "<?xml version='1.0'?><ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>again</NextContinuationToken>{}</ListBucketResult>",
            object.repeat(objects)
        );
        let server = WebServer::start(move |_, _| Answer::new(200, page.clone()));
        let folder = tempfile::tempdir().unwrap();
        // As long as a busy machine may take for ten pages; whoever waits for the end of the list would wait for ever.
        let timeout = if objects == 0 { "2s" } else { "2m" };
        let flags = ["--timeout", timeout];
        let mut command = command(&server, "gs://b/m/", folder.path(), &flags);
        command
            .env("GOOGLE_BASE_URL", server.url(""))
            .env("GOOGLE_SKIP_SIGNATURE", "true");
        let done = run(command);
        assert!(
            done.code == Some(1) && done.error.contains(part),
            "{done:?}"
        );
    }
}

#[test]
fn whoever_has_no_credentials_is_told_which_to_set() {
    let server = WebServer::start(|_, _| Answer::new(404, ""));
    let folder = tempfile::tempdir().unwrap();
    let address = server.url("");
    let host = address.trim_start_matches("https://").to_owned();
    for (uri, variables, part) in [
        (
            "s3://b/m.onnx",
            &[("AWS_METADATA_ENDPOINT", address.as_str())][..],
            "AWS_ACCESS_KEY_ID",
        ),
        // It is asked without TLS, which this one does not understand.
        (
            "gs://b/m.onnx",
            &[
                ("GCE_METADATA_HOST", host.as_str()),
                ("GCE_METADATA_IP", host.as_str()),
            ][..],
            "GOOGLE_APPLICATION_CREDENTIALS",
        ),
    ] {
        let mut command = command(&server, uri, folder.path(), &["--timeout", "1s"]);
        command
            .env("HOME", folder.path())
            .envs(variables.iter().copied());
        let done = run(command);
        assert_eq!(done.code, Some(1), "{done:?}");
        for part in ["no credentials are set", part, "SKIP_SIGNATURE"] {
            assert!(done.error.contains(part), "{done:?}");
        }
    }
}

#[test]
fn systemd_is_told_to_wait_while_a_model_comes() {
    let server = WebServer::start(|asked, _| Answer::file(asked, b"model", TAG));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let models = folder.path().join("models");
    let mut command = command(&server, &server.url("/m.onnx"), &models, &[]);
    command.env("NOTIFY_SOCKET", &path);
    run(command).last();
    socket.set_nonblocking(true).unwrap();
    let mut buffer = [0; 100];
    let length = socket.recv(&mut buffer).unwrap();
    let told = std::str::from_utf8(&buffer[..length]).unwrap();
    assert_eq!(told.trim(), "EXTEND_TIMEOUT_USEC=600000000");
}
