//! What the Kubernetes objects say of each other and of the server: names that lead somewhere, ports that are open,
//! times that fit together. Schemas know none of this.
//!
//! These tests read the files as they are. `scripts/check-kubernetes.py`, a part of `make lint-k8s`, asks the same and
//! more of what kustomize makes of each overlay and component.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the first thing that is wrong"
)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use clap::{Command, CommandFactory, Parser};
use model_serving::config::{FetchFlags, ServeFlags};
use serde::Deserialize;
use serde_json::Value;

/// The objects of a manifest.
fn objects(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    let documents = serde_yaml_ng::Deserializer::from_str(&text);
    documents
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

/// The objects of the manifests in `folder` of `k8s/`.
fn folder(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s").join(name);
    let entries = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let manifests = entries.filter(|path| path.extension().is_some_and(|it| it == "yaml"));
    manifests.flat_map(|path| objects(&path)).collect()
}

fn find<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let object = found.next().unwrap();
    assert!(found.next().is_none(), "two objects are a {kind}");
    object
}

/// Everything in `value` that stands under a key called `key`.
fn all<'a>(value: &'a Value, key: &str) -> Vec<&'a Value> {
    match value {
        Value::Object(entries) => {
            let own = entries.get(key);
            own.into_iter()
                .chain(entries.values().flat_map(|value| all(value, key)))
                .collect()
        }
        Value::Array(values) => values.iter().flat_map(|value| all(value, key)).collect(),
        _ => Vec::new(),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// The server's container in the Deployment.
fn container(base: &[Value]) -> &Value {
    &find(base, "Deployment")["spec"]["template"]["spec"]["containers"][0]
}

/// The components that let somebody in: at which port, and whom.
const ALLOWED: [(&str, &str, Option<&str>); 3] = [
    ("components/allow-namespace", "http", None),
    (
        "components/allow-ingress-controller",
        "http",
        Some("envoy-gateway-system"),
    ),
    ("components/allow-prometheus", "admin", Some("monitoring")),
];

/// The component that lets in load balancers from outside the cluster, whom only addresses can name.
const BY_ADDRESS: &str = "components/gateway-gke";

/// Every folder of `k8s/` that has manifests of the server.
fn folders() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s");
    let mut found = vec!["base".to_owned()];
    for kind in ["components", "overlays"] {
        for entry in fs::read_dir(root.join(kind)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            found.push(format!("{kind}/{name}"));
        }
    }
    assert!(found.len() > 15);
    found
}

/// The lists of containers in a manifest, without those that run first.
fn servers(object: &Value) -> Vec<&Value> {
    all(object, "containers")
}

#[test]
fn ports_are_asked_for_by_a_name_that_the_container_has() {
    let base = folder("base");
    let container = container(&base);
    let named: Vec<&str> = all(&container["ports"], "name")
        .into_iter()
        .map(text)
        .collect();
    let mut asked = Vec::new();
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        asked.push(&container[probe]["httpGet"]["port"]);
    }
    asked.extend(all(find(&base, "Service"), "targetPort"));
    let policies = ALLOWED.iter().flat_map(|(name, _, _)| folder(name));
    let policies: Vec<Value> = policies.collect();
    let ingress = policies.iter().flat_map(|object| all(object, "ingress"));
    asked.extend(ingress.flat_map(|rule| all(rule, "port")));
    let monitoring = folder("overlays/monitoring");
    asked.extend(all(find(&monitoring, "PodMonitor"), "port"));
    assert_eq!(asked.len(), 8);
    for port in asked {
        assert!(named.contains(&text(port)), "no port is called {port}");
    }
}

/// The number of the port that the container calls `name`.
fn port(container: &Value, name: &str) -> u64 {
    let mut ports = container["ports"].as_array().unwrap().iter();
    let port = ports.find(|port| port["name"] == name);
    port.unwrap()["containerPort"].as_u64().unwrap()
}

#[test]
fn probes_and_scrapes_go_to_the_admin_port_which_is_on() {
    let base = folder("base");
    let deployment = container(&base);
    let mut probes = 0;
    // Whatever is patched or added must not probe another one. Knative has a single port.
    for name in folders().iter().filter(|name| *name != "overlays/knative") {
        for object in folder(name) {
            for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
                for probe in all(&object, probe) {
                    assert_eq!(probe["httpGet"]["port"], "admin", "{name}: {probe}");
                    probes += 1;
                }
            }
            for list in servers(&object)
                .into_iter()
                .flat_map(|server| all(server, "env"))
            {
                let variables = list.as_array().unwrap().iter();
                let mut admin = variables.filter(|variable| variable["name"] == "ADMIN_PORT");
                let value = admin.next().map(|variable| text(&variable["value"]));
                let expected = port(deployment, "admin").to_string();
                match &**name {
                    "base" => assert_eq!(value, Some(&*expected), "the admin port is off"),
                    _ => assert_eq!(value, None, "{name} changes the admin port"),
                }
            }
        }
    }
    assert_eq!(probes, 3);
    let monitoring = folder("overlays/monitoring");
    for endpoint in all(find(&monitoring, "PodMonitor"), "podMetricsEndpoints") {
        assert_eq!(endpoint[0]["port"], "admin");
    }
    for object in &base {
        let ports = all(object, "targetPort");
        assert!(
            ports.iter().all(|port| *port == "http"),
            "the Service shows the admin port"
        );
    }
}

#[test]
fn nobody_is_let_in_but_by_a_component_that_says_whom() {
    let ingress = |name: &str| -> Vec<Value> {
        let objects = folder(name);
        let rules = objects.iter().flat_map(|object| all(object, "ingress"));
        rules
            .flat_map(|rules| rules.as_array().unwrap().clone())
            .collect()
    };
    for (name, port, namespace) in ALLOWED {
        let [rule] = &ingress(name)[..] else {
            panic!("{name} has not one rule");
        };
        let from = &rule["from"][0];
        let labels = &from["namespaceSelector"]["matchLabels"];
        assert_eq!(labels["kubernetes.io/metadata.name"].as_str(), namespace);
        // Without a namespace, the policy's own.
        assert!(
            namespace.is_some() || from["podSelector"].is_object(),
            "{name}"
        );
        let ports: Vec<&str> = all(&rule["ports"], "port").into_iter().map(text).collect();
        assert_eq!(ports, [port], "{name}");
    }
    let [rule] = &ingress(BY_ADDRESS)[..] else {
        panic!("{BY_ADDRESS} has not one rule");
    };
    for peer in rule["from"].as_array().unwrap() {
        let addresses = text(&peer["ipBlock"]["cidr"]);
        assert!(!addresses.ends_with("/0"), "{BY_ADDRESS}: {addresses}");
    }
    assert_eq!(all(&rule["ports"], "port"), ["http"], "{BY_ADDRESS}");
    for name in folders() {
        let allowed = name == BY_ADDRESS || ALLOWED.iter().any(|(allowed, ..)| *allowed == name);
        // Knative's pods have no port of a name that they keep.
        let by_number = ["overlays/knative", "components/knative-monitoring"];
        if !allowed && !by_number.contains(&&*name) {
            assert_eq!(ingress(&name), Vec::<Value>::new(), "{name}");
        }
    }
}

#[test]
fn selectors_find_the_pods_and_names_lead_to_objects() {
    let base = folder("base");
    let deployment = find(&base, "Deployment");
    let template = &deployment["spec"]["template"];
    let labels = template["metadata"]["labels"].as_object().unwrap();
    let others: Vec<Value> = folders()
        .iter()
        .filter(|name| *name != "base")
        .flat_map(|name| folder(name))
        .collect();
    let objects = || base.iter().chain(&others);
    let is_policy = |object: &&Value| object["kind"] == "NetworkPolicy";
    let selecting = objects().filter(|object| !is_policy(object));
    let mut selectors: Vec<&Value> = selecting
        .flat_map(|object| all(object, "matchLabels"))
        .collect();
    selectors.push(&find(&base, "Service")["spec"]["selector"]);
    let policies = objects().filter(is_policy);
    let policies = policies.filter_map(|policy| policy.get("spec"));
    selectors.extend(policies.filter_map(|spec| spec["podSelector"].get("matchLabels")));
    let monitoring = folder("overlays/monitoring");
    let job = &find(&monitoring, "PodMonitor")["spec"]["jobLabel"];
    assert!(
        labels.contains_key(text(job)),
        "no pod has the label {job}, so that the operator would make up a job"
    );
    assert!(selectors.len() >= 10);
    for selector in selectors {
        for (label, value) in selector.as_object().unwrap() {
            assert_eq!(labels.get(label), Some(value), "{label} selects nothing");
        }
    }

    let is_there = |kind: &str, name: &Value| {
        let there = base
            .iter()
            .any(|object| object["kind"] == kind && object["metadata"]["name"] == *name);
        assert!(there, "there is no {kind} called {name}");
    };
    is_there("ServiceAccount", &template["spec"]["serviceAccountName"]);
    for target in objects().flat_map(|object| all(object, "scaleTargetRef")) {
        is_there("Deployment", &target["name"]);
    }
    let references = all(template, "configMapKeyRef");
    assert!(references.len() >= 5);
    for reference in references {
        configured(&base, reference);
    }
}

/// What a `ConfigMap` has that a variable refers to. Kustomize makes it, so that another value is a rollout.
fn configured(base: &[Value], reference: &Value) -> String {
    let (name, key) = (text(&reference["name"]), text(&reference["key"]));
    let generators = base.iter().flat_map(|it| all(it, "configMapGenerator"));
    let mut generators = generators.flat_map(|list| list.as_array().unwrap());
    let generator = generators.find(|generator| generator["name"] == name);
    let generator = generator.unwrap_or_else(|| panic!("there is no ConfigMap called {name}"));
    let mut literals = generator["literals"].as_array().unwrap().iter().map(text);
    let value = literals.find_map(|literal| literal.strip_prefix(&format!("{key}=")));
    value
        .unwrap_or_else(|| panic!("{name} has no {key}"))
        .to_owned()
}

#[test]
fn each_variable_is_a_setting_that_the_program_takes_with_that_value() {
    let base = folder("base");
    let mounted = all(&find(&base, "Deployment")["spec"]["template"], "mountPath");
    let manifests: Vec<Value> = folders().iter().flat_map(|name| folder(name)).collect();
    let workloads = ["Deployment", "Service"];
    let mut set = 0;
    for object in manifests
        .iter()
        .filter(|object| workloads.iter().any(|kind| object["kind"] == *kind))
    {
        let pod = &object["spec"]["template"]["spec"];
        for container in ["initContainers", "containers"]
            .iter()
            .flat_map(|key| pod[*key].as_array().into_iter().flatten())
        {
            // Knative's container fetches the model before it serves, with one environment for both.
            let fetches = container["name"] == "fetch";
            let both = container["args"][0] == "fetch" && !fetches;
            for variable in container["env"].as_array().into_iter().flatten() {
                let name = text(&variable["name"]);
                let reference = &variable["valueFrom"]["configMapKeyRef"];
                let value = if reference.is_object() {
                    configured(&base, reference)
                } else {
                    text(&variable["value"]).to_owned()
                };
                takes(fetches, both, name, &value);
                // A file is one that a volume brings, unless the image has it.
                if value.starts_with('/') {
                    let mut mounts = all(pod, "mountPath").into_iter().chain(mounted.clone());
                    let path = format!("{value}/");
                    let mounted =
                        mounts.any(|mount| path.starts_with(&format!("{}/", text(mount))));
                    assert!(mounted, "{value} is not in any volume");
                }
                set += 1;
            }
        }
    }
    assert!(set >= 15);
}

/// Panics if neither `fetch` nor the server takes the variable with that value, whichever of them it is for.
fn takes(fetches: bool, both: bool, name: &str, value: &str) {
    let fetch = flag_of(&FetchFlags::command(), name);
    let serve = flag_of(&ServeFlags::command(), name);
    let known = if fetches {
        fetch.is_some()
    } else {
        serve.is_some() || both && fetch.is_some()
    };
    assert!(known, "nothing that runs there reads the variable {name}");
    if value.is_empty() {
        return;
    }
    if let Some(flag) = fetch.filter(|_| fetches || both) {
        let mut arguments = vec!["fetch".to_owned(), format!("{flag}{value}")];
        if flag != "--to=" {
            // What it must be told in any case.
            arguments.push("--to=/models".to_owned());
        }
        FetchFlags::try_parse_from(arguments).unwrap();
    }
    if let Some(flag) = serve.filter(|_| !fetches) {
        let argument = format!("{flag}{value}");
        ServeFlags::try_parse_from(["model-serving".to_owned(), argument]).unwrap();
    }
}

/// How the argument begins that the environment variable `name` stands for: `--flag=`, or nothing.
fn flag_of(command: &Command, name: &str) -> Option<String> {
    let mut arguments = command.get_arguments();
    let argument = arguments.find(|argument| argument.get_env().is_some_and(|env| env == name))?;
    let long = argument.get_long();
    Some(long.map_or_else(String::new, |long| format!("--{long}=")))
}

#[test]
fn a_pod_has_the_time_to_drain_before_it_is_killed() {
    let base = folder("base");
    let pod = &find(&base, "Deployment")["spec"]["template"]["spec"];
    let seconds = |value: &Value| Duration::from_secs(value.as_u64().unwrap());
    let pre_stop = seconds(&container(&base)["lifecycle"]["preStop"]["sleep"]["seconds"]);
    let grace = seconds(&pod["terminationGracePeriodSeconds"]);
    let config = ServeFlags::try_parse_from(["model-serving"])
        .unwrap()
        .into_config(|_| None)
        .unwrap();
    let drain = config.drain.delay + config.drain.timeout;
    assert!(
        grace > pre_stop + drain,
        "{grace:?} is not more than {pre_stop:?} and {drain:?}"
    );
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The base names the bundled model as an example, so its digest can be held against the file.
#[test]
fn the_model_of_the_base_is_pinned_by_the_digest_of_the_bundled_one() {
    use std::fmt::Write;

    use sha2::{Digest, Sha256};

    let reference = |key| serde_json::json!({"name": "model-source", "key": key});
    let base = folder("base");
    let stated = configured(&base, &reference("sha256"));
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/best.onnx");
    let digest = Sha256::digest(fs::read(model).unwrap());
    let mut text = String::new();
    for byte in digest {
        write!(text, "{byte:02x}").unwrap();
    }
    assert_eq!(stated, text);
    assert!(configured(&base, &reference("uri")).ends_with("/best.onnx"));
}

/// From this one on the preStop hook sleeps without a feature gate.
#[test]
fn the_oldest_kubernetes_is_one_number_that_has_what_the_manifests_use() {
    let makefile = read("Makefile");
    let oldest = makefile.split_once("\nKUBERNETES := ").unwrap().1;
    let oldest = oldest.lines().next().unwrap();
    let minor: u32 = oldest.strip_prefix("1.").unwrap().parse().unwrap();
    assert!(minor >= 30, "{oldest} ignores the preStop hook");
    let mut named = 0;
    for document in [
        "docs/helm.md",
        "docs/kubernetes.md",
        "k8s/base/deployment.yaml",
    ] {
        let text = read(document);
        for (position, _) in text.match_indices("1.") {
            // A version of Kubernetes, and not of something else that is named in the same line.
            let before = &text[..position];
            let rest = &text[position..];
            let version: String = rest
                .chars()
                .take_while(|it| it.is_ascii_digit() || *it == '.')
                .collect();
            let version = version.trim_end_matches('.');
            let is_oldest = rest[version.len()..].starts_with(" or newer")
                || rest[version.len()..].starts_with(" on");
            let line = before.rsplit('\n').next().unwrap();
            if is_oldest && (line.contains("Kubernetes") || document.starts_with("k8s/")) {
                assert_eq!(version, oldest, "{document}");
                named += 1;
            }
        }
    }
    assert!(named >= 3, "{named} places name the oldest Kubernetes");
}

#[test]
fn every_alert_has_its_place_in_the_runbooks_and_every_place_its_alert() {
    let rules = read("monitoring/rules/model-serving.yml");
    let rules: Value = serde_yaml_ng::from_str(&rules).unwrap();
    let mut alerts = Vec::new();
    for rules in all(&rules, "rules") {
        for rule in rules.as_array().unwrap() {
            let Some(name) = rule["alert"].as_str() else {
                continue;
            };
            let url = rule["annotations"]["runbook_url"].as_str();
            let url = url.unwrap_or_else(|| panic!("{name} has no runbook_url"));
            let place = format!("/docs/runbooks.md#{}", name.to_lowercase());
            assert!(url.ends_with(&place), "{name}: {url}");
            alerts.push(name.to_owned());
        }
    }
    assert!(alerts.len() > 10);
    let runbooks = read("docs/runbooks.md");
    let headings = runbooks.lines().filter_map(|line| line.strip_prefix("## "));
    let headings: Vec<&str> = headings.collect();
    alerts.sort();
    let mut sorted = headings.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, alerts, "the headings of docs/runbooks.md");
    // Each says what it means and what to do.
    let sections = runbooks.split("\n## ").skip(1);
    for section in sections {
        assert!(section.len() > 200, "too little is said of {section}");
    }
}
