//! Distributed tracing: a caller's trace goes on in the log and, over OTLP, in spans; a collector costs nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the first thing that is wrong"
)]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::{Span, status};
use prost::Message;
use serde_json::Value;
use testing::{PATIENCE, Request, Server};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// Spans are sent as soon as they end, more or less.
const AT_ONCE: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "50");

/// What the collector received: the request's head in lower case, attributes of the resource, and spans.
struct Received {
    head: String,
    resource: Vec<KeyValue>,
    spans: Vec<Span>,
}

/// An OTLP receiver on a port of the system's choice.
struct Collector {
    address: SocketAddr,
    received: Receiver<Received>,
    spans: Vec<Span>,
    resource: Vec<KeyValue>,
    head: String,
}

impl Collector {
    fn start(status: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (send, received) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                Self::take(stream.unwrap(), status, &send);
            }
        });
        Self {
            address,
            received,
            spans: Vec::new(),
            resource: Vec::new(),
            head: String::new(),
        }
    }

    /// Takes one export: a POST with protocol buffers in it.
    fn take(stream: TcpStream, status: &str, send: &Sender<Received>) {
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while reader.read_line(&mut head).unwrap() > 2 {}
        assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
        let head = head.to_ascii_lowercase();
        assert!(
            head.contains("\r\ncontent-type: application/x-protobuf\r\n"),
            "{head}"
        );
        let length = head.split("\r\ncontent-length: ").nth(1).unwrap();
        let length = length.split("\r\n").next().unwrap().parse().unwrap();
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        if head.contains("\r\ncontent-encoding: gzip\r\n") {
            let mut plain = Vec::new();
            GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
            body = plain;
        }
        let export = ExportTraceServiceRequest::decode(&body[..]).unwrap();
        for resource_spans in export.resource_spans {
            // Nobody may listen any more when a test has seen enough.
            let _ = send.send(Received {
                head: head.clone(),
                resource: resource_spans.resource.unwrap().attributes,
                spans: resource_spans
                    .scope_spans
                    .into_iter()
                    .flat_map(|scope| scope.spans)
                    .collect(),
            });
        }
        let answer = ExportTraceServiceResponse::default().encode_to_vec();
        let stream = reader.get_mut();
        let _ = write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: application/x-protobuf\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            answer.len()
        );
        let _ = stream.write_all(&answer);
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until `count` spans have come, and returns all of them.
    fn spans(&mut self, count: usize) -> &[Span] {
        while self.spans.len() < count {
            let received = self.received.recv_timeout(PATIENCE).unwrap();
            self.head = received.head;
            self.resource = received.resource;
            self.spans.extend(received.spans);
        }
        &self.spans
    }
}

fn attribute(attributes: &[KeyValue], key: &str) -> Option<Value> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text.as_str().into()),
        any_value::Value::IntValue(number) => Some((*number).into()),
        other => panic!("{key} is {other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    spans
        .iter()
        .find(|span| span.name == name)
        .unwrap_or_else(|| panic!("no span '{name}' in {spans:?}"))
}

fn digit() -> Request {
    let body = std::fs::read(testing::repository("models/samples/digit-7.json")).unwrap();
    Request::json("/predict", body)
}

/// The line in the access log for the request of this id.
fn access_line(server: &Server, id: &str) -> Value {
    let line = server
        .log
        .wait_for(|line| line["message"] == "request" && line["request_id"] == id);
    line.expect("a line for the request")
}

#[test]
fn a_prediction_goes_on_in_its_callers_trace() {
    let mut collector = Collector::start("200 OK");
    let server = Server::start_with(&["--otlp-endpoint", &collector.url()], &[AT_ONCE]);
    let request = digit()
        .header("traceparent", &format!("00-{TRACE}-{SPAN}-01"))
        .header("tracestate", "vendor=1")
        .header("x-request-id", "first");
    assert_eq!(server.connect().send(&request).unwrap().status, 200);

    let spans = collector.spans(3).to_vec();
    assert_eq!(spans.len(), 3);
    for span in &spans {
        assert_eq!(hex(&span.trace_id), TRACE);
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
    }
    let whole = named(&spans, "POST /predict");
    assert_eq!(hex(&whole.parent_span_id), SPAN);
    assert_eq!(whole.trace_state, "vendor=1");
    assert_eq!(whole.kind, SpanKind::Server as i32);
    for (key, value) in [
        ("http.request.method", Value::from("POST")),
        ("http.route", "/predict".into()),
        ("http.response.status_code", 200.into()),
        ("request.id", "first".into()),
    ] {
        assert_eq!(attribute(&whole.attributes, key), Some(value), "{key}");
    }
    let (queue, execute) = (named(&spans, "queue"), named(&spans, "execute"));
    for stage in [queue, execute] {
        assert_eq!(stage.parent_span_id, whole.span_id);
        assert!(stage.start_time_unix_nano >= whole.start_time_unix_nano);
        assert!(stage.end_time_unix_nano <= whole.end_time_unix_nano);
    }
    assert_eq!(queue.end_time_unix_nano, execute.start_time_unix_nano);
    for (key, value) in [
        ("model.name", Value::from("digits")),
        ("model.version", "1".into()),
        ("model.device", "cpu".into()),
        ("request.rows", 1.into()),
        ("batch.rows", 1.into()),
    ] {
        assert_eq!(attribute(&execute.attributes, key), Some(value), "{key}");
    }
    let service = attribute(&collector.resource, "service.name");
    assert_eq!(service, Some("model-serving".into()));

    let line = access_line(&server, "first");
    assert_eq!(line["trace_id"], TRACE);
    assert_eq!(line["span_id"], hex(&whole.span_id));
}

#[test]
fn requests_of_one_execution_have_spans_that_say_how_large_it_was() {
    let mut collector = Collector::start("200 OK");
    let server = Server::start_with(
        &[
            "--otlp-endpoint",
            &collector.url(),
            "--max-queue-delay",
            "10s",
            "--max-batch-size",
            "2",
        ],
        &[AT_ONCE],
    );
    // The second one fills the batch, so that neither waits out the delay.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert_eq!(server.connect().send(&digit()).unwrap().status, 200));
        }
    });
    let spans = collector.spans(6);
    let executions: Vec<&Span> = spans.iter().filter(|span| span.name == "execute").collect();
    assert_eq!(executions.len(), 2);
    for execution in &executions {
        let rows = attribute(&execution.attributes, "batch.rows");
        assert_eq!(rows, Some(2.into()));
    }
    assert_ne!(executions[0].trace_id, executions[1].trace_id);
}

#[test]
fn errors_are_marked_as_the_clients_or_as_ours() {
    let mut collector = Collector::start("200 OK");
    let server = Server::start_with(&["--otlp-endpoint", &collector.url()], &[AT_ONCE]);
    let request = Request::json("/predict", "{").header("x-request-id", "wrong");
    assert_eq!(server.connect().send(&request).unwrap().status, 400);
    let span = &collector.spans(1)[0];
    assert_eq!(
        attribute(&span.attributes, "error.type"),
        Some("invalid_request".into())
    );
    let status = span.status.as_ref().map_or(0, |status| status.code);
    assert_eq!(status, status::StatusCode::Unset as i32);
    // Without a caller's trace, the request begins one.
    let line = access_line(&server, "wrong");
    assert_eq!(line["trace_id"], hex(&span.trace_id));
    assert!(span.parent_span_id.is_empty());
}

#[test]
fn probes_and_scrapes_have_no_spans() {
    let mut collector = Collector::start("200 OK");
    let server = Server::start_with(&["--otlp-endpoint", &collector.url()], &[AT_ONCE]);
    for path in ["/health", "/ready", "/metrics"] {
        assert_eq!(server.get(path).status, 200);
    }
    assert_eq!(server.connect().send(&digit()).unwrap().status, 200);
    let names: Vec<&str> = collector
        .spans(3)
        .iter()
        .map(|span| span.name.as_str())
        .collect();
    assert!(!names.iter().any(|name| name.contains("GET")), "{names:?}");
}

#[test]
fn a_caller_that_does_not_sample_is_not_sampled_but_logged() {
    let mut collector = Collector::start("200 OK");
    let server = Server::start_with(&["--otlp-endpoint", &collector.url()], &[AT_ONCE]);
    let quiet = digit()
        .header("traceparent", &format!("00-{TRACE}-{SPAN}-00"))
        .header("x-request-id", "unsampled");
    assert_eq!(server.connect().send(&quiet).unwrap().status, 200);
    assert_eq!(access_line(&server, "unsampled")["trace_id"], TRACE);
    // Spans come in order, so that the next ones are the first ones.
    assert_eq!(server.connect().send(&digit()).unwrap().status, 200);
    for span in collector.spans(3) {
        assert_ne!(hex(&span.trace_id), TRACE);
    }
}

#[test]
fn what_a_collector_asks_for_is_sent_as_headers() {
    let mut collector = Collector::start("200 OK");
    let headers = (
        "OTEL_EXPORTER_OTLP_HEADERS",
        "authorization=Bearer%20abc, x-tenant=t1",
    );
    let server = Server::start_with(&["--otlp-endpoint", &collector.url()], &[AT_ONCE, headers]);
    assert_eq!(server.connect().send(&digit()).unwrap().status, 200);
    collector.spans(1);
    for header in ["authorization: bearer abc", "x-tenant: t1"] {
        let line = format!("\r\n{header}\r\n");
        assert!(collector.head.contains(&line), "{}", collector.head);
    }
}

#[test]
fn spans_are_compressed_if_a_variable_asks_for_it_and_an_empty_one_hides_no_other() {
    let mut collector = Collector::start("200 OK");
    let environment = [
        AT_ONCE,
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", ""),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=t1"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", ""),
        ("OTEL_SERVICE_NAME", ""),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "service.name=digits,service.version=7",
        ),
    ];
    let server = Server::start_with(&["--otlp-endpoint", &collector.url()], &environment);
    assert_eq!(server.connect().send(&digit()).unwrap().status, 200);
    collector.spans(1);
    for header in ["content-encoding: gzip", "x-tenant: t1"] {
        let line = format!("\r\n{header}\r\n");
        assert!(collector.head.contains(&line), "{}", collector.head);
    }
    let resource = |key| attribute(&collector.resource, key);
    assert_eq!(resource("service.name"), Some("digits".into()));
    assert_eq!(resource("service.version"), Some("7".into()));
}

#[test]
fn without_a_collector_the_callers_trace_is_in_the_log() {
    // An empty variable is as good as none, by OpenTelemetry's convention.
    let server = Server::start_with(&[], &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]);
    let with = digit()
        .header("traceparent", &format!("00-{TRACE}-{SPAN}-01"))
        .header("x-request-id", "with");
    let without = digit().header("x-request-id", "without");
    let twice = digit()
        .header("traceparent", &format!("00-{TRACE}-{SPAN}-01"))
        .header("traceparent", &format!("00-{TRACE}-{SPAN}-01"))
        .header("x-request-id", "twice");
    let mut client = server.connect();
    for request in [with, without, twice] {
        assert_eq!(client.send(&request).unwrap().status, 200);
    }
    let line = access_line(&server, "with");
    assert_eq!(
        (&line["trace_id"], &line["span_id"]),
        (&TRACE.into(), &SPAN.into())
    );
    for id in ["without", "twice"] {
        assert_eq!(access_line(&server, id).get("trace_id"), None, "{id}");
    }
}

/// Predicts, stops, and returns how long the stop took.
fn stop_after_predictions(server: Server) -> Duration {
    let mut client = server.connect();
    for _ in 0..200 {
        assert_eq!(client.send(&digit()).unwrap().status, 200);
    }
    let complaint = server.log.wait_for(|line| {
        line["message"]
            .as_str()
            .is_some_and(|message| message.starts_with("the OTLP collector takes no spans"))
    });
    assert!(complaint.is_some());
    for _ in 0..200 {
        assert_eq!(client.send(&digit()).unwrap().status, 200);
    }
    drop(client);
    let stopped_at = Instant::now();
    server.signal(Signal::SIGTERM);
    let log = std::sync::Arc::clone(&server.log);
    assert_eq!(server.wait().code(), Some(0));
    let took = stopped_at.elapsed();
    let complaints = log.lines().into_iter().filter(|line| {
        line["message"]
            .as_str()
            .is_some_and(|message| message.starts_with("the OTLP collector takes no spans"))
    });
    assert_eq!(complaints.count(), 1);
    took
}

#[test]
fn a_collector_that_is_down_costs_one_line() {
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{nobody}");
    let server = Server::start_with(&["--otlp-endpoint", &url], &[AT_ONCE]);
    assert!(stop_after_predictions(server) < Duration::from_secs(8));
}

#[test]
fn a_collector_that_refuses_costs_one_line() {
    let collector = Collector::start("503 Service Unavailable");
    let server = Server::start_with(&["--otlp-endpoint", &collector.url()], &[AT_ONCE]);
    assert!(stop_after_predictions(server) < Duration::from_secs(8));
}

#[test]
fn a_collector_that_hangs_delays_neither_requests_nor_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // Connections are made by the system's backlog; nobody ever reads them.
    let server = Server::start_with(&["--otlp-endpoint", &url], &[AT_ONCE]);
    assert!(stop_after_predictions(server) < Duration::from_secs(8));
    drop(listener);
}

#[test]
fn the_last_spans_are_sent_before_the_end() {
    let mut collector = Collector::start("200 OK");
    // Only the end sends them: the interval is far longer than the test.
    let server = Server::start_with(
        &["--otlp-endpoint", &collector.url()],
        &[("OTEL_BSP_SCHEDULE_DELAY", "3600000")],
    );
    assert_eq!(server.connect().send(&digit()).unwrap().status, 200);
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    assert_eq!(collector.spans(3).len(), 3);
}
