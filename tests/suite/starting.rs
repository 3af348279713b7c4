//! Starting, or saying in one line why not; and the other commands of the program.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use testing::{Request, Server, fixture, program, skipped};

/// Runs the program to its end.
fn run(arguments: &[&str]) -> Output {
    run_command(program().args(arguments))
}

fn run_command(command: &mut Command) -> Output {
    let started = Instant::now();
    let output = command
        .stdin(Stdio::null())
        .output()
        .expect("the program runs");
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "a failed start is told at once"
    );
    output
}

/// Checks that a start with `flags` fails with one line that holds all of `parts`.
fn fails(flags: &[&str], parts: &[&str]) {
    let output = run_command(
        program()
            .env("HOST", "127.0.0.1")
            .env("PORT", "0")
            .args(flags),
    );
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{flags:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{flags:?}: {text}");
    for part in parts {
        assert!(text.contains(part), "{flags:?}: {text}");
    }
}

#[test]
fn a_failed_start_is_one_line_with_the_cause_and_the_fix() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().to_str().unwrap();
    fails(
        &["--model", "/nowhere/model.onnx"],
        &["no model at /nowhere/model.onnx", "--model (MODEL_PATH)"],
    );
    fails(
        &["--model", empty],
        &["holds no model", "<name>/<version>/model.onnx"],
    );
    fails(
        &["--model", &fixture("not_onnx")],
        &["is not an ONNX model: it is a text", "the .onnx file"],
    );
    for broken in ["truncated", "empty"] {
        fails(
            &["--model", &fixture(broken)],
            &["is not an ONNX model", "export the model again"],
        );
    }
    for outside in [
        "external_parent",
        "external_absolute",
        "external_sneaky",
        "external_in_subgraph",
    ] {
        fails(
            &["--model", &fixture(outside)],
            &["refers to external data", "leaves the model's folder"],
        );
    }
    fails(
        &["--onnxruntime", "/nowhere/libonnxruntime.so"],
        &[
            "cannot load ONNX Runtime",
            "no such file",
            "fetch-onnxruntime.sh",
        ],
    );
    let text = testing::repository("Cargo.toml");
    fails(
        &["--onnxruntime", text.to_str().unwrap()],
        &["cannot load ONNX Runtime", "1.24 or newer"],
    );
    fails(
        &["--device", "cuda"],
        &["device cuda:0 cannot be used", "--device (DEVICE)"],
    );
}

#[test]
fn a_library_that_is_not_there_is_told_before_anything_listens() {
    let output = run_command(program().env("HOST", "127.0.0.1").env("PORT", "0").args([
        "--onnxruntime",
        "/nowhere/libonnxruntime.so",
        "--log-format",
        "json",
    ]));
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8(output.stdout).unwrap();
    assert!(log.contains("\"starting\""), "{log}");
    assert!(!log.contains("\"listening\""), "{log}");
}

#[test]
fn an_onnx_runtime_that_is_too_old_is_told_apart() {
    // A library that says what version 1.20 would say of itself, and could do nothing else.
    let source = "struct base { const void *(*api)(unsigned); const char *(*version)(void); };\n\
        static const void *api(unsigned v) { (void)v; return 0; }\n\
        static const char *version(void) { return \"1.20.1\"; }\n\
        static const struct base BASE = { api, version };\n\
        const struct base *OrtGetApiBase(void) { return &BASE; }\n";
    let folder = tempfile::tempdir().unwrap();
    let (code, library) = (
        folder.path().join("old.c"),
        folder.path().join("libonnxruntime.so"),
    );
    std::fs::write(&code, source).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&code)
        .status();
    assert!(
        built.is_ok_and(|status| status.success()),
        "Rust links with cc, so it is there"
    );
    fails(
        &["--onnxruntime", library.to_str().unwrap()],
        &["cannot load ONNX Runtime", "1.20.1", "1.24 or newer"],
    );
}

#[test]
fn a_sidecar_that_does_not_fit_refuses_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m.onnx");
    std::fs::copy(fixture("addone"), &model).unwrap();
    for (text, part) in [
        ("nmae = \"x\"", "unknown field `nmae`"),
        ("[batching]\nmax_queue_delay = \"5\"", "line 2"),
        (
            "[batching]\nmax_queue_delay = \"1h\"",
            "batching.max_queue_delay '1h' is not below --request-timeout",
        ),
        ("[outputs.q]\nlabels = []", "is not an output"),
        (
            "[outputs.y]\nlabels = [\"a\"]",
            "1 labels for a last dimension of 4",
        ),
        ("name = ", "not a valid sidecar"),
    ] {
        std::fs::write(folder.path().join("m.toml"), text).unwrap();
        fails(&["--model", model.to_str().unwrap()], &["m.", part]);
    }
}

#[test]
fn links_out_of_the_model_s_folder_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("models");
    std::fs::create_dir_all(&inside).unwrap();
    let model = inside.join("external.onnx");
    std::fs::copy(fixture("external"), &model).unwrap();
    let weights = fixture("external").replace("external.onnx", "external.weights");
    let outside = folder.path().join("secret");
    std::fs::copy(weights, &outside).unwrap();
    let link = inside.join("external.weights");
    let model = model.to_str().unwrap();

    fails(&["--model", model], &["cannot be read"]);
    std::os::unix::fs::symlink(&outside, &link).unwrap();
    fails(
        &["--model", model],
        &["leaves the model's folder through a link"],
    );
    std::fs::remove_file(&link).unwrap();
    std::fs::hard_link(&outside, &link).unwrap();
    fails(&["--model", model], &["is a hard link"]);
    std::fs::remove_file(&link).unwrap();
    std::fs::copy(&outside, &link).unwrap();
    assert_eq!(
        Server::start(&["--model", model]).get("/ready").status,
        200,
        "a plain file is fine"
    );
}

#[test]
fn counts_beyond_their_bounds_are_refused_with_the_bound() {
    for (arguments, bound) in [
        (&["--instances", "1000000"][..], "from 1 to 1024"),
        (&["--intra-op-threads", "0"], "from 1 to 1024"),
        (&["--max-batch-size", "+1"], "from 1 to 1048576"),
        (
            &["inspect", "m.onnx", "--instances", "2000"],
            "from 1 to 1024",
        ),
        (&["tune", "m.onnx", "--instances", "2000"], "from 1 to 1024"),
    ] {
        let output = run(arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(bound), "{arguments:?}: {text}");
    }
}

#[test]
fn help_names_every_setting_with_its_variable_and_default() {
    let help = String::from_utf8(run(&["--help"]).stdout).unwrap();
    // Lines are wrapped to the terminal's width, wherever that falls.
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for (flag, variable, default) in [
        ("--model", "MODEL_PATH", "models/best.onnx"),
        ("--model-name", "MODEL_NAME", ""),
        ("--default-model", "DEFAULT_MODEL", ""),
        ("--host", "HOST", "0.0.0.0"),
        ("--port", "PORT", "8000"),
        ("--device", "DEVICE", "auto"),
        ("--onnxruntime", "ORT_DYLIB_PATH", ""),
        ("--instances", "INSTANCES", ""),
        ("--intra-op-threads", "INTRA_OP_THREADS", ""),
        ("--max-batch-size", "MAX_BATCH_SIZE", "32"),
        ("--max-request-rows", "MAX_REQUEST_ROWS", "16384"),
        ("--max-queue-delay", "MAX_QUEUE_DELAY", "0ms"),
        ("--max-queue-size", "MAX_QUEUE_SIZE", "1024"),
        ("--max-inflight-bytes", "MAX_INFLIGHT_BYTES", "1GiB"),
        ("--request-timeout", "REQUEST_TIMEOUT", "30s"),
        ("--max-body-size", "MAX_BODY_SIZE", "64MiB"),
        ("--max-output-size", "MAX_OUTPUT_SIZE", "256MiB"),
        ("--max-header-size", "MAX_HEADER_SIZE", "32KiB"),
        ("--max-headers", "MAX_HEADERS", "100"),
        ("--max-uri-size", "MAX_URI_SIZE", "8KiB"),
        ("--max-json-depth", "MAX_JSON_DEPTH", "32"),
        ("--max-connections", "MAX_CONNECTIONS", "4096"),
        ("--first-byte-timeout", "FIRST_BYTE_TIMEOUT", "10s"),
        ("--header-timeout", "HEADER_TIMEOUT", "10s"),
        ("--body-timeout", "BODY_TIMEOUT", "30s"),
        ("--write-timeout", "WRITE_TIMEOUT", "30s"),
        ("--keep-alive-timeout", "KEEP_ALIVE_TIMEOUT", "75s"),
        ("--drain-delay", "DRAIN_DELAY", "0s"),
        ("--drain-timeout", "DRAIN_TIMEOUT", "8s"),
        ("--log-level", "LOG_LEVEL", "info"),
        ("--log-format", "LOG_FORMAT", "auto"),
        ("--otlp-endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT", ""),
    ] {
        let start = help
            .find(&format!("{flag} <"))
            .unwrap_or_else(|| panic!("{flag}"));
        let rest = &help[start..];
        let end = rest[2..].find(" --").map_or(rest.len(), |end| end + 2);
        let section = &rest[..end];
        assert!(section.contains(&format!("[env: {variable}=")), "{section}");
        assert!(section.contains(default), "{section}");
    }
    assert!(
        String::from_utf8(run(&["--version"]).stdout)
            .unwrap()
            .contains(env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn the_environment_sets_what_flags_do_not() {
    let model = fixture("addone");
    let environment = [
        ("MODEL_PATH", model.as_str()),
        ("MODEL_NAME", "from-environment"),
        ("MAX_BATCH_SIZE", "1"),
        ("INSTANCES", "1"),
    ];
    let server = Server::start_with(&["--model-name", "from-flag"], &environment);
    let model = &server.get("/ready").json()["models"][0];
    assert_eq!(
        (
            &model["name"],
            &model["max_batch_size"],
            &model["instances"]
        ),
        (&"from-flag".into(), &1.into(), &1.into())
    );
}

#[test]
fn health_is_there_before_the_models_are() {
    for _ in 0..10 {
        let server = Server::spawn(&[], &[]);
        let (health, ready) = (server.get("/health"), server.get("/ready"));
        assert_eq!(health.status, 200);
        if ready.status != 200 {
            assert_eq!(
                (ready.status, &ready.json()["code"]),
                (503, &"not_ready".into())
            );
            assert!(
                ready.json()["error"]
                    .as_str()
                    .unwrap()
                    .contains("being loaded")
            );
        }
        assert!(
            server
                .log
                .wait_for(|line| line["message"] == "ready")
                .is_some()
        );
        assert_eq!(server.get("/ready").status, 200);
    }
}

#[test]
fn inspect_says_what_a_model_is_and_how_to_call_it() {
    let bundled = String::from_utf8(run(&["inspect", "models/best.onnx"]).stdout).unwrap();
    for part in [
        "digits version 1",
        "image FP32 [batch,1,8,8]",
        "label INT64 [batch]",
        "ai.onnx 17",
        "sha256",
        "batching   rows",
    ] {
        assert!(bundled.contains(part), "{bundled}");
    }
    let reduce = String::from_utf8(run(&["inspect", &fixture("reduce")]).stdout).unwrap();
    assert!(
        reduce.contains("batching   none: output mean FP32[] has no dynamic first dimension"),
        "{reduce}"
    );
    assert_eq!(
        run(&["inspect", &fixture("not_onnx")]).status.code(),
        Some(1)
    );
    // The request that is printed works.
    for name in ["two", "identity_bool", "identity_string", "scalar", "image"] {
        let text = String::from_utf8(run(&["inspect", &fixture(name)]).stdout).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("try        "))
            .unwrap();
        let server = Server::fixture(name, &[]);
        let command = line.replace("localhost:8000", &server.address.to_string());
        if Command::new("curl").arg("--version").output().is_err() {
            skipped(format_args!("there is no curl to run {command}"));
            continue;
        }
        let output = Command::new("sh")
            .args(["-c", &command.replace("curl ", "curl -s -f ")])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{command}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
}

#[test]
fn healthcheck_is_an_exit_code() {
    let server = Server::start(&[]);
    let port = server.address.port().to_string();
    let url = |path: &str| format!("http://{}{path}", server.address);
    assert_eq!(
        run_command(program().args(["healthcheck"]).env("PORT", &port))
            .status
            .code(),
        Some(0)
    );
    assert_eq!(run(&["healthcheck", &url("/ready")]).status.code(), Some(0));
    for wrong in [url("/nothing"), "http://127.0.0.1:1/health".to_owned()] {
        let output = run(&["healthcheck", &wrong]);
        assert_eq!(output.status.code(), Some(1), "{wrong}");
        assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 1);
    }
}

#[test]
fn a_reader_that_stops_or_leaves_costs_no_request() {
    for close in [true, false] {
        let mut command = program();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        command.args(["--host", "127.0.0.1", "--port", &address.port().to_string()]);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        if close {
            drop(child.stdout.take());
        }
        let deadline = Instant::now() + testing::PATIENCE;
        let ready = || {
            testing::Client::connect(address)
                .and_then(|mut client| client.send(&Request::new("GET", "/ready")))
        };
        while !ready().is_ok_and(|answer| answer.status == 200) {
            assert!(Instant::now() < deadline);
        }
        let body = std::fs::read(testing::repository("models/samples/digit-7.f32")).unwrap();
        let mut client = testing::Client::connect(address).unwrap();
        for _ in 0..2_000 {
            assert_eq!(
                client
                    .send(&Request::raw("/predict", body.clone()))
                    .unwrap()
                    .status,
                200
            );
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn killed_under_load_it_starts_again_on_the_same_port_and_is_right() {
    let body = std::fs::read(testing::repository("models/samples/digit-7.f32")).unwrap();
    let mut server = Server::start(&[]);
    let port = server.address.port().to_string();
    for _ in 0..5 {
        let mut clients: Vec<_> = (0..8).map(|_| server.connect()).collect();
        for client in &mut clients {
            client
                .write(&Request::raw("/predict", body.clone()).bytes())
                .unwrap();
        }
        server.signal(nix::sys::signal::Signal::SIGKILL);
        drop(server);
        server = Server::start(&["--port", &port]);
        let answer = server.request(&Request::raw("/predict", body.clone()));
        assert_eq!(answer.json()["outputs"]["label"], serde_json::json!([7]));
    }
}

#[test]
fn an_idle_server_sleeps() {
    let server = Server::start(&[]);
    let cpu = || server.metric("process_cpu_seconds_total", &[]).unwrap();
    let before = cpu();
    testing::pause(Duration::from_secs(3));
    // Process ticks are a hundredth of a second, so this allows for a few of them.
    assert!(cpu() - before < 0.1);
    assert!(server.status_figure("Threads") <= 16);
}

#[test]
fn threads_that_the_system_does_not_give_fail_the_start_with_one_line() {
    // Nine hundred stacks do not fit into this much address space, which stands for any limit of threads.
    let output = Command::new("sh")
        .args(["-c", "ulimit -v 6000000 && exec \"$@\"", "sh"])
        .arg(program().get_program())
        .args(["--model", &fixture("addone"), "--intra-op-threads", "900"])
        .env("HOST", "127.0.0.1")
        .env("PORT", "0")
        .envs(
            testing::program()
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    for part in [
        "addone.onnx needs 899 more threads",
        "lower --intra-op-threads",
    ] {
        assert!(text.contains(part), "{text}");
    }
}
