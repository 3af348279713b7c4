//! Checks the manifests of Kubernetes operators in the YAML files that are named as arguments.
//!
//! Kubernetes' own schemas do not have these kinds, but the operators' CustomResourceDefinitions are published as Rust
//! types. Each object is read into its type, which finds missing fields and wrong types, and written again, which
//! loses what the type does not have: that finds fields that do not exist.
//!
//! Knative publishes no such types. What it serves is a pod's specification with some keys of its own, so that this much is
//! checked against Kubernetes' type, and against what Knative takes of it while its feature flags are at their defaults.

#![deny(warnings)]

use std::process::ExitCode;

use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kcr_gateway_networking_k8s_io::v1::gateways::Gateway;
use kcr_gateway_networking_k8s_io::v1::httproutes::HttpRoute;
use kcr_keda_sh::v1alpha1::scaledobjects::ScaledObject;
use kcr_monitoring_coreos_com::v1::podmonitors::PodMonitor;
use kcr_monitoring_coreos_com::v1::prometheusrules::PrometheusRule;
use kcr_networking_gke_io::v1::gcpbackendpolicies::GcpBackendPolicy;
use kcr_networking_gke_io::v1::healthcheckpolicies::HealthCheckPolicy;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

fn main() -> ExitCode {
    let (mut checked, mut wrong) = (0, 0);
    for path in std::env::args().skip(1) {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => {
                eprintln!("{path}: {error}");
                wrong += 1;
                continue;
            }
        };
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            match Value::deserialize(document).map(|object| check(&object)) {
                Err(error) => {
                    eprintln!("{path}: {error}");
                    wrong += 1;
                }
                Ok(None) => {}
                Ok(Some((name, problems))) => {
                    checked += 1;
                    wrong += problems.len();
                    for problem in problems {
                        eprintln!("{path}: {name}: {problem}");
                    }
                }
            }
        }
    }
    if checked == 0 && wrong == 0 {
        eprintln!("none of the files has an object of an operator");
        wrong += 1;
    }
    println!("check-operators: {checked} objects, {wrong} problems");
    if wrong == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What an object is called, and what is wrong with it; nothing for an object of Kubernetes itself.
fn check(object: &Value) -> Option<(String, Vec<String>)> {
    let text = |pointer| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let (version, kind) = (text("/apiVersion"), text("/kind"));
    let problems = match (version, kind) {
        ("gateway.networking.k8s.io/v1", "Gateway") => problems::<Gateway>(object),
        ("gateway.networking.k8s.io/v1", "HTTPRoute") => problems::<HttpRoute>(object),
        ("keda.sh/v1alpha1", "ScaledObject") => problems::<ScaledObject>(object),
        ("monitoring.coreos.com/v1", "PodMonitor") => problems::<PodMonitor>(object),
        ("monitoring.coreos.com/v1", "PrometheusRule") => problems::<PrometheusRule>(object),
        ("networking.gke.io/v1", "GCPBackendPolicy") => problems::<GcpBackendPolicy>(object),
        ("networking.gke.io/v1", "HealthCheckPolicy") => problems::<HealthCheckPolicy>(object),
        ("serving.knative.dev/v1", "Service") => knative_service(object),
        _ if is_of_kubernetes(version) => return None,
        _ => vec![format!("no schema for {version} {kind}")],
    };
    Some((format!("{kind} {}", text("/metadata/name")), problems))
}

/// Whether an API is Kubernetes' own: a group without a dot, or of its domain. The Gateway API has that domain too, and is
/// installed as others are.
fn is_of_kubernetes(version: &str) -> bool {
    version.split_once('/').is_none_or(|(group, _)| {
        let own = group.ends_with(".k8s.io") && group != "gateway.networking.k8s.io";
        !group.contains('.') || own
    })
}

/// Knative's own keys of a revision, which are whole numbers.
const OF_THE_REVISION: [&str; 4] = [
    "containerConcurrency",
    "timeoutSeconds",
    "responseStartTimeoutSeconds",
    "idleTimeoutSeconds",
];

/// What Knative takes of a pod's specification without a feature flag.
const OF_THE_POD: [&str; 6] = [
    "automountServiceAccountToken",
    "containers",
    "enableServiceLinks",
    "imagePullSecrets",
    "serviceAccountName",
    "volumes",
];

/// What Knative takes of a container's.
const OF_THE_CONTAINER: [&str; 17] = [
    "args",
    "command",
    "env",
    "envFrom",
    "image",
    "imagePullPolicy",
    "livenessProbe",
    "name",
    "ports",
    "readinessProbe",
    "resources",
    "securityContext",
    "startupProbe",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "volumeMounts",
    "workingDir",
];

fn knative_service(object: &Value) -> Vec<String> {
    let template = &object["spec"]["template"];
    let mut found = problems_at::<ObjectMeta>(".metadata", &object["metadata"]);
    if let Some(metadata) = template.get("metadata") {
        found.extend(problems_at::<ObjectMeta>(
            ".spec.template.metadata",
            metadata,
        ));
    }
    let place = ".spec.template.spec";
    let mut pod = template["spec"].clone();
    for key in OF_THE_REVISION {
        let value = pod.as_object_mut().and_then(|pod| pod.remove(key));
        if let Some(value) = value.filter(|value| !value.is_u64()) {
            found.push(format!("{place}.{key} is {value}, which is no number"));
        }
    }
    found.extend(problems_at::<PodSpec>(place, &pod));
    found.extend(unknown_keys(place, &pod, &OF_THE_POD));
    let containers = pod["containers"].as_array().into_iter().flatten();
    for (index, container) in containers.enumerate() {
        let place = format!("{place}.containers[{index}]");
        found.extend(unknown_keys(&place, container, &OF_THE_CONTAINER));
    }
    let volumes = pod["volumes"].as_array().into_iter().flatten();
    for (index, volume) in volumes.enumerate() {
        let place = format!("{place}.volumes[{index}]");
        let sources = ["name", "configMap", "secret", "projected", "emptyDir"];
        found.extend(unknown_keys(&place, volume, &sources));
    }
    for (place, value, known) in [
        ("", object, &["apiVersion", "kind", "metadata", "spec"][..]),
        (".spec", &object["spec"], &["template", "traffic"]),
        (".spec.template", template, &["metadata", "spec"]),
    ] {
        found.extend(unknown_keys(place, value, known));
    }
    found
}

/// Reports the keys of `value` that are not among `known`.
fn unknown_keys(place: &str, value: &Value, known: &[&str]) -> Vec<String> {
    let keys = value.as_object().into_iter().flat_map(|keys| keys.keys());
    keys.filter(|key| !known.contains(&key.as_str()))
        .map(|key| format!("{place}.{key} is not for Knative without a feature flag"))
        .collect()
}

/// The problems of a part of an object.
fn problems_at<T: Serialize + DeserializeOwned>(place: &str, part: &Value) -> Vec<String> {
    let found = problems::<T>(part);
    found
        .into_iter()
        .map(|problem| {
            format!(
                "{place}{}{problem}",
                if problem.starts_with('.') { "" } else { ": " }
            )
        })
        .collect()
}

fn problems<T: Serialize + DeserializeOwned>(object: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    match serde_json::from_value::<T>(object.clone()).and_then(serde_json::to_value) {
        Ok(known) => compare("", object, &known, &mut problems),
        Err(error) => problems.push(error.to_string()),
    }
    problems
}

/// Reports everything in `given` that is not in `known`.
fn compare(place: &str, given: &Value, known: &Value, problems: &mut Vec<String>) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (key, value) in given {
                let place = format!("{place}.{key}");
                match known.get(key) {
                    Some(known) => compare(&place, value, known, problems),
                    None => problems.push(format!("{place} does not exist")),
                }
            }
        }
        (Value::Array(given), Value::Array(known)) if given.len() == known.len() => {
            for (index, (given, known)) in given.iter().zip(known).enumerate() {
                compare(&format!("{place}[{index}]"), given, known, problems);
            }
        }
        _ if given == known => {}
        _ => problems.push(format!("{place} is {given}, which is read as {known}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(yaml: &str) -> Vec<String> {
        check(&serde_yaml_ng::from_str(yaml).unwrap()).unwrap().1
    }

    #[test]
    fn unknown_fields_wrong_types_missing_fields_and_unknown_kinds_are_found() {
        let monitor = |endpoint: &str| {
            found(&format!(
                "{{apiVersion: monitoring.coreos.com/v1, kind: PodMonitor, metadata: {{name: m}}, \
                 spec: {{selector: {{}}, podMetricsEndpoints: [{endpoint}]}}}}"
            ))
        };
        assert!(monitor("{port: http, interval: 15s}").is_empty());
        assert_eq!(
            monitor("{prot: http}"),
            [".spec.podMetricsEndpoints[0].prot does not exist"]
        );
        assert!(monitor("{port: 8000}")[0].contains("expected a string"));
        let scaled = "{apiVersion: keda.sh/v1alpha1, kind: ScaledObject, metadata: {name: m}, spec: {triggers: []}}";
        assert!(found(scaled)[0].contains("missing field `scaleTargetRef`"));
        let other = "{apiVersion: example.com/v1, kind: Other, metadata: {name: m}}";
        assert_eq!(found(other), ["no schema for example.com/v1 Other"]);
        let service = serde_json::json!({"apiVersion": "v1", "kind": "Service"});
        assert!(check(&service).is_none());
        let route = "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: m}, \
                     spec: {rules: [{backendRefs: [{name: a, port: 80, wait: 1}]}]}}";
        assert_eq!(
            found(route),
            [".spec.rules[0].backendRefs[0].wait does not exist"]
        );
        let other = "{apiVersion: gateway.networking.k8s.io/v1, kind: Other, metadata: {name: m}}";
        assert_eq!(
            found(other),
            ["no schema for gateway.networking.k8s.io/v1 Other"]
        );
    }

    #[test]
    fn of_a_pod_knative_takes_what_needs_no_feature_flag() {
        let service = |spec: &str| {
            found(&format!(
                "{{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {{name: m}}, \
                 spec: {{template: {{spec: {spec}}}}}}}"
            ))
        };
        assert!(service("{containerConcurrency: 8, containers: [{name: a, image: i}]}").is_empty());
        let needs_flag = service("{initContainers: [], containers: [{name: a, lifecycle: {}}]}");
        assert_eq!(
            needs_flag,
            [
                ".spec.template.spec.initContainers is not for Knative without a feature flag",
                ".spec.template.spec.containers[0].lifecycle is not for Knative without a feature flag",
            ]
        );
        assert_eq!(
            service("{containerConcurrency: many, containers: [{nmae: a}]}"),
            [
                ".spec.template.spec.containerConcurrency is \"many\", which is no number",
                ".spec.template.spec.containers[0].nmae does not exist",
                ".spec.template.spec.containers[0].nmae is not for Knative without a feature flag",
            ]
        );
    }
}
