//! A GPU that is lost while it serves. There is none here, so the faults come from the program's test kit: it treats the
//! CPU as a GPU, and lets runs fail with the texts that CUDA's errors have. What follows from them is the real thing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::fs;

use serde_json::json;
use testing::faults::Faults;
use testing::nvml::FakeNvml;
use testing::{Request, Server, fixture};

const BODY: &str = r#"{"inputs": [[1, 2, 3, 4]]}"#;
const LOST: &str = "CUDA failure 700: an illegal memory access was encountered";

fn predict(server: &Server) -> (u16, String) {
    let answer = server.request(&Request::json("/predict", BODY));
    let code = answer.json()["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    (answer.status, code)
}

/// Checks everything that a lost GPU is to be told by.
fn assert_lost(server: &Server, reason: &str) {
    for route in ["/ready", "/health"] {
        let answer = server.get(route);
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (503, &json!("device_lost")),
            "{route}"
        );
    }
    assert_eq!(predict(server), (503, "device_lost".to_owned()));
    assert_eq!(server.metric("ml_ready", &[]), Some(0.0));
    let told = server.log.wait_for(|line| {
        line["level"] == "ERROR"
            && line["reason"]
                .as_str()
                .is_some_and(|text| text.contains(reason))
    });
    assert_eq!(told.unwrap()["device"], "cuda:0");
}

#[test]
fn a_sticky_cuda_error_makes_the_server_unready_and_unhealthy_at_once_and_for_good() {
    let faults = Faults::of_gpu();
    let server = faults.serve(&["--model", &fixture("addone")]);
    assert_eq!(predict(&server).0, 200);
    faults.fail_runs(LOST);
    assert_eq!(predict(&server), (503, "device_lost".to_owned()));
    assert_lost(&server, "CUDA failure 700");
    // A context that is broken stays broken, whatever the next run would say.
    faults.set("");
    assert_lost(&server, "CUDA failure 700");
}

#[test]
fn requests_on_their_way_get_503_when_the_gpu_is_lost_and_none_a_wrong_answer() {
    let faults = Faults::of_gpu();
    let server = faults.serve(&["--model", &fixture("addone"), "--max-batch-size", "4"]);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = server.connect();
                    let mut statuses = Vec::new();
                    // Each goes on until it has met the fault, and then a little longer.
                    while statuses.iter().filter(|status| **status == 503).count() < 20 {
                        let answer = client.send(&Request::json("/predict", BODY)).unwrap();
                        if answer.status == 200 {
                            let expected = json!([[2.0, 3.0, 4.0, 5.0]]);
                            assert_eq!(answer.json()["outputs"]["y"], expected);
                        } else {
                            assert_eq!(answer.json()["code"], "device_lost", "{}", answer.text());
                        }
                        statuses.push(answer.status);
                    }
                    statuses
                })
            })
            .collect();
        testing::eventually("the load runs", || {
            server.metric("ml_predictions_total", &[("status", "success")]) > Some(100.0)
        });
        faults.fail_runs(LOST);
        clients
            .into_iter()
            .flat_map(|client| client.join().unwrap())
            .collect()
    });
    assert!(statuses.contains(&200));
    let errors = statuses.iter().filter(|status| **status == 503).count();
    let counted = server.metric("ml_predictions_total", &[("status", "error")]);
    assert_eq!(
        counted.map(|count| format!("{count}")),
        Some(format!("{errors}"))
    );
}

#[test]
fn batches_that_are_padded_as_for_a_gpu_give_each_request_its_own_rows() {
    let faults = Faults::of_gpu();
    let server = faults.serve(&[
        "--model",
        &fixture("dyn"),
        "--max-batch-size",
        "7",
        "--instances",
        "1",
    ]);
    std::thread::scope(|scope| {
        for number in 1..8_u32 {
            let server = &server;
            scope.spawn(move || {
                let mut client = server.connect();
                for round in 0..50 {
                    // Rows and lengths vary, so that whole and merged batches of every size occur.
                    let (rows, value) = (1 + (number + round) % 7, f64::from(number));
                    let row = vec![value; 1 + round as usize % 2];
                    let inputs = vec![row.clone(); rows as usize];
                    let body = json!({"inputs": inputs}).to_string();
                    let answer = client.send(&Request::json("/predict", body)).unwrap();
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    let expected = vec![vec![2.0 * value; row.len()]; rows as usize];
                    assert_eq!(answer.json()["outputs"]["y"], json!(expected));
                }
            });
        }
    });
}

#[test]
fn every_datatype_passes_unchanged_through_the_memory_that_a_gpu_copies_from() {
    let faults = Faults::of_gpu();
    for (datatype, size) in [
        ("bool", 1),
        ("uint8", 1),
        ("uint16", 2),
        ("uint32", 4),
        ("uint64", 8),
        ("int8", 1),
        ("int16", 2),
        ("int32", 4),
        ("int64", 8),
        ("float16", 2),
        ("bfloat16", 2),
        ("float32", 4),
        ("float64", 8),
    ] {
        let server = faults.serve(&["--model", &fixture(&format!("identity_{datatype}"))]);
        // More shapes than are kept, and each of them twice.
        for rows in (1..=20).chain(1..=20) {
            let largest = if datatype == "bool" { 2 } else { 60 };
            let bytes: Vec<u8> = (0..largest).cycle().take(rows * 3 * size).collect();
            let request = Request::raw("/predict", bytes.clone())
                .header("Accept", "application/octet-stream");
            let answer = server.request(&request);
            assert_eq!(
                (answer.status, &answer.body),
                (200, &bytes),
                "{datatype}, {rows} rows"
            );
        }
    }
    // Strings cannot lie there, and are answered all the same.
    let server = faults.serve(&["--model", &fixture("identity_string")]);
    let answer = server.request(&Request::json(
        "/predict",
        r#"{"inputs": [["a", "", "ü"]]}"#,
    ));
    assert_eq!(answer.json()["outputs"]["y"], json!([["a", "", "ü"]]));
}

#[test]
fn an_answer_that_is_still_being_sent_is_not_overwritten_by_the_next_run() {
    // Long enough that a run is over before the answer of the last one is.
    const ROWS: usize = 100_000;
    let faults = Faults::of_gpu();
    let rows = ROWS.to_string();
    let flags = ["--model", &fixture("identity_float32"), "--instances", "1"];
    let server = faults.serve(
        &[
            &flags[..],
            &["--max-batch-size", &rows, "--max-queue-size", "1000000"],
        ]
        .concat(),
    );
    std::thread::scope(|scope| {
        for number in 1..6_u8 {
            let server = &server;
            scope.spawn(move || {
                let expected = f32::from(number).to_le_bytes().repeat(ROWS * 3);
                let request = Request::raw("/predict", expected.clone())
                    .header("Accept", "application/octet-stream");
                let mut client = server.connect();
                for _ in 0..20 {
                    let answer = client.send(&request).unwrap();
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    assert!(answer.body == expected, "the answer is another one's");
                }
            });
        }
    });
}

#[test]
fn an_error_of_the_gpu_that_passes_is_not_the_request_s_fault_and_the_next_request_is_answered() {
    let faults = Faults::of_gpu();
    let server = faults.serve(&["--model", &fixture("addone")]);
    for (passing, status, code) in [
        // Not 400 or 422: the request is as good as any.
        (
            "CUDNN failure 8: CUDNN_STATUS_EXECUTION_FAILED",
            500,
            "internal",
        ),
        ("CUFFT failure 5: CUFFT_INTERNAL_ERROR", 500, "internal"),
        // Worth trying again.
        (
            "BFCArena: Failed to allocate memory for requested buffer of size 4096",
            429,
            "overloaded",
        ),
    ] {
        faults.fail_runs(passing);
        assert_eq!(predict(&server), (status, code.to_owned()), "{passing}");
        assert_eq!(server.get("/ready").status, 200);
        faults.set("");
        assert_eq!(predict(&server).0, 200);
    }
}

#[test]
fn a_gpu_that_nvml_or_the_driver_gives_up_is_lost_before_a_request_meets_it() {
    let one_gpu = || FakeNvml::two_gpus().replace("count 2", "count 1");
    for (fault, reason) in [
        // NVML's code for a GPU that is lost, and the driver's for one that has left the bus.
        (one_gpu().replace("0.handle 1", "0.handle error 15"), "NVML"),
        (format!("{}\n0.xid 79", one_gpu()), "XID 79"),
    ] {
        let (faults, nvml) = (Faults::of_gpu(), FakeNvml::new(&one_gpu()));
        let path = faults.path();
        let environment = [("TESTKIT_FAULTS", path.to_str().unwrap())];
        let server = nvml.serve_with(&["--model", &fixture("addone")], &environment);
        assert_eq!(predict(&server).0, 200);
        nvml.set(&fault);
        testing::eventually(reason, || server.get("/health").status == 503);
        assert_lost(&server, reason);
    }
}

/// Asks for a reload and waits until one more has failed.
fn reload_fails(server: &Server, failures: f64) {
    server.signal(nix::sys::signal::Signal::SIGHUP);
    testing::eventually("the reload has failed", || {
        server.metric("ml_model_reloads_total", &[("result", "failure")]) >= Some(failures)
    });
}

#[test]
fn a_model_on_a_gpu_is_not_replaced_by_one_on_the_cpu() {
    let faults = Faults::of_gpu();
    // The test kit's GPU is no GPU, so that nothing can be loaded onto it again; "auto" would allow the CPU.
    let server = faults.serve(&["--model", &fixture("addone"), "--device", "auto"]);
    reload_fails(&server, 1.0);
    assert_eq!(server.get("/ready").json()["models"][0]["device"], "cuda:0");
    assert_eq!(predict(&server).0, 200);
}

#[test]
fn nothing_is_loaded_onto_a_gpu_that_is_lost() {
    let faults = Faults::of_gpu();
    let server = faults.serve(&["--model", &fixture("addone")]);
    faults.fail_runs(LOST);
    assert_eq!(predict(&server).0, 503);
    reload_fails(&server, 1.0);
    let told = |line: &serde_json::Value| {
        let reason = line["reason"].as_str().unwrap_or_default();
        reason == "the GPU is lost; restart the server"
    };
    assert!(server.log.wait_for(told).is_some());
    assert_lost(&server, "CUDA failure 700");
}

#[test]
fn a_gpu_that_fails_or_fills_up_during_the_load_fails_the_load() {
    for (text, expected) in [
        (LOST, "CUDA failure 700"),
        ("BFCArena: Failed to allocate memory", "does not suffice"),
    ] {
        let faults = Faults::of_gpu();
        faults.fail_runs(text);
        let output = testing::program()
            .args([
                "--model",
                &fixture("dyn"),
                "--host",
                "127.0.0.1",
                "--port",
                "0",
            ])
            .env("TESTKIT_FAULTS", faults.path())
            .output()
            .unwrap();
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{complaint}");
        assert!(complaint.contains(expected), "{complaint}");
    }
}

#[test]
fn errors_of_other_programs_and_other_gpus_are_no_loss() {
    let (faults, nvml) = (Faults::of_gpu(), FakeNvml::new(&FakeNvml::two_gpus()));
    let path = faults.path();
    let environment = [
        ("TESTKIT_FAULTS", path.to_str().unwrap()),
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
    ];
    let server = nvml.serve_with(&["--model", &fixture("addone")], &environment);
    // A program's own fault on our GPU, and the loss of the other one.
    let state = FakeNvml::two_gpus().replace("1.handle 1", "1.handle error 15");
    nvml.set(&format!("{state}\n0.xid 31"));
    let noted = |line: &serde_json::Value| line["xid"] == 31;
    assert!(server.log.wait_for(noted).is_some());
    assert!(
        server
            .log
            .wait_for(|line| line["gpu_id"] == 1 && line["level"] == "WARN")
            .is_some()
    );
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(predict(&server).0, 200);
}

#[test]
fn a_cpu_that_serves_beside_a_lost_gpu_goes_on() {
    let nvml = FakeNvml::new(&FakeNvml::two_gpus());
    let server = nvml.serve(&["--model", &fixture("addone")]);
    nvml.set(&FakeNvml::two_gpus().replace("0.handle 1", "0.handle error 15"));
    assert!(
        server
            .log
            .wait_for(|line| line["gpu_id"] == 0 && line["level"] == "WARN")
            .is_some()
    );
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(predict(&server).0, 200);
}

#[test]
fn a_padded_request_whose_rows_depend_on_its_values_is_executed_unpadded() {
    // The model drops rows by their values, so that nothing of a padded execution can be given to anybody. With the
    // check switched off, executions are padded all the same.
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("rowdrop.onnx");
    fs::copy(fixture("rowdrop"), &model).unwrap();
    fs::write(
        folder.path().join("rowdrop.toml"),
        "[batching]\ncheck = false\nmax_batch_size = 8\n",
    )
    .unwrap();
    let faults = Faults::of_gpu();
    let server = faults.serve(&["--model", model.to_str().unwrap()]);
    for rows in [1, 3, 5, 8] {
        let row = |row: i32| [f64::from(if row % 2 == 0 { row + 1 } else { -row }), 0.5];
        let sent: Vec<[f64; 2]> = (0..rows).map(row).collect();
        let kept: Vec<&[f64; 2]> = sent.iter().filter(|row| row[0] > 0.0).collect();
        let body = json!({"inputs": sent}).to_string();
        let answer = server.request(&Request::json("/predict", body));
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["outputs"]["y"], json!(kept));
    }
}
