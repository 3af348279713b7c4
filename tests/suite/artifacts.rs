//! The files around the server (images, Compose stack, dashboards) say what the code says.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first thing that is wrong"
)]

use std::path::{Path, PathBuf};

use clap::CommandFactory;
use model_serving::config::{DEFAULT_PORT, FetchFlags, ServeFlags};
use model_serving::telemetry::metrics::FAMILIES;
use serde_json::Value;

const DOCKERFILES: [&str; 2] = ["Dockerfile", "Dockerfile.gpu"];

fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Dashboards, rules and the like below a folder.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    found.sort();
    assert!(!found.is_empty());
    found
}

/// The lines of a Dockerfile from the one that starts with `from` up to the next stage, without comments.
fn stage(dockerfile: &str, from: &str) -> Vec<String> {
    let text = read(dockerfile);
    let mut lines = text.lines().skip_while(|line| !line.starts_with(from));
    let first = lines
        .next()
        .unwrap_or_else(|| panic!("{dockerfile} has no '{from}'"));
    std::iter::once(first)
        .chain(lines.take_while(|line| !line.starts_with("FROM ")))
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn both_images_have_the_same_binary_built_in_the_same_way() {
    let from = "FROM ${RUST_IMAGE} AS build";
    let [cpu, gpu] = DOCKERFILES.map(|dockerfile| stage(dockerfile, from));
    assert!(cpu.len() > 5);
    assert_eq!(cpu, gpu);
}

#[test]
fn both_images_have_the_same_bases_pinned_by_digest() {
    let [cpu, gpu] = DOCKERFILES.map(|dockerfile| {
        let text = read(dockerfile);
        let bases: Vec<String> = text
            .lines()
            .filter(|line| line.starts_with("ARG ") && line.contains("_IMAGE="))
            .map(str::to_owned)
            .collect();
        let stages = text.lines().filter(|line| line.starts_with("FROM "));
        for stage in stages {
            assert!(
                stage.starts_with("FROM ${") || stage == "FROM runtime",
                "{stage}"
            );
        }
        bases
    });
    assert_eq!(cpu.len(), 3);
    assert_eq!(cpu, gpu);
    for base in cpu {
        let digest = base.split_once("@sha256:").map_or("", |(_, digest)| digest);
        assert_eq!(digest.len(), 64, "{base}");
    }
}

#[test]
fn images_are_labelled_with_the_version_and_expose_the_default_port() {
    for dockerfile in DOCKERFILES {
        let text = read(dockerfile);
        assert!(text.contains(&format!("\nARG VERSION={}\n", env!("CARGO_PKG_VERSION"))));
        assert!(text.contains(&format!("\nEXPOSE {DEFAULT_PORT}\n")));
    }
}

#[test]
fn the_builder_receives_whatever_the_dockerfiles_copy_and_nothing_else() {
    let ignore = read(".dockerignore");
    let mut allowed: Vec<&str> = ignore
        .lines()
        .filter_map(|line| line.strip_prefix('!'))
        .collect();
    allowed.sort_unstable();
    let texts = DOCKERFILES.map(read);
    let mut copied: Vec<&str> = texts
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|line| !line.starts_with("--from"))
        .flat_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words[..words.len() - 1].to_vec()
        })
        .collect();
    copied.sort_unstable();
    copied.dedup();
    assert_eq!(allowed, copied);
}

#[test]
fn images_of_others_in_the_stack_are_pinned_by_digest() {
    let compose = read("docker-compose.yml");
    let images: Vec<&str> = compose
        .lines()
        .filter_map(|line| line.trim().strip_prefix("image: "))
        .collect();
    assert_eq!(images.len(), 5);
    for image in images {
        assert!(
            image.contains("@sha256:") || image.contains(":-model-serving:"),
            "{image}"
        );
    }
}

#[test]
fn no_password_stands_in_the_stack() {
    let compose = read("docker-compose.yml");
    let passwords: Vec<&str> = compose
        .lines()
        .filter(|line| line.contains("PASSWORD:"))
        .collect();
    assert_eq!(passwords.len(), 1);
    assert!(
        passwords[0].ends_with("${GRAFANA_ADMIN_PASSWORD:-}"),
        "{passwords:?}"
    );
}

/// The metric names in a text. A word with a colon is a recorded rule's.
fn metrics_in(text: &str) -> Vec<&str> {
    text.split(|character: char| !character.is_ascii_alphanumeric() && !"_:".contains(character))
        .filter(|word| {
            word.starts_with("ml_") || word.starts_with("process_") || *word == "panics_total"
        })
        .filter(|word| *word != "model_name")
        .collect()
}

/// Panics if `text` asks for a metric that the server has not, and returns how many it asks for.
fn check_metrics(path: &Path, text: &str) -> usize {
    // What the process collector of the `prometheus` crate exposes on Linux.
    let of_the_process = [
        "process_cpu_seconds_total",
        "process_max_fds",
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_threads",
        "process_virtual_memory_bytes",
    ];
    let names = metrics_in(text);
    for name in &names {
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .unwrap_or(name);
        let known =
            FAMILIES.iter().any(|found| found.name == family) || of_the_process.contains(&family);
        assert!(known, "{}: {name}", path.display());
    }
    names.len()
}

#[test]
fn dashboards_and_rules_ask_only_for_metrics_that_the_server_has() {
    for path in files("monitoring/dashboards", "json") {
        let dashboard: Value = serde_json::from_str(&read(&path)).unwrap();
        let mut asked = 0;
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                assert_eq!(target["datasource"]["uid"], "${datasource}");
                let query = target["expr"].as_str().unwrap();
                asked += check_metrics(&path, query);
                check_labels(&path, query);
            }
            if panel["type"] != "row" {
                let unit = &panel["fieldConfig"]["defaults"]["unit"];
                assert!(
                    unit.is_string() && panel["description"] != "",
                    "the panel {} needs a unit and a description",
                    panel["title"]
                );
            }
        }
        assert!(asked > 10, "{}", path.display());
    }
    for path in files("monitoring/rules", "yml") {
        let text = read(&path);
        assert!(check_metrics(&path, &text) > 10, "{}", path.display());
        check_labels(&path, &text);
    }
}

#[test]
fn every_recording_rule_is_asked_for_by_an_alert_a_dashboard_or_an_autoscaler() {
    let rules = read("monitoring/rules/model-serving.yml");
    let mut askers: Vec<String> = files("monitoring/dashboards", "json")
        .iter()
        .map(read)
        .collect();
    askers.push(read("k8s/components/scale-by-latency/adapter-values.yaml"));
    let lines = rules.lines().filter(|line| !line.contains("- record: "));
    askers.extend(lines.map(str::to_owned));
    let records = values(&rules, "record");
    assert!(records.len() >= 9);
    for record in records {
        let asked = askers.iter().any(|text| {
            let is_of_a_name = |it: char| it.is_ascii_alphanumeric() || "_:".contains(it);
            text.split(|it| !is_of_a_name(it)).any(|it| it == record)
        });
        assert!(asked, "nothing asks for {record}");
    }
}

/// Panics if `text` groups by a label that no metric has: such a query is no error, and answers nonsense.
fn check_labels(path: &Path, text: &str) {
    // Those that Prometheus and the operator add.
    let of_the_target = ["instance", "job", "le", "namespace", "pod"];
    for clause in [" by (", " on ("]
        .iter()
        .flat_map(|word| text.split(word).skip(1))
    {
        let labels = clause.split(')').next().unwrap();
        // `on ()` matches whatever there is.
        let labels = labels.split(',').map(str::trim);
        for label in labels.filter(|label| !label.is_empty()) {
            let known = of_the_target.contains(&label)
                || FAMILIES.iter().any(|found| found.labels.contains(&label));
            assert!(known, "{}: no metric has {label}", path.display());
        }
    }
}

#[test]
fn prometheus_scrapes_the_service_of_the_stack_at_its_admin_port() {
    let compose = read("docker-compose.yml");
    assert!(compose.contains("\n  api:\n"));
    let ports = values(&compose, "ADMIN_PORT");
    let [port] = ports[..] else {
        panic!("docker-compose.yml opens not one admin port: {ports:?}");
    };
    let port = port.trim_matches('"');
    let config = read("monitoring/prometheus.yml");
    let targets = format!("targets: [\"api:{port}\"]");
    assert!(config.contains(&targets), "{config}");
    assert!(
        !compose.contains(&format!(":{port}\"")),
        "the admin port is published"
    );
    // It finds the port by the server's own settings.
    assert!(compose.contains("\"/usr/local/bin/model-serving\", \"healthcheck\"]"));
}

/// Every Kubernetes manifest, with its path.
fn manifests() -> Vec<(PathBuf, String)> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "yaml") {
                found.push((path.clone(), read(&path)));
            }
        }
    }
    found.sort();
    assert!(found.len() > 30);
    found
}

/// The values of `key` in a YAML text, one for each line that has it.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines()
        .map(|line| line.trim_start_matches([' ', '-']))
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
        .collect()
}

#[test]
fn artifacts_set_only_variables_that_the_server_reads() {
    let command = ServeFlags::command();
    let known: Vec<&str> = command
        .get_arguments()
        .filter_map(|argument| argument.get_env()?.to_str())
        .collect();
    let is_variable = |name: &&str| {
        name.starts_with(|first: char| first.is_ascii_uppercase())
            && name
                .chars()
                .all(|it| it.is_ascii_uppercase() || "_0123456789".contains(it))
    };
    // Those of the init container, which fetches the model.
    let command = FetchFlags::command();
    let of_fetch: Vec<&str> = command
        .get_arguments()
        .filter_map(|argument| argument.get_env()?.to_str())
        .collect();
    let mut set = 0;
    for (path, text) in manifests() {
        for name in values(&text, "name").into_iter().filter(is_variable) {
            let known = known.contains(&name) || of_fetch.contains(&name);
            assert!(known, "{}: {name}", path.display());
            set += 1;
        }
    }
    assert!(set >= 3);
    let compose = read("docker-compose.yml");
    let api = compose.split("\n  prometheus:").next().unwrap();
    let environment = api.split("    environment:\n").nth(1).unwrap();
    let lines = environment
        .lines()
        .take_while(|line| line.starts_with("      "));
    for line in lines.filter(|line| !line.trim_start().starts_with('#')) {
        let name = line.trim().split(':').next().unwrap();
        assert!(known.contains(&name), "docker-compose.yml: {name}");
    }
}

#[test]
fn make_hands_the_environment_on_to_the_server() {
    // A variable that the Makefile sets for one target only is taken out of the environment of all others.
    let makefile = read("Makefile");
    for argument in ServeFlags::command().get_arguments() {
        let Some(name) = argument.get_env().and_then(|name| name.to_str()) else {
            continue;
        };
        let sets = |line: &&str| {
            line.split_once('=').is_some_and(|(left, _)| {
                let left = left.trim_end_matches([' ', '?', ':', '+']);
                !line.starts_with(['\t', '#']) && left.split([' ', ':']).next_back() == Some(name)
            })
        };
        let line = makefile.lines().find(sets);
        assert_eq!(line, None, "the Makefile sets {name}");
    }
}

#[test]
fn manifests_name_only_paths_ports_and_metrics_that_the_server_has() {
    let mut probed = 0;
    for (path, text) in manifests() {
        for route in values(&text, "path") {
            // Kustomize's patches have a path too: a file, or a place in the object.
            if route.starts_with('/') && !route.starts_with("/spec/") {
                assert!(
                    ["/health", "/ready", "/metrics"].contains(&route),
                    "{}: {route}",
                    path.display()
                );
                probed += 1;
            }
        }
        // The main port; the admin port's number is the manifests' own affair.
        let ports = values(&text, "containerPort");
        if let Some(port) = ports.first() {
            assert_eq!(*port, DEFAULT_PORT.to_string(), "{}", path.display());
        }
        check_metrics(&path, &text);
    }
    assert!(probed >= 4);
    // What the autoscaler asks for is what the adapter offers.
    let adapter = read("k8s/components/scale-by-latency/adapter-values.yaml");
    for metric in ["inference_latency_p99", "ml_saturation"] {
        let autoscaler = read("k8s/components/scale-by-latency/autoscaler.yaml");
        assert!(values(&autoscaler, "name").contains(&metric));
        assert!(adapter.contains(&format!("seriesQuery: '{metric}{{")));
    }
    assert!(
        values(&read("monitoring/rules/model-serving.yml"), "record")
            .contains(&"inference_latency_p99")
    );
}

#[test]
fn the_prometheus_operator_gets_the_same_rules_as_prometheus() {
    let ours = read("monitoring/rules/model-serving.yml");
    let theirs = read("k8s/overlays/monitoring/prometheus-rule.yaml");
    let ours = ours.split_once("groups:\n").unwrap().1;
    let theirs: Vec<&str> = theirs
        .split_once("  groups:\n")
        .unwrap()
        .1
        .lines()
        .collect();
    let ours: Vec<String> = ours
        .lines()
        .map(|line| {
            if line.is_empty() {
                String::new()
            } else {
                format!("  {line}")
            }
        })
        .collect();
    assert_eq!(ours, theirs);
}

/// The images are built without the benches, and Cargo refuses a manifest whose benches are not there.
#[test]
fn the_images_stand_in_for_every_bench() {
    let manifest: toml::Table = toml::from_str(&read("Cargo.toml")).unwrap();
    let stage = stage("Dockerfile", "FROM ${RUST_IMAGE} AS build");
    let (_, benches) = stage
        .iter()
        .find_map(|line| line.split_once("for bench in "))
        .unwrap();
    let (benches, _) = benches.split_once(';').unwrap();
    let file = |bench: &'_ toml::Value| {
        let name = bench["name"].as_str().unwrap();
        let path = bench.get("path").and_then(toml::Value::as_str);
        let path = path.and_then(|path| path.strip_prefix("benches/")?.strip_suffix(".rs"));
        path.unwrap_or(name).to_owned()
    };
    let benches_of_manifest = manifest["bench"].as_array().unwrap();
    let mut expected: Vec<String> = benches_of_manifest.iter().map(file).collect();
    let mut found: Vec<&str> = benches.split(' ').collect();
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
}
