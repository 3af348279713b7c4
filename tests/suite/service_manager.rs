//! What systemd is told of the server, by a socket of our own in the place of systemd's; and what the files say that a
//! package for Debian installs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the first thing that is wrong"
)]

use std::collections::BTreeSet;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use clap::CommandFactory as _;
use model_serving::config::{FetchFlags, ServeFlags};
use nix::sys::signal::Signal;
use testing::faults::Faults;
use testing::{Server, fixture, program, repository};

/// A service manager. It reads all the time, as systemd does: whoever tells it something waits until there is room.
struct Manager {
    told: Receiver<String>,
    folder: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        let (send, told) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 1000];
            while let Ok(length) = socket.recv(&mut buffer) {
                let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
                if send.send(text).is_err() {
                    break;
                }
            }
        });
        Self { told, folder }
    }

    fn starts(&self, flags: &[&str], environment: &[(&str, &str)]) -> Server {
        let socket = self.folder.path().join("notify");
        let mut environment = environment.to_vec();
        environment.push(("NOTIFY_SOCKET", socket.to_str().unwrap()));
        let model = fixture("addone");
        Server::spawn(
            &[&["--model", model.as_str()], flags].concat(),
            &environment,
        )
    }

    /// What it is told next.
    fn next(&self) -> String {
        self.told.recv_timeout(testing::PATIENCE).unwrap()
    }
}

#[test]
fn systemd_is_told_when_the_server_is_ready_loads_again_and_stops() {
    let manager = Manager::new();
    let server = manager.starts(&[], &[]);
    assert_eq!(manager.next(), "READY=1\n");
    assert_eq!(server.get("/ready").status, 200);
    server.signal(Signal::SIGHUP);
    let reloading = manager.next();
    assert!(
        reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="),
        "{reloading}"
    );
    assert_eq!(manager.next(), "READY=1\n");
    assert_eq!(
        server.metric("ml_model_reloads_total", &[("result", "success")]),
        Some(1.0)
    );
    server.signal(Signal::SIGTERM);
    assert_eq!(manager.next(), "STOPPING=1\n");
    assert!(server.wait().success());
}

#[test]
fn a_server_that_only_a_restart_cures_gives_no_more_signs_of_life() {
    let faults = Faults::new();
    let path = faults.path().display().to_string();
    let manager = Manager::new();
    let server = manager.starts(
        &["--admin-port", "0"],
        &[("WATCHDOG_USEC", "1000000"), ("TESTKIT_FAULTS", &path)],
    );
    // A sign of life may come before, too.
    while manager.next() != "READY=1\n" {}
    let begun = Instant::now();
    assert_eq!(manager.next(), "WATCHDOG=1\n");
    assert_eq!(manager.next(), "WATCHDOG=1\n");
    assert!(begun.elapsed() < testing::PATIENCE);
    faults.set("panic beat\n");
    let stuck = server
        .log
        .wait_for(|line| line["message"] == "the threads of connections are stuck");
    assert!(stuck.is_some());
    while manager.told.try_recv().is_ok() {}
    let said = manager.told.recv_timeout(Duration::from_secs(2));
    assert!(
        said.is_err(),
        "two intervals passed, after which systemd ends it"
    );
}

#[test]
fn a_socket_without_a_file_is_found_by_its_name() {
    let name = format!("model-serving-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let socket = UnixDatagram::bind_addr(&address).unwrap();
    socket.set_read_timeout(Some(testing::PATIENCE)).unwrap();
    let environment = [("NOTIFY_SOCKET", format!("@{name}"))];
    let environment: Vec<_> = environment
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let _server = Server::spawn(&["--model", &fixture("addone")], &environment);
    let mut buffer = [0; 100];
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"READY=1\n");
}

#[test]
fn a_service_manager_that_cannot_be_reached_costs_one_line() {
    let environment = [
        ("NOTIFY_SOCKET", "/nonexistent/notify"),
        ("WATCHDOG_USEC", "600000"),
    ];
    let server = Server::start_with(&["--model", &fixture("addone")], &environment);
    let is_told = |line: &serde_json::Value| {
        line["message"]
            .as_str()
            .unwrap_or_default()
            .contains("NOTIFY_SOCKET")
    };
    assert!(server.log.wait_for(is_told).is_some());
    server.signal(Signal::SIGHUP);
    let reloaded = server
        .log
        .wait_for(|line| line["message"] == "model reloaded");
    assert!(reloaded.is_some(), "{:?}", server.log.lines());
    assert_eq!(
        server
            .log
            .lines()
            .iter()
            .filter(|line| is_told(line))
            .count(),
        1
    );
}

/// `KEY=value` lines of a file, in the order in which they stand there.
fn settings(path: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(repository(path)).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once('='));
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn seconds(text: &str) -> f64 {
    text.strip_suffix('s').unwrap().parse().unwrap()
}

#[test]
fn the_unit_waits_longer_than_the_server_takes_to_drain_and_looks_for_its_signs_of_life() {
    let unit = settings("packaging/systemd/model-serving.service");
    let of = |key: &str| {
        let mut found = unit.iter().filter(|(it, _)| it == key);
        found
            .next()
            .unwrap_or_else(|| panic!("{key} is missing"))
            .1
            .clone()
    };
    assert_eq!(of("Type"), "notify");
    assert_eq!(of("ExecReload"), "/bin/kill -HUP $MAINPID");
    assert_eq!(of("RestartPreventExitStatus"), "2");
    let command = ServeFlags::command();
    let default = |name: &str| {
        let mut flags = command.get_arguments();
        let flag = flags.find(|flag| flag.get_long() == Some(name)).unwrap();
        seconds(flag.get_default_values()[0].to_str().unwrap())
    };
    let drain = default("drain-delay") + default("drain-timeout");
    assert!(seconds(&of("TimeoutStopSec")) > drain + 1.0);
    // The server says it twice in that time, and looks four times a second.
    assert!(seconds(&of("WatchdogSec")) >= 2.0);
    for hardening in [
        "NoNewPrivileges",
        "DynamicUser",
        "PrivateTmp",
        "ProtectHome",
    ] {
        assert_eq!(of(hardening), "yes");
    }
    assert_eq!(of("CapabilityBoundingSet"), "");
    let paths: BTreeSet<String> = ["StateDirectory", "WorkingDirectory"].map(of).into();
    assert_eq!(
        paths,
        ["/var/lib/model-serving", "model-serving"]
            .map(str::to_owned)
            .into()
    );
}

#[test]
fn the_packages_settings_are_variables_of_the_server() {
    let known: BTreeSet<String> = [ServeFlags::command(), FetchFlags::command()]
        .iter()
        .flat_map(clap::Command::get_arguments)
        .filter_map(|argument| Some(argument.get_env()?.to_str()?.to_owned()))
        .collect();
    let settings = settings("packaging/debian/default");
    assert!(settings.len() >= 3);
    for (name, _) in settings {
        assert!(known.contains(&name), "{name} is no variable of the server");
    }
}

#[test]
fn every_command_has_a_page_of_the_manual_and_every_shell_its_completions() {
    let help = program().arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let commands: Vec<&str> = commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !matches!(*name, "" | "help"))
        .collect();
    assert!(
        commands.contains(&"serve") && commands.contains(&"fetch"),
        "{help}"
    );
    let script = std::fs::read_to_string(repository("scripts/pack-release.sh")).unwrap();
    let (_, packed) = script.split_once("for command in ").unwrap();
    let packed: Vec<&str> = packed.split(';').next().unwrap().split(' ').collect();
    assert_eq!(
        packed, commands,
        "what scripts/pack-release.sh packs, and the commands"
    );
    for command in &commands {
        let page = program().args(["man", command]).output().unwrap();
        let page = String::from_utf8(page.stdout).unwrap();
        assert!(
            page.contains(&format!(".TH model-serving-{command} 1")),
            "{page}"
        );
    }
    let whole = program().arg("man").output().unwrap();
    let whole = String::from_utf8(whole.stdout).unwrap();
    for argument in ServeFlags::command().get_arguments() {
        if let Some(variable) = argument.get_env().and_then(|name| name.to_str()) {
            assert!(
                whole.contains(&format!("\\fB{variable}\\fR")),
                "{variable} is missing"
            );
        }
    }
    for shell in ["bash", "zsh", "FISH", "elvish", "powershell"] {
        let script = program().args(["completions", shell]).output().unwrap();
        let script = String::from_utf8(script.stdout).unwrap();
        assert!(
            script.contains("max-connection-age") && script.contains("healthcheck"),
            "{shell}"
        );
    }
    let unknown = program().args(["completions", "tcsh"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
    let said = String::from_utf8(unknown.stderr).unwrap();
    assert!(
        said.contains("bash, elvish, fish, powershell, zsh"),
        "{said}"
    );
}
