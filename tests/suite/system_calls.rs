//! What the program asks of the operating system, seen by strace: no command looks a name up, connects to anybody or
//! writes a file, and neither does ONNX Runtime inside it.
//!
//! `make strace` fetches strace; without it, or where no process may be traced, this says that it was skipped.
//! `ORT_DYLIB_PATH=/path/to/libonnxruntime.so` tries another ONNX Runtime, a GPU's for example.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is wrong"
)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::json;
use testing::{Request, Server, fixture, program, repository, skipped};

/// Calls that look at files and change none.
const READING: [&str; 21] = [
    "access",
    "chdir",
    "execve",
    "faccessat",
    "faccessat2",
    "fchdir",
    "fstat",
    "fstatat64",
    "fstatfs",
    "getcwd",
    "getxattr",
    "lgetxattr",
    "lstat",
    "newfstatat",
    "oldstat",
    "readlink",
    "readlinkat",
    "stat",
    "stat64",
    "statfs",
    "statx",
];

/// Calls that use a socket which another call has made.
const USING_SOCKETS: [&str; 14] = [
    "accept",
    "accept4",
    "bind",
    "getpeername",
    "getsockname",
    "getsockopt",
    "listen",
    "recv",
    "recvfrom",
    "recvmsg",
    "send",
    "setsockopt",
    "shutdown",
    "socketpair",
];

/// Files that only somebody reads who is about to look a name up.
const NAME_SERVICE: [&str; 5] = [
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/resolv.conf",
];

/// A command's one socket to the outside.
#[derive(Clone, Copy, PartialEq)]
enum Socket {
    None,
    /// It listens.
    Listener,
    /// It asks a server on this machine.
    Loopback,
}

/// Runs of the program under strace, in folders of their own that must stay as they are.
struct Tracing {
    strace: PathBuf,
    folder: tempfile::TempDir,
}

impl Tracing {
    /// Nothing where there is no strace, or it may not trace.
    fn new() -> Option<Self> {
        let strace = repository(".tools/strace/strace");
        let works = Command::new(&strace)
            .args(["-D", "-f", "-o", "/dev/null", "true"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !works.is_ok_and(|status| status.success()) {
            skipped(format_args!(
                "strace is not there (make strace) or may not trace, so the system calls were not looked at"
            ));
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        for name in ["home", "tmp", "work"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        for name in ["addone", "truncated"] {
            let copy = folder.path().join(format!("work/{name}.onnx"));
            std::fs::copy(fixture(name), copy).unwrap();
        }
        Some(Self { strace, folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program, traced into the file `name`, with an environment like a user's. It has no `CI`, since ONNX
    /// Runtime's telemetry is silent where that is set.
    fn command(&self, name: &str) -> Command {
        let tested = program();
        let mut command = Command::new(&self.strace);
        // With -D it is strace that is the child, and the program is what the test starts, signals and waits for.
        command
            .args(["-D", "-f", "-s", "4096"])
            .arg("-e")
            .arg("trace=%file,%network,?io_uring_setup,?memfd_create")
            .arg("-o")
            .arg(self.path(name))
            .arg(tested.get_program())
            .env_clear()
            .current_dir(self.path("work"))
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .env("HOST", "127.0.0.1")
            .env("PORT", "0")
            .env("DEVICE", "cpu");
        for name in ["PATH", "LD_LIBRARY_PATH"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let library = std::env::var_os("ORT_DYLIB_PATH").map_or_else(
            || repository(".onnxruntime/libonnxruntime.so"),
            PathBuf::from,
        );
        command.env("ORT_DYLIB_PATH", library);
        command
    }

    /// Runs the program with `arguments` to its end and checks that it was silent.
    fn run(&self, arguments: &[&str], exit_code: i32, socket: Socket) {
        let name = arguments.join(" ").replace('/', "_");
        let output = self
            .command(&name)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            output.status.code(),
            Some(exit_code),
            "{arguments:?}: {said}"
        );
        self.check(&name, socket);
    }

    /// Checks what was traced into the file `name`, and the folders.
    fn check(&self, name: &str, socket: Socket) {
        let trace = whole_trace(&self.path(name));
        let calls = calls(&trace);
        assert!(
            calls.iter().any(|call| call.name == "execve"),
            "nothing was traced: {trace}"
        );
        let complaints = complaints(&calls, socket);
        assert!(
            complaints.is_empty(),
            "{name}: {} calls that it must not make:\n{}",
            complaints.len(),
            complaints.join("\n")
        );
        for folder in ["home", "tmp"] {
            let names = names_in(&self.path(folder));
            assert!(names.is_empty(), "{name}: left in {folder}: {names:?}");
        }
        assert_eq!(
            names_in(&self.path("work")),
            ["addone.onnx", "truncated.onnx"],
            "{name}"
        );
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The trace in the file at `path`, once strace has written that the program has ended.
fn whole_trace(path: &Path) -> String {
    testing::eventually_is("the trace has an end", || {
        let trace = std::fs::read_to_string(path).unwrap_or_default();
        let program = trace.split(' ').next();
        let has_ended = trace.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == program
                && words.next() == Some("+++")
                && matches!(words.next(), Some("exited" | "killed"))
        });
        // Its first thread is the last one that ends, and all of the line is there.
        (has_ended && trace.ends_with('\n')).then_some(trace)
    })
}

/// A system call as strace prints it.
#[derive(Debug)]
struct Call {
    name: String,
    /// The arguments, and what it returned.
    rest: String,
}

/// The calls of a trace. Those during which another thread was seen stand on two lines each.
fn calls(trace: &str) -> Vec<Call> {
    let mut unfinished: HashMap<&str, String> = HashMap::new();
    let mut calls = Vec::new();
    for line in trace.lines() {
        let Some((thread, text)) = line.split_once(' ') else {
            continue;
        };
        let text = text.trim_start();
        if text.starts_with("+++") || text.starts_with("---") {
            continue;
        }
        if let Some(begun) = text.strip_suffix(" <unfinished ...>") {
            unfinished.insert(thread, begun.to_owned());
            continue;
        }
        let whole = match text.strip_prefix("<... ") {
            Some(end) => {
                let (_, end) = end.split_once(" resumed>").expect("strace's form");
                unfinished.remove(thread).unwrap_or_default() + end
            }
            None => text.to_owned(),
        };
        calls.extend(call(&whole));
    }
    // What a thread was about to do when the process ended counts as well.
    calls.extend(unfinished.values().filter_map(|text| call(text)));
    calls
}

fn call(text: &str) -> Option<Call> {
    let (name, rest) = text.split_once('(')?;
    // A thread that the end of the process caught between two calls: there was none to be read.
    if name == "???" {
        return None;
    }
    Some(Call {
        name: name.to_owned(),
        rest: rest.to_owned(),
    })
}

/// The calls that look names up, speak to others or change files. It counts that they were tried, not that they
/// succeeded: where a root is read-only or a network closed, they would fail.
fn complaints(calls: &[Call], socket: Socket) -> Vec<String> {
    let (silent, loud): (Vec<&Call>, Vec<&Call>) =
        calls.iter().partition(|call| is_silent(call, socket));
    let mut complaints: Vec<String> = loud
        .iter()
        .map(|call| format!("{}({}", call.name, call.rest))
        .collect();
    let sockets = silent.iter().filter(|call| call.name == "socket").count();
    if sockets > 1 {
        complaints.push(format!("socket was called {sockets} times"));
    }
    complaints
}

fn is_silent(call: &Call, socket: Socket) -> bool {
    let rest = call.rest.as_str();
    let is_loopback = rest.contains(r#"inet_addr("127.0.0.1")"#) || rest.contains(r#""::1""#);
    match call.name.as_str() {
        "open" | "openat" | "openat2" => {
            let path = rest.split('"').nth(1).unwrap_or_default();
            // A device is no file: nothing of what is written to it stays.
            let is_device = path == "/dev/null" || path.starts_with("/dev/nvidia");
            let writes = ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_TMPFILE"]
                .iter()
                .any(|flag| rest.contains(flag));
            (!writes || is_device) && !NAME_SERVICE.contains(&path)
        }
        // Of the internet's protocols only TCP: a datagram is how names are looked up.
        "socket" => {
            socket != Socket::None
                && (rest.starts_with("AF_INET, SOCK_STREAM")
                    || rest.starts_with("AF_INET6, SOCK_STREAM"))
        }
        "connect" => socket == Socket::Loopback && is_loopback,
        // To whoever is connected, not to an address.
        "sendto" => rest.contains(", NULL, 0)"),
        "sendmsg" => rest.contains("msg_name=NULL"),
        name => READING.contains(&name) || USING_SOCKETS.contains(&name),
    }
}

/// ONNX Runtime 1.31.1 with its telemetry makes its files while it is loaded, and looks its host up for the first time
/// 9 to 10 seconds later, then every 5 to 9 seconds; a short command ends before that. Twice the first time, and
/// nothing is awaited but the server itself, which closes a connection that was idle for so long.
const LONGER_THAN_THE_FIRST_LOOKUP: &str = "20s";

#[test]
fn a_server_looks_up_no_name_connects_to_nobody_and_writes_no_file() {
    let Some(tracing) = Tracing::new() else {
        return;
    };
    let mut command = tracing.command("serve");
    command.args(["serve", "--model", "addone.onnx"]);
    command.args(["--keep-alive-timeout", LONGER_THAN_THE_FIRST_LOOKUP]);
    let server = Server::spawn_command(command);
    let ready = server.log.wait_for(|line| line["message"] == "ready");
    assert!(ready.is_some(), "{:?}", server.log.lines());
    let mut client = server.connect();
    let body = json!({"inputs": [[1.0, 2.0, 3.0, 4.0]]}).to_string();
    let answer = client.send(&Request::json("/predict", body)).unwrap();
    assert_eq!(answer.json()["outputs"]["y"], json!([[2.0, 3.0, 4.0, 5.0]]));
    // A load while it serves is silent, too.
    server.signal(Signal::SIGHUP);
    let reloaded = server
        .log
        .wait_for(|line| line["message"] == "model reloaded");
    assert!(reloaded.is_some(), "{:?}", server.log.lines());
    assert_eq!(client.read_to_end(), b"");
    server.signal(Signal::SIGTERM);
    assert_eq!(server.wait().code(), Some(0));
    tracing.check("serve", Socket::Listener);
    // Each of the two loads has read the file once.
    let trace = whole_trace(&tracing.path("serve"));
    let opened = calls(&trace);
    let opened = opened
        .iter()
        .filter(|call| call.name == "openat" && call.rest.contains("\"addone.onnx\""));
    assert_eq!(opened.count(), 2);
}

#[test]
fn no_other_command_looks_up_a_name_connects_to_others_or_writes_a_file() {
    let Some(tracing) = Tracing::new() else {
        return;
    };
    tracing.run(&["--help"], 0, Socket::None);
    tracing.run(&["--version"], 0, Socket::None);
    tracing.run(&["inspect", "addone.onnx"], 0, Socket::None);
    let tune = ["tune", "addone.onnx", "--dry-run", "--time", "1s"];
    tracing.run(&tune, 0, Socket::None);
    // Before ONNX Runtime is loaded, and after it.
    tracing.run(&["--model", "missing.onnx"], 1, Socket::Listener);
    tracing.run(&["--model", "truncated.onnx"], 1, Socket::Listener);
    let server = Server::fixture("addone", &[]);
    let healthy = format!("http://{}/health", server.address);
    tracing.run(&["healthcheck", &healthy], 0, Socket::Loopback);
    drop(server);
    tracing.run(&["healthcheck", &healthy], 1, Socket::Loopback);
}

#[test]
fn tune_writes_the_sidecar_and_no_other_file() {
    let Some(tracing) = Tracing::new() else {
        return;
    };
    let output = tracing
        .command("tune")
        .args(["tune", "addone.onnx", "--time", "1s"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let trace = whole_trace(&tracing.path("tune"));
    let others: Vec<String> = complaints(&calls(&trace), Socket::None)
        .into_iter()
        .filter(|call| !call.contains("\"addone.toml"))
        .collect();
    assert!(others.is_empty(), "{}", others.join("\n"));
    assert_eq!(
        names_in(&tracing.path("work")),
        ["addone.onnx", "addone.toml", "truncated.onnx"]
    );
}

/// What strace saw of the telemetry, and calls of the same kinds: the rules find each of them.
#[test]
fn the_rules_find_every_call_that_is_not_silent() {
    let home = "/home/user/.cache/Microsoft/DeveloperTools/.onnxruntime";
    let loud = [
        r#"mkdir("/home/user/.cache", 0700) = 0"#.to_owned(),
        format!(r#"openat(AT_FDCWD, "{home}/onnxruntime.db", O_RDWR|O_CREAT|O_CLOEXEC, 0644) = 11"#),
        format!(r#"openat(AT_FDCWD, "{home}/deviceid", O_WRONLY|O_CLOEXEC) = -1 EROFS (Read-only file system)"#),
        format!(r#"unlink("{home}/onnxruntime.db-journal") = 0"#),
        r#"openat(14, "deviceid.tmp", O_WRONLY|O_CREAT|O_EXCL|O_NOFOLLOW|O_CLOEXEC, 0600) = 15"#.to_owned(),
        r#"renameat2(14, "deviceid.tmp", 14, "deviceid", RENAME_NOREPLACE) = 0"#.to_owned(),
        r#"openat(AT_FDCWD, "/tmp", O_RDWR|O_EXCL|O_TMPFILE|O_CLOEXEC, 0600) = 3"#.to_owned(),
        r#"memfd_create("scratch", MFD_CLOEXEC) = 3"#.to_owned(),
        "io_uring_setup(8, {flags=0}) = 3".to_owned(),
        r#"openat(AT_FDCWD, "/etc/resolv.conf", O_RDONLY|O_CLOEXEC) = 15"#.to_owned(),
        r#"connect(15, {sa_family=AF_UNIX, sun_path="/var/run/nscd/socket"}, 110) = -1 ENOENT"#.to_owned(),
        "socket(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC|SOCK_NONBLOCK, 0) = 15".to_owned(),
        "socket(AF_INET, SOCK_DGRAM|SOCK_CLOEXEC|SOCK_NONBLOCK, IPPROTO_IP) = 15".to_owned(),
        r#"connect(15, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("192.0.2.53")}, 16) = 0"#.to_owned(),
        r#"connect(15, {sa_family=AF_INET, sin_port=htons(443), sin_addr=inet_addr("192.0.2.1")}, 16) = -1 EINPROGRESS"#.to_owned(),
        r#"sendto(15, "a", 1, 0, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("127.0.0.1")}, 16) = 1"#.to_owned(),
    ];
    for line in &loud {
        for socket in [Socket::None, Socket::Listener, Socket::Loopback] {
            let calls = calls(&format!("1 {line}\n"));
            assert_eq!(complaints(&calls, socket).len(), 1, "{line}");
        }
    }
    let listener = "socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC|SOCK_NONBLOCK, IPPROTO_IP) = 9";
    let twice = format!("1 {listener}\n1 {listener}\n");
    assert_eq!(complaints(&calls(&twice), Socket::Listener).len(), 1);
    assert_eq!(complaints(&calls(&twice), Socket::None).len(), 2);
}

#[test]
fn a_call_that_stands_on_two_lines_is_read_as_one() {
    let trace = "7 openat(AT_FDCWD, \"/a\", O_WRONLY|O_CREAT <unfinished ...>\n\
                 8 openat(AT_FDCWD, \"/b\", O_RDONLY) = 4\n\
                 7 <... openat resumed>, 0600) = 3\n\
                 7 mkdir(\"/c\" <unfinished ...>\n\
                 9 ???( <unfinished ...>\n\
                 9 <... ??? resumed>) = ?\n\
                 7 +++ exited with 0 +++\n";
    let found = complaints(&calls(trace), Socket::None);
    let expected = [
        "openat(AT_FDCWD, \"/a\", O_WRONLY|O_CREAT, 0600) = 3",
        "mkdir(\"/c\"",
    ];
    assert_eq!(found, expected);
}
