//! More clients than places: probes are answered, whoever waits longest for its client gives way, no answer is cut.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::collections::VecDeque;
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use testing::{Client, PATIENCE, Request, Server};

/// No deadline of a connection ends anything within a test.
const PATIENT: [&str; 10] = [
    "--first-byte-timeout",
    "1h",
    "--header-timeout",
    "1h",
    "--body-timeout",
    "1h",
    "--write-timeout",
    "1h",
    "--keep-alive-timeout",
    "1h",
];

fn valid() -> Request {
    Request::json("/predict", r#"{"inputs": [[1,2,3,4]]}"#)
}

/// A server of the fixture `name` with so many places.
fn crowded(name: &str, places: &str) -> Server {
    let flags = [&["--max-connections", places], &PATIENT[..]].concat();
    Server::fixture(name, &flags)
}

/// How often places were taken, with this result.
fn full(server: &Server, result: &str) -> Option<f64> {
    server.metric("ml_connections_full_total", &[("result", result)])
}

#[test]
fn the_connection_that_has_been_idle_longest_gives_way() {
    // A client may have read its answer before the server's thread, if it has to wait for a CPU, has noted that the answer
    // is written. Then the connection is not idle yet, and the next one gives way.
    let gave_way: Vec<usize> = (0..5).map(|_| who_gives_way()).collect();
    assert!(gave_way.contains(&3), "{gave_way:?}");
}

/// Which of four connections on four places, of which the last one was answered first, is closed for a fifth.
fn who_gives_way() -> usize {
    let server = crowded("addone", "4");
    let mut kept: Vec<Client> = (0..4).map(|_| server.connect()).collect();
    for client in kept.iter_mut().rev() {
        assert_eq!(client.send(&valid()).unwrap().status, 200);
    }
    let mut fifth = server.connect();
    let answer = fifth.send(&valid()).unwrap();
    assert_eq!((answer.status, answer.closes()), (200, false));
    // The fifth one has its place only after another has given it back.
    let mut closed = Vec::new();
    for (index, client) in kept.iter_mut().enumerate() {
        match client.send(&valid()) {
            Ok(answer) => assert_eq!(answer.status, 200),
            Err(_) => closed.push(index),
        }
    }
    assert_eq!(fifth.send(&valid()).unwrap().status, 200);
    assert_eq!(full(&server, "gave_way"), Some(1.0));
    assert_eq!(full(&server, "refused"), Some(0.0));
    let told = server.log.wait_for(|line| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.starts_with("all connections are taken"))
    });
    assert_eq!(told.unwrap()["max_connections"], 4);
    assert_eq!(closed.len(), 1, "{closed:?}");
    closed[0]
}

#[test]
fn probes_and_scrapes_cost_nobody_a_connection() {
    let server = crowded("addone", "4");
    let mut kept: Vec<Client> = (0..4).map(|_| server.connect()).collect();
    for client in &mut kept {
        assert_eq!(client.send(&valid()).unwrap().status, 200);
    }
    for path in ["/health", "/ready", "/ping", "/metrics"] {
        for method in ["GET", "HEAD", "POST"] {
            let mut client = server.connect();
            client.write(&Request::new(method, path).bytes()).unwrap();
            let answer = String::from_utf8(client.read_to_end()).unwrap();
            let status = if method == "POST" { 405 } else { 200 };
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{answer}"
            );
            assert!(answer.contains("connection: close"), "{answer}");
        }
    }
    for client in &mut kept {
        assert_eq!(client.send(&valid()).unwrap().status, 200);
    }
    assert_eq!(full(&server, "gave_way"), Some(0.0));
}

/// Whether the server has closed this connection.
fn is_closed(client: &Client) -> bool {
    client.stream.set_nonblocking(true).unwrap();
    let peeked = client.stream.peek(&mut [0]);
    client.stream.set_nonblocking(false).unwrap();
    match peeked {
        Ok(read) => read == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

#[test]
fn who_never_sends_a_request_gives_way_to_who_does() {
    let server = crowded("addone", "4");
    let mut strangers: Vec<Client> = (0..4).map(|_| server.connect()).collect();
    for client in &mut strangers[2..] {
        client.write(b"POST /predict HTTP/1.1\r\nHo").unwrap();
    }
    // At first they have a fair chance, and those who come meanwhile are refused or give way to each other.
    let (mut accepted, mut refused) = (Vec::new(), 0);
    let deadline = Instant::now() + PATIENCE;
    while !strangers.iter().all(is_closed) {
        assert!(Instant::now() < deadline, "they keep their places");
        let mut client = server.connect();
        let answer = client.send(&valid()).unwrap();
        if answer.status == 200 {
            accepted.push(client);
        } else {
            assert_eq!((answer.status, answer.closes()), (429, true));
            refused += 1;
        }
    }
    for client in &mut strangers {
        assert!(client.read_to_end().is_empty());
    }
    // The four places are those of the last four.
    let kept = accepted.len() - 4;
    for client in &mut accepted[kept..] {
        assert_eq!(client.send(&valid()).unwrap().status, 200);
    }
    let gave_way = u32::try_from(kept + 4).unwrap();
    assert_eq!(full(&server, "gave_way"), Some(f64::from(gave_way)));
    assert_eq!(full(&server, "refused"), Some(f64::from(refused)));
}

/// Takes all `places` with requests that take long.
fn keep_busy(server: &Server, places: usize) -> Vec<Client> {
    let busy: Vec<Client> = (0..places)
        .map(|_| {
            let mut client = server.connect();
            let request = Request::json("/predict", r#"{"inputs": [5000000]}"#);
            client.write(&request.bytes()).unwrap();
            client
        })
        .collect();
    let places = f64::from(u32::try_from(places).unwrap());
    testing::eventually("all places are taken", || {
        server.metric("ml_requests_in_flight", &[("model_name", "loop")]) >= Some(places)
    });
    busy
}

#[test]
fn where_nobody_can_give_way_requests_are_refused_unread_and_none_is_cut() {
    let flags = [
        &["--max-connections", "3", "--instances", "1"][..],
        &["--request-timeout", "1h"],
        &PATIENT,
    ]
    .concat();
    let server = Server::fixture("loop", &flags);
    let mut busy = keep_busy(&server, 3);
    for _ in 0..3 {
        let mut client = server.connect();
        let head = "POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n";
        client.write(head.as_bytes()).unwrap();
        let answer = client.read().unwrap();
        assert_eq!(
            (answer.status, &answer.json()["code"], answer.closes()),
            (429, &"overloaded".into(), true)
        );
        assert!(answer.header("retry-after").is_some());
    }
    assert_eq!(full(&server, "refused"), Some(3.0));
    assert_eq!(server.get("/health").status, 200);
    drop(server.get("/v2/models/loop"));
    assert_eq!(full(&server, "refused"), Some(4.0));
    for client in &mut busy {
        assert_eq!(client.read().unwrap().status, 200, "it was not cut");
    }
    // Now they are idle.
    assert_eq!(server.get("/v2/models/loop").status, 200);
}

/// Ways to hold a connection, each as often as wanted.
fn hold(server: &Server, kind: usize) -> Option<Client> {
    let mut client = Client::connect(server.address).ok()?;
    let bytes: &[u8] = match kind % 6 {
        0 => b"",
        1 => b"GET /health HTTP/1.1\r\nHo",
        2 => b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{",
        3 => b"POST /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        // Many answers that are never read.
        4 => &b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(100),
        _ => &valid().bytes(),
    };
    client.write(bytes).ok()?;
    Some(client)
}

/// Asks for `/health` on a new connection each time; how long the slowest answer took.
fn probe(server: &Server, times: usize) -> Duration {
    let mut slowest = Duration::ZERO;
    for number in 0..times {
        let started = Instant::now();
        let mut client = server.connect();
        let sent = client.send(&Request::new("GET", "/health"));
        let answer = sent.unwrap_or_else(|error| panic!("probe {number}: {error}"));
        assert_eq!(answer.status, 200);
        slowest = slowest.max(started.elapsed());
    }
    slowest
}

/// Asks a hundred times, each of which has to be answered within a second: in one of three rounds, since a machine that
/// does much else may stop for longer.
fn assert_probes_are_quick(server: &Server) {
    let mut rounds = Vec::new();
    while rounds.len() < 3 {
        let slowest = probe(server, 100);
        rounds.push(slowest);
        if slowest < Duration::from_secs(1) {
            eprintln!("the slowest probe of each round: {rounds:?}");
            return;
        }
    }
    panic!("the slowest probe of each round: {rounds:?}");
}

#[test]
fn a_hundred_of_a_hundred_probes_are_answered_however_places_are_held() {
    let server = crowded("addone", "64");
    let held: Vec<Client> = (0..600).filter_map(|kind| hold(&server, kind)).collect();
    assert!(held.len() > 64, "{} clients", held.len());
    assert_probes_are_quick(&server);
}

#[test]
fn a_hundred_of_a_hundred_probes_are_answered_while_places_are_fought_for() {
    let server = crowded("addone", "64");
    let (done, opened) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for first in 0..3 {
            let (server, done, opened) = (&server, &done, &opened);
            scope.spawn(move || {
                let mut held = VecDeque::new();
                let mut kind = first;
                while !done.load(Ordering::Relaxed) {
                    held.extend(hold(server, kind));
                    opened.fetch_add(1, Ordering::Relaxed);
                    if held.len() > 150 {
                        held.pop_front();
                    }
                    kind += 1;
                }
            });
        }
        testing::eventually("there are many", || opened.load(Ordering::Relaxed) >= 300);
        let probed = std::panic::catch_unwind(|| assert_probes_are_quick(&server));
        done.store(true, Ordering::Relaxed);
        eprintln!("beside {} others", opened.load(Ordering::Relaxed));
        probed.unwrap();
    });
}

#[test]
fn a_client_that_asks_now_and_then_is_served_among_too_many_of_its_kind() {
    let server = crowded("addone", "8");
    let refused = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut client = server.connect();
                let (mut answered, mut lost) = (0, 0);
                while answered < 20 {
                    match client.send(&valid()) {
                        Ok(answer) if answer.status == 200 => answered += 1,
                        Ok(answer) => {
                            assert_eq!((answer.status, answer.closes()), (429, true));
                            refused.fetch_add(1, Ordering::Relaxed);
                            client = server.connect();
                        }
                        // It gave way before the request was written.
                        Err(_) => {
                            lost += 1;
                            client = server.connect();
                        }
                    }
                    assert!(lost < 1_000);
                    testing::pause(Duration::from_millis(3));
                }
            });
        }
    });
    eprintln!(
        "{} refused, {:?} gave way",
        refused.into_inner(),
        full(&server, "gave_way")
    );
    assert!(full(&server, "gave_way") > Some(0.0));
}

#[test]
fn a_whole_answer_reaches_who_reads_late_on_a_reserve_place() {
    let server = crowded("addone", "1");
    let mut kept = server.connect();
    assert_eq!(kept.send(&valid()).unwrap().status, 200);
    let mut scrape = server.connect();
    scrape
        .write(&Request::new("GET", "/metrics").bytes())
        .unwrap();
    // Many come after it and take its place.
    for _ in 0..100 {
        assert_eq!(server.get("/health").status, 200);
    }
    let mut text = String::new();
    scrape.stream.read_to_string(&mut text).unwrap();
    assert!(text.contains("\nprocess_open_fds "), "{text}");
}

/// Starts the program with this many open files as `ulimit` sets them.
fn with_open_files(ulimit: &str, flags: &[&str]) -> Server {
    let program = testing::program();
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", &format!("ulimit {ulimit}; exec \"$0\" \"$@\"")])
        .arg(program.get_program())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("HOST", "127.0.0.1")
        .env("PORT", "0")
        .args(["--model", &testing::fixture("addone")])
        .args(flags);
    let server = Server::spawn_command(command);
    let ready = server.log.wait_for(|line| line["message"] == "ready");
    assert!(ready.is_some(), "{:?}", server.log.lines());
    server
}

#[test]
fn the_soft_limit_of_open_files_is_raised() {
    let server = with_open_files("-S -n 64", &["--max-connections", "100"]);
    assert!(server.metric("process_max_fds", &[]) > Some(64.0));
    let mut clients: Vec<Client> = (0..100).map(|_| server.connect()).collect();
    for client in &mut clients {
        let answer = client.send(&valid()).unwrap();
        assert_eq!((answer.status, answer.closes()), (200, false));
    }
}

#[test]
fn a_full_table_of_file_descriptors_stops_neither_probes_nor_requests() {
    let server = with_open_files("-n 96", &PATIENT);
    let lowered = server.log.wait_for(|line| {
        line["message"]
            .as_str()
            .is_some_and(|text| text.starts_with("--max-connections"))
    });
    let lowered = lowered.expect("a line that says so");
    assert_eq!(
        (&lowered["asked"], &lowered["open_files"]),
        (&4096.into(), &96.into())
    );
    let mut kept = server.connect();
    assert_eq!(kept.send(&valid()).unwrap().status, 200);
    // More than there are descriptors.
    let crowd: Vec<_> = (0..180).map(|_| Client::connect(server.address)).collect();
    for _ in 0..100 {
        assert_eq!(
            kept.send(&valid()).unwrap().status,
            200,
            "kept connections are served on"
        );
    }
    probe(&server, 100);
    let deadline = Instant::now() + PATIENCE;
    while server.connect().send(&valid()).unwrap().status != 200 {
        assert!(Instant::now() < deadline, "the crowd does not give way");
    }
    drop(crowd);
}
