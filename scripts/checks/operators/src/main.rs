//! Checks the manifests of Kubernetes operators in the YAML files that are named as arguments.
//!
//! Kubernetes' own schemas do not have these kinds, but the operators' CustomResourceDefinitions are published as Rust
//! types. Each object is read into its type, which finds missing fields and wrong types, and written again, which
//! loses what the type does not have: that finds fields that do not exist.

#![deny(warnings)]

use std::process::ExitCode;

use kcr_keda_sh::v1alpha1::scaledobjects::ScaledObject;
use kcr_monitoring_coreos_com::v1::podmonitors::PodMonitor;
use kcr_monitoring_coreos_com::v1::prometheusrules::PrometheusRule;
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
        ("keda.sh/v1alpha1", "ScaledObject") => problems::<ScaledObject>(object),
        ("monitoring.coreos.com/v1", "PodMonitor") => problems::<PodMonitor>(object),
        ("monitoring.coreos.com/v1", "PrometheusRule") => problems::<PrometheusRule>(object),
        // A group without a dot, or of Kubernetes itself.
        _ if version
            .split_once('/')
            .is_none_or(|(group, _)| !group.contains('.') || group.ends_with(".k8s.io")) =>
        {
            return None;
        }
        _ => vec![format!("no schema for {version} {kind}")],
    };
    Some((format!("{kind} {}", text("/metadata/name")), problems))
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
    }
}
