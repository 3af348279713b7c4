//! What the Kubernetes objects say of each other and of the server: names that lead somewhere, ports that are open,
//! times that fit together. Schemas know none of this.

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

use clap::Parser;
use model_serving::config::ServeFlags;
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
    let ingress = base.iter().flat_map(|object| all(object, "ingress"));
    asked.extend(ingress.flat_map(|rule| all(rule, "port")));
    let monitoring = folder("overlays/monitoring");
    asked.extend(all(find(&monitoring, "PodMonitor"), "port"));
    assert_eq!(asked.len(), 7);
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
    // Whatever is patched or added must not probe another one.
    for name in [
        "base",
        "overlays/gpu",
        "components/api-keys",
        "overlays/cpu",
    ] {
        for object in folder(name) {
            for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
                for probe in all(&object, probe) {
                    assert_eq!(probe["httpGet"]["port"], "admin", "{name}: {probe}");
                    probes += 1;
                }
            }
            for list in all(&object, "env") {
                let variables = list.as_array().unwrap().iter();
                let mut admin = variables.filter(|variable| variable["name"] == "ADMIN_PORT");
                let value = admin.next().map(|variable| text(&variable["value"]));
                let expected = port(deployment, "admin").to_string();
                match name {
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
fn predictions_come_from_anywhere_and_scrapes_from_where_prometheus_is() {
    let base = folder("base");
    let rules = base.iter().flat_map(|object| all(object, "ingress"));
    let mut ports = Vec::new();
    for rule in rules.flat_map(|rules| rules.as_array().unwrap()) {
        for port in all(&rule["ports"], "port") {
            let from = rule["from"][0]["namespaceSelector"]["matchLabels"].as_object();
            let from = from.and_then(|labels| labels.get("kubernetes.io/metadata.name"));
            ports.push((text(port), from.map(text)));
        }
    }
    assert_eq!(ports, [("http", None), ("admin", Some("monitoring"))]);
}

#[test]
fn selectors_find_the_pods_and_names_lead_to_objects() {
    let base = folder("base");
    let deployment = find(&base, "Deployment");
    let template = &deployment["spec"]["template"];
    let labels = template["metadata"]["labels"].as_object().unwrap();
    let monitoring = folder("overlays/monitoring");
    let selecting = base
        .iter()
        .chain(&monitoring)
        .filter(|object| object["kind"] != "NetworkPolicy");
    let mut selectors: Vec<&Value> = selecting
        .flat_map(|object| all(object, "matchLabels"))
        .collect();
    selectors.push(&find(&base, "Service")["spec"]["selector"]);
    let policy = base.iter().find(|object| {
        object["metadata"]["name"] == "model-serving" && object["kind"] == "NetworkPolicy"
    });
    selectors.push(&policy.unwrap()["spec"]["podSelector"]["matchLabels"]);
    assert!(selectors.len() >= 6);
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
    for claim in all(template, "claimName") {
        is_there("PersistentVolumeClaim", claim);
    }
    let keda =
        objects(&Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s/overlays/monitoring/keda.yaml"));
    for target in base
        .iter()
        .chain(&keda)
        .flat_map(|object| all(object, "scaleTargetRef"))
    {
        is_there("Deployment", &target["name"]);
    }
    let references = all(template, "configMapKeyRef");
    assert!(references.len() >= 2);
    for reference in references {
        is_there("ConfigMap", &reference["name"]);
        let key = text(&reference["key"]);
        let data = &find(&base, "ConfigMap")["data"];
        assert!(data.get(key).is_some(), "the ConfigMap has no {key}");
    }
}

#[test]
fn each_variable_is_a_setting_that_the_server_takes_with_that_value() {
    let base = folder("base");
    let config = find(&base, "ConfigMap");
    let patches = ["overlays/gpu", "components/api-keys"].map(|name| {
        let patch = folder(name);
        find(&patch, "Deployment").clone()
    });
    let mut set = 0;
    for deployment in [find(&base, "Deployment")].into_iter().chain(&patches) {
        let pod = &deployment["spec"]["template"]["spec"];
        for variable in all(&pod["containers"], "env")
            .into_iter()
            .flat_map(|list| list.as_array().unwrap())
        {
            let value = match variable["valueFrom"]["configMapKeyRef"]["key"].as_str() {
                Some(key) => text(&config["data"][key]),
                None => text(&variable["value"]),
            };
            let flag = flag_of(text(&variable["name"]));
            if !value.is_empty() {
                ServeFlags::try_parse_from(["model-serving", &flag, value]).unwrap();
            }
            // A file is one that a volume brings, unless the image has it.
            if value.starts_with('/') {
                let mounts = all(pod, "mountPath");
                let mounted = mounts.iter().any(|mount| value.starts_with(text(mount)));
                assert!(mounted, "{value} is not in any volume");
            }
            set += 1;
        }
    }
    assert!(set >= 5);
}

/// The flag that the environment variable `name` stands for.
fn flag_of(name: &str) -> String {
    use clap::CommandFactory;
    let command = ServeFlags::command();
    let mut arguments = command.get_arguments();
    let argument = arguments.find(|argument| argument.get_env().is_some_and(|env| env == name));
    let argument = argument.unwrap_or_else(|| panic!("the server reads no variable {name}"));
    format!("--{}", argument.get_long().unwrap())
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
