//! Wrong settings, each as its user sees it: one line, or two with the usage, and the exit code.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::too_many_lines,
    reason = "a test stops at the first thing that is wrong"
)]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use nix::pty::openpty;
use testing::{Server, fixture, program};

const USAGE: &str = "usage: model-serving [serve] [OPTIONS] (more: model-serving --help)";
const USAGE_SERVE: &str =
    "usage: model-serving [serve] [OPTIONS] (more: model-serving serve --help)";
const USAGE_INSPECT: &str =
    "usage: model-serving inspect [OPTIONS] MODEL.onnx (more: model-serving inspect --help)";
const USAGE_TUNE: &str =
    "usage: model-serving tune [OPTIONS] MODEL.onnx (more: model-serving tune --help)";

/// A command line with an environment, both wrong in one place.
struct Wrong {
    arguments: &'static str,
    variables: &'static [(&'static str, &'static str)],
    exit_code: i32,
    /// Without the program's name in front. `FOLDER` stands for the folder of the files below, `TAKEN` for a port that
    /// is in use.
    message: &'static str,
    usage: Option<&'static str>,
}

const fn flags(arguments: &'static str, message: &'static str) -> Wrong {
    Wrong {
        arguments,
        variables: &[],
        exit_code: 2,
        message,
        usage: None,
    }
}

const fn shape(arguments: &'static str, message: &'static str, usage: &'static str) -> Wrong {
    Wrong {
        arguments,
        variables: &[],
        exit_code: 2,
        message,
        usage: Some(usage),
    }
}

const fn variables(
    arguments: &'static str,
    variables: &'static [(&'static str, &'static str)],
    message: &'static str,
) -> Wrong {
    Wrong {
        arguments,
        variables,
        exit_code: 2,
        message,
        usage: None,
    }
}

const fn at_run_time(arguments: &'static str, message: &'static str) -> Wrong {
    Wrong {
        arguments,
        variables: &[],
        exit_code: 1,
        message,
        usage: None,
    }
}

const WRONG: &[Wrong] = &[
    // The shape of the command line.
    shape(
        "--prot 1",
        "there is no flag --prot; did you mean --port (variable PORT)?",
        USAGE,
    ),
    shape(
        "--MAX_BATCH_SIZE 3",
        "there is no flag --MAX_BATCH_SIZE; did you mean --max-batch-size (variable MAX_BATCH_SIZE)?",
        USAGE,
    ),
    shape("--workers=4", "there is no flag --workers", USAGE),
    shape("-x", "there is no flag -x", USAGE),
    shape(
        "inspct model.onnx",
        "there is no command 'inspct'; did you mean inspect?",
        USAGE,
    ),
    shape(
        "start",
        "there is no command 'start'; the commands are serve, inspect, tune, fetch, healthcheck, completions, man and help",
        USAGE,
    ),
    shape(
        "help nosuch",
        "there is no command 'nosuch'; the commands are serve, inspect, tune, fetch, healthcheck, completions, man and help",
        USAGE,
    ),
    shape(
        "help inspct",
        "there is no command 'inspct'; did you mean inspect?",
        USAGE,
    ),
    shape(
        "fetch https://host/m.onnx",
        "fetch needs --to DIR, which is missing",
        "usage: model-serving fetch [OPTIONS] --to <DIR> [URI] [-- SERVE FLAGS] (more: model-serving fetch --help)",
    ),
    shape(
        "INSPECT model.onnx",
        "there is no command 'INSPECT'; did you mean inspect?",
        USAGE,
    ),
    shape(
        "model.onnx",
        "there is no command 'model.onnx'; a model to serve is given as --model model.onnx (variable MODEL_PATH)",
        USAGE,
    ),
    shape(
        "serve model.onnx",
        "unexpected 'model.onnx'; a model to serve is given as --model model.onnx (variable MODEL_PATH)",
        USAGE_SERVE,
    ),
    shape(
        "--port 1 inspect model.onnx",
        "flags come after the command: model-serving inspect [OPTIONS]",
        USAGE,
    ),
    shape(
        "-- serve",
        "'--' before the command serve; leave it out",
        USAGE,
    ),
    shape(
        "inspect",
        "inspect needs MODEL.onnx, which is missing",
        USAGE_INSPECT,
    ),
    shape(
        "inspect a.onnx b.onnx",
        "'b.onnx' is one argument too many; inspect takes one beside its flags",
        USAGE_INSPECT,
    ),
    shape(
        "inspect a.onnx --port 1",
        "inspect has no flag --port",
        USAGE_INSPECT,
    ),
    shape(
        "tune --time 1s",
        "tune needs MODEL.onnx, which is missing",
        USAGE_TUNE,
    ),
    shape(
        "tune a.onnx --tiem 1s",
        "tune has no flag --tiem; did you mean --time?",
        USAGE_TUNE,
    ),
    // Values of flags.
    flags(
        "--port",
        "the flag --port (variable PORT) needs a value that is not empty, for example --port 8000",
    ),
    flags(
        "--port=",
        "the flag --port (variable PORT) needs a value that is not empty, for example --port 8000",
    ),
    flags(
        "--model=",
        "the flag --model (variable MODEL_PATH) needs a value that is not empty, for example --model models/best.onnx",
    ),
    flags(
        "--port x",
        "the flag --port (variable PORT): 'x' is not a port; write a number from 0 to 65535, for example 8000",
    ),
    flags(
        "--admin-port x",
        "the flag --admin-port (variable ADMIN_PORT): 'x' is not a port; write a number from 0 to 65535, for example 8000",
    ),
    flags(
        "--admin-port 70000",
        "the flag --admin-port (variable ADMIN_PORT): '70000' is not a port; write a number from 0 to 65535, for example 8000",
    ),
    flags(
        "--admin-port -1",
        "the flag --admin-port (variable ADMIN_PORT): '-1' is not a port; write a number from 0 to 65535, for example 8000",
    ),
    flags(
        "serve --instances -4",
        "the flag --instances (variable INSTANCES): '-4' is not a whole number from 1 to 1024; write one, for example 4",
    ),
    flags(
        "--max-queue-delay -1ms",
        "the flag --max-queue-delay (variable MAX_QUEUE_DELAY): '-1ms' is not a duration; write a whole number and a unit (us, ms, s, m, h), for example 250ms",
    ),
    flags(
        "tune a.onnx --time -.5s",
        "the flag --time: '-.5s' is not a duration; write a whole number and a unit (us, ms, s, m, h), for example 250ms",
    ),
    shape("-1", "there is no flag -1", USAGE),
    flags(
        "--port 1 --port 2",
        "the flag --port (variable PORT) is given more than once; give it once",
    ),
    flags(
        "--request-timeout 30",
        "the flag --request-timeout (variable REQUEST_TIMEOUT): '30' has no unit; write a whole number and a unit (us, ms, s, m, h), for example 250ms",
    ),
    flags(
        "--request-timeout 0s",
        "the flag --request-timeout (variable REQUEST_TIMEOUT): '0s' would leave no time at all; write a longer one, for example 10s",
    ),
    flags(
        "--keep-alive-timeout 2y",
        "the flag --keep-alive-timeout (variable KEEP_ALIVE_TIMEOUT): '2y' is not a duration; write a whole number and a unit (us, ms, s, m, h), for example 250ms",
    ),
    flags(
        "--drain-timeout 9000h",
        "the flag --drain-timeout (variable DRAIN_TIMEOUT): '9000h' is longer than a year; write less, for example 250ms",
    ),
    flags(
        "--max-body-size 0B",
        "the flag --max-body-size (variable MAX_BODY_SIZE): '0B' would let nothing pass; write a larger size, for example 64MiB",
    ),
    flags(
        "--max-batch-size 0",
        "the flag --max-batch-size (variable MAX_BATCH_SIZE): '0' is not a whole number from 1 to 1048576; write one, for example 32",
    ),
    flags(
        "--max-queue-size 1.5",
        "the flag --max-queue-size (variable MAX_QUEUE_SIZE): '1.5' is not a whole number from 1 to 4294967295; write one, for example 32",
    ),
    flags(
        "--max-uri-size 0B",
        "the flag --max-uri-size (variable MAX_URI_SIZE): '0B' would let nothing pass; write a larger size, for example 8KiB",
    ),
    flags(
        "--request-timeout 99999999999999999999s",
        "the flag --request-timeout (variable REQUEST_TIMEOUT): '99999999999999999999s' is longer than a year; write less, for example 250ms",
    ),
    flags(
        "--max-body-size 99999999999999999999GiB",
        "the flag --max-body-size (variable MAX_BODY_SIZE): '99999999999999999999GiB' is more than there can be; write less, for example 64MiB",
    ),
    flags(
        "--max-body-size 1TiB",
        "the flag --max-body-size (variable MAX_BODY_SIZE): '1TiB' is more than --max-inflight-bytes (variable MAX_INFLIGHT_BYTES), which is 1GiB, so that such a body could never be received; lower it, or raise the other one",
    ),
    flags(
        "--watch-model 1us",
        "the flag --watch-model (variable WATCH_MODEL): '1us' would look again and again without a rest; write off, or at least 10ms, for example 10s",
    ),
    flags(
        "--host fe80::1",
        "the flag --host (variable HOST): 'fe80::1' is link-local, so that it is complete only with the network interface; write it as fe80::1%eth0",
    ),
    flags(
        "--host 224.0.0.1",
        "the flag --host (variable HOST): '224.0.0.1' is an address of many machines at once, which none can listen on alone; write one of this machine, or 0.0.0.0 for all of them",
    ),
    flags(
        "--instances 8 --intra-op-threads 129",
        "the flag --instances (variable INSTANCES): with --intra-op-threads (INTRA_OP_THREADS), 8 instances of 129 threads are 1032 threads, more than the 1024 that a model may have; lower one of both",
    ),
    flags(
        "--max-queue-delay 30s",
        "the flag --max-queue-delay (variable MAX_QUEUE_DELAY): '30s' is not below --request-timeout (variable REQUEST_TIMEOUT), which is 30s, so that a request could wait for company until nobody waits for it; write a shorter time, for example 5ms",
    ),
    flags(
        "--max-body-size 2GiB",
        "the flag --max-body-size (variable MAX_BODY_SIZE): '2GiB' is more than --max-inflight-bytes (variable MAX_INFLIGHT_BYTES), which is 1GiB, so that such a body could never be received; lower it, or raise the other one",
    ),
    flags(
        "--model-name a/b",
        "the flag --model-name (variable MODEL_NAME): 'a/b' cannot be a model's name; use 1 to 128 letters, digits, '.', '_' or '-', not beginning with '.', for example digits",
    ),
    flags(
        "--host [::1]:8000",
        "the flag --host (variable HOST): '[::1]:8000' holds a port; write the host here and 8000 as --port (PORT)",
    ),
    flags(
        "--otlp-endpoint https://collector:4318",
        "the flag --otlp-endpoint (variable OTEL_EXPORTER_OTLP_ENDPOINT): 'https://collector:4318' asks for TLS, which is not supported here; send to a collector beside this server, such as http://localhost:4318",
    ),
    flags(
        "--otlp-endpoint collector:4318",
        "the flag --otlp-endpoint (variable OTEL_EXPORTER_OTLP_ENDPOINT): 'collector:4318' is not a URL such as http://localhost:4318",
    ),
    flags(
        "--otlp-endpoint http://me:secret@collector:4318",
        "the flag --otlp-endpoint (variable OTEL_EXPORTER_OTLP_ENDPOINT): a URL with '@' may hold a password, and is neither used nor shown; write one without, such as http://localhost:4318 (what a collector asks for goes into OTEL_EXPORTER_OTLP_HEADERS)",
    ),
    flags(
        "--api-key-file FOLDER/nothing",
        "the flag --api-key-file (variable API_KEY_FILE): FOLDER/nothing cannot be read: No such file or directory (os error 2) (API keys stand one a line in a text file)",
    ),
    flags(
        "--api-key-file FOLDER",
        "the flag --api-key-file (variable API_KEY_FILE): FOLDER is a folder; expected a plain file (API keys stand one a line in a text file)",
    ),
    flags(
        "--api-key-file FOLDER/pipe",
        "the flag --api-key-file (variable API_KEY_FILE): FOLDER/pipe is a pipe; expected a plain file (API keys stand one a line in a text file)",
    ),
    flags(
        "--api-key-file FOLDER/no-text",
        "the flag --api-key-file (variable API_KEY_FILE): line 2 of FOLDER/no-text is not UTF-8 text (byte 1 of the line) (API keys stand one a line in a text file)",
    ),
    flags(
        "--api-key-file FOLDER/no-key",
        "the flag --api-key-file (variable API_KEY_FILE): FOLDER/no-key holds no API key; write one a line",
    ),
    flags(
        "--api-key-file FOLDER/spaces",
        "the flag --api-key-file (variable API_KEY_FILE): line 2 of FOLDER/spaces is not an API key; expected letters, digits and any of -._~+/, then perhaps some =",
    ),
    flags(
        "tune a.onnx --dry-run=yes",
        "the flag --dry-run takes no value, but got 'yes'; write --dry-run alone",
    ),
    flags(
        "tune a.onnx --time 0s",
        "the flag --time: '0s' would leave no time at all; write a longer one, for example 10s",
    ),
    flags(
        "healthcheck https://localhost/health",
        "the argument URL: 'https://localhost/health' asks for TLS, which the server does not have; ask it itself, such as http://127.0.0.1:8000/health",
    ),
    flags(
        "healthcheck localhost:8000",
        "the argument URL: 'localhost:8000' is not a URL such as http://127.0.0.1:8000/health",
    ),
    flags(
        "healthcheck --port 0",
        "the flag --port (variable PORT): with 0 the server chooses the port itself; give the URL, for example model-serving healthcheck http://127.0.0.1:8000/health",
    ),
    at_run_time(
        "inspect FOLDER/nothing",
        "no model at FOLDER/nothing: No such file or directory (os error 2); give the path of an .onnx file or a folder <name>/<version>/model.onnx",
    ),
    at_run_time(
        "tune FOLDER/nothing",
        "no model at FOLDER/nothing: No such file or directory (os error 2); give the path of an .onnx file or a folder <name>/<version>/model.onnx",
    ),
    flags(
        "inspect s3://bucket/m.onnx",
        "the argument MODEL.onnx: 's3://bucket/m.onnx' is an address, and this server fetches nothing; bring it first (model-serving fetch URL --to DIR), and give the path of the file",
    ),
    flags(
        "tune hf://org/name --time 1s",
        "the argument MODEL.onnx: 'hf://org/name' is an address, and this server fetches nothing; bring it first (model-serving fetch URL --to DIR), and give the path of the file",
    ),
    flags(
        "--model https://me:secret@host/m.onnx?token=secret",
        "the flag --model (variable MODEL_PATH): 'https://host/m.onnx' is an address, and this server fetches nothing; bring it first (model-serving fetch URL --to DIR), and set --model (MODEL_PATH) to the file",
    ),
    at_run_time(
        "--onnxruntime FOLDER",
        "cannot load ONNX Runtime from FOLDER: it is a folder; version 1.24 or newer for this machine is needed, run scripts/fetch-onnxruntime.sh or set --onnxruntime (ORT_DYLIB_PATH)",
    ),
    at_run_time(
        "--onnxruntime FOLDER/pipe",
        "cannot load ONNX Runtime from FOLDER/pipe: it is a pipe; version 1.24 or newer for this machine is needed, run scripts/fetch-onnxruntime.sh or set --onnxruntime (ORT_DYLIB_PATH)",
    ),
    at_run_time(
        "--onnxruntime FOLDER/spaces",
        "cannot load ONNX Runtime from FOLDER/spaces: it is no shared library; version 1.24 or newer for this machine is needed, run scripts/fetch-onnxruntime.sh or set --onnxruntime (ORT_DYLIB_PATH)",
    ),
    // Values of variables.
    variables(
        "",
        &[("PORT", "70000")],
        "the variable PORT (flag --port): '70000' is not a port; write a number from 0 to 65535, for example 8000",
    ),
    variables(
        "",
        &[("PORT", "8\n0\u{202e}")],
        "the variable PORT (flag --port): '8\\n0\\u{202e}' is not a port; write a number from 0 to 65535, for example 8000",
    ),
    variables(
        "",
        &[("MODEL_PATH", "  ")],
        "the variable MODEL_PATH (flag --model) needs a value that is not empty, for example --model models/best.onnx",
    ),
    variables(
        "serve",
        &[("MAX_QUEUE_SIZE", "+5")],
        "the variable MAX_QUEUE_SIZE (flag --max-queue-size): '+5' is not a whole number from 1 to 4294967295; write one, for example 32",
    ),
    variables(
        "",
        &[("INSTANCES", "1000000")],
        "the variable INSTANCES (flag --instances): '1000000' is not a whole number from 1 to 1024; write one, for example 4",
    ),
    variables(
        "",
        &[("MAX_BODY_SIZE", "64")],
        "the variable MAX_BODY_SIZE (flag --max-body-size): '64' has no unit; write a whole number and a unit (B, KiB, MiB, GiB), for example 64MiB",
    ),
    variables(
        "",
        &[("MAX_BODY_SIZE", "64M")],
        "the variable MAX_BODY_SIZE (flag --max-body-size): '64M' can mean two sizes; write 64MiB (powers of 1024) or 64MB (powers of 1000)",
    ),
    variables(
        "",
        &[("MAX_URI_SIZE", "1MiB")],
        "the variable MAX_URI_SIZE (flag --max-uri-size): '1MiB' is more than a URI can have here; write at most 65534B, for example 8KiB",
    ),
    variables(
        "",
        &[("MAX_JSON_DEPTH", "1000000")],
        "the variable MAX_JSON_DEPTH (flag --max-json-depth): '1000000' is not a whole number from 1 to 1024; write one, for example 32",
    ),
    variables(
        "",
        &[("MAX_HEADERS", "many")],
        "the variable MAX_HEADERS (flag --max-headers): 'many' is not a whole number from 1 to 10000; write one, for example 100",
    ),
    variables(
        "",
        &[("DEVICE", "gpu")],
        "the variable DEVICE (flag --device): 'gpu' is not a device; write auto, cpu, cuda, cuda:N (for example cuda:0) or openvino",
    ),
    variables(
        "",
        &[("TF32", "maybe")],
        "the variable TF32 (flag --tf32): 'maybe' is neither on nor off; write on or off",
    ),
    variables(
        "",
        &[("LOG_LEVEL", "loud")],
        "the variable LOG_LEVEL (flag --log-level): 'loud' is not a level; write one of off, error, warn, info, debug, trace",
    ),
    variables(
        "",
        &[("LOG_FORMAT", "xml")],
        "the variable LOG_FORMAT (flag --log-format): 'xml' is not a log format; write auto, json or text",
    ),
    variables(
        "",
        &[("WATCH_MODEL", "0s")],
        "the variable WATCH_MODEL (flag --watch-model): '0s' is no time; write off, or a time such as 10s",
    ),
    variables(
        "",
        &[("TUNING_TIME", "fast")],
        "the variable TUNING_TIME (flag --tuning-time): 'fast' is not a duration; write a whole number and a unit (us, ms, s, m, h), for example 250ms, or off",
    ),
    variables(
        "",
        &[("MODEL_NAME", ".hidden")],
        "the variable MODEL_NAME (flag --model-name): '.hidden' cannot be a model's name; use 1 to 128 letters, digits, '.', '_' or '-', not beginning with '.', for example digits",
    ),
    variables(
        "",
        &[("HOST", "http://0.0.0.0")],
        "the variable HOST (flag --host): 'http://0.0.0.0' is a URL; write an address such as 0.0.0.0, 127.0.0.1, :: or ::1",
    ),
    variables(
        "",
        &[("HOST", "256.1.1.1")],
        "the variable HOST (flag --host): '256.1.1.1' is not an IPv4 address; write an address such as 0.0.0.0, 127.0.0.1, :: or ::1",
    ),
    variables(
        "",
        &[("HOST", "*")],
        "the variable HOST (flag --host): '*' is not an address; write 0.0.0.0 for every interface, or :: for IPv6 as well",
    ),
    variables(
        "",
        &[("API_KEY_FILE", "FOLDER/utf-16")],
        "the variable API_KEY_FILE (flag --api-key-file): FOLDER/utf-16 is UTF-16; save it as UTF-8 (API keys stand one a line in a text file)",
    ),
    variables(
        "",
        &[("MODEL_PATH", "hf://org/name")],
        "the variable MODEL_PATH (flag --model): 'hf://org/name' is an address, and this server fetches nothing; bring it first (model-serving fetch URL --to DIR), and set --model (MODEL_PATH) to the file",
    ),
    variables(
        "",
        &[("AIP_HTTP_PORT", "x")],
        "the variable AIP_HTTP_PORT: 'x' is not a port; write a number from 0 to 65535, for example 8000",
    ),
    variables(
        "",
        &[("AIP_PREDICT_ROUTE", "predict")],
        "the variable AIP_PREDICT_ROUTE: 'predict' is not a plain route; write a path, for example /v1/predict",
    ),
    variables(
        "",
        &[("AIP_PREDICT_ROUTE", "/metrics")],
        "the variable AIP_PREDICT_ROUTE: '/metrics' is the route /metrics already, for metrics; choose another one, for example /v1/predict",
    ),
    variables(
        "",
        &[("AIP_HEALTH_ROUTE", "/predict")],
        "the variable AIP_HEALTH_ROUTE: '/predict' is the route /predict already, for predictions; choose another one, for example /v1/ready",
    ),
    variables(
        "",
        &[("AIP_HEALTH_ROUTE", "/v1/models/a:predict")],
        "the variable AIP_HEALTH_ROUTE: '/v1/models/a:predict' is the route /v1/models/{model}:predict already, for predictions; choose another one, for example /v1/ready",
    ),
    variables(
        "",
        &[("AIP_HEALTH_ROUTE", "/v2/health/ready")],
        "the variable AIP_HEALTH_ROUTE: '/v2/health/ready' is kept for the Open Inference Protocol, as /v2 and all below it are; choose another one, for example /v1/ready",
    ),
    variables(
        "inspect a.onnx",
        &[("DEVICE", "cuda:x")],
        "the variable DEVICE (flag --device): 'cuda:x' is not a device; write auto, cpu, cuda, cuda:N (for example cuda:0) or openvino",
    ),
    variables(
        "inspect a.onnx",
        &[("MODEL_NAME", "a b")],
        "the variable MODEL_NAME (flag --model-name): 'a b' cannot be a model's name; use 1 to 128 letters, digits, '.', '_' or '-', not beginning with '.', for example digits",
    ),
    variables(
        "healthcheck",
        &[("ADMIN_PORT", "x")],
        "the variable ADMIN_PORT (flag --admin-port): 'x' is not a port; write a number from 0 to 65535, for example 8000",
    ),
    variables(
        "",
        &[("ADMIN_PORT", "x")],
        "the variable ADMIN_PORT (flag --admin-port): 'x' is not a port; write a number from 0 to 65535, for example 8000",
    ),
    variables(
        "",
        &[("ADMIN_PORT", "9"), ("PORT", "9")],
        "the variable ADMIN_PORT (flag --admin-port): '9' is the port of predictions, too (--port, variable PORT); write another one, for example 8002",
    ),
    variables(
        "",
        &[("ADMIN_PORT", "9"), ("AIP_HTTP_PORT", "9")],
        "the variable ADMIN_PORT (flag --admin-port): '9' is the port of predictions, too (variable AIP_HTTP_PORT); write another one, for example 8002",
    ),
    variables(
        "",
        &[("AIP_PREDICT_ROUTE", "/predict/../metrics")],
        "the variable AIP_PREDICT_ROUTE: '/predict/../metrics' is not a plain route; write a path, for example /v1/predict",
    ),
    variables(
        "healthcheck",
        &[("AIP_HTTP_PORT", "0")],
        "the variable AIP_HTTP_PORT: with 0 the server chooses the port itself; give the URL, for example model-serving healthcheck http://127.0.0.1:8000/health",
    ),
    // Well-formed, and not to be had on this machine.
    at_run_time(
        "--host 203.0.113.1",
        "cannot listen on 203.0.113.1:8000: this machine has no such address; set --host (HOST) to one that it has, to 0.0.0.0 for all of them, or to 127.0.0.1 to be reachable from this machine only",
    ),
    at_run_time(
        "--port TAKEN",
        "cannot listen on 127.0.0.1:TAKEN: the port is in use; stop the program that uses it, or choose another port with --port (PORT), such as 8001, or 0 for any that is free",
    ),
    at_run_time(
        "healthcheck http://127.0.0.1:1/health",
        "http://127.0.0.1:1/health cannot be reached: Connection refused (os error 111); does the server run?",
    ),
];

/// What the program says, and its exit code.
fn complaint(command: &mut Command) -> (Option<i32>, String) {
    let output = command
        .stdin(Stdio::null())
        .output()
        .expect("the program runs");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter(|line| line.contains("ERROR") || line.contains("listening"))
            .count(),
        0,
        "{command:?}"
    );
    let text = String::from_utf8(output.stderr).expect("messages are UTF-8");
    (output.status.code(), text)
}

fn files(folder: &Path) {
    nix::unistd::mkfifo(&folder.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (name, text) in [
        ("no-text", &b"key\r\n\xff\n"[..]),
        ("no-key", b"\xef\xbb\xbf# none\r\n"),
        ("spaces", b"first\nsecond key\n"),
        ("utf-16", b"\xff\xfek\0e\0y\0"),
    ] {
        std::fs::write(folder.join(name), text).unwrap();
    }
}

#[test]
fn a_wrong_setting_is_told_in_one_line_with_flag_variable_and_fix() {
    let folder = tempfile::tempdir().unwrap();
    files(folder.path());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let filled = |text: &str| {
        text.replace("FOLDER", folder.path().to_str().unwrap())
            .replace("TAKEN", &port)
    };
    let mut different = Vec::new();
    for wrong in WRONG {
        let mut command = program();
        command.args(filled(wrong.arguments).split_whitespace());
        if !wrong.arguments.contains("--host") {
            command.env("HOST", "127.0.0.1");
        }
        for (name, value) in wrong.variables {
            command.env(name, filled(value));
        }
        let (code, told) = complaint(&mut command);
        let mut expected = format!("model-serving: {}\n", filled(wrong.message));
        if let Some(usage) = wrong.usage {
            expected.push_str(usage);
            expected.push('\n');
        }
        if (code, told.as_str()) != (Some(wrong.exit_code), expected.as_str()) {
            different.push(format!(
                "{} {:?}\n  expected {} {expected}  told     {code:?} {told}",
                wrong.arguments, wrong.variables, wrong.exit_code
            ));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
    assert!(WRONG.len() >= 40);
}

#[test]
fn values_that_are_no_text_are_told_with_their_setting() {
    let garbage = OsStr::from_bytes(b"c\xffpu");
    let (code, told) = complaint(program().arg("--device").arg(garbage));
    assert_eq!(code, Some(2), "{told}");
    assert_eq!(
        told,
        "model-serving: the flag --device (variable DEVICE): 'c\u{fffd}pu' is not UTF-8 text\n"
    );
    let (code, told) = complaint(program().arg("inspect").arg("m.onnx").env("TF32", garbage));
    assert_eq!(code, Some(2), "{told}");
    assert_eq!(
        told,
        "model-serving: the variable TF32 (flag --tf32): 'c\u{fffd}pu' is not UTF-8 text\n"
    );
    // No value can write a second line, or steer the terminal.
    let (code, told) = complaint(program().env("DEVICE", "gpu\x1b[2J\rmodel-serving: all is well"));
    assert_eq!(code, Some(2), "{told}");
    assert!(!told.contains('\x1b') && !told.contains('\r'), "{told:?}");
}

#[test]
fn a_host_that_nobody_knows_is_told_without_blaming_the_port() {
    let (code, told) = complaint(program().args(["--host", "name.invalid", "--port", "0"]));
    assert_eq!(code, Some(1), "{told}");
    assert!(
        told.starts_with("model-serving: cannot listen on name.invalid: no address is known"),
        "{told}"
    );
    assert!(
        !told.contains("PORT") && told.lines().count() == 1,
        "{told}"
    );
}

#[test]
fn an_empty_argument_is_told_from_one_that_may_be_left_out() {
    for (arguments, expected) in [
        (["tune", ""], "the argument MODEL.onnx is empty; give one"),
        (
            ["healthcheck", ""],
            "the argument URL is empty; give one, or leave it out",
        ),
    ] {
        let (code, told) = complaint(program().args(arguments));
        assert_eq!(code, Some(2));
        assert_eq!(told, format!("model-serving: {expected}\n"));
    }
}

#[test]
fn a_platforms_route_of_a_model_that_is_not_served_is_one_warning() {
    for (route, warned) in [("addone", 0), ("other", 1)] {
        let route = format!("/v1/models/{route}:predict");
        let server = Server::start_with(
            &["--model", &fixture("addone"), "--tuning-time", "off"],
            &[("AIP_PREDICT_ROUTE", &route)],
        );
        let lines = server.log.lines();
        let warnings: Vec<_> = lines.iter().filter(|it| it["level"] == "WARN").collect();
        assert_eq!(warnings.len(), warned, "{route}: {warnings:?}");
        let told = |line: &serde_json::Value| {
            let message = line["message"].as_str().unwrap();
            line["model"] == "other" && message.starts_with("AIP_PREDICT_ROUTE names a model")
        };
        assert!(warnings.into_iter().all(told), "{lines:?}");
    }
}

#[test]
fn a_platforms_port_that_is_wrong_is_one_warning_where_another_one_is_given() {
    let server = Server::start_with(
        &["--model", &fixture("addone"), "--tuning-time", "off"],
        &[("AIP_HTTP_PORT", "x")],
    );
    let lines = server.log.lines();
    let warnings: Vec<_> = lines.iter().filter(|it| it["level"] == "WARN").collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let reason = warnings[0]["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("AIP_HTTP_PORT: 'x' is not a port"),
        "{reason}"
    );
}

#[test]
fn what_opentelemetry_asks_for_and_cannot_be_had_is_one_warning() {
    let model = fixture("addone");
    let collector = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    for (variable, value) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector"),
        (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "https://collector/v1/traces",
        ),
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318?token=secret"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "1000000000"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "99999999999"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "18446744073709551615"),
        ("OTEL_METRICS_EXPORTER", "otlp"),
    ] {
        let server = Server::start_with(
            &["--model", &model, "--tuning-time", "off"],
            &[collector, (variable, value)],
        );
        let lines = server.log.lines();
        let warnings: Vec<_> = lines
            .iter()
            .filter(|line| line["level"] == "WARN")
            .collect();
        assert_eq!(warnings.len(), 1, "{variable}={value}: {warnings:?}");
        let reason = warnings[0]["reason"].as_str().unwrap();
        assert!(reason.starts_with(variable), "{reason}");
        assert!(!reason.contains("secret"), "{reason}");
        assert_eq!(server.get("/ready").status, 200);
    }
}

#[test]
fn a_host_in_any_of_its_forms_is_listened_on_and_found_by_the_health_check() {
    let model = fixture("addone");
    let has_ipv6 = std::net::TcpListener::bind("[::1]:0").is_ok();
    for host in [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "::1",
        "[::]",
        "::",
        "0.0.0.0",
    ] {
        if host.contains(':') && !has_ipv6 {
            continue;
        }
        let server = Server::spawn(&["--model", &model], &[("HOST", host)]);
        let port = server.address.port().to_string();
        let check = |variables: &[(&str, &str)]| {
            let mut command = program();
            command.arg("healthcheck").envs(variables.iter().copied());
            complaint(&mut command)
        };
        for variables in [
            &[("HOST", host), ("PORT", port.as_str())][..],
            &[("HOST", host), ("AIP_HTTP_PORT", &port)],
            &[("HOST", host), ("PORT", "1"), ("ADMIN_PORT", &port)],
        ] {
            assert_eq!(check(variables), (Some(0), String::new()), "{variables:?}");
        }
        assert_eq!(check(&[("HOST", host), ("PORT", "1")]).0, Some(1));
        // What the log prints can be given back.
        let printed = server.address.ip().to_string();
        let bracketed = server.address.to_string();
        let bracketed = bracketed.rsplit_once(':').unwrap().0;
        for given in [printed.as_str(), bracketed] {
            assert_eq!(
                check(&[("HOST", given), ("PORT", &port)]).0,
                Some(0),
                "{given}"
            );
        }
    }
}

/// A server that writes its log to a terminal, and the lines of it.
struct AtTerminal {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl AtTerminal {
    fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let terminal = openpty(None, None).expect("a pseudo-terminal");
        let child = program()
            .args(["--host", "127.0.0.1", "--port", "0"])
            .args(arguments)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::from(terminal.slave))
            .spawn()
            .expect("the program starts");
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let reader = BufReader::new(std::fs::File::from(terminal.master));
            for line in reader.lines().map_while(Result::ok) {
                let _ = send.send(line.trim_end().to_owned());
            }
        });
        Self { child, lines }
    }

    /// Everything up to the first line for which `wanted` holds.
    fn until(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            match self.lines.recv_timeout(testing::PATIENCE) {
                Ok(line) => {
                    let last = wanted(&line);
                    lines.push(line);
                    if last {
                        return lines;
                    }
                }
                Err(error) => panic!("the line did not come ({error}): {lines:?}"),
            }
        }
    }
}

impl Drop for AtTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn at_a_terminal_the_log_is_text_and_ends_with_commands_that_work() {
    let server = AtTerminal::start(&["--model", "models/best.onnx"], &[("TERM", "xterm")]);
    let lines = server.until(|line| line.contains("/v1/models/digits:predict"));
    let first = &lines[0];
    assert!(
        first.contains("INFO") && first.contains("starting"),
        "{first}"
    );
    assert!(first.contains(env!("CARGO_PKG_VERSION")), "{first}");
    assert!(first.contains('\x1b'), "colour: {first}");
    assert!(first.contains("onnxruntime"), "{first}");
    assert!(lines.iter().all(|line| !line.starts_with('{')), "{lines:?}");
    let commands: Vec<&String> = lines
        .iter()
        .filter(|line| line.starts_with("  curl "))
        .collect();
    assert_eq!(commands.len(), 3, "{lines:?}");
    for command in commands {
        assert_works(command);
    }
}

/// Runs a command that was printed, where there is curl.
fn assert_works(command: &str) {
    if Command::new("curl").arg("--version").output().is_err() {
        return;
    }
    let output = Command::new("sh")
        .args(["-c", &command.replace("curl ", "curl -s -f ")])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{command}");
}

#[test]
fn a_model_without_samples_is_shown_with_a_request_that_was_run() {
    // `embed` takes whole numbers below its table's size only, `image` more than a person reads.
    for name in ["two", "embed", "image"] {
        let server = AtTerminal::start(&["--model", &fixture(name)], &[("TERM", "xterm")]);
        let call = format!("/v1/models/{name}:predict");
        let lines = server.until(|line| line.contains(&call));
        assert_works(lines.last().unwrap());
    }
}

#[test]
fn colour_is_left_out_where_it_is_not_wanted() {
    let model = fixture("addone");
    for variables in [
        [("TERM", "xterm"), ("NO_COLOR", "1")],
        [("TERM", "dumb"), ("NO_COLOR", "")],
    ] {
        let server = AtTerminal::start(&["--model", &model], &variables);
        let lines = server.until(|line| line.starts_with("  curl "));
        assert!(lines.iter().all(|line| !line.contains('\x1b')), "{lines:?}");
        assert!(lines[0].contains(" INFO starting version="), "{lines:?}");
    }
}

#[test]
fn json_can_be_had_at_a_terminal_and_text_elsewhere() {
    let model = fixture("addone");
    let json = AtTerminal::start(&["--model", &model], &[("LOG_FORMAT", "JSON")]);
    let lines = json.until(|line| line.contains("\"ready\""));
    for line in &lines {
        let line: serde_json::Value = serde_json::from_str(line).expect(line);
        assert!(line["message"].is_string(), "{line}");
    }

    let mut text = program()
        .args(["--host", "127.0.0.1", "--port", "0", "--log-format", "text"])
        .args(["--model", &model])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = Vec::new();
    for line in BufReader::new(text.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if line.contains(" INFO ready seconds=") {
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(i32::try_from(text.id()).unwrap()),
                nix::sys::signal::Signal::SIGTERM,
            )
            .unwrap();
        }
        lines.push(line);
    }
    assert!(text.wait().unwrap().success());
    assert!(
        lines
            .iter()
            .any(|line| line.contains("draining signal=SIGTERM")),
        "{lines:?}"
    );
    for line in &lines {
        assert!(line.starts_with("20") && !line.contains('\x1b'), "{line}");
        assert!(!line.contains("Some(") && !line.contains("curl"), "{line}");
    }
}
